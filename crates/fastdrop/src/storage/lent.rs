//! Permissions that folders are lent for the time of a transfer, so
//! that it can change what is in them.

use crate::storage::root::Root;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};

/// The owner's permissions on a folder whose contents are to change.
const TO_CHANGE: u32 = 0o700;
/// The owner's permission on a folder through which a path leads.
const TO_PASS: u32 = 0o100;

/// A folder that lacks permissions, and that its owner, who is this user, could give them to.
#[derive(Debug)]
pub(super) struct Lendable {
    fd: OwnedFd,
    pub(super) path: Vec<u8>,
    /// Its permissions.
    pub(super) mode: u32,
    lacking: u32,
}

impl Lendable {
    /// The first folder on the way to `folder`, or `folder` itself,
    /// that could be lent what it lacks.
    pub(super) fn find(root: &Root, folder: &[u8]) -> Result<Option<Self>, Errno> {
        let slashes = folder.iter().enumerate().filter(|&(_, &byte)| byte == b'/').map(|(at, _)| at);
        for end in slashes.chain([folder.len()]) {
            let path = &folder[..end];
            let (fd, mode) = match look(root, path) {
                Ok(Some(found)) => found,
                Ok(None) => return Ok(None),
                Err(errno) => return Err(errno),
            };
            let needed = if end == folder.len() { TO_CHANGE } else { TO_PASS };
            let lacking = needed & !mode;
            if lacking != 0 && rustix::fs::fstat(&fd)?.st_uid == rustix::process::geteuid().as_raw() {
                return Ok(Some(Self { fd, path: path.to_vec(), mode, lacking }));
            }
        }
        Ok(None)
    }

    /// Gives it what it lacks.
    pub(super) fn lend(&self) -> Result<(), Errno> {
        set_mode(&self.fd, self.mode | self.lacking)?;
        // Some file systems say yes and change nothing.
        let lacking = self.lacking & !rustix::fs::fstat(&self.fd)?.st_mode;
        if lacking == 0 { Ok(()) } else { Err(Errno::ACCESS) }
    }
}

/// Gives folders back the permissions that they had, the innermost first, unless somebody has
/// changed them meanwhile. Returns true if none is left that could not be looked at or changed.
pub(super) fn give_back(root: &Root, lent: &BTreeMap<Vec<u8>, u32>) -> bool {
    let mut folders: Vec<_> = lent.iter().collect();
    folders.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
    let mut all = true;
    for (path, &mode) in folders {
        let is_lent =
            |now: u32| [mode | TO_CHANGE, mode | TO_PASS].iter().any(|lent| (lent ^ now) & 0o777 == 0);
        let given = match look(root, path) {
            Ok(Some((fd, now))) if is_lent(now) => set_mode(&fd, mode),
            Ok(_) => Ok(()),
            Err(errno) => Err(errno),
        };
        if let Err(errno) = given {
            let path = crate::shown(path);
            tracing::warn!(path, %errno, "a folder keeps permissions that it was lent");
            all = false;
        }
    }
    all
}

/// The folder at `path` and its permissions; None if there is none.
fn look(root: &Root, path: &[u8]) -> Result<Option<(OwnedFd, u32)>, Errno> {
    match root.open_at(path, OFlags::DIRECTORY | OFlags::PATH, Mode::empty()) {
        Ok(fd) => {
            let mode = rustix::fs::fstat(&fd)?.st_mode & 0o7777;
            Ok(Some((fd, mode)))
        }
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Sets the permissions of an open folder, which need not be readable.
fn set_mode(fd: &OwnedFd, mode: u32) -> Result<(), Errno> {
    rustix::fs::chmod(format!("/proc/self/fd/{}", fd.as_raw_fd()), Mode::from_raw_mode(mode))
}
