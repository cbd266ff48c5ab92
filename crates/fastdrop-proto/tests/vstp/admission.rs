//! Large messages from many at once (case 124).

use super::net::*;
use fastdrop_proto::vstp::{EndpointConfig, Failure, ReassemblyLimits};
use fastdrop_testing::network::Link;
use std::time::Duration;

/// So many clients, each of which sends so many messages of this size at once, to a server whose
/// application takes a message each `pace`. All have to arrive.
fn all_arrive(clients: usize, each: usize, len: usize, limits: ReassemblyLimits, pace: Duration) -> Net {
    let bytes_max = limits.bytes_max;
    let config = EndpointConfig { limits, ..EndpointConfig::default() };
    let mut net = Net::with_config(124, Link::clean(1e9, Duration::from_millis(10)), clients + 1, config);
    net.keeps = true;
    let mut sends = Vec::new();
    for client in 1..=clients {
        for n in 0..each {
            sends.push((client, net.send(client, 0, message(len, (client * 1000 + n) as u64), false)));
        }
    }
    let mut next_take = net.now + pace;
    let total = clients * each;
    while net.received[0].len() < total || net.outcomes.iter().map(|told| told.len()).sum::<usize>() < total {
        assert!(net.elapsed() < SECOND * 600, "{} of {total} came", net.received[0].len());
        if net.next_at().is_none_or(|at| at > next_take) {
            net.now = net.now.max(next_take);
            net.take(0);
            next_take = net.now + pace;
        } else {
            net.step();
        }
        if next_take <= net.now {
            net.take(0);
            next_take = net.now + pace;
        }
    }
    for (client, send) in sends {
        assert_eq!(net.outcomes[client].get(&send), Some(&Ok(())), "{client}");
    }
    let mut payloads: Vec<_> = net.received[0].iter().map(|(_, frame)| content(frame)).collect();
    payloads.sort_by(|one, other| one.1.cmp(&other.1));
    payloads.dedup_by(|one, other| one.1 == other.1);
    assert_eq!(payloads.len(), total, "each once");
    assert!(net.memory_max <= bytes_max + bytes_max / 8, "{} of {bytes_max}", net.memory_max);
    eprintln!("{total} messages of {len} bytes in {:?}, {} bytes of memory", net.elapsed(), net.memory_max);
    net
}

fn limits(bytes_max: usize) -> ReassemblyLimits {
    let most = ReassemblyLimits::default();
    ReassemblyLimits {
        message_bytes_max: bytes_max,
        peer_bytes_max: bytes_max.min(most.peer_bytes_max),
        bytes_max,
        ..most
    }
}

#[test]
fn case_124_large_messages_from_many_at_once_all_arrive() {
    all_arrive(40, 1, MIB, limits(10 * MIB), Duration::from_millis(20));
}

#[test]
fn case_124_all_arrive_where_one_fits_at_a_time() {
    all_arrive(12, 1, MIB, limits(MIB + MIB / 8), Duration::from_millis(20));
}

#[test]
fn case_124_messages_of_one_address_do_not_hold_each_other() {
    all_arrive(3, 8, MIB, limits(MIB + MIB / 8), Duration::from_millis(20));
    // Two fit of all, and one of each address.
    let limits = ReassemblyLimits { peer_bytes_max: MIB + 100_000, ..limits(3 * MIB) };
    all_arrive(3, 6, MIB, limits, Duration::from_millis(20));
}

#[test]
fn case_124_what_waits_for_longer_than_a_sender_is_patient_arrives() {
    let net = all_arrive(6, 1, MIB, limits(MIB + MIB / 8), SECOND * 40);
    assert!(net.elapsed() > SECOND * 120);
    // Asking costs little.
    let sent: u64 = net.sent_bytes[1..].iter().sum();
    assert!(sent < 6 * MIB as u64 * 12 / 10, "{sent}");
}

#[test]
fn case_124_one_that_stalls_loses_its_place() {
    let config = EndpointConfig { limits: limits(MIB + MIB / 8), ..EndpointConfig::default() };
    let mut net = Net::with_config(5, Link::clean(100e6, Duration::from_millis(20)), 3, config);
    let stalled = net.send(1, 0, message(MIB, 1), false);
    while net.nodes[0].1.memory() < MIB / 4 {
        net.step();
    }
    net.silence(1);
    let waits = net.send(2, 0, message(MIB, 2), false);
    net.run(SECOND * 60);
    assert_eq!(net.outcomes[2].get(&waits), Some(&Ok(())));
    assert_eq!(net.outcomes[1].get(&stalled), Some(&Err(Failure::TimedOut)));
}

#[test]
fn case_124_small_messages_do_not_wait_behind_large_ones() {
    let config = EndpointConfig { limits: limits(4 * MIB), ..EndpointConfig::default() };
    let mut net = Net::with_config(6, Link::clean(100e6, Duration::from_millis(20)), 5, config);
    net.keeps = true;
    for client in 1..4 {
        net.send(client, 0, message(3 * MIB, client as u64), false);
    }
    let until = net.now + SECOND * 2;
    while net.now < until && net.step() {}
    let small = net.send(4, 0, message(20_000, 4), false);
    let until = net.now + SECOND;
    while net.now < until && net.step() {}
    assert_eq!(net.outcomes[4].get(&small), Some(&Ok(())));
}

#[test]
fn case_124_too_many_are_told_that_the_peer_is_busy_and_too_large_ones_so() {
    let limits = ReassemblyLimits { messages_max: 4, ..limits(4 * MIB) };
    let config = EndpointConfig { limits, ..EndpointConfig::default() };
    let mut net = Net::with_config(7, Link::clean(100e6, Duration::from_millis(20)), 9, config);
    net.keeps = true;
    let sends: Vec<_> = (1..8).map(|client| net.send(client, 0, message(3 * MIB, 1), false)).collect();
    let large = net.send(8, 0, message(5 * MIB, 1), false);
    let until = net.now + SECOND * 10;
    while net.now < until && net.step() {}
    let told = sends.iter().zip(1..).filter_map(|(send, client)| net.outcomes[client].get(send));
    let told: Vec<_> = told.collect();
    assert_eq!(told.iter().filter(|result| ***result == Err(Failure::Busy)).count(), 3, "{told:?}");
    assert_eq!(net.outcomes[8].get(&large), Some(&Err(Failure::Refused("too-large".into()))));
}

#[test]
#[ignore = "takes minutes: two gigabytes"]
fn case_124_a_hundred_times_20_mib_with_the_default_limits() {
    all_arrive(100, 1, 20 * MIB, ReassemblyLimits::default(), Duration::from_millis(200));
}
