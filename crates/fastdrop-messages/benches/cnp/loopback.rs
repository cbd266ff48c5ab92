//! Messages of 64 bytes a second over loopback, from one process to another.

use crate::median;
use bytes::Bytes;
use fastdrop_messages::cnp::{ChecksumKind, Client, ClientBuilder, Config, Mode, Server};
use fastdrop_testing::peer::{Peer, say};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SIZE: usize = 64;
const SENDING: Duration = Duration::from_millis(1500);
/// What is written at once where nobody waits for anything.
const BATCH: usize = 1024;

/// The contestants; those of `raw` have no protocol at all.
const WHO: [&str; 7] = [
    "raw-unacknowledged",
    "raw-stop-and-wait",
    "step-by-step-md5",
    "burst-1024-md5",
    "burst-1024-crc32c",
    "burst-1024-md5-udp",
    "burst-1024-crc32c-udp",
];

pub(crate) fn run(rounds: usize, runtime: &tokio::runtime::Runtime) -> Vec<Value> {
    let mut measured = vec![Vec::new(); WHO.len()];
    for round in 0..=rounds {
        for turn in 0..WHO.len() {
            let at = (turn + round) % WHO.len();
            let mut peer = Peer::start(&[WHO[at]]);
            let rate = runtime.block_on(send(WHO[at], peer.address));
            // Everything has come, each once.
            assert_eq!(peer.line(), "done");
            // The first round is for warming up.
            if round > 0 {
                measured[at].push(rate);
            }
        }
    }
    let figures = WHO.iter().zip(measured).map(|(who, rates)| {
        let rate = median(rates.clone());
        println!("loopback {who:<22} {rate:>10.0} messages of {SIZE} bytes a second");
        json!({ "part": "loopback", "who": who, "messages_per_second": rate, "all": rates })
    });
    figures.collect()
}

fn client(who: &str) -> ClientBuilder {
    let mut client = Client::builder().config(Config::default().window(1024));
    if who.starts_with("step") {
        client = client.mode(Mode::StepByStep);
    }
    if who.contains("md5") {
        client = client.checksum(ChecksumKind::Md5);
    }
    if who.ends_with("udp") { client.udp() } else { client }
}

/// Messages a second that were acknowledged; of `raw-unacknowledged`, that were written and read.
async fn send(who: &str, to: SocketAddr) -> f64 {
    let message = Bytes::from(vec![0x5a; SIZE]);
    let mut count = 0_u64;
    let start;
    match who {
        "raw-unacknowledged" => {
            let mut stream = TcpStream::connect(to).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let batch = message.repeat(BATCH);
            start = Instant::now();
            while start.elapsed() < SENDING {
                stream.write_all(&batch).await.unwrap();
                count += BATCH as u64;
            }
            stream.shutdown().await.unwrap();
            // The other end closes when it has read everything.
            stream.read_to_end(&mut Vec::new()).await.unwrap();
        }
        "raw-stop-and-wait" => {
            let mut stream = TcpStream::connect(to).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut answer = [0];
            start = Instant::now();
            while start.elapsed() < SENDING {
                stream.write_all(&message).await.unwrap();
                stream.read_exact(&mut answer).await.unwrap();
                count += 1;
            }
        }
        _ => {
            let client = client(who).connect(to).await.unwrap();
            start = Instant::now();
            while start.elapsed() < SENDING {
                for _ in 0..64 {
                    client.submit(message.clone()).await.unwrap();
                    count += 1;
                }
            }
            client.flush().await.unwrap();
            let rate = count as f64 / start.elapsed().as_secs_f64();
            assert_eq!(client.stats().counters.messages_acknowledged, count);
            client.close().await.unwrap();
            return rate;
        }
    }
    count as f64 / start.elapsed().as_secs_f64()
}

pub(crate) async fn receive(who: &str) {
    if !who.starts_with("raw") {
        let mut server = Server::bind("127.0.0.1:0").await.unwrap();
        say(server.local_addr());
        let session = server.accept().await.unwrap();
        let mut count = 0_u64;
        while let Some(message) = session.recv().await.unwrap() {
            assert_eq!(message.len(), SIZE);
            count += 1;
        }
        assert_eq!(session.stats().counters.messages_received, count);
        return say("done");
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    say(listener.local_addr().unwrap());
    let (mut stream, _) = listener.accept().await.unwrap();
    stream.set_nodelay(true).unwrap();
    if who == "raw-unacknowledged" {
        let mut buffer = vec![0; 256 << 10];
        while stream.read(&mut buffer).await.unwrap() > 0 {}
    } else {
        let mut message = [0; SIZE];
        while stream.read_exact(&mut message).await.is_ok() {
            stream.write_all(b"A").await.unwrap();
        }
    }
    say("done");
}
