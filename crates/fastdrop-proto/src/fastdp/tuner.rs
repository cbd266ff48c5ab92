//! How many data streams a transfer uses when nobody said (section 7, step 5).

use std::time::{Duration, Instant};

/// Climbs from a first guess by round trip: doubles while that brings at least a tenth more, else goes back.
#[derive(Debug, Clone)]
pub struct Tuner {
    target: u16,
    max: u16,
    fixed: bool,
    epoch: Duration,
    epoch_start: Option<Instant>,
    epoch_bytes: u64,
    /// Bytes a second of the last epoch with fewer streams, while a doubling is on trial.
    trial: Option<(u16, f64)>,
    /// Epochs until the next trial.
    rest: u32,
}

impl Tuner {
    /// Below this round trip a path is a short one.
    const SHORT_RTT: Duration = Duration::from_millis(2);
    /// More streams than this are never tried by themselves.
    const AUTO_MAX: u16 = 16;
    /// A doubling stays if it brings this factor.
    const GAIN_MIN: f64 = 1.10;
    /// Epochs from a failed trial to the next.
    const REST: u32 = 16;

    /// Always `streams`.
    pub fn fixed(streams: u16) -> Self {
        Self { fixed: true, target: streams, max: streams, ..Self::auto(Duration::ZERO, false, 1, 1) }
    }

    /// Adapts, between 1 and `max`, on a machine with `cores`, to a path of this round trip.
    pub fn auto(rtt: Duration, loss_tolerant: bool, cores: u16, max: u16) -> Self {
        // On a short path more streams than cores only compete, and two are enough: there is nothing to try. On a long one
        // each is bounded by buffers, and costs next to nothing; where a loss halves its rate, many are less often
        // halved all at once, and where it does not, many would only crowd each other's queue.
        let short = rtt < Self::SHORT_RTT;
        let guess = match rtt.as_millis() {
            _ if short => cores.clamp(1, 2),
            _ if loss_tolerant => 2,
            2..=29 => 4,
            _ => 8,
        };
        Self {
            target: guess.clamp(1, max.max(1)),
            max: max.clamp(1, Self::AUTO_MAX),
            fixed: short,
            // Long enough for a doubled number of streams to leave slow start.
            epoch: (rtt * 10).clamp(Duration::from_millis(300), Duration::from_secs(3)),
            epoch_start: None,
            epoch_bytes: 0,
            trial: None,
            // Slow start looks like a gain, and a short transfer has no time to try things.
            rest: 5,
        }
    }

    /// The number of data streams to have now.
    pub fn target(&self) -> u16 {
        self.target
    }

    /// Notes that no more than `streams` can be had.
    pub fn limit(&mut self, streams: u16) {
        self.max = streams.max(1);
        self.target = self.target.min(self.max);
    }

    /// Counts confirmed bytes, and decides at the end of each epoch.
    pub fn handle_confirmed(&mut self, bytes: u64, now: Instant) {
        if self.fixed {
            return;
        }
        let start = *self.epoch_start.get_or_insert(now);
        self.epoch_bytes += bytes;
        let elapsed = now.saturating_duration_since(start);
        if elapsed < self.epoch {
            return;
        }
        let rate = self.epoch_bytes as f64 / elapsed.as_secs_f64();
        self.epoch_start = Some(now);
        self.epoch_bytes = 0;
        match self.trial.take() {
            Some((before, rate_before)) if rate < rate_before * Self::GAIN_MIN => {
                self.target = before;
                self.rest = Self::REST;
            }
            Some(_) => self.rest = 0,
            None => self.rest = self.rest.saturating_sub(1),
        }
        if self.rest == 0 && self.target < self.max {
            self.trial = Some((self.target, rate));
            self.target = (self.target * 2).min(self.max);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a minute over a path that carries `rate` for a number of streams.
    fn settle(mut tuner: Tuner, rate: impl Fn(u16) -> f64) -> Vec<u16> {
        let base = Instant::now();
        let step = Duration::from_millis(50);
        let run = (0..1200u32).map(|i| {
            let bytes = rate(tuner.target()) * step.as_secs_f64();
            tuner.handle_confirmed(bytes as u64, base + step * i);
            tuner.target()
        });
        run.collect()
    }

    #[test]
    fn it_climbs_while_streams_are_what_limits() {
        let tuner = Tuner::auto(Duration::from_millis(10), true, 2, 64);
        assert_eq!(settle(tuner, |n| 1e7 * f64::from(n)).last(), Some(&16));
    }

    #[test]
    fn it_stays_where_more_streams_bring_nothing() {
        let tuner = Tuner::auto(Duration::from_millis(10), false, 2, 64);
        let run = settle(tuner, |n| if n > 4 { 0.9e9 } else { 1e9 });
        let at_four = run.iter().filter(|&&n| n == 4).count();
        assert!(at_four * 10 > run.len() * 9, "{at_four} of {}", run.len());
    }

    #[test]
    fn a_short_path_gets_two_streams_at_the_most() {
        for (cores, streams) in [(1, 1), (2, 2), (64, 2)] {
            let tuner = Tuner::auto(Duration::from_micros(50), false, cores, 64);
            assert!(settle(tuner, f64::from).iter().all(|&n| n == streams));
        }
    }

    #[test]
    fn a_long_path_begins_with_few_streams_only_where_losses_do_not_slow_them() {
        let first = |rtt_ms, tolerant| Tuner::auto(Duration::from_millis(rtt_ms), tolerant, 2, 64).target();
        assert_eq!((first(10, false), first(100, false)), (4, 8));
        assert_eq!((first(10, true), first(100, true)), (2, 2));
    }

    #[test]
    fn a_fixed_number_stays() {
        assert!(settle(Tuner::fixed(3), f64::from).iter().all(|&n| n == 3));
    }
}
