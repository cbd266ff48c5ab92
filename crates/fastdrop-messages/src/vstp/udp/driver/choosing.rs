//! The choice among the addresses of a name, and what is known of one.

use super::Handle;
use crate::addresses::canonical;
use crate::datagrams::any_for;
use crate::vstp::types::VstpError;
use fastdrop_proto::vstp::{EndpointConfig, Failure, Unreachable};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

impl Handle {
    /// Opens a socket for one of these addresses: the first that answers, or else the first of
    /// which is not known that nobody is there.
    pub(crate) async fn connect(
        addresses: &[SocketAddr],
        config: EndpointConfig,
    ) -> Result<(Self, SocketAddr), VstpError> {
        let first = *addresses.first().ok_or(VstpError::InvalidAddress)?;
        let is_of_one_family = addresses.iter().all(|other| any_for(*other) == any_for(first));
        let any =
            if is_of_one_family { any_for(first) } else { SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)) };
        let handle = match Self::open(any, config.clone()).await {
            // A machine without IPv6.
            Err(_) if any.is_ipv6() => {
                Self::open(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), config).await?
            }
            handle => handle?,
        };
        let address = handle.choose(addresses).await?;
        Ok((handle, address))
    }

    async fn choose(&self, addresses: &[SocketAddr]) -> Result<SocketAddr, Failure> {
        let wrong = |address: &SocketAddr| self.shared.carrier.check(canonical(*address)).err();
        let unreachable = |address: &SocketAddr| wrong(address).or_else(|| self.unreachable(*address));
        let until = Instant::now() + Self::ANSWER_TIME;
        let possible: Vec<_> = addresses.iter().filter(|address| wrong(address).is_none()).collect();
        if possible.len() > 1 {
            possible.iter().for_each(|address| self.ping(**address));
        }
        loop {
            if let Some(answers) = possible.iter().find(|address| self.path(***address).pongs > 0) {
                return Ok(**answers);
            }
            let mut open = addresses.iter().filter(|address| unreachable(address).is_none());
            match (open.next(), open.next()) {
                (None, _) => {
                    let reason = addresses.first().and_then(unreachable).unwrap_or(Unreachable::NoRoute);
                    return Err(reason.into());
                }
                (Some(only), None) => return Ok(*only),
                (Some(first), _) if Instant::now() >= until => return Ok(*first),
                _ => tokio::time::sleep(Self::LOOK).await,
            }
        }
    }

    /// The reason for which nothing has reached an address since it was last heard.
    pub(crate) fn unreachable(&self, to: SocketAddr) -> Option<Unreachable> {
        self.shared.lock().endpoint.unreachable(canonical(to))
    }

    /// Waits for what the system says about datagrams that have just left.
    pub(crate) async fn refused_within(&self, to: SocketAddr, time: Duration) -> Option<Unreachable> {
        let until = Instant::now().checked_add(time);
        loop {
            match self.unreachable(to) {
                None if until.is_none_or(|until| Instant::now() < until) => {
                    tokio::time::sleep(Self::LOOK).await
                }
                reason => return reason,
            }
        }
    }
}
