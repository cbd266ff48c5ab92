//! One port for VSTP and CNP, by TCP and by UDP (docs/protocol/cnp.md, section 10).

use crate::cnp::{self, ServerBuilder};
use crate::datagrams::{Path, Socket};
use crate::incoming::{Carried, Incoming};
use crate::inner::Inner;
use crate::places::{Limits, Origin, Places};
use crate::tls::{self, Acceptor, TlsError};
use crate::vstp::tcp::TcpConfig;
use crate::vstp::udp::UdpServerLimits;
use crate::vstp::{VstpError, VstpTcpServer, VstpUdpServer};
use fastdrop_proto::cnp::ConfigError;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream, ToSocketAddrs};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};

/// The servers behind one port, to be taken apart.
pub struct Port {
    /// Frames by TCP.
    pub vstp_tcp: Option<VstpTcpServer>,
    /// Frames and messages by UDP.
    pub vstp_udp: Option<VstpUdpServer>,
    /// Acknowledged messages by either.
    pub cnp: cnp::Server,
    /// Looks at connections that come, until it is dropped.
    pub sorting: Sorting,
    /// The address that it listens on.
    pub address: SocketAddr,
}

/// The task that finds out what each connection speaks. When it is dropped, nothing more comes
/// by TCP.
#[derive(Debug)]
pub struct Sorting(#[expect(dead_code, reason = "ends its task when it is dropped")] JoinSet<()>);

/// The reason for which there is no port.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PortError {
    /// VSTP says no.
    #[error(transparent)]
    Vstp(#[from] VstpError),
    /// A certificate or key is of no use.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// CNP says no.
    #[error(transparent)]
    Cnp(#[from] cnp::Error),
    /// The operating system says no.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The settings of the servers behind a port.
#[derive(Debug, Default)]
pub struct PortConfig {
    /// VSTP by TCP.
    pub vstp_tcp: TcpConfig,
    /// VSTP by UDP.
    pub vstp_udp: UdpServerLimits,
    /// CNP, which also says by which transports all of them are spoken, and that they are inside
    /// TLS ([`ServerBuilder::tls`]): then there is TCP alone, for both.
    pub cnp: ServerBuilder,
}

impl Port {
    /// Connections whose first byte has not come; one more, and the one that has waited longest is
    /// closed.
    const WAITING_MAX: usize = 1024;
    /// The time that the first byte may take. Programs of VSTP may be silent at first.
    const WAITING_TIME: Duration = Duration::from_secs(60);
    /// Connections that were looked at, and that their server has not taken; one more is closed.
    const HANDED_MAX: usize = 1024;

    /// Listens.
    pub async fn bind(addr: impl ToSocketAddrs, mut config: PortConfig) -> Result<Self, PortError> {
        let none = || io::Error::new(io::ErrorKind::NotFound, "no address");
        let mut address = tokio::net::lookup_host(addr).await?.next().ok_or_else(none)?;
        let (tcp, udp) = config.cnp.transports();
        let tls = config.cnp.take_tls();
        if tls.is_some() && udp {
            return Err(cnp::Error::Config(ConfigError("TLS is for TCP: a port with it has no UDP")).into());
        }
        let both = [Inner::Vstp, Inner::Cnp];
        let tls = tls.map(|tls| Acceptor::new(&tls, &both)).transpose()?;
        let mut sorting = JoinSet::new();
        let (mut vstp_tcp, mut incoming) = (None, None);
        if tcp {
            let listener = TcpListener::bind(address).await?;
            // If a port was picked, it is one for both.
            address = listener.local_addr()?;
            let (vstp, for_vstp) = mpsc::channel(Self::HANDED_MAX);
            let (cnp, for_cnp) = mpsc::channel(Self::HANDED_MAX);
            let frames = Incoming::handed(for_vstp, address, config.vstp_tcp.places());
            vstp_tcp = Some(VstpTcpServer::new(frames, config.vstp_tcp, None));
            incoming = Some(Incoming::handed(for_cnp, address, config.cnp.places()));
            sorting.spawn(sort(listener, tls, vstp, cnp, Self::WAITING_MAX));
        }
        let socket = if udp { Some(Arc::new(Socket::bind(address).await?)) } else { None };
        if let Some(socket) = &socket {
            address = socket.local_addr()?;
        }
        let (receives, received) = oneshot::channel();
        let (cnp, listener) = config.cnp.start(address, incoming, socket.clone(), Some(received))?;
        let vstp_udp = match (socket, listener) {
            (Some(socket), Some(listener)) => {
                let others = move |path: Path, datagram: &[u8]| {
                    // Dropped with this, upon which CNP receives for itself.
                    let _: &oneshot::Sender<Infallible> = &receives;
                    if datagram.first() == Some(&0) {
                        listener
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .handle_datagram(path, datagram);
                    }
                };
                Some(VstpUdpServer::share(socket, config.vstp_udp, Box::new(others))?)
            }
            _ => None,
        };
        Ok(Self { vstp_tcp, vstp_udp, cnp, sorting: Sorting(sorting), address })
    }
}

type Handed = mpsc::Sender<(Carried, SocketAddr)>;

/// Finds out what a connection speaks: by its first byte; of TLS by what the handshake has named,
/// or else by the first byte inside. None for neither.
async fn look(stream: TcpStream, tls: Option<&Acceptor>) -> io::Result<(Carried, Option<Inner>)> {
    let Some(acceptor) = tls else {
        let mut first = [0xff];
        stream.peek(&mut first).await?;
        return Ok((Carried::Plain(stream), Inner::of_first_byte(first[0])));
    };
    let mut stream = Box::new(acceptor.accept(stream).await.map_err(io::Error::other)?);
    let inner = match tls::named(&stream) {
        None => tls::first_byte(&mut stream).await?.and_then(Inner::of_first_byte),
        named => named,
    };
    Ok((Carried::Secured(stream), inner))
}

/// Accepts, and hands each connection to whom it is meant for. Of those whose first byte has not
/// come, `waiting_max` are kept.
async fn sort(listener: TcpListener, tls: Option<Acceptor>, vstp: Handed, cnp: Handed, waiting_max: usize) {
    let mut looking = JoinSet::new();
    let mut oldest = VecDeque::new();
    let places = Places::new(Limits { all: waiting_max, of_one: waiting_max });
    loop {
        while looking.try_join_next().is_some() {}
        if oldest.len() >= 2 * waiting_max {
            oldest.retain(|task: &AbortHandle| !task.is_finished());
        }
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "could not accept");
                tokio::time::sleep(Incoming::ACCEPT_PAUSE).await;
                continue;
            }
        };
        let mut place = places.take(Instant::now(), Origin::of(peer.ip()));
        while place.is_none()
            && let Some(task) = oldest.pop_front()
        {
            if task.is_finished() {
                continue;
            }
            // Nobody has more than its share. This one ends at once, so the wait for one that ends
            // is short, as it would not be if all were silent.
            task.abort();
            looking.join_next().await;
            place = places.take(Instant::now(), Origin::of(peer.ip()));
        }
        let Some(place) = place else { continue };
        let (tls, vstp, cnp) = (tls.clone(), vstp.clone(), cnp.clone());
        oldest.push_back(looking.spawn(async move {
            let look = async {
                let (stream, inner) = look(stream, tls.as_ref()).await?;
                let to = match inner {
                    Some(Inner::Vstp) => vstp,
                    Some(Inner::Cnp) => cnp,
                    None => {
                        tracing::info!(%peer, "neither VSTP nor CNP");
                        return Ok(());
                    }
                };
                to.try_send((stream, peer)).map_err(|error| match error {
                    TrySendError::Full(_) => io::Error::other("too many connections"),
                    TrySendError::Closed(_) => io::Error::other("nobody serves this protocol any more"),
                })
            };
            let looked = tokio::select! {
                looked = tokio::time::timeout(Port::WAITING_TIME, look) => looked,
                () = place.lost() => return tracing::debug!(%peer, "others have its place"),
            };
            match looked {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%peer, %error, "not handed on"),
                Err(_) => tracing::debug!(%peer, "said nothing in time"),
            }
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn silent_connections_behind_one_that_has_ended_do_not_stop_the_port() {
        const WAITING_MAX: usize = 8;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (vstp, mut for_vstp) = mpsc::channel(1);
        let (cnp, _for_cnp) = mpsc::channel(1);
        let mut sorting = JoinSet::new();
        sorting.spawn(sort(listener, None, vstp, cnp, WAITING_MAX));
        let mut ended = TcpStream::connect(address).await.unwrap();
        ended.write_all(b"?").await.unwrap();
        let _ = ended.read_to_end(&mut Vec::new()).await;
        let mut silent = Vec::new();
        for _ in 0..=WAITING_MAX {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"V").await.unwrap();
        // Long before the silent ones are given up.
        let handed = tokio::time::timeout(Port::WAITING_TIME / 3, for_vstp.recv()).await;
        let (_, peer) = handed.expect("served in time").unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
    }
}
