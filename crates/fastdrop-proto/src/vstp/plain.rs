//! Small frames that want no acknowledgement: they leave at once as long as they are few, and at
//! the rate of the path beyond (docs/protocol/vstp.md, section 5).

use super::batch::Batch;
use super::failure::Failure;
use super::ids::SendId;
use super::priority::{ByPriority, Priority};
use crate::congestion::{Flow, Stamp};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A frame that wants no acknowledgement, encoded.
#[derive(Debug)]
pub(super) struct PlainFrame {
    pub(super) bytes: Vec<u8>,
    /// The channel of which it is a state.
    pub(super) state: Option<u32>,
    pub(super) priority: Priority,
}

/// One that waits, and whom to tell that it has left.
#[derive(Debug)]
struct Waiting {
    send: Option<SendId>,
    frame: PlainFrame,
}

/// A frame that has left, and counts as on its way.
#[derive(Debug)]
struct Sent {
    bytes: u64,
    stamp: Stamp,
}

/// A probe that asks how many frames have come.
#[derive(Debug)]
struct Mark {
    id: u64,
    at: Instant,
    /// Frames that had left before it, of all that ever did.
    frames: u32,
    /// The same of those that count as on their way.
    tracked: u64,
}

/// Knowledge of the path and the peer at its end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Path {
    /// The peer reports probes.
    pub(super) reports: bool,
    /// It may do so.
    pub(super) may_report: bool,
    /// Other frames wait for the same path.
    pub(super) is_shared: bool,
}

/// The small frames to one address that want no acknowledgement.
#[derive(Debug)]
pub(super) struct Plain {
    /// Those that wait.
    queues: ByPriority<VecDeque<Waiting>>,
    /// Bytes that may leave at once.
    credit: f64,
    credited_at: Instant,
    /// Frames that have left.
    frames: u32,
    /// Those of them that count as on their way: all that leave while there are many.
    on_way: VecDeque<Sent>,
    /// The count of those that have been accounted for.
    accounted: u64,
    marks: VecDeque<Mark>,
    /// Bytes that have left since the last mark.
    unmarked: u64,
    /// Frames that had left, and how many of them had come, at the last report.
    last: Option<(u32, u32)>,
    /// Marks in a row that nobody reported in time.
    silences: u32,
    pace_at: Option<Instant>,
}

impl Plain {
    /// Bytes that leave at once after a pause: 64 datagrams.
    const BURST: f64 = 64.0 * 1200.0;
    /// Bytes that leave at once while frames are on their way: 10 datagrams, or 2 ms of the rate.
    const BURST_OF_MANY: f64 = 10.0 * 1200.0;
    /// Frames are few while this share of the burst is left.
    const FEW: f64 = 7.0 / 8.0;
    /// Bytes a second where nothing is known of the path: 10 datagrams in 5 ms.
    const RATE_UNKNOWN: f64 = 2_400_000.0;
    /// Frames leave at most so many times as fast as they have been seen to arrive.
    const GAIN_MAX: f64 = 1.25;
    /// Frames that may wait before their senders wait for them, and at most.
    const QUEUE_FREE: usize = 64;
    const QUEUE_MAX: usize = 4096;
    /// A mark leaves after every quarter of the window, and not more often than this.
    const MARK_MIN: u64 = 8 * 1200;
    const MARKS_MAX: usize = 16;
    /// Silences after which nobody is expected to report.
    const SILENCES_MAX: u32 = 3;

    pub(super) fn new(now: Instant) -> Self {
        Self {
            queues: ByPriority::default(),
            credit: Self::BURST,
            credited_at: now,
            frames: 0,
            on_way: VecDeque::new(),
            accounted: 0,
            marks: VecDeque::new(),
            unmarked: 0,
            last: None,
            silences: 0,
            pace_at: None,
        }
    }

    /// Returns true if nothing waits to leave.
    pub(super) fn is_empty(&self) -> bool {
        self.queues.iter().all(VecDeque::is_empty)
    }

    /// Returns true if something of this priority waits to leave.
    pub(super) fn waits(&self, priority: Priority) -> bool {
        !self.queues.get(priority).is_empty()
    }

    /// Takes a frame. Returns true if its sender need not wait until it has left.
    pub(super) fn push(&mut self, send: SendId, frame: PlainFrame) -> Result<bool, Failure> {
        let queue = self.queues.get_mut(frame.priority);
        if queue.len() >= Self::QUEUE_MAX {
            return Err(Failure::Busy);
        }
        let free = queue.len() < Self::QUEUE_FREE && frame.state.is_none();
        queue.push_back(Waiting { send: (!free).then_some(send), frame });
        Ok(free)
    }

    /// Takes the state of a channel that waits out of the queue.
    pub(super) fn take_state(&mut self, channel: u32) -> Option<SendId> {
        let is_it = |waiting: &Waiting| waiting.frame.state == Some(channel);
        self.queues.iter_mut().find_map(|queue| {
            let at = queue.iter().position(is_it)?;
            queue.remove(at)?.send
        })
    }

    /// Bytes a second at which frames leave. What is lost does not leave again, so a path is tried
    /// more gently than with other frames.
    fn rate(path: Path, flow: &Flow) -> f64 {
        let known = flow.rate().zip(flow.arrival_rate()).zip(flow.rtt.smoothed());
        let Some(((rate, arriving), rtt)) = known.filter(|_| path.reports) else { return Self::RATE_UNKNOWN };
        // Few frames that want an acknowledgement say little of what the path carries.
        let least = Self::BURST_OF_MANY / rtt.as_secs_f64().max(1e-6);
        rate.min(arriving * Self::GAIN_MAX).max(least.min(Self::RATE_UNKNOWN))
    }

    /// Returns true if a mark has to leave, where somebody may report it.
    pub(super) fn wants_mark(&self, flow: &Flow) -> bool {
        let interval = (Self::window(flow) / 4).max(Self::MARK_MIN);
        let is_last = self.is_empty() || self.is_blocked(flow);
        let waits = !self.on_way.is_empty() && self.marks.is_empty() && is_last;
        // The first one leaves before there is a queue in which it could be lost.
        let knows = self.last.is_some() || !self.marks.is_empty();
        let is_first = !knows && !self.is_empty() && self.are_many();
        waits || is_first || (self.unmarked >= interval && self.marks.len() < Self::MARKS_MAX)
    }

    /// Returns true if frames leave so fast that they have to be accounted for.
    fn are_many(&self) -> bool {
        !self.on_way.is_empty() || self.credit < Self::BURST * Self::FEW
    }

    /// Returns true if too much is on its way that nobody has reported.
    fn is_blocked(&self, flow: &Flow) -> bool {
        !self.on_way.is_empty() && flow.in_flight() > Self::window(flow)
    }

    /// Bytes that may be on their way: what the path holds, and a little more.
    fn window(flow: &Flow) -> u64 {
        let rtt = flow.rtt.smoothed().map(|_| flow.rtt.smallest().as_secs_f64());
        let product = flow.arrival_rate().zip(rtt).map(|(rate, rtt)| rate * rtt * Self::GAIN_MAX);
        product.map_or(u64::MAX, |product| product as u64 + Self::MARK_MIN).min(flow.window())
    }

    /// A mark leaves: the probe with this number.
    pub(super) fn on_marked(&mut self, now: Instant, id: u64) {
        let tracked = self.accounted + self.on_way.len() as u64;
        self.marks.push_back(Mark { id, at: now, frames: self.frames, tracked });
        self.unmarked = 0;
    }

    /// Forgets the time at which the next one may leave, which [`Self::poll_transmit`] sets anew.
    pub(super) fn forget_pace(&mut self) {
        self.pace_at = None;
    }

    /// Writes the frames of a priority that leave next, of which each but the last has the same
    /// size: that size. `path` says what is known of the peer, and `told` gets those whose senders
    /// have waited.
    pub(super) fn poll_transmit(
        &mut self,
        now: Instant,
        (priority, batch): (Priority, Batch),
        path: Path,
        flow: &mut Flow,
        told: &mut VecDeque<(SendId, Result<(), Failure>)>,
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        if !self.waits(priority) {
            return None;
        }
        self.pace_at = None;
        let rate = Self::rate(path, flow) / if path.is_shared { 2.0 } else { 1.0 };
        let passed = now.saturating_duration_since(self.credited_at).as_secs_f64();
        let of_many = Self::BURST_OF_MANY.max(rate * Flow::BURST.as_secs_f64());
        let most = if self.on_way.is_empty() { Self::BURST } else { of_many };
        self.credit = rate.mul_add(passed, self.credit).min(most);
        self.credited_at = now;
        if self.credit <= 0.0 {
            // A millisecond's worth at a time, as timers are no finer.
            let wait = (rate / 1000.0 - self.credit) / rate;
            self.pace_at = Some(now + Duration::from_secs_f64(wait.clamp(1e-4, 1.0)));
            return None;
        }
        // What nobody reports in time does not pile up.
        if self.is_blocked(flow) {
            return None;
        }
        let mut size = None;
        for _ in 0..batch.segments.max(1) {
            let Some(Waiting { frame, .. }) = self.queues.get(priority).front() else { break };
            let len = frame.bytes.len();
            let waits = size.is_some() && (self.credit <= 0.0 || self.is_blocked(flow));
            if waits || !batch.has_room(len, out.len(), size) {
                break;
            }
            let are_many = self.are_many();
            let Some(Waiting { send, frame }) = self.queues.get_mut(priority).pop_front() else { break };
            out.extend_from_slice(&frame.bytes);
            told.extend(send.map(|send| (send, Ok(()))));
            self.credit -= len as f64;
            self.frames = self.frames.wrapping_add(1);
            if are_many && path.may_report {
                self.unmarked += len as u64;
            }
            if are_many && path.reports {
                let stamp = flow.on_sent(now, len as u64);
                self.on_way.push_back(Sent { bytes: len as u64, stamp });
            }
            if len < *size.get_or_insert(len) {
                break;
            }
        }
        size
    }

    /// Takes the report of a mark, and how many frames have come, if it says that. False if there
    /// is no such mark.
    pub(super) fn handle_report(
        &mut self,
        now: Instant,
        id: u64,
        came: Option<u32>,
        flow: &mut Flow,
    ) -> bool {
        let Some(at) = self.marks.iter().position(|mark| mark.id == id) else { return false };
        let Some(mark) = self.marks.drain(..=at).next_back() else { return false };
        self.silences = 0;
        let came = came.unwrap_or(mark.frames);
        // Of so many frames, so many have come. A peer that has forgotten begins at 0.
        let (sent, arrived) = self.last.map_or((1, 1), |(frames, before)| {
            (mark.frames.wrapping_sub(frames).max(1), came.wrapping_sub(before))
        });
        let arrived = arrived.min(sent);
        self.last = Some((mark.frames, came));
        let count = usize::try_from(mark.tracked.saturating_sub(self.accounted)).unwrap_or(usize::MAX);
        let accounted = self.on_way.drain(..count.min(self.on_way.len()));
        let (mut bytes, mut newest) = (0, None);
        for Sent { bytes: len, stamp } in accounted {
            bytes += len;
            newest = Some(stamp);
        }
        self.accounted = self.accounted.max(mark.tracked);
        if let Some(newest) = newest {
            let delivered = bytes * u64::from(arrived) / u64::from(sent);
            flow.on_lost(now, bytes - delivered);
            let rtt = now.saturating_duration_since(mark.at);
            flow.on_delivered(now, delivered, &newest, Some(rtt).filter(|rtt| !rtt.is_zero()));
        }
        true
    }

    /// Forgets what nobody has reported in time. Returns the time since which nobody has, when that
    /// has happened often.
    pub(super) fn handle_timeout(&mut self, now: Instant, flow: &mut Flow, reports: bool) -> Option<Instant> {
        let since = self.marks.front()?.at;
        if self.poll_silence(flow)? > now {
            return None;
        }
        self.marks.clear();
        self.unmarked = 0;
        self.last = None;
        // The next ones are asked after at once, and leave slowly.
        self.credit = self.credit.min(Self::BURST_OF_MANY);
        self.accounted += self.on_way.len() as u64;
        self.on_way.drain(..).for_each(|sent| flow.on_forgotten(sent.bytes));
        if reports {
            flow.on_timeout(now);
        } else {
            flow.rtt.on_timeout();
        }
        self.silences += 1;
        (self.silences >= Self::SILENCES_MAX).then_some(since)
    }

    fn poll_silence(&self, flow: &Flow) -> Option<Instant> {
        self.marks.front().map(|mark| mark.at + flow.rtt.timeout())
    }

    /// The time at which something is to be done.
    pub(super) fn poll_timeout(&self, now: Instant, flow: &Flow) -> Option<Instant> {
        let pace = self.pace_at.filter(|at| *at > now && !self.is_empty());
        [pace, self.poll_silence(flow)].into_iter().flatten().min()
    }

    /// Gives up all that wait, for this reason.
    pub(super) fn abandon(&mut self, reason: &Failure, told: &mut VecDeque<(SendId, Result<(), Failure>)>) {
        for queue in self.queues.iter_mut() {
            let waited = queue.drain(..).filter_map(|waiting| waiting.send);
            told.extend(waited.map(|send| (send, Err(reason.clone()))));
        }
    }
}
