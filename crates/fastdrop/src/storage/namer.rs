//! Names, times and permissions: how what is complete gets to its place.

use crate::error::{Error, code_of, reason};
use crate::lock::lock;
use crate::storage::attributes::{
    default_mode, set_attributes, set_attributes_at, set_link_time, set_open_attributes,
};
use crate::storage::options::ReceiveOptions;
use crate::storage::part::PartIndex;
use crate::storage::placement::{NUMBERED_MAX, Placement, Verdict, numbered};
use crate::storage::root::{Dirs, Root, rename, split};
use crate::storage::stage::Stage;
use fastdrop_proto::fastdp::{Entry, EntryKind, Failed};
use fastdrop_proto::units::{EntryIndex, Mtime};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// The outcome of giving names.
#[derive(Debug, Default)]
pub(crate) struct Named {
    /// Files and links that have their names.
    pub(crate) files: u64,
    /// Entries that could not be given theirs, or not everything that belongs to it.
    pub(crate) failed: BTreeMap<EntryIndex, Failed>,
}

impl Named {
    pub(super) fn fail(&mut self, index: EntryIndex, entry: &Entry<'_>, errno: Errno, message: String) {
        let path = entry.path.as_bytes().to_vec();
        self.failed.entry(index).or_insert(Failed { path, code: code_of(errno), message });
    }
}

/// The places of a transfer's entries beneath a root, and which of them have been taken.
#[derive(Debug)]
pub(super) struct Namer {
    root: Arc<Root>,
    placement: Placement,
    /// Says whether times are set, and permissions.
    times: bool,
    mode: bool,
    /// Entries that do not simply go to their places.
    exceptions: HashMap<EntryIndex, Verdict>,
    /// Folders in which names have been given since they were synced.
    named_in: Mutex<BTreeSet<Vec<u8>>>,
    /// A file has been given its name.
    named_any: AtomicBool,
    default_file_mode: u32,
}

impl Namer {
    pub(super) fn new(
        root: Arc<Root>,
        placement: Placement,
        options: &ReceiveOptions,
        exceptions: HashMap<EntryIndex, Verdict>,
    ) -> Self {
        Self {
            root,
            placement,
            times: options.times,
            mode: options.mode,
            exceptions,
            named_in: Mutex::default(),
            named_any: AtomicBool::new(false),
            default_file_mode: default_mode(false),
        }
    }

    pub(super) fn root(&self) -> &Arc<Root> {
        &self.root
    }

    pub(super) fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Returns true if a file has been given its name.
    pub(super) fn has_named(&self) -> bool {
        self.named_any.load(Ordering::Relaxed)
    }

    /// An error of the system while an entry was written.
    pub(super) fn error(&self, entry: &Entry<'_>, errno: Errno) -> Error {
        Error::system(format!("writing {}", crate::shown(&self.placement.of(entry.path))), errno)
    }

    /// The time that an entry gets, if it gets one.
    pub(super) fn mtime(&self, entry: &Entry<'_>) -> Option<Mtime> {
        (self.times && entry.kind != EntryKind::Stream).then_some(entry.mtime)
    }

    /// The permissions that a file gets.
    pub(super) fn file_mode(&self, entry: &Entry<'_>) -> u32 {
        if self.mode && entry.kind != EntryKind::Stream { entry.mode } else { self.default_file_mode }
    }

    /// Returns true if a file that was created with `mode` may lack some of it: the umask took it
    /// away.
    pub(super) fn is_masked(&self, mode: u32) -> bool {
        mode & !self.default_file_mode & 0o666 != 0 || mode & 0o111 != 0
    }

    /// Gives a complete file its time and, if `mode`, its permissions.
    pub(super) fn set_file_attributes(
        &self,
        fd: &OwnedFd,
        entry: &Entry<'_>,
        mode: bool,
    ) -> Result<(), Errno> {
        set_attributes(fd.as_fd(), self.mtime(entry), mode.then(|| self.file_mode(entry)))
    }

    /// Gives what is there already the time and permissions that it is to have.
    pub(super) fn adjust(&self, dirs: &mut Dirs, entry: &Entry<'_>) -> Result<(), Errno> {
        let path = self.placement.of(entry.path);
        let mtime = self.times.then_some(entry.mtime);
        if let EntryKind::Link { .. } = entry.kind {
            let (folder, name) = split(&path);
            let folder = dirs.find(&self.root, folder)?.ok_or(Errno::NOENT)?;
            return mtime.map_or(Ok(()), |mtime| set_link_time(folder, name, mtime));
        }
        set_attributes_at(&self.root, &path, mtime, self.mode.then_some(entry.mode))
    }

    /// Does something in a folder; once more, if it may not, after lending the folder what it
    /// lacks.
    fn in_folder<T>(
        &self,
        stage: &Stage,
        folder: &[u8],
        mut work: impl FnMut() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match work() {
            Err(Errno::ACCESS) if stage.lend(folder)? => work(),
            result => result,
        }
    }

    /// Gives a complete file its name, without replacing anything that it was not told to.
    pub(super) fn name_file(
        &self,
        stage: &Stage,
        dirs: &mut Dirs,
        index: EntryIndex,
        entry: &Entry<'_>,
        temp: u32,
    ) -> Result<(), Errno> {
        let path = self.placement.of(entry.path);
        let (from, temp) = (stage.folder_of(temp), stage.temp_name(temp));
        let (folder, name) = split(&path);
        let exception = self.exceptions.get(&index);
        self.in_folder(stage, folder, || {
            let to = dirs.make(&self.root, folder)?;
            match exception {
                Some(exception) => rename_as(exception, from, &temp, to, name),
                None => rename(from, temp.as_bytes(), to, name, false),
            }
        })?;
        self.named_any.store(true, Ordering::Relaxed);
        note_with_ancestors(&mut lock(&self.named_in), folder);
        Ok(())
    }

    /// Makes the link `entry`; where it replaces something, by way of `part` of the stage.
    pub(super) fn make_link(
        &self,
        stage: &Stage,
        dirs: &mut Dirs,
        index: EntryIndex,
        entry: &Entry<'_>,
        target: &[u8],
        part: impl Fn() -> Result<PartIndex, Errno>,
    ) -> Result<(), Errno> {
        let path = self.placement.of(entry.path);
        let (folder, name) = split(&path);
        let set_time = |folder: BorrowedFd<'_>, name: &[u8]| match self.times {
            true => set_link_time(folder, name, entry.mtime),
            false => Ok(()),
        };
        self.in_folder(stage, folder, || {
            let folder_fd = dirs.make(&self.root, folder)?;
            let Some(exception) = self.exceptions.get(&index) else {
                rustix::fs::symlinkat(target, folder_fd, name)?;
                return set_time(folder_fd, name);
            };
            let from = stage.folder(part()?);
            let temp = format!("{}.link", stage.temp_name(index.0));
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

    /// Makes sure that a folder is there.
    pub(super) fn make_dir(&self, stage: &Stage, entry: &Entry<'_>) -> Result<(), Errno> {
        let path = self.placement.of(entry.path);
        self.in_folder(stage, split(&path).0, || self.root.make_dirs(&path))?;
        note_with_ancestors(&mut lock(&self.named_in), &path);
        Ok(())
    }

    /// Gives a folder its time and permissions.
    pub(super) fn set_dir_attributes(&self, stage: &Stage, entry: &Entry<'_>) -> Result<(), Errno> {
        let path = self.placement.of(entry.path);
        let fd = self.in_folder(stage, split(&path).0, || {
            self.root.open_at(&path, OFlags::DIRECTORY | OFlags::PATH, Mode::empty())
        })?;
        // A transfer carries nine bits. The others a folder has from whoever made it, or from the
        // one above: a group's folder stays one.
        let special = rustix::fs::fstat(&fd)?.st_mode & 0o7000;
        let (mtime, mode) = (self.times.then_some(entry.mtime), self.mode.then_some(special | entry.mode));
        set_open_attributes(&fd, mtime, mode)?;
        if self.mode { stage.note_settled(&path) } else { Ok(()) }
    }

    /// Syncs the folders in which names have been given since the last time.
    pub(super) fn sync(&self, stage: &Stage) -> Result<(), Error> {
        let dirs: Vec<_> = std::mem::take(&mut *lock(&self.named_in)).into_iter().collect();
        stage.sync_dirs(&dirs)
    }
}

/// Returns true for an error that says something about the name itself: the next attempt would meet
/// it again.
pub(super) fn is_about_the_name(errno: Errno) -> bool {
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
pub(super) fn naming_reason(errno: Errno) -> String {
    match errno {
        Errno::EXIST => "another one was put there meanwhile".to_owned(),
        Errno::XDEV => "something was mounted or unmounted there meanwhile".to_owned(),
        Errno::BUSY => "something is mounted on it".to_owned(),
        errno => reason(errno),
    }
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
fn note_with_ancestors(folders: &mut BTreeSet<Vec<u8>>, folder: &[u8]) {
    let mut folder = folder;
    while folders.insert(folder.to_vec()) && !folder.is_empty() {
        folder = split(folder).0;
    }
}
