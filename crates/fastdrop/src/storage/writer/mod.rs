//! The files of a transfer on their way to their places: written in a stage, named when complete.

mod take_over;
mod unjournaled;

use crate::error::{Error, reason};
use crate::lock::lock;
use crate::storage::io::write_all_at;
use crate::storage::journal::{FileKey, Record};
use crate::storage::mounts::Mounts;
use crate::storage::namer::{Named, Namer, is_about_the_name, naming_reason};
use crate::storage::options::ReceiveOptions;
use crate::storage::part::PartIndex;
use crate::storage::placement::{Placement, Verdict};
use crate::storage::root::{Dirs, Root};
use crate::storage::stage::Stage;
use fastdrop_proto::checksum::Checksum;
use fastdrop_proto::fastdp::{
    ChunkContent, Code, Completed, Durability, Entry, EntryKind, Extents, Identities, IdentityTable,
    Manifest, Violation,
};
use fastdrop_proto::units::{ChunkSize, EntryIndex};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

/// Complete files are named before the end of their transfer when so many of them are proven.
const NAMING_BATCH: usize = 1024;

/// A big file, or a stream, that is being written.
#[derive(Debug)]
struct Staged {
    temp: u32,
    fd: OwnedFd,
    /// Something unverified may stand where holes are to be.
    dirty: bool,
}

/// The place of a file that is written by several streams: whoever comes first creates it, and
/// nobody else's file waits meanwhile.
type Slot = Arc<Mutex<Option<Arc<Staged>>>>;

/// A file that is complete and waits for its name.
#[derive(Debug, Clone, Copy)]
struct Ready {
    entry: EntryIndex,
    temp: u32,
}

/// A chunk whose checksum has been found right.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VerifiedChunk<'a> {
    pub(crate) content: ChunkContent,
    pub(crate) bytes: &'a [u8],
    /// The places of data among zeros, if the sender said so.
    pub(crate) extents: Option<&'a Extents>,
    pub(crate) checksum: Checksum,
    /// The files of a pack, with their sizes and checksums.
    pub(crate) slices: &'a [(EntryIndex, u32)],
    pub(crate) slice_sums: &'a [Checksum],
}

/// Work on files that has begun. The end of the transfer, which takes the stage away, waits for it.
#[derive(Debug)]
pub(crate) struct Working<'a> {
    _guard: RwLockReadGuard<'a, bool>,
    /// The files of a pack that was written.
    small: Vec<Ready>,
}

/// The files of one transfer: everything about them is known here alone.
///
/// A chunk is written ([`Self::write`]) before it counts, and what it completes is readied
/// ([`Self::completed`]) after that. Files get their names when they are synced and proven to be
/// the sender's ([`Self::name_proven`], [`Self::checkpoint`]), or at the end ([`Self::finish`]).
#[derive(Debug)]
pub(crate) struct TransferWriter {
    manifest: Arc<Manifest>,
    one_chunk: ChunkSize,
    namer: Namer,
    stage: Stage,
    mounts: Mounts,
    options: ReceiveOptions,
    /// Entries that are there, and get their times and permissions.
    adjust: Vec<EntryIndex>,
    /// The sender's identities of its files.
    identities: Mutex<IdentityTable>,
    open: Mutex<HashMap<EntryIndex, Slot>>,
    ready: Mutex<Vec<Ready>>,
    /// Held for reading from before a chunk counts until what it completes is readied or named; the
    /// end of the transfer waits for all of them. True after the end: there is nothing left to
    /// sync.
    working: RwLock<bool>,
    /// The temporary file of the stream.
    stream: Mutex<Option<u32>>,
    /// A complete file could not be given its name, and stays in the stage for the next attempt.
    unnamed: AtomicBool,
}

/// The agreement about files that a writer is made of.
#[derive(Debug)]
pub(crate) struct WriterPlan {
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) one_chunk: ChunkSize,
    pub(crate) root: Arc<Root>,
    pub(crate) placement: Placement,
    pub(crate) mounts: Mounts,
    pub(crate) options: ReceiveOptions,
    /// Entries that do not simply go to their places.
    pub(crate) exceptions: HashMap<EntryIndex, Verdict>,
    /// Entries that are there, and get their times and permissions.
    pub(crate) adjust: Vec<EntryIndex>,
}

fn journal_error(errno: Errno) -> Error {
    Error::system("writing the journal", errno)
}

impl TransferWriter {
    pub(crate) fn new(plan: WriterPlan, stage: Stage) -> Self {
        let WriterPlan { manifest, one_chunk, root, placement, mounts, options, exceptions, adjust } = plan;
        Self {
            manifest,
            one_chunk,
            namer: Namer::new(root, placement, &options, exceptions),
            stage,
            mounts,
            options,
            adjust,
            identities: Mutex::default(),
            open: Mutex::default(),
            ready: Mutex::default(),
            working: RwLock::default(),
            stream: Mutex::default(),
            unnamed: AtomicBool::new(false),
        }
    }

    /// The name of the stage's folder.
    pub(crate) fn folder(&self) -> &str {
        self.stage.name()
    }

    /// The durability that a finished transfer has.
    pub(crate) fn durability(&self) -> Durability {
        self.options.durability
    }

    /// The settings that the receiving side decides by itself.
    pub(crate) fn options(&self) -> &ReceiveOptions {
        &self.options
    }

    /// The root beneath which everything goes.
    pub(crate) fn root(&self) -> &Arc<Root> {
        self.namer.root()
    }

    /// The places of entries.
    pub(crate) fn placement(&self) -> &Placement {
        self.namer.placement()
    }

    /// Returns true if the file `key` is one of this transfer's.
    pub(crate) fn brings(&self, key: &FileKey) -> bool {
        self.namer.placement().entry_of(key, &self.manifest).is_some()
    }

    /// Takes what the sender calls its files.
    ///
    /// # Errors
    ///
    /// A part that does not follow the last one.
    pub(crate) fn handle_identities(&self, part: &Identities) -> Result<(), Violation> {
        lock(&self.identities).handle(part)
    }

    /// Sets what the sender calls its files.
    pub(crate) fn set_identities(&self, identities: IdentityTable) {
        *lock(&self.identities) = identities;
    }

    fn key(&self, entry: &Entry<'_>) -> FileKey {
        FileKey::new(self.namer.placement().of(entry.path), entry.size(), entry.mtime)
    }

    /// The sender's identity of the file of `index`; 0 as long as that is not known.
    fn identity(&self, index: EntryIndex) -> u64 {
        lock(&self.identities).get(index)
    }

    /// The part of the stage that an entry's temporary file is in.
    fn part_of(&self, index: EntryIndex) -> Result<PartIndex, Errno> {
        // Entries that can have none are not asked for.
        self.mounts.part_of(index).map_err(|_| Errno::XDEV)
    }

    /// Checks that there is room for `missing`, bytes that are still to come by entry, `total` in
    /// all. Parts of the stage on one device share what is free there.
    ///
    /// # Errors
    ///
    /// No room, or more than one transfer may have.
    pub(crate) fn check_room(
        &self,
        missing: impl Iterator<Item = (EntryIndex, u64)>,
        total: u64,
    ) -> Result<(), Error> {
        let mut parts: BTreeMap<PartIndex, u64> = BTreeMap::new();
        for (index, bytes) in missing {
            let Ok(part) = self.mounts.part_of(index) else { continue };
            let sum = parts.entry(part).or_default();
            *sum = sum.saturating_add(bytes);
        }
        let mut devices: BTreeMap<u64, u64> = BTreeMap::new();
        for (part, bytes) in parts {
            let (device, free) = self.stage.free(part).unwrap_or((0, u64::MAX));
            let needed = devices.entry(device).or_default();
            *needed = needed.saturating_add(bytes);
            self.options.check_room(*needed, free, total, self.stage.place_of(part))?;
        }
        Ok(())
    }

    /// The temporary file of a big file or stream; created, journaled and given its size if it is
    /// new.
    fn staged(&self, index: EntryIndex, entry: &Entry<'_>) -> Result<Arc<Staged>, Errno> {
        let slot = Arc::clone(lock(&self.open).entry(index).or_default());
        let mut slot = lock(&slot);
        if let Some(staged) = &*slot {
            return Ok(Arc::clone(staged));
        }
        let (temp, fd) = self.stage.new_temp(self.part_of(index)?, 0o600)?;
        if entry.kind == EntryKind::Stream {
            *lock(&self.stream) = Some(temp);
        } else {
            let record = Record::File { temp, identity: self.identity(index), key: self.key(entry) };
            rustix::fs::ftruncate(&fd, entry.size())
                .and_then(|()| self.stage.journal().append(&[record]))
                .inspect_err(|_| self.stage.remove_temp(temp))?;
        }
        Ok(Arc::clone(slot.insert(Arc::new(Staged { temp, fd, dirty: false }))))
    }

    /// Takes a file out of those that are being written.
    fn unstage(&self, index: EntryIndex) -> Option<Arc<Staged>> {
        let slot = lock(&self.open).remove(&index)?;
        lock(&slot).take()
    }

    /// Begins with work on files.
    pub(crate) fn begin(&self) -> Working<'_> {
        let guard = self.working.read().unwrap_or_else(PoisonError::into_inner);
        Working { _guard: guard, small: Vec::new() }
    }

    /// Writes and journals a chunk.
    ///
    /// # Errors
    ///
    /// An error of the system; 413 for more bytes than one transfer may have.
    pub(crate) fn write(&self, chunk: &VerifiedChunk<'_>) -> Result<Working<'_>, Error> {
        let mut working = self.begin();
        match chunk.content {
            ChunkContent::Piece { entry, offset, .. } | ChunkContent::Stream { entry, offset } => {
                self.write_piece(entry, offset, chunk)?;
            }
            ChunkContent::Pack { .. } => {
                self.make_slices(chunk, &mut working.small).inspect_err(|_| {
                    // What is not in the journal is of no use to anybody.
                    self.remove_all(&working.small);
                })?;
            }
        }
        Ok(working)
    }

    fn write_piece(&self, index: EntryIndex, offset: u64, chunk: &VerifiedChunk<'_>) -> Result<(), Error> {
        let Some(entry) = self.manifest.get(index) else { return Ok(()) };
        let end = offset + chunk.bytes.len() as u64;
        if self.options.size_max.is_some_and(|max| end > max) {
            return Err(Error::failed(Code::OverLimit, "more bytes than one transfer may have here"));
        }
        let system = |errno| self.namer.error(&entry, errno);
        let staged = self.staged(index, &entry).map_err(system)?;
        self.put(&staged, offset, chunk).map_err(system)?;
        if matches!(entry.kind, EntryKind::File { .. }) {
            self.note_piece(staged.temp, offset, chunk.checksum)?;
        }
        Ok(())
    }

    /// Writes the bytes of a chunk, and leaves holes where the sender has them.
    fn put(&self, staged: &Staged, offset: u64, chunk: &VerifiedChunk<'_>) -> Result<(), Errno> {
        let (fd, bytes) = (staged.fd.as_fd(), chunk.bytes);
        let Some(extents) = chunk.extents else {
            write_all_at(fd, bytes, offset)?;
            self.stage.begin_writeback(fd, offset, bytes.len() as u64);
            return Ok(());
        };
        if staged.dirty {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            if rustix::fs::fallocate(fd, flags, offset, bytes.len() as u64).is_err() {
                write_all_at(fd, bytes, offset)?;
            }
        }
        extents.iter().try_for_each(|(at, len)| {
            write_all_at(fd, &bytes[at as usize..(at + len) as usize], offset + u64::from(at))
        })
    }

    fn note_piece(&self, temp: u32, offset: u64, checksum: Checksum) -> Result<(), Error> {
        let piece = (offset / u64::from(self.one_chunk.bytes())) as u32;
        self.stage.journal().append(&[Record::Piece { temp, piece, checksum }]).map_err(journal_error)
    }

    /// Makes the files of a pack, and notes them in the journal.
    fn make_slices(&self, chunk: &VerifiedChunk<'_>, made: &mut Vec<Ready>) -> Result<(), Error> {
        let mut rest = chunk.bytes;
        let mut records = Vec::with_capacity(chunk.slices.len());
        made.reserve(chunk.slices.len());
        for (&(index, size), &checksum) in chunk.slices.iter().zip(chunk.slice_sums) {
            let (bytes, after) = rest.split_at(size as usize);
            rest = after;
            let Some(entry) = self.manifest.get(index) else { continue };
            let made_one = self.make_small(index, &entry, bytes);
            let temp = made_one.map_err(|errno| self.namer.error(&entry, errno))?;
            made.push(Ready { entry: index, temp });
            let (identity, key) = (self.identity(index), self.key(&entry));
            records.push(Record::Small { temp, identity, checksum, key });
        }
        self.stage.journal().append(&records).map_err(journal_error)
    }

    /// Writes a small file under a temporary name, complete with its attributes.
    fn make_small(&self, index: EntryIndex, entry: &Entry<'_>, bytes: &[u8]) -> Result<u32, Errno> {
        let mode = self.namer.file_mode(entry);
        let (temp, fd) = self.stage.new_temp(self.part_of(index)?, mode)?;
        write_all_at(fd.as_fd(), bytes, 0)
            .and_then(|()| self.namer.set_file_attributes(&fd, entry, self.namer.is_masked(mode)))
            .inspect_err(|_| self.stage.remove_temp(temp))?;
        Ok(temp)
    }

    fn remove_all(&self, small: &[Ready]) {
        small.iter().for_each(|ready| self.stage.remove_temp(ready.temp));
    }

    /// Readies what has become complete by `working` for its name.
    pub(crate) fn completed(&self, working: Working<'_>, completed: Completed) -> Result<(), Error> {
        match completed {
            // A pack that was given up while it was being written.
            Completed::Nothing => self.remove_all(&working.small),
            Completed::File(index) => self.ready_staged(index)?,
            Completed::Pack(..) => lock(&self.ready).extend(&working.small),
        }
        Ok(())
    }

    /// Readies a file that was written piece by piece.
    fn ready_staged(&self, index: EntryIndex) -> Result<(), Error> {
        let Some(entry) = self.manifest.get(index) else { return Ok(()) };
        let Some(staged) = self.unstage(index) else { return Ok(()) };
        let set = self.namer.set_file_attributes(&staged.fd, &entry, true);
        set.map_err(|errno| self.namer.error(&entry, errno))?;
        lock(&self.ready).push(Ready { entry: index, temp: staged.temp });
        Ok(())
    }

    /// Notes that a piece that an earlier transfer left is of the file that the sender has now.
    pub(crate) fn confirm(
        &self,
        working: Working<'_>,
        index: EntryIndex,
        offset: u64,
        checksum: Checksum,
        completed: Completed,
    ) -> Result<(), Error> {
        let slot = lock(&self.open).get(&index).cloned();
        let temp = slot.and_then(|slot| lock(&slot).as_ref().map(|staged| staged.temp));
        // If that is all of the file, there is nothing more to remember.
        if let (Some(temp), Completed::Nothing) = (temp, completed) {
            self.note_piece(temp, offset, checksum)?;
        }
        self.completed(working, completed)
    }

    /// Drops what there is of a file that the sender has given up.
    pub(crate) fn abandon(&self, index: EntryIndex) {
        if let Some(staged) = self.unstage(index) {
            self.stage.remove_temp(staged.temp);
        }
    }

    /// Makes everything written so far durable, and names what `is_proven`.
    pub(crate) fn checkpoint(
        &self,
        is_proven: &dyn Fn(EntryIndex) -> bool,
        named: &mut Named,
    ) -> Result<(), Error> {
        let over = self.working.read().unwrap_or_else(PoisonError::into_inner);
        if *over {
            return Ok(());
        }
        let open: Vec<_> = lock(&self.open).values().cloned().collect();
        for slot in open {
            let staged = lock(&slot).clone();
            staged.map_or(Ok(()), |staged| self.stage.sync_file(staged.fd.as_fd()))?;
        }
        let proven = self.take_proven(is_proven, 1);
        self.name_files(&proven, named)?;
        self.namer.sync(&self.stage)?;
        self.stage.sync_journal()
    }

    /// Gives the complete files that are proven their names, if there are enough of them.
    pub(crate) fn name_proven(
        &self,
        is_proven: &dyn Fn(EntryIndex) -> bool,
        named: &mut Named,
    ) -> Result<(), Error> {
        let _working = self.begin();
        // Without syncs there is nothing to wait for.
        let least = if self.options.durability == Durability::None { 1 } else { NAMING_BATCH };
        let proven = self.take_proven(is_proven, least);
        self.name_files(&proven, named)
    }

    /// Takes the files that are complete and proven, if they are at least so many.
    fn take_proven(&self, is_proven: &dyn Fn(EntryIndex) -> bool, least: usize) -> Vec<Ready> {
        let mut ready = lock(&self.ready);
        let (proven, rest): (Vec<_>, Vec<_>) =
            ready.iter().copied().partition(|ready| is_proven(ready.entry));
        if proven.len() < least {
            return Vec::new();
        }
        *ready = rest;
        proven
    }

    /// Gives complete files their names, once they are synced.
    fn name_files(&self, ready: &[Ready], named: &mut Named) -> Result<(), Error> {
        let temps: Vec<_> = ready.iter().map(|ready| ready.temp).collect();
        self.stage.sync_temps(&temps)?;
        let mut dirs = Dirs::default();
        for &Ready { entry: index, temp } in ready {
            let Some(entry) = self.manifest.get(index) else { continue };
            match self.namer.name_file(&self.stage, &mut dirs, index, &entry, temp) {
                Ok(()) => named.files += 1,
                Err(errno) => {
                    self.keep_unnamed(&entry, temp, errno);
                    named.fail(index, &entry, errno, naming_reason(errno));
                }
            }
        }
        Ok(())
    }

    /// Keeps a complete file that could not be given its name, unless the name itself is the
    /// reason.
    fn keep_unnamed(&self, entry: &Entry<'_>, temp: u32, errno: Errno) {
        // The journal knows nothing of empty files and streams: nobody could continue them.
        let is_journaled = matches!(entry.kind, EntryKind::File { size } if size > 0);
        if is_journaled && !is_about_the_name(errno) {
            self.unnamed.store(true, Ordering::Relaxed);
        } else {
            self.stage.remove_temp(temp);
        }
    }

    /// Names everything of the `needed` entries that has no name yet, syncs, and takes the stage
    /// away. From the first name on this cannot be undone.
    pub(crate) fn finish(&self, needed: &[EntryIndex], named: &mut Named) -> Result<(), Error> {
        let mut over = self.working.write().unwrap_or_else(PoisonError::into_inner);
        let mut ready = std::mem::take(&mut *lock(&self.ready));
        for (index, entry) in self.entries(needed) {
            self.ready_unwritten(index, &entry, &mut ready)
                .map_err(|errno| self.namer.error(&entry, errno))?;
        }
        self.name_files(&ready, named)?;
        // Directories get their attributes last, from the innermost out, because
        // naming a file in one changes its time.
        let mut dirs = Dirs::default();
        for (index, entry) in self.entries(needed).rev() {
            let made = match entry.kind {
                EntryKind::Directory => self.namer.make_dir(&self.stage, &entry).map(|()| 0),
                EntryKind::Link { target } => {
                    let part = || self.part_of(index);
                    self.namer.make_link(&self.stage, &mut dirs, index, &entry, target, part).map(|()| 1)
                }
                _ => continue,
            };
            match made {
                Ok(files) => named.files += files,
                Err(errno) => named.fail(index, &entry, errno, reason(errno)),
            }
        }
        for (index, entry) in self.entries(&self.adjust) {
            if let Err(errno) = self.namer.adjust(&mut dirs, &entry) {
                let why = format!("setting its time and permissions: {}", reason(errno));
                named.fail(index, &entry, errno, why);
            }
        }
        let has_unnamed = self.unnamed.load(Ordering::Relaxed);
        // They may be in folders of which the times are about to be set.
        if !has_unnamed {
            self.stage.remove_elsewhere();
        }
        for (index, entry) in self.entries(needed).rev() {
            if entry.kind == EntryKind::Directory
                && let Err(errno) = self.namer.set_dir_attributes(&self.stage, &entry)
            {
                named.fail(index, &entry, errno, reason(errno));
            }
        }
        self.stage.give_back();
        self.namer.sync(&self.stage)?;
        if has_unnamed {
            self.stage.sync_journal()?;
        } else {
            self.stage.remove();
        }
        *over = true;
        Ok(())
    }

    /// Does the last work with files of which none gets a name, and takes the stage away.
    ///
    /// # Errors
    ///
    /// Those of `work`: then the stage stays.
    pub(crate) fn consume<T>(&self, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let mut over = self.working.write().unwrap_or_else(PoisonError::into_inner);
        let done = work()?;
        self.stage.remove();
        *over = true;
        Ok(done)
    }

    fn entries<'a>(
        &'a self,
        indices: &'a [EntryIndex],
    ) -> impl DoubleEndedIterator<Item = (EntryIndex, Entry<'a>)> {
        indices.iter().filter_map(|&index| Some((index, self.manifest.get(index)?)))
    }

    /// Readies what is complete without a chunk of its own: an empty file, and a stream.
    fn ready_unwritten(
        &self,
        index: EntryIndex,
        entry: &Entry<'_>,
        ready: &mut Vec<Ready>,
    ) -> Result<(), Errno> {
        let temp = match entry.kind {
            EntryKind::File { size: 0 } => self.make_small(index, entry, b"")?,
            EntryKind::Stream => {
                let staged = self.staged(index, entry)?;
                self.unstage(index);
                self.namer.set_file_attributes(&staged.fd, entry, true)?;
                staged.temp
            }
            _ => return Ok(()),
        };
        ready.push(Ready { entry: index, temp });
        Ok(())
    }

    /// Reports whether anything here is worth keeping for another attempt.
    pub(crate) fn has_something(&self) -> bool {
        // Not a stream, which cannot be continued: its beginning would have to be read again.
        // If names have been given beneath a name of its own, the
        // journal has to tell the next attempt so.
        let begun = self.namer.placement().named().is_some() && self.namer.has_named();
        begun || self.stage.temps_count() > usize::from(lock(&self.stream).is_some())
    }

    /// Leaves what can be continued to another attempt, and takes the stage away if there is
    /// nothing to continue, or nothing of it can be trusted (`hopeless`); whether it stays.
    pub(crate) fn give_up(&self, hopeless: bool) -> bool {
        // Whatever the reason was: a sync that failed is not tried again.
        if hopeless || self.stage.is_poisoned() || !self.has_something() {
            self.stage.remove();
            return false;
        }
        self.stage.give_back();
        true
    }

    /// Takes the stage away, with everything in it.
    pub(crate) fn remove(&self) {
        self.stage.remove();
    }

    /// Lets others have the journal.
    pub(crate) fn unlock(&self) {
        self.stage.journal().unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastdrop_proto::checksum::Algorithm;
    use fastdrop_proto::fastdp::{Existing, ManifestBuilder, Place, RelPath};
    use fastdrop_proto::units::Mtime;

    /// A writer of one file of two pieces, of which the first has been written.
    fn begun(root: &Arc<Root>) -> TransferWriter {
        let one_chunk = ChunkSize::COMMON;
        let mut builder = ManifestBuilder::new(1);
        let kind = EntryKind::File { size: 2 * u64::from(one_chunk.bytes()) };
        let path = RelPath::new(b"f").unwrap();
        builder.push(&Entry { path, kind, mode: 0o644, mtime: Mtime::default() }).unwrap();
        let manifest = Arc::new(builder.finish().unwrap());
        let options = ReceiveOptions {
            existing: Existing::Error,
            advice: "",
            check: false,
            durability: Durability::Commit,
            times: true,
            mode: true,
            resume: true,
            size_max: None,
            free_min: 0,
            unpack: None,
        };
        let (algorithm, durability) = (Algorithm::Xxh3, options.durability);
        let stage = Stage::create(Arc::clone(root), algorithm, one_chunk, durability, None).unwrap();
        let plan = WriterPlan {
            placement: Placement::resolve(root, b"", Place::Into, &manifest).unwrap(),
            manifest,
            one_chunk,
            root: Arc::clone(root),
            mounts: Mounts::default(),
            options,
            exceptions: HashMap::new(),
            adjust: Vec::new(),
        };
        let writer = TransferWriter::new(plan, stage);
        let (bytes, entry) = (vec![7; one_chunk.bytes() as usize], EntryIndex(0));
        let content = ChunkContent::Piece { entry, offset: 0, len: one_chunk.bytes(), whole: false };
        let checksum = algorithm.of_piece(&bytes, 0, false);
        let chunk =
            VerifiedChunk { content, bytes: &bytes, extents: None, checksum, slices: &[], slice_sums: &[] };
        writer.completed(writer.write(&chunk).unwrap(), Completed::Nothing).unwrap();
        writer
    }

    #[test]
    fn after_a_failed_sync_nothing_is_kept_whatever_ended_the_transfer() {
        for poisoned in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let root = Arc::new(Root::open(dir.path()).unwrap());
            let writer = begun(&root);
            if poisoned {
                writer.stage.poison();
            }
            // As when the connection is lost before the failure is known.
            assert_eq!(writer.give_up(false), !poisoned);
            assert_eq!(dir.path().join(".fastdrop").exists(), !poisoned);
        }
    }
}
