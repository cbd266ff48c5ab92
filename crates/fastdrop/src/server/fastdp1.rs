//! fastdp 1.0.0 and 1.1.0: receives one file, from one connection or, in 1.0.0, from several one after the other.

use super::older::{Older, Placed};
use super::{Shared, lock};
use crate::archive::{is_whole_zip, one_file, read_tar_gz, read_zip};
use crate::connection::{Connection, Ended, FrameReader};
use crate::decode::{DecodeError, expect_end, fill, zstd_frame};
use crate::engine::incoming::{BUFFER, Incoming, WriteBehind};
use crate::error::Error;
use crate::source::read_exact_at;
use crate::stage::write_all_at;
use fastdrop_proto::fastdp::Version;
use fastdrop_proto::fastdp::v1::{
    ChunkPrefix, Compression, FAILURE, Header, Receiver, SUCCESS, UNNAMED, Verdict,
};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use std::any::Any;
use std::io::{BufReader, IoSlice, Read};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long a 1.0.0 transfer waits for its next connection.
const RETURN_PATIENCE: Duration = Duration::from_secs(60);
/// Connections in a row that may bring nothing new.
const IN_VAIN_MAX: u32 = 16;
/// Most bytes that a payload of 1.1.0 is decoded to: so many times its own, which is what deflate can reach, and this beside.
const RATIO_MAX: u64 = 1032;
const RATIO_FREE: u64 = 64 << 20;

/// A connection that has sent its header.
pub(super) struct Handshaken {
    pub(super) socket: TcpStream,
    pub(super) peer: SocketAddr,
    pub(super) key: String,
    pub(super) header: Header,
    /// The header as it came.
    pub(super) header_bytes: Vec<u8>,
    /// What was read beyond.
    pub(super) early: Vec<u8>,
}

/// What a connection must have in common with an earlier one to continue its transfer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Identity {
    key: String,
    address: IpAddr,
    name: Option<String>,
    size: u64,
    one_chunk: u32,
    compression: &'static str,
}

/// A connection on its way to the transfer that waits for it.
pub(super) struct Return {
    reader: FrameReader,
    held: Box<dyn Any + Send>,
}

/// Serves a connection to its end.
pub(super) fn serve(shared: &Arc<Shared>, shaken: Handshaken, held: Box<dyn Any + Send>) {
    let Handshaken { socket, peer, key, header, header_bytes, early } = shaken;
    let identity = Identity {
        key,
        address: peer.ip(),
        name: header.file_name.clone(),
        size: header.full_size,
        one_chunk: header.one_chunk,
        compression: header.compression.name(),
    };
    let older = Older { socket, peer, early, held };
    let (reader, peer, held) = match older.connect(shared) {
        Ok(connected) => connected,
        Err(error) => return tracing::debug!(%peer, %error, "the connection went away"),
    };
    let connection = Arc::clone(reader.connection());
    let version = header.version;
    if version == Version::V1_0 {
        // The sender's header governs.
        let own = Header { file_name: None, ..header.clone() };
        if send(&connection, &own.encode()).is_err() {
            return;
        }
    }
    let mut arrived = Return { reader, held };
    let waiting = lock(&shared.returns).remove(&identity);
    if let Some(waiting) = waiting {
        match waiting.send(arrived) {
            Ok(()) => return,
            // It has just given up.
            Err(unsent) => arrived = unsent.0,
        }
    }
    let started = Instant::now();
    let name = crate::shown(header.file_name.as_deref().unwrap_or(UNNAMED).as_bytes());
    let mut chunks = Chunks::new(shared, arrived, header, header_bytes, identity);
    let result = receive(shared, &mut chunks);
    let seconds = started.elapsed().as_secs_f64();
    let connection = Arc::clone(chunks.reader.connection());
    match &result {
        Ok(()) => tracing::info!(%peer, protocol = %version, name, seconds, "received"),
        Err(error) => tracing::warn!(%peer, protocol = %version, name, seconds, %error, "failed"),
    }
    if version == Version::V1_1 {
        let answer = match &result {
            Ok(()) => SUCCESS.to_owned(),
            Err(error) => format!("{FAILURE}{}", crate::shown(error.to_string().as_bytes())),
        };
        let _ = send(&connection, answer.as_bytes());
    }
    connection.linger();
}

fn send(connection: &Connection, bytes: &[u8]) -> Result<(), Ended> {
    connection.send(&mut [IoSlice::new(bytes)], usize::MAX, |_| Duration::ZERO)
}

fn receive(shared: &Arc<Shared>, chunks: &mut Chunks<'_>) -> Result<(), Error> {
    let header = chunks.header.clone();
    let path = header.file_name.as_deref().unwrap_or(UNNAMED).as_bytes().to_vec();
    chunks.machine = Some(Receiver::new(&header)?);
    let placed = Placed::create(shared, &path, header.full_size)?;
    let incoming = placed.incoming()?;
    match header.compression {
        Compression::None => {
            let mut spool = Spool::new(incoming);
            let hash =
                incoming.write_behind(|behind| direct(chunks, &mut spool, incoming.file(), Some(behind)))?;
            chunks.verify(hash, incoming.file())?;
        }
        Compression::Zip => {
            // Its directory stands at its end: nothing can be decoded before.
            let archive = incoming.spool()?;
            let hash = direct(chunks, &mut Spool::new(incoming), archive.as_fd(), None)?;
            chunks.verify(hash, archive.as_fd())?;
            incoming.write_behind(|behind| {
                let mut decoded =
                    Decoded::new(&header, chunks.payload_bytes(), behind, shared.options.size_max);
                one_file::<DecodeError>(
                    |content| decoded.take_all(content),
                    |each| read_zip(archive.into(), 1, each),
                )?;
                decoded.finish()
            })?;
        }
        Compression::Zstd | Compression::TarGz => incoming.write_behind(|behind| {
            let mut decoded = Decoded::new(&header, header.full_size, behind, shared.options.size_max);
            in_order(chunks, incoming, &mut decoded)?;
            decoded.finish()
        })?,
    }
    placed.commit()
}

// ---- chunks off the connections ----

/// The chunks of a transfer, from whichever connection brings them.
struct Chunks<'a> {
    shared: &'a Arc<Shared>,
    reader: FrameReader,
    held: Box<dyn Any + Send>,
    header: Header,
    header_bytes: Vec<u8>,
    /// A second header may still come.
    fresh: bool,
    identity: Identity,
    machine: Option<Receiver>,
    in_vain: u32,
    bytes_before: u64,
}

impl<'a> Chunks<'a> {
    fn new(
        shared: &'a Arc<Shared>,
        arrived: Return,
        header: Header,
        header_bytes: Vec<u8>,
        identity: Identity,
    ) -> Self {
        let Return { reader, held } = arrived;
        Self {
            shared,
            reader,
            held,
            header,
            header_bytes,
            fresh: true,
            identity,
            machine: None,
            in_vain: 0,
            bytes_before: 0,
        }
    }

    fn machine(&mut self) -> Result<&mut Receiver, Error> {
        self.machine.as_mut().ok_or_else(|| Error::with_code(500, "no transfer"))
    }

    fn payload_bytes(&self) -> u64 {
        self.machine.as_ref().map_or(0, Receiver::bytes)
    }

    /// What stands before the next chunk.
    fn prefix(&mut self) -> Result<ChunkPrefix, Error> {
        loop {
            let mut bytes = [0; ChunkPrefix::LEN];
            match self.reader.fill(&mut bytes) {
                Ok(()) if self.fresh && self.header_bytes.starts_with(&bytes) => self.second_header(bytes)?,
                Ok(()) => {
                    self.fresh = false;
                    let prefix = ChunkPrefix::decode(bytes);
                    self.machine()?.expect(prefix)?;
                    return Ok(prefix);
                }
                Err(ended) => self.reconnect(ended)?,
            }
        }
    }

    /// The sender says its header twice: a chunk of that number would be far too large.
    fn second_header(&mut self, first: [u8; ChunkPrefix::LEN]) -> Result<(), Error> {
        let mut rest = vec![0; self.header_bytes.len() - first.len()];
        self.reader.fill(&mut rest)?;
        self.fresh = false;
        if self.header_bytes.ends_with(&rest) {
            Ok(())
        } else {
            Err(Error::with_code(400, "a second header that differs from the first"))
        }
    }

    /// Fills `buffer` from the chunk; false if the connection was lost and another has taken its place.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<bool, Error> {
        match self.reader.fill(buffer) {
            Ok(()) => Ok(true),
            Err(ended) => self.reconnect(ended).map(|()| false),
        }
    }

    /// Waits for the connection that continues the transfer.
    fn reconnect(&mut self, ended: Ended) -> Result<(), Error> {
        if self.header.version != Version::V1_0 || self.shared.stop.is_stopped() {
            return Err(match ended {
                Ended::Closed => Error::with_code(400, "the sender ended before everything had come"),
                ended => ended.into(),
            });
        }
        let bytes = self.payload_bytes();
        self.in_vain = if bytes > self.bytes_before { 0 } else { self.in_vain + 1 };
        self.bytes_before = bytes;
        if self.in_vain > IN_VAIN_MAX {
            return Err(Error::with_code(400, "the sender comes again and again, and brings nothing new"));
        }
        self.reader.connection().linger();
        self.held = Box::new(());
        let (sender, returns) = channel();
        let until = Instant::now() + RETURN_PATIENCE;
        lock(&self.shared.returns).insert(self.identity.clone(), sender);
        let arrived = loop {
            match returns.recv_timeout(Duration::from_millis(200)) {
                Err(RecvTimeoutError::Timeout)
                    if Instant::now() < until && !self.shared.stop.is_stopped() => {}
                arrived => break arrived,
            }
        };
        let Ok(Return { reader, held }) = arrived else {
            lock(&self.shared.returns).remove(&self.identity);
            // One that came in this very moment is not lost either.
            let Ok(Return { reader, held }) = returns.try_recv() else {
                return Err(Error::Network("the sender did not come back".into()));
            };
            (self.reader, self.held, self.fresh) = (reader, held, true);
            return Ok(());
        };
        (self.reader, self.held, self.fresh) = (reader, held, true);
        Ok(())
    }

    /// Compares the payload's SHA-256 with what was announced; `hash` covers its beginning, and `file` has all of it.
    fn verify(&self, hash: Hash, file: impl AsFd) -> Result<(), Error> {
        let Some(expected) = self.header.checksum else { return Ok(()) };
        let mut hash = hash;
        let file = file.as_fd().try_clone_to_owned().map_err(io_error)?;
        let mut buffer = vec![0; BUFFER];
        let size = self.payload_bytes();
        while hash.bytes < size {
            let count = (size - hash.bytes).min(BUFFER as u64) as usize;
            read_exact_at(&file, &mut buffer[..count], hash.bytes)
                .map_err(|errno| Error::system("reading back", errno))?;
            hash.update(&buffer[..count]);
        }
        hash.compare(expected)
    }
}

/// A SHA-256 of the beginning of a payload.
struct Hash {
    state: Sha256,
    bytes: u64,
    wanted: bool,
}

impl Hash {
    fn new(header: &Header) -> Self {
        Self { state: Sha256::new(), bytes: 0, wanted: header.checksum.is_some() }
    }

    /// Goes on with bytes that follow.
    fn update(&mut self, bytes: &[u8]) {
        if self.wanted {
            self.state.update(bytes);
        }
        self.bytes += bytes.len() as u64;
    }

    fn compare(self, expected: [u8; 32]) -> Result<(), Error> {
        if self.state.finalize()[..] == expected {
            Ok(())
        } else {
            Err(Error::with_code(422, "the checksum of what arrived is not the one in the header"))
        }
    }
}

/// A file in which chunks wait, each at the place of its number.
struct Spool<'a> {
    incoming: &'a Incoming,
    file: Option<OwnedFd>,
}

impl<'a> Spool<'a> {
    fn new(incoming: &'a Incoming) -> Self {
        Self { incoming, file: None }
    }

    fn file(&mut self) -> Result<&OwnedFd, Error> {
        if self.file.is_none() {
            self.file = Some(self.incoming.spool()?);
        }
        self.file.as_ref().ok_or_else(|| Error::with_code(500, "no spool file"))
    }

    fn write(&mut self, bytes: &[u8], at: u64) -> Result<(), Error> {
        write_all_at(self.file()?.as_fd(), bytes, at).map_err(spool_error)
    }

    fn read(&mut self, buffer: &mut [u8], at: u64) -> Result<(), Error> {
        read_exact_at(self.file()?, buffer, at).map_err(spool_error)
    }
}

fn spool_error(errno: Errno) -> Error {
    Error::system("in a spool file", errno)
}

/// Receives a whole payload into `file`, each chunk at its place; hashes its beginning as long as chunks come in order.
fn direct(
    chunks: &mut Chunks<'_>,
    spool: &mut Spool<'_>,
    file: impl AsFd,
    mut behind: Option<&mut WriteBehind>,
) -> Result<Hash, Error> {
    let file = file.as_fd();
    let one_chunk = u64::from(chunks.header.one_chunk);
    let mut hash = Hash::new(&chunks.header);
    let mut own = vec![0; if behind.is_none() { BUFFER } else { 0 }];
    let failed = |errno| Error::system("writing what arrives", errno);
    'chunks: while !is_whole(chunks, file)? {
        let prefix = chunks.prefix()?;
        let size = prefix.size as usize;
        let mut done = 0;
        let mut place = None;
        while done < size || place.is_none() {
            let mut buffer = match &mut behind {
                Some(behind) => behind.buffer()?,
                None => std::mem::take(&mut own),
            };
            let count = (size - done).min(BUFFER);
            if !chunks.fill(&mut buffer[..count])? {
                // What has come of this chunk comes again.
                match &mut behind {
                    Some(behind) => behind.give_back(buffer),
                    None => own = buffer,
                }
                continue 'chunks;
            }
            let verdict = match place {
                Some(verdict) => verdict,
                None => chunks.machine()?.judge(prefix, &buffer[..count])?,
            };
            place = Some(verdict);
            if chunks.machine()?.poll_shift() {
                let end = chunks.machine()?.end();
                shift(file, end, one_chunk, behind.as_deref_mut())?;
                hash = Hash::new(&chunks.header);
            }
            match verdict {
                Verdict::Take(index) => {
                    let at = u64::from(index) * one_chunk + done as u64;
                    if at == hash.bytes {
                        hash.update(&buffer[..count]);
                    }
                    match &mut behind {
                        Some(behind) => behind.write(buffer, count, at)?,
                        None => {
                            write_all_at(file, &buffer[..count], at).map_err(failed)?;
                            own = buffer;
                        }
                    }
                }
                Verdict::Wait | Verdict::Known => {
                    if verdict == Verdict::Wait {
                        spool.write(&buffer[..count], u64::from(prefix.number) * one_chunk + done as u64)?;
                    }
                    match &mut behind {
                        Some(behind) => behind.give_back(buffer),
                        None => own = buffer,
                    }
                }
            }
            done += count;
        }
        if place != Some(Verdict::Known) {
            chunks.machine()?.handle_received(prefix);
        }
        while let Some(waiting) = chunks.machine()?.poll_waiting()? {
            let mut bytes = vec![0; waiting.size as usize];
            spool.read(&mut bytes, u64::from(waiting.number) * one_chunk)?;
            write_all_at(file, &bytes, u64::from(waiting.index) * one_chunk).map_err(failed)?;
        }
    }
    Ok(hash)
}

/// Whether all of the payload has come; of a 1.0.0 archive, whose size nobody says, only its end tells.
fn is_whole(chunks: &mut Chunks<'_>, file: impl AsFd) -> Result<bool, Error> {
    let is_known = chunks.header.payload().is_some();
    let machine = chunks.machine()?;
    if machine.is_complete() {
        return Ok(true);
    }
    if is_known || machine.end() == 0 || !machine.is_contiguous() {
        return Ok(false);
    }
    let file = file.as_fd().try_clone_to_owned().map_err(io_error)?;
    is_whole_zip(&mut file.into()).map_err(io_error)
}

fn io_error(error: std::io::Error) -> Error {
    Error::system("in a spool file", error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
}

/// Moves all chunks but the last by one, away from the beginning.
fn shift(
    file: impl AsFd,
    chunks: u32,
    one_chunk: u64,
    behind: Option<&mut WriteBehind>,
) -> Result<(), Error> {
    let file = file.as_fd();
    // One buffer is with the caller.
    behind.map_or(Ok(()), |behind| behind.flush(1))?;
    let failed = |errno| Error::system("moving what has arrived", errno);
    let mut buffer = vec![0; one_chunk as usize];
    for index in (1..u64::from(chunks)).rev() {
        let count = rustix::io::pread(file, &mut buffer, (index - 1) * one_chunk).map_err(failed)?;
        write_all_at(file, &buffer[..count], index * one_chunk).map_err(failed)?;
    }
    Ok(())
}

// ---- payloads that are decoded as they arrive ----

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
            if self.chunks.machine()?.is_beyond(self.next) {
                return Ok(0);
            }
            if self.chunks.machine()?.is_held(self.next) {
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
                self.chunks.machine()?.handle_received(current.prefix);
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
        let machine = self.chunks.machine()?;
        let (size, first) = (machine.size_of(next), machine.first().unwrap_or(0));
        let prefix = ChunkPrefix { number: next + first, size };
        self.current = Some(Current {
            prefix,
            left: size.saturating_sub(self.consumed),
            ahead: Vec::new(),
            spooled: true,
        });
        Ok(())
    }

    /// Takes the next chunk off the connection: it is current, or goes to the spool file, or is dropped.
    fn begin_next(&mut self) -> Result<(), Error> {
        let prefix = self.chunks.prefix()?;
        let mut ahead = vec![0; BEGINNING.min(prefix.size as usize)];
        if !self.chunks.fill(&mut ahead)? {
            return Ok(());
        }
        let verdict = self.chunks.machine()?.judge(prefix, &ahead)?;
        if self.chunks.machine()?.poll_shift() {
            return Err(Error::with_code(400, "numbers that begin at 1 and yet contain 0"));
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
            let left =
                left.ok_or_else(|| Error::with_code(400, "a chunk that came with another size before"))?;
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
            self.chunks.machine()?.handle_received(prefix);
        }
        // They stay where they are: their place follows from their number.
        while self.chunks.machine()?.poll_waiting()?.is_some() {}
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
fn in_order(chunks: &mut Chunks<'_>, incoming: &Incoming, decoded: &mut Decoded<'_>) -> Result<(), Error> {
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

/// The file that comes out of a payload.
struct Decoded<'b> {
    behind: &'b mut WriteBehind,
    bytes: u64,
    exact: Option<u64>,
    max: u64,
}

impl<'b> Decoded<'b> {
    fn new(header: &Header, payload: u64, behind: &'b mut WriteBehind, size_max: Option<u64>) -> Self {
        let exact = header.file_size();
        let max = exact.unwrap_or_else(|| payload.saturating_mul(RATIO_MAX).saturating_add(RATIO_FREE));
        Self { behind, bytes: 0, exact, max: max.min(size_max.unwrap_or(u64::MAX)) }
    }

    /// Writes all that `reader` has, within the bound.
    fn take_all(&mut self, reader: &mut dyn Read) -> Result<(), DecodeError> {
        loop {
            let mut buffer = self.behind.buffer().map_err(DecodeError::Failed)?;
            let count = fill(&mut &mut *reader, &mut buffer)?;
            if count == 0 {
                self.behind.give_back(buffer);
                return Ok(());
            }
            if count as u64 > self.max - self.bytes {
                return Err(DecodeError::Failed(Error::with_code(
                    413,
                    "the payload decodes to more than it may",
                )));
            }
            self.behind.write(buffer, count, self.bytes).map_err(DecodeError::Failed)?;
            self.bytes += count as u64;
        }
    }

    fn finish(self) -> Result<(), Error> {
        match self.exact {
            Some(size) if size != self.bytes => {
                let why = format!("the payload decodes to {} bytes instead of {size}", self.bytes);
                Err(Error::with_code(422, why))
            }
            _ => Ok(()),
        }
    }
}
