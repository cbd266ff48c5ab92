//! The supply of chunks to the streams of a transfer that is being sent: the protocol's state and
//! the files together, without a connection.

use crate::error::Error;
use crate::lock::lock;
use crate::observe::{Clock, Clocks, Observer};
use crate::source::identity::Identities;
use crate::source::reader::{ChunkReader, StreamPieces, Unreadable};
use crate::source::tree::SourceTree;
use crate::stop::Stop;
use fastdrop_proto::checksum::{Algorithm, join_blake3};
use fastdrop_proto::fastdp::{Code, EntryKind, Failed, Manifest, Outcome, Refuse, Sender, StreamId};
use fastdrop_proto::units::{ChunkIndex, EntryIndex};
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The longest that a thread waits without looking around.
pub(super) const TICK: Duration = Duration::from_millis(500);

/// The state of a transfer that is being sent, shared by all its streams.
pub(super) struct ChunkSupply {
    proto: Mutex<Sender>,
    wake: Condvar,
    pub(super) manifest: Arc<Manifest>,
    pub(super) tree: Arc<SourceTree>,
    identities: Identities,
    algorithm: Algorithm,
    sparse: bool,
    pub(super) pieces: StreamPieces,
    pub(super) observer: Arc<Observer>,
    pub(super) stop: Stop,
    abandoned: Mutex<BTreeMap<EntryIndex, Failed>>,
    hashes: Mutex<BTreeMap<EntryIndex, [u8; 32]>>,
    /// The reason of this end for giving up, such as an input that cannot be read.
    failure: Mutex<Option<Error>>,
}

impl ChunkSupply {
    /// Creates the supply of what `proto` offers out of `tree`; `sparse` says that holes of files
    /// need not be sent.
    pub(super) fn new(
        proto: Sender,
        tree: Arc<SourceTree>,
        identities: Identities,
        sparse: bool,
        observer: Arc<Observer>,
        stop: Stop,
    ) -> Self {
        Self {
            manifest: Arc::clone(proto.manifest()),
            algorithm: proto.algorithm(),
            proto: Mutex::new(proto),
            wake: Condvar::new(),
            tree,
            identities,
            sparse,
            pieces: StreamPieces::default(),
            observer,
            stop,
            abandoned: Mutex::default(),
            hashes: Mutex::default(),
            failure: Mutex::default(),
        }
    }

    /// Locks the protocol's state: before any other lock, and never across I/O.
    pub(super) fn proto(&self) -> MutexGuard<'_, Sender> {
        lock(&self.proto)
    }

    /// Wakes all threads that wait for a change of the protocol's state.
    pub(super) fn notify(&self) {
        self.wake.notify_all();
    }

    /// Waits for such a change, `until` so much time has passed.
    pub(super) fn wait<'a>(&self, proto: MutexGuard<'a, Sender>, until: Duration) -> MutexGuard<'a, Sender> {
        self.wake.wait_timeout(proto, until).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Lists what could not be sent.
    pub(super) fn abandoned(&self) -> Vec<Failed> {
        let proto = self.proto();
        // The receiver may have had it all before it could not be read again.
        let left_out = |(entry, _): &(&EntryIndex, &Failed)| proto.is_left_out(**entry);
        lock(&self.abandoned).iter().filter(left_out).map(|(_, failed)| failed.clone()).collect()
    }

    /// BLAKE3 of each file that was sent, where it was computed.
    pub(super) fn hashes(&self) -> BTreeMap<EntryIndex, [u8; 32]> {
        let proto = self.proto();
        let mut hashes = lock(&self.hashes).clone();
        if self.algorithm == Algorithm::Blake3 {
            for (index, entry) in self.manifest.iter() {
                if proto.is_left_out(index) || !matches!(entry.kind, EntryKind::File { .. }) {
                    hashes.retain(|other, _| *other != index || matches!(entry.kind, EntryKind::Stream));
                } else if entry.size() == 0 {
                    hashes.insert(index, *blake3::hash(b"").as_bytes());
                } else if let Some(hash) = proto.piece_checksums(index).and_then(|sums| join_blake3(&sums)) {
                    hashes.insert(index, hash);
                }
            }
        }
        hashes
    }

    /// Gives the transfer up for a reason of this end.
    pub(super) fn fail(&self, error: Error) {
        lock(&self.failure).get_or_insert(error);
        self.notify();
    }

    /// Takes the reason of this end for giving up, if there is one.
    pub(super) fn take_failure(&self) -> Option<Error> {
        lock(&self.failure).take()
    }

    /// Records BLAKE3 of files that have been read to their end.
    pub(super) fn note_hashes(&self, hashes: impl Iterator<Item = (EntryIndex, [u8; 32])>) {
        lock(&self.hashes).extend(hashes);
    }

    /// The words with which this end gives the transfer up; None while it does not.
    pub(super) fn refusal(&self, proto: &Sender) -> Option<Refuse> {
        match proto.outcome() {
            Some(outcome) => own_failure(outcome).map(|error| error.refusal()),
            None => lock(&self.failure).as_ref().map(Error::refusal),
        }
    }

    /// Creates a reader of chunks.
    pub(super) fn chunks(&self) -> ChunkReader<'_> {
        ChunkReader {
            tree: &self.tree,
            manifest: &self.manifest,
            identities: &self.identities,
            algorithm: self.algorithm,
            clocks: &self.observer.clocks,
            pieces: Some(&self.pieces),
            sparse: self.sparse,
            last: None,
        }
    }

    /// Notes that a chunk cannot be read, on its way to `stream` or to be compared.
    pub(super) fn give_up(&self, stream: Option<StreamId>, index: ChunkIndex, unreadable: Unreadable) {
        let Unreadable { entry, code, reason } = unreadable;
        tracing::debug!(entry = entry.0, %reason, "an entry cannot be sent");
        self.proto().handle_unreadable(stream, index, entry, code, &reason);
        let path = self.manifest.get(entry).map(|entry| entry.path.as_bytes().to_vec()).unwrap_or_default();
        lock(&self.abandoned).entry(entry).or_insert(Failed { path, code, message: reason });
        self.notify();
    }

    /// Reads the entry of unknown size to its end, on the calling thread, while the transfer
    /// runs; what that takes counts to `clock`.
    pub(super) fn feed(&self, mut input: impl Read, clock: impl Fn(&Clocks) -> &Clock) {
        let one = {
            let mut proto = self.proto();
            loop {
                if proto.outcome().is_some() || self.stop.is_stopped() {
                    return;
                }
                match proto.wants_stream() {
                    Some(true) => break proto.table().one_chunk().bytes() as usize,
                    Some(false) => return,
                    None => proto = self.wait(proto, TICK),
                }
            }
        };
        let filled = |keep: &mut dyn FnMut(ChunkIndex)| {
            let mut proto = self.proto();
            if proto.outcome().is_some() {
                return false;
            }
            let Some(chunk) = proto.handle_stream_filled() else { return false };
            keep(chunk);
            drop(proto);
            self.notify();
            true
        };
        match self.pieces.feed(&mut input, one, self.algorithm, clock(&self.observer.clocks), filled) {
            Ok(Some(end)) => {
                let mut proto = self.proto();
                if let (Some((entry, _)), Some(hash)) = (proto.table().stream(), end.hash) {
                    lock(&self.hashes).insert(entry, hash);
                }
                self.observer.bytes_total.fetch_add(end.size, Ordering::Relaxed);
                proto.handle_stream_ended(end.size);
            }
            Ok(None) => {}
            Err(error) => {
                // Whoever makes an archive says in words what is wrong.
                let failure = match error.raw_os_error() {
                    Some(errno) => {
                        let errno = rustix::io::Errno::from_raw_os_error(errno);
                        Error::system("reading the input", errno)
                    }
                    None => Error::failed(Code::SourceChanged, error.to_string()),
                };
                lock(&self.failure).get_or_insert(failure);
            }
        }
        self.notify();
    }
}

/// The reason for which this end gives the transfer up; None if it is not this end that does.
pub(super) fn own_failure(outcome: &Outcome) -> Option<Error> {
    match outcome {
        Outcome::Violated(violation) => Some(Error::Violation(violation.clone())),
        Outcome::Failed(failure) => Some(Error::Failed(failure.clone())),
        Outcome::StartOver => Some(Error::failed(
            Code::Conflict,
            "the other end would continue with something else than what is here now, and is too old to be told so: --no-resume begins anew",
        )),
        Outcome::Done(_) | Outcome::Refused(_) | Outcome::Lost(_) => None,
    }
}
