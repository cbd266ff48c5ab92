//! Bytes that are to be written to a connection.

use crate::vstp::frame::append_frame;
use crate::vstp::types::{Frame, Header, VstpError};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use fastdrop_proto::vstp::{FrameBytes, Head, HeadersBuf};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

/// Bytes in the order in which they leave. Small frames are gathered, large payloads stay where
/// they are.
///
/// Bytes that have not been written stay here when nobody waits for them any more; whoever writes
/// next goes on.
#[derive(Debug)]
pub(super) struct Outbox {
    parts: VecDeque<Bytes>,
    tail: BytesMut,
    shared_bytes: usize,
    /// Bytes that have left since the beginning.
    written: u64,
    /// The stream, which may encrypt, holds nothing back.
    is_flushed: bool,
    /// Places of bytes that wait and that the peer has caused, and how many these are.
    answers: VecDeque<Range<u64>>,
    answer_bytes: usize,
    /// The kind of the error with which writing has ended: the stream may be cut within a frame,
    /// and nothing may follow.
    broken: Option<io::ErrorKind>,
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            parts: VecDeque::new(),
            tail: BytesMut::new(),
            shared_bytes: 0,
            written: 0,
            is_flushed: true,
            answers: VecDeque::new(),
            answer_bytes: 0,
            broken: None,
        }
    }
}

impl Outbox {
    /// Payloads from this size on are not copied.
    const SHARED_MIN: usize = 16 << 10;
    /// Parts that go into one call; the system takes up to 1,024.
    const SLICES: usize = 64;

    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.shared_bytes + self.tail.len()
    }

    pub(super) fn push(&mut self, frame: Frame) -> Result<(), VstpError> {
        if frame.payload.len() < Self::SHARED_MIN {
            return append_frame(&frame, &mut self.tail);
        }
        let mut headers = HeadersBuf::default();
        for Header { key, value } in &frame.headers {
            headers.push(key, value)?;
        }
        let headers = headers.as_headers().as_bytes();
        let head = Head::encode(frame.version, frame.typ, frame.flags, headers.len(), frame.payload.len())?;
        self.push_parts(&head, headers, frame.payload.into());
        Ok(())
    }

    pub(super) fn push_bytes(&mut self, frame: &FrameBytes) -> Result<(), VstpError> {
        let headers = frame.headers().as_bytes();
        let version = fastdrop_proto::vstp::frame::VERSION;
        let head = Head::encode(version, frame.typ, frame.flags, headers.len(), frame.payload.len())?;
        self.push_parts(&head, headers, frame.payload.clone());
        Ok(())
    }

    /// Bytes that are a frame already, and answer the peer.
    pub(super) fn push_answer(&mut self, bytes: &[u8]) {
        let start = self.end();
        self.tail.put_slice(bytes);
        self.count_answer(start);
    }

    /// A frame that answers the peer.
    pub(super) fn push_answer_bytes(&mut self, frame: &FrameBytes) -> Result<(), VstpError> {
        let start = self.end();
        self.push_bytes(frame)?;
        self.count_answer(start);
        Ok(())
    }

    fn count_answer(&mut self, start: u64) {
        let end = self.end();
        self.answer_bytes += end.saturating_sub(start) as usize;
        match self.answers.back_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => self.answers.push_back(start..end),
        }
    }

    /// Bytes that wait and that the peer has caused, which may be one that does not read.
    pub(super) fn answer_bytes(&self) -> usize {
        self.answer_bytes
    }

    fn push_parts(&mut self, head: &[u8], headers: &[u8], payload: Bytes) {
        let mut crc = crc32fast::Hasher::new();
        crc.update(head);
        crc.update(headers);
        crc.update(&payload);
        self.tail.put_slice(head);
        self.tail.put_slice(headers);
        if payload.len() < Self::SHARED_MIN {
            self.tail.put_slice(&payload);
        } else {
            let front = self.tail.split().freeze();
            self.shared_bytes += front.len() + payload.len();
            self.parts.extend([front, payload]);
        }
        self.tail.put_u32(crc.finalize());
    }

    /// Writes everything. After an error nothing more is written.
    pub(super) fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        if let Some(kind) = self.broken {
            self.give_up(kind);
            return Poll::Ready(Err(kind.into()));
        }
        let flushed = ready!(self.poll_write_all(cx, stream));
        if let Err(error) = &flushed {
            self.give_up(error.kind());
        }
        Poll::Ready(flushed)
    }

    fn poll_write_all(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        let mut stream = Pin::new(stream);
        while self.len() > 0 {
            let written = if self.parts.is_empty() {
                ready!(stream.as_mut().poll_write(cx, &self.tail))?
            } else {
                let slices = self.parts.iter().map(Bytes::as_ref).chain([self.tail.as_ref()]);
                let slices: Vec<_> = slices.take(Self::SLICES).map(IoSlice::new).collect();
                ready!(stream.as_mut().poll_write_vectored(cx, &slices))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
            self.is_flushed = false;
        }
        if !self.is_flushed {
            ready!(stream.poll_flush(cx))?;
            self.is_flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Returns true if nothing waits here, nor in the stream.
    pub(super) fn is_idle(&self) -> bool {
        self.len() == 0 && self.is_flushed
    }

    /// The place of the last byte that was put in, counted from the first one of the connection.
    pub(super) fn end(&self) -> u64 {
        self.written + self.len() as u64
    }

    /// Bytes that have left.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Drops what waits, and whatever else is put in: nobody can be sent it any more.
    pub(super) fn give_up(&mut self, kind: io::ErrorKind) {
        *self = Self { written: self.written, broken: Some(kind), ..Self::default() };
    }

    fn advance(&mut self, mut written: usize) {
        self.written += written as u64;
        while let Some(answer) = self.answers.front_mut() {
            let left = self.written.clamp(answer.start, answer.end);
            self.answer_bytes -= (left - answer.start) as usize;
            answer.start = left;
            if !answer.is_empty() {
                break;
            }
            self.answers.pop_front();
        }
        while let Some(part) = self.parts.front_mut() {
            let taken = written.min(part.len());
            part.advance(taken);
            self.shared_bytes -= taken;
            written -= taken;
            if !part.is_empty() {
                return;
            }
            self.parts.pop_front();
        }
        self.tail.advance(written);
    }
}
