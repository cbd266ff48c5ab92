//! The client: puts, gets and lists, and tries again when the network fails.

mod fastdownloader;
mod fastdp1;
mod get_place;
mod nextdp;
mod older;
mod summary;
mod target;
mod ultradp;

pub use summary::{Listed, ListedKind, Listing, Summary};
pub use target::{Target, TargetError};

use crate::archive::{Packed, expect_archive, offered};
use crate::connection::{Connection, Ended, FrameReader, prepare_socket};
use crate::engine::files::{ReceiveOptions, Unpack};
use crate::engine::inquiry::Inquiry;
use crate::engine::output::{OutputSink, expect_one_file};
use crate::engine::place::Placement;
use crate::engine::receive::{Prepared, Reception};
use crate::engine::send::{Opener, SendOptions, Transmission, offer};
use crate::engine::{Joined, data_streams_from, flying_max, grantable, with_alive};
use crate::error::Error;
use crate::filter::Filter;
use crate::flags::{Action, Asked, Request};
use crate::identity::Identities;
use crate::observe::{Limits, Observer, Phase};
use crate::protocol::Protocol;
use crate::root::split;
use crate::source::{Unreadable, content};
use crate::stage::{Busy, random};
use crate::stop::Stop;
use crate::walk::{SourceTree, WalkOptions, Walked, walk};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use fastdrop_proto::checksum::Algorithm;
use fastdrop_proto::fastdp::{
    self, Archive, Capability, Control, Do, Done, Durability, EntryKind, Existing, Failed, Grant, Header,
    LEFT_OUT_NAMED_MAX, LeftOut, LeftOutEntry, Links, Manifest, ManifestBuilder, Open, Place, Receiver,
    RelPath, Sender, SenderConfig, SkipReason, Streams, Table, Transcript, UpgradeRequest, Version,
    parse_answer,
};
use fastdrop_proto::units::{ChunkSize, EntryIndex};
use get_place::GetPlace;
use std::collections::{BTreeSet, HashSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use summary::Tally;

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
    /// Identical means equal contents, by their BLAKE3, instead of equal size and time. Default: no.
    pub check: bool,
    /// Whether unfinished work is continued. Default: yes.
    pub resume: bool,
    /// Whether mtimes are kept. Default: yes.
    pub times: bool,
    /// Whether modes are kept. Default: yes.
    pub mode: bool,
    /// What happens to links. Default: copied.
    pub links: Links,
    /// Bytes on a data stream between checkpoints, at least 1 MiB; None for never. Default: 512 MiB.
    pub checkpoint: Option<u64>,
    /// What is left out. Default: nothing.
    pub filter: Filter,
    /// Bytes a second that are sent at most. Default: no limit.
    pub bytes_per_second_max: Option<u64>,
    /// Attempts after a loss without anything gained. Default: 5.
    pub retries: u32,
    /// The flags that were given, perhaps with their default value: what the protocol cannot keep of them is refused, as every value
    /// that is not the default. Default: none.
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

/// Where what is sent comes from, beside files.
enum Input {
    /// Nowhere.
    Nothing,
    /// From a stream, which can be read once.
    Once(Mutex<Option<Box<dyn Read + Send>>>),
    /// From an archive of these, made anew for each attempt.
    Archive { tree: Arc<SourceTree>, contents: Arc<Manifest>, kind: Archive },
}

impl Input {
    /// Whether it has been read, and cannot be again.
    fn is_spent(&self) -> bool {
        match self {
            Input::Once(read) => read.lock().unwrap_or_else(PoisonError::into_inner).is_none(),
            Input::Nothing | Input::Archive { .. } => false,
        }
    }

    fn spent() -> Error {
        Error::with_code(400, "standard input has been read and cannot be sent again")
    }

    /// What to read; None if there are only files.
    fn open(&self) -> Result<Option<Box<dyn Read + Send>>, Error> {
        match self {
            Input::Nothing => Ok(None),
            Input::Once(read) => match read.lock().unwrap_or_else(PoisonError::into_inner).take() {
                Some(read) => Ok(Some(read)),
                None => Err(Self::spent()),
            },
            Input::Archive { tree, contents, kind } => {
                let packed = Packed::new(Arc::clone(tree), Arc::clone(contents), *kind);
                let packed =
                    packed.map_err(|error| Error::with_code(500, format!("making an archive: {error}")))?;
                Ok(Some(Box::new(packed)))
            }
        }
    }
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

/// What a put offers, in one attempt after the other.
struct PutOffer {
    tree: Arc<SourceTree>,
    walked: Walked,
    /// Of the files as they are now.
    identities: Identities,
    place: Place,
    /// Whether unfinished work may be continued.
    resume: bool,
    /// Files that have changed since the first attempt, though neither their size nor their time has.
    changed: Vec<EntryIndex>,
}

/// Why a link was not sent.
const TOO_NEW_A_LINK: &str = "the server is too old for a link that leads there";
/// Why a long path was not sent.
const TOO_LONG_A_PATH: &str = "the server is too old for a path of more than 4,096 bytes";

impl PutOffer {
    /// Looks at the files again: a later attempt sends what they are then.
    fn look_again(&mut self) {
        let manifest = &self.walked.manifest;
        let now = Identities::find(&self.tree, manifest);
        let is_other = |&index: &EntryIndex| now.get(index) != self.identities.get(index);
        let changed = manifest.iter().map(|(index, _)| index).filter(is_other);
        self.changed.extend(changed);
        self.identities = now;
    }

    /// Whether a server that is too old could have refused the manifest for its links or long paths.
    fn is_too_new(&self, error: &Error) -> bool {
        let manifest = &self.walked.manifest;
        matches!(error, Error::Refused(refuse) if refuse.code == 400)
            && !(manifest.links_beyond_base().is_empty() && manifest.long_paths().is_empty())
    }

    fn leave_out_what_is_too_new(&mut self, tally: &mut Tally) -> Result<(), Error> {
        let long = self.walked.manifest.long_paths();
        self.leave_out(&long, TOO_LONG_A_PATH, tally)?;
        let links = self.walked.manifest.links_beyond_base();
        self.leave_out(&links, TOO_NEW_A_LINK, tally)
    }

    fn leave_out(
        &mut self,
        entries: &BTreeSet<EntryIndex>,
        why: &str,
        tally: &mut Tally,
    ) -> Result<(), Error> {
        for entry in entries.iter().filter_map(|&index| self.walked.manifest.get(index)) {
            tally.fail(entry.path.as_bytes(), 415, why);
        }
        self.walked.leave_out(entries, why)?;
        self.identities.remove(entries);
        // What is left is a manifest of its own.
        self.changed.clear();
        if self.walked.manifest.is_empty() {
            return Err(Error::with_code(415, why));
        }
        Ok(())
    }
}

/// Why an attempt at a put failed.
enum PutFailure {
    /// The manifest was refused before anything was granted.
    Offer(Error),
    /// The server holds something else than what is here, and cannot be told so.
    StartOver,
    Other(Error),
}

impl From<Error> for PutFailure {
    fn from(error: Error) -> Self {
        PutFailure::Other(error)
    }
}

impl From<PutFailure> for Error {
    fn from(failure: PutFailure) -> Self {
        match failure {
            PutFailure::Offer(error) | PutFailure::Other(error) => error,
            PutFailure::StartOver => {
                Error::with_code(400, "the server continues although nothing was offered")
            }
        }
    }
}

/// The chunk size that suits a manifest; `streamed` if its size is not known.
fn wanted_chunk(manifest: &Manifest, streamed: bool) -> ChunkSize {
    let largest = manifest.iter().map(|(_, entry)| entry.size()).max().unwrap_or(0);
    ChunkSize::for_file_size(if streamed { 1 << 30 } else { largest.max(manifest.bytes() / 16) })
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

    // ---- connecting ----

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

    /// Connects, and sends the header, the OPEN and, in a put, the manifest; reads the server's header.
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
        // A server that refuses does not wait for the rest: its reason counts, not that it stopped listening.
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
            links: options.links,
            resume: options.resume,
            check: options.check && matches!(r#do, Do::Put | Do::Preview),
            checkpoint: options.checkpoint,
            compress: self.compress()?,
            rate_max: options.bytes_per_second_max.filter(|_| r#do == Do::Get),
            ..Open::new(r#do)
        })
    }

    /// Calls `attempt` until it succeeds, fails for good, or has failed too often without getting any further.
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

    /// Waits 0.25 s, doubled for each attempt in vain up to 8 s, less a random half, so that not everybody returns at once.
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

    // ---- put ----

    /// Sends. A failure of some files is not an error here but counted in the summary.
    pub fn put(&self, what: Put, options: PutOptions) -> Result<Summary, Error> {
        let start = Instant::now();
        let (dry_run, keep_archive) = (options.dry_run, false);
        let request = Request { action: Action::Put, options: &self.options, dry_run, keep_archive };
        let unkept = request.check()?;
        let mut tree = SourceTree::default();
        let mut stream = None;
        let mut input = None;
        let mut contents = false;
        match what {
            Put::Paths(paths) => {
                for path in &paths {
                    contents |= tree.add_path(path, self.options.links == Links::Follow)?;
                }
            }
            Put::Stream(_) if self.options.protocol != Protocol::FastDp => {
                let protocol = self.options.protocol;
                return Err(Error::Unsupported(format!(
                    "{protocol} has to know a file's size before it is sent"
                )));
            }
            Put::Stream(read) => {
                let (_, name) = split(&self.target.path);
                if name.is_empty() {
                    return Err(Error::with_code(400, "a stream needs the name of a file in the target"));
                }
                stream = Some(name.to_vec());
                input = Some(read);
            }
        }
        let walk_options = WalkOptions {
            links: self.options.links,
            filter: self.options.filter.clone(),
            entries_max: ENTRIES_MAX,
            // With -v alone: it takes a call for each file.
            tells_uncarried: tracing::enabled!(tracing::Level::INFO),
            long_paths: true,
        };
        let mut walked = walk(&tree, stream.as_deref(), &walk_options, &self.observer, &self.stop)?;
        let mut tally = Tally::new(&self.options, &walked, start);
        tally.note_unkept(unkept);
        let left_out = walked.left_out.iter().map(|entry| &entry.path[..]).collect::<HashSet<_>>();
        for (path, why) in self.options.filter.missing(walked.manifest.iter().map(|(_, entry)| entry.path)) {
            // What was left out is not missing, and has a reason of its own.
            if !left_out.contains(path) {
                tally.fail(path, 404, &why);
            }
        }
        if walked.manifest.is_empty() {
            return tally.nothing();
        }
        if self.options.protocol != Protocol::FastDp {
            let done = self.put_older(&walked.manifest, &tree, &mut tally);
            return tally.finish(done, &self.observer);
        }
        let tree = Arc::new(tree);
        let archive = self.compress()?.archive();
        // In a retry, what the first attempt made must not change where things go.
        let place = match (&input, contents) {
            (Some(_), _) => Place::As,
            (None, true) => Place::Into,
            (None, false) if archive.is_some() && has_several_tops(&walked.manifest) => Place::Into,
            (None, false) => Place::Auto,
        };
        if archive.is_some() && input.is_some() {
            return Err(Error::with_code(400, "standard input cannot be put into an archive"));
        }
        let identities = std::mem::take(&mut walked.identities);
        let packed = Arc::clone(&walked.manifest);
        let mut offer =
            PutOffer { tree, walked, identities, place, resume: self.options.resume, changed: Vec::new() };
        if options.dry_run {
            let done = self.persist(|_| self.preview(&mut offer, &mut tally));
            return tally.finish(done, &self.observer);
        }
        let input = match (archive, input) {
            (Some(kind), _) => {
                let contents = Arc::clone(&offer.walked.manifest);
                offer.walked.manifest = Arc::new(offered(&contents, kind)?);
                offer.identities = Identities::default();
                Input::Archive { tree: Arc::clone(&offer.tree), contents, kind }
            }
            (None, Some(input)) => Input::Once(Mutex::new(Some(input))),
            (None, None) => Input::Nothing,
        };
        let done = self.persist(|number| {
            tally.attempts = number;
            if number > 0 {
                offer.look_again();
            }
            self.put_once(&mut offer, &input, &mut tally)
        });
        if let (Ok(done), Input::Archive { .. }) = (&done, &input) {
            tally.note_packed(&packed, done);
        }
        tally.finish(done, &self.observer)
    }

    /// Makes one attempt. A server that is too old for some of it gets what it can take.
    fn put_once(&self, offer: &mut PutOffer, input: &Input, tally: &mut Tally) -> Result<Done, Error> {
        loop {
            match self.put_attempt(offer, input, tally) {
                Ok(done) => return Ok(done),
                Err(PutFailure::StartOver) if offer.resume => offer.resume = false,
                Err(PutFailure::StartOver) => {
                    return Err(Error::with_code(400, "the server continues although it was told not to"));
                }
                Err(PutFailure::Offer(error)) if offer.is_too_new(&error) => {
                    offer.leave_out_what_is_too_new(tally)?;
                }
                Err(PutFailure::Offer(error) | PutFailure::Other(error)) => return Err(error),
            }
        }
    }

    /// Offers a manifest; the answer comes through the connection.
    fn offer(
        &self,
        r#do: Do,
        offer: &PutOffer,
        wanted: ChunkSize,
    ) -> Result<(Agreed, Grant, Vec<u8>), PutFailure> {
        self.observer.set_phase(Phase::Connecting);
        let manifest = &offer.walked.manifest;
        let table = Table::new(manifest, wanted).map_err(|error| Error::with_code(413, error.to_string()))?;
        let name =
            manifest.get(EntryIndex(0)).map(|entry| crate::shown(entry.path.top())).unwrap_or_default();
        let header = Header::new(wanted, table.count(), manifest.bytes(), &name);
        let open = Open { place: offer.place, resume: offer.resume, ..self.open(r#do)? };
        let mut agreed = self.agree(open, &header, Some(manifest))?;
        let (grant, grant_json) = read_grant(&mut agreed.reader).map_err(PutFailure::Offer)?;
        self.keeps_its_word(&grant)?;
        Ok((agreed, grant, grant_json))
    }

    /// Asks the server what a put would do.
    fn preview(&self, offer: &mut PutOffer, tally: &mut Tally) -> Result<Done, Error> {
        let manifest = Arc::clone(&offer.walked.manifest);
        let offered = self.offer(Do::Preview, offer, wanted_chunk(&manifest, false));
        let (mut agreed, ..) = offered.map_err(|failure| match failure {
            PutFailure::Offer(Error::Refused(refuse)) if refuse.code == 400 => {
                Error::Foreign("the server is too old to say what it would do; without -n it does it".into())
            }
            failure => failure.into(),
        })?;
        let connection = Arc::clone(agreed.reader.connection());
        let mut skipped = vec![None; manifest.len() as usize];
        let mut asked = 0;
        let mut is_answered = false;
        let mut done = loop {
            match agreed.reader.next_control()? {
                Control::Alive => {}
                Control::Ask(entries) if !is_answered => {
                    // Each file once: a server must not have this end read for ever.
                    asked += entries.len() as u64;
                    if entries.is_empty() || asked > u64::from(manifest.len()) {
                        return Err(Error::with_code(400, "a preview asks for more than there is"));
                    }
                    for entry in entries {
                        let content =
                            with_alive(&connection, || content(&offer.tree, &manifest, entry, &self.stop));
                        connection.send_control(&Control::Content(vec![(entry, content)]))?;
                    }
                }
                Control::Skip(runs) if !is_answered => {
                    for run in runs {
                        let end = run.first.at().saturating_add(run.count as usize);
                        let range = skipped.get_mut(run.first.at()..end);
                        range
                            .ok_or_else(|| Error::with_code(400, "skipped entries that do not exist"))?
                            .fill(Some(run.reason));
                    }
                }
                Control::Need(_) if !is_answered => is_answered = true,
                Control::Done(done) if is_answered => break done,
                Control::Refuse(refuse) => return Err(Error::Refused(refuse)),
                _ => return Err(Error::with_code(400, "a frame that does not belong to a preview")),
            }
        };
        connection.close();
        let is_needed = |index: &EntryIndex| skipped.get(index.at()) == Some(&None);
        let needed = (0..manifest.len()).map(EntryIndex).filter(is_needed);
        let unreadable = if self.compress()?.archive().is_some() {
            offer.tree.unreadable(&manifest, (0..manifest.len()).map(EntryIndex))
        } else {
            offer.tree.unreadable(&manifest, needed.clone())
        };
        let mut needed = needed.collect::<BTreeSet<_>>();
        // What would fail at the other end is among what it skips by policy.
        let fails = done.failed.iter().map(|failed| &failed.path[..]).collect::<HashSet<_>>();
        let stays = |index: u32| {
            manifest.get(EntryIndex(index)).is_some_and(|entry| !fails.contains(entry.path.as_bytes()))
        };
        let stays = (0..).zip(&skipped).filter(|(index, reason)| reason.is_some() && stays(*index));
        let left = stays.clone().filter(|(_, reason)| **reason == Some(SkipReason::Policy));
        tally.note_skipped(stays.clone().count() as u64, left.count() as u64, 0, 0);
        let unreadable =
            unreadable.into_iter().map(|Unreadable { entry, code, reason }| (entry, code, reason));
        self.would_fail(unreadable, &manifest, &mut needed, &mut done)?;
        tally.note_dry(&manifest, |index| needed.contains(&index));
        Ok(done)
    }

    /// Moves what could not be read from `needed` to what fails in `done`. An archive, which reads everything, fails
    /// as a whole.
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

    fn put_attempt(
        &self,
        offer: &mut PutOffer,
        input: &Input,
        tally: &mut Tally,
    ) -> Result<Done, PutFailure> {
        if input.is_spent() {
            return Err(Input::spent().into());
        }
        let manifest = Arc::clone(&offer.walked.manifest);
        let wanted = wanted_chunk(&manifest, !matches!(input, Input::Nothing));
        let (agreed, grant, grant_json) = self.offer(Do::Put, offer, wanted)?;
        let one_chunk = agreed.server.chunk_size().map_err(Error::from)?;
        if one_chunk > wanted {
            return Err(Error::with_code(400, "the server raises OneChunk").into());
        }
        let table =
            Table::new(&manifest, one_chunk).map_err(|error| Error::with_code(413, error.to_string()))?;
        if let Input::Archive { contents, .. } = input
            && !grant.has(Capability::LongPaths)
            && !contents.long_paths().is_empty()
        {
            return Err(Error::with_code(415, TOO_LONG_A_PATH).into());
        }
        if let Input::Archive { contents, .. } = input
            && !grant.has(Capability::Links)
            && !contents.links_beyond_base().is_empty()
        {
            return Err(Error::with_code(
                415,
                format!("{TOO_NEW_A_LINK}; --links skip leaves all links out"),
            )
            .into());
        }
        offer.place = grant.place;
        let rtt = self.rtt();
        let config = SenderConfig {
            streams: self.options.streams,
            granted: grantable(grant.streams, one_chunk),
            cores: cores(),
            loss_tolerant: agreed.reader.connection().is_loss_tolerant(),
            rtt,
            checkpoint: grant.checkpoint,
            data_streams_from: data_streams_from(self.options.streams, rtt, manifest.len()),
            flying_max: flying_max(rtt, one_chunk),
            identity: grant.has(Capability::Identity),
            proof: grant.has(Capability::Proof),
            content: grant.has(Capability::Content),
            ..SenderConfig::default()
        };
        tally.congestion = agreed.reader.connection().congestion();
        tally.one_chunk = one_chunk.bytes();
        let mut machine =
            Sender::new(config, Arc::clone(&manifest), table, self.options.checksum, Instant::now());
        machine.set_transcript(Transcript::new(
            &agreed.client_json,
            &agreed.open_json,
            &agreed.server_json,
            &grant_json,
        ));
        let transmission = Transmission::new(
            machine,
            Arc::clone(&offer.tree),
            offer.identities.clone(),
            &grant,
            SendOptions {
                compress: self.compress()?,
                rate_max: self.options.bytes_per_second_max,
                keeps_rate: true,
            },
            Arc::clone(&self.observer),
            self.stop.clone(),
        );
        tally.kept = grant.keeps_archive;
        if let Some(read) = input.open()? {
            // Nobody joins this thread: a read of standard input cannot be called back.
            let transmission = Arc::clone(&transmission);
            // An archive takes its time in compressing.
            let packed = matches!(input, Input::Archive { .. });
            let feed =
                move || transmission.feed(read, |clocks| if packed { &clocks.cpu } else { &clocks.read });
            std::thread::spawn(feed);
        }
        let join = || self.join(&grant);
        let result = transmission.run(agreed.reader, &Opener::Connect(&join));
        tally.note_sent(&transmission, &manifest, &self.observer);
        if transmission.must_start_over() {
            return Err(PutFailure::StartOver);
        }
        for &index in &offer.changed {
            // It was brought by an earlier attempt, and may be of the version that was there then.
            if let Some(entry) = manifest.get(index)
                && transmission.machine().is_left_out(index)
            {
                tally.fail(entry.path.as_bytes(), 410, "the source changed while it was sent");
            }
        }
        let done = result?;
        if done.durability != grant.durability {
            return Err(Error::with_code(400, "the server did something else than it granted").into());
        }
        Ok(done)
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

    // ---- get ----

    /// Fetches. A failure of some files is not an error here but counted in the summary.
    pub fn get(&self, destination: Destination, options: GetOptions) -> Result<Summary, Error> {
        let start = Instant::now();
        let GetOptions { dry_run, keep_archive } = options;
        let request = Request { action: Action::Get, options: &self.options, dry_run, keep_archive };
        let unkept = request.check()?;
        let mut tally = Tally::new(&self.options, &Walked::default(), start);
        tally.note_unkept(unkept);
        if self.options.protocol == Protocol::FastDownloader {
            let done = fastdownloader::get(self, destination, dry_run, &mut tally);
            return tally.finish(done, &self.observer);
        }
        let archive = self.compress()?.archive();
        if archive.is_some() && options.keep_archive && !self.options.filter.is_empty() {
            return Err(Error::with_code(
                400,
                "an archive that is kept comes whole: nothing can be left out of it",
            ));
        }
        let place = match destination {
            Destination::Output(_) if archive.is_some() => {
                return Err(Error::with_code(400, "an archive cannot go to standard output"));
            }
            Destination::Output(to) => GetPlace::Output(Arc::new(OutputSink::new(to))),
            Destination::Path(path) => GetPlace::files(&path)?,
        };
        // What is in a folder goes into one, even if it is a single file.
        let contents = self.target.path.is_empty() || self.target.path.ends_with(b"/");
        let mut fixed = if contents { Place::Into } else { Place::Auto };
        tally.unpacks = archive.is_some() && !options.keep_archive;
        let done = self.persist(|number| {
            tally.attempts = number;
            self.get_once(&place, &mut fixed, options, &mut tally)
        });
        if let (Ok(done), Some(_), false) = (&done, archive, options.dry_run) {
            tally.note_unpacked(done);
        }
        tally.finish(done, &self.observer)
    }

    fn get_once(
        &self,
        place: &GetPlace,
        fixed: &mut Place,
        options: GetOptions,
        tally: &mut Tally,
    ) -> Result<Done, Error> {
        self.observer.set_phase(Phase::Connecting);
        let mut open = Open { dry: options.dry_run, ..self.open(Do::Get)? };
        // Of an archive that is unpacked, what would come is in it.
        let archive = open.compress.archive().filter(|_| !options.dry_run || options.keep_archive);
        if archive.is_none() && open.compress.archive().is_some() {
            open.compress = fastdp::Compress::None;
        }
        let mut agreed = self.agree(open, &Header::new(ChunkSize::COMMON, 0, 0, ""), None)?;
        let (grant, grant_json) = read_grant(&mut agreed.reader)?;
        self.keeps_its_word(&grant)?;
        let builder = ManifestBuilder::new(ENTRIES_MAX).with_long_paths(grant.has(Capability::LongPaths));
        let (manifest, mut left_out) = read_manifest(&mut agreed.reader, builder)?;
        let manifest = Arc::new(manifest);
        let filter = &self.options.filter;
        let is_wanted = |entry: &&LeftOutEntry| {
            RelPath::new(&entry.path).map_or(true, |path| filter.wants(path, entry.directory))
        };
        // A single file is there or not; of a folder, more may have been there.
        let is_single = manifest.len() == 1
            && manifest.iter().all(|(_, entry)| entry.kind != EntryKind::Directory)
            && !self.target.path.is_empty()
            && !self.target.path.ends_with(b"/");
        if !is_single && !grant.has(Capability::LeftOut) {
            tally.note_unconfirmed();
        }
        // Of a dry run it also tells what is there, but could not be read.
        let mut unreadable = Vec::new();
        left_out.entries.retain(|entry| {
            let found = RelPath::new(&entry.path).ok().and_then(|path| manifest.find(path));
            let Some((index, _)) = found.filter(|_| options.dry_run) else { return true };
            unreadable.push((index, entry.code, entry.reason.clone()));
            false
        });
        tally.leave_out(left_out.entries.iter().filter(is_wanted), left_out.unnamed);
        // What is in an archive is known when it has arrived.
        if archive.is_none() {
            for (path, why) in filter.missing(manifest.iter().map(|(_, entry)| entry.path)) {
                tally.fail(path, 404, &why);
            }
        }
        let one_chunk = agreed.server.chunk_size()?;
        if one_chunk > ChunkSize::COMMON {
            return Err(Error::with_code(400, "the server takes a larger OneChunk than was offered"));
        }
        let table =
            Table::new(&manifest, one_chunk).map_err(|error| Error::with_code(413, error.to_string()))?;
        if agreed.server.full_size != manifest.bytes() || agreed.server.full_chunk != u64::from(table.count())
        {
            return Err(Error::with_code(400, "the server's header contradicts its manifest"));
        }
        let files = manifest.iter().filter(|(_, entry)| entry.kind != EntryKind::Directory).count() as u64;
        self.observer.files_total.store(files, Ordering::Relaxed);
        tally.congestion = agreed.reader.connection().congestion();
        tally.one_chunk = one_chunk.bytes();
        let connection = Arc::clone(agreed.reader.connection());
        let inquiry = Inquiry::new(&mut agreed.reader, &grant, &manifest);
        if options.dry_run {
            // What comes in an archive is compared by size and time alone, unless contents are to be compared.
            let packed = self.compress()?.archive().is_some() && !self.options.check;
            let inquiry = if packed { inquiry.without_contents() } else { inquiry };
            let preview = with_alive(&connection, || match place {
                GetPlace::Output(_) => expect_one_file(&manifest).map(|()| None),
                GetPlace::Files { root, path, .. } => {
                    let mut placement = Placement::resolve(root, path, *fixed, &manifest)?;
                    if let Some(kind) = archive {
                        placement = placement.ending_in(kind.extension());
                    }
                    let receive = self.receive_options(&grant, None);
                    let machine = Receiver::new(Arc::clone(&manifest), table, self.options.checksum);
                    Reception::preview(machine, root, &placement, &receive, &self.stop, inquiry).map(Some)
                }
            });
            connection.close();
            let (mut needed, mut done) = match preview.map_err(own_refusal)? {
                Some(preview) => {
                    tally.note_skipped(preview.skipped, preview.left, 0, 0);
                    (preview.needed, preview.done)
                }
                None => ((0..manifest.len()).map(EntryIndex).collect(), Done::default()),
            };
            self.would_fail(unreadable.into_iter(), &manifest, &mut needed, &mut done)?;
            tally.note_dry(&manifest, |index| needed.contains(&index));
            return Ok(done);
        }
        let place = &place.with_parents()?;
        let prepared = with_alive(&connection, || match place {
            GetPlace::Output(sink) => Reception::to_output(
                Arc::clone(&manifest),
                table,
                self.options.checksum,
                Arc::clone(sink),
                Arc::clone(&self.observer),
                self.stop.clone(),
                inquiry,
            ),
            GetPlace::Files { root, path, .. } => {
                let mut placement = Placement::resolve(root, path, *fixed, &manifest)?;
                *fixed = placement.kind();
                if archive.is_some() {
                    expect_archive(&manifest)?;
                }
                if let (Some(kind), true) = (archive, options.keep_archive) {
                    placement = placement.ending_in(kind.extension());
                }
                let unpack = archive.filter(|_| !options.keep_archive);
                let receive = self.receive_options(&grant, unpack.map(|kind| Unpack::new(kind, ENTRIES_MAX)));
                let (observer, stop) = (Arc::clone(&self.observer), self.stop.clone());
                let (manifest, root) = (Arc::clone(&manifest), Arc::clone(root));
                let checksum = self.options.checksum;
                Reception::prepare(
                    manifest,
                    table,
                    checksum,
                    root,
                    placement,
                    receive,
                    observer,
                    stop,
                    &mut |_| Ok(Busy::Unknown),
                    Some(inquiry),
                )
            }
        });
        let Prepared { reception, answer, skipped, left, bytes_skipped, bytes_resumed } = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                let _ = connection.send_control(&Control::Refuse(error.refusal()));
                connection.close();
                return Err(own_refusal(error));
            }
        };
        reception.set_transcript(Transcript::new(
            &agreed.client_json,
            &agreed.open_json,
            &agreed.server_json,
            &grant_json,
        ));
        if let Some(rate) = self.options.bytes_per_second_max {
            reception.limit(rate);
        }
        tally.note_skipped(skipped, left, bytes_skipped, bytes_resumed);
        self.observer.bytes_total.store(reception.need().bytes, Ordering::Relaxed);
        connection.send_controls(&answer)?;
        let single = matches!(place, GetPlace::Output(_));
        let opening = AtomicUsize::new(0);
        let open_one = || {
            // In order is in order only on one stream.
            if single {
                return;
            }
            let (reception, grant) = (&reception, &grant);
            let joined = self.join(grant);
            match joined {
                Ok(joined) => {
                    if let Err(joined) = reception.joins.push(joined) {
                        joined.connection().close();
                    }
                }
                Err(error) => tracing::debug!(%error, "a data stream could not be opened"),
            }
        };
        let result = std::thread::scope(|scope| {
            // A server may ask for what it granted, and for as many again to replace them; then it has to wait.
            let opened_max = 2 * usize::from(grant.streams) + 2;
            let more = || {
                if opening.fetch_add(1, Ordering::SeqCst) >= opened_max {
                    opening.fetch_sub(1, Ordering::SeqCst);
                    return;
                }
                scope.spawn(|| {
                    open_one();
                    opening.fetch_sub(1, Ordering::SeqCst);
                });
            };
            reception.run(agreed.reader, &more)
        });
        tally.note_received(&reception, &manifest, &self.options.filter);
        result
    }

    /// What this end, as the receiver, decides by itself.
    fn receive_options(&self, grant: &Grant, unpack: Option<Unpack>) -> ReceiveOptions {
        let options = &self.options;
        ReceiveOptions {
            existing: options.existing,
            advice: "--existing overwrite replaces, rename keeps both, skip leaves what is there",
            check: options.check,
            durability: options.durability,
            times: options.times,
            mode: options.mode,
            // Without identities nobody knows whether what is held is of the same file.
            resume: options.resume && grant.has(Capability::Identity),
            size_max: None,
            free_min: 0,
            filter: options.filter.clone(),
            unpack,
        }
    }

    // ---- list ----

    fn check_list(&self) -> Result<(), Error> {
        let options = &self.options;
        let request = Request { action: Action::List, options, dry_run: false, keep_archive: false };
        request.check().map(|_| ())
    }

    /// Lists what is in a folder, or the file that the path names.
    ///
    /// # Errors
    ///
    /// The server refuses, or is lost.
    pub fn list(&self) -> Result<Listing, Error> {
        self.check_list()?;
        self.persist(|_| {
            let mut agreed =
                self.agree(self.open(Do::List)?, &Header::new(ChunkSize::COMMON, 0, 0, ""), None)?;
            let (grant, _) = read_grant(&mut agreed.reader)?;
            let (manifest, left_out) =
                read_manifest(&mut agreed.reader, ManifestBuilder::for_list(ENTRIES_MAX))?;
            agreed.reader.connection().close();
            let entries = manifest.iter().map(|(_, entry)| Listed::new(&entry)).collect();
            let failed = left_out.entries.into_iter().filter(|entry| !entry.policy);
            let failed =
                failed.map(|LeftOutEntry { path, code, reason, .. }| Failed { path, code, message: reason });
            let failed: Vec<_> = failed.collect();
            let failed_count = left_out.unnamed.saturating_add(failed.len() as u64);
            Ok(Listing { entries, failed, failed_count, confirmed: grant.has(Capability::LeftOut) })
        })
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

/// The round trip of a connection that took `elapsed` to be made. Between two processes of one machine it is short, however
/// long this one waited for a processor meanwhile.
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

/// An error of this end as the receiver, which refuses by itself, and names paths then.
fn own_refusal(error: Error) -> Error {
    match error {
        Error::Refused(refuse) if !refuse.paths.is_empty() => {
            let paths: Vec<_> = refuse.paths.iter().map(|path| crate::shown(path)).collect();
            Error::with_code(refuse.code, format!("{}: {}", refuse.message, paths.join(", ")))
        }
        other => other,
    }
}

/// Reads a manifest, and what the server has left out of it.
fn read_manifest(
    reader: &mut FrameReader,
    mut builder: ManifestBuilder,
) -> Result<(Manifest, LeftOut), Error> {
    let mut left_out = LeftOut::default();
    loop {
        match reader.next_control()? {
            Control::Manifest(part) => {
                builder.handle_part(&part).map_err(|error| Error::with_code(400, error.to_string()))?;
            }
            Control::ManifestEnd(end) => {
                let manifest = builder.handle_end(&end);
                return manifest
                    .map(|manifest| (manifest, left_out))
                    .map_err(|error| Error::with_code(400, error.to_string()));
            }
            Control::LeftOut(part) => {
                left_out.unnamed = left_out.unnamed.saturating_add(part.unnamed);
                left_out.entries.extend(part.entries);
                if left_out.entries.len() > LEFT_OUT_NAMED_MAX {
                    return Err(Error::with_code(413, "more entries left out than may be named"));
                }
            }
            Control::Alive => {}
            Control::Refuse(refuse) => return Err(Error::Refused(refuse)),
            _ => return Err(Error::with_code(400, "something else where the manifest must be")),
        }
    }
}
