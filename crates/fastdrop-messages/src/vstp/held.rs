//! A bound on the bytes of frames that are held at once.

use fastdrop_proto::vstp::FrameBytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Notify;

/// The bytes of frames that are held: beyond the bound no more are taken.
#[derive(Debug)]
pub(super) struct Budget {
    max: usize,
    held: AtomicUsize,
    freed: Notify,
}

impl Budget {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max: max.max(1), held: AtomicUsize::new(0), freed: Notify::new() })
    }

    /// Waits until one more may be taken.
    pub(super) async fn room(&self) {
        while self.held.load(Ordering::Acquire) >= self.max {
            self.freed.notified().await;
        }
    }

    /// Holds a frame, whether there is room or not.
    pub(super) fn hold(self: &Arc<Self>, frame: &FrameBytes) -> Held {
        let bytes = frame.memory();
        self.held.fetch_add(bytes, Ordering::AcqRel);
        Held { bytes, budget: Arc::clone(self) }
    }

    /// Holds a frame if there is room for all of it, or if it is the only one.
    pub(super) fn try_hold(self: &Arc<Self>, frame: &FrameBytes) -> Option<Held> {
        let bytes = frame.memory();
        let held = self.held.fetch_update(Ordering::AcqRel, Ordering::Acquire, |held| {
            let with_it = held.saturating_add(bytes);
            (held == 0 || with_it <= self.max).then_some(with_it)
        });
        held.is_ok().then(|| Held { bytes, budget: Arc::clone(self) })
    }
}

/// The part of a frame, until it is handled.
#[derive(Debug)]
pub(super) struct Held {
    bytes: usize,
    budget: Arc<Budget>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::AcqRel);
        self.budget.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use fastdrop_proto::vstp::{FrameType, HeadersBuf};

    #[test]
    fn one_frame_always_fits_and_several_only_within_the_bound() {
        let frame = |len| FrameBytes::new(FrameType::Data, HeadersBuf::default(), Bytes::from(vec![0; len]));
        let budget = Budget::new(frame(10).memory() * 2);
        let large = budget.try_hold(&frame(1 << 20)).unwrap();
        assert!(budget.try_hold(&frame(0)).is_none());
        drop(large);
        let (one, two) = (budget.try_hold(&frame(10)).unwrap(), budget.try_hold(&frame(10)).unwrap());
        assert!(budget.try_hold(&frame(0)).is_none());
        drop(one);
        let three = budget.try_hold(&frame(9)).unwrap();
        drop((two, three));
        assert_eq!(budget.held.load(Ordering::Acquire), 0);
    }
}
