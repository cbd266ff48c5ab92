//! Acknowledged frames whose handlers have not finished, and the report about them at the end.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The count of what a server that has ended leaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drained {
    /// Frames that were acknowledged, and whose handlers did not finish within the drain, or
    /// panicked.
    pub unhandled: u64,
}

/// The count of acknowledged frames whose handlers have begun and not finished.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unhandled(Arc<AtomicU64>);

impl Unhandled {
    /// Counts the handler of a frame, if that was acknowledged. It stays counted if it is dropped.
    /// It counts from now on, also before it is polled.
    pub(crate) fn count<H>(&self, acknowledged: bool, handler: H) -> impl Future<Output = H::Output> + use<H>
    where
        H: Future,
    {
        let (count, unhandled) = (u64::from(acknowledged), Arc::clone(&self.0));
        unhandled.fetch_add(count, Ordering::Relaxed);
        async move {
            let handled = handler.await;
            unhandled.fetch_sub(count, Ordering::Relaxed);
            handled
        }
    }

    /// The report at the end.
    pub(crate) fn report(&self) -> Drained {
        let unhandled = self.0.load(Ordering::Relaxed);
        if unhandled > 0 {
            tracing::warn!(unhandled, "frames were acknowledged, and not handled before the end");
        }
        Drained { unhandled }
    }
}
