//! Connections that speak HTTP and did not begin with an upgrade: kept alive, and
//! upgraded later if that is what they want.

use crate::admission::keys::KeyGuard;
use crate::legacy::nextdp;
use crate::lock::lock;
use crate::protocol::Protocol;
use crate::server::accepted::Upgraded;
use crate::server::dispatch::Dispatcher;
use bytes::Bytes;
use fastdrop_proto::fastdp::{ENDPOINT, SERVER, UpgradeError, UpgradeRequest};
use fastdrop_proto::nextdp::{COMPLETE, PATH, RECEIVED};
use http_body_util::Full;
use hyper::body::Incoming as Body;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, SERVER as SERVER_FIELD, UPGRADE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io::Result;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// How long a head may take, and how long a connection may be silent between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves requests until the client leaves; Some if it upgrades.
pub(super) async fn serve(
    dispatcher: &Arc<Dispatcher>,
    socket: TcpStream,
    peer: SocketAddr,
    early: Vec<u8>,
) -> Option<Upgraded> {
    let upgrade = Arc::new(Mutex::new(None));
    let service = hyper::service::service_fn(|request| {
        let (dispatcher, upgrade) = (Arc::clone(dispatcher), Arc::clone(&upgrade));
        async move { Ok::<_, Infallible>(answer(&dispatcher, peer, request, &upgrade).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(64)
        .serve_connection(TokioIo::new(Accepted { early, at: 0, socket }), service)
        .with_upgrades();
    let mut served = std::pin::pin!(served);
    let served = tokio::select! {
        served = served.as_mut() => served,
        () = dispatcher.context.stop.wait() => {
            // The answer that is under way is the last one, and may be that a file is complete.
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "an HTTP connection ended");
    }
    let (request, key, on_upgrade) = lock(&upgrade).take()?;
    let parts = hyper::upgrade::Upgraded::downcast::<TokioIo<Accepted>>(on_upgrade.await.ok()?).ok()?;
    let Accepted { early, at, socket } = parts.io.into_inner();
    let early = [early.get(at..).unwrap_or_default(), &parts.read_buf].concat();
    Some(Upgraded { socket, request, key, early })
}

type Pending = Mutex<Option<(UpgradeRequest, Option<KeyGuard>, hyper::upgrade::OnUpgrade)>>;

async fn answer(
    dispatcher: &Arc<Dispatcher>,
    peer: SocketAddr,
    mut request: Request<Body>,
    upgrade: &Pending,
) -> Response<Full<Bytes>> {
    if request.headers().contains_key(UPGRADE) || request.uri().path() == ENDPOINT {
        return match begin_upgrade(dispatcher, &request) {
            Ok((accepted, key)) => {
                let response = accept(&accepted);
                *lock(upgrade) = Some((accepted, key, hyper::upgrade::on(&mut request)));
                response
            }
            Err(error) => {
                tracing::info!(%peer, status = error.status, why = %crate::shown(error.message.as_bytes()), "refused");
                refuse_upgrade(dispatcher, &error)
            }
        };
    }
    if request.method() == Method::POST
        && request.uri().path() == PATH
        && dispatcher.context.options.accept.has(Protocol::NextDp)
    {
        return match nextdp::server::receive(&dispatcher.nextdp, peer, request).await {
            Ok(is_complete) => received(is_complete),
            Err(refusal) => {
                let why = crate::shown(refusal.message.as_bytes());
                tracing::info!(%peer, protocol = "nextdp", status = refusal.status, why = %why, "refused");
                let mut response = text(refusal.status, &format!("{why}\n"));
                // Of its body nothing more is read.
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                response
            }
        };
    }
    tracing::info!(%peer, status = 404, path = %crate::shown(request.uri().path().as_bytes()), "refused");
    refuse_upgrade(
        dispatcher,
        &UpgradeError::new(404, format!("this is a FastDrop server; fastdp is spoken at {ENDPOINT}")),
    )
}

fn begin_upgrade(
    dispatcher: &Arc<Dispatcher>,
    request: &Request<Body>,
) -> std::result::Result<(UpgradeRequest, Option<KeyGuard>), UpgradeError> {
    let fields: Vec<_> =
        request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    let path = request.uri().path_and_query().map_or("", |path| path.as_str());
    let is_1_1 = request.version() == hyper::Version::HTTP_11;
    let versions = dispatcher.context.options.accept.versions();
    let accepted = UpgradeRequest::check(request.method().as_str(), path, is_1_1, &fields, versions)?;
    if dispatcher.context.stop.is_stopped() {
        return Err(UpgradeError::new(503, "stopping"));
    }
    let key = dispatcher.key_for(&accepted)?;
    Ok((accepted, key))
}

fn accept(request: &UpgradeRequest) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("fastdp"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Ok(key) = HeaderValue::from_str(&request.key) {
        headers.insert("sec-fastdp-key", key);
    }
    headers.insert("sec-fastdp-version", HeaderValue::from_static(request.version.name()));
    headers.insert(SERVER_FIELD, HeaderValue::from_static(SERVER));
    response
}

/// The answer to a chunk that was received.
fn received(is_complete: bool) -> Response<Full<Bytes>> {
    let mut response = text(200, RECEIVED);
    let headers = response.headers_mut();
    headers.insert(SERVER_FIELD, HeaderValue::from_static(SERVER));
    if is_complete {
        headers.insert(COMPLETE, HeaderValue::from_static("true"));
    }
    response
}

fn refuse_upgrade(dispatcher: &Dispatcher, error: &UpgradeError) -> Response<Full<Bytes>> {
    let mut response = text(error.status, &format!("{}\n", error.message));
    let headers = response.headers_mut();
    if let Ok(versions) = HeaderValue::from_str(&dispatcher.context.options.accept.versions().to_string()) {
        headers.insert("sec-fastdp-version", versions);
    }
    if error.status == 426 {
        headers.insert(UPGRADE, HeaderValue::from_static("fastdp"));
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    response
}

fn text(status: u16, body: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body.to_owned()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// A connection of which some bytes have been read before.
#[derive(Debug)]
struct Accepted {
    early: Vec<u8>,
    at: usize,
    socket: TcpStream,
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        let early = self.early.get(self.at..).unwrap_or_default();
        if early.is_empty() {
            return Pin::new(&mut self.socket).poll_read(context, buffer);
        }
        let count = early.len().min(buffer.remaining());
        buffer.put_slice(early.get(..count).unwrap_or_default());
        self.at += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
