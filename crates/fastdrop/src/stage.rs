//! Where unfinished files live: a folder of their own in `.fastdrop`, beneath the root, with a
//! journal; and one on each other mount that files of the transfer will live on.

mod lent;
mod part;

pub(crate) use part::{PARTS_MAX, PartIndex};

use crate::error::Error;
use crate::journal::{self, FileKey, Found, Journal, Left, LeftContent, PartPlace, Piece, Record, Recovered};
use crate::root::{MountId, Root};
use crate::source::{STEP, read_exact_at};
use fastdrop_proto::checksum::{Algorithm, PieceChecksum};
use fastdrop_proto::fastdp::{Durability, HIDDEN};
use fastdrop_proto::units::{ChunkSize, Mtime};
use lent::Lendable;
use part::Part;
use rustix::fs::{Advice, AtFlags, FileType, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// More planted names than this in a row, and somebody is at work who must not be played with.
const PLANTED_MAX: u32 = 1000;
/// More files than this are synced by one call for the file system instead of one each.
const SYNC_EACH_MAX: usize = 8;

/// Fewer pieces than this are verified by one thread.
const VERIFY_ALONE: usize = 32;
/// Threads that verify one file.
const VERIFIERS_MAX: usize = 8;

/// How often a journal that is locked is looked at again.
const LOOKS_MAX: u32 = 10;
/// A folder without a journal is taken for a transfer that is just beginning for so long.
const BEGINNING_MAX: Duration = Duration::from_secs(60);

/// The folders of one transfer.
#[derive(Debug)]
pub(crate) struct Stage {
    root: Arc<Root>,
    /// The first is at the root, and has the journal.
    home: Part,
    elsewhere: Vec<Part>,
    /// Folders on other mounts on which names are given: what is synced for all of them.
    mounts: Vec<OwnedFd>,
    name: String,
    journal: Journal,
    next_temp: AtomicU32,
    durability: Durability,
    /// Folders that have been lent permissions, with those that they had.
    lent: Mutex<BTreeMap<Vec<u8>, u32>>,
    /// Whether a sync has failed. Held while one is under way: the kernel tells of a failure once,
    /// and whoever syncs next would be told that all is well.
    poisoned: Mutex<bool>,
}

/// Whether a folder, or one above it, could be lent permissions that it lacks.
pub(crate) fn could_lend(root: &Root, folder: &[u8]) -> bool {
    Lendable::find(root, folder).is_ok_and(|lendable| lendable.is_some())
}

/// The permissions that a new file gets from this process.
pub(crate) fn default_mode(is_dir: bool) -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let umask =
        status.lines().find_map(|line| u32::from_str_radix(line.strip_prefix("Umask:")?.trim(), 8).ok());
    (if is_dir { 0o777 } else { 0o666 }) & !umask.unwrap_or(0o022)
}

fn temp_name(folder: &str, temp: u32) -> String {
    // The folder's name is random; half of it makes the file's unguessable too.
    format!("{}.{temp}", &folder[..16.min(folder.len())])
}

fn hidden_path(name: &str) -> Vec<u8> {
    [HIDDEN, b"/", name.as_bytes()].concat()
}

/// Random bytes of the operating system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| Error::with_code(500, "no randomness to be had"))?;
    Ok(bytes)
}

impl Stage {
    /// Makes a folder with a name that cannot be guessed, and a journal in it.
    pub(crate) fn create(
        root: Arc<Root>,
        algorithm: Algorithm,
        one_chunk: ChunkSize,
        durability: Durability,
        named: Option<Vec<u8>>,
    ) -> Result<Self, Error> {
        let system = |errno| Error::system("making a folder for unfinished files", errno);
        let name = hex::encode(random::<16>()?);
        let (folder, journal) =
            make_folder(root.as_fd(), &name, |folder| Journal::create(folder, algorithm, one_chunk, named))
                .map_err(system)?;
        let mount = match MountId::of(&folder) {
            Ok(mount) => mount,
            Err(errno) => {
                remove_folder(&root, &name, &BTreeMap::new());
                return Err(system(errno));
            }
        };
        Ok(Self {
            root,
            home: Part { folder, place: PartPlace { base: Vec::new(), mount_len: 0 }, mount },
            elsewhere: Vec::new(),
            mounts: Vec::new(),
            name,
            journal,
            next_temp: AtomicU32::new(0),
            durability,
            lent: Mutex::default(),
            poisoned: Mutex::new(false),
        })
    }

    /// The folder's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The part for files in one of `folders`, which exist, and are on
    /// `mount`; made if there is none yet.
    pub(crate) fn part_for(&mut self, folders: &[Vec<u8>], mount: MountId) -> Result<PartIndex, Error> {
        let system = |errno| Error::system("making a folder for unfinished files", errno);
        if mount == self.home.mount {
            return Ok(PartIndex::HOME);
        }
        if let Some(at) = self.elsewhere.iter().position(|part| part.mount == mount) {
            return Ok(PartIndex(at as u8 + 1));
        }
        let part = self.elsewhere.len() + 1;
        if part >= PARTS_MAX {
            return Err(Error::with_code(413, "files on more mounts than one transfer may write to"));
        }
        let mut result = Err(Errno::NOENT);
        let places = part::places(&self.root, folders, mount);
        let is_writable = |place: &&PartPlace| part::check_writable(&self.root, place).is_ok();
        if places.iter().find(is_writable).is_none() {
            // None will do but one that is lent what it lacks.
            for folder in folders {
                if self.lend(folder).map_err(system)? {
                    break;
                }
            }
        }
        for place in places {
            if let Err(errno) = part::check_writable(&self.root, &place) {
                result = Err(errno);
                continue;
            }
            // Noted first: no crash leaves a folder that nobody finds.
            let record = Record::Part { part: part as u8, place: place.clone() };
            self.journal.append(&[record]).map_err(system)?;
            result = Part::make(&self.root, place, &self.name, mount);
            let elsewhere = [Errno::ACCESS, Errno::PERM, Errno::ROFS, Errno::XDEV, Errno::EXIST];
            if !result.as_ref().is_err_and(|errno| elsewhere.contains(errno)) {
                break;
            }
        }
        self.elsewhere.push(result.map_err(system)?);
        Ok(PartIndex(part as u8))
    }

    /// Whether files on this mount are staged at the root.
    pub(crate) fn is_home(&self, mount: MountId) -> bool {
        mount == self.home.mount
    }

    /// Notes that names are given on another mount, on which `folder` is.
    pub(crate) fn note_mount(&mut self, folder: OwnedFd) {
        self.mounts.push(folder);
    }

    fn part(&self, part: PartIndex) -> &Part {
        let elsewhere = usize::from(part.0).checked_sub(1).and_then(|at| self.elsewhere.get(at));
        elsewhere.unwrap_or(&self.home)
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        std::iter::once(&self.home).chain(&self.elsewhere)
    }

    /// The folder of a part.
    pub(crate) fn folder(&self, part: PartIndex) -> BorrowedFd<'_> {
        self.part(part).folder.as_fd()
    }

    /// The folder that a temporary file is in.
    pub(crate) fn folder_of(&self, temp: u32) -> BorrowedFd<'_> {
        self.folder(PartIndex::of(temp))
    }

    /// How many temporary files there are.
    pub(crate) fn temps_count(&self) -> usize {
        self.parts().map(|part| part::temps(part.folder.as_fd()).len()).sum()
    }

    /// Where a part is, for people; empty for the root.
    pub(crate) fn place_of(&self, part: PartIndex) -> &[u8] {
        &self.part(part).place.base
    }

    /// The journal.
    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The name of a temporary file.
    pub(crate) fn temp_name(&self, temp: u32) -> String {
        temp_name(&self.name, temp)
    }

    /// Creates a temporary file in `part` that was not there before.
    pub(crate) fn new_temp(&self, part: PartIndex, mode: u32) -> Result<(u32, OwnedFd), Errno> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        for _ in 0..PLANTED_MAX {
            let temp = self.next_number(part)?;
            let name = self.temp_name(temp);
            match rustix::fs::openat(self.folder(part), name, flags, Mode::from_raw_mode(mode)) {
                Err(Errno::EXIST) => {}
                result => return result.map(|fd| (temp, fd)),
            }
        }
        Err(Errno::EXIST)
    }

    fn next_number(&self, part: PartIndex) -> Result<u32, Errno> {
        part.number(self.next_temp.fetch_add(1, Ordering::Relaxed)).ok_or(Errno::OVERFLOW)
    }

    /// Opens a temporary file of this stage.
    pub(crate) fn open_temp(&self, temp: u32) -> Result<OwnedFd, Errno> {
        self.open_with(temp, OFlags::RDWR)
    }

    /// Gives a temporary file that is complete its time and permissions, whatever they are now.
    pub(crate) fn set_temp_attributes(
        &self,
        temp: u32,
        mtime: Option<Mtime>,
        mode: u32,
    ) -> Result<(), Errno> {
        let (folder, name) = (self.folder_of(temp), self.temp_name(temp));
        rustix::fs::chmodat(folder, &name[..], Mode::from_raw_mode(mode), AtFlags::empty())?;
        match mtime {
            Some(mtime) => {
                rustix::fs::utimensat(folder, &name[..], &timestamps(mtime), AtFlags::SYMLINK_NOFOLLOW)
            }
            None => Ok(()),
        }
    }

    /// Deletes a temporary file.
    pub(crate) fn remove_temp(&self, temp: u32) {
        let _ = rustix::fs::unlinkat(self.folder_of(temp), self.temp_name(temp), AtFlags::empty());
    }

    /// Moves a verified file of an earlier transfer into `part`: journaled first, so that a
    /// crash in between loses only a name.
    pub(crate) fn adopt(&self, from: &Leftovers, left: &Left, part: PartIndex) -> Result<u32, Error> {
        let system = |errno| Error::system("continuing unfinished work", errno);
        let temp = self.next_number(part).map_err(system)?;
        let mut records = Vec::new();
        match &left.content {
            LeftContent::Pieces(pieces) => {
                records.push(Record::File { temp, identity: left.identity, key: left.key.clone() });
                let piece = |(&piece, &Piece { checksum, claimed }): (&u32, &Piece)| match claimed {
                    true => Record::Claimed { temp, piece, checksum },
                    false => Record::Piece { temp, piece, checksum },
                };
                records.extend(pieces.iter().map(piece));
            }
            &LeftContent::Whole(checksum) => {
                let (identity, key) = (left.identity, left.key.clone());
                records.push(Record::Small { temp, identity, checksum, key });
            }
        }
        self.journal.append(&records).map_err(system)?;
        let (old, new) = (temp_name(&from.name, left.temp), self.temp_name(temp));
        let from_folder = from.folder_of(left.temp).ok_or_else(|| system(Errno::NOENT))?;
        match crate::root::rename(from_folder, old.as_bytes(), self.folder(part), new.as_bytes(), false) {
            // What was mounted there then is not what is mounted there now.
            Err(Errno::XDEV) => self.copy(from_folder, &old, temp).map_err(system)?,
            result => result.map_err(system)?,
        }
        Ok(temp)
    }

    /// Moves the file `old` of an earlier stage to where it cannot be renamed to.
    fn copy(&self, from: BorrowedFd<'_>, old: &str, temp: u32) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let source = rustix::fs::openat(from, old, flags, Mode::empty())?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let target = rustix::fs::openat(self.folder_of(temp), self.temp_name(temp), flags, mode)?;
        let size = rustix::fs::fstat(&source)?.st_size as u64;
        let copied = rustix::fs::ftruncate(&target, size).and_then(|()| {
            let mut buffer = vec![0; STEP];
            (0..size).step_by(STEP).try_for_each(|at| {
                let step = &mut buffer[..STEP.min((size - at) as usize)];
                read_exact_at(&source, step, at)?;
                // Holes stay holes.
                if step.iter().any(|&byte| byte != 0) {
                    write_all_at(target.as_fd(), step, at)
                } else {
                    Ok(())
                }
            })
        });
        match copied {
            Ok(()) => {
                let _ = rustix::fs::unlinkat(from, old, AtFlags::empty());
            }
            Err(_) => self.remove_temp(temp),
        }
        copied
    }

    /// Syncs the contents of these temporary files.
    pub(crate) fn sync_temps(&self, temps: &[u32]) -> Result<(), Error> {
        if self.durability == Durability::None {
            return Ok(());
        }
        // Files that cannot be opened, or not all at once, are synced with all others.
        let open = |&temp: &u32| self.open_with(temp, OFlags::RDONLY);
        let files: Result<Vec<_>, _> =
            if temps.len() > SYNC_EACH_MAX { Err(Errno::MFILE) } else { temps.iter().map(open).collect() };
        self.sync(|| match &files {
            Ok(files) => files.iter().try_for_each(rustix::fs::fsync),
            Err(_) => self.parts().try_for_each(|part| rustix::fs::syncfs(&part.folder)),
        })
    }

    /// Syncs, unless an earlier sync has failed. Only a failure of
    /// the sync itself is one that poisons.
    fn sync(&self, sync: impl FnOnce() -> Result<(), Errno>) -> Result<(), Error> {
        let mut poisoned = self.poisoned.lock().unwrap_or_else(PoisonError::into_inner);
        if *poisoned {
            return Err(sync_failed(Errno::IO));
        }
        sync().map_err(|errno| {
            *poisoned = true;
            sync_failed(errno)
        })
    }

    fn open_with(&self, temp: u32, flags: OFlags) -> Result<OwnedFd, Errno> {
        let (folder, name) = (self.folder_of(temp), self.temp_name(temp));
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(folder, &name[..], flags, Mode::empty());
        match open() {
            // It was complete once, and has the permissions of its place already:
            // they may not let its owner open it.
            Err(Errno::ACCESS) => {
                let stat = rustix::fs::statat(folder, &name[..], AtFlags::SYMLINK_NOFOLLOW)?;
                let mode = Mode::from_raw_mode(stat.st_mode);
                rustix::fs::chmodat(folder, &name[..], mode | Mode::RUSR | Mode::WUSR, AtFlags::empty())?;
                let opened = open();
                rustix::fs::chmodat(folder, &name[..], mode, AtFlags::empty())?;
                opened
            }
            opened => opened,
        }
    }

    /// Has the kernel begin to write to disk what will have to be synced,
    /// while more of it arrives. It only helps.
    pub(crate) fn begin_writeback(&self, file: BorrowedFd<'_>, offset: u64, len: u64) {
        if self.durability == Durability::Commit {
            // Pages that are dirty are not dropped for it, but written;
            // in memory alone it does nothing.
            let _ = rustix::fs::fadvise(file, offset, NonZeroU64::new(len), Advice::DontNeed);
        }
    }

    /// Syncs one file that is open.
    pub(crate) fn sync_file(&self, file: BorrowedFd<'_>) -> Result<(), Error> {
        match self.durability {
            Durability::Commit => self.sync(|| rustix::fs::fsync(file)),
            Durability::None => Ok(()),
        }
    }

    /// Syncs the journal, and the names of the temporary files.
    pub(crate) fn sync_journal(&self) -> Result<(), Error> {
        match self.durability {
            Durability::Commit => self.sync(|| {
                self.parts().try_for_each(|part| rustix::fs::fsync(&part.folder))?;
                self.journal.sync()
            }),
            Durability::None => Ok(()),
        }
    }

    /// Syncs directories of the root: names that have been given.
    pub(crate) fn sync_dirs(&self, paths: &[Vec<u8>]) -> Result<(), Error> {
        if self.durability == Durability::None {
            return Ok(());
        }
        let open = |path: &Vec<u8>| self.root.open_dir(path);
        let dirs: Result<Vec<_>, _> =
            if paths.len() > SYNC_EACH_MAX { Err(Errno::MFILE) } else { paths.iter().map(open).collect() };
        self.sync(|| match &dirs {
            Ok(dirs) => dirs.iter().try_for_each(rustix::fs::fsync),
            Err(_) => {
                rustix::fs::syncfs(&*self.root)?;
                let parts = self.elsewhere.iter().map(|part| &part.folder);
                self.mounts.iter().chain(parts).try_for_each(rustix::fs::syncfs)
            }
        })
    }

    /// Lends `folder`, and the folders above it, the permissions that they
    /// lack; whether there was any to lend.
    pub(crate) fn lend(&self, folder: &[u8]) -> Result<bool, Errno> {
        let mut any = false;
        while let Some(lendable) = Lendable::find(&self.root, folder)? {
            let mut lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
            if lent.is_empty() {
                let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mode = Mode::from_raw_mode(0o600);
                rustix::fs::openat(&self.home.folder, journal::LENT_MARK, flags, mode)?;
            }
            let mode = *lent.entry(lendable.path.clone()).or_insert(lendable.mode);
            // Noted first: whoever finds this journal after a crash gives them back.
            self.journal.append(&[Record::Lent { mode, path: lendable.path.clone() }])?;
            lendable.lend()?;
            any = true;
        }
        Ok(any)
    }

    /// Notes that `folder` has got the permissions that it is to have.
    pub(crate) fn note_settled(&self, folder: &[u8]) -> Result<(), Errno> {
        let lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner).remove(folder);
        match lent {
            Some(_) => self.journal.append(&[Record::Returned { path: folder.to_vec() }]),
            None => Ok(()),
        }
    }

    /// Gives all folders back the permissions that they had.
    pub(crate) fn give_back(&self) {
        let lent = std::mem::take(&mut *self.lent.lock().unwrap_or_else(PoisonError::into_inner));
        lent::give_back(&self.root, &lent);
        let returned: Vec<_> = lent.into_keys().map(|path| Record::Returned { path }).collect();
        if !returned.is_empty() {
            // Who finds the journal would only look once more.
            let _ = self.journal.append(&returned);
        }
    }

    /// Bytes that may still be written into a part, and the device that they are on.
    pub(crate) fn free(&self, part: PartIndex) -> Result<(u64, u64), Errno> {
        let folder = self.folder(part);
        let stat = rustix::fs::fstatvfs(folder)?;
        Ok((rustix::fs::fstat(folder)?.st_dev, stat.f_bavail.saturating_mul(stat.f_frsize)))
    }

    /// Takes all parts but that at the root away, with everything in them.
    pub(crate) fn remove_elsewhere(&self) {
        for part in &self.elsewhere {
            part::remove(&self.root, &self.name, &part.place);
        }
    }

    /// Takes the folders away, with everything in them.
    pub(crate) fn remove(&self) {
        // One may be in a folder that is lent the permission to change it.
        self.remove_elsewhere();
        self.give_back();
        let places = (1..).zip(&self.elsewhere).map(|(at, part)| (at, part.place.clone()));
        remove_folder(&self.root, &self.name, &places.collect());
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// A failed sync poisons what was written: the kernel may have
/// dropped it and would not say so twice.
fn sync_failed(errno: Errno) -> Error {
    Error::with_code(
        500,
        format!("syncing failed, nothing of this can be trusted: {}", crate::error::reason(errno)),
    )
}

/// Whether an error is one of [`sync_failed`].
pub(crate) fn is_poison(error: &Error) -> bool {
    matches!(error, Error::Violation(violation) if violation.message.starts_with("syncing failed"))
}

/// Makes `.fastdrop/name` beneath `base`, and in it what `fill`
/// makes. Leaves nothing behind if it fails.
fn make_folder<T>(
    base: BorrowedFd<'_>,
    name: &str,
    fill: impl FnOnce(BorrowedFd<'_>) -> Result<T, Errno>,
) -> Result<(OwnedFd, T), Errno> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |at: BorrowedFd<'_>, name: &[u8]| rustix::fs::openat(at, name, flags, Mode::empty());
    let private = Mode::from_raw_mode(0o700);
    let attempt = || {
        match rustix::fs::mkdirat(base, HIDDEN, private) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let outer = open(base, HIDDEN)?;
        rustix::fs::mkdirat(&outer, name, private)?;
        Ok(outer)
    };
    // Another transfer that ends may take the outer folder away between the calls.
    let outer = (0..100).map(|_| attempt()).find(|made| !matches!(made, Err(Errno::NOENT)));
    let made = outer.unwrap_or(Err(Errno::NOENT)).and_then(|outer| {
        let filled = open(outer.as_fd(), name.as_bytes()).and_then(|folder| {
            let filled = fill(folder.as_fd()).inspect_err(|_| {
                for file in journal::NAMES {
                    let _ = rustix::fs::unlinkat(&folder, file, AtFlags::empty());
                }
            });
            Ok((folder, filled?))
        });
        filled.inspect_err(|_| {
            let _ = rustix::fs::unlinkat(&outer, name, AtFlags::REMOVEDIR);
        })
    });
    made.inspect_err(|_| {
        // It stays while there is other unfinished work in it.
        let _ = rustix::fs::unlinkat(base, HIDDEN, AtFlags::REMOVEDIR);
    })
}

/// Removes a stage with these `parts`, and its journal last: nothing that it names is forgotten.
fn remove_folder(root: &Root, name: &str, parts: &BTreeMap<u8, PartPlace>) {
    let path = hidden_path(name);
    let removed = parts.values().filter(|place| part::remove(root, name, place)).count();
    if removed < parts.len() {
        return;
    }
    let Ok(folder) = root.open_dir(&path) else { return };
    for (name, _) in crate::walk::names(folder.as_fd()).unwrap_or_default() {
        let _ = rustix::fs::unlinkat(&folder, &name[..], AtFlags::empty());
    }
    let Ok(outer) = root.open_dir(HIDDEN) else { return };
    let _ = rustix::fs::unlinkat(&outer, name, AtFlags::REMOVEDIR);
    // It stays while there is other unfinished work in it.
    let _ = rustix::fs::unlinkat(root, HIDDEN, AtFlags::REMOVEDIR);
}

fn timestamps(mtime: Mtime) -> Timestamps {
    let now = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW as _ };
    let then = Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanos.into() };
    Timestamps { last_access: now, last_modification: then }
}

/// Gives a complete file its time and permissions.
pub(crate) fn set_attributes(
    fd: BorrowedFd<'_>,
    mtime: Option<Mtime>,
    mode: Option<u32>,
) -> Result<(), Errno> {
    if let Some(mode) = mode {
        rustix::fs::fchmod(fd, Mode::from_raw_mode(mode))?;
    }
    if let Some(mtime) = mtime {
        rustix::fs::futimens(fd, &timestamps(mtime))?;
    }
    Ok(())
}

/// Gives an open file or folder, which need not be readable, its time and permissions.
pub(crate) fn set_open_attributes(
    fd: &OwnedFd,
    mtime: Option<Mtime>,
    mode: Option<u32>,
) -> Result<(), Errno> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    if let Some(mode) = mode {
        rustix::fs::chmod(&path[..], Mode::from_raw_mode(mode))?;
    }
    if let Some(mtime) = mtime {
        rustix::fs::utimensat(rustix::fs::CWD, &path[..], &timestamps(mtime), AtFlags::empty())?;
    }
    Ok(())
}

/// Gives the file at `path` beneath `root` its time and
/// permissions, and nothing that a link leads to.
pub(crate) fn set_attributes_at(
    root: &Root,
    path: &[u8],
    mtime: Option<Mtime>,
    mode: Option<u32>,
) -> Result<(), Errno> {
    let fd = root.open_at(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
    if kind != FileType::RegularFile {
        return Err(Errno::LOOP);
    }
    set_open_attributes(&fd, mtime, mode)
}

/// Gives a link its time.
pub(crate) fn set_link_time(folder: BorrowedFd<'_>, name: &[u8], mtime: Mtime) -> Result<(), Errno> {
    rustix::fs::utimensat(folder, name, &timestamps(mtime), AtFlags::SYMLINK_NOFOLLOW)
}

/// Writes all of `bytes` at `offset`.
pub(crate) fn write_all_at(fd: BorrowedFd<'_>, mut bytes: &[u8], mut offset: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(fd, bytes, offset) {
            Ok(count) => {
                bytes = &bytes[count..];
                offset += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Who is at an unfinished transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Busy {
    /// A transfer of this server, which stays.
    Known,
    /// A transfer of this server that has just been ended.
    Ended,
    /// Nobody here.
    Unknown,
}

/// What an earlier transfer left, with its journal locked.
#[derive(Debug)]
pub(crate) struct Leftovers {
    root: Arc<Root>,
    folder: OwnedFd,
    /// The parts of it that are not at the root.
    elsewhere: BTreeMap<u8, OwnedFd>,
    pub(crate) name: String,
    recovered: Recovered,
}

impl Leftovers {
    /// The unfinished work beneath `root` that nobody is at; for each folder that
    /// somebody is at, `busy` hears its name.
    ///
    /// Only what has a file that is `wanted`, or was given the name
    /// `named`, is kept, and locked for others.
    pub(crate) fn find(
        root: &Arc<Root>,
        named: Option<&[u8]>,
        wanted: impl Fn(&FileKey) -> bool,
        mut busy: impl FnMut(&str) -> Busy,
    ) -> Vec<Leftovers> {
        let Ok(outer) = root.open_dir(HIDDEN) else { return Vec::new() };
        let mut found = Vec::new();
        for (name, _) in crate::walk::names(outer.as_fd()).unwrap_or_default() {
            let Ok(name) = String::from_utf8(name) else { continue };
            let Ok(folder) = root.open_dir(&hidden_path(&name)) else { continue };
            let mut tries = 0;
            let state = loop {
                match journal::recover(folder.as_fd()) {
                    // Somebody may only be having a look, as we are.
                    Found::Busy if tries < LOOKS_MAX => match busy(&name) {
                        Busy::Known => break Found::Busy,
                        Busy::Ended => tries += 1,
                        Busy::Unknown => {
                            tries += 1;
                            std::thread::sleep(Duration::from_millis(5));
                        }
                    },
                    state => break state,
                }
            };
            match state {
                Found::Recovered(recovered) => {
                    return_lent(root, folder.as_fd(), &recovered);
                    // Nothing was brought, and nothing begun under a name that still exists.
                    let is_there =
                        |path: &[u8]| !matches!(root.stat(path), Err(Errno::NOENT | Errno::NOTDIR));
                    let begun = recovered.named.as_deref().is_some_and(is_there);
                    if recovered.files.is_empty() && !begun {
                        remove_folder(root, &name, &recovered.parts);
                        continue;
                    }
                    let same_name = named.is_some() && recovered.named.as_deref() == named;
                    if !same_name && !recovered.files.iter().any(|left| wanted(&left.key)) {
                        continue;
                    }
                    // What was written and not journaled counts for nothing.
                    let known: BTreeSet<_> =
                        recovered.files.iter().map(|left| temp_name(&name, left.temp).into_bytes()).collect();
                    let elsewhere = part::open_all(root, &name, &recovered.parts);
                    for folder in std::iter::once(&folder).chain(elsewhere.values()) {
                        for file in part::temps(folder.as_fd()).iter().filter(|&file| !known.contains(file)) {
                            let _ = rustix::fs::unlinkat(folder, &file[..], AtFlags::empty());
                        }
                    }
                    found.push(Leftovers { root: Arc::clone(root), folder, elsewhere, name, recovered });
                }
                Found::Busy => {}
                Found::Worthless => remove_folder(root, &name, &journal::parts(folder.as_fd())),
                Found::Nothing => {
                    let touched = rustix::fs::fstat(&folder).map_or(0, |stat| stat.st_mtime);
                    if since(touched) > BEGINNING_MAX {
                        remove_folder(root, &name, &BTreeMap::new());
                    }
                }
            }
        }
        found
    }

    /// The folder that a file is in; None if it cannot be reached now.
    fn folder_of(&self, temp: u32) -> Option<BorrowedFd<'_>> {
        match PartIndex::of(temp) {
            PartIndex::HOME => Some(self.folder.as_fd()),
            PartIndex(part) => self.elsewhere.get(&part).map(AsFd::as_fd),
        }
    }

    /// The files, by what they are to become; the index is that of the file in [`Self::file`].
    pub(crate) fn keys(&self) -> impl Iterator<Item = (&FileKey, usize)> {
        self.recovered.files.iter().enumerate().map(|(at, left)| (&left.key, at))
    }

    /// Checks one file against the journal: what of it is as the journal says; None if nothing is.
    ///
    /// `identity` is what the sender calls the file now, 0 if it does not say. Of another file
    /// nothing is kept that could not be compared, and the rest is claimed only.
    ///
    /// # Errors
    ///
    /// What the system says of a file that is there, or may be, and cannot
    /// be looked at now: no verdict on it.
    pub(crate) fn verify(
        &self,
        at: usize,
        identity: u64,
        algorithm: Algorithm,
        one_chunk: ChunkSize,
    ) -> Result<Option<Left>, Errno> {
        let Some(left) = self.recovered.files.get(at) else { return Ok(None) };
        let same = identity != 0 && left.identity == identity;
        if !same && (algorithm.is_empty() || matches!(left.content, LeftContent::Whole(_))) {
            return Ok(None);
        }
        // Without checksums only the page cache can vouch for what was not
        // synced, and it went with the power.
        if self.recovered.algorithm != algorithm || (algorithm.is_empty() && !self.recovered.same_boot) {
            return Ok(None);
        }
        let name = temp_name(&self.name, left.temp);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let folder = self.folder_of(left.temp).ok_or(Errno::XDEV)?;
        let fd = match rustix::fs::openat(folder, name, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::LOOP) => return Ok(None),
            result => result?,
        };
        let stat = rustix::fs::fstat(&fd)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile
            || stat.st_size as u64 != left.key.size
        {
            return Ok(None);
        }
        let one = u64::from(one_chunk.bytes());
        let content = match &left.content {
            LeftContent::Whole(checksum) if left.key.size <= one => {
                let mut bytes = vec![0; left.key.size as usize];
                read_exact_at(&fd, &mut bytes, 0)?;
                (algorithm.of(&bytes) == *checksum).then_some(LeftContent::Whole(*checksum))
            }
            LeftContent::Pieces(pieces) if self.recovered.one_chunk == one_chunk => {
                let mut held = verify_pieces(&fd, left.key.size, pieces, algorithm, one);
                held.values_mut().for_each(|piece| piece.claimed |= !same);
                (!held.is_empty()).then_some(LeftContent::Pieces(held))
            }
            LeftContent::Whole(_) | LeftContent::Pieces(_) => None,
        };
        Ok(content.map(|content| Left { content, identity, ..left.clone() }))
    }

    /// Deletes one file.
    pub(crate) fn discard(&self, at: usize) {
        if let Some(left) = self.recovered.files.get(at)
            && let Some(folder) = self.folder_of(left.temp)
        {
            let _ = rustix::fs::unlinkat(folder, temp_name(&self.name, left.temp), AtFlags::empty());
        }
    }

    /// Takes the folders away if only the journal is left in them.
    pub(crate) fn close(self) {
        let mut folders = std::iter::once(&self.folder).chain(self.elsewhere.values());
        if folders.all(|folder| part::temps(folder.as_fd()).is_empty()) {
            remove_folder(&self.root, &self.name, &self.recovered.parts);
        }
    }
}

/// Those of `pieces`, each `one` bytes of the `size` in `fd`, that have the
/// checksums that were noted for them.
///
/// Whoever continues waits for this, so all cores read at once.
fn verify_pieces(
    fd: &OwnedFd,
    size: u64,
    pieces: &BTreeMap<u32, Piece>,
    algorithm: Algorithm,
    one: u64,
) -> BTreeMap<u32, Piece> {
    let pieces: Vec<_> = pieces.iter().map(|(&number, &piece)| (number, piece)).collect();
    let next = AtomicUsize::new(0);
    let some = || {
        let mut buffer = vec![0; STEP];
        let mut held = Vec::new();
        while let Some(&(number, piece)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            let offset = u64::from(number) * one;
            let Some(len) = size.checked_sub(offset).map(|left| left.min(one)) else { continue };
            let mut computed = PieceChecksum::new(algorithm, offset, size <= one);
            let agrees = (0..len).step_by(STEP).all(|at| {
                let step = &mut buffer[..STEP.min((len - at) as usize)];
                let read = read_exact_at(fd, step, offset + at);
                computed.update(step);
                read.is_ok()
            });
            if agrees && computed.finish() == piece.checksum {
                held.push((number, piece));
            }
        }
        held
    };
    let helpers = match pieces.len() {
        0..VERIFY_ALONE => 0,
        _ => std::thread::available_parallelism().map_or(1, |cores| cores.get().min(VERIFIERS_MAX)) - 1,
    };
    std::thread::scope(|scope| {
        // Without a thread to be had, this one does it all.
        let helping = (0..helpers).map_while(|_| std::thread::Builder::new().spawn_scoped(scope, some).ok());
        let helping: Vec<_> = helping.collect();
        // What a thread that failed had looked at comes again.
        some()
            .into_iter()
            .chain(helping.into_iter().flat_map(|held| held.join().unwrap_or_default()))
            .collect()
    })
}

/// Whether an unfinished transfer beneath `root` was given `path` as its name.
pub(crate) fn is_named(root: &Root, path: &[u8]) -> bool {
    let Ok(outer) = root.open_dir(HIDDEN) else { return false };
    let names = crate::walk::names(outer.as_fd()).unwrap_or_default();
    names.iter().any(|(name, _)| {
        let folder = root.open_dir(&[HIDDEN, b"/", &name[..]].concat());
        folder.is_ok_and(|folder| journal::named(folder.as_fd()).as_deref() == Some(path))
    })
}

/// The time since `seconds` after 1970, by the clock on the wall:
/// the only one that outlives a process.
fn since(seconds: i64) -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// Removes what nobody has come back for in `age`.
pub(crate) fn expire(root: &Arc<Root>, age: Duration) {
    let Ok(outer) = root.open_dir(HIDDEN) else { return };
    for (name, _) in crate::walk::names(outer.as_fd()).unwrap_or_default() {
        let Ok(name) = String::from_utf8(name) else { continue };
        let Ok(folder) = root.open_dir(&hidden_path(&name)) else { continue };
        let newest = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).map_or(i64::MAX, |stat| stat.st_mtime);
        let journal = rustix::fs::openat(
            &folder,
            journal::NAME,
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let touched = newest(folder.as_fd()).max(journal.map_or(i64::MIN, |fd| newest(fd.as_fd())));
        let is_old = since(touched) > age;
        if !is_old && !has_lent(folder.as_fd()) {
            continue;
        }
        // Locked as long as this looks at it: whoever wants to continue it meanwhile finds it busy.
        let found = journal::recover(folder.as_fd());
        let parts = match &found {
            Found::Busy => continue,
            Found::Recovered(recovered) => {
                return_lent(root, folder.as_fd(), recovered);
                recovered.parts.clone()
            }
            Found::Worthless | Found::Nothing => journal::parts(folder.as_fd()),
        };
        if is_old {
            tracing::info!(folder = %name, "removing unfinished work that nobody came back for");
            remove_folder(root, &name, &parts);
        }
    }
}

/// Whether the journal in `folder` may name folders that have not got back what they were.
fn has_lent(folder: BorrowedFd<'_>) -> bool {
    rustix::fs::statat(folder, journal::LENT_MARK, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// Gives folders back the permissions that they had before a transfer that was killed. It happens
/// once: a mode that one of them has after that is the one that somebody wants.
fn return_lent(root: &Root, folder: BorrowedFd<'_>, recovered: &Recovered) {
    if has_lent(folder) && lent::give_back(root, &recovered.lent) {
        let _ = rustix::fs::unlinkat(folder, journal::LENT_MARK, AtFlags::empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::thread::CapabilitySet;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    fn stage(dir: &std::path::Path) -> (Arc<Root>, Stage) {
        let root = Arc::new(Root::open(dir).unwrap());
        let stage =
            Stage::create(Arc::clone(&root), Algorithm::Xxh3, ChunkSize::MIN, Durability::Commit, None)
                .unwrap();
        (root, stage)
    }

    #[test]
    fn case_59_a_planted_name_is_left_alone_and_another_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (_root, stage) = stage(dir.path());
        let planted = dir.path().join(".fastdrop").join(stage.name()).join(stage.temp_name(0));
        std::os::unix::fs::symlink("/etc/passwd", &planted).unwrap();
        let (temp, fd) = stage.new_temp(PartIndex::HOME, 0o600).unwrap();
        assert_eq!(temp, 1);
        write_all_at(fd.as_fd(), b"x", 0).unwrap();
        assert!(planted.is_symlink());
    }

    /// A file that was complete has the mode of its place, which may keep even its owner out.
    #[test]
    fn a_held_file_is_opened_whatever_its_mode_lets_its_owner_do() {
        // Root's right to open everything would hide it. Capabilities are of
        // a thread: no other test loses them.
        let mut sets = rustix::thread::capabilities(None).unwrap();
        sets.effective -= CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
        rustix::thread::set_capabilities(None, sets).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (_root, stage) = stage(dir.path());
        for mode in [0o000, 0o044, 0o200, 0o400, 0o600] {
            let (temp, fd) = stage.new_temp(PartIndex::HOME, 0o600).unwrap();
            write_all_at(fd.as_fd(), b"x", 0).unwrap();
            rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode)).unwrap();
            let opened = stage.open_with(temp, OFlags::RDWR).unwrap();
            write_all_at(opened.as_fd(), b"y", 1).unwrap();
            let stat = rustix::fs::fstat(&opened).unwrap();
            assert_eq!((stat.st_size, stat.st_mode & 0o777), (2, mode));
        }
    }

    #[test]
    fn the_hidden_folder_goes_with_its_last_transfer() {
        let dir = tempfile::tempdir().unwrap();
        let (root, first) = stage(dir.path());
        let second = Stage::create(root, Algorithm::None, ChunkSize::MIN, Durability::None, None).unwrap();
        first.new_temp(PartIndex::HOME, 0o600).unwrap();
        first.remove();
        assert!(dir.path().join(".fastdrop").exists());
        second.remove();
        assert!(!dir.path().join(".fastdrop").exists());
    }

    #[test]
    fn case_36_what_the_journal_says_is_believed_only_if_the_data_agrees() {
        let dir = tempfile::tempdir().unwrap();
        let (root, stage) = stage(dir.path());
        let (temp, fd) = stage.new_temp(PartIndex::HOME, 0o600).unwrap();
        write_all_at(fd.as_fd(), &[1; 1024], 0).unwrap();
        write_all_at(fd.as_fd(), &[2; 1024], 1024).unwrap();
        let key = FileKey { path: b"f".to_vec(), size: 2048, mtime: (0, 0) };
        let sum = |byte| Algorithm::Xxh3.of(&[byte; 1024]);
        let piece = |piece, checksum| Record::Piece { temp, piece, checksum };
        let records = [Record::File { temp, identity: 5, key }, piece(0, sum(1)), piece(1, sum(3))];
        stage.journal().append(&records).unwrap();
        drop(stage);
        let found = Leftovers::find(&root, None, |_| true, |_| panic!("nobody is at it"));
        let verify = |identity, algorithm| found[0].verify(0, identity, algorithm, ChunkSize::MIN).unwrap();
        for (identity, claimed) in [(5, false), (6, true), (0, true)] {
            let left = verify(identity, Algorithm::Xxh3).unwrap();
            let piece = Piece { checksum: sum(1), claimed };
            assert_eq!(left.content, LeftContent::Pieces(BTreeMap::from([(0, piece)])));
            assert_eq!(left.identity, identity);
        }
        assert!(verify(5, Algorithm::Blake3).is_none());
        found[0].discard(0);
        assert!(verify(5, Algorithm::Xxh3).is_none());
    }

    #[test]
    fn case_103_what_cannot_be_compared_is_kept_only_of_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let root = Arc::new(Root::open(dir.path()).unwrap());
        let stage = |algorithm| {
            Stage::create(Arc::clone(&root), algorithm, ChunkSize::MIN, Durability::Commit, None).unwrap()
        };
        let key = |path: &str, size| FileKey { path: path.into(), size, mtime: (0, 0) };
        let sum = |algorithm: Algorithm| algorithm.of(&[1; 1024]);
        for algorithm in [Algorithm::None, Algorithm::Xxh3] {
            let stage = stage(algorithm);
            let (small, fd) = stage.new_temp(PartIndex::HOME, 0o600).unwrap();
            write_all_at(fd.as_fd(), &[1; 1024], 0).unwrap();
            let checksum = sum(algorithm);
            let name = algorithm.name();
            let mut records =
                vec![Record::Small { temp: small, identity: 5, checksum, key: key(name, 1024) }];
            if algorithm == Algorithm::None {
                let (temp, fd) = stage.new_temp(PartIndex::HOME, 0o600).unwrap();
                rustix::fs::ftruncate(&fd, 2048).unwrap();
                records.push(Record::File { temp, identity: 5, key: key("big", 2048) });
                records.push(Record::Piece { temp, piece: 0, checksum });
            }
            stage.journal().append(&records).unwrap();
        }
        for leftovers in Leftovers::find(&root, None, |_| true, |_| panic!("nobody is at it")) {
            let algorithm = leftovers.recovered.algorithm;
            for (key, at) in leftovers.keys() {
                for (identity, kept) in [(5, true), (6, false), (0, false)] {
                    let left = leftovers.verify(at, identity, algorithm, ChunkSize::MIN).unwrap();
                    assert_eq!(left.is_some(), kept, "{key:?} as {identity}");
                }
            }
        }
    }

    #[test]
    fn what_was_lent_is_given_back_once_and_a_later_mode_stays() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("d");
        std::fs::create_dir(&folder).unwrap();
        let mode = || std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777;
        let set_mode = |mode| std::fs::set_permissions(&folder, Permissions::from_mode(mode)).unwrap();
        set_mode(0o555);
        let (root, stage) = stage(dir.path());
        let key = FileKey { path: b"d/f".to_vec(), size: 1, mtime: (0, 0) };
        stage.journal().append(&[Record::File { temp: 0, identity: 0, key }]).unwrap();
        assert!(stage.lend(b"d").unwrap());
        assert_eq!(mode(), 0o755);
        // As after a kill: nothing is given back, and the journal is free.
        stage.journal().unlock();
        std::mem::forget(stage);
        let find = || Leftovers::find(&root, None, |_| true, |_| panic!("nobody is at it"));
        assert_eq!(find().len(), 1);
        assert_eq!(mode(), 0o555);
        set_mode(0o755);
        assert_eq!(find().len(), 1);
        expire(&root, Duration::from_secs(3600));
        assert_eq!(mode(), 0o755);
    }

    #[test]
    fn only_what_is_old_and_abandoned_expires() {
        let dir = tempfile::tempdir().unwrap();
        let (root, busy) = stage(dir.path());
        let (_, idle) = stage(dir.path());
        let idle_path = dir.path().join(".fastdrop").join(idle.name());
        drop(idle);
        expire(&root, Duration::from_secs(3600));
        assert!(idle_path.exists());
        let past = Mtime { seconds: 1, nanos: 0 };
        for path in [idle_path.clone(), idle_path.join(journal::NAME)] {
            let fd = rustix::fs::open(&path, OFlags::RDONLY, Mode::empty()).unwrap();
            set_attributes(fd.as_fd(), Some(past), None).unwrap();
        }
        expire(&root, Duration::from_secs(3600));
        assert!(!idle_path.exists());
        assert!(dir.path().join(".fastdrop").join(busy.name()).exists());
    }

    #[test]
    fn case_36_only_pieces_that_are_as_the_journal_says_are_held_whoever_reads_them() {
        const ONE: u64 = 1024;
        let size = 100 * ONE + 7;
        let mut data: Vec<u8> = (0..size).map(|i| (i * 31 % 251) as u8).collect();
        let offsets = (0..).map(|piece| piece * ONE).take_while(|&offset| offset < size);
        let sum = |offset: u64| {
            let part = &data[offset as usize..(offset + ONE).min(size) as usize];
            Algorithm::Xxh3.of_piece(part, offset, false)
        };
        let piece = |offset| Piece { checksum: sum(offset), claimed: false };
        let mut pieces: BTreeMap<u32, Piece> =
            offsets.map(|offset| ((offset / ONE) as u32, piece(offset))).collect();
        assert!(pieces.len() > VERIFY_ALONE);
        let folder = tempfile::tempdir().unwrap();
        let held_of = |data: &[u8], pieces: &BTreeMap<u32, Piece>| {
            let path = folder.path().join("file");
            std::fs::write(&path, data).unwrap();
            let fd = OwnedFd::from(std::fs::File::open(path).unwrap());
            verify_pieces(&fd, size, pieces, Algorithm::Xxh3, ONE)
        };
        assert_eq!(held_of(&data, &pieces), pieces);
        data[40 * ONE as usize] ^= 1;
        let cut = 99 * ONE as usize;
        let held = held_of(&data[..cut], &pieces);
        pieces.retain(|&piece, _| piece != 40 && piece < 99);
        assert_eq!(held, pieces);
    }
}
