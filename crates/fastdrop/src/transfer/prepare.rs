//! What must be done before chunks can come: comparing, taking over what is held, making a stage.

use crate::error::Error;
use crate::source::filter::Filter;
use crate::stop::Stop;
use crate::storage::journal::{FileKey, LeftContent, Piece};
use crate::storage::mounts::{Mounts, Refusal};
use crate::storage::options::ReceiveOptions;
use crate::storage::output::{OutputFile, OutputSink, changed, expect_one_file};
use crate::storage::placement::Placement;
use crate::storage::recovery::{Busy, Leftovers};
use crate::storage::root::{Dirs, Root};
use crate::storage::stage::Stage;
use crate::storage::writer::{TransferWriter, WriterPlan};
use crate::transfer::compare::{Compared, Places, compare, skip_unwanted};
use crate::transfer::inquiry::Inquiry;
use crate::transfer::sink::Sink;
use fastdrop_proto::checksum::Algorithm;
use fastdrop_proto::fastdp::{
    Code, Completed, Control, Entry, EntryKind, Failed, IdentityTable, Manifest, Receiver, SkipReason, Table,
};
use fastdrop_proto::units::{ChunkIndex, EntryIndex};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A transfer into files that has been agreed, before anything has been looked at.
pub(crate) struct Prepare<'a> {
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) table: Table,
    pub(crate) algorithm: Algorithm,
    pub(crate) root: Arc<Root>,
    pub(crate) placement: Placement,
    pub(crate) options: ReceiveOptions,
    /// The entries that are wanted.
    pub(crate) filter: Filter,
    pub(crate) stop: Stop,
    /// None if the sender cannot be asked anything.
    pub(crate) inquiry: Option<Inquiry<'a>>,
}

/// What a transfer has to do before its chunks can come.
pub(crate) struct Prepared {
    pub(crate) proto: Receiver,
    pub(crate) sink: Sink,
    /// Entries that can have no place.
    pub(crate) failed: BTreeMap<EntryIndex, Failed>,
    /// BLAKE3 of small files that were held.
    pub(crate) hashes: BTreeMap<EntryIndex, [u8; 32]>,
    /// SKIP, HELD and NEED.
    pub(crate) answer: Vec<Control>,
    /// Files that were there, or are left alone.
    pub(crate) skipped: u64,
    /// How many of them differ from what was asked for.
    pub(crate) left: u64,
    /// Bytes that need not be sent, because they are here: of skipped files, and of unfinished
    /// ones.
    pub(crate) bytes_skipped: u64,
    pub(crate) bytes_resumed: u64,
}

impl Prepare<'_> {
    /// Looks at what is there, refuses what must be refused, and makes a stage.
    ///
    /// `busy` hears the folder of every transfer under way beneath the root, and says whether it
    /// has made that end.
    pub(crate) fn run(self, busy: &mut dyn FnMut(&str) -> Result<Busy, Error>) -> Result<Prepared, Error> {
        let Self { manifest, table, algorithm, root, placement, options, filter, stop, mut inquiry } = self;
        if options.size_max.is_some_and(|max| manifest.bytes() > max) {
            return Err(Error::failed(Code::OverLimit, "more bytes than one transfer may have here"));
        }
        // What a transfer under way is about to name must have its name, or never get it, before
        // anything is compared.
        let mut refused = None;
        let wanted = |key: &FileKey| placement.entry_of(key, &manifest).is_some();
        // An archive is neither compared nor continued; its contents are, once they are known.
        let unpack = options.unpack.is_some();
        let named = placement.named().filter(|_| !unpack);
        let mut is_busy = |name: &str| {
            busy(name).unwrap_or_else(|error| {
                refused = Some(error);
                Busy::Known
            })
        };
        // Without a sender that could say so, nobody knows whether what is left is of the same
        // file.
        let leftovers = match &inquiry {
            Some(inquiry) if inquiry.may_resume() => {
                Leftovers::find(&root, named.as_deref(), wanted, &mut is_busy)
            }
            _ => Vec::new(),
        };
        if let Some(error) = refused {
            return Err(error);
        }
        let mut proto = Receiver::new(Arc::clone(&manifest), table, algorithm);
        let mut mounts = Mounts::default();
        let one_chunk = proto.table().one_chunk();
        let begin =
            || Stage::create(Arc::clone(&root), algorithm, one_chunk, options.durability, named.clone());
        // What is lent is noted in the journal first.
        let mut stage = None;
        let mut lend = |folder: &[u8]| {
            let lendable = crate::storage::stage::could_lend(&root, folder);
            if !lendable {
                return Ok(false);
            }
            let stage = match stage.take() {
                Some(begun) => stage.insert(begun),
                None => stage.insert(begin()?),
            };
            stage.lend(folder).map_err(|errno| Error::system(crate::shown(folder), errno))
        };
        let compared = match unpack {
            true => {
                let mut dirs = Dirs::default();
                for (index, entry) in manifest.iter() {
                    mounts.note(&root, &mut dirs, index, &placement.of(entry.path), true)?;
                }
                Ok(Compared::default())
            }
            false => {
                skip_unwanted(&mut proto, &filter);
                let places = Places { mounts: &mut mounts, lend: &mut lend };
                compare(&mut proto, &root, &placement, &options, inquiry.as_mut(), places, &stop)
            }
        };
        let compared = compared.inspect_err(|_| stage.iter().for_each(Stage::remove))?;
        let Compared { exceptions, adjust, failed: unplaced, skipped, left, bytes_skipped } = compared;
        let mut stage = stage.map_or_else(begin, Ok)?;
        let mut failed =
            match mounts.stage(&root, &mut stage).and_then(|()| give_up_unstaged(&mounts, &mut proto)) {
                Ok(failed) => failed,
                Err(error) => {
                    stage.remove();
                    return Err(error);
                }
            };
        failed.extend(unplaced);
        let unpack = options.unpack;
        let plan = WriterPlan {
            manifest: Arc::clone(&manifest),
            one_chunk,
            root: Arc::clone(&root),
            placement,
            mounts,
            options,
            exceptions,
            adjust,
        };
        let files = TransferWriter::new(plan, stage);
        let mut hashes = BTreeMap::new();
        let unknown = IdentityTable::default();
        // Only unfinished work is worth waiting for what the sender calls its files.
        let identities = match inquiry.as_mut().filter(|_| !leftovers.is_empty()) {
            Some(inquiry) => inquiry.identities(),
            None => Ok(&unknown),
        };
        let taken = identities.and_then(|identities| {
            let needed: Vec<_> = match leftovers.is_empty() {
                true => Vec::new(),
                false => proto.needed_entries().collect(),
            };
            let mut count = |index, content: &LeftContent| count(&mut proto, index, content, &mut hashes);
            files.take_over(leftovers, &needed, identities, algorithm, &mut count)
        });
        let bytes_resumed = taken.inspect_err(|_| {
            // What has been moved in already stays for another attempt.
            if !files.has_something() {
                files.remove();
            }
        })?;
        let answer = proto.answer();
        if let Err(error) = files.check_room(missing(&proto), manifest.bytes()) {
            // What an earlier transfer left was moved in here: it stays for when there is room.
            if bytes_resumed == 0 {
                files.remove();
            }
            return Err(error);
        }
        if let Some(inquiry) = inquiry {
            files.set_identities(inquiry.into_identities());
        }
        let files = Box::new(files);
        let sink = match unpack {
            Some(unpack) => Sink::Archive(files, unpack, Box::new(filter)),
            None => Sink::Files(files),
        };
        Ok(Prepared { proto, sink, failed, hashes, answer, skipped, left, bytes_skipped, bytes_resumed })
    }
}

/// Counts what an earlier transfer left of a file; whether that is all of it.
fn count(
    proto: &mut Receiver,
    index: EntryIndex,
    content: &LeftContent,
    hashes: &mut BTreeMap<EntryIndex, [u8; 32]>,
) -> bool {
    match content {
        LeftContent::Whole(checksum) => {
            proto.skip(index, SkipReason::Held);
            if let Ok(hash) = <[u8; 32]>::try_from(checksum.as_bytes()) {
                hashes.insert(index, hash);
            }
            true
        }
        LeftContent::Pieces(pieces) => {
            let Some((first, _)) = proto.table().chunks_of(index) else { return false };
            let mut complete = false;
            for (&piece, &Piece { checksum, claimed }) in pieces {
                let chunk = ChunkIndex(first.0 + piece);
                if claimed {
                    proto.claim(chunk, &checksum);
                } else {
                    complete |= proto.hold(chunk, &checksum) == Completed::File(index);
                }
            }
            complete
        }
    }
}

/// Bytes that are still to come, by entry.
fn missing(proto: &Receiver) -> impl Iterator<Item = (EntryIndex, u64)> {
    let one = u64::from(proto.table().one_chunk().bytes());
    let missing_of = move |entry: &Entry<'_>, first: ChunkIndex, count: u32| {
        let held = (0..count).filter(|piece| proto.has(ChunkIndex(first.0 + piece)));
        held.fold(entry.size(), |left, piece| {
            left.saturating_sub(one.min(entry.size().saturating_sub(u64::from(piece) * one)))
        })
    };
    proto.manifest().iter().filter(|&(index, _)| proto.is_needed(index)).map(move |(index, entry)| {
        let bytes = match proto.table().chunks_of(index) {
            Some((first, count)) if entry.size() >= one => missing_of(&entry, first, count),
            _ => entry.size(),
        };
        (index, bytes)
    })
}

/// Prepares the transfer of one file into a pipe.
pub(crate) fn prepare_output(
    manifest: Arc<Manifest>,
    table: Table,
    algorithm: Algorithm,
    sink: Arc<OutputSink>,
    mut inquiry: Inquiry<'_>,
) -> Result<Prepared, Error> {
    expect_one_file(&manifest)?;
    let one = u64::from(table.one_chunk().bytes());
    let whole = manifest.bytes() < one;
    let mut proto = Receiver::new(Arc::clone(&manifest), table, algorithm);
    let mut bytes_resumed = 0;
    let Some(entry) = manifest.get(EntryIndex(0)) else {
        return Err(Error::protocol("an empty manifest"));
    };
    let key = FileKey::new(entry.path.as_bytes().to_vec(), entry.size(), entry.mtime);
    let begun = sink.has_begun();
    let identity = if begun { inquiry.identities()?.get(EntryIndex(0)) } else { 0 };
    let one_chunk = proto.table().one_chunk().bytes();
    let (written, same) = sink.begin(OutputFile { key, identity, one_chunk, algorithm })?;
    // Whether it is the same file can be found out chunk by chunk, where the sender knows how to
    // compare.
    let is_comparable = inquiry.knows_identities() && !algorithm.is_empty() && !whole;
    if !same && !is_comparable {
        return Err(changed());
    }
    if whole && !written.is_empty() {
        // All of it is there, in a pack of one.
        proto.skip(EntryIndex(0), SkipReason::Held);
    }
    for (at, checksum) in written.iter().enumerate().filter(|_| !whole) {
        let chunk = ChunkIndex(at as u32);
        if same {
            proto.hold(chunk, checksum);
        } else {
            proto.claim(chunk, checksum);
        }
        bytes_resumed += one.min(manifest.bytes() - at as u64 * one);
    }
    let answer = proto.answer();
    Ok(Prepared {
        proto,
        sink: Sink::Output(sink),
        failed: BTreeMap::new(),
        hashes: BTreeMap::new(),
        answer,
        skipped: 0,
        left: 0,
        bytes_skipped: 0,
        bytes_resumed,
    })
}

/// Gives up the entries that would live where no temporary file can be.
///
/// # Errors
///
/// The reason, if nothing else is needed.
fn give_up_unstaged(mounts: &Mounts, proto: &mut Receiver) -> Result<BTreeMap<EntryIndex, Failed>, Error> {
    let mut failed = BTreeMap::new();
    if !mounts.has_refused() {
        return Ok(failed);
    }
    let manifest = Arc::clone(proto.manifest());
    let mut others = false;
    for (index, entry) in manifest.iter() {
        if entry.kind == EntryKind::Directory || !proto.is_needed(index) {
            continue;
        }
        match mounts.part_of(index) {
            Err(Refusal { code, message }) => {
                proto.skip(index, SkipReason::Policy);
                let path = entry.path.as_bytes().to_vec();
                failed.insert(index, Failed { path, code: *code, message: message.clone() });
            }
            Ok(_) => others = true,
        }
    }
    match failed.values().next() {
        Some(first) if !others => Err(Error::failed(first.code, first.message.clone())),
        _ => Ok(failed),
    }
}
