//! CNP over real sockets.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

mod relay;

use bytes::Bytes;
use fastdrop_messages::cnp::{
    ChecksumKind, Client, Config, Ending, Error, ErrorCode, Fault, Generation, MessageLimits, Mode, Protocol,
    Server, Session,
};
use fastdrop_messages::port::{Port, PortConfig};
use fastdrop_proto::cnp::packet::{HEAD_BYTES, append, append_marked};
use fastdrop_proto::cnp::{Checksum, Head, Seq};
use futures_core::Stream;
use relay::Relay;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

async fn server() -> Server {
    Server::bind("127.0.0.1:0").await.unwrap()
}

async fn client(udp: bool, server: SocketAddr) -> Client {
    let builder = Client::builder();
    soon(if udp { builder.udp() } else { builder }.connect(server)).await.unwrap()
}

/// Sends a message from one end to the application of the other, and waits for its acknowledgement.
async fn passes(from: &Session, to: &Session, message: impl Into<Bytes>) -> Bytes {
    let (sent, received) = tokio::join!(soon(from.send(message)), soon(to.recv()));
    sent.unwrap();
    received.unwrap().expect("a message")
}

/// A packet as peers of the field write it.
fn packet(typ: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    append(&mut packet, typ, Seq(0), 0, &Checksum::Md5, payload);
    packet
}

const SYN: &[u8] = br#"{"operation_mode":"step-by-step","max_packet_size":1024}"#;

#[tokio::test]
async fn what_is_sent_has_arrived_and_messages_are_a_stream() {
    for udp in [false, true] {
        let mut server = server().await;
        let client = client(udp, server.local_addr()).await;
        let session = soon(server.accept()).await.unwrap();
        assert_eq!(session.agreed(), client.agreed());
        assert_eq!(session.transport(), if udp { "udp" } else { "tcp" });
        let long = Bytes::from(vec![7; 3_000_000]);
        for message in [long, Bytes::new()] {
            assert_eq!(passes(&client, &session, message.clone()).await, message);
        }
        // The other way, as a stream, which ends with the session.
        for n in 0..100 {
            session.submit(format!("{n}")).await.unwrap();
        }
        let take = async {
            let mut messages = pin!(client.messages());
            let mut next = async || soon(std::future::poll_fn(|cx| messages.as_mut().poll_next(cx))).await;
            for n in 0..100 {
                assert_eq!(next().await, Some(n.to_string().into()));
            }
            assert_eq!(next().await, None);
        };
        let (closed, ()) = tokio::join!(soon(session.close()), take);
        closed.unwrap();
        assert_eq!(soon(client.ended()).await, Ending::PeerClosed);
        assert!(matches!(client.send("too late").await, Err(Error::Ended(Ending::PeerClosed))));
    }
}

#[tokio::test]
async fn a_receipt_says_when_its_message_has_arrived() {
    let server = server().await;
    let client = client(true, server.local_addr()).await;
    tokio::spawn(server.run(|_, _| async {}));
    let first = client.submit_with_receipt("first").await.unwrap();
    let second = client.submit_with_receipt("second").await.unwrap();
    soon(second.acknowledged()).await.unwrap();
    soon(first.acknowledged()).await.unwrap();
    let counters = client.stats().counters;
    assert_eq!((counters.messages_acknowledged, counters.bytes_acknowledged), (2, 11));
    assert!(client.stats().rtt.is_some());
}

#[tokio::test]
async fn what_a_dropped_client_had_submitted_still_arrives() {
    for udp in [false, true] {
        let mut server = server().await;
        let client = client(udp, server.local_addr()).await;
        for n in 0..500_u16 {
            client.submit(Bytes::from(vec![n as u8; 1000])).await.unwrap();
        }
        drop(client);
        let session = soon(server.accept()).await.unwrap();
        for n in 0..500_u16 {
            assert_eq!(soon(session.recv()).await.unwrap().unwrap(), vec![n as u8; 1000]);
        }
        assert_eq!(soon(session.recv()).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_server_that_closes_takes_leave_of_all() {
    let server = Server::builder().drain(Duration::from_secs(5)).bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let echo = |session: Session, message| async move { session.submit(message).await.unwrap() };
    let serving = tokio::spawn(server.run_until(async { drop(ended.await) }, echo));
    let mut clients = Vec::new();
    for n in 0..20 {
        let client = client(n % 2 == 0, address).await;
        client.send("x").await.unwrap();
        assert_eq!(soon(client.recv()).await.unwrap().as_deref(), Some(&b"x"[..]));
        clients.push(client);
    }
    end.send(()).unwrap();
    for client in &clients {
        assert_eq!(soon(client.ended()).await, Ending::PeerClosed);
    }
    soon(serving).await.unwrap();
    assert!(Client::builder().connect(address).await.is_err());
}

#[tokio::test]
async fn whoever_waits_for_a_session_is_told_when_its_server_is_dropped() {
    for udp in [false, true] {
        let mut server = server().await;
        let client = client(udp, server.local_addr()).await;
        let session = soon(server.accept()).await.unwrap();
        passes(&client, &session, "x").await;
        let waiting = tokio::spawn({
            let session = session.clone();
            async move { session.recv().await }
        });
        drop(server);
        assert!(matches!(soon(waiting).await.unwrap(), Ok(None)));
        soon(session.close()).await.unwrap();
        assert_eq!(soon(client.ended()).await, Ending::PeerClosed);
    }
    // A drain that is over is an end as well.
    let mut server = Server::builder().drain(Duration::from_millis(50)).bind("127.0.0.1:0").await.unwrap();
    let _silent = handshake(server.local_addr()).await;
    let session = soon(server.accept()).await.unwrap();
    session.submit("never acknowledged").await.unwrap();
    server.close().await;
    assert!(soon(session.flush()).await.is_err());
}

#[tokio::test]
async fn one_port_goes_on_with_either_protocol_when_the_other_is_gone() {
    let port = Port::bind("127.0.0.1:0", PortConfig::default()).await.unwrap();
    let Port { vstp_tcp, vstp_udp, cnp, sorting: _sorting, address } = port;
    tokio::spawn(cnp.run(|_, _| async {}));
    let one = client(true, address).await;
    soon(one.send("while both are there")).await.unwrap();
    drop((vstp_tcp, vstp_udp));
    soon(one.send("alone")).await.unwrap();
    for udp in [false, true] {
        soon(client(udp, address).await.send("a new one")).await.unwrap();
    }
}

#[tokio::test]
async fn errors_say_whose_fault_they_are() {
    let server = server().await;
    let address = server.local_addr();
    tokio::spawn(server.run(|_, _| async {}));
    let fault = |error: Error| error.fault();
    // The caller's.
    for builder in [
        Client::builder().config(Config::default().window(0)),
        Client::builder().config(Config::default().window(32_768)),
        Client::builder().config(Config::default().packet_max(0)),
        Client::builder().udp().config(Config::default().packet_max(65_001)),
        Client::builder().config(Config::default().keep_alive(Some(Duration::from_millis(99)))),
        Client::builder().client_id("x".repeat(129)),
    ] {
        assert_eq!(fault(builder.connect(address).await.unwrap_err()), Fault::Caller);
    }
    assert!(Server::builder().config(Config::default().packet_max(0)).bind("127.0.0.1:0").await.is_err());
    let client = client(false, address).await;
    let too_large = client.send(vec![0; (16 << 20) + 1]).await.unwrap_err();
    assert!(matches!(too_large, Error::TooLarge(_)) && too_large.fault() == Fault::Caller);
    client.send("and goes on").await.unwrap();
    // The peer's.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refusing = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&packet(2, br#"{"status":"full today"}"#)).await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let refused = Client::connect(refusing).await.unwrap_err();
    assert!(refused.to_string().contains("full today") && refused.fault() == Fault::Peer);
    // The network's.
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert_eq!(fault(Client::connect(nobody).await.unwrap_err()), Fault::Network);
    let unreachable = soon(Client::builder().udp().connect(nobody)).await.unwrap_err();
    assert!(matches!(unreachable, Error::Ended(Ending::Unreachable)));
    assert_eq!(unreachable.fault(), Fault::Network);
    let hole = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let patient =
        Client::builder().udp().config(Config::default().handshake_timeout(Duration::from_millis(200)));
    let silence = soon(patient.connect(hole.local_addr().unwrap())).await.unwrap_err();
    assert!(matches!(silence, Error::Ended(Ending::HandshakeTimeout)));
    assert_eq!(silence.fault(), Fault::Network);
}

#[tokio::test]
async fn what_a_server_of_the_second_generation_sends_as_0x04_is_a_message() {
    for mode in ["", r#","operation_mode":"burst""#] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let peer = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            next(&mut stream).await;
            let answer = format!(r#"{{"status":"ok","session_id":1,"protocol":"sr","max_size":99{mode}}}"#);
            stream.write_all(&packet(2, answer.as_bytes())).await.unwrap();
            assert_eq!(next(&mut stream).await.0, 3);
            for payload in [&b"four"[..], b""] {
                stream.write_all(&packet(4, payload)).await.unwrap();
                assert_eq!(next(&mut stream).await, (2, b"ACK".to_vec()));
            }
            stream.write_all(&packet(5, b"Disconnect")).await.unwrap();
            stream.read_to_end(&mut Vec::new()).await.unwrap();
        });
        let client = Client::connect(address).await.unwrap();
        for expected in [Some(&b"four"[..]), Some(b""), None] {
            assert_eq!(soon(client.recv()).await.unwrap().as_deref(), expected, "{mode}");
        }
        assert_eq!(client.generation(), Generation::Second);
        soon(peer).await.unwrap();
    }
}

#[tokio::test]
async fn a_fastdrop_that_ended_the_first_connection_is_asked_in_full_again() {
    let server = server().await;
    let behind = server.local_addr();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(server.run(|_, _| async {}));
    tokio::spawn(async move {
        drop(listener.accept().await.unwrap());
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut server = TcpStream::connect(behind).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut stream, &mut server).await });
        }
    });
    let client = soon(Client::connect(address)).await.unwrap();
    assert_eq!(client.generation(), Generation::FastDrop);
    client.send(&b"\xff no text"[..]).await.unwrap();
}

#[tokio::test]
async fn a_server_of_the_fourth_generation_that_says_no_is_not_asked_again() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let peer = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        next(&mut stream).await;
        drop(stream);
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = [0; HEAD_BYTES + 1];
        stream.read_exact(&mut head).await.unwrap();
        let mut answer = Vec::new();
        append_marked(&mut answer, false, 2, Seq(0), br#"{"status":"full today"}"#);
        stream.write_all(&answer).await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
        listener
    });
    let error = soon(Client::connect(address)).await.unwrap_err();
    assert!(matches!(&error, Error::Ended(Ending::Refused(why)) if why == "full today"), "{error}");
    let listener = soon(peer).await.unwrap();
    let again = tokio::time::timeout(Duration::ZERO, listener.accept()).await;
    assert!(again.is_err(), "asked again");
}

#[tokio::test]
async fn a_session_that_is_aborted_tells_the_peer_why() {
    for udp in [false, true] {
        let mut server = server().await;
        let client = client(udp, server.local_addr()).await;
        client.submit("x").await.unwrap();
        let session = soon(server.accept()).await.unwrap();
        session.abort(ErrorCode::Busy, "not now");
        let Ending::PeerError(error) = soon(client.ended()).await else { panic!("another end") };
        assert_eq!((error.code.as_deref(), &*error.sentence), (Some("busy"), "not now"));
    }
}

#[tokio::test]
async fn case_13_a_handshake_or_a_packet_that_does_not_go_on_is_ended() {
    let brief = Duration::from_millis(200);
    let server = Server::builder().config(Config::default().handshake_timeout(brief).packet_timeout(brief));
    let server = server.bind("127.0.0.1:0").await.unwrap();
    for bytes in [Vec::new(), packet(1, SYN)[..20].to_vec(), packet(1, SYN)] {
        let mut stream = TcpStream::connect(server.local_addr()).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        soon(stream.read_to_end(&mut Vec::new())).await.unwrap();
    }
    let mut stream = handshake(server.local_addr()).await;
    stream.write_all(&packet(1, b"a message that is cut")[..20]).await.unwrap();
    let mut said = Vec::new();
    soon(stream.read_to_end(&mut said)).await.unwrap();
    assert!(String::from_utf8_lossy(&said[11..]).starts_with("timeout: "));
}

/// A session as a program of the field would have it.
async fn handshake(server: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(server).await.unwrap();
    stream.write_all(&packet(1, SYN)).await.unwrap();
    let answer = next(&mut stream).await.1;
    let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
    let ack = serde_json::json!({ "session_id": answer["session_id"] }).to_string();
    stream.write_all(&packet(3, ack.as_bytes())).await.unwrap();
    stream
}

async fn next(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut head = [0; HEAD_BYTES];
    soon(stream.read_exact(&mut head)).await.unwrap();
    let head = Head::parse(&head, 1 << 20).unwrap().unwrap();
    let mut payload = vec![0; head.payload_len()];
    soon(stream.read_exact(&mut payload)).await.unwrap();
    (head.typ, payload)
}

#[tokio::test]
async fn cases_12_and_75_what_may_not_be_is_told_once_and_an_error_is_not_answered() {
    let server = server().await;
    for (bytes, expected) in [
        (packet(1, &[0; 1025]), "too-large: "),
        (b"\xff\xff\xff\xff".to_vec(), "too-large: "),
        (packet(6, b"a fragment"), "malformed: "),
        (packet(9, b""), "malformed: "),
        (packet(3, b"an error"), ""),
    ] {
        let mut stream = handshake(server.local_addr()).await;
        stream.write_all(&bytes).await.unwrap();
        let mut said = Vec::new();
        soon(stream.read_to_end(&mut said)).await.unwrap();
        let said = String::from_utf8_lossy(said.get(11..).unwrap_or_default()).into_owned();
        assert!(said.starts_with(expected) && said.is_empty() == expected.is_empty(), "{said:?}");
    }
    // Another id than the one that was given.
    let mut stream = TcpStream::connect(server.local_addr()).await.unwrap();
    stream.write_all(&packet(1, SYN)).await.unwrap();
    next(&mut stream).await;
    stream.write_all(&packet(3, br#"{"session_id":"guessed"}"#)).await.unwrap();
    let (typ, said) = next(&mut stream).await;
    assert!(typ == 3 && said.starts_with(b"session: "));
}

#[tokio::test]
async fn cases_70_71_74_and_75_strangers_by_udp_get_little_and_change_nothing() {
    let mut server = Server::builder().tcp(false).bind("127.0.0.1:0").await.unwrap();
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    stranger.connect(server.local_addr()).await.unwrap();
    for bytes in [
        Vec::new(),
        vec![0; 65_507],
        packet(2, b"ACK"),
        packet(3, b"malformed: an error"),
        packet(5, b"Disconnect"),
        packet(1, b"data of no session"),
        packet(3, br#"{"session_id":"guessed"}"#),
    ] {
        stranger.send(&bytes).await.unwrap();
    }
    // Answers come in order: the first is the one for the SYN.
    let syn = packet(1, SYN);
    stranger.send(&syn).await.unwrap();
    let mut buffer = vec![0; 65_536];
    let len = soon(stranger.recv(&mut buffer)).await.unwrap();
    assert_eq!(Head::parse(&buffer[..len], 4096).unwrap().unwrap().typ, 2);
    assert!(len <= 3 * syn.len());
    // Somebody else's session is not troubled by what comes from another address.
    let client = client(true, server.local_addr()).await;
    client.submit("x").await.unwrap();
    let session = soon(server.accept()).await.unwrap();
    assert_eq!(session.peer_addr().ip(), server.local_addr().ip());
    assert_eq!(soon(session.recv()).await.unwrap().as_deref(), Some(&b"x"[..]));
}

#[tokio::test]
async fn case_73_there_are_so_many_sessions_and_no_more() {
    let server = Server::builder().sessions_max(3).bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr();
    tokio::spawn(server.run(|_, _| async {}));
    for udp in [false, true] {
        let mut clients = Vec::new();
        for _ in 0..3 {
            let one = client(udp, address).await;
            one.send("x").await.unwrap();
            clients.push(one);
        }
        let brief = Duration::from_millis(300);
        let builder = Client::builder().config(Config::default().handshake_timeout(brief).gone_after(brief));
        let one_more = if udp { builder.udp() } else { builder }.connect(address).await;
        // By UDP a handshake may seem to be over at the client's end alone.
        let served = match one_more {
            Ok(one_more) => one_more.send("x").await.is_ok(),
            Err(_) => false,
        };
        assert!(!served, "a fourth session, udp: {udp}");
        for client in &clients {
            client.send("still here").await.unwrap();
            client.close().await.unwrap();
        }
        let again = client(udp, address).await;
        soon(again.send("x")).await.unwrap();
    }
}

#[tokio::test]
async fn case_93_a_handler_that_panics_ends_its_own_session() {
    let server = server().await;
    let address = server.local_addr();
    tokio::spawn(server.run(|_, message| async move { assert_ne!(message, "panic") }));
    let (one, other) = (client(false, address).await, client(false, address).await);
    one.send("panic").await.unwrap();
    assert_eq!(soon(one.ended()).await, Ending::PeerClosed);
    other.send("fine").await.unwrap();
    other.close().await.unwrap();
}

#[tokio::test]
async fn case_95_messages_come_once_each_through_a_network_that_does_everything_wrong() {
    for (protocol, mode, count) in [
        (Protocol::SelectiveRepeat, Mode::Burst, 1000),
        (Protocol::GoBackN, Mode::Burst, 300),
        (Protocol::SelectiveRepeat, Mode::StepByStep, 40),
    ] {
        let mut server = Server::builder().tcp(false).bind("127.0.0.1:0").await.unwrap();
        let relay = Relay::start(server.local_addr(), 0.1, 7).await;
        let client =
            Client::builder().udp().protocol(protocol).mode(mode).config(Config::default().window(32));
        let client = soon(client.connect(relay.address)).await.unwrap();
        for n in 0..count {
            soon(client.submit(format!("message {n} {}", "x".repeat(n % 3000)))).await.unwrap();
        }
        let session = soon(server.accept()).await.unwrap();
        for n in 0..count {
            let message = soon(session.recv()).await.unwrap().unwrap();
            assert!(message.starts_with(format!("message {n} ").as_bytes()), "{protocol:?} {n}");
        }
        soon(client.close()).await.unwrap();
        assert!(client.stats().counters.retransmissions > 0);
        assert_eq!(soon(session.recv()).await.unwrap(), None);
    }
}

#[tokio::test]
async fn case_96_a_client_that_falls_silent_is_gone() {
    let keep_alive = Some(Duration::from_millis(100));
    let mut server =
        Server::builder().config(Config::default().keep_alive(keep_alive)).bind("127.0.0.1:0").await.unwrap();
    let mut stream = TcpStream::connect(server.local_addr()).await.unwrap();
    let syn = br#"{"operation_mode":"burst","fragmentation":true,"max_message_size":9,"keep_alive":100}"#;
    stream.write_all(&packet(1, syn)).await.unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&next(&mut stream).await.1).unwrap();
    let ack = serde_json::json!({ "session_id": answer["session_id"] }).to_string();
    stream.write_all(&packet(3, ack.as_bytes())).await.unwrap();
    let silent = soon(server.accept()).await.unwrap();
    // One that answers stays, whatever it sends.
    let client = Client::builder()
        .config(Config::default().keep_alive(keep_alive))
        .connect(server.local_addr())
        .await
        .unwrap();
    let there = soon(server.accept()).await.unwrap();
    assert_eq!(soon(silent.ended()).await, Ending::Gone);
    assert_eq!(passes(&client, &there, "x").await, "x");
}

#[tokio::test]
async fn case_96_a_connection_that_breaks_is_lost_and_not_closed() {
    let mut server = server().await;
    let stream = handshake(server.local_addr()).await;
    let session = soon(server.accept()).await.unwrap();
    drop(stream);
    assert_eq!(soon(session.ended()).await, Ending::ConnectionLost);
    assert!(matches!(session.recv().await, Err(Error::Ended(Ending::ConnectionLost))));
}

#[tokio::test]
async fn case_97_an_application_that_crawls_holds_the_sender_back_and_loses_nothing() {
    let limits = MessageLimits { receive_max: 100_000, send_max: 100_000, ..MessageLimits::default() };
    for udp in [false, true] {
        let mut server =
            Server::builder().config(Config::default().limits(limits)).bind("127.0.0.1:0").await.unwrap();
        let builder = Client::builder().config(Config::default().limits(limits));
        let builder = if udp { builder.udp() } else { builder };
        let client = builder.connect(server.local_addr()).await.unwrap();
        let session = soon(server.accept()).await.unwrap();
        let (tell, mut told) = mpsc::unbounded_channel();
        let sending = {
            let client = client.clone();
            tokio::spawn(async move {
                for n in 0..20_000_u32 {
                    client.submit(Bytes::from(vec![n as u8; 1000])).await.unwrap();
                    tell.send(n).unwrap();
                }
                client.flush().await.unwrap();
            })
        };
        // So much is taken at once, and then no more: what both ends and the system keep is far
        // less than all.
        let taken = async {
            loop {
                match tokio::time::timeout(Duration::from_millis(300), told.recv()).await {
                    Ok(Some(n)) => assert!(n < 15_000, "no end to it"),
                    Ok(None) => panic!("all of it was taken"),
                    Err(_) => break,
                }
            }
        };
        soon(taken).await;
        for n in 0..20_000_u32 {
            assert_eq!(soon(session.recv()).await.unwrap().unwrap(), vec![n as u8; 1000], "udp: {udp}");
        }
        soon(sending).await.unwrap();
    }
}

#[tokio::test]
async fn what_all_sessions_keep_is_bounded() {
    let mut server = Server::builder().memory_max(1 << 20).bind("127.0.0.1:0").await.unwrap();
    let modest = client(false, server.local_addr()).await;
    let of_modest = soon(server.accept()).await.unwrap();
    passes(&modest, &of_modest, "little").await;
    let greedy = client(false, server.local_addr()).await;
    let of_greedy = soon(server.accept()).await.unwrap();
    for _ in 0..10 {
        if greedy.submit(vec![0; 300_000]).await.is_err() {
            break;
        }
    }
    let Ending::PeerError(error) = soon(greedy.ended()).await else { panic!("another end") };
    assert_eq!(error.code.as_deref(), Some("busy"));
    passes(&modest, &of_modest, "still here").await;
    drop(of_greedy);
}

#[tokio::test]
async fn a_new_session_from_the_same_address_takes_the_place_of_the_old_one() {
    let mut server = Server::builder().tcp(false).bind("127.0.0.1:0").await.unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server.local_addr()).await.unwrap();
    let mut sessions = Vec::new();
    for name in ["first", "second"] {
        let syn = format!(r#"{{"operation_mode":"step-by-step","max_packet_size":99,"client_id":"{name}"}}"#);
        socket.send(&packet(1, syn.as_bytes())).await.unwrap();
        let mut buffer = [0; 2000];
        let id = loop {
            let len = soon(socket.recv(&mut buffer)).await.unwrap();
            if let Ok(answer) = serde_json::from_slice::<serde_json::Value>(&buffer[HEAD_BYTES..len]) {
                break answer["session_id"].clone();
            }
        };
        let ack = serde_json::json!({ "session_id": id }).to_string();
        socket.send(&packet(3, ack.as_bytes())).await.unwrap();
        socket.send(&packet(1, name.as_bytes())).await.unwrap();
        let session = soon(server.accept()).await.unwrap();
        assert_eq!(session.agreed().client_id.as_deref(), Some(name));
        assert_eq!(soon(session.recv()).await.unwrap().unwrap(), name);
        sessions.push(session);
    }
    assert_eq!(soon(sessions[0].ended()).await, Ending::ConnectionLost);
}

#[tokio::test]
async fn many_sessions_go_on_beside_each_other() {
    let server = server().await;
    let address = server.local_addr();
    let (tell, mut told) = mpsc::unbounded_channel();
    tokio::spawn(server.run(move |session, message| {
        let tell = tell.clone();
        async move {
            tell.send((session.agreed().client_id.clone().unwrap(), message)).unwrap();
        }
    }));
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..50 {
        clients.spawn(async move {
            let mut builder = Client::builder().client_id(n.to_string());
            if n % 2 == 0 {
                builder = builder.udp();
            }
            if n % 3 == 0 {
                builder = builder.checksum(ChecksumKind::Md5);
            }
            let client = builder.connect(address).await.unwrap();
            for k in 0..100_u32 {
                client.submit(k.to_string()).await.unwrap();
            }
            client.close().await.unwrap();
        });
    }
    soon(clients.join_all()).await;
    let mut next = [0; 50];
    for _ in 0..5000 {
        let (client, message) = soon(told.recv()).await.unwrap();
        let client: usize = client.parse().unwrap();
        assert_eq!(message, next[client].to_string());
        next[client] += 1;
    }
}
