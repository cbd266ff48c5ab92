//! The settings of UDP endpoints.

use fastdrop_proto::vstp::{EndpointConfig, Patience, ReassemblyLimits};
use std::time::Duration;

/// The settings of a client.
#[derive(Debug, Clone)]
pub struct UdpConfig {
    /// With the times below, this gives how long an acknowledgement is waited for: `max_retries` +
    /// 1 times `ack_timeout`, and the delays between. Within that time a frame is sent as often as
    /// the measured round trips make sensible, which may be more often than this. Default 3.
    pub max_retries: usize,
    /// The shortest time between two attempts. Default 100 ms.
    pub retry_delay: Duration,
    /// The longest. Default 5 s.
    pub max_retry_delay: Duration,
    /// The time that each attempt adds to the patience. Default 2 s.
    pub ack_timeout: Duration,
    /// The CRC is there and verified in any case, as it is with every program that speaks VSTP.
    pub use_crc: bool,
    /// Says whether frames of more than 1,200 bytes are cut. If not, they go as one datagram, up to
    /// 65,507 bytes. Default true.
    pub allow_frag: bool,
}

impl Default for UdpConfig {
    fn default() -> Self {
        Self {
            max_retries: 3,
            retry_delay: Duration::from_millis(100),
            max_retry_delay: Duration::from_secs(5),
            ack_timeout: Duration::from_secs(2),
            use_crc: true,
            allow_frag: true,
        }
    }
}

impl UdpConfig {
    /// The longest of these times and of their sum; more is as good as for ever.
    const TIME_MAX: Duration = Duration::from_secs(365 * 86_400);

    pub(crate) fn endpoint(&self) -> EndpointConfig {
        let retries = u32::try_from(self.max_retries).unwrap_or(u32::MAX);
        let delays = (0..retries.min(32))
            .map(|n| self.retry_delay.saturating_mul(1 << n.min(20)).min(self.max_retry_delay));
        let attempts = self.ack_timeout.saturating_mul(retries.saturating_add(1));
        let give_up = delays.fold(attempts, Duration::saturating_add).min(Self::TIME_MAX);
        let timeout_max = self.max_retry_delay.min(Self::TIME_MAX);
        let timeout_min = self.retry_delay.min(Self::TIME_MAX);
        let patience = Patience { give_up, timeout_min, timeout_max };
        EndpointConfig { patience, fragments: self.allow_frag, ..EndpointConfig::default() }
    }
}

/// The settings of a server.
#[derive(Debug, Clone)]
pub struct UdpServerConfig {
    /// The CRC is there and verified in any case, as it is with every program that speaks VSTP.
    pub use_crc: bool,
    /// Says whether frames of more than 1,200 bytes are cut. If not, they go as one datagram, up to
    /// 65,507 bytes. Default true.
    pub allow_frag: bool,
    /// Unfinished messages at once. Default 1,000.
    pub max_reassembly_sessions: usize,
}

impl Default for UdpServerConfig {
    fn default() -> Self {
        Self { use_crc: true, allow_frag: true, max_reassembly_sessions: 1000 }
    }
}

impl UdpServerConfig {
    pub(crate) fn endpoint(&self) -> EndpointConfig {
        let limits =
            ReassemblyLimits { messages_max: self.max_reassembly_sessions, ..ReassemblyLimits::default() };
        EndpointConfig { limits, fragments: self.allow_frag, ..EndpointConfig::default() }
    }
}

/// The bounds of a server, beside those of [`UdpServerConfig`], whose fields are those of 0.2.
#[derive(Debug, Clone)]
pub struct UdpServerLimits {
    /// The bounds of what unfinished messages may take, with what the application has not taken
    /// yet.
    pub reassembly: ReassemblyLimits,
    /// Addresses that are remembered, of those that have proved themselves or that were spoken to
    /// first; about 2 KiB each, and up to 100 KiB for one that sends messages in fragments. Half as
    /// many strangers are remembered beside them. Default 10,000.
    pub peers_max: usize,
}

impl Default for UdpServerLimits {
    fn default() -> Self {
        Self { reassembly: ReassemblyLimits::default(), peers_max: EndpointConfig::PEERS_MAX }
    }
}

impl UdpServerLimits {
    pub(crate) fn endpoint(self) -> EndpointConfig {
        let Self { reassembly: limits, peers_max } = self;
        EndpointConfig { limits, peers_max, ..EndpointConfig::default() }
    }
}

impl From<ReassemblyLimits> for UdpServerLimits {
    fn from(reassembly: ReassemblyLimits) -> Self {
        Self { reassembly, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_times_make_a_patience_that_a_clock_reaches() {
        let longest = Duration::MAX;
        let config = UdpConfig {
            max_retries: usize::MAX,
            retry_delay: longest,
            max_retry_delay: longest,
            ack_timeout: longest,
            ..UdpConfig::default()
        };
        let patience = config.endpoint().patience;
        for time in [patience.give_up, patience.timeout_min, patience.timeout_max] {
            assert_eq!(time, UdpConfig::TIME_MAX);
        }
    }
}
