//! NextDP: numbered chunks, each in a request of HTTP.

pub(crate) mod client;
pub(crate) mod server;
