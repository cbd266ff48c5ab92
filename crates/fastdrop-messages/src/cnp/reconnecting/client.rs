//! The callers' side.

use super::config::ReconnectConfig;
use super::driver::{Command, Driver, Room, Waiter};
use super::error::SendFailure;
use super::state::{Standing, State, States};
use crate::cnp::client::{ClientBuilder, Security};
use crate::cnp::error::Error;
#[cfg(feature = "tls")]
use crate::tls::{self, ClientTls};
use bytes::Bytes;
use fastdrop_proto::cnp::{Carrier, ConfigError};
use fastdrop_proto::vstp::ClientSessionId;
use std::io;
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

/// A client by TCP that connects again when its connection breaks, and sends again what the server
/// has not handed on. Clones are the same client.
///
/// Messages wait for a connection, at most [`ReconnectConfig::queue_messages_max`] of them, and are
/// handed on in the order in which they were given, each once, as long as the server remembers this
/// client: over any number of broken connections, for ten minutes after the last one, and until it
/// is started anew. After that their callers are told that it is not known whether they arrived.
///
/// ```
/// use fastdrop_messages::cnp::{Client, ReconnectConfig, ReconnectingClient, Server, State};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let server = Server::bind("127.0.0.1:0").await?;
/// let address = server.local_addr().to_string();
/// tokio::spawn(server.run(|_, message| async move { assert_eq!(message, "one more") }));
///
/// let config = ReconnectConfig::default();
/// let client = ReconnectingClient::start(&address, Client::builder(), config)?;
/// client.send("one more").await?;
/// assert!(matches!(client.state(), State::Connected { remembers: true, .. }));
/// client.close().await;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct ReconnectingClient(Arc<Callers>);

#[derive(Debug)]
struct Callers {
    commands: mpsc::UnboundedSender<Command>,
    standing: watch::Receiver<Standing>,
    messages: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    bytes_max: u32,
}

impl ReconnectingClient {
    /// Starts a client of `host:port`, which asks for each session as `builder` says, in the
    /// background. It ends when its last clone is dropped.
    ///
    /// # Errors
    ///
    /// The configuration cannot be, that of a client by UDP too; or the operating system has no
    /// random numbers.
    pub fn start(addr: &str, builder: ClientBuilder, config: ReconnectConfig) -> Result<Self, Error> {
        Self::start_with(addr, None, builder, config)
    }

    /// The same with TLS 1.3.
    ///
    /// # Errors
    ///
    /// As [`Self::start`]; and TLS knows no such host.
    #[cfg(feature = "tls")]
    pub fn start_tls(
        addr: &str,
        tls: impl Into<ClientTls>,
        builder: ClientBuilder,
        config: ReconnectConfig,
    ) -> Result<Self, Error> {
        let security = Security { name: tls::host_of(addr)?, tls: tls.into() };
        Self::start_with(addr, Some(security), builder, config)
    }

    fn start_with(
        addr: &str,
        security: Option<Security>,
        mut builder: ClientBuilder,
        config: ReconnectConfig,
    ) -> Result<Self, Error> {
        if builder.session().carrier != Carrier::Stream {
            return Err(ConfigError("a client that connects again does so by TCP").into());
        }
        builder.session().check()?;
        let random = || getrandom::u64().map_err(|error| io::Error::other(error.to_string()));
        let id = ClientSessionId::new(u128::from(random()?) << 64 | u128::from(random()?));
        builder.client_session = Some(id);
        let (commands, commanded) = mpsc::unbounded_channel();
        let (stands, standing) = watch::channel(Standing { state: State::Connecting, session: None });
        let callers = Callers {
            commands,
            standing,
            messages: Arc::new(Semaphore::new(config.messages())),
            bytes: Arc::new(Semaphore::new(config.bytes() as usize)),
            bytes_max: config.bytes(),
        };
        tokio::spawn(Driver::new(addr.to_owned(), security, builder, config, commanded, stands).run());
        Ok(Self(Arc::new(callers)))
    }

    /// Sends a message, and waits until the server has acknowledged it, whatever connections break
    /// meanwhile. While many messages wait already, this waits for its turn. If this is dropped
    /// after that, the message is sent all the same.
    ///
    /// # Errors
    ///
    /// [`SendFailure`] says whether the message may have arrived.
    pub async fn send(&self, message: impl Into<Bytes>) -> Result<(), SendFailure> {
        let message = message.into();
        let closed = || match self.state() {
            State::Ended { reason } => SendFailure::NotSent(reason.as_ref().into()),
            _ => SendFailure::NotSent("the client was closed".into()),
        };
        let bytes = u32::try_from(message.len()).unwrap_or(u32::MAX).min(self.0.bytes_max);
        let room = Room {
            _message: Arc::clone(&self.0.messages).acquire_owned().await.map_err(|_| closed())?,
            _bytes: Arc::clone(&self.0.bytes).acquire_many_owned(bytes).await.map_err(|_| closed())?,
        };
        let (told, outcome) = oneshot::channel();
        let command = Command::Send(message, Waiter { told, _room: room });
        self.0.commands.send(command).map_err(|_| closed())?;
        outcome.await.unwrap_or_else(|_| Err(closed()))
    }

    /// The next message of the server, on whichever connection; None when the client has ended.
    /// Receives; a message is lost if it does not arrive before the connection breaks. May be
    /// dropped while it waits.
    pub async fn recv(&self) -> Option<Bytes> {
        let mut standing = self.0.standing.clone();
        loop {
            let session = standing.borrow_and_update().session.clone();
            if let Some(session) = session
                && let Ok(Some(message)) = session.recv().await
            {
                return Some(message);
            }
            if matches!(standing.borrow().state, State::Ended { .. }) || standing.changed().await.is_err() {
                return None;
            }
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

    /// Takes no message more, waits until those that were given before have an outcome, whatever
    /// connections break meanwhile, and takes leave of the server. If this is dropped, that goes on
    /// until the last clone of the client is dropped too.
    pub async fn close(&self) {
        let (told, done) = oneshot::channel();
        if self.0.commands.send(Command::Close(told)).is_ok() {
            // Dropped when it has ended otherwise.
            let _ = done.await;
        }
    }
}
