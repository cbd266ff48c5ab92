//! A frame that is acknowledged when its application has handled it.

use super::link::Link;
use super::session::{ReceiveHalf, Session};
use crate::vstp::types::{Frame, VstpError};
use fastdrop_proto::vstp::{Acknowledgement, ErrorCode, FrameBytes};

/// A received frame whose acknowledgement, if its sender wants one, the application gives, as with
/// the manual acknowledgements of MQTT.
///
/// If this is dropped, the frame is not acknowledged. From a connection that one caller has, one is
/// handled at a time; from a [`Session`], several may be held and acknowledged in any order.
///
/// ```
/// use fastdrop_messages::vstp::{Frame, FrameType, VstpError, VstpTcpClient, VstpTcpServer};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), VstpError> {
/// let server = VstpTcpServer::bind("127.0.0.1:0").await?;
/// let address = server.local_addr()?.to_string();
/// let orders = tokio::spawn(async move {
///     let mut connection = server.accept().await?;
///     while let Some(delivery) = connection.recv_delivery().await? {
///         // First it is safe, and then its sender hears so.
///         let order = delivery.frame().payload.clone();
///         delivery.acknowledge().await?;
///         assert_eq!(&order[..], b"two tons of coal");
///     }
///     Ok::<_, VstpError>(())
/// });
/// let mut client = VstpTcpClient::connect(&address).await?;
/// let order = Frame::new(FrameType::Data).with_payload(b"two tons of coal".to_vec());
/// client.send_with_ack(order).await?;
/// # drop(client);
/// # orders.abort();
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a delivery that is dropped is not acknowledged"]
pub struct Delivery<'a> {
    source: Source<'a>,
    frame: FrameBytes,
    wanted: Option<Acknowledgement>,
}

#[derive(Debug)]
enum Source<'a> {
    Link(&'a mut Link),
    Session(Session),
}

impl<'a> Delivery<'a> {
    /// The next frame of a connection; None at its end.
    pub(super) async fn next(link: &'a mut Link) -> Result<Option<Self>, VstpError> {
        let owed = link.recv_owed().await?;
        Ok(owed.map(|(frame, wanted)| Self { source: Source::Link(link), frame, wanted }))
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
    /// The connection is lost: whether the sender has the acknowledgement is not known. One that
    /// [connects again](super::Reconnecting) gets it then.
    pub async fn acknowledge(mut self) -> Result<(), VstpError> {
        let Some(wanted) = self.wanted.take() else { return Ok(()) };
        match &mut self.source {
            Source::Link(link) => link.acknowledge(wanted).await,
            Source::Session(session) => {
                session.acknowledge(wanted);
                session.flush().await
            }
        }
    }

    /// Refuses the frame: its sender is told why in an ERR frame. The connection goes on.
    ///
    /// # Errors
    ///
    /// The connection is lost: whether the sender has been told is not known.
    pub async fn refuse(mut self, code: ErrorCode, reason: &str) -> Result<(), VstpError> {
        let wanted = self.wanted.take();
        match &mut self.source {
            Source::Link(link) => link.refuse(wanted, code, reason).await,
            Source::Session(session) => {
                session.refuse(wanted, code, reason);
                session.flush().await
            }
        }
    }
}

impl Session {
    /// The next frame, acknowledged when the application says so: [`Delivery::acknowledge`].
    ///
    /// # Errors
    ///
    /// As [`Self::recv`].
    pub async fn recv_delivery(&self) -> Result<Option<Delivery<'static>>, VstpError> {
        let owed = self.recv_owed().await?;
        Ok(owed.map(|(frame, wanted)| Delivery { source: Source::Session(self.clone()), frame, wanted }))
    }
}

impl ReceiveHalf {
    /// See [`Session::recv_delivery`].
    ///
    /// # Errors
    ///
    /// As [`Session::recv`].
    pub async fn recv_delivery(&mut self) -> Result<Option<Delivery<'static>>, VstpError> {
        self.0.recv_delivery().await
    }
}

impl Drop for Delivery<'_> {
    fn drop(&mut self) {
        let Some(wanted) = self.wanted.take() else { return };
        match &mut self.source {
            Source::Link(link) => link.forgo(wanted),
            Source::Session(session) => session.forgo(wanted),
        }
    }
}
