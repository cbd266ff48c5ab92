//! fastdp 1.0.0 and 1.1.0: sends one file.

use super::older::{SourceFile, changed, send_all};
use super::{Client, Compress, Error};
use crate::archive::{Member, MemberKind, TarGzWriter, write_one_zip};
use crate::connection::{Connection, Ended, FrameReader};
use crate::encode::zstd;
use crate::observe::Phase;
use crate::throttle::Throttle;
use fastdrop_proto::fastdp::Version;
use fastdrop_proto::fastdp::v1::{
    ChunkPrefix, Compression, FAILURE, Header, RECONNECT, RECONNECT_EVERY, SUCCESS, one_chunk_for,
};
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
const END_PATIENCE: Duration = Duration::from_secs(600);
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

pub(super) fn send(
    client: &Client,
    file: &SourceFile,
    version: Version,
    throttle: Option<&Throttle>,
) -> Result<(), Error> {
    let payload = make_payload(client, file, version)?;
    if version == Version::V1_1 {
        client.persist(|_| send_once(client, file, &payload, throttle))
    } else {
        send_and_return(client, file, &payload, throttle)
    }
}

fn make_payload(client: &Client, file: &SourceFile, version: Version) -> Result<Payload, Error> {
    let compression = match client.options.compress {
        Compress::Auto | Compress::None => Compression::None,
        Compress::Zstd => Compression::Zstd,
        Compress::Zip => Compression::Zip,
        Compress::TarGz => Compression::TarGz,
        Compress::Gzip => return Err(Error::with_code(400, "fastdp does not compress with gzip alone")),
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
        header: Header { version, one_chunk, full_size, compression, file_name, checksum },
    })
}

/// Compresses the file into another one without a name.
fn pack(file: &SourceFile, compression: Compression) -> Result<File, Error> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => changed(),
        _ => Error::with_code(500, format!("compressing {}: {error}", crate::shown(&file.name))),
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
        let hasher = scope.spawn(move || {
            let mut state = Sha256::new();
            for buffer in to_hash {
                state.update(&buffer);
                // At the end nobody wants it any more.
                let _ = empty.try_send(buffer);
            }
            state.finalize().into()
        });
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
        hasher.join().map_err(|_| Error::with_code(500, "hashing failed"))
    })
}

/// A connection after the upgrade, on which the header has been sent.
fn open(client: &Client, payload: &Payload) -> Result<(Arc<Connection>, FrameReader), Error> {
    let (connection, early, _) = client.connect(payload.header.version)?;
    client.stop.watch(&connection);
    let mut reader = FrameReader::new(Arc::clone(&connection), early);
    send_all(&connection, &payload.header.encode())?;
    if payload.header.version == Version::V1_0 {
        read_header(&mut reader)?;
    }
    client.observer.set_phase(Phase::Moving);
    Ok((connection, reader))
}

/// The receiver's header, which says nothing new: it has to be one, of our sizes or of its own.
fn read_header(reader: &mut FrameReader) -> Result<(), Error> {
    let mut prefix = [0; 4];
    reader.fill(&mut prefix)?;
    let len = u32::from_be_bytes(prefix);
    if len > fastdrop_proto::fastdp::HEADER_MAX {
        return Err(Error::Foreign("the receiver's header is too long".into()));
    }
    let json = reader.payload(len)?;
    let parsed: Result<serde_json::Map<String, serde_json::Value>, _> = fastdrop_proto::json::parse(&json);
    parsed.map(|_| ()).map_err(|error| Error::Foreign(format!("the receiver's header: {error}")))
}

fn send_chunk(
    client: &Client,
    connection: &Connection,
    payload: &Payload,
    index: u64,
    throttle: Option<&Throttle>,
) -> Result<u64, Error> {
    let one_chunk = u64::from(payload.header.one_chunk);
    let offset = index * one_chunk;
    let size = (payload.file.size - offset).min(one_chunk);
    let first = u32::from(payload.header.version == Version::V1_0);
    let number =
        u32::try_from(index).map_err(|_| Error::with_code(413, "more chunks than there are numbers"))?;
    let prefix = ChunkPrefix { number: number + first, size: size as u32 };
    send_all(connection, &prefix.encode())?;
    client.send_part(connection, &payload.file, offset, size, throttle)?;
    Ok(size)
}

fn chunks(payload: &Payload) -> u64 {
    payload.file.size.div_ceil(payload.header.one_chunk.into())
}

// ---- 1.1.0: one connection, and an answer ----

fn send_once(
    client: &Client,
    source: &SourceFile,
    payload: &Payload,
    throttle: Option<&Throttle>,
) -> Result<(), Error> {
    let (connection, mut reader) = open(client, payload)?;
    let count = chunks(payload);
    let sent = (0..count).try_for_each(|index| {
        if index + 1 == count {
            source.check()?;
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
    match (answer(client, &mut reader), sent) {
        (Ok(text), _) if text == SUCCESS => Ok(()),
        (Ok(text), _) if text.starts_with(FAILURE) => Err(Error::with_code(
            400,
            format!("the receiver refused: {}", crate::shown(text.trim_start_matches(FAILURE).as_bytes())),
        )),
        (_, Err(error)) | (Err(error), _) => Err(error),
        (Ok(text), Ok(())) if text.is_empty() => {
            Err(Error::Network("the receiver closed without saying that the file had arrived".into()))
        }
        (Ok(text), Ok(())) => {
            Err(Error::Foreign(format!("the receiver says {:?}", crate::shown(text.as_bytes()))))
        }
    }
}

/// What the receiver says until it closes.
fn answer(client: &Client, reader: &mut FrameReader) -> Result<String, Error> {
    let until = Instant::now() + END_PATIENCE;
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

fn send_and_return(
    client: &Client,
    source: &SourceFile,
    payload: &Payload,
    throttle: Option<&Throttle>,
) -> Result<(), Error> {
    let count = chunks(payload);
    // For each chunk that the receiver may lack, how far from the beginning of a connection it was sent at best; what was
    // sent early has arrived rather than what was sent late.
    let mut lacking: BTreeMap<u64, u64> = (0..count).map(|index| (index, u64::MAX)).collect();
    let most = CONNECTIONS_MAX + 2 * payload.file.size.div_ceil(RECONNECT_EVERY);
    for connections in 1..=most {
        if client.stop.is_stopped() {
            return Err(Error::Interrupted);
        }
        let all_sent = lacking.values().all(|&best| best < u64::MAX);
        let (connection, mut reader) = match open(client, payload) {
            Ok(opened) => opened,
            // A receiver that is gone has what it wanted.
            Err(Error::Network(_)) if all_sent => return Ok(()),
            Err(Error::Network(_)) if connections > 1 => {
                client.pause(connections.min(6) as u32)?;
                continue;
            }
            Err(error) => return Err(error),
        };
        // The least certain first: so each connection brings something new, however soon it ends.
        let mut order: Vec<_> = lacking.iter().map(|(&index, &best)| (Reverse(best), index)).collect();
        order.sort_unstable();
        let mut sent = Vec::new();
        let mut position = 0;
        let mut ended = false;
        for (_, index) in order {
            if reader.comes_within(Duration::ZERO) {
                ended = true;
                break;
            }
            if index + 1 == count {
                source.check()?;
            }
            match send_chunk(client, &connection, payload, index, throttle) {
                Ok(size) => {
                    position += size;
                    sent.push((index, position));
                }
                Err(Error::Network(_)) => {
                    ended = true;
                    break;
                }
                Err(error) => {
                    connection.close();
                    return Err(error);
                }
            }
        }
        if !ended {
            client.observer.set_phase(Phase::Finishing);
            connection.finish_writing();
        }
        let farewell = farewell(client, &mut reader)?;
        let asked = matches!(farewell, Farewell::Reconnect);
        for (number, (index, at)) in sent.into_iter().enumerate() {
            // A receiver that asks for another connection has read something of this one.
            if at + IN_FLIGHT_MAX <= position || (number == 0 && asked) {
                lacking.remove(&index);
            } else if let Some(best) = lacking.get_mut(&index) {
                *best = at.min(*best);
            }
        }
        match farewell {
            // Everything has been sent, and taken without a word.
            Farewell::Closed if !ended => return Ok(()),
            // There was nothing new in it: who closes has it all.
            Farewell::Closed | Farewell::Broken if all_sent => return Ok(()),
            Farewell::Closed | Farewell::Broken | Farewell::Reconnect => {}
        }
    }
    Err(Error::Network("the receiver reconnects again and again".into()))
}

enum Farewell {
    Reconnect,
    Closed,
    Broken,
}

/// How the receiver ends the connection.
fn farewell(client: &Client, reader: &mut FrameReader) -> Result<Farewell, Error> {
    let until = Instant::now() + END_PATIENCE;
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
            Ok(_) => return Ok(Farewell::Closed),
            Err(Ended::Stopped) => return Err(Error::Interrupted),
            Err(_) => return Ok(Farewell::Broken),
        }
    }
    Err(Error::Network("the receiver did not close the connection".into()))
}
