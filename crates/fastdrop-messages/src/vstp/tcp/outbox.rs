//! What is to be written to a connection.

use crate::vstp::frame::append_frame;
use crate::vstp::types::{Frame, Header, VstpError};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use fastdrop_proto::vstp::{FrameBytes, Head, HeadersBuf};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Bytes in the order in which they leave. Small frames are gathered, large payloads stay where
/// they are.
///
/// Bytes that have not been written stay here when the future that writes is dropped; the next one
/// goes on.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    parts: VecDeque<Bytes>,
    tail: BytesMut,
    shared_bytes: usize,
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

    /// Bytes that are a frame already.
    pub(super) fn push_encoded(&mut self, bytes: &[u8]) {
        self.tail.put_slice(bytes);
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

    /// Writes everything.
    pub(super) async fn flush(&mut self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        while self.len() > 0 {
            let written = if self.parts.is_empty() {
                stream.write(&self.tail).await?
            } else {
                let slices = self.parts.iter().map(Bytes::as_ref).chain([self.tail.as_ref()]);
                let slices: Vec<_> = slices.take(Self::SLICES).map(IoSlice::new).collect();
                stream.write_vectored(&slices).await?
            };
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.advance(written);
        }
        stream.flush().await
    }

    fn advance(&mut self, mut written: usize) {
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
