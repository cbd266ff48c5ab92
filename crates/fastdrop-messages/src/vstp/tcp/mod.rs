//! Frames over TCP, and over TLS 1.3.

use crate::metrics::Metrics;
use crate::places::Limits;
use crate::token::{Authorize, Token};
use std::time::Duration;

pub mod client;
mod complaint;
mod connection;
mod delivery;
mod driver;
mod guard;
mod link;
mod orders;
mod outbox;
mod peer;
mod reader;
pub mod reconnecting;
mod served;
pub mod server;
mod serving;
mod session;
mod stream;
mod tally;
mod unhandled;
#[cfg(feature = "tls")]
pub use crate::tls;

pub use client::{NotConnected, VstpTcpClient};
pub use delivery::Delivery;
pub use fastdrop_proto::vstp::ClientSessionLimits;
pub use peer::Peer;
pub use reconnecting::{DeliverError, ReconnectConfig, Reconnecting, State};
pub(super) use server::serve_connection;
pub use server::{VstpTcpConnection, VstpTcpServer};
pub use session::{ReceiveHalf, SendHalf, Session, TrySendError};
pub use unhandled::Drained;
pub(super) use unhandled::Unhandled;

/// The behaviour of a connection, and its bounds.
#[derive(Debug, Clone)]
pub struct TcpConfig {
    /// The most bytes of a frame that comes, all of it counted. Default 8 MiB. A connection keeps
    /// at most one such frame, and 256 KiB, beside what [`Self::unread_max`] says.
    pub frame_max: usize,
    /// The most bytes of frames that are read, and kept until the application takes them, while
    /// this end waits to write, for an acknowledgement, or for a reply: what it waits for may stand
    /// behind them. Beyond, nothing is read, and the peer waits to write. As many bytes of frames
    /// are handled at once, where several are. Default: 128 MiB at the
    /// end that connects; [`Self::frame_max`] at the end that accepts, which has many peers.
    pub unread_max: Option<usize>,
    /// The most bytes of frames that wait to be sent to a peer and that nobody waits for, as
    /// [`Session::try_send`] and [`Peer::try_send`] take them, until the operating system has all
    /// of them; one frame may be larger. Default 1 MiB.
    pub push_max: usize,
    /// Calls of this end that may be outstanding on a connection, beyond which callers wait; and
    /// calls of the peer that are handled at once, beyond which they are refused as `busy`.
    /// Default 1,024.
    pub calls_max: usize,
    /// The interval at which something is to be heard, if the peer agrees in its HELLO or WELCOME;
    /// a peer that is silent for three times as long is gone. From 100 ms to an hour. Default: not
    /// asked for, as programs of version 0.2 answer no PING; the operating system then finds a dead
    /// peer within some two minutes.
    pub keep_alive: Option<Duration>,
    /// A frame that has begun must go on within this. Default 60 seconds.
    pub frame_timeout: Duration,
    /// The token that a client shows in its HELLO, which it says when it connects. Without TLS
    /// everybody on the way can read it. Default: none.
    pub token: Option<Token>,
    /// The decision of a server about who is let in, as a [`TokenSet`](crate::TokenSet) makes it.
    /// Then a HELLO has to come first, within ten seconds; it is answered, and not handed on.
    /// Default: everybody.
    pub authorize: Option<Authorize>,
    /// The time that a client of a server has for its first whole frame, however much of it comes.
    /// Default: any, as programs of version 0.2 may connect in order to listen.
    pub first_frame_timeout: Option<Duration>,
    /// The time in which a frame comes or something is written, or the connection ends. Default:
    /// any, as programs of version 0.2 may be silent for long.
    pub idle_timeout: Option<Duration>,
    /// The time in which the peer takes something of what is being written. Default two minutes,
    /// after which most systems give up by themselves.
    pub write_timeout: Option<Duration>,
    /// Connections that a server has at once; more wait. When there is no place for one more, an
    /// address that holds fewer places gets one of the address that holds most: one on which no
    /// frame has come, or else one that was idle for five seconds. A connection on which no frame
    /// has come in ten seconds loses its place to anybody. Default 10,000.
    pub connections_max: usize,
    /// Connections of one IPv4 address, or of the 64 bits of an IPv6 address that name a network.
    /// Default: as many as of all.
    pub connections_per_address: usize,
    /// Counts of what a server and its connections, or a client, do. Default: counts of their own.
    pub metrics: Metrics,
    /// The bounds on what a server remembers of clients that [connect again](Reconnecting), so that
    /// nothing that they send again is handed on twice.
    pub client_sessions: ClientSessionLimits,
    /// The time for which a server that ends waits for its handlers. Default 10 seconds.
    pub drain: Duration,
}

impl Default for TcpConfig {
    fn default() -> Self {
        Self {
            frame_max: fastdrop_proto::vstp::frame::FRAME_MAX,
            unread_max: None,
            push_max: 1 << 20,
            calls_max: 1024,
            keep_alive: None,
            frame_timeout: Duration::from_secs(60),
            token: None,
            authorize: None,
            first_frame_timeout: None,
            idle_timeout: None,
            write_timeout: Some(Duration::from_secs(120)),
            connections_max: 10_000,
            connections_per_address: usize::MAX,
            metrics: Metrics::default(),
            client_sessions: ClientSessionLimits::default(),
            drain: Duration::from_secs(10),
        }
    }
}

impl TcpConfig {
    /// The bounds of a server's connections.
    pub(crate) fn places(&self) -> Limits {
        Limits { all: self.connections_max, of_one: self.connections_per_address }
    }

    /// The default of [`Self::unread_max`] at the end that connects.
    const UNREAD_MAX: usize = 128 << 20;

    fn unread_max(&self, accepts: bool) -> usize {
        let default = if accepts { self.frame_max } else { Self::UNREAD_MAX };
        self.unread_max.unwrap_or(default)
    }
}
