//! Pauses between attempts that fail, so that many who failed together do not come again together.

use std::time::Duration;

/// The bounds of the pauses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffConfig {
    /// No pause is shorter.
    pub least: Duration,
    /// The bound of the first pause.
    pub first: Duration,
    /// The bound never exceeds this.
    pub max: Duration,
}

impl Default for BackoffConfig {
    /// From 10 ms, at most 100 ms at first, and at most 30 seconds.
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self { least: ms(10), first: ms(100), max: Duration::from_secs(30) }
    }
}

/// The pauses of one who tries again: each random below a bound that doubles.
#[derive(Debug, Clone)]
pub struct Backoff {
    config: BackoffConfig,
    bound: Duration,
}

impl Backoff {
    /// A first attempt has not failed yet. Bounds that contradict each other are raised: `first` to
    /// `least`, `max` to `first`.
    pub fn new(config: BackoffConfig) -> Self {
        let first = config.first.max(config.least);
        let config = BackoffConfig { first, max: config.max.max(first), ..config };
        Self { config, bound: first }
    }

    /// The pause before the next attempt, evenly between the least and the bound. `random` is any
    /// number, each with the same chance.
    pub fn next_pause(&mut self, random: u64) -> Duration {
        let bound = self.bound;
        self.bound = bound.saturating_mul(2).min(self.config.max);
        let span = (bound - self.config.least).as_nanos();
        // In parts of 2^-32; no product has more than 126 bits.
        let parts = u128::from(random >> 32);
        let lower = ((span & 0xffff_ffff) * parts) >> 32;
        let share = (span >> 32) * parts + lower;
        let share = u64::try_from(share).unwrap_or(u64::MAX);
        (self.config.least + Duration::from_nanos(share)).min(bound)
    }

    /// An attempt has succeeded, and something came of it: the next pause is a first one.
    pub fn on_success(&mut self) {
        self.bound = self.config.first;
    }

    /// The most that a pause may become.
    pub fn max(&self) -> Duration {
        self.config.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms() -> impl Strategy<Value = Duration> {
        (0_u64..10_000_000).prop_map(Duration::from_millis)
    }

    proptest! {
        #[test]
        fn every_pause_is_within_a_bound_that_doubles_up_to_the_most(
            least in ms(), first in ms(), max in ms(), randoms in prop::collection::vec(any::<u64>(), 1..40),
        ) {
            let mut backoff = Backoff::new(BackoffConfig { least, first, max });
            let first = first.max(least);
            let max = max.max(first);
            for round in 0..2 {
                let mut bound = first;
                for random in &randoms {
                    let pause = backoff.next_pause(*random);
                    prop_assert!(least <= pause && pause <= bound, "{round}: {least:?} {pause:?} {bound:?}");
                    bound = (bound * 2).min(max);
                }
                backoff.on_success();
            }
        }

        #[test]
        fn a_larger_number_gives_no_shorter_pause(one in any::<u64>(), other in any::<u64>()) {
            let of = |random| Backoff::new(BackoffConfig::default()).next_pause(random);
            prop_assert!(of(one.min(other)) <= of(one.max(other)));
        }
    }

    #[test]
    fn pauses_are_spread_over_all_that_is_between_the_bounds() {
        let config = BackoffConfig::default();
        let of = |random| Backoff::new(config).next_pause(random);
        assert_eq!(of(0), config.least);
        assert!(config.first - of(u64::MAX) < Duration::from_micros(1));
        let half = (config.least + config.first) / 2;
        assert!(of(u64::MAX / 2).abs_diff(half) < Duration::from_micros(1));
    }

    #[test]
    fn times_that_no_clock_reaches_do_no_harm() {
        let most = BackoffConfig { least: Duration::ZERO, first: Duration::MAX, max: Duration::MAX };
        let mut backoff = Backoff::new(most);
        for random in [0, u64::MAX, u64::MAX / 2] {
            assert!(backoff.next_pause(random) <= Duration::MAX);
        }
    }
}
