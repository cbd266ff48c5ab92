//! The 11 bytes before every payload (docs/protocol/cnp.md, section 1).

use super::seq::Seq;
use crate::cursor::Cursor;

/// Bytes of a checksum.
pub(super) const CHECKSUM_BYTES: usize = 4;
/// The place of the type in a header, behind the payload's length.
pub(super) const TYPE_AT: usize = size_of::<u32>();
/// Bytes of a header: length, type, sequence number and checksum.
pub const HEAD_BYTES: usize = TYPE_AT + size_of::<u8>() + size_of::<u16>() + CHECKSUM_BYTES;

/// A header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    payload_len: usize,
    /// The type's byte, which means one thing in the handshake and another afterwards.
    pub typ: u8,
    /// The sequence number.
    pub seq: Seq,
    /// The checksum as it came.
    pub checksum: [u8; CHECKSUM_BYTES],
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
    /// The header of the packet at the beginning of `bytes`; None while it is not all there. A
    /// payload beyond `payload_max` is refused at once (case 12).
    pub fn parse(bytes: &[u8], payload_max: usize) -> Result<Option<Self>, PacketError> {
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
        Ok(Some(Self { payload_len: len, typ, seq: Seq(seq), checksum }))
    }

    /// Bytes of the payload.
    pub fn payload_len(&self) -> usize {
        self.payload_len
    }

    /// Bytes of the whole packet.
    pub fn packet_len(&self) -> usize {
        HEAD_BYTES + self.payload_len
    }
}
