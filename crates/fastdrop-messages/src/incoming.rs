//! Connections that come, at most so many at once, and a task for each.

use crate::shutdown::{Shutdown, ShutdownSignal};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, ToSocketAddrs};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinError, JoinSet};

/// A connection before its handshake.
pub(crate) struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) permit: OwnedSemaphorePermit,
}

enum Source {
    Listener(TcpListener),
    /// Somebody else listens, and hands on what is meant for this protocol.
    Handed(Mutex<mpsc::Receiver<(TcpStream, SocketAddr)>>, SocketAddr),
}

/// Where connections come from.
pub(crate) struct Incoming {
    source: Source,
    permits: Arc<Semaphore>,
}

impl Incoming {
    /// After the system had no descriptor left, say.
    pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

    pub(crate) async fn bind(addr: impl ToSocketAddrs, connections_max: usize) -> io::Result<Self> {
        Ok(Self::new(Source::Listener(TcpListener::bind(addr).await?), connections_max))
    }

    /// What somebody else, who listens on `addr`, hands on.
    pub(crate) fn handed(
        streams: mpsc::Receiver<(TcpStream, SocketAddr)>,
        addr: SocketAddr,
        connections_max: usize,
    ) -> Self {
        Self::new(Source::Handed(Mutex::new(streams), addr), connections_max)
    }

    fn new(source: Source, connections_max: usize) -> Self {
        Self { source, permits: Arc::new(Semaphore::new(connections_max.clamp(1, Semaphore::MAX_PERMITS))) }
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.source {
            Source::Listener(listener) => listener.local_addr(),
            Source::Handed(_, addr) => Ok(*addr),
        }
    }

    /// The next connection, when there may be one more.
    pub(crate) async fn accept(&self) -> io::Result<Accepted> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(io::Error::other)?;
        let (stream, peer) = match &self.source {
            Source::Listener(listener) => listener.accept().await?,
            Source::Handed(streams, _) => {
                let next = streams.lock().await.recv().await;
                match next {
                    Some(handed) => handed,
                    // Nobody hands on anything any more.
                    None => std::future::pending().await,
                }
            }
        };
        if let Err(error) = set_options(&stream) {
            // One that has already gone again; whoever reads from it will see.
            tracing::debug!(%peer, %error, "a connection without options");
        }
        Ok(Accepted { stream, peer, permit })
    }

    /// Accepts until `end`, and gives each connection a task of its own, which should end soon
    /// after its [`ShutdownSignal`] says so; after `drain` it is left.
    pub(crate) async fn serve<S, Fut>(&self, end: impl Future<Output = ()>, drain: Duration, session: S)
    where
        S: Fn(Accepted, ShutdownSignal) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let (shutdown, signal) = Shutdown::new();
        let mut sessions = JoinSet::new();
        tokio::pin!(end);
        loop {
            // Those that have ended are let go, whatever they ended with: a panic is theirs alone
            // (case 93).
            while let Some(result) = sessions.try_join_next() {
                log_panic(result);
            }
            let accepted = tokio::select! {
                accepted = self.accept() => accepted,
                () = &mut end => break,
            };
            match accepted {
                Ok(accepted) => {
                    sessions.spawn(session(accepted, signal.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "could not accept");
                    tokio::time::sleep(Self::ACCEPT_PAUSE).await;
                }
            }
        }
        shutdown.begin();
        let all = async {
            while let Some(result) = sessions.join_next().await {
                log_panic(result);
            }
        };
        if tokio::time::timeout(drain, all).await.is_err() {
            tracing::warn!("left sessions that did not end in time");
        }
    }
}

/// Sets what every connection has: no waiting for more bytes, and probes that find a dead peer
/// within two minutes.
pub(crate) fn set_options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keep_alive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(10))
        .with_retries(6);
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_keepalive(&keep_alive)?;
    // What was sent and is not acknowledged for so long is as good a sign.
    socket.set_tcp_user_timeout(Some(Duration::from_secs(120)))
}

pub(crate) fn log_panic(result: Result<(), JoinError>) {
    if let Err(error) = result {
        tracing::error!(%error, "a session did not end as it should");
    }
}
