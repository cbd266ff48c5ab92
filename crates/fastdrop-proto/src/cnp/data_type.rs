//! The type of data that a server takes, where two are possible and it does not say which
//! (docs/protocol/cnp.md, section 11).

use super::generation::Generation;

/// The first and the second generation as far as a server has shown which of them it is. Each
/// ignores the data of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DataType {
    likely: Generation,
    is_sure: bool,
}

impl DataType {
    /// Nothing is known: the second generation is asked first.
    pub(super) fn unknown() -> Self {
        Self { likely: Generation::Second, is_sure: false }
    }

    /// The generation as which a packet is sent that was sent `before` times.
    pub(super) fn next(self, before: u32) -> Generation {
        match self.likely {
            likely if self.is_sure || before.is_multiple_of(2) => likely,
            Generation::Second => Generation::First,
            _ => Generation::Second,
        }
    }

    /// Learns from the acknowledgement of a packet that was sent `sends` times. Gives how many of
    /// these may have an acknowledgement.
    pub(super) fn on_acknowledged(&mut self, sends: u32) -> u32 {
        let (sure, before) = (self.is_sure, sends.saturating_sub(1));
        self.likely = self.next(before);
        self.is_sure |= sends == 1;
        if sure { sends } else { sends.div_ceil(2) }
    }

    /// Says whether a packet has been acknowledged that had but one type, so that several may be
    /// under way.
    pub(super) fn is_sure(self) -> bool {
        self.is_sure
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Generation::{First, Second};

    #[test]
    fn the_second_generation_is_asked_first_and_what_is_acknowledged_is_believed() {
        let mut data = DataType::unknown();
        assert_eq!([0, 1, 2, 3].map(|before| data.next(before)), [Second, First, Second, First]);
        assert_eq!(data.on_acknowledged(1), 1);
        assert_eq!([0, 1].map(|before| data.next(before)), [Second, Second]);
        // One acknowledgement of the second packet may have been late for the first.
        let mut data = DataType::unknown();
        assert_eq!(data.on_acknowledged(2), 1);
        assert_eq!((data.next(0), data.next(1), data.is_sure()), (First, Second, false));
        assert_eq!(data.on_acknowledged(1), 1);
        assert_eq!((data.next(0), data.next(1), data.is_sure()), (First, First, true));
    }
}
