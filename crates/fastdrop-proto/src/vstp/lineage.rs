//! The streams of a sender that follow each other, so that late datagrams of one that is over are
//! known (docs/protocol/vstp.md, section 10).

use super::seen::Seen;
use std::collections::VecDeque;
use std::time::Instant;

/// Knowledge of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    /// It is the last that began.
    Running,
    /// Nothing is known of it.
    New,
    /// Another has begun since.
    Past,
}

/// The stream that is running, and the last ones before it.
#[derive(Debug, Default)]
pub(super) struct Lineage {
    running: Option<u32>,
    /// Those before it, and when each was over; the last one comes first.
    past: VecDeque<(u32, Instant)>,
}

impl Lineage {
    /// Past streams that are known. Datagrams of more may be late only where a sender starts again
    /// more often than datagrams take to arrive.
    const PAST_MAX: usize = 4;

    /// Returns what is known of a stream. One that was over longer ago than any datagram is late is
    /// new again: it is alive, and the one after it may have been made up by somebody else.
    pub(super) fn age(&self, now: Instant, stream: u32) -> Age {
        if self.running == Some(stream) {
            return Age::Running;
        }
        let over_at = self.past.iter().find(|(past, _)| *past == stream).map(|(_, at)| *at);
        match over_at {
            Some(at) if now.saturating_duration_since(at) < Seen::AGE_MAX => Age::Past,
            _ => Age::New,
        }
    }

    /// A stream begins, and the one before it is over.
    pub(super) fn begin(&mut self, now: Instant, stream: u32) {
        self.past.retain(|(past, _)| *past != stream);
        if let Some(over) = self.running.replace(stream) {
            self.past.truncate(Self::PAST_MAX - 1);
            self.past.push_front((over, now));
        }
    }
}
