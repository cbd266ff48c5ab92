//! The order in which frames of different priorities leave for one address (docs/protocol/vstp.md,
//! section 10).

/// The precedence of a frame among those that wait to leave for the same address.
///
/// A higher one leaves first, but what is lower is not kept back for ever: of the bytes that leave
/// while all wait, a sixteenth is [`Self::Bulk`], and of the others a quarter [`Self::Normal`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Before all others.
    High,
    /// Like frames that are sent without options.
    #[default]
    Normal,
    /// After all others, and no faster than the cap that is set.
    Bulk,
}

impl Priority {
    /// All of them, the highest first.
    pub(super) const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Bulk];

    /// Of so many bytes that leave before those of this priority, one is owed to it.
    fn part(self) -> i64 {
        match self {
            Self::High => i64::MAX,
            Self::Normal => 3,
            Self::Bulk => 15,
        }
    }
}

/// One thing for each priority.
#[derive(Debug, Default)]
pub(super) struct ByPriority<T> {
    high: T,
    normal: T,
    bulk: T,
}

impl<T> ByPriority<T> {
    pub(super) fn get(&self, priority: Priority) -> &T {
        match priority {
            Priority::High => &self.high,
            Priority::Normal => &self.normal,
            Priority::Bulk => &self.bulk,
        }
    }

    pub(super) fn get_mut(&mut self, priority: Priority) -> &mut T {
        match priority {
            Priority::High => &mut self.high,
            Priority::Normal => &mut self.normal,
            Priority::Bulk => &mut self.bulk,
        }
    }

    /// The highest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        [&self.high, &self.normal, &self.bulk].into_iter()
    }

    /// The highest first.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        [&mut self.high, &mut self.normal, &mut self.bulk].into_iter()
    }
}

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Precedence {
    /// Bytes that are owed to a priority, as higher ones have left while it waited.
    owed: ByPriority<i64>,
}

impl Precedence {
    /// A priority to which so many bytes are owed is next: a datagram of the usual size.
    const DATAGRAM: i64 = 1200;
    /// No more is owed.
    const OWED_MAX: i64 = 64 << 10;

    /// The priorities in the order in which they may leave now.
    pub(super) fn order(&self) -> [Priority; 3] {
        let mut order = Priority::ALL;
        order.sort_by_key(|priority| (*self.owed.get(*priority) < Self::DATAGRAM, *priority));
        order
    }

    /// So many bytes have left, while those of which `waits` says so waited.
    pub(super) fn on_left(&mut self, left: Priority, bytes: usize, waits: impl Fn(Priority) -> bool) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        for priority in Priority::ALL {
            let owed = self.owed.get_mut(priority);
            if !waits(priority) {
                *owed = 0;
            } else if priority == left {
                // It was not owed to it where nothing higher could leave.
                *owed -= if *owed >= Self::DATAGRAM { bytes } else { 0 };
            } else if left < priority {
                *owed = (*owed + bytes / priority.part()).min(Self::OWED_MAX);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_has_most_and_the_lowest_has_its_part() {
        for waits in [[true, true, true], [true, false, true], [false, true, true]] {
            let mut precedence = Precedence::default();
            let is_waiting = |priority: Priority| waits[priority as usize];
            let mut left = [0; 3];
            for _ in 0..100_000 {
                let order = precedence.order();
                let next = order.into_iter().find(|priority| is_waiting(*priority)).unwrap();
                left[next as usize] += 1200;
                precedence.on_left(next, 1200, is_waiting);
            }
            let all = f64::from(left.iter().sum::<i32>());
            let shares = left.map(|bytes| f64::from(bytes) / all);
            assert!((0.05..0.08).contains(&shares[2]), "{waits:?}: {shares:?}");
            assert!(!waits[1] || shares[1] >= 0.23, "{waits:?}: {shares:?}");
            let first = waits.iter().position(|waits| *waits).unwrap();
            assert!(shares[first] >= 0.65, "{waits:?}: {shares:?}");
        }
    }
}
