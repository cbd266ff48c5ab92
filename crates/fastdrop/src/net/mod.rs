//! Sockets, their tuning, and the frames on them. Nothing here knows what a frame means.

pub(crate) mod connection;
pub(crate) mod frames;
pub(crate) mod listen;
mod stream;
pub(crate) mod throttle;
pub(crate) mod tuning;
