//! The way from an entry of a manifest to its file.

use crate::error::Error;
use crate::storage::root::{Root, join, names, split};
use fastdrop_proto::fastdp::{Code, HIDDEN, RelPath};
use rustix::io::Errno;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// One topmost component of a manifest, and where it is.
#[derive(Debug)]
pub(super) struct Top {
    pub(super) name: Vec<u8>,
    pub(super) root: Arc<Root>,
    /// Its path beneath `root`; empty for the root itself.
    pub(super) inner: Vec<u8>,
}

/// Where the entries of a manifest are read from.
#[derive(Debug, Default)]
pub(crate) struct SourceTree {
    /// Ascending by name.
    pub(super) tops: Vec<Top>,
}

impl SourceTree {
    /// Adds what the user named: a file or folder, or with a slash at its end what is in the
    /// folder. True if that was meant.
    pub(crate) fn add_path(&mut self, path: &Path, follow: bool) -> Result<bool, Error> {
        let shown = crate::shown(path.as_os_str().as_bytes());
        let system = |errno| Error::system(shown.clone(), errno);
        let open = |path: &Path| {
            let root = if follow { Root::open_following(path) } else { Root::open(path) };
            root.map(Arc::new).map_err(system)
        };
        // A link that the user names is meant to be followed; so are those on the way to it.
        let full = std::fs::canonicalize(path)
            .map_err(|error| system(error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)))?;
        if path.as_os_str().as_bytes().ends_with(b"/") {
            return self.add_contents(open(&full)?, b"").map(|()| true);
        }
        let name = path.file_name().or(full.file_name()).map(|name| name.as_bytes().to_vec());
        let Some(name) = name else {
            return self.add_contents(open(&full)?, b"").map(|()| true);
        };
        if full.is_dir() {
            return self.add(Top { name, root: open(&full)?, inner: Vec::new() }).map(|()| false);
        }
        let inner = full.file_name().unwrap_or_default().as_bytes().to_vec();
        self.add(Top { name, root: open(full.parent().unwrap_or(Path::new("/")))?, inner }).map(|()| false)
    }

    /// Adds what is at `inner` beneath `root`, under its own name.
    pub(crate) fn add_inner(&mut self, root: Arc<Root>, inner: &[u8]) -> Result<(), Error> {
        self.add(Top { name: split(inner).1.to_vec(), root, inner: inner.to_vec() })
    }

    /// Adds everything in the folder at `inner` beneath `root`.
    pub(crate) fn add_contents(&mut self, root: Arc<Root>, inner: &[u8]) -> Result<(), Error> {
        let system = |errno| Error::system(crate::shown(inner), errno);
        let dir = root.open_dir(inner).map_err(system)?;
        for (name, _) in names(dir.as_fd()).map_err(system)? {
            if name != HIDDEN {
                self.add(Top { inner: join(inner, &name), name, root: Arc::clone(&root) })?;
            }
        }
        Ok(())
    }

    fn add(&mut self, top: Top) -> Result<(), Error> {
        match self.tops.binary_search_by(|other| other.name.cmp(&top.name)) {
            Ok(_) => Err(Error::failed(
                Code::Conflict,
                format!("two sources are called {}", crate::shown(&top.name)),
            )),
            Err(at) => {
                self.tops.insert(at, top);
                Ok(())
            }
        }
    }

    /// The file of an entry: a folder, and the path beneath it.
    pub(crate) fn locate(&self, path: RelPath<'_>) -> Option<(&Arc<Root>, Vec<u8>)> {
        let at = self.tops.binary_search_by(|top| top.name[..].cmp(path.top())).ok()?;
        let top = &self.tops[at];
        Some((&top.root, join(&top.inner, path.below_top().unwrap_or_default())))
    }

    /// Returns true if there is something at `path` of a manifest.
    pub(crate) fn has(&self, path: &[u8]) -> bool {
        let found = RelPath::new(path).ok().and_then(|path| self.locate(path));
        found.is_some_and(|(root, inner)| root.stat(&inner).is_ok())
    }
}
