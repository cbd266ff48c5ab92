//! Chunks that are not sent as they are: with holes left out, compressed, or both (section 3).

use super::Violation;
use super::table::ChunkContent;
use crate::cursor::Cursor;

/// What an encoded chunk may have beyond its plain bytes and checksum.
pub(super) const ENCODING_OVERHEAD_MAX: u32 = 16 << 10;

const SPARSE: u8 = 0x01;
const ZSTD: u8 = 0x02;
const SPARSE_ZSTD: u8 = 0x03;

/// What an encoded chunk says before its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// Bytes of the chunk when it is plain.
    pub plain_len: u32,
    /// Where its data goes; None if all of it is data.
    pub extents: Option<Extents>,
    /// Whether the data is one Zstandard frame.
    pub zstd: bool,
}

impl Encoding {
    /// Splits the payload of an encoded chunk, its checksum taken off, into what it says and its data.
    ///
    /// `len` is the length of the chunk; of one of a stream, whose length it says itself, the most that it may be.
    pub fn decode<'a>(
        payload: &'a [u8],
        content: &ChunkContent,
        len: u32,
    ) -> Result<(Self, &'a [u8]), Violation> {
        let mut cursor = Cursor::new(payload);
        let encoding = match (cursor.u8()?, content) {
            (kind @ (SPARSE | SPARSE_ZSTD), ChunkContent::Piece { .. }) => {
                let extents = Extents::decode(&mut cursor, len)?;
                Self { plain_len: len, extents: Some(extents), zstd: kind == SPARSE_ZSTD }
            }
            (ZSTD, _) => {
                let plain_len = cursor.u32()?;
                let fits = match content {
                    ChunkContent::Stream { .. } => 0 < plain_len && plain_len <= len,
                    ChunkContent::Piece { .. } | ChunkContent::Pack { .. } => plain_len == len,
                };
                if !fits {
                    return Err(Violation::protocol("a compressed chunk of another length than it has"));
                }
                Self { plain_len, extents: None, zstd: true }
            }
            _ => return Err(Violation::protocol("an encoding that does not exist, or not for such a chunk")),
        };
        let data = if encoding.zstd { cursor.rest() } else { cursor.bytes(encoding.data_len() as usize)? };
        if !encoding.zstd {
            cursor.finish()?;
        }
        Ok((encoding, data))
    }

    /// What stands before the data; empty for a chunk that is sent as it is.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match (&self.extents, self.zstd) {
            (Some(extents), zstd) => {
                out.push(if zstd { SPARSE_ZSTD } else { SPARSE });
                extents.encode(&mut out);
            }
            (None, true) => {
                out.push(ZSTD);
                out.extend_from_slice(&self.plain_len.to_be_bytes());
            }
            (None, false) => {}
        }
        out
    }

    /// Bytes of data, decompressed.
    pub fn data_len(&self) -> u32 {
        self.extents.as_ref().map_or(self.plain_len, Extents::data_len)
    }
}

/// Where a sparse chunk has data: offset and length within the chunk, ascending, not touching.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extents(Vec<(u32, u32)>);

impl Extents {
    /// More extents than this do not fit into a frame; such a chunk is sent plain.
    pub const MAX: usize = 1024;

    /// Takes extents that ascend, do not touch and end within `len`; None if they break that.
    pub fn new(extents: Vec<(u32, u32)>, len: u32) -> Option<Self> {
        let mut end: Option<u32> = None;
        for &(offset, size) in &extents {
            if size == 0 || end.is_some_and(|end| offset <= end) {
                return None;
            }
            end = Some(offset.checked_add(size).filter(|&end| end <= len)?);
        }
        (extents.len() <= Self::MAX).then_some(Self(extents))
    }

    /// Offset and length of each.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.0.iter().copied()
    }

    /// Bytes of data in all of them.
    pub fn data_len(&self) -> u32 {
        self.0.iter().map(|&(_, len)| len).sum()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.0.len() as u32).to_be_bytes());
        for (offset, len) in self.iter() {
            out.extend_from_slice(&offset.to_be_bytes());
            out.extend_from_slice(&len.to_be_bytes());
        }
    }

    fn decode(cursor: &mut Cursor<'_>, len: u32) -> Result<Self, Violation> {
        let count = cursor.u32()? as usize;
        if count > Self::MAX {
            return Err(Violation::protocol("too many extents in a chunk"));
        }
        let mut extents = Vec::with_capacity(count);
        for _ in 0..count {
            extents.push((cursor.u32()?, cursor.u32()?));
        }
        Self::new(extents, len).ok_or_else(|| Violation::protocol("extents that overlap or overflow"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::EntryIndex;
    use proptest::prelude::*;

    fn piece() -> ChunkContent {
        ChunkContent::Piece { entry: EntryIndex(0), offset: 0, len: 100, whole: true }
    }

    fn decode(payload: &[u8]) -> Result<(Encoding, &[u8]), Violation> {
        Encoding::decode(payload, &piece(), 100)
    }

    fn sparse(extents: &[(u32, u32)], zstd: bool) -> Encoding {
        Encoding { plain_len: 100, extents: Some(Extents(extents.to_vec())), zstd }
    }

    #[test]
    fn extents_that_overlap_touch_or_leave_the_chunk_are_refused() {
        let encode = |extents: &[(u32, u32)], data: usize, zstd: bool| {
            [sparse(extents, zstd).encode(), vec![1; data]].concat()
        };
        decode(&encode(&[], 0, false)).unwrap();
        decode(&encode(&[(0, 10), (90, 10)], 20, false)).unwrap();
        // How long a frame is stands in itself.
        let bytes = encode(&[(0, 10), (90, 10)], 7, true);
        let (encoding, data) = decode(&bytes).unwrap();
        assert_eq!((encoding.data_len(), data), (20, &[1; 7][..]));
        for (extents, data) in [
            (&[(0, 10), (5, 10)][..], 20),
            (&[(0, 10), (10, 10)], 20),
            (&[(50, 10), (0, 10)], 20),
            (&[(95, 10)], 10),
            (&[(u32::MAX, 2)], 2),
            (&[(3, 0)], 0),
        ] {
            decode(&encode(extents, data, false)).unwrap_err();
            decode(&encode(extents, data, true)).unwrap_err();
        }
        decode(&encode(&[(0, 10)], 9, false)).unwrap_err();
        decode(&encode(&[(0, 10)], 11, false)).unwrap_err();
        for kind in [SPARSE, SPARSE_ZSTD] {
            decode(&[kind, 0xff, 0xff, 0xff, 0xff]).unwrap_err();
        }
    }

    #[test]
    fn a_compressed_chunk_has_the_length_of_the_table_and_one_of_a_stream_its_own() {
        let entry = EntryIndex(0);
        let stream = ChunkContent::Stream { entry, offset: 0 };
        let pack = ChunkContent::Pack { from: entry, to: EntryIndex(3) };
        let payload = |len: u32| [&[ZSTD][..], &len.to_be_bytes(), b"frame"].concat();
        for (content, good, bad) in [
            (piece(), &[100][..], &[0, 99, 101, u32::MAX][..]),
            (pack, &[100], &[0, 99, 101, u32::MAX]),
            (stream, &[1, 100], &[0, 101, u32::MAX]),
        ] {
            for &len in good {
                let bytes = payload(len);
                let (encoding, data) = Encoding::decode(&bytes, &content, 100).unwrap();
                assert_eq!((encoding.plain_len, encoding.zstd, data), (len, true, &b"frame"[..]));
                assert_eq!(encoding.encode(), bytes[..5]);
            }
            for &len in bad {
                Encoding::decode(&payload(len), &content, 100).unwrap_err();
            }
        }
        for content in [pack, stream] {
            Encoding::decode(&sparse(&[], false).encode(), &content, 100).unwrap_err();
        }
        for kind in [0, 4, 0xff] {
            decode(&[kind, 0, 0, 0, 100]).unwrap_err();
        }
        decode(&[ZSTD, 0, 0]).unwrap_err();
        decode(&[]).unwrap_err();
    }

    #[test]
    fn the_vectors_of_the_specification_are_what_the_code_writes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/protocol/vectors/fastdp-encodings.txt");
        let file = std::fs::read_to_string(path).unwrap();
        let lines: Vec<_> = file.lines().filter(|line| !line.starts_with('#')).collect();
        let expected = [
            sparse(&[(0, 10), (90, 10)], false),
            Encoding { plain_len: 100, extents: None, zstd: true },
            sparse(&[(1, 2)], true),
        ];
        let written = expected.map(|encoding| hex::encode(encoding.encode()));
        assert_eq!(lines, written);
    }

    proptest! {
        #[test]
        fn any_payload_is_taken_or_refused(mut payload in prop::collection::vec(any::<u8>(), 0..200), kind in 0u8..5) {
            if let Some(first) = payload.first_mut() { *first = kind; }
            if let Ok((encoding, data)) = decode(&payload) {
                prop_assert_eq!([&encoding.encode()[..], data].concat(), payload);
            }
        }
    }
}
