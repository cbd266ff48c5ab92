//! Finding out the effect of a transfer, without doing it.

use crate::error::{Error, code_of, reason};
use crate::storage::attributes::may_change_all;
use crate::storage::mounts::Mounts;
use crate::storage::placement::Placement;
use crate::storage::root::{Dirs, Root, split};
use crate::transfer::compare::{Compared, Places, compare, skip_unwanted};
use crate::transfer::prepare::Prepare;
use crate::transfer::report::shown_failures;
use fastdrop_proto::fastdp::{Code, Control, Done, EntryKind, Failed, Receiver, SkipReason};
use fastdrop_proto::units::EntryIndex;
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The effect that a transfer would have.
pub(crate) struct Preview {
    /// SKIP and NEED.
    pub(crate) answer: Vec<Control>,
    /// Entries that would come.
    pub(crate) needed: BTreeSet<EntryIndex>,
    /// Files that are there, or would be left alone; how many of them differ.
    pub(crate) skipped: u64,
    pub(crate) left: u64,
    /// The last word of a receiver that brought nothing: what could not be brought.
    pub(crate) done: Done,
}

impl Prepare<'_> {
    /// Gives the answer that [`Prepare::run`] would, without changing anything.
    ///
    /// # Errors
    ///
    /// Those of [`Prepare::run`].
    pub(crate) fn preview(self) -> Result<Preview, Error> {
        let Self { manifest, table, algorithm, root, placement, options, filter, stop, mut inquiry, .. } =
            self;
        let mut proto = Receiver::new(Arc::clone(&manifest), table, algorithm);
        if options.size_max.is_some_and(|max| manifest.bytes() > max) {
            return Err(Error::failed(Code::OverLimit, "more bytes than one transfer may have here"));
        }
        let mut mounts = Mounts::default();
        let mut compared = Compared::default();
        if options.unpack.is_none() {
            skip_unwanted(&mut proto, &filter);
            let places = Places { mounts: &mut mounts, lend: &mut |_| Ok(false) };
            compared = compare(&mut proto, &root, &placement, &options, inquiry.as_mut(), places, &stop)?;
        }
        let Compared { mut failed, mut skipped, left, adjust, .. } = compared;
        failed.extend(unwritable(&root, &placement, &mut proto)?);
        if options.times || options.mode {
            let unowned = unowned(&root, &placement, &proto, &adjust);
            // What was there, and does not become what was asked for, has not been skipped.
            skipped -= adjust.iter().filter(|index| unowned.contains_key(index)).count() as u64;
            failed.extend(unowned);
        }
        let sizes = manifest.iter().filter(|&(index, _)| proto.is_needed(index));
        let sizes = sizes.map(|(index, entry)| (index, entry.size()));
        mounts.check_room_for_all(&root, sizes, manifest.bytes(), &options)?;
        let answer = proto.answer();
        let needed = (0..manifest.len()).map(EntryIndex).filter(|&index| proto.is_needed(index)).collect();
        let (failed, failed_count) = (shown_failures(failed.values()), failed.len() as u64);
        let done = Done { failed, failed_count, durability: options.durability, ..Done::default() };
        Ok(Preview { answer, needed, skipped, left, done })
    }
}

/// Skips the entries that could not be made, because the folder that they would be in is somebody
/// else's, and returns them.
///
/// # Errors
///
/// The root is one of those folders: no transfer could begin.
fn unwritable(
    root: &Root,
    placement: &Placement,
    proto: &mut Receiver,
) -> Result<BTreeMap<EntryIndex, Failed>, Error> {
    use rustix::fs::{Access, AtFlags, accessat, fstat};
    let denied = |dirs: &mut Dirs, folder: &[u8]| {
        let mut there = folder;
        let fd = loop {
            match dirs.find(root, there) {
                Ok(Some(fd)) => break fd,
                Ok(None) if !there.is_empty() => there = split(there).0,
                Ok(None) | Err(_) => return None,
            }
        };
        let own = fstat(fd).is_ok_and(|stat| stat.st_uid == rustix::process::geteuid().as_raw());
        match accessat(fd, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
            // The permission of a folder of one's own is lent.
            Err(errno) if !own || errno != Errno::ACCESS || there.is_empty() => Some(errno),
            _ => None,
        }
    };
    let mut dirs = Dirs::default();
    if let Some(errno) = denied(&mut dirs, b"") {
        return Err(Error::system("making a folder for unfinished files", errno));
    }
    let manifest = Arc::clone(proto.manifest());
    let mut failed = BTreeMap::new();
    let mut last: Option<(Vec<u8>, Option<Errno>)> = None;
    for (index, entry) in manifest.iter() {
        if !proto.is_needed(index) {
            continue;
        }
        let path = placement.of(entry.path);
        if entry.kind == EntryKind::Directory && matches!(dirs.find(root, &path), Ok(Some(_))) {
            continue;
        }
        let folder = split(&path).0;
        let errno = match &last {
            Some((known, errno)) if known == folder => *errno,
            _ => last.insert((folder.to_vec(), denied(&mut dirs, folder))).1,
        };
        if let Some(errno) = errno {
            proto.skip(index, SkipReason::Policy);
            let path = entry.path.as_bytes().to_vec();
            failed.insert(index, Failed { path, code: code_of(errno), message: reason(errno) });
        }
    }
    Ok(failed)
}

/// Entries that are there already, belong to somebody else, and could not be given their times and
/// permissions: folders that other things come into, and those in `adjust`.
fn unowned(
    root: &Root,
    placement: &Placement,
    proto: &Receiver,
    adjust: &[EntryIndex],
) -> BTreeMap<EntryIndex, Failed> {
    let mut failed = BTreeMap::new();
    if may_change_all() {
        return failed;
    }
    let own = rustix::process::geteuid().as_raw();
    let manifest = proto.manifest();
    let folders = manifest
        .iter()
        .filter(|(index, entry)| entry.kind == EntryKind::Directory && proto.is_needed(*index));
    let folders = folders.map(|(index, _)| (index, ""));
    for (index, what) in
        folders.chain(adjust.iter().map(|&index| (index, "setting its time and permissions: ")))
    {
        let Some(entry) = manifest.get(index) else { continue };
        if root.stat(&placement.of(entry.path)).is_ok_and(|there| there.st_uid != own) {
            let path = entry.path.as_bytes().to_vec();
            let message = format!("{what}{}", reason(Errno::PERM));
            failed.insert(index, Failed { path, code: code_of(Errno::PERM), message });
        }
    }
    failed
}
