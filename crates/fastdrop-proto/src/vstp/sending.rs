//! Everything that goes to one address and wants an answer: messages in fragments, and frames with
//! REQ_ACK.

use super::arrivals::Arrived;
use super::call::CallRole;
use super::cap::Cap;
use super::channel::{Channel, Place, SendOptions, without_place};
use super::failure::Failure;
use super::fragment::Report;
use super::frame::{FrameBytes, FrameType};
use super::ids::{SendId, new_stream};
use super::ordering::Ordering;
use super::outgoing::Outgoing;
use super::plain::{Plain, PlainFrame};
use super::priority::{ByPriority, Precedence, Priority};
use super::random::Random;
use super::streams::Numbers;
use super::unacknowledged::{MSG_ID_HEADER_BYTES, Unacknowledged, numbered};
use crate::congestion::{Flow, Model};
use crate::rtt::Rtt;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

mod leaving;

/// How patient a sender is.
#[derive(Debug, Clone)]
pub struct Patience {
    /// A message that wants an acknowledgement fails after this long without one. Default 8.7
    /// seconds, what a sender of version 0.2 takes.
    pub give_up: Duration,
    /// The shortest retransmission timeout. Default 100 ms.
    pub timeout_min: Duration,
    /// The longest. Default 5 seconds.
    pub timeout_max: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            give_up: Duration::from_millis(8700),
            timeout_min: Duration::from_millis(100),
            timeout_max: Duration::from_secs(5),
        }
    }
}

/// Whether the other end sends reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reports {
    Unknown,
    /// When the last one came.
    Yes(Instant),
    /// It did not report what was sent until then.
    No(Instant),
}

/// Finding out whether there are reports, and how large a datagram may be.
#[derive(Debug, Default)]
struct Probing {
    /// The number of each probe of the last attempt, and its size.
    probes: Vec<(u64, usize)>,
    /// Those of them that have not left.
    unsent: Vec<(u64, usize)>,
    attempts: u32,
    sent_at: Option<Instant>,
    /// The count of those that have left.
    left: u64,
    /// No larger datagram is looked for.
    smallest_only: bool,
}

/// A message in fragments that waits for a place among those under way.
#[derive(Debug)]
struct Held {
    send: SendId,
    frame: FrameBytes,
    acknowledged: bool,
    /// The channel of which it is a state.
    state: Option<u32>,
    priority: Priority,
}

/// The sending half of one address.
#[derive(Debug)]
pub(super) struct Sending {
    flow: Flow,
    patience: Patience,
    reports: Reports,
    probing: Probing,
    datagram: usize,
    next_id: u64,
    /// Numbers of messages in fragments that are to be acknowledged. They have a stream of their
    /// own: a long one holds back no small frames.
    numbers: Numbers,
    /// The last number of a state of any channel; zero before the first.
    last_state: u64,
    /// The numbers of ordered channels.
    ordering: Ordering,
    /// Messages that wait for a place among `outgoing`.
    held: ByPriority<VecDeque<Held>>,
    outgoing: VecDeque<Outgoing>,
    unacknowledged: Unacknowledged,
    plain: Plain,
    outcomes: VecDeque<(SendId, Result<(), Failure>)>,
    /// When something was last sent or reported while fragments were on their way.
    active_at: Instant,
    pace_at: Option<Instant>,
    blind_at: Instant,
    blind_left: u32,
    /// The time at which fragments last left.
    left_at: Instant,
    /// Bytes by which small frames are ahead of fragments of the same priority since both have
    /// waited.
    small_ahead: ByPriority<i64>,
    /// Bytes by which small frames that want no acknowledgement are ahead of others under the cap.
    plain_ahead: i64,
    precedence: Precedence,
    /// The bound of what has the lowest priority.
    cap: Option<Cap>,
    /// The time at which it lets something leave.
    cap_at: Option<Instant>,
    /// It was what kept something back when something was last to leave.
    is_capped: bool,
}

impl Sending {
    /// The size of a datagram that every path carries, and larger ones that are tried.
    pub(super) const DATAGRAMS: [usize; 4] = [1200, 1452, 8952, 32_000];
    pub(super) const DATAGRAM: usize = 1200;
    /// Messages that may be under way or wait for one address.
    const OUTGOING_MAX: usize = 256;
    /// Under a cap nothing is further ahead of what waits beside it.
    const AHEAD_MAX: i64 = 64 << 10;
    const PROBES_MAX: u32 = 8;
    /// A probe is repeated after this long, then after twice as long, up to the second.
    const PROBE_INTERVAL: Duration = Duration::from_millis(250);
    const PROBE_INTERVAL_MAX: Duration = Duration::from_secs(1);
    /// A probe that is reported later says nothing.
    const PROBE_AGE_MAX: Duration = Duration::from_secs(5);
    /// Reports are expected of those who reported in this time.
    const REPORTS_BELIEVED: Duration = Duration::from_secs(300);
    /// Who did not report is not expected to for so long.
    const SILENCE_BELIEVED: Duration = Duration::from_secs(60);
    /// A first report has so long to come before a message that wants no acknowledgement counts as
    /// sent.
    const GRACE: Duration = Duration::from_millis(100);
    /// Where nothing is reported, so many datagrams leave in each interval.
    const BLIND: u32 = 10;
    const BLIND_INTERVAL: Duration = Duration::from_millis(5);
    /// A message in fragments is given up when nothing of it gets through for so long.
    const STALLED_MAX: Duration = Duration::from_secs(30);

    /// Nothing has been sent.
    pub(super) fn new(now: Instant, patience: Patience, random: &mut Random) -> Self {
        let rtt = Rtt::new(patience.timeout_min, patience.timeout_max);
        let unacknowledged = Unacknowledged::new(patience.give_up, random);
        Self {
            flow: Flow::new(now, Box::new(Model::new(Self::DATAGRAM as u64)), rtt),
            patience,
            reports: Reports::Unknown,
            probing: Probing::default(),
            datagram: Self::DATAGRAM,
            // Beyond 32 bits, so that nobody guesses it.
            next_id: new_stream(random.next_u64() as u32),
            numbers: Numbers::new(random),
            last_state: 0,
            ordering: Ordering::default(),
            held: ByPriority::default(),
            outgoing: VecDeque::new(),
            unacknowledged,
            plain: Plain::new(now),
            outcomes: VecDeque::new(),
            active_at: now,
            pace_at: None,
            blind_at: now,
            blind_left: Self::BLIND,
            left_at: now,
            small_ahead: ByPriority::default(),
            plain_ahead: 0,
            precedence: Precedence::default(),
            cap: None,
            cap_at: None,
            is_capped: false,
        }
    }

    /// Looks for no datagrams of more than 1,200 bytes.
    pub(super) fn keep_to_smallest(&mut self) {
        self.probing.smallest_only = true;
    }

    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        let large = self.outgoing.is_empty() && self.held.iter().all(VecDeque::is_empty);
        large && self.unacknowledged.is_empty() && self.plain.is_empty() && self.outcomes.is_empty()
    }

    /// Bytes that wait for their turn to leave, at most.
    pub(super) fn unsent_bytes(&self) -> u64 {
        self.unacknowledged.unsent_bytes() + self.outgoing.iter().map(Outgoing::unsent_bytes).sum::<u64>()
    }

    /// The smoothed round-trip time; None before the first measurement.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.flow.rtt.smoothed()
    }

    /// Bytes a second that are sent at most; None while nothing is known.
    pub(super) fn rate(&self) -> Option<f64> {
        self.flow.rate()
    }

    fn reporting(&self, now: Instant) -> Reports {
        match self.reports {
            Reports::Yes(at) if now.saturating_duration_since(at) > Self::REPORTS_BELIEVED => {
                Reports::Unknown
            }
            Reports::No(at) if now.saturating_duration_since(at) > Self::SILENCE_BELIEVED => Reports::Unknown,
            known => known,
        }
    }

    /// Takes a message. A frame that fits into a datagram of this size and wants no acknowledgement
    /// is given back encoded, to be sent as it is. `fresh` is random.
    pub(super) fn send(
        &mut self,
        now: Instant,
        send: SendId,
        frame: FrameBytes,
        options: &SendOptions,
        (datagram, fresh): (usize, u64),
    ) -> Result<Option<PlainFrame>, Failure> {
        let acknowledged = options.is_acknowledged();
        let mut priority = options.priority();
        let is_answer = matches!(frame.typ, FrameType::Ack | FrameType::Err);
        let is_bare = is_answer || CallRole::of(&frame.as_ref()).is_some();
        if options.channel().is_some() && is_bare {
            return Err(Failure::NotOnChannel);
        }
        let mut frame = without_place(frame)?;
        let mut state = None;
        match options.channel() {
            None => {}
            Some(Channel::Sequenced(channel)) => {
                if self.last_state as u32 == u32::MAX || self.last_state == 0 {
                    self.last_state = new_stream(fresh as u32);
                }
                self.last_state += 1;
                frame = Place::Sequenced { channel, number: self.last_state }.write(frame)?;
                state = Some(channel);
            }
            Some(Channel::Ordered(channel)) => {
                if frame.as_ref().encoded_len() + Place::BYTES_MAX + MSG_ID_HEADER_BYTES > datagram {
                    return Err(Failure::NotCutInOrder);
                }
                let (order, of_channel) = self.ordering.take_next(send, channel, priority, fresh)?;
                priority = of_channel;
                frame = Place::Ordered(order).write(frame)?;
            }
        }
        let size = frame.as_ref().encoded_len() + if acknowledged { MSG_ID_HEADER_BYTES } else { 0 };
        let is_small = size <= datagram;
        if !is_small && datagram > Self::DATAGRAM {
            return Err(Failure::NotCut);
        }
        if let Some(channel) = state {
            self.supersede(channel);
        }
        if !is_small {
            let held = Held { send, frame, acknowledged, state, priority };
            self.held.get_mut(priority).push_back(held);
            self.admit(now);
            return Ok(None);
        }
        if acknowledged {
            self.unacknowledged.hold(send, frame, priority);
            return Ok(None);
        }
        let mut bytes = Vec::new();
        frame.as_ref().encode(&mut bytes)?;
        Ok(Some(PlainFrame { bytes, state, priority }))
    }

    /// A newer state of a channel comes: one that has not left need not leave any more.
    fn supersede(&mut self, channel: u32) {
        let waits = self.plain.take_state(channel);
        self.outcomes.extend(waits.map(|send| (send, Err(Failure::Superseded))));
        for held in self.held.iter_mut() {
            if let Some(at) = held.iter().position(|held| held.state == Some(channel)) {
                let held = held.remove(at);
                self.outcomes.extend(held.map(|held| (held.send, Err(Failure::Superseded))));
            }
        }
        let waits = |message: &Outgoing| message.state == Some(channel) && !message.has_begun();
        if let Some(at) = self.outgoing.iter().position(waits) {
            self.end(at, Err(Failure::Superseded));
        }
    }

    /// Takes in messages that wait, while there are places and numbers for them.
    fn admit(&mut self, now: Instant) {
        for priority in Priority::ALL {
            while self.has_place(priority) {
                let Some(held) = self.held.get_mut(priority).pop_front() else { break };
                self.begin(now, held);
            }
        }
    }

    /// Returns true if a message of this priority may be taken in.
    fn has_place(&self, priority: Priority) -> bool {
        let Some(held) = self.held.get(priority).front() else { return false };
        // What is lower does not take all places of what is higher.
        let places = match priority {
            // One of each other may come beside these.
            Priority::High => Self::OUTGOING_MAX - 2,
            Priority::Normal => Self::OUTGOING_MAX / 4 * 3,
            Priority::Bulk => Self::OUTGOING_MAX / 2,
        };
        let is_first = || self.outgoing.iter().all(|message| message.priority != priority);
        let has_place = self.outgoing.len() < places || is_first();
        let oldest = || self.outgoing.iter().filter_map(Outgoing::msg_id).min();
        has_place && (!held.acknowledged || self.numbers.has_next(oldest()))
    }

    fn begin(&mut self, now: Instant, held: Held) {
        let Held { send, frame, acknowledged, state, priority } = held;
        let number = acknowledged.then(|| self.numbers.take_next());
        let give_up = if acknowledged { self.patience.give_up } else { Self::STALLED_MAX };
        let frame = match number {
            None => Ok(frame),
            Some(number) => numbered(frame, number),
        };
        match frame {
            Ok(frame) => {
                let mut message = Outgoing::new(now, send, frame, number, give_up);
                (message.state, message.priority) = (state, priority);
                self.outgoing.push_back(message);
            }
            Err(failure) => self.outcomes.push_back((send, Err(failure))),
        }
    }

    /// Bounds what has the lowest priority to so many bytes a second.
    pub(super) fn set_cap(&mut self, now: Instant, bytes_per_second: Option<u64>) {
        match (&mut self.cap, bytes_per_second) {
            (Some(cap), Some(bytes_per_second)) => cap.set_rate(now, bytes_per_second),
            (cap, _) => *cap = bytes_per_second.map(|bytes_per_second| Cap::new(now, bytes_per_second)),
        }
        self.cap_at = None;
    }

    /// An ACK came; `reports` if it is of somebody who says what has arrived. Returns false if
    /// it is for nothing that was sent (case 74).
    pub(super) fn handle_ack(&mut self, now: Instant, msg_id: u64, payload: &[u8], reports: bool) -> bool {
        if self.unacknowledged.handle_ack(now, msg_id, payload, reports, &mut self.flow) {
            self.tell_outcomes();
            return true;
        }
        let Some(at) = self.outgoing.iter().position(|message| message.msg_id() == Some(msg_id)) else {
            return false;
        };
        self.end(at, Ok(()));
        true
    }

    /// A report of arrivals came. Returns false if it is about nothing that was sent (case 74).
    pub(super) fn handle_arrived(&mut self, now: Instant, arrived: &Arrived) -> bool {
        self.unacknowledged.handle_arrived(now, arrived, &mut self.flow)
    }

    fn end(&mut self, at: usize, outcome: Result<(), Failure>) {
        if let Some(message) = self.outgoing.remove(at) {
            self.flow.on_forgotten(message.in_flight());
            if !message.told {
                self.outcomes.push_back((message.send(), outcome));
            }
        }
    }

    /// A report came. None if it is about nothing that was sent (case 74); else whether its number
    /// could not be guessed.
    pub(super) fn handle_report(&mut self, now: Instant, report: &Report, came: Option<u32>) -> Option<bool> {
        if self.plain.handle_report(now, report.id, came, &mut self.flow) {
            self.reports = Reports::Yes(now);
            return Some(false);
        }
        // Their numbers come round: old ones are others'.
        let probe = self.probing.probes.iter().position(|(id, _)| *id == report.id);
        let is_new = self.probing.sent_at.is_some_and(|at| now < at + Self::PROBE_AGE_MAX);
        if let Some(at) = probe.filter(|_| is_new) {
            let (_, size) = self.probing.probes.swap_remove(at);
            self.on_probe_reported(now, report, size);
            return Some(false);
        }
        let at = self.outgoing.iter().position(|message| message.has_id(report.id))?;
        self.reports = Reports::Yes(now);
        self.active_at = now;
        let message = self.outgoing.get_mut(at)?;
        // That all of it was received is not yet that the application has it.
        if message.handle_report(now, report, &mut self.flow) && message.msg_id().is_none() {
            self.end(at, Ok(()));
        }
        Some(report.id > u64::from(u32::MAX))
    }

    fn on_probe_reported(&mut self, now: Instant, report: &Report, size: usize) {
        if let Some(sent_at) = self.probing.sent_at {
            let delay = Duration::from_micros(report.delay_us.into());
            self.flow.rtt.on_measured(now.saturating_duration_since(sent_at).saturating_sub(delay));
        }
        self.datagram = self.datagram.max(size);
        self.reports = Reports::Yes(now);
        self.active_at = now;
    }

    /// The peer refuses a frame that waits for its ACK; false if none with this number does.
    pub(super) fn handle_refused(&mut self, now: Instant, msg_id: u64, code: impl Fn() -> String) -> bool {
        if self.unacknowledged.handle_refused(now, msg_id, code(), &mut self.flow) {
            self.tell_outcomes();
            return true;
        }
        let Some(at) = self.outgoing.iter().position(|message| message.msg_id() == Some(msg_id)) else {
            return false;
        };
        self.end(at, Err(Failure::refused(code())));
        true
    }

    /// The peer refuses a message.
    pub(super) fn handle_refusal(&mut self, id: u64, code: &str) {
        if let Some(at) = self.outgoing.iter().position(|message| message.has_id(id)) {
            self.end(at, Err(Failure::refused(code.to_owned())));
        }
    }

    /// Gives up on everything, for this reason.
    pub(super) fn abandon(&mut self, reason: &Failure) {
        while !self.outgoing.is_empty() {
            self.end(0, Err(reason.clone()));
        }
        let held = self.held.iter_mut().flat_map(|held| held.drain(..));
        self.outcomes.extend(held.map(|held| (held.send, Err(reason.clone()))));
        self.unacknowledged.abandon(reason, &mut self.flow);
        self.plain.abandon(reason, &mut self.outcomes);
        self.tell_outcomes();
        self.probing = Probing::default();
    }

    /// Gives up on everything whose time is over, and takes for lost what nobody reported.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.unacknowledged.handle_timeout(now, &mut self.flow);
        self.tell_outcomes();
        for message in &mut self.outgoing {
            message.detect_lost(now, &mut self.flow);
            message.ask_for_ack(now, self.patience.timeout_max);
        }
        let reports = self.is_reporting(now);
        if let Some(since) = self.plain.handle_timeout(now, &mut self.flow, reports)
            && !matches!(self.reports, Reports::Yes(at) if at > since)
        {
            self.reports = Reports::No(now);
        }
        self.handle_silence(now);
        self.settle(now);
    }

    fn tell_outcomes(&mut self) {
        self.outcomes.extend(std::iter::from_fn(|| self.unacknowledged.poll_outcome()));
    }

    /// The retransmission timeout of what is on its way.
    fn handle_silence(&mut self, now: Instant) {
        // The path is silent where no message is reported at all.
        let path_is_silent = now >= self.active_at + self.flow.rtt.timeout();
        if self.is_reporting(now) {
            let is_silent = |message: &Outgoing, flow: &Flow| {
                message.silent_at(&flow.rtt) <= Some(now) && message.silent_at(&flow.rtt).is_some()
            };
            let mut has_lost = false;
            for message in &mut self.outgoing {
                if is_silent(message, &self.flow) {
                    has_lost |= !message.is_shut();
                    message.on_timeout(now, &mut self.flow);
                }
            }
            if has_lost && path_is_silent {
                self.active_at = now;
                self.flow.on_timeout(now);
            }
            return self.shrink();
        }
        if !self.on_way() || !path_is_silent {
            return;
        }
        self.active_at = now;
        self.flow.rtt.on_timeout();
        if self.outgoing.iter().any(|message| message.sent_at().is_some()) {
            // Nobody reports. What wants an acknowledgement goes out once more, as a whole.
            self.reports = Reports::No(now);
            let wanted = |message: &&mut Outgoing| message.sent_at().is_some() && message.msg_id().is_some();
            self.outgoing.iter_mut().filter(wanted).for_each(|message| message.uncut(&mut self.flow));
        }
    }

    /// Cuts anew what does not get through, as it may be too large for the path.
    fn shrink(&mut self) {
        if self.datagram > Self::DATAGRAM && self.outgoing.iter().any(Outgoing::is_stuck) {
            self.datagram = Self::DATAGRAM;
            let large = self.outgoing.iter_mut().filter(|message| message.datagram() > Self::DATAGRAM);
            large.for_each(|message| message.recut(&mut self.flow));
        }
    }

    fn is_reporting(&self, now: Instant) -> bool {
        matches!(self.reporting(now), Reports::Yes(_))
    }

    fn on_way(&self) -> bool {
        self.outgoing.iter().any(Outgoing::waits_for_report)
    }

    /// Ends what is over, and tells of what counts as sent.
    fn settle(&mut self, now: Instant) {
        let reporting = self.is_reporting(now);
        let probed = self.probing.attempts >= Self::PROBES_MAX && self.probe_at() <= Some(now);
        for at in (0..self.outgoing.len()).rev() {
            let Some(message) = self.outgoing.get_mut(at) else { continue };
            if message.give_up_at() <= now {
                // The time of one that waits behind others has not begun.
                if !message.has_begun() && now < self.left_at + self.patience.give_up {
                    message.wait_for_turn(now);
                    continue;
                }
                self.end(at, Err(Failure::TimedOut));
                continue;
            }
            if reporting {
                continue;
            }
            if probed && message.total().is_none() {
                // The next message asks again: who is there may have changed.
                self.probing = Probing::default();
                self.end(at, Err(Failure::TooLarge));
                continue;
            }
            let Some(message) = self.outgoing.get_mut(at) else { continue };
            let sent = message.msg_id().is_none().then(|| message.sent_at()).flatten();
            let known = matches!(self.reports, Reports::No(_));
            if sent.is_some() && known {
                self.end(at, Ok(()));
            } else if sent.is_some_and(|sent_at| now >= sent_at + Self::GRACE) && !message.told {
                // It stays for a while, in case that a report comes after all.
                message.told = true;
                self.outcomes.push_back((message.send(), Ok(())));
            }
        }
    }

    fn probe_at(&self) -> Option<Instant> {
        let sent_at = self.probing.sent_at?;
        let doublings = self.probing.attempts.saturating_sub(1).min(8);
        Some(sent_at + (Self::PROBE_INTERVAL * (1 << doublings)).min(Self::PROBE_INTERVAL_MAX))
    }

    /// Takes a small frame that wants no acknowledgement. Returns true if its sender need not wait
    /// until it has left.
    pub(super) fn push_plain(&mut self, send: SendId, frame: PlainFrame) -> Result<bool, Failure> {
        self.plain.push(send, frame)
    }

    /// What became of a message.
    pub(super) fn poll_outcome(&mut self) -> Option<(SendId, Result<(), Failure>)> {
        let (send, result) = self.outcomes.pop_front()?;
        let behind = self.ordering.on_outcome(send, &result);
        if !behind.is_empty() {
            self.unacknowledged.cancel(&behind, &Failure::ChannelBroken, &mut self.flow);
            self.tell_outcomes();
        }
        Some((send, result))
    }

    /// When something has to be done next.
    pub(super) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let waiting = self.unacknowledged.poll_timeout();
        let reporting = self.is_reporting(now);
        let silence = if reporting {
            self.outgoing.iter().filter_map(|message| message.silent_at(&self.flow.rtt)).min()
        } else {
            self.on_way().then(|| self.active_at + self.flow.rtt.timeout())
        };
        let messages = self.outgoing.iter().flat_map(|message| {
            let untold = !reporting && !message.told && message.msg_id().is_none();
            let grace = message.sent_at().filter(|_| untold).map(|at| at + Self::GRACE);
            [Some(message.give_up_at()), message.loss_at(), grace, message.ask_at()]
        });
        let probed = !reporting && self.outgoing.iter().any(|message| message.total().is_none());
        // What waits for a proof of the address waits for that, and not for a time that has passed.
        let probe = self.probe_at().filter(|at| probed && *at > now);
        let pace = self.pace_at.into_iter().chain(self.cap_at).filter(|at| *at > now).min();
        let plain = self.plain.poll_timeout(now, &self.flow);
        messages.chain([waiting, silence, pace, probe, plain]).flatten().min()
    }
}
