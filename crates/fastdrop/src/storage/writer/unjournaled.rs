//! Files whose contents are checked elsewhere, and that nobody continues: the journal does not hear
//! of them.

use super::{Ready, TransferWriter};
use crate::error::Error;
use crate::lock::lock;
use crate::storage::io::write_all_at;
use fastdrop_proto::fastdp::Code;
use fastdrop_proto::units::EntryIndex;
use std::fs::File;
use std::os::fd::AsFd;

impl TransferWriter {
    /// Opens the file of `index`, which has been written and not readied, to read it.
    ///
    /// # Errors
    ///
    /// The answer of the system.
    pub(crate) fn open(&self, index: EntryIndex) -> Result<File, Error> {
        let Some(entry) = self.manifest.get(index) else { return Err(no_entry()) };
        let opened = self.staged(index, &entry).and_then(|staged| self.stage.open_temp(staged.temp));
        opened.map(File::from).map_err(|errno| self.namer.error(&entry, errno))
    }

    /// Writes a whole file, and readies it for its name.
    ///
    /// # Errors
    ///
    /// The answer of the system.
    pub(crate) fn write_whole(&self, index: EntryIndex, bytes: &[u8]) -> Result<(), Error> {
        let Some(entry) = self.manifest.get(index) else { return Err(no_entry()) };
        let made = self.make_small(index, &entry, bytes);
        let temp = made.map_err(|errno| self.namer.error(&entry, errno))?;
        lock(&self.ready).push(Ready { entry: index, temp });
        Ok(())
    }

    /// Writes a part of a file.
    ///
    /// # Errors
    ///
    /// The answer of the system.
    pub(crate) fn write_part(&self, index: EntryIndex, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let Some(entry) = self.manifest.get(index) else { return Err(no_entry()) };
        let written = self.staged(index, &entry).and_then(|staged| {
            write_all_at(staged.fd.as_fd(), bytes, offset)?;
            self.stage.begin_writeback(staged.fd.as_fd(), offset, bytes.len() as u64);
            Ok(())
        });
        written.map_err(|errno| self.namer.error(&entry, errno))
    }

    /// Readies a file of which all parts have been written.
    ///
    /// # Errors
    ///
    /// The answer of the system.
    pub(crate) fn complete(&self, index: EntryIndex) -> Result<(), Error> {
        self.ready_staged(index)
    }
}

fn no_entry() -> Error {
    Error::failed(Code::Internal, "there is no such entry")
}
