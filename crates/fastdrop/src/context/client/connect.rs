//! Connecting to the target, and the upgrade.

use crate::context::client::ClientContext;
use crate::error::Error;
use crate::net::connection::Connection;
use crate::net::tuning::prepare_socket;
use crate::random::random;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use fastdrop_proto::fastdp::{UpgradeRequest, parse_answer};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// How long one address may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the handshake may take after that.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// A connection after the upgrade.
pub(crate) struct Upgraded {
    pub(crate) connection: Arc<Connection>,
    /// Bytes that came with the answer.
    pub(crate) early: Vec<u8>,
    pub(crate) rtt: Duration,
    /// The server is a FastDrop.
    pub(crate) is_fastdrop: bool,
}

/// The key of a connection, or of all connections of a transfer of version 1.0.0.
pub(crate) fn new_key() -> Result<String, Error> {
    Ok(STANDARD_NO_PAD.encode(random::<16>()?))
}

impl ClientContext {
    /// Connects and upgrades.
    pub(crate) fn connect_as(&self, request: &UpgradeRequest) -> Result<Upgraded, Error> {
        let (socket, rtt) = self.dial(self.target.port)?;
        self.upgrade(socket, rtt, request).map_err(|error| match error {
            Error::Network(why) => {
                let host = crate::shown(self.target.host.as_bytes());
                Error::Network(format!("{host} port {}: {why}", self.target.port))
            }
            other => other,
        })
    }

    /// A connection to the target that speaks no protocol yet.
    pub(crate) fn bare(&self, port: u16) -> Result<Arc<Connection>, Error> {
        let (socket, rtt) = self.dial(port)?;
        let lost = |error: std::io::Error| Error::Network(format!("the connection broke: {error}"));
        let connection = Arc::new(Connection::new(socket, rtt).map_err(lost)?);
        self.note_reached(rtt);
        self.stop.watch(&connection);
        Ok(connection)
    }

    /// Connects to a port of the target, and says how long the path is.
    fn dial(&self, port: u16) -> Result<(TcpStream, Duration), Error> {
        if self.stop.is_stopped() {
            return Err(Error::Interrupted);
        }
        let host = crate::shown(self.target.host.as_bytes());
        let unreachable = |error: std::io::Error| {
            let why = error.to_string();
            let why = why.split(" (os error").next().unwrap_or_default();
            Error::Network(format!("cannot reach {host} port {port}: {why}"))
        };
        let addresses = (&self.target.host[..], port).to_socket_addrs();
        let addresses = addresses.map_err(|error| {
            let why = error.to_string();
            let why = why.rsplit(": ").next().unwrap_or_default();
            Error::Network(format!("no such host: {host}: {why}"))
        })?;
        let mut last = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
        for address in addresses {
            let start = Instant::now();
            match connect_to(&address) {
                Ok(socket) => {
                    let rtt = round_trip(&socket, start.elapsed());
                    return Ok((socket, rtt));
                }
                Err(error) => last = error,
            }
        }
        Err(unreachable(last))
    }

    fn upgrade(&self, socket: TcpStream, rtt: Duration, request: &UpgradeRequest) -> Result<Upgraded, Error> {
        let lost = |error: std::io::Error| Error::Network(format!("the connection broke: {error}"));
        socket.set_nodelay(true).map_err(lost)?;
        socket.set_write_timeout(Some(HANDSHAKE_TIMEOUT)).map_err(lost)?;
        (&socket).write_all(&request.encode(&self.target.authority())).map_err(lost)?;
        let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
        let mut bytes = Vec::with_capacity(512);
        let mut buffer = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.stop.is_stopped() {
                return Err(Error::Network("the peer did not answer the handshake in time".into()));
            }
            socket.set_read_timeout(Some(left.min(Duration::from_secs(1)))).map_err(lost)?;
            match (&socket).read(&mut buffer) {
                Ok(0) => {
                    // What came before the end may say why.
                    if bytes.is_empty() {
                        return Err(Error::Network(
                            "the peer closed the connection during the handshake".into(),
                        ));
                    }
                    parse_answer(&[&bytes[..], b"\r\n\r\n"].concat(), request)?;
                    return Err(Error::Network("the peer closed the connection during the handshake".into()));
                }
                Ok(count) => bytes.extend_from_slice(&buffer[..count]),
                Err(error) if is_wait(&error) => continue,
                Err(error) => return Err(lost(error)),
            }
            if let Some(answer) = parse_answer(&bytes, request)? {
                let early = bytes.split_off(answer.len);
                let connection = Connection::new(socket, rtt).map_err(lost)?;
                self.note_reached(rtt);
                let connection = Arc::new(connection);
                return Ok(Upgraded { connection, early, rtt, is_fastdrop: answer.is_fastdrop });
            }
        }
    }

    /// Notes that a connection works.
    fn note_reached(&self, rtt: Duration) {
        // A busy machine makes a round trip look longer, never shorter.
        let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        *reached = Some(reached.map_or(rtt, |before| before.min(rtt)));
    }

    pub(crate) fn rtt(&self) -> Duration {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or_default()
    }
}

fn is_wait(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}

/// The round trip of a connection that took `elapsed` to be made. Between two processes of one
/// machine it is short, however long this one waited for a processor meanwhile.
fn round_trip(socket: &TcpStream, elapsed: Duration) -> Duration {
    let here = |(local, peer): (SocketAddr, SocketAddr)| local.ip() == peer.ip();
    let ends = socket.local_addr().and_then(|local| Ok((local, socket.peer_addr()?)));
    if ends.is_ok_and(here) { elapsed.min(Duration::from_micros(100)) } else { elapsed }
}

/// A connection to `address`, ready for [`Connection::new`].
fn connect_to(address: &SocketAddr) -> std::io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(*address), socket2::Type::STREAM, None)?;
    prepare_socket(&socket, address.ip());
    socket.connect_timeout(&(*address).into(), CONNECT_TIMEOUT)?;
    Ok(socket.into())
}
