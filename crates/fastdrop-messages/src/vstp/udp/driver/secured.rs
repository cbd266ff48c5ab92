//! Endpoints whose datagrams are inside connections.

use super::{Handle, Shared, State};
use crate::datagrams::{Path, any_for};
use crate::tls::{ClientTls, ServerTls, TlsError};
use crate::vstp::types::VstpError;
use crate::vstp::udp::carrier::{Arrivals, Carrier};
use crate::vstp::udp::presence::Departure;
use crate::vstp::udp::quic::{Came, Quic};
use fastdrop_proto::vstp::{EndpointConfig, Unreachable};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

impl Handle {
    /// Things that came and are taken before others have their turn.
    const TAKEN: usize = 64;

    /// For one that is spoken to.
    pub(crate) async fn bind_tls(
        addr: &str,
        tls: &ServerTls,
        mut config: EndpointConfig,
    ) -> Result<Self, VstpError> {
        let (quic, came) = Quic::bind(addr, tls, config.peers_max).await?;
        config.connected = true;
        Self::on(Carrier::Secured(Box::new(quic)), Arrivals::of(came), config, None)
    }

    /// For one that speaks first, to this `host:port`. Its addresses are tried one after the other.
    pub(crate) async fn connect_tls(
        addr: &str,
        tls: &ClientTls,
        mut config: EndpointConfig,
    ) -> Result<(Self, SocketAddr), VstpError> {
        let addresses: Vec<_> = tokio::net::lookup_host(addr).await?.collect();
        let first = *addresses.first().ok_or(VstpError::InvalidAddress)?;
        let is_of_one_family = addresses.iter().all(|other| any_for(*other) == any_for(first));
        let any =
            if is_of_one_family { any_for(first) } else { SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)) };
        let dialled = (addr, &*addresses);
        let (quic, came) = match Quic::open(any, dialled, tls).await {
            // A machine without IPv6.
            Err(TlsError::Io(_)) if any.is_ipv6() => {
                Quic::open(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), dialled, tls).await?
            }
            opened => opened?,
        };
        config.connected = true;
        let handle = Self::on(Carrier::Secured(Box::new(quic)), Arrivals::of(came), config, None)?;
        let mut failure = None;
        for address in &addresses {
            match handle.open_connection(*address).await {
                Ok(()) => return Ok((handle, *address)),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        Err(failure.map_or(VstpError::InvalidAddress, VstpError::from))
    }

    async fn open_connection(&self, to: SocketAddr) -> Result<(), TlsError> {
        match &self.shared.carrier {
            Carrier::Plain(_) => Ok(()),
            Carrier::Secured(quic) => quic.connect(to).await,
        }
    }
}

impl Shared {
    /// Takes what came by connections.
    pub(super) fn handle_arrivals(&self, arrivals: &mut Arrivals, first: Came) {
        let Carrier::Secured(quic) = &self.carrier else { return };
        let mut state = self.lock();
        let now = Instant::now();
        let mut next = Some(first);
        for _ in 0..Handle::TAKEN {
            match next.take().or_else(|| arrivals.try_next()) {
                None => break,
                Some(Came::Datagram(number, bytes)) => {
                    if quic.is_current(number) {
                        state.handle_datagram(now, Path { remote: number.0, local: None }, &bytes);
                    }
                }
                Some(Came::Opened(number, connection)) => {
                    // What came before it is told before it.
                    self.pump(&mut state);
                    if quic.on_opened(number, connection) {
                        state.handle_disconnected(now, number.0);
                    }
                }
                Some(Came::Ended(number)) => {
                    self.pump(&mut state);
                    if quic.on_ended(number) {
                        state.handle_disconnected(now, number.0);
                    }
                }
            }
        }
        self.pump(&mut state);
    }
}

impl State {
    /// The peer of an address is gone: nothing that was meant for it goes to another one there.
    fn handle_disconnected(&mut self, now: Instant, from: SocketAddr) {
        self.unsent = self.unsent.take().filter(|unsent| unsent.to != from);
        self.endpoint.handle_disconnected(now, from, Unreachable::Disconnected);
        self.calls.disconnect(from);
        for presence in &mut self.presences {
            presence.on_gone(from, Departure::Unreachable);
        }
    }
}
