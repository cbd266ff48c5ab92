//! The settings of a client.

use crate::context::client::asked::Asked;
use crate::context::password::Password;
use crate::protocol::Protocol;
use crate::source::filter::Filter;
use fastdrop_proto::checksum::Algorithm;
use fastdrop_proto::fastdp::{Durability, Existing, Links, Streams};

/// What holds for everything that a client does.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// The protocol. Default: fastdp.
    pub protocol: Protocol,
    /// How contents are compressed. Default: where that makes the transfer faster.
    pub compress: Compress,
    /// Data streams. Default: auto.
    pub streams: Streams,
    /// How chunks are checked. Default: XXH3.
    pub checksum: Algorithm,
    /// Whether done means synced. Default: commit.
    pub durability: Durability,
    /// What happens to files that exist and differ. Default: error.
    pub existing: Existing,
    /// Identical means equal contents, by their BLAKE3, instead of
    /// equal size and time. Default: no.
    pub check: bool,
    /// Whether unfinished work is continued. Default: yes.
    pub resume: bool,
    /// Whether mtimes are kept. Default: yes.
    pub times: bool,
    /// Whether modes are kept. Default: yes.
    pub mode: bool,
    /// What happens to links. Default: copied.
    pub links: Links,
    /// Bytes on a data stream between checkpoints, at least 1 MiB;
    /// None for never. Default: 512 MiB.
    pub checkpoint: Option<u64>,
    /// What is left out. Default: nothing.
    pub filter: Filter,
    /// Bytes a second that are sent at most. Default: no limit.
    pub bytes_per_second_max: Option<u64>,
    /// The password by which UltraDP encrypts, without authenticating. Default: none, and it does
    /// not encrypt.
    pub ultradp_password: Option<Password>,
    /// Attempts after a loss without anything gained. Default: 5.
    pub retries: u32,
    /// The flags that were given, perhaps with their default value: what the protocol cannot keep
    /// of them is refused, as every value that is not the default. Default: none.
    pub asked: Asked,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            protocol: Protocol::FastDp,
            compress: Compress::Auto,
            streams: Streams::Auto,
            checksum: Algorithm::Xxh3,
            durability: Durability::Commit,
            existing: Existing::Error,
            check: false,
            resume: true,
            times: true,
            mode: true,
            links: Links::Copy,
            checkpoint: Some(512 << 20),
            filter: Filter::default(),
            bytes_per_second_max: None,
            ultradp_password: None,
            retries: 5,
            asked: Asked::new(),
        }
    }
}

/// How contents are compressed on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compress {
    /// Chunk by chunk where that makes the transfer faster; not at all with the older protocols.
    Auto,
    /// Not at all.
    None,
    /// With Zstandard.
    Zstd,
    /// In a ZIP archive.
    Zip,
    /// In a gzipped tar archive.
    TarGz,
    /// As gzip members: NextDP only.
    Gzip,
}
