//! Peers that cause much and take nothing: memory is bounded, and what is cut is never gone on
//! with.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

use bytes::BytesMut;
use fastdrop_messages::vstp::tcp::TcpConfig;
use fastdrop_messages::vstp::{
    Frame, FrameType, VstpError, VstpTcpClient, VstpTcpServer, encode_frame, try_decode_frame,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

const PATIENCE: Duration = Duration::from_secs(60);
/// A peer that takes nothing for so long is taken to hold back; one that does so merely because the
/// machine is busy makes a test no stricter.
const QUIET: Duration = Duration::from_secs(1);
/// More than the bounds here and all buffers of the system.
const TOO_MUCH: usize = 64 << 20;

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

/// Writes these bytes over and over until the peer takes no more; returns how many it took.
async fn flood(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> usize {
    let mut taken = 0;
    while taken < TOO_MUCH {
        match tokio::time::timeout(QUIET, stream.write(&bytes[taken % bytes.len()..])).await {
            Ok(count) => taken += count.unwrap(),
            Err(_) => return taken,
        }
    }
    panic!("{taken} bytes were taken of a peer that reads nothing");
}

/// The rest of the frame that has begun, where all have the same size.
fn rest(bytes: &[u8], taken: usize, size: usize) -> &[u8] {
    let at = taken % bytes.len();
    &bytes[at..at.next_multiple_of(size)]
}

async fn next_frame(stream: &mut (impl AsyncRead + Unpin), read: &mut BytesMut) -> Option<Frame> {
    loop {
        if let Some(frame) = try_decode_frame(read, usize::MAX).unwrap() {
            return Some(frame);
        }
        if soon(stream.read_buf(read)).await.unwrap() == 0 {
            return None;
        }
    }
}

fn ping(size: usize) -> Vec<u8> {
    encode_frame(&Frame::new(FrameType::Ping).with_payload(vec![7; size])).unwrap().to_vec()
}

#[tokio::test]
async fn case_126_a_peer_that_writes_pings_and_reads_nothing_is_held_back() {
    let config = TcpConfig { unread_max: Some(1 << 20), ..TcpConfig::default() };
    let server = VstpTcpServer::bind_with_config("127.0.0.1:0", config).await.unwrap();
    let mut stream = TcpStream::connect(server.local_addr().unwrap()).await.unwrap();
    let receiving = tokio::spawn(async move {
        let mut connection = server.accept().await.unwrap();
        loop {
            let frame = connection.recv().await.unwrap().unwrap();
            if frame.typ == FrameType::Data {
                // The peer may not have taken all answers yet.
                connection.flush().await.unwrap();
                return connection;
            }
        }
    });
    let ping = ping(16 << 10);
    let taken = soon(flood(&mut stream, &ping)).await;
    // Nothing is lost when it reads at last.
    let (mut reader, mut writer) = stream.split();
    let data = encode_frame(&Frame::new(FrameType::Data)).unwrap();
    let finish = async {
        writer.write_all(rest(&ping, taken, ping.len())).await.unwrap();
        writer.write_all(&data).await.unwrap();
    };
    let read_all = async {
        let mut read = BytesMut::new();
        // The last one is answered when the application reads on.
        for _ in 0..taken.div_ceil(ping.len()) {
            assert_eq!(next_frame(&mut reader, &mut read).await.unwrap().typ, FrameType::Pong);
        }
    };
    soon(async { tokio::join!(finish, read_all) }).await;
    soon(receiving).await.unwrap();
}

#[tokio::test]
async fn a_peer_that_takes_nothing_ends_a_receiver_and_what_is_cut_is_not_gone_on_with() {
    let config = TcpConfig {
        unread_max: Some(1 << 20),
        write_timeout: Some(Duration::from_millis(300)),
        ..TcpConfig::default()
    };
    let server = VstpTcpServer::bind_with_config("127.0.0.1:0", config).await.unwrap();
    let mut stream = TcpStream::connect(server.local_addr().unwrap()).await.unwrap();
    let receiving = tokio::spawn(async move {
        let mut connection = server.accept().await.unwrap();
        loop {
            match connection.recv().await {
                Ok(frame) => drop(frame.unwrap()),
                Err(error) => return (connection, error),
            }
        }
    });
    soon(flood(&mut stream, &ping(64 << 10))).await;
    let (mut connection, error) = soon(receiving).await.unwrap();
    assert!(error.to_string().contains("write_timeout"), "{error}");
    // Bytes of another frame would stand within the one that was cut.
    let (reads, written) = tokio::join!(
        async {
            let mut bytes = BytesMut::new();
            while let Ok(1..) = stream.read_buf(&mut bytes).await {}
            bytes
        },
        async {
            let sent = soon(connection.send(Frame::new(FrameType::Data))).await;
            drop(connection);
            sent
        }
    );
    assert!(written.is_err());
    let mut reads = reads;
    while let Some(frame) = try_decode_frame(&mut reads, usize::MAX).unwrap() {
        assert_eq!(frame.typ, FrameType::Pong);
    }
}

fn call(id: usize, size: usize) -> Vec<u8> {
    let frame = Frame::new(FrameType::Data).with_header("vstp-call", &format!("{id:06}"));
    encode_frame(&frame.with_payload(vec![1; size])).unwrap().to_vec()
}

#[tokio::test]
async fn case_127_a_caller_that_reads_no_refusals_is_held_back() {
    let config = TcpConfig { calls_max: 1, unread_max: Some(256 << 10), ..TcpConfig::default() };
    let server = VstpTcpServer::bind_with_config("127.0.0.1:0", config).await.unwrap();
    let mut stream = TcpStream::connect(server.local_addr().unwrap()).await.unwrap();
    let go = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&go);
    let serving = tokio::spawn(server.serve_calls(std::future::pending(), move |_| {
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await.unwrap().forget();
            Ok(Frame::new(FrameType::Data))
        }
    }));
    stream.write_all(&call(0, 0)).await.unwrap();
    let calls: Vec<u8> = (1..1_001).flat_map(|id| call(id, 0)).collect();
    let size = calls.len() / 1_000;
    let taken = soon(flood(&mut stream, &calls)).await;
    // Every one has its refusal when it reads at last.
    let (mut reader, mut writer) = stream.split();
    let finish = async { writer.write_all(rest(&calls, taken, size)).await.unwrap() };
    let read_all = async {
        let mut read = BytesMut::new();
        for _ in 0..taken.div_ceil(size) {
            let refusal = next_frame(&mut reader, &mut read).await.unwrap();
            assert_eq!((refusal.typ, refusal.get_header("code")), (FrameType::Err, Some("busy")));
        }
        go.add_permits(1);
        assert_eq!(next_frame(&mut reader, &mut read).await.unwrap().get_header("vstp-reply"), Some("0"));
    };
    soon(async { tokio::join!(finish, read_all) }).await;
    serving.abort();
}

#[tokio::test]
async fn case_127_calls_that_are_being_handled_are_bounded_in_bytes() {
    const SIZE: usize = 256 << 10;
    const HELD: usize = 4;
    let config = TcpConfig { unread_max: Some(HELD * SIZE), ..TcpConfig::default() };
    let server = VstpTcpServer::bind_with_config("127.0.0.1:0", config).await.unwrap();
    let mut stream = TcpStream::connect(server.local_addr().unwrap()).await.unwrap();
    let (go, begun) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (gate, began) = (Arc::clone(&go), Arc::clone(&begun));
    let serving = tokio::spawn(server.serve_calls(std::future::pending(), move |_| {
        let (gate, began) = (Arc::clone(&gate), Arc::clone(&began));
        async move {
            began.fetch_add(1, Ordering::Relaxed);
            gate.acquire().await.unwrap().forget();
            Ok(Frame::new(FrameType::Data))
        }
    }));
    let calls: Vec<u8> = (0..2 * TOO_MUCH / SIZE).flat_map(|id| call(id, SIZE)).collect();
    let size = call(0, SIZE).len();
    let taken = soon(flood(&mut stream, &calls)).await;
    let begun = begun.load(Ordering::Relaxed);
    assert!(begun <= HELD + 1, "{begun} of {SIZE} bytes are being handled");
    let sent = taken.div_ceil(size);
    go.add_permits(sent);
    let (mut reader, mut writer) = stream.split();
    let finish = async { writer.write_all(rest(&calls, taken, size)).await.unwrap() };
    let read_all = async {
        let (mut read, mut replies) = (BytesMut::new(), BTreeSet::new());
        for _ in 0..sent {
            let reply = next_frame(&mut reader, &mut read).await.unwrap();
            assert_eq!(reply.typ, FrameType::Data);
            assert!(replies.insert(reply.get_header("vstp-reply").unwrap().to_owned()));
        }
    };
    soon(async { tokio::join!(finish, read_all) }).await;
    serving.abort();
}

#[tokio::test]
async fn case_126_a_session_that_was_dropped_with_frames_unread_still_writes_everything() {
    const SIZE: usize = 20 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let config = TcpConfig { unread_max: Some(1 << 20), ..TcpConfig::default() };
    let session = VstpTcpClient::connect_with_config(&address, config).await.unwrap().into_session();
    let (mut stream, _) = listener.accept().await.unwrap();
    soon(session.feed(Frame::new(FrameType::Data).with_payload(vec![5; SIZE]))).await.unwrap();
    drop(session);
    // The peer writes first, and reads then.
    let frame = encode_frame(&Frame::new(FrameType::Data).with_payload(vec![6; 64 << 10])).unwrap();
    for _ in 0..SIZE / frame.len() {
        soon(stream.write_all(&frame)).await.unwrap();
    }
    let mut read = BytesMut::new();
    assert!(next_frame(&mut stream, &mut read).await.unwrap().payload == [5; SIZE]);
    assert_eq!(next_frame(&mut stream, &mut read).await.unwrap().typ, FrameType::Bye);
}

#[tokio::test]
async fn the_refusal_of_one_call_is_not_the_reason_of_everything() {
    for (header, is_everybodys) in [("vstp-reply", false), ("x-other", true)] {
        let server = VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap().to_string();
        let serving = tokio::spawn(async move {
            let mut connection = server.accept().await.unwrap();
            // It is not acknowledged.
            drop(connection.recv_delivery().await.unwrap().unwrap());
            let refusal = Frame::new(FrameType::Err).with_header(header, "7").with_header("reason", "no ink");
            connection.send(refusal).await.unwrap();
            connection.close().await.unwrap();
            connection
        });
        let mut client = VstpTcpClient::connect(&address).await.unwrap();
        let error = soon(client.send_with_ack(Frame::new(FrameType::Data))).await.unwrap_err();
        let says_so = matches!(&error, VstpError::ServerError(reason) if reason == "no ink");
        assert_eq!(says_so, is_everybodys, "{error}");
        soon(serving).await.unwrap();
    }
}
