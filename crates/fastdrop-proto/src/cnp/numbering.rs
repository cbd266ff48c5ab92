//! The packet that a sequence number means, also from peers that number otherwise
//! (docs/protocol/cnp.md, section 4).

use super::generation::Generation;
use super::params::Mode;
use super::per_message::{PerMessage, Place};
use super::seq::Seq;

/// Facts about data beside their number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context {
    /// The place of the next packet.
    pub(super) expected: u64,
    /// They are the same bytes as the last ones, whose acknowledgement has not left yet.
    pub(super) again: bool,
    /// Everything that came has been acknowledged.
    pub(super) settled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// As the specification says.
    Strict,
    /// A peer of the field that sends one message at a time.
    StepByStep,
    /// A peer of the field that sends several.
    Burst,
    /// One that begins at 0 with each message.
    PerMessage,
}

/// The numbers of one peer.
#[derive(Debug)]
pub(super) struct Numbering {
    rule: Rule,
    /// The first and the last number of data that were taken.
    taken: Option<(Seq, Seq)>,
    per_message: PerMessage,
    /// Whether all data that were taken had the number 0.
    constant: bool,
    acks: Acks,
    /// Acknowledgements that are still to come for repetitions of what is acknowledged already,
    /// from a peer that does not say for which.
    surplus: u32,
}

/// What a peer's acknowledgements say, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Acks {
    /// All had the number 0.
    Zero,
    /// The number of what they are for.
    Exact,
    /// Anything.
    Any,
}

impl Numbering {
    pub(super) fn new(strict: bool, mode: Mode, generation: Generation) -> Self {
        let rule = match mode {
            _ if strict => Rule::Strict,
            _ if generation.cuts_characters() => Rule::PerMessage,
            Mode::StepByStep => Rule::StepByStep,
            Mode::Burst => Rule::Burst,
        };
        let per_message = PerMessage::new(generation == Generation::Fourth);
        // Its acknowledgements have the numbers of what they are for.
        let acks = if generation == Generation::Fourth { Acks::Exact } else { Acks::Zero };
        Self { rule, taken: None, per_message, constant: true, acks, surplus: 0 }
    }

    /// The place of data that came.
    pub(super) fn of_data(&self, seq: Seq, context: Context) -> Place {
        let Context { expected, again, settled } = context;
        if self.rule == Rule::PerMessage {
            return self.per_message.of_data(seq, expected, settled);
        }
        let zero_again = self.constant && seq == Seq(0);
        let number = match (self.rule, self.taken) {
            (Rule::Strict | Rule::PerMessage, _) => seq.nearest(expected),
            (_, None) => Some(expected),
            (Rule::StepByStep, Some((_, last))) => {
                let is_new = seq != last || (zero_again && !again);
                if is_new { Some(expected) } else { expected.checked_sub(1) }
            }
            (Rule::Burst, Some(_)) if zero_again => Some(expected),
            (Rule::Burst, Some((first, _))) => Seq(seq.0.wrapping_sub(first.0)).nearest(expected),
        };
        number.map_or(Place::Nowhere, Place::At)
    }

    /// Data with this number were taken: as the first of a message, at that place, or not.
    /// `complete`: all of that message is there.
    pub(super) fn on_taken(&mut self, seq: Seq, begins: Option<u64>, complete: bool) {
        let (first, _) = self.taken.unwrap_or((seq, seq));
        self.taken = Some((first, seq));
        self.constant &= seq == Seq(0);
        self.per_message.on_taken(seq, begins, complete);
    }

    /// The last message is whole, as nothing more of it came.
    pub(super) fn on_silence(&mut self) {
        self.per_message.on_silence();
    }

    /// The place of the packet that can be acknowledged by one before the next message: packets
    /// before it have numbers of another message.
    pub(super) fn base(&self) -> u64 {
        if self.rule == Rule::PerMessage { self.per_message.base() } else { 0 }
    }

    /// The packet that an acknowledgement is for, where `base` is the oldest number that waits for
    /// one, which left with the number `oldest`, and `waits` says whether another does.
    pub(super) fn of_ack(
        &mut self,
        seq: Seq,
        base: u64,
        oldest: Seq,
        waits: impl Fn(u64) -> bool,
    ) -> Option<u64> {
        let number = match self.rule {
            // One at a time is under way.
            Rule::PerMessage => (seq == oldest).then_some(base),
            _ => seq.nearest(base),
        };
        if self.rule == Rule::Strict {
            return number;
        }
        if self.acks == Acks::Zero && seq != Seq(0) {
            let exact = self.rule == Rule::Burst || number == Some(base);
            self.acks = if exact { Acks::Exact } else { Acks::Any };
        }
        if self.acks == Acks::Exact || (self.rule == Rule::Burst && number.is_some_and(waits)) {
            return number;
        }
        if self.surplus > 0 {
            self.surplus -= 1;
            return None;
        }
        Some(base)
    }

    /// Records how often a packet that is acknowledged was sent: each repetition may have an
    /// acknowledgement of its own.
    pub(super) fn on_acknowledged(&mut self, sends: u32) {
        self.surplus = self.surplus.saturating_add(sends.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of numbers that come: for each, whether it was a new message.
    fn take(mode: Mode, seqs: &[(u16, bool)]) -> Vec<bool> {
        let mut numbering = Numbering::new(false, mode, Generation::First);
        let mut expected = 0;
        let mut news = Vec::new();
        for &(seq, again) in seqs {
            let context = Context { expected, again, settled: true };
            let is_new = numbering.of_data(Seq(seq), context) == Place::At(expected);
            if is_new {
                expected += 1;
                numbering.on_taken(Seq(seq), None, true);
            }
            news.push(is_new);
        }
        news
    }

    fn of_ack(numbering: &mut Numbering, seq: u16, base: u64, waits: impl Fn(u64) -> bool) -> Option<u64> {
        numbering.of_ack(Seq(seq), base, Seq::of(base), waits)
    }

    #[test]
    fn a_peer_that_always_says_0_is_understood() {
        assert_eq!(
            take(Mode::StepByStep, &[(0, false), (0, false), (0, true), (0, false)]),
            [true, true, false, true]
        );
        assert_eq!(take(Mode::Burst, &[(0, false), (0, true), (0, false)]), [true, true, true]);
    }

    #[test]
    fn a_peer_that_counts_from_anywhere_is_understood() {
        for mode in [Mode::StepByStep, Mode::Burst] {
            for first in [0, 1, 7, 65_535] {
                let seqs = [0, 1, 2, 2, 3].map(|step| (u16::wrapping_add(first, step), false));
                assert_eq!(take(mode, &seqs), [true, true, true, false, true]);
            }
        }
        // One bit that alternates.
        let bits = [(0, false), (1, false), (1, false), (0, false)];
        assert_eq!(take(Mode::StepByStep, &bits), [true, true, false, true]);
    }

    #[test]
    fn acknowledgements_that_always_say_0_are_for_the_oldest() {
        let mut numbering = Numbering::new(false, Mode::Burst, Generation::First);
        for base in 0..3 {
            assert_eq!(of_ack(&mut numbering, 0, base, |number| (base..4).contains(&number)), Some(base));
        }
        assert_eq!(of_ack(&mut numbering, 3, 3, |_| true), Some(3));
        assert_eq!(of_ack(&mut numbering, 0, 4, |_| false), Some(0));
        let mut numbering = Numbering::new(false, Mode::StepByStep, Generation::First);
        assert_eq!(of_ack(&mut numbering, 77, 5, |_| true), Some(5));
    }

    #[test]
    fn the_second_acknowledgement_of_a_repeated_message_is_not_for_the_next_one() {
        // A peer that counts says which it means.
        let mut numbering = Numbering::new(false, Mode::StepByStep, Generation::First);
        assert_eq!(of_ack(&mut numbering, 5, 5, |_| true), Some(5));
        assert_eq!(of_ack(&mut numbering, 5, 6, |_| true), Some(5));
        // One that does not has as many to send as it got copies.
        let mut numbering = Numbering::new(false, Mode::StepByStep, Generation::First);
        assert_eq!(of_ack(&mut numbering, 0, 1, |_| true), Some(1));
        numbering.on_acknowledged(2);
        assert_eq!(of_ack(&mut numbering, 0, 2, |_| true), None);
        assert_eq!(of_ack(&mut numbering, 0, 2, |_| true), Some(2));
    }
}
