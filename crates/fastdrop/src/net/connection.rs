//! A connection in the blocking plane, over whatever carries its bytes.

use crate::error::Error;
use crate::net::stream::{PlainStream, Stream, TICK};
use crate::net::tuning::SMALL_BUFFER_RTT;
use crate::stop::Stoppable;
use fastdrop_proto::fastdp::SILENT_MAX;
use std::io::IoSlice;
use std::net::{Shutdown, TcpStream};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The longest that a peer has for reading the last words before a connection goes.
const LINGER_MAX: Duration = Duration::from_secs(2);
/// The interval at which that is looked at.
const LINGER_TICK: Duration = Duration::from_millis(200);

/// How a wait for bytes ended without them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The peer closed between two frames.
    Closed,
    /// The connection broke, or was closed inside a frame.
    Broken(String),
    /// Nothing came for too long.
    Silent,
    /// The message was not complete at the deadline.
    Late,
    /// This end was told to stop.
    Stopped,
}

impl From<Ended> for Error {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Closed => Error::Network("the peer closed the connection too early".into()),
            Ended::Broken(why) => Error::Network(format!("the connection broke: {why}")),
            Ended::Silent => Error::Network("the peer has been silent for too long".into()),
            Ended::Late => Error::Network("the peer has been too slow".into()),
            Ended::Stopped => Error::Interrupted,
        }
    }
}

/// Why a file could not be sent.
#[derive(Debug)]
pub(crate) enum SendFileError {
    /// It cannot be read.
    Source(rustix::io::Errno),
    /// The connection has ended.
    Ended(Ended),
}

/// One connection. Any thread may send whole messages; one thread reads.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Box<dyn Stream>,
    writing: Mutex<()>,
    stopped: AtomicBool,
    /// A call has reported that the peer reset it. The system says so once; later
    /// reads look like an end in good order.
    was_reset: AtomicBool,
    /// The peer says nothing until it ends or gives up: sending on after that is in vain.
    stops_at_answer: AtomicBool,
    /// Bytes that were read.
    received: AtomicU64,
    /// The path is shorter than [`SMALL_BUFFER_RTT`].
    shortest: bool,
}

impl Connection {
    /// Takes over a connected socket, with the options that file streams want.
    pub(crate) fn new(socket: TcpStream, rtt: Duration) -> std::io::Result<Self> {
        Ok(Self {
            stream: Box::new(PlainStream::new(socket, rtt)?),
            writing: Mutex::new(()),
            stopped: AtomicBool::new(false),
            was_reset: AtomicBool::new(false),
            stops_at_answer: AtomicBool::new(false),
            received: AtomicU64::new(0),
            shortest: rtt < SMALL_BUFFER_RTT,
        })
    }

    /// Whether the path is so short that only the machines at its ends limit it.
    pub(crate) fn is_shortest(&self) -> bool {
        self.shortest
    }

    /// The congestion control in use.
    pub(crate) fn congestion(&self) -> String {
        self.stream.congestion()
    }

    /// Whether it keeps its rate through losses that are not congestion.
    pub(crate) fn is_loss_tolerant(&self) -> bool {
        self.congestion() == "bbr"
    }

    /// Ends it: blocked calls of other threads return.
    pub(crate) fn close(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.stream.shutdown(Shutdown::Both);
    }

    /// Ends it with a reset: the peer is not to take it for the end of what was sent.
    pub(crate) fn reset(&self) {
        self.stream.reset_on_close(true);
        self.stopped.store(true, Ordering::SeqCst);
    }

    /// Resets it now, whoever else still has it.
    pub(crate) fn reset_now(&self) {
        self.reset();
        self.stream.reset_now();
    }

    /// Has it reset when it goes, or ended in good order.
    pub(crate) fn reset_on_close(&self, reset: bool) {
        self.stream.reset_on_close(reset);
    }

    /// Has a blocked write end as soon as there is something to read.
    pub(crate) fn stop_at_answer(&self) {
        self.stops_at_answer.store(true, Ordering::SeqCst);
    }

    /// The peer has reset it, as far as reads and writes have told.
    pub(crate) fn was_reset(&self) -> bool {
        self.was_reset.load(Ordering::SeqCst)
    }

    /// Bytes that were read so far.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// The peer has ended it or its own direction, also if bytes
    /// from before that are still to be read.
    pub(crate) fn peer_has_left(&self) -> bool {
        self.stream.peer_has_left()
    }

    /// Says that nothing more will be sent.
    pub(crate) fn finish_writing(&self) {
        self.stream.shutdown(Shutdown::Write);
    }

    /// Gives the peer a moment to read the last frame: closing with
    /// unread bytes would take it back.
    pub(crate) fn linger(&self) {
        self.finish_writing();
        self.drain();
    }

    /// Ends in good order a connection that would have been reset: what it brought is complete.
    pub(crate) fn finish(&self) {
        self.reset_on_close(false);
        self.linger();
    }

    /// Reads and drops what comes, until the peer has ended or two seconds are over.
    pub(crate) fn drain(&self) {
        let until = Instant::now() + LINGER_MAX;
        let mut rest = [0u8; 16 << 10];
        while Instant::now() < until {
            if !self.stream.comes_within(LINGER_TICK) {
                continue;
            }
            match self.stream.read(&mut rest, false) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if is_pause(&error) => {}
                Err(_) => return,
            }
        }
    }

    /// Reads into `buffer`: what there is, at least one byte, or with `all` until it is full, the
    /// peer has ended, or a moment has passed. 0 at the end.
    ///
    /// # Errors
    ///
    /// An error of the system; [`Self::waited`] decides about it.
    pub(super) fn read(&self, buffer: &mut [u8], all: bool) -> std::io::Result<usize> {
        let count = self.stream.read(buffer, all)?;
        self.received.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }

    /// Returns true if this end has been told to stop.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Returns true if bytes, or the end of them, come within `patience`.
    pub(super) fn comes_within(&self, patience: Duration) -> bool {
        self.stream.comes_within(patience)
    }

    /// Sends `parts`, which are whole messages, at most `piece_max` bytes at once; `pace` hears of
    /// what is about to go and says how long to wait first, and of 0 bytes when some have gone.
    pub(crate) fn send(
        &self,
        mut parts: &mut [IoSlice<'_>],
        piece_max: usize,
        mut pace: impl FnMut(usize) -> Duration,
    ) -> Result<(), Ended> {
        let _whole = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut moved_at = Instant::now();
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            let piece = if piece_max == usize::MAX {
                self.stream.write(parts)
            } else {
                let first = &parts[0][..parts[0].len().min(piece_max)];
                self.pause(pace(first.len()));
                self.stream.write(&[IoSlice::new(first)])
            };
            match piece {
                Ok(0) => return Err(Ended::Broken("it takes nothing more".into())),
                Ok(sent) => {
                    IoSlice::advance_slices(&mut parts, sent);
                    moved_at = Instant::now();
                    pace(0);
                }
                Err(error) => self.waited_to_write(&error, moved_at)?,
            }
        }
        Ok(())
    }

    /// Sends `len` bytes of `file` from `offset` on, which the kernel takes
    /// from its cache; `piece_max` and `pace` as in [`Self::send`]. Fewer if
    /// the file ends earlier: how many have gone.
    pub(crate) fn send_file(
        &self,
        file: BorrowedFd<'_>,
        mut offset: u64,
        len: u64,
        piece_max: usize,
        mut pace: impl FnMut(usize) -> Duration,
    ) -> Result<u64, SendFileError> {
        let _whole = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let (start, end) = (offset, offset + len);
        let mut moved_at = Instant::now();
        while offset < end {
            let count = usize::try_from(end - offset).unwrap_or(usize::MAX).min(piece_max);
            self.pause(pace(count));
            match self.stream.send_file(file, &mut offset, count) {
                Ok(0) => break,
                Ok(_) => {
                    moved_at = Instant::now();
                    pace(0);
                }
                Err(errno @ (rustix::io::Errno::IO | rustix::io::Errno::OVERFLOW)) => {
                    return Err(SendFileError::Source(errno));
                }
                Err(errno) => self.waited_to_write(&errno.into(), moved_at).map_err(SendFileError::Ended)?,
            }
        }
        Ok(offset - start)
    }

    fn pause(&self, mut left: Duration) {
        while !left.is_zero() && !self.stopped.load(Ordering::Relaxed) {
            let nap = left.min(TICK / 10);
            std::thread::sleep(nap);
            left -= nap;
        }
    }

    /// Decides about a write that could not go on, as [`Self::waited`].
    fn waited_to_write(&self, error: &std::io::Error, moved_at: Instant) -> Result<(), Ended> {
        self.waited(error, moved_at)?;
        if self.stops_at_answer.load(Ordering::SeqCst) && self.stream.comes_within(Duration::ZERO) {
            return Err(Ended::Broken("the peer has answered before everything was sent".into()));
        }
        Ok(())
    }

    /// Decides whether a call that brought nothing is worth repeating.
    pub(super) fn waited(&self, error: &std::io::Error, moved_at: Instant) -> Result<(), Ended> {
        use std::io::ErrorKind::{BrokenPipe, ConnectionReset, Interrupted, TimedOut, WouldBlock};
        if self.stopped.load(Ordering::SeqCst) {
            return Err(Ended::Stopped);
        }
        match error.kind() {
            ConnectionReset | BrokenPipe => {
                self.was_reset.store(true, Ordering::SeqCst);
                Err(Ended::Broken(error.to_string()))
            }
            Interrupted => Ok(()),
            WouldBlock | TimedOut if moved_at.elapsed() < SILENT_MAX => Ok(()),
            WouldBlock | TimedOut => Err(Ended::Silent),
            _ => Err(Ended::Broken(error.to_string())),
        }
    }
}

impl Stoppable for Connection {
    /// Has reading end with [`Ended::Stopped`], while a last frame can still be sent.
    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.stream.shutdown(Shutdown::Read);
    }
}

/// Returns true for an error that only says that nothing came, or could go, for a moment.
fn is_pause(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}
