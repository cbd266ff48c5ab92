//! Case 129: machines with several addresses, both families, and ports where nobody listens.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

use fastdrop_messages::cnp::{Client, Config, Fault, Server};
use fastdrop_messages::port::{Port, PortConfig};
use fastdrop_messages::vstp::udp::{Failure, UdpConfig, Unreachable};
use fastdrop_messages::vstp::{
    Flags, Frame, FrameBytes, FrameType, HeadersBuf, VstpError, VstpTcpServer, VstpUdpClient, VstpUdpServer,
    encode_frame, try_decode_frame,
};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("in time")
}

fn frame(len: usize) -> FrameBytes {
    FrameBytes::new(FrameType::Data, HeadersBuf::default(), vec![7; len].into())
}

/// A server that sends back what comes.
async fn echo(server: VstpUdpServer) {
    while let Ok((frame, from)) = server.recv_bytes().await {
        let answer = FrameBytes::new(frame.typ, HeadersBuf::default(), frame.payload);
        let _ = server.send_bytes(answer, from).await;
    }
}

async fn vstp_on(address: &str) -> (u16, JoinHandle<()>) {
    let server = VstpUdpServer::bind(address).await.unwrap();
    (server.local_addr().unwrap().port(), tokio::spawn(echo(server)))
}

/// A port where nobody is for others: its socket is connected to an address that is never used
/// here, and so takes nothing of what they send, while nobody else is given the port.
struct ClosedPort {
    at: SocketAddr,
    _socket: std::net::UdpSocket,
}

fn closed_port(address: &str) -> ClosedPort {
    let socket = std::net::UdpSocket::bind(address).unwrap();
    let at = socket.local_addr().unwrap();
    socket.connect((at.ip(), 9)).unwrap();
    ClosedPort { at, _socket: socket }
}

/// A socket that receives from one address alone, as programs have that connect theirs.
async fn asker(server: SocketAddr) -> UdpSocket {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await.unwrap();
    socket.connect(server).await.unwrap();
    socket
}

/// The ACK and the answer to a frame, if they come from where it went.
async fn ask(server: SocketAddr) {
    let socket = asker(server).await;
    let question = Frame::new(FrameType::Data)
        .with_flag(Flags::REQ_ACK)
        .with_header("msg-id", "1")
        .with_payload(vec![3]);
    socket.send(&encode_frame(&question).unwrap()).await.unwrap();
    let mut heard = Vec::new();
    while heard.len() < 2 {
        let mut buffer = vec![0; 2000];
        let len = soon(socket.recv(&mut buffer)).await.unwrap();
        let mut bytes = bytes::BytesMut::from(&buffer[..len]);
        heard.push(try_decode_frame(&mut bytes, 2000).unwrap().unwrap().typ);
    }
    assert!(heard.contains(&FrameType::Ack) && heard.contains(&FrameType::Data), "{server} {heard:?}");
}

#[tokio::test]
async fn case_129_a_server_on_all_addresses_answers_from_the_one_that_was_asked() {
    for (bound, asked) in [
        ("0.0.0.0:0", vec!["127.0.0.1", "127.0.0.2", "127.9.8.7"]),
        ("[::]:0", vec!["127.0.0.1", "127.0.0.2", "127.9.8.7", "[::1]"]),
    ] {
        let (port, serving) = vstp_on(bound).await;
        for host in asked {
            ask(format!("{host}:{port}").parse().unwrap()).await;
        }
        serving.abort();
    }
}

/// Reports on fragments, probes and challenges too: a message of 300 kB to one of several
/// addresses, and its echo. A client's socket that is connected nowhere takes the answers for those
/// of another peer if they come from elsewhere.
#[tokio::test]
async fn case_129_large_messages_go_to_and_from_the_address_that_was_asked() {
    for bound in ["0.0.0.0:0", "[::]:0"] {
        let (port, serving) = vstp_on(bound).await;
        let client = VstpUdpClient::bind("0.0.0.0:0").await.unwrap();
        for last in [2, 1, 3] {
            let to = SocketAddr::from(([127, 0, 0, last], port));
            soon(client.deliver(frame(300_000), to)).await.unwrap();
            let (echo, from) = soon(client.recv_bytes()).await.unwrap();
            assert_eq!((echo.payload.len(), from), (300_000, to));
        }
        serving.abort();
    }
}

#[tokio::test]
async fn case_129_the_shared_port_and_cnp_answer_from_the_address_that_was_asked() {
    for bound in ["0.0.0.0:0", "[::]:0"] {
        let port = Port::bind(bound, PortConfig::default()).await.unwrap();
        let number = port.address.port();
        let echoing = tokio::spawn(echo(port.vstp_udp.unwrap()));
        let serving = tokio::spawn(port.cnp.run(|session, message| async move {
            session.submit(message).await.unwrap();
        }));
        let alone = Server::builder().tcp(false).bind(bound).await.unwrap();
        let alone_number = alone.local_addr().port();
        let serving_alone = tokio::spawn(alone.run(|session, message| async move {
            session.submit(message).await.unwrap();
        }));
        for host in ["127.0.0.1", "127.0.0.2", "127.9.8.7", "[::1]"] {
            if bound.starts_with('0') && host.starts_with('[') {
                continue;
            }
            ask(format!("{host}:{number}").parse().unwrap()).await;
            for number in [number, alone_number] {
                let address = format!("{host}:{number}");
                let client = soon(Client::builder().udp().connect(&address)).await.unwrap();
                soon(client.send("hello")).await.unwrap();
                assert_eq!(soon(client.recv()).await.unwrap().as_deref(), Some(&b"hello"[..]), "{address}");
                soon(client.close()).await.unwrap();
            }
        }
        for task in [echoing, serving, serving_alone] {
            task.abort();
        }
    }
}

/// Each kind of socket, each kind of address: what can arrive does, and is answered under the
/// address that was asked; what cannot is refused at once, in words that say what to do.
#[tokio::test]
async fn case_129_a_socket_reaches_both_families_or_says_at_once_that_it_does_not() {
    let (v4, v4_serving) = vstp_on("127.0.0.1:0").await;
    let (v6, v6_serving) = vstp_on("[::1]:0").await;
    let (both, both_serving) = vstp_on("[::]:0").await;
    let to_v4 = [format!("127.0.0.1:{v4}"), format!("127.0.0.1:{both}"), format!("[::ffff:127.0.0.1]:{v4}")];
    let to_v6 = [format!("[::1]:{v6}"), format!("[::1]:{both}")];
    for (socket, reaches_v4, reaches_v6) in [
        ("0.0.0.0:0", true, false),
        ("127.0.0.1:0", true, false),
        ("[::ffff:127.0.0.1]:0", true, false),
        ("[::]:0", true, true),
        ("[::1]:0", false, true),
    ] {
        let client = VstpUdpClient::bind(socket).await.unwrap();
        let expected = [(&to_v4[..], reaches_v4), (&to_v6[..], reaches_v6)];
        for (to, reached) in expected.iter().flat_map(|(to, reached)| to.iter().zip([reached; 3])) {
            let address: SocketAddr = to.parse().unwrap();
            for len in [10, 10_000] {
                let before = Instant::now();
                let sent = soon(client.deliver(frame(len), address)).await;
                if *reached {
                    assert_eq!(sent, Ok(()), "{socket} to {to}");
                    let (echo, from) = soon(client.recv_bytes()).await.unwrap();
                    let from_asked = SocketAddr::new(address.ip().to_canonical(), address.port());
                    assert_eq!((echo.payload.len(), from), (len, from_asked), "{socket} to {to}");
                    continue;
                }
                let is_v4 = address.ip().to_canonical().is_ipv4();
                let reason = if is_v4 { Unreachable::NeedsIpv4 } else { Unreachable::NeedsIpv6 };
                assert_eq!(sent, Err(Failure::Unreachable(reason)), "{socket} to {to}");
                let plain = soon(client.dispatch(frame(len), address)).await;
                assert_eq!(plain, Err(Failure::Unreachable(reason)), "{socket} to {to}");
                assert!(before.elapsed() < Duration::from_secs(2), "{socket} to {to}");
                let error = client.send(Frame::new(FrameType::Data), address).await.unwrap_err();
                assert!(error.to_string().contains("[::]"), "{error}");
            }
        }
    }
    for serving in [v4_serving, v6_serving, both_serving] {
        serving.abort();
    }
}

/// A port where nobody listens is heard of at once: by each kind of socket, for small and large.
#[tokio::test]
async fn case_129_a_closed_port_is_told_at_once() {
    for (socket, closed) in [
        ("0.0.0.0:0", "127.0.0.1:0"),
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("[::]:0", "127.0.0.1:0"),
        ("[::]:0", "[::1]:0"),
        ("[::1]:0", "[::1]:0"),
    ] {
        let closed = closed_port(closed);
        let to = closed.at;
        let client = VstpUdpClient::bind(socket).await.unwrap();
        for len in [10, 10_000, 1_000_000] {
            let before = Instant::now();
            let outcome = soon(client.deliver(frame(len), to)).await;
            assert_eq!(outcome, Err(Failure::Unreachable(Unreachable::Refused)), "{socket} to {to}, {len}");
            assert!(before.elapsed() < Duration::from_secs(4), "{socket} to {to}, {len}");
        }
        let error = client.send_with_ack(Frame::new(FrameType::Data), to).await.unwrap_err();
        let VstpError::Io(error) = error else { panic!("{error}") };
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        assert!(error.to_string().contains("nobody listens"), "{error}");
    }
}

/// The errors of one address are told to whoever uses the socket next: none of what goes to others
/// may be lost for that, also where nobody would send it again.
#[tokio::test]
async fn case_129_an_address_that_refuses_costs_the_others_on_the_socket_nothing() {
    const COUNT: usize = 500;
    let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let to = server.local_addr().unwrap();
    let port = closed_port("127.0.0.1:0");
    let closed = port.at;
    let client = Arc::new(VstpUdpClient::bind("127.0.0.1:0").await.unwrap());
    for n in 0..COUNT {
        let refused = client.deliver(frame(10), closed);
        let (refused, sent) = tokio::join!(refused, client.dispatch(frame(n), to));
        assert_eq!(refused, Err(Failure::Unreachable(Unreachable::Refused)));
        assert_eq!(sent, Ok(()));
        // One after the other, so that the receiver's buffer is no reason.
        assert_eq!(soon(server.recv_bytes()).await.unwrap().0.payload.len(), n);
    }
    let delivered = client.deliver(frame(1_000_000), to);
    let refusals = async {
        for _ in 0..50 {
            assert!(client.deliver(frame(10), closed).await.is_err());
        }
    };
    let (delivered, (), received) = soon(async { tokio::join!(delivered, refusals, server.recv()) }).await;
    assert_eq!(delivered, Ok(()));
    assert_eq!(received.unwrap().0.payload.len(), 1_000_000);
}

/// Every address of a name is tried by UDP, where nothing says at once that nobody is there.
#[tokio::test]
async fn case_129_every_address_of_a_name_is_tried_by_udp() {
    let port = Port::bind("127.0.0.1:0", PortConfig::default()).await.unwrap();
    let open = port.address;
    let echoing = tokio::spawn(echo(port.vstp_udp.unwrap()));
    let serving = tokio::spawn(port.cnp.run(|_, _| async {}));
    let mute = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let silent = mute.local_addr().unwrap();
    let ports = [closed_port("127.0.0.1:0"), closed_port("[::1]:0")];
    let [closed, closed_v6] = [ports[0].at, ports[1].at];
    for (addresses, expected) in [
        (vec![open], Some(open)),
        (vec![silent], Some(silent)),
        (vec![closed, open], Some(open)),
        (vec![closed_v6, open], Some(open)),
        (vec![open, closed], Some(open)),
        (vec![silent, open], Some(open)),
        (vec![closed_v6, closed, silent], Some(silent)),
        (vec![closed, closed_v6], None),
    ] {
        let connected = soon(VstpUdpClient::connect(&addresses[..], UdpConfig::default())).await;
        match expected {
            Some(expected) => assert_eq!(connected.unwrap().1, expected, "{addresses:?}"),
            None => {
                let error = connected.unwrap_err();
                assert!(error.to_string().contains("nobody listens"), "{addresses:?}: {error}");
            }
        }
        let config = Config::default().handshake_timeout(Duration::from_secs(2));
        let asks = Client::builder().config(config).udp().connect(&addresses[..]);
        let asked = soon(asks).await;
        match expected.filter(|expected| *expected == open) {
            Some(expected) => assert_eq!(asked.unwrap().peer_addr(), expected, "{addresses:?}"),
            None => assert_eq!(asked.unwrap_err().fault(), Fault::Network, "{addresses:?}"),
        }
    }
    echoing.abort();
    serving.abort();
}

/// Frames that want no acknowledgement have left, whatever becomes of them; who cares asks.
#[tokio::test]
async fn case_129_a_closed_port_is_told_to_whoever_asks_where_nothing_is_acknowledged() {
    let port = closed_port("127.0.0.1:0");
    let closed = port.at;
    let (client, to) = VstpUdpClient::connect(closed, UdpConfig::default()).await.unwrap();
    client.dispatch(frame(10), to).await.unwrap();
    assert_eq!(soon(client.check(to, Duration::from_secs(10))).await, Err(Unreachable::Refused));
    // Somebody begins to listen there.
    drop(port);
    let server = VstpUdpServer::bind(&closed.to_string()).await.unwrap();
    let delivered = client.deliver(frame(10), to);
    let (delivered, received) = soon(async { tokio::join!(delivered, server.recv_bytes()) }).await;
    assert_eq!((delivered, received.unwrap().0.payload.len()), (Ok(()), 10));
    assert_eq!(client.check(to, Duration::ZERO).await, Ok(()));
}

/// By TCP as well, a peer that speaks IPv4 to a socket of both families has its IPv4 address.
#[tokio::test]
async fn case_129_a_peer_is_known_by_one_form_of_its_address_by_tcp() {
    let server = VstpTcpServer::bind("[::]:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    let mut cnp = Server::builder().udp(false).bind("[::]:0").await.unwrap();
    let cnp_port = cnp.local_addr().port();
    for host in ["127.0.0.1", "[::1]"] {
        let client = tokio::net::TcpStream::connect(format!("{host}:{port}")).await.unwrap();
        let connection = soon(server.accept()).await.unwrap();
        assert_eq!(connection.peer_addr(), client.local_addr().unwrap());
        let client = soon(Client::connect(format!("{host}:{cnp_port}"))).await.unwrap();
        let session = soon(cnp.accept()).await.unwrap();
        assert_eq!(session.peer_addr().ip(), client.peer_addr().ip(), "both are this machine's {host}");
    }
}

/// A server that is there later is found by whoever has connected before, under any name.
#[tokio::test]
async fn case_129_an_easy_client_of_a_name_where_nobody_listens_yet_is_made_all_the_same() {
    let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for host in ["127.0.0.1", "localhost"] {
        let connecting = fastdrop_messages::vstp::VstpClient::connect_udp(format!("{host}:{free}"));
        let connected = tokio::time::timeout(std::time::Duration::from_secs(60), connecting).await;
        connected.unwrap().unwrap();
    }
}
