//! The folders in which stages live, and the names in them.

use crate::storage::journal;
use fastdrop_proto::fastdp::HIDDEN;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub(super) fn temp_name(folder: &str, temp: u32) -> String {
    // The folder's name is random; half of it makes the file's unguessable too.
    format!("{}.{temp}", &folder[..16.min(folder.len())])
}

pub(super) fn hidden_path(name: &str) -> Vec<u8> {
    [HIDDEN, b"/", name.as_bytes()].concat()
}

/// Makes `.fastdrop/name` beneath `base`, and in it what `fill` makes. Leaves nothing behind if it
/// fails.
pub(super) fn make_folder<T>(
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
