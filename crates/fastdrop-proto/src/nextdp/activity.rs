//! The times of a transfer: when nobody adds to it any more, and when a complete one is settled.

use std::time::{Duration, Instant};

/// A transfer without an id for which nothing came for so long makes room for a new one of its
/// address.
pub const STALE_AFTER: Duration = Duration::from_secs(5);
/// A transfer for which nothing came for so long is given up.
pub const GIVEN_UP_AFTER: Duration = Duration::from_secs(60);
/// Silence after which no chunk of another transfer is expected. Two senders that started at the
/// same time have all their connections open by then.
const SETTLE: Duration = Duration::from_millis(50);
/// The same, where chunks came again: senders in use do not repeat any, so there is probably
/// another one, whose chunk 0 has not come yet.
const SETTLE_REPEATED: Duration = Duration::from_secs(1);
/// A complete transfer waits at most so long for other requests of its address to end.
const SETTLE_MAX: Duration = Duration::from_secs(60);

/// Requests that belong to one transfer, and when the last byte of one came.
#[derive(Debug, Clone)]
pub struct Activity {
    last: Instant,
    /// Requests that are not answered yet.
    requests: u32,
    /// Those among them for which this end works, or has no room: their silence is not the
    /// sender's.
    working: u32,
}

/// An answer to the question if a complete transfer may be named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// Nothing else comes from its address.
    Yes,
    /// Ask again then.
    NotBefore(Instant),
    /// Something else has been coming all the time.
    Never,
}

impl Activity {
    /// Creates the activity of a transfer without requests.
    pub fn new(now: Instant) -> Self {
        Self { last: now, requests: 0, working: 0 }
    }

    /// Records the head of a request.
    pub fn handle_request(&mut self, now: Instant) {
        self.requests += 1;
        self.last = now;
    }

    /// Records bytes of a body.
    pub fn handle_bytes(&mut self, now: Instant) {
        self.last = now;
    }

    /// Records that a request was answered, or has broken off.
    pub fn handle_request_end(&mut self, now: Instant) {
        self.requests = self.requests.saturating_sub(1);
        self.last = self.last.max(now);
    }

    /// Records that a request waits for this end from now on.
    pub fn handle_work(&mut self) {
        self.working += 1;
    }

    /// Records that a request waits for this end no more.
    pub fn handle_work_end(&mut self, now: Instant) {
        self.working = self.working.saturating_sub(1);
        self.last = self.last.max(now);
    }

    /// Returns true if requests are under way.
    pub fn has_requests(&self) -> bool {
        self.requests > 0
    }

    /// Returns true if nothing has come, and nothing was to be done, for `idle`. Requests that are
    /// under way and silent do not count: their sender may be gone.
    pub fn is_idle(&self, idle: Duration, now: Instant) -> bool {
        self.working == 0 && now.saturating_duration_since(self.last) >= idle
    }

    /// Decides whether a transfer without an id, complete since `complete` by the request that
    /// asks, is the whole transfer of one sender. While other requests of the address are under
    /// way it may have chunks of another one. `repeated` says that chunks came again. A request
    /// that waits for this end is none that is silent.
    pub fn poll_settled(&self, complete: Instant, repeated: bool, now: Instant) -> Settled {
        let last = self.last.max(complete);
        let is_alone = self.requests <= 1;
        let quiet = match (is_alone, repeated) {
            (true, false) => SETTLE,
            (true, true) => SETTLE_REPEATED,
            (false, _) => STALE_AFTER,
        };
        if self.working > 0 {
            return Settled::NotBefore(now + quiet);
        }
        if now.saturating_duration_since(last) >= quiet {
            return Settled::Yes;
        }
        if now.saturating_duration_since(complete) >= SETTLE_MAX {
            return Settled::Never;
        }
        Settled::NotBefore(last + quiet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_transfer_is_stale_after_five_seconds_without_a_byte() {
        let start = Instant::now();
        let mut activity = Activity::new(start);
        activity.handle_request(start);
        assert!(!activity.is_idle(STALE_AFTER, start + 4 * SECOND));
        // A request that is under way and silent is no sign of life.
        assert!(activity.is_idle(STALE_AFTER, start + 5 * SECOND));
    }

    #[test]
    fn a_slow_sender_is_alive_as_long_as_bytes_come() {
        let start = Instant::now();
        let mut activity = Activity::new(start);
        activity.handle_request(start);
        for second in 1..600 {
            let now = start + second * 4 * SECOND;
            assert!(!activity.is_idle(STALE_AFTER, now), "after {second} pauses of four seconds");
            activity.handle_bytes(now);
        }
    }

    #[test]
    fn a_slow_disk_is_not_the_senders_silence() {
        let start = Instant::now();
        let mut activity = Activity::new(start);
        activity.handle_request(start);
        activity.handle_work();
        assert!(!activity.is_idle(STALE_AFTER, start + 100 * SECOND));
        activity.handle_work_end(start + 100 * SECOND);
        assert!(!activity.is_idle(STALE_AFTER, start + 104 * SECOND));
        assert!(activity.is_idle(STALE_AFTER, start + 105 * SECOND));
    }

    /// A chunk of another sender, say, for which there is no room in memory.
    #[test]
    fn a_complete_transfer_is_not_settled_while_another_request_waits_for_this_end() {
        let start = Instant::now();
        for repeated in [false, true] {
            let mut activity = Activity::new(start);
            activity.handle_request(start);
            activity.handle_request(start);
            activity.handle_work();
            for seconds in [5, 59, 60, 600] {
                let now = start + seconds * SECOND;
                let settled = activity.poll_settled(start, repeated, now);
                assert!(matches!(settled, Settled::NotBefore(at) if at > now), "{settled:?}");
            }
            activity.handle_work_end(start + 10 * SECOND);
            activity.handle_request_end(start + 10 * SECOND);
            assert_eq!(activity.poll_settled(start, repeated, start + 11 * SECOND), Settled::Yes);
        }
    }

    #[test]
    fn a_complete_transfer_is_settled_when_nothing_else_comes() {
        let start = Instant::now();
        let mut activity = Activity::new(start);
        activity.handle_request(start);
        assert_eq!(activity.poll_settled(start, false, start), Settled::NotBefore(start + SETTLE));
        assert_eq!(activity.poll_settled(start, false, start + SETTLE), Settled::Yes);
        // Chunks came again: of whom?
        assert_eq!(
            activity.poll_settled(start, true, start + SETTLE),
            Settled::NotBefore(start + SETTLE_REPEATED)
        );
        assert_eq!(activity.poll_settled(start, true, start + SETTLE_REPEATED), Settled::Yes);
        // Another request of the address: it may be another transfer's.
        activity.handle_request(start + SETTLE / 2);
        assert_eq!(
            activity.poll_settled(start, false, start + SETTLE),
            Settled::NotBefore(start + SETTLE / 2 + STALE_AFTER)
        );
        // It ended and was the same: nothing else came.
        activity.handle_request_end(start + SECOND);
        assert_eq!(activity.poll_settled(start, false, start + SECOND + SETTLE), Settled::Yes);
    }

    #[test]
    fn a_request_that_is_silent_or_endless_does_not_keep_a_complete_transfer_for_ever() {
        let start = Instant::now();
        let mut activity = Activity::new(start);
        activity.handle_request(start);
        activity.handle_request(start);
        assert_eq!(activity.poll_settled(start, false, start + STALE_AFTER), Settled::Yes);
        for second in 1..=60 {
            activity.handle_bytes(start + second * SECOND);
        }
        assert_eq!(activity.poll_settled(start, false, start + SETTLE_MAX), Settled::Never);
    }
}
