//! The program under test, and what the tests of it share.

#![allow(dead_code, unused_imports, unreachable_pub, reason = "every test binary uses its own part")]

mod peer;

pub use fastdrop_testing::place::*;
pub use fastdrop_testing::program::*;
pub use fastdrop_testing::proxy::Proxy;
pub use fastdrop_testing::tree::*;
pub use fastdrop_testing::wait::*;
pub use fastdrop_testing::words::*;
pub use fastdrop_testing::{args, wire};
pub use peer::Peer;

use std::ffi::OsString;
use std::path::Path;

/// The program under test.
pub const FASTDROP: Program = Program::at(env!("CARGO_BIN_EXE_fastdrop"));

/// A run with these arguments, to be put together.
pub fn fastdrop(args: Vec<OsString>) -> Cmd {
    FASTDROP.command(args)
}

/// Runs a command with `--json` to its end.
#[track_caller]
pub fn client(args: Vec<OsString>) -> Output {
    FASTDROP.client(args)
}

/// Runs a command as a person would, without `--json`, to its end.
#[track_caller]
pub fn plain(args: Vec<OsString>) -> Output {
    FASTDROP.plain(args)
}

/// Serves `dir` at a free port.
#[track_caller]
pub fn serve(dir: &Path, extra: &[&str]) -> Server {
    FASTDROP.serve(dir, extra)
}

/// Serves through a command that runs the program in place of itself.
#[track_caller]
pub fn serve_through(dir: &Path, extra: &[&str], wrapper: Vec<OsString>) -> Server {
    FASTDROP.serve_through(dir, extra, wrapper)
}
