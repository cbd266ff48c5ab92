//! Addresses that no datagram reaches, and local addresses that answers leave from.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use fastdrop_proto::vstp::{
    Endpoint, EndpointConfig, Event, Failure, FrameBytes, FrameType, HeadersBuf, Unreachable,
};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

fn peer(last: u8) -> SocketAddr {
    (Ipv4Addr::new(192, 0, 2, last), 6969).into()
}

fn frame(len: usize) -> FrameBytes {
    FrameBytes::new(FrameType::Data, HeadersBuf::default(), vec![7; len].into())
}

fn encoded(frame: &FrameBytes) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.as_ref().encode(&mut bytes).unwrap();
    bytes
}

/// Everything that the endpoint sends now, and the outcomes that it tells.
fn drain(endpoint: &mut Endpoint, now: Instant) -> (Vec<(SocketAddr, Option<IpAddr>)>, Vec<Event>) {
    let (mut out, mut sent) = (Vec::new(), Vec::new());
    while let Some(transmit) = endpoint.poll_transmit(now, 1, &mut out) {
        sent.push((transmit.to, transmit.from));
    }
    (sent, std::iter::from_fn(|| endpoint.poll_event()).collect())
}

fn failures(events: Vec<Event>) -> Vec<Failure> {
    let failed = |event| match event {
        Event::Outcome { result: Err(failure), .. } => Some(failure),
        _ => None,
    };
    events.into_iter().filter_map(failed).collect()
}

/// Case 129: small and large, with and without acknowledgement, held back or under way; what goes
/// to others goes on.
#[test]
fn case_129_all_that_goes_to_an_address_that_refuses_fails_at_once_and_nothing_else_does() {
    let now = Instant::now();
    let mut endpoint = Endpoint::new(EndpointConfig::default(), [7; 16]);
    for (len, acknowledged, count) in [(10, true, 5000), (100_000, true, 3), (100_000, false, 3)] {
        for _ in 0..count {
            endpoint.send(now, peer(1), frame(len), acknowledged);
        }
    }
    endpoint.send(now, peer(2), frame(10), true);
    let (_, events) = drain(&mut endpoint, now);
    assert_eq!(failures(events), []);
    endpoint.handle_unreachable(now, peer(1), Unreachable::Refused);
    let (sent, events) = drain(&mut endpoint, now);
    assert_eq!(sent, []);
    let failures = failures(events);
    assert_eq!(failures.len(), 5006);
    assert!(failures.iter().all(|failure| *failure == Failure::Unreachable(Unreachable::Refused)));
    assert!(!endpoint.is_idle(), "the other address still waits for its acknowledgement");
    endpoint.handle_unreachable(now, peer(9), Unreachable::Refused);
}

#[test]
fn case_129_an_address_that_was_heard_has_a_second_to_start_again() {
    let at = Instant::now();
    let ms = Duration::from_millis;
    let mut endpoint = Endpoint::new(EndpointConfig::default(), [7; 16]);
    let word = encoded(&frame(1));
    endpoint.handle_datagram(at, peer(1), &word);
    endpoint.send(at, peer(1), frame(10), true);
    drain(&mut endpoint, at);
    let refuse = |endpoint: &mut Endpoint, now, reason| {
        endpoint.handle_unreachable(now, peer(1), reason);
        failures(drain(endpoint, now).1).len()
    };
    assert_eq!(refuse(&mut endpoint, at, Unreachable::Refused), 0);
    assert_eq!(refuse(&mut endpoint, at + ms(999), Unreachable::Refused), 0);
    // A word in between begins the second anew.
    endpoint.handle_datagram(at + ms(999), peer(1), &word);
    assert_eq!(refuse(&mut endpoint, at + ms(1000), Unreachable::Refused), 0);
    assert_eq!(refuse(&mut endpoint, at + ms(5000), Unreachable::NoRoute), 0);
    assert_eq!(refuse(&mut endpoint, at + ms(5000), Unreachable::Refused), 1);
}

#[test]
fn case_129_answers_leave_from_the_local_address_that_was_asked_last() {
    let now = Instant::now();
    let mut endpoint = Endpoint::new(EndpointConfig::default(), [7; 16]);
    let mut headers = HeadersBuf::default();
    headers.push(b"challenge", b"1").unwrap();
    let ping = encoded(&FrameBytes::new(FrameType::Ping, headers, vec![1; 8].into()));
    let locals = [1, 2].map(|last| IpAddr::from([127, 0, 0, last]));
    for local in [locals[0], locals[1], locals[0]] {
        endpoint.handle_datagram(now, peer(1), &ping);
        endpoint.set_local(peer(1), local);
        assert_eq!(drain(&mut endpoint, now).0, [(peer(1), Some(local))]);
    }
    // Somebody else, of whom no local address is known.
    endpoint.handle_datagram(now, peer(2), &ping);
    assert_eq!(drain(&mut endpoint, now).0, [(peer(2), None)]);
}
