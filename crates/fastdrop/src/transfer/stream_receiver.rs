//! Taking chunks off one stream: receive, decode, check, hand over.

use crate::codec::decode::zstd_exact;
use crate::error::Error;
use crate::net::connection::Ended;
use crate::net::frames::FrameReader;
use crate::net::throttle::Throttle;
use crate::storage::writer::VerifiedChunk;
use crate::transfer::assembly::{Arriving, Assembly, Fault};
use fastdrop_proto::checksum::{Algorithm, Checksum, PackChecksum};
use fastdrop_proto::fastdp::{ChunkContent, Code, Encoding, Expected, Extents, FrameHeader};
use fastdrop_proto::units::EntryIndex;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The longest nap of a stream that is held back, before it looks whether it is still wanted.
const NAP_MAX: Duration = Duration::from_millis(100);

/// The pace of a stream that is not to take all that comes.
#[derive(Clone, Copy)]
pub(super) struct Pace<'a> {
    pub(super) throttle: &'a Throttle,
    /// Says whether the transfer is over.
    pub(super) is_ending: &'a dyn Fn() -> bool,
}

/// Takes chunks off one stream, with buffers of its own.
pub(super) struct StreamReceiver<'a> {
    assembly: &'a Assembly,
    pace: Option<Pace<'a>>,
    plain: Vec<u8>,
    payload: Vec<u8>,
    /// For compressed chunks, once there has been one.
    decoder: Option<zstd::bulk::Decompressor<'static>>,
}

impl<'a> StreamReceiver<'a> {
    pub(super) fn new(assembly: &'a Assembly, pace: Option<Pace<'a>>) -> Self {
        Self { assembly, pace, plain: Vec::new(), payload: Vec::new(), decoder: None }
    }

    /// Receives, checks, writes, journals and confirms one chunk.
    pub(super) fn chunk(
        &mut self,
        reader: &mut FrameReader,
        header: FrameHeader,
        clock: &mut Instant,
    ) -> Result<(), Fault> {
        let assembly = self.assembly;
        let (observer, algorithm) = (assembly.observer(), assembly.algorithm());
        let clocks = &observer.clocks;
        let Arriving { mut expected, content, slices, one_chunk } = assembly.expect(header)?;
        let buffer = if expected.encoded { &mut self.payload } else { &mut self.plain };
        buffer.resize(expected.data_len as usize, 0);
        fill(reader, self.pace, buffer)?;
        let mut sent = vec![0; algorithm.len()];
        reader.fill(&mut sent).map_err(inside)?;
        let sent = Checksum::from_slice(&sent);
        *clock = clocks.wait.since(*clock);
        let mut extents = None;
        if expected.encoded {
            let (plain_len, decoded) = self.decode(&content, expected.plain_len)?;
            expected.plain_len = plain_len;
            extents = decoded;
        }
        let (checksum, slice_sums) =
            checksum(algorithm, &self.plain, &content, &slices, &expected, one_chunk);
        *clock = clocks.cpu.since(*clock);
        observer.bytes_moved.fetch_add(self.plain.len() as u64, Ordering::Relaxed);
        observer.bytes_wire.fetch_add(expected.data_len.into(), Ordering::Relaxed);
        let chunk = VerifiedChunk {
            content,
            bytes: &self.plain,
            extents: extents.as_ref(),
            checksum,
            slices: &slices,
            slice_sums: &slice_sums,
        };
        let answer = assembly.take(&expected, &sent, &chunk)?;
        *clock = clocks.write.since(*clock);
        if let Some(answer) = answer {
            reader.connection().send_control(&answer)?;
        }
        Ok(())
    }

    /// Decodes the payload into the plain bytes: how many they are,
    /// and where there is data among zeros.
    fn decode(&mut self, content: &ChunkContent, len: u32) -> Result<(u32, Option<Extents>), Error> {
        let (encoding, data) = Encoding::decode(&self.payload, content, len)?;
        let plain = &mut self.plain;
        let extents = encoding.extents.as_ref();
        let mut unpacked = Vec::new();
        let mut data = data;
        if encoding.zstd {
            if self.decoder.is_none() {
                let decoder = zstd::bulk::Decompressor::new();
                self.decoder =
                    Some(decoder.map_err(|error| Error::failed(Code::Internal, error.to_string()))?);
            }
            let out = if extents.is_some() { &mut unpacked } else { &mut *plain };
            out.resize(encoding.data_len() as usize, 0);
            if let Some(decoder) = &mut self.decoder {
                zstd_exact(decoder, data, out).map_err(|error| Error::protocol(error.to_string()))?;
            }
            data = &unpacked;
        }
        if let Some(extents) = extents {
            plain.clear();
            plain.resize(encoding.plain_len as usize, 0);
            for (at, len) in extents.iter() {
                let (part, rest) = data.split_at(len as usize);
                plain[at as usize..(at + len) as usize].copy_from_slice(part);
                data = rest;
            }
        }
        Ok((encoding.plain_len, encoding.extents))
    }
}

/// Fills `buffer` from a chunk, at the pace that was set.
fn fill(reader: &mut FrameReader, pace: Option<Pace<'_>>, buffer: &mut [u8]) -> Result<(), Error> {
    let Some(Pace { throttle, is_ending }) = pace else { return reader.fill(buffer).map_err(inside) };
    for part in buffer.chunks_mut(throttle.piece_max()) {
        let mut left = throttle.book(part.len(), Instant::now());
        while !left.is_zero() && !is_ending() {
            let nap = left.min(NAP_MAX);
            std::thread::sleep(nap);
            left -= nap;
        }
        reader.fill(part).map_err(inside)?;
    }
    Ok(())
}

fn inside(ended: Ended) -> Error {
    match ended {
        Ended::Closed => Ended::Broken("it ended inside a frame".into()).into(),
        other => other.into(),
    }
}

/// The checksum of a chunk, and of its slices if it is a pack.
fn checksum(
    algorithm: Algorithm,
    plain: &[u8],
    content: &ChunkContent,
    slices: &[(EntryIndex, u32)],
    expected: &Expected,
    one_chunk: u32,
) -> (Checksum, Vec<Checksum>) {
    match *content {
        ChunkContent::Piece { offset, whole, .. } => (algorithm.of_piece(plain, offset, whole), Vec::new()),
        ChunkContent::Stream { offset, .. } => {
            let whole = offset == 0 && expected.plain_len < one_chunk;
            (algorithm.of_piece(plain, offset, whole), Vec::new())
        }
        ChunkContent::Pack { .. } => {
            let mut pack = PackChecksum::new(algorithm);
            let mut rest = plain;
            let mut sums = Vec::with_capacity(slices.len());
            for &(_, size) in slices {
                let (bytes, after) = rest.split_at((size as usize).min(rest.len()));
                rest = after;
                let sum = algorithm.of(bytes);
                pack.push(&sum);
                sums.push(sum);
            }
            (pack.finish(), sums)
        }
    }
}
