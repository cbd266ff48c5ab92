//! Unpacking an archive that has arrived: its members become files
//! as if each had been sent by itself.

use crate::codec::archive::{Content, Member, MemberKind, read_tar_gz, read_zip};
use crate::codec::decode::{DecodeError, expect_end, fill};
use crate::error::Error;
use crate::lock::lock;
use crate::storage::io::write_all_at;
use crate::storage::mounts::Mounts;
use crate::storage::options::Unpack;
use crate::storage::recovery::Busy;
use crate::storage::root::Dirs;
use crate::storage::writer::{Ready, TransferWriter};
use crate::transfer::inquiry::Inquiry;
use crate::transfer::prepare::{Prepare, Prepared};
use crate::transfer::receive::{ReceiveTransfer, Sink};
use fastdrop_proto::fastdp::{
    Archive, Done, Entry, EntryKind, Failed, Manifest, ManifestBuilder, ManifestError, RelPath, Table,
};
use fastdrop_proto::units::{ChunkSize, EntryIndex};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::sync::Arc;

/// Up to here a file is written in one go.
const SMALL_MAX: u64 = 1 << 20;
/// Bytes that are hashed at once.
const HASHED_AT_ONCE: usize = 64 << 10;
/// Bytes of all paths and targets in an archive.
const NAMES_MAX: usize = 256 << 20;

impl ReceiveTransfer {
    /// Unpacks what has arrived as an archive, names what was in it, and takes the archive away.
    pub(crate) fn unpack(&self, sink: &TransferWriter, unpack: Unpack) -> Result<(), Error> {
        let index = EntryIndex(0);
        let Some(entry) = self.manifest.get(index) else { return Ok(()) };
        let staged = sink.staged(index, &entry).map_err(|errno| sink.system(&entry, errno))?;
        let failed = |error: std::io::Error| Error::with_code(500, format!("the archive: {error}"));
        let archive = || -> Result<File, Error> {
            let mut file = File::from(staged.fd.try_clone().map_err(failed)?);
            file.seek(SeekFrom::Start(0)).map_err(failed)?;
            Ok(file)
        };
        let (manifest, hashes) = self.contents(sink, unpack, archive()?)?;
        let manifest = Arc::new(manifest);
        let table = Table::new(&manifest, ChunkSize::COMMON)
            .map_err(|error| Error::with_code(413, error.to_string()))?;
        let placement = sink.placement.of_contents(&manifest)?;
        let missing = self.filter.missing(manifest.iter().map(|(_, entry)| entry.path));
        let failed = |(path, message): (&[u8], String)| Failed { path: path.to_vec(), code: 404, message };
        *lock(&self.unlisted) = missing.into_iter().map(failed).collect();
        let mut options = sink.options.clone();
        options.unpack = None;
        let prepare = Prepare {
            manifest,
            table,
            algorithm: self.algorithm,
            root: Arc::clone(&sink.root),
            placement,
            options,
            filter: self.filter.clone(),
            observer: Arc::clone(&self.observer),
            stop: self.stop.clone(),
            inquiry: sink.options.check.then(|| Inquiry::of_archive(hashes)),
        };
        // What is locked is somebody else's, or this archive.
        let prepared = prepare.run(&mut |_| Ok(Busy::Known))?;
        let Prepared { reception, skipped, left, .. } = prepared;
        let Sink::Files(inner) = &reception.sink else { return Ok(()) };
        let unpacked = self.extract(&reception, inner, unpack, archive()?);
        let finished = unpacked.and_then(|()| reception.finish_files(inner));
        // The journal knows nothing of what was unpacked: the next attempt unpacks it again.
        inner.stage.remove();
        finished?;
        *lock(&self.unpacked) = Some(Done { skipped, left, ..reception.report() });
        sink.stage.remove();
        Ok(())
    }

    /// The members of the archive, once all of it has been looked at: names that lead nowhere else,
    /// sizes that there is room for. With the BLAKE3 of its files, if contents are to be compared.
    fn contents(
        &self,
        sink: &TransferWriter,
        unpack: Unpack,
        file: File,
    ) -> Result<(Manifest, HashMap<EntryIndex, [u8; 32]>), Error> {
        let refuse = |why: String| DecodeError::Failed(Error::with_code(400, why));
        let mut members = Vec::new();
        let (mut bytes, mut names) = (0_u64, 0);
        let (mut mounts, mut dirs) = (Mounts::default(), Dirs::default());
        let members_max = unpack.members_max;
        each(unpack, file, &mut |member, content| {
            self.may_go_on()?;
            names += member.path.len();
            if let MemberKind::Link(target) = &member.kind {
                names += target.len();
            }
            if members.len() >= members_max as usize || names > NAMES_MAX {
                return Err(DecodeError::Failed(Error::with_code(413, "too many files in the archive")));
            }
            let bad = |why| refuse(format!("{} in the archive: {why}", crate::shown(&member.path)));
            let path = RelPath::new(&member.path).map_err(|error| bad(error.to_string()))?;
            if matches!(member.path[..], [letter, b':', b'\\' | b'/', ..] if letter.is_ascii_alphabetic()) {
                return Err(bad("it begins with the letter of a drive".into()));
            }
            bytes = bytes.saturating_add(member.size());
            // All of it is checked once it is known; this ends early what is far too large.
            let place = sink.placement.of(path);
            mounts
                .check_room(&sink.root, &sink.options, &mut dirs, &place, member.size(), bytes)
                .map_err(DecodeError::Failed)?;
            let is_compared = sink.options.check && matches!(member.kind, MemberKind::File(_));
            let hash = if is_compared { Some(self.hash(content)?) } else { None };
            members.push((member.clone(), hash));
            Ok(())
        })?;
        members.sort_by(|(a, _), (b, _)| {
            let (a, b) = (a.path.split(|&byte| byte == b'/'), b.path.split(|&byte| byte == b'/'));
            a.cmp(b)
        });
        let mut builder = ManifestBuilder::new(members_max).with_long_paths(true);
        let broken = |error: ManifestError| Error::with_code(400, format!("the archive: {error}"));
        for (member, _) in &members {
            let path = RelPath::new(&member.path);
            let path = path.map_err(|error| Error::with_code(400, error.to_string()))?;
            let kind = match &member.kind {
                MemberKind::File(size) => EntryKind::File { size: *size },
                MemberKind::Directory => EntryKind::Directory,
                MemberKind::Link(target) => EntryKind::Link { target },
            };
            builder.push(&Entry { path, kind, mode: member.mode, mtime: member.mtime }).map_err(broken)?;
        }
        if members.is_empty() {
            return Err(Error::with_code(400, "an empty archive"));
        }
        let hashes = members.iter().enumerate();
        let hashes = hashes.filter_map(|(at, (_, hash))| Some((EntryIndex(at as u32), (*hash)?))).collect();
        Ok((builder.finish().map_err(broken)?, hashes))
    }

    /// The BLAKE3 of a member.
    fn hash(&self, content: &mut Content<'_>) -> Result<[u8; 32], DecodeError> {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; HASHED_AT_ONCE];
        loop {
            self.may_go_on()?;
            match fill(content, &mut buffer)? {
                0 => return Ok(*hasher.finalize().as_bytes()),
                count => hasher.update(&buffer[..count]),
            };
        }
    }

    /// Writes the files of the archive that are needed, each under a temporary name.
    fn extract(
        &self,
        inner: &ReceiveTransfer,
        sink: &TransferWriter,
        unpack: Unpack,
        file: File,
    ) -> Result<(), Error> {
        let mut buffer = vec![0; SMALL_MAX as usize];
        each(unpack, file, &mut |member, content| {
            self.may_go_on()?;
            let found = RelPath::new(&member.path).ok().and_then(|path| inner.manifest.find(path));
            let Some((index, entry)) = found else {
                return Err(DecodeError::Failed(Error::with_code(500, "the archive changed")));
            };
            let needed = lock(&inner.machine).is_needed(index);
            if needed && matches!(entry.kind, EntryKind::File { size } if size > 0) {
                inner.extract_file(sink, index, &entry, content, &mut buffer)?;
            }
            Ok(())
        })?;
        Ok(())
    }

    fn extract_file(
        &self,
        sink: &TransferWriter,
        index: EntryIndex,
        entry: &Entry<'_>,
        content: &mut Content<'_>,
        buffer: &mut [u8],
    ) -> Result<(), DecodeError> {
        let system = |errno| DecodeError::Failed(sink.system(entry, errno));
        let count = fill(content, buffer)?;
        if (count as u64) < SMALL_MAX {
            let temp = sink.make_small(index, entry, &buffer[..count]).map_err(system)?;
            lock(&sink.ready).push(Ready { entry: index, temp });
            return Ok(());
        }
        let staged = sink.staged(index, entry).map_err(system)?;
        let (mut at, mut count) = (0, count);
        while count > 0 {
            self.may_go_on()?;
            write_all_at(staged.fd.as_fd(), &buffer[..count], at).map_err(system)?;
            sink.stage.begin_writeback(staged.fd.as_fd(), at, count as u64);
            at += count as u64;
            count = fill(content, buffer)?;
        }
        lock(&sink.open).remove(&index);
        sink.set_file_attributes(&staged.fd, entry, true).map_err(system)?;
        lock(&sink.ready).push(Ready { entry: index, temp: staged.temp });
        Ok(())
    }

    fn may_go_on(&self) -> Result<(), DecodeError> {
        if self.stop.is_stopped() || lock(&self.error).is_some() {
            return Err(DecodeError::Failed(Error::Interrupted));
        }
        Ok(())
    }
}

/// Gives `each` the members of an archive.
fn each(
    unpack: Unpack,
    file: File,
    each: &mut dyn FnMut(&Member, &mut Content<'_>) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    match unpack.kind {
        Archive::Zip => read_zip(file, unpack.members_max, each),
        Archive::TarGz => {
            let mut rest = read_tar_gz(BufReader::with_capacity(SMALL_MAX as usize, file), each)?;
            Ok(expect_end(&mut rest)?)
        }
    }
}
