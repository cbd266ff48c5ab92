//! A frame that is acknowledged when its application has handled it.

use super::driver::{Fate, Handle, Received, Shared};
use crate::vstp::types::{Frame, VstpError};
use fastdrop_proto::vstp::{ErrorCode, FrameBytes};
use std::net::SocketAddr;
use std::sync::Arc;

/// A received frame or message whose acknowledgement, if its sender wants one, the application
/// gives.
///
/// Until then the sender's repetitions of it are neither acknowledged nor handed on. If this is
/// dropped, the frame is not acknowledged. Several may be held, and acknowledged in any order.
#[derive(Debug)]
#[must_use = "a delivery that is dropped is not acknowledged"]
pub struct Delivery {
    shared: Arc<Shared>,
    received: Received,
    fate: Fate,
}

impl Delivery {
    /// The next frame or message of an endpoint.
    pub(super) async fn next(handle: &Handle) -> Result<Self, VstpError> {
        let received = handle.take().await?;
        Ok(Self { shared: Arc::clone(handle.shared()), received, fate: Fate::Dropped })
    }

    /// The frame.
    pub fn frame(&self) -> &FrameBytes {
        &self.received.frame
    }

    /// A copy of the frame.
    pub fn to_frame(&self) -> Frame {
        self.received.frame.clone().into()
    }

    /// The sender's address.
    pub fn from(&self) -> SocketAddr {
        self.received.from
    }

    /// Returns true if the sender wants an acknowledgement.
    pub fn wants_acknowledgement(&self) -> bool {
        self.received.wanted.is_some()
    }

    /// Acknowledges the frame, if its sender wants that.
    pub fn acknowledge(mut self) {
        self.fate = Fate::Acknowledged;
    }

    /// Refuses the frame: if its sender wants an acknowledgement, it is told why there is none.
    pub fn refuse(mut self, code: ErrorCode, reason: &str) {
        self.fate = Fate::Refused(code, reason.to_owned());
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.shared.settle(&self.received, &self.fate);
    }
}
