//! Compressing chunks on their way out, where that pays.

use crate::codec::encode::ZSTD_LEVEL;
use crate::observe::Clock;
use crate::source::reader::ReadChunk;
use fastdrop_proto::fastdp::{Compress, Compressor, Plan};
use std::time::{Duration, Instant};

/// What a connection within one machine lets pass, in bytes a
/// second: more than any compressor takes.
const LOCAL_RATE: f64 = 1e10;

/// Compresses the chunks of one stream, with buffers of its own.
pub(crate) struct ChunkCompressor {
    compressor: Compressor,
    context: zstd::bulk::Compressor<'static>,
    /// What stands between the holes of a sparse chunk.
    data: Vec<u8>,
    frame: Vec<u8>,
}

impl ChunkCompressor {
    /// None if chunks are not compressed. `rate_max` is a limit in bytes a second, `shortest` says
    /// that the path is.
    pub(crate) fn new(compress: Compress, rate_max: Option<u64>, shortest: bool) -> Option<Self> {
        let rate = rate_max.map(|rate| rate as f64).or(shortest.then_some(LOCAL_RATE));
        let compressor = Compressor::new(compress, rate)?;
        let context = zstd::bulk::Compressor::new(ZSTD_LEVEL);
        let context =
            context.inspect_err(|error| tracing::warn!(%error, "chunks are not compressed")).ok()?;
        Some(Self { compressor, context, data: Vec::new(), frame: Vec::new() })
    }

    /// The data of `chunk` as one Zstandard frame, if it is to be sent so.
    pub(crate) fn compress(&mut self, chunk: &ReadChunk, clock: &Clock) -> Option<&[u8]> {
        let len = chunk.extents.as_ref().map_or(chunk.bytes.len(), |extents| extents.data_len() as usize);
        if len == 0 {
            return None;
        }
        let plan = self.compressor.poll_chunk(len);
        if plan == Plan::Plain {
            return None;
        }
        let mut data = &chunk.bytes;
        if let Some(extents) = &chunk.extents {
            self.data.clear();
            for (at, len) in extents.iter() {
                self.data.extend_from_slice(&chunk.bytes[at as usize..(at + len) as usize]);
            }
            data = &self.data;
        }
        let start = Instant::now();
        let frame = &mut self.frame;
        let mut shrink = |part: &[u8]| -> Option<(usize, Duration)> {
            let start = Instant::now();
            frame.resize(zstd::zstd_safe::compress_bound(part.len()), 0);
            let shrunk = self.context.compress_to_buffer(part, &mut frame[..]);
            let shrunk =
                shrunk.inspect_err(|error| tracing::warn!(%error, "a chunk is not compressed")).ok()?;
            Some((shrunk, start.elapsed()))
        };
        if let Plan::Sample(size) = plan {
            // In the middle: files begin with what is not like the rest of them.
            let from = (data.len() - size) / 2;
            let (shrunk, took) = shrink(&data[from..from + size])?;
            if !self.compressor.handle_sample(size, shrunk, took) {
                clock.since(start);
                return None;
            }
        }
        let (shrunk, took) = shrink(data)?;
        let shorter = self.compressor.handle_compressed(data.len(), shrunk, took);
        clock.since(start);
        shorter.then_some(&self.frame[..shrunk])
    }

    /// Learns how long the connection took for a chunk with `plain` bytes of data, of which `sent`
    /// went over it.
    pub(crate) fn handle_sent(&mut self, plain: usize, sent: usize, took: Duration) {
        self.compressor.handle_sent(plain, sent, took);
    }
}
