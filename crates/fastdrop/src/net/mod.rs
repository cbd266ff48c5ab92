//! Sockets, their tuning, and the frames on them. Nothing here knows what a frame means.

pub(crate) mod connection;
pub(crate) mod listen;
pub(crate) mod throttle;
