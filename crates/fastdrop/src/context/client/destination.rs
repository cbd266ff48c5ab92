//! The place that a get writes to.

use crate::error::Error;
use crate::storage::output::OutputSink;
use crate::storage::recovery::is_named;
use crate::storage::root::Root;
use rustix::io::Errno;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Where a get goes.
pub enum Destination {
    /// Into this folder if it is one, else as this name.
    Path(PathBuf),
    /// One file, in order.
    Output(Box<dyn Write + Send>),
}

impl std::fmt::Debug for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Destination::Path(path) => f.debug_tuple("Path").field(path).finish(),
            Destination::Output(_) => f.write_str("Output"),
        }
    }
}

/// The place that a get writes to, found once for all attempts.
#[derive(Clone)]
pub(crate) enum GetPlace {
    /// A folder, and a path in it; the path has several components if folders are missing.
    Files {
        root: Arc<Root>,
        path: Vec<u8>,
        /// The destination, if the folder that it is in has to be made.
        missing: Option<PathBuf>,
    },
    /// One file, in order.
    Output(Arc<OutputSink>),
}

impl GetPlace {
    /// The folder beside the destination, and the destination's name in it; or the destination, if
    /// it has no name of its own there. Nothing is made.
    pub(crate) fn files(path: &Path) -> Result<Self, Error> {
        let bytes = path.as_os_str().as_bytes();
        let system = |errno| Error::system(crate::shown(bytes), errno);
        let open = |path: &Path| Root::open(path).map(Arc::new).map_err(system);
        if let Ok(full) = std::fs::canonicalize(path) {
            use std::os::unix::fs::MetadataExt;
            let metadata = std::fs::metadata(&full).map_err(|error| system(errno_of(&error)))?;
            let parent = full.parent().unwrap_or(Path::new("/"));
            let device = std::fs::metadata(parent).map(|parent| parent.dev()).unwrap_or(0);
            let dots = matches!(
                path.components().next_back(),
                None | Some(Component::CurDir | Component::ParentDir)
            );
            let name = full.file_name().unwrap_or_default().as_bytes().to_vec();
            // A folder that an unfinished get has begun under this name is that get's,
            // not one to go into. Files cannot be moved between file systems, so
            // unfinished ones are on the destination's.
            let begun =
                || device == metadata.dev() && Root::open(parent).is_ok_and(|root| is_named(&root, &name));
            if metadata.is_dir() && (dots || !begun()) {
                return Ok(GetPlace::Files { root: open(&full)?, path: Vec::new(), missing: None });
            }
            return Ok(GetPlace::Files { root: open(parent)?, path: name, missing: None });
        }
        let mut names = vec![path.file_name().unwrap_or_default().as_bytes()];
        let mut folder = parent_of(path);
        let root = loop {
            match (Root::open(folder), folder.components().next_back()) {
                (Err(Errno::NOENT), Some(Component::Normal(name))) => {
                    names.push(name.as_bytes());
                    folder = parent_of(folder);
                }
                (root, _) => break root.map_err(system)?,
            }
        };
        let missing = (names.len() > 1).then(|| path.to_path_buf());
        names.reverse();
        let mut path = names.join(&b'/');
        if bytes.ends_with(b"/") {
            path.push(b'/');
        }
        Ok(GetPlace::Files { root: Arc::new(root), path, missing })
    }

    /// The same place once the folders above it have been made.
    pub(crate) fn with_parents(&self) -> Result<Self, Error> {
        let GetPlace::Files { missing: Some(path), .. } = self else { return Ok(self.clone()) };
        let folder = parent_of(path);
        std::fs::create_dir_all(folder)
            .map_err(|error| Error::system(crate::shown(folder.as_os_str().as_bytes()), errno_of(&error)))?;
        Self::files(path)
    }
}

/// The folder that a path is in; the current one for a mere name.
fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_folders_are_part_of_the_path_and_made_when_they_are_needed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("there")).unwrap();
        for (to, path, made) in [
            ("there", "", ""),
            ("new", "new", "new"),
            ("new/", "new/", "new/"),
            ("there/new", "new", "new"),
            ("a/b/new", "a/b/new", "new"),
            ("there/c/new/", "c/new/", "new/"),
            ("there/../d/./new", "d/new", "new"),
        ] {
            let place = GetPlace::files(&dir.path().join(to)).unwrap();
            let path_of = |place: &GetPlace| match place {
                GetPlace::Files { path, .. } => String::from_utf8(path.clone()).unwrap(),
                GetPlace::Output(_) => unreachable!(),
            };
            assert_eq!(path_of(&place), path, "{to}");
            assert_eq!(path_of(&place.with_parents().unwrap()), made, "{to}");
            assert_eq!(dir.path().join(to).exists(), to == "there", "{to}: only what is above is made");
        }
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(GetPlace::files(&dir.path().join("file/new")).is_err());
        assert!(GetPlace::files(&dir.path().join("no/../new")).is_err());
    }
}
