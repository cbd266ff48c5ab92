//! A listener for messages.

use super::process::{Output, Running, fastdrop};
use crate::args;
use serde_json::Value;
use std::ffi::OsString;

/// A listener, and where it listens.
pub struct Listener {
    pub process: Running,
    pub address: String,
}

impl Listener {
    /// Starts one on a free port.
    pub fn start(protocol: &str, extra: &[&str]) -> Self {
        Self::start_on("127.0.0.1", protocol, extra)
    }

    /// The same on an address, which is spoken to as it is given.
    pub fn start_on(bind: &str, protocol: &str, extra: &[&str]) -> Self {
        let mut words: Vec<OsString> =
            args!["message", "listen", "--protocol", protocol, "--port", "0", "--bind", bind];
        words.extend(extra.iter().map(OsString::from));
        let process = fastdrop(words).json().start();
        let port = process.stdout_line(|line| {
            let event: Value = serde_json::from_str(line).ok()?;
            (event["event"] == "listening").then(|| event["port"].as_u64()).flatten()
        });
        Self { process, address: format!("{bind}:{}", port.expect("a port")) }
    }

    /// The first message that has this text.
    pub fn message(&self, text: &str) -> Value {
        let found = self.process.stdout_line(|line| {
            let event: Value = serde_json::from_str(line).ok()?;
            (event["event"] == "message" && event["text"] == text).then_some(event)
        });
        found.unwrap_or_else(|| panic!("no message {text:?}"))
    }

    /// The fingerprint that it shows.
    pub fn certificate(&self) -> String {
        let found = self.process.stdout_line(|line| {
            let event: Value = serde_json::from_str(line).ok()?;
            event["fingerprint"].as_str().map(str::to_owned)
        });
        found.expect("a certificate")
    }

    /// Ends it, and sees that it ends well.
    pub fn end(self) {
        self.process.signal("TERM");
        self.process.wait().expect(143);
    }

    /// Sends messages to it.
    pub fn send(&self, messages: &[&str], extra: &[&str]) -> Output {
        let mut words: Vec<OsString> = args!["message", "send"];
        words.extend(messages.iter().map(OsString::from));
        words.push(self.address.clone().into());
        words.extend(extra.iter().map(OsString::from));
        fastdrop(words).json().run()
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
    }
}
