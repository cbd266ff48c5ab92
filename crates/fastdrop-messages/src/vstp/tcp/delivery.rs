//! A frame that is acknowledged when its application has handled it.

use super::connection::Connection;
use crate::vstp::types::{Frame, VstpError};
use fastdrop_proto::vstp::{Acknowledgement, ErrorCode, FrameBytes};

/// A received frame whose acknowledgement, if its sender wants one, the application gives.
///
/// If this is dropped, the frame is not acknowledged. Nothing else is received meanwhile.
#[derive(Debug)]
#[must_use = "a delivery that is dropped is not acknowledged"]
pub struct Delivery<'a> {
    connection: &'a mut Connection,
    frame: FrameBytes,
    wanted: Option<Acknowledgement>,
}

impl<'a> Delivery<'a> {
    /// The next frame of a connection; None at its end.
    pub(super) async fn next(connection: &'a mut Connection) -> Result<Option<Self>, VstpError> {
        let owed = connection.recv_owed().await?;
        Ok(owed.map(|(frame, wanted)| Self { connection, frame, wanted }))
    }

    /// The frame.
    pub fn frame(&self) -> &FrameBytes {
        &self.frame
    }

    /// A copy of the frame's headers with its payload, which is not copied if this is its only
    /// holder.
    pub fn to_frame(&self) -> Frame {
        self.frame.clone().into()
    }

    /// Returns true if the sender wants an acknowledgement.
    pub fn wants_acknowledgement(&self) -> bool {
        self.wanted.is_some()
    }

    /// Acknowledges the frame, if its sender wants that.
    ///
    /// # Errors
    ///
    /// The connection is lost: whether the sender has the acknowledgement is not known.
    pub async fn acknowledge(mut self) -> Result<(), VstpError> {
        match self.wanted.take() {
            Some(wanted) => self.connection.acknowledge(wanted).await,
            None => Ok(()),
        }
    }

    /// Refuses the frame: its sender is told why in an ERR frame. The connection goes on.
    ///
    /// # Errors
    ///
    /// The connection is lost: whether the sender has been told is not known.
    pub async fn refuse(mut self, code: ErrorCode, reason: &str) -> Result<(), VstpError> {
        let wanted = self.wanted.take();
        self.connection.refuse(wanted, code, reason).await
    }
}

impl Drop for Delivery<'_> {
    fn drop(&mut self) {
        if let Some(wanted) = self.wanted.take() {
            self.connection.forgo(wanted);
        }
    }
}
