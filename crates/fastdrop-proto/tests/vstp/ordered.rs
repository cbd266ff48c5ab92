//! Ordered channels.

use crate::channels::{bad_link, by_channel, number, numbered};
use crate::net::{MIB, Net, SECOND, address, seeds};
use fastdrop_proto::vstp::{
    Channel, EndpointConfig, Failure, Flags, FrameBytes, FrameType, HeadersBuf, Patience, ReassemblyLimits,
    SendId, SendOptions,
};
use fastdrop_testing::network::{Link, Random};
use std::time::Duration;

/// Sends this many frames on ordered channels, all at once.
fn send_all(net: &mut Net, channels: u32, frames: u64) -> Vec<SendId> {
    let send = |n: u64| net.send_on(0, 1, numbered(n, 50), &SendOptions::ordered(n as u32 % channels));
    (0..frames).map(send).collect()
}

#[test]
fn each_ordered_channel_comes_once_and_in_order() {
    let mut early = 0;
    for seed in 0..seeds(200) {
        let mut random = Random(seed ^ 0x04d);
        // One that is lost so often that its sender gives up is another matter.
        let patience = Patience { give_up: 600 * SECOND, ..Patience::default() };
        let config = EndpointConfig { patience, ..EndpointConfig::default() };
        let mut net = Net::with_config(seed, bad_link(&mut random), 2, config);
        let (channels, frames) = (1 + random.below(5) as u32, 200 + random.below(200));
        let mut sends = send_all(&mut net, channels, frames);
        net.pass(Duration::from_millis(random.below(500)));
        for n in frames..frames + 100 {
            let options = SendOptions::ordered(n as u32 % channels);
            sends.push(net.send_on(0, 1, numbered(n, random.below(1000) as usize), &options));
            net.pass(Duration::from_micros(random.below(3_000)));
        }
        net.run(300 * SECOND);
        for send in &sends {
            assert_eq!(net.outcomes[0].get(send), Some(&Ok(())), "seed {seed}");
        }
        for (channel, numbers) in by_channel(&net, 1) {
            let Channel::Ordered(at) = channel else { panic!("{channel:?}") };
            let sent = (0..frames + 100).filter(|n| *n as u32 % channels == at);
            assert_eq!(numbers, Vec::from_iter(sent), "seed {seed}, {channel:?}");
        }
        early += u64::from(!net.received[1].is_sorted_by_key(|(_, frame)| number(frame)));
        assert_eq!(net.nodes[1].1.memory(), 0, "seed {seed}");
    }
    assert!(early > 50, "{early}: channels wait for each other");
}

/// One frame of one channel is lost, again and again for a while.
#[test]
fn a_loss_on_one_channel_delays_no_other() {
    let rtt = Duration::from_millis(50);
    let mut net = Net::new(3, Link::clean(100e6, rtt), 2);
    net.send_on(0, 1, numbered(1000, 10), &SendOptions::ordered(1));
    net.run(SECOND);
    net.forget_received(1);
    net.lost = Some(1001);
    let sent_at = net.now;
    for n in 0..10 {
        net.send_on(0, 1, numbered(1001 + n, 10), &SendOptions::ordered(1));
        net.send_on(0, 1, numbered(2001 + n, 10), &SendOptions::ordered(2));
    }
    let came = |net: &Net, at: u32| by_channel(net, 1).get(&Channel::Ordered(at)).map_or(0, Vec::len);
    while came(&net, 2) < 10 && net.step() {}
    assert!(net.now - sent_at <= rtt, "{:?}", net.now - sent_at);
    let sent = net.sent_datagrams[0];
    net.pass(SECOND);
    assert_eq!(came(&net, 1), 0, "nothing passes what is lost");
    // What has arrived, and waits, is not sent again but to ask for its acknowledgement.
    assert!(net.sent_datagrams[0] - sent < 25, "{}", net.sent_datagrams[0] - sent);
    net.lost = None;
    net.run(SECOND * 5);
    assert_eq!(by_channel(&net, 1)[&Channel::Ordered(1)], Vec::from_iter(1001..1011));
    assert!(net.outcomes[0].values().all(Result::is_ok));
}

#[test]
fn what_is_behind_one_that_never_arrives_fails_and_what_is_sent_then_arrives() {
    let mut net = Net::new(4, Link::clean(100e6, SECOND / 50), 2);
    net.keeps = true;
    net.send_on(0, 1, numbered(0, 10), &SendOptions::ordered(1));
    net.pass(SECOND);
    net.take(1);
    net.lost = Some(1);
    let lost = net.send_on(0, 1, numbered(1, 10), &SendOptions::ordered(1));
    net.pass(SECOND * 8);
    let behind = [2, 3, 4].map(|n| net.send_on(0, 1, numbered(n, 10), &SendOptions::ordered(1)));
    let other = net.send_on(0, 1, numbered(100, 10), &SendOptions::ordered(2));
    net.pass(SECOND / 5);
    assert!(net.nodes[1].1.memory() > 200, "nothing waits for its turn");
    net.pass(SECOND);
    assert_eq!(net.outcomes[0][&lost], Err(Failure::TimedOut));
    assert!(behind.iter().all(|send| net.outcomes[0][send] == Err(Failure::ChannelBroken)));
    let next = net.send_on(0, 1, numbered(9, 10), &SendOptions::ordered(1));
    net.pass(SECOND);
    while net.take(1) {}
    net.pass(SECOND);
    assert_eq!((&net.outcomes[0][&other], &net.outcomes[0][&next]), (&Ok(()), &Ok(())));
    assert_eq!(by_channel(&net, 1)[&Channel::Ordered(1)], [0, 9]);
    assert_eq!(net.nodes[1].1.memory(), 0);
}

#[test]
fn ends_that_start_again_go_on_in_order() {
    for seed in 0..seeds(100) {
        let mut random = Random(seed ^ 0x0de);
        let mut net = Net::new(seed, bad_link(&mut random), 2);
        let mut n = 0;
        for round in 0..6_u8 {
            for _ in 0..20 + random.below(40) {
                n += 1;
                net.send_on(0, 1, numbered(n, 100), &SendOptions::ordered(1));
                net.pass(Duration::from_micros(random.below(8_000)));
            }
            if round < 4 {
                net.restart(usize::from(round % 2), 50 + round);
            }
        }
        net.pass(SECOND * 30);
        // A new receiver does not know what the one before it has handed on.
        let numbers = &by_channel(&net, 1)[&Channel::Ordered(1)];
        let again = numbers.windows(2).filter(|pair| pair[0] >= pair[1]).count();
        assert!(again <= 2, "seed {seed}: {numbers:?}");
        let last = net.send_on(0, 1, numbered(n + 1, 100), &SendOptions::ordered(1));
        net.run(SECOND * 30);
        assert_eq!(net.outcomes[0].get(&last), Some(&Ok(())), "seed {seed}");
    }
}

#[test]
fn a_frame_that_is_refused_has_had_its_turn() {
    let limits = ReassemblyLimits { message_bytes_max: 200, ..ReassemblyLimits::default() };
    let config = EndpointConfig { limits, ..EndpointConfig::default() };
    let mut net = Net::with_config(6, Link::clean(1e9, SECOND / 100), 2, config);
    net.lost = Some(0);
    let sends: Vec<_> = [(0, 10), (1, 300), (2, 20), (3, 300), (4, 20)]
        .map(|(n, len)| net.send_on(0, 1, numbered(n, len), &SendOptions::ordered(1)))
        .into();
    net.pass(SECOND / 2);
    net.lost = None;
    net.run(SECOND * 8);
    let told: Vec<_> = sends.iter().map(|send| net.outcomes[0][send].is_ok()).collect();
    assert_eq!(told, [true, false, true, false, true]);
    assert_eq!(by_channel(&net, 1)[&Channel::Ordered(1)], [0, 2, 4]);
}

/// Many frames wait for one, and take the place that the application's queue has.
#[test]
fn what_waits_for_its_turn_does_not_keep_out_what_it_waits_for() {
    let limits = ReassemblyLimits { bytes_max: 60_000, ..ReassemblyLimits::default() };
    let patience = Patience { give_up: 50 * SECOND, ..Patience::default() };
    let config = EndpointConfig { limits, patience, ..EndpointConfig::default() };
    let mut net = Net::with_config(7, Link::clean(100e6, SECOND / 100), 2, config);
    net.lost = Some(0);
    let sends: Vec<_> =
        (0..300).map(|n| net.send_on(0, 1, numbered(n, 900), &SendOptions::ordered(1))).collect();
    net.pass(SECOND * 3);
    let waits = net.nodes[1].1.memory();
    assert!((5_000..40_000).contains(&waits), "{waits}");
    // Others find room, and one that takes all that there is does not stop the channel.
    net.keeps = true;
    for n in 1000..1200 {
        net.send(0, 1, numbered(n, 900), false);
    }
    net.pass(SECOND);
    assert!(net.nodes[1].1.memory() <= 60_000);
    net.keeps = false;
    net.lost = None;
    net.run(SECOND * 50);
    assert!(sends.iter().all(|send| net.outcomes[0][send] == Ok(())));
    let ordered = net.received[1].iter().filter(|(_, frame)| Channel::of(frame).is_some());
    assert_eq!(ordered.map(|(_, frame)| number(frame)).collect::<Vec<_>>(), Vec::from_iter(0..300));
}

#[test]
fn a_message_that_is_too_large_for_an_ordered_channel_is_refused_in_words() {
    let mut net = Net::new(8, Link::clean(1e9, SECOND / 1000), 2);
    for len in [1060, 1400] {
        let send = net.send_on(0, 1, numbered(1, len), &SendOptions::ordered(1));
        net.run(SECOND);
        assert_eq!(net.outcomes[0][&send], if len < 1200 { Ok(()) } else { Err(Failure::NotCutInOrder) });
    }
}

/// Every channel, any stream and count, turns that never come: from an address that nobody knows,
/// and from one that is known.
#[test]
fn a_peer_whose_turns_never_come_takes_what_it_may_for_a_minute_and_hinders_nobody() {
    let limits = ReassemblyLimits { bytes_max: 16 * MIB, ..ReassemblyLimits::default() };
    let config = EndpointConfig { limits, ..EndpointConfig::default() };
    for is_known in [false, true] {
        let mut net = Net::with_config(9, Link::clean(1e9, SECOND / 1000), 3, config.clone());
        let mut random = Random(9);
        let hostile = address(100);
        if is_known {
            net.nodes[0].1.send(net.now, hostile, numbered(0, 10), false);
            net.drain(0);
        }
        for round in 1..60_000_u64 {
            // At last, turns of one stream that wait for the first.
            let is_last = round > 40_000;
            let stream = (1 << 30) + if is_last { 9 } else { random.below(4) };
            let count = [2, round % 8000 + 2][random.below(2) as usize];
            let any = [1, 2, round, u64::from(u32::MAX)][random.below(4) as usize];
            let count = if is_last { count } else { any };
            let after = if is_last { 0 } else { random.below(4) };
            let after = [0, count - 1, count, u64::from(u32::MAX)][after as usize];
            let channel = [round, u64::from(u32::MAX), round % 100, 1 << 32][random.below(4) as usize];
            let mut headers = HeadersBuf::default();
            for (key, value) in [
                ("vstp-channel", channel.to_string()),
                ("vstp-order", format!("0{}", (stream << 32) + count)),
                ("vstp-after", after.to_string()),
                ("msg-id", format!("0{}", (((1 << 30) + 7) << 32) + round)),
            ] {
                headers.push(key.as_bytes(), value.as_bytes()).unwrap();
            }
            let frame = FrameBytes::new(FrameType::Data, headers, vec![0; 500].into());
            let mut bytes = Vec::new();
            frame.with_flag(Flags::REQ_ACK).as_ref().encode(&mut bytes).unwrap();
            net.inject(0, hostile, &bytes);
            assert!(net.nodes[0].1.memory() <= 16 * MIB);
        }
        assert!(net.nodes[0].1.memory() > 3_000, "nothing waits: {}", net.nodes[0].1.memory());
        for n in 1..50 {
            net.send_on(1, 0, numbered(n, 100), &SendOptions::ordered(3));
        }
        net.pass(SECOND);
        assert!(net.outcomes[1].values().all(Result::is_ok) && net.outcomes[1].len() == 49);
        net.pass(SECOND * if is_known { 61 } else { 11 });
        assert_eq!(net.nodes[0].1.memory(), 0, "known: {is_known}");
    }
}

#[test]
fn a_new_client_begins_with_more_channels_than_are_remembered_of_a_stranger() {
    for channels in [8, 9, 30] {
        let mut net = Net::new(10, Link::clean(100e6, SECOND / 20), 2);
        let sends = send_all(&mut net, channels, u64::from(channels) * 2);
        net.run(SECOND * 2);
        assert!(sends.iter().all(|send| net.outcomes[0].get(send) == Some(&Ok(()))), "{channels}");
        let came = by_channel(&net, 1);
        assert_eq!(came.len(), channels as usize);
        assert!(came.values().all(|numbers| numbers.len() == 2 && numbers.is_sorted()), "{came:?}");
    }
}

/// The second frame was sent before the first had its outcome, which only the old receiver knows:
/// it arrives after the new one knows where to go on, or before.
#[test]
fn a_receiver_that_starts_again_goes_on_with_what_was_sent_before() {
    for is_lost in [true, false] {
        let ms = Duration::from_millis(1);
        let mut net = Net::new(11, Link::clean(100e6, 50 * ms), 2);
        let first = net.send_on(0, 1, numbered(1, 10), &SendOptions::ordered(1));
        net.pass(5 * ms);
        net.lost = is_lost.then_some(2);
        let second = net.send_on(0, 1, numbered(2, 10), &SendOptions::ordered(1));
        while net.received[1].is_empty() && net.step() {}
        net.pass(ms);
        assert_eq!(net.received[1].len(), 1);
        net.restart(1, 99);
        net.lost = None;
        net.run(SECOND * 3);
        assert_eq!([first, second].map(|send| net.outcomes[0].get(&send)), [Some(&Ok(())); 2], "{is_lost}");
        assert_eq!(by_channel(&net, 1)[&Channel::Ordered(1)], [1, 2]);
    }
}

#[test]
fn answers_and_frames_of_calls_are_refused_on_a_channel_in_words() {
    let mut net = Net::new(12, Link::clean(1e9, SECOND / 1000), 2);
    for (typ, key) in [
        (FrameType::Ack, "n"),
        (FrameType::Err, "n"),
        (FrameType::Data, "vstp-call"),
        (FrameType::Data, "vstp-reply"),
    ] {
        for options in [SendOptions::ordered(1), SendOptions::sequenced(1)] {
            let mut headers = HeadersBuf::default();
            headers.push(key.as_bytes(), b"7").unwrap();
            let frame = FrameBytes::new(typ, headers, Vec::new().into());
            let send = net.send_on(0, 1, frame, &options);
            net.run(SECOND);
            assert_eq!(net.outcomes[0].get(&send), Some(&Err(Failure::NotOnChannel)), "{typ:?} {key}");
        }
    }
    let next = net.send_on(0, 1, numbered(1, 10), &SendOptions::ordered(1));
    net.run(SECOND);
    assert_eq!(net.outcomes[0][&next], Ok(()));
}
