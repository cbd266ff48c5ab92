//! The way of datagrams to and from peers: as they are, or inside connections of QUIC.

#[cfg(feature = "quic")]
use super::quic::{Came, Quic};
use crate::datagrams::{Room, Socket, Transmit};
use fastdrop_proto::vstp::Unreachable;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
#[cfg(feature = "quic")]
use tokio::sync::mpsc;

/// The socket of an endpoint, or what is on it.
#[derive(Debug)]
pub(super) enum Carrier {
    Plain(Arc<Socket>),
    /// One connection for each peer.
    #[cfg(feature = "quic")]
    Secured(Box<Quic>),
}

/// The things that came by connections; nothing ever where there are none.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    #[cfg(feature = "quic")]
    came: Option<mpsc::Receiver<Came>>,
}

#[cfg(feature = "quic")]
impl Arrivals {
    pub(super) fn of(came: mpsc::Receiver<Came>) -> Self {
        Self { came: Some(came) }
    }

    pub(super) async fn next(&mut self) -> Came {
        if let Some(came) = &mut self.came
            && let Some(came) = came.recv().await
        {
            return came;
        }
        std::future::pending().await
    }

    pub(super) fn try_next(&mut self) -> Option<Came> {
        self.came.as_mut()?.try_recv().ok()
    }
}

#[cfg(not(feature = "quic"))]
impl Arrivals {
    pub(super) async fn next(&mut self) -> std::convert::Infallible {
        std::future::pending().await
    }
}

impl Carrier {
    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Plain(socket) => socket.local_addr(),
            #[cfg(feature = "quic")]
            Self::Secured(quic) => quic.local_addr(),
        }
    }

    /// # Errors
    ///
    /// The socket is of another family than this address, which is in canonical form.
    pub(super) fn check(&self, to: SocketAddr) -> Result<(), Unreachable> {
        match self {
            Self::Plain(socket) => socket.check(to),
            #[cfg(feature = "quic")]
            Self::Secured(quic) => quic.check(to),
        }
    }

    /// Datagrams that one call sends.
    pub(super) fn segments(&self) -> usize {
        match self {
            Self::Plain(socket) => socket.segments(),
            #[cfg(feature = "quic")]
            Self::Secured(_) => Quic::SEGMENTS,
        }
    }

    /// Sends, as [`Socket::try_send`] does.
    pub(super) fn try_send(&self, transmit: Transmit, contents: &[u8]) -> io::Result<Option<Unreachable>> {
        match self {
            Self::Plain(socket) => socket.try_send(transmit, contents),
            #[cfg(feature = "quic")]
            Self::Secured(quic) => Ok(quic.send(transmit.path.remote, transmit.datagram, contents)),
        }
    }

    /// Waits for the socket, as [`Socket::readable_or_failed`] does; what is inside connections
    /// comes as [`Arrivals`].
    pub(super) async fn readable_or_failed(&self) -> io::Result<bool> {
        match self {
            Self::Plain(socket) => socket.readable_or_failed().await,
            #[cfg(feature = "quic")]
            Self::Secured(_) => std::future::pending().await,
        }
    }

    /// Waits until the socket has room. Connections have always: they drop what is too much.
    pub(super) async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.writable().await,
            #[cfg(feature = "quic")]
            Self::Secured(_) => std::future::pending().await,
        }
    }

    /// Tells of datagrams that did not arrive, as [`Socket::take_errors`] does.
    pub(super) fn take_errors(&self, tell: impl FnMut(SocketAddr, Unreachable)) {
        match self {
            Self::Plain(socket) => socket.take_errors(tell),
            #[cfg(feature = "quic")]
            Self::Secured(_) => {}
        }
    }

    /// Receives from the socket, as [`Socket::try_recv`] does.
    pub(super) fn try_recv(
        &self,
        room: &mut Room,
        take: impl FnMut(crate::datagrams::Path, &[u8]),
    ) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.try_recv(room, take),
            #[cfg(feature = "quic")]
            Self::Secured(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Returns true if everything that was given to it has left.
    pub(super) fn is_idle(&self) -> bool {
        match self {
            Self::Plain(_) => true,
            #[cfg(feature = "quic")]
            Self::Secured(quic) => quic.is_idle(),
        }
    }

    /// Nothing more is sent or received.
    pub(super) fn close(&self) {
        match self {
            Self::Plain(_) => {}
            #[cfg(feature = "quic")]
            Self::Secured(quic) => quic.close(),
        }
    }
}
