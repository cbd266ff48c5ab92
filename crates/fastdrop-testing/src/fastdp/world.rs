//! Files to send, and the disk that they arrive on.

use super::rng::Rng;
use fastdrop_proto::checksum::{Algorithm, Checksum, PackChecksum};
use fastdrop_proto::fastdp::{
    ChunkContent, Encoding, Entry, EntryKind, Extents, FrameHeader, FrameKind, Manifest, ManifestBuilder,
    Receiver, RelPath, Sender, SkipReason, Table,
};
use fastdrop_proto::units::{ChunkIndex, ChunkSize, EntryIndex, Mtime};
use std::sync::Arc;

pub const ONE: u32 = 1024;

/// What is sent: paths, kinds and bytes.
#[derive(Debug, Clone, Default)]
pub struct Source {
    pub manifest: Arc<Manifest>,
    pub data: Vec<Vec<u8>>,
    /// Whose loss leaves enough chunks.
    pub expendable: Vec<EntryIndex>,
}

#[derive(Default)]
pub struct SourceBuilder {
    entries: Vec<(String, char, Vec<u8>)>,
}

impl SourceBuilder {
    fn name(&self) -> String {
        format!("e{:05}", self.entries.len())
    }

    pub fn file(&mut self, data: Vec<u8>) -> EntryIndex {
        self.entries.push((self.name(), 'f', data));
        EntryIndex(self.entries.len() as u32 - 1)
    }

    pub fn random(&mut self, rng: &mut Rng, size: usize) -> EntryIndex {
        let mut data = vec![0; size];
        rng.fill(&mut data);
        self.file(data)
    }

    pub fn other(&mut self, kind: char) {
        self.entries.push((self.name(), kind, Vec::new()));
    }

    pub fn stream(&mut self, data: Vec<u8>) {
        self.entries.push(("stream".into(), 's', data));
    }

    pub fn finish(self, expendable: Vec<EntryIndex>) -> Source {
        let mut builder = ManifestBuilder::new(u32::MAX);
        for (path, kind, data) in &self.entries {
            let kind = match kind {
                'd' => EntryKind::Directory,
                'l' => EntryKind::Link { target: b"e00000" },
                's' => EntryKind::Stream,
                _ => EntryKind::File { size: data.len() as u64 },
            };
            let path = RelPath::new(path.as_bytes()).unwrap();
            builder.push(&Entry { path, kind, mode: 0o644, mtime: Mtime { seconds: 5, nanos: 7 } }).unwrap();
        }
        let data = self.entries.into_iter().map(|(_, _, data)| data).collect();
        Source { manifest: Arc::new(builder.finish().unwrap()), data, expendable }
    }
}

impl Source {
    /// Big files, packs, empty files, directories and links that make at least `chunks` chunks,
    /// without those that
    /// may get lost; sometimes a stream beside them.
    pub fn random(rng: &mut Rng, chunks: u32) -> Self {
        let mut builder = SourceBuilder::default();
        let mut expendable = Vec::new();
        let mut sure = 0;
        let mut small = 0;
        while sure < chunks {
            match rng.range(0, 20) {
                0 => builder.other('d'),
                1 => builder.other('l'),
                2 => {
                    builder.file(Vec::new());
                }
                3..=10 => {
                    let size = rng.pick(&[1, 40, 200, 500, 1000, 1023]);
                    let size = if rng.percent(50) { size } else { rng.range(1, 1024) };
                    let entry = builder.random(rng, size as usize);
                    small += 1;
                    if small % 8 == 0 {
                        expendable.push(entry);
                    }
                }
                11..=12 => {
                    let size = rng.range(1024, 8 * 1024) as usize;
                    expendable.push(builder.random(rng, size));
                }
                _ => {
                    let pieces = rng.range(1, 40);
                    let size = pieces * 1024 - if rng.percent(50) { 0 } else { rng.range(0, 1024) };
                    let size = (size as usize).max(1024);
                    let entry = builder.random(rng, size);
                    if rng.percent(25) {
                        // Holes, some of them as long as whole chunks.
                        let data = &mut builder.entries[entry.at()].2;
                        for _ in 0..=pieces / 4 {
                            let from = rng.below(size);
                            let to = (from + rng.below(4000)).min(size);
                            data[from..to].fill(0);
                        }
                    }
                    sure += size.div_ceil(1024) as u32;
                }
            }
        }
        if rng.percent(25) {
            let size = rng.pick(&[0, 1, 1023, 1024, 1025, 9 * 1024, 30_001]);
            let mut data = vec![0; size];
            rng.fill(&mut data);
            builder.stream(data);
        }
        builder.finish(expendable)
    }
}

/// What outlives connections and programs: the source, and the receiver's disk and journal.
#[derive(Debug)]
pub struct World {
    pub algorithm: Algorithm,
    pub source: Source,
    pub table: Table,
    /// From which byte on a file cannot be read any more.
    pub unreadable: Vec<Option<u64>>,
    pub disk: Vec<Vec<u8>>,
    /// The journal: pieces by chunk, small files by entry, each with the identity of its file then.
    pub pieces: Vec<Option<(Checksum, u64)>>,
    pub smalls: Vec<Option<(Checksum, u64)>>,
    /// Numbers that tell one version of a file from another, by entry.
    pub identities: Vec<u64>,
    /// What stood at its place before the first attempt.
    pub existing: Vec<Option<SkipReason>>,
    pub named: Vec<bool>,
}

/// A chunk as one side sees it at one moment: its slices can change later.
#[derive(Debug, Clone)]
pub struct Shape {
    pub chunk: ChunkIndex,
    pub content: ChunkContent,
    pub slices: Vec<(EntryIndex, u32)>,
}

impl Shape {
    /// H of the chunk, and for a pack of each slice.
    pub fn checksum(&self, algorithm: Algorithm, bytes: &[u8]) -> Checksum {
        match self.content {
            ChunkContent::Piece { offset, whole, .. } => algorithm.of_piece(bytes, offset, whole),
            ChunkContent::Stream { offset, .. } => {
                algorithm.of_piece(bytes, offset, offset == 0 && bytes.len() < ONE as usize)
            }
            ChunkContent::Pack { .. } => {
                let mut pack = PackChecksum::new(algorithm);
                let mut rest = bytes;
                for &(_, size) in &self.slices {
                    let (slice, after) = rest.split_at(size as usize);
                    pack.push(&algorithm.of(slice));
                    rest = after;
                }
                pack.finish()
            }
        }
    }
}

impl World {
    pub fn new(source: Source, algorithm: Algorithm) -> Self {
        let table = Table::new(&source.manifest, ChunkSize::new(ONE.into()).unwrap()).unwrap();
        let entries = source.data.len();
        Self {
            algorithm,
            unreadable: vec![None; entries],
            disk: source.data.iter().map(|data| vec![0xee; data.len()]).collect(),
            pieces: vec![None; table.count() as usize],
            smalls: vec![None; entries],
            identities: (0..entries as u64).map(|entry| entry + 1).collect(),
            existing: vec![None; entries],
            named: vec![false; entries],
            table,
            source,
        }
    }

    pub fn stream(&self) -> Option<EntryIndex> {
        self.table.stream().map(|(entry, _)| entry)
    }

    /// The slices of `chunk`, for the sender.
    pub fn sender_shape(&self, sender: &Sender, chunk: ChunkIndex) -> Shape {
        Shape { chunk, content: self.table.content(chunk).unwrap(), slices: sender.slices(chunk) }
    }

    pub fn receiver_shape(&self, receiver: &Receiver, chunk: ChunkIndex) -> Shape {
        let slices = receiver.slices(chunk).collect();
        Shape { chunk, content: self.table.content(chunk).unwrap(), slices }
    }

    /// Reads a chunk from the source, or names the entry that cannot be read.
    pub fn read(&self, shape: &Shape) -> Result<Vec<u8>, EntryIndex> {
        let data = |entry: EntryIndex, from: u64, to: u64| {
            let data = &self.source.data[entry.at()];
            let to = to.min(data.len() as u64);
            match self.unreadable[entry.at()] {
                Some(at) if at < to => Err(entry),
                _ => Ok(&data[from as usize..to as usize]),
            }
        };
        match shape.content {
            ChunkContent::Piece { entry, offset, len, .. } => {
                Ok(data(entry, offset, offset + u64::from(len))?.to_vec())
            }
            ChunkContent::Stream { entry, offset } => {
                Ok(data(entry, offset, offset + u64::from(ONE))?.to_vec())
            }
            ChunkContent::Pack { .. } => {
                let mut bytes = Vec::with_capacity(ONE as usize);
                for &(entry, size) in &shape.slices {
                    bytes.extend_from_slice(data(entry, 0, size.into())?);
                }
                Ok(bytes)
            }
        }
    }

    /// The chunk frame, and where in it bits may flip without its structure being broken.
    pub fn encode(
        &self,
        chunk: ChunkIndex,
        bytes: &[u8],
        sum: &Checksum,
        sparse: bool,
        zstd: bool,
    ) -> (Vec<u8>, usize) {
        let encoded = sparse
            .then(|| extents(bytes))
            .filter(|(extents, data)| 5 + extents.iter().count() * 8 + data.len() < bytes.len());
        let (kind, head, data) = match &encoded {
            Some((extents, data)) => {
                let (plain_len, extents) = (bytes.len() as u32, Some(extents.clone()));
                let encoding = Encoding { plain_len, extents, zstd };
                (FrameKind::EncodedChunk(chunk), encoding.encode(), &data[..])
            }
            None if zstd && !bytes.is_empty() => {
                let encoding = Encoding { plain_len: bytes.len() as u32, extents: None, zstd };
                (FrameKind::EncodedChunk(chunk), encoding.encode(), bytes)
            }
            None => (FrameKind::Chunk(chunk), Vec::new(), bytes),
        };
        let size = (head.len() + data.len() + sum.as_bytes().len()) as u32;
        let mut frame = Vec::with_capacity(8 + size as usize);
        frame.extend_from_slice(&FrameHeader { kind, size }.encode());
        frame.extend_from_slice(&head);
        let flippable = frame.len();
        frame.extend_from_slice(data);
        frame.extend_from_slice(sum.as_bytes());
        (frame, flippable)
    }

    /// Puts a chunk's bytes where they belong; only the first `upto` of them if the program dies
    /// meanwhile.
    pub fn write(&mut self, shape: &Shape, bytes: &[u8], upto: usize) {
        let bytes = &bytes[..upto];
        match shape.content {
            ChunkContent::Piece { entry, offset, .. } | ChunkContent::Stream { entry, offset } => {
                let file = &mut self.disk[entry.at()];
                let end = offset as usize + bytes.len();
                if file.len() < end {
                    file.resize(end, 0);
                }
                file[offset as usize..end].copy_from_slice(bytes);
            }
            ChunkContent::Pack { .. } => {
                let mut rest = bytes;
                for &(entry, size) in &shape.slices {
                    let (slice, after) = rest.split_at(rest.len().min(size as usize));
                    self.disk[entry.at()][..slice.len()].copy_from_slice(slice);
                    rest = after;
                }
            }
        }
    }

    /// Appends a chunk to the journal.
    pub fn journal(&mut self, shape: &Shape, bytes: &[u8], sum: &Checksum) {
        match shape.content {
            ChunkContent::Piece { entry, .. } => {
                self.pieces[shape.chunk.at()] = Some((*sum, self.identities[entry.at()]));
            }
            // A stream begins anew in every attempt.
            ChunkContent::Stream { .. } => {}
            ChunkContent::Pack { .. } => {
                let mut rest = bytes;
                for &(entry, size) in &shape.slices {
                    let (slice, after) = rest.split_at(size as usize);
                    let identity = self.identities[entry.at()];
                    self.smalls[entry.at()] = Some((self.algorithm.of(slice), identity));
                    rest = after;
                }
            }
        }
    }

    /// Puts another version in the place of one file of the source, of the same size; only of what
    /// has no name yet.
    pub fn change(&mut self, rng: &mut Rng, entry: EntryIndex) -> bool {
        let at = entry.at();
        if self.named[at] || self.existing[at].is_some() || self.stream() == Some(entry) {
            return false;
        }
        let data = &mut self.source.data[at];
        if data.is_empty() {
            return false;
        }
        // A few bytes only, so that most pieces are the same.
        for _ in 0..rng.range(1, 4) {
            let byte = rng.below(data.len());
            data[byte] ^= 0x55;
        }
        self.identities[at] += 1_000_000;
        true
    }

    /// Tells a new receiver what is there: named files, and what the journal says and the disk
    /// still holds.
    pub fn resume(&mut self, receiver: &mut Receiver, blindly: bool) {
        if let Some(stream) = self.stream()
            && !self.named[stream.at()]
        {
            self.disk[stream.at()].clear();
        }
        for at in 0..self.existing.len() {
            let entry = EntryIndex(at as u32);
            if let Some(reason) = self.existing[at] {
                receiver.skip(entry, reason);
            } else if self.named[at] {
                receiver.skip(entry, SkipReason::Identical);
            } else if self.smalls[at].is_some_and(|(sum, identity)| {
                identity == self.identities[at] && (blindly || sum == self.algorithm.of(&self.disk[at]))
            }) {
                receiver.skip(entry, SkipReason::Held);
            }
        }
        for at in 0..self.pieces.len() {
            let (chunk, Some((sum, identity))) = (ChunkIndex(at as u32), self.pieces[at]) else { continue };
            let Some(ChunkContent::Piece { entry, offset, len, whole }) = self.table.content(chunk) else {
                continue;
            };
            let bytes = &self.disk[entry.at()][offset as usize..][..len as usize];
            let skipped = self.existing[entry.at()].is_some() || self.named[entry.at()];
            if !skipped && (blindly || self.algorithm.of_piece(bytes, offset, whole) == sum) {
                if identity == self.identities[entry.at()] {
                    receiver.hold(chunk, &sum);
                } else if !self.algorithm.is_empty() {
                    receiver.claim(chunk, &sum);
                }
            }
        }
    }

    pub fn is_whole(&self, entry: EntryIndex) -> bool {
        self.disk[entry.at()] == self.source.data[entry.at()]
    }
}

/// Where a chunk is not zero, in steps of 64 bytes.
fn extents(bytes: &[u8]) -> (Extents, Vec<u8>) {
    let mut found: Vec<(u32, u32)> = Vec::new();
    let mut data = Vec::new();
    for (at, block) in bytes.chunks(64).enumerate() {
        if block.iter().all(|&byte| byte == 0) {
            continue;
        }
        let (offset, len) = (at as u32 * 64, block.len() as u32);
        match found.last_mut() {
            Some(last) if last.0 + last.1 == offset => last.1 += len,
            _ => found.push((offset, len)),
        }
        data.extend_from_slice(block);
    }
    (Extents::new(found, bytes.len() as u32).unwrap(), data)
}
