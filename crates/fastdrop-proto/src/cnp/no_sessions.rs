//! The place of clients' sessions where they are left out: none can be named, none is remembered.

use std::convert::Infallible;
use std::task::Waker;
use std::time::Instant;

/// The name of a session, which there is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientSessionId(Infallible);

impl ClientSessionId {
    pub(crate) fn parse(_digits: &[u8]) -> Option<Self> {
        None
    }

    pub(crate) fn digits(self) -> String {
        match self.0 {}
    }
}

/// The origin of a connection, which remembers nothing.
#[derive(Debug, Clone)]
pub struct ClientOrigin(Infallible);

impl ClientOrigin {
    pub(crate) fn attach_to(
        &self,
        _now: Instant,
        _id: ClientSessionId,
        _token: Option<&[u8]>,
    ) -> Option<Attachment> {
        match self.0 {}
    }
}

/// The place in a session, which there is not.
#[derive(Debug, Clone)]
pub struct Attachment(Infallible);

impl Attachment {
    pub(crate) fn memory(&self) -> u64 {
        match self.0 {}
    }

    pub(crate) fn counts(&self) -> (u64, u64) {
        match self.0 {}
    }

    /// Records that a message is handed on.
    pub fn take_next(&self) -> Option<u64> {
        match self.0 {}
    }

    /// Records that a message is handled.
    pub fn on_handled(&self, _number: u64) {
        match self.0 {}
    }

    /// Has this waker told of another connection.
    pub fn register(&self, _waker: &Waker) {
        match self.0 {}
    }

    /// Returns true if another connection has the session.
    pub fn is_superseded(&self) -> bool {
        match self.0 {}
    }

    /// The connection has ended.
    pub fn detach(&self, _now: Instant) {
        match self.0 {}
    }
}
