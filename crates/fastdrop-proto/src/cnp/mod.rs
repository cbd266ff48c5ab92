//! CNP: acknowledged messages over TCP and UDP. The specification is `docs/protocol/cnp.md`.
//!
//! [`Packet`](Head) is what stands on the wire, [`handshake`] what is agreed. A [`Session`] is one
//! end of one connection, whatever carries it; an [`Acceptor`] answers the handshakes that come to
//! a UDP socket.

mod acceptor;
mod call_message;
/// What covers packets against corruption.
pub mod checksum;
mod config;
mod control;
mod cut;
mod data_type;
mod generation;
/// The three packets with which a session begins.
pub mod handshake;
mod header;
mod numbering;
/// Packets on the wire.
pub mod packet;
mod params;
mod per_message;
mod receiver;
mod repeat;
mod sender;
mod seq;
mod session;

pub use acceptor::{Accepted, Acceptor, Handshake};
pub use call_message::{CallMessage, CallRefusal};
pub use checksum::Checksum;
pub use config::{Carrier, ConfigError, MessageLimits, SessionConfig, WINDOW_MAX};
pub use generation::Generation;
pub use handshake::Agreed;
pub use header::{Head, Layout, PacketError};
pub use packet::{ErrorCode, MessageKind, PacketType, PeerError};
pub use params::{ChecksumKind, Mode, Protocol, SessionId, SynForm};
pub use receiver::ReceiveId;
pub use sender::{SendId, TooLarge};
pub use seq::Seq;
pub use session::{ConnectionId, Counters, Ending, Event, PathChallenge, SendError, Session};
