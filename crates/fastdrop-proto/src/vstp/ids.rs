//! Numbers by which messages are told from each other, on the wire and by their application.

/// The header by which a frame is acknowledged.
pub const MSG_ID: &str = "msg-id";

/// The number of a message among those of its application; given back with its outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SendId(pub u64);
