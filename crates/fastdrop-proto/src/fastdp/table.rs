//! The chunk table: which bytes of which entries each chunk carries (section 6).

use super::manifest::{EntryKind, Manifest};
use crate::units::{ChunkIndex, ChunkSize, EntryIndex};

/// Most files in one pack.
const PACK_FILES_MAX: u32 = 1024;

/// Most chunks of one transfer, a stream's apart: 16 TiB in chunks of 4 MiB. Each costs up to 34 bytes on either side.
const CHUNKS_MAX: u32 = 1 << 22;

/// The table would need more chunk numbers than there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more chunks than can be numbered")]
pub struct TableError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Segment {
    /// A file of its own chunks.
    Pieces { first: u32, entry: EntryIndex, size: u64 },
    /// One chunk with the small files among the entries `from..to`.
    Pack { first: u32, from: EntryIndex, to: EntryIndex },
    /// All numbers from `first` on.
    Stream { first: u32, entry: EntryIndex },
}

impl Segment {
    fn first(&self) -> u32 {
        match *self {
            Segment::Pieces { first, .. } | Segment::Pack { first, .. } | Segment::Stream { first, .. } => {
                first
            }
        }
    }
}

/// What a chunk carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkContent {
    /// A part of one file.
    Piece {
        /// Of which file.
        entry: EntryIndex,
        /// Where in the file it begins, in bytes.
        offset: u64,
        /// How many bytes it has.
        len: u32,
        /// Whether it is the whole file.
        whole: bool,
    },
    /// Whole small files: those in the range that are neither empty nor left out.
    Pack {
        /// The first entry that may be in it.
        from: EntryIndex,
        /// One past the last.
        to: EntryIndex,
    },
    /// A part of a stream: `OneChunk` bytes, fewer only at the stream's end.
    Stream {
        /// The stream.
        entry: EntryIndex,
        /// Where in the stream it begins, in bytes.
        offset: u64,
    },
}

/// Which chunks follow from a manifest; the same on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    one_chunk: ChunkSize,
    segments: Vec<Segment>,
    count: u32,
}

impl Table {
    /// Computes the table.
    pub fn new(manifest: &Manifest, one_chunk: ChunkSize) -> Result<Self, TableError> {
        let chunk = u64::from(one_chunk.bytes());
        let mut segments = Vec::new();
        let mut next = 0u32;
        let mut open: Option<OpenPack> = None;
        for (entry, item) in manifest.iter() {
            let after = EntryIndex(entry.0 + 1);
            match item.kind {
                EntryKind::File { size: 0 } | EntryKind::Directory | EntryKind::Link { .. } => {}
                EntryKind::File { size } if size >= chunk => {
                    segments.extend(open.take().map(OpenPack::close));
                    segments.push(Segment::Pieces { first: next, entry, size });
                    let pieces = u32::try_from(size.div_ceil(chunk)).map_err(|_| TableError)?;
                    next = next.checked_add(pieces).ok_or(TableError)?;
                }
                EntryKind::File { size } => match &mut open {
                    Some(pack) if pack.bytes + size <= chunk && pack.files < PACK_FILES_MAX => {
                        pack.bytes += size;
                        pack.files += 1;
                        pack.to = after;
                    }
                    _ => {
                        segments.extend(open.take().map(OpenPack::close));
                        open = Some(OpenPack { first: next, from: entry, to: after, bytes: size, files: 1 });
                        next = next.checked_add(1).ok_or(TableError)?;
                    }
                },
                EntryKind::Stream => {
                    segments.extend(open.take().map(OpenPack::close));
                    segments.push(Segment::Stream { first: next, entry });
                }
            }
        }
        segments.extend(open.map(OpenPack::close));
        if next > CHUNKS_MAX {
            return Err(TableError);
        }
        Ok(Self { one_chunk, segments, count: next })
    }

    /// Number of chunks; a stream's are not among them.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The size of chunks.
    pub fn one_chunk(&self) -> ChunkSize {
        self.one_chunk
    }

    /// The stream's entry and its first chunk, if the transfer ends in one.
    pub fn stream(&self) -> Option<(EntryIndex, ChunkIndex)> {
        match self.segments.last() {
            Some(&Segment::Stream { first, entry }) => Some((entry, ChunkIndex(first))),
            _ => None,
        }
    }

    /// What `chunk` carries; None if there is no such chunk.
    pub fn content(&self, chunk: ChunkIndex) -> Option<ChunkContent> {
        if chunk.0 >= ChunkIndex::LIMIT {
            return None;
        }
        let at = self.segments.partition_point(|segment| segment.first() <= chunk.0).checked_sub(1)?;
        let one = u64::from(self.one_chunk.bytes());
        match *self.segments.get(at)? {
            Segment::Pieces { first, entry, size } => {
                let offset = u64::from(chunk.0 - first) * one;
                let len = size.checked_sub(offset).filter(|&left| left > 0)?.min(one);
                Some(ChunkContent::Piece { entry, offset, len: len as u32, whole: size <= one })
            }
            Segment::Pack { first, from, to } => {
                (chunk.0 == first).then_some(ChunkContent::Pack { from, to })
            }
            Segment::Stream { first, entry } => {
                Some(ChunkContent::Stream { entry, offset: u64::from(chunk.0 - first) * one })
            }
        }
    }

    /// The chunks that carry bytes of `entry`, as first and count; a stream's count is not known here.
    pub fn chunks_of(&self, entry: EntryIndex) -> Option<(ChunkIndex, u32)> {
        let at = self.segments.partition_point(|segment| match *segment {
            Segment::Pieces { entry: of, .. } | Segment::Stream { entry: of, .. } => of <= entry,
            Segment::Pack { from, .. } => from <= entry,
        });
        let one = u64::from(self.one_chunk.bytes());
        match *self.segments.get(at.checked_sub(1)?)? {
            Segment::Pieces { first, entry: of, size } if of == entry => {
                Some((ChunkIndex(first), size.div_ceil(one) as u32))
            }
            Segment::Pack { first, to, .. } if entry < to => Some((ChunkIndex(first), 1)),
            Segment::Stream { first, entry: of } if of == entry => Some((ChunkIndex(first), 0)),
            _ => None,
        }
    }
}

struct OpenPack {
    first: u32,
    from: EntryIndex,
    to: EntryIndex,
    bytes: u64,
    files: u32,
}

impl OpenPack {
    fn close(self) -> Segment {
        Segment::Pack { first: self.first, from: self.from, to: self.to }
    }
}

#[cfg(test)]
mod tests {
    use super::super::manifest::{Entry, ManifestBuilder};
    use super::super::path::RelPath;
    use super::*;
    use crate::units::Mtime;
    use proptest::prelude::*;

    pub(crate) fn manifest_of(sizes: &[u64]) -> Manifest {
        let mut builder = ManifestBuilder::new(u32::MAX);
        for (i, &size) in sizes.iter().enumerate() {
            let path = format!("{i:06}");
            let kind = EntryKind::File { size };
            let path = RelPath::new(path.as_bytes()).unwrap();
            builder.push(&Entry { path, kind, mode: 0o644, mtime: Mtime::default() }).unwrap();
        }
        builder.finish().unwrap()
    }

    #[test]
    fn case_32_sizes_around_a_multiple_of_the_chunk_are_exact() {
        let one = ChunkSize::new(1024).unwrap();
        for (size, count, last) in [(1024, 1, 1024), (1025, 2, 1), (2047, 2, 1023), (2048, 2, 1024)] {
            let table = Table::new(&manifest_of(&[size]), one).unwrap();
            assert_eq!(table.count(), count);
            let Some(ChunkContent::Piece { len, .. }) = table.content(ChunkIndex(count - 1)) else {
                panic!()
            };
            assert_eq!(len, last);
            assert_eq!(table.content(ChunkIndex(count)), None);
        }
        assert_eq!(Table::new(&manifest_of(&[0]), one).unwrap().count(), 0);
        assert_eq!(Table::new(&manifest_of(&[1023]), one).unwrap().count(), 1);
    }

    #[test]
    fn case_19_more_chunks_than_numbers_are_refused() {
        let one = ChunkSize::new(1024).unwrap();
        assert_eq!(Table::new(&manifest_of(&[u64::MAX]), one), Err(TableError));
        assert_eq!(Table::new(&manifest_of(&[1 << 40]), one), Err(TableError));
    }

    proptest! {
        #[test]
        fn every_byte_is_in_exactly_one_chunk(sizes in prop::collection::vec(0u64..5000, 0..80)) {
            let manifest = manifest_of(&sizes);
            let table = Table::new(&manifest, ChunkSize::new(1024).unwrap()).unwrap();
            let mut seen = vec![0u64; sizes.len()];
            for chunk in (0..table.count()).map(ChunkIndex) {
                match table.content(chunk).unwrap() {
                    ChunkContent::Piece { entry, offset, len, whole } => {
                        prop_assert_eq!(offset, seen[entry.at()]);
                        seen[entry.at()] += u64::from(len);
                        prop_assert_eq!(whole, sizes[entry.at()] == u64::from(len));
                        let (first, count) = table.chunks_of(entry).unwrap();
                        prop_assert!(first <= chunk && chunk.0 < first.0 + count);
                    }
                    ChunkContent::Pack { from, to } => {
                        let mut bytes = 0;
                        for entry in from.0..to.0 {
                            let size = sizes[entry as usize];
                            prop_assert!(size < 1024);
                            seen[entry as usize] += size;
                            bytes += size;
                            prop_assert_eq!(table.chunks_of(EntryIndex(entry)), Some((chunk, 1)));
                        }
                        prop_assert!(0 < bytes && bytes <= 1024);
                    }
                    ChunkContent::Stream { .. } => prop_assert!(false),
                }
            }
            prop_assert_eq!(seen, sizes);
            prop_assert_eq!(table.content(ChunkIndex(table.count())), None);
        }
    }
}
