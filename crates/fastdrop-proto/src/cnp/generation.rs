//! The programs that speak CNP, as they were published, and what each means by a type
//! (docs/protocol/cnp.md, section 11).

use super::header::Layout;
use super::packet::PacketType;
use serde::Serialize;

/// The generation of a peer's program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Generation {
    /// FastDrop, or another program that knows its fragments.
    FastDrop,
    /// The document's own: a packet of data is a message.
    First,
    /// Data have the type of keep-alives.
    Second,
    /// Messages are cut by characters, and numbers begin at 0 with each of them.
    Third,
    /// As the third, with a longer header and negative acknowledgements.
    Fourth,
}

/// The meaning of a packet, once the handshake is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A type that every generation knows.
    Is(PacketType),
    /// The packet with its number is to be sent again.
    Nack,
    /// Nothing that is of use here.
    Ignored,
}

/// Types of the fourth generation.
const DATA: u8 = 0x04;
pub(super) const NACK: u8 = 0x05;
const DISCONNECT: u8 = 0x06;
/// A JSON object about a channel that a program simulates.
pub(super) const CHANNEL: u8 = 99;

impl Generation {
    /// The name that is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FastDrop => "fastdrop",
            Self::First => "first",
            Self::Second => "second",
            Self::Third => "third",
            Self::Fourth => "fourth",
        }
    }

    /// The fields of its headers.
    pub fn layout(self) -> Layout {
        if self == Self::Fourth { Layout::Marked } else { Layout::Plain }
    }

    /// Reports whether messages are cut by characters, in fragments whose numbers begin at 0.
    pub(super) fn cuts_characters(self) -> bool {
        matches!(self, Self::Third | Self::Fourth)
    }

    /// The meaning of a type's byte; None if it has none.
    pub(super) fn meaning(self, byte: u8) -> Option<Meaning> {
        let is = |typ| Some(Meaning::Is(typ));
        match (self, byte) {
            (Self::Third, DATA) | (Self::Fourth, DATA) => is(PacketType::Data),
            (Self::Third, _) => match PacketType::of(byte)? {
                typ if !typ.is_of_the_field() => None,
                typ => is(typ),
            },
            (Self::Fourth, NACK) => Some(Meaning::Nack),
            (Self::Fourth, DISCONNECT) => is(PacketType::Disconnect),
            (Self::Fourth, CHANNEL) => Some(Meaning::Ignored),
            (Self::Fourth, _) => match PacketType::of(byte)? {
                PacketType::Ack => is(PacketType::Ack),
                // The end of the handshake once more.
                PacketType::Error => Some(Meaning::Ignored),
                _ => None,
            },
            _ => PacketType::of(byte).map(Meaning::Is),
        }
    }

    /// The byte of a type; None where there is none.
    pub(super) fn byte(self, typ: PacketType) -> Option<u8> {
        match (self, typ) {
            (Self::Second | Self::Third | Self::Fourth, PacketType::Data) => Some(DATA),
            (Self::Third | Self::Fourth, PacketType::Fragment) => Some(DATA),
            (Self::Third, PacketType::KeepAlive) => None,
            (Self::Third, typ) if !typ.is_of_the_field() => None,
            (Self::Fourth, PacketType::Ack) => Some(typ.byte()),
            (Self::Fourth, PacketType::Disconnect) => Some(DISCONNECT),
            (Self::Fourth, _) => None,
            _ => Some(typ.byte()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_that_is_written_is_read_as_what_it_was() {
        use Generation::{FastDrop, First, Fourth, Second, Third};
        for generation in [FastDrop, First, Second, Third, Fourth] {
            for typ in PacketType::ALL {
                let Some(byte) = generation.byte(typ) else { continue };
                let read = generation.meaning(byte);
                let expected = match (generation, typ) {
                    // The packet that carries it says whether it is the last one.
                    (Third | Fourth, PacketType::Fragment) => PacketType::Data,
                    // Only a payload tells it from a keep-alive.
                    (Second, PacketType::Data) => PacketType::KeepAlive,
                    _ => typ,
                };
                assert_eq!(read, Some(Meaning::Is(expected)), "{generation:?} {typ:?}");
            }
        }
        assert_eq!(Fourth.meaning(NACK), Some(Meaning::Nack));
        assert_eq!(Fourth.meaning(CHANNEL), Some(Meaning::Ignored));
        assert_eq!((Fourth.meaning(7), First.meaning(CHANNEL)), (None, None));
    }
}
