//! One file that arrives in chunks.

use crate::context::server::ServerContext;
use crate::context::server::registry::Reservation;
use crate::error::Error;
use crate::gate::principal::Principal;
use crate::legacy::nextdp::spool::EarlyChunks;
use crate::legacy::nextdp::state::{Failure, Glance, State, refusal};
use crate::legacy::upload::LegacyUpload;
use crate::lock::lock;
use crate::storage::io::{read_exact_at, write_all_at};
use crate::storage::present::Announced;
use fastdrop_proto::nextdp::{Activity, Assembly, ChunkPlace, ChunkRequest, Refusal, Settled};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::Notify;

/// Bytes that are compared at once.
const COMPARE_STEP: usize = 64 << 10;

/// A file that arrives in chunks.
pub(super) struct Transfer {
    /// Never held across a call that may take long: the asynchronous threads ask it. Locked after
    /// `inner`, where both are.
    glance: Mutex<Glance>,
    /// Notified whenever `glance` changes.
    changed: Condvar,
    /// Notified when it has its name, or could not get it.
    ended: Notify,
    /// Held while chunks are put in order, also across spooling.
    inner: Mutex<Inner>,
    /// Notified whenever a chunk has been written, or compared.
    written: Condvar,
    /// Its place among the transfers of the server.
    pub(super) place: Reservation,
}

struct Inner {
    assembly: Assembly,
    upload: Option<LegacyUpload>,
    /// Chunks that came before chunk 0.
    early: EarlyChunks,
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

/// Effect of a chunk.
pub(super) enum Taken {
    /// It is held.
    Stored,
    /// It is held, and the file is complete with it; who is told so has to [`Transfer::commit`].
    /// With `settle`, chunks of another sender may be among it.
    Complete { settle: bool },
    /// The file had its name before, and the chunk is one of it as far as can be told.
    Again,
    /// The same, but the file is being named: [`Transfer::wait_for_end`] says how that ends.
    BeingNamed,
    /// The transfer, which has no id, takes no more chunks: it belongs to another one.
    Elsewhere,
}

impl Transfer {
    pub(super) fn new(now: Instant, place: Reservation) -> Self {
        let activity = Activity::new(now);
        let glance = Glance { state: State::Waiting, first: None, activity, is_used: false, repeated: false };
        let inner = Inner {
            assembly: Assembly::default(),
            upload: None,
            early: EarlyChunks::default(),
            writing: BTreeSet::new(),
            comparing: 0,
            connections: Connections::None,
            is_complete: false,
        };
        Self {
            glance: Mutex::new(glance),
            changed: Condvar::new(),
            ended: Notify::new(),
            inner: Mutex::new(inner),
            written: Condvar::new(),
            place,
        }
    }

    pub(super) fn glance(&self) -> MutexGuard<'_, Glance> {
        lock(&self.glance)
    }

    /// The number of its chunks, once chunk 0 has said so.
    pub(super) fn chunks(&self) -> Option<u32> {
        self.glance().first.as_ref().map(|(_, chunks)| *chunks)
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
        self.discard_failed();
        refusal
    }

    /// Fails it by `chunk`, unless that cannot be its own.
    pub(super) fn fail_by(&self, chunk: &ChunkRequest, failure: Failure) -> Refusal {
        match chunk.transfer.is_none() && self.glance().is_closed() {
            true => failure.refusal,
            false => self.fail(failure),
        }
    }

    /// Removes what it has brought, if it has failed.
    pub(super) fn discard_failed(&self) {
        let mut inner = lock(&self.inner);
        // One that has made room for another may be about to get its name.
        if self.failure().is_some() {
            self.discard_inner(&mut inner);
        }
    }

    fn discard_inner(&self, inner: &mut Inner) {
        inner.upload = None;
        inner.early = EarlyChunks::default();
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
        if let Some(taken) = self.begin_chunk(&mut inner, chunk, bytes.len() as u64)? {
            return Ok(taken);
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
            let early = inner.early.take(number);
            let early = early.map_err(|error| self.fail_inner(&mut inner, Failure::new(error)))?;
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

    /// Notes that a chunk has come as a whole. Returns its effect if the transfer has all chunks.
    fn begin_chunk(
        &self,
        inner: &mut Inner,
        chunk: &ChunkRequest,
        size: u64,
    ) -> Result<Option<Taken>, Refusal> {
        let mut glance = self.glance();
        glance.is_used = true;
        if chunk.transfer.is_none() && glance.is_closed() {
            return Ok(Some(Taken::Elsewhere));
        }
        let taken = match &glance.state {
            State::Waiting | State::Placed => return Ok(None),
            State::Failed(failure) => return Err(failure.refusal.clone()),
            State::Ended(Err(refusal)) => return Err(refusal.clone()),
            State::Ended(Ok(())) => Taken::Again,
            State::Committing => Taken::BeingNamed,
        };
        if glance.is_other(chunk) {
            return Err(other_of_id());
        }
        // The bytes are not compared any more: the file may be the user's by now.
        inner.assembly.handle_chunk(chunk.number, chunk.first.as_ref().map(|(_, chunks)| *chunks), size)?;
        Ok(Some(taken))
    }

    /// Waits until a file that is being named has its name.
    ///
    /// # Errors
    ///
    /// It could not get it.
    pub(super) async fn wait_for_end(&self) -> Result<(), Refusal> {
        loop {
            let ended = self.ended.notified();
            match &self.glance().state {
                State::Ended(result) => return result.clone(),
                State::Failed(failure) => return Err(failure.refusal.clone()),
                State::Waiting | State::Placed | State::Committing => (),
            }
            ended.await;
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
        let is_same = self.glance().first.as_ref().map(|(first, _)| first == name);
        if inner.upload.is_some() && is_same == Some(true) {
            return Ok(());
        }
        if inner.upload.is_some() {
            let failure = Failure::contradiction("a second chunk 0, with another name");
            return Err(self.fail_inner(inner, failure));
        }
        // How long the last chunk is, is known only if this one is the last.
        let least = size * u64::from(chunks.saturating_sub(1).max(1));
        let announced = Announced::within(least..=least.max(size * u64::from(chunks)));
        let (who, place) = (Principal::of(peer), self.place.clone());
        match LegacyUpload::create_at(context, &who, name.as_bytes(), &announced, place) {
            Ok(upload) => inner.upload = Some(upload),
            Err(error) => return Err(self.fail_inner(inner, Failure::new(refusal(error)))),
        }
        let mut glance = self.glance();
        if matches!(glance.state, State::Waiting) {
            glance.state = State::Placed;
            glance.first = Some((name.to_owned(), chunks));
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
            ChunkPlace::Early => inner.early.write(number, bytes, context).map(|()| true),
            ChunkPlace::HeldEarly => inner.early.read(number).map(|held| held == bytes),
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
        let (upload, early, name, size, naming) = {
            let mut inner = lock(&self.inner);
            while inner.comparing > 0 {
                inner = wait(&self.written, inner);
            }
            let mut glance = self.glance();
            if let State::Failed(failure) = &glance.state {
                return Err(failure.refusal.clone());
            }
            glance.state = State::Committing;
            let name = glance.first.as_ref().map(|(name, _)| name.clone()).unwrap_or_default();
            let early = std::mem::take(&mut inner.early);
            (inner.upload.take(), early, name, inner.assembly.size(), Naming(self))
        };
        // Closing what may be large takes its time: not while the asynchronous threads wait.
        drop(early);
        let missing = || Err(Refusal::new(500, "the received file is gone; send it again"));
        let committed = upload.map_or_else(missing, |upload| upload.commit().map_err(refusal));
        naming.end(committed.clone());
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

/// A file that is being named: however that ends, those who wait for it are told.
struct Naming<'a>(&'a Transfer);

impl Naming<'_> {
    fn end(&self, result: Result<(), Refusal>) {
        let mut glance = self.0.glance();
        if matches!(glance.state, State::Committing) {
            glance.state = State::Ended(result);
        }
        drop(glance);
        self.0.notify();
        self.0.ended.notify_waiters();
    }
}

impl Drop for Naming<'_> {
    fn drop(&mut self) {
        self.end(Err(Refusal::new(500, "naming the file failed; send it again")));
    }
}

/// The refusal of a chunk 0 whose id another file has that is being named, or was.
pub(super) fn other_of_id() -> Refusal {
    Refusal::new(409, "the file of this X-Transfer-Id has another name or number of chunks; use another id")
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::server::options::ServerOptions;
    use crate::context::server::registry::Registry;
    use crate::stop::Stop;
    use crate::storage::root::Root;
    use crate::storage::spool::Spool;

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
                Taken::Again | Taken::BeingNamed => Ok(true),
                Taken::Elsewhere => panic!("it has an id"),
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
            let transfer = Transfer::new(Instant::now(), Registry::new(1).reserve().unwrap());
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
            let transfer = Transfer::new(Instant::now(), Registry::new(1).reserve().unwrap());
            let results = race(&context(folder.path()), &transfer, Some(odd));
            let refused: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
            assert!(refused.iter().all(|refusal| refusal.status == 409), "{refused:?}");
            // Nobody is refused only if the second of both came after the file had its name: with
            // an id, that is answered as the end was.
            assert_eq!(folder.path().join("f").exists(), refused.is_empty(), "{refused:?}");
        }
    }

    fn take(
        context: &Arc<ServerContext>,
        transfer: &Transfer,
        id: Option<&str>,
        number: u32,
        first: Option<(&str, u32)>,
        bytes: &[u8],
    ) -> Result<Taken, Refusal> {
        let first = first.map(|(name, chunks)| (name.to_owned(), chunks));
        let chunk = ChunkRequest { number, first, transfer: id.map(Into::into) };
        transfer.take(context, SocketAddr::from(([127, 0, 0, 1], 1)), &chunk, bytes)
    }

    /// A transfer of two chunks, `aa` and `a`, that is complete.
    fn complete(context: &Arc<ServerContext>, id: Option<&str>) -> Transfer {
        let transfer = Transfer::new(Instant::now(), Registry::new(1).reserve().unwrap());
        assert!(matches!(take(context, &transfer, id, 0, Some(("f", 2)), b"aa"), Ok(Taken::Stored)));
        assert!(matches!(take(context, &transfer, id, 1, None, b"a"), Ok(Taken::Complete { .. })));
        transfer
    }

    #[test]
    fn what_comes_after_the_end_is_elsewhere_without_an_id_and_checked_with_one() {
        let folder = tempfile::tempdir().unwrap();
        let context = context(folder.path());
        for ended in [false, true] {
            for id in [None, Some("id")] {
                let transfer = complete(&context, id);
                if ended {
                    transfer.commit(false).unwrap();
                } else {
                    transfer.glance().state = State::Committing;
                }
                for (number, first, bytes, is_its) in [
                    (0, Some(("f", 2)), "aa", true),
                    (1, None, "a", true),
                    (0, Some(("g", 2)), "aa", false),
                    (0, Some(("f", 3)), "aa", false),
                    (0, Some(("f", 2)), "aaa", false),
                    (1, None, "aa", false),
                    (1, None, "", false),
                    (2, None, "a", false),
                ] {
                    // Nobody waits: a file that is being named is so for ever here.
                    match take(&context, &transfer, id, number, first, bytes.as_bytes()) {
                        Ok(Taken::Elsewhere) => assert!(id.is_none()),
                        Ok(Taken::Again) => assert!(id.is_some() && is_its && ended, "{number} {bytes}"),
                        Ok(Taken::BeingNamed) => {
                            assert!(id.is_some() && is_its && !ended, "{number} {bytes}")
                        }
                        Ok(_) => panic!("taken: {number} {bytes}"),
                        Err(refusal) => {
                            assert!(id.is_some() && !is_its && refusal.status == 409, "{refusal}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn another_chunk_0_is_elsewhere_once_a_file_of_one_chunk_is_here_and_has_no_id() {
        let folder = tempfile::tempdir().unwrap();
        let context = context(folder.path());
        let transfer = Transfer::new(Instant::now(), Registry::new(1).reserve().unwrap());
        assert!(matches!(
            take(&context, &transfer, None, 0, Some(("f", 1)), b"aa"),
            Ok(Taken::Complete { settle: false })
        ));
        for (number, first) in [(0, Some(("g", 1))), (0, Some(("f", 1))), (0, Some(("f", 2))), (1, None)] {
            assert!(matches!(take(&context, &transfer, None, number, first, b"bb"), Ok(Taken::Elsewhere)));
        }
        // Nor does a request that makes it give way remove what it has brought.
        transfer.discard_failed();
        transfer.commit(false).unwrap();
        assert_eq!(std::fs::read(folder.path().join("f")).unwrap(), b"aa");
    }

    #[test]
    fn a_file_that_is_gone_is_no_success_and_whoever_waits_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let context = context(folder.path());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let transfer = complete(&context, Some("id"));
        lock(&transfer.inner).upload = None;
        assert_eq!(transfer.commit(false).unwrap_err().status, 500);
        assert_eq!(runtime.block_on(transfer.wait_for_end()).unwrap_err().status, 500);
        // A commit that panics.
        let transfer = complete(&context, Some("id"));
        let waits = std::thread::scope(|scope| {
            transfer.glance().state = State::Committing;
            let waits = scope.spawn(|| runtime.block_on(transfer.wait_for_end()));
            drop(Naming(&transfer));
            waits.join().unwrap()
        });
        assert_eq!(waits.unwrap_err().status, 500);
    }

    #[test]
    fn a_chunk_that_comes_again_while_its_file_is_being_named_holds_no_lock() {
        let folder = tempfile::tempdir().unwrap();
        let context = context(folder.path());
        let transfer = complete(&context, Some("id"));
        transfer.glance().state = State::Committing;
        assert!(matches!(take(&context, &transfer, Some("id"), 1, None, b"a"), Ok(Taken::BeingNamed)));
        assert!(transfer.inner.try_lock().is_ok());
    }

    #[test]
    fn a_chunk_that_comes_early_leaves_the_bound_of_free_space_too() {
        let folder = tempfile::tempdir().unwrap();
        let options = ServerOptions { free_min: u64::MAX, ..ServerOptions::new(folder.path().into()) };
        let root = Arc::new(Root::open(folder.path()).unwrap());
        let context = Arc::new(ServerContext::new(options, root, Stop::default()));
        let transfer = Transfer::new(Instant::now(), Registry::new(1).reserve().unwrap());
        assert_eq!(take(&context, &transfer, None, 1, None, b"a").err().unwrap().status, 507);
    }

    /// A spool that takes its time to close: a socket whose peer does not read.
    #[test]
    fn a_file_that_is_being_named_can_be_asked_for_while_its_spool_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let transfer = complete(&context(folder.path()), Some("id"));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let slow = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut peer = listener.accept().unwrap().0;
        slow.set_nonblocking(true).unwrap();
        while std::io::Write::write(&mut &slow, &[0; 65_536]).is_ok() {}
        slow.set_nonblocking(false).unwrap();
        socket2::SockRef::from(&slow).set_linger(Some(std::time::Duration::from_secs(600))).unwrap();
        lock(&transfer.inner).early.spool = Some(Spool::of(slow.into()));
        std::thread::scope(|scope| {
            let naming = scope.spawn(|| transfer.commit(false));
            let until = Instant::now() + std::time::Duration::from_secs(10);
            let mut is_free = false;
            while !is_free && !naming.is_finished() && Instant::now() < until {
                let glance = transfer.glance.try_lock();
                is_free = glance.is_ok_and(|glance| matches!(glance.state, State::Committing));
                std::thread::yield_now();
            }
            std::io::copy(&mut peer, &mut std::io::sink()).unwrap();
            naming.join().unwrap().unwrap();
            assert!(is_free);
        });
    }
}
