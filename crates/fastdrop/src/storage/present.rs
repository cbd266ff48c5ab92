//! A file that stands where another one is to go: only its contents tell whether it is the same.

use crate::error::{Error, reason};
use crate::storage::io::read_exact_at;
use crate::storage::root::Root;
use fastdrop_proto::fastdp::Code;
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;

/// Bytes of either file that are compared at once.
const STEP: usize = 256 << 10;

/// The size of a file that is about to arrive, as far as its sender has said.
#[derive(Debug, Clone)]
pub(crate) struct Announced {
    /// Bytes that there has to be room for.
    pub(crate) room: u64,
    sizes: RangeInclusive<u64>,
}

impl Announced {
    /// A file of `bytes`.
    pub(crate) fn exactly(bytes: u64) -> Self {
        Self::within(bytes..=bytes)
    }

    /// A file of a size in this range, whose beginning there has to be room for.
    pub(crate) fn within(sizes: RangeInclusive<u64>) -> Self {
        Self { room: *sizes.start(), sizes }
    }

    /// A file of any size, of which `bytes` come over the wire.
    pub(crate) fn packed(bytes: u64) -> Self {
        Self { room: bytes, sizes: 0..=u64::MAX }
    }

    fn could_be(&self, present: &Stat) -> bool {
        is_regular(present) && self.sizes.contains(&size_of(present))
    }
}

/// The result of comparing a file with the one at its place.
#[derive(Debug)]
pub(super) enum Comparison {
    /// Nothing is there any more.
    Gone,
    /// This file is there, with the same bytes.
    Same(OwnedFd),
    /// Something else is there.
    Differs,
}

/// Returns true if a regular file is at `path`, not behind a link, that could be the announced one.
pub(super) fn could_be_same(root: &Root, path: &[u8], announced: &Announced) -> bool {
    root.stat(path).is_ok_and(|stat| announced.could_be(&stat))
}

/// Compares `file` with what is at `path` beneath `root`; no link is followed.
///
/// # Errors
///
/// The file that is there cannot be read.
pub(super) fn compare(root: &Root, path: &[u8], file: &OwnedFd) -> Result<Comparison, Error> {
    let unreadable = |errno: Errno| {
        let (path, why) = (crate::shown(path), reason(errno));
        Error::failed(Code::Conflict, format!("{path}: it exists, and cannot be compared: {why}"))
    };
    let present = match root.open_file(path) {
        Ok(present) => present,
        Err(Errno::NOENT) => return Ok(Comparison::Gone),
        Err(Errno::LOOP | Errno::NOTDIR | Errno::NXIO) => return Ok(Comparison::Differs),
        Err(errno) => return Err(unreadable(errno)),
    };
    let stat = |fd| rustix::fs::fstat(fd).map_err(unreadable);
    let (before, own) = (stat(&present)?, stat(file)?);
    if !is_regular(&before) || size_of(&before) != size_of(&own) {
        return Ok(Comparison::Differs);
    }
    let (mut here, mut there) = (vec![0; STEP], vec![0; STEP]);
    let size = size_of(&own);
    let mut at = 0;
    while at < size {
        let count = (size - at).min(STEP as u64) as usize;
        let (here, there) = (&mut here[..count], &mut there[..count]);
        read_exact_at(file, here, at).map_err(|errno| Error::system("reading back what arrived", errno))?;
        match read_exact_at(&present, there, at) {
            Ok(()) if here == there => {}
            // Shorter than it was, or other bytes.
            Ok(()) | Err(Errno::NODATA) => return Ok(Comparison::Differs),
            Err(errno) => return Err(unreadable(errno)),
        }
        at += count as u64;
    }
    let after = stat(&present)?;
    Ok(if is_unchanged(&before, &after) { Comparison::Same(present) } else { Comparison::Differs })
}

fn is_regular(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

fn size_of(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

fn is_unchanged(before: &Stat, after: &Stat) -> bool {
    let of = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    of(before) == of(after)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_a_regular_file_of_the_same_bytes_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let content = vec![7; STEP + 5];
        let mut other = content.clone();
        *other.last_mut().unwrap() = 8;
        std::fs::write(path("own"), &content).unwrap();
        std::fs::write(path("same"), &content).unwrap();
        std::fs::write(path("other"), &other).unwrap();
        std::fs::write(path("shorter"), &content[1..]).unwrap();
        std::fs::create_dir(path("folder")).unwrap();
        symlink(path("same"), path("link")).unwrap();
        symlink(path("folder"), path("way")).unwrap();
        std::fs::write(path("folder/same"), &content).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path("pipe"),
            FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let root = Root::open(dir.path()).unwrap();
        let own = root.open_file(b"own").unwrap();
        for (name, expected) in [
            ("same", "Same"),
            ("folder/same", "Same"),
            ("other", "Differs"),
            ("shorter", "Differs"),
            ("folder", "Differs"),
            ("link", "Differs"),
            ("way/same", "Differs"),
            ("pipe", "Differs"),
            ("none", "Gone"),
        ] {
            let found = format!("{:?}", compare(&root, name.as_bytes(), &own).unwrap());
            assert!(found.starts_with(expected), "{name}: {found}");
        }
    }

    #[test]
    fn a_file_of_another_size_than_the_announced_one_is_another() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), [0; 100]).unwrap();
        symlink("f", dir.path().join("link")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        for (announced, could_be) in [
            (Announced::exactly(100), true),
            (Announced::exactly(99), false),
            (Announced::within(50..=100), true),
            (Announced::within(101..=200), false),
            (Announced::packed(5), true),
        ] {
            assert_eq!(could_be_same(&root, b"f", &announced), could_be, "{announced:?}");
            assert!(!could_be_same(&root, b"link", &announced));
            assert!(!could_be_same(&root, b"none", &announced));
        }
    }
}
