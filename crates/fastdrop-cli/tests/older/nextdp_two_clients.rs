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
        Self::begin_with(server, number, first, body, "Connection: close")
    }

    /// Begins one that is known to have been bound to a transfer: its body is waited for.
    fn begin_bound(server: &Server, number: u32, first: Option<(&str, u32)>, body: &[u8]) -> Self {
        let fields = "Connection: close\r\nExpect: 100-continue";
        let mut request = Self::begin_with(server, number, first, body, fields);
        let mut interim = Vec::new();
        while !interim.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            request.stream.read_exact(&mut byte).unwrap();
            interim.push(byte[0]);
        }
        assert!(interim.starts_with(b"HTTP/1.1 100 "), "{:?}", String::from_utf8_lossy(&interim));
        request
    }

    fn begin_with(
        server: &Server,
        number: u32,
        first: Option<(&str, u32)>,
        body: &[u8],
        fields: &str,
    ) -> Self {
        let mut stream = wire::Raw::bare(server.port);
        let first = first.map_or(String::new(), |(name, chunks)| {
            format!("X-Filename: {name}\r\nX-Total-Chunks: {chunks}\r\n")
        });
        let length = body.len();
        let head = format!(
            "POST /upload?chunk_number={number} HTTP/1.1\r\nHost: x\r\n{fields}\r\n{first}Content-Length: {length}\r\n\r\n"
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
        let foreign = Request::begin_bound(&server, 2, None, b"zz");
        // The first client has its own one on the way.
        let own = Request::begin_bound(&server, 2, None, b"cc");
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

/// The first client's file is complete, and has its name, while the body of the second one's
/// request, whose head had come before, is still on its way.
#[test]
fn nextdp_a_chunk_that_comes_after_the_file_of_its_head_is_another_ones() {
    for (what, number, first, body, status, rest) in [
        ("another file", 0, Some(("b", 1)), "bb", 200, None),
        ("the same file", 0, Some(("a", 1)), "aa", 200, None),
        ("the same name and other bytes", 0, Some(("a", 1)), "ab", 409, None),
        ("the same name and another size", 0, Some(("a", 1)), "abc", 409, None),
        ("the first of two chunks", 0, Some(("b", 2)), "bb", 200, Some((1, None, "cc"))),
        ("the second of two chunks", 1, None, "cc", 200, Some((0, Some(("b", 2)), "bb"))),
    ] {
        for total in [1, 2] {
            let what = format!("{what}, after a file of {total} chunks");
            let dir = scratch();
            let server = serve(dir.path(), &[]);
            let late = Request::begin_bound(&server, number, first, body.as_bytes());
            let content = send_over_one_connection(&server, "a", total);
            assert_eq!(fs::read(server.path("a")).unwrap(), content, "{what}");
            let (found, answer) = late.finish();
            // A file of two chunks is another one than that of one.
            let is_same = first == Some(("a", 1)) && total == 2;
            assert_eq!(found, if is_same { 409 } else { status }, "{what}: {answer}");
            let is_complete = answer.to_lowercase().contains("x-transfer-complete: true");
            assert_eq!(is_complete, found == 200 && rest.is_none(), "{what}: {answer}");
            if let Some((number, first, body)) = rest {
                assert_eq!(post(&server, number, first, body.as_bytes()), 200, "{what}");
                assert_eq!(fs::read(server.path("b")).unwrap(), b"bbcc", "{what}");
            } else if first == Some(("b", 1)) {
                assert_eq!(fs::read(server.path("b")).unwrap(), b"bb", "{what}");
            }
            assert_eq!(fs::read(server.path("a")).unwrap(), content, "{what}");
            assert_clean(&server);
        }
    }
}

/// Sends a file whose chunks are each `aa`, and returns its content once it has its name.
fn send_over_one_connection(server: &Server, name: &str, total: u32) -> Vec<u8> {
    let mut stream = wire::Raw::bare(server.port);
    for number in 0..total {
        let first = format!("X-Filename: {name}\r\nX-Total-Chunks: {total}\r\n");
        let first = if number == 0 { first } else { String::new() };
        let head = format!(
            "POST /upload?chunk_number={number} HTTP/1.1\r\nHost: x\r\n{first}Content-Length: 2\r\n\r\naa"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"Chunk received") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{:?}", String::from_utf8_lossy(&answer));
    }
    b"aa".repeat(total as usize)
}

/// Small files, each of which is one request: none of them can have foreign bytes.
#[test]
fn nextdp_files_of_one_chunk_that_come_at_once_all_arrive() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let names: Vec<String> = (0..20).map(|number| format!("file {number}")).collect();
    let begun: Vec<_> = names
        .iter()
        .map(|name| Request::begin_bound(&server, 0, Some((name, 1)), name.as_bytes()))
        .take(8)
        .collect();
    std::thread::scope(|scope| {
        let running: Vec<_> = begun.into_iter().map(|request| scope.spawn(|| request.finish())).collect();
        for name in &names[8..] {
            assert_eq!(post(&server, 0, Some((name, 1)), name.as_bytes()), 200, "{name}");
        }
        for running in running {
            let (status, answer) = running.join().unwrap();
            assert!(status == 200, "{answer}");
        }
    });
    for name in &names {
        assert_eq!(fs::read(server.path(name)).unwrap(), name.as_bytes());
    }
    assert_clean(&server);
}

/// Whatever becomes of two clients that run at the same time: no file has foreign bytes, and
/// nobody is told 200 for all chunks whose file is not there.
#[test]
fn nextdp_two_clients_of_one_address_never_make_a_mixture() {
    let (_own, one) = source(12_000_001);
    let (_other, two) = source(12_000_000);
    for (round, names) in [("a", "b"), ("a", "a")].into_iter().cycle().take(8).enumerate() {
        let dir = scratch();
        // So that each of two that are told so has a file of its own.
        let server = serve(dir.path(), &["--existing", "rename"]);
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
        assert_clean(&server);
        let found = names_in(dir.path()).into_iter().map(|name| fs::read(server.path(name)).unwrap());
        let found: Vec<_> = found.collect();
        let sent = [&one, &two].map(|file| fs::read(file).unwrap());
        assert!(found.iter().all(|found| sent.contains(found)), "round {round}: a mixture");
        for (sent, told) in sent.iter().zip(&told) {
            assert!(told != "done" || found.contains(sent), "round {round}: {told}, and no file of it");
        }
        let done = told.iter().filter(|told| *told == "done").count();
        assert!(done <= found.len(), "round {round}: {done} are told so, and {} files", found.len());
    }
}

/// The connections are open still, as those of a machine that has gone without a word.
#[test]
fn nextdp_a_client_that_is_gone_keeps_its_address_for_five_seconds() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    assert_eq!(post(&server, 0, Some(("old", 3)), b"aa"), 200);
    let mut silent = Request::begin_bound(&server, 1, None, b"bb");
    silent.stream.write_all(b"b").unwrap();
    let began = Instant::now();
    // Chunks of the next one: they come before their chunk 0, and wait for it.
    let (_own, file) = source(3_000_000);
    let next = eventually("the address to be given up", || {
        // Time is what is tested here: a request would be a sign of life.
        if began.elapsed() < Duration::from_secs(7) {
            return None;
        }
        Some(send_nextdp(&server, &file, &["--order", "shuffled", "--threads", "3"]))
    });
    assert_eq!(next, "done");
    assert_arrives(&server, "source.bin", &file);
    assert_eq!(names_in(dir.path()), ["source.bin"]);
}
