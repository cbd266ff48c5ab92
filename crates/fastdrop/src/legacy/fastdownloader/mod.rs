//! FastDownloader: pulls over several ports that the server names.

pub(crate) mod client;
pub(crate) mod server;
