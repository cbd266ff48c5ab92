//! Frames over UDP, and messages of any size: in fragments, acknowledged where that is wanted.

mod calls;
mod carrier;
pub mod client;
mod config;
mod delivery;
mod driver;
mod peer;
mod presence;
#[cfg(feature = "quic")]
mod quic;
pub mod server;
mod serving;

pub use client::VstpUdpClient;
pub use config::{UdpConfig, UdpServerConfig, UdpServerLimits};
pub use delivery::Delivery;
pub(super) use driver::Handle;
pub use fastdrop_proto::vstp::{
    Channel, Counters, Failure, Priority, ReassemblyLimits, SendOptions, Unreachable,
};
pub use peer::Peer;
pub use presence::{Departure, PeerEvent, PeerEvents};
pub use server::VstpUdpServer;

/// The most bytes of a datagram before it is known that more fit.
pub const MAX_DATAGRAM_SIZE: usize = fastdrop_proto::vstp::transport::DATAGRAM_MAX;
