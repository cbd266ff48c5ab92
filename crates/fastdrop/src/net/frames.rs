//! Whole frames over a connection.

use crate::error::Error;
use crate::net::connection::{Connection, Ended};
use fastdrop_proto::fastdp::{Control, FrameHeader, FrameKind};
use std::io::{IoSlice, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

impl Connection {
    /// Sends all of `bytes`.
    pub(crate) fn send_bytes(&self, bytes: &[u8]) -> Result<(), Ended> {
        self.send(&mut [IoSlice::new(bytes)], usize::MAX, |_| Duration::ZERO)
    }

    /// Sends one control frame.
    pub(crate) fn send_control(&self, control: &Control) -> Result<(), Ended> {
        self.send_bytes(&control.encode())
    }

    /// Sends several control frames.
    pub(crate) fn send_controls(&self, controls: &[Control]) -> Result<(), Ended> {
        controls.iter().try_for_each(|control| self.send_control(control))
    }
}

/// The next `left` bytes of a connection.
#[derive(Debug)]
pub(crate) struct Payload<'a> {
    reader: &'a mut FrameReader,
    left: u64,
    /// The end of the connection, if it did so too early.
    pub(crate) ended: Option<Ended>,
}

impl<'a> Payload<'a> {
    pub(crate) fn new(reader: &'a mut FrameReader, left: u64) -> Self {
        Self { reader, left, ended: None }
    }
}

impl Read for Payload<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        match self.reader.read_some(&mut buffer[..most]) {
            Ok(count) if count > 0 => {
                self.left -= count as u64;
                Ok(count)
            }
            ended => {
                self.ended = Some(ended.err().unwrap_or_else(|| Ended::Broken("it ended too early".into())));
                Err(std::io::ErrorKind::UnexpectedEof.into())
            }
        }
    }
}

/// Reads frames from a connection.
#[derive(Debug)]
pub(crate) struct FrameReader {
    connection: Arc<Connection>,
    /// Bytes that came with the handshake.
    early: Vec<u8>,
    early_at: usize,
    deadline: Option<Instant>,
}

impl FrameReader {
    /// Reads what follows `early`, bytes that were read before.
    pub(crate) fn new(connection: Arc<Connection>, early: Vec<u8>) -> Self {
        Self { connection, early, early_at: 0, deadline: None }
    }

    /// The connection.
    pub(crate) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Fills `buffer`; [`Ended::Closed`] only before its first byte.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Ended> {
        let early = &self.early[self.early_at..];
        let mut filled = early.len().min(buffer.len());
        buffer[..filled].copy_from_slice(&early[..filled]);
        self.early_at += filled;
        let mut moved_at = Instant::now();
        while filled < buffer.len() {
            if self.deadline.is_some_and(|deadline| Instant::now() > deadline) {
                return Err(Ended::Late);
            }
            match self.connection.read(&mut buffer[filled..], true) {
                Ok(0) if self.connection.is_stopped() => return Err(Ended::Stopped),
                Ok(0) if filled == 0 => return Err(Ended::Closed),
                Ok(0) => return Err(Ended::Broken("it ended inside a frame".into())),
                Ok(count) => {
                    filled += count;
                    moved_at = Instant::now();
                }
                Err(error) => self.connection.waited(&error, moved_at)?,
            }
        }
        Ok(())
    }

    /// Has [`Self::fill`] fail with [`Ended::Late`] after `deadline`, however much still comes.
    pub(crate) fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    /// Reads what there is, at least one byte; 0 only at the end.
    pub(crate) fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, Ended> {
        if self.early_at < self.early.len() {
            let count = buffer.len().min(self.early.len() - self.early_at);
            self.fill(&mut buffer[..count])?;
            return Ok(count);
        }
        let moved_at = Instant::now();
        loop {
            match self.connection.read(buffer, false) {
                Ok(0) if self.connection.is_stopped() => return Err(Ended::Stopped),
                Ok(count) => return Ok(count),
                Err(error) => self.connection.waited(&error, moved_at)?,
            }
        }
    }

    /// Reports whether bytes, or the end of them, come within `patience`.
    pub(crate) fn comes_within(&self, patience: Duration) -> bool {
        self.early_at < self.early.len() || self.connection.comes_within(patience)
    }

    /// The next frame's header.
    pub(crate) fn header(&mut self) -> Result<FrameHeader, Error> {
        let mut bytes = [0; FrameHeader::LEN];
        self.fill(&mut bytes)?;
        Ok(FrameHeader::decode(bytes)?)
    }

    /// The control frame that `header` began. Its size was checked with its type.
    pub(crate) fn control(&mut self, kind: u32, size: u32) -> Result<Control, Error> {
        Ok(Control::decode(kind, &self.payload(size)?)?)
    }

    /// The payload of a control frame.
    pub(crate) fn payload(&mut self, size: u32) -> Result<Vec<u8>, Error> {
        let mut payload = vec![0; size as usize];
        match self.fill(&mut payload) {
            Err(Ended::Closed) => Err(Ended::Broken("it ended inside a frame".into()).into()),
            Err(ended) => Err(ended.into()),
            Ok(()) => Ok(payload),
        }
    }

    /// The next frame, which must be a control frame.
    pub(crate) fn next_control(&mut self) -> Result<Control, Error> {
        let header = self.header()?;
        match header.kind {
            FrameKind::Control(kind) => self.control(kind, header.size),
            _ => Err(Error::protocol("a chunk where none can be")),
        }
    }
}
