//! The one shape of frames (section 3).

use super::control::{Done, Grant, Open, Refuse};
use super::identity::{IDENTITIES_PER_FRAME, Identities};
use super::left_out::LeftOut;
use super::manifest::ManifestEnd;
use super::need::{Held, NeedTotals, SkipRun};
use super::{Code, Violation, need};
use crate::cursor::Cursor;
use crate::json;
use crate::units::{ChunkIndex, EntryIndex};

const NUMBER_ENCODED: u32 = 0x4000_0000;
const NUMBER_CONTROL: u32 = 0x8000_0000;
/// Longest control frame in bytes.
const CONTROL_MAX: u32 = 1 << 20;

const OPEN: u32 = 0x01;
const GRANT: u32 = 0x02;
const REFUSE: u32 = 0x03;
const MANIFEST: u32 = 0x04;
const MANIFEST_END: u32 = 0x05;
const SKIP: u32 = 0x06;
const HELD: u32 = 0x07;
const NEED: u32 = 0x08;
const CONFIRM: u32 = 0x09;
const AGAIN: u32 = 0x0a;
const CHECKPOINT: u32 = 0x0b;
const CHECKPOINTED: u32 = 0x0c;
const SIZE: u32 = 0x0d;
const ABANDON: u32 = 0x0e;
const ABANDONED: u32 = 0x0f;
const END: u32 = 0x10;
const DONE: u32 = 0x11;
const MORE: u32 = 0x12;
const ALIVE: u32 = 0x13;
const SPENT: u32 = 0x14;
const IDENTITY: u32 = 0x15;
const COMPARE: u32 = 0x16;
const SAME: u32 = 0x17;
const LEFT_OUT: u32 = 0x18;
const PROVEN: u32 = 0x19;
const ASK: u32 = 0x1a;
const CONTENT: u32 = 0x1b;

/// Bytes of one record of CONTENT.
const CONTENT_RECORD: usize = 37;

/// The first eight bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the frame is.
    pub kind: FrameKind,
    /// Bytes that follow.
    pub size: u32,
}

/// What a frame's number says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// A chunk as it is.
    Chunk(ChunkIndex),
    /// A chunk in an encoding.
    EncodedChunk(ChunkIndex),
    /// A control frame of this type.
    Control(u32),
}

impl FrameHeader {
    /// Length of a frame header in bytes.
    pub const LEN: usize = 8;

    /// Reads a header. Sizes of control frames are checked here; a chunk's needs the table.
    pub fn decode(bytes: [u8; Self::LEN]) -> Result<Self, Violation> {
        let [n0, n1, n2, n3, s0, s1, s2, s3] = bytes;
        let number = u32::from_be_bytes([n0, n1, n2, n3]);
        let size = u32::from_be_bytes([s0, s1, s2, s3]);
        let kind = if number & NUMBER_CONTROL != 0 {
            let kind = number & !NUMBER_CONTROL;
            let max = control_payload_max(kind)
                .ok_or_else(|| Violation::protocol(format!("an unknown frame type {kind:#x}")))?;
            if size > max {
                return Err(Violation::protocol(format!("a {} frame of {size} bytes", type_name(kind))));
            }
            FrameKind::Control(kind)
        } else {
            let chunk = ChunkIndex(number & !NUMBER_ENCODED);
            if number & NUMBER_ENCODED != 0 {
                FrameKind::EncodedChunk(chunk)
            } else {
                FrameKind::Chunk(chunk)
            }
        };
        Ok(Self { kind, size })
    }

    /// Writes the header.
    pub fn encode(self) -> [u8; Self::LEN] {
        let number = match self.kind {
            FrameKind::Chunk(chunk) => chunk.0,
            FrameKind::EncodedChunk(chunk) => chunk.0 | NUMBER_ENCODED,
            FrameKind::Control(kind) => kind | NUMBER_CONTROL,
        };
        let mut bytes = [0; Self::LEN];
        let (n, s) = bytes.split_at_mut(4);
        n.copy_from_slice(&number.to_be_bytes());
        s.copy_from_slice(&self.size.to_be_bytes());
        bytes
    }
}

/// Largest payload of a control frame type; None for types that do not exist.
pub fn control_payload_max(kind: u32) -> Option<u32> {
    Some(match kind {
        OPEN | GRANT | REFUSE => 65_536,
        MANIFEST | SKIP | HELD | CONFIRM | AGAIN | DONE | COMPARE | SAME | LEFT_OUT | ASK | CONTENT => {
            CONTROL_MAX
        }
        IDENTITY => 4 + 8 * IDENTITIES_PER_FRAME as u32,
        PROVEN => 40,
        MANIFEST_END => 20,
        NEED | SIZE => 12,
        CHECKPOINT | CHECKPOINTED | MORE | ALIVE => 0,
        ABANDON => 1024,
        ABANDONED => 4,
        END => 32,
        SPENT => 24,
        _ => return None,
    })
}

/// The name of a control frame type, for messages.
pub fn type_name(kind: u32) -> &'static str {
    match kind {
        OPEN => "OPEN",
        GRANT => "GRANT",
        REFUSE => "REFUSE",
        MANIFEST => "MANIFEST",
        MANIFEST_END => "MANIFEST_END",
        SKIP => "SKIP",
        HELD => "HELD",
        NEED => "NEED",
        CONFIRM => "CONFIRM",
        AGAIN => "AGAIN",
        CHECKPOINT => "CHECKPOINT",
        CHECKPOINTED => "CHECKPOINTED",
        SIZE => "SIZE",
        ABANDON => "ABANDON",
        ABANDONED => "ABANDONED",
        END => "END",
        DONE => "DONE",
        MORE => "MORE",
        ALIVE => "ALIVE",
        SPENT => "SPENT",
        IDENTITY => "IDENTITY",
        COMPARE => "COMPARE",
        SAME => "SAME",
        LEFT_OUT => "LEFT_OUT",
        PROVEN => "PROVEN",
        ASK => "ASK",
        CONTENT => "CONTENT",
        _ => "unknown",
    }
}

/// A control frame.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Control {
    /// First frame of a client's connection.
    Open(Open),
    /// First frame of a server's connection.
    Grant(Grant),
    /// Last frame: why it ends.
    Refuse(Refuse),
    /// Some entries, as encoded; [`super::ManifestBuilder`] reads them.
    Manifest(Vec<u8>),
    /// The manifest is complete.
    ManifestEnd(ManifestEnd),
    /// Entries that are not needed.
    Skip(Vec<SkipRun>),
    /// Chunks that the receiver has from earlier.
    Held(Held),
    /// The answer to a manifest is complete.
    Need(NeedTotals),
    /// These chunks are verified, written and journaled.
    Confirm(Vec<ChunkIndex>),
    /// These chunks failed their checksum.
    Again(Vec<ChunkIndex>),
    /// Sync, then say so: this stream is about to be replaced.
    Checkpoint,
    /// Everything confirmed so far is durable.
    Checkpointed,
    /// The size of a stream, now known.
    Size {
        /// The stream.
        entry: EntryIndex,
        /// In bytes.
        size: u64,
    },
    /// An entry cannot be sent.
    Abandon {
        /// Which.
        entry: EntryIndex,
        /// In the terms of section 11.
        code: Code,
        /// For people; at most 1,000 bytes.
        reason: String,
    },
    /// The entry is left out from now on.
    Abandoned(EntryIndex),
    /// Everything has been sent; this is the root digest.
    End([u8; 32]),
    /// Everything is verified, named, and as durable as promised.
    Done(Done),
    /// Please open one more data stream.
    More,
    /// Nothing to say, but here.
    Alive,
    /// How the sender's streams spent their time, all together, in microseconds.
    Spent(Spent),
    /// Identities of consecutive entries.
    Identity(Identities),
    /// Chunks that the receiver has, perhaps of another version of their file.
    Compare(Held),
    /// Chunks in COMPARE that are the sender's, too.
    Same(Vec<ChunkIndex>),
    /// Entries that the server leaves out.
    LeftOut(LeftOut),
    /// A digest over consecutive chunks that the receiver holds.
    Proven(Proven),
    /// Please say the BLAKE3 of these files.
    Ask(Vec<EntryIndex>),
    /// The BLAKE3 of files; None where one cannot be read.
    Content(Vec<Content>),
}

/// A file, and its BLAKE3 if it could be read.
pub type Content = (EntryIndex, Option<[u8; 32]>);

/// A digest over `count` chunks from `first` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proven {
    /// The first of them.
    pub first: ChunkIndex,
    /// Number of chunks.
    pub count: u32,
    /// The root digest over these chunks alone.
    pub digest: [u8; 32],
}

/// How the streams of a sender spent their time, all together, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spent {
    /// Reading files.
    pub read: u64,
    /// Computing checksums and compressing.
    pub cpu: u64,
    /// Waiting for connections to take bytes.
    pub send: u64,
}

impl Control {
    /// Reads the payload of a control frame of type `kind`.
    pub fn decode(kind: u32, payload: &[u8]) -> Result<Self, Violation> {
        let mut cursor = Cursor::new(payload);
        let control = match kind {
            OPEN => return Ok(Control::Open(json::parse(payload)?)),
            GRANT => return Ok(Control::Grant(json::parse(payload)?)),
            REFUSE => return Ok(Control::Refuse(json::parse(payload)?)),
            DONE => return Ok(Control::Done(json::parse(payload)?)),
            MANIFEST => return Ok(Control::Manifest(payload.to_vec())),
            SKIP => return Ok(Control::Skip(need::decode_skip(payload)?)),
            HELD => return Ok(Control::Held(need::decode_held(payload)?)),
            COMPARE => return Ok(Control::Compare(need::decode_held(payload)?)),
            SAME => return Ok(Control::Same(decode_chunks(payload)?)),
            IDENTITY => return Ok(Control::Identity(Identities::decode(payload)?)),
            LEFT_OUT => return Ok(Control::LeftOut(LeftOut::decode(payload)?)),
            ASK => {
                let entries = decode_chunks(payload)?;
                return Ok(Control::Ask(entries.into_iter().map(|ChunkIndex(at)| EntryIndex(at)).collect()));
            }
            CONTENT => return Ok(Control::Content(decode_content(payload)?)),
            PROVEN => Control::Proven(Proven {
                first: ChunkIndex(cursor.u32()?),
                count: cursor.u32()?,
                digest: digest(&mut cursor)?,
            }),
            CONFIRM => return Ok(Control::Confirm(decode_chunks(payload)?)),
            AGAIN => return Ok(Control::Again(decode_chunks(payload)?)),
            MANIFEST_END => Control::ManifestEnd(ManifestEnd {
                entries: cursor.u32()?,
                bytes: cursor.u64()?,
                digest: cursor.u64()?,
            }),
            NEED => Control::Need(NeedTotals { chunks: cursor.u32()?, bytes: cursor.u64()? }),
            SIZE => Control::Size { entry: EntryIndex(cursor.u32()?), size: cursor.u64()? },
            ABANDON => {
                let (entry, code) = (EntryIndex(cursor.u32()?), Code::new(cursor.u16()?));
                let reason = std::str::from_utf8(cursor.rest())
                    .map_err(|_| Violation::protocol("a reason that is not UTF-8"))?;
                return Ok(Control::Abandon { entry, code, reason: reason.into() });
            }
            ABANDONED => Control::Abandoned(EntryIndex(cursor.u32()?)),
            END => Control::End(digest(&mut cursor)?),
            CHECKPOINT => Control::Checkpoint,
            CHECKPOINTED => Control::Checkpointed,
            MORE => Control::More,
            ALIVE => Control::Alive,
            SPENT => Control::Spent(Spent { read: cursor.u64()?, cpu: cursor.u64()?, send: cursor.u64()? }),
            _ => return Err(Violation::protocol("an unknown frame type")),
        };
        cursor.finish()?;
        Ok(control)
    }

    /// The whole frame.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, payload) = match self {
            Control::Open(open) => (OPEN, json::write(open)),
            Control::Grant(grant) => (GRANT, json::write(grant)),
            Control::Refuse(refuse) => (REFUSE, json::write(refuse)),
            Control::Done(done) => (DONE, json::write(done)),
            Control::Manifest(part) => (MANIFEST, part.clone()),
            Control::ManifestEnd(end) => (
                MANIFEST_END,
                [&end.entries.to_be_bytes()[..], &end.bytes.to_be_bytes(), &end.digest.to_be_bytes()]
                    .concat(),
            ),
            Control::Skip(runs) => (SKIP, need::encode_skip(runs)),
            Control::Held(held) => (HELD, need::encode_held(held)),
            Control::Need(need) => {
                (NEED, [&need.chunks.to_be_bytes()[..], &need.bytes.to_be_bytes()].concat())
            }
            Control::Confirm(chunks) => (CONFIRM, encode_chunks(chunks)),
            Control::Again(chunks) => (AGAIN, encode_chunks(chunks)),
            Control::Size { entry, size } => {
                (SIZE, [&entry.0.to_be_bytes()[..], &size.to_be_bytes()].concat())
            }
            Control::Abandon { entry, code, reason } => {
                let reason = reason.get(..reason.floor_char_boundary(1000)).unwrap_or_default();
                (
                    ABANDON,
                    [&entry.0.to_be_bytes()[..], &code.number().to_be_bytes(), reason.as_bytes()].concat(),
                )
            }
            Control::Abandoned(entry) => (ABANDONED, entry.0.to_be_bytes().to_vec()),
            Control::End(digest) => (END, digest.to_vec()),
            Control::Identity(identities) => (IDENTITY, identities.encode()),
            Control::Compare(held) => (COMPARE, need::encode_held(held)),
            Control::Same(chunks) => (SAME, encode_chunks(chunks)),
            Control::LeftOut(left_out) => (LEFT_OUT, left_out.encode()),
            Control::Proven(Proven { first, count, digest }) => {
                (PROVEN, [&first.0.to_be_bytes()[..], &count.to_be_bytes(), digest].concat())
            }
            Control::Ask(entries) => (ASK, entries.iter().flat_map(|entry| entry.0.to_be_bytes()).collect()),
            Control::Content(contents) => (CONTENT, encode_content(contents)),
            Control::Checkpoint => (CHECKPOINT, Vec::new()),
            Control::Checkpointed => (CHECKPOINTED, Vec::new()),
            Control::More => (MORE, Vec::new()),
            Control::Alive => (ALIVE, Vec::new()),
            Control::Spent(spent) => (
                SPENT,
                [spent.read, spent.cpu, spent.send].iter().flat_map(|micros| micros.to_be_bytes()).collect(),
            ),
        };
        let header = FrameHeader { kind: FrameKind::Control(kind), size: payload.len() as u32 };
        [&header.encode()[..], &payload].concat()
    }
}

fn decode_chunks(payload: &[u8]) -> Result<Vec<ChunkIndex>, Violation> {
    let mut cursor = Cursor::new(payload);
    let mut chunks = Vec::with_capacity(payload.len() / 4);
    while !cursor.is_empty() {
        chunks.push(ChunkIndex(cursor.u32()?));
    }
    Ok(chunks)
}

fn digest(cursor: &mut Cursor<'_>) -> Result<[u8; 32], Violation> {
    let mut digest = [0; 32];
    digest.copy_from_slice(cursor.bytes(32)?);
    Ok(digest)
}

fn decode_content(payload: &[u8]) -> Result<Vec<Content>, Violation> {
    let mut cursor = Cursor::new(payload);
    let mut contents = Vec::with_capacity(payload.len() / CONTENT_RECORD);
    while !cursor.is_empty() {
        let entry = EntryIndex(cursor.u32()?);
        let known = match cursor.u8()? {
            0 => false,
            1 => true,
            _ => return Err(Violation::protocol("a content that is neither known nor unknown")),
        };
        contents.push((entry, Some(digest(&mut cursor)?).filter(|_| known)));
    }
    Ok(contents)
}

fn encode_content(contents: &[Content]) -> Vec<u8> {
    let mut out = Vec::with_capacity(contents.len() * CONTENT_RECORD);
    for (entry, hash) in contents {
        out.extend_from_slice(&entry.0.to_be_bytes());
        out.push(hash.is_some().into());
        out.extend_from_slice(&hash.unwrap_or_default());
    }
    out
}

fn encode_chunks(chunks: &[ChunkIndex]) -> Vec<u8> {
    chunks.iter().flat_map(|chunk| chunk.0.to_be_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::control::tests::{done, grant, open, refuse};
    use super::super::need::SkipReason;
    use super::*;
    use crate::checksum::Algorithm;
    use proptest::prelude::*;

    fn every_control() -> Vec<Control> {
        let sum = Algorithm::Xxh3.of(b"x");
        vec![
            Control::Open(open()),
            Control::Grant(grant()),
            Control::Refuse(refuse()),
            Control::Manifest(vec![1, 2, 3]),
            Control::ManifestEnd(ManifestEnd { entries: 2, bytes: 3 << 40, digest: u64::MAX }),
            Control::Skip(vec![SkipRun { first: EntryIndex(3), count: 4, reason: SkipReason::Identical }]),
            Control::Held(Held {
                first: ChunkIndex(9),
                checksums: [sum.as_bytes(), sum.as_bytes()].concat(),
            }),
            Control::Need(NeedTotals { chunks: 5, bytes: 6 }),
            Control::Confirm(vec![ChunkIndex(1), ChunkIndex(1 << 29)]),
            Control::Again(vec![]),
            Control::Checkpoint,
            Control::Checkpointed,
            Control::Size { entry: EntryIndex(1), size: 1 << 50 },
            Control::Abandon {
                entry: EntryIndex(7),
                code: Code::Conflict,
                reason: "source changed: ü".into(),
            },
            Control::Abandoned(EntryIndex(7)),
            Control::End([7; 32]),
            Control::Done(done()),
            Control::More,
            Control::Alive,
            Control::Spent(Spent { read: 1, cpu: 2 << 40, send: 3 }),
            Control::Identity(Identities { first: EntryIndex(4), identities: vec![0, 1 << 60] }),
            Control::Compare(Held { first: ChunkIndex(2), checksums: sum.as_bytes().to_vec() }),
            Control::Same(vec![ChunkIndex(2), ChunkIndex(3)]),
            Control::LeftOut(crate::fastdp::left_out::tests::left_out()),
            Control::Proven(Proven { first: ChunkIndex(0), count: 3, digest: [9; 32] }),
            Control::Ask(vec![EntryIndex(5), EntryIndex(6)]),
            Control::Content(vec![(EntryIndex(5), Some([8; 32])), (EntryIndex(6), None)]),
        ]
    }

    #[test]
    fn every_control_frame_survives_the_wire() {
        for control in every_control() {
            let frame = control.encode();
            let header = FrameHeader::decode(*frame.first_chunk().unwrap()).unwrap();
            let FrameKind::Control(kind) = header.kind else { panic!() };
            assert_eq!(header.size as usize, frame.len() - 8);
            assert_eq!(Control::decode(kind, &frame[8..]).unwrap(), control, "{}", type_name(kind));
        }
    }

    #[test]
    fn the_vectors_of_the_specification_are_what_the_code_writes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/protocol/vectors/fastdp-frames.txt");
        let file = std::fs::read_to_string(path).unwrap();
        let mut read = Vec::new();
        for line in file.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
            let (name, bytes) = line.split_once(' ').unwrap();
            let bytes = hex::decode(bytes.trim()).unwrap();
            let header = FrameHeader::decode(*bytes.first_chunk().unwrap()).unwrap();
            assert_eq!(header.size as usize, bytes.len() - 8, "{name}");
            let FrameKind::Control(kind) = header.kind else { panic!("{name}") };
            assert_eq!(type_name(kind), name);
            let control = Control::decode(kind, &bytes[8..]).unwrap();
            assert_eq!(hex::encode(control.encode()), hex::encode(&bytes), "{name}");
            read.push(control);
        }
        assert_eq!(read, every_control());
    }

    #[test]
    fn a_frame_of_unknown_type_or_more_than_its_size_is_refused() {
        for (number, size) in [
            (0x8000_0000u32, 0u32),
            (0x8000_001c, 0),
            (0x8000_0019, 41),
            (0x8000_0015, 524_293),
            (0xffff_ffff, 0),
            (0xc000_0001, 0),
            (0x8000_0001, 65_537),
            (0x8000_0004, (1 << 20) + 1),
            (0x8000_0010, 33),
            (0x8000_0013, 1),
        ] {
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&number.to_be_bytes());
            bytes[4..].copy_from_slice(&size.to_be_bytes());
            FrameHeader::decode(bytes).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn any_payload_is_taken_or_refused(kind in 0u32..0x1d, payload in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Control::decode(kind, &payload);
        }

        #[test]
        fn a_frame_header_survives_the_wire(bytes in any::<[u8; 8]>()) {
            if let Ok(header) = FrameHeader::decode(bytes) { prop_assert_eq!(header.encode(), bytes); }
        }
    }
}
