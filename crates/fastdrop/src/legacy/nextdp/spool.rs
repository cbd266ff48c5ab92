//! Chunks that come before their chunk 0.

use crate::context::server::ServerContext;
use crate::legacy::nextdp::state::refusal;
use crate::storage::spool::Spool;
use fastdrop_proto::nextdp::Refusal;
use std::collections::BTreeMap;

/// Chunks that wait for chunk 0.
#[derive(Default)]
pub(super) struct EarlyChunks {
    pub(super) spool: Option<Spool>,
    /// Offset and size, by number.
    chunks: BTreeMap<u32, (u64, usize)>,
}

impl EarlyChunks {
    /// Keeps a chunk of somebody whom the gate has admitted to writing.
    pub(super) fn write(
        &mut self,
        number: u32,
        bytes: &[u8],
        context: &ServerContext,
    ) -> Result<(), Refusal> {
        let spool = match &mut self.spool {
            Some(spool) => spool,
            none => {
                let spool = Spool::create(&context.root, context.options.free_min).map_err(refusal)?;
                none.insert(spool)
            }
        };
        let at = spool.append(bytes).map_err(refusal)?;
        self.chunks.insert(number, (at, bytes.len()));
        Ok(())
    }

    pub(super) fn read(&self, number: u32) -> Result<Vec<u8>, Refusal> {
        let found = self.spool.as_ref().zip(self.chunks.get(&number));
        let Some((spool, &(at, len))) = found else {
            return Err(Refusal::new(500, "a spooled chunk is gone"));
        };
        spool.read(at, len).map_err(refusal)
    }

    /// Reads a chunk that is not kept any longer.
    pub(super) fn take(&mut self, number: u32) -> Result<Vec<u8>, Refusal> {
        let bytes = self.read(number)?;
        self.chunks.remove(&number);
        Ok(bytes)
    }
}
