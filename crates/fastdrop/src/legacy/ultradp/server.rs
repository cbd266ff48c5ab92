//! UltraDP: receives one file from a connection on which nothing is answered. It is
//! reset unless the file gets its name.

use crate::admission::count::Counted;
use crate::codec::decode::{expect_end, fill, zstd_frame};
use crate::context::password::Password;
use crate::context::server::ServerContext;
use crate::error::Error;
use crate::gate::principal::Principal;
use crate::legacy::upload::{LegacyConnection, LegacyUpload};
use crate::lock::lock;
use crate::net::connection::Ended;
use crate::net::frames::{FrameReader, Payload};
use crate::stop::Stop;
use crate::storage::present::Announced;
use crate::storage::single::{BUFFER, WriteBehind};
use fastdrop_proto::fastdp::Code;
use fastdrop_proto::ultradp::{Announcement, Decryptor, Key, Prelude, Receiver, UltraDpError};
use std::io::{BufReader, Read};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a sender may keep its side open once everything has come.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that may wait for their key at once, with the one whose turn it is.
const DERIVING_MAX: usize = 16;

/// The server of UltraDP.
pub(crate) struct Server {
    context: Arc<ServerContext>,
    keys: KeyTurns,
}

impl Server {
    /// Creates a server of which nobody waits for a key.
    pub(crate) fn new(context: Arc<ServerContext>) -> Self {
        Self { context, keys: KeyTurns::default() }
    }
}

/// Turns in which keys are derived.
#[derive(Default)]
struct KeyTurns {
    deriving: Mutex<()>,
    /// Connections that wait for their key, with the one whose turn it is.
    waiting: Arc<AtomicUsize>,
}

/// Serves a connection whose first line is there.
pub(crate) fn serve(server: &Server, legacy: LegacyConnection) {
    let peer = legacy.peer;
    let started = Instant::now();
    match receive(server, legacy) {
        Ok((path, bytes)) => {
            let (path, seconds) = (crate::shown(path.as_bytes()), started.elapsed().as_secs_f64());
            tracing::info!(%peer, protocol = "ultradp", path, bytes, seconds, "received");
        }
        Err(error) => tracing::warn!(%peer, protocol = "ultradp", %error, "failed"),
    }
}

fn receive(server: &Server, legacy: LegacyConnection) -> Result<(String, u64), Error> {
    let context = &server.context;
    let parsed = Announcement::parse(&legacy.early).map_err(refused)?;
    let Some((announcement, used)) = parsed else {
        return Err(refused(UltraDpError::Announcement("it is not complete")));
    };
    let password = context.options.ultradp_password.as_ref();
    if announcement.encrypted && password.is_none() {
        return Err(refused(UltraDpError::Secured));
    }
    let (mut reader, peer, _permit) = legacy.connect(context)?;
    let connection = Arc::clone(reader.connection());
    reader.fill(&mut vec![0; used])?;
    let announced = Announced::exactly(announcement.size);
    let (who, name) = (Principal::of(peer), announcement.name.as_bytes());
    let placed = match announcement.in_doubt {
        true => LegacyUpload::create_beside(context, &who, name, &announced)?,
        false => LegacyUpload::create(context, &who, name, &announced)?,
    };
    // Only for what may be put there.
    let password = password.filter(|_| announcement.encrypted);
    if password.is_some() {
        tracing::info!(%peer, protocol = "ultradp", "what comes is encrypted, not authenticated");
    }
    let mut cipher = password.map(|password| decryptor(server, &mut reader, password)).transpose()?;
    let mut receiver = Receiver::new(&announcement);
    let compressed = announcement.compressed;
    let result = placed
        .incoming()?
        .write_behind(|behind| chunks(&mut reader, &mut receiver, compressed, cipher.as_mut(), behind));
    match result {
        Ok(()) => placed.commit()?,
        // What is only incomplete may be worth something to somebody; what is wrong is not.
        Err(Error::Network(why)) => {
            if receiver.came() > 0 {
                placed.keep_aside(receiver.came());
            }
            receiver.handle_end().map_err(refused)?;
            return Err(Error::Network(why));
        }
        Err(error) => return Err(error),
    }
    // The only sign of success that there is: whatever has failed
    // before this resets the connection.
    connection.finish();
    Ok((announcement.name, announcement.size))
}

/// Receives salt and initialisation vector, and derives the key.
fn decryptor(server: &Server, reader: &mut FrameReader, password: &Password) -> Result<Decryptor, Error> {
    let mut prelude = [0; Prelude::LEN];
    reader.fill(&mut prelude)?;
    let Prelude { salt, iv } = Prelude::decode(prelude);
    let key = server.keys.in_turn(&server.context.stop, || Key::derive(password.bytes(), &salt))?;
    Ok(Decryptor::new(&key, &iv))
}

impl KeyTurns {
    /// Derives one key at a time: strangers who ask for keys take one core of a server at most.
    fn in_turn<T>(&self, stop: &Stop, derive: impl FnOnce() -> T) -> Result<T, Error> {
        let Some(_waiting) = Counted::within(&self.waiting, DERIVING_MAX) else {
            return Err(Error::failed(Code::Unavailable, "too many senders ask for a key at once"));
        };
        let _turn = lock(&self.deriving);
        if stop.is_stopped() {
            return Err(Error::Interrupted);
        }
        Ok(derive())
    }
}

/// Receives chunks until the sender ends.
fn chunks(
    reader: &mut FrameReader,
    receiver: &mut Receiver,
    compressed: bool,
    mut cipher: Option<&mut Decryptor>,
    behind: &mut WriteBehind,
) -> Result<(), Error> {
    loop {
        if receiver.handle_end().is_ok() && !ends_or_goes_on(reader) {
            return Ok(());
        }
        let mut length = [0; 8];
        match reader.fill(&mut length) {
            Ok(()) => {}
            Err(Ended::Stopped) => return Err(Error::Interrupted),
            // However it ended: what was announced has come, or it has not.
            Err(_) => return receiver.handle_end().map_err(refused),
        }
        let length = receiver.handle_length(length).map_err(refused)?;
        let cipher = cipher.as_deref_mut();
        if compressed {
            frame(reader, receiver, length, cipher, behind)?;
        } else {
            plain(reader, receiver, length, cipher, behind)?;
        }
    }
}

/// Whether the sender does something else than nothing within a bound.
fn ends_or_goes_on(reader: &FrameReader) -> bool {
    let until = Instant::now() + END_TIMEOUT;
    while Instant::now() < until {
        if reader.comes_within(Duration::from_millis(900)) {
            return true;
        }
    }
    false
}

fn plain(
    reader: &mut FrameReader,
    receiver: &mut Receiver,
    mut left: usize,
    mut cipher: Option<&mut Decryptor>,
    behind: &mut WriteBehind,
) -> Result<(), Error> {
    while left > 0 {
        let mut buffer = behind.buffer()?;
        let count = left.min(BUFFER);
        reader.fill(&mut buffer[..count])?;
        if let Some(cipher) = &mut cipher {
            cipher.decrypt(&mut buffer[..count]);
        }
        behind.write(buffer, count, receiver.came())?;
        receiver.handle_decoded(count as u64).map_err(refused)?;
        left -= count;
    }
    Ok(())
}

fn frame(
    reader: &mut FrameReader,
    receiver: &mut Receiver,
    length: usize,
    cipher: Option<&mut Decryptor>,
    behind: &mut WriteBehind,
) -> Result<(), Error> {
    let bad_frame = match cipher {
        Some(_) => bad_secured_frame,
        None => bad_frame,
    };
    let payload = Decrypted { payload: Payload::new(reader, length as u64), cipher };
    let mut payload = BufReader::with_capacity(BUFFER, payload);
    let decoded = (|| {
        let mut decoder = zstd_frame(&mut payload).map_err(bad_frame)?;
        loop {
            let mut buffer = behind.buffer()?;
            let count = fill(&mut decoder, &mut buffer).map_err(bad_frame)?;
            if count == 0 {
                behind.give_back(buffer);
                return expect_end(decoder.get_mut()).map_err(bad_frame);
            }
            // Counted before it is written: a bomb ends at the announced size.
            let at = receiver.came();
            receiver.handle_decoded(count as u64).map_err(refused)?;
            behind.write(buffer, count, at)?;
        }
    })();
    match payload.get_mut().payload.ended.take() {
        Some(ended) => Err(ended.into()),
        None => decoded,
    }
}

/// The contents of a chunk, decrypted where they are encrypted.
struct Decrypted<'a> {
    payload: Payload<'a>,
    cipher: Option<&'a mut Decryptor>,
}

impl Read for Decrypted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.payload.read(buffer)?;
        if let Some(cipher) = &mut self.cipher {
            cipher.decrypt(buffer.get_mut(..count).unwrap_or_default());
        }
        Ok(count)
    }
}

fn bad_secured_frame(error: std::io::Error) -> Error {
    let why = "a chunk that is no Zstandard frame; is the password the same at both ends?";
    Error::failed(Code::Integrity, format!("{why} ({error})"))
}

fn bad_frame(error: std::io::Error) -> Error {
    Error::failed(Code::Integrity, format!("a chunk that is no Zstandard frame: {error}"))
}

fn refused(error: UltraDpError) -> Error {
    match error {
        UltraDpError::Incomplete { .. } => Error::Network(error.to_string()),
        UltraDpError::TooLong(_) => Error::failed(Code::OverLimit, error.to_string()),
        _ => Error::protocol(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_may_wait_for_a_key_and_none_after_the_word_to_stop() {
        let (stop, keys) = (Stop::default(), KeyTurns::default());
        let (begun, begins) = std::sync::mpsc::channel();
        let (ends, end) = std::sync::mpsc::channel::<()>();
        let end = Mutex::new(end);
        std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                keys.in_turn(&stop, || {
                    begun.send(()).unwrap();
                    lock(&end).recv().unwrap();
                })
            });
            begins.recv().unwrap();
            // Those of another server do not wait for it.
            KeyTurns::default().in_turn(&stop, || ()).unwrap();
            // More than may wait: those are refused while the first one has its turn.
            let (done, results) = std::sync::mpsc::channel();
            for _ in 0..DERIVING_MAX + 4 {
                let (done, stop, keys) = (done.clone(), stop.clone(), &keys);
                scope.spawn(move || done.send(keys.in_turn(&stop, || ())).unwrap());
            }
            for _ in 0..5 {
                let refused = results.recv().unwrap().unwrap_err();
                assert_eq!(refused.code(), Code::Unavailable, "{refused}");
            }
            stop.stop();
            ends.send(()).unwrap();
            first.join().unwrap().unwrap();
            for _ in 1..DERIVING_MAX {
                assert!(matches!(results.recv().unwrap(), Err(Error::Interrupted)));
            }
        });
    }
}
