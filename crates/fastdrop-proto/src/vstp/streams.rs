//! The numbers that one sender has used, where it counts upwards (docs/protocol/vstp.md, section
//! 6).

use std::collections::VecDeque;

/// Numbers of one sender that are not settled lie within so many of each other.
pub(super) const SPAN: u32 = 1 << 15;

/// Knowledge of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// It has not come.
    New,
    /// It has come. False: it was settled otherwise than by an acknowledgement.
    Came { acknowledged: bool },
    /// Nobody waits for it any more: one that is more than [`SPAN`] above it has come.
    Past,
}

/// The numbers that came, by the sender's stream: the upper half of a number, which is random and
/// stays the same as long as a sender runs. The lower half counts from 1.
#[derive(Debug, Default)]
pub(super) struct Streams {
    /// Those that were used last come first.
    streams: VecDeque<Stream>,
}

impl Streams {
    /// Streams of one address: one is running, and late datagrams of the one before it may come.
    const MAX: usize = 2;

    /// Returns what is known of a number.
    pub(super) fn peek(&self, number: u64) -> Known {
        let (id, count) = split(number);
        self.streams.iter().find(|stream| stream.id == id).map_or(Known::New, |stream| stream.peek(count))
    }

    /// Records that a number has come and is settled: by an acknowledgement, or otherwise.
    pub(super) fn settle(&mut self, number: u64, acknowledged: bool) {
        let (id, count) = split(number);
        let known = self.streams.iter().position(|stream| stream.id == id);
        let known = known.and_then(|at| self.streams.remove(at));
        let mut stream = known.unwrap_or_else(|| Stream::new(id));
        stream.settle(count, acknowledged);
        self.streams.truncate(Self::MAX - 1);
        self.streams.push_front(stream);
    }
}

fn split(number: u64) -> (u32, u32) {
    ((number >> u32::BITS) as u32, number as u32)
}

/// 64 numbers, a bit for each.
#[derive(Debug, Clone, Copy, Default)]
struct Word {
    came: u64,
    refused: u64,
}

#[derive(Debug)]
struct Stream {
    id: u32,
    /// The highest count that came.
    max: u32,
    /// The first word that is kept: all before it came and were acknowledged, or are past.
    first: u32,
    words: VecDeque<Word>,
}

impl Stream {
    fn new(id: u32) -> Self {
        // There is no count 0, so that the first word can become full.
        Self { id, max: 0, first: 0, words: VecDeque::from([Word { came: 1, refused: 0 }]) }
    }

    fn is_past(&self, count: u32) -> bool {
        count.checked_add(SPAN).is_some_and(|end| end <= self.max)
    }

    /// The place of a count among the words that are kept; None if it is before them.
    fn place(&self, count: u32) -> Option<(usize, u64)> {
        let word = (count / u64::BITS).checked_sub(self.first)?;
        Some((word as usize, 1 << (count % u64::BITS)))
    }

    fn peek(&self, count: u32) -> Known {
        if self.is_past(count) {
            return Known::Past;
        }
        let Some((word, bit)) = self.place(count) else { return Known::Came { acknowledged: true } };
        match self.words.get(word) {
            Some(word) if word.came & bit != 0 => Known::Came { acknowledged: word.refused & bit == 0 },
            _ => Known::New,
        }
    }

    fn settle(&mut self, count: u32, acknowledged: bool) {
        if self.is_past(count) {
            return;
        }
        if count > self.max {
            self.max = count;
            self.forget_past();
        }
        let Some((word, bit)) = self.place(count) else { return };
        if word >= self.words.len() {
            self.words.resize(word + 1, Word::default());
        }
        if let Some(word) = self.words.get_mut(word) {
            word.came |= bit;
            word.refused |= if acknowledged { 0 } else { bit };
        }
        while self.words.front().is_some_and(|word| word.came == u64::MAX && word.refused == 0) {
            self.words.pop_front();
            self.first += 1;
        }
    }

    /// Words of which all numbers are past.
    fn forget_past(&mut self) {
        let first = self.max.saturating_sub(SPAN - 1) / u64::BITS;
        if let Some(past) = first.checked_sub(self.first) {
            self.words.drain(..self.words.len().min(past as usize));
            self.first = first;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const STREAM: u64 = 0x5555_5555 << u32::BITS;

    fn words(streams: &Streams) -> usize {
        streams.streams.iter().map(|stream| stream.words.len()).sum()
    }

    #[test]
    fn what_came_in_order_costs_a_word() {
        let mut streams = Streams::default();
        for count in 1..=1_000_000 {
            assert_eq!(streams.peek(STREAM + count), Known::New);
            streams.settle(STREAM + count, true);
            assert!(words(&streams) <= 1);
        }
        for (count, expected) in [
            (1_000_000, Known::Came { acknowledged: true }),
            (1_000_000 - u64::from(SPAN) + 1, Known::Came { acknowledged: true }),
            (1_000_000 - u64::from(SPAN), Known::Past),
            (1, Known::Past),
            (1_000_001, Known::New),
        ] {
            assert_eq!(streams.peek(STREAM + count), expected, "{count}");
        }
    }

    #[test]
    fn the_newest_streams_are_known_and_a_bounded_number_of_words() {
        let mut streams = Streams::default();
        for id in 1..100_u64 {
            for count in [1, u64::from(u32::MAX) - 70_000, u64::from(u32::MAX), 5] {
                streams.settle((id << u32::BITS) + count, false);
            }
            assert!(words(&streams) <= Streams::MAX * (SPAN / u64::BITS + 1) as usize);
        }
        let newest = (99 << u32::BITS) + u64::from(u32::MAX);
        assert_eq!(streams.peek(newest), Known::Came { acknowledged: false });
        assert_eq!(streams.peek(newest - 1), Known::New);
        assert_eq!(streams.peek(newest - (1 << u32::BITS)), Known::Came { acknowledged: false });
        assert_eq!(streams.peek(newest - (2 << u32::BITS)), Known::New, "one before the last two");
    }

    proptest! {
        /// Within the span what came is known, with its fate, and nothing else.
        #[test]
        fn numbers_in_any_order_are_what_a_map_says(
            steps in prop::collection::vec((1..3_u64, 1..3_000_u64, any::<bool>()), 1..300),
            scale in prop_oneof![Just(1_u64), Just(40)],
        ) {
            let mut streams = Streams::default();
            let mut model: BTreeMap<(u64, u64), bool> = BTreeMap::new();
            for (stream, count, acknowledged) in steps {
                let number = (stream << u32::BITS) + count * scale;
                let max = model.range((stream, 0)..(stream, u64::MAX)).next_back().map_or(0, |((_, max), _)| *max);
                let expected = match model.get(&(stream, count * scale)) {
                    _ if count * scale + u64::from(SPAN) <= max => Known::Past,
                    Some(acknowledged) => Known::Came { acknowledged: *acknowledged },
                    None => Known::New,
                };
                prop_assert_eq!(streams.peek(number), expected);
                if expected == Known::New {
                    streams.settle(number, acknowledged);
                    model.insert((stream, count * scale), acknowledged);
                }
            }
        }
    }
}
