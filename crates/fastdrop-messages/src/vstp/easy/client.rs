//! The client for both transports.

use super::{TIMEOUT, from_payload, to_frame, within};
use crate::datagrams::any_for;
use crate::tls::ClientTls;
use crate::vstp::tcp::{Session, TcpConfig, VstpTcpClient};
use crate::vstp::types::{Frame, FrameType, VstpError};
use crate::vstp::udp::{Handle, UdpConfig};
use fastdrop_proto::vstp::transport::{Transport, choose};
use fastdrop_proto::vstp::{Flags, FrameBytes};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Sends and receives values as JSON, whatever carries them. Clones share one connection, and may
/// send, call and receive at the same time: where several receive, each value goes to one of them,
/// so whoever wants the answer to its own question takes [`Self::call`].
#[derive(Clone, Debug)]
pub struct VstpClient {
    ways: Arc<Ways>,
    timeout: Duration,
}

#[derive(Debug)]
enum Ways {
    Tcp(Session),
    Udp { handle: Arc<Handle>, server: SocketAddr },
    Auto { tcp: Session, udp: Arc<Handle>, server: SocketAddr, pings: JoinHandle<()> },
}

impl Drop for Ways {
    fn drop(&mut self) {
        if let Self::Auto { pings, .. } = self {
            pings.abort();
        }
    }
}

impl VstpClient {
    /// Between the PINGs that show whether datagrams come through.
    const PING_INTERVAL: Duration = Duration::from_secs(1);
    /// Between the first ones, so that it is soon known.
    const PING_INTERVAL_FIRST: Duration = Duration::from_millis(20);

    fn new(ways: Ways) -> Self {
        Self { ways: Arc::new(ways), timeout: TIMEOUT }
    }

    /// Connects to `host:port` by TCP.
    pub async fn connect_tcp(addr: impl Into<String>) -> Result<Self, VstpError> {
        Self::connect_tcp_with_config(addr, TcpConfig::default()).await
    }

    /// The same, set up otherwise: for values of more than 8 MiB that come, with a larger
    /// [`TcpConfig::frame_max`].
    pub async fn connect_tcp_with_config(
        addr: impl Into<String>,
        config: TcpConfig,
    ) -> Result<Self, VstpError> {
        Ok(Self::new(Ways::Tcp(connect(&addr.into(), None, config).await?.0)))
    }

    /// Connects to `host:port` by TCP with TLS 1.3.
    #[cfg(feature = "tls")]
    pub async fn connect_tls(addr: impl Into<String>, tls: impl Into<ClientTls>) -> Result<Self, VstpError> {
        let (tcp, _) = connect(&addr.into(), Some(&tls.into()), TcpConfig::default()).await?;
        Ok(Self::new(Ways::Tcp(tcp)))
    }

    /// Speaks to `host:port` by UDP: to the first address that answers, or else, as a server may
    /// begin to listen later, to the first one that can be sent to.
    pub async fn connect_udp(server_addr: impl Into<String>) -> Result<Self, VstpError> {
        let addresses: Vec<_> = tokio::net::lookup_host(server_addr.into()).await?.collect();
        let mut connected = Handle::connect(&addresses, UdpConfig::default().endpoint()).await;
        for address in addresses.chunks(1).filter(|_| addresses.len() > 1) {
            if connected.is_err() {
                connected = Handle::connect(address, UdpConfig::default().endpoint()).await;
            }
        }
        let (handle, server) = connected?;
        Ok(Self::new(Ways::Udp { handle: Arc::new(handle), server }))
    }

    /// Connects to `host:port` by TCP, and by UDP as well: each message takes the way that suits
    /// it, as [`fastdrop_proto::vstp::transport::choose`] says; messages on different ways
    /// may overtake each other. Where datagrams do not come through, all go by TCP.
    pub async fn connect_auto(addr: impl Into<String>) -> Result<Self, VstpError> {
        let addr = addr.into();
        let (tcp, server) = connect(&addr, None, TcpConfig::default()).await?;
        let udp = Handle::open(any_for(server), UdpConfig::default().endpoint()).await?;
        let udp = Arc::new(udp);
        let pings = tokio::spawn(ping(Arc::clone(&udp), server));
        Ok(Self::new(Ways::Auto { tcp, udp, server, pings }))
    }

    /// The time that each operation may take. Default 30 seconds.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Sends a value.
    pub async fn send<T: Serialize>(&self, data: T) -> Result<(), VstpError> {
        self.send_raw(to_frame(&data)?).await
    }

    /// Sends a frame as it is.
    pub async fn send_raw(&self, frame: Frame) -> Result<(), VstpError> {
        let sent = within(self.timeout, self.dispatch(frame, false)).await;
        sent.map_err(|error| match error {
            VstpError::Io(error) => VstpError::Protocol(format!("Send error: {error}")),
            other => other,
        })
    }

    /// Sends a value, and waits until the server has acknowledged it.
    pub async fn send_with_ack<T: Serialize>(&self, data: T) -> Result<(), VstpError> {
        within(self.timeout, self.dispatch(to_frame(&data)?, true)).await
    }

    /// Sends a value as a request, and waits for its own reply, at most for the time of
    /// [`Self::set_timeout`]. Any number of clones may call at once; a reply never reaches
    /// [`Self::receive`]. If this is dropped, the server is told that nobody waits. By TCP where
    /// there is TCP.
    ///
    /// # Errors
    ///
    /// [`VstpError::ServerError`] with the reason of the handler, [`VstpError::Timeout`], and
    /// [`VstpError::ConnectionClosed`] when the server is gone.
    pub async fn call<T: Serialize, R: DeserializeOwned>(&self, request: T) -> Result<R, VstpError> {
        let request = to_frame(&request)?.try_into()?;
        let reply = match &*self.ways {
            Ways::Tcp(tcp) | Ways::Auto { tcp, .. } => tcp.call_bytes(request, self.timeout).await?,
            Ways::Udp { handle, server } => handle.call(request, *server, self.timeout).await?,
        };
        from_payload(&reply.payload)
    }

    /// The way that a frame would take now.
    pub fn transport_for(&self, frame: &Frame) -> Transport {
        match &*self.ways {
            Ways::Tcp(_) => Transport::Tcp,
            Ways::Udp { .. } => Transport::Udp,
            Ways::Auto { udp, server, .. } => {
                let headers = frame.headers.iter().map(|header| 2 + header.key.len() + header.value.len());
                let len = fastdrop_proto::vstp::frame::OVERHEAD_BYTES
                    + headers.sum::<usize>()
                    + frame.payload.len();
                choose(len, frame.flags.contains(Flags::REQ_ACK), udp.path(*server))
            }
        }
    }

    async fn dispatch(&self, mut frame: Frame, acknowledged: bool) -> Result<(), VstpError> {
        if acknowledged {
            frame.flags |= Flags::REQ_ACK;
        }
        let transport = self.transport_for(&frame);
        match (&*self.ways, transport) {
            (Ways::Tcp(tcp) | Ways::Auto { tcp, .. }, Transport::Tcp) => {
                send_by_tcp(tcp, frame, acknowledged, self.timeout).await
            }
            (Ways::Udp { handle, server } | Ways::Auto { udp: handle, server, .. }, _) => {
                Ok(handle.send(frame.try_into()?, *server, acknowledged).await?)
            }
            (Ways::Tcp(tcp), Transport::Udp) => send_by_tcp(tcp, frame, acknowledged, self.timeout).await,
        }
    }

    /// The next value. What the server says is wrong there is [`VstpError::ServerError`].
    pub async fn receive<T: DeserializeOwned>(&self) -> Result<T, VstpError> {
        let frame = self.receive_raw().await?;
        if frame.typ == FrameType::Err {
            let reason = frame.get_header("reason").unwrap_or("no reason given");
            return Err(VstpError::ServerError(reason.to_owned()));
        }
        from_payload(&frame.payload)
    }

    /// The next frame as it is.
    pub async fn receive_raw(&self) -> Result<Frame, VstpError> {
        within(self.timeout, self.next()).await.map(Frame::from)
    }

    async fn next(&self) -> Result<FrameBytes, VstpError> {
        match &*self.ways {
            Ways::Tcp(tcp) => next_by_tcp(tcp).await,
            Ways::Udp { handle, server } => handle.recv_from(*server).await,
            Ways::Auto { tcp, udp, server, .. } => tokio::select! {
                frame = next_by_tcp(tcp) => frame,
                frame = udp.recv_from(*server) => frame,
            },
        }
    }
}

async fn connect(
    addr: &str,
    tls: Option<&ClientTls>,
    config: TcpConfig,
) -> Result<(Session, SocketAddr), VstpError> {
    let client = match tls {
        None => VstpTcpClient::connect_with_config(addr, config).await?,
        #[cfg(feature = "tls")]
        Some(tls) => VstpTcpClient::connect_tls(addr, tls.clone(), config).await?,
        #[cfg(not(feature = "tls"))]
        Some(_) => return Err(VstpError::InvalidAddress),
    };
    let peer = client.peer_addr();
    Ok((client.into_session(), peer))
}

async fn send_by_tcp(
    tcp: &Session,
    frame: Frame,
    acknowledged: bool,
    timeout: Duration,
) -> Result<(), VstpError> {
    if acknowledged { tcp.send_with_ack(frame, timeout).await } else { tcp.send(frame).await }
}

async fn next_by_tcp(tcp: &Session) -> Result<FrameBytes, VstpError> {
    let next = tcp.recv_bytes().await?;
    next.ok_or_else(|| VstpError::Protocol("Connection closed".into()))
}

async fn ping(udp: Arc<Handle>, server: SocketAddr) {
    for interval in std::iter::repeat_n(VstpClient::PING_INTERVAL_FIRST, 5)
        .chain(std::iter::repeat(VstpClient::PING_INTERVAL))
    {
        udp.ping(server);
        tokio::time::sleep(interval).await;
    }
}
