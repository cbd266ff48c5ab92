//! The context of a server: its folder, settings, registry and budgets.

pub(crate) mod options;
pub(crate) mod registry;

use crate::admission::buffers::BufferBudget;
use crate::admission::turns::Turns;
use crate::context::server::options::ServerOptions;
use crate::context::server::registry::Registry;
use crate::gate::{Gate, Rules};
use crate::stop::Stop;
use crate::storage::root::Root;
use std::sync::Arc;

/// Settings and shared state of a server, for all protocols.
pub(crate) struct ServerContext {
    pub(crate) options: ServerOptions,
    pub(crate) gate: Gate,
    pub(crate) root: Arc<Root>,
    pub(crate) stop: Stop,
    pub(crate) registry: Arc<Registry>,
    /// Memory for the chunks of all transfers.
    pub(crate) buffers: Arc<BufferBudget>,
    /// Turns of the streams of all transfers on the shortest paths.
    pub(crate) turns: Arc<Turns>,
}

impl std::fmt::Debug for ServerContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerContext").field("root", &self.root).finish_non_exhaustive()
    }
}

impl ServerContext {
    /// Creates the context of a server that serves `root` until `stop`.
    pub(crate) fn new(options: ServerOptions, root: Arc<Root>, stop: Stop) -> Self {
        let registry = Arc::new(Registry::new(options.transfers_max));
        let buffers = Arc::new(BufferBudget::new(options.buffers_max));
        let gate = Gate::new(Rules {
            read_only: options.read_only,
            write_only: options.write_only,
            existing: options.existing,
        });
        Self { options, gate, root, stop, registry, buffers, turns: Turns::new() }
    }

    /// Stops the server if it was to serve one transfer, of which this was the end.
    pub(crate) fn finish_one(&self) {
        if self.options.once {
            self.stop.stop();
        }
    }
}
