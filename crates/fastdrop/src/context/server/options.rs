//! The settings of a server.

use crate::context::password::Password;
use crate::protocol::Accept;
use fastdrop_proto::fastdownloader::Dialect as FastDownloaderDialect;
use fastdrop_proto::fastdp::Existing;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Compression of the chunks that a server takes by NextDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NextDpCompression {
    /// None.
    None,
    /// Each is one gzip member.
    Gzip,
    /// Each is one Zstandard frame, as of version 2 of the program in use.
    Zstd,
}

/// How a server behaves.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The folder that is served.
    pub folder: PathBuf,
    /// Where to listen. Addresses with port 0 share one that is picked. `::` takes IPv4 too,
    /// unless an IPv4 address stands beside it.
    pub bind: Vec<SocketAddr>,
    /// The protocols that are answered. Default: all.
    pub accept: Accept,
    /// Time for a client of fastdp 1.0.0 or 1.1.0 from its upgrade to its header: it may
    /// compress a file first. Default 10 minutes,
    /// at most a day; meanwhile it costs a descriptor and some 10 KiB,
    /// and is the first to go where there are too many.
    pub header_timeout: Duration,
    /// Compression of NextDP's chunks: its requests do not tell. Default: none.
    pub nextdp_compression: NextDpCompression,
    /// The password of UltraDP's secured variant, which is encrypted, and not authenticated.
    /// Default: none, and the variant is refused.
    pub ultradp_password: Option<Password>,
    /// The port of FastDownloader on every address, 0 to pick one. Default: none.
    pub fastdownloader: Option<u16>,
    /// The form in which FastDownloader gives chunks: nothing in a request tells which one the
    /// client reads. Default: that of the document.
    pub fastdownloader_dialect: FastDownloaderDialect,
    /// Archives that clients send natively stay archives instead of being unpacked. Default: no.
    pub keep_archive: bool,
    /// Nothing is taken.
    pub read_only: bool,
    /// Nothing is given, nor listed.
    pub write_only: bool,
    /// The most that clients may do with files that exist. Default: error.
    pub existing: Existing,
    /// Data streams of one transfer. Default 16, at most 64; each costs a chunk of memory.
    pub streams_max: u16,
    /// Bytes of one transfer. Default: no limit but space.
    pub size_max: Option<u64>,
    /// Bytes that must stay free. Default 0.
    pub free_min: u64,
    /// Leave after one transfer.
    pub once: bool,
    /// The least bytes between checkpoints that clients get; None never makes any. Default 512 MiB.
    pub checkpoint: Option<u64>,
    /// Unfinished work is removed after this time. Default a week.
    pub expire: Duration,
    /// Connections at once. Default 4,096; each costs a descriptor,
    /// and before its handshake some 10 KiB.
    pub connections_max: usize,
    /// Connections of one address that have not finished their handshake;
    /// beyond, the oldest goes. Default 256.
    pub handshakes_per_address_max: usize,
    /// Transfers at once. Default 256.
    pub transfers_max: usize,
    /// Entries of one manifest. Default 5,000,000; each costs up to 200 bytes and its path.
    pub entries_max: u32,
    /// Chunk buffers of all transfers, in bytes. Default 256 MiB.
    pub buffers_max: u64,
}

impl ServerOptions {
    /// The defaults, for `folder`.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            bind: vec![SocketAddr::from(([127, 0, 0, 1], 8888))],
            accept: Accept::all(),
            header_timeout: Duration::from_secs(600),
            nextdp_compression: NextDpCompression::None,
            ultradp_password: None,
            fastdownloader: None,
            fastdownloader_dialect: FastDownloaderDialect::Document,
            keep_archive: false,
            read_only: false,
            write_only: false,
            existing: Existing::Error,
            streams_max: 16,
            size_max: None,
            free_min: 0,
            once: false,
            checkpoint: Some(512 << 20),
            expire: Duration::from_secs(7 * 24 * 3600),
            connections_max: 4096,
            handshakes_per_address_max: 256,
            transfers_max: 256,
            entries_max: 5_000_000,
            buffers_max: 256 << 20,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_waited_for_ten_minutes_unless_it_is_set() {
        assert_eq!(ServerOptions::new(PathBuf::new()).header_timeout, Duration::from_secs(10 * 60));
    }
}
