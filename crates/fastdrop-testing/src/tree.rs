//! Trees to send, and whether they arrived.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// One mebibyte.
pub const MIB: u64 = 1 << 20;

/// Numbers that look random and are the same in every run (SplitMix64).
pub struct Rng(u64);

impl Rng {
    /// Another sequence for every seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// So many bytes that no compressor and no hole finder can make less of.
pub fn fill(len: u64, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut bytes = vec![0; len as usize];
    for part in bytes.chunks_mut(8) {
        part.copy_from_slice(&rng.number().to_le_bytes()[..part.len()]);
    }
    bytes
}

/// Writes a file of such bytes, making its folders.
pub fn write_file(path: &Path, len: u64, seed: u64) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = fs::File::create(path).unwrap();
    file.write_all(&fill(len, seed)).unwrap();
}

/// Sets the modification time of a file or folder. Seconds may be negative.
pub fn set_mtime(path: &Path, seconds: i64, nanos: u32) {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds < 0 { SystemTime::UNIX_EPOCH - whole } else { SystemTime::UNIX_EPOCH + whole };
    let file = fs::File::open(path).unwrap();
    file.set_modified(base + Duration::from_nanos(nanos.into())).unwrap();
    let meta = fs::symlink_metadata(path).unwrap();
    assert_eq!(
        (meta.mtime(), meta.mtime_nsec()),
        (seconds, nanos.into()),
        "this file system does not keep such times"
    );
}

/// Sets the permission bits.
pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A tree of folders with small files of 0 to 3,000 bytes, with times and modes of their own.
pub fn small_tree(root: &Path, folders: u64, files_each: u64, seed: u64) {
    let mut rng = Rng::new(seed);
    for folder in 0..folders {
        let dir = root.join(format!("folder-{folder:03}"));
        fs::create_dir_all(&dir).unwrap();
        for file in 0..files_each {
            let path = dir.join(format!("file-{file:04}"));
            fs::write(&path, fill(rng.number() % 3000, rng.number())).unwrap();
            if file % 16 == 0 {
                set_mtime(
                    &path,
                    (rng.number() % 2_000_000_000) as i64,
                    (rng.number() % 1_000_000_000) as u32,
                );
            }
        }
        set_mtime(&dir, 1_000_000_000 + folder as i64, 123_456_789);
    }
}

/// The kind of an entry of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A file by its size and contents.
    File(u64, blake3::Hash),
    /// A folder.
    Folder,
    /// A symbolic link and where it points.
    Link(PathBuf),
    /// Something else, such as a pipe.
    Other,
}

/// An entry with what must be kept of it; mode and time of links are not.
pub type Entry = (Kind, u32, i64, i64);

/// BLAKE3 of a file.
pub fn digest_of(path: &Path) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let mut file = fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).unwrap();
        if n == 0 {
            return hasher.finalize();
        }
        hasher.update(&buffer[..n]);
    }
}

/// Everything at and beneath `root`, by relative path, without `.fastdrop`.
pub fn snapshot(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut found = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(relative) = todo.pop() {
        // Joining nothing would add a slash, and a file has none.
        let path = if relative.as_os_str().is_empty() { root.to_path_buf() } else { root.join(&relative) };
        let meta = fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let kind = if meta.is_dir() {
            for entry in fs::read_dir(&path).unwrap() {
                let name = entry.unwrap().file_name();
                if name != ".fastdrop" {
                    todo.push(relative.join(name));
                }
            }
            Kind::Folder
        } else if meta.is_symlink() {
            Kind::Link(fs::read_link(&path).unwrap())
        } else if meta.is_file() {
            Kind::File(meta.len(), digest_of(&path))
        } else {
            Kind::Other
        };
        let entry = match kind {
            Kind::Link(_) => (kind, 0, 0, 0),
            // The other bits of a folder are those of its place, as the top of a mount.
            Kind::Folder => (kind, meta.mode() & 0o777, meta.mtime(), meta.mtime_nsec()),
            _ => (kind, meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec()),
        };
        found.insert(relative, entry);
    }
    found
}

#[track_caller]
fn assert_same(mut sent: BTreeMap<PathBuf, Entry>, mut arrived: BTreeMap<PathBuf, Entry>) {
    let mut differences = Vec::new();
    for (path, entry) in std::mem::take(&mut sent) {
        match arrived.remove(&path) {
            Some(other) if other == entry => {}
            Some(other) => differences.push(format!("{path:?}: sent {entry:?}\n    arrived {other:?}")),
            None => differences.push(format!("{path:?}: did not arrive")),
        }
    }
    differences.extend(arrived.keys().map(|path| format!("{path:?}: was not sent")));
    let count = differences.len();
    differences.truncate(10);
    assert!(count == 0, "{count} differences, such as\n  {}", differences.join("\n  "));
}

/// Fails unless both folders are equal: bytes, kinds, modes, times and links, themselves included.
#[track_caller]
pub fn assert_same_tree(sent: &Path, arrived: &Path) {
    assert_same(snapshot(sent), snapshot(arrived));
}

/// Fails unless everything beneath both folders is equal, whatever the folders themselves are.
#[track_caller]
pub fn assert_same_contents(sent: &Path, arrived: &Path) {
    let (mut sent, mut arrived) = (snapshot(sent), snapshot(arrived));
    sent.remove(Path::new(""));
    arrived.remove(Path::new(""));
    assert_same(sent, arrived);
}

/// Fails unless both files have the same bytes, mode and time.
#[track_caller]
pub fn assert_same_file(sent: &Path, arrived: &Path) {
    assert_same(snapshot(sent), snapshot(arrived));
}

/// Fails if a file beneath `arrived` is not whole: everything there must have the bytes of its
/// counterpart.
#[track_caller]
pub fn assert_nothing_partial(sent: &Path, arrived: &Path) {
    for (path, (kind, ..)) in snapshot(arrived) {
        if let Kind::File(size, digest) = kind {
            let original = if sent.is_file() { sent.to_path_buf() } else { sent.join(&path) };
            assert!(original.exists(), "a file of a strange name is visible: {path:?}");
            let whole = (fs::metadata(&original).unwrap().len(), digest_of(&original));
            assert_eq!((size, digest), whole, "a partial file is visible: {path:?}");
        }
    }
}

/// All files, folders and others with `.fastdrop` in their path, beneath `root`.
pub fn leftovers(root: &Path) -> Vec<PathBuf> {
    fn walk(dir: &Path, inside: bool, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let here = inside || entry.file_name() == ".fastdrop";
            if here {
                found.push(entry.path());
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir() && !kind.is_fifo()) {
                walk(&entry.path(), here, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(root, false, &mut found);
    found
}

/// The names in a folder in order, without `.fastdrop`.
pub fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.retain(|name| name != ".fastdrop");
    names.sort();
    names
}
