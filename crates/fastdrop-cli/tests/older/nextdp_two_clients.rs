//! NextDP clients without an id at the same address: they cannot be told apart, so that what one
//! of them contradicts is nobody's file.

use crate::nextdp::{send_nextdp, start_nextdp};
use crate::support::*;
use crate::{assert_arrives, assert_clean, assert_same_bytes, source};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// A request of which the body has not been sent.
struct Request {
    stream: TcpStream,
    body: Vec<u8>,
}

impl Request {
    fn begin(server: &Server, number: u32, first: Option<(&str, u32)>, body: &[u8]) -> Self {
        let mut stream = wire::Raw::bare(server.port);
        let first = first.map_or(String::new(), |(name, chunks)| {
            format!("X-Filename: {name}\r\nX-Total-Chunks: {chunks}\r\n")
        });
        let length = body.len();
        let head = format!(
            "POST /upload?chunk_number={number} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{first}Content-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        Self { stream, body: body.to_vec() }
    }

    fn send_body(&mut self) {
        let _ = self.stream.write_all(&self.body);
    }

    fn finish(mut self) -> (u16, String) {
        self.send_body();
        self.answer()
    }

    fn answer(mut self) -> (u16, String) {
        let mut answer = String::new();
        let read = self.stream.read_to_string(&mut answer);
        let status = answer.get(9..12).and_then(|status| status.parse().ok());
        (status.unwrap_or_else(|| panic!("{answer:?}, {read:?}")), answer)
    }
}

fn post(server: &Server, number: u32, first: Option<(&str, u32)>, body: &[u8]) -> u16 {
    Request::begin(server, number, first, body).finish().0
}

#[test]
fn nextdp_a_contradiction_fails_the_transfer_that_is_under_way_for_both_clients() {
    for (what, number, first, body) in [
        ("another name", 0, Some(("b", 3)), "aa"),
        ("another total", 0, Some(("a", 4)), "aa"),
        ("other content", 0, Some(("a", 3)), "ab"),
        ("another size", 0, Some(("a", 3)), "aaa"),
        ("a chunk with other bytes", 1, None, "bx"),
        ("a chunk of another size", 1, None, "b"),
        ("a chunk beyond the last", 3, None, "dd"),
    ] {
        let dir = scratch();
        let mut server = serve(dir.path(), &[]);
        assert_eq!(post(&server, 0, Some(("a", 3)), b"aa"), 200, "{what}");
        assert_eq!(post(&server, 1, None, b"bb"), 200, "{what}");
        let (status, why) = Request::begin(&server, number, first, body.as_bytes()).finish();
        assert_eq!(status, 409, "{what}");
        assert!(why.contains("two transfers at once"), "{what}: {why}");
        // The first client gets to know with whatever it sends next, which would complete it.
        assert_eq!(post(&server, 2, None, b"cc"), 409, "{what}");
        assert_eq!(post(&server, 1, None, b"bb"), 409, "{what}");
        assert_clean(&server);
        assert_eq!(names_in(dir.path()), Vec::<String>::new(), "{what}");
        server.assert_serves(what);
    }
}

#[test]
fn nextdp_a_chunk_that_comes_again_and_is_the_same_is_received() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    for _ in 0..3 {
        assert_eq!(post(&server, 1, None, b"bb"), 200);
    }
    for _ in 0..3 {
        assert_eq!(post(&server, 0, Some(("a", 3)), b"aa"), 200);
        assert_eq!(post(&server, 1, None, b"bb"), 200);
    }
    assert_eq!(post(&server, 2, None, b"c"), 200);
    assert_eq!(fs::read(server.path("a")).unwrap(), b"aabbc");
    assert_clean(&server);
}

/// A foreign chunk takes the last free place before its own chunk 0, which would tell, is there.
#[test]
fn nextdp_a_file_that_a_foreign_chunk_completes_is_not_named() {
    for (what, name, total, content) in [
        ("another name", "b", 3, "xx"),
        ("another total", "a", 4, "xx"),
        ("the same name and total", "a", 3, "xx"),
    ] {
        let dir = scratch();
        let server = serve(dir.path(), &[]);
        assert_eq!(post(&server, 0, Some(("a", 3)), b"aa"), 200);
        assert_eq!(post(&server, 1, None, b"bb"), 200);
        let foreign = Request::begin(&server, 2, None, b"zz");
        // The first client has its own one on the way.
        let own = Request::begin(&server, 2, None, b"cc");
        let second = std::thread::scope(|scope| {
            let foreign = scope.spawn(|| foreign.finish().0);
            let second = Request::begin(&server, 0, Some((name, total)), content.as_bytes()).finish().0;
            assert_eq!(own.finish().0, 409, "{what}");
            assert_eq!(foreign.join().unwrap(), 409, "{what}");
            second
        });
        assert_eq!(second, 409, "{what}");
        assert_clean(&server);
        assert_eq!(names_in(dir.path()), Vec::<String>::new(), "{what}");
    }
}

/// Whatever becomes of two clients that run at the same time: no file has foreign bytes, and
/// nobody is told 200 for all chunks whose file is not there.
#[test]
fn nextdp_two_clients_of_one_address_never_make_a_mixture() {
    let (_own, one) = source(12_000_001);
    let (_other, two) = source(12_000_000);
    for (round, names) in [("a", "b"), ("a", "a")].into_iter().cycle().take(8).enumerate() {
        let dir = scratch();
        let server = serve(dir.path(), &["--existing", "overwrite"]);
        let arguments = |name| ["--name", name, "--chunk", "1000000", "--threads", "4"];
        let clients = [(&one, names.0), (&two, names.1)];
        let running: Vec<_> =
            clients.map(|(file, name)| start_nextdp(&server, file, &arguments(name))).into_iter().collect();
        let told: Vec<_> = running.into_iter().map(Peer::finish).collect();
        for ((file, name), told) in clients.iter().zip(&told) {
            let what = format!("round {round}, {name}: {told}");
            if told == "done" && names.0 != names.1 {
                assert_same_bytes(file, &server.path(name));
            }
            assert!(told.lines().all(|line| line == "done" || line.starts_with("409 ")), "{what}");
        }
        for name in names_in(dir.path()) {
            let found = fs::read(server.path(&name)).unwrap();
            assert!(clients.iter().any(|(file, _)| fs::read(file).unwrap() == found), "a mixture");
        }
    }
}

/// The connections are open still, as those of a machine that has gone without a word.
#[test]
fn nextdp_a_client_that_is_gone_keeps_its_address_for_five_seconds() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let began = Instant::now();
    let _silent = {
        assert_eq!(post(&server, 0, Some(("old", 3)), b"aa"), 200);
        let mut request = Request::begin(&server, 1, None, b"bb");
        request.stream.write_all(b"b").unwrap();
        request
    };
    // Chunks of the next one: they come before their chunk 0, and wait for it.
    let (_own, file) = source(3_000_000);
    let next = eventually("the address to be given up", || {
        // Time is what is tested here: a request would be a sign of life.
        if began.elapsed() < Duration::from_millis(5200) {
            return None;
        }
        Some(send_nextdp(&server, &file, &["--order", "shuffled", "--threads", "3"]))
    });
    assert_eq!(next, "done");
    assert_arrives(&server, "source.bin", &file);
    assert_eq!(names_in(dir.path()), ["source.bin"]);
}
