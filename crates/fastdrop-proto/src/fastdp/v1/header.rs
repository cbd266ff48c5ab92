//! The JSON header.

use super::super::{HEADER_MAX, Version, Violation};
use crate::fastdp::Code;
use crate::json;
use serde::{Deserialize, Serialize};

/// The largest `OneChunk` that is taken.
pub const ONE_CHUNK_MAX: u32 = 64 << 20;

/// How a payload is made from its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compression {
    /// It is the file.
    None,
    /// One Zstandard frame.
    Zstd,
    /// A ZIP archive with one member.
    Zip,
    /// A gzip member with a tar archive of one file.
    TarGz,
}

impl Compression {
    /// Whether a payload of this kind can begin with `bytes`.
    pub fn begins_with(self, bytes: &[u8]) -> bool {
        match self {
            Compression::None => true,
            Compression::Zstd => bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]),
            Compression::Zip => bytes.starts_with(b"PK\x03\x04"),
            Compression::TarGz => bytes.starts_with(&[0x1f, 0x8b]),
        }
    }

    /// As in `CompressType`.
    pub fn name(self) -> &'static str {
        match self {
            Compression::None => "None",
            Compression::Zstd => "Zstd",
            Compression::Zip => "Zip",
            Compression::TarGz => "TarGz",
        }
    }
}

/// What the sender says first, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 1.0.0 or 1.1.0.
    pub version: Version,
    /// Bytes of a chunk, 1 to [`ONE_CHUNK_MAX`].
    pub one_chunk: u32,
    /// Bytes: of the file in 1.0.0, of the payload in 1.1.0.
    pub full_size: u64,
    /// What the payload is.
    pub compression: Compression,
    /// Unchecked; None only in 1.0.0.
    pub file_name: Option<String>,
    /// SHA-256 of the payload; in 1.1.0 only, and always there.
    pub checksum: Option<[u8; 32]>,
    /// The sender asks to be told when the receiver has the file; in 1.0.0 only.
    pub confirm: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Json {
    one_chunk: u64,
    full_chunk: u64,
    full_size: u64,
    #[serde(rename = "DPVersion")]
    dp_version: String,
    compress_type: Compression,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    checksum: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    confirm: bool,
    #[serde(skip_deserializing, skip_serializing_if = "std::ops::Not::not")]
    confirms: bool,
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    refused: Option<u16>,
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Longest `Reason` in bytes.
const REASON_MAX: usize = 4096;

/// The answer of a receiver of 1.0.0 to the sender's header, as far as it says anything new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderAnswer {
    /// It takes the file; with `confirms` it says so when it has it.
    Accepted {
        /// [`super::SUCCESS`] comes before the end of the connection, or the receiver does not have
        /// the file.
        confirms: bool,
    },
    /// It does not take the file.
    Refused(Refusal),
}

impl HeaderAnswer {
    /// Parses the `json` of a receiver's header, which may be any object.
    ///
    /// # Errors
    ///
    /// It is no JSON object.
    pub fn parse(json: &[u8]) -> Result<Self, Violation> {
        let fields: serde_json::Map<String, serde_json::Value> = json::parse(json)?;
        let code = fields.get("Refused").and_then(serde_json::Value::as_u64);
        Ok(match code.and_then(|code| u16::try_from(code).ok()) {
            Some(code) => {
                let reason = fields.get("Reason").and_then(serde_json::Value::as_str);
                Self::Refused(Refusal {
                    code: Code::new(code),
                    reason: reason.unwrap_or("without a reason").into(),
                })
            }
            None => {
                let confirms = fields.get("Confirms").and_then(serde_json::Value::as_bool).unwrap_or(false);
                Self::Accepted { confirms }
            }
        })
    }
}

/// A refusal in the header of a receiver of 1.0.0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// A code of version 2's section 11.
    pub code: Code,
    /// A sentence for people.
    pub reason: String,
}

impl Refusal {
    /// The header that carries it, as on the wire: length and JSON. The other fields repeat those
    /// of the sender's `header`, if it sent one.
    pub fn encode(&self, header: Option<&Header>) -> Vec<u8> {
        let nothing = Header {
            version: Version::V1_0,
            one_chunk: 1,
            full_size: 0,
            compression: Compression::None,
            file_name: None,
            checksum: None,
            confirm: false,
        };
        let mut json = header.unwrap_or(&nothing).json();
        (json.file_name, json.confirm) = (None, false);
        json.refused = Some(self.code.number());
        let cut = (0..=REASON_MAX.min(self.reason.len())).rev().find(|&at| self.reason.is_char_boundary(at));
        json.reason = self.reason.get(..cut.unwrap_or(0)).map(str::to_owned);
        json.encode()
    }
}

impl Json {
    fn encode(&self) -> Vec<u8> {
        let text = json::write(self);
        [&(text.len() as u32).to_be_bytes()[..], &text].concat()
    }
}

impl Header {
    /// Bytes of the payload, if the header tells.
    pub fn payload(&self) -> Option<u64> {
        (self.version == Version::V1_1 || self.compression == Compression::None).then_some(self.full_size)
    }

    /// Bytes of the file, if the header tells.
    pub fn file_size(&self) -> Option<u64> {
        (self.version == Version::V1_0 || self.compression == Compression::None).then_some(self.full_size)
    }

    /// The number of chunks that the header announces. A receiver of 1.0.0 may wait for so many,
    /// also where fewer carry the payload.
    pub fn full_chunk(&self) -> u64 {
        let one_chunk = u64::from(self.one_chunk.max(1));
        match self.version {
            Version::V1_1 => self.full_size.div_ceil(one_chunk),
            _ => self.full_size / one_chunk + 1,
        }
    }

    /// As on the wire: length and JSON.
    pub fn encode(&self) -> Vec<u8> {
        self.json().encode()
    }

    /// The header with which a receiver of 1.0.0 answers this one, as on the wire.
    pub fn encode_answer(&self) -> Vec<u8> {
        let mut json = self.json();
        (json.file_name, json.confirm, json.confirms) = (None, false, self.confirm);
        json.encode()
    }

    fn json(&self) -> Json {
        let one_chunk = u64::from(self.one_chunk.max(1));
        Json {
            one_chunk,
            full_chunk: self.full_chunk(),
            full_size: self.full_size,
            dp_version: self.version.name().into(),
            compress_type: self.compression,
            file_name: self.file_name.clone(),
            checksum: self.checksum.map(hex::encode),
            confirm: self.confirm && self.version == Version::V1_0,
            confirms: false,
            refused: None,
            reason: None,
        }
    }

    /// Takes a header of `version` from the beginning of `bytes`, and says how long it is; None if
    /// more bytes are needed.
    pub fn decode(bytes: &[u8], version: Version) -> Result<Option<(Self, usize)>, Violation> {
        let Some((prefix, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
        let len = u32::from_be_bytes(*prefix);
        if len > HEADER_MAX {
            return Err(Violation::new(Code::OverLimit, "a header of more than 64 KiB"));
        }
        let Some(text) = rest.get(..len as usize) else { return Ok(None) };
        let json: Json = json::parse(text)?;
        if json.dp_version != version.name() {
            return Err(Violation::protocol("a header of another version than the upgrade"));
        }
        let one_chunk = u32::try_from(json.one_chunk).ok().filter(|size| (1..=ONE_CHUNK_MAX).contains(size));
        let one_chunk = one_chunk.ok_or_else(|| Violation::protocol("OneChunk is not 1 byte to 64 MiB"))?;
        let (down, up) = (json.full_size / u64::from(one_chunk), json.full_size.div_ceil(one_chunk.into()));
        if json.full_chunk != up && json.full_chunk != down + 1 {
            return Err(Violation::protocol("FullChunk contradicts FullSize and OneChunk"));
        }
        let mut checksum = None;
        if version == Version::V1_1 {
            let mut digest = [0; 32];
            let text = json.checksum.ok_or_else(|| Violation::protocol("a header without Checksum"))?;
            hex::decode_to_slice(text, &mut digest)
                .map_err(|_| Violation::protocol("Checksum is not a SHA-256 in hexadecimal"))?;
            checksum = Some(digest);
            if json.file_name.is_none() {
                return Err(Violation::protocol("a header without FileName"));
            }
        }
        let header = Self {
            version,
            one_chunk,
            full_size: json.full_size,
            compression: json.compress_type,
            file_name: json.file_name,
            checksum,
            confirm: json.confirm && version == Version::V1_0,
        };
        Ok(Some((header, 4 + len as usize)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_105_a_refusal_is_found_in_the_header_that_carries_it() {
        let header = Header {
            version: Version::V1_0,
            one_chunk: 262_144,
            full_size: 300_000,
            compression: Compression::None,
            file_name: Some("f".into()),
            checksum: None,
            confirm: false,
        };
        let json = |wire: Vec<u8>| wire[4..].to_vec();
        assert_eq!(
            HeaderAnswer::parse(&json(header.encode())),
            Ok(HeaderAnswer::Accepted { confirms: false })
        );
        let confirms = Header { confirm: true, ..header.clone() };
        // Not by one that only repeats what it was sent.
        let repeated = HeaderAnswer::parse(&json(confirms.encode()));
        assert_eq!(repeated, Ok(HeaderAnswer::Accepted { confirms: false }));
        let unasked = HeaderAnswer::parse(&json(header.encode_answer()));
        assert_eq!(unasked, Ok(HeaderAnswer::Accepted { confirms: false }));
        let accepted = HeaderAnswer::parse(&json(confirms.encode_answer()));
        assert_eq!(accepted, Ok(HeaderAnswer::Accepted { confirms: true }));
        assert_eq!(Header::decode(&confirms.encode(), Version::V1_0).unwrap().unwrap().0, confirms);
        let refusal = Refusal { code: Code::Conflict, reason: "f: it exists".into() };
        for of in [Some(&header), None] {
            let answer = HeaderAnswer::parse(&json(refusal.encode(of)));
            assert_eq!(answer, Ok(HeaderAnswer::Refused(refusal.clone())));
        }
        let endless = Refusal { code: Code::Internal, reason: "ü".repeat(100_000) };
        let HeaderAnswer::Refused(found) = HeaderAnswer::parse(&json(endless.encode(None))).unwrap() else {
            panic!("it refuses")
        };
        assert_eq!(found.reason.len(), REASON_MAX);
        HeaderAnswer::parse(b"[]").unwrap_err();
    }

    fn framed(text: &str) -> Vec<u8> {
        [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
    }

    const OLD: &str =
        r#"{"OneChunk":1024,"FullChunk":3,"FullSize":2048,"DPVersion":"1.0.0","CompressType":"Zstd"}"#;

    fn new() -> String {
        let digest = "ab".repeat(32);
        OLD.replace("1.0.0", "1.1.0")
            .replace("\"FullChunk\":3", "\"FullChunk\":2")
            .replace('}', &format!(",\"FileName\":\"x\",\"Checksum\":\"{digest}\"}}"))
    }

    #[test]
    fn the_vectors_of_the_specification_are_what_the_code_writes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/protocol/vectors/fastdp1.txt");
        let text = std::fs::read_to_string(path).unwrap();
        let mut count = 0;
        for vector in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let fields: Vec<_> = vector.split_whitespace().collect();
            let given = |text: &str| (text != "-").then(|| text.to_owned());
            match fields[..] {
                ["header", version, one_chunk, full_size, kind, name, checksum, expected] => {
                    let header = Header {
                        version: Version::parse(version).unwrap(),
                        one_chunk: one_chunk.parse().unwrap(),
                        full_size: full_size.parse().unwrap(),
                        compression: serde_json::from_str(&format!("\"{kind}\"")).unwrap(),
                        file_name: given(name),
                        checksum: given(checksum).map(|hex| hex::decode(hex).unwrap().try_into().unwrap()),
                        confirm: false,
                    };
                    assert_eq!(hex::encode(header.encode()), expected);
                    let bytes = hex::decode(expected).unwrap();
                    assert_eq!(Header::decode(&bytes, header.version), Ok(Some((header, bytes.len()))));
                }
                ["chunk", number, size, expected] => {
                    let prefix = super::super::ChunkPrefix {
                        number: number.parse().unwrap(),
                        size: size.parse().unwrap(),
                    };
                    assert_eq!(hex::encode(prefix.encode()), expected);
                    let bytes = hex::decode(expected).unwrap().try_into().unwrap();
                    assert_eq!(super::super::ChunkPrefix::decode(bytes), prefix);
                }
                _ => panic!("{vector}"),
            }
            count += 1;
        }
        assert!(count >= 7);
    }

    #[test]
    fn both_versions_are_read_and_written() {
        let (old, used) = Header::decode(&framed(OLD), Version::V1_0).unwrap().unwrap();
        assert_eq!((used, old.payload(), old.file_size()), (framed(OLD).len(), None, Some(2048)));
        assert_eq!(old.encode(), framed(OLD));
        let new = framed(&new());
        let (header, _) = Header::decode(&new, Version::V1_1).unwrap().unwrap();
        assert_eq!((header.payload(), header.file_size()), (Some(2048), None));
        assert_eq!(header.encode(), new);
        for cut in 0..new.len() {
            assert_eq!(Header::decode(&new[..cut], Version::V1_1), Ok(None));
        }
    }

    #[test]
    fn cases_12_and_14_to_19_bad_headers_are_refused() {
        let error = Header::decode(&u32::MAX.to_be_bytes(), Version::V1_0).unwrap_err();
        assert_eq!(error.code, Code::OverLimit);
        let new = new();
        for (from, to) in [
            ("1024", "0"),
            ("1024", "67108865"),
            ("\"FullSize\":2048", "\"FullSize\":-1"),
            ("\"FullSize\":2048", "\"FullSize\":2048.0"),
            ("\"FullSize\":2048", "\"FullSize\":1e400"),
            ("\"FullSize\":2048", "\"FullSize\":9007199254740993"),
            ("\"FullSize\":2048", "\"FullSize\":2048,\"FullSize\":2048"),
            ("\"FullChunk\":2", "\"FullChunk\":4"),
            ("Zstd", "Lz4"),
            ("1.1.0", "1.0.0"),
            ("\"FileName\":\"x\",", ""),
            ("\"FileName\":\"x\"", "\"FileName\":\"\\ud800\""),
            ("abab", "zzzz"),
            ("abab", ""),
        ] {
            Header::decode(&framed(&new.replacen(from, to, 1)), Version::V1_1).expect_err(to);
        }
        Header::decode(&framed(OLD), Version::V1_1).unwrap_err();
    }
}
