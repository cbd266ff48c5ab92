//! The protocol inside TLS, and the cryptography of TLS.

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use std::sync::Arc;

/// The protocol that is spoken inside, as the handshake names it (ALPN).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inner {
    Vstp,
    Cnp,
}

impl Inner {
    pub(super) fn alpn(self) -> Vec<Vec<u8>> {
        match self {
            Self::Vstp => vec![b"vstp".to_vec()],
            Self::Cnp => vec![b"cnp".to_vec()],
        }
    }
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}
