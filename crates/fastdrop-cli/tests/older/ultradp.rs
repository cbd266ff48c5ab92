//! UltraDP.

use crate::support::*;
use crate::{SIZES, assert_arrives, assert_clean, assert_same_bytes, send, source, text};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

#[test]
fn case_32_ultradp_files_of_every_size_arrive_from_a_peer() {
    ultradp_from_a_peer(false);
}

#[test]
#[ignore = "needs the Python package zstandard"]
fn case_32_ultradp_files_of_every_size_arrive_from_a_peer_with_zstandard() {
    ultradp_from_a_peer(true);
}

fn ultradp_from_a_peer(zstd: bool) {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    for size in SIZES {
        let (_own, file) = source(size);
        let name = size.to_string();
        let args = args!["send", server.port.to_string(), file, name, "--chunk", "262144"];
        let peer = if zstd {
            Peer::start_zstd("ultradp.py", [args, args!["--compress"]].concat())
        } else {
            Peer::start("ultradp.py", args)
        };
        assert_eq!(peer.finish(), "");
        assert_arrives(&server, &name, &file);
    }
}

#[test]
fn case_32_ultradp_files_of_every_size_arrive_at_a_peer() {
    ultradp_at_a_peer(false);
}

#[test]
#[ignore = "needs the Python package zstandard"]
fn case_32_ultradp_files_of_every_size_arrive_at_a_peer_with_zstandard() {
    ultradp_at_a_peer(true);
}

fn ultradp_at_a_peer(zstd: bool) {
    for size in SIZES {
        let (_own, file) = source(size);
        let there = scratch();
        let args = args!["receive", there.path()];
        let (compress, mut peer) = if zstd {
            ("zstd", Peer::start_zstd("ultradp.py", args))
        } else {
            ("none", Peer::start("ultradp.py", args))
        };
        let port = peer.port();
        send("ultradp", &file, port, &["--compress", compress])
            .expect(10)
            .expect_summary(&[("files", 1), ("bytes", size)]);
        assert_eq!(peer.finish(), "source.bin");
        assert_same_bytes(&file, &there.path().join("source.bin"));
    }
}

/// A receiver in use counts compressed bytes, and stops when they reach the announced size: what
/// does not shrink is sent as it is, and no chunk is left behind that would not be counted.
#[test]
#[ignore = "needs the Python package zstandard"]
fn ultradp_that_does_not_shrink_arrives_whole_at_a_receiver_that_counts_compressed_bytes() {
    const CHUNK: usize = 8 << 20;
    let own = scratch();
    let random = fill(3 * CHUNK as u64, 1);
    let zeros = vec![0; 1000];
    for (name, content) in [
        ("random", &random[..=CHUNK]),
        ("two random chunks and one byte", &random[..=2 * CHUNK]),
        // The first chunk shrinks a little, and then so little is left that the sum is reached
        // early.
        ("a little", &[&zeros[..400], &random[..2 * CHUNK - 399]].concat()),
        ("at first", &[&zeros, &random[..2 * CHUNK]].concat()),
        ("well", &vec![b'a'; CHUNK + 1]),
    ] {
        let file = own.path().join(name);
        fs::write(&file, content).unwrap();
        let there = scratch();
        let mut peer = Peer::start_zstd("ultradp.py", args!["receive", there.path()]);
        let port = peer.port();
        send("ultradp", &file, port, &["--compress", "zstd"]).expect(10);
        // It complains of the end wherever something has shrunk, having written everything.
        let said = peer.finish();
        assert_eq!(said.lines().next(), Some(name));
        assert_eq!(said.contains("too early"), name == "well", "{said}");
        assert_same_bytes(&file, &there.path().join(name));
    }
}

/// The announcement, as far as it goes without decoding anything.
#[test]
fn ultradp_compresses_only_what_shrinks() {
    let (_own, random) = source(1_000_000);
    let (_other, shrinks) = text(1_000_000);
    let (_empty, empty) = source(0);
    for (file, compress, announced) in [
        (&random, "zstd", "source.bin:1000000:0\n"),
        (&shrinks, "zstd", "source.txt:1000000:1\n"),
        (&empty, "zstd", "source.bin:0:0\n"),
        (&shrinks, "none", "source.txt:1000000:0\n"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let received = std::thread::spawn(move || {
            let mut all = Vec::new();
            listener.accept().unwrap().0.read_to_end(&mut all).unwrap();
            all
        });
        send("ultradp", file, port, &["--compress", compress]).expect(10);
        let received = received.join().unwrap();
        assert!(received.starts_with(announced.as_bytes()), "{announced}");
        let dir = scratch();
        let server = serve(dir.path(), &[]);
        send("ultradp", file, server.port, &["--compress", compress]).expect(10);
        assert_arrives(&server, file.file_name().unwrap().to_str().unwrap(), file);
    }
}

#[test]
fn ultradp_names_that_receivers_cannot_read_are_refused_before_anything_is_sent() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    nobody.set_nonblocking(true).unwrap();
    let own = scratch();
    for name in ["a:b", "10:30.txt", ":", "a\nb", "\u{1}"] {
        let file = own.path().join(name);
        fs::write(&file, "content").unwrap();
        let out = send("ultradp", &file, nobody.local_addr().unwrap().port(), &[]);
        assert_eq!(out.code(), 1, "{name:?}: {out}");
        assert!(out.stderr.contains("UltraDP cannot carry this name"), "{name:?}: {out}");
        assert_eq!(out.stderr.contains("colon"), name.contains(':'), "{name:?}: {out}");
        assert!(nobody.accept().is_err(), "{name:?}");
    }
}

/// The program of the secured variant says in a fourth field that nothing is encrypted.
#[test]
fn ultradp_lines_of_four_fields_and_names_with_colons_are_taken() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    for (name, extra) in
        [("four", &["--secured"][..]), ("fo:ur", &["--secured"]), ("three:fields", &[]), ("10:30", &[])]
    {
        let (_own, file) = source(300_000);
        let extra = extra.iter().map(std::ffi::OsString::from).collect();
        let arguments = [args!["send", server.port.to_string(), file, name], extra].concat();
        assert_eq!(Peer::start("ultradp.py", arguments).finish(), "", "{name}");
        assert_arrives(&server, name, &file);
    }
}

/// The empty file `a` by four fields, or `a:0` by three: nothing that follows tells.
#[test]
fn ultradp_an_announcement_in_doubt_replaces_nothing() {
    let dir = scratch();
    fs::write(dir.path().join("a"), "mine").unwrap();
    let server = serve(dir.path(), &["--existing", "overwrite"]);
    for (line, name, content) in
        [("a:0:0:0\n", "a", "mine"), ("new:0:0:0\n", "new", ""), ("a:0:0\n", "a", "")]
    {
        let mut stream = wire::Raw::bare(server.port);
        stream.write_all(line.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        // Reset, or closed in good order: it has been decided.
        let _ = stream.read_to_end(&mut Vec::new());
        eventually(line, || (fs::read_to_string(server.path(name)).ok()? == content).then_some(()));
    }
    assert_clean(&server);
}

#[test]
fn ultradp_goes_from_our_client_to_our_server_under_another_name() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let (_own, file) = source(20_000_000);
    let target = server.target("sub/b.bin");
    client(args!["send", "--protocol", "ultradp", file, target]).expect(10);
    assert_arrives(&server, "sub/b.bin", &file);
}

#[test]
fn case_26_ultradp_that_ends_too_early_is_kept_aside_and_never_named() {
    let dir = scratch();
    let mut server = serve(dir.path(), &[]);
    let (_own, file) = source(1_000_000);
    let peer =
        Peer::start("ultradp.py", args!["send", server.port.to_string(), file, "cut", "--cut", "500000"]);
    peer.finish();
    eventually("a line about it", || server.stderr().contains("of 1000000 bytes").then_some(()));
    server.wait_idle();
    assert_eq!(names_in(dir.path()), Vec::<String>::new());
    assert!(server.path(".fastdrop").exists(), "what came is kept");
    server.assert_serves("an incomplete transfer");
    assert!(server.path(".fastdrop").exists(), "what came is still kept after another transfer");
}

#[test]
fn cases_12_13_27_and_45_ultradp_that_lies_leaves_nothing_behind() {
    let dir = scratch();
    let mut server = serve(dir.path(), &[]);
    let frame = zstd::bulk::compress(&[7; 5000], 1).unwrap();
    let length = |bytes: usize| (bytes as u64).to_be_bytes().to_vec();
    let chunk = |bytes: &[u8]| [length(bytes.len()), bytes.to_vec()].concat();
    let bomb = zstd::bulk::compress(&vec![0; 8 << 20], 19).unwrap();
    let flipped: Vec<u8> =
        frame.iter().enumerate().map(|(at, byte)| if at == 6 { byte ^ 0xff } else { *byte }).collect();
    for (what, line, rest) in [
        ("a length of 2^64-1", "x:5000:0\n", vec![0xff; 8]),
        ("more than was announced", "x:10:0\n", chunk(&[1; 11])),
        ("a compressed length of 4 GiB", "x:5000:1\n", length(4 << 30)),
        ("an empty frame", "x:5000:1\n", length(0)),
        ("no frame", "x:5000:1\n", chunk(&[9; 100])),
        ("a frame that is cut", "x:5000:1\n", chunk(&frame[..frame.len() - 3])),
        ("a frame that is corrupt", "x:5000:1\n", chunk(&flipped)),
        ("bytes behind a frame", "x:5000:1\n", chunk(&[&frame[..], b"x"].concat())),
        ("a frame that decodes to more", "x:4999:1\n", chunk(&frame)),
        ("a bomb", "x:1000000:1\n", chunk(&bomb)),
        ("an absolute name", "/tmp/x:1:0\n", chunk(b"x")),
        ("a name that leads outside", "../x:1:0\n", chunk(b"x")),
        ("a name in our own folder", ".fastdrop/x:1:0\n", chunk(b"x")),
        ("no UTF-8", "", b"\xff\xff:1:0\n".to_vec()),
        ("the secured variant", "x:1:0:1\n", vec![0; 32]),
        ("more than there can be", "x:9007199254740992:0\n", Vec::new()),
    ] {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        stream.write_all(&[line.as_bytes(), &rest].concat()).unwrap();
        let _ = stream.shutdown(std::net::Shutdown::Write);
        // Nothing is ever answered.
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(answer, b"", "{what}");
        server.wait_idle();
        assert_clean(&server);
        assert_eq!(names_in(dir.path()), Vec::<String>::new(), "{what}");
    }
    assert!(server.stderr().contains("secured variant"), "{}", server.stderr());
    server.assert_serves("lies in UltraDP");
}

#[test]
fn ultradp_respects_what_exists() {
    let dir = scratch();
    fs::write(dir.path().join("taken.txt"), "mine").unwrap();
    let (_own, file) = source(1000);
    for (policy, expected) in [("error", "mine"), ("rename", "mine"), ("overwrite", "")] {
        let server = serve(dir.path(), &["--existing", policy]);
        Peer::start("ultradp.py", args!["send", server.port.to_string(), file, "taken.txt"]).finish();
        match policy {
            "rename" => assert_arrives(&server, "taken (1).txt", &file),
            "overwrite" => {
                eventually("the file", || {
                    (fs::read(server.path("taken.txt")).unwrap() == fs::read(&file).unwrap()).then_some(())
                });
            }
            _ => server.wait_idle(),
        }
        if !expected.is_empty() {
            assert_eq!(fs::read_to_string(dir.path().join("taken.txt")).unwrap(), expected);
        }
        assert_clean(&server);
    }
}
