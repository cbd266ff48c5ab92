//! The connections of a transfer, as the sending end sees them: their lives and what they carry.

use super::config::SenderConfig;
use crate::units::ChunkIndex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// A connection of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u32);

impl StreamId {
    /// The control stream; all others are data streams.
    pub const CONTROL: StreamId = StreamId(0);
}

/// The life of a stream.
///
/// ```text
///       near a checkpoint      another joined      CHECKPOINT sent       CHECKPOINTED
///   Open ───────────────▶ Replace ────────▶ Retire ──────────▶ Syncing ──────────▶ Closing
///    └────────── more streams than wanted ────▲
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    Replace,
    Retire,
    Syncing,
    Closing,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) phase: Phase,
    /// Handed to the driver, not yet wholly sent.
    pub(super) sending: Option<ChunkIndex>,
    /// Sent, or being sent, and not confirmed.
    pub(super) flying: BTreeSet<ChunkIndex>,
    pub(super) bytes: u64,
    pub(super) progress_at: Instant,
    pub(super) wrote_at: Instant,
    pub(super) asked_at: Instant,
}

impl Stream {
    fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Open,
            sending: None,
            flying: BTreeSet::new(),
            bytes: 0,
            progress_at: now,
            wrote_at: now,
            asked_at: now,
        }
    }

    fn carries(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Replace)
    }

    /// Returns true if something must move on it. What it still sends may have been confirmed or
    /// given up meanwhile.
    fn is_busy(&self) -> bool {
        self.sending.is_some() || !self.flying.is_empty()
    }
}

/// The connections that there are, and those that have been asked for.
#[derive(Debug)]
pub(super) struct StreamSet {
    streams: BTreeMap<StreamId, Stream>,
    next: u32,
    pending_opens: VecDeque<Instant>,
    open_failures: u32,
    open_again_at: Option<Instant>,
    closing: Vec<StreamId>,
}

impl StreamSet {
    /// More failures in a row to open a data stream than this, and no more are tried.
    const OPEN_FAILURES_MAX: u32 = 5;
    /// A stream that has nobody to be compared with is given so many times the patience: the peer's
    /// disk may be slow.
    const STALL_ALONE: u32 = 4;
    /// A data stream that was asked for and has not joined by then counts as failed.
    const OPEN_PATIENCE: Duration = Duration::from_secs(10);

    /// The control stream alone.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            streams: BTreeMap::from([(StreamId::CONTROL, Stream::new(now))]),
            next: 1,
            pending_opens: VecDeque::new(),
            open_failures: 0,
            open_again_at: None,
            closing: Vec::new(),
        }
    }

    pub(super) fn get(&self, id: StreamId) -> Option<&Stream> {
        self.streams.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.streams.get_mut(&id)
    }

    /// Data streams that carry chunks now.
    pub(super) fn data_streams(&self) -> usize {
        self.streams.iter().filter(|(id, stream)| **id != StreamId::CONTROL && stream.carries()).count()
    }

    // ---- opening and closing ----

    /// Data streams that are missing, if `target` of them are to carry chunks.
    pub(super) fn missing(&self, target: u16) -> usize {
        let replace = self.streams.values().filter(|stream| stream.phase == Phase::Replace).count();
        (usize::from(target) + replace).saturating_sub(self.data_streams() + self.pending_opens.len())
    }

    /// Returns true if one of the missing streams may be opened now. Each true must be followed by
    /// a join or a failure.
    pub(super) fn poll_open(&mut self, now: Instant) -> bool {
        if self.open_failures > Self::OPEN_FAILURES_MAX || self.open_again_at.is_some_and(|at| now < at) {
            return false;
        }
        self.pending_opens.push_back(now);
        true
    }

    /// Takes a data stream that has joined, and names it.
    pub(super) fn handle_joined(&mut self, now: Instant) -> StreamId {
        let id = StreamId(self.next);
        self.next += 1;
        self.pending_opens.pop_front();
        self.open_failures = 0;
        self.streams.insert(id, Stream::new(now));
        if let Some(old) = self.streams.values_mut().find(|stream| stream.phase == Phase::Replace) {
            old.phase = Phase::Retire;
        }
        id
    }

    /// Takes a data stream that could not be opened.
    pub(super) fn handle_open_failed(&mut self, now: Instant) {
        self.pending_opens.pop_front();
        self.open_failures += 1;
        self.open_again_at = Some(now + Duration::from_millis(200) * (1 << self.open_failures.min(5)));
    }

    /// Returns true if a data stream that was asked for is overdue.
    pub(super) fn is_open_overdue(&self, now: Instant) -> bool {
        self.pending_opens.front().is_some_and(|&at| now >= at + Self::OPEN_PATIENCE)
    }

    /// Forgets a connection, which has ended.
    pub(super) fn remove(&mut self, id: StreamId) -> Option<Stream> {
        self.streams.remove(&id)
    }

    /// Holds the opening of another data stream back for a moment.
    pub(super) fn open_later(&mut self, now: Instant) {
        self.open_again_at = Some(now + Duration::from_millis(50));
    }

    /// Has the connection of `id` closed by its driver.
    pub(super) fn close(&mut self, id: StreamId) {
        self.closing.push(id);
    }

    pub(super) fn poll_close(&mut self) -> Option<StreamId> {
        self.closing.pop()
    }

    // ---- what they carry ----

    /// Takes `chunk` off every stream: it is confirmed, or given up.
    pub(super) fn forget(&mut self, chunk: ChunkIndex) {
        for stream in self.streams.values_mut() {
            stream.flying.remove(&chunk);
        }
    }

    pub(super) fn carry(&self, chunk: ChunkIndex) -> bool {
        self.streams.values().any(|stream| stream.flying.contains(&chunk))
    }

    /// Moves a data stream on in its life, before it is given more work.
    pub(super) fn steer(&mut self, id: StreamId, target: u16, config: &SenderConfig, end_sent: bool) {
        let surplus = self.data_streams() > usize::from(target);
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.phase == Phase::Open {
            if surplus {
                stream.phase = Phase::Retire;
            } else if config.checkpoint.is_some_and(|bytes| stream.bytes >= bytes - bytes / 8) {
                // Asked for in advance, so that it is there when this one is full.
                stream.phase = Phase::Replace;
            }
        }
        // Nothing would come after it.
        if stream.phase == Phase::Replace && end_sent {
            stream.phase = Phase::Open;
        }
    }

    /// Returns true if `id` can be given one more chunk.
    pub(super) fn takes_chunk(&self, id: StreamId, config: &SenderConfig) -> bool {
        let Some(stream) = self.streams.get(&id) else { return false };
        let carries = match id {
            StreamId::CONTROL => self.data_streams() == 0,
            _ => stream.carries(),
        };
        let full = stream.flying.len() >= config.flying_max;
        // A stream that is due waits for its replacement, unless that may not come.
        let due = self.open_failures == 0
            && stream.phase == Phase::Replace
            && config.checkpoint.is_some_and(|bytes| stream.bytes >= bytes);
        carries && !full && !due
    }

    /// Returns true if every stream that carries chunks is sending one.
    pub(super) fn all_send(&self) -> bool {
        let control_carries = self.data_streams() == 0;
        let mut carriers =
            self.streams.iter().filter(|(id, _)| (**id == StreamId::CONTROL) == control_carries);
        carriers.all(|(_, stream)| stream.sending.is_some())
    }

    // ---- time ----

    /// The time at which something is due on one of them, or `latest`.
    pub(super) fn deadline(&self, latest: Instant, config: &SenderConfig, wants_open: bool) -> Instant {
        let mut deadline = latest;
        for stream in self.streams.values() {
            deadline = deadline.min(stream.wrote_at + config.alive_every);
            if stream.is_busy() {
                deadline = deadline.min(stream.progress_at + config.stall_after);
            }
        }
        if wants_open && self.open_failures <= Self::OPEN_FAILURES_MAX {
            deadline = deadline.min(self.open_again_at.unwrap_or(deadline));
        }
        let patience = self.pending_opens.front().map(|&at| at + Self::OPEN_PATIENCE);
        patience.map_or(deadline, |at| deadline.min(at))
    }

    /// Streams that have made no progress for too long. `has_queued` says if chunks wait for one.
    pub(super) fn stalled(
        &self,
        now: Instant,
        stall: Duration,
        has_queued: impl Fn() -> bool,
    ) -> Vec<StreamId> {
        let recent = |stream: &Stream| now < stream.progress_at + stall / 2;
        let moving: Vec<_> =
            self.streams.iter().filter(|(_, stream)| recent(stream)).map(|(&id, _)| id).collect();
        // An idle stream that could carry the work at once counts as moving.
        let idle = self
            .streams
            .iter()
            .any(|(&id, stream)| id != StreamId::CONTROL && stream.carries() && !stream.is_busy());
        // Nothing is on its way on it, and it does not come for what waits: its driver is blocked
        // in an ALIVE.
        let blocked = |id: StreamId, stream: &Stream| {
            id != StreamId::CONTROL
                && stream.carries()
                && !stream.is_busy()
                && now >= stream.asked_at + stall * 2
                && has_queued()
        };
        let stalled = self.streams.iter().filter(|(id, stream)| {
            blocked(**id, stream)
                || stream.is_busy()
                    && now >= stream.progress_at + stall
                    && (idle
                        || now >= stream.progress_at + stall * Self::STALL_ALONE
                        || moving.iter().any(|other| other != *id))
        });
        stalled.map(|(&id, _)| id).collect()
    }
}
