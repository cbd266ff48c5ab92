//! Receiving: chunks off connections, into files, into the
//! journal, and in the end under their names.

use super::compare::{Compared, Places, compare};
use super::files::{FileSink, Ready, ReceiveOptions, naming_reason};
use super::inquiry::Inquiry;
use super::mounts::{Mounts, Refusal};
use super::output::{OutputFile, OutputSink, changed, expect_one_file, output_error};
use super::place::Placement;
use super::turns::{PATIENCE, Turn, Turns};
use super::worker::{ChunkWorker, inside};
use super::{Joined, Joins, lock};
use crate::connection::{Connection, Ended, FrameReader};
use crate::error::{Error, code_of, reason};
use crate::journal::FileKey;
use crate::observe::{Observer, Phase};
use crate::root::{Dirs, Root, split};
use crate::stage::{Busy, Leftovers, Stage, is_poison};
use crate::stop::Stop;
use crate::throttle::Throttle;
use fastdrop_proto::checksum::{Algorithm, join_blake3};
use fastdrop_proto::fastdp::Spent;
use fastdrop_proto::fastdp::{
    Control, Done, Durability, EntryKind, Failed, FrameKind, IdentityTable, Manifest, Receiver, SkipReason,
    Table, Violation,
};
use fastdrop_proto::units::{ChunkIndex, EntryIndex};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Complete files are named before END when so many of them are proven.
const NAMING_BATCH: usize = 1024;
/// How often the sender hears that this end is alive.
const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// Bytes of failures that are told one by one, as they are encoded: they must fit into one frame.
const FAILED_SHOWN_MAX: usize = 512 << 10;

/// Where bytes end up.
#[derive(Debug)]
pub(crate) enum Sink {
    /// In files beneath a root.
    Files(Box<FileSink>),
    /// In a pipe, in order: one file.
    Output(Arc<OutputSink>),
}

/// One transfer that is being received.
#[derive(Debug)]
pub(crate) struct Reception {
    pub(super) machine: Mutex<Receiver>,
    pub(super) manifest: Arc<Manifest>,
    pub(super) algorithm: Algorithm,
    pub(super) sink: Sink,
    pub(super) observer: Arc<Observer>,
    pub(super) stop: Stop,
    pub(super) throttle: OnceLock<Throttle>,
    pub(super) connections: Mutex<Vec<Arc<Connection>>>,
    pub(super) failed: Mutex<BTreeMap<EntryIndex, Failed>>,
    pub(super) hashes: Mutex<BTreeMap<EntryIndex, [u8; 32]>>,
    /// How the sender spent its time.
    pub(super) spent: Mutex<Spent>,
    /// What has become of the contents of an archive.
    pub(super) unpacked: Mutex<Option<Done>>,
    /// What was listed and is not in the archive.
    pub(super) unlisted: Mutex<Vec<Failed>>,
    /// Why it ended, if not well.
    pub(super) error: Mutex<Option<Error>>,
    /// Over, one way or the other: no stream is served any more.
    pub(super) over: AtomicBool,
    /// For those who wait until it is done, over or left.
    pub(super) waiting: Mutex<()>,
    pub(super) over_changed: Condvar,
    /// Every thread has left, and the journal is free for others.
    pub(super) left: AtomicBool,
    pub(super) done: AtomicBool,
    /// Turns that streams on the shortest paths take with those of other transfers.
    turns: OnceLock<Arc<Turns>>,
    pub(crate) joins: Joins,
}

/// What a transfer has to do before its chunks can come.
pub(crate) struct Prepared {
    pub(crate) reception: Arc<Reception>,
    /// SKIP, HELD and NEED.
    pub(crate) answer: Vec<Control>,
    /// Files that were there, or are left alone.
    pub(crate) skipped: u64,
    /// How many of them differ from what was asked for.
    pub(crate) left: u64,
    /// Bytes that need not be sent, because they are here: of
    /// skipped files, and of unfinished ones.
    pub(crate) bytes_skipped: u64,
    pub(crate) bytes_resumed: u64,
}

/// What a transfer would do.
pub(crate) struct Preview {
    /// SKIP and NEED.
    pub(crate) answer: Vec<Control>,
    /// Entries that would come.
    pub(crate) needed: BTreeSet<EntryIndex>,
    /// Files that are there, or would be left alone; how many of them differ.
    pub(crate) skipped: u64,
    pub(crate) left: u64,
    /// The last word of a receiver that brought nothing: what could not be brought.
    pub(crate) done: Done,
}

impl Reception {
    /// Looks at what is there, refuses what must be refused, and makes a stage.
    ///
    /// `busy` hears the folder of every transfer under way beneath the root,
    /// and says whether it has made that end.
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
        mut inquiry: Option<Inquiry<'_>>,
    ) -> Result<Prepared, Error> {
        if options.size_max.is_some_and(|max| manifest.bytes() > max) {
            return Err(Error::with_code(413, "more bytes than one transfer may have here"));
        }
        // What a transfer under way is about to name must have its name, or never
        // get it, before anything is compared.
        let mut refused = None;
        let wanted = |key: &FileKey| placement.entry_of(key, &manifest).is_some();
        // An archive is neither compared nor continued; its contents are, once they are known.
        let unpack = options.unpack.is_some();
        let named = placement.named().filter(|_| !unpack);
        let mut is_busy = |name: &str| {
            busy(name).unwrap_or_else(|error| {
                refused = Some(error);
                Busy::Known
            })
        };
        // Without a sender that could say so, nobody knows whether
        // what is left is of the same file.
        let leftovers = match &inquiry {
            Some(inquiry) if inquiry.may_resume() => {
                Leftovers::find(&root, named.as_deref(), wanted, &mut is_busy)
            }
            _ => Vec::new(),
        };
        if let Some(error) = refused {
            return Err(error);
        }
        let mut machine = Receiver::new(Arc::clone(&manifest), table, algorithm);
        let mut mounts = Mounts::default();
        let one_chunk = machine.table().one_chunk();
        let begin =
            || Stage::create(Arc::clone(&root), algorithm, one_chunk, options.durability, named.clone());
        // What is lent is noted in the journal first.
        let mut stage = None;
        let mut lend = |folder: &[u8]| {
            let lendable = crate::stage::could_lend(&root, folder);
            if !lendable {
                return Ok(false);
            }
            let stage = match stage.take() {
                Some(begun) => stage.insert(begun),
                None => stage.insert(begin()?),
            };
            stage.lend(folder).map_err(|errno| Error::system(crate::shown(folder), errno))
        };
        let compared = match unpack {
            true => {
                let mut dirs = Dirs::default();
                for (index, entry) in manifest.iter() {
                    mounts.note(&root, &mut dirs, index, &placement.of(entry.path), true)?;
                }
                Ok(Compared::default())
            }
            false => {
                let places = Places { mounts: &mut mounts, lend: &mut lend };
                compare(&mut machine, &root, &placement, &options, inquiry.as_mut(), places, &stop)
            }
        };
        let compared = compared.inspect_err(|_| stage.iter().for_each(Stage::remove))?;
        let Compared { exceptions, adjust, failed: unplaced, skipped, left, bytes_skipped } = compared;
        let mut bytes_resumed = 0;
        let mut stage = stage.map_or_else(begin, Ok)?;
        let mut failed =
            match mounts.stage(&root, &mut stage).and_then(|()| give_up_unstaged(&mounts, &mut machine)) {
                Ok(failed) => failed,
                Err(error) => {
                    stage.remove();
                    return Err(error);
                }
            };
        failed.extend(unplaced);
        let sink = FileSink::new(Arc::clone(&root), placement, stage, mounts, options, exceptions, adjust);
        let mut hashes = BTreeMap::new();
        let unknown = IdentityTable::default();
        // Only unfinished work is worth waiting for what the sender calls its files.
        let identities = match inquiry.as_mut().filter(|_| !leftovers.is_empty()) {
            Some(inquiry) => inquiry.identities(),
            None => Ok(&unknown),
        };
        let taken = identities.and_then(|identities| {
            sink.take_over(leftovers, &mut machine, identities, algorithm, &mut hashes)
        });
        match taken {
            Ok(bytes) => bytes_resumed += bytes,
            Err(error) => {
                // What has been moved in already stays for another attempt.
                if !sink.has_something() {
                    sink.stage.remove();
                }
                return Err(error);
            }
        }
        let answer = machine.answer();
        if let Err(error) = sink.check_space(&sink.needed(&machine), manifest.bytes()) {
            // What an earlier transfer left was moved in here: it stays for when there is room.
            if bytes_resumed == 0 {
                sink.stage.remove();
            }
            return Err(error);
        }
        if let Some(inquiry) = inquiry {
            *lock(&sink.identities) = inquiry.into_identities();
        }
        let reception = Self::new(machine, Sink::Files(Box::new(sink)), observer, stop, hashes);
        lock(&reception.failed).extend(failed);
        Ok(Prepared { reception, answer, skipped, left, bytes_skipped, bytes_resumed })
    }

    /// What [`Self::prepare`] would answer, without changing anything: the
    /// frames, and how many files need not come.
    ///
    /// # Errors
    ///
    /// What would be refused.
    pub(crate) fn preview(
        mut machine: Receiver,
        root: &Root,
        placement: &Placement,
        options: &ReceiveOptions,
        stop: &Stop,
        mut inquiry: Inquiry<'_>,
    ) -> Result<Preview, Error> {
        let manifest = Arc::clone(machine.manifest());
        if options.size_max.is_some_and(|max| manifest.bytes() > max) {
            return Err(Error::with_code(413, "more bytes than one transfer may have here"));
        }
        let mut mounts = Mounts::default();
        let mut compared = Compared::default();
        if options.unpack.is_none() {
            let places = Places { mounts: &mut mounts, lend: &mut |_| Ok(false) };
            compared = compare(&mut machine, root, placement, options, Some(&mut inquiry), places, stop)?;
        }
        let Compared { mut failed, skipped, left, .. } = compared;
        failed.extend(unwritable(root, placement, &mut machine)?);
        mounts.check_room_for_all(root, &machine, options)?;
        let answer = machine.answer();
        let needed = (0..manifest.len()).map(EntryIndex).filter(|&index| machine.is_needed(index)).collect();
        let (failed, failed_count) = (shown_failures(failed.values()), failed.len() as u64);
        let done = Done { failed, failed_count, durability: options.durability, ..Done::default() };
        Ok(Preview { answer, needed, skipped, left, done })
    }

    /// A reception of one file into a pipe.
    pub(crate) fn to_output(
        manifest: Arc<Manifest>,
        table: Table,
        algorithm: Algorithm,
        sink: Arc<OutputSink>,
        observer: Arc<Observer>,
        stop: Stop,
        mut inquiry: Inquiry<'_>,
    ) -> Result<Prepared, Error> {
        expect_one_file(&manifest)?;
        let one = u64::from(table.one_chunk().bytes());
        let whole = manifest.bytes() < one;
        let mut machine = Receiver::new(Arc::clone(&manifest), table, algorithm);
        let mut bytes_resumed = 0;
        let Some(entry) = manifest.get(EntryIndex(0)) else {
            return Err(Error::with_code(400, "an empty manifest"));
        };
        let key = FileKey::new(entry.path.as_bytes().to_vec(), entry.size(), entry.mtime);
        let begun = sink.has_begun();
        let identity = if begun { inquiry.identities()?.get(EntryIndex(0)) } else { 0 };
        let one_chunk = machine.table().one_chunk().bytes();
        let (written, same) = sink.begin(OutputFile { key, identity, one_chunk, algorithm })?;
        // Whether it is the same file can be found out chunk by chunk,
        // where the sender knows how to compare.
        let is_comparable = inquiry.knows_identities() && !algorithm.is_empty() && !whole;
        if !same && !is_comparable {
            return Err(changed());
        }
        if whole && !written.is_empty() {
            // All of it is there, in a pack of one.
            machine.skip(EntryIndex(0), SkipReason::Held);
        }
        for (at, checksum) in written.iter().enumerate().filter(|_| !whole) {
            let chunk = ChunkIndex(at as u32);
            if same {
                machine.hold(chunk, checksum);
            } else {
                machine.claim(chunk, checksum);
            }
            bytes_resumed += one.min(manifest.bytes() - at as u64 * one);
        }
        let answer = machine.answer();
        let reception = Self::new(machine, Sink::Output(sink), observer, stop, BTreeMap::new());
        Ok(Prepared { reception, answer, skipped: 0, left: 0, bytes_skipped: 0, bytes_resumed })
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
            spent: Mutex::default(),
            unpacked: Mutex::default(),
            unlisted: Mutex::default(),
            error: Mutex::default(),
            over: AtomicBool::new(false),
            waiting: Mutex::default(),
            over_changed: Condvar::new(),
            left: AtomicBool::new(false),
            done: AtomicBool::new(false),
            turns: OnceLock::new(),
            joins: Joins::default(),
        })
    }

    /// Has streams on the shortest paths take turns with those of other transfers.
    pub(crate) fn set_turns(&self, turns: &Arc<Turns>) {
        let _ = self.turns.set(Arc::clone(turns));
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
    pub(super) fn fill(&self, reader: &mut FrameReader, buffer: &mut [u8]) -> Result<(), Error> {
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

    /// How the sender spent its time, as far as it has said.
    pub(crate) fn spent(&self) -> Spent {
        *lock(&self.spent)
    }

    /// What did not arrive.
    pub(crate) fn failed(&self) -> Vec<Failed> {
        let unpacked = lock(&self.unpacked).iter().flat_map(|done| done.failed.clone()).collect::<Vec<_>>();
        let unlisted = lock(&self.unlisted).clone();
        lock(&self.failed).values().cloned().chain(unpacked).chain(unlisted).collect()
    }

    /// Whether DONE has been said.
    pub(crate) fn is_done(&self) -> bool {
        self.done.load(Ordering::SeqCst)
    }

    /// Runs the transfer over its control stream, to its end; data streams
    /// come through [`Self::joins`] or `more`.
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
        // What is done stays done, whoever wanted to end it a moment later.
        if self.is_done() {
            return Ok(self.report());
        }
        if let Some(error) = lock(&self.error).take() {
            let _ = connection.send_control(&Control::Refuse(error.refusal()));
            connection.finish_writing();
            self.give_up(&error);
            return Err(error);
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
            return;
        }
        if self.stop.is_stopped() {
            // Leaving in good order: what is here is made to survive more
            // than the end of this process.
            let _ = self.checkpoint(sink);
        }
        sink.stage.give_back();
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

    pub(super) fn ending(&self) -> bool {
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
            // It breaks the rules, or what it brings contradicts what is
            // here: that connection ends.
            Err(error) => {
                tracing::warn!(%error, "a data stream was ended");
                let _ = connection.send_control(&Control::Refuse(error.refusal()));
                connection.finish_writing();
            }
        }
        connection.close();
        lock(&self.connections).retain(|other| !Arc::ptr_eq(other, &connection));
    }

    /// Reads frames until the stream ends. `control` is the connection
    /// itself if this is the control stream.
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
            // Whoever ends the transfer closes what is in the list; a stream
            // that comes later sees that by itself.
            if self.ending() {
                return Ok(());
            }
            connections.push(Arc::clone(&connection));
            self.observer.set_streams(connections.len() as u64 - 1);
        }
        let mut turn = Turn::new(self.turns.get().filter(|_| connection.is_shortest()).cloned());
        let mut worker = ChunkWorker::new(self);
        let mut clock = Instant::now();
        loop {
            if lock(&self.error).is_some() {
                return Ok(());
            }
            if turn.is_taken() && !reader.comes_within(PATIENCE) {
                turn.give_back();
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
                        (Control::Identity(part), Some(_)) => match (&self.sink, part.identities.first()) {
                            (Sink::Files(sink), _) => lock(&sink.identities).handle(&part)?,
                            (Sink::Output(sink), Some(&identity)) => sink.set_identity(identity),
                            (Sink::Output(_), None) => {}
                        },
                        (Control::Same(chunks), Some(_)) => {
                            clock = self.observer.clocks.wait.since(clock);
                            chunks.into_iter().try_for_each(|chunk| worker.same(chunk))?;
                            self.observer.clocks.write.since(clock);
                        }
                        (Control::Proven(proven), Some(_)) => {
                            let handled = lock(&self.machine).handle_proven(&proven);
                            self.or_fail(handled.map_err(Error::from))?;
                            clock = self.observer.clocks.wait.since(clock);
                            self.or_fail(self.name_proven())?;
                            self.observer.clocks.write.since(clock);
                        }
                        (Control::End(digest), Some(_)) => lock(&self.machine).handle_end(digest)?,
                        (Control::Spent(spent), Some(_)) => *lock(&self.spent) = spent,
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
                _ => {
                    turn.wait();
                    worker.chunk(&mut reader, header, &mut clock)?;
                }
            }
            self.finish_if_complete()?;
        }
    }

    /// Passes a result on; an error ends the whole transfer.
    pub(super) fn or_fail<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|error| {
            let told = Error::with_code(error.code(), error.to_string());
            self.fail(error);
            told
        })
    }

    fn note_failed(&self, entry: EntryIndex, code: u16, message: impl Into<String>) {
        let path = self.manifest.get(entry).map(|entry| entry.path.as_bytes().to_vec()).unwrap_or_default();
        // What follows from a failure is no reason of its own.
        lock(&self.failed).entry(entry).or_insert(Failed { path, code, message: message.into() });
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
        let proven = self.take_proven(sink, 1);
        self.name_files(sink, &proven)?;
        sink.sync_names()?;
        sink.stage.sync_journal()
    }

    /// Gives the files that are proven their names, if there are enough of them.
    fn name_proven(&self) -> Result<(), Error> {
        let Sink::Files(sink) = &self.sink else { return Ok(()) };
        let _working = sink.working.read().unwrap_or_else(PoisonError::into_inner);
        // Without syncs there is nothing to wait for.
        let least = if sink.options.durability == Durability::None { 1 } else { NAMING_BATCH };
        let proven = self.take_proven(sink, least);
        self.name_files(sink, &proven)
    }

    /// Takes the files that are complete and proven, if they are at least so many.
    fn take_proven(&self, sink: &FileSink, least: usize) -> Vec<Ready> {
        let machine = lock(&self.machine);
        let mut ready = lock(&sink.ready);
        let (proven, rest): (Vec<_>, Vec<_>) =
            ready.iter().copied().partition(|ready| machine.is_proven(ready.entry));
        if proven.len() < least {
            return Vec::new();
        }
        *ready = rest;
        proven
    }

    /// Gives complete files their names, once they are synced.
    pub(super) fn name_files(&self, sink: &FileSink, ready: &[Ready]) -> Result<(), Error> {
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
                    sink.keep_unnamed(&entry, temp, errno);
                    self.note_failed(index, code_of(errno), naming_reason(errno));
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
        // The control stream was the first; DONE goes there, and the
        // others have nothing more to bring.
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

    pub(super) fn finish_files(&self, sink: &FileSink) -> Result<(), Error> {
        let _nobody_working = sink.working.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(unpack) = sink.options.unpack {
            self.unpack(sink, unpack)?;
            self.done.store(true, Ordering::SeqCst);
            return Ok(());
        }
        let needed: Vec<_> = lock(&self.machine).needed_entries().collect();
        let mut ready = std::mem::take(&mut *lock(&sink.ready));
        for &index in &needed {
            let Some(entry) = self.manifest.get(index) else { continue };
            match entry.kind {
                EntryKind::File { size: 0 } => {
                    let made = sink.make_small(index, &entry, b"");
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
        // Directories get their attributes last, from the innermost out, because
        // naming a file in one changes its time.
        let mut dirs = Dirs::default();
        for &index in needed.iter().rev() {
            let Some(entry) = self.manifest.get(index) else { continue };
            let path = sink.placement.of(entry.path);
            let made = match entry.kind {
                EntryKind::Directory => sink.finish_dir(&path),
                EntryKind::Link { target } => sink.make_link(&mut dirs, index, &path, target, entry.mtime),
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
        for &index in &sink.adjust {
            let Some(entry) = self.manifest.get(index) else { continue };
            if let Err(errno) = sink.adjust(&mut dirs, &entry) {
                self.note_failed(
                    index,
                    code_of(errno),
                    format!("setting its time and permissions: {}", reason(errno)),
                );
            }
        }
        // They may be in folders of which the times are about to be set.
        if !sink.has_unnamed() {
            sink.stage.remove_elsewhere();
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
        sink.stage.give_back();
        sink.sync_names()?;
        if sink.has_unnamed() {
            sink.stage.sync_journal()?;
        } else {
            sink.stage.remove();
        }
        // Who waited for this has nothing left to sync.
        self.done.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// The last word.
    pub(super) fn report(&self) -> Done {
        let unpacked = lock(&self.unpacked).clone();
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
        if let Some(Done { files, bytes, skipped, left, failed, failed_count, .. }) = unpacked {
            return Done { files, bytes, skipped, left, failed, failed_count, ..done };
        }
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

/// Gives up the entries that would live where no temporary file can be.
///
/// # Errors
///
/// The reason, if nothing else is needed.
fn give_up_unstaged(mounts: &Mounts, machine: &mut Receiver) -> Result<BTreeMap<EntryIndex, Failed>, Error> {
    let mut failed = BTreeMap::new();
    if !mounts.has_refused() {
        return Ok(failed);
    }
    let manifest = Arc::clone(machine.manifest());
    let mut others = false;
    for (index, entry) in manifest.iter() {
        if entry.kind == EntryKind::Directory || !machine.is_needed(index) {
            continue;
        }
        match mounts.part_of(index) {
            Err(Refusal { code, message }) => {
                machine.skip(index, SkipReason::Policy);
                let path = entry.path.as_bytes().to_vec();
                failed.insert(index, Failed { path, code: *code, message: message.clone() });
            }
            Ok(_) => others = true,
        }
    }
    match failed.values().next() {
        Some(first) if !others => Err(Error::with_code(first.code, first.message.clone())),
        _ => Ok(failed),
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

/// Skips what could not be made, because the folder that it would be
/// in is somebody else's; what that is.
///
/// # Errors
///
/// The root is one of those folders: no transfer could begin.
fn unwritable(
    root: &Root,
    placement: &Placement,
    machine: &mut Receiver,
) -> Result<BTreeMap<EntryIndex, Failed>, Error> {
    use rustix::fs::{Access, AtFlags, accessat, fstat};
    let denied = |dirs: &mut Dirs, folder: &[u8]| {
        let mut there = folder;
        let fd = loop {
            match dirs.find(root, there) {
                Ok(Some(fd)) => break fd,
                Ok(None) if !there.is_empty() => there = split(there).0,
                Ok(None) | Err(_) => return None,
            }
        };
        let own = fstat(fd).is_ok_and(|stat| stat.st_uid == rustix::process::geteuid().as_raw());
        match accessat(fd, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
            // The permission of a folder of one's own is lent.
            Err(errno) if !own || errno != Errno::ACCESS || there.is_empty() => Some(errno),
            _ => None,
        }
    };
    let mut dirs = Dirs::default();
    if let Some(errno) = denied(&mut dirs, b"") {
        return Err(Error::system("making a folder for unfinished files", errno));
    }
    let manifest = Arc::clone(machine.manifest());
    let mut failed = BTreeMap::new();
    let mut last: Option<(Vec<u8>, Option<Errno>)> = None;
    for (index, entry) in manifest.iter().filter(|(_, entry)| entry.kind != EntryKind::Directory) {
        if !machine.is_needed(index) {
            continue;
        }
        let path = placement.of(entry.path);
        let folder = split(&path).0;
        let errno = match &last {
            Some((known, errno)) if known == folder => *errno,
            _ => last.insert((folder.to_vec(), denied(&mut dirs, folder))).1,
        };
        if let Some(errno) = errno {
            machine.skip(index, SkipReason::Policy);
            let path = entry.path.as_bytes().to_vec();
            failed.insert(index, Failed { path, code: code_of(errno), message: reason(errno) });
        }
    }
    Ok(failed)
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
