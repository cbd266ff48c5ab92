//! A codec for `tokio_util`.

use super::frame::{append_frame, try_decode_frame};
use super::types::{Frame, VstpError};
use bytes::BytesMut;
use fastdrop_proto::vstp::frame::FRAME_MAX;
use tokio_util::codec::{Decoder, Encoder};

/// Frames from and to a stream of bytes.
#[derive(Debug, Clone)]
pub struct VstpFrameCodec {
    max_frame_size: usize,
}

impl VstpFrameCodec {
    /// Takes frames of at most `max_frame_size` bytes, all of a frame counted.
    pub fn new(max_frame_size: usize) -> Self {
        Self { max_frame_size }
    }
}

impl Default for VstpFrameCodec {
    /// Takes frames of at most 8 MiB.
    fn default() -> Self {
        Self::new(FRAME_MAX)
    }
}

impl Decoder for VstpFrameCodec {
    type Item = Frame;
    type Error = VstpError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Frame>, VstpError> {
        try_decode_frame(src, self.max_frame_size)
    }
}

impl Encoder<Frame> for VstpFrameCodec {
    type Error = VstpError;

    fn encode(&mut self, frame: Frame, dst: &mut BytesMut) -> Result<(), VstpError> {
        append_frame(&frame, dst)
    }
}
