//! An account of what was sent, and how much is under way at once.

use fastdrop_messages::cnp::Counters;
use std::time::Duration;

/// Lines that are read ahead, and messages that wait for their acknowledgements together.
pub(super) const BATCH: usize = 256;

/// Measurements of a session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stats {
    pub(super) rtt: Option<Duration>,
    pub(super) rtt_min: Option<Duration>,
    pub(super) counters: Counters,
    /// From the handshake to the last acknowledgement.
    pub(super) time: Duration,
}

/// Counts of what was sent.
#[derive(Default)]
pub(super) struct Sent {
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) acknowledged: u64,
    /// The generation of the listener's program, where the protocol has several.
    pub(super) generation: Option<&'static str>,
    /// Those of the session, where they were taken.
    pub(super) stats: Option<Stats>,
}
