//! Frames that wait for the application, of one address and of others (case 130).

use super::net::*;
use fastdrop_proto::vstp::{EndpointConfig, Failure, FrameBytes, FrameType, HeadersBuf, ReassemblyLimits};
use fastdrop_testing::network::Link;
use std::time::Duration;

/// A client sends far more than the application takes; another sends a frame now and then.
#[test]
fn case_130_one_that_floods_costs_others_nothing_but_their_share() {
    let mut net = Net::new(130, Link::clean(1e9, Duration::from_millis(10)), 3);
    net.keeps = true;
    let (mut asked, mut waits) = (Vec::new(), Vec::new());
    // Ten thousand a second come of one, a thousand a second are taken in all.
    for turn in 0..30_000_u64 {
        let until = net.now + Duration::from_micros(100);
        let flood = FrameBytes::new(FrameType::Data, HeadersBuf::default(), vec![0; 100].into());
        net.send(1, 0, flood, false);
        if turn % 1000 == 999 {
            asked.push((net.send(2, 0, message(100, turn), true), net.now));
        }
        while net.next_at().is_some_and(|at| at <= until) && net.step() {}
        net.now = net.now.max(until);
        if turn % 10 == 0 {
            net.take(0);
        }
        asked.retain(|(send, since)| match net.outcomes[2].get(send) {
            Some(told) => {
                assert_eq!(*told, Ok(()));
                waits.push(net.now - *since);
                false
            }
            None => true,
        });
    }
    assert!(waits.len() >= 28, "{}", waits.len());
    let longest = waits.iter().max().unwrap();
    eprintln!("the other's frames are acknowledged within {longest:?}");
    // A round trip, and a turn or two.
    assert!(*longest < Duration::from_millis(20), "{longest:?}");
    // The flood had what was left.
    let of_flood = net.received[0].iter().filter(|(from, _)| *from == address(1)).count();
    assert!(of_flood > 2900, "{of_flood}");
}

/// Nobody takes anything: each that floods keeps a part, and there is a part for whoever comes.
#[test]
fn case_130_what_waits_of_each_address_is_bounded() {
    let limits = ReassemblyLimits { bytes_max: 4 * MIB, ..ReassemblyLimits::default() };
    let config = EndpointConfig { limits, ..EndpointConfig::default() };
    let mut net = Net::with_config(131, Link::clean(1e9, Duration::from_millis(10)), 6, config);
    net.keeps = true;
    for client in 1..6 {
        // Known before anything is sent without acknowledgement.
        net.send(client, 0, message(10, 0), true);
        net.run(Duration::from_millis(500));
        for n in 0..8_000 {
            net.send(client, 0, message(1000, n), false);
            if n % 50 == 0 {
                net.run(Duration::from_millis(5));
            }
        }
    }
    let mut came = [0_usize; 6];
    net.run(SECOND);
    while net.take(0) {}
    for (from, frame) in &net.received[0] {
        let client = (1..6).find(|client| address(*client) == *from).unwrap();
        came[client] += frame.payload.len();
    }
    eprintln!("{came:?}");
    assert!(came[1] > MIB && came[1] < 3 * MIB);
    assert!(came[1..].iter().all(|bytes| *bytes > 50_000), "each has something: {came:?}");
    assert!(net.memory_max <= 5 * MIB);
}

/// One client has more large messages under way than fit; another's come in between.
#[test]
fn case_130_large_messages_of_one_do_not_stand_before_those_of_others() {
    let limits = ReassemblyLimits { bytes_max: 10 * MIB, ..ReassemblyLimits::default() };
    let config = EndpointConfig { limits, ..EndpointConfig::default() };
    let mut net = Net::with_config(132, Link::clean(1e9, Duration::from_millis(10)), 3, config);
    net.keeps = true;
    for n in 0..60 {
        net.send(1, 0, message(2 * MIB, n), false);
    }
    let until = net.now + SECOND;
    while net.now < until && net.step() {}
    let other = net.send(2, 0, message(2 * MIB, 100), false);
    let mut taken = 0;
    while !net.outcomes[2].contains_key(&other) {
        let until = net.now + Duration::from_millis(200);
        while net.next_at().is_some_and(|at| at <= until) && net.step() {}
        net.now = net.now.max(until);
        net.take(0);
        taken += 1;
        assert!(taken < 8, "the other's message waits for {taken}");
    }
    assert_eq!(net.outcomes[2].get(&other), Some(&Ok(())));
    assert!(net.outcomes[1].values().all(|told| *told != Err(Failure::TimedOut)));
}
