//! TCP: sessions, acknowledgements, TLS, limits.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

use fastdrop_messages::vstp::tcp::TcpConfig;
use fastdrop_messages::vstp::tcp::tls::{Fingerprint, Identity, Trust};
use fastdrop_messages::vstp::{
    Flags, Frame, FrameType, VstpClient, VstpError, VstpServer, VstpTcpClient, VstpTcpServer, encode_frame,
};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

const PATIENCE: Duration = Duration::from_secs(20);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

fn data(payload: &[u8]) -> Frame {
    Frame::new(FrameType::Data).with_payload(payload.to_vec())
}

/// What the server says to these bytes until it closes.
async fn answer_to(config: TcpConfig, bytes: &[u8]) -> Vec<u8> {
    let server = VstpTcpServer::bind_with_config("127.0.0.1:0", config).await.unwrap();
    let mut stream = TcpStream::connect(server.local_addr().unwrap()).await.unwrap();
    let serving = tokio::spawn(server.run(|_, _| async {}));
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    soon(stream.read_to_end(&mut answer)).await.unwrap();
    serving.abort();
    answer
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn what_is_no_frame_is_told_so_once_and_closed() {
    let good = encode_frame(&data(b"payload")).unwrap();
    let mut crc = good.to_vec();
    crc[12] ^= 1;
    let answer = answer_to(TcpConfig::default(), &crc).await;
    assert!(text(&answer).contains("crc"), "{}", answer.escape_ascii());
    let answer = answer_to(TcpConfig::default(), b"GET / HTTP/1.1\r\n\r\n").await;
    assert!(text(&answer).contains("malformed"), "{}", answer.escape_ascii());
    // Case 12: 4 GiB are refused when they are announced.
    let huge = [&good[..7], &[0xff; 4]].concat();
    let answer = answer_to(TcpConfig::default(), &huge).await;
    assert!(text(&answer).contains("too-large"), "{}", answer.escape_ascii());
    // Case 13: announced and never sent.
    let config = TcpConfig { frame_timeout: Duration::from_millis(50), ..TcpConfig::default() };
    for cut in [5, 12, good.len() - 1] {
        let answer = answer_to(config.clone(), &good[..cut]).await;
        assert!(text(&answer).contains("timeout"), "{}", answer.escape_ascii());
    }
}

/// Case 75.
#[tokio::test]
async fn case_75_an_error_is_not_answered() {
    let error =
        encode_frame(&Frame::new(FrameType::Err).with_flag(Flags::REQ_ACK).with_header("msg-id", "1"));
    let bye = encode_frame(&Frame::new(FrameType::Bye)).unwrap();
    let answer = answer_to(TcpConfig::default(), &[error.unwrap(), bye].concat()).await;
    assert_eq!(answer, b"");
}

#[tokio::test]
async fn an_acknowledged_frame_is_delivered_once() {
    let server = VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    let (seen, mut sees) = mpsc::unbounded_channel();
    let serving = tokio::spawn(server.run(move |_, frame| {
        let seen = seen.clone();
        async move { seen.send(frame).unwrap() }
    }));
    let mut client = VstpTcpClient::connect(&address).await.unwrap();
    let twice = data(b"once").with_flag(Flags::REQ_ACK).with_header("msg-id", "5");
    client.send(twice.clone()).await.unwrap();
    client.send(twice).await.unwrap();
    for _ in 0..2 {
        let ack = soon(client.recv()).await.unwrap().unwrap();
        assert_eq!((ack.typ, ack.get_header("msg-id")), (FrameType::Ack, Some("5")));
    }
    soon(client.send_all_with_ack(vec![data(b"a"), data(b"b"), data(b"c")])).await.unwrap();
    let mut payloads = Vec::new();
    for _ in 0..4 {
        payloads.push(soon(sees.recv()).await.unwrap().payload);
    }
    assert_eq!(payloads, [&b"once"[..], b"a", b"b", b"c"]);
    serving.abort();
}

#[tokio::test]
async fn receiving_may_be_given_up_anywhere_and_nothing_is_lost() {
    let server = VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
    let mut stream = TcpStream::connect(server.local_addr().unwrap()).await.unwrap();
    let mut connection = server.accept().await.unwrap();
    let frames = [data(&[1; 10]), data(&[2; 100_000]), data(&[3; 40_000])];
    let bytes: Vec<u8> = frames.iter().flat_map(|frame| encode_frame(frame).unwrap()).collect();
    let writing = tokio::spawn(async move {
        for part in bytes.chunks(7_001) {
            stream.write_all(part).await.unwrap();
            tokio::task::yield_now().await;
        }
        stream
    });
    let mut came = Vec::new();
    while came.len() < 3 {
        // Polled once, and dropped.
        let mut receiving = Box::pin(connection.recv());
        let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(receiving.as_mut().poll(cx))).await;
        if let std::task::Poll::Ready(frame) = polled {
            came.push(frame.unwrap().unwrap());
        }
        drop(receiving);
        tokio::task::yield_now().await;
    }
    assert_eq!(came, frames);
    drop(writing.await.unwrap());
}

#[tokio::test]
async fn case_96_a_peer_that_agreed_to_keep_alive_and_falls_silent_is_gone() {
    let config = TcpConfig { keep_alive: Some(Duration::from_millis(100)), ..TcpConfig::default() };
    let server = VstpTcpServer::bind_with_config("127.0.0.1:0", config.clone()).await.unwrap();
    let address = server.local_addr().unwrap();
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut connection = server.accept().await.unwrap();
    let hello = Frame::new(FrameType::Hello).with_header("keep-alive", "100");
    silent.write_all(&encode_frame(&hello).unwrap()).await.unwrap();
    assert_eq!(soon(connection.recv()).await.unwrap().unwrap().typ, FrameType::Hello);
    assert!(matches!(soon(connection.recv()).await, Err(VstpError::Timeout)));
    let mut heard = Vec::new();
    soon(silent.read_to_end(&mut heard)).await.unwrap();
    assert!(heard.windows(4).filter(|bytes| *bytes == b"VT\x01\x04").count() >= 2, "PINGs before that");

    // Two that both listen stay, however long nobody has anything to say.
    let mut client = VstpTcpClient::connect_with_config(&address.to_string(), config).await.unwrap();
    let mut connection = server.accept().await.unwrap();
    client.send_hello().await.unwrap();
    let serving = tokio::spawn(async move {
        while let Some(frame) = connection.recv().await.unwrap() {
            if frame.typ == FrameType::Data {
                connection.send(frame).await.unwrap();
            }
        }
    });
    assert_eq!(soon(client.recv()).await.unwrap().unwrap().typ, FrameType::Welcome);
    assert!(
        tokio::time::timeout(Duration::from_millis(700), client.recv()).await.is_err(),
        "PINGs are not handed on"
    );
    client.send(data(b"still here")).await.unwrap();
    assert_eq!(soon(client.recv()).await.unwrap().unwrap().payload, b"still here");
    client.close().await.unwrap();
    soon(serving).await.unwrap();
}

/// What is not read is not taken either: the sender waits, and nothing grows.
#[tokio::test]
async fn case_97_a_reader_that_crawls_holds_the_sender_back() {
    let server = VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
    let mut client = VstpTcpClient::connect(&server.local_addr().unwrap().to_string()).await.unwrap();
    let mut connection = server.accept().await.unwrap();
    let sending = tokio::spawn(async move {
        for n in 0..64_u8 {
            client.send(data(&vec![n; 1 << 20])).await.unwrap();
        }
        client.close().await.unwrap();
    });
    // As long as it makes progress, it has not come to its bound.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert!(!sending.is_finished(), "64 MiB do not fit into the sockets");
    for n in 0..64_u8 {
        let frame = soon(connection.recv()).await.unwrap().unwrap();
        assert!(frame.payload.len() == 1 << 20 && frame.payload.iter().all(|byte| *byte == n));
    }
    soon(sending).await.unwrap();
}

#[tokio::test]
async fn case_93_a_handler_that_panics_ends_its_own_session() {
    let server = VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    let serving = tokio::spawn(server.run(|_, frame| async move { assert_ne!(frame.payload, b"panic") }));
    let mut one = VstpTcpClient::connect(&address).await.unwrap();
    let mut two = VstpTcpClient::connect(&address).await.unwrap();
    one.send(data(b"panic")).await.unwrap();
    assert!(matches!(soon(one.recv()).await, Ok(None) | Err(VstpError::Io(_))));
    soon(two.send_with_ack(data(b"fine"))).await.unwrap();
    serving.abort();
}

#[tokio::test]
async fn a_server_that_ends_says_bye_when_its_handlers_are_done() {
    let server = VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    let (end, ended) = oneshot::channel::<()>();
    let (began, mut begins) = mpsc::unbounded_channel();
    let release = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let serving = {
        let release = release.clone();
        let ended = async { ended.await.unwrap_or(()) };
        tokio::spawn(server.run_until(ended, move |_, _| {
            let (began, release) = (began.clone(), release.clone());
            async move {
                began.send(()).unwrap();
                release.acquire().await.unwrap().forget();
            }
        }))
    };
    let mut client = VstpTcpClient::connect(&address).await.unwrap();
    client.send(data(b"work")).await.unwrap();
    soon(begins.recv()).await.unwrap();
    end.send(()).unwrap();
    release.add_permits(1);
    assert_eq!(soon(client.recv()).await.unwrap().unwrap().typ, FrameType::Bye);
    soon(serving).await.unwrap().unwrap();
    assert!(VstpTcpClient::connect(&address).await.is_err(), "nobody is accepted any more");
}

#[tokio::test]
async fn case_61_tls_trusts_the_pinned_certificate_and_no_other() {
    let identity = Identity::generate(&["localhost", "127.0.0.1"]).unwrap();
    let server = VstpTcpServer::bind_tls("127.0.0.1:0", &identity, TcpConfig::default()).await.unwrap();
    let address = server.local_addr().unwrap();
    let serving = tokio::spawn(server.run(|_, _| async {}));
    let connect = async |trust: &Trust, address: String| {
        let mut client = VstpTcpClient::connect_tls(&address, trust, TcpConfig::default()).await?;
        client.send_with_ack(data(&[7; 100_000])).await
    };
    let pinned = Trust::Pinned(identity.fingerprint());
    soon(connect(&pinned, address.to_string())).await.unwrap();
    let other = Trust::Pinned(Fingerprint([0; 32]));
    assert!(soon(connect(&other, address.to_string())).await.is_err());
    let none = Trust::Authorities(std::sync::Arc::new(rustls::RootCertStore::empty()));
    assert!(soon(connect(&none, address.to_string())).await.is_err());
    // Somebody who speaks no TLS gets nothing.
    let mut plain = VstpTcpClient::connect(&address.to_string()).await.unwrap();
    assert!(soon(plain.send_with_ack(data(b"x"))).await.is_err());
    serving.abort();
}

#[tokio::test]
async fn case_61_tls_trusts_who_an_authority_has_signed_for_the_name_that_was_dialled() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, cert, key) =
        (dir.path().join("authority.pem"), dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_key = rcgen::KeyPair::generate().unwrap();
    std::fs::write(&authority, params.self_signed(&authority_key).unwrap().pem()).unwrap();
    let own_key = rcgen::KeyPair::generate().unwrap();
    let signed = rcgen::CertificateParams::new(vec!["localhost".to_owned()])
        .unwrap()
        .signed_by(&own_key, &rcgen::Issuer::new(params, authority_key))
        .unwrap();
    std::fs::write(&cert, signed.pem()).unwrap();
    std::fs::write(&key, own_key.serialize_pem()).unwrap();
    let identity = Identity::from_pem(&cert, &key).unwrap();
    let server = VstpTcpServer::bind_tls("127.0.0.1:0", &identity, TcpConfig::default()).await.unwrap();
    let port = server.local_addr().unwrap().port();
    let serving = tokio::spawn(server.run(|_, _| async {}));
    let connect = async |trusted: &std::path::Path, host: &str| {
        let (trust, address) = (Trust::from_pem(trusted).unwrap(), format!("{host}:{port}"));
        VstpTcpClient::connect_tls(&address, &trust, TcpConfig::default()).await
    };
    let mut client = soon(connect(&authority, "localhost")).await.unwrap();
    soon(client.send_with_ack(data(b"x"))).await.unwrap();
    assert!(soon(connect(&authority, "127.0.0.1")).await.is_err(), "the certificate is for another name");
    // Listed itself, it needs no name.
    assert!(soon(connect(&cert, "127.0.0.1")).await.is_ok());
    serving.abort();
}

/// Case 62: the connection is cut where TLS has said nothing of an end.
#[tokio::test]
async fn case_62_an_end_without_close_notify_is_an_error() {
    let identity = Identity::generate(&["localhost"]).unwrap();
    let server = VstpTcpServer::bind_tls("127.0.0.1:0", &identity, TcpConfig::default()).await.unwrap();
    let address = server.local_addr().unwrap();
    let relay = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let front = relay.local_addr().unwrap().to_string();
    let cutting = tokio::spawn(async move {
        let (mut one, _) = relay.accept().await.unwrap();
        let mut two = TcpStream::connect(address).await.unwrap();
        // Until the client has had its acknowledgement.
        let copied = tokio::time::timeout(
            Duration::from_millis(500),
            tokio::io::copy_bidirectional(&mut one, &mut two),
        );
        assert!(copied.await.is_err());
    });
    let receiving = tokio::spawn(async move {
        let mut connection = server.accept().await.unwrap();
        assert!(connection.recv().await.unwrap().is_some());
        connection.recv().await
    });
    let trust = Trust::Pinned(identity.fingerprint());
    let mut client = VstpTcpClient::connect_tls(&front, &trust, TcpConfig::default()).await.unwrap();
    client.send(data(b"x")).await.unwrap();
    assert!(soon(receiving).await.unwrap().is_err(), "a cut connection is no end");
    cutting.await.unwrap();
}

#[tokio::test]
async fn auto_takes_udp_for_what_is_small_once_pings_are_answered_and_tcp_where_they_are_not() {
    use fastdrop_proto::vstp::transport::Transport;
    let server = VstpServer::bind_auto("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    let serving = tokio::spawn(server.serve(|n: u32| async move { Ok(n + 1) }));
    let client = VstpClient::connect_auto(&address).await.unwrap();
    let small = data(b"1");
    let found = async {
        while client.transport_for(&small) == Transport::Tcp {
            tokio::task::yield_now().await;
        }
    };
    soon(found).await;
    assert_eq!(client.transport_for(&data(&[0; 5000])), Transport::Tcp);
    assert_eq!(client.transport_for(&small.clone().with_flag(Flags::REQ_ACK)), Transport::Tcp);
    for n in [1_u32, 5, 9] {
        client.send(n).await.unwrap();
        assert_eq!(soon(client.receive::<u32>()).await.unwrap(), n + 1);
    }
    client.send_with_ack(7_u32).await.unwrap();
    assert_eq!(soon(client.receive::<u32>()).await.unwrap(), 8);
    serving.abort();

    // A server that only listens by TCP: datagrams come through to nobody.
    let server = VstpServer::bind_tcp("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    let serving = tokio::spawn(server.serve(|n: u32| async move { Ok(n + 1) }));
    let client = VstpClient::connect_auto(&address).await.unwrap();
    for n in [1_u32, 5, 9] {
        assert_eq!(client.transport_for(&small), Transport::Tcp);
        client.send(n).await.unwrap();
        assert_eq!(soon(client.receive::<u32>()).await.unwrap(), n + 1);
    }
    serving.abort();
}
