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
pub(crate) type Serve = Arc<dyn Fn(LegacyConnection) + std::marker::Send + Sync>;
/// Makes what serves a protocol, with state of its own: once for each server.
type NewServer = fn(Arc<ServerContext>) -> Serve;
/// Sends one file.
type Send = fn(&ClientContext, &SourceFile, Option<&Throttle>) -> Result<Delivery, Error>;

/// A protocol that pushes whole files, as the dispatchers know it.
pub(crate) struct PushProtocol {
    pub(crate) protocol: Protocol,
    /// The line by which a server knows it, and what makes its server; None if it begins as HTTP,
    /// and is handed over from there.
    line: Option<(LineProtocol, NewServer)>,
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
        line: Some((LineProtocol::UltraDp, |context| {
            let server = ultradp::server::Server::new(context);
            Arc::new(move |legacy| ultradp::server::serve(&server, legacy))
        })),
        send: ultradp::client::send,
    },
    PushProtocol { protocol: Protocol::NextDp, line: None, send: nextdp::client::send },
];

/// The entry of a protocol, if it pushes files.
pub(crate) fn by_name(protocol: Protocol) -> Option<&'static PushProtocol> {
    ALL.iter().find(|push| push.protocol == protocol)
}

/// The protocols of one server that begin with a line of their own.
pub(crate) struct LineServers(Vec<(LineProtocol, Protocol, Serve)>);

impl LineServers {
    /// Creates all of them, to which no connection has come.
    pub(crate) fn new(context: &Arc<ServerContext>) -> Self {
        let lines = ALL.iter().filter_map(|push| {
            let (line, new) = push.line?;
            Some((line, push.protocol, new(Arc::clone(context))))
        });
        Self(lines.collect())
    }

    /// The protocol that begins with such a line, and what serves it.
    pub(crate) fn by_line(&self, line: LineProtocol) -> Option<(Protocol, Serve)> {
        let (_, protocol, serve) = self.0.iter().find(|(own, ..)| *own == line)?;
        Some((*protocol, Arc::clone(serve)))
    }
}
