//! Messages about calls (docs/protocol/cnp.md, section 13).

use super::packet::PeerError;
use crate::calls::CallId;
use crate::cursor::Cursor;
use bytes::Bytes;

const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const REFUSAL: u8 = 3;
const CANCEL: u8 = 4;

/// The bytes in front of a request: its kind, the call, and the time that is left.
const REQUEST_HEAD: usize = 1 + size_of::<u64>() + size_of::<u32>();
const HEAD: usize = 1 + size_of::<u64>();

/// The reasons for which a call has no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallRefusal {
    /// There are too many calls, or too many bytes of them; later there may be fewer.
    Busy,
    /// The deadline has passed.
    Timeout,
    /// Nobody handles calls there, or the handler has dropped this one.
    Unhandled,
    /// The handler says no.
    Failed,
}

impl CallRefusal {
    /// The code on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Timeout => "timeout",
            Self::Unhandled => "unhandled",
            Self::Failed => "failed",
        }
    }

    fn of(error: &PeerError) -> Self {
        let all = [Self::Busy, Self::Timeout, Self::Unhandled];
        let said = error.code.as_deref();
        all.into_iter().find(|one| Some(one.as_str()) == said).unwrap_or(Self::Failed)
    }
}

/// A message about a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallMessage {
    /// A call.
    Request {
        /// Its number.
        id: CallId,
        /// Milliseconds until its deadline; 0 if it has none.
        time_left: u32,
        /// The request.
        body: Bytes,
    },
    /// The reply to a call.
    Reply {
        /// The number of the call.
        id: CallId,
        /// The answer.
        body: Bytes,
    },
    /// There is no reply.
    Refusal {
        /// The number of the call.
        id: CallId,
        /// The reason.
        refusal: CallRefusal,
        /// The reason in words, as the peer wrote them; escape them before they are shown.
        words: String,
    },
    /// Nobody waits for the reply any more.
    Cancel {
        /// The number of the call.
        id: CallId,
    },
}

impl CallMessage {
    /// The bytes of the message.
    pub fn encode(&self) -> Bytes {
        let with = |kind: u8, id: CallId, rest: &[u8]| {
            let mut bytes = Vec::with_capacity(REQUEST_HEAD + rest.len());
            bytes.push(kind);
            bytes.extend_from_slice(&id.0.to_be_bytes());
            bytes.extend_from_slice(rest);
            bytes
        };
        let bytes = match self {
            Self::Request { id, time_left, body } => {
                let mut bytes = Vec::with_capacity(REQUEST_HEAD + body.len());
                bytes.push(REQUEST);
                bytes.extend_from_slice(&id.0.to_be_bytes());
                bytes.extend_from_slice(&time_left.to_be_bytes());
                bytes.extend_from_slice(body);
                bytes
            }
            Self::Reply { id, body } => with(REPLY, *id, body),
            Self::Refusal { id, refusal, words } => {
                with(REFUSAL, *id, format!("{}: {words}", refusal.as_str()).as_bytes())
            }
            Self::Cancel { id } => with(CANCEL, *id, b""),
        };
        bytes.into()
    }

    /// Reads a message; None if it is none about a call.
    pub fn parse(message: &Bytes) -> Option<Self> {
        let mut cursor = Cursor::new(message);
        let (kind, id) = (cursor.u8().ok()?, CallId(cursor.u64().ok()?));
        Some(match kind {
            REQUEST => {
                let time_left = cursor.u32().ok()?;
                Self::Request { id, time_left, body: message.slice(REQUEST_HEAD..) }
            }
            REPLY => Self::Reply { id, body: message.slice(HEAD..) },
            REFUSAL => {
                let error = PeerError::parse(message.get(HEAD..)?);
                Self::Refusal { id, refusal: CallRefusal::of(&error), words: error.sentence }
            }
            CANCEL => Self::Cancel { id },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_written_is_read_and_anything_else_is_none(
            id: u64, time_left: u32, body: Vec<u8>, words in "[a-z ]{0,40}", any: Vec<u8>, which in 0..4_usize
        ) {
            let (id, body) = (CallId(id), Bytes::from(body));
            let refusals =
                [CallRefusal::Busy, CallRefusal::Timeout, CallRefusal::Unhandled, CallRefusal::Failed];
            let messages = [
                CallMessage::Request { id, time_left, body: body.clone() },
                CallMessage::Reply { id, body },
                CallMessage::Refusal { id, refusal: refusals[which], words },
                CallMessage::Cancel { id },
            ];
            for message in messages {
                let bytes = message.encode();
                prop_assert_eq!(CallMessage::parse(&bytes), Some(message));
                prop_assert_eq!(CallMessage::parse(&bytes.slice(..HEAD - 1)), None);
            }
            let _ = CallMessage::parse(&any.into());
        }
    }
}
