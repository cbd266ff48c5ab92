//! What a connection holds as long as it lasts.

use crate::admission::count::Counted;
use crate::admission::keys::KeyGuard;
use tokio::sync::OwnedSemaphorePermit;

/// A connection's place among all connections, its thread, its key, and its place among the data
/// streams of a transfer. A client's connections hold nothing.
#[derive(Debug, Default)]
pub(crate) struct ConnectionPermit {
    _place: Option<OwnedSemaphorePermit>,
    _thread: Option<Counted>,
    _key: Option<KeyGuard>,
    _stream: Option<Counted>,
}

impl ConnectionPermit {
    /// Creates the permit of a connection that a server has accepted and given a thread.
    pub(crate) fn new(place: OwnedSemaphorePermit, thread: Counted) -> Self {
        Self { _place: Some(place), _thread: Some(thread), _key: None, _stream: None }
    }

    /// Holds a key as well.
    pub(crate) fn with_key(self, key: KeyGuard) -> Self {
        Self { _key: Some(key), ..self }
    }

    /// Holds a place among the data streams of a transfer as well.
    pub(crate) fn with_stream(self, stream: Counted) -> Self {
        Self { _stream: Some(stream), ..self }
    }
}
