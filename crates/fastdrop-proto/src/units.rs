//! Indexes and sizes as types of their own.

use std::fmt;

/// Which entry of a manifest, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryIndex(pub u32);

/// Which chunk of a transfer, from 0; below 2^30.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkIndex(pub u32);

impl ChunkIndex {
    /// One more than the largest chunk number that a frame can carry.
    pub const LIMIT: u32 = 1 << 30;

    /// The position in a table that has one item a chunk.
    pub fn at(self) -> usize {
        self.0 as usize
    }
}

impl EntryIndex {
    /// The position in a table that has one item an entry.
    pub fn at(self) -> usize {
        self.0 as usize
    }
}

/// The size of a chunk in bytes: a power of two, 1 KiB to 16 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkSize(u32);

impl ChunkSize {
    /// The smallest: BLAKE3 subtrees cannot be smaller.
    pub const MIN: ChunkSize = ChunkSize(1 << 10);
    /// The largest that can be said on the wire.
    pub const MAX: ChunkSize = ChunkSize(1 << 24);
    /// The largest that every receiver takes.
    pub const COMMON: ChunkSize = ChunkSize(4 << 20);

    /// Checks that `bytes` is a power of two between [`Self::MIN`] and [`Self::MAX`].
    pub fn new(bytes: u64) -> Option<Self> {
        let size = u32::try_from(bytes).ok()?;
        (size.is_power_of_two() && (Self::MIN.0..=Self::MAX.0).contains(&size)).then_some(Self(size))
    }

    /// The chunk size that suits a transfer whose largest file has `bytes`.
    ///
    /// 256 KiB up to 10 MiB, so that several streams have work; 1 MiB up to 64 GiB, which stays in
    /// the second-level cache between checking and writing; 4 MiB above, for fewer journal records.
    pub fn for_file_size(bytes: u64) -> Self {
        match bytes {
            0..=0xa0_0000 => Self(256 << 10),
            0xa0_0001..=0x10_0000_0000 => Self(1 << 20),
            _ => Self(4 << 20),
        }
    }

    /// In bytes.
    pub fn bytes(self) -> u32 {
        self.0
    }
}

impl fmt::Display for ChunkSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A modification time: seconds and nanoseconds since 1970, negative before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Mtime {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
}

/// An unguessable name of a transfer: 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TransferId(pub [u8; 16]);

impl TransferId {
    /// Parses 32 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut id = [0; 16];
        hex::decode_to_slice(text, &mut id).ok()?;
        Some(Self(id))
    }
}

impl fmt::Display for TransferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for TransferId {
    /// Half of the id: whoever knows all of it may join the transfer, and logs are read by others.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "TransferId({}…)", hex::encode([a, b, c, d]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_19_a_chunk_size_is_a_power_of_two_within_bounds() {
        for refused in [0, 1, 512, 1000, 1025, 3 << 20, 32 << 20, 1 << 60, u64::MAX] {
            assert_eq!(ChunkSize::new(refused), None, "{refused}");
        }
        for taken in [1 << 10, 1 << 18, 1 << 24] {
            assert_eq!(ChunkSize::new(taken).map(|size| u64::from(size.bytes())), Some(taken));
        }
    }
}
