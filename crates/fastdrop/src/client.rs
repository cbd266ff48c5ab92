//! The client: puts, gets and lists, and tries again when the network fails.

mod fastdownloader;
mod fastdp1;
mod get;
mod get_place;
mod nextdp;
mod older;
mod put;
mod summary;
mod target;
mod ultradp;

pub use summary::{Listed, ListedKind, Listing, Summary};
pub use target::{Target, TargetError};

use crate::error::Error;
use crate::flags::{Action, Asked, Request};
use crate::net::connection::{Connection, Ended, FrameReader, prepare_socket};
use crate::observe::{Observer, Phase};
use crate::protocol::Protocol;
use crate::random::random;
use crate::source::filter::Filter;
use crate::stop::Stop;
use crate::transfer::send::offer;
use crate::transfer::streams::Joined;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use fastdrop_proto::checksum::Algorithm;
use fastdrop_proto::fastdp::{
    self, Capability, Control, Do, Done, Durability, Existing, Failed, Grant, Header, Links, Manifest, Open,
    Streams, UpgradeRequest, Version, parse_answer,
};
use fastdrop_proto::units::{ChunkSize, EntryIndex};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long one address may take to answer.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// How long the handshake may take after that.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(15);
/// Entries of a manifest that this end takes or makes.
const ENTRIES_MAX: u32 = 5_000_000;

/// What holds for everything that a client does.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// The protocol. Default: fastdp.
    pub protocol: Protocol,
    /// How contents are compressed. Default: where that makes the transfer faster.
    pub compress: Compress,
    /// Data streams. Default: auto.
    pub streams: Streams,
    /// How chunks are checked. Default: XXH3.
    pub checksum: Algorithm,
    /// Whether done means synced. Default: commit.
    pub durability: Durability,
    /// What happens to files that exist and differ. Default: error.
    pub existing: Existing,
    /// Identical means equal contents, by their BLAKE3, instead of
    /// equal size and time. Default: no.
    pub check: bool,
    /// Whether unfinished work is continued. Default: yes.
    pub resume: bool,
    /// Whether mtimes are kept. Default: yes.
    pub times: bool,
    /// Whether modes are kept. Default: yes.
    pub mode: bool,
    /// What happens to links. Default: copied.
    pub links: Links,
    /// Bytes on a data stream between checkpoints, at least 1 MiB;
    /// None for never. Default: 512 MiB.
    pub checkpoint: Option<u64>,
    /// What is left out. Default: nothing.
    pub filter: Filter,
    /// Bytes a second that are sent at most. Default: no limit.
    pub bytes_per_second_max: Option<u64>,
    /// Attempts after a loss without anything gained. Default: 5.
    pub retries: u32,
    /// The flags that were given, perhaps with their default value: what the protocol cannot keep
    /// of them is refused, as every value that is not the default. Default: none.
    pub asked: Asked,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            protocol: Protocol::FastDp,
            compress: Compress::Auto,
            streams: Streams::Auto,
            checksum: Algorithm::Xxh3,
            durability: Durability::Commit,
            existing: Existing::Error,
            check: false,
            resume: true,
            times: true,
            mode: true,
            links: Links::Copy,
            checkpoint: Some(512 << 20),
            filter: Filter::default(),
            bytes_per_second_max: None,
            retries: 5,
            asked: Asked::new(),
        }
    }
}

/// How contents are compressed on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compress {
    /// Chunk by chunk where that makes the transfer faster; not at all with the older protocols.
    Auto,
    /// Not at all.
    None,
    /// With Zstandard.
    Zstd,
    /// In a ZIP archive.
    Zip,
    /// In a gzipped tar archive.
    TarGz,
    /// As gzip members: NextDP only.
    Gzip,
}

/// What to put.
pub enum Put {
    /// Files and folders; those that end in a slash mean what is in them.
    Paths(Vec<PathBuf>),
    /// Everything until its end, as the file that the target's path names.
    Stream(Box<dyn Read + Send>),
}

impl std::fmt::Debug for Put {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Put::Paths(paths) => f.debug_tuple("Paths").field(paths).finish(),
            Put::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// How to put.
#[derive(Debug, Clone, Copy, Default)]
pub struct PutOptions {
    /// Only say what there is to send.
    pub dry_run: bool,
}

/// How to get.
#[derive(Debug, Clone, Copy, Default)]
pub struct GetOptions {
    /// Only say what there is to fetch.
    pub dry_run: bool,
    /// What comes as an archive stays one instead of being unpacked.
    pub keep_archive: bool,
}

/// Where a get goes.
pub enum Destination {
    /// Into this folder if it is one, else as this name.
    Path(PathBuf),
    /// One file, in order.
    Output(Box<dyn Write + Send>),
}

impl std::fmt::Debug for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Destination::Path(path) => f.debug_tuple("Path").field(path).finish(),
            Destination::Output(_) => f.write_str("Output"),
        }
    }
}

/// Talks to one server.
#[derive(Debug)]
pub struct Client {
    target: Target,
    options: ClientOptions,
    observer: Arc<Observer>,
    stop: Stop,
    /// Whether any connection worked: only then is a loss worth another attempt.
    reached: Mutex<Option<Duration>>,
}

/// A connection after the upgrade.
struct Upgraded {
    connection: Arc<Connection>,
    /// Bytes that came with the answer.
    early: Vec<u8>,
    rtt: Duration,
    /// The server is a FastDrop.
    is_fastdrop: bool,
}

/// The key of a connection, or of all connections of a transfer of version 1.0.0.
fn new_key() -> Result<String, Error> {
    Ok(STANDARD_NO_PAD.encode(random::<16>()?))
}

/// A connection after the upgrade and the headers.
struct Agreed {
    reader: FrameReader,
    server: Header,
    server_json: Vec<u8>,
    client_json: Vec<u8>,
    open_json: Vec<u8>,
}

impl Client {
    /// A client for `target`. `observer` and `stop` work while a call is under way.
    pub fn new(target: Target, options: ClientOptions, observer: Arc<Observer>, stop: Stop) -> Self {
        Self { target, options, observer, stop, reached: Mutex::new(None) }
    }

    /// Connects and upgrades, with a key of its own.
    fn connect(&self, version: Version) -> Result<(Arc<Connection>, Vec<u8>, Duration), Error> {
        let Upgraded { connection, early, rtt, .. } =
            self.connect_as(&UpgradeRequest::new(new_key()?, version))?;
        Ok((connection, early, rtt))
    }

    /// Connects and upgrades.
    fn connect_as(&self, request: &UpgradeRequest) -> Result<Upgraded, Error> {
        let (socket, rtt) = self.dial(self.target.port)?;
        self.upgrade(socket, rtt, request).map_err(|error| match error {
            Error::Network(why) => {
                let host = crate::shown(self.target.host.as_bytes());
                Error::Network(format!("{host} port {}: {why}", self.target.port))
            }
            other => other,
        })
    }

    /// Connects to a port of the target, and says how long the path is.
    fn dial(&self, port: u16) -> Result<(TcpStream, Duration), Error> {
        if self.stop.is_stopped() {
            return Err(Error::Interrupted);
        }
        let host = crate::shown(self.target.host.as_bytes());
        let unreachable = |error: std::io::Error| {
            let why = error.to_string();
            let why = why.split(" (os error").next().unwrap_or_default();
            Error::Network(format!("cannot reach {host} port {port}: {why}"))
        };
        let addresses = (&self.target.host[..], port).to_socket_addrs();
        let addresses = addresses.map_err(|error| {
            let why = error.to_string();
            let why = why.rsplit(": ").next().unwrap_or_default();
            Error::Network(format!("no such host: {host}: {why}"))
        })?;
        let mut last = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
        for address in addresses {
            let start = Instant::now();
            match connect_to(&address) {
                Ok(socket) => {
                    let rtt = round_trip(&socket, start.elapsed());
                    return Ok((socket, rtt));
                }
                Err(error) => last = error,
            }
        }
        Err(unreachable(last))
    }

    fn upgrade(&self, socket: TcpStream, rtt: Duration, request: &UpgradeRequest) -> Result<Upgraded, Error> {
        let lost = |error: std::io::Error| Error::Network(format!("the connection broke: {error}"));
        socket.set_nodelay(true).map_err(lost)?;
        socket.set_write_timeout(Some(HANDSHAKE_PATIENCE)).map_err(lost)?;
        (&socket).write_all(&request.encode(&self.target.authority())).map_err(lost)?;
        let deadline = Instant::now() + HANDSHAKE_PATIENCE;
        let mut bytes = Vec::with_capacity(512);
        let mut buffer = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.stop.is_stopped() {
                return Err(Error::Network("the peer did not answer the handshake in time".into()));
            }
            socket.set_read_timeout(Some(left.min(Duration::from_secs(1)))).map_err(lost)?;
            match (&socket).read(&mut buffer) {
                Ok(0) => {
                    // What came before the end may say why.
                    if bytes.is_empty() {
                        return Err(Error::Network(
                            "the peer closed the connection during the handshake".into(),
                        ));
                    }
                    parse_answer(&[&bytes[..], b"\r\n\r\n"].concat(), request)?;
                    return Err(Error::Network("the peer closed the connection during the handshake".into()));
                }
                Ok(count) => bytes.extend_from_slice(&buffer[..count]),
                Err(error) if is_wait(&error) => continue,
                Err(error) => return Err(lost(error)),
            }
            if let Some(answer) = parse_answer(&bytes, request)? {
                let early = bytes.split_off(answer.len);
                let connection = Connection::new(socket, rtt).map_err(lost)?;
                self.note_reached(rtt);
                let connection = Arc::new(connection);
                return Ok(Upgraded { connection, early, rtt, is_fastdrop: answer.is_fastdrop });
            }
        }
    }

    /// Notes that a connection works.
    fn note_reached(&self, rtt: Duration) {
        // A busy machine makes a round trip look longer, never shorter.
        let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        *reached = Some(reached.map_or(rtt, |before| before.min(rtt)));
    }

    /// Connects, and sends the header, the OPEN and, in a put, the
    /// manifest; reads the server's header.
    fn agree(&self, mut open: Open, header: &Header, manifest: Option<&Manifest>) -> Result<Agreed, Error> {
        let (connection, early, rtt) = self.connect(Version::V2)?;
        self.stop.watch(&connection);
        open.rtt_micros = u64::try_from(rtt.as_micros()).unwrap_or(0);
        let client = header.encode();
        let open = Control::Open(open).encode();
        let mut reader = FrameReader::new(Arc::clone(&connection), early);
        let first = [&client[..], &open].concat();
        let sent = connection.send(&mut [std::io::IoSlice::new(&first)], usize::MAX, |_| Duration::ZERO);
        let offer = |manifest: &Manifest| offer(&connection, manifest, Vec::new());
        let sent = sent.and_then(|()| manifest.map_or(Ok(()), offer));
        // A server that refuses does not wait for the rest: its reason
        // counts, not that it stopped listening.
        if let Err(ended @ (Ended::Silent | Ended::Stopped)) = sent {
            return Err(ended.into());
        }
        let (server, server_json) = read_header(&mut reader)?;
        Ok(Agreed {
            reader,
            server,
            server_json,
            client_json: client[4..].to_vec(),
            open_json: open[8..].to_vec(),
        })
    }

    /// Opens one more data stream of `transfer`.
    fn join(&self, grant: &Grant) -> Result<Joined, Error> {
        let open = Open { transfer: grant.transfer, ..Open::new(Do::Join) };
        let header = Header::new(ChunkSize::COMMON, 0, 0, "");
        let mut agreed = self.agree(open, &header, None)?;
        match agreed.reader.next_control()? {
            Control::Grant(_) => Ok(Joined { reader: agreed.reader, held: Box::new(()) }),
            Control::Refuse(refuse) => Err(Error::Refused(refuse)),
            _ => Err(Error::with_code(400, "the server answers with something else than GRANT")),
        }
    }

    /// How a sender that speaks fastdp compresses.
    fn compress(&self) -> Result<fastdp::Compress, Error> {
        Ok(match self.options.compress {
            Compress::Auto => fastdp::Compress::Auto,
            Compress::None => fastdp::Compress::None,
            Compress::Zstd => fastdp::Compress::Zstd,
            Compress::Zip => fastdp::Compress::Zip,
            Compress::TarGz => fastdp::Compress::TarGz,
            Compress::Gzip => return Err(Error::with_code(400, "fastdp does not compress with gzip alone")),
        })
    }

    fn open(&self, r#do: Do) -> Result<Open, Error> {
        let options = &self.options;
        Ok(Open {
            path: self.target.path.clone(),
            streams: match options.streams {
                Streams::Auto => 16,
                Streams::Fixed(streams) => streams.clamp(1, 64),
            },
            adapt: options.streams == Streams::Auto,
            checksum: options.checksum,
            existing: options.existing,
            durability: options.durability,
            times: options.times,
            mode: options.mode,
            // A put's links are chosen here; an older server would refuse a value that it does not know.
            links: if r#do == Do::Get { options.links } else { Links::default() },
            resume: options.resume,
            check: options.check && matches!(r#do, Do::Put | Do::Preview),
            checkpoint: options.checkpoint,
            compress: self.compress()?,
            rate_max: options.bytes_per_second_max.filter(|_| r#do == Do::Get),
            ..Open::new(r#do)
        })
    }

    /// Calls `attempt` until it succeeds, fails for good, or has failed
    /// too often without getting any further.
    fn persist<T>(&self, mut attempt: impl FnMut(u32) -> Result<T, Error>) -> Result<T, Error> {
        let mut in_vain = 0;
        for number in 0.. {
            let before = self.observer.bytes_done.load(Ordering::Relaxed);
            let error = match attempt(number) {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner).is_some();
            let again = match &error {
                Error::Network(_) => reached,
                Error::Refused(refuse) => refuse.code == 503 || refuse.code == 408,
                _ => false,
            };
            if self.stop.is_stopped() {
                return Err(Error::Interrupted);
            }
            // Progress that the next attempt cannot build on is none.
            let moved = self.resumes() && self.observer.bytes_done.load(Ordering::Relaxed) > before;
            in_vain = if moved { 1 } else { in_vain + 1 };
            if !again || in_vain > self.options.retries {
                return Err(error);
            }
            tracing::info!(%error, attempt = number + 1, "trying again");
            self.observer.set_phase(Phase::Waiting);
            self.pause(in_vain)?;
            self.observer.set_phase(Phase::Connecting);
        }
        Err(Error::Interrupted)
    }

    /// Returns true if an attempt goes on where the last one stopped: archives are made anew.
    fn resumes(&self) -> bool {
        self.options.resume && !matches!(self.options.compress, Compress::Zip | Compress::TarGz)
    }

    /// Waits 0.25 s, doubled for each attempt in vain up to 8 s, less a random half, so
    /// that not everybody returns at once.
    fn pause(&self, in_vain: u32) -> Result<(), Error> {
        let full = Duration::from_millis(250) * (1 << (in_vain - 1).min(5));
        let [random] = random::<1>()?;
        let until = Instant::now() + full.mul_f64(1.0 - f64::from(random) / 512.0);
        while Instant::now() < until {
            if self.stop.is_stopped() {
                return Err(Error::Interrupted);
            }
            std::thread::sleep(
                Duration::from_millis(50).min(until.saturating_duration_since(Instant::now())),
            );
        }
        Ok(())
    }

    /// Moves what could not be read from `needed` to what fails in `done`. An archive, which
    /// reads everything, fails as a whole.
    fn would_fail(
        &self,
        unreadable: impl Iterator<Item = (EntryIndex, u16, String)>,
        manifest: &Manifest,
        needed: &mut BTreeSet<EntryIndex>,
        done: &mut Done,
    ) -> Result<(), Error> {
        let is_archive = self.compress()?.archive().is_some();
        for (index, code, message) in unreadable {
            let Some(entry) = manifest.get(index) else { continue };
            let path = entry.path.as_bytes().to_vec();
            if is_archive {
                // As the transfer would say it.
                return Err(Error::with_code(410, format!("{}: {message}", crate::shown(&path))));
            }
            // Of an empty file nothing is read.
            if entry.size() == 0 || !needed.remove(&index) {
                continue;
            }
            done.failed.push(Failed { path, code, message });
            done.failed_count += 1;
        }
        Ok(())
    }

    fn rtt(&self) -> Duration {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or_default()
    }

    /// Nothing is downgraded in silence, and nothing upgraded either.
    fn keeps_its_word(&self, grant: &Grant) -> Result<(), Error> {
        if grant.checksum != self.options.checksum || grant.durability != self.options.durability {
            return Err(Error::with_code(400, "the server grants something else than was asked for"));
        }
        if self.options.check && !grant.has(Capability::Content) {
            return Err(Error::with_code(
                415,
                "the server is too old to compare contents, which --check asks for",
            ));
        }
        let (capability, name) = match self.options.compress {
            Compress::Zstd => (Capability::Zstd, "Zstandard"),
            Compress::Zip => {
                (Capability::ZipTimes, "exact times in ZIP archives; --compress targz keeps them")
            }
            Compress::TarGz => (Capability::Archive, "archives"),
            Compress::Auto | Compress::None | Compress::Gzip => return Ok(()),
        };
        if grant.has(capability) {
            Ok(())
        } else {
            Err(Error::with_code(415, format!("the server does not know {name}")))
        }
    }

    /// The names that a FastDownloader server offers.
    pub fn names(&self) -> Result<Vec<Vec<u8>>, Error> {
        self.check_list()?;
        self.with_attempts(|| fastdownloader::list(self))
    }

    fn check_list(&self) -> Result<(), Error> {
        let options = &self.options;
        let request = Request { action: Action::List, options, dry_run: false, keep_archive: false };
        request.check().map(|_| ())
    }
}

/// Whether a manifest has more than one topmost component.
fn has_several_tops(manifest: &Manifest) -> bool {
    let first = manifest.get(EntryIndex(0)).map(|entry| entry.path.top());
    manifest.iter().any(|(_, entry)| Some(entry.path.top()) != first)
}

fn is_wait(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}

/// The round trip of a connection that took `elapsed` to be made. Between two processes of one
/// machine it is short, however long this one waited for a processor meanwhile.
fn round_trip(socket: &TcpStream, elapsed: Duration) -> Duration {
    let here = |(local, peer): (SocketAddr, SocketAddr)| local.ip() == peer.ip();
    let ends = socket.local_addr().and_then(|local| Ok((local, socket.peer_addr()?)));
    if ends.is_ok_and(here) { elapsed.min(Duration::from_micros(100)) } else { elapsed }
}

/// A connection to `address`, ready for [`Connection::new`].
fn connect_to(address: &SocketAddr) -> std::io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(*address), socket2::Type::STREAM, None)?;
    prepare_socket(&socket, address.ip());
    socket.connect_timeout(&(*address).into(), CONNECT_PATIENCE)?;
    Ok(socket.into())
}

fn cores() -> u16 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(64) as u16)
}

fn read_header(reader: &mut FrameReader) -> Result<(Header, Vec<u8>), Error> {
    let mut prefix = [0; 4];
    reader.fill(&mut prefix)?;
    let mut bytes = prefix.to_vec();
    // Refused before anything is allocated for it, if it is too long.
    Header::decode(&prefix)?;
    bytes.extend(reader.payload(u32::from_be_bytes(prefix))?);
    let decoded = Header::decode(&bytes)?;
    let (header, json, _) = decoded.ok_or_else(|| Error::with_code(400, "a header that is not complete"))?;
    let json = json.to_vec();
    Ok((header, json))
}

fn read_grant(reader: &mut FrameReader) -> Result<(Grant, Vec<u8>), Error> {
    use fastdrop_proto::fastdp::FrameKind;
    let header = reader.header()?;
    let FrameKind::Control(kind) = header.kind else {
        return Err(Error::with_code(400, "a chunk where GRANT must be"));
    };
    let payload = reader.payload(header.size)?;
    match Control::decode(kind, &payload)? {
        Control::Grant(grant) => Ok((grant, payload)),
        Control::Refuse(refuse) => Err(Error::Refused(refuse)),
        _ => Err(Error::with_code(400, "the server answers with something else than GRANT")),
    }
}
