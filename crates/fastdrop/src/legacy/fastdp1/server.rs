//! fastdp 1.0.0 and 1.1.0: receives one file, from one connection or, in
//! 1.0.0, from several one after the other.

use crate::admission::permit::ConnectionPermit;
use crate::context::server::ServerContext;
use crate::error::Error;
use crate::gate::principal::Principal;
use crate::legacy::fastdp1::chunks::Chunks;
use crate::legacy::fastdp1::receiving::receive;
use crate::legacy::fastdp1::returns::{Arrived, Identity, Return, Returns};
use crate::legacy::upload::{LegacyConnection, LegacyUpload};
use crate::net::connection::Connection;
use crate::storage::present::Announced;
use fastdrop_proto::fastdp::Version;
use fastdrop_proto::fastdp::v1::{Header, Receiver, Refusal, SUCCESS, UNNAMED, encode_failure};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Instant;

/// The server of both versions.
pub(crate) struct Server {
    context: Arc<ServerContext>,
    /// Transfers of 1.0.0, and the connections that may continue them.
    returns: Arc<Returns>,
}

impl Server {
    /// Creates a server without transfers.
    pub(crate) fn new(context: Arc<ServerContext>) -> Self {
        Self { context, returns: Arc::default() }
    }
}

/// A connection that has sent its header.
pub(crate) struct Handshaken {
    pub(crate) socket: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) key: String,
    pub(crate) header: Header,
    /// The header as it came.
    pub(crate) header_bytes: Vec<u8>,
    /// What was read beyond.
    pub(crate) early: Vec<u8>,
}

/// Serves a connection to its end.
pub(crate) fn serve(server: &Server, shaken: Handshaken, permit: ConnectionPermit) {
    let Handshaken { socket, peer, key, header, header_bytes, early } = shaken;
    let legacy = LegacyConnection { socket, peer, early, permit };
    let (reader, peer, permit) = match legacy.connect(&server.context) {
        Ok(connected) => connected,
        Err(error) => return tracing::debug!(%peer, %error, "the connection went away"),
    };
    let arrived = Return { reader, permit };
    match header.version {
        Version::V1_0 => serve_1_0(server, peer, key, header, header_bytes, arrived),
        _ => serve_1_1(server, peer, header, header_bytes, arrived),
    }
}

/// Receives over one connection, and answers with a text.
fn serve_1_1(server: &Server, peer: SocketAddr, header: Header, header_bytes: Vec<u8>, mut arrived: Return) {
    let started = Instant::now();
    // Held until the answer has gone: a server that leaves waits for whoever holds one.
    let _permit = std::mem::take(&mut arrived.permit);
    let connection = Arc::clone(arrived.reader.connection());
    let result = prepare(server, peer, &header).and_then(|(placed, proto)| {
        let mut chunks = Chunks::new(&server.context, arrived, header.clone(), header_bytes, None, proto);
        receive(&server.context, &mut chunks, placed)
    });
    report(peer, &header, started, &result);
    let answer = match &result {
        Ok(()) => SUCCESS.to_owned(),
        Err(error) => failure(error),
    };
    let _ = connection.send_bytes(answer.as_bytes());
    connection.linger();
}

/// Receives over this connection and those that continue it, or hands it to the transfer that it
/// continues. All of them are reset, but the last one of a transfer that is complete.
fn serve_1_0(
    server: &Server,
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
    let mut arrived = server.returns.arrive(&identity, arrived);
    if !matches!(arrived, Arrived::Begins(..)) {
        // If this fails, so does reading it, wherever that happens.
        let _ = connection.send_bytes(&answer);
        is_answered = true;
    }
    if let Arrived::Waits(number, before) = arrived {
        arrived = match server.returns.wait(&identity, number, before, &server.context.stop) {
            Some((joined, connection)) => Arrived::Begins(joined, connection),
            None => Arrived::Continues,
        };
    }
    let Arrived::Begins(joined, arrived) = arrived else { return };
    let prepared = prepare(server, peer, &header);
    let words = match &prepared {
        Ok(_) => answer,
        Err(error) => {
            let reason = crate::shown(error.to_string().as_bytes());
            Refusal { code: error.code(), reason }.encode(Some(&header))
        }
    };
    if !is_answered {
        let _ = connection.send_bytes(&words);
        if prepared.is_err() {
            // A moment to read them, before the reset.
            connection.drain();
        }
    }
    let result = prepared.and_then(|(placed, proto)| {
        // From here on the connection is that of the chunks: it is reset as
        // soon as they go on with another one.
        drop(connection);
        let mut chunks =
            Chunks::new(&server.context, arrived, header.clone(), header_bytes, Some(joined), proto);
        let result = receive(&server.context, &mut chunks, placed);
        if result.is_ok() {
            chunks.answer_repeated_headers();
        }
        say_the_end(chunks.reader.connection(), &header, &result);
        result
    });
    report(peer, &header, started, &result);
}

/// Ends a connection of 1.0.0 in good order if the file has its name; else it is reset. Whoever
/// asked for a confirmation hears either in words.
fn say_the_end(connection: &Connection, header: &Header, result: &Result<(), Error>) {
    match result {
        Ok(()) => {
            connection.reset_on_close(false);
            if header.confirm {
                let _ = connection.send_bytes(SUCCESS.as_bytes());
            }
            connection.linger();
        }
        // What was only cut short can be continued elsewhere.
        Err(Error::Network(_) | Error::Interrupted) => {}
        Err(error) if header.confirm => {
            let _ = connection.send_bytes(failure(error).as_bytes());
            // A moment to read it, before the reset.
            connection.drain();
        }
        Err(_) => {}
    }
}

fn failure(error: &Error) -> String {
    encode_failure(error.code(), &crate::shown(error.to_string().as_bytes()))
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
fn prepare(server: &Server, peer: SocketAddr, header: &Header) -> Result<(LegacyUpload, Receiver), Error> {
    let proto = Receiver::new(header)?;
    let announced = match header.file_size() {
        Some(bytes) => Announced::exactly(bytes),
        None => Announced::packed(header.full_size),
    };
    let placed = LegacyUpload::create(&server.context, &Principal::of(peer), path_of(header), &announced)?;
    Ok((placed, proto))
}
