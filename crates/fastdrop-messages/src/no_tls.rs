//! Types without values, which stand in for TLS in a program that is built without it.

use crate::inner::Inner;
use std::convert::Infallible;
use std::io;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// The SHA-256 of a certificate, of which there are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(Infallible);

impl Fingerprint {
    #[cfg(feature = "vstp")]
    pub(crate) fn to_bytes(self) -> [u8; 32] {
        match self.0 {}
    }
}

/// The TLS of a client.
#[derive(Debug, Clone)]
pub struct ClientTls(Infallible);

/// The TLS of a server.
#[derive(Debug, Clone)]
pub struct ServerTls(Infallible);

/// A TLS connection that there is not.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file is of no use.
    #[error("{0}")]
    Certificate(String),
    /// No name.
    #[error("no name")]
    Name,
    /// The handshake takes too long.
    #[error("no TLS handshake in time")]
    Timeout,
    /// The peer sends something else than TLS.
    #[error("the peer does not speak TLS")]
    NotTls,
    /// The operating system says no.
    #[error(transparent)]
    Io(#[from] io::Error),
}

pub(crate) struct ServerName<'a>(Infallible, PhantomData<&'a ()>);

impl Clone for ServerName<'_> {
    fn clone(&self) -> Self {
        match self.0 {}
    }
}

#[derive(Debug)]
pub(crate) enum Secured {}

#[derive(Clone)]
pub(crate) struct Acceptor(Infallible);

impl Acceptor {
    pub(crate) fn new(tls: &ServerTls, _inner: &[Inner]) -> Result<Self, TlsError> {
        match tls.0 {}
    }

    pub(crate) async fn accept(&self, _stream: TcpStream) -> Result<Secured, TlsError> {
        match self.0 {}
    }
}

pub(crate) fn host_of(_addr: &str) -> Result<ServerName<'static>, TlsError> {
    Err(TlsError::Name)
}

pub(crate) async fn connect(
    _stream: TcpStream,
    name: ServerName<'static>,
    _tls: &ClientTls,
    _inner: Inner,
) -> Result<Secured, TlsError> {
    match name.0 {}
}

pub(crate) fn named(stream: &Secured) -> Option<Inner> {
    match *stream {}
}

pub(crate) async fn first_byte(stream: &mut Secured) -> io::Result<Option<u8>> {
    match *stream {}
}

pub(crate) fn peer_of(stream: &Secured) -> Option<Fingerprint> {
    match *stream {}
}

pub(crate) fn tcp_of(stream: &Secured) -> &TcpStream {
    match *stream {}
}

impl AsyncRead for Secured {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match *self.get_mut() {}
    }
}

impl AsyncWrite for Secured {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        match *self.get_mut() {}
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match *self.get_mut() {}
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match *self.get_mut() {}
    }
}

#[derive(Debug)]
pub(crate) enum Wire {}

impl From<Secured> for Wire {
    fn from(stream: Secured) -> Self {
        match stream {}
    }
}

impl Wire {
    pub(crate) fn peer(&self) -> Option<Fingerprint> {
        match *self {}
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        match *self {}
    }

    pub(crate) fn has_more(&self) -> bool {
        match *self {}
    }

    pub(crate) fn wants_write(&self) -> bool {
        match *self {}
    }

    pub(crate) fn try_read_buf(&mut self, _: &mut bytes::BytesMut) -> io::Result<usize> {
        match *self {}
    }

    pub(crate) fn try_write(&mut self, _: &[u8]) -> io::Result<usize> {
        match *self {}
    }

    pub(crate) fn try_flush(&mut self) -> io::Result<()> {
        match *self {}
    }

    pub(crate) async fn shutdown(&mut self) -> io::Result<&mut TcpStream> {
        match *self {}
    }

    pub(crate) fn failure(_: &io::Error) -> Option<String> {
        None
    }
}

impl TlsError {
    /// Nothing here is one.
    pub(crate) fn is_refusal(_error: &std::io::Error) -> bool {
        false
    }
}
