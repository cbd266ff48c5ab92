//! Programs that were written for the crate `vstp` 0.2, with another dependency.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

use bytes::BytesMut;
use fastdrop_messages::vstp;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc};
use vstp::codec::VstpFrameCodec;
use vstp::frame::{encode_frame, try_decode_frame};
use vstp::tcp::{VstpTcpClient, VstpTcpServer};
use vstp::types::{Flags, Frame, FrameType, Header, SessionId, VSTP_MAGIC, VSTP_VERSION, VstpError};
use vstp::udp::{UdpConfig, UdpServerConfig, VstpUdpClient, VstpUdpServer};
use vstp::{VstpClient, VstpServer};

const PATIENCE: Duration = Duration::from_secs(20);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

#[test]
fn frames_are_literals_and_codecs_take_them_apart() {
    let frame = Frame {
        version: VSTP_VERSION,
        typ: FrameType::Data,
        flags: Flags::CRC | Flags::REQ_ACK,
        headers: vec![Header::from_str("a", "b"), Header::new(vec![0], vec![])],
        payload: vec![1, 2, 3],
    };
    let bytes = encode_frame(&frame).unwrap();
    assert_eq!(bytes[..2], VSTP_MAGIC);
    let mut buf = BytesMut::from(&bytes[..bytes.len() - 1]);
    assert!(try_decode_frame(&mut buf, 1024).unwrap().is_none());
    buf.extend_from_slice(&bytes[bytes.len() - 1..]);
    assert_eq!(try_decode_frame(&mut buf, 1024).unwrap(), Some(frame.clone()));
    assert_eq!(frame.get_header("a"), Some("b"));

    use tokio_util::codec::{Decoder, Encoder};
    let mut codec = VstpFrameCodec::default();
    codec.encode(frame.clone(), &mut buf).unwrap();
    assert_eq!(codec.decode(&mut buf).unwrap(), Some(frame.clone()));
    assert!(VstpFrameCodec::new(10).decode(&mut BytesMut::from(&bytes[..])).is_err());

    let long = Frame::new(FrameType::Data).with_header("k", &"v".repeat(256));
    assert!(matches!(encode_frame(&long), Err(VstpError::Protocol(_))));
}

#[tokio::test]
async fn a_tcp_server_that_runs_sees_every_frame() {
    let server = VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let (seen, mut sees) = mpsc::unbounded_channel();
    let running = tokio::spawn(server.run(move |session: SessionId, frame: Frame| {
        let seen = seen.clone();
        async move { seen.send((session, frame)).unwrap() }
    }));
    let mut client = VstpTcpClient::connect(&format!("127.0.0.1:{}", address.port())).await.unwrap();
    client.send_hello().await.unwrap();
    client.send_data(b"Hello, VSTP!".to_vec()).await.unwrap();
    client.close().await.unwrap();
    let mut types = Vec::new();
    for _ in 0..3 {
        types.push(soon(sees.recv()).await.unwrap().1.typ);
    }
    assert_eq!(types, [FrameType::Hello, FrameType::Data, FrameType::Bye]);
    assert_eq!(soon(client.recv()).await.unwrap().unwrap().typ, FrameType::Welcome);
    running.abort();
}

#[tokio::test]
async fn a_tcp_server_that_accepts_answers_for_itself() {
    let server = VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let mut connection = server.accept().await.unwrap();
        assert!(connection.peer_addr().ip().is_loopback());
        while let Some(frame) = connection.recv().await.unwrap() {
            match frame.typ {
                FrameType::Hello => connection.send(Frame::new(FrameType::Welcome)).await.unwrap(),
                FrameType::Data => connection.send(frame).await.unwrap(),
                FrameType::Bye => break,
                _ => {}
            }
        }
    });
    let mut client = VstpTcpClient::connect(&address.to_string()).await.unwrap();
    client.send_hello().await.unwrap();
    assert_eq!(soon(client.recv()).await.unwrap(), Some(Frame::new(FrameType::Welcome)));
    let data = Frame::new(FrameType::Data).with_header("n", "1").with_payload(vec![9; 100_000]);
    client.send(data.clone()).await.unwrap();
    assert_eq!(soon(client.recv()).await.unwrap(), Some(data), "one WELCOME, not two");
    client.close().await.unwrap();
    assert!(soon(client.recv()).await.unwrap().is_none());
    serving.await.unwrap();
}

#[tokio::test]
async fn a_udp_server_runs_and_acknowledges_and_puts_fragments_together() {
    let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let frames = Arc::new(Mutex::new(Vec::<(SocketAddr, Frame)>::new()));
    let (seen, mut sees) = mpsc::unbounded_channel();
    let running = {
        let frames = Arc::clone(&frames);
        tokio::spawn(server.run(move |from, frame| {
            let (frames, seen) = (Arc::clone(&frames), seen.clone());
            async move {
                frames.lock().await.push((from, frame));
                seen.send(()).unwrap();
            }
        }))
    };
    let client = VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
    let small = Frame::new(FrameType::Data).with_payload(b"Reliable message!".to_vec());
    soon(client.send_with_ack(small, address)).await.unwrap();
    let large = Frame {
        version: 1,
        typ: FrameType::Data,
        flags: Flags::REQ_ACK,
        headers: vec![
            Header::from_str("file-name", "massive-dataset.bin"),
            Header::from_str("chunk-id", "001"),
        ],
        payload: vec![0xab; 50_000],
    };
    soon(client.send_with_ack(large.clone(), address)).await.unwrap();
    soon(client.send(large.clone(), address)).await.unwrap();
    for _ in 0..3 {
        soon(sees.recv()).await.unwrap();
    }
    let frames = frames.lock().await;
    let (_, acknowledged) = frames.iter().find(|(_, frame)| frame.payload.len() == 50_000).unwrap();
    assert_eq!(acknowledged.payload, large.payload);
    assert_eq!(acknowledged.get_header("file-name"), Some("massive-dataset.bin"));
    assert!(
        frames.iter().any(|(_, frame)| *frame == large),
        "nothing is added to what wants no acknowledgement"
    );
    running.abort();
}

#[tokio::test]
async fn nobody_there_is_a_timeout() {
    let hole = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let config = UdpConfig {
        max_retries: 1,
        retry_delay: Duration::from_millis(10),
        max_retry_delay: Duration::from_millis(20),
        ack_timeout: Duration::from_millis(50),
        use_crc: true,
        allow_frag: true,
    };
    let client = VstpUdpClient::bind_with_config("127.0.0.1:0", config).await.unwrap();
    let frame = Frame::new(FrameType::Data).with_payload(b"x".to_vec());
    let outcome = soon(client.send_with_ack(frame, hole.local_addr().unwrap())).await;
    assert!(matches!(outcome, Err(VstpError::Timeout)), "{outcome:?}");
    let config = UdpServerConfig { use_crc: true, allow_frag: true, max_reassembly_sessions: 10 };
    let server = VstpUdpServer::bind_with_config("127.0.0.1:0", config).await.unwrap();
    assert_eq!(server.reassembly_session_count().await, 0);
    assert_eq!(client.reassembly_session_count().await, 0);
}

/// The paths under which version 0.2 has them, some of which its documentation does not name.
#[test]
fn every_module_of_0_2_has_its_types() {
    fn same<T>(_: fn() -> T, _: fn() -> T) {}
    same::<UdpConfig>(vstp::udp::client::UdpConfig::default, UdpConfig::default);
    same::<UdpServerConfig>(vstp::udp::server::UdpServerConfig::default, UdpServerConfig::default);
    fn accept(server: &vstp::tcp::server::VstpTcpServer) -> impl Future<Output = Accepted> {
        server.accept()
    }
    type Accepted = Result<vstp::tcp::server::VstpTcpConnection, VstpError>;
    let _ = (accept, vstp::tcp::client::VstpTcpClient::send_hello, vstp::udp::client::VstpUdpClient::recv);
    let _ = vstp::udp::server::VstpUdpServer::recv;
}

#[tokio::test]
async fn what_must_not_be_cut_goes_as_one_datagram_or_names_its_setting() {
    let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let config = UdpConfig { allow_frag: false, ..UdpConfig::default() };
    let client = VstpUdpClient::bind_with_config("127.0.0.1:0", config).await.unwrap();
    let frame = |len| Frame::new(FrameType::Data).with_payload(vec![7; len]);
    client.send(frame(60_000), address).await.unwrap();
    assert_eq!(soon(server.recv()).await.unwrap().0, frame(60_000));
    let error = client.send(frame(70_000), address).await.unwrap_err().to_string();
    assert!(error.contains("allow_frag"), "{error}");
}

/// Several callers share a client, and each waits for its own acknowledgement.
#[tokio::test]
async fn acknowledged_frames_are_sent_by_several_at_once() {
    let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let running = tokio::spawn(server.run(|_addr, _frame| async move {}));
    let client = Arc::new(VstpUdpClient::bind("127.0.0.1:0").await.unwrap());
    let send = |len: usize| {
        let client = Arc::clone(&client);
        tokio::spawn(async move {
            let frame = Frame::new(FrameType::Data).with_payload(vec![7; len]);
            client.send_with_ack(frame, address).await
        })
    };
    for sent in [10, 50_000, 0, 3000].map(send) {
        soon(sent).await.unwrap().unwrap();
    }
    running.abort();
}

#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
struct Message {
    content: String,
}

fn message(content: &str) -> Message {
    Message { content: content.into() }
}

#[tokio::test]
async fn typed_messages_are_echoed_over_either() {
    for udp in [false, true] {
        let server = if udp {
            VstpServer::bind_udp("127.0.0.1:0").await.unwrap()
        } else {
            VstpServer::bind_tcp("127.0.0.1:0").await.unwrap()
        };
        let address = server.local_addr().unwrap().to_string();
        let serving = tokio::spawn(server.serve(|message: Message| async move { Ok(message) }));
        let client = if udp {
            VstpClient::connect_udp(&address).await
        } else {
            VstpClient::connect_tcp(&address).await
        };
        let client = client.unwrap();
        client.send(message("hello")).await.unwrap();
        assert_eq!(client.receive::<Message>().await.unwrap(), message("hello"));
        client.send_with_ack(message("acknowledged")).await.unwrap();
        assert_eq!(client.receive::<Message>().await.unwrap(), message("acknowledged"));
        client.send_raw(Frame::new(FrameType::Data).with_payload(b"invalid json".to_vec())).await.unwrap();
        match client.receive::<Message>().await {
            Err(VstpError::Protocol(text)) if text.contains("Deserialization error") => {}
            other => panic!("{other:?}"),
        }
        serving.abort();
    }
}

#[tokio::test]
async fn a_slow_handler_is_a_timeout_for_who_waits() {
    let server = VstpServer::bind_tcp("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    let serving =
        tokio::spawn(server.serve(|_: Message| std::future::pending::<Result<Message, VstpError>>()));
    let mut client = VstpClient::connect_tcp(&address).await.unwrap();
    client.set_timeout(Duration::from_millis(50));
    client.send(message("x")).await.unwrap();
    assert!(matches!(client.receive::<Message>().await, Err(VstpError::Timeout)));
    serving.abort();
}
