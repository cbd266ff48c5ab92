//! Chunks off the connections of one transfer, one after the other.

use crate::admission::permit::ConnectionPermit;
use crate::context::server::ServerContext;
use crate::error::Error;
use crate::legacy::fastdp1::payload::{Hash, io_error};
use crate::legacy::fastdp1::returns::{Joined, Return};
use crate::net::connection::Ended;
use crate::net::frames::FrameReader;
use crate::storage::io::read_exact_at;
use crate::storage::single::BUFFER;
use fastdrop_proto::fastdp::Version;
use fastdrop_proto::fastdp::v1::{ChunkPrefix, Header, Receiver};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Connections in a row that may bring nothing new.
const IN_VAIN_MAX: u32 = 16;
/// Repetitions of its header that a sender of 1.0.0 is answered.
const REPEATED_MAX: u32 = 8;
/// Time for a sender of nothing to repeat its header.
const REPEATED_TIMEOUT: Duration = Duration::from_secs(2);

/// The chunks of a transfer, from whichever connection brings them.
pub(crate) struct Chunks<'a> {
    context: &'a Arc<ServerContext>,
    pub(crate) reader: FrameReader,
    permit: ConnectionPermit,
    pub(crate) header: Header,
    header_bytes: Vec<u8>,
    /// The header may still come again: no chunk has come.
    fresh: bool,
    repeated: u32,
    /// The line in which its next connections wait; 1.1.0 has none.
    joined: Option<Joined>,
    pub(crate) proto: Receiver,
    in_vain: u32,
    bytes_before: u64,
}

impl<'a> Chunks<'a> {
    pub(crate) fn new(
        context: &'a Arc<ServerContext>,
        arrived: Return,
        header: Header,
        header_bytes: Vec<u8>,
        joined: Option<Joined>,
        proto: Receiver,
    ) -> Self {
        let Return { reader, permit } = arrived;
        Self {
            context,
            reader,
            permit,
            header,
            header_bytes,
            fresh: true,
            repeated: 0,
            joined,
            proto,
            in_vain: 0,
            bytes_before: 0,
        }
    }

    pub(crate) fn payload_bytes(&self) -> u64 {
        self.proto.bytes()
    }

    /// What stands before the next chunk.
    pub(crate) fn prefix(&mut self) -> Result<ChunkPrefix, Error> {
        loop {
            let mut bytes = [0; ChunkPrefix::LEN];
            match self.reader.fill(&mut bytes) {
                Ok(()) if self.fresh && self.header_bytes.starts_with(&bytes) => {
                    self.repeated_header(bytes)?
                }
                Ok(()) => {
                    self.fresh = false;
                    let prefix = ChunkPrefix::decode(bytes);
                    self.proto.expect(prefix)?;
                    return Ok(prefix);
                }
                Err(ended) => self.reconnect(ended)?,
            }
        }
    }

    /// The sender says its header once more, which no chunk can be taken for: one of that number
    /// would be far too large. A sender of 1.0.0 reads an answer for each.
    fn repeated_header(&mut self, first: [u8; ChunkPrefix::LEN]) -> Result<(), Error> {
        let mut rest = vec![0; self.header_bytes.len() - first.len()];
        self.reader.fill(&mut rest)?;
        self.repeated += 1;
        if !self.header_bytes.ends_with(&rest) {
            return Err(Error::protocol("a second header that differs from the first"));
        }
        if self.repeated > REPEATED_MAX {
            return Err(Error::protocol("the same header again and again"));
        }
        if self.header.version == Version::V1_0 {
            // If this fails, so does reading what follows.
            let _ = self.reader.connection().send_bytes(&self.header.encode_answer());
        }
        Ok(())
    }

    /// Answers what a sender of 1.0.0 may still ask once an empty file has its name: of that nobody
    /// waits for a chunk.
    pub(crate) fn answer_repeated_headers(&mut self) {
        let until = Instant::now() + REPEATED_TIMEOUT;
        while self.fresh && Instant::now() < until && !self.context.stop.is_stopped() {
            if !self.reader.comes_within(Duration::from_millis(100)) {
                continue;
            }
            let mut bytes = [0; ChunkPrefix::LEN];
            let came = self.reader.fill(&mut bytes).is_ok() && self.header_bytes.starts_with(&bytes);
            if !came || self.repeated_header(bytes).is_err() {
                return;
            }
        }
    }

    /// Fills `buffer` from the chunk; false if the connection was
    /// lost and another has taken its place.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) -> Result<bool, Error> {
        match self.reader.fill(buffer) {
            Ok(()) => Ok(true),
            Err(ended) => self.reconnect(ended).map(|()| false),
        }
    }

    /// Waits for the connection that continues the transfer.
    pub(crate) fn reconnect(&mut self, ended: Ended) -> Result<(), Error> {
        let joined = match &self.joined {
            Some(joined) if !self.context.stop.is_stopped() => joined,
            _ => {
                return Err(match ended {
                    Ended::Closed => Error::protocol("the sender ended before everything had come"),
                    ended => ended.into(),
                });
            }
        };
        let bytes = self.proto.bytes();
        self.in_vain = if bytes > self.bytes_before { 0 } else { self.in_vain + 1 };
        self.bytes_before = bytes;
        if self.in_vain > IN_VAIN_MAX {
            return Err(Error::protocol("the sender comes again and again, and brings nothing new"));
        }
        // An end in good order would say that the file is complete.
        self.reader.connection().reset_now();
        self.permit = ConnectionPermit::default();
        let next = joined.next(&self.context.stop);
        let Return { reader, permit } =
            next.ok_or_else(|| Error::Network("the sender did not come back".into()))?;
        (self.reader, self.permit) = (reader, permit);
        (self.fresh, self.repeated) = (true, 0);
        Ok(())
    }

    /// Compares the payload's SHA-256 with what was announced; `hash` covers its
    /// beginning, and `file` has all of it.
    pub(crate) fn verify(&self, hash: Hash, file: impl AsFd) -> Result<(), Error> {
        let Some(expected) = self.header.checksum else { return Ok(()) };
        let mut hash = hash;
        let file = file.as_fd().try_clone_to_owned().map_err(io_error)?;
        let mut buffer = vec![0; BUFFER];
        let size = self.payload_bytes();
        while hash.bytes() < size {
            let count = (size - hash.bytes()).min(BUFFER as u64) as usize;
            read_exact_at(&file, &mut buffer[..count], hash.bytes())
                .map_err(|errno| Error::system("reading back", errno))?;
            hash.update(&buffer[..count]);
        }
        hash.compare(expected)
    }
}
