//! Headers of calls and their replies (docs/protocol/vstp.md, section 9).

use super::error_code::{CODE, ErrorCode};
use super::frame::{Flags, FrameBytes, FrameError, FrameRef, FrameType, Headers, HeadersBuf};
use super::ids::MSG_ID;
use crate::calls::CallId;
use bytes::Bytes;

const CALL: &str = "vstp-call";
const REPLY: &str = "vstp-reply";
const CANCEL: &str = "vstp-cancel";
const TIMEOUT: &str = "vstp-timeout";

/// A frame's part in a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallRole {
    /// Asks for a reply with the same number, within this many milliseconds if it says so.
    Request(CallId, Option<u64>),
    /// Replies to the call with this number.
    Reply(CallId),
    /// Says that nobody waits for a reply to this call any more.
    Cancel(CallId),
}

impl CallRole {
    /// The part of a frame; None if it has none. Replies are DATA or ERR, cancellations ERR.
    pub fn of(frame: &FrameRef<'_>) -> Option<Self> {
        let id = |key| frame.headers.number(key).map(CallId);
        match frame.typ {
            FrameType::Data => match id(REPLY) {
                Some(id) => Some(Self::Reply(id)),
                None => id(CALL).map(|id| Self::Request(id, frame.headers.number(TIMEOUT))),
            },
            FrameType::Err => id(REPLY).map(Self::Reply).or_else(|| id(CANCEL).map(Self::Cancel)),
            _ => None,
        }
    }

    /// The frame as the request of a call for which this many milliseconds remain.
    ///
    /// # Errors
    ///
    /// Its headers would be too long.
    pub fn request(frame: &FrameBytes, id: CallId, remaining_ms: u64) -> Result<FrameBytes, FrameError> {
        let mut headers = without_roles(frame.headers())?;
        headers.push(CALL.as_bytes(), id.to_string().as_bytes())?;
        headers.push(TIMEOUT.as_bytes(), remaining_ms.to_string().as_bytes())?;
        let request = FrameBytes::new(FrameType::Data, headers, frame.payload.clone());
        Ok(request.with_flag(frame.flags))
    }

    /// The frame as the reply to a call.
    ///
    /// # Errors
    ///
    /// Its headers would be too long.
    pub fn reply(frame: &FrameBytes, id: CallId) -> Result<FrameBytes, FrameError> {
        let mut headers = without_roles(frame.clone().without_header(MSG_ID)?.headers())?;
        headers.push(REPLY.as_bytes(), id.to_string().as_bytes())?;
        // Whether it is acknowledged is not up to the request, which may be sent back as it came.
        let flags = frame.flags - Flags::REQ_ACK;
        Ok(FrameBytes::new(frame.typ, headers, frame.payload.clone()).with_flag(flags))
    }

    /// The reply that says why there is no other.
    pub fn refusal(id: CallId, code: ErrorCode, reason: &str) -> FrameBytes {
        let reason = reason.get(..reason.floor_char_boundary(255)).unwrap_or_default();
        let headers = HeadersBuf::default().with(REPLY, id).with(CODE, code.as_str()).with("reason", reason);
        FrameBytes::new(FrameType::Err, headers, Bytes::new())
    }

    /// The frame that says that nobody waits any more.
    pub fn cancellation(id: CallId) -> FrameBytes {
        let headers = HeadersBuf::default().with(CANCEL, id).with(CODE, ErrorCode::Cancelled.as_str());
        FrameBytes::new(FrameType::Err, headers, Bytes::new())
    }
}

/// Headers without those that give a frame a part in a call.
fn without_roles(headers: Headers<'_>) -> Result<HeadersBuf, FrameError> {
    let roles = [CALL, REPLY, CANCEL, TIMEOUT].map(str::as_bytes);
    let mut kept = HeadersBuf::default();
    for (key, value) in headers.iter().filter(|(key, _)| !roles.contains(key)) {
        kept.push(key, value)?;
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_one_part_and_keeps_its_other_headers() {
        let frame = FrameBytes::new(FrameType::Data, HeadersBuf::default().with("a", "b"), Bytes::new());
        assert_eq!(CallRole::of(&frame.as_ref()), None);
        let request = CallRole::request(&frame, CallId(7), 250).unwrap();
        assert_eq!(CallRole::of(&request.as_ref()), Some(CallRole::Request(CallId(7), Some(250))));
        // An application that sends back what it was sent.
        let reply = CallRole::reply(&request, CallId(7)).unwrap();
        assert_eq!(CallRole::of(&reply.as_ref()), Some(CallRole::Reply(CallId(7))));
        assert_eq!(reply.headers().find("a"), Some(&b"b"[..]));
        assert_eq!(reply.headers().iter().count(), 2);
        let refusal = CallRole::refusal(CallId(7), ErrorCode::Busy, &"long ".repeat(100));
        assert_eq!(CallRole::of(&refusal.as_ref()), Some(CallRole::Reply(CallId(7))));
        let cancelled = CallRole::cancellation(CallId(u64::MAX));
        assert_eq!(CallRole::of(&cancelled.as_ref()), Some(CallRole::Cancel(CallId(u64::MAX))));
    }

    #[test]
    fn headers_that_are_no_numbers_and_other_types_have_no_part() {
        for (typ, key, value) in [
            (FrameType::Data, REPLY, "x"),
            (FrameType::Data, CALL, ""),
            (FrameType::Data, CANCEL, "1"),
            (FrameType::Ping, CALL, "1"),
            (FrameType::Ack, REPLY, "1"),
            (FrameType::Err, CALL, "1"),
        ] {
            let frame = FrameBytes::new(typ, HeadersBuf::default().with(key, value), Bytes::new());
            assert_eq!(CallRole::of(&frame.as_ref()), None, "{typ:?} {key} {value}");
        }
    }
}
