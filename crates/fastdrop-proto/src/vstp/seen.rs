//! The frames with REQ_ACK that have been received, so that a repetition is known.

use super::acknowledgement::Acknowledgement;
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

/// The state of a frame that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    /// Received for the first time.
    New,
    /// Handed to the application, which has not said yet that it is handled.
    Pending,
    /// Handled, and acknowledged.
    Acknowledged,
    /// Dropped by the application without an acknowledgement.
    Dropped,
}

/// The numbers and CRCs of the last frames that wanted an acknowledgement.
///
/// The CRC belongs to it because programs of version 0.2 begin to count at 1 whenever they start.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// As many as the application keeps; never forgotten, as a repetition must not be handed on.
    pending: HashSet<Acknowledgement>,
    settled: HashMap<Acknowledgement, Sight>,
    order: VecDeque<(Instant, Acknowledgement)>,
}

impl Seen {
    /// Nobody sends a settled frame again later than this.
    const AGE_MAX: Duration = Duration::from_secs(60);
    const COUNT_MAX: usize = 4096;

    /// Returns the state of a frame, which is pending from now on if it is new.
    pub(super) fn receive(&mut self, now: Instant, frame: Acknowledgement) -> Sight {
        self.forget_old(now);
        let known = self.peek(frame);
        if known == Sight::New {
            self.pending.insert(frame);
        }
        known
    }

    /// Returns the state of a frame.
    pub(super) fn peek(&self, frame: Acknowledgement) -> Sight {
        if self.pending.contains(&frame) {
            return Sight::Pending;
        }
        self.settled.get(&frame).copied().unwrap_or(Sight::New)
    }

    /// Records that the application has handled a pending frame, or has dropped it.
    pub(super) fn settle(&mut self, now: Instant, frame: Acknowledgement, acknowledged: bool) {
        if self.pending.remove(&frame) {
            self.forget_old(now);
            let sight = if acknowledged { Sight::Acknowledged } else { Sight::Dropped };
            self.settled.insert(frame, sight);
            self.order.push_back((now, frame));
        }
    }

    /// Whether the application has settled everything.
    pub(super) fn is_settled(&self) -> bool {
        self.pending.is_empty()
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some(&(at, frame)) = self.order.front() {
            if now.saturating_duration_since(at) < Self::AGE_MAX && self.order.len() < Self::COUNT_MAX {
                break;
            }
            self.order.pop_front();
            self.settled.remove(&frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(msg_id: u64, crc: u32) -> Acknowledgement {
        Acknowledgement { msg_id: Some(msg_id), crc }
    }

    #[test]
    fn a_settled_frame_is_known_until_it_is_forgotten() {
        let now = Instant::now();
        let mut seen = Seen::default();
        for (acknowledged, known) in [(true, Sight::Acknowledged), (false, Sight::Dropped)] {
            let one = frame(u64::from(acknowledged), 7);
            assert_eq!(seen.receive(now, one), Sight::New);
            assert_eq!(seen.receive(now, one), Sight::Pending);
            seen.settle(now, one, acknowledged);
            seen.settle(now, one, !acknowledged);
            assert_eq!(seen.receive(now, one), known);
        }
        assert_eq!(seen.receive(now, frame(1, 8)), Sight::New, "another frame with the same number");
        assert_eq!(seen.receive(now + Seen::AGE_MAX, frame(1, 7)), Sight::New);
        for n in 0..2 * Seen::COUNT_MAX as u64 {
            seen.receive(now, frame(n, 0));
            seen.settle(now, frame(n, 0), true);
        }
        assert!(seen.settled.len() <= Seen::COUNT_MAX && seen.order.len() <= Seen::COUNT_MAX);
    }

    #[test]
    fn case_110_a_frame_that_is_not_handled_yet_is_never_forgotten() {
        let now = Instant::now();
        let mut seen = Seen::default();
        assert_eq!(seen.receive(now, frame(1, 7)), Sight::New);
        let later = now + 10 * Seen::AGE_MAX;
        for n in 2..2 * Seen::COUNT_MAX as u64 {
            seen.receive(later, frame(n, 0));
            seen.settle(later, frame(n, 0), true);
        }
        assert_eq!(seen.receive(later, frame(1, 7)), Sight::Pending);
        assert!(!seen.is_settled());
    }
}
