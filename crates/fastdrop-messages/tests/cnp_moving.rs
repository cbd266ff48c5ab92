//! Clients of CNP whose address changes while a session by UDP is under way.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

use fastdrop_messages::Metrics;
use fastdrop_messages::cnp::{ChecksumKind, Client, Config, Ending, ErrorCode, Server, Session};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::{Notify, mpsc};

const PATIENCE: Duration = Duration::from_secs(60);
/// The type of the packet with the name of a session.
const NAME: u8 = 9;

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

/// A router that translates addresses, of one client.
struct Nat {
    address: SocketAddr,
    rebind: Arc<Notify>,
    outside: Arc<Mutex<SocketAddr>>,
    /// The last datagram of the client that began with its name.
    named: Arc<Mutex<Vec<u8>>>,
    /// Datagrams that somebody behind the same router sends.
    says: mpsc::UnboundedSender<Vec<u8>>,
    task: tokio::task::JoinHandle<()>,
}

impl Nat {
    async fn start(server: SocketAddr) -> Self {
        let inside = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut out = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = inside.local_addr().unwrap();
        let rebind = Arc::new(Notify::new());
        let outside = Arc::new(Mutex::new(out.local_addr().unwrap()));
        let named = Arc::new(Mutex::new(Vec::new()));
        let (rebinding, shown, noted) = (Arc::clone(&rebind), Arc::clone(&outside), Arc::clone(&named));
        let (says, mut said) = mpsc::unbounded_channel::<Vec<u8>>();
        let task = tokio::spawn(async move {
            let mut client = None;
            let (mut from_client, mut from_server) = (vec![0; 65_536], vec![0; 65_536]);
            loop {
                tokio::select! {
                    () = rebinding.notified() => {
                        // What comes to the old address reaches nobody.
                        out = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                        *shown.lock().unwrap() = out.local_addr().unwrap();
                    }
                    Some(datagram) = said.recv() => {
                        out.send_to(&datagram, server).await.unwrap();
                    }
                    Ok((count, from)) = inside.recv_from(&mut from_client) => {
                        client = Some(from);
                        let datagram = &from_client[..count];
                        if datagram.get(4) == Some(&NAME) {
                            *noted.lock().unwrap() = datagram.to_vec();
                        }
                        let _ = out.send_to(datagram, server).await;
                    }
                    Ok((count, _)) = out.recv_from(&mut from_server) => {
                        if let Some(client) = client {
                            let _ = inside.send_to(&from_server[..count], client).await;
                        }
                    }
                }
            }
        });
        Self { address, rebind, outside, named, says, task }
    }

    async fn rebind(&self) {
        let before = *self.outside.lock().unwrap();
        self.rebind.notify_one();
        while *self.outside.lock().unwrap() == before {
            tokio::task::yield_now().await;
        }
    }

    fn outside(&self) -> SocketAddr {
        *self.outside.lock().unwrap()
    }
}

impl Drop for Nat {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A short keep-alive, by which an end that has nothing to send finds out.
fn config() -> Config {
    Config::default().keep_alive(Some(Duration::from_millis(1200)))
}

async fn server() -> Server {
    Server::builder().config(config()).tcp(false).bind("127.0.0.1:0").await.unwrap()
}

async fn ends(server: &mut Server, nat: &Nat) -> (Client, Session) {
    let client = soon(Client::builder().udp().config(config()).connect(nat.address)).await.unwrap();
    let session = soon(server.accept()).await.unwrap();
    assert_eq!(session.peer_addr(), nat.outside());
    (client, session)
}

async fn passes(from: &Session, to: &Session, text: &str) {
    let (sent, received) = tokio::join!(soon(from.send(text.to_owned())), soon(to.recv()));
    sent.unwrap();
    assert_eq!(received.unwrap().unwrap(), text);
}

#[tokio::test]
async fn a_session_goes_on_when_the_address_of_its_client_changes_whichever_end_speaks_next() {
    let mut server = server().await;
    let nat = Nat::start(server.local_addr()).await;
    let (client, session) = ends(&mut server, &nat).await;
    assert!(client.agreed().moves && session.agreed().moves);
    // The first time before the client has heard anything of its session, perhaps.
    for n in 0..6 {
        nat.rebind().await;
        match n % 2 {
            0 => passes(&client, &session, &format!("to the server {n}")).await,
            // The server knows only the old address, until the client has said something.
            _ => passes(&session, &client, &format!("to the client {n}")).await,
        }
        let moved = async {
            while session.peer_addr() != nat.outside() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon(moved).await;
    }
    soon(client.close()).await.unwrap();
    assert_eq!(soon(session.ended()).await, Ending::PeerClosed);
}

#[tokio::test]
async fn messages_in_both_directions_come_once_and_in_order_through_changes_of_the_address() {
    let mut server = server().await;
    let nat = Nat::start(server.local_addr()).await;
    let (client, session) = ends(&mut server, &nat).await;
    let sends = |from: Session| {
        tokio::spawn(async move {
            for n in 0..3000_u32 {
                from.submit([&n.to_be_bytes()[..], &[7; 700]].concat()).await.unwrap();
                if n % 100 == 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            from.flush().await.unwrap();
        })
    };
    let receives = |at: Session| {
        tokio::spawn(async move {
            for n in 0..3000_u32 {
                assert_eq!(at.recv().await.unwrap().unwrap()[..4], n.to_be_bytes());
            }
        })
    };
    let work = [
        sends(Session::clone(&client)),
        sends(session.clone()),
        receives(Session::clone(&client)),
        receives(session.clone()),
    ];
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(40)).await;
        nat.rebind().await;
    }
    for task in work {
        soon(task).await.unwrap();
    }
}

#[tokio::test]
async fn a_copied_datagram_from_elsewhere_moves_nothing_and_gets_less_than_three_times_its_bytes() {
    let mut server = server().await;
    let address = server.local_addr();
    let nat = Nat::start(address).await;
    let (client, session) = ends(&mut server, &nat).await;
    // After a keep-alive of silence the client says its name.
    let named = async {
        while nat.named.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(named).await;
    let copy = nat.named.lock().unwrap().clone();
    let mut sockets = Vec::new();
    for _ in 0..20 {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for _ in 0..5 {
            socket.send_to(&copy, address).await.unwrap();
        }
        sockets.push(socket);
    }
    // A name without its checksum, and one of nobody, get nothing.
    let mut bad = copy.clone();
    bad[8] ^= 1;
    let mut nobody = copy.clone();
    nobody[12] ^= 1;
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for datagram in [bad, nobody] {
        stranger.send_to(&datagram, address).await.unwrap();
    }
    for n in 0..20 {
        passes(&session, &client, &format!("to the client {n}")).await;
        passes(&client, &session, &format!("to the server {n}")).await;
    }
    assert_eq!(session.peer_addr(), nat.outside());
    let (mut room, mut most) = (vec![0; 65_536], 0);
    for socket in &sockets {
        let mut got = 0;
        while let Ok((count, _)) = socket.try_recv_from(&mut room) {
            got += count;
        }
        most = most.max(got);
    }
    assert!(most > 0 && most <= 3 * 5 * copy.len(), "{most} bytes for {}", 5 * copy.len());
    assert!(stranger.try_recv_from(&mut room).is_err(), "a stranger was answered");
}

#[tokio::test]
async fn a_new_client_at_an_address_that_was_left_has_a_session_of_its_own() {
    let mut server = server().await;
    let address = server.local_addr();
    let nat = Nat::start(address).await;
    let (client, session) = ends(&mut server, &nat).await;
    let left = nat.outside();
    nat.rebind().await;
    passes(&client, &session, "moved").await;
    let moved = async {
        while session.peer_addr() != nat.outside() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(moved).await;
    // The router gives the old address to somebody else, who asks by hand.
    let socket = UdpSocket::bind(left).await.unwrap();
    socket.connect(address).await.unwrap();
    use fastdrop_proto::cnp::{Checksum, Head, Seq, packet::append};
    let packet = |typ, payload: &[u8]| {
        let mut packet = Vec::new();
        append(&mut packet, typ, Seq(0), 0, &Checksum::Md5, payload);
        packet
    };
    let syn =
        br#"{"operation_mode":"burst","max_packet_size":1000,"client_id":"the next one at this address"}"#;
    socket.send(&packet(1, syn)).await.unwrap();
    let mut room = vec![0; 2048];
    let count = soon(socket.recv(&mut room)).await.unwrap();
    let head = Head::parse(&room[..count], 2048).unwrap().unwrap();
    let answer: serde_json::Value = serde_json::from_slice(head.payload(&room[..count])).unwrap();
    let ack = serde_json::json!({ "session_id": answer["session_id"] }).to_string();
    socket.send(&packet(3, ack.as_bytes())).await.unwrap();
    let next = soon(server.accept()).await.unwrap();
    assert_eq!((next.peer_addr(), next.agreed().moves), (left, false));
    passes(&client, &session, "the first one goes on").await;
    passes(&session, &client, "in both directions").await;
}

#[tokio::test]
async fn without_an_agreement_a_client_with_another_address_is_nobody() {
    let mut server = server().await;
    let nat = Nat::start(server.local_addr()).await;
    let client = Client::builder().udp().checksum(ChecksumKind::Md5).config(config());
    let client = soon(client.connect(nat.address)).await.unwrap();
    let session = soon(server.accept()).await.unwrap();
    assert!(!client.agreed().moves && !session.agreed().moves);
    passes(&client, &session, "x").await;
    nat.rebind().await;
    assert_eq!(soon(client.ended()).await, Ending::Gone);
    assert_eq!(soon(session.ended()).await, Ending::Gone);
}

/// A name that was heard is said again, after its session, from where another session is.
#[tokio::test]
async fn the_name_of_a_session_that_is_over_ends_no_session_of_the_address_that_says_it() {
    let metrics = Metrics::default();
    let server = Server::builder().config(config()).tcp(false).metrics(metrics.clone());
    let mut server = server.bind("127.0.0.1:0").await.unwrap();
    let (nat, other) = (Nat::start(server.local_addr()).await, Nat::start(server.local_addr()).await);
    let (client, session) = ends(&mut server, &nat).await;
    let (left, stays) = ends(&mut server, &other).await;
    let over = async {
        // After a keep-alive of silence the client says its name.
        while nat.named.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        session.abort(ErrorCode::Shutdown, "over");
        while metrics.counts().gone == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(over).await;
    let named = nat.named.lock().unwrap().clone();
    other.says.send(named).unwrap();
    for n in 0..5 {
        passes(&left, &stays, &format!("to the server {n}")).await;
        passes(&stays, &left, &format!("to the client {n}")).await;
    }
    drop((client, session));
}
