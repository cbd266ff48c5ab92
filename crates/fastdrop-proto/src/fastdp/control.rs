//! The control frames that are JSON (sections 4, 7 and 11).

use super::{Code, Compress, Violation};
use crate::checksum::Algorithm;
use crate::units::TransferId;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What a client wants of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Do {
    /// Send to the server.
    Put,
    /// Receive from the server.
    Get,
    /// See what is there.
    List,
    /// Be another stream of a transfer under way.
    Join,
    /// Learn what a put would do, without doing it.
    Preview,
}

/// Where a manifest goes (section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// Into the path if it is a folder, else as it.
    #[default]
    Auto,
    /// Into the folder.
    Into,
    /// Under that name.
    As,
}

/// What happens to files that exist and differ. In the order of what they permit to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Existing {
    /// The existing one stays, and the new one is not sent.
    Skip,
    /// The transfer is refused.
    #[default]
    Error,
    /// The new one gets another name.
    Rename,
    /// The new one replaces it.
    Overwrite,
}

/// What happens to symbolic links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Links {
    /// Sent as links; those that would lead outside of the folder in which they arrive fail.
    #[default]
    Copy,
    /// The same, but those that would lead outside are left out.
    Safe,
    /// What they point to is sent.
    Follow,
    /// Left out.
    Skip,
}

/// First frame of a client's connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Open {
    /// What for.
    pub r#do: Do,
    /// The transfer to join.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "transfer_id")]
    pub transfer: Option<TransferId>,
    /// Where to put, what to get or list; beneath the served folder.
    #[serde(default, with = "octets")]
    pub path: Vec<u8>,
    /// How `path` is meant in a put.
    #[serde(default)]
    pub place: Place,
    /// Data streams that the client would open at most.
    #[serde(default = "one")]
    pub streams: u16,
    /// Whether a sender that is the server may use fewer, as it sees fit.
    #[serde(default = "yes")]
    pub adapt: bool,
    /// How chunks are checked.
    #[serde(default)]
    pub checksum: Algorithm,
    /// What happens to files that exist, in a put.
    #[serde(default)]
    pub existing: Existing,
    /// Whether done means synced.
    #[serde(default)]
    pub durability: Durability,
    /// Whether mtimes are kept.
    #[serde(default = "yes")]
    pub times: bool,
    /// Whether modes are kept.
    #[serde(default = "yes")]
    pub mode: bool,
    /// What happens to links, in a get.
    #[serde(default)]
    pub links: Links,
    /// Whether unfinished work may be continued.
    #[serde(default = "yes")]
    pub resume: bool,
    /// Identical means equal contents, not equal size and mtime. Only where `content` is shared.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub check: bool,
    /// Nothing will be asked for, in a get: LEFT_OUT also names entries of the manifest that cannot be read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry: bool,
    /// LEFT_OUT also tells what a transfer does not carry of the manifest's files, in a get.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub uncarried: bool,
    /// Bytes per data stream between checkpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<u64>,
    /// The round trip that the client measured, in microseconds.
    #[serde(default)]
    pub rtt_micros: u64,
    /// Bytes a second that the client takes at most, in a get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_max: Option<u64>,
    /// How the sender compresses, whichever end that is.
    #[serde(default)]
    pub compress: Compress,
    /// What the client can do beyond the specification's base.
    #[serde(default)]
    pub capabilities: Vec<String>,
}

/// What an end may be able to do beyond the specification's base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// Chunks whose holes are left out.
    Sparse,
    /// Compressed chunks.
    Zstd,
    /// Archives that are unpacked where they arrive.
    Archive,
    /// Exact times in ZIP archives.
    ZipTimes,
    /// Identities of files, by which the receiver knows whether what it holds is of the same file.
    Identity,
    /// The server tells what it leaves out.
    LeftOut,
    /// Chunks are proven before END, so that files can be named early.
    Proof,
    /// The receiver asks for the BLAKE3 of files.
    Content,
    /// Links to wherever the folder reaches in which the manifest arrives.
    Links,
    /// Paths of more than 4,096 bytes.
    LongPaths,
}

impl Capability {
    /// All that this implementation has.
    const ALL: [Self; 10] = [
        Self::Sparse,
        Self::Zstd,
        Self::Archive,
        Self::ZipTimes,
        Self::Identity,
        Self::LeftOut,
        Self::Proof,
        Self::Content,
        Self::Links,
        Self::LongPaths,
    ];

    fn name(self) -> &'static str {
        match self {
            Capability::Sparse => "sparse",
            Capability::Zstd => "zstd",
            Capability::Archive => "archive",
            Capability::ZipTimes => "zip-times",
            Capability::Identity => "identity",
            Capability::LeftOut => "left-out",
            Capability::Proof => "proof",
            Capability::Content => "content",
            Capability::Links => "links",
            Capability::LongPaths => "long-paths",
        }
    }
}

/// Whether "done" means synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Survives the loss of power.
    #[default]
    Commit,
    /// Left to the kernel.
    None,
}

impl Open {
    /// An OPEN with every default.
    pub fn new(r#do: Do) -> Self {
        Self {
            r#do,
            transfer: None,
            path: Vec::new(),
            place: Place::Auto,
            streams: 1,
            adapt: true,
            checksum: Algorithm::default(),
            existing: Existing::default(),
            durability: Durability::default(),
            times: true,
            mode: true,
            links: Links::default(),
            resume: true,
            check: false,
            dry: false,
            uncarried: false,
            checkpoint: None,
            rtt_micros: 0,
            rate_max: None,
            compress: Compress::None,
            capabilities: Capability::ALL.map(|capability| capability.name().to_owned()).to_vec(),
        }
    }

    /// Returns true if the client has `capability`.
    pub fn has(&self, capability: Capability) -> bool {
        self.capabilities.iter().any(|theirs| theirs == capability.name())
    }

    /// Those of the client's capabilities that this end has too.
    pub fn shared_capabilities(&self) -> Vec<String> {
        let shared = |theirs: &&String| Capability::ALL.iter().any(|own| own.name() == **theirs);
        self.capabilities.iter().filter(shared).cloned().collect()
    }

    /// Refuses values out of range.
    pub fn check(&self) -> Result<(), Violation> {
        if !(1..=64).contains(&self.streams) {
            return Err(Violation::protocol("Streams is not from 1 to 64"));
        }
        if self.checkpoint.is_some_and(|bytes| bytes < 1 << 20) {
            return Err(Violation::protocol("Checkpoint is less than 1 MiB"));
        }
        if self.capabilities.len() > 64 {
            return Err(Violation::new(Code::OverLimit, "more than 64 capabilities"));
        }
        if self.check && !self.has(Capability::Content) {
            return Err(Violation::protocol("Check without the capability content"));
        }
        if (self.r#do == Do::Join) != self.transfer.is_some() {
            return Err(Violation::protocol("Transfer goes with join, and join with Transfer"));
        }
        Ok(())
    }
}

/// First frame of a server's connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Grant {
    /// The transfer's name, by which other streams join it.
    #[serde(with = "transfer_id")]
    pub transfer: Option<TransferId>,
    /// Data streams that may join.
    pub streams: u16,
    /// As asked for.
    pub checksum: Algorithm,
    /// As asked for.
    pub durability: Durability,
    /// What `Place` came to.
    #[serde(default)]
    pub place: Place,
    /// Bytes per data stream between checkpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<u64>,
    /// An archive that is put stays one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keeps_archive: bool,
    /// What both can do.
    #[serde(default)]
    pub capabilities: Vec<String>,
}

impl Grant {
    /// Whether both ends have `capability`.
    pub fn has(&self, capability: Capability) -> bool {
        self.capabilities.iter().any(|shared| shared == capability.name())
    }
}

/// Last frame of a connection that ends badly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Refuse {
    /// In the terms of section 11.
    pub code: Code,
    /// A sentence.
    pub message: String,
    /// Which files it is about; at most 20.
    #[serde(default, with = "octets_list")]
    pub paths: Vec<Vec<u8>>,
}

/// What did not arrive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Failed {
    /// Which entry, by its path in the manifest.
    #[serde(with = "octets")]
    pub path: Vec<u8>,
    /// In the terms of section 11.
    pub code: Code,
    /// A sentence.
    pub message: String,
}

/// The receiver's last word.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Done {
    /// Files that are in place because of this transfer.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files of an archive that need not be written: they were there, or were left as they were.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped: u64,
    /// How many of those differ, and were left.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left: u64,
    /// What was promised, and kept.
    pub durability: Durability,
    /// What did not arrive; at most 1,000, `failed_count` has the number.
    #[serde(default)]
    pub failed: Vec<Failed>,
    /// How many did not arrive.
    #[serde(default)]
    pub failed_count: u64,
    /// How long the receiver's streams waited for bytes, all together.
    #[serde(default)]
    pub wait_micros: u64,
    /// How long they computed checksums.
    #[serde(default)]
    pub cpu_micros: u64,
    /// How long they wrote and synced.
    #[serde(default)]
    pub write_micros: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "what serde calls takes a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

fn one() -> u16 {
    1
}

fn yes() -> bool {
    true
}

/// What stands for itself in a percent-encoded path.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%').add(b'\\').add(b'<').add(b'>');

mod octets {
    use super::*;

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        percent_encode(bytes, ENCODED).to_string().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        // Decoded once: what still looks encoded afterwards is a name.
        Ok(percent_decode_str(&String::deserialize(from)?).collect())
    }
}

mod octets_list {
    use super::*;

    pub(super) fn serialize<S: Serializer>(list: &[Vec<u8>], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(list.iter().map(|bytes| percent_encode(bytes, ENCODED).to_string()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Vec<u8>>, D::Error> {
        let list = Vec::<String>::deserialize(from)?;
        Ok(list.iter().map(|text| percent_decode_str(text).collect()).collect())
    }
}

mod transfer_id {
    use super::*;
    use serde::de::Error;

    pub(super) fn serialize<S: Serializer>(id: &Option<TransferId>, to: S) -> Result<S::Ok, S::Error> {
        id.map(|id| id.to_string()).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<TransferId>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        let parse =
            |text: String| TransferId::from_hex(&text).ok_or_else(|| D::Error::custom("not a transfer id"));
        text.map(parse).transpose()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::json;

    pub(crate) fn open() -> Open {
        Open {
            path: b"caf\xe9 100%/x".to_vec(),
            streams: 8,
            checkpoint: Some(512 << 20),
            rtt_micros: 120,
            capabilities: vec!["sparse".into(), "zstd".into(), "archive".into()],
            ..Open::new(Do::Put)
        }
    }

    pub(crate) fn grant() -> Grant {
        Grant {
            transfer: Some(TransferId(*b"0123456789abcdef")),
            streams: 4,
            checksum: Algorithm::Blake3,
            durability: Durability::None,
            place: Place::As,
            checkpoint: None,
            keeps_archive: false,
            capabilities: vec!["sparse".into()],
        }
    }

    pub(crate) fn refuse() -> Refuse {
        Refuse {
            code: Code::Conflict,
            message: "exists".into(),
            paths: vec![b"\xff".to_vec(), b"a/b".to_vec()],
        }
    }

    pub(crate) fn done() -> Done {
        Done {
            files: 3,
            bytes: 4,
            failed: vec![Failed { path: b"p".to_vec(), code: Code::NoSpace, message: "no space".into() }],
            failed_count: 1,
            wait_micros: 5,
            ..Done::default()
        }
    }

    #[test]
    fn what_an_open_leaves_out_has_its_default() {
        let read: Open = json::parse(br#"{"Do":"put","Later":1}"#).unwrap();
        assert_eq!(read, Open { capabilities: vec![], ..Open::new(Do::Put) });
    }

    #[test]
    fn case_20_values_out_of_range_are_refused_and_zero_is_not_unlimited() {
        for open in [
            Open { streams: 0, ..open() },
            Open { streams: 65, ..open() },
            Open { checkpoint: Some(0), ..open() },
            Open { r#do: Do::Join, ..open() },
            Open { transfer: Some(TransferId([0; 16])), ..open() },
        ] {
            open.check().unwrap_err();
        }
        json::parse::<Open>(br#"{"Do":"put","Streams":70000}"#).unwrap_err();
        json::parse::<Open>(br#"{"Do":"put","Checksum":"md5"}"#).unwrap_err();
        json::parse::<Open>(br#"{"Do":"join","Transfer":"12"}"#).unwrap_err();
    }

    #[test]
    fn case_55_a_path_is_decoded_once() {
        let read: Open = json::parse(br#"{"Do":"get","Path":"%252e%252e%252fx"}"#).unwrap();
        assert_eq!(read.path, b"%2e%2e%2fx");
    }
}
