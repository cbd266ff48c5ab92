//! Sending: chunks out of files, onto as many connections as help.

use crate::admission::turns::{Turn, Turns};
use crate::error::Error;
use crate::lock::lock;
use crate::net::connection::{Connection, Ended};
use crate::net::frames::FrameReader;
use crate::net::throttle::Throttle;
use crate::observe::{Clock, Clocks, Observer, Phase};
use crate::source::identity::Identities;
use crate::source::reader::{ChunkPlan, ChunkReader, ReadChunk, StreamPieces, Unreadable};
use crate::source::tree::SourceTree;
use crate::stop::{Stop, Stoppable};
use crate::thread::{refused, spawn_scoped};
use crate::transfer::compress::ChunkCompressor;
use crate::transfer::streams::{DataStream, StreamQueue};
use fastdrop_proto::checksum::{Algorithm, join_blake3};
use fastdrop_proto::fastdp::{
    Action, Capability, Code, Compress, Control, Done, Encoding, EntryKind, Failed, FrameHeader, FrameKind,
    Grant, Manifest, Outcome, Refuse, Sender, Spent, StreamId,
};
use fastdrop_proto::units::{ChunkIndex, EntryIndex};
use std::collections::BTreeMap;
use std::io::{IoSlice, Read};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

/// The longest that a thread waits without looking around.
const TICK: Duration = Duration::from_millis(500);
/// Longest wait for a receiver to end a transfer that the sender has given up.
const GIVING_UP_TIMEOUT: Duration = Duration::from_secs(2);

/// One transfer that is being sent.
pub(crate) struct SendTransfer {
    proto: Mutex<Sender>,
    wake: Condvar,
    manifest: Arc<Manifest>,
    tree: Arc<SourceTree>,
    identities: Identities,
    algorithm: Algorithm,
    sparse: bool,
    compress: Compress,
    throttle: Option<Throttle>,
    rate_max: Option<u64>,
    pieces: StreamPieces,
    observer: Arc<Observer>,
    stop: Stop,
    connections: Mutex<BTreeMap<StreamId, Arc<Connection>>>,
    abandoned: Mutex<BTreeMap<EntryIndex, Failed>>,
    hashes: Mutex<BTreeMap<EntryIndex, [u8; 32]>>,
    /// The reason of this end for giving up, such as an input that cannot be read.
    failure: Mutex<Option<Error>>,
    /// Data streams that the receiver is yet to be asked for.
    asked: AtomicU32,
    /// Turns that streams on the shortest paths take with those of other transfers.
    turns: Option<Arc<Turns>>,
    pub(crate) joins: StreamQueue,
}

/// The wait for a receiver to end a transfer that this end has given up: closing a connection with
/// unread bytes would take the refusal back, and the receiver would try again.
struct Leaving {
    until: Instant,
    /// The protocol's state had come to its end before: what the receiver says does not count.
    was_over: bool,
}

/// How a transfer is sent.
#[derive(Debug)]
pub(crate) struct SendOptions {
    pub(crate) compress: Compress,
    /// Bytes a second that are sent, or taken, at most.
    pub(crate) rate_max: Option<u64>,
    /// Whether it is this end that keeps to that.
    pub(crate) keeps_rate: bool,
    /// Turns that streams on the shortest paths take with those of other transfers.
    pub(crate) turns: Option<Arc<Turns>>,
}

impl SendOptions {
    fn throttle(&self) -> Option<u64> {
        self.rate_max.filter(|_| self.keeps_rate)
    }
}

/// What a thread has that sends the chunks of one stream.
struct Pump<'a> {
    chunks: ChunkReader<'a>,
    chunk: ReadChunk,
    compressor: Option<ChunkCompressor>,
}

/// How data streams come about: a client opens them, a server asks for them.
pub(crate) enum Opener<'a> {
    /// Connects and shakes hands; called on a thread of its own.
    Connect(&'a (dyn Fn() -> Result<DataStream, Error> + Sync)),
    /// Sends MORE; the stream comes through [`SendTransfer::joins`].
    Ask,
}

impl SendTransfer {
    pub(crate) fn new(
        mut proto: Sender,
        tree: Arc<SourceTree>,
        identities: Identities,
        grant: &Grant,
        options: SendOptions,
        observer: Arc<Observer>,
        stop: Stop,
    ) -> Arc<Self> {
        if grant.has(Capability::Identity) {
            proto.set_identities(identities.told());
        }
        Arc::new(Self {
            identities,
            manifest: Arc::clone(proto.manifest()),
            algorithm: proto.algorithm(),
            proto: Mutex::new(proto),
            wake: Condvar::new(),
            tree,
            sparse: grant.has(Capability::Sparse),
            compress: if grant.has(Capability::Zstd) { options.compress } else { Compress::None },
            throttle: options.throttle().map(Throttle::new),
            rate_max: options.rate_max,
            pieces: StreamPieces::default(),
            observer,
            stop,
            connections: Mutex::default(),
            abandoned: Mutex::default(),
            hashes: Mutex::default(),
            failure: Mutex::default(),
            asked: AtomicU32::new(0),
            turns: options.turns,
            joins: StreamQueue::default(),
        })
    }

    /// The machine.
    pub(crate) fn proto(&self) -> MutexGuard<'_, Sender> {
        lock(&self.proto)
    }

    /// What could not be sent.
    pub(crate) fn abandoned(&self) -> Vec<Failed> {
        let proto = self.proto();
        // The receiver may have had it all before it could not be read again.
        let left_out = |(entry, _): &(&EntryIndex, &Failed)| proto.is_left_out(**entry);
        lock(&self.abandoned).iter().filter(left_out).map(|(_, failed)| failed.clone()).collect()
    }

    /// BLAKE3 of each file that was sent, where it was computed.
    pub(crate) fn hashes(&self) -> BTreeMap<EntryIndex, [u8; 32]> {
        let proto = self.proto();
        let mut hashes = lock(&self.hashes).clone();
        if self.algorithm == Algorithm::Blake3 {
            for (index, entry) in self.manifest.iter() {
                if proto.is_left_out(index) || !matches!(entry.kind, EntryKind::File { .. }) {
                    hashes.retain(|other, _| *other != index || matches!(entry.kind, EntryKind::Stream));
                } else if entry.size() == 0 {
                    hashes.insert(index, *blake3::hash(b"").as_bytes());
                } else if let Some(hash) = proto.piece_checksums(index).and_then(|sums| join_blake3(&sums)) {
                    hashes.insert(index, hash);
                }
            }
        }
        hashes
    }

    /// Runs the transfer over its control stream, once the offer has been made, to its end.
    pub(crate) fn run(self: &Arc<Self>, control: FrameReader, opener: &Opener<'_>) -> Result<Done, Error> {
        let connection = Arc::clone(control.connection());
        self.stop.watch(&connection);
        lock(&self.connections).insert(StreamId::CONTROL, Arc::clone(&connection));
        std::thread::scope(|scope| {
            let _end = EndOnDrop(self);
            let take_streams = || {
                while let Some(joined) = self.joins.wait() {
                    self.start_stream(scope, joined);
                }
            };
            let started = spawn_scoped(scope, "read", || self.read(StreamId::CONTROL, control))
                .and_then(|_| spawn_scoped(scope, "streams", take_streams))
                .and_then(|_| spawn_scoped(scope, "send", || self.pump(StreamId::CONTROL, &connection)));
            if let Err(error) = started {
                let error = refused(error);
                // No thread that would say it for this one, and nothing yet to keep time for.
                let _ = self.say_refusal(&connection, error.refusal());
                self.fail(error);
            }
            let mut proto = self.proto();
            let mut looking = false;
            let mut leaving = None;
            loop {
                let now = Instant::now();
                proto.handle_timeout(now);
                let look = !looking && proto.wants_reading();
                let mut opens = 0;
                while leaving.is_none() && proto.poll_open(now) {
                    opens += 1;
                }
                let closed: Vec<_> = std::iter::from_fn(|| proto.poll_close()).collect();
                while let Some(chunk) = proto.poll_stream_freed() {
                    self.pieces.free(chunk);
                }
                self.observer.set_streams(proto.data_streams() as u64);
                if look || opens > 0 || !closed.is_empty() {
                    drop(proto);
                    self.close_all(&closed);
                    if look {
                        looking = true;
                        if let Err(error) = spawn_scoped(scope, "compare", || self.look(&connection)) {
                            lock(&self.failure).get_or_insert(refused(error));
                        }
                    }
                    match opener {
                        Opener::Connect(connect) => {
                            for _ in 0..opens {
                                if let Err(error) = spawn_scoped(scope, "open", || self.open(*connect)) {
                                    tracing::debug!(%error, "a data stream could not be opened");
                                    self.proto().handle_open_failed(Instant::now());
                                }
                            }
                        }
                        // This loop keeps time: the control stream's own thread sends it.
                        Opener::Ask if opens > 0 => {
                            self.asked.fetch_add(opens, Ordering::Relaxed);
                            self.wake.notify_all();
                        }
                        Opener::Ask => {}
                    }
                    proto = self.proto();
                    continue;
                }
                if self.stop.is_stopped() {
                    break;
                }
                let is_over = proto.outcome().is_some();
                if leaving.is_none() && self.refusal(&proto).is_some() {
                    leaving = Some(Leaving { until: now + GIVING_UP_TIMEOUT, was_over: is_over });
                    self.wake.notify_all();
                }
                let ends = match &leaving {
                    Some(leaving) => {
                        now >= leaving.until
                            || is_over && !leaving.was_over
                            || !lock(&self.connections).contains_key(&StreamId::CONTROL)
                    }
                    None => is_over,
                };
                if ends {
                    break;
                }
                let due =
                    proto.poll_timeout().into_iter().chain(leaving.as_ref().map(|leaving| leaving.until));
                let until = due.min().map_or(TICK, |at| at.saturating_duration_since(now).min(TICK));
                proto = self.wait(proto, until.max(Duration::from_millis(1)));
            }
        });
        self.result(&connection)
    }

    /// Gives a stream that has joined threads of its own.
    fn start_stream<'scope>(
        self: &'scope Arc<Self>,
        scope: &'scope Scope<'scope, '_>,
        DataStream { reader, permit }: DataStream,
    ) {
        let joined = Arc::clone(reader.connection());
        let id = self.proto().handle_stream_joined(Instant::now());
        self.stop.watch(&joined);
        lock(&self.connections).insert(id, Arc::clone(&joined));
        self.wake.notify_all();
        let pumped = Arc::clone(&joined);
        let pump = move || {
            let _permit = permit;
            self.pump(id, &pumped);
        };
        let started = spawn_scoped(scope, "read", move || self.read(id, reader))
            .and_then(|_| spawn_scoped(scope, "send", pump));
        if let Err(error) = started {
            tracing::warn!(%error, "no thread for a data stream");
            // Who reads it, if there is one, sees that and says that it is lost. There may be no
            // thread for the next one either.
            joined.close();
            let mut proto = self.proto();
            proto.handle_stream_lost(id, Instant::now());
            proto.handle_open_failed(Instant::now());
            drop(proto);
            lock(&self.connections).remove(&id);
        }
    }

    /// Gives the transfer up for a reason of this end.
    pub(crate) fn fail(&self, error: Error) {
        lock(&self.failure).get_or_insert(error);
        self.wake.notify_all();
    }

    /// The words with which this end gives the transfer up; None while it does not.
    fn refusal(&self, proto: &Sender) -> Option<Refuse> {
        match proto.outcome() {
            Some(outcome) => own_failure(outcome).map(|error| error.refusal()),
            None => lock(&self.failure).as_ref().map(Error::refusal),
        }
    }

    /// Tells the receiver why nothing more comes. Blocks as long as the connection takes nothing.
    fn say_refusal(&self, control: &Connection, refusal: Refuse) -> Result<(), Ended> {
        control.send_control(&Control::Refuse(refusal))?;
        control.finish_writing();
        Ok(())
    }

    /// Closes the connections of streams that have stalled or were refused.
    fn close_all(&self, ids: &[StreamId]) {
        for id in ids {
            tracing::debug!(stream = id.0, "closing a stream that stalled or was refused");
            let connection = lock(&self.connections).get(id).cloned();
            if let Some(connection) = connection {
                connection.close();
            }
        }
    }

    fn result(&self, control: &Connection) -> Result<Done, Error> {
        let outcome = self.proto().outcome().cloned();
        let failure = lock(&self.failure).take();
        let error = match (outcome, failure) {
            (Some(Outcome::Done(done)), _) => {
                control.close();
                return Ok(done);
            }
            (Some(Outcome::Refused(refuse)), _) => Error::Refused(refuse),
            _ if self.stop.is_stopped() => Error::Interrupted,
            // It ended the streams, which were lost for no other reason.
            (_, Some(error)) => error,
            (Some(Outcome::Lost(why)), None) => Error::Network(why),
            (outcome, None) => outcome.as_ref().and_then(own_failure).unwrap_or(Error::Interrupted),
        };
        // What this end gave up itself, it has said already.
        if matches!(error, Error::Interrupted) {
            let _ = control.send_control(&Control::Refuse(error.refusal()));
        }
        control.close();
        Err(error)
    }

    /// Whether another attempt has to begin without what the receiver holds.
    pub(crate) fn must_start_over(&self) -> bool {
        matches!(self.proto().outcome(), Some(Outcome::StartOver))
    }

    fn chunks(&self) -> ChunkReader<'_> {
        ChunkReader {
            tree: &self.tree,
            manifest: &self.manifest,
            identities: &self.identities,
            algorithm: self.algorithm,
            clocks: &self.observer.clocks,
            pieces: Some(&self.pieces),
            sparse: self.sparse,
            last: None,
        }
    }

    /// Reads what the receiver wants to know, or to have compared, beside what is sent.
    fn look(&self, control: &Connection) {
        let mut chunks = self.chunks();
        let mut chunk = ReadChunk::default();
        let mut proto = self.proto();
        loop {
            if proto.outcome().is_some() || self.stop.is_stopped() {
                return;
            }
            if let Some(entry) = proto.poll_asked() {
                drop(proto);
                let content = crate::source::reader::content(&self.tree, &self.manifest, entry, &self.stop);
                if control.send_control(&Control::Content(vec![(entry, content)])).is_err() {
                    return;
                }
            } else if let Some(index) = proto.poll_compare() {
                let plan = ChunkPlan::new(&proto, index);
                drop(proto);
                let Some(plan) = plan else { return };
                match chunks.read(&plan, &mut chunk) {
                    Ok(()) => {
                        let mut proto = self.proto();
                        proto.handle_compared(index, &chunk.checksum);
                        if let Some(needed) = proto.needed() {
                            self.observer.bytes_total.fetch_max(needed.bytes, Ordering::Relaxed);
                        }
                    }
                    Err(unreadable) => self.give_up(None, index, unreadable),
                }
                self.wake.notify_all();
            } else {
                proto = self.wait(proto, TICK);
                continue;
            }
            proto = self.proto();
        }
    }

    /// Notes that a chunk cannot be read, on its way to `stream` or to be compared.
    fn give_up(&self, stream: Option<StreamId>, index: ChunkIndex, unreadable: Unreadable) {
        let Unreadable { entry, code, reason } = unreadable;
        tracing::debug!(entry = entry.0, %reason, "an entry cannot be sent");
        self.proto().handle_unreadable(stream, index, entry, code, &reason);
        let path = self.manifest.get(entry).map(|entry| entry.path.as_bytes().to_vec()).unwrap_or_default();
        lock(&self.abandoned).entry(entry).or_insert(Failed { path, code, message: reason });
        self.wake.notify_all();
    }

    fn wait<'a>(&self, proto: MutexGuard<'a, Sender>, until: Duration) -> MutexGuard<'a, Sender> {
        self.wake.wait_timeout(proto, until).unwrap_or_else(PoisonError::into_inner).0
    }

    fn open(&self, connect: &(dyn Fn() -> Result<DataStream, Error> + Sync)) {
        let joined = connect();
        let failed = match joined {
            Ok(joined) => self.joins.push(joined).is_err(),
            Err(error) => {
                tracing::debug!(%error, "a data stream could not be opened");
                true
            }
        };
        if failed {
            self.proto().handle_open_failed(Instant::now());
        }
        self.wake.notify_all();
    }

    /// Takes what the receiver says on one stream.
    fn read(&self, id: StreamId, mut reader: FrameReader) {
        loop {
            let frame = match reader.next_control() {
                Ok(frame) => frame,
                Err(error) => {
                    if let Error::Violation(_) = error {
                        tracing::warn!(%error, stream = id.0, "the receiver broke the protocol");
                    }
                    self.proto().handle_stream_lost(id, Instant::now());
                    reader.connection().close();
                    lock(&self.connections).remove(&id);
                    self.wake.notify_all();
                    return;
                }
            };
            let need = matches!(frame, Control::Need(_));
            let confirm = matches!(frame, Control::Confirm(_));
            let mut proto = self.proto();
            let before = proto.confirmed_bytes();
            proto.handle_frame(id, frame, Instant::now());
            self.observer.bytes_done.fetch_add(proto.confirmed_bytes() - before, Ordering::Relaxed);
            if let (true, Some(totals)) = (need, proto.needed()) {
                self.observer.bytes_total.store(totals.bytes, Ordering::Relaxed);
                self.observer.set_phase(Phase::Moving);
            }
            // Most confirmations come while every stream is busy; waking
            // those who wait would only cost.
            let calm = confirm && proto.is_occupied();
            drop(proto);
            if !calm {
                self.wake.notify_all();
            }
        }
    }

    /// Asks the receiver for the data streams that are wanted.
    fn ask(&self, control: &Connection) -> Result<(), Ended> {
        let asked = self.asked.swap(0, Ordering::Relaxed);
        (0..asked).try_for_each(|_| control.send_control(&Control::More))
    }

    /// Leaves a stream over which nothing can be sent.
    fn lose(&self, id: StreamId, connection: &Connection, ended: Ended) {
        if matches!(ended, Ended::Broken(_)) {
            // What the receiver said before it closed can still be read, why it did so above all:
            // the reading side comes to the end of that, and then the stream is lost.
            return connection.finish_writing();
        }
        self.proto().handle_stream_lost(id, Instant::now());
        connection.close();
        self.wake.notify_all();
    }

    /// Sends what is to be sent on one stream.
    fn pump(&self, id: StreamId, connection: &Connection) {
        let mut pump = Pump {
            chunks: self.chunks(),
            chunk: ReadChunk::default(),
            compressor: ChunkCompressor::new(self.compress, self.rate_max, connection.is_shortest()),
        };
        let mut turn = Turn::new(self.turns.as_ref().filter(|_| connection.is_shortest()).cloned());
        loop {
            if id == StreamId::CONTROL
                && let Err(ended) = self.ask(connection)
            {
                return self.lose(id, connection, ended);
            }
            let mut proto = self.proto();
            let action = loop {
                if id == StreamId::CONTROL
                    && let Some(refusal) = self.refusal(&proto)
                {
                    drop(proto);
                    if let Err(ended) = self.say_refusal(connection, refusal) {
                        self.lose(id, connection, ended);
                    }
                    return;
                }
                let now = Instant::now();
                match proto.poll_stream(id, now) {
                    Action::Wait if id == StreamId::CONTROL && self.asked.load(Ordering::Relaxed) > 0 => {
                        break Action::Wait;
                    }
                    Action::Wait => {
                        turn.give_back();
                        let until = proto.poll_timeout().map_or(TICK, |at| at.saturating_duration_since(now));
                        proto = self.wait(proto, until.clamp(Duration::from_millis(1), TICK));
                    }
                    action => break action,
                }
            };
            let sent = match action {
                Action::Send(index) => {
                    let plan = ChunkPlan::new(&proto, index);
                    drop(proto);
                    let Some(plan) = plan else { return };
                    turn.wait();
                    self.send_chunk(id, connection, index, &plan, &mut pump)
                }
                Action::Control(frame) => {
                    drop(proto);
                    let mut spent = Ok(());
                    if matches!(frame, Control::End(_)) {
                        self.observer.set_phase(Phase::Finishing);
                        let clocks = &self.observer.clocks;
                        let (read, cpu) = (clocks.read.micros(), clocks.cpu.micros());
                        let told = Spent { read, cpu, send: clocks.send.micros() };
                        spent = connection.send_control(&Control::Spent(told));
                    }
                    spent.and_then(|()| connection.send_control(&frame))
                }
                Action::Close => {
                    drop(proto);
                    // The control stream is still read: the receiver may say why it ended.
                    if id != StreamId::CONTROL {
                        connection.close();
                    }
                    self.wake.notify_all();
                    return;
                }
                Action::Wait => continue,
            };
            if let Err(ended) = sent {
                return self.lose(id, connection, ended);
            }
        }
    }

    fn send_chunk(
        &self,
        id: StreamId,
        connection: &Connection,
        index: ChunkIndex,
        plan: &ChunkPlan,
        Pump { chunks, chunk, compressor }: &mut Pump<'_>,
    ) -> Result<(), Ended> {
        if let Err(unreadable) = chunks.read(plan, chunk) {
            self.give_up(Some(id), index, unreadable);
            return Ok(());
        }
        self.proto().handle_read(index, &chunk.checksum);
        if !chunk.hashes.is_empty() {
            lock(&self.hashes).extend(chunk.hashes.drain(..));
        }
        let chunk = &*chunk;
        let frame =
            compressor.as_mut().and_then(|compressor| compressor.compress(chunk, &self.observer.clocks.cpu));
        let start = Instant::now();
        let checksum = chunk.checksum.as_bytes();
        let mut last_progress = start;
        let piece_max = self.throttle.as_ref().map_or(usize::MAX, Throttle::piece_max);
        let mut progress = |bytes: usize| {
            let now = Instant::now();
            if bytes > 0 {
                return self.throttle.as_ref().map_or(Duration::ZERO, |throttle| throttle.book(bytes, now));
            }
            // Once a chunk is enough for a fast stream; a slow one has to show that it moves.
            if now - last_progress > Duration::from_millis(200) {
                last_progress = now;
                self.proto().handle_progress(id, now);
            }
            Duration::ZERO
        };
        let moved = chunk.bytes.len();
        let encoding =
            Encoding { plain_len: moved as u32, extents: chunk.extents.clone(), zstd: frame.is_some() };
        let head = encoding.encode();
        let kind = if head.is_empty() { FrameKind::Chunk(index) } else { FrameKind::EncodedChunk(index) };
        let data = encoding.data_len() as usize;
        let sent = frame.map_or(data, <[u8]>::len);
        let size = (head.len() + sent + checksum.len()) as u32;
        let header = FrameHeader { kind, size }.encode();
        let mut parts = vec![IoSlice::new(&header), IoSlice::new(&head)];
        match (frame, &chunk.extents) {
            (Some(frame), _) => parts.push(IoSlice::new(frame)),
            (None, None) => parts.push(IoSlice::new(&chunk.bytes)),
            (None, Some(extents)) => {
                let part =
                    |(at, len): (u32, u32)| IoSlice::new(&chunk.bytes[at as usize..(at + len) as usize]);
                parts.extend(extents.iter().map(part));
            }
        }
        parts.push(IoSlice::new(checksum));
        connection.send(&mut parts, piece_max, &mut progress)?;
        self.observer.bytes_moved.fetch_add(moved as u64, Ordering::Relaxed);
        self.observer.bytes_wire.fetch_add(sent as u64, Ordering::Relaxed);
        let now = self.observer.clocks.send.since(start);
        if let Some(compressor) = compressor {
            compressor.handle_sent(data, sent, now - start);
        }
        self.proto().handle_sent(id, moved as u64, now);
        Ok(())
    }

    /// Reads the entry of unknown size to its end, on the calling thread, while the transfer
    /// runs; what that takes counts to `clock`.
    pub(crate) fn feed(&self, mut input: impl Read, clock: impl Fn(&Clocks) -> &Clock) {
        let one = {
            let mut proto = self.proto();
            loop {
                if proto.outcome().is_some() || self.stop.is_stopped() {
                    return;
                }
                match proto.wants_stream() {
                    Some(true) => break proto.table().one_chunk().bytes() as usize,
                    Some(false) => return,
                    None => proto = self.wait(proto, TICK),
                }
            }
        };
        let filled = |keep: &mut dyn FnMut(ChunkIndex)| {
            let mut proto = self.proto();
            if proto.outcome().is_some() {
                return false;
            }
            let Some(chunk) = proto.handle_stream_filled() else { return false };
            keep(chunk);
            drop(proto);
            self.wake.notify_all();
            true
        };
        match self.pieces.feed(&mut input, one, self.algorithm, clock(&self.observer.clocks), filled) {
            Ok(Some(end)) => {
                let mut proto = self.proto();
                if let (Some((entry, _)), Some(hash)) = (proto.table().stream(), end.hash) {
                    lock(&self.hashes).insert(entry, hash);
                }
                self.observer.bytes_total.fetch_add(end.size, Ordering::Relaxed);
                proto.handle_stream_ended(end.size);
            }
            Ok(None) => {}
            Err(error) => {
                // Whoever makes an archive says in words what is wrong.
                let failure = match error.raw_os_error() {
                    Some(errno) => {
                        let errno = rustix::io::Errno::from_raw_os_error(errno);
                        Error::system("reading the input", errno)
                    }
                    None => Error::failed(Code::SourceChanged, error.to_string()),
                };
                lock(&self.failure).get_or_insert(failure);
            }
        }
        self.wake.notify_all();
    }
}

/// The reason for which this end gives the transfer up; None if it is not this end that does.
fn own_failure(outcome: &Outcome) -> Option<Error> {
    match outcome {
        Outcome::Violated(violation) => Some(Error::Violation(violation.clone())),
        Outcome::Failed(failure) => Some(Error::Failed(failure.clone())),
        Outcome::StartOver => Some(Error::failed(
            Code::Conflict,
            "the other end would continue with something else than what is here now, and is too old to be told so: --no-resume begins anew",
        )),
        Outcome::Done(_) | Outcome::Refused(_) | Outcome::Lost(_) => None,
    }
}

/// Ends the other threads of a transfer when its main loop ends, however that happens.
struct EndOnDrop<'a>(&'a SendTransfer);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        let transfer = self.0;
        transfer.joins.end();
        transfer.pieces.end();
        {
            let mut proto = transfer.proto();
            if proto.outcome().is_none() {
                // Every pump sees that there is an outcome, and leaves.
                proto.handle_stream_lost(StreamId::CONTROL, Instant::now());
            }
        }
        for (id, connection) in lock(&transfer.connections).iter() {
            if *id == StreamId::CONTROL {
                connection.stop();
            } else {
                connection.close();
            }
        }
        transfer.wake.notify_all();
    }
}
