//! Checksums of chunks.
//!
//! A file of its own pieces has one checksum a piece; a pack has one over the checksums of its
//! slices. With BLAKE3 the pieces' checksums are subtrees of the file's own hash, so that the hash
//! that `b3sum` prints follows from them ([`crate::checksum::join_blake3`]) and no byte is read
//! twice.

use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use serde::{Deserialize, Serialize};
use std::hash::Hasher as _;
use twox_hash::XxHash3_64;

/// How chunks are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// No checksum: TCP's is all there is.
    None,
    /// XXH3-64, seed 0: against corruption, not against malice.
    #[default]
    Xxh3,
    /// BLAKE3, cryptographic.
    Blake3,
}

impl Algorithm {
    /// Length of a checksum in bytes.
    pub fn len(self) -> usize {
        match self {
            Algorithm::None => 0,
            Algorithm::Xxh3 => 8,
            Algorithm::Blake3 => 32,
        }
    }

    /// Whether checksums are empty.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The name on the wire and in options.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::None => "none",
            Algorithm::Xxh3 => "xxh3",
            Algorithm::Blake3 => "blake3",
        }
    }

    /// H: the checksum of bytes that stand for themselves, a slice or a whole file.
    pub fn of(self, bytes: &[u8]) -> Checksum {
        match self {
            Algorithm::None => Checksum::default(),
            Algorithm::Xxh3 => Checksum::from_slice(&XxHash3_64::oneshot(bytes).to_be_bytes()),
            Algorithm::Blake3 => Checksum::from_slice(blake3::hash(bytes).as_bytes()),
        }
    }

    /// The checksum of the piece that stands at `offset` of its file; `whole` if it is the only
    /// one.
    ///
    /// `offset` must be a multiple of the chunk size, as every piece's is.
    pub fn of_piece(self, bytes: &[u8], offset: u64, whole: bool) -> Checksum {
        let mut piece = PieceChecksum::new(self, offset, whole);
        piece.update(bytes);
        piece.finish()
    }
}

/// Computes a piece's checksum from parts of it, one after the other.
#[derive(Clone)]
pub enum PieceChecksum {
    /// Nothing to compute.
    None,
    /// XXH3-64.
    Xxh3(Box<XxHash3_64>),
    /// BLAKE3, and whether the piece is the whole file.
    Blake3(Box<blake3::Hasher>, bool),
}

impl std::fmt::Debug for PieceChecksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PieceChecksum")
    }
}

impl PieceChecksum {
    /// Begins the piece that stands at `offset` of its file, a multiple of the chunk size; `whole`
    /// if it is the only one.
    pub fn new(algorithm: Algorithm, offset: u64, whole: bool) -> Self {
        match algorithm {
            Algorithm::None => PieceChecksum::None,
            Algorithm::Xxh3 => PieceChecksum::Xxh3(Box::new(XxHash3_64::new())),
            Algorithm::Blake3 => {
                let mut hasher = blake3::Hasher::new();
                if !whole {
                    hasher.set_input_offset(offset);
                }
                PieceChecksum::Blake3(Box::new(hasher), whole)
            }
        }
    }

    /// Adds the next part.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            PieceChecksum::None => {}
            PieceChecksum::Xxh3(hasher) => hasher.write(bytes),
            PieceChecksum::Blake3(hasher, _) => {
                hasher.update(bytes);
            }
        }
    }

    /// The checksum.
    pub fn finish(&self) -> Checksum {
        match self {
            PieceChecksum::None => Checksum::default(),
            PieceChecksum::Xxh3(hasher) => Checksum::from_slice(&hasher.finish().to_be_bytes()),
            PieceChecksum::Blake3(hasher, true) => Checksum::from_slice(hasher.finalize().as_bytes()),
            PieceChecksum::Blake3(hasher, false) => Checksum::from_slice(&hasher.finalize_non_root()),
        }
    }
}

/// The checksum of one chunk or slice: 0, 8 or 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Checksum {
    bytes: [u8; 32],
    len: u8,
}

impl Checksum {
    /// Takes at most 32 bytes; what is beyond them is not part of any checksum.
    pub fn from_slice(slice: &[u8]) -> Self {
        let mut bytes = [0; 32];
        let len = slice.len().min(32);
        for (to, from) in bytes.iter_mut().zip(slice) {
            *to = *from;
        }
        Self { bytes, len: len as u8 }
    }

    /// The bytes as on the wire.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&[])
    }
}

/// Builds a pack's checksum from those of its slices.
#[derive(Debug, Clone)]
pub struct PackChecksum {
    algorithm: Algorithm,
    joined: Vec<u8>,
}

impl PackChecksum {
    /// A pack without slices.
    pub fn new(algorithm: Algorithm) -> Self {
        Self { algorithm, joined: Vec::new() }
    }

    /// Adds the next slice's checksum.
    pub fn push(&mut self, slice: &Checksum) {
        self.joined.extend_from_slice(slice.as_bytes());
    }

    /// The pack's checksum.
    pub fn finish(&self) -> Checksum {
        self.algorithm.of(&self.joined)
    }
}

/// One checksum a chunk, in a memory of 0, 8 or 32 bytes each.
#[derive(Debug, Clone)]
pub struct ChecksumTable {
    algorithm: Algorithm,
    bytes: Vec<u8>,
    known: Vec<bool>,
}

impl ChecksumTable {
    /// A table of `count` unknown checksums.
    pub fn new(algorithm: Algorithm, count: usize) -> Self {
        Self { algorithm, bytes: vec![0; count * algorithm.len()], known: vec![false; count] }
    }

    /// Number of chunks in the table.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether the table has no chunk.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Adds unknown checksums until there are `count`.
    pub fn grow(&mut self, count: usize) {
        if count > self.known.len() {
            self.known.resize(count, false);
            self.bytes.resize(count * self.algorithm.len(), 0);
        }
    }

    /// The checksum at `index`, if it is known.
    pub fn get(&self, index: usize) -> Option<Checksum> {
        if !*self.known.get(index)? {
            return None;
        }
        let len = self.algorithm.len();
        self.bytes.get(index * len..(index + 1) * len).map(Checksum::from_slice)
    }

    /// Notes the checksum at `index`; indexes beyond the table are not noted.
    pub fn set(&mut self, index: usize, checksum: &Checksum) {
        let len = self.algorithm.len();
        if let (Some(known), Some(slot)) =
            (self.known.get_mut(index), self.bytes.get_mut(index * len..(index + 1) * len))
        {
            *known = true;
            for (to, from) in slot.iter_mut().zip(checksum.as_bytes()) {
                *to = *from;
            }
        }
    }
}

/// The BLAKE3 of a file from the chaining values of its pieces; the root form if there is just one.
///
/// None for no pieces. See the BLAKE3 paper, section 2.1: the left subtree is the largest power of
/// two chunks that leaves something to the right.
pub fn join_blake3(pieces: &[Checksum]) -> Option<[u8; 32]> {
    match pieces {
        [] => None,
        [whole] => Some(whole.bytes),
        _ => {
            let (left, right) = pieces.split_at_checked(left_len(pieces.len()))?;
            let root = merge_subtrees_root(&subtree(left)?, &subtree(right)?, Mode::Hash);
            Some(*root.as_bytes())
        }
    }
}

fn left_len(count: usize) -> usize {
    count.next_power_of_two() / 2
}

fn subtree(pieces: &[Checksum]) -> Option<[u8; 32]> {
    match pieces {
        [] => None,
        [one] => Some(one.bytes),
        _ => {
            let (left, right) = pieces.split_at_checked(left_len(pieces.len()))?;
            Some(merge_subtrees_non_root(&subtree(left)?, &subtree(right)?, Mode::Hash))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_join_to_the_hash_of_the_file() {
        let data: Vec<u8> = (0..40_000u32).map(|i| (i * 31 % 251) as u8).collect();
        for chunk in [1024usize, 4096, 32768] {
            for len in [1, 1023, 1024, 1025, 2048, 3072, 5000, 8192, 32768, 32769, 40_000] {
                let file = &data[..len];
                let whole = len <= chunk;
                let pieces: Vec<_> = file
                    .chunks(chunk)
                    .enumerate()
                    .map(|(i, piece)| Algorithm::Blake3.of_piece(piece, (i * chunk) as u64, whole))
                    .collect();
                assert_eq!(join_blake3(&pieces), Some(*blake3::hash(file).as_bytes()), "{len} by {chunk}");
            }
        }
    }

    #[test]
    fn xxh3_is_the_one_that_others_compute_however_it_is_cut() {
        // From the sanity checks of the reference implementation: XXH3-64 of nothing, with seed 0.
        assert_eq!(Algorithm::Xxh3.of(b"").as_bytes(), 0x2d06_8005_38d3_94c2u64.to_be_bytes());
        let data: Vec<u8> = (0..300_000u32).map(|i| (i * 31 % 251) as u8).collect();
        let reference = xxhash_rust::xxh3::xxh3_64(&data).to_be_bytes();
        assert_eq!(Algorithm::Xxh3.of(&data).as_bytes(), reference);
        for step in [1, 255, 4096, 65_536, data.len()] {
            let mut piece = PieceChecksum::new(Algorithm::Xxh3, 0, true);
            data.chunks(step).for_each(|part| piece.update(part));
            assert_eq!(piece.finish().as_bytes(), reference, "in steps of {step}");
        }
    }

    #[test]
    fn an_unknown_checksum_is_not_a_zero_one() {
        let mut table = ChecksumTable::new(Algorithm::Xxh3, 2);
        assert_eq!(table.get(0), None);
        let sum = Algorithm::Xxh3.of(b"x");
        table.set(1, &sum);
        table.set(2, &sum);
        assert_eq!((table.get(0), table.get(1), table.get(2)), (None, Some(sum), None));
        table.grow(3);
        assert_eq!((table.get(1), table.get(2)), (Some(sum), None));
        assert_eq!(ChecksumTable::new(Algorithm::None, 1).get(0), None);
    }
}
