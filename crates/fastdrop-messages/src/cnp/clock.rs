//! The clock of sessions: that of the runtime, so that a test can pause it.

use std::time::Instant;

pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
