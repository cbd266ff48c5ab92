//! Memory for the chunks of all transfers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of chunk buffers that all transfers together may have.
#[derive(Debug)]
pub(crate) struct BufferBudget {
    max: u64,
    reserved: AtomicU64,
}

impl BufferBudget {
    /// Creates a budget of `max` bytes.
    pub(crate) fn new(max: u64) -> Self {
        Self { max, reserved: AtomicU64::new(0) }
    }

    /// Reserves a buffer of `bytes` for each of up to `wanted` streams; at least one is always
    /// granted.
    pub(crate) fn reserve(self: &Arc<Self>, wanted: u16, bytes: u32) -> BufferLease {
        let mut streams = 0;
        while streams < wanted {
            let before = self.reserved.fetch_add(bytes.into(), Ordering::SeqCst);
            if streams > 0 && before + u64::from(bytes) > self.max {
                self.reserved.fetch_sub(bytes.into(), Ordering::SeqCst);
                break;
            }
            streams += 1;
        }
        BufferLease { budget: Arc::clone(self), streams, bytes }
    }
}

/// Buffers of one transfer, until this is dropped.
#[derive(Debug)]
pub(crate) struct BufferLease {
    budget: Arc<BufferBudget>,
    /// Streams that have one.
    pub(crate) streams: u16,
    bytes: u32,
}

impl Drop for BufferLease {
    fn drop(&mut self) {
        let bytes = u64::from(self.streams) * u64::from(self.bytes);
        self.budget.reserved.fetch_sub(bytes, Ordering::SeqCst);
    }
}
