//! The settings of clients that connect again.

use crate::vstp::tcp::TcpConfig;
use fastdrop_proto::backoff::BackoffConfig;
use std::time::Duration;
use tokio::sync::Semaphore;

/// The behaviour of a client that connects again, and its bounds.
#[derive(Debug, Clone)]
pub struct ReconnectConfig {
    /// The bound of the first pause between two attempts. Each pause is random, between 10 ms and a
    /// bound that doubles with each attempt. Default 100 ms.
    pub backoff_first: Duration,
    /// The most that this bound becomes. Default 30 seconds.
    pub backoff_max: Duration,
    /// Frames that wait for their acknowledgement, beyond which callers wait for their turn. At
    /// most 4,096, default 1,024.
    pub queue_frames_max: usize,
    /// The most bytes of these frames, of which one may have more. Default 16 MiB.
    pub queue_bytes_max: usize,
    /// Frames with more bytes are not sent, all of them counted. Default 8 MiB, which is what
    /// servers take unless they were set up otherwise.
    pub frame_max: usize,
    /// The time without a connection after which the client ends, and all frames that wait fail.
    /// Default: none, it tries for ever.
    pub give_up: Option<Duration>,
    /// A server that does not let this client in, or a certificate that is not trusted at one of
    /// the ends, is tried again. Default false: the client ends, with that reason.
    pub retry_refused: bool,
    /// The time in which the server answers HELLO. One that does not is taken for a program of
    /// version 0.2, which remembers nothing; where a token is shown, or the server has remembered
    /// this client before, the attempt has failed.
    /// Default 5 seconds.
    pub welcome_timeout: Duration,
    /// Frames of which it is not known whether they arrived are sent again, although they may then
    /// be handled twice: *at least once*. That is after a server has been started anew, or has
    /// forgotten the session, and with programs of version 0.2. Default false: their callers are
    /// told [`DeliverError::OutcomeUnknown`](super::DeliverError::OutcomeUnknown).
    pub at_least_once: bool,
    /// The behaviour of each connection. Default: that of [`TcpConfig`], with a keep-alive of 15
    /// seconds, by which a dead server is noticed within 45, if its own configuration has a
    /// keep-alive too.
    pub tcp: TcpConfig,
}

impl Default for ReconnectConfig {
    fn default() -> Self {
        let backoff = BackoffConfig::default();
        Self {
            backoff_first: backoff.first,
            backoff_max: backoff.max,
            queue_frames_max: 1024,
            queue_bytes_max: 16 << 20,
            frame_max: fastdrop_proto::vstp::frame::FRAME_MAX,
            give_up: None,
            retry_refused: false,
            welcome_timeout: Duration::from_secs(5),
            at_least_once: false,
            tcp: TcpConfig { keep_alive: Some(Duration::from_secs(15)), ..TcpConfig::default() },
        }
    }
}

impl ReconnectConfig {
    /// No more numbers than that are without an outcome.
    const QUEUE_FRAMES_MAX: usize = 4096;

    pub(super) fn frames(&self) -> usize {
        self.queue_frames_max.clamp(1, Self::QUEUE_FRAMES_MAX)
    }

    pub(super) fn bytes(&self) -> u32 {
        let max = self.queue_bytes_max.clamp(1, Semaphore::MAX_PERMITS);
        u32::try_from(max).unwrap_or(u32::MAX >> 1).min(u32::MAX >> 1)
    }

    pub(super) fn backoff(&self) -> BackoffConfig {
        let usual = BackoffConfig::default();
        let least = usual.least.min(self.backoff_first.max(Duration::from_millis(1)));
        BackoffConfig { least, first: self.backoff_first, max: self.backoff_max }
    }
}
