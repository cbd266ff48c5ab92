//! Small frames over lines that are narrower than their senders.

use crate::net::{MIB, Net, SECOND, address, message};
use fastdrop_proto::vstp::{
    Acknowledgement, Endpoint, EndpointConfig, Flags, FrameRef, FrameType, HeadersBuf,
};
use fastdrop_testing::network::{Link, Random};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Costs of a run over a line.
#[derive(Debug)]
struct Cost {
    /// Datagrams that left for each message.
    datagrams: f64,
    /// The share of the line that the messages filled, each counted once.
    share: f64,
}

/// Sends acknowledged frames of `len` bytes, `outstanding` at once, for about `seconds` of the
/// line.
fn acknowledged(seed: u64, link: &Link, len: usize, outstanding: u64, seconds: f64) -> Cost {
    let mut net = Net::new(seed, link.clone(), 2);
    let wire = message(len, 0).as_ref().encoded_len() + 28 + 28;
    let frames = (link.bytes_per_second * seconds / wire as f64) as u64;
    let mut sent = 0;
    let mut done = 0;
    while done < frames {
        while sent < frames && sent - done < outstanding {
            net.send(0, 1, message(len, 1_000_000 + sent), true);
            sent += 1;
        }
        assert!(net.step(), "{done} of {frames}");
        assert!(net.elapsed() < 100 * SECOND, "{done} of {frames}");
        for (_, result) in std::mem::take(&mut net.outcomes[0]) {
            assert_eq!(result, Ok(()));
            done += 1;
        }
        net.received[1].clear();
    }
    let elapsed = net.elapsed().as_secs_f64();
    let cost = Cost {
        datagrams: net.sent_datagrams[0] as f64 / frames as f64,
        share: (frames as usize * wire) as f64 / elapsed / link.bytes_per_second,
    };
    eprintln!("seed {seed}, {len} bytes, {outstanding} at once: {cost:.3?}");
    cost
}

/// Bits a second, milliseconds of a round trip, and seconds of each run.
const LINES: [(f64, u64, f64); 4] = [(20e6, 40, 6.0), (5e6, 40, 6.0), (5e6, 10, 6.0), (100e6, 20, 2.0)];

#[test]
fn case_123_acknowledged_frames_on_a_narrow_line_leave_once_and_fill_it() {
    for (bits, rtt, seconds) in LINES {
        let link = Link::clean(bits, Duration::from_millis(rtt));
        for (seed, (len, outstanding)) in
            [(64, 4_000), (1_000, 1_000_000), (300, 8_000)].into_iter().enumerate()
        {
            let cost = acknowledged(seed as u64, &link, len, outstanding, seconds);
            assert!(cost.datagrams <= 1.1 && cost.share >= 0.9, "{bits} {rtt} {cost:?}");
        }
    }
}

#[test]
fn case_123_loss_that_is_not_congestion_costs_what_is_lost() {
    for loss in [0.01, 0.05, 0.2] {
        let link = Link { loss, ..Link::clean(20e6, Duration::from_millis(40)) };
        let cost = acknowledged(7, &link, 300, 4_000, 6.0);
        // What is lost leaves again, and what loses its answer.
        let needed = 1.0 / ((1.0 - loss) * (1.0 - loss));
        assert!(cost.datagrams <= needed * 1.1 && cost.share >= 0.85 * (1.0 - loss), "{loss} {cost:?}");
    }
}

/// Frames that a peer has and its application takes its time over do not leave again, and do not
/// hold back others.
#[test]
fn case_123_a_slow_application_costs_no_datagrams() {
    let link = Link::clean(20e6, Duration::from_millis(40));
    let mut net = Net::new(5, link, 2);
    net.takes = false;
    let mut random = Random(5);
    let mut working: BTreeMap<(Instant, u64), (SocketAddr, Acknowledgement)> = BTreeMap::new();
    let (mut sent, mut done, mut handed) = (0, 0, 0);
    while done < 3_000 {
        while sent < 3_000 && sent - done < 1_000 {
            net.send(0, 1, message(100, sent), true);
            sent += 1;
        }
        let (from, frames) = (net.now, std::mem::take(&mut net.untaken[1]));
        for (sender, wanted) in frames {
            handed += 1;
            working.insert((from + Duration::from_millis(random.below(450)), handed), (sender, wanted));
        }
        let next = working.first_key_value().map(|((at, _), _)| *at);
        if next.is_none_or(|at| net.next_at().is_some_and(|event| event < at)) {
            assert!(net.step());
        } else if let Some(((at, _), (sender, wanted))) = working.pop_first() {
            net.now = net.now.max(at);
            net.nodes[1].1.acknowledge(net.now, sender, wanted);
            net.drain(1);
        }
        done +=
            std::mem::take(&mut net.outcomes[0]).into_values().map(|result| result.unwrap()).count() as u64;
    }
    assert_eq!(handed, 3_000, "handed on twice");
    assert!(net.sent_datagrams[0] <= 3_300, "{}", net.sent_datagrams[0]);
    assert!(net.elapsed() < 3 * SECOND, "{:?}", net.elapsed());
}

/// Small frames and a large message share what there is.
#[test]
fn small_frames_and_a_large_message_have_half_each() {
    let link = Link::clean(20e6, Duration::from_millis(40));
    let mut net = Net::new(5, link, 2);
    let large = net.send(0, 1, message(5 * MIB, 0), true);
    let (mut sent, mut done) = (0, 0);
    let mut large_done = false;
    while !large_done {
        while sent - done < 2_000 {
            net.send(0, 1, message(300, sent), true);
            sent += 1;
        }
        assert!(net.step() && net.elapsed() < 60 * SECOND);
        for (send, result) in std::mem::take(&mut net.outcomes[0]) {
            assert_eq!(result, Ok(()));
            large_done |= send == large;
            done += u64::from(send != large);
        }
    }
    let bytes = done as f64 * 400.0;
    let share = bytes / (bytes + 5.0 * MIB as f64);
    assert!((0.35..=0.65).contains(&share), "small frames had {share:.2} of the line");
    assert!(net.elapsed() < 6 * SECOND, "{:?}", net.elapsed());
}

/// Frames that want no acknowledgement: how many leave at once, arrive, and how long that takes.
fn plain(link: &Link, frames: u64, len: usize) -> (u64, u64, Duration) {
    let mut net = Net::new(9, link.clone(), 2);
    for n in 0..frames {
        net.send(0, 1, message(len, n), false);
    }
    let at_once = net.sent_datagrams[0];
    net.run(600 * SECOND);
    assert_eq!(net.outcomes[0].len() as u64, frames, "one outcome each");
    (at_once, net.received[1].len() as u64, net.elapsed())
}

#[test]
fn case_123_frames_without_acknowledgement_leave_at_the_rate_of_the_path() {
    for (bits, rtt) in [(20e6, 40), (5e6, 40), (1e9, 1)] {
        let link = Link::clean(bits, Duration::from_millis(rtt));
        let (frames, len) = (4_000, 1_000);
        let (at_once, came, took) = plain(&link, frames, len);
        let line = Duration::from_secs_f64(frames as f64 * (len + 60) as f64 / link.bytes_per_second);
        eprintln!(
            "{bits} {rtt}: {at_once} at once, {came} of {frames} came in {took:?}, the line needs {line:?}"
        );
        assert!(at_once <= 90, "{at_once}");
        assert!(came as f64 >= 0.9 * frames as f64, "{came}");
        assert!(took <= line * 3 / 2 + SECOND / 4, "{took:?} for {line:?}");
    }
}

/// Few acknowledged frames do not show the rate of a path.
#[test]
fn frames_without_acknowledgement_are_as_fast_after_a_few_that_want_one() {
    let link = Link::clean(20e6, Duration::from_millis(40));
    let mut net = Net::new(9, link, 2);
    for n in 0..5 {
        net.send(0, 1, message(10, n), true);
        net.run(SECOND);
    }
    let start = net.now;
    for n in 0..2_000 {
        net.send(0, 1, message(1_000, n), false);
    }
    net.run(60 * SECOND);
    let (came, took) = (net.received[1].len(), net.now - start);
    assert!(came >= 1_800 && took < 3 * SECOND, "{came} came in {took:?}, the line needs 0.85 s");
}

/// Towards a program of version 0.2, which acknowledges and reports nothing.
#[test]
fn frames_without_acknowledgement_keep_their_rate_towards_version_0_2() {
    let mut now = Instant::now();
    let (there, mut endpoint) = (address(1), Endpoint::new(EndpointConfig::default(), [3; 16]));
    let mut out = Vec::new();
    endpoint.send(now, there, message(10, 0), true);
    assert!(endpoint.poll_transmit(now, 1, &mut out).is_some());
    let (frame, _) = FrameRef::decode(&out, 2_000).unwrap().unwrap();
    let number = frame.headers.number("msg-id").unwrap().to_string();
    let mut headers = HeadersBuf::default();
    headers.push(b"msg-id", number.as_bytes()).unwrap();
    let mut ack = Vec::new();
    let payload = b"".as_slice();
    FrameRef { typ: FrameType::Ack, flags: Flags::empty(), headers: headers.as_headers(), payload }
        .encode(&mut ack)
        .unwrap();
    now += SECOND / 10;
    endpoint.handle_datagram(now, there, &ack);
    let start = now;
    for n in 0..4_000 {
        endpoint.send(now, there, message(1_000, n), false);
    }
    let mut bytes = 0;
    while !endpoint.is_idle() {
        while endpoint.poll_transmit(now, 16, &mut out).is_some() {
            bytes += out.len();
        }
        while endpoint.poll_event().is_some() {}
        let Some(at) = endpoint.poll_timeout() else { break };
        now = now.max(at);
        endpoint.handle_timeout(now);
    }
    assert!(bytes > 4_000_000 && now - start < 5 * SECOND, "{bytes} bytes in {:?}", now - start);
}

/// A message whose last fragments are lost goes on while others are reported.
#[test]
fn the_tail_of_a_message_is_not_forgotten_for_others() {
    let link = Link { loss: 0.1, ..Link::clean(50e6, Duration::from_millis(20)) };
    let mut net = Net::new(77, link, 2);
    let (mut sent, mut done) = (0, 0);
    while done < 400 {
        while sent < 400 && sent - done < 6 {
            net.send(0, 1, message(20_000, sent), sent % 2 == 0);
            sent += 1;
        }
        assert!(net.step());
        for (send, result) in std::mem::take(&mut net.outcomes[0]) {
            assert_eq!(result, Ok(()), "{send:?} of {sent}");
            done += 1;
        }
    }
    assert_eq!(net.received[1].len(), 400);
    assert!(net.elapsed() < 30 * SECOND, "{:?}", net.elapsed());
}

#[test]
fn a_few_frames_without_acknowledgement_leave_at_once() {
    let link = Link::clean(5e6, Duration::from_millis(40));
    let (at_once, came, _) = plain(&link, 60, 200);
    assert!((60..64).contains(&at_once) && came == 60, "{at_once} left, {came} came");
}

/// Nobody is told that a frame has left which waits, and nobody waits for ever for one that is not
/// there.
#[test]
fn frames_without_acknowledgement_to_nobody_leave_all_the_same() {
    let link = Link { loss: 1.0, ..Link::clean(100e6, Duration::from_millis(10)) };
    let (_, came, took) = plain(&link, 4_000, 1_000);
    assert_eq!(came, 0);
    assert!(took < 12 * SECOND, "{took:?}");
}

/// Both ends send many small frames at once, one in answer to the other's.
#[test]
fn case_123_answers_to_many_frames_do_not_stop() {
    let link = Link::clean(1e9, Duration::from_millis(1));
    let mut net = Net::new(5, link, 2);
    for n in 0..1_024 {
        net.send(0, 1, message(10, n), true);
    }
    let (mut answered, mut again, mut done) = (0, 0, 0);
    while net.elapsed() < 20 * SECOND && answered < 1_500 {
        assert!(net.step(), "{answered} {again} {done}");
        if net.received[1].len() == 1_024 && answered == 0 {
            for n in 0..1_024 {
                net.send(1, 0, message(30, n), true);
                answered += 1;
            }
        }
        while answered >= 1_024 && answered < net.received[1].len() {
            net.send(1, 0, message(30, answered as u64), true);
            answered += 1;
        }
        while again < net.received[0].len() && again < 476 {
            net.send(0, 1, message(10, 1_024 + again as u64), true);
            again += 1;
        }
        done += net.outcomes[1].len();
        net.outcomes[1].clear();
    }
    assert!(net.elapsed() < 2 * SECOND, "{answered} {again} {done} {:?}", net.elapsed());
}
