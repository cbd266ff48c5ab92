//! VSTP: frames over TCP and UDP. The specification is `docs/protocol/vstp.md`.
//!
//! [`frame`] is what stands on the wire. [`Session`] is one TCP connection, [`Endpoint`] one UDP
//! socket with all its peers; both take bytes and the time, and give answers, events and deadlines.

mod acknowledgement;
mod arrivals;
mod batch;
mod budget;
mod call;
mod cap;
mod challenge;
mod channel;
mod client_sessions;
mod config;
mod endpoint;
mod error_code;
mod event;
mod failure;
mod fragment;
/// Frames on the wire.
pub mod frame;
mod handed_on;
mod ids;
mod inbox;
mod limits;
mod lineage;
mod ordered;
mod ordering;
mod outgoing;
mod peer;
mod peers;
mod pings;
mod plain;
mod priority;
mod random;
mod reassembly;
mod receiving;
mod redelivery;
mod seen;
mod sending;
mod sequenced;
mod session;
mod standing;
mod streams;
/// TCP or UDP, message by message.
pub mod transport;
mod unacknowledged;
mod whole;

pub use acknowledgement::Acknowledgement;
pub use call::CallRole;
pub use channel::{Channel, SendOptions};
pub use client_sessions::{Attachment, ClientOrigin, ClientSessionId, ClientSessionLimits, ClientSessions};
pub use config::EndpointConfig;
pub use endpoint::Endpoint;
pub use error_code::ErrorCode;
pub use event::{Counters, Event, Transmit};
pub use failure::{Failure, Unreachable};
pub use fragment::{CLASSIC_TOTAL_MAX, Fragment, Report, Writer};
pub use frame::{Flags, FrameBytes, FrameError, FrameRef, FrameType, Head, Headers, HeadersBuf};
pub use ids::{MSG_ID, SendId};
pub use limits::ReassemblyLimits;
pub use priority::Priority;
pub use redelivery::{Leaving, Redelivery};
pub use sending::Patience;
pub use session::{Gone, Session, SessionConfig, Verdict, Welcome};
