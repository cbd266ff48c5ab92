//! The client: puts, gets and lists, by whichever protocol, and tries again when the network fails.

mod agree;
mod get;
mod list;
mod preview;
mod put;
mod put_legacy;

pub use get::GetOptions;
pub use put::{Put, PutOptions};

use crate::context::client::ClientContext;
use crate::context::client::options::ClientOptions;
use crate::context::client::target::Target;
use crate::observe::Observer;
use crate::stop::Stop;
use std::sync::Arc;

/// Entries of a manifest that this end takes or makes.
const ENTRIES_MAX: u32 = 5_000_000;

/// Talks to one server.
#[derive(Debug)]
pub struct Client {
    context: ClientContext,
}

impl Client {
    /// A client for `target`. `observer` and `stop` work while a call is under way.
    pub fn new(target: Target, options: ClientOptions, observer: Arc<Observer>, stop: Stop) -> Self {
        Self { context: ClientContext::new(target, options, observer, stop) }
    }
}
