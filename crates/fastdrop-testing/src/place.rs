//! Places of a test's own: temporary folders and mounts.

use crate::wait::eventually;
use crate::words::tool;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;
use tempfile::TempDir;

/// A temporary folder in memory where the machine has room for that, since killing a process does
/// not test fsync.
pub fn scratch() -> TempDir {
    static BASE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let base = BASE.get_or_init(|| {
        let memory = Path::new("/dev/shm");
        let out = Command::new("df").args(["--output=avail", "-B1"]).arg(memory).output().ok()?;
        let free: u64 = String::from_utf8_lossy(&out.stdout).lines().nth(1)?.trim().parse().ok()?;
        (free > 4 << 30 && TempDir::new_in(memory).is_ok()).then(|| memory.to_path_buf())
    });
    match base {
        Some(base) => tempfile::Builder::new().prefix("fastdrop-test-").tempdir_in(base).unwrap(),
        None => on_disk(),
    }
}

/// A temporary folder where temporary folders usually are.
pub fn on_disk() -> TempDir {
    tempfile::Builder::new().prefix("fastdrop-test-").tempdir().unwrap()
}

/// A mounted folder, unmounted when dropped.
pub struct Mount {
    dir: TempDir,
}

impl Mount {
    /// A small file system in memory, with the given mount options, such as `size=8m`.
    pub fn tmpfs(options: &str) -> Self {
        let dir = on_disk();
        tool("mount", args!["-t", "tmpfs", "-o", options, "tmpfs", dir.path()]);
        Self { dir }
    }

    /// `source` once more, read-only.
    pub fn read_only(source: &Path) -> Self {
        let dir = on_disk();
        tool("mount", args!["--bind", source, dir.path()]);
        let mount = Self { dir };
        tool("mount", args!["-o", "remount,ro,bind", mount.path()]);
        mount
    }

    /// Changes the mount's options.
    pub fn remount(&self, options: &str) {
        tool("mount", args!["-o", format!("remount,{options}"), self.path()]);
    }

    /// The place where it is mounted.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.dir.path()).output();
    }
}

/// Something that is mounted at a place of the test's own, until it is dropped.
pub struct MountAt {
    place: PathBuf,
}

impl MountAt {
    /// A file system in memory, with the given mount options, at `place`, a folder that is made if
    /// it is missing.
    pub fn tmpfs(place: &Path, options: &str) -> Self {
        std::fs::create_dir_all(place).unwrap();
        tool("mount", args!["-t", "tmpfs", "-o", options, "tmpfs", place]);
        Self { place: place.into() }
    }

    /// The file or folder `source` once more, at `place`, which is there.
    pub fn bind(source: &Path, place: &Path) -> Self {
        tool("mount", args!["--bind", source, place]);
        Self { place: place.into() }
    }

    /// Changes the mount's options.
    pub fn remount(&self, options: &str) {
        tool("mount", args!["-o", format!("remount,bind,{options}"), self.place]);
    }
}

impl Drop for MountAt {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.place).output();
    }
}

/// Waits until `path` was not changed only just now: of what was, nobody can tell whether it is
/// changed once more.
pub fn until_settled(path: &Path) {
    eventually("a file to be older than the ticks of the file system's clock", || {
        let changed = std::os::unix::fs::MetadataExt::ctime_nsec(&std::fs::metadata(path).unwrap());
        let seconds = std::os::unix::fs::MetadataExt::ctime(&std::fs::metadata(path).unwrap());
        let then = std::time::UNIX_EPOCH + Duration::new(seconds as u64, changed as u32);
        then.elapsed().is_ok_and(|age| age > Duration::from_millis(200)).then_some(())
    });
}

/// Writes zeros into `path` until the file system is full.
pub fn fill_up(path: &Path) {
    use std::io::Write as _;
    let mut file = std::fs::File::create(path).unwrap();
    for size in [1 << 20, 4096, 1] {
        let block = vec![0; size];
        while file.write_all(&block).is_ok() {}
    }
}
