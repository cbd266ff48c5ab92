//! Where unfinished files live: a folder of their own in `.fastdrop`, beneath the root, with a
//! journal; and one on each other mount that files of the transfer will live on.

use crate::error::Error;
use crate::random::random;
use crate::storage::attributes::set_link_time;
use crate::storage::folder::{make_folder, temp_name};
use crate::storage::io::{STEP, read_exact_at, write_all_at};
use crate::storage::journal;
use crate::storage::journal::{Journal, Left, LeftContent, PartPlace, Piece, Record};
use crate::storage::lent;
use crate::storage::lent::Lendable;
use crate::storage::part;
use crate::storage::part::{PARTS_MAX, Part, PartIndex, remove_folder};
use crate::storage::root::{MountId, Root};
use fastdrop_proto::checksum::Algorithm;
use fastdrop_proto::fastdp::{Code, Durability};
use fastdrop_proto::units::{ChunkSize, Mtime};
use rustix::fs::{Advice, AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// More planted names than this in a row, and somebody is at work who must not be played with.
const PLANTED_MAX: u32 = 1000;
/// More files than this are synced by one call for the file system instead of one each.
const SYNC_EACH_MAX: usize = 8;

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

    /// The part for files in one of `folders`, which exist, and are on `mount`; made if there is
    /// none yet.
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
            return Err(Error::failed(
                Code::OverLimit,
                "files on more mounts than one transfer may write to",
            ));
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
            Some(mtime) => set_link_time(folder, name.as_bytes(), mtime),
            None => Ok(()),
        }
    }

    /// Deletes a temporary file.
    pub(crate) fn remove_temp(&self, temp: u32) {
        let _ = rustix::fs::unlinkat(self.folder_of(temp), self.temp_name(temp), AtFlags::empty());
    }

    /// Moves the verified file `left` of an earlier transfer, `name` in `folder`, into `part`:
    /// journaled first, so that a crash in between loses only a name.
    pub(super) fn adopt(
        &self,
        folder: BorrowedFd<'_>,
        name: &str,
        left: &Left,
        part: PartIndex,
    ) -> Result<u32, Error> {
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
        let new = self.temp_name(temp);
        match crate::storage::root::rename(folder, name.as_bytes(), self.folder(part), new.as_bytes(), false)
        {
            // What was mounted there then is not what is mounted there now.
            Err(Errno::XDEV) => self.copy(folder, name, temp).map_err(system)?,
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

    /// Syncs, unless an earlier sync has failed. Only a failure of the sync itself is one that
    /// poisons.
    fn sync(&self, sync: impl FnOnce() -> Result<(), Errno>) -> Result<(), Error> {
        let mut poisoned = self.poisoned.lock().unwrap_or_else(PoisonError::into_inner);
        if *poisoned {
            return Err(Error::sync(Errno::IO));
        }
        sync().map_err(|errno| {
            *poisoned = true;
            Error::sync(errno)
        })
    }

    /// Has a sync fail.
    #[cfg(test)]
    pub(super) fn poison(&self) {
        self.sync(|| Err(Errno::IO)).unwrap_err();
    }

    /// Returns true if a sync has failed: nothing of what was written can be trusted.
    pub(crate) fn is_poisoned(&self) -> bool {
        *self.poisoned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_with(&self, temp: u32, flags: OFlags) -> Result<OwnedFd, Errno> {
        let (folder, name) = (self.folder_of(temp), self.temp_name(temp));
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(folder, &name[..], flags, Mode::empty());
        match open() {
            // It was complete once, and has the permissions of its place already: they may not let
            // its owner open it.
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

    /// Has the kernel begin to write to disk what will have to be synced, while more of it arrives.
    /// It only helps.
    pub(crate) fn begin_writeback(&self, file: BorrowedFd<'_>, offset: u64, len: u64) {
        if self.durability == Durability::Commit {
            // Pages that are dirty are not dropped for it, but written; in memory alone it does
            // nothing.
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

    /// Lends `folder`, and the folders above it, the permissions that they lack; whether there was
    /// any to lend.
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use rustix::thread::CapabilitySet;

    pub(in crate::storage) fn stage(dir: &std::path::Path) -> (Arc<Root>, Stage) {
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
        // Root's right to open everything would hide it. Capabilities are of a thread: no other
        // test loses them.
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
}
