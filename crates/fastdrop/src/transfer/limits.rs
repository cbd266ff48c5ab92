//! How much of what one transfer takes: streams, chunks under way, bytes of a frame.

use crate::net::tuning::SMALL_BUFFER_RTT;
use fastdrop_proto::fastdp::Streams;
use fastdrop_proto::units::ChunkSize;
use std::time::Duration;

/// Bytes of a frame that carries a part of a manifest.
pub(crate) const MANIFEST_PART: usize = 256 << 10;

/// Chunk buffers of one transfer, in bytes: half of what it may cost altogether.
const BUFFERS_MAX: u32 = 32 << 20;

/// How many of `streams` data streams one transfer may have, given that each holds a chunk in
/// memory.
pub(crate) fn grantable(streams: u16, one_chunk: ChunkSize) -> u16 {
    let fitting = (BUFFERS_MAX / one_chunk.bytes()).clamp(1, 64) as u16;
    streams.clamp(1, fitting)
}

/// How many chunks one stream may have under way: on a short path a few keep it full, and fewer are
/// sent again after a crash.
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
