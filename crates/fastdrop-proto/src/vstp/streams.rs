//! The numbers that one sender has used, where it counts upwards (docs/protocol/vstp.md, section
//! 6).

use super::ids::{new_stream, split};
use super::random::Random;
use std::collections::VecDeque;

/// Numbers of one sender that are not settled lie within so many of each other.
pub(super) const SPAN: u32 = 1 << 15;

/// The numbers that a sender uses, each once.
#[derive(Debug)]
pub(super) struct Numbers {
    /// The last one.
    last: u64,
    /// Random bits of the next stream.
    next_stream: u32,
}

impl Numbers {
    /// A stream that nobody can guess.
    pub(super) fn new(random: &mut Random) -> Self {
        Self { last: new_stream(random.next_u64() as u32), next_stream: random.next_u64() as u32 }
    }

    /// Returns true if the next number is not too far above the oldest that is not settled. A new
    /// stream begins when all of the one before are.
    pub(super) fn has_next(&self, oldest: Option<u64>) -> bool {
        let is_last = self.last as u32 == u32::MAX;
        oldest.is_none_or(|oldest| !is_last && self.last + 1 - oldest < u64::from(SPAN))
    }

    /// Returns true if this number of the running stream has been used.
    pub(super) fn has_used(&self, number: u64) -> bool {
        number >> u32::BITS == self.last >> u32::BITS && number <= self.last
    }

    /// Takes the next number.
    pub(super) fn take_next(&mut self) -> u64 {
        if self.last as u32 == u32::MAX {
            self.last = new_stream(self.next_stream ^ (self.last >> u32::BITS) as u32);
        }
        self.last += 1;
        self.last
    }
}

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
    /// Streams of one address: one of small frames and one of messages in fragments are running,
    /// and late datagrams of those before them may come.
    const MAX: usize = 4;

    /// Returns what is known of a number.
    pub(super) fn peek(&self, number: u64) -> Known {
        let (id, count) = split(number);
        self.streams.iter().find(|stream| stream.id == id).map_or(Known::New, |stream| stream.peek(count))
    }

    /// Returns those of the 128 numbers below this one that were acknowledged, a bit each, of which
    /// the highest is for the next lower number.
    pub(super) fn acknowledged_below(&self, number: u64) -> u128 {
        let (id, count) = split(number);
        let known = self.streams.iter().find(|stream| stream.id == id);
        known.map_or(0, |stream| stream.acknowledged_below(count))
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

    /// The acknowledged ones of 64 numbers, lowest bit first; those before what is kept all were.
    fn acknowledged(&self, word: Option<u32>) -> u128 {
        let Some(word) = word else { return 0 };
        let Some(at) = word.checked_sub(self.first) else { return u64::MAX.into() };
        self.words.get(at as usize).map_or(0, |word| (word.came & !word.refused).into())
    }

    fn acknowledged_below(&self, count: u32) -> u128 {
        let (word, bit) = (count / u64::BITS, count % u64::BITS);
        let [two, one] = [2, 1].map(|before| self.acknowledged(word.checked_sub(before)));
        let below = two | one << u64::BITS;
        match bit {
            0 => below,
            bit => below >> bit | self.acknowledged(Some(word)) << (u128::BITS - bit),
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
        assert_eq!(streams.peek(newest - (4 << u32::BITS)), Known::New, "one before the last four");
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
                let below = streams.acknowledged_below(number);
                for before in 1..=128.min(count * scale - 1) {
                    let acknowledged = match model.get(&(stream, count * scale - before)) {
                        _ if count * scale - before + u64::from(SPAN) <= max => continue,
                        fate => fate == Some(&true),
                    };
                    prop_assert_eq!(below >> (128 - before) & 1 == 1, acknowledged, "{} below", before);
                }
                if expected == Known::New {
                    streams.settle(number, acknowledged);
                    model.insert((stream, count * scale), acknowledged);
                }
            }
        }
    }
}
