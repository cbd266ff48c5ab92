//! The older protocols that push whole files, in one table.

use crate::context::client::ClientContext;
use crate::context::client::summary::Delivery;
use crate::context::server::ServerContext;
use crate::error::Error;
use crate::legacy::source_file::SourceFile;
use crate::legacy::upload::LegacyConnection;
use crate::legacy::{fastdp1, nextdp, ultradp};
use crate::net::throttle::Throttle;
use crate::protocol::Protocol;
use fastdrop_proto::fastdp::Version;
use fastdrop_proto::port::LineProtocol;
use std::sync::Arc;

/// Serves a connection, of which the first line has come, to its end.
type Serve = fn(&Arc<ServerContext>, LegacyConnection);
/// Sends one file.
type Send = fn(&ClientContext, &SourceFile, Option<&Throttle>) -> Result<Delivery, Error>;

/// A protocol that pushes whole files, as the dispatchers know it.
pub(crate) struct PushProtocol {
    pub(crate) protocol: Protocol,
    /// The line by which a server knows it, and what serves it then; None if it begins as HTTP, and
    /// is handed over from there.
    pub(crate) line: Option<(LineProtocol, Serve)>,
    pub(crate) send: Send,
}

/// All of them. One more is added here.
const ALL: &[PushProtocol] = &[
    PushProtocol {
        protocol: Protocol::FastDp10,
        line: None,
        send: |client, file, throttle| fastdp1::client::send(client, file, Version::V1_0, throttle),
    },
    PushProtocol {
        protocol: Protocol::FastDp11,
        line: None,
        send: |client, file, throttle| fastdp1::client::send(client, file, Version::V1_1, throttle),
    },
    PushProtocol {
        protocol: Protocol::UltraDp,
        line: Some((LineProtocol::UltraDp, ultradp::server::serve)),
        send: ultradp::client::send,
    },
    PushProtocol { protocol: Protocol::NextDp, line: None, send: nextdp::client::send },
];

/// The entry of a protocol, if it pushes files.
pub(crate) fn by_name(protocol: Protocol) -> Option<&'static PushProtocol> {
    ALL.iter().find(|push| push.protocol == protocol)
}

/// The protocol that begins with such a line, and what serves it.
pub(crate) fn by_line(line: LineProtocol) -> Option<(Protocol, Serve)> {
    ALL.iter().find_map(|push| {
        let (own, serve) = push.line?;
        (own == line).then_some((push.protocol, serve))
    })
}
