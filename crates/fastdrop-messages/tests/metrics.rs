//! Counts of servers and clients, by each protocol and transport.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

use fastdrop_messages::cnp::{Client, Server};
use fastdrop_messages::vstp::tcp::TcpConfig;
use fastdrop_messages::vstp::types::ErrorCode;
use fastdrop_messages::vstp::udp::ReassemblyLimits;
use fastdrop_messages::vstp::{
    Frame, FrameType, VstpTcpClient, VstpTcpServer, VstpUdpClient, VstpUdpServer, encode_frame,
};
use fastdrop_messages::{Counts, Metrics, Token, TokenSet};
use relay::Relay;
use std::time::Duration;
use tokio::net::{TcpStream, UdpSocket};

mod relay;

const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("in time")
}

/// Waits for counts that follow from what has happened, in a task that nobody waits for.
async fn until(metrics: &Metrics, reached: impl Fn(&Counts) -> bool) -> Counts {
    soon(async {
        loop {
            let counts = metrics.counts();
            if reached(&counts) {
                return counts;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

fn data(len: usize) -> Frame {
    Frame::new(FrameType::Data).with_payload(vec![7; len])
}

#[tokio::test]
async fn vstp_by_tcp_counts_connections_frames_and_bytes_at_both_ends() {
    let (of_server, of_client) = (Metrics::default(), Metrics::default());
    let config = TcpConfig { metrics: of_server.clone(), connections_max: 2, ..TcpConfig::default() };
    let server = VstpTcpServer::bind_with_config("127.0.0.1:0", config).await.unwrap();
    assert_eq!(server.metrics().counts(), Counts::default());
    let address = server.local_addr().unwrap().to_string();
    let config = TcpConfig { metrics: of_client.clone(), ..TcpConfig::default() };
    let mut client = VstpTcpClient::connect_with_config(&address, config).await.unwrap();
    let mut connection = server.accept().await.unwrap();
    let sizes = [0, 10, 100_000];
    for size in sizes {
        client.send(data(size)).await.unwrap();
        soon(connection.recv()).await.unwrap().unwrap();
    }
    connection.send(data(50)).await.unwrap();
    soon(client.recv()).await.unwrap().unwrap();
    let bytes: usize = sizes.iter().map(|size| encode_frame(&data(*size)).unwrap().len()).sum();
    let (server_counts, client_counts) = (of_server.counts(), of_client.counts());
    assert_eq!((server_counts.joined, server_counts.gone, server_counts.messages_received), (1, 0, 3));
    assert_eq!((client_counts.joined, client_counts.messages_received), (1, 1));
    assert_eq!(server_counts.bytes_received, bytes as u64);
    assert_eq!(client_counts.bytes_sent, bytes as u64);
    assert_eq!(server_counts.bytes_sent, client_counts.bytes_received);
    // One that has said nothing gives its place to another of the same address.
    let _silent = TcpStream::connect(&address).await.unwrap();
    let mut silent = soon(server.accept()).await.unwrap();
    let _other = TcpStream::connect(&address).await.unwrap();
    let _place = soon(server.accept()).await.unwrap();
    soon(silent.recv()).await.unwrap_err();
    drop((silent, connection, client));
    let counts = until(&of_server, |counts| counts.gone == 2).await;
    assert_eq!((counts.joined, counts.refused, counts.timed_out), (3, 1, 0));
    assert_eq!(until(&of_client, |counts| counts.gone == 1).await.joined, 1);
}

#[tokio::test]
async fn vstp_by_udp_counts_datagrams_messages_and_their_outcomes() {
    let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let to = server.local_addr().unwrap();
    let client = VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
    let (of_server, of_client) = (server.metrics(), client.metrics());
    let receiving = tokio::spawn(async move {
        for _ in 0..3 {
            soon(server.recv()).await.unwrap();
        }
        server
    });
    client.send_with_ack(data(10), to).await.unwrap();
    client.send_with_ack(data(50_000), to).await.unwrap();
    client.send(data(10), to).await.unwrap();
    let server = receiving.await.unwrap();
    let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    client.send_with_ack(data(10), closed).await.unwrap_err();
    let counts = of_client.counts();
    assert_eq!((counts.messages_sent, counts.messages_failed, counts.messages_received), (3, 1, 0));
    let received = until(&of_server, |counts| counts.messages_received == 3).await;
    assert!(counts.bytes_sent > 50_000 && counts.packets_sent > 3, "{counts:?}");
    assert!(received.bytes_received > 50_000 && received.packets_received > 3, "{received:?}");
    let noise = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    noise.send_to(b"VT is no frame", to).await.unwrap();
    assert_eq!(until(&of_server, |counts| counts.malformed > 0).await.malformed, 1);
    drop(server);
}

#[tokio::test]
async fn cnp_counts_sessions_messages_and_packets_at_both_ends() {
    for udp in [false, true] {
        let (of_server, of_client) = (Metrics::default(), Metrics::default());
        let server = Server::builder().tcp(!udp).udp(udp).metrics(of_server.clone());
        let server = server.bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr();
        let serving = tokio::spawn(server.run(|_, _| async {}));
        let builder = Client::builder().metrics(of_client.clone());
        let client = soon(if udp { builder.udp() } else { builder }.connect(address)).await.unwrap();
        for len in [1, 1000, 100_000] {
            soon(client.send(vec![7; len])).await.unwrap();
        }
        let counts = until(&of_server, |counts| counts.messages_received == 3).await;
        assert_eq!((counts.joined, counts.gone), (1, 0), "udp: {udp}");
        assert!(counts.bytes_received > 101_000 && counts.packets_received > 3, "udp: {udp}: {counts:?}");
        soon(client.close()).await.unwrap();
        drop(client);
        let counts = until(&of_client, |counts| counts.gone == 1).await;
        assert_eq!((counts.joined, counts.messages_sent), (1, 3), "udp: {udp}");
        assert!(counts.bytes_sent > 101_000 && counts.packets_sent > 3, "udp: {udp}: {counts:?}");
        until(&of_server, |counts| counts.gone == 1).await;
        serving.abort();
    }
}

/// The counts of one end that follow from what has happened, whatever the network did.
fn exact(counts: &Counts) -> [u64; 7] {
    let Counts {
        joined, gone, timed_out, refused, messages_received, messages_sent, messages_failed, ..
    } = *counts;
    [joined, gone, timed_out, refused, messages_received, messages_sent, messages_failed]
}

/// A client sends three messages and a BYE where there is one, and the server two, all of which
/// arrive; gives the metrics of the server and of the client.
async fn conversation(protocol: &str, transport: &str) -> (Metrics, Metrics) {
    let (of_server, of_client) = (Metrics::default(), Metrics::default());
    let sizes = [1, 1000, 100_000];
    match (protocol, transport) {
        ("vstp", "tcp") => {
            let config = TcpConfig { metrics: of_server.clone(), ..TcpConfig::default() };
            let server = VstpTcpServer::bind_with_config("127.0.0.1:0", config).await.unwrap();
            let address = server.local_addr().unwrap().to_string();
            let serving = async {
                let mut connection = server.accept().await.unwrap();
                for _ in sizes {
                    connection.recv().await.unwrap().unwrap();
                }
                connection.send_with_ack(data(10), PATIENCE).await.unwrap();
                connection.send(data(10)).await.unwrap();
                while connection.recv().await.unwrap().is_some() {}
            };
            let asking = async {
                let config = TcpConfig { metrics: of_client.clone(), ..TcpConfig::default() };
                let mut client = VstpTcpClient::connect_with_config(&address, config).await.unwrap();
                client.send(data(sizes[0])).await.unwrap();
                client.send_with_ack(data(sizes[1])).await.unwrap();
                client.send_with_ack(data(sizes[2])).await.unwrap();
                for _ in 0..2 {
                    client.recv().await.unwrap().unwrap();
                }
                client.close().await.unwrap();
            };
            tokio::join!(serving, asking);
        }
        ("vstp", _) => {
            let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
            let to = server.local_addr().unwrap();
            let client = VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
            let metrics = (server.metrics(), client.metrics());
            let serving = async {
                for _ in sizes {
                    server.recv().await.unwrap();
                }
                let (_, from) = server.recv().await.unwrap();
                server.send_with_ack(data(10), from).await.unwrap();
                server.send(data(10), from).await.unwrap();
            };
            let asking = async {
                for size in sizes {
                    client.send_with_ack(data(size), to).await.unwrap();
                }
                client.send_with_ack(Frame::new(FrameType::Bye), to).await.unwrap();
                for _ in 0..2 {
                    client.recv_bytes().await.unwrap();
                }
            };
            tokio::join!(serving, asking);
            return metrics;
        }
        ("cnp", transport) => {
            let udp = transport == "udp";
            let server = Server::builder().tcp(!udp).udp(udp).metrics(of_server.clone());
            let mut server = server.bind("127.0.0.1:0").await.unwrap();
            let address = server.local_addr();
            let serving = async {
                let session = server.accept().await.unwrap();
                for _ in sizes {
                    session.recv().await.unwrap().unwrap();
                }
                session.send(vec![7; 10]).await.unwrap();
                session.send(vec![7; 10]).await.unwrap();
                session.ended().await;
            };
            let asking = async {
                let builder = Client::builder().metrics(of_client.clone());
                let client = if udp { builder.udp() } else { builder }.connect(address).await.unwrap();
                for size in sizes {
                    client.send(vec![7; size]).await.unwrap();
                }
                for _ in 0..2 {
                    client.recv().await.unwrap().unwrap();
                }
                client.close().await.unwrap();
            };
            tokio::join!(serving, asking);
        }
        _ => unreachable!(),
    }
    (of_server, of_client)
}

#[tokio::test]
async fn every_count_is_kept_by_each_protocol_and_transport_at_both_ends() {
    // Joined, gone, timed out, refused, messages received, sent, failed: of the server and the
    // client. By UDP there are no connections of VSTP; CNP has no BYE that is a message.
    for (protocol, transport, of_server, of_client) in [
        ("vstp", "tcp", [1, 1, 0, 0, 4, 2, 0], [1, 1, 0, 0, 2, 4, 0]),
        ("vstp", "udp", [0, 0, 0, 0, 4, 2, 0], [0, 0, 0, 0, 2, 4, 0]),
        ("cnp", "tcp", [1, 1, 0, 0, 3, 2, 0], [1, 1, 0, 0, 2, 3, 0]),
        ("cnp", "udp", [1, 1, 0, 0, 3, 2, 0], [1, 1, 0, 0, 2, 3, 0]),
    ] {
        let (server, client) = soon(conversation(protocol, transport)).await;
        let server = until(&server, |counts| exact(counts) == of_server).await;
        let client = until(&client, |counts| exact(counts) == of_client).await;
        let shown = format!("{protocol} by {transport}: {server:?} {client:?}");
        assert!(client.bytes_sent > 101_000 && server.bytes_received > 101_000, "{shown}");
        assert!(server.bytes_sent > 20 && client.bytes_received > 20, "{shown}");
        let counts_packets = (protocol, transport) != ("vstp", "tcp");
        for packets in
            [server.packets_sent, server.packets_received, client.packets_sent, client.packets_received]
        {
            assert_eq!(packets > 0, counts_packets, "{shown}");
        }
        if transport == "tcp" {
            assert_eq!(
                (client.bytes_sent, server.bytes_sent),
                (server.bytes_received, client.bytes_received)
            );
            let rare = |counts: &Counts| [counts.duplicates, counts.retransmissions, counts.malformed];
            assert_eq!((rare(&server), rare(&client)), ([0; 3], [0; 3]), "{shown}");
        }
    }
}

#[tokio::test]
async fn a_message_that_is_not_acknowledged_or_not_written_has_failed() {
    for says in ["refuses", "closes", "forgets"] {
        let server = VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap().to_string();
        let metrics = Metrics::default();
        let config = TcpConfig { metrics: metrics.clone(), ..TcpConfig::default() };
        let client = VstpTcpClient::connect_with_config(&address, config).await.unwrap().into_session();
        let mut connection = server.accept().await.unwrap();
        let patience = if says == "forgets" { Duration::from_millis(50) } else { PATIENCE };
        let serving = async {
            let delivery = connection.recv_delivery().await.unwrap().unwrap();
            match says {
                "refuses" => delivery.refuse(ErrorCode::Unhandled, "no ink").await.unwrap(),
                _ => drop(delivery),
            }
            Some(connection).filter(|_| says == "forgets")
        };
        let (_kept, sent) = tokio::join!(serving, client.send_with_ack(data(10), patience));
        sent.unwrap_err();
        let counts = until(&metrics, |counts| counts.messages_failed == 1).await;
        assert_eq!(counts.messages_sent, 0, "{says}");
    }
    // A peer that takes nothing: what is under way when that is noticed has failed.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let metrics = Metrics::default();
    let write_timeout = Some(Duration::from_millis(100));
    let config = TcpConfig { metrics: metrics.clone(), write_timeout, ..TcpConfig::default() };
    let address = listener.local_addr().unwrap().to_string();
    let mut client = VstpTcpClient::connect_with_config(&address, config).await.unwrap();
    let _deaf = listener.accept().await.unwrap();
    client.send(data(10)).await.unwrap();
    client.send(data(100 << 20)).await.unwrap_err();
    let counts = metrics.counts();
    assert_eq!((counts.messages_sent, counts.messages_failed, counts.timed_out), (1, 1, 1));
}

#[tokio::test]
async fn by_tcp_what_is_no_frame_and_what_does_not_go_on_is_counted() {
    let frame = encode_frame(&data(100)).unwrap();
    let mut spoilt = frame.to_vec();
    *spoilt.last_mut().unwrap() ^= 1;
    for (bytes, malformed, timed_out) in
        [(&b"GET / HTTP/1.1\r\n\r\n"[..], 1, 0), (&spoilt[..], 1, 0), (&frame[..50], 0, 1)]
    {
        let metrics = Metrics::default();
        let frame_timeout = Duration::from_millis(100);
        let config = TcpConfig { metrics: metrics.clone(), frame_timeout, ..TcpConfig::default() };
        let server = VstpTcpServer::bind_with_config("127.0.0.1:0", config).await.unwrap();
        let mut stream = TcpStream::connect(server.local_addr().unwrap()).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, bytes).await.unwrap();
        let mut connection = server.accept().await.unwrap();
        let (ended, ()) = tokio::join!(soon(connection.recv()), async {
            let mut rest = Vec::new();
            let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest).await;
            drop(stream);
        });
        ended.unwrap_err();
        let counts = metrics.counts();
        assert_eq!((counts.malformed, counts.timed_out, counts.messages_received), (malformed, timed_out, 0));
    }
}

#[tokio::test]
async fn by_udp_what_comes_twice_again_or_spoilt_is_counted() {
    let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let relay = Relay::start(server.local_addr().unwrap(), 0.1, 7).await;
    let metrics = server.metrics();
    let serving = tokio::spawn(server.run(|_, _| async {}));
    let client = VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
    while metrics.counts().duplicates == 0 {
        soon(client.send_with_ack(data(1000), relay.address)).await.unwrap();
    }
    serving.abort();

    let (of_server, of_client) = (Metrics::default(), Metrics::default());
    let server = Server::builder().tcp(false).metrics(of_server.clone()).bind("127.0.0.1:0").await.unwrap();
    let spoiling = spoiling(server.local_addr()).await;
    let serving = tokio::spawn(server.run(|_, _| async {}));
    let client = Client::builder().udp().metrics(of_client.clone()).connect(spoiling).await.unwrap();
    for _ in 0..10 {
        soon(client.send(vec![7; 500])).await.unwrap();
    }
    assert!(until(&of_client, |counts| counts.messages_sent == 10).await.retransmissions > 0);
    let counts = until(&of_server, |counts| counts.malformed > 0 && counts.duplicates > 0).await;
    assert_eq!(counts.messages_received, 10);
    serving.abort();
}

/// Passes datagrams on, and of those with messages the third with another last byte, and the fifth
/// twice.
async fn spoiling(server: std::net::SocketAddr) -> std::net::SocketAddr {
    let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = front.local_addr().unwrap();
    let back = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    back.connect(server).await.unwrap();
    tokio::spawn(async move {
        let (mut up, mut down, mut client, mut messages) = (vec![0; 65_536], vec![0; 65_536], None, 0);
        loop {
            tokio::select! {
                came = front.recv_from(&mut up) => {
                    let (len, from) = came.unwrap();
                    client = Some(from);
                    messages += u32::from(len > 500);
                    if len > 500 && messages == 3 {
                        up[len - 1] ^= 1;
                    }
                    let times = if len > 500 && messages == 5 { 2 } else { 1 };
                    for _ in 0..times {
                        let _ = back.send(&up[..len]).await;
                    }
                }
                came = back.recv(&mut down) => {
                    let (Ok(len), Some(client)) = (came, client) else { continue };
                    let _ = front.send_to(&down[..len], client).await;
                }
            }
        }
    });
    address
}

#[tokio::test]
async fn what_finds_no_room_is_counted_as_refused() {
    // CNP by UDP: a session too many.
    let metrics = Metrics::default();
    let server = Server::builder().tcp(false).sessions_max(1).metrics(metrics.clone());
    let server = server.bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr();
    let _first = soon(Client::builder().udp().connect(address)).await.unwrap();
    // It is told so as soon as it says something.
    let second = soon(Client::builder().udp().connect(address)).await;
    if let Ok(second) = second {
        soon(second.send("x")).await.unwrap_err();
    }
    assert!(metrics.counts().refused > 0);
    // VSTP by UDP: too large a message.
    let limits = ReassemblyLimits { message_bytes_max: 10_000, ..ReassemblyLimits::default() };
    let server = VstpUdpServer::bind_with_limits("127.0.0.1:0", limits).await.unwrap();
    let client = VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
    let sent = soon(client.send_with_ack(data(100_000), server.local_addr().unwrap())).await;
    sent.unwrap_err();
    assert!(server.metrics().counts().refused > 0);
    assert_eq!(
        (client.metrics().counts().messages_failed, server.metrics().counts().messages_received),
        (1, 0)
    );
    // CNP by TCP: a session that is silent for too long.
    let metrics = Metrics::default();
    let server = Server::builder().udp(false).idle_timeout(Some(Duration::from_millis(100)));
    let server = server.metrics(metrics.clone()).bind("127.0.0.1:0").await.unwrap();
    let _silent = TcpStream::connect(server.local_addr()).await.unwrap();
    until(&metrics, |counts| counts.timed_out == 1).await;
    drop(server);
}

/// Shows a token.
async fn by_token(token: &str, address: &str, metrics: &Metrics) -> Result<VstpTcpClient, String> {
    let token = Some(Token::new(token).unwrap());
    let config = TcpConfig { metrics: metrics.clone(), token, ..TcpConfig::default() };
    VstpTcpClient::connect_with_config(address, config).await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn by_tcp_what_is_no_message_of_the_application_is_not_counted_as_one() {
    let words = |frame: Frame| encode_frame(&frame).unwrap();
    let late = || words(Frame::new(FrameType::Ack).with_header("msg-id", "77"));
    // What a client does; messages received, and places refused, of the server; messages sent and
    // received of the client.
    for (what, of_server, of_client) in [
        ("shows its token", (0, 0), (0, 0)),
        ("shows a wrong token", (0, 1), (0, 0)),
        ("acknowledges what nobody waits for", (1, 0), (0, 0)),
        ("gives up a call", (2, 0), (2, 1)),
    ] {
        let (server_metrics, client_metrics) = (Metrics::default(), Metrics::default());
        let authorize = what.ends_with("token").then(|| TokenSet::new(["right"]).into());
        let config = TcpConfig { metrics: server_metrics.clone(), authorize, ..TcpConfig::default() };
        let server = VstpTcpServer::bind_with_config("127.0.0.1:0", config).await.unwrap();
        let address = server.local_addr().unwrap().to_string();
        let serving = tokio::spawn(server.serve_calls(std::future::pending(), |call| async move {
            if call.frame().payload.len() == 7 {
                std::future::pending::<()>().await;
            }
            Ok(call.into_frame())
        }));
        match what {
            "shows its token" => drop(soon(by_token("right", &address, &client_metrics)).await.unwrap()),
            "shows a wrong token" => {
                soon(by_token("wrong", &address, &client_metrics)).await.unwrap_err();
            }
            "gives up a call" => {
                let config = TcpConfig { metrics: client_metrics.clone(), ..TcpConfig::default() };
                let client = VstpTcpClient::connect_with_config(&address, config).await.unwrap();
                let session = client.into_session();
                tokio::select! {
                    reply = session.call_within(data(7), PATIENCE) => panic!("{reply:?}"),
                    _ = until(&server_metrics, |counts| counts.messages_received == 1) => {}
                }
                soon(session.close()).await.unwrap();
                // Both say BYE.
                while soon(session.recv()).await.unwrap().is_some() {}
            }
            _ => {
                let mut stream = TcpStream::connect(&address).await.unwrap();
                let all = [late(), words(data(1)), late()].concat();
                tokio::io::AsyncWriteExt::write_all(&mut stream, &all).await.unwrap();
                tokio::io::AsyncWriteExt::shutdown(&mut stream).await.unwrap();
                let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut Vec::new()).await;
            }
        }
        let counts = until(&server_metrics, |counts| counts.gone == 1).await;
        assert_eq!((counts.messages_received, counts.refused), of_server, "{what}");
        let counts = client_metrics.counts();
        assert_eq!((counts.messages_sent, counts.messages_received), of_client, "{what}");
        serving.abort();
    }
}

#[tokio::test]
async fn by_tcp_what_waits_when_a_connection_ends_has_failed_and_that_is_counted_once() {
    let metrics = Metrics::default();
    let (frame_timeout, write_timeout) = (Duration::from_millis(100), Some(Duration::from_millis(400)));
    let config = TcpConfig { metrics: metrics.clone(), frame_timeout, write_timeout, ..TcpConfig::default() };
    let server = VstpTcpServer::bind_with_config("127.0.0.1:0", config).await.unwrap();
    // It reads nothing, and does not go on with its frame.
    let mut deaf = TcpStream::connect(server.local_addr().unwrap()).await.unwrap();
    let half = encode_frame(&data(100)).unwrap().to_vec();
    tokio::io::AsyncWriteExt::write_all(&mut deaf, &half[..50]).await.unwrap();
    let session = server.accept().await.unwrap().into_session();
    session.try_send(data(64 << 20).try_into().unwrap()).unwrap();
    soon(session.send(data(10))).await.unwrap_err();
    drop(session);
    let counts = until(&metrics, |counts| counts.gone == 1).await;
    assert_eq!((counts.messages_sent, counts.messages_failed, counts.timed_out), (0, 2, 1));
}
