//! Signs of life while this end is at work.

use crate::net::connection::Connection;
use crate::thread::spawn_scoped;
use fastdrop_proto::fastdp::{ALIVE_EVERY, Control};
use std::sync::{Condvar, Mutex, PoisonError};

/// Does something that may take long, while the peer hears every few seconds that this end is
/// alive.
pub(crate) fn with_alive<T>(connection: &Connection, work: impl FnOnce() -> T) -> T {
    let over = (Mutex::new(false), Condvar::new());
    std::thread::scope(|scope| {
        let say = || {
            let mut done = over.0.lock().unwrap_or_else(PoisonError::into_inner);
            while !*done {
                let waited = over.1.wait_timeout(done, ALIVE_EVERY).unwrap_or_else(PoisonError::into_inner);
                done = waited.0;
                if !*done && connection.send_control(&Control::Alive).is_err() {
                    return;
                }
            }
        };
        if let Err(error) = spawn_scoped(scope, "alive", say) {
            // Then the peer may take this end for silent.
            tracing::warn!(%error, "no thread for signs of life");
        }
        let _end = SetOnDrop(&over);
        work()
    })
}

struct SetOnDrop<'a>(&'a (Mutex<bool>, Condvar));

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }
}
