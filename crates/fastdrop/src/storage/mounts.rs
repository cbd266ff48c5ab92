//! Which mount each entry of a transfer will live on, and which part of the stage is there.

use crate::error::Error;
use crate::storage::options::ReceiveOptions;
use crate::storage::part::{PARTS_MAX, PartIndex};
use crate::storage::root::{Dirs, MountId, Root, join, split};
use crate::storage::stage::Stage;
use fastdrop_proto::fastdp::Code;
use fastdrop_proto::units::EntryIndex;
use rustix::io::Errno;
use std::collections::BTreeMap;

/// The mounts that entries will live on: in a tree, many entries in a row are on the same.
#[derive(Debug, Default)]
pub(crate) struct Mounts {
    /// The first entry of each run, and the place of its mount in `mounts`.
    runs: Vec<(EntryIndex, usize)>,
    mounts: Vec<Mount>,
    /// The folder that was looked at last.
    last: Option<Seen>,
}

/// Folders on one mount that are kept as places for a part of the stage.
const FOLDERS_MAX: usize = 64;

/// A folder that was looked at.
#[derive(Debug)]
struct Seen {
    folder: Vec<u8>,
    /// The nearest folder above it, or itself, that is there.
    there: Vec<u8>,
    /// The place of its mount in `mounts`.
    at: usize,
}

impl Seen {
    /// Whether `folder` will be made where this one was looked for.
    fn has_beneath(&self, folder: &[u8]) -> bool {
        let beneath = |folder: &[u8], above: &[u8]| match folder.strip_prefix(above) {
            Some(rest) => above.is_empty() || rest.is_empty() || rest.first() == Some(&b'/'),
            None => false,
        };
        // Up to the topmost folder that is missing both have the same path.
        let missing = match self.folder.get(self.there.len() + usize::from(!self.there.is_empty())..) {
            Some(missing) if !missing.is_empty() => missing.split(|&byte| byte == b'/').next(),
            _ => None,
        };
        missing.is_some_and(|missing| beneath(folder, &join(&self.there, missing)))
    }
}

#[derive(Debug)]
struct Mount {
    id: MountId,
    /// The first folder on it that was seen.
    folder: Vec<u8>,
    /// Folders on it for which there will be temporary files.
    staged: Vec<Vec<u8>>,
    /// Bytes that will be written there, as far as they have been counted.
    bytes: u64,
    part: Result<PartIndex, Refusal>,
}

/// Why no part of the stage can be on a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl Mounts {
    /// Notes where an entry goes. Entries come in their order; `is_staged` says
    /// whether it has a temporary file first.
    ///
    /// # Errors
    ///
    /// What the system says of a folder that cannot be looked at, and 413 for more mounts than a
    /// stage can have parts.
    pub(crate) fn note(
        &mut self,
        root: &Root,
        dirs: &mut Dirs,
        index: EntryIndex,
        path: &[u8],
        is_staged: bool,
    ) -> Result<(), Error> {
        let seen = self.look(root, dirs, split(path).0)?;
        let (at, there) = (seen.at, seen.there.clone());
        if self.runs.last().is_none_or(|&(_, last)| last != at) {
            self.runs.push((index, at));
        }
        if is_staged
            && let Some(mount) = self.mounts.get_mut(at)
            && mount.staged.last() != Some(&there)
            && mount.staged.len() < FOLDERS_MAX
        {
            mount.staged.push(there);
        }
        Ok(())
    }

    /// Looks at a folder that is there, or will be.
    fn look(&mut self, root: &Root, dirs: &mut Dirs, folder: &[u8]) -> Result<&Seen, Error> {
        let seen = match self.last.take() {
            Some(last) if last.folder == folder => last,
            Some(last) if last.has_beneath(folder) => Seen { folder: folder.to_vec(), ..last },
            _ => self.look_anew(root, dirs, folder)?,
        };
        Ok(self.last.insert(seen))
    }

    fn look_anew(&mut self, root: &Root, dirs: &mut Dirs, folder: &[u8]) -> Result<Seen, Error> {
        let system = |errno| Error::system(crate::shown(folder), errno);
        let mut there = folder;
        let id = loop {
            match dirs.find(root, there).map_err(system)? {
                Some(fd) => break MountId::of(fd).map_err(system)?,
                None if there.is_empty() => return Err(system(Errno::NOENT)),
                None => there = split(there).0,
            }
        };
        let at = match self.mounts.iter().position(|mount| mount.id == id) {
            Some(at) => at,
            None if self.mounts.len() >= PARTS_MAX => {
                return Err(Error::failed(
                    Code::OverLimit,
                    "files on more mounts than one transfer may write to",
                ));
            }
            None => {
                let part = Ok(PartIndex::HOME);
                self.mounts.push(Mount { id, folder: there.to_vec(), staged: Vec::new(), bytes: 0, part });
                self.mounts.len() - 1
            }
        };
        Ok(Seen { folder: folder.to_vec(), there: there.to_vec(), at })
    }

    /// Counts `bytes` more of a file at `path`, `total` of all files.
    ///
    /// # Errors
    ///
    /// No room on that mount, or more than one transfer may have.
    pub(crate) fn check_room(
        &mut self,
        root: &Root,
        options: &ReceiveOptions,
        dirs: &mut Dirs,
        path: &[u8],
        bytes: u64,
        total: u64,
    ) -> Result<(), Error> {
        let at = self.look(root, dirs, split(path).0)?.at;
        let Some(mount) = self.mounts.get_mut(at) else { return Ok(()) };
        mount.bytes = mount.bytes.saturating_add(bytes);
        let free = root.open_dir(&mount.folder).and_then(rustix::fs::fstatvfs);
        let free = free.map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
        options.check_room(mount.bytes, free, total, b"")
    }

    /// Checks, before there is a stage, that there is room for what is `needed`, bytes by entry,
    /// `total` in all. Mounts of one device share what is free there.
    ///
    /// # Errors
    ///
    /// No room on a mount, or more than one transfer may have.
    pub(crate) fn check_room_for_all(
        &self,
        root: &Root,
        needed: impl Iterator<Item = (EntryIndex, u64)>,
        total: u64,
        options: &ReceiveOptions,
    ) -> Result<(), Error> {
        let mut sums = vec![0u64; self.mounts.len()];
        for (index, size) in needed {
            if let Some(bytes) = self.mount_of(index).and_then(|at| sums.get_mut(at)) {
                *bytes = bytes.saturating_add(size);
            }
        }
        let mut devices: BTreeMap<u64, u64> = BTreeMap::new();
        for (mount, bytes) in self.mounts.iter().zip(sums) {
            let Ok(folder) = root.open_dir(&mount.folder) else { continue };
            let device = rustix::fs::fstat(&folder).map_or(0, |stat| stat.st_dev);
            let free = rustix::fs::fstatvfs(&folder);
            let free = free.map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
            let sum = devices.entry(device).or_default();
            *sum = sum.saturating_add(bytes);
            options.check_room(*sum, free, total, &mount.folder)?;
        }
        Ok(())
    }

    /// Makes a part of the stage on each mount on which temporary files are needed.
    pub(crate) fn stage(&mut self, root: &Root, stage: &mut Stage) -> Result<(), Error> {
        for mount in &mut self.mounts {
            if stage.is_home(mount.id) {
                continue;
            }
            // One that cannot be opened can be synced by way of the part that is there.
            if let Ok(folder) = root.open_dir(&mount.folder) {
                stage.note_mount(folder);
            }
            if !mount.staged.is_empty() {
                let part = stage.part_for(&mount.staged, mount.id);
                mount.part = part.map_err(|error| Refusal { code: error.code(), message: error.to_string() });
            }
        }
        Ok(())
    }

    /// Whether there is a mount on which no part can be.
    pub(crate) fn has_refused(&self) -> bool {
        self.mounts.iter().any(|mount| mount.part.is_err())
    }

    /// The part that the temporary file of an entry is in, or why there can be none.
    pub(crate) fn part_of(&self, index: EntryIndex) -> Result<PartIndex, &Refusal> {
        match self.mount_of(index).and_then(|at| self.mounts.get(at)) {
            Some(mount) => mount.part.as_ref().copied(),
            None => Ok(PartIndex::HOME),
        }
    }

    /// The place of an entry's mount in `mounts`.
    fn mount_of(&self, index: EntryIndex) -> Option<usize> {
        let after = self.runs.partition_point(|&(first, _)| first <= index);
        after.checked_sub(1).and_then(|at| self.runs.get(at)).map(|&(_, at)| at)
    }
}
