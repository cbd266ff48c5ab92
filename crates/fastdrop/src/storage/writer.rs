//! Files beneath a root, by way of a stage: where a reception's bytes end up.

use crate::error::{Error, reason};
use crate::lock::lock;
use crate::storage::attributes::{
    default_mode, set_attributes, set_attributes_at, set_link_time, set_open_attributes,
};
use crate::storage::io::write_all_at;
use crate::storage::journal::{FileKey, Left, LeftContent, Piece, Record};
use crate::storage::mounts::Mounts;
use crate::storage::options::ReceiveOptions;
use crate::storage::part::PartIndex;
use crate::storage::placement::{NUMBERED_MAX, Placement, Verdict, numbered};
use crate::storage::recovery::Leftovers;
use crate::storage::root::{Dirs, Root, rename, split};
use crate::storage::stage::Stage;
use fastdrop_proto::checksum::Algorithm;
use fastdrop_proto::fastdp::{Completed, Entry, EntryKind, IdentityTable, Receiver, SkipReason};
use fastdrop_proto::units::{ChunkIndex, EntryIndex, Mtime};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};

/// A big file, or a stream, that is being written.
#[derive(Debug)]
pub(crate) struct Staged {
    pub(crate) temp: u32,
    pub(crate) fd: OwnedFd,
    /// Something unverified may stand where holes are to be.
    pub(crate) dirty: bool,
}

/// A file that is complete and waits for its name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ready {
    pub(crate) entry: EntryIndex,
    pub(crate) temp: u32,
}

/// Files beneath a root, by way of a stage.
#[derive(Debug)]
pub(crate) struct TransferWriter {
    pub(crate) root: Arc<Root>,
    pub(crate) placement: Placement,
    pub(crate) stage: Stage,
    mounts: Mounts,
    pub(crate) options: ReceiveOptions,
    /// What does not simply go to its place.
    pub(crate) exceptions: HashMap<EntryIndex, Verdict>,
    /// What is there, and gets its time and permissions.
    pub(crate) adjust: Vec<EntryIndex>,
    /// What the sender calls its files.
    pub(crate) identities: Mutex<IdentityTable>,
    pub(crate) open: Mutex<HashMap<EntryIndex, Arc<Staged>>>,
    pub(crate) ready: Mutex<Vec<Ready>>,
    /// Held for reading from before a chunk counts until what it completes is readied or named; the
    /// end of the transfer, which takes the stage away, waits for all of them.
    pub(crate) working: RwLock<()>,
    /// The temporary file of the stream.
    pub(crate) stream: Mutex<Option<u32>>,
    /// Directories in which names have been given since they were synced.
    pub(crate) named_in: Mutex<BTreeSet<Vec<u8>>>,
    pub(crate) named_any: AtomicBool,
    /// A complete file could not be given its name, and stays in the stage for the next attempt.
    unnamed: AtomicBool,
    pub(crate) default_file_mode: u32,
}

/// An error that says something about the name itself: the next attempt would meet it again.
fn is_about_the_name(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EXIST
            | Errno::NOTDIR
            | Errno::ISDIR
            | Errno::NOTEMPTY
            | Errno::NAMETOOLONG
            | Errno::INVAL
            | Errno::ILSEQ
            | Errno::LOOP
    )
}

/// The reason why a complete file did not get its name, in words.
pub(crate) fn naming_reason(errno: Errno) -> String {
    match errno {
        Errno::EXIST => "another one was put there meanwhile".to_owned(),
        Errno::XDEV => "something was mounted or unmounted there meanwhile".to_owned(),
        Errno::BUSY => "something is mounted on it".to_owned(),
        errno => reason(errno),
    }
}

impl TransferWriter {
    pub(crate) fn new(
        root: Arc<Root>,
        placement: Placement,
        stage: Stage,
        mounts: Mounts,
        options: ReceiveOptions,
        exceptions: HashMap<EntryIndex, Verdict>,
        adjust: Vec<EntryIndex>,
    ) -> Self {
        Self {
            root,
            placement,
            stage,
            mounts,
            options,
            exceptions,
            adjust,
            identities: Mutex::default(),
            open: Mutex::default(),
            ready: Mutex::default(),
            working: RwLock::default(),
            stream: Mutex::default(),
            named_in: Mutex::default(),
            named_any: AtomicBool::new(false),
            unnamed: AtomicBool::new(false),
            default_file_mode: default_mode(false),
        }
    }

    pub(crate) fn system(&self, entry: &Entry<'_>, errno: Errno) -> Error {
        Error::system(format!("writing {}", crate::shown(&self.placement.of(entry.path))), errno)
    }

    /// Whether anything here is worth keeping for another attempt.
    pub(crate) fn has_something(&self) -> bool {
        // Not a stream, which cannot be continued: its beginning would have to be read again.
        // If names have been given beneath a name of its own, the
        // journal has to tell the next attempt so.
        let begun = self.placement.named().is_some() && self.named_any.load(Ordering::Relaxed);
        begun || self.stage.temps_count() > usize::from(lock(&self.stream).is_some())
    }

    /// Keeps a complete file that could not be given its name, unless the name itself is the
    /// reason.
    pub(crate) fn keep_unnamed(&self, entry: &Entry<'_>, temp: u32, errno: Errno) {
        // The journal knows nothing of empty files and streams: nobody could continue them.
        let is_journaled = matches!(entry.kind, EntryKind::File { size } if size > 0);
        if is_journaled && !is_about_the_name(errno) {
            self.unnamed.store(true, Ordering::Relaxed);
        } else {
            self.stage.remove_temp(temp);
        }
    }

    /// Whether a complete file is kept for the next attempt.
    pub(crate) fn has_unnamed(&self) -> bool {
        self.unnamed.load(Ordering::Relaxed)
    }

    /// Checks that there is room for so many bytes in each part of the stage. Parts on one device
    /// share what is free there.
    pub(crate) fn check_space(&self, needed: &BTreeMap<PartIndex, u64>, total: u64) -> Result<(), Error> {
        let mut devices: BTreeMap<u64, u64> = BTreeMap::new();
        for (&part, &bytes) in needed {
            let (device, free) = self.stage.free(part).unwrap_or((0, u64::MAX));
            let needed = devices.entry(device).or_default();
            *needed = needed.saturating_add(bytes);
            self.options.check_room(*needed, free, total, self.stage.place_of(part))?;
        }
        Ok(())
    }

    /// Bytes that are still to be written into each part of the stage.
    pub(crate) fn needed(&self, machine: &Receiver) -> BTreeMap<PartIndex, u64> {
        if self.mounts.is_one() {
            let part = self.mounts.part_of(EntryIndex(0)).unwrap_or_default();
            return BTreeMap::from([(part, machine.totals().bytes)]);
        }
        let mut needed = BTreeMap::new();
        for (index, entry) in machine.manifest().iter().filter(|&(index, _)| machine.is_needed(index)) {
            let Ok(part) = self.mounts.part_of(index) else { continue };
            let bytes: &mut u64 = needed.entry(part).or_default();
            *bytes = bytes.saturating_add(missing_bytes(machine, index, &entry));
        }
        needed
    }

    /// The part of the stage that an entry's temporary file is in.
    pub(crate) fn part_of(&self, index: EntryIndex) -> Result<PartIndex, Errno> {
        // Entries that can have none are not asked for.
        self.mounts.part_of(index).map_err(|_| Errno::XDEV)
    }

    /// Moves in what earlier transfers left of the files that are needed; how many bytes that was.
    pub(crate) fn take_over(
        &self,
        found: Vec<Leftovers>,
        machine: &mut Receiver,
        identities: &IdentityTable,
        algorithm: Algorithm,
        hashes: &mut BTreeMap<EntryIndex, [u8; 32]>,
    ) -> Result<u64, Error> {
        let mut by_key: HashMap<&FileKey, (usize, usize)> = HashMap::new();
        for (folder, leftovers) in found.iter().enumerate() {
            by_key.extend(leftovers.keys().map(|(key, at)| (key, (folder, at))));
        }
        let manifest = Arc::clone(machine.manifest());
        let one_chunk = machine.table().one_chunk();
        let mut bytes = 0;
        for (index, entry) in manifest.iter() {
            if entry.size() == 0 || !machine.is_needed(index) || by_key.is_empty() {
                continue;
            }
            let key = FileKey::new(self.placement.of(entry.path), entry.size(), entry.mtime);
            let Some(&(folder, at)) = by_key.get(&key) else { continue };
            let leftovers = &found[folder];
            let left = match self.options.resume {
                true => leftovers.verify(at, identities.get(index), algorithm, one_chunk),
                false => Ok(None),
            };
            let left = match left {
                Ok(Some(left)) => left,
                Ok(None) => {
                    leftovers.discard(at);
                    continue;
                }
                // It stays for an attempt that can look at it.
                Err(errno) => {
                    let path = crate::shown(&key.path);
                    tracing::warn!(path, %errno, "unfinished work cannot be looked at now");
                    continue;
                }
            };
            let part = self.part_of(index).map_err(|errno| self.system(&entry, errno))?;
            let temp = leftovers.move_into(&self.stage, &left, part)?;
            bytes += self.hold(machine, index, &entry, temp, &left, hashes)?;
        }
        found.into_iter().for_each(Leftovers::close);
        Ok(bytes)
    }

    /// Counts what was moved in; how many bytes that are.
    pub(crate) fn hold(
        &self,
        machine: &mut Receiver,
        index: EntryIndex,
        entry: &Entry<'_>,
        temp: u32,
        left: &Left,
        hashes: &mut BTreeMap<EntryIndex, [u8; 32]>,
    ) -> Result<u64, Error> {
        let system = |errno| self.system(entry, errno);
        match &left.content {
            LeftContent::Whole(checksum) => {
                machine.skip(index, SkipReason::Held);
                let mtime = self.options.times.then_some(entry.mtime);
                self.stage.set_temp_attributes(temp, mtime, self.file_mode(entry)).map_err(system)?;
                lock(&self.ready).push(Ready { entry: index, temp });
                if let Ok(hash) = <[u8; 32]>::try_from(checksum.as_bytes()) {
                    hashes.insert(index, hash);
                }
                Ok(entry.size())
            }
            LeftContent::Pieces(pieces) => {
                let one = u64::from(machine.table().one_chunk().bytes());
                let Some((first, _)) = machine.table().chunks_of(index) else { return Ok(0) };
                let mut bytes = 0;
                let mut complete = false;
                for (&piece, &Piece { checksum, claimed }) in pieces {
                    let chunk = ChunkIndex(first.0 + piece);
                    if claimed {
                        machine.claim(chunk, &checksum);
                    } else {
                        complete |= machine.hold(chunk, &checksum) == Completed::File(index);
                    }
                    bytes += one.min(entry.size() - u64::from(piece) * one);
                }
                if complete {
                    let mtime = self.options.times.then_some(entry.mtime);
                    self.stage.set_temp_attributes(temp, mtime, self.file_mode(entry)).map_err(system)?;
                    lock(&self.ready).push(Ready { entry: index, temp });
                } else {
                    let fd = self.stage.open_temp(temp).map_err(system)?;
                    lock(&self.open).insert(index, Arc::new(Staged { temp, fd, dirty: true }));
                }
                Ok(bytes)
            }
        }
    }

    /// The temporary file of a big file or stream; created, journaled and given its size if it is
    /// new.
    pub(crate) fn staged(&self, index: EntryIndex, entry: &Entry<'_>) -> Result<Arc<Staged>, Errno> {
        let mut open = lock(&self.open);
        if let Some(staged) = open.get(&index) {
            return Ok(Arc::clone(staged));
        }
        let (temp, fd) = self.stage.new_temp(self.part_of(index)?, 0o600)?;
        if entry.kind == EntryKind::Stream {
            *lock(&self.stream) = Some(temp);
        } else {
            let key = FileKey::new(self.placement.of(entry.path), entry.size(), entry.mtime);
            let identity = self.identity(index);
            rustix::fs::ftruncate(&fd, entry.size())
                .and_then(|()| self.stage.journal().append(&[Record::File { temp, identity, key }]))
                .inspect_err(|_| self.stage.remove_temp(temp))?;
        }
        let staged = Arc::new(Staged { temp, fd, dirty: false });
        open.insert(index, Arc::clone(&staged));
        Ok(staged)
    }

    /// What the sender calls the file of `index`; 0 as long as that is not known.
    pub(crate) fn identity(&self, index: EntryIndex) -> u64 {
        lock(&self.identities).get(index)
    }

    /// Gives what is there already the time and permissions that it is to have.
    pub(crate) fn adjust(&self, dirs: &mut Dirs, entry: &Entry<'_>) -> Result<(), Errno> {
        let path = self.placement.of(entry.path);
        let mtime = self.options.times.then_some(entry.mtime);
        if let EntryKind::Link { .. } = entry.kind {
            let (folder, name) = split(&path);
            let folder = dirs.find(&self.root, folder)?.ok_or(Errno::NOENT)?;
            return mtime.map_or(Ok(()), |mtime| set_link_time(folder, name, mtime));
        }
        let mode = self.options.mode.then_some(entry.mode);
        set_attributes_at(&self.root, &path, mtime, mode)
    }

    pub(crate) fn file_mode(&self, entry: &Entry<'_>) -> u32 {
        if self.options.mode && entry.kind != EntryKind::Stream { entry.mode } else { self.default_file_mode }
    }

    pub(crate) fn set_file_attributes(
        &self,
        fd: &OwnedFd,
        entry: &Entry<'_>,
        mode: bool,
    ) -> Result<(), Errno> {
        let mtime = (self.options.times && entry.kind != EntryKind::Stream).then_some(entry.mtime);
        set_attributes(fd.as_fd(), mtime, mode.then(|| self.file_mode(entry)))
    }

    /// Writes a small file under a temporary name, complete with its attributes.
    pub(crate) fn make_small(
        &self,
        index: EntryIndex,
        entry: &Entry<'_>,
        bytes: &[u8],
    ) -> Result<u32, Errno> {
        let mode = self.file_mode(entry);
        let (temp, fd) = self.stage.new_temp(self.part_of(index)?, mode)?;
        // Creating it gave it this mode already, unless the umask took something away.
        let set_mode = mode & !self.default_file_mode & 0o666 != 0 || mode & 0o111 != 0;
        write_all_at(fd.as_fd(), bytes, 0)
            .and_then(|()| self.set_file_attributes(&fd, entry, set_mode))
            .inspect_err(|_| self.stage.remove_temp(temp))?;
        Ok(temp)
    }

    /// Does something in a folder; once more, if it may not, after
    /// lending the folder what it lacks.
    fn in_folder<T>(&self, folder: &[u8], mut work: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
        match work() {
            Err(Errno::ACCESS) if self.stage.lend(folder)? => work(),
            result => result,
        }
    }

    /// Gives a complete file its name, without replacing anything that it was not told to.
    pub(crate) fn give_name(
        &self,
        dirs: &mut Dirs,
        index: EntryIndex,
        entry: &Entry<'_>,
        temp: u32,
    ) -> Result<(), Errno> {
        let path = self.placement.of(entry.path);
        let (from, temp) = (self.stage.folder_of(temp), self.stage.temp_name(temp));
        let (folder, name) = split(&path);
        let exception = self.exceptions.get(&index);
        self.in_folder(folder, || {
            let to = dirs.make(&self.root, folder)?;
            match exception {
                Some(exception) => rename_as(exception, from, &temp, to, name),
                None => rename(from, temp.as_bytes(), to, name, false),
            }
        })?;
        self.named_any.store(true, Ordering::Relaxed);
        let mut named_in = lock(&self.named_in);
        note_with_ancestors(&mut named_in, folder);
        Ok(())
    }

    pub(crate) fn make_link(
        &self,
        dirs: &mut Dirs,
        index: EntryIndex,
        path: &[u8],
        target: &[u8],
        mtime: Mtime,
    ) -> Result<(), Errno> {
        let (folder, name) = split(path);
        let set_time = |folder: BorrowedFd<'_>, name: &[u8]| match self.options.times {
            true => set_link_time(folder, name, mtime),
            false => Ok(()),
        };
        self.in_folder(folder, || {
            let folder_fd = dirs.make(&self.root, folder)?;
            let Some(exception) = self.exceptions.get(&index) else {
                rustix::fs::symlinkat(target, folder_fd, name)?;
                return set_time(folder_fd, name);
            };
            let from = self.stage.folder(self.part_of(index)?);
            let temp = format!("{}.link", self.stage.temp_name(index.0));
            rustix::fs::symlinkat(target, from, &temp[..])?;
            set_time(from, temp.as_bytes())
                .and_then(|()| rename_as(exception, from, &temp, folder_fd, name))
                .inspect_err(|_| {
                    let _ = rustix::fs::unlinkat(from, &temp[..], AtFlags::empty());
                })
        })?;
        note_with_ancestors(&mut lock(&self.named_in), folder);
        Ok(())
    }

    pub(crate) fn finish_dir(&self, path: &[u8]) -> Result<(), Errno> {
        self.in_folder(split(path).0, || self.root.make_dirs(path))?;
        note_with_ancestors(&mut lock(&self.named_in), path);
        Ok(())
    }

    pub(crate) fn set_dir_attributes(&self, path: &[u8], entry: &Entry<'_>) -> Result<(), Errno> {
        let fd = self.in_folder(split(path).0, || {
            self.root.open_at(path, OFlags::DIRECTORY | OFlags::PATH, Mode::empty())
        })?;
        // A transfer carries nine bits. The others a folder has from whoever made it, or from the one
        // above: a group's folder stays one.
        let special = rustix::fs::fstat(&fd)?.st_mode & 0o7000;
        set_open_attributes(
            &fd,
            self.options.times.then_some(entry.mtime),
            self.options.mode.then_some(special | entry.mode),
        )?;
        if self.options.mode { self.stage.note_settled(path) } else { Ok(()) }
    }

    pub(crate) fn sync_names(&self) -> Result<(), Error> {
        let dirs: Vec<_> = std::mem::take(&mut *lock(&self.named_in)).into_iter().collect();
        self.stage.sync_dirs(&dirs)
    }
}

/// Bytes of an entry that are not held yet.
fn missing_bytes(machine: &Receiver, index: EntryIndex, entry: &Entry<'_>) -> u64 {
    let one = u64::from(machine.table().one_chunk().bytes());
    let Some((first, count)) = machine.table().chunks_of(index) else { return entry.size() };
    let held = (0..count).filter(|piece| machine.has(ChunkIndex(first.0 + piece)));
    held.fold(entry.size(), |left, piece| {
        left.saturating_sub(one.min(entry.size().saturating_sub(u64::from(piece) * one)))
    })
}

/// Moves a temporary file to where something else is, as it was decided for it.
fn rename_as(
    how: &Verdict,
    from: BorrowedFd<'_>,
    temp: &str,
    to: BorrowedFd<'_>,
    name: &[u8],
) -> Result<(), Errno> {
    if *how != Verdict::Renamed {
        return rename(from, temp.as_bytes(), to, name, *how == Verdict::Replace);
    }
    for n in 1..NUMBERED_MAX {
        match rename(from, temp.as_bytes(), to, &numbered(name, n), false) {
            Err(Errno::EXIST) => {}
            result => return result,
        }
    }
    Err(Errno::EXIST)
}

/// Notes a folder, and those above it: any of them may be new.
pub(crate) fn note_with_ancestors(folders: &mut BTreeSet<Vec<u8>>, folder: &[u8]) {
    let mut folder = folder;
    while folders.insert(folder.to_vec()) && !folder.is_empty() {
        folder = split(folder).0;
    }
}
