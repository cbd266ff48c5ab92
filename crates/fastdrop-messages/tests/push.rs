//! Servers that send to their clients when they have something to say.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

use fastdrop_messages::cnp::{self, Client, Ending, Server};
use fastdrop_messages::vstp::tcp::{self, TcpConfig, TrySendError};
use fastdrop_messages::vstp::udp::{self, UdpConfig};
use fastdrop_messages::vstp::{
    Frame, FrameBytes, FrameType, VstpError, VstpTcpClient, VstpTcpServer, VstpUdpClient, VstpUdpServer,
    encode_frame,
};
use fastdrop_messages::{Shutdown, ShutdownSignal};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::task::JoinSet;

const PATIENCE: Duration = Duration::from_secs(60);
const NEVER: Duration = Duration::from_secs(86_400);
const CLIENTS: u32 = 50;
const PUSHES: u32 = 20;

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

fn data(payload: impl Into<Vec<u8>>) -> Frame {
    Frame::new(FrameType::Data).with_payload(payload.into())
}

fn bytes(payload: impl Into<Vec<u8>>) -> FrameBytes {
    data(payload).try_into().unwrap()
}

/// The frames that come, each with its peer.
type Came<P> = UnboundedReceiver<(P, Frame)>;

async fn by_tcp(config: TcpConfig, end: ShutdownSignal) -> (String, Came<tcp::Peer>) {
    let server = VstpTcpServer::bind_with_config("127.0.0.1:0", config).await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    let (hand_on, came) = mpsc::unbounded_channel();
    tokio::spawn(server.run_with_peers(end.waited(), move |peer, frame| {
        let _ = hand_on.send((peer, frame));
        async {}
    }));
    (address, came)
}

async fn by_udp(silent_after: Duration, end: ShutdownSignal) -> (SocketAddr, Came<udp::Peer>) {
    let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let (hand_on, came) = mpsc::unbounded_channel();
    tokio::spawn(server.run_with_peers(end.waited(), silent_after, move |peer, frame| {
        let _ = hand_on.send((peer, frame));
        async {}
    }));
    (address, came)
}

/// The means by which clients are sent frames, and the way of it, whatever the protocol is.
trait Pushed: Clone + Send + Sync + 'static {
    fn push(&self, payload: Vec<u8>) -> impl Future<Output = ()> + Send;
}

impl Pushed for tcp::Peer {
    async fn push(&self, payload: Vec<u8>) {
        let acknowledged = payload[0].is_multiple_of(2);
        let sent = if acknowledged {
            self.send_with_ack(data(payload), PATIENCE).await
        } else {
            self.send(data(payload)).await
        };
        sent.unwrap();
    }
}

impl Pushed for udp::Peer {
    async fn push(&self, payload: Vec<u8>) {
        self.send_with_ack(data(payload)).await.unwrap();
    }
}

impl Pushed for cnp::Session {
    async fn push(&self, payload: Vec<u8>) {
        self.send(payload).await.unwrap();
    }
}

/// Sends to each of the clients, as soon as it is known, one thing after the other.
async fn push_to_all<P: Pushed>(mut came: UnboundedReceiver<(P, Vec<u8>)>) {
    let (mut known, mut pushing) = (std::collections::BTreeSet::new(), JoinSet::new());
    while known.len() < CLIENTS as usize || !pushing.is_empty() {
        tokio::select! {
            next = came.recv() => {
                let (peer, name) = next.unwrap();
                if known.insert(name.clone()) {
                    pushing.spawn(async move {
                        for n in 0..PUSHES {
                            peer.push([&[n as u8], &name[..]].concat()).await;
                        }
                    });
                }
            }
            Some(pushed) = pushing.join_next() => pushed.unwrap(),
        }
    }
}

/// Every client has what was for it, in the order in which it was sent.
fn assert_received(name: u32, received: &[Vec<u8>]) {
    let expected: Vec<_> = (0..PUSHES).map(|n| [&[n as u8], &name.to_be_bytes()[..]].concat()).collect();
    assert_eq!(received, expected, "{name}");
}

fn named<P: Send + 'static>(mut came: Came<P>) -> UnboundedReceiver<(P, Vec<u8>)> {
    let (hand_on, named) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some((peer, frame)) = came.recv().await {
            let _ = hand_on.send((peer, frame.payload));
        }
    });
    named
}

#[tokio::test]
async fn by_tcp_50_clients_that_send_are_sent_what_is_for_each_of_them() {
    let (_shutdown, signal) = Shutdown::new();
    let (address, came) = by_tcp(TcpConfig::default(), signal).await;
    let pushing = tokio::spawn(push_to_all(named(came)));
    let mut clients = JoinSet::new();
    for name in 0..CLIENTS {
        let address = address.clone();
        clients.spawn(async move {
            let session = VstpTcpClient::connect(&address).await.unwrap().into_session();
            let sending = async {
                for _ in 0..PUSHES {
                    session.send_with_ack(data(name.to_be_bytes()), PATIENCE).await.unwrap();
                }
            };
            let receiving = async {
                let mut received = Vec::new();
                while received.len() < PUSHES as usize {
                    received.push(session.recv().await.unwrap().unwrap().payload);
                }
                received
            };
            let ((), received) = tokio::join!(sending, receiving);
            assert_received(name, &received);
            session
        });
    }
    soon(pushing).await.unwrap();
    // Nobody ends before everybody has everything.
    assert_eq!(soon(clients.join_all()).await.len(), CLIENTS as usize);
}

#[tokio::test]
async fn by_udp_50_clients_that_send_are_sent_what_is_for_each_of_them() {
    let (_shutdown, signal) = Shutdown::new();
    let (address, came) = by_udp(NEVER, signal).await;
    let pushing = tokio::spawn(push_to_all(named(came)));
    let mut clients = JoinSet::new();
    for name in 0..CLIENTS {
        clients.spawn(async move {
            let config = UdpConfig { ack_timeout: PATIENCE, ..UdpConfig::default() };
            let client = VstpUdpClient::bind_with_config("127.0.0.1:0", config).await.unwrap();
            let sending = async {
                for _ in 0..PUSHES {
                    client.send_with_ack(data(name.to_be_bytes()), address).await.unwrap();
                }
            };
            let receiving = async {
                let mut received = Vec::new();
                while received.len() < PUSHES as usize {
                    received.push(client.recv_bytes().await.unwrap().0.payload.to_vec());
                }
                received
            };
            let ((), received) = tokio::join!(sending, receiving);
            // Each was acknowledged before the next one was sent.
            assert_received(name, &received);
            client
        });
    }
    soon(pushing).await.unwrap();
    assert_eq!(soon(clients.join_all()).await.len(), CLIENTS as usize);
}

#[tokio::test]
async fn cnp_50_clients_that_send_are_sent_what_is_for_each_of_them() {
    for udp in [false, true] {
        let server = Server::builder().tcp(!udp).udp(udp).bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr();
        let (hand_on, came) = mpsc::unbounded_channel();
        let serving = tokio::spawn(server.run(move |session, message| {
            let _ = hand_on.send((session, message.to_vec()));
            async {}
        }));
        let pushing = tokio::spawn(push_to_all(came));
        let mut clients = JoinSet::new();
        for name in 0..CLIENTS {
            clients.spawn(async move {
                let builder = Client::builder();
                let builder = if udp { builder.udp() } else { builder };
                let client = builder.connect(address).await.unwrap();
                let sending = async {
                    for _ in 0..PUSHES {
                        client.send(name.to_be_bytes().to_vec()).await.unwrap();
                    }
                };
                let receiving = async {
                    let mut received = Vec::new();
                    while received.len() < PUSHES as usize {
                        received.push(client.recv().await.unwrap().unwrap().to_vec());
                    }
                    received
                };
                let ((), received) = tokio::join!(sending, receiving);
                assert_received(name, &received);
                client
            });
        }
        soon(pushing).await.unwrap();
        assert_eq!(soon(clients.join_all()).await.len(), CLIENTS as usize);
        serving.abort();
    }
}

#[tokio::test]
async fn by_tcp_a_peer_is_gone_when_its_client_is_and_keeps_no_connection() {
    let (_shutdown, signal) = Shutdown::new();
    let config = TcpConfig::default();
    let metrics = config.metrics.clone();
    let (address, mut came) = by_tcp(config, signal).await;
    // One says so, and one does not.
    for says_bye in [true, false] {
        let mut client = VstpTcpClient::connect(&address).await.unwrap();
        client.send(data("x")).await.unwrap();
        let (peer, frame) = soon(came.recv()).await.unwrap();
        assert_eq!((frame.payload(), peer.is_gone()), (&b"x"[..], false));
        peer.send(data("y")).await.unwrap();
        assert_eq!(soon(client.recv()).await.unwrap().unwrap().payload(), b"y");
        let waiting = tokio::spawn({
            let peer = peer.clone();
            async move { peer.gone().await }
        });
        if says_bye {
            client.close().await.unwrap();
        }
        drop(client);
        soon(waiting).await.unwrap();
        soon(peer.gone()).await;
        assert!(peer.is_gone());
        // The application keeps the peer, and the server no connection for it.
        let ended = if says_bye { 1 } else { 2 };
        soon(async {
            while metrics.counts().gone < ended {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let sent = soon(peer.send(data("z"))).await;
        assert!(matches!(sent, Err(VstpError::ConnectionClosed)), "{sent:?}");
        assert_eq!(peer.try_send(bytes("z")), Err(TrySendError::Closed));
        if says_bye {
            let (_, bye) = soon(came.recv()).await.unwrap();
            assert_eq!(bye.typ, FrameType::Bye);
        }
    }
}

#[tokio::test]
async fn by_tcp_a_client_that_has_ended_its_side_is_still_sent_what_it_asked_for() {
    let server = VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    tokio::spawn(server.run_with_peers(std::future::pending(), |peer, frame| async move {
        if frame.typ == FrameType::Data {
            peer.gone().await;
            peer.send(data("the answer")).await.unwrap();
        }
    }));
    let mut client = VstpTcpClient::connect(&address).await.unwrap();
    client.send(data("a question")).await.unwrap();
    client.close().await.unwrap();
    assert_eq!(soon(client.recv()).await.unwrap().unwrap().payload(), b"the answer");
}

/// Offers as much as is taken, again and again, until nothing more is, however often another client
/// is sent something meanwhile; gives the bytes that were taken.
async fn fill(mut offer: impl FnMut(usize) -> bool, mut serve_other: impl AsyncFnMut()) -> usize {
    const LEN: usize = 16 << 10;
    let (mut taken, mut refused_rounds) = (0, 0);
    while refused_rounds < 100 {
        let before = taken;
        while offer(LEN) {
            taken += LEN;
        }
        refused_rounds = if taken == before { refused_rounds + 1 } else { 0 };
        serve_other().await;
    }
    taken
}

#[tokio::test]
async fn by_tcp_a_client_that_does_not_read_stops_nobody_and_fills_nothing() {
    let (shutdown, signal) = Shutdown::new();
    let config =
        TcpConfig { push_max: 64 << 10, drain: Duration::ZERO, write_timeout: None, ..TcpConfig::default() };
    let metrics = config.metrics.clone();
    let (address, mut came) = by_tcp(config, signal).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = socket.connect(address.parse().unwrap()).await.unwrap();
    client.write_all(&encode_frame(&data("I do not read")).unwrap()).await.unwrap();
    let (deaf, _) = soon(came.recv()).await.unwrap();
    let mut reading = VstpTcpClient::connect(&address).await.unwrap();
    reading.send(data("I read")).await.unwrap();
    let (other, _) = soon(came.recv()).await.unwrap();
    let offer = |len| match deaf.try_send(bytes(vec![7; len])) {
        Ok(()) => true,
        Err(error) => {
            assert_eq!(error, TrySendError::Full);
            false
        }
    };
    // Before anything of it is written, it is what the setting says.
    let burst = (0..100).take_while(|_| offer(16 << 10)).count();
    assert_eq!(burst, 3);
    let serve_other = async || {
        other.try_send(bytes("news")).unwrap();
        assert_eq!(reading.recv().await.unwrap().unwrap().payload(), b"news");
    };
    let taken = soon(fill(offer, serve_other)).await;
    // Behind the bound there are the buffers of the system and one of the connection.
    assert!((64 << 10..32 << 20).contains(&taken), "{taken}");
    // Whoever waits for it does not wait for ever: not beyond the server.
    let waiting = tokio::spawn({
        let deaf = deaf.clone();
        async move { (deaf.send(data("x")).await, deaf.send_with_ack(data("x"), NEVER).await) }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    shutdown.begin();
    let (sent, delivered) = soon(waiting).await.unwrap();
    assert!(matches!(sent, Err(VstpError::ConnectionClosed)), "{sent:?}");
    assert!(matches!(delivered, Err(VstpError::ConnectionClosed)), "{delivered:?}");
    soon(other.gone()).await;
    // Nor does its connection stay.
    soon(async {
        while metrics.counts().gone < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn by_tcp_a_server_ends_when_its_clients_have_read_their_bye() {
    for (way, keep_alive) in
        [("peers", None), ("calls", None), ("peers", Some(PATIENCE)), ("frames", Some(PATIENCE))]
    {
        let (shutdown, signal) = Shutdown::new();
        let config = TcpConfig { keep_alive, ..TcpConfig::default() };
        let metrics = config.metrics.clone();
        let server = VstpTcpServer::bind_with_config("127.0.0.1:0", config).await.unwrap();
        let address = server.local_addr().unwrap().to_string();
        let serving = tokio::spawn(async move {
            match way {
                "peers" => server.run_with_peers(signal.waited(), |_, _| async {}).await,
                "calls" => server.serve_calls(signal.waited(), |call| async { Ok(call.into_frame()) }).await,
                _ => server.run_until_drained(signal.waited(), |_, _| async {}).await,
            }
            .unwrap();
            metrics.counts()
        });
        let mut client = VstpTcpClient::connect(&address).await.unwrap();
        client.send_with_ack(data("x")).await.unwrap();
        shutdown.begin();
        let mut last = None;
        while let Some(frame) = soon(client.recv()).await.unwrap() {
            last = Some(frame.typ);
        }
        assert_eq!(last, Some(FrameType::Bye), "{way}");
        drop(client);
        assert_eq!(soon(serving).await.unwrap().gone, 1, "{way}");
    }
}

#[tokio::test]
async fn by_tcp_nothing_is_taken_behind_the_end_of_a_session() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let session = VstpTcpClient::connect(&address).await.unwrap().into_session();
    let _deaf = listener.accept().await.unwrap();
    let mut waiting = JoinSet::new();
    let sending = session.clone();
    waiting.spawn(async move { sending.send(data(vec![7; 64 << 20])).await });
    session.try_send(bytes("x")).unwrap();
    let closing = session.clone();
    waiting.spawn(async move { closing.close().await });
    soon(async {
        while session.try_send(bytes("x")) != Err(TrySendError::Closed) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(waiting.try_join_next().is_none());
}

#[tokio::test]
async fn cnp_a_client_that_takes_nothing_stops_nobody_and_fills_nothing() {
    for udp in [false, true] {
        let server = Server::builder().tcp(!udp).udp(udp).bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr();
        let (hand_on, mut came) = mpsc::unbounded_channel();
        let serving = tokio::spawn(server.run(move |session, _| {
            let _ = hand_on.send(session);
            async {}
        }));
        let connect = async || {
            let builder = Client::builder();
            let client = if udp { builder.udp() } else { builder }.connect(address).await.unwrap();
            client.send("x").await.unwrap();
            client
        };
        let client = connect().await;
        let deaf = soon(came.recv()).await.unwrap();
        let reading = connect().await;
        let other = soon(came.recv()).await.unwrap();
        let offer = |len| match deaf.try_submit(vec![7; len]) {
            Ok(()) => true,
            Err(error) => {
                assert!(matches!(error, cnp::TrySendError::Full), "{error}");
                false
            }
        };
        let serve_other = async || {
            other.try_submit("news").unwrap();
            assert_eq!(&reading.recv().await.unwrap().unwrap()[..], b"news");
        };
        let taken = soon(fill(offer, serve_other)).await;
        assert!((64 << 10..64 << 20).contains(&taken), "udp: {udp}: {taken}");
        assert!(!deaf.is_over());
        client.abort(cnp::ErrorCode::Shutdown, "enough");
        soon(deaf.ended()).await;
        assert!(deaf.is_over() && !other.is_over());
        let refused = deaf.try_submit("x");
        assert!(matches!(refused, Err(cnp::TrySendError::Failed(_))), "udp: {udp}: {refused:?}");
        serving.abort();
    }
}

#[tokio::test]
async fn cnp_a_session_ends_when_its_handler_panics_whoever_holds_it() {
    let server = Server::builder().udp(false).bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr();
    let (hand_on, mut came) = mpsc::unbounded_channel();
    let serving = tokio::spawn(server.run(move |session, _| {
        let _ = hand_on.send(session);
        async { panic!("the handler of this test") }
    }));
    let client = Client::connect(address).await.unwrap();
    client.submit("x").await.unwrap();
    let held = soon(came.recv()).await.unwrap();
    assert!(matches!(soon(held.ended()).await, Ending::Closed));
    assert!(matches!(soon(client.ended()).await, Ending::PeerClosed));
    serving.abort();
}

#[tokio::test]
async fn by_tcp_a_peer_is_gone_when_its_handler_panics() {
    let server = VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    let (hand_on, mut came) = mpsc::unbounded_channel();
    tokio::spawn(server.run_with_peers(std::future::pending(), move |peer, _| {
        let _ = hand_on.send(peer);
        async { panic!("the handler of this test") }
    }));
    let mut client = VstpTcpClient::connect(&address).await.unwrap();
    client.send(data("x")).await.unwrap();
    let held = soon(came.recv()).await.unwrap();
    soon(held.gone()).await;
    while soon(client.recv()).await.unwrap().is_some() {}
}

#[tokio::test]
async fn by_udp_a_peer_is_gone_when_it_says_so_is_silent_or_the_server_ends() {
    let (shutdown, signal) = Shutdown::new();
    let (address, mut came) = by_udp(NEVER, signal).await;
    let connect = async || {
        let client = VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
        client.send(data("x"), address).await.unwrap();
        client
    };
    let leaving = connect().await;
    let (gone, _) = soon(came.recv()).await.unwrap();
    let _staying = connect().await;
    let (there, _) = soon(came.recv()).await.unwrap();
    assert!(!gone.is_gone() && !there.is_gone());
    leaving.send(Frame::new(FrameType::Bye), address).await.unwrap();
    soon(gone.gone()).await;
    assert!(gone.is_gone() && !there.is_gone());
    // It has come again, with another peer.
    leaving.send(data("again"), address).await.unwrap();
    let (again, _) = soon(async {
        loop {
            let (peer, frame) = came.recv().await.unwrap();
            if frame.typ == FrameType::Data {
                return (peer, frame);
            }
        }
    })
    .await;
    assert!(gone.is_gone() && !again.is_gone() && gone.peer_addr() == again.peer_addr());
    shutdown.begin();
    soon(there.gone()).await;
    soon(async {
        while !there.is_gone() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let sent = there.send(data("y")).await;
    assert!(matches!(sent, Err(VstpError::ConnectionClosed)), "{sent:?}");

    let (_shutdown, signal) = Shutdown::new();
    let (address, mut came) = by_udp(Duration::from_millis(50), signal).await;
    let client = VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
    client.send(data("x"), address).await.unwrap();
    let (silent, _) = soon(came.recv()).await.unwrap();
    soon(silent.gone()).await;
    // That it said nothing is no reason not to say something to it.
    silent.send(data("y")).await.unwrap();
    assert_eq!(soon(client.recv_bytes()).await.unwrap().0.payload, "y");
}

#[tokio::test]
async fn by_udp_those_who_go_on_sending_keep_no_server_that_has_ended() {
    let (shutdown, signal) = Shutdown::new();
    let (address, mut came) = by_udp(NEVER, signal).await;
    // It does not answer.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    silent.send_to(&encode_frame(&data("x")).unwrap(), address).unwrap();
    let (peer, _) = soon(came.recv()).await.unwrap();
    let (begun, mut sending) = (Arc::new(AtomicUsize::new(0)), JoinSet::new());
    for _ in 0..8 {
        let (peer, begun) = (peer.clone(), Arc::clone(&begun));
        sending.spawn(async move {
            begun.fetch_add(1, Ordering::Relaxed);
            loop {
                if let Err(VstpError::ConnectionClosed) = peer.send_with_ack(data("y")).await {
                    return;
                }
            }
        });
    }
    soon(async {
        while begun.load(Ordering::Relaxed) < 8 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    shutdown.begin();
    soon(sending.join_all()).await;
    assert!(peer.is_gone());
    soon(peer.gone()).await;
    // What was under way is still sent for some seconds.
    soon(async {
        while std::net::UdpSocket::bind(address).is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}
