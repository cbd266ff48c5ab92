//! Places for connections: so many at once, shared out among addresses.
//!
//! While there is room, everybody gets a place. When there is none, whoever holds fewer places than
//! another gets one of the other's: one on which no frame has ever come, or else the one that has
//! been silent for longest. So one address that takes everything keeps nobody else out.

use std::collections::{BTreeSet, HashMap};
use std::future::poll_fn;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// The bounds of a server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Connections at once.
    pub(crate) all: usize,
    /// Connections of one address.
    pub(crate) of_one: usize,
}

/// The one whom a connection is counted for: an IPv4 address, or the 64 bits of an IPv6 address
/// that one machine may choose the rest of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Origin(IpAddr);

impl Origin {
    /// Bits of an IPv6 address that are one network's.
    const IPV6_PREFIX: u32 = 64;

    pub(crate) fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V6(ip) => {
                let network = ip.to_bits() >> Self::IPV6_PREFIX << Self::IPV6_PREFIX;
                Self(Ipv6Addr::from_bits(network).into())
            }
            v4 => Self(v4),
        }
    }

    /// The same as a number.
    #[cfg(feature = "vstp")]
    pub(crate) fn to_bits(self) -> u128 {
        match self.0 {
            IpAddr::V4(ip) => ip.to_bits().into(),
            IpAddr::V6(ip) => ip.to_bits(),
        }
    }
}

/// The places of a server.
#[derive(Debug)]
pub(crate) struct Places {
    state: Mutex<State>,
    /// A place was given back.
    pub(crate) freed: Notify,
    begun: Instant,
}

#[derive(Debug)]
struct State {
    limits: Limits,
    holders: HashMap<u64, Holder>,
    /// Places of each address, and the addresses in the order of that.
    counts: HashMap<Origin, usize>,
    ranks: BTreeSet<(usize, Origin)>,
    /// Connections on which no frame has come, in the order in which they began; and by address.
    silent: BTreeSet<u64>,
    silent_of: HashMap<Origin, BTreeSet<u64>>,
    /// Connections that have lost their place and have not ended yet.
    leaving: usize,
    next_id: u64,
    searched_at: Option<Instant>,
}

#[derive(Debug)]
struct Holder {
    origin: Origin,
    since: Instant,
    seat: Arc<Seat>,
}

/// The state that a connection and the places know of each other.
#[derive(Debug, Default)]
struct Seat {
    lost: AtomicBool,
    has_spoken: AtomicBool,
    /// Milliseconds from the beginning of the places to the last frame.
    heard_ms: AtomicU64,
    wakers: Mutex<Vec<Waker>>,
}

/// A place, which is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    id: u64,
    seat: Arc<Seat>,
}

impl Places {
    /// The time that a connection has for its first frame before another of the same address may
    /// have its place.
    const GRACE: Duration = Duration::from_secs(1);
    /// The same before one of an address that holds as many may have it.
    const SILENCE: Duration = Duration::from_secs(10);
    /// The time after its last frame in which a connection keeps its place in any case.
    const IDLE: Duration = Duration::from_secs(5);
    /// Between two looks at all connections; and when those who wait are looked at again.
    pub(crate) const LOOK: Duration = Duration::from_millis(100);

    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        let limits = Limits { all: limits.all.max(1), of_one: limits.of_one.max(1) };
        let state = State {
            limits,
            holders: HashMap::new(),
            counts: HashMap::new(),
            ranks: BTreeSet::new(),
            silent: BTreeSet::new(),
            silent_of: HashMap::new(),
            leaving: 0,
            next_id: 0,
            searched_at: None,
        };
        Arc::new(Self { state: Mutex::new(state), freed: Notify::new(), begun: Instant::now() })
    }

    /// Places that an address holds.
    pub(crate) fn held_by(&self, origin: Origin) -> usize {
        self.lock().counts.get(&origin).copied().unwrap_or_default()
    }

    /// Places that are taken.
    #[cfg(feature = "quic")]
    pub(crate) fn taken(&self) -> usize {
        self.lock().holders.len()
    }

    /// A place for one more connection; None if nobody has to make room for it now.
    pub(crate) fn take(self: &Arc<Self>, now: Instant, origin: Origin) -> Option<Place> {
        let mut state = self.lock();
        let own = state.counts.get(&origin).copied().unwrap_or_default();
        let (has_all, is_full) = (own >= state.limits.of_one, state.holders.len() >= state.limits.all);
        // Those that have lost their places hold their connections until they have ended.
        if (has_all || is_full) && state.leaving > state.limits.all / 8 {
            return None;
        }
        if has_all {
            let oldest = state.oldest_silent_of(now, origin, Self::GRACE)?;
            state.evict(oldest);
        } else if is_full {
            let now_ms = self.ms(now);
            let loser = state.loser(now, now_ms, origin, own)?;
            state.evict(loser);
        }
        let id = state.next_id;
        state.next_id += 1;
        let seat = Arc::<Seat>::default();
        state.holders.insert(id, Holder { origin, since: now, seat: Arc::clone(&seat) });
        state.silent.insert(id);
        state.silent_of.entry(origin).or_default().insert(id);
        state.count(origin, true);
        Some(Place { places: Arc::clone(self), id, seat })
    }

    fn ms(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.begun).as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The connection whose place goes to an address that holds `own` places.
    fn loser(&mut self, now: Instant, now_ms: u64, origin: Origin, own: usize) -> Option<u64> {
        let (most, greatest) = *self.ranks.last()?;
        // Of two that hold nearly as many, neither gains by taking from the other.
        let is_greater = most >= own + 2;
        if is_greater && let Some(id) = self.oldest_silent_of(now, greatest, Duration::ZERO) {
            return Some(id);
        }
        if let Some(id) = self.oldest_silent_of(now, origin, Places::GRACE) {
            return Some(id);
        }
        let oldest = self.silent.first().copied();
        if let Some(id) = oldest.filter(|id| self.has_waited(now, *id, Places::SILENCE)) {
            return Some(id);
        }
        let was_looked_at = self.searched_at.is_some_and(|at| now < at + Places::LOOK);
        if !is_greater || was_looked_at {
            return None;
        }
        self.searched_at = Some(now);
        let of_greatest = self.holders.iter().filter(|(_, holder)| holder.origin == greatest);
        let heard = of_greatest.map(|(id, holder)| (holder.seat.heard_ms.load(Ordering::Relaxed), *id));
        let idle_ms = u64::try_from(Places::IDLE.as_millis()).unwrap_or(u64::MAX);
        heard.min().filter(|(at, _)| now_ms.saturating_sub(*at) >= idle_ms).map(|(_, id)| id)
    }

    fn oldest_silent_of(&self, now: Instant, origin: Origin, age: Duration) -> Option<u64> {
        let id = *self.silent_of.get(&origin)?.first()?;
        self.has_waited(now, id, age).then_some(id)
    }

    fn has_waited(&self, now: Instant, id: u64, age: Duration) -> bool {
        self.holders.get(&id).is_some_and(|holder| now.saturating_duration_since(holder.since) >= age)
    }

    fn evict(&mut self, id: u64) {
        if let Some(holder) = self.remove(id) {
            self.leaving += 1;
            holder.seat.lose();
        }
    }

    fn remove(&mut self, id: u64) -> Option<Holder> {
        let holder = self.holders.remove(&id)?;
        self.on_spoken(id, holder.origin);
        self.count(holder.origin, false);
        Some(holder)
    }

    fn on_spoken(&mut self, id: u64, origin: Origin) {
        self.silent.remove(&id);
        if let Some(silent) = self.silent_of.get_mut(&origin) {
            silent.remove(&id);
            if silent.is_empty() {
                self.silent_of.remove(&origin);
            }
        }
    }

    /// One more connection of an address, or one less.
    fn count(&mut self, origin: Origin, more: bool) {
        let before = self.counts.remove(&origin).unwrap_or_default();
        self.ranks.remove(&(before, origin));
        let now = if more { before + 1 } else { before.saturating_sub(1) };
        if now > 0 {
            self.counts.insert(origin, now);
            self.ranks.insert((now, origin));
        }
    }
}

impl Seat {
    fn lose(&self) {
        self.lost.store(true, Ordering::Release);
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner).drain(..).for_each(Waker::wake);
    }
}

impl Place {
    /// A frame came.
    pub(crate) fn on_frame(&self, now: Instant) {
        self.on_heard(now);
        if !self.seat.has_spoken.swap(true, Ordering::Relaxed) {
            let mut state = self.places.lock();
            if let Some(origin) = state.holders.get(&self.id).map(|holder| holder.origin) {
                state.on_spoken(self.id, origin);
            }
        }
    }

    /// Something came, which is a sign of life where a frame has come before.
    pub(crate) fn on_heard(&self, now: Instant) {
        self.seat.heard_ms.store(self.places.ms(now), Ordering::Relaxed);
    }

    /// The time at which something last came.
    pub(crate) fn heard_at(&self) -> Instant {
        self.places.begun + Duration::from_millis(self.seat.heard_ms.load(Ordering::Relaxed))
    }

    /// Ready when the place is somebody else's.
    pub(crate) fn poll_lost(&self, cx: &Context<'_>) -> Poll<()> {
        if self.seat.lost.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        let mut wakers = self.seat.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            // Of those who have polled, some may have gone again.
            if wakers.len() >= 4 {
                wakers.remove(0);
            }
            wakers.push(cx.waker().clone());
        }
        drop(wakers);
        if self.seat.lost.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Waits until the place is somebody else's.
    pub(crate) async fn lost(&self) {
        poll_fn(|cx| self.poll_lost(cx)).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        if state.remove(self.id).is_none() {
            state.leaving = state.leaving.saturating_sub(1);
        }
        drop(state);
        self.places.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Origin {
        Origin::of(text.parse().unwrap())
    }

    fn places(all: usize, of_one: usize) -> (Arc<Places>, Instant) {
        let places = Places::new(Limits { all, of_one });
        let begun = places.begun;
        (places, begun)
    }

    fn has_lost(place: &Place) -> bool {
        place.seat.lost.load(Ordering::Relaxed)
    }

    #[test]
    fn an_ipv6_network_is_one_address_and_so_is_ipv4_in_either_form() {
        assert_eq!(origin("2001:db8:1:2::1"), origin("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_ne!(origin("2001:db8:1:2::1"), origin("2001:db8:1:3::1"));
        assert_eq!(origin("::ffff:192.0.2.1"), origin("192.0.2.1"));
        assert_ne!(origin("192.0.2.2"), origin("192.0.2.1"));
    }

    /// However many silent connections one address pushes, at any rate, whoever comes from another
    /// has a place at once, and keeps it.
    #[test]
    fn one_address_that_takes_everything_keeps_nobody_out() {
        let (places, begun) = places(1000, usize::MAX);
        let (flood, honest) = (origin("192.0.2.1"), origin("198.51.100.1"));
        let mut held = std::collections::VecDeque::new();
        for n in 0..5000_u32 {
            let now = begun + Duration::from_millis(u64::from(n));
            held.extend(places.take(now, flood));
            held.retain(|place| !has_lost(place));
        }
        assert_eq!(held.len(), 1000);
        let mut mine = Vec::new();
        for n in 0..400_u32 {
            let now = begun + Duration::from_millis(5000 + u64::from(n));
            mine.push(places.take(now, honest).expect("a place at once"));
            held.extend(places.take(now, flood));
            held.retain(|place| !has_lost(place));
            assert!(mine.iter().all(|place| !has_lost(place)), "{n}");
        }
        assert_eq!((places.held_by(honest), held.len()), (400, 600));
        drop((mine, held));
        assert_eq!((places.held_by(honest), places.held_by(flood), places.lock().leaving), (0, 0, 0));
    }

    /// Connections that have said something lose their places only to an address that holds fewer,
    /// and only when they have been idle; those of the one that holds fewer never do.
    #[test]
    fn what_has_spoken_goes_last_and_only_when_it_is_idle() {
        let (places, begun) = places(10, usize::MAX);
        let (greedy, honest) = (origin("192.0.2.1"), origin("198.51.100.1"));
        let at = |ms| begun + Duration::from_millis(ms);
        let held: Vec<_> = (0..10).map(|n| places.take(at(n), greedy).unwrap()).collect();
        held.iter().for_each(|place| place.on_frame(at(1000)));
        assert!(places.take(at(2000), honest).is_none(), "all of them are in use");
        held.iter().skip(1).for_each(|place| place.on_frame(at(6000)));
        let mine = places.take(at(6100), honest).expect("the place of the idle one");
        assert!(has_lost(&held[0]) && !held[1..].iter().any(has_lost));
        mine.on_frame(at(6100));
        drop(held);
        // One each: nobody has to go, but whoever has said nothing for long.
        let (places, begun) = (Places::new(Limits { all: 1, of_one: 1 }), at(0));
        let silent = places.take(begun, greedy).unwrap();
        assert!(places.take(begun + Duration::from_secs(9), honest).is_none());
        let mine = places.take(begun + Duration::from_secs(10), honest).unwrap();
        assert!(has_lost(&silent));
        mine.on_frame(begun + Duration::from_secs(10));
        assert!(places.take(begun + Duration::from_secs(60), greedy).is_none());
    }

    /// An address at its own bound pushes itself out no faster than its connections end.
    #[test]
    fn those_that_leave_are_bounded_for_one_address_as_for_all() {
        let (places, begun) = places(16, 2);
        let greedy = origin("192.0.2.1");
        let mut held = Vec::new();
        for n in 0..60 {
            held.extend(places.take(begun + n * Places::GRACE, greedy));
        }
        assert_eq!(held.iter().filter(|place| has_lost(place)).count(), 16 / 8 + 1);
        held.retain(|place| !has_lost(place));
        assert!(places.take(begun + 60 * Places::GRACE, greedy).is_some(), "they have ended");
    }

    #[test]
    fn an_address_has_no_more_than_its_bound() {
        let (places, begun) = places(100, 3);
        let greedy = origin("192.0.2.1");
        let held: Vec<_> = (0..3).map(|_| places.take(begun, greedy).unwrap()).collect();
        held.iter().take(2).for_each(|place| place.on_frame(begun));
        assert!(places.take(begun, greedy).is_none());
        let fourth = places.take(begun + Places::GRACE, greedy).expect("the place of the silent one");
        assert!(has_lost(&held[2]));
        fourth.on_frame(begun);
        assert!(places.take(begun + Duration::from_secs(60), greedy).is_none());
        assert!(places.take(begun, origin("192.0.2.2")).is_some());
    }
}
