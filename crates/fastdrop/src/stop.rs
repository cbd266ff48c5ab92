//! One word that ends everything that was started with it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Something whose blocked calls return when the word is said.
pub(crate) trait Stoppable: Send + Sync {
    /// Has reads and writes under way return, and later ones fail.
    fn stop(&self);
}

/// Tells transfers to stop. Clones share the word.
#[derive(Clone, Default)]
pub struct Stop(Arc<Inner>);

#[derive(Default)]
struct Inner {
    stopped: AtomicBool,
    connections: Mutex<Vec<Weak<dyn Stoppable>>>,
    notify: tokio::sync::Notify,
}

impl std::fmt::Debug for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stop({})", self.is_stopped())
    }
}

impl Stop {
    /// Nothing is stopped yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says the word: blocked reads and writes of every connection return.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::SeqCst);
        let connections =
            std::mem::take(&mut *self.0.connections.lock().unwrap_or_else(PoisonError::into_inner));
        for connection in connections.iter().filter_map(Weak::upgrade) {
            connection.stop();
        }
        self.0.notify.notify_waiters();
    }

    /// Whether the word has been said.
    pub fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::SeqCst)
    }

    /// Waits, in the asynchronous plane, until it has.
    pub async fn wait(&self) {
        let notified = self.0.notify.notified();
        if !self.is_stopped() {
            notified.await;
        }
    }

    /// Has a connection end with the word.
    pub(crate) fn watch(&self, connection: &Arc<impl Stoppable + 'static>) {
        let mut connections = self.0.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.retain(|connection| connection.strong_count() > 0);
        let weak = Arc::downgrade(connection);
        connections.push(weak);
        drop(connections);
        if self.is_stopped() {
            connection.stop();
        }
    }
}
