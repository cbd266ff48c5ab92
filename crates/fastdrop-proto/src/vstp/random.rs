//! Numbers for jitter, ids and challenges that nobody can guess who has seen others of them.

use std::time::Duration;

/// A generator: BLAKE3 of a counter, with a key from the operating system by way of the driver.
#[derive(Clone)]
pub(super) struct Random {
    key: [u8; blake3::KEY_LEN],
    count: u64,
}

impl Random {
    /// The same seed gives the same numbers.
    pub(super) fn new(seed: [u8; 16]) -> Self {
        Self { key: *blake3::hash(&seed).as_bytes(), count: 0 }
    }

    /// Any number.
    pub(super) fn next_u64(&mut self) -> u64 {
        self.count += 1;
        let hash = blake3::keyed_hash(&self.key, &self.count.to_le_bytes());
        hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    /// A time below `max`.
    pub(super) fn below(&mut self, max: Duration) -> Duration {
        max.mul_f64((self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

impl std::fmt::Debug for Random {
    /// Never the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Random").field("count", &self.count).finish_non_exhaustive()
    }
}
