//! One file that arrives by one of the older protocols: written under a temporary
//! name, and named when it is complete.

use crate::error::{Error, reason};
use crate::storage::io::{read_exact_at, write_all_at};
use crate::storage::journal::{FileKey, Record};
use crate::storage::mounts::{Mounts, Refusal};
use crate::storage::namer::Namer;
use crate::storage::options::ReceiveOptions;
use crate::storage::part::PartIndex;
use crate::storage::placement::{DIFFERS, Placement, Rules, Verdict, judge};
use crate::storage::present::{Announced, Comparison, compare, could_be_same};
use crate::storage::root::{Dirs, Root, split};
use crate::storage::stage::Stage;
use crate::thread::{refused, spawn_scoped};
use fastdrop_proto::checksum::{Algorithm, Checksum};
use fastdrop_proto::fastdp::{Code, Entry, EntryKind, Existing, Manifest, ManifestBuilder, Place, RelPath};
use fastdrop_proto::units::{ChunkSize, EntryIndex, Mtime};
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};

/// Bytes of a buffer: they stay in the processor's caches from being received to being written.
pub(crate) const BUFFER: usize = 256 << 10;
/// Buffers of one file.
const BUFFERS: usize = 8;
const ONLY: EntryIndex = EntryIndex(0);

/// A file that is being received. What it has written goes with it, unless it is kept.
#[derive(Debug)]
pub(crate) struct StagedFile {
    namer: Namer,
    stage: Stage,
    /// The part of the stage that it is in.
    part: PartIndex,
    manifest: Manifest,
    temp: u32,
    fd: OwnedFd,
    /// The file that stands at its place may be the same one, and stays.
    contested: bool,
    keep: bool,
}

impl StagedFile {
    /// Begins the file `path` beneath `root`, as far as it was announced; there is room for that.
    ///
    /// A file that is there and has to stay, but could be the same one, is compared by
    /// [`Self::commit`].
    ///
    /// # Errors
    ///
    /// The name leads elsewhere, something is there that has to stay and is no such file, or there
    /// is no room.
    pub(crate) fn create(
        root: &Arc<Root>,
        path: &[u8],
        announced: &Announced,
        options: ReceiveOptions,
    ) -> Result<Self, Error> {
        let path =
            RelPath::new(path).map_err(|error| Error::failed(Code::Forbidden, error.to_string()))?.as_bytes();
        let (folder, name) = split(path);
        let manifest = single(name)?;
        let folder = if folder.is_empty() { Vec::new() } else { [folder, b"/"].concat() };
        let placement = Placement::resolve(root, &folder, Place::Into, &manifest)?;
        let entry = only(&manifest)?;
        let mut dirs = Dirs::default();
        let (exceptions, contested) = match judge_name(root, &mut dirs, path, &entry, options.existing)? {
            verdict @ (Verdict::Replace | Verdict::Renamed) => (HashMap::from([(ONLY, verdict)]), false),
            Verdict::Conflict(DIFFERS) if could_be_same(root, path, announced) => (HashMap::new(), true),
            Verdict::Conflict(why) => return Err(conflict(path, why)),
            Verdict::Identical | Verdict::Adjust | Verdict::Ask | Verdict::Left => {
                return Err(conflict(path, "it exists"));
            }
            Verdict::New => (HashMap::new(), false),
        };
        let mut mounts = Mounts::default();
        mounts.note(root, &mut dirs, ONLY, path, true)?;
        let mut stage =
            Stage::create(Arc::clone(root), Algorithm::None, ChunkSize::COMMON, options.durability, None)?;
        let staged = mounts.stage(root, &mut stage).and_then(|()| {
            let part = mounts.part_of(ONLY);
            part.map_err(|Refusal { code, message }| Error::failed(*code, message.clone()))
        });
        let namer = Namer::new(Arc::clone(root), placement, &options, exceptions);
        let made = staged.and_then(|part| {
            let (_, free) = stage.free(part).unwrap_or((0, u64::MAX));
            options.check_room(announced.room, free, announced.room, stage.place_of(part))?;
            let made = stage.new_temp(part, 0o600);
            made.map(|(temp, fd)| (part, temp, fd)).map_err(|errno| namer.error(&entry, errno))
        });
        match made {
            Ok((part, temp, fd)) => {
                Ok(Self { namer, stage, part, manifest, temp, fd, contested, keep: false })
            }
            Err(error) => {
                stage.remove();
                Err(error)
            }
        }
    }

    /// The folder of its stage.
    pub(crate) fn folder(&self) -> &str {
        self.stage.name()
    }

    /// The temporary file.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// One more temporary file, for what waits for its turn. It goes when the stage does.
    pub(crate) fn spool(&self) -> Result<OwnedFd, Error> {
        let made = self.stage.new_temp(self.part, 0o600);
        made.map(|(_, fd)| fd).map_err(|errno| Error::system("making a spool file", errno))
    }

    /// Moves the `bytes` that begin at `from` to the beginning; the file has no others then.
    pub(crate) fn cut(&self, from: u64, bytes: u64) -> Result<(), Error> {
        let mut buffer = vec![0; BUFFER];
        let mut at = 0;
        while at < bytes {
            let count = (bytes - at).min(BUFFER as u64) as usize;
            let part = &mut buffer[..count];
            read_exact_at(&self.fd, part, from + at).map_err(|errno| self.failed(errno))?;
            write_all_at(self.file(), part, at).map_err(|errno| self.failed(errno))?;
            at += count as u64;
        }
        rustix::fs::ftruncate(&self.fd, bytes).map_err(|errno| self.failed(errno))
    }

    /// Leaves the `bytes` that have come in the stage, where they expire.
    pub(crate) fn keep_aside(mut self, bytes: u64) {
        let Ok(entry) = only(&self.manifest) else { return };
        // Noted, so that nobody takes the stage for an empty one; with a time that no
        // file has, so that nobody continues it.
        let never = Mtime { seconds: i64::MIN, nanos: 0 };
        let key = FileKey::new(self.namer.placement().of(entry.path), bytes, never);
        let (temp, checksum) = (self.temp, Checksum::from_slice(&[]));
        let records = [Record::File { temp, identity: 0, key }, Record::Piece { temp, piece: 0, checksum }];
        self.keep = self.stage.journal().append(&records).is_ok();
    }

    fn failed(&self, errno: Errno) -> Error {
        match self.manifest.get(ONLY) {
            Some(entry) => self.namer.error(&entry, errno),
            None => Error::system("writing", errno),
        }
    }

    /// Syncs the file and gives it its name. Where a file is that has to stay, it is compared: the
    /// same bytes are as good as these.
    ///
    /// # Errors
    ///
    /// Another file is there, or the system fails.
    pub(crate) fn commit(self) -> Result<(), Error> {
        let entry = only(&self.manifest)?;
        let path = self.namer.placement().of(entry.path);
        if self.contested && self.is_present(&path, DIFFERS)? {
            return Ok(());
        }
        self.namer.set_file_attributes(&self.fd, &entry, true).map_err(|errno| self.failed(errno))?;
        self.stage.sync_temps(&[self.temp])?;
        match self.namer.name_file(&self.stage, &mut Dirs::default(), ONLY, &entry, self.temp) {
            Ok(()) => self.namer.sync(&self.stage),
            Err(Errno::EXIST) => {
                let why = "another one was put there meanwhile";
                if self.is_present(&path, why)? { Ok(()) } else { Err(conflict(&path, why)) }
            }
            Err(errno) => {
                let path = crate::shown(&path);
                Err(Error::system(format!("naming {path}: {}", reason(errno)), errno))
            }
        }
    }

    /// Returns true if this file is at `path` already, synced; false if nothing is.
    ///
    /// # Errors
    ///
    /// Something else is there: the reason is `differs`.
    fn is_present(&self, path: &[u8], differs: &str) -> Result<bool, Error> {
        match compare(self.namer.root(), path, &self.fd)? {
            Comparison::Gone => Ok(false),
            Comparison::Differs => Err(conflict(path, differs)),
            Comparison::Same(present) => {
                self.stage.sync_file(present.as_fd())?;
                self.stage.sync_dirs(&[split(path).0.to_vec()])?;
                tracing::info!(path = crate::shown(path), "the same file was there already");
                Ok(true)
            }
        }
    }

    /// Has `receive` fill buffers, which another thread writes at the places that they are given.
    pub(crate) fn write_behind<T>(
        &self,
        receive: impl FnOnce(&mut WriteBehind) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.write_behind_to(self.file(), None, receive)
    }

    /// The same into another file of this stage. `look`, on a thread between
    /// both, sees each buffer with its place.
    pub(crate) fn write_behind_to<T>(
        &self,
        file: BorrowedFd<'_>,
        look: Option<&Look<'_>>,
        receive: impl FnOnce(&mut WriteBehind) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let (mut full, to_write) = sync_channel::<Full>(BUFFERS);
        let (written, empty) = channel();
        std::thread::scope(|scope| {
            if let Some(look) = look {
                let (before, to_look) = sync_channel::<Full>(BUFFERS);
                let after = std::mem::replace(&mut full, before);
                spawn_scoped(scope, "look", move || {
                    for full in to_look {
                        look(full.buffer.get(..full.len).unwrap_or_default(), full.at);
                        if after.send(full).is_err() {
                            return;
                        }
                    }
                })
                .map_err(refused)?;
            }
            let writer = spawn_scoped(scope, "write", move || {
                to_write.iter().try_for_each(|Full { buffer, len, at }| {
                    write_all_at(file, buffer.get(..len).unwrap_or_default(), at)?;
                    self.stage.begin_writeback(file, at, len as u64);
                    // Nobody may want it any more.
                    let _ = written.send(buffer);
                    Ok(())
                })
            })
            .map_err(refused)?;
            let mut behind = WriteBehind { full, empty, spare: Vec::new(), made: 0 };
            let received = receive(&mut behind);
            drop(behind);
            match writer.join() {
                Ok(Ok(())) => received,
                Ok(Err(errno)) => Err(self.failed(errno)),
                Err(_) => Err(self.failed(Errno::IO)),
            }
        })
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if !self.keep {
            self.stage.remove();
        }
    }
}

/// Sees what is about to be written, and where.
pub(crate) type Look<'a> = dyn Fn(&[u8], u64) + Sync + 'a;

struct Full {
    buffer: Vec<u8>,
    len: usize,
    at: u64,
}

/// The receiving end's side of [`StagedFile::write_behind`].
pub(crate) struct WriteBehind {
    full: SyncSender<Full>,
    empty: Receiver<Vec<u8>>,
    spare: Vec<Vec<u8>>,
    made: usize,
}

impl WriteBehind {
    /// A buffer of [`BUFFER`] bytes, as soon as there is one; an error if writing has
    /// failed, which is then the one that counts.
    pub(crate) fn buffer(&mut self) -> Result<Vec<u8>, Error> {
        if let Some(buffer) = self.spare.pop().or_else(|| self.empty.try_recv().ok()) {
            return Ok(buffer);
        }
        if self.made < BUFFERS {
            self.made += 1;
            return Ok(vec![0; BUFFER]);
        }
        self.empty.recv().map_err(|_| gone())
    }

    /// Has the first `len` bytes of `buffer` written at `at`.
    pub(crate) fn write(&mut self, buffer: Vec<u8>, len: usize, at: u64) -> Result<(), Error> {
        self.full.send(Full { buffer, len, at }).map_err(|_| gone())
    }

    /// Waits until everything has been written, but for what is in the
    /// `out` buffers that the caller still has.
    pub(crate) fn flush(&mut self, out: usize) -> Result<(), Error> {
        while self.spare.len() + out < self.made {
            self.spare.push(self.empty.recv().map_err(|_| gone())?);
        }
        Ok(())
    }

    /// Takes a buffer back that was not filled.
    pub(crate) fn give_back(&mut self, buffer: Vec<u8>) {
        self.spare.push(buffer);
    }
}

fn gone() -> Error {
    Error::failed(Code::Internal, "writing has ended")
}

/// Where a file called `name` goes when a user says `path`: into it if it is a folder, else as it.
pub(crate) fn destination(root: &Root, path: &[u8], name: &[u8]) -> Result<Vec<u8>, Error> {
    let (_, name) = split(name);
    let manifest = single(name)?;
    let placement = Placement::resolve(root, path, Place::Auto, &manifest)?;
    only(&manifest).map(|entry| placement.of(entry.path))
}

/// Returns true if the file `path` beneath `root` stays as it is by the policy.
///
/// # Errors
///
/// If the name leads elsewhere, or something is there that may not be replaced; unless that is a
/// file and is `compared` later.
pub(crate) fn is_left(root: &Root, path: &[u8], existing: Existing, compared: bool) -> Result<bool, Error> {
    let any = Announced::packed(0);
    let manifest = single(split(path).1)?;
    match judge_name(root, &mut Dirs::default(), path, &only(&manifest)?, existing)? {
        Verdict::Conflict(DIFFERS) if compared && could_be_same(root, path, &any) => Ok(false),
        Verdict::Conflict(why) => Err(conflict(path, why)),
        verdict => Ok(verdict == Verdict::Left),
    }
}

/// Compares a file, of which nothing but the name is known, with what is at its place.
fn judge_name(
    root: &Root,
    dirs: &mut Dirs,
    path: &[u8],
    entry: &Entry<'_>,
    existing: Existing,
) -> Result<Verdict, Error> {
    judge(root, dirs, path, entry, &Rules::of_names(existing))
}

fn conflict(path: &[u8], why: &str) -> Error {
    Error::failed(Code::Conflict, format!("{}: {why}", crate::shown(path)))
}

/// A manifest of one file, of which nothing but the name is known.
fn single(name: &[u8]) -> Result<Manifest, Error> {
    let path = RelPath::new(name).map_err(|error| Error::failed(Code::Forbidden, error.to_string()))?;
    let mut builder = ManifestBuilder::new(1);
    builder
        .push(&Entry { path, kind: EntryKind::Stream, mode: 0o644, mtime: Mtime::default() })
        .and_then(|()| builder.finish())
        .map_err(|error| Error::failed(Code::BadRequest, error.to_string()))
}

fn only(manifest: &Manifest) -> Result<Entry<'_>, Error> {
    manifest.get(ONLY).ok_or_else(|| Error::failed(Code::Internal, "an empty manifest"))
}
