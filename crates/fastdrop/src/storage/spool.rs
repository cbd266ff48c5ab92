//! Bytes that wait for the file they belong to, in a file without a name.

use crate::error::Error;
use crate::storage::io::{read_exact_at, write_all_at};
use crate::storage::root::Root;
use fastdrop_proto::fastdp::Code;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// A file without a name: nobody sees it, and it goes by itself.
#[derive(Debug)]
pub(crate) struct Spool {
    file: OwnedFd,
    free_min: u64,
    end: u64,
}

impl Spool {
    /// Makes one on the file system of `root`, of which `free_min` bytes stay free.
    ///
    /// # Errors
    ///
    /// The system fails.
    pub(crate) fn create(root: &Root, free_min: u64) -> Result<Self, Error> {
        // The folder that is open, whatever its path leads to by now.
        let folder = format!("/proc/self/fd/{}", root.as_fd().as_raw_fd());
        let file = tempfile::tempfile_in(folder).map_err(|error| match error.raw_os_error() {
            Some(errno) => Error::system("making a spool file", rustix::io::Errno::from_raw_os_error(errno)),
            None => Error::failed(Code::Internal, error.to_string()),
        })?;
        Ok(Self { file: file.into(), free_min, end: 0 })
    }

    /// Writes `bytes` behind all others, and returns where they begin.
    ///
    /// # Errors
    ///
    /// 507: less than the bound would stay free; or the system fails.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<u64, Error> {
        let failed = |errno| Error::system("spooling", errno);
        let (at, len) = (self.end, bytes.len() as u64);
        let stat = rustix::fs::fstatvfs(&self.file).map_err(failed)?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free.saturating_sub(self.free_min) < len {
            let why = format!("no space to spool: {len} bytes are needed and {free} are free");
            return Err(Error::failed(Code::NoSpace, why));
        }
        write_all_at(self.file.as_fd(), bytes, at).map_err(failed)?;
        self.end += len;
        Ok(at)
    }

    /// Reads `len` bytes that begin at `at`.
    ///
    /// # Errors
    ///
    /// They are not there, or the system fails.
    pub(crate) fn read(&self, at: u64, len: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; len];
        read_exact_at(&self.file, &mut bytes, at).map_err(|errno| Error::system("reading a spool", errno))?;
        Ok(bytes)
    }

    /// A spool in `file`, whatever that is.
    #[cfg(test)]
    pub(crate) fn of(file: OwnedFd) -> Self {
        Self { file, free_min: 0, end: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spooled_has_no_name_and_leaves_the_bound_free() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path()).unwrap();
        let mut spool = Spool::create(&root, 0).unwrap();
        assert_eq!((spool.append(b"ab").unwrap(), spool.append(b"cde").unwrap()), (0, 2));
        assert_eq!(spool.read(2, 3).unwrap(), b"cde");
        assert!(spool.read(4, 2).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let mut spool = Spool::create(&root, u64::MAX).unwrap();
        assert_eq!(spool.append(b"a").unwrap_err().code(), Code::NoSpace);
    }
}
