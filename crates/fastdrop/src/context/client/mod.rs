//! The context of a client: its target, settings, progress, and the way to the server.

pub(crate) mod asked;
pub(crate) mod connect;
pub(crate) mod destination;
pub(crate) mod flags;
pub(crate) mod options;
mod retry;
pub(crate) mod summary;
pub(crate) mod target;

use crate::context::client::options::ClientOptions;
use crate::context::client::target::Target;
use crate::observe::Observer;
use crate::stop::Stop;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Settings and state for everything that a client does with one server.
#[derive(Debug)]
pub(crate) struct ClientContext {
    pub(crate) target: Target,
    pub(crate) options: ClientOptions,
    pub(crate) observer: Arc<Observer>,
    pub(crate) stop: Stop,
    /// The shortest round trip of a connection that worked; None as long as there was none, and a
    /// loss not worth another attempt.
    reached: Mutex<Option<Duration>>,
}

impl ClientContext {
    /// Creates the context of a client that has not connected.
    pub(crate) fn new(target: Target, options: ClientOptions, observer: Arc<Observer>, stop: Stop) -> Self {
        Self { target, options, observer, stop, reached: Mutex::new(None) }
    }

    pub(crate) fn note_moved(&self, bytes: u64) {
        self.observer.bytes_moved.fetch_add(bytes, Ordering::Relaxed);
        self.observer.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }
}
