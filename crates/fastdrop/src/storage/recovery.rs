//! What earlier transfers left: found, verified, continued or removed.

use crate::error::Error;
use crate::storage::folder::{hidden_path, temp_name};
use crate::storage::io::{STEP, read_exact_at};
use crate::storage::journal;
use crate::storage::journal::{FileKey, Found, Left, LeftContent, Piece, Recovered};
use crate::storage::lent;
use crate::storage::part;
use crate::storage::part::{PartIndex, remove_folder};
use crate::storage::root::Root;
use crate::storage::stage::Stage;
use crate::thread::spawn_scoped;
use fastdrop_proto::checksum::{Algorithm, PieceChecksum};
use fastdrop_proto::fastdp::HIDDEN;
use fastdrop_proto::units::ChunkSize;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

/// Fewer pieces than this are verified by one thread.
const VERIFY_ALONE: usize = 32;
/// Threads that verify one file.
const VERIFIERS_MAX: usize = 8;
/// How often a journal that is locked is looked at again.
const LOOKS_MAX: u32 = 10;
/// A folder without a journal is taken for a transfer that is just beginning for so long.
const BEGINNING_MAX: Duration = Duration::from_secs(60);

/// Who is at an unfinished transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Busy {
    /// A transfer of this server, which stays.
    Known,
    /// A transfer of this server that has just been ended.
    Ended,
    /// Nobody here.
    Unknown,
}

/// What an earlier transfer left, with its journal locked.
#[derive(Debug)]
pub(crate) struct Leftovers {
    root: Arc<Root>,
    folder: OwnedFd,
    /// The parts of it that are not at the root.
    elsewhere: BTreeMap<u8, OwnedFd>,
    pub(crate) name: String,
    recovered: Recovered,
}

impl Leftovers {
    /// The unfinished work beneath `root` that nobody is at; for each folder that somebody is at,
    /// `busy` hears its name.
    ///
    /// Only what has a file that is `wanted`, or was given the name `named`, is kept, and locked
    /// for others.
    pub(crate) fn find(
        root: &Arc<Root>,
        named: Option<&[u8]>,
        wanted: impl Fn(&FileKey) -> bool,
        mut busy: impl FnMut(&str) -> Busy,
    ) -> Vec<Leftovers> {
        let Ok(outer) = root.open_dir(HIDDEN) else { return Vec::new() };
        let mut found = Vec::new();
        for (name, _) in crate::storage::root::names(outer.as_fd()).unwrap_or_default() {
            let Ok(name) = String::from_utf8(name) else { continue };
            let Ok(folder) = root.open_dir(&hidden_path(&name)) else { continue };
            let mut tries = 0;
            let state = loop {
                match journal::recover(folder.as_fd()) {
                    // Somebody may only be having a look, as we are.
                    Found::Busy if tries < LOOKS_MAX => match busy(&name) {
                        Busy::Known => break Found::Busy,
                        Busy::Ended => tries += 1,
                        Busy::Unknown => {
                            tries += 1;
                            std::thread::sleep(Duration::from_millis(5));
                        }
                    },
                    state => break state,
                }
            };
            match state {
                Found::Recovered(recovered) => {
                    return_lent(root, folder.as_fd(), &recovered);
                    // Nothing was brought, and nothing begun under a name that still exists.
                    let is_there =
                        |path: &[u8]| !matches!(root.stat(path), Err(Errno::NOENT | Errno::NOTDIR));
                    let begun = recovered.named.as_deref().is_some_and(is_there);
                    if recovered.files.is_empty() && !begun {
                        remove_folder(root, &name, &recovered.parts);
                        continue;
                    }
                    let same_name = named.is_some() && recovered.named.as_deref() == named;
                    if !same_name && !recovered.files.iter().any(|left| wanted(&left.key)) {
                        continue;
                    }
                    // What was written and not journaled counts for nothing.
                    let known: BTreeSet<_> =
                        recovered.files.iter().map(|left| temp_name(&name, left.temp).into_bytes()).collect();
                    let elsewhere = part::open_all(root, &name, &recovered.parts);
                    for folder in std::iter::once(&folder).chain(elsewhere.values()) {
                        for file in part::temps(folder.as_fd()).iter().filter(|&file| !known.contains(file)) {
                            let _ = rustix::fs::unlinkat(folder, &file[..], AtFlags::empty());
                        }
                    }
                    found.push(Leftovers { root: Arc::clone(root), folder, elsewhere, name, recovered });
                }
                Found::Busy => {}
                Found::Worthless => remove_folder(root, &name, &journal::parts(folder.as_fd())),
                Found::Nothing => {
                    let touched = rustix::fs::fstat(&folder).map_or(0, |stat| stat.st_mtime);
                    if since(touched) > BEGINNING_MAX {
                        remove_folder(root, &name, &BTreeMap::new());
                    }
                }
            }
        }
        found
    }

    /// The folder that a file is in; None if it cannot be reached now.
    fn folder_of(&self, temp: u32) -> Option<BorrowedFd<'_>> {
        match PartIndex::of(temp) {
            PartIndex::HOME => Some(self.folder.as_fd()),
            PartIndex(part) => self.elsewhere.get(&part).map(AsFd::as_fd),
        }
    }

    /// The files, by what they are to become; the index is that of the file in [`Self::file`].
    pub(crate) fn keys(&self) -> impl Iterator<Item = (&FileKey, usize)> {
        self.recovered.files.iter().enumerate().map(|(at, left)| (&left.key, at))
    }

    /// Checks one file against the journal: what of it is as the journal says; None if nothing is.
    ///
    /// `identity` is what the sender calls the file now, 0 if it does not say. Of another file
    /// nothing is kept that could not be compared, and the rest is claimed only.
    ///
    /// # Errors
    ///
    /// What the system says of a file that is there, or may be, and cannot be looked at now: no
    /// verdict on it.
    pub(crate) fn verify(
        &self,
        at: usize,
        identity: u64,
        algorithm: Algorithm,
        one_chunk: ChunkSize,
    ) -> Result<Option<Left>, Errno> {
        let Some(left) = self.recovered.files.get(at) else { return Ok(None) };
        let same = identity != 0 && left.identity == identity;
        if !same && (algorithm.is_empty() || matches!(left.content, LeftContent::Whole(_))) {
            return Ok(None);
        }
        // Without checksums only the page cache can vouch for what was not synced, and it went with
        // the power.
        if self.recovered.algorithm != algorithm || (algorithm.is_empty() && !self.recovered.same_boot) {
            return Ok(None);
        }
        let name = temp_name(&self.name, left.temp);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let folder = self.folder_of(left.temp).ok_or(Errno::XDEV)?;
        let fd = match rustix::fs::openat(folder, name, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::LOOP) => return Ok(None),
            result => result?,
        };
        let stat = rustix::fs::fstat(&fd)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile
            || stat.st_size as u64 != left.key.size
        {
            return Ok(None);
        }
        let one = u64::from(one_chunk.bytes());
        let content = match &left.content {
            LeftContent::Whole(checksum) if left.key.size <= one => {
                let mut bytes = vec![0; left.key.size as usize];
                read_exact_at(&fd, &mut bytes, 0)?;
                (algorithm.of(&bytes) == *checksum).then_some(LeftContent::Whole(*checksum))
            }
            LeftContent::Pieces(pieces) if self.recovered.one_chunk == one_chunk => {
                let mut held = verify_pieces(&fd, left.key.size, pieces, algorithm, one);
                held.values_mut().for_each(|piece| piece.claimed |= !same);
                (!held.is_empty()).then_some(LeftContent::Pieces(held))
            }
            LeftContent::Whole(_) | LeftContent::Pieces(_) => None,
        };
        Ok(content.map(|content| Left { content, identity, ..left.clone() }))
    }

    /// Moves a file that was verified, as `left`, into `part` of another stage; its number there.
    pub(super) fn move_into(&self, stage: &Stage, left: &Left, part: PartIndex) -> Result<u32, Error> {
        let gone = || Error::system("continuing unfinished work", Errno::NOENT);
        let folder = self.folder_of(left.temp).ok_or_else(gone)?;
        stage.adopt(folder, &temp_name(&self.name, left.temp), left, part)
    }

    /// Deletes one file.
    pub(crate) fn discard(&self, at: usize) {
        if let Some(left) = self.recovered.files.get(at)
            && let Some(folder) = self.folder_of(left.temp)
        {
            let _ = rustix::fs::unlinkat(folder, temp_name(&self.name, left.temp), AtFlags::empty());
        }
    }

    /// Takes the folders away if only the journal is left in them.
    pub(crate) fn close(self) {
        let mut folders = std::iter::once(&self.folder).chain(self.elsewhere.values());
        if folders.all(|folder| part::temps(folder.as_fd()).is_empty()) {
            remove_folder(&self.root, &self.name, &self.recovered.parts);
        }
    }
}

/// Those of `pieces`, each `one` bytes of the `size` in `fd`, that have the checksums that were
/// noted for them.
///
/// Whoever continues waits for this, so all cores read at once.
fn verify_pieces(
    fd: &OwnedFd,
    size: u64,
    pieces: &BTreeMap<u32, Piece>,
    algorithm: Algorithm,
    one: u64,
) -> BTreeMap<u32, Piece> {
    let pieces: Vec<_> = pieces.iter().map(|(&number, &piece)| (number, piece)).collect();
    let next = AtomicUsize::new(0);
    let some = || {
        let mut buffer = vec![0; STEP];
        let mut held = Vec::new();
        while let Some(&(number, piece)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            let offset = u64::from(number) * one;
            let Some(len) = size.checked_sub(offset).map(|left| left.min(one)) else { continue };
            let mut computed = PieceChecksum::new(algorithm, offset, size <= one);
            let agrees = (0..len).step_by(STEP).all(|at| {
                let step = &mut buffer[..STEP.min((len - at) as usize)];
                let read = read_exact_at(fd, step, offset + at);
                computed.update(step);
                read.is_ok()
            });
            if agrees && computed.finish() == piece.checksum {
                held.push((number, piece));
            }
        }
        held
    };
    let helpers = match pieces.len() {
        0..VERIFY_ALONE => 0,
        _ => std::thread::available_parallelism().map_or(1, |cores| cores.get().min(VERIFIERS_MAX)) - 1,
    };
    std::thread::scope(|scope| {
        // Without a thread to be had, this one does it all.
        let helping = (0..helpers).map_while(|_| spawn_scoped(scope, "verify", some).ok());
        let helping: Vec<_> = helping.collect();
        // What a thread that failed had looked at comes again.
        some()
            .into_iter()
            .chain(helping.into_iter().flat_map(|held| held.join().unwrap_or_default()))
            .collect()
    })
}

/// Whether an unfinished transfer beneath `root` was given `path` as its name.
pub(crate) fn is_named(root: &Root, path: &[u8]) -> bool {
    let Ok(outer) = root.open_dir(HIDDEN) else { return false };
    let names = crate::storage::root::names(outer.as_fd()).unwrap_or_default();
    names.iter().any(|(name, _)| {
        let folder = root.open_dir(&[HIDDEN, b"/", &name[..]].concat());
        folder.is_ok_and(|folder| journal::named(folder.as_fd()).as_deref() == Some(path))
    })
}

/// The time since `seconds` after 1970, by the clock on the wall: the only one that outlives a
/// process.
fn since(seconds: i64) -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// Removes what nobody has come back for in `age`.
pub(crate) fn expire(root: &Arc<Root>, age: Duration) {
    let Ok(outer) = root.open_dir(HIDDEN) else { return };
    for (name, _) in crate::storage::root::names(outer.as_fd()).unwrap_or_default() {
        let Ok(name) = String::from_utf8(name) else { continue };
        let Ok(folder) = root.open_dir(&hidden_path(&name)) else { continue };
        let newest = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).map_or(i64::MAX, |stat| stat.st_mtime);
        let journal = rustix::fs::openat(
            &folder,
            journal::NAME,
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let touched = newest(folder.as_fd()).max(journal.map_or(i64::MIN, |fd| newest(fd.as_fd())));
        let is_old = since(touched) > age;
        if !is_old && !has_lent(folder.as_fd()) {
            continue;
        }
        // Locked as long as this looks at it: whoever wants to continue it meanwhile finds it busy.
        let found = journal::recover(folder.as_fd());
        let parts = match &found {
            Found::Busy => continue,
            Found::Recovered(recovered) => {
                return_lent(root, folder.as_fd(), recovered);
                recovered.parts.clone()
            }
            Found::Worthless | Found::Nothing => journal::parts(folder.as_fd()),
        };
        if is_old {
            tracing::info!(folder = %name, "removing unfinished work that nobody came back for");
            remove_folder(root, &name, &parts);
        }
    }
}

/// Whether the journal in `folder` may name folders that have not got back what they were.
fn has_lent(folder: BorrowedFd<'_>) -> bool {
    rustix::fs::statat(folder, journal::LENT_MARK, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// Gives folders back the permissions that they had before a transfer that was killed. It happens
/// once: a mode that one of them has after that is the one that somebody wants.
fn return_lent(root: &Root, folder: BorrowedFd<'_>, recovered: &Recovered) {
    if has_lent(folder) && lent::give_back(root, &recovered.lent) {
        let _ = rustix::fs::unlinkat(folder, journal::LENT_MARK, AtFlags::empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::attributes::set_attributes;
    use crate::storage::io::write_all_at;
    use crate::storage::journal::Record;
    use crate::storage::stage::tests::stage;
    use fastdrop_proto::fastdp::Durability;
    use fastdrop_proto::units::Mtime;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn case_36_what_the_journal_says_is_believed_only_if_the_data_agrees() {
        let dir = tempfile::tempdir().unwrap();
        let (root, stage) = stage(dir.path());
        let (temp, fd) = stage.new_temp(PartIndex::HOME, 0o600).unwrap();
        write_all_at(fd.as_fd(), &[1; 1024], 0).unwrap();
        write_all_at(fd.as_fd(), &[2; 1024], 1024).unwrap();
        let key = FileKey { path: b"f".to_vec(), size: 2048, mtime: (0, 0) };
        let sum = |byte| Algorithm::Xxh3.of(&[byte; 1024]);
        let piece = |piece, checksum| Record::Piece { temp, piece, checksum };
        let records = [Record::File { temp, identity: 5, key }, piece(0, sum(1)), piece(1, sum(3))];
        stage.journal().append(&records).unwrap();
        drop(stage);
        let found = Leftovers::find(&root, None, |_| true, |_| panic!("nobody is at it"));
        let verify = |identity, algorithm| found[0].verify(0, identity, algorithm, ChunkSize::MIN).unwrap();
        for (identity, claimed) in [(5, false), (6, true), (0, true)] {
            let left = verify(identity, Algorithm::Xxh3).unwrap();
            let piece = Piece { checksum: sum(1), claimed };
            assert_eq!(left.content, LeftContent::Pieces(BTreeMap::from([(0, piece)])));
            assert_eq!(left.identity, identity);
        }
        assert!(verify(5, Algorithm::Blake3).is_none());
        found[0].discard(0);
        assert!(verify(5, Algorithm::Xxh3).is_none());
    }

    #[test]
    fn case_103_what_cannot_be_compared_is_kept_only_of_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let root = Arc::new(Root::open(dir.path()).unwrap());
        let stage = |algorithm| {
            Stage::create(Arc::clone(&root), algorithm, ChunkSize::MIN, Durability::Commit, None).unwrap()
        };
        let key = |path: &str, size| FileKey { path: path.into(), size, mtime: (0, 0) };
        let sum = |algorithm: Algorithm| algorithm.of(&[1; 1024]);
        for algorithm in [Algorithm::None, Algorithm::Xxh3] {
            let stage = stage(algorithm);
            let (small, fd) = stage.new_temp(PartIndex::HOME, 0o600).unwrap();
            write_all_at(fd.as_fd(), &[1; 1024], 0).unwrap();
            let checksum = sum(algorithm);
            let name = algorithm.name();
            let mut records =
                vec![Record::Small { temp: small, identity: 5, checksum, key: key(name, 1024) }];
            if algorithm == Algorithm::None {
                let (temp, fd) = stage.new_temp(PartIndex::HOME, 0o600).unwrap();
                rustix::fs::ftruncate(&fd, 2048).unwrap();
                records.push(Record::File { temp, identity: 5, key: key("big", 2048) });
                records.push(Record::Piece { temp, piece: 0, checksum });
            }
            stage.journal().append(&records).unwrap();
        }
        for leftovers in Leftovers::find(&root, None, |_| true, |_| panic!("nobody is at it")) {
            let algorithm = leftovers.recovered.algorithm;
            for (key, at) in leftovers.keys() {
                for (identity, kept) in [(5, true), (6, false), (0, false)] {
                    let left = leftovers.verify(at, identity, algorithm, ChunkSize::MIN).unwrap();
                    assert_eq!(left.is_some(), kept, "{key:?} as {identity}");
                }
            }
        }
    }

    #[test]
    fn what_was_lent_is_given_back_once_and_a_later_mode_stays() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("d");
        std::fs::create_dir(&folder).unwrap();
        let mode = || std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777;
        let set_mode = |mode| std::fs::set_permissions(&folder, Permissions::from_mode(mode)).unwrap();
        set_mode(0o555);
        let (root, stage) = stage(dir.path());
        let key = FileKey { path: b"d/f".to_vec(), size: 1, mtime: (0, 0) };
        stage.journal().append(&[Record::File { temp: 0, identity: 0, key }]).unwrap();
        assert!(stage.lend(b"d").unwrap());
        assert_eq!(mode(), 0o755);
        // As after a kill: nothing is given back, and the journal is free.
        stage.journal().unlock();
        std::mem::forget(stage);
        let find = || Leftovers::find(&root, None, |_| true, |_| panic!("nobody is at it"));
        assert_eq!(find().len(), 1);
        assert_eq!(mode(), 0o555);
        set_mode(0o755);
        assert_eq!(find().len(), 1);
        expire(&root, Duration::from_secs(3600));
        assert_eq!(mode(), 0o755);
    }

    #[test]
    fn only_what_is_old_and_abandoned_expires() {
        let dir = tempfile::tempdir().unwrap();
        let (root, busy) = stage(dir.path());
        let (_, idle) = stage(dir.path());
        let idle_path = dir.path().join(".fastdrop").join(idle.name());
        drop(idle);
        expire(&root, Duration::from_secs(3600));
        assert!(idle_path.exists());
        let past = Mtime { seconds: 1, nanos: 0 };
        for path in [idle_path.clone(), idle_path.join(journal::NAME)] {
            let fd = rustix::fs::open(&path, OFlags::RDONLY, Mode::empty()).unwrap();
            set_attributes(fd.as_fd(), Some(past), None).unwrap();
        }
        expire(&root, Duration::from_secs(3600));
        assert!(!idle_path.exists());
        assert!(dir.path().join(".fastdrop").join(busy.name()).exists());
    }

    #[test]
    fn case_36_only_pieces_that_are_as_the_journal_says_are_held_whoever_reads_them() {
        const ONE: u64 = 1024;
        let size = 100 * ONE + 7;
        let mut data: Vec<u8> = (0..size).map(|i| (i * 31 % 251) as u8).collect();
        let offsets = (0..).map(|piece| piece * ONE).take_while(|&offset| offset < size);
        let sum = |offset: u64| {
            let part = &data[offset as usize..(offset + ONE).min(size) as usize];
            Algorithm::Xxh3.of_piece(part, offset, false)
        };
        let piece = |offset| Piece { checksum: sum(offset), claimed: false };
        let mut pieces: BTreeMap<u32, Piece> =
            offsets.map(|offset| ((offset / ONE) as u32, piece(offset))).collect();
        assert!(pieces.len() > VERIFY_ALONE);
        let folder = tempfile::tempdir().unwrap();
        let held_of = |data: &[u8], pieces: &BTreeMap<u32, Piece>| {
            let path = folder.path().join("file");
            std::fs::write(&path, data).unwrap();
            let fd = OwnedFd::from(std::fs::File::open(path).unwrap());
            verify_pieces(&fd, size, pieces, Algorithm::Xxh3, ONE)
        };
        assert_eq!(held_of(&data, &pieces), pieces);
        data[40 * ONE as usize] ^= 1;
        let cut = 99 * ONE as usize;
        let held = held_of(&data[..cut], &pieces);
        pieces.retain(|&piece, _| piece != 40 && piece < 99);
        assert_eq!(held, pieces);
    }
}
