//! Burst mode over a link with a long way, beside the ceiling `window × size / RTT` and beside stop-and-wait.

use crate::plot::{Chart, Line};
use crate::{median, relay};
use bytes::Bytes;
use fastdrop_messages::cnp::{Client, Config, Mode, Protocol, Server};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SIZE: usize = 1000;
const WINDOWS: [u16; 6] = [1, 4, 16, 64, 256, 1024];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Who {
    /// A message, and one byte back, without any protocol.
    RawStopAndWait,
    StepByStep,
    Burst(Protocol, u16),
}

impl Who {
    fn name(self) -> String {
        match self {
            Self::RawStopAndWait => "raw TCP, stop-and-wait".into(),
            Self::StepByStep => "step-by-step".into(),
            Self::Burst(protocol, window) => format!("burst {} {window}", protocol.as_str()),
        }
    }

    fn window(self) -> u16 {
        match self {
            Self::RawStopAndWait | Self::StepByStep => 1,
            Self::Burst(_, window) => window,
        }
    }
}

pub(crate) fn run(rounds: usize, runtime: &tokio::runtime::Runtime) -> (Vec<Value>, Chart) {
    let mut who = vec![Who::RawStopAndWait, Who::StepByStep];
    for protocol in [Protocol::SelectiveRepeat, Protocol::GoBackN] {
        who.extend(WINDOWS.map(|window| Who::Burst(protocol, window)));
    }
    let (mut results, mut lines) = (Vec::new(), Vec::new());
    for (at, rtt_ms) in [10_u64, 100].into_iter().enumerate() {
        let rtt = Duration::from_millis(rtt_ms);
        let mut measured = vec![Vec::new(); who.len()];
        for round in 0..rounds {
            for turn in 0..who.len() {
                let at = (turn + round) % who.len();
                measured[at].push(runtime.block_on(measure(who[at], rtt)));
            }
        }
        let ceiling = |window: u16| f64::from(window) / rtt.as_secs_f64();
        let mut points = [Vec::new(), Vec::new()];
        for (who, rates) in who.iter().zip(measured) {
            let rate = median(rates.clone());
            let share = rate / ceiling(who.window());
            println!(
                "window {rtt_ms:>3} ms {:<24} {rate:>9.0} a second, {share:.3} of the ceiling",
                who.name()
            );
            results.push(json!({
                "part": "window", "rtt_ms": rtt_ms, "who": who.name(), "messages_per_second": rate, "all": rates, "of_ceiling": share,
            }));
            if let Who::Burst(protocol, window) = *who {
                points[usize::from(protocol == Protocol::GoBackN)].push((f64::from(window), rate));
            }
        }
        let [repeat, back] = points;
        let ceilings = WINDOWS.map(|window| (f64::from(window), ceiling(window))).to_vec();
        lines.push(Line::computed(2 * at, format!("ceiling, {rtt_ms} ms"), ceilings));
        lines.push(Line::measured(2 * at, format!("Selective Repeat, {rtt_ms} ms"), repeat));
        lines.push(Line::measured(2 * at + 1, format!("Go-Back-N, {rtt_ms} ms"), back));
    }
    let chart = Chart {
        title: "Messages of 1,000 bytes a second by window".into(),
        x: "window (packets)".into(),
        y: "acknowledged messages a second".into(),
        log: (true, true),
        lines,
    };
    (results, chart)
}

async fn measure(who: Who, rtt: Duration) -> f64 {
    if who == Who::RawStopAndWait {
        return raw(rtt).await;
    }
    let mut server = Server::bind("127.0.0.1:0").await.unwrap();
    let through = relay::delay(server.local_addr(), rtt);
    let client = match who {
        Who::Burst(protocol, window) => {
            Client::builder().protocol(protocol).config(Config::default().window(window))
        }
        _ => Client::builder().mode(Mode::StepByStep),
    };
    let client = client.connect(through).await.unwrap();
    let session = server.accept().await.unwrap();
    let take = tokio::spawn(async move { while let Ok(Some(_)) = session.recv().await {} });
    // The ceiling is that of whole windows, each of which takes one round trip.
    let count = u64::from(who.window()) * trips(rtt);
    let message = Bytes::from(vec![0x5a; SIZE]);
    let start = Instant::now();
    for _ in 0..count {
        client.submit(message.clone()).await.unwrap();
    }
    client.flush().await.unwrap();
    let rate = count as f64 / start.elapsed().as_secs_f64();
    client.close().await.unwrap();
    take.await.unwrap();
    rate
}

/// Round trips that are measured: about a second of them.
fn trips(rtt: Duration) -> u64 {
    (1000 / rtt.as_millis() as u64).max(10)
}

async fn raw(rtt: Duration) -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to: SocketAddr = listener.local_addr().unwrap();
    let mut stream = TcpStream::connect(relay::delay(to, rtt)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut other, _) = listener.accept().await.unwrap();
    let answers = tokio::spawn(async move {
        let mut message = [0; SIZE];
        while other.read_exact(&mut message).await.is_ok() {
            other.write_all(b"A").await.unwrap();
        }
    });
    let (message, mut answer) = ([0x5a; SIZE], [0]);
    let start = Instant::now();
    for _ in 0..trips(rtt) {
        stream.write_all(&message).await.unwrap();
        stream.read_exact(&mut answer).await.unwrap();
    }
    let rate = trips(rtt) as f64 / start.elapsed().as_secs_f64();
    drop(stream);
    answers.await.unwrap();
    rate
}
