//! Sending bytes and parts of files, and taking a reset for an answer.

use crate::context::client::ClientContext;
use crate::error::Error;
use crate::legacy::source_file::{SourceFile, changed};
use crate::net::connection::{Connection, Ended, SendFileError};
use crate::net::throttle::Throttle;
use fastdrop_proto::fastdp::{Code, Refuse};
use std::time::{Duration, Instant};

/// The error for a connection that the receiver has reset, where a
/// protocol has no words for a refusal.
pub(crate) fn refused_by_reset() -> Error {
    let message = "it reset the connection; its log says why".into();
    Error::Refused(Refuse { code: Code::Forbidden, message, paths: Vec::new() })
}

/// Sends all of `bytes`.
pub(crate) fn send_all(connection: &Connection, bytes: &[u8]) -> Result<(), Ended> {
    connection.send_bytes(bytes)
}

/// Sends all of `bytes`, not faster than the limit allows.
pub(crate) fn send_paced(
    connection: &Connection,
    bytes: &[u8],
    throttle: Option<&Throttle>,
) -> Result<(), Ended> {
    let Some(throttle) = throttle else { return send_all(connection, bytes) };
    let pace = |count: usize| match count {
        0 => Duration::ZERO,
        count => throttle.book(count, Instant::now()),
    };
    connection.send(&mut [std::io::IoSlice::new(bytes)], throttle.piece_max(), pace)
}

/// Sends `len` bytes of a file, counts them, and keeps the pace.
pub(crate) fn send_part(
    client: &ClientContext,
    connection: &Connection,
    file: &SourceFile,
    offset: u64,
    len: u64,
    throttle: Option<&Throttle>,
) -> Result<(), Error> {
    let piece_max = throttle.map_or(1 << 20, Throttle::piece_max);
    let pace = |count: usize| match throttle {
        Some(throttle) if count > 0 => throttle.book(count, Instant::now()),
        _ => Duration::ZERO,
    };
    let sent =
        connection.send_file(file.fd(), offset, len, piece_max, pace).map_err(|error| match error {
            SendFileError::Source(errno) => Error::system(crate::shown(&file.name), errno),
            SendFileError::Ended(ended) => ended.into(),
        })?;
    client.note_moved(sent);
    if sent < len { Err(changed()) } else { Ok(()) }
}
