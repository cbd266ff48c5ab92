//! The codes by which an end says why it refuses, or what failed (section 11).

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The reason for which something is refused or has failed, as a number of section 11.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Code {
    /// 400: the protocol was broken, or something was asked for that cannot be.
    BadRequest,
    /// 401: who are you?
    Unauthenticated,
    /// 403: not allowed by policy.
    Forbidden,
    /// 404: not there.
    NotFound,
    /// 408: too slow.
    TooSlow,
    /// 409: something is in the way, another connection has taken over, or there are two versions.
    Conflict,
    /// 410: the source changed or went away while it was sent.
    SourceChanged,
    /// 413: over a limit.
    OverLimit,
    /// 415: what was asked for cannot be done here.
    Unsupported,
    /// 422: bytes are not what they should be.
    Integrity,
    /// 426: no common version.
    NoCommonVersion,
    /// 500: the fault of the end that says so, such as a failed sync.
    Internal,
    /// 503: stopping or full; try again.
    Unavailable,
    /// 507: no space.
    NoSpace,
    /// A number that this version does not know.
    Unknown(u16),
}

impl Code {
    /// The code with this number.
    pub fn new(number: u16) -> Self {
        match number {
            400 => Self::BadRequest,
            401 => Self::Unauthenticated,
            403 => Self::Forbidden,
            404 => Self::NotFound,
            408 => Self::TooSlow,
            409 => Self::Conflict,
            410 => Self::SourceChanged,
            413 => Self::OverLimit,
            415 => Self::Unsupported,
            422 => Self::Integrity,
            426 => Self::NoCommonVersion,
            500 => Self::Internal,
            503 => Self::Unavailable,
            507 => Self::NoSpace,
            number => Self::Unknown(number),
        }
    }

    /// Its number on the wire.
    pub fn number(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::TooSlow => 408,
            Self::Conflict => 409,
            Self::SourceChanged => 410,
            Self::OverLimit => 413,
            Self::Unsupported => 415,
            Self::Integrity => 422,
            Self::NoCommonVersion => 426,
            Self::Internal => 500,
            Self::Unavailable => 503,
            Self::NoSpace => 507,
            Self::Unknown(number) => number,
        }
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.number().fmt(f)
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.number().serialize(to)
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        u16::deserialize(from).map(Self::new)
    }
}

/// A breach of the protocol by the peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
#[non_exhaustive]
pub struct Violation {
    /// The code that a REFUSE carries.
    pub code: Code,
    /// A sentence for people.
    pub message: String,
}

impl Violation {
    /// A frame, a header or an order of them that cannot be.
    pub fn protocol(message: impl Into<String>) -> Self {
        Self { code: Code::BadRequest, message: message.into() }
    }

    /// A breach with a code of its own: bytes that are not what they should be, or more than may
    /// be.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<crate::cursor::ReadError> for Violation {
    fn from(error: crate::cursor::ReadError) -> Self {
        Violation::protocol(format!("a frame {error}"))
    }
}

impl From<crate::json::JsonError> for Violation {
    fn from(error: crate::json::JsonError) -> Self {
        Violation::protocol(error.to_string())
    }
}

/// A reason for which an end gives up, though its peer has kept to the rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct Failure {
    /// The code that a REFUSE carries.
    pub code: Code,
    /// A sentence for people.
    pub message: String,
}

impl Failure {
    /// A failure with a code and a sentence.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<Violation> for Failure {
    fn from(Violation { code, message }: Violation) -> Self {
        Self { code, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_a_code_and_comes_back_from_it() {
        for number in 0..=u16::MAX {
            assert_eq!(Code::new(number).number(), number);
        }
        assert_eq!(Code::new(418), Code::Unknown(418));
        assert_eq!(serde_json::to_string(&Code::NoSpace).unwrap(), "507");
        assert_eq!(serde_json::from_str::<Code>("599").unwrap(), Code::Unknown(599));
    }
}
