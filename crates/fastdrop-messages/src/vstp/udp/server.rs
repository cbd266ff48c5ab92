//! The end that is spoken to.

pub use super::config::{UdpServerConfig, UdpServerLimits};
use super::delivery::Delivery;
use super::driver::{Handle, Others};
use super::peer::Peer;
use super::presence::PeerEvents;
use super::serving;
use crate::datagrams::Socket;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;
#[cfg(feature = "quic")]
use crate::tls::ServerTls;
use crate::vstp::call::Call;
use crate::vstp::tcp::Drained;
use crate::vstp::types::{Frame, FrameType, VstpError};
use fastdrop_proto::vstp::{Counters, Failure, FrameBytes, SendOptions};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// A socket that receives from any address. It acknowledges and reports in a task of its own.
#[derive(Debug)]
pub struct VstpUdpServer {
    pub(super) handle: Arc<Handle>,
}

impl VstpUdpServer {
    const DRAIN: Duration = Duration::from_secs(10);

    fn new(handle: Handle) -> Self {
        Self { handle: Arc::new(handle) }
    }

    /// Opens a socket on an address.
    pub async fn bind(addr: &str) -> Result<Self, VstpError> {
        Self::bind_with_config(addr, UdpServerConfig::default()).await
    }

    /// The same, set up otherwise.
    pub async fn bind_with_config(addr: &str, config: UdpServerConfig) -> Result<Self, VstpError> {
        Ok(Self::new(Handle::bind(addr, config.endpoint()).await?))
    }

    /// The same with bounds on what unfinished messages may take (`ReassemblyLimits` alone will
    /// do), and on how many addresses are remembered.
    pub async fn bind_with_limits(addr: &str, limits: impl Into<UdpServerLimits>) -> Result<Self, VstpError> {
        let limits: UdpServerLimits = limits.into();
        Ok(Self::new(Handle::bind(addr, limits.endpoint()).await?))
    }

    /// Opens a socket that takes connections of TLS 1.3 (QUIC) alone, with an
    /// [`Identity`](crate::tls::Identity) or a [`ServerTls`]. A peer is there while its connection
    /// is, and can only be sent to then.
    #[cfg(feature = "quic")]
    pub async fn bind_tls(
        addr: &str,
        tls: impl Into<ServerTls>,
        config: UdpServerConfig,
    ) -> Result<Self, VstpError> {
        Ok(Self::new(Handle::bind_tls(addr, &tls.into(), config.endpoint()).await?))
    }

    /// The same with bounds, of which [`UdpServerLimits::peers_max`] is that of connections, too.
    #[cfg(feature = "quic")]
    pub async fn bind_tls_with_limits(
        addr: &str,
        tls: impl Into<ServerTls>,
        limits: impl Into<UdpServerLimits>,
    ) -> Result<Self, VstpError> {
        let limits: UdpServerLimits = limits.into();
        Ok(Self::new(Handle::bind_tls(addr, &tls.into(), limits.endpoint()).await?))
    }

    /// On a socket that is there; what is not VSTP's is given to `others`.
    pub(crate) fn share(
        socket: Arc<Socket>,
        limits: UdpServerLimits,
        others: Others,
    ) -> Result<Self, VstpError> {
        Ok(Self::new(Handle::new(socket, limits.endpoint(), Some(others))?))
    }

    /// The address of the socket.
    pub fn local_addr(&self) -> Result<SocketAddr, VstpError> {
        self.handle.local_addr()
    }

    /// The next frame or message. One that wants an acknowledgement has it, since the application
    /// has taken it.
    pub async fn recv(&self) -> Result<(Frame, SocketAddr), VstpError> {
        self.handle.recv().await.map(|(frame, from)| (frame.into(), from))
    }

    /// The same without copying the payload.
    pub async fn recv_bytes(&self) -> Result<(FrameBytes, SocketAddr), VstpError> {
        self.handle.recv().await
    }

    /// The next frame or message, acknowledged when the application says so:
    /// [`Delivery::acknowledge`].
    ///
    /// # Errors
    ///
    /// The socket is of no use any more.
    pub async fn recv_delivery(&self) -> Result<Delivery, VstpError> {
        Delivery::next(&self.handle).await
    }

    /// Sends a frame, as a client does. An address that has not proved itself gets at most three
    /// times the bytes that came from it; the rest waits for its proof, a second at most.
    pub async fn send(&self, frame: Frame, dest: SocketAddr) -> Result<(), VstpError> {
        self.send_bytes(frame.try_into()?, dest).await
    }

    /// The same without copying the payload.
    pub async fn send_bytes(&self, frame: FrameBytes, dest: SocketAddr) -> Result<(), VstpError> {
        Ok(self.handle.send(frame, dest, false).await?)
    }

    /// Sends a frame until its receiver has acknowledged it.
    pub async fn send_with_ack(&self, frame: Frame, dest: SocketAddr) -> Result<(), VstpError> {
        Ok(self.handle.send(frame.try_into()?, dest, true).await?)
    }

    /// Sends a frame on a channel, or otherwise as these options say, and waits for its outcome: a
    /// state of a sequenced channel has left when this returns, and a frame that wants an
    /// acknowledgement has it. What was given to this is under way also when the future is dropped.
    ///
    /// # Errors
    ///
    /// The reason for which the frame did not leave or arrive, as far as it is known;
    /// [`Failure::Superseded`] if a newer state took its place.
    pub async fn send_on(
        &self,
        frame: FrameBytes,
        dest: SocketAddr,
        options: &SendOptions,
    ) -> Result<(), Failure> {
        self.handle.send_on(frame, dest, options).await
    }

    /// Sends a state on a sequenced channel, and waits for nothing: for those who send many states
    /// in turns, and want none of their peers to hold up the others. One that cannot leave at once
    /// waits until it can, or a newer one takes its place. One that fails after that is only
    /// counted (`messages_failed`): [`Self::send_on`] tells its outcome.
    ///
    /// # Errors
    ///
    /// The socket cannot send to that address, or is of no use any more.
    pub fn post_state(&self, frame: FrameBytes, dest: SocketAddr, channel: u32) -> Result<(), Failure> {
        self.handle.post(frame, dest, &SendOptions::sequenced(channel))
    }

    /// Bounds what is sent with [`Priority::Bulk`](super::Priority::Bulk), to each address by
    /// itself, to so many bytes a second of datagrams, at least 16 KiB; None for no bound, which is
    /// the default.
    pub fn set_bulk_rate(&self, bytes_per_second: Option<u64>) {
        self.handle.set_bulk_rate(bytes_per_second);
    }

    /// Hands every frame and message to `handler`, and answers HELLO and PING, which a handler
    /// cannot. Handlers of different frames run beside each other.
    pub async fn run<F, Fut>(self, handler: F) -> Result<(), VstpError>
    where
        F: Fn(SocketAddr, Frame) -> Fut + Send + Sync + Clone + 'static,
        Fut: Future<Output = ()> + Send,
    {
        self.run_until(std::future::pending(), handler).await
    }

    /// The same until `end`: then nothing more is taken or acknowledged, and the handlers that run
    /// have ten seconds. What was acknowledged and not handled is logged.
    pub async fn run_until<F, Fut>(self, end: impl Future<Output = ()>, handler: F) -> Result<(), VstpError>
    where
        F: Fn(SocketAddr, Frame) -> Fut + Send + Sync + Clone + 'static,
        Fut: Future<Output = ()> + Send,
    {
        self.run_until_drained(end, Self::DRAIN, handler).await.map(|_| ())
    }

    /// The same with another time for the handlers, which says what was acknowledged and not
    /// handled.
    ///
    /// # Errors
    ///
    /// The socket is of no use any more.
    pub async fn run_until_drained<F, Fut>(
        self,
        end: impl Future<Output = ()>,
        drain: Duration,
        handler: F,
    ) -> Result<Drained, VstpError>
    where
        F: Fn(SocketAddr, Frame) -> Fut + Send + Sync + Clone + 'static,
        Fut: Future<Output = ()> + Send,
    {
        let answer = move |call: Call| {
            let handled = handler(call.from(), call.into_frame());
            async move {
                handled.await;
                None
            }
        };
        serving::serve(self.handle, end, drain, answer).await
    }

    /// The same as [`Self::run_until`] with a [`Peer`] for each frame, by which its sender can be
    /// sent frames, from the handler and from anywhere else, now and later. One from which nothing
    /// came for so long as `silent_after` counts as gone. Handlers may hold peers as long as they
    /// like.
    ///
    /// # Errors
    ///
    /// The socket is of no use any more.
    pub async fn run_with_peers<F, Fut>(
        self,
        end: impl Future<Output = ()>,
        silent_after: Duration,
        handler: F,
    ) -> Result<Drained, VstpError>
    where
        F: Fn(Peer, Frame) -> Fut + Send + Sync + Clone + 'static,
        Fut: Future<Output = ()> + Send,
    {
        let (events, handle) = (Arc::new(self.events(silent_after)), Arc::downgrade(&self.handle));
        // Given when this returns or is dropped.
        let (_serving, ended) = Shutdown::new();
        let answer = move |call: Call| {
            let from = call.from();
            let present = handle.upgrade().and_then(|handle| handle.present(&events, from));
            let handled = handler(Peer::new(handle.clone(), ended.clone(), from, present), call.into_frame());
            async move {
                handled.await;
                None
            }
        };
        serving::serve(self.handle, end, Self::DRAIN, answer).await
    }

    /// Replies to the calls of every address with what `handler` gives, beside each other, until
    /// `end`; then the handlers that run have ten seconds. A handler whose caller does not wait any
    /// more is dropped. DATA frames that are no calls, as those of programs of version 0.2, are
    /// given to `handler` as well, and answered with frames that are no replies. An address has at
    /// most 1,024 calls at once, and never more than are free beside those of all, of which there
    /// are 8,192; beyond, a caller is told `busy`. Says what was acknowledged and not handled.
    ///
    /// # Errors
    ///
    /// The socket is of no use any more.
    pub async fn serve_calls<F, Fut>(
        self,
        end: impl Future<Output = ()>,
        handler: F,
    ) -> Result<Drained, VstpError>
    where
        F: Fn(Call) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Frame, VstpError>> + Send,
    {
        let handler = Arc::new(handler);
        let answer = move |call: Call| {
            let handler = Arc::clone(&handler);
            async move {
                if call.frame().typ != FrameType::Data {
                    return None;
                }
                Some(handler(call).await.and_then(FrameBytes::try_from))
            }
        };
        serving::serve(self.handle, end, Self::DRAIN, answer).await
    }

    /// Gives every frame and call to `answer`, and what comes of it back, until `end` and at most
    /// for ten seconds more.
    pub(crate) async fn serve_frames<A, Fut>(
        self,
        end: impl Future<Output = ()>,
        answer: A,
    ) -> Result<Drained, VstpError>
    where
        A: Fn(Call) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Option<Result<FrameBytes, VstpError>>> + Send,
    {
        serving::serve(self.handle, end, Self::DRAIN, answer).await
    }

    /// Answers a HELLO or PING, for those who call [`Self::recv`] and do not answer for themselves;
    /// nothing else.
    ///
    /// Nothing waits for the answer to leave, and one that does not fit a datagram of 1,200 bytes
    /// is not sent: a PING of many fragments says nothing that a small one does not.
    pub fn answer(&self, frame: &FrameBytes, from: SocketAddr) {
        serving::answer_greeting(&self.handle, frame, from);
    }

    /// The number of messages that have begun to arrive and are not complete.
    pub async fn reassembly_session_count(&self) -> usize {
        self.handle.unfinished()
    }

    /// Tells from now on which peers come and go, where one from which nothing has come for so long
    /// counts as gone. To be asked for before [`Self::run`], which uses this up.
    pub fn events(&self, silent_after: Duration) -> PeerEvents {
        self.handle.events(silent_after)
    }

    /// Counts of what this server does, also when it is used up.
    pub fn metrics(&self) -> Metrics {
        self.handle.metrics()
    }

    /// The counts since the beginning.
    pub fn counters(&self) -> Counters {
        self.handle.counters()
    }
}
