//! Numbers for jitter and for ids: as unguessable as their seed.

use std::time::Duration;

/// A xorshift generator. What must not be guessed gets its seed from the operating system, by way of the driver.
#[derive(Debug, Clone)]
pub(super) struct Random([u64; 2]);

impl Random {
    /// Any seed will do; the same one gives the same numbers.
    pub(super) fn new(seed: [u8; 16]) -> Self {
        let seed = u128::from_ne_bytes(seed);
        Self([seed as u64 | 1, (seed >> 64) as u64])
    }

    /// Any number (xorshift128+, Vigna 2014).
    pub(super) fn next_u64(&mut self) -> u64 {
        let [mut one, two] = self.0;
        let sum = one.wrapping_add(two);
        one ^= one << 23;
        self.0 = [two, one ^ two ^ (one >> 18) ^ (two >> 5)];
        sum
    }

    /// A time below `max`.
    pub(super) fn below(&mut self, max: Duration) -> Duration {
        max.mul_f64((self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64)
    }
}
