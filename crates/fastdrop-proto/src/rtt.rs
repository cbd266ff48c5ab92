//! Round-trip times and the retransmission timeout computed from them (RFC 6298).

use std::time::Duration;

/// Smoothed round-trip time, its variation, and the timeout with its backoff.
#[derive(Debug, Clone)]
pub struct Rtt {
    smoothed: Option<Duration>,
    variation: Duration,
    latest: Duration,
    smallest: Duration,
    backoff: u32,
    timeout_min: Duration,
    timeout_max: Duration,
}

impl Rtt {
    /// The timeout before anything has been measured (RFC 6298, 2.1).
    pub const TIMEOUT_FIRST: Duration = Duration::from_secs(1);
    /// The granularity of the clocks and timers that a driver has.
    const GRANULARITY: Duration = Duration::from_millis(1);
    /// Beyond this many doublings every timeout is at its maximum.
    const BACKOFF_MAX: u32 = 16;

    /// Nothing measured yet; timeouts stay between the two bounds.
    pub fn new(timeout_min: Duration, timeout_max: Duration) -> Self {
        let timeout_max = timeout_max.max(timeout_min);
        let (variation, latest, smallest) = (Duration::ZERO, Duration::ZERO, Duration::MAX);
        Self { smoothed: None, variation, latest, smallest, backoff: 0, timeout_min, timeout_max }
    }

    /// Takes one measurement. By Karn's rule it must come from something that was sent once.
    pub fn on_measured(&mut self, rtt: Duration) {
        self.latest = rtt;
        self.smallest = self.smallest.min(rtt);
        self.backoff = 0;
        let Some(smoothed) = self.smoothed else {
            self.smoothed = Some(rtt);
            self.variation = rtt / 2;
            return;
        };
        self.variation = (self.variation * 3 + smoothed.abs_diff(rtt)) / 4;
        self.smoothed = Some((smoothed * 7 + rtt) / 8);
    }

    /// The timeout has passed: the next one is twice as long.
    pub fn on_timeout(&mut self) {
        self.backoff = (self.backoff + 1).min(Self::BACKOFF_MAX);
    }

    /// Something new got through: no reason to wait longer than measured.
    pub fn on_progress(&mut self) {
        self.backoff = 0;
    }

    /// The smoothed round-trip time; None before the first measurement.
    pub fn smoothed(&self) -> Option<Duration> {
        self.smoothed
    }

    /// The newest measurement; zero before the first.
    pub fn latest(&self) -> Duration {
        self.latest
    }

    /// The smallest measurement; the largest time there is before the first.
    pub fn smallest(&self) -> Duration {
        self.smallest
    }

    /// How long to wait for an answer now.
    pub fn timeout(&self) -> Duration {
        self.timeout_after(self.backoff)
    }

    /// How long to wait for an answer to something that has been sent `attempts` + 1 times.
    pub fn timeout_after(&self, attempts: u32) -> Duration {
        let base = match self.smoothed {
            Some(smoothed) => (smoothed + (self.variation * 4).max(Self::GRANULARITY)).max(self.timeout_min),
            None => Self::TIMEOUT_FIRST,
        };
        let factor = 1_u32 << attempts.min(Self::BACKOFF_MAX);
        base.saturating_mul(factor).min(self.timeout_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_timeout_is_that_of_rfc_6298() {
        let mut rtt = Rtt::new(MS, MS * 60_000);
        assert_eq!(rtt.timeout(), MS * 1000);
        rtt.on_measured(MS * 100);
        // SRTT 100, RTTVAR 50.
        assert_eq!(rtt.timeout(), MS * 300);
        rtt.on_measured(MS * 180);
        // RTTVAR (3 × 50 + 80) / 4 = 57.5, SRTT (7 × 100 + 180) / 8 = 110.
        assert_eq!(rtt.smoothed(), Some(MS * 110));
        assert_eq!(rtt.timeout(), MS * 340);
    }

    #[test]
    fn it_doubles_up_to_its_bound_and_returns() {
        let mut rtt = Rtt::new(MS * 100, MS * 1000);
        rtt.on_measured(MS);
        assert_eq!(rtt.timeout(), MS * 100);
        rtt.on_timeout();
        rtt.on_timeout();
        assert_eq!(rtt.timeout(), MS * 400);
        for _ in 0..100 {
            rtt.on_timeout();
        }
        assert_eq!(rtt.timeout(), MS * 1000);
        rtt.on_measured(MS);
        assert_eq!(rtt.timeout(), MS * 100);
    }
}
