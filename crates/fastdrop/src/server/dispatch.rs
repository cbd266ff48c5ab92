//! Which protocol serves a connection.

use crate::admission::count::Counted;
use crate::admission::keys::{KeyGuard, Keys};
use crate::admission::permit::ConnectionPermit;
use crate::context::server::ServerContext;
use crate::legacy::push::LineServers;
use crate::legacy::upload::LegacyConnection;
use crate::legacy::{fastdownloader, fastdp1, nextdp};
use crate::lock::lock;
use crate::server::accepted::Accepted;
use crate::server::fastdp;
use crate::thread::spawn;
use fastdrop_proto::fastdp::{UpgradeError, UpgradeRequest, Version};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// How long transfers may take to leave in good order.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// A server's protocols, each with a state of its own, and the connections that have not said yet
/// which one they speak.
pub(super) struct Dispatcher {
    pub(super) context: Arc<ServerContext>,
    pub(super) nextdp: Arc<nextdp::server::Server>,
    fastdp1: fastdp1::server::Server,
    fastdownloader: fastdownloader::server::Server,
    pub(super) lines: LineServers,
    keys: Arc<Keys>,
    /// Handshakes under way, the oldest first.
    pub(super) handshaking: Mutex<BTreeMap<u64, (IpAddr, tokio::task::AbortHandle)>>,
    pub(super) next_handshake: AtomicU64,
    threads: Arc<AtomicUsize>,
}

impl Dispatcher {
    /// Creates a dispatcher to which no connection has come.
    pub(super) fn new(context: Arc<ServerContext>) -> Self {
        Self {
            nextdp: Arc::new(nextdp::server::Server::new(Arc::clone(&context))),
            fastdp1: fastdp1::server::Server::new(Arc::clone(&context)),
            fastdownloader: fastdownloader::server::Server::new(Arc::clone(&context)),
            lines: LineServers::new(&context),
            context,
            keys: Arc::default(),
            handshaking: Mutex::default(),
            next_handshake: AtomicU64::new(0),
            threads: Arc::default(),
        }
    }

    /// Ends the oldest handshake of `address`, or of all: who has said nothing for longest goes
    /// first, so that silent connections, however many, keep nobody out. False if there is none.
    pub(super) fn evict(&self, address: Option<IpAddr>) -> bool {
        let mut handshaking = lock(&self.handshaking);
        let oldest = handshaking.iter().find(|(_, (ip, _))| address.is_none_or(|address| *ip == address));
        let Some(id) = oldest.map(|(&id, _)| id) else { return false };
        if let Some((ip, task)) = handshaking.remove(&id) {
            tracing::debug!(peer = %ip, "too many handshakes; the oldest was ended");
            task.abort();
        }
        true
    }

    /// The key that an upgrade takes; the older versions take none.
    pub(super) fn key_for(&self, request: &UpgradeRequest) -> Result<Option<KeyGuard>, UpgradeError> {
        if request.version != Version::V2 {
            return Ok(None);
        }
        let key = self.keys.take(&request.key);
        key.map(Some).ok_or_else(|| UpgradeError::new(409, "a connection with this key is under way"))
    }

    /// Hands a connection over to the blocking plane. Returns it if there is no thread for it.
    pub(super) fn spawn(
        self: &Arc<Self>,
        accepted: Accepted,
        place: OwnedSemaphorePermit,
    ) -> Option<(Accepted, OwnedSemaphorePermit)> {
        let dispatcher = Arc::clone(self);
        let connection = Arc::new(Mutex::new(Some((accepted, place))));
        let handed = Arc::clone(&connection);
        let thread = Counted::new(&self.threads);
        let spawned = spawn("connection", move || {
            let Some((accepted, place)) = lock(&handed).take() else { return };
            dispatcher.serve(accepted, ConnectionPermit::new(place, thread));
        });
        let error = spawned.err()?;
        tracing::error!(%error, "no thread for a connection");
        lock(&connection).take()
    }

    /// Serves a connection to its end.
    fn serve(&self, accepted: Accepted, permit: ConnectionPermit) {
        match accepted {
            Accepted::FastDp(handshake) => fastdp::serve(&self.context, handshake, permit),
            Accepted::FastDp1(handshake) => fastdp1::server::serve(&self.fastdp1, handshake, permit),
            // It is served where it began.
            Accepted::Http { .. } => {}
            Accepted::FastDownloader { socket, peer } => {
                let connection = LegacyConnection { socket, peer, early: Vec::new(), permit };
                fastdownloader::server::serve(&self.fastdownloader, connection);
            }
            Accepted::Line { serve, socket, peer, early } => {
                serve(LegacyConnection { socket, peer, early, permit });
            }
        }
    }

    /// Waits until every thread has left, within a bound.
    pub(super) fn drain(&self) {
        // Nobody brings the rest of these any more.
        self.nextdp.end();
        let until = std::time::Instant::now() + DRAIN_TIMEOUT;
        let under_way = || self.threads.load(Ordering::SeqCst) + self.nextdp.writing();
        while under_way() > 0 && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        let left = under_way();
        if left > 0 {
            tracing::warn!(left, "leaving although connections are still under way");
        }
    }
}
