//! The origin of a request.

use std::net::SocketAddr;

/// Whoever asks: today an address, with the rights that everybody has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Principal {
    peer: SocketAddr,
}

impl Principal {
    /// Somebody at this address, of whom nothing else is known.
    pub(crate) fn of(peer: SocketAddr) -> Self {
        Self { peer }
    }
}

impl std::fmt::Display for Principal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.peer.fmt(f)
    }
}
