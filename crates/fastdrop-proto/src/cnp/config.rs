//! What one end of a session wants and bears.

use super::header::HEAD_BYTES;
use super::params::{ChecksumKind, Mode, Protocol, SynForm};
use crate::authorize::{Authorize, Token};
use std::time::Duration;

/// The largest window: with more, an old number could be taken for a new one.
pub const WINDOW_MAX: u16 = 32_767;

/// What carries packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// A stream of bytes, in order and without loss: TCP.
    Stream,
    /// Datagrams: UDP.
    Datagrams,
}

impl Carrier {
    /// Bytes of a datagram that any path carries (RFC 8200: 1,280 less IPv6 and UDP).
    pub const DATAGRAM: usize = 1232;

    /// No retransmission timeout is shorter. On a stream nothing is lost on the way, and a peer is
    /// rather slow than deaf.
    pub(super) fn timeout_min(self) -> Duration {
        match self {
            Self::Stream => Duration::from_secs(1),
            Self::Datagrams => Duration::from_millis(10),
        }
    }
}

/// Bounds in bytes of one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageLimits {
    /// A message that comes. Default 16 MiB; so much may be kept for one that is not complete.
    pub message_max: usize,
    /// Messages that came and wait: for something before it, or for the application to take it. One
    /// message more may be kept. Default 4 MiB.
    pub receive_max: usize,
    /// Messages that the application has sent and the peer has not acknowledged. One message more
    /// may be kept. Default 4 MiB.
    pub send_max: usize,
}

impl Default for MessageLimits {
    fn default() -> Self {
        Self { message_max: 16 << 20, receive_max: 4 << 20, send_max: 4 << 20 }
    }
}

/// The settings of a session. A server takes `mode` and `protocol` from its client; everything else
/// is the most that it agrees to.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// What carries the packets.
    pub carrier: Carrier,
    /// One message after the other, or a window of them. Default burst.
    pub mode: Mode,
    /// What is done after a loss. Default Selective Repeat.
    pub protocol: Protocol,
    /// Packets that may be unacknowledged in burst mode, from 1 to [`WINDOW_MAX`]. Default 256 for
    /// a client, [`WINDOW_MAX`] for a server. Bytes are bounded by `limits`.
    pub window: u16,
    /// Bytes of a packet's payload, from 1 to 16 MiB, on UDP to 65,000. Default 64 KiB, on UDP
    /// 1,024.
    pub packet_max: usize,
    /// What packets are covered with. Default CRC-32C; a server does what its client asks.
    pub checksum: ChecksumKind,
    /// A name that the client gives itself, at most 128 bytes. Default none.
    pub client_id: Option<String>,
    /// The token that the client shows. Default none.
    pub token: Option<Token>,
    /// The server's decision about who is let in. Default everybody.
    pub authorize: Option<Authorize>,
    /// The time that silence may last, from 100 ms to an hour; None for no keep-alive. Default 15
    /// seconds.
    pub keep_alive: Option<Duration>,
    /// Tells messages that are handled from packets that are received, with a peer that knows that;
    /// else the acknowledgement of a message's last packet waits until the message is handled.
    /// Default true.
    pub handled: bool,
    /// By UDP, the session goes on when the client's address changes, with a peer that knows that,
    /// and with CRC-32C. Default true.
    pub moves: bool,
    /// Calls of the peer that are taken at once, running or waiting; None for no calls. Default
    /// 1,024.
    pub calls: Option<u16>,
    /// Bounds in bytes.
    pub limits: MessageLimits,
    /// How often a packet may time out before the peer is taken for gone, at least 1. Default 15.
    pub timeouts_max: u32,
    /// The time that the peer may be silent while something waits for it, and by UDP without
    /// keep-alives at all. Default 60 seconds; at most a day, as all times.
    pub gone_after: Duration,
    /// How long the handshake may take. Default 10 seconds.
    pub handshake_timeout: Duration,
    /// How long a packet that has begun to come on a stream may pause. Default 30 seconds.
    pub packet_timeout: Duration,
    /// The form of a client's SYN. Default full.
    pub syn_form: SynForm,
    /// The time between a packet that nothing answers (the end of the handshake, an
    /// acknowledgement) and data behind it, on a stream to a peer of the field that may read them
    /// together and take them for one packet. At most a second. Default 50 ms.
    pub unanswered_pause: Duration,
    /// A client takes a server that may be of the first or of the second generation for one of the
    /// first, and does not ask. Default false.
    pub first_generation: bool,
}

/// A configuration that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub &'static str);

impl SessionConfig {
    /// The longest retransmission timeout.
    pub(super) const TIMEOUT_MAX: Duration = Duration::from_secs(10);
    const ACK_PAYLOAD_MAX: usize = 160;
    const TIME_MAX: Duration = Duration::from_secs(86_400);
    const PACKET_MAX: usize = 16 << 20;
    const DATAGRAM_MAX: usize = 65_000;
    const PAUSE_MAX: Duration = Duration::from_secs(1);
    pub(super) const KEEP_ALIVE_MIN: Duration = Duration::from_millis(100);
    pub(super) const KEEP_ALIVE_MAX: Duration = Duration::from_secs(3600);

    /// What a client wants unless it is told otherwise.
    pub fn client(carrier: Carrier) -> Self {
        Self {
            carrier,
            mode: Mode::Burst,
            protocol: Protocol::SelectiveRepeat,
            window: 256,
            packet_max: match carrier {
                Carrier::Stream => 64 << 10,
                Carrier::Datagrams => 1024,
            },
            checksum: ChecksumKind::Crc32c,
            client_id: None,
            token: None,
            authorize: None,
            keep_alive: Some(Duration::from_secs(15)),
            handled: true,
            moves: carrier == Carrier::Datagrams,
            calls: Some(1024),
            limits: MessageLimits::default(),
            timeouts_max: 15,
            gone_after: Duration::from_secs(60),
            handshake_timeout: Duration::from_secs(10),
            packet_timeout: Duration::from_secs(30),
            syn_form: SynForm::Full,
            unanswered_pause: Duration::from_millis(50),
            first_generation: false,
        }
    }

    /// What a server agrees to unless it is told otherwise.
    pub fn server(carrier: Carrier) -> Self {
        Self { window: WINDOW_MAX, ..Self::client(carrier) }
    }

    /// Says what is wrong with it before it is used.
    pub fn check(&self) -> Result<(), ConfigError> {
        let packet_max = match self.carrier {
            Carrier::Stream => Self::PACKET_MAX,
            Carrier::Datagrams => Self::DATAGRAM_MAX,
        };
        let keep_alive_fits =
            self.keep_alive.is_none_or(|time| (Self::KEEP_ALIVE_MIN..=Self::KEEP_ALIVE_MAX).contains(&time));
        let times = [self.gone_after, self.handshake_timeout, self.packet_timeout];
        let times_fit = times.iter().all(|time| !time.is_zero() && *time <= Self::TIME_MAX);
        let rules = [
            ((1..=WINDOW_MAX).contains(&self.window), "a window is from 1 to 32,767 packets"),
            (
                (1..=packet_max).contains(&self.packet_max),
                "a packet has from 1 byte to 16 MiB, by UDP to 65,000 bytes",
            ),
            (self.limits.message_max > 0, "a message may have at least 1 byte"),
            (
                self.limits.receive_max > 0 && self.limits.send_max > 0,
                "there has to be room for at least 1 byte in either direction",
            ),
            (keep_alive_fits, "a keep-alive is from 100 ms to an hour"),
            (self.timeouts_max > 0, "a packet may time out at least once"),
            (times_fit, "times are longer than nothing and at most a day"),
            (
                self.unanswered_pause <= Self::PAUSE_MAX,
                "the pause behind a packet that nothing answers is at most a second",
            ),
            (self.client_id.as_ref().is_none_or(|id| id.len() <= 128), "a client's id has at most 128 bytes"),
        ];
        rules.into_iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, why)| Err(ConfigError(why)))
    }

    /// Reports whether the session is to go on when the client's address changes.
    pub(super) fn wants_moves(&self) -> bool {
        self.moves && self.carrier == Carrier::Datagrams && self.checksum == ChecksumKind::Crc32c
    }

    /// Bytes of a datagram that has room for a packet of data behind a client's ACK.
    pub(super) fn datagram(packet_max: usize) -> usize {
        Carrier::DATAGRAM.max(packet_max + 2 * HEAD_BYTES + Self::ACK_PAYLOAD_MAX)
    }
}
