//! The connection under a stream of packets: plain TCP, or TLS over it.

use crate::tls::{self, Fingerprint};
use bytes::BytesMut;
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;

/// Plain TCP, or TLS over it, read and written without waiting.
#[derive(Debug)]
pub(super) enum Wire {
    Plain(TcpStream),
    Tls(Box<tls::Wire>),
    /// A pipe within the process, in virtual time.
    #[cfg(test)]
    Pipe(super::one_read::Pipe),
}

/// The end of what can be read.
#[derive(Debug)]
pub(super) enum End {
    /// The peer has ended its side, or the connection broke.
    Stream,
    /// The stream ended, and the peer had not said so by close_notify.
    Truncated,
    /// TLS says no, in these words.
    Tls(String),
}

impl Wire {
    /// Bytes that the peer may say after the end.
    const REST_MAX: u64 = 1 << 20;

    /// The fingerprint of the certificate that the peer has shown.
    pub(super) fn fingerprint(&self) -> Option<Fingerprint> {
        match self {
            Self::Tls(wire) => wire.peer(),
            _ => None,
        }
    }

    /// Reads what is there; None if nothing is.
    pub(super) fn try_read_buf(&mut self, out: &mut BytesMut) -> Result<Option<usize>, End> {
        let read = match self {
            Self::Plain(stream) => stream.try_read_buf(out),
            Self::Tls(wire) => wire.try_read_buf(out),
            #[cfg(test)]
            Self::Pipe(pipe) => pipe.try_read_buf(out),
        };
        match read {
            Ok(0) => Err(End::Stream),
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => {
                tracing::debug!(%error, "the connection broke");
                Err(match (&self, tls::Wire::failure(&error)) {
                    (_, Some(words)) => End::Tls(words),
                    (Self::Tls(_), None) => End::Truncated,
                    (_, None) => End::Stream,
                })
            }
        }
    }

    /// Takes as much as there is room for.
    pub(super) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.try_write(bytes),
            Self::Tls(wire) => wire.try_write(bytes),
            #[cfg(test)]
            Self::Pipe(pipe) => pipe.try_write(bytes),
        }
    }

    /// Writes what was taken.
    pub(super) fn try_flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tls(wire) => wire.try_flush(),
            _ => Ok(()),
        }
    }

    /// Reports whether something that was taken has not been written.
    pub(super) fn wants_write(&self) -> bool {
        match self {
            Self::Tls(wire) => wire.wants_write(),
            _ => false,
        }
    }

    /// Waits until more can be read, or written.
    pub(super) async fn ready(&mut self, interest: Interest) -> io::Result<()> {
        match self {
            Self::Tls(wire) if interest.is_readable() && wire.has_more() => Ok(()),
            Self::Plain(stream) => stream.ready(interest).await.map(drop),
            Self::Tls(wire) => wire.stream().ready(interest).await.map(drop),
            #[cfg(test)]
            Self::Pipe(pipe) => pipe.readable().await,
        }
    }

    /// Ends this side, and waits for the end of the other one.
    pub(super) async fn farewell(&mut self) -> io::Result<()> {
        let stream = match self {
            Self::Plain(stream) => {
                stream.shutdown().await?;
                stream
            }
            Self::Tls(wire) => wire.shutdown().await?,
            #[cfg(test)]
            Self::Pipe(_) => return Ok(()),
        };
        let mut rest = stream.take(Self::REST_MAX);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await.map(drop)
    }
}
