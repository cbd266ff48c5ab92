//! What a receiver remembers of unfinished work.
//!
//! A file of records, only ever appended to: `u32` length of what follows the checksum, `u32` low
//! half of the XXH3-64 of that, then a type byte and the record. A cut at any byte, or a flipped
//! bit, ends what is believed; what follows is fetched again.
//!
//! A record names a file by its place, size and mtime, not by the transfer that brought it: any
//! later transfer that wants the same file at the same place may take it over. Whether the sender
//! still has the same file, its identity says; pieces of a file with another identity are claimed
//! only, until the sender has compared them.

use fastdrop_proto::checksum::{Algorithm, Checksum};
use fastdrop_proto::cursor::Cursor;
use fastdrop_proto::units::{ChunkSize, Mtime};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use twox_hash::XxHash3_64;

/// The journal's name in a transfer's folder.
pub(crate) const NAME: &str = "journal";
/// Its name until it is complete.
const NEW: &str = "journal.new";
/// An empty file that is there once the journal names a folder that was lent permissions.
pub(crate) const LENT_MARK: &str = "lent";
/// All names of what belongs to a journal.
pub(crate) const NAMES: [&str; 3] = [NAME, NEW, LENT_MARK];
const MAGIC: &[u8] = b"fastdrop journal 1\n";
/// Bytes of a record: room for a path of any length.
const RECORD_MAX: usize = 128 << 10;
/// Bytes of a journal in which all parts of a stage have been noted.
const PARTS_BYTES_MAX: usize = 1 << 20;
/// More journal than this is not read.
const BYTES_MAX: u64 = 4 << 30;

const OPENED: u8 = 0x01;
/// Without an identity, as earlier versions wrote it; SMALL
/// likewise. Read, and not written any more.
const FILE_BARE: u8 = 0x02;
const PIECE: u8 = 0x03;
const SMALL_BARE: u8 = 0x04;
const CLAIMED: u8 = 0x05;
const FILE: u8 = 0x06;
const SMALL: u8 = 0x07;
const PART: u8 = 0x10;
const LENT: u8 = 0x11;
const RETURNED: u8 = 0x12;

/// A file as it will be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FileKey {
    /// Its place beneath the root.
    pub(crate) path: Vec<u8>,
    /// In bytes.
    pub(crate) size: u64,
    /// Seconds and nanoseconds.
    pub(crate) mtime: (i64, u32),
}

impl FileKey {
    pub(crate) fn new(path: Vec<u8>, size: u64, mtime: Mtime) -> Self {
        Self { path, size, mtime: (mtime.seconds, mtime.nanos) }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.size.to_be_bytes());
        out.extend_from_slice(&self.mtime.0.to_be_bytes());
        out.extend_from_slice(&self.mtime.1.to_be_bytes());
        out.extend_from_slice(&self.path);
    }

    fn decode(cursor: &mut Cursor<'_>) -> Option<Self> {
        let (size, seconds, nanos) = (cursor.u64().ok()?, cursor.i64().ok()?, cursor.u32().ok()?);
        Some(Self { path: cursor.rest().to_vec(), size, mtime: (seconds, nanos) })
    }
}

/// One thing to remember.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record {
    /// How chunks are cut and checked; since which start of the machine; and the path that the
    /// transfer was given as a name, if it was.
    Opened { algorithm: Algorithm, one_chunk: ChunkSize, boot: u64, named: Option<Vec<u8>> },
    /// The temporary file `temp` is to become this file, of this identity; 0 if that is unknown.
    File { temp: u32, identity: u64, key: FileKey },
    /// A piece of `temp`, by its number in the file, is written.
    Piece { temp: u32, piece: u32, checksum: Checksum },
    /// The same of a piece that may be of another version of the file
    /// than the one that `identity` names.
    Claimed { temp: u32, piece: u32, checksum: Checksum },
    /// The temporary file `temp` is all of this small file, with this H.
    Small { temp: u32, identity: u64, checksum: Checksum, key: FileKey },
    /// The stage may have a part of this number at this place.
    Part { part: u8, place: PartPlace },
    /// The folder `path`, whose permissions were `mode`, is about to get more
    /// of them for the time of the transfer.
    Lent { mode: u32, path: Vec<u8> },
    /// The folder `path` has the permissions that it is to have.
    Returned { path: Vec<u8> },
}

impl Record {
    fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; 8]);
        match self {
            Record::Opened { algorithm, one_chunk, boot, named } => {
                out.push(OPENED);
                out.push(algorithm.len() as u8);
                out.extend_from_slice(&one_chunk.bytes().to_be_bytes());
                out.extend_from_slice(&boot.to_be_bytes());
                out.extend_from_slice(named.as_deref().unwrap_or_default());
            }
            Record::File { temp, identity, key } => {
                out.push(FILE);
                out.extend_from_slice(&temp.to_be_bytes());
                out.extend_from_slice(&identity.to_be_bytes());
                key.encode(out);
            }
            Record::Piece { temp, piece, checksum } | Record::Claimed { temp, piece, checksum } => {
                out.push(if matches!(self, Record::Piece { .. }) { PIECE } else { CLAIMED });
                out.extend_from_slice(&temp.to_be_bytes());
                out.extend_from_slice(&piece.to_be_bytes());
                out.extend_from_slice(checksum.as_bytes());
            }
            Record::Small { temp, identity, checksum, key } => {
                out.push(SMALL);
                out.extend_from_slice(&temp.to_be_bytes());
                out.extend_from_slice(&identity.to_be_bytes());
                out.push(checksum.as_bytes().len() as u8);
                out.extend_from_slice(checksum.as_bytes());
                key.encode(out);
            }
            Record::Part { part, place: PartPlace { base, mount_len } } => {
                out.push(PART);
                out.push(*part);
                out.extend_from_slice(&(*mount_len as u32).to_be_bytes());
                out.extend_from_slice(base);
            }
            Record::Lent { mode, path } => {
                out.push(LENT);
                out.extend_from_slice(&mode.to_be_bytes());
                out.extend_from_slice(path);
            }
            Record::Returned { path } => {
                out.push(RETURNED);
                out.extend_from_slice(path);
            }
        }
        let body = &out[start + 8..];
        let (len, sum) = (body.len() as u32, XxHash3_64::oneshot(body) as u32);
        out[start..start + 4].copy_from_slice(&len.to_be_bytes());
        out[start + 4..start + 8].copy_from_slice(&sum.to_be_bytes());
    }

    fn decode(body: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(body);
        Some(match cursor.u8().ok()? {
            OPENED => {
                let algorithm = match cursor.u8().ok()? {
                    0 => Algorithm::None,
                    8 => Algorithm::Xxh3,
                    32 => Algorithm::Blake3,
                    _ => return None,
                };
                let one_chunk = ChunkSize::new(cursor.u32().ok()?.into())?;
                let boot = cursor.u64().ok()?;
                let named = (!cursor.is_empty()).then(|| cursor.rest().to_vec());
                Record::Opened { algorithm, one_chunk, boot, named }
            }
            kind @ (FILE | FILE_BARE) => {
                let temp = cursor.u32().ok()?;
                let identity = if kind == FILE { cursor.u64().ok()? } else { 0 };
                Record::File { temp, identity, key: FileKey::decode(&mut cursor)? }
            }
            kind @ (PIECE | CLAIMED) => {
                let (temp, piece) = (cursor.u32().ok()?, cursor.u32().ok()?);
                let checksum = Checksum::from_slice(cursor.rest());
                match kind {
                    PIECE => Record::Piece { temp, piece, checksum },
                    _ => Record::Claimed { temp, piece, checksum },
                }
            }
            kind @ (SMALL | SMALL_BARE) => {
                let temp = cursor.u32().ok()?;
                let identity = if kind == SMALL { cursor.u64().ok()? } else { 0 };
                let len = usize::from(cursor.u8().ok()?);
                let checksum = Checksum::from_slice(cursor.bytes(len).ok()?);
                Record::Small { temp, identity, checksum, key: FileKey::decode(&mut cursor)? }
            }
            PART => {
                let (part, mount_len) = (cursor.u8().ok()?, cursor.u32().ok()? as usize);
                let base = cursor.rest().to_vec();
                Record::Part { part, place: PartPlace { base, mount_len } }
            }
            LENT => Record::Lent { mode: cursor.u32().ok()?, path: cursor.rest().to_vec() },
            RETURNED => Record::Returned { path: cursor.rest().to_vec() },
            _ => return None,
        })
    }
}

/// A journal that is being written. It is locked: whoever finds it locked
/// knows that its transfer is under way.
#[derive(Debug)]
pub(crate) struct Journal {
    fd: OwnedFd,
}

impl Journal {
    /// Begins a journal in `folder`.
    pub(crate) fn create(
        folder: BorrowedFd<'_>,
        algorithm: Algorithm,
        one_chunk: ChunkSize,
        named: Option<Vec<u8>>,
    ) -> Result<Self, Errno> {
        // It gets its name when it is locked: a journal that nobody
        // has locked is one that nobody is at.
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(folder, NEW, flags, Mode::from_raw_mode(0o600))?;
        rustix::fs::flock(&fd, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
        write_all(fd.as_fd(), MAGIC)?;
        let journal = Self { fd };
        journal.append(&[Record::Opened { algorithm, one_chunk, boot: boot(), named }])?;
        crate::storage::root::rename(folder, NEW.as_bytes(), folder, NAME.as_bytes(), false)?;
        Ok(journal)
    }

    /// Appends records with one write. They survive the death of this process once this returns.
    pub(crate) fn append(&self, records: &[Record]) -> Result<(), Errno> {
        let mut bytes = Vec::with_capacity(records.len() * 64);
        for record in records {
            record.encode(&mut bytes);
        }
        write_all(self.fd.as_fd(), &bytes)
    }

    /// Lets others at it: this transfer is over.
    pub(crate) fn unlock(&self) {
        let _ = rustix::fs::flock(&self.fd, rustix::fs::FlockOperation::Unlock);
    }

    /// Makes what was appended survive the loss of power.
    pub(crate) fn sync(&self) -> Result<(), Errno> {
        rustix::fs::fdatasync(&self.fd)
    }
}

fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// A file that an earlier transfer left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) temp: u32,
    pub(crate) key: FileKey,
    /// What the sender called the file; 0 if it did not.
    pub(crate) identity: u64,
    pub(crate) content: LeftContent,
}

/// How much of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LeftContent {
    /// These pieces, by number.
    Pieces(BTreeMap<u32, Piece>),
    /// All of it, with its H.
    Whole(Checksum),
}

/// Where a part of a stage is that is not at the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PartPlace {
    /// The folder in whose `.fastdrop` it is.
    pub(crate) base: Vec<u8>,
    /// Bytes of `base` that are the place of the mount.
    pub(crate) mount_len: usize,
}

/// A piece of a file that an earlier transfer left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) checksum: Checksum,
    /// It may be of another version than the one that the file's identity names.
    pub(crate) claimed: bool,
}

/// A journal that was found.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) algorithm: Algorithm,
    pub(crate) one_chunk: ChunkSize,
    /// The machine has been up since: what was written is there, synced or not.
    pub(crate) same_boot: bool,
    pub(crate) named: Option<Vec<u8>>,
    pub(crate) files: Vec<Left>,
    /// The parts of its stage that are not at the root, by their numbers.
    pub(crate) parts: BTreeMap<u8, PartPlace>,
    /// Folders that have been lent permissions, with those that they had.
    pub(crate) lent: BTreeMap<Vec<u8>, u32>,
    /// Keeps the lock.
    _fd: OwnedFd,
}

/// What was found in a transfer's folder.
#[derive(Debug)]
pub(crate) enum Found {
    /// Unfinished work that nobody is at.
    Recovered(Recovered),
    /// A transfer under way.
    Busy,
    /// A journal that cannot be believed, and that nobody is at.
    Worthless,
    /// No journal: a transfer that is just beginning, or that ended before it had begun.
    Nothing,
}

/// Reads the journal in `folder`.
pub(crate) fn recover(folder: BorrowedFd<'_>) -> Found {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat(folder, NAME, flags, Mode::empty()) {
        Ok(fd) => fd,
        // It may be there all the same: no verdict.
        Err(errno) if errno != Errno::NOENT => return Found::Busy,
        Err(_) => {
            // One that has been begun and is not locked belonged to a process that died there.
            let begun = rustix::fs::openat(folder, NEW, flags, Mode::empty()).is_ok_and(|fd| {
                let locked = rustix::fs::flock(&fd, rustix::fs::FlockOperation::NonBlockingLockExclusive);
                locked.is_ok() && rustix::fs::fstat(&fd).is_ok_and(|stat| stat.st_size > 0)
            });
            return if begun { Found::Worthless } else { Found::Nothing };
        }
    };
    if rustix::fs::flock(&fd, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        return Found::Busy;
    }
    // What cannot be read now may be readable later: no verdict either.
    let Ok(stat) = rustix::fs::fstat(&fd) else { return Found::Busy };
    let size = stat.st_size as u64;
    if size > BYTES_MAX {
        return Found::Worthless;
    }
    let mut bytes = vec![0; size as usize];
    match crate::storage::io::read_exact_at(&fd, &mut bytes, 0) {
        Ok(()) => {}
        Err(Errno::NODATA) => return Found::Worthless,
        Err(_) => return Found::Busy,
    }
    match replay(&bytes) {
        Some(Replayed {
            opened: Record::Opened { algorithm, one_chunk, boot: then, named },
            files,
            parts,
            lent,
        }) => Found::Recovered(Recovered {
            algorithm,
            one_chunk,
            same_boot: then == boot(),
            named,
            files,
            parts,
            lent,
            _fd: fd,
        }),
        _ => Found::Worthless,
    }
}

/// The parts of the stage that has this folder at the root, also while its transfer is under way.
pub(crate) fn parts(folder: BorrowedFd<'_>) -> BTreeMap<u8, PartPlace> {
    // They are noted before anything else is.
    read_prefix(folder, PARTS_BYTES_MAX)
        .and_then(|bytes| replay(&bytes))
        .map_or(BTreeMap::new(), |replayed| replayed.parts)
}

fn read_prefix(folder: BorrowedFd<'_>, bytes_max: usize) -> Option<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(folder, NAME, flags, Mode::empty()).ok()?;
    let mut bytes = vec![0; bytes_max];
    let count = rustix::io::pread(&fd, &mut bytes, 0).ok()?;
    bytes.truncate(count);
    Some(bytes)
}

/// The path that the transfer in `folder` was given as a name, if
/// it was; also while it is under way.
pub(crate) fn named(folder: BorrowedFd<'_>) -> Option<Vec<u8>> {
    let bytes = read_prefix(folder, MAGIC.len() + RECORD_MAX)?;
    match (Records { rest: bytes.strip_prefix(MAGIC)? }).next()? {
        Record::Opened { named, .. } => named,
        _ => None,
    }
}

/// Which start of the machine this is.
fn boot() -> u64 {
    XxHash3_64::oneshot(&std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default())
}

struct Replayed {
    opened: Record,
    files: Vec<Left>,
    parts: BTreeMap<u8, PartPlace>,
    lent: BTreeMap<Vec<u8>, u32>,
}

/// What the valid prefix of a journal says.
fn replay(bytes: &[u8]) -> Option<Replayed> {
    let mut records = Records { rest: bytes.strip_prefix(MAGIC)? };
    let opened = records.next()?;
    let Record::Opened { algorithm, .. } = opened else { return None };
    let mut files: BTreeMap<u32, Left> = BTreeMap::new();
    let (mut parts, mut lent) = (BTreeMap::new(), BTreeMap::new());
    for record in records {
        match record {
            Record::Opened { .. } => break,
            Record::File { temp, identity, key } => {
                let content = LeftContent::Pieces(BTreeMap::new());
                files.insert(temp, Left { temp, key, identity, content });
            }
            Record::Piece { temp, piece, checksum } | Record::Claimed { temp, piece, checksum } => {
                let claimed = matches!(record, Record::Claimed { .. });
                if let Some(Left { content: LeftContent::Pieces(pieces), .. }) = files.get_mut(&temp)
                    && checksum.as_bytes().len() == algorithm.len()
                {
                    pieces.insert(piece, Piece { checksum, claimed });
                }
            }
            Record::Small { temp, identity, checksum, key } => {
                files.insert(temp, Left { temp, key, identity, content: LeftContent::Whole(checksum) });
            }
            Record::Part { part, place } => {
                parts.insert(part, place);
            }
            Record::Lent { mode, path } => {
                lent.insert(path, mode);
            }
            Record::Returned { path } => {
                lent.remove(&path);
            }
        }
    }
    Some(Replayed { opened, files: files.into_values().collect(), parts, lent })
}

struct Records<'a> {
    rest: &'a [u8],
}

impl Iterator for Records<'_> {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        let mut cursor = Cursor::new(self.rest);
        let len = cursor.u32().ok()? as usize;
        let sum = cursor.u32().ok()?;
        if len > RECORD_MAX {
            return None;
        }
        let body = cursor.bytes(len).ok()?;
        if XxHash3_64::oneshot(body) as u32 != sum {
            return None;
        }
        self.rest = cursor.rest();
        Record::decode(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(path: &str) -> FileKey {
        FileKey { path: path.into(), size: 5000, mtime: (-1, 7) }
    }

    fn written() -> (Vec<u8>, Vec<Record>) {
        let sum = Algorithm::Xxh3.of(b"x");
        let records = vec![
            Record::Opened {
                algorithm: Algorithm::Xxh3,
                one_chunk: ChunkSize::MIN,
                boot: boot(),
                named: Some(b"a".to_vec()),
            },
            Record::File { temp: 0, identity: 9, key: key("a/b") },
            Record::Piece { temp: 0, piece: 3, checksum: sum },
            Record::Claimed { temp: 0, piece: 4, checksum: sum },
            Record::Small { temp: 1, identity: 0, checksum: sum, key: key("c") },
            Record::Piece { temp: 0, piece: 0, checksum: sum },
        ];
        let dir = tempfile::tempdir().unwrap();
        let root = crate::storage::root::Root::open(dir.path()).unwrap();
        let journal =
            Journal::create(root.as_fd(), Algorithm::Xxh3, ChunkSize::MIN, Some(b"a".to_vec())).unwrap();
        journal.append(&records[1..]).unwrap();
        journal.sync().unwrap();
        assert!(matches!(recover(root.as_fd()), Found::Busy));
        drop(journal);
        let Found::Recovered(recovered) = recover(root.as_fd()) else { panic!() };
        assert_eq!(recovered.files.len(), 2);
        (std::fs::read(dir.path().join(NAME)).unwrap(), records)
    }

    fn read(bytes: &[u8]) -> Vec<Record> {
        bytes.strip_prefix(MAGIC).map_or(Vec::new(), |rest| Records { rest }.collect())
    }

    #[test]
    fn records_of_earlier_versions_are_read_and_their_identity_is_unknown() {
        let old = |kind: u8, checksum: &[u8]| {
            let mut body = vec![kind];
            body.extend_from_slice(&7u32.to_be_bytes());
            body.extend_from_slice(checksum);
            key("a").encode(&mut body);
            Record::decode(&body).unwrap()
        };
        assert_eq!(old(FILE_BARE, b""), Record::File { temp: 7, identity: 0, key: key("a") });
        let checksum = Checksum::from_slice(b"12345678");
        let small = Record::Small { temp: 7, identity: 0, checksum, key: key("a") };
        assert_eq!(old(SMALL_BARE, b"\x0812345678"), small);
    }

    #[test]
    fn case_34_a_journal_cut_at_any_byte_is_believed_up_to_its_last_whole_record() {
        let (bytes, records) = written();
        assert_eq!(read(&bytes), records);
        for cut in 0..bytes.len() {
            let found = read(&bytes[..cut]);
            assert!(found.len() < records.len() && found[..] == records[..found.len()], "cut at {cut}");
        }
    }

    #[test]
    fn case_35_a_flipped_bit_ends_what_is_believed() {
        let (bytes, records) = written();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1 << bit;
                let found = read(&bytes);
                assert!(
                    found.len() < records.len() && found[..] == records[..found.len()],
                    "bit {bit} of {at}"
                );
            }
        }
    }
}
