//! Datagrams without any protocol: as many as the sender gets rid of, from a message that it has in
//! memory, and what comes of them, put where the message would be.

use super::{SENDING, Who};
use fastdrop_testing::peer::say;
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use std::io::IoSliceMut;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::net::UdpSocket;

const DATAGRAM: usize = 1452;
/// The last datagram.
const END: &[u8] = b"end";

/// `RawEach` makes a system call for each datagram, the others one for many.
pub(crate) async fn send(who: Who, size: usize, to: SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let state = UdpSocketState::new((&socket).into()).unwrap();
    let at_once =
        DATAGRAM * if who == Who::RawEach { 1 } else { state.max_gso_segments().min(65_000 / DATAGRAM) };
    let message = vec![0x5a; size];
    let until = Instant::now() + SENDING;
    while Instant::now() < until {
        for contents in message.chunks(at_once) {
            if who == Who::RawEach {
                socket.send_to(contents, to).await.unwrap();
                continue;
            }
            let segment_size = Some(DATAGRAM);
            let transmit = Transmit { destination: to, ecn: None, contents, segment_size, src_ip: None };
            let sent = || state.try_send((&socket).into(), &transmit);
            socket.async_io(Interest::WRITABLE, sent).await.unwrap();
        }
    }
    // When what was sent has been taken.
    tokio::time::sleep(Duration::from_millis(50)).await;
    socket.send_to(END, to).await.unwrap();
}

/// `RawMany` makes a system call for many datagrams, the others one for each.
pub(crate) async fn receive(who: Who, size: usize) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    say(socket.local_addr().unwrap());
    // Told of it, the system puts datagrams of one sender together.
    let state = (who == Who::RawMany).then(|| UdpSocketState::new((&socket).into()).unwrap());
    let mut arrived = Arrived { message: vec![0; size + 2048], at: 0, bytes: 0, times: None };
    let mut buffers: Vec<Vec<u8>> = (0..8).map(|_| vec![0; 65_536]).collect();
    let mut metas = [RecvMeta::default(); 8];
    let mut goes_on = true;
    while goes_on {
        if let Some(state) = &state {
            let mut slices: Vec<_> = buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
            let received = || state.recv((&socket).into(), &mut slices, &mut metas);
            let count = socket.async_io(Interest::READABLE, received).await.unwrap();
            for (buffer, meta) in buffers.iter().zip(&metas).take(count) {
                for datagram in buffer[..meta.len].chunks(meta.stride.max(1)) {
                    arrived.place()[..datagram.len()].copy_from_slice(datagram);
                    goes_on &= arrived.on(datagram.len());
                }
            }
        } else {
            let (len, _) = socket.recv_from(arrived.place()).await.unwrap();
            goes_on = arrived.on(len);
        }
    }
    say(arrived.megabytes_per_second());
}

struct Arrived {
    message: Vec<u8>,
    at: usize,
    bytes: usize,
    times: Option<(Instant, Instant)>,
}

impl Arrived {
    /// The place of the next datagram.
    fn place(&mut self) -> &mut [u8] {
        if self.message.len() - self.at < 2048 {
            self.at = 0;
        }
        &mut self.message[self.at..]
    }

    /// It has come there; false if it was the last one.
    fn on(&mut self, len: usize) -> bool {
        if len == END.len() {
            return false;
        }
        self.at += len;
        self.bytes += len;
        let now = Instant::now();
        let (first, _) = self.times.unwrap_or((now, now));
        self.times = Some((first, now));
        true
    }

    fn megabytes_per_second(&self) -> f64 {
        let (first, last) = self.times.unwrap();
        self.bytes as f64 / 1e6 / (last - first).as_secs_f64()
    }
}
