//! A path that breaks.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The end of a connection through a [`Cutter`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    No,
    /// Both sides are reset.
    Cut,
    /// The side of the client is reset; the other one stays, and is silent.
    HalfDead,
}

struct Inner {
    server: Mutex<Option<SocketAddr>>,
    /// A connection has at most so many bytes, chosen anew for each.
    bytes_max: AtomicU64,
    random: AtomicU64,
    connections: AtomicU64,
    end: watch::Sender<End>,
}

/// Stands between clients and a server.
pub(crate) struct Cutter {
    pub(crate) address: String,
    inner: Arc<Inner>,
    task: JoinHandle<()>,
}

impl Cutter {
    pub(crate) async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let inner = Arc::new(Inner {
            server: Mutex::new(Some(server)),
            bytes_max: AtomicU64::new(u64::MAX),
            random: AtomicU64::new(7),
            connections: AtomicU64::new(0),
            end: watch::Sender::new(End::No),
        });
        let shared = Arc::clone(&inner);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Some(server) = *shared.server.lock().unwrap() else { continue };
                let Ok(server) = TcpStream::connect(server).await else { continue };
                shared.connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(carry(Arc::clone(&shared), client, server));
            }
        });
        Self { address, inner, task }
    }

    /// Connections that were carried.
    pub(crate) fn connections(&self) -> u64 {
        self.inner.connections.load(Ordering::Relaxed)
    }

    /// Leads those who connect from now on to this server, or to none.
    pub(crate) fn lead_to(&self, server: Option<SocketAddr>) {
        *self.inner.server.lock().unwrap() = server;
    }

    /// Connects from now on break after at most so many bytes.
    pub(crate) fn break_after(&self, bytes: u64) {
        self.inner.bytes_max.store(bytes, Ordering::Relaxed);
    }

    /// Breaks all connections that stand.
    pub(crate) fn cut(&self) {
        self.inner.end.send_replace(End::Cut);
    }

    /// Breaks them for their clients only.
    pub(crate) fn half_cut(&self) {
        self.inner.end.send_replace(End::HalfDead);
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(inner: Arc<Inner>, mut client: TcpStream, mut server: TcpStream) {
    let mut end = inner.end.subscribe();
    let random = inner.random.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    let max = inner.bytes_max.load(Ordering::Relaxed);
    let mut left = if max == u64::MAX { u64::MAX } else { random % max };
    let (mut up, mut down) = (vec![0; 4096], vec![0; 4096]);
    let ended = loop {
        let (from, count) = tokio::select! {
            _ = end.changed() => break *end.borrow(),
            count = client.read(&mut up) => (true, count.unwrap_or(0)),
            count = server.read(&mut down) => (false, count.unwrap_or(0)),
        };
        if count == 0 {
            break End::Cut;
        }
        let passes = usize::try_from(left).unwrap_or(usize::MAX).min(count);
        left -= passes as u64;
        let written = if from {
            server.write_all(&up[..passes]).await
        } else {
            client.write_all(&down[..passes]).await
        };
        if written.is_err() || passes < count {
            break End::Cut;
        }
    };
    // Half of them end in good order, as far as TCP is concerned.
    if random.is_multiple_of(2) || ended == End::HalfDead {
        socket2::SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }
    drop(client);
    if ended == End::HalfDead {
        std::future::pending::<()>().await;
    }
}
