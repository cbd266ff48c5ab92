//! The numbers of one client's session that were handed on (docs/protocol/vstp.md, section 11).

use std::collections::VecDeque;

/// Numbers of one session that have no outcome lie within so many of each other.
pub(super) const SPAN: u64 = 4096;

/// The state of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It was not handed on.
    New,
    /// The application has it, and has not said what became of it.
    InHand,
    /// Handled, and acknowledged.
    Acknowledged,
    /// Refused.
    Refused,
    /// Nobody waits for it any more: one that is [`SPAN`] above it was handed on.
    Past,
}

/// 64 numbers, a bit for each.
#[derive(Debug, Clone, Copy, Default)]
struct Word {
    came: u64,
    acknowledged: u64,
    refused: u64,
}

/// The numbers that were handed on, and what became of them.
#[derive(Debug, Default)]
pub(super) struct HandedOn {
    /// The highest one.
    max: u64,
    /// The first word that is kept: all before it were acknowledged, or are past.
    first: u64,
    words: VecDeque<Word>,
    /// The ERR frames of the last refusals.
    refusals: VecDeque<(u64, Vec<u8>)>,
}

impl HandedOn {
    /// Refusals whose reasons are kept.
    const REFUSALS_MAX: usize = 16;

    fn is_past(&self, number: u64) -> bool {
        number.checked_add(SPAN).is_some_and(|end| end <= self.max)
    }

    /// The place of a number among the words that are kept; None if it is before them.
    fn place(&self, number: u64) -> Option<(usize, u64)> {
        let word = (number / 64).checked_sub(self.first)?;
        Some((usize::try_from(word).unwrap_or(usize::MAX), 1 << (number % 64)))
    }

    pub(super) fn fate(&self, number: u64) -> Fate {
        if self.is_past(number) {
            return Fate::Past;
        }
        let Some((word, bit)) = self.place(number) else { return Fate::Acknowledged };
        match self.words.get(word) {
            Some(word) if word.acknowledged & bit != 0 => Fate::Acknowledged,
            Some(word) if word.refused & bit != 0 => Fate::Refused,
            Some(word) if word.came & bit != 0 => Fate::InHand,
            _ => Fate::New,
        }
    }

    /// Records that a number is handed on now. False if it was already, or is past.
    pub(super) fn claim(&mut self, number: u64) -> bool {
        if self.fate(number) != Fate::New {
            return false;
        }
        if number > self.max {
            self.max = number;
            self.forget_past();
        }
        let Some((place, bit)) = self.place(number) else { return false };
        // Not more than SPAN numbers, as the first word is not past.
        while self.words.len() <= place {
            self.words.push_back(Word::default());
        }
        if let Some(word) = self.words.get_mut(place) {
            word.came |= bit;
        }
        true
    }

    /// Records what became of a number that is in hand.
    pub(super) fn acknowledge(&mut self, number: u64) {
        if let Some((place, bit)) = self.place(number)
            && let Some(word) = self.words.get_mut(place)
        {
            word.acknowledged |= bit;
        }
        self.forget_past();
    }

    /// The same, with the ERR frame that says why.
    pub(super) fn refuse(&mut self, number: u64, answer: Vec<u8>) {
        if let Some((place, bit)) = self.place(number)
            && let Some(word) = self.words.get_mut(place)
        {
            word.refused |= bit;
        }
        self.refusals.truncate(Self::REFUSALS_MAX - 1);
        self.refusals.push_front((number, answer));
    }

    /// The ERR frame of a refusal, if it is kept.
    pub(super) fn refusal(&self, number: u64) -> Option<&[u8]> {
        self.refusals.iter().find(|(refused, _)| *refused == number).map(|(_, answer)| &answer[..])
    }

    fn forget_past(&mut self) {
        // The first number that is not past.
        let begin = self.max.saturating_add(1).saturating_sub(SPAN);
        while let Some(word) = self.words.front() {
            if self.first >= begin / 64 && word.acknowledged != u64::MAX {
                break;
            }
            self.words.pop_front();
            self.first += 1;
        }
        self.first = self.first.max(begin / 64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// Compared with a map of all numbers.
        #[test]
        fn no_number_is_handed_on_twice_and_memory_is_bounded(
            steps in prop::collection::vec((0_u8..10, 0_u64..9000, any::<u16>()), 1..2000),
            start in prop::sample::select(vec![0, 1, 5000, u64::MAX - 20_000]),
        ) {
            let (mut handed_on, mut all, mut max) = (HandedOn::default(), BTreeMap::new(), 0_u64);
            for (what, back, salt) in steps {
                let number = match what {
                    // Far ahead, as from a peer that does not count.
                    0 => start.saturating_add(u64::from(salt)),
                    1..5 => max.max(start).saturating_add(1),
                    _ => max.max(start).saturating_sub(back),
                };
                let past = number.checked_add(SPAN).is_some_and(|end| end <= max);
                let known = all.get(&number).copied();
                let expected = if past { Fate::Past } else { known.unwrap_or(Fate::New) };
                prop_assert_eq!(handed_on.fate(number), expected, "{} of {}", number, max);
                prop_assert_eq!(handed_on.claim(number), expected == Fate::New);
                if expected == Fate::New {
                    max = max.max(number);
                    let fate = match salt % 8 {
                        0 => Fate::InHand,
                        1 => {
                            handed_on.refuse(number, vec![salt as u8]);
                            prop_assert_eq!(handed_on.refusal(number), Some(&[salt as u8][..]));
                            Fate::Refused
                        }
                        _ => {
                            handed_on.acknowledge(number);
                            Fate::Acknowledged
                        }
                    };
                    all.insert(number, fate);
                }
                prop_assert!(handed_on.words.len() as u64 <= SPAN / 64 + 1);
                prop_assert!(handed_on.refusals.len() <= HandedOn::REFUSALS_MAX);
            }
        }
    }

    #[test]
    fn what_is_acknowledged_in_order_takes_no_memory() {
        let mut handed_on = HandedOn::default();
        for number in 1..100_000 {
            assert!(handed_on.claim(number));
            handed_on.acknowledge(number);
        }
        assert!(handed_on.words.len() <= 65, "{}", handed_on.words.len());
        assert!(!handed_on.claim(1) && !handed_on.claim(99_999));
    }
}
