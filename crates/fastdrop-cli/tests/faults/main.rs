//! Bad input and bad luck: a clear error, the right exit code, nothing lost, and the server goes
//! on.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod chunks;
mod crowds;
mod disks;
mod manifests;
mod opening;
mod peers;
mod policies;
mod sources;
#[path = "../support/mod.rs"]
mod support;
mod upgrade;

use std::path::{Path, PathBuf};
use support::*;

fn source_file(own: &Path, size: u64) -> PathBuf {
    let source = own.join("file");
    write_file(&source, size, size);
    source
}

/// The error is one line for people.
#[track_caller]
fn assert_one_line(out: &Output) {
    let lines = out.stderr.lines().filter(|line| !line.trim().is_empty()).count();
    assert_eq!(lines, 1, "a clear error is one line\n{out}");
}
