//! Datagrams inside connections of QUIC (docs/protocol/vstp.md, section 12).

mod settings;

use crate::addresses::canonical;
use crate::datagrams::{Reach, Socket};
use crate::places::{Limits, Origin, Place, Places};
use crate::tls::{ClientTls, HANDSHAKE_MAX, ServerTls, TlsError, host_of};
use bytes::Bytes;
use fastdrop_proto::vstp::Unreachable;
use noq::{Connecting, Connection, ConnectionError, Endpoint, TokioRuntime, VarInt};
use settings::error_of;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::net::ToSocketAddrs;
use tokio::sync::{mpsc, oneshot};

/// The things that happen to connections, in their order.
#[derive(Debug)]
pub(super) enum Came {
    Opened(Number, Connection),
    Datagram(Number, Bytes),
    Ended(Number),
}

/// The address of a connection, and its number among all.
pub(super) type Number = (SocketAddr, u64);

/// The connections of an endpoint. They change only as its driver takes what came, so that nothing
/// that was meant for one peer goes to the next at its address.
#[derive(Debug)]
pub(super) struct Quic {
    endpoint: Endpoint,
    reach: Reach,
    dials: Option<Dials>,
    links: Mutex<HashMap<SocketAddr, Link>>,
    came: mpsc::Sender<Came>,
    numbers: Arc<AtomicU64>,
}

/// The settings of one that speaks first.
#[derive(Debug)]
struct Dials {
    config: noq::ClientConfig,
    /// The name that was dialled, and its addresses; of others the certificate has to name the
    /// address.
    name: String,
    addresses: Vec<SocketAddr>,
}

/// The connection of an address.
#[derive(Debug)]
enum Link {
    /// Its handshake is under way. Datagrams wait for it.
    Opening { number: u64, waiting: VecDeque<Bytes>, told: Option<oneshot::Sender<()>> },
    /// `room` for datagrams is free when all have left.
    Open { number: u64, connection: Connection, room: usize },
}

impl Link {
    fn number(&self) -> u64 {
        match self {
            Self::Opening { number, .. } | Self::Open { number, .. } => *number,
        }
    }
}

impl Quic {
    /// Datagrams that are handed over together.
    pub(super) const SEGMENTS: usize = 16;
    /// Things that came and wait to be taken. When they are full, connections drop datagrams.
    const CAME_MAX: usize = 1024;
    /// Datagrams that wait for a connection to open.
    const WAITING_MAX: usize = 64;
    /// Datagrams that are read together.
    const READ_MAX: usize = 32;
    /// Handshakes under way, shared out among addresses; one more is refused.
    const HALF_OPEN_MAX: usize = 1024;
    /// Handshakes under way beyond which an address has to prove itself before anything is kept.
    const HALF_OPEN_TRUSTED: usize = 32;

    /// For one that is spoken to.
    pub(super) async fn bind(
        addr: &str,
        tls: &ServerTls,
        peers_max: usize,
    ) -> Result<(Self, mpsc::Receiver<Came>), TlsError> {
        let (quic, came) = Self::new(addr, Some(settings::server(tls)?), None).await?;
        let (endpoint, numbers) = (quic.endpoint.clone(), Arc::clone(&quic.numbers));
        tokio::spawn(accept(endpoint, quic.came.clone(), numbers, peers_max));
        Ok((quic, came))
    }

    /// For one that speaks first, to this `host:port` among others.
    pub(super) async fn open(
        local: impl ToSocketAddrs,
        (addr, addresses): (&str, &[SocketAddr]),
        tls: &ClientTls,
    ) -> Result<(Self, mpsc::Receiver<Came>), TlsError> {
        let name = host_of(addr)?.to_str().into_owned();
        let addresses = addresses.iter().copied().map(canonical).collect();
        let dials = Dials { config: settings::client(tls)?, name, addresses };
        Self::new(local, None, Some(dials)).await
    }

    async fn new(
        local: impl ToSocketAddrs,
        server: Option<noq::ServerConfig>,
        dials: Option<Dials>,
    ) -> Result<(Self, mpsc::Receiver<Came>), TlsError> {
        let (socket, reach) = Socket::bind_bare(local).await?;
        let config = noq::EndpointConfig::default();
        let endpoint = Endpoint::new(config, server, socket, Arc::new(TokioRuntime))?;
        let (came, comes) = mpsc::channel(Self::CAME_MAX);
        let (links, numbers) = (Mutex::default(), Arc::default());
        Ok((Self { endpoint, reach, dials, links, came, numbers }, comes))
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    pub(super) fn check(&self, to: SocketAddr) -> Result<(), Unreachable> {
        self.reach.check(to)
    }

    fn links(&self) -> MutexGuard<'_, HashMap<SocketAddr, Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a connection, and waits until the server has taken it.
    ///
    /// # Errors
    ///
    /// The reason for which there is none.
    pub(super) async fn connect(&self, to: SocketAddr) -> Result<(), TlsError> {
        let (told, opened) = oneshot::channel();
        let failed = self.dial(canonical(to), VecDeque::new(), Some(told));
        let failed = failed.ok_or_else(|| TlsError::Failed("connections cannot be opened here".into()))?;
        match failed.await {
            Ok(error) => Err(error),
            // It has not failed: the driver has it, or is about to.
            Err(_) => opened.await.map_err(|_| TlsError::Failed("the connection has ended".into())),
        }
    }

    /// Begins to open a connection. What it gives says why that failed, or is dropped.
    fn dial(
        &self,
        to: SocketAddr,
        waiting: VecDeque<Bytes>,
        told: Option<oneshot::Sender<()>>,
    ) -> Option<oneshot::Receiver<TlsError>> {
        let dials = self.dials.as_ref()?;
        let of_address = to.ip().to_string();
        let name = if dials.addresses.contains(&to) { &dials.name } else { &of_address };
        let connecting = self.endpoint.connect_with(dials.config.clone(), to, name);
        let connecting = connecting.inspect_err(|error| tracing::debug!(peer = %to, %error, "not dialled"));
        let connecting = connecting.ok()?;
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        self.links().insert(to, Link::Opening { number, waiting, told });
        let (tell, failed) = oneshot::channel();
        let came = self.came.clone();
        tokio::spawn(async move {
            let opened = async {
                let connection = connecting.await?;
                // Only then has the server looked at this end's certificate.
                connection.handshake_confirmed().await?;
                Ok(connection)
            };
            let opened = tokio::time::timeout(HANDSHAKE_MAX, opened).await;
            match opened.map_err(|_| TlsError::Timeout).and_then(|opened| opened.map_err(error_of)) {
                Ok(connection) => {
                    drop(tell);
                    read((to, number), connection, came, None).await;
                }
                Err(error) => {
                    tracing::info!(peer = %to, %error, "no secured connection");
                    let _ = tell.send(error);
                    let _ = came.send(Came::Ended((to, number))).await;
                }
            }
        });
        Some(failed)
    }

    /// Sends datagrams of this size; what there is no room for is lost. Says if nothing can leave
    /// for that address.
    pub(super) fn send(&self, to: SocketAddr, datagram: usize, contents: &[u8]) -> Option<Unreachable> {
        let whole = Bytes::copy_from_slice(contents);
        let size = datagram.max(1);
        let datagrams = (0..whole.len()).step_by(size).map(|at| whole.slice(at..whole.len().min(at + size)));
        match self.links().get_mut(&to) {
            Some(Link::Open { connection, .. }) => {
                let datagrams: Vec<_> = datagrams.collect();
                if let Err(error) = connection.send_many_datagrams(&datagrams) {
                    // If it has ended, the driver is about to be told.
                    tracing::debug!(peer = %to, %error, "datagrams were not sent");
                }
                return None;
            }
            Some(Link::Opening { waiting, .. }) => {
                waiting.extend(datagrams.take(Self::WAITING_MAX.saturating_sub(waiting.len())));
                return None;
            }
            None => {}
        }
        match self.dial(to, datagrams.take(Self::WAITING_MAX).collect(), None) {
            Some(_) => None,
            None => Some(Unreachable::Disconnected),
        }
    }

    /// A connection is there. Returns true if the address had another one, which is over.
    pub(super) fn on_opened(&self, (from, number): Number, connection: Connection) -> bool {
        let room = connection.datagram_send_buffer_space();
        let before = self.links().insert(from, Link::Open { number, connection: connection.clone(), room });
        match before {
            None => false,
            Some(Link::Opening { waiting, told, .. }) => {
                for datagram in waiting {
                    // If it has ended already, the driver is about to be told.
                    let _ = connection.send_datagram(datagram);
                }
                let _ = told.map(|told| told.send(()));
                false
            }
            Some(Link::Open { connection, .. }) => {
                connection.close(VarInt::from_u32(0), b"another connection from this address");
                true
            }
        }
    }

    /// Returns true if this is the connection of its address.
    pub(super) fn is_current(&self, (from, number): Number) -> bool {
        self.links().get(&from).is_some_and(|link| link.number() == number)
    }

    /// A connection has ended. Returns true if it was that of its address, which has none now.
    pub(super) fn on_ended(&self, (from, number): Number) -> bool {
        let is_current = self.is_current((from, number));
        if is_current {
            self.links().remove(&from);
        }
        is_current
    }

    /// Returns true if everything that was given to it has left.
    pub(super) fn is_idle(&self) -> bool {
        self.links().values().all(|link| match link {
            Link::Opening { waiting, .. } => waiting.is_empty(),
            Link::Open { connection, room, .. } => {
                connection.close_reason().is_some() || connection.datagram_send_buffer_space() >= *room
            }
        })
    }

    /// Ends all connections.
    pub(super) fn close(&self) {
        self.endpoint.close(VarInt::from_u32(0), b"");
    }
}

impl Drop for Quic {
    fn drop(&mut self) {
        self.close();
    }
}

/// Accepts connections: so many at once, shared out among addresses, and of those whose handshake
/// is under way a bounded number beside them.
async fn accept(endpoint: Endpoint, came: mpsc::Sender<Came>, numbers: Arc<AtomicU64>, peers_max: usize) {
    let half_open = Places::new(Limits { all: Quic::HALF_OPEN_MAX, of_one: Quic::HALF_OPEN_MAX });
    let places = Places::new(Limits { all: peers_max, of_one: peers_max });
    while let Some(incoming) = endpoint.accept().await {
        let is_dear = half_open.taken() >= Quic::HALF_OPEN_TRUSTED || places.taken() >= peers_max;
        if is_dear && !incoming.remote_address_validated() {
            // Nothing is kept of it until it comes again with the proof, and nobody makes room.
            let _ = incoming.retry();
            continue;
        }
        let (now, origin) = (Instant::now(), Origin::of(incoming.remote_address().ip()));
        let taken = half_open.take(now, origin).and_then(|turn| Some((turn, places.take(now, origin)?)));
        let Some((turn, place)) = taken else {
            incoming.refuse();
            continue;
        };
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        match incoming.accept() {
            Ok(connecting) => drop(tokio::spawn(serve(connecting, number, came.clone(), turn, place))),
            Err(error) => tracing::debug!(%error, "not accepted"),
        }
    }
}

/// The handshake of one that has come, and what it says, until others have its place.
async fn serve(connecting: Connecting, number: u64, came: mpsc::Sender<Came>, turn: Place, place: Place) {
    let peer = canonical(connecting.remote_address());
    let opened = tokio::select! {
        opened = tokio::time::timeout(HANDSHAKE_MAX, connecting) => opened,
        () = place.lost() => return,
        () = turn.lost() => return,
    };
    drop(turn);
    match opened.map_err(|_| TlsError::Timeout).and_then(|opened| opened.map_err(error_of)) {
        Ok(connection) => read((peer, number), connection, came, Some(&place)).await,
        Err(error) => tracing::debug!(%peer, %error, "no handshake"),
    }
}

/// Hands on what a connection says, until its end, or until others have its place.
async fn read(number: Number, connection: Connection, came: mpsc::Sender<Came>, place: Option<&Place>) {
    if came.send(Came::Opened(number, connection.clone())).await.is_err() {
        return;
    }
    let lost = async {
        match place {
            Some(place) => place.lost().await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(lost);
    let mut datagrams = [const { Bytes::new() }; Quic::READ_MAX];
    let error = loop {
        let read = tokio::select! {
            read = connection.read_many_datagrams(&mut datagrams) => read,
            () = &mut lost => {
                connection.close(VarInt::from_u32(0), b"others have its place");
                break ConnectionError::LocallyClosed;
            }
        };
        match read {
            Err(error) => break error,
            Ok(count) => {
                if let Some(place) = place {
                    place.on_frame(Instant::now());
                }
                for datagram in datagrams.iter_mut().take(count) {
                    if came.send(Came::Datagram(number, std::mem::take(datagram))).await.is_err() {
                        return;
                    }
                }
            }
        }
    };
    if !matches!(error, ConnectionError::LocallyClosed) {
        tracing::debug!(peer = %number.0, %error, "a secured connection has ended");
    }
    let _ = came.send(Came::Ended(number)).await;
}

#[cfg(test)]
mod tests;
