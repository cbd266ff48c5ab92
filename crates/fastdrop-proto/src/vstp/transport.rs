//! TCP or UDP, message by message (docs/protocol/vstp.md, section 8).

use std::time::Duration;

/// A way for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// In order, every byte, one connection.
    Tcp,
    /// Datagrams.
    Udp,
}

/// What is known of the way by UDP.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct UdpPath {
    /// PINGs that were sent, of the last ones.
    pub pings: u32,
    /// How many of them were answered.
    pub pongs: u32,
    /// The smoothed round-trip time; None before the first answer.
    pub rtt: Option<Duration>,
}

impl UdpPath {
    /// Whether datagrams come through, and nearly all of them.
    pub fn is_good(&self) -> bool {
        self.pongs > 0 && self.pings.saturating_sub(self.pongs) * 10 <= self.pings
    }
}

/// The largest frame that goes as one datagram.
pub const DATAGRAM_MAX: usize = 1200;

/// The one place that decides: UDP for what fits one datagram and wants no acknowledgement, where
/// datagrams have been seen to come through; TCP for the rest.
///
/// A small frame by UDP never waits behind a large one. What wants an acknowledgement gains nothing
/// from UDP: TCP repeats sooner. What is large would be cut, and the kernel's TCP costs less.
pub fn choose(frame_len: usize, acknowledged: bool, path: UdpPath) -> Transport {
    if frame_len <= DATAGRAM_MAX && !acknowledged && path.is_good() { Transport::Udp } else { Transport::Tcp }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_small_frames_without_acknowledgement_take_a_good_path() {
        let good = UdpPath { pings: 10, pongs: 9, rtt: None };
        let bad = UdpPath { pings: 10, pongs: 8, rtt: None };
        for (len, acknowledged, path, expected) in [
            (1200, false, good, Transport::Udp),
            (1201, false, good, Transport::Tcp),
            (100, true, good, Transport::Tcp),
            (100, false, bad, Transport::Tcp),
            (100, false, UdpPath::default(), Transport::Tcp),
        ] {
            assert_eq!(choose(len, acknowledged, path), expected, "{len} {acknowledged} {path:?}");
        }
    }
}
