//! VSTP over UDP inside TLS 1.3: datagrams of QUIC.

#![cfg(feature = "quic")]
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

mod relay;

use fastdrop_messages::tls::{ClientTls, Fingerprint, Identity, ServerTls, Trust};
use fastdrop_messages::vstp::udp::{
    Departure, Failure, PeerEvent, SendOptions, UdpConfig, UdpServerConfig, UdpServerLimits, Unreachable,
};
use fastdrop_messages::vstp::{
    Frame, FrameBytes, FrameType, HeadersBuf, VstpError, VstpUdpClient, VstpUdpServer, encode_frame,
};
use relay::Relay;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

const PATIENCE: Duration = Duration::from_secs(60);
const SECRET: &[u8] = b"nobody between the two reads this payload";

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

fn frame(payload: Vec<u8>) -> FrameBytes {
    FrameBytes::new(FrameType::Data, HeadersBuf::default(), payload.into())
}

fn identity() -> Identity {
    Identity::generate(&["localhost"]).unwrap()
}

async fn server(tls: impl Into<ServerTls>) -> (VstpUdpServer, SocketAddr) {
    let server = VstpUdpServer::bind_tls("127.0.0.1:0", tls, UdpServerConfig::default()).await.unwrap();
    let address = server.local_addr().unwrap();
    (server, address)
}

async fn client(to: SocketAddr, pin: Fingerprint) -> Result<(VstpUdpClient, SocketAddr), VstpError> {
    client_as(to, ClientTls::new(Trust::Pinned(pin))).await
}

async fn client_as(to: SocketAddr, tls: ClientTls) -> Result<(VstpUdpClient, SocketAddr), VstpError> {
    soon(VstpUdpClient::connect_tls(&to.to_string(), tls, UdpConfig::default())).await
}

/// Passes datagrams on, and keeps what it has seen.
async fn recorder(server: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<Vec<u8>>>>, JoinSet<()>) {
    recorder_at("127.0.0.1:0", server).await
}

/// The same from this address.
async fn recorder_at(local: &str, server: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<Vec<u8>>>>, JoinSet<()>) {
    let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let back = UdpSocket::bind(local).await.unwrap();
    back.connect(server).await.unwrap();
    let (address, seen) = (front.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let mut task = JoinSet::new();
    let record = Arc::clone(&seen);
    task.spawn(async move {
        let (mut client, mut one, mut two) = (None, vec![0; 65_536], vec![0; 65_536]);
        loop {
            let datagram = tokio::select! {
                received = front.recv_from(&mut one) => {
                    let (len, from) = received.unwrap();
                    client = Some(from);
                    let _ = back.send(&one[..len]).await;
                    one[..len].to_vec()
                }
                received = back.recv(&mut two) => {
                    let (Ok(len), Some(client)) = (received, client) else { continue };
                    let _ = front.send_to(&two[..len], client).await;
                    two[..len].to_vec()
                }
            };
            record.lock().unwrap().push(datagram);
        }
    });
    (address, seen, task)
}

fn contains(datagrams: &[Vec<u8>], words: &[u8]) -> bool {
    datagrams.iter().any(|datagram| datagram.windows(words.len()).any(|window| window == words))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_go_both_ways_acknowledged_and_large_and_nothing_is_in_clear() {
    let identity = identity();
    let (server, address) = server(&identity).await;
    let (between, seen, _recording) = recorder(address).await;
    let (client, to) = client(between, identity.fingerprint()).await.unwrap();
    assert_eq!(to, between);

    client.send_bytes(frame(SECRET.to_vec()), to).await.unwrap();
    let (received, peer) = soon(server.recv_bytes()).await.unwrap();
    assert_eq!(received.payload, SECRET);
    server.send_bytes(frame(SECRET.to_vec()), peer).await.unwrap();
    assert_eq!(soon(client.recv_bytes()).await.unwrap().0.payload, SECRET);

    let (sent, received) =
        soon(async { tokio::join!(client.deliver(frame(SECRET.to_vec()), to), server.recv_bytes()) }).await;
    sent.unwrap();
    assert_eq!(received.unwrap().0.payload, SECRET);
    let (sent, received) = soon(async {
        tokio::join!(server.send_with_ack(Frame::new(FrameType::Data), peer), client.recv_bytes())
    })
    .await;
    sent.unwrap();
    received.unwrap();

    let large = SECRET.repeat(100_000);
    for acknowledged in [false, true] {
        let sending = async {
            let frame = frame(large.clone());
            if acknowledged { client.deliver(frame, to).await } else { client.dispatch(frame, to).await }
        };
        let (sent, received) = soon(async { tokio::join!(sending, server.recv_bytes()) }).await;
        sent.unwrap();
        assert!(received.unwrap().0.payload == large);
    }
    assert_eq!(server.reassembly_session_count().await, 0);

    let seen = seen.lock().unwrap();
    assert!(seen.len() > 3000, "the recorder was between them: {}", seen.len());
    assert!(!contains(&seen, SECRET) && !contains(&seen, &SECRET[..16]));
    assert!(seen.iter().all(|datagram| datagram.len() <= 1280));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_certificate_than_the_pinned_one_is_refused_and_nothing_is_said() {
    let (server, address) = server(&identity()).await;
    let (between, seen, _recording) = recorder(address).await;
    let refused = client(between, identity().fingerprint()).await.map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("not one that is trusted"), "{refused}");
    assert!(!contains(&seen.lock().unwrap(), SECRET));
    assert_eq!(server.counters().datagrams, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_to_an_address_with_another_certificate_fails_and_is_not_said() {
    let mine = identity();
    let (_server, address) = server(&mine).await;
    let (other, elsewhere) = server(&identity()).await;
    let (between, seen, _recording) = recorder(elsewhere).await;
    let (client, _) = client(address, mine.fingerprint()).await.unwrap();
    let failed = soon(client.deliver(frame(SECRET.to_vec()), between)).await;
    assert_eq!(failed, Err(Failure::Unreachable(Unreachable::Disconnected)));
    assert!(!contains(&seen.lock().unwrap(), SECRET));
    assert_eq!(other.counters().datagrams, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_client_has_a_connection_to_each_address() {
    let identity = identity();
    let (first, one) = server(&identity).await;
    let (second, two) = server(&identity).await;
    let (client, _) = client(one, identity.fingerprint()).await.unwrap();
    for (server, to) in [(&first, one), (&second, two), (&first, one)] {
        // The first word to the second opens the connection to it.
        let payload = to.port().to_be_bytes().to_vec();
        let (sent, received) =
            soon(async { tokio::join!(client.deliver(frame(payload.clone()), to), server.recv_bytes()) })
                .await;
        sent.unwrap();
        assert_eq!(received.unwrap().0.payload, payload);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_certificate_is_required() {
    let (identity, known) = (identity(), identity());
    let tls = ServerTls::new(&identity).require_clients(Trust::Pinned(known.fingerprint()));
    let (server, address) = server(tls).await;
    let trust = ClientTls::new(Trust::Pinned(identity.fingerprint()));
    let refused = client_as(address, trust.clone()).await.map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("only clients with a certificate"), "{refused}");
    let stranger = trust.clone().identity(&Identity::generate(&["stranger"]).unwrap());
    let refused = client_as(address, stranger).await.map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("does not trust this end's certificate"), "{refused}");
    assert_eq!(server.counters().datagrams, 0);
    let (client, to) = client_as(address, trust.identity(&known)).await.unwrap();
    let (sent, received) =
        soon(async { tokio::join!(client.deliver(frame(SECRET.to_vec()), to), server.recv_bytes()) }).await;
    sent.unwrap();
    assert_eq!(received.unwrap().0.payload, SECRET);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_datagrams_to_a_port_of_tls_get_nothing_and_leave_nothing() {
    let identity = identity();
    let (server, address) = server(&identity).await;
    let mut events = server.events(PATIENCE);
    let plain = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let bytes = encode_frame(&Frame::new(FrameType::Ping).with_payload(SECRET.to_vec())).unwrap();
    for _ in 0..1000 {
        plain.send_to(&bytes, address).await.unwrap();
    }
    // What came after it has been served, so that has been looked at.
    let (client, to) = client(address, identity.fingerprint()).await.unwrap();
    let (sent, received) =
        soon(async { tokio::join!(client.deliver(frame(SECRET.to_vec()), to), server.recv_bytes()) }).await;
    sent.unwrap();
    let peer = received.unwrap().1;
    assert_eq!(soon(events.next()).await, Some(PeerEvent::Joined(peer)));
    let answered = plain.try_recv(&mut [0; 2048]).unwrap_err();
    assert_eq!(answered.kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!((server.counters().malformed, server.counters().evicted), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_acknowledged_frames_come_once_each_over_a_bad_network() {
    const FRAMES: u32 = 1000;
    let identity = identity();
    let (server, address) = server(&identity).await;
    let relay = Relay::start(address, 0.1, 5).await;
    let (client, to) = client(relay.address, identity.fingerprint()).await.unwrap();
    let client = Arc::new(client);
    let sending = tokio::spawn(async move {
        let mut all = JoinSet::new();
        for n in 0..FRAMES {
            let client = Arc::clone(&client);
            all.spawn(async move { client.deliver(frame(n.to_be_bytes().to_vec()), to).await });
        }
        all.join_all().await.into_iter().filter(Result::is_ok).count()
    });
    let mut came = HashSet::new();
    for _ in 0..FRAMES {
        let (frame, _) = soon(server.recv_bytes()).await.unwrap();
        assert!(came.insert(frame.payload.clone()), "twice: {:?}", frame.payload);
    }
    assert_eq!(soon(sending).await.unwrap(), FRAMES as usize);
    assert_eq!(server.counters().malformed, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_have_their_answers() {
    let identity = identity();
    let (server, address) = server(&identity).await;
    let serving = tokio::spawn(server.serve_calls(std::future::pending(), |call| async move {
        Ok(Frame::new(FrameType::Data).with_payload(call.into_frame().payload.repeat(2000)))
    }));
    let (client, to) = client(address, identity.fingerprint()).await.unwrap();
    for n in 0..20_u8 {
        let request = Frame::new(FrameType::Data).with_payload(vec![n]);
        assert_eq!(soon(client.call(request, to)).await.unwrap().payload, vec![n; 2000]);
    }
    serving.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_ends_is_a_peer_that_is_gone() {
    let identity = identity();
    let (server, address) = server(&identity).await;
    let mut events = server.events(PATIENCE);
    let (client, to) = client(address, identity.fingerprint()).await.unwrap();
    // The frame leaves although its sender ends at once.
    client.send_bytes(frame(SECRET.to_vec()), to).await.unwrap();
    drop(client);
    let (received, peer) = soon(server.recv_bytes()).await.unwrap();
    assert_eq!(received.payload, SECRET);
    assert_eq!(soon(events.next()).await, Some(PeerEvent::Joined(peer)));
    assert_eq!(soon(events.next()).await, Some(PeerEvent::Gone(peer, Departure::Unreachable)));
    // Nobody is there to be sent to, and the server opens no connections.
    let failed = soon(server.send_on(frame(SECRET.to_vec()), peer, &SendOptions::acknowledged())).await;
    assert_eq!(failed, Err(Failure::Unreachable(Unreachable::Disconnected)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_hears_that_its_server_has_ended_and_connects_to_the_next() {
    let identity = identity();
    let (first, address) = server(&identity).await;
    let (client, to) = client(address, identity.fingerprint()).await.unwrap();
    let mut events = client.events(PATIENCE);
    let (sent, received) =
        soon(async { tokio::join!(client.deliver(frame(vec![1]), to), first.recv_bytes()) }).await;
    sent.unwrap();
    let peer = received.unwrap().1;
    first.send(Frame::new(FrameType::Data), peer).await.unwrap();
    soon(client.recv_bytes()).await.unwrap();
    assert_eq!(soon(events.next()).await, Some(PeerEvent::Joined(to)));
    drop(first);
    assert_eq!(soon(events.next()).await, Some(PeerEvent::Gone(to, Departure::Unreachable)));
    let config = UdpServerConfig::default();
    let next = loop {
        // The socket of the first is closed when its connections are.
        match VstpUdpServer::bind_tls(&address.to_string(), &identity, config.clone()).await {
            Ok(next) => break next,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let (sent, received) =
        soon(async { tokio::join!(client.deliver(frame(vec![2]), to), next.recv_bytes()) }).await;
    sent.unwrap();
    assert_eq!(received.unwrap().0.payload, vec![2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_bounded() {
    let identity = identity();
    let limits = UdpServerLimits { peers_max: 2, ..UdpServerLimits::default() };
    let server = VstpUdpServer::bind_tls_with_limits("127.0.0.1:0", &identity, limits).await.unwrap();
    let address = server.local_addr().unwrap();
    let (one, to) = client(address, identity.fingerprint()).await.unwrap();
    let (two, _) = client(address, identity.fingerprint()).await.unwrap();
    for client in [&one, &two] {
        let (sent, received) =
            soon(async { tokio::join!(client.deliver(frame(vec![1]), to), server.recv_bytes()) }).await;
        sent.unwrap();
        received.unwrap();
    }
    let refused = client(address, identity.fingerprint()).await.map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("TLS has failed"), "{refused}");
    drop(two);
    // As soon as the server has heard of it.
    while client(address, identity.fingerprint()).await.is_err() {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_with_all_connections_makes_room_for_another() {
    let identity = identity();
    let limits = UdpServerLimits { peers_max: 2, ..UdpServerLimits::default() };
    let server = VstpUdpServer::bind_tls_with_limits("127.0.0.1:0", &identity, limits).await.unwrap();
    let address = server.local_addr().unwrap();
    let _silent = [
        client(address, identity.fingerprint()).await.unwrap(),
        client(address, identity.fingerprint()).await.unwrap(),
    ];
    let (elsewhere, _, _recording) = recorder_at("127.0.0.2:0", address).await;
    // Each of the two has a moment to say something first.
    let (client, to) = loop {
        if let Ok(connected) = client(elsewhere, identity.fingerprint()).await {
            break connected;
        }
    };
    let (sent, received) =
        soon(async { tokio::join!(client.deliver(frame(vec![1]), to), server.recv_bytes()) }).await;
    sent.unwrap();
    assert_eq!(received.unwrap().1.ip().to_string(), "127.0.0.2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_that_must_not_be_cut_leaves_if_a_connection_carries_it() {
    let identity = identity();
    let (server, address) = server(&identity).await;
    let config = UdpConfig { allow_frag: false, ..UdpConfig::default() };
    let tls = ClientTls::new(Trust::Pinned(identity.fingerprint()));
    let (client, to) = soon(VstpUdpClient::connect_tls(&address.to_string(), tls, config)).await.unwrap();
    let overhead = encode_frame(&Frame::new(FrameType::Data)).unwrap().len();
    let largest = vec![7; 1230 - overhead];
    client.send_bytes(frame(largest.clone()), to).await.unwrap();
    assert!(soon(server.recv_bytes()).await.unwrap().0.payload == largest);
    let larger = vec![7; 1231 - overhead];
    assert_eq!(client.dispatch(frame(larger), to).await, Err(Failure::NotCut));
}
