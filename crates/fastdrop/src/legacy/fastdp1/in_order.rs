//! A payload that is decoded as it arrives, from its beginning to its end.

use crate::codec::archive::{one_file, read_tar_gz};
use crate::codec::decode::{DecodeError, expect_end, zstd_frame};
use crate::error::Error;
use crate::legacy::fastdp1::chunks::Chunks;
use crate::legacy::fastdp1::payload::{Decoded, Hash, Spool};
use crate::net::connection::Ended;
use crate::storage::single::{BUFFER, StagedFile};
use fastdrop_proto::fastdp::v1::{ChunkPrefix, Compression, Verdict};
use std::io::{BufReader, Read};

/// A payload from its beginning to its end, in whatever order its chunks come.
struct InOrder<'c, 'a> {
    chunks: &'c mut Chunks<'a>,
    spool: Spool<'c>,
    /// The place of the chunk that is being read.
    next: u32,
    /// What of it has been read, also over an earlier connection.
    consumed: u32,
    /// Where the rest of it comes from.
    current: Option<Current>,
    hash: Hash,
    /// Why reading ended, if not because all had been read.
    error: Option<Error>,
}

struct Current {
    prefix: ChunkPrefix,
    left: u32,
    /// Bytes that were read to judge it.
    ahead: Vec<u8>,
    spooled: bool,
}

/// Bytes of a chunk by which it is judged.
const BEGINNING: usize = 8;

impl InOrder<'_, '_> {
    fn try_read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        loop {
            if let Some(count) = self.read_current(buffer)? {
                return Ok(count);
            }
            if self.chunks.proto.is_beyond(self.next) {
                return Ok(0);
            }
            if self.chunks.proto.is_held(self.next) {
                self.begin_spooled()?;
            } else {
                self.begin_next()?;
            }
        }
    }

    /// Reads on in the current chunk; None if there is none.
    fn read_current(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, Error> {
        let Some(current) = &mut self.current else { return Ok(None) };
        if current.left == 0 {
            let current = self.current.take();
            if let Some(current) = current.filter(|current| !current.spooled) {
                self.chunks.proto.handle_received(current.prefix);
            }
            (self.next, self.consumed) = (self.next + 1, 0);
            return Ok(None);
        }
        let most = buffer.len().min(current.left as usize);
        let count = if !current.ahead.is_empty() {
            let count = most.min(current.ahead.len());
            buffer[..count].copy_from_slice(&current.ahead[..count]);
            current.ahead.drain(..count);
            count
        } else if current.spooled {
            let at = u64::from(current.prefix.number) * u64::from(self.chunks.header.one_chunk);
            self.spool.read(&mut buffer[..most], at + u64::from(self.consumed))?;
            most
        } else {
            match self.chunks.reader.read_some(&mut buffer[..most]) {
                Ok(count) if count > 0 => count,
                ended => {
                    // The chunk comes again; what was read of it is not read twice.
                    self.current = None;
                    self.chunks.reconnect(ended.err().unwrap_or(Ended::Closed))?;
                    return Ok(None);
                }
            }
        };
        current.left -= count as u32;
        self.consumed += count as u32;
        self.hash.update(&buffer[..count]);
        Ok(Some(count))
    }

    fn begin_spooled(&mut self) -> Result<(), Error> {
        let next = self.next;
        let proto = &self.chunks.proto;
        let (size, first) = (proto.size_of(next), proto.first().unwrap_or(0));
        let prefix = ChunkPrefix { number: next + first, size };
        self.current = Some(Current {
            prefix,
            left: size.saturating_sub(self.consumed),
            ahead: Vec::new(),
            spooled: true,
        });
        Ok(())
    }

    /// Takes the next chunk off the connection: it is current, or
    /// goes to the spool file, or is dropped.
    fn begin_next(&mut self) -> Result<(), Error> {
        let prefix = self.chunks.prefix()?;
        let mut ahead = vec![0; BEGINNING.min(prefix.size as usize)];
        if !self.chunks.fill(&mut ahead)? {
            return Ok(());
        }
        let verdict = self.chunks.proto.judge(prefix, &ahead)?;
        if self.chunks.proto.poll_shift() {
            return Err(Error::protocol("numbers that begin at 1 and yet contain 0"));
        }
        if verdict == Verdict::Take(self.next) {
            // Over an earlier connection some of it may have been read.
            let mut skip = self.consumed as usize;
            let known = skip.min(ahead.len());
            ahead.drain(..known);
            skip -= known;
            let mut rest = vec![0; skip.min(BUFFER)];
            while skip > 0 {
                let count = skip.min(BUFFER);
                if !self.chunks.fill(&mut rest[..count])? {
                    return Ok(());
                }
                skip -= count;
            }
            let left = prefix.size.checked_sub(self.consumed);
            let left = left.ok_or_else(|| Error::protocol("a chunk that came with another size before"))?;
            self.current = Some(Current { prefix, left, ahead, spooled: false });
            return Ok(());
        }
        let keep = verdict != Verdict::Known;
        let mut at = u64::from(prefix.number) * u64::from(self.chunks.header.one_chunk);
        let mut left = prefix.size as usize - ahead.len();
        let mut bytes = ahead;
        loop {
            if keep {
                self.spool.write(&bytes, at)?;
            }
            at += bytes.len() as u64;
            if left == 0 {
                break;
            }
            bytes.resize(left.min(BUFFER), 0);
            if !self.chunks.fill(&mut bytes)? {
                return Ok(());
            }
            left -= bytes.len();
        }
        if keep {
            self.chunks.proto.handle_received(prefix);
        }
        // They stay where they are: their place follows from their number.
        while self.chunks.proto.poll_waiting()?.is_some() {}
        Ok(())
    }
}

impl Read for InOrder<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.try_read(buffer).map_err(|error| {
            self.error = Some(error);
            std::io::ErrorKind::UnexpectedEof.into()
        })
    }
}

/// Decodes a payload while it arrives.
pub(crate) fn in_order(
    chunks: &mut Chunks<'_>,
    incoming: &StagedFile,
    decoded: &mut Decoded<'_>,
) -> Result<(), Error> {
    let header = chunks.header.clone();
    if header.file_size() == Some(0) {
        return Ok(());
    }
    let hash = Hash::new(&header);
    let spool = Spool::new(incoming);
    let mut payload = InOrder { chunks, spool, next: 0, consumed: 0, current: None, hash, error: None };
    let mut reader = BufReader::with_capacity(BUFFER, &mut payload);
    let result = match header.compression {
        Compression::TarGz => {
            one_file(|content| decoded.take_all(content), |each| read_tar_gz(&mut reader, each).map(|_| ()))
        }
        _ => zstd_frame(&mut reader)
            .map_err(DecodeError::from)
            .and_then(|mut frame| decoded.take_all(&mut frame)),
    };
    let result = result.and_then(|()| {
        // Only where its size is known is it worth waiting for what may follow.
        if header.payload().is_some() {
            return Ok(expect_end(&mut reader)?);
        }
        let spare = !reader.buffer().is_empty();
        let payload = reader.get_mut();
        let spare = spare || payload.current.as_ref().is_some_and(|current| current.left > 0);
        if spare { Ok(expect_end(&mut &b"x"[..])?) } else { Ok(()) }
    });
    if let Some(error) = payload.error.take() {
        return Err(error);
    }
    result?;
    header.checksum.map_or(Ok(()), |expected| payload.hash.compare(expected))
}
