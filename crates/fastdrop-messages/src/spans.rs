//! The spans that connections and sessions run in.

use std::fmt::Display;
use std::net::SocketAddr;
use tracing::Span;
use tracing::field::{Empty, display};

/// The span of a connection or session, in which its tasks and the handlers of its messages run.
/// One is made for each connection, and none while nobody subscribes to it.
pub(crate) fn of(protocol: &'static str, transport: &'static str, peer: SocketAddr) -> Span {
    tracing::info_span!("session", protocol, transport, %peer, session = Empty)
}

/// The session is known by this from now on.
pub(crate) fn identify(span: &Span, session: impl Display) {
    span.record("session", display(session));
}
