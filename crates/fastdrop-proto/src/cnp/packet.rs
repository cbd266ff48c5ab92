//! Packets: a header of 11 bytes and a payload (docs/protocol/cnp.md, section 1).

use super::checksum::Checksum;
use super::seq::Seq;

pub use super::control::CONTROL_PAYLOAD_MAX;
pub use super::header::{HEAD_BYTES, Head, Layout, PacketError};

/// What a packet is, once the handshake is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketType {
    /// A message, or the last fragment of one.
    Data,
    /// An acknowledgement.
    Ack,
    /// An error, after which its sender closes.
    Error,
    /// A sign of life; with a payload, data of the second generation.
    KeepAlive,
    /// Its sender wants to close.
    Disconnect,
    /// A fragment that is not the last of its message.
    Fragment,
    /// A count of packets whose messages have been handled, or a question for it.
    Handled,
    /// A message about a call, or the last fragment of one.
    Call,
    /// The name of the session, in front of a datagram.
    Connection,
    /// A question to a new address, or its answer.
    Path,
}

/// The use of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageKind {
    /// It is for the application.
    Plain,
    /// It is about a call: a [`CallMessage`](super::CallMessage).
    Call,
}

impl PacketType {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Data,
        Self::Ack,
        Self::Error,
        Self::KeepAlive,
        Self::Disconnect,
        Self::Fragment,
        Self::Handled,
        Self::Call,
        Self::Connection,
        Self::Path,
    ];

    /// The byte on the wire.
    pub fn byte(self) -> u8 {
        match self {
            Self::Data => 0x01,
            Self::Ack => 0x02,
            Self::Error => 0x03,
            Self::KeepAlive => 0x04,
            Self::Disconnect => 0x05,
            Self::Fragment => 0x06,
            Self::Handled => 0x07,
            Self::Call => 0x08,
            Self::Connection => 0x09,
            Self::Path => 0x0a,
        }
    }

    /// Reports whether programs of the field know it.
    pub(super) fn is_of_the_field(self) -> bool {
        matches!(self, Self::Data | Self::Ack | Self::Error | Self::KeepAlive | Self::Disconnect)
    }

    /// The type with this byte.
    pub fn of(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|typ| typ.byte() == byte)
    }
}

/// Appends a packet with a plain header. `number` is what the checksum covers, of which the header
/// has the lower bits.
pub fn append(out: &mut Vec<u8>, typ: u8, seq: Seq, number: u64, checksum: &Checksum, payload: &[u8]) {
    append_as(out, None, typ, seq, number, checksum, payload);
}

/// Appends a packet of the fourth generation, whose header says whether it is the last one of a
/// message.
pub fn append_marked(out: &mut Vec<u8>, is_last: bool, typ: u8, seq: Seq, payload: &[u8]) {
    append_as(out, Some(is_last), typ, seq, 0, &Checksum::Md5, payload);
}

fn append_as(
    out: &mut Vec<u8>,
    mark: Option<bool>,
    typ: u8,
    seq: Seq,
    number: u64,
    checksum: &Checksum,
    payload: &[u8],
) {
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    out.reserve(Layout::Marked.head_bytes() + payload.len());
    out.extend_from_slice(&len);
    out.push(typ);
    out.extend_from_slice(&seq.0.to_be_bytes());
    out.extend_from_slice(&checksum.of(typ, number, payload));
    out.extend(mark.map(u8::from));
    out.extend_from_slice(payload);
}

/// Why an error packet is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// Bytes that are no packet, or not here.
    Malformed,
    /// Longer than was agreed.
    TooLarge,
    /// A handshake that is none, or takes too long.
    Handshake,
    /// Not the session's id.
    Session,
    /// A packet that was begun did not go on.
    Timeout,
    /// A bound is reached.
    Busy,
    /// The program ends and cannot wait.
    Shutdown,
    /// A message was dropped before it was handled.
    Unhandled,
}

impl ErrorCode {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::TooLarge => "too-large",
            Self::Handshake => "handshake",
            Self::Session => "session",
            Self::Timeout => "timeout",
            Self::Busy => "busy",
            Self::Shutdown => "shutdown",
            Self::Unhandled => "unhandled",
        }
    }
}

/// What a peer said in an error packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerError {
    /// The code, if there is one.
    pub code: Option<String>,
    /// The sentence, as the peer wrote it; escape it before it is shown.
    pub sentence: String,
}

impl PeerError {
    const CODE_MAX: usize = 32;

    /// Reads a payload, which may be any text.
    pub(super) fn parse(payload: &[u8]) -> Self {
        let text = String::from_utf8_lossy(payload).into_owned();
        let is_code = |code: &str| {
            (1..=Self::CODE_MAX).contains(&code.len())
                && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
        };
        match text.split_once(": ") {
            Some((code, sentence)) if is_code(code) => {
                Self { code: Some(code.into()), sentence: sentence.into() }
            }
            _ => Self { code: None, sentence: text },
        }
    }
}

impl std::fmt::Display for PeerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.code {
            Some(code) => write!(f, "{} ({code})", self.sentence),
            None => f.write_str(&self.sentence),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn case_12_a_length_beyond_the_bound_is_refused_by_its_four_bytes() {
        for (bytes, max) in
            [(&b"\xff\xff\xff\xff"[..], 1 << 20), (b"\x00\x00\x04\x01", 1024), (b"GET ", 1 << 16)]
        {
            assert!(Head::parse(bytes, max).is_err());
        }
        assert_eq!(Head::parse(b"\x00\x00\x04", 1), Ok(None));
        assert_eq!(Head::parse(b"\x00\x00\x04\x00\x01\x00\x00abc", 1024), Ok(None));
    }

    #[test]
    fn the_vectors_are_read_and_written() {
        let vectors = include_str!("../../../../docs/protocol/vectors/cnp.txt");
        let lines = vectors.lines().filter(|line| !line.starts_with('#'));
        let mut count = 0;
        for line in lines {
            let fields: Vec<&str> = line.split(' ').collect();
            let &[kind, session, number, typ, payload, packet] = &fields[..] else { panic!("{line}") };
            let checksum = if kind == "md5" { Checksum::Md5 } else { Checksum::crc32c(session) };
            let bytes = |hex: &str| if hex == "-" { Vec::new() } else { hex::decode(hex).unwrap() };
            let (number, typ): (u64, _) = (number.parse().unwrap(), bytes(typ)[0]);
            let (payload, packet) = (bytes(payload), bytes(packet));
            let mut written = Vec::new();
            append(&mut written, typ, Seq::of(number), number, &checksum, &payload);
            assert_eq!(written, packet, "{line}");
            let head = Head::parse(&packet, 4096).unwrap().unwrap();
            assert_eq!(
                (head.typ, head.seq, head.packet_len()),
                (typ, Seq::of(number), packet.len()),
                "{line}"
            );
            assert!(checksum.verify(&head, number, &payload), "{line}");
            count += 1;
        }
        assert_eq!(count, 23);
    }

    #[test]
    fn an_error_has_a_code_or_is_all_sentence() {
        let error = PeerError::parse(b"too-large: a message of 7 bytes");
        assert_eq!((error.code.as_deref(), &*error.sentence), (Some("too-large"), "a message of 7 bytes"));
        for text in ["Server: busy", "no code", "", ": x", "\u{fffd}"] {
            assert_eq!(PeerError::parse(text.as_bytes()), PeerError { code: None, sentence: text.into() });
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_and_any_flipped_bit_is_found_by_crc32c(
            typ in 0_u8..8, number: u64, payload: Vec<u8>, bit: prop::sample::Index
        ) {
            let checksum = Checksum::crc32c("session");
            let mut out = Vec::new();
            append(&mut out, typ, Seq::of(number), number, &checksum, &payload);
            let good = |bytes: &[u8]| {
                let Ok(Some(head)) = Head::parse(bytes, payload.len()) else { return false };
                // The receiver knows the number but for its lower bits.
                let number = head.seq.nearest(number).unwrap_or(0);
                bytes.get(HEAD_BYTES..head.packet_len()).is_some_and(|payload| checksum.verify(&head, number, payload))
            };
            prop_assert!(good(&out));
            let bit = bit.index(out.len() * 8);
            out[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!good(&out));
        }
    }
}
