//! A session of a client that goes on over several connections: the server's side of it
//! (docs/protocol/cnp.md, section 15).

#[cfg(not(feature = "vstp"))]
use super::no_sessions as sessions;
use crate::authorize::Token;
#[cfg(feature = "vstp")]
use crate::vstp as sessions;
pub use sessions::ClientSessionId;
use sessions::{Attachment, ClientOrigin};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// The server's memory of a client's session, as its SYN-ACK says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resumption {
    /// The name of the memory: another one whenever the server begins to remember anew.
    pub memory: u64,
    /// Messages that are handled, from the first one that this memory is about, without a gap.
    pub handled: u64,
    /// Messages that were handed on.
    pub taken: u64,
}

/// The place that a connection to a server takes in a client's session, if its SYN names one.
/// Clones are the same place.
#[derive(Debug, Clone)]
pub struct Resumable {
    origin: ClientOrigin,
    place: Arc<OnceLock<Attachment>>,
}

impl Resumable {
    /// Of a connection from there, which has no place yet.
    pub fn new(origin: ClientOrigin) -> Self {
        Self { origin, place: Arc::default() }
    }

    /// The place, if it has one.
    pub fn place(&self) -> Option<&Attachment> {
        self.place.get()
    }

    /// Takes a place in the session, which the connection that had it loses.
    pub(super) fn attach(
        &self,
        now: Instant,
        id: ClientSessionId,
        token: Option<&Token>,
    ) -> Option<Resumption> {
        let secret = token.map(|token| token.secret().as_bytes());
        let place = self.origin.attach_to(now, id, secret)?;
        let place = self.place.get_or_init(|| place);
        let (handled, taken) = place.counts();
        Some(Resumption { memory: place.memory(), handled, taken })
    }
}
