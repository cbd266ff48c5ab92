//! Accepting connections, and taking them through their beginning.

use crate::lock::lock;
use crate::net::listen::canonical;
use crate::net::tuning::reset_on_close;
use crate::server::accepted::Accepted;
use crate::server::dispatch::Dispatcher;
use crate::server::{handshake, http};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long answers may take that are under way when the server stops.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// The purpose of a listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Serves {
    OnePort,
    FastDownloader,
}

/// Accepts connections until the server stops.
pub(super) async fn accept(
    dispatcher: Arc<Dispatcher>,
    listener: tokio::net::TcpListener,
    serves: Serves,
    permits: Arc<tokio::sync::Semaphore>,
) {
    let mut handshakes = tokio::task::JoinSet::new();
    loop {
        while handshakes.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = dispatcher.context.stop.wait() => break,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or a connection that was gone before it
                // was taken: the next may succeed.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let peer = canonical(peer);
        // Until it is known that it speaks something with answers, whatever ends it is a refusal.
        reset_on_close(&socket, true);
        let mut permit = Arc::clone(&permits).try_acquire_owned();
        if permit.is_err() && dispatcher.evict(None) {
            tokio::task::yield_now().await;
            permit = Arc::clone(&permits).try_acquire_owned();
        }
        let Ok(permit) = permit else {
            tracing::warn!(%peer, "too many connections");
            continue;
        };
        if serves == Serves::FastDownloader {
            // The server speaks first: there is nothing to be found out.
            if let Ok(socket) = socket.into_std() {
                // Without a thread it is reset, as all that are refused
                // before they have been given a list.
                drop(dispatcher.spawn(Accepted::FastDownloader { socket, peer }, permit));
            }
            continue;
        }
        let id = dispatcher.next_handshake.fetch_add(1, Ordering::Relaxed);
        let task = handshakes.spawn({
            let dispatcher = Arc::clone(&dispatcher);
            async move {
                let mut begun = handshake::begin(&dispatcher, socket, peer).await;
                let idle = lock(&dispatcher.handshaking).remove(&id);
                if let Some(Accepted::Http { socket, peer, early }) = begun {
                    // Here it stays asynchronous, unless it upgrades.
                    begun = match http::serve(&dispatcher, socket, peer, early).await {
                        Some(upgraded) => {
                            // Until it has said what it wants it may be ended for another again.
                            lock(&dispatcher.handshaking).extend(idle.map(|idle| (id, idle)));
                            let begun = handshake::upgraded(&dispatcher, upgraded, peer).await;
                            lock(&dispatcher.handshaking).remove(&id);
                            begun
                        }
                        None => None,
                    };
                }
                if let Some(begun) = begun
                    && let Some((begun, _permit)) = dispatcher.spawn(begun, permit)
                {
                    handshake::turn_away(begun).await;
                }
            }
        });
        // This thread runs the tasks too, so the new one has not ended yet.
        let count = {
            let mut handshaking = lock(&dispatcher.handshaking);
            handshaking.insert(id, (peer.ip(), task));
            handshaking.values().filter(|(ip, _)| *ip == peer.ip()).count()
        };
        if count > dispatcher.context.options.handshakes_per_address_max {
            dispatcher.evict(Some(peer.ip()));
        }
    }
    drop(listener);
    // Who has not said what it wants is not served any more; answers that are under way are given.
    for (_, (_, handshake)) in std::mem::take(&mut *lock(&dispatcher.handshaking)) {
        handshake.abort();
    }
    let answered = async { while handshakes.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(LAST_ANSWERS, answered).await;
}
