use super::*;
use crate::tls::{Identity, Trust};
use std::net::UdpSocket;
use std::time::Duration;

/// The first byte of a packet with a long header, without what is protected; and that of Retry.
const LONG_TYPE: u8 = 0b1111_0000;
const RETRY: u8 = 0b1111_0000;

fn silent() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// The first datagram of a client.
fn first_word(quic: &Quic) -> Vec<u8> {
    let (socket, to) = silent();
    assert_eq!(quic.send(to, 1, b"x"), None);
    let mut bytes = vec![0; 2048];
    let len = socket.recv(&mut bytes).unwrap();
    bytes.truncate(len);
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_that_say_one_word_each_have_to_prove_themselves_when_they_are_many() {
    let identity = Identity::generate(&["localhost"]).unwrap();
    let (server, mut came) = Quic::bind("127.0.0.1:0", &ServerTls::new(&identity), 100).await.unwrap();
    let address = server.local_addr().unwrap();
    let tls = ClientTls::new(Trust::Pinned(identity.fingerprint()));
    let dialled = (&*address.to_string(), &[address][..]);
    let (client, mut opened) = Quic::open("127.0.0.1:0", dialled, &tls).await.unwrap();
    let mut answers = Vec::new();
    for _ in 0..2 * Quic::HALF_OPEN_TRUSTED {
        let word = first_word(&client);
        let (made_up, _) = silent();
        made_up.send_to(&word, address).unwrap();
        let mut answer = [0; 2048];
        let len = made_up.recv(&mut answer).unwrap();
        answers.push((answer[0] & LONG_TYPE == RETRY, len));
    }
    let (trusted, asked) = answers.split_at(Quic::HALF_OPEN_TRUSTED);
    assert!(trusted.iter().all(|(retry, _)| !retry), "{trusted:?}");
    assert!(asked.iter().all(|(retry, len)| *retry && *len < 200), "{asked:?}");
    // Whoever answers is served meanwhile.
    let connecting = client.connect(address);
    let taking = async {
        loop {
            match opened.recv().await.unwrap() {
                Came::Opened(number, connection) => break client.on_opened(number, connection),
                _ => continue,
            }
        }
    };
    let (connected, _) = tokio::join!(connecting, taking);
    connected.unwrap();
    assert!(matches!(came.recv().await, Some(Came::Opened(..))));
}
