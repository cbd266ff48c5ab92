//! The part of a connection after the BYE of the peer.

use super::Connection;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

impl Connection {
    /// The time in which the end of an encrypted stream follows BYE.
    const FAREWELL: Duration = Duration::from_secs(1);

    /// Reads on to the end that follows BYE. In TLS this is a record of its own: a connection that
    /// is closed with that unread is reset, and the peer loses what it has not read yet.
    pub(super) fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.stream.is_encrypted() {
            return Poll::Ready(());
        }
        self.farewell_until.get_or_insert_with(|| Instant::now() + Self::FAREWELL);
        // However it ends: everything that counts has come.
        let _ = ready!(self.reader.poll_discard(cx, &mut self.stream));
        Poll::Ready(())
    }

    /// Returns true if the end has not come in time; then the connection ends without it.
    pub(super) fn is_farewell_over(&self, now: Instant) -> bool {
        self.farewell_until.is_some_and(|at| at <= now)
    }
}
