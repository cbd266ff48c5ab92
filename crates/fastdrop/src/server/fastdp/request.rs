//! The target of a get or a list, and entries that are left out of the answer.

use crate::error::Error;
use crate::server::fastdp::Serving;
use crate::storage::root::Root;
use fastdrop_proto::fastdp::{Capability, Code, LeftOutEntry};
use rustix::fs::FileType;

impl Serving<'_> {
    /// Refuses a client that would not learn that something is left out.
    pub(super) fn may_leave_out(&self, why: &str) -> Result<(), Error> {
        if self.open.has(Capability::LeftOut) {
            return Ok(());
        }
        Err(Error::failed(
            Code::Conflict,
            format!("not all of it can be had, and this client is too old to be told so: {why}"),
        ))
    }
}

pub(super) fn failed(path: &[u8], code: Code, reason: String) -> LeftOutEntry {
    LeftOutEntry { path: path.to_vec(), policy: false, directory: false, code, reason }
}

/// Looks at `path`, and tells whether it is a folder, which it must be if `contents` are asked for.
pub(super) fn look(root: &Root, path: &[u8], contents: bool) -> Result<(rustix::fs::Stat, bool), Error> {
    let missing = |what: &str| Error::failed(Code::NotFound, format!("{}: {what}", crate::shown(path)));
    let stat = match root.stat(path) {
        Err(rustix::io::Errno::NOTDIR) => return Err(missing("no such file or folder")),
        result => result.map_err(|errno| Error::system(crate::shown(path), errno))?,
    };
    let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    if contents && !is_dir { Err(missing("not a folder")) } else { Ok((stat, is_dir)) }
}
