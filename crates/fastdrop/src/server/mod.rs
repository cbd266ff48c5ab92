//! The server: one port for several protocols, told apart by the first bytes of a connection.

mod fastdownloader;
mod fastdp1;
mod handshake;
mod http;
mod listen;
mod nextdp;
mod older;
mod session;
mod ultradp;

use crate::admission::turns::Turns;
use crate::error::{Error, ErrorKind, code_of, kind_of, reason};
use crate::lock::lock;
use crate::net::connection::reset_on_close;
use crate::protocol::Accept;
use crate::stop::Stop;
use crate::storage::journal::FileKey;
use crate::storage::placement::Placement;
use crate::storage::root::Root;
use crate::transfer::receive::Reception;
use crate::transfer::send::Transmission;
use fastdrop_proto::fastdp::{Existing, Manifest, UpgradeError, UpgradeRequest, Version};
use fastdrop_proto::units::TransferId;
use handshake::Begun;
use older::Older;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long transfers may take to leave in good order.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);
/// How long answers may take that are under way when the server stops.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// How often what nobody came back for is looked for.
const EXPIRE_EVERY: Duration = Duration::from_secs(3600);

/// How a server behaves.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The folder that is served.
    pub folder: PathBuf,
    /// Where to listen. Addresses with port 0 share one that is picked. `::` takes IPv4 too,
    /// unless an IPv4 address stands beside it.
    pub bind: Vec<SocketAddr>,
    /// The protocols that are answered. Default: all.
    pub accept: Accept,
    /// Chunks of NextDP are gzip members. Default: no.
    pub nextdp_gzip: bool,
    /// The port of FastDownloader on every address, 0 to pick one. Default: none.
    pub fastdownloader: Option<u16>,
    /// Archives that clients send natively stay archives instead of being unpacked. Default: no.
    pub keep_archive: bool,
    /// Nothing is taken.
    pub read_only: bool,
    /// Nothing is given, nor listed.
    pub write_only: bool,
    /// The most that clients may do with files that exist. Default: error.
    pub existing: Existing,
    /// Data streams of one transfer. Default 16, at most 64; each costs a chunk of memory.
    pub streams_max: u16,
    /// Bytes of one transfer. Default: no limit but space.
    pub size_max: Option<u64>,
    /// Bytes that must stay free. Default 0.
    pub free_min: u64,
    /// Leave after one transfer.
    pub once: bool,
    /// The least bytes between checkpoints that clients get; None never makes any. Default 512 MiB.
    pub checkpoint: Option<u64>,
    /// Unfinished work is removed after this time. Default a week.
    pub expire: Duration,
    /// Connections at once. Default 4,096; each costs a descriptor,
    /// and before its handshake some 10 KiB.
    pub connections_max: usize,
    /// Connections of one address that have not finished their handshake;
    /// beyond, the oldest goes. Default 256.
    pub handshakes_per_address_max: usize,
    /// Transfers at once. Default 256.
    pub transfers_max: usize,
    /// Entries of one manifest. Default 5,000,000; each costs up to 200 bytes and its path.
    pub entries_max: u32,
    /// Chunk buffers of all transfers, in bytes. Default 256 MiB.
    pub buffers_max: u64,
}

impl ServerOptions {
    /// The defaults, for `folder`.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            bind: vec![SocketAddr::from(([127, 0, 0, 1], 8888))],
            accept: Accept::all(),
            nextdp_gzip: false,
            fastdownloader: None,
            keep_archive: false,
            read_only: false,
            write_only: false,
            existing: Existing::Error,
            streams_max: 16,
            size_max: None,
            free_min: 0,
            once: false,
            checkpoint: Some(512 << 20),
            expire: Duration::from_secs(7 * 24 * 3600),
            connections_max: 4096,
            handshakes_per_address_max: 256,
            transfers_max: 256,
            entries_max: 5_000_000,
            buffers_max: 256 << 20,
        }
    }
}

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The folder cannot be opened.
    #[error("cannot serve {0}: {1}")]
    Folder(String, String, ErrorKind),
    /// The address cannot be listened on.
    #[error("cannot listen on {0}: {1}")]
    Bind(SocketAddr, String),
    /// The runtime cannot start.
    #[error("cannot start: {0}")]
    Runtime(std::io::Error),
}

impl ServerError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ServerError::Folder(_, _, kind) => *kind,
            ServerError::Bind(..) | ServerError::Runtime(_) => ErrorKind::Other,
        }
    }
}

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    listeners: Vec<(Serves, std::net::TcpListener)>,
}

/// What a listening socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Serves {
    OnePort,
    FastDownloader,
}

/// A transfer under way.
#[derive(Clone)]
enum Transfer {
    Receiving(Arc<Reception>),
    Sending(Arc<Transmission>),
}

struct Session {
    transfer: Transfer,
    /// Data streams granted.
    streams: u16,
    /// Data streams that have joined and not ended.
    joined: Arc<AtomicUsize>,
}

/// A session that is known as long as this is there, also when its thread panics.
struct SessionGuard {
    shared: Arc<Shared>,
    id: TransferId,
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        lock(&self.shared.sessions).remove(&self.id.0);
    }
}

/// One data stream of a session's count.
struct StreamGuard(Arc<AtomicUsize>);

impl StreamGuard {
    /// Counts one more; None if there are as many as may be: those granted, and as
    /// many again while they are replaced.
    fn new(joined: &Arc<AtomicUsize>, granted: u16) -> Option<Self> {
        let before = joined.fetch_add(1, Ordering::SeqCst);
        let guard = Self(Arc::clone(joined));
        (before < 2 * usize::from(granted) + 2).then_some(guard)
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a put that is still comparing will bring.
struct Preparing {
    id: u64,
    manifest: Arc<Manifest>,
    placement: Placement,
}

/// A put is being compared as long as this is there.
struct PreparingGuard {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for PreparingGuard {
    fn drop(&mut self) {
        lock(&self.shared.preparing).retain(|preparing| preparing.id != self.id);
    }
}

/// What all connections share.
struct Shared {
    options: ServerOptions,
    root: Arc<Root>,
    stop: Stop,
    sessions: Mutex<BTreeMap<[u8; 16], Session>>,
    preparing: Mutex<Vec<Preparing>>,
    /// The stages of files that come by the older protocols.
    placed: Mutex<BTreeSet<String>>,
    /// Transfers of fastdp 1.0.0, and the connections that may continue them.
    returns: Arc<fastdp1::Returns>,
    /// Transfers of NextDP.
    nextdp: nextdp::Transfers,
    nextdp_ended: nextdp::Ended,
    /// Clients of FastDownloader, by address.
    downloaders: Mutex<BTreeMap<IpAddr, usize>>,
    /// Room for chunks of NextDP in memory.
    room: nextdp::Room,
    /// Keys of connections under way.
    keys: Mutex<BTreeSet<String>>,
    /// Handshakes under way, the oldest first.
    handshaking: Mutex<BTreeMap<u64, (IpAddr, tokio::task::AbortHandle)>>,
    next_handshake: AtomicU64,
    threads: AtomicUsize,
    buffers: AtomicU64,
    /// For the streams of all sessions.
    turns: Arc<Turns>,
    finished: AtomicU64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Server {
    /// Opens the folder and the ports.
    pub fn bind(options: ServerOptions, stop: Stop) -> Result<Self, ServerError> {
        let shown = crate::shown(std::os::unix::ffi::OsStrExt::as_bytes(options.folder.as_os_str()));
        let root = Root::open(&options.folder)
            .map_err(|errno| ServerError::Folder(shown, reason(errno), kind_of(code_of(errno))))?;
        let root = Arc::new(root);
        let one_port = listen::listen(&options.bind)?;
        let downloaders = match options.fastdownloader {
            Some(port) => {
                let on_port = |&address: &SocketAddr| {
                    let mut address = address;
                    address.set_port(port);
                    address
                };
                listen::listen(&options.bind.iter().map(on_port).collect::<Vec<_>>())?
            }
            None => Vec::new(),
        };
        let mut listeners: Vec<_> =
            one_port.into_iter().map(|listener| (Serves::OnePort, listener)).collect();
        listeners.extend(downloaders.into_iter().map(|listener| (Serves::FastDownloader, listener)));
        let shared = Shared {
            options,
            root,
            stop,
            sessions: Mutex::default(),
            preparing: Mutex::default(),
            placed: Mutex::default(),
            returns: Arc::default(),
            nextdp: Mutex::default(),
            nextdp_ended: nextdp::Ended::default(),
            downloaders: Mutex::default(),
            room: nextdp::Room::default(),
            keys: Mutex::default(),
            handshaking: Mutex::default(),
            next_handshake: AtomicU64::new(0),
            threads: AtomicUsize::new(0),
            buffers: AtomicU64::new(0),
            turns: Turns::new(),
            finished: AtomicU64::new(0),
        };
        Ok(Self { shared: Arc::new(shared), listeners })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses_for(Serves::OnePort)
    }

    /// Where it listens for clients of FastDownloader.
    pub fn fastdownloader_addresses(&self) -> Vec<SocketAddr> {
        self.addresses_for(Serves::FastDownloader)
    }

    fn addresses_for(&self, wanted: Serves) -> Vec<SocketAddr> {
        let listeners = self.listeners.iter().filter(|(serves, _)| *serves == wanted);
        listeners.filter_map(|(_, listener)| listener.local_addr().ok()).collect()
    }

    /// Serves until the word to stop, or one transfer if that was
    /// asked for, and leaves in good order.
    pub fn run(self) -> Result<(), ServerError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ServerError::Runtime)?;
        let shared = Arc::clone(&self.shared);
        runtime.block_on(async {
            let permits = Arc::new(tokio::sync::Semaphore::new(shared.options.connections_max));
            let (mut tasks, mut accepting) = (tokio::task::JoinSet::new(), tokio::task::JoinSet::new());
            for (serves, listener) in self.listeners {
                let listener = tokio::net::TcpListener::from_std(listener).map_err(ServerError::Runtime)?;
                accepting.spawn(accept(Arc::clone(&shared), listener, serves, Arc::clone(&permits)));
            }
            tasks.spawn(expire(Arc::clone(&shared)));
            tasks.spawn(expire_nextdp(Arc::clone(&shared)));
            shared.stop.wait().await;
            while accepting.join_next().await.is_some() {}
            tasks.shutdown().await;
            Ok(())
        })?;
        shared.drain();
        Ok(())
    }
}

async fn expire(shared: Arc<Shared>) {
    loop {
        let (root, age) = (Arc::clone(&shared.root), shared.options.expire);
        let _ = tokio::task::spawn_blocking(move || crate::storage::recovery::expire(&root, age)).await;
        tokio::time::sleep(EXPIRE_EVERY).await;
    }
}

async fn expire_nextdp(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(nextdp::EXPIRE_EVERY).await;
        let shared = Arc::clone(&shared);
        let _ = tokio::task::spawn_blocking(move || nextdp::expire(&shared)).await;
    }
}

async fn accept(
    shared: Arc<Shared>,
    listener: tokio::net::TcpListener,
    serves: Serves,
    permits: Arc<tokio::sync::Semaphore>,
) {
    let mut handshakes = tokio::task::JoinSet::new();
    loop {
        while handshakes.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.stop.wait() => break,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or a connection that was gone before it
                // was taken: the next may succeed.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let peer = listen::canonical(peer);
        // Until it is known that it speaks something with answers, whatever ends it is a refusal.
        reset_on_close(&socket, true);
        let mut permit = Arc::clone(&permits).try_acquire_owned();
        if permit.is_err() && shared.evict(None) {
            tokio::task::yield_now().await;
            permit = Arc::clone(&permits).try_acquire_owned();
        }
        let Ok(permit) = permit else {
            tracing::warn!(%peer, "too many connections");
            continue;
        };
        if serves == Serves::FastDownloader {
            // The server speaks first: there is nothing to be found out.
            if let Ok(socket) = socket.into_std() {
                // Without a thread it is reset, as all that are refused
                // before they have been given a list.
                drop(shared.spawn(Begun::FastDownloader { socket, peer }, permit));
            }
            continue;
        }
        let id = shared.next_handshake.fetch_add(1, Ordering::Relaxed);
        let task = handshakes.spawn({
            let shared = Arc::clone(&shared);
            async move {
                let mut begun = handshake::begin(&shared, socket, peer).await;
                lock(&shared.handshaking).remove(&id);
                if let Some(Begun::Http { socket, peer, early }) = begun {
                    // Here it stays asynchronous, unless it upgrades.
                    begun = match http::serve(&shared, socket, peer, early).await {
                        Some(upgraded) => handshake::upgraded(upgraded, peer).await,
                        None => None,
                    };
                }
                if let Some(begun) = begun
                    && let Some((begun, _permit)) = shared.spawn(begun, permit)
                {
                    handshake::turn_away(begun).await;
                }
            }
        });
        // This thread runs the tasks too, so the new one has not ended yet.
        let count = {
            let mut handshaking = lock(&shared.handshaking);
            handshaking.insert(id, (peer.ip(), task));
            handshaking.values().filter(|(ip, _)| *ip == peer.ip()).count()
        };
        if count > shared.options.handshakes_per_address_max {
            shared.evict(Some(peer.ip()));
        }
    }
    drop(listener);
    // Who has not said what it wants is not served any more; answers that are under way are given.
    for (_, (_, handshake)) in std::mem::take(&mut *lock(&shared.handshaking)) {
        handshake.abort();
    }
    let answered = async { while handshakes.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(LAST_ANSWERS, answered).await;
}

/// A key in use; free again when this goes.
struct KeyGuard {
    shared: Arc<Shared>,
    key: String,
}

impl Drop for KeyGuard {
    fn drop(&mut self) {
        lock(&self.shared.keys).remove(&self.key);
    }
}

/// A thread of the blocking plane; counted until this goes, also when it panics.
struct ThreadGuard(Arc<Shared>);

impl Drop for ThreadGuard {
    fn drop(&mut self) {
        self.0.threads.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shared {
    /// Ends the oldest handshake of `address`, or of all: who has said nothing for longest goes
    /// first, so that silent connections, however many, keep nobody out. False if there is none.
    fn evict(&self, address: Option<IpAddr>) -> bool {
        let mut handshaking = lock(&self.handshaking);
        let oldest = handshaking.iter().find(|(_, (ip, _))| address.is_none_or(|address| *ip == address));
        let Some(id) = oldest.map(|(&id, _)| id) else { return false };
        if let Some((ip, task)) = handshaking.remove(&id) {
            tracing::debug!(peer = %ip, "too many handshakes; the oldest was ended");
            task.abort();
        }
        true
    }

    /// Takes a key; None if a connection under way has it.
    fn take_key(self: &Arc<Self>, key: &str) -> Option<KeyGuard> {
        let fresh = lock(&self.keys).insert(key.to_owned());
        fresh.then(|| KeyGuard { shared: Arc::clone(self), key: key.to_owned() })
    }

    /// The key that an upgrade takes; the older versions take none.
    fn key_for(self: &Arc<Self>, request: &UpgradeRequest) -> Result<Option<KeyGuard>, UpgradeError> {
        if request.version != Version::V2 {
            return Ok(None);
        }
        let key = self.take_key(&request.key);
        key.map(Some).ok_or_else(|| UpgradeError::new(409, "a connection with this key is under way"))
    }

    /// Hands a connection over to the blocking plane. Returns it if there is no thread for it.
    fn spawn(
        self: &Arc<Self>,
        begun: Begun,
        permit: tokio::sync::OwnedSemaphorePermit,
    ) -> Option<(Begun, tokio::sync::OwnedSemaphorePermit)> {
        let shared = Arc::clone(self);
        let connection = Arc::new(Mutex::new(Some((begun, permit))));
        let handed = Arc::clone(&connection);
        self.threads.fetch_add(1, Ordering::SeqCst);
        let guard = ThreadGuard(Arc::clone(self));
        let spawned = std::thread::Builder::new().name("connection".into()).spawn(move || {
            let Some((begun, permit)) = lock(&handed).take() else { return };
            let held: Box<dyn std::any::Any + Send> = Box::new((guard, permit));
            match begun {
                Begun::FastDp(shaken) => session::serve(&shared, shaken, held),
                Begun::FastDp1(shaken) => fastdp1::serve(&shared, shaken, held),
                // It is served where it began.
                Begun::Http { .. } => {}
                Begun::FastDownloader { socket, peer } => {
                    fastdownloader::serve(&shared, Older { socket, peer, early: Vec::new(), held });
                }
                Begun::UltraDp { socket, peer, early } => {
                    ultradp::serve(&shared, Older { socket, peer, early, held });
                }
            }
        });
        let error = spawned.err()?;
        tracing::error!(%error, "no thread for a connection");
        lock(&connection).take()
    }

    /// Reserves buffers for up to `wanted` streams; at least one is always granted.
    fn reserve(&self, wanted: u16, one_chunk: u32) -> u16 {
        let mut granted = 0;
        while granted < wanted {
            let before = self.buffers.fetch_add(one_chunk.into(), Ordering::SeqCst);
            if granted > 0 && before + u64::from(one_chunk) > self.options.buffers_max {
                self.buffers.fetch_sub(one_chunk.into(), Ordering::SeqCst);
                break;
            }
            granted += 1;
        }
        granted
    }

    fn release(&self, streams: u16, one_chunk: u32) {
        self.buffers.fetch_sub(u64::from(streams) * u64::from(one_chunk), Ordering::SeqCst);
    }

    fn add_session(
        self: &Arc<Self>,
        id: TransferId,
        transfer: Transfer,
        streams: u16,
    ) -> Result<SessionGuard, Error> {
        let placed = lock(&self.placed).len();
        let mut sessions = lock(&self.sessions);
        if placed + sessions.len() >= self.options.transfers_max {
            return Err(Error::with_code(503, "too many transfers at once"));
        }
        sessions.insert(id.0, Session { transfer, streams, joined: Arc::default() });
        Ok(SessionGuard { shared: Arc::clone(self), id })
    }

    /// Refuses a put while another that is still comparing brings the same files.
    fn prepare(
        self: &Arc<Self>,
        manifest: &Arc<Manifest>,
        placement: &Placement,
    ) -> Result<PreparingGuard, Error> {
        let mut preparing = lock(&self.preparing);
        let same = preparing.iter().any(|other| {
            manifest.iter().any(|(_, entry)| {
                let key = FileKey::new(placement.of(entry.path), entry.size(), entry.mtime);
                entry.size() > 0 && other.placement.entry_of(&key, &other.manifest).is_some()
            })
        });
        if same {
            return Err(Error::with_code(503, "an earlier attempt at this is still being looked at"));
        }
        let id = self.next_handshake.fetch_add(1, Ordering::Relaxed);
        preparing.push(Preparing { id, manifest: Arc::clone(manifest), placement: placement.clone() });
        Ok(PreparingGuard { shared: Arc::clone(self), id })
    }

    /// Counts a transfer that has ended, well or not.
    fn finish_one(&self) {
        self.finished.fetch_add(1, Ordering::SeqCst);
        if self.options.once {
            self.stop.stop();
        }
    }

    /// The reception whose stage has this folder.
    fn by_folder(&self, folder: &str) -> Option<Arc<Reception>> {
        let sessions = lock(&self.sessions);
        sessions.values().find_map(|session| match &session.transfer {
            Transfer::Receiving(reception) if reception.folder() == Some(folder) => {
                Some(Arc::clone(reception))
            }
            _ => None,
        })
    }

    /// Waits until every thread has left, within a bound.
    fn drain(&self) {
        // Nobody brings the rest of these any more.
        let unfinished = std::mem::take(&mut *lock(&self.nextdp));
        drop(unfinished);
        let until = std::time::Instant::now() + DRAIN_PATIENCE;
        while self.threads.load(Ordering::SeqCst) > 0 && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        let left = self.threads.load(Ordering::SeqCst);
        if left > 0 {
            tracing::warn!(left, "leaving although connections are still under way");
        }
    }
}
