//! The end that speaks first.

pub use super::config::UdpConfig;
use super::delivery::Delivery;
use super::driver::Handle;
use super::presence::PeerEvents;
use crate::metrics::Metrics;
#[cfg(feature = "quic")]
use crate::tls::ClientTls;
use crate::vstp::types::{Frame, LARGER, VstpError};
use fastdrop_proto::vstp::{Counters, ErrorCode, Failure, FrameBytes, SendOptions, Unreachable};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::ToSocketAddrs;

/// A socket that sends to any address.
///
/// It answers and repeats in a task of its own, so that nothing depends on when `recv` is called.
/// When it is dropped, what is under way is still sent for a few seconds, if the runtime lives that
/// long.
#[derive(Debug)]
pub struct VstpUdpClient {
    handle: Handle,
}

impl From<Failure> for VstpError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::TimedOut => Self::Timeout,
            Failure::Refused(code) => Self::ServerError(words_of(&code)),
            Failure::Frame(error) => error.into(),
            Failure::Unreachable(reason) => reason.into(),
            Failure::NotCut => Self::Protocol(format!("{failure}; UdpConfig::allow_frag allows it")),
            other => Self::Protocol(other.to_string()),
        }
    }
}

impl From<Unreachable> for VstpError {
    fn from(reason: Unreachable) -> Self {
        let kind = match reason {
            Unreachable::Refused => io::ErrorKind::ConnectionRefused,
            Unreachable::Forbidden => io::ErrorKind::PermissionDenied,
            Unreachable::Disconnected => io::ErrorKind::ConnectionReset,
            Unreachable::NeedsIpv4 | Unreachable::NeedsIpv6 => io::ErrorKind::InvalidInput,
            _ => io::ErrorKind::NetworkUnreachable,
        };
        Self::Io(io::Error::new(kind, reason))
    }
}

/// Explains a code of an ERR frame, if this program knows it.
fn words_of(code: &str) -> String {
    let known = [
        (ErrorCode::TooLarge, "a larger message than it takes"),
        (ErrorCode::Malformed, "a message that makes no sense there"),
        (ErrorCode::Unhandled, "the message could not be handled"),
    ];
    let words = known.into_iter().find(|(known, _)| known.as_str() == code);
    let settings = if code == ErrorCode::TooLarge.as_str() { format!("; {LARGER}") } else { String::new() };
    words.map_or_else(|| code.to_owned(), |(_, words)| format!("{code}: {words}{settings}"))
}

impl VstpUdpClient {
    /// The time for [`Self::call`].
    pub const CALL_TIME: Duration = Duration::from_secs(30);

    /// Opens a socket on a local address, `0.0.0.0:0` for any.
    pub async fn bind(local_addr: &str) -> Result<Self, VstpError> {
        Self::bind_with_config(local_addr, UdpConfig::default()).await
    }

    /// The same, set up otherwise.
    pub async fn bind_with_config(local_addr: &str, config: UdpConfig) -> Result<Self, VstpError> {
        Ok(Self { handle: Handle::open(local_addr, config.endpoint()).await? })
    }

    /// Opens a socket to speak to `host:port`, which is given back as an address. Of several
    /// addresses it is the first that answers a PING; if none does within half a second, as
    /// programs of version 0.2, the first of which is not known that nobody listens there.
    ///
    /// # Errors
    ///
    /// The name has no address, or nobody listens at any of them.
    pub async fn connect(
        addr: impl ToSocketAddrs,
        config: UdpConfig,
    ) -> Result<(Self, SocketAddr), VstpError> {
        let addresses: Vec<_> = tokio::net::lookup_host(addr).await?.collect();
        let (handle, address) = Handle::connect(&addresses, config.endpoint()).await?;
        Ok((Self { handle }, address))
    }

    /// Opens a socket to speak to `host:port` inside connections of TLS 1.3 (QUIC), one for each
    /// address that is sent to, which the first frame opens; the one to `host:port` is there when
    /// this returns, and what it is given back as. Certificates of other addresses have to be
    /// pinned, or to name the address. Of several addresses it is the first that answers.
    ///
    /// Datagrams have 1,200 bytes at most, and frames of more than 1,230 bytes do not leave where
    /// [`UdpConfig::allow_frag`] is false.
    ///
    /// # Errors
    ///
    /// The name has no address, nobody answers there within ten seconds, or one of the ends does
    /// not trust the other's certificate.
    #[cfg(feature = "quic")]
    pub async fn connect_tls(
        addr: &str,
        tls: impl Into<ClientTls>,
        config: UdpConfig,
    ) -> Result<(Self, SocketAddr), VstpError> {
        let (handle, address) = Handle::connect_tls(addr, &tls.into(), config.endpoint()).await?;
        Ok((Self { handle }, address))
    }

    /// Waits for so long, at most, for the operating system's word that nothing reaches an address:
    /// for those who send what nobody acknowledges.
    ///
    /// # Errors
    ///
    /// The reason for which nothing has reached the address since it was last heard.
    pub async fn check(&self, dest: SocketAddr, time: Duration) -> Result<(), Unreachable> {
        self.handle.refused_within(dest, time).await.map_or(Ok(()), Err)
    }

    /// The address of the socket.
    pub fn local_addr(&self) -> Result<SocketAddr, VstpError> {
        self.handle.local_addr()
    }

    /// Sends a frame. One that fits a datagram has left when this returns. A larger one has been
    /// received whole by a peer that reports fragments, as ours do; towards others, all its
    /// fragments have left.
    pub async fn send(&self, frame: Frame, dest: SocketAddr) -> Result<(), VstpError> {
        self.send_bytes(frame.try_into()?, dest).await
    }

    /// The same without copying the payload.
    pub async fn send_bytes(&self, frame: FrameBytes, dest: SocketAddr) -> Result<(), VstpError> {
        Ok(self.dispatch(frame, dest).await?)
    }

    /// The same, with a reason for every failure.
    ///
    /// # Errors
    ///
    /// The reason for which the frame did not leave or arrive, as far as it is known.
    pub async fn dispatch(&self, frame: FrameBytes, dest: SocketAddr) -> Result<(), Failure> {
        self.handle.send(frame, dest, false).await
    }

    /// Sends a frame until its receiver has acknowledged it; [`VstpError::Timeout`] if that does
    /// not happen in the time that [`UdpConfig`] gives. Several may be under way at once.
    pub async fn send_with_ack(&self, frame: Frame, dest: SocketAddr) -> Result<(), VstpError> {
        Ok(self.deliver(frame.try_into()?, dest).await?)
    }

    /// The same without copying the payload, and with a reason for every failure.
    pub async fn deliver(&self, frame: FrameBytes, dest: SocketAddr) -> Result<(), Failure> {
        self.handle.send(frame, dest, true).await
    }

    /// Sends a frame on a channel, or otherwise as these options say, and waits for its outcome: a
    /// state of a sequenced channel has left when this returns, and a frame that wants an
    /// acknowledgement has it. What was given to this is under way also when the future is dropped.
    ///
    /// # Errors
    ///
    /// The reason for which the frame did not leave or arrive, as far as it is known;
    /// [`Failure::Superseded`] if a newer state took its place.
    pub async fn send_on(
        &self,
        frame: FrameBytes,
        dest: SocketAddr,
        options: &SendOptions,
    ) -> Result<(), Failure> {
        self.handle.send_on(frame, dest, options).await
    }

    /// Sends a state on a sequenced channel, and waits for nothing: for those who send many states
    /// in turns, and want none of their peers to hold up the others. One that cannot leave at once
    /// waits until it can, or a newer one takes its place. One that fails after that is only
    /// counted (`messages_failed`): [`Self::send_on`] tells its outcome.
    ///
    /// # Errors
    ///
    /// The socket cannot send to that address, or is of no use any more.
    pub fn post_state(&self, frame: FrameBytes, dest: SocketAddr, channel: u32) -> Result<(), Failure> {
        self.handle.post(frame, dest, &SendOptions::sequenced(channel))
    }

    /// Sends a request, and waits for its own reply, at most [`Self::CALL_TIME`].
    ///
    /// # Errors
    ///
    /// As [`Self::call_within`].
    pub async fn call(&self, request: Frame, dest: SocketAddr) -> Result<Frame, VstpError> {
        self.call_within(request, dest, Self::CALL_TIME).await
    }

    /// Sends a request, and waits for its own reply; the peer is told how much time remains. Any
    /// number of tasks may call; beyond 1,024 calls of one socket they wait for their turn. A reply
    /// never comes by [`Self::recv`]. If this is dropped, the peer is told that nobody waits.
    ///
    /// # Errors
    ///
    /// [`VstpError::ServerError`] with the reason of the handler, [`VstpError::Timeout`] if there
    /// is no reply in this time or nobody takes the request, and what [`Self::deliver`] says of a
    /// request that was refused or does not arrive.
    pub async fn call_within(
        &self,
        request: Frame,
        dest: SocketAddr,
        time: Duration,
    ) -> Result<Frame, VstpError> {
        Ok(self.call_bytes(request.try_into()?, dest, time).await?.into())
    }

    /// The same without copying payloads.
    ///
    /// # Errors
    ///
    /// As [`Self::call_within`].
    pub async fn call_bytes(
        &self,
        request: FrameBytes,
        dest: SocketAddr,
        time: Duration,
    ) -> Result<FrameBytes, VstpError> {
        self.handle.call(request, dest, time).await
    }

    /// Replies to calls that nobody was waiting for, which were dropped.
    pub fn unknown_replies(&self) -> u64 {
        self.handle.unknown_replies()
    }

    /// Bounds what is sent with [`Priority::Bulk`](super::Priority::Bulk), to each address by
    /// itself, to so many bytes a second of datagrams, at least 16 KiB; None for no bound, which is
    /// the default.
    pub fn set_bulk_rate(&self, bytes_per_second: Option<u64>) {
        self.handle.set_bulk_rate(bytes_per_second);
    }

    /// The next frame or message, from anybody.
    pub async fn recv(&mut self) -> Result<(Frame, SocketAddr), VstpError> {
        self.handle.recv().await.map(|(frame, from)| (frame.into(), from))
    }

    /// The same without copying the payload.
    pub async fn recv_bytes(&self) -> Result<(FrameBytes, SocketAddr), VstpError> {
        self.handle.recv().await
    }

    /// The next frame or message, acknowledged when the application says so:
    /// [`Delivery::acknowledge`].
    ///
    /// # Errors
    ///
    /// The socket is of no use any more.
    pub async fn recv_delivery(&self) -> Result<Delivery, VstpError> {
        Delivery::next(&self.handle).await
    }

    /// The number of messages that have begun to arrive and are not complete.
    pub async fn reassembly_session_count(&self) -> usize {
        self.handle.unfinished()
    }

    /// Tells from now on which peers come and go, where one from which nothing has come for so long
    /// counts as gone.
    pub fn events(&self, silent_after: Duration) -> PeerEvents {
        self.handle.events(silent_after)
    }

    /// Counts of what this client does, also when it is used up.
    pub fn metrics(&self) -> Metrics {
        self.handle.metrics()
    }

    /// The counts since the beginning.
    pub fn counters(&self) -> Counters {
        self.handle.counters()
    }
}
