//! Messages between machines: framed by [`vstp`] over TCP, TLS 1.3 and UDP, or acknowledged by
//! [`cnp`] over TCP and UDP.
//!
//! The protocols themselves are in `fastdrop-proto`, without sockets and clocks; here they meet
//! tokio.

mod addresses;
pub mod cnp;
mod connecting;
mod datagrams;
mod incoming;
mod metrics;
mod places;
pub mod port;
mod shutdown;
pub mod tls;
mod token;

pub mod vstp;

pub use metrics::{Counts, Metrics};
pub use shutdown::{Shutdown, ShutdownSignal};
pub use token::{Authorize, Credentials, TOKEN_MAX, Token, TokenError, TokenSet};
