//! A data stream that joins a transfer.

use crate::admission::permit::ConnectionPermit;
use crate::context::server::registry::Transfer;
use crate::error::Error;
use crate::net::frames::FrameReader;
use crate::server::fastdp::Serving;
use crate::transfer::streams::DataStream;
use fastdrop_proto::fastdp::{Code, Control, Header};
use fastdrop_proto::units::ChunkSize;

impl Serving<'_> {
    pub(super) fn join(&self, reader: FrameReader, permit: ConnectionPermit) -> Result<(), Error> {
        let unknown = || Error::failed(Code::NotFound, "there is no such transfer");
        let admits = |action| self.context.gate.allows(&self.who, action).is_ok();
        let found = self.open.transfer.and_then(|id| Some((id, self.context.registry.join(id, admits)?)));
        let Some((id, (transfer, streams, counted))) = found else { return self.refuse(unknown()) };
        let Some(counted) = counted else {
            return self.refuse(Error::failed(Code::Unavailable, "more streams than were granted"));
        };
        self.answer(&Header::new(ChunkSize::COMMON, 0, 0, ""))?;
        self.send_grant(&self.grant(id, streams, fastdrop_proto::fastdp::Place::Auto))?;
        let joined = DataStream { reader, permit: permit.with_stream(counted) };
        let pushed = match &transfer {
            Transfer::Receiving(transfer) => transfer.joins.push(joined),
            Transfer::Sending(transfer) => transfer.joins.push(joined),
        };
        pushed.map_err(|joined| {
            let connection = joined.connection();
            let _ = connection.send_control(&Control::Refuse(unknown().refusal()));
            connection.finish_writing();
            unknown()
        })
    }
}
