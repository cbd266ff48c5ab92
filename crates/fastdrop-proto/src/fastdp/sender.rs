//! The sending end of a transfer (sections 7 and 10).

use super::tuner::Tuner;
use super::{
    ChunkContent, Control, Done, EntryKind, Held, IDENTITIES_PER_FRAME, Identities, Manifest, NeedTotals,
    Proven, Refuse, SkipReason, SkipRun, Table, Transcript, Violation, root_digest,
};
use crate::checksum::{Algorithm, Checksum, ChecksumTable};
use crate::units::{ChunkIndex, EntryIndex};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Which connection of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u32);

impl StreamId {
    /// The control stream; all others are data streams.
    pub const CONTROL: StreamId = StreamId(0);
}

/// How many data streams to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streams {
    /// As many as bring something.
    Auto,
    /// So many, as far as they are granted.
    Fixed(u16),
}

/// How a sender behaves.
#[derive(Debug, Clone)]
pub struct SenderConfig {
    /// Data streams wanted. Default: auto.
    pub streams: Streams,
    /// Data streams granted, at least 1.
    pub granted: u16,
    /// Cores of this machine, for auto.
    pub cores: u16,
    /// The round trip, for auto.
    pub rtt: Duration,
    /// Whether a connection keeps its rate through losses, as BBR does, for auto.
    pub loss_tolerant: bool,
    /// Bytes on a data stream before it is replaced. Default: never.
    pub checkpoint: Option<u64>,
    /// A stream without progress for so long is given up while another moves. Default 5 s.
    pub stall_after: Duration,
    /// A peer that says nothing for so long is taken for gone. Default 60 s.
    pub silent_after: Duration,
    /// A stream on which nothing was sent for so long carries ALIVE. Default 5 s.
    pub alive_every: Duration,
    /// A transfer of fewer bytes uses the control stream alone. Default 1 MiB.
    pub data_streams_from: u64,
    /// Chunks on one stream that are not confirmed: what a crash can cost. Default 64.
    pub flying_max: usize,
    /// The capability `identity` is shared: the receiver says by itself which chunks are to be
    /// compared. Default: no.
    pub identity: bool,
    /// The capability `proof` is shared. Default: no.
    pub proof: bool,
    /// The capability `content` is shared. Default: no.
    pub content: bool,
}

impl Default for SenderConfig {
    fn default() -> Self {
        Self {
            streams: Streams::Auto,
            granted: 1,
            cores: 1,
            rtt: Duration::ZERO,
            loss_tolerant: false,
            checkpoint: None,
            stall_after: Duration::from_secs(5),
            silent_after: Duration::from_secs(60),
            alive_every: Duration::from_secs(5),
            data_streams_from: 1 << 20,
            flying_max: 64,
            identity: false,
            proof: false,
            content: false,
        }
    }
}

/// What the driver of one stream does next.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Read this chunk, send it, and call [`Sender::handle_sent`].
    Send(ChunkIndex),
    /// Send this frame.
    Control(Control),
    /// Close the connection; the stream is forgotten.
    Close,
    /// Nothing: wait for a frame, a wake-up or [`Sender::poll_timeout`].
    Wait,
}

/// How a transfer ended for its sender.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The receiver has everything, under its name.
    Done(Done),
    /// The receiver refused.
    Refused(Refuse),
    /// This end cannot go on.
    Failed(Violation),
    /// The control stream is gone, or the peer has been silent for too long: worth another attempt.
    Lost(String),
    /// The receiver, which does not know identities, would continue with something else than what
    /// is here: worth an attempt that continues nothing.
    StartOver,
}

/// The reason for which an entry is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LeftOut {
    Skipped(SkipReason),
    Abandoned,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChunkState {
    /// The receiver has it or does not want it.
    Unneeded,
    /// Waits for a stream.
    Queued,
    /// On at least one stream, not confirmed.
    Flying,
    /// Waits until the receiver knows that one of its entries is left out.
    Blocked,
    /// The receiver has a chunk that may be of another version of the file: waits to be read and
    /// compared.
    Claimed,
    /// Is being read and compared.
    Comparing,
    Confirmed,
}

/// ```text
///          bytes near checkpoint       another joined         CHECKPOINT sent         CHECKPOINTED
///   Open ────────────────────▶ Replace ───────────────▶ Retire ──────────────▶ Syncing ───────────▶ Closing
///    └──────────────────── more streams than wanted ──────▲
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    Replace,
    Retire,
    Syncing,
    Closing,
}

#[derive(Debug)]
struct Stream {
    phase: Phase,
    /// Handed to the driver, not yet wholly sent.
    sending: Option<ChunkIndex>,
    /// Sent, or being sent, and not confirmed.
    flying: BTreeSet<ChunkIndex>,
    bytes: u64,
    progress_at: Instant,
    wrote_at: Instant,
    asked_at: Instant,
}

impl Stream {
    fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Open,
            sending: None,
            flying: BTreeSet::new(),
            bytes: 0,
            progress_at: now,
            wrote_at: now,
            asked_at: now,
        }
    }

    fn carries(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Replace)
    }

    /// Whether something must move on it. What it still sends may have been confirmed or given up meanwhile.
    fn is_busy(&self) -> bool {
        self.sending.is_some() || !self.flying.is_empty()
    }
}

/// Which chunks have to go, on which stream, and what happens when one of them breaks.
///
/// The driver of every stream calls [`Self::poll_stream`] and does what it says; what arrives goes to
/// [`Self::handle_frame`]; connections that join or end to [`Self::handle_stream_joined`] and [`Self::handle_stream_lost`].
/// After each call, and at [`Self::poll_timeout`] (by [`Self::handle_timeout`]), drivers that wait must be woken, [`Self::poll_open`] and [`Self::poll_close`]
/// be asked until they say no, and [`Self::outcome`] be looked at. All streams share one sender.
#[derive(Debug)]
pub struct Sender {
    config: SenderConfig,
    manifest: Arc<Manifest>,
    table: Table,
    algorithm: Algorithm,
    transcript: Transcript,
    tuner: Tuner,
    needed: Option<NeedTotals>,
    left_out: Vec<Option<LeftOut>>,
    chunks: Vec<ChunkState>,
    checksums: ChecksumTable,
    /// Checksums of the receiver's claimed chunks.
    claims: BTreeMap<ChunkIndex, Checksum>,
    /// Claimed chunks that wait to be compared.
    to_compare: VecDeque<ChunkIndex>,
    /// Identities of all entries, and how many of them have been sent.
    identities: Vec<u64>,
    identities_sent: usize,
    identities_asked: bool,
    /// Chunks below are proven to the receiver.
    proven: u32,
    /// Files whose contents the receiver asks for.
    asked: VecDeque<EntryIndex>,
    /// The entries that it has asked for: empty before the first question, then one a manifest
    /// entry.
    was_asked: Vec<bool>,
    /// Needed chunks whose checksum is not known yet.
    unknown: u32,
    /// Packs that lost a slice, so that their checksum will be another than the one known.
    stale: BTreeSet<ChunkIndex>,
    cursor: u32,
    returned: VecDeque<ChunkIndex>,
    streams: BTreeMap<StreamId, Stream>,
    next_stream: u32,
    pending_opens: VecDeque<Instant>,
    open_failures: u32,
    open_again_at: Option<Instant>,
    closing: Vec<StreamId>,
    abandoning: BTreeMap<EntryIndex, bool>,
    control_queue: VecDeque<Control>,
    stream_size: Option<u64>,
    stream_freed: Vec<ChunkIndex>,
    end_sent: bool,
    heard_at: Instant,
    timed_at: Instant,
    confirmed_bytes: u64,
    outcome: Option<Outcome>,
}

impl Sender {
    /// More failures in a row to open a data stream than this, and no more are tried.
    const OPEN_FAILURES_MAX: u32 = 5;
    /// A stream that has nobody to be compared with is given so many times the patience: the peer's disk may be slow.
    const STALL_ALONE: u32 = 4;
    /// A data stream that was asked for and has not joined by then counts as failed.
    const OPEN_PATIENCE: Duration = Duration::from_secs(10);
    /// Chunks in one SAME frame.
    const SAME_MAX: usize = 4096;
    /// Chunks that are proven together at least; fewer at the end are proven by END.
    const PROVEN_MIN: u32 = 4;
    /// Least time between two timeouts: what is due may have to wait for a driver that is blocked in its connection.
    const TICK: Duration = Duration::from_millis(50);

    /// A sender that has offered `manifest` and waits for the answer.
    pub fn new(
        config: SenderConfig,
        manifest: Arc<Manifest>,
        table: Table,
        algorithm: Algorithm,
        now: Instant,
    ) -> Self {
        let count = table.count() as usize;
        let tuner = match config.streams {
            Streams::Fixed(streams) => Tuner::fixed(streams.min(config.granted).max(1)),
            Streams::Auto => Tuner::auto(config.rtt, config.loss_tolerant, config.cores, config.granted),
        };
        Self {
            tuner,
            config,
            left_out: vec![None; manifest.len() as usize],
            manifest,
            chunks: vec![ChunkState::Queued; count],
            checksums: ChecksumTable::new(algorithm, count),
            claims: BTreeMap::new(),
            to_compare: VecDeque::new(),
            identities: Vec::new(),
            identities_sent: 0,
            identities_asked: false,
            proven: 0,
            asked: VecDeque::new(),
            was_asked: Vec::new(),
            unknown: table.count(),
            stale: BTreeSet::new(),
            table,
            algorithm,
            transcript: Transcript::default(),
            needed: None,
            cursor: 0,
            returned: VecDeque::new(),
            streams: BTreeMap::from([(StreamId::CONTROL, Stream::new(now))]),
            next_stream: 1,
            pending_opens: VecDeque::new(),
            open_failures: 0,
            open_again_at: None,
            closing: Vec::new(),
            abandoning: BTreeMap::new(),
            control_queue: VecDeque::new(),
            stream_size: None,
            stream_freed: Vec::new(),
            end_sent: false,
            heard_at: now,
            timed_at: now,
            confirmed_bytes: 0,
            outcome: None,
        }
    }

    /// Sets what was negotiated, for the root digest.
    pub fn set_transcript(&mut self, transcript: Transcript) {
        self.transcript = transcript;
    }

    /// Sets the identities of all entries, zero for unknown. They go out when the receiver asks for
    /// them or needs a chunk. Chunks on data streams may overtake them: then the receiver does not
    /// know the identity of their files. Only with [`SenderConfig::identity`].
    pub fn set_identities(&mut self, identities: Vec<u64>) {
        self.identities = identities;
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

    /// What was missing at the beginning; None until the receiver has said so.
    pub fn needed(&self) -> Option<NeedTotals> {
        self.needed
    }

    /// Plain bytes that the receiver has confirmed in this attempt.
    pub fn confirmed_bytes(&self) -> u64 {
        self.confirmed_bytes
    }

    /// Data streams that carry chunks now.
    pub fn data_streams(&self) -> usize {
        self.streams.iter().filter(|(id, stream)| **id != StreamId::CONTROL && stream.carries()).count()
    }

    /// Whether `entry` is left out: skipped by the receiver, or abandoned here.
    pub fn is_left_out(&self, entry: EntryIndex) -> bool {
        self.left_out.get(entry.at()).is_none_or(Option::is_some)
    }

    /// The reason for which the receiver does not need `entry`, if it does not.
    pub fn skip_reason(&self, entry: EntryIndex) -> Option<SkipReason> {
        match self.left_out.get(entry.at()) {
            Some(Some(LeftOut::Skipped(reason))) => Some(*reason),
            _ => None,
        }
    }

    /// The slices of a pack as they must be sent now.
    pub fn slices(&self, chunk: ChunkIndex) -> Vec<(EntryIndex, u32)> {
        let Some(ChunkContent::Pack { from, to }) = self.table.content(chunk) else { return Vec::new() };
        let range = (from.0..to.0).map(EntryIndex);
        let slice = |entry: EntryIndex| {
            let size = self.manifest.get(entry)?.size();
            (size > 0 && !self.is_left_out(entry)).then_some((entry, size as u32))
        };
        range.filter_map(slice).collect()
    }

    /// The end of the transfer, once there is one.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// The chunk checksums of one big file, if all are known: its BLAKE3 follows from them.
    pub fn piece_checksums(&self, entry: EntryIndex) -> Option<Vec<Checksum>> {
        let (first, count) = self.table.chunks_of(entry)?;
        if !matches!(self.table.content(first)?, ChunkContent::Piece { .. }) {
            return None;
        }
        (first.at()..first.at() + count as usize).map(|at| self.checksums.get(at)).collect()
    }

    // ---- what arrives ----

    /// Takes a control frame that arrived on `stream`.
    pub fn handle_frame(&mut self, stream: StreamId, frame: Control, now: Instant) {
        // There the peer says every 5 seconds that it lives; without it the transfer cannot end, whatever the others bring.
        if stream == StreamId::CONTROL {
            self.heard_at = now;
        }
        let done = match frame {
            Control::Skip(runs) => self.handle_skip(&runs),
            Control::Held(held) => self.handle_held(&held, !self.config.identity),
            Control::Compare(held) if self.config.identity => self.handle_held(&held, true),
            Control::Ask(entries) if entries.is_empty() && self.config.identity => {
                self.identities_asked = true;
                self.answering()
            }
            Control::Ask(entries) if self.config.content => self.handle_ask(&entries),
            Control::Need(totals) => self.handle_need(totals),
            Control::Confirm(chunks) => self.handle_confirm(stream, &chunks, now),
            Control::Again(chunks) => self.handle_again(&chunks),
            Control::Checkpointed => self.handle_checkpointed(stream),
            Control::Abandoned(entry) => self.handle_abandoned(entry),
            Control::Done(done) if self.end_sent => {
                self.end(Outcome::Done(done));
                Ok(())
            }
            Control::Refuse(refuse) if stream == StreamId::CONTROL => {
                self.end(Outcome::Refused(refuse));
                Ok(())
            }
            Control::Refuse(_) => {
                // That connection is over, for a reason of its own; the transfer is not.
                self.handle_stream_lost(stream, now);
                self.closing.push(stream);
                Ok(())
            }
            Control::Alive => Ok(()),
            _ => Err(Violation::protocol("a frame that a receiver does not send, or not now")),
        };
        if let Err(violation) = done {
            self.end(Outcome::Failed(violation));
        }
    }

    fn end(&mut self, outcome: Outcome) {
        self.outcome.get_or_insert(outcome);
    }

    fn answering(&self) -> Result<(), Violation> {
        match self.needed {
            None => Ok(()),
            Some(_) => Err(Violation::protocol("an answer after its end")),
        }
    }

    fn handle_skip(&mut self, runs: &[SkipRun]) -> Result<(), Violation> {
        self.answering()?;
        // Small files come without a checksum: whether they are those that are here, nobody knows.
        if !self.config.identity && runs.iter().any(|run| run.reason == SkipReason::Held) {
            self.end(Outcome::StartOver);
        }
        for run in runs {
            let end = run.first.0.checked_add(run.count).map(|end| end as usize);
            let range = end.and_then(|end| self.left_out.get_mut(run.first.at()..end));
            let range = range.ok_or_else(|| Violation::protocol("skipped entries that do not exist"))?;
            range.fill(Some(LeftOut::Skipped(run.reason)));
        }
        Ok(())
    }

    /// Takes questions for the contents of files: each file once, before the answer is complete.
    fn handle_ask(&mut self, entries: &[EntryIndex]) -> Result<(), Violation> {
        self.answering()?;
        self.was_asked.resize(self.manifest.len() as usize, false);
        for &entry in entries {
            let is_file =
                self.manifest.get(entry).is_some_and(|entry| matches!(entry.kind, EntryKind::File { .. }));
            // Twice would cost the reading of a whole file each time, and the receiver nothing.
            match self.was_asked.get_mut(entry.at()) {
                Some(was_asked @ false) if is_file => *was_asked = true,
                _ => {
                    let why = "contents asked for that are not in the manifest, or twice";
                    return Err(Violation::protocol(why));
                }
            }
            self.asked.push_back(entry);
        }
        Ok(())
    }

    /// A file whose BLAKE3 the receiver wants; answered by CONTENT.
    pub fn poll_asked(&mut self) -> Option<EntryIndex> {
        self.asked.pop_front().filter(|_| self.outcome.is_none())
    }

    /// Takes chunks that the receiver has: those that have to be `compared` are its claims only.
    fn handle_held(&mut self, held: &Held, compared: bool) -> Result<(), Violation> {
        self.answering()?;
        if compared && self.algorithm.is_empty() {
            return match self.config.identity {
                true => Err(Violation::protocol("chunks to be compared without checksums")),
                false => {
                    self.end(Outcome::StartOver);
                    Ok(())
                }
            };
        }
        let len = self.algorithm.len();
        let sums: Vec<Checksum> = match len {
            0 => vec![Checksum::default()],
            _ => held.checksums.chunks_exact(len).map(Checksum::from_slice).collect(),
        };
        if sums.len() * len != held.checksums.len() {
            return Err(Violation::protocol("held checksums of another length"));
        }
        for (at, sum) in (held.first.at()..).zip(&sums) {
            let chunk = ChunkIndex(at as u32);
            match self.chunks.get_mut(at) {
                Some(state @ ChunkState::Queued) if compared => {
                    *state = ChunkState::Claimed;
                    self.claims.insert(chunk, *sum);
                    self.to_compare.push_back(chunk);
                }
                Some(state @ ChunkState::Queued) => {
                    *state = ChunkState::Confirmed;
                    self.checksums.set(at, sum);
                    self.unknown -= 1;
                }
                _ => return Err(Violation::protocol("held chunks that do not exist")),
            }
        }
        Ok(())
    }

    /// The plain bytes of `chunk`, without what is left out.
    fn plain_len(&self, chunk: ChunkIndex) -> u64 {
        match self.table.content(chunk) {
            Some(ChunkContent::Piece { entry, len, .. }) if !self.is_left_out(entry) => u64::from(len),
            Some(ChunkContent::Pack { .. }) => {
                self.slices(chunk).iter().map(|&(_, size)| u64::from(size)).sum()
            }
            _ => 0,
        }
    }

    fn handle_need(&mut self, said: NeedTotals) -> Result<(), Violation> {
        self.answering()?;
        let mut totals = NeedTotals { chunks: 0, bytes: 0 };
        for at in 0..self.chunks.len() {
            let chunk = ChunkIndex(at as u32);
            let bytes = self.plain_len(chunk);
            let Some(state @ ChunkState::Queued) = self.chunks.get_mut(at) else { continue };
            if bytes == 0 {
                *state = ChunkState::Unneeded;
                self.unknown -= 1;
            } else {
                totals.chunks += 1;
                totals.bytes += bytes;
            }
        }
        if totals != said {
            return Err(Violation::protocol(
                "the receiver needs something else than follows from its answer",
            ));
        }
        self.needed = Some(totals);
        Ok(())
    }

    fn handle_confirm(
        &mut self,
        stream: StreamId,
        chunks: &[ChunkIndex],
        now: Instant,
    ) -> Result<(), Violation> {
        let mut bytes = 0;
        for &chunk in chunks {
            match self.chunks.get_mut(chunk.at()) {
                Some(ChunkState::Unneeded | ChunkState::Confirmed) => continue,
                Some(_) if self.checksums.get(chunk.at()).is_none() => {
                    return Err(Violation::protocol("a confirmation of a chunk that was never sent"));
                }
                Some(state) => {
                    *state = ChunkState::Confirmed;
                    self.stale.remove(&chunk);
                }
                None => return Err(Violation::protocol("a confirmation of a chunk that does not exist")),
            }
            for stream in self.streams.values_mut() {
                stream.flying.remove(&chunk);
            }
            bytes += match self.table.content(chunk) {
                Some(ChunkContent::Piece { len, .. }) => u64::from(len),
                Some(ChunkContent::Pack { .. }) => self.plain_len(chunk),
                Some(ChunkContent::Stream { .. }) => {
                    self.stream_freed.push(chunk);
                    u64::from(self.table.one_chunk().bytes())
                }
                None => 0,
            };
        }
        self.confirmed_bytes += bytes;
        self.tuner.handle_confirmed(bytes, now);
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.progress_at = now;
        }
        Ok(())
    }

    fn handle_again(&mut self, chunks: &[ChunkIndex]) -> Result<(), Violation> {
        for &chunk in chunks {
            if self.chunks.get(chunk.at()).is_none() {
                return Err(Violation::protocol("a chunk asked for again that does not exist"));
            }
            for stream in self.streams.values_mut() {
                stream.flying.remove(&chunk);
            }
            self.requeue(chunk);
        }
        Ok(())
    }

    // ---- what the receiver claims to have ----

    /// A chunk to be read and compared with what the receiver has; followed by
    /// [`Self::handle_compared`] or [`Self::handle_unreadable`]. None before the receiver has
    /// answered, and when there is no other.
    pub fn poll_compare(&mut self) -> Option<ChunkIndex> {
        if self.outcome.is_some() {
            return None;
        }
        self.needed?;
        while let Some(chunk) = self.to_compare.pop_front() {
            if let Some(state @ ChunkState::Claimed) = self.chunks.get_mut(chunk.at()) {
                *state = ChunkState::Comparing;
                return Some(chunk);
            }
        }
        None
    }

    /// Returns true if [`Self::poll_compare`] or [`Self::poll_asked`] has something now.
    pub fn wants_reading(&self) -> bool {
        let compare = self.needed.is_some() && !self.to_compare.is_empty();
        self.outcome.is_none() && (compare || !self.asked.is_empty())
    }

    /// Takes the checksum of a chunk that was read to be compared. Another one than the receiver's,
    /// and the chunk is sent.
    pub fn handle_compared(&mut self, chunk: ChunkIndex, checksum: &Checksum) {
        let Some(claimed) = self.claims.remove(&chunk) else { return };
        let Some(state @ ChunkState::Comparing) = self.chunks.get_mut(chunk.at()) else { return };
        if claimed == *checksum {
            *state = ChunkState::Confirmed;
            self.checksums.set(chunk.at(), checksum);
            self.unknown -= 1;
            if self.config.identity {
                match self.control_queue.back_mut() {
                    Some(Control::Same(chunks)) if chunks.len() < Self::SAME_MAX => chunks.push(chunk),
                    _ => self.control_queue.push_back(Control::Same(vec![chunk])),
                }
            }
        } else if self.config.identity {
            *state = ChunkState::Queued;
            self.returned.push_back(chunk);
            let bytes = self.plain_len(chunk);
            if let Some(needed) = &mut self.needed {
                needed.chunks += 1;
                needed.bytes += bytes;
            }
        } else {
            // A receiver that does not know identities takes no other version of a chunk that it
            // has.
            self.end(Outcome::StartOver);
        }
    }

    fn handle_checkpointed(&mut self, stream: StreamId) -> Result<(), Violation> {
        match self.streams.get_mut(&stream) {
            Some(stream) if stream.phase == Phase::Syncing => stream.phase = Phase::Closing,
            Some(_) => return Err(Violation::protocol("CHECKPOINTED without CHECKPOINT")),
            None => {}
        }
        Ok(())
    }

    fn handle_abandoned(&mut self, entry: EntryIndex) -> Result<(), Violation> {
        if self.abandoning.remove(&entry).is_none() {
            return Err(Violation::protocol("ABANDONED without ABANDON"));
        }
        let Some((first, count)) = self.table.chunks_of(entry) else { return Ok(()) };
        let chunks = (first.0..first.0 + count).map(ChunkIndex);
        let states = chunks.clone().map(|chunk| self.chunks.get(chunk.at()).copied());
        if states.clone().all(|state| state == Some(ChunkState::Confirmed)) {
            return Ok(());
        }
        if let Some(left_out) = self.left_out.get_mut(entry.at()) {
            *left_out = Some(LeftOut::Abandoned);
        }
        for chunk in chunks {
            let is_pack = matches!(self.table.content(chunk), Some(ChunkContent::Pack { .. }));
            let remains = is_pack && !self.slices(chunk).is_empty();
            let blocked = remains
                && self
                    .abandoning
                    .keys()
                    .any(|other| self.table.chunks_of(*other).is_some_and(|(of, _)| of == chunk));
            let known = self.checksums.get(chunk.at()).is_some();
            let Some(state) = self.chunks.get_mut(chunk.at()) else { continue };
            if blocked {
                continue;
            }
            if remains {
                *state = ChunkState::Queued;
                self.returned.push_back(chunk);
                if known {
                    self.stale.insert(chunk);
                }
            } else {
                self.stale.remove(&chunk);
                if !known && *state != ChunkState::Unneeded {
                    self.unknown -= 1;
                }
                *state = ChunkState::Unneeded;
                for stream in self.streams.values_mut() {
                    stream.flying.remove(&chunk);
                }
            }
        }
        Ok(())
    }

    // ---- streams ----

    /// Takes a data stream that has joined, and names it.
    pub fn handle_stream_joined(&mut self, now: Instant) -> StreamId {
        let id = StreamId(self.next_stream);
        self.next_stream += 1;
        self.pending_opens.pop_front();
        self.open_failures = 0;
        self.streams.insert(id, Stream::new(now));
        if let Some(old) = self.streams.values_mut().find(|stream| stream.phase == Phase::Replace) {
            old.phase = Phase::Retire;
        }
        id
    }

    /// Takes a data stream that could not be opened.
    pub fn handle_open_failed(&mut self, now: Instant) {
        self.pending_opens.pop_front();
        self.open_failures += 1;
        self.open_again_at = Some(now + Duration::from_millis(200) * (1 << self.open_failures.min(5)));
    }

    /// Takes the end of a connection: what it carried goes back to the queue.
    pub fn handle_stream_lost(&mut self, id: StreamId, now: Instant) {
        let Some(stream) = self.streams.remove(&id) else { return };
        for chunk in stream.flying {
            self.requeue(chunk);
        }
        if id == StreamId::CONTROL {
            self.end(Outcome::Lost("the connection was lost".into()));
        } else if stream.phase != Phase::Closing {
            self.open_again_at = Some(now + Duration::from_millis(50));
        }
    }

    fn requeue(&mut self, chunk: ChunkIndex) {
        let elsewhere = self.streams.values().any(|stream| stream.flying.contains(&chunk));
        if let Some(state @ ChunkState::Flying) = self.chunks.get_mut(chunk.at())
            && !elsewhere
        {
            *state = ChunkState::Queued;
            self.returned.push_back(chunk);
        }
    }

    fn wanted_opens(&self) -> usize {
        let Some(needed) = self.needed else { return 0 };
        let stream = self.table.stream().is_some_and(|(entry, _)| !self.is_left_out(entry));
        if self.outcome.is_some()
            || (needed.bytes < self.config.data_streams_from && !stream)
            || self.end_sent
        {
            return 0;
        }
        let replace = self.streams.values().filter(|stream| stream.phase == Phase::Replace).count();
        let want = usize::from(self.tuner.target()) + replace;
        want.saturating_sub(self.data_streams() + self.pending_opens.len())
    }

    /// Whether one more data stream should be opened now. Each true must be followed by a join or a failure.
    pub fn poll_open(&mut self, now: Instant) -> bool {
        if self.wanted_opens() == 0
            || self.open_failures > Self::OPEN_FAILURES_MAX
            || self.open_again_at.is_some_and(|at| now < at)
        {
            return false;
        }
        self.pending_opens.push_back(now);
        true
    }

    /// A stream whose connection must be closed now, because it stalled.
    pub fn poll_close(&mut self) -> Option<StreamId> {
        self.closing.pop()
    }

    /// What the driver of `id` does next. `Send` is followed by [`Self::handle_sent`], [`Self::handle_unreadable`] or the loss of the stream.
    pub fn poll_stream(&mut self, id: StreamId, now: Instant) -> Action {
        if self.outcome.is_some() || !self.streams.contains_key(&id) {
            return Action::Close;
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.asked_at = now;
        }
        if id == StreamId::CONTROL {
            if let Some(frame) = self.next_control() {
                return self.say(id, frame, now);
            }
        } else {
            self.steer(id);
            match self.streams.get(&id).map(|stream| stream.phase) {
                Some(Phase::Retire) => {
                    if let Some(stream) = self.streams.get_mut(&id) {
                        stream.phase = Phase::Syncing;
                        stream.progress_at = now;
                    }
                    return self.say(id, Control::Checkpoint, now);
                }
                Some(Phase::Closing) | None => {
                    self.handle_stream_lost(id, now);
                    return Action::Close;
                }
                Some(Phase::Open | Phase::Replace | Phase::Syncing) => {}
            }
        }
        let carries = match id {
            StreamId::CONTROL => self.data_streams() == 0,
            _ => self.streams.get(&id).is_some_and(Stream::carries),
        };
        let full = self.streams.get(&id).is_some_and(|stream| stream.flying.len() >= self.config.flying_max);
        // A stream that is due waits for its replacement, unless that may not come.
        let due = self.open_failures == 0
            && self.streams.get(&id).is_some_and(|stream| {
                stream.phase == Phase::Replace
                    && self.config.checkpoint.is_some_and(|bytes| stream.bytes >= bytes)
            });
        let carries = carries && !full && !due;
        if carries
            && self.needed.is_some()
            && let Some(chunk) = self.next_chunk()
        {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.sending = Some(chunk);
                stream.flying.insert(chunk);
                stream.progress_at = now;
            }
            return Action::Send(chunk);
        }
        let silent_since = self.streams.get(&id).map(|stream| stream.wrote_at);
        if silent_since.is_some_and(|at| now >= at + self.config.alive_every) {
            return self.say(id, Control::Alive, now);
        }
        Action::Wait
    }

    fn say(&mut self, id: StreamId, frame: Control, now: Instant) -> Action {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.wrote_at = now;
        }
        Action::Control(frame)
    }

    /// Moves a data stream on in its life, before it is given more work.
    fn steer(&mut self, id: StreamId) {
        let surplus = self.data_streams() > usize::from(self.tuner.target());
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.phase == Phase::Open {
            if surplus {
                stream.phase = Phase::Retire;
            } else if self.config.checkpoint.is_some_and(|bytes| stream.bytes >= bytes - bytes / 8) {
                // Asked for in advance, so that it is there when this one is full.
                stream.phase = Phase::Replace;
            }
        }
        // Nothing would come after it.
        if stream.phase == Phase::Replace && self.end_sent {
            stream.phase = Phase::Open;
        }
    }

    fn next_control(&mut self) -> Option<Control> {
        let wanted = self.identities_asked || self.needed.is_some_and(|needed| needed.chunks > 0);
        if wanted && self.identities_sent < self.identities.len() {
            let first = EntryIndex(self.identities_sent as u32);
            let identities = self.identities.iter().skip(self.identities_sent).take(IDENTITIES_PER_FRAME);
            let identities: Vec<_> = identities.copied().collect();
            self.identities_sent += identities.len();
            return Some(Control::Identity(Identities { first, identities }));
        }
        if let Some(frame) = self.control_queue.pop_front() {
            return Some(frame);
        }
        let stream_open = self
            .table
            .stream()
            .is_some_and(|(entry, _)| self.stream_size.is_none() && !self.is_left_out(entry));
        if let Some(proven) = self.next_proof() {
            return Some(Control::Proven(proven));
        }
        if self.end_sent
            || self.needed.is_none()
            || self.unknown > 0
            || !self.stale.is_empty()
            || stream_open
            || !self.abandoning.is_empty()
        {
            return None;
        }
        self.end_sent = true;
        let needed = self.chunks.iter().enumerate().filter(|(_, state)| **state != ChunkState::Unneeded);
        let chunks = needed.filter_map(|(at, _)| Some((ChunkIndex(at as u32), self.checksums.get(at)?)));
        Some(Control::End(root_digest(&self.transcript, chunks)))
    }

    /// One past the last of the chunks that could be proven now.
    fn provable(&self) -> u32 {
        // One file gets its name at END anyway.
        let wanted = self.config.proof && self.needed.is_some() && self.manifest.len() > 1;
        // The receiver may have dropped what is being abandoned already.
        if !wanted || self.end_sent || !self.abandoning.is_empty() {
            return self.proven;
        }
        let states = self.chunks.iter().skip(self.proven as usize);
        let settled = |state: &&ChunkState| matches!(state, ChunkState::Confirmed | ChunkState::Unneeded);
        self.proven + states.take_while(settled).count() as u32
    }

    fn next_proof(&mut self) -> Option<Proven> {
        let (first, end) = (self.proven, self.provable());
        if end - first < Self::PROVEN_MIN {
            return None;
        }
        self.proven = end;
        let chunks = (first..end).map(ChunkIndex).filter_map(|chunk| {
            let needed = self.chunks.get(chunk.at()) == Some(&ChunkState::Confirmed);
            Some((chunk, self.checksums.get(chunk.at()).filter(|_| needed)?))
        });
        let digest = root_digest(&self.transcript, chunks);
        Some(Proven { first: ChunkIndex(first), count: end - first, digest })
    }

    fn next_chunk(&mut self) -> Option<ChunkIndex> {
        while let Some(chunk) = self.returned.pop_front() {
            if let Some(state @ ChunkState::Queued) = self.chunks.get_mut(chunk.at()) {
                *state = ChunkState::Flying;
                return Some(chunk);
            }
        }
        while let Some(state) = self.chunks.get_mut(self.cursor as usize) {
            let chunk = ChunkIndex(self.cursor);
            self.cursor += 1;
            if *state == ChunkState::Queued {
                *state = ChunkState::Flying;
                return Some(chunk);
            }
        }
        None
    }

    /// Notes that the connection of `id` took some bytes.
    pub fn handle_progress(&mut self, id: StreamId, now: Instant) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.wrote_at = now;
            // An ALIVE fits into the buffers of a connection that is dark.
            if stream.sending.is_some() {
                stream.progress_at = now;
            }
        }
    }

    /// Notes the checksum of a chunk that is about to be sent on `id`.
    ///
    /// It is known from here on, so that a quick confirmation does not come too early.
    pub fn handle_read(&mut self, chunk: ChunkIndex, checksum: &Checksum) {
        // Its file was given up while it was read.
        if self.chunks.get(chunk.at()) == Some(&ChunkState::Unneeded) {
            return;
        }
        self.stale.remove(&chunk);
        match self.checksums.get(chunk.at()) {
            None => {
                self.checksums.set(chunk.at(), checksum);
                self.unknown -= 1;
            }
            Some(known) if known == *checksum => {}
            // A pack that lost a slice before END has another checksum now, and may.
            Some(_)
                if !self.end_sent && matches!(self.table.content(chunk), Some(ChunkContent::Pack { .. })) =>
            {
                self.checksums.set(chunk.at(), checksum);
            }
            Some(_) => {
                self.end(Outcome::Failed(Violation::with_code(410, "the source changed while it was sent")));
            }
        }
    }

    /// Takes the end of sending a chunk: `bytes` have gone out on `id`.
    pub fn handle_sent(&mut self, id: StreamId, bytes: u64, now: Instant) {
        self.handle_progress(id, now);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.sending = None;
            stream.bytes += bytes;
        }
    }

    /// Records that `chunk` cannot be read because of `entry`. `id` is the stream that was to send
    /// it; None if it was to be compared.
    pub fn handle_unreadable(
        &mut self,
        id: Option<StreamId>,
        chunk: ChunkIndex,
        entry: EntryIndex,
        code: u16,
        reason: &str,
    ) {
        if let Some(stream) = id.and_then(|id| self.streams.get_mut(&id)) {
            stream.sending = None;
            stream.flying.remove(&chunk);
        }
        // Confirmed after all, on its way or on another stream: then its bytes may be gone here.
        if matches!(self.chunks.get(chunk.at()), Some(ChunkState::Confirmed | ChunkState::Unneeded)) {
            return;
        }
        if self.is_left_out(entry) {
            // Another stream found it first, and the receiver has answered meanwhile: what remains of a pack still goes.
            self.requeue(chunk);
            return;
        }
        if let Some(state @ (ChunkState::Flying | ChunkState::Comparing)) = self.chunks.get_mut(chunk.at()) {
            *state = ChunkState::Blocked;
        }
        if self.table.stream().is_some_and(|(stream, _)| stream == entry) {
            self.end(Outcome::Failed(Violation::with_code(code, reason)));
            return;
        }
        // It was read once, and the digest in END has it: the next attempt can leave it out, this one cannot.
        if self.end_sent {
            self.end(Outcome::Lost(format!("a file could not be read again: {reason}")));
            return;
        }
        if self.abandoning.insert(entry, true).is_none() {
            self.control_queue.push_back(Control::Abandon { entry, code, reason: reason.into() });
            // The other pieces of the file need not go any more.
            if let Some((first, count)) = self.table.chunks_of(entry) {
                for at in first.at()..first.at() + count as usize {
                    if let Some(state @ (ChunkState::Queued | ChunkState::Claimed)) = self.chunks.get_mut(at)
                    {
                        *state = ChunkState::Blocked;
                    }
                }
            }
        }
    }

    // ---- an entry of unknown size ----

    /// Takes that the next chunk of the stream has been filled, and names it. Only after [`Self::wants_stream`] has said yes.
    pub fn handle_stream_filled(&mut self) -> Option<ChunkIndex> {
        self.table.stream()?;
        let chunk = ChunkIndex(self.chunks.len() as u32);
        if chunk.0 >= ChunkIndex::LIMIT {
            self.end(Outcome::Failed(Violation::with_code(413, "a stream beyond what can be numbered")));
            return None;
        }
        self.chunks.push(ChunkState::Queued);
        self.checksums.grow(self.chunks.len());
        self.unknown += 1;
        Some(chunk)
    }

    /// Takes the end of the stream.
    pub fn handle_stream_ended(&mut self, size: u64) {
        if let (Some((entry, _)), None) = (self.table.stream(), self.stream_size) {
            self.stream_size = Some(size);
            self.control_queue.push_back(Control::Size { entry, size });
        }
    }

    /// Chunks of the stream that are confirmed, so that their bytes need not be kept.
    pub fn poll_stream_freed(&mut self) -> Option<ChunkIndex> {
        self.stream_freed.pop()
    }

    // ---- time ----

    /// Whether every stream that carries chunks is sending one, and there is nothing else to do: then nobody who drives
    /// this machine has to be woken.
    pub fn is_occupied(&self) -> bool {
        let control_carries = self.data_streams() == 0;
        let mut carriers = self
            .streams
            .iter()
            .filter(|(id, _)| (**id == StreamId::CONTROL) == control_carries)
            .map(|(_, stream)| stream);
        self.outcome.is_none()
            && self.stream_freed.is_empty()
            && self.wanted_opens() == 0
            && carriers.all(|stream| stream.sending.is_some())
            && self.provable() - self.proven < Self::PROVEN_MIN
    }

    /// When [`Self::handle_timeout`] is due at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.outcome.is_some() {
            return None;
        }
        let mut deadline = self.heard_at + self.config.silent_after;
        for stream in self.streams.values() {
            deadline = deadline.min(stream.wrote_at + self.config.alive_every);
            if stream.is_busy() {
                deadline = deadline.min(stream.progress_at + self.config.stall_after);
            }
        }
        if self.wanted_opens() > 0 && self.open_failures <= Self::OPEN_FAILURES_MAX {
            deadline = deadline.min(self.open_again_at.unwrap_or(deadline));
        }
        let patience = self.pending_opens.front().map(|&at| at + Self::OPEN_PATIENCE);
        Some(patience.map_or(deadline, |at| deadline.min(at)).max(self.timed_at + Self::TICK))
    }

    /// Gives up what has stalled.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.outcome.is_some() {
            return;
        }
        self.timed_at = now;
        if now >= self.heard_at + self.config.silent_after {
            self.end(Outcome::Lost("the peer has been silent for too long".into()));
            return;
        }
        if self.pending_opens.front().is_some_and(|&at| now >= at + Self::OPEN_PATIENCE) {
            self.handle_open_failed(now);
        }
        let stall = self.config.stall_after;
        let recent = |stream: &Stream| now < stream.progress_at + stall / 2;
        let moving: Vec<_> =
            self.streams.iter().filter(|(_, stream)| recent(stream)).map(|(&id, _)| id).collect();
        // An idle stream that could carry the work at once counts as moving.
        let idle = self
            .streams
            .iter()
            .any(|(&id, stream)| id != StreamId::CONTROL && stream.carries() && !stream.is_busy());
        // Nothing is on its way on it, and it does not come for what waits: its driver is blocked in an ALIVE.
        let blocked = |id: StreamId, stream: &Stream| {
            id != StreamId::CONTROL
                && stream.carries()
                && !stream.is_busy()
                && now >= stream.asked_at + stall * 2
                && self.chunks.contains(&ChunkState::Queued)
        };
        let stalled: Vec<_> = self
            .streams
            .iter()
            .filter(|(id, stream)| {
                blocked(**id, stream)
                    || stream.is_busy()
                        && now >= stream.progress_at + stall
                        && (idle
                            || now >= stream.progress_at + stall * Self::STALL_ALONE
                            || moving.iter().any(|other| other != *id))
            })
            .map(|(&id, _)| id)
            .collect();
        for id in stalled {
            if id == StreamId::CONTROL {
                // It stays for its control frames, but what it carries goes another way too.
                let flying = self.streams.get_mut(&id).map(|stream| std::mem::take(&mut stream.flying));
                flying.into_iter().flatten().for_each(|chunk| self.requeue(chunk));
            } else {
                self.handle_stream_lost(id, now);
                self.closing.push(id);
            }
        }
    }

    /// Whether the stream entry, if there is one, is wanted by the receiver; None before it has answered.
    pub fn wants_stream(&self) -> Option<bool> {
        self.needed?;
        let stream = self.table.stream()?.0;
        Some(matches!(self.manifest.get(stream)?.kind, EntryKind::Stream) && !self.is_left_out(stream))
    }
}
