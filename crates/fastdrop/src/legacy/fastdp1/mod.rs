//! fastdp 1.0.0 and 1.1.0.

mod chunks;
pub(crate) mod client;
mod direct;
mod in_order;
mod payload;
mod receiving;
mod returns;
pub(crate) mod server;
