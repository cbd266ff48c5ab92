//! NextDP.

use crate::support::*;
use crate::{SIZES, assert_arrives, assert_clean, assert_same_bytes, send, source};
use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;

pub(crate) fn send_nextdp(server: &Server, file: &Path, extra: &[&str]) -> String {
    let extra = extra.iter().map(OsString::from).collect();
    Peer::start("nextdp.py", [args!["send", server.port.to_string(), file], extra].concat()).finish()
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
fn nextdp_gzip_members_are_decoded_when_the_switch_says_so() {
    let dir = scratch();
    let server = serve(dir.path(), &["--nextdp-gzip"]);
    let (_own, file) = source(3_000_000);
    assert_eq!(send_nextdp(&server, &file, &["--gzip", "--threads", "3"]), "done");
    assert_arrives(&server, "source.bin", &file);
    let (_other, file) = source(100);
    let answer = send_nextdp(&server, &file, &["--name", "plain"]);
    assert!(answer.starts_with("400 "), "{answer}");
    assert_clean(&server);
}

#[test]
fn nextdp_goes_to_a_peer_and_to_our_server() {
    for size in SIZES {
        let (_own, file) = source(size);
        let there = scratch();
        let mut peer = Peer::start("nextdp.py", args!["receive", there.path()]);
        let port = peer.port();
        send("nextdp", &file, port, &[]).expect(0).expect_summary(&[("files", 1), ("bytes", size)]);
        assert_eq!(peer.finish(), "source.bin");
        assert_same_bytes(&file, &there.path().join("source.bin"));
    }
    let dir = scratch();
    let server = serve(dir.path(), &["--nextdp-gzip"]);
    let (_own, file) = source(20_000_000);
    send("nextdp", &file, server.port, &["--compress", "gzip"]).expect(0);
    assert_arrives(&server, "source.bin", &file);
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
            "an encoded name that leads outside",
            "?chunk_number=0",
            "X-Filename: %2e%2e/x\r\nX-Total-Chunks: 1\r\n",
            "x",
            403,
        ),
        ("no chunks", "?chunk_number=0", "X-Filename: x\r\nX-Total-Chunks: 0\r\n", "x", 400),
        ("no name", "?chunk_number=0", "X-Total-Chunks: 1\r\n", "x", 400),
        ("two names", "?chunk_number=0", "X-Filename: x\r\nX-Filename: y\r\nX-Total-Chunks: 1\r\n", "x", 400),
    ] {
        assert_eq!(post(query, fields, body), Some(status), "{what}");
    }
    let huge = "POST /upload?chunk_number=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n";
    assert_eq!(wire::http(server.port, huge.as_bytes()).map(|(status, _)| status), Some(413));
    assert_eq!(post("?chunk_number=0", first, "ab"), Some(200));
    assert_eq!(post("?chunk_number=1", "", "abc"), Some(400), "longer than chunk 0");
    assert_eq!(post("?chunk_number=7", "", "ab"), Some(200), "of whatever comes next");
    assert_eq!(post("?chunk_number=0", first, "ab"), Some(400), "a chunk beyond the last came before");
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
