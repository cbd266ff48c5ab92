//! What the targets share: manifests of any shape.

use arbitrary::Arbitrary;
use fastdrop_proto::checksum::{Algorithm, Checksum};
use fastdrop_proto::fastdp::{ChunkContent, Entry, EntryKind, Manifest, ManifestBuilder, RelPath, Table};
use fastdrop_proto::units::{ChunkIndex, ChunkSize, EntryIndex, Mtime};
use std::sync::Arc;

/// The chunk size of the shapes.
pub const CHUNK: u32 = 1024;

/// One entry, or many small ones.
#[derive(Debug, Clone, Arbitrary)]
pub enum Item {
    /// A file.
    File(u16),
    /// A file of whole chunks, or a byte less or more.
    Chunks(u8, i8),
    /// An empty folder.
    Folder,
    /// So many files of a few bytes.
    Many(u8),
}

/// A transfer.
#[derive(Debug, Clone, Arbitrary)]
pub struct Shape {
    items: Vec<Item>,
    stream: bool,
    algorithm: u8,
}

impl Shape {
    /// How chunks are checked.
    pub fn algorithm(&self) -> Algorithm {
        [Algorithm::Xxh3, Algorithm::Blake3, Algorithm::None][usize::from(self.algorithm % 3)]
    }

    /// Manifest and table.
    pub fn build(&self) -> (Arc<Manifest>, Table) {
        let mut builder = ManifestBuilder::new(u32::MAX);
        let mut next = 0;
        let mut push = |kind| {
            let path = format!("{next:06}");
            next += 1;
            let path = RelPath::new(path.as_bytes()).unwrap();
            builder.push(&Entry { path, kind, mode: 0o644, mtime: Mtime::default() }).unwrap();
        };
        for item in self.items.iter().take(20) {
            match *item {
                Item::File(size) => push(EntryKind::File { size: size.into() }),
                Item::Chunks(count, more) => {
                    let size = i64::from(count) * i64::from(CHUNK) + i64::from(more.clamp(-1, 1));
                    push(EntryKind::File { size: size.max(0) as u64 });
                }
                Item::Folder => push(EntryKind::Directory),
                Item::Many(count) => (0..count).for_each(|n| push(EntryKind::File { size: n.into() })),
            }
        }
        if self.stream {
            push(EntryKind::Stream);
        }
        let manifest = builder.finish().unwrap();
        let table = Table::new(&manifest, ChunkSize::new(CHUNK.into()).unwrap()).unwrap();
        (Arc::new(manifest), table)
    }
}

/// One of four checksums.
pub fn sum(algorithm: Algorithm, byte: u8) -> Checksum {
    algorithm.of(&[byte % 4])
}

/// Fails unless every byte of every file is in exactly one chunk, and the table agrees with itself.
pub fn check_table(manifest: &Manifest, table: &Table) {
    let one = table.one_chunk().bytes();
    let size = |entry: EntryIndex| manifest.get(entry).unwrap().size();
    let mut next = ChunkIndex(0);
    let mut seen: Option<EntryIndex> = None;
    while next.0 < table.count() {
        match table.content(next).expect("a chunk below the count has content") {
            ChunkContent::Piece { entry, offset, .. } => {
                assert!(seen.is_none_or(|before| before < entry));
                assert_eq!(offset, 0, "an entry's first chunk begins at its beginning");
                let (first, count) = table.chunks_of(entry).unwrap();
                assert_eq!(first, next);
                assert!(size(entry) >= u64::from(one));
                assert_eq!(u64::from(count), size(entry).div_ceil(one.into()));
                // All of a few, and both ends of many.
                let near = (0..count.min(300)).chain(count.saturating_sub(300)..count);
                for at in near {
                    let Some(ChunkContent::Piece { entry: of, offset, len, whole }) =
                        table.content(ChunkIndex(first.0 + at))
                    else {
                        panic!("a piece is missing");
                    };
                    assert_eq!((of, offset), (entry, u64::from(at) * u64::from(one)));
                    assert_eq!(u64::from(len), (size(entry) - offset).min(one.into()));
                    assert_eq!(whole, count == 1);
                }
                seen = Some(entry);
                next = ChunkIndex(first.0 + count);
            }
            ChunkContent::Pack { from, to } => {
                assert!(from < to && to.0 <= manifest.len());
                assert!(seen.is_none_or(|before| before < from));
                let (mut bytes, mut files) = (0, 0);
                for entry in (from.0..to.0).map(EntryIndex) {
                    bytes += size(entry);
                    files += u32::from(size(entry) > 0);
                    if size(entry) > 0 {
                        assert_eq!(table.chunks_of(entry), Some((next, 1)));
                    }
                }
                assert!(0 < bytes && bytes <= u64::from(one) && files <= 1024);
                seen = Some(EntryIndex(to.0 - 1));
                next = ChunkIndex(next.0 + 1);
            }
            ChunkContent::Stream { .. } => panic!("a stream's chunks are not counted"),
        }
    }
    assert_eq!(next.0, table.count());
    match table.stream() {
        Some((entry, first)) => {
            assert_eq!(entry.0 + 1, manifest.len());
            assert_eq!(first, next);
            assert_eq!(table.content(first), Some(ChunkContent::Stream { entry, offset: 0 }));
        }
        None => assert_eq!(table.content(next), None),
    }
    assert_eq!(table.content(ChunkIndex(ChunkIndex::LIMIT)), None);
    let counted: u64 = (0..manifest.len()).map(|entry| size(EntryIndex(entry))).sum();
    assert_eq!(counted, manifest.bytes());
}
