//! Against the crate `vstp` 0.2.1, in both directions.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

mod relay;

use bytes::BytesMut;
use fastdrop_messages::vstp as ours;
use proptest::prelude::*;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

fn theirs_of(frame: &ours::Frame) -> vstp::Frame {
    vstp::Frame {
        version: frame.version,
        typ: vstp::FrameType::from_u8(frame.typ as u8).unwrap(),
        flags: vstp::Flags::from_bits(frame.flags.bits()).unwrap(),
        headers: frame.headers.iter().map(|h| vstp::Header::new(h.key.clone(), h.value.clone())).collect(),
        payload: frame.payload.clone(),
    }
}

fn ours_of(frame: &vstp::Frame) -> ours::Frame {
    ours::Frame {
        version: frame.version,
        typ: ours::FrameType::from_u8(frame.typ as u8).unwrap(),
        flags: ours::Flags::from_bits(frame.flags.bits()).unwrap(),
        headers: frame.headers.iter().map(|h| ours::Header::new(h.key.clone(), h.value.clone())).collect(),
        payload: frame.payload.clone(),
    }
}

fn sample(payload: usize) -> ours::Frame {
    ours::Frame::new(ours::FrameType::Data)
        .with_header("content-type", "application/octet-stream")
        .with_header("", "empty key")
        .with_flag(ours::Flags::CRC)
        .with_payload((0..payload).map(|n| (n * 7) as u8).collect())
}

#[tokio::test]
async fn our_client_and_their_tcp_server() {
    let server = vstp::VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let echo = tokio::spawn(async move {
        let mut connection = server.accept().await.unwrap();
        while let Ok(Some(frame)) = connection.recv().await {
            if frame.typ == vstp::FrameType::Bye {
                break;
            }
            connection.send(frame).await.unwrap();
        }
    });
    let mut client = ours::VstpTcpClient::connect(&address.to_string()).await.unwrap();
    client.send_hello().await.unwrap();
    assert_eq!(soon(client.recv()).await.unwrap(), Some(ours::Frame::new(ours::FrameType::Hello)));
    for size in [0, 1, 1000, 40_000, 300_000, (8 << 20) - 200] {
        client.send(sample(size)).await.unwrap();
        assert_eq!(soon(client.recv()).await.unwrap(), Some(sample(size)), "{size}");
    }
    client.close().await.unwrap();
    echo.await.unwrap();
}

#[tokio::test]
async fn their_client_and_our_tcp_server() {
    let server = ours::VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let echo = tokio::spawn(async move {
        let mut connection = server.accept().await.unwrap();
        let mut types = Vec::new();
        while let Some(frame) = connection.recv().await.unwrap() {
            types.push(frame.typ);
            if frame.typ == ours::FrameType::Data {
                connection.send(frame).await.unwrap();
            }
        }
        types
    });
    let mut client = vstp::VstpTcpClient::connect(&address.to_string()).await.unwrap();
    for size in [0, 1, 1000, 40_000, 300_000, (8 << 20) - 200] {
        client.send(theirs_of(&sample(size))).await.unwrap();
        let back = soon(client.recv()).await.unwrap().unwrap();
        assert_eq!(ours_of(&back), sample(size), "{size}");
    }
    // What wants an acknowledgement gets one, which no server of 0.2 sends.
    let wanted = sample(10).with_flag(ours::Flags::REQ_ACK).with_header("msg-id", "77");
    client.send(theirs_of(&wanted)).await.unwrap();
    let ack = soon(client.recv()).await.unwrap().unwrap();
    assert_eq!((ack.typ, ack.get_header("msg-id")), (vstp::FrameType::Ack, Some("77")));
    assert_eq!(ours_of(&soon(client.recv()).await.unwrap().unwrap()), wanted);
    client.close().await.unwrap();
    let types = echo.await.unwrap();
    assert_eq!(types.last(), Some(&ours::FrameType::Bye));
}

#[tokio::test]
async fn their_easy_client_and_our_easy_server_and_the_other_way() {
    let server = ours::VstpServer::bind_tcp("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    let serving = tokio::spawn(server.serve(|n: u32| async move { Ok(n + 1) }));
    let client = vstp::VstpClient::connect_tcp(address).await.unwrap();
    client.send(1_u32).await.unwrap();
    assert_eq!(soon(client.receive::<u32>()).await.unwrap(), 2);
    soon(client.send_with_ack(5_u32)).await.unwrap();
    assert_eq!(soon(client.receive::<u32>()).await.unwrap(), 6);
    serving.abort();

    let server = ours::VstpServer::bind_udp("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    let serving = tokio::spawn(server.serve(|n: u32| async move { Ok(n + 1) }));
    let client = vstp::VstpClient::connect_udp(address).await.unwrap();
    client.send(1_u32).await.unwrap();
    assert_eq!(soon(client.receive::<u32>()).await.unwrap(), 2);
    soon(client.send_with_ack(5_u32)).await.unwrap();
    assert_eq!(soon(client.receive::<u32>()).await.unwrap(), 6);
    serving.abort();

    // A message that is cut goes there, and its answer comes back.
    let server = ours::VstpServer::bind_udp("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    let serving = tokio::spawn(server.serve(|text: String| async move { Ok(text + "!") }));
    let client = vstp::VstpClient::connect_udp(address).await.unwrap();
    let text = "x".repeat(50_000);
    client.send(text.clone()).await.unwrap();
    assert_eq!(soon(client.receive::<String>()).await.unwrap(), text + "!");
    serving.abort();
}

/// A port of which nobody hears but the caller: their easy server does not say where it is.
async fn on_a_free_port<T, F: Future<Output = Result<T, vstp::VstpError>>>(
    bind: impl Fn(String) -> F,
) -> (T, String) {
    for _ in 0..20 {
        let probe = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = probe.local_addr().unwrap().to_string();
        drop(probe);
        if let Ok(server) = bind(address.clone()).await {
            return (server, address);
        }
    }
    panic!("no port is free");
}

#[tokio::test]
async fn our_easy_client_and_their_easy_server() {
    let text = "x".repeat(1000);
    let (server, address) = on_a_free_port(vstp::VstpServer::bind_tcp).await;
    let serving = tokio::spawn(server.serve(|text: String| async move { Ok(text + "!") }));
    let client = ours::VstpClient::connect_tcp(address).await.unwrap();
    for text in [&text, &"y".repeat(1_000_000)] {
        client.send(text.clone()).await.unwrap();
        assert_eq!(soon(client.receive::<String>()).await.unwrap(), text.clone() + "!");
    }
    serving.abort();

    let (server, address) = on_a_free_port(vstp::VstpServer::bind_udp).await;
    let serving = tokio::spawn(server.serve(|text: String| async move { Ok(text + "!") }));
    let client = ours::VstpClient::connect_udp(address).await.unwrap();
    // Their server answers with one datagram, whatever its size.
    for text in [&text, &"y".repeat(50_000)] {
        client.send(text.clone()).await.unwrap();
        assert_eq!(soon(client.receive::<String>()).await.unwrap(), text.clone() + "!");
        client.send_with_ack(text.clone()).await.unwrap();
        assert_eq!(soon(client.receive::<String>()).await.unwrap(), text.clone() + "!");
    }
    serving.abort();
}

#[tokio::test]
async fn what_is_larger_than_8_mib_comes_from_their_tcp_client_if_it_may() {
    let config = ours::tcp::TcpConfig { frame_max: 32 << 20, ..Default::default() };
    let large = sample(20_000_000);
    for takes in [true, false] {
        let config = if takes { config.clone() } else { Default::default() };
        let server = ours::VstpTcpServer::bind_with_config("127.0.0.1:0", config).await.unwrap();
        let address = server.local_addr().unwrap().to_string();
        let receiving = tokio::spawn(async move { server.accept().await.unwrap().recv().await });
        let mut client = vstp::VstpTcpClient::connect(&address).await.unwrap();
        let sent = soon(client.send(theirs_of(&large))).await;
        match soon(receiving).await.unwrap() {
            Ok(received) => assert_eq!((received.as_ref(), takes), (Some(&large), true)),
            Err(ours::VstpError::FrameTooLarge { limit, .. }) => assert_eq!((limit, takes), (8 << 20, false)),
            Err(other) => panic!("{other}"),
        }
        if takes {
            sent.unwrap();
        } else if sent.is_ok() {
            // Their client has it all in the kernel's buffers, and reads why it was in vain.
            let said = soon(client.recv()).await.unwrap().unwrap();
            assert_eq!((said.typ, said.get_header("code")), (vstp::FrameType::Err, Some("too-large")));
            assert!(said.get_header("reason").unwrap().contains("TcpConfig::frame_max"));
        }
    }
}

#[tokio::test]
async fn our_datagrams_and_fragments_and_their_udp_server() {
    let server = vstp::VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let client = ours::VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
    for size in [0, 100, 1000, 1200, 1300, 5000, 50_000, 250_000] {
        let sent = sample(size);
        let (sending, received) = tokio::join!(client.send(sent.clone(), address), soon(server.recv()));
        sending.unwrap();
        let (frame, from) = received.unwrap();
        assert_eq!(from, client.local_addr().unwrap());
        let mut frame = ours_of(&frame);
        // A 0.2 receiver leaves the flag of the fragment that came last.
        frame.flags -= ours::Flags::FRAG;
        assert_eq!(frame, sent, "{size}");
    }
    // Nothing else was sent: no question, no report, no answer.
    let nothing = tokio::time::timeout(Duration::from_millis(300), server.recv()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    assert_eq!(server.reassembly_session_count().await, 0);
}

#[tokio::test]
async fn our_acknowledged_frames_and_their_udp_server() {
    let server = vstp::VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let client = ours::VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
    for size in [0, 1000, 5000, 100_000] {
        let (sending, received) =
            tokio::join!(client.send_with_ack(sample(size), address), soon(server.recv()));
        sending.unwrap();
        assert_eq!(received.unwrap().0.payload, sample(size).payload);
    }
}

#[tokio::test]
async fn what_is_too_large_for_a_peer_that_does_not_report_is_refused_in_words() {
    let server = vstp::VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let client = ours::VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
    let receiving = tokio::spawn(async move { server.recv().await.map(|(frame, _)| frame.typ) });
    match soon(client.send(sample(400_000), address)).await {
        Err(ours::VstpError::Protocol(text)) => {
            assert!(text.contains("takes no message of this size"), "{text}")
        }
        other => panic!("{other:?}"),
    }
    assert!(!receiving.is_finished(), "their application sees nothing of it");
    receiving.abort();
}

/// Servers of 0.2 close without a word when a frame is larger than they take.
#[tokio::test]
async fn what_is_too_large_for_their_tcp_server_is_explained() {
    let server = vstp::VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    let serving = tokio::spawn(server.run(|_session, _frame| async move {}));
    for _ in 0..5 {
        let mut client = ours::VstpTcpClient::connect(&address).await.unwrap();
        let sent = async {
            client.send(sample(60_000_000)).await?;
            client.recv().await
        };
        let error = soon(sent).await.unwrap_err().to_string();
        for words in ["60000000 bytes", "8388608", "TcpConfig::frame_max", "--max-size"] {
            assert!(error.contains(words), "{words}: {error}");
        }
    }
    serving.abort();
}

#[tokio::test]
async fn their_acknowledged_datagrams_and_our_udp_server() {
    let server = ours::VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let mut client = vstp::VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
    for size in [0, 10, 1000] {
        let theirs = theirs_of(&sample(size));
        let (sending, received) = tokio::join!(client.send_with_ack(theirs, address), soon(server.recv()));
        sending.unwrap();
        let (frame, from) = received.unwrap();
        assert_eq!(from, client.local_addr().unwrap());
        assert_eq!(frame.payload, sample(size).payload);
    }
    // An answer to an address that has proved nothing, of the size of its question.
    server.send(sample(500), client.local_addr().unwrap()).await.unwrap();
    assert_eq!(ours_of(&soon(client.recv()).await.unwrap().0), sample(500));
}

/// Their fragments carry the whole payload each, and all that want no acknowledgement have one
/// number.
#[tokio::test]
async fn their_large_messages_and_our_udp_server() {
    let server = ours::VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let mut client = vstp::VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
    for size in [1150, 1200, 1201, 2400, 5000, 20_000, 50_000, 63_000] {
        for contents in [sample(size), sample(0).with_payload(vec![0; size])] {
            let theirs = theirs_of(&contents);
            client.send(theirs.clone(), address).await.unwrap();
            assert_eq!(soon(server.recv()).await.unwrap().0, contents, "{size}");
            let (sending, received) =
                tokio::join!(client.send_with_ack(theirs, address), soon(server.recv()));
            sending.unwrap();
            let (frame, from) = received.unwrap();
            assert_eq!(from, client.local_addr().unwrap());
            assert_eq!((frame.typ, frame.payload), (contents.typ, contents.payload), "{size}");
            assert!(frame.headers.starts_with(&contents.headers), "{size}: {:?}", frame.headers);
        }
    }
    // Nothing else came, and nothing but one ACK for each went back.
    client.send(theirs_of(&sample(1)), address).await.unwrap();
    assert_eq!(soon(server.recv()).await.unwrap().0, sample(1));
    server.send(sample(2), client.local_addr().unwrap()).await.unwrap();
    assert_eq!(ours_of(&soon(client.recv()).await.unwrap().0), sample(2));
    assert_eq!(server.reassembly_session_count().await, 0);
    let counters = server.counters();
    assert_eq!((counters.malformed, counters.refused, counters.duplicates), (0, 0, 0));
}

/// Acknowledged messages have come, and nothing that wants an acknowledgement comes twice.
#[tokio::test]
async fn case_95_their_large_messages_come_once_through_a_relay_that_loses_a_tenth() {
    let server = ours::VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let relay = relay::Relay::start(server.local_addr().unwrap(), 0.1, 3).await;
    let (end, mut ended) = tokio::sync::oneshot::channel::<()>();
    let receiving = tokio::spawn(async move {
        let mut lens = Vec::new();
        loop {
            tokio::select! {
                received = server.recv() => lens.push(received.unwrap().0.payload.len()),
                _ = &mut ended => return lens,
            }
        }
    });
    let mut client = vstp::VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
    let mut acknowledged = Vec::new();
    for size in [1200, 2000, 5000, 20_000, 50_000] {
        let sent = client.send_with_ack(theirs_of(&sample(size)), relay.address).await;
        acknowledged.extend(sent.is_ok().then_some(size));
    }
    end.send(()).unwrap();
    let received = soon(receiving).await.unwrap();
    let count = |size: &usize| received.iter().filter(|len| *len == size).count();
    assert!(acknowledged.iter().all(|size| count(size) == 1), "{acknowledged:?}, and came {received:?}");
    assert!(received.iter().all(|size| count(size) == 1), "{received:?}");
    assert!(!acknowledged.is_empty());
}

/// A client of ours is spoken to by their server, and by their client, which alone cuts.
#[tokio::test]
async fn their_frames_of_any_size_and_our_udp_client() {
    let client = ours::VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
    let address = client.local_addr().unwrap();
    let server = vstp::VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let other = vstp::VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
    for size in [0, 1000, 1200, 5000, 50_000, 65_000] {
        server.send(theirs_of(&sample(size)), address).await.unwrap();
        let (frame, from) = soon(client.recv_bytes()).await.unwrap();
        assert_eq!((ours::Frame::from(frame), from), (sample(size), server.local_addr().unwrap()));
        other.send(theirs_of(&sample(size)), address).await.unwrap();
        let (frame, from) = soon(client.recv_bytes()).await.unwrap();
        assert_eq!((ours::Frame::from(frame), from), (sample(size), other.local_addr().unwrap()));
    }
}

/// Their client receives what our server sends to an address that has proved itself by being spoken
/// to first.
#[tokio::test]
async fn our_fragments_and_their_udp_client() {
    let mut client = vstp::VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
    let address = client.local_addr().unwrap();
    let server = ours::VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    for size in [1200, 5000, 50_000, 250_000] {
        let (sending, received) = tokio::join!(server.send(sample(size), address), soon(client.recv()));
        sending.unwrap();
        let mut frame = ours_of(&received.unwrap().0);
        frame.flags -= ours::Flags::FRAG;
        assert_eq!(frame, sample(size), "{size}");
    }
}

fn frames() -> impl Strategy<Value = ours::Frame> {
    let header = (prop::collection::vec(any::<u8>(), 0..40), prop::collection::vec(any::<u8>(), 0..256));
    let headers = prop::collection::vec(header, 0..6);
    let payload = prop::collection::vec(any::<u8>(), 0..600);
    (1_u8..9, any::<u8>(), headers, payload).prop_map(|(typ, flags, headers, payload)| ours::Frame {
        version: 1,
        typ: ours::FrameType::from_u8(typ).unwrap(),
        flags: ours::Flags::from_bits_truncate(flags),
        headers: headers.into_iter().map(|(key, value)| ours::Header::new(key, value)).collect(),
        payload,
    })
}

/// Whether the headers of a frame end where their length says.
fn headers_fit(bytes: &[u8]) -> bool {
    let len = u16::from_le_bytes([bytes[5], bytes[6]]) as usize;
    let mut rest = &bytes[11..11 + len];
    while !rest.is_empty() {
        let Some(next) = rest.get(..2).and_then(|lens| rest.get(2 + lens[0] as usize + lens[1] as usize..))
        else {
            return false;
        };
        rest = next;
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn both_codecs_write_the_same_bytes(frame in frames()) {
        let bytes = ours::encode_frame(&frame).unwrap();
        prop_assert_eq!(&bytes, &vstp::encode_frame(&theirs_of(&frame)).unwrap());
        let mut buf = BytesMut::from(&bytes[..]);
        prop_assert_eq!(ours::try_decode_frame(&mut buf, 1 << 20).unwrap(), Some(frame));
    }

    #[test]
    fn both_codecs_read_the_same_from_mutated_frames(
        frame in frames(),
        cut in any::<prop::sample::Index>(),
        mutations in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        mends in any::<bool>(),
        limit in prop_oneof![Just(1_usize << 20), 10_usize..2000],
    ) {
        let mut bytes = ours::encode_frame(&frame).unwrap().to_vec();
        for (at, value) in mutations {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if mends {
            // With a right CRC, what is behind it is looked at.
            let body = bytes.len() - 4;
            let crc = crc32fast::hash(&bytes[..body]);
            bytes[body..].copy_from_slice(&crc.to_be_bytes());
        }
        if !mends {
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        let (mut one, mut two) = (BytesMut::from(&bytes[..]), BytesMut::from(&bytes[..]));
        let mine = ours::try_decode_frame(&mut one, limit);
        let theirs = vstp::try_decode_frame(&mut two, limit);
        match (mine, theirs) {
            (Ok(mine), Ok(theirs)) => prop_assert_eq!(mine, theirs.as_ref().map(ours_of)),
            (Err(_), Err(_)) => {}
            // The one difference: 0.2 reads headers that reach into the payload.
            (Err(_), Ok(Some(_))) => prop_assert!(!headers_fit(&bytes)),
            (mine, theirs) => prop_assert!(false, "{:?} and {:?}", mine, theirs),
        }
        prop_assert_eq!(one.len(), two.len(), "the same is taken from the buffer");
    }
}

/// The vectors of the specification, which another program wrote.
#[test]
fn the_vectors_are_read_and_written() {
    let vectors = include_str!("../../../docs/protocol/vectors/vstp.txt");
    let mut count = 0;
    for line in vectors.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split(' ').collect();
        let [typ, flags, headers, payload, bytes] = fields[..] else { panic!("{line}") };
        let unhex = |text: &str| -> Vec<u8> {
            (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
        };
        let mut frame = ours::Frame::new(ours::FrameType::from_u8(typ.parse().unwrap()).unwrap());
        frame.flags = ours::Flags::from_bits(u8::from_str_radix(flags, 16).unwrap()).unwrap();
        for header in headers.split(',').filter(|header| *header != "-") {
            let (key, value) = header.split_once('=').unwrap();
            frame = frame.with_header(key, value);
        }
        frame.payload = unhex(if payload == "-" { "" } else { payload });
        let bytes = unhex(bytes);
        assert_eq!(ours::encode_frame(&frame).unwrap(), bytes, "{line}");
        assert_eq!(
            ours::try_decode_frame(&mut BytesMut::from(&bytes[..]), 1000).unwrap(),
            Some(frame),
            "{line}"
        );
        count += 1;
    }
    assert_eq!(count, 14);
}
