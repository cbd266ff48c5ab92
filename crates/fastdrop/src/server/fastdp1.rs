//! fastdp 1.0.0 and 1.1.0: receives one file, from one connection or, in 1.0.0, from several one after the other.

mod chunks;
mod direct;
mod in_order;
mod payload;

use self::chunks::Chunks;
use self::direct::direct;
use self::in_order::in_order;
use self::payload::Decoded;
use super::older::{Older, Placed};
use super::{Shared, lock};
use crate::archive::{one_file, read_zip};
use crate::connection::{Connection, Ended, FrameReader};
use crate::decode::DecodeError;
use crate::error::Error;
use fastdrop_proto::fastdp::Version;
use fastdrop_proto::fastdp::v1::{Compression, FAILURE, Header, SUCCESS, UNNAMED};
use std::any::Any;
use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a 1.0.0 transfer waits for its next connection.
const RETURN_PATIENCE: Duration = Duration::from_secs(60);
/// Connections in a row that may bring nothing new.
const IN_VAIN_MAX: u32 = 16;

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
    let first = Arc::clone(arrived.reader.connection());
    let (result, connection) = match Chunks::new(shared, arrived, header, header_bytes, identity) {
        Ok(mut chunks) => (receive(shared, &mut chunks), Arc::clone(chunks.reader.connection())),
        Err(error) => (Err(error), first),
    };
    let seconds = started.elapsed().as_secs_f64();
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
    let placed = Placed::create(shared, &path, header.full_size)?;
    let incoming = placed.incoming()?;
    match header.compression {
        Compression::None => direct(chunks, incoming, incoming.file())?,
        Compression::Zip => {
            // Its directory stands at its end: nothing can be decoded before.
            let archive = incoming.spool()?;
            direct(chunks, incoming, archive.as_fd())?;
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
