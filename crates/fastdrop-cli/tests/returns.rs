//! fastdp 1.0.0: senders that come back over another connection, seen from outside. All orders of
//! the events inside are in `crates/fastdrop-proto/tests/handover.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use support::*;

const CHUNK: usize = 256 << 10;

/// A sender of 1.0.0 with a key that does not change, as the programs that exist.
struct Sender {
    stream: TcpStream,
}

impl Sender {
    /// Connects, upgrades, and exchanges headers.
    fn connect(port: u16, name: &str, size: usize) -> Self {
        let mut sender = Self::connect_silently(port, name, size);
        let mut length = [0; 4];
        sender.stream.read_exact(&mut length).unwrap();
        let mut header = vec![0; u32::from_be_bytes(length) as usize];
        sender.stream.read_exact(&mut header).unwrap();
        sender
    }

    /// The same without waiting for the header of the server.
    fn connect_silently(port: u16, name: &str, size: usize) -> Self {
        let mut stream = wire::Raw::bare(port);
        let lines: Vec<_> = wire::request_lines("unique-key-123")
            .into_iter()
            .map(|line| line.replace("2.0.0", "1.0.0"))
            .collect();
        stream.write_all(&wire::request(&lines)).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        let json = serde_json::json!({
            "OneChunk": CHUNK, "FullChunk": size / CHUNK + 1, "FullSize": size, "DPVersion": "1.0.0",
            "CompressType": "None", "FileName": name,
        });
        let json = json.to_string().into_bytes();
        stream.write_all(&[&(json.len() as u32).to_be_bytes()[..], &json].concat()).unwrap();
        Self { stream }
    }

    /// Sends chunks, numbered from 1, of `contents`.
    fn send(&mut self, contents: &[u8], numbers: std::ops::Range<usize>) -> std::io::Result<()> {
        for (number, chunk) in contents.chunks(CHUNK).enumerate().take(numbers.end).skip(numbers.start) {
            let prefix = [(number as u32 + 1).to_be_bytes(), (chunk.len() as u32).to_be_bytes()].concat();
            self.stream.write_all(&prefix)?;
            self.stream.write_all(chunk)?;
        }
        Ok(())
    }

    /// Says that this is all; true if the server ends the connection in good order, false if it
    /// resets it.
    fn finish(mut self) -> bool {
        let _ = self.stream.shutdown(Shutdown::Write);
        self.is_ended_well()
    }

    fn is_ended_well(&mut self) -> bool {
        self.stream.read_to_end(&mut Vec::new()).is_ok()
    }
}

fn contents(size: usize, seed: u64) -> Vec<u8> {
    let dir = scratch();
    write_file(&dir.path().join("f"), size as u64, seed);
    fs::read(dir.path().join("f")).unwrap()
}

#[test]
fn case_106_a_sender_that_comes_back_at_once_loses_nothing() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let contents = contents(8_000_000, 1);
    let chunks = contents.len().div_ceil(CHUNK);
    for attempt in 0..30 {
        let name = format!("f{attempt}");
        // Comes back once, twice, three times.
        let cuts: Vec<_> = (1..=attempt % 3 + 1).map(|cut| chunks * cut / (attempt % 3 + 2)).collect();
        let mut from = 0;
        for cut in cuts {
            let mut sender = Sender::connect(server.port, &name, contents.len());
            sender.send(&contents, from..cut).unwrap();
            from = cut;
        }
        let mut sender = Sender::connect(server.port, &name, contents.len());
        sender.send(&contents, from..chunks).unwrap();
        assert!(sender.finish(), "attempt {attempt}: {}", server.stderr());
        assert!(fs::read(server.path(&name)).unwrap() == contents, "attempt {attempt}");
    }
}

/// The next connection is there before the last one has been closed.
#[test]
fn case_106_a_sender_that_overlaps_its_connections_loses_nothing() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let contents = contents(4_000_000, 1);
    let chunks = contents.len().div_ceil(CHUNK);
    let mut first = Sender::connect(server.port, "f", contents.len());
    first.send(&contents, 0..chunks / 3).unwrap();
    let mut second = Sender::connect(server.port, "f", contents.len());
    let mut third = Sender::connect(server.port, "f", contents.len());
    second.send(&contents, chunks / 3..chunks / 2).unwrap();
    third.send(&contents, chunks / 2..chunks).unwrap();
    drop(first);
    drop(second);
    assert!(third.finish(), "{}", server.stderr());
    assert!(fs::read(server.path("f")).unwrap() == contents);
}

#[test]
fn case_106_a_stranger_of_the_same_identity_is_told_apart_once_the_first_sender_is_known_to_be_alive() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let (one, other) = (contents(24_000_000, 1), contents(24_000_000, 2));
    let chunks = one.len().div_ceil(CHUNK);
    let mut first = Sender::connect(server.port, "f", one.len());
    first.send(&one, 0..8).unwrap();
    let mut second = Sender::connect(server.port, "f", other.len());
    // More than can have been on its way from a sender that has left.
    first.send(&one, 8..chunks - 1).unwrap();
    second.send(&other, 0..chunks).unwrap();
    first.send(&one, chunks - 1..chunks).unwrap();
    // One name for two files: each knows whether its own is there.
    let ended = [first.finish(), second.finish()];
    let found = fs::read(server.path("f")).unwrap();
    assert_eq!(ended, [found == one, found == other], "{}", server.stderr());
    assert!(ended.contains(&true));
}

#[test]
fn case_106_a_connection_that_waits_when_the_transfer_is_complete_is_a_new_transfer() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let (contents, other) = (contents(1_000_000, 1), contents(1_000_000, 2));
    let chunks = contents.len().div_ceil(CHUNK);
    let mut first = Sender::connect(server.port, "f", contents.len());
    first.send(&contents, 0..1).unwrap();
    let mut second = Sender::connect(server.port, "f", contents.len());
    first.send(&contents, 1..chunks).unwrap();
    assert!(first.finish(), "{}", server.stderr());
    assert!(fs::read(server.path("f")).unwrap() == contents);
    // The name is taken by now, and this is another file.
    second.send(&other, 0..chunks).unwrap();
    assert!(!second.finish());
    eventually("a line about it", || server.stderr().contains("exists").then_some(()));
    assert!(fs::read(server.path("f")).unwrap() == contents);
}

#[test]
fn case_106_a_server_that_stops_waits_for_nobody_who_waits() {
    let dir = scratch();
    let mut server = serve(dir.path(), &[]);
    let contents = contents(1_000_000, 1);
    let mut reads = Sender::connect(server.port, "reads", contents.len());
    reads.send(&contents, 0..1).unwrap();
    let mut waits = Sender::connect(server.port, "reads", contents.len());
    // And a transfer that waits for its sender.
    let mut left = Sender::connect(server.port, "left", contents.len());
    left.send(&contents, 0..1).unwrap();
    drop(left);
    let code = server.term();
    assert_eq!(code, 143, "{}", server.stderr());
    assert!(!server.stderr().contains("still under way"), "{}", server.stderr());
    assert!(!reads.is_ended_well() && !waits.is_ended_well());
}
