//! Everything that a protocol works in, on either end. Nothing here knows which protocols there
//! are.

pub(crate) mod client;
pub(crate) mod password;
pub(crate) mod server;
