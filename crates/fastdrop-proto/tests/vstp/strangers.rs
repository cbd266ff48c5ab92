//! Addresses that are made up, beside clients that are there (case 125).

use super::net::*;
use fastdrop_proto::vstp::{
    EndpointConfig, Failure, Flags, FrameBytes, FrameType, HeadersBuf, ReassemblyLimits,
};
use fastdrop_testing::network::{Link, Random};
use std::net::SocketAddr;
use std::time::Duration;

/// A datagram of somebody who may not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Acknowledged,
    AcknowledgedOf02,
    Fragment,
    FragmentOf02,
    WholePayloadOf02,
    Probe,
    Challenge,
    Proof,
    Report,
    Arrived,
}

impl Kind {
    const ALL: [Self; 11] = [
        Self::Plain,
        Self::Acknowledged,
        Self::AcknowledgedOf02,
        Self::Fragment,
        Self::FragmentOf02,
        Self::WholePayloadOf02,
        Self::Probe,
        Self::Challenge,
        Self::Proof,
        Self::Report,
        Self::Arrived,
    ];

    fn datagram(self, random: &mut Random) -> Vec<u8> {
        let number = (1 << 62) + (random.next() >> 2 | 1);
        let fragment = |id: String, total: &str| {
            vec![("frag-id", id), ("frag-index", "0".to_owned()), ("frag-total", total.to_owned())]
        };
        let (typ, flags, headers, payload): (_, _, Vec<(&str, String)>, usize) = match self {
            Self::Plain => (FrameType::Data, Flags::empty(), vec![], 10),
            Self::Acknowledged => {
                (FrameType::Data, Flags::REQ_ACK, vec![("msg-id", format!("0{number}"))], 1)
            }
            Self::AcknowledgedOf02 => {
                (FrameType::Data, Flags::REQ_ACK, vec![("msg-id", random.below(9).to_string())], 1)
            }
            Self::Fragment => (FrameType::Data, Flags::FRAG, fragment(format!("0{number}"), "9999"), 1000),
            Self::FragmentOf02 => (FrameType::Data, Flags::FRAG, fragment("7".into(), "200"), 1000),
            Self::WholePayloadOf02 => (FrameType::Data, Flags::FRAG, fragment("7".into(), "2"), 1300),
            Self::Probe => {
                let mut headers = fragment("07".into(), "2");
                headers.push(("frag-probe", "1".into()));
                (FrameType::Data, Flags::FRAG, headers, 0)
            }
            Self::Challenge => (FrameType::Ping, Flags::empty(), vec![("challenge", "1".into())], 8),
            Self::Proof => (FrameType::Pong, Flags::empty(), vec![("challenge", "1".into())], 8),
            Self::Report => (FrameType::Ack, Flags::empty(), vec![("frag-id", "07".into())], 12),
            Self::Arrived => (FrameType::Ack, Flags::empty(), vec![("arrived", "07".into())], 12),
        };
        let mut buf = HeadersBuf::default();
        for (key, value) in headers {
            buf.push(key.as_bytes(), value.as_bytes()).unwrap();
        }
        let frame = FrameBytes::new(typ, buf, vec![0x20; payload].into()).with_flag(flags);
        let mut out = Vec::new();
        frame.as_ref().encode(&mut out).unwrap();
        out
    }
}

fn made_up(random: &mut Random) -> SocketAddr {
    let ip = [11, random.below(256) as u8, random.below(256) as u8, random.below(256) as u8];
    SocketAddr::from((ip, 1024 + random.below(60_000) as u16))
}

/// Datagrams of made-up addresses, so many a second, beside what happens anyway.
struct Flood {
    random: Random,
    interval: Duration,
    /// None: each of them.
    kind: Option<Kind>,
    /// Bytes that came from these addresses, and that went to them.
    came: u64,
}

impl Flood {
    fn new(seed: u64, a_second: u32, kind: Option<Kind>) -> Self {
        Self { random: Random(seed), interval: SECOND / a_second, kind, came: 0 }
    }

    /// Until `done`, or `limit` has passed.
    fn run(&mut self, net: &mut Net, limit: Duration, done: impl Fn(&Net) -> bool) {
        let end = net.now + limit;
        while net.now < end && !done(net) {
            let at = net.now + self.interval;
            while net.next_at().is_some_and(|next| next <= at) && net.step() {}
            net.now = net.now.max(at);
            let kind = self.kind.unwrap_or(Kind::ALL[self.random.below(Kind::ALL.len() as u64) as usize]);
            let datagram = kind.datagram(&mut self.random);
            let from = made_up(&mut self.random);
            self.came += datagram.len() as u64;
            net.nodes[0].1.handle_datagram(net.now, from, &datagram);
            net.drain(0);
        }
    }
}

/// A frame as a program of 0.2 sends it.
fn of_02(msg_id: u64) -> Vec<u8> {
    let mut headers = HeadersBuf::default();
    headers.push(b"msg-id", msg_id.to_string().as_bytes()).unwrap();
    let frame = FrameBytes::new(FrameType::Data, headers, b"old".to_vec().into());
    let mut out = Vec::new();
    frame.with_flag(Flags::REQ_ACK).as_ref().encode(&mut out).unwrap();
    out
}

/// During a flood, a client that was there before, one that comes, and a program of 0.2 are served,
/// and made-up addresses get no more than three times what came from them.
fn served(seed: u64, kind: Option<Kind>, rtt: Duration) {
    let mut net = Net::new(seed, Link::clean(1e9, rtt), 3);
    let early = net.send(1, 0, message(10, 1), true);
    net.run(SECOND * 5);
    assert_eq!(net.outcomes[1].get(&early), Some(&Ok(())));
    let mut flood = Flood::new(seed, 100_000, kind);
    flood.run(&mut net, SECOND / 5, |_| false);
    net.forget_received(0);
    let sends = [
        (1, net.send(1, 0, message(10, 2), true)),
        (1, net.send(1, 0, message(2 * MIB, 3), true)),
        (2, net.send(2, 0, message(10, 4), true)),
        (2, net.send(2, 0, message(2 * MIB, 5), true)),
        (2, net.send(2, 0, message(20_000, 6), true)),
    ];
    // A program of 0.2 repeats what is not acknowledged.
    let old = SocketAddr::from(([12, 0, 0, 1], 4000));
    for msg_id in 1..=3 {
        let now = net.now;
        net.nodes[0].1.handle_datagram(now, old, &of_02(msg_id));
        net.drain(0);
    }
    assert!(net.sent_to.get(&old).is_some_and(|bytes| *bytes > 0), "{kind:?}: 0.2 is not answered");
    let before = net.now;
    flood.run(&mut net, SECOND * 20, |net| {
        sends.iter().all(|(client, send)| net.outcomes[*client].contains_key(send))
    });
    for (client, send) in sends {
        assert_eq!(net.outcomes[client].get(&send), Some(&Ok(())), "{kind:?}: client {client}, {send:?}");
    }
    let took = net.now - before;
    assert!(took < SECOND * 8, "{kind:?}: {took:?}");
    for n in 2..=6 {
        let wanted = content(&message(
            if n == 6 {
                20_000
            } else if n % 2 == 0 {
                10
            } else {
                2 * MIB
            },
            n,
        ));
        let times = net.received[0].iter().filter(|(_, frame)| content(frame) == wanted).count();
        assert_eq!(times, 1, "{kind:?}: {n} came {times} times");
    }
    let went: u64 =
        net.sent_to.iter().filter(|(to, _)| to.ip().to_string().starts_with("11.")).map(|(_, n)| n).sum();
    assert!(went <= 3 * flood.came, "{went} bytes for {}", flood.came);
    let counters = net.nodes[0].1.counters();
    eprintln!("{kind:?}, {rtt:?}: served in {took:?}, {counters:?}, {} bytes of memory", net.memory_max);
    assert!(net.memory_max < 150 * MIB, "{}", net.memory_max);
}

#[test]
fn case_125_clients_are_served_during_a_flood_of_any_kind() {
    for (seed, kind) in (1..).zip(Kind::ALL) {
        served(seed, Some(kind), Duration::from_millis(20));
    }
}

#[test]
fn case_125_clients_with_any_round_trip_are_served_during_a_flood_of_all_kinds() {
    for rtt_ms in [1, 50, 400] {
        served(rtt_ms, None, Duration::from_millis(rtt_ms));
    }
}

#[test]
fn case_125_a_thousand_spoofed_fragments_do_not_stop_large_messages() {
    let mut net = Net::new(125, Link::clean(1e9, Duration::from_millis(20)), 2);
    let mut random = Random(125);
    for kind in [Kind::Fragment, Kind::FragmentOf02] {
        for _ in 0..1000 {
            let datagram = kind.datagram(&mut random);
            let now = net.now;
            net.nodes[0].1.handle_datagram(now, made_up(&mut random), &datagram);
            net.drain(0);
        }
    }
    let send = net.send(1, 0, message(20 * MIB, 1), false);
    let until = net.now + SECOND * 5;
    while net.now < until && !net.outcomes[1].contains_key(&send) && net.step() {}
    assert_eq!(net.outcomes[1].get(&send), Some(&Ok(())));
    assert!(net.nodes[0].1.unfinished() <= 500, "{}", net.nodes[0].1.unfinished());
}

/// A fragment that could not be kept whatever others had costs them nothing.
#[test]
fn case_125_a_fragment_that_cannot_be_kept_costs_other_strangers_nothing() {
    let mut net = Net::new(130, Link::clean(1e9, Duration::from_millis(20)), 1);
    let mut random = Random(130);
    for _ in 0..50 {
        let datagram = Kind::FragmentOf02.datagram(&mut random);
        net.inject(0, made_up(&mut random), &datagram);
    }
    assert_eq!(net.nodes[0].1.unfinished(), 50);
    for (index, total, len) in [(9000, 9999, 1000), (8193, 9999, 10), (4_000_000, 5_000_000, 20)] {
        net.inject(0, made_up(&mut random), &fragment("7", index, total, len));
    }
    assert!(net.nodes[0].1.unfinished() >= 50, "{}", net.nodes[0].1.unfinished());
    assert_eq!(net.nodes[0].1.counters().expired, 0);
}

#[test]
fn case_125_twelve_thousand_addresses_keep_nobody_out() {
    for kind in Kind::ALL {
        let mut net = Net::new(126, Link::clean(1e9, Duration::from_millis(20)), 2);
        let mut random = Random(126);
        for _ in 0..12_000 {
            let datagram = kind.datagram(&mut random);
            let now = net.now;
            net.nodes[0].1.handle_datagram(now, made_up(&mut random), &datagram);
            net.drain(0);
        }
        let send = net.send(1, 0, message(10, 1), true);
        let until = net.now + SECOND * 5;
        while net.now < until && !net.outcomes[1].contains_key(&send) && net.step() {}
        assert_eq!(net.outcomes[1].get(&send), Some(&Ok(())), "{kind:?}");
    }
}

/// An application that answers strangers with much, after they have been forgotten, is no
/// amplifier.
#[test]
fn case_125_whoever_answers_a_forgotten_stranger_does_not_speak_first() {
    let config = EndpointConfig { peers_max: 20, ..EndpointConfig::default() };
    let mut net = Net::with_config(127, Link::clean(1e9, Duration::from_millis(20)), 2, config);
    let mut random = Random(127);
    let (mut came, mut strangers) = (0, Vec::new());
    for _ in 0..500 {
        let datagram = Kind::Plain.datagram(&mut random);
        strangers.push(made_up(&mut random));
        came += datagram.len() as u64;
        let now = net.now;
        net.nodes[0].1.handle_datagram(now, strangers[strangers.len() - 1], &datagram);
        net.drain(0);
    }
    for stranger in strangers {
        let now = net.now;
        net.nodes[0].1.send(now, stranger, message(1000, 1), true);
        net.drain(0);
    }
    net.run(SECOND * 30);
    assert!(net.sent_bytes[0] <= 3 * came, "{} for {came}", net.sent_bytes[0]);
    let told = net.outcomes[0].values();
    assert_eq!(told.filter(|told| matches!(told, Err(Failure::Unproved | Failure::TimedOut))).count(), 500);
}

/// Known addresses are as many as the setting says; one that is alive is not forgotten for another.
#[test]
fn case_125_an_address_that_is_alive_is_not_forgotten_for_others() {
    let config = EndpointConfig { peers_max: 8, ..EndpointConfig::default() };
    let mut net = Net::with_config(128, Link::clean(1e9, Duration::from_millis(20)), 20, config);
    for round in 0..3 {
        for client in 1..20 {
            net.send(client, 0, message(10, round), true);
            net.run(SECOND);
        }
        net.run(SECOND * 20);
    }
    let served = |net: &Net, client: usize| net.outcomes[client].values().filter(|told| told.is_ok()).count();
    assert!((1..9).all(|client| served(&net, client) == 3), "those that came first are served on");
    // Others are, when these have been silent for long enough that nobody repeats anything.
    net.now += SECOND * 61;
    let late = net.send(19, 0, message(10, 9), true);
    net.run(SECOND * 20);
    assert_eq!(net.outcomes[19].get(&late), Some(&Ok(())));
}

/// Frames that strangers send and nobody takes are bounded, and do not count against others.
#[test]
fn case_125_what_strangers_send_and_nobody_takes_is_bounded() {
    let limits = ReassemblyLimits { bytes_max: 4 * MIB, ..ReassemblyLimits::default() };
    let config = EndpointConfig { limits, ..EndpointConfig::default() };
    let mut net = Net::with_config(129, Link::clean(1e9, Duration::from_millis(20)), 2, config);
    net.keeps = true;
    let mut random = Random(129);
    for _ in 0..20_000 {
        let datagram = Kind::WholePayloadOf02.datagram(&mut random);
        let mut plain = Kind::Plain.datagram(&mut random);
        let from = made_up(&mut random);
        let now = net.now;
        net.nodes[0].1.handle_datagram(now, from, &datagram);
        net.nodes[0].1.handle_datagram(now, from, &plain);
        plain.clear();
        net.drain(0);
    }
    assert!(net.memory_max <= 4 * MIB, "{}", net.memory_max);
    let send = net.send(1, 0, message(3 * MIB, 1), false);
    net.run(SECOND * 5);
    assert_eq!(net.outcomes[1].get(&send), Some(&Ok(())));
}
