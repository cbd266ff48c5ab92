//! Peers that take one read for a packet, in virtual time: nothing that they can confuse reaches
//! them together.

use super::client::open;
use super::clock;
use super::driver::{Shared, drive};
use super::link::Link;
use super::wire::Wire;
use crate::metrics::Metrics;
use bytes::BytesMut;
use fastdrop_proto::cnp::packet::{HEAD_BYTES, append};
use fastdrop_proto::cnp::{Carrier, Checksum, Generation, Head, Seq, Session as Machine, SessionConfig};
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::time::Instant;
use tracing::Span;

/// One end of a pipe, which is read and written without waiting, as a socket is.
#[derive(Debug)]
pub(super) struct Pipe {
    stream: DuplexStream,
    came: BytesMut,
    ended: bool,
}

impl Pipe {
    fn new(stream: DuplexStream) -> Self {
        Self { stream, came: BytesMut::new(), ended: false }
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.ended && self.came.is_empty() {
            let mut bytes = [0; 4096];
            let mut buffer = tokio::io::ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => self.ended = true,
                Poll::Ready(Ok(())) => self.came.extend_from_slice(buffer.filled()),
                other => return other,
            }
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn try_read_buf(&mut self, out: &mut BytesMut) -> io::Result<usize> {
        match self.poll_read(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
            Poll::Ready(read) => {
                read?;
                out.extend_from_slice(&self.came);
                Ok(self.came.split().len())
            }
        }
    }

    /// Has room for all that these tests write.
    pub(super) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match Pin::new(&mut self.stream).poll_write(&mut Context::from_waker(Waker::noop()), bytes) {
            Poll::Pending => panic!("no room in the pipe"),
            Poll::Ready(written) => written,
        }
    }

    pub(super) async fn readable(&mut self) -> io::Result<()> {
        poll_fn(|context| self.poll_read(context)).await
    }
}

/// One read of the peer: the type of the packet and its payload, which is all that came.
async fn read_once(peer: &mut DuplexStream) -> (u8, Vec<u8>, Instant) {
    let mut bytes = [0; 1024];
    let count = peer.read(&mut bytes).await.unwrap();
    let at = Instant::now();
    let packet = &bytes[..count];
    let head = Head::parse(packet, 1024).unwrap().unwrap();
    assert_eq!(head.packet_len(), count, "one read has brought more than a packet, or less");
    (head.typ, packet[HEAD_BYTES..].to_vec(), at)
}

fn packet(typ: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    append(&mut packet, typ, Seq(0), 0, &Checksum::Md5, payload);
    packet
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_handshake_and_the_first_data_are_two_reads_fifty_milliseconds_apart() {
    for (generation, fields, ms) in [
        (Generation::First, r#""operation_mode":"step-by-step","max_packet_size":1000"#, 50),
        (Generation::First, r#""operation_mode":"burst","max_packet_size":1000,"window_size":4"#, 50),
        (Generation::First, r#""operation_mode":"step-by-step","max_size":1000"#, 50),
        (Generation::Third, r#""protocol":"sr","max_fragment_size":9,"window_size":4"#, 50),
        (Generation::First, r#""operation_mode":"step-by-step","max_packet_size":1000"#, 200),
    ] {
        let pause = Duration::from_millis(ms);
        let mut config = SessionConfig::client(Carrier::Stream);
        if ms != 50 {
            config.unanswered_pause = pause;
        }
        let (ours, mut peer) = tokio::io::duplex(1 << 16);
        let shared = Shared::new(Machine::connect(clock::now(), config), Span::none());
        let link = Link::stream(Wire::Pipe(Pipe::new(ours)), None);
        let driving = tokio::spawn(drive(Arc::clone(&shared), link, None, Metrics::default()));
        let sending = async {
            let session = open(shared, ([127, 0, 0, 1], 9).into(), None).await.unwrap();
            assert_eq!(session.generation(), generation);
            session.submit("data").await.unwrap();
            session
        };
        let mut sending = pin!(sending);
        let peer_side = async {
            assert_eq!(read_once(&mut peer).await.0, 1);
            let answer = format!(r#"{{"status":"ok","session_id":"s",{fields}}}"#);
            peer.write_all(&packet(2, answer.as_bytes())).await.unwrap();
            let (typ, payload, end) = read_once(&mut peer).await;
            assert_eq!((typ, &payload[..]), (3, &br#"{"session_id":"s"}"#[..]), "{fields}");
            let (typ, payload, data) = read_once(&mut peer).await;
            assert!([1, 4].contains(&typ) && payload == b"data", "{fields}");
            // The timer of the runtime counts whole milliseconds.
            let apart = data - end;
            assert!(pause <= apart && apart <= pause + Duration::from_millis(2), "{fields}: {apart:?}");
        };
        let (session, ()) = tokio::join!(&mut sending, peer_side);
        drop((session, peer));
        driving.await.unwrap();
    }
}
