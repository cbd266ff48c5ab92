//! The settings of clients that connect again.

use fastdrop_proto::backoff::BackoffConfig;
use std::num::NonZeroU32;
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
    /// Messages that wait for their acknowledgement, beyond which callers wait for their turn.
    /// Default 1,024.
    pub queue_messages_max: usize,
    /// The most bytes of these messages, of which one may have more. Default 16 MiB.
    pub queue_bytes_max: usize,
    /// Attempts in a row that led to no session, after which the client ends. Default: any number.
    pub attempts_max: Option<NonZeroU32>,
    /// A server that does not let this client in, or a certificate that is not trusted at one of
    /// the ends, is tried again. Default false: the client ends, with that reason.
    pub retry_refused: bool,
}

impl Default for ReconnectConfig {
    fn default() -> Self {
        let backoff = BackoffConfig::default();
        Self {
            backoff_first: backoff.first,
            backoff_max: backoff.max,
            queue_messages_max: 1024,
            queue_bytes_max: 16 << 20,
            attempts_max: None,
            retry_refused: false,
        }
    }
}

impl ReconnectConfig {
    pub(super) fn messages(&self) -> usize {
        self.queue_messages_max.clamp(1, Semaphore::MAX_PERMITS)
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
