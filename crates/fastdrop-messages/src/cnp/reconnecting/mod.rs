//! Clients that connect again when their connection breaks (docs/protocol/cnp.md, section 15).

mod client;
mod config;
mod driver;
mod error;
mod state;

pub use client::ReconnectingClient;
pub use config::ReconnectConfig;
pub use error::SendFailure;
pub use state::{State, States};
