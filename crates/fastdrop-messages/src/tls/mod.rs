//! TLS 1.3 for either protocol over TCP, and for VSTP over UDP: the identity of a server or a
//! client, and what the other end trusts.
//!
//! Nothing falls back to plain text: a handshake that fails is an error, whichever end it fails at.

mod error;
mod handshake;
mod identity;
mod provider;
mod trust;
mod verifier;
mod wire;

#[cfg(feature = "quic")]
pub(crate) use error::HANDSHAKE_MAX;
pub use error::TlsError;
pub(crate) use handshake::{Acceptor, Secured, connect, first_byte, host_of, named, peer_of, tcp_of};
pub use identity::{Fingerprint, Identity};
pub(crate) use rustls::pki_types::ServerName;
pub use trust::{ClientTls, ServerTls, Trust};
pub(crate) use wire::Wire;
