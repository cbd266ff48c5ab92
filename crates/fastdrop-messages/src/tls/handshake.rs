//! Handshakes, at either end.

use super::error::{HANDSHAKE_MAX, TlsError};
use super::identity::{Fingerprint, fingerprint};
use super::trust::{ClientTls, ServerTls};
use crate::inner::Inner;
use rustls::pki_types::ServerName;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
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
    /// For a port that speaks these protocols.
    pub(crate) fn new(tls: &ServerTls, inner: &[Inner]) -> Result<Self, TlsError> {
        Ok(Self(TlsAcceptor::from(tls.config(inner)?)))
    }

    /// The handshake with a client that has connected. One that speaks in plain text is told, in
    /// words of its protocol, and nothing of it is taken.
    pub(crate) async fn accept(&self, stream: TcpStream) -> Result<Secured, TlsError> {
        let handshake = async {
            let mut first = [0xff];
            stream.peek(&mut first).await?;
            match Inner::of_first_byte(first[0]) {
                Some(plain) => Ok(Err((plain, stream))),
                None => Ok::<_, TlsError>(Ok(self.0.accept(stream).into_fallible().await)),
            }
        };
        let handshake = tokio::time::timeout(HANDSHAKE_MAX, handshake).await;
        let handshake = match handshake.map_err(|_| TlsError::Timeout)?? {
            Ok(handshake) => handshake,
            Err((plain, mut stream)) => {
                let refused = async {
                    stream.write_all(&plain.refusal()).await?;
                    end(stream).await
                };
                let _ = tokio::time::timeout(LINGER, refused).await;
                return Err(TlsError::NotTls);
            }
        };
        let (error, stream) = match handshake {
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

/// The protocol that the handshake has named, if the client has named any.
pub(crate) fn named(stream: &Secured) -> Option<Inner> {
    stream.get_ref().1.alpn_protocol().and_then(Inner::of_alpn)
}

/// The first byte that the peer says inside, which stays to be read; None at its end.
pub(crate) async fn first_byte(stream: &mut Secured) -> io::Result<Option<u8>> {
    Ok(stream.fill_buf().await?.first().copied())
}

/// The fingerprint of the certificate that the peer has shown.
pub(crate) fn peer_of(stream: &Secured) -> Option<Fingerprint> {
    peer_in(stream.get_ref().1)
}

/// The connection under TLS.
pub(crate) fn tcp_of(stream: &Secured) -> &TcpStream {
    stream.get_ref().0
}

pub(super) fn peer_in(connection: &rustls::CommonState) -> Option<Fingerprint> {
    connection.peer_certificates()?.first().map(fingerprint)
}
