//! TLS 1.3 over TCP, for either protocol: the identity of a server or a client, and what the other
//! end trusts.
//!
//! Nothing falls back to plain TCP: a handshake that fails is an error, whichever end it fails at.

mod error;
mod handshake;
mod identity;
mod provider;
mod trust;
mod verifier;
mod wire;

pub use error::TlsError;
pub(crate) use handshake::{Acceptor, Secured, connect, first_byte, host_of, named, peer_of, tcp_of};
pub use identity::{Fingerprint, Identity};
pub(crate) use rustls::pki_types::ServerName;
pub use trust::{ClientTls, ServerTls, Trust};
pub(crate) use wire::Wire;
