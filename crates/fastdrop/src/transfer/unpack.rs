//! Unpacking an archive that has arrived: its members become files
//! as if each had been sent by itself.

use crate::codec::archive::{Content, Member, MemberKind, read_tar_gz, read_zip};
use crate::codec::decode::{DecodeError, expect_end, fill};
use crate::error::Error;
use crate::observe::Observer;
use crate::source::filter::Filter;
use crate::stop::Stop;
use crate::storage::mounts::Mounts;
use crate::storage::namer::Named;
use crate::storage::options::{ReceiveOptions, Unpack};
use crate::storage::recovery::Busy;
use crate::storage::root::Dirs;
use crate::storage::writer::TransferWriter;
use crate::transfer::inquiry::Inquiry;
use crate::transfer::layout::cut;
use crate::transfer::prepare::{Prepare, Prepared};
use crate::transfer::report;
use fastdrop_proto::checksum::Algorithm;
use fastdrop_proto::fastdp::{
    Archive, Code, Done, Entry, EntryKind, Failed, Manifest, ManifestBuilder, ManifestError, Receiver,
    RelPath,
};
use fastdrop_proto::units::{ChunkSize, EntryIndex};
use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Up to here a file is written in one go.
const SMALL_MAX: u64 = 1 << 20;
/// Bytes that are hashed at once.
const HASHED_AT_ONCE: usize = 64 << 10;
/// Bytes of all paths and targets in an archive.
const NAMES_MAX: usize = 256 << 20;

/// An archive that has arrived, to be unpacked.
pub(super) struct Unpacking<'a> {
    pub(super) archive: &'a TransferWriter,
    pub(super) unpack: Unpack,
    /// The entries that are wanted of its contents.
    pub(super) filter: &'a Filter,
    pub(super) observer: &'a Observer,
    pub(super) stop: &'a Stop,
    /// Says whether nobody wants it any more.
    pub(super) is_ending: &'a (dyn Fn() -> bool + Sync),
}

/// The fate of an archive's contents.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub(super) done: Done,
    /// Entries that were listed and are not in the archive.
    pub(super) unlisted: Vec<Failed>,
}

/// The archive itself: the only entry of its transfer.
const ARCHIVE: EntryIndex = EntryIndex(0);

impl Unpacking<'_> {
    /// Unpacks what has arrived as an archive, names what was in it, and takes the archive away.
    pub(super) fn run(&self) -> Result<Unpacked, Error> {
        self.archive.consume(|| self.unpack())
    }

    fn unpack(&self) -> Result<Unpacked, Error> {
        let (manifest, hashes) = self.contents(self.archive.open(ARCHIVE)?)?;
        let manifest = Arc::new(manifest);
        let table = cut(&manifest, ChunkSize::COMMON)?;
        let placement = self.archive.placement().of_contents(&manifest)?;
        let missing = self.filter.missing(manifest.iter().map(|(_, entry)| entry.path));
        let failed =
            |(path, message): (&[u8], String)| Failed { path: path.to_vec(), code: Code::NotFound, message };
        let unlisted = missing.into_iter().map(failed).collect();
        let options = self.archive.options();
        let prepare = Prepare {
            manifest: Arc::clone(&manifest),
            table,
            // Nobody sends them: they are checked by the archive.
            algorithm: Algorithm::None,
            root: Arc::clone(self.archive.root()),
            placement,
            options: ReceiveOptions { unpack: None, ..options.clone() },
            filter: self.filter.clone(),
            stop: self.stop.clone(),
            inquiry: options.check.then(|| Inquiry::of_archive(hashes)),
        };
        // What is locked is somebody else's, or this archive.
        let prepared = prepare.run(&mut |_| Ok(Busy::Known))?;
        let Prepared { proto, sink, mut failed, skipped, left, .. } = prepared;
        let Some(files) = sink.files() else {
            return Err(Error::failed(Code::Internal, "contents without files"));
        };
        let needed: Vec<_> = proto.needed_entries().collect();
        let mut named = Named::default();
        let unpacked = self.extract(&manifest, &proto, files);
        let finished = unpacked.and_then(|()| files.finish(&needed, &mut named));
        // The journal knows nothing of what was unpacked: the next attempt unpacks it again.
        files.remove();
        finished?;
        self.observer.files_done.fetch_add(named.files, Ordering::Relaxed);
        for (index, why) in named.failed {
            failed.entry(index).or_insert(why);
        }
        let done = Done { skipped, left, ..report::count(&proto, &failed) };
        Ok(Unpacked { done, unlisted })
    }

    /// The members of the archive, once all of it has been looked at: names that lead nowhere else,
    /// sizes that there is room for. With the BLAKE3 of its files, if contents are to be compared.
    fn contents(&self, file: File) -> Result<(Manifest, HashMap<EntryIndex, [u8; 32]>), Error> {
        let refuse = |why: String| DecodeError::Failed(Error::failed(Code::BadRequest, why));
        let mut members = Vec::new();
        let (mut bytes, mut names) = (0_u64, 0);
        let (mut mounts, mut dirs) = (Mounts::default(), Dirs::default());
        let members_max = self.unpack.members_max;
        each(self.unpack, file, &mut |member, content| {
            self.may_go_on()?;
            names += member.path.len();
            if let MemberKind::Link(target) = &member.kind {
                names += target.len();
            }
            if members.len() >= members_max as usize || names > NAMES_MAX {
                return Err(DecodeError::Failed(Error::failed(
                    Code::OverLimit,
                    "too many files in the archive",
                )));
            }
            let bad = |why| refuse(format!("{} in the archive: {why}", crate::shown(&member.path)));
            let path = RelPath::new(&member.path).map_err(|error| bad(error.to_string()))?;
            if matches!(member.path[..], [letter, b':', b'\\' | b'/', ..] if letter.is_ascii_alphabetic()) {
                return Err(bad("it begins with the letter of a drive".into()));
            }
            bytes = bytes.saturating_add(member.size());
            // All of it is checked once it is known; this ends early what is far too large.
            let place = self.archive.placement().of(path);
            mounts
                .check_room(
                    self.archive.root(),
                    self.archive.options(),
                    &mut dirs,
                    &place,
                    member.size(),
                    bytes,
                )
                .map_err(DecodeError::Failed)?;
            let is_compared = self.archive.options().check && matches!(member.kind, MemberKind::File(_));
            let hash = if is_compared { Some(self.hash(content)?) } else { None };
            members.push((member.clone(), hash));
            Ok(())
        })?;
        members.sort_by(|(a, _), (b, _)| {
            let (a, b) = (a.path.split(|&byte| byte == b'/'), b.path.split(|&byte| byte == b'/'));
            a.cmp(b)
        });
        let mut builder = ManifestBuilder::new(members_max).with_long_paths(true);
        let broken = |error: ManifestError| Error::failed(Code::BadRequest, format!("the archive: {error}"));
        for (member, _) in &members {
            let path = RelPath::new(&member.path);
            let path = path.map_err(|error| Error::failed(Code::BadRequest, error.to_string()))?;
            let kind = match &member.kind {
                MemberKind::File(size) => EntryKind::File { size: *size },
                MemberKind::Directory => EntryKind::Directory,
                MemberKind::Link(target) => EntryKind::Link { target },
            };
            builder.push(&Entry { path, kind, mode: member.mode, mtime: member.mtime }).map_err(broken)?;
        }
        if members.is_empty() {
            return Err(Error::failed(Code::BadRequest, "an empty archive"));
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
    fn extract(&self, manifest: &Manifest, proto: &Receiver, files: &TransferWriter) -> Result<(), Error> {
        let mut buffer = vec![0; SMALL_MAX as usize];
        each(self.unpack, self.archive.open(ARCHIVE)?, &mut |member, content| {
            self.may_go_on()?;
            let found = RelPath::new(&member.path).ok().and_then(|path| manifest.find(path));
            let Some((index, entry)) = found else {
                return Err(DecodeError::Failed(Error::failed(Code::Internal, "the archive changed")));
            };
            if proto.is_needed(index) && matches!(entry.kind, EntryKind::File { size } if size > 0) {
                self.extract_file(files, index, content, &mut buffer)?;
            }
            Ok(())
        })?;
        Ok(())
    }

    fn extract_file(
        &self,
        files: &TransferWriter,
        index: EntryIndex,
        content: &mut Content<'_>,
        buffer: &mut [u8],
    ) -> Result<(), DecodeError> {
        let mut count = fill(content, buffer)?;
        if (count as u64) < SMALL_MAX {
            return files.write_whole(index, &buffer[..count]).map_err(DecodeError::Failed);
        }
        let mut at = 0;
        while count > 0 {
            self.may_go_on()?;
            files.write_part(index, at, &buffer[..count]).map_err(DecodeError::Failed)?;
            at += count as u64;
            count = fill(content, buffer)?;
        }
        files.complete(index).map_err(DecodeError::Failed)
    }

    fn may_go_on(&self) -> Result<(), DecodeError> {
        if self.stop.is_stopped() || (self.is_ending)() {
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
