//! A connection in the blocking plane: whole frames in, whole frames out.

use crate::error::Error;
use crate::stop::Stoppable;
use fastdrop_proto::fastdp::{Control, FrameHeader, FrameKind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::RecvFlags;
use std::io::{IoSlice, Read, Write};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A blocked call returns this often, so that its thread can look around.
const TICK: Duration = Duration::from_secs(1);
/// A peer that neither sends nor takes a byte for so long is taken for gone.
pub(crate) const SILENT_MAX: Duration = Duration::from_secs(60);
/// Below this round trip the path is a local one.
const LOCAL_RTT: Duration = Duration::from_millis(5);

/// On a local path CUBIC costs a fraction of BBR's CPU.
const SHORT_PATH_CONGESTION: &str = "cubic";
/// On a long path BBR goes on through losses.
const LONG_PATH_CONGESTION: &str = "bbr";

/// Socket buffers on the shortest paths, in bytes: what is under way stays in the processor's
/// caches between sender and receiver.
const SMALL_BUFFER: usize = 256 << 10;
/// Below this round trip small buffers carry 512 MB/s a stream and more;
/// above it they would be what limits.
pub(crate) const SMALL_BUFFER_RTT: Duration = Duration::from_micros(500);

/// Readies a socket that will connect to `address`, or listen on
/// it: what is accepted inherits this.
///
/// A connection that begins with BBR is paced by the kernel for good, also after it was told to
/// use another algorithm, and on a loopback path its timers cost a tenth of the time. Long paths
/// begin with what the system prefers.
pub(crate) fn prepare_socket(socket: &impl AsFd, address: IpAddr) {
    if address.to_canonical().is_loopback() {
        // It only helps; where the kernel refuses it, the bytes move all the same.
        let _ = rustix::net::sockopt::set_tcp_congestion(socket, SHORT_PATH_CONGESTION);
    }
}

/// Has the kernel reset a connection when its last descriptor
/// goes, or end it in good order as usual.
///
/// Where a protocol has no words, an end in good order is its only sign of success. So whatever
/// ends such a connection before that, a process that dies among them, has to reset it.
pub(crate) fn reset_on_close(socket: &impl AsFd, reset: bool) {
    // Only what is no socket would refuse.
    let _ = socket2::SockRef::from(socket).set_linger(reset.then_some(Duration::ZERO));
}

/// How a wait for bytes ended without them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The peer closed between two frames.
    Closed,
    /// The connection broke, or was closed inside a frame.
    Broken(String),
    /// Nothing came for too long.
    Silent,
    /// This end was told to stop.
    Stopped,
}

impl From<Ended> for Error {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Closed => Error::Network("the peer closed the connection too early".into()),
            Ended::Broken(why) => Error::Network(format!("the connection broke: {why}")),
            Ended::Silent => Error::Network("the peer has been silent for too long".into()),
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

/// One TCP connection. Any thread may send whole frames; one
/// thread reads, through a [`FrameReader`].
#[derive(Debug)]
pub(crate) struct Connection {
    socket: TcpStream,
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
        socket.set_nonblocking(false)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(TICK))?;
        socket.set_write_timeout(Some(TICK))?;
        // What follows only helps; a kernel that refuses it moves the bytes all the same.
        let algorithm = if rtt < LOCAL_RTT { SHORT_PATH_CONGESTION } else { LONG_PATH_CONGESTION };
        let _ = rustix::net::sockopt::set_tcp_congestion(&socket, algorithm);
        if rtt < SMALL_BUFFER_RTT {
            let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SMALL_BUFFER);
            let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SMALL_BUFFER);
        }
        let _ = rustix::net::sockopt::set_socket_keepalive(&socket, true);
        let _ = rustix::net::sockopt::set_tcp_keepidle(&socket, Duration::from_secs(20));
        let _ = rustix::net::sockopt::set_tcp_keepintvl(&socket, Duration::from_secs(10));
        let _ = rustix::net::sockopt::set_tcp_keepcnt(&socket, 4);
        Ok(Self {
            socket,
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
        rustix::net::sockopt::tcp_congestion(&self.socket).unwrap_or_default()
    }

    /// Whether it keeps its rate through losses that are not congestion.
    pub(crate) fn is_loss_tolerant(&self) -> bool {
        self.congestion() == "bbr"
    }

    /// Ends it: blocked calls of other threads return.
    pub(crate) fn close(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Ends it with a reset: the peer is not to take it for the end of what was sent.
    pub(crate) fn reset(&self) {
        let _ = socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
        self.stopped.store(true, Ordering::SeqCst);
    }

    /// Resets it now, whoever else still has it.
    pub(crate) fn reset_now(&self) {
        self.reset();
        let _ = rustix::net::connect_unspec(&self.socket);
    }

    /// Has it reset when it goes, or ended in good order.
    pub(crate) fn reset_on_close(&self, reset: bool) {
        reset_on_close(&self.socket, reset);
    }

    /// Has a blocked write end as soon as there is something to read.
    pub(crate) fn stop_at_answer(&self) {
        self.stops_at_answer.store(true, Ordering::SeqCst);
    }

    /// There is something to read, or the end of it.
    fn has_input(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&now)) != Ok(0)
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
        let mut polled = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let ended = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().intersects(ended)
    }

    /// Says that nothing more will be sent.
    pub(crate) fn finish_writing(&self) {
        let _ = self.socket.shutdown(Shutdown::Write);
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
        let until = Instant::now() + Duration::from_secs(2);
        let mut rest = [0u8; 16 << 10];
        let _ = self.socket.set_read_timeout(Some(Duration::from_millis(200)));
        while Instant::now() < until {
            match rustix::net::recv(&self.socket, &mut rest, RecvFlags::empty()) {
                Ok((0, _)) => return,
                Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    /// Sends one control frame.
    pub(crate) fn send_control(&self, control: &Control) -> Result<(), Ended> {
        self.send(&mut [IoSlice::new(&control.encode())], usize::MAX, |_| Duration::ZERO)
    }

    /// Sends several control frames.
    pub(crate) fn send_controls(&self, controls: &[Control]) -> Result<(), Ended> {
        controls.iter().try_for_each(|control| self.send_control(control))
    }

    /// Sends `parts`, which are whole frames, at most `piece_max` bytes at once; `pace` hears of
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
                (&self.socket).write_vectored(parts)
            } else {
                let first = &parts[0][..parts[0].len().min(piece_max)];
                self.pause(pace(first.len()));
                (&self.socket).write(first)
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
            match rustix::fs::sendfile(&self.socket, file, Some(&mut offset), count) {
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
        if self.stops_at_answer.load(Ordering::SeqCst) && self.has_input() {
            return Err(Ended::Broken("the peer has answered before everything was sent".into()));
        }
        Ok(())
    }

    /// Decides whether a call that brought nothing is worth repeating.
    fn waited(&self, error: &std::io::Error, moved_at: Instant) -> Result<(), Ended> {
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
        let _ = self.socket.shutdown(Shutdown::Read);
    }
}

/// The next `left` bytes of a connection.
#[derive(Debug)]
pub(crate) struct Payload<'a> {
    reader: &'a mut FrameReader,
    left: u64,
    /// How the connection ended, if it did so too early.
    pub(crate) ended: Option<Ended>,
}

impl<'a> Payload<'a> {
    pub(crate) fn new(reader: &'a mut FrameReader, left: u64) -> Self {
        Self { reader, left, ended: None }
    }
}

impl Read for Payload<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        match self.reader.read_some(&mut buffer[..most]) {
            Ok(count) if count > 0 => {
                self.left -= count as u64;
                Ok(count)
            }
            ended => {
                self.ended = Some(ended.err().unwrap_or_else(|| Ended::Broken("it ended too early".into())));
                Err(std::io::ErrorKind::UnexpectedEof.into())
            }
        }
    }
}

/// Reads frames from a connection.
#[derive(Debug)]
pub(crate) struct FrameReader {
    connection: std::sync::Arc<Connection>,
    /// Bytes that came with the handshake.
    early: Vec<u8>,
    early_at: usize,
}

impl FrameReader {
    /// Reads what follows `early`, bytes that were read before.
    pub(crate) fn new(connection: std::sync::Arc<Connection>, early: Vec<u8>) -> Self {
        Self { connection, early, early_at: 0 }
    }

    /// The connection.
    pub(crate) fn connection(&self) -> &std::sync::Arc<Connection> {
        &self.connection
    }

    /// Fills `buffer`; [`Ended::Closed`] only before its first byte.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Ended> {
        let early = &self.early[self.early_at..];
        let mut filled = early.len().min(buffer.len());
        buffer[..filled].copy_from_slice(&early[..filled]);
        self.early_at += filled;
        let mut moved_at = Instant::now();
        while filled < buffer.len() {
            match rustix::net::recv(&self.connection.socket, &mut buffer[filled..], RecvFlags::WAITALL) {
                Ok((0, _)) if self.connection.stopped.load(Ordering::SeqCst) => return Err(Ended::Stopped),
                Ok((0, _)) if filled == 0 => return Err(Ended::Closed),
                Ok((0, _)) => return Err(Ended::Broken("it ended inside a frame".into())),
                Ok((count, _)) => {
                    self.connection.received.fetch_add(count as u64, Ordering::Relaxed);
                    filled += count;
                    moved_at = Instant::now();
                }
                Err(errno) => self.connection.waited(&errno.into(), moved_at)?,
            }
        }
        Ok(())
    }

    /// Reads what there is, at least one byte; 0 only at the end.
    pub(crate) fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, Ended> {
        if self.early_at < self.early.len() {
            let count = buffer.len().min(self.early.len() - self.early_at);
            self.fill(&mut buffer[..count])?;
            return Ok(count);
        }
        let moved_at = Instant::now();
        loop {
            match rustix::net::recv(&self.connection.socket, &mut *buffer, RecvFlags::empty()) {
                Ok((0, _)) if self.connection.stopped.load(Ordering::SeqCst) => return Err(Ended::Stopped),
                Ok((count, _)) => {
                    self.connection.received.fetch_add(count as u64, Ordering::Relaxed);
                    return Ok(count);
                }
                Err(errno) => self.connection.waited(&errno.into(), moved_at)?,
            }
        }
    }

    /// Whether bytes, or the end of them, come within `patience`.
    pub(crate) fn comes_within(&self, patience: Duration) -> bool {
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(patience.subsec_nanos()) };
        self.early_at < self.early.len()
            || poll(&mut [PollFd::new(&self.connection.socket, PollFlags::IN)], Some(&timeout)) != Ok(0)
    }

    /// The next frame's header.
    pub(crate) fn header(&mut self) -> Result<FrameHeader, Error> {
        let mut bytes = [0; FrameHeader::LEN];
        self.fill(&mut bytes)?;
        Ok(FrameHeader::decode(bytes)?)
    }

    /// The control frame that `header` began. Its size was checked with its type.
    pub(crate) fn control(&mut self, kind: u32, size: u32) -> Result<Control, Error> {
        Ok(Control::decode(kind, &self.payload(size)?)?)
    }

    /// The payload of a control frame.
    pub(crate) fn payload(&mut self, size: u32) -> Result<Vec<u8>, Error> {
        let mut payload = vec![0; size as usize];
        match self.fill(&mut payload) {
            Err(Ended::Closed) => Err(Ended::Broken("it ended inside a frame".into()).into()),
            Err(ended) => Err(ended.into()),
            Ok(()) => Ok(payload),
        }
    }

    /// The next frame, which must be a control frame.
    pub(crate) fn next_control(&mut self) -> Result<Control, Error> {
        let header = self.header()?;
        match header.kind {
            FrameKind::Control(kind) => self.control(kind, header.size),
            _ => Err(Error::with_code(400, "a chunk where none can be")),
        }
    }
}
