//! Deflating by several threads into one stream that every reader takes.
//!
//! A block is compressed without looking at the one before it, and ends at a border of bytes by an
//! empty stored block, as `pigz` has it. The joined blocks are one deflate stream.

use crate::thread::spawn;
use flate2::{Compress, Compression, Crc, FlushCompress, Status};
use std::collections::VecDeque;
use std::io::{Error, Result, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a block, of which the first 32 KiB find nothing before them.
const BLOCK: usize = 1 << 20;
/// Blocks for each thread that are compressed or wait for that.
const BLOCKS_PER_THREAD: usize = 2;
/// Bytes at the end of a block that is not the last.
const ROOM: usize = 1 << 10;
/// The header of a gzip member without a name, made fast and on no system in particular.
const GZIP: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 0xff];

/// A block on its way to a thread, and the way back.
struct Job {
    block: Vec<u8>,
    is_last: bool,
    done: SyncSender<Deflated>,
}

/// A block after its compression.
struct Deflated {
    bytes: Result<Vec<u8>>,
    crc: Crc,
}

/// The sums of a stream that is complete.
pub(crate) struct Sums {
    pub(crate) crc: u32,
    /// Bytes before and after compression.
    pub(crate) size: u64,
    pub(crate) compressed: u64,
}

/// A writer that deflates what it gets by several threads, in the order in which it gets it.
pub(crate) struct Deflater<W: Write> {
    out: W,
    /// None where the system has no thread: then whoever writes compresses.
    jobs: Option<Sender<Job>>,
    running: VecDeque<Receiver<Deflated>>,
    running_max: usize,
    block: Vec<u8>,
    crc: Crc,
    size: u64,
    compressed: u64,
}

impl<W: Write> Deflater<W> {
    pub(crate) fn new(out: W, threads: usize) -> Self {
        let (jobs, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let started = (0..threads).map_while(|_| spawn("deflate", worker(Arc::clone(&queue))).ok()).count();
        Self {
            out,
            jobs: (started > 0).then_some(jobs),
            running: VecDeque::new(),
            running_max: started * BLOCKS_PER_THREAD,
            block: Vec::with_capacity(BLOCK),
            crc: Crc::new(),
            size: 0,
            compressed: 0,
        }
    }

    /// Ends the stream.
    pub(crate) fn finish(mut self) -> Result<(W, Sums)> {
        self.start_block(true)?;
        while !self.running.is_empty() {
            self.write_one()?;
        }
        let Self { out, crc, size, compressed, .. } = self;
        Ok((out, Sums { crc: crc.sum(), size, compressed }))
    }

    fn start_block(&mut self, is_last: bool) -> Result<()> {
        let block = std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK));
        self.size += block.len() as u64;
        let Some(jobs) = &self.jobs else {
            return self.put(deflate(&block, is_last));
        };
        let (done, result) = sync_channel(1);
        // An end of the threads is noticed where their result is missing.
        let _ = jobs.send(Job { block, is_last, done });
        self.running.push_back(result);
        if self.running.len() > self.running_max { self.write_one() } else { Ok(()) }
    }

    /// Waits for the oldest block.
    fn write_one(&mut self) -> Result<()> {
        let Some(result) = self.running.pop_front() else { return Ok(()) };
        let done = result.recv().map_err(|_| Error::other("a compressing thread has ended"))?;
        self.put(done)
    }

    fn put(&mut self, Deflated { bytes, crc }: Deflated) -> Result<()> {
        let bytes = bytes?;
        self.crc.combine(&crc);
        self.compressed += bytes.len() as u64;
        self.out.write_all(&bytes)
    }
}

impl<W: Write> Write for Deflater<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let count = bytes.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(&bytes[..count]);
        if self.block.len() == BLOCK {
            self.start_block(false)?;
        }
        Ok(count)
    }

    /// Does nothing: a block that is cut short compresses worse.
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

fn worker(queue: Arc<Mutex<Receiver<Job>>>) -> impl FnOnce() + Send + 'static {
    move || {
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        while let Ok(Job { block, is_last, done }) = next() {
            // Whoever wanted it may have failed at something else.
            let _ = done.send(deflate(&block, is_last));
        }
    }
}

fn deflate(block: &[u8], is_last: bool) -> Deflated {
    let mut crc = Crc::new();
    crc.update(block);
    let bytes = deflate_block(block, is_last);
    // What grows is stored as it is.
    let bytes = bytes.map(|bytes| if bytes.len() > block.len() { store(block, is_last) } else { bytes });
    Deflated { bytes, crc }
}

/// Stored blocks of the format.
fn store(block: &[u8], is_last: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(block.len() + ROOM);
    let mut pieces = block.chunks(usize::from(u16::MAX)).peekable();
    // Nothing at all is one piece.
    let mut piece = pieces.next().unwrap_or_default();
    loop {
        let len = piece.len() as u16;
        let ends = is_last && pieces.peek().is_none();
        out.push(u8::from(ends));
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&(!len).to_le_bytes());
        out.extend_from_slice(piece);
        let Some(next) = pieces.next() else { return out };
        piece = next;
    }
}

fn deflate_block(block: &[u8], is_last: bool) -> Result<Vec<u8>> {
    let flush = if is_last { FlushCompress::Finish } else { FlushCompress::Sync };
    let mut state = Compress::new(Compression::fast(), false);
    let mut out = Vec::with_capacity(block.len() + ROOM);
    loop {
        let rest = block.get(state.total_in() as usize..).unwrap_or_default();
        let status = state.compress_vec(rest, &mut out, flush)?;
        let has_room = out.len() < out.capacity();
        // With room left, nothing is held back any more.
        if status == Status::StreamEnd || !is_last && has_room && state.total_in() == block.len() as u64 {
            return Ok(out);
        }
        out.reserve(ROOM);
    }
}

/// A writer of one gzip member, compressed by several threads.
pub(crate) struct GzipWriter<W: Write>(Deflater<W>);

impl<W: Write> GzipWriter<W> {
    pub(crate) fn new(mut out: W, threads: usize) -> Result<Self> {
        out.write_all(&GZIP)?;
        Ok(Self(Deflater::new(out, threads)))
    }

    pub(crate) fn finish(self) -> Result<W> {
        let (mut out, sums) = self.0.finish()?;
        out.write_all(&sums.crc.to_le_bytes())?;
        // The size as the format has it: its lowest 32 bits.
        out.write_all(&(sums.size as u32).to_le_bytes())?;
        Ok(out)
    }
}

impl<W: Write> Write for GzipWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::bufread::{DeflateDecoder, GzDecoder};
    use std::io::Read;

    /// Bytes half of which can be guessed from those before them.
    fn content(size: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..size).map(|at| if at % 64 < 32 { 7 } else { next() }).collect()
    }

    fn sizes() -> [usize; 8] {
        [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 9 * BLOCK, 9 * BLOCK + 5]
    }

    #[test]
    fn blocks_of_several_threads_are_one_stream_with_its_sums() {
        for size in sizes() {
            let content = content(size);
            let mut expected = Crc::new();
            expected.update(&content);
            let of = |threads| {
                let mut deflater = Deflater::new(Vec::new(), threads);
                deflater.write_all(&content).unwrap();
                deflater.finish().unwrap()
            };
            let (bytes, sums) = of(3);
            assert_eq!((sums.crc, sums.size), (expected.sum(), size as u64));
            assert_eq!(sums.compressed, bytes.len() as u64);
            let mut back = Vec::new();
            let mut decoder = DeflateDecoder::new(&bytes[..]);
            decoder.read_to_end(&mut back).unwrap();
            assert!(back == content && decoder.into_inner().is_empty(), "{size}");
            // A system without threads makes the same.
            assert!(of(0).0 == bytes, "{size}");
        }
    }

    #[test]
    fn a_gzip_member_of_several_threads_is_one_member() {
        for size in sizes() {
            let content = content(size);
            let mut writer = GzipWriter::new(Vec::new(), 2).unwrap();
            writer.write_all(&content).unwrap();
            let bytes = writer.finish().unwrap();
            let mut back = Vec::new();
            // The decoder of one member, that checks sum and size.
            let mut decoder = GzDecoder::new(&bytes[..]);
            decoder.read_to_end(&mut back).unwrap();
            assert!(back == content && decoder.into_inner().is_empty(), "{size}");
        }
    }

    #[test]
    fn what_does_not_shrink_grows_by_less_than_a_thousandth() {
        let mut noise = vec![0; 3 * BLOCK];
        getrandom::fill(&mut noise).unwrap();
        for size in [0, 1, 65_535, 65_536, BLOCK, noise.len()] {
            let noise = &noise[..size];
            let mut deflater = Deflater::new(Vec::new(), 2);
            deflater.write_all(noise).unwrap();
            let (bytes, _) = deflater.finish().unwrap();
            assert!(bytes.len() <= size + size / 1000 + 8, "{} of {size}", bytes.len());
            let mut back = Vec::new();
            DeflateDecoder::new(&bytes[..]).read_to_end(&mut back).unwrap();
            assert!(back == noise, "{size}");
        }
    }

    #[test]
    fn an_error_of_the_writer_below_is_told() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> Result<usize> {
                Err(std::io::ErrorKind::StorageFull.into())
            }

            fn flush(&mut self) -> Result<()> {
                Ok(())
            }
        }
        let mut deflater = Deflater::new(Full, 2);
        deflater.write_all(&content(BLOCK * 2)).unwrap();
        let Err(error) = deflater.finish() else { panic!("nothing was written") };
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    }
}
