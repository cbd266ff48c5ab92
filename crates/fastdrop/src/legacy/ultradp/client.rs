//! UltraDP: sends one file, and waits until the receiver has closed.

use crate::codec::encode::ZSTD_LEVEL;
use crate::context::client::ClientContext;
use crate::context::client::options::Compress;
use crate::context::client::summary::Delivery;
use crate::context::password::Password;
use crate::error::Error;
use crate::legacy::sending::{refused_by_reset, send_all, send_paced, send_part};
use crate::legacy::source_file::SourceFile;
use crate::net::connection::Connection;
use crate::net::frames::FrameReader;
use crate::net::throttle::Throttle;
use crate::observe::Phase;
use crate::random::random;
use fastdrop_proto::fastdp::Code;
use fastdrop_proto::ultradp::{Announcement, CHUNK, CHUNK_MAX, Encryptor, Key, Prelude};
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
    let first = match client.options.compress {
        Compress::Auto | Compress::None => None,
        Compress::Zstd => shrunk_first(file)?,
        _ => return Err(Error::failed(Code::BadRequest, "UltraDP compresses with Zstandard or not at all")),
    };
    let encryption = client.options.ultradp_password.as_ref().map(Encryption::new).transpose()?;
    let announcement = Announcement {
        name: file.name_text()?.into(),
        size: file.size,
        compressed: first.is_some(),
        encrypted: encryption.is_some(),
        in_doubt: false,
    };
    let line = announcement.encode().map_err(|why| {
        let name = crate::shown(&file.name);
        let message = format!("{name}: UltraDP cannot carry this name: {why}; send it under another one");
        Error::failed(Code::BadRequest, message)
    })?;
    let connection = client.bare(client.target.port)?;
    connection.stop_at_answer();
    client.observer.set_phase(Phase::Moving);
    let sent = send_all(&connection, &line).map_err(Error::from).and_then(|()| match (first, encryption) {
        (None, None) => send_plain(client, &connection, file, throttle),
        (first, encryption) => send_coded(client, &connection, file, first, encryption, throttle),
    });
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

/// A key of this connection, and what tells the receiver how it was derived.
struct Encryption {
    prelude: Prelude,
    encryptor: Encryptor,
}

impl Encryption {
    fn new(password: &Password) -> Result<Self, Error> {
        let prelude = Prelude { salt: random()?, iv: random()? };
        let key = Key::derive(password.bytes(), &prelude.salt);
        Ok(Self { prelude, encryptor: Encryptor::new(&key, &prelude.iv) })
    }
}

/// The first chunk as a Zstandard frame, if that is shorter than the chunk.
///
/// A receiver in use adds up the sizes of frames until they reach the size of the file. Where the
/// first frame does not shrink, the file is sent as it is.
fn shrunk_first(file: &SourceFile) -> Result<Option<Vec<u8>>, Error> {
    let len = u64::from(CHUNK).min(file.size);
    let frame = frame(file, 0, len)?;
    Ok(Some(frame).filter(|frame| (frame.len() as u64) < len))
}

fn frame(file: &SourceFile, offset: u64, len: u64) -> Result<Vec<u8>, Error> {
    let mut plain = vec![0; len as usize];
    file.read_at(&mut plain, offset)?;
    zstd::bulk::compress(&plain, ZSTD_LEVEL)
        .map_err(|error| Error::failed(Code::Internal, format!("compressing: {error}")))
}

/// Sends the chunks as they are, from the file to the socket.
fn send_plain(
    client: &ClientContext,
    connection: &Connection,
    file: &SourceFile,
    throttle: Option<&Throttle>,
) -> Result<(), Error> {
    let mut offset = 0;
    while offset < file.size {
        let len = u64::from(CHUNK).min(file.size - offset);
        if offset + len == file.size {
            file.check()?;
        }
        send_all(connection, &len.to_be_bytes())?;
        send_part(client, connection, file, offset, len, throttle)?;
        offset += len;
    }
    Ok(())
}

/// Sends the chunks compressed, which begin with `first`, or encrypted, or both.
fn send_coded(
    client: &ClientContext,
    connection: &Connection,
    file: &SourceFile,
    mut first: Option<Vec<u8>>,
    mut encryption: Option<Encryption>,
    throttle: Option<&Throttle>,
) -> Result<(), Error> {
    if let Some(encryption) = &encryption {
        send_all(connection, &encryption.prelude.encode())?;
    }
    let is_compressed = first.is_some();
    let (mut offset, mut counted) = (0, 0);
    while offset < file.size {
        let rest = file.size - offset;
        let mut len = u64::from(CHUNK).min(rest);
        let mut chunk = match first.take() {
            Some(first) => first,
            None if is_compressed => frame(file, offset, len)?,
            None => {
                let mut plain = vec![0; len as usize];
                file.read_at(&mut plain, offset)?;
                plain
            }
        };
        // A receiver that adds up frames would stop before the last, short chunk, where those after
        // the first have not shrunk: it goes into the same frame.
        let is_counted_out = is_compressed && counted + chunk.len() as u64 >= file.size;
        if is_counted_out && len < rest && rest <= CHUNK_MAX {
            len = rest;
            chunk = frame(file, offset, len)?;
        }
        if len == rest {
            file.check()?;
        }
        counted += chunk.len() as u64;
        if let Some(encryption) = &mut encryption {
            encryption.encryptor.encrypt(&mut chunk);
        }
        send_all(connection, &(chunk.len() as u64).to_be_bytes())?;
        send_paced(connection, &chunk, throttle)?;
        client.note_moved(len);
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
