//! Addresses of both families: which of them a socket reaches, and in which form.

use crate::addresses::canonical;
use fastdrop_proto::unreachable::Unreachable;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Mutex, PoisonError};

/// The addresses that a socket can send to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    Ipv4,
    Ipv6,
    Both,
}

impl Reach {
    /// The reach of a socket on this address. `dual`: an IPv6 socket takes IPv4 as well.
    pub(super) fn of(local: SocketAddr, dual: bool) -> Self {
        match local.ip() {
            IpAddr::V4(_) => Self::Ipv4,
            IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => Self::Ipv4,
            IpAddr::V6(ip) if ip.is_unspecified() && dual => Self::Both,
            IpAddr::V6(_) => Self::Ipv6,
        }
    }

    /// # Errors
    ///
    /// The socket cannot send to this address, which is in canonical form.
    pub(crate) fn check(self, to: SocketAddr) -> Result<(), Unreachable> {
        match (self, to) {
            (Self::Ipv4, SocketAddr::V6(_)) => Err(Unreachable::NeedsIpv6),
            (Self::Ipv6, SocketAddr::V4(_)) => Err(Unreachable::NeedsIpv4),
            _ => Ok(()),
        }
    }
}

/// The form in which an IPv6 socket sends to an address.
pub(super) fn for_ipv6(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        v6 => v6,
    }
}

/// The local addresses that a socket on all addresses was asked at.
#[derive(Debug, Default)]
pub(super) struct Locals(Mutex<Vec<(IpAddr, bool)>>);

impl Locals {
    /// Addresses that are remembered. A machine with more asks the system again.
    const REMEMBERED_MAX: usize = 64;

    /// The address that a datagram was sent to, if answers can leave from it: not one of many
    /// machines, nor one that needs a zone, for which the system picks the only one that there is.
    pub(super) fn answering(&self, asked: IpAddr) -> Option<IpAddr> {
        let asked = asked.to_canonical();
        let needs_zone = matches!(asked, IpAddr::V6(ip) if ip.is_unicast_link_local());
        if asked.is_multicast() || asked.is_unspecified() || needs_zone {
            return None;
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let usable = match known.iter().find(|(ip, _)| *ip == asked) {
            Some((_, usable)) => *usable,
            None => {
                let usable = is_own(asked);
                if known.len() >= Self::REMEMBERED_MAX {
                    known.remove(0);
                }
                known.push((asked, usable));
                usable
            }
        };
        usable.then_some(asked)
    }

    /// The system does not send from this address any more.
    pub(super) fn forget(&self, local: IpAddr) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(ip, _)| *ip != local);
    }
}

/// Reports whether an address is this machine's alone. A broadcast address can be bound, but not
/// connected to.
fn is_own(ip: IpAddr) -> bool {
    const DISCARD: u16 = 9;
    UdpSocket::bind((ip, 0)).and_then(|socket| socket.connect((ip, DISCARD))).is_ok()
}

/// The address that a socket for one peer is bound to.
pub(crate) fn any_for(peer: SocketAddr) -> SocketAddr {
    match canonical(peer) {
        SocketAddr::V4(_) => SocketAddr::from(([0, 0, 0, 0], 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn case_129_what_a_socket_reaches_is_known_before_it_sends() {
        let (v4, v6) = (address("192.0.2.1:7"), address("[2001:db8::1]:7"));
        for (local, dual, to_v4, to_v6) in [
            ("0.0.0.0:1", false, true, false),
            ("127.0.0.1:1", true, true, false),
            ("[::]:1", true, true, true),
            ("[::]:1", false, false, true),
            ("[::1]:1", true, false, true),
            ("[::ffff:127.0.0.1]:1", true, true, false),
        ] {
            let reach = Reach::of(address(local), dual);
            assert_eq!((reach.check(v4).is_ok(), reach.check(v6).is_ok()), (to_v4, to_v6), "{local} {dual}");
        }
    }

    #[test]
    fn case_129_an_ipv6_socket_sends_to_mapped_addresses() {
        assert_eq!(for_ipv6(address("127.0.0.1:7")), address("[::ffff:127.0.0.1]:7"));
    }

    #[test]
    fn case_129_answers_leave_from_own_addresses_alone() {
        let locals = Locals::default();
        for (text, own) in [
            ("127.0.0.1", true),
            ("127.0.0.2", true),
            ("::ffff:127.0.0.3", true),
            ("192.0.2.1", false),
            ("255.255.255.255", false),
            ("127.255.255.255", false),
            ("224.0.0.1", false),
            ("ff02::1", false),
            ("::", false),
        ] {
            for _ in 0..2 {
                let answering = locals.answering(text.parse().unwrap());
                let expected = own.then(|| text.parse::<IpAddr>().unwrap().to_canonical());
                assert_eq!(answering, expected, "{text}");
            }
        }
        for last in 0..200 {
            locals.answering(IpAddr::from([127, 0, 1, last]));
        }
        assert_eq!(locals.0.lock().unwrap().len(), Locals::REMEMBERED_MAX);
    }
}
