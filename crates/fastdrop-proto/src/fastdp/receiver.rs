//! The receiving end of a transfer (sections 7 to 9).

use super::encoding::ENCODING_OVERHEAD_MAX;
use super::{
    ChunkContent, Code, Control, EntryKind, FrameKind, Held, Manifest, NeedTotals, Proven, SkipReason,
    SkipRun, Table, Transcript, Violation, root_digest,
};
use crate::checksum::{Algorithm, Checksum, ChecksumTable};
use crate::units::{ChunkIndex, EntryIndex};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Failed checksums in one transfer before it is given up.
const AGAIN_MAX: u32 = 16;
/// How far ahead of what has arrived a stream's chunks may be numbered.
const STREAM_WINDOW: u32 = 4096;
/// Bytes of a HELD or SKIP frame, well below the bound of a control frame.
const ANSWER_PART_MAX: usize = 512 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EntryState {
    Needed,
    Skipped(SkipReason),
    Abandoned,
    Complete,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChunkState {
    Unneeded,
    Missing,
    /// There is one, perhaps of another version of the file: the sender says so, or sends its own.
    Claimed,
    Writing,
    Held,
}

/// What a chunk frame that has begun must bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// Which chunk.
    pub chunk: ChunkIndex,
    /// Its plain bytes; of an encoded chunk of a stream, the most that they may be.
    pub plain_len: u32,
    /// The frame's payload without the checksum at its end.
    pub data_len: u32,
    /// Whether the payload is in an encoding.
    pub encoded: bool,
}

/// What to do with a chunk that has arrived whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkVerdict {
    /// Write and journal it, then call [`Receiver::handle_written`].
    Write,
    /// It is held already: confirm it again.
    Confirm,
    /// Another stream is writing it, or nobody needs it any more.
    Ignore,
    /// Its checksum is wrong: ask for it again.
    Again,
}

/// What a written chunk completes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completed {
    /// No file yet.
    Nothing,
    /// This file.
    File(EntryIndex),
    /// The needed files among these entries, which were the chunk's slices.
    Pack(EntryIndex, EntryIndex),
}

/// How a transfer ends for its receiver.
pub type Finish = Result<(), Violation>;

/// Which chunks are there, which are wanted, and when it is over.
///
/// The driver settles first what is not needed ([`Self::skip`], [`Self::hold`]), sends [`Self::answer`], and then for each chunk
/// frame calls [`Self::expect`], [`Self::check`] and, after writing, [`Self::handle_written`]; control frames
/// go to the `handle_*` of their name. After each of these it asks [`Self::poll_finish`]. All streams share one receiver.
#[derive(Debug)]
pub struct Receiver {
    manifest: Arc<Manifest>,
    table: Table,
    algorithm: Algorithm,
    transcript: Transcript,
    entries: Vec<EntryState>,
    chunks: Vec<ChunkState>,
    checksums: ChecksumTable,
    /// Chunks missing or being written.
    open_chunks: u32,
    pieces_left: BTreeMap<EntryIndex, u32>,
    stream_size: Option<u64>,
    stream_bytes: u64,
    again: u32,
    /// Chunks below are proven by the sender.
    proven: u32,
    end: Option<[u8; 32]>,
    finished: bool,
}

impl Receiver {
    /// A receiver that needs everything.
    pub fn new(manifest: Arc<Manifest>, table: Table, algorithm: Algorithm) -> Self {
        let count = table.count() as usize;
        let mut pieces_left = BTreeMap::new();
        let one = u64::from(table.one_chunk().bytes());
        for (entry, item) in manifest.iter() {
            if item.size() >= one {
                pieces_left.insert(entry, item.size().div_ceil(one) as u32);
            }
        }
        Self {
            entries: vec![EntryState::Needed; manifest.len() as usize],
            chunks: vec![ChunkState::Missing; count],
            checksums: ChecksumTable::new(algorithm, count),
            open_chunks: table.count(),
            pieces_left,
            manifest,
            table,
            algorithm,
            transcript: Transcript::default(),
            stream_size: None,
            stream_bytes: 0,
            again: 0,
            proven: 0,
            end: None,
            finished: false,
        }
    }

    /// Sets what was negotiated, for the root digest.
    pub fn set_transcript(&mut self, transcript: Transcript) {
        self.transcript = transcript;
    }

    /// The manifest.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// The chunk table.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// How chunks are checked.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Whether `entry` is to come, or has come, in this transfer.
    pub fn is_needed(&self, entry: EntryIndex) -> bool {
        matches!(self.entries.get(entry.at()), Some(EntryState::Needed | EntryState::Complete))
    }

    /// The needed files that `chunk` packs, with their sizes; empty for other chunks.
    pub fn slices(&self, chunk: ChunkIndex) -> impl Iterator<Item = (EntryIndex, u32)> + '_ {
        let (from, to) = match self.table.content(chunk) {
            Some(ChunkContent::Pack { from, to }) => (from.0, to.0),
            _ => (0, 0),
        };
        (from..to).map(EntryIndex).filter_map(|entry| {
            let size = self.manifest.get(entry)?.size();
            (size > 0 && self.is_needed(entry)).then_some((entry, size as u32))
        })
    }

    /// The checksum of a chunk that is held.
    pub fn checksum(&self, chunk: ChunkIndex) -> Option<Checksum> {
        let held = self.chunks.get(chunk.at()) == Some(&ChunkState::Held);
        self.checksums.get(chunk.at()).filter(|_| held)
    }

    /// Returns true if there are bytes of a chunk already, be they of this version of its file or
    /// perhaps of another.
    pub fn has(&self, chunk: ChunkIndex) -> bool {
        matches!(self.chunks.get(chunk.at()), Some(ChunkState::Held | ChunkState::Claimed))
    }

    /// Leaves out `entry`. Only before [`Self::answer`].
    pub fn skip(&mut self, entry: EntryIndex, reason: SkipReason) {
        if let Some(state) = self.entries.get_mut(entry.at()) {
            *state = EntryState::Skipped(reason);
        }
        // Packs are settled all at once, in `answer`.
        if self.pieces_left.contains_key(&entry) {
            self.leave_out(entry);
        }
    }

    /// Notes a piece that an unfinished transfer left, verified. Only before [`Self::answer`].
    pub fn hold(&mut self, chunk: ChunkIndex, checksum: &Checksum) -> Completed {
        match self.chunks.get_mut(chunk.at()) {
            Some(state @ ChunkState::Missing) => *state = ChunkState::Writing,
            _ => return Completed::Nothing,
        }
        self.checksums.set(chunk.at(), checksum);
        self.handle_written(chunk, checksum)
    }

    /// Notes a piece that an unfinished transfer left, and that may be of another version of the
    /// file. Only before [`Self::answer`], and only with checksums.
    pub fn claim(&mut self, chunk: ChunkIndex, checksum: &Checksum) {
        if let Some(state @ ChunkState::Missing) = self.chunks.get_mut(chunk.at()) {
            *state = ChunkState::Claimed;
            self.checksums.set(chunk.at(), checksum);
        }
    }

    /// Takes one chunk of SAME: it is held now. The caller journals its checksum before it counts
    /// on it; None if the chunk has been given up meanwhile.
    ///
    /// # Errors
    ///
    /// A chunk that was not to be compared.
    pub fn handle_same(&mut self, chunk: ChunkIndex) -> Result<Option<(Checksum, Completed)>, Violation> {
        match self.chunks.get_mut(chunk.at()) {
            Some(ChunkState::Unneeded) => return Ok(None),
            Some(state @ ChunkState::Claimed) => *state = ChunkState::Writing,
            _ => {
                return Err(Violation::protocol(
                    "a chunk that was not to be compared is said to be the same",
                ));
            }
        }
        let checksum = self.checksums.get(chunk.at()).unwrap_or_default();
        Ok(Some((checksum, self.handle_written(chunk, &checksum))))
    }

    /// Takes PROVEN: the chunks in it are those of the sender.
    ///
    /// # Errors
    ///
    /// Chunks that do not follow the last ones, that are not held, or another digest than that of
    /// what is held.
    pub fn handle_proven(&mut self, proven: &Proven) -> Result<(), Violation> {
        let end = self.proven.checked_add(proven.count).filter(|&end| end as usize <= self.chunks.len());
        let (Some(end), true) = (end, proven.first.0 == self.proven) else {
            return Err(Violation::protocol("proven chunks that are not the next"));
        };
        let range = (self.proven..end).map(ChunkIndex);
        let state = |chunk: ChunkIndex| self.chunks.get(chunk.at()).copied();
        let settled = |chunk| matches!(state(chunk), Some(ChunkState::Held | ChunkState::Unneeded));
        if !range.clone().all(settled) {
            return Err(Violation::new(Code::Integrity, "chunks that are proven and not held"));
        }
        let held = range.filter(|&chunk| state(chunk) == Some(ChunkState::Held));
        let chunks = held.map(|chunk| (chunk, self.checksums.get(chunk.at()).unwrap_or_default()));
        if root_digest(&self.transcript, chunks) != proven.digest {
            return Err(Violation::new(Code::Integrity, "a digest of chunks is another than the sender's"));
        }
        self.proven = end;
        Ok(())
    }

    /// Returns true if `entry` is complete, and all of its chunks are proven: then it may get its
    /// name before END.
    pub fn is_proven(&self, entry: EntryIndex) -> bool {
        let chunks = self.table.chunks_of(entry).filter(|&(_, count)| count > 0);
        self.entries.get(entry.at()) == Some(&EntryState::Complete)
            && chunks.is_some_and(|(first, count)| first.0 + count <= self.proven)
    }

    fn leave_out(&mut self, entry: EntryIndex) {
        let Some((first, count)) = self.table.chunks_of(entry) else { return };
        if self.manifest.get(entry).is_none_or(|item| item.size() == 0) {
            return;
        }
        self.pieces_left.remove(&entry);
        for chunk in (first.0..first.0 + count).map(ChunkIndex) {
            if self.slices(chunk).next().is_some() {
                // What is being written has a slice too many; the sender will send what remains.
                if let Some(state @ ChunkState::Writing) = self.chunks.get_mut(chunk.at()) {
                    *state = ChunkState::Missing;
                }
                continue;
            }
            self.leave_out_chunk(chunk);
        }
    }

    fn leave_out_chunk(&mut self, chunk: ChunkIndex) {
        if let Some(state) = self.chunks.get_mut(chunk.at()) {
            if matches!(state, ChunkState::Missing | ChunkState::Claimed | ChunkState::Writing) {
                self.open_chunks -= 1;
            }
            *state = ChunkState::Unneeded;
        }
    }

    /// What remains to be sent.
    pub fn totals(&self) -> NeedTotals {
        let mut totals = NeedTotals { chunks: 0, bytes: 0 };
        for (at, state) in self.chunks.iter().enumerate() {
            if matches!(state, ChunkState::Missing | ChunkState::Writing) {
                totals.chunks += 1;
                totals.bytes += u64::from(self.plain_len(ChunkIndex(at as u32)).unwrap_or(0));
            }
        }
        totals
    }

    /// The frames that answer the manifest. From here on only the sender can leave something out.
    pub fn answer(&mut self) -> Vec<Control> {
        for at in 0..self.chunks.len() {
            let chunk = ChunkIndex(at as u32);
            if self.chunks.get(at) == Some(&ChunkState::Missing) && self.plain_len(chunk) == Some(0) {
                self.leave_out_chunk(chunk);
            }
        }
        let mut runs: Vec<SkipRun> = Vec::new();
        for (at, state) in self.entries.iter().enumerate() {
            let EntryState::Skipped(reason) = *state else { continue };
            match runs.last_mut() {
                Some(run) if run.first.at() + run.count as usize == at && run.reason == reason => {
                    run.count += 1
                }
                _ => runs.push(SkipRun { first: EntryIndex(at as u32), count: 1, reason }),
            }
        }
        let mut frames: Vec<_> =
            runs.chunks(ANSWER_PART_MAX / 9).map(|runs| Control::Skip(runs.to_vec())).collect();
        frames.extend(self.runs_of(ChunkState::Held).into_iter().map(Control::Held));
        frames.extend(self.runs_of(ChunkState::Claimed).into_iter().map(Control::Compare));
        frames.push(Control::Need(self.totals()));
        frames
    }

    /// Checksums of all chunks in that state, in runs that fit into frames.
    fn runs_of(&self, wanted: ChunkState) -> Vec<Held> {
        let mut held: Vec<Held> = Vec::new();
        let mut next = None;
        for (at, state) in self.chunks.iter().enumerate() {
            if *state != wanted {
                continue;
            }
            let checksum = self.checksums.get(at).unwrap_or_default();
            match held.last_mut() {
                Some(run) if next == Some(at) && run.checksums.len() < ANSWER_PART_MAX => {
                    run.checksums.extend_from_slice(checksum.as_bytes());
                }
                _ => {
                    let first = ChunkIndex(at as u32);
                    held.push(Held { first, checksums: checksum.as_bytes().to_vec() });
                }
            }
            // Without checksums a run has no length of its own: one chunk a frame.
            next = (!self.algorithm.is_empty()).then_some(at + 1);
        }
        held
    }

    /// Plain bytes of `chunk`; for a stream's the most that it can have.
    fn plain_len(&self, chunk: ChunkIndex) -> Option<u32> {
        match self.table.content(chunk)? {
            ChunkContent::Piece { len, .. } => Some(len),
            ChunkContent::Pack { .. } => Some(self.slices(chunk).map(|(_, size)| size).sum()),
            ChunkContent::Stream { .. } => Some(self.table.one_chunk().bytes()),
        }
    }

    /// Checks the header of a chunk frame against the table, before anything is allocated for it.
    pub fn expect(&mut self, kind: FrameKind, size: u32) -> Result<Expected, Violation> {
        let (chunk, encoded) = match kind {
            FrameKind::Chunk(chunk) => (chunk, false),
            FrameKind::EncodedChunk(chunk) => (chunk, true),
            FrameKind::Control(_) => return Err(Violation::protocol("a control frame in place of a chunk")),
        };
        let content = self.table.content(chunk);
        let content = content.ok_or_else(|| Violation::protocol(format!("there is no chunk {}", chunk.0)))?;
        let plain_len = self.plain_len(chunk).unwrap_or(0);
        let wrong = || Violation::protocol(format!("chunk {} is not {size} bytes", chunk.0));
        let data_len = size.checked_sub(self.algorithm.len() as u32).ok_or_else(wrong)?;
        if let ChunkContent::Stream { .. } = content {
            let (_, first) = self.table.stream().ok_or_else(wrong)?;
            let arrived = (self.chunks.len() as u32).saturating_sub(self.table.count());
            if self.stream_size.is_some() && self.chunks.get(chunk.at()).is_none() {
                return Err(Violation::protocol("a chunk beyond the end of its stream"));
            }
            if chunk.0 - first.0 >= arrived + STREAM_WINDOW {
                return Err(Violation::protocol("a chunk too far ahead of its stream"));
            }
        }
        let is_stream = matches!(content, ChunkContent::Stream { .. });
        let fits = match encoded {
            true => data_len > 0 && plain_len > 0 && data_len <= plain_len + ENCODING_OVERHEAD_MAX,
            false if is_stream => 0 < data_len && data_len <= plain_len,
            false => data_len == plain_len && plain_len > 0,
        };
        if !fits {
            return Err(wrong());
        }
        let plain_len = if is_stream && !encoded { data_len } else { plain_len };
        Ok(Expected { chunk, plain_len, data_len, encoded })
    }

    /// Judges a chunk that has arrived whole, `sent` being the checksum in its frame and `computed` that of its bytes.
    pub fn check(
        &mut self,
        expected: &Expected,
        sent: &Checksum,
        computed: &Checksum,
    ) -> Result<ChunkVerdict, Violation> {
        if sent != computed {
            self.again += 1;
            if self.again > AGAIN_MAX {
                return Err(Violation::new(Code::Integrity, "too many chunks with a wrong checksum"));
            }
            return Ok(ChunkVerdict::Again);
        }
        let at = expected.chunk.at();
        if self.table.stream().is_some_and(|(_, first)| expected.chunk >= first) && at >= self.chunks.len() {
            self.open_chunks += (at + 1 - self.chunks.len()) as u32;
            self.chunks.resize(at + 1, ChunkState::Missing);
            self.checksums.grow(at + 1);
        }
        // A piece whose length changed since `expect`, because its slices did, is for the sender to send anew.
        let same = matches!(self.table.content(expected.chunk), Some(ChunkContent::Stream { .. }))
            || self.plain_len(expected.chunk) == Some(expected.plain_len);
        match self.chunks.get_mut(at) {
            Some(state @ (ChunkState::Missing | ChunkState::Claimed)) if same => {
                *state = ChunkState::Writing;
                self.checksums.set(at, computed);
                Ok(ChunkVerdict::Write)
            }
            Some(ChunkState::Held) if self.checksums.get(at) == Some(*computed) => Ok(ChunkVerdict::Confirm),
            Some(ChunkState::Held) => Err(Violation::new(Code::Conflict, "two versions of one chunk")),
            _ => Ok(ChunkVerdict::Ignore),
        }
    }

    /// Counts a chunk that has been written and journaled, and says what it completes.
    ///
    /// It may have been given up meanwhile, in part or whole: confirm it only if [`Self::checksum`] knows it then.
    pub fn handle_written(&mut self, chunk: ChunkIndex, checksum: &Checksum) -> Completed {
        // Between then and now a pack may have lost a slice, and be written again by another stream.
        let same = self.checksums.get(chunk.at()) == Some(*checksum);
        match self.chunks.get_mut(chunk.at()) {
            Some(state @ ChunkState::Writing) if same => *state = ChunkState::Held,
            // Abandoned while it was being written.
            _ => return Completed::Nothing,
        }
        self.open_chunks -= 1;
        match self.table.content(chunk) {
            Some(ChunkContent::Piece { entry, .. }) => {
                let Some(left) = self.pieces_left.get_mut(&entry) else { return Completed::Nothing };
                *left -= 1;
                if *left > 0 {
                    return Completed::Nothing;
                }
                self.pieces_left.remove(&entry);
                self.complete(entry);
                Completed::File(entry)
            }
            Some(ChunkContent::Pack { from, to }) => {
                for entry in (from.0..to.0).map(EntryIndex) {
                    if self.manifest.get(entry).is_some_and(|item| item.size() > 0) {
                        self.complete(entry);
                    }
                }
                Completed::Pack(from, to)
            }
            Some(ChunkContent::Stream { .. }) | None => Completed::Nothing,
        }
    }

    fn complete(&mut self, entry: EntryIndex) {
        if let Some(state @ EntryState::Needed) = self.entries.get_mut(entry.at()) {
            *state = EntryState::Complete;
        }
    }

    /// Notes the bytes of a stream's chunk that has been written, to compare with its size in the end.
    pub fn handle_stream_bytes(&mut self, bytes: u32) {
        self.stream_bytes += u64::from(bytes);
    }

    /// Takes back a chunk that could not be written.
    pub fn handle_write_failed(&mut self, chunk: ChunkIndex) {
        if let Some(state @ ChunkState::Writing) = self.chunks.get_mut(chunk.at()) {
            *state = ChunkState::Missing;
        }
    }

    /// Takes ABANDON, and returns the answer. What is complete here stays.
    pub fn handle_abandon(&mut self, entry: EntryIndex) -> Result<Vec<Control>, Violation> {
        let state = self.entries.get(entry.at()).copied();
        let state = state.ok_or_else(|| Violation::protocol("an abandoned entry that does not exist"))?;
        match state {
            EntryState::Complete => {
                let (first, count) = self.table.chunks_of(entry).unwrap_or((ChunkIndex(0), 0));
                let chunks: Vec<_> = (first.0..first.0 + count).map(ChunkIndex).collect();
                let mut answer: Vec<_> =
                    chunks.chunks(100_000).map(|part| Control::Confirm(part.to_vec())).collect();
                answer.push(Control::Abandoned(entry));
                return Ok(answer);
            }
            EntryState::Needed => {
                if let Some(state) = self.entries.get_mut(entry.at()) {
                    *state = EntryState::Abandoned;
                }
                self.leave_out(entry);
            }
            EntryState::Skipped(_) | EntryState::Abandoned => {}
        }
        Ok(vec![Control::Abandoned(entry)])
    }

    /// Whether the sender gave `entry` up.
    pub fn is_abandoned(&self, entry: EntryIndex) -> bool {
        self.entries.get(entry.at()) == Some(&EntryState::Abandoned)
    }

    /// Takes SIZE.
    pub fn handle_size(&mut self, entry: EntryIndex, size: u64) -> Result<(), Violation> {
        let (stream, first) = self
            .table
            .stream()
            .filter(|&(stream, _)| stream == entry)
            .ok_or_else(|| Violation::protocol("SIZE of no stream"))?;
        let one = u64::from(self.table.one_chunk().bytes());
        let pieces =
            u32::try_from(size.div_ceil(one)).ok().filter(|&pieces| pieces < ChunkIndex::LIMIT - first.0);
        let pieces = pieces.ok_or_else(|| Violation::protocol("a stream beyond what can be numbered"))?;
        let total = (first.0 + pieces) as usize;
        if self.stream_size.is_some() || total < self.chunks.len() {
            return Err(Violation::protocol("SIZE contradicts what came before"));
        }
        if total - self.chunks.len() > STREAM_WINDOW as usize {
            return Err(Violation::protocol("SIZE too far ahead of its stream"));
        }
        self.open_chunks += (total - self.chunks.len()) as u32;
        self.chunks.resize(total, ChunkState::Missing);
        self.checksums.grow(total);
        self.stream_size = Some(size);
        self.complete(stream);
        Ok(())
    }

    /// The size of the stream, once it is known.
    pub fn stream_size(&self) -> Option<u64> {
        self.stream_size
    }

    /// Takes END.
    pub fn handle_end(&mut self, digest: [u8; 32]) -> Result<(), Violation> {
        if self.table.stream().is_some_and(|(entry, _)| self.stream_size.is_none() && self.is_needed(entry)) {
            return Err(Violation::protocol("END before SIZE"));
        }
        if self.end.replace(digest).is_some_and(|earlier| earlier != digest) {
            return Err(Violation::protocol("two different ENDs"));
        }
        Ok(())
    }

    /// Once: that everything has come, and whether the root digest agrees. Then files may get their names.
    pub fn poll_finish(&mut self) -> Option<Finish> {
        let digest = self.end?;
        if self.finished || self.open_chunks > 0 {
            return None;
        }
        self.finished = true;
        if self.stream_size.is_some_and(|size| size != self.stream_bytes) {
            return Some(Err(Violation::new(
                Code::Integrity,
                "a stream whose chunks are not as long as its size",
            )));
        }
        let held = self.chunks.iter().enumerate().filter(|(_, state)| **state == ChunkState::Held);
        let chunks = held.map(|(at, _)| (ChunkIndex(at as u32), self.checksums.get(at).unwrap_or_default()));
        if root_digest(&self.transcript, chunks) != digest {
            return Some(Err(Violation::new(
                Code::Integrity,
                "the root digest is another than the sender's",
            )));
        }
        Some(Ok(()))
    }

    /// Entries that this transfer brings: needed, not skipped or given up, with their kind being anything.
    pub fn needed_entries(&self) -> impl Iterator<Item = EntryIndex> + '_ {
        (0..self.manifest.len()).map(EntryIndex).filter(|&entry| self.is_needed(entry))
    }

    /// The chunk checksums of one big file, if all are held: its BLAKE3 follows from them.
    pub fn piece_checksums(&self, entry: EntryIndex) -> Option<Vec<Checksum>> {
        let (first, count) = self.table.chunks_of(entry)?;
        let is_pieces = matches!(self.table.content(first), Some(ChunkContent::Piece { .. }));
        if !is_pieces
            || self.manifest.get(entry).is_none_or(|item| !matches!(item.kind, EntryKind::File { .. }))
        {
            return None;
        }
        (first.0..first.0 + count).map(|chunk| self.checksum(ChunkIndex(chunk))).collect()
    }
}
