//! A UDP socket that sends and receives many datagrams in one call, where the system can, and
//! answers from the address that was asked.

mod addresses;
mod errors;
mod room;

pub(crate) use addresses::any_for;
pub(crate) use errors::is_about_another;
pub(crate) use room::Room;

use crate::addresses::canonical;
pub(crate) use addresses::Reach;
use addresses::{Locals, for_ipv6};
use fastdrop_proto::unreachable::Unreachable;
use quinn_udp::UdpSocketState;
use socket2::{Domain, Protocol, Type};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use tokio::io::Interest;
use tokio::net::{ToSocketAddrs, UdpSocket};

/// The two ends of a datagram's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Path {
    /// The peer, in its canonical form.
    pub(crate) remote: SocketAddr,
    /// The local address that the peer has asked, where the socket has several.
    pub(crate) local: Option<IpAddr>,
}

/// Datagrams of one size that leave together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transmit {
    pub(crate) path: Path,
    /// Bytes of each but the last.
    pub(crate) datagram: usize,
}

/// The socket and what its system can do.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
    reach: Reach,
    is_ipv6: bool,
    /// The addresses that it was asked at, if it is on all addresses of the machine.
    locals: Option<Locals>,
    /// The system tells it of datagrams that did not arrive.
    hears_errors: bool,
}

impl Socket {
    /// Bytes that a burst needs while the program is busy.
    const BUFFER: usize = 4 << 20;
    /// Attempts to send: errors of other datagrams may be told instead of it.
    const ATTEMPTS: usize = 4;
    /// Errors that are taken before others have their turn.
    const ERRORS_AT_ONCE: usize = 64;

    /// Opens a socket on the first of the addresses that can be had. One on `[::]` speaks IPv4 as
    /// well.
    pub(crate) async fn bind(addr: impl ToSocketAddrs) -> io::Result<Self> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "no address");
        for address in tokio::net::lookup_host(addr).await? {
            match open(address) {
                Ok(socket) => return Self::new(socket).await,
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The same without what this type adds, for an endpoint that receives by itself; with the
    /// addresses that it reaches.
    #[cfg(feature = "quic")]
    pub(crate) async fn bind_bare(addr: impl ToSocketAddrs) -> io::Result<(std::net::UdpSocket, Reach)> {
        let Self { socket, reach, .. } = Self::bind(addr).await?;
        Ok((socket.into_std()?, reach))
    }

    async fn new(socket: UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        // The runtime takes a new socket for full until it has heard otherwise.
        socket.writable().await?;
        // The system gives what it allows; less is slower, not wrong.
        let _ = state.set_recv_buffer_size((&socket).into(), Self::BUFFER);
        let _ = state.set_send_buffer_size((&socket).into(), Self::BUFFER);
        let local = socket.local_addr()?;
        let is_ipv6 = local.is_ipv6();
        let dual = is_ipv6 && !socket2::SockRef::from(&socket).only_v6()?;
        let locals = local.ip().is_unspecified().then(Locals::default);
        Ok(Self { socket, state, reach: Reach::of(local, dual), is_ipv6, locals, hears_errors: false })
    }

    /// The same; [`Self::take_errors`] says from now on which datagrams did not arrive.
    pub(crate) fn hearing_errors(mut self) -> io::Result<Self> {
        self.state.enable_transport_errors((&self.socket).into())?;
        self.hears_errors = true;
        Ok(self)
    }

    /// Receives from this address alone from now on, and hears when nobody is there.
    pub(crate) async fn connect(&self, peer: SocketAddr) -> io::Result<()> {
        self.socket.connect(self.on_wire(peer)).await
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// # Errors
    ///
    /// The socket is of another family than this address, which is in canonical form.
    pub(crate) fn check(&self, to: SocketAddr) -> Result<(), Unreachable> {
        self.reach.check(to)
    }

    /// Datagrams that one call sends.
    pub(crate) fn segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Waits until something can be received; true if there are errors to be taken.
    pub(crate) async fn readable_or_failed(&self) -> io::Result<bool> {
        if !self.hears_errors {
            return self.readable().await.map(|()| false);
        }
        Ok(self.socket.ready(Interest::READABLE | Interest::ERROR).await?.is_error())
    }

    /// Tells of datagrams that did not arrive: where they were sent to, and why.
    pub(crate) fn take_errors(&self, mut tell: impl FnMut(SocketAddr, Unreachable)) {
        let _: io::Result<()> = self.socket.try_io(Interest::ERROR, || {
            for _ in 0..Self::ERRORS_AT_ONCE {
                match errors::next(&self.socket) {
                    Ok(Some((Some(to), Some(reason)))) => tell(to, reason),
                    Ok(Some(_)) => {}
                    // They are to be waited for anew.
                    Ok(None) | Err(_) => return Err(io::ErrorKind::WouldBlock.into()),
                }
            }
            Ok(())
        });
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

    /// Sends; an error only if the socket has no room now. Says why no datagram can leave for that
    /// address, if that is so; anything else that keeps one from leaving is as good as a loss.
    pub(crate) fn try_send(&self, transmit: Transmit, contents: &[u8]) -> io::Result<Option<Unreachable>> {
        let whole = self.try_send_as(transmit.path, contents, Some(transmit.datagram));
        match whole {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            Err(error) if contents.len() > transmit.datagram => {
                // A card or driver that cannot cut them: one by one.
                tracing::debug!(%error, "sending datagrams one by one");
                let mut reason = None;
                for datagram in contents.chunks(transmit.datagram) {
                    match self.try_send_as(transmit.path, datagram, None) {
                        Ok(()) => {}
                        Err(error) => reason = reason.or(errors::meaning(&error)),
                    }
                }
                Ok(reason)
            }
            Err(error) => {
                tracing::debug!(to = %transmit.path.remote, %error, "a datagram was not sent");
                Ok(errors::meaning(&error))
            }
            Ok(()) => Ok(None),
        }
    }

    /// Sends one datagram.
    pub(crate) fn try_send_one(&self, path: Path, datagram: &[u8]) -> io::Result<Option<Unreachable>> {
        self.try_send(Transmit { path, datagram: datagram.len() }, datagram)
    }

    fn try_send_as(&self, path: Path, contents: &[u8], segment_size: Option<usize>) -> io::Result<()> {
        let destination = self.on_wire(path.remote);
        let mut src_ip = path.local;
        let mut attempts = 1;
        loop {
            let transmit = quinn_udp::Transmit { destination, ecn: None, contents, segment_size, src_ip };
            let sent = self
                .socket
                .try_io(Interest::WRITABLE, || self.state.try_send((&self.socket).into(), &transmit));
            let Err(error) = sent else { return Ok(()) };
            attempts += 1;
            match (src_ip, &self.locals) {
                _ if error.kind() == io::ErrorKind::WouldBlock || attempts > Self::ATTEMPTS => {
                    return Err(error);
                }
                // The address is this machine's no more: the system picks one.
                (Some(local), Some(locals)) if is_about_source(&error) => {
                    locals.forget(local);
                    src_ip = None;
                }
                // Perhaps that is about a datagram before it, to somebody else.
                _ if self.hears_errors && errors::meaning(&error).is_some() => {}
                _ => return Err(error),
            }
        }
    }

    /// Receives what is there and gives each datagram to `take`; an error if nothing is there.
    pub(crate) fn try_recv(&self, room: &mut Room, mut take: impl FnMut(Path, &[u8])) -> io::Result<()> {
        let mut slices: Vec<_> = room.buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
        let metas = &mut room.metas;
        let asked = slices.len();
        let mut received = Err(io::ErrorKind::WouldBlock.into());
        let _: io::Result<()> = self.socket.try_io(Interest::READABLE, || {
            received = self.state.recv((&self.socket).into(), &mut slices, metas);
            match &received {
                // That was all: it is not asked again before more has come.
                Ok(count) if *count < asked => Err(io::ErrorKind::WouldBlock.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error.kind().into()),
                _ => Ok(()),
            }
        });
        let count = received?;
        for (buffer, meta) in room.buffers.iter().zip(&room.metas).take(count) {
            let received = buffer.get(..meta.len).unwrap_or_default();
            let asked = self.locals.as_ref().zip(meta.dst_ip);
            let local = asked.and_then(|(locals, asked)| locals.answering(asked));
            let path = Path { remote: canonical(meta.addr), local };
            if received.is_empty() {
                take(path, received);
            }
            received.chunks(meta.stride.max(1)).for_each(|datagram| take(path, datagram));
        }
        room.on_filled(count);
        Ok(())
    }

    /// An address in the form in which this socket sends to it.
    fn on_wire(&self, address: SocketAddr) -> SocketAddr {
        if self.is_ipv6 { for_ipv6(address) } else { canonical(address) }
    }
}

/// Reports whether an error may be about the address that a datagram was to leave from.
fn is_about_source(error: &io::Error) -> bool {
    use io::ErrorKind::{AddrNotAvailable, InvalidInput, NetworkUnreachable};
    matches!(error.kind(), AddrNotAvailable | InvalidInput | NetworkUnreachable)
}

fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if matches!(address.ip(), IpAddr::V6(ip) if ip.is_unspecified()) {
        // Where the system's default is otherwise, too.
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}
