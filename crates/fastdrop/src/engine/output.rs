//! One file, in order, into something that cannot seek.

use super::lock;
use crate::error::Error;
use crate::journal::FileKey;
use fastdrop_proto::checksum::{Algorithm, Checksum};
use fastdrop_proto::units::ChunkIndex;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

/// One file, written in order to something that cannot seek.
pub(crate) struct OutputSink {
    pub(super) state: Mutex<OutputState>,
}

pub(super) struct OutputState {
    pub(super) to: Box<dyn Write + Send>,
    /// Which file is being written: none but this one can be gone on with.
    pub(super) file: Option<(FileKey, u32, Algorithm)>,
    /// Checksums of the chunks that have been written.
    pub(super) written: Vec<Checksum>,
    /// Chunks that came too early.
    pub(super) early: BTreeMap<u32, (Checksum, Vec<u8>)>,
}

impl std::fmt::Debug for OutputSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OutputSink")
    }
}

impl OutputSink {
    pub(crate) fn new(to: Box<dyn Write + Send>) -> Self {
        Self {
            state: Mutex::new(OutputState { to, file: None, written: Vec::new(), early: BTreeMap::new() }),
        }
    }

    /// Checksums of what an earlier attempt has written of `file`; an error if it has written something else.
    pub(super) fn begin(&self, file: (FileKey, u32, Algorithm)) -> Result<Vec<Checksum>, Error> {
        let mut state = lock(&self.state);
        // What came too early and was not written comes again.
        state.early.clear();
        if !state.written.is_empty() && state.file.as_ref() != Some(&file) {
            return Err(Error::with_code(
                410,
                "the file changed while it was fetched, and its beginning is written already",
            ));
        }
        state.file = Some(file);
        Ok(state.written.clone())
    }

    pub(super) fn write(&self, chunk: ChunkIndex, checksum: Checksum, bytes: &[u8]) -> std::io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        if chunk.at() != state.written.len() {
            state.early.insert(chunk.0, (checksum, bytes.to_vec()));
            return Ok(());
        }
        state.to.write_all(bytes)?;
        state.written.push(checksum);
        while let Some((checksum, bytes)) = state.early.remove(&(state.written.len() as u32)) {
            state.to.write_all(&bytes)?;
            state.written.push(checksum);
        }
        Ok(())
    }
}

pub(super) fn output_error(error: std::io::Error) -> Error {
    Error::system(
        "writing to standard output",
        error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error),
    )
}
