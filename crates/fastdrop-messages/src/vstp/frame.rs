//! Frames to bytes and back.

use super::types::{Frame, Header, VstpError};
use bytes::{BufMut, Bytes, BytesMut};
use fastdrop_proto::vstp::frame::{CRC_BYTES, HEAD_BYTES};
use fastdrop_proto::vstp::{FrameRef, Head};

/// Writes a frame. An error if a key or a value has more than 255 bytes, or all headers more than
/// 65,535.
pub fn encode_frame(frame: &Frame) -> Result<Bytes, VstpError> {
    let mut out = BytesMut::new();
    append_frame(frame, &mut out)?;
    Ok(out.freeze())
}

/// The same, behind what is in a buffer already.
pub(super) fn append_frame(frame: &Frame, out: &mut BytesMut) -> Result<(), VstpError> {
    let headers_len = frame.headers.iter().map(|header| 2 + header.key.len() + header.value.len()).sum();
    let Frame { version, typ, flags, .. } = *frame;
    let head = Head::encode(version, typ, flags, headers_len, frame.payload.len())?;
    let start = out.len();
    out.reserve(HEAD_BYTES + headers_len + frame.payload.len() + CRC_BYTES);
    out.put_slice(&head);
    for Header { key, value } in &frame.headers {
        let len = |part: &[u8], what: &str| {
            u8::try_from(part.len())
                .map_err(|_| VstpError::Protocol(format!("a header's {what} is too long")))
        };
        let lens = [len(key, "key"), len(value, "value")];
        let [Ok(key_len), Ok(value_len)] = lens else {
            out.truncate(start);
            return lens.into_iter().find_map(Result::err).map_or(Ok(()), Err);
        };
        out.put_u8(key_len);
        out.put_u8(value_len);
        out.put_slice(key);
        out.put_slice(value);
    }
    out.put_slice(&frame.payload);
    let crc = crc32fast::hash(out.get(start..).unwrap_or_default());
    out.put_u32(crc);
    Ok(())
}

/// Takes the frame at the beginning of `buf`; `Ok(None)`, and nothing taken, if it is not all
/// there. A frame of more than `max_frame_size` bytes is an error as soon as its head is there. A
/// frame whose CRC, type or headers are wrong is taken and lost.
pub fn try_decode_frame(buf: &mut BytesMut, max_frame_size: usize) -> Result<Option<Frame>, VstpError> {
    let Some(head) = Head::parse(buf, max_frame_size)? else { return Ok(None) };
    if buf.len() < head.frame_len() {
        return Ok(None);
    }
    let bytes = buf.split_to(head.frame_len());
    Ok(Some(owned(&FrameRef::decode_whole(head, &bytes)?)))
}

/// A copy of a borrowed frame.
pub(super) fn owned(frame: &FrameRef<'_>) -> Frame {
    let headers = frame.headers.iter().map(|(key, value)| Header::new(key.to_vec(), value.to_vec()));
    let mut owned = Frame::new(frame.typ).with_payload(frame.payload.to_vec()).with_flag(frame.flags);
    owned.headers = headers.collect();
    owned
}
