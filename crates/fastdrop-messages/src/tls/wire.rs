//! A TLS connection that is read and written without waiting.

use super::error::TlsError;
use super::handshake::{Secured, peer_in};
use super::identity::Fingerprint;
use bytes::{Buf, BytesMut};
use rustls::Connection;
use std::io::{self, BufRead, Read, Write};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// A TLS connection whose handshake is done.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: TcpStream,
    tls: Connection,
    /// Records that have been read from the stream and not been taken by `tls`.
    records: BytesMut,
    /// Nothing can be written any more.
    write_failed: bool,
    /// The last reading has left something that needs no more from the stream.
    more: bool,
}

struct TryWrite<'a>(&'a TcpStream);

impl Write for TryWrite<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, bytes: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl From<Secured> for Wire {
    fn from(stream: Secured) -> Self {
        let (stream, tls) = match stream {
            Secured::Client(stream) => {
                let (stream, tls) = stream.into_inner();
                (stream, tls.into())
            }
            Secured::Server(stream) => {
                let (stream, tls) = stream.into_inner();
                (stream, tls.into())
            }
        };
        Self::new(stream, tls)
    }
}

impl Wire {
    /// Bytes of records that are read at once.
    const READ: usize = 64 << 10;
    /// Bytes that one call gives.
    const TAKE: usize = 256 << 10;

    fn new(stream: TcpStream, tls: Connection) -> Self {
        // What came with the end of the handshake is there already.
        Self { stream, tls, records: BytesMut::new(), write_failed: false, more: true }
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// The fingerprint of the certificate that the peer has shown.
    pub(crate) fn peer(&self) -> Option<Fingerprint> {
        peer_in(&self.tls)
    }

    /// Reports whether something may be read before more comes.
    pub(crate) fn has_more(&self) -> bool {
        self.more
    }

    /// Reports whether something waits to be written.
    pub(crate) fn wants_write(&self) -> bool {
        !self.write_failed && self.tls.wants_write()
    }

    /// Reads what is there, up to a bound.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if nothing is there; `UnexpectedEof` if the stream has ended without
    /// close_notify, upon which 0 bytes are the end.
    pub(crate) fn try_read_buf(&mut self, out: &mut BytesMut) -> io::Result<usize> {
        let mut total = 0;
        self.more = true;
        while total < Self::TAKE {
            match self.try_read_some(out) {
                Ok(0) => return Ok(total),
                Ok(count) => total += count,
                Err(error) => {
                    self.more = error.kind() != io::ErrorKind::WouldBlock;
                    return if total > 0 { Ok(total) } else { Err(error) };
                }
            }
        }
        Ok(total)
    }

    fn try_read_some(&mut self, out: &mut BytesMut) -> io::Result<usize> {
        loop {
            let mut reader = self.tls.reader();
            match reader.fill_buf() {
                Ok(bytes) => {
                    let count = bytes.len();
                    out.extend_from_slice(bytes);
                    reader.consume(count);
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            let ended = self.records.is_empty() && {
                self.records.reserve(Self::READ);
                match self.stream.try_read_buf(&mut self.records) {
                    Ok(count) => count == 0,
                    Err(error) => {
                        // It may be long until something comes.
                        self.records = BytesMut::new();
                        return Err(error);
                    }
                }
            };
            let mut records = &self.records[..];
            let before = records.remaining();
            // Of an empty slice it learns that the stream has ended.
            let taken = self.tls.read_tls(&mut records as &mut dyn Read)?;
            debug_assert!(taken == before - records.remaining() && (taken > 0 || ended));
            self.records.advance(taken);
            if let Err(error) = self.tls.process_new_packets() {
                // The peer is told, if that can be written at once.
                let _ = self.try_flush();
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }

    /// Takes what there is room for, and writes what can be written.
    pub(crate) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.tls.writer().write(bytes)?;
        match self.try_flush() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && taken > 0 => Ok(taken),
            Err(error) => Err(error),
            Ok(()) => Ok(taken),
        }
    }

    /// Writes what waits.
    pub(crate) fn try_flush(&mut self) -> io::Result<()> {
        while self.wants_write() {
            if let Err(error) = self.tls.write_tls(&mut TryWrite(&self.stream)) {
                self.write_failed = error.kind() != io::ErrorKind::WouldBlock;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Says that nothing more is written, and waits until that has left.
    pub(crate) async fn shutdown(&mut self) -> io::Result<&mut TcpStream> {
        self.tls.send_close_notify();
        loop {
            match self.try_flush() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.stream.writable().await?,
                result => break result?,
            }
        }
        self.stream.shutdown().await?;
        Ok(&mut self.stream)
    }

    /// The words for an error of reading, if it is one of TLS.
    pub(crate) fn failure(error: &io::Error) -> Option<String> {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>())?;
        Some(TlsError::of(tls).to_string())
    }
}
