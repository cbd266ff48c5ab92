//! All of them on one port.

use crate::fastdownloader::serve_downloads;
use crate::fastdp1::{SUCCESS, send_fastdp1};
use crate::nextdp::send_nextdp;
use crate::source;
use crate::support::*;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

#[test]
fn an_upgrade_to_version_2_comes_as_a_later_request() {
    let dir = scratch();
    let mut server = serve(dir.path(), &[]);
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let (status, _) = wire::read_answer(&mut stream).unwrap();
    assert_eq!(status, 404);
    // Its body is one line.
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).unwrap();
    }
    let lines = wire::request_lines(&wire::key());
    stream.write_all(&wire::request(&lines)).unwrap();
    let (status, head) = wire::read_answer(&mut stream).unwrap();
    assert!(status == 101 && head.to_lowercase().contains("sec-fastdp-version: 2.0.0"), "{head}");
    // And it speaks fastdp from here on: nonsense is refused with a header and a frame.
    stream.write_all(&wire::header(b"{}")).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.windows(9).any(|window| window == b"DPVersion"), "{}", answer.escape_ascii());
    server.assert_serves("an upgrade on a connection that was kept");
}

#[test]
fn what_is_not_accepted_is_refused_in_its_own_words() {
    let dir = scratch();
    let mut server = serve(dir.path(), &["--accept", "fastdp"]);
    let (_own, file) = source(1000);
    let mut peer = Peer::start("fastdp1.py", args!["send", server.port.to_string(), file]);
    assert!(!peer.end().1, "fastdp 1.1.0 is not accepted");
    let (status, head) = wire::http(
        server.port,
        &wire::request(&[
            "GET /fastdp-endpoint HTTP/1.1".into(),
            "Host: x".into(),
            "Upgrade: fastdp".into(),
            "Connection: Upgrade".into(),
            "Sec-FastDP-Key: x".into(),
            "Sec-FastDP-Version: 1.1.0".into(),
        ]),
    )
    .unwrap();
    assert!(status == 426 && head.contains("2.0.0"), "{head}");
    let answer = send_nextdp(&server, &file, &[]);
    assert!(answer.starts_with("404 "), "{answer}");
    // It may find the connection closed before it has sent all.
    Peer::start("ultradp.py", args!["send", server.port.to_string(), file, "x"]).end();
    eventually("a line about UltraDP", || {
        server.stderr().contains("ultradp is not accepted here").then_some(())
    });
    server.assert_serves("protocols that are not accepted");
    let server = serve(dir.path(), &["--accept", "ultradp,fastdp1.1"]);
    let out = client(args!["send", "--retries", "0", file, server.target("")]).expect(1);
    assert!(out.stderr.contains("1.1.0"), "{out}");
    assert_eq!(send_fastdp1(&server, &file, &[]), SUCCESS);
}

#[test]
fn case_7_nonsense_is_ended_with_a_line_in_the_log() {
    let dir = scratch();
    let mut server = serve(dir.path(), &[]);
    for bytes in
        [&b"\x16\x03\x01\x00\x05hello"[..], b"\0\0\0\0", b"SSH-2.0-x\r\n", b"no protocol\n", b"\x7fELF\n"]
    {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let is_http = bytes[0].is_ascii_alphabetic();
        assert_eq!(answer.starts_with(b"HTTP/1.1 400 "), is_http, "{}", bytes.escape_ascii());
    }
    eventually("a line about each", || {
        let log = server.stderr();
        let others = log.matches("nothing that is spoken here").count();
        (log.contains("TLS is not spoken here") && others == 4).then_some(())
    });
    server.assert_serves("nonsense");
}

/// One address does not take all threads.
#[test]
fn fastdownloader_serves_so_many_clients_of_one_address_and_no_more() {
    let dir = scratch();
    fs::write(dir.path().join("file"), b"content").unwrap();
    let (_server, port) = serve_downloads(dir.path());
    let mut first = [0];
    let waiting: Vec<_> = (0..64)
        .map(|_| {
            let mut stream = wire::Raw::bare(port);
            stream.read_exact(&mut first).unwrap();
            stream
        })
        .collect();
    assert_eq!(wire::Raw::bare(port).read(&mut first).unwrap_or(0), 0);
    drop(waiting);
    eventually("a place", || wire::Raw::bare(port).read_exact(&mut first).is_ok().then_some(()));
}
