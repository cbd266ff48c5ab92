//! Where the entries of a manifest go, and what is there already.

use crate::error::{Error, reason};
use crate::storage::journal::FileKey;
use crate::storage::root::{Dirs, Root, join, split};
use fastdrop_proto::fastdp::{Code, Entry, EntryKind, Existing, Manifest, Place, RelPath};
use fastdrop_proto::units::EntryIndex;
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::os::fd::AsFd;

/// Names that are tried when a file gets another one.
pub(crate) const NUMBERED_MAX: u32 = 10_000;

/// How paths of a manifest become paths beneath the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placement {
    /// The folder that it goes into.
    folder: Vec<u8>,
    /// What the one topmost component is called there.
    name: Option<Vec<u8>>,
}

impl Placement {
    /// Resolves where `path` means to put `manifest`, as `cp` would:
    /// into it if it is a folder, else as it.
    pub(crate) fn resolve(
        root: &Root,
        path: &[u8],
        place: Place,
        manifest: &Manifest,
    ) -> Result<Self, Error> {
        let as_folder = path.is_empty() || path.ends_with(b"/");
        let path = path.strip_suffix(b"/").unwrap_or(path);
        if !path.is_empty() {
            RelPath::new(path).map_err(|error| Error::failed(Code::Forbidden, error.to_string()))?;
        }
        let tops: BTreeSet<_> = manifest.iter().map(|(_, entry)| entry.path.top()).take(2).collect();
        let several = tops.len() > 1
            || manifest.iter().map(|(_, entry)| entry.path.top()).any(|top| !tops.contains(top));
        let is_tree = manifest.get(EntryIndex(0)).is_some_and(|entry| entry.kind == EntryKind::Directory);
        let into = match place {
            Place::Into => true,
            Place::As if several || path.is_empty() => {
                return Err(Error::failed(Code::BadRequest, "several sources cannot have one name"));
            }
            Place::As => false,
            Place::Auto if as_folder || several => true,
            // A folder that an unfinished transfer has begun under this very name is not a folder
            // to go into.
            Place::Auto if is_tree && crate::storage::recovery::is_named(root, path) => false,
            Place::Auto => match root.stat(path) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
                Err(Errno::NOENT) => false,
                Err(errno) => return Err(Error::system(crate::shown(path), errno)),
            },
        };
        Ok(if into {
            Self { folder: path.to_vec(), name: None }
        } else {
            let (folder, name) = split(path);
            Self { folder: folder.to_vec(), name: Some(name.to_vec()) }
        })
    }

    /// Where what is in an archive goes that was to go here.
    pub(crate) fn of_contents(&self, contents: &Manifest) -> Result<Self, Error> {
        let top = contents.get(EntryIndex(0)).map(|entry| entry.path.top());
        let several = contents.iter().any(|(_, entry)| Some(entry.path.top()) != top);
        if several && self.name.is_some() {
            return Err(Error::failed(Code::BadRequest, "several sources cannot have one name"));
        }
        Ok(self.clone())
    }

    /// The same for an archive that is kept: a name that it was given ends as that of an archive.
    pub(crate) fn ending_in(mut self, extension: &str) -> Self {
        if let Some(name) = self.name.as_mut().filter(|name| !name.ends_with(extension.as_bytes())) {
            name.extend_from_slice(extension.as_bytes());
        }
        self
    }

    /// Whether the manifest goes into a folder or has been given a name.
    pub(crate) fn kind(&self) -> Place {
        if self.name.is_some() { Place::As } else { Place::Into }
    }

    /// The path that the manifest has been given as a name.
    pub(crate) fn named(&self) -> Option<Vec<u8>> {
        self.name.as_ref().map(|name| join(&self.folder, name))
    }

    /// Where an entry goes.
    pub(crate) fn of(&self, path: RelPath<'_>) -> Vec<u8> {
        match &self.name {
            None => join(&self.folder, path.as_bytes()),
            Some(name) => join(&self.folder, &join(name, path.below_top().unwrap_or_default())),
        }
    }

    /// The entry of `manifest` that becomes the file `key`, if there is one.
    pub(crate) fn entry_of(&self, key: &FileKey, manifest: &Manifest) -> Option<EntryIndex> {
        let path = self.back(&key.path, manifest)?;
        let path = RelPath::new(&path).ok()?;
        let (index, entry) = manifest.find(path)?;
        let same = matches!(entry.kind, EntryKind::File { size } if size == key.size)
            && (entry.mtime.seconds, entry.mtime.nanos) == key.mtime;
        same.then_some(index)
    }

    /// The path in the manifest that goes to `path`, if one could: the reverse of [`Self::of`].
    pub(crate) fn back(&self, path: &[u8], manifest: &Manifest) -> Option<Vec<u8>> {
        let inner = match &self.folder[..] {
            b"" => path,
            folder => path.strip_prefix(folder)?.strip_prefix(b"/")?,
        };
        let Some(name) = &self.name else { return Some(inner.to_vec()) };
        let rest = inner.strip_prefix(&name[..])?;
        if !rest.is_empty() && rest[0] != b'/' {
            return None;
        }
        let top = manifest.get(EntryIndex(0))?.path.top().to_vec();
        Some([top, rest.to_vec()].concat())
    }
}

/// What becomes of an entry, given what stands at its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing is there.
    New,
    /// The same is there.
    Identical,
    /// The same is there, but for its time or permissions.
    Adjust,
    /// A file of the same size is there: its contents decide.
    Ask,
    /// Something else is there, and stays.
    Left,
    /// Something else is there, and is replaced when this is complete.
    Replace,
    /// Something else is there, and this gets another name.
    Renamed,
    /// Something else is there, and that is not allowed.
    Conflict(&'static str),
}

/// Which files of equal size have their contents compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contents {
    /// None: nobody could say what the other end has.
    Never,
    /// Those of another time.
    Touched,
    /// All.
    Always,
}

/// How an entry is compared with what is there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) existing: Existing,
    /// Whether times and permissions are kept.
    pub(crate) times: bool,
    pub(crate) mode: bool,
    pub(crate) contents: Contents,
}

impl Rules {
    /// For files of which nothing but the name is known.
    pub(crate) fn of_names(existing: Existing) -> Self {
        Self { existing, times: false, mode: false, contents: Contents::Never }
    }
}

/// Compares an entry with what is at its place.
pub(crate) fn judge(
    root: &Root,
    dirs: &mut Dirs,
    path: &[u8],
    entry: &Entry<'_>,
    rules: &Rules,
) -> Result<Verdict, Error> {
    let stat = match dirs.stat(root, path) {
        Ok(Some(stat)) => stat,
        Ok(None) => return Ok(Verdict::New),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return Ok(Verdict::Conflict("a file or link is where a folder must be"));
        }
        Err(Errno::NAMETOOLONG) => return Ok(Verdict::Conflict("the name is too long for the file system")),
        Err(errno) => return Err(Error::system(crate::shown(path), errno)),
    };
    let kind = FileType::from_raw_mode(stat.st_mode);
    let differs = match (entry.kind, kind) {
        (EntryKind::Directory, FileType::Directory) => return Ok(Verdict::Identical),
        (EntryKind::Directory, _) => return Ok(Verdict::Conflict("it is not a folder there")),
        (_, FileType::Directory) => return Ok(Verdict::Conflict("it is a folder there")),
        (_, FileType::RegularFile | FileType::Symlink) => same(root, dirs, path, entry, &stat, kind, rules)?,
        _ => return Ok(Verdict::Conflict("it is a device, pipe or socket there")),
    };
    Ok(match differs {
        Sameness::Differs => clash(root, dirs, path, entry, rules),
        Sameness::Unsure => Verdict::Ask,
        Sameness::Same if needs_adjusting(entry, &stat, rules) => Verdict::Adjust,
        Sameness::Same => Verdict::Identical,
    })
}

/// What becomes of an entry at whose place something else is.
pub(crate) fn clash(root: &Root, dirs: &mut Dirs, path: &[u8], entry: &Entry<'_>, rules: &Rules) -> Verdict {
    match rules.existing {
        Existing::Skip => Verdict::Left,
        Existing::Error => Verdict::Conflict(DIFFERS),
        Existing::Rename => {
            // An earlier attempt may have put it there already, under its new name.
            let mut numbers = (1..NUMBERED_MAX).map(|n| numbered(path, n));
            let brought = numbers.find_map(|path| match dirs.stat(root, &path) {
                Ok(Some(stat)) => {
                    let kind = FileType::from_raw_mode(stat.st_mode);
                    let same = same(root, dirs, &path, entry, &stat, kind, rules);
                    same.ok().filter(|&same| same == Sameness::Same).map(|_| true)
                }
                _ => Some(false),
            });
            if brought == Some(true) { Verdict::Identical } else { Verdict::Renamed }
        }
        Existing::Overwrite => Verdict::Replace,
    }
}

/// Why something is in the way that `--existing` could get out of it.
pub(crate) const DIFFERS: &str = "it exists and differs";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sameness {
    Same,
    /// Only the contents tell.
    Unsure,
    Differs,
}

/// Whether what of an entry is kept is not yet so.
pub(crate) fn needs_adjusting(entry: &Entry<'_>, stat: &Stat, rules: &Rules) -> bool {
    let mode = matches!(entry.kind, EntryKind::File { .. }) && rules.mode;
    (rules.times && !same_time(entry, stat)) || (mode && stat.st_mode & 0o777 != entry.mode)
}

fn same_time(entry: &Entry<'_>, stat: &Stat) -> bool {
    stat.st_mtime == entry.mtime.seconds && stat.st_mtime_nsec == u64::from(entry.mtime.nanos)
}

fn same(
    root: &Root,
    dirs: &mut Dirs,
    path: &[u8],
    entry: &Entry<'_>,
    stat: &Stat,
    kind: FileType,
    rules: &Rules,
) -> Result<Sameness, Error> {
    let known = match (entry.kind, kind) {
        (EntryKind::File { size }, FileType::RegularFile) if stat.st_size as u64 != size => false,
        (EntryKind::File { size }, FileType::RegularFile) => {
            let same_time = rules.times && same_time(entry, stat);
            match rules.contents {
                Contents::Always if size > 0 => return Ok(Sameness::Unsure),
                Contents::Touched if size > 0 && !same_time => return Ok(Sameness::Unsure),
                Contents::Never => same_time,
                // Two empty files, or the same size and time.
                Contents::Always | Contents::Touched => true,
            }
        }
        (EntryKind::Link { target }, FileType::Symlink) => {
            let (folder, name) = split(path);
            let system =
                |errno: Errno| Error::system(format!("{}: {}", crate::shown(path), reason(errno)), errno);
            let Some(folder) = dirs.find(root, folder).map_err(system)? else { return Ok(Sameness::Differs) };
            rustix::fs::readlinkat(folder.as_fd(), name, Vec::new()).map_err(system)?.as_bytes() == target
        }
        _ => false,
    };
    Ok(if known { Sameness::Same } else { Sameness::Differs })
}

/// `name` with ` (n)` before its extension.
pub(crate) fn numbered(path: &[u8], n: u32) -> Vec<u8> {
    let (folder, name) = split(path);
    let dot = name.iter().rposition(|&byte| byte == b'.').filter(|&at| at > 0).unwrap_or(name.len());
    let number = format!(" ({n})");
    // A name that would become too long gives up the end of its stem.
    let stem = &name[..dot.min(255usize.saturating_sub(number.len() + name.len() - dot))];
    join(folder, &[stem, number.as_bytes(), &name[dot..]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastdrop_proto::fastdp::ManifestBuilder;
    use fastdrop_proto::units::Mtime;

    fn manifest(paths: &[&str]) -> Manifest {
        let mut builder = ManifestBuilder::new(100);
        for path in paths {
            let path = RelPath::new(path.as_bytes()).unwrap();
            let kind = if path.as_bytes().contains(&b'.') {
                EntryKind::File { size: 1 }
            } else {
                EntryKind::Directory
            };
            builder.push(&Entry { path, kind, mode: 0o644, mtime: Mtime::default() }).unwrap();
        }
        builder.finish().unwrap()
    }

    #[test]
    fn things_go_where_cp_would_put_them() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("folder")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        let place = |path: &str, manifest: &Manifest| {
            let placement = Placement::resolve(&root, path.as_bytes(), Place::Auto, manifest).unwrap();
            let places: Vec<_> = manifest
                .iter()
                .map(|(_, entry)| {
                    let there = placement.of(entry.path);
                    assert_eq!(placement.back(&there, manifest).as_deref(), Some(entry.path.as_bytes()));
                    String::from_utf8(there).unwrap()
                })
                .collect();
            places.join(" ")
        };
        let (file, tree, two) = (manifest(&["x.iso"]), manifest(&["t", "t/x.c"]), manifest(&["a.c", "b.c"]));
        assert_eq!(place("", &file), "x.iso");
        assert_eq!(place("folder", &file), "folder/x.iso");
        assert_eq!(place("new", &file), "new");
        assert_eq!(place("new/", &file), "new/x.iso");
        assert_eq!(place("folder/y.iso", &file), "folder/y.iso");
        assert_eq!(place("folder", &tree), "folder/t folder/t/x.c");
        assert_eq!(place("new", &tree), "new new/x.c");
        assert_eq!(place("new", &two), "new/a.c new/b.c");
        assert!(Placement::resolve(&root, b"../x", Place::Auto, &file).is_err());
        assert!(Placement::resolve(&root, b"x", Place::As, &two).is_err());
    }

    #[test]
    fn a_numbered_name_keeps_its_extension_and_its_length() {
        assert_eq!(numbered(b"a/b.tar", 2), b"a/b (2).tar");
        assert_eq!(numbered(b".profile", 1), b".profile (1)");
        assert_eq!(numbered(&[b'x'; 255], 1).len(), 255);
    }
}
