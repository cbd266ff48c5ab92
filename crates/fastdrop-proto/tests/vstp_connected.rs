//! Endpoints whose datagrams travel inside connections, which have proved the addresses.

use bytes::Bytes;
use fastdrop_proto::vstp::{
    Endpoint, EndpointConfig, Failure, FrameBytes, FrameType, HeadersBuf, Unreachable,
};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

fn endpoint(connected: bool, seed: u8) -> Endpoint {
    Endpoint::new(EndpointConfig { connected, ..EndpointConfig::default() }, [seed; 16])
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], port))
}

fn frame(len: usize) -> FrameBytes {
    FrameBytes::new(FrameType::Data, HeadersBuf::default(), Bytes::from(vec![7; len]))
}

/// The datagrams that leave now.
fn leaving(endpoint: &mut Endpoint, now: Instant) -> Vec<Vec<u8>> {
    let (mut all, mut out) = (Vec::new(), Vec::new());
    while let Some(transmit) = endpoint.poll_transmit(now, 1, &mut out) {
        assert_eq!(transmit.datagram, out.len());
        all.push(out.clone());
    }
    all
}

#[test]
fn no_datagram_is_larger_than_those_that_fit_from_the_beginning() {
    for (connected, largest) in [(true, 1200), (false, 32_000)] {
        let (mut here, mut there) = (endpoint(connected, 1), endpoint(connected, 2));
        let mut now = Instant::now();
        here.send(now, address(2), frame(5_000_000), true);
        let mut sizes = Vec::new();
        let received = loop {
            for datagram in leaving(&mut here, now) {
                sizes.push(datagram.len());
                there.handle_datagram(now, address(1), &datagram);
            }
            for datagram in leaving(&mut there, now) {
                here.handle_datagram(now, address(2), &datagram);
            }
            if let Some((_, frame, _)) = there.poll_received() {
                break frame;
            }
            now += Duration::from_millis(1);
            here.handle_timeout(now);
            there.handle_timeout(now);
        };
        assert_eq!(received.payload.len(), 5_000_000);
        assert_eq!(sizes.into_iter().max(), Some(largest));
    }
}

#[test]
fn whoever_is_heard_is_known_and_sent_what_there_is() {
    let now = Instant::now();
    for (connected, answers) in [(true, 20), (false, 3)] {
        let (mut here, mut there) = (endpoint(connected, 1), endpoint(connected, 2));
        here.send(now, address(2), frame(1000), false);
        for datagram in leaving(&mut here, now) {
            there.handle_datagram(now, address(1), &datagram);
        }
        for _ in 0..20 {
            there.send(now, address(1), frame(1000), false);
        }
        let sent = leaving(&mut there, now).iter().filter(|datagram| datagram.len() > 1000).count();
        assert!(if connected { sent > 3 } else { sent <= answers }, "{connected}: {sent} left");
    }
}

#[test]
fn what_is_under_way_fails_with_its_connection_and_numbers_begin_anew() {
    let now = Instant::now();
    let (mut here, mut there) = (endpoint(true, 1), endpoint(true, 2));
    let small = here.send(now, address(2), frame(10), true);
    let large = here.send(now, address(2), frame(100_000), true);
    let word = leaving(&mut here, now);
    here.handle_disconnected(now, address(2), Unreachable::Disconnected);
    let mut failed: Vec<_> = std::iter::from_fn(|| here.poll_outcome()).collect();
    failed.sort_by_key(|(send, _)| *send != small);
    let expected = Err(Failure::Unreachable(Unreachable::Disconnected));
    assert_eq!(failed, [(small, expected.clone()), (large, expected)]);
    assert!(here.is_idle() && leaving(&mut here, now).is_empty(), "nothing goes to the next one there");
    // Another peer at the address of one that is gone may use its numbers.
    for _ in 0..2 {
        for datagram in &word {
            there.handle_datagram(now, address(1), datagram);
        }
        assert_eq!(there.poll_received().map(|(_, frame, _)| frame.payload.len()), Some(10));
        assert!(there.poll_received().is_none());
        there.handle_disconnected(now, address(1), Unreachable::Disconnected);
    }
}
