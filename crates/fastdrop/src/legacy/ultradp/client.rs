//! UltraDP: sends one file, and waits until the receiver has closed.

use crate::codec::encode::ZSTD_LEVEL;
use crate::context::client::ClientContext;
use crate::context::client::options::Compress;
use crate::context::client::summary::Delivery;
use crate::error::Error;
use crate::legacy::sending::{refused_by_reset, send_all, send_paced, send_part};
use crate::legacy::source_file::SourceFile;
use crate::net::connection::Connection;
use crate::net::frames::FrameReader;
use crate::net::throttle::Throttle;
use crate::observe::Phase;
use fastdrop_proto::fastdp::Code;
use fastdrop_proto::ultradp::{Announcement, CHUNK};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the receiver may take to sync and name what it has.
const END_TIMEOUT: Duration = Duration::from_secs(600);

pub(crate) fn send(
    client: &ClientContext,
    file: &SourceFile,
    throttle: Option<&Throttle>,
) -> Result<Delivery, Error> {
    client.with_attempts(|| send_once(client, file, throttle))
}

fn send_once(
    client: &ClientContext,
    file: &SourceFile,
    throttle: Option<&Throttle>,
) -> Result<Delivery, Error> {
    let compressed = match client.options.compress {
        Compress::Auto | Compress::None => false,
        Compress::Zstd => true,
        _ => return Err(Error::failed(Code::BadRequest, "UltraDP compresses with Zstandard or not at all")),
    };
    let announcement = Announcement { name: file.name_text()?.into(), size: file.size, compressed };
    let line = announcement.encode().ok_or_else(|| {
        Error::failed(
            Code::BadRequest,
            format!("{}: UltraDP cannot carry this name", crate::shown(&file.name)),
        )
    })?;
    let connection = client.bare(client.target.port)?;
    connection.stop_at_answer();
    client.observer.set_phase(Phase::Moving);
    let sent = transmit(client, &connection, &line, file, compressed, throttle);
    match sent.and_then(|()| finish(client, &connection)) {
        // Nobody says whether the file is there, or whose end that was.
        Ok(()) => Ok(Delivery::Unconfirmed),
        // The one thing that a receiver can say.
        Err(Error::Network(_)) if connection.was_reset() => Err(refused_by_reset()),
        Err(error) => {
            // The receiver is not to take it for the end of the file.
            connection.reset_now();
            Err(error)
        }
    }
}

fn transmit(
    client: &ClientContext,
    connection: &Connection,
    line: &[u8],
    file: &SourceFile,
    compressed: bool,
    throttle: Option<&Throttle>,
) -> Result<(), Error> {
    send_all(connection, line)?;
    let mut offset = 0;
    while offset < file.size {
        let len = u64::from(CHUNK).min(file.size - offset);
        if offset + len == file.size {
            file.check()?;
        }
        if compressed {
            let mut plain = vec![0; len as usize];
            file.read_at(&mut plain, offset)?;
            let frame = zstd::bulk::compress(&plain, ZSTD_LEVEL)
                .map_err(|error| Error::failed(Code::Internal, format!("compressing: {error}")))?;
            send_all(connection, &(frame.len() as u64).to_be_bytes())?;
            send_paced(connection, &frame, throttle)?;
            client.note_moved(len);
        } else {
            send_all(connection, &len.to_be_bytes())?;
            send_part(client, connection, file, offset, len, throttle)?;
        }
        offset += len;
    }
    Ok(())
}

/// Says that this is all, and waits until the receiver has closed too.
fn finish(client: &ClientContext, connection: &Arc<Connection>) -> Result<(), Error> {
    client.observer.set_phase(Phase::Finishing);
    connection.finish_writing();
    let reader = &mut FrameReader::new(Arc::clone(connection), Vec::new());
    let until = Instant::now() + END_TIMEOUT;
    while Instant::now() < until && !client.stop.is_stopped() {
        if reader.comes_within(Duration::from_millis(900)) {
            return match reader.read_some(&mut [0; 64])? {
                0 => Ok(()),
                _ => Err(Error::Foreign("the receiver answers, which UltraDP does not".into())),
            };
        }
    }
    if client.stop.is_stopped() {
        return Err(Error::Interrupted);
    }
    Err(Error::Network("the receiver did not close the connection".into()))
}
