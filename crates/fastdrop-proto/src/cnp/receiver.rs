//! The receiving half of a session: packets in any order, messages in theirs.

use super::config::MessageLimits;
use super::packet::MessageKind;
use super::repeat::Repeat;
use super::seq::Seq;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// What becomes of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// They are new: acknowledged.
    New,
    /// They have been there before: acknowledged again.
    Again,
    /// Something before them is missing, and they are not kept: what is before the gap is
    /// acknowledged again.
    BehindGap,
    /// There is no room: as good as lost, until the application has taken something.
    NoRoom,
    /// They are outside the window, there is no room for what is behind a gap, or nothing more is
    /// taken: as good as lost.
    Dropped,
    /// Their message is longer than it may be.
    TooLarge,
}

#[derive(Debug)]
struct Ahead {
    seq: Seq,
    last: Option<MessageKind>,
    payload: Box<[u8]>,
}

/// A received message: its number in the order of arrival, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReceiveId(pub u64);

/// A message that the application has not handled, or that is behind one that it has not.
#[derive(Debug)]
struct Unhandled {
    /// The last packet of the message, by whose acknowledgement the message is acknowledged.
    last: PacketId,
    /// Bytes that count until the application is done with it.
    bytes: usize,
    handled: bool,
    /// The last packet was acknowledged before it was known to be the last.
    acknowledged: bool,
}

/// A packet, and what its header says of its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PacketId {
    pub(super) seq: Seq,
    pub(super) number: u64,
}

#[derive(Debug)]
pub(super) struct Receiver {
    repeat: &'static dyn Repeat,
    window: u64,
    /// The acknowledgement of a message's last packet says that the message was handled, so that it
    /// has to wait for that; else a packet of its own says so.
    withholds: bool,
    limits: MessageLimits,
    expected: u64,
    /// What is behind a gap.
    ahead: BTreeMap<u64, Ahead>,
    ahead_bytes: usize,
    /// The fragments of the message that is not complete, and the last of these.
    partial: Vec<u8>,
    partial_last: Option<PacketId>,
    messages: VecDeque<(MessageKind, Bytes)>,
    /// All messages from `first_unhandled` on.
    unhandled: VecDeque<Unhandled>,
    first_unhandled: u64,
    /// All packets below this belong to messages that have been handled.
    handled_below: u64,
    /// The application has dropped a message that it had not handled.
    discarded: bool,
    /// Bytes of messages that the application is not done with.
    untaken: usize,
    /// Whether something had to be dropped since there was room last.
    refused: bool,
}

impl Receiver {
    /// What a message counts beside its bytes.
    const OVERHEAD: usize = 64;

    pub(super) fn new(
        repeat: &'static dyn Repeat,
        window: u16,
        withholds: bool,
        limits: MessageLimits,
    ) -> Self {
        Self {
            repeat,
            window: window.into(),
            withholds,
            limits,
            expected: 0,
            ahead: BTreeMap::new(),
            ahead_bytes: 0,
            partial: Vec::new(),
            partial_last: None,
            messages: VecDeque::new(),
            unhandled: VecDeque::new(),
            first_unhandled: 0,
            handled_below: 0,
            discarded: false,
            untaken: 0,
            refused: false,
        }
    }

    /// The number of the next packet.
    pub(super) fn expected(&self) -> u64 {
        self.expected
    }

    /// The 64 numbers before this one, as far as they are acknowledged: bit *i* for the one *i* + 1
    /// before it.
    pub(super) fn before(&self, number: u64) -> u64 {
        let all = if self.withholds { self.acknowledged_below() } else { self.expected };
        if number <= all {
            return u64::MAX;
        }
        let has = |bit: u64| number.checked_sub(bit + 1).is_none_or(|one| self.acknowledges(one));
        (0..64).filter(|bit| has(*bit)).fold(0, |bits, bit| bits | 1 << bit)
    }

    /// All packets below this are acknowledged; the others are not, where one acknowledgement is
    /// for all before it.
    pub(super) fn acknowledged_below(&self) -> u64 {
        let withheld = |message: &&Unhandled| self.withholds && !message.acknowledged;
        // Behind one that was acknowledged before it was handled, only the last can wait for that.
        let mut ends = [self.unhandled.front(), self.unhandled.back()].into_iter().flatten();
        ends.find(withheld).map_or(self.expected, |message| message.last.number)
    }

    /// Returns true if the packet with this number has come and is to be acknowledged: not the last
    /// one of a message that has not been handled, where that would acknowledge the message.
    pub(super) fn acknowledges(&self, number: u64) -> bool {
        if number >= self.expected {
            return self.ahead.get(&number).is_some_and(|ahead| !(self.withholds && ahead.last.is_some()));
        }
        if !self.withholds {
            return true;
        }
        if !self.repeat.keeps_ahead() {
            return number < self.acknowledged_below();
        }
        let found = self.unhandled.binary_search_by_key(&number, |message| message.last.number);
        found.ok().and_then(|index| self.unhandled.get(index)).is_none_or(|message| message.acknowledged)
    }

    /// Returns true if the last packet of a message waits for its acknowledgement.
    pub(super) fn withholds(&self) -> bool {
        self.withholds && self.unhandled.back().is_some_and(|message| !message.acknowledged)
    }

    /// Returns true if a message is under way of which more is to come.
    pub(super) fn is_within(&self) -> bool {
        self.partial_last.is_some()
    }

    /// Takes what came of the message under way for all of it, though nothing has said so.
    pub(super) fn complete(&mut self) {
        if let Some(last) = self.partial_last.take() {
            let message = std::mem::take(&mut self.partial);
            self.hand_on(last, MessageKind::Plain, message.into(), true);
        }
    }

    /// Returns true if a message has not been handled.
    pub(super) fn has_unhandled(&self) -> bool {
        !self.unhandled.is_empty()
    }

    /// The count of packets, from the first one on, that belong to messages that have been handled.
    pub(super) fn handled_below(&self) -> u64 {
        self.handled_below
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
        self.partial_last = None;
    }

    pub(super) fn memory(&self) -> usize {
        self.untaken + self.ahead_bytes + self.partial.len()
    }

    /// The next message, which counts until it is [handled](Self::on_handled) or
    /// [discarded](Self::on_discarded).
    pub(super) fn poll_message(&mut self) -> Option<(MessageKind, Bytes)> {
        self.messages.pop_front()
    }

    /// The application has handled a message. Messages are released in their order, by
    /// [`Self::poll_released`].
    pub(super) fn on_handled(&mut self, id: ReceiveId) {
        self.free(id);
        if let Some(message) = self.unhandled_mut(id) {
            message.handled = true;
        }
    }

    /// The application keeps a message no longer, and has not handled it: nothing behind it will be
    /// acknowledged, and so nothing more is taken.
    pub(super) fn on_discarded(&mut self, id: ReceiveId) {
        self.discarded |= self.unhandled_mut(id).is_some();
        self.free(id);
    }

    fn free(&mut self, id: ReceiveId) {
        if let Some(message) = self.unhandled_mut(id) {
            let bytes = std::mem::take(&mut message.bytes);
            self.untaken = self.untaken.saturating_sub(bytes);
        }
    }

    fn unhandled_mut(&mut self, id: ReceiveId) -> Option<&mut Unhandled> {
        self.unhandled.get_mut(usize::try_from(id.0.checked_sub(self.first_unhandled)?).ok()?)
    }

    /// The last packet of the next message that has been handled, as have all before it, and
    /// whether it is still to be acknowledged.
    pub(super) fn poll_released(&mut self) -> Option<(PacketId, bool)> {
        self.unhandled.front().filter(|message| message.handled)?;
        let message = self.unhandled.pop_front()?;
        self.first_unhandled += 1;
        self.handled_below = message.last.number + 1;
        Some((message.last, !message.acknowledged))
    }

    /// Returns true, once, if there is room again after something was dropped.
    pub(super) fn poll_room(&mut self) -> bool {
        let again = self.refused && self.untaken <= self.limits.receive_max / 2;
        self.refused &= !again;
        again
    }

    /// A packet with this number came, the last one of a message of this kind, or not the last.
    pub(super) fn handle_data(
        &mut self,
        packet: PacketId,
        last: Option<MessageKind>,
        payload: &[u8],
    ) -> Taken {
        let number = packet.number;
        if number < self.expected || self.ahead.contains_key(&number) {
            return Taken::Again;
        }
        if self.discarded || number - self.expected >= self.window {
            return Taken::Dropped;
        }
        if payload.len() > self.limits.message_max {
            return Taken::TooLarge;
        }
        if number > self.expected {
            return self.keep_ahead(packet, last, payload);
        }
        if !self.has_room() {
            self.refused = true;
            return Taken::NoRoom;
        }
        if !self.join(packet.seq, last, payload) {
            return Taken::TooLarge;
        }
        while let Some(next) = self.ahead.remove(&self.expected) {
            self.ahead_bytes -= next.payload.len() + Self::OVERHEAD;
            if !self.join(next.seq, next.last, &next.payload) {
                return Taken::TooLarge;
            }
        }
        Taken::New
    }

    fn keep_ahead(&mut self, packet: PacketId, last: Option<MessageKind>, payload: &[u8]) -> Taken {
        let PacketId { seq, number } = packet;
        if !self.repeat.keeps_ahead() {
            return Taken::BehindGap;
        }
        let bytes = payload.len() + Self::OVERHEAD;
        if self.untaken + self.ahead_bytes + bytes > self.limits.receive_max {
            return Taken::Dropped;
        }
        self.ahead_bytes += bytes;
        self.ahead.insert(number, Ahead { seq, last, payload: payload.into() });
        Taken::New
    }

    /// Adds the next packet to the message that is under way; false if that becomes too long.
    fn join(&mut self, seq: Seq, kind: Option<MessageKind>, payload: &[u8]) -> bool {
        if self.partial.len() + payload.len() > self.limits.message_max {
            return false;
        }
        let last = PacketId { seq, number: self.expected };
        self.expected += 1;
        if let Some(kind) = kind.filter(|_| self.partial.is_empty()) {
            self.partial_last = None;
            self.hand_on(last, kind, Bytes::copy_from_slice(payload), false);
            return true;
        }
        self.partial.extend_from_slice(payload);
        self.partial_last = kind.is_none().then_some(last);
        if let Some(kind) = kind {
            let message = std::mem::take(&mut self.partial);
            self.hand_on(last, kind, message.into(), false);
        }
        true
    }

    fn hand_on(&mut self, last: PacketId, kind: MessageKind, message: Bytes, acknowledged: bool) {
        let bytes = message.len() + Self::OVERHEAD;
        self.untaken += bytes;
        self.unhandled.push_back(Unhandled { last, bytes, handled: false, acknowledged });
        self.messages.push_back((kind, message));
    }
}

#[cfg(test)]
mod tests {
    use super::super::params::Protocol;
    use super::super::repeat;
    use super::*;

    const LAST: Option<MessageKind> = Some(MessageKind::Plain);

    fn receiver(protocol: Protocol, limits: MessageLimits) -> Receiver {
        Receiver::new(repeat::of(Some(protocol)), 100, false, limits)
    }

    fn packet(number: u64) -> PacketId {
        PacketId { seq: Seq::of(number), number }
    }

    fn small() -> MessageLimits {
        MessageLimits { message_max: 10, receive_max: 300, send_max: 1 }
    }

    #[test]
    fn case_72_a_message_that_becomes_longer_than_it_may_be_is_refused() {
        let mut receiver = receiver(Protocol::SelectiveRepeat, small());
        assert_eq!(receiver.handle_data(packet(0), None, b"12345"), Taken::New);
        assert_eq!(receiver.handle_data(packet(1), None, b"12345"), Taken::New);
        assert_eq!(receiver.handle_data(packet(2), LAST, b"6"), Taken::TooLarge);
    }

    #[test]
    fn what_is_behind_a_gap_is_kept_or_not_as_the_protocol_says() {
        let mut repeat = receiver(Protocol::SelectiveRepeat, small());
        assert_eq!(repeat.handle_data(packet(1), LAST, b"b"), Taken::New);
        assert_eq!(repeat.handle_data(packet(1), LAST, b"b"), Taken::Again);
        assert_eq!((repeat.poll_message(), repeat.before(3)), (None, !0b101));
        assert_eq!(repeat.handle_data(packet(0), LAST, b"a"), Taken::New);
        assert_eq!(repeat.poll_message(), Some((MessageKind::Plain, Bytes::from_static(b"a"))));
        assert_eq!(repeat.poll_message(), Some((MessageKind::Plain, Bytes::from_static(b"b"))));
        let mut back = receiver(Protocol::GoBackN, small());
        assert_eq!(back.handle_data(packet(1), LAST, b"b"), Taken::BehindGap);
        assert_eq!(back.handle_data(packet(0), LAST, b"a"), Taken::New);
        assert_eq!((back.expected(), back.memory()), (1, 1 + Receiver::OVERHEAD));
    }

    #[test]
    fn there_is_room_for_so_much_and_again_when_it_was_taken() {
        let mut receiver = receiver(Protocol::SelectiveRepeat, small());
        let mut number = 0;
        while receiver.has_room() {
            assert_eq!(receiver.handle_data(packet(number), LAST, b"x"), Taken::New);
            number += 1;
        }
        assert_eq!(receiver.handle_data(packet(number), LAST, b"x"), Taken::NoRoom);
        assert_eq!(receiver.handle_data(packet(number + 1), LAST, b"x"), Taken::Dropped);
        assert_eq!(receiver.handle_data(packet(number + 100), LAST, b"x"), Taken::Dropped);
        let handle = |id| {
            receiver.on_handled(ReceiveId(id));
            receiver.poll_room()
        };
        let taken = (0..number).map(handle).filter(|room| *room).count();
        assert_eq!(taken, 1, "told once that there is room again");
        assert_eq!(receiver.handle_data(packet(number), LAST, b"x"), Taken::New);
    }
}
