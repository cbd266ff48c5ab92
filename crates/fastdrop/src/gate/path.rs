//! Paths beneath the served folder.

use crate::error::Error;
use fastdrop_proto::fastdp::{Code, RelPath};

/// A normalised path beneath the served folder: no `..`, no empty component, nothing of this
/// program's own. Only the gate makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServedPath {
    /// Without a slash at its end; empty for the served folder itself.
    bytes: Vec<u8>,
    contents: bool,
}

impl ServedPath {
    /// Parses a path as it came from the network. A slash at its end means what is in the folder.
    ///
    /// # Errors
    ///
    /// 403 for a path that is not normalised, or leads elsewhere.
    pub(super) fn parse(path: &[u8]) -> Result<Self, Error> {
        let contents = path.is_empty() || path.ends_with(b"/");
        let bytes = path.strip_suffix(b"/").unwrap_or(path);
        if !bytes.is_empty() {
            RelPath::new(bytes).map_err(|error| Error::failed(Code::Forbidden, error.to_string()))?;
        }
        Ok(Self { bytes: bytes.to_vec(), contents })
    }

    /// The path, without a slash at its end; empty for the served folder itself.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns true if it means what is in a folder, not the folder.
    pub(crate) fn means_contents(&self) -> bool {
        self.contents
    }

    /// The path as a request has it: with a slash at its end if it means what is in a folder.
    pub(crate) fn with_slash(&self) -> Vec<u8> {
        let slash: &[u8] = if self.contents && !self.bytes.is_empty() { b"/" } else { b"" };
        [&self.bytes, slash].concat()
    }
}

impl std::fmt::Display for ServedPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&crate::shown(&self.bytes))
    }
}
