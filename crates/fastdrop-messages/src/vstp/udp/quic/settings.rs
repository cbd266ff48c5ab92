//! The settings of QUIC, and its words for what went wrong.

use crate::inner::{Inner, VSTP_DATAGRAMS};
use crate::tls::{ClientTls, ServerTls, TlsError};
use noq::congestion::{Controller, ControllerFactory, ControllerMetrics};
use noq::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use noq::{ConnectionError, IdleTimeout, TransportConfig, ValidationTokenConfig, VarInt};
use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The bytes of a packet, from the beginning: the datagrams of VSTP fit inside.
const PACKET: u16 = 1280;
/// The silence after which a connection is over, in milliseconds; clients say something before.
const IDLE_MAX_MS: u32 = 60_000;
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Bytes of datagrams that wait, of one connection and in each direction; more are lost. A client
/// has few connections, a server as many as there are peers.
const CLIENT_BUFFER: usize = 2 << 20;
const SERVER_BUFFER: usize = 256 << 10;
/// Clients that have come and that were not looked at, and bytes that each may have said.
const INCOMING_MAX: usize = 1024;
const INCOMING_BYTES: u64 = 16 << 10;

/// Lets everything leave at once: VSTP has a controller of its own, which paces. A peer that does
/// not acknowledge is sent no more, as each packet is remembered until it is acknowledged or lost.
#[derive(Debug, Clone, Default)]
struct Open {
    /// The numbers of the newest packet that left, and of the newest that was acknowledged.
    sent: u64,
    acknowledged: u64,
}

impl Open {
    /// So large that nothing is paced either.
    const WINDOW: u64 = 1 << 40;
    /// Packets beyond the newest one that was acknowledged; VSTP has fewer on their way.
    const UNACKNOWLEDGED_MAX: u64 = 16_384;
}

impl Controller for Open {
    fn on_congestion_event(&mut self, _: Instant, _: Instant, _: bool, _: bool, _: u64, _: u64) {}

    fn on_mtu_update(&mut self, _: u16) {}

    fn on_packet_sent(&mut self, _: Instant, _: u16, number: u64) {
        self.sent = self.sent.max(number);
    }

    fn on_end_acks(&mut self, _: Instant, _: u64, _: bool, newest: Option<u64>) {
        self.acknowledged = self.acknowledged.max(newest.unwrap_or_default());
    }

    fn window(&self) -> u64 {
        let is_open = self.sent - self.acknowledged.min(self.sent) < Self::UNACKNOWLEDGED_MAX;
        // None is no window.
        if is_open { Self::WINDOW } else { 1 }
    }

    /// With the whole window, so that nothing is paced.
    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = ControllerMetrics::default();
        metrics.congestion_window = Self::WINDOW;
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        Self::WINDOW
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

impl ControllerFactory for Open {
    fn build(self: Arc<Self>, _: Instant, _: u16) -> Box<dyn Controller> {
        Box::new(Self::default())
    }
}

fn transport(keep_alive: Option<Duration>, buffer: usize) -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport
        .initial_mtu(PACKET)
        .min_mtu(PACKET)
        .mtu_discovery_config(None)
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MAX_MS))))
        .keep_alive_interval(keep_alive)
        .datagram_receive_buffer_size(Some(buffer))
        .datagram_send_buffer_size(buffer)
        .allow_spin(false)
        .congestion_controller_factory(Arc::new(Open::default()));
    Arc::new(transport)
}

fn no_suite(error: NoInitialCipherSuite) -> TlsError {
    TlsError::Failed(error.to_string())
}

/// For one that speaks first. Nothing is said before the handshake is done (no 0-RTT).
pub(super) fn client(tls: &ClientTls) -> Result<noq::ClientConfig, TlsError> {
    let mut tls = (*tls.config(Inner::Vstp)?).clone();
    tls.alpn_protocols = vec![VSTP_DATAGRAMS.to_vec()];
    tls.enable_early_data = false;
    let mut config = noq::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).map_err(no_suite)?));
    config.transport_config(transport(Some(KEEP_ALIVE), CLIENT_BUFFER));
    Ok(config)
}

/// For one that is spoken to.
pub(super) fn server(tls: &ServerTls) -> Result<noq::ServerConfig, TlsError> {
    let mut tls = (*tls.config(&[Inner::Vstp])?).clone();
    tls.alpn_protocols = vec![VSTP_DATAGRAMS.to_vec()];
    tls.max_early_data_size = 0;
    let crypto = Arc::new(QuicServerConfig::try_from(tls).map_err(no_suite)?);
    let mut config = noq::ServerConfig::with_crypto(crypto);
    let mut tokens = ValidationTokenConfig::default();
    tokens.sent(0);
    config
        .transport_config(transport(None, SERVER_BUFFER))
        .validation_token_config(tokens)
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(INCOMING_BYTES * INCOMING_MAX as u64);
    Ok(config)
}

/// The words for a connection that has ended, or never was.
pub(super) fn error_of(error: ConnectionError) -> TlsError {
    /// The first of the codes that carry alerts of TLS.
    const ALERTS: u64 = 0x100;
    match &error {
        ConnectionError::TimedOut => TlsError::Timeout,
        ConnectionError::TransportError(failed) => {
            let tls = failed.crypto.as_ref().and_then(|tls| tls.downcast_ref::<rustls::Error>());
            tls.map_or_else(|| TlsError::Failed(error.to_string()), TlsError::of)
        }
        ConnectionError::ConnectionClosed(close) => {
            let alert = u64::from(close.error_code).checked_sub(ALERTS).and_then(|n| u8::try_from(n).ok());
            let alert = alert.map(|alert| rustls::Error::AlertReceived(alert.into()));
            alert.map_or_else(|| TlsError::Failed(error.to_string()), |alert| TlsError::of(&alert))
        }
        _ => TlsError::Failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_does_not_acknowledge_is_sent_no_more() {
        let (mut open, now) = (Open::default(), Instant::now());
        let is_open = |open: &Open| open.window() > 1 << 20;
        for number in 0..Open::UNACKNOWLEDGED_MAX {
            assert!(is_open(&open), "{number}");
            open.on_packet_sent(now, 1_200, number);
        }
        open.on_packet_sent(now, 1_200, Open::UNACKNOWLEDGED_MAX);
        assert!(!is_open(&open));
        // Neither does it go on for an old packet, nor on another path.
        open.on_end_acks(now, 0, false, Some(0));
        assert!(!is_open(&open) && open.clone_box().window() == open.window());
        open.on_end_acks(now, 0, false, Some(Open::UNACKNOWLEDGED_MAX));
        assert!(is_open(&open));
        assert_eq!(open.metrics().congestion_window, Open::WINDOW);
    }
}
