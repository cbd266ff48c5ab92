//! The agreement that a transfer begins with, and either role made from it.

use crate::admission::turns::Turns;
use crate::net::connection::Connection;
use crate::observe::Observer;
use crate::source::identity::Identities;
use crate::source::tree::SourceTree;
use crate::stop::Stop;
use crate::transfer::limits::{data_streams_from, flying_max, grantable};
use crate::transfer::prepare::Prepared;
use crate::transfer::receive::{ReceiveLimits, ReceiveTransfer};
use crate::transfer::send::{SendOptions, SendTransfer};
use fastdrop_proto::checksum::Algorithm;
use fastdrop_proto::fastdp::{
    Capability, Compress, Grant, Manifest, Sender, SenderConfig, Streams, Table, Transcript,
};
use fastdrop_proto::units::ChunkSize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Cores that a sender counts on at most.
const CORES_MAX: usize = 64;

/// The terms that the two ends of a transfer have agreed on, whichever of them dialled.
pub(crate) struct Agreement {
    /// The connection over which it was agreed, which becomes the control stream.
    pub(crate) control: Arc<Connection>,
    pub(crate) grant: Grant,
    pub(crate) transcript: Transcript,
    pub(crate) one_chunk: ChunkSize,
    pub(crate) checksum: Algorithm,
    /// The round trip of the path.
    pub(crate) rtt: Duration,
    /// Turns that streams on the shortest paths take with those of other transfers.
    pub(crate) turns: Option<Arc<Turns>>,
    pub(crate) observer: Arc<Observer>,
    pub(crate) stop: Stop,
}

/// The files that are sent, and how.
pub(crate) struct Outgoing {
    pub(crate) tree: Arc<SourceTree>,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) table: Table,
    pub(crate) identities: Identities,
    pub(crate) streams: Streams,
    pub(crate) compress: Compress,
    /// Bytes a second that are sent, or taken, at most.
    pub(crate) rate_max: Option<u64>,
    /// Says whether it is this end that keeps to that.
    pub(crate) keeps_rate: bool,
}

impl Agreement {
    /// Makes the receiving role of what was prepared; `rate_max` is how many bytes a second it
    /// takes at most.
    pub(crate) fn receive(self, prepared: Prepared, rate_max: Option<u64>) -> Arc<ReceiveTransfer> {
        let limits = ReceiveLimits { rate_max, turns: self.turns };
        ReceiveTransfer::new(prepared, self.transcript, self.control, limits, self.observer, self.stop)
    }

    /// Makes the sending role.
    pub(crate) fn send(self, outgoing: Outgoing) -> Arc<SendTransfer> {
        let Outgoing { tree, manifest, table, identities, streams, compress, rate_max, keeps_rate } =
            outgoing;
        let grant = &self.grant;
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(CORES_MAX));
        let config = SenderConfig {
            streams,
            granted: grantable(grant.streams, self.one_chunk),
            cores: cores as u16,
            rtt: self.rtt,
            loss_tolerant: self.control.is_loss_tolerant(),
            checkpoint: grant.checkpoint,
            data_streams_from: data_streams_from(streams, self.rtt, manifest.len()),
            flying_max: flying_max(self.rtt, self.one_chunk),
            identity: grant.has(Capability::Identity),
            proof: grant.has(Capability::Proof),
            content: grant.has(Capability::Content),
            ..SenderConfig::default()
        };
        let mut proto = Sender::new(config, manifest, table, self.checksum, Instant::now());
        proto.set_transcript(self.transcript);
        let options = SendOptions { compress, rate_max, keeps_rate, turns: self.turns };
        SendTransfer::new(proto, tree, identities, grant, options, self.observer, self.stop)
    }
}
