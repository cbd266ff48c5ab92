//! The end that connects.

use super::TcpConfig;
use super::connection::Connection;
use super::delivery::Delivery;
use super::link::Link;
use super::session::{ReceiveHalf, SendHalf, Session};
use super::stream::Stream;
use crate::connecting::connect;
use crate::inner::Inner;
use crate::spans;
use crate::tls::{self, ClientTls, Secured};
use crate::vstp::types::{Frame, VstpError};
use fastdrop_proto::vstp::FrameBytes;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::{TcpStream, ToSocketAddrs};
use tracing::{Instrument, Span};

/// A connection to a server.
#[derive(Debug)]
pub struct VstpTcpClient {
    link: Link,
    peer: SocketAddr,
    span: Span,
    unauthorized: Arc<AtomicBool>,
}

/// The reason for which there is no connection.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
#[non_exhaustive]
pub struct NotConnected {
    /// The reason itself; that of the server is [`VstpError::ServerError`].
    #[source]
    pub error: VstpError,
    /// The server has said that this end is not let in: it needs another token, or TLS.
    pub unauthorized: bool,
}

impl From<VstpError> for NotConnected {
    fn from(error: VstpError) -> Self {
        Self { error, unauthorized: false }
    }
}

impl From<NotConnected> for VstpError {
    fn from(not: NotConnected) -> Self {
        not.error
    }
}

/// Connects, within ten seconds.
pub(crate) async fn dial(addr: impl ToSocketAddrs) -> Result<(TcpStream, SocketAddr), VstpError> {
    let connect = async {
        let addresses: Vec<_> = tokio::net::lookup_host(addr).await?.collect();
        connect(&addresses).await
    };
    let bound = Duration::from_secs(10);
    let stream = tokio::time::timeout(bound, connect).await.map_err(|_| VstpError::Timeout)??;
    let peer = stream.peer_addr()?;
    Ok((stream, peer))
}

/// The TLS handshake with a server at `addr`.
pub(crate) async fn handshake(stream: TcpStream, addr: &str, tls: &ClientTls) -> Result<Secured, VstpError> {
    Ok(tls::connect(stream, tls::host_of(addr)?, tls, Inner::Vstp).await?)
}

impl VstpTcpClient {
    /// The time for which [`Self::send_with_ack`] waits.
    const ACK_PATIENCE: Duration = Duration::from_secs(30);

    /// Connects to `host:port`.
    pub async fn connect(addr: &str) -> Result<Self, VstpError> {
        Self::connect_with_config(addr, TcpConfig::default()).await
    }

    /// The same, set up otherwise.
    pub async fn connect_with_config(addr: &str, config: TcpConfig) -> Result<Self, VstpError> {
        let (stream, peer) = dial(addr).await?;
        Ok(Self::open(Stream::Plain(stream), peer, config).await?)
    }

    /// Connects to `host:port` with TLS 1.3, if the server can show what is trusted.
    #[cfg(feature = "tls")]
    pub async fn connect_tls(
        addr: &str,
        tls: impl Into<ClientTls>,
        config: TcpConfig,
    ) -> Result<Self, VstpError> {
        let (stream, peer) = dial(addr).await?;
        let stream = Stream::Tls(Box::new(handshake(stream, addr, &tls.into()).await?));
        Ok(Self::open(stream, peer, config).await?)
    }

    /// Connects to `host:port`, with TLS 1.3 if there are servers that are trusted. It is the same
    /// as the others, but its error also says that this end was not let in.
    ///
    /// # Errors
    ///
    /// The reason for which there is no connection.
    pub async fn connect_to(
        addr: &str,
        tls: Option<ClientTls>,
        config: TcpConfig,
    ) -> Result<Self, NotConnected> {
        let (stream, peer) = dial(addr).await?;
        let stream = match tls {
            Some(tls) => Stream::Tls(Box::new(handshake(stream, addr, &tls).await?)),
            None => Stream::Plain(stream),
        };
        Self::open(stream, peer, config).await
    }

    async fn open(stream: Stream, peer: SocketAddr, config: TcpConfig) -> Result<Self, NotConnected> {
        let span = spans::of("vstp", "tcp", peer);
        let opening = async {
            let stream = stream.guarded(&config, None);
            let mut connection = Connection::new(stream, config.clone(), None, false);
            let unauthorized = connection.unauthorized();
            if let Err(error) = connection.introduce().await {
                return Err(NotConnected { error, unauthorized: unauthorized.load(Ordering::Relaxed) });
            }
            Ok((Link::new(connection, &config, peer), unauthorized))
        };
        let (link, unauthorized) = opening.instrument(span.clone()).await?;
        Ok(Self { link, peer, span, unauthorized })
    }

    /// The server's address.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// Returns true if the server has said that this end is not let in: it needs a token, or TLS.
    pub fn is_unauthorized(&self) -> bool {
        self.unauthorized.load(Ordering::Relaxed)
    }

    /// Sends a frame: when this returns, the operating system has all of it.
    pub async fn send(&mut self, frame: Frame) -> Result<(), VstpError> {
        self.link.send(frame).await
    }

    /// The same without copying the payload.
    pub async fn send_bytes(&mut self, frame: &FrameBytes) -> Result<(), VstpError> {
        self.link.send_bytes(frame).await
    }

    /// Takes a frame, to be sent together with others: [`Self::flush`] sends them.
    pub async fn feed(&mut self, frame: Frame) -> Result<(), VstpError> {
        self.link.feed(frame).await
    }

    /// The same without copying the payload.
    pub async fn feed_bytes(&mut self, frame: &FrameBytes) -> Result<(), VstpError> {
        self.link.feed_bytes(frame).await
    }

    /// Sends what was fed.
    pub async fn flush(&mut self) -> Result<(), VstpError> {
        self.link.flush().await
    }

    /// Sends a frame, and waits at most 30 seconds until the server has acknowledged it. Frames
    /// that come meanwhile are kept for [`Self::recv`].
    pub async fn send_with_ack(&mut self, frame: Frame) -> Result<(), VstpError> {
        self.link.send_with_ack(vec![frame], Self::ACK_PATIENCE).await
    }

    /// The same for several frames, in one round trip.
    pub async fn send_all_with_ack(&mut self, frames: Vec<Frame>) -> Result<(), VstpError> {
        self.link.send_with_ack(frames, Self::ACK_PATIENCE).await
    }

    /// Says HELLO. The server's WELCOME comes by [`Self::recv`].
    pub async fn send_hello(&mut self) -> Result<(), VstpError> {
        self.link.hello().await
    }

    /// Sends a DATA frame.
    pub async fn send_data(&mut self, payload: Vec<u8>) -> Result<(), VstpError> {
        self.send(Frame::new(super::super::FrameType::Data).with_payload(payload)).await
    }

    /// The next frame; None when the server has ended. May be dropped while it waits, and nothing
    /// is lost.
    pub async fn recv(&mut self) -> Result<Option<Frame>, VstpError> {
        Ok(self.link.recv_bytes().await?.map(Frame::from))
    }

    /// The same without copying the payload.
    pub async fn recv_bytes(&mut self) -> Result<Option<FrameBytes>, VstpError> {
        self.link.recv_bytes().await
    }

    /// The next frame, acknowledged when the application says so: [`Delivery::acknowledge`].
    ///
    /// # Errors
    ///
    /// As [`Self::recv`].
    pub async fn recv_delivery(&mut self) -> Result<Option<Delivery<'_>>, VstpError> {
        Delivery::next(&mut self.link).await
    }

    /// Says BYE, and ends the sending half. What the server still sends comes by [`Self::recv`].
    pub async fn close(&mut self) -> Result<(), VstpError> {
        self.link.close().await
    }

    /// Has the connection driven by a task, for any number of callers.
    pub fn into_session(self) -> Session {
        let Self { link, peer, span, .. } = self;
        span.in_scope(|| link.into_session(peer, false))
    }

    /// The two halves, for a task each.
    pub fn into_split(self) -> (SendHalf, ReceiveHalf) {
        self.into_session().into_split()
    }
}
