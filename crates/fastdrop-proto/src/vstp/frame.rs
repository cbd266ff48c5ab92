//! The frame (docs/protocol/vstp.md, section 1), borrowed from the bytes that came.

use bytes::Bytes;
use thiserror::Error;

/// The first two bytes of every frame.
pub const MAGIC: [u8; 2] = [0x56, 0x54];
/// The only version there is.
pub const VERSION: u8 = 0x01;
/// Bytes before the headers.
pub const HEAD_BYTES: usize = 11;
/// The place of the payload's length in a head, which is its last field.
pub(super) const PAYLOAD_LEN_AT: usize = HEAD_BYTES - size_of::<u32>();
/// Bytes of the CRC at the end.
pub const CRC_BYTES: usize = 4;
/// Bytes of a frame without headers and payload.
pub const OVERHEAD_BYTES: usize = HEAD_BYTES + CRC_BYTES;
/// The most bytes of a frame that a peer takes by default.
pub const FRAME_MAX: usize = 8 << 20;
/// The most bytes of all headers together.
pub const HEADERS_MAX: usize = u16::MAX as usize;
/// The most bytes of a header's key, or of its value.
pub const HEADER_PART_MAX: usize = u8::MAX as usize;

/// What a frame is for.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FrameType {
    /// Opens a session.
    Hello = 0x01,
    /// Accepts it.
    Welcome = 0x02,
    /// Application data.
    Data = 0x03,
    /// Are you there?
    Ping = 0x04,
    /// I am.
    Pong = 0x05,
    /// Closes in good order.
    Bye = 0x06,
    /// Acknowledges a frame.
    Ack = 0x07,
    /// Says what went wrong.
    Err = 0x08,
}

impl FrameType {
    /// Every type, in the order of their codes.
    pub const ALL: [Self; 8] =
        [Self::Hello, Self::Welcome, Self::Data, Self::Ping, Self::Pong, Self::Bye, Self::Ack, Self::Err];

    /// The type with this code; None if there is none.
    pub fn from_u8(value: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|typ| *typ as u8 == value)
    }
}

bitflags::bitflags! {
    /// What is wanted of a frame, or true of it.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct Flags: u8 {
        /// Acknowledge this frame.
        const REQ_ACK = 0x01;
        /// Integrity is wanted. (The CRC is there in any case.)
        const CRC = 0x02;
        /// A fragment of a message.
        const FRAG = 0x10;
        /// The payload is compressed.
        const COMP = 0x20;
    }
}

impl Flags {
    /// Flags as every peer reads them: one bit that is not known, and none is.
    pub fn from_wire(bits: u8) -> Self {
        Self::from_bits(bits).unwrap_or(Self::empty())
    }
}

/// Why bytes are no frame, or a frame cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The first two bytes are others.
    #[error("the magic bytes are {0:02x?}, not those of VSTP")]
    Magic([u8; 2]),
    /// Another version.
    #[error("version {0} is not spoken here")]
    Version(u8),
    /// No such type.
    #[error("there is no frame type {0}")]
    Type(u8),
    /// Larger than the receiver takes.
    #[error("a frame of {size} bytes, where {limit} are taken")]
    TooLarge {
        /// Of the frame in bytes.
        size: u64,
        /// The most that is taken.
        limit: usize,
    },
    /// The bytes were changed on the way.
    #[error("the CRC is {got:08x}, the frame says {expected:08x}")]
    Crc {
        /// What the frame says.
        expected: u32,
        /// What its bytes give.
        got: u32,
    },
    /// Headers that do not end where their length says.
    #[error("the headers do not end where they should")]
    Headers,
    /// A key or value over 255 bytes, headers over 65,535, or a payload over 2^32 − 1.
    #[error(
        "{0}: too long for a frame, which has at most 255 bytes in a header's key or value, 65,535 in \
         all headers, and 4 GiB less one in its payload"
    )]
    TooLong(&'static str),
}

/// The first eleven bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    typ: u8,
    flags: u8,
    headers_len: u16,
    payload_len: u32,
}

impl Head {
    /// Reads the head at the beginning of `bytes`; None if it is not all there. A frame that has
    /// more than `limit` bytes is refused already here.
    pub fn parse(bytes: &[u8], limit: usize) -> Result<Option<Self>, FrameError> {
        let Some(&[m0, m1, version, typ, flags, h0, h1, p0, p1, p2, p3]) = bytes.first_chunk() else {
            return Ok(None);
        };
        if [m0, m1] != MAGIC {
            return Err(FrameError::Magic([m0, m1]));
        }
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let headers_len = u16::from_le_bytes([h0, h1]);
        let payload_len = u32::from_be_bytes([p0, p1, p2, p3]);
        let size = OVERHEAD_BYTES as u64 + u64::from(headers_len) + u64::from(payload_len);
        if size > limit as u64 {
            return Err(FrameError::TooLarge { size, limit });
        }
        Ok(Some(Self { typ, flags, headers_len, payload_len }))
    }

    /// Bytes of the whole frame.
    pub fn frame_len(&self) -> usize {
        OVERHEAD_BYTES + self.headers_len() + self.payload_len()
    }

    /// Bytes of the headers.
    pub fn headers_len(&self) -> usize {
        self.headers_len.into()
    }

    /// Bytes of the payload.
    pub fn payload_len(&self) -> usize {
        self.payload_len as usize
    }

    /// The type; an error if there is no such type.
    pub fn typ(&self) -> Result<FrameType, FrameError> {
        FrameType::from_u8(self.typ).ok_or(FrameError::Type(self.typ))
    }

    /// The flags.
    pub fn flags(&self) -> Flags {
        Flags::from_wire(self.flags)
    }

    /// The head of a frame with headers and a payload of these lengths.
    pub fn encode(
        version: u8,
        typ: FrameType,
        flags: Flags,
        headers_len: usize,
        payload_len: usize,
    ) -> Result<[u8; HEAD_BYTES], FrameError> {
        let headers_len = u16::try_from(headers_len).map_err(|_| FrameError::TooLong("the headers"))?;
        let payload_len = u32::try_from(payload_len).map_err(|_| FrameError::TooLong("the payload"))?;
        let [h0, h1] = headers_len.to_le_bytes();
        let [p0, p1, p2, p3] = payload_len.to_be_bytes();
        let [m0, m1] = MAGIC;
        Ok([m0, m1, version, typ as u8, flags.bits(), h0, h1, p0, p1, p2, p3])
    }
}

/// Headers whose lengths have been checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Headers<'a>(&'a [u8]);

impl<'a> Headers<'a> {
    /// Checks that every header ends within `bytes`, and the last one at their end.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = split_header(rest).ok_or(FrameError::Headers)?.1;
        }
        Ok(Self(bytes))
    }

    /// As they are on the wire.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }

    /// Each key with its value, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (header, after) = split_header(rest)?;
            rest = after;
            Some(header)
        })
    }

    /// The value of the first header with this key.
    pub fn find(&self, key: &str) -> Option<&'a [u8]> {
        self.iter().find(|(name, _)| *name == key.as_bytes()).map(|(_, value)| value)
    }

    /// The value of the first header with this key, if it is a number in decimal digits.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.find(key).and_then(decimal)
    }
}

/// A number in decimal digits, leading zeros allowed, nothing else.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

type Header<'a> = (&'a [u8], &'a [u8]);

fn split_header(bytes: &[u8]) -> Option<(Header<'_>, &[u8])> {
    let (&[key_len, value_len], rest) = bytes.split_first_chunk()?;
    let (key, rest) = rest.split_at_checked(key_len.into())?;
    let (value, rest) = rest.split_at_checked(value_len.into())?;
    Some(((key, value), rest))
}

/// Headers as they go to the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeadersBuf(Vec<u8>);

impl HeadersBuf {
    /// Adds one; an error if it, or all together, would be too long.
    pub fn push(&mut self, key: &[u8], value: &[u8]) -> Result<(), FrameError> {
        let key_len = u8::try_from(key.len()).map_err(|_| FrameError::TooLong("a header's key"))?;
        let value_len = u8::try_from(value.len()).map_err(|_| FrameError::TooLong("a header's value"))?;
        if self.0.len() + 2 + key.len() + value.len() > HEADERS_MAX {
            return Err(FrameError::TooLong("the headers"));
        }
        self.0.extend_from_slice(&[key_len, value_len]);
        self.0.extend_from_slice(key);
        self.0.extend_from_slice(value);
        Ok(())
    }

    /// The same, for a key and a value of ours that are short.
    pub(super) fn with(mut self, key: &str, value: impl ToString) -> Self {
        let pushed = self.push(key.as_bytes(), value.to_string().as_bytes());
        debug_assert!(pushed.is_ok(), "{key} is too long");
        self
    }

    /// As they are on the wire.
    pub fn as_headers(&self) -> Headers<'_> {
        Headers(&self.0)
    }

    /// Gives the bytes away.
    pub fn into_bytes(self) -> Bytes {
        self.0.into()
    }
}

/// A frame that borrows everything from the bytes that it was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRef<'a> {
    /// What it is for.
    pub typ: FrameType,
    /// What is wanted of it.
    pub flags: Flags,
    /// Its headers.
    pub headers: Headers<'a>,
    /// Its payload.
    pub payload: &'a [u8],
}

impl<'a> FrameRef<'a> {
    /// Reads the frame at the beginning of `bytes`, and says how many bytes it has; None if it is
    /// not all there.
    pub fn decode(bytes: &'a [u8], limit: usize) -> Result<Option<(Self, usize)>, FrameError> {
        let Some(head) = Head::parse(bytes, limit)? else { return Ok(None) };
        let len = head.frame_len();
        let Some(frame) = bytes.get(..len) else { return Ok(None) };
        Self::decode_whole(head, frame).map(|frame| Some((frame, len)))
    }

    /// Reads a frame from exactly its bytes, whose head has been read already.
    pub fn decode_whole(head: Head, bytes: &'a [u8]) -> Result<Self, FrameError> {
        let (rest, crc) = bytes.split_last_chunk::<CRC_BYTES>().ok_or(FrameError::Headers)?;
        check_crc(u32::from_be_bytes(*crc), crc32fast::hash(rest))?;
        let typ = head.typ()?;
        let (_, body) = rest.split_at_checked(HEAD_BYTES).ok_or(FrameError::Headers)?;
        let (headers, payload) = body.split_at_checked(head.headers_len()).ok_or(FrameError::Headers)?;
        Ok(Self { typ, flags: head.flags(), headers: Headers::parse(headers)?, payload })
    }

    /// Appends the frame to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        let head =
            Head::encode(VERSION, self.typ, self.flags, self.headers.as_bytes().len(), self.payload.len())?;
        let start = out.len();
        out.reserve(self.encoded_len());
        out.extend_from_slice(&head);
        out.extend_from_slice(self.headers.as_bytes());
        out.extend_from_slice(self.payload);
        let crc = crc32fast::hash(out.get(start..).unwrap_or_default());
        out.extend_from_slice(&crc.to_be_bytes());
        Ok(())
    }

    /// Bytes of the frame on the wire.
    pub fn encoded_len(&self) -> usize {
        OVERHEAD_BYTES + self.headers.as_bytes().len() + self.payload.len()
    }
}

/// Compares a frame's CRC with the one that its bytes give.
pub fn check_crc(expected: u32, got: u32) -> Result<(), FrameError> {
    if expected == got { Ok(()) } else { Err(FrameError::Crc { expected, got }) }
}

/// A frame whose headers and payload are shared, not copied, when it is cloned or passed on.
#[derive(Clone, PartialEq, Eq)]
pub struct FrameBytes {
    /// What it is for.
    pub typ: FrameType,
    /// What is wanted of it.
    pub flags: Flags,
    headers: Bytes,
    /// Its payload.
    pub payload: Bytes,
}

impl FrameBytes {
    /// A frame without flags.
    pub fn new(typ: FrameType, headers: HeadersBuf, payload: Bytes) -> Self {
        Self { typ, flags: Flags::empty(), headers: headers.into_bytes(), payload }
    }

    /// A frame of bytes that came: `headers` are checked.
    pub fn from_wire(
        typ: FrameType,
        flags: Flags,
        headers: Bytes,
        payload: Bytes,
    ) -> Result<Self, FrameError> {
        Headers::parse(&headers)?;
        Ok(Self { typ, flags, headers, payload })
    }

    /// The same frame with another flag.
    pub fn with_flag(mut self, flag: Flags) -> Self {
        self.flags |= flag;
        self
    }

    /// Its headers.
    pub fn headers(&self) -> Headers<'_> {
        Headers(&self.headers)
    }

    /// The same frame with another header behind those that it has.
    pub fn with_header(mut self, key: &[u8], value: &[u8]) -> Result<Self, FrameError> {
        let mut headers = HeadersBuf(self.headers.to_vec());
        headers.push(key, value)?;
        self.headers = headers.into_bytes();
        Ok(self)
    }

    /// The same without the headers that have this key.
    pub(super) fn without_header(mut self, key: &str) -> Result<Self, FrameError> {
        if self.headers().find(key).is_none() {
            return Ok(self);
        }
        let mut kept = HeadersBuf::default();
        for (other, value) in self.headers().iter().filter(|(other, _)| *other != key.as_bytes()) {
            kept.push(other, value)?;
        }
        self.headers = kept.into_bytes();
        Ok(self)
    }

    /// The frame, borrowed.
    pub fn as_ref(&self) -> FrameRef<'_> {
        FrameRef { typ: self.typ, flags: self.flags, headers: self.headers(), payload: &self.payload }
    }

    /// What it keeps in memory, about.
    pub fn memory(&self) -> usize {
        size_of::<Self>() + self.headers.len() + self.payload.len()
    }
}

impl From<FrameRef<'_>> for FrameBytes {
    /// Copies headers and payload.
    fn from(frame: FrameRef<'_>) -> Self {
        let FrameRef { typ, flags, headers, payload } = frame;
        let headers = Bytes::copy_from_slice(headers.as_bytes());
        Self { typ, flags, headers, payload: Bytes::copy_from_slice(payload) }
    }
}

impl std::fmt::Debug for FrameBytes {
    /// Without the payload, which may be of any size.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut map = f.debug_struct("FrameBytes");
        map.field("typ", &self.typ).field("flags", &self.flags);
        for (key, value) in self.headers().iter() {
            map.field(&key.escape_ascii().to_string(), &format_args!("{}", value.escape_ascii()));
        }
        map.field("payload_len", &self.payload.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(headers: &[(&str, &str)], payload: &[u8]) -> Vec<u8> {
        let mut buf = HeadersBuf::default();
        for (key, value) in headers {
            buf.push(key.as_bytes(), value.as_bytes()).unwrap();
        }
        let mut out = Vec::new();
        FrameRef { typ: FrameType::Data, flags: Flags::CRC, headers: buf.as_headers(), payload }
            .encode(&mut out)
            .unwrap();
        out
    }

    #[test]
    fn every_prefix_needs_more_and_every_flipped_bit_is_refused() {
        let bytes = data(&[("a", "b"), ("", "")], b"payload");
        for cut in 0..bytes.len() {
            assert_eq!(FrameRef::decode(&bytes[..cut], FRAME_MAX), Ok(None), "{cut}");
        }
        let (frame, len) = FrameRef::decode(&bytes, FRAME_MAX).unwrap().unwrap();
        assert_eq!((frame.payload, len), (&b"payload"[..], bytes.len()));
        assert_eq!(frame.headers.iter().collect::<Vec<_>>(), [(&b"a"[..], &b"b"[..]), (b"", b"")]);
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(FrameRef::decode(&bytes, FRAME_MAX), Ok(Some(_))), "bit {bit}");
        }
    }

    #[test]
    fn case_12_a_frame_that_is_too_large_is_refused_by_its_head() {
        let bytes = data(&[], &[7; 100]);
        assert!(FrameRef::decode(&bytes, 115).unwrap().is_some());
        assert_eq!(FrameRef::decode(&bytes[..11], 114), Err(FrameError::TooLarge { size: 115, limit: 114 }));
    }

    #[test]
    fn a_header_that_reaches_into_the_payload_is_refused() {
        let mut bytes = Vec::from(Head::encode(VERSION, FrameType::Data, Flags::empty(), 2, 10).unwrap());
        bytes.extend_from_slice(&[1, 1]);
        bytes.extend_from_slice(&[0; 10]);
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_be_bytes());
        assert_eq!(FrameRef::decode(&bytes, FRAME_MAX), Err(FrameError::Headers));
    }

    #[test]
    fn one_unknown_flag_and_none_counts() {
        assert_eq!(Flags::from_wire(0x33), Flags::all());
        assert_eq!(Flags::from_wire(0x33 | 0x04), Flags::empty());
    }

    #[test]
    fn what_is_too_long_is_an_error_when_it_is_written() {
        let mut headers = HeadersBuf::default();
        assert!(headers.push(&[1; 256], b"").is_err());
        assert!(headers.push(b"", &[1; 256]).is_err());
        for _ in 0..127 {
            headers.push(&[1; 255], &[1; 255]).unwrap();
        }
        assert!(headers.push(&[1; 255], &[1; 254]).is_ok());
        assert_eq!(headers.push(b"", b""), Err(FrameError::TooLong("the headers")));
    }
}
