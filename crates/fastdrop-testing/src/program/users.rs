//! Users that are not root.

use crate::words::tool;
use std::ffi::OsString;
use std::path::Path;

/// Runs as an ordinary user, whom permissions stop; needs root.
pub fn as_nobody() -> Vec<OsString> {
    args!["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
}

/// Makes that user the owner of all that is at `path`.
pub fn give_to_nobody(path: &Path) {
    tool("chown", args!["-R", "65534:65534", path]);
}

/// Drops root's right to read and write everything, so that modes mean something.
pub fn as_if_not_root() -> Vec<OsString> {
    if rustix::process::geteuid().is_root() {
        args!["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    } else {
        Vec::new()
    }
}
