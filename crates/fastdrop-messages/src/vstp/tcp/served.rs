//! The part of a server in the task that drives one of its connections.

use super::orders::Shared;
use super::session::Session;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Serves a connection that a task drives. When this is dropped, nobody can send to its peer any
/// more, and its task is ended: that of a server that has waited for long enough, say.
#[derive(Debug)]
pub(super) struct Served {
    shared: Arc<Shared>,
    driver: Option<JoinHandle<()>>,
}

impl Served {
    /// The time that a client has for reading its BYE and what was acknowledged before.
    pub(super) const FAREWELL: Duration = Duration::from_secs(1);

    pub(super) fn new(session: &Session) -> Self {
        Self { shared: Arc::clone(session.shared()), driver: session.take_driver() }
    }

    /// The server is done with the connection, of which nobody else holds a [`Session`]: waits
    /// until the peer has what was written, but not for ever.
    pub(super) async fn finish(mut self) {
        self.shared.leave();
        if let Some(driver) = &mut self.driver
            && tokio::time::timeout(Self::FAREWELL, &mut *driver).await.is_err()
        {
            driver.abort();
            let _ = driver.await;
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.shared.leave();
        let Some(mut driver) = self.driver.take() else { return };
        let runtime = tokio::runtime::Handle::try_current();
        if std::thread::panicking()
            && let Ok(runtime) = runtime
        {
            // The peer is told that its handler has ended.
            runtime.spawn(async move {
                if tokio::time::timeout(Self::FAREWELL, &mut driver).await.is_err() {
                    driver.abort();
                }
            });
        } else {
            driver.abort();
        }
    }
}
