//! Bad input and bad luck: a clear error, the right exit code, nothing lost, and the server goes
//! on.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use serde_json::json;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use support::wire::{self, CHUNK, Offer, Raw, control, frame, header};
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

// ---- no peer, or a strange one

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

// ---- the upgrade, byte by byte

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

// ---- headers and OPEN

/// Sends a header and expects a refusal.
fn refused_header(server: &mut Server, code: u64, what: &str, bytes: &[u8]) {
    let mut raw = Raw::connect(server.port);
    raw.send(bytes);
    raw.expect_refusal(false, code, what);
    server.assert_serves(what);
}

/// Case 12: a length of 4 GiB, or just too long, is refused before anything is allocated for it.
#[test]
fn case_12_a_header_of_4_gib_is_refused() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    for length in [u32::MAX, 1 << 31, 65_537] {
        refused_header(&mut server, 413, &format!("length {length}"), &length.to_be_bytes());
    }
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    let kib: u64 = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib < 64 << 10, "{kib} KiB");
    // A header that ends early.
    let mut raw = Raw::connect(server.port);
    raw.send([&500_u32.to_be_bytes()[..], b"{\"OneChunk\":"].concat());
    raw.finish();
    assert_eq!(raw.refusal(false), None);
    server.assert_serves("half a header");
}

/// Cases 14 to 19: JSON that is not what it should be.
#[test]
fn cases_14_to_19_bad_json_headers_are_refused() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    let good = r#"{"OneChunk":262144,"FullChunk":1,"FullSize":4,"DPVersion":"2.0.0","CompressType":"None","FileName":"x"}"#;
    let replaced = |from: &str, to: &str| {
        assert!(good.contains(from));
        good.replacen(from, to, 1).into_bytes()
    };
    let with_field = |field: &str| replaced("{", &format!("{{{field},"));
    let nested = format!("\"Deep\":{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let objects = format!("\"Deep\":{}1{}", "{\"a\":".repeat(9_000), "}".repeat(9_000));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("case 14: arrays 10,000 deep", with_field(&nested)),
        ("case 14: objects 9,000 deep", with_field(&objects)),
        ("case 15: a key twice", with_field("\"FullSize\":4")),
        ("case 15: an unknown key twice", with_field("\"Other\":1,\"Other\":2")),
        ("case 15: a key twice, deeper", with_field("\"Other\":{\"a\":1,\"a\":1}")),
        ("case 15: a key twice, escaped", with_field("\"Full\\u0053ize\":4")),
        ("case 16: 1e400", replaced("\"FullSize\":4", "\"FullSize\":1e400")),
        ("case 16: an exponent", replaced("\"OneChunk\":262144", "\"OneChunk\":1e6")),
        ("case 16: -1", replaced("\"FullSize\":4", "\"FullSize\":-1")),
        ("case 16: -0", replaced("\"FullSize\":4", "\"FullSize\":-0")),
        ("case 16: 2^53+1", replaced("\"FullSize\":4", "\"FullSize\":9007199254740993")),
        ("case 16: 2^64", replaced("\"FullSize\":4", "\"FullSize\":18446744073709551616")),
        ("case 16: a float", replaced("\"FullChunk\":1", "\"FullChunk\":1.5")),
        ("case 16: a float that is whole", replaced("\"FullChunk\":1", "\"FullChunk\":1.0")),
        ("case 16: a string", replaced("\"FullChunk\":1", "\"FullChunk\":\"1\"")),
        ("case 16: null", replaced("\"FullChunk\":1", "\"FullChunk\":null")),
        ("case 17: a lone high surrogate", replaced("\"x\"", "\"\\ud800\"")),
        ("case 17: a lone low surrogate", replaced("\"x\"", "\"\\udc00\"")),
        ("case 17: invalid UTF-8", {
            let mut bytes = good.as_bytes().to_vec();
            let at = bytes.iter().rposition(|&byte| byte == b'x').unwrap();
            bytes[at] = 0xff;
            bytes
        }),
        ("case 19: OneChunk 0", replaced("262144", "0")),
        ("case 19: OneChunk 3", replaced("262144", "3")),
        ("case 19: OneChunk 512", replaced("262144", "512")),
        ("case 19: OneChunk 2^60", replaced("262144", "1152921504606846976")),
        ("case 19: OneChunk 2^25", replaced("262144", "33554432")),
        ("case 19: 2^52 chunks", replaced("\"FullChunk\":1", "\"FullChunk\":4503599627370496")),
        ("a field is missing", replaced("\"FullSize\":4,", "")),
        ("another version", replaced("\"2.0.0\"", "\"1.1.0\"")),
        ("an unknown compression", replaced("\"None\"", "\"Magic\"")),
        ("not an object", b"[1,2,3]".to_vec()),
        ("empty", Vec::new()),
        ("trailing bytes", [good.as_bytes(), b" {}"].concat()),
        ("half an object", good.as_bytes()[..40].to_vec()),
    ];
    for (what, json) in cases {
        assert!(json.len() <= 65_536, "{what}: this should be about the JSON, not its length");
        // All else is right, so that nothing but the header can be the reason.
        let mut bytes = header(&json);
        bytes.extend(Offer::new().file("x", 4).frames());
        let code = if what == "an unknown compression" { 415 } else { 400 };
        refused_header(&mut server, code, what, &bytes);
    }
    assert_eq!(names_in(served.path()), [] as [&str; 0]);
    // Unknown keys are no offence.
    let mut raw = Raw::connect(server.port);
    let fine = String::from_utf8(with_field("\"Other\":{\"a\":[1,2,{\"b\":null}]}")).unwrap();
    raw.send([header(fine.as_bytes()), Offer::new().file("x", 4).frames()].concat());
    raw.read_header();
    raw.wait_for(wire::NEED);
}

/// Cases 14 to 17 and 20 in OPEN.
#[test]
fn cases_14_to_20_bad_open_is_refused() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    let good = Offer::new().file("x", 4);
    let head = header(good.header_json().to_string().as_bytes());
    let text = good.open.to_string();
    let put = |field: &str| text.replacen('{', &format!("{{{field},"), 1);
    let swap = |key: &str, value: serde_json::Value| {
        let mut open = good.open.clone();
        open[key] = value;
        open.to_string()
    };
    let cases: Vec<(&str, String)> = vec![
        ("a key twice", put("\"Do\":\"put\"")),
        ("10,000 deep", put(&format!("\"D\":{}{}", "[".repeat(10_000), "]".repeat(10_000)))),
        ("an unknown verb", swap("Do", json!("destroy"))),
        ("an unknown checksum", swap("Checksum", json!("crc7"))),
        ("an unknown policy", swap("Existing", json!("shred"))),
        ("0 streams", swap("Streams", json!(0))),
        ("65 streams", swap("Streams", json!(65))),
        ("2^53+1 streams", text.replace("\"Streams\":1", "\"Streams\":9007199254740993")),
        ("-1 streams", swap("Streams", json!(-1))),
        ("a checkpoint of 0", swap("Checkpoint", json!(0))),
        ("a path that leaves", swap("Path", json!("../x"))),
        ("a path that leaves, encoded", swap("Path", json!("%2e%2e/x"))),
        ("an absolute path", swap("Path", json!("/etc"))),
        ("NUL in the path", swap("Path", json!("a%00b"))),
        ("our own folder", swap("Path", json!(".fastdrop/x"))),
        ("not JSON", "put".into()),
        ("empty", String::new()),
    ];
    for (what, open) in cases {
        let mut raw = Raw::connect(server.port);
        let manifest = good.frames().split_off(8 + text.len());
        raw.send([head.clone(), control(wire::OPEN, open.as_bytes()), manifest].concat());
        let code = if what.contains("path") || what == "our own folder" { 403 } else { 400 };
        raw.expect_refusal(false, code, what);
        server.assert_serves(what);
    }
    assert_eq!(names_in(served.path()), [] as [&str; 0]);
}

/// Frames that are none: unknown types, unknown encodings, lengths beyond any bound, no OPEN.
#[test]
fn strange_frames_are_refused() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    let head = header(Offer::new().header_json().to_string().as_bytes());
    let first = [
        ("an unknown control type", control(0x7e, b"")),
        ("a control frame of 4 GiB", [0x8000_0001_u32.to_be_bytes(), u32::MAX.to_be_bytes()].concat()),
        ("a control frame of 2 MiB", [0x8000_0001_u32.to_be_bytes(), (2_u32 << 20).to_be_bytes()].concat()),
        ("a chunk instead of OPEN", wire::chunk(0, b"data")),
        ("a frame number of 3 << 30", frame(0xc000_0000, b"")),
        ("a manifest instead of OPEN", control(wire::MANIFEST, b"")),
        ("GRANT from a client", control(wire::GRANT, b"{}")),
    ];
    for (what, bytes) in first {
        let mut raw = Raw::connect(server.port);
        raw.send([head.clone(), bytes].concat());
        raw.expect_refusal(false, 400, what);
        server.assert_serves(what);
    }
    let offer = Offer::new().file("data", 3 * CHUNK);
    let bytes = fill(CHUNK, 1);
    let later = [
        ("a second OPEN", control(wire::OPEN, offer.open.to_string().as_bytes())),
        ("a second manifest", control(wire::MANIFEST, b"")),
        ("an unknown control type", control(0x7e, b"")),
        ("an unknown encoding", frame(0x4000_0000, &[&[0x7f], &bytes[..], &wire::checksum(&bytes)].concat())),
        ("a chunk frame of 4 GiB", [0_u32.to_be_bytes(), u32::MAX.to_be_bytes()].concat()),
        ("a chunk without room for its checksum", frame(0, b"abc")),
        ("DONE from the sender", control(wire::DONE, b"{}")),
        ("CONFIRM from the sender", control(wire::CONFIRM, &0_u32.to_be_bytes())),
    ];
    for (what, bytes) in later {
        let mut raw = Raw::connect(server.port);
        raw.offer(&offer);
        raw.send(bytes);
        raw.expect_refusal(true, 400, what);
        server.assert_serves(what);
    }
    assert_eq!(names_in(served.path()), [] as [&str; 0]);
}

/// A receiver that breaks the protocol is told so, also where the server is the one that sends.
#[test]
fn strange_answers_of_a_get_are_refused() {
    let served = scratch();
    write_file(&served.path().join("data"), 3 * CHUNK, 1);
    let mut server = serve(served.path(), &[]);
    let need = |chunks: u32, bytes: u64| {
        control(wire::NEED, &[&chunks.to_be_bytes()[..], &bytes.to_be_bytes()].concat())
    };
    let numbers = |kind, number: u32| control(kind, &number.to_be_bytes());
    let right = need(3, 3 * CHUNK);
    let after = |frame: Vec<u8>| [right.clone(), frame].concat();
    let skip = [&1_u32.to_be_bytes()[..], &1_u32.to_be_bytes(), &[1]].concat();
    let held =
        |first: u32, checksums: &[u8]| control(wire::HELD, &[&first.to_be_bytes(), checksums].concat());
    let cases = [
        ("a need of something else", need(1, 5)),
        ("a second answer", after(right.clone())),
        ("an entry to skip that does not exist", control(wire::SKIP, &skip)),
        ("a held chunk that does not exist", held(3, &[0; 8])),
        ("half a checksum", held(0, &[0; 4])),
        ("held chunks after the answer", after(held(0, &[0; 8]))),
        ("a confirmation of what was not sent", numbers(wire::CONFIRM, 0)),
        ("a confirmation of what does not exist", after(numbers(wire::CONFIRM, 3))),
        ("a chunk asked for again that does not exist", after(numbers(wire::AGAIN, 3))),
        ("ABANDONED without ABANDON", after(numbers(wire::ABANDONED, 0))),
        ("COMPARE without the capability", control(wire::COMPARE, &[0; 12])),
        ("DONE before END", control(wire::DONE, br#"{"Files":1,"Bytes":1,"Durability":"commit"}"#)),
        ("END from the receiver", after(control(wire::END, &[0; 32]))),
    ];
    let head = header(Offer::new().header_json().to_string().as_bytes());
    let open = Offer::new().open("Do", "get").open("Path", "data").open;
    for (what, answer) in cases {
        let mut raw = Raw::connect(server.port);
        raw.send([&head[..], &control(wire::OPEN, open.to_string().as_bytes())].concat());
        raw.read_header();
        raw.wait_for(wire::MANIFEST_END);
        raw.send(answer);
        raw.expect_refusal(true, 400, what);
        server.assert_serves(what);
    }
}

/// Case 51 in small, and 20: sparse chunks whose extents lie.
#[test]
fn sparse_chunks_that_lie_are_refused() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    let offer = Offer::new().file("data", 2 * CHUNK);
    let sparse = |extents: &[(u32, u32)], count: u32, data: &[u8]| {
        let mut payload = vec![1];
        payload.extend(count.to_be_bytes());
        for (offset, length) in extents {
            payload.extend(offset.to_be_bytes());
            payload.extend(length.to_be_bytes());
        }
        payload.extend(data);
        payload.extend(wire::checksum(&vec![0; CHUNK as usize]));
        frame(0x4000_0000, &payload)
    };
    let chunk = CHUNK as u32;
    for (what, bytes) in [
        ("count of 2^32-1", sparse(&[], u32::MAX, b"")),
        ("count beyond what is there", sparse(&[(0, 4)], 2, b"abcd")),
        ("an extent beyond the chunk", sparse(&[(chunk - 2, 4)], 1, b"abcd")),
        ("an offset that overflows", sparse(&[(u32::MAX, 4)], 1, b"abcd")),
        ("extents that overlap", sparse(&[(0, 4), (2, 4)], 2, b"abcdefgh")),
        ("extents that touch", sparse(&[(0, 4), (4, 4)], 2, b"abcdefgh")),
        ("extents that go back", sparse(&[(100, 4), (0, 4)], 2, b"abcdefgh")),
        ("an empty extent", sparse(&[(0, 0)], 1, b"")),
        ("more data than extents", sparse(&[(0, 4)], 1, b"abcdefgh")),
        ("less data than extents", sparse(&[(0, 40)], 1, b"abcd")),
    ] {
        let mut raw = Raw::connect(server.port);
        raw.offer(&offer);
        raw.send(bytes);
        raw.expect_refusal(true, 400, what);
        server.assert_serves(what);
    }
    // And one that does not lie.
    let zeros = vec![0; CHUNK as usize];
    let mut raw = Raw::connect(server.port);
    let granted = raw.offer(&offer);
    raw.send(sparse(&[], 0, b""));
    let mut second = zeros.clone();
    second[1000..1004].copy_from_slice(b"abcd");
    let sum = wire::checksum(&second);
    let payload =
        [&[1, 0, 0, 0, 1][..], &1000_u32.to_be_bytes(), &4_u32.to_be_bytes(), b"abcd", &sum].concat();
    raw.send(frame(0x4000_0001, &payload));
    raw.wait_confirmed(&[0, 1]);
    raw.send(control(wire::END, &granted.root_digest(&[(0, wire::checksum(&zeros)), (1, sum)])));
    raw.wait_for(wire::DONE);
    assert!(fs::read(server.path("data")).unwrap() == [zeros, second].concat());
}

// ---- manifests

/// Offers and expects a refusal with 400 before anything is written.
#[track_caller]
fn refused_offer(server: &mut Server, what: &str, offer: &Offer) {
    let mut raw = Raw::connect(server.port);
    raw.send([header(offer.header_json().to_string().as_bytes()), offer.frames()].concat());
    raw.expect_refusal(false, 400, what);
    assert_eq!(names_in(&server.dir), [] as [&str; 0], "{what}: something was written");
    assert_eq!(leftovers(&server.dir), [] as [PathBuf; 0], "{what}: something was written");
}

/// Case 53: names that are none, and case 47: that lead elsewhere.
#[test]
fn case_53_names_that_are_none_are_refused() {
    let outer = scratch();
    let served = outer.path().join("served");
    fs::create_dir(&served).unwrap();
    let mut server = serve(&served, &[]);
    let absolute = outer.path().join("planted").into_os_string().into_encoded_bytes();
    let long = [b'x'; 256];
    let deep = "d/".repeat(2100) + "file";
    // One byte more than a client without the capability for long paths may send; and too deep, but
    // not too long.
    let long_path = [&("d".repeat(240) + "/").repeat(17)[..4096], "e"].concat();
    let too_deep = "d/".repeat(1024) + "f";
    let names: Vec<&[u8]> = vec![
        b"../planted",
        b"..",
        b".",
        b"",
        b"/",
        b"a/../../planted",
        b"a/..",
        b"a/./b",
        b"./a",
        b"a//b",
        b"a/",
        b"/planted",
        &absolute,
        b"a\0b",
        b"\0",
        &long,
        deep.as_bytes(),
        long_path.as_bytes(),
        too_deep.as_bytes(),
        b".fastdrop",
        b".fastdrop/x",
        b"a/.fastdrop",
        b"a/.fastdrop/journal",
    ];
    for name in names {
        let shown = String::from_utf8_lossy(&name[..name.len().min(60)]).into_owned();
        refused_offer(&mut server, &format!("file {shown:?}"), &Offer::new().file(name, 4));
        refused_offer(&mut server, &format!("folder {shown:?}"), &Offer::new().folder(name));
        refused_offer(&mut server, &format!("link {shown:?}"), &Offer::new().link(name, "target"));
        refused_offer(&mut server, &format!("late {shown:?}"), &Offer::new().file("#first", 4).file(name, 4));
    }
    server.assert_serves("names that are none");
    assert_eq!(names_in(outer.path()), ["served"]);
}

/// Cases 18, 48, 49, 52: manifests that contradict themselves.
#[test]
fn case_18_manifests_that_contradict_themselves_are_refused() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    let new = Offer::new;
    let mut setid = new().file("x", 4);
    setid = setid.raw(&[&[1, 0, 1, b'y'][..], &0o104_755_u32.to_be_bytes(), &[0; 20]].concat());
    for (what, offer) in [
        ("the same file twice", new().file("a", 4).file("a", 4)),
        ("the same folder twice", new().folder("a").folder("a")),
        ("a file and a folder of one name", new().file("a", 4).folder("a")),
        ("out of order", new().file("b", 4).file("a", 4)),
        ("out of order among components", new().folder("a").folder("a!").file("a/b", 4)),
        ("a file beneath a file", new().file("a", 4).file("a/b", 4)),
        ("a file beneath a link", new().folder("t").link("t/a", "b").file("t/a/b", 4)),
        ("a file far beneath a file", new().file("a", 4).file("a/b/c/d", 4)),
        ("an absolute link", new().folder("a").link("a/l", "/etc/passwd")),
        ("a link that leaves", new().folder("a").link("a/l", "../../b")),
        ("a topmost link that leaves", new().link("l", "../b")),
        ("a link that leaves and returns", new().folder("a").link("a/l", "../../a/b")),
        ("a deep link that leaves", new().folder("a").folder("a/b").link("a/b/l", "x/../../../y")),
        ("an empty link", new().folder("a").link("a/l", "")),
        ("a link with NUL", new().folder("a").link("a/l", "x\0y")),
        ("a link of 4,096 bytes", new().folder("a").link("a/l", "x".repeat(4096))),
        ("sizes that overflow", new().file("a", u64::MAX).file("b", u64::MAX)),
        ("a size of 2^63", new().file("a", 1 << 63)),
        ("an unknown kind", new().raw(&[9, 0, 1, b'a', 0, 0, 1, 0xa4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
        ("half an entry", new().raw(&[1, 0, 5, b'a'])),
        (
            "nanoseconds beyond a second",
            new().raw(&[&[2, 0, 1, b'a', 0, 0, 1, 0xed][..], &[0; 8], &[0xff; 4]].concat()),
        ),
        ("a set-id mode", setid),
    ] {
        refused_offer(&mut server, what, &offer);
    }
    server.assert_serves("contradictions");
}

/// Case 18: totals that are not those of the entries.
#[test]
fn case_18_wrong_totals_are_refused() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    let offer = Offer::new().file("a", 4).file("b", 3 * CHUNK);
    let (count, bytes, digest) = offer.totals();
    let mut attempts = vec![
        ("one entry more", offer.header_json(), offer.end_saying(count + 1, bytes, digest)),
        ("2^32-1 entries", offer.header_json(), offer.end_saying(u32::MAX, bytes, digest)),
        ("one entry less", offer.header_json(), offer.end_saying(count - 1, bytes, digest)),
        ("one byte more", offer.header_json(), offer.end_saying(count, bytes + 1, digest)),
        ("another digest", offer.header_json(), offer.end_saying(count, bytes, digest ^ 1)),
        ("a short end", offer.header_json(), vec![0; 7]),
    ];
    for (what, field, value) in [
        ("a chunk more in the header", "FullChunk", 5),
        ("no chunks in the header", "FullChunk", 0),
        ("a byte less in the header", "FullSize", bytes - 1),
    ] {
        let mut json = offer.header_json();
        json[field] = json!(value);
        attempts.push((what, json, offer.end()));
    }
    for (what, json, end) in attempts {
        let mut raw = Raw::connect(server.port);
        raw.send([header(json.to_string().as_bytes()), offer.frames_ending(&end)].concat());
        raw.expect_refusal(false, 400, what);
        assert_eq!(names_in(served.path()), [] as [&str; 0], "{what}");
    }
    server.assert_serves("wrong totals");
}

// ---- chunks

/// Three pieces of a file named `data`, and what a client needs to send them.
struct Three {
    raw: Raw,
    granted: wire::Granted,
    offer: Offer,
    pieces: [Vec<u8>; 3],
}

impl Three {
    fn offered(server: &Server) -> Self {
        let offer = Offer::new().file("data", 2 * CHUNK + 1000);
        let mut raw = Raw::connect(server.port);
        let granted = raw.offer(&offer);
        let pieces = [fill(CHUNK, 1), fill(CHUNK, 2), fill(1000, 3)];
        Self { raw, granted, offer, pieces }
    }

    fn send(&mut self, number: u32) {
        let piece = wire::chunk(number, &self.pieces[number as usize]);
        self.raw.send(piece);
    }

    fn end(&mut self) {
        let sums = [0, 1, 2].map(|n| (n, wire::checksum(&self.pieces[n as usize])));
        self.raw.send(control(wire::END, &self.granted.root_digest(&sums)));
    }

    #[track_caller]
    fn expect_done(&mut self, server: &Server) {
        self.end();
        let done = self.raw.wait_for(wire::DONE).json();
        assert_eq!(done["Files"], 1, "{done}");
        assert_eq!(done["Bytes"], 2 * CHUNK + 1000, "{done}");
        assert!(fs::read(server.path("data")).unwrap() == self.pieces.concat());
        fs::remove_file(server.path("data")).unwrap();
    }
}

/// The honest way works, so that what follows fails for its own reasons.
#[test]
fn an_honest_client_of_our_own_is_served() {
    let served = scratch();
    let server = serve(served.path(), &[]);
    let mut three = Three::offered(&server);
    assert_eq!((three.granted.chunks, three.granted.bytes), (3, 2 * CHUNK + 1000));
    for number in [2, 0, 1] {
        three.send(number);
    }
    three.raw.wait_confirmed(&[0, 1, 2]);
    assert!(!server.path("data").exists(), "not named before the end");
    three.expect_done(&server);

    // Small files in a pack, an empty one, a folder and a link.
    let slices = [fill(1000, 1), fill(70_000, 2), fill(1, 3)];
    let offer = Offer::new()
        .folder("tree")
        .file("tree/a", 1000)
        .file("tree/b", 0)
        .file("tree/c", 70_000)
        .file("tree/d", 1)
        .link("tree/l", "a");
    let mut raw = Raw::connect(server.port);
    let granted = raw.offer(&offer);
    let sum = wire::pack_checksum(&[&slices[0], &slices[1], &slices[2]]);
    raw.send(frame(0, &[&slices.concat()[..], &sum].concat()));
    raw.wait_confirmed(&[0]);
    raw.send(control(wire::END, &granted.root_digest(&[(0, sum)])));
    raw.wait_for(wire::DONE);
    assert_eq!(names_in(&server.path("tree")), ["a", "b", "c", "d", "l"]);
    assert!(fs::read(server.path("tree/c")).unwrap() == slices[1]);
    assert_eq!(fs::read_link(server.path("tree/l")).unwrap(), Path::new("a"));
    assert_eq!(leftovers(served.path()), [] as [PathBuf; 0]);
}

/// Case 21: an index beyond the count; cases 26, 27: another length than the table says.
#[test]
fn case_21_chunks_that_are_not_in_the_table_are_refused() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    let piece = fill(CHUNK, 1);
    for (what, bytes) in [
        ("case 21: number 3 of 3", wire::chunk(3, &piece)),
        ("case 21: number 2^30-1", wire::chunk((1 << 30) - 1, &piece)),
        ("case 26: a byte too short", wire::chunk(0, &piece[1..])),
        ("case 26: empty", wire::chunk(0, b"")),
        ("case 27: a byte too long", wire::chunk(0, &[&piece[..], b"x"].concat())),
        ("case 27: the last one as long as the others", wire::chunk(2, &piece)),
        ("case 27: 2 MiB", wire::chunk(0, &fill(2 * MIB, 1))),
    ] {
        let mut three = Three::offered(&server);
        three.raw.send(bytes);
        three.raw.expect_refusal(true, 400, what);
        server.assert_serves(what);
    }
    assert_eq!(names_in(served.path()), [] as [&str; 0]);
}

/// Case 25: a wrong checksum is asked for again, and the right one then counts.
#[test]
fn case_25_a_wrong_checksum_is_asked_for_again() {
    let served = scratch();
    let server = serve(served.path(), &[]);
    let mut three = Three::offered(&server);
    three.send(0);
    let mut wrong = three.pieces[1].clone();
    wrong[77] ^= 1;
    three.raw.send(frame(1, &[&wrong[..], &wire::checksum(&three.pieces[1])].concat()));
    assert_eq!(three.raw.wait_for(wire::AGAIN).numbers(), [1]);
    three.send(2);
    three.send(1);
    three.raw.wait_confirmed(&[1]);
    three.expect_done(&server);
}

/// Case 25: a peer that cannot get it right is sent away.
#[test]
fn case_25_many_wrong_checksums_are_422() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    let mut three = Three::offered(&server);
    for _ in 0..20 {
        let bad = frame(2, &[&three.pieces[2][..], &[0; 8]].concat());
        three.raw.send(bad);
    }
    three.raw.expect_refusal(true, 422, "20 wrong checksums");
    server.assert_serves("20 wrong checksums");
    assert_eq!(names_in(served.path()), [] as [&str; 0]);
}

/// Case 22: the same chunk again is confirmed again and counted once.
#[test]
fn case_22_the_same_chunk_twice_counts_once() {
    let served = scratch();
    let server = serve(served.path(), &[]);
    let mut three = Three::offered(&server);
    for _ in 0..3 {
        three.send(0);
        three.raw.wait_confirmed(&[0]);
    }
    three.send(1);
    three.send(2);
    three.raw.wait_confirmed(&[1, 2]);
    three.expect_done(&server);
}

/// Case 23: the same number with other bytes is a conflict, and the verified one stays.
#[test]
fn case_23_another_version_of_a_chunk_is_409() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    let mut three = Three::offered(&server);
    three.send(0);
    three.raw.wait_confirmed(&[0]);
    three.raw.send(wire::chunk(0, &fill(CHUNK, 666)));
    three.raw.expect_refusal(true, 409, "two versions");
    server.assert_serves("two versions of a chunk");
    assert_eq!(names_in(served.path()), [] as [&str; 0]);
    // From a sender that does not say which version of the file it has, nothing is continued.
    let mut again = Three::offered(&server);
    assert_eq!(again.granted.chunks, 3);
    (0..3).for_each(|chunk| again.send(chunk));
    again.expect_done(&server);
}

/// Case 24: one chunk on two streams at once has one writer.
#[test]
fn case_24_one_chunk_on_two_streams_has_one_writer() {
    let served = scratch();
    let server = serve(served.path(), &[]);
    let mut three = Three::offered(&server);
    let join = || Raw::join(server.port, &three.offer.header_json(), &three.granted.transfer);
    let (mut a, mut b) = (join(), join());
    for stream in [&mut a, &mut b] {
        stream.read_header();
        stream.wait_for(wire::GRANT);
    }
    let whole = wire::chunk(0, &three.pieces[0]);
    let (first, second) = whole.split_at(100_000);
    a.send(first);
    b.send(&whole);
    b.send(wire::chunk(1, &three.pieces[1]));
    b.wait_confirmed(&[1]);
    a.send(second);
    a.send(wire::chunk(2, &three.pieces[2]));
    a.wait_confirmed(&[2]);
    three.expect_done(&server);
}

/// Cases 26 and 28: missing chunks and a clean end are not success.
#[test]
fn case_26_missing_chunks_are_never_success() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    // Half a chunk, and the end of the connection.
    let mut three = Three::offered(&server);
    three.send(0);
    let half = wire::chunk(1, &three.pieces[1]);
    three.raw.send(&half[..half.len() / 2]);
    three.raw.finish();
    assert_eq!(three.raw.refusal(true), None);
    // Every second chunk, and END.
    let mut three = Three::offered(&server);
    three.send(0);
    three.send(2);
    three.end();
    three.raw.finish();
    assert_eq!(three.raw.refusal(true), None);
    assert!(!server.path("data").exists());
    server.assert_serves("missing chunks");
}

/// Case 30: all chunks right and another root digest: nothing gets a name.
#[test]
fn case_30_a_wrong_root_digest_names_nothing() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    let mut three = Three::offered(&server);
    for number in 0..3 {
        three.send(number);
    }
    three.raw.wait_confirmed(&[0, 1, 2]);
    three.raw.send(control(wire::END, &[7; 32]));
    three.raw.expect_refusal(true, 422, "a wrong root digest");
    assert_eq!(names_in(served.path()), [] as [&str; 0]);
    server.assert_serves("a wrong root digest");
    let mut three = Three::offered(&server);
    three.raw.send(control(wire::END, &[7; 5]));
    three.raw.expect_refusal(true, 400, "a root digest of five bytes");
    assert_eq!(names_in(served.path()), [] as [&str; 0]);
}

/// Case 38: a transfer that is unknown, and one that is over, are told apart by nobody.
#[test]
fn case_38_joining_an_unknown_transfer_is_404() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    let mut three = Three::offered(&server);
    for number in 0..3 {
        three.send(number);
    }
    three.expect_done(&server);
    let json = three.offer.header_json();
    let over = eventually("the transfer to be over", || {
        let mut raw = Raw::join(server.port, &json, &three.granted.transfer);
        raw.refusal(false)
    });
    let mut raw = Raw::join(server.port, &json, "0123456789abcdef0123456789abcdef");
    let unknown = raw.refusal(false).expect("a refusal");
    assert_eq!(unknown.0, 404);
    assert_eq!(unknown, over);
    for id in ["", "xyz", "0123456789abcdef0123456789abcde", "../../../../etc"] {
        Raw::join(server.port, &json, id).expect_refusal(false, 400, id);
    }
    server.assert_serves("unknown transfers");
}

/// Case 88: the folder goes away meanwhile: a clean end, and the server lives.
#[test]
fn case_88_a_folder_that_goes_away_is_a_clean_end() {
    let (outer, own) = (scratch(), scratch());
    let served = outer.path().join("served");
    fs::create_dir(&served).unwrap();
    let source = source_file(own.path(), 24 * MIB);
    let mut server = serve(&served, &[]);
    let proxy = Proxy::to(server.port);
    proxy.hold_at(8 * MIB);
    let run = fastdrop(args!["send", "--retries", "0", source, proxy.target("")]).json().start();
    proxy.wait_held();
    fs::remove_dir_all(&served).unwrap();
    proxy.resume();
    run.wait().expect(4);
    assert!(server.is_running());
    assert!(!served.join("file").exists());
}

// ---- disks

/// Case 83: full before it begins. When there is room, the same command completes.
#[test]
#[ignore = "needs root"]
fn case_83_disk_full_is_507_and_resumes() {
    let (disk, own) = (Mount::tmpfs("size=24m"), scratch());
    let source = source_file(own.path(), 12 * MIB);
    write_file(&disk.path().join("ballast"), 16 * MIB, 1);
    let mut server = serve(disk.path(), &[]);
    client(args!["send", source, server.target("")]).expect(8);
    assert_eq!(names_in(disk.path()), ["ballast"]);
    server.assert_serves("a full disk");
    fs::remove_file(disk.path().join("ballast")).unwrap();
    client(args!["send", source, server.target("")]).expect(0);
    assert_same_file(&source, &server.path("file"));
    assert_eq!(leftovers(disk.path()), [] as [PathBuf; 0]);
}

/// Case 83: it fills up while the transfer runs; what was confirmed is not sent again.
#[test]
#[ignore = "needs root"]
fn case_83_a_disk_that_fills_up_meanwhile_is_507_and_resumes() {
    for stream in [false, true] {
        let (disk, own) = (Mount::tmpfs("size=40m"), scratch());
        let source = source_file(own.path(), 24 * MIB);
        let server = serve(disk.path(), &[]);
        let proxy = Proxy::to(server.port);
        proxy.hold_at(6 * MIB);
        let run = if stream {
            // Of unknown size, so that nobody can have reserved the room.
            fastdrop(args!["send", "-", proxy.target("file")])
                .json()
                .stdin(fs::read(&source).unwrap())
                .start()
        } else {
            fastdrop(args!["send", source, proxy.target("")]).json().start()
        };
        proxy.wait_held();
        fill_up(&disk.path().join("ballast"));
        proxy.resume();
        run.wait().expect(8);
        assert!(!server.path("file").exists());
        fs::remove_file(disk.path().join("ballast")).unwrap();
        if !stream {
            let again = client(args!["send", source, server.target("")]).expect(0);
            assert!(again.number("bytes_sent") <= 24 * MIB, "{again}");
            assert_same_file(&source, &server.path("file"));
            assert_eq!(leftovers(disk.path()), [] as [PathBuf; 0]);
        }
    }
}

/// Case 83: no room for names. When there is, the same command completes.
#[test]
#[ignore = "needs root"]
fn case_83_no_inodes_left_resumes() {
    let (disk, own) = (Mount::tmpfs("size=40m,nr_inodes=100"), scratch());
    let tree = own.path().join("tree");
    small_tree(&tree, 2, 100, 1);
    let server = serve(disk.path(), &[]);
    client(args!["send", tree, server.target("")]).expect(8);
    if server.path("tree").exists() {
        assert_nothing_partial(&tree, &server.path("tree"));
    }
    disk.remount("nr_inodes=2000");
    client(args!["send", tree, server.target("")]).expect(0);
    assert_same_tree(&tree, &server.path("tree"));
}

/// Case 83, here: the disk of a `get` is full.
#[test]
#[ignore = "needs root"]
fn case_83_getting_onto_a_full_disk_is_exit_8_and_resumes() {
    let (disk, served) = (Mount::tmpfs("size=24m"), scratch());
    let source = source_file(served.path(), 12 * MIB);
    write_file(&disk.path().join("ballast"), 16 * MIB, 1);
    let server = serve(served.path(), &[]);
    client(args!["get", server.target("file"), disk.path()]).expect(8);
    assert_eq!(names_in(disk.path()), ["ballast"]);
    fs::remove_file(disk.path().join("ballast")).unwrap();
    client(args!["get", server.target("file"), disk.path()]).expect(0);
    assert_same_file(&source, &disk.path().join("file"));
    assert_eq!(leftovers(disk.path()), [] as [PathBuf; 0]);
}

/// Case 86: a read-only folder can be read from and says why it cannot be written to.
#[test]
#[ignore = "needs root"]
fn case_86_a_read_only_file_system_is_named() {
    let (folder, own) = (scratch(), scratch());
    write_file(&folder.path().join("there"), 2 * MIB, 1);
    let source = source_file(own.path(), 10);
    let mount = Mount::read_only(folder.path());
    let mut server = serve(mount.path(), &[]);
    let out = plain(args!["send", "--progress", "none", source, server.target("")]).expect(9);
    assert!(out.stderr.to_lowercase().contains("read-only"), "{out}");
    client(args!["get", server.target("there"), own.path()]).expect(0);
    assert_same_file(&folder.path().join("there"), &own.path().join("there"));
    assert!(server.is_running());

    // And here.
    let out = plain(args!["get", "--progress", "none", server.target("there"), mount.path().join("copy")]);
    let out = out.expect(9);
    assert!(out.stderr.to_lowercase().contains("read-only"), "{out}");
}

/// Case 86 (EFBIG) and 91 (SIGXFSZ): a limit on the size of files is an error, not the server's
/// death.
#[test]
fn case_86_a_file_size_limit_is_an_error_not_death() {
    let (served, own) = (scratch(), scratch());
    let source = source_file(own.path(), 24 * MIB);
    let limit = (4 * MIB).to_string();
    let mut server = serve_through(served.path(), &[], args!["prlimit", format!("--fsize={limit}:{limit}")]);
    client(args!["send", "--retries", "0", source, server.target("")]).expect(8);
    fastdrop(args!["send", "--retries", "0", "-", server.target("piped")])
        .stdin(fill(24 * MIB, 1))
        .run()
        .expect(8);
    assert_eq!(names_in(served.path()), [] as [&str; 0]);
    server.assert_serves("a file size limit");
}

/// Case 86 (EMFILE): out of descriptors, the accept loop lives on.
#[test]
fn case_86_no_descriptors_left_is_survived() {
    let served = scratch();
    let mut server = serve_through(served.path(), &[], args!["prlimit", "--nofile=48:48"]);
    let idle: Vec<TcpStream> =
        (0..100).filter_map(|_| TcpStream::connect(("127.0.0.1", server.port)).ok()).collect();
    // Some of these make it beyond what the server has descriptors for.
    assert!(idle.len() > 60);
    for mut stream in &idle {
        let _ = stream.write_all(b"GET ");
    }
    drop(idle);
    server.assert_serves("no descriptors");
}

fn strace(log: &Path, inject: &str) -> Vec<std::ffi::OsString> {
    let calls = inject.split(':').next().unwrap();
    let (trace, inject) = (format!("trace={calls}"), format!("inject={inject}"));
    args!["strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o", log, "-e", trace, "-e", inject]
}

/// A transfer of NextDP whose disk is slow holds up neither another request of its address nor who
/// comes to the port.
#[test]
#[ignore = "needs strace"]
fn a_slow_disk_of_a_nextdp_transfer_holds_up_nobody_else() {
    let (served, own) = (scratch(), scratch());
    let log = own.path().join("strace.log");
    let server = serve_through(served.path(), &[], strace(&log, "pwrite64:delay_enter=8000000"));
    let request = |head: &str| {
        let mut stream = wire::Raw::bare(server.port);
        stream.write_all(head.as_bytes()).unwrap();
        stream
    };
    let began = Instant::now();
    let _spooling = request(
        "POST /upload?chunk_number=1 HTTP/1.1\r\nHost: x\r\nX-Transfer-Id: T\r\nContent-Length: 1\r\n\r\nx",
    );
    eventually("the chunk is written", || {
        fs::read_to_string(&log).ok().filter(|log| log.contains("pwrite64"))
    });
    let _second = request(
        "POST /upload?chunk_number=0 HTTP/1.1\r\nHost: x\r\nX-Transfer-Id: T\r\nX-Filename: f\r\nX-Total-Chunks: 2\r\n\
         Content-Length: 1\r\n\r\nx",
    );
    // By then the server has read the second request, or nobody would be answered either.
    for _ in 0..3 {
        let mut other = request("GET /zz HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(wire::read_answer(&mut other).is_some());
    }
    assert!(began.elapsed() < Duration::from_secs(8), "they waited for the disk: {:?}", began.elapsed());
}

/// Case 84: a sync that fails poisons the attempt, even if the next one works: no success, no name.
#[test]
#[ignore = "needs strace"]
fn case_84_a_failed_sync_is_never_success() {
    for when in ["1", "1+"] {
        let (served, own) = (scratch(), scratch());
        let log = own.path().join("strace.log");
        let inject = format!("fsync,fdatasync,syncfs:error=EIO:when={when}");
        let wrapper = strace(&log, &inject);
        let source = source_file(own.path(), 3 * MIB);
        let mut server = serve_through(served.path(), &[], wrapper);
        client(args!["send", "--retries", "0", source, server.target("")]).expect(1);
        assert!(
            fs::read_to_string(&log).unwrap().contains("INJECTED"),
            "no sync failed: this tested nothing"
        );
        assert!(!server.path("file").exists(), "named although the sync failed");
        assert!(server.is_running());
        // With nothing in the way the same command completes.
        server.kill9();
        let server = serve(served.path(), &[]);
        client(args!["send", source, server.target("")]).expect(0);
        assert_same_file(&source, &server.path("file"));
    }
}

/// Case 84, here: the receiver is the client.
#[test]
#[ignore = "needs strace"]
fn case_84_a_failed_sync_of_the_client_is_never_success() {
    let (served, own) = (scratch(), scratch());
    let log = own.path().join("strace.log");
    let wrapper = strace(&log, "fsync,fdatasync,syncfs:error=EIO:when=1");
    let source = source_file(served.path(), 3 * MIB);
    let server = serve(served.path(), &[]);
    let here = own.path().join("copy");
    fastdrop(args!["get", "--retries", "0", server.target("file"), here]).wrapper(wrapper).run().expect(1);
    assert!(fs::read_to_string(&log).unwrap().contains("INJECTED"), "no sync failed: this tested nothing");
    assert!(!here.exists());
    client(args!["get", server.target("file"), here]).expect(0);
    assert_same_file(&source, &here);
}

/// Case 84: a write that fails is an error, and nothing gets a name.
#[test]
#[ignore = "needs strace"]
fn case_84_a_failed_write_is_an_error() {
    let (served, own) = (scratch(), scratch());
    let log = own.path().join("strace.log");
    let wrapper = strace(&log, "pwrite64,pwritev,pwritev2:error=EIO:when=1+");
    let source = source_file(own.path(), 3 * MIB);
    let mut server = serve_through(served.path(), &[], wrapper);
    client(args!["send", "--retries", "0", source, server.target("")]).expect(1);
    assert!(fs::read_to_string(&log).unwrap().contains("INJECTED"), "no write failed: this tested nothing");
    assert!(!server.path("file").exists());
    client(args!["list", server.target("")]).expect(0);
    assert!(server.is_running());
}

/// Case 85: interrupted writes are completed.
#[test]
#[ignore = "needs strace"]
fn case_85_interrupted_calls_are_repeated() {
    let (served, own) = (scratch(), scratch());
    let log = own.path().join("strace.log");
    let inject = "pwrite64,pwritev,pwritev2,ftruncate,fallocate:error=EINTR:when=2";
    let wrapper = strace(&log, inject);
    let tree = own.path().join("tree");
    write_file(&tree.join("big"), 5 * MIB, 1);
    small_tree(&tree.join("small"), 1, 10, 1);
    let server = serve_through(served.path(), &[], wrapper);
    client(args!["send", tree, server.target("")]).expect(0);
    assert!(
        fs::read_to_string(&log).unwrap().contains("INJECTED"),
        "nothing was interrupted: this tested nothing"
    );
    assert_same_tree(&tree, &server.path("tree"));
}

// ---- sources

/// A source that is not there is said before anybody is asked.
#[test]
fn a_missing_source_is_exit_4() {
    let (served, own) = (scratch(), scratch());
    let server = serve(served.path(), &[]);
    let proxy = Proxy::to(server.port);
    let out =
        plain(args!["send", "--progress", "none", own.path().join("not-there"), proxy.target("")]).expect(4);
    assert_one_line(&out);
    assert!(out.stderr.contains("not-there"), "{out}");
    assert_eq!(proxy.up(), 0, "nothing is said to the server");
}

/// Case 49: pipes and sockets among the sources are left out with a warning, counted, and never
/// block.
#[test]
fn case_49_what_is_no_file_is_left_out_with_a_warning() {
    let (served, own) = (scratch(), scratch());
    let tree = own.path().join("tree");
    write_file(&tree.join("file"), 100, 1);
    tool("mkfifo", args![tree.join("a-pipe")]);
    let _socket = std::os::unix::net::UnixListener::bind(tree.join("a-socket")).unwrap();
    let server = serve(served.path(), &[]);
    let out = client(args!["send", tree, server.target("")]).expect(3);
    assert_eq!(out.number("files_skipped") + out.number("files_failed"), 2, "{out}");
    assert!(out.stderr.contains("a-pipe") && out.stderr.contains("a-socket"), "both are named\n{out}");
    assert_eq!(names_in(&server.path("tree")), ["file"]);
    // The server leaves them out, too.
    let here = own.path().join("back");
    let second = serve(&tree, &[]);
    client(args!["get", second.target(""), here]).expect(3);
    assert_eq!(names_in(&here), ["file"]);
}

/// Case 29: a source that shrinks, grows or changes while it is sent: "source changed", and nothing
/// gets the name.
#[test]
fn case_29_a_source_that_changes_meanwhile_is_not_mixed() {
    let (served, own) = (scratch(), scratch());
    let server = serve(served.path(), &[]);
    type Change = fn(&Path);
    let changes: [(&str, Change); 4] = [
        ("shrinks", |path| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(40 * MIB).unwrap()),
        ("grows", |path| fs::OpenOptions::new().append(true).open(path).unwrap().write_all(b"more").unwrap()),
        ("changes", |path| write_file(path, 64 * MIB, 4711)),
        ("becomes empty", |path| drop(fs::File::create(path).unwrap())),
    ];
    for (what, change) in changes {
        let source = own.path().join(format!("file-{what}"));
        write_file(&source, 64 * MIB, 1);
        set_mtime(&source, 1_500_000_000, 0);
        let proxy = Proxy::to(server.port);
        proxy.hold_at(4 * MIB);
        let run = fastdrop(args!["send", "--streams", "1", "--retries", "1", source, proxy.target("")])
            .json()
            .start();
        proxy.wait_held();
        change(&source);
        proxy.resume();
        let out = run.wait().expect(1);
        assert!(out.stderr.contains("changed"), "{what}\n{out}");
        assert!(!server.path(format!("file-{what}")).exists(), "{what}: a mixture has got the name");
        fs::remove_file(&source).unwrap();
    }
}

/// Case 29: one file of many changes; the others arrive, the one is named.
#[test]
fn case_29_one_changed_file_of_many_fails_alone() {
    let (served, own) = (scratch(), scratch());
    let tree = own.path().join("tree");
    write_file(&tree.join("a-steady"), 3 * MIB, 1);
    write_file(&tree.join("b-changing"), 64 * MIB, 2);
    write_file(&tree.join("c-steady"), 3 * MIB, 3);
    let server = serve(served.path(), &[]);
    let proxy = Proxy::to(server.port);
    proxy.hold_at(8 * MIB);
    let run =
        fastdrop(args!["send", "--streams", "1", "--retries", "0", tree, proxy.target("")]).json().start();
    proxy.wait_held();
    fs::OpenOptions::new().write(true).open(tree.join("b-changing")).unwrap().set_len(30 * MIB).unwrap();
    proxy.resume();
    let out = run.wait().expect(3);
    assert_eq!(out.number("files_failed"), 1, "{out}");
    assert!(out.stderr.contains("b-changing"), "{out}");
    assert_eq!(names_in(&server.path("tree")), ["a-steady", "c-steady"]);
    for name in ["a-steady", "c-steady"] {
        assert_same_file(&tree.join(name), &server.path("tree").join(name));
    }
}

// ---- policies

/// `--write-only` takes and does not show.
#[test]
fn write_only_refuses_get_and_list() {
    let (served, own) = (scratch(), scratch());
    write_file(&served.path().join("there"), 100, 1);
    let source = source_file(own.path(), 1000);
    let server = serve(served.path(), &["--write-only"]);
    client(args!["send", source, server.target("")]).expect(0);
    client(args!["get", server.target("there"), own.path()]).expect(9);
    client(args!["list", server.target("")]).expect(9);
    assert_eq!(names_in(own.path()), ["file"]);
    // Nor does it tell what is there.
    client(args!["get", server.target("not-there"), own.path()]).expect(9);
}

/// `--read-only` shows and does not take.
#[test]
fn read_only_refuses_send() {
    let (served, own) = (scratch(), scratch());
    write_file(&served.path().join("there"), 100, 1);
    let source = source_file(own.path(), 4 * MIB);
    let server = serve(served.path(), &["--read-only"]);
    let proxy = Proxy::to(server.port);
    client(args!["send", source, proxy.target("")]).expect(9);
    assert!(proxy.up() < 100_000, "refused before anything is sent");
    fastdrop(args!["send", "-", server.target("piped")]).stdin("text").run().expect(9);
    client(args!["get", server.target("there"), own.path()]).expect(0);
    client(args!["list", server.target("")]).expect(0);
    assert_eq!(names_in(served.path()), ["there"]);
    assert_eq!(leftovers(served.path()), [] as [PathBuf; 0]);
}

/// `--max-size` holds, also for what does not say its size.
#[test]
fn max_size_is_refused_before_anything_is_sent() {
    let (served, own) = (scratch(), scratch());
    let source = source_file(own.path(), 4 * MIB);
    let mut server = serve(served.path(), &["--max-size", "1M"]);
    let proxy = Proxy::to(server.port);
    client(args!["send", source, proxy.target("")]).expect(9);
    assert!(proxy.up() < 100_000, "refused before anything is sent");
    let piped =
        fastdrop(args!["send", "--retries", "0", "-", server.target("piped")]).stdin(fill(4 * MIB, 1)).run();
    piped.expect(9);
    assert_eq!(names_in(served.path()), [] as [&str; 0]);
    server.assert_serves("something too big");
}

/// `--min-free` keeps room on the disk.
#[test]
#[ignore = "needs root"]
fn min_free_is_kept() {
    let (disk, own) = (Mount::tmpfs("size=32m"), scratch());
    let source = source_file(own.path(), 12 * MIB);
    let mut server = serve(disk.path(), &["--min-free", "24M"]);
    let proxy = Proxy::to(server.port);
    client(args!["send", source, proxy.target("")]).expect(8);
    assert!(proxy.up() < 100_000, "refused before anything is sent");
    assert_eq!(names_in(disk.path()), [] as [&str; 0]);
    server.assert_serves("too little room");
}

// ---- crowds

/// Fifty clients at once, each with a file of its own.
#[test]
fn fifty_clients_at_once_are_all_served() {
    let (served, own) = (scratch(), scratch());
    let server = serve(served.path(), &[]);
    let sources: Vec<PathBuf> = (0..50).map(|n| own.path().join(format!("file-{n}"))).collect();
    for (n, source) in sources.iter().enumerate() {
        write_file(source, MIB + n as u64, n as u64);
    }
    let runs: Vec<Running> = sources
        .iter()
        .map(|source| fastdrop(args!["send", source, server.target("")]).json().start())
        .collect();
    for run in runs {
        run.wait().expect(0);
    }
    assert_same_contents(own.path(), served.path());
    assert_eq!(leftovers(served.path()), [] as [PathBuf; 0]);
}

/// Case 31: eight clients, one name, eight contents: one wins, the others are told, and it is the
/// winner's, whole.
#[test]
fn case_31_one_of_many_clients_wins_a_name() {
    let (served, own) = (scratch(), scratch());
    let server = serve(served.path(), &[]);
    for round in 0..3 {
        let name = format!("contested-{round}");
        let sources: Vec<PathBuf> = (0..8).map(|n| own.path().join(format!("{n}/{name}"))).collect();
        for (n, source) in sources.iter().enumerate() {
            write_file(source, 4 * MIB, 100 * round + n as u64);
            set_mtime(source, 1_000_000_000 + n as i64, 0);
        }
        let runs: Vec<Running> = sources
            .iter()
            .map(|source| fastdrop(args!["send", source, server.target("")]).json().start())
            .collect();
        let outs: Vec<Output> = runs.into_iter().map(|run| run.wait()).collect();
        let (winners, losers): (Vec<usize>, Vec<usize>) = (0..8).partition(|&n| outs[n].code() == 0);
        assert_eq!(winners.len(), 1, "{winners:?} have been told that theirs is there");
        losers.iter().for_each(|&n| assert_eq!(outs[n].code(), 9, "{}", outs[n]));
        assert_same_file(&sources[winners[0]], &server.path(&name));
    }
}

/// Case 97: a reader that stops reading costs the server no memory and keeps nobody out.
#[test]
fn case_97_a_reader_that_stops_costs_little() {
    let (served, own) = (scratch(), scratch());
    write_file(&served.path().join("big"), 200 * MIB, 1);
    let mut server = serve(served.path(), &[]);
    let proxy = Proxy::to(server.port);
    proxy.hold_at(10 * MIB);
    let runs: Vec<Running> = (0..3)
        .map(|n| {
            fastdrop(args!["get", "--streams", "2", proxy.target("big"), own.path().join(n.to_string())])
                .start()
        })
        .collect();
    proxy.wait_held();
    server.assert_serves("readers that stopped");
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    let mib = peak.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10;
    assert!(mib < 150, "{mib} MiB for readers that do not read");
    drop(runs);
}
