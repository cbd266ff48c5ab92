//! Which acknowledged frames have been handed on already.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// The numbers and CRCs of the last frames that wanted an acknowledgement.
///
/// The CRC belongs to it because programs of version 0.2 begin to count at 1 whenever they start.
#[derive(Debug, Default)]
pub(super) struct Seen {
    seen: HashMap<(u64, u32), Instant>,
    order: VecDeque<(Instant, u64, u32)>,
}

impl Seen {
    /// Nobody sends a frame again later than this.
    const AGE_MAX: Duration = Duration::from_secs(60);
    const COUNT_MAX: usize = 4096;

    /// Whether this one is new; it is not the next time.
    pub(super) fn first_time(&mut self, now: Instant, msg_id: u64, crc: u32) -> bool {
        while let Some(&(at, msg_id, crc)) = self.order.front() {
            if now.saturating_duration_since(at) < Self::AGE_MAX && self.order.len() < Self::COUNT_MAX {
                break;
            }
            self.order.pop_front();
            self.seen.remove(&(msg_id, crc));
        }
        if self.seen.contains_key(&(msg_id, crc)) {
            return false;
        }
        self.seen.insert((msg_id, crc), now);
        self.order.push_back((now, msg_id, crc));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_new_once_until_it_is_forgotten() {
        let now = Instant::now();
        let mut seen = Seen::default();
        assert!(seen.first_time(now, 1, 7));
        assert!(!seen.first_time(now, 1, 7));
        assert!(seen.first_time(now, 1, 8), "another frame with the same number");
        assert!(seen.first_time(now + Seen::AGE_MAX, 1, 7));
        for n in 0..2 * Seen::COUNT_MAX as u64 {
            seen.first_time(now, n, 0);
        }
        assert!(seen.seen.len() <= Seen::COUNT_MAX && seen.order.len() <= Seen::COUNT_MAX);
    }
}
