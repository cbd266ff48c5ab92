//! Identities of files: whether a file is still the one that it was when its transfer began.

use crate::source::tree::SourceTree;
use fastdrop_proto::checksum::Algorithm;
use fastdrop_proto::fastdp::{EntryKind, Manifest};
use fastdrop_proto::units::EntryIndex;
use rustix::fs::Stat;
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A file that was changed so shortly before it was looked at could be changed once more without
/// another ctime: file systems round it to their clock's ticks.
const FRESH: Duration = Duration::from_millis(100);

/// The identity of the file that `stat` describes, never 0. Every change of contents or place gives
/// it another one: no program can set the ctime.
pub(crate) fn identity(stat: &Stat) -> u64 {
    let parts = [
        stat.st_dev.to_le_bytes(),
        stat.st_ino.to_le_bytes(),
        stat.st_size.to_le_bytes(),
        stat.st_mtime.to_le_bytes(),
        stat.st_mtime_nsec.to_le_bytes(),
        stat.st_ctime.to_le_bytes(),
        stat.st_ctime_nsec.to_le_bytes(),
    ];
    let hash = Algorithm::Xxh3.of(parts.as_flattened());
    hash.as_bytes().iter().fold(0, |hash, byte| hash << 8 | u64::from(*byte)).max(1)
}

/// The identities of a manifest's files.
#[derive(Debug, Clone, Default)]
pub(crate) struct Identities {
    /// By entry; 0 for what is no file, or cannot be looked at.
    known: Vec<u64>,
    /// Files whose identity may not tell the next version from this one.
    fresh: BTreeSet<EntryIndex>,
}

impl Identities {
    /// Looks at all files of `manifest` again.
    pub(crate) fn find(tree: &SourceTree, manifest: &Manifest) -> Self {
        let mut identities = Self::default();
        for (_, entry) in manifest.iter() {
            let is_file = matches!(entry.kind, EntryKind::File { .. });
            let found = is_file.then(|| tree.locate(entry.path)).flatten();
            identities.push(found.and_then(|(root, path)| root.stat(&path).ok()).as_ref());
        }
        identities
    }

    /// Adds the next entry: a file, or None for anything else.
    pub(crate) fn push(&mut self, stat: Option<&Stat>) {
        if stat.is_some_and(is_fresh) {
            self.fresh.insert(EntryIndex(self.known.len() as u32));
        }
        self.known.push(stat.map_or(0, identity));
    }

    /// Takes out `entries`, as they are taken out of the manifest.
    pub(crate) fn remove(&mut self, entries: &BTreeSet<EntryIndex>) {
        if entries.is_empty() {
            return;
        }
        let old = std::mem::take(self);
        for (at, identity) in old.known.into_iter().enumerate() {
            let entry = EntryIndex(at as u32);
            if entries.contains(&entry) {
                continue;
            }
            if old.fresh.contains(&entry) {
                self.fresh.insert(EntryIndex(self.known.len() as u32));
            }
            self.known.push(identity);
        }
    }

    /// The identity of `entry`; 0 if it is unknown.
    pub(crate) fn get(&self, entry: EntryIndex) -> u64 {
        self.known.get(entry.at()).copied().unwrap_or(0)
    }

    /// What the receiver is told: by nothing else may it take what it holds for this file.
    pub(crate) fn told(&self) -> Vec<u64> {
        let mut told = self.known.clone();
        for entry in &self.fresh {
            if let Some(identity) = told.get_mut(entry.at()) {
                *identity = 0;
            }
        }
        told
    }
}

fn is_fresh(stat: &Stat) -> bool {
    let changed = u64::try_from(stat.st_ctime).unwrap_or(0);
    let changed = UNIX_EPOCH + Duration::new(changed, stat.st_ctime_nsec as u32);
    // A ctime in the future tells nothing either.
    SystemTime::now().duration_since(changed).map_or(true, |age| age < FRESH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    fn stat(path: &std::path::Path) -> Stat {
        rustix::fs::stat(path).unwrap()
    }

    #[test]
    fn case_103_a_file_of_the_same_size_and_time_has_another_identity_when_it_was_written_to_or_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "one").unwrap();
        let before = stat(&path);
        assert_eq!(identity(&before), identity(&stat(&path)));
        let time = std::fs::metadata(&path).unwrap().modified().unwrap();
        let ctime = || {
            let metadata = std::fs::metadata(&path).unwrap();
            (metadata.ctime(), metadata.ctime_nsec())
        };
        let began = ctime();
        // Until the file system's clock has moved on.
        while ctime() == began {
            std::fs::write(&path, "two").unwrap();
            std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        }
        let written = stat(&path);
        assert_eq!((written.st_size, written.st_mtime_nsec), (before.st_size, before.st_mtime_nsec));
        assert_ne!(identity(&written), identity(&before));
        let other = dir.path().join("g");
        std::fs::write(&other, "two").unwrap();
        std::fs::File::options().write(true).open(&other).unwrap().set_modified(time).unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_ne!(identity(&stat(&path)), identity(&written));
    }

    #[test]
    fn what_was_changed_just_now_is_not_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(dir.path().join("f")).unwrap();
        let mut young = rustix::fs::fstat(file.as_fd()).unwrap();
        let mut identities = Identities::default();
        identities.push(None);
        identities.push(Some(&young));
        young.st_ctime -= 5;
        identities.push(Some(&young));
        assert_ne!(identities.get(EntryIndex(1)), 0);
        let told = identities.told();
        assert_eq!((told[0], told[1], told[2] != 0), (0, 0, true));
        identities.remove(&[EntryIndex(0)].into());
        assert_eq!(identities.told(), told[1..]);
    }
}
