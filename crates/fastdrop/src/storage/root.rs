//! A folder that nothing done through it can leave.

use fastdrop_proto::fastdp::HIDDEN;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat, StatxFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// How often a lookup that raced with a rename is tried again.
const RACES_MAX: u32 = 64;
/// Bytes of a path that one system call takes: the kernel's bound is 4,096 with the NUL at the end.
const STEP_MAX: usize = 4095;

/// A folder, and what may be followed beneath it. Paths are relative;
/// the empty one is the folder itself.
#[derive(Debug)]
pub(crate) struct Root {
    fd: OwnedFd,
    resolve: ResolveFlags,
}

impl Root {
    const CONFINED: ResolveFlags =
        ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

    /// Opens `path`; beneath it no link is followed.
    pub(crate) fn open(path: &Path) -> Result<Self, Errno> {
        Self::open_with(path, Self::CONFINED)
    }

    /// Opens `path`; links beneath it are followed wherever they lead: for what the user owns.
    pub(crate) fn open_following(path: &Path) -> Result<Self, Errno> {
        Self::open_with(path, ResolveFlags::empty())
    }

    fn open_with(path: &Path, resolve: ResolveFlags) -> Result<Self, Errno> {
        let fd = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { fd, resolve })
    }

    /// The same folder, following links that stay beneath it.
    pub(crate) fn following_beneath(&self) -> Result<Self, Errno> {
        let fd = rustix::io::fcntl_dupfd_cloexec(&self.fd, 0)?;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        Ok(Self { fd, resolve })
    }

    /// Whether links are followed.
    pub(crate) fn follows(&self) -> bool {
        !self.resolve.contains(ResolveFlags::NO_SYMLINKS)
    }

    /// Opens what is at `path`.
    ///
    /// A path that is longer than one system call takes is walked in steps. A link that is followed
    /// on the way must then stay beneath the folder in which its step begins.
    pub(crate) fn open_at(&self, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { &b"."[..] } else { path };
        let (mut rest, mut folder) = (path, None);
        while let Some((step, after)) = first_step(rest)? {
            let from = folder.as_ref().map_or(self.fd.as_fd(), AsFd::as_fd);
            folder = Some(self.open_beneath(from, step, OFlags::DIRECTORY | OFlags::PATH, Mode::empty())?);
            rest = after;
        }
        let from = folder.as_ref().map_or(self.fd.as_fd(), AsFd::as_fd);
        let fd = self.open_beneath(from, rest, flags, mode)?;
        if self.follows() && leads_into_hidden(&fd)? {
            return Err(Errno::NOENT);
        }
        Ok(fd)
    }

    /// Opens what is at `path` beneath `folder`, by one system call.
    fn open_beneath(
        &self,
        folder: BorrowedFd<'_>,
        path: &[u8],
        flags: OFlags,
        mode: Mode,
    ) -> Result<OwnedFd, Errno> {
        for _ in 0..RACES_MAX {
            match rustix::fs::openat2(folder, path, flags | OFlags::CLOEXEC, mode, self.resolve) {
                // Something moved during the lookup, and the kernel could not
                // tell whether it left the folder.
                Err(Errno::AGAIN) => {}
                Err(Errno::INTR) => {}
                result => return result,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Opens the directory at `path`.
    pub(crate) fn open_dir(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.open_at(path, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())
    }

    /// Opens a regular file for reading, and never waits for a pipe or device.
    pub(crate) fn open_file(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty())
    }

    /// What is at `path`; the last component is not followed unless the root follows links.
    pub(crate) fn stat(&self, path: &[u8]) -> Result<Stat, Errno> {
        let follow = if self.follows() { OFlags::empty() } else { OFlags::NOFOLLOW };
        rustix::fs::fstat(self.open_at(path, OFlags::PATH | follow, Mode::empty())?)
    }

    /// Makes the directory at `path` and those above it that are missing.
    /// What is returned need not be readable.
    pub(crate) fn make_dirs(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::DIRECTORY | OFlags::PATH;
        let mut there = path;
        let mut folder = loop {
            match self.open_at(there, flags, Mode::empty()) {
                Err(Errno::NOENT) if !there.is_empty() => there = split(there).0,
                result => break result?,
            }
        };
        let missing = path.get(there.len()..).unwrap_or_default();
        for name in missing.split(|&byte| byte == b'/').filter(|name| !name.is_empty()) {
            match rustix::fs::mkdirat(&folder, name, Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
            folder = self.open_beneath(folder.as_fd(), name, flags, Mode::empty())?;
        }
        Ok(folder)
    }
}

/// A mount. Files cannot be renamed from one to another, even if both show the same device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MountId(u64);

impl MountId {
    /// The mount that an open file or folder is on.
    pub(crate) fn of(fd: impl AsFd) -> Result<Self, Errno> {
        let stat = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
        if StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID) {
            return Ok(Self(stat.stx_mnt_id));
        }
        // Before Linux 5.8 only the device is known.
        Ok(Self(u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor)))
    }

    /// The mount of the folder at `path`, which need not be readable.
    pub(crate) fn of_folder(root: &Root, path: &[u8]) -> Result<Self, Errno> {
        Self::of(root.open_at(path, OFlags::DIRECTORY | OFlags::PATH, Mode::empty())?)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether links have led into a folder of unfinished files.
///
/// # Errors
///
/// `NAMETOOLONG` where the kernel does not say where that is.
fn leads_into_hidden(fd: &OwnedFd) -> Result<bool, Errno> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let path = rustix::fs::readlink(link, Vec::new())?.into_bytes();
    Ok(path.split(|&byte| byte == b'/').any(|component| component == HIDDEN))
}

/// The two parts of a path before and behind a slash.
type Parts<'a> = (&'a [u8], &'a [u8]);

/// The part of `path` that one system call takes, up to a slash, and what
/// follows; None if that is all of it.
fn first_step(path: &[u8]) -> Result<Option<Parts<'_>>, Errno> {
    let Some(first) = path.get(..=STEP_MAX) else { return Ok(None) };
    let slash = first.iter().rposition(|&byte| byte == b'/').ok_or(Errno::NAMETOOLONG)?;
    Ok(Some((&path[..slash], &path[slash + 1..])))
}

/// The folder part and the last component.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// Joins two relative paths, either of which may be empty.
pub(crate) fn join(folder: &[u8], rest: &[u8]) -> Vec<u8> {
    match (folder, rest) {
        (b"", rest) => rest.to_vec(),
        (folder, b"") => folder.to_vec(),
        (folder, rest) => [folder, b"/", rest].concat(),
    }
}

/// The directories of a root that were used last, so that consecutive
/// files of one directory cost one lookup.
#[derive(Debug, Default)]
pub(crate) struct Dirs {
    last: Option<(Vec<u8>, Option<OwnedFd>)>,
}

impl Dirs {
    /// The directory at `path`; None if there is none.
    pub(crate) fn find(&mut self, root: &Root, path: &[u8]) -> Result<Option<BorrowedFd<'_>>, Errno> {
        if self.last.as_ref().is_none_or(|(last, _)| last != path) {
            // To look something up in a folder it need not be readable.
            let fd = match root.open_at(path, OFlags::DIRECTORY | OFlags::PATH, Mode::empty()) {
                Ok(fd) => Some(fd),
                Err(Errno::NOENT) => None,
                Err(errno) => return Err(errno),
            };
            self.last = Some((path.to_vec(), fd));
        }
        Ok(self.last.as_ref().and_then(|(_, fd)| fd.as_ref()).map(AsFd::as_fd))
    }

    /// The directory at `path`, made if it is missing.
    pub(crate) fn make(&mut self, root: &Root, path: &[u8]) -> Result<BorrowedFd<'_>, Errno> {
        if self.find(root, path)?.is_none() {
            self.last = Some((path.to_vec(), Some(root.make_dirs(path)?)));
        }
        self.last.as_ref().and_then(|(_, fd)| fd.as_ref()).map(AsFd::as_fd).ok_or(Errno::NOENT)
    }

    /// What is at `path`, itself and not what it points to; None if nothing is.
    pub(crate) fn stat(&mut self, root: &Root, path: &[u8]) -> Result<Option<Stat>, Errno> {
        let (folder, name) = split(path);
        let Some(folder) = self.find(root, folder)? else { return Ok(None) };
        match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

/// Moves a file, replacing what is there only if `replace` says so.
pub(crate) fn rename(
    from: BorrowedFd<'_>,
    name: &[u8],
    to: BorrowedFd<'_>,
    new_name: &[u8],
    replace: bool,
) -> Result<(), Errno> {
    let flags = if replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
    rustix::fs::renameat_with(from, name, to, new_name, flags)
}

/// The names in a folder, ascending, with their types where the file system says them.
pub(crate) fn names(dir: BorrowedFd<'_>) -> Result<Vec<(Vec<u8>, FileType)>, Errno> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push((name.to_vec(), entry.file_type()));
        }
    }
    names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn case_48_nothing_is_reached_through_a_link() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "x").unwrap();
        let dir = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("out")).unwrap();
        symlink("secret", dir.path().join("link")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        for path in [&b"out/secret"[..], b"link", b"../x", b"/etc/passwd", b"out/../x"] {
            assert!(root.open_file(path).is_err(), "{}", path.escape_ascii());
        }
        assert!(root.make_dirs(b"out/new").is_err());
        assert!(!outside.path().join("new").exists());
    }

    #[test]
    fn case_58_a_parent_swapped_for_a_link_leads_nowhere() {
        let outside = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::create_dir(&a).unwrap();
        symlink(outside.path(), &b).unwrap();
        let root = Root::open(dir.path()).unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let hidden = dir.path().join("c");
                while !over.load(Ordering::Relaxed) {
                    let _ = std::fs::rename(&a, &hidden);
                    let _ = std::fs::rename(&b, &a);
                    let _ = std::fs::rename(&a, &b);
                    let _ = std::fs::rename(&hidden, &a);
                }
            });
            for i in 0..3000 {
                let path = format!("a/{i}");
                let _ = root.open_at(
                    path.as_bytes(),
                    OFlags::CREATE | OFlags::WRONLY,
                    Mode::from_raw_mode(0o600),
                );
            }
            over.store(true, Ordering::Relaxed);
        });
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn paths_of_any_length_are_made_and_opened() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        // Around what one system call takes, and around twice and sixteen times that.
        for len in [4090, 4094, 4095, 4096, 4097, 8190, 8191, 8192, 8193, 65_535] {
            let component = [&[b'd'; 254][..], b"/"].concat();
            let mut path = component.repeat(len / 255);
            path.resize(len, b'e');
            if path.get(len - 2) == Some(&b'/') {
                path[len - 2] = b'f';
            }
            assert_eq!(root.open_dir(&path).unwrap_err(), Errno::NOENT, "{len}");
            root.make_dirs(&path).unwrap();
            let file = join(&path, b"file");
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
            root.open_at(&file, flags, Mode::from_raw_mode(0o600)).unwrap();
            assert!(root.open_file(&file).is_ok(), "{len}");
            assert_eq!(root.stat(&file).unwrap().st_size, 0);
            assert!(Dirs::default().stat(&root, &file).unwrap().is_some());
        }
        let long = [b'x'; 5000];
        assert_eq!(root.open_dir(&long).unwrap_err(), Errno::NAMETOOLONG);
    }

    #[test]
    fn case_48_no_link_is_followed_on_a_long_path_and_nothing_is_left_upwards() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let deep = [&[b'd'; 254][..], b"/"].concat().repeat(40);
        let deep = deep.strip_suffix(b"/").unwrap();
        let inner = root.make_dirs(deep).unwrap();
        rustix::fs::symlinkat("/etc", &inner, "out").unwrap();
        rustix::fs::symlinkat(&b"../".repeat(41)[..], &inner, "up").unwrap();
        for name in [&b"out/passwd"[..], b"out", b"up", b"up/x", b"../../../x"] {
            let path = join(deep, name);
            assert!(root.open_file(&path).is_err(), "{}", name.escape_ascii());
        }
    }

    #[test]
    fn a_rename_does_not_replace_unless_told_to() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("new"), "new").unwrap();
        std::fs::write(dir.path().join("old"), "old").unwrap();
        assert_eq!(rename(root.as_fd(), b"new", root.as_fd(), b"old", false), Err(Errno::EXIST));
        assert_eq!(std::fs::read(dir.path().join("old")).unwrap(), b"old");
        rename(root.as_fd(), b"new", root.as_fd(), b"old", true).unwrap();
        assert_eq!(std::fs::read(dir.path().join("old")).unwrap(), b"new");
    }
}
