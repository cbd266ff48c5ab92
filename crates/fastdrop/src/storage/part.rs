//! One folder of a stage: the temporary files that are on one mount.

use crate::storage::folder::{hidden_path, make_folder};
use crate::storage::journal;
use crate::storage::journal::PartPlace;
use crate::storage::root::{MountId, Root, join, split};
use fastdrop_proto::fastdp::HIDDEN;
use rustix::fs::{Access, AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Parts of one stage.
pub(crate) const PARTS_MAX: usize = 64;
/// Where in the number of a temporary file the number of its part begins.
///
/// 2^26 temporary files are more than a manifest of 2 GiB can have entries.
const PART_SHIFT: u32 = 26;

/// The number of a part; 0 is at the root.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PartIndex(pub(super) u8);

impl PartIndex {
    /// The part at the root.
    pub(crate) const HOME: Self = Self(0);

    /// The part of a temporary file.
    pub(super) fn of(temp: u32) -> Self {
        Self((temp >> PART_SHIFT) as u8)
    }

    /// The number of the `ordinal`-th temporary file if it is in this
    /// part; None if there are no more numbers.
    pub(super) fn number(self, ordinal: u32) -> Option<u32> {
        (ordinal >> PART_SHIFT == 0).then_some(u32::from(self.0) << PART_SHIFT | ordinal)
    }
}

/// One folder of a stage.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) folder: OwnedFd,
    pub(super) place: PartPlace,
    pub(super) mount: MountId,
}

impl Part {
    /// Makes the folder `name` at `place`, if that is on `mount`.
    pub(super) fn make(root: &Root, place: PartPlace, name: &str, mount: MountId) -> Result<Self, Errno> {
        let base_fd = open_base(root, &place)?;
        if MountId::of(&base_fd)? != mount {
            return Err(Errno::XDEV);
        }
        let check = |folder: BorrowedFd<'_>| match MountId::of(folder)? == mount {
            true => Ok(()),
            // Something is mounted on `.fastdrop` itself.
            false => Err(Errno::XDEV),
        };
        let (folder, ()) = make_folder(base_fd.as_fd(), name, check)?;
        Ok(Self { folder, place, mount })
    }
}

/// Where a part for files in one of `folders` may be, the best place first: the top
/// of the mount, then beside the files.
///
/// The folders exist, and are on `mount`.
pub(super) fn places(root: &Root, folders: &[Vec<u8>], mount: MountId) -> Vec<PartPlace> {
    let mut bases: Vec<&[u8]> = Vec::new();
    let mut mount_len = 0;
    for folder in folders {
        let mut above = vec![&folder[..]];
        while let Some(&top) = above.last().filter(|top| !top.is_empty()) {
            let parent = split(top).0;
            if bases.contains(&parent) || MountId::of_folder(root, parent) != Ok(mount) {
                break;
            }
            above.push(parent);
        }
        if bases.is_empty() {
            mount_len = above.last().map_or(0, |top| top.len());
            // The top, then the folder itself and those above it.
            above.rotate_right(1);
        }
        for base in above {
            if !bases.contains(&base) {
                bases.push(base);
            }
        }
    }
    bases.into_iter().map(|base| PartPlace { base: base.to_vec(), mount_len }).collect()
}

/// Checks that this user may make something at `place`.
pub(super) fn check_writable(root: &Root, place: &PartPlace) -> Result<(), Errno> {
    let base = open_base(root, place)?;
    rustix::fs::accessat(base, c".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
}

/// Opens those of `places` in which the stage `name` has a folder.
pub(super) fn open_all(root: &Root, name: &str, places: &BTreeMap<u8, PartPlace>) -> BTreeMap<u8, OwnedFd> {
    let open = |place: &PartPlace| root.open_dir(&path(place, name)).ok();
    places.iter().filter_map(|(&part, place)| Some((part, open(place)?))).collect()
}

/// The folder that holds `.fastdrop`, which need not be readable.
fn open_base(root: &Root, place: &PartPlace) -> Result<OwnedFd, Errno> {
    root.open_at(&place.base, OFlags::DIRECTORY | OFlags::PATH, Mode::empty())
}

fn path(place: &PartPlace, name: &str) -> Vec<u8> {
    join(&place.base, &hidden_path(name))
}

/// Removes the folder `name` of a stage beneath `place`; whether nothing of it
/// is left, as far as anybody can tell.
pub(super) fn remove(root: &Root, name: &str, place: &PartPlace) -> bool {
    match root.open_dir(&path(place, name)) {
        Ok(folder) => {
            for (file, _) in crate::storage::root::names(folder.as_fd()).unwrap_or_default() {
                let _ = rustix::fs::unlinkat(&folder, &file[..], AtFlags::empty());
            }
            drop(folder);
            let Ok(base) = open_base(root, place) else { return false };
            let outer = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let Ok(outer) = rustix::fs::openat(&base, HIDDEN, outer, Mode::empty()) else { return false };
            let removed = rustix::fs::unlinkat(&outer, name, AtFlags::REMOVEDIR);
            // It stays while there is other unfinished work in it.
            let _ = rustix::fs::unlinkat(&base, HIDDEN, AtFlags::REMOVEDIR);
            matches!(removed, Ok(()) | Err(Errno::NOENT))
        }
        Err(Errno::NOENT | Errno::NOTDIR) => {
            // Somebody may have been killed between removing the one folder and the other.
            if let Ok(base) = open_base(root, place) {
                let _ = rustix::fs::unlinkat(&base, HIDDEN, AtFlags::REMOVEDIR);
            }
            !is_away(root, place)
        }
        Err(_) => false,
    }
}

/// Whether the mount that a part was on is not there now, but the place of it is.
fn is_away(root: &Root, place: &PartPlace) -> bool {
    let Some(top) = place.base.get(..place.mount_len).filter(|top| !top.is_empty()) else { return false };
    match (MountId::of_folder(root, top), MountId::of_folder(root, split(top).0)) {
        (Ok(top), Ok(above)) => top == above,
        _ => false,
    }
}

/// Files in `folder`, without a journal.
pub(super) fn temps(folder: BorrowedFd<'_>) -> Vec<Vec<u8>> {
    let names = crate::storage::root::names(folder).unwrap_or_default().into_iter().map(|(name, _)| name);
    names.filter(|name| journal::NAMES.iter().all(|journal| journal.as_bytes() != name)).collect()
}

/// Removes a stage with these `parts`, and its journal last: nothing that it names is forgotten.
pub(super) fn remove_folder(root: &Root, name: &str, parts: &BTreeMap<u8, PartPlace>) {
    let path = hidden_path(name);
    let removed = parts.values().filter(|place| remove(root, name, place)).count();
    if removed < parts.len() {
        return;
    }
    let Ok(folder) = root.open_dir(&path) else { return };
    for (name, _) in crate::storage::root::names(folder.as_fd()).unwrap_or_default() {
        let _ = rustix::fs::unlinkat(&folder, &name[..], AtFlags::empty());
    }
    let Ok(outer) = root.open_dir(HIDDEN) else { return };
    let _ = rustix::fs::unlinkat(&outer, name, AtFlags::REMOVEDIR);
    // It stays while there is other unfinished work in it.
    let _ = rustix::fs::unlinkat(root, HIDDEN, AtFlags::REMOVEDIR);
}
