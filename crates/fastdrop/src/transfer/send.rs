//! Sending: chunks out of files, onto as many connections as help.

use crate::admission::turns::{Turn, Turns};
use crate::error::Error;
use crate::lock::lock;
use crate::net::connection::Connection;
use crate::net::frames::FrameReader;
use crate::net::throttle::Throttle;
use crate::observe::{Clock, Clocks, Observer, Phase};
use crate::source::identity::Identities;
use crate::source::reader::{ChunkPlan, ReadChunk};
use crate::source::tree::SourceTree;
use crate::stop::{Stop, Stoppable};
use crate::thread::{refused, spawn_scoped};
use crate::transfer::compress::ChunkCompressor;
use crate::transfer::stream_sender::{StreamSender, say_refusal};
use crate::transfer::streams::{DataStream, StreamQueue};
use crate::transfer::supply::{ChunkSupply, TICK, own_failure};
use fastdrop_proto::fastdp::{Capability, Compress, Control, Done, Failed, Grant, Outcome, Sender, StreamId};
use fastdrop_proto::units::EntryIndex;
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::Scope;
use std::time::{Duration, Instant};

/// Longest wait for a receiver to end a transfer that the sender has given up.
const GIVING_UP_TIMEOUT: Duration = Duration::from_secs(2);

/// One transfer that is being sent.
pub(crate) struct SendTransfer {
    supply: ChunkSupply,
    compress: Compress,
    throttle: Option<Throttle>,
    rate_max: Option<u64>,
    connections: Mutex<BTreeMap<StreamId, Arc<Connection>>>,
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
        let sparse = grant.has(Capability::Sparse);
        Arc::new(Self {
            supply: ChunkSupply::new(proto, tree, identities, sparse, observer, stop),
            compress: if grant.has(Capability::Zstd) { options.compress } else { Compress::None },
            throttle: options.throttle().map(Throttle::new),
            rate_max: options.rate_max,
            connections: Mutex::default(),
            asked: AtomicU32::new(0),
            turns: options.turns,
            joins: StreamQueue::default(),
        })
    }

    /// Locks the protocol's state.
    pub(crate) fn proto(&self) -> MutexGuard<'_, Sender> {
        self.supply.proto()
    }

    /// Lists what could not be sent.
    pub(crate) fn abandoned(&self) -> Vec<Failed> {
        self.supply.abandoned()
    }

    /// BLAKE3 of each file that was sent, where it was computed.
    pub(crate) fn hashes(&self) -> BTreeMap<EntryIndex, [u8; 32]> {
        self.supply.hashes()
    }

    /// Gives the transfer up for a reason of this end.
    pub(crate) fn fail(&self, error: Error) {
        self.supply.fail(error);
    }

    /// Reads the entry of unknown size, as [`ChunkSupply::feed`].
    pub(crate) fn feed(&self, input: impl Read, clock: impl Fn(&Clocks) -> &Clock) {
        self.supply.feed(input, clock);
    }

    /// Runs the transfer over its control stream, once the offer has been made, to its end.
    pub(crate) fn run(self: &Arc<Self>, control: FrameReader, opener: &Opener<'_>) -> Result<Done, Error> {
        let connection = Arc::clone(control.connection());
        self.supply.stop.watch(&connection);
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
                let _ = say_refusal(&connection, error.refusal());
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
                    self.supply.pieces.free(chunk);
                }
                self.supply.observer.set_streams(proto.data_streams() as u64);
                if look || opens > 0 || !closed.is_empty() {
                    drop(proto);
                    self.close_all(&closed);
                    if look {
                        looking = true;
                        if let Err(error) = spawn_scoped(scope, "compare", || self.look(&connection)) {
                            self.fail(refused(error));
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
                            self.supply.notify();
                        }
                        Opener::Ask => {}
                    }
                    proto = self.proto();
                    continue;
                }
                if self.supply.stop.is_stopped() {
                    break;
                }
                let is_over = proto.outcome().is_some();
                if leaving.is_none() && self.supply.refusal(&proto).is_some() {
                    leaving = Some(Leaving { until: now + GIVING_UP_TIMEOUT, was_over: is_over });
                    self.supply.notify();
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
                proto = self.supply.wait(proto, until.max(Duration::from_millis(1)));
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
        self.supply.stop.watch(&joined);
        lock(&self.connections).insert(id, Arc::clone(&joined));
        self.supply.notify();
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
        let failure = self.supply.take_failure();
        let error = match (outcome, failure) {
            (Some(Outcome::Done(done)), _) => {
                control.close();
                return Ok(done);
            }
            (Some(Outcome::Refused(refuse)), _) => Error::Refused(refuse),
            _ if self.supply.stop.is_stopped() => Error::Interrupted,
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

    /// Reads what the receiver wants to know, or to have compared, beside what is sent.
    fn look(&self, control: &Connection) {
        let mut chunks = self.supply.chunks();
        let mut chunk = ReadChunk::default();
        let mut proto = self.proto();
        loop {
            if proto.outcome().is_some() || self.supply.stop.is_stopped() {
                return;
            }
            if let Some(entry) = proto.poll_asked() {
                drop(proto);
                let content = crate::source::reader::content(
                    &self.supply.tree,
                    &self.supply.manifest,
                    entry,
                    &self.supply.stop,
                );
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
                            self.supply.observer.bytes_total.fetch_max(needed.bytes, Ordering::Relaxed);
                        }
                    }
                    Err(unreadable) => self.supply.give_up(None, index, unreadable),
                }
                self.supply.notify();
            } else {
                proto = self.supply.wait(proto, TICK);
                continue;
            }
            proto = self.proto();
        }
    }

    /// Sends what is to be sent on one stream.
    fn pump(&self, id: StreamId, connection: &Connection) {
        let shortest = connection.is_shortest();
        let turn = Turn::new(self.turns.as_ref().filter(|_| shortest).cloned());
        let compressor = ChunkCompressor::new(self.compress, self.rate_max, shortest);
        let throttle = self.throttle.as_ref();
        StreamSender::new(&self.supply, id, connection, throttle, &self.asked, turn, compressor).run();
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
        self.supply.notify();
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
                    self.supply.notify();
                    return;
                }
            };
            let need = matches!(frame, Control::Need(_));
            let confirm = matches!(frame, Control::Confirm(_));
            let mut proto = self.proto();
            let before = proto.confirmed_bytes();
            proto.handle_frame(id, frame, Instant::now());
            self.supply.observer.bytes_done.fetch_add(proto.confirmed_bytes() - before, Ordering::Relaxed);
            if let (true, Some(totals)) = (need, proto.needed()) {
                self.supply.observer.bytes_total.store(totals.bytes, Ordering::Relaxed);
                self.supply.observer.set_phase(Phase::Moving);
            }
            // Most confirmations come while every stream is busy; waking
            // those who wait would only cost.
            let calm = confirm && proto.is_occupied();
            drop(proto);
            if !calm {
                self.supply.notify();
            }
        }
    }
}

/// Ends the other threads of a transfer when its main loop ends, however that happens.
struct EndOnDrop<'a>(&'a SendTransfer);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        let transfer = self.0;
        transfer.joins.end();
        transfer.supply.pieces.end();
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
        transfer.supply.notify();
    }
}
