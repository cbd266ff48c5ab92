//! The older protocols, in both directions, against peers in another language, on the one port of
//! the server.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod fastdownloader;
mod fastdp1;
mod fastdp1_field;
mod field_table;
mod identical;
mod nextdp;
mod nextdp_two_clients;
mod one_port;
#[path = "../support/mod.rs"]
mod support;
mod ultradp;
mod ultradp_secured;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use support::*;

/// A file of `size` bytes that are the same for the same size, in a folder of its own.
fn source(size: u64) -> (tempfile::TempDir, PathBuf) {
    let own = scratch();
    let path = own.path().join("source.bin");
    write_file(&path, size, size + 1);
    (own, path)
}

/// A file of `size` bytes that compress well.
fn text(size: usize) -> (tempfile::TempDir, PathBuf) {
    let own = scratch();
    let path = own.path().join("source.txt");
    let lines: String =
        (0..).map(|n| format!("line {} of a log that repeats itself\n", n / 7)).take(size / 30 + 1).collect();
    fs::write(&path, &lines.as_bytes()[..size]).unwrap();
    (own, path)
}

/// Sizes around the ends of chunks of 256 KiB, and of 1 MiB.
const SIZES: [u64; 8] = [0, 1, 262_143, 262_144, 262_145, 1 << 20, (1 << 20) + 1, 3_000_000];

/// The contents are the same; none of these protocols carries a time.
#[track_caller]
fn assert_same_bytes(source: &Path, copy: &Path) {
    let (expected, found) = (fs::read(source).unwrap(), fs::read(copy).unwrap());
    assert_eq!(found.len(), expected.len(), "{}", copy.display());
    let differs = found.iter().zip(&expected).position(|(found, expected)| found != expected);
    assert_eq!(differs, None, "the first byte of {} that differs", copy.display());
}

/// Waits until the server has put the file there, and nothing unfinished is left.
#[track_caller]
fn assert_arrives(server: &Server, name: &str, source: &Path) {
    eventually(name, || server.path(name).exists().then_some(()));
    assert_same_bytes(source, &server.path(name));
    assert_clean(server);
}

/// Nothing unfinished is left behind.
fn assert_clean(server: &Server) {
    eventually("unfinished work to go", || (!server.path(".fastdrop").exists()).then_some(()));
}

fn send(protocol: &str, file: &Path, port: u16, extra: &[&str]) -> Output {
    let target = format!("127.0.0.1:{port}");
    let extra = extra.iter().map(OsString::from).collect();
    client([args!["send", "--protocol", protocol, file, target], extra].concat())
}
