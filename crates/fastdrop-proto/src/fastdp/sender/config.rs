//! Settings of a sender: what its application wants, and what was agreed with the receiver.

use std::time::Duration;

/// A peer that is silent for so long is taken for gone (section 10).
pub const SILENT_MAX: Duration = Duration::from_secs(60);
/// An end that is at work, and has nothing to say, sends ALIVE so often.
pub const ALIVE_EVERY: Duration = Duration::from_secs(5);

/// The number of data streams to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streams {
    /// As many as bring something.
    Auto,
    /// So many, as far as they are granted.
    Fixed(u16),
}

/// The behaviour of a sender.
#[derive(Debug, Clone)]
pub struct SenderConfig {
    /// Data streams wanted. Default: auto.
    pub streams: Streams,
    /// Data streams granted, at least 1.
    pub granted: u16,
    /// Cores of this machine, for auto.
    pub cores: u16,
    /// The round trip, for auto.
    pub rtt: Duration,
    /// A connection keeps its rate through losses, as BBR does; for auto.
    pub loss_tolerant: bool,
    /// Bytes on a data stream before it is replaced. Default: never.
    pub checkpoint: Option<u64>,
    /// A stream without progress for so long is given up while another moves. Default 5 s.
    pub stall_after: Duration,
    /// A peer that says nothing for so long is taken for gone. Default [`SILENT_MAX`].
    pub silent_after: Duration,
    /// A stream on which nothing was sent for so long carries ALIVE. Default 5 s.
    pub alive_every: Duration,
    /// A transfer of fewer bytes uses the control stream alone. Default 1 MiB.
    pub data_streams_from: u64,
    /// Chunks on one stream that are not confirmed: what a crash can cost. Default 64.
    pub flying_max: usize,
    /// The capability `identity` is shared: the receiver says by itself which chunks are to be
    /// compared. Default: no.
    pub identity: bool,
    /// The capability `proof` is shared. Default: no.
    pub proof: bool,
    /// The capability `content` is shared. Default: no.
    pub content: bool,
}

impl Default for SenderConfig {
    fn default() -> Self {
        Self {
            streams: Streams::Auto,
            granted: 1,
            cores: 1,
            rtt: Duration::ZERO,
            loss_tolerant: false,
            checkpoint: None,
            stall_after: Duration::from_secs(5),
            silent_after: SILENT_MAX,
            alive_every: ALIVE_EVERY,
            data_streams_from: 1 << 20,
            flying_max: 64,
            identity: false,
            proof: false,
            content: false,
        }
    }
}
