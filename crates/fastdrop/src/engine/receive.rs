//! Receiving: chunks off connections, into files, into the journal, and in the end under their names.

use super::place::{NUMBERED_MAX, Placement, Verdict, judge, numbered};
use super::{Joined, Joins};
use crate::connection::{Connection, Ended, FrameReader};
use crate::error::{Error, code_of, reason};
use crate::journal::{FileKey, Left, LeftContent, Record};
use crate::observe::{Observer, Phase};
use crate::root::{Dirs, Root, rename, split};
use crate::stage::{Busy, Leftovers, Stage, default_mode, is_poison, set_attributes, write_all_at};
use crate::stop::Stop;
use crate::throttle::Throttle;
use crate::walk::Filter;
use fastdrop_proto::checksum::{Algorithm, Checksum, PackChecksum, join_blake3};
use fastdrop_proto::fastdp::{
    ChunkContent, ChunkVerdict, Completed, Control, Done, Durability, Entry, EntryKind, Existing, Expected,
    Extents, Failed, FrameHeader, FrameKind, Manifest, Receiver, SkipReason, Table, Violation,
};
use fastdrop_proto::units::{ChunkIndex, EntryIndex};
use rustix::fs::{AtFlags, FallocateFlags};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Complete files are named when so many of them wait.
const NAMING_BATCH: usize = 1024;
/// How often the sender hears that this end is alive.
const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// Bytes of failures that are told one by one, as they are encoded: they must fit into one frame.
const FAILED_SHOWN_MAX: usize = 512 << 10;

/// What the receiving side decides by itself.
#[derive(Debug, Clone)]
pub(crate) struct ReceiveOptions {
    pub(crate) existing: Existing,
    pub(crate) durability: Durability,
    pub(crate) times: bool,
    pub(crate) mode: bool,
    pub(crate) resume: bool,
    /// Most bytes of one transfer.
    pub(crate) size_max: Option<u64>,
    /// Bytes of the file system that must stay free.
    pub(crate) free_min: u64,
    /// Entries that are not wanted.
    pub(crate) filter: Filter,
}

/// A big file, or a stream, that is being written.
#[derive(Debug)]
struct Staged {
    temp: u32,
    fd: OwnedFd,
    /// Something unverified may stand where holes are to be.
    dirty: bool,
}

/// A file that is complete and waits for its name.
#[derive(Debug, Clone, Copy)]
struct Ready {
    entry: EntryIndex,
    temp: u32,
}

/// Where bytes end up.
#[derive(Debug)]
pub(crate) enum Sink {
    /// In files beneath a root.
    Files(Box<FileSink>),
    /// In a pipe, in order: one file.
    Output(Arc<OutputSink>),
}

/// Files beneath a root, by way of a stage.
#[derive(Debug)]
pub(crate) struct FileSink {
    root: Arc<Root>,
    placement: Placement,
    stage: Stage,
    options: ReceiveOptions,
    /// What does not simply go to its place.
    exceptions: HashMap<EntryIndex, Verdict>,
    open: Mutex<HashMap<EntryIndex, Arc<Staged>>>,
    ready: Mutex<Vec<Ready>>,
    /// Held for reading from before a chunk counts until what it completes is readied or named; the end of the transfer,
    /// which takes the stage away, waits for all of them.
    working: RwLock<()>,
    /// The temporary file of the stream.
    stream: Mutex<Option<u32>>,
    /// Directories in which names have been given since they were synced.
    named_in: Mutex<BTreeSet<Vec<u8>>>,
    named_any: AtomicBool,
    default_file_mode: u32,
}

/// One file, written in order to something that cannot seek.
pub(crate) struct OutputSink {
    state: Mutex<OutputState>,
}

struct OutputState {
    to: Box<dyn Write + Send>,
    /// Which file is being written: none but this one can be gone on with.
    file: Option<(FileKey, u32, Algorithm)>,
    /// Checksums of the chunks that have been written.
    written: Vec<Checksum>,
    /// Chunks that came too early.
    early: BTreeMap<u32, (Checksum, Vec<u8>)>,
}

impl std::fmt::Debug for OutputSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OutputSink")
    }
}

impl OutputSink {
    pub(crate) fn new(to: Box<dyn Write + Send>) -> Self {
        Self {
            state: Mutex::new(OutputState { to, file: None, written: Vec::new(), early: BTreeMap::new() }),
        }
    }

    /// Checksums of what an earlier attempt has written of `file`; an error if it has written something else.
    fn begin(&self, file: (FileKey, u32, Algorithm)) -> Result<Vec<Checksum>, Error> {
        let mut state = lock(&self.state);
        // What came too early and was not written comes again.
        state.early.clear();
        if !state.written.is_empty() && state.file.as_ref() != Some(&file) {
            return Err(Error::with_code(
                410,
                "the file changed while it was fetched, and its beginning is written already",
            ));
        }
        state.file = Some(file);
        Ok(state.written.clone())
    }

    fn write(&self, chunk: ChunkIndex, checksum: Checksum, bytes: &[u8]) -> std::io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        if chunk.at() != state.written.len() {
            state.early.insert(chunk.0, (checksum, bytes.to_vec()));
            return Ok(());
        }
        state.to.write_all(bytes)?;
        state.written.push(checksum);
        while let Some((checksum, bytes)) = state.early.remove(&(state.written.len() as u32)) {
            state.to.write_all(&bytes)?;
            state.written.push(checksum);
        }
        Ok(())
    }
}

/// One transfer that is being received.
#[derive(Debug)]
pub(crate) struct Reception {
    machine: Mutex<Receiver>,
    manifest: Arc<Manifest>,
    algorithm: Algorithm,
    sink: Sink,
    observer: Arc<Observer>,
    stop: Stop,
    throttle: OnceLock<Throttle>,
    connections: Mutex<Vec<Arc<Connection>>>,
    failed: Mutex<BTreeMap<EntryIndex, Failed>>,
    hashes: Mutex<BTreeMap<EntryIndex, [u8; 32]>>,
    /// Why it ended, if not well.
    error: Mutex<Option<Error>>,
    /// Over, one way or the other: no stream is served any more.
    over: AtomicBool,
    /// For those who wait until it is done, over or left.
    waiting: Mutex<()>,
    over_changed: Condvar,
    /// Every thread has left, and the journal is free for others.
    left: AtomicBool,
    done: AtomicBool,
    pub(crate) joins: Joins,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a transfer has to do before its chunks can come.
pub(crate) struct Prepared {
    pub(crate) reception: Arc<Reception>,
    /// SKIP, HELD and NEED.
    pub(crate) answer: Vec<Control>,
    /// Files that were there, or are left alone.
    pub(crate) skipped: u64,
    /// Bytes that need not be sent, because they are here: of skipped files, and of unfinished ones.
    pub(crate) bytes_skipped: u64,
    pub(crate) bytes_resumed: u64,
}

impl Reception {
    /// Looks at what is there, refuses what must be refused, and makes a stage.
    ///
    /// `busy` hears the folder of every transfer under way beneath the root, and says whether it has made that end.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn prepare(
        manifest: Arc<Manifest>,
        table: Table,
        algorithm: Algorithm,
        root: Arc<Root>,
        placement: Placement,
        options: ReceiveOptions,
        observer: Arc<Observer>,
        stop: Stop,
        busy: &mut dyn FnMut(&str) -> Result<Busy, Error>,
    ) -> Result<Prepared, Error> {
        if options.size_max.is_some_and(|max| manifest.bytes() > max) {
            return Err(Error::with_code(413, "more bytes than one transfer may have here"));
        }
        // What a transfer under way is about to name must have its name, or never get it, before anything is compared.
        let mut refused = None;
        let wanted = |key: &FileKey| placement.entry_of(key, &manifest).is_some();
        let leftovers =
            Leftovers::find(&root, placement.named().as_deref(), wanted, |name| match busy(name) {
                Ok(busy) => busy,
                Err(error) => {
                    refused = Some(error);
                    Busy::Known
                }
            });
        if let Some(error) = refused {
            return Err(error);
        }
        let mut exceptions = HashMap::new();
        let mut machine = Receiver::new(Arc::clone(&manifest), table, algorithm);
        let (mut skipped, mut bytes_skipped, mut bytes_resumed) = (0, 0, 0);
        let mut conflicts: Vec<(Vec<u8>, &'static str)> = Vec::new();
        let mut conflict_count = 0u64;
        let mut told = 0;
        let mut dirs = Dirs::default();
        for (index, entry) in manifest.iter() {
            if stop.is_stopped() {
                return Err(Error::Interrupted);
            }
            if options.filter.leaves_out_of_tree(entry.path, entry.kind == EntryKind::Directory) {
                machine.skip(index, SkipReason::Policy);
                continue;
            }
            let path = placement.of(entry.path);
            let verdict = judge(&root, &mut dirs, &path, &entry, options.existing, options.times)?;
            match verdict {
                Verdict::New => {}
                Verdict::Identical if entry.kind == EntryKind::Directory => {}
                Verdict::Identical | Verdict::Left => {
                    let identical = verdict == Verdict::Identical;
                    machine.skip(index, if identical { SkipReason::Identical } else { SkipReason::Policy });
                    skipped += 1;
                    bytes_skipped += entry.size();
                }
                Verdict::Replace | Verdict::Renamed => {
                    exceptions.insert(index, verdict);
                }
                Verdict::Conflict(why) => {
                    conflict_count += 1;
                    // They must fit into one frame, each byte taking up to three.
                    told += 3 * path.len();
                    if conflicts.len() < 20 && (told < 48 << 10 || conflicts.is_empty()) {
                        conflicts.push((entry.path.as_bytes().to_vec(), why));
                    }
                }
            }
        }
        if let Some((_, why)) = conflicts.first() {
            let message = match conflict_count {
                1 => format!("{why}; nothing was sent"),
                count => format!("{count} files are in the way ({why}); nothing was sent"),
            };
            let paths = conflicts.iter().map(|(path, _)| path.clone()).collect();
            return Err(Error::Refused(fastdrop_proto::fastdp::Refuse { code: 409, message, paths }));
        }
        let one_chunk = machine.table().one_chunk();
        let stage =
            Stage::create(Arc::clone(&root), algorithm, one_chunk, options.durability, placement.named())?;
        let sink = FileSink {
            root: Arc::clone(&root),
            placement,
            stage,
            options,
            exceptions,
            open: Mutex::default(),
            ready: Mutex::default(),
            working: RwLock::default(),
            stream: Mutex::default(),
            named_in: Mutex::default(),
            named_any: AtomicBool::new(false),
            default_file_mode: default_mode(false),
        };
        let mut hashes = BTreeMap::new();
        match sink.take_over(leftovers, &mut machine, algorithm, &mut hashes) {
            Ok((held, bytes)) => {
                skipped += held;
                bytes_resumed += bytes;
            }
            Err(error) => {
                // What has been moved in already stays for another attempt.
                if !sink.has_something() {
                    sink.stage.remove();
                }
                return Err(error);
            }
        }
        let answer = machine.answer();
        let need = machine.totals();
        if let Err(error) = sink.check_space(need.bytes, manifest.bytes()) {
            // What an earlier transfer left was moved in here: it stays for when there is room.
            if bytes_resumed == 0 {
                sink.stage.remove();
            }
            return Err(error);
        }
        let reception = Self::new(machine, Sink::Files(Box::new(sink)), observer, stop, hashes);
        Ok(Prepared { reception, answer, skipped, bytes_skipped, bytes_resumed })
    }

    /// A reception of one file into a pipe.
    pub(crate) fn to_output(
        manifest: Arc<Manifest>,
        table: Table,
        algorithm: Algorithm,
        sink: Arc<OutputSink>,
        observer: Arc<Observer>,
        stop: Stop,
    ) -> Result<Prepared, Error> {
        if manifest.len() != 1
            || manifest.iter().any(|(_, entry)| !matches!(entry.kind, EntryKind::File { .. }))
        {
            return Err(Error::with_code(409, "only one file can go to standard output"));
        }
        let one = u64::from(table.one_chunk().bytes());
        let whole = manifest.bytes() < one;
        let mut machine = Receiver::new(Arc::clone(&manifest), table, algorithm);
        let mut bytes_resumed = 0;
        let Some(entry) = manifest.get(EntryIndex(0)) else {
            return Err(Error::with_code(400, "an empty manifest"));
        };
        let key = FileKey::new(entry.path.as_bytes().to_vec(), entry.size(), entry.mtime);
        let written = sink.begin((key, machine.table().one_chunk().bytes(), algorithm))?;
        if whole && !written.is_empty() {
            // All of it is there, in a pack of one.
            machine.skip(EntryIndex(0), SkipReason::Held);
        }
        for (at, checksum) in written.iter().enumerate().filter(|_| !whole) {
            machine.hold(ChunkIndex(at as u32), checksum);
            bytes_resumed += one.min(manifest.bytes() - at as u64 * one);
        }
        let answer = machine.answer();
        let reception = Self::new(machine, Sink::Output(sink), observer, stop, BTreeMap::new());
        Ok(Prepared { reception, answer, skipped: 0, bytes_skipped: 0, bytes_resumed })
    }

    fn new(
        machine: Receiver,
        sink: Sink,
        observer: Arc<Observer>,
        stop: Stop,
        hashes: BTreeMap<EntryIndex, [u8; 32]>,
    ) -> Arc<Self> {
        Arc::new(Self {
            manifest: Arc::clone(machine.manifest()),
            algorithm: machine.algorithm(),
            machine: Mutex::new(machine),
            sink,
            observer,
            stop,
            throttle: OnceLock::new(),
            connections: Mutex::default(),
            failed: Mutex::default(),
            hashes: Mutex::new(hashes),
            error: Mutex::default(),
            over: AtomicBool::new(false),
            waiting: Mutex::default(),
            over_changed: Condvar::new(),
            left: AtomicBool::new(false),
            done: AtomicBool::new(false),
            joins: Joins::default(),
        })
    }

    /// Sets what was negotiated.
    pub(crate) fn set_transcript(&self, transcript: fastdrop_proto::fastdp::Transcript) {
        lock(&self.machine).set_transcript(transcript);
    }

    /// Takes so many bytes a second at most: the sender is held up by what is not read.
    pub(crate) fn limit(&self, bytes_per_second_max: u64) {
        let _ = self.throttle.set(Throttle::new(bytes_per_second_max));
    }

    /// Fills `buffer` from a chunk, at the pace that was set.
    fn fill(&self, reader: &mut FrameReader, buffer: &mut [u8]) -> Result<(), Error> {
        let Some(throttle) = self.throttle.get() else { return reader.fill(buffer).map_err(inside) };
        for part in buffer.chunks_mut(throttle.piece_max()) {
            let mut left = throttle.book(part.len(), Instant::now());
            while !left.is_zero() && !self.stop.is_stopped() && !self.ending() {
                let nap = left.min(Duration::from_millis(100));
                std::thread::sleep(nap);
                left -= nap;
            }
            reader.fill(part).map_err(inside)?;
        }
        Ok(())
    }

    /// What remains to come.
    pub(crate) fn need(&self) -> fastdrop_proto::fastdp::NeedTotals {
        lock(&self.machine).totals()
    }

    /// The folder of its stage.
    pub(crate) fn folder(&self) -> Option<&str> {
        match &self.sink {
            Sink::Files(sink) => Some(sink.stage.name()),
            Sink::Output(_) => None,
        }
    }

    /// Whether this transfer is bringing the file `key`, and has not finished it.
    pub(crate) fn brings(&self, key: &FileKey) -> bool {
        let Sink::Files(sink) = &self.sink else { return false };
        sink.placement.entry_of(key, &self.manifest).is_some()
    }

    /// BLAKE3 of each file, where it was computed.
    pub(crate) fn hashes(&self) -> BTreeMap<EntryIndex, [u8; 32]> {
        let machine = lock(&self.machine);
        let mut hashes = lock(&self.hashes).clone();
        if self.algorithm == Algorithm::Blake3 {
            for (index, entry) in self.manifest.iter() {
                if !machine.is_needed(index) || !matches!(entry.kind, EntryKind::File { .. }) {
                    continue;
                }
                if entry.size() == 0 {
                    hashes.insert(index, *blake3::hash(b"").as_bytes());
                } else if let Some(hash) = machine.piece_checksums(index).and_then(|sums| join_blake3(&sums))
                {
                    hashes.insert(index, hash);
                }
            }
        }
        hashes
    }

    /// What did not arrive.
    pub(crate) fn failed(&self) -> Vec<Failed> {
        lock(&self.failed).values().cloned().collect()
    }

    /// Whether DONE has been said.
    pub(crate) fn is_done(&self) -> bool {
        self.done.load(Ordering::SeqCst)
    }

    /// Runs the transfer over its control stream, to its end; data streams come through [`Self::joins`] or `more`.
    pub(crate) fn run(
        self: &Arc<Self>,
        control: FrameReader,
        more: &(dyn Fn() + Sync),
    ) -> Result<Done, Error> {
        self.observer.set_phase(Phase::Moving);
        let connection = Arc::clone(control.connection());
        // The control stream is the first, always.
        lock(&self.connections).push(Arc::clone(&connection));
        let result = std::thread::scope(|scope| {
            let _end = EndOnDrop(self);
            scope.spawn(|| self.keep_alive(&connection));
            scope.spawn(|| {
                while let Some(Joined { reader, held }) = self.joins.wait() {
                    scope.spawn(move || {
                        let _held = held;
                        self.data_stream(reader);
                    });
                }
            });
            self.serve(control, Some(&connection), more)
        });
        let result = self.conclude(result, &connection);
        if let Sink::Files(sink) = &self.sink {
            sink.stage.journal().unlock();
        }
        self.left.store(true, Ordering::SeqCst);
        self.wake_waiting();
        result
    }

    fn conclude(&self, result: Result<(), Error>, connection: &Connection) -> Result<Done, Error> {
        if let Some(error) = lock(&self.error).take() {
            let _ = connection.send_control(&Control::Refuse(error.refusal()));
            connection.finish_writing();
            self.give_up(&error);
            return Err(error);
        }
        if self.is_done() {
            return Ok(self.report());
        }
        let error = match result {
            Ok(()) => Ended::Closed.into(),
            Err(error) => error,
        };
        if !matches!(error, Error::Network(_) | Error::Refused(_)) {
            let _ = connection.send_control(&Control::Refuse(error.refusal()));
            connection.finish_writing();
        }
        self.give_up(&error);
        Err(error)
    }

    /// Keeps what can be continued, and takes away what cannot.
    fn give_up(&self, error: &Error) {
        let Sink::Files(sink) = &self.sink else { return };
        let hopeless = is_poison(error) || matches!(error, Error::Violation(Violation { code: 422, .. }));
        if hopeless || !sink.has_something() {
            sink.stage.remove();
        } else if self.stop.is_stopped() {
            // Leaving in good order: what is here is made to survive more than the end of this process.
            let _ = self.checkpoint(sink);
        }
    }

    /// Ends the transfer because another took it over, or the server stops.
    pub(crate) fn end_with(&self, error: Error) {
        self.fail(error);
    }

    /// Waits until every thread of the transfer has left, but not for longer than `patience`.
    pub(crate) fn wait_over(&self, patience: Duration) -> bool {
        let waiting = lock(&self.waiting);
        let left = || self.left.load(Ordering::SeqCst);
        let _ = self.over_changed.wait_timeout_while(waiting, patience, |_| !left());
        left()
    }

    fn keep_alive(&self, connection: &Connection) {
        loop {
            let timed_out = {
                let waiting = lock(&self.waiting);
                let waited = self.over_changed.wait_timeout_while(waiting, ALIVE_EVERY, |()| !self.ending());
                waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
            };
            if self.ending() {
                return;
            }
            if timed_out && connection.send_control(&Control::Alive).is_err() {
                return;
            }
        }
    }

    fn ending(&self) -> bool {
        self.is_done() || lock(&self.error).is_some() || self.over.load(Ordering::SeqCst)
    }

    fn wake_waiting(&self) {
        let _waiting = lock(&self.waiting);
        self.over_changed.notify_all();
    }

    /// Notes why the transfer cannot go on, and has all its streams end.
    fn fail(&self, error: Error) {
        lock(&self.error).get_or_insert(error);
        for connection in lock(&self.connections).iter() {
            connection.stop_reading();
        }
        self.joins.end();
        self.wake_waiting();
    }

    /// Serves one data stream to its end.
    fn data_stream(self: &Arc<Self>, reader: FrameReader) {
        let connection = Arc::clone(reader.connection());
        let result = self.serve(reader, None, &|| {});
        match result {
            Ok(()) | Err(Error::Network(_) | Error::Interrupted) => {}
            // It breaks the rules, or what it brings contradicts what is here: that connection ends.
            Err(error) => {
                tracing::warn!(%error, "a data stream was ended");
                let _ = connection.send_control(&Control::Refuse(error.refusal()));
                connection.finish_writing();
            }
        }
        connection.close();
        lock(&self.connections).retain(|other| !Arc::ptr_eq(other, &connection));
    }

    /// Reads frames until the stream ends. `control` is the connection itself if this is the control stream.
    fn serve(
        self: &Arc<Self>,
        mut reader: FrameReader,
        control: Option<&Arc<Connection>>,
        more: &(dyn Fn() + Sync),
    ) -> Result<(), Error> {
        let connection = Arc::clone(reader.connection());
        self.stop.watch(&connection);
        if control.is_none() {
            let mut connections = lock(&self.connections);
            // Whoever ends the transfer closes what is in the list; a stream that comes later sees that by itself.
            if self.ending() {
                return Ok(());
            }
            connections.push(Arc::clone(&connection));
            self.observer.set_streams(connections.len() as u64 - 1);
        }
        let mut worker =
            ChunkWorker { reception: self, plain: Vec::new(), payload: Vec::new(), dirs: Dirs::default() };
        let mut clock = Instant::now();
        loop {
            if lock(&self.error).is_some() {
                return Ok(());
            }
            let header = match reader.header() {
                Ok(header) => header,
                Err(Error::Network(_)) if self.is_done() => return Ok(()),
                Err(Error::Interrupted) if !self.stop.is_stopped() => return Ok(()),
                Err(error) => return Err(error),
            };
            match header.kind {
                FrameKind::Control(kind) => {
                    let frame = reader.control(kind, header.size)?;
                    match (frame, control) {
                        (Control::Alive, _) => {}
                        (Control::Checkpoint, None) => {
                            clock = self.observer.clocks.wait.since(clock);
                            if let Sink::Files(sink) = &self.sink {
                                self.or_fail(self.checkpoint(sink))?;
                            }
                            connection.send_control(&Control::Checkpointed)?;
                            self.observer.clocks.write.since(clock);
                        }
                        (Control::Size { entry, size }, Some(_)) => {
                            lock(&self.machine).handle_size(entry, size)?
                        }
                        (Control::Abandon { entry, code, reason }, Some(_)) => {
                            let answer = lock(&self.machine).handle_abandon(entry)?;
                            self.drop_abandoned(entry, code, reason);
                            connection.send_controls(&answer)?;
                        }
                        (Control::End(digest), Some(_)) => lock(&self.machine).handle_end(digest)?,
                        (Control::More, Some(_)) => more(),
                        (Control::Refuse(refuse), _) => return Err(Error::Refused(refuse)),
                        (_, _) => {
                            return Err(Error::with_code(
                                400,
                                "a frame that a sender does not send, or not here",
                            ));
                        }
                    }
                    clock = Instant::now();
                }
                _ => worker.chunk(&mut reader, header, &mut clock)?,
            }
            self.finish_if_complete()?;
        }
    }

    /// Passes a result on; an error ends the whole transfer.
    fn or_fail<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|error| {
            let told = Error::with_code(error.code(), error.to_string());
            self.fail(error);
            told
        })
    }

    fn note_failed(&self, entry: EntryIndex, code: u16, message: impl Into<String>) {
        let path = self.manifest.get(entry).map(|entry| entry.path.as_bytes().to_vec()).unwrap_or_default();
        lock(&self.failed).insert(entry, Failed { path, code, message: message.into() });
    }

    fn drop_abandoned(&self, entry: EntryIndex, code: u16, reason: String) {
        if !lock(&self.machine).is_abandoned(entry) {
            return;
        }
        self.note_failed(entry, code, reason);
        if let Sink::Files(sink) = &self.sink
            && let Some(staged) = lock(&sink.open).remove(&entry)
        {
            sink.stage.remove_temp(staged.temp);
        }
    }

    /// Makes everything confirmed so far durable.
    fn checkpoint(&self, sink: &FileSink) -> Result<(), Error> {
        let _working = sink.working.read().unwrap_or_else(PoisonError::into_inner);
        if self.is_done() {
            return Ok(());
        }
        let open: Vec<_> = lock(&sink.open).values().cloned().collect();
        for staged in open {
            sink.stage.sync_file(staged.fd.as_fd())?;
        }
        let ready = std::mem::take(&mut *lock(&sink.ready));
        self.name_files(sink, &ready)?;
        sink.sync_names()?;
        sink.stage.sync_journal()
    }

    /// Gives complete files their names, once they are synced.
    fn name_files(&self, sink: &FileSink, ready: &[Ready]) -> Result<(), Error> {
        let temps: Vec<_> = ready.iter().map(|ready| ready.temp).collect();
        sink.stage.sync_temps(&temps)?;
        let mut dirs = Dirs::default();
        for &Ready { entry: index, temp } in ready {
            let Some(entry) = self.manifest.get(index) else { continue };
            match sink.give_name(&mut dirs, index, &entry, temp) {
                Ok(()) => {
                    self.observer.files_done.fetch_add(1, Ordering::Relaxed);
                }
                Err(errno) => {
                    sink.stage.remove_temp(temp);
                    let message = match errno {
                        Errno::EXIST => "another one was put there meanwhile".to_owned(),
                        errno => reason(errno),
                    };
                    self.note_failed(index, code_of(errno), message);
                }
            }
        }
        Ok(())
    }

    fn finish_if_complete(&self) -> Result<(), Error> {
        let Some(finish) = lock(&self.machine).poll_finish() else { return Ok(()) };
        self.or_fail(finish.map_err(Error::from).and_then(|()| {
            self.observer.set_phase(Phase::Finishing);
            let start = Instant::now();
            match &self.sink {
                Sink::Files(sink) => self.finish_files(sink)?,
                Sink::Output(output) => lock(&output.state).to.flush().map_err(output_error)?,
            }
            self.observer.clocks.write.since(start);
            Ok(())
        }))?;
        self.done.store(true, Ordering::SeqCst);
        self.joins.end();
        self.wake_waiting();
        let done = Control::Done(self.report());
        let connections = lock(&self.connections).clone();
        // The control stream was the first; DONE goes there, and the others have nothing more to bring.
        for (at, connection) in connections.iter().enumerate() {
            if at == 0 {
                let _ = connection.send_control(&done);
                connection.finish_writing();
            } else {
                connection.close();
            }
        }
        Ok(())
    }

    fn finish_files(&self, sink: &FileSink) -> Result<(), Error> {
        let _nobody_working = sink.working.write().unwrap_or_else(PoisonError::into_inner);
        let needed: Vec<_> = lock(&self.machine).needed_entries().collect();
        let mut ready = std::mem::take(&mut *lock(&sink.ready));
        for &index in &needed {
            let Some(entry) = self.manifest.get(index) else { continue };
            match entry.kind {
                EntryKind::File { size: 0 } => {
                    let made = sink.make_small(&entry, b"");
                    ready.push(Ready {
                        entry: index,
                        temp: made.map_err(|errno| sink.system(&entry, errno))?,
                    });
                }
                EntryKind::Stream => {
                    let staged = sink.staged(index, &entry).map_err(|errno| sink.system(&entry, errno))?;
                    lock(&sink.open).remove(&index);
                    sink.set_file_attributes(&staged.fd, &entry, true)
                        .map_err(|errno| sink.system(&entry, errno))?;
                    ready.push(Ready { entry: index, temp: staged.temp });
                }
                _ => {}
            }
        }
        self.name_files(sink, &ready)?;
        // Directories get their attributes last, from the innermost out, because naming a file in one changes its time.
        let mut dirs = Dirs::default();
        for &index in needed.iter().rev() {
            let Some(entry) = self.manifest.get(index) else { continue };
            let path = sink.placement.of(entry.path);
            let made = match entry.kind {
                EntryKind::Directory => sink.finish_dir(&path),
                EntryKind::Link { target } => sink.make_link(&mut dirs, index, &path, target),
                _ => continue,
            };
            match made {
                Ok(()) if entry.kind == EntryKind::Directory => {}
                Ok(()) => {
                    self.observer.files_done.fetch_add(1, Ordering::Relaxed);
                }
                Err(errno) => self.note_failed(index, code_of(errno), reason(errno)),
            }
        }
        for &index in needed.iter().rev() {
            let Some(entry) = self.manifest.get(index) else { continue };
            if entry.kind == EntryKind::Directory {
                let path = sink.placement.of(entry.path);
                if let Err(errno) = sink.set_dir_attributes(&path, &entry) {
                    self.note_failed(index, code_of(errno), reason(errno));
                }
            }
        }
        sink.sync_names()?;
        sink.stage.remove();
        // Who waited for this has nothing left to sync.
        self.done.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// The last word.
    fn report(&self) -> Done {
        let machine = lock(&self.machine);
        let failed = lock(&self.failed);
        let clocks = &self.observer.clocks;
        let mut done = Done {
            durability: match &self.sink {
                Sink::Files(sink) => sink.options.durability,
                Sink::Output(_) => Durability::None,
            },
            failed: shown_failures(failed.values()),
            failed_count: failed.len() as u64,
            wait_micros: clocks.wait.micros(),
            cpu_micros: clocks.cpu.micros(),
            write_micros: clocks.write.micros(),
            ..Done::default()
        };
        for index in machine.needed_entries() {
            let Some(entry) = self.manifest.get(index) else { continue };
            if entry.kind != EntryKind::Directory && !failed.contains_key(&index) {
                done.files += 1;
                done.bytes += entry.size()
                    + machine.stream_size().filter(|_| entry.kind == EntryKind::Stream).unwrap_or(0);
            }
        }
        done
    }
}

/// Ends the other threads of a transfer when its control stream ends, however that happens.
struct EndOnDrop<'a>(&'a Reception);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.joins.end();
        for connection in lock(&self.0.connections).iter().skip(1) {
            connection.close();
        }
        self.0.over.store(true, Ordering::SeqCst);
        self.0.wake_waiting();
    }
}

/// As many failures as fit. A name becomes at most three times as long on the wire.
fn shown_failures<'a>(failed: impl Iterator<Item = &'a Failed>) -> Vec<Failed> {
    let mut left = FAILED_SHOWN_MAX;
    let fits = |failed: &&Failed| {
        let size = 3 * failed.path.len() + 6 * failed.message.len() + 64;
        let fits = size <= left;
        left = left.saturating_sub(size);
        fits
    };
    failed.take_while(fits).take(1000).cloned().collect()
}

fn output_error(error: std::io::Error) -> Error {
    Error::system(
        "writing to standard output",
        error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error),
    )
}

/// Takes chunks off one stream, with buffers of its own.
struct ChunkWorker<'a> {
    reception: &'a Reception,
    plain: Vec<u8>,
    payload: Vec<u8>,
    dirs: Dirs,
}

impl ChunkWorker<'_> {
    /// Receives, checks, writes, journals and confirms one chunk.
    fn chunk(
        &mut self,
        reader: &mut FrameReader,
        header: FrameHeader,
        clock: &mut Instant,
    ) -> Result<(), Error> {
        let reception = self.reception;
        let clocks = &reception.observer.clocks;
        let connection = Arc::clone(reader.connection());
        let (expected, content, slices) = {
            let mut machine = lock(&reception.machine);
            let expected = machine.expect(header.kind, header.size)?;
            let content = machine.table().content(expected.chunk);
            (expected, content, machine.slices(expected.chunk).collect::<Vec<_>>())
        };
        let Some(content) = content else { return Err(Error::with_code(400, "there is no such chunk")) };
        let buffer = if expected.encoded { &mut self.payload } else { &mut self.plain };
        buffer.resize(expected.data_len as usize, 0);
        reception.fill(reader, buffer)?;
        let mut sent = vec![0; reception.algorithm.len()];
        reader.fill(&mut sent).map_err(inside)?;
        let sent = Checksum::from_slice(&sent);
        *clock = clocks.wait.since(*clock);
        let mut extents = None;
        if expected.encoded {
            let (decoded, mut data) = Extents::decode(&self.payload, expected.plain_len)?;
            self.plain.clear();
            self.plain.resize(expected.plain_len as usize, 0);
            for (at, len) in decoded.iter() {
                let (part, rest) = data.split_at(len as usize);
                self.plain[at as usize..(at + len) as usize].copy_from_slice(part);
                data = rest;
            }
            extents = Some(decoded);
        }
        let (computed, slice_sums) =
            checksum(reception.algorithm, &self.plain, &content, &slices, &expected, || {
                lock(&reception.machine).table().one_chunk().bytes()
            });
        *clock = clocks.cpu.since(*clock);
        reception.observer.bytes_moved.fetch_add(self.plain.len() as u64, Ordering::Relaxed);
        let verdict = lock(&reception.machine).check(&expected, &sent, &computed);
        let answer = match verdict {
            Ok(ChunkVerdict::Write) => {
                let written =
                    self.write(&expected, &content, &slices, &slice_sums, extents.as_ref(), &computed);
                if written.is_err() {
                    lock(&reception.machine).handle_write_failed(expected.chunk);
                }
                reception.or_fail(written)?;
                // Given up, or shortened, while it was being written: then it is not held.
                let held = lock(&reception.machine).checksum(expected.chunk).is_some();
                held.then(|| Control::Confirm(vec![expected.chunk]))
            }
            Ok(ChunkVerdict::Confirm) => Some(Control::Confirm(vec![expected.chunk])),
            Ok(ChunkVerdict::Again) => Some(Control::Again(vec![expected.chunk])),
            Ok(ChunkVerdict::Ignore) => None,
            Err(violation) if violation.code == 422 => return reception.or_fail(Err(violation.into())),
            Err(violation) => return Err(violation.into()),
        };
        *clock = clocks.write.since(*clock);
        if let Some(answer) = answer {
            connection.send_control(&answer)?;
        }
        Ok(())
    }

    fn write(
        &mut self,
        expected: &Expected,
        content: &ChunkContent,
        slices: &[(EntryIndex, u32)],
        slice_sums: &[Checksum],
        extents: Option<&Extents>,
        checksum: &Checksum,
    ) -> Result<(), Error> {
        let reception = self.reception;
        let completed = match &reception.sink {
            Sink::Output(output) => {
                output.write(expected.chunk, *checksum, &self.plain).map_err(output_error)?;
                lock(&reception.machine).handle_written(expected.chunk, checksum)
            }
            Sink::Files(sink) => {
                let _working = sink.working.read().unwrap_or_else(PoisonError::into_inner);
                let mut temps = Vec::new();
                match *content {
                    ChunkContent::Piece { entry, offset, .. } | ChunkContent::Stream { entry, offset } => {
                        self.write_piece(sink, entry, offset, extents, checksum)?;
                    }
                    ChunkContent::Pack { .. } => temps = self.write_pack(sink, slices, slice_sums)?,
                }
                let completed = {
                    let mut machine = lock(&reception.machine);
                    if matches!(content, ChunkContent::Stream { .. }) {
                        machine.handle_stream_bytes(expected.plain_len);
                    }
                    machine.handle_written(expected.chunk, checksum)
                };
                self.complete(sink, completed, temps)?;
                completed
            }
        };
        if matches!(completed, Completed::File(_)) && matches!(reception.sink, Sink::Output(_)) {
            reception.observer.files_done.fetch_add(1, Ordering::Relaxed);
        }
        reception.observer.bytes_done.fetch_add(self.plain.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn write_piece(
        &mut self,
        sink: &FileSink,
        index: EntryIndex,
        offset: u64,
        extents: Option<&Extents>,
        checksum: &Checksum,
    ) -> Result<(), Error> {
        let Some(entry) = self.reception.manifest.get(index) else { return Ok(()) };
        let system = |errno| sink.system(&entry, errno);
        let end = offset + self.plain.len() as u64;
        if sink.options.size_max.is_some_and(|max| end > max) {
            return Err(Error::with_code(413, "more bytes than one transfer may have here"));
        }
        let staged = sink.staged(index, &entry).map_err(system)?;
        match extents {
            None => write_all_at(staged.fd.as_fd(), &self.plain, offset).map_err(system)?,
            Some(extents) => {
                if staged.dirty {
                    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    let punched = rustix::fs::fallocate(&staged.fd, flags, offset, self.plain.len() as u64);
                    if punched.is_err() {
                        write_all_at(staged.fd.as_fd(), &self.plain, offset).map_err(system)?;
                    }
                }
                for (at, len) in extents.iter() {
                    let part = &self.plain[at as usize..(at + len) as usize];
                    write_all_at(staged.fd.as_fd(), part, offset + u64::from(at)).map_err(system)?;
                }
            }
        }
        if matches!(entry.kind, EntryKind::File { .. }) {
            let one = u64::from(lock(&self.reception.machine).table().one_chunk().bytes());
            let record =
                Record::Piece { temp: staged.temp, piece: (offset / one) as u32, checksum: *checksum };
            sink.stage
                .journal()
                .append(&[record])
                .map_err(|errno| Error::system("writing the journal", errno))?;
        }
        Ok(())
    }

    fn write_pack(
        &mut self,
        sink: &FileSink,
        slices: &[(EntryIndex, u32)],
        sums: &[Checksum],
    ) -> Result<Vec<Ready>, Error> {
        let mut rest = &self.plain[..];
        let mut made = Vec::with_capacity(slices.len());
        let mut records = Vec::with_capacity(slices.len());
        for (&(index, size), &checksum) in slices.iter().zip(sums) {
            let (bytes, after) = rest.split_at(size as usize);
            rest = after;
            let Some(entry) = self.reception.manifest.get(index) else { continue };
            let temp = sink.make_small(&entry, bytes).map_err(|errno| sink.system(&entry, errno))?;
            made.push(Ready { entry: index, temp });
            let key = FileKey::new(sink.placement.of(entry.path), size.into(), entry.mtime);
            records.push(Record::Small { temp, checksum, key });
            if let Ok(hash) = <[u8; 32]>::try_from(checksum.as_bytes()) {
                lock(&self.reception.hashes).insert(index, hash);
            }
        }
        sink.stage.journal().append(&records).map_err(|errno| Error::system("writing the journal", errno))?;
        Ok(made)
    }

    /// Readies what has become complete for its name.
    fn complete(&mut self, sink: &FileSink, completed: Completed, small: Vec<Ready>) -> Result<(), Error> {
        match completed {
            Completed::Nothing => {
                // A pack that was given up while it was being written.
                for ready in &small {
                    sink.stage.remove_temp(ready.temp);
                }
                return Ok(());
            }
            Completed::File(index) => {
                let Some(entry) = self.reception.manifest.get(index) else { return Ok(()) };
                let staged = lock(&sink.open).remove(&index);
                if let Some(staged) = staged {
                    let system = |errno| sink.system(&entry, errno);
                    sink.set_file_attributes(&staged.fd, &entry, true).map_err(system)?;
                    lock(&sink.ready).push(Ready { entry: index, temp: staged.temp });
                }
            }
            Completed::Pack(..) => lock(&sink.ready).extend(small),
        }
        let batch = {
            let mut ready = lock(&sink.ready);
            // Without syncs there is nothing to wait for.
            let full = ready.len() >= NAMING_BATCH || sink.options.durability == Durability::None;
            if full { std::mem::take(&mut *ready) } else { Vec::new() }
        };
        if !batch.is_empty() {
            self.reception.name_files(sink, &batch)?;
        }
        self.dirs = Dirs::default();
        Ok(())
    }
}

fn inside(ended: Ended) -> Error {
    match ended {
        Ended::Closed => Ended::Broken("it ended inside a frame".into()).into(),
        other => other.into(),
    }
}

/// Notes a folder, and those above it: any of them may be new.
fn note_with_ancestors(folders: &mut BTreeSet<Vec<u8>>, folder: &[u8]) {
    let mut folder = folder;
    while folders.insert(folder.to_vec()) && !folder.is_empty() {
        folder = split(folder).0;
    }
}

/// The checksum of a chunk, and of its slices if it is a pack.
fn checksum(
    algorithm: Algorithm,
    plain: &[u8],
    content: &ChunkContent,
    slices: &[(EntryIndex, u32)],
    expected: &Expected,
    one_chunk: impl Fn() -> u32,
) -> (Checksum, Vec<Checksum>) {
    match *content {
        ChunkContent::Piece { offset, whole, .. } => (algorithm.of_piece(plain, offset, whole), Vec::new()),
        ChunkContent::Stream { offset, .. } => {
            let whole = offset == 0 && expected.plain_len < one_chunk();
            (algorithm.of_piece(plain, offset, whole), Vec::new())
        }
        ChunkContent::Pack { .. } => {
            let mut pack = PackChecksum::new(algorithm);
            let mut rest = plain;
            let mut sums = Vec::with_capacity(slices.len());
            for &(_, size) in slices {
                let (bytes, after) = rest.split_at((size as usize).min(rest.len()));
                rest = after;
                let sum = algorithm.of(bytes);
                pack.push(&sum);
                sums.push(sum);
            }
            (pack.finish(), sums)
        }
    }
}

impl FileSink {
    fn system(&self, entry: &Entry<'_>, errno: Errno) -> Error {
        Error::system(format!("writing {}", crate::shown(&self.placement.of(entry.path))), errno)
    }

    /// Whether anything here is worth keeping for another attempt.
    fn has_something(&self) -> bool {
        let names = crate::walk::names(self.stage.folder()).unwrap_or_default();
        // Not the journal; and not a stream, which cannot be continued: its beginning would have to be read again.
        // If names have been given beneath a name of its own, the journal has to tell the next attempt so.
        let begun = self.placement.named().is_some() && self.named_any.load(Ordering::Relaxed);
        begun || names.len() > 1 + usize::from(lock(&self.stream).is_some())
    }

    fn check_space(&self, needed: u64, total: u64) -> Result<(), Error> {
        if self.options.size_max.is_some_and(|max| total > max) {
            return Err(Error::with_code(413, "more bytes than one transfer may have here"));
        }
        let free = rustix::fs::fstatvfs(&*self.root).map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize));
        match free {
            Ok(free) if free.saturating_sub(self.options.free_min) < needed => {
                Err(Error::with_code(507, format!("no space: {needed} bytes are needed and {free} are free")))
            }
            _ => Ok(()),
        }
    }

    /// Moves in what earlier transfers left of the files that are needed. How many whole files that was, and bytes.
    fn take_over(
        &self,
        found: Vec<Leftovers>,
        machine: &mut Receiver,
        algorithm: Algorithm,
        hashes: &mut BTreeMap<EntryIndex, [u8; 32]>,
    ) -> Result<(u64, u64), Error> {
        let mut by_key: HashMap<&FileKey, (usize, usize)> = HashMap::new();
        for (folder, leftovers) in found.iter().enumerate() {
            by_key.extend(leftovers.keys().map(|(key, at)| (key, (folder, at))));
        }
        let manifest = Arc::clone(machine.manifest());
        let one_chunk = machine.table().one_chunk();
        let (mut whole, mut bytes) = (0, 0);
        for (index, entry) in manifest.iter() {
            if entry.size() == 0 || !machine.is_needed(index) || by_key.is_empty() {
                continue;
            }
            let key = FileKey::new(self.placement.of(entry.path), entry.size(), entry.mtime);
            let Some(&(folder, at)) = by_key.get(&key) else { continue };
            let leftovers = &found[folder];
            let left = if self.options.resume { leftovers.verify(at, algorithm, one_chunk) } else { None };
            let Some(left) = left else {
                leftovers.discard(at);
                continue;
            };
            let temp = self.stage.adopt(leftovers, &left)?;
            bytes += self.hold(machine, index, &entry, temp, &left, hashes)?;
            whole += u64::from(matches!(left.content, LeftContent::Whole(_)));
        }
        found.into_iter().for_each(Leftovers::close);
        Ok((whole, bytes))
    }

    /// Counts what was moved in; how many bytes that are.
    fn hold(
        &self,
        machine: &mut Receiver,
        index: EntryIndex,
        entry: &Entry<'_>,
        temp: u32,
        left: &Left,
        hashes: &mut BTreeMap<EntryIndex, [u8; 32]>,
    ) -> Result<u64, Error> {
        let system = |errno| self.system(entry, errno);
        match &left.content {
            LeftContent::Whole(checksum) => {
                machine.skip(index, SkipReason::Held);
                let mtime = self.options.times.then_some(entry.mtime);
                self.stage.set_temp_attributes(temp, mtime, self.file_mode(entry)).map_err(system)?;
                lock(&self.ready).push(Ready { entry: index, temp });
                if let Ok(hash) = <[u8; 32]>::try_from(checksum.as_bytes()) {
                    hashes.insert(index, hash);
                }
                Ok(entry.size())
            }
            LeftContent::Pieces(pieces) => {
                let one = u64::from(machine.table().one_chunk().bytes());
                let Some((first, _)) = machine.table().chunks_of(index) else { return Ok(0) };
                let mut bytes = 0;
                let mut complete = false;
                for (&piece, checksum) in pieces {
                    complete |= machine.hold(ChunkIndex(first.0 + piece), checksum) == Completed::File(index);
                    bytes += one.min(entry.size() - u64::from(piece) * one);
                }
                if complete {
                    let mtime = self.options.times.then_some(entry.mtime);
                    self.stage.set_temp_attributes(temp, mtime, self.file_mode(entry)).map_err(system)?;
                    lock(&self.ready).push(Ready { entry: index, temp });
                } else {
                    let fd = self.stage.open_temp(temp).map_err(system)?;
                    lock(&self.open).insert(index, Arc::new(Staged { temp, fd, dirty: true }));
                }
                Ok(bytes)
            }
        }
    }

    /// The temporary file of a big file or stream; created, journaled and given its size if it is new.
    fn staged(&self, index: EntryIndex, entry: &Entry<'_>) -> Result<Arc<Staged>, Errno> {
        let mut open = lock(&self.open);
        if let Some(staged) = open.get(&index) {
            return Ok(Arc::clone(staged));
        }
        let (temp, fd) = self.stage.new_temp(0o600)?;
        if entry.kind == EntryKind::Stream {
            *lock(&self.stream) = Some(temp);
        } else {
            rustix::fs::ftruncate(&fd, entry.size())?;
            let key = FileKey::new(self.placement.of(entry.path), entry.size(), entry.mtime);
            self.stage.journal().append(&[Record::File { temp, key }])?;
        }
        let staged = Arc::new(Staged { temp, fd, dirty: false });
        open.insert(index, Arc::clone(&staged));
        Ok(staged)
    }

    fn file_mode(&self, entry: &Entry<'_>) -> u32 {
        if self.options.mode && entry.kind != EntryKind::Stream { entry.mode } else { self.default_file_mode }
    }

    fn set_file_attributes(&self, fd: &OwnedFd, entry: &Entry<'_>, mode: bool) -> Result<(), Errno> {
        let mtime = (self.options.times && entry.kind != EntryKind::Stream).then_some(entry.mtime);
        set_attributes(fd.as_fd(), mtime, mode.then(|| self.file_mode(entry)))
    }

    /// Writes a small file under a temporary name, complete with its attributes.
    fn make_small(&self, entry: &Entry<'_>, bytes: &[u8]) -> Result<u32, Errno> {
        let mode = self.file_mode(entry);
        let (temp, fd) = self.stage.new_temp(mode)?;
        write_all_at(fd.as_fd(), bytes, 0)?;
        // Creating it gave it this mode already, unless the umask took something away.
        self.set_file_attributes(
            &fd,
            entry,
            mode & !self.default_file_mode & 0o666 != 0 || mode & 0o111 != 0,
        )?;
        Ok(temp)
    }

    /// Gives a complete file its name, without replacing anything that it was not told to.
    fn give_name(
        &self,
        dirs: &mut Dirs,
        index: EntryIndex,
        entry: &Entry<'_>,
        temp: u32,
    ) -> Result<(), Errno> {
        let path = self.placement.of(entry.path);
        let temp = self.stage.temp_name(temp);
        let (folder, name) = split(&path);
        let exception = self.exceptions.get(&index);
        let to = dirs.make(&self.root, folder)?;
        match exception {
            Some(exception) => self.rename_as(exception, &temp, to, name)?,
            None => rename(self.stage.folder(), temp.as_bytes(), to, name, false)?,
        }
        self.named_any.store(true, Ordering::Relaxed);
        let mut named_in = lock(&self.named_in);
        note_with_ancestors(&mut named_in, folder);
        Ok(())
    }

    /// Moves a temporary file to where something else is, as it was decided for it.
    fn rename_as(&self, how: &Verdict, temp: &str, to: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
        let from = self.stage.folder();
        if *how != Verdict::Renamed {
            return rename(from, temp.as_bytes(), to, name, *how == Verdict::Replace);
        }
        for n in 1..NUMBERED_MAX {
            match rename(from, temp.as_bytes(), to, &numbered(name, n), false) {
                Err(Errno::EXIST) => {}
                result => return result,
            }
        }
        Err(Errno::EXIST)
    }

    fn make_link(&self, dirs: &mut Dirs, index: EntryIndex, path: &[u8], target: &[u8]) -> Result<(), Errno> {
        let (folder, name) = split(path);
        let folder_fd = dirs.make(&self.root, folder)?;
        match self.exceptions.get(&index) {
            None => rustix::fs::symlinkat(target, folder_fd, name)?,
            Some(exception) => {
                let temp = format!("{}.link", self.stage.temp_name(index.0));
                rustix::fs::symlinkat(target, self.stage.folder(), &temp[..])?;
                let renamed = self.rename_as(exception, &temp, folder_fd, name);
                if renamed.is_err() {
                    let _ = rustix::fs::unlinkat(self.stage.folder(), &temp[..], AtFlags::empty());
                }
                renamed?;
            }
        }
        note_with_ancestors(&mut lock(&self.named_in), folder);
        Ok(())
    }

    fn finish_dir(&self, path: &[u8]) -> Result<(), Errno> {
        self.root.make_dirs(path)?;
        note_with_ancestors(&mut lock(&self.named_in), path);
        Ok(())
    }

    fn set_dir_attributes(&self, path: &[u8], entry: &Entry<'_>) -> Result<(), Errno> {
        let fd = self.root.open_dir(path)?;
        set_attributes(
            fd.as_fd(),
            self.options.times.then_some(entry.mtime),
            self.options.mode.then_some(entry.mode),
        )
    }

    fn sync_names(&self) -> Result<(), Error> {
        let dirs: Vec<_> = std::mem::take(&mut *lock(&self.named_in)).into_iter().collect();
        self.stage.sync_dirs(&dirs)
    }
}
