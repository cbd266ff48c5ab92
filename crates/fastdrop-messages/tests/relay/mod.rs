//! A bad network for datagrams.

#![allow(unreachable_pub)]

use std::net::SocketAddr;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// Stands between one client and a server, and does to a share of the datagrams in both directions what networks do.
pub struct Relay {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Relay {
    pub async fn start(server: SocketAddr, share: f64, seed: u64) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = front.local_addr().unwrap();
        let back = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        back.connect(server).await.unwrap();
        for socket in [&front, &back] {
            socket2::SockRef::from(socket).set_recv_buffer_size(4 << 20).unwrap();
        }
        let task = tokio::spawn(async move {
            let mut random = seed;
            let mut chance = move || {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                ((random >> 33) as f64 / (1_u64 << 31) as f64) < share
            };
            let (mut client, mut one, mut two) = (None, vec![0; 65_536], vec![0; 65_536]);
            // A datagram that waits to be overtaken by the next one of its direction.
            let (mut up, mut down) = (None::<Vec<u8>>, None::<Vec<u8>>);
            loop {
                tokio::select! {
                    received = front.recv_from(&mut one) => {
                        let (len, from) = received.unwrap();
                        client = Some(from);
                        for datagram in treat(&one[..len], &mut up, &mut chance) {
                            let _ = back.send(&datagram).await;
                        }
                    }
                    received = back.recv(&mut two) => {
                        let (Ok(len), Some(client)) = (received, client) else { continue };
                        for datagram in treat(&two[..len], &mut down, &mut chance) {
                            let _ = front.send_to(&datagram, client).await;
                        }
                    }
                }
            }
        });
        Self { address, task }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn treat(datagram: &[u8], held: &mut Option<Vec<u8>>, chance: &mut impl FnMut() -> bool) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    if !chance() {
        if held.is_none() && chance() {
            *held = Some(datagram.to_vec());
            return out;
        }
        out.push(datagram.to_vec());
        if chance() {
            out.push(datagram.to_vec());
        }
    }
    out.extend(held.take());
    out
}
