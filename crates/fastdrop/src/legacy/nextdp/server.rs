//! NextDP: puts files together from requests that carry a chunk each.

use crate::admission::count::Counted;
use crate::context::server::ServerContext;
use crate::gate::action::Action;
use crate::gate::principal::Principal;
use crate::legacy::nextdp::body::{Room, decode, drain, read_body, skip_body};
use crate::legacy::nextdp::state::{Failure, refusal};
use crate::legacy::nextdp::transfer::{Taken, Transfer};
use crate::legacy::nextdp::transfers::{Bound, BoundRequest, TransferKey, Transfers};
use crate::thread::run_blocking;
use fastdrop_proto::nextdp::{ChunkRequest, Refusal};
use hyper::Request;
use hyper::body::Incoming as Body;
use hyper::http::request::Parts;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// The interval at which transfers to which nobody adds any more are looked for.
pub(crate) const EXPIRE_EVERY: Duration = Duration::from_secs(5);
/// Time for which a chunk waits for its chunk 0 where a transfer of its address has been silent:
/// without one it belongs to that.
const CHUNK_0_TIMEOUT: Duration = Duration::from_secs(1);

/// The server of NextDP.
pub(crate) struct Server {
    context: Arc<ServerContext>,
    transfers: Arc<Transfers>,
    /// Room for chunks in memory.
    room: Room,
    /// Threads that write.
    writing: Arc<AtomicUsize>,
}

impl Server {
    /// Creates a server without transfers.
    pub(crate) fn new(context: Arc<ServerContext>) -> Self {
        let transfers = Arc::new(Transfers::new(Arc::clone(&context.registry)));
        Self { context, transfers, room: Room::default(), writing: Arc::default() }
    }

    /// The chunks that are being written.
    pub(crate) fn writing(&self) -> usize {
        self.writing.load(Ordering::SeqCst)
    }

    /// Gives up what nobody adds to any more.
    pub(crate) fn expire(&self) {
        for (key, transfer) in self.transfers.expire(Instant::now()) {
            transfer.discard_failed();
            let first = transfer.glance().first.take();
            let name = first.map_or(String::new(), |(name, _)| crate::shown(name.as_bytes()));
            let address = key.address;
            tracing::warn!(%address, protocol = "nextdp", name, "given up: nothing came for a minute");
        }
    }

    /// Finds, or begins, the transfer of a request whose chunk is here as a whole.
    fn bind_again(&self, key: &TransferKey, chunk: &ChunkRequest) -> Result<BoundRequest, Refusal> {
        match self.transfers.bind(key, chunk, false, Instant::now()) {
            Bound::To(bound, gone) => {
                if let Some(gone) = gone {
                    gone.discard_failed();
                }
                Ok(bound)
            }
            Bound::Refused(refusal, failed) => {
                if let Some(failed) = failed {
                    failed.discard_failed();
                }
                Err(refusal)
            }
            Bound::Ended(Err(refusal)) => Err(refusal),
            Bound::Ended(Ok(())) | Bound::Silent => {
                Err(Refusal::new(409, "the transfer of this chunk has ended; send the file again"))
            }
        }
    }

    /// Gives up all transfers: nobody brings the rest of them any more.
    pub(crate) fn end(&self) {
        self.transfers.clear();
    }
}

/// Receives one chunk. True if the file is complete with it, and has its name.
pub(crate) async fn receive(
    server: &Arc<Server>,
    peer: SocketAddr,
    request: Request<Body>,
) -> Result<bool, Refusal> {
    let (head, body) = request.into_parts();
    let admitted = match parse(server, peer, &head) {
        Ok((key, chunk)) => bind(server, &key, &chunk).await.map(|bound| (key, chunk, bound)),
        Err(refusal) => Err(refusal),
    };
    let (key, chunk, bound) = match admitted {
        Ok(admitted) => admitted,
        Err(refusal) => {
            // A sender that is cut off in the middle of its chunk may not read why.
            drain(body).await;
            return Err(refusal);
        }
    };
    let bound = match bound {
        Ok(bound) => bound,
        Err(ended) => {
            skip_body(body).await?;
            return ended.map(|()| true);
        }
    };
    // That there is no room is not the sender's silence.
    let waits = bound.work();
    let place = server.room.place().await?;
    drop(waits);
    let body = read_body(body, &server.room, || bound.note_bytes()).await?;
    let (writing, counted) = (Arc::clone(server), Counted::new(&server.writing));
    let written = run_blocking("write", move || {
        let (server, _counted) = (writing, counted);
        let (bound, taken) = take(&server, bound, &key, peer, &chunk, body);
        drop(place);
        let result = taken.and_then(|taken| match taken {
            Taken::Stored | Taken::Elsewhere => Ok(Written::Stored),
            Taken::Again => Ok(Written::Complete),
            Taken::BeingNamed => Ok(Written::BeingNamed(Arc::clone(bound.transfer()))),
            Taken::Complete { settle } => {
                let (path, bytes) = bound.transfer().commit(settle)?;
                let path = crate::shown(path.as_bytes());
                tracing::info!(%peer, protocol = "nextdp", path, bytes, "received");
                Ok(Written::Complete)
            }
        });
        server.transfers.end(&key, bound.transfer());
        result
    });
    let written = written.await.map_err(|error| match error.kind() {
        std::io::ErrorKind::Other => Refusal::new(500, "writing failed"),
        _ => Refusal::new(503, format!("no thread to be had: {error}")),
    })??;
    match written {
        Written::Stored => Ok(false),
        Written::Complete => Ok(true),
        // Without a thread, a place in memory, or a lock.
        Written::BeingNamed(transfer) => transfer.wait_for_end().await.map(|()| true),
    }
}

/// Effect of a request whose chunk has been taken.
enum Written {
    Stored,
    Complete,
    BeingNamed(Arc<Transfer>),
}

/// Reads the head of a request of somebody who may write here.
fn parse(server: &Server, peer: SocketAddr, head: &Parts) -> Result<(TransferKey, ChunkRequest), Refusal> {
    let (gate, who) = (&server.context.gate, Principal::of(peer));
    gate.allows(&who, Action::Write(gate.existing())).map_err(refusal)?;
    let chunk = ChunkRequest::parse(head.uri.query(), |name| {
        let mut values = head.headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => {
                let text = std::str::from_utf8(value.as_bytes());
                text.map(Some).map_err(|_| Refusal::new(400, format!("{name} is not UTF-8")))
            }
            _ => Err(Refusal::new(400, format!("{name} twice"))),
        }
    })?;
    Ok((TransferKey { address: peer.ip(), id: chunk.transfer.clone() }, chunk))
}

/// Finds the transfer of a request, or how that ended.
async fn bind(
    server: &Arc<Server>,
    key: &TransferKey,
    chunk: &ChunkRequest,
) -> Result<Result<BoundRequest, Result<(), Refusal>>, Refusal> {
    let until = Instant::now() + CHUNK_0_TIMEOUT;
    loop {
        let replaced = server.transfers.replaced.notified();
        let now = Instant::now();
        match server.transfers.bind(key, chunk, now < until, now) {
            Bound::To(bound, gone) => {
                if let Some(gone) = gone {
                    discard(gone).await;
                }
                return Ok(Ok(bound));
            }
            Bound::Ended(ended) => return Ok(Err(ended)),
            // Whether that came or not: it is looked at again.
            Bound::Silent => drop(timeout(until.saturating_duration_since(now), replaced).await),
            Bound::Refused(refusal, failed) => {
                if let Some(failed) = failed {
                    discard(failed).await;
                }
                return Err(refusal);
            }
        }
    }
}

/// Removes what a transfer has brought that has failed.
async fn discard(transfer: Arc<Transfer>) {
    // Without a thread for it, it goes with the last request of the transfer.
    let _ = run_blocking("write", move || transfer.discard_failed()).await;
}

/// Decodes a chunk, and puts it where it belongs: into another transfer than that of its head, if
/// that has got all its chunks meanwhile and has no id. Returns the transfer that counts.
fn take(
    server: &Server,
    mut bound: BoundRequest,
    key: &TransferKey,
    peer: SocketAddr,
    chunk: &ChunkRequest,
    body: Vec<u8>,
) -> (BoundRequest, Result<Taken, Refusal>) {
    let mut work = bound.work();
    let chunks = chunk.first.as_ref().map(|(_, chunks)| *chunks);
    let decoded = decode(server.context.options.nextdp_compression, body, chunks);
    loop {
        let taken = match &decoded {
            Ok(bytes) => bound.transfer().take(&server.context, peer, chunk, bytes),
            // A file of which a chunk is wrong is not worth the others.
            Err(refusal) => Err(bound.transfer().fail_by(chunk, Failure::new(refusal.clone()))),
        };
        if !matches!(taken, Ok(Taken::Elsewhere)) {
            drop(work);
            return (bound, taken);
        }
        match server.bind_again(key, chunk) {
            Ok(next) => {
                work = next.work();
                bound = next;
            }
            Err(refusal) => return (bound, Err(refusal)),
        }
    }
}
