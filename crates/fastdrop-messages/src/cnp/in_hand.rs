//! The count of messages that an application is at work on.

use super::driver::{Shared, State};
use std::sync::Arc;

/// A message that the application is at work on; a server that ends waits for it.
#[derive(Debug)]
pub(super) struct InHand(Arc<Shared>);

impl InHand {
    /// The application takes a message, in the same step as this.
    pub(super) fn count(shared: &Arc<Shared>, state: &mut State) -> Self {
        state.in_hand += 1;
        Self(Arc::clone(shared))
    }

    /// The application is at work on something that it has taken.
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self::count(shared, &mut shared.lock())
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.0.lock().in_hand -= 1;
        self.0.changed.notify_one();
    }
}
