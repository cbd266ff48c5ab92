//! The code of an ERR frame.

use super::frame::FrameRef;

/// The header that has it.
pub(super) const CODE: &str = "code";

/// The value of the header `code`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// Bytes that are no frame.
    Malformed,
    /// A frame that is larger than the receiver takes.
    TooLarge,
    /// A CRC that does not agree.
    Crc,
    /// A frame that was begun and not ended in time.
    Timeout,
    /// A limit of the receiver is reached.
    Busy,
    /// The application did not handle the frame.
    Unhandled,
    /// Nobody waits for the reply any more.
    Cancelled,
    /// The client is not let in.
    Unauthorized,
}

impl ErrorCode {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::TooLarge => "too-large",
            Self::Crc => "crc",
            Self::Timeout => "timeout",
            Self::Busy => "busy",
            Self::Unhandled => "unhandled",
            Self::Cancelled => "cancelled",
            Self::Unauthorized => "unauthorized",
        }
    }
}

/// The code of an ERR frame, escaped.
pub(super) fn code_of(frame: &FrameRef<'_>) -> String {
    frame.headers.find(CODE).unwrap_or(b"unknown").escape_ascii().to_string()
}
