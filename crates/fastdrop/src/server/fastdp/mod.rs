//! One connection in the blocking plane: a put, a get, a list, or one more stream of either.

mod get;
mod join;
mod list;
mod put;
mod request;

use crate::admission::permit::ConnectionPermit;
use crate::context::server::ServerContext;
use crate::error::Error;
use crate::gate::principal::Principal;
use crate::net::connection::Connection;
use crate::net::frames::FrameReader;
use crate::server::accepted::Handshake;
use crate::transfer::setup::Agreement;
use fastdrop_proto::fastdp::{Control, Do, FrameHeader, Grant, Header, Open, Transcript};
use fastdrop_proto::units::{ChunkSize, TransferId};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Serves a connection to its end.
pub(crate) fn serve(context: &Arc<ServerContext>, handshake: Handshake, permit: ConnectionPermit) {
    let peer = handshake.peer;
    let rtt = Duration::from_micros(handshake.open.rtt_micros);
    let connection = match Connection::new(handshake.socket, rtt) {
        Ok(connection) => Arc::new(connection),
        Err(error) => return tracing::debug!(%peer, %error, "the connection went away"),
    };
    context.stop.watch(&connection);
    let serving = Serving {
        context,
        connection: &connection,
        client: &handshake.header,
        client_json: &handshake.header_json,
        open: &handshake.open,
        open_json: &handshake.open_json,
        rtt,
        who: Principal::of(peer),
    };
    let reader = FrameReader::new(Arc::clone(&connection), handshake.early);
    let key = handshake.key;
    let started = Instant::now();
    let result = match handshake.open.r#do {
        Do::Put => serving.put(reader),
        Do::Preview => serving.preview(reader),
        Do::Get => serving.get(reader),
        Do::List => serving.list(),
        // The transfer's own threads serve it from here on; its key stays taken as long as it
        // lasts.
        Do::Join => match serving.join(reader, permit.with_key(key)) {
            Ok(()) => return,
            Err(error) => Err(error),
        },
    };
    let what = handshake.open.r#do;
    let path = crate::shown(&handshake.open.path);
    let seconds = started.elapsed().as_secs_f64();
    match result {
        Ok(()) => tracing::info!(%peer, ?what, path, seconds, "done"),
        Err(error) => tracing::warn!(%peer, ?what, path, seconds, error = %error, "failed"),
    }
    connection.linger();
}

struct Serving<'a> {
    context: &'a Arc<ServerContext>,
    connection: &'a Arc<Connection>,
    client: &'a Header,
    client_json: &'a [u8],
    open: &'a Open,
    open_json: &'a [u8],
    rtt: Duration,
    who: Principal,
}

impl Serving<'_> {
    /// Sends this end's header, so that a refusal can follow; returns its JSON.
    pub(super) fn answer(&self, header: &Header) -> Result<Vec<u8>, Error> {
        let bytes = header.encode();
        self.connection.send(&mut [std::io::IoSlice::new(&bytes)], usize::MAX, |_| Duration::ZERO)?;
        Ok(bytes[Header::PREFIX_LEN..].to_vec())
    }

    /// Refuses before anything was agreed.
    pub(super) fn refuse<T>(&self, error: Error) -> Result<T, Error> {
        if self.answer(&Header::new(ChunkSize::COMMON, 0, 0, "")).is_ok() {
            let _ = self.connection.send_control(&Control::Refuse(error.refusal()));
            self.connection.finish_writing();
        }
        Err(error)
    }

    pub(super) fn grant(
        &self,
        transfer: TransferId,
        streams: u16,
        place: fastdrop_proto::fastdp::Place,
    ) -> Grant {
        Grant {
            transfer: Some(transfer),
            streams,
            checksum: self.open.checksum,
            durability: self.open.durability,
            place,
            checkpoint: match (self.open.checkpoint, self.context.options.checkpoint) {
                (Some(asked), Some(own)) => Some(asked.min(own)),
                (asked, own) => asked.or(own),
            },
            keeps_archive: matches!(self.open.r#do, Do::Put | Do::Preview)
                && self.open.compress.archive().is_some()
                && self.context.options.keep_archive,
            capabilities: self.open.shared_capabilities(),
        }
    }

    /// Sends GRANT; returns its JSON.
    pub(super) fn send_grant(&self, grant: &Grant) -> Result<Vec<u8>, Error> {
        let frame = Control::Grant(grant.clone()).encode();
        self.connection.send(&mut [std::io::IoSlice::new(&frame)], usize::MAX, |_| Duration::ZERO)?;
        Ok(frame[FrameHeader::LEN..].to_vec())
    }

    /// Puts together what has been agreed; the JSON is that of this end's header and of `grant`.
    pub(super) fn agreement(
        &self,
        grant: Grant,
        server_json: &[u8],
        grant_json: &[u8],
        one_chunk: ChunkSize,
    ) -> Agreement {
        Agreement {
            control: Arc::clone(self.connection),
            transcript: Transcript::new(self.client_json, self.open_json, server_json, grant_json),
            one_chunk,
            checksum: grant.checksum,
            rtt: self.rtt,
            turns: Some(Arc::clone(&self.context.turns)),
            observer: Arc::default(),
            stop: self.context.stop.clone(),
            grant,
        }
    }
}
