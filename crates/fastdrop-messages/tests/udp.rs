//! UDP over real sockets, by way of a relay that loses, repeats and reorders.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

mod relay;

use fastdrop_messages::vstp::udp::{Departure, Failure, PeerEvent, ReassemblyLimits};
use fastdrop_messages::vstp::{
    Flags, Frame, FrameBytes, FrameType, HeadersBuf, VstpServer, VstpUdpClient, VstpUdpServer, encode_frame,
};
use relay::Relay;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

fn frame(payload: Vec<u8>) -> FrameBytes {
    FrameBytes::new(FrameType::Data, HeadersBuf::default(), payload.into())
}

fn payload(len: usize) -> Vec<u8> {
    let mut state = len as u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_megabytes_arrive() {
    let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let to = server.local_addr().unwrap();
    let client = VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
    let sent = payload(100_000_000);
    let (sending, received) =
        soon(async { tokio::join!(client.send_bytes(frame(sent.clone()), to), server.recv_bytes()) }).await;
    sending.unwrap();
    assert!(received.unwrap().0.payload == sent);
    assert_eq!(server.reassembly_session_count().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_95_a_large_message_arrives_through_a_relay_that_loses_a_fifth() {
    let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let relay = Relay::start(server.local_addr().unwrap(), 0.2, 1).await;
    let client = VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
    let sent = Frame::new(FrameType::Data).with_header("name", "large").with_payload(payload(5_000_000));
    let (sending, received) =
        soon(async { tokio::join!(client.send_with_ack(sent.clone(), relay.address), server.recv()) }).await;
    sending.unwrap();
    let (received, _) = received.unwrap();
    assert!(received.payload == sent.payload);
    assert_eq!(received.get_header("name"), Some("large"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_95_acknowledged_frames_come_once_each() {
    let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let relay = Relay::start(server.local_addr().unwrap(), 0.1, 2).await;
    let to = relay.address;
    let client = VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
    let sending = tokio::spawn(async move {
        let client = Arc::new(client);
        let mut all = JoinSet::new();
        for n in 0..200_u32 {
            let client = Arc::clone(&client);
            all.spawn(async move { client.deliver(frame(n.to_be_bytes().to_vec()), to).await });
        }
        all.join_all().await.into_iter().filter(Result::is_ok).count()
    });
    let mut came = Vec::new();
    while came.len() < 200 {
        let (frame, _) = soon(server.recv_bytes()).await.unwrap();
        came.push(u32::from_be_bytes(frame.payload[..].try_into().unwrap()));
    }
    assert_eq!(sending.await.unwrap(), 200);
    came.sort_unstable();
    assert_eq!(came, (0..200).collect::<Vec<_>>());
    let more = tokio::time::timeout(Duration::from_millis(200), server.recv_bytes()).await;
    assert!(more.is_err(), "one came twice");
}

#[tokio::test]
async fn case_71_what_is_no_frame_is_counted_and_dropped() {
    let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server.local_addr().unwrap()).await.unwrap();
    let good = encode_frame(&Frame::new(FrameType::Data).with_payload(b"good".to_vec())).unwrap();
    let mut version = good.to_vec();
    version[2] = 2;
    let mut magic = good.to_vec();
    magic[0] = 0;
    let mut crc = good.to_vec();
    *crc.last_mut().unwrap() ^= 1;
    let mut typ = good[..good.len() - 4].to_vec();
    typ[3] = 9;
    let sum = crc32fast::hash(&typ);
    typ.extend_from_slice(&sum.to_be_bytes());
    let mut long = good.to_vec();
    long.push(0);
    for bad in [vec![], vec![0; 65_507], version, magic, crc, typ, long, good[..good.len() - 1].to_vec()] {
        socket.send(&bad).await.unwrap();
    }
    socket.send(&good).await.unwrap();
    assert_eq!(soon(server.recv()).await.unwrap().0.payload, b"good");
    let counters = server.counters();
    assert_eq!((counters.datagrams, counters.malformed), (9, 8));
    let mut buffer = [0; 100];
    let answer = tokio::time::timeout(Duration::from_millis(200), socket.recv(&mut buffer)).await;
    assert!(answer.is_err(), "an error was answered");
}

#[tokio::test]
async fn case_73_unfinished_messages_are_bounded() {
    let limits = ReassemblyLimits { messages_max: 20, peer_messages_max: 10, ..ReassemblyLimits::default() };
    let server = VstpUdpServer::bind_with_limits("127.0.0.1:0", limits).await.unwrap();
    let to = server.local_addr().unwrap();
    for _ in 0..4 {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for id in 0..50 {
            let fragment = Frame::new(FrameType::Data)
                .with_flag(Flags::FRAG)
                .with_header("frag-id", &id.to_string())
                .with_header("frag-index", "0")
                .with_header("frag-total", "2")
                .with_payload(vec![0; 1000]);
            socket.send_to(&encode_frame(&fragment).unwrap(), to).await.unwrap();
        }
    }
    let last = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let whole = encode_frame(&Frame::new(FrameType::Data)).unwrap();
    last.send_to(&whole, to).await.unwrap();
    soon(server.recv()).await.unwrap();
    assert_eq!(server.reassembly_session_count().await, 20);
    // Each keeps ten; those that began first lose theirs to the last two.
    assert_eq!(server.counters().refused, 160);
}

#[tokio::test]
async fn a_refusal_says_why() {
    let limits = ReassemblyLimits { message_bytes_max: 100_000, ..ReassemblyLimits::default() };
    let server = VstpUdpServer::bind_with_limits("127.0.0.1:0", limits).await.unwrap();
    let to = server.local_addr().unwrap();
    let client = VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
    let refused = soon(client.deliver(frame(vec![0; 200_000]), to)).await;
    assert_eq!(refused, Err(Failure::Refused("too-large".into())));
    let (sent, received) = tokio::join!(client.deliver(frame(vec![0; 90_000]), to), server.recv_bytes());
    sent.unwrap();
    assert_eq!(received.unwrap().0.payload.len(), 90_000);
}

/// A server answers a small question of a stranger with much: the stranger proves itself and gets
/// it.
#[tokio::test]
async fn case_70_a_large_answer_waits_for_a_proof_and_comes() {
    let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let to = server.local_addr().unwrap();
    let answering = tokio::spawn(async move {
        let (_, from) = server.recv().await.unwrap();
        for len in [1000, 3_000, 2_000_000] {
            server.send_bytes(frame(payload(len)), from).await.unwrap();
        }
    });
    let mut client = VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
    client.send(Frame::new(FrameType::Data), to).await.unwrap();
    for len in [1000, 3_000, 2_000_000] {
        let (frame, _) = soon(client.recv()).await.unwrap();
        assert!(frame.payload == payload(len), "{len}");
    }
    answering.await.unwrap();
}

/// A receiver that takes nothing: what is sent waits, and memory stays within bounds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_97_a_reader_that_crawls_holds_the_sender_back() {
    let limits = ReassemblyLimits { bytes_max: 8 << 20, ..ReassemblyLimits::default() };
    let server = VstpUdpServer::bind_with_limits("127.0.0.1:0", limits).await.unwrap();
    let to = server.local_addr().unwrap();
    let sending = tokio::spawn(async move {
        let client = VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
        for n in 0..12_u8 {
            client.send_bytes(frame(vec![n; 2 << 20]), to).await.unwrap();
        }
    });
    // A sender that is held back asks, now and then, with a fragment for which there is no room.
    let held_back = async {
        while server.counters().refused == 0 {
            tokio::task::yield_now().await;
        }
    };
    soon(held_back).await;
    assert!(!sending.is_finished(), "24 MiB do not fit into 8");
    for n in 0..12_u8 {
        let (frame, _) = soon(server.recv_bytes()).await.unwrap();
        assert!(frame.payload.len() == 2 << 20 && frame.payload.iter().all(|byte| *byte == n), "{n}");
    }
    soon(sending).await.unwrap();
}

#[tokio::test]
async fn what_was_sent_before_the_client_was_dropped_still_arrives() {
    let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let relay = Relay::start(server.local_addr().unwrap(), 0.3, 5).await;
    let client = VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
    let sent = Frame::new(FrameType::Data).with_payload(payload(100_000));
    {
        let mut sending = Box::pin(client.send(sent.clone(), relay.address));
        // It has begun, and nobody waits for its end.
        let begun = std::future::poll_fn(|cx| std::task::Poll::Ready(sending.as_mut().poll(cx))).await;
        assert!(begun.is_pending());
    }
    drop(client);
    assert!(soon(server.recv()).await.unwrap().0.payload == sent.payload);
}

#[tokio::test]
async fn case_75_a_complaint_is_not_complained_about() {
    let server = VstpServer::bind_udp("127.0.0.1:0").await.unwrap();
    let to = server.local_addr().unwrap();
    let serving = tokio::spawn(server.serve(|n: u32| async move { Ok(n) }));
    let mut client = VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
    client.send(Frame::new(FrameType::Data).with_payload(b"no number".to_vec()), to).await.unwrap();
    let (complaint, _) = soon(client.recv()).await.unwrap();
    assert!(complaint.payload.starts_with(b"Invalid data"));
    client.send(complaint, to).await.unwrap();
    client.send(Frame::new(FrameType::Data).with_payload(b"7".to_vec()), to).await.unwrap();
    assert_eq!(soon(client.recv()).await.unwrap().0.payload, b"7", "the complaint was answered");
    serving.abort();
}

/// Peers that come and go are told of, also while a handler has the server.
#[tokio::test]
async fn a_server_learns_who_joins_and_who_is_gone() {
    let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let to = server.local_addr().unwrap();
    let mut events = server.events(Duration::from_secs(2));
    let serving = tokio::spawn(server.run(|_, _| async {}));
    let polite = VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
    let silent = VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
    for client in [&polite, &silent] {
        client.send_with_ack(Frame::new(FrameType::Data), to).await.unwrap();
        let joined = soon(events.next()).await;
        assert_eq!(joined, Some(PeerEvent::Joined(client.local_addr().unwrap())));
    }
    polite.send(Frame::new(FrameType::Bye), to).await.unwrap();
    let gone = |client: &VstpUdpClient, why| Some(PeerEvent::Gone(client.local_addr().unwrap(), why));
    assert_eq!(soon(events.next()).await, gone(&polite, Departure::Bye));
    assert_eq!(soon(events.next()).await, gone(&silent, Departure::Silent));
    silent.send(Frame::new(FrameType::Data), to).await.unwrap();
    assert_eq!(soon(events.next()).await, Some(PeerEvent::Joined(silent.local_addr().unwrap())));
    serving.abort();
}

#[tokio::test]
async fn a_client_learns_that_its_server_is_gone() {
    let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let to = server.local_addr().unwrap();
    let client = VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
    let mut events = client.events(Duration::from_secs(60));
    let answering = async {
        let (frame, from) = server.recv().await.unwrap();
        server.send(frame, from).await.unwrap();
    };
    let asking = client.send(Frame::new(FrameType::Data), to);
    let (asked, ()) = tokio::join!(asking, answering);
    asked.unwrap();
    assert_eq!(soon(events.next()).await, Some(PeerEvent::Joined(to)));
    drop(server);
    soon(client.send_with_ack(Frame::new(FrameType::Data), to)).await.unwrap_err();
    assert_eq!(soon(events.next()).await, Some(PeerEvent::Gone(to, Departure::Unreachable)));
}

/// A PING comes back with its headers and payload if that fits one datagram. Larger ones are not
/// answered, and keep nobody waiting.
#[tokio::test]
async fn a_ping_is_answered_as_it_came_and_a_large_one_not_at_all() {
    let run = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let serve = VstpServer::bind_udp("127.0.0.1:0").await.unwrap();
    let addresses = [run.local_addr().unwrap(), serve.local_addr().unwrap()];
    let running = tokio::spawn(run.run(|_, _| async {}));
    let serving = tokio::spawn(serve.serve(|n: u32| async move { Ok(n) }));
    for address in addresses {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for len in [1200, 5000, 60_000] {
            let large = Frame::new(FrameType::Ping).with_payload(payload(len));
            socket.send_to(&encode_frame(&large).unwrap(), address).await.unwrap();
        }
        let small = Frame::new(FrameType::Ping).with_header("n", "7").with_payload(payload(1000));
        socket.send_to(&encode_frame(&small).unwrap(), address).await.unwrap();
        let mut room = vec![0; 65_536];
        let (count, _) = soon(socket.recv_from(&mut room)).await.unwrap();
        let expected = Frame { typ: FrameType::Pong, ..small };
        assert_eq!(room[..count], encode_frame(&expected).unwrap()[..], "{count} bytes");
        assert!(tokio::time::timeout(Duration::from_millis(300), socket.recv_from(&mut room)).await.is_err());
    }
    running.abort();
    serving.abort();
}
