//! What the older protocols have in common on the server: a connection
//! that brings one file, and its place.

use crate::error::Error;
use crate::lock::lock;
use crate::net::connection::{Connection, FrameReader};
use crate::server::Shared;
use crate::server::listen::canonical;
use crate::storage::options::ReceiveOptions;
use crate::storage::single::Incoming;
use fastdrop_proto::fastdp::Durability;
use std::any::Any;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// A connection that speaks one of the older protocols.
pub(super) struct Older {
    pub(super) socket: TcpStream,
    pub(super) peer: SocketAddr,
    /// What was read of it.
    pub(super) early: Vec<u8>,
    /// What it holds as long as it lasts.
    pub(super) held: Box<dyn Any + Send>,
}

impl Older {
    /// The connection in the blocking plane; it ends when the server does.
    pub(super) fn connect(
        self,
        shared: &Shared,
    ) -> Result<(FrameReader, SocketAddr, Box<dyn Any + Send>), Error> {
        let lost = |error: std::io::Error| Error::Network(format!("the connection broke: {error}"));
        let here = self.socket.local_addr().is_ok_and(|local| canonical(local).ip() == self.peer.ip());
        // Nothing else tells how long the path is, and only sending depends on it.
        let rtt = if here { Duration::from_micros(100) } else { Duration::from_millis(1) };
        let connection = Arc::new(Connection::new(self.socket, rtt).map_err(lost)?);
        shared.stop.watch(&connection);
        Ok((FrameReader::new(connection, self.early), self.peer, self.held))
    }
}

/// A file that is being received; its transfer is known as long as this is there.
pub(super) struct Placed {
    shared: Arc<Shared>,
    folder: String,
    incoming: Option<Incoming>,
}

impl Placed {
    /// Begins to receive `path`, with `size` bytes as far as that is known.
    pub(super) fn create(shared: &Arc<Shared>, path: &[u8], size: u64) -> Result<Self, Error> {
        let options = &shared.options;
        if options.read_only {
            return Err(Error::with_code(403, "this server only gives"));
        }
        if lock(&shared.placed).len() + lock(&shared.sessions).len() >= options.transfers_max {
            return Err(Error::with_code(503, "too many transfers at once"));
        }
        let receive = ReceiveOptions {
            existing: options.existing,
            advice: "",
            check: false,
            durability: Durability::Commit,
            times: false,
            mode: false,
            resume: false,
            size_max: options.size_max,
            free_min: options.free_min,
            unpack: None,
        };
        let incoming = Incoming::create(&shared.root, path, size, receive)?;
        let folder = incoming.folder().to_owned();
        lock(&shared.placed).insert(folder.clone());
        Ok(Self { shared: Arc::clone(shared), folder, incoming: Some(incoming) })
    }

    /// The file.
    pub(super) fn incoming(&self) -> Result<&Incoming, Error> {
        self.incoming.as_ref().ok_or_else(|| Error::with_code(500, "the file has been named already"))
    }

    /// Syncs it and gives it its name.
    pub(super) fn commit(mut self) -> Result<(), Error> {
        let incoming = self.incoming.take();
        incoming.map_or(Ok(()), Incoming::commit)?;
        self.shared.finish_one();
        Ok(())
    }

    /// Leaves the `bytes` that have come beneath `.fastdrop`, without a name.
    pub(super) fn keep_aside(mut self, bytes: u64) {
        if let Some(incoming) = self.incoming.take() {
            incoming.keep_aside(bytes);
        }
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        // First the stage, then the word that it is somebody's.
        self.incoming = None;
        lock(&self.shared.placed).remove(&self.folder);
    }
}
