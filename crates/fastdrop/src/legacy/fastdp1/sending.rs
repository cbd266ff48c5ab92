//! The payload that is made of a file, its headers and its chunks, as both versions send them.

use crate::codec::archive::{Member, MemberKind, TarGzWriter, write_one_zip};
use crate::codec::encode::zstd;
use crate::context::client::ClientContext;
use crate::context::client::connect::Upgraded;
use crate::context::client::options::Compress;
use crate::error::Error;
use crate::legacy::sending::{send_all, send_part};
use crate::legacy::source_file::{SourceFile, changed};
use crate::net::connection::Connection;
use crate::net::frames::FrameReader;
use crate::net::throttle::Throttle;
use crate::observe::Phase;
use crate::thread::{refused as refused_thread, spawn_scoped};
use fastdrop_proto::fastdp::v1::{
    ChunkPrefix, Compression, Header, HeaderAnswer, Refusal, one_chunk_for, one_chunk_within,
};
use fastdrop_proto::fastdp::{Code, Refuse, Version};
use fastdrop_proto::units::Mtime;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::available_parallelism;
use std::time::Duration;

/// Time for the receiver to answer, sync and name what it has.
pub(super) const END_TIMEOUT: Duration = Duration::from_secs(600);
/// The probable meaning of a receiver that ends a connection without words.
pub(super) const UNABLE: &str = "perhaps it could not write the file (no space, no permission, a name it does not take, or one \
                      that exists), or stopped: its own messages may say";
/// Threads that compress, each with some megabytes.
const THREADS_MAX: usize = 16;
/// Bytes that are hashed at once.
const STEP: usize = 256 << 10;

/// The bytes that go over the wire: the file itself, or what was made of it.
pub(super) struct Payload {
    pub(super) file: SourceFile,
    pub(super) header: Header,
}

pub(super) fn make_payload(
    client: &ClientContext,
    file: &SourceFile,
    version: Version,
) -> Result<Payload, Error> {
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
    let one_chunk = match version {
        // A receiver of 1.0.0 may take no more chunks than the size of the file announces.
        Version::V1_0 => one_chunk_within(file.size, packed.size),
        _ => one_chunk_for(packed.size),
    };
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

/// Compresses the file into another one without a name, by as many threads as there are cores.
fn pack(file: &SourceFile, compression: Compression) -> Result<File, Error> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => changed(),
        _ => Error::failed(Code::Internal, format!("compressing {}: {error}", crate::shown(&file.name))),
    };
    let name = file.name_text()?;
    let name = name.rsplit('/').next().unwrap_or(name);
    let mut spool = tempfile::tempfile().map_err(failed)?;
    let mut source = file.reader()?;
    let threads = available_parallelism().map_or(1, |cores| cores.get().min(THREADS_MAX));
    let buffered = |spool: &File| spool.try_clone().map(|spool| BufWriter::with_capacity(1 << 20, spool));
    match compression {
        Compression::Zip => {
            spool.try_clone().and_then(|out| write_one_zip(&mut source, file.size, name, 0o644, out, threads))
        }
        Compression::TarGz => buffered(&spool).and_then(|out| {
            let mtime = Mtime { seconds: i64::try_from(file.mtime()).unwrap_or(i64::MAX), nanos: 0 };
            let (path, kind) = (name.as_bytes().to_vec(), MemberKind::File(file.size));
            let mut archive = TarGzWriter::with_threads(out, threads)?;
            archive.add(&Member { path, kind, mtime, mode: 0o644 }, &mut source)?;
            archive.finish()
        }),
        _ => buffered(&spool).and_then(|out| zstd(&mut source, file.size, out, threads)),
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
pub(super) fn exchange_headers(
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

pub(super) fn refused(code: Code, message: String) -> Error {
    Error::Refused(Refuse { code, message, paths: Vec::new() })
}

pub(super) fn send_chunk(
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

pub(super) fn chunks(payload: &Payload) -> u64 {
    payload.file.size.div_ceil(payload.header.one_chunk.into())
}
