//! The types that users build and match.

use crate::tls::TlsError;
use bytes::Bytes;
pub use fastdrop_proto::vstp::{ErrorCode, Flags, FrameType};
use fastdrop_proto::vstp::{FrameBytes, FrameError, HeadersBuf, frame};
use std::io::Read;
use thiserror::Error;

/// The first two bytes of every frame.
pub const VSTP_MAGIC: [u8; 2] = frame::MAGIC;
/// The version that is spoken.
pub const VSTP_VERSION: u8 = frame::VERSION;

/// Which connection of a server.
pub type SessionId = u128;

/// A key with its value, at most 255 bytes each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Any bytes.
    pub key: Vec<u8>,
    /// Any bytes.
    pub value: Vec<u8>,
}

impl Header {
    /// Of bytes.
    pub fn new(key: Vec<u8>, value: Vec<u8>) -> Self {
        Self { key, value }
    }

    /// Of text. (Not the trait: there is no text that fails.)
    #[allow(clippy::should_implement_trait, reason = "programs for version 0.2 call it with two arguments")]
    pub fn from_str(key: &str, value: &str) -> Self {
        Self { key: key.into(), value: value.into() }
    }
}

/// A frame that owns everything in it. [`FrameBytes`] is the form that is shared instead of copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// [`VSTP_VERSION`].
    pub version: u8,
    /// What it is for.
    pub typ: FrameType,
    /// What is wanted of it.
    pub flags: Flags,
    /// In order; a key may come more than once.
    pub headers: Vec<Header>,
    /// Any bytes.
    pub payload: Vec<u8>,
}

const COMPRESSION: &str = "compression";

impl Frame {
    /// Without flags, headers and payload.
    pub fn new(typ: FrameType) -> Self {
        let (flags, headers, payload) = (Flags::empty(), Vec::new(), Vec::new());
        Self { version: VSTP_VERSION, typ, flags, headers, payload }
    }

    /// The same with this payload.
    pub fn with_payload(mut self, payload: Vec<u8>) -> Self {
        self.payload = payload;
        self
    }

    /// The same with one more header.
    pub fn with_header(mut self, key: &str, value: &str) -> Self {
        self.headers.push(Header::from_str(key, value));
        self
    }

    /// The same with one more flag.
    pub fn with_flag(mut self, flag: Flags) -> Self {
        self.flags |= flag;
        self
    }

    /// Its payload.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Its type.
    pub fn frame_type(&self) -> FrameType {
        self.typ
    }

    /// The value of the first header with this key, if it is text.
    pub fn get_header(&self, key: &str) -> Option<&str> {
        let header = self.headers.iter().find(|header| header.key == key.as_bytes())?;
        std::str::from_utf8(&header.value).ok()
    }

    /// The same with its payload compressed by Zstandard, if that makes it smaller. Only our own
    /// peers decompress it.
    #[cfg(feature = "zstd")]
    pub fn compressed(mut self) -> Result<Self, VstpError> {
        if self.flags.contains(Flags::COMP) {
            return Ok(self);
        }
        let smaller = zstd::bulk::compress(&self.payload, 1)?;
        if smaller.len() < self.payload.len() {
            self.payload = smaller;
            self = self.with_flag(Flags::COMP).with_header(COMPRESSION, "zstd");
        }
        Ok(self)
    }

    /// The same with its payload decompressed into at most `limit` bytes, if it is compressed.
    pub fn decompressed(mut self, limit: usize) -> Result<Self, VstpError> {
        if !self.flags.contains(Flags::COMP) || self.get_header(COMPRESSION) != Some("zstd") {
            return Ok(self);
        }
        #[cfg(not(feature = "zstd"))]
        return Err(VstpError::Protocol(
            "a compressed frame, and this program was built without the feature zstd".into(),
        ));
        #[cfg(feature = "zstd")]
        self.decompress(limit)?;
        Ok(self)
    }

    #[cfg(feature = "zstd")]
    fn decompress(&mut self, limit: usize) -> Result<(), VstpError> {
        let mut payload = Vec::new();
        let mut decoder = zstd::stream::read::Decoder::new(&self.payload[..])?;
        decoder.window_log_max(23)?;
        decoder.take(limit as u64 + 1).read_to_end(&mut payload)?;
        if payload.len() > limit {
            return Err(VstpError::FrameTooLarge { size: payload.len(), limit });
        }
        self.payload = payload;
        self.flags -= Flags::COMP;
        self.headers.retain(|header| header.key != COMPRESSION.as_bytes());
        Ok(())
    }
}

impl TryFrom<Frame> for FrameBytes {
    type Error = VstpError;

    /// Copies the headers, and takes the payload as it is.
    fn try_from(frame: Frame) -> Result<Self, VstpError> {
        let mut headers = HeadersBuf::default();
        for Header { key, value } in &frame.headers {
            headers.push(key, value)?;
        }
        Ok(Self::new(frame.typ, headers, Bytes::from(frame.payload)).with_flag(frame.flags))
    }
}

impl From<FrameBytes> for Frame {
    /// Copies the headers, and the payload only where it is shared.
    fn from(frame: FrameBytes) -> Self {
        let headers = frame.headers().iter().map(|(key, value)| Header::new(key.to_vec(), value.to_vec()));
        let headers = headers.collect();
        let (version, typ, flags) = (VSTP_VERSION, frame.typ, frame.flags);
        Self { version, typ, flags, headers, payload: frame.payload.into() }
    }
}

/// The settings with which a receiver takes larger messages. It is short enough for a header.
pub(super) const LARGER: &str = "`fastdrop message listen` takes more with --max-size, a program with \
     TcpConfig::frame_max, by UDP with ReassemblyLimits::message_bytes_max";

/// What went wrong.
#[derive(Error, Debug)]
pub enum VstpError {
    /// The operating system said so.
    #[error("input or output: {0}")]
    Io(#[from] std::io::Error),
    /// The peer, or the caller, did not keep to the protocol.
    #[error("protocol: {0}")]
    Protocol(String),
    /// Another version.
    #[error("version {got} where {expected} is spoken")]
    InvalidVersion {
        /// Ours.
        expected: u8,
        /// Theirs.
        got: u8,
    },
    /// No such type.
    #[error("there is no frame type {0}")]
    InvalidFrameType(u8),
    /// The first two bytes are others.
    #[error("the magic bytes are {0:02x?}, not those of VSTP")]
    InvalidMagic([u8; 2]),
    /// The bytes were changed on the way.
    #[error("the CRC is {got:08x}, the frame says {expected:08x}")]
    CrcMismatch {
        /// What the frame says.
        expected: u32,
        /// What its bytes give.
        got: u32,
    },
    /// Not all of a frame is there.
    #[error("{needed} bytes of the frame are missing")]
    Incomplete {
        /// How many bytes.
        needed: usize,
    },
    /// Larger than is taken.
    #[error("{size} bytes, where at most {limit} are taken; {LARGER}")]
    FrameTooLarge {
        /// Of the frame.
        size: usize,
        /// The most.
        limit: usize,
    },
    /// Nobody answered in time.
    #[error("nobody answered in time")]
    Timeout,
    /// No address.
    #[error("that is no address")]
    InvalidAddress,
    /// A value that cannot be JSON.
    #[error("the value cannot be written as JSON")]
    SerializationError,
    /// JSON that is no such value.
    #[error("the JSON is no value of this type")]
    DeserializationError,
    /// A frame that has no place here.
    #[error("a frame of another type was expected")]
    UnexpectedFrameType,
    /// The other end has closed.
    #[error("the connection is closed")]
    ConnectionClosed,
    /// The other end says what went wrong there.
    #[error("the peer says: {0}")]
    ServerError(String),
}

impl From<TlsError> for VstpError {
    fn from(error: TlsError) -> Self {
        match error {
            TlsError::Io(error) => Self::Io(error),
            TlsError::Timeout => Self::Timeout,
            TlsError::Name => Self::InvalidAddress,
            error => Self::Io(std::io::Error::new(std::io::ErrorKind::InvalidData, error)),
        }
    }
}

impl From<FrameError> for VstpError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Magic(magic) => Self::InvalidMagic(magic),
            FrameError::Version(got) => Self::InvalidVersion { expected: VSTP_VERSION, got },
            FrameError::Type(typ) => Self::InvalidFrameType(typ),
            FrameError::TooLarge { size, limit } => {
                Self::FrameTooLarge { size: usize::try_from(size).unwrap_or(usize::MAX), limit }
            }
            FrameError::Crc { expected, got } => Self::CrcMismatch { expected, got },
            other => Self::Protocol(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_with_the_settings_fits_into_a_header() {
        let error = VstpError::FrameTooLarge { size: usize::MAX, limit: usize::MAX };
        let reason = error.to_string();
        assert!(reason.contains("--max-size") && reason.contains("TcpConfig::frame_max"), "{reason}");
        assert!(reason.len() <= frame::HEADER_PART_MAX, "{} bytes", reason.len());
    }

    #[test]
    fn compression_comes_back_and_a_bomb_is_refused() {
        let frame = Frame::new(FrameType::Data).with_header("a", "b").with_payload(vec![7; 100_000]);
        let small = frame.clone().compressed().unwrap();
        assert!(small.payload.len() < 1000 && small.flags.contains(Flags::COMP));
        assert_eq!(small.clone().decompressed(100_000).unwrap(), frame);
        assert!(matches!(small.decompressed(99_999), Err(VstpError::FrameTooLarge { .. })));
        let random = Frame::new(FrameType::Data).with_payload(vec![1, 2, 3]);
        assert_eq!(random.clone().compressed().unwrap(), random);
    }
}
