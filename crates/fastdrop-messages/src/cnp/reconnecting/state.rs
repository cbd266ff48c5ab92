//! The state of a client that connects again, for whoever shows it.

use crate::cnp::session::Session;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;

/// The state of a client that connects again.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// An attempt is under way.
    Connecting,
    /// A connection stands.
    Connected {
        /// The server's address.
        peer: SocketAddr,
        /// The server remembers what it was given, so that the rest can be sent again.
        remembers: bool,
    },
    /// The last attempt has failed, or the connection broke.
    Waiting {
        /// The time of the next attempt.
        until: Instant,
        /// The reason of the failure.
        reason: Arc<str>,
    },
    /// No more attempts are made: the application has closed the client, it has given up, or it is
    /// not let in.
    Ended {
        /// The reason.
        reason: Arc<str>,
    },
}

/// The state, and the connection that stands, or stood last.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    pub(super) state: State,
    pub(super) session: Option<Session>,
}

/// The states of a client, one after the other. States that were passed meanwhile are left out.
#[derive(Debug, Clone)]
pub struct States(pub(super) watch::Receiver<Standing>);

impl States {
    /// The state now.
    pub fn current(&self) -> State {
        self.0.borrow().state.clone()
    }

    /// Waits until the state is another one than was seen last; at first that is the one when this
    /// was made. None when there will be no other. May be dropped while it waits.
    pub async fn changed(&mut self) -> Option<State> {
        self.0.changed().await.ok()?;
        Some(self.0.borrow_and_update().state.clone())
    }
}
