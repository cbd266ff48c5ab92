//! What a call of the client came to.

use crate::context::client::flags::Setting;
use crate::context::client::options::ClientOptions;
use crate::error::Error;
use crate::observe::{Limits, Observer, Warning};
use crate::protocol::Protocol;
use crate::source::filter::Filter;
use crate::source::walk::Walked;
use crate::transfer::receive::ReceiveTransfer;
use crate::transfer::send::SendTransfer;
use fastdrop_proto::checksum::Algorithm;
use fastdrop_proto::fastdp::{
    Code, Done, Durability, Entry, EntryKind, Failed, LeftOutEntry, Manifest, RelPath, SkipReason, Spent,
};
use fastdrop_proto::units::EntryIndex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// What is known about a file that was sent without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// The receiver has said that it has it.
    Confirmed,
    /// The protocol does not tell.
    Unconfirmed,
}

/// What a transfer came to.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Summary {
    /// Files and links that are in place now because of this run or an earlier one: all but those
    /// that failed.
    pub files: u64,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Bytes of contents that this run had to move.
    pub bytes_sent: u64,
    /// What that came to on the network, with compression and without holes; None where the
    /// protocol's own code does not count it.
    pub bytes_wire: Option<u64>,
    /// Files that were there already, or were left as they were.
    pub files_skipped: u64,
    /// Those among them that differ from what was to be moved, and were left as they were.
    pub files_left: u64,
    /// Bytes of the files that were skipped.
    pub bytes_skipped: u64,
    /// Bytes that an interrupted transfer had left.
    pub bytes_resumed: u64,
    /// What failed, and why.
    pub failed: Vec<Failed>,
    /// How many failed.
    pub files_failed: u64,
    /// What was left out on purpose, and why.
    pub warnings: Vec<Warning>,
    /// From the call to its end.
    pub time: Duration,
    /// The protocol that was spoken.
    pub protocol: Protocol,
    /// How what arrived was checked: `none`, `xxh3`, `blake3` or `sha256`. Says nothing of what was
    /// skipped.
    pub checksum: &'static str,
    /// The other end has said that all of it is there. False where the protocol of a put cannot
    /// tell: then it was sent, and no more is known; and in a get where the server is too old to
    /// say whether it left something out.
    pub confirmed: bool,
    /// The contents were encrypted on the way; with UltraDP's cipher, which authenticates nothing.
    pub encrypted: bool,
    /// Settings that are defaults, and that the protocol cannot keep.
    pub unkept: Vec<Setting>,
    /// Whether skipped files were compared by their contents instead of size and time.
    pub checked: bool,
    /// What was promised, and kept; None where the protocol does not tell.
    pub durability: Option<Durability>,
    /// Attempts after the first.
    pub retries: u32,
    /// Where the time went; None if nothing was moved.
    pub limits: Option<Limits>,
    /// The most data streams at the same time, beside the control stream.
    pub streams: u64,
    /// TCP's congestion control on the control stream.
    pub congestion: String,
    /// In bytes.
    pub one_chunk: u32,
    /// BLAKE3 of each file, in the order of the manifest, if it was asked for.
    pub hashes: Vec<(Vec<u8>, [u8; 32])>,
    /// Nothing was done, only looked at.
    pub dry_run: bool,
    /// What would be moved, if nothing was.
    pub would_move: Vec<Listed>,
}

/// What kind of thing stands in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListedKind {
    /// A file.
    File,
    /// A folder.
    Directory,
    /// A link, with its target.
    Link(Vec<u8>),
}

/// One line of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its path.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: ListedKind,
    /// In bytes.
    pub size: u64,
    /// Permissions, nine bits.
    pub mode: u32,
    /// Seconds since 1970, and nanoseconds.
    pub mtime: (i64, u32),
}

/// What a folder on a server holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Its entries, ascending by name.
    pub entries: Vec<Listed>,
    /// Entries that could not be listed, and why; at most 10,000.
    pub failed: Vec<Failed>,
    /// How many could not be listed.
    pub failed_count: u64,
    /// The server would have said if there were more. False if it is too old for that.
    pub confirmed: bool,
}

impl Listed {
    pub(crate) fn new(entry: &Entry<'_>) -> Self {
        Self {
            path: entry.path.as_bytes().to_vec(),
            kind: match entry.kind {
                EntryKind::Directory => ListedKind::Directory,
                EntryKind::Link { target } => ListedKind::Link(target.to_vec()),
                EntryKind::File { .. } | EntryKind::Stream => ListedKind::File,
            },
            size: entry.size(),
            mode: entry.mode,
            mtime: (entry.mtime.seconds, entry.mtime.nanos),
        }
    }
}

/// Adds up the attempts of one call.
pub(crate) struct Tally {
    start: Instant,
    summary: Summary,
    failed: BTreeMap<Vec<u8>, Failed>,
    /// How many of them never were in a manifest.
    never_offered: u64,
    /// What was offered last.
    manifest: Arc<Manifest>,
    /// How many more never were, and are not named.
    unnamed: u64,
    /// How the sender spent its time, if that is the other end.
    spent: Option<Spent>,
    pub(crate) attempts: u32,
    /// The first attempt in which the receiver has compared what it has.
    compared_in: Option<u32>,
    pub(crate) congestion: String,
    pub(crate) one_chunk: u32,
    /// The server keeps an archive as one.
    pub(crate) kept: bool,
    /// What comes is unpacked here: never nothing, since an empty archive is refused.
    pub(crate) unpacks: bool,
    /// Bytes of what was in an archive.
    contents: Option<u64>,
    uncarried_told: bool,
}

impl Tally {
    pub(crate) fn new(options: &ClientOptions, walked: &Walked, start: Instant) -> Self {
        let mut tally = Self {
            start,
            failed: BTreeMap::new(),
            never_offered: 0,
            manifest: Arc::default(),
            unnamed: 0,
            spent: None,
            attempts: 0,
            compared_in: None,
            congestion: String::new(),
            one_chunk: 0,
            kept: false,
            unpacks: false,
            contents: None,
            uncarried_told: false,
            summary: Summary {
                files: 0,
                bytes: 0,
                bytes_sent: 0,
                bytes_wire: None,
                files_skipped: 0,
                files_left: 0,
                checked: options.check,
                bytes_skipped: 0,
                bytes_resumed: 0,
                failed: Vec::new(),
                files_failed: 0,
                warnings: Vec::new(),
                time: Duration::ZERO,
                protocol: options.protocol,
                checksum: checksum(options),
                confirmed: true,
                encrypted: options.ultradp_password.is_some(),
                unkept: Vec::new(),
                durability: tells_durability(options.protocol).then_some(options.durability),
                retries: 0,
                limits: None,
                streams: 0,
                congestion: String::new(),
                one_chunk: 0,
                hashes: Vec::new(),
                dry_run: false,
                would_move: Vec::new(),
            },
        };
        tally.leave_out(walked.left_out.iter(), walked.unnamed);
        tally
    }

    /// Notes the defaults that the protocol cannot keep.
    pub(crate) fn note_unkept(&mut self, unkept: Vec<Setting>) {
        self.summary.unkept = unkept;
    }

    /// Notes what is not in the manifest: what failed, what was left out by policy, and how many
    /// more failed than are named.
    pub(crate) fn leave_out<'a>(&mut self, entries: impl Iterator<Item = &'a LeftOutEntry>, unnamed: u64) {
        for entry in entries {
            if entry.policy {
                let warning = Warning { path: entry.path.clone(), message: entry.reason.clone() };
                if !self.summary.warnings.contains(&warning) {
                    self.summary.warnings.push(warning);
                }
            } else {
                self.fail(&entry.path, entry.code, &entry.reason);
            }
        }
        self.unnamed = unnamed;
    }

    /// Writes to the log, once for all attempts, what is not carried of the files.
    pub(crate) fn note_uncarried(&mut self, sentence: &str) {
        if !sentence.is_empty() && !std::mem::replace(&mut self.uncarried_told, true) {
            tracing::info!("{}", crate::shown(sentence.as_bytes()));
        }
    }

    /// Notes something that cannot be sent, before anything is.
    pub(crate) fn fail(&mut self, path: &[u8], code: Code, message: &str) {
        let failed = Failed { path: path.to_vec(), code, message: message.to_owned() };
        // An earlier attempt of the same call may have met it too.
        if !self.failed.contains_key(path) {
            self.failed.insert(path.to_vec(), failed);
            self.never_offered += 1;
        }
    }

    pub(crate) fn note_skipped(&mut self, files: u64, left: u64, bytes: u64, resumed: u64) {
        // A later attempt finds what an earlier one, which got so far, has brought: that was not
        // skipped.
        let first = *self.compared_in.get_or_insert(self.attempts);
        if first == self.attempts {
            self.summary.files_skipped = files;
            self.summary.files_left = left;
            self.summary.bytes_skipped = bytes;
            self.summary.bytes_resumed = resumed;
        }
    }

    pub(crate) fn note_sent(
        &mut self,
        transfer: &SendTransfer,
        manifest: &Arc<Manifest>,
        observer: &Observer,
    ) {
        self.manifest = Arc::clone(manifest);
        {
            let proto = transfer.proto();
            let mut files = 0;
            let (mut left, mut bytes) = (0, 0);
            for (index, entry) in manifest.iter() {
                // What is held of an unfinished transfer gets its name in this one: it is resumed,
                // not skipped.
                let held = proto.skip_reason(index) == Some(SkipReason::Held);
                if proto.is_left_out(index) && !held && entry.kind != EntryKind::Directory {
                    files += 1;
                    left += u64::from(proto.skip_reason(index) == Some(SkipReason::Policy));
                    bytes += entry.size();
                }
            }
            if let Some(needed) = proto.needed() {
                let resumed = manifest.bytes().saturating_sub(bytes).saturating_sub(needed.bytes);
                drop(proto);
                self.note_skipped(files, left, bytes, resumed);
            }
        }
        observer.files_done.store(observer.files_total.load(Ordering::Relaxed), Ordering::Relaxed);
        for failed in transfer.abandoned() {
            self.summary.files_skipped = self.summary.files_skipped.saturating_sub(1);
            self.failed.entry(failed.path.clone()).or_insert(failed);
        }
        self.note_hashes(transfer.hashes(), manifest);
        self.summary.bytes = manifest.bytes();
        self.summary.files = count_files(manifest);
    }

    pub(crate) fn note_received(
        &mut self,
        transfer: &ReceiveTransfer,
        manifest: &Arc<Manifest>,
        filter: &Filter,
    ) {
        self.manifest = Arc::clone(manifest);
        self.note_hashes(transfer.hashes(), manifest);
        self.spent = Some(transfer.spent());
        for failed in transfer.failed() {
            self.failed.entry(failed.path.clone()).or_insert(failed);
        }
        let chosen = filter.choose_from(manifest);
        let chosen = manifest.iter().filter(|(index, _)| chosen.takes(*index)).map(|(_, entry)| entry);
        let files = chosen.filter(|entry| entry.kind != EntryKind::Directory);
        (self.summary.files, self.summary.bytes) =
            files.fold((0, 0), |(files, bytes), entry| (files + 1, bytes + entry.size()));
    }

    /// Counts what was sent in an archive; what the receiver did not take it had already.
    pub(crate) fn note_packed(&mut self, contents: &Arc<Manifest>, done: &Done) {
        self.manifest = Arc::clone(contents);
        self.contents = Some(contents.bytes());
        self.summary.bytes = contents.bytes();
        self.summary.files = count_files(contents);
        if !self.kept {
            let taken = done.files + done.failed_count;
            self.summary.files_skipped = self.summary.files.saturating_sub(taken);
            self.summary.files_left = done.left.min(self.summary.files_skipped);
        }
    }

    /// Counts what came in an archive.
    pub(crate) fn note_unpacked(&mut self, done: &Done) {
        self.contents = Some(done.bytes);
        self.summary.bytes = done.bytes;
        self.summary.files = done.files + done.skipped + self.failed.len() as u64 - self.never_offered;
        (self.summary.files_skipped, self.summary.files_left) = (done.skipped, done.left);
    }

    fn note_hashes(&mut self, hashes: BTreeMap<EntryIndex, [u8; 32]>, manifest: &Manifest) {
        let named = |(index, hash)| Some((manifest.get(index)?.path.as_bytes().to_vec(), hash));
        self.summary.hashes = hashes.into_iter().filter_map(named).collect();
    }

    /// Notes the entries of `manifest` that would be moved.
    pub(crate) fn note_dry(&mut self, manifest: &Arc<Manifest>, would_move: impl Fn(EntryIndex) -> bool) {
        self.manifest = Arc::clone(manifest);
        self.summary.dry_run = true;
        let entries = manifest.iter().filter(|(index, _)| would_move(*index));
        self.summary.would_move = entries.map(|(_, entry)| Listed::new(&entry)).collect();
        self.summary.files =
            self.summary.would_move.iter().filter(|listed| listed.kind != ListedKind::Directory).count()
                as u64;
        self.summary.bytes = self.summary.would_move.iter().map(|listed| listed.size).sum();
    }

    /// Counts a file that an older protocol has moved.
    pub(crate) fn note_file(&mut self, bytes: u64) {
        self.summary.files += 1;
        self.summary.bytes += bytes;
    }

    /// Notes that the server may have left something out without a word.
    pub(crate) fn note_unconfirmed(&mut self) {
        self.summary.confirmed = false;
    }

    /// Counts a file that has been sent by one of the older protocols.
    pub(crate) fn note_delivered(&mut self, bytes: u64, delivery: Delivery) {
        self.note_file(bytes);
        self.summary.confirmed &= delivery == Delivery::Confirmed;
    }

    /// Counts a file of unknown size that would be fetched.
    pub(crate) fn note_dry_file(&mut self, name: &[u8]) {
        let (path, kind) = (name.to_vec(), ListedKind::File);
        self.summary.would_move.push(Listed { path, kind, size: 0, mode: 0o644, mtime: (0, 0) });
        self.summary.dry_run = true;
        self.summary.files += 1;
    }

    /// The end of a put that found nothing to send.
    pub(crate) fn nothing(self) -> Result<Summary, Error> {
        match self.failed.values().next() {
            Some(failed) => {
                let path = crate::shown(&failed.path);
                Err(Error::failed(failed.code, format!("nothing to send: {path}: {}", failed.message)))
            }
            None => Ok(self.close()),
        }
    }

    /// How many failed: those that are named, and so many more, of which the peer says the numbers.
    fn failed_count(&self, unnamed: u64) -> u64 {
        (self.failed.len() as u64).saturating_add(unnamed).saturating_add(self.unnamed)
    }

    fn close(mut self) -> Summary {
        self.summary.time = self.start.elapsed();
        self.summary.retries = self.attempts;
        self.summary.files_failed = self.summary.files_failed.max(self.failed_count(0));
        self.summary.failed = self.failed.into_values().collect();
        self.summary.congestion = self.congestion;
        self.summary.one_chunk = self.one_chunk;
        self.summary
    }

    fn is_directory(&self, path: &[u8]) -> bool {
        let entry = RelPath::new(path).ok().and_then(|path| self.manifest.find(path));
        entry.is_some_and(|(_, entry)| entry.kind == EntryKind::Directory)
    }

    /// Closes the tally with how the last attempt ended.
    pub(crate) fn finish(mut self, done: Result<Done, Error>, observer: &Observer) -> Result<Summary, Error> {
        let done = done?;
        if self.summary.dry_run {
            let offered_failed = done.failed_count > 0;
            let unnamed = done.failed_count.saturating_sub(done.failed.len() as u64);
            self.unnamed = self.unnamed.saturating_add(unnamed);
            for failed in done.failed {
                self.failed.entry(failed.path.clone()).or_insert(failed);
            }
            let placed = self.summary.files + self.summary.files_skipped;
            return self.conclude(placed, offered_failed);
        }
        // The receiver names a thousand, and counts them all.
        let unnamed = done.failed_count.saturating_sub(done.failed.len() as u64);
        for failed in done.failed {
            self.failed.entry(failed.path.clone()).or_insert(failed);
        }
        self.summary.files_failed = self.failed_count(unnamed);
        let moved = observer.bytes_moved.load(Ordering::Relaxed);
        self.summary.bytes_sent = self.contents.unwrap_or(moved);
        if self.summary.protocol == Protocol::FastDp {
            self.summary.bytes_wire = Some(observer.bytes_wire.load(Ordering::Relaxed));
        }
        self.summary.streams = observer.streams_peak.load(Ordering::Relaxed);
        let clocks = &observer.clocks;
        let limits = match self.spent {
            // A put: the receiver's part came with DONE.
            None => Limits {
                read: clocks.read.micros(),
                send_cpu: clocks.cpu.micros(),
                send: clocks.send.micros(),
                wait: done.wait_micros,
                receive_cpu: done.cpu_micros,
                write: done.write_micros,
            },
            Some(Spent { read, cpu, send }) => Limits {
                read,
                send_cpu: cpu,
                send,
                wait: clocks.wait.micros(),
                receive_cpu: clocks.cpu.micros(),
                write: clocks.write.micros(),
            },
        };
        // The older protocols do not tell what the other end did.
        let known = self.summary.bytes_sent > 0 && self.summary.protocol == Protocol::FastDp;
        self.summary.limits = known.then_some(limits);
        // A stream's size is only known in the end.
        if self.contents.is_none() {
            self.summary.bytes = self.summary.bytes.max(done.bytes);
        }
        let had_files = self.summary.files > 0;
        let is_file = |failed: &&Failed| !self.is_directory(&failed.path);
        let files_failed = self.failed.values().filter(is_file).count() as u64;
        self.summary.files =
            self.summary.files.saturating_sub(files_failed.saturating_sub(self.never_offered));
        let files = self.summary.files;
        self.conclude(files, had_files)
    }

    /// The first failure, if nothing at all came through: `files` did, and there were some at first
    /// if `had_files`.
    fn conclude(self, files: u64, had_files: bool) -> Result<Summary, Error> {
        let all_failed = !self.unpacks && self.failed.len() as u64 >= u64::from(self.manifest.len());
        match self.failed.values().next() {
            Some(failed) if files == 0 && (had_files || all_failed) => {
                let message =
                    format!("{}: {}", crate::shown(&failed.path), crate::shown(failed.message.as_bytes()));
                Err(Error::failed(failed.code, message))
            }
            _ => Ok(self.close()),
        }
    }
}

/// Whether the end that writes is this one, or says what it did.
fn tells_durability(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::FastDp | Protocol::FastDownloader)
}

fn checksum(options: &ClientOptions) -> &'static str {
    match (options.protocol, options.checksum) {
        (Protocol::FastDp, Algorithm::Xxh3) => "xxh3",
        (Protocol::FastDp, Algorithm::Blake3) => "blake3",
        (Protocol::FastDp11, _) => "sha256",
        _ => "none",
    }
}

fn count_files(manifest: &Manifest) -> u64 {
    manifest.iter().filter(|(_, entry)| entry.kind != EntryKind::Directory).count() as u64
}
