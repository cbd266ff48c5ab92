//! Messages that are acknowledged when their application has handled them, over real sockets.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

use fastdrop_messages::cnp::{self, Mode};
use fastdrop_messages::vstp::types::ErrorCode;
use fastdrop_messages::vstp::udp::{Failure, UdpConfig};
use fastdrop_messages::vstp::{
    Frame, FrameBytes, FrameType, VstpClient, VstpError, VstpTcpClient, VstpTcpServer, VstpUdpClient,
    VstpUdpServer,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

fn data(payload: &[u8]) -> Frame {
    Frame::new(FrameType::Data).with_payload(payload.to_vec())
}

/// An application's way with a delivery.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Does {
    Acknowledges,
    Refuses,
    Drops,
}

#[tokio::test]
async fn case_110_by_tcp_a_frame_has_the_answer_that_the_application_gives() {
    for does in [Does::Acknowledges, Does::Refuses, Does::Drops] {
        let server = VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap().to_string();
        let sending = tokio::spawn(async move {
            let mut client = VstpTcpClient::connect(&address).await?;
            client.send_with_ack(data(b"x")).await
        });
        let mut connection = soon(server.accept()).await.unwrap();
        let delivery = soon(connection.recv_delivery()).await.unwrap().unwrap();
        assert_eq!(&delivery.frame().payload[..], b"x");
        assert!(delivery.wants_acknowledgement() && !sending.is_finished());
        match does {
            Does::Acknowledges => delivery.acknowledge().await.unwrap(),
            Does::Refuses => delivery.refuse(ErrorCode::Unhandled, "no ink").await.unwrap(),
            Does::Drops => drop(delivery),
        }
        drop(connection);
        let sent = soon(sending).await.unwrap();
        match does {
            Does::Acknowledges => sent.unwrap(),
            Does::Refuses => {
                assert!(
                    matches!(&sent, Err(VstpError::ServerError(reason)) if reason == "no ink"),
                    "{sent:?}"
                );
            }
            Does::Drops => assert!(sent.is_err()),
        }
    }
}

#[tokio::test]
async fn case_110_by_udp_several_frames_wait_for_their_answers_and_none_comes_twice() {
    // Long enough for a machine that is busy: some of it passes before anything is answered.
    let config = UdpConfig { max_retries: 1, ack_timeout: Duration::from_secs(3), ..UdpConfig::default() };
    let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let to = server.local_addr().unwrap();
    let client = VstpUdpClient::bind_with_config("127.0.0.1:0", config).await.unwrap();
    // One of them in fragments.
    let sizes = [1, 2, 3, 400_000, 5, 6];
    let send = |size: usize| {
        let frame = FrameBytes::try_from(data(&vec![b'x'; size])).unwrap();
        client.deliver(frame, to)
    };
    let does = |size| [Does::Acknowledges, Does::Refuses, Does::Drops][size % 3];
    let outcomes = async { tokio::join!(send(1), send(2), send(3), send(400_000), send(5), send(6)) };
    let handle = async {
        let mut held = Vec::new();
        for _ in sizes {
            held.push(soon(server.recv_delivery()).await.unwrap());
        }
        // Until every one of them has been sent again, or asked for.
        while server.counters().duplicates < 3 {
            tokio::task::yield_now().await;
        }
        for delivery in held.into_iter().rev() {
            match does(delivery.frame().payload.len()) {
                Does::Acknowledges => delivery.acknowledge(),
                Does::Refuses => delivery.refuse(ErrorCode::Unhandled, "no ink"),
                Does::Drops => drop(delivery),
            }
        }
        // Nothing else comes.
        let (frame, from) = server.recv().await.unwrap();
        panic!("{} bytes from {from} once more", frame.payload.len());
    };
    let outcomes = tokio::select! {
        outcomes = soon(outcomes) => outcomes,
        never = handle => never,
    };
    let outcomes: [_; 6] = outcomes.into();
    for (size, outcome) in sizes.into_iter().zip(outcomes) {
        let expected = match does(size) {
            Does::Acknowledges => Ok(()),
            Does::Refuses => Err(Failure::Refused("unhandled".into())),
            Does::Drops => Err(Failure::TimedOut),
        };
        assert_eq!(outcome, expected, "{size}");
    }
}

#[tokio::test]
async fn case_110_what_nobody_takes_is_not_acknowledged() {
    // By UDP: the socket receives, and no application calls.
    let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let to = server.local_addr().unwrap();
    let config = UdpConfig { max_retries: 0, ack_timeout: Duration::from_secs(1), ..UdpConfig::default() };
    let client = VstpUdpClient::bind_with_config("127.0.0.1:0", config).await.unwrap();
    for size in [1, 100_000] {
        let frame = FrameBytes::try_from(data(&vec![1; size])).unwrap();
        assert_eq!(soon(client.deliver(frame, to)).await, Err(Failure::TimedOut), "{size}");
    }
    assert!(server.counters().datagrams > 1);
    // By the easy client, whose connection reads ahead.
    let server = VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    let client = soon(VstpClient::connect_tcp(address)).await.unwrap();
    let mut connection = soon(server.accept()).await.unwrap();
    let none = connection.send_with_ack(data(b"1"), Duration::from_millis(200)).await;
    assert!(matches!(none, Err(VstpError::Timeout)), "{none:?}");
    let (sent, first) = tokio::join!(connection.send_with_ack(data(b"2"), PATIENCE), async {
        (client.receive_raw().await.unwrap(), client.receive_raw().await.unwrap())
    });
    sent.unwrap();
    assert_eq!((first.0.payload, first.1.payload), (b"1".to_vec(), b"2".to_vec()));
}

#[tokio::test]
async fn case_110_by_cnp_messages_are_acknowledged_when_they_are_handled() {
    for (udp, mode) in
        [(false, Mode::Burst), (true, Mode::Burst), (false, Mode::StepByStep), (true, Mode::StepByStep)]
    {
        let mut server = cnp::Server::bind("127.0.0.1:0").await.unwrap();
        let builder = cnp::Client::builder().mode(mode);
        let builder = if udp { builder.udp() } else { builder };
        let client = soon(builder.connect(server.local_addr())).await.unwrap();
        let mut receipts = Vec::new();
        for text in ["first", "second", "third", "fourth"] {
            receipts.push(soon(client.submit_with_receipt(text)).await.unwrap());
        }
        let mut receipts = receipts.into_iter();
        let session = soon(server.accept()).await.unwrap();
        let first = soon(session.recv_delivery()).await.unwrap().unwrap();
        assert_eq!(first.message(), "first");
        assert_eq!(client.stats().counters.messages_acknowledged, 0);
        if mode == Mode::Burst {
            // In any order: it is that of the messages in which they are acknowledged.
            let second = soon(session.recv_delivery()).await.unwrap().unwrap();
            second.acknowledge();
            first.acknowledge();
        } else {
            first.acknowledge();
            soon(session.recv_delivery()).await.unwrap().unwrap().acknowledge();
        }
        for _ in 0..2 {
            soon(receipts.next().unwrap().acknowledged()).await.unwrap();
        }
        // One that is dropped is the end, for it and for what is behind it.
        drop(soon(session.recv_delivery()).await.unwrap().unwrap());
        let ended = soon(client.ended()).await;
        let cnp::Ending::PeerError(error) = &ended else { panic!("{ended:?}") };
        assert_eq!(error.code.as_deref(), Some("unhandled"));
        for receipt in receipts {
            soon(receipt.acknowledged()).await.unwrap_err();
        }
        assert_eq!(client.stats().counters.messages_acknowledged, 2);
    }
}

#[tokio::test]
async fn case_110_what_a_session_that_was_dropped_receives_is_not_acknowledged() {
    for udp in [false, true] {
        let mut server = cnp::Server::bind("127.0.0.1:0").await.unwrap();
        let builder = cnp::Client::builder();
        let builder = if udp { builder.udp() } else { builder };
        let client = soon(builder.connect(server.local_addr())).await.unwrap();
        let receipt = soon(client.submit_with_receipt("to nobody")).await.unwrap();
        drop(soon(server.accept()).await.unwrap());
        soon(receipt.acknowledged()).await.unwrap_err();
    }
}

/// So many frames wait for their handlers as may, and the server ends: each that its sender is told
/// to be acknowledged is handled, and no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_128_of_60_000_frames_in_line_those_that_are_handled_are_acknowledged() {
    const CLIENTS: usize = 16;
    const EACH: usize = 4_096;
    /// Of an address so many wait that as many are free: 65,536 / 17 of each.
    const IN_LINE: u64 = 60_000;
    let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let (to, counts) = (server.local_addr().unwrap(), server.metrics());
    let (go, handled) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (end, ended) = oneshot::channel::<()>();
    let ended = async { ended.await.unwrap_or(()) };
    let (gate, done) = (Arc::clone(&go), Arc::clone(&handled));
    let running = tokio::spawn(server.run_until_drained(ended, PATIENCE, move |_, _| {
        let (gate, done) = (Arc::clone(&gate), Arc::clone(&done));
        async move {
            gate.acquire().await.unwrap().forget();
            done.fetch_add(1, Ordering::SeqCst);
        }
    }));
    let mut sending = JoinSet::new();
    for _ in 0..CLIENTS {
        let config =
            UdpConfig { max_retries: 0, ack_timeout: Duration::from_secs(20), ..UdpConfig::default() };
        let client = Arc::new(VstpUdpClient::bind_with_config("127.0.0.1:0", config).await.unwrap());
        for _ in 0..EACH {
            let client = Arc::clone(&client);
            sending.spawn(async move { client.send_with_ack(data(b"x"), to).await.is_ok() });
        }
    }
    soon(async {
        while counts.counts().messages_received < IN_LINE {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    end.send(()).unwrap();
    go.add_permits(CLIENTS * EACH);
    assert_eq!(soon(running).await.unwrap().unwrap().unhandled, 0);
    let acknowledged = soon(sending.join_all()).await.into_iter().filter(|told| *told).count();
    assert_eq!(acknowledged, handled.load(Ordering::SeqCst));
    assert!((1..IN_LINE as usize).contains(&acknowledged), "{acknowledged}");
}
