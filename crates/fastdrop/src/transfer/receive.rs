//! Receiving: chunks off connections, into files, into the
//! journal, and in the end under their names.

use crate::admission::turns::Turns;
use crate::error::{Error, code_of, reason};
use crate::lock::lock;
use crate::net::connection::{Connection, Ended, FrameReader};
use crate::net::throttle::Throttle;
use crate::observe::{Observer, Phase};
use crate::source::filter::Filter;
use crate::stop::{Stop, Stoppable};
use crate::storage::journal::FileKey;
use crate::storage::output::{OutputSink, output_error};
use crate::storage::root::Dirs;
use crate::storage::stage::is_poison;
use crate::storage::writer::{Ready, TransferWriter, naming_reason};
use crate::transfer::streams::{DataStream, StreamQueue};
use fastdrop_proto::checksum::{Algorithm, join_blake3};
use fastdrop_proto::fastdp::Spent;
use fastdrop_proto::fastdp::{Control, Done, Durability, EntryKind, Failed, Manifest, Receiver, Violation};
use fastdrop_proto::units::EntryIndex;
use std::collections::BTreeMap;
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
    Files(Box<TransferWriter>),
    /// In a pipe, in order: one file.
    Output(Arc<OutputSink>),
}

/// One transfer that is being received.
#[derive(Debug)]
pub(crate) struct ReceiveTransfer {
    pub(crate) machine: Mutex<Receiver>,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) algorithm: Algorithm,
    pub(crate) sink: Sink,
    /// The entries that are wanted.
    pub(crate) filter: Filter,
    pub(crate) observer: Arc<Observer>,
    pub(crate) stop: Stop,
    pub(crate) throttle: OnceLock<Throttle>,
    pub(crate) connections: Mutex<Vec<Arc<Connection>>>,
    pub(crate) failed: Mutex<BTreeMap<EntryIndex, Failed>>,
    pub(crate) hashes: Mutex<BTreeMap<EntryIndex, [u8; 32]>>,
    /// How the sender spent its time.
    pub(crate) spent: Mutex<Spent>,
    /// What has become of the contents of an archive.
    pub(crate) unpacked: Mutex<Option<Done>>,
    /// What was listed and is not in the archive.
    pub(crate) unlisted: Mutex<Vec<Failed>>,
    /// Why it ended, if not well.
    pub(crate) error: Mutex<Option<Error>>,
    /// Over, one way or the other: no stream is served any more.
    pub(crate) over: AtomicBool,
    /// For those who wait until it is done, over or left.
    pub(crate) waiting: Mutex<()>,
    pub(crate) over_changed: Condvar,
    /// Every thread has left, and the journal is free for others.
    pub(crate) left: AtomicBool,
    pub(crate) done: AtomicBool,
    /// Turns that streams on the shortest paths take with those of other transfers.
    pub(super) turns: OnceLock<Arc<Turns>>,
    pub(crate) joins: StreamQueue,
}

impl ReceiveTransfer {
    pub(super) fn new(
        machine: Receiver,
        sink: Sink,
        observer: Arc<Observer>,
        stop: Stop,
        hashes: BTreeMap<EntryIndex, [u8; 32]>,
        filter: Filter,
    ) -> Arc<Self> {
        Arc::new(Self {
            manifest: Arc::clone(machine.manifest()),
            algorithm: machine.algorithm(),
            machine: Mutex::new(machine),
            sink,
            filter,
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
            joins: StreamQueue::default(),
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
                while let Some(DataStream { reader, permit }) = self.joins.wait() {
                    scope.spawn(move || {
                        let _permit = permit;
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

    pub(crate) fn ending(&self) -> bool {
        self.is_done() || lock(&self.error).is_some() || self.over.load(Ordering::SeqCst)
    }

    fn wake_waiting(&self) {
        let _waiting = lock(&self.waiting);
        self.over_changed.notify_all();
    }

    /// Notes why the transfer cannot go on, and has all its streams end.
    pub(super) fn fail(&self, error: Error) {
        lock(&self.error).get_or_insert(error);
        for connection in lock(&self.connections).iter() {
            connection.stop();
        }
        self.joins.end();
        self.wake_waiting();
    }

    /// Passes a result on; an error ends the whole transfer.
    pub(crate) fn or_fail<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
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

    pub(super) fn drop_abandoned(&self, entry: EntryIndex, code: u16, reason: String) {
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
    pub(super) fn checkpoint(&self, sink: &TransferWriter) -> Result<(), Error> {
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
    pub(super) fn name_proven(&self) -> Result<(), Error> {
        let Sink::Files(sink) = &self.sink else { return Ok(()) };
        let _working = sink.working.read().unwrap_or_else(PoisonError::into_inner);
        // Without syncs there is nothing to wait for.
        let least = if sink.options.durability == Durability::None { 1 } else { NAMING_BATCH };
        let proven = self.take_proven(sink, least);
        self.name_files(sink, &proven)
    }

    /// Takes the files that are complete and proven, if they are at least so many.
    fn take_proven(&self, sink: &TransferWriter, least: usize) -> Vec<Ready> {
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
    pub(crate) fn name_files(&self, sink: &TransferWriter, ready: &[Ready]) -> Result<(), Error> {
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

    pub(super) fn finish_if_complete(&self) -> Result<(), Error> {
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

    pub(crate) fn finish_files(&self, sink: &TransferWriter) -> Result<(), Error> {
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
    pub(crate) fn report(&self) -> Done {
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

/// Ends the other threads of a transfer when its control stream ends, however that happens.
struct EndOnDrop<'a>(&'a ReceiveTransfer);

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
pub(super) fn shown_failures<'a>(failed: impl Iterator<Item = &'a Failed>) -> Vec<Failed> {
    let mut left = FAILED_SHOWN_MAX;
    let fits = |failed: &&Failed| {
        let size = 3 * failed.path.len() + 6 * failed.message.len() + 64;
        let fits = size <= left;
        left = left.saturating_sub(size);
        fits
    };
    failed.take_while(fits).take(1000).cloned().collect()
}
