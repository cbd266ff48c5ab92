//! The header before every payload (docs/protocol/cnp.md, section 1).

use super::seq::Seq;
use crate::cursor::Cursor;

/// Bytes of a checksum.
pub(super) const CHECKSUM_BYTES: usize = 4;
/// The place of the type in a header, behind the payload's length.
pub(super) const TYPE_AT: usize = size_of::<u32>();
/// Bytes of a plain header: length, type, sequence number and checksum.
pub const HEAD_BYTES: usize = TYPE_AT + size_of::<u8>() + size_of::<u16>() + CHECKSUM_BYTES;

/// The fields that a header has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// The 11 bytes of [`HEAD_BYTES`].
    Plain,
    /// One byte more, which is 1 in the last fragment of a message: the fourth generation.
    Marked,
}

impl Layout {
    /// Bytes of a header.
    pub fn head_bytes(self) -> usize {
        match self {
            Self::Plain => HEAD_BYTES,
            Self::Marked => HEAD_BYTES + 1,
        }
    }

    /// The layout of the first packet of a stream, whose payload is a JSON object: only one of them
    /// fits. None while that is not known. What fits neither is plain, and will be refused.
    pub(super) fn of_first(bytes: &[u8]) -> Option<Self> {
        let is_empty = bytes.starts_with(&[0; size_of::<u32>()]);
        match bytes.get(HEAD_BYTES..) {
            _ if is_empty => Some(Self::Plain),
            None | Some([]) => None,
            Some([0 | 1, b'{', ..]) => Some(Self::Marked),
            Some([0 | 1]) => None,
            Some(_) => Some(Self::Plain),
        }
    }
}

/// A header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    layout: Layout,
    payload_len: usize,
    /// The type's byte, which means one thing in the handshake and another afterwards.
    pub typ: u8,
    /// The sequence number.
    pub seq: Seq,
    /// The checksum as it came.
    pub checksum: [u8; CHECKSUM_BYTES],
    /// The mark of a message's last fragment, where the layout has one.
    pub(super) is_last: Option<bool>,
}

/// Bytes that cannot be the beginning of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// The payload is longer than may be.
    #[error("a packet with a payload of {len} bytes, where at most {max} may come")]
    TooLarge {
        /// Its length.
        len: usize,
        /// The most that may come.
        max: usize,
    },
}

impl Head {
    /// The plain header of the packet at the beginning of `bytes`; None while it is not all there.
    /// A payload beyond `payload_max` is refused at once (case 12).
    pub fn parse(bytes: &[u8], payload_max: usize) -> Result<Option<Self>, PacketError> {
        Self::parse_as(Layout::Plain, bytes, payload_max)
    }

    /// The same for a header of any layout.
    pub fn parse_as(layout: Layout, bytes: &[u8], payload_max: usize) -> Result<Option<Self>, PacketError> {
        let mut cursor = Cursor::new(bytes);
        let Ok(len) = cursor.u32() else { return Ok(None) };
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len > payload_max {
            return Err(PacketError::TooLarge { len, max: payload_max });
        }
        let (Ok(typ), Ok(seq), Ok(checksum)) = (cursor.u8(), cursor.u16(), cursor.bytes(CHECKSUM_BYTES))
        else {
            return Ok(None);
        };
        let checksum = checksum.first_chunk().copied().unwrap_or_default();
        let is_last = match layout {
            Layout::Plain => None,
            Layout::Marked => match cursor.u8() {
                Ok(mark) => Some(mark != 0),
                Err(_) => return Ok(None),
            },
        };
        Ok(Some(Self { layout, payload_len: len, typ, seq: Seq(seq), checksum, is_last }))
    }

    /// Bytes of the payload.
    pub fn payload_len(&self) -> usize {
        self.payload_len
    }

    /// The place of its payload in a packet, behind the header.
    pub fn payload_at(&self) -> usize {
        self.layout.head_bytes()
    }

    /// Bytes of the whole packet.
    pub fn packet_len(&self) -> usize {
        self.payload_at() + self.payload_len
    }

    /// The payload in a packet that is all there; less if it is not.
    pub fn payload<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        let until = packet.len().min(self.packet_len());
        packet.get(self.payload_at()..until).unwrap_or_default()
    }

    pub(super) fn layout(&self) -> Layout {
        self.layout
    }
}
