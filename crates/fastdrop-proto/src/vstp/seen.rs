//! The frames with REQ_ACK that have been received, so that a repetition is known.

use super::acknowledgement::Acknowledgement;
use super::streams::{Known, Streams};
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

/// The state of a frame that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    /// Received for the first time.
    New,
    /// Handed to the application, which has not said yet what became of it.
    Pending,
    /// Its fate is known, and a repetition has the same answer.
    Settled,
}

/// The fate of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Settled {
    /// Handled, and acknowledged.
    Acknowledged,
    /// Dropped by the application without a word.
    Dropped,
    /// Refused with this ERR frame.
    Refused(Vec<u8>),
}

/// The frames that wanted an acknowledgement: of senders that use a number once, all of them.
///
/// Of other senders the last ones, by their numbers and CRCs, because programs of version 0.2 begin
/// to count at 1 whenever they start.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// As many as the application keeps; never forgotten, as a repetition must not be handed on.
    pending: HashSet<Acknowledgement>,
    streams: Streams,
    /// The fates of the last frames of other senders, and refusals.
    settled: HashMap<Acknowledgement, Settled>,
    order: VecDeque<(Instant, Acknowledgement)>,
}

impl Seen {
    /// Nobody sends a settled frame, or an ended message, again later than this.
    pub(super) const AGE_MAX: Duration = Duration::from_secs(60);
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
        let settled = match frame.unique_number() {
            Some(number) => self.streams.peek(number) != Known::New,
            None => self.settled.contains_key(&frame),
        };
        if settled { Sight::Settled } else { Sight::New }
    }

    /// The answer to a frame that is settled: the ACK or ERR frame, if it has one.
    pub(super) fn answer(&self, frame: Acknowledgement) -> Option<Vec<u8>> {
        if let Some(number) = frame.unique_number()
            && self.streams.peek(number) == (Known::Came { acknowledged: true })
        {
            // Those below are repeated, as their own answers may have been lost.
            return frame.encode(&self.streams.acknowledged_below(number).to_be_bytes()).ok();
        }
        match self.settled.get(&frame)? {
            Settled::Acknowledged => frame.encode(b"").ok(),
            Settled::Dropped => None,
            Settled::Refused(answer) => Some(answer.clone()),
        }
    }

    /// Records the fate of a pending frame.
    pub(super) fn settle(&mut self, now: Instant, frame: Acknowledgement, settled: Settled) {
        if !self.pending.remove(&frame) {
            return;
        }
        self.forget_old(now);
        if let Some(number) = frame.unique_number() {
            self.streams.settle(number, settled == Settled::Acknowledged);
            if !matches!(settled, Settled::Refused(_)) {
                return;
            }
        }
        self.settled.insert(frame, settled);
        self.order.push_back((now, frame));
    }

    /// A pending frame could not be kept, and may come again.
    pub(super) fn forget_pending(&mut self, frame: Acknowledgement) {
        self.pending.remove(&frame);
    }

    /// Returns true if the application has settled everything.
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
        Acknowledgement { msg_id: Some(msg_id), crc, unique: false }
    }

    #[test]
    fn a_settled_frame_is_known_until_it_is_forgotten() {
        let now = Instant::now();
        let mut seen = Seen::default();
        let refused = Settled::Refused(b"no".to_vec());
        for (n, fate) in (1..).zip([Settled::Acknowledged, Settled::Dropped, refused]) {
            let one = frame(n, 7);
            assert_eq!((seen.receive(now, one), seen.answer(one)), (Sight::New, None));
            assert_eq!((seen.receive(now, one), seen.answer(one)), (Sight::Pending, None));
            seen.settle(now, one, fate.clone());
            // Only the first one counts.
            seen.settle(now, one, Settled::Dropped);
            assert_eq!(seen.receive(now, one), Sight::Settled);
            let answer = match fate {
                Settled::Acknowledged => one.encode(b"").ok(),
                Settled::Dropped => None,
                Settled::Refused(answer) => Some(answer),
            };
            assert_eq!(seen.answer(one), answer);
        }
        assert_eq!(seen.receive(now, frame(1, 8)), Sight::New, "another frame with the same number");
        assert_eq!(seen.receive(now + Seen::AGE_MAX, frame(1, 7)), Sight::New);
        for n in 0..2 * Seen::COUNT_MAX as u64 {
            seen.receive(now, frame(n, 0));
            seen.settle(now, frame(n, 0), Settled::Acknowledged);
        }
        assert!(seen.settled.len() <= Seen::COUNT_MAX && seen.order.len() <= Seen::COUNT_MAX);
    }

    #[test]
    fn case_122_a_number_that_is_used_once_is_never_taken_twice() {
        let now = Instant::now();
        let mut seen = Seen::default();
        let one = |n: u64| Acknowledgement { msg_id: Some((0x4000_0007 << 32) + n), crc: 0, unique: true };
        for n in 1..=100_000 {
            let later = now + Seen::AGE_MAX * u32::try_from(n / 10_000).unwrap();
            assert_eq!(seen.receive(later, one(n)), Sight::New);
            assert_eq!((seen.receive(later, one(n)), seen.answer(one(n))), (Sight::Pending, None));
            let fate = match n % 100 {
                0 => Settled::Dropped,
                1 => Settled::Refused(b"no".to_vec()),
                _ => Settled::Acknowledged,
            };
            seen.settle(later, one(n), fate);
        }
        for n in 100_001 - u64::from(super::super::streams::SPAN)..=100_000 {
            assert_eq!(seen.peek(one(n)), Sight::Settled);
            let answer = seen.answer(one(n));
            match n % 100 {
                0 => assert_eq!(answer, None),
                // The words of a refusal may be forgotten; it never becomes an acknowledgement.
                1 => assert!(answer.is_none_or(|answer| answer == b"no")),
                _ => assert!(answer.unwrap().starts_with(&one(n).encode(b"").unwrap()[..7]), "an ACK"),
            }
        }
        assert_eq!((seen.peek(one(1)), seen.answer(one(1))), (Sight::Settled, None));
        assert!(seen.settled.len() <= Seen::COUNT_MAX);
    }

    #[test]
    fn case_110_a_frame_that_is_not_handled_yet_is_never_forgotten() {
        let now = Instant::now();
        let mut seen = Seen::default();
        assert_eq!(seen.receive(now, frame(1, 7)), Sight::New);
        let later = now + 10 * Seen::AGE_MAX;
        for n in 2..2 * Seen::COUNT_MAX as u64 {
            seen.receive(later, frame(n, 0));
            seen.settle(later, frame(n, 0), Settled::Acknowledged);
        }
        assert_eq!(seen.receive(later, frame(1, 7)), Sight::Pending);
        assert!(!seen.is_settled());
    }
}
