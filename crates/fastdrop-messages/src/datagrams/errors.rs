//! Words of the operating system about datagrams that did not arrive.

use crate::addresses::canonical;
use fastdrop_proto::unreachable::Unreachable;
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

/// An error that came for a datagram: where that was sent to, and what it means for the address.
pub(super) type Told = (Option<SocketAddr>, Option<Unreachable>);

/// Takes the next error of a socket that keeps them; None if there is none.
pub(super) fn next(socket: &impl AsRawFd) -> io::Result<Option<Told>> {
    /// Room for the error and all that a socket says about a datagram otherwise.
    const CONTROL_BYTES: usize = 512;
    let mut first = [0; 1];
    let mut parts = [IoSliceMut::new(&mut first)];
    let mut control = cmsg_space!([u8; CONTROL_BYTES]);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = match recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)
    {
        Ok(message) => message,
        Err(Errno::EAGAIN) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let to = message.address.as_ref().and_then(address_of).map(canonical);
    let error = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _) => {
            i32::try_from(error.ee_errno).ok()
        }
        _ => None,
    });
    Ok(Some((to, error.and_then(|errno| meaning(&io::Error::from_raw_os_error(errno))))))
}

fn address_of(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|v4| std::net::SocketAddrV4::from(*v4).into());
    v4.or_else(|| storage.as_sockaddr_in6().map(|v6| std::net::SocketAddrV6::from(*v6).into()))
}

/// The meaning of an error for the address that was sent to; None for what may be otherwise the
/// next time: a datagram that is too large, a firewall that drops at random, no memory.
pub(super) fn meaning(error: &io::Error) -> Option<Unreachable> {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Some(Unreachable::Refused),
        io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown
        | io::ErrorKind::AddrNotAvailable
        // From an address of the loopback interface to one beyond, say.
        | io::ErrorKind::InvalidInput => Some(Unreachable::NoRoute),
        io::ErrorKind::PermissionDenied if error.raw_os_error() == Some(Errno::EACCES as i32) => {
            Some(Unreachable::Forbidden)
        }
        _ => None,
    }
}

/// Reports whether what was told instead of a datagram leaves the socket as good as ever. That is
/// so of all that the system says but that there is no such socket: the rest is about a datagram
/// that was sent before, and anybody who forges what routers say decides which error it is.
pub(crate) fn is_about_another(error: &io::Error) -> bool {
    const ENDS: [Errno; 2] = [Errno::EBADF, Errno::ENOTSOCK];
    error.raw_os_error().is_some_and(|errno| !ENDS.contains(&Errno::from_raw(errno)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Errors that Linux makes of the codes of ICMP and ICMPv6, and more.
    #[test]
    fn no_error_that_a_router_can_cause_ends_a_socket() {
        for errno in [
            Errno::ENETUNREACH,
            Errno::EHOSTUNREACH,
            Errno::ENOPROTOOPT,
            Errno::ECONNREFUSED,
            Errno::EMSGSIZE,
            Errno::EOPNOTSUPP,
            Errno::EHOSTDOWN,
            Errno::ENONET,
            Errno::EACCES,
            Errno::EPROTO,
            Errno::EPERM,
            Errno::ENOMEM,
            Errno::ENOBUFS,
        ] {
            assert!(is_about_another(&errno.into()), "{errno}");
        }
        for errno in [Errno::EBADF, Errno::ENOTSOCK] {
            assert!(!is_about_another(&errno.into()), "{errno}");
        }
        assert!(!is_about_another(&io::Error::other("the runtime ends")));
    }
}
