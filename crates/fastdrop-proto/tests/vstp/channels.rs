//! Channels of states, of which only the newest counts.

use crate::net::{MIB, Net, SECOND, address, seeds};
use fastdrop_proto::vstp::{
    Channel, EndpointConfig, Failure, FrameBytes, FrameType, HeadersBuf, ReassemblyLimits, SendOptions,
};
use fastdrop_testing::network::{Link, Random, payload};
use std::collections::BTreeMap;
use std::time::Duration;

/// A frame that is known by this number.
pub(crate) fn numbered(n: u64, len: usize) -> FrameBytes {
    let mut headers = HeadersBuf::default();
    headers.push(b"n", n.to_string().as_bytes()).unwrap();
    FrameBytes::new(FrameType::Data, headers, payload(len, n))
}

pub(crate) fn number(frame: &FrameBytes) -> u64 {
    frame.headers().number("n").unwrap()
}

/// The numbers that came on each channel, in their order.
pub(crate) fn by_channel(net: &Net, node: usize) -> BTreeMap<Channel, Vec<u64>> {
    let mut came: BTreeMap<Channel, Vec<u64>> = BTreeMap::new();
    for (_, frame) in &net.received[node] {
        let numbers = Channel::of(frame).map(|channel| came.entry(channel).or_default());
        numbers.unwrap().push(number(frame));
    }
    came
}

pub(crate) fn bad_link(random: &mut Random) -> Link {
    let level = |random: &mut Random, max: u64| random.below(max) as f64 / 1000.0;
    Link {
        loss: level(random, 200),
        duplicate: level(random, 200),
        reorder: level(random, 400),
        ..Link::clean(2e6 + random.below(50) as f64 * 1e6, Duration::from_millis(1 + random.below(80)))
    }
}

#[test]
fn states_never_go_backwards_and_the_last_one_arrives() {
    let mut dropped = 0;
    for seed in 0..seeds(200) {
        let mut random = Random(seed ^ 0x5e9);
        let mut net = Net::new(seed, bad_link(&mut random), 2);
        net.keeps = true;
        let mut n = 0;
        for _ in 0..300 {
            n += 1;
            let len = if random.chance(0.1) { 5_000 } else { random.below(1_000) as usize };
            let options = SendOptions::sequenced(random.below(3) as u32);
            net.send_on(0, 1, numbered(n, len), &options);
            net.pass(Duration::from_micros(random.below(20_000)));
            if random.chance(0.5) {
                while net.take(1) {}
            }
        }
        net.pass(SECOND * 5);
        net.wire.link.loss = 0.0;
        for channel in 0..3 {
            net.send_on(0, 1, numbered(n + 1 + u64::from(channel), 10), &SendOptions::sequenced(channel));
        }
        net.pass(SECOND * 5);
        while net.take(1) {}
        let came = by_channel(&net, 1);
        assert_eq!(came.len(), 3);
        for (channel, numbers) in came {
            assert!(numbers.is_sorted_by(|a, b| a < b), "seed {seed}, {channel:?}: {numbers:?}");
            let Channel::Sequenced(at) = channel else { panic!("{channel:?}") };
            assert_eq!(numbers.last(), Some(&(n + 1 + u64::from(at))), "seed {seed}");
        }
        dropped += net.nodes[1].1.counters().superseded;
    }
    assert!(dropped > 1000, "{dropped}: nothing came late");
}

#[test]
fn an_application_that_is_slow_finds_the_newest_state_of_each_channel() {
    let mut net = Net::new(1, Link::clean(1e9, SECOND / 1000), 2);
    net.keeps = true;
    for n in 0..3000 {
        net.send_on(0, 1, numbered(n, 900), &SendOptions::sequenced((n % 3) as u32));
        net.pass(SECOND / 1000);
    }
    net.pass(SECOND);
    assert!(net.memory_max < 5_000, "{}", net.memory_max);
    while net.take(1) {}
    let newest = [(0, 2997), (1, 2998), (2, 2999)].map(|(at, n)| (Channel::Sequenced(at), vec![n]));
    assert_eq!(by_channel(&net, 1), BTreeMap::from(newest));
    // Nothing is left of them.
    assert_eq!(net.nodes[1].1.memory(), 0);
}

/// The queue of the application is full of other frames of the same sender.
#[test]
fn a_state_that_waits_is_replaced_where_there_is_no_room_for_more() {
    let limits = ReassemblyLimits { bytes_max: 100_000, ..ReassemblyLimits::default() };
    let config = EndpointConfig { limits, ..EndpointConfig::default() };
    let mut net = Net::with_config(2, Link::clean(1e9, SECOND / 1000), 2, config);
    net.keeps = true;
    net.send_on(0, 1, numbered(0, 500), &SendOptions::sequenced(7));
    for n in 1000..1500 {
        net.send(0, 1, numbered(n, 500), false);
    }
    net.pass(SECOND);
    assert!(net.nodes[1].1.counters().refused > 100);
    for n in 1..50 {
        net.send_on(0, 1, numbered(n, 500), &SendOptions::sequenced(7));
        net.pass(SECOND / 100);
    }
    net.take(1);
    assert_eq!(by_channel(&net, 1), BTreeMap::from([(Channel::Sequenced(7), vec![49])]));
}

#[test]
fn a_state_that_waits_to_leave_is_replaced_and_its_sender_is_told() {
    for len in [900, 9_000] {
        let mut net = Net::new(3, Link::clean(1e6, SECOND / 50), 2);
        let sends: Vec<_> =
            (0..500).map(|n| net.send_on(0, 1, numbered(n, len), &SendOptions::sequenced(1))).collect();
        net.pass(SECOND * 10);
        let outcomes: Vec<_> = sends.iter().map(|send| &net.outcomes[0][send]).collect();
        let left = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        assert!(left < 100, "{left} of {len} bytes left");
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(()) | Err(Failure::Superseded))));
        assert_eq!(outcomes.last(), Some(&&Ok(())));
        assert_eq!(number(&net.received[1].last().unwrap().1), 499);
    }
}

#[test]
fn states_of_a_sender_that_has_started_again_are_newer_than_all_before() {
    for seed in 0..seeds(100) {
        let mut random = Random(seed ^ 0x2e57);
        let link = Link { reorder: 0.5, duplicate: 0.5, ..Link::clean(100e6, SECOND / 10) };
        let mut net = Net::new(seed, link, 2);
        let mut n = 0;
        for start in 0..3 {
            for _ in 0..20 + random.below(50) {
                n += 1;
                net.send_on(0, 1, numbered(n, 100), &SendOptions::sequenced(1));
                net.pass(Duration::from_micros(random.below(5_000)));
            }
            if start < 2 {
                net.restart(0, 10 + start);
            }
        }
        net.pass(SECOND * 2);
        let numbers = &by_channel(&net, 1)[&Channel::Sequenced(1)];
        assert!(numbers.is_sorted_by(|a, b| a < b), "seed {seed}: {numbers:?}");
    }
}

fn datagram(headers: &[(&str, String)]) -> Vec<u8> {
    let mut buf = HeadersBuf::default();
    for (key, value) in headers {
        buf.push(key.as_bytes(), value.as_bytes()).unwrap();
    }
    let mut out = Vec::new();
    FrameBytes::new(FrameType::Data, buf, vec![0; 100].into()).as_ref().encode(&mut out).unwrap();
    out
}

#[test]
fn a_peer_with_every_channel_and_any_count_takes_no_more_than_others_and_hinders_nobody() {
    let limits = ReassemblyLimits { bytes_max: 4 * MIB, ..ReassemblyLimits::default() };
    let config = EndpointConfig { limits, ..EndpointConfig::default() };
    let mut net = Net::with_config(5, Link::clean(1e9, SECOND / 1000), 3, config);
    net.keeps = true;
    let mut random = Random(5);
    let hostile = address(100);
    for round in 0..60_000_u64 {
        let stream = [1 << 30, (1 << 30) + random.below(1 << 30)][random.below(2) as usize];
        let count = [0, 1, round, u64::from(u32::MAX)][random.below(4) as usize];
        let channel = [round, u64::from(u32::MAX) - round, round % 10, 1 << 32][random.below(4) as usize];
        let seq = format!("0{}", (stream << 32) + count);
        let bytes = datagram(&[("vstp-channel", channel.to_string()), ("vstp-seq", seq)]);
        let now = net.now;
        net.nodes[0].1.handle_datagram(now, hostile, &bytes);
    }
    assert!(net.nodes[0].1.memory() <= 4 * MIB, "{}", net.nodes[0].1.memory());
    for n in 0..100 {
        net.send_on(1, 0, numbered(n, 100), &SendOptions::sequenced(9));
    }
    net.pass(SECOND);
    while net.take(0) {}
    let honest = net.received[0].iter().filter(|(from, _)| *from == address(1));
    assert_eq!(honest.map(|(_, frame)| number(frame)).next_back(), Some(99));
    assert_eq!(net.nodes[0].1.memory(), 0);
}

#[test]
fn a_frame_that_is_sent_on_has_no_place_in_the_channel_that_it_came_on() {
    let mut net = Net::new(6, Link::clean(1e9, SECOND / 1000), 2);
    net.send_on(0, 1, numbered(1, 10), &SendOptions::sequenced(4));
    net.pass(SECOND);
    let (_, echo) = net.received[1][0].clone();
    assert_eq!(Channel::of(&echo), Some(Channel::Sequenced(4)));
    net.send(1, 0, echo, false);
    net.pass(SECOND);
    let (_, back) = &net.received[0][0];
    assert_eq!((Channel::of(back), number(back)), (None, 1));
}
