//! The sending half of a session: a window of packets, when they are lost, and when they leave
//! again.

use super::cut::Cut;
use super::header::HEAD_BYTES;
use super::packet::MessageKind;
use super::repeat::Repeat;
use crate::congestion::{Flow, Leave, Stamp};
use crate::rtt::Rtt;
use bytes::Bytes;
use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// Which message of a session, in the order in which they were given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SendId(pub u64);

/// A message that the peer would not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message of {len} bytes, where the peer takes {max}")]
pub struct TooLarge {
    /// Its length.
    pub len: usize,
    /// The longest that the peer takes.
    pub max: usize,
}

/// A packet that leaves.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) number: u64,
    /// Its place in its message.
    pub(super) index: u64,
    /// The kind of the message whose last packet it is.
    pub(super) last: Option<MessageKind>,
    /// The number of times that it was sent before.
    pub(super) before: u32,
    pub(super) payload: Bytes,
}

/// Too many timeouts in a row.
#[derive(Debug)]
pub(super) struct Gone;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SlotState {
    OnItsWay,
    Lost,
    Acknowledged,
}

#[derive(Debug)]
struct Slot {
    payload: Bytes,
    last: Option<MessageKind>,
    message: u64,
    index: u64,
    state: SlotState,
    /// Whether the flow counts it.
    in_flight: bool,
    stamp: Stamp,
    first_sent_at: Instant,
    /// Its place among everything that was sent.
    order: u64,
    sends: u32,
    /// So many of these the peer has refused as damaged.
    refused: u32,
}

impl Slot {
    fn bytes(&self) -> u64 {
        (HEAD_BYTES + self.payload.len()) as u64
    }
}

#[derive(Debug)]
struct Message {
    kind: MessageKind,
    len: usize,
    /// Packets of it that have not been acknowledged.
    packets: usize,
    /// The number of its last packet, once that is in the window.
    last: Option<u64>,
}

/// A question that is due at `at`: what has the peer handled?
#[derive(Debug, Clone, Copy)]
struct Question {
    at: Instant,
    interval: Duration,
}

#[derive(Debug)]
pub(super) struct Sender {
    repeat: &'static dyn Repeat,
    window: usize,
    cut: Cut,
    timeouts_max: u32,
    /// The peer's way to say that a message is handled.
    handling: Handling,
    flow: Flow,
    /// What of messages is not in the window yet.
    waiting: VecDeque<(u64, Bytes)>,
    /// Pieces of the first of these that are.
    cut_before: u64,
    /// All messages that are not acknowledged, from `first_message` on.
    messages: VecDeque<Message>,
    first_message: u64,
    message_bytes: usize,
    acknowledged: VecDeque<SendId>,
    /// What was sent, from `base` on, the oldest that is not acknowledged.
    slots: VecDeque<Slot>,
    base: u64,
    lost: BTreeSet<u64>,
    /// Packets that were sent, in that order: places and numbers. Those that have been acknowledged
    /// or sent again since are passed over.
    sent: VecDeque<(u64, u64)>,
    orders: u64,
    newest_acknowledged: Option<u64>,
    /// The number of times that the peer has said that something behind a gap came, since a round
    /// trip after the oldest was sent.
    gaps: u32,
    /// No packet behind the gap and before this number is on its way.
    behind_gap: u64,
    /// Says whether one packet may leave whatever the controller says, to find out whether anything
    /// gets through.
    probes: bool,
    timeouts: u32,
    timed_out_at: Option<Instant>,
    paced_until: Option<Instant>,
    /// Since when something has been waiting for the peer.
    waiting_since: Option<Instant>,
    /// Everything that was sent has been received, and something of it has not been handled.
    question: Option<Question>,
    retransmissions: u64,
    bytes_acknowledged: u64,
}

/// A peer's way to say that a message is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handling {
    /// By acknowledging all of its packets.
    Acknowledged,
    /// By a packet of its own; several messages may be under way.
    Told,
    /// By a packet of its own, before which no other message is sent.
    ToldOneByOne,
}

impl Sender {
    pub(super) fn new(
        repeat: &'static dyn Repeat,
        window: u16,
        cut: Cut,
        timeouts_max: u32,
        handling: Handling,
        flow: Flow,
    ) -> Self {
        Self {
            repeat,
            window: window.into(),
            cut,
            timeouts_max,
            handling,
            flow,
            waiting: VecDeque::new(),
            cut_before: 0,
            messages: VecDeque::new(),
            first_message: 0,
            message_bytes: 0,
            acknowledged: VecDeque::new(),
            slots: VecDeque::new(),
            base: 0,
            lost: BTreeSet::new(),
            sent: VecDeque::new(),
            orders: 0,
            newest_acknowledged: None,
            gaps: 0,
            behind_gap: 0,
            probes: false,
            timeouts: 0,
            timed_out_at: None,
            paced_until: None,
            waiting_since: None,
            question: None,
            retransmissions: 0,
            bytes_acknowledged: 0,
        }
    }

    pub(super) fn flow(&self) -> &Flow {
        &self.flow
    }

    pub(super) fn retransmissions(&self) -> u64 {
        self.retransmissions
    }

    /// Bytes of all messages that are acknowledged, and have none before them that is not.
    pub(super) fn bytes_acknowledged(&self) -> u64 {
        self.bytes_acknowledged
    }

    /// The oldest number that is not acknowledged; the next one if there is none.
    pub(super) fn base(&self) -> u64 {
        self.base
    }

    /// The place in its message of the oldest packet that is not acknowledged; 0 if there is none.
    pub(super) fn base_index(&self) -> u64 {
        self.slots.front().map_or(0, |slot| slot.index)
    }

    /// So many packets may be under way from now on.
    pub(super) fn set_window(&mut self, window: u16) {
        self.window = window.into();
    }

    /// The number of the next new packet.
    pub(super) fn next(&self) -> u64 {
        self.base + self.slots.len() as u64
    }

    /// Whether this number waits for an acknowledgement.
    pub(super) fn waits_for(&self, number: u64) -> bool {
        self.slot(number).is_some_and(|slot| slot.state != SlotState::Acknowledged)
    }

    /// The times that the packet with this number was sent and not refused; 0 if it does not wait
    /// any more.
    pub(super) fn sends(&self, number: u64) -> u32 {
        let waits = self.slot(number).filter(|slot| slot.state != SlotState::Acknowledged);
        waits.map_or(0, |slot| slot.sends - slot.refused)
    }

    /// When the oldest packet that is not acknowledged was sent for the first time.
    pub(super) fn first_sent_at(&self) -> Option<Instant> {
        self.slots.front().map(|slot| slot.first_sent_at)
    }

    /// Returns true if a packet is on its way and has no acknowledgement.
    pub(super) fn is_under_way(&self) -> bool {
        self.slots.iter().any(|slot| slot.state == SlotState::OnItsWay)
    }

    /// Nothing more will be sent or acknowledged.
    pub(super) fn end(&mut self) {
        self.waiting = VecDeque::new();
        self.messages = VecDeque::new();
        self.message_bytes = 0;
        self.base = self.next();
        self.slots = VecDeque::new();
        self.lost = BTreeSet::new();
        self.sent = VecDeque::new();
        self.waiting_since = None;
        self.question = None;
    }

    /// Whether everything that was given is acknowledged.
    pub(super) fn is_idle(&self) -> bool {
        self.messages.is_empty()
    }

    /// Since when something has been waiting for the peer.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        self.waiting_since
    }

    /// Bytes of messages that are not acknowledged, each with what it needs itself.
    pub(super) fn memory(&self) -> usize {
        self.message_bytes
    }

    /// So many packets behind a gap say that what is missing is lost, on a path that has not been
    /// seen to reorder (RFC 5681, 3.2).
    const GAPS: u32 = 3;
    /// What a message counts beside its bytes.
    const OVERHEAD: usize = 64;
    /// The longest time between two questions.
    const QUESTIONS: Duration = Duration::from_secs(5);

    /// Takes a message, to be sent when the window allows.
    pub(super) fn send(&mut self, now: Instant, kind: MessageKind, message: Bytes) -> SendId {
        let id = self.first_message + self.messages.len() as u64;
        let packets = self.cut.pieces(&message);
        self.message_bytes += message.len() + Self::OVERHEAD;
        self.messages.push_back(Message { kind, len: message.len(), packets, last: None });
        self.waiting.push_back((id, message));
        self.waiting_since.get_or_insert(now);
        SendId(id)
    }

    /// The next message that has been acknowledged.
    pub(super) fn poll_acknowledged(&mut self) -> Option<SendId> {
        self.acknowledged.pop_front()
    }

    /// The next packet to leave, if one may, and fits into `room` bytes.
    pub(super) fn poll_packet(&mut self, now: Instant, room: usize) -> Option<Outgoing> {
        self.paced_until = None;
        let again = self.lost.first().copied();
        let is_new = again.is_none() && self.slots.len() < self.window && !self.waits_for_handling();
        let payload_len = match again {
            Some(number) => self.slot(number).map(|slot| slot.payload.len()),
            None if is_new => self.waiting.front().map(|(_, rest)| self.cut.piece(rest)),
            None => None,
        };
        let Some(payload_len) = payload_len else {
            // The path would have carried more.
            self.flow.on_idle();
            return None;
        };
        if HEAD_BYTES + payload_len > room {
            return None;
        }
        if !self.probes {
            match self.flow.poll_leave(now) {
                Leave::Now(_) => {}
                Leave::Full => return None,
                Leave::At(at) => {
                    self.paced_until = Some(at);
                    return None;
                }
            }
        }
        self.probes = false;
        let number = match again {
            Some(number) => {
                self.lost.remove(&number);
                number
            }
            None => self.cut_next(now)?,
        };
        self.transmit(now, number)
    }

    /// Returns true if a message has to be handled before the next one may leave.
    fn waits_for_handling(&self) -> bool {
        self.handling == Handling::ToldOneByOne
            && self.waiting.front().is_some_and(|(message, _)| *message != self.first_message)
    }

    /// Puts the next piece of what waits into the window.
    fn cut_next(&mut self, now: Instant) -> Option<u64> {
        let (message, rest) = self.waiting.front_mut()?;
        let (message, payload) = (*message, rest.split_to(self.cut.piece(rest)));
        let (is_last, index) = (rest.is_empty(), self.cut_before);
        self.cut_before += 1;
        if is_last {
            self.waiting.pop_front();
            self.cut_before = 0;
        }
        let number = self.next();
        let mut last = is_last.then_some(MessageKind::Plain);
        if is_last
            && let Ok(index) = usize::try_from(message - self.first_message)
            && let Some(message) = self.messages.get_mut(index)
        {
            message.last = Some(number);
            last = Some(message.kind);
        }
        let bytes = (HEAD_BYTES + payload.len()) as u64;
        let stamp = self.flow.on_sent(now, bytes);
        let (state, in_flight, order, sends) = (SlotState::OnItsWay, true, 0, 0);
        self.slots.push_back(Slot {
            payload,
            last,
            message,
            index,
            state,
            in_flight,
            stamp,
            first_sent_at: now,
            order,
            sends,
            refused: 0,
        });
        Some(number)
    }

    fn transmit(&mut self, now: Instant, number: u64) -> Option<Outgoing> {
        let index = usize::try_from(number.checked_sub(self.base)?).ok()?;
        let slot = self.slots.get_mut(index)?;
        if slot.sends > 0 {
            slot.stamp = self.flow.on_sent(now, slot.bytes());
            self.retransmissions += 1;
        }
        self.orders += 1;
        slot.state = SlotState::OnItsWay;
        slot.in_flight = true;
        self.behind_gap = self.behind_gap.min(number);
        slot.order = self.orders;
        slot.sends += 1;
        self.sent.push_back((self.orders, number));
        let (index, last, before) = (slot.index, slot.last, slot.sends - 1);
        Some(Outgoing { number, index, last, before, payload: slot.payload.clone() })
    }

    fn slot(&self, number: u64) -> Option<&Slot> {
        self.slots.get(usize::try_from(number.checked_sub(self.base)?).ok()?)
    }

    fn slot_mut(&mut self, number: u64) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(number.checked_sub(self.base)?).ok()?)
    }

    /// An acknowledgement for this number came; bit *i* of `before` says that the one *i* + 1
    /// before it has come as well. Of what was never sent, or is acknowledged already, nothing is
    /// learned (case 74).
    pub(super) fn on_ack(&mut self, now: Instant, number: u64, before: u64) {
        if number >= self.next() || (number < self.base && before == 0) {
            return;
        }
        // What is before the window is known already.
        let unknown = number.saturating_sub(self.base).min(64);
        let too =
            (0..unknown).filter(|bit| before & (1 << bit) != 0).filter_map(|bit| number.checked_sub(bit + 1));
        let of_repeat = self.repeat.acknowledged(self.base, number);
        self.on_received(now, of_repeat.chain(too), Some(number));
    }

    /// The peer has handled all messages whose packets have numbers below `count`. Of what was
    /// never sent nothing is learned.
    pub(super) fn on_handled(&mut self, now: Instant, count: u64) {
        if count > self.next() || self.handling == Handling::Acknowledged {
            return;
        }
        // Handled is received, if that was lost.
        self.on_received(now, self.base..count, None);
        let before = self.first_message;
        while self.messages.front().is_some_and(|message| message.last.is_some_and(|last| last < count)) {
            self.acknowledged.push_back(SendId(self.first_message));
            self.forget_first();
        }
        if self.first_message != before {
            self.waiting_since = if self.messages.is_empty() { None } else { Some(now) };
            self.question = None;
            self.plan_question(now);
        }
    }

    /// Plans to ask what is handled, if nothing else is under way that would be answered.
    fn plan_question(&mut self, now: Instant) {
        let received =
            self.slots.is_empty() && self.messages.front().is_some_and(|first| first.last.is_some());
        if self.handling == Handling::Acknowledged || !received {
            self.question = None;
        } else if self.question.is_none() {
            let interval = self.flow.rtt.timeout();
            self.question = Some(Question { at: now + interval, interval });
        }
    }

    /// Returns true if it is time to ask the peer what it has handled; the next time is later.
    pub(super) fn poll_question(&mut self, now: Instant) -> bool {
        let Some(question) = self.question.as_mut().filter(|question| question.at <= now) else {
            return false;
        };
        question.interval = (question.interval * 2).min(Self::QUESTIONS);
        question.at = now + question.interval;
        true
    }

    /// The packets with these numbers have been received. `acknowledged` is the one of which the
    /// peer said so.
    fn on_received(&mut self, now: Instant, numbers: impl Iterator<Item = u64>, acknowledged: Option<u64>) {
        let mut bytes = 0;
        let mut newest: Option<(u64, Stamp)> = None;
        let mut rtt = None;
        let mut found = false;
        for one in numbers {
            let Some(slot) = self.slot_mut(one) else { continue };
            let before = std::mem::replace(&mut slot.state, SlotState::Acknowledged);
            if before == SlotState::Acknowledged {
                continue;
            }
            found = true;
            let (message, order, stamp, sends) = (slot.message, slot.order, slot.stamp, slot.sends);
            let slot_bytes = slot.bytes();
            slot.payload = Bytes::new();
            if before == SlotState::OnItsWay {
                let counts = std::mem::take(&mut slot.in_flight);
                bytes += if counts { slot_bytes } else { 0 };
                if newest.is_none_or(|(newest, _)| order > newest) {
                    newest = Some((order, stamp));
                    // Of the others it is not known when they came.
                    rtt = (sends == 1 && Some(one) == acknowledged)
                        .then(|| now.saturating_duration_since(stamp.sent_at));
                }
            } else {
                self.lost.remove(&one);
                self.flow.on_spurious_loss();
            }
            self.on_packet_acknowledged(message);
        }
        if !found {
            return;
        }
        self.timeouts = 0;
        if let Some((order, stamp)) = newest {
            self.newest_acknowledged = self.newest_acknowledged.max(Some(order));
            self.flow.on_delivered(now, bytes, &stamp, rtt);
        } else {
            self.flow.rtt.on_progress();
        }
        while self.slots.front().is_some_and(|slot| slot.state == SlotState::Acknowledged) {
            self.slots.pop_front();
            self.base += 1;
            self.gaps = 0;
        }
        self.waiting_since = if self.messages.is_empty() { None } else { Some(now) };
        self.plan_question(now);
        self.find_lost(now);
    }

    /// The peer got something else than what it misses: which, it does not say, but one packet has
    /// got through, and the first of those behind the gap is as good as any.
    pub(super) fn on_gap(&mut self, now: Instant, number: u64) {
        self.on_ack(now, number, 0);
        if number + 1 != self.base {
            return;
        }
        // Before a round trip has passed, what is said is about what was sent before.
        let trip = self.flow.rtt.smallest().min(Rtt::TIMEOUT_FIRST);
        let is_about = |slot: &Slot| now >= slot.stamp.sent_at + trip;
        self.gaps += u32::from(self.slots.front().is_some_and(is_about));
        self.behind_gap = self.behind_gap.max(self.base + 1);
        while self.slot(self.behind_gap).is_some_and(|slot| !slot.in_flight) {
            self.behind_gap += 1;
        }
        if let Some(slot) = self.slot_mut(self.behind_gap).filter(|slot| is_about(slot)) {
            slot.in_flight = false;
            let (bytes, stamp) = (slot.bytes(), slot.stamp);
            self.flow.on_delivered(now, bytes, &stamp, None);
        }
        self.find_lost(now);
    }

    fn on_packet_acknowledged(&mut self, message: u64) {
        let index = usize::try_from(message - self.first_message).unwrap_or(usize::MAX);
        let Some(progress) = self.messages.get_mut(index) else { return };
        progress.packets -= 1;
        if self.handling != Handling::Acknowledged {
            return;
        }
        if progress.packets == 0 {
            self.acknowledged.push_back(SendId(message));
        }
        while self.messages.front().is_some_and(|message| message.packets == 0) {
            self.forget_first();
        }
    }

    /// The oldest message is acknowledged.
    fn forget_first(&mut self) {
        if let Some(done) = self.messages.pop_front() {
            self.first_message += 1;
            self.message_bytes -= done.len + Self::OVERHEAD;
            self.bytes_acknowledged += done.len as u64;
        }
    }

    /// The oldest packet that is on its way: when it was sent, its number, and whether one that was
    /// sent later has arrived.
    fn oldest_sent(&mut self) -> Option<(Instant, u64, bool)> {
        while let Some(&(order, number)) = self.sent.front() {
            match self.slot(number) {
                Some(slot) if slot.order == order && slot.state == SlotState::OnItsWay => {
                    let overtaken = self.newest_acknowledged.is_some_and(|newest| newest > order);
                    return Some((slot.stamp.sent_at, number, overtaken || self.gaps > 0));
                }
                _ => self.sent.pop_front(),
            };
        }
        None
    }

    /// The first packet that is not acknowledged, if it is on its way: the one for which a receiver
    /// that has no room for others has some.
    fn first_missing(&self) -> Option<u64> {
        let first = self.base();
        self.slot(first).filter(|slot| slot.state == SlotState::OnItsWay).map(|_| first)
    }

    fn find_lost(&mut self, now: Instant) {
        let sure = self.gaps >= Self::GAPS && !self.flow.reorders();
        let patience = if sure { Duration::ZERO } else { self.flow.loss_patience() };
        while let Some((sent_at, number, overtaken)) = self.oldest_sent() {
            if !overtaken || now < sent_at + patience {
                break;
            }
            self.lose(now, number);
        }
    }

    fn lose(&mut self, now: Instant, number: u64) {
        let again = self.repeat.again(number, self.next());
        // Whatever else goes again was not lost on the way.
        for n in again {
            let Some(slot) = self.slot_mut(n) else { continue };
            if matches!(slot.state, SlotState::Acknowledged | SlotState::Lost) {
                continue;
            }
            slot.state = SlotState::Lost;
            let (bytes, counts) = (slot.bytes(), std::mem::take(&mut slot.in_flight));
            self.lost.insert(n);
            match counts {
                true if n == number => self.flow.on_lost(now, bytes),
                true => self.flow.on_forgotten(bytes),
                false => {}
            }
        }
        self.gaps = 0;
    }

    /// The peer says that this packet came damaged: it goes again. A peer that says so too often in
    /// a row is as good as gone.
    pub(super) fn on_nack(&mut self, now: Instant, number: u64) -> Result<(), Gone> {
        let Some(slot) = self.slot_mut(number).filter(|slot| slot.state == SlotState::OnItsWay) else {
            return Ok(());
        };
        slot.refused += 1;
        self.timeouts += 1;
        if self.timeouts > self.timeouts_max {
            return Err(Gone);
        }
        self.lose(now, number);
        self.probes = true;
        Ok(())
    }

    /// The peer has no room: it is not gone.
    pub(super) fn on_hold(&mut self) {
        self.timeouts = 0;
    }

    /// The peer has room again: what has timed out goes at once.
    pub(super) fn on_room(&mut self, now: Instant) {
        self.flow.rtt.on_progress();
        if self.timeouts > 0
            && let Some((_, number, _)) = self.oldest_sent()
        {
            let number = self.first_missing().unwrap_or(number);
            self.lose(now, number);
        }
        self.timeouts = 0;
        self.probes = true;
    }

    /// The retransmission timeout. Where other packets are on their way, what they say about a loss
    /// comes first.
    fn timeout(&self) -> Duration {
        let timeout = self.flow.rtt.timeout();
        if self.slots.len() > 1 { timeout.max(self.flow.loss_patience() * 2) } else { timeout }
    }

    /// When [`Self::handle_timeout`] or [`Self::poll_packet`] have something to do.
    pub(super) fn poll_timeout(&mut self) -> Option<Instant> {
        let (patience, timeout) = (self.flow.loss_patience(), self.timeout());
        let oldest = self.oldest_sent();
        let timed_out_at = self.timed_out_at;
        let lost_at = oldest.map(|(sent_at, _, overtaken)| {
            let timeout_at = timed_out_at.map_or(sent_at, |at| at.max(sent_at)) + timeout;
            if overtaken { timeout_at.min(sent_at + patience) } else { timeout_at }
        });
        let question_at = self.question.map(|question| question.at);
        [lost_at, self.paced_until, question_at].into_iter().flatten().min()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) -> Result<(), Gone> {
        self.find_lost(now);
        let timeout = self.timeout();
        let Some((sent_at, number, _)) = self.oldest_sent() else { return Ok(()) };
        // The next timeout counts from this one (RFC 6298, 5.6), however many packets left at the
        // same time.
        if now < self.timed_out_at.map_or(sent_at, |at| at.max(sent_at)) + timeout {
            return Ok(());
        }
        self.timed_out_at = Some(now);
        self.timeouts += 1;
        if self.timeouts > self.timeouts_max {
            return Err(Gone);
        }
        self.flow.on_timeout(now);
        let number = self.first_missing().unwrap_or(number);
        self.lose(now, number);
        self.probes = true;
        Ok(())
    }
}
