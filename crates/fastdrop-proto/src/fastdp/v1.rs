//! Versions 1.0.0 and 1.1.0, after their upgrade. The specification is `docs/protocol/fastdp1.md`.

mod header;
mod receiver;

pub use header::{Compression, Header, ONE_CHUNK_MAX};
pub use receiver::{CHUNKS_MAX, ChunkPrefix, Receiver, Verdict, Waiting};

/// What a receiver of 1.0.0 says before it closes so that the sender comes back.
pub const RECONNECT: &[u8] = b"RECONNECT";
/// After so many bytes programs of 1.0.0 reconnect.
pub const RECONNECT_EVERY: u64 = 500 << 20;
/// What a receiver of 1.1.0 answers when all is well.
pub const SUCCESS: &str = "File received successfully.";
/// What stands before the reason when it is not.
pub const FAILURE: &str = "ERROR: ";
/// What a file without `FileName` is called.
pub const UNNAMED: &str = "received_file";

/// The chunk size that programs of these versions take for a file of `bytes`.
pub fn one_chunk_for(bytes: u64) -> u32 {
    match bytes {
        0..=0xa0_0000 => 256 << 10,
        0xa0_0001..=0x4000_0000 => 1 << 20,
        _ => 4 << 20,
    }
}
