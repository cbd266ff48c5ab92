//! Counts of what happened in a run.

use super::pipe::Time;
use super::plan::Fault;
use std::collections::BTreeMap;

/// The events of a run, counted.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    pub happened: BTreeMap<Fault, u32>,
    pub attempts: u32,
    /// Chunks that were needed in the first attempt, without the stream's.
    pub needed: Vec<u32>,
    /// Chunks that were sent, in all attempts.
    pub sends: u32,
    pub again: u32,
    pub taken_over: u32,
    pub stream_refused: u32,
    pub checkpoints: u32,
    pub abandoned: u32,
    pub encoded: u32,
    /// Chunks that were held and compared: those that were the same, and those that were not.
    pub same: u32,
    pub differing: u32,
    /// Chunks that were proven.
    pub proven: u32,
    pub ended_at: Time,
    /// Bytes that went out on each data stream of the last attempt, and whether it retired by a
    /// checkpoint.
    pub stream_bytes: Vec<(u64, bool)>,
    /// Of each checkpoint of the last attempt: data streams that carried when it was sent, but for
    /// the retiring one.
    pub carrying_at_checkpoint: Vec<usize>,
}

impl Stats {
    pub fn faults(&self) -> u32 {
        self.happened.iter().filter(|(fault, _)| **fault != Fault::Unreadable).map(|(_, count)| count).sum()
    }
}
