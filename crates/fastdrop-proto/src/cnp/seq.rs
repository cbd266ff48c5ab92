//! Sequence numbers, which come round, and the numbers that they stand for, which do not.

/// What a header has of a number: its lower 16 bits (RFC 1982).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Seq(pub u16);

impl Seq {
    /// Those of a number.
    pub fn of(number: u64) -> Self {
        Self(number as u16)
    }

    /// The number with these bits that is nearest to `expected`; the larger of two that are equally
    /// near; None if it would be below 0.
    pub fn nearest(self, expected: u64) -> Option<u64> {
        let distance = self.0.wrapping_sub(expected as u16);
        if distance <= 1 << 15 {
            return expected.checked_add(distance.into());
        }
        expected.checked_sub(distance.wrapping_neg().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_76_a_number_is_found_again_from_its_lower_bits() {
        for expected in [0_u64, 1, 5, 32_767, 32_768, 65_530, 65_535, 65_536, 1 << 40] {
            for distance in -32_767_i64..=32_768 {
                let number = expected.checked_add_signed(distance);
                let seq = Seq((expected as u16).wrapping_add(distance as u16));
                assert_eq!(seq.nearest(expected), number, "{expected} and {distance}");
            }
        }
    }
}
