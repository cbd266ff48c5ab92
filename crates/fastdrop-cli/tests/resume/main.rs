//! Whatever interrupts a transfer, the same command goes on with it, and sends what is missing.
//!
//! Killing does not test fsync, since the page cache survives: these are tests of "killed", not of
//! "power lost".

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod checkpoints;
mod cut;
mod journals;
mod killed;
mod rivals;
#[path = "../support/mod.rs"]
mod support;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use support::*;

/// Bytes that may be under way and lost in an interruption: buffers of the sockets and unfinished
/// chunks.
const SLACK: u64 = 16 * MIB;
/// Bytes of a file of several chunks, the last one incomplete.
const SIZE: u64 = 48 * MIB + 12_345;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Send,
    Get,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Victim {
    Client,
    Server,
}

/// A transfer of `thing` (a file or a tree) in either direction, between two folders.
struct Job {
    way: Way,
    from: tempfile::TempDir,
    to: tempfile::TempDir,
    server: Server,
    total: u64,
}

impl Job {
    /// `make` gets the path at which to make what is moved.
    fn new(way: Way, make: impl FnOnce(&Path)) -> Self {
        Self::with_server_args(way, &[], make)
    }

    fn with_server_args(way: Way, server_args: &[&str], make: impl FnOnce(&Path)) -> Self {
        let (from, to) = (scratch(), scratch());
        make(&from.path().join("thing"));
        let server = serve(if way == Way::Send { to.path() } else { from.path() }, server_args);
        let sizes = snapshot(from.path())
            .into_values()
            .map(|entry| if let Kind::File(size, _) = entry.0 { size } else { 0 });
        let total = sizes.sum();
        Self { way, from, to, server, total }
    }

    fn file(way: Way, size: u64) -> Self {
        Self::new(way, |path| {
            write_file(path, size, size);
            set_mtime(path, 1_234_567_890, 987_654_321);
        })
    }

    fn source(&self) -> PathBuf {
        self.from.path().join("thing")
    }

    fn arrived(&self) -> PathBuf {
        self.to.path().join("thing")
    }

    /// The command, with flags of the caller's, towards a proxy.
    fn command(&self, proxy: &Proxy, flags: &[&str]) -> Cmd {
        let flags: Vec<OsString> = flags.iter().map(OsString::from).collect();
        let (verb, rest) = match self.way {
            Way::Send => ("send", args![self.source(), proxy.target("")]),
            Way::Get => ("get", args![proxy.target("thing"), self.to.path()]),
        };
        fastdrop([args![verb], flags, rest].concat()).json()
    }

    /// Bytes that a proxy passed on in the direction of the transfer.
    fn passed(&self, proxy: &Proxy) -> u64 {
        if self.way == Way::Send { proxy.up() } else { proxy.down() }
    }

    /// Starts, and stops everything dead when the proxy has passed on so much.
    fn held(&self, at: u64, flags: &[&str]) -> (Proxy, Running) {
        let proxy = Proxy::to(self.server.port);
        proxy.hold_at(at);
        let run = self.command(&proxy, flags).start();
        proxy.wait_held();
        (proxy, run)
    }

    /// Interrupts with SIGKILL; gives the bytes that had passed.
    fn interrupted(&mut self, victim: Victim, at: u64) -> u64 {
        let (proxy, run) = self.held(at, &["--streams", "2", "--retries", "0"]);
        match victim {
            Victim::Client => {
                run.kill9();
                proxy.cut_all();
                self.server.wait_idle();
            }
            Victim::Server => {
                self.server.kill9();
                proxy.cut_all();
                run.wait().expect(5);
                self.server.restart_same_dir();
            }
        }
        self.assert_nothing_partial();
        self.passed(&proxy)
    }

    #[track_caller]
    fn assert_nothing_partial(&self) {
        if self.arrived().exists() {
            assert_nothing_partial(&self.source(), &self.arrived());
        }
    }

    /// The same command again, which must succeed.
    #[track_caller]
    fn again(&self) -> Output {
        self.command(&Proxy::to(self.server.port), &[]).run().expect(0)
    }

    /// The same command again: it must succeed and have had to send only what had not passed
    /// before.
    #[track_caller]
    fn assert_resumes(&self, passed: u64) {
        let out = self.again();
        let sent = out.number("bytes_sent");
        let bound = self.total - passed.saturating_sub(SLACK).min(self.total);
        assert!(
            sent <= bound,
            "{passed} of {} bytes had passed, and {sent} were sent again\n{out}",
            self.total
        );
        self.assert_arrived();
    }

    #[track_caller]
    fn assert_arrived(&self) {
        assert_same_tree(&self.source(), &self.arrived());
        assert_eq!(leftovers(self.to.path()), [] as [PathBuf; 0], "something unfinished stays behind");
        assert_eq!(leftovers(self.from.path()), [] as [PathBuf; 0], "the sender leaves something behind");
    }
}
