//! The callers' side.

use super::config::ReconnectConfig;
use super::driver::{Command, Driver, Room, Waiter};
use super::error::DeliverError;
use super::state::{Standing, State, States};
use crate::tls::{ClientTls, host_of};
use crate::vstp::tcp::session::Session;
use crate::vstp::types::{Frame, VstpError};
use fastdrop_proto::vstp::{CallRole, ClientSessionId, FrameBytes, FrameType, MSG_ID};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot, watch};

/// A client that connects again when its connection breaks, and sends again what has no
/// acknowledgement; the server drops what it was given already. Clones are the same client.
///
/// Frames that are [delivered](Self::deliver) wait for a connection, at most
/// [`ReconnectConfig::queue_frames_max`] of them, and are handed on in the order in which they were
/// given, each once, as long as the server remembers this client: over any number of broken
/// connections, for ten minutes after the last one, and until it is started anew. After that their
/// callers are told that it is not known whether they arrived.
///
/// ```
/// use fastdrop_messages::vstp::tcp::{ReconnectConfig, Reconnecting, State};
/// use fastdrop_messages::vstp::{Frame, FrameType, VstpTcpServer};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let server = VstpTcpServer::bind("127.0.0.1:0").await?;
/// let address = server.local_addr()?.to_string();
/// tokio::spawn(server.run(|_, frame| async move { assert_eq!(frame.payload(), b"one more") }));
///
/// let client = Reconnecting::start(&address, ReconnectConfig::default())?;
/// client.deliver(Frame::new(FrameType::Data).with_payload(b"one more".to_vec())).await?;
/// assert!(matches!(client.state(), State::Connected { remembers: true, .. }));
/// client.close().await;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Reconnecting(Arc<Callers>);

#[derive(Debug)]
struct Callers {
    commands: mpsc::UnboundedSender<Command>,
    standing: watch::Receiver<Standing>,
    /// The connection whose frames are taken.
    reading: Mutex<Option<Session>>,
    frames: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    bytes_max: u32,
    frame_max: usize,
}

/// Says that somebody does not wait any more, unless it has been defused.
struct Waiting<'a>(Option<&'a mpsc::UnboundedSender<Command>>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(commands) = self.0.take() {
            let _ = commands.send(Command::GivenUp);
        }
    }
}

impl Reconnecting {
    /// Starts a client of `host:port`, which connects in the background. It ends when its last
    /// clone is dropped.
    ///
    /// # Errors
    ///
    /// [`VstpError::InvalidAddress`] if that is not `host:port`, or TLS knows no such host. The
    /// operating system has no random numbers.
    pub fn start(addr: &str, config: ReconnectConfig) -> Result<Self, VstpError> {
        Self::start_with(addr, None, config)
    }

    /// The same with TLS 1.3.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    #[cfg(feature = "tls")]
    pub fn start_tls(
        addr: &str,
        tls: impl Into<ClientTls>,
        config: ReconnectConfig,
    ) -> Result<Self, VstpError> {
        Self::start_with(addr, Some(tls.into()), config)
    }

    fn start_with(addr: &str, tls: Option<ClientTls>, config: ReconnectConfig) -> Result<Self, VstpError> {
        let is_address =
            addr.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if !is_address {
            return Err(VstpError::InvalidAddress);
        }
        if tls.is_some() {
            host_of(addr)?;
        }
        let random = || getrandom::u64().map_err(|error| VstpError::Io(io::Error::other(error.to_string())));
        let id = ClientSessionId::new(u128::from(random()?) << 64 | u128::from(random()?));
        let (commands, commanded) = mpsc::unbounded_channel();
        let (stands, standing) =
            watch::channel(Standing { state: State::Connecting, session: None, refused: None });
        let callers = Callers {
            commands,
            standing,
            reading: Mutex::new(None),
            frames: Arc::new(Semaphore::new(config.frames())),
            bytes: Arc::new(Semaphore::new(config.bytes() as usize)),
            bytes_max: config.bytes(),
            frame_max: config.frame_max,
        };
        tokio::spawn(Driver::new(addr.to_owned(), tls, config, id, commanded, stands).run());
        Ok(Self(Arc::new(callers)))
    }

    /// Sends a DATA frame that is no part of a call, and waits until the server has acknowledged
    /// it, whatever connections break meanwhile. While many frames wait already, this waits for its
    /// turn. If this is dropped, the frame is not sent any more; it may have been.
    ///
    /// # Errors
    ///
    /// [`DeliverError`] says whether the frame may have arrived.
    pub async fn deliver(&self, frame: Frame) -> Result<(), DeliverError> {
        let frame = FrameBytes::try_from(frame).map_err(|error| DeliverError::NotSent(error.to_string()))?;
        self.deliver_bytes(frame).await
    }

    /// The same without copying the payload.
    ///
    /// # Errors
    ///
    /// As [`Self::deliver`].
    pub async fn deliver_bytes(&self, frame: FrameBytes) -> Result<(), DeliverError> {
        let closed = || match self.state() {
            State::Ended { reason } => DeliverError::NotSent(reason.as_ref().into()),
            _ => DeliverError::NotSent("the client has ended".into()),
        };
        // Nothing else has an outcome: the peer would never acknowledge it.
        if frame.typ != FrameType::Data || CallRole::of(&frame.as_ref()).is_some() {
            let words = "only DATA frames that are no part of a call are delivered";
            return Err(DeliverError::NotSent(words.into()));
        }
        let size = frame.as_ref().encoded_len();
        if size > self.0.frame_max {
            let error = VstpError::FrameTooLarge { size, limit: self.0.frame_max };
            return Err(DeliverError::NotSent(error.to_string()));
        }
        let bytes = u32::try_from(frame.memory()).unwrap_or(u32::MAX).min(self.0.bytes_max);
        let room = Room {
            _frame: Arc::clone(&self.0.frames).acquire_owned().await.map_err(|_| closed())?,
            _bytes: Arc::clone(&self.0.bytes).acquire_many_owned(bytes).await.map_err(|_| closed())?,
        };
        let (told, outcome) = oneshot::channel();
        let command = Command::Deliver(frame, Waiter { told, _room: room });
        self.0.commands.send(command).map_err(|_| closed())?;
        let mut waiting = Waiting(Some(&self.0.commands));
        let outcome = outcome.await;
        waiting.0 = None;
        outcome.unwrap_or_else(|_| Err(closed()))
    }

    /// Sends a frame once, without an acknowledgement, on the connection that stands; waits for one
    /// if there is none. When this returns, the operating system has all of it.
    ///
    /// # Errors
    ///
    /// The connection broke: the frame may have arrived. [`VstpError::ConnectionClosed`] too when
    /// the client has ended, or else the reason for which it is not let in.
    pub async fn send(&self, frame: Frame) -> Result<(), VstpError> {
        self.connected().await?.send(frame).await
    }

    /// Sends a request on the connection that stands, and waits for its own reply, at most
    /// [`Session::CALL_TIME`]; waits for a connection if there is none.
    ///
    /// # Errors
    ///
    /// As [`Self::call_within`].
    pub async fn call(&self, request: Frame) -> Result<Frame, VstpError> {
        self.call_within(request, Session::CALL_TIME).await
    }

    /// The same for at most this long. A call is sent once.
    ///
    /// # Errors
    ///
    /// [`VstpError::ConnectionClosed`] if the connection broke before the reply came: the call may
    /// have been handled. Otherwise as [`Session::call_within`].
    pub async fn call_within(&self, request: Frame, time: Duration) -> Result<Frame, VstpError> {
        let call = async { self.connected().await?.call_within(request, time).await };
        tokio::time::timeout(time, call).await.unwrap_or(Err(VstpError::Timeout))
    }

    /// The next frame of the server that is no reply, on whichever connection; None when the client
    /// has ended. Where several tasks receive, each frame goes to one of them. What the server
    /// sends is lost if it is not read before the connection breaks. Of what was read and not taken
    /// then, this gives the rest, unless nobody has received since the connection before that. May
    /// be dropped while it waits.
    pub async fn recv(&self) -> Option<Frame> {
        self.recv_bytes().await.map(Frame::from)
    }

    /// The same without copying the payload.
    pub async fn recv_bytes(&self) -> Option<FrameBytes> {
        let mut reading = self.0.reading.lock().await;
        let mut standing = self.0.standing.clone();
        loop {
            if let Some(session) = reading.as_ref()
                && let Ok(Some(frame)) = session.recv_bytes().await
            {
                if is_late(&frame) {
                    continue;
                }
                return Some(frame);
            }
            let is_other = |session: &Session| reading.as_ref().is_none_or(|read| !read.is_same(session));
            let next = standing.wait_for(|standing| {
                matches!(standing.state, State::Ended { .. })
                    || standing.session.as_ref().is_some_and(is_other)
            });
            let next = next.await.ok()?.session.clone()?;
            *reading = Some(next);
        }
    }

    /// The state now.
    pub fn state(&self) -> State {
        self.0.standing.borrow().state.clone()
    }

    /// The states from now on.
    pub fn states(&self) -> States {
        let mut standing = self.0.standing.clone();
        standing.mark_unchanged();
        States(standing)
    }

    /// Waits until a connection stands.
    async fn connected(&self) -> Result<Session, VstpError> {
        let mut standing = self.0.standing.clone();
        let is_settled =
            |standing: &Standing| matches!(standing.state, State::Connected { .. } | State::Ended { .. });
        let standing = standing.wait_for(is_settled).await.map_err(|_| VstpError::ConnectionClosed)?;
        match (&standing.session, standing.refused.as_deref()) {
            (Some(session), _) => Ok(session.clone()),
            (None, Some(VstpError::ServerError(reason))) => Err(VstpError::ServerError(reason.clone())),
            (None, Some(error)) => {
                Err(VstpError::Io(io::Error::new(io::ErrorKind::PermissionDenied, error.to_string())))
            }
            (None, None) => Err(VstpError::ConnectionClosed),
        }
    }

    /// Ends the client: says BYE if a connection stands. Frames without an acknowledgement fail, so
    /// whoever wants it waits before for what it has delivered.
    pub async fn close(&self) {
        let (told, ended) = oneshot::channel();
        if self.0.commands.send(Command::Close(told)).is_ok() {
            let _ = ended.await;
        }
    }
}

/// Returns true for the outcome of a frame that nobody waits for any more, or that an earlier
/// connection has brought.
fn is_late(frame: &FrameBytes) -> bool {
    match frame.typ {
        FrameType::Ack => true,
        FrameType::Err => frame.headers().find(MSG_ID).is_some() && CallRole::of(&frame.as_ref()).is_none(),
        _ => false,
    }
}
