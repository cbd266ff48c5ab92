//! Goodput under loss over a simulated link of 20 Mbit/s and 10 ms, beside the textbook: the link loses packets and acknowledgements alike, at random.

use crate::median;
use crate::plot::{Chart, Line};
use fastdrop_messages::cnp::Protocol;
use fastdrop_proto::cnp::{Carrier, SessionConfig};
use fastdrop_testing::cnp::pair::Pair;
use fastdrop_testing::network::{Link, payload};
use serde_json::{Value, json};
use std::time::Duration;

const LOSSES: [f64; 7] = [0.0, 0.001, 0.01, 0.02, 0.05, 0.1, 0.2];
const SIZE: usize = 1000;
/// What is on the line beside a message: the packet's header, and those of IPv4 and UDP.
const HEADERS: f64 = 11.0 + 28.0;
const SEEDS: u64 = 5;

struct Contestant {
    name: &'static str,
    protocol: Protocol,
    window: u16,
    count: u64,
}

/// As many packets as are on the way at once: with more, Go-Back-N would send more for nothing.
const ON_THE_WAY: u16 = 24;

const CONTESTANTS: [Contestant; 3] = [
    Contestant { name: "Selective Repeat", protocol: Protocol::SelectiveRepeat, window: 1024, count: 20_000 },
    Contestant { name: "Go-Back-N", protocol: Protocol::GoBackN, window: ON_THE_WAY, count: 10_000 },
    Contestant { name: "stop-and-wait", protocol: Protocol::SelectiveRepeat, window: 1, count: 1000 },
];

pub(crate) fn run() -> (Vec<Value>, Chart) {
    let line = Link::clean(20e6, Duration::from_millis(10));
    let full = line.bytes_per_second / (SIZE as f64 + HEADERS);
    let (mut results, mut lines) = (Vec::new(), Vec::new());
    for (color, contestant) in CONTESTANTS.into_iter().enumerate() {
        let Contestant { name, protocol, window, count } = contestant;
        let (mut measured, mut textbook) = (Vec::new(), Vec::new());
        for loss in LOSSES {
            let link = Link { loss, ..line.clone() };
            let rates = (1..=SEEDS).map(|seed| goodput(seed, link.clone(), protocol, window, count));
            let share = median(rates.collect()) / full;
            let expected = expected(window, protocol, loss, &line);
            println!(
                "loss {:>4.1} % {name:<17} {share:.3} of the line, {:.3} of the textbook",
                loss * 100.0,
                share / expected
            );
            results.push(json!({
                "part": "loss", "who": name, "window": window, "loss": loss, "of_line": share, "textbook": expected, "of_textbook": share / expected,
            }));
            measured.push((loss * 100.0, share));
            textbook.push((loss * 100.0, expected));
        }
        lines.push(Line::computed(color, format!("textbook, {name}"), textbook));
        lines.push(Line::measured(color, format!("{name}, window {window}"), measured));
    }
    let chart = Chart {
        title: "Goodput by loss, 20 Mbit/s and 10 ms".into(),
        x: "loss (percent)".into(),
        y: "share of the line".into(),
        log: (false, false),
        lines,
    };
    (results, chart)
}

/// The share of the line that the textbook promises, with loss of data alone.
fn expected(window: u16, protocol: Protocol, loss: f64, line: &Link) -> f64 {
    let w = f64::from(window);
    if window == 1 {
        // One message each round trip and its own time on the line.
        let sending = (SIZE as f64 + HEADERS) / line.bytes_per_second;
        return (1.0 - loss) * sending / (sending + 2.0 * line.delay.as_secs_f64());
    }
    match protocol {
        Protocol::SelectiveRepeat => 1.0 - loss,
        Protocol::GoBackN => (1.0 - loss) / (1.0 - loss + w * loss),
    }
}

/// Messages a second, from when the session is open until the last acknowledgement.
fn goodput(seed: u64, link: Link, protocol: Protocol, window: u16, count: u64) -> f64 {
    let client = SessionConfig { protocol, window, ..SessionConfig::client(Carrier::Datagrams) };
    let mut pair = Pair::new(seed, link, client, SessionConfig::server(Carrier::Datagrams));
    pair.open();
    let from = pair.elapsed();
    for n in 0..count {
        pair.give(0, payload(SIZE, n));
    }
    pair.run_until_complete(Duration::from_secs(100_000));
    assert!(pair.is_complete());
    count as f64 / (pair.elapsed() - from).as_secs_f64()
}
