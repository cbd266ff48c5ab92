//! The receiver's answer to a manifest: what is not needed, what is held, and what remains (section 7).

use super::Violation;
use crate::cursor::Cursor;
use crate::units::{ChunkIndex, EntryIndex};

/// Why an entry is not needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SkipReason {
    /// It is there already, with the same size and time.
    Identical,
    /// Another one is there and stays.
    Policy,
    /// An unfinished transfer left all of it.
    Held,
}

impl SkipReason {
    fn code(self) -> u8 {
        match self {
            SkipReason::Identical => 0x01,
            SkipReason::Policy => 0x02,
            SkipReason::Held => 0x03,
        }
    }
}

/// Consecutive entries that are not needed, for one reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SkipRun {
    /// The first of them.
    pub first: EntryIndex,
    /// How many.
    pub count: u32,
    /// Why.
    pub reason: SkipReason,
}

/// Checksums of consecutive chunks that the receiver has verified in its own copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The first chunk.
    pub first: ChunkIndex,
    /// Checksums, one after the other.
    pub checksums: Vec<u8>,
}

/// What remains to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeedTotals {
    /// Chunks.
    pub chunks: u32,
    /// Their bytes.
    pub bytes: u64,
}

pub(super) fn encode_skip(runs: &[SkipRun]) -> Vec<u8> {
    let mut out = Vec::with_capacity(runs.len() * 9);
    for run in runs {
        out.extend_from_slice(&run.first.0.to_be_bytes());
        out.extend_from_slice(&run.count.to_be_bytes());
        out.push(run.reason.code());
    }
    out
}

pub(super) fn decode_skip(payload: &[u8]) -> Result<Vec<SkipRun>, Violation> {
    let mut cursor = Cursor::new(payload);
    let mut runs = Vec::with_capacity(payload.len() / 9);
    while !cursor.is_empty() {
        let (first, count) = (EntryIndex(cursor.u32()?), cursor.u32()?);
        let reason = match cursor.u8()? {
            0x01 => SkipReason::Identical,
            0x02 => SkipReason::Policy,
            0x03 => SkipReason::Held,
            _ => return Err(Violation::protocol("an unknown reason to skip")),
        };
        runs.push(SkipRun { first, count, reason });
    }
    Ok(runs)
}

pub(super) fn encode_held(held: &Held) -> Vec<u8> {
    [&held.first.0.to_be_bytes()[..], &held.checksums].concat()
}

pub(super) fn decode_held(payload: &[u8]) -> Result<Held, Violation> {
    let mut cursor = Cursor::new(payload);
    Ok(Held { first: ChunkIndex(cursor.u32()?), checksums: cursor.rest().to_vec() })
}
