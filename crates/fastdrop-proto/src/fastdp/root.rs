//! The root digest over a transfer (section 6).

use crate::checksum::Checksum;
use crate::units::ChunkIndex;
use std::hash::Hasher as _;
use twox_hash::XxHash3_64;

/// What both sides said while they negotiated.
#[derive(Clone, Default)]
pub struct Transcript(XxHash3_64);

impl std::fmt::Debug for Transcript {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Transcript({:016x})", self.value())
    }
}

impl Transcript {
    /// The transcript of a control stream, from the payloads as they were on the wire.
    pub fn new(client_header: &[u8], open: &[u8], server_header: &[u8], grant: &[u8]) -> Self {
        let mut hash = XxHash3_64::new();
        for part in [client_header, open, server_header, grant] {
            hash.write(part);
        }
        Self(hash)
    }

    /// Its XXH3-64.
    pub fn value(&self) -> u64 {
        self.0.finish()
    }
}

/// The digest over chunks in ascending order.
pub fn root_digest(
    transcript: &Transcript,
    chunks: impl Iterator<Item = (ChunkIndex, Checksum)>,
) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&transcript.value().to_be_bytes());
    for (chunk, checksum) in chunks {
        hasher.update(&chunk.0.to_be_bytes());
        hasher.update(checksum.as_bytes());
    }
    *hasher.finalize().as_bytes()
}
