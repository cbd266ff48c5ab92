//! Finding what there is to send: from paths to a manifest and the way back from an entry to its
//! file.

use crate::error::{Error, code_of, reason};
use crate::observe::Observer;
use crate::source::filter::{Choice, Filter};
use crate::source::identity::Identities;
use crate::source::tree::SourceTree;
use crate::source::uncarried::Uncarried;
use crate::stop::Stop;
use crate::storage::root::{Root, names, split};
use fastdrop_proto::fastdp::{
    Code, Entry, EntryKind, LEFT_OUT_NAMED_MAX, LONG_PATH_MAX, LeftOutEntry, Links, Manifest,
    ManifestBuilder, ManifestError, PathError, RelPath,
};
use fastdrop_proto::units::{EntryIndex, Mtime};
use rustix::fs::{AtFlags, FileType, Stat};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What a walk found.
#[derive(Debug, Default)]
pub(crate) struct Walked {
    pub(crate) manifest: Arc<Manifest>,
    /// Of the manifest's entries.
    pub(crate) identities: Identities,
    /// Entries that are not in the manifest: those that cannot be sent, and those that are not by
    /// policy.
    pub(crate) left_out: Vec<LeftOutEntry>,
    /// How many more cannot be sent than are named.
    pub(crate) unnamed: u64,
    /// A sentence on what a transfer does not carry of the entries; empty if there is nothing to
    /// say, or nobody asked.
    pub(crate) uncarried: String,
}

impl Walked {
    /// The first entry that cannot be sent.
    pub(crate) fn first_failed(&self) -> Option<&LeftOutEntry> {
        self.left_out.iter().find(|entry| !entry.policy)
    }

    /// Takes entries out of the manifest, which cannot be sent for `reason`.
    pub(crate) fn leave_out(&mut self, entries: &BTreeSet<EntryIndex>, reason: &str) -> Result<(), Error> {
        for &entry in entries {
            let Some(entry) = self.manifest.get(entry) else { continue };
            let path = entry.path.as_bytes().to_vec();
            let entry = LeftOutEntry {
                path,
                policy: false,
                directory: false,
                code: Code::Unsupported,
                reason: reason.into(),
            };
            self.note(entry);
        }
        let manifest = self.manifest.without(entries);
        self.manifest =
            Arc::new(manifest.map_err(|error| Error::failed(Code::BadRequest, error.to_string()))?);
        self.identities.remove(entries);
        Ok(())
    }

    fn note(&mut self, mut entry: LeftOutEntry) {
        // One that is too long is known by its beginning.
        entry.path.truncate(LONG_PATH_MAX);
        if self.left_out.len() < LEFT_OUT_NAMED_MAX {
            self.left_out.push(entry);
        } else {
            self.unnamed += u64::from(!entry.policy);
        }
    }
}

/// How to walk.
#[derive(Debug, Clone)]
pub(crate) struct WalkOptions {
    pub(crate) links: Links,
    pub(crate) filter: Filter,
    pub(crate) entries_max: u32,
    /// Looks for what is not carried, which costs a call an entry.
    pub(crate) tells_uncarried: bool,
    /// Whether the receiver takes paths of more than 4,096 bytes.
    pub(crate) long_paths: bool,
}

/// Folders on the way to where the walk is that are kept open; those above are opened again when it
/// comes back to them.
const OPEN_MAX: usize = 32;
/// The reason for which an entry is not sent to a receiver without the capability `long-paths`.
const LONG_PATH: &str = "a path of more than 4,096 bytes, which the other end does not take";

/// Walks everything in `tree`; `stream` is the name of an entry of unknown size to end with.
pub(crate) fn walk(
    tree: &SourceTree,
    stream: Option<&[u8]>,
    options: &WalkOptions,
    observer: &Observer,
    stop: &Stop,
) -> Result<Walked, Error> {
    let mut walk = Walk {
        options,
        observer,
        stop,
        builder: ManifestBuilder::new(options.entries_max).with_long_paths(options.long_paths),
        walked: Walked::default(),
        entered: Vec::new(),
        uncarried: Uncarried::default(),
        privileged: rustix::process::geteuid().is_root(),
    };
    for top in &tree.tops {
        let stat = match top.root.stat(&top.inner) {
            Ok(stat) => stat,
            Err(errno) => {
                walk.fail(&top.name, false, errno);
                continue;
            }
        };
        let (folder, name) = split(&top.inner);
        let parent = if name.is_empty() { Ok(None) } else { top.root.open_dir(folder).map(Some) };
        match parent {
            Ok(parent) => {
                let at = parent.as_ref().map(|fd| (fd.as_fd(), name));
                walk.all(&top.root, &top.inner, at, &top.name, stat)?;
            }
            Err(errno) => walk.fail(&top.name, false, errno),
        }
    }
    if let Some(name) = stream {
        let path = RelPath::new(name).map_err(|error| Error::failed(Code::BadRequest, error.to_string()))?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let mtime = Mtime { seconds: now.as_secs() as i64, nanos: now.subsec_nanos() };
        walk.push(&Entry { path, kind: EntryKind::Stream, mode: 0o644, mtime }, None)?;
    }
    walk.finish()
}

struct Walk<'a> {
    options: &'a WalkOptions,
    observer: &'a Observer,
    stop: &'a Stop,
    builder: ManifestBuilder,
    walked: Walked,
    /// Folders above, of which nothing has been taken yet, and which are not taken for themselves.
    entered: Vec<Entered>,
    uncarried: Uncarried,
    privileged: bool,
}

/// A folder that is taken if something in it is.
struct Entered {
    path: Vec<u8>,
    mode: u32,
    mtime: Mtime,
}

/// A folder in which the walk is, or beneath which.
struct Folder {
    /// How much of the walk's paths is this folder's: of that beneath the root, and of that in the
    /// manifest.
    inner_len: usize,
    path_len: usize,
    /// Closed while the walk is far beneath it.
    dir: Option<OwnedFd>,
    /// Device and inode, to notice a link that leads back up.
    id: (u64, u64),
    /// The names in it that are still to come.
    names: std::vec::IntoIter<(Vec<u8>, FileType)>,
    /// How many folders above have been entered without being taken.
    entered: usize,
}

impl Walk<'_> {
    /// Ends the walk. Only now it is known of each link whether it rests on a directory that is
    /// sent.
    fn finish(mut self) -> Result<Walked, Error> {
        self.walked.uncarried = self.uncarried.to_string();
        let ended = self.builder.finish_without_escaping();
        let (manifest, escaping) =
            ended.map_err(|error| Error::failed(Code::BadRequest, error.to_string()))?;
        for path in escaping.values() {
            self.walked.note(outside(path, self.options.links == Links::Safe));
        }
        self.observer.files_total.fetch_sub(escaping.len() as u64, Ordering::Relaxed);
        self.walked.identities.remove(&escaping.into_keys().collect());
        Ok(Walked { manifest: Arc::new(manifest), ..self.walked })
    }

    fn push(&mut self, entry: &Entry<'_>, stat: Option<&Stat>) -> Result<(), Error> {
        let too_large = |error: ManifestError| Error::failed(Code::OverLimit, error.to_string());
        for folder in std::mem::take(&mut self.entered) {
            let path = RelPath::new(&folder.path);
            let path = path.map_err(|error| Error::failed(Code::BadRequest, error.to_string()))?;
            let kind = EntryKind::Directory;
            let folder = Entry { path, kind, mode: folder.mode, mtime: folder.mtime };
            self.builder.push(&folder).map_err(too_large)?;
            self.walked.identities.push(None);
        }
        self.builder.push(entry).map_err(too_large)?;
        self.walked.identities.push(stat);
        if !matches!(entry.kind, EntryKind::Directory) {
            self.observer.files_total.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn fail(&mut self, path: &[u8], directory: bool, errno: Errno) {
        self.refuse(path, directory, code_of(errno), reason(errno));
    }

    /// Notes an entry that cannot be sent.
    fn refuse(&mut self, path: &[u8], directory: bool, code: Code, reason: impl Into<String>) {
        let reason = reason.into();
        self.walked.note(LeftOutEntry { path: path.to_vec(), policy: false, directory, code, reason });
    }

    /// Adds what is at `inner` beneath `root`, as `path`, and all that is in it. `at` is its folder
    /// and name there, for calls that are cheaper so.
    fn all(
        &mut self,
        root: &Arc<Root>,
        inner: &[u8],
        at: Option<(BorrowedFd<'_>, &[u8])>,
        path: &[u8],
        stat: Stat,
    ) -> Result<(), Error> {
        let (mut inner, mut path) = (inner.to_vec(), path.to_vec());
        let mut folders = Vec::from_iter(self.visit(root, &inner, at, &path, stat, &[])?);
        while let Some(mut folder) = folders.pop() {
            inner.truncate(folder.inner_len);
            path.truncate(folder.path_len);
            let Some((name, _)) = folder.names.next() else {
                self.entered.truncate(folder.entered);
                continue;
            };
            let dir = match folder.dir.take().map_or_else(|| root.open_dir(&inner), Ok) {
                Ok(dir) => dir,
                Err(errno) => {
                    self.fail(&path, true, errno);
                    self.entered.truncate(folder.entered);
                    continue;
                }
            };
            if !inner.is_empty() {
                inner.push(b'/');
            }
            inner.extend_from_slice(&name);
            path.push(b'/');
            path.extend_from_slice(&name);
            let flags = if root.follows() { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
            let stat = match rustix::fs::statat(&dir, &name[..], flags) {
                // A link to nothing, when following.
                Err(Errno::NOENT) if root.follows() => Err(Errno::NOENT),
                // When links must stay beneath the root, the lookup has to say whether they do.
                Ok(_) if root.follows() => root.stat(&inner),
                result => result,
            };
            folders.push(folder);
            let beneath = match stat {
                Ok(stat) => self.visit(root, &inner, Some((dir.as_fd(), &name)), &path, stat, &folders)?,
                Err(errno) => {
                    self.fail(&path, false, errno);
                    None
                }
            };
            if let Some(folder) = folders.last_mut() {
                folder.dir = Some(dir);
            }
            folders.extend(beneath);
            if let Some(far) = folders.len().checked_sub(OPEN_MAX + 1).and_then(|at| folders.get_mut(at)) {
                far.dir = None;
            }
        }
        Ok(())
    }

    /// Adds what is at `inner` beneath `root`, as `path`; what is in it is still to be walked then.
    /// `above` are the folders on the way.
    fn visit(
        &mut self,
        root: &Arc<Root>,
        inner: &[u8],
        at: Option<(BorrowedFd<'_>, &[u8])>,
        path: &[u8],
        stat: Stat,
        above: &[Folder],
    ) -> Result<Option<Folder>, Error> {
        if self.stop.is_stopped() {
            return Err(Error::Interrupted);
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        let directory = kind == FileType::Directory;
        let checked = match RelPath::new(path) {
            Ok(checked) => checked,
            // Unfinished work of this program is nobody's to send.
            Err(PathError::Hidden) => return Ok(None),
            Err(error) => {
                self.refuse(path, directory, Code::Forbidden, error.to_string());
                return Ok(None);
            }
        };
        let choice = self.options.filter.choose(checked, directory);
        if choice == Choice::Leave {
            return Ok(None);
        }
        if checked.is_long() && !self.options.long_paths {
            self.refuse(path, directory, Code::Forbidden, LONG_PATH);
            return Ok(None);
        }
        if self.options.tells_uncarried
            && let Some((folder, name)) = at
        {
            self.uncarried.note(folder, name, &stat);
        }
        let mtime = Mtime { seconds: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 };
        let mut entry =
            Entry { path: checked, kind: EntryKind::Directory, mode: stat.st_mode & 0o777, mtime };
        match kind {
            FileType::RegularFile => {
                if !self.privileged
                    && let Some((folder, name)) = at
                {
                    let readable =
                        rustix::fs::accessat(folder, name, rustix::fs::Access::READ_OK, AtFlags::EACCESS);
                    if let Err(errno @ Errno::ACCESS) = readable {
                        self.fail(path, false, errno);
                        return Ok(None);
                    }
                }
                entry.kind = EntryKind::File { size: stat.st_size as u64 };
                self.push(&entry, Some(&stat))?;
            }
            FileType::Directory => {
                let id = (stat.st_dev, stat.st_ino);
                if above.iter().any(|folder| folder.id == id) {
                    self.refuse(
                        path,
                        true,
                        Code::Unsupported,
                        "a link that leads back up, which cannot be followed",
                    );
                    return Ok(None);
                }
                let dir = match root.open_dir(inner) {
                    Ok(dir) => dir,
                    Err(errno) => {
                        self.fail(path, true, errno);
                        return Ok(None);
                    }
                };
                let entered = self.entered.len();
                match choice {
                    Choice::Take => self.push(&entry, None)?,
                    _ => self.entered.push(Entered { path: path.to_vec(), mode: entry.mode, mtime }),
                }
                match names(dir.as_fd()) {
                    Ok(names) => {
                        let (inner_len, path_len) = (inner.len(), path.len());
                        let (dir, names) = (Some(dir), names.into_iter());
                        return Ok(Some(Folder { inner_len, path_len, dir, id, names, entered }));
                    }
                    Err(errno) => {
                        self.fail(path, true, errno);
                        self.entered.truncate(entered);
                    }
                }
            }
            FileType::Symlink => self.link(root, inner, path, &mut entry)?,
            _ => self.refuse(path, false, Code::Unsupported, "neither a file nor a folder nor a link"),
        }
        Ok(None)
    }

    fn link(
        &mut self,
        root: &Arc<Root>,
        inner: &[u8],
        path: &[u8],
        entry: &mut Entry<'_>,
    ) -> Result<(), Error> {
        if self.options.links == Links::Skip {
            return Ok(());
        }
        let (folder, name) = split(inner);
        let target =
            root.open_dir(folder).and_then(|folder| rustix::fs::readlinkat(&folder, name, Vec::new()));
        let target = match target {
            Ok(target) => target.into_bytes(),
            Err(errno) => {
                self.fail(path, false, errno);
                return Ok(());
            }
        };
        let link = Entry { kind: EntryKind::Link { target: &target }, ..*entry };
        if self.builder.takes_link(&link) {
            return self.push(&link, None);
        }
        self.walked.note(outside(path, self.options.links == Links::Safe));
        Ok(())
    }
}

/// A link that leads outside of the folder in which it would arrive.
fn outside(path: &[u8], policy: bool) -> LeftOutEntry {
    let reason = "a link that leads outside of the folder in which it arrives";
    let reason = if policy { format!("{reason}; it was left out") } else { reason.into() };
    LeftOutEntry { path: path.to_vec(), policy, directory: false, code: Code::Unsupported, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_ascends_and_names_what_it_cannot_send() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("t/a")).unwrap();
        std::fs::create_dir_all(at("t/.fastdrop")).unwrap();
        std::fs::write(at("t/a/x"), "1").unwrap();
        std::fs::write(at("t/a!"), "22").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", at("t/out")).unwrap();
        std::os::unix::fs::symlink("a/x", at("t/in")).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(at("t/socket")).unwrap();
        let mut tree = SourceTree::default();
        tree.add_path(&at("t"), false).unwrap();
        let options = WalkOptions {
            links: Links::Copy,
            filter: Filter::default(),
            entries_max: 100,
            long_paths: false,
            tells_uncarried: false,
        };
        let walked = walk(&tree, None, &options, &Observer::default(), &Stop::new()).unwrap();
        let paths: Vec<_> = walked.manifest.iter().map(|(_, entry)| entry.path.as_bytes().to_vec()).collect();
        assert_eq!(paths, [&b"t"[..], b"t/a", b"t/a/x", b"t/a!", b"t/in"]);
        let failed: Vec<_> = walked.left_out.iter().map(|entry| (&entry.path[..], entry.policy)).collect();
        assert_eq!(failed, [(&b"t/out"[..], false), (b"t/socket", false)]);
        let (root, inner) = tree.locate(RelPath::new(b"t/a/x").unwrap()).unwrap();
        assert!(root.open_file(&inner).is_ok());
    }
}
