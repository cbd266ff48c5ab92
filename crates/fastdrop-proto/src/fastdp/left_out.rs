//! Entries that a server leaves out of a manifest, and why (section 8).

use super::{Code, Violation};
use crate::cursor::Cursor;

/// Entries that are named at most, in all frames of one manifest; what is beyond is only counted.
pub const LEFT_OUT_NAMED_MAX: usize = 10_000;
/// Bytes of one LEFT_OUT frame, below the bound of a control frame.
const FRAME_MAX: usize = 512 << 10;
/// Bytes of a reason, longer ones are cut.
const REASON_MAX: usize = 1000;

const POLICY: u8 = 0x01;
const DIRECTORY: u8 = 0x02;
const UNCARRIED: u8 = 0x04;

/// One entry that is not in the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOutEntry {
    /// Relative to the transfer; not checked, because it may be what is wrong. At most 65,535
    /// bytes.
    pub path: Vec<u8>,
    /// Left out on purpose, not for want of anything.
    pub policy: bool,
    /// It is a directory.
    pub directory: bool,
    /// In the terms of section 11.
    pub code: Code,
    /// A sentence.
    pub reason: String,
}

/// The payload of LEFT_OUT.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// The number of entries, beside those that all frames name, that were left out, but not by
    /// policy.
    pub unnamed: u64,
    /// Those that are named.
    pub entries: Vec<LeftOutEntry>,
    /// A sentence on what files of the manifest have and a transfer does not carry, as hard links;
    /// empty if there is none.
    pub uncarried: String,
}

impl LeftOut {
    /// The frame that says what is not carried of the manifest's files.
    pub fn uncarried(sentence: String) -> Self {
        Self { uncarried: sentence, ..Self::default() }
    }

    /// Frames for `entries`, and `unnamed` that could not be kept. Of entries beyond
    /// [`LEFT_OUT_NAMED_MAX`], those by policy are not counted.
    pub fn frames(mut entries: Vec<LeftOutEntry>, mut unnamed: u64) -> Vec<LeftOut> {
        let beyond = entries.iter().skip(LEFT_OUT_NAMED_MAX).filter(|entry| !entry.policy).count();
        unnamed = unnamed.saturating_add(beyond as u64);
        entries.truncate(LEFT_OUT_NAMED_MAX);
        let mut frames: Vec<LeftOut> = Vec::new();
        let mut bytes = FRAME_MAX;
        for entry in entries {
            let size = 7 + entry.path.len() + REASON_MAX;
            if bytes + size > FRAME_MAX {
                frames.push(LeftOut::default());
                bytes = 0;
            }
            bytes += size;
            if let Some(frame) = frames.last_mut() {
                frame.entries.push(entry);
            }
        }
        if unnamed > 0 {
            frames.push(LeftOut { unnamed, ..LeftOut::default() });
        }
        frames
    }

    pub(super) fn decode(payload: &[u8]) -> Result<Self, Violation> {
        let mut cursor = Cursor::new(payload);
        let mut left_out = LeftOut { unnamed: cursor.u64()?, ..LeftOut::default() };
        while !cursor.is_empty() {
            let (flags, code) = (cursor.u8()?, cursor.u16()?);
            if flags & !(POLICY | DIRECTORY) != 0 && flags != UNCARRIED {
                return Err(Violation::protocol("an entry left out with unknown flags"));
            }
            let len = usize::from(cursor.u16()?);
            let path = cursor.bytes(len)?.to_vec();
            let len = usize::from(cursor.u16()?);
            if len > REASON_MAX {
                return Err(Violation::protocol("a reason of more than 1,000 bytes"));
            }
            let reason = std::str::from_utf8(cursor.bytes(len)?)
                .map_err(|_| Violation::protocol("a reason that is not UTF-8"))?;
            if flags == UNCARRIED {
                if code != 0 || !path.is_empty() || !left_out.uncarried.is_empty() {
                    return Err(Violation::protocol("more than a sentence on what is not carried"));
                }
                left_out.uncarried = reason.into();
                continue;
            }
            left_out.entries.push(LeftOutEntry {
                path,
                policy: flags & POLICY != 0,
                directory: flags & DIRECTORY != 0,
                code: Code::new(code),
                reason: reason.into(),
            });
        }
        if left_out.entries.len() > LEFT_OUT_NAMED_MAX {
            return Err(Violation::new(Code::OverLimit, "more entries left out than may be named"));
        }
        Ok(left_out)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = self.unnamed.to_be_bytes().to_vec();
        for entry in &self.entries {
            let directory = if entry.directory { DIRECTORY } else { 0 };
            out.push(if entry.policy { POLICY | directory } else { directory });
            out.extend_from_slice(&entry.code.number().to_be_bytes());
            let path = entry.path.get(..usize::from(u16::MAX)).unwrap_or(&entry.path);
            out.extend_from_slice(&(path.len() as u16).to_be_bytes());
            out.extend_from_slice(path);
            push_sentence(&mut out, &entry.reason);
        }
        if !self.uncarried.is_empty() {
            // Neither a code nor a path.
            out.extend_from_slice(&[UNCARRIED, 0, 0, 0, 0]);
            push_sentence(&mut out, &self.uncarried);
        }
        out
    }
}

/// Appends as much of `sentence` as a reason may be long, with its length.
fn push_sentence(out: &mut Vec<u8>, sentence: &str) {
    let sentence = sentence.get(..sentence.floor_char_boundary(REASON_MAX)).unwrap_or_default();
    out.extend_from_slice(&(sentence.len() as u16).to_be_bytes());
    out.extend_from_slice(sentence.as_bytes());
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn left_out() -> LeftOut {
        let entry = |path: &str, policy, reason: &str| LeftOutEntry {
            path: path.into(),
            policy,
            directory: !policy,
            code: Code::Forbidden,
            reason: reason.into(),
        };
        let entries = vec![entry("a/b", false, "no permission"), entry("l", true, "ü")];
        LeftOut { unnamed: 2, entries, uncarried: "hard links".into() }
    }

    #[test]
    fn records_that_no_server_writes_are_refused() {
        let record = |flags: u8, code: u16, path: &[u8], reason: &[u8]| {
            let mut out = vec![flags];
            out.extend(code.to_be_bytes());
            for text in [path, reason] {
                out.extend((text.len() as u16).to_be_bytes());
                out.extend(text);
            }
            out
        };
        let decode = |records: &[Vec<u8>]| LeftOut::decode(&[vec![0; 8], records.concat()].concat());
        decode(&[record(0, 403, b"a", &[b'y'; 1000]), record(4, 0, b"", b"links")]).unwrap();
        for refused in [
            vec![record(0, 403, b"a", &[b'y'; 1001])],
            vec![record(0, 403, b"a", b"\xff")],
            vec![record(8, 403, b"a", b"why")],
            vec![record(5, 0, b"", b"links")],
            vec![record(4, 403, b"", b"links")],
            vec![record(4, 0, b"a", b"links")],
            vec![record(4, 0, b"", b"links"), record(4, 0, b"", b"links")],
        ] {
            decode(&refused).unwrap_err();
        }
    }

    #[test]
    fn many_entries_become_frames_that_fit_and_the_rest_is_counted() {
        let entry = LeftOutEntry {
            path: vec![b'x'; 65_535],
            policy: false,
            directory: false,
            code: Code::Forbidden,
            reason: "y".repeat(5000),
        };
        let frames = LeftOut::frames(vec![entry; 10_005], 7);
        assert_eq!(frames.iter().map(|frame| frame.entries.len()).sum::<usize>(), LEFT_OUT_NAMED_MAX);
        assert_eq!(frames.iter().map(|frame| frame.unnamed).sum::<u64>(), 12);
        assert!(frames.iter().all(|frame| frame.encode().len() <= 1 << 20));
        assert_eq!(LeftOut::frames(Vec::new(), 0), []);
        // What is left out on purpose is not counted as failed.
        let safe = LeftOutEntry { path: b"l".to_vec(), policy: true, ..left_out().entries[0].clone() };
        let frames = LeftOut::frames(vec![safe; 10_005], 0);
        assert!(frames.iter().all(|frame| frame.unnamed == 0));
    }
}
