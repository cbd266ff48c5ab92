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

/// A message that has the room of strangers for itself takes none along when it is known.
#[test]
fn case_124_messages_that_fit_into_the_room_of_strangers_all_arrive() {
    all_arrive(50, 1, 5 * MIB / 2, limits(64 * MIB), Duration::from_millis(25));
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

/// A client that announces much and sends little, again and again, keeps others out for a while at
/// most.
#[test]
fn case_124_a_reservation_that_is_hardly_used_is_lost_while_others_wait() {
    let config = EndpointConfig { limits: limits(4 * MIB), ..EndpointConfig::default() };
    let mut net = Net::with_config(9, Link::clean(1e9, Duration::from_millis(20)), 3, config);
    net.send(1, 0, message(10, 0), true);
    net.run(SECOND);
    let held = |id: u64, index| fragment(&format!("0{}", (1_u64 << 62) + id), index, 3000, 1200);
    net.inject(0, address(1), &held(0, 0));
    let waits = net.send(2, 0, message(3 * MIB, 2), false);
    for turn in 1..8 {
        let until = net.now + SECOND * 20;
        while net.next_at().is_some_and(|at| at <= until) && net.step() {}
        net.now = until;
        for id in 0..=u64::from(turn) {
            net.inject(0, address(1), &held(id, turn));
        }
    }
    assert_eq!(net.outcomes[2].get(&waits), Some(&Ok(())));
}

/// Messages of one address that wait do not take all places.
#[test]
fn case_124_addresses_with_many_messages_leave_places_for_others() {
    let limits = ReassemblyLimits { messages_max: 100, ..limits(4 * MIB) };
    let config = EndpointConfig { limits, ..EndpointConfig::default() };
    let mut net = Net::with_config(10, Link::clean(1e9, Duration::from_millis(20)), 5, config);
    for client in 1..5 {
        net.send(client, 0, message(10, 0), true);
        net.run(SECOND);
    }
    for (client, id) in (1..4).flat_map(|client| (0..200_u64).map(move |id| (client, id))) {
        net.inject(0, address(client), &fragment(&format!("0{}", (1_u64 << 62) + id), 0, 3000, 1200));
    }
    let small = net.send(4, 0, message(20_000, 1), false);
    let until = net.now + SECOND;
    while net.now < until && net.step() {}
    assert_eq!(net.outcomes[4].get(&small), Some(&Ok(())));
}

/// Large messages and small frames, with and without acknowledgement, over a line that loses some.
#[test]
fn case_124_all_arrive_once_where_some_are_lost_and_acknowledgements_wanted() {
    for seed in 1..=seeds(6) {
        let link = Link { loss: 0.05, ..Link::clean(100e6, Duration::from_millis(10)) };
        let config = EndpointConfig { limits: limits(3 * MIB), ..EndpointConfig::default() };
        let mut net = Net::with_config(seed, link, 5, config);
        let mut sends = Vec::new();
        for (client, n) in (1..5_usize).flat_map(|client| (0..4_usize).map(move |n| (client, n))) {
            let len = if n % 2 == 0 { MIB / 2 } else { 100 };
            // A small frame without acknowledgement may be lost.
            let acknowledged = n != 2;
            let sent = message(len, (client * 10 + n) as u64);
            sends.push((client, net.send(client, 0, sent.clone(), acknowledged), content(&sent)));
        }
        net.run(SECOND * 120);
        for (client, send, sent) in sends {
            assert_eq!(net.outcomes[client].get(&send), Some(&Ok(())), "seed {seed}, client {client}");
            let times = net.received[0].iter().filter(|(_, frame)| content(frame) == sent).count();
            assert_eq!(times, 1, "seed {seed}, client {client}");
        }
    }
}

/// A fragment may announce what it likes: others lose nothing by it.
#[test]
fn case_124_a_fragment_that_announces_too_much_is_refused_wherever_it_stands() {
    let too_much = [
        (u32::MAX - 1, u32::MAX, 10),
        (u32::MAX - 1, u32::MAX, 0),
        (0, u32::MAX, 1000),
        (0, u32::MAX, 1),
        (999_999, 1_000_000, 1100),
        (300_000, 300_001, 1000),
    ];
    for (index, total, len) in too_much {
        let mut net = Net::new(8, Link::clean(1e9, Duration::from_millis(20)), 3);
        for client in 1..3 {
            net.send(client, 0, message(10, 0), true);
        }
        net.run(SECOND);
        for n in 0..10 {
            let id = format!("0{}", (1_u64 << 62) + n);
            net.inject(0, address(1), &fragment(&id, index, total, len));
        }
        let small = net.send(2, 0, message(10, 1), true);
        let large = net.send(2, 0, message(4 * MIB, 2), false);
        net.run(SECOND * 2);
        for send in [small, large] {
            assert_eq!(net.outcomes[2].get(&send), Some(&Ok(())), "{index} of {total}, {len} bytes");
        }
    }
}

#[test]
#[ignore = "takes minutes: two gigabytes"]
fn case_124_a_hundred_times_20_mib_with_the_default_limits() {
    all_arrive(100, 1, 20 * MIB, ReassemblyLimits::default(), Duration::from_millis(200));
}
