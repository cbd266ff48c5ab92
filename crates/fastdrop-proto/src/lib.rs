//! The protocols of FastDrop without I/O: bytes and the time go in, bytes, events and deadlines
//! come out.
//!
//! Nothing here opens a socket or a file, reads a clock, or starts a thread. The same code
//! therefore serves the program, a simulator with virtual time, and a fuzzer.

#![warn(clippy::indexing_slicing)]

/// Tokens with which clients are let in.
pub mod authorize;
pub mod backoff;
/// Calls and their replies.
pub mod calls;
/// Checksums of chunks, and how those of pieces and slices are joined.
#[cfg(feature = "files")]
pub mod checksum;
pub mod cnp;
pub mod congestion;
/// A bounds-checked reader for untrusted bytes.
pub mod cursor;
/// FastDownloader.
#[cfg(feature = "files")]
pub mod fastdownloader;
/// FastDrop Protocol.
#[cfg(feature = "files")]
pub mod fastdp;
/// Strict JSON for headers and control frames.
pub mod json;
/// NextDP.
#[cfg(feature = "files")]
pub mod nextdp;
/// Which protocol a connection speaks.
#[cfg(feature = "files")]
pub mod port;
/// Round-trip times and timeouts.
pub mod rtt;
/// UltraDP.
#[cfg(feature = "files")]
pub mod ultradp;
/// Indexes, sizes and times that cannot be mixed up.
pub mod units;
/// Addresses that datagrams do not reach.
pub mod unreachable;
#[cfg(feature = "vstp")]
pub mod vstp;
