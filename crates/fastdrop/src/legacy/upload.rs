//! A connection that brings one file by an older protocol, and the place of that file.

use crate::admission::permit::ConnectionPermit;
use crate::context::server::ServerContext;
use crate::context::server::registry::{PlacedGuard, Reservation};
use crate::error::Error;
use crate::gate::principal::Principal;
use crate::net::connection::Connection;
use crate::net::frames::FrameReader;
use crate::net::listen::canonical;
use crate::storage::options::ReceiveOptions;
use crate::storage::present::Announced;
use crate::storage::single::StagedFile;
use fastdrop_proto::fastdp::{Code, Durability, Existing};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// A connection that speaks one of the older protocols.
pub(crate) struct LegacyConnection {
    pub(crate) socket: TcpStream,
    pub(crate) peer: SocketAddr,
    /// Bytes that were read of it.
    pub(crate) early: Vec<u8>,
    /// The permit that it holds as long as it lasts.
    pub(crate) permit: ConnectionPermit,
}

impl LegacyConnection {
    /// The connection in the blocking plane; it ends when the server does.
    pub(crate) fn connect(
        self,
        context: &ServerContext,
    ) -> Result<(FrameReader, SocketAddr, ConnectionPermit), Error> {
        let lost = |error: std::io::Error| Error::Network(format!("the connection broke: {error}"));
        let here = self.socket.local_addr().is_ok_and(|local| canonical(local).ip() == self.peer.ip());
        // Nothing else tells how long the path is, and only sending depends on it.
        let rtt = if here { Duration::from_micros(100) } else { Duration::from_millis(1) };
        let connection = Arc::new(Connection::new(self.socket, rtt).map_err(lost)?);
        context.stop.watch(&connection);
        Ok((FrameReader::new(connection, self.early), self.peer, self.permit))
    }
}

/// A file that is being received; its transfer is known as long as this is there.
pub(crate) struct LegacyUpload {
    context: Arc<ServerContext>,
    // First the stage goes, then the word that it is somebody's.
    incoming: Option<StagedFile>,
    _placed: PlacedGuard,
}

impl LegacyUpload {
    /// Begins to receive `path`, as far as it was announced.
    ///
    /// # Errors
    ///
    /// `who` may not, or there is no place for it.
    pub(crate) fn create(
        context: &Arc<ServerContext>,
        who: &Principal,
        path: &[u8],
        announced: &Announced,
    ) -> Result<Self, Error> {
        Self::create_where(context, who, path, announced, None, |existing| existing)
    }

    /// As [`create`](Self::create), at a place that has been taken for it.
    ///
    /// # Errors
    ///
    /// As of that.
    pub(crate) fn create_at(
        context: &Arc<ServerContext>,
        who: &Principal,
        path: &[u8],
        announced: &Announced,
        place: Reservation,
    ) -> Result<Self, Error> {
        Self::create_where(context, who, path, announced, Some(place), |existing| existing)
    }

    /// As [`create`](Self::create), and replaces nothing.
    ///
    /// # Errors
    ///
    /// As of that.
    pub(crate) fn create_beside(
        context: &Arc<ServerContext>,
        who: &Principal,
        path: &[u8],
        announced: &Announced,
    ) -> Result<Self, Error> {
        Self::create_where(context, who, path, announced, None, |existing| match existing {
            Existing::Overwrite => Existing::Error,
            Existing::Skip | Existing::Error | Existing::Rename => existing,
        })
    }

    fn create_where(
        context: &Arc<ServerContext>,
        who: &Principal,
        path: &[u8],
        announced: &Announced,
        place: Option<Reservation>,
        decide: impl FnOnce(Existing) -> Existing,
    ) -> Result<Self, Error> {
        let options = &context.options;
        let (path, existing) = context.gate.admit_file(who, path)?;
        let existing = decide(existing);
        let place = place.map_or_else(|| context.registry.reserve(), Ok)?;
        let receive = ReceiveOptions {
            existing,
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
        let incoming = StagedFile::create(&context.root, path.as_bytes(), announced, receive)?;
        let placed = context.registry.add_placed(place, incoming.folder());
        Ok(Self { context: Arc::clone(context), incoming: Some(incoming), _placed: placed })
    }

    /// The file.
    pub(crate) fn incoming(&self) -> Result<&StagedFile, Error> {
        self.incoming.as_ref().ok_or_else(|| Error::failed(Code::Internal, "the file has been named already"))
    }

    /// Syncs it and gives it its name, as [`StagedFile::commit`].
    pub(crate) fn commit(mut self) -> Result<(), Error> {
        let incoming = self.incoming.take();
        incoming.map_or(Ok(()), StagedFile::commit)?;
        self.context.finish_one();
        Ok(())
    }

    /// Leaves the `bytes` that have come beneath `.fastdrop`, without a name.
    pub(crate) fn keep_aside(mut self, bytes: u64) {
        if let Some(incoming) = self.incoming.take() {
            incoming.keep_aside(bytes);
        }
    }
}
