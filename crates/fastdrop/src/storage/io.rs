//! Reading and writing at a place of a file, whole or not at all.

use rustix::io::Errno;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Reading and hashing go in steps of this size, so that bytes are hashed while they are in the
/// cache.
pub(crate) const STEP: usize = 64 << 10;

/// Fills `buffer` from `offset` on; `NODATA` if the file ends before.
pub(crate) fn read_exact_at(fd: &OwnedFd, buffer: &mut [u8], offset: u64) -> Result<(), Errno> {
    let mut filled = 0;
    while filled < buffer.len() {
        match rustix::io::pread(fd, &mut buffer[filled..], offset + filled as u64) {
            Ok(0) => return Err(Errno::NODATA),
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Writes all of `bytes` at `offset`.
pub(crate) fn write_all_at(fd: BorrowedFd<'_>, mut bytes: &[u8], mut offset: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(fd, bytes, offset) {
            Ok(count) => {
                bytes = &bytes[count..];
                offset += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
