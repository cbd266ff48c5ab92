//! Times and permissions of files, folders and links.

use crate::storage::root::Root;
use fastdrop_proto::units::Mtime;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// The permissions that a new file gets from this process.
pub(crate) fn default_mode(is_dir: bool) -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let umask =
        status.lines().find_map(|line| u32::from_str_radix(line.strip_prefix("Umask:")?.trim(), 8).ok());
    (if is_dir { 0o777 } else { 0o666 }) & !umask.unwrap_or(0o022)
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

/// Reports whether this process may set times and permissions of something that another user owns.
pub(crate) fn may_change_all() -> bool {
    const CAP_FOWNER: u64 = 1 << 3;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    effective.is_some_and(|effective| effective & CAP_FOWNER != 0)
}

/// Gives the file at `path` beneath `root` its time and permissions, and nothing that a link leads
/// to.
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
