//! Chunks that come before their chunk 0.

use crate::context::server::ServerContext;
use crate::error::Error;
use crate::legacy::nextdp::state::refusal;
use crate::storage::io::{read_exact_at, write_all_at};
use fastdrop_proto::nextdp::Refusal;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

/// Chunks that wait for chunk 0, in a file without a name.
#[derive(Default)]
pub(super) struct Spool {
    file: Option<OwnedFd>,
    end: u64,
    /// Offset and size, by number.
    pub(super) chunks: BTreeMap<u32, (u64, usize)>,
}

impl Spool {
    pub(super) fn write(
        &mut self,
        number: u32,
        bytes: &[u8],
        context: &ServerContext,
    ) -> Result<(), Refusal> {
        let failed = |_| Refusal::new(507, "no room for chunks that come before chunk 0");
        if self.file.is_none() {
            // Without a name: nobody sees it, and it goes by itself.
            self.file = Some(tempfile::tempfile_in(&context.options.folder).map_err(failed)?.into());
        }
        let Some(file) = &self.file else { return Err(Refusal::new(500, "no spool file")) };
        write_all_at(file.as_fd(), bytes, self.end)
            .map_err(|errno| refusal(Error::system("spooling", errno)))?;
        self.chunks.insert(number, (self.end, bytes.len()));
        self.end += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn read(&self, number: u32) -> Result<Vec<u8>, Refusal> {
        let lost = || Refusal::new(500, "a spooled chunk is gone");
        let &(offset, size) = self.chunks.get(&number).ok_or_else(lost)?;
        let mut bytes = vec![0; size];
        read_exact_at(self.file.as_ref().ok_or_else(lost)?, &mut bytes, offset).map_err(|_| lost())?;
        Ok(bytes)
    }
}
