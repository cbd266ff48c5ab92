//! FastDownloader: gives files over ports that are made for each of them. The server
//! speaks first, on a port of its own.

use crate::context::server::ServerContext;
use crate::error::Error;
use crate::gate::action::Action;
use crate::gate::path::ServedPath;
use crate::gate::principal::Principal;
use crate::legacy::upload::LegacyConnection;
use crate::lock::lock;
use crate::net::connection::Connection;
use crate::net::frames::FrameReader;
use crate::net::listen::canonical;
use crate::storage::io::read_exact_at;
use crate::storage::root::names;
use crate::thread::{refused, spawn_scoped};
use fastdrop_proto::fastdownloader::{
    Accepted, CHUNK, CHUNK_BYTES, CHUNK_PREFIX, CHUNKS_MAX, Dialect, NAME_MAX, V1_CHUNK, V1_PORT_MIN,
    WRONG_INPUT, chunks_of, encode_list, encode_prefix, encode_v1,
};
use fastdrop_proto::fastdp::Code;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Stat};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a user may look at the list.
const CHOICE_TIMEOUT: Duration = Duration::from_secs(300);
/// A name without a terminator is complete when nothing more came for so long.
const NAME_QUIET: Duration = Duration::from_millis(200);
/// How long a port waits for its client.
const PORT_TIMEOUT: Duration = Duration::from_secs(10);
/// Clients of one address at the same time: each has a thread, and as long as its user likes.
const CLIENTS_PER_ADDRESS_MAX: usize = 64;
/// Chunks that are read, and sent, at once.
const BATCH: u64 = 1024;
/// Bytes that a segment has beside its content: the timestamps of TCP.
const SEGMENT_OPTIONS: usize = 12;

/// The server of FastDownloader.
pub(crate) struct Server {
    context: Arc<ServerContext>,
    /// Clients, by address.
    downloaders: Mutex<BTreeMap<IpAddr, usize>>,
}

impl Server {
    /// Creates a server without clients.
    pub(crate) fn new(context: Arc<ServerContext>) -> Self {
        Self { context, downloaders: Mutex::default() }
    }
}

/// Serves a connection to its end.
pub(crate) fn serve(server: &Server, legacy: LegacyConnection) {
    let peer = legacy.peer;
    let started = Instant::now();
    match give(server, legacy) {
        Ok(Some((name, bytes))) => {
            let seconds = started.elapsed().as_secs_f64();
            tracing::info!(%peer, protocol = "fastdownloader", name = %crate::shown(&name), bytes, seconds, "sent");
            server.context.finish_one();
        }
        Ok(None) => tracing::debug!(%peer, protocol = "fastdownloader", "left without a file"),
        Err(error) => tracing::warn!(%peer, protocol = "fastdownloader", %error, "failed"),
    }
}

/// A client of this address, as long as this is there.
struct Downloader<'a> {
    server: &'a Server,
    address: IpAddr,
}

impl<'a> Downloader<'a> {
    fn new(server: &'a Server, address: IpAddr) -> Result<Self, Error> {
        let mut counts = lock(&server.downloaders);
        let count = counts.entry(address).or_default();
        if *count >= CLIENTS_PER_ADDRESS_MAX {
            return Err(Error::failed(Code::Unavailable, "too many clients of this address"));
        }
        *count += 1;
        Ok(Self { server, address })
    }
}

impl Drop for Downloader<'_> {
    fn drop(&mut self) {
        let mut counts = lock(&self.server.downloaders);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// Gives one file: what, and how many bytes; None if the client did not want one.
fn give(server: &Server, legacy: LegacyConnection) -> Result<Option<(Vec<u8>, u64)>, Error> {
    let local = legacy.socket.local_addr().map_err(|error| Error::Network(error.to_string()))?;
    // The zone of a link-local address stays.
    let mut local = canonical(local);
    local.set_port(0);
    let (mut reader, peer, _permit) = legacy.connect(&server.context)?;
    let connection = Arc::clone(reader.connection());
    let _downloader = Downloader::new(server, peer.ip())?;
    let who = Principal::of(peer);
    let gate = &server.context.gate;
    gate.admit(&who, Action::List, b"")?;
    let listed = listed(server)?;
    say(&connection, &encode_list(listed.iter().map(|name| &name[..])))?;
    // Whoever is refused has been reset by now; what follows has words, or lacks chunks.
    connection.reset_on_close(false);
    if listed.is_empty() {
        connection.linger();
        return Ok(None);
    }
    let Some(name) = choice(server, &mut reader)? else { return Ok(None) };
    let admitted = gate.admit(&who, Action::Read, &name).ok().filter(|_| listed.contains(&name));
    let file = admitted.and_then(|path| open(server, &path));
    let Some((file, found)) = file else {
        say(&connection, WRONG_INPUT.as_bytes())?;
        connection.linger();
        return Err(Error::failed(Code::NotFound, format!("there is no file {}", crate::shown(&name))));
    };
    let size = found.st_size as u64;
    let chunks = chunks_of(size);
    if chunks > CHUNKS_MAX {
        say(&connection, WRONG_INPUT.as_bytes())?;
        return Err(Error::failed(
            Code::OverLimit,
            format!("{} is too large for this protocol", crate::shown(&name)),
        ));
    }
    let dialect = server.context.options.fastdownloader_dialect;
    let listeners = listen(local, dialect, dialect.streams_for(size));
    let listeners = listeners
        .map_err(|error| Error::failed(Code::Unavailable, format!("no ports to be had: {error}")))?;
    let ports: Result<Vec<_>, _> =
        listeners.iter().map(|listener| listener.local_addr().map(|address| address.port())).collect();
    let ports =
        ports.map_err(|error| Error::failed(Code::Unavailable, format!("no ports to be had: {error}")))?;
    say(&connection, &Accepted { chunks, ports }.encode())?;
    let giving = Giving { file, found, size, chunks, next: AtomicU64::new(0) };
    let streams = listeners.len() as u64;
    let results: Vec<_> = std::thread::scope(|scope| {
        let start = |(which, listener)| {
            let giving = &giving;
            let give = move || {
                let socket = accept_from(server, listener, peer.ip())?;
                giving.stream(server, &socket, dialect, |connection| match dialect {
                    Dialect::Document => giving.take_batches(connection),
                    Dialect::V1 => giving.take_turns(connection, &socket, which, streams),
                })
            };
            spawn_scoped(scope, "stream", give).map_err(refused)
        };
        let streams: Vec<_> = (0..).zip(listeners).map(start).collect();
        streams
            .into_iter()
            .map(|stream| {
                stream?.join().unwrap_or_else(|_| Err(Error::failed(Code::Internal, "a stream failed")))
            })
            .collect()
    });
    results.into_iter().collect::<Result<(), Error>>()?;
    Ok(Some((name, size)))
}

/// Listens on so many ports: those that the system picks, or those that the published server would.
fn listen(local: SocketAddr, dialect: Dialect, streams: u16) -> std::io::Result<Vec<TcpListener>> {
    if dialect == Dialect::Document {
        return (0..streams).map(|_| TcpListener::bind(local)).collect();
    }
    let mut ports = V1_PORT_MIN..=u16::MAX;
    let bind = |port| {
        let mut address = local;
        address.set_port(port);
        TcpListener::bind(address)
    };
    let mut free = || ports.find_map(|port| bind(port).ok());
    (0..streams)
        .map(|_| {
            let listener = free().map_or_else(|| TcpListener::bind(local), Ok)?;
            // The published client takes what one call brings for a chunk: segments have one each.
            let mss = (V1_CHUNK + SEGMENT_OPTIONS) as u32;
            let _ = socket2::SockRef::from(&listener).set_tcp_mss(mss);
            Ok(listener)
        })
        .collect()
}

fn say(connection: &Connection, bytes: &[u8]) -> Result<(), Error> {
    Ok(connection.send_bytes(bytes)?)
}

/// The regular files in the served folder whose names can stand in a list.
fn listed(server: &Server) -> Result<Vec<Vec<u8>>, Error> {
    let folder = server.context.root.open_dir(b"").and_then(|folder| names(folder.as_fd()));
    let folder = folder.map_err(|errno| Error::system("reading the folder", errno))?;
    let fits = |name: &[u8]| !name.iter().any(u8::is_ascii_control);
    let files = folder.into_iter().filter(|(name, kind)| *kind == FileType::RegularFile && fits(name));
    Ok(files.map(|(name, _)| name).collect())
}

/// The name that the client sends; None if it leaves.
fn choice(server: &Server, reader: &mut FrameReader) -> Result<Option<Vec<u8>>, Error> {
    let until = Instant::now() + CHOICE_TIMEOUT;
    let mut name = Vec::new();
    while !name.contains(&b'\n') {
        let patience = if name.is_empty() { Duration::from_millis(900) } else { NAME_QUIET };
        if !reader.comes_within(patience) {
            if !name.is_empty() {
                break;
            }
            if Instant::now() > until || server.context.stop.is_stopped() {
                return Ok(None);
            }
            continue;
        }
        let mut buffer = [0; 1024];
        match reader.read_some(&mut buffer)? {
            0 if name.is_empty() => return Ok(None),
            0 => break,
            count => name.extend_from_slice(&buffer[..count]),
        }
        if name.len() > NAME_MAX {
            return Err(Error::failed(Code::OverLimit, "a name of more than 4,096 bytes"));
        }
    }
    let end = name.iter().position(|&byte| byte == b'\n').unwrap_or(name.len());
    name.truncate(end);
    Ok(Some(name.strip_suffix(b"\r").map(<[u8]>::to_vec).unwrap_or(name)))
}

fn open(server: &Server, path: &ServedPath) -> Option<(OwnedFd, Stat)> {
    let file = server.context.root.open_file(path.as_bytes()).ok()?;
    let found = rustix::fs::fstat(&file).ok()?;
    (FileType::from_raw_mode(found.st_mode) == FileType::RegularFile).then_some((file, found))
}

/// The first connection from `address`; others are closed.
fn accept_from(server: &Server, listener: TcpListener, address: IpAddr) -> Result<TcpStream, Error> {
    let failed = |error: std::io::Error| Error::Network(format!("waiting for a stream: {error}"));
    listener.set_nonblocking(true).map_err(failed)?;
    let until = Instant::now() + PORT_TIMEOUT;
    while Instant::now() < until && !server.context.stop.is_stopped() {
        let tick = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
        let _ = poll(&mut [PollFd::new(&listener, PollFlags::IN)], Some(&tick));
        match listener.accept() {
            Ok((socket, peer)) if peer.ip() == address => return Ok(socket),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Err(Error::Network("the client did not connect to a port".into()))
}

fn changed() -> Error {
    Error::failed(Code::SourceChanged, "the source changed while it was sent")
}

/// The next chunk of a file that is given up.
const GIVEN_UP: u64 = u64::MAX / 2;

/// A file on its way over several connections.
struct Giving {
    file: OwnedFd,
    found: Stat,
    size: u64,
    chunks: u64,
    /// The chunk that nobody has taken.
    next: AtomicU64,
}

impl Giving {
    /// Has `send` send over one connection, and ends it.
    fn stream(
        &self,
        server: &Server,
        socket: &TcpStream,
        dialect: Dialect,
        send: impl FnOnce(&Connection) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let lost = |error: std::io::Error| Error::Network(format!("the connection broke: {error}"));
        let here = socket.local_addr().and_then(|local| Ok(local.ip() == socket.peer_addr()?.ip()));
        let rtt = match dialect {
            // Buffers that are kept small would be filled up by every reader.
            Dialect::V1 => Duration::from_millis(1),
            Dialect::Document if here.unwrap_or(false) => Duration::from_micros(100),
            Dialect::Document => Duration::from_millis(10),
        };
        let connection = Arc::new(Connection::new(socket.try_clone().map_err(lost)?, rtt).map_err(lost)?);
        server.context.stop.watch(&connection);
        let result = send(&connection);
        match result {
            Ok(()) => connection.linger(),
            // Not in good order: the client is not to take it for the end. And nobody else need go
            // on: it cannot be completed.
            Err(_) => {
                self.next.store(GIVEN_UP, Ordering::Relaxed);
                connection.reset();
            }
        }
        result
    }

    /// Sends batches until there are none left.
    fn take_batches(&self, connection: &Connection) -> Result<(), Error> {
        let mut plain = vec![0; BATCH as usize * CHUNK_BYTES];
        let mut wire = vec![0; BATCH as usize * CHUNK];
        loop {
            let first = self.next.fetch_add(BATCH, Ordering::Relaxed);
            if first >= self.chunks {
                return Ok(());
            }
            self.batch(connection, first, &mut plain, &mut wire)?;
        }
    }

    /// Sends every chunk whose turn it is on this stream: one in `streams`, from `which` on. Each
    /// leaves by itself, as the published client takes what one call brings for a chunk.
    fn take_turns(
        &self,
        connection: &Connection,
        socket: &TcpStream,
        which: u64,
        streams: u64,
    ) -> Result<(), Error> {
        let (mut plain, mut chunk) = ([0; CHUNK_BYTES], [0; V1_CHUNK]);
        let mut ordinal = which;
        while ordinal < self.chunks {
            let offset = ordinal * CHUNK_BYTES as u64;
            let bytes = &mut plain[..(self.size - offset).min(CHUNK_BYTES as u64) as usize];
            read_exact_at(&self.file, bytes, offset).map_err(|_| changed())?;
            encode_v1(ordinal, bytes, &mut chunk)
                .map_err(|error| Error::failed(Code::BadRequest, format!("chunk {ordinal}: {error}")))?;
            ordinal += streams;
            if ordinal >= self.chunks {
                self.check().map_err(|()| changed())?;
            }
            if self.next.load(Ordering::Relaxed) == GIVEN_UP {
                return Err(Error::Network("another stream of this client has failed".into()));
            }
            // With room for all of it a chunk does not leave in two parts. If there is none for
            // long, sending says why.
            let tick = Timespec { tv_sec: 1, tv_nsec: 0 };
            let _ = poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&tick));
            say(connection, &chunk)?;
        }
        Ok(())
    }

    fn batch(
        &self,
        connection: &Connection,
        first: u64,
        plain: &mut [u8],
        wire: &mut [u8],
    ) -> Result<(), Error> {
        let offset = first * CHUNK_BYTES as u64;
        let bytes = (self.size - offset).min(plain.len() as u64) as usize;
        read_exact_at(&self.file, &mut plain[..bytes], offset).map_err(|_| changed())?;
        let count = (self.chunks - first).min(BATCH) as usize;
        if first + count as u64 == self.chunks {
            self.check().map_err(|()| changed())?;
        }
        let mut parts = plain[..bytes].chunks(CHUNK_BYTES);
        let mut end = 0;
        for (chunk, ordinal) in wire.chunks_mut(CHUNK).take(count).zip(first..) {
            // The last one may have nothing.
            let part = parts.next().unwrap_or_default();
            if let Some((prefix, body)) = chunk.split_first_chunk_mut::<CHUNK_PREFIX>() {
                encode_prefix(ordinal, prefix);
                body[..part.len()].copy_from_slice(part);
            }
            end += CHUNK_PREFIX + part.len();
        }
        say(connection, &wire[..end])
    }

    /// An error if the file is not as it was.
    fn check(&self) -> Result<(), ()> {
        let now = rustix::fs::fstat(&self.file).map_err(|_| ())?;
        let of = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
        if of(&now) == of(&self.found) { Ok(()) } else { Err(()) }
    }
}
