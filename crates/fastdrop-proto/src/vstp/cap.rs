//! A bound on bytes a second (docs/protocol/vstp.md, section 10).

use std::time::{Duration, Instant};

/// A token bucket that may be overdrawn by what leaves at once.
#[derive(Debug)]
pub(super) struct Cap {
    bytes_per_second: f64,
    /// Bytes that may leave now; below zero, what has left too early.
    credit: f64,
    credited_at: Instant,
}

impl Cap {
    /// The least that can be set: with less, a message would be given up between two datagrams.
    pub(super) const MIN: u64 = 16 << 10;
    /// The bytes that leave at once after a pause: as many as in this time.
    const BURST: Duration = Duration::from_millis(20);

    /// So many bytes a second.
    pub(super) fn new(now: Instant, bytes_per_second: u64) -> Self {
        let bytes_per_second = bytes_per_second.max(Self::MIN) as f64;
        Self { bytes_per_second, credit: 0.0, credited_at: now }
    }

    /// So many bytes a second from now on; what has left too early stays to be made up for.
    pub(super) fn set_rate(&mut self, now: Instant, bytes_per_second: u64) {
        let _ = self.poll(now);
        self.bytes_per_second = bytes_per_second.max(Self::MIN) as f64;
    }

    /// Returns how much may leave now; an error with the time from which something may.
    pub(super) fn poll(&mut self, now: Instant) -> Result<u64, Instant> {
        let passed = now.saturating_duration_since(self.credited_at).as_secs_f64();
        let most = self.bytes_per_second * Self::BURST.as_secs_f64();
        self.credit = self.bytes_per_second.mul_add(passed, self.credit).min(most);
        self.credited_at = now;
        if self.credit > 0.0 {
            return Ok(self.credit as u64);
        }
        // A millisecond's worth at a time, as timers are no finer.
        let wait = (self.bytes_per_second / 1000.0 - self.credit) / self.bytes_per_second;
        Err(now + Duration::from_secs_f64(wait))
    }

    /// So many bytes have left.
    pub(super) fn on_left(&mut self, bytes: usize) {
        self.credit -= bytes as f64;
    }
}
