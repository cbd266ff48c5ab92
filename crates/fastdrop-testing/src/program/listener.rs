//! A listener for messages.

use super::binary::Program;
use super::run::{Output, Running};
use serde_json::Value;
use std::ffi::OsString;

impl Program {
    /// Listens for messages on a free port.
    pub fn listen(self, protocol: &str, extra: &[&str]) -> Listener {
        self.listen_on("127.0.0.1", protocol, extra)
    }

    /// The same on an address, which is spoken to as it is given.
    pub fn listen_on(self, bind: &str, protocol: &str, extra: &[&str]) -> Listener {
        Listener::start(self, bind, protocol, extra)
    }

    /// One that was started by hand, and listens at this address.
    pub fn listening(self, process: Running, address: String) -> Listener {
        Listener { program: self, process, address }
    }
}

/// A listener, and where it listens.
pub struct Listener {
    program: Program,
    pub process: Running,
    pub address: String,
}

impl Listener {
    fn start(program: Program, bind: &str, protocol: &str, extra: &[&str]) -> Self {
        let mut words: Vec<OsString> =
            args!["message", "listen", "--protocol", protocol, "--port", "0", "--bind", bind];
        words.extend(extra.iter().map(OsString::from));
        let process = program.command(words).json().start();
        let port = process.stdout_line(|line| {
            let event: Value = serde_json::from_str(line).ok()?;
            (event["event"] == "listening").then(|| event["port"].as_u64()).flatten()
        });
        Self { program, process, address: format!("{bind}:{}", port.expect("a port")) }
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
        self.program.client(words)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
    }
}
