//! Connections that come, at most so many at once, and a task for each.

use crate::addresses::canonical;
use crate::places::{Limits, Origin, Place, Places};
use crate::shutdown::{Shutdown, ShutdownSignal};
use crate::tls::{self, Secured};
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream, ToSocketAddrs};
use tokio::sync::{Mutex, mpsc};
use tokio::task::{JoinError, JoinSet};

/// The bytes of a connection that came.
pub(crate) enum Carried {
    Plain(TcpStream),
    /// Its handshake of TLS is done.
    Secured(Box<Secured>),
}

impl Carried {
    /// The connection under it.
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Secured(stream) => tls::tcp_of(stream),
        }
    }
}

/// A connection before its handshake.
pub(crate) struct Accepted {
    pub(crate) stream: Carried,
    pub(crate) peer: SocketAddr,
    pub(crate) place: Place,
}

enum Source {
    Listener(TcpListener),
    /// Somebody else listens, and hands on what is meant for this protocol.
    Handed(Mutex<mpsc::Receiver<(Carried, SocketAddr)>>, SocketAddr),
}

/// The source of connections.
pub(crate) struct Incoming {
    source: Source,
    places: Arc<Places>,
    waiting: std::sync::Mutex<Waiting>,
}

/// Connections that are there and have no place yet.
#[derive(Default)]
struct Waiting(VecDeque<(Carried, SocketAddr)>);

impl Waiting {
    /// Connections that wait; one more, and one of the address of which most wait is closed.
    const MAX: usize = 256;

    fn push(&mut self, stream: Carried, peer: SocketAddr) {
        if self.0.len() >= Self::MAX {
            let mut counts = HashMap::new();
            for (_, peer) in &self.0 {
                *counts.entry(Origin::of(peer.ip())).or_insert(0_usize) += 1;
            }
            let most = counts.into_iter().max_by_key(|(_, count)| *count).map(|(origin, _)| origin);
            let oldest = self.0.iter().position(|(_, peer)| Some(Origin::of(peer.ip())) == most);
            if let Some((_, peer)) = oldest.and_then(|at| self.0.remove(at)) {
                tracing::debug!(%peer, "closed, as too many connections wait");
            }
        }
        self.0.push_back((stream, peer));
    }

    /// The connection that has a place now: of the address that holds fewest, the oldest.
    fn take(&mut self, now: Instant, places: &Arc<Places>) -> Option<(Carried, SocketAddr, Place)> {
        let mut origins: Vec<_> = self.0.iter().map(|(_, peer)| Origin::of(peer.ip())).collect();
        origins.sort_unstable();
        origins.dedup();
        origins.sort_by_key(|origin| places.held_by(*origin));
        for origin in origins {
            let Some(place) = places.take(now, origin) else { continue };
            let at = self.0.iter().position(|(_, peer)| Origin::of(peer.ip()) == origin)?;
            let (stream, peer) = self.0.remove(at)?;
            return Some((stream, peer, place));
        }
        None
    }
}

impl Incoming {
    /// After the system had no descriptor left, say.
    pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

    pub(crate) async fn bind(addr: impl ToSocketAddrs, places: Limits) -> io::Result<Self> {
        Ok(Self::new(Source::Listener(TcpListener::bind(addr).await?), places))
    }

    /// The connections that somebody else, who listens on `addr`, hands on.
    pub(crate) fn handed(
        streams: mpsc::Receiver<(Carried, SocketAddr)>,
        addr: SocketAddr,
        places: Limits,
    ) -> Self {
        Self::new(Source::Handed(Mutex::new(streams), addr), places)
    }

    fn new(source: Source, places: Limits) -> Self {
        Self { source, places: Places::new(places), waiting: std::sync::Mutex::default() }
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.source {
            Source::Listener(listener) => listener.local_addr(),
            Source::Handed(_, addr) => Ok(*addr),
        }
    }

    /// The next connection for which there is a place.
    pub(crate) async fn accept(&self) -> io::Result<Accepted> {
        loop {
            let freed = self.places.freed.notified();
            let (placed, is_waiting) = {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                let placed = waiting.take(Instant::now(), &self.places);
                (placed, !waiting.0.is_empty())
            };
            if let Some((stream, peer, place)) = placed {
                if is_waiting {
                    // For another caller, if there is one.
                    self.places.freed.notify_one();
                }
                return Ok(Accepted { stream, peer, place });
            }
            tokio::select! {
                next = self.next() => {
                    let (stream, peer) = next?;
                    self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(stream, peer);
                }
                () = freed => {}
                // Somebody may have been silent for long enough.
                () = tokio::time::sleep(Places::LOOK), if is_waiting => {}
            }
        }
    }

    async fn next(&self) -> io::Result<(Carried, SocketAddr)> {
        let (stream, peer) = match &self.source {
            Source::Listener(listener) => {
                let (stream, peer) = listener.accept().await?;
                (Carried::Plain(stream), peer)
            }
            Source::Handed(streams, _) => {
                let next = streams.lock().await.recv().await;
                match next {
                    Some(handed) => handed,
                    // Nobody hands on anything any more.
                    None => std::future::pending().await,
                }
            }
        };
        if let Err(error) = set_options(stream.tcp()) {
            // One that has already gone again; whoever reads from it will see.
            tracing::debug!(%peer, %error, "a connection without options");
        }
        Ok((stream, canonical(peer)))
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
