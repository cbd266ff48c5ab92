//! Clients that connect again when their connection breaks (docs/protocol/vstp.md, section 11).

mod client;
mod config;
mod driver;
mod error;
mod state;

pub use client::Reconnecting;
pub use config::ReconnectConfig;
pub use error::DeliverError;
pub use state::{State, States};
