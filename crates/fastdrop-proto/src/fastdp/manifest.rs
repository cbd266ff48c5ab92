//! The list of what a transfer moves (section 5).

use super::link::{TARGET_MAX, base_reach, climbs};
use super::path::{PathError, RelPath};
use crate::cursor::{Cursor, ReadError};
use crate::units::{EntryIndex, Mtime};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher as _;
use twox_hash::XxHash3_64;

const KIND_FILE: u8 = 0x01;
const KIND_DIRECTORY: u8 = 0x02;
const KIND_LINK: u8 = 0x03;
const KIND_STREAM: u8 = 0x04;

/// The permission bits that travel: set-id and sticky bits do not.
const MODE_MASK: u32 = 0o777;
/// More manifest than this, encoded, is refused whatever the number of entries.
const BYTES_MAX: usize = 2 << 30;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind<'a> {
    /// A regular file of so many bytes.
    File {
        /// In bytes.
        size: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Link {
        /// Where it points, relative.
        target: &'a [u8],
    },
    /// A file whose size is not known yet.
    Stream,
}

/// One line of a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Where it is, relative to the transfer.
    pub path: RelPath<'a>,
    /// What it is.
    pub kind: EntryKind<'a>,
    /// Permissions, nine bits.
    pub mode: u32,
    /// When it was modified.
    pub mtime: Mtime,
}

impl Entry<'_> {
    /// The size of a file; 0 for everything else.
    pub fn size(&self) -> u64 {
        match self.kind {
            EntryKind::File { size } => size,
            _ => 0,
        }
    }

    /// Appends the entry as on the wire.
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(match self.kind {
            EntryKind::File { .. } => KIND_FILE,
            EntryKind::Directory => KIND_DIRECTORY,
            EntryKind::Link { .. } => KIND_LINK,
            EntryKind::Stream => KIND_STREAM,
        });
        // A checked path has at most 4,096 bytes, and so has a checked target.
        out.extend_from_slice(&(self.path.as_bytes().len() as u16).to_be_bytes());
        out.extend_from_slice(self.path.as_bytes());
        out.extend_from_slice(&(self.mode & MODE_MASK).to_be_bytes());
        out.extend_from_slice(&self.mtime.seconds.to_be_bytes());
        out.extend_from_slice(&self.mtime.nanos.to_be_bytes());
        match self.kind {
            EntryKind::File { size } => out.extend_from_slice(&size.to_be_bytes()),
            EntryKind::Link { target } => {
                out.extend_from_slice(&(target.len() as u16).to_be_bytes());
                out.extend_from_slice(target);
            }
            EntryKind::Directory | EntryKind::Stream => {}
        }
    }
}

/// Why one entry was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Too few bytes.
    #[error("an entry {0}")]
    Read(#[from] ReadError),
    /// A kind that this version does not have.
    #[error("an entry of unknown kind")]
    Kind,
    /// A path or target against the rules.
    #[error("{0}")]
    Path(#[from] PathError),
    /// Mode bits beyond the nine, or a billion nanoseconds.
    #[error("an entry with a mode or time out of range")]
    Range,
}

/// Decodes one entry; where a link leads is the builder's to judge.
fn decode<'a>(cursor: &mut Cursor<'a>) -> Result<Entry<'a>, EntryError> {
    let kind = cursor.u8()?;
    let path_len = usize::from(cursor.u16()?);
    let path = RelPath::new(cursor.bytes(path_len)?)?;
    let mode = cursor.u32()?;
    let mtime = Mtime { seconds: cursor.i64()?, nanos: cursor.u32()? };
    if mode & !MODE_MASK != 0 || mtime.nanos >= 1_000_000_000 {
        return Err(EntryError::Range);
    }
    let kind = match kind {
        KIND_FILE => EntryKind::File { size: cursor.u64()? },
        KIND_DIRECTORY => EntryKind::Directory,
        KIND_STREAM => EntryKind::Stream,
        KIND_LINK => {
            let len = usize::from(cursor.u16()?);
            let target = cursor.bytes(len)?;
            if len > TARGET_MAX {
                return Err(PathError::TooLong.into());
            }
            EntryKind::Link { target }
        }
        _ => return Err(EntryError::Kind),
    };
    Ok(Entry { path, kind, mode, mtime })
}

/// Why a manifest was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// One entry is bad.
    #[error("{0}")]
    Entry(#[from] EntryError),
    /// Entries that do not ascend: the same name twice, or out of order.
    #[error("an entry that does not come after the one before it: {0}")]
    Order(String),
    /// An entry beneath a file or link, or after the stream.
    #[error("an entry beneath one that is not a directory: {0}")]
    Beneath(String),
    /// More entries or bytes than the receiver takes.
    #[error("more than {0} entries, or 2 GiB of names")]
    TooMany(u32),
    /// The sizes add up to more than can be counted.
    #[error("sizes that overflow")]
    Overflow,
    /// MANIFEST_END contradicts what came before it.
    #[error("a manifest that contradicts its own totals")]
    Totals,
}

/// What MANIFEST_END says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManifestEnd {
    /// Number of entries.
    pub entries: u32,
    /// Bytes of all files.
    pub bytes: u64,
    /// XXH3-64 of all entries as encoded.
    pub digest: u64,
}

/// A complete manifest. It keeps its entries as they are encoded: 4 bytes, 30 at the most and the path for each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    encoded: Vec<u8>,
    starts: Vec<u32>,
    bytes: u64,
}

impl Manifest {
    /// Number of entries.
    pub fn len(&self) -> u32 {
        self.starts.len() as u32
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The entry at `index`.
    pub fn get(&self, index: EntryIndex) -> Option<Entry<'_>> {
        let start = *self.starts.get(index.at())? as usize;
        // What stands here went through `decode` when it was added.
        decode(&mut Cursor::new(self.encoded.get(start..)?)).ok()
    }

    /// The entry with this path.
    pub fn find(&self, path: RelPath<'_>) -> Option<(EntryIndex, Entry<'_>)> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.get(EntryIndex(middle)) {
                Some(entry) if entry.path < path => low = middle + 1,
                _ => high = middle,
            }
        }
        let index = EntryIndex(low);
        self.get(index).filter(|entry| entry.path == path).map(|entry| (index, entry))
    }

    /// All entries in order.
    pub fn iter(&self) -> impl Iterator<Item = (EntryIndex, Entry<'_>)> {
        let mut cursor = Cursor::new(&self.encoded);
        (0..self.len()).map_while(move |index| Some((EntryIndex(index), decode(&mut cursor).ok()?)))
    }

    /// The entries as they go over the wire, cut between entries into parts of at most `part_max` bytes or one entry.
    pub fn parts(&self, part_max: usize) -> impl Iterator<Item = &[u8]> {
        let boundary =
            |index: usize| self.starts.get(index).map_or(self.encoded.len(), |&start| start as usize);
        let mut next = 0usize;
        std::iter::from_fn(move || {
            let start = *self.starts.get(next)? as usize;
            next += 1;
            while next < self.starts.len() && boundary(next + 1) - start <= part_max {
                next += 1;
            }
            self.encoded.get(start..boundary(next))
        })
    }

    /// The links that a peer without the capability `links` would refuse.
    pub fn links_beyond_base(&self) -> BTreeSet<EntryIndex> {
        let has_links = self.iter().any(|(_, entry)| matches!(entry.kind, EntryKind::Link { .. }));
        if !has_links {
            return BTreeSet::new();
        }
        let tops: BTreeSet<_> = self.iter().map(|(_, entry)| entry.path.top()).collect();
        let is_beyond = |entry: &Entry<'_>| match entry.kind {
            EntryKind::Link { target } => match base_reach(entry.path, target) {
                Ok(None) => false,
                Ok(Some(top)) => tops.len() < 2 || !tops.contains(top),
                Err(_) => true,
            },
            _ => false,
        };
        self.iter().filter(|(_, entry)| is_beyond(entry)).map(|(index, _)| index).collect()
    }

    /// The same manifest without these entries, of which none may be a directory that has something
    /// in it.
    ///
    /// # Errors
    ///
    /// Links that rest on what is left out.
    pub fn without(&self, entries: &BTreeSet<EntryIndex>) -> Result<Manifest, ManifestError> {
        let mut builder = ManifestBuilder::new(u32::MAX).with_long_paths(true);
        let mut kept = self.iter().filter(|(index, _)| !entries.contains(index));
        kept.try_for_each(|(_, entry)| builder.push(&entry))?;
        builder.finish()
    }

    /// The entries that a peer without the capability `long-paths` would refuse. Whatever is
    /// beneath one is among them.
    pub fn long_paths(&self) -> BTreeSet<EntryIndex> {
        self.iter().filter(|(_, entry)| entry.path.is_long()).map(|(index, _)| index).collect()
    }

    /// The totals for MANIFEST_END.
    pub fn end(&self) -> ManifestEnd {
        ManifestEnd { entries: self.len(), bytes: self.bytes, digest: XxHash3_64::oneshot(&self.encoded) }
    }
}

/// Builds a manifest, from a walk or from frames, and keeps its rules.
#[derive(Clone)]
pub struct ManifestBuilder {
    manifest: Manifest,
    entries_max: u32,
    long_paths: bool,
    digest: XxHash3_64,
    /// Where the last entry's path stands in `manifest.encoded`, and whether something may lie beneath it.
    last: Option<(std::ops::Range<usize>, bool)>,
    ended_by_stream: bool,
    /// Topmost components, counted.
    tops: u32,
    /// Links of which only the complete manifest tells where they lead.
    climbing: Vec<EntryIndex>,
    for_list: bool,
}

impl std::fmt::Debug for ManifestBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ManifestBuilder").field("entries", &self.manifest.len()).finish_non_exhaustive()
    }
}

impl ManifestBuilder {
    /// An empty manifest that takes at most `entries_max` entries.
    pub fn new(entries_max: u32) -> Self {
        Self {
            manifest: Manifest::default(),
            entries_max,
            long_paths: false,
            digest: XxHash3_64::new(),
            last: None,
            ended_by_stream: false,
            tops: 0,
            climbing: Vec::new(),
            for_list: false,
        }
    }

    /// An empty list that is only shown: its links may lead anywhere.
    pub fn for_list(entries_max: u32) -> Self {
        Self { for_list: true, ..Self::new(entries_max) }
    }

    /// The same, taking paths of up to 65,535 bytes if `long_paths` says so: both ends have that
    /// capability, or the manifest stays here.
    pub fn with_long_paths(self, long_paths: bool) -> Self {
        Self { long_paths, ..self }
    }

    /// Adds an entry after the others.
    pub fn push(&mut self, entry: &Entry<'_>) -> Result<(), ManifestError> {
        let mut encoded = Vec::with_capacity(64 + entry.path.as_bytes().len());
        entry.encode(&mut encoded);
        self.handle_part(&encoded)
    }

    /// Takes the payload of one MANIFEST frame.
    pub fn handle_part(&mut self, part: &[u8]) -> Result<(), ManifestError> {
        let mut cursor = Cursor::new(part);
        while !cursor.is_empty() {
            let before = cursor.rest();
            let entry = decode(&mut cursor)?;
            let encoded = before.get(..before.len() - cursor.rest().len()).unwrap_or(before);
            self.check(&entry)?;
            let start = self.manifest.encoded.len();
            if self.manifest.len() >= self.entries_max || start + encoded.len() > BYTES_MAX {
                return Err(ManifestError::TooMany(self.entries_max));
            }
            let is_climbing = match entry.kind {
                EntryKind::Link { target } if !self.for_list => {
                    !climbs(entry.path, target).map_err(EntryError::from)?.is_empty()
                }
                _ => false,
            };
            if is_climbing {
                self.climbing.push(EntryIndex(self.manifest.len()));
            }
            self.manifest.bytes =
                self.manifest.bytes.checked_add(entry.size()).ok_or(ManifestError::Overflow)?;
            self.manifest.starts.push(start as u32);
            self.manifest.encoded.extend_from_slice(encoded);
            self.ended_by_stream |= entry.kind == EntryKind::Stream;
            if self.last_path().is_none_or(|last| last.top() != entry.path.top()) {
                self.tops += 1;
            }
            // The path follows the kind and its own length.
            let path = start + 3..start + 3 + entry.path.as_bytes().len();
            self.last = Some((path, entry.kind == EntryKind::Directory));
        }
        self.digest.write(part);
        Ok(())
    }

    fn check(&self, entry: &Entry<'_>) -> Result<(), ManifestError> {
        if entry.path.is_long() && !self.long_paths {
            return Err(EntryError::Path(PathError::TooLong).into());
        }
        let shown = || entry.path.as_bytes().escape_ascii().to_string();
        if self.ended_by_stream {
            return Err(ManifestError::Order(shown()));
        }
        let (Some((_, is_directory)), Some(last)) = (&self.last, self.last_path()) else { return Ok(()) };
        if entry.path <= last && entry.kind != EntryKind::Stream {
            return Err(ManifestError::Order(shown()));
        }
        if !is_directory && (entry.path.is_beneath(last) || entry.path == last) {
            return Err(ManifestError::Beneath(shown()));
        }
        Ok(())
    }

    fn last_path(&self) -> Option<RelPath<'_>> {
        let (range, _) = self.last.as_ref()?;
        RelPath::new(self.manifest.encoded.get(range.clone())?).ok()
    }

    /// Returns true if a link leads nowhere above the transfer, as far as its text alone can tell.
    pub fn takes_link(&self, link: &Entry<'_>) -> bool {
        match link.kind {
            EntryKind::Link { target } => climbs(link.path, target).is_ok(),
            _ => false,
        }
    }

    /// Ends a manifest that was built here.
    pub fn finish(self) -> Result<Manifest, ManifestError> {
        match self.escaping() {
            escaping if escaping.is_empty() => Ok(self.manifest),
            _ => Err(EntryError::Path(PathError::Escapes).into()),
        }
    }

    /// Ends a manifest that was built here without the links of which nobody can say where they
    /// lead. Returns those, with their paths.
    ///
    /// # Errors
    ///
    /// As [`Self::push`].
    pub fn finish_without_escaping(self) -> Result<(Manifest, BTreeMap<EntryIndex, Vec<u8>>), ManifestError> {
        let mut left_out = BTreeMap::new();
        let mut builder = self;
        // With a topmost component that is taken out, what another link rests on may be gone: until
        // none is left.
        loop {
            let escaping = builder.escaping();
            if escaping.is_empty() {
                return Ok((builder.manifest, left_out));
            }
            let original = (0..).map(EntryIndex).filter(|entry| !left_out.contains_key(entry));
            let original: Vec<_> = original.take(builder.manifest.len() as usize).collect();
            let mut next = ManifestBuilder::new(builder.entries_max).with_long_paths(builder.long_paths);
            for (index, entry) in builder.manifest.iter() {
                match original.get(index.at()) {
                    Some(&original) if escaping.contains(&index) => {
                        left_out.insert(original, entry.path.as_bytes().to_vec());
                    }
                    _ => next.push(&entry)?,
                }
            }
            builder = next;
        }
    }

    /// Links whose text goes up behind something else than a directory of this manifest.
    fn escaping(&self) -> BTreeSet<EntryIndex> {
        let rests_on_nothing = |entry: EntryIndex| {
            let Some(Entry { path, kind: EntryKind::Link { target }, .. }) = self.manifest.get(entry) else {
                return false;
            };
            // With one topmost component, which may be given another name, no link may rest on that
            // name.
            let holds = |directory: &[u8], names_top: bool| {
                let found = RelPath::new(directory).ok().and_then(|path| self.manifest.find(path));
                (self.tops > 1 || !names_top)
                    && found.is_some_and(|(_, entry)| entry.kind == EntryKind::Directory)
            };
            climbs(path, target)
                .is_ok_and(|climbs| !climbs.iter().all(|climb| holds(&climb.directory, climb.names_top)))
        };
        self.climbing.iter().copied().filter(|&entry| rests_on_nothing(entry)).collect()
    }

    /// Ends a manifest that came in frames, comparing it with what MANIFEST_END says.
    pub fn handle_end(self, end: &ManifestEnd) -> Result<Manifest, ManifestError> {
        let totals = ManifestEnd {
            entries: self.manifest.len(),
            bytes: self.manifest.bytes,
            digest: self.digest.finish(),
        };
        if totals != *end {
            return Err(ManifestError::Totals);
        }
        self.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(path: &str, size: u64) -> Entry<'_> {
        Entry {
            path: RelPath::new(path.as_bytes()).unwrap(),
            kind: EntryKind::File { size },
            mode: 0o644,
            mtime: Mtime { seconds: -5, nanos: 999_999_999 },
        }
    }

    fn build(entries: &[Entry<'_>]) -> Result<Manifest, ManifestError> {
        let mut builder = ManifestBuilder::new(1000);
        entries.iter().try_for_each(|entry| builder.push(entry))?;
        builder.finish()
    }

    #[test]
    fn entries_ascend_and_nothing_lies_beneath_a_file() {
        let directory = Entry { kind: EntryKind::Directory, ..file("a", 0) };
        let link = Entry { kind: EntryKind::Link { target: b"c" }, ..file("a/b", 0) };
        let stream = Entry { kind: EntryKind::Stream, ..file("a", 0) };
        assert!(build(&[directory, file("a/b", 1), file("a!", 1)]).is_ok());
        assert!(matches!(build(&[file("a", 1), file("a", 1)]), Err(ManifestError::Order(_))));
        assert!(matches!(build(&[file("b", 1), file("a", 1)]), Err(ManifestError::Order(_))));
        assert!(matches!(build(&[file("a", 1), file("a/b", 1)]), Err(ManifestError::Beneath(_))));
        assert!(matches!(build(&[link, file("a/b/c", 1)]), Err(ManifestError::Beneath(_))));
        assert!(matches!(build(&[stream, file("b", 1)]), Err(ManifestError::Order(_))));
    }

    #[test]
    fn case_18_sizes_that_overflow_and_totals_that_lie_are_refused() {
        assert_eq!(build(&[file("a", u64::MAX), file("b", 1)]), Err(ManifestError::Overflow));
        let manifest = build(&[file("a", 1), file("b", 2)]).unwrap();
        let honest = manifest.end();
        for end in [
            ManifestEnd { entries: 1, ..honest },
            ManifestEnd { bytes: 4, ..honest },
            ManifestEnd { digest: honest.digest ^ 1, ..honest },
        ] {
            let mut builder = ManifestBuilder::new(10);
            builder.handle_part(&manifest.encoded).unwrap();
            assert_eq!(builder.handle_end(&end), Err(ManifestError::Totals));
        }
    }

    #[test]
    fn case_48_a_link_rests_only_on_directories_of_its_manifest() {
        let link = |path, target| Entry { kind: EntryKind::Link { target }, ..file(path, 0) };
        let directory = |path| Entry { kind: EntryKind::Directory, ..file(path, 0) };
        for good in [
            &[directory("a"), link("a/l", b"../b"), file("b", 1)][..],
            &[directory("a"), link("a/l", b"../nowhere")],
            &[directory("a"), directory("a/d"), link("a/l", b"d/../x")],
            &[directory("d"), link("l", b"d/../x")],
            &[link("l", b"nowhere")],
        ] {
            assert!(build(good).is_ok(), "{good:?}");
        }
        for bad in [
            &[directory("a"), link("a/l", b"d/../x")][..],
            &[directory("a"), link("a/d", b"."), link("a/l", b"d/../x")],
            &[directory("a"), file("a/d", 1), link("a/l", b"d/../x")],
            // The one topmost component may be called something else where it arrives.
            &[directory("a"), link("a/l", b"../a/../x")],
            &[link("l", b"..")],
            &[link("l", b"/etc")],
        ] {
            assert!(build(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn links_that_nobody_can_judge_are_left_out_and_the_rest_stays() {
        let link = |path, target| Entry { kind: EntryKind::Link { target }, ..file(path, 0) };
        let directory = |path| Entry { kind: EntryKind::Directory, ..file(path, 0) };
        let mut builder = ManifestBuilder::new(100);
        let entries = [
            directory("a"),
            link("a/bad", b"x/../y"),
            link("a/good", b"../nowhere"),
            link("a/top", b"../a/../y"),
            link("b", b"c/../d"),
        ];
        entries.iter().for_each(|entry| builder.push(entry).unwrap());
        let (manifest, left_out) = builder.finish_without_escaping().unwrap();
        // Without `b` there is one topmost component only, so that `a/top` cannot be judged either.
        assert_eq!(left_out.into_keys().collect::<Vec<_>>(), [1, 3, 4].map(EntryIndex));
        let paths: Vec<_> = manifest.iter().map(|(_, entry)| entry.path.as_bytes().to_vec()).collect();
        assert_eq!(paths, [&b"a"[..], b"a/good"]);
        let beyond = manifest.links_beyond_base();
        assert_eq!(beyond, [EntryIndex(1)].into());
        assert_eq!(manifest.without(&beyond).unwrap().len(), 1);
    }

    #[test]
    fn long_paths_are_taken_only_where_both_ends_take_them() {
        let path = |len: usize| {
            let mut path = "d/".repeat(700) + &("e".repeat(254) + "/").repeat(len / 255 + 1);
            path.truncate(len);
            if path.ends_with('/') {
                path.replace_range(len - 1.., "f");
            }
            path
        };
        for (len, is_long) in [(4095, false), (4096, false), (4097, true), (65_535, true)] {
            let path = path(len);
            assert_eq!(path.len(), len);
            for long_paths in [false, true] {
                let mut builder = ManifestBuilder::new(2).with_long_paths(long_paths);
                let pushed = builder.push(&file(&path, 1));
                assert_eq!(pushed.is_ok(), long_paths || !is_long, "{len}");
                if pushed.is_err() {
                    assert_eq!(pushed, Err(EntryError::Path(PathError::TooLong).into()));
                    continue;
                }
                let manifest = builder.finish().unwrap();
                assert_eq!(manifest.get(EntryIndex(0)).unwrap().path.as_bytes(), path.as_bytes());
                assert_eq!(manifest.long_paths().len(), usize::from(is_long));
            }
        }
    }

    #[test]
    fn more_entries_than_allowed_are_refused() {
        let mut builder = ManifestBuilder::new(1);
        builder.push(&file("a", 1)).unwrap();
        assert_eq!(builder.push(&file("b", 1)), Err(ManifestError::TooMany(1)));
    }

    proptest! {
        #[test]
        fn parts_join_to_the_same_manifest(names in prop::collection::btree_set("[a-z]{1,40}", 0..60), part in 1usize..400) {
            let entries: Vec<_> = names.iter().enumerate().map(|(i, name)| file(name, i as u64)).collect();
            let manifest = build(&entries).unwrap();
            let mut builder = ManifestBuilder::new(1000);
            for bytes in manifest.parts(part) {
                prop_assert!(!bytes.is_empty());
                prop_assert!(bytes.len() <= part || bytes.len() < 80);
                builder.handle_part(bytes).unwrap();
            }
            let again = builder.handle_end(&manifest.end()).unwrap();
            prop_assert_eq!(&again, &manifest);
            prop_assert!(again.iter().map(|(_, entry)| entry).eq(entries));
        }

        #[test]
        fn any_bytes_are_taken_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut builder = ManifestBuilder::new(1000);
            if builder.handle_part(&bytes).is_ok()
                && let Ok(manifest) = builder.finish() { prop_assert_eq!(manifest.encoded, bytes); }
        }
    }
}
