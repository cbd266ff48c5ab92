//! Parameters of a session that both ends agree on.

use super::header::Layout;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// The number of messages that may be unacknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// One.
    StepByStep,
    /// A window of them.
    Burst,
}

impl Mode {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::StepByStep => "step-by-step",
            Self::Burst => "burst",
        }
    }
}

/// The repetition after a loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// Everything from the lost packet on comes again.
    #[serde(rename = "gbn")]
    GoBackN,
    /// Only the lost packet comes again.
    #[serde(rename = "sr")]
    SelectiveRepeat,
}

impl Protocol {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GoBackN => "gbn",
            Self::SelectiveRepeat => "sr",
        }
    }
}

/// The checksum that covers packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChecksumKind {
    /// MD5 of the payload.
    Md5,
    /// CRC-32C of everything.
    Crc32c,
}

impl ChecksumKind {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Crc32c => "crc32c",
        }
    }
}

/// The form of a SYN. A server that does not know one of them may know another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SynForm {
    /// With everything that FastDrop knows; the first three generations understand it.
    #[default]
    Full,
    /// With the fields of the third generation alone.
    Third,
    /// The same, behind the longer header of the fourth.
    Fourth,
}

impl SynForm {
    /// The layout of its packet.
    pub(super) fn layout(self) -> Layout {
        if self == Self::Fourth { Layout::Marked } else { Layout::Plain }
    }
}

/// The name of a session: any text of at most 128 bytes, or an integer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SessionId {
    /// Any text.
    Text(String),
    /// Any number.
    Number(i64),
}

impl SessionId {
    /// The id made of these random bytes.
    pub fn from_random(bytes: [u8; 16]) -> Self {
        Self::Text(hex::encode(bytes))
    }

    /// The id as text.
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Text(text) => text.into(),
            Self::Number(number) => number.to_string().into(),
        }
    }
}

impl std::fmt::Display for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text())
    }
}
