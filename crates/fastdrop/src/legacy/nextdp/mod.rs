//! NextDP: requests that carry a chunk each.

mod body;
pub(crate) mod client;
pub(crate) mod server;
mod spool;
mod state;
mod transfer;
mod transfers;
