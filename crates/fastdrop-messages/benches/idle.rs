//! Memory of a server with many connections that are idle: `cargo bench -p fastdrop-messages
//! --bench idle`.
//!
//! The clients are in another process; each sends one message of 64 bytes, has it acknowledged or
//! its call answered, and is idle then. What is printed is what is resident of the server's
//! process, before the first client and with all of them. `-- --connections 10000 --rounds 7 --who
//! vstp,vstp-tls --json FILE` chooses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::indexing_slicing)]

use fastdrop_messages::cnp;
use fastdrop_messages::tls::{ClientTls, Fingerprint, Identity, Trust};
use fastdrop_messages::vstp::tcp::{Session, TcpConfig};
use fastdrop_messages::vstp::{Frame, FrameType, VstpTcpClient, VstpTcpServer};
use fastdrop_testing::measure::{Arguments, median, rounds};
use fastdrop_testing::peer::{Peer, say};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::future::pending;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SIZE: usize = 64;
/// Handshakes at once.
const AT_ONCE: usize = 64;

const WHO: [&str; 6] = ["raw", "vstp", "vstp-calls", "vstp-tls", "cnp", "cnp-tls"];

fn main() {
    let arguments = Arguments::of_this_process();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let Some([who, count]) = arguments.of_peer() {
        return runtime.block_on(serve(who, count.parse().unwrap()));
    }
    allow_descriptors();
    let count = arguments.value("--connections").map_or(10_000, |text| text.parse().unwrap());
    let who: Vec<_> = WHO.into_iter().filter(|who| arguments.has_part(who)).collect();
    let measured = rounds(arguments.rounds(), who.len(), |at| {
        let mut peer = Peer::start(&[who[at], &count.to_string()]);
        let fingerprint = Fingerprint::from_hex(&peer.line());
        let empty = peer.resident();
        let held = runtime.block_on(connect(who[at], peer.address, fingerprint, count));
        let full = peer.resident();
        drop(held);
        [empty, full].map(|bytes| bytes as f64 / 1e6)
    });
    let mut results = Vec::new();
    for (who, measured) in who.iter().zip(measured) {
        let empty = median(measured.iter().map(|[empty, _]| *empty));
        let full = median(measured.iter().map(|[_, full]| *full));
        println!("idle {who:<10} {count} connections: {full:>6.1} MB resident, {empty:.1} MB without them");
        let all: Vec<_> = measured.iter().map(|[_, full]| *full).collect();
        results.push(serde_json::json!({ "who": who, "connections": count, "megabytes": full, "all": all }));
    }
    if let Some(file) = arguments.value("--json") {
        std::fs::write(file, serde_json::to_vec_pretty(&results).unwrap()).unwrap();
    }
}

/// Has this process, and those that it starts, open as many files as the system lets them.
fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

async fn serve(who: &str, count: usize) {
    let identity = who.ends_with("tls").then(|| Identity::generate(&["127.0.0.1"]).unwrap());
    let begun = |address: SocketAddr| {
        say(address);
        say(identity.as_ref().map_or_else(String::new, |identity| identity.fingerprint().to_string()));
    };
    if who == "raw" {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        begun(listener.local_addr().unwrap());
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut message = [0; SIZE];
                while stream.read_exact(&mut message).await.is_ok() {
                    stream.write_all(&message).await.unwrap();
                }
            });
        }
    }
    if who.starts_with("cnp") {
        let server = cnp::Server::builder().udp(false).sessions_max(count);
        let server = match &identity {
            Some(identity) => server.tls(identity),
            None => server,
        };
        let server = server.bind("127.0.0.1:0").await.unwrap();
        begun(server.local_addr());
        return server.run(|_, _| async {}).await;
    }
    let config = TcpConfig { connections_max: count, ..TcpConfig::default() };
    let server = match &identity {
        Some(identity) => VstpTcpServer::bind_tls("127.0.0.1:0", identity, config).await.unwrap(),
        None => VstpTcpServer::bind_with_config("127.0.0.1:0", config).await.unwrap(),
    };
    begun(server.local_addr().unwrap());
    if who == "vstp-calls" {
        server.serve_calls(pending(), |call| async move { Ok(call.into_frame()) }).await.unwrap();
    } else {
        server.run(|_, _| async {}).await.unwrap();
    }
}

/// A client that stays.
#[allow(dead_code, reason = "they are held")]
enum Held {
    Raw(TcpStream),
    Vstp(VstpTcpClient),
    Session(Session),
    Cnp(cnp::Client),
}

async fn connect(who: &'static str, to: SocketAddr, server: Option<Fingerprint>, count: usize) -> Vec<Held> {
    let tls = server.map(|fingerprint| ClientTls::new(Trust::Pinned(fingerprint)));
    let mut held = Vec::with_capacity(count);
    while held.len() < count {
        let beginning = (held.len()..count).take(AT_ONCE).map(|_| {
            let tls = tls.clone();
            tokio::spawn(async move { connect_one(who, to, tls).await })
        });
        for one in beginning.collect::<Vec<_>>() {
            held.push(one.await.unwrap());
        }
    }
    held
}

async fn connect_one(who: &str, to: SocketAddr, tls: Option<ClientTls>) -> Held {
    let message = vec![0x5a; SIZE];
    if who == "raw" {
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(&message).await.unwrap();
        stream.read_exact(&mut [0; SIZE]).await.unwrap();
        return Held::Raw(stream);
    }
    if who.starts_with("cnp") {
        let client = cnp::Client::builder();
        let client = match tls {
            Some(tls) => client.connect_tls(&to.to_string(), tls).await.unwrap(),
            None => client.connect(to).await.unwrap(),
        };
        client.send(message).await.unwrap();
        return Held::Cnp(client);
    }
    let to = to.to_string();
    let mut client = match tls {
        Some(tls) => VstpTcpClient::connect_tls(&to, tls, TcpConfig::default()).await.unwrap(),
        None => VstpTcpClient::connect(&to).await.unwrap(),
    };
    let frame = Frame::new(FrameType::Data).with_payload(message);
    if who == "vstp-calls" {
        let session = client.into_session();
        session.call(frame).await.unwrap();
        return Held::Session(session);
    }
    client.send_with_ack(frame).await.unwrap();
    Held::Vstp(client)
}
