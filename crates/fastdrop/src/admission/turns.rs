//! Turns: of many local transfers only a few move bytes at the same moment.
//!
//! On the shortest paths a chunk stays in the processor's caches from the sender's read to
//! the receiver's write, as long as few streams are under way. With many, each one comes
//! back to memory that has gone cold, and all are slower. So the streams of a crowd take
//! turns, in the order in which they ask.
//!
//! A turn ends by itself, so that a peer that stops in the middle of one holds
//! the others up for no longer than that.

use crate::lock::lock;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// How long a turn lasts: long enough that what it warms up is used many times.
const TURN: Duration = Duration::from_millis(50);
/// A stream that has a turn, but for so long nothing to do, gives it back.
pub(crate) const TURN_TIMEOUT: Duration = Duration::from_micros(500);
/// Nobody waits longer than this: turns only make it faster, and must never look like a stalled
/// stream, for which a sender takes one without progress for `SenderConfig::stall_after`, 5 s.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// Gives turns to streams.
#[derive(Debug)]
pub(crate) struct Turns(Mutex<Line<Thread>>);

impl Turns {
    /// Two turns at the same time for each core: a stream waits for
    /// its peer about half of the time.
    pub(crate) fn new() -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Arc::new(Self(Mutex::new(Line::new(2 * cores))))
    }

    /// Waits for a turn.
    fn take(&self) -> Taken {
        let asked = Instant::now();
        let mut line = lock(&self.0);
        let ticket = line.ask(std::thread::current());
        loop {
            let now = Instant::now();
            if let Some(taken) = line.take(ticket, now, now >= asked + WAIT_MAX) {
                line.first().map(Thread::unpark);
                return taken;
            }
            let until = line.look_again(ticket).unwrap_or(asked + WAIT_MAX);
            drop(line);
            // Whoever becomes the first, or may go, is unparked.
            std::thread::park_timeout(until.saturating_duration_since(now));
            line = lock(&self.0);
        }
    }

    fn give_back(&self, taken: &Taken) {
        let mut line = lock(&self.0);
        line.give_back(taken);
        line.first().map(Thread::unpark);
    }
}

/// The turns of one stream.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Option<Arc<Turns>>,
    taken: Option<Taken>,
}

impl Turn {
    /// For a stream that takes turns with others, or, with `None`, for one that need not.
    pub(crate) fn new(turns: Option<Arc<Turns>>) -> Self {
        Self { turns, taken: None }
    }

    /// Whether it has taken a turn and not given it back.
    pub(crate) fn is_taken(&self) -> bool {
        self.taken.is_some()
    }

    /// Goes on with a turn that is not over, or waits for the next.
    pub(crate) fn wait(&mut self) {
        if self.taken.as_ref().is_some_and(|taken| Instant::now() < taken.end) {
            return;
        }
        self.give_back();
        self.taken = self.turns.as_ref().map(|turns| turns.take());
    }

    /// Lets others go first, until it waits again.
    pub(crate) fn give_back(&mut self) {
        if let (Some(turns), Some(taken)) = (&self.turns, self.taken.take()) {
            turns.give_back(&taken);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// A turn that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Taken {
    ticket: u64,
    end: Instant,
}

/// Who has a turn, and who waits for one. `W` is how to wake who waits.
#[derive(Debug)]
struct Line<W> {
    places: usize,
    taken: Vec<Taken>,
    waiting: VecDeque<(u64, W)>,
    next_ticket: u64,
}

impl<W> Line<W> {
    fn new(places: usize) -> Self {
        Self { places, taken: Vec::new(), waiting: VecDeque::new(), next_ticket: 0 }
    }

    /// Joins the end of the line.
    fn ask(&mut self, waker: W) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiting.push_back((ticket, waker));
        ticket
    }

    /// Takes a turn, if there is a place and nobody came before; or in any case when `must`.
    fn take(&mut self, ticket: u64, now: Instant, must: bool) -> Option<Taken> {
        self.taken.retain(|taken| now < taken.end);
        let is_next = self.taken.len() < self.places && self.is_first(ticket);
        (is_next || must).then(|| {
            self.waiting.retain(|(other, _)| *other != ticket);
            let taken = Taken { ticket, end: now + TURN };
            self.taken.push(taken);
            taken
        })
    }

    fn give_back(&mut self, taken: &Taken) {
        self.taken.retain(|other| other != taken);
    }

    fn is_first(&self, ticket: u64) -> bool {
        self.waiting.front().is_some_and(|(first, _)| *first == ticket)
    }

    /// Who is next in the line.
    fn first(&self) -> Option<&W> {
        self.waiting.front().map(|(_, waker)| waker)
    }

    /// When the one with `ticket` should try again without being woken: the first
    /// watches for turns that end by themselves.
    fn look_again(&self, ticket: u64) -> Option<Instant> {
        self.taken.iter().map(|taken| taken.end).min().filter(|_| self.is_first(ticket))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_taken_in_the_order_of_asking_and_never_more_than_there_are_places() {
        let now = Instant::now();
        let mut line = Line::new(2);
        let [a, b, c, d] = [(); 4].map(|()| line.ask(()));
        assert_eq!(line.take(b, now, false), None, "b goes before a");
        let first = line.take(a, now, false).unwrap();
        assert!(line.take(b, now, false).is_some());
        assert_eq!(line.take(c, now, false), None, "a third has a turn");
        line.give_back(&first);
        assert_eq!(line.take(d, now, false), None, "d goes before c");
        assert!(line.take(c, now, false).is_some());
    }

    #[test]
    fn a_turn_that_is_not_given_back_ends_by_itself_when_the_first_looks_again() {
        let now = Instant::now();
        let mut line = Line::new(1);
        let [hog, next, last] = [(); 3].map(|()| line.ask(()));
        let taken = line.take(hog, now, false).unwrap();
        assert_eq!(line.look_again(next), Some(taken.end));
        assert_eq!(line.look_again(last), None, "only the first watches");
        assert_eq!(line.take(next, taken.end - Duration::from_nanos(1), false), None);
        let after = line.take(next, taken.end, false).unwrap();
        // What the hog gives back late is not the turn of another.
        line.give_back(&taken);
        assert_eq!(line.take(last, taken.end, false), None);
        line.give_back(&after);
        assert!(line.take(last, taken.end, false).is_some());
    }

    #[test]
    fn who_has_waited_for_too_long_goes_without_a_place() {
        let now = Instant::now();
        let mut line = Line::new(1);
        let [first, second, third] = [(); 3].map(|()| line.ask(()));
        line.take(first, now, false).unwrap();
        assert!(line.take(third, now, true).is_some());
        assert_eq!(line.first(), Some(&()), "the second still waits");
        assert_eq!(line.take(second, now, false), None);
    }

    #[test]
    fn many_streams_all_come_to_their_turns() {
        let turns = Arc::new(Turns(Mutex::new(Line::new(2))));
        let went = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let mut turn = Turn::new(Some(Arc::clone(&turns)));
                        turn.wait();
                        went.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(went.into_inner(), 1600);
        let line = turns.0.lock().unwrap();
        assert!(line.taken.is_empty() && line.waiting.is_empty(), "all were given back: {line:?}");
    }
}
