//! A transfer's files as they are put together from chunks: what has come, what is written, and
//! what became of it. Nothing here knows a connection.

use crate::error::Error;
use crate::lock::lock;
use crate::observe::{Observer, Phase};
use crate::stop::Stop;
use crate::storage::journal::FileKey;
use crate::storage::namer::Named;
use crate::storage::writer::{TransferWriter, VerifiedChunk};
use crate::transfer::prepare::Prepared;
use crate::transfer::report;
use crate::transfer::sink::Sink;
use crate::transfer::unpack::{Unpacked, Unpacking};
use fastdrop_proto::checksum::{Algorithm, Checksum, join_blake3};
use fastdrop_proto::fastdp::{
    ChunkContent, ChunkVerdict, Code, Completed, Control, Done, Durability, EntryKind, Expected, Failed,
    FrameHeader, Identities, Manifest, NeedTotals, Proven, Receiver, Spent, Transcript, Violation,
};
use fastdrop_proto::units::{ChunkIndex, EntryIndex};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// A reason why something could not be done, and what ends with it.
#[derive(Debug)]
pub(super) enum Fault {
    /// The stream that brought it: it breaks the rules, or contradicts what is here.
    Stream(Error),
    /// The whole transfer.
    Transfer(Error),
}

impl<E: Into<Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        Fault::Stream(error.into())
    }
}

/// The fate of the entries, as far as the protocol's receiver does not know it.
#[derive(Debug, Default)]
struct Account {
    failed: BTreeMap<EntryIndex, Failed>,
    hashes: BTreeMap<EntryIndex, [u8; 32]>,
    /// The sender's account of its time.
    spent: Spent,
    unpacked: Option<Unpacked>,
}

/// A chunk that has begun to arrive.
pub(super) struct Arriving {
    pub(super) expected: Expected,
    pub(super) content: ChunkContent,
    pub(super) slices: Vec<(EntryIndex, u32)>,
    pub(super) one_chunk: u32,
}

/// The files of one transfer that is being received.
#[derive(Debug)]
pub(super) struct Assembly {
    manifest: Arc<Manifest>,
    algorithm: Algorithm,
    proto: Mutex<Receiver>,
    sink: Sink,
    account: Mutex<Account>,
    observer: Arc<Observer>,
    stop: Stop,
}

impl Assembly {
    pub(super) fn new(
        prepared: Prepared,
        transcript: Transcript,
        observer: Arc<Observer>,
        stop: Stop,
    ) -> Self {
        let Prepared { mut proto, sink, failed, hashes, .. } = prepared;
        proto.set_transcript(transcript);
        Self {
            manifest: Arc::clone(proto.manifest()),
            algorithm: proto.algorithm(),
            proto: Mutex::new(proto),
            sink,
            account: Mutex::new(Account { failed, hashes, ..Account::default() }),
            observer,
            stop,
        }
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub(super) fn observer(&self) -> &Observer {
        &self.observer
    }

    /// The name of the stage's folder.
    pub(super) fn folder(&self) -> Option<&str> {
        self.sink.files().map(TransferWriter::folder)
    }

    /// Returns true if the file `key` is one of this transfer's.
    pub(super) fn brings(&self, key: &FileKey) -> bool {
        self.sink.files().is_some_and(|files| files.brings(key))
    }

    /// The chunks and bytes that remain to come.
    pub(super) fn need(&self) -> NeedTotals {
        lock(&self.proto).totals()
    }

    /// Begins with a chunk, before anything is allocated for it.
    pub(super) fn expect(&self, header: FrameHeader) -> Result<Arriving, Fault> {
        let mut proto = lock(&self.proto);
        let expected = proto.expect(header.kind, header.size)?;
        let content = proto.table().content(expected.chunk);
        let content = content.ok_or_else(|| Violation::protocol("there is no such chunk"))?;
        let slices = proto.slices(expected.chunk).collect();
        Ok(Arriving { expected, content, slices, one_chunk: proto.table().one_chunk().bytes() })
    }

    /// Checks, writes, journals and counts a chunk; what the sender is told. `sent` is the checksum
    /// that came with it.
    pub(super) fn take(
        &self,
        expected: &Expected,
        sent: &Checksum,
        chunk: &VerifiedChunk<'_>,
    ) -> Result<Option<Control>, Fault> {
        let verdict = lock(&self.proto).check(expected, sent, &chunk.checksum);
        match verdict {
            Ok(ChunkVerdict::Write) => {
                if let Err(error) = self.write(expected, chunk) {
                    lock(&self.proto).handle_write_failed(expected.chunk);
                    return Err(Fault::Transfer(error));
                }
                // Given up, or shortened, while it was being written: then it is not held.
                let held = lock(&self.proto).checksum(expected.chunk).is_some();
                Ok(held.then(|| Control::Confirm(vec![expected.chunk])))
            }
            Ok(ChunkVerdict::Confirm) => Ok(Some(Control::Confirm(vec![expected.chunk]))),
            Ok(ChunkVerdict::Again) => Ok(Some(Control::Again(vec![expected.chunk]))),
            Ok(ChunkVerdict::Ignore) => Ok(None),
            Err(violation) if violation.code == Code::Integrity => Err(Fault::Transfer(violation.into())),
            Err(violation) => Err(violation.into()),
        }
    }

    fn write(&self, expected: &Expected, chunk: &VerifiedChunk<'_>) -> Result<(), Error> {
        let count = || {
            let mut proto = lock(&self.proto);
            if matches!(chunk.content, ChunkContent::Stream { .. }) {
                proto.handle_stream_bytes(expected.plain_len);
            }
            proto.handle_written(expected.chunk, &chunk.checksum)
        };
        match &self.sink {
            Sink::Output(output) => {
                output.write(expected.chunk, chunk.checksum, chunk.bytes)?;
                if matches!(count(), Completed::File(_)) {
                    self.observer.files_done.fetch_add(1, Ordering::Relaxed);
                }
            }
            Sink::Files(files) | Sink::Archive(files, ..) => {
                let working = files.write(chunk)?;
                files.completed(working, count())?;
                self.note_hashes(chunk);
            }
        }
        self.observer.bytes_done.fetch_add(chunk.bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Keeps the BLAKE3 of the files of a pack; those of big ones follow from their chunks.
    fn note_hashes(&self, chunk: &VerifiedChunk<'_>) {
        if self.algorithm != Algorithm::Blake3 || chunk.slices.is_empty() {
            return;
        }
        let mut account = lock(&self.account);
        for (&(index, _), sum) in chunk.slices.iter().zip(chunk.slice_sums) {
            if let Ok(hash) = <[u8; 32]>::try_from(sum.as_bytes()) {
                account.hashes.insert(index, hash);
            }
        }
    }

    /// Takes a chunk that is held from an earlier transfer and that the sender has found to be its
    /// own.
    pub(super) fn handle_same(&self, chunk: ChunkIndex) -> Result<(), Fault> {
        let Some(files) = self.sink.files() else {
            // What has been written cannot be taken back, nor is there anything to remember of it.
            lock(&self.proto).handle_same(chunk)?;
            return Ok(());
        };
        let working = files.begin();
        let (same, content) = {
            let mut proto = lock(&self.proto);
            (proto.handle_same(chunk)?, proto.table().content(chunk))
        };
        match (same, content) {
            (Some((checksum, completed)), Some(ChunkContent::Piece { entry, offset, .. })) => {
                files.confirm(working, entry, offset, checksum, completed).map_err(Fault::Transfer)
            }
            _ => Ok(()),
        }
    }

    /// Takes what the sender calls its files.
    pub(super) fn handle_identities(&self, part: &Identities) -> Result<(), Fault> {
        match (&self.sink, part.identities.first()) {
            (Sink::Files(files) | Sink::Archive(files, ..), _) => files.handle_identities(part)?,
            (Sink::Output(output), Some(&identity)) => output.set_identity(identity),
            (Sink::Output(_), None) => {}
        }
        Ok(())
    }

    /// Takes the size of the stream.
    pub(super) fn handle_size(&self, entry: EntryIndex, size: u64) -> Result<(), Fault> {
        Ok(lock(&self.proto).handle_size(entry, size)?)
    }

    /// Takes the end, and the digest of everything that was sent.
    pub(super) fn handle_end(&self, digest: [u8; 32]) -> Result<(), Fault> {
        Ok(lock(&self.proto).handle_end(digest)?)
    }

    /// Takes how the sender spent its time.
    pub(super) fn handle_spent(&self, spent: Spent) {
        lock(&self.account).spent = spent;
    }

    /// Takes that the sender gives up an entry, and why; the answer.
    pub(super) fn handle_abandon(
        &self,
        entry: EntryIndex,
        code: Code,
        reason: String,
    ) -> Result<Vec<Control>, Fault> {
        let (answer, is_abandoned) = {
            let mut proto = lock(&self.proto);
            (proto.handle_abandon(entry)?, proto.is_abandoned(entry))
        };
        if is_abandoned {
            let path = self.manifest.get(entry).map(|entry| entry.path.as_bytes().to_vec());
            let failed = Failed { path: path.unwrap_or_default(), code, message: reason };
            self.note_failed(BTreeMap::from([(entry, failed)]));
            self.sink.files().into_iter().for_each(|files| files.abandon(entry));
        }
        Ok(answer)
    }

    fn note_failed(&self, failed: BTreeMap<EntryIndex, Failed>) {
        let mut account = lock(&self.account);
        for (entry, failed) in failed {
            // What follows from a failure is no reason of its own.
            account.failed.entry(entry).or_insert(failed);
        }
    }

    /// Takes that chunks are proven to be the sender's, and names files that are, if there are
    /// enough of them.
    pub(super) fn handle_proven(&self, proven: &Proven) -> Result<(), Fault> {
        lock(&self.proto).handle_proven(proven).map_err(|violation| Fault::Transfer(violation.into()))?;
        let start = Instant::now();
        self.naming(|files, named| files.name_proven(&|entry| self.is_proven(entry), named))
            .map_err(Fault::Transfer)?;
        self.observer.clocks.write.since(start);
        Ok(())
    }

    fn is_proven(&self, entry: EntryIndex) -> bool {
        lock(&self.proto).is_proven(entry)
    }

    /// Makes everything confirmed so far durable.
    pub(super) fn checkpoint(&self) -> Result<(), Error> {
        self.naming(|files, named| files.checkpoint(&|entry| self.is_proven(entry), named))
    }

    /// Does something with the files that gives names, and notes what became of it.
    fn naming(
        &self,
        name: impl FnOnce(&TransferWriter, &mut Named) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Some(files) = self.sink.files() else { return Ok(()) };
        let mut named = Named::default();
        let result = name(files, &mut named);
        self.observer.files_done.fetch_add(named.files, Ordering::Relaxed);
        if !named.failed.is_empty() {
            self.note_failed(named.failed);
        }
        result
    }

    /// If everything has come and is the sender's: gives everything its name, and returns the last
    /// word. `is_ending` says whether nobody wants that any more.
    pub(super) fn finish_if_complete(
        &self,
        is_ending: &(dyn Fn() -> bool + Sync),
    ) -> Result<Option<Done>, Error> {
        let Some(finish) = lock(&self.proto).poll_finish() else { return Ok(None) };
        finish?;
        self.observer.set_phase(Phase::Finishing);
        let start = Instant::now();
        match &self.sink {
            Sink::Output(output) => output.flush()?,
            Sink::Archive(files, unpack, filter) => {
                let unpacking = Unpacking {
                    archive: files,
                    unpack: *unpack,
                    filter,
                    observer: &self.observer,
                    stop: &self.stop,
                    is_ending,
                };
                let unpacked = unpacking.run()?;
                lock(&self.account).unpacked = Some(unpacked);
            }
            Sink::Files(_) => {
                let needed: Vec<_> = lock(&self.proto).needed_entries().collect();
                self.naming(|files, named| files.finish(&needed, named))?;
            }
        }
        self.observer.clocks.write.since(start);
        Ok(Some(self.report()))
    }

    /// The last word.
    fn report(&self) -> Done {
        let account = lock(&self.account);
        let done = match &account.unpacked {
            Some(unpacked) => unpacked.done.clone(),
            None => report::count(&lock(&self.proto), &account.failed),
        };
        let clocks = &self.observer.clocks;
        Done {
            durability: self.sink.files().map_or(Durability::None, TransferWriter::durability),
            wait_micros: clocks.wait.micros(),
            cpu_micros: clocks.cpu.micros(),
            write_micros: clocks.write.micros(),
            ..done
        }
    }

    /// Leaves what can be continued to another attempt, after `error`.
    pub(super) fn give_up(&self, error: &Error) {
        let Some(files) = self.sink.files() else { return };
        let hopeless = error.is_distrust();
        if !hopeless && self.stop.is_stopped() && files.has_something() {
            // Leaving in good order: what is here is made to survive more than the end of this
            // process.
            let _ = self.checkpoint();
        }
        files.give_up(hopeless);
    }

    /// Lets others have what is left.
    pub(super) fn unlock(&self) {
        self.sink.files().into_iter().for_each(TransferWriter::unlock);
    }

    /// BLAKE3 of each file, where it was computed.
    pub(super) fn hashes(&self) -> BTreeMap<EntryIndex, [u8; 32]> {
        let mut hashes = lock(&self.account).hashes.clone();
        if self.algorithm != Algorithm::Blake3 {
            return hashes;
        }
        let proto = lock(&self.proto);
        for (index, entry) in self.manifest.iter() {
            if !proto.is_needed(index) || !matches!(entry.kind, EntryKind::File { .. }) {
                continue;
            }
            if entry.size() == 0 {
                hashes.insert(index, *blake3::hash(b"").as_bytes());
            } else if let Some(hash) = proto.piece_checksums(index).and_then(|sums| join_blake3(&sums)) {
                hashes.insert(index, hash);
            }
        }
        hashes
    }

    /// The sender's account of its time, as far as it has said.
    pub(super) fn spent(&self) -> Spent {
        lock(&self.account).spent
    }

    /// Entries that did not arrive.
    pub(super) fn failed(&self) -> Vec<Failed> {
        let account = lock(&self.account);
        let unpacked = account.unpacked.iter();
        let unpacked = unpacked.flat_map(|unpacked| unpacked.done.failed.iter().chain(&unpacked.unlisted));
        account.failed.values().chain(unpacked).cloned().collect()
    }
}
