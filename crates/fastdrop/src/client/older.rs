//! What the older protocols have in common on the client: whole files, one after the other.

use crate::client::summary::Tally;
use crate::client::{Client, Error, fastdp1, nextdp, ultradp};
use crate::net::connection::{Connection, Ended, SendFileError};
use crate::net::throttle::Throttle;
use crate::observe::Phase;
use crate::protocol::Protocol;
use crate::source::tree::SourceTree;
use crate::storage::io::read_exact_at;
use fastdrop_proto::fastdp::{Done, Entry, EntryKind, Manifest, Refuse, Version};
use rustix::fs::Stat;
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A file to be sent, as it was when it was found.
#[derive(Debug)]
pub(super) struct SourceFile {
    fd: OwnedFd,
    /// What it is to be called there.
    pub(super) name: Vec<u8>,
    pub(super) size: u64,
    found: Stat,
}

impl SourceFile {
    fn open(tree: &SourceTree, entry: &Entry<'_>, name: Vec<u8>) -> Result<Self, Error> {
        let shown = || crate::shown(entry.path.as_bytes());
        let (root, path) = tree.locate(entry.path).ok_or_else(changed)?;
        let opened = root.open_file(&path).and_then(|fd| rustix::fs::fstat(&fd).map(|stat| (fd, stat)));
        let (fd, found) = opened.map_err(|errno| Error::system(shown(), errno))?;
        if found.st_size as u64 != entry.size() {
            return Err(changed());
        }
        Ok(Self { fd, name, size: entry.size(), found })
    }

    /// What was made of a file, and belongs to nobody else.
    pub(super) fn spooled(file: std::fs::File, name: Vec<u8>) -> Result<Self, Error> {
        let fd = OwnedFd::from(file);
        let found = rustix::fs::fstat(&fd).map_err(|errno| Error::system("a temporary file", errno))?;
        Ok(Self { fd, name, size: found.st_size as u64, found })
    }

    pub(super) fn try_clone(&self) -> Result<Self, Error> {
        let fd = self.fd.try_clone().map_err(|error| self.failed(&error))?;
        Ok(Self { fd, name: self.name.clone(), size: self.size, found: self.found })
    }

    /// Reads it from its beginning.
    pub(super) fn reader(&self) -> Result<std::fs::File, Error> {
        let mut file = std::fs::File::from(self.fd.try_clone().map_err(|error| self.failed(&error))?);
        std::io::Seek::rewind(&mut file).map_err(|error| self.failed(&error))?;
        Ok(file)
    }

    fn failed(&self, error: &std::io::Error) -> Error {
        let errno = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
        Error::system(crate::shown(&self.name), errno)
    }

    /// Seconds since 1970, at least 0.
    pub(super) fn mtime(&self) -> u64 {
        self.found.st_mtime.try_into().unwrap_or(0)
    }

    /// The name as the text that most of these protocols want.
    pub(super) fn name_text(&self) -> Result<&str, Error> {
        std::str::from_utf8(&self.name).map_err(|_| {
            Error::with_code(400, format!("{}: this protocol wants names in UTF-8", crate::shown(&self.name)))
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// An error if the file is not as it was when it was found. Asked before the last byte goes, it
    /// leaves the receiver with something incomplete, and not with a mixture.
    pub(super) fn check(&self) -> Result<(), Error> {
        let now =
            rustix::fs::fstat(&self.fd).map_err(|errno| Error::system(crate::shown(&self.name), errno))?;
        let of = |stat: &Stat| {
            (stat.st_size, stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec)
        };
        if of(&now) == of(&self.found) { Ok(()) } else { Err(changed()) }
    }

    /// Reads a part of it.
    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        match read_exact_at(&self.fd, buffer, offset) {
            Ok(()) => Ok(()),
            Err(Errno::NODATA) => Err(changed()),
            Err(errno) => Err(Error::system(crate::shown(&self.name), errno)),
        }
    }
}

/// What is known about a file that was sent without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    /// The receiver has said that it has it.
    Confirmed,
    /// The protocol does not tell.
    Unconfirmed,
}

/// The error for a connection that the receiver has reset, where a
/// protocol has no words for a refusal.
pub(super) fn refused_by_reset() -> Error {
    let message = "it reset the connection; its log says why".into();
    Error::Refused(Refuse { code: 403, message, paths: Vec::new() })
}

pub(super) fn changed() -> Error {
    Error::with_code(410, "the source changed while it was sent")
}

impl Client {
    /// Sends files, each with a transfer of its own.
    pub(super) fn put_older(
        &self,
        manifest: &Manifest,
        tree: &SourceTree,
        tally: &mut Tally,
    ) -> Result<Done, Error> {
        let protocol = self.options.protocol;
        if manifest.iter().any(|(_, entry)| !matches!(entry.kind, EntryKind::File { .. })) {
            return Err(Error::with_code(400, format!("{protocol} carries files, not folders or links")));
        }
        self.observer.files_total.store(manifest.len().into(), Ordering::Relaxed);
        self.observer.bytes_total.store(manifest.bytes(), Ordering::Relaxed);
        let throttle = self.options.bytes_per_second_max.map(Throttle::new);
        for (_, entry) in manifest.iter() {
            let name = self.name_there(&entry, manifest.len() == 1);
            let sent = SourceFile::open(tree, &entry, name).and_then(|file| {
                self.observer.set_phase(Phase::Connecting);
                match protocol {
                    Protocol::FastDp10 => fastdp1::send(self, &file, Version::V1_0, throttle.as_ref()),
                    Protocol::FastDp11 => fastdp1::send(self, &file, Version::V1_1, throttle.as_ref()),
                    Protocol::UltraDp => self.with_attempts(|| ultradp::send(self, &file, throttle.as_ref())),
                    Protocol::NextDp => {
                        nextdp::send(self, &file, throttle.as_ref()).map(|()| Delivery::Confirmed)
                    }
                    _ => Err(Error::with_code(400, format!("nothing can be sent with {protocol}"))),
                }
            });
            match sent {
                Ok(delivery) => tally.note_delivered(entry.size(), delivery),
                // One file that cannot be sent keeps no other back; a network that fails does.
                Err(error)
                    if manifest.len() > 1 && !matches!(error, Error::Network(_) | Error::Interrupted) =>
                {
                    tally.fail(entry.path.as_bytes(), error.code(), &error.to_string());
                }
                Err(error) => return Err(error),
            }
            self.observer.files_done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Done::default())
    }

    /// What a file is to be called: a target that ends in a slash,
    /// or several files, make it a folder.
    fn name_there(&self, entry: &Entry<'_>, single: bool) -> Vec<u8> {
        let name = entry.path.as_bytes();
        match &self.target.path[..] {
            b"" => name.to_vec(),
            folder if folder.ends_with(b"/") => [folder, name].concat(),
            path if single => path.to_vec(),
            folder => [folder, b"/", name].concat(),
        }
    }

    /// A connection to the target that speaks no protocol yet.
    pub(super) fn bare(&self, port: u16) -> Result<Arc<Connection>, Error> {
        let (socket, rtt) = self.dial(port)?;
        let lost = |error: std::io::Error| Error::Network(format!("the connection broke: {error}"));
        let connection = Arc::new(Connection::new(socket, rtt).map_err(lost)?);
        self.note_reached(rtt);
        self.stop.watch(&connection);
        Ok(connection)
    }

    /// Calls `attempt`, which begins anew each time, until it succeeds or fails for good; after a
    /// loss at most as often as there are retries, whatever was moved in vain.
    pub(super) fn with_attempts<T>(&self, mut attempt: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
        let before = self.observer.bytes_done.load(Ordering::Relaxed);
        let mut failed = 0;
        loop {
            let error = match attempt() {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            failed += 1;
            if failed > self.options.retries || !self.is_worth_a_retry(&error) {
                return Err(error);
            }
            tracing::info!(%error, attempt = failed, "trying again");
            self.observer.bytes_done.store(before, Ordering::Relaxed);
            self.observer.set_phase(Phase::Waiting);
            self.pause(failed)?;
        }
    }

    /// Another attempt may succeed after this.
    pub(super) fn is_worth_a_retry(&self, error: &Error) -> bool {
        match error {
            Error::Network(_) => self.reached.lock().is_ok_and(|reached| reached.is_some()),
            Error::Refused(refuse) => matches!(refuse.code, 408 | 503),
            _ => false,
        }
    }

    /// Sends `len` bytes of a file, counts them, and keeps the pace.
    pub(super) fn send_part(
        &self,
        connection: &Connection,
        file: &SourceFile,
        offset: u64,
        len: u64,
        throttle: Option<&Throttle>,
    ) -> Result<(), Error> {
        let piece_max = throttle.map_or(1 << 20, Throttle::piece_max);
        let pace = |count: usize| match throttle {
            Some(throttle) if count > 0 => throttle.book(count, Instant::now()),
            _ => Duration::ZERO,
        };
        let sent =
            connection.send_file(file.fd(), offset, len, piece_max, pace).map_err(|error| match error {
                SendFileError::Source(errno) => Error::system(crate::shown(&file.name), errno),
                SendFileError::Ended(ended) => ended.into(),
            })?;
        self.note_moved(sent);
        if sent < len { Err(changed()) } else { Ok(()) }
    }

    pub(super) fn note_moved(&self, bytes: u64) {
        self.observer.bytes_moved.fetch_add(bytes, Ordering::Relaxed);
        self.observer.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Sends all of `bytes`.
pub(super) fn send_all(connection: &Connection, bytes: &[u8]) -> Result<(), Ended> {
    connection.send(&mut [std::io::IoSlice::new(bytes)], usize::MAX, |_| Duration::ZERO)
}

/// Sends all of `bytes`, not faster than the limit allows.
pub(super) fn send_paced(
    connection: &Connection,
    bytes: &[u8],
    throttle: Option<&Throttle>,
) -> Result<(), Ended> {
    let Some(throttle) = throttle else { return send_all(connection, bytes) };
    let pace = |count: usize| match count {
        0 => Duration::ZERO,
        count => throttle.book(count, Instant::now()),
    };
    connection.send(&mut [std::io::IoSlice::new(bytes)], throttle.piece_max(), pace)
}
