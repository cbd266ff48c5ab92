//! Versions 1.0.0 and 1.1.0 of fastdp as the programs that were published speak them.

use crate::fastdp1::{SUCCESS, send_fastdp1};
use crate::support::*;
use crate::{SIZES, assert_arrives, assert_same_bytes, send, source, text};

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn receiver(folder: &Path, flags: &[&str]) -> (Peer, u16) {
    let flags: Vec<_> = flags.iter().map(std::ffi::OsString::from).collect();
    let mut peer =
        Peer::start("fastdp1.py", [args!["receive", folder, "--version", "1.0.0"], flags].concat());
    let port = peer.port();
    (peer, port)
}

/// It waits for `FullSize / OneChunk + 1` chunks, however few carry the file, or how many.
#[test]
fn a_1_0_0_receiver_that_counts_chunks_gets_as_many_as_are_announced() {
    for size in SIZES {
        for file in [source(size), text(size as usize)] {
            for compress in ["none", "zip", "targz"] {
                let there = scratch();
                let (peer, port) = receiver(there.path(), &["--exact"]);
                send("fastdp1.0", &file.1, port, &["--retries", "0", "--compress", compress]).expect(10);
                let name = file.1.file_name().unwrap().to_str().unwrap();
                assert_eq!(peer.finish(), name, "{size} bytes, {compress}");
                assert_same_bytes(&file.1, &there.path().join(name));
            }
        }
    }
}

/// A FastDrop looks at what the chunks hold, and not at how many they are.
#[test]
fn a_1_0_0_receiver_that_is_a_fastdrop_gets_no_empty_chunks() {
    for size in [1, 262_144, 3_000_000] {
        let (_own, file) = text(size);
        for compress in ["none", "zip", "targz"] {
            for (server, code) in [("FastDrop/9", 0), ("Other/9", 10)] {
                let there = scratch();
                let (peer, port) = receiver(there.path(), &["--server", server]);
                send("fastdp1.0", &file, port, &["--retries", "0", "--compress", compress]).expect(code);
                let what = format!("{size} bytes, {compress}, {server}");
                let said = peer.finish();
                let empty = said.strip_prefix("source.txt\n").unwrap_or_else(|| panic!("{what}: {said}"));
                let is_none = empty == "0 empty";
                // Sizes of which a chunk more is announced than there are.
                let fills_up = size == 262_144 || compress != "none" && size > 262_144;
                assert_eq!(is_none, code == 0 || !fills_up, "{what}: {empty}");
                assert_same_bytes(&file, &there.path().join("source.txt"));
            }
        }
    }
}

/// A receiver that has the file and reads no further is not one that refuses.
#[test]
fn a_reset_by_a_1_0_0_receiver_that_has_everything_is_not_confirmed() {
    for size in [262_144, 1 << 20, 2 << 20] {
        let (_own, file) = source(size);
        let there = scratch();
        let (peer, port) = receiver(there.path(), &["--reset-when-complete"]);
        send("fastdp1.0", &file, port, &[]).expect(10);
        assert_eq!(peer.finish(), "source.bin");
        assert_same_bytes(&file, &there.path().join("source.bin"));
    }
}

/// The connection is lost on the way: one that has kept what it had, or not, gets the file.
#[test]
fn a_1_0_0_receiver_that_loses_a_connection_gets_everything_that_it_may_lack() {
    let (_own, file) = source(12_000_000);
    for flags in [&["--exact", "--forget"][..], &["--forget"], &[]] {
        let there = scratch();
        let (peer, port) = receiver(there.path(), &[flags, &["--lose-after", "3000000"]].concat());
        send("fastdp1.0", &file, port, &[]).expect(10);
        assert_eq!(peer.finish(), "source.bin", "{flags:?}");
        assert_same_bytes(&file, &there.path().join("source.bin"));
    }
}

/// One that asks for another connection, and forgets what it had, never gets a large file: that is
/// not confirmed, not sent for ever, and nothing that looks whole is made of it.
#[test]
fn a_1_0_0_receiver_that_forgets_at_a_reconnection_has_confirmed_nothing() {
    let (_own, file) = source(12_000_000);
    for times in ["1", "1000"] {
        let there = scratch();
        let flags = ["--exact", "--forget", "--reconnect-after", "3000000", "--reconnect-times", times];
        let (peer, port) = receiver(there.path(), &flags);
        send("fastdp1.0", &file, port, &["--retries", "1"]).expect(10);
        peer.stop();
        assert_eq!(names_in(there.path()), Vec::<String>::new());
    }
}

/// The sender reads one answer for each header that it sends.
#[test]
fn a_repeated_1_0_0_header_is_answered_again() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    for size in SIZES {
        let (_own, file) = source(size);
        for compress in ["None", "Zip", "TarGz"] {
            let name = format!("{compress}-{size}");
            let args = ["--version", "1.0.0", "--compress", compress, "--name", &name, "--two-headers"];
            assert_eq!(send_fastdp1(&server, &file, &args), "");
            assert_arrives(&server, &name, &file);
        }
    }
}

/// A receiver that cannot write has no words for it: that is told after as many tries as were asked
/// for.
#[test]
fn a_1_1_0_receiver_that_cannot_write_is_given_up() {
    for how in ["at-once", "amid", "at-the-end"] {
        for size in [1, 3_000_000, 20_000_000] {
            let (_own, file) = source(size);
            let there = scratch();
            let mut peer = Peer::start("fastdp1.py", args!["receive", there.path(), "--cannot-write", how]);
            let port = peer.port();
            let out = send("fastdp1.1", &file, port, &["--retries", "2"]).expect(5);
            assert!(out.stderr.contains("could not write"), "{how}, {size} bytes: {out}");
            assert_eq!(peer.stop().matches("connection").count(), 3, "{how}, {size} bytes: {out}");
        }
    }
}

/// A server that shakes hands, reads `most` bytes of what comes, and closes; and how often.
fn careless_server(most: u64) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            count.fetch_add(1, Ordering::SeqCst);
            let mut first = vec![0; 4096];
            let read = stream.read(&mut first).unwrap_or(0);
            let text = String::from_utf8_lossy(&first[..read]).into_owned();
            let field = |name: &str| {
                let line = text.lines().find(|line| line.to_lowercase().starts_with(name));
                line.and_then(|line| line.split_once(": ")).map(|(_, value)| value.to_owned())
            };
            if let (Some(key), Some(version)) = (field("sec-fastdp-key"), field("sec-fastdp-version")) {
                let answer = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: fastdp\r\nConnection: Upgrade\r\n\
                     Sec-FastDP-Key: {key}\r\nSec-FastDP-Version: {version}\r\n\r\n"
                );
                let _ = stream.write_all(answer.as_bytes());
                if version == "1.0.0" {
                    let _ = stream.write_all(b"\0\0\0\x02{}");
                }
            }
            let _ = std::io::copy(&mut (&stream).take(most), &mut std::io::sink());
        }
    });
    (port, connections)
}

/// Bytes that nobody keeps are no progress, however many of them were sent.
#[test]
fn sending_to_somebody_who_keeps_nothing_ends_after_the_retries() {
    let (_own, file) = source(20_000_000);
    for protocol in ["fastdp1.0", "fastdp1.1", "ultradp", "nextdp"] {
        for most in [100, 2_000_000] {
            // One that waits for more than the first chunk waits for ever.
            if protocol == "nextdp" && most > 1 << 20 {
                continue;
            }
            let (port, connections) = careless_server(most);
            let out = send(protocol, &file, port, &["--retries", "2"]);
            assert!([5, 9].contains(&out.code()), "{protocol}, {most}: {out}");
            let count = connections.load(Ordering::SeqCst);
            assert!((1..=3).contains(&count), "{protocol}, {most}: {count} connections; {out}");
        }
    }
}

/// An upgrade that is answered, and nothing behind it.
fn upgrade(port: u16, version: &str) -> TcpStream {
    let mut stream = wire::Raw::bare(port);
    let lines: Vec<_> =
        wire::request_lines("fastdp-key").iter().map(|line| line.replace("2.0.0", version)).collect();
    stream.write_all(&wire::request(&lines)).unwrap();
    assert_eq!(wire::read_answer(&mut stream).unwrap().0, 101);
    stream
}

/// A sender that shakes hands first, and compresses its file then, is waited for as long as the
/// server was told to, and no longer.
#[test]
fn a_header_is_waited_for_as_long_as_was_set() {
    let dir = scratch();
    let server = serve(dir.path(), &["--header-timeout", "100ms"]);
    let mut waiting = upgrade(server.port, "1.1.0");
    let mut text = String::new();
    waiting.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("ERROR: ") && text.contains("in time"), "{text:?}");
    let mut waiting = upgrade(server.port, "1.0.0");
    let _ = waiting.read_to_string(&mut String::new());
    drop(server);
    let config = dir.path().join("config.toml");
    std::fs::write(&config, "[serve]\nheader-timeout = \"100ms\"\n").unwrap();
    let served = scratch();
    let server = serve(served.path(), &["--config", config.to_str().unwrap()]);
    let mut waiting = upgrade(server.port, "1.1.0");
    waiting.read_to_string(&mut text).unwrap();
    assert!(text.ends_with("in time"), "{text:?}");
}

#[test]
#[ignore = "takes 12 seconds"]
fn a_1_1_0_sender_that_compresses_for_long_is_waited_for() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let (_own, file) = source(1_000_000);
    let said = send_fastdp1(&server, &file, &["--compress", "TarGz", "--late", "12"]);
    assert_eq!(said, format!("upgraded\n{SUCCESS}"));
    assert_arrives(&server, "source.bin", &file);
}

fn threads_of(server: &Server) -> usize {
    std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap().count()
}

/// However many compress first, none of them has a thread before its header is there.
#[test]
fn senders_that_are_waited_for_hold_no_threads() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let (_own, file) = source(1_000_000);
    // Whatever the server starts once is there after this.
    assert_eq!(send_fastdp1(&server, &file, &["--name", "first"]), SUCCESS);
    server.wait_idle();
    let before = threads_of(&server);
    let mut peer = Peer::start(
        "fastdp1.py",
        args!["send", server.port.to_string(), &file, "--late", "0.5", "--name", "late"],
    );
    assert_eq!(peer.line(), "upgraded");
    let waiting: Vec<_> =
        (0..100).map(|at| upgrade(server.port, if at % 2 == 0 { "1.0.0" } else { "1.1.0" })).collect();
    assert_eq!(peer.finish(), SUCCESS);
    eventually("the threads of those who were served to end", || {
        (threads_of(&server) <= before).then_some(())
    });
    assert_arrives(&server, "late", &file);
    drop(waiting);
}
