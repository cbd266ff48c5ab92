//! The numbers of peers that begin at 0 with each message (docs/protocol/cnp.md, section 11).

use super::seq::Seq;

/// The place of data among all packets of their direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// This one.
    At(u64),
    /// This one, as the first of a message; what came before is whole.
    Begins(u64),
    /// None that is known: they are as good as lost.
    Nowhere,
    /// In a message that was taken for whole.
    TooLate,
}

/// The end of the message that came last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// More of it may come.
    Open,
    /// Its last fragment has said so, or a new message has begun.
    Said,
    /// Nothing more came for a while.
    Silence,
}

/// Numbers that begin again with each message.
#[derive(Debug)]
pub(super) struct PerMessage {
    /// The last fragment of a message is marked: the fourth generation. It may leave out packets on
    /// purpose, to try itself.
    marked: bool,
    /// Place and number of the first fragment of the message that came last.
    begun: Option<(u64, Seq)>,
    /// The number that was taken last.
    last: Seq,
    end: End,
}

impl PerMessage {
    pub(super) fn new(marked: bool) -> Self {
        Self { marked, begun: None, last: Seq(0), end: End::Said }
    }

    /// The place of data with this number, where `expected` is that of the next packet. `settled`:
    /// everything that came has been acknowledged, so that its sender goes on.
    pub(super) fn of_data(&self, seq: Seq, expected: u64, settled: bool) -> Place {
        let Some((base, first)) = self.begun else {
            // The beginning of the first message was lost.
            let is_lost = self.marked && seq != Seq(0);
            return if is_lost { Place::Nowhere } else { Place::Begins(expected) };
        };
        let back = Seq(seq.0.wrapping_sub(first.0));
        let within = back.nearest(expected - base).map(|index| base + index);
        let follows = !self.marked && seq == Seq(self.last.0.wrapping_add(1));
        match (self.end, settled) {
            (End::Open, true) if !self.marked && seq == Seq(0) && expected > base => Place::Begins(expected),
            (End::Open, _) => within.map_or(Place::Nowhere, Place::At),
            (End::Said | End::Silence, true) if seq == Seq(0) => Place::Begins(expected),
            // A sender that does not begin again.
            (End::Said, _) if follows => Place::Begins(expected),
            (End::Silence, _) if follows => Place::TooLate,
            // Of the message before only the fourth generation cannot be told from a next one
            // whose beginning was lost; nothing is acknowledged that could be of that.
            (_, true) if self.marked => Place::Nowhere,
            _ => within.filter(|number| *number < expected).map_or(Place::Nowhere, Place::At),
        }
    }

    /// Data were taken: with this number, as the first of their message or not, and with all that
    /// came of it complete or not.
    pub(super) fn on_taken(&mut self, seq: Seq, begins: Option<u64>, complete: bool) {
        if let Some(number) = begins {
            self.begun = Some((number, seq));
        }
        self.last = seq;
        self.end = if complete { End::Said } else { End::Open };
    }

    /// The message is whole, as nothing more of it came.
    pub(super) fn on_silence(&mut self) {
        self.end = End::Silence;
    }

    /// The place of the first fragment of the message that came last.
    pub(super) fn base(&self) -> u64 {
        self.begun.map_or(0, |(base, _)| base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The places of numbers, each of which comes with a mark if its packet ends a message.
    fn take(marked: bool, packets: &[(u16, bool)]) -> Vec<Place> {
        let mut numbers = PerMessage::new(marked);
        let mut expected = 0;
        let mut places = Vec::new();
        for &(seq, is_last) in packets {
            let place = numbers.of_data(Seq(seq), expected, true);
            let begins = if let Place::Begins(number) = place { Some(number) } else { None };
            if matches!(place, Place::Begins(number) | Place::At(number) if number == expected) {
                expected += 1;
                numbers.on_taken(Seq(seq), begins, is_last);
            }
            places.push(place);
        }
        places
    }

    #[test]
    fn a_zero_after_a_message_that_is_acknowledged_begins_the_next() {
        use Place::{At, Begins, Nowhere};
        let packets = [(0, false), (1, true), (0, true), (0, false), (1, false), (2, true)];
        let expected = [Begins(0), At(1), Begins(2), Begins(3), At(4), At(5)];
        assert_eq!(take(false, &packets), expected);
        assert_eq!(take(true, &packets), expected);
        // Nothing marks the end of a message whose last fragment is full.
        let packets = [(0, false), (1, false), (0, false)];
        assert_eq!(take(false, &packets), [Begins(0), At(1), Begins(2)]);
        assert_eq!(take(true, &packets), [Begins(0), At(1), At(0)]);
        // The beginning of the second message is lost at first, and then that of the first one.
        let packets = [(0, true), (1, true), (0, false), (1, true)];
        assert_eq!(take(true, &packets), [Begins(0), Nowhere, Begins(1), At(2)]);
        assert_eq!(take(true, &[(1, true), (0, false), (1, true)]), [Nowhere, Begins(0), At(1)]);
        // One of the third that goes on counting.
        assert_eq!(take(false, &[(0, true), (1, true), (2, true)]), [Begins(0), Begins(1), Begins(2)]);
        // And one that repeats what came last.
        assert_eq!(take(false, &[(0, false), (1, true), (1, true)]), [Begins(0), At(1), At(1)]);
    }

    #[test]
    fn what_comes_again_before_it_is_acknowledged_is_no_new_message() {
        for marked in [false, true] {
            let mut numbers = PerMessage::new(marked);
            numbers.on_taken(Seq(0), Some(0), false);
            numbers.on_taken(Seq(1), None, true);
            assert_eq!(numbers.of_data(Seq(0), 2, false), Place::At(0));
            assert_eq!(numbers.of_data(Seq(1), 2, false), Place::At(1));
            assert_eq!(numbers.of_data(Seq(0), 2, true), Place::Begins(2));
        }
    }

    #[test]
    fn a_message_that_goes_on_after_it_was_taken_for_whole_is_told_of() {
        let mut numbers = PerMessage::new(false);
        numbers.on_taken(Seq(0), Some(0), false);
        numbers.on_silence();
        assert_eq!(numbers.of_data(Seq(1), 1, true), Place::TooLate);
        assert_eq!(numbers.of_data(Seq(0), 1, true), Place::Begins(1));
    }
}
