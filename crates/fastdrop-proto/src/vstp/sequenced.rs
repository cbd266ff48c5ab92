//! The newest states of a sender's channels, and what is older (docs/protocol/vstp.md, section 10).

use super::ids::split;
use super::lineage::{Age, Lineage};
use std::collections::BTreeMap;
use std::time::Instant;

/// The newest states that were handed on of one address.
#[derive(Debug, Default)]
pub(super) struct Newest {
    streams: Lineage,
    /// The count of the newest by channel, all of the running stream.
    channels: BTreeMap<u32, u32>,
    /// The highest count of a channel that was forgotten.
    floor: u32,
}

impl Newest {
    /// Returns true if a state is newer than all that were handed on of its channel.
    pub(super) fn is_newer(&self, now: Instant, channel: u32, number: u64) -> bool {
        let (stream, count) = split(number);
        match self.streams.age(now, stream) {
            Age::New => true,
            Age::Past => false,
            // One channel may have been forgotten; it had nothing newer than this.
            Age::Running => count > self.channels.get(&channel).copied().unwrap_or(self.floor),
        }
    }

    /// Records that a newer state was handed on. Of more channels than `max` the one that has had
    /// none for longest is forgotten.
    pub(super) fn on_handed(&mut self, now: Instant, channel: u32, number: u64, max: usize) {
        let (stream, count) = split(number);
        if self.streams.age(now, stream) == Age::New {
            self.streams.begin(now, stream);
            self.channels.clear();
            self.floor = 0;
        }
        self.channels.insert(channel, count);
        while self.channels.len() > max {
            // They are counted together.
            let oldest = self.channels.iter().min_by_key(|(_, count)| **count);
            let Some((&oldest, &count)) = oldest else { return };
            self.channels.remove(&oldest);
            self.floor = self.floor.max(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vstp::seen::Seen;
    use proptest::prelude::*;
    use std::time::Duration;

    const STREAM: u64 = 0x4000_0001 << u32::BITS;

    fn take(newest: &mut Newest, now: Instant, channel: u32, number: u64) -> bool {
        let is_newer = newest.is_newer(now, channel, number);
        if is_newer {
            newest.on_handed(now, channel, number, 8);
        }
        is_newer
    }

    #[test]
    fn a_stream_that_was_left_does_not_come_back() {
        let (mut newest, now) = (Newest::default(), Instant::now());
        let of = |stream: u64, count: u64| STREAM + (stream << u32::BITS) + count;
        assert!(take(&mut newest, now, 1, of(0, 9)) && take(&mut newest, now, 1, of(1, 1)));
        assert!(!take(&mut newest, now, 1, of(0, 10)) && !take(&mut newest, now, 2, of(0, 11)));
        assert!(take(&mut newest, now, 2, of(1, 2)) && !take(&mut newest, now, 1, of(1, 1)));
        for stream in 2..1000 {
            assert!(take(&mut newest, now, 1, of(stream, u64::from(u32::MAX))));
            assert!(!take(&mut newest, now, 1, of(stream - 1, u64::from(u32::MAX))));
        }
        assert_eq!(newest.channels.len(), 1);
    }

    #[test]
    fn a_stream_that_is_alive_outlives_one_that_somebody_has_made_up() {
        let (mut newest, now) = (Newest::default(), Instant::now());
        assert!(take(&mut newest, now, 1, STREAM + 1));
        assert!(take(&mut newest, now, 1, 2 * STREAM + 1));
        let late = now + Seen::AGE_MAX;
        assert!(!take(&mut newest, late - Duration::from_secs(1), 1, STREAM + 2));
        assert!(take(&mut newest, late, 1, STREAM + 3) && !take(&mut newest, late, 1, STREAM + 3));
    }

    proptest! {
        /// However many channels there are, and in whatever order their states come.
        #[test]
        fn no_channel_goes_backwards_and_few_are_remembered(
            states in prop::collection::vec((0..40_u32, 1..2_000_u64), 1..600),
        ) {
            let (mut newest, now) = (Newest::default(), Instant::now());
            let mut handed: BTreeMap<u32, u64> = BTreeMap::new();
            for (channel, count) in states {
                let before = handed.get(&channel).copied().unwrap_or(0);
                let is_newer = take(&mut newest, now, channel, STREAM + count);
                prop_assert!(!is_newer || count > before, "{channel}: {count} after {before}");
                if is_newer {
                    handed.insert(channel, count);
                }
                prop_assert!(newest.channels.len() <= 8);
            }
        }
    }
}
