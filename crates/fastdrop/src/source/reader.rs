//! Reading chunks from the files of a transfer.

use crate::error::{code_of, reason};
use crate::observe::{Clock, Clocks};
use crate::source::identity::{Identities, identity};
use crate::source::tree::SourceTree;
use crate::stop::Stop;
use crate::storage::io::{STEP, read_exact_at};
use fastdrop_proto::checksum::{Algorithm, Checksum, PackChecksum, PieceChecksum};
use fastdrop_proto::fastdp::{ChunkContent, Code, Entry, EntryKind, Extents, Manifest, Sender};
use fastdrop_proto::units::{ChunkIndex, EntryIndex};
use rustix::fs::{SeekFrom, Stat};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

/// A file that cannot be sent, or not any more.
#[derive(Debug)]
pub(crate) struct Unreadable {
    pub(crate) entry: EntryIndex,
    pub(crate) code: Code,
    pub(crate) reason: String,
}

impl Unreadable {
    fn system(entry: EntryIndex, errno: Errno) -> Self {
        Self { entry, code: code_of(errno), reason: reason(errno) }
    }

    fn changed(entry: EntryIndex) -> Self {
        Self { entry, code: Code::SourceChanged, reason: "the source changed while it was sent".into() }
    }
}

impl SourceTree {
    /// Those files among `entries` that cannot be opened.
    pub(crate) fn unreadable(
        &self,
        manifest: &Manifest,
        entries: impl Iterator<Item = EntryIndex>,
    ) -> Vec<Unreadable> {
        let why = |index| {
            let entry = manifest.get(index)?;
            let EntryKind::File { .. } = entry.kind else { return None };
            let Some((root, path)) = self.locate(entry.path) else { return Some(Unreadable::changed(index)) };
            root.open_file(&path).err().map(|errno| Unreadable::system(index, errno))
        };
        entries.filter_map(why).collect()
    }
}

/// A chunk in memory, ready to go.
#[derive(Debug, Default)]
pub(crate) struct ReadChunk {
    /// Plain bytes.
    pub(crate) bytes: Vec<u8>,
    pub(crate) checksum: Checksum,
    /// Where data is, if the chunk has holes worth leaving out.
    pub(crate) extents: Option<Extents>,
    /// The BLAKE3 of each whole small file, when that is what is computed.
    pub(crate) hashes: Vec<(EntryIndex, [u8; 32])>,
}

/// What is needed to read one chunk, taken from the sender under its lock.
#[derive(Debug)]
pub(crate) struct ChunkPlan {
    chunk: ChunkIndex,
    content: ChunkContent,
    slices: Vec<(EntryIndex, u32)>,
    chunk_size: u32,
}

impl ChunkPlan {
    /// The plan for `chunk`; None if there is no such chunk.
    pub(crate) fn new(sender: &Sender, chunk: ChunkIndex) -> Option<Self> {
        let content = sender.table().content(chunk)?;
        Some(Self {
            chunk,
            content,
            slices: sender.slices(chunk),
            chunk_size: sender.table().one_chunk().bytes(),
        })
    }
}

/// Reads chunks; one a stream. Keeps the file open from which it read a piece last.
#[derive(Debug)]
pub(crate) struct ChunkReader<'a> {
    pub(crate) tree: &'a SourceTree,
    pub(crate) manifest: &'a Manifest,
    pub(crate) identities: &'a Identities,
    pub(crate) algorithm: Algorithm,
    pub(crate) clocks: &'a Clocks,
    pub(crate) pieces: Option<&'a StreamPieces>,
    pub(crate) sparse: bool,
    pub(crate) last: Option<(EntryIndex, OwnedFd, bool)>,
}

impl ChunkReader<'_> {
    /// Reads what `plan` says into `out`.
    pub(crate) fn read(&mut self, plan: &ChunkPlan, out: &mut ReadChunk) -> Result<(), Unreadable> {
        out.extents = None;
        out.hashes.clear();
        match plan.content {
            ChunkContent::Piece { entry, offset, len, whole } => {
                self.read_piece(entry, offset, len, whole, out)
            }
            ChunkContent::Pack { .. } => self.read_pack(&plan.slices, out),
            ChunkContent::Stream { entry, offset } => {
                let piece = self.pieces.and_then(|pieces| pieces.get(plan.chunk));
                let piece = piece.ok_or_else(|| Unreadable::changed(entry))?;
                out.bytes.clear();
                out.bytes.extend_from_slice(&piece);
                let start = Instant::now();
                let whole = offset == 0 && piece.len() < plan.chunk_size as usize;
                out.checksum = self.algorithm.of_piece(&piece, offset, whole);
                self.clocks.cpu.since(start);
                Ok(())
            }
        }
    }

    fn open(&self, index: EntryIndex) -> Result<(OwnedFd, Entry<'_>), Unreadable> {
        let entry = self.manifest.get(index).ok_or_else(|| Unreadable::changed(index))?;
        let (root, path) = self.tree.locate(entry.path).ok_or_else(|| Unreadable::changed(index))?;
        let fd = root.open_file(&path).map_err(|errno| Unreadable::system(index, errno))?;
        Ok((fd, entry))
    }

    fn read_piece(
        &mut self,
        index: EntryIndex,
        offset: u64,
        len: u32,
        whole: bool,
        out: &mut ReadChunk,
    ) -> Result<(), Unreadable> {
        let mut clock = Instant::now();
        if self.last.as_ref().is_none_or(|(last, _, _)| *last != index) {
            let (fd, entry) = self.open(index)?;
            let stat = rustix::fs::fstat(&fd).map_err(|errno| Unreadable::system(index, errno))?;
            unchanged(index, &entry, self.identities, &stat)?;
            // Fewer blocks than bytes: there are holes.
            let holes = self.sparse && (stat.st_blocks as u64) * 512 < stat.st_size as u64;
            self.last = Some((index, fd, holes));
        }
        let Some((_, fd, holes)) = &self.last else { return Err(Unreadable::changed(index)) };
        let system = |errno| match errno {
            // It has become shorter.
            Errno::NODATA => Unreadable::changed(index),
            errno => Unreadable::system(index, errno),
        };
        let mut checksum = PieceChecksum::new(self.algorithm, offset, whole);
        if *holes {
            out.extents = extents(fd, offset, len).map_err(system)?;
        }
        match &out.extents {
            Some(extents) => {
                out.bytes.clear();
                out.bytes.resize(len as usize, 0);
                for (at, size) in extents.iter() {
                    let part = &mut out.bytes[at as usize..(at + size) as usize];
                    read_exact_at(fd, part, offset + u64::from(at)).map_err(system)?;
                }
                clock = self.clocks.read.since(clock);
                checksum.update(&out.bytes);
                clock = self.clocks.cpu.since(clock);
            }
            None => {
                out.bytes.resize(len as usize, 0);
                for (at, step) in (offset..).step_by(STEP).zip(out.bytes.chunks_mut(STEP)) {
                    read_exact_at(fd, step, at).map_err(system)?;
                    clock = self.clocks.read.since(clock);
                    checksum.update(step);
                    clock = self.clocks.cpu.since(clock);
                }
            }
        }
        // A file that was written to meanwhile has another time: then
        // what was read may be a mixture.
        let stat = rustix::fs::fstat(fd).map_err(system)?;
        let entry = self.manifest.get(index).ok_or_else(|| Unreadable::changed(index))?;
        unchanged(index, &entry, self.identities, &stat)?;
        self.clocks.read.since(clock);
        out.checksum = checksum.finish();
        Ok(())
    }

    fn read_pack(&mut self, slices: &[(EntryIndex, u32)], out: &mut ReadChunk) -> Result<(), Unreadable> {
        let mut pack = PackChecksum::new(self.algorithm);
        let total: u64 = slices.iter().map(|&(_, size)| u64::from(size)).sum();
        out.bytes.resize(total as usize, 0);
        let mut rest = &mut out.bytes[..];
        let mut clock = Instant::now();
        for &(index, size) in slices {
            let (slice, after) = rest.split_at_mut(size as usize);
            rest = after;
            let (fd, entry) = self.open(index)?;
            read_exact_at(&fd, slice, 0).map_err(|errno| match errno {
                Errno::NODATA => Unreadable::changed(index),
                errno => Unreadable::system(index, errno),
            })?;
            let stat = rustix::fs::fstat(&fd).map_err(|errno| Unreadable::system(index, errno))?;
            unchanged(index, &entry, self.identities, &stat)?;
            drop(fd);
            clock = self.clocks.read.since(clock);
            let sum = self.algorithm.of(slice);
            pack.push(&sum);
            if let Ok(hash) = <[u8; 32]>::try_from(sum.as_bytes()) {
                out.hashes.push((index, hash));
            }
            clock = self.clocks.cpu.since(clock);
        }
        out.checksum = pack.finish();
        self.clocks.cpu.since(clock);
        Ok(())
    }
}

/// The BLAKE3 of an open file of `size` bytes; None if it cannot be read,
/// has another size, or `stop` says so.
pub(crate) fn content_of(fd: &OwnedFd, size: u64, stop: &Stop) -> Option<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; STEP];
    let mut at = 0;
    while at < size {
        if stop.is_stopped() {
            return None;
        }
        let step = &mut buffer[..STEP.min(usize::try_from(size - at).unwrap_or(STEP))];
        read_exact_at(fd, step, at).ok()?;
        hasher.update(step);
        at += step.len() as u64;
    }
    let stat = rustix::fs::fstat(fd).ok()?;
    (stat.st_size as u64 == size).then(|| *hasher.finalize().as_bytes())
}

/// The BLAKE3 of the file of an entry; None if it cannot be read, or is not what the manifest says.
pub(crate) fn content(
    tree: &SourceTree,
    manifest: &Manifest,
    index: EntryIndex,
    stop: &Stop,
) -> Option<[u8; 32]> {
    let entry = manifest.get(index)?;
    let (root, path) = tree.locate(entry.path)?;
    let fd = root.open_file(&path).ok()?;
    let before = rustix::fs::fstat(&fd).ok()?;
    unchanged(index, &entry, &Identities::default(), &before).ok()?;
    let content = content_of(&fd, entry.size(), stop)?;
    // What was written to meanwhile may be a mixture.
    let after = rustix::fs::fstat(&fd).ok()?;
    (identity(&before) == identity(&after)).then_some(content)
}

/// Checks that a file is still the one in the manifest.
pub(crate) fn unchanged(
    index: EntryIndex,
    entry: &Entry<'_>,
    identities: &Identities,
    stat: &Stat,
) -> Result<(), Unreadable> {
    let known = identities.get(index);
    let same = (known == 0 || identity(stat) == known)
        && matches!(entry.kind, EntryKind::File { size } if size == stat.st_size as u64)
        && entry.mtime.seconds == stat.st_mtime
        && u64::from(entry.mtime.nanos) == stat.st_mtime_nsec
        && rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile;
    if same { Ok(()) } else { Err(Unreadable::changed(index)) }
}

/// Where `fd` has data between `offset` and `offset + len`, relative to `offset`; None if all of
/// it, or in too many places.
fn extents(fd: &OwnedFd, offset: u64, len: u32) -> Result<Option<Extents>, Errno> {
    let end = offset + u64::from(len);
    let mut extents = Vec::new();
    let mut at = offset;
    while at < end {
        let data = match rustix::fs::seek(fd, SeekFrom::Data(at)) {
            Ok(data) if data < end => data,
            // No data after `at`, or only beyond this chunk.
            Ok(_) | Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno),
        };
        let hole = rustix::fs::seek(fd, SeekFrom::Hole(data))?.min(end);
        // A hole punched between the two calls; the check of the mtime will tell.
        if hole <= data {
            break;
        }
        extents.push(((data - offset) as u32, (hole - data) as u32));
        if extents.len() > Extents::MAX {
            return Ok(None);
        }
        at = hole;
    }
    if extents == [(0, len)] {
        return Ok(None);
    }
    Ok(Extents::new(extents, len))
}

/// The chunks of an entry of unknown size that are filled and not yet confirmed: at most eight.
#[derive(Debug, Default)]
pub(crate) struct StreamPieces {
    pieces: Mutex<Pieces>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Pieces {
    kept: BTreeMap<ChunkIndex, Arc<Vec<u8>>>,
    over: bool,
}

/// The end of reading a stream: its size, and its BLAKE3 if that was asked for.
pub(crate) struct StreamEnd {
    pub(crate) size: u64,
    pub(crate) hash: Option<[u8; 32]>,
}

impl StreamPieces {
    const KEPT_MAX: usize = 8;

    fn get(&self, chunk: ChunkIndex) -> Option<Arc<Vec<u8>>> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner).kept.get(&chunk).cloned()
    }

    /// Forgets a chunk that has been confirmed.
    pub(crate) fn free(&self, chunk: ChunkIndex) {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner).kept.remove(&chunk);
        self.changed.notify_all();
    }

    /// Ends a feeding under way.
    pub(crate) fn end(&self) {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner).over = true;
        self.changed.notify_all();
    }

    /// Reads `input` to its end in chunks of `chunk_size`; `filled` numbers each
    /// before it is kept. None if it was ended.
    pub(crate) fn feed(
        &self,
        input: &mut dyn Read,
        chunk_size: usize,
        algorithm: Algorithm,
        clock: &Clock,
        mut filled: impl FnMut(&mut dyn FnMut(ChunkIndex)) -> bool,
    ) -> std::io::Result<Option<StreamEnd>> {
        let mut hasher = (algorithm == Algorithm::Blake3).then(blake3::Hasher::new);
        let mut size = 0;
        loop {
            let mut piece = Vec::with_capacity(chunk_size);
            let start = Instant::now();
            input.take(chunk_size as u64).read_to_end(&mut piece)?;
            clock.since(start);
            if let Some(hasher) = &mut hasher {
                hasher.update(&piece);
            }
            size += piece.len() as u64;
            let last = piece.len() < chunk_size;
            if !piece.is_empty() {
                let piece = Arc::new(piece);
                let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
                while pieces.kept.len() >= Self::KEPT_MAX && !pieces.over {
                    pieces = self.changed.wait(pieces).unwrap_or_else(PoisonError::into_inner);
                }
                if pieces.over {
                    return Ok(None);
                }
                drop(pieces);
                let mut keep = |chunk| {
                    let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
                    pieces.kept.insert(chunk, Arc::clone(&piece));
                };
                if !filled(&mut keep) {
                    return Ok(None);
                }
            }
            if last {
                return Ok(Some(StreamEnd {
                    size,
                    hash: hasher.map(|hasher| *hasher.finalize().as_bytes()),
                }));
            }
        }
    }
}
