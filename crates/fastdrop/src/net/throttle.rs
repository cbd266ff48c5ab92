//! A limit in bytes a second, shared by all streams of a transfer.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets so many bytes a second pass, on average, with a tenth of a second's worth at once.
#[derive(Debug)]
pub(crate) struct Throttle {
    rate: f64,
    free_at: Mutex<Instant>,
}

impl Throttle {
    const BURST: Duration = Duration::from_millis(100);

    /// `rate` in bytes a second; at least 1.
    pub(crate) fn new(rate: u64) -> Self {
        Self { rate: rate.max(1) as f64, free_at: Mutex::new(Instant::now()) }
    }

    /// How many bytes may go in one piece, so that the pace is even.
    pub(crate) fn piece_max(&self) -> usize {
        ((self.rate * Self::BURST.as_secs_f64()) as usize).clamp(1024, 256 << 10)
    }

    /// Books `bytes`, and says how long to wait before sending them.
    pub(crate) fn book(&self, bytes: usize, now: Instant) -> Duration {
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let start = (*free_at).max(now.checked_sub(Self::BURST).unwrap_or(now));
        *free_at = start + Duration::from_secs_f64(bytes as f64 / self.rate);
        start.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_of_bytes_takes_a_second() {
        let throttle = Throttle::new(1_000_000);
        let mut now = Instant::now();
        let start = now;
        for _ in 0..100 {
            now += throttle.book(10_000, now);
        }
        let took = (now - start).as_secs_f64();
        assert!((0.85..=1.0).contains(&took), "{took}");
    }
}
