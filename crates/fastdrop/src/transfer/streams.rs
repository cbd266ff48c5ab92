//! Data streams that join a transfer.

use crate::admission::permit::ConnectionPermit;
use crate::net::connection::Connection;
use crate::net::frames::FrameReader;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// A data stream whose handshake is done.
pub(crate) struct DataStream {
    pub(crate) reader: FrameReader,
    /// What the connection holds as long as it lasts.
    pub(crate) permit: ConnectionPermit,
}

impl std::fmt::Debug for DataStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataStream").field("reader", &self.reader).finish_non_exhaustive()
    }
}

impl DataStream {
    /// The connection.
    pub(crate) fn connection(&self) -> &Arc<Connection> {
        self.reader.connection()
    }
}

/// Data streams that have joined and wait to be served.
#[derive(Debug, Default)]
pub(crate) struct StreamQueue {
    inner: Mutex<(VecDeque<DataStream>, bool)>,
    changed: Condvar,
}

impl StreamQueue {
    /// Hands a stream over; given back once the transfer is over.
    pub(crate) fn push(&self, joined: DataStream) -> Result<(), DataStream> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.1 {
            return Err(joined);
        }
        inner.0.push_back(joined);
        self.changed.notify_all();
        Ok(())
    }

    /// The next stream; None once the transfer is over.
    pub(crate) fn wait(&self) -> Option<DataStream> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if inner.1 {
                return None;
            }
            if let Some(joined) = inner.0.pop_front() {
                return Some(joined);
            }
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Says that the transfer is over.
    pub(crate) fn end(&self) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.1 = true;
        for joined in inner.0.drain(..) {
            joined.connection().close();
        }
        self.changed.notify_all();
    }
}
