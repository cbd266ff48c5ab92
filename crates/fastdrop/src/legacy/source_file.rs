//! A whole file that a client sends.

use crate::error::Error;
use crate::source::tree::SourceTree;
use crate::storage::io::read_exact_at;
use fastdrop_proto::fastdp::{Code, Entry};
use rustix::fs::Stat;
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A file to be sent, as it was when it was found.
#[derive(Debug)]
pub(crate) struct SourceFile {
    fd: OwnedFd,
    /// The name that it is to have there.
    pub(crate) name: Vec<u8>,
    pub(crate) size: u64,
    found: Stat,
}

impl SourceFile {
    pub(crate) fn open(tree: &SourceTree, entry: &Entry<'_>, name: Vec<u8>) -> Result<Self, Error> {
        let shown = || crate::shown(entry.path.as_bytes());
        let (root, path) = tree.locate(entry.path).ok_or_else(changed)?;
        let opened = root.open_file(&path).and_then(|fd| rustix::fs::fstat(&fd).map(|stat| (fd, stat)));
        let (fd, found) = opened.map_err(|errno| Error::system(shown(), errno))?;
        if found.st_size as u64 != entry.size() {
            return Err(changed());
        }
        Ok(Self { fd, name, size: entry.size(), found })
    }

    /// Takes what was made of a file, and belongs to nobody else.
    pub(crate) fn spooled(file: std::fs::File, name: Vec<u8>) -> Result<Self, Error> {
        let fd = OwnedFd::from(file);
        let found = rustix::fs::fstat(&fd).map_err(|errno| Error::system("a temporary file", errno))?;
        Ok(Self { fd, name, size: found.st_size as u64, found })
    }

    pub(crate) fn try_clone(&self) -> Result<Self, Error> {
        let fd = self.fd.try_clone().map_err(|error| self.failed(&error))?;
        Ok(Self { fd, name: self.name.clone(), size: self.size, found: self.found })
    }

    /// Reads it from its beginning.
    pub(crate) fn reader(&self) -> Result<std::fs::File, Error> {
        let mut file = std::fs::File::from(self.fd.try_clone().map_err(|error| self.failed(&error))?);
        std::io::Seek::rewind(&mut file).map_err(|error| self.failed(&error))?;
        Ok(file)
    }

    fn failed(&self, error: &std::io::Error) -> Error {
        let errno = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
        Error::system(crate::shown(&self.name), errno)
    }

    /// Seconds since 1970, at least 0.
    pub(crate) fn mtime(&self) -> u64 {
        self.found.st_mtime.try_into().unwrap_or(0)
    }

    /// The name as the text that most of these protocols want.
    pub(crate) fn name_text(&self) -> Result<&str, Error> {
        std::str::from_utf8(&self.name).map_err(|_| {
            Error::failed(
                Code::BadRequest,
                format!("{}: this protocol wants names in UTF-8", crate::shown(&self.name)),
            )
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// An error if the file is not as it was when it was found. Asked before the last byte goes, it
    /// leaves the receiver with something incomplete, and not with a mixture.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let now =
            rustix::fs::fstat(&self.fd).map_err(|errno| Error::system(crate::shown(&self.name), errno))?;
        let of = |stat: &Stat| {
            (stat.st_size, stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec)
        };
        if of(&now) == of(&self.found) { Ok(()) } else { Err(changed()) }
    }

    /// Reads a part of it.
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        match read_exact_at(&self.fd, buffer, offset) {
            Ok(()) => Ok(()),
            Err(Errno::NODATA) => Err(changed()),
            Err(errno) => Err(Error::system(crate::shown(&self.name), errno)),
        }
    }
}

pub(crate) fn changed() -> Error {
    Error::failed(Code::SourceChanged, "the source changed while it was sent")
}
