//! Two endpoints of VSTP over a simulated network with virtual time and seeded faults.
//!
//! `VSTP_SEEDS=10000 cargo test --release -p fastdrop-proto --test vstp` runs as many seeds;
//! without it, a few hundred.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests")]

mod admission;
mod channels;
mod fairness;
mod narrow;
mod net;
mod ordered;
mod precedence;
mod strangers;

use fastdrop_proto::vstp::{EndpointConfig, Failure, FrameBytes, FrameType, HeadersBuf, Patience, SendId};
use fastdrop_testing::network::{Link, Random};
use net::{MIB, Net, SECOND, address, content, message, seeds};
use std::collections::BTreeMap;
use std::time::Duration;

#[test]
fn a_large_message_arrives_over_a_clean_link() {
    let link = Link::clean(1e9, Duration::from_millis(2));
    let mut net = Net::new(1, link, 2);
    let sent = message(10 * MIB, 1);
    let send = net.send(0, 1, sent.clone(), false);
    net.run(60 * SECOND);
    assert_eq!(net.outcomes[0].get(&send), Some(&Ok(())));
    assert_eq!(net.received[1], [(address(0), sent)]);
    eprintln!("{:?} for 10 MiB, {} sent, {} dropped", net.elapsed(), net.sent_bytes[0], net.wire.dropped);
    assert!(net.elapsed() < Duration::from_millis(250), "{:?}", net.elapsed());
}

fn rate(seed: u64, len: usize, link: &Link) -> f64 {
    let mut net = Net::new(seed, link.clone(), 2);
    let send = net.send(0, 1, message(len, seed), false);
    net.run(300 * SECOND);
    assert_eq!(net.outcomes[0].get(&send), Some(&Ok(())));
    assert_eq!(net.received[1].len(), 1);
    let share = len as f64 / net.elapsed().as_secs_f64() / link.bytes_per_second;
    eprintln!(
        "seed {seed}: {share:.3} of the line, {:.3} sent for each byte",
        net.sent_bytes[0] as f64 / len as f64
    );
    share
}

#[test]
fn a_line_of_100_mbit_with_a_long_way_and_some_loss_is_filled() {
    for loss in [0.0, 0.001, 0.01] {
        let link = Link { loss, ..Link::clean(100e6, Duration::from_millis(50)) };
        for seed in 1..4 {
            assert!(rate(seed, 64 * MIB, &link) >= 0.8, "loss {loss}");
        }
    }
}

#[test]
fn case_95_a_large_message_arrives_over_a_line_that_loses_a_fifth() {
    let bad =
        Link { loss: 0.2, duplicate: 0.2, reorder: 0.2, ..Link::clean(100e6, Duration::from_millis(20)) };
    for seed in 1..4 {
        assert!(rate(seed, 16 * MIB, &bad) >= 0.2);
    }
}

#[test]
fn two_flows_share_a_line() {
    for (rtt_ms, head_start_ms) in [(50, 0), (50, 300), (50, 2000), (10, 1000)] {
        let link = Link::clean(100e6, Duration::from_millis(rtt_ms));
        let mut net = Net::new(rtt_ms, link, 3);
        let came = |net: &Net| [1, 2].map(|node: usize| net.nodes[node].1.counters().datagrams);
        let pass = |net: &mut Net, time: Duration| {
            let until = net.elapsed() + time;
            while net.elapsed() < until && net.step() {}
        };
        net.send(0, 1, message(255 * MIB, 1), false);
        pass(&mut net, Duration::from_millis(head_start_ms));
        net.send(0, 2, message(255 * MIB, 2), false);
        // A hundred and sixty round trips to find their shares.
        pass(&mut net, Duration::from_millis(rtt_ms * 160));
        let from = came(&net);
        pass(&mut net, 12 * SECOND);
        let to = came(&net);
        let [one, two] = [0, 1].map(|i| (to[i] - from[i]) as f64);
        let share = one / (one + two);
        eprintln!("{rtt_ms} ms, {head_start_ms} ms earlier: the first has {share:.3}");
        assert!((0.4..=0.6).contains(&share), "{rtt_ms} ms, {head_start_ms} ms earlier: {share}");
    }
}

/// Everything at once, over a link that does everything wrong.
fn mixture(seed: u64) {
    let mut random = Random(seed ^ 0x5eed);
    let level = |random: &mut Random, max: u64| random.below(max) as f64 / 1000.0;
    let link = Link {
        loss: level(&mut random, 300),
        duplicate: level(&mut random, 300),
        reorder: level(&mut random, 300),
        corrupt: level(&mut random, 20),
        ..Link::clean(
            10e6 + random.below(1_000) as f64 * 1e6,
            Duration::from_micros(200 + random.below(80_000)),
        )
    };
    let mut net = Net::new(seed, link, 2);
    let mut sent = [Vec::new(), Vec::new()];
    for n in 0..2 + random.below(12) {
        let from = random.below(2) as usize;
        let len = match random.below(4) {
            0 => random.below(1000),
            1 => random.below(20_000),
            2 => random.below(400_000),
            _ => 1_100 + random.below(200),
        };
        let acknowledged = random.chance(0.6);
        let frame = message(len as usize, n);
        let send = net.send(from, 1 - from, frame.clone(), acknowledged);
        sent[from].push((send, frame, acknowledged, len));
        for _ in 0..random.below(50) {
            if !net.wire.is_empty() {
                net.step();
            }
        }
    }
    net.run(600 * SECOND);
    for (from, sent) in sent.iter().enumerate() {
        let mut received: Vec<_> = net.received[1 - from].iter().map(|(_, frame)| content(frame)).collect();
        for (send, frame, acknowledged, len) in sent {
            let outcome = net.outcomes[from]
                .get(send)
                .unwrap_or_else(|| panic!("seed {seed}: no outcome for {len} bytes"));
            let wanted = content(frame);
            let count = received.iter().filter(|got| **got == wanted).count();
            received.retain(|got| *got != wanted);
            let allowed = if *acknowledged || *len > 1200 { 0..=1 } else { 0..=3 };
            assert!(allowed.contains(&count), "seed {seed}: {len} bytes came {count} times");
            if outcome.is_ok() && *acknowledged {
                assert_eq!(count, 1, "seed {seed}: acknowledged, and not there");
            }
        }
        assert!(received.is_empty(), "seed {seed}: something came that was never sent: {received:?}");
    }
    for (_, endpoint) in &net.nodes {
        assert!(endpoint.memory() < 2 * MIB, "seed {seed}");
    }
}

#[test]
fn case_95_every_message_comes_once_or_fails_in_words() {
    for seed in 0..seeds(300) {
        mixture(seed);
    }
}

fn datagram(typ: FrameType, headers: &[(&str, &str)], payload: &[u8]) -> Vec<u8> {
    let mut buf = HeadersBuf::default();
    for (key, value) in headers {
        buf.push(key.as_bytes(), value.as_bytes()).unwrap();
    }
    let mut out = Vec::new();
    FrameBytes::new(typ, buf, payload.to_vec().into()).as_ref().encode(&mut out).unwrap();
    out
}

#[test]
fn case_74_acknowledgements_of_what_was_never_sent_change_nothing() {
    let mut net = Net::new(7, Link::clean(100e6, Duration::from_millis(10)), 2);
    let small = net.send(0, 1, message(10, 1), true);
    let large = net.send(0, 1, message(300_000, 2), true);
    // As if everything had come, of messages with any number, before anything could have come.
    let mut report = Vec::new();
    for number in [1000_u32, 1000, 0] {
        report.extend_from_slice(&number.to_be_bytes());
    }
    for id in 0..300 {
        let id = format!("0{id}");
        let now = net.now;
        for bytes in [
            datagram(FrameType::Ack, &[("frag-id", &id)], &report),
            datagram(FrameType::Ack, &[("msg-id", &id)], b""),
        ] {
            net.nodes[0].1.handle_datagram(now, address(1), &bytes);
        }
        net.drain(0);
    }
    assert!(net.outcomes[0].is_empty(), "believed");
    assert!(net.nodes[0].1.counters().unexpected >= 590);
    net.run(60 * SECOND);
    assert_eq!(net.outcomes[0], BTreeMap::from([(small, Ok(())), (large, Ok(()))]));
    assert_eq!(net.received[1].len(), 2);
}

/// Numbers below 256 come round after 256 messages: to a peer of which nothing is known yet, and to
/// one that never reports.
#[test]
fn case_76_numbers_of_small_messages_come_round() {
    let mut net = Net::new(9, Link::clean(1e9, Duration::from_millis(1)), 2);
    for n in 0..700 {
        let send = net.send(0, 1, message(3000, n), n % 2 == 0);
        net.run(60 * SECOND);
        assert_eq!(net.outcomes[0].get(&send), Some(&Ok(())), "{n}");
    }
    let came: Vec<_> = net.received[1].iter().map(|(_, frame)| content(frame)).collect();
    let sent: Vec<_> = (0..700).map(|n| content(&message(3000, n))).collect();
    assert_eq!(came, sent);
}

#[test]
fn a_peer_that_was_not_there_is_asked_again() {
    let mut net = Net::new(3, Link { loss: 1.0, ..Link::clean(1e9, Duration::from_millis(1)) }, 2);
    let lost = net.send(0, 1, message(MIB, 1), false);
    net.run(60 * SECOND);
    assert_eq!(net.outcomes[0].get(&lost), Some(&Err(Failure::TooLarge)));
    net.wire.link.loss = 0.0;
    let sent = net.send(0, 1, message(MIB, 2), false);
    net.run(60 * SECOND);
    assert_eq!(net.outcomes[0].get(&sent), Some(&Ok(())));
}

/// Small frames and large messages over a bad line, to an application that takes its time over each
/// and drops every third.
#[test]
fn case_110_what_is_not_handled_is_not_acknowledged_and_nothing_comes_twice() {
    let (mut handled, mut lost) = (0, 0);
    for seed in 0..seeds(200) {
        let mut random = Random(seed ^ 0x110);
        let link = Link { loss: 0.2, duplicate: 0.2, reorder: 0.2, ..Link::clean(50e6, SECOND / 50) };
        let mut net = Net::new(seed, link, 2);
        net.takes = false;
        let lens: Vec<usize> = (0..9).map(|_| [10, 3000, 400_000][random.below(3) as usize]).collect();
        let sends: Vec<SendId> =
            lens.iter().zip(0..).map(|(len, n)| net.send(0, 1, message(*len, n), true)).collect();
        // Longer than it takes to ask several times, and shorter than the sender's patience.
        let until = net.now + SECOND * 2;
        while net.now < until && net.step() {
            assert!(
                net.outcomes[0].is_empty(),
                "seed {seed}: an outcome that nobody knows: {:?}",
                net.outcomes[0]
            );
        }
        let untaken = std::mem::take(&mut net.untaken[1]);
        let arrived: Vec<FrameBytes> = net.received[1].iter().map(|(_, frame)| frame.clone()).collect();
        assert_eq!(untaken.len(), arrived.len(), "seed {seed}");
        let now = net.now;
        for (n, (from, wanted)) in untaken.into_iter().enumerate() {
            if n % 3 == 2 {
                net.nodes[1].1.forgo(now, from, wanted);
            } else {
                net.nodes[1].1.acknowledge(now, from, wanted);
            }
        }
        net.drain(1);
        net.run(SECOND * 60);
        for (at, (_, frame)) in net.received[1].iter().enumerate() {
            let again = net.received[1].iter().skip(at + 1).any(|(_, other)| other.payload == frame.payload);
            assert!(!again, "seed {seed}: something came twice");
        }
        for (n, (len, send)) in lens.iter().zip(&sends).enumerate() {
            let payload = message(*len, n as u64).payload;
            let place = arrived.iter().position(|frame| frame.payload == payload);
            let expected = match place {
                Some(place) if place % 3 != 2 => Ok(()),
                _ => Err(Failure::TimedOut),
            };
            // The acknowledgements that remain may all be lost, though hardly ever.
            let outcome = &net.outcomes[0][send];
            assert!(*outcome == expected || expected.is_ok(), "seed {seed}, message {n}: {outcome:?}");
            handled += u64::from(expected.is_ok());
            lost += u64::from(*outcome != expected);
        }
    }
    assert!(lost * 20 <= handled, "{lost} of {handled} acknowledgements were lost for good");
}

/// Small frames that are acknowledged, so many outstanding at once, over a link that loses this
/// share: each has to come once, and to be acknowledged.
fn once(frames: u64, outstanding: u64, loss: f64) {
    let link = Link { loss, duplicate: 0.1, reorder: 0.1, ..Link::clean(1e9, Duration::from_millis(10)) };
    // One that is lost so often that its sender gives up is another matter.
    let patience = Patience { give_up: 600 * SECOND, ..Patience::default() };
    let config = EndpointConfig { patience, ..EndpointConfig::default() };
    let mut net = Net::with_config(frames + outstanding, link, 2, config);
    let number = |frame: &FrameBytes| std::str::from_utf8(&frame.payload).unwrap().parse::<u64>().unwrap();
    let mut times = vec![0_u8; frames as usize];
    let (mut sent, mut acknowledged) = (0, 0);
    while acknowledged < frames {
        while sent < frames && sent - acknowledged < outstanding {
            let frame = FrameBytes::new(FrameType::Data, HeadersBuf::default(), sent.to_string().into());
            net.nodes[0].1.send(net.now, address(1), frame, true);
            sent += 1;
        }
        net.drain(0);
        assert!(net.step(), "{acknowledged} of {frames} acknowledged, and nothing happens any more");
        for (_, frame) in std::mem::take(&mut net.received[1]) {
            times[number(&frame) as usize] += 1;
        }
        for (send, result) in std::mem::take(&mut net.outcomes[0]) {
            assert_eq!(result, Ok(()), "{send:?}");
            acknowledged += 1;
        }
    }
    let twice = times.iter().filter(|times| **times != 1).count();
    assert_eq!(twice, 0, "{frames} frames, {outstanding} outstanding, {loss} lost");
}

#[test]
fn case_122_frames_come_once_however_many_are_outstanding_and_lost() {
    for (frames, outstanding, loss) in [
        (20_000, 1, 0.2),
        (60_000, 4_000, 0.1),
        (60_000, 4_097, 0.2),
        (60_000, 60_000, 0.1),
        (30_000, 256, 0.0),
    ] {
        once(frames, outstanding, loss);
    }
}

#[test]
#[ignore = "takes minutes: a million frames"]
fn case_122_a_million_frames_come_once() {
    for (outstanding, loss) in [(4_000, 0.1), (100_000, 0.2), (100_000, 0.0)] {
        once(1_000_000, outstanding, loss);
    }
}
