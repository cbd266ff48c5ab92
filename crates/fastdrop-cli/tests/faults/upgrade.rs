//! The upgrade, byte by byte.

use crate::support::wire::{self, Offer, Raw, header};
use crate::support::*;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

type Lines = Vec<String>;

fn with(change: impl FnOnce(&mut Lines)) -> Vec<u8> {
    let mut lines = wire::request_lines(&wire::key());
    change(&mut lines);
    wire::request(&lines)
}

fn plus(line: &str) -> Vec<u8> {
    with(|lines| lines.push(line.into()))
}

/// Sends each request, expects its status, and that the server serves on.
fn expect_statuses(cases: Vec<(&str, Vec<u8>, u16)>) {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    for (what, request, expected) in cases {
        let (status, head) = wire::http(server.port, &request).unwrap_or_else(|| panic!("no answer: {what}"));
        assert_eq!(status, expected, "{what}: {head}");
        server.assert_serves(what);
    }
}

/// Case 1: a key that is missing, doubled or malformed.
#[test]
fn case_1_a_bad_key_is_400() {
    let key = |value: &str| {
        let value = format!("Sec-FastDP-Key: {value}");
        with(|lines| lines[4] = value)
    };
    expect_statuses(vec![
        ("no key", with(|lines| drop(lines.remove(4))), 400),
        ("two keys", plus("Sec-FastDP-Key: AAAAAAAAAAAAAAAAAAAAAA"), 400),
        ("empty key", key(""), 400),
        ("15 characters", key(&"a".repeat(15)), 400),
        ("129 characters", key(&"a".repeat(129)), 400),
        ("a space inside", key("aaaaaaaaaaaa aaaaaaaaaaaa"), 400),
        ("not ASCII", key("aaaaaaaaaaaa\u{e9}aaaaaaaaaaaa"), 400),
        ("a control character", key("aaaaaaaaaaaa\u{7f}aaaaaaaaaaaa"), 400),
    ]);
}

/// A key of the shortest and the longest length is fine, and versions 2.y.z are one.
#[test]
fn keys_at_the_limits_and_later_versions_are_taken() {
    expect_statuses(vec![
        ("16 characters", with(|lines| lines[4] = "Sec-FastDP-Key: abcdefghijklmnop".into()), 101),
        ("128 characters", with(|lines| lines[4] = format!("Sec-FastDP-Key: {}", "z".repeat(128))), 101),
        ("version 2.7.3", with(|lines| lines[5] = "Sec-FastDP-Version: 2.7.3".into()), 101),
        (
            "other cases and spaces",
            with(|lines| {
                lines[2] = "UPGRADE:   FastDP  ".into();
                lines[3] = "connection: keep-alive, upgrade".into();
            }),
            101,
        ),
    ]);
}

/// Case 2: an unknown version is 426, and the answer names the versions spoken.
#[test]
fn case_2_an_unknown_version_is_426() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    for version in ["9.9.9", "0.9.0", "20.0.0"] {
        let request = with(|lines| lines[5] = format!("Sec-FastDP-Version: {version}"));
        let (status, head) = wire::http(server.port, &request).unwrap();
        assert_eq!(status, 426, "{version}: {head}");
        let line = head.lines().find(|line| line.starts_with("sec-fastdp-version:"));
        assert!(line.is_some_and(|line| line.contains("2.0.0")), "{version}: {head}");
    }
    let request = with(|lines| {
        lines.drain(2..4);
    });
    let (status, head) = wire::http(server.port, &request).unwrap();
    assert_eq!(status, 426, "no upgrade asked for: {head}");
    server.assert_serves("unknown versions");
}

/// Case 4: lengths that contradict each other, and bodies.
#[test]
fn case_4_lengths_and_bodies_are_400() {
    let body = |lines: &[&str], body: &[u8]| {
        let head = with(|all| all.extend(lines.iter().map(|line| line.to_string())));
        [&head[..], body].concat()
    };
    expect_statuses(vec![
        ("two lengths", body(&["Content-Length: 5", "Content-Length: 6"], b"hello"), 400),
        ("the same length twice", body(&["Content-Length: 0", "Content-Length: 0"], b""), 400),
        (
            "length and encoding",
            body(&["Content-Length: 5", "Transfer-Encoding: chunked"], b"5\r\nhello\r\n0\r\n\r\n"),
            400,
        ),
        ("a body", body(&["Content-Length: 5"], b"hello"), 400),
        ("a body that has not come", body(&["Content-Length: 5"], b""), 400),
        ("a chunked body", body(&["Transfer-Encoding: chunked"], b"5\r\nhello\r\n0\r\n\r\n"), 400),
        ("a list of lengths", body(&["Content-Length: 5, 5"], b"hello"), 400),
        ("a negative length", body(&["Content-Length: -1"], b""), 400),
    ]);
}

/// Case 5: heads that some would read in another way.
#[test]
fn case_5_ambiguous_heads_are_400() {
    let text = |lines: &[u8]| String::from_utf8(lines.to_vec()).unwrap();
    let bare_lf = text(&with(|_| ())).replace("\r\n", "\n").into_bytes();
    let one_bare_lf =
        text(&with(|_| ())).replacen("Host: 127.0.0.1\r\n", "Host: 127.0.0.1\n", 1).into_bytes();
    expect_statuses(vec![
        ("bare LF everywhere", bare_lf, 400),
        ("one bare LF", one_bare_lf, 400),
        ("a folded field", plus("X-Folded: a\r\n b"), 400),
        ("a field folded with a tab", plus("X-Folded: a\r\n\tb"), 400),
        ("NUL in a value", plus("X-Nul: a\0b"), 400),
        ("NUL in a name", plus("X-N\0ul: ab"), 400),
        ("a space ahead of the colon", plus("X-Space : a"), 400),
        ("a line without a colon", plus("nonsense"), 400),
        ("a bare CR", plus("X-Cr: a\rb"), 400),
        ("no method", b"\r\n\r\n".to_vec(), 400),
    ]);
}

/// Case 6: bytes sent ahead of the answer.
#[test]
fn case_6_bytes_ahead_of_the_answer_are_400() {
    let ahead = [with(|_| ()), header(Offer::new().header_json().to_string().as_bytes())].concat();
    expect_statuses(vec![("a header", ahead, 400), ("one byte", [with(|_| ()), vec![0]].concat(), 400)]);
}

/// Case 7: a head that comes a byte every half second is ended by an absolute deadline. A deadline
/// that each byte put off would let it come to its end, and be answered with 101.
#[test]
fn case_7_a_slow_head_is_ended() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    let mut stream = Raw::bare(server.port);
    let mut writer = stream.try_clone().unwrap();
    let start = Instant::now();
    let drip = std::thread::spawn(move || {
        // The rate is what is tested here.
        for byte in with(|_| ()) {
            if writer.write_all(&[byte]).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    });
    let answer = wire::read_answer(&mut stream);
    // It was given some time.
    let took = start.elapsed();
    assert!(took > Duration::from_secs(5), "ended after {took:?}");
    assert!(answer.as_ref().is_none_or(|(status, _)| *status == 408), "{answer:?} after {took:?}");
    drop(stream);
    server.assert_serves("a slow head");
    drip.join().unwrap();
}

/// Case 8: too much head.
#[test]
fn case_8_too_much_head_is_431() {
    expect_statuses(vec![
        ("64 KiB of head", plus(&format!("X-Big: {}", "a".repeat(64 << 10))), 431),
        ("1,000 fields", with(|lines| lines.extend((0..1000).map(|n| format!("X-{n}: a")))), 431),
        ("65 fields", with(|lines| lines.extend((0..60).map(|n| format!("X-{n}: a")))), 431),
        (
            "17 KiB without an end",
            format!("GET /fastdp-endpoint HTTP/1.1\r\nX: {}", "a".repeat(17 << 10)).into(),
            431,
        ),
    ]);
}

/// Case 10: an upgrade to something else, another path, another method.
#[test]
fn case_10_an_upgrade_to_something_else_is_refused() {
    expect_statuses(vec![
        ("websocket", with(|lines| lines[2] = "Upgrade: websocket".into()), 400),
        ("h2c", with(|lines| lines[2] = "Upgrade: h2c".into()), 400),
        ("another path", with(|lines| lines[0] = "GET /other HTTP/1.1".into()), 404),
        ("a longer path", with(|lines| lines[0] = "GET /fastdp-endpoint/x HTTP/1.1".into()), 404),
        ("POST", with(|lines| lines[0] = "POST /fastdp-endpoint HTTP/1.1".into()), 405),
        ("DELETE", with(|lines| lines[0] = "DELETE /fastdp-endpoint HTTP/1.1".into()), 405),
    ]);
}

/// Rubbish from the first byte on ends the connection, with or without an answer.
#[test]
fn rubbish_ends_the_connection() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    for seed in 0..12 {
        let mut stream = Raw::bare(server.port);
        let _ = stream.write_all(&fill(40_000, seed));
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(!rest.starts_with(b"HTTP/1.1 101"));
    }
    server.assert_serves("rubbish");
}

/// Case 3: the key of a connection that is under way; free again when that has ended.
#[test]
fn case_3_the_key_of_a_live_connection_is_409() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    let key = wire::key();
    let first = Raw::connect_with_key(server.port, &key);
    let request = wire::request(&wire::request_lines(&key));
    for _ in 0..3 {
        assert_eq!(wire::http(server.port, &request).unwrap().0, 409);
    }
    server.assert_serves("a doubled key");
    drop(first);
    eventually("the key to be free", || (wire::http(server.port, &request)?.0 == 101).then_some(()));
}

/// Case 9: many connections that say nothing do not keep others out.
#[test]
fn case_9_idle_connections_keep_nobody_out() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    let idle: Vec<TcpStream> =
        (0..400).filter_map(|_| TcpStream::connect(("127.0.0.1", server.port)).ok()).collect();
    assert!(idle.len() > 300, "only {} connections", idle.len());
    server.assert_serves("idle connections");
    drop(idle);
    server.assert_serves("the end of idle connections");
}
