//! The messages of a session that come in order, each acknowledged, so that counts are enough
//! (docs/protocol/cnp.md, section 15).

use super::{Attachment, lock};
use std::collections::VecDeque;

/// The messages of a session that were handed to the application.
#[derive(Debug, Default)]
pub(super) struct Counted {
    /// So many from the beginning have an outcome, or nobody asks for it any more.
    done: u64,
    /// Those behind them that were handed on: true for those that are handled. At most as many as
    /// the application holds of one connection, and those handled behind the first of them.
    others: VecDeque<bool>,
    /// The connection whose messages they are.
    holder: u64,
}

impl Counted {
    fn taken(&self) -> u64 {
        self.done + self.others.len() as u64
    }
}

impl Attachment {
    /// The number of messages that are handled, without a gap, and of those that were handed on.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let state = lock(&self.entry.state);
        (state.counted.done, state.counted.taken())
    }

    /// Records that the next message is handed to the application now, and numbers it. None: it is
    /// not to be handed on, as another connection has the session.
    pub fn take_next(&self) -> Option<u64> {
        let mut state = lock(&self.entry.state);
        if state.holder != self.holder {
            return None;
        }
        let counted = &mut state.counted;
        if counted.holder != self.holder {
            // Whoever sends has been told of those before.
            counted.done = counted.taken();
            counted.others.clear();
            counted.holder = self.holder;
        }
        counted.others.push_back(false);
        Some(counted.taken() - 1)
    }

    /// Records that the application has handled the message with this number.
    pub fn on_handled(&self, number: u64) {
        let mut state = lock(&self.entry.state);
        let counted = &mut state.counted;
        let index = number.checked_sub(counted.done).and_then(|index| usize::try_from(index).ok());
        if let Some(handled) = index.and_then(|index| counted.others.get_mut(index)) {
            *handled = true;
        }
        while counted.others.front() == Some(&true) {
            counted.others.pop_front();
            counted.done += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ClientOrigin, ClientSessionId, ClientSessionLimits, ClientSessions};
    use super::*;
    use std::time::{Duration, Instant};

    fn origin(limits: ClientSessionLimits) -> ClientOrigin {
        ClientOrigin { sessions: ClientSessions::new(limits, 7), address: 1, certificate: None }
    }

    fn attach(origin: &ClientOrigin, now: Instant, token: Option<&[u8]>) -> Attachment {
        origin.attach_to(now, ClientSessionId::new(5), token).unwrap()
    }

    #[test]
    fn only_the_connection_that_has_the_session_hands_on() {
        let (origin, now) = (origin(ClientSessionLimits::default()), Instant::now());
        let first = attach(&origin, now, None);
        assert_eq!((first.take_next(), first.take_next(), first.take_next()), (Some(0), Some(1), Some(2)));
        first.on_handled(1);
        assert_eq!(first.counts(), (0, 3));
        first.on_handled(0);
        assert_eq!(first.counts(), (2, 3));
        let second = attach(&origin, now, None);
        assert_eq!((second.memory(), second.counts()), (first.memory(), (2, 3)));
        assert_eq!(first.take_next(), None);
        // Its end changes nothing, and what it had handed on still counts until more comes.
        first.detach(now);
        first.on_handled(2);
        assert_eq!(second.counts(), (3, 3));
    }

    #[test]
    fn a_message_that_is_never_handled_is_in_the_way_of_no_later_connection() {
        let (origin, now) = (origin(ClientSessionLimits::default()), Instant::now());
        let first = attach(&origin, now, None);
        assert_eq!(first.take_next(), Some(0));
        let second = attach(&origin, now, None);
        // An answer that is lost is given again.
        assert_eq!((second.counts(), attach(&origin, now, None).counts()), ((0, 1), (0, 1)));
        let third = attach(&origin, now, None);
        assert_eq!(third.take_next(), Some(1));
        third.on_handled(1);
        first.on_handled(0);
        assert_eq!(third.counts(), (2, 2));
    }

    #[test]
    fn another_token_has_another_session_and_idle_ones_are_forgotten() {
        let limits =
            ClientSessionLimits { kept_for: Duration::from_secs(9), ..ClientSessionLimits::default() };
        let (origin, now) = (origin(limits), Instant::now());
        let first = attach(&origin, now, Some(b"a"));
        first.take_next();
        let other = attach(&origin, now, Some(b"b"));
        assert_ne!(other.memory(), first.memory());
        assert_eq!((other.counts(), first.take_next()), ((0, 0), Some(1)));
        first.detach(now);
        let soon = attach(&origin, now + Duration::from_secs(8), Some(b"a"));
        assert_eq!((soon.memory(), soon.counts()), (first.memory(), (0, 2)));
        soon.detach(now + Duration::from_secs(8));
        let late = attach(&origin, now + Duration::from_secs(17), Some(b"a"));
        assert_ne!(late.memory(), first.memory());
        assert_eq!(late.counts(), (0, 0));
    }
}
