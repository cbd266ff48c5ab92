//! Tuning of TCP sockets by the path that they are on.

use rustix::net::sockopt;
use std::net::{IpAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

/// Below this round trip the path is a local one.
const LOCAL_RTT: Duration = Duration::from_millis(5);

/// On a local path CUBIC costs a fraction of BBR's CPU.
const SHORT_PATH_CONGESTION: &str = "cubic";
/// On a long path BBR goes on through losses.
const LONG_PATH_CONGESTION: &str = "bbr";

/// Socket buffers on the shortest paths, in bytes: what is under way stays in the processor's
/// caches between sender and receiver.
const SMALL_BUFFER: usize = 256 << 10;
/// Below this round trip small buffers carry 512 MB/s a stream and more;
/// above it they would be what limits.
pub(crate) const SMALL_BUFFER_RTT: Duration = Duration::from_micros(500);

/// Silence after which the kernel asks whether the peer is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(20);
/// The time between two such questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Questions without an answer after which the connection is lost.
const KEEPALIVE_PROBES: u32 = 4;

/// Readies a socket that will connect to `address`, or listen on
/// it: what is accepted inherits this.
///
/// A connection that begins with BBR is paced by the kernel for good, also after it was told to
/// use another algorithm, and on a loopback path its timers cost a tenth of the time. Long paths
/// begin with what the system prefers.
pub(crate) fn prepare_socket(socket: &impl AsFd, address: IpAddr) {
    if address.to_canonical().is_loopback() {
        // It only helps; where the kernel refuses it, the bytes move all the same.
        let _ = rustix::net::sockopt::set_tcp_congestion(socket, SHORT_PATH_CONGESTION);
    }
}

/// Has the kernel reset a connection when its last descriptor
/// goes, or end it in good order as usual.
///
/// In a protocol that has no words, an end in good order is its only sign of success. So whatever
/// ends such a connection before that, a process that dies among them, has to reset it.
pub(crate) fn reset_on_close(socket: &impl AsFd, reset: bool) {
    // Only what is no socket would refuse.
    let _ = socket2::SockRef::from(socket).set_linger(reset.then_some(Duration::ZERO));
}

/// Sets the options that file streams want on a connected socket; `rtt` is the round trip of its
/// path.
pub(super) fn tune(socket: &TcpStream, rtt: Duration) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    // What follows only helps; a kernel that refuses it moves the bytes all the same.
    let algorithm = if rtt < LOCAL_RTT { SHORT_PATH_CONGESTION } else { LONG_PATH_CONGESTION };
    let _ = sockopt::set_tcp_congestion(socket, algorithm);
    if rtt < SMALL_BUFFER_RTT {
        let _ = sockopt::set_socket_send_buffer_size(socket, SMALL_BUFFER);
        let _ = sockopt::set_socket_recv_buffer_size(socket, SMALL_BUFFER);
    }
    let _ = sockopt::set_socket_keepalive(socket, true);
    let _ = sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE);
    let _ = sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL);
    let _ = sockopt::set_tcp_keepcnt(socket, KEEPALIVE_PROBES);
    Ok(())
}
