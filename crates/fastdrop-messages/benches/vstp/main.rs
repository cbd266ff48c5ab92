//! VSTP beside bare sockets and beside the crate `vstp` 0.2.1: `cargo bench -p fastdrop-messages
//! --bench vstp`.
//!
//! Each measurement has a process that sends and one that receives, each with a tokio runtime of
//! two threads. The contestants of one workload take turns within every round, in another order
//! each time; what is printed are medians, and the median of the ratios within the rounds. `--
//! --rounds 7 --only tcp,udp --who raw,ours --json FILE` chooses.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    missing_docs
)]

mod raw_udp;

use bytes::Bytes;
use fastdrop_messages::vstp::{self as ours, FrameBytes, FrameType, HeadersBuf};
use fastdrop_testing::measure::{Arguments, median, percentiles, rounds};
use fastdrop_testing::peer::{Peer, say};
use serde_json::Value;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// How long one measurement of throughput sends.
const SENDING: Duration = Duration::from_millis(700);
const PINGS: usize = 20_000;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Who {
    Raw,
    Ours,
    /// With frames that own their payload, as programs for 0.2 use them.
    OursOwned,
    Crate,
    /// With a system call for each datagram at either end.
    RawEach,
    /// With a system call for many datagrams at either end.
    RawMany,
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Ours => "ours",
            Self::OursOwned => "ours-owned",
            Self::Crate => "crate",
            Self::RawEach => "raw-each",
            Self::RawMany => "raw-many",
        }
    }

    fn of(name: &str) -> Self {
        [Self::Raw, Self::Ours, Self::OursOwned, Self::Crate, Self::RawEach, Self::RawMany]
            .into_iter()
            .find(|who| who.name() == name)
            .unwrap()
    }
}

fn main() {
    let arguments = Arguments::of_this_process();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let Some([workload, who, size]) = arguments.of_peer() {
        let (workload, who, size) = (workload.clone(), Who::of(who), size.parse().unwrap());
        return runtime.block_on(as_task(async move { receive_as_peer(&workload, who, size).await }));
    }
    let mut results = Vec::new();
    for workload in workloads().into_iter().filter(|workload| arguments.wants(workload.name)) {
        results.extend(match workload.mtu.filter(|_| arguments.value("--inside").is_none()) {
            Some(mtu) => inside(mtu, workload.name, &arguments),
            None => workload.run(&arguments, &runtime),
        });
    }
    if let Some(file) = arguments.value("--json") {
        std::fs::write(file, serde_json::to_vec_pretty(&results).unwrap()).unwrap();
    }
}

/// Runs a workload in a network namespace whose interface takes packets of so many bytes. Whoever
/// is not root needs the right to make namespaces of users.
fn inside(mtu: usize, name: &str, arguments: &Arguments) -> Vec<Value> {
    let results = tempfile::NamedTempFile::new().unwrap();
    let is_root = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap()) == 0;
    let status = Command::new("unshare")
        .args(if is_root { &["--net"][..] } else { &["--net", "--map-root-user"] })
        .args(["sh", "-c", &format!("ip link set lo mtu {mtu} up && exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["--inside", "yes", "--only", name, "--rounds", &arguments.rounds().to_string()])
        .args(arguments.value("--who").into_iter().flat_map(|who| ["--who", who]))
        .arg("--json")
        .arg(results.path())
        .status()
        .unwrap();
    assert!(status.success(), "{name}: no namespace, or it failed there");
    serde_json::from_slice(&std::fs::read(results.path()).unwrap()).unwrap()
}

struct Workload {
    name: &'static str,
    sizes: &'static [usize],
    who: &'static [Who],
    unit: &'static str,
    /// Measured over an interface of so many bytes, and not over loopback as it is.
    mtu: Option<usize>,
    /// Whether less is better.
    is_time: bool,
}

fn workloads() -> Vec<Workload> {
    use Who::{Crate, Ours, OursOwned, Raw, RawEach, RawMany};
    vec![
        Workload {
            name: "tcp-throughput",
            sizes: &[64, 1 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, (8 << 20) - 64],
            who: &[Raw, Ours, OursOwned, Crate],
            unit: "MB/s",
            mtu: None,
            is_time: false,
        },
        Workload {
            name: "tcp-frames",
            sizes: &[64],
            who: &[Ours, Crate],
            unit: "frames/s",
            mtu: None,
            is_time: false,
        },
        Workload {
            name: "tcp-latency",
            sizes: &[64],
            who: &[Raw, Ours, OursOwned, Crate],
            unit: "us",
            mtu: None,
            is_time: true,
        },
        Workload {
            name: "udp-latency",
            sizes: &[64],
            who: &[Raw, Ours, Crate],
            unit: "us",
            mtu: None,
            is_time: true,
        },
        Workload {
            name: "udp-bulk",
            sizes: &[1 << 20, 16 << 20, 64 << 20],
            who: &[Raw, RawEach, RawMany, Ours],
            unit: "MB/s",
            mtu: None,
            is_time: false,
        },
        Workload {
            name: "udp-bulk-1500",
            sizes: &[1 << 20, 16 << 20, 64 << 20],
            who: &[Raw, RawEach, RawMany, Ours],
            unit: "MB/s",
            mtu: Some(1500),
            is_time: false,
        },
    ]
}

impl Workload {
    fn run(&self, arguments: &Arguments, runtime: &tokio::runtime::Runtime) -> Vec<Value> {
        let mut results = Vec::new();
        let who: Vec<_> = self.who.iter().copied().filter(|who| arguments.has_part(who.name())).collect();
        for &size in self.sizes {
            let measured = rounds(arguments.rounds(), who.len(), |at| self.measure(who[at], size, runtime));
            let raw = who[0];
            let best: Vec<f64> = measured[0].iter().map(|figures| figures[0]).collect();
            for (who, rounds) in who.iter().zip(&measured) {
                let first: Vec<f64> = rounds.iter().map(|figures| figures[0]).collect();
                let ratios = first.iter().zip(&best).map(|(one, raw)| one / raw);
                let figures: Vec<f64> =
                    (0..rounds[0].len()).map(|n| median(rounds.iter().map(|figures| figures[n]))).collect();
                let ratio = median(ratios);
                let shown: Vec<String> = figures.iter().map(|figure| format!("{figure:.1}")).collect();
                println!(
                    "{} {size} {:<10} {} {} ({ratio:.2} x {})",
                    self.name,
                    who.name(),
                    shown.join(" / "),
                    self.unit,
                    raw.name()
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
        let name = self.name;
        let sent = runtime.block_on(as_task(async move {
            match name {
                "tcp-throughput" | "tcp-frames" => {
                    tcp_send(who, size, to).await;
                    Vec::new()
                }
                "tcp-latency" => percentiles(tcp_pings(who, size, to).await),
                "udp-latency" => percentiles(udp_pings(who, size, to).await),
                "udp-bulk" | "udp-bulk-1500" => udp_send(who, size, to).await,
                other => panic!("{other}"),
            }
        }));
        if sent.is_empty() { vec![peer.line().parse().unwrap()] } else { sent }
    }
}

/// In a task of the runtime, as most of a program is; its own thread would have to be woken by
/// others.
async fn as_task<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    tokio::spawn(future).await.unwrap()
}

async fn receive_as_peer(workload: &str, who: Who, size: usize) {
    match workload {
        "tcp-throughput" => tcp_receive(who, size, false).await,
        "tcp-frames" => tcp_receive(who, size, true).await,
        "tcp-latency" => tcp_echo(who, size).await,
        "udp-latency" => udp_echo(who).await,
        "udp-bulk" | "udp-bulk-1500" => udp_receive(who, size).await,
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
        Who::Raw | Who::RawEach | Who::RawMany => {
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
        Who::Raw | Who::RawEach | Who::RawMany => {
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
        Who::Raw | Who::RawEach | Who::RawMany => {
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
        Who::Raw | Who::RawEach | Who::RawMany => {
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

/// Payload bytes a second, as the sender knows them to have arrived; empty where only the receiver
/// knows.
async fn udp_send(who: Who, size: usize, to: SocketAddr) -> Vec<f64> {
    if who != Who::Ours {
        raw_udp::send(who, size, to).await;
        return Vec::new();
    }
    let client = ours::VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
    let frame = frame(size);
    let start = Instant::now();
    let mut bytes = 0;
    while start.elapsed() < SENDING {
        client.send_bytes(frame.clone(), to).await.unwrap();
        bytes += size;
    }
    vec![bytes as f64 / 1e6 / start.elapsed().as_secs_f64()]
}

async fn udp_receive(who: Who, size: usize) {
    if who != Who::Ours {
        return raw_udp::receive(who, size).await;
    }
    let server = ours::VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    say(server.local_addr().unwrap());
    loop {
        server.recv_bytes().await.unwrap();
    }
}
