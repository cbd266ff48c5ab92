//! VSTP beside bare sockets and beside the crate `vstp` 0.2.1: `cargo bench -p fastdrop-messages --bench vstp`.
//!
//! Each measurement has a process that sends and one that receives, each with a tokio runtime of two threads. The
//! contestants of one workload take turns within every round, in another order each time; what is printed are medians, and the median of the ratios within
//! the rounds. `-- --rounds 5 --only tcp,udp --json FILE` chooses.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    missing_docs
)]

use bytes::Bytes;
use fastdrop_messages::vstp::{self as ours, FrameBytes, FrameType, HeadersBuf};
use fastdrop_testing::peer::{Peer, say};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SECOND: Duration = Duration::from_secs(1);
/// How long one measurement of throughput sends.
const SENDING: Duration = Duration::from_millis(700);
const PINGS: usize = 20_000;
const DATAGRAM: usize = 1452;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Who {
    Raw,
    Ours,
    /// With frames that own their payload, as programs for 0.2 use them.
    OursOwned,
    Crate,
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Ours => "ours",
            Self::OursOwned => "ours-owned",
            Self::Crate => "crate",
        }
    }

    fn of(name: &str) -> Self {
        [Self::Raw, Self::Ours, Self::OursOwned, Self::Crate]
            .into_iter()
            .find(|who| who.name() == name)
            .unwrap()
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if arguments.first().map(String::as_str) == Some("peer") {
        let size = arguments[3].parse().unwrap();
        runtime.block_on(receive_as_peer(&arguments[1], Who::of(&arguments[2]), size));
        return;
    }
    let value = |flag: &str| {
        arguments.iter().position(|argument| argument == flag).map(|at| arguments[at + 1].clone())
    };
    let rounds = value("--rounds").map_or(5, |text| text.parse().unwrap());
    let only = value("--only");
    let wanted =
        |name: &str| only.as_ref().is_none_or(|only| only.split(',').any(|part| name.contains(part)));
    let mut results = Vec::new();
    for workload in workloads().into_iter().filter(|workload| wanted(workload.name)) {
        results.extend(workload.run(rounds, &runtime));
    }
    if let Some(file) = value("--json") {
        std::fs::write(file, serde_json::to_vec_pretty(&results).unwrap()).unwrap();
    }
}

struct Workload {
    name: &'static str,
    sizes: &'static [usize],
    who: &'static [Who],
    unit: &'static str,
    /// Whether less is better.
    is_time: bool,
}

fn workloads() -> Vec<Workload> {
    use Who::{Crate, Ours, OursOwned, Raw};
    vec![
        Workload {
            name: "tcp-throughput",
            sizes: &[64, 1 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, (8 << 20) - 64],
            who: &[Raw, Ours, OursOwned, Crate],
            unit: "MB/s",
            is_time: false,
        },
        Workload { name: "tcp-frames", sizes: &[64], who: &[Ours, Crate], unit: "frames/s", is_time: false },
        Workload {
            name: "tcp-latency",
            sizes: &[64],
            who: &[Raw, Ours, OursOwned, Crate],
            unit: "us",
            is_time: true,
        },
        Workload { name: "udp-latency", sizes: &[64], who: &[Raw, Ours, Crate], unit: "us", is_time: true },
        Workload {
            name: "udp-bulk",
            sizes: &[1 << 20, 64 << 20],
            who: &[Raw, Ours],
            unit: "MB/s",
            is_time: false,
        },
    ]
}

impl Workload {
    fn run(&self, rounds: usize, runtime: &tokio::runtime::Runtime) -> Vec<serde_json::Value> {
        let mut results = Vec::new();
        for &size in self.sizes {
            let mut measured: Vec<Vec<Vec<f64>>> = vec![Vec::new(); self.who.len()];
            for round in 0..=rounds {
                for turn in 0..self.who.len() {
                    let at = (turn + round) % self.who.len();
                    let figures = self.measure(self.who[at], size, runtime);
                    // The first round is for warming up.
                    if round > 0 {
                        measured[at].push(figures);
                    }
                }
            }
            let best: Vec<f64> = measured[0].iter().map(|figures| figures[0]).collect();
            for (who, rounds) in self.who.iter().zip(&measured) {
                let first: Vec<f64> = rounds.iter().map(|figures| figures[0]).collect();
                let ratios = first.iter().zip(&best).map(|(one, raw)| one / raw).collect();
                let figures: Vec<f64> = (0..rounds[0].len())
                    .map(|n| median(rounds.iter().map(|figures| figures[n]).collect()))
                    .collect();
                let ratio = median(ratios);
                let shown: Vec<String> = figures.iter().map(|figure| format!("{figure:.1}")).collect();
                println!(
                    "{} {size} {:<10} {} {} ({ratio:.2} x {})",
                    self.name,
                    who.name(),
                    shown.join(" / "),
                    self.unit,
                    self.who[0].name()
                );
                results.push(serde_json::json!({
                    "workload": self.name, "size": size, "who": who.name(), "figures": figures, "unit": self.unit,
                    "ratio": ratio, "less_is_better": self.is_time,
                }));
            }
        }
        results
    }

    /// Throughput: one figure. Latency: p50, p99, p99.9.
    fn measure(&self, who: Who, size: usize, runtime: &tokio::runtime::Runtime) -> Vec<f64> {
        let mut peer = Peer::start(&[self.name, who.name(), &size.to_string()]);
        let to = peer.address;
        let sent = runtime.block_on(async {
            match self.name {
                "tcp-throughput" | "tcp-frames" => {
                    tcp_send(who, size, to).await;
                    Vec::new()
                }
                "tcp-latency" => percentiles(tcp_pings(who, size, to).await),
                "udp-latency" => percentiles(udp_pings(who, size, to).await),
                "udp-bulk" => udp_send(who, size, to).await,
                other => panic!("{other}"),
            }
        });
        if sent.is_empty() { vec![peer.line().parse().unwrap()] } else { sent }
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn percentiles(mut times: Vec<Duration>) -> Vec<f64> {
    times.sort();
    [0.5, 0.99, 0.999].map(|part| times[(times.len() as f64 * part) as usize].as_secs_f64() * 1e6).to_vec()
}

async fn receive_as_peer(workload: &str, who: Who, size: usize) {
    match workload {
        "tcp-throughput" => tcp_receive(who, size, false).await,
        "tcp-frames" => tcp_receive(who, size, true).await,
        "tcp-latency" => tcp_echo(who, size).await,
        "udp-latency" => udp_echo(who).await,
        "udp-bulk" => udp_receive(who).await,
        other => panic!("{other}"),
    }
}

fn frame(size: usize) -> FrameBytes {
    FrameBytes::new(FrameType::Data, HeadersBuf::default(), Bytes::from(vec![0x5a; size]))
}

// ---- TCP ----

async fn tcp_send(who: Who, size: usize, to: SocketAddr) {
    let until = Instant::now() + SENDING;
    match who {
        Who::Raw => {
            let mut stream = TcpStream::connect(to).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let payload = vec![0x5a; size];
            while Instant::now() < until {
                for _ in 0..16 {
                    stream.write_all(&payload).await.unwrap();
                }
            }
        }
        Who::Ours => {
            let mut client = ours::VstpTcpClient::connect(&to.to_string()).await.unwrap();
            let frame = frame(size);
            while Instant::now() < until {
                for _ in 0..16 {
                    client.feed_bytes(&frame).await.unwrap();
                }
            }
            client.close().await.unwrap();
        }
        Who::OursOwned => {
            let mut client = ours::VstpTcpClient::connect(&to.to_string()).await.unwrap();
            let frame = ours::Frame::new(FrameType::Data).with_payload(vec![0x5a; size]);
            while Instant::now() < until {
                for _ in 0..16 {
                    client.send(frame.clone()).await.unwrap();
                }
            }
            client.close().await.unwrap();
        }
        Who::Crate => {
            let mut client = vstp::VstpTcpClient::connect(&to.to_string()).await.unwrap();
            let frame = vstp::Frame::new(vstp::FrameType::Data).with_payload(vec![0x5a; size]);
            while Instant::now() < until {
                for _ in 0..16 {
                    client.send(frame.clone()).await.unwrap();
                }
            }
            client.close().await.unwrap();
        }
    }
}

async fn tcp_receive(who: Who, size: usize, frames: bool) {
    let mut count = 0_u64;
    let start;
    match who {
        Who::Raw => {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            say(listener.local_addr().unwrap());
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = vec![0; size];
            start = Instant::now();
            while stream.read_exact(&mut buffer).await.is_ok() {
                count += 1;
            }
        }
        Who::Ours | Who::OursOwned => {
            let server = ours::VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
            say(server.local_addr().unwrap());
            let mut connection = server.accept().await.unwrap();
            start = Instant::now();
            if who == Who::Ours {
                while let Some(frame) = connection.recv_bytes().await.unwrap() {
                    count += u64::from(frame.payload.len() == size);
                }
            } else {
                while let Some(frame) = connection.recv().await.unwrap() {
                    count += u64::from(frame.payload.len() == size);
                }
            }
        }
        Who::Crate => {
            let server = vstp::VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
            say(server.local_addr().unwrap());
            let mut connection = server.accept().await.unwrap();
            start = Instant::now();
            while let Ok(Some(frame)) = connection.recv().await {
                count += u64::from(frame.payload.len() == size);
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let units = if frames { count as f64 } else { count as f64 * size as f64 / 1e6 };
    say(units / seconds);
}

async fn tcp_pings(who: Who, size: usize, to: SocketAddr) -> Vec<Duration> {
    let mut times = Vec::with_capacity(PINGS);
    match who {
        Who::Raw => {
            let mut stream = TcpStream::connect(to).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let payload = vec![0x5a; size];
            let mut back = vec![0; size];
            for _ in 0..PINGS {
                let start = Instant::now();
                stream.write_all(&payload).await.unwrap();
                stream.read_exact(&mut back).await.unwrap();
                times.push(start.elapsed());
            }
        }
        Who::Ours => {
            let mut client = ours::VstpTcpClient::connect(&to.to_string()).await.unwrap();
            let frame = frame(size);
            for _ in 0..PINGS {
                let start = Instant::now();
                client.send_bytes(&frame).await.unwrap();
                assert_eq!(client.recv_bytes().await.unwrap().unwrap().payload.len(), size);
                times.push(start.elapsed());
            }
        }
        Who::OursOwned => {
            let mut client = ours::VstpTcpClient::connect(&to.to_string()).await.unwrap();
            let frame = ours::Frame::new(FrameType::Data).with_payload(vec![0x5a; size]);
            for _ in 0..PINGS {
                let start = Instant::now();
                client.send(frame.clone()).await.unwrap();
                assert_eq!(client.recv().await.unwrap().unwrap().payload.len(), size);
                times.push(start.elapsed());
            }
        }
        Who::Crate => {
            let mut client = vstp::VstpTcpClient::connect(&to.to_string()).await.unwrap();
            let frame = vstp::Frame::new(vstp::FrameType::Data).with_payload(vec![0x5a; size]);
            for _ in 0..PINGS {
                let start = Instant::now();
                client.send(frame.clone()).await.unwrap();
                assert_eq!(client.recv().await.unwrap().unwrap().payload.len(), size);
                times.push(start.elapsed());
            }
        }
    }
    times
}

async fn tcp_echo(who: Who, size: usize) {
    match who {
        Who::Raw => {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            say(listener.local_addr().unwrap());
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut buffer = vec![0; size];
            while stream.read_exact(&mut buffer).await.is_ok() {
                stream.write_all(&buffer).await.unwrap();
            }
        }
        Who::Ours | Who::OursOwned => {
            let server = ours::VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
            say(server.local_addr().unwrap());
            let mut connection = server.accept().await.unwrap();
            if who == Who::Ours {
                while let Ok(Some(frame)) = connection.recv_bytes().await {
                    connection.send_bytes(&frame).await.unwrap();
                }
            } else {
                while let Ok(Some(frame)) = connection.recv().await {
                    connection.send(frame).await.unwrap();
                }
            }
        }
        Who::Crate => {
            let server = vstp::VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
            say(server.local_addr().unwrap());
            let mut connection = server.accept().await.unwrap();
            while let Ok(Some(frame)) = connection.recv().await {
                connection.send(frame).await.unwrap();
            }
        }
    }
}

// ---- UDP ----

async fn udp_pings(who: Who, size: usize, to: SocketAddr) -> Vec<Duration> {
    let mut times = Vec::with_capacity(PINGS);
    match who {
        Who::Ours => {
            let client = ours::VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
            let frame = frame(size);
            for _ in 0..PINGS {
                let start = Instant::now();
                client.send_bytes(frame.clone(), to).await.unwrap();
                client.recv_bytes().await.unwrap();
                times.push(start.elapsed());
            }
        }
        Who::Crate => {
            let mut client = vstp::VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
            let frame = vstp::Frame::new(vstp::FrameType::Data).with_payload(vec![0x5a; size]);
            for _ in 0..PINGS {
                let start = Instant::now();
                client.send(frame.clone(), to).await.unwrap();
                client.recv().await.unwrap();
                times.push(start.elapsed());
            }
        }
        _ => {
            let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let payload = vec![0x5a; size];
            let mut back = vec![0; 2048];
            for _ in 0..PINGS {
                let start = Instant::now();
                socket.send_to(&payload, to).await.unwrap();
                socket.recv_from(&mut back).await.unwrap();
                times.push(start.elapsed());
            }
        }
    }
    times
}

async fn udp_echo(who: Who) {
    match who {
        Who::Ours => {
            let server = ours::VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
            say(server.local_addr().unwrap());
            loop {
                let (frame, from) = server.recv_bytes().await.unwrap();
                server.send_bytes(frame, from).await.unwrap();
            }
        }
        Who::Crate => {
            let server = vstp::VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
            say(server.local_addr().unwrap());
            loop {
                let (frame, from) = server.recv().await.unwrap();
                server.send(frame, from).await.unwrap();
            }
        }
        _ => {
            let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
            say(socket.local_addr().unwrap());
            let mut buffer = vec![0; 2048];
            loop {
                let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
                socket.send_to(&buffer[..len], from).await.unwrap();
            }
        }
    }
}

/// Payload bytes a second, as the sender knows them to have arrived; empty where only the receiver knows.
async fn udp_send(who: Who, size: usize, to: SocketAddr) -> Vec<f64> {
    if who == Who::Ours {
        let client = ours::VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
        let frame = frame(size);
        let start = Instant::now();
        let mut bytes = 0;
        while start.elapsed() < SENDING {
            client.send_bytes(frame.clone(), to).await.unwrap();
            bytes += size;
        }
        return vec![bytes as f64 / 1e6 / start.elapsed().as_secs_f64()];
    }
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let state = quinn_udp::UdpSocketState::new((&socket).into()).unwrap();
    let segments = state.max_gso_segments().min(65_000 / DATAGRAM);
    let contents = vec![0x5a; segments * DATAGRAM];
    let segment_size = Some(DATAGRAM);
    let transmit =
        quinn_udp::Transmit { destination: to, ecn: None, contents: &contents, segment_size, src_ip: None };
    tokio::task::block_in_place(|| {
        let until = Instant::now() + SENDING;
        while Instant::now() < until {
            // Full socket buffers are what raw datagrams come to.
            let _ = state.try_send((&socket).into(), &transmit);
        }
        std::thread::sleep(SECOND / 20);
        socket.send_to(b"end", to).unwrap();
    });
    Vec::new()
}

async fn udp_receive(who: Who) {
    if who == Who::Ours {
        let server = ours::VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
        say(server.local_addr().unwrap());
        loop {
            server.recv_bytes().await.unwrap();
        }
    }
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    say(socket.local_addr().unwrap());
    tokio::task::block_in_place(|| {
        let mut buffer = vec![0; 2048];
        let mut bytes = 0;
        let mut start = None;
        let mut last = Instant::now();
        loop {
            let (len, _) = socket.recv_from(&mut buffer).unwrap();
            if len == 3 {
                break;
            }
            bytes += len;
            last = Instant::now();
            start.get_or_insert(last);
        }
        say(bytes as f64 / 1e6 / (last - start.unwrap()).as_secs_f64());
    });
}
