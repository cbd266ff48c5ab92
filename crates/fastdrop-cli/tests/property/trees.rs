//! Random trees, and random changes to them.

use super::support::*;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Sizes around nothing, around a chunk of 256 KiB, and around one of 1 MiB.
const SIZES: [u64; 12] =
    [0, 1, 2, 4_097, 262_143, 262_144, 262_145, MIB - 1, MIB, MIB + 1, 3 * MIB + 7, 5 * MIB];

/// The two that decide which of several to take.
pub(crate) trait Choice {
    fn below(&mut self, bound: u64) -> u64;
    fn one_in(&mut self, count: u64) -> bool;
    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T;
}

impl Choice for Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

fn name(rng: &mut Rng) -> OsString {
    let number = rng.below(1000);
    match rng.below(16) {
        0 => OsString::from(format!("back\\slash-{number}")),
        1 => OsString::from(format!("new\nline-{number}")),
        2 => OsString::from(format!("latin-e-{number}")),
        3 => OsStr::from_bytes(&[b"latin-\xe9-", number.to_string().as_bytes()].concat()).to_owned(),
        4 => OsString::from(format!("-{number}")),
        5 => OsString::from(format!("%41 {number}")),
        6 => OsString::from(format!("{}-{number}", "n".repeat(250))),
        7 => OsString::from(format!("{number}.o")),
        8 => OsString::from(format!(".hidden-{number}")),
        9 => OsString::from(format!("\u{fc}\u{4e2d}-{number}")),
        _ => OsString::from(format!("name-{number}")),
    }
}

fn time(rng: &mut Rng) -> (i64, u32) {
    let nanos = if rng.one_in(4) { 0 } else { rng.below(1_000_000_000) as u32 };
    let seconds = match rng.below(12) {
        0 => -(rng.below(1_000_000_000) as i64),
        1 => 4_294_967_296 + rng.below(1000) as i64,
        2 => 2_147_483_648 + rng.below(1000) as i64,
        3 => 0,
        _ => rng.below(2_000_000_000) as i64,
    };
    (seconds, nanos)
}

fn set_time(rng: &mut Rng, path: &Path) {
    let (seconds, nanos) = time(rng);
    set_mtime(path, seconds, nanos);
}

/// Writes a new file.
fn make_file(rng: &mut Rng, path: &Path) {
    let size = if rng.one_in(2) { *rng.pick(&SIZES) } else { rng.below(5000) };
    fs::write(path, fill(size, rng.number())).unwrap();
    set_mode(path, 0o400 | rng.below(0o1000) as u32);
    set_time(rng, path);
}

/// A target for a link.
fn link_target(rng: &mut Rng, outside: bool) -> PathBuf {
    match rng.below(if outside { 6 } else { 4 }) {
        0 => "nothing-there".into(),
        1 => name(rng).into(),
        2 => "folder-0".into(),
        3 => "folder-0/inside".into(),
        4 => "../../../../outside".into(),
        _ => "/absolute".into(),
    }
}

/// Makes a tree at `root`; links that lead outside only if they may.
pub(crate) fn make(rng: &mut Rng, root: &Path, outside: bool) {
    fs::create_dir_all(root).unwrap();
    let mut folders = vec![root.to_path_buf()];
    for at in 0..rng.below(4) {
        let parent = rng.pick(&folders).clone();
        let folder = parent.join(if rng.one_in(3) { name(rng) } else { format!("folder-{at}").into() });
        if fs::create_dir(&folder).is_ok() {
            folders.push(folder);
        }
    }
    for _ in 0..2 + rng.below(10) {
        add(rng, &folders, outside);
    }
    if rng.one_in(4) {
        let many = root.join("many");
        if fs::create_dir(&many).is_ok() {
            for at in 0..70 {
                fs::write(many.join(at.to_string()), fill(rng.below(200), at)).unwrap();
            }
            folders.push(many);
        }
    }
    settle(rng, root);
}

fn add(rng: &mut Rng, folders: &[PathBuf], outside: bool) {
    let path = rng.pick(folders).join(name(rng));
    if fs::symlink_metadata(&path).is_ok() {
        return;
    }
    match rng.below(8) {
        0 => fs::create_dir(path).unwrap(),
        1 => symlink(link_target(rng, outside), path).unwrap(),
        _ => make_file(rng, &path),
    }
}

/// Gives each folder a mode and a time of its own, from below, since whatever happens in a folder
/// changes its time.
fn settle(rng: &mut Rng, root: &Path) {
    let mut folders: Vec<PathBuf> = snapshot(root)
        .into_iter()
        .filter(|(_, entry)| entry.0 == Kind::Folder)
        .map(|(path, _)| root.join(path))
        .collect();
    folders.sort();
    for folder in folders.iter().rev() {
        set_mode(folder, 0o700 | rng.below(0o100) as u32);
        set_time(rng, folder);
    }
}

/// Changes some entries.
pub(crate) fn change(rng: &mut Rng, root: &Path, outside: bool) {
    for _ in 0..1 + rng.below(4) {
        change_one(rng, root, outside);
    }
    settle(rng, root);
}

fn change_one(rng: &mut Rng, root: &Path, outside: bool) {
    let entries: Vec<(PathBuf, Kind)> =
        snapshot(root).into_iter().map(|(path, entry)| (path, entry.0)).collect();
    let folders: Vec<PathBuf> = entries
        .iter()
        .filter(|(_, kind)| *kind == Kind::Folder)
        .map(|(path, _)| if path.as_os_str().is_empty() { root.to_path_buf() } else { root.join(path) })
        .collect();
    let (path, kind) = rng.pick(&entries).clone();
    if path.as_os_str().is_empty() || rng.one_in(8) {
        return add(rng, &folders, outside);
    }
    let path = root.join(path);
    let remove = || match kind {
        Kind::Folder => fs::remove_dir_all(&path).unwrap(),
        _ => fs::remove_file(&path).unwrap(),
    };
    match (rng.below(8), &kind) {
        (0..=2, Kind::File(size, _)) => rewrite_unseen(rng, &path, *size),
        (3, Kind::File(..)) => set_time(rng, &path),
        (4, Kind::File(..)) => set_mode(&path, 0o400 | rng.below(0o1000) as u32),
        (5, Kind::File(..)) => {
            remove();
            make_file(rng, &path);
        }
        (5, Kind::Link(_)) => {
            remove();
            symlink(link_target(rng, outside), &path).unwrap();
        }
        (6, Kind::Folder) => {
            remove();
            make_file(rng, &path);
        }
        (6, _) => {
            remove();
            fs::create_dir(&path).unwrap();
        }
        (7, _) => {
            remove();
            symlink(link_target(rng, outside), &path).unwrap();
        }
        _ => remove(),
    }
}

/// Other content of the same size, and the same time: in place, or as another file of that name.
pub(crate) fn rewrite_unseen(rng: &mut Rng, path: &Path, size: u64) {
    let meta = fs::metadata(path).unwrap();
    if rng.one_in(2) {
        fs::remove_file(path).unwrap();
    } else {
        set_mode(path, 0o600);
    }
    fs::write(path, fill(size, rng.number())).unwrap();
    fs::set_permissions(path, meta.permissions()).unwrap();
    fs::File::open(path).unwrap().set_modified(meta.modified().unwrap()).unwrap();
}
