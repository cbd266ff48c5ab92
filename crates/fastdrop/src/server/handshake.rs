//! The asynchronous beginning of a connection: its first bytes, which say what it speaks, and for
//! fastdp the upgrade, the header and the first frame, within a deadline.

use crate::legacy::fastdp1;
use crate::net::tuning::reset_on_close;
use crate::server::accepted::{Accepted, Handshake, Upgraded};
use crate::server::dispatch::Dispatcher;
use fastdrop_proto::fastdp::{
    Code, Control, Failure, FrameHeader, FrameKind, Header, Open, Refuse, UpgradeError, UpgradeRequest,
    Version, Versions, Violation, head_len, is_endpoint, parse_request, v1,
};
use fastdrop_proto::port::{self, Begins};
use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

/// How long a request may take, from the connection to its last byte.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a peer that is refused may take to read why.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// The most that may be set for the header of an older version.
const HEADER_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);
/// Time for header and OPEN of version 2 after that.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Finds out what a connection speaks; None if that was refused, which has been said and logged.
pub(super) async fn begin(
    dispatcher: &Arc<Dispatcher>,
    mut socket: TcpStream,
    peer: SocketAddr,
) -> Option<Accepted> {
    let _ = socket.set_nodelay(true);
    let deadline = Instant::now() + HEAD_TIMEOUT;
    let mut early = Vec::with_capacity(1024);
    let mut late = false;
    let begins = loop {
        match port::begins(&early) {
            Begins::Undecided if !late => {}
            found => break found,
        }
        match timeout_at(deadline, socket.read_buf(&mut early)).await {
            Ok(Ok(0) | Err(_)) => {
                tracing::debug!(%peer, "closed before its first line was complete");
                return None;
            }
            Ok(Ok(_)) => {}
            Err(_) => late = true,
        }
    };
    let accept = &dispatcher.context.options.accept;
    let why = match begins {
        Begins::Http => return handshake(dispatcher, socket, peer, early, deadline).await,
        Begins::Line(line) => match dispatcher.lines.by_line(line) {
            Some((protocol, serve)) if accept.has(protocol) => {
                return Some(Accepted::Line { serve, socket: socket.into_std().ok()?, peer, early });
            }
            Some((protocol, _)) => Cow::from(format!("{protocol} is not accepted here")),
            None => "nothing that is spoken here".into(),
        },
        Begins::Tls => "TLS is not spoken here".into(),
        Begins::Undecided => "its first line did not come in time".into(),
        Begins::Unknown { .. } => "nothing that is spoken here".into(),
    };
    tracing::info!(%peer, why = %why, "refused");
    if matches!(begins, Begins::Tls | Begins::Unknown { .. }) {
        // Nobody who speaks one of these takes that for success.
        reset_on_close(&socket, false);
    }
    let like_http = early.first().is_some_and(u8::is_ascii_alphabetic);
    let answer = match begins {
        Begins::Undecided if like_http => Some(UpgradeError::new(408, "the request did not come in time")),
        Begins::Unknown { like_http: true } if early.len() >= port::FIRST_BYTES_MAX => {
            Some(UpgradeError::new(431, "a first line of more than 16 KiB"))
        }
        Begins::Unknown { like_http: true } => Some(UpgradeError::new(400, "this is not HTTP")),
        _ => None,
    };
    if let Some(answer) = answer {
        refuse(&mut socket, &answer.encode(dispatcher.context.options.accept.versions())).await;
    }
    None
}

/// Takes a connection that speaks HTTP through its handshake; None if it was
/// refused, which has been said and logged.
async fn handshake(
    dispatcher: &Arc<Dispatcher>,
    mut socket: TcpStream,
    peer: SocketAddr,
    early: Vec<u8>,
    deadline: Instant,
) -> Option<Accepted> {
    reset_on_close(&socket, false);
    let versions = dispatcher.context.options.accept.versions();
    let head = match read_head(&mut socket, early, deadline).await {
        Ok(head) => head,
        Err(error) => return end(&mut socket, peer, error, versions).await,
    };
    if !is_endpoint(&head) {
        return Some(Accepted::Http { socket, peer, early: head });
    }
    let accepted = parse_request(&head, versions).and_then(|request| match request {
        Some(_) if dispatcher.context.stop.is_stopped() => Err(UpgradeError::new(503, "stopping")),
        Some(request) => dispatcher.key_for(&request).map(|key| (request, key)),
        None => Err(UpgradeError::new(400, "a malformed head")),
    });
    let (request, key) = match accepted {
        Ok(accepted) => accepted,
        Err(error) => return end(&mut socket, peer, Some(error), versions).await,
    };
    socket.write_all(&request.accept()).await.ok()?;
    upgraded(dispatcher, Upgraded { socket, request, key, early: Vec::new() }, peer).await
}

/// Ends a connection whose request is refused, or did not come.
async fn end(
    socket: &mut TcpStream,
    peer: SocketAddr,
    error: Option<UpgradeError>,
    versions: Versions,
) -> Option<Accepted> {
    match error {
        Some(error) => {
            tracing::info!(%peer, status = error.status, why = %crate::shown(error.message.as_bytes()), "refused");
            refuse(socket, &error.encode(versions)).await;
        }
        None => tracing::debug!(%peer, "closed before its request was complete"),
    }
    None
}

/// What follows an upgrade that was accepted; None if it was
/// refused, which has been said and logged.
pub(super) async fn upgraded(
    dispatcher: &Dispatcher,
    upgraded: Upgraded,
    peer: SocketAddr,
) -> Option<Accepted> {
    let Upgraded { mut socket, request, key, early } = upgraded;
    let Some(key) = key else {
        // 1.0.0 has no words behind its upgrade.
        reset_on_close(&socket, request.version == Version::V1_0);
        let deadline = Instant::now() + dispatcher.context.options.header_timeout.min(HEADER_TIMEOUT_MAX);
        let shaken = older(&mut socket, peer, request, early, deadline).await?;
        return shaken.finish(socket);
    };
    match timeout_at(Instant::now() + OPEN_TIMEOUT, opening(&mut socket, early)).await {
        Ok(Ok(Some((header, header_json, open, open_json, early)))) => {
            let socket = socket.into_std().ok()?;
            Some(Accepted::FastDp(Handshake {
                socket,
                peer,
                header,
                header_json,
                open,
                open_json,
                early,
                key,
            }))
        }
        Ok(Ok(None)) => None,
        Ok(Err(violation)) => {
            tracing::info!(%peer, why = %crate::shown(violation.message.as_bytes()), "refused");
            refuse_frame(&mut socket, violation.into()).await;
            None
        }
        Err(_) => {
            tracing::info!(%peer, "too slow with its header");
            refuse_frame(&mut socket, Failure::new(Code::TooSlow, "the header did not come in time")).await;
            None
        }
    }
}

async fn refuse_frame(socket: &mut TcpStream, failure: Failure) {
    let header = Header::new(fastdrop_proto::units::ChunkSize::COMMON, 0, 0, "").encode();
    let last = Refuse { code: failure.code, message: failure.message, paths: Vec::new() };
    refuse(socket, &[header, Control::Refuse(last).encode()].concat()).await;
}

/// Refuses a connection for which there is no thread.
pub(super) async fn turn_away(begun: Accepted) {
    let refused = Failure::new(Code::Unavailable, "no thread to be had");
    match begun {
        Accepted::FastDp(Handshake { socket, .. }) => {
            if let Ok(mut socket) = TcpStream::from_std(socket) {
                refuse_frame(&mut socket, refused).await;
            }
        }
        Accepted::FastDp1(fastdp1::server::Handshaken { socket, header, .. }) => {
            if let Ok(mut socket) = TcpStream::from_std(socket) {
                refuse_older(&mut socket, header.version, &refused).await;
            }
        }
        // Their connections are reset when they go.
        Accepted::Line { .. } | Accepted::FastDownloader { .. } | Accepted::Http { .. } => {}
    }
}

/// Refuses a connection of an older version: 1.1.0 has a text for it, 1.0.0 a header and a reset.
async fn refuse_older(socket: &mut TcpStream, version: Version, refused: &Failure) {
    if version == Version::V1_1 {
        return refuse(socket, v1::encode_failure(refused.code, &refused.message).as_bytes()).await;
    }
    let refusal = v1::Refusal { code: refused.code, reason: refused.message.clone() };
    let _ = timeout_at(Instant::now() + LAST_WORDS, async {
        socket.write_all(&refusal.encode(None)).await?;
        drain(socket).await
    })
    .await;
}

/// Says a last thing, and gives the peer a moment to read it: closing
/// with unread bytes would take it back.
async fn refuse(socket: &mut TcpStream, bytes: &[u8]) {
    reset_on_close(socket, false);
    let _ = timeout_at(Instant::now() + LAST_WORDS, async {
        socket.write_all(bytes).await?;
        socket.shutdown().await?;
        drain(socket).await
    })
    .await;
}

/// Reads and drops what comes until the peer has ended, at most 256 KiB.
async fn drain(socket: &mut TcpStream) -> std::io::Result<()> {
    let mut rest = [0; 4096];
    let mut left = 256usize << 10;
    while left > 0 {
        match socket.read(&mut rest).await? {
            0 => break,
            count => left = left.saturating_sub(count),
        }
    }
    Ok(())
}

/// Reads the head of the first request; an error without a reason if the peer leaves first.
async fn read_head(
    socket: &mut TcpStream,
    mut head: Vec<u8>,
    deadline: Instant,
) -> Result<Vec<u8>, Option<UpgradeError>> {
    loop {
        if head_len(&head).map_err(Some)?.is_some() {
            return Ok(head);
        }
        match timeout_at(deadline, socket.read_buf(&mut head)).await {
            Ok(Ok(0) | Err(_)) => return Err(None),
            Ok(Ok(_)) => {}
            Err(_) => return Err(Some(UpgradeError::new(408, "the request did not come in time"))),
        }
    }
}

/// The header of an older version, whose connection is not yet plain.
struct Shaken1 {
    peer: SocketAddr,
    key: String,
    header: v1::Header,
    header_bytes: Vec<u8>,
    early: Vec<u8>,
}

impl Shaken1 {
    fn finish(self, socket: TcpStream) -> Option<Accepted> {
        let Self { peer, key, header, header_bytes, early } = self;
        let socket = socket.into_std().ok()?;
        Some(Accepted::FastDp1(fastdp1::server::Handshaken {
            socket,
            peer,
            key,
            header,
            header_bytes,
            early,
        }))
    }
}

/// Reads the header of an older version, whose client may compress its file first; None if there is
/// none, which has been said and logged. A thread is needed only once it is there.
async fn older(
    socket: &mut TcpStream,
    peer: SocketAddr,
    request: UpgradeRequest,
    mut bytes: Vec<u8>,
    deadline: Instant,
) -> Option<Shaken1> {
    let version = request.version;
    let refused = loop {
        match v1::Header::decode(&bytes, version) {
            Ok(Some((header, used))) => {
                let early = bytes.split_off(used);
                return Some(Shaken1 { peer, key: request.key, header, header_bytes: bytes, early });
            }
            Ok(None) => {}
            Err(violation) => break violation.into(),
        }
        match timeout_at(deadline, socket.read_buf(&mut bytes)).await {
            Ok(Ok(0) | Err(_)) => {
                tracing::debug!(%peer, "closed before its header was complete");
                return None;
            }
            Ok(Ok(_)) => {}
            Err(_) => break Failure::new(Code::TooSlow, "the header did not come in time"),
        }
    };
    tracing::info!(%peer, protocol = %version, why = %crate::shown(refused.message.as_bytes()), "refused");
    refuse_older(socket, version, &refused).await;
    None
}

type Opening = (Header, Vec<u8>, Open, Vec<u8>, Vec<u8>);

/// Reads the header and OPEN; None if the peer leaves first.
async fn opening(socket: &mut TcpStream, mut bytes: Vec<u8>) -> Result<Option<Opening>, Violation> {
    let mut more = bytes.is_empty();
    loop {
        if more && matches!(socket.read_buf(&mut bytes).await, Ok(0) | Err(_)) {
            return Ok(None);
        }
        more = true;
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
