//! Addresses that datagrams do not reach.

/// The reason for which no datagram reaches an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unreachable {
    /// The machine is there, and says that the port is closed.
    #[error("nobody listens at that address and port by UDP")]
    Refused,
    /// No route leads there, or a router on the way says so.
    #[error("no route leads to that address from this socket")]
    NoRoute,
    /// The operating system forbids it, as a broadcast or behind a firewall.
    #[error("the operating system does not allow datagrams to that address")]
    Forbidden,
    /// An IPv4 socket and an IPv6 address.
    #[error("a socket on an IPv4 address reaches no IPv6 address; one on [::] reaches both")]
    NeedsIpv6,
    /// An IPv6 socket on one address, and an IPv4 address.
    #[error("a socket on an IPv6 address reaches no IPv4 address; one on [::] reaches both")]
    NeedsIpv4,
    /// The connection to it, inside which datagrams travel, has ended or was not to be had.
    #[error("there is no secured connection to that address, or it has ended")]
    Disconnected,
}
