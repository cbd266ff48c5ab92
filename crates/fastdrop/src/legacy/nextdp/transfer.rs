//! One file that arrives in chunks.

use crate::context::server::ServerContext;
use crate::error::Error;
use crate::gate::principal::Principal;
use crate::legacy::upload::LegacyUpload;
use crate::lock::lock;
use crate::storage::io::{read_exact_at, write_all_at};
use crate::storage::present::Announced;
use fastdrop_proto::fastdp::Code;
use fastdrop_proto::nextdp::{Activity, Assembly, AssemblyError, ChunkPlace, ChunkRequest, Refusal, Settled};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Bytes that are compared at once.
const COMPARE_STEP: usize = 64 << 10;

/// A file that arrives in chunks.
pub(super) struct Transfer {
    /// Never held across a call that may take long: the asynchronous threads ask it. Locked after
    /// `inner`, where both are.
    glance: Mutex<Glance>,
    /// Notified whenever `glance` changes.
    changed: Condvar,
    /// Held while chunks are put in order, also across spooling.
    inner: Mutex<Inner>,
    /// Notified whenever a chunk has been written, or compared.
    written: Condvar,
}

/// What can be said of a transfer at once.
pub(super) struct Glance {
    pub(super) state: State,
    pub(super) activity: Activity,
    /// A chunk has come as a whole.
    pub(super) is_used: bool,
    /// A chunk came again.
    repeated: bool,
}

/// State of a transfer.
pub(super) enum State {
    /// Chunk 0 has not come.
    Waiting,
    /// It has a place.
    Placed { name: String, chunks: u32 },
    /// It cannot be completed any more.
    Failed(Failure),
    /// Every chunk is here, and the file is being synced and named.
    Committing,
    /// It has its name, or could not get it.
    Ended(Result<(), Refusal>),
}

/// Reason for which a transfer cannot be completed.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) refusal: Refusal,
    /// Chunks of several senders may still be coming.
    pub(super) is_contradiction: bool,
}

impl Failure {
    /// A failure for which one sender's chunks, or this end, are the reason.
    pub(super) fn new(refusal: Refusal) -> Self {
        Self { refusal, is_contradiction: false }
    }

    /// A failure by chunks that cannot be of the same file.
    pub(super) fn contradiction(what: impl Into<String>) -> Self {
        AssemblyError::Contradiction(what.into()).into()
    }
}

impl From<AssemblyError> for Failure {
    fn from(error: AssemblyError) -> Self {
        let is_contradiction = matches!(error, AssemblyError::Contradiction(_));
        Self { refusal: error.into(), is_contradiction }
    }
}

impl Glance {
    /// Fails the transfer, unless it is beyond that. Returns the reason that counts: the first one.
    pub(super) fn fail(&mut self, failure: Failure) -> Refusal {
        match &self.state {
            State::Waiting | State::Placed { .. } => {
                let refusal = failure.refusal.clone();
                self.is_used = true;
                self.state = State::Failed(failure);
                refusal
            }
            State::Failed(first) => first.refusal.clone(),
            State::Committing | State::Ended(_) => failure.refusal,
        }
    }
}

struct Inner {
    assembly: Assembly,
    upload: Option<LegacyUpload>,
    name: String,
    /// What came before chunk 0.
    spool: Spool,
    /// Chunks that are being written.
    writing: BTreeSet<u32>,
    /// Chunks that are being compared with what is held.
    comparing: u32,
    connections: Connections,
    /// Somebody has the task to name it.
    is_complete: bool,
}

/// Connections that have brought chunks.
enum Connections {
    None,
    One(SocketAddr),
    Several,
}

impl Connections {
    fn note(&mut self, connection: SocketAddr) {
        *self = match *self {
            Connections::None => Connections::One(connection),
            Connections::One(other) if other == connection => return,
            _ => Connections::Several,
        };
    }
}

#[derive(Default)]
struct Spool {
    file: Option<OwnedFd>,
    end: u64,
    /// Offset and size, by number.
    chunks: BTreeMap<u32, (u64, usize)>,
}

/// Effect of a chunk.
pub(super) enum Taken {
    /// It is held.
    Stored,
    /// It is held, and the file is complete with it; who is told so has to [`Transfer::commit`].
    /// With `settle`, chunks of another sender may be among it.
    Complete { settle: bool },
    /// The file had its name before.
    Again,
}

impl Transfer {
    pub(super) fn new(now: Instant) -> Self {
        let activity = Activity::new(now);
        let glance = Glance { state: State::Waiting, activity, is_used: false, repeated: false };
        let inner = Inner {
            assembly: Assembly::default(),
            upload: None,
            name: String::new(),
            spool: Spool::default(),
            writing: BTreeSet::new(),
            comparing: 0,
            connections: Connections::None,
            is_complete: false,
        };
        Self {
            glance: Mutex::new(glance),
            changed: Condvar::new(),
            inner: Mutex::new(inner),
            written: Condvar::new(),
        }
    }

    pub(super) fn glance(&self) -> MutexGuard<'_, Glance> {
        lock(&self.glance)
    }

    /// Tells those who wait that `glance` has changed.
    pub(super) fn notify(&self) {
        self.changed.notify_all();
    }

    /// The reason for which it has failed.
    pub(super) fn failure(&self) -> Option<Failure> {
        match &self.glance().state {
            State::Failed(failure) => Some(failure.clone()),
            _ => None,
        }
    }

    /// Fails it, and removes what it has brought.
    pub(super) fn fail(&self, failure: Failure) -> Refusal {
        let refusal = self.glance().fail(failure);
        self.notify();
        self.discard();
        refusal
    }

    /// Removes what a failed transfer has brought.
    pub(super) fn discard(&self) {
        let mut inner = lock(&self.inner);
        self.discard_inner(&mut inner);
    }

    fn discard_inner(&self, inner: &mut Inner) {
        inner.upload = None;
        inner.spool = Spool::default();
        self.written.notify_all();
    }

    fn fail_inner(&self, inner: &mut Inner, failure: impl Into<Failure>) -> Refusal {
        let refusal = self.glance().fail(failure.into());
        self.notify();
        self.discard_inner(inner);
        refusal
    }

    /// Puts a chunk where it belongs.
    ///
    /// # Errors
    ///
    /// The transfer has failed, perhaps by this chunk.
    pub(super) fn take(
        &self,
        context: &Arc<ServerContext>,
        peer: SocketAddr,
        chunk: &ChunkRequest,
        bytes: &[u8],
    ) -> Result<Taken, Refusal> {
        let mut inner = lock(&self.inner);
        if let Some(ended) = self.begin_chunk()? {
            drop(inner);
            return ended.map(|()| Taken::Again);
        }
        inner.connections.note(peer);
        if let Some((name, chunks)) = &chunk.first {
            self.place(&mut inner, context, peer, name, *chunks, bytes.len() as u64)?;
        }
        let chunks = chunk.first.as_ref().map(|(_, chunks)| *chunks);
        let place = inner.assembly.handle_chunk(chunk.number, chunks, bytes.len() as u64);
        let place = place.map_err(|error| self.fail_inner(&mut inner, error))?;
        self.glance().repeated |= matches!(place, ChunkPlace::Held(_) | ChunkPlace::HeldEarly);
        let mut inner = self.put(inner, context, chunk.number, bytes, place)?;
        while let Some((number, place)) =
            inner.assembly.poll_early().map_err(|error| self.fail_inner(&mut inner, error))?
        {
            let early = inner.spool.read(number);
            let early = early.map_err(|error| self.fail_inner(&mut inner, Failure::new(error)))?;
            inner.spool.chunks.remove(&number);
            inner = self.put(inner, context, number, &early, place)?;
        }
        if let Some(failed) = self.failure() {
            return Err(failed.refusal);
        }
        let is_whole = inner.assembly.is_complete() && inner.writing.is_empty() && inner.comparing == 0;
        if !is_whole || inner.is_complete {
            return Ok(Taken::Stored);
        }
        inner.is_complete = true;
        // One request, and one connection, are one sender's.
        let is_ones = chunks == Some(1) || !matches!(inner.connections, Connections::Several);
        Ok(Taken::Complete { settle: !is_ones && chunk.transfer.is_none() })
    }

    /// Notes that a chunk has come as a whole. Waits for the end of a transfer that is being
    /// named, and returns it.
    fn begin_chunk(&self) -> Result<Option<Result<(), Refusal>>, Refusal> {
        let mut glance = self.glance();
        glance.is_used = true;
        loop {
            match &glance.state {
                State::Waiting | State::Placed { .. } => return Ok(None),
                State::Failed(failure) => return Err(failure.refusal.clone()),
                State::Ended(ended) => return Ok(Some(ended.clone())),
                State::Committing => glance = wait(&self.changed, glance),
            }
        }
    }

    /// Finds a place for the file that chunk 0 names.
    fn place(
        &self,
        inner: &mut Inner,
        context: &Arc<ServerContext>,
        peer: SocketAddr,
        name: &str,
        chunks: u32,
        size: u64,
    ) -> Result<(), Refusal> {
        if inner.upload.is_some() && inner.name == name {
            return Ok(());
        }
        if inner.upload.is_some() {
            let failure = Failure::contradiction("a second chunk 0, with another name");
            return Err(self.fail_inner(inner, failure));
        }
        // How long the last chunk is, is known only if this one is the last.
        let least = size * u64::from(chunks.saturating_sub(1).max(1));
        let announced = Announced::within(least..=least.max(size * u64::from(chunks)));
        match LegacyUpload::create(context, &Principal::of(peer), name.as_bytes(), &announced) {
            Ok(upload) => inner.upload = Some(upload),
            Err(error) => return Err(self.fail_inner(inner, Failure::new(refusal(error)))),
        }
        inner.name = name.to_owned();
        let mut glance = self.glance();
        if matches!(glance.state, State::Waiting) {
            glance.state = State::Placed { name: name.to_owned(), chunks };
        }
        Ok(())
    }

    /// Writes, spools or compares a chunk.
    fn put<'a>(
        &'a self,
        mut inner: MutexGuard<'a, Inner>,
        context: &ServerContext,
        number: u32,
        bytes: &[u8],
        place: ChunkPlace,
    ) -> Result<MutexGuard<'a, Inner>, Refusal> {
        let is_same = match place {
            ChunkPlace::Early => inner.spool.write(number, bytes, context).map(|()| true),
            ChunkPlace::HeldEarly => inner.spool.read(number).map(|held| held == bytes),
            ChunkPlace::New(at) => match inner.check_end(context, at + bytes.len() as u64) {
                Ok(file) => {
                    inner.writing.insert(number);
                    drop(inner);
                    // Outside of the lock: other chunks are written meanwhile.
                    let written = write_all_at(file.as_fd(), bytes, at);
                    inner = lock(&self.inner);
                    inner.writing.remove(&number);
                    self.written.notify_all();
                    written.map(|()| true).map_err(|errno| refusal(Error::system("writing", errno)))
                }
                Err(refused) => Err(refused),
            },
            ChunkPlace::Held(at) => {
                // From now on, so that the file is not named before the answer is known.
                inner.comparing += 1;
                // The copy of a chunk that is still being written.
                while inner.writing.contains(&number) {
                    inner = wait(&self.written, inner);
                }
                let file = inner.file();
                drop(inner);
                let same = file.and_then(|file| {
                    is_same(&file, bytes, at).map_err(|errno| refusal(Error::system("reading", errno)))
                });
                inner = lock(&self.inner);
                inner.comparing -= 1;
                self.written.notify_all();
                same
            }
        };
        let failure = match is_same {
            Ok(true) => return Ok(inner),
            Ok(false) => Failure::contradiction(format!("chunk {number} comes again and is different")),
            Err(refusal) => Failure::new(refusal),
        };
        Err(self.fail_inner(&mut inner, failure))
    }

    /// Syncs and names a file that is complete: its name and size. With `settle`, waits until
    /// nothing else comes from its address: that could contradict it.
    ///
    /// # Errors
    ///
    /// Something did, or the file cannot get its name.
    pub(super) fn commit(&self, settle: bool) -> Result<(String, u64), Refusal> {
        if settle {
            self.settle()?;
        }
        let (upload, name, size) = {
            let mut inner = lock(&self.inner);
            while inner.comparing > 0 {
                inner = wait(&self.written, inner);
            }
            let mut glance = self.glance();
            if let State::Failed(failure) = &glance.state {
                return Err(failure.refusal.clone());
            }
            glance.state = State::Committing;
            (inner.upload.take(), std::mem::take(&mut inner.name), inner.assembly.size())
        };
        let committed = upload.map_or(Ok(()), LegacyUpload::commit).map_err(refusal);
        self.glance().state = State::Ended(committed.clone());
        self.notify();
        committed.map(|()| (name, size))
    }

    /// Waits until nothing else comes from the address of a complete transfer.
    fn settle(&self) -> Result<(), Refusal> {
        let complete = Instant::now();
        let mut glance = self.glance();
        loop {
            if let State::Failed(failure) = &glance.state {
                return Err(failure.refusal.clone());
            }
            let now = Instant::now();
            match glance.activity.poll_settled(complete, glance.repeated, now) {
                Settled::Yes => return Ok(()),
                Settled::NotBefore(at) => {
                    let waited = self.changed.wait_timeout(glance, at.saturating_duration_since(now));
                    glance = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                Settled::Never => {
                    drop(glance);
                    let what = "other chunks come from this address all the time";
                    return Err(self.fail(Failure::contradiction(what)));
                }
            }
        }
    }
}

fn wait<'a, T>(condition: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condition.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

/// Compares `bytes` with those of `file` from `at` on.
fn is_same(file: &OwnedFd, bytes: &[u8], at: u64) -> Result<bool, Errno> {
    let mut held = vec![0; COMPARE_STEP.min(bytes.len())];
    for (step, part) in bytes.chunks(COMPARE_STEP).enumerate() {
        let held = held.get_mut(..part.len()).unwrap_or_default();
        read_exact_at(file, held, at + (step * COMPARE_STEP) as u64)?;
        if held != part {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Inner {
    /// The file, unless a chunk that ends at `end` is beyond what it may have: the length of the
    /// last one is known only now.
    fn check_end(&self, context: &ServerContext, end: u64) -> Result<OwnedFd, Refusal> {
        if context.options.size_max.is_some_and(|max| end > max) {
            return Err(Refusal::new(413, "more bytes than one transfer may have here"));
        }
        self.file()
    }

    fn file(&self) -> Result<OwnedFd, Refusal> {
        let upload = self.upload.as_ref().ok_or_else(|| Refusal::new(500, "no file"))?;
        let incoming = upload.incoming().map_err(refusal)?;
        incoming.file().try_clone_to_owned().map_err(|_| Refusal::new(503, "no descriptor left"))
    }
}

impl Spool {
    fn write(&mut self, number: u32, bytes: &[u8], context: &ServerContext) -> Result<(), Refusal> {
        let failed = |_| Refusal::new(507, "no room for chunks that come before chunk 0");
        if self.file.is_none() {
            // Without a name: nobody sees it, and it goes by itself.
            self.file = Some(tempfile::tempfile_in(&context.options.folder).map_err(failed)?.into());
        }
        let Some(file) = &self.file else { return Err(Refusal::new(500, "no spool file")) };
        write_all_at(file.as_fd(), bytes, self.end)
            .map_err(|errno| refusal(Error::system("spooling", errno)))?;
        self.chunks.insert(number, (self.end, bytes.len()));
        self.end += bytes.len() as u64;
        Ok(())
    }

    fn read(&self, number: u32) -> Result<Vec<u8>, Refusal> {
        let lost = || Refusal::new(500, "a spooled chunk is gone");
        let &(offset, size) = self.chunks.get(&number).ok_or_else(lost)?;
        let mut bytes = vec![0; size];
        read_exact_at(self.file.as_ref().ok_or_else(lost)?, &mut bytes, offset).map_err(|_| lost())?;
        Ok(bytes)
    }
}

/// An error as a status and a sentence.
pub(super) fn refusal(error: Error) -> Refusal {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::server::options::ServerOptions;
    use crate::stop::Stop;
    use crate::storage::root::Root;

    const CHUNK: usize = 200_000;
    const CHUNKS: u32 = 6;
    const THREADS: u16 = 6;

    fn context(folder: &std::path::Path) -> Arc<ServerContext> {
        let root = Arc::new(Root::open(folder).unwrap());
        Arc::new(ServerContext::new(ServerOptions::new(folder.into()), root, Stop::default()))
    }

    /// Has several threads take all chunks of one file, each beginning elsewhere, and one of them
    /// perhaps a chunk that differs in its last byte. Returns their results.
    fn race(
        context: &Arc<ServerContext>,
        transfer: &Transfer,
        odd: Option<u32>,
    ) -> Vec<Result<bool, Refusal>> {
        let take = |thread: u16, number: u32| {
            let mut bytes = vec![number as u8; CHUNK];
            if odd == Some(number) && thread == 0 {
                *bytes.last_mut().unwrap() = 77;
            }
            let first = (number == 0).then(|| ("f".to_owned(), CHUNKS));
            let chunk = ChunkRequest { number, first, transfer: Some("id".into()) };
            let peer = SocketAddr::from(([127, 0, 0, 1], thread));
            match transfer.take(context, peer, &chunk, &bytes)? {
                Taken::Stored => Ok(false),
                Taken::Again => Ok(true),
                Taken::Complete { settle } => transfer.commit(settle).map(|_| true),
            }
        };
        std::thread::scope(|scope| {
            let run = |thread: u16| {
                let order = (0..CHUNKS).map(move |at| (at + u32::from(thread)) % CHUNKS);
                scope.spawn(move || order.map(|number| take(thread, number)).collect::<Vec<_>>())
            };
            let threads: Vec<_> = (0..THREADS).map(run).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// Copies come early, while the first one is being written, and afterwards.
    #[test]
    fn copies_of_chunks_that_come_at_the_same_time_are_compared_and_make_one_file() {
        for _ in 0..20 {
            let folder = tempfile::tempdir().unwrap();
            let transfer = Transfer::new(Instant::now());
            for result in race(&context(folder.path()), &transfer, None) {
                result.unwrap();
            }
            let file = std::fs::read(folder.path().join("f")).unwrap();
            let expected: Vec<u8> = (0..CHUNKS).flat_map(|number| vec![number as u8; CHUNK]).collect();
            assert!(file == expected);
        }
    }

    #[test]
    fn a_copy_that_differs_in_one_byte_fails_the_transfer_whenever_it_comes() {
        for odd in (0..CHUNKS).cycle().take(20) {
            let folder = tempfile::tempdir().unwrap();
            let transfer = Transfer::new(Instant::now());
            let results = race(&context(folder.path()), &transfer, Some(odd));
            let refused: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
            assert!(refused.iter().all(|refusal| refusal.status == 409), "{refused:?}");
            // Nobody is refused only if the second of both came after the file had its name: with an
            // id, that is answered as the end was.
            assert_eq!(folder.path().join("f").exists(), refused.is_empty(), "{refused:?}");
        }
    }
}
