//! The server: one port for several protocols, told apart by the first bytes of a connection.

mod accepted;
mod dispatch;
mod error;
mod fastdp;
mod handshake;
mod http;
mod listener;

pub use error::ServerError;

use crate::context::server::ServerContext;
use crate::context::server::options::ServerOptions;
use crate::legacy::nextdp;
use crate::net::listen;
use crate::server::dispatch::Dispatcher;
use crate::server::listener::{Serves, accept};
use crate::stop::Stop;
use crate::storage::recovery;
use crate::storage::root::Root;
use crate::thread::run_blocking;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How often what nobody came back for is looked for.
const EXPIRE_EVERY: Duration = Duration::from_secs(3600);

/// A server that listens.
pub struct Server {
    dispatcher: Arc<Dispatcher>,
    listeners: Vec<(Serves, std::net::TcpListener)>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("context", &self.dispatcher.context).finish_non_exhaustive()
    }
}

impl Server {
    /// Opens the folder and the ports.
    pub fn bind(options: ServerOptions, stop: Stop) -> Result<Self, ServerError> {
        let shown = crate::shown(std::os::unix::ffi::OsStrExt::as_bytes(options.folder.as_os_str()));
        let root = Root::open(&options.folder).map_err(|errno| ServerError::Folder(shown, errno.into()))?;
        let root = Arc::new(root);
        let one_port = listen(&options.bind)?;
        let downloaders = match options.fastdownloader {
            Some(port) => {
                let on_port = |&address: &SocketAddr| {
                    let mut address = address;
                    address.set_port(port);
                    address
                };
                listen(&options.bind.iter().map(on_port).collect::<Vec<_>>())?
            }
            None => Vec::new(),
        };
        let mut listeners: Vec<_> =
            one_port.into_iter().map(|listener| (Serves::OnePort, listener)).collect();
        listeners.extend(downloaders.into_iter().map(|listener| (Serves::FastDownloader, listener)));
        let context = ServerContext::new(options, root, stop);
        let dispatcher = Dispatcher::new(Arc::new(context));
        Ok(Self { dispatcher: Arc::new(dispatcher), listeners })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses_for(Serves::OnePort)
    }

    /// Where it listens for clients of FastDownloader.
    pub fn fastdownloader_addresses(&self) -> Vec<SocketAddr> {
        self.addresses_for(Serves::FastDownloader)
    }

    fn addresses_for(&self, wanted: Serves) -> Vec<SocketAddr> {
        let listeners = self.listeners.iter().filter(|(serves, _)| *serves == wanted);
        listeners.filter_map(|(_, listener)| listener.local_addr().ok()).collect()
    }

    /// Serves until the word to stop, or one transfer if that was
    /// asked for, and leaves in good order.
    pub fn run(self) -> Result<(), ServerError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ServerError::Runtime)?;
        let dispatcher = Arc::clone(&self.dispatcher);
        let context = Arc::clone(&dispatcher.context);
        runtime.block_on(async {
            let permits = Arc::new(tokio::sync::Semaphore::new(context.options.connections_max));
            let (mut tasks, mut accepting) = (tokio::task::JoinSet::new(), tokio::task::JoinSet::new());
            for (serves, listener) in self.listeners {
                let listener = tokio::net::TcpListener::from_std(listener).map_err(ServerError::Runtime)?;
                accepting.spawn(accept(Arc::clone(&dispatcher), listener, serves, Arc::clone(&permits)));
            }
            tasks.spawn(expire(Arc::clone(&context)));
            tasks.spawn(expire_nextdp(Arc::clone(&dispatcher.nextdp)));
            context.stop.wait().await;
            while accepting.join_next().await.is_some() {}
            tasks.shutdown().await;
            Ok(())
        })?;
        dispatcher.drain();
        Ok(())
    }
}

/// Listens on every address.
fn listen(addresses: &[SocketAddr]) -> Result<Vec<std::net::TcpListener>, ServerError> {
    listen::listen(addresses).map_err(|(address, error)| ServerError::Bind(address, error))
}

async fn expire(context: Arc<ServerContext>) {
    loop {
        let (root, age) = (Arc::clone(&context.root), context.options.expire);
        if let Err(error) = run_blocking("expire", move || recovery::expire(&root, age)).await {
            tracing::warn!(%error, "what has expired is not removed now");
        }
        tokio::time::sleep(EXPIRE_EVERY).await;
    }
}

async fn expire_nextdp(server: Arc<nextdp::server::Server>) {
    loop {
        tokio::time::sleep(nextdp::server::EXPIRE_EVERY).await;
        let server = Arc::clone(&server);
        if let Err(error) = run_blocking("expire", move || server.expire()).await {
            tracing::warn!(%error, "what has expired is not removed now");
        }
    }
}
