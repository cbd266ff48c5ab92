//! One message that arrives in fragments.

use super::budget::Usage;
use super::fragment::{Fragment, Report, WINDOW_MAX};
use super::frame::{Flags, FrameBytes, FrameRef, FrameType, Headers, HeadersBuf};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The worth of a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is new.
    New,
    /// It was there already.
    Again,
    /// It is not taken now, however much memory there is.
    Beyond,
    /// There is no memory for it now.
    NoMemory,
    /// It contradicts what is there: the message must be dropped (case 72).
    Contradiction,
}

/// The fragments of one message, in a buffer as far as they follow each other, and beside it those
/// that came early.
#[derive(Debug)]
pub(super) struct Reassembly {
    typ: FrameType,
    flags: Flags,
    headers: HeadersBuf,
    fragment: Fragment,
    /// The payload of every fragment but the last.
    slice: Option<usize>,
    /// The payload of the last one, once it is there.
    last: Option<usize>,
    data: Vec<u8>,
    base: u32,
    early: BTreeMap<u32, Vec<u8>>,
    early_bytes: usize,
    /// The time at which something new came.
    progress_at: Instant,
    newest_at: Instant,
    /// Fragments since the last report.
    unreported: u32,
    urgent: bool,
    /// Every fragment may carry the whole payload.
    may_repeat: bool,
    /// Bytes of the whole, as far as is known.
    announced: usize,
    /// The most that is reserved for it.
    reserved_max: usize,
    admission: Admission,
    began_at: Instant,
    /// The beginning of the period in which its part has to come, and the bytes that were there.
    period: (Instant, usize),
}

/// The place of a message among those for which there is memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Admission {
    /// As much as it announced is reserved, if its sender takes reports.
    Admitted,
    /// Nothing of it is taken.
    Waiting,
}

impl Reassembly {
    /// The most that a report may be late.
    const REPORT_DELAY: Duration = Duration::from_millis(10);
    /// As many new fragments are worth a report.
    const REPORT_EVERY: u32 = 2;
    /// Bytes that a message keeps beside its payload, about.
    const MEMORY: usize = 512;
    const EARLY_MEMORY: usize = 64;
    const CAPACITY_FIRST: usize = 64 << 10;
    /// While others wait, one part in so many of what is reserved has to come in each period.
    const PERIOD_PART: usize = 16;

    /// Nothing is there yet of the message of which this is a fragment.
    pub(super) fn new(now: Instant, frame: &FrameRef<'_>, fragment: Fragment) -> Self {
        let mut headers = HeadersBuf::default();
        for (key, value) in frame.headers.iter().filter(|(key, _)| !Fragment::is_own(key)) {
            // They fitted with others beside them.
            let _ = headers.push(key, value);
        }
        Self {
            typ: frame.typ,
            flags: frame.flags - Flags::FRAG,
            headers,
            fragment,
            slice: None,
            last: None,
            data: Vec::new(),
            base: 0,
            early: BTreeMap::new(),
            early_bytes: 0,
            progress_at: now,
            newest_at: now,
            unreported: 0,
            urgent: false,
            may_repeat: true,
            announced: 0,
            reserved_max: usize::MAX,
            admission: Admission::Admitted,
            began_at: now,
            period: (now, 0),
        }
    }

    /// The memory that it takes.
    pub(super) fn usage(&self) -> Usage {
        let memory = self.memory();
        let waiting = if self.is_waiting() { self.kept() } else { 0 };
        let reserved = match self.admission {
            Admission::Waiting => waiting,
            Admission::Admitted if self.fragment.wants_reports => {
                memory.max(self.announced.min(self.reserved_max))
            }
            Admission::Admitted => memory,
        };
        Usage { messages: 1, memory, reserved, waiting }
    }

    /// Bytes of memory that it keeps of its fragments.
    pub(super) fn kept(&self) -> usize {
        self.data.capacity() + self.early_bytes + self.early.len() * Self::EARLY_MEMORY
    }

    /// Bytes that a fragment announces beyond what is reserved.
    pub(super) fn announces_more(&self, announced: usize) -> usize {
        let is_known = self.slice.is_some() || self.is_waiting();
        if is_known { 0 } else { announced.saturating_sub(self.announced) }
    }

    /// Records what a fragment says of the size of the whole.
    pub(super) fn announce(&mut self, bytes: usize) {
        // The last one says less than any other.
        if self.slice.is_none() {
            self.announced = self.announced.max(bytes);
        }
    }

    /// It has to wait for admission: nothing of it is taken, and its sender is told so.
    pub(super) fn wait(&mut self) {
        self.admission = Admission::Waiting;
    }

    /// Returns true if it waits for admission.
    pub(super) fn is_waiting(&self) -> bool {
        self.admission == Admission::Waiting
    }

    /// The time at which it began, and the bytes that it announced.
    pub(super) fn waits_since(&self) -> (Instant, usize) {
        (self.began_at, self.announced)
    }

    /// No more than so much is reserved for it now.
    pub(super) fn reserve_at_most(&mut self, bytes: usize) {
        self.reserved_max = bytes;
    }

    /// Returns true if it announced more than what is reserved.
    pub(super) fn is_partial(&self) -> bool {
        self.announced > self.reserved_max
    }

    /// There is memory for all of it.
    pub(super) fn admit(&mut self, now: Instant) {
        self.period = (now, self.bytes());
        self.admission = Admission::Admitted;
        self.reserved_max = usize::MAX;
        self.urgent = true;
    }

    /// Bytes that it may take, where `free` are not reserved.
    fn room(&self, free: usize) -> usize {
        if self.is_waiting() {
            return 0;
        }
        if !self.fragment.wants_reports {
            return free;
        }
        let mine = self.announced.min(self.reserved_max).saturating_sub(self.bytes());
        if self.is_partial() { mine } else { mine.max(free) }
    }

    /// Bytes of memory that it keeps.
    fn memory(&self) -> usize {
        self.kept() + self.headers.as_headers().as_bytes().len() + Self::MEMORY
    }

    /// Bytes of its payload that are there.
    fn bytes(&self) -> usize {
        self.data.len() + self.early_bytes
    }

    /// The end of the period in which a part of what is reserved for it has to come; None if
    /// nothing is reserved.
    pub(super) fn period_ends_at(&self, period: Duration) -> Option<Instant> {
        let has_reserved = self.fragment.wants_reports && !self.is_waiting();
        has_reserved.then(|| self.period.0 + period)
    }

    /// Begins the next period. Returns true if too little came in the last one.
    pub(super) fn end_period(&mut self, now: Instant) -> bool {
        let part = self.announced.min(self.reserved_max) / Self::PERIOD_PART;
        let came = self.bytes().saturating_sub(self.period.1);
        self.period = (now, self.bytes());
        came < part
    }

    /// The time at which something new came last.
    pub(super) fn progress_at(&self) -> Instant {
        self.progress_at
    }

    /// Returns true if all fragments are there.
    pub(super) fn is_complete(&self) -> bool {
        self.base == self.fragment.total
    }

    /// Returns true if a frame has the type, the flags and these headers of the message.
    pub(super) fn has_front(&self, frame: &FrameRef<'_>, headers: Headers<'_>) -> bool {
        (self.typ, self.flags) == (frame.typ, frame.flags - Flags::FRAG)
            && self.headers.as_headers() == headers
    }

    /// Records that a fragment of this message carries a slice, and not the whole payload.
    pub(super) fn on_slice(&mut self) {
        self.may_repeat = false;
    }

    /// Returns true if all fragments are there and each of them carries the whole payload.
    pub(super) fn repeats(&self) -> bool {
        let slice = self.slice.unwrap_or_default();
        let (first, rest) = self.data.split_at_checked(slice).unwrap_or_default();
        self.may_repeat
            && self.is_complete()
            && slice > 0
            && self.last == Some(slice)
            && rest.chunks(slice).all(|other| other == first)
    }

    /// Takes a fragment of this message, if there is memory for it; `free` bytes are not reserved.
    pub(super) fn handle_fragment(
        &mut self,
        now: Instant,
        fragment: Fragment,
        payload: &[u8],
        free: usize,
    ) -> Taken {
        if fragment.total != self.fragment.total || fragment.nested != self.fragment.nested {
            return Taken::Contradiction;
        }
        let is_last = fragment.index + 1 == fragment.total;
        if !self.agrees(is_last, payload.len()) {
            return Taken::Contradiction;
        }
        self.newest_at = now;
        self.unreported += 1;
        if let Some(same) = self.held(fragment.index).map(|there| there == payload) {
            self.urgent = true;
            return if same { Taken::Again } else { Taken::Contradiction };
        }
        let room = self.room(free);
        let waits = self.is_waiting();
        if waits || fragment.index - self.base > self.window(room) {
            self.urgent = true;
            if waits {
                // Its sender is there, and asks.
                self.progress_at = now;
            }
            return Taken::Beyond;
        }
        if payload.len() > room {
            self.urgent = true;
            return Taken::NoMemory;
        }
        if is_last {
            self.last = Some(payload.len());
        } else {
            self.slice = Some(payload.len());
        }
        self.progress_at = now;
        if fragment.index == self.base {
            self.append(payload);
            while let Some(next) = self.early.remove(&self.base) {
                self.early_bytes -= next.len();
                self.append(&next);
            }
        } else {
            // One gap is news; what fills up behind it is not.
            self.urgent |= self.early.is_empty();
            self.early_bytes += payload.len();
            self.early.insert(fragment.index, payload.to_vec());
        }
        self.urgent |= is_last || self.is_complete();
        Taken::New
    }

    /// Returns true if a payload of this length can be one of the others' message.
    fn agrees(&self, is_last: bool, len: usize) -> bool {
        match (is_last, self.slice, self.last) {
            (true, Some(slice), _) => len <= slice,
            (true, None, last) => last.is_none_or(|last| last == len),
            (false, Some(slice), _) => len == slice,
            (false, None, last) => len > 0 && last.is_none_or(|last| last <= len),
        }
    }

    fn held(&self, index: u32) -> Option<&[u8]> {
        if index >= self.base {
            return self.early.get(&index).map(Vec::as_slice);
        }
        // All but the last have the same length, so that their places are known.
        let slice = self.slice.unwrap_or(self.data.len());
        let start = (index as usize).saturating_mul(slice);
        let end = start.saturating_add(slice).min(self.data.len());
        Some(self.data.get(start..end).unwrap_or_default())
    }

    fn append(&mut self, payload: &[u8]) {
        if self.data.capacity() - self.data.len() < payload.len() {
            let whole = (self.fragment.total - self.base) as usize;
            let whole = whole.saturating_mul(self.slice.unwrap_or(payload.len()));
            let more = self.data.len().max(Self::CAPACITY_FIRST);
            let more = more.min(whole.saturating_sub(self.early_bytes)).max(payload.len());
            self.data.reserve_exact(more);
        }
        self.data.extend_from_slice(payload);
        self.base += 1;
    }

    /// Fragments behind the base that may come, with `room` for more bytes. Who takes no reports
    /// is not told how much room there is.
    fn window(&self, room: usize) -> u32 {
        if !self.fragment.wants_reports {
            return WINDOW_MAX;
        }
        let slice = self.slice.or(self.last).unwrap_or(1).max(1);
        u32::try_from(room / slice).map_or(WINDOW_MAX, |window| window.min(WINDOW_MAX))
    }

    /// The time at which a report is due; None if there is nothing to say.
    pub(super) fn report_at(&self) -> Option<Instant> {
        if !self.fragment.wants_reports || (self.unreported == 0 && !self.urgent) {
            return None;
        }
        // Where many came early, a report is long, and what one of them changes is little.
        let every = Self::REPORT_EVERY.max(u32::try_from(self.early.len() / 32).unwrap_or(u32::MAX));
        let now = self.urgent || self.unreported >= every;
        Some(if now { self.newest_at } else { self.newest_at + Self::REPORT_DELAY })
    }

    /// A report of what is there; `free` bytes are not reserved.
    pub(super) fn report(&mut self, now: Instant, free: usize) -> Report {
        self.unreported = 0;
        self.urgent = false;
        let room = self.room(free);
        let limit = self.base.saturating_add(self.window(room));
        let mut bitmap = Vec::new();
        for index in self.early.keys() {
            let bit = (index - self.base - 1) as usize;
            bitmap.resize(bit / 8 + 1, 0_u8);
            if let Some(byte) = bitmap.last_mut() {
                *byte |= 0x80 >> (bit % 8);
            }
        }
        let delay = now.saturating_duration_since(self.newest_at).as_micros();
        let delay_us = u32::try_from(delay).unwrap_or(u32::MAX);
        Report { id: self.fragment.id, base: self.base, limit, delay_us, bitmap }
    }

    /// The message, when all of it is there; None if it is a frame in fragments and that frame is
    /// bad.
    pub(super) fn finish(mut self) -> Option<FrameBytes> {
        debug_assert!(self.is_complete());
        if self.repeats() {
            self.data.truncate(self.slice.unwrap_or_default());
        }
        if self.fragment.nested {
            let (frame, used) = FrameRef::decode(&self.data, usize::MAX).ok()??;
            let payload_at = used - super::frame::CRC_BYTES - frame.payload.len();
            let headers = bytes::Bytes::copy_from_slice(frame.headers.as_bytes());
            let (typ, flags, len, whole) =
                (frame.typ, frame.flags, frame.payload.len(), used == self.data.len());
            let payload = bytes::Bytes::from(self.data).slice(payload_at..payload_at + len);
            return whole.then(|| FrameBytes::from_wire(typ, flags, headers, payload).ok()).flatten();
        }
        Some(FrameBytes::new(self.typ, self.headers, self.data.into()).with_flag(self.flags))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vstp::fragment::Writer;
    use bytes::Bytes;

    const ROOM: usize = 1 << 20;

    fn fragments(len: usize) -> (FrameBytes, Vec<Vec<u8>>) {
        let payload: Vec<u8> = (0..len).map(|i| (i / 7) as u8).collect();
        let headers = HeadersBuf::default().with("a", "b");
        let message = FrameBytes::new(FrameType::Data, headers, Bytes::from(payload));
        let writer = Writer::new(&message.as_ref(), &message.payload, 9, None, 200).unwrap();
        let fragments = (0..writer.total()).map(|index| {
            let mut bytes = Vec::new();
            writer.write(index, &mut bytes);
            bytes
        });
        (message, fragments.collect())
    }

    fn take(at: &mut Option<Reassembly>, now: Instant, bytes: &[u8]) -> Taken {
        let (frame, _) = FrameRef::decode(bytes, 2000).unwrap().unwrap();
        let fragment = Fragment::parse(frame.headers).unwrap();
        let reassembly = at.get_or_insert_with(|| Reassembly::new(now, &frame, fragment));
        reassembly.handle_fragment(now, fragment, frame.payload, ROOM)
    }

    #[test]
    fn any_order_makes_the_message() {
        let now = Instant::now();
        let (message, fragments) = fragments(3000);
        for step in [1, 3, 5, 7, fragments.len() - 1] {
            let mut at = None;
            let mut order: Vec<_> = (0..fragments.len()).map(|i| i * step % fragments.len()).collect();
            order.extend(0..fragments.len());
            for index in order {
                if at.as_ref().is_some_and(Reassembly::is_complete) {
                    break;
                }
                assert!(matches!(take(&mut at, now, &fragments[index]), Taken::New | Taken::Again));
            }
            assert_eq!(at.unwrap().finish(), Some(message.clone()));
        }
    }

    #[test]
    fn case_72_what_contradicts_is_found() {
        let now = Instant::now();
        let (_, mine) = fragments(3000);
        let (_, other) = fragments(3500);
        let mut at = None;
        take(&mut at, now, &mine[0]);
        assert_eq!(take(&mut at, now, &other[1]), Taken::Contradiction, "another total");
        let fragment = Fragment {
            id: 9,
            index: 1,
            total: mine.len() as u32,
            wants_reports: true,
            nested: false,
            replaces: None,
            probe: false,
        };
        let mut reassembly = at.unwrap();
        assert_eq!(reassembly.handle_fragment(now, fragment, b"short", ROOM), Taken::Contradiction);
        let again = Fragment { index: 0, ..fragment };
        let slice = reassembly.slice.unwrap();
        assert_eq!(reassembly.handle_fragment(now, again, &vec![0xee; slice], ROOM), Taken::Contradiction);
        let last = Fragment { index: fragment.total - 1, ..fragment };
        assert_eq!(reassembly.handle_fragment(now, last, &vec![0; slice + 1], ROOM), Taken::Contradiction);
    }

    #[test]
    fn memory_follows_what_came_and_not_what_was_announced() {
        let now = Instant::now();
        let fragment = Fragment {
            id: 9,
            index: 0,
            total: u32::MAX,
            wants_reports: true,
            nested: false,
            replaces: None,
            probe: false,
        };
        let frame = FrameRef {
            typ: FrameType::Data,
            flags: Flags::FRAG,
            headers: Headers::default(),
            payload: &[0; 1000],
        };
        let mut reassembly = Reassembly::new(now, &frame, fragment);
        assert_eq!(reassembly.handle_fragment(now, fragment, frame.payload, ROOM), Taken::New);
        assert_eq!(reassembly.usage().waiting, 0);
        reassembly.wait();
        assert!(reassembly.usage().waiting >= 1000, "what it keeps counts while it waits");
        reassembly.admit(now);
        assert!(reassembly.memory() < 100_000);
        let far = Fragment { index: 500_000_000, ..fragment };
        assert_eq!(reassembly.handle_fragment(now, far, frame.payload, ROOM), Taken::Beyond);
        let none = Fragment { index: 1, ..fragment };
        assert_eq!(reassembly.handle_fragment(now, none, frame.payload, 999), Taken::NoMemory);
        // Who takes no reports cannot know.
        let next = Fragment { index: 2, wants_reports: false, ..fragment };
        let mut reassembly = Reassembly::new(now, &frame, next);
        assert_eq!(reassembly.handle_fragment(now, next, frame.payload, 999), Taken::NoMemory);
    }

    #[test]
    fn reports_are_due_at_once_for_news_and_later_for_the_rest() {
        let now = Instant::now();
        let (_, fragments) = fragments(3000);
        let mut at = None;
        take(&mut at, now, &fragments[0]);
        assert_eq!(at.as_ref().unwrap().report_at(), Some(now + Reassembly::REPORT_DELAY));
        take(&mut at, now, &fragments[1]);
        let reassembly = at.as_mut().unwrap();
        assert_eq!(reassembly.report_at(), Some(now));
        assert_eq!(reassembly.report(now, ROOM).base, 2);
        assert_eq!(reassembly.report_at(), None);
        take(&mut at, now, &fragments[4]);
        let reassembly = at.as_mut().unwrap();
        assert_eq!(reassembly.report_at(), Some(now), "a gap");
        assert_eq!(reassembly.report(now, ROOM).above().collect::<Vec<_>>(), [4]);
    }
}
