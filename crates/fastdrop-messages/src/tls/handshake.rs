//! Handshakes, at either end.

use super::error::{HANDSHAKE_MAX, TlsError};
use super::identity::{Fingerprint, fingerprint};
use super::inner::Inner;
use super::trust::{ClientTls, ServerTls};
use rustls::pki_types::ServerName;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// A connection whose handshake is done.
pub(crate) type Secured = TlsStream<TcpStream>;

/// The time that a client has to see why there is no session, and the bytes that it may say
/// meanwhile.
const LINGER: Duration = Duration::from_secs(1);
const REST_MAX: u64 = 1 << 20;

/// The host in `host:port`, as a certificate names it.
pub(crate) fn host_of(addr: &str) -> Result<ServerName<'static>, TlsError> {
    let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    // A zone says how to get there; certificates know none.
    let host = host.split_once('%').map_or(host, |(host, _)| host);
    ServerName::try_from(host.to_owned()).map_err(|_| TlsError::Name)
}

/// The handshake of a client with a server that is to have this name.
pub(crate) async fn connect(
    stream: TcpStream,
    name: ServerName<'static>,
    tls: &ClientTls,
    inner: Inner,
) -> Result<Secured, TlsError> {
    let connector = TlsConnector::from(tls.config(inner)?);
    let handshake = tokio::time::timeout(HANDSHAKE_MAX, connector.connect(name, stream)).await;
    Ok(handshake.map_err(|_| TlsError::Timeout)?.map_err(TlsError::of_io)?.into())
}

/// The server's part of handshakes.
#[derive(Clone)]
pub(crate) struct Acceptor(TlsAcceptor);

impl Acceptor {
    pub(crate) fn new(tls: &ServerTls, inner: Inner) -> Result<Self, TlsError> {
        Ok(Self(TlsAcceptor::from(tls.config(inner)?)))
    }

    /// The handshake with a client that has connected.
    pub(crate) async fn accept(&self, stream: TcpStream) -> Result<Secured, TlsError> {
        let accepting = self.0.accept(stream).into_fallible();
        let handshake = tokio::time::timeout(HANDSHAKE_MAX, accepting).await;
        let (error, stream) = match handshake.map_err(|_| TlsError::Timeout)? {
            Ok(stream) => return Ok(stream.into()),
            Err(failed) => failed,
        };
        // A client may have said more already; if that stays unread, it never sees the alert.
        let _ = tokio::time::timeout(LINGER, end(stream)).await;
        Err(TlsError::of_io(error))
    }
}

/// Ends this side, and drops what the other one says until it ends as well.
async fn end(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    let mut rest = stream.take(REST_MAX);
    tokio::io::copy(&mut rest, &mut tokio::io::sink()).await.map(drop)
}

/// The fingerprint of the certificate that the peer has shown.
pub(crate) fn peer_of(stream: &Secured) -> Option<Fingerprint> {
    peer_in(stream.get_ref().1)
}

pub(super) fn peer_in(connection: &rustls::CommonState) -> Option<Fingerprint> {
    connection.peer_certificates()?.first().map(fingerprint)
}
