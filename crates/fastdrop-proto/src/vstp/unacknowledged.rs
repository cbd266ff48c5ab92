//! Small frames with REQ_ACK: their numbers, and when they leave again (docs/protocol/vstp.md,
//! sections 5 and 6).

use super::arrivals::Arrived;
use super::batch::Batch;
use super::channel::with_after;
use super::failure::Failure;
use super::frame::FrameBytes;
use super::ids::{MSG_ID, MSG_ID_DIGITS, SendId, number_digits};
use super::ordering::Ordering;
use super::priority::{ByPriority, Priority};
use super::random::Random;
use super::streams::Numbers;
use crate::congestion::{Flow, Stamp};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// Bytes that the number of a frame adds to it: the lengths of key and value, the key, the digits.
pub(super) const MSG_ID_HEADER_BYTES: usize = 2 + MSG_ID.len() + MSG_ID_DIGITS;

/// A frame that asks for an acknowledgement with this number. One that it has already, as a frame
/// that is sent back to its sender, is not this one's.
pub(super) fn numbered(frame: FrameBytes, number: u64) -> Result<FrameBytes, Failure> {
    let frame = frame.without_header(MSG_ID)?;
    let frame = frame.with_header(MSG_ID.as_bytes(), number_digits(number).as_bytes())?;
    Ok(frame.with_flag(super::Flags::REQ_ACK))
}

/// Whereabouts of a frame.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// It is to leave.
    Here,
    /// It has left, as the so many-th datagram.
    OnWay { stamp: Stamp, departure: u64 },
    /// The peer has it, and its application has not handled it.
    There,
}

/// A small frame that has its number and waits for its ACK.
#[derive(Debug)]
struct Waiting {
    send: SendId,
    priority: Priority,
    bytes: Bytes,
    place: Place,
    attempts: u32,
    /// Attempts in a row in whose time nothing was heard of the peer.
    silences: u32,
    sent_at: Instant,
    again_at: Instant,
    give_up_at: Instant,
}

impl Waiting {
    fn is_here(&self) -> bool {
        matches!(self.place, Place::Here)
    }

    /// The time at which something is to be done about it.
    fn due_at(&self) -> Instant {
        self.again_at.min(self.give_up_at)
    }
}

/// The small frames to one address that are to be acknowledged.
#[derive(Debug)]
pub(super) struct Unacknowledged {
    /// A frame fails after this long without an acknowledgement.
    give_up: Duration,
    numbers: Numbers,
    /// Frames that have no number yet, because they cannot leave.
    held: ByPriority<VecDeque<(SendId, FrameBytes)>>,
    waiting: BTreeMap<u64, Waiting>,
    /// The count of those.
    under_way: ByPriority<usize>,
    /// The time at which something is to be done about which of these.
    due: BTreeSet<(Instant, u64)>,
    /// Those that are to leave: the first does, others may have been answered meanwhile.
    queues: ByPriority<VecDeque<u64>>,
    /// Those that are on their way, in the order in which they left.
    on_way: BTreeMap<u64, u64>,
    departures: u64,
    /// The last departure of which is known that it arrived.
    newest: u64,
    loss_at: Option<Instant>,
    /// The peer says what has arrived before it is handled.
    reports: bool,
    /// The time of the last answer.
    heard_at: Option<Instant>,
    /// The time of the last answer about something that was on its way.
    arrived_at: Option<Instant>,
    /// The time of the last timeout, if nothing has arrived since.
    silent_at: Option<Instant>,
    outcomes: VecDeque<(SendId, Result<(), Failure>)>,
}

impl Unacknowledged {
    /// Frames that are under way at once; others wait.
    const WAITING_MAX: usize = 4096;
    /// The time after which the ACK of a frame that has arrived is asked for first. Each following
    /// time is twice as long.
    const ASK_AFTER: Duration = Duration::from_millis(500);

    pub(super) fn new(give_up: Duration, random: &mut Random) -> Self {
        Self {
            give_up,
            numbers: Numbers::new(random),
            held: ByPriority::default(),
            waiting: BTreeMap::new(),
            under_way: ByPriority::default(),
            due: BTreeSet::new(),
            queues: ByPriority::default(),
            on_way: BTreeMap::new(),
            departures: 0,
            newest: 0,
            loss_at: None,
            reports: false,
            heard_at: None,
            arrived_at: None,
            silent_at: None,
            outcomes: VecDeque::new(),
        }
    }

    /// Returns true if nothing waits for a number or an acknowledgement.
    pub(super) fn is_empty(&self) -> bool {
        let held = self.held.iter().all(VecDeque::is_empty);
        self.waiting.is_empty() && held && self.outcomes.is_empty()
    }

    /// Returns true if something waits for its turn to leave.
    pub(super) fn has_unsent(&self) -> bool {
        Priority::ALL.into_iter().any(|priority| self.waits(priority))
    }

    /// The same of what has this priority.
    pub(super) fn waits(&self, priority: Priority) -> bool {
        !self.queues.get(priority).is_empty() || self.may_number(priority)
    }

    /// Bytes of the frame that leaves next; zero if none does.
    pub(super) fn unsent_bytes(&self) -> u64 {
        let here = self.queues.iter().flatten().filter(|number| self.is_here(**number));
        let next =
            here.filter_map(|number| self.waiting.get(number)).map(|waiting| waiting.bytes.len()).next();
        let held = || {
            let held = self.held.iter().find_map(VecDeque::front);
            held.map(|(_, frame)| frame.as_ref().encoded_len() + MSG_ID_HEADER_BYTES)
        };
        next.or_else(held).unwrap_or(0) as u64
    }

    /// Takes a frame, which is numbered when it can leave.
    pub(super) fn hold(&mut self, send: SendId, frame: FrameBytes, priority: Priority) {
        self.held.get_mut(priority).push_back((send, frame));
    }

    /// Drops from the fronts of the queues what has been answered meanwhile.
    fn drop_answered(&mut self) {
        let Self { queues, waiting, .. } = self;
        let is_here = |number: &u64| waiting.get(number).is_some_and(Waiting::is_here);
        for queue in queues.iter_mut() {
            while queue.front().is_some_and(|number| !is_here(number)) {
                queue.pop_front();
            }
        }
    }

    fn is_here(&self, number: u64) -> bool {
        self.waiting.get(&number).is_some_and(Waiting::is_here)
    }

    fn may_number(&self, priority: Priority) -> bool {
        // What is lower does not take all places of what is higher.
        let places = match priority {
            Priority::High => Self::WAITING_MAX + Self::WAITING_MAX / 4,
            Priority::Normal => Self::WAITING_MAX,
            Priority::Bulk => Self::WAITING_MAX / 2,
        };
        let oldest = self.waiting.first_key_value().map(|(number, _)| *number);
        let has_place = self.waiting.len() < places || *self.under_way.get(priority) == 0;
        has_place && self.numbers.has_next(oldest) && !self.held.get(priority).is_empty()
    }

    /// The number of the frame that is to leave next: one that waits here, or else one that gets
    /// its number now.
    fn next(&mut self, now: Instant, priority: Priority, ordering: &Ordering) -> Option<u64> {
        if let Some(number) = self.queues.get(priority).front() {
            // A receiver that has forgotten its channel learns where to go on.
            if let Some(waiting) = self.waiting.get_mut(number).filter(|waiting| waiting.attempts > 0)
                && let Some(after) = ordering.after(waiting.send)
                && let Some(bytes) = with_after(&waiting.bytes, after)
            {
                waiting.bytes = bytes.into();
            }
            return Some(*number);
        }
        while self.may_number(priority) {
            let (send, frame) = self.held.get_mut(priority).pop_front()?;
            let number = self.numbers.take_next();
            match numbered(frame, number).and_then(|frame| {
                let mut bytes = Vec::new();
                frame.as_ref().encode(&mut bytes)?;
                Ok(bytes)
            }) {
                Ok(bytes) => {
                    let give_up_at = now + self.give_up;
                    let waiting = Waiting {
                        send,
                        priority,
                        bytes: bytes.into(),
                        place: Place::Here,
                        attempts: 0,
                        silences: 0,
                        sent_at: now,
                        again_at: give_up_at,
                        give_up_at,
                    };
                    self.insert(number, waiting);
                    self.queues.get_mut(priority).push_back(number);
                    return Some(number);
                }
                Err(failure) => self.outcomes.push_back((send, Err(failure))),
            }
        }
        None
    }

    /// Writes the frames of a priority that leave next, of which each but the last has the same
    /// size: that size. Only the first may exceed `allowed` bytes.
    pub(super) fn poll_transmit(
        &mut self,
        now: Instant,
        (priority, batch, allowed): (Priority, Batch, u64),
        ordering: &Ordering,
        flow: &mut Flow,
        random: &mut Random,
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        let mut size = None;
        for _ in 0..batch.segments.max(1) {
            let Some(number) = self.next(now, priority, ordering) else { break };
            let len = self.waiting.get(&number).map_or(0, |waiting| waiting.bytes.len());
            let waits = size.is_some() && (out.len() + len) as u64 > allowed;
            if waits || !batch.has_room(len, out.len(), size) {
                break;
            }
            self.queues.get_mut(priority).pop_front();
            self.leave(now, number, flow, random, out);
            self.drop_answered();
            if len < *size.get_or_insert(len) {
                break;
            }
        }
        size
    }

    fn leave(&mut self, now: Instant, number: u64, flow: &mut Flow, random: &mut Random, out: &mut Vec<u8>) {
        let Some(waiting) = self.waiting.get_mut(&number) else { return };
        out.extend_from_slice(&waiting.bytes);
        self.departures += 1;
        let departure = self.departures;
        let stamp = flow.on_sent(now, waiting.bytes.len() as u64);
        waiting.place = Place::OnWay { stamp, departure };
        // Where others have arrived meanwhile, this one was lost by chance, and there is nothing to
        // back off from.
        let alive = self.arrived_at.is_some_and(|at| at > waiting.sent_at);
        waiting.silences = if waiting.attempts == 0 || alive { 0 } else { waiting.silences + 1 };
        waiting.attempts += 1;
        waiting.sent_at = now;
        let timeout = flow.rtt.timeout_after(waiting.silences);
        let again_at = now + timeout + random.below(timeout / 10);
        self.on_way.insert(departure, number);
        self.set_again_at(number, again_at);
    }

    /// Sets when something is to be done about a frame.
    fn set_again_at(&mut self, number: u64, again_at: Instant) {
        let Some(waiting) = self.waiting.get_mut(&number) else { return };
        self.due.remove(&(waiting.due_at(), number));
        waiting.again_at = again_at;
        self.due.insert((waiting.due_at(), number));
    }

    fn insert(&mut self, number: u64, waiting: Waiting) {
        *self.under_way.get_mut(waiting.priority) += 1;
        self.due.insert((waiting.due_at(), number));
        self.waiting.insert(number, waiting);
    }

    /// Takes what waits for the answer with this number off the way.
    fn take(&mut self, number: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&number)?;
        let under_way = self.under_way.get_mut(waiting.priority);
        *under_way = under_way.saturating_sub(1);
        self.due.remove(&(waiting.due_at(), number));
        if let Place::OnWay { departure, .. } = waiting.place {
            self.on_way.remove(&departure);
        }
        Some(waiting)
    }

    /// Takes an ACK with what it says of the numbers below; `reports` if it comes from somebody who
    /// says what has arrived before it is handled. False if nothing with this number was sent.
    pub(super) fn handle_ack(
        &mut self,
        now: Instant,
        number: u64,
        payload: &[u8],
        reports: bool,
        flow: &mut Flow,
    ) -> bool {
        let known = self.waiting.contains_key(&number) || (reports && self.numbers.has_used(number));
        if !known {
            return false;
        }
        self.reports |= reports;
        let below = <[u8; size_of::<u128>()]>::try_from(payload).map_or(0, u128::from_be_bytes);
        let first = number.saturating_sub(u128::BITS.into());
        let is_acknowledged =
            |other: &u64| *other == number || below >> (u64::from(u128::BITS) - (number - *other)) & 1 == 1;
        let waiting = self.waiting.range(first..=number).map(|(other, _)| *other);
        let acknowledged: Vec<u64> = waiting.filter(is_acknowledged).collect();
        let mut news = News::default();
        for number in acknowledged {
            let Some(waiting) = self.take(number) else { continue };
            self.on_there(now, &waiting, flow, &mut news);
            self.outcomes.push_back((waiting.send, Ok(())));
        }
        self.tell(now, &news, Duration::ZERO, flow);
        true
    }

    /// Takes a refusal. False if nothing waits for it.
    pub(super) fn handle_refused(
        &mut self,
        now: Instant,
        number: u64,
        code: String,
        flow: &mut Flow,
    ) -> bool {
        let Some(waiting) = self.take(number) else { return false };
        let mut news = News::default();
        self.on_there(now, &waiting, flow, &mut news);
        self.tell(now, &news, Duration::ZERO, flow);
        self.outcomes.push_back((waiting.send, Err(Failure::refused(code))));
        true
    }

    /// Takes a report of arrivals; false if it is about nothing that was sent.
    pub(super) fn handle_arrived(&mut self, now: Instant, arrived: &Arrived, flow: &mut Flow) -> bool {
        let stream = u64::from(arrived.stream) << u32::BITS;
        let mut news = News::default();
        let mut known = false;
        for range in &arrived.counts {
            let range = stream + u64::from(*range.start())..=stream + u64::from(*range.end());
            let numbers: Vec<u64> = self.waiting.range(range).map(|(number, _)| *number).collect();
            for number in numbers {
                let Some(waiting) = self.take(number) else { continue };
                known |= waiting.attempts > 0;
                self.on_there(now, &waiting, flow, &mut news);
                let ask_after = Self::ASK_AFTER * (1 << waiting.attempts.saturating_sub(1).min(6));
                let again_at =
                    if matches!(waiting.place, Place::There) { waiting.again_at } else { now + ask_after };
                let waiting = Waiting { place: Place::There, again_at, ..waiting };
                self.insert(number, waiting);
            }
        }
        self.reports |= known;
        self.tell(now, &news, arrived.delay, flow);
        known
    }

    /// Notes what the arrival of a frame that has been taken off the way shows.
    fn on_there(&mut self, now: Instant, waiting: &Waiting, flow: &mut Flow, news: &mut News) {
        self.heard_at = Some(now);
        match waiting.place {
            Place::OnWay { stamp, departure } => {
                self.arrived_at = Some(now);
                self.silent_at = None;
                // Sooner than anything has come back so far: that was the answer to the first one.
                if waiting.attempts > 1 && now.saturating_duration_since(stamp.sent_at) < flow.rtt.smallest()
                {
                    flow.on_spurious_loss();
                }
                self.newest = self.newest.max(departure);
                news.add(waiting.bytes.len() as u64, stamp, waiting.attempts > 1);
            }
            Place::Here if waiting.attempts > 0 => flow.on_spurious_loss(),
            Place::Here | Place::There => {}
        }
    }

    fn tell(&mut self, now: Instant, news: &News, delay: Duration, flow: &mut Flow) {
        if let Some(newest) = news.newest {
            let rtt = news.once.map(|sent_at| now.saturating_duration_since(sent_at).saturating_sub(delay));
            flow.on_delivered(now, news.bytes, &newest, rtt.filter(|rtt| !rtt.is_zero()));
        }
        self.detect_lost(now, flow);
        self.drop_answered();
    }

    /// Takes for lost what left more than a round trip and a quarter ago, and before something that
    /// is there (RFC 8985, 6.2): towards a peer that says what has arrived, and so does not keep
    /// silent about it because its application is slow.
    pub(super) fn detect_lost(&mut self, now: Instant, flow: &mut Flow) {
        self.loss_at = None;
        if !self.reports {
            return;
        }
        let patience = flow.loss_patience();
        while let Some((&departure, &number)) = self.on_way.first_key_value() {
            if departure >= self.newest {
                return;
            }
            let Some(waiting) = self.waiting.get_mut(&number) else {
                self.on_way.pop_first();
                continue;
            };
            let lost_at = waiting.sent_at + patience;
            if now < lost_at {
                self.loss_at = Some(lost_at);
                return;
            }
            flow.on_lost(now, waiting.bytes.len() as u64);
            self.bring_back(number);
        }
    }

    /// A frame that was on its way, or there, is to leave again.
    fn bring_back(&mut self, number: u64) {
        let Some(waiting) = self.waiting.get_mut(&number) else { return };
        if let Place::OnWay { departure, .. } = waiting.place {
            self.on_way.remove(&departure);
        }
        waiting.place = Place::Here;
        let (give_up_at, priority) = (waiting.give_up_at, waiting.priority);
        self.set_again_at(number, give_up_at);
        self.queues.get_mut(priority).push_back(number);
    }

    /// Takes for lost, or asks about, what had no answer in time, and gives up what has had none
    /// for too long.
    pub(super) fn handle_timeout(&mut self, now: Instant, flow: &mut Flow) {
        self.detect_lost(now, flow);
        let mut has_failed = false;
        let mut is_silent = false;
        while let Some(&(_, number)) = self.due.first().filter(|(at, _)| *at <= now) {
            let Some(waiting) = self.waiting.get(&number) else {
                self.due.pop_first();
                continue;
            };
            if waiting.give_up_at <= now {
                if let Some(waiting) = self.give_up(number, flow) {
                    self.outcomes.push_back((waiting.send, Err(Failure::TimedOut)));
                    has_failed = true;
                }
                continue;
            }
            if let Place::OnWay { .. } = waiting.place {
                let rests_at = self.arrived_at.map(|at| at + flow.rtt.timeout()).filter(|at| *at > now);
                if let Some(rests_at) = rests_at.filter(|_| self.reports) {
                    // Others arrive: what is behind them will show whether this one was lost.
                    self.set_again_at(number, rests_at);
                    continue;
                }
                is_silent |= self.arrived_at.is_none_or(|at| at <= waiting.sent_at);
                flow.on_forgotten(waiting.bytes.len() as u64);
            }
            self.bring_back(number);
        }
        // What left together is lost together, and that is one timeout.
        if is_silent && self.silent_at.is_none_or(|at| now >= at + flow.rtt.timeout()) {
            self.silent_at = Some(now);
            flow.on_timeout(now);
        }
        // Where nothing was acknowledged for as long as a frame waits, nobody is there.
        let since = self.heard_at.map(|at| now.saturating_duration_since(at));
        if has_failed && since.is_none_or(|since| since >= self.give_up) {
            self.abandon_held(&Failure::TimedOut);
        }
        self.drop_answered();
    }

    /// Gives up everything, for this reason.
    pub(super) fn abandon(&mut self, reason: &Failure, flow: &mut Flow) {
        while let Some((&number, _)) = self.waiting.first_key_value() {
            if let Some(waiting) = self.give_up(number, flow) {
                self.outcomes.push_back((waiting.send, Err(reason.clone())));
            }
        }
        self.abandon_held(reason);
        self.queues.iter_mut().for_each(VecDeque::clear);
    }

    /// Gives up those of these frames, in the order of their sending, that have no outcome yet.
    pub(super) fn cancel(&mut self, sends: &[SendId], reason: &Failure, flow: &mut Flow) {
        for held in self.held.iter_mut() {
            held.retain(|(send, _)| {
                let is_over = sends.binary_search(send).is_ok();
                self.outcomes.extend(is_over.then(|| (*send, Err(reason.clone()))));
                !is_over
            });
        }
        let is_over = |waiting: &Waiting| sends.binary_search(&waiting.send).is_ok();
        let numbers: Vec<u64> =
            self.waiting.iter().filter(|(_, waiting)| is_over(waiting)).map(|(number, _)| *number).collect();
        for number in numbers {
            if let Some(waiting) = self.give_up(number, flow) {
                self.outcomes.push_back((waiting.send, Err(reason.clone())));
            }
        }
        self.drop_answered();
    }

    fn abandon_held(&mut self, reason: &Failure) {
        let held = self.held.iter_mut().flat_map(|held| held.drain(..));
        self.outcomes.extend(held.map(|(send, _)| (send, Err(reason.clone()))));
    }

    /// Takes a frame that nobody waits for any more.
    fn give_up(&mut self, number: u64, flow: &mut Flow) -> Option<Waiting> {
        let waiting = self.take(number)?;
        if matches!(waiting.place, Place::OnWay { .. }) {
            flow.on_forgotten(waiting.bytes.len() as u64);
        }
        Some(waiting)
    }

    /// The fate of a frame.
    pub(super) fn poll_outcome(&mut self) -> Option<(SendId, Result<(), Failure>)> {
        self.outcomes.pop_front()
    }

    /// The time at which [`Self::handle_timeout`] has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        [self.due.first().map(|(at, _)| *at), self.loss_at].into_iter().flatten().min()
    }
}

/// Arrivals that one answer makes known.
#[derive(Default)]
pub(super) struct News {
    pub(super) bytes: u64,
    pub(super) newest: Option<Stamp>,
    /// The time at which the newest left of those that left only once.
    pub(super) once: Option<Instant>,
}

impl News {
    pub(super) fn add(&mut self, bytes: u64, stamp: Stamp, again: bool) {
        self.bytes += bytes;
        if self.newest.is_none_or(|newest| stamp.sent_at >= newest.sent_at) {
            self.newest = Some(stamp);
        }
        if !again {
            self.once = self.once.max(Some(stamp.sent_at));
        }
    }
}
