//! What a payload goes through on its way: a hash of it, a spool for what came too
//! early, and the file that comes out.

use crate::codec::decode::{DecodeError, fill};
use crate::error::Error;
use crate::storage::io::read_exact_at;
use crate::storage::io::write_all_at;
use crate::storage::single::{StagedFile, WriteBehind};
use fastdrop_proto::fastdp::Code;
use fastdrop_proto::fastdp::v1::Header;
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

/// Most bytes that a payload of 1.1.0 is decoded to: so many times its own, which is what
/// deflate can reach, and this beside.
const RATIO_MAX: u64 = 1032;
const RATIO_FREE: u64 = 64 << 20;

/// A SHA-256 of the beginning of a payload.
pub(crate) struct Hash {
    state: Sha256,
    bytes: u64,
    wanted: bool,
}

impl Hash {
    pub(crate) fn new(header: &Header) -> Self {
        Self { state: Sha256::new(), bytes: 0, wanted: header.checksum.is_some() }
    }

    /// How many bytes it covers.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Goes on with bytes that follow.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        if self.wanted {
            self.state.update(bytes);
        }
        self.bytes += bytes.len() as u64;
    }

    pub(crate) fn compare(self, expected: [u8; 32]) -> Result<(), Error> {
        if self.state.finalize()[..] == expected {
            Ok(())
        } else {
            Err(Error::failed(Code::Integrity, "the checksum of what arrived is not the one in the header"))
        }
    }
}

/// A file in which chunks wait, each at the place of its number.
pub(crate) struct Spool<'a> {
    incoming: &'a StagedFile,
    file: Option<OwnedFd>,
}

impl<'a> Spool<'a> {
    pub(crate) fn new(incoming: &'a StagedFile) -> Self {
        Self { incoming, file: None }
    }

    pub(crate) fn file(&mut self) -> Result<&OwnedFd, Error> {
        if self.file.is_none() {
            self.file = Some(self.incoming.spool()?);
        }
        self.file.as_ref().ok_or_else(|| Error::failed(Code::Internal, "no spool file"))
    }

    pub(crate) fn write(&mut self, bytes: &[u8], at: u64) -> Result<(), Error> {
        write_all_at(self.file()?.as_fd(), bytes, at).map_err(spool_error)
    }

    pub(crate) fn read(&mut self, buffer: &mut [u8], at: u64) -> Result<(), Error> {
        read_exact_at(self.file()?, buffer, at).map_err(spool_error)
    }
}

fn spool_error(errno: Errno) -> Error {
    Error::system("in a spool file", errno)
}

pub(crate) fn io_error(error: std::io::Error) -> Error {
    Error::system("in a spool file", error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
}

/// The file that comes out of a payload.
pub(crate) struct Decoded<'b> {
    behind: &'b mut WriteBehind,
    bytes: u64,
    exact: Option<u64>,
    max: u64,
}

impl<'b> Decoded<'b> {
    pub(crate) fn new(
        header: &Header,
        payload: u64,
        behind: &'b mut WriteBehind,
        size_max: Option<u64>,
    ) -> Self {
        let exact = header.file_size();
        let max = exact.unwrap_or_else(|| payload.saturating_mul(RATIO_MAX).saturating_add(RATIO_FREE));
        Self { behind, bytes: 0, exact, max: max.min(size_max.unwrap_or(u64::MAX)) }
    }

    /// Writes all that `reader` has, within the bound.
    pub(crate) fn take_all(&mut self, reader: &mut dyn Read) -> Result<(), DecodeError> {
        loop {
            let mut buffer = self.behind.buffer().map_err(DecodeError::Failed)?;
            let count = fill(&mut &mut *reader, &mut buffer)?;
            if count == 0 {
                self.behind.give_back(buffer);
                return Ok(());
            }
            if count as u64 > self.max - self.bytes {
                return Err(DecodeError::Failed(Error::failed(
                    Code::OverLimit,
                    "the payload decodes to more than it may",
                )));
            }
            self.behind.write(buffer, count, self.bytes).map_err(DecodeError::Failed)?;
            self.bytes += count as u64;
        }
    }

    pub(crate) fn finish(self) -> Result<(), Error> {
        match self.exact {
            Some(size) if size != self.bytes => {
                let why = format!("the payload decodes to {} bytes instead of {size}", self.bytes);
                Err(Error::failed(Code::Integrity, why))
            }
            _ => Ok(()),
        }
    }
}
