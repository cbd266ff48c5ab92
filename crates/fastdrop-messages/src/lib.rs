//! Messages between machines: framed by [`vstp`] over TCP, TLS 1.3 and UDP, or acknowledged by
//! [`cnp`] over TCP and UDP.
//!
//! The protocols themselves are in `fastdrop-proto`, without sockets and clocks; here they meet
//! tokio.
//!
//! # Which of the two
//!
//! | an application that | takes |
//! | --- | --- |
//! | has to know that each message was handled, once and in order; or asks and wants answers | [`cnp`] |
//! | speaks with programs of the crate `vstp` 0.2, sends frames with headers, or states by UDP of which only the newest counts | [`vstp`] |
//!
//! | | [`cnp`], TCP or UDP | [`vstp`], TCP | [`vstp`], UDP |
//! | --- | --- | --- | --- |
//! | arrives | or the sender is told | or the connection breaks | if an acknowledgement is asked for, or the sender is told |
//! | once | yes | yes | with an acknowledgement |
//! | in order | yes | yes | no |
//! | an acknowledgement says | the application has taken it, or handled it where it says so itself | the same, where asked for | the same |
//! | an answer for each question | `call` | `call` | |
//! | any size | up to 16 MiB unless set otherwise | up to 8 MiB unless set otherwise | up to 256 MiB |
//! | encryption | TLS 1.3 by TCP | TLS 1.3 | none |
//! | tokens | by TCP and UDP | yes | none |
//! | the client's address changes | by UDP the session goes on | the connection breaks | it is a new peer |
//!
//! # Features
//!
//! `vstp`, `cnp`, `tls`, `json` (typed messages of VSTP) and `zstd` (its compressed frames), all on
//! by default. With `cnp` alone no C is compiled.

#![cfg_attr(
    not(all(feature = "vstp", feature = "cnp", feature = "tls", feature = "json", feature = "zstd")),
    allow(unused, unreachable_code, unreachable_pub, reason = "parts that only some features use")
)]

mod addresses;
#[cfg(feature = "cnp")]
pub mod cnp;
mod connecting;
mod datagrams;
mod incoming;
mod metrics;
#[cfg(not(feature = "tls"))]
mod no_tls;
mod places;
#[cfg(all(feature = "vstp", feature = "cnp"))]
pub mod port;
mod shutdown;
#[cfg(feature = "tls")]
pub mod tls;
mod token;
#[cfg(feature = "vstp")]
pub mod vstp;

#[cfg(not(feature = "tls"))]
use no_tls as tls;

pub use metrics::{Counts, Metrics};
pub use shutdown::{Shutdown, ShutdownSignal};
pub use token::{Authorize, Credentials, TOKEN_MAX, Token, TokenError, TokenSet};
