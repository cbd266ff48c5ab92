//! Compressing with Zstandard.

use crate::codec::archive::Exactly;
use std::io::{BufReader, Read, Result, Write};

/// Level of Zstandard: the fastest that still finds most.
pub(crate) const ZSTD_LEVEL: i32 = 1;
/// Bytes that are read and written at once.
const STEP: usize = 256 << 10;

/// One Zstandard frame with its content size in its header, compressed by so many threads.
pub(crate) fn zstd(source: &mut dyn Read, size: u64, out: impl Write, threads: usize) -> Result<()> {
    let mut encoder = zstd::Encoder::new(out, ZSTD_LEVEL)?;
    encoder.set_pledged_src_size(Some(size))?;
    encoder.include_checksum(true)?;
    encoder.include_contentsize(true)?;
    // 0 is this thread alone.
    encoder.multithread(if threads > 1 { threads as u32 } else { 0 })?;
    let mut exact = Exactly::new(source, size);
    std::io::copy(&mut BufReader::with_capacity(STEP, &mut exact), &mut encoder)?;
    exact.expect_done()?;
    encoder.finish()?.flush()
}
