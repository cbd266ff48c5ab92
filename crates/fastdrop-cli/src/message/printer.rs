//! How messages that come are printed.

use crate::output::Output;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fastdrop::shown;
use serde_json::{Map, Value, json};
use std::net::SocketAddr;

/// Prints messages, and knows whether they go back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Printer {
    pub(super) output: Output,
    pub(super) echo: bool,
}

/// From where a message came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin<'a> {
    pub(super) protocol: &'a str,
    pub(super) transport: &'a str,
    pub(super) session: &'a str,
    pub(super) from: SocketAddr,
}

impl Printer {
    pub(super) fn print(&self, origin: Origin<'_>, headers: Map<String, Value>, message: &[u8]) {
        let Origin { protocol, transport, session, from } = origin;
        if self.output.json {
            let mut fields = json!({
                "protocol": protocol, "transport": transport, "session": session, "from": from.to_string(),
                "headers": headers,
            });
            match std::str::from_utf8(message) {
                Ok(text) => fields["text"] = text.into(),
                Err(_) => fields["base64"] = STANDARD.encode(message).into(),
            }
            let _ = self.output.event("message", fields);
        } else {
            let _ = self.output.result(&shown(message));
        }
    }
}
