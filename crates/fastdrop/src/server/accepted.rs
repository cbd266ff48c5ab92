//! A connection that has said what it speaks.

use crate::admission::keys::KeyGuard;
use crate::legacy::fastdp1;
use crate::legacy::push::Serve;
use fastdrop_proto::fastdp::{Header, Open, UpgradeRequest};
use std::net::SocketAddr;
use tokio::net::TcpStream;

/// A connection that has said what it wants.
pub(super) struct Handshake {
    pub(super) socket: std::net::TcpStream,
    pub(super) peer: SocketAddr,
    pub(super) header: Header,
    pub(super) header_json: Vec<u8>,
    pub(super) open: Open,
    pub(super) open_json: Vec<u8>,
    /// Bytes that were read beyond.
    pub(super) early: Vec<u8>,
    pub(super) key: KeyGuard,
}

/// A connection, by the protocol that it turned out to speak.
pub(super) enum Accepted {
    /// fastdp 2.
    FastDp(Handshake),
    /// HTTP that does not begin with an upgrade: its first head has come.
    Http { socket: TcpStream, peer: SocketAddr, early: Vec<u8> },
    /// An older version of fastdp: its header has come.
    FastDp1(fastdp1::server::Handshaken),
    /// FastDownloader, on its own port: nothing has been said.
    FastDownloader { socket: std::net::TcpStream, peer: SocketAddr },
    /// A protocol with a first line of its own, which has come: what serves it.
    Line { serve: Serve, socket: std::net::TcpStream, peer: SocketAddr, early: Vec<u8> },
}

/// An upgrade that was answered, on a connection that is no longer HTTP.
pub(super) struct Upgraded {
    pub(super) socket: TcpStream,
    pub(super) request: UpgradeRequest,
    pub(super) key: Option<KeyGuard>,
    /// Bytes that the client has sent since.
    pub(super) early: Vec<u8>,
}
