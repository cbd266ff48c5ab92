//! Messages at the limits of what is taken, and more of them than may be under way.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

use fastdrop_messages::cnp::{Client, Config, Error, MessageLimits, Server};
use fastdrop_messages::vstp::tcp::TcpConfig;
use fastdrop_messages::vstp::udp::{Failure, ReassemblyLimits};
use fastdrop_messages::vstp::{
    Frame, FrameBytes, FrameType, HeadersBuf, VstpError, VstpTcpClient, VstpTcpServer, VstpUdpClient,
    VstpUdpServer, encode_frame,
};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("in time")
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 251) as u8).collect()
}

fn with_header(len: usize, header: usize) -> FrameBytes {
    let mut headers = HeadersBuf::default();
    if header > 0 {
        headers.push(b"name", &vec![b'x'; header]).unwrap();
    }
    FrameBytes::new(FrameType::Data, headers, payload(len).into())
}

/// By UDP the limit counts the payload: what has as much or less goes through, with and without
/// acknowledgement, whatever else is bounded to the same; one byte more is refused in words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_124_a_message_at_the_limit_goes_through_by_udp_and_one_byte_more_is_too_large() {
    for limit in [100, 1100, 1200, 5_000, 100_000, 300_000, 1 << 20] {
        let limits = ReassemblyLimits {
            message_bytes_max: limit,
            peer_bytes_max: limit,
            ..ReassemblyLimits::default()
        };
        let tight = ReassemblyLimits { bytes_max: limit, ..limits.clone() };
        for (limits, header) in [(limits.clone(), 0), (limits, 200), (tight, 0)] {
            let server = VstpUdpServer::bind_with_limits("127.0.0.1:0", limits).await.unwrap();
            let to = server.local_addr().unwrap();
            let client = VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
            for len in [limit - 1, limit] {
                let sent = client.deliver(with_header(len, header), to);
                let (sent, received) = soon(async { tokio::join!(sent, server.recv_bytes()) }).await;
                assert_eq!(sent, Ok(()), "{len} of {limit}, header {header}");
                assert!(received.unwrap().0.payload == payload(len), "{len} of {limit}");
                let sent = client.dispatch(with_header(len, header), to);
                let (sent, received) = soon(async { tokio::join!(sent, server.recv_bytes()) }).await;
                assert_eq!(sent, Ok(()), "{len} of {limit}, header {header}");
                assert!(received.unwrap().0.payload == payload(len), "{len} of {limit}");
            }
            let refused = soon(client.deliver(with_header(limit + 1, header), to)).await;
            assert_eq!(refused, Err(Failure::Refused("too-large".into())), "{limit}, header {header}");
            assert_eq!(server.reassembly_session_count().await, 0);
        }
    }
}

/// By TCP the limit counts all of the frame.
#[tokio::test]
async fn a_frame_at_the_limit_goes_through_by_tcp_and_one_byte_more_is_too_large() {
    for limit in [100, 1000, 40_000, 300_000] {
        for header in [0, 40] {
            let config = TcpConfig { frame_max: limit, ..TcpConfig::default() };
            let server = VstpTcpServer::bind_with_config("127.0.0.1:0", config).await.unwrap();
            let address = server.local_addr().unwrap().to_string();
            let framed = |len: usize| {
                let frame = Frame::new(FrameType::Data).with_payload(payload(len));
                if header > 0 { frame.with_header("name", &"x".repeat(header)) } else { frame }
            };
            let overhead = encode_frame(&framed(0)).unwrap().len();
            for size in [limit - 1, limit, limit + 1] {
                let mut client = VstpTcpClient::connect(&address).await.unwrap();
                let mut connection = server.accept().await.unwrap();
                let frame = framed(size - overhead);
                assert_eq!(encode_frame(&frame).unwrap().len(), size);
                client.send(frame.clone()).await.unwrap();
                if size <= limit {
                    assert_eq!(soon(connection.recv()).await.unwrap(), Some(frame), "{size} of {limit}");
                    continue;
                }
                // The end of the client is waited for, so that it is sure to be told.
                let told = async {
                    let told = client.recv().await.unwrap().unwrap();
                    drop(client);
                    told
                };
                let (received, told) = soon(async { tokio::join!(connection.recv(), told) }).await;
                assert!(matches!(received, Err(VstpError::FrameTooLarge { .. })), "{size} of {limit}");
                assert_eq!((told.typ, told.get_header("code")), (FrameType::Err, Some("too-large")));
            }
        }
    }
}

/// CNP: a message of as many bytes as the receiver has said goes through, in one packet or in
/// fragments; a longer one is refused before anything is sent.
#[tokio::test]
async fn case_124_a_message_at_the_limit_goes_through_by_cnp_and_one_byte_more_is_too_large() {
    for udp in [false, true] {
        for (limit, kept) in
            [(100, 100), (1000, 1000), (5_000, 5_000), (100_000, 100_000), (100_000, 1 << 20)]
        {
            let limits = MessageLimits { message_max: limit, receive_max: kept, ..MessageLimits::default() };
            let config = Config::default().limits(limits);
            let server = Server::builder().tcp(!udp).udp(udp).config(config).bind("127.0.0.1:0").await;
            let server = server.unwrap_or_else(|error| panic!("{limit} {kept}: {error}"));
            let address = server.local_addr();
            let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
            let serving = tokio::spawn(server.run(move |_, message| {
                let tell = tell.clone();
                async move { tell.send(message).unwrap() }
            }));
            let builder = if udp { Client::builder().udp() } else { Client::builder() };
            let client = soon(builder.connect(address)).await.unwrap();
            for len in [limit - 1, limit] {
                soon(client.send(payload(len))).await.unwrap_or_else(|error| panic!("{len}: {error}"));
                assert!(soon(told.recv()).await.unwrap() == payload(len), "{len} of {limit}, udp: {udp}");
            }
            let refused = soon(client.send(payload(limit + 1))).await;
            assert!(matches!(refused, Err(Error::TooLarge(_))), "{limit}, udp: {udp}: {refused:?}");
            soon(client.send(payload(1))).await.unwrap();
            serving.abort();
        }
    }
}

/// More than 4,096 frames that wait for an acknowledgement wait, and do not fail: 20,000 are given
/// to one client at once, and a receiver takes them one by one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_122_any_number_of_outstanding_frames_wait_and_arrive_once_each() {
    const COUNT: u32 = 20_000;
    let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let to = server.local_addr().unwrap();
    let client = Arc::new(VstpUdpClient::bind("127.0.0.1:0").await.unwrap());
    let mut sending = JoinSet::new();
    for n in 0..COUNT {
        let client = Arc::clone(&client);
        let frame = FrameBytes::new(FrameType::Data, HeadersBuf::default(), n.to_be_bytes().to_vec().into());
        sending.spawn(async move { client.deliver(frame, to).await });
    }
    let receiving = async {
        let mut came = HashSet::new();
        while came.len() < COUNT as usize {
            let (frame, _) = server.recv_bytes().await.unwrap();
            let n = u32::from_be_bytes(frame.payload[..].try_into().unwrap());
            assert!(came.insert(n), "{n} came twice");
        }
    };
    let (outcomes, ()) = soon(async { tokio::join!(sending.join_all(), receiving) }).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), COUNT as usize);
}
