//! The acknowledgement that a received frame asks for, and the refusal that it may get instead.

use super::error_code::{CODE, ErrorCode};
use super::frame::{Flags, FrameError, FrameRef, FrameType, Headers, HeadersBuf};
use super::ids::{MSG_ID, MSG_ID_DIGITS, is_of_stream, number_digits};

/// Owed for one received frame, until its application has handled it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Acknowledgement {
    /// The frame's number; None where it had none, which is acknowledged without one.
    pub(super) msg_id: Option<u64>,
    /// The frame's CRC, by which a repetition is told from another frame with the same number; 0
    /// where no two have one.
    pub(super) crc: u32,
    /// The number is one that its sender uses once: it was written with a leading zero, and is
    /// given back so.
    pub(super) unique: bool,
}

impl Acknowledgement {
    /// Owed for a frame with these headers and this CRC; None if it has no number.
    pub(super) fn of(headers: Headers<'_>, crc: u32) -> Option<Self> {
        let msg_id = headers.number(MSG_ID)?;
        let digits = headers.find(MSG_ID).unwrap_or_default();
        let unique = digits.len() == MSG_ID_DIGITS && digits.starts_with(b"0") && is_of_stream(msg_id);
        Some(Self { msg_id: Some(msg_id), crc: if unique { 0 } else { crc }, unique })
    }

    /// The frame's number, if it has one.
    pub fn number(&self) -> Option<u64> {
        self.msg_id
    }

    /// The frame's number, if its sender uses it once.
    pub(super) fn unique_number(&self) -> Option<u64> {
        self.msg_id.filter(|_| self.unique)
    }

    /// Reports whether the frame's number is one that its sender uses once.
    pub fn is_of_unique_number(&self) -> bool {
        self.unique
    }

    /// The headers of its answer.
    fn headers(&self) -> HeadersBuf {
        match self.msg_id {
            Some(id) if self.unique => HeadersBuf::default().with(MSG_ID, number_digits(id)),
            Some(id) => HeadersBuf::default().with(MSG_ID, id),
            None => HeadersBuf::default(),
        }
    }

    /// Encodes the ACK frame, with what it says beside.
    pub(super) fn encode(&self, payload: &[u8]) -> Result<Vec<u8>, FrameError> {
        let headers = self.headers();
        let (typ, flags, headers) = (FrameType::Ack, Flags::empty(), headers.as_headers());
        let mut bytes = Vec::new();
        FrameRef { typ, flags, headers, payload }.encode(&mut bytes)?;
        Ok(bytes)
    }

    /// Encodes the ERR frame that says why there is no acknowledgement.
    pub(super) fn encode_refusal(&self, code: ErrorCode, reason: &str) -> Result<Vec<u8>, FrameError> {
        let headers = self.headers();
        let reason = reason.get(..reason.floor_char_boundary(255)).unwrap_or_default();
        let headers = headers.with(CODE, code.as_str()).with("reason", reason);
        let (typ, flags, headers) = (FrameType::Err, Flags::empty(), headers.as_headers());
        let mut bytes = Vec::new();
        FrameRef { typ, flags, headers, payload: b"" }.encode(&mut bytes)?;
        Ok(bytes)
    }
}
