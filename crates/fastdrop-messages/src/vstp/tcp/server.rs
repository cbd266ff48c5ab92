//! The end that listens.

use super::TcpConfig;
use super::connection::Connection;
use super::stream::{Stream, set_options};
use super::tls::Identity;
use crate::vstp::types::{Frame, SessionId, VstpError};
use fastdrop_proto::vstp::FrameBytes;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream, ToSocketAddrs};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// A client that has connected.
#[derive(Debug)]
pub struct VstpTcpConnection {
    connection: Connection,
    peer: SocketAddr,
    _permit: OwnedSemaphorePermit,
}

impl VstpTcpConnection {
    /// Which connection of its server.
    pub fn session_id(&self) -> SessionId {
        self.connection.session_id()
    }

    /// The client's address.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// Sends a frame: when this returns, the operating system has all of it.
    pub async fn send(&mut self, frame: Frame) -> Result<(), VstpError> {
        self.connection.send(frame).await
    }

    /// The same without copying the payload.
    pub async fn send_bytes(&mut self, frame: &FrameBytes) -> Result<(), VstpError> {
        self.connection.feed_bytes(frame).await?;
        self.connection.flush().await
    }

    /// Takes a frame, to be sent together with others: [`Self::flush`] sends them.
    pub async fn feed(&mut self, frame: Frame) -> Result<(), VstpError> {
        self.connection.feed(frame).await
    }

    /// Sends what was fed.
    pub async fn flush(&mut self) -> Result<(), VstpError> {
        self.connection.flush().await
    }

    /// Sends a frame, and waits until the client has acknowledged it.
    pub async fn send_with_ack(&mut self, frame: Frame, patience: Duration) -> Result<(), VstpError> {
        self.connection.send_with_ack(vec![frame], patience).await
    }

    /// The next frame; None when the client has ended. A HELLO or PING is answered when this is called again, unless the application has answered it; a frame that wants
    /// an acknowledgement has it when it is returned. May be dropped while it waits, and nothing is lost.
    pub async fn recv(&mut self) -> Result<Option<Frame>, VstpError> {
        Ok(self.connection.recv_bytes().await?.map(Frame::from))
    }

    /// The same without copying the payload.
    pub async fn recv_bytes(&mut self) -> Result<Option<FrameBytes>, VstpError> {
        self.connection.recv_bytes().await
    }

    /// Says BYE, and ends the sending half.
    pub async fn close(&mut self) -> Result<(), VstpError> {
        self.connection.close().await
    }
}

/// Listens for clients.
pub struct VstpTcpServer {
    listener: TcpListener,
    config: TcpConfig,
    tls: Option<TlsAcceptor>,
    permits: Arc<Semaphore>,
    sessions: AtomicU64,
}

impl VstpTcpServer {
    /// How long a TLS handshake may take.
    const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
    /// After the system had no descriptor left, say.
    const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

    /// Listens on an address.
    pub async fn bind(addr: impl ToSocketAddrs) -> Result<Self, VstpError> {
        Self::bind_with_config(addr, TcpConfig::default()).await
    }

    /// The same, set up otherwise.
    pub async fn bind_with_config(addr: impl ToSocketAddrs, config: TcpConfig) -> Result<Self, VstpError> {
        Ok(Self::new(TcpListener::bind(addr).await?, config, None))
    }

    /// Listens on an address for clients that speak TLS 1.3.
    pub async fn bind_tls(
        addr: impl ToSocketAddrs,
        identity: &Identity,
        config: TcpConfig,
    ) -> Result<Self, VstpError> {
        let acceptor = TlsAcceptor::from(identity.server_config()?);
        Ok(Self::new(TcpListener::bind(addr).await?, config, Some(acceptor)))
    }

    fn new(listener: TcpListener, config: TcpConfig, tls: Option<TlsAcceptor>) -> Self {
        let permits = Arc::new(Semaphore::new(config.connections_max.clamp(1, Semaphore::MAX_PERMITS)));
        Self { listener, config, tls, permits, sessions: AtomicU64::new(0) }
    }

    /// Where it listens.
    pub fn local_addr(&self) -> Result<SocketAddr, VstpError> {
        Ok(self.listener.local_addr()?)
    }

    /// The next client, its TLS handshake done. Where handshakes may be slow, [`Self::run`] does them beside each other.
    pub async fn accept(&self) -> Result<VstpTcpConnection, VstpError> {
        let accepted = self.accept_stream().await?;
        self.establish(accepted, false).await
    }

    async fn accept_stream(&self) -> Result<Accepted, VstpError> {
        let permit =
            Arc::clone(&self.permits).acquire_owned().await.map_err(|_| VstpError::ConnectionClosed)?;
        let (stream, peer) = self.listener.accept().await?;
        Ok(Accepted { stream, peer, permit })
    }

    async fn establish(&self, accepted: Accepted, answers: bool) -> Result<VstpTcpConnection, VstpError> {
        let Accepted { stream, peer, permit } = accepted;
        set_options(&stream)?;
        let stream = match &self.tls {
            None => Stream::Plain(stream),
            Some(acceptor) => {
                let handshake = tokio::time::timeout(Self::HANDSHAKE_MAX, acceptor.accept(stream)).await;
                Stream::Tls(Box::new(handshake.map_err(|_| VstpError::Timeout)??.into()))
            }
        };
        let id = u128::from(self.sessions.fetch_add(1, Ordering::Relaxed)) + 1;
        tracing::debug!(%peer, session = id, "connected");
        let connection = Connection::new(stream, self.config.clone(), Some(id), answers);
        Ok(VstpTcpConnection { connection, peer, _permit: permit })
    }

    /// Hands every frame of every client to `handler`, one after the other for each client, and answers HELLO, PING and REQ_ACK.
    pub async fn run<F, Fut>(self, handler: F) -> Result<(), VstpError>
    where
        F: Fn(SessionId, Frame) -> Fut + Send + Sync + Clone + 'static,
        Fut: Future<Output = ()> + Send,
    {
        self.run_until(std::future::pending(), handler).await
    }

    /// The same until `end`: then nobody is accepted any more, all clients are told BYE when their handler is done, and after [`TcpConfig::drain`] they are left.
    pub async fn run_until<F, Fut>(self, end: impl Future<Output = ()>, handler: F) -> Result<(), VstpError>
    where
        F: Fn(SessionId, Frame) -> Fut + Send + Sync + Clone + 'static,
        Fut: Future<Output = ()> + Send,
    {
        self.serve(end, move |mut connection, mut ending| {
            let handler = handler.clone();
            async move {
                let handled = handle_all(&mut connection, &handler, &mut ending).await;
                if let Err(error) = handled {
                    tracing::debug!(peer = %connection.peer, %error, "the session ended");
                }
            }
        })
        .await
    }

    /// Accepts until `end`, and gives each client a task of its own, in which HELLO and PING are answered. `session` should end
    /// soon after its [`Ending`] says so.
    pub async fn serve<S, Fut>(self, end: impl Future<Output = ()>, session: S) -> Result<(), VstpError>
    where
        S: Fn(VstpTcpConnection, Ending) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send,
    {
        let drain = self.config.drain;
        let (ending, ended) = watch::channel(false);
        let ended = Ending(ended);
        let shared = Arc::new((self, session));
        let mut sessions = JoinSet::new();
        tokio::pin!(end);
        loop {
            // Those that have ended are let go, whatever they ended with: a panic is theirs alone (case 93).
            while let Some(result) = sessions.try_join_next() {
                log_panic(result);
            }
            let accepted = tokio::select! {
                accepted = shared.0.accept_stream() => accepted,
                () = &mut end => break,
            };
            match accepted {
                Ok(accepted) => {
                    let (shared, ended) = (Arc::clone(&shared), ended.clone());
                    sessions.spawn(async move {
                        match shared.0.establish(accepted, true).await {
                            Ok(connection) => shared.1(connection, ended).await,
                            Err(error) => tracing::debug!(%error, "no session"),
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "could not accept");
                    tokio::time::sleep(Self::ACCEPT_PAUSE).await;
                }
            }
        }
        ending.send_replace(true);
        let all = async {
            while let Some(result) = sessions.join_next().await {
                log_panic(result);
            }
        };
        if tokio::time::timeout(drain, all).await.is_err() {
            tracing::warn!("left sessions that did not end in time");
        }
        Ok(())
    }
}

/// Says when a server ends.
#[derive(Debug, Clone)]
pub struct Ending(watch::Receiver<bool>);

impl Ending {
    /// Waits until it does.
    pub async fn wait(&mut self) {
        let _ = self.0.wait_for(|ending| *ending).await;
    }
}

/// A connection before its handshake.
struct Accepted {
    stream: TcpStream,
    peer: SocketAddr,
    permit: OwnedSemaphorePermit,
}

fn log_panic(result: Result<(), tokio::task::JoinError>) {
    if let Err(error) = result {
        tracing::error!(%error, "a session did not end as it should");
    }
}

async fn handle_all<F, Fut>(
    connection: &mut VstpTcpConnection,
    handler: &F,
    ending: &mut Ending,
) -> Result<(), VstpError>
where
    F: Fn(SessionId, Frame) -> Fut,
    Fut: Future<Output = ()> + Send,
{
    let id = connection.session_id();
    loop {
        let frame = tokio::select! {
            frame = connection.recv() => frame?,
            () = ending.wait() => return connection.close().await,
        };
        let Some(frame) = frame else { return connection.connection.flush().await };
        let handled = handler(id, frame);
        tokio::pin!(handled);
        // A handler may take longer than the peer would wait for a word.
        loop {
            let ping_at = connection.connection.ping_at();
            let pause = tokio::time::sleep_until(ping_at.unwrap_or_else(Instant::now).into());
            tokio::select! {
                () = &mut handled => break,
                () = pause, if ping_at.is_some() => connection.connection.ping().await?,
            }
        }
    }
}
