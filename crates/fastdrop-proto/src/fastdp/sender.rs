//! The sending end of a transfer (sections 7 and 10).

use super::frame::{Control, Proven};
use super::identity::{IDENTITIES_PER_FRAME, Identities};
use super::manifest::{EntryKind, Manifest};
use super::need::{NeedTotals, SkipReason};
use super::root::{Transcript, root_digest};
use super::table::{ChunkContent, Table};
use super::tuner::Tuner;
use super::{Done, Refuse, Violation};
use crate::checksum::{Algorithm, Checksum};
use crate::fastdp::{Code, Failure};
use crate::units::{ChunkIndex, EntryIndex};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

mod abandon;
mod answer;
mod chunks;
mod config;
mod streams;

use chunks::Chunks;
pub use config::{ALIVE_EVERY, SILENT_MAX, SenderConfig, Streams};
pub use streams::StreamId;
use streams::{Phase, StreamSet};

/// The next step of the driver of one stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Read this chunk, send it, and call [`Sender::handle_sent`].
    Send(ChunkIndex),
    /// Send this frame.
    Control(Control),
    /// Close the connection; the stream is forgotten.
    Close,
    /// Nothing: wait for a frame, a wake-up or [`Sender::poll_timeout`].
    Wait,
}

/// The end of a transfer for its sender.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The receiver has everything, under its name.
    Done(Done),
    /// The receiver refused.
    Refused(Refuse),
    /// The receiver broke the protocol.
    Violated(Violation),
    /// This end cannot go on.
    Failed(Failure),
    /// The control stream is gone, or the peer has been silent for too long: worth another attempt.
    Lost(String),
    /// The receiver, which does not know identities, would continue with something else than what
    /// is here: worth an attempt that continues nothing.
    StartOver,
}

/// The reason for which an entry is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LeftOut {
    Skipped(SkipReason),
    Abandoned,
}

/// Decides which chunk goes on which stream, and what happens when one of these breaks.
///
/// The driver of every stream calls [`Self::poll_stream`] and does what it says; what arrives goes
/// to [`Self::handle_frame`]; connections that join or end to [`Self::handle_stream_joined`] and
/// [`Self::handle_stream_lost`]. After each call, and at [`Self::poll_timeout`] (by
/// [`Self::handle_timeout`]), drivers that wait must be woken, [`Self::poll_open`] and
/// [`Self::poll_close`] be asked until they say no, and [`Self::outcome`] be looked at. All streams
/// share one sender.
#[derive(Debug)]
pub struct Sender {
    config: SenderConfig,
    manifest: Arc<Manifest>,
    table: Table,
    algorithm: Algorithm,
    transcript: Transcript,
    tuner: Tuner,
    needed: Option<NeedTotals>,
    left_out: Vec<Option<LeftOut>>,
    chunks: Chunks,
    /// Identities of all entries, and how many of them have been sent.
    identities: Vec<u64>,
    identities_sent: usize,
    identities_asked: bool,
    /// Chunks below are proven to the receiver.
    proven: u32,
    /// Files whose contents the receiver asks for.
    asked: VecDeque<EntryIndex>,
    /// The entries that it has asked for: empty before the first question, then one a manifest
    /// entry.
    was_asked: Vec<bool>,
    streams: StreamSet,
    /// Entries that were given up, and of which the receiver has not answered.
    abandoning: BTreeSet<EntryIndex>,
    control_queue: VecDeque<Control>,
    stream_size: Option<u64>,
    stream_freed: Vec<ChunkIndex>,
    end_sent: bool,
    heard_at: Instant,
    timed_at: Instant,
    confirmed_bytes: u64,
    outcome: Option<Outcome>,
}

impl Sender {
    /// Chunks that are proven together at least; fewer at the end are proven by END.
    const PROVEN_MIN: u32 = 4;
    /// Least time between two timeouts: what is due may have to wait for a driver that is blocked
    /// in its connection.
    const TICK: Duration = Duration::from_millis(50);

    /// A sender that has offered `manifest` and waits for the answer.
    pub fn new(
        config: SenderConfig,
        manifest: Arc<Manifest>,
        table: Table,
        algorithm: Algorithm,
        now: Instant,
    ) -> Self {
        let tuner = match config.streams {
            Streams::Fixed(streams) => Tuner::fixed(streams.min(config.granted).max(1)),
            Streams::Auto => Tuner::auto(config.rtt, config.loss_tolerant, config.cores, config.granted),
        };
        Self {
            tuner,
            config,
            left_out: vec![None; manifest.len() as usize],
            manifest,
            chunks: Chunks::new(algorithm, table.count()),
            identities: Vec::new(),
            identities_sent: 0,
            identities_asked: false,
            proven: 0,
            asked: VecDeque::new(),
            was_asked: Vec::new(),
            table,
            algorithm,
            transcript: Transcript::default(),
            needed: None,
            streams: StreamSet::new(now),
            abandoning: BTreeSet::new(),
            control_queue: VecDeque::new(),
            stream_size: None,
            stream_freed: Vec::new(),
            end_sent: false,
            heard_at: now,
            timed_at: now,
            confirmed_bytes: 0,
            outcome: None,
        }
    }

    /// Sets what was negotiated, for the root digest.
    pub fn set_transcript(&mut self, transcript: Transcript) {
        self.transcript = transcript;
    }

    /// Sets the identities of all entries, zero for unknown. They go out when the receiver asks for
    /// them or needs a chunk. Chunks on data streams may overtake them: then the receiver does not
    /// know the identity of their files. Only with [`SenderConfig::identity`].
    pub fn set_identities(&mut self, identities: Vec<u64>) {
        self.identities = identities;
    }

    /// The manifest.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// The chunk table.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The algorithm by which chunks are checked.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Totals of what was missing at the beginning; None until the receiver has said so.
    pub fn needed(&self) -> Option<NeedTotals> {
        self.needed
    }

    /// Plain bytes that the receiver has confirmed in this attempt.
    pub fn confirmed_bytes(&self) -> u64 {
        self.confirmed_bytes
    }

    /// Data streams that carry chunks now.
    pub fn data_streams(&self) -> usize {
        self.streams.data_streams()
    }

    /// Returns true if `entry` is left out: skipped by the receiver, or abandoned here.
    pub fn is_left_out(&self, entry: EntryIndex) -> bool {
        self.left_out.get(entry.at()).is_none_or(Option::is_some)
    }

    /// The reason for which the receiver does not need `entry`, if it does not.
    pub fn skip_reason(&self, entry: EntryIndex) -> Option<SkipReason> {
        match self.left_out.get(entry.at()) {
            Some(Some(LeftOut::Skipped(reason))) => Some(*reason),
            _ => None,
        }
    }

    /// The slices of a pack as they must be sent now.
    pub fn slices(&self, chunk: ChunkIndex) -> Vec<(EntryIndex, u32)> {
        let Some(ChunkContent::Pack { from, to }) = self.table.content(chunk) else { return Vec::new() };
        let range = (from.0..to.0).map(EntryIndex);
        let slice = |entry: EntryIndex| {
            let size = self.manifest.get(entry)?.size();
            (size > 0 && !self.is_left_out(entry)).then_some((entry, size as u32))
        };
        range.filter_map(slice).collect()
    }

    /// The end of the transfer, once there is one.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// The chunk checksums of one big file, if all are known: its BLAKE3 follows from them.
    pub fn piece_checksums(&self, entry: EntryIndex) -> Option<Vec<Checksum>> {
        let (first, count) = self.table.chunks_of(entry)?;
        if !matches!(self.table.content(first)?, ChunkContent::Piece { .. }) {
            return None;
        }
        (first.0..first.0 + count).map(|at| self.chunks.checksum(ChunkIndex(at))).collect()
    }

    // ---- what arrives ----

    /// Takes a control frame that arrived on `stream`.
    pub fn handle_frame(&mut self, stream: StreamId, frame: Control, now: Instant) {
        // There the peer says every 5 seconds that it lives; without it the transfer cannot end,
        // whatever the others bring.
        if stream == StreamId::CONTROL {
            self.heard_at = now;
        }
        let done = match frame {
            Control::Skip(runs) => self.handle_skip(&runs),
            Control::Held(held) => self.handle_held(&held, !self.config.identity),
            Control::Compare(held) if self.config.identity => self.handle_held(&held, true),
            Control::Ask(entries) if entries.is_empty() && self.config.identity => {
                self.identities_asked = true;
                self.answering()
            }
            Control::Ask(entries) if self.config.content => self.handle_ask(&entries),
            Control::Need(totals) => self.handle_need(totals),
            Control::Confirm(chunks) => self.handle_confirm(stream, &chunks, now),
            Control::Again(chunks) => self.handle_again(&chunks),
            Control::Checkpointed => self.handle_checkpointed(stream),
            Control::Abandoned(entry) => self.handle_abandoned(entry),
            Control::Done(done) if self.end_sent => {
                self.end(Outcome::Done(done));
                Ok(())
            }
            Control::Refuse(refuse) if stream == StreamId::CONTROL => {
                self.end(Outcome::Refused(refuse));
                Ok(())
            }
            Control::Refuse(_) => {
                // That connection is over, for a reason of its own; the transfer is not.
                self.handle_stream_lost(stream, now);
                self.streams.close(stream);
                Ok(())
            }
            Control::Alive => Ok(()),
            _ => Err(Violation::protocol("a frame that a receiver does not send, or not now")),
        };
        if let Err(violation) = done {
            self.end(Outcome::Violated(violation));
        }
    }

    fn end(&mut self, outcome: Outcome) {
        self.outcome.get_or_insert(outcome);
    }

    /// The plain bytes of `chunk`, without what is left out.
    fn plain_len(&self, chunk: ChunkIndex) -> u64 {
        match self.table.content(chunk) {
            Some(ChunkContent::Piece { entry, len, .. }) if !self.is_left_out(entry) => u64::from(len),
            Some(ChunkContent::Pack { .. }) => {
                self.slices(chunk).iter().map(|&(_, size)| u64::from(size)).sum()
            }
            _ => 0,
        }
    }

    fn handle_confirm(
        &mut self,
        stream: StreamId,
        chunks: &[ChunkIndex],
        now: Instant,
    ) -> Result<(), Violation> {
        let mut bytes = 0;
        for &chunk in chunks {
            if !self.chunks.confirm(chunk)? {
                continue;
            }
            self.streams.forget(chunk);
            bytes += match self.table.content(chunk) {
                Some(ChunkContent::Piece { len, .. }) => u64::from(len),
                Some(ChunkContent::Pack { .. }) => self.plain_len(chunk),
                Some(ChunkContent::Stream { .. }) => {
                    self.stream_freed.push(chunk);
                    u64::from(self.table.one_chunk().bytes())
                }
                None => 0,
            };
        }
        self.confirmed_bytes += bytes;
        self.tuner.handle_confirmed(bytes, now);
        if let Some(stream) = self.streams.get_mut(stream) {
            stream.progress_at = now;
        }
        Ok(())
    }

    fn handle_again(&mut self, chunks: &[ChunkIndex]) -> Result<(), Violation> {
        for &chunk in chunks {
            if self.chunks.state(chunk).is_none() {
                return Err(Violation::protocol("a chunk asked for again that does not exist"));
            }
            self.streams.forget(chunk);
            self.requeue(chunk);
        }
        Ok(())
    }

    fn handle_checkpointed(&mut self, stream: StreamId) -> Result<(), Violation> {
        match self.streams.get_mut(stream) {
            Some(stream) if stream.phase == Phase::Syncing => stream.phase = Phase::Closing,
            Some(_) => return Err(Violation::protocol("CHECKPOINTED without CHECKPOINT")),
            None => {}
        }
        Ok(())
    }

    // ---- streams ----

    /// Takes a data stream that has joined, and names it.
    pub fn handle_stream_joined(&mut self, now: Instant) -> StreamId {
        self.streams.handle_joined(now)
    }

    /// Takes a data stream that could not be opened.
    pub fn handle_open_failed(&mut self, now: Instant) {
        self.streams.handle_open_failed(now);
    }

    /// Takes the end of a connection: what it carried goes back to the queue.
    pub fn handle_stream_lost(&mut self, id: StreamId, now: Instant) {
        let Some(stream) = self.streams.remove(id) else { return };
        for chunk in stream.flying {
            self.requeue(chunk);
        }
        if id == StreamId::CONTROL {
            self.end(Outcome::Lost("the connection was lost".into()));
        } else if stream.phase != Phase::Closing {
            self.streams.open_later(now);
        }
    }

    fn requeue(&mut self, chunk: ChunkIndex) {
        if !self.streams.carry(chunk) {
            self.chunks.requeue(chunk);
        }
    }

    fn wanted_opens(&self) -> usize {
        let Some(needed) = self.needed else { return 0 };
        let stream = self.table.stream().is_some_and(|(entry, _)| !self.is_left_out(entry));
        if self.outcome.is_some()
            || (needed.bytes < self.config.data_streams_from && !stream)
            || self.end_sent
        {
            return 0;
        }
        self.streams.missing(self.tuner.target())
    }

    /// Returns true if one more data stream should be opened now. Each true must be followed by a
    /// join or a failure.
    pub fn poll_open(&mut self, now: Instant) -> bool {
        self.wanted_opens() > 0 && self.streams.poll_open(now)
    }

    /// A stream whose connection must be closed now, because it stalled.
    pub fn poll_close(&mut self) -> Option<StreamId> {
        self.streams.poll_close()
    }

    /// The next step of the driver of `id`. `Send` is followed by [`Self::handle_sent`],
    /// [`Self::handle_unreadable`] or the loss of the stream.
    pub fn poll_stream(&mut self, id: StreamId, now: Instant) -> Action {
        if self.outcome.is_some() || self.streams.get(id).is_none() {
            return Action::Close;
        }
        if let Some(stream) = self.streams.get_mut(id) {
            stream.asked_at = now;
        }
        if id == StreamId::CONTROL {
            if let Some(frame) = self.next_control() {
                return self.say(id, frame, now);
            }
        } else {
            self.streams.steer(id, self.tuner.target(), &self.config, self.end_sent);
            match self.streams.get(id).map(|stream| stream.phase) {
                Some(Phase::Retire) => {
                    if let Some(stream) = self.streams.get_mut(id) {
                        stream.phase = Phase::Syncing;
                        stream.progress_at = now;
                    }
                    return self.say(id, Control::Checkpoint, now);
                }
                Some(Phase::Closing) | None => {
                    self.handle_stream_lost(id, now);
                    return Action::Close;
                }
                Some(Phase::Open | Phase::Replace | Phase::Syncing) => {}
            }
        }
        if self.streams.takes_chunk(id, &self.config)
            && self.needed.is_some()
            && let Some(chunk) = self.chunks.next_queued()
        {
            if let Some(stream) = self.streams.get_mut(id) {
                stream.sending = Some(chunk);
                stream.flying.insert(chunk);
                stream.progress_at = now;
            }
            return Action::Send(chunk);
        }
        let silent_since = self.streams.get(id).map(|stream| stream.wrote_at);
        if silent_since.is_some_and(|at| now >= at + self.config.alive_every) {
            return self.say(id, Control::Alive, now);
        }
        Action::Wait
    }

    fn say(&mut self, id: StreamId, frame: Control, now: Instant) -> Action {
        if let Some(stream) = self.streams.get_mut(id) {
            stream.wrote_at = now;
        }
        Action::Control(frame)
    }

    fn next_control(&mut self) -> Option<Control> {
        let wanted = self.identities_asked || self.needed.is_some_and(|needed| needed.chunks > 0);
        if wanted && self.identities_sent < self.identities.len() {
            let first = EntryIndex(self.identities_sent as u32);
            let identities = self.identities.iter().skip(self.identities_sent).take(IDENTITIES_PER_FRAME);
            let identities: Vec<_> = identities.copied().collect();
            self.identities_sent += identities.len();
            return Some(Control::Identity(Identities { first, identities }));
        }
        if let Some(frame) = self.control_queue.pop_front() {
            return Some(frame);
        }
        let stream_open = self
            .table
            .stream()
            .is_some_and(|(entry, _)| self.stream_size.is_none() && !self.is_left_out(entry));
        if let Some(proven) = self.next_proof() {
            return Some(Control::Proven(proven));
        }
        if self.end_sent
            || self.needed.is_none()
            || !self.chunks.all_known()
            || stream_open
            || !self.abandoning.is_empty()
        {
            return None;
        }
        self.end_sent = true;
        Some(Control::End(root_digest(&self.transcript, self.chunks.needed())))
    }

    /// One past the last of the chunks that could be proven now.
    fn provable(&self) -> u32 {
        // One file gets its name at END anyway.
        let wanted = self.config.proof && self.needed.is_some() && self.manifest.len() > 1;
        // The receiver may have dropped what is being abandoned already.
        if !wanted || self.end_sent || !self.abandoning.is_empty() {
            return self.proven;
        }
        self.chunks.settled_from(self.proven)
    }

    fn next_proof(&mut self) -> Option<Proven> {
        let (first, end) = (self.proven, self.provable());
        if end - first < Self::PROVEN_MIN {
            return None;
        }
        self.proven = end;
        let digest = root_digest(&self.transcript, self.chunks.confirmed(first, end));
        Some(Proven { first: ChunkIndex(first), count: end - first, digest })
    }

    /// Notes that the connection of `id` took some bytes.
    pub fn handle_progress(&mut self, id: StreamId, now: Instant) {
        if let Some(stream) = self.streams.get_mut(id) {
            stream.wrote_at = now;
            // An ALIVE fits into the buffers of a connection that is dark.
            if stream.sending.is_some() {
                stream.progress_at = now;
            }
        }
    }

    /// Notes the checksum of a chunk that is about to be sent on `id`.
    ///
    /// It is known from here on, so that a quick confirmation does not come too early.
    pub fn handle_read(&mut self, chunk: ChunkIndex, checksum: &Checksum) {
        // A pack that lost a slice before END has another checksum now, and may.
        let is_pack = matches!(self.table.content(chunk), Some(ChunkContent::Pack { .. }));
        if !self.chunks.note_read(chunk, checksum, is_pack && !self.end_sent) {
            self.end(Outcome::Failed(Failure::new(
                Code::SourceChanged,
                "the source changed while it was sent",
            )));
        }
    }

    /// Takes the end of sending a chunk: `bytes` have gone out on `id`.
    pub fn handle_sent(&mut self, id: StreamId, bytes: u64, now: Instant) {
        self.handle_progress(id, now);
        if let Some(stream) = self.streams.get_mut(id) {
            stream.sending = None;
            stream.bytes += bytes;
        }
    }

    // ---- an entry of unknown size ----

    /// Takes that the next chunk of the stream has been filled, and names it. Only after
    /// [`Self::wants_stream`] has said yes.
    pub fn handle_stream_filled(&mut self) -> Option<ChunkIndex> {
        self.table.stream()?;
        let chunk = ChunkIndex(self.chunks.count());
        if chunk.0 >= ChunkIndex::LIMIT {
            self.end(Outcome::Failed(Failure::new(Code::OverLimit, "a stream beyond what can be numbered")));
            return None;
        }
        self.chunks.push();
        Some(chunk)
    }

    /// Takes the end of the stream.
    pub fn handle_stream_ended(&mut self, size: u64) {
        if let (Some((entry, _)), None) = (self.table.stream(), self.stream_size) {
            self.stream_size = Some(size);
            self.control_queue.push_back(Control::Size { entry, size });
        }
    }

    /// Chunks of the stream that are confirmed, so that their bytes need not be kept.
    pub fn poll_stream_freed(&mut self) -> Option<ChunkIndex> {
        self.stream_freed.pop()
    }

    // ---- time ----

    /// Returns true if every stream that carries chunks is sending one, and there is nothing else
    /// to do: then nobody who drives this machine has to be woken.
    pub fn is_occupied(&self) -> bool {
        self.outcome.is_none()
            && self.stream_freed.is_empty()
            && self.wanted_opens() == 0
            && self.streams.all_send()
            && self.provable() - self.proven < Self::PROVEN_MIN
    }

    /// The time at which [`Self::handle_timeout`] is due at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.outcome.is_some() {
            return None;
        }
        let silent = self.heard_at + self.config.silent_after;
        let deadline = self.streams.deadline(silent, &self.config, self.wanted_opens() > 0);
        Some(deadline.max(self.timed_at + Self::TICK))
    }

    /// Gives up what has stalled.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.outcome.is_some() {
            return;
        }
        self.timed_at = now;
        if now >= self.heard_at + self.config.silent_after {
            self.end(Outcome::Lost("the peer has been silent for too long".into()));
            return;
        }
        if self.streams.is_open_overdue(now) {
            self.handle_open_failed(now);
        }
        let stalled = self.streams.stalled(now, self.config.stall_after, || self.chunks.has_queued());
        for id in stalled {
            if id == StreamId::CONTROL {
                // It stays for its control frames, but what it carries goes another way too.
                let flying = self.streams.get_mut(id).map(|stream| std::mem::take(&mut stream.flying));
                flying.into_iter().flatten().for_each(|chunk| self.requeue(chunk));
            } else {
                self.handle_stream_lost(id, now);
                self.streams.close(id);
            }
        }
    }

    /// Returns true if the stream entry, if there is one, is wanted by the receiver; None before it
    /// has answered.
    pub fn wants_stream(&self) -> Option<bool> {
        self.needed?;
        let stream = self.table.stream()?.0;
        Some(matches!(self.manifest.get(stream)?.kind, EntryKind::Stream) && !self.is_left_out(stream))
    }
}
