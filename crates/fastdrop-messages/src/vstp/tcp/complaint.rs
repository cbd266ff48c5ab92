//! The complaints of the peer, in ERR frames.

use fastdrop_proto::vstp::{ErrorCode, FrameBytes};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The last thing that the peer has said was wrong.
#[derive(Debug, Default)]
pub(super) struct Complaint {
    reason: Option<String>,
    unauthorized: Arc<AtomicBool>,
}

impl Complaint {
    /// An ERR frame came.
    pub(super) fn on_error(&mut self, frame: &FrameBytes) {
        self.reason = Some(reason_of(frame));
        if frame.headers().find("code") == Some(ErrorCode::Unauthorized.as_str().as_bytes()) {
            self.unauthorized.store(true, Ordering::Relaxed);
        }
    }

    /// Takes the reason of the last one.
    pub(super) fn take(&mut self) -> Option<String> {
        self.reason.take()
    }

    /// Becomes true when the peer says that this end is not let in.
    pub(super) fn unauthorized(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.unauthorized)
    }
}

/// The reason in an ERR frame.
pub(super) fn reason_of(frame: &FrameBytes) -> String {
    let headers = frame.headers();
    let reason = headers.find("reason").or_else(|| headers.find("code")).unwrap_or(b"no reason given");
    String::from_utf8_lossy(reason).into_owned()
}
