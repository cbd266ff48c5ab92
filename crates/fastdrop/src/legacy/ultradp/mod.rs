//! UltraDP: a line, then bytes, and no answer.

pub(crate) mod client;
pub(crate) mod server;
