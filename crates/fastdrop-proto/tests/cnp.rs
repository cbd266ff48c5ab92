//! Two ends of CNP over a simulated network with virtual time and seeded faults.
//!
//! `CNP_SEEDS=10000 cargo test --release -p fastdrop-proto --test cnp` runs as many seeds; without it, a few hundred.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests")]

use bytes::Bytes;
use fastdrop_proto::cnp::{Carrier, ChecksumKind, Ending, Mode, Protocol, SessionConfig, WINDOW_MAX};
use fastdrop_testing::cnp::model;
use fastdrop_testing::cnp::pair::{Pair, flip_payload};
use fastdrop_testing::network::{Link, Random, payload};
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn seeds(default: u64) -> u64 {
    std::env::var("CNP_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Any configuration, over a network that does everything wrong. False if the session failed, though nothing but datagrams did.
fn mixture(seed: u64) -> bool {
    let mut random = Random(seed ^ 0xc4b);
    let level = |random: &mut Random, max: u64| random.below(max) as f64 / 1000.0;
    let carrier = if random.chance(0.75) { Carrier::Datagrams } else { Carrier::Stream };
    let mode = if random.chance(0.25) { Mode::StepByStep } else { Mode::Burst };
    let protocol = if random.chance(0.5) { Protocol::GoBackN } else { Protocol::SelectiveRepeat };
    let checksum = if random.chance(0.5) { ChecksumKind::Md5 } else { ChecksumKind::Crc32c };
    let window = match random.below(4) {
        0 => 1,
        1 => WINDOW_MAX,
        _ => 1 << random.below(15),
    };
    let packet_max = 1 + random.below(1024) as usize;
    let mut client =
        SessionConfig { mode, protocol, checksum, window, packet_max, ..SessionConfig::client(carrier) };
    if random.chance(0.3) {
        client.keep_alive = None;
    }
    // Older peers take the acknowledgement of a packet for that of its message.
    client.handled = random.chance(0.7);
    let server = SessionConfig::server(carrier);
    let link = Link {
        loss: level(&mut random, 300),
        duplicate: level(&mut random, 300),
        reorder: level(&mut random, 300),
        corrupt: level(&mut random, 100),
        ..Link::clean(1e6 + random.below(100) as f64 * 1e6, MS * (1 + random.below(200) as u32))
    };
    let mut pair = Pair::new(seed, link, client, server);
    if checksum == ChecksumKind::Md5 {
        pair.wire.damage = flip_payload;
    }
    pair.taken_after = MS * random.below(3) as u32 * random.below(300) as u32;
    for side in 0..2 {
        for n in 0..random.below(60) {
            let len = random.below(3) as usize * random.below(2000) as usize;
            pair.give(side, payload(len, seed * 1000 + n));
        }
    }
    pair.run(SECOND * 1_000_000);
    pair.check();
    let ending = pair.ended(0).expect("an end");
    let closed = *ending == Ending::Closed;
    // Everything that the client sends arrives before it closes; so does what the server sends, as the client waits for that, too.
    assert!(!closed || pair.is_complete(), "closed with something missing");
    // What is damaged on a stream outside of payloads breaks it, and in the handshake it does not come again.
    assert!(
        carrier == Carrier::Stream
            || matches!(ending, Ending::Closed | Ending::Gone | Ending::HandshakeTimeout),
        "{ending:?}"
    );
    closed || carrier == Carrier::Stream
}

#[test]
fn cases_76_and_95_every_message_comes_once_and_in_order_or_the_session_fails_in_words() {
    let first = std::env::var("CNP_FIRST").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let (count, mut survived) = (seeds(2000), 0);
    for seed in first..first + count {
        match std::panic::catch_unwind(|| mixture(seed)) {
            Ok(closed) => survived += u64::from(closed),
            Err(panic) => {
                eprintln!("seed {seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(survived * 100 >= count * 98, "{survived} of {count} sessions survived");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]
    #[test]
    fn whatever_happens_in_whatever_order_messages_are_those_of_a_queue(
        script in proptest::collection::vec(proptest::num::u8::ANY, 0..400)
    ) {
        model::run(&script);
    }
}

#[test]
fn nearly_all_sessions_survive_a_fifth_of_loss() {
    let mut closed = 0;
    for seed in 0..50 {
        let link = Link { loss: 0.2, ..Link::clean(10e6, MS * 40) };
        let config = SessionConfig::client(Carrier::Datagrams);
        let mut pair = Pair::new(seed, link, config, SessionConfig::server(Carrier::Datagrams));
        for n in 0..100 {
            pair.give(0, payload(500, n));
        }
        pair.run(SECOND * 600);
        pair.check();
        closed += u32::from(pair.ended(0) == Some(&Ending::Closed) && pair.is_complete());
    }
    assert!(closed >= 49, "{closed} of 50");
}

#[test]
fn case_76_sequence_numbers_come_round() {
    for (carrier, protocol, window) in [
        (Carrier::Stream, Protocol::SelectiveRepeat, 1024),
        (Carrier::Stream, Protocol::GoBackN, WINDOW_MAX),
        (Carrier::Datagrams, Protocol::SelectiveRepeat, WINDOW_MAX),
        (Carrier::Datagrams, Protocol::GoBackN, 100),
    ] {
        let client = SessionConfig { protocol, window, ..SessionConfig::client(carrier) };
        let link = Link { loss: 0.002, reorder: 0.01, duplicate: 0.01, ..Link::clean(1e9, MS) };
        let mut pair = Pair::new(7, link, client, SessionConfig::server(carrier));
        for n in 0..140_000_u32 {
            pair.give(0, n.to_be_bytes().to_vec().into());
        }
        pair.run(SECOND * 600);
        pair.check();
        assert!(pair.is_complete() && pair.ended(0) == Some(&Ending::Closed), "{carrier:?} {protocol:?}");
    }
}

#[test]
fn a_window_of_one_has_one_packet_out() {
    for mode in [Mode::StepByStep, Mode::Burst] {
        let client = SessionConfig { mode, window: 1, ..SessionConfig::client(Carrier::Datagrams) };
        let mut pair =
            Pair::new(1, Link::clean(1e9, MS * 100), client, SessionConfig::server(Carrier::Datagrams));
        for n in 0..20 {
            pair.give(0, payload(10, n));
        }
        pair.run_until_complete(SECOND * 60);
        assert!(pair.is_complete());
        // The handshake, and twenty round trips.
        let trips = pair.elapsed().as_secs_f64() / 0.1;
        assert!((21.0..21.1).contains(&trips), "{trips} round trips");
    }
}

/// Messages a second of 1,000 bytes from when the session is open.
fn rate(seed: u64, link: Link, protocol: Protocol, window: u16, count: u64) -> f64 {
    let carrier = Carrier::Datagrams;
    let client = SessionConfig { protocol, window, ..SessionConfig::client(carrier) };
    let mut pair = Pair::new(seed, link, client, SessionConfig::server(carrier));
    pair.open();
    let from = pair.elapsed();
    for n in 0..count {
        pair.give(0, payload(1000, n));
    }
    pair.run_until_complete(SECOND * 600);
    assert!(pair.is_complete(), "{:?} {:?}", pair.ended(0), pair.ended(1));
    count as f64 / (pair.elapsed() - from).as_secs_f64()
}

#[test]
fn a_window_is_used_up_to_its_ceiling() {
    for (rtt, window, count) in [(10, 32, 20_000), (100, 32, 3000), (100, 256, 20_000)] {
        let link = Link::clean(1e9, MS * rtt);
        let ceiling = f64::from(window) / (f64::from(rtt) / 1000.0);
        let measured = rate(1, link, Protocol::SelectiveRepeat, window, count);
        eprintln!("{rtt} ms, window {window}: {:.3} of the ceiling", measured / ceiling);
        assert!(measured >= 0.9 * ceiling, "{rtt} ms, window {window}: {measured} of {ceiling}");
    }
}

#[test]
fn case_95_goodput_under_loss_is_near_the_textbook() {
    // 20 Mbit/s and 10 ms: about 24 packets of 1,000 bytes fit the path.
    let line = Link::clean(20e6, MS * 10);
    let packet = 1000.0 + 11.0 + 28.0;
    let full = line.bytes_per_second / packet;
    let mut all = Vec::new();
    for loss in [0.01, 0.1] {
        let link = Link { loss, ..line.clone() };
        let repeat = rate(3, link.clone(), Protocol::SelectiveRepeat, 1024, 20_000) / full / (1.0 - loss);
        let window = 24;
        let w = f64::from(window);
        let textbook = (1.0 - loss) / (1.0 - loss + w * loss);
        let back = rate(3, link, Protocol::GoBackN, window, 10_000) / full / textbook;
        eprintln!("loss {loss}: Selective Repeat {repeat:.3} of the textbook, Go-Back-N {back:.3}");
        all.extend([repeat, back]);
    }
    assert!(all.iter().all(|share| *share >= 0.8), "{all:?}");
}

#[test]
fn case_97_an_application_that_takes_nothing_holds_the_sender_back_and_is_not_gone() {
    for carrier in [Carrier::Stream, Carrier::Datagrams] {
        let mut server = SessionConfig::server(carrier);
        server.limits.receive_max = 100_000;
        let mut pair = Pair::new(5, Link::clean(100e6, MS * 10), SessionConfig::client(carrier), server);
        for n in 0..3000 {
            pair.give(0, payload(1000, n));
        }
        pair.taken_after = SECOND * 1_000_000;
        pair.run(SECOND * 600);
        assert!(pair.memory_max[1] < 2 * 100_000, "{carrier:?}: {}", pair.memory_max[1]);
        assert_eq!(
            (pair.ended(0), pair.ended(1)),
            (None, None),
            "{carrier:?} {:?} {:?} {:?}",
            pair.elapsed(),
            pair.session(0).unwrap().counters(),
            pair.session(1).unwrap().counters()
        );
        pair.taken_after = Duration::ZERO;
        pair.take_all();
        let from = pair.elapsed();
        pair.run(SECOND * 600);
        assert!(pair.is_complete());
        assert!(pair.elapsed() - from < SECOND * 30, "{carrier:?}: {:?}", pair.elapsed() - from);
    }
}

#[test]
fn case_96_a_peer_that_falls_silent_is_gone() {
    for (carrier, gives) in [(Carrier::Stream, true), (Carrier::Datagrams, true), (Carrier::Datagrams, false)]
    {
        let config = SessionConfig { keep_alive: Some(SECOND), ..SessionConfig::client(carrier) };
        let mut pair = Pair::new(9, Link::clean(1e8, MS * 10), config, SessionConfig::server(carrier));
        pair.open();
        // Keep-alives keep it, however long nothing is said.
        pair.close_when_done = false;
        pair.run(SECOND * 300);
        assert_eq!((pair.ended(0), pair.ended(1)), (None, None));
        pair.silence();
        if gives {
            pair.give(0, Bytes::from_static(b"nobody hears this"));
        }
        let from = pair.elapsed();
        pair.run(SECOND * 300);
        assert_eq!((pair.ended(0), pair.ended(1)), (Some(&Ending::Gone), Some(&Ending::Gone)));
        assert!(pair.elapsed() - from <= SECOND * 5, "{:?}", pair.elapsed() - from);
    }
}

/// A script after which a receiver has its memory full of what is behind a gap, and everything on
/// its way is lost.
const FULL_BEHIND_A_GAP: [u8; 348] = [
    83, 34, 206, 36, 26, 0, 0, 0, 0, 0, 26, 0, 139, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 238, 214, 92, 0, 16, 0, 213, 0, 106, 0, 0, 0, 197, 0, 16, 0, 219, 0, 110,
    125, 8, 0, 57, 48, 252, 0, 28, 0, 29, 104, 53, 0, 57, 0, 110, 125, 144, 73, 114, 219, 27, 3, 62, 0, 204,
    0, 14, 0, 246, 0, 90, 0, 97, 73, 108, 2, 52, 0, 48, 25, 52, 0, 53, 0, 5, 0, 43, 0, 14, 180, 180, 0, 171,
    0, 5, 0, 87, 0, 43, 0, 162, 154, 127, 195, 150, 129, 1, 86, 31, 228, 231, 4, 126, 22, 180, 26, 241, 243,
    234, 190, 119, 226, 130, 105, 219, 70, 232, 115, 86, 72, 167, 105, 136, 191, 68, 231, 196, 187, 229, 87,
    170, 228, 246, 175, 29, 110, 208, 149, 86, 114, 123, 220, 142, 47, 102, 31, 214, 214, 194, 250, 176, 61,
    121, 96, 24, 154, 179, 155, 124, 229, 32, 235, 31, 26, 206, 228, 172, 146, 59, 8, 53, 213, 68, 84, 250,
    119, 55, 66, 154, 240, 227, 225, 115, 240, 191, 137, 246, 185, 239, 238, 92, 40, 200, 72, 166, 18, 23,
    251, 161, 123, 68, 72, 90, 97, 233, 100, 31, 17, 217, 13, 222, 242, 199, 90, 167, 74, 212, 217, 223, 240,
    118, 101, 18, 248, 185, 136, 200, 209, 114, 241, 97, 61, 134, 123, 66, 80, 132, 156, 21, 243, 4, 91, 238,
    62, 246, 252, 206, 78, 135, 70, 137, 107, 116, 148, 29, 148, 249, 81, 68, 252, 168, 128, 147, 218, 92,
    146, 34, 151, 190, 179, 193, 115, 12, 184, 179, 148, 100, 7, 42, 135, 205, 204, 245, 2, 171, 253, 71, 64,
    14, 200, 107, 242, 106, 95, 25, 194, 190, 164, 128, 31, 62, 178, 23, 206, 21, 235, 33, 205, 72, 202, 215,
    244, 155, 218, 155, 250,
];

/// The packets behind it were each sent again before it, and dropped.
#[test]
fn what_fills_a_gap_is_sent_before_what_there_is_no_room_for() {
    model::run(&FULL_BEHIND_A_GAP);
}
