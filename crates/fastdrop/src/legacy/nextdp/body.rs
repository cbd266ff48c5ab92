//! Bodies of requests: room for them in memory, receiving and decoding.

use crate::codec::decode::{expect_end, zstd_frame};
use crate::context::server::options::NextDpCompression;
use fastdrop_proto::nextdp::{CHUNK, CHUNK_MAX, Refusal};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming as Body};
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Time for which a body may stand still.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for a body that is refused: who is answered before its end may not read the answer.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Chunks that are in memory at once, of all transfers.
const CHUNKS_AT_ONCE: usize = 16;
/// While others wait for its place in memory, a body has to bring so
/// many bytes a second, after this time.
const CROWDED_RATE: f64 = 64.0 * 1024.0;
const CROWDED_TIMEOUT: Duration = Duration::from_secs(2);
/// The first bytes of a Zstandard frame (RFC 8878, section 3.1.1).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Room for chunks in memory, and who waits for it.
#[derive(Debug)]
pub(super) struct Room {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Default for Room {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(CHUNKS_AT_ONCE)), waiting: AtomicUsize::new(0) }
    }
}

impl Room {
    pub(super) async fn place(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        let _waiting = Waiting::new(&self.waiting);
        Arc::clone(&self.places).acquire_owned().await.map_err(|_| Refusal::new(503, "stopping"))
    }

    fn is_crowded(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}

/// One who waits, until this is dropped: a request that is given up waits no longer.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Receives a body, and calls `note` whenever some of it has come.
pub(super) async fn read_body(mut body: Body, room: &Room, note: impl Fn()) -> Result<Vec<u8>, Refusal> {
    let expected = body.size_hint().exact();
    if expected.is_some_and(|bytes| bytes > CHUNK_MAX) {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(expected.unwrap_or(0) as usize);
    let began = Instant::now();
    let mut moved = began;
    loop {
        let frame = timeout(CROWDED_TIMEOUT / 4, body.frame()).await;
        let took = began.elapsed();
        if took > CROWDED_TIMEOUT
            && room.is_crowded()
            && (bytes.len() as f64) < CROWDED_RATE * took.as_secs_f64()
        {
            return Err(Refusal::new(503, "the chunk comes too slowly while others wait"));
        }
        let Ok(frame) = frame else {
            if moved.elapsed() > BODY_TIMEOUT {
                return Err(too_late());
            }
            continue;
        };
        moved = Instant::now();
        let Some(frame) = frame else { return Ok(bytes) };
        let frame = frame.map_err(|_| too_early())?;
        if let Ok(data) = frame.into_data() {
            if bytes.len() + data.len() > CHUNK_MAX as usize {
                return Err(too_large());
            }
            bytes.extend_from_slice(&data);
            note();
        }
    }
}

/// Receives the body of a refused request, as far as a chunk may be long, and for a while.
pub(super) async fn drain(body: Body) {
    let _ = timeout(DRAIN_TIMEOUT, skip_body(body)).await;
}

/// Receives a body of which nothing is kept, so that it needs no room.
///
/// # Errors
///
/// As of [`read_body`]: it did not come as a whole, or is too long.
pub(super) async fn skip_body(mut body: Body) -> Result<(), Refusal> {
    if body.size_hint().exact().is_some_and(|bytes| bytes > CHUNK_MAX) {
        return Err(too_large());
    }
    let mut left = CHUNK_MAX as usize;
    loop {
        let frame = timeout(BODY_TIMEOUT, body.frame()).await.map_err(|_| too_late())?;
        let Some(frame) = frame else { return Ok(()) };
        let frame = frame.map_err(|_| too_early())?;
        let count = frame.data_ref().map_or(0, |data| data.len());
        left = left.checked_sub(count).ok_or_else(too_large)?;
    }
}

fn too_large() -> Refusal {
    Refusal::new(413, "a chunk of more than 16 MiB")
}

fn too_late() -> Refusal {
    Refusal::new(408, "the chunk did not come in time")
}

fn too_early() -> Refusal {
    Refusal::new(400, "the chunk ended too early")
}

/// Decodes a chunk of a file; `chunks` says with chunk 0 of how many that consists.
pub(super) fn decode(
    compression: NextDpCompression,
    bytes: Vec<u8>,
    chunks: Option<u32>,
) -> Result<Vec<u8>, Refusal> {
    match compression {
        NextDpCompression::Gzip => gunzip(&bytes),
        NextDpCompression::Zstd => unzstd(&bytes),
        NextDpCompression::None if chunks.is_some_and(|chunks| chunks > 1) && is_compressed(&bytes) => {
            let why = "chunk 0 is a Zstandard frame of 1 MiB: the sender compresses, and this server was not \
                       started with --nextdp-compression zstd; start one of the two differently";
            Err(Refusal::new(400, why))
        }
        NextDpCompression::None => Ok(bytes),
    }
}

/// Returns true for a first chunk that no plain sender has: it is not 1 MiB, but a Zstandard frame
/// of 1 MiB. A file that is one such frame itself, in one chunk, looks the same and is none.
fn is_compressed(bytes: &[u8]) -> bool {
    bytes.len() as u64 != CHUNK
        && bytes.starts_with(&ZSTD_MAGIC)
        && unzstd(bytes).is_ok_and(|plain| plain.len() as u64 == CHUNK)
}

/// Decodes exactly one gzip member.
fn gunzip(bytes: &[u8]) -> Result<Vec<u8>, Refusal> {
    let mut decoder = flate2::bufread::GzDecoder::new(bytes);
    let plain = read_bounded(&mut decoder).and_then(|plain| whole(plain, decoder.get_mut()));
    decoded(plain, "one gzip member")
}

/// Decodes exactly one Zstandard frame.
fn unzstd(bytes: &[u8]) -> Result<Vec<u8>, Refusal> {
    let plain = zstd_frame(bytes)
        .and_then(|mut decoder| read_bounded(&mut decoder).and_then(|plain| whole(plain, decoder.get_mut())));
    decoded(plain, "one Zstandard frame")
}

/// Reads to the end, or one byte more than a chunk may have.
fn read_bounded(reader: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    reader.take(CHUNK_MAX + 1).read_to_end(&mut plain)?;
    Ok(plain)
}

/// Checks that nothing is behind what was decoded, where that was read to its end.
fn whole(plain: Vec<u8>, rest: &mut &[u8]) -> std::io::Result<Vec<u8>> {
    if plain.len() as u64 <= CHUNK_MAX {
        expect_end(rest)?;
    }
    Ok(plain)
}

fn decoded(plain: std::io::Result<Vec<u8>>, what: &str) -> Result<Vec<u8>, Refusal> {
    match plain {
        Ok(plain) if plain.len() as u64 > CHUNK_MAX => {
            Err(Refusal::new(413, "a chunk that decodes to more than 16 MiB"))
        }
        Ok(plain) => Ok(plain),
        Err(error) => {
            let why = "does the sender compress as --nextdp-compression of the server says?";
            Err(Refusal::new(400, format!("a chunk that is not {what} ({error}): {why}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::bulk::compress(bytes, 1).unwrap()
    }

    /// A frame that does not tell its content's size, as streaming encoders write it.
    fn zstd_stream(bytes: &[u8]) -> Vec<u8> {
        zstd::stream::encode_all(bytes, 1).unwrap()
    }

    #[test]
    fn a_chunk_is_one_member_or_frame_or_refused() {
        let plain = b"a line of a log ".repeat(10_000);
        type Encode = fn(&[u8]) -> Vec<u8>;
        for (compression, encode) in [
            (NextDpCompression::Gzip, gzip as Encode),
            (NextDpCompression::Zstd, zstd),
            (NextDpCompression::Zstd, zstd_stream),
        ] {
            let good = encode(&plain);
            assert_eq!(decode(compression, good.clone(), Some(2)).unwrap(), plain);
            assert_eq!(decode(compression, encode(b""), Some(1)).unwrap(), b"");
            let twice = [&good[..], &good].concat();
            let cut = good[..good.len() - 1].to_vec();
            for bad in [Vec::new(), plain.clone(), twice, cut, [&good[..], b"x"].concat()] {
                let refused = decode(compression, bad, None).unwrap_err();
                assert_eq!(refused.status, 400, "{compression:?}: {refused}");
            }
            let bomb = encode(&vec![0; CHUNK_MAX as usize + 1]);
            assert_eq!(decode(compression, bomb, None).unwrap_err().status, 413, "{compression:?}");
            let most = encode(&vec![0; CHUNK_MAX as usize]);
            assert_eq!(decode(compression, most, None).unwrap().len() as u64, CHUNK_MAX);
        }
    }

    #[test]
    fn a_plain_server_refuses_only_what_cannot_be_plain() {
        let one_chunk = vec![7; CHUNK as usize];
        let frame = zstd(&one_chunk);
        let other = zstd(&one_chunk[1..]);
        for (bytes, chunks, is_refused) in [
            (&frame, Some(2), true),
            (&zstd_stream(&one_chunk), Some(2), true),
            // One chunk: a `.zst` file looks the same.
            (&frame, Some(1), false),
            // Only chunk 0 is looked at.
            (&frame, None, false),
            (&other, Some(2), false),
            (&frame[..frame.len() - 1].to_vec(), Some(2), false),
            (&[&frame[..], &frame].concat(), Some(2), false),
            (&gzip(&one_chunk), Some(2), false),
            (&one_chunk, Some(2), false),
        ] {
            let decoded = decode(NextDpCompression::None, bytes.clone(), chunks);
            assert_eq!(decoded.is_err(), is_refused, "{chunks:?}, {} bytes", bytes.len());
            match decoded {
                Ok(stored) => assert_eq!(&stored, bytes),
                Err(refused) => assert!(refused.message.contains("--nextdp-compression zstd"), "{refused}"),
            }
        }
    }
}
