//! The byte stream beneath a connection: a plain socket today, later one that is encrypted.

use crate::net::tuning::{reset_on_close, tune};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::RecvFlags;
use std::fmt::Debug;
use std::io::{self, IoSlice, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// A blocked call returns this often, so that its thread can look around.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// A stream of bytes in both directions. One thread reads; any thread may write.
///
/// A call waits for [`TICK`] at most, and fails then with [`io::ErrorKind::WouldBlock`] or
/// [`io::ErrorKind::TimedOut`].
pub(super) trait Stream: Debug + Send + Sync {
    /// Reads what there is, at least one byte; 0 at the end. With `all`, waits until `buffer` is
    /// full, and brings less only at the end or after [`TICK`].
    fn read(&self, buffer: &mut [u8], all: bool) -> io::Result<usize>;

    /// Takes some of `parts`, at least one byte; how many.
    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Sends at most `count` bytes of `file` from `offset` on, which moves on; 0 at its end.
    fn send_file(&self, file: BorrowedFd<'_>, offset: &mut u64, count: usize) -> rustix::io::Result<usize>;

    /// Returns true if bytes, or the end of them, come within `patience`.
    fn comes_within(&self, patience: Duration) -> bool;

    /// Returns true if the peer has ended it or its own direction, also if bytes from before that
    /// are still to be read.
    fn peer_has_left(&self) -> bool;

    /// Ends one direction, or both. Blocked calls of other threads return.
    fn shutdown(&self, how: Shutdown);

    /// Has it reset when it goes, or ended in good order.
    fn reset_on_close(&self, reset: bool);

    /// Resets it now, whoever else still has it.
    fn reset_now(&self);

    /// The congestion control in use.
    fn congestion(&self) -> String;
}

/// A TCP connection without encryption.
#[derive(Debug)]
pub(super) struct PlainStream {
    socket: TcpStream,
}

impl PlainStream {
    /// Takes over a connected socket, and tunes it for a path with this round trip.
    pub(super) fn new(socket: TcpStream, rtt: Duration) -> io::Result<Self> {
        socket.set_nonblocking(false)?;
        tune(&socket, rtt)?;
        socket.set_read_timeout(Some(TICK))?;
        socket.set_write_timeout(Some(TICK))?;
        Ok(Self { socket })
    }
}

impl Stream for PlainStream {
    fn read(&self, buffer: &mut [u8], all: bool) -> io::Result<usize> {
        let flags = if all { RecvFlags::WAITALL } else { RecvFlags::empty() };
        Ok(rustix::net::recv(&self.socket, buffer, flags).map(|(count, _)| count)?)
    }

    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match parts {
            [part] => (&self.socket).write(part),
            parts => (&self.socket).write_vectored(parts),
        }
    }

    fn send_file(&self, file: BorrowedFd<'_>, offset: &mut u64, count: usize) -> rustix::io::Result<usize> {
        rustix::fs::sendfile(&self.socket, file, Some(offset), count)
    }

    fn comes_within(&self, patience: Duration) -> bool {
        let timeout = Timespec {
            tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: patience.subsec_nanos().into(),
        };
        let polled = poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout));
        // An interrupted call has seen nothing; what else fails is told by the next read.
        !matches!(polled, Ok(0) | Err(rustix::io::Errno::INTR))
    }

    fn peer_has_left(&self) -> bool {
        let mut polled = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let ended = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().intersects(ended)
    }

    fn shutdown(&self, how: Shutdown) {
        // What is not connected any more needs no end.
        let _ = self.socket.shutdown(how);
    }

    fn reset_on_close(&self, reset: bool) {
        reset_on_close(&self.socket, reset);
    }

    fn reset_now(&self) {
        let _ = rustix::net::connect_unspec(&self.socket);
    }

    fn congestion(&self) -> String {
        rustix::net::sockopt::tcp_congestion(&self.socket).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::time::Instant;

    #[test]
    fn a_wait_has_its_whole_seconds_too() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_far, _) = listener.accept().unwrap();
        let stream = PlainStream::new(near, Duration::ZERO).unwrap();
        let start = Instant::now();
        assert!(!stream.comes_within(Duration::from_millis(1010)));
        assert!(start.elapsed() >= Duration::from_millis(1010));
    }
}
