//! One file, in order, into something that cannot seek.

use crate::error::Error;
use crate::lock::lock;
use crate::storage::journal::FileKey;
use fastdrop_proto::checksum::{Algorithm, Checksum};
use fastdrop_proto::fastdp::{Code, Entry, EntryKind, Manifest};
use fastdrop_proto::units::ChunkIndex;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

/// One file, written in order to something that cannot seek.
pub(crate) struct OutputSink {
    state: Mutex<OutputState>,
}

struct OutputState {
    to: Box<dyn Write + Send>,
    /// The file that is being written: none but this one can be gone on with.
    file: Option<OutputFile>,
    /// Checksums of the chunks that have been written.
    written: Vec<Checksum>,
    /// Chunks that came too early.
    early: BTreeMap<u32, (Checksum, Vec<u8>)>,
}

/// A file on its way to an output, and how it is cut and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OutputFile {
    pub(crate) key: FileKey,
    /// What the sender calls it; 0 if it does not.
    pub(crate) identity: u64,
    pub(crate) one_chunk: u32,
    pub(crate) algorithm: Algorithm,
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

    /// Whether an earlier attempt has written something.
    pub(crate) fn has_begun(&self) -> bool {
        !lock(&self.state).written.is_empty()
    }

    /// Notes what the sender calls the file, which a later attempt has to find again.
    pub(crate) fn set_identity(&self, identity: u64) {
        if let Some(file) = &mut lock(&self.state).file {
            file.identity = identity;
        }
    }

    /// Checksums of what an earlier attempt has written of `file`, and whether the sender still has
    /// the same file; if not, or if nobody knows, it may have changed.
    ///
    /// # Errors
    ///
    /// 410 if something else has been written.
    pub(crate) fn begin(&self, file: OutputFile) -> Result<(Vec<Checksum>, bool), Error> {
        let mut state = lock(&self.state);
        // What came too early and was not written comes again.
        state.early.clear();
        let same = match &state.file {
            Some(earlier) if !state.written.is_empty() => {
                if (OutputFile { identity: file.identity, ..earlier.clone() }) != file {
                    return Err(changed());
                }
                file.identity != 0 && earlier.identity == file.identity
            }
            _ => true,
        };
        state.file = Some(file);
        Ok((state.written.clone(), same))
    }

    /// Writes a chunk, or keeps it until those before it have come.
    ///
    /// # Errors
    ///
    /// 410 for another version of what has been written, and what the output says.
    pub(crate) fn write(&self, chunk: ChunkIndex, checksum: Checksum, bytes: &[u8]) -> Result<(), Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        if chunk.at() < state.written.len() {
            return Err(changed());
        }
        if chunk.at() != state.written.len() {
            state.early.insert(chunk.0, (checksum, bytes.to_vec()));
            return Ok(());
        }
        state.to.write_all(bytes).map_err(output_error)?;
        state.written.push(checksum);
        while let Some((checksum, bytes)) = state.early.remove(&(state.written.len() as u32)) {
            state.to.write_all(&bytes).map_err(output_error)?;
            state.written.push(checksum);
        }
        Ok(())
    }

    /// Has everything that was written go on to whoever reads it.
    pub(crate) fn flush(&self) -> Result<(), Error> {
        lock(&self.state).to.flush().map_err(output_error)
    }
}

/// Checks that a manifest can go to an output: it is one file.
///
/// # Errors
///
/// 409 if it is not.
pub(crate) fn expect_one_file(manifest: &Manifest) -> Result<(), Error> {
    let is_file = |entry: Entry<'_>| matches!(entry.kind, EntryKind::File { .. });
    if manifest.len() == 1 && manifest.iter().all(|(_, entry)| is_file(entry)) {
        return Ok(());
    }
    Err(Error::failed(Code::Conflict, "only one file can go to standard output"))
}

/// The beginning that has been written is not that of the file that is there now.
pub(crate) fn changed() -> Error {
    Error::failed(
        Code::SourceChanged,
        "the file changed while it was fetched, and its beginning is written already",
    )
}

fn output_error(error: std::io::Error) -> Error {
    Error::system(
        "writing to standard output",
        error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error),
    )
}
