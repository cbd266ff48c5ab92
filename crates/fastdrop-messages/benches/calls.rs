//! Calls a second on one connection: `cargo bench -p fastdrop-messages --bench calls`.
//!
//! Requests and replies of 64 bytes, with 64 callers at once, between two processes, each with a
//! tokio runtime of two threads. `raw` is what the same runtime does when each of the 64 has a bare
//! TCP connection of its own, and so no call has to be told from another.
//! `-- --rounds 7 --who raw,vstp --json FILE` chooses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::indexing_slicing)]

use bytes::Bytes;
use fastdrop_messages::cnp;
use fastdrop_messages::vstp::{Frame, FrameBytes, FrameType, HeadersBuf, VstpTcpClient, VstpTcpServer};
use fastdrop_testing::measure::{Arguments, median, rounds};
use fastdrop_testing::peer::{Peer, say};
use std::future::pending;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const SIZE: usize = 64;
const CALLERS: u64 = 64;
const CALLING: Duration = Duration::from_millis(1500);

const WHO: [&str; 4] = ["raw", "vstp", "vstp-bytes", "cnp"];

fn main() {
    let arguments = Arguments::of_this_process();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let Some([who]) = arguments.of_peer() {
        return runtime.block_on(serve(who));
    }
    let who: Vec<_> = WHO.into_iter().filter(|who| arguments.has_part(who)).collect();
    let measured = rounds(arguments.rounds(), who.len(), |at| {
        let peer = Peer::start(&[who[at]]);
        runtime.block_on(call(who[at], peer.address))
    });
    let mut results = Vec::new();
    for (who, rates) in who.iter().zip(measured) {
        let rate = median(rates.iter().copied());
        println!("calls {who:<10} {rate:>8.0} a second");
        results.push(serde_json::json!({ "who": who, "calls_per_second": rate, "all": rates }));
    }
    if let Some(file) = arguments.value("--json") {
        std::fs::write(file, serde_json::to_vec_pretty(&results).unwrap()).unwrap();
    }
}

async fn serve(who: &str) {
    match who {
        "raw" => {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            say(listener.local_addr().unwrap());
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                tokio::spawn(async move {
                    let mut message = [0; SIZE];
                    while stream.read_exact(&mut message).await.is_ok() {
                        stream.write_all(&message).await.unwrap();
                    }
                });
            }
        }
        "cnp" => {
            let server = cnp::Server::builder().udp(false).bind("127.0.0.1:0").await.unwrap();
            say(server.local_addr());
            server.run_calls(CALLERS as usize, |request| async move { Ok(request.body) }).await;
        }
        _ => {
            let server = VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
            say(server.local_addr().unwrap());
            server.serve_calls(pending(), |call| async move { Ok(call.into_frame()) }).await.unwrap();
        }
    }
}

/// A request that no other caller makes.
fn request(caller: u64) -> Vec<u8> {
    let mut request = vec![0x5a; SIZE];
    request[..8].copy_from_slice(&caller.to_be_bytes());
    request
}

/// Calls a second.
async fn call(who: &str, to: SocketAddr) -> f64 {
    let start = Instant::now();
    let until = start + CALLING;
    let mut callers = JoinSet::new();
    match who {
        "raw" => {
            for caller in 0..CALLERS {
                callers.spawn(async move {
                    let mut stream = TcpStream::connect(to).await.unwrap();
                    stream.set_nodelay(true).unwrap();
                    let (request, mut reply, mut count) = (request(caller), [0; SIZE], 0);
                    while Instant::now() < until {
                        stream.write_all(&request).await.unwrap();
                        stream.read_exact(&mut reply).await.unwrap();
                        assert_eq!(reply[..], request);
                        count += 1;
                    }
                    count
                });
            }
        }
        "cnp" => {
            let client = cnp::Client::builder().connect(to).await.unwrap();
            for caller in 0..CALLERS {
                let session = cnp::Session::clone(&client);
                callers.spawn(async move {
                    let (request, mut count) = (Bytes::from(request(caller)), 0);
                    while Instant::now() < until {
                        assert_eq!(session.call(request.clone()).await.unwrap(), request);
                        count += 1;
                    }
                    count
                });
            }
        }
        "vstp" => {
            let session = VstpTcpClient::connect(&to.to_string()).await.unwrap().into_session();
            for caller in 0..CALLERS {
                let session = session.clone();
                callers.spawn(async move {
                    let request = request(caller);
                    let frame = Frame::new(FrameType::Data).with_payload(request.clone());
                    let mut count = 0;
                    while Instant::now() < until {
                        assert_eq!(session.call(frame.clone()).await.unwrap().payload(), request);
                        count += 1;
                    }
                    count
                });
            }
        }
        _ => {
            let session = VstpTcpClient::connect(&to.to_string()).await.unwrap().into_session();
            for caller in 0..CALLERS {
                let session = session.clone();
                callers.spawn(async move {
                    let request = Bytes::from(request(caller));
                    let frame = FrameBytes::new(FrameType::Data, HeadersBuf::default(), request.clone());
                    let mut count = 0;
                    while Instant::now() < until {
                        let reply = session.call_bytes(frame.clone(), Duration::from_secs(30)).await;
                        assert_eq!(reply.unwrap().payload, request);
                        count += 1;
                    }
                    count
                });
            }
        }
    }
    let mut count = 0_u64;
    while let Some(calls) = callers.join_next().await {
        count += calls.unwrap();
    }
    count as f64 / start.elapsed().as_secs_f64()
}
