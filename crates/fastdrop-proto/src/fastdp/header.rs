//! The JSON header with its six fields (section 2).

use super::{Code, VERSION, Violation};
use crate::json;
use crate::units::ChunkSize;
use serde::{Deserialize, Serialize};

/// Longest header in bytes.
pub const HEADER_MAX: u32 = 65_536;

/// What each side says first after the upgrade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Header {
    /// Chunk size in bytes.
    pub one_chunk: u64,
    /// Number of chunks.
    pub full_chunk: u64,
    /// Bytes of all files.
    pub full_size: u64,
    /// `2.0.0`, as `DPVersion`.
    #[serde(rename = "DPVersion")]
    pub dp_version: String,
    /// `None` in this version.
    pub compress_type: String,
    /// For people.
    pub file_name: String,
}

impl Header {
    /// Bytes of the length before the JSON.
    pub const PREFIX_LEN: usize = 4;

    /// A header for a transfer of so many chunks and bytes.
    pub fn new(one_chunk: ChunkSize, full_chunk: u32, full_size: u64, file_name: &str) -> Self {
        Self {
            one_chunk: one_chunk.bytes().into(),
            full_chunk: full_chunk.into(),
            full_size,
            dp_version: VERSION.into(),
            compress_type: "None".into(),
            // A name is at most 255 bytes on any file system here; what is longer need not be shown.
            file_name: file_name.chars().take(255).collect(),
        }
    }

    /// The header as on the wire: length and JSON.
    pub fn encode(&self) -> Vec<u8> {
        let text = json::write(self);
        [&(text.len() as u32).to_be_bytes()[..], &text].concat()
    }

    /// Takes a header from the beginning of `bytes`: the header, its JSON, and the length of both;
    /// None if more bytes are needed.
    #[allow(clippy::type_complexity, reason = "three things that belong together once")]
    pub fn decode(bytes: &[u8]) -> Result<Option<(Header, &[u8], usize)>, Violation> {
        let Some((prefix, rest)) = bytes.split_first_chunk::<{ Self::PREFIX_LEN }>() else { return Ok(None) };
        let len = u32::from_be_bytes(*prefix);
        if len > HEADER_MAX {
            return Err(Violation::new(Code::OverLimit, "a header of more than 64 KiB"));
        }
        let Some(text) = rest.get(..len as usize) else { return Ok(None) };
        let header: Header = json::parse(text)?;
        if !header.dp_version.starts_with("2.") {
            return Err(Violation::protocol("a header of another version than the upgrade"));
        }
        if header.compress_type != "None" {
            return Err(Violation::new(Code::Unsupported, "a compression that was not negotiated"));
        }
        Ok(Some((header, text, Self::PREFIX_LEN + len as usize)))
    }

    /// The chunk size, if it is one.
    pub fn chunk_size(&self) -> Result<ChunkSize, Violation> {
        ChunkSize::new(self.one_chunk)
            .ok_or_else(|| Violation::protocol("OneChunk is not a power of two from 1 KiB to 16 MiB"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(text: &[u8]) -> Result<Option<Header>, Violation> {
        let bytes = [&(text.len() as u32).to_be_bytes()[..], text].concat();
        Header::decode(&bytes).map(|found| found.map(|(header, _, _)| header))
    }

    #[test]
    fn a_header_survives_the_wire_and_waits_for_all_of_itself() {
        let header = Header::new(ChunkSize::COMMON, 7, 25_000_000, "photos");
        let mut bytes = header.encode();
        for cut in 0..bytes.len() {
            assert_eq!(Header::decode(&bytes[..cut]), Ok(None));
        }
        bytes.extend(b"more");
        let (read, _, used) = Header::decode(&bytes).unwrap().unwrap();
        assert_eq!((read, used), (header, bytes.len() - 4));
    }

    #[test]
    fn case_12_a_length_of_4_gib_is_refused_before_anything_is_kept() {
        assert_eq!(Header::decode(&[0xff; 4]).unwrap_err().code, Code::OverLimit);
    }

    #[test]
    fn cases_15_16_and_19_bad_fields_are_refused() {
        let good = r#"{"OneChunk":1024,"FullChunk":1,"FullSize":1,"DPVersion":"2.0.0","CompressType":"None","FileName":"x"}"#;
        assert!(decode(good.as_bytes()).unwrap().unwrap().chunk_size().is_ok());
        for (from, to) in [
            ("1024,", "1024,\"OneChunk\":2048,"),
            ("\"FullSize\":1", "\"FullSize\":-1"),
            ("\"FullSize\":1", "\"FullSize\":1.5"),
            ("2.0.0", "1.1.0"),
            ("None", "Zstd"),
            ("\"FileName\":\"x\"", "\"Name\":\"x\""),
        ] {
            decode(good.replace(from, to).as_bytes()).unwrap_err();
        }
        for size in ["0", "1000", "1152921504606846976"] {
            let header = decode(good.replace("1024", size).as_bytes());
            assert!(header.and_then(|header| header.unwrap().chunk_size()).is_err(), "{size}");
        }
    }
}
