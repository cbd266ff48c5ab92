//! A client, for those who send to it when they have something to say.

use super::orders::Shared;
use super::session::{Session, TrySendError, WeakSession};
use crate::tls::Fingerprint;
use crate::vstp::types::{Frame, SessionId, VstpError};
use fastdrop_proto::vstp::FrameBytes;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

/// A client of a server, as [`VstpTcpServer::run_with_peers`](super::VstpTcpServer::run_with_peers)
/// gives it to handlers. Clones are the same client.
///
/// It may be kept, and used from anywhere, for as long as the application likes: it does not keep
/// the connection open, and says when its client is gone. Whoever sends to many clients keeps their
/// peers, by [`Self::session_id`] say, uses [`Self::try_send`], which never waits for one of them,
/// and forgets those for which [`Self::gone`] is over.
///
/// ```
/// use fastdrop_messages::vstp::tcp::Peer;
/// use fastdrop_messages::vstp::{Frame, FrameBytes, FrameType, VstpError, VstpTcpClient, VstpTcpServer};
/// use std::sync::{Arc, Mutex};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), VstpError> {
/// let server = VstpTcpServer::bind("127.0.0.1:0").await?;
/// let address = server.local_addr()?.to_string();
/// let listeners: Arc<Mutex<Vec<Peer>>> = Arc::default();
/// let joining = Arc::clone(&listeners);
/// tokio::spawn(server.run_with_peers(std::future::pending(), move |peer, _| {
///     joining.lock().unwrap().push(peer);
///     async {}
/// }));
/// let mut client = VstpTcpClient::connect(&address).await?;
/// client.send_with_ack(Frame::new(FrameType::Data).with_payload(b"tell me".to_vec())).await?;
///
/// let news: FrameBytes = Frame::new(FrameType::Data).with_payload(b"rain".to_vec()).try_into()?;
/// // Those that are gone are forgotten, and those that are slow miss this.
/// let mut all = listeners.lock().unwrap();
/// all.retain(|peer| !peer.is_gone());
/// let told = all.iter().filter(|peer| peer.try_send(news.clone()).is_ok()).count();
/// assert_eq!(told, 1);
/// drop(all);
/// assert_eq!(client.recv().await?.unwrap().payload(), b"rain");
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Peer {
    session: WeakSession,
    shared: Arc<Shared>,
    id: SessionId,
    address: SocketAddr,
    fingerprint: Option<Fingerprint>,
}

impl Peer {
    pub(super) fn new(session: &Session, fingerprint: Option<Fingerprint>) -> Self {
        let (id, address) = (session.session_id(), session.peer_addr());
        let shared = Arc::clone(session.shared());
        Self { session: session.downgrade(), shared, id, address, fingerprint }
    }

    /// The number of its connection among those of the server.
    pub fn session_id(&self) -> SessionId {
        self.id
    }

    /// The client's address.
    pub fn peer_addr(&self) -> SocketAddr {
        self.address
    }

    /// The fingerprint of the certificate that the client has shown, if it has shown one.
    pub fn peer_fingerprint(&self) -> Option<Fingerprint> {
        self.fingerprint
    }

    /// Sends a frame: when this returns, the operating system has all of it. It waits while the
    /// client takes nothing, until [`TcpConfig::write_timeout`](super::TcpConfig::write_timeout)
    /// ends the connection.
    ///
    /// # Errors
    ///
    /// [`VstpError::ConnectionClosed`] if the connection is over, and as [`Session::send`].
    pub async fn send(&self, frame: Frame) -> Result<(), VstpError> {
        let session = self.session()?;
        self.while_served(session.send(frame)).await
    }

    /// The same without copying the payload.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub async fn send_bytes(&self, frame: FrameBytes) -> Result<(), VstpError> {
        let session = self.session()?;
        self.while_served(session.send_bytes(frame)).await
    }

    /// Sends a frame, and waits until the client has acknowledged it.
    ///
    /// # Errors
    ///
    /// As [`Self::send`], and if the client has refused the frame, or has not acknowledged it
    /// within `patience`.
    pub async fn send_with_ack(&self, frame: Frame, patience: Duration) -> Result<(), VstpError> {
        let session = self.session()?;
        self.while_served(session.send_with_ack(frame, patience)).await
    }

    /// Takes a frame to be sent, and never waits. See [`Session::try_send`].
    ///
    /// # Errors
    ///
    /// As [`Session::try_send`].
    pub fn try_send(&self, frame: FrameBytes) -> Result<(), TrySendError> {
        self.session.upgrade().ok_or(TrySendError::Closed)?.try_send(frame)
    }

    /// Returns true if nothing more comes of the client, or the connection is over. One that has
    /// only ended its own side may still be sent what its frames have asked for, while these are
    /// handled.
    pub fn is_gone(&self) -> bool {
        let received = self.shared.lock();
        received.is_over || received.is_left
    }

    /// Waits until [`Self::is_gone`].
    pub async fn gone(&self) {
        self.over(true).await;
    }

    /// Waits until the connection is left, or else until nothing more comes.
    async fn over(&self, also_read: bool) {
        loop {
            let mut over = pin!(self.shared.over.notified());
            over.as_mut().enable();
            {
                let received = self.shared.lock();
                if received.is_left || (also_read && received.is_over) {
                    return;
                }
            }
            over.await;
        }
    }

    fn session(&self) -> Result<Session, VstpError> {
        self.session.upgrade().ok_or(VstpError::ConnectionClosed)
    }

    /// Nobody who sends keeps a connection that is not served any more.
    async fn while_served(
        &self,
        sending: impl Future<Output = Result<(), VstpError>>,
    ) -> Result<(), VstpError> {
        tokio::select! {
            biased;
            sent = sending => sent,
            () = self.over(false) => Err(VstpError::ConnectionClosed),
        }
    }
}
