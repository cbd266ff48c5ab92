//! One message that is sent in fragments.

use super::fragment::{Report, WINDOW_MAX, Writer};
use super::frame::{FrameBytes, FrameError};
use super::ids::SendId;
use super::priority::Priority;
use super::unacknowledged::News;
use crate::congestion::{Flow, Stamp};
use crate::rtt::Rtt;
use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// What is known of a fragment that has been sent.
#[derive(Debug, Clone, Copy)]
enum Slot {
    /// `again`: more than once.
    OnWay {
        stamp: Stamp,
        again: bool,
    },
    There,
    Lost,
}

/// The fragments from the first that the receiver lacks to the last that has been sent.
#[derive(Debug)]
pub(super) struct Outgoing {
    send: SendId,
    frame: FrameBytes,
    msg_id: Option<u64>,
    id: u64,
    /// The number that it had before, if somebody may have seen that.
    replaces: Option<u64>,
    writer: Option<Writer>,
    base: u32,
    slots: VecDeque<Slot>,
    lost: BTreeSet<u32>,
    /// Fragments that are on their way, counted in flight or not.
    on_way: usize,
    /// Fragments from here on are not taken now.
    limit: u32,
    /// When the fragment left that was the last to leave of those that are there.
    newest: Option<Instant>,
    loss_at: Option<Instant>,
    in_flight: u64,
    /// When the last fragment left for the first time.
    sent_at: Option<Instant>,
    progress_at: Instant,
    /// The time of the last report, or of what left when nothing was on its way.
    active_at: Instant,
    give_up: Duration,
    /// Timeouts since something got through.
    timeouts: u32,
    /// A timeout has passed since the last report.
    may_ask: bool,
    /// The question for the ACK of a complete message.
    ask: Option<Ask>,
    /// Since when the peer has had no room for it.
    shut_since: Option<Instant>,
    /// The last report said so.
    is_shut: bool,
    /// The channel of which it is a state.
    pub(super) state: Option<u32>,
    pub(super) priority: Priority,
    /// Whether its application has been told what became of it.
    pub(super) told: bool,
}

/// The next question for a complete message's ACK, as that may have been lost.
#[derive(Debug, Clone, Copy)]
struct Ask {
    at: Instant,
    interval: Duration,
    /// The time has come, and the question has not left yet.
    due: bool,
}

impl Outgoing {
    /// A peer may say for so long that it has no room for a message.
    const SHUT_MAX: Duration = Duration::from_secs(600);

    /// Nothing has been sent of it.
    pub(super) fn new(
        now: Instant,
        send: SendId,
        frame: FrameBytes,
        msg_id: Option<u64>,
        give_up: Duration,
    ) -> Self {
        Self {
            send,
            frame,
            msg_id,
            id: 0,
            replaces: None,
            writer: None,
            base: 0,
            slots: VecDeque::new(),
            lost: BTreeSet::new(),
            on_way: 0,
            limit: WINDOW_MAX,
            newest: None,
            loss_at: None,
            in_flight: 0,
            sent_at: None,
            progress_at: now,
            active_at: now,
            give_up,
            timeouts: 0,
            may_ask: false,
            ask: None,
            shut_since: None,
            is_shut: false,
            state: None,
            priority: Priority::Normal,
            told: false,
        }
    }

    /// Returns true if something of it may have left.
    pub(super) fn has_begun(&self) -> bool {
        self.base > 0 || !self.slots.is_empty() || self.replaces.is_some()
    }

    /// Returns true if something of it is lost, and has to leave again.
    pub(super) fn has_lost(&self) -> bool {
        !self.lost.is_empty()
    }

    /// Which one it is to its application.
    pub(super) fn send(&self) -> SendId {
        self.send
    }

    /// The number with which it is acknowledged, if that is wanted.
    pub(super) fn msg_id(&self) -> Option<u64> {
        self.msg_id
    }

    /// Whether its fragments have this number now.
    pub(super) fn has_id(&self, id: u64) -> bool {
        self.id == id && self.writer.is_some()
    }

    /// How many fragments it has; None before it has been cut.
    pub(super) fn total(&self) -> Option<u32> {
        self.writer.as_ref().map(Writer::total)
    }

    /// Bytes of its largest datagram; zero before it has been cut.
    pub(super) fn datagram(&self) -> usize {
        self.writer.as_ref().map_or(0, |writer| writer.datagram_len(0))
    }

    /// Bytes that are on their way.
    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Bytes that have not left, or have to leave again, at most.
    pub(super) fn unsent_bytes(&self) -> u64 {
        let Some(writer) = &self.writer else { return self.encoded_len() as u64 };
        let left = u64::from(writer.total() - self.base) - self.slots.len() as u64 + self.lost.len() as u64;
        left * writer.datagram_len(0) as u64
    }

    /// Nothing of it may leave yet: its patience begins anew.
    pub(super) fn wait_for_turn(&mut self, now: Instant) {
        self.progress_at = now;
    }

    /// When it is given up, if nothing new gets through.
    pub(super) fn give_up_at(&self) -> Instant {
        self.progress_at + self.give_up
    }

    /// When the last fragment left for the first time, if it has.
    pub(super) fn sent_at(&self) -> Option<Instant> {
        self.sent_at
    }

    /// Whether something may be lost without anybody saying so.
    pub(super) fn waits_for_report(&self) -> bool {
        !self.is_complete() && (!self.slots.is_empty() || (self.writer.is_some() && self.base >= self.limit))
    }

    /// Returns true if the peer has reported all of it. Where an ACK is wanted, that one is still
    /// to come.
    fn is_complete(&self) -> bool {
        self.total() == Some(self.base)
    }

    /// The time at which the peer has to be asked for the ACK of a complete message.
    pub(super) fn ask_at(&self) -> Option<Instant> {
        self.ask.filter(|ask| !ask.due).map(|ask| ask.at)
    }

    /// Asks for the ACK if the time for that has come: its last fragment leaves once more.
    pub(super) fn ask_for_ack(&mut self, now: Instant, interval_max: Duration) {
        if let Some(ask) = self.ask.as_mut().filter(|ask| !ask.due && ask.at <= now) {
            ask.due = true;
            ask.interval = (ask.interval * 2).min(interval_max);
            ask.at = now + ask.interval;
        }
    }

    /// When something on its way has to be taken for lost.
    pub(super) fn loss_at(&self) -> Option<Instant> {
        self.loss_at
    }

    /// Returns true if the peer has said that it has no room for it now.
    pub(super) fn is_shut(&self) -> bool {
        self.is_shut
    }

    /// The time at which what is on its way has to be taken for lost, or the peer asked whether its
    /// window has opened, where nothing is reported about this message; None if nothing is awaited.
    pub(super) fn silent_at(&self, rtt: &Rtt) -> Option<Instant> {
        let is_cut = self.writer.is_some() && !self.is_complete();
        let is_awaited =
            self.on_way > 0 || self.is_shut || (self.slots.is_empty() && self.base >= self.limit);
        (is_cut && is_awaited).then(|| self.active_at + rtt.timeout_after(self.timeouts))
    }

    /// Whether several timeouts in a row brought nothing.
    pub(super) fn is_stuck(&self) -> bool {
        !self.is_shut && self.timeouts >= 5
    }

    /// Bytes of the frame as a whole.
    pub(super) fn encoded_len(&self) -> usize {
        self.frame.as_ref().encoded_len()
    }

    /// Cuts it into fragments with this number and of this size; says how many.
    pub(super) fn cut(&mut self, id: u64, datagram: usize) -> Result<u32, FrameError> {
        let writer = Writer::new(&self.frame.as_ref(), &self.frame.payload, id, self.replaces, datagram)?;
        let total = writer.total();
        self.id = id;
        self.writer = Some(writer);
        Ok(total)
    }

    /// Nobody may ever report what is on its way: it holds nothing back.
    pub(super) fn forget_in_flight(&mut self, flow: &mut Flow) {
        flow.on_forgotten(std::mem::take(&mut self.in_flight));
    }

    /// It has to be cut anew, although the peer reports fragments of it.
    pub(super) fn recut(&mut self, flow: &mut Flow) {
        self.replaces = self.writer.as_ref().map(|_| self.id).or(self.replaces);
        self.uncut(flow);
    }

    /// It has to be cut anew, with another number: nothing is sent.
    pub(super) fn uncut(&mut self, flow: &mut Flow) {
        self.forget_in_flight(flow);
        self.writer = None;
        (self.base, self.limit) = (0, WINDOW_MAX);
        self.slots.clear();
        self.on_way = 0;
        self.lost.clear();
        (self.newest, self.loss_at, self.sent_at, self.ask) = (None, None, None, None);
        self.is_shut = false;
        self.timeouts = 0;
    }

    /// Returns true if something of it has to leave, as far as is known before it is cut.
    pub(super) fn may_leave(&self) -> bool {
        self.writer.is_none() || self.peek().is_some()
    }

    /// The fragment that has to leave next, and its size; None if none has to, or may.
    pub(super) fn peek(&self) -> Option<(u32, usize)> {
        let writer = self.writer.as_ref()?;
        if self.is_complete() {
            let last = self.base.checked_sub(1).filter(|_| self.ask.is_some_and(|ask| ask.due))?;
            return Some((last, writer.datagram_len(last)));
        }
        let next = self.base + self.slots.len() as u32;
        // Towards a closed window, one fragment at a time asks whether it has opened.
        let asks = self.in_flight == 0 && self.may_ask;
        let new = (next < writer.total()).then_some(next);
        let index = self.lost.first().copied().or(new)?;
        (index < self.limit || asks).then(|| (index, writer.datagram_len(index)))
    }

    /// The fragment of [`Self::peek`] leaves: appends it to `out`.
    pub(super) fn on_sent(&mut self, now: Instant, index: u32, flow: &mut Flow, out: &mut Vec<u8>) {
        let Some(writer) = &self.writer else { return };
        writer.write(index, out);
        let len = writer.datagram_len(index) as u64;
        let stamp = flow.on_sent(now, len);
        if self.is_complete() {
            // A question is not missed on the way: the next one follows in any case.
            flow.on_forgotten(len);
            if let Some(ask) = &mut self.ask {
                ask.due = false;
            }
            return;
        }
        if self.on_way == 0 {
            self.active_at = now;
        }
        self.in_flight += len;
        let again = self.lost.remove(&index);
        let slot = Slot::OnWay { stamp, again };
        let at = (index - self.base) as usize;
        if !matches!(self.slots.get(at), Some(Slot::OnWay { .. })) {
            self.on_way += 1;
        }
        match self.slots.get_mut(at) {
            Some(at) => *at = slot,
            None => self.slots.push_back(slot),
        }
        if index + 1 == writer.total() && self.sent_at.is_none() {
            self.sent_at = Some(now);
        }
    }

    /// A report about it came. Whether all of it is there.
    pub(super) fn handle_report(&mut self, now: Instant, report: &Report, flow: &mut Flow) -> bool {
        let Some(writer) = &self.writer else { return false };
        let total = writer.total();
        if self.base == total {
            // The answer to a question for the ACK.
            return true;
        }
        let sent = self.base + self.slots.len() as u32;
        // What was never sent cannot be there (case 74).
        if report.base > sent || report.above().last().is_some_and(|index| index >= sent) {
            return false;
        }
        if report.base >= self.base {
            self.limit = report.limit;
            self.is_shut = report.limit <= report.base && report.base < total;
        }
        let mut news = News::default();
        for index in (self.base..report.base).chain(report.above()) {
            let Some(at) = index.checked_sub(self.base) else { continue };
            let Some(slot) = self.slots.get_mut(at as usize) else { continue };
            match std::mem::replace(slot, Slot::There) {
                Slot::OnWay { stamp, again } => {
                    self.on_way = self.on_way.saturating_sub(1);
                    // Sooner than anything has come back so far: that was the answer to the first
                    // one.
                    let since = now.saturating_duration_since(stamp.sent_at);
                    if again && since < flow.rtt.smallest() {
                        flow.on_spurious_loss();
                    }
                    news.add(writer.datagram_len(index) as u64, stamp, again);
                }
                Slot::Lost => {
                    self.lost.remove(&index);
                    flow.on_spurious_loss();
                }
                Slot::There => {}
            }
        }
        while let Some(Slot::There) = self.slots.front() {
            self.slots.pop_front();
            self.base += 1;
        }
        self.active_at = now;
        self.may_ask = false;
        if let Some(newest) = news.newest {
            self.timeouts = 0;
            self.progress_at = now;
            self.shut_since = None;
            let counted = news.bytes.min(self.in_flight);
            self.in_flight -= counted;
            flow.on_found(news.bytes - counted);
            let delay = Duration::from_micros(report.delay_us.into());
            let rtt = news.once.map(|sent_at| now.saturating_duration_since(sent_at).saturating_sub(delay));
            flow.on_delivered(now, news.bytes, &newest, rtt.filter(|rtt| !rtt.is_zero()));
            self.newest = self.newest.max(Some(newest.sent_at));
        }
        if self.is_shut {
            self.wait_for_room(now, flow);
        }
        self.detect_lost(now, flow);
        if self.base == total {
            let interval = flow.rtt.timeout();
            self.ask = Some(Ask { at: now + interval, interval, due: false });
        }
        self.base == total
    }

    /// The peer takes nothing now: what is on its way leaves again when there is room, and patience
    /// begins anew.
    fn wait_for_room(&mut self, now: Instant, flow: &mut Flow) {
        let since = *self.shut_since.get_or_insert(now);
        if now.saturating_duration_since(since) < Self::SHUT_MAX {
            self.progress_at = now;
        }
        self.forget_on_way(flow);
    }

    /// Takes for lost what left more than a round trip and a quarter ago, and before something that
    /// is there (RFC 8985, 6.2).
    pub(super) fn detect_lost(&mut self, now: Instant, flow: &mut Flow) {
        self.loss_at = None;
        let (Some(newest), Some(writer)) = (self.newest, &self.writer) else { return };
        let patience = flow.loss_patience();
        for (index, slot) in (self.base..).zip(&mut self.slots) {
            let Slot::OnWay { stamp, again } = slot else { continue };
            if stamp.sent_at >= newest {
                if *again {
                    continue;
                }
                // What follows left later still, but for what was sent again.
                break;
            }
            let lost_at = stamp.sent_at + patience;
            if now < lost_at {
                self.loss_at = Some(self.loss_at.map_or(lost_at, |at| at.min(lost_at)));
                continue;
            }
            let len = writer.datagram_len(index) as u64;
            *slot = Slot::Lost;
            self.on_way = self.on_way.saturating_sub(1);
            self.lost.insert(index);
            self.in_flight -= len.min(self.in_flight);
            flow.on_lost(now, len);
        }
    }

    /// Nothing has been reported for a timeout: everything on its way is taken for lost.
    pub(super) fn on_timeout(&mut self, now: Instant, flow: &mut Flow) {
        self.active_at = now;
        self.may_ask = true;
        self.timeouts += 1;
        self.forget_on_way(flow);
    }

    /// Everything on its way has to leave again.
    fn forget_on_way(&mut self, flow: &mut Flow) {
        self.forget_in_flight(flow);
        self.on_way = 0;
        self.loss_at = None;
        for (index, slot) in (self.base..).zip(&mut self.slots) {
            if matches!(slot, Slot::OnWay { .. }) {
                *slot = Slot::Lost;
                self.lost.insert(index);
            }
        }
    }
}
