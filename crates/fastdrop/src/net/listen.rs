//! Listening sockets.

use crate::net::tuning::prepare_socket;
use std::net::{Ipv6Addr, SocketAddr, TcpListener};

/// Ports that are tried before none is found that is free on all addresses.
const ATTEMPTS: usize = 64;

/// Listens on every address. Those with port 0 share one port, which is free on all of them.
pub(crate) fn listen(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, (SocketAddr, std::io::Error)> {
    // Linux takes an IPv4 address and a socket of both families on one port for the same.
    let v4_too = !addresses.iter().any(SocketAddr::is_ipv4);
    on_one_port(addresses, |address| {
        let listener = listen_on(address, v4_too)?;
        Ok((listener.local_addr()?.port(), listener))
    })
}

/// Opens something on every address with `open`, which returns the port that it has.
/// The first port that is picked is that of all addresses with port 0; if another one
/// has it already, the next is picked.
fn on_one_port<T>(
    addresses: &[SocketAddr],
    mut open: impl FnMut(SocketAddr) -> std::io::Result<(u16, T)>,
) -> Result<Vec<T>, (SocketAddr, std::io::Error)> {
    // What was opened in vain stays open meanwhile, so that its port is not picked again.
    let mut in_vain = Vec::new();
    loop {
        let mut picked = None;
        let mut opened = Vec::new();
        let mut refused = None;
        for &address in addresses {
            let mut wanted = address;
            if address.port() == 0 {
                wanted.set_port(picked.unwrap_or(0));
            }
            match open(wanted) {
                Ok((port, one)) => {
                    if address.port() == 0 {
                        picked = Some(port);
                    }
                    opened.push(one);
                }
                Err(error) => {
                    refused = Some((wanted, error));
                    break;
                }
            }
        }
        let Some((address, error)) = refused else { return Ok(opened) };
        let taken = error.kind() == std::io::ErrorKind::AddrInUse && picked == Some(address.port());
        if !taken || in_vain.len() >= ATTEMPTS {
            return Err((address, error));
        }
        in_vain.push(opened);
    }
}

fn listen_on(address: SocketAddr, v4_too: bool) -> std::io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    prepare_socket(&socket, address.ip());
    if let SocketAddr::V6(v6) = address {
        let both = v6.ip() == &Ipv6Addr::UNSPECIFIED && v4_too;
        socket.set_only_v6(!both && v6.ip().to_ipv4_mapped().is_none())?;
    }
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// An address as IPv4 where a socket of both families shows it as IPv6: one peer
/// is one, whichever socket it came to.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(v4.into(), v6.port()),
            None => address,
        },
        SocketAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::io::{Error, ErrorKind};

    /// Ports of two addresses, where the ones that are picked come in this
    /// order and some are taken on the second.
    fn ports(asked: [u16; 2], picks: &[u16], taken: &[u16]) -> Result<Vec<u16>, ErrorKind> {
        let mut picks = VecDeque::from(picks.to_vec());
        let addresses = [([127, 0, 0, 1], asked[0]), ([127, 0, 0, 2], asked[1])].map(SocketAddr::from);
        let open = |address: SocketAddr| {
            let port = match address.port() {
                0 => picks.pop_front().ok_or(Error::from(ErrorKind::Other))?,
                port => port,
            };
            let second = address.ip() == addresses[1].ip();
            if second && taken.contains(&port) { Err(ErrorKind::AddrInUse.into()) } else { Ok((port, port)) }
        };
        on_one_port(&addresses, open).map_err(|(_, error)| error.kind())
    }

    #[test]
    fn addresses_without_a_port_share_one_that_is_free_on_all() {
        assert_eq!(ports([0, 0], &[5], &[]), Ok(vec![5, 5]));
        assert_eq!(ports([0, 0], &[5, 6, 7], &[5, 6]), Ok(vec![7, 7]));
        // A port that was asked for is that one or none.
        assert_eq!(ports([7, 7], &[], &[7]), Err(ErrorKind::AddrInUse));
        assert_eq!(ports([0, 7], &[5], &[]), Ok(vec![5, 7]));
        assert_eq!(ports([0, 7], &[5, 6], &[7]), Err(ErrorKind::AddrInUse));
        // There may be none.
        let all: Vec<u16> = (1..1000).collect();
        assert_eq!(ports([0, 0], &all, &all), Err(ErrorKind::AddrInUse));
    }

    #[test]
    fn a_real_port_is_shared_and_freed_again() {
        for addresses in [["127.0.0.1:0", "127.0.0.2:0"], ["[::]:0", "0.0.0.0:0"], ["[::1]:0", "127.0.0.1:0"]]
        {
            let addresses = addresses.map(|address| address.parse().unwrap());
            let listeners = listen(&addresses).unwrap();
            let ports: Vec<_> = listeners.iter().map(|one| one.local_addr().unwrap().port()).collect();
            assert_eq!(ports[0], ports[1]);
        }
    }

    #[test]
    fn both_families_come_to_the_unspecified_address_of_ipv6() {
        let listeners = listen(&["[::]:0".parse().unwrap()]).unwrap();
        let port = listeners[0].local_addr().unwrap().port();
        listeners[0].set_nonblocking(false).unwrap();
        for host in ["127.0.0.1", "::1"] {
            let _client = std::net::TcpStream::connect((host, port)).unwrap();
            let (_, peer) = listeners[0].accept().unwrap();
            assert_eq!(canonical(peer).ip().to_string(), host);
        }
    }
}
