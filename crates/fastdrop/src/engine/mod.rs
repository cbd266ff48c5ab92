//! The engine: the protocol's sender and receiver, given sockets, files and
//! threads. Client and server share it.

mod compare;
mod compress;
pub(crate) mod files;
pub(crate) mod incoming;
pub(crate) mod inquiry;
mod mounts;
pub(crate) mod output;
pub(crate) mod place;
pub(crate) mod receive;
pub(crate) mod send;
pub(crate) mod turns;
mod unpack;
mod worker;

use crate::connection::{Connection, FrameReader, SMALL_BUFFER_RTT};
use fastdrop_proto::fastdp::{Control, Streams};
use fastdrop_proto::units::ChunkSize;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes of a frame that carries a part of a manifest.
pub(crate) const MANIFEST_PART: usize = 256 << 10;

/// Locks. A thread that panicked ends its own connection; what it held is still worth having.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Chunk buffers of one transfer, in bytes: half of what it may cost altogether.
const BUFFERS_MAX: u32 = 32 << 20;

/// How many of `streams` data streams one transfer may have,
/// given that each holds a chunk in memory.
pub(crate) fn grantable(streams: u16, one_chunk: ChunkSize) -> u16 {
    let fitting = (BUFFERS_MAX / one_chunk.bytes()).clamp(1, 64) as u16;
    streams.clamp(1, fitting)
}

/// How many chunks one stream may have under way: on a short path a few keep it full, and
/// fewer are sent again after a crash.
pub(crate) fn flying_max(rtt: Duration, one_chunk: ChunkSize) -> usize {
    let bytes: u32 = if rtt < Duration::from_millis(2) { 4 << 20 } else { 64 << 20 };
    ((bytes / one_chunk.bytes()) as usize).max(4)
}

/// So many files are made in less time than further streams take to open.
const FEW_ENTRIES: u32 = 64;

/// From how many bytes on data streams are opened; less goes over the control stream alone.
///
/// On the shortest paths one stream moves more than a gigabyte a second, and what further ones
/// cost, in threads, buffers and handshakes, comes back late. Two more take 22 % longer for 8 MiB,
/// and 36 % more CPU, which a server with many clients does not have; for 32 MiB as long, and 17 %
/// more CPU; with 48 MiB they are 15 % faster. Where there are many files, making them is the work,
/// and more streams share it: 10,000 of 1 KiB take 22 % longer over one.
pub(crate) fn data_streams_from(streams: Streams, rtt: Duration, entries: u32) -> u64 {
    let short = rtt < SMALL_BUFFER_RTT && entries <= FEW_ENTRIES;
    if streams == Streams::Auto && short { (32 << 20) + 1 } else { 1 << 20 }
}

/// Does something that may take long, while the peer hears every
/// few seconds that this end is alive.
pub(crate) fn with_alive<T>(connection: &Connection, work: impl FnOnce() -> T) -> T {
    let over = (Mutex::new(false), Condvar::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut done = over.0.lock().unwrap_or_else(PoisonError::into_inner);
            while !*done {
                let waited =
                    over.1.wait_timeout(done, Duration::from_secs(5)).unwrap_or_else(PoisonError::into_inner);
                done = waited.0;
                if !*done && connection.send_control(&Control::Alive).is_err() {
                    return;
                }
            }
        });
        let _end = SetOnDrop(&over);
        work()
    })
}

struct SetOnDrop<'a>(&'a (Mutex<bool>, Condvar));

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }
}

/// A data stream whose handshake is done.
pub(crate) struct Joined {
    pub(crate) reader: FrameReader,
    /// What the stream holds as long as it lasts: a permit, say.
    pub(crate) held: Box<dyn std::any::Any + Send>,
}

impl std::fmt::Debug for Joined {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Joined").field("reader", &self.reader).finish_non_exhaustive()
    }
}

impl Joined {
    /// The connection.
    pub(crate) fn connection(&self) -> &Arc<Connection> {
        self.reader.connection()
    }
}

/// Data streams that have joined and wait to be served.
#[derive(Debug, Default)]
pub(crate) struct Joins {
    inner: Mutex<(VecDeque<Joined>, bool)>,
    changed: Condvar,
}

impl Joins {
    /// Hands a stream over; given back once the transfer is over.
    pub(crate) fn push(&self, joined: Joined) -> Result<(), Joined> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.1 {
            return Err(joined);
        }
        inner.0.push_back(joined);
        self.changed.notify_all();
        Ok(())
    }

    /// The next stream; None once the transfer is over.
    pub(crate) fn wait(&self) -> Option<Joined> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if inner.1 {
                return None;
            }
            if let Some(joined) = inner.0.pop_front() {
                return Some(joined);
            }
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Says that the transfer is over.
    pub(crate) fn end(&self) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.1 = true;
        for joined in inner.0.drain(..) {
            joined.connection().close();
        }
        self.changed.notify_all();
    }
}
