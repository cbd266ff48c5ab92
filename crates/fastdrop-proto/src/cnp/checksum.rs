//! What covers a packet against corruption: four bytes, of one of two kinds.

use super::control::ACK;
use super::header::{CHECKSUM_BYTES, Head};
use super::params::{ChecksumKind, SessionId};
use md5::{Digest as _, Md5};
use std::sync::LazyLock;

/// How the packets of a session are covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// The first four bytes of the payload's MD5. Against corruption, not against malice.
    Md5,
    /// CRC-32C over the session, the number, the header and the payload.
    Crc32c {
        /// That of the session's id, with which every one begins.
        seed: u32,
    },
}

/// Acknowledgements, which are as many as data, all have the same payload.
static MD5_OF_ACK: LazyLock<[u8; CHECKSUM_BYTES]> = LazyLock::new(|| first_four(ACK));

/// Bytes that CRC-32C covers before the payload: the whole number, the payload's length, the type.
const COVERED_HEAD_BYTES: usize = size_of::<u64>() + size_of::<u32>() + size_of::<u8>();

fn first_four(payload: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = Md5::digest(payload);
    hash.first_chunk().copied().unwrap_or_default()
}

impl Checksum {
    /// CRC-32C for the session with this id.
    pub fn crc32c(session_id: &str) -> Self {
        Self::Crc32c { seed: crc32c::crc32c(session_id.as_bytes()) }
    }

    /// The kind for a session.
    pub(super) fn new(kind: ChecksumKind, id: &SessionId) -> Self {
        match kind {
            ChecksumKind::Md5 => Self::Md5,
            ChecksumKind::Crc32c => Self::crc32c(&id.text()),
        }
    }

    /// The four bytes of a packet.
    pub fn of(&self, typ: u8, number: u64, payload: &[u8]) -> [u8; CHECKSUM_BYTES] {
        match *self {
            Self::Md5 if payload == ACK => *MD5_OF_ACK,
            Self::Md5 => first_four(payload),
            Self::Crc32c { seed } => {
                let mut front = [0; COVERED_HEAD_BYTES];
                let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
                let fields = number.to_be_bytes().into_iter().chain(len.to_be_bytes()).chain([typ]);
                front.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
                let crc = crc32c::crc32c_append(seed, &front);
                crc32c::crc32c_append(crc, payload).to_be_bytes()
            }
        }
    }

    /// Whether a packet that came has the right ones, if this is its number.
    pub fn verify(&self, head: &Head, number: u64, payload: &[u8]) -> bool {
        payload.len() == head.payload_len() && self.of(head.typ, number, payload) == head.checksum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn md5_is_that_of_the_payload_alone() {
        // RFC 1321, A.5: d41d8cd9…, 900150983cd24fb0…
        assert_eq!(Checksum::Md5.of(1, 7, b""), [0xd4, 0x1d, 0x8c, 0xd9]);
        assert_eq!(Checksum::Md5.of(2, 8, b"abc"), [0x90, 0x01, 0x50, 0x98]);
        assert_eq!(Checksum::Md5.of(2, 8, ACK), first_four(ACK));
    }

    #[test]
    fn crc32c_depends_on_session_number_and_type() {
        let checksum = Checksum::crc32c("s");
        let one = checksum.of(1, 1, b"x");
        for other in [
            checksum.of(1, 1 + (1 << 16), b"x"),
            checksum.of(6, 1, b"x"),
            checksum.of(1, 1, b"y"),
            Checksum::crc32c("t").of(1, 1, b"x"),
        ] {
            assert_ne!(one, other);
        }
        // RFC 3720, B.4: 32 bytes of zeros.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
    }
}
