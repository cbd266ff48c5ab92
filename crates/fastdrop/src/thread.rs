//! Threads, which the system may refuse.

use crate::error::Error;
use fastdrop_proto::fastdp::Code;
use std::io;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

/// Starts a thread in `scope`. The system shows the first 15 bytes of `name`.
///
/// # Errors
///
/// There is none to be had.
pub(crate) fn spawn_scoped<'scope, 'env, T: Send + 'scope>(
    scope: &'scope Scope<'scope, 'env>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    Builder::new().name(name.into()).spawn_scoped(scope, work)
}

/// Starts a thread that nobody need wait for.
///
/// # Errors
///
/// As of [`spawn_scoped`].
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.into()).spawn(work)
}

/// Does what blocks on a thread of its own, and does not hold up whoever waits for it.
///
/// # Errors
///
/// As of [`spawn_scoped`]; [`io::ErrorKind::Other`] if the thread has panicked.
pub(crate) async fn run_blocking<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    // The runtime's own pool panics where there is no thread to be had.
    let (done, result) = tokio::sync::oneshot::channel();
    spawn(name, move || {
        // Nobody may wait for it any more.
        let _ = done.send(work());
    })?;
    result.await.map_err(|_| io::Error::other("a thread has ended too early"))
}

/// A thread that was refused, as a failure of what needed it.
pub(crate) fn refused(error: io::Error) -> Error {
    Error::failed(Code::Unavailable, format!("no thread to be had: {error}"))
}
