//! FastDownloader: fetches one file over the ports that the server names.

use crate::context::client::ClientContext;
use crate::context::client::destination::Destination;
use crate::context::client::destination::GetPlace;
use crate::context::client::summary::Tally;
use crate::error::Error;
use crate::legacy::sending::send_all;
use crate::lock::lock;
use crate::net::connection::Connection;
use crate::net::frames::FrameReader;
use crate::net::throttle::Throttle;
use crate::observe::Phase;
use crate::storage::options::ReceiveOptions;
use crate::storage::present::Announced;
use crate::storage::single::{BUFFER, StagedFile, WriteBehind, destination, is_left};
use crate::thread::{refused as refused_thread, spawn_scoped};
use fastdrop_proto::fastdownloader::{
    Accepted, CHUNK, CHUNK_BYTES, ChunkSplitter, FastDownloaderError, LIST_BYTES_MAX, Receiver, Whole,
    parse_list,
};
use fastdrop_proto::fastdp::{Code, Done};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

/// A server's words are complete when nothing more came for so long.
const QUIET: Duration = Duration::from_millis(200);
/// How long it may take to say them.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Chunks of a buffer.
const CHUNKS: usize = BUFFER / CHUNK;

/// The names of what there is.
pub(crate) fn list(client: &ClientContext) -> Result<Vec<Vec<u8>>, Error> {
    let (_, names) = begin(client)?;
    Ok(names)
}

/// Connects, and reads the list.
fn begin(client: &ClientContext) -> Result<(FrameReader, Vec<Vec<u8>>), Error> {
    client.observer.set_phase(Phase::Connecting);
    let mut reader = FrameReader::new(client.bare(client.target.port)?, Vec::new());
    let bytes = hear(client, &mut reader, |_, quiet| Ok(quiet.then_some(())), LIST_BYTES_MAX)?.0;
    let names = parse_list(&bytes).into_iter().map(<[u8]>::to_vec).collect();
    Ok((reader, names))
}

/// Reads until `complete` says that it is enough; it hears whether anything more seems to come.
fn hear<T>(
    client: &ClientContext,
    reader: &mut FrameReader,
    mut complete: impl FnMut(&[u8], bool) -> Result<Option<T>, FastDownloaderError>,
    most: usize,
) -> Result<(Vec<u8>, T), Error> {
    let until = Instant::now() + ANSWER_TIMEOUT;
    let mut bytes = Vec::new();
    let mut ended = false;
    loop {
        let quiet = ended || (!bytes.is_empty() && !reader.comes_within(QUIET));
        if let Some(value) = complete(&bytes, quiet).map_err(refused)? {
            return Ok((bytes, value));
        }
        if ended || bytes.len() > most {
            return Err(Error::Foreign("the server does not speak FastDownloader".into()));
        }
        if client.stop.is_stopped() {
            return Err(Error::Interrupted);
        }
        if Instant::now() > until {
            return Err(Error::Network("the server says nothing".into()));
        }
        if !reader.comes_within(QUIET) {
            continue;
        }
        let mut buffer = [0; 4096];
        let count = reader.read_some(&mut buffer)?;
        bytes.extend_from_slice(&buffer[..count]);
        ended = count == 0;
    }
}

/// Fetches the file that the target names.
pub(crate) fn get(
    client: &ClientContext,
    to: Destination,
    dry_run: bool,
    tally: &mut Tally,
) -> Result<Done, Error> {
    let Destination::Path(path) = to else {
        return Err(Error::Unsupported(
            "fastdownloader cannot write to standard output: its chunks come in any order".into(),
        ));
    };
    client.with_attempts(|| get_once(client, &path, dry_run, tally))
}

/// Fetches it, from its beginning, to `path`.
fn get_once(client: &ClientContext, path: &Path, dry_run: bool, tally: &mut Tally) -> Result<Done, Error> {
    let name = client.target.path.clone();
    let (mut reader, names) = begin(client)?;
    if name.is_empty() || !names.contains(&name) {
        let shown: Vec<_> = names.iter().map(|name| crate::shown(name)).collect();
        let there = if shown.is_empty() { "nothing".to_owned() } else { shown.join(", ") };
        let which =
            if name.is_empty() { "which file?".into() } else { format!("no file {}", crate::shown(&name)) };
        return Err(Error::failed(Code::NotFound, format!("{which} There is {there}")));
    }
    let place = GetPlace::files(path)?;
    let place = if dry_run { place } else { place.with_parents()? };
    let GetPlace::Files { root, path, .. } = place else {
        return Err(Error::failed(Code::Internal, "a place that is none"));
    };
    let path = destination(&root, &path, &name)?;
    // A file that has to stay may still be the same one: that is seen once this one is here.
    if is_left(&root, &path, client.options.existing, !dry_run)? {
        let size = root.stat(&path).map_or(0, |there| u64::try_from(there.st_size).unwrap_or(0));
        tally.note_skipped(1, 1, size, 0);
        if dry_run {
            tally.note_dry(&Arc::default(), |_| false);
        } else {
            tally.note_file(size);
        }
        return Ok(Done::default());
    }
    if dry_run {
        tally.note_dry_file(&name);
        return Ok(Done::default());
    }
    send_all(reader.connection(), &name)?;
    let accepted = hear(client, &mut reader, Accepted::parse, 4096)?.1;
    let least = (accepted.chunks - 1) * CHUNK_BYTES as u64;
    let options = ReceiveOptions {
        existing: client.options.existing,
        advice: "",
        check: false,
        durability: client.options.durability,
        times: false,
        mode: false,
        resume: false,
        size_max: None,
        free_min: 0,
        unpack: None,
    };
    let announced = Announced::within(least..=least + CHUNK_BYTES as u64 - 1);
    let incoming = StagedFile::create(&root, &path, &announced, options)?;
    client.observer.files_total.store(1, Ordering::Relaxed);
    client.observer.bytes_total.store(least, Ordering::Relaxed);
    client.observer.set_phase(Phase::Moving);
    let Whole { begins_at, bytes: size } = receive(client, &incoming, &accepted)?;
    client.observer.set_phase(Phase::Finishing);
    if begins_at > 0 {
        incoming.cut(begins_at, size)?;
    }
    incoming.commit()?;
    client.observer.files_done.store(1, Ordering::Relaxed);
    tally.note_file(size);
    Ok(Done::default())
}

/// Receives over all ports at the same time.
fn receive(client: &ClientContext, incoming: &StagedFile, accepted: &Accepted) -> Result<Whole, Error> {
    let throttle = client.options.bytes_per_second_max.map(Throttle::new);
    let proto = Mutex::new(Receiver::new(accepted));
    let is_over = AtomicBool::new(false);
    let connections: Result<Vec<_>, Error> = accepted.ports.iter().map(|&port| client.bare(port)).collect();
    let connections = connections?;
    client.observer.set_streams(connections.len() as u64);
    let results: Vec<_> = std::thread::scope(|scope| {
        let start = |connection: &Arc<Connection>| {
            let (connection, connections) = (Arc::clone(connection), &connections);
            let (proto, throttle, is_over) = (&proto, throttle.as_ref(), &is_over);
            // Without one of them the others are worth nothing.
            let close_all = || connections.iter().for_each(|connection| connection.close());
            let receive = move || {
                // What cannot be written counts, whenever that is found out.
                let result = incoming.write_behind(|behind| {
                    match stream(client, connection, proto, throttle, behind) {
                        // Every chunk told its own end: whoever has them all closes the streams,
                        // for which a published server may wait.
                        Ok(true) => {
                            is_over.store(true, Ordering::SeqCst);
                            close_all();
                            Ok(())
                        }
                        Err(Error::Network(_) | Error::Interrupted) if is_over.load(Ordering::SeqCst) => {
                            Ok(())
                        }
                        result => result.map(drop),
                    }
                });
                result.inspect_err(|_| close_all())
            };
            spawn_scoped(scope, "stream", receive).inspect_err(|_| close_all())
        };
        let streams: Vec<_> = connections.iter().map(start).collect();
        let ended = |_| Err(Error::failed(Code::Internal, "a stream failed"));
        let joined = |stream: std::io::Result<ScopedJoinHandle<'_, _>>| match stream {
            Ok(stream) => stream.join().unwrap_or_else(ended),
            Err(error) => Err(refused_thread(error)),
        };
        streams.into_iter().map(joined).collect()
    });
    // The first reason counts, not that the others were closed for it.
    let mut errors: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    let reason = errors.iter().position(|error| !matches!(error, Error::Interrupted)).unwrap_or(0);
    if !errors.is_empty() {
        return Err(errors.swap_remove(reason));
    }
    lock(&proto).handle_end().map_err(refused)
}

/// Receives one stream to its end. True if the file is complete, whatever may still come.
fn stream(
    client: &ClientContext,
    connection: Arc<Connection>,
    proto: &Mutex<Receiver>,
    throttle: Option<&Throttle>,
    behind: &mut WriteBehind,
) -> Result<bool, Error> {
    let mut reader = FrameReader::new(connection, Vec::new());
    let mut splitter = ChunkSplitter::new();
    let mut wire = vec![0; CHUNKS * CHUNK];
    let mut filled = 0;
    loop {
        let mut ended = false;
        while !ended && filled < wire.len() {
            let count = reader.read_some(&mut wire[filled..])?;
            ended = count == 0;
            filled += count;
            if let Some(throttle) = throttle {
                std::thread::sleep(throttle.book(count, Instant::now()));
            }
            // Nothing more may come where a stream does not end by itself.
            if !splitter.ends() {
                break;
            }
        }
        let used = write_chunks(client, &wire[..filled], ended, &mut splitter, proto, behind)?;
        wire.copy_within(used..filled, 0);
        filled -= used;
        let is_over = splitter.is_v1() && lock(proto).is_complete();
        if ended || is_over {
            return Ok(is_over);
        }
    }
}

/// Writes the chunks at the beginning of `wire`, those that follow each other together. Returns how
/// many bytes they took.
fn write_chunks(
    client: &ClientContext,
    wire: &[u8],
    ended: bool,
    splitter: &mut ChunkSplitter,
    proto: &Mutex<Receiver>,
    behind: &mut WriteBehind,
) -> Result<usize, Error> {
    let mut buffer = behind.buffer()?;
    let (mut start, mut len, mut used) = (0, 0, 0);
    let mut proto = lock(proto);
    while let Some((chunk, taken)) = splitter.split(&wire[used..], ended).map_err(refused)? {
        used += taken;
        let at = proto.handle_chunk(chunk.ordinal, chunk.bytes.len()).map_err(refused)?;
        if len > 0 && at != start + len as u64 {
            let next = behind.buffer()?;
            behind.write(std::mem::replace(&mut buffer, next), len, start)?;
            len = 0;
        }
        if len == 0 {
            start = at;
        }
        buffer[len..len + chunk.bytes.len()].copy_from_slice(chunk.bytes);
        len += chunk.bytes.len();
        client.note_moved(chunk.bytes.len() as u64);
    }
    drop(proto);
    if len == 0 {
        behind.give_back(buffer);
    } else {
        behind.write(buffer, len, start)?;
    }
    Ok(used)
}

fn refused(error: FastDownloaderError) -> Error {
    match error {
        FastDownloaderError::WrongInput => Error::failed(Code::NotFound, error.to_string()),
        FastDownloaderError::Incomplete { .. } => Error::Network(error.to_string()),
        FastDownloaderError::Answer => Error::Foreign(error.to_string()),
        _ => Error::failed(Code::Integrity, error.to_string()),
    }
}
