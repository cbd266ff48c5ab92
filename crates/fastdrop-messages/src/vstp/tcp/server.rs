//! The end that listens.

use super::TcpConfig;
use super::connection::{Connection, random};
use super::delivery::Delivery;
use super::link::Link;
use super::peer::Peer;
use super::served::Served;
use super::serving::serve_session;
use super::session::{ReceiveHalf, SendHalf, Session};
use super::stream::Stream;
use super::unhandled::{Drained, Unhandled};
use crate::incoming::{Accepted, Carried, Incoming};
use crate::inner::Inner;
use crate::metrics::{Count, Metrics};
use crate::places::Origin;
use crate::shutdown::ShutdownSignal;
use crate::spans;
use crate::tls::{self, Acceptor, Fingerprint, ServerTls};
use crate::vstp::call::Call;
use crate::vstp::types::{Flags, Frame, SessionId, VstpError};
use fastdrop_proto::vstp::{ClientOrigin, ClientSessions, FrameBytes};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::ToSocketAddrs;
use tracing::{Instrument, Span};

/// A client that has connected.
#[derive(Debug)]
pub struct VstpTcpConnection {
    link: Link,
    peer: SocketAddr,
    fingerprint: Option<Fingerprint>,
    span: Span,
}

impl VstpTcpConnection {
    /// The number of this connection among those of its server.
    pub fn session_id(&self) -> SessionId {
        self.link.session_id()
    }

    /// The client's address.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// The fingerprint of the certificate that the client has shown, if it has shown one.
    pub fn peer_fingerprint(&self) -> Option<Fingerprint> {
        self.fingerprint
    }

    /// Sends a frame: when this returns, the operating system has all of it.
    pub async fn send(&mut self, frame: Frame) -> Result<(), VstpError> {
        self.link.send(frame).await
    }

    /// The same without copying the payload.
    pub async fn send_bytes(&mut self, frame: &FrameBytes) -> Result<(), VstpError> {
        self.link.send_bytes(frame).await
    }

    /// Takes a frame, to be sent together with others: [`Self::flush`] sends them.
    pub async fn feed(&mut self, frame: Frame) -> Result<(), VstpError> {
        self.link.feed(frame).await
    }

    /// Sends what was fed.
    pub async fn flush(&mut self) -> Result<(), VstpError> {
        self.link.flush().await
    }

    /// Sends a frame, and waits until the client has acknowledged it.
    pub async fn send_with_ack(&mut self, frame: Frame, patience: Duration) -> Result<(), VstpError> {
        self.link.send_with_ack(vec![frame], patience).await
    }

    /// The next frame; None when the client has ended. A HELLO or PING is answered when this is
    /// called again, unless the application has answered it; a frame that wants an acknowledgement
    /// has it when it is returned, since the application has taken it. May be dropped while it
    /// waits, and nothing is lost.
    pub async fn recv(&mut self) -> Result<Option<Frame>, VstpError> {
        Ok(self.link.recv_bytes().await?.map(Frame::from))
    }

    /// The same without copying the payload.
    pub async fn recv_bytes(&mut self) -> Result<Option<FrameBytes>, VstpError> {
        self.link.recv_bytes().await
    }

    /// The next frame, acknowledged when the application says so: [`Delivery::acknowledge`].
    ///
    /// # Errors
    ///
    /// As [`Self::recv`].
    pub async fn recv_delivery(&mut self) -> Result<Option<Delivery<'_>>, VstpError> {
        Delivery::next(&mut self.link).await
    }

    /// Says BYE, and ends the sending half.
    pub async fn close(&mut self) -> Result<(), VstpError> {
        self.link.close().await
    }

    /// Has the connection driven by a task, for any number of callers.
    pub fn into_session(self) -> Session {
        let Self { link, peer, span, .. } = self;
        span.in_scope(|| link.into_session(peer, false))
    }

    /// The two halves, for a task each.
    pub fn into_split(self) -> (SendHalf, ReceiveHalf) {
        self.into_session().into_split()
    }
}

/// Listens for clients.
pub struct VstpTcpServer {
    incoming: Incoming,
    config: TcpConfig,
    tls: Option<Acceptor>,
    sessions: AtomicU64,
    client_sessions: ClientSessions,
}

impl VstpTcpServer {
    /// Listens on an address.
    pub async fn bind(addr: impl ToSocketAddrs) -> Result<Self, VstpError> {
        Self::bind_with_config(addr, TcpConfig::default()).await
    }

    /// The same, set up otherwise.
    pub async fn bind_with_config(addr: impl ToSocketAddrs, config: TcpConfig) -> Result<Self, VstpError> {
        Ok(Self::new(Incoming::bind(addr, config.places()).await?, config, None))
    }

    /// Listens on an address for clients that speak TLS 1.3.
    #[cfg(feature = "tls")]
    pub async fn bind_tls(
        addr: impl ToSocketAddrs,
        tls: impl Into<ServerTls>,
        config: TcpConfig,
    ) -> Result<Self, VstpError> {
        let acceptor = Acceptor::new(&tls.into(), &[Inner::Vstp])?;
        Ok(Self::new(Incoming::bind(addr, config.places()).await?, config, Some(acceptor)))
    }

    pub(crate) fn new(incoming: Incoming, config: TcpConfig, tls: Option<Acceptor>) -> Self {
        let client_sessions = ClientSessions::new(config.client_sessions, random());
        Self { incoming, config, tls, sessions: AtomicU64::new(0), client_sessions }
    }

    /// Counts of what this server does, also when it is used up: those of its configuration.
    pub fn metrics(&self) -> Metrics {
        self.config.metrics.clone()
    }

    /// The address on which it listens.
    pub fn local_addr(&self) -> Result<SocketAddr, VstpError> {
        Ok(self.incoming.local_addr()?)
    }

    /// The next client, its TLS handshake done. Where handshakes may be slow, [`Self::run`] does
    /// them beside each other.
    pub async fn accept(&self) -> Result<VstpTcpConnection, VstpError> {
        let accepted = self.incoming.accept().await?;
        let (id, span) = self.begin(&accepted);
        self.establish(accepted, id, &span, false).instrument(span.clone()).await
    }

    /// The number of a connection, and what its tasks run in.
    fn begin(&self, accepted: &Accepted) -> (SessionId, Span) {
        let id = SessionId::from(self.sessions.fetch_add(1, Ordering::Relaxed)) + 1;
        let span = spans::of("vstp", "tcp", accepted.peer);
        spans::identify(&span, id);
        (id, span)
    }

    async fn establish(
        &self,
        accepted: Accepted,
        id: SessionId,
        span: &Span,
        answers: bool,
    ) -> Result<VstpTcpConnection, VstpError> {
        let Accepted { stream, peer, place } = accepted;
        let secured = match (stream, &self.tls) {
            (Carried::Plain(stream), None) => Err(stream),
            (Carried::Secured(stream), _) => Ok(stream),
            (Carried::Plain(stream), Some(acceptor)) => tokio::select! {
                stream = acceptor.accept(stream) => {
                    let metrics = &self.config.metrics;
                    Ok(Box::new(stream.inspect_err(|_| metrics.on(Count::Refused))?))
                }
                () = place.lost() => {
                    self.config.metrics.on(Count::Refused);
                    return Err(VstpError::ConnectionClosed);
                }
            },
        };
        let (stream, fingerprint) = match secured {
            Err(stream) => (Stream::Plain(stream), None),
            Ok(stream) => {
                let fingerprint = tls::peer_of(&stream);
                (Stream::Tls(stream), fingerprint)
            }
        };
        tracing::debug!(%peer, "connected");
        let stream = stream.guarded(&self.config, Some(place));
        let mut connection = Connection::new(stream, self.config.clone(), Some(id), answers);
        connection.accept_client_session(ClientOrigin {
            sessions: self.client_sessions.clone(),
            address: Origin::of(peer.ip()).to_bits(),
            certificate: fingerprint.map(Fingerprint::to_bytes),
        });
        connection.admit().await?;
        let link = Link::new(connection, &self.config, peer);
        Ok(VstpTcpConnection { link, peer, fingerprint, span: span.clone() })
    }

    /// Hands every frame of every client to `handler`, one after the other for each client, and
    /// answers HELLO, PING and REQ_ACK.
    pub async fn run<F, Fut>(self, handler: F) -> Result<(), VstpError>
    where
        F: Fn(SessionId, Frame) -> Fut + Send + Sync + Clone + 'static,
        Fut: Future<Output = ()> + Send,
    {
        self.run_until(std::future::pending(), handler).await
    }

    /// The same until `end`: then nobody is accepted any more and nothing more is taken or
    /// acknowledged, all clients are told BYE when their handler is done, and after
    /// [`TcpConfig::drain`] they are left. What was acknowledged and not handled is logged.
    pub async fn run_until<F, Fut>(self, end: impl Future<Output = ()>, handler: F) -> Result<(), VstpError>
    where
        F: Fn(SessionId, Frame) -> Fut + Send + Sync + Clone + 'static,
        Fut: Future<Output = ()> + Send,
    {
        self.run_until_drained(end, handler).await.map(|_| ())
    }

    /// The same, which says what was acknowledged and not handled.
    ///
    /// # Errors
    ///
    /// None at present.
    pub async fn run_until_drained<F, Fut>(
        self,
        end: impl Future<Output = ()>,
        handler: F,
    ) -> Result<Drained, VstpError>
    where
        F: Fn(SessionId, Frame) -> Fut + Send + Sync + Clone + 'static,
        Fut: Future<Output = ()> + Send,
    {
        let unhandled = Unhandled::default();
        let counted = unhandled.clone();
        self.serve(end, move |mut connection, mut signal| {
            let (handler, unhandled) = (handler.clone(), counted.clone());
            async move {
                let _served = connection.link.served();
                let handled = handle_all(&mut connection, &handler, &unhandled, &mut signal).await;
                if let Err(error) = handled {
                    tracing::debug!(peer = %connection.peer, %error, "the session ended");
                }
            }
        })
        .await?;
        Ok(unhandled.report())
    }

    /// The same as [`Self::run_until_drained`] with a [`Peer`] for each frame, by which its client
    /// can be sent frames, from the handler and from anywhere else, now and later. Handlers may
    /// hold peers as long as they like.
    ///
    /// A client that takes nothing makes those wait who [`Peer::send`] to it, and nobody else.
    ///
    /// # Errors
    ///
    /// None at present.
    pub async fn run_with_peers<F, Fut>(
        self,
        end: impl Future<Output = ()>,
        handler: F,
    ) -> Result<Drained, VstpError>
    where
        F: Fn(Peer, Frame) -> Fut + Send + Sync + Clone + 'static,
        Fut: Future<Output = ()> + Send,
    {
        let unhandled = Unhandled::default();
        let counted = unhandled.clone();
        self.serve(end, move |connection, signal| {
            let (handler, unhandled) = (handler.clone(), counted.clone());
            async move {
                let address = connection.peer;
                if let Err(error) = handle_with_peer(connection, &handler, &unhandled, signal).await {
                    tracing::debug!(peer = %address, %error, "the session ended");
                }
            }
        })
        .await?;
        Ok(unhandled.report())
    }

    /// Replies to the calls of every client with what `handler` gives, until `end`: those of one
    /// client beside each other, up to [`TcpConfig::calls_max`]. A handler whose caller does not
    /// wait any more is dropped. DATA frames that are no calls, as those of programs of version
    /// 0.2, are handled one after the other, and answered with frames that are no replies. If the
    /// handler of one of those panics, its session ends. Says what was acknowledged and not
    /// handled.
    ///
    /// # Errors
    ///
    /// None at present.
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
        let answer = Arc::new(move |call| {
            let handler = Arc::clone(&handler);
            async move { Some(handler(call).await.and_then(FrameBytes::try_from)) }
        });
        let unhandled = Unhandled::default();
        let counted = unhandled.clone();
        self.serve(end, move |connection, signal| {
            let (answer, unhandled) = (Arc::clone(&answer), counted.clone());
            async move { serve_connection(connection, signal, answer, unhandled).await }
        })
        .await?;
        Ok(unhandled.report())
    }

    /// Accepts until `end`, and gives each client a task of its own, in which HELLO and PING are
    /// answered. `session` should end soon after its [`ShutdownSignal`] says so.
    pub async fn serve<S, Fut>(self, end: impl Future<Output = ()>, session: S) -> Result<(), VstpError>
    where
        S: Fn(VstpTcpConnection, ShutdownSignal) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send,
    {
        let shared = Arc::new((self, session));
        let serving = Arc::clone(&shared);
        let serve = move |accepted: Accepted, signal| {
            let shared = Arc::clone(&serving);
            let (id, span) = shared.0.begin(&accepted);
            let of_session = span.clone();
            let served = async move {
                // Its memory is given back when the session begins, which may be idle for long.
                match Box::pin(shared.0.establish(accepted, id, &of_session, true)).await {
                    Ok(connection) => shared.1(connection, signal).await,
                    Err(error) => tracing::debug!(%error, "no session"),
                }
            };
            served.instrument(span)
        };
        shared.0.incoming.serve(end, shared.0.config.drain, serve).await;
        Ok(())
    }
}

/// Serves the calls of one client.
pub(crate) async fn serve_connection<A, Fut>(
    connection: VstpTcpConnection,
    signal: ShutdownSignal,
    answer: Arc<A>,
    unhandled: Unhandled,
) where
    A: Fn(Call) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Option<Result<FrameBytes, VstpError>>> + Send,
{
    let peer = connection.peer;
    let session = connection.link.into_session(peer, true);
    let served = Served::new(&session);
    let ended = serve_session(session, signal, answer, unhandled).await;
    if let Err(error) = &ended {
        tracing::debug!(%peer, %error, "the session ended");
    }
    served.finish().await;
}

async fn handle_all<F, Fut>(
    connection: &mut VstpTcpConnection,
    handler: &F,
    unhandled: &Unhandled,
    signal: &mut ShutdownSignal,
) -> Result<(), VstpError>
where
    F: Fn(SessionId, Frame) -> Fut,
    Fut: Future<Output = ()> + Send,
{
    let id = connection.session_id();
    loop {
        let frame = tokio::select! {
            // Nothing new is acknowledged after the word.
            biased;
            () = signal.wait() => {
                connection.close().await?;
                connection.link.linger(Served::FAREWELL).await;
                return Ok(());
            }
            frame = connection.recv() => frame?,
        };
        let Some(frame) = frame else { return connection.flush().await };
        let acknowledged = frame.flags.contains(Flags::REQ_ACK);
        unhandled.count(acknowledged, handler(id, frame)).await;
    }
}

async fn handle_with_peer<F, Fut>(
    connection: VstpTcpConnection,
    handler: &F,
    unhandled: &Unhandled,
    mut signal: ShutdownSignal,
) -> Result<(), VstpError>
where
    F: Fn(Peer, Frame) -> Fut,
    Fut: Future<Output = ()> + Send,
{
    let fingerprint = connection.fingerprint;
    let session = connection.into_session();
    let peer = Peer::new(&session, fingerprint);
    // A handler that panics ends this as well.
    let served = Served::new(&session);
    let ended = async {
        loop {
            let frame = tokio::select! {
                // Nothing new is acknowledged after the word.
                biased;
                () = signal.wait() => break,
                frame = session.recv() => frame?,
            };
            let Some(frame) = frame else { break };
            let acknowledged = frame.flags.contains(Flags::REQ_ACK);
            unhandled.count(acknowledged, handler(peer.clone(), frame)).await;
        }
        session.close().await
    }
    .await;
    drop(session);
    served.finish().await;
    ended
}
