//! How UDP endpoints are set up.

use fastdrop_proto::vstp::{EndpointConfig, Patience, ReassemblyLimits};
use std::time::Duration;

/// How a client is set up.
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
    /// What each attempt adds to the patience. Default 2 s.
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
    pub(crate) fn endpoint(&self) -> EndpointConfig {
        let retries = u32::try_from(self.max_retries).unwrap_or(u32::MAX);
        let delays =
            (0..retries.min(32)).map(|n| (self.retry_delay * (1 << n.min(20))).min(self.max_retry_delay));
        let delays: Duration = delays.sum();
        let give_up = self.ack_timeout.saturating_mul(retries.saturating_add(1)) + delays;
        let patience = Patience { give_up, timeout_min: self.retry_delay, timeout_max: self.max_retry_delay };
        EndpointConfig { patience, fragments: self.allow_frag, ..EndpointConfig::default() }
    }
}

/// How a server is set up.
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
    /// What unfinished messages may take, with what the application has not taken yet.
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
