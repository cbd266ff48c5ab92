//! A sender of frames, for those who send to it when they have something to say.

use super::driver::Handle;
use super::presence::Present;
use crate::shutdown::ShutdownSignal;
use crate::vstp::types::{Frame, VstpError};
use fastdrop_proto::vstp::{Failure, FrameBytes, SendOptions};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

/// An address from which frames came, as
/// [`VstpUdpServer::run_with_peers`](super::VstpUdpServer::run_with_peers) gives it to handlers.
/// Clones are the same.
///
/// It may be kept, and used from anywhere, for as long as the application likes: it does not keep
/// the socket open, and says when the peer is gone. A frame that fits a datagram and wants no
/// acknowledgement leaves whether its receiver takes it or not; at most 4,096 of them wait for one
/// address, and one more fails.
#[derive(Debug, Clone)]
pub struct Peer {
    handle: Weak<Handle>,
    /// Given when the server does not run any more, however many are sending.
    ended: ShutdownSignal,
    address: SocketAddr,
    /// None when the server does not know who comes and goes any more.
    present: Option<Present>,
}

impl Peer {
    pub(super) fn new(
        handle: Weak<Handle>,
        ended: ShutdownSignal,
        address: SocketAddr,
        present: Option<Present>,
    ) -> Self {
        Self { handle, ended, address, present }
    }

    /// Its address.
    pub fn peer_addr(&self) -> SocketAddr {
        self.address
    }

    /// Sends a frame, as [`VstpUdpServer::send`](super::VstpUdpServer::send) does.
    ///
    /// # Errors
    ///
    /// [`VstpError::ConnectionClosed`] if the server has ended, and as
    /// [`VstpUdpServer::send`](super::VstpUdpServer::send).
    pub async fn send(&self, frame: Frame) -> Result<(), VstpError> {
        self.send_bytes(frame.try_into()?).await
    }

    /// The same without copying the payload.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub async fn send_bytes(&self, frame: FrameBytes) -> Result<(), VstpError> {
        let handle = self.handle()?;
        self.while_served(async move { handle.send(frame, self.address, false).await }).await
    }

    /// Sends a frame on a channel, or otherwise as these options say, as
    /// [`VstpUdpServer::send_on`](super::VstpUdpServer::send_on) does.
    ///
    /// # Errors
    ///
    /// [`VstpError::ConnectionClosed`] if the server has ended, and otherwise the reason for which
    /// the frame did not leave or arrive, as far as it is known.
    pub async fn send_on(&self, frame: FrameBytes, options: &SendOptions) -> Result<(), VstpError> {
        let handle = self.handle()?;
        self.while_served(async move { handle.send_on(frame, self.address, options).await }).await
    }

    /// Sends a frame until its receiver has acknowledged it.
    ///
    /// # Errors
    ///
    /// As [`Self::send`], and [`VstpError::Timeout`] if the peer has not acknowledged it.
    pub async fn send_with_ack(&self, frame: Frame) -> Result<(), VstpError> {
        let (handle, frame) = (self.handle()?, frame.try_into()?);
        self.while_served(async move { handle.send(frame, self.address, true).await }).await
    }

    /// Returns true if the peer has said BYE, was silent for too long or is not reached any more,
    /// or if the server has ended. If it sends something again, that comes with a new peer, and
    /// this one stays gone.
    pub fn is_gone(&self) -> bool {
        self.has_ended() || self.present.as_ref().is_none_or(Present::is_over)
    }

    /// Waits until [`Self::is_gone`].
    pub async fn gone(&self) {
        if !self.has_ended()
            && let Some(present) = &self.present
        {
            tokio::select! {
                () = present.over() => {}
                () = self.ended.clone().waited() => {}
            }
        }
    }

    fn has_ended(&self) -> bool {
        self.ended.has_begun() || self.handle.strong_count() == 0
    }

    fn handle(&self) -> Result<Arc<Handle>, VstpError> {
        self.handle.upgrade().filter(|_| !self.has_ended()).ok_or(VstpError::ConnectionClosed)
    }

    /// Nobody who sends keeps the socket of a server that has ended: `sending` holds it.
    async fn while_served(
        &self,
        sending: impl Future<Output = Result<(), Failure>>,
    ) -> Result<(), VstpError> {
        tokio::select! {
            biased;
            sent = sending => Ok(sent?),
            () = self.ended.clone().waited() => Err(VstpError::ConnectionClosed),
        }
    }
}
