//! NextDP: sends one file as requests, several at the same time.

use crate::codec::encode::ZSTD_LEVEL;
use crate::context::client::ClientContext;
use crate::context::client::options::Compress;
use crate::context::client::summary::Delivery;
use crate::error::Error;
use crate::legacy::sending::{send_all, send_paced, send_part};
use crate::legacy::source_file::SourceFile;
use crate::lock::lock;
use crate::net::frames::FrameReader;
use crate::net::throttle::Throttle;
use crate::observe::Phase;
use crate::random::random;
use crate::thread::{refused as refused_thread, spawn_scoped};
use fastdrop_proto::fastdp::{Code, Refuse, Streams};
use fastdrop_proto::nextdp::{ANSWER_HEAD_MAX, CHUNK, CHUNKS_MAX, ChunkRequest, is_field, parse_answer};
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Connections unless somebody says how many.
const STREAMS: u16 = 4;
/// How long an answer may take: the last one comes when the file is synced.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);
/// Bytes of an answer's body that are shown.
const BODY_MAX: u64 = 4096;

/// Ways in which a chunk is compressed.
#[derive(Debug, Clone, Copy)]
enum Compression {
    /// One gzip member.
    Gzip,
    /// One Zstandard frame.
    Zstd,
}

/// What all connections share.
struct Sending<'a> {
    client: &'a ClientContext,
    file: &'a SourceFile,
    throttle: Option<&'a Throttle>,
    chunks: u32,
    id: String,
    compression: Option<Compression>,
    next: AtomicU32,
    /// The server will say when it has the file, and has said so.
    is_fastdrop: AtomicBool,
    is_complete: AtomicBool,
    failed: Mutex<Option<Error>>,
}

pub(crate) fn send(
    client: &ClientContext,
    file: &SourceFile,
    throttle: Option<&Throttle>,
) -> Result<Delivery, Error> {
    let mut failed = 0;
    // A server that was started meanwhile takes what is left, and waits in vain for the rest.
    while !send_once(client, file, throttle)? {
        failed += 1;
        if failed > client.options.retries {
            let why = "the server has taken every chunk, and forgotten what they belong to";
            return Err(Error::Network(why.into()));
        }
        client.pause(failed)?;
    }
    Ok(Delivery::Confirmed)
}

/// Sends the file as one transfer. False if the server does not have it in the end.
fn send_once(client: &ClientContext, file: &SourceFile, throttle: Option<&Throttle>) -> Result<bool, Error> {
    let compression = match client.options.compress {
        Compress::Auto | Compress::None => None,
        Compress::Gzip => Some(Compression::Gzip),
        Compress::Zstd => Some(Compression::Zstd),
        _ => {
            let why = "NextDP compresses with gzip, with Zstandard or not at all";
            return Err(Error::failed(Code::BadRequest, why));
        }
    };
    if !is_field(file.name_text()?) {
        return Err(unsendable(file));
    }
    let chunks = u32::try_from(file.size.div_ceil(CHUNK).max(1)).ok().filter(|&chunks| chunks <= CHUNKS_MAX);
    let chunks = chunks.ok_or_else(|| Error::failed(Code::OverLimit, "more chunks than NextDP can count"))?;
    let sending = Sending {
        client,
        file,
        throttle,
        chunks,
        id: hex::encode(random::<16>()?),
        compression,
        next: AtomicU32::new(1),
        is_fastdrop: AtomicBool::new(false),
        is_complete: AtomicBool::new(false),
        failed: Mutex::default(),
    };
    // Receivers learn from chunk 0 what the others belong to.
    let mut first = None;
    sending.persist(&mut first, 0)?;
    let streams = match client.options.streams {
        Streams::Auto => STREAMS,
        Streams::Fixed(streams) => streams,
    };
    let streams = u32::from(streams).min(chunks - 1);
    std::thread::scope(|scope| {
        for number in 0..streams {
            let mut connection = first.take();
            let sending = &sending;
            let run = move || sending.run(&mut connection);
            if let Err(error) = spawn_scoped(scope, "stream", run) {
                // Those that run take its chunks; with none there is nobody.
                if number == 0 {
                    lock(&sending.failed).get_or_insert(refused_thread(error));
                }
                break;
            }
        }
    });
    let failed = lock(&sending.failed).take();
    failed.map_or(Ok(()), Err)?;
    // Other servers do not say so.
    Ok(sending.is_complete.into_inner() || !sending.is_fastdrop.into_inner())
}

impl Sending<'_> {
    /// Sends chunks until there are none left.
    fn run(&self, connection: &mut Option<FrameReader>) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.chunks || lock(&self.failed).is_some() {
                return;
            }
            if let Err(error) = self.persist(connection, number) {
                lock(&self.failed).get_or_insert(error);
                return;
            }
        }
    }

    /// Sends one chunk, also over another connection if one is lost.
    fn persist(&self, connection: &mut Option<FrameReader>, number: u32) -> Result<(), Error> {
        let mut attempts = 0;
        loop {
            let reused = connection.is_some();
            let error = match self.request(connection, number) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            *connection = None;
            // A server may close a connection that was silent, which tells nothing.
            attempts += u32::from(!reused);
            let worked = number > 0 || reused || attempts > 1;
            if !matches!(error, Error::Network(_)) || attempts > self.client.options.retries || !worked {
                return Err(error);
            }
            self.client.pause(attempts.max(1))?;
        }
    }

    fn request(&self, kept: &mut Option<FrameReader>, number: u32) -> Result<(), Error> {
        let client = self.client;
        let mut reader = match kept.take() {
            Some(reader) => reader,
            None => FrameReader::new(client.bare(client.target.port)?, Vec::new()),
        };
        client.observer.set_phase(Phase::Moving);
        let offset = u64::from(number) * CHUNK;
        let size = CHUNK.min(self.file.size - offset);
        if number + 1 == self.chunks {
            self.file.check()?;
        }
        let first = match number {
            0 => Some((self.file.name_text()?.to_owned(), self.chunks)),
            _ => None,
        };
        let request = ChunkRequest { number, first, transfer: Some(self.id.clone()) };
        let host = client.target.authority();
        let connection = reader.connection();
        let head = |bytes| request.encode(&host, bytes).ok_or_else(|| unsendable(self.file));
        let sent = if let Some(compression) = self.compression {
            let body = self.compressed(compression, offset, size)?;
            let sent = send_all(connection, &head(body.len() as u64)?);
            sent.and_then(|()| send_paced(connection, &body, self.throttle))
                .map_err(Error::from)
                .inspect(|()| client.note_moved(size))
        } else {
            let sent = send_all(connection, &head(size)?).map_err(Error::from);
            sent.and_then(|()| send_part(client, connection, self.file, offset, size, self.throttle))
        };
        match sent {
            Ok(()) => {}
            // A server that refuses does not read the rest: its reason counts.
            Err(Error::Network(_)) => {}
            Err(error) => return Err(error),
        }
        let keep = self.answer(&mut reader)?;
        sent?;
        *kept = keep.then_some(reader);
        Ok(())
    }

    fn compressed(&self, compression: Compression, offset: u64, size: u64) -> Result<Vec<u8>, Error> {
        let mut plain = vec![0; size as usize];
        self.file.read_at(&mut plain, offset)?;
        let packed = match compression {
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&plain).and_then(|()| encoder.finish())
            }
            Compression::Zstd => zstd::bulk::compress(&plain, ZSTD_LEVEL),
        };
        packed.map_err(|error| Error::failed(Code::Internal, format!("compressing: {error}")))
    }

    /// Reads an answer; whether the connection can be used again.
    fn answer(&self, reader: &mut FrameReader) -> Result<bool, Error> {
        let until = Instant::now() + ANSWER_TIMEOUT;
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        let mut ended = false;
        loop {
            if let Some(answer) = parse_answer(&bytes).map_err(|refusal| Error::Foreign(refusal.message))? {
                let body = bytes.get(answer.head..).unwrap_or_default();
                let expected = answer.body.map_or(BODY_MAX, |body| body.min(BODY_MAX));
                if body.len() as u64 >= expected || ended {
                    let text = String::from_utf8_lossy(body).trim().to_owned();
                    self.is_fastdrop.fetch_or(answer.is_fastdrop, Ordering::SeqCst);
                    self.is_complete.fetch_or(answer.is_complete, Ordering::SeqCst);
                    return match answer.status {
                        200 => Ok(answer.keep_alive && !ended && answer.body == Some(body.len() as u64)),
                        status => {
                            let code = Code::new(status);
                            Err(Error::Refused(Refuse { code, message: text, paths: Vec::new() }))
                        }
                    };
                }
            } else if ended || bytes.len() > ANSWER_HEAD_MAX {
                return Err(Error::Network("the server closed before it had answered".into()));
            }
            if Instant::now() > until || self.client.stop.is_stopped() {
                return Err(Error::Network("the server does not answer".into()));
            }
            if !reader.comes_within(Duration::from_millis(500)) {
                continue;
            }
            match reader.read_some(&mut buffer) {
                Ok(count) => {
                    bytes.extend_from_slice(&buffer[..count]);
                    ended = count == 0;
                }
                Err(_) if !bytes.is_empty() => ended = true,
                Err(lost) => return Err(lost.into()),
            }
        }
    }
}

fn unsendable(file: &SourceFile) -> Error {
    let name = crate::shown(&file.name);
    let why = "NextDP cannot carry this name: it has a control character, or a blank at an edge";
    Error::failed(Code::BadRequest, format!("{name}: {why}; send it under another one"))
}
