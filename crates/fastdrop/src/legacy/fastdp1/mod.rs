//! fastdp 1.0.0 and 1.1.0.

mod chunks;
pub(crate) mod client;
mod client_v1_0;
mod direct;
mod in_order;
mod payload;
mod receiving;
mod returns;
mod sending;
pub(crate) mod server;
