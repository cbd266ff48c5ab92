//! Frames from the bytes that a connection gives.

use super::stream::Stream;
use crate::vstp::types::VstpError;
use bytes::{BufMut, Bytes, BytesMut};
use fastdrop_proto::vstp::frame::{CRC_BYTES, HEAD_BYTES, check_crc};
use fastdrop_proto::vstp::{FrameBytes, FrameError, FrameRef, Head, Headers};
use std::future::Future;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tokio::io::AsyncReadExt;

/// A frame with its CRC; None at the end.
pub(super) type Framed = Result<Option<(FrameBytes, u32)>, VstpError>;

/// A large frame whose payload goes straight to where it will be.
#[derive(Debug)]
struct Large {
    head: Head,
    front: Bytes,
    crc: crc32fast::Hasher,
    payload: Vec<u8>,
}

/// The bytes that have been read and are no whole frame yet: at most one frame, and
/// [`Self::READ`]. While nothing comes, little memory is kept for what may.
#[derive(Debug)]
pub(super) struct Reader {
    frame_max: usize,
    read: BytesMut,
    large: Option<Large>,
    /// The last frame was large: then the next one probably is, and little is read ahead.
    after_large: bool,
    /// The bytes that came last, and that have come since nothing was there.
    last: usize,
    burst: usize,
    /// The time of the last bytes.
    heard_at: Option<Instant>,
}

impl Reader {
    /// Payloads from this size on are read to where they will be.
    const LARGE_MIN: usize = 32 << 10;
    const READ: usize = 256 << 10;
    const READ_AFTER_LARGE: usize = 512;
    /// No more are expected than came last.
    const FEW: usize = 1 << 10;
    /// After so many at a time more are expected, and the memory for them is kept.
    const MANY: usize = 64 << 10;

    pub(super) fn new(frame_max: usize) -> Self {
        let (read, large, after_large, heard_at) = (BytesMut::new(), None, false, None);
        Self { frame_max, read, large, after_large, last: 0, burst: 0, heard_at }
    }

    /// Returns true if a frame has begun.
    pub(super) fn is_within(&self) -> bool {
        !self.read.is_empty() || self.large.is_some()
    }

    /// Takes the time of the last bytes, if any came since this was called last.
    pub(super) fn take_heard(&mut self) -> Option<Instant> {
        self.heard_at.take()
    }

    /// Gives the next frame. Nothing is lost if it is not asked for again for a while.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> Poll<Framed> {
        loop {
            if self.large.is_some() {
                return self.poll_large(cx, stream).map_ok(Some);
            }
            if let Some(head) = Head::parse(&self.read, self.frame_max)? {
                if self.read.len() >= head.frame_len() {
                    self.after_large = false;
                    return Poll::Ready(Ok(Some(take_small(head, &mut self.read)?)));
                }
                let front = HEAD_BYTES + head.headers_len();
                if head.payload_len() >= Self::LARGE_MIN && self.read.len() >= front {
                    self.begin_large(head, front);
                    continue;
                }
            }
            if ready!(self.poll_fill(cx, stream))? == 0 {
                return Poll::Ready(self.end().map(|()| None));
            }
        }
    }

    /// Reads on to the end, and drops what comes.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> Poll<io::Result<()>> {
        loop {
            self.read.clear();
            if ready!(self.poll_fill(cx, stream))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// The end of what comes: fine between frames.
    fn end(&self) -> Result<(), VstpError> {
        if !self.is_within() {
            return Ok(());
        }
        let cut = io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended within a frame");
        Err(VstpError::Io(cut))
    }

    fn begin_large(&mut self, head: Head, front: usize) {
        let front = self.read.split_to(front).freeze();
        let mut crc = crc32fast::Hasher::new();
        crc.update(&front);
        let mut payload = Vec::with_capacity(head.payload_len());
        let there = self.read.len().min(head.payload_len());
        payload.extend_from_slice(&self.read.split_to(there));
        crc.update(&payload);
        self.large = Some(Large { head, front, crc, payload });
        self.after_large = true;
    }

    fn poll_large(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut Stream,
    ) -> Poll<Result<(FrameBytes, u32), VstpError>> {
        loop {
            let Some(large) = &mut self.large else { return Poll::Ready(Err(VstpError::ConnectionClosed)) };
            let missing = large.head.payload_len() - large.payload.len();
            if missing == 0 && self.read.len() >= CRC_BYTES {
                break;
            }
            let came = if missing == 0 {
                ready!(self.poll_fill(cx, stream))?
            } else {
                let before = large.payload.len();
                let came = {
                    let mut rest = (&mut large.payload).limit(missing);
                    ready!(pin!(stream.read_buf(&mut rest)).poll(cx))?
                };
                // While it is in the cache.
                large.crc.update(large.payload.get(before..).unwrap_or_default());
                self.heard_at = Some(Instant::now());
                came
            };
            if came == 0 {
                self.end()?;
            }
        }
        let Some(large) = self.large.take() else { return Poll::Ready(Err(VstpError::ConnectionClosed)) };
        let crc = self.read.split_to(CRC_BYTES);
        let expected = crc.first_chunk().map_or(0, |crc| u32::from_be_bytes(*crc));
        check_crc(expected, large.crc.finalize())?;
        let (typ, flags) = (large.head.typ()?, large.head.flags());
        let headers = large.front.slice(HEAD_BYTES..);
        let frame = FrameBytes::from_wire(typ, flags, headers, large.payload.into())?;
        Poll::Ready(Ok((frame, expected)))
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> Poll<io::Result<usize>> {
        let want = match () {
            () if self.after_large => Self::READ_AFTER_LARGE,
            () if self.read.is_empty() && self.last < Self::FEW => Self::FEW,
            () => Self::READ,
        };
        self.read.reserve(want.max(2 * HEAD_BYTES));
        let mut room = (&mut self.read).limit(want);
        let Poll::Ready(came) = pin!(stream.read_buf(&mut room)).poll(cx)? else {
            let burst = std::mem::take(&mut self.burst);
            if burst < Self::MANY && self.read.is_empty() && self.read.capacity() > Self::FEW {
                (self.read, self.last) = (BytesMut::new(), 0);
            }
            return Poll::Pending;
        };
        (self.last, self.burst) = (came, self.burst + came);
        self.heard_at = Some(Instant::now());
        Poll::Ready(Ok(came))
    }
}

fn take_small(head: Head, read: &mut BytesMut) -> Result<(FrameBytes, u32), FrameError> {
    let bytes = read.split_to(head.frame_len()).freeze();
    let crc = bytes.last_chunk().map_or(0, |crc| u32::from_be_bytes(*crc));
    let frame = FrameRef::decode_whole(head, &bytes)?;
    let payload = bytes.slice_ref(frame.payload);
    let headers = bytes.slice_ref(Headers::as_bytes(&frame.headers));
    Ok((FrameBytes::from_wire(frame.typ, frame.flags, headers, payload)?, crc))
}
