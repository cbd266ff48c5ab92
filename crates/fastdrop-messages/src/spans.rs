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

/// The number of a session of CNP in this process, which tells nothing to anybody else. Its id is
/// kept out of logs: by UDP, whoever knows it can have the session (docs/protocol/cnp.md, section
/// 14).
#[cfg(feature = "cnp")]
pub(crate) fn number() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static SESSIONS: AtomicU64 = AtomicU64::new(1);
    SESSIONS.fetch_add(1, Ordering::Relaxed)
}

/// The session is known by this from now on.
pub(crate) fn identify(span: &Span, session: impl Display) {
    span.record("session", display(session));
}
