//! Priorities of what leaves for one address, and the bound of what has the lowest.

use crate::channels::numbered;
use crate::net::{MIB, Net, SECOND, address, message};
use fastdrop_proto::vstp::{EndpointConfig, FrameBytes, Priority, SendOptions};
use fastdrop_testing::network::Link;
use std::time::Duration;

const RTT: Duration = Duration::from_millis(50);

/// The time that a frame takes, sent while others are under way.
fn time_of(net: &mut Net, frame: FrameBytes, options: &SendOptions) -> Duration {
    let sent_at = net.now;
    let send = net.send_on(0, 1, frame, options);
    while !net.outcomes[0].contains_key(&send) && net.step() {}
    assert_eq!(net.outcomes[0][&send], Ok(()));
    net.now - sent_at
}

fn bulk() -> SendOptions {
    SendOptions::acknowledged().with_priority(Priority::Bulk)
}

#[test]
fn what_is_high_passes_what_is_bulk() {
    let high = SendOptions::acknowledged().with_priority(Priority::High);
    let normal = SendOptions::acknowledged();
    let mut net = Net::new(1, Link::clean(100e6, RTT), 2);
    for n in 0..4 {
        net.send_on(0, 1, message(20 * MIB, n), &bulk());
    }
    net.pass(SECOND);
    for (len, bound) in [(100, 2 * RTT), (300_000, 3 * RTT)] {
        for options in [&high, &normal] {
            let time = time_of(&mut net, message(len, 9), options);
            assert!(time < bound, "{len} bytes in {time:?}");
        }
    }
    // The same among messages of one priority waits for all before it.
    let mut net = Net::new(1, Link::clean(100e6, RTT), 2);
    net.send(0, 1, message(20 * MIB, 1), true);
    net.pass(SECOND / 2);
    let time = time_of(&mut net, message(300_000, 9), &normal);
    assert!(time > SECOND / 2, "{time:?}");
}

#[test]
fn what_is_high_passes_thousands_of_small_ones() {
    for acknowledged in [true, false] {
        let of = |priority| {
            let options = if acknowledged { SendOptions::acknowledged() } else { SendOptions::default() };
            options.with_priority(priority)
        };
        let time = |priority| {
            let mut net = Net::new(2, Link::clean(10e6, RTT), 2);
            for n in 0..4000 {
                net.send_on(0, 1, numbered(n, 1000), &of(Priority::Bulk));
            }
            net.pass(SECOND / 10);
            let sent_at = net.now;
            net.send_on(0, 1, numbered(9999, 100), &of(priority));
            while net.received[1].iter().all(|(_, frame)| frame.headers().number("n") != Some(9999)) {
                assert!(net.step(), "it never came");
            }
            net.now - sent_at
        };
        let [high, low] = [time(Priority::High), time(Priority::Bulk)];
        assert!(high < 4 * RTT, "{high:?}, acknowledged: {acknowledged}");
        assert!(low > SECOND, "{low:?}, acknowledged: {acknowledged}");
    }
}

#[test]
fn what_is_bulk_does_not_starve() {
    let high = SendOptions::acknowledged().with_priority(Priority::High);
    let mut net = Net::new(3, Link::clean(100e6, RTT), 2);
    let highs: Vec<_> = (0..8).map(|n| net.send_on(0, 1, message(5 * MIB, n), &high)).collect();
    let low = net.send_on(0, 1, message(2 * MIB, 100), &bulk());
    while !net.outcomes[0].contains_key(&low) && net.step() {}
    assert_eq!(net.outcomes[0][&low], Ok(()));
    let done = highs.iter().filter(|send| net.outcomes[0].contains_key(send)).count();
    assert!((4..8).contains(&done), "{done} of 8 before it");
}

#[test]
fn what_is_bulk_takes_the_time_that_its_cap_gives() {
    let cap = 1_000_000;
    for len in [10 * MIB, 1000] {
        let mut net = Net::new(4, Link::clean(100e6, RTT), 2);
        let now = net.now;
        net.nodes[0].1.set_bulk_rate(now, Some(cap));
        let count = 10 * MIB / len;
        let sends: Vec<_> = (0..count).map(|n| net.send_on(0, 1, message(len, n as u64), &bulk())).collect();
        net.pass(SECOND);
        // What else goes there is as fast as ever.
        let time = time_of(&mut net, message(5 * MIB, 9), &SendOptions::acknowledged());
        assert!(time < SECOND, "{time:?} for 5 MiB");
        while net.outcomes[0].len() < sends.len() + 1 && net.step() {}
        assert!(sends.iter().all(|send| net.outcomes[0][send] == Ok(())));
        // Headers, and what was lost and left again, are counted too.
        let share = net.elapsed().as_secs_f64() / (10 * MIB) as f64 * cap as f64;
        assert!((1.0..1.12).contains(&share), "{share} of the time, in messages of {len} bytes");
    }
}

/// Fragments of one message that are lost leave again before the rest of a long one behind it.
#[test]
fn messages_behind_each_other_all_arrive_over_a_slow_line_that_loses() {
    for cap in [None, Some(1_000_000)] {
        for seed in 0..4 {
            let rate = if cap.is_some() { 100e6 } else { 8e6 };
            let mut net = Net::new(seed, Link { loss: 0.03, ..Link::clean(rate, RTT) }, 2);
            let now = net.now;
            net.nodes[0].1.set_bulk_rate(now, cap);
            let sends: Vec<_> =
                [1, 1, 20, 1].map(|mib| net.send_on(0, 1, message(mib * MIB, seed), &bulk())).into();
            net.run(120 * SECOND);
            let outcomes = sends.iter().map(|send| net.outcomes[0].get(send));
            assert!(
                outcomes.clone().all(|outcome| outcome == Some(&Ok(()))),
                "{:?}",
                Vec::from_iter(outcomes)
            );
        }
    }
}

#[test]
fn a_cap_that_is_lifted_holds_nothing_back() {
    let mut net = Net::new(5, Link::clean(100e6, RTT), 2);
    let now = net.now;
    net.nodes[0].1.set_bulk_rate(now, Some(1));
    let send = net.send_on(0, 1, message(5 * MIB, 1), &bulk());
    net.pass(20 * SECOND);
    assert!(!net.outcomes[0].contains_key(&send));
    assert!(net.sent_to[&address(1)] < 20 * (16 << 10) + 100_000, "{:?}", net.sent_to);
    let now = net.now;
    net.nodes[0].1.set_bulk_rate(now, None);
    net.drain(0);
    let lifted_at = net.now;
    while !net.outcomes[0].contains_key(&send) && net.step() {}
    assert_eq!(net.outcomes[0][&send], Ok(()));
    assert!(net.now - lifted_at < 5 * SECOND, "{:?}", net.now - lifted_at);
}

/// Small frames wait for the rate of the path, and then for the cap.
#[test]
fn what_a_cap_keeps_back_waits_for_a_time_to_come() {
    let mut net = Net::new(6, Link::clean(100e6, RTT), 2);
    let options = SendOptions::default().with_priority(Priority::Bulk);
    for n in 0..200 {
        net.send_on(0, 1, numbered(n, 1000), &options);
    }
    let now = net.now;
    net.nodes[0].1.set_bulk_rate(now, Some(20_000));
    net.drain(0);
    let mut steps = 0;
    let until = net.now + SECOND;
    while net.now < until && net.step() {
        let next = net.nodes[0].1.poll_timeout();
        assert!(next.is_none_or(|at| at > net.now), "a time that has passed");
        steps += 1;
    }
    assert!(steps > 10, "{steps}");
}

#[test]
fn a_low_cap_does_not_keep_back_what_finds_out_about_the_path() {
    let mut net = Net::new(7, Link::clean(100e6, RTT), 2);
    let now = net.now;
    net.nodes[0].1.set_bulk_rate(now, Some(20_000));
    net.send_on(0, 1, message(MIB, 1), &bulk());
    net.pass(SECOND / 5);
    let rtt = net.nodes[0].1.rtt(address(1));
    assert!(rtt.is_some_and(|rtt| rtt < RTT * 3 / 2), "{rtt:?}");
    // It goes on, at the rate of the cap.
    net.pass(SECOND * 10);
    let sent = net.sent_to[&address(1)];
    assert!((200_000..300_000).contains(&sent), "{sent}");
}

#[test]
fn under_a_low_cap_one_datagram_leaves_at_a_time_however_large() {
    for acknowledged in [true, false] {
        let of = if acknowledged { SendOptions::acknowledged() } else { SendOptions::default() };
        let options = of.with_priority(Priority::Bulk);
        let config = EndpointConfig { fragments: false, ..EndpointConfig::default() };
        let mut net = Net::with_config(8, Link::clean(100e6, RTT), 2, config);
        let now = net.now;
        net.nodes[0].1.set_bulk_rate(now, Some(20_000));
        for n in 0..20 {
            net.send_on(0, 1, numbered(n, 1000), &options);
        }
        net.pass(RTT / 5);
        assert!(net.sent_datagrams[0] <= 1, "{}", net.sent_datagrams[0]);
        net.pass(SECOND * 2);
        assert_eq!(net.received[1].len(), 20);
        // The network drops what is so large, but it leaves.
        let before = net.sent_bytes[0];
        for n in 0..2 {
            net.send_on(0, 1, numbered(n, 50_000), &options);
        }
        net.pass(SECOND);
        let sent = net.sent_bytes[0] - before;
        assert!((50_000..60_000).contains(&sent), "{sent}");
        net.pass(SECOND * 3);
        assert!(net.sent_bytes[0] - before > 100_000, "{}", net.sent_bytes[0] - before);
    }
}

#[test]
fn a_cap_that_is_set_again_and_again_is_the_same_cap() {
    let mut net = Net::new(9, Link::clean(100e6, RTT), 2);
    let options = SendOptions::default().with_priority(Priority::Bulk);
    let set = |net: &mut Net, rate| {
        let now = net.now;
        net.nodes[0].1.set_bulk_rate(now, Some(rate));
    };
    set(&mut net, 20_000);
    for n in 0..200 {
        net.send_on(0, 1, numbered(n, 1000), &options);
    }
    for round in 0..1000 {
        set(&mut net, 20_000 + round % 2);
        net.pass(SECOND / 500);
    }
    let sent = net.sent_to[&address(1)];
    assert!((35_000..45_000).contains(&sent), "{sent}");
}

/// The application there takes everything and acknowledges nothing.
#[test]
fn one_of_a_lower_priority_is_under_way_however_many_higher_ones_are() {
    let high = SendOptions::acknowledged().with_priority(Priority::High);
    let mut net = Net::new(10, Link::clean(100e6, RTT), 2);
    net.send(0, 1, message(2000, 1), true);
    net.run(SECOND);
    net.forget_received(1);
    net.takes = false;
    for n in 0..300 {
        net.send_on(0, 1, message(2000, n), &high);
    }
    net.pass(SECOND);
    assert_eq!(net.received[1].len(), 254);
    net.send_on(0, 1, message(2000, 1000), &SendOptions::acknowledged());
    for n in 2000..2003 {
        net.send_on(0, 1, message(2000, n), &bulk());
    }
    net.pass(SECOND);
    let came = net.received[1].iter().filter_map(|(_, frame)| frame.headers().number("n"));
    assert_eq!(came.filter(|n| *n >= 1000).collect::<Vec<_>>(), [1000, 2000]);
    assert_eq!(net.outcomes[0].len(), 1, "{:?}", net.outcomes[0]);
}

#[test]
fn under_a_cap_what_wants_no_acknowledgement_leaves_half_to_what_does() {
    let plain = SendOptions::default().with_priority(Priority::Bulk);
    for len in [1000, 20_000] {
        let mut net = Net::new(11, Link::clean(100e6, RTT), 2);
        let now = net.now;
        net.nodes[0].1.set_bulk_rate(now, Some(100_000));
        for n in 0..1000 {
            net.send_on(0, 1, numbered(n, 1000), &plain);
        }
        for n in 0..(500_000 / len as u64) {
            net.send_on(0, 1, message(len, 10_000 + n), &bulk());
        }
        net.pass(SECOND * 4);
        let (mut wanted, mut other) = (0, 0);
        for (_, frame) in &net.received[1] {
            let n = frame.headers().number("n").unwrap();
            *(if n >= 10_000 { &mut wanted } else { &mut other }) += frame.payload.len();
        }
        let share = wanted as f64 / (wanted + other) as f64;
        assert!((0.4..0.6).contains(&share), "{share} of {}", wanted + other);
    }
}
