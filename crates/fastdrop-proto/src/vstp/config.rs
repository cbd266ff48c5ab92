//! Settings of an endpoint.

use super::limits::ReassemblyLimits;
use super::sending::Patience;

/// Settings and bounds of an endpoint.
#[derive(Debug, Clone)]
pub struct EndpointConfig {
    /// Bounds of unfinished messages.
    pub limits: ReassemblyLimits,
    /// Times that answers are waited for.
    pub patience: Patience,
    /// Says whether frames that exceed 1,200 bytes are cut; else they go as one datagram, if they
    /// can. Default true.
    pub fragments: bool,
    /// Addresses that are remembered, of those that have proved themselves or that were spoken to
    /// first; about 2 KiB each, and up to 100 KiB for one that sends messages in fragments. Half as
    /// many strangers are remembered beside them. Default 10,000.
    pub peers_max: usize,
    /// Says that datagrams travel inside connections, which have proved the addresses: whoever is
    /// heard is known at once, and no datagram is larger than 1,200 bytes. Default false.
    pub connected: bool,
}

impl EndpointConfig {
    /// The default of `peers_max`.
    pub const PEERS_MAX: usize = 10_000;
}

impl Default for EndpointConfig {
    fn default() -> Self {
        Self {
            limits: ReassemblyLimits::default(),
            patience: Patience::default(),
            fragments: true,
            peers_max: Self::PEERS_MAX,
            connected: false,
        }
    }
}
