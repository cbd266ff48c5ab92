//! NextDP.

use crate::support::*;
use crate::{SIZES, assert_arrives, assert_clean, assert_same_bytes, send, source, text};
use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::path::Path;

pub(crate) fn send_nextdp(server: &Server, file: &Path, extra: &[&str]) -> String {
    start_nextdp(server, file, extra).finish()
}

pub(crate) fn start_nextdp(server: &Server, file: &Path, extra: &[&str]) -> Peer {
    let extra: Vec<_> = extra.iter().map(OsString::from).collect();
    let arguments = [args!["send", server.port.to_string(), file], extra.clone()].concat();
    if extra.iter().any(|argument| argument == "zstd") {
        return Peer::start_zstd("nextdp.py", arguments);
    }
    Peer::start("nextdp.py", arguments)
}

#[test]
fn cases_22_28_and_32_nextdp_files_arrive_from_a_peer_in_any_order() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    for size in SIZES {
        let (_own, file) = source(size);
        for (order, threads) in [("in-order", "1"), ("reversed", "1"), ("shuffled", "4")] {
            let name = format!("ü {order}-{size}");
            let args = ["--name", &name, "--chunk", "65536", "--order", order, "--threads", threads];
            assert_eq!(send_nextdp(&server, &file, &args), "done", "{name}");
            assert_arrives(&server, &name, &file);
        }
    }
}

#[test]
fn nextdp_chunks_are_decoded_as_the_switch_says() {
    for switch in [&["--nextdp-gzip"][..], &["--nextdp-compression", "gzip"]] {
        let dir = scratch();
        let server = serve(dir.path(), switch);
        nextdp_from_a_compressing_peer(&server, "gzip");
    }
    let dir = scratch();
    let arguments = args!["serve", "--nextdp-gzip", "--nextdp-compression", "zstd", dir.path()];
    plain(arguments).expect(2);
}

#[test]
#[ignore = "needs the Python package zstandard"]
fn nextdp_chunks_are_decoded_as_the_switch_says_with_zstandard() {
    let dir = scratch();
    let server = serve(dir.path(), &["--nextdp-compression", "zstd"]);
    nextdp_from_a_compressing_peer(&server, "zstd");
}

fn nextdp_from_a_compressing_peer(server: &Server, how: &str) {
    for size in SIZES {
        for (kind, (_own, file)) in [("random", source(size)), ("text", text(size as usize))] {
            let name = format!("{kind}-{size}");
            let args = ["--name", &name, "--compress", how, "--threads", "3"];
            assert_eq!(send_nextdp(server, &file, &args), "done", "{name}");
            assert_arrives(server, &name, &file);
        }
    }
    let (_own, file) = source(100);
    let answer = send_nextdp(server, &file, &["--name", "plain"]);
    assert!(answer.starts_with("400 ") && answer.contains("--nextdp-compression"), "{answer}");
    // Nobody has to wait because of it.
    assert_eq!(send_nextdp(server, &file, &["--name", "next", "--compress", how]), "done");
    assert_arrives(server, "next", &file);
}

#[test]
fn nextdp_goes_to_a_peer() {
    nextdp_to_a_peer("none");
    nextdp_to_a_peer("gzip");
}

#[test]
#[ignore = "needs the Python package zstandard"]
fn nextdp_goes_to_a_peer_with_zstandard() {
    nextdp_to_a_peer("zstd");
}

fn nextdp_to_a_peer(how: &str) {
    for size in SIZES {
        for (name, (_own, file)) in [("source.bin", source(size)), ("source.txt", text(size as usize))] {
            let there = scratch();
            let receive = args!["receive", there.path()];
            let mut peer = match how {
                "none" => Peer::start("nextdp.py", receive),
                "gzip" => Peer::start("nextdp.py", [receive, args!["--compress", how]].concat()),
                _ => Peer::start_zstd("nextdp.py", [receive, args!["--compress", how]].concat()),
            };
            let port = peer.port();
            send("nextdp", &file, port, &["--compress", how])
                .expect(0)
                .expect_summary(&[("files", 1), ("bytes", size)]);
            assert_eq!(peer.finish(), name);
            assert_same_bytes(&file, &there.path().join(name));
        }
    }
}

#[test]
fn nextdp_goes_from_our_client_to_our_server_with_each_compression() {
    for how in ["none", "gzip", "zstd"] {
        let dir = scratch();
        let server = serve(dir.path(), &["--nextdp-compression", how]);
        let (_own, file) = source(20_000_000);
        send("nextdp", &file, server.port, &["--compress", how]).expect(0);
        assert_arrives(&server, "source.bin", &file);
    }
    // Neither end guesses.
    let dir = scratch();
    let server = serve(dir.path(), &["--nextdp-compression", "gzip"]);
    let (_own, file) = source(3_000_000);
    let refused = send("nextdp", &file, server.port, &["--compress", "zstd"]).expect(1);
    assert!(refused.stderr.contains("--nextdp-compression"), "{refused}");
    assert_clean(&server);
}

/// A plain server that is sent Zstandard says so, where that cannot be a file of frames; everything
/// else is stored as it is.
#[test]
fn nextdp_a_plain_server_refuses_what_cannot_be_plain_and_stores_the_rest() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let (_own, file) = text(3_000_000);
    let refused = send("nextdp", &file, server.port, &["--compress", "zstd"]).expect(1);
    assert!(refused.stderr.contains("--nextdp-compression zstd"), "{refused}");
    assert_clean(&server);
    assert_eq!(names_in(dir.path()), Vec::<String>::new());
    // Files that are compressed themselves.
    let own = scratch();
    let frame = zstd::bulk::compress(&std::fs::read(&file).unwrap()[..1 << 20], 1).unwrap();
    for (name, content) in [("one.zst", frame.clone()), ("many.zst", frame.repeat(100_000))] {
        let content = &content[..content.len().min(3 << 20)];
        std::fs::write(own.path().join(name), content).unwrap();
        assert_eq!(send_nextdp(&server, &own.path().join(name), &[]), "done", "{name}");
        assert_arrives(&server, name, &own.path().join(name));
    }
}

/// The program of version 2 itself: its chunk 0 decides, and nothing of it stays.
#[test]
#[ignore = "needs the Python package zstandard"]
fn nextdp_a_plain_server_refuses_a_peer_that_sends_zstandard() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let (_own, file) = text(3_000_000);
    let said = send_nextdp(&server, &file, &["--compress", "zstd"]);
    let first = said.lines().next().unwrap();
    assert!(first.starts_with("400 ") && first.contains("--nextdp-compression zstd"), "{said}");
    assert_clean(&server);
    assert_eq!(names_in(dir.path()), Vec::<String>::new());
}

/// Names that are told apart only by how they are encoded.
const NAMES: [&str; 8] =
    ["ü.txt", "%C3%BC.txt", "100%", "a%20b", "a b", "日本語/ключ", "semi;colon: \"quoted\"", "%2e%2e"];

#[test]
fn nextdp_names_are_raw_utf_8_in_both_directions() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let there = scratch();
    for (at, name) in NAMES.iter().enumerate() {
        let (_own, file) = source(at as u64 + 1);
        assert_eq!(send_nextdp(&server, &file, &["--name", name]), "done", "{name}");
        assert_arrives(&server, name, &file);
        let mut peer = Peer::start("nextdp.py", args!["receive", there.path()]);
        let target = format!("127.0.0.1:{}/{}", peer.port(), name.replace('%', "%25"));
        client(args!["send", "--protocol", "nextdp", file, format!("http://{target}")]).expect(0);
        assert_eq!(peer.finish(), *name);
    }
}

#[test]
fn nextdp_names_that_a_header_cannot_carry_are_refused_before_anything_is_sent() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    nobody.set_nonblocking(true).unwrap();
    let own = scratch();
    for name in [" a", "a ", "a\tb", "a\nX-Total-Chunks: 9", "\u{7f}", "\u{1}"] {
        let file = own.path().join(name);
        std::fs::write(&file, "content").unwrap();
        let out = send("nextdp", &file, nobody.local_addr().unwrap().port(), &[]);
        // As of every other protocol's names.
        assert_eq!(out.code(), 1, "{name:?}: {out}");
        assert!(out.stderr.contains("NextDP cannot carry this name"), "{name:?}: {out}");
        assert!(nobody.accept().is_err(), "{name:?}");
    }
}

#[test]
fn nextdp_a_second_transfer_of_an_address_is_409_unless_it_has_an_id() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let (_own, file) = source(3_000_000);
    // One chunk is missing: it stays under way.
    assert_eq!(send_nextdp(&server, &file, &["--skip", "1"]), "done");
    let (_other, second) = source(500_000);
    let answer = send_nextdp(&server, &second, &["--name", "second"]);
    assert!(answer.starts_with("409 "), "{answer}");
    assert_eq!(send_nextdp(&server, &second, &["--name", "second", "--id", "another"]), "done");
    assert_arrives_beside(&server, "second", &second);
    send("nextdp", &second, server.port, &[]).expect(0);
    assert_arrives_beside(&server, "source.bin", &second);
}

/// As [`assert_arrives`], while something else is unfinished.
fn assert_arrives_beside(server: &Server, name: &str, source: &Path) {
    eventually(name, || server.path(name).exists().then_some(()));
    assert_same_bytes(source, &server.path(name));
}

#[test]
fn cases_16_21_27_and_47_nextdp_that_lies_is_refused_in_http() {
    let dir = scratch();
    let mut server = serve(dir.path(), &[]);
    let post = |query: &str, fields: &str, body: &str| {
        let length = body.len();
        let head = format!(
            "POST /upload{query} HTTP/1.1\r\nHost: x\r\n{fields}Content-Length: {length}\r\n\r\n{body}"
        );
        wire::http(server.port, head.as_bytes()).map(|(status, _)| status)
    };
    let first = "X-Filename: x\r\nX-Total-Chunks: 2\r\n";
    for (what, query, fields, body, status) in [
        ("no number", "", first, "x", 400),
        ("a negative number", "?chunk_number=-1", first, "x", 400),
        (
            "a name that leads outside",
            "?chunk_number=0",
            "X-Filename: ../x\r\nX-Total-Chunks: 1\r\n",
            "x",
            403,
        ),
        (
            "a name that leads outside further down",
            "?chunk_number=0",
            "X-Filename: a/../../x\r\nX-Total-Chunks: 1\r\n",
            "x",
            403,
        ),
        ("no chunks", "?chunk_number=0", "X-Filename: x\r\nX-Total-Chunks: 0\r\n", "x", 400),
        ("no name", "?chunk_number=0", "X-Total-Chunks: 1\r\n", "x", 400),
        ("two names", "?chunk_number=0", "X-Filename: x\r\nX-Filename: y\r\nX-Total-Chunks: 1\r\n", "x", 400),
    ] {
        assert_eq!(post(query, fields, body), Some(status), "{what}");
    }
    let huge = "POST /upload?chunk_number=1 HTTP/1.1\r\nHost: x\r\nX-Transfer-Id: huge\r\nContent-Length: 99999999999\r\n\r\n";
    assert_eq!(wire::http(server.port, huge.as_bytes()).map(|(status, _)| status), Some(413));
    for (id, chunks) in [
        ("longer", &[(0, "ab", 200), (1, "abc", 409), (1, "ab", 409)][..]),
        ("beyond", &[(0, "ab", 200), (2, "ab", 409), (1, "ab", 409)]),
        ("early and beyond", &[(7, "ab", 200), (0, "ab", 409), (1, "ab", 409)]),
        ("early and longer", &[(1, "abc", 200), (0, "ab", 409)]),
        ("other bytes", &[(0, "ab", 200), (0, "ab", 200), (0, "ax", 409), (1, "ab", 409)]),
        ("early and other bytes", &[(1, "ab", 200), (1, "ab", 200), (1, "ax", 409), (1, "ab", 409)]),
    ] {
        let id = format!("X-Transfer-Id: {}\r\n", id.replace(' ', "-"));
        for &(number, body, status) in chunks {
            let fields = if number == 0 { format!("{id}{first}") } else { id.clone() };
            let answer = post(&format!("?chunk_number={number}"), &fields, body);
            assert_eq!(answer, Some(status), "{id}chunk {number}: {body}");
        }
    }
    assert_clean(&server);
    assert_eq!(names_in(dir.path()), Vec::<String>::new());
    server.assert_serves("lies in NextDP");
}

/// A client that holds a place in memory without filling it gives it up when others wait.
#[test]
fn nextdp_senders_that_stall_do_not_keep_others_out() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let mut slow: Vec<_> = (0..16)
        .map(|at| {
            let mut stream = wire::Raw::bare(server.port);
            let head = format!(
                "POST /upload?chunk_number=1 HTTP/1.1\r\nHost: x\r\nX-Transfer-Id: {at}\r\nContent-Length: 1000\r\n\r\nx"
            );
            stream.write_all(head.as_bytes()).unwrap();
            stream
        })
        .collect();
    let (_own, file) = source(3_000_000);
    send("nextdp", &file, server.port, &[]).expect(0);
    // One had to go, with the reason.
    let refused = eventually("a refusal", || {
        slow.iter_mut().find_map(|stream| {
            stream.set_nonblocking(true).unwrap();
            let answered = stream.peek(&mut [0]).is_ok();
            stream.set_nonblocking(false).unwrap();
            if answered { wire::read_answer(stream) } else { None }
        })
    });
    assert_eq!(refused.0, 503);
}

/// Of a transfer with an id it is remembered how it ended, which is the answer to what comes again
/// as a whole.
#[test]
fn nextdp_a_chunk_of_a_file_that_has_its_name_is_answered_only_if_it_comes_as_a_whole() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let answer = |number: u32, framing: &str, body: &str| {
        let mut stream = wire::Raw::bare(server.port);
        let request = format!(
            "POST /upload?chunk_number={number} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Transfer-Id: one\r\nX-Filename: f\r\nX-Total-Chunks: 2\r\n{framing}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer.to_lowercase()
    };
    for (number, body) in [(0, "aa"), (1, "bb"), (1, "bb")] {
        assert!(answer(number, "Content-Length: 2", body).starts_with("http/1.1 200 "));
    }
    for (what, number, framing, body, status) in [
        ("as a whole", 1, "Transfer-Encoding: chunked", "2\r\nbb\r\n0\r\n\r\n", "200"),
        ("broken", 1, "Transfer-Encoding: chunked", "1\r\nb\r\nnonsense\r\n", "400"),
        ("too long", 1, "Content-Length: 99999999999", "b", "413"),
        ("beyond the last", 2, "Content-Length: 2", "bb", "409"),
    ] {
        let found = answer(number, framing, body);
        assert_eq!(found.get(9..12), Some(status), "{what}: {found}");
        assert_eq!(found.contains("x-transfer-complete: true"), status == "200", "{what}: {found}");
    }
    assert_eq!(std::fs::read(server.path("f")).unwrap(), b"aabb");
}
