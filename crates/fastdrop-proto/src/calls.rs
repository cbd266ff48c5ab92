//! Calls and their replies, beside each other on one connection, whatever carries them.
//!
//! `Calls` is the end that asks: it numbers calls, knows which are outstanding, and when each of
//! them is over. `Serving` is the end that answers: it knows which calls are being handled, and
//! which of them nobody waits for any more. Neither writes frames nor looks at a clock; the
//! deadline of a call travels as the time that remains, since the clocks of two machines do not
//! agree.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// The longest time that a call may take: some 49 days, which fit 32 bits of milliseconds.
pub const CALL_TIME_MAX: Duration = Duration::from_millis(u32::MAX as u64);

/// The number of a call among those of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// As many calls as are allowed are outstanding, or being handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} calls are under way, and no more are allowed; wait for one of them")]
pub struct TooManyCalls(pub usize);

/// The time that remains for a call, in whole milliseconds and never 0 before the deadline.
pub fn remaining_ms(now: Instant, deadline: Instant) -> u64 {
    let left = deadline.saturating_duration_since(now).min(CALL_TIME_MAX);
    left.as_nanos().div_ceil(1_000_000) as u64
}

/// The deadline of a call with this many milliseconds left.
pub fn deadline_after(now: Instant, ms: u64) -> Instant {
    now + Duration::from_millis(ms).min(CALL_TIME_MAX)
}

/// The calls that this end has made and that are not over. `T` is what waits for a reply.
///
/// The driver tells [`Self::handle_reply`] of every reply, and takes what [`Self::poll_expired`]
/// gives when the time of [`Self::poll_timeout`] has come.
#[derive(Debug)]
pub struct Calls<T> {
    last: u64,
    outstanding_max: usize,
    outstanding: HashMap<CallId, (Instant, T)>,
    due: BTreeSet<(Instant, CallId)>,
    unknown: u64,
}

impl<T> Calls<T> {
    /// Begins to count above `first`, which should be random where replies could be forged, and
    /// allows `outstanding_max` calls at once.
    pub fn new(first: u64, outstanding_max: usize) -> Self {
        let (outstanding, due) = (HashMap::new(), BTreeSet::new());
        Self { last: first, outstanding_max, outstanding, due, unknown: 0 }
    }

    /// Takes a call, which is over at `deadline`.
    ///
    /// # Errors
    ///
    /// Too many are outstanding; `waiting` is given back.
    pub fn begin(&mut self, deadline: Instant, waiting: T) -> Result<CallId, (T, TooManyCalls)> {
        if self.outstanding.len() >= self.outstanding_max {
            return Err((waiting, TooManyCalls(self.outstanding_max)));
        }
        self.last = self.last.wrapping_add(1);
        let id = CallId(self.last);
        self.due.insert((deadline, id));
        self.outstanding.insert(id, (deadline, waiting));
        Ok(id)
    }

    /// Takes what waits for the reply to `id`. One to a call that is not outstanding is counted.
    pub fn handle_reply(&mut self, id: CallId) -> Option<T> {
        let waiting = self.take(id);
        if waiting.is_none() {
            self.unknown += 1;
        }
        waiting
    }

    /// Looks at what waits for the reply to `id`.
    pub fn waiting(&self, id: CallId) -> Option<&T> {
        self.outstanding.get(&id).map(|(_, waiting)| waiting)
    }

    /// Counts a reply that is nobody's.
    pub fn on_unknown_reply(&mut self) {
        self.unknown += 1;
    }

    /// Ends the call `id`: nobody waits for it any more. The peer should be told.
    pub fn cancel(&mut self, id: CallId) -> Option<T> {
        self.take(id)
    }

    /// Ends a call for which `given_up` says that nobody waits; the peer should be told.
    pub fn poll_cancelled(&mut self, given_up: impl Fn(&T) -> bool) -> Option<(CallId, T)> {
        let id = *self.outstanding.iter().find(|(_, (_, waiting))| given_up(waiting))?.0;
        self.take(id).map(|waiting| (id, waiting))
    }

    /// Takes a call whose deadline has passed; the peer should be told.
    pub fn poll_expired(&mut self, now: Instant) -> Option<(CallId, T)> {
        let (_, id) = *self.due.first().filter(|(at, _)| *at <= now)?;
        self.take(id).map(|waiting| (id, waiting))
    }

    /// The time when [`Self::poll_expired`] has something to give.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Takes everything that waits: the peer is gone, and no reply will come.
    pub fn take_all(&mut self) -> impl Iterator<Item = T> + use<T> {
        self.due.clear();
        std::mem::take(&mut self.outstanding).into_values().map(|(_, waiting)| waiting)
    }

    /// Calls that are not over.
    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// Replies to calls that were not outstanding.
    pub fn unknown_replies(&self) -> u64 {
        self.unknown
    }

    fn take(&mut self, id: CallId) -> Option<T> {
        let (deadline, waiting) = self.outstanding.remove(&id)?;
        self.due.remove(&(deadline, id));
        Some(waiting)
    }
}

/// The calls that this end is handling. `K` says whose call it is, a [`CallId`] where there is one
/// peer; `H` is what ends a handler.
#[derive(Debug)]
pub struct Serving<K, H> {
    max: usize,
    handling: HashMap<K, H>,
}

/// The reason for which a call is not handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotServed {
    /// Too many are being handled.
    #[error(transparent)]
    Busy(#[from] TooManyCalls),
    /// A call with this number is being handled already.
    #[error("a call with this number is being handled already")]
    Repeated,
}

impl<K: Eq + Hash, H> Serving<K, H> {
    /// Allows `max` calls at once.
    pub fn new(max: usize) -> Self {
        Self { max, handling: HashMap::new() }
    }

    /// Takes a call to be handled.
    ///
    /// # Errors
    ///
    /// It is not handled, and its caller should be told why, except of a repetition.
    pub fn begin(&mut self, call: K, handler: H) -> Result<(), NotServed> {
        if self.handling.contains_key(&call) {
            return Err(NotServed::Repeated);
        }
        if self.handling.len() >= self.max {
            return Err(TooManyCalls(self.max).into());
        }
        self.handling.insert(call, handler);
        Ok(())
    }

    /// Looks at what ends the handler of a call, if it is being handled.
    pub fn handler_mut(&mut self, call: &K) -> Option<&mut H> {
        self.handling.get_mut(call)
    }

    /// The caller does not wait any more: gives what ends the handler, if it is still at work.
    pub fn handle_cancel(&mut self, call: &K) -> Option<H> {
        self.handling.remove(call)
    }

    /// The handler has finished. False: the call was cancelled, and a reply is of no use.
    pub fn finish(&mut self, call: &K) -> bool {
        self.handling.remove(call).is_some()
    }

    /// Takes what ends all handlers: the peer is gone.
    pub fn take_all(&mut self) -> impl Iterator<Item = H> + use<K, H> {
        std::mem::take(&mut self.handling).into_values()
    }

    /// Calls that are being handled.
    pub fn handling(&self) -> usize {
        self.handling.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn case_127_each_call_has_its_own_reply_and_others_are_counted() {
        let now = Instant::now();
        let mut calls = Calls::new(u64::MAX - 1, 3);
        let later = now + Duration::from_secs(9);
        let ids: Vec<_> = (0..3).map(|n| calls.begin(later, n).unwrap()).collect();
        assert_eq!(ids, [CallId(u64::MAX), CallId(0), CallId(1)]);
        assert_eq!(calls.begin(later, 9), Err((9, TooManyCalls(3))));
        assert_eq!(calls.handle_reply(ids[1]), Some(1));
        assert_eq!((calls.handle_reply(ids[1]), calls.handle_reply(CallId(77))), (None, None));
        assert_eq!((calls.unknown_replies(), calls.outstanding()), (2, 2));
        assert_eq!(calls.poll_cancelled(|n| *n == 2), Some((ids[2], 2)));
        assert_eq!(calls.cancel(ids[2]), None);
        assert_eq!(calls.take_all().collect::<Vec<_>>(), [0]);
        assert_eq!((calls.poll_timeout(), calls.outstanding()), (None, 0));
    }

    #[test]
    fn what_remains_of_a_deadline_is_rounded_up_and_bounded() {
        let now = Instant::now();
        let micros = |n| now + Duration::from_micros(n);
        for (deadline, ms) in [(now, 0), (micros(1), 1), (micros(1000), 1), (micros(1001), 2)] {
            assert_eq!(remaining_ms(now, deadline), ms);
        }
        assert_eq!(deadline_after(now, u64::MAX), now + CALL_TIME_MAX);
        assert_eq!(remaining_ms(now, now + CALL_TIME_MAX * 2), u64::from(u32::MAX));
    }

    #[test]
    fn a_call_that_was_cancelled_needs_no_reply_and_one_more_waits_for_its_place() {
        let mut serving = Serving::new(2);
        serving.begin(CallId(1), "one").unwrap();
        serving.begin(CallId(2), "two").unwrap();
        assert_eq!(serving.begin(CallId(2), "again"), Err(NotServed::Repeated));
        assert_eq!(serving.begin(CallId(3), "three"), Err(NotServed::Busy(TooManyCalls(2))));
        assert_eq!(serving.handle_cancel(&CallId(1)), Some("one"));
        assert_eq!(serving.handle_cancel(&CallId(1)), None);
        assert!(!serving.finish(&CallId(1)) && serving.finish(&CallId(2)));
        assert_eq!(serving.take_all().count(), 0);
    }

    proptest! {
        /// Whatever happens in whatever order, every call has exactly one end.
        #[test]
        fn every_call_ends_once(steps in prop::collection::vec((0..5_u8, 0..40_u64), 1..300)) {
            let start = Instant::now();
            let (mut calls, mut now) = (Calls::new(0, 16), start);
            let (mut begun, mut ended) = (Vec::new(), Vec::new());
            for (step, n) in steps {
                match step {
                    0 | 1 => {
                        let deadline = now + Duration::from_millis(n);
                        let number = begun.len();
                        if let Ok(id) = calls.begin(deadline, number) {
                            begun.push(id);
                        }
                    }
                    2 => ended.extend(begun.get(n as usize).and_then(|id| calls.handle_reply(*id))),
                    3 => ended.extend(begun.get(n as usize).and_then(|id| calls.cancel(*id))),
                    _ => {
                        now += Duration::from_millis(n);
                        while let Some((_, number)) = calls.poll_expired(now) {
                            ended.push(number);
                        }
                        prop_assert!(calls.poll_timeout().is_none_or(|at| at > now));
                    }
                }
                prop_assert!(calls.outstanding() <= 16);
                prop_assert_eq!(calls.outstanding() + ended.len(), begun.len());
            }
            ended.extend(calls.take_all());
            ended.sort_unstable();
            prop_assert_eq!(ended, (0..begun.len()).collect::<Vec<_>>());
        }
    }
}
