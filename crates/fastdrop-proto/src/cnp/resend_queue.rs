//! The messages of a client that connects again, until they have an outcome
//! (docs/protocol/cnp.md, section 15).

use super::resumption::Resumption;
use bytes::Bytes;
use std::collections::VecDeque;

/// The outcome of a message when a connection has begun, known without its acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The server has handled it.
    Handled,
    /// It may have been handed on: it is not sent again.
    Unknown,
}

/// Messages that have no outcome yet, in order, each with whoever waits for it.
#[derive(Debug)]
pub struct ResendQueue<W> {
    waiting: VecDeque<(Bytes, W)>,
    /// So many of them were given to the connection that stands.
    given: usize,
    /// So many of them were given to a connection, at least once.
    ever_given: usize,
    /// The memory under which they were given, and the number of the first in it.
    memory: Option<u64>,
    first: u64,
}

impl<W> Default for ResendQueue<W> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), given: 0, ever_given: 0, memory: None, first: 0 }
    }
}

impl<W> ResendQueue<W> {
    /// One more message.
    pub fn push(&mut self, message: Bytes, waiter: W) {
        self.waiting.push_back((message, waiter));
    }

    /// Reports whether nothing waits for its outcome.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// A connection has begun, to a server that remembers this of the session, or nothing. Gives
    /// those whose outcome is known by that; the others are to be sent, also again.
    pub fn on_connected(&mut self, resumption: Option<Resumption>) -> Vec<(W, Outcome)> {
        let given = self.ever_given;
        let known = resumption.filter(|now| Some(now.memory) == self.memory);
        // Counts that cannot be are as good as none.
        let taken = known.and_then(|now| now.taken.checked_sub(self.first));
        let taken = taken.and_then(|taken| usize::try_from(taken).ok()).filter(|taken| *taken <= given);
        let (over, handled) = match (taken, known) {
            (Some(taken), Some(now)) => (taken, now.handled.saturating_sub(self.first)),
            _ => (given, 0),
        };
        self.memory = resumption.map(|now| now.memory);
        self.first = resumption.map_or(0, |now| now.taken);
        self.ever_given = given - over;
        self.given = 0;
        let outcome = |n: usize| if (n as u64) < handled { Outcome::Handled } else { Outcome::Unknown };
        self.waiting.drain(..over).enumerate().map(|(n, (_, waiter))| (waiter, outcome(n))).collect()
    }

    /// The message to send next.
    pub fn next(&self) -> Option<&Bytes> {
        self.waiting.get(self.given).map(|(message, _)| message)
    }

    /// The next message was given to the connection; true if it was before.
    pub fn on_given(&mut self) -> bool {
        let again = self.given < self.ever_given;
        self.given = (self.given + 1).min(self.waiting.len());
        self.ever_given = self.ever_given.max(self.given);
        again
    }

    /// The next message cannot be sent; true if it was given to a connection before.
    pub fn take_next(&mut self) -> Option<(W, bool)> {
        let (_, waiter) = self.waiting.remove(self.given)?;
        let again = self.given < self.ever_given;
        self.ever_given -= usize::from(again);
        Some((waiter, again))
    }

    /// The oldest message that was given to the connection is acknowledged.
    pub fn on_acknowledged(&mut self) -> Option<W> {
        self.given = self.given.checked_sub(1)?;
        self.ever_given = self.ever_given.saturating_sub(1);
        self.first += 1;
        self.waiting.pop_front().map(|(_, waiter)| waiter)
    }

    /// Gives all of them up; true for those that were given to a connection.
    pub fn take_all(&mut self) -> Vec<(W, bool)> {
        let given = std::mem::take(&mut self.ever_given);
        self.given = 0;
        self.waiting.drain(..).enumerate().map(|(n, (_, waiter))| (waiter, n < given)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(count: u32) -> ResendQueue<u32> {
        let mut queue = ResendQueue::default();
        for n in 0..count {
            queue.push(Bytes::from(n.to_string()), n);
        }
        queue
    }

    fn counts(memory: u64, handled: u64, taken: u64) -> Option<Resumption> {
        Some(Resumption { memory, handled, taken })
    }

    fn give(queue: &mut ResendQueue<u32>, count: usize) -> Vec<bool> {
        (0..count).map(|_| queue.on_given()).collect()
    }

    #[test]
    fn what_was_handed_on_does_not_go_again_and_the_rest_does() {
        let mut queue = queue(5);
        assert_eq!(queue.on_connected(counts(1, 0, 0)), []);
        assert_eq!(give(&mut queue, 4), [false; 4]);
        assert_eq!(queue.on_acknowledged(), Some(0));
        let known = queue.on_connected(counts(1, 2, 3));
        assert_eq!(known, [(1, Outcome::Handled), (2, Outcome::Unknown)]);
        assert_eq!(queue.next().map(|next| &next[..]), Some(&b"3"[..]));
        assert_eq!(give(&mut queue, 2), [true, false]);
        assert_eq!(
            (queue.next().cloned(), queue.on_acknowledged(), queue.on_acknowledged()),
            (None, Some(3), Some(4))
        );
        assert_eq!((queue.on_acknowledged(), queue.is_empty()), (None, true));
    }

    #[test]
    fn under_another_memory_or_none_what_was_given_is_unknown() {
        for (before, after) in [
            (counts(1, 0, 0), counts(2, 0, 0)),
            (counts(1, 0, 0), None),
            (None, None),
            (None, counts(1, 0, 0)),
            // Counts that cannot be.
            (counts(1, 7, 7), counts(1, 6, 6)),
            (counts(1, 7, 7), counts(1, 10, 10)),
        ] {
            let mut queue = queue(4);
            assert_eq!(queue.on_connected(before), []);
            give(&mut queue, 2);
            assert_eq!(queue.on_connected(after), [(0, Outcome::Unknown), (1, Outcome::Unknown)]);
            assert_eq!(give(&mut queue, 2), [false, false]);
        }
    }

    #[test]
    fn numbers_go_on_from_what_the_memory_says() {
        let mut queue = queue(3);
        assert_eq!(queue.on_connected(counts(1, 4, 4)), []);
        give(&mut queue, 2);
        assert_eq!(queue.on_connected(counts(1, 5, 5)), [(0, Outcome::Handled)]);
        // Given to an earlier connection, and not to this one.
        assert_eq!(queue.on_connected(counts(1, 6, 6)), [(1, Outcome::Handled)]);
        assert_eq!(queue.take_all(), [(2, false)]);
    }

    #[test]
    fn what_cannot_be_sent_leaves_no_gap() {
        let mut queue = queue(3);
        assert_eq!(queue.on_connected(counts(1, 0, 0)), []);
        give(&mut queue, 1);
        assert_eq!(queue.take_next(), Some((1, false)));
        give(&mut queue, 1);
        assert_eq!(queue.on_connected(counts(1, 1, 2)), [(0, Outcome::Handled), (2, Outcome::Unknown)]);
    }
}
