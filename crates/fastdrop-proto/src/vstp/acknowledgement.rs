//! The acknowledgement that a received frame asks for, and the refusal that it may get instead.

use super::error_code::{CODE, ErrorCode};
use super::frame::{Flags, FrameError, FrameRef, FrameType, HeadersBuf};
use super::ids::MSG_ID;

/// Owed for one received frame, until its application has handled it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Acknowledgement {
    /// The frame's number; None where it had none, which is acknowledged without one.
    pub(super) msg_id: Option<u64>,
    /// The frame's CRC, by which a repetition is told from another frame with the same number.
    pub(super) crc: u32,
}

impl Acknowledgement {
    /// Encodes the ACK frame.
    pub(super) fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let headers =
            self.msg_id.map_or_else(HeadersBuf::default, |id| HeadersBuf::default().with(MSG_ID, id));
        let (typ, flags, headers) = (FrameType::Ack, Flags::empty(), headers.as_headers());
        let mut bytes = Vec::new();
        FrameRef { typ, flags, headers, payload: b"" }.encode(&mut bytes)?;
        Ok(bytes)
    }

    /// Encodes the ERR frame that says why there is no acknowledgement.
    pub(super) fn encode_refusal(&self, code: ErrorCode, reason: &str) -> Result<Vec<u8>, FrameError> {
        let headers =
            self.msg_id.map_or_else(HeadersBuf::default, |id| HeadersBuf::default().with(MSG_ID, id));
        let reason = reason.get(..reason.floor_char_boundary(255)).unwrap_or_default();
        let headers = headers.with(CODE, code.as_str()).with("reason", reason);
        let (typ, flags, headers) = (FrameType::Err, Flags::empty(), headers.as_headers());
        let mut bytes = Vec::new();
        FrameRef { typ, flags, headers, payload: b"" }.encode(&mut bytes)?;
        Ok(bytes)
    }
}
