//! Everything that comes from one address: unfinished messages, and what has been seen already.

use super::acknowledgement::Acknowledgement;
use super::arrivals::Arrivals;
use super::budget::{Admission, Budget, Usage};
use super::error_code::ErrorCode;
use super::fragment::{Fragment, Report, write_probe_report, write_refusal};
use super::frame::{Flags, FrameBytes, FrameRef};
use super::inbox::Amount;
use super::ordered::Ordered;
use super::reassembly::{Reassembly, Taken};
use super::seen::Seen;
use super::sequenced::Newest;
use super::streams::{Known, Streams};
use super::whole::{Outcome, Room, WholePayload, WholePayloads};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

/// The fate of a fragment.
#[derive(Debug, PartialEq)]
pub(super) enum Got {
    /// It is kept, or was there already.
    Kept,
    /// It completed this message.
    Message(FrameBytes),
    /// Its message is complete already, and asks for this acknowledgement, if it asks for one.
    Complete(Option<Acknowledgement>),
    /// There was no room for it, or it was refused.
    Refused,
    /// Its message has just begun to wait for admission.
    Waits,
    /// Other strangers have what it needs.
    Full,
}

/// The surroundings of one address: what all others of its kind take, and what may be taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope<'a> {
    /// Without what this address takes.
    pub(super) budget: &'a Budget,
    /// Frames that all addresses of this kind hold for the application.
    pub(super) all: Amount,
    /// Those of this one.
    pub(super) own: Amount,
    /// It has proved nothing: it is not told that there is no room.
    pub(super) is_stranger: bool,
    /// Others wait for admission.
    pub(super) others_wait: bool,
    /// Bytes of a large message that a known address might begin now.
    pub(super) known_free: usize,
}

impl Scope<'_> {
    /// The fate of a fragment for which there would be room without the messages of others.
    fn others_have_it(&self) -> Got {
        if self.is_stranger { Got::Full } else { Got::Refused }
    }
}

/// The end of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// All of so many fragments came, and the message asks for this acknowledgement.
    Complete(u32, Option<Acknowledgement>),
    /// It was refused with this code.
    Refused(ErrorCode),
}

/// The receiving half of one address.
#[derive(Debug, Default)]
pub(super) struct Receiving {
    incoming: BTreeMap<u64, Reassembly>,
    /// The memory that these take.
    used: Usage,
    /// Messages that wait for admission, in the order in which they came.
    waiting: VecDeque<u64>,
    /// Unfinished messages whose fragments carry the whole payload each.
    whole: WholePayloads,
    /// The address has sent a message so, and then sends all so.
    sends_whole: bool,
    /// Messages that ended, for those who send a fragment of them again.
    ended: HashMap<u64, (Instant, Ended)>,
    ended_order: VecDeque<(Instant, u64)>,
    /// Numbers of such messages, of senders that use each once: these are known for longer.
    ended_numbers: Streams,
    /// Frames with REQ_ACK that were received.
    pub(super) seen: Seen,
    /// Those of them that are small, wait for their application, and have not been reported.
    pub(super) arrivals: Arrivals,
    /// The newest states of its channels.
    pub(super) newest: Newest,
    /// Its ordered channels.
    pub(super) ordered: Ordered,
    /// Small frames that came and want no acknowledgement, modulo 2^32.
    pub(super) plain_came: u32,
    /// Answers about messages that are not under way.
    answers: VecDeque<Vec<u8>>,
}

impl Receiving {
    /// Numbers below 256, which come back, are remembered for so long after the message has ended:
    /// as long as a sender tries. All others for [`Seen::AGE_MAX`].
    const MEMORY_CLASSIC: Duration = Duration::from_secs(35);
    const REMEMBERED_MAX: usize = 4096;
    const ANSWERS_MAX: usize = 64;
    /// Bytes of a message that are taken before its sender has proved itself.
    const STRANGER_MAX: usize = 512 << 10;

    /// The number of unfinished messages.
    pub(super) fn unfinished(&self) -> usize {
        self.incoming.len() + self.whole.len()
    }

    /// The memory that unfinished messages take.
    pub(super) fn usage(&self) -> Usage {
        let whole = self.whole.memory();
        let mut used = self.used;
        used.add(Usage { messages: self.whole.len(), memory: whole, reserved: whole, waiting: 0 });
        used
    }

    /// Returns true if nothing is under way, to be said, or unacknowledged.
    pub(super) fn is_idle(&self) -> bool {
        self.unfinished() == 0 && self.answers.is_empty() && self.seen.is_settled()
    }

    /// Takes a fragment.
    pub(super) fn handle_fragment(
        &mut self,
        now: Instant,
        frame: &FrameRef<'_>,
        fragment: Fragment,
        scope: &Scope<'_>,
    ) -> Got {
        let id = fragment.id;
        let whole = WholePayload::recognize(frame, &fragment);
        if let Some(whole) = whole.filter(|whole| whole.is_certain() || self.sends_whole) {
            return self.handle_whole(now, frame, fragment, &whole, scope);
        }
        if fragment.probe {
            if fragment.wants_reports {
                let came = self.plain_came;
                self.answer(|out| write_probe_report(id, came, out));
            }
            return Got::Kept;
        }
        if let Some(replaced) = fragment.replaces.filter(|_| fragment.wants_reports) {
            self.replace(now, replaced, fragment);
        }
        if fragment.wants_reports {
            match self.ended(now, id) {
                Some(Ended::Complete(total, wanted)) if total == fragment.total => {
                    let report = Report { id, base: total, limit: total, delay_us: 0, bitmap: Vec::new() };
                    self.answer(|out| report.write(out));
                    return Got::Complete(wanted);
                }
                Some(Ended::Refused(code)) => {
                    self.answer(|out| write_refusal(id, code, out));
                    return Got::Refused;
                }
                None if matches!(self.ended_numbers.peek(id), Known::Came { .. }) => {
                    let total = fragment.total;
                    let report = Report { id, base: total, limit: total, delay_us: 0, bitmap: Vec::new() };
                    self.answer(|out| report.write(out));
                    // The number of the message is among the headers of each fragment.
                    let asks = frame.flags.contains(Flags::REQ_ACK);
                    return Got::Complete(Acknowledgement::of(frame.headers, 0).filter(|_| asks));
                }
                _ => {}
            }
        }
        if let Some(code) = self.refuses(&fragment, frame.payload.len(), scope) {
            self.remove(id);
            if fragment.wants_reports && (code != ErrorCode::Busy || !scope.is_stranger) {
                self.answer(|out| write_refusal(id, code, out));
            }
            let is_own = self.unfinished() >= scope.budget.limits.peer_messages_max;
            return if code == ErrorCode::Busy && !is_own { scope.others_have_it() } else { Got::Refused };
        }
        let announced = scope.budget.clamp(fragment.announced(frame.payload.len()));
        let reserved_max = if scope.is_stranger { Self::STRANGER_MAX } else { usize::MAX };
        let more = match self.incoming.get(&id) {
            _ if !fragment.wants_reports => 0,
            None => announced.min(reserved_max),
            Some(message) => message.announces_more(announced),
        };
        // A part of it is taken before its sender has proved itself if the rest can follow then.
        let can_follow = announced <= reserved_max || announced <= scope.known_free;
        let has_begun = self.incoming.contains_key(&id);
        let in_turn = has_begun || !scope.others_wait || announced <= Budget::SMALL_MESSAGE_MAX;
        let fits = || self.admission(more, scope) == Admission::Now;
        let admitted = more == 0 || (can_follow && in_turn && fits());
        let begin = || Reassembly::new(now, frame, fragment);
        let before = self.incoming.get(&id).map_or_else(Usage::default, Reassembly::usage);
        let free = self.free(scope);
        let reassembly = self.incoming.entry(id).or_insert_with(begin);
        if !admitted {
            reassembly.wait();
            self.waiting.push_back(id);
        }
        reassembly.announce(announced);
        if more > 0 {
            reassembly.reserve_at_most(reserved_max);
        }
        let same = whole.is_none_or(|whole| reassembly.has_front(frame, whole.headers()));
        let mut taken = if same {
            reassembly.handle_fragment(now, fragment, frame.payload, free)
        } else {
            Taken::Contradiction
        };
        match whole {
            None => reassembly.on_slice(),
            // The number has come again, with another message of a sender that does not count.
            Some(_) if taken == Taken::Contradiction => {
                *reassembly = begin();
                taken = reassembly.handle_fragment(now, fragment, frame.payload, free);
            }
            Some(_) => {}
        }
        self.used.subtract(before);
        self.used.add(reassembly.usage());
        let complete = reassembly.is_complete();
        // It will never fit, so there is no use in waiting for room.
        let came = reassembly.kept().saturating_add(frame.payload.len());
        let is_too_large = !fragment.nested && came > scope.budget.limits.message_bytes_max;
        match taken {
            Taken::Beyond | Taken::NoMemory if is_too_large => {
                self.remove(id);
                self.refuse(now, fragment, ErrorCode::TooLarge)
            }
            Taken::New if complete => self.complete(now, id, fragment, scope),
            Taken::New | Taken::Again => Got::Kept,
            Taken::Beyond | Taken::NoMemory if !admitted => Got::Waits,
            Taken::Beyond => Got::Refused,
            Taken::NoMemory => self.without_memory(frame.payload.len(), scope),
            Taken::Contradiction => {
                self.remove(id);
                self.refuse(now, fragment, ErrorCode::Malformed)
            }
        }
    }

    /// Decides whether so many bytes may be reserved.
    fn admission(&self, announced: usize, scope: &Scope<'_>) -> Admission {
        scope.budget.admission(scope.all, scope.own, self.usage(), announced)
    }

    /// Decides whether the message that waits and came first may begin.
    pub(super) fn first_admission(&self, scope: &Scope<'_>) -> Admission {
        let Some(first) = self.waiting.front().and_then(|id| self.incoming.get(id)) else {
            return Admission::NotBeforeOwn;
        };
        let (_, announced) = first.waits_since();
        // All of a large one is for those who have proved themselves: it waits for that.
        if scope.is_stranger && announced > Self::STRANGER_MAX {
            return Admission::NotBeforeOwn;
        }
        // What it keeps counts already.
        self.admission(announced.saturating_sub(first.usage().reserved), scope)
    }

    /// Returns true if a message waits for admission.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The message that waits for admission and came first: when it came, and what it announced.
    pub(super) fn first_waiting(&self) -> Option<(Instant, usize)> {
        self.waiting.front().and_then(|id| self.incoming.get(id)).map(Reassembly::waits_since)
    }

    /// Admits that message: its sender is told.
    pub(super) fn admit(&mut self, now: Instant) {
        let Some(id) = self.waiting.pop_front() else { return };
        let Some(reassembly) = self.incoming.get_mut(&id) else { return };
        self.used.subtract(reassembly.usage());
        reassembly.admit(now);
        self.used.add(reassembly.usage());
    }

    /// The address has proved itself: messages of which only a part was admitted wait for the rest,
    /// or are refused if those that wait keep too much already.
    pub(super) fn on_proved(&mut self, now: Instant, scope: &Scope<'_>) {
        let is_part = |message: &Reassembly| message.is_partial() && !message.is_waiting();
        let parts = self.incoming.iter().filter(|(_, message)| is_part(message));
        let parts: Vec<u64> = parts.map(|(id, _)| *id).collect();
        for id in parts {
            let used = self.usage();
            let Some(message) = self.incoming.get_mut(&id) else { continue };
            if !scope.budget.keeps_waiting(used, message.kept()) {
                self.give_up(now, id);
                continue;
            }
            self.used.subtract(message.usage());
            message.wait();
            self.used.add(message.usage());
            self.waiting.push_back(id);
        }
    }

    /// Drops a message that has begun: its sender is told that there is no room.
    fn give_up(&mut self, now: Instant, id: u64) {
        self.remove(id);
        self.answer(|out| write_refusal(id, ErrorCode::Busy, out));
        self.end(now, id, Ended::Refused(ErrorCode::Busy));
    }

    /// Drops all unfinished messages; says how many.
    pub(super) fn drop_unfinished(&mut self) -> usize {
        let count = self.unfinished();
        self.incoming.clear();
        self.waiting.clear();
        self.used = Usage::default();
        self.whole = WholePayloads::default();
        count
    }

    /// Takes a fragment that carries the whole payload. A message that is too large is refused when
    /// it is complete, in words.
    fn handle_whole(
        &mut self,
        now: Instant,
        frame: &FrameRef<'_>,
        fragment: Fragment,
        whole: &WholePayload<'_>,
        scope: &Scope<'_>,
    ) -> Got {
        let limits = &scope.budget.limits;
        let others = scope.budget.used.messages;
        let messages = limits.messages_max.saturating_sub(others).min(limits.peer_messages_max);
        let messages = messages.saturating_sub(self.unfinished());
        let room = Room { messages, bytes: self.free(scope) };
        match self.whole.handle_fragment(now, frame, fragment, whole, room) {
            Outcome::Kept => Got::Kept,
            Outcome::Refused => self.without_memory(frame.payload.len(), scope),
            Outcome::Complete(message) => {
                self.sends_whole = true;
                Got::Message(message)
            }
        }
    }

    /// The next message that is handed on although fragments are missing, which carry what is there
    /// already.
    pub(super) fn poll_sufficient(&mut self, now: Instant, age_max: Duration) -> Option<FrameBytes> {
        let message = self.whole.poll_sufficient(now, age_max)?;
        self.sends_whole = true;
        Some(message)
    }

    /// The reason for which a message may not begin; None if it has begun or may.
    fn refuses(&self, fragment: &Fragment, len: usize, scope: &Scope<'_>) -> Option<ErrorCode> {
        let limits = &scope.budget.limits;
        // All but the last are of one size, which is at least that of the last, and not nothing.
        let size_min = u64::from(fragment.total - 1).saturating_mul(len.max(1) as u64);
        let too_large = size_min > limits.message_bytes_max as u64
            || (fragment.wants_reports && !scope.is_stranger && scope.budget.never_admits(size_min));
        if too_large {
            return Some(ErrorCode::TooLarge);
        }
        if self.incoming.contains_key(&fragment.id) {
            return None;
        }
        let (mine, others) = (self.unfinished(), scope.budget.used.messages);
        let free = limits.messages_max.saturating_sub(mine + others);
        // One address has at most as many as are free beside them all, so that some always are.
        let share = if scope.is_stranger { usize::MAX } else { free };
        let full = free == 0 || mine >= limits.peer_messages_max.min(share);
        full.then_some(ErrorCode::Busy)
    }

    /// The message has been cut anew: what is there of it is of no use, unless it is all.
    fn replace(&mut self, now: Instant, replaced: u64, fragment: Fragment) {
        match self.ended(now, replaced) {
            Some(Ended::Complete(_, wanted)) if self.ended(now, fragment.id).is_none() => {
                self.end(now, fragment.id, Ended::Complete(fragment.total, wanted));
            }
            Some(_) => {}
            None if matches!(self.ended_numbers.peek(replaced), Known::Came { .. }) => {
                self.end(now, fragment.id, Ended::Complete(fragment.total, None));
            }
            None => {
                self.remove(replaced);
                self.end(now, replaced, Ended::Refused(ErrorCode::Malformed));
            }
        }
    }

    /// Records the acknowledgement that a message that has just become complete asks for.
    pub(super) fn on_wanted(&mut self, id: u64, acknowledgement: Acknowledgement) {
        if let Some((_, Ended::Complete(_, wanted))) = self.ended.get_mut(&id) {
            *wanted = Some(acknowledgement);
        }
    }

    /// Bytes that are not reserved.
    fn free(&self, scope: &Scope<'_>) -> usize {
        scope.budget.free(scope.all, self.usage().reserved)
    }

    /// The fate of a payload for which there is no memory.
    fn without_memory(&self, len: usize, scope: &Scope<'_>) -> Got {
        let would_fit = len <= scope.budget.free_alone(scope.all, self.usage().reserved);
        if would_fit { scope.others_have_it() } else { Got::Refused }
    }

    fn complete(&mut self, now: Instant, id: u64, fragment: Fragment, scope: &Scope<'_>) -> Got {
        let Some(mut reassembly) = self.remove(id) else { return Got::Refused };
        let report = reassembly.report(now, 0);
        self.sends_whole |= reassembly.repeats();
        let Some(message) = reassembly.finish() else {
            return self.refuse(now, fragment, ErrorCode::Malformed);
        };
        // What its fragments announced is no more than about this.
        if message.payload.len() > scope.budget.limits.message_bytes_max {
            return self.refuse(now, fragment, ErrorCode::TooLarge);
        }
        if fragment.wants_reports {
            self.answer(|out| report.write(out));
        }
        self.end(now, id, Ended::Complete(fragment.total, None));
        Got::Message(message)
    }

    fn refuse(&mut self, now: Instant, fragment: Fragment, code: ErrorCode) -> Got {
        if fragment.wants_reports {
            self.answer(|out| write_refusal(fragment.id, code, out));
        }
        self.end(now, fragment.id, Ended::Refused(code));
        Got::Refused
    }

    fn remove(&mut self, id: u64) -> Option<Reassembly> {
        let removed = self.incoming.remove(&id)?;
        self.used.subtract(removed.usage());
        if removed.is_waiting() {
            self.waiting.retain(|waiting| *waiting != id);
        }
        Some(removed)
    }

    fn answer(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if self.answers.len() < Self::ANSWERS_MAX {
            let mut out = Vec::new();
            write(&mut out);
            self.answers.push_back(out);
        }
    }

    fn ended(&self, now: Instant, id: u64) -> Option<Ended> {
        let age_max = if id < 256 { Self::MEMORY_CLASSIC } else { Seen::AGE_MAX };
        let (at, ended) = self.ended.get(&id)?;
        (now.saturating_duration_since(*at) < age_max).then_some(*ended)
    }

    fn end(&mut self, now: Instant, id: u64, ended: Ended) {
        while let Some(&(at, id)) = self.ended_order.front() {
            if now.saturating_duration_since(at) < Seen::AGE_MAX
                && self.ended_order.len() < Self::REMEMBERED_MAX
            {
                break;
            }
            self.ended_order.pop_front();
            if self.ended.get(&id).is_some_and(|(since, _)| *since <= at) {
                self.ended.remove(&id);
            }
        }
        if id > u64::from(u32::MAX) && matches!(ended, Ended::Complete(..)) {
            self.ended_numbers.settle(id, true);
        }
        self.ended.insert(id, (now, ended));
        self.ended_order.push_back((now, id));
    }

    /// Drops what has had nothing new for too long, and if `others_wait` what uses too little of
    /// its reservation; says how many.
    pub(super) fn handle_timeout(&mut self, now: Instant, age_max: Duration, others_wait: bool) -> usize {
        let old = |message: &Reassembly| now.saturating_duration_since(message.progress_at()) >= age_max;
        let expired: Vec<u64> =
            self.incoming.iter().filter(|(_, message)| old(message)).map(|(id, _)| *id).collect();
        expired.iter().for_each(|id| drop(self.remove(*id)));
        let mut slow = Vec::new();
        for (id, message) in &mut self.incoming {
            if message.period_ends_at(age_max).is_some_and(|end| end <= now) && message.end_period(now) {
                slow.push(*id);
            }
        }
        slow.retain(|_| others_wait);
        slow.iter().for_each(|id| self.give_up(now, *id));
        expired.len() + slow.len() + self.whole.drop_expired(now, age_max)
    }

    /// The next report or refusal to send, if one is due; `free` bytes are not reserved.
    pub(super) fn poll_answer(&mut self, now: Instant, free: usize) -> Option<Vec<u8>> {
        if let Some(answer) = self.answers.pop_front() {
            return Some(answer);
        }
        if let Some(report) = self.arrivals.poll_report(now) {
            return Some(report);
        }
        let due = |reassembly: &&mut Reassembly| reassembly.report_at().is_some_and(|at| at <= now);
        let report = self.incoming.values_mut().find(due)?.report(now, free);
        let mut out = Vec::new();
        report.write(&mut out);
        Some(out)
    }

    /// The time at which something has to be done.
    pub(super) fn poll_timeout(&self, age_max: Duration) -> Option<Instant> {
        let expiry = self.incoming.values().map(|message| message.progress_at() + age_max).min();
        let period = self.incoming.values().filter_map(|message| message.period_ends_at(age_max)).min();
        let report = self.incoming.values().filter_map(Reassembly::report_at).min();
        let arrivals = self.arrivals.poll_timeout();
        let (whole, ordered) = (self.whole.poll_timeout(age_max), self.ordered.poll_timeout());
        [expiry, period, report, arrivals, whole, ordered].into_iter().flatten().min()
    }
}
