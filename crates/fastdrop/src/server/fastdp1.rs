//! fastdp 1.0.0 and 1.1.0: receives one file, from one connection or, in
//! 1.0.0, from several one after the other.

mod chunks;
mod direct;
mod in_order;
mod payload;
mod returns;

use crate::codec::archive::{one_file, read_zip};
use crate::codec::decode::DecodeError;
use crate::error::Error;
use crate::net::connection::{Connection, Ended};
use crate::server::Shared;
use crate::server::fastdp1::chunks::Chunks;
use crate::server::fastdp1::direct::direct;
use crate::server::fastdp1::in_order::in_order;
use crate::server::fastdp1::payload::Decoded;
pub(super) use crate::server::fastdp1::returns::Returns;
use crate::server::fastdp1::returns::{Arrived, Identity, Return};
use crate::server::older::{Older, Placed};
use fastdrop_proto::fastdp::Version;
use fastdrop_proto::fastdp::v1::{Compression, Header, Receiver, Refusal, SUCCESS, UNNAMED, encode_failure};
use std::any::Any;
use std::io::IoSlice;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// Serves a connection to its end.
pub(super) fn serve(shared: &Arc<Shared>, shaken: Handshaken, held: Box<dyn Any + Send>) {
    let Handshaken { socket, peer, key, header, header_bytes, early } = shaken;
    let older = Older { socket, peer, early, held };
    let (reader, peer, held) = match older.connect(shared) {
        Ok(connected) => connected,
        Err(error) => return tracing::debug!(%peer, %error, "the connection went away"),
    };
    let arrived = Return { reader, held };
    match header.version {
        Version::V1_0 => serve_1_0(shared, peer, key, header, header_bytes, arrived),
        _ => serve_1_1(shared, peer, header, header_bytes, arrived),
    }
}

/// Receives over one connection, and answers with a text.
fn serve_1_1(shared: &Arc<Shared>, peer: SocketAddr, header: Header, header_bytes: Vec<u8>, arrived: Return) {
    let started = Instant::now();
    let connection = Arc::clone(arrived.reader.connection());
    let result = prepare(shared, &header).and_then(|(placed, machine)| {
        let mut chunks = Chunks::new(shared, arrived, header.clone(), header_bytes, None, machine);
        receive(shared, &mut chunks, placed)
    });
    report(peer, &header, started, &result);
    let answer = match &result {
        Ok(()) => SUCCESS.to_owned(),
        Err(error) => encode_failure(error.code(), &crate::shown(error.to_string().as_bytes())),
    };
    let _ = send(&connection, answer.as_bytes());
    connection.linger();
}

/// Receives over this connection and those that continue it, or hands it to the transfer that it
/// continues. All of them are reset, but the last one of a transfer that is complete.
fn serve_1_0(
    shared: &Arc<Shared>,
    peer: SocketAddr,
    key: String,
    header: Header,
    header_bytes: Vec<u8>,
    arrived: Return,
) {
    let started = Instant::now();
    // The sender's header governs.
    let answer = header.encode_answer();
    let identity = Identity::new(key, peer.ip(), &header);
    let connection = Arc::clone(arrived.reader.connection());
    let mut is_answered = false;
    let mut arrived = shared.returns.arrive(&identity, arrived);
    if !matches!(arrived, Arrived::Begins(..)) {
        // If this fails, so does reading it, wherever that happens.
        let _ = send(&connection, &answer);
        is_answered = true;
    }
    if let Arrived::Waits(number, before) = arrived {
        arrived = match shared.returns.wait(&identity, number, before, &shared.stop) {
            Some((joined, connection)) => Arrived::Begins(joined, connection),
            None => Arrived::Continues,
        };
    }
    let Arrived::Begins(joined, arrived) = arrived else { return };
    let prepared = prepare(shared, &header);
    let words = match &prepared {
        Ok(_) => answer,
        Err(error) => {
            let reason = crate::shown(error.to_string().as_bytes());
            Refusal { code: error.code(), reason }.encode(Some(&header))
        }
    };
    if !is_answered {
        let _ = send(&connection, &words);
        if prepared.is_err() {
            // A moment to read them, before the reset.
            connection.drain();
        }
    }
    let result = prepared.and_then(|(placed, machine)| {
        // From here on the connection is that of the chunks: it is reset as
        // soon as they go on with another one.
        drop(connection);
        let mut chunks = Chunks::new(shared, arrived, header.clone(), header_bytes, Some(joined), machine);
        receive(shared, &mut chunks, placed)?;
        let connection = chunks.reader.connection();
        connection.reset_on_close(false);
        if header.confirm {
            let _ = send(connection, SUCCESS.as_bytes());
        }
        connection.linger();
        Ok(())
    });
    report(peer, &header, started, &result);
}

fn report(peer: SocketAddr, header: &Header, started: Instant, result: &Result<(), Error>) {
    let name = crate::shown(path_of(header));
    let (protocol, seconds) = (header.version, started.elapsed().as_secs_f64());
    match result {
        Ok(()) => tracing::info!(%peer, %protocol, name, seconds, "received"),
        Err(error) => tracing::warn!(%peer, %protocol, name, seconds, %error, "failed"),
    }
}

fn path_of(header: &Header) -> &[u8] {
    header.file_name.as_deref().unwrap_or(UNNAMED).as_bytes()
}

/// Makes the place of the file, before anything of it is taken.
fn prepare(shared: &Arc<Shared>, header: &Header) -> Result<(Placed, Receiver), Error> {
    let machine = Receiver::new(header)?;
    Ok((Placed::create(shared, path_of(header), header.full_size)?, machine))
}

fn send(connection: &Connection, bytes: &[u8]) -> Result<(), Ended> {
    connection.send(&mut [IoSlice::new(bytes)], usize::MAX, |_| Duration::ZERO)
}

fn receive(shared: &Arc<Shared>, chunks: &mut Chunks<'_>, placed: Placed) -> Result<(), Error> {
    let header = chunks.header.clone();
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
