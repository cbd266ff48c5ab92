//! A list.

use crate::error::{Error, code_of, reason};
use crate::gate::action::Action;
use crate::random::random;
use crate::server::fastdp::Serving;
use crate::server::fastdp::request::{failed, look};
use crate::storage::root::Root;
use crate::transfer::manifest::offer;
use fastdrop_proto::fastdp::{
    Code, Entry, EntryKind, Header, LeftOut, LeftOutEntry, Manifest, ManifestBuilder, PathError, RelPath,
};
use fastdrop_proto::units::{ChunkSize, Mtime, TransferId};
use rustix::fs::{AtFlags, FileType};
use std::os::fd::{AsFd, BorrowedFd};

impl Serving<'_> {
    pub(super) fn list(&self) -> Result<(), Error> {
        let (manifest, left_out) = match self.listing() {
            Ok(listing) => listing,
            Err(error) => return self.refuse(error),
        };
        self.answer(&Header::new(ChunkSize::COMMON, 0, manifest.bytes(), &crate::shown(&self.open.path)))?;
        self.send_grant(&self.grant(TransferId(random()?), 1, fastdrop_proto::fastdp::Place::Auto))?;
        offer(self.connection, &manifest, LeftOut::frames(left_out, 0))?;
        self.connection.finish_writing();
        Ok(())
    }

    /// Lists a folder, or the file that the path names, and what of it cannot be listed.
    fn listing(&self) -> Result<(Manifest, Vec<LeftOutEntry>), Error> {
        let root: &Root = &self.context.root;
        let path = self.context.gate.admit(&self.who, Action::List, &self.open.path)?;
        let (path, contents) = (path.as_bytes(), path.means_contents());
        let system = |errno| Error::system(crate::shown(path), errno);
        let bad =
            |error: fastdrop_proto::fastdp::ManifestError| Error::failed(Code::OverLimit, error.to_string());
        let mut builder = ManifestBuilder::for_list(self.context.options.entries_max);
        let mut left_out = Vec::new();
        let (stat, is_dir) = look(root, path, contents)?;
        let mut add = |folder: BorrowedFd<'_>, name: &[u8], stat: &rustix::fs::Stat| {
            match listed(folder, name, stat) {
                Ok(listed) => builder.push(&listed.entry()).map_err(bad)?,
                Err(NotListed::Hidden) => {}
                Err(NotListed::Failed(code, reason)) => left_out.push(failed(name, code, reason)),
            }
            Ok::<_, Error>(())
        };
        if !is_dir {
            let (folder, name) = crate::storage::root::split(path);
            let folder = root.open_dir(folder).map_err(system)?;
            add(folder.as_fd(), name, &stat)?;
        } else {
            let dir = root.open_dir(path).map_err(system)?;
            let mut unreadable = Vec::new();
            for (name, _) in crate::storage::root::names(dir.as_fd()).map_err(system)? {
                match rustix::fs::statat(&dir, &name[..], AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => add(dir.as_fd(), &name, &stat)?,
                    // It is gone by now.
                    Err(rustix::io::Errno::NOENT) => {}
                    Err(errno) => unreadable.push(failed(&name, code_of(errno), reason(errno))),
                }
            }
            left_out.append(&mut unreadable);
        }
        if let Some(failed) = left_out.first() {
            self.may_leave_out(&format!("{}: {}", crate::shown(&failed.path), failed.reason))?;
        }
        Ok((builder.finish().map_err(bad)?, left_out))
    }
}

/// One line of a list.
struct ListedEntry<'a> {
    path: RelPath<'a>,
    mode: u32,
    mtime: Mtime,
    kind: ListedKind,
}

enum ListedKind {
    File(u64),
    Directory,
    Link(Vec<u8>),
}

impl ListedEntry<'_> {
    fn entry(&self) -> Entry<'_> {
        let kind = match &self.kind {
            ListedKind::File(size) => EntryKind::File { size: *size },
            ListedKind::Directory => EntryKind::Directory,
            ListedKind::Link(target) => EntryKind::Link { target },
        };
        Entry { path: self.path, kind, mode: self.mode, mtime: self.mtime }
    }
}

/// Why something in a folder is not in its list.
enum NotListed {
    /// Unfinished work of this program.
    Hidden,
    /// It cannot be, with a code of section 11.
    Failed(Code, String),
}

fn listed<'a>(
    folder: BorrowedFd<'_>,
    name: &'a [u8],
    stat: &rustix::fs::Stat,
) -> Result<ListedEntry<'a>, NotListed> {
    let path = RelPath::new(name).map_err(|error| match error {
        PathError::Hidden => NotListed::Hidden,
        error => NotListed::Failed(Code::Forbidden, error.to_string()),
    })?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => ListedKind::File(stat.st_size as u64),
        FileType::Directory => ListedKind::Directory,
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(folder, name, Vec::new());
            let target = target.map_err(|errno| NotListed::Failed(code_of(errno), reason(errno)))?;
            ListedKind::Link(target.into_bytes())
        }
        _ => {
            return Err(NotListed::Failed(
                Code::Unsupported,
                "neither a file nor a folder nor a link".into(),
            ));
        }
    };
    let mtime = Mtime { seconds: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 };
    Ok(ListedEntry { path, mode: stat.st_mode & 0o777, mtime, kind })
}
