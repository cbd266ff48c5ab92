//! Word that frames have arrived whose acknowledgement is still to come (docs/protocol/vstp.md,
//! section 6).

use super::frame::{Flags, FrameRef, FrameType, HeadersBuf};
use super::ids::number_digits;
use crate::cursor::Cursor;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

/// The header that tells a report of arrivals from an acknowledgement: the lowest number in it.
const ARRIVED: &str = "arrived";

/// Ranges of numbers in one report.
const RANGES_MAX: usize = 128;

/// The numbers of one stream that have arrived and are not settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Arrived {
    /// The upper half of the numbers.
    pub(super) stream: u32,
    /// The lower halves, in rising order.
    pub(super) counts: Vec<RangeInclusive<u32>>,
    /// The time between the arrival of the newest and the report.
    pub(super) delay: Duration,
}

impl Arrived {
    /// Returns true if this frame is a report of arrivals.
    pub(super) fn is_in(frame: &FrameRef<'_>) -> bool {
        frame.typ == FrameType::Ack && frame.headers.find(ARRIVED).is_some()
    }

    /// Reads a report; None if it is malformed.
    pub(super) fn parse(frame: &FrameRef<'_>) -> Option<Self> {
        let stream = (frame.headers.number(ARRIVED)? >> u32::BITS) as u32;
        let mut cursor = Cursor::new(frame.payload);
        let delay = Duration::from_micros(cursor.u32().ok()?.into());
        let mut counts = Vec::new();
        while let (Ok(first), Ok(last)) = (cursor.u32(), cursor.u32()) {
            let rises = counts.last().is_none_or(|before: &RangeInclusive<u32>| *before.end() < first);
            if first > last || !rises || counts.len() == RANGES_MAX {
                return None;
            }
            counts.push(first..=last);
        }
        cursor.rest().is_empty().then_some(Self { stream, counts, delay })
    }

    /// Encodes the ACK frame.
    fn encode(&self) -> Option<Vec<u8>> {
        let first = self.counts.first()?.start();
        let mut payload = Vec::with_capacity((1 + 2 * self.counts.len()) * size_of::<u32>());
        let delay = u32::try_from(self.delay.as_micros()).unwrap_or(u32::MAX);
        payload.extend_from_slice(&delay.to_be_bytes());
        for range in &self.counts {
            payload.extend_from_slice(&range.start().to_be_bytes());
            payload.extend_from_slice(&range.end().to_be_bytes());
        }
        let number = u64::from(self.stream) << u32::BITS | u64::from(*first);
        let headers = HeadersBuf::default().with(ARRIVED, number_digits(number));
        let (typ, flags, headers) = (FrameType::Ack, Flags::empty(), headers.as_headers());
        let mut bytes = Vec::new();
        FrameRef { typ, flags, headers, payload: &payload }.encode(&mut bytes).ok()?;
        Some(bytes)
    }
}

/// The frames of one address that have arrived, wait for their application, and have not been
/// reported.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    numbers: BTreeSet<u64>,
    newest_at: Option<Instant>,
    due_at: Option<Instant>,
}

impl Arrivals {
    /// The time after which a frame that is not settled is reported.
    const DELAY: Duration = Duration::from_millis(10);

    /// Notes that a small frame with a number that is used once has arrived; `again` if it was
    /// there already, because its sender has not heard of it.
    pub(super) fn on_arrived(&mut self, now: Instant, number: u64, again: bool) {
        self.numbers.insert(number);
        self.newest_at = Some(now);
        let due_at = if again { now } else { now + Self::DELAY };
        self.due_at = Some(self.due_at.map_or(due_at, |at| at.min(due_at)));
    }

    /// Notes that a frame is settled, and answered so. Those that left before it are reported at
    /// once, as their sender would take them for lost.
    pub(super) fn on_settled(&mut self, now: Instant, number: u64) {
        self.numbers.remove(&number);
        if self.numbers.first().is_some_and(|first| *first < number) {
            self.due_at = Some(now);
        }
        if self.numbers.is_empty() {
            self.due_at = None;
        }
    }

    /// The time at which the next report is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.due_at
    }

    /// The report that is due, as a frame; what does not fit it is in the next one.
    pub(super) fn poll_report(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.due_at.filter(|at| *at <= now)?;
        let first = *self.numbers.first()?;
        let stream = (first >> u32::BITS) as u32;
        let mut counts: Vec<RangeInclusive<u32>> = Vec::new();
        let mut until = None;
        for number in self.numbers.range(first..=first | u64::from(u32::MAX)) {
            let count = *number as u32;
            let full = counts.len() == RANGES_MAX;
            match counts.last_mut() {
                Some(last) if last.end().checked_add(1) == Some(count) => *last = *last.start()..=count,
                _ if full => break,
                _ => counts.push(count..=count),
            }
            until = Some(*number);
        }
        let rest = until.and_then(|until| until.checked_add(1));
        self.numbers = rest.map_or_else(BTreeSet::new, |rest| self.numbers.split_off(&rest));
        self.due_at = (!self.numbers.is_empty()).then_some(now);
        let delay = self.newest_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        Arrived { stream, counts, delay }.encode()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STREAM: u64 = 0x5000_0001 << u32::BITS;

    fn read(bytes: &[u8]) -> Option<Arrived> {
        let (frame, _) = FrameRef::decode(bytes, 65_536).unwrap()?;
        assert!(Arrived::is_in(&frame));
        Arrived::parse(&frame)
    }

    #[test]
    fn what_is_settled_soon_is_not_reported() {
        let now = Instant::now();
        let mut arrivals = Arrivals::default();
        arrivals.on_arrived(now, STREAM + 1, false);
        arrivals.on_settled(now, STREAM + 1);
        assert!(arrivals.poll_timeout().is_none() && arrivals.numbers.is_empty());
    }

    #[test]
    fn what_waits_is_reported_once_and_at_once_where_a_later_one_is_answered() {
        let now = Instant::now();
        let mut arrivals = Arrivals::default();
        for n in 1..=3 {
            arrivals.on_arrived(now, STREAM + n, false);
        }
        assert_eq!(arrivals.poll_report(now), None);
        arrivals.on_settled(now, STREAM + 2);
        let report = read(&arrivals.poll_report(now).unwrap()).unwrap();
        assert_eq!((report.stream, report.counts), (0x5000_0001, vec![1..=1, 3..=3]));
        assert!(arrivals.numbers.is_empty() && arrivals.poll_timeout().is_none());
        // Its sender has not heard of it.
        arrivals.on_arrived(now, STREAM + 1, true);
        assert_eq!(read(&arrivals.poll_report(now).unwrap()).unwrap().counts, [1..=1]);
    }

    #[test]
    fn reports_that_make_no_sense_are_none() {
        let good = Arrived { stream: 7, counts: vec![1..=1, 3..=4], delay: Duration::ZERO };
        let bytes = good.encode().unwrap();
        assert_eq!(read(&bytes), Some(good.clone()));
        let falling = Arrived { counts: vec![3..=4, 4..=5], ..good.clone() };
        #[allow(clippy::reversed_empty_ranges, reason = "a peer can say anything")]
        let reversed = Arrived { counts: vec![4..=3], ..good.clone() };
        let many = Arrived { counts: (0..129).map(|n| 2 * n..=2 * n).collect(), ..good };
        for bad in [falling, reversed, many] {
            assert_eq!(read(&bad.encode().unwrap()), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn reports_say_every_number_once(numbers in prop::collection::btree_set((0..3_u64, 0..2_000_u64), 1..600)) {
            let now = Instant::now();
            let mut arrivals = Arrivals::default();
            let numbers: BTreeSet<u64> = numbers.iter().map(|(stream, n)| (stream << u32::BITS) + n).collect();
            for number in &numbers {
                arrivals.on_arrived(now, *number, true);
            }
            let mut told = Vec::new();
            while let Some(report) = arrivals.poll_report(now) {
                prop_assert!(report.len() <= 1200);
                let report = read(&report).unwrap();
                let stream = u64::from(report.stream) << u32::BITS;
                told.extend(report.counts.into_iter().flatten().map(|count| stream + u64::from(count)));
            }
            prop_assert_eq!(told, Vec::from_iter(numbers));
        }
    }
}
