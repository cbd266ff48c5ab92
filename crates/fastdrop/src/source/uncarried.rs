//! Properties of files that no transfer carries, counted so that they can be told.

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Counts of what a walk met and a transfer leaves behind.
#[derive(Debug, Default)]
pub(super) struct Uncarried {
    /// Files with several names, each of which becomes a file of its own.
    linked: u64,
    /// Files and folders with extended attributes or access control lists.
    attributed: u64,
}

impl Uncarried {
    /// Looks at what is called `name` in `folder`.
    pub(super) fn note(&mut self, folder: BorrowedFd<'_>, name: &[u8], stat: &Stat) {
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        self.linked += u64::from(is_file && stat.st_nlink > 1);
        self.attributed += u64::from(has_attributes(folder, name));
    }
}

/// Reports whether something has extended attributes but the label that a
/// security module gives to every file.
fn has_attributes(folder: BorrowedFd<'_>, name: &[u8]) -> bool {
    let path = [format!("/proc/self/fd/{}/", folder.as_fd().as_raw_fd()).as_bytes(), name].concat();
    let mut names = [0; 4096];
    match rustix::fs::llistxattr(path, &mut names) {
        Ok(len) => {
            names[..len].split(|&byte| byte == 0).any(|name| !matches!(name, b"" | b"security.selinux"))
        }
        Err(errno) => errno == Errno::RANGE,
    }
}

impl fmt::Display for Uncarried {
    /// Writes what there was, empty if there was nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |count: u64| if count == 1 { "1 file".to_owned() } else { format!("{count} files") };
        if self.linked > 0 {
            write!(f, "hard links are not carried: {} will be single", count(self.linked))?;
        }
        if self.linked > 0 && self.attributed > 0 {
            write!(f, "; ")?;
        }
        if self.attributed > 0 {
            write!(
                f,
                "extended attributes and access control lists are not carried: {} had some",
                count(self.attributed)
            )?;
        }
        Ok(())
    }
}
