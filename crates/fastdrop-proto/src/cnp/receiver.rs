//! The receiving half of a session: packets in any order, messages in theirs.

use super::config::MessageLimits;
use super::repeat::Repeat;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// What becomes of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// They are new: acknowledged.
    New,
    /// They have been there before: acknowledged again.
    Again,
    /// Something before them is missing, and they are not kept: what is before the gap is acknowledged again.
    BehindGap,
    /// There is no room: as good as lost, until the application has taken something.
    NoRoom,
    /// They are outside the window, or there is no room for what is behind a gap: as good as lost.
    Dropped,
    /// Their message is longer than it may be.
    TooLarge,
}

#[derive(Debug)]
struct Ahead {
    is_last: bool,
    payload: Box<[u8]>,
}

#[derive(Debug)]
pub(super) struct Receiver {
    repeat: &'static dyn Repeat,
    window: u64,
    limits: MessageLimits,
    expected: u64,
    /// What is behind a gap.
    ahead: BTreeMap<u64, Ahead>,
    ahead_bytes: usize,
    /// The fragments of the message that is not complete.
    partial: Vec<u8>,
    messages: VecDeque<Bytes>,
    /// Bytes of messages that the application has not taken.
    untaken: usize,
    /// Whether something had to be dropped since there was room last.
    refused: bool,
}

impl Receiver {
    /// What a message counts beside its bytes.
    const OVERHEAD: usize = 64;

    pub(super) fn new(repeat: &'static dyn Repeat, window: u16, limits: MessageLimits) -> Self {
        Self {
            repeat,
            window: window.into(),
            limits,
            expected: 0,
            ahead: BTreeMap::new(),
            ahead_bytes: 0,
            partial: Vec::new(),
            messages: VecDeque::new(),
            untaken: 0,
            refused: false,
        }
    }

    /// The number of the next packet.
    pub(super) fn expected(&self) -> u64 {
        self.expected
    }

    /// Which of the 64 numbers before this one have come: bit *i* for the one *i* + 1 before it.
    pub(super) fn before(&self, number: u64) -> u64 {
        if number <= self.expected {
            return u64::MAX;
        }
        let has = |bit: u64| {
            let one = number.checked_sub(bit + 1);
            one.is_none_or(|one| one < self.expected || self.ahead.contains_key(&one))
        };
        (0..64).filter(|bit| has(*bit)).fold(0, |bits, bit| bits | 1 << bit)
    }

    /// Whether data that come now would be taken.
    pub(super) fn has_room(&self) -> bool {
        self.untaken < self.limits.receive_max
    }

    /// Nothing more will come.
    pub(super) fn end(&mut self) {
        self.ahead.clear();
        self.ahead_bytes = 0;
        self.partial = Vec::new();
    }

    pub(super) fn memory(&self) -> usize {
        self.untaken + self.ahead_bytes + self.partial.len()
    }

    /// The next message, which counts until it is [taken](Self::on_taken).
    pub(super) fn poll_message(&mut self) -> Option<Bytes> {
        self.messages.pop_front()
    }

    /// The application has taken a message of so many bytes; true if there is room again after something was dropped.
    pub(super) fn on_taken(&mut self, len: usize) -> bool {
        self.untaken = self.untaken.saturating_sub(len + Self::OVERHEAD);
        let again = self.refused && self.untaken <= self.limits.receive_max / 2;
        self.refused &= !again;
        again
    }

    /// A packet with this number came.
    pub(super) fn handle_data(&mut self, number: u64, is_last: bool, payload: &[u8]) -> Taken {
        if number < self.expected || self.ahead.contains_key(&number) {
            return Taken::Again;
        }
        if number - self.expected >= self.window {
            return Taken::Dropped;
        }
        if payload.len() > self.limits.message_max {
            return Taken::TooLarge;
        }
        if number > self.expected {
            return self.keep_ahead(number, is_last, payload);
        }
        if !self.has_room() {
            self.refused = true;
            return Taken::NoRoom;
        }
        if !self.join(is_last, payload) {
            return Taken::TooLarge;
        }
        while let Some(next) = self.ahead.remove(&self.expected) {
            self.ahead_bytes -= next.payload.len() + Self::OVERHEAD;
            if !self.join(next.is_last, &next.payload) {
                return Taken::TooLarge;
            }
        }
        Taken::New
    }

    fn keep_ahead(&mut self, number: u64, is_last: bool, payload: &[u8]) -> Taken {
        if !self.repeat.keeps_ahead() {
            return Taken::BehindGap;
        }
        let bytes = payload.len() + Self::OVERHEAD;
        if self.untaken + self.ahead_bytes + bytes > self.limits.receive_max {
            return Taken::Dropped;
        }
        self.ahead_bytes += bytes;
        self.ahead.insert(number, Ahead { is_last, payload: payload.into() });
        Taken::New
    }

    /// Adds the next packet to the message that is under way; false if that becomes too long.
    fn join(&mut self, is_last: bool, payload: &[u8]) -> bool {
        if self.partial.len() + payload.len() > self.limits.message_max {
            return false;
        }
        self.expected += 1;
        if is_last && self.partial.is_empty() {
            self.hand_on(Bytes::copy_from_slice(payload));
            return true;
        }
        self.partial.extend_from_slice(payload);
        if is_last {
            let message = std::mem::take(&mut self.partial);
            self.hand_on(message.into());
        }
        true
    }

    fn hand_on(&mut self, message: Bytes) {
        self.untaken += message.len() + Self::OVERHEAD;
        self.messages.push_back(message);
    }
}

#[cfg(test)]
mod tests {
    use super::super::handshake::Protocol;
    use super::super::repeat;
    use super::*;

    fn receiver(protocol: Protocol, limits: MessageLimits) -> Receiver {
        Receiver::new(repeat::of(Some(protocol)), 100, limits)
    }

    fn small() -> MessageLimits {
        MessageLimits { message_max: 10, receive_max: 300, send_max: 1 }
    }

    #[test]
    fn case_72_a_message_that_becomes_longer_than_it_may_be_is_refused() {
        let mut receiver = receiver(Protocol::SelectiveRepeat, small());
        assert_eq!(receiver.handle_data(0, false, b"12345"), Taken::New);
        assert_eq!(receiver.handle_data(1, false, b"12345"), Taken::New);
        assert_eq!(receiver.handle_data(2, true, b"6"), Taken::TooLarge);
    }

    #[test]
    fn what_is_behind_a_gap_is_kept_or_not_as_the_protocol_says() {
        let mut repeat = receiver(Protocol::SelectiveRepeat, small());
        assert_eq!(repeat.handle_data(1, true, b"b"), Taken::New);
        assert_eq!(repeat.handle_data(1, true, b"b"), Taken::Again);
        assert_eq!((repeat.poll_message(), repeat.before(3)), (None, !0b101));
        assert_eq!(repeat.handle_data(0, true, b"a"), Taken::New);
        assert_eq!(repeat.poll_message().as_deref(), Some(&b"a"[..]));
        assert_eq!(repeat.poll_message().as_deref(), Some(&b"b"[..]));
        let mut back = receiver(Protocol::GoBackN, small());
        assert_eq!(back.handle_data(1, true, b"b"), Taken::BehindGap);
        assert_eq!(back.handle_data(0, true, b"a"), Taken::New);
        assert_eq!((back.expected(), back.memory()), (1, 1 + Receiver::OVERHEAD));
    }

    #[test]
    fn there_is_room_for_so_much_and_again_when_it_was_taken() {
        let mut receiver = receiver(Protocol::SelectiveRepeat, small());
        let mut number = 0;
        while receiver.has_room() {
            assert_eq!(receiver.handle_data(number, true, b"x"), Taken::New);
            number += 1;
        }
        assert_eq!(receiver.handle_data(number, true, b"x"), Taken::NoRoom);
        assert_eq!(receiver.handle_data(number + 1, true, b"x"), Taken::Dropped);
        assert_eq!(receiver.handle_data(number + 100, true, b"x"), Taken::Dropped);
        let taken = (0..number).filter(|_| receiver.on_taken(1)).count();
        assert_eq!(taken, 1, "told once that there is room again");
        assert_eq!(receiver.handle_data(number, true, b"x"), Taken::New);
    }
}
