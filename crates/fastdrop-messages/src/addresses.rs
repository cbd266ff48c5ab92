//! The form in which addresses are known.

use std::net::{SocketAddr, SocketAddrV6};

/// The one form in which an address is known: IPv4 where it is IPv4 mapped into IPv6, without what
/// does not tell addresses from each other.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    let SocketAddr::V6(v6) = address else { return address };
    let (ip, port) = (*v6.ip(), v6.port());
    match ip.to_ipv4_mapped() {
        Some(ip) => (ip, port).into(),
        None => {
            let needs_zone = ip.is_unicast_link_local() || ip.is_multicast();
            SocketAddrV6::new(ip, port, 0, if needs_zone { v6.scope_id() } else { 0 }).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv6Addr;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn case_129_an_address_has_one_form() {
        for (text, expected) in [
            ("127.0.0.1:7", "127.0.0.1:7"),
            ("[::ffff:127.0.0.1]:7", "127.0.0.1:7"),
            ("[::1]:7", "[::1]:7"),
            ("[::1%3]:7", "[::1]:7"),
            ("[fe80::1%3]:7", "[fe80::1%3]:7"),
            ("[ff02::1%3]:7", "[ff02::1%3]:7"),
        ] {
            assert_eq!(canonical(address(text)).to_string(), expected, "{text}");
        }
        let flow = SocketAddr::from(SocketAddrV6::new(Ipv6Addr::LOCALHOST, 7, 99, 0));
        assert_eq!(canonical(flow), address("[::1]:7"));
    }
}
