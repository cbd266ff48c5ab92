//! The streams of a sender that follow each other, so that late datagrams of one that is over are
//! known (docs/protocol/vstp.md, section 10).

use std::collections::VecDeque;

/// The stream of a number, and its count.
pub(super) fn split(number: u64) -> (u32, u32) {
    ((number >> u32::BITS) as u32, number as u32)
}

/// Knowledge of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    /// It is the last that began.
    Running,
    /// It has not been heard of.
    New,
    /// Another has begun since.
    Past,
}

/// The stream that is running, and the last ones before it.
#[derive(Debug, Default)]
pub(super) struct Lineage {
    /// The one that is running comes first.
    streams: VecDeque<u32>,
}

impl Lineage {
    /// Streams that are known: datagrams of more may be late only where a sender starts again more
    /// often than datagrams take to arrive.
    const MAX: usize = 5;

    /// Returns what is known of a stream.
    pub(super) fn age(&self, stream: u32) -> Age {
        match self.streams.iter().position(|known| *known == stream) {
            Some(0) => Age::Running,
            Some(_) => Age::Past,
            None => Age::New,
        }
    }

    /// A stream begins, and the one before it is over.
    pub(super) fn begin(&mut self, stream: u32) {
        self.streams.truncate(Self::MAX - 1);
        self.streams.push_front(stream);
    }
}
