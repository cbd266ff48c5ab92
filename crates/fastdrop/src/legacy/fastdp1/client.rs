//! fastdp 1.0.0 and 1.1.0: sends one file.

use crate::codec::archive::{Member, MemberKind, TarGzWriter, write_one_zip};
use crate::codec::encode::zstd;
use crate::context::client::ClientContext;
use crate::context::client::connect::{Upgraded, new_key};
use crate::context::client::options::Compress;
use crate::context::client::summary::Delivery;
use crate::error::Error;
use crate::legacy::sending::{refused_by_reset, send_all, send_part};
use crate::legacy::source_file::{SourceFile, changed};
use crate::net::connection::{Connection, Ended};
use crate::net::frames::FrameReader;
use crate::net::throttle::Throttle;
use crate::observe::Phase;
use crate::thread::{refused as refused_thread, spawn_scoped};
use fastdrop_proto::fastdp::v1::{
    ChunkPrefix, Compression, FAILURE, Header, HeaderAnswer, RECONNECT, RECONNECT_EVERY, Refusal, SUCCESS,
    one_chunk_for, parse_failure,
};
use fastdrop_proto::fastdp::{Code, Refuse, UpgradeRequest, Version};
use fastdrop_proto::units::Mtime;
use sha2::{Digest, Sha256};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// How long the receiver may take to answer, sync and name what it has.
const END_TIMEOUT: Duration = Duration::from_secs(600);
/// Bytes that may have been sent and not have reached the other program: what both kernels hold.
const IN_FLIGHT_MAX: u64 = 16 << 20;
/// Connections of one file, beside those that its size demands.
const CONNECTIONS_MAX: u64 = 64;
/// Bytes that are hashed at once.
const STEP: usize = 256 << 10;

/// What goes over the wire: the file itself, or what was made of it.
struct Payload {
    file: SourceFile,
    header: Header,
}

pub(crate) fn send(
    client: &ClientContext,
    file: &SourceFile,
    version: Version,
    throttle: Option<&Throttle>,
) -> Result<Delivery, Error> {
    let payload = make_payload(client, file, version)?;
    if version == Version::V1_1 {
        client.with_attempts(|| send_once(client, file, &payload, throttle))?;
        Ok(Delivery::Confirmed)
    } else {
        send_and_return(client, file, &payload, throttle)
    }
}

fn make_payload(client: &ClientContext, file: &SourceFile, version: Version) -> Result<Payload, Error> {
    let compression = match client.options.compress {
        Compress::Auto | Compress::None => Compression::None,
        Compress::Zstd => Compression::Zstd,
        Compress::Zip => Compression::Zip,
        Compress::TarGz => Compression::TarGz,
        Compress::Gzip => {
            return Err(Error::failed(Code::BadRequest, "fastdp does not compress with gzip alone"));
        }
    };
    let name = file.name_text()?;
    let packed = if compression == Compression::None {
        file.try_clone()?
    } else {
        let spool = pack(file, compression)?;
        SourceFile::spooled(spool, file.name.clone())?
    };
    let full_size = if version == Version::V1_0 { file.size } else { packed.size };
    let checksum = if version == Version::V1_1 { Some(sha256(&packed)?) } else { None };
    file.check()?;
    let one_chunk = one_chunk_for(packed.size);
    let file_name = Some(name.to_owned());
    Ok(Payload {
        file: packed,
        header: Header {
            version,
            one_chunk,
            full_size,
            compression,
            file_name,
            checksum,
            confirm: version == Version::V1_0,
        },
    })
}

/// Compresses the file into another one without a name.
fn pack(file: &SourceFile, compression: Compression) -> Result<File, Error> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => changed(),
        _ => Error::failed(Code::Internal, format!("compressing {}: {error}", crate::shown(&file.name))),
    };
    let name = file.name_text()?;
    let name = name.rsplit('/').next().unwrap_or(name);
    let mut spool = tempfile::tempfile().map_err(failed)?;
    let mut source = file.reader()?;
    let buffered = |spool: &File| spool.try_clone().map(|spool| BufWriter::with_capacity(1 << 20, spool));
    match compression {
        Compression::Zip => {
            spool.try_clone().and_then(|out| write_one_zip(&mut source, file.size, name, 0o644, out))
        }
        Compression::TarGz => buffered(&spool).and_then(|out| {
            let mtime = Mtime { seconds: i64::try_from(file.mtime()).unwrap_or(i64::MAX), nanos: 0 };
            let (path, kind) = (name.as_bytes().to_vec(), MemberKind::File(file.size));
            let mut archive = TarGzWriter::new(out);
            archive.add(&Member { path, kind, mtime, mode: 0o644 }, &mut source)?;
            archive.finish()
        }),
        _ => buffered(&spool).and_then(|out| zstd(&mut source, file.size, out)),
    }
    .and_then(|()| spool.flush())
    .and_then(|()| spool.seek(SeekFrom::Start(0)))
    .map_err(failed)?;
    Ok(spool)
}

/// SHA-256 of the file: one thread reads what another one hashes.
fn sha256(file: &SourceFile) -> Result<[u8; 32], Error> {
    std::thread::scope(|scope| {
        let (full, to_hash) = sync_channel::<Vec<u8>>(4);
        let (empty, spare) = sync_channel::<Vec<u8>>(8);
        let hash = move || {
            let mut state = Sha256::new();
            for buffer in to_hash {
                state.update(&buffer);
                // At the end nobody wants it any more.
                let _ = empty.try_send(buffer);
            }
            state.finalize().into()
        };
        let hasher = spawn_scoped(scope, "hash", hash).map_err(refused_thread)?;
        let mut at = 0;
        while at < file.size {
            let count = (file.size - at).min(STEP as u64);
            let mut buffer = spare.try_recv().unwrap_or_default();
            buffer.resize(count as usize, 0);
            file.read_at(&mut buffer, at)?;
            at += count;
            if full.send(buffer).is_err() {
                break;
            }
        }
        drop(full);
        hasher.join().map_err(|_| Error::failed(Code::Internal, "hashing failed"))
    })
}

/// Sends the header on a connection after its upgrade, and reads the receiver's if there is one.
/// True if the receiver will say that it has the file.
fn exchange_headers(
    client: &ClientContext,
    payload: &Payload,
    upgraded: Upgraded,
) -> Result<(FrameReader, bool), Error> {
    let Upgraded { connection, early, .. } = upgraded;
    client.stop.watch(&connection);
    let mut reader = FrameReader::new(Arc::clone(&connection), early);
    send_all(&connection, &payload.header.encode())?;
    connection.stop_at_answer();
    let confirms = payload.header.version == Version::V1_0 && read_header(&mut reader)?;
    client.observer.set_phase(Phase::Moving);
    Ok((reader, confirms))
}

/// Reads the receiver's header, which has to be one, of our sizes or of its
/// own. True if it promises to confirm.
fn read_header(reader: &mut FrameReader) -> Result<bool, Error> {
    let mut prefix = [0; 4];
    reader.fill(&mut prefix)?;
    let len = u32::from_be_bytes(prefix);
    if len > fastdrop_proto::fastdp::HEADER_MAX {
        return Err(Error::Foreign("the receiver's header is too long".into()));
    }
    let json = reader.payload(len)?;
    match HeaderAnswer::parse(&json) {
        Ok(HeaderAnswer::Accepted { confirms }) => Ok(confirms),
        Ok(HeaderAnswer::Refused(Refusal { code, reason })) => Err(refused(code, reason)),
        Err(error) => Err(Error::Foreign(format!("the receiver's header: {error}"))),
    }
}

fn refused(code: Code, message: String) -> Error {
    Error::Refused(Refuse { code, message, paths: Vec::new() })
}

fn send_chunk(
    client: &ClientContext,
    connection: &Connection,
    payload: &Payload,
    index: u64,
    throttle: Option<&Throttle>,
) -> Result<u64, Error> {
    let one_chunk = u64::from(payload.header.one_chunk);
    let offset = index * one_chunk;
    let size = (payload.file.size - offset).min(one_chunk);
    let first = u32::from(payload.header.version == Version::V1_0);
    let number = u32::try_from(index)
        .map_err(|_| Error::failed(Code::OverLimit, "more chunks than there are numbers"))?;
    let prefix = ChunkPrefix { number: number + first, size: size as u32 };
    send_all(connection, &prefix.encode())?;
    send_part(client, connection, &payload.file, offset, size, throttle)?;
    Ok(size)
}

fn chunks(payload: &Payload) -> u64 {
    payload.file.size.div_ceil(payload.header.one_chunk.into())
}

// ---- 1.1.0: one connection, and an answer ----

fn send_once(
    client: &ClientContext,
    source: &SourceFile,
    payload: &Payload,
    throttle: Option<&Throttle>,
) -> Result<(), Error> {
    let request = UpgradeRequest::new(new_key()?, Version::V1_1);
    let (mut reader, _) = exchange_headers(client, payload, client.connect_as(&request)?)?;
    let connection = Arc::clone(reader.connection());
    let count = chunks(payload);
    let sent = (0..count).try_for_each(|index| {
        if index + 1 == count {
            source.check()?;
        }
        if reader.comes_within(Duration::ZERO) {
            return Err(Error::Network("the receiver has answered before everything was sent".into()));
        }
        send_chunk(client, &connection, payload, index, throttle).map(|_| ())
    });
    match sent {
        Ok(()) => client.observer.set_phase(Phase::Finishing),
        // The receiver may have said why it does not listen any more.
        Err(Error::Network(_)) => {}
        Err(error) => {
            connection.close();
            return Err(error);
        }
    }
    connection.finish_writing();
    let (text, sent) = match (answer(client, &mut reader), sent) {
        (Ok(text), sent) if !text.is_empty() => (text, sent),
        (_, Err(error)) | (Err(error), _) => return Err(error),
        (Ok(_), Ok(())) => {
            return Err(Error::Network(
                "the receiver closed without saying that the file had arrived".into(),
            ));
        }
    };
    match parse_failure(&text) {
        Some((code, reason)) => Err(refused(code, reason.to_owned())),
        None if text == SUCCESS => Ok(()),
        None => match sent {
            Err(error) => Err(error),
            Ok(()) => Err(Error::Foreign(format!("the receiver says {:?}", crate::shown(text.as_bytes())))),
        },
    }
}

/// Reads what the receiver says until it closes.
fn answer(client: &ClientContext, reader: &mut FrameReader) -> Result<String, Error> {
    let until = Instant::now() + END_TIMEOUT;
    let mut text = Vec::new();
    let mut buffer = [0; 1024];
    while Instant::now() < until && text.len() < 4096 {
        if client.stop.is_stopped() {
            return Err(Error::Interrupted);
        }
        if !reader.comes_within(Duration::from_millis(500)) {
            continue;
        }
        match reader.read_some(&mut buffer) {
            Ok(0) => break,
            Ok(count) => text.extend_from_slice(&buffer[..count]),
            Err(_) if !text.is_empty() => break,
            Err(ended) => return Err(ended.into()),
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

// ---- 1.0.0: no answer, and connections that end in between ----

/// The chunks that the receiver may lack.
struct Lacking {
    /// For each of them, how far from the beginning of a connection it was sent at best; what was
    /// sent early has arrived rather than what was sent late.
    best: BTreeMap<u64, u64>,
}

impl Lacking {
    fn all(count: u64) -> Self {
        Self { best: (0..count).map(|index| (index, u64::MAX)).collect() }
    }

    /// Each of them has been sent before.
    fn are_all_sent(&self) -> bool {
        self.best.values().all(|&best| best < u64::MAX)
    }

    /// The order in which to send: the least certain first, so that each connection brings
    /// something new, however soon it ends.
    fn order(&self) -> Vec<u64> {
        let mut order: Vec<_> = self.best.iter().map(|(&index, &best)| (Reverse(best), index)).collect();
        order.sort_unstable();
        order.into_iter().map(|(_, index)| index).collect()
    }

    /// Takes account of the chunks that a connection carried, each with its end; true if
    /// the receiver may have something new.
    fn note_sent(&mut self, sent: &[(u64, u64)], asked_again: bool) -> bool {
        let before = self.best.len();
        let mut is_new = false;
        let position = sent.last().map_or(0, |&(_, end)| end);
        for (number, &(index, end)) in sent.iter().enumerate() {
            // A receiver that asks for another connection has read something of this one.
            if end + IN_FLIGHT_MAX <= position || (number == 0 && asked_again) {
                self.best.remove(&index);
            } else if let Some(best) = self.best.get_mut(&index) {
                is_new |= *best == u64::MAX;
                *best = end.min(*best);
            }
        }
        is_new || self.best.len() < before
    }
}

fn send_and_return(
    client: &ClientContext,
    source: &SourceFile,
    payload: &Payload,
    throttle: Option<&Throttle>,
) -> Result<Delivery, Error> {
    // By it the receiver knows the connections of this file.
    let request = UpgradeRequest::new(new_key()?, Version::V1_0);
    let count = chunks(payload);
    let mut lacking = Lacking::all(count);
    // A FastDrop ends a connection in good order only when it has the file.
    let mut is_fastdrop = false;
    let mut in_vain = 0;
    let most = CONNECTIONS_MAX + 2 * payload.file.size.div_ceil(RECONNECT_EVERY);
    for _ in 0..most {
        if client.stop.is_stopped() {
            return Err(Error::Interrupted);
        }
        let were_all_sent = lacking.are_all_sent();
        let opened = client.connect_as(&request).and_then(|upgraded| {
            is_fastdrop = upgraded.is_fastdrop;
            let connection = Arc::clone(&upgraded.connection);
            exchange_headers(client, payload, upgraded).map_err(|error| match error {
                Error::Network(_) if is_fastdrop && connection.was_reset() => refused_by_reset(),
                error => error,
            })
        });
        let (mut reader, confirms) = match opened {
            Ok(opened) => opened,
            // A receiver that is gone may have what it wanted.
            Err(Error::Network(_)) if count > 0 && were_all_sent && !is_fastdrop => {
                return Ok(Delivery::Unconfirmed);
            }
            Err(error) => {
                in_vain += 1;
                if in_vain > client.options.retries || !client.is_worth_a_retry(&error) {
                    return Err(error);
                }
                client.pause(in_vain)?;
                continue;
            }
        };
        let connection = Arc::clone(reader.connection());
        let mut sent: Vec<(u64, u64)> = Vec::new();
        let mut outcome = Ok(());
        let mut is_ended = false;
        for index in lacking.order() {
            if reader.comes_within(Duration::ZERO) {
                is_ended = true;
                break;
            }
            if index + 1 == count {
                source.check()?;
            }
            match send_chunk(client, &connection, payload, index, throttle) {
                Ok(size) => sent.push((index, sent.last().map_or(0, |&(_, end)| end) + size)),
                Err(error) => {
                    is_ended = true;
                    outcome = Err(error);
                    break;
                }
            }
        }
        match outcome {
            // How the receiver ended it follows.
            Ok(()) | Err(Error::Network(_)) => {}
            Err(error) => {
                connection.reset_now();
                return Err(error);
            }
        }
        if !is_ended {
            client.observer.set_phase(Phase::Finishing);
            connection.finish_writing();
        }
        let farewell = farewell(client, &mut reader, confirms)?;
        let asks_again = farewell == Farewell::Reconnect;
        let is_broken = farewell == Farewell::Broken;
        let has_gained = lacking.note_sent(&sent, asks_again);
        match farewell {
            Farewell::Confirmed => return Ok(Delivery::Confirmed),
            Farewell::Failed(code, reason) => return Err(refused(code, reason)),
            // It would have said so. Somebody between has ended the connection.
            Farewell::Closed if confirms => {}
            Farewell::Closed if is_fastdrop => return Ok(Delivery::Confirmed),
            // Everything has been sent, and taken without a word; or there was
            // nothing new in it: who closes has it all.
            Farewell::Closed if !is_ended || were_all_sent => return Ok(Delivery::Unconfirmed),
            // One that closes with unread bytes cannot end in good order.
            Farewell::Broken if were_all_sent && !is_fastdrop => return Ok(Delivery::Unconfirmed),
            Farewell::Closed | Farewell::Broken | Farewell::Reconnect => {}
        }
        if asks_again || (has_gained && is_ended) {
            in_vain = 0;
            continue;
        }
        in_vain += 1;
        if in_vain > client.options.retries {
            return Err(if is_broken && is_fastdrop {
                refused_by_reset()
            } else {
                Error::Network("the receiver ends the connection again and again".into())
            });
        }
        if is_fastdrop && !is_ended {
            // It lacks something that was taken for delivered: it has been started anew, say.
            lacking = Lacking::all(count);
        }
        client.pause(in_vain)?;
    }
    Err(Error::Network("the receiver reconnects again and again".into()))
}

/// The end of a connection, as the receiver made it.
#[derive(Debug, PartialEq, Eq)]
enum Farewell {
    /// It asks for another connection.
    Reconnect,
    /// It says that it has the file.
    Confirmed,
    /// It says that it does not have the file, and why.
    Failed(Code, String),
    /// In good order.
    Closed,
    /// By a reset, or by silence.
    Broken,
}

/// Waits for the end of a connection.
fn farewell(client: &ClientContext, reader: &mut FrameReader, confirms: bool) -> Result<Farewell, Error> {
    let until = Instant::now() + END_TIMEOUT;
    let mut said = Vec::new();
    while Instant::now() < until && said.len() < 4096 {
        if client.stop.is_stopped() {
            return Err(Error::Interrupted);
        }
        if !reader.comes_within(Duration::from_millis(500)) {
            continue;
        }
        let mut buffer = [0; 256];
        match reader.read_some(&mut buffer) {
            Ok(count) if count > 0 => said.extend_from_slice(&buffer[..count]),
            _ if said.windows(RECONNECT.len()).any(|window| window == RECONNECT) => {
                return Ok(Farewell::Reconnect);
            }
            _ if confirms && said == SUCCESS.as_bytes() => return Ok(Farewell::Confirmed),
            _ if confirms && said.starts_with(FAILURE.as_bytes()) => {
                let text = String::from_utf8_lossy(&said);
                let (code, reason) = parse_failure(&text).unwrap_or((Code::BadRequest, &text));
                return Ok(Farewell::Failed(code, reason.to_owned()));
            }
            // What looks like an end in good order is none if a write has
            // been told of a reset before.
            Ok(_) if reader.connection().was_reset() => return Ok(Farewell::Broken),
            Ok(_) => return Ok(Farewell::Closed),
            Err(Ended::Stopped) => return Err(Error::Interrupted),
            Err(_) => return Ok(Farewell::Broken),
        }
    }
    Err(Error::Network("the receiver did not close the connection".into()))
}
