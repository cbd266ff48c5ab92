//! Refused is never success: every refusal of a server reaches the sender, whatever the protocol
//! has words for.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use support::*;

const PUSHES: [&str; 5] = ["fastdp", "fastdp1.0", "fastdp1.1", "ultradp", "nextdp"];

/// The sizes around which a refusal can get lost: nothing to send, within the socket buffers, and
/// far beyond them.
const SIZES: [u64; 6] = [0, 1, 1000, 60_000, 300_000, 3_000_000];

fn sources() -> tempfile::TempDir {
    let dir = scratch();
    for size in SIZES {
        write_file(&dir.path().join(format!("f{size}")), size, size + 1);
    }
    dir
}

fn send(protocol: &str, file: &Path, target: std::ffi::OsString, extra: &[&str]) -> Output {
    let extra = extra.iter().map(std::ffi::OsString::from).collect();
    client([args!["send", "--retries", "0", "--protocol", protocol, file, target], extra].concat())
}

/// The exit code for a refusal of this kind: UltraDP cannot tell one from another.
fn code_of(protocol: &str, code: i32) -> i32 {
    if protocol == "ultradp" { 9 } else { code }
}

/// One that is added is missing here, and probably in the lists of other tests as well
/// (ARCHITECTURE.md, "Adding a protocol").
#[test]
fn every_protocol_that_sends_is_tried() {
    let nowhere = std::ffi::OsString::from("127.0.0.1");
    let refused = send("none-of-them", Path::new("x"), nowhere, &[]);
    let text = &refused.stderr;
    let names = text.lines().find_map(|line| line.split_once("; there are ")).expect("the names").1;
    let pushes: Vec<_> = names.split(", ").filter(|name| *name != "fastdownloader").collect();
    assert_eq!(pushes, PUSHES);
}

#[test]
fn case_105_every_refusal_reaches_the_sender_whatever_the_size() {
    let files = sources();
    // What the server says, to which sizes, under which name, and the exit code of those who are
    // told.
    for (what, flags, least, name, code) in [
        ("read-only", &["--read-only"][..], 0, "", 9),
        ("too large", &["--max-size", "10"], 11, "", 9),
        ("no space", &["--min-free", "1000T"], 0, "", 8),
        ("a name that leads outside", &[], 0, "../x", 9),
        ("a name of our own folder", &[], 0, ".fastdrop/x", 9),
        ("a folder is in the way", &[], 0, "folder", 9),
        ("it exists", &[], 0, "taken", 9),
        ("a file where a folder should be", &[], 0, "taken/x", 9),
    ] {
        let dir = scratch();
        fs::write(dir.path().join("taken"), "precious").unwrap();
        fs::create_dir(dir.path().join("folder")).unwrap();
        let server = serve(dir.path(), flags);
        for protocol in PUSHES {
            // The native protocol puts a file into a folder of the name.
            if protocol == "fastdp" && name == "folder" {
                continue;
            }
            for size in SIZES.into_iter().filter(|&size| size >= least) {
                // Without a byte there is nothing that needs space.
                if what == "no space" && size == 0 {
                    continue;
                }
                let target = if name.is_empty() { server.target("") } else { server.target(name) };
                let out = send(protocol, &files.path().join(format!("f{size}")), target, &[]);
                assert!(!out.stderr.contains("panicked"), "{out}");
                let expected = code_of(protocol, code);
                assert_eq!(out.code(), expected, "{what}, {protocol}, {size} bytes: {out}");
            }
        }
        server.wait_idle();
        eventually("unfinished work to go", || (!server.path(".fastdrop").exists()).then_some(()));
        assert_eq!(names_in(dir.path()), ["folder", "taken"], "{what}");
        assert_eq!(names_in(&dir.path().join("folder")), Vec::<String>::new(), "{what}");
        assert_eq!(fs::read_to_string(dir.path().join("taken")).unwrap(), "precious", "{what}");
    }
}

#[test]
fn case_105_a_protocol_that_is_not_accepted_is_never_success() {
    let files = sources();
    let dir = scratch();
    for protocol in PUSHES {
        let others: Vec<_> = PUSHES.into_iter().filter(|other| *other != protocol).collect();
        let server = serve(dir.path(), &["--accept", &others.join(",")]);
        for size in SIZES {
            let out = send(protocol, &files.path().join(format!("f{size}")), server.target(""), &[]);
            out.expect(match protocol {
                "nextdp" => 4,
                _ => code_of(protocol, 1),
            });
        }
        assert_eq!(names_in(dir.path()), Vec::<String>::new(), "{protocol}");
    }
}

/// Reports whether a file below this folder has bytes.
fn holds_bytes(folder: &Path) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => holds_bytes(&entry.path()),
        Ok(metadata) => metadata.len() > 0,
        Err(_) => false,
    })
}

/// A transfer whose end is held back is refused when the server goes, and never confirmed.
#[test]
fn case_105_a_server_that_is_stopped_or_dies_confirms_nothing() {
    let files = scratch();
    let file = files.path().join("large");
    write_file(&file, 40 * MIB, 1);
    for protocol in ["fastdp1.0", "fastdp1.1", "ultradp", "nextdp"] {
        for signal in ["TERM", "KILL"] {
            let dir = scratch();
            let mut server = serve(dir.path(), &[]);
            let limit =
                ["--bwlimit", "20M", "--protocol", protocol, "--retries", "1"].map(std::ffi::OsString::from);
            let sending =
                fastdrop([args!["send", file, server.target("")], limit.to_vec()].concat()).json().start();
            // Before the first bytes are there the sender may not know yet that it is welcome.
            eventually("the first bytes", || holds_bytes(&server.path(".fastdrop")).then_some(()));
            match signal {
                "TERM" => drop(server.term()),
                _ => server.kill9(),
            }
            let out = sending.wait().expect(code_of(protocol, 5));
            assert!(!server.path("large").exists(), "{protocol}, {signal}: {out}");
        }
    }
}

/// Cut by something between that ends both connections in good order, at every place of a transfer.
#[test]
fn case_105_a_connection_that_is_cut_is_never_success_unless_the_file_is_there() {
    let files = scratch();
    let file = files.path().join("f");
    write_file(&file, 600_000, 1);
    for protocol in ["fastdp1.0", "fastdp1.1", "ultradp", "nextdp"] {
        let dir = scratch();
        let server = serve(dir.path(), &["--existing", "overwrite"]);
        for at in [1, 100, 300, 500, 1000, 262_000, 400_000, 599_000, 600_400, 600_600] {
            let proxy = Proxy::to(server.port);
            proxy.cut_at(&[at]);
            let out = send(protocol, &file, proxy.target(""), &[]);
            assert!(!out.stderr.contains("panicked"), "{out}");
            let what = format!("{protocol}, cut at {at}: {out}");
            // An end in good order may come before the last word or behind it. The two that have no
            // last word take it for sent, or for a refusal.
            match out.code() {
                0 => assert_same_contents_of(&file, &server.path("f"), &what),
                9 | 10 => assert!(matches!(protocol, "ultradp" | "fastdp1.0"), "{what}"),
                code => assert_eq!(code, 5, "{what}"),
            }
            drop(proxy);
            server.wait_idle();
            let _ = fs::remove_file(server.path("f"));
        }
    }
}

#[track_caller]
fn assert_same_contents_of(source: &Path, copy: &Path, what: &str) {
    assert!(fs::read(source).unwrap() == fs::read(copy).unwrap_or_default(), "{what}");
}

#[test]
fn case_105_a_transfer_of_1_0_0_that_is_cut_goes_on_and_is_confirmed() {
    let files = scratch();
    let file = files.path().join("f");
    write_file(&file, 48 * MIB, 1);
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let proxy = Proxy::to(server.port);
    // The second one after more than both kernels hold, so that some chunks are taken for
    // delivered.
    proxy.cut_at(&[5 * MIB, 40 * MIB, 41 * MIB]);
    let out = client(args!["send", "--protocol", "fastdp1.0", file, proxy.target("")]).expect(0);
    assert_eq!(out.summary()["confirmed"], true, "{out}");
    assert_same_contents_of(&file, &server.path("f"), "the file");
    assert_eq!(proxy.cuts(), 3);
}

#[test]
fn case_105_a_transfer_of_1_0_0_begins_anew_at_a_server_that_has_been_started_again() {
    let files = scratch();
    let file = files.path().join("f");
    write_file(&file, 48 * MIB, 1);
    let dir = scratch();
    let mut server = serve(dir.path(), &[]);
    let proxy = Proxy::to(server.port);
    proxy.hold_at(40 * MIB);
    let sending = fastdrop(args!["send", "--protocol", "fastdp1.0", file, proxy.target("")]).json().start();
    proxy.wait_held();
    server.restart_same_dir();
    proxy.retarget(server.port);
    proxy.cut_all();
    proxy.resume();
    let out = sending.wait().expect(0);
    assert_same_contents_of(&file, &server.path("f"), &out.to_string());
}

/// There is nothing to list, and nothing may be listed: not the same.
#[test]
fn case_105_a_fastdownloader_client_that_is_refused_is_told_so() {
    let dir = scratch();
    fs::write(dir.path().join("f"), "content").unwrap();
    let server = serve(dir.path(), &["--write-only", "--fastdownloader=0"]);
    let port = eventually("the second port", || {
        server.stdout().lines().find_map(|line| {
            let event: serde_json::Value = serde_json::from_str(line).ok()?;
            (event["protocol"] == "fastdownloader").then(|| event["port"].as_u64().unwrap())
        })
    });
    let there = scratch();
    for arguments in [
        args!["list", format!("127.0.0.1:{port}")],
        args!["get", format!("127.0.0.1:{port}/f"), there.path()],
        args!["get", "-n", format!("127.0.0.1:{port}/f"), there.path()],
    ] {
        let protocol = args!["--protocol", "fastdownloader", "--retries", "0"];
        client([arguments, protocol].concat()).expect(5);
    }
    assert_eq!(names_in(there.path()), Vec::<String>::new());
}

#[test]
fn case_105_a_nextdp_server_that_was_started_again_has_not_got_the_file() {
    let files = scratch();
    let file = files.path().join("f");
    write_file(&file, 24 * MIB, 1);
    for (retries, code) in [("0", 5), ("5", 0)] {
        let dir = scratch();
        let mut server = serve(dir.path(), &[]);
        let proxy = Proxy::to(server.port);
        proxy.hold_at(12 * MIB);
        let target = proxy.target("");
        let arguments = args!["send", "--protocol", "nextdp", "--retries", retries, file, target];
        let sending = fastdrop(arguments).json().start();
        proxy.wait_held();
        server.restart_same_dir();
        proxy.retarget(server.port);
        proxy.cut_all();
        proxy.resume();
        let out = sending.wait();
        // Without another attempt the loss itself may be what is told.
        assert_eq!(out.code(), code, "{out}");
        assert_eq!(server.path("f").exists(), code == 0, "{out}");
        if code == 0 {
            assert_same_contents_of(&file, &server.path("f"), &out.to_string());
        }
    }
}

/// The server has the file, and the client has not heard of it: the chunk that comes again is
/// answered as the first time.
#[test]
fn case_105_a_nextdp_chunk_that_comes_again_behind_the_end_is_answered_as_before() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let post = |number: u32, fields: &str, body: &str| {
        let length = body.len();
        let head = format!(
            "POST /upload?chunk_number={number} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}Content-Length: {length}\r\n\r\n{body}"
        );
        let mut stream = wire::Raw::bare(server.port);
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.to_lowercase()
    };
    let complete = "x-transfer-complete: true";
    let named =
        |name: &str, id: &str| format!("X-Transfer-Id: {id}\r\nX-Filename: {name}\r\nX-Total-Chunks: 2\r\n");
    let first = post(0, &named("f", "one"), "ab");
    assert!(first.contains(" 200 ") && !first.contains(complete), "{first}");
    for _ in 0..3 {
        let last = post(1, "X-Transfer-Id: one\r\n", "c");
        assert!(last.contains(" 200 ") && last.contains(complete), "{last}");
    }
    assert_eq!(fs::read_to_string(server.path("f")).unwrap(), "abc");
    // A refusal is repeated as well, and an id that is used again begins anew.
    let refused = post(0, &named("f", "two"), "abcd");
    assert!(refused.contains(" 409 "), "{refused}");
    let refused = post(1, "X-Transfer-Id: two\r\n", "c");
    assert!(refused.contains(" 409 "), "{refused}");
    assert!(post(0, &named("g", "two"), "ab").contains(" 200 "));
    assert!(post(1, "X-Transfer-Id: two\r\n", "d").contains(complete));
    assert_eq!(fs::read_to_string(server.path("g")).unwrap(), "abd");
    // What the server has never heard of is taken, and is not complete.
    let unknown = post(1, "X-Transfer-Id: three\r\n", "c");
    assert!(unknown.contains(" 200 ") && !unknown.contains(complete), "{unknown}");
}

// ---- sent, not confirmed

/// Ways in which a peer that is not FastDrop ends a connection.
#[derive(Debug, Clone, Copy)]
enum End {
    GoodOrder,
    Reset,
}

/// Accepts connections, reads all that comes, answers what `answer` makes of the first bytes, and
/// ends each as told.
fn peer(end: End, answer: fn(&str) -> String) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut first = vec![0; 4096];
            let count = stream.read(&mut first).unwrap_or(0);
            let text = String::from_utf8_lossy(&first[..count]).into_owned();
            let _ = stream.write_all(answer(&text).as_bytes());
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
            match end {
                End::GoodOrder => drop(stream.shutdown(Shutdown::Both)),
                End::Reset => reset(&stream),
            }
        }
    });
    port
}

fn reset(stream: &TcpStream) {
    socket2::SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
}

/// The upgrade of 1.0.0, and a header behind it.
fn upgrade(request: &str, server: &str) -> String {
    let key = request.lines().find_map(|line| line.strip_prefix("Sec-FastDP-Key: ")).unwrap_or_default();
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: fastdp\r\nConnection: Upgrade\r\n\
         Sec-FastDP-Key: {key}\r\nSec-FastDP-Version: 1.0.0\r\n{server}\r\n"
    );
    format!("{head}\0\0\0\x02{{}}")
}

#[test]
fn case_105_what_a_protocol_cannot_confirm_is_sent_and_not_confirmed() {
    let files = sources();
    let silent: fn(&str) -> String = |_| String::new();
    let foreign: fn(&str) -> String = |request| upgrade(request, "");
    let nginx: fn(&str) -> String = |request| upgrade(request, "Server: nginx\r\n");
    let fastdrop: fn(&str) -> String = |request| upgrade(request, "Server: FastDrop/3.1\r\n");
    for (protocol, answer, end, code) in [
        ("ultradp", silent, End::GoodOrder, 10),
        ("ultradp", silent, End::Reset, 9),
        ("fastdp1.0", foreign, End::GoodOrder, 10),
        ("fastdp1.0", nginx, End::GoodOrder, 10),
        ("fastdp1.0", fastdrop, End::GoodOrder, 0),
        ("fastdp1.0", fastdrop, End::Reset, 9),
    ] {
        let port = peer(end, answer);
        for size in SIZES {
            let file = files.path().join(format!("f{size}"));
            let what = format!("{protocol}, {end:?}, {size} bytes");
            let out = send(protocol, &file, format!("127.0.0.1:{port}").into(), &[]);
            assert_eq!(out.code(), code, "{what}: {out}");
            if code != 9 {
                assert_eq!(out.summary()["confirmed"], code == 0, "{what}: {out}");
            }
        }
    }
}

#[test]
fn case_105_unconfirmed_is_said_in_words_and_may_be_allowed() {
    let files = sources();
    let file = files.path().join("f1000");
    let port = peer(End::GoodOrder, |_| String::new());
    let target = format!("127.0.0.1:{port}");
    let arguments = args!["send", "--protocol", "ultradp", file, target];
    let out = plain(arguments.clone()).expect(10);
    assert!(out.text().contains("sent, not confirmed"), "{out}");
    let out = plain([arguments.clone(), args!["--unconfirmed-ok"]].concat()).expect(0);
    assert!(out.text().contains("sent, not confirmed"), "{out}");
    fastdrop(arguments.clone()).env("FASTDROP_UNCONFIRMED_OK", "1").run().expect(0);
    fastdrop(arguments).env("FASTDROP_UNCONFIRMED_OK", "0").run().expect(10);
    // It allows nothing else.
    let port = peer(End::Reset, |_| String::new());
    let target = format!("127.0.0.1:{port}");
    plain(args!["send", "--protocol", "ultradp", "--unconfirmed-ok", file, target]).expect(9);
    let missing = files.path().join("missing");
    let port = peer(End::GoodOrder, |_| String::new());
    let target = format!("127.0.0.1:{port}");
    plain(args!["send", "--protocol", "ultradp", "--unconfirmed-ok", missing, target]).expect(4);
}

#[test]
fn case_105_a_confirmation_between_two_fastdrops_is_the_word_of_the_server() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let files = sources();
    for (at, size) in SIZES.into_iter().enumerate() {
        for (protocol, confirmed) in
            [("fastdp1.0", true), ("fastdp1.1", true), ("nextdp", true), ("ultradp", false)]
        {
            let target = server.target(format!("{protocol}-{at}"));
            let out = send(protocol, &files.path().join(format!("f{size}")), target, &[]);
            assert_eq!(out.summary()["confirmed"], confirmed, "{out}");
            assert_eq!(out.code(), if confirmed { 0 } else { 10 }, "{out}");
        }
    }
}

/// A 1.1.0 receiver says why, and the exit code is that of the reason.
#[test]
fn case_105_the_reason_of_a_1_1_0_server_decides_the_exit_code() {
    let files = sources();
    let file = files.path().join("f1000");
    let there = scratch();
    for (answer, code) in [
        ("ERROR: 409 f: it exists", 9),
        ("ERROR: 403 this server only gives", 9),
        ("ERROR: 507 no space", 8),
        ("ERROR: 422 the checksum is wrong", 7),
        ("ERROR: 404 no such folder", 4),
        ("ERROR: 503 too many transfers at once", 5),
        ("ERROR: 500 something broke", 1),
        ("ERROR: the moon is full", 1),
        ("ERROR: 12 monkeys", 1),
        ("", 5),
        ("File received", 1),
    ] {
        let mut peer = Peer::start("fastdp1.py", args!["receive", there.path(), "--answer", answer]);
        let port = peer.port();
        let out = send("fastdp1.1", &file, format!("127.0.0.1:{port}").into(), &[]);
        assert_eq!(out.code(), code, "{answer:?}: {out}");
    }
}

/// A receiver that takes everything and never says anything is tried a bounded number of times.
#[test]
fn case_105_a_1_1_0_receiver_that_closes_without_a_word_is_given_up() {
    let files = sources();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = std::thread::spawn(move || {
        let mut connections = 0;
        for stream in listener.incoming().take(3) {
            let mut stream = stream.unwrap();
            let mut first = vec![0; 4096];
            let count = stream.read(&mut first).unwrap_or(0);
            let text = String::from_utf8_lossy(&first[..count]).into_owned();
            let head = upgrade(&text, "").replace("1.0.0", "1.1.0");
            let head = head.split_once('\0').unwrap().0;
            stream.write_all(head.as_bytes()).unwrap();
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
            connections += 1;
        }
        connections
    });
    let file = files.path().join("f3000000");
    let target = format!("127.0.0.1:{port}");
    client(args!["send", "--retries", "2", "--protocol", "fastdp1.1", file, target]).expect(5);
    assert_eq!(count.join().unwrap(), 3);
}

/// A receiver, or a relay, that has answered and reads no further is not waited for.
#[test]
fn case_105_an_answer_is_heard_while_nothing_more_can_be_sent() {
    let files = scratch();
    let file = files.path().join("f");
    write_file(&file, 64 * MIB, 1);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let keep = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut first = vec![0; 4096];
        let count = stream.read(&mut first).unwrap();
        let text = String::from_utf8_lossy(&first[..count]).into_owned();
        let head = upgrade(&text, "").replace("1.0.0", "1.1.0");
        stream.write_all(head.split_once('\0').unwrap().0.as_bytes()).unwrap();
        // The sender has filled everything between by now, or will.
        stream.read_exact(&mut vec![0; 1 << 20]).unwrap();
        stream.write_all(b"ERROR: 507 no space").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        stream
    });
    let started = std::time::Instant::now();
    let target = format!("127.0.0.1:{port}");
    client(args!["send", "--retries", "0", "--protocol", "fastdp1.1", file, target]).expect(8);
    // Silence counts as a loss after a minute only.
    assert!(started.elapsed().as_secs() < 45, "it waited for {:?}", started.elapsed());
    drop(keep.join().unwrap());
}

#[test]
fn case_105_a_server_that_leaves_after_one_transfer_answers_that_one() {
    let files = sources();
    for protocol in PUSHES {
        for size in SIZES {
            let dir = scratch();
            let mut server = serve(dir.path(), &["--once"]);
            let name = format!("f{size}");
            let out = send(protocol, &files.path().join(&name), server.target(""), &[]);
            assert_eq!(out.code(), if protocol == "ultradp" { 10 } else { 0 }, "{out}");
            assert_same_contents_of(&files.path().join(&name), &server.path(&name), &out.to_string());
            assert_eq!(server.wait_within(DEADLINE), 0);
        }
    }
}

/// Needs root, to take a user of its own that may have few threads.
#[test]
#[ignore = "needs root"]
fn case_105_a_server_without_threads_confirms_nothing_needs_root() {
    let files = sources();
    let dir = scratch();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let wrapper =
        args!["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", "prlimit", "--nproc=2:2"];
    let server = serve_through(dir.path(), &[], wrapper);
    for protocol in PUSHES {
        for size in SIZES {
            let out = send(protocol, &files.path().join(format!("f{size}")), server.target(protocol), &[]);
            out.expect(code_of(protocol, 5));
        }
    }
    assert_eq!(names_in(dir.path()), Vec::<String>::new());
}
