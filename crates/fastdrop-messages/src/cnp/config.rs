//! The settings that both ends have alike.

use fastdrop_proto::cnp::{Carrier, ConfigError, MessageLimits, SessionConfig};
use std::time::Duration;

/// The settings of a session, for a client and a server alike. At a server they are the most that
/// it agrees to. What is not set has the default of its end and transport.
///
/// ```
/// use fastdrop_messages::cnp::{Client, Config};
/// use std::time::Duration;
///
/// let config = Config::default().keep_alive(Some(Duration::from_secs(5))).window(1024);
/// let client = Client::builder().config(config);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    packet_max: Option<usize>,
    window: Option<u16>,
    limits: Option<MessageLimits>,
    keep_alive: Option<Duration>,
    handshake_timeout: Duration,
    packet_timeout: Duration,
    gone_after: Duration,
    unanswered_pause: Duration,
    timeouts_max: u32,
    calls: Option<u16>,
}

impl Default for Config {
    fn default() -> Self {
        let default = SessionConfig::client(Carrier::Stream);
        Self {
            packet_max: None,
            window: None,
            limits: None,
            keep_alive: default.keep_alive,
            handshake_timeout: default.handshake_timeout,
            packet_timeout: default.packet_timeout,
            gone_after: default.gone_after,
            unanswered_pause: default.unanswered_pause,
            timeouts_max: default.timeouts_max,
            calls: default.calls,
        }
    }
}

impl Config {
    /// Bytes of a packet's payload. Default 64 KiB, by UDP 1,024; at most 16 MiB, by UDP 65,000. At
    /// a server of both transports it is meant for TCP, and bounds UDP's default.
    pub fn packet_max(mut self, bytes: usize) -> Self {
        self.packet_max = Some(bytes);
        self
    }

    /// Packets that may be unacknowledged in burst mode, from 1 to 32,767. Default 256 for a
    /// client, 32,767 for a server; bytes are bounded by the limits.
    pub fn window(mut self, packets: u16) -> Self {
        self.window = Some(packets);
        self
    }

    /// Bounds in bytes of what is kept for a session. Default: 16 MiB for a message that comes, 4
    /// MiB to be received and to be sent; at a client that has room for a whole window to be sent,
    /// but at least 4 and at most 64 MiB.
    pub fn limits(mut self, limits: MessageLimits) -> Self {
        self.limits = Some(limits);
        self
    }

    /// The time that silence may last, from 100 ms to an hour, with a peer that knows keep-alives;
    /// None for none. Default 15 seconds.
    pub fn keep_alive(mut self, interval: Option<Duration>) -> Self {
        self.keep_alive = interval;
        self
    }

    /// The time for a handshake, at a client with connecting. Default 10 seconds.
    pub fn handshake_timeout(mut self, time: Duration) -> Self {
        self.handshake_timeout = time;
        self
    }

    /// The time that a packet that has begun to come by TCP may pause. Default 30 seconds.
    pub fn packet_timeout(mut self, time: Duration) -> Self {
        self.packet_timeout = time;
        self
    }

    /// The time that the peer may be silent while something waits for it. Default 60 seconds.
    pub fn gone_after(mut self, time: Duration) -> Self {
        self.gone_after = time;
        self
    }

    /// The time between a packet that nothing answers and data behind it, towards a program of the
    /// field that may read both together and take them for one packet. Default 50 ms, at most a
    /// second; 0 where every peer reads packets by their lengths.
    pub fn unanswered_pause(mut self, pause: Duration) -> Self {
        self.unanswered_pause = pause;
        self
    }

    /// The number of timeouts in a row after which the peer is taken for gone. Default 15.
    pub fn timeouts_max(mut self, count: u32) -> Self {
        self.timeouts_max = count;
        self
    }

    /// Calls of the peer that are taken at once, running or waiting: the peer makes no more. None
    /// for no calls in either direction. Default 1,024.
    pub fn calls(mut self, count: Option<u16>) -> Self {
        self.calls = count;
        self
    }

    /// These settings in place of those of `base`.
    fn over(&self, base: SessionConfig) -> SessionConfig {
        SessionConfig {
            packet_max: self.packet_max.unwrap_or(base.packet_max),
            window: self.window.unwrap_or(base.window),
            limits: self.limits.unwrap_or(base.limits),
            keep_alive: self.keep_alive,
            handshake_timeout: self.handshake_timeout,
            packet_timeout: self.packet_timeout,
            gone_after: self.gone_after,
            unanswered_pause: self.unanswered_pause,
            timeouts_max: self.timeouts_max,
            calls: self.calls,
            ..base
        }
    }

    /// The configuration of a client's session.
    pub(super) fn of_client(&self, carrier: Carrier) -> SessionConfig {
        let mut config = self.over(SessionConfig::client(carrier));
        if self.limits.is_none() {
            let window = usize::from(config.window).saturating_mul(config.packet_max);
            config.limits.send_max = window.clamp(4 << 20, 64 << 20);
        }
        config
    }

    /// The configuration of a server's sessions by one transport. `both`: it has both.
    pub(super) fn of_server(&self, carrier: Carrier, both: bool) -> Result<SessionConfig, ConfigError> {
        let default = SessionConfig::server(carrier);
        let packet_max = default.packet_max;
        let mut config = self.over(default);
        if both && carrier == Carrier::Datagrams {
            config.packet_max = config.packet_max.min(packet_max);
        }
        config.check()?;
        Ok(config)
    }
}
