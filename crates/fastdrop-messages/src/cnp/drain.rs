//! Messages that were acknowledged, and whose handlers have not come to their end.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The outcome of the end of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainReport {
    /// Messages that were acknowledged, and whose handler was dropped at the end of the time that
    /// it had.
    pub unfinished: Vec<Unfinished>,
}

/// A message whose handler did not come to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unfinished {
    /// The peer that had sent it.
    pub peer: SocketAddr,
    /// The message.
    pub message: Bytes,
}

/// The messages that handlers are at work on.
#[derive(Debug, Clone, Default)]
pub(super) struct UnderWay(Arc<Mutex<Messages>>);

#[derive(Debug, Default)]
struct Messages {
    next: u64,
    begun: BTreeMap<u64, Unfinished>,
}

impl UnderWay {
    fn lock(&self) -> MutexGuard<'_, Messages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A handler begins with a message.
    pub(super) fn begin(&self, peer: SocketAddr, message: Bytes) -> Begun {
        let mut messages = self.lock();
        let number = messages.next;
        messages.next += 1;
        messages.begun.insert(number, Unfinished { peer, message });
        Begun { under_way: self.clone(), number }
    }

    /// The messages whose handlers have not.
    pub(super) fn report(&self) -> DrainReport {
        let unfinished = std::mem::take(&mut self.lock().begun).into_values().collect();
        DrainReport { unfinished }
    }
}

/// A handler at work on a message.
#[derive(Debug)]
pub(super) struct Begun {
    under_way: UnderWay,
    number: u64,
}

impl Begun {
    /// The handler has come to its end.
    pub(super) fn finish(self) {
        self.under_way.lock().begun.remove(&self.number);
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        // A panic is the handler's end, and told in the log.
        if std::thread::panicking() {
            self.under_way.lock().begun.remove(&self.number);
        }
    }
}
