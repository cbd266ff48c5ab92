//! Messages between machines: framed by [`vstp`] over TCP, TLS 1.3 and UDP, or acknowledged by
//! [`cnp`] over TCP and UDP.
//!
//! The protocols themselves are in `fastdrop-proto`, without sockets and clocks; here they meet
//! tokio.
//!
//! # Which of the two
//!
//! An application takes [`cnp`] if it has to know that each message was handled, once and in order.
//! It takes [`vstp`] if it speaks with programs of the crate `vstp` 0.2, sends frames with headers,
//! or states by UDP of which only the newest counts (a sequenced channel). Either has calls with
//! answers.
//!
//! | | [`cnp`], TCP or UDP | [`vstp`], TCP | [`vstp`], UDP |
//! | --- | --- | --- | --- |
//! | arrives | or the sender is told | or the connection breaks | where acknowledged |
//! | once | yes | yes | with an acknowledgement |
//! | in order | yes | yes | on an ordered channel |
//! | acknowledged when | taken, or handled | the same, where asked for | the same |
//! | an answer for each question | `call` | `call` of a session | `call` |
//! | largest message, unless set | 16 MiB | 8 MiB | 256 MiB |
//! | encryption | TLS 1.3 by TCP | TLS 1.3 | TLS 1.3 (QUIC), with the feature `quic` |
//! | tokens | by TCP and UDP | yes | none |
//! | the client's address changes | by UDP it goes on | it breaks | it is a new peer |
//! | a connection breaks | messages fail | [`vstp::tcp::Reconnecting`] sends again | |
//!
//! # Features
//!
//! `vstp`, `cnp`, `tls`, `quic` (TLS over UDP, for VSTP), `json` (typed messages of VSTP), `zstd`
//! (its compressed frames), all on by default. With `cnp` alone no C is compiled.

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
mod inner;
mod metrics;
#[cfg(not(feature = "tls"))]
mod no_tls;
mod places;
#[cfg(all(feature = "vstp", feature = "cnp"))]
pub mod port;
mod shutdown;
mod spans;
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
