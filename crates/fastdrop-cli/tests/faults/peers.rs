//! No peer, or a strange one.

use crate::support::*;
use crate::{assert_one_line, source_file};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::{Duration, Instant};

/// The host has no address: exit 5.
#[test]
fn no_such_host_is_exit_5() {
    let own = scratch();
    let source = source_file(own.path(), 10);
    let out = plain(args!["send", "--progress", "none", source, "no-such-host.invalid:8888"]).expect(5);
    assert_one_line(&out);
    assert!(out.stderr.contains("no-such-host.invalid"), "{out}");
}

/// Nobody listens: exit 5 at once, without retries.
#[test]
fn connection_refused_is_exit_5_at_once() {
    let own = scratch();
    let source = source_file(own.path(), 10);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let start = Instant::now();
    for args in [
        args!["send", "--progress", "none", source, format!("127.0.0.1:{port}")],
        args!["get", "--progress", "none", format!("127.0.0.1:{port}/x"), own.path().join("y")],
        args!["list", format!("127.0.0.1:{port}")],
    ] {
        let out = plain(args).expect(5);
        assert_one_line(&out);
    }
    assert!(start.elapsed() < Duration::from_secs(5), "three refusals took {:?}", start.elapsed());
    assert_eq!(names_in(own.path()), ["file"]);
}

/// A peer that answers every connection with these bytes, and closes.
fn strange_peer(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // Ends with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
            if !answer.starts_with(b"SSH") {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                    head.push(byte[0]);
                }
            }
            let _ = stream.write_all(answer);
        }
    });
    port
}

/// Something else listens there: one line that says so, soon, and nothing is made.
#[test]
fn a_peer_that_is_not_ours_is_told_apart() {
    let own = scratch();
    let source = source_file(own.path(), 10);
    let peers: [(&[u8], i32); 6] = [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\nConnection: close\r\n\r\nnot found", 1),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 1),
        (b"SSH-2.0-OpenSSH_9.6\r\n", 1),
        (b"\x16\x03\x01\x00\x00", 1),
        // Who closes without a word may do better next time.
        (b"", 5),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 1),
    ];
    for (answer, code) in peers {
        let port = strange_peer(answer);
        let what = String::from_utf8_lossy(answer);
        for args in [
            args!["send", "--progress", "none", source, format!("127.0.0.1:{port}")],
            args!["get", "--progress", "none", format!("127.0.0.1:{port}/x"), own.path().join("y")],
        ] {
            let out = fastdrop(args).start().wait_within(Duration::from_secs(30)).expect(code);
            assert_one_line(&out);
            assert!(!out.stderr.contains('\u{1b}') && !out.stderr.contains('\r'), "{what}: {out}");
        }
    }
    assert_eq!(names_in(own.path()), ["file"]);
}

/// Case 2, the client's side: a server of another version is named as that, and nothing falls back.
#[test]
fn case_2_a_server_of_another_version_is_named() {
    let own = scratch();
    let source = source_file(own.path(), 10);
    let port = strange_peer(
        b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: fastdp\r\nConnection: Upgrade\r\nSec-FastDP-Version: 7.1.0\r\nContent-Length: 0\r\n\r\n",
    );
    let out = plain(args!["send", "--progress", "none", source, format!("127.0.0.1:{port}")]).expect(1);
    assert_one_line(&out);
    assert!(out.stderr.contains("7.1.0"), "the version that the server speaks is named\n{out}");
}

/// A server whose answer does not carry our key is not talking to us.
#[test]
fn an_answer_with_another_key_is_refused() {
    let own = scratch();
    let source = source_file(own.path(), 10);
    let port = strange_peer(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: fastdp\r\nConnection: Upgrade\r\nSec-FastDP-Key: aaaaaaaaaaaaaaaaaaaaaa\r\nSec-FastDP-Version: 2.0.0\r\n\r\n",
    );
    plain(args!["send", source, format!("127.0.0.1:{port}")]).expect(1);
}
