//! The asynchronous beginning of a connection: the upgrade, the header and the first frame, within a deadline.

use super::{KeyGuard, Shared};
use fastdrop_proto::fastdp::{
    Control, FrameHeader, FrameKind, HEAD_BYTES_MAX, Header, Open, Refuse, UpgradeError, UpgradeRequest,
    Violation, parse_request,
};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

/// How long a request may take, from the connection to its last byte.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);
/// How long header and OPEN may take after that.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);

/// A connection that has said what it wants.
pub(super) struct Handshaken {
    pub(super) socket: std::net::TcpStream,
    pub(super) peer: SocketAddr,
    pub(super) header: Header,
    pub(super) header_json: Vec<u8>,
    pub(super) open: Open,
    pub(super) open_json: Vec<u8>,
    /// What was read beyond.
    pub(super) early: Vec<u8>,
    pub(super) key: KeyGuard,
}

/// Takes a connection through its handshake; None if it was refused, which has been said and logged.
pub(super) async fn handshake(
    shared: &Arc<Shared>,
    mut socket: TcpStream,
    peer: SocketAddr,
) -> Option<Handshaken> {
    let _ = socket.set_nodelay(true);
    let (request, key) = match upgrade(shared, &mut socket).await {
        Ok(upgraded) => upgraded,
        Err(Some(error)) => {
            tracing::info!(%peer, status = error.status, why = %crate::shown(error.message.as_bytes()), "refused");
            refuse(&mut socket, &error.encode()).await;
            return None;
        }
        Err(None) => {
            tracing::debug!(%peer, "closed before its request was complete");
            return None;
        }
    };
    if socket.write_all(&request.accept()).await.is_err() {
        return None;
    }
    match timeout_at(Instant::now() + OPEN_PATIENCE, opening(&mut socket)).await {
        Ok(Ok(Some((header, header_json, open, open_json, early)))) => {
            let socket = socket.into_std().ok()?;
            Some(Handshaken { socket, peer, header, header_json, open, open_json, early, key })
        }
        Ok(Ok(None)) => None,
        Ok(Err(violation)) => {
            tracing::info!(%peer, why = %crate::shown(violation.message.as_bytes()), "refused");
            refuse_frame(&mut socket, violation).await;
            None
        }
        Err(_) => {
            tracing::info!(%peer, "too slow with its header");
            refuse_frame(&mut socket, Violation::with_code(408, "the header did not come in time")).await;
            None
        }
    }
}

async fn refuse_frame(socket: &mut TcpStream, violation: Violation) {
    let header = Header::new(fastdrop_proto::units::ChunkSize::COMMON, 0, 0, "").encode();
    let last = Refuse { code: violation.code, message: violation.message, paths: Vec::new() };
    refuse(socket, &[header, Control::Refuse(last).encode()].concat()).await;
}

/// Says a last thing, and gives the peer a moment to read it: closing with unread bytes would take it back.
async fn refuse(socket: &mut TcpStream, bytes: &[u8]) {
    let until = Instant::now() + Duration::from_secs(2);
    let _ = timeout_at(until, async {
        socket.write_all(bytes).await?;
        socket.shutdown().await?;
        let mut rest = [0; 4096];
        let mut left = 256usize << 10;
        while left > 0 {
            match socket.read(&mut rest).await? {
                0 => break,
                count => left = left.saturating_sub(count),
            }
        }
        std::io::Result::Ok(())
    })
    .await;
}

async fn upgrade(
    shared: &Arc<Shared>,
    socket: &mut TcpStream,
) -> Result<(UpgradeRequest, KeyGuard), Option<UpgradeError>> {
    let deadline = Instant::now() + HEAD_PATIENCE;
    let mut head = Vec::with_capacity(1024);
    let request = loop {
        let mut buffer = [0; 2048];
        let count = match timeout_at(deadline, socket.read(&mut buffer)).await {
            Ok(Ok(0) | Err(_)) => return Err(None),
            Ok(Ok(count)) => count,
            Err(_) if head.is_empty() => return Err(None),
            Err(_) => return Err(Some(UpgradeError::new(408, "the request did not come in time"))),
        };
        head.extend_from_slice(&buffer[..count]);
        // A method is letters; anything else is not HTTP, and would not understand an answer.
        if !head.first().is_some_and(u8::is_ascii_alphabetic) {
            return Err(Some(UpgradeError::new(400, "this is not HTTP")));
        }
        if let Some(request) = parse_request(&head).map_err(Some)? {
            break request;
        }
        if head.len() > HEAD_BYTES_MAX {
            return Err(Some(UpgradeError::new(431, "a head of more than 16 KiB")));
        }
    };
    if shared.stop.is_stopped() {
        return Err(Some(UpgradeError::new(503, "stopping")));
    }
    let key = shared.take_key(&request.key);
    let key = key.ok_or_else(|| Some(UpgradeError::new(409, "a connection with this key is under way")))?;
    Ok((request, key))
}

type Opening = (Header, Vec<u8>, Open, Vec<u8>, Vec<u8>);

/// Reads the header and OPEN; None if the peer leaves first.
async fn opening(socket: &mut TcpStream) -> Result<Option<Opening>, Violation> {
    let mut bytes = Vec::with_capacity(1024);
    loop {
        let mut buffer = [0; 4096];
        match socket.read(&mut buffer).await {
            Ok(0) | Err(_) => return Ok(None),
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
        }
        let Some((header, json, used)) = Header::decode(&bytes)? else { continue };
        let rest = &bytes[used..];
        let Some(prefix) = rest.first_chunk::<{ FrameHeader::LEN }>() else { continue };
        let frame = FrameHeader::decode(*prefix)?;
        let FrameKind::Control(kind) = frame.kind else {
            return Err(Violation::protocol("a chunk before OPEN"));
        };
        if kind != 1 {
            return Err(Violation::protocol("the first frame is not OPEN"));
        }
        let end = FrameHeader::LEN + frame.size as usize;
        let Some(payload) = rest.get(FrameHeader::LEN..end) else { continue };
        let Control::Open(open) = Control::decode(kind, payload)? else {
            return Err(Violation::protocol("the first frame is not OPEN"));
        };
        open.check()?;
        return Ok(Some((header, json.to_vec(), open, payload.to_vec(), rest[end..].to_vec())));
    }
}
