//! The pieces in which a message leaves.

/// A message is cut into pieces of so many of these, the last one shorter; an empty message is one
/// empty piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// Bytes.
    Bytes(usize),
    /// Characters of UTF-8.
    Characters(usize),
}

/// Reports whether a byte is not the first of its character.
fn continues(byte: u8) -> bool {
    byte & 0b1100_0000 == 0b1000_0000
}

/// Characters of a text, as far as it is one.
pub(super) fn characters(text: &[u8]) -> usize {
    text.iter().filter(|byte| !continues(**byte)).count()
}

impl Cut {
    /// Bytes of the first piece of what is left of a message.
    pub(super) fn piece(self, rest: &[u8]) -> usize {
        match self {
            Self::Bytes(max) => rest.len().min(max),
            Self::Characters(max) => {
                let mut starts = rest.iter().enumerate().filter(|(_, byte)| !continues(**byte));
                starts.nth(max).map_or(rest.len(), |(at, _)| at)
            }
        }
    }

    /// The number of pieces of a message.
    pub(super) fn pieces(self, message: &[u8]) -> usize {
        match self {
            Self::Bytes(max) => message.len().div_ceil(max).max(1),
            Self::Characters(max) => characters(message).div_ceil(max).max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_are_the_message_and_are_as_many_as_was_said(text: String, max in 1_usize..6, bytes: bool) {
            let cut = if bytes { Cut::Bytes(max) } else { Cut::Characters(max) };
            let (mut rest, mut pieces) = (text.as_bytes(), Vec::new());
            while pieces.is_empty() || !rest.is_empty() {
                let (piece, after) = rest.split_at(cut.piece(rest));
                pieces.push(piece);
                rest = after;
            }
            prop_assert_eq!(pieces.len(), cut.pieces(text.as_bytes()));
            prop_assert_eq!(pieces.concat(), text.as_bytes());
            let full = &pieces[..pieces.len() - 1];
            if !bytes {
                let lengths = |piece: &&[u8]| std::str::from_utf8(piece).unwrap().chars().count();
                prop_assert!(full.iter().all(|piece| lengths(piece) == max));
            }
        }
    }
}
