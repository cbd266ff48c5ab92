//! IP addresses as people type them: IPv6 in brackets or bare, with the zone that a link-local one
//! needs (RFC 4007, section 11), by name or by number.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::str::FromStr;

/// An IP address without a port, and the network interface that a link-local one belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    ip: IpAddr,
    /// Index of the interface; 0 where the address needs none.
    zone: u32,
}

/// A text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AddressError {
    #[error("not an IP address")]
    NotAnAddress,
    #[error("a zone (%...) belongs to an IPv6 address")]
    ZoneOfIpv4,
    #[error("this machine has no network interface {0:?}")]
    NoInterface(String),
    #[error("a link-local address needs a zone, as in {0}%eth0")]
    NoZone(Ipv6Addr),
}

impl Address {
    /// The same address with a port.
    pub(crate) fn with_port(self, port: u16) -> SocketAddr {
        match self.ip {
            IpAddr::V4(_) => SocketAddr::new(self.ip, port),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, self.zone).into(),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        let zone = match address {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(address) => address.scope_id(),
        };
        Self { ip: address.ip(), zone }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    /// Parses `192.0.2.1`, `::1`, `[::1]`, `fe80::1%eth0` or `[fe80::1%2]`. The zone of an address
    /// that is not link-local must exist and is otherwise ignored, as by other programs.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let bare = text.strip_prefix('[').map_or(Some(text), |rest| rest.strip_suffix(']'));
        let bare = bare.ok_or(AddressError::NotAnAddress)?;
        let (ip, zone) = bare.split_once('%').map_or((bare, None), |(ip, zone)| (ip, Some(zone)));
        let ip: IpAddr = ip.parse().map_err(|_| AddressError::NotAnAddress)?;
        match (ip, zone) {
            (IpAddr::V4(_), None) if bare == text => Ok(Self { ip, zone: 0 }),
            (IpAddr::V4(_), None) => Err(AddressError::NotAnAddress),
            (IpAddr::V4(_), Some(_)) => Err(AddressError::ZoneOfIpv4),
            (IpAddr::V6(v6), None) if v6.is_unicast_link_local() => Err(AddressError::NoZone(v6)),
            (IpAddr::V6(_), None) => Ok(Self { ip, zone: 0 }),
            (IpAddr::V6(v6), Some(zone)) => {
                let index = interface(zone)?;
                Ok(Self { ip, zone: if v6.is_unicast_link_local() { index } else { 0 } })
            }
        }
    }
}

impl fmt::Display for Address {
    /// Writes the zone as a number, without brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.zone {
            0 => write!(f, "{}", self.ip),
            zone => write!(f, "{}%{zone}", self.ip),
        }
    }
}

/// The index of a network interface, which is named or numbered.
fn interface(zone: &str) -> Result<u32, AddressError> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};
    let none = || AddressError::NoInterface(zone.to_owned());
    let any = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    let any = any.map_err(|_| none())?;
    match zone.parse() {
        Ok(index) => netdevice::index_to_name(&any, index).map(|_| index),
        // The system would cut a longer name to one that may exist.
        Err(_) if zone.is_empty() || zone.len() > NAME_MAX => return Err(none()),
        Err(_) => netdevice::name_to_index(&any, zone),
    }
    .map_err(|_| none())
}

/// Bytes of an interface's name: `IFNAMSIZ` without the NUL.
const NAME_MAX: usize = 15;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, AddressError> {
        text.parse::<Address>().map(|address| address.with_port(7).to_string())
    }

    #[test]
    fn an_address_has_a_zone_by_name_or_number_where_it_needs_one() {
        let lo = interface("lo").unwrap();
        for text in ["fe80::1%lo", "[fe80::1%lo]", &format!("fe80::1%{lo}"), &format!("[fe80::1%{lo}]")] {
            assert_eq!(parse(text).unwrap(), format!("[fe80::1%{lo}]:7"), "{text}");
            assert_eq!(text.parse::<Address>().unwrap().to_string(), format!("fe80::1%{lo}"));
        }
        for (text, expected) in [
            ("127.0.0.1", "127.0.0.1:7"),
            ("0.0.0.0", "0.0.0.0:7"),
            ("::", "[::]:7"),
            ("::1", "[::1]:7"),
            ("[::1]", "[::1]:7"),
            ("::1%lo", "[::1]:7"),
            ("::ffff:127.0.0.1", "[::ffff:127.0.0.1]:7"),
        ] {
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn a_zone_that_cannot_be_is_refused_in_words() {
        use AddressError::{NoInterface, NoZone, NotAnAddress, ZoneOfIpv4};
        let none = |zone: &str| NoInterface(zone.to_owned());
        for (text, expected) in [
            ("fe80::1%no-such-if", none("no-such-if")),
            ("fe80::1%", none("")),
            ("fe80::1%0", none("0")),
            ("fe80::1%4000000000", none("4000000000")),
            ("fe80::1%99999999999", none("99999999999")),
            ("fe80::1%lo%lo", none("lo%lo")),
            ("fe80::1%a-name-that-is-too-long", none("a-name-that-is-too-long")),
            ("::1%no-such-if", none("no-such-if")),
            ("fe80::1", NoZone("fe80::1".parse().unwrap())),
            ("[fe80::1]", NoZone("fe80::1".parse().unwrap())),
            ("127.0.0.1%lo", ZoneOfIpv4),
            ("[127.0.0.1]", NotAnAddress),
            ("[::1", NotAnAddress),
            ("::1]", NotAnAddress),
            ("[::1]%lo", NotAnAddress),
            ("%lo", NotAnAddress),
            ("localhost", NotAnAddress),
            ("", NotAnAddress),
        ] {
            assert_eq!(parse(text), Err(expected), "{text}");
        }
    }
}
