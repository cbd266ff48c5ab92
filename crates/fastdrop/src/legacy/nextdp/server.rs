//! NextDP: puts files together from requests that carry a chunk each.

use crate::admission::count::Counted;
use crate::context::server::ServerContext;
use crate::error::Error;
use crate::gate::action::Action;
use crate::gate::principal::Principal;
use crate::legacy::upload::LegacyUpload;
use crate::lock::lock;
use crate::storage::io::read_exact_at;
use crate::storage::io::write_all_at;
use crate::storage::present::Announced;
use crate::thread::run_blocking;
use fastdrop_proto::fastdp::Code;
use fastdrop_proto::nextdp::{Assembly, CHUNK_MAX, ChunkRequest, Refusal, Verdict};
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::{Body as _, Incoming as Body};
use std::collections::BTreeMap;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// How long a body may stand still.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// A transfer to which nothing was added for so long is given up.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Transfers of which it is remembered for as long how they ended.
const ENDED_MAX: usize = 1024;
/// How often that is looked at.
pub(crate) const EXPIRE_EVERY: Duration = Duration::from_secs(5);
/// Chunks that are in memory at once, of all transfers.
const CHUNKS_AT_ONCE: usize = 16;
/// While others wait for its place in memory, a body has to bring so
/// many bytes a second, after this time.
const CROWDED_RATE: f64 = 64.0 * 1024.0;
const CROWDED_TIMEOUT: Duration = Duration::from_secs(2);

/// Room for chunks in memory, and who waits for it.
#[derive(Debug)]
pub(crate) struct Room {
    places: Semaphore,
    waiting: AtomicUsize,
}

impl Default for Room {
    fn default() -> Self {
        Self { places: Semaphore::new(CHUNKS_AT_ONCE), waiting: AtomicUsize::new(0) }
    }
}

impl Room {
    async fn place(&self) -> Result<SemaphorePermit<'_>, Refusal> {
        let _waiting = Waiting::new(&self.waiting);
        self.places.acquire().await.map_err(|_| Refusal::new(503, "stopping"))
    }

    fn is_crowded(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}

/// One who waits, until this is dropped: a request that is given up waits no longer.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// By what the chunks of one transfer are known.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TransferKey {
    address: IpAddr,
    id: Option<String>,
}

/// The transfers under way.
pub(crate) type Transfers = Mutex<BTreeMap<TransferKey, Arc<Transfer>>>;

/// A file that arrives in chunks.
pub(crate) struct Transfer {
    /// Never held across a call that may take long: the asynchronous thread and the expiry ask it.
    glance: Mutex<Glance>,
    /// Held while chunks are put in order, also across writing.
    inner: Mutex<Inner>,
}

/// What can be said of a transfer at once.
struct Glance {
    name: String,
    /// It has a place, and a second chunk 0 must have its name.
    placed: bool,
    touched: Instant,
    /// Chunks that are being taken.
    at_work: u32,
}

/// A chunk is being taken as long as this is there.
struct AtWork<'a>(&'a Transfer);

impl<'a> AtWork<'a> {
    fn new(transfer: &'a Transfer) -> Self {
        lock(&transfer.glance).at_work += 1;
        Self(transfer)
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        let mut glance = lock(&self.0.glance);
        glance.at_work -= 1;
        glance.touched = Instant::now();
    }
}

struct Inner {
    assembly: Assembly,
    placed: Option<LegacyUpload>,
    name: String,
    /// What came before chunk 0.
    spool: Spool,
    /// Chunks that are being written.
    writing: u32,
    /// Why it cannot be completed any more.
    failed: Option<Refusal>,
}

#[derive(Default)]
struct Spool {
    file: Option<OwnedFd>,
    end: u64,
    /// Offset and size, by number.
    chunks: BTreeMap<u32, (u64, usize)>,
}

/// Transfers that have ended, and how: for senders that did not hear of it.
#[derive(Debug, Default)]
pub(crate) struct Ended(Mutex<BTreeMap<TransferKey, Ending>>);

/// How, and when, a transfer ended.
#[derive(Debug)]
struct Ending {
    at: Instant,
    result: Result<(), Refusal>,
}

impl Ended {
    /// Notes how a transfer ended, if it has an id: without one the
    /// next transfer would be taken for it.
    fn note(&self, key: &TransferKey, result: Result<(), Refusal>) {
        if key.id.is_none() {
            return;
        }
        let mut ended = lock(&self.0);
        if ended.len() >= ENDED_MAX {
            let oldest = ended.iter().min_by_key(|(_, ending)| ending.at).map(|(key, _)| key.clone());
            oldest.map(|oldest| ended.remove(&oldest));
        }
        ended.insert(key.clone(), Ending { at: Instant::now(), result });
    }

    /// The end of the transfer to which a chunk belongs that has
    /// come again. Chunk 0 begins a new one.
    fn find(&self, key: &TransferKey, chunk: &ChunkRequest) -> Option<Result<(), Refusal>> {
        let mut ended = lock(&self.0);
        if chunk.first.is_some() {
            ended.remove(key);
        }
        ended.get(key).map(|ending| ending.result.clone())
    }

    fn expire(&self) {
        lock(&self.0).retain(|_, ending| ending.at.elapsed() < IDLE_MAX);
    }
}

/// The server of NextDP.
pub(crate) struct Server {
    context: Arc<ServerContext>,
    transfers: Transfers,
    ended: Ended,
    /// Room for chunks in memory.
    room: Room,
    /// Threads that write.
    writing: Arc<AtomicUsize>,
}

impl Server {
    /// Creates a server without transfers.
    pub(crate) fn new(context: Arc<ServerContext>) -> Self {
        Self {
            context,
            transfers: Mutex::default(),
            ended: Ended::default(),
            room: Room::default(),
            writing: Arc::default(),
        }
    }

    /// The chunks that are being written.
    pub(crate) fn writing(&self) -> usize {
        self.writing.load(Ordering::SeqCst)
    }

    /// Gives up what nobody adds to any more.
    pub(crate) fn expire(&self) {
        self.ended.expire();
        let mut gone = Vec::new();
        lock(&self.transfers).retain(|key, transfer| {
            let keep = {
                let glance = lock(&transfer.glance);
                glance.at_work > 0 || glance.touched.elapsed() < IDLE_MAX
            };
            if !keep {
                gone.push((key.address, Arc::clone(transfer)));
            }
            keep
        });
        for (address, transfer) in gone {
            let name = crate::shown(lock(&transfer.glance).name.as_bytes());
            tracing::warn!(%address, protocol = "nextdp", name, "given up: nothing came for a minute");
        }
    }

    /// Gives up all transfers: nobody brings the rest of them any more.
    pub(crate) fn end(&self) {
        let unfinished = std::mem::take(&mut *lock(&self.transfers));
        drop(unfinished);
    }
}

/// Receives one chunk. True if the file is complete with it, and has its name.
pub(crate) async fn receive(
    server: &Arc<Server>,
    peer: SocketAddr,
    request: Request<Body>,
) -> Result<bool, Refusal> {
    let (gate, who) = (&server.context.gate, Principal::of(peer));
    gate.allows(&who, Action::Write(gate.existing())).map_err(refusal)?;
    let chunk = {
        let headers = request.headers();
        ChunkRequest::parse(request.uri().query(), |name| {
            let mut values = headers.get_all(name).iter();
            match (values.next(), values.next()) {
                (None, _) => Ok(None),
                (Some(value), None) => {
                    let text = std::str::from_utf8(value.as_bytes());
                    text.map(Some).map_err(|_| Refusal::new(400, format!("{name} is not UTF-8")))
                }
                _ => Err(Refusal::new(400, format!("{name} twice"))),
            }
        })?
    };
    let key = TransferKey { address: peer.ip(), id: chunk.transfer.clone() };
    refuse_second(server, &key, &chunk)?;
    let place = server.room.place().await?;
    let body = read_body(request.into_body(), &server.room).await?;
    let writing = Arc::clone(server);
    let counted = Counted::new(&server.writing);
    let written = run_blocking("write", move || {
        let (server, _counted) = (writing, counted);
        let bytes = if server.context.options.nextdp_gzip { gunzip(&body)? } else { body };
        take(&server, key, &chunk, &bytes, peer)
    });
    let written = written.await.map_err(|error| match error.kind() {
        std::io::ErrorKind::Other => Refusal::new(500, "writing failed"),
        _ => Refusal::new(503, format!("no thread to be had: {error}")),
    })?;
    drop(place);
    written
}

/// Another file of the same address is refused before its body is read.
fn refuse_second(server: &Server, key: &TransferKey, chunk: &ChunkRequest) -> Result<(), Refusal> {
    let Some((name, _)) = &chunk.first else { return Ok(()) };
    let transfer = lock(&server.transfers).get(key).cloned();
    let Some(transfer) = transfer else { return Ok(()) };
    let glance = lock(&transfer.glance);
    if glance.placed && glance.name != *name {
        return Err(Refusal::new(409, "another transfer from this address is under way"));
    }
    Ok(())
}

async fn read_body(mut body: Body, room: &Room) -> Result<Vec<u8>, Refusal> {
    let too_large = || Refusal::new(413, "a chunk of more than 16 MiB");
    let expected = body.size_hint().exact();
    if expected.is_some_and(|bytes| bytes > CHUNK_MAX) {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(expected.unwrap_or(0) as usize);
    let began = Instant::now();
    let mut moved = began;
    loop {
        let frame = timeout(CROWDED_TIMEOUT / 4, body.frame()).await;
        let took = began.elapsed();
        if took > CROWDED_TIMEOUT
            && room.is_crowded()
            && (bytes.len() as f64) < CROWDED_RATE * took.as_secs_f64()
        {
            return Err(Refusal::new(503, "the chunk comes too slowly while others wait"));
        }
        let Ok(frame) = frame else {
            if moved.elapsed() > BODY_TIMEOUT {
                return Err(Refusal::new(408, "the chunk did not come in time"));
            }
            continue;
        };
        moved = Instant::now();
        let Some(frame) = frame else { return Ok(bytes) };
        let frame = frame.map_err(|_| Refusal::new(400, "the chunk ended too early"))?;
        if let Ok(data) = frame.into_data() {
            if bytes.len() + data.len() > CHUNK_MAX as usize {
                return Err(too_large());
            }
            bytes.extend_from_slice(&data);
        }
    }
}

/// Decodes exactly one gzip member.
fn gunzip(bytes: &[u8]) -> Result<Vec<u8>, Refusal> {
    let bad = |why: &str| Refusal::new(400, format!("a chunk that is no gzip member: {why}"));
    let mut decoder = flate2::bufread::GzDecoder::new(bytes);
    let mut plain = Vec::new();
    (&mut decoder).take(CHUNK_MAX + 1).read_to_end(&mut plain).map_err(|error| bad(&error.to_string()))?;
    if plain.len() as u64 > CHUNK_MAX {
        return Err(Refusal::new(413, "a chunk that decodes to more than 16 MiB"));
    }
    if !decoder.into_inner().is_empty() {
        return Err(bad("bytes behind it"));
    }
    Ok(plain)
}

/// Puts a chunk where it belongs; with the last one, the file gets its name. Then it is true.
fn take(
    server: &Arc<Server>,
    key: TransferKey,
    chunk: &ChunkRequest,
    bytes: &[u8],
    peer: SocketAddr,
) -> Result<bool, Refusal> {
    if let Some(ended) = server.ended.find(&key, chunk) {
        return ended.map(|()| true);
    }
    let transfer = {
        let mut transfers = lock(&server.transfers);
        if !transfers.contains_key(&key) && transfers.len() >= server.context.options.transfers_max {
            return Err(Refusal::new(503, "too many transfers at once"));
        }
        let fresh = || Arc::new(Transfer::new());
        Arc::clone(transfers.entry(key.clone()).or_insert_with(fresh))
    };
    let _at_work = AtWork::new(&transfer);
    let result = transfer.take(server, &Principal::of(peer), chunk, bytes);
    let result = result.and_then(|complete| {
        if !complete {
            return Ok(false);
        }
        lock(&server.transfers).retain(|_, other| !Arc::ptr_eq(other, &transfer));
        let mut inner = lock(&transfer.inner);
        let (path, size) = (crate::shown(inner.name.as_bytes()), inner.assembly.size());
        let placed = inner.placed.take();
        let committed = placed.map_or(Ok(()), LegacyUpload::commit).map_err(refusal);
        server.ended.note(&key, committed.clone());
        committed?;
        tracing::info!(%peer, protocol = "nextdp", path, bytes = size, "received");
        Ok(true)
    });
    if result.is_err() {
        // A file of which a chunk is wrong is not worth the others,
        // unless the chunk was another file's.
        let failed = lock(&transfer.inner).failed.clone();
        if let Some(failed) = failed {
            lock(&transfer.glance).placed = false;
            server.ended.note(&key, Err(failed));
            lock(&server.transfers).retain(|_, other| !Arc::ptr_eq(other, &transfer));
        }
    }
    result
}

impl Transfer {
    fn new() -> Self {
        let glance = Glance { name: String::new(), placed: false, touched: Instant::now(), at_work: 0 };
        let inner = Inner {
            assembly: Assembly::default(),
            placed: None,
            name: String::new(),
            spool: Spool::default(),
            writing: 0,
            failed: None,
        };
        Self { glance: Mutex::new(glance), inner: Mutex::new(inner) }
    }

    /// True for the one call that completes the file.
    fn take(
        &self,
        server: &Arc<Server>,
        who: &Principal,
        chunk: &ChunkRequest,
        bytes: &[u8],
    ) -> Result<bool, Refusal> {
        let mut this = lock(&self.inner);
        if let Some(failed) = &this.failed {
            return Err(failed.clone());
        }
        if let Some((name, chunks)) = &chunk.first {
            match this.placed {
                Some(_) if this.name != *name => {
                    return Err(Refusal::new(409, "another transfer from this address is under way"));
                }
                Some(_) => {}
                None => {
                    // How long the last chunk is, is known only if this one is the last.
                    let least = bytes.len() as u64 * u64::from(chunks.saturating_sub(1).max(1));
                    let most = bytes.len() as u64 * u64::from(*chunks);
                    let announced = Announced::within(least..=most.max(least));
                    let placed = LegacyUpload::create(&server.context, who, name.as_bytes(), &announced);
                    this.placed = Some(placed.map_err(refusal).map_err(|refusal| this.fail(refusal))?);
                    this.name = name.clone();
                    let mut glance = lock(&self.glance);
                    (glance.name, glance.placed) = (name.clone(), true);
                }
            }
        }
        let chunks = chunk.first.as_ref().map(|(_, chunks)| *chunks);
        let verdict = this.assembly.handle_chunk(chunk.number, chunks, bytes.len() as u64);
        let verdict =
            verdict.map_err(|refusal| if refusal.status == 409 { refusal } else { this.fail(refusal) })?;
        match verdict {
            Verdict::Known => return Ok(false),
            Verdict::Wait => {
                this.spool.write(chunk.number, bytes, server).map_err(|refusal| this.fail(refusal))?;
                return Ok(false);
            }
            Verdict::Take(at) => {
                this.check_end(server, at + bytes.len() as u64)?;
                let file = this.file()?;
                this.writing += 1;
                drop(this);
                // Outside of the lock: other chunks are written meanwhile.
                let written = write_all_at(file.as_fd(), bytes, at);
                this = lock(&self.inner);
                this.writing -= 1;
                written
                    .map_err(|errno| refusal(Error::system("writing", errno)))
                    .map_err(|refusal| this.fail(refusal))?;
            }
        }
        while let Some((number, verdict)) =
            this.assembly.poll_early().map_err(|refusal| this.fail(refusal))?
        {
            let early = this.spool.read(number).map_err(|refusal| this.fail(refusal))?;
            if let Verdict::Take(at) = verdict {
                this.check_end(server, at + early.len() as u64)?;
                let written = write_all_at(this.file()?.as_fd(), &early, at);
                written
                    .map_err(|errno| refusal(Error::system("writing", errno)))
                    .map_err(|refusal| this.fail(refusal))?;
            }
        }
        Ok(this.assembly.is_complete() && this.writing == 0 && this.placed.is_some())
    }
}

impl Inner {
    /// Refuses a chunk that ends at `end`, beyond what a file may have: the
    /// length of the last one is known only now.
    fn check_end(&mut self, server: &Server, end: u64) -> Result<(), Refusal> {
        if server.context.options.size_max.is_some_and(|max| end > max) {
            return Err(self.fail(Refusal::new(413, "more bytes than one transfer may have here")));
        }
        Ok(())
    }

    fn file(&self) -> Result<OwnedFd, Refusal> {
        let placed = self.placed.as_ref().ok_or_else(|| Refusal::new(500, "no file"))?;
        let incoming = placed.incoming().map_err(refusal)?;
        incoming.file().try_clone_to_owned().map_err(|_| Refusal::new(503, "no descriptor left"))
    }

    /// Gives the file up; the first reason is the one that counts.
    fn fail(&mut self, refusal: Refusal) -> Refusal {
        self.placed = None;
        self.failed.get_or_insert(refusal).clone()
    }
}

impl Spool {
    fn write(&mut self, number: u32, bytes: &[u8], server: &Server) -> Result<(), Refusal> {
        let failed = |_| Refusal::new(507, "no room for chunks that come before chunk 0");
        if self.file.is_none() {
            // Without a name: nobody sees it, and it goes by itself.
            self.file = Some(tempfile::tempfile_in(&server.context.options.folder).map_err(failed)?.into());
        }
        let Some(file) = &self.file else { return Err(Refusal::new(500, "no spool file")) };
        write_all_at(file.as_fd(), bytes, self.end)
            .map_err(|errno| refusal(Error::system("spooling", errno)))?;
        self.chunks.insert(number, (self.end, bytes.len()));
        self.end += bytes.len() as u64;
        Ok(())
    }

    fn read(&mut self, number: u32) -> Result<Vec<u8>, Refusal> {
        let lost = || Refusal::new(500, "a spooled chunk is gone");
        let (offset, size) = self.chunks.remove(&number).ok_or_else(lost)?;
        let mut bytes = vec![0; size];
        read_exact_at(self.file.as_ref().ok_or_else(lost)?, &mut bytes, offset).map_err(|_| lost())?;
        Ok(bytes)
    }
}

fn refusal(error: Error) -> Refusal {
    let status = match error.code() {
        code @ (Code::BadRequest
        | Code::Forbidden
        | Code::NotFound
        | Code::Conflict
        | Code::OverLimit
        | Code::Unavailable
        | Code::NoSpace) => code,
        _ => Code::Internal,
    };
    Refusal::new(status.number(), error.to_string())
}
