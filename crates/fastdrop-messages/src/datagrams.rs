//! A UDP socket that sends and receives many datagrams in one call, where the system can.

use quinn_udp::{RecvMeta, UdpSocketState};
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use tokio::io::Interest;
use tokio::net::{ToSocketAddrs, UdpSocket};

/// Datagrams of one size that leave together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transmit {
    pub(crate) to: SocketAddr,
    /// Bytes of each but the last.
    pub(crate) datagram: usize,
}

/// The socket and what its system can do.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
}

/// Room for what one call receives.
pub(crate) struct Room {
    buffers: Vec<Vec<u8>>,
    metas: Vec<RecvMeta>,
}

impl Room {
    /// Buffers a call fills.
    const BUFFERS: usize = 8;
    /// What the system puts together of the datagrams of one sender.
    const BUFFER: usize = 65_536;

    pub(crate) fn new() -> Self {
        Self {
            buffers: vec![vec![0; Self::BUFFER]; Self::BUFFERS],
            metas: vec![RecvMeta::default(); Self::BUFFERS],
        }
    }
}

impl Socket {
    /// What a burst needs while the program is busy.
    const BUFFER: usize = 4 << 20;

    pub(crate) async fn bind(addr: impl ToSocketAddrs) -> io::Result<Self> {
        let socket = UdpSocket::bind(addr).await?;
        let state = UdpSocketState::new((&socket).into())?;
        // The runtime takes a new socket for full until it has heard otherwise.
        socket.writable().await?;
        // The system gives what it allows; less is slower, not wrong.
        let _ = state.set_recv_buffer_size((&socket).into(), Self::BUFFER);
        let _ = state.set_send_buffer_size((&socket).into(), Self::BUFFER);
        Ok(Self { socket, state })
    }

    /// Receives from this address alone from now on, and hears when nobody is there.
    pub(crate) async fn connect(&self, peer: SocketAddr) -> io::Result<()> {
        self.socket.connect(peer).await
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Datagrams that one call sends.
    pub(crate) fn segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Waits until something can be received; true if the system says instead that nobody is there,
    /// which it does once for each datagram.
    pub(crate) async fn refused_or_readable(&self) -> bool {
        let Ok(ready) = self.socket.ready(Interest::READABLE | Interest::ERROR).await else { return false };
        if !ready.is_error() {
            return false;
        }
        let error = self.socket.take_error().ok().flatten();
        // It is taken, and to be waited for anew.
        let _: io::Result<()> = self.socket.try_io(Interest::ERROR, || Err(io::ErrorKind::WouldBlock.into()));
        error.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    }

    pub(crate) async fn writable(&self) -> io::Result<()> {
        self.socket.writable().await
    }

    /// Sends; an error only if the socket has no room now.
    pub(crate) fn try_send(&self, transmit: Transmit, contents: &[u8]) -> io::Result<()> {
        let whole = self.try_send_as(transmit, contents, Some(transmit.datagram));
        match whole {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            Err(error) if contents.len() > transmit.datagram => {
                // A card or driver that cannot cut them: one by one.
                tracing::debug!(%error, "sending datagrams one by one");
                for datagram in contents.chunks(transmit.datagram) {
                    let _ = self.try_send_as(transmit, datagram, None);
                }
                Ok(())
            }
            // Unreachable, too large, not allowed: as good as lost on the way.
            Err(error) => {
                tracing::debug!(to = %transmit.to, %error, "a datagram was not sent");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Sends one datagram.
    pub(crate) fn try_send_one(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        self.try_send(Transmit { to, datagram: datagram.len() }, datagram)
    }

    fn try_send_as(
        &self,
        transmit: Transmit,
        contents: &[u8],
        segment_size: Option<usize>,
    ) -> io::Result<()> {
        let transmit =
            quinn_udp::Transmit { destination: transmit.to, ecn: None, contents, segment_size, src_ip: None };
        self.socket.try_io(Interest::WRITABLE, || self.state.try_send((&self.socket).into(), &transmit))
    }

    /// Receives what is there and gives each datagram to `take`; an error if nothing is there.
    pub(crate) fn try_recv(
        &self,
        room: &mut Room,
        mut take: impl FnMut(SocketAddr, &[u8]),
    ) -> io::Result<()> {
        let mut slices: Vec<_> = room.buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
        let metas = &mut room.metas;
        let count = self
            .socket
            .try_io(Interest::READABLE, || self.state.recv((&self.socket).into(), &mut slices, metas))?;
        for (buffer, meta) in room.buffers.iter().zip(&room.metas).take(count) {
            let received = buffer.get(..meta.len).unwrap_or_default();
            if received.is_empty() {
                take(meta.addr, received);
            }
            received.chunks(meta.stride.max(1)).for_each(|datagram| take(meta.addr, datagram));
        }
        Ok(())
    }
}
