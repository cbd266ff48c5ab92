//! The older protocols, in both directions, against peers in another language, on the one port of
//! the server.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::ffi::OsString;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use support::*;

/// A file of `size` bytes that are the same for the same size, in a folder of its own.
fn source(size: u64) -> (tempfile::TempDir, PathBuf) {
    let own = scratch();
    let path = own.path().join("source.bin");
    write_file(&path, size, size + 1);
    (own, path)
}

/// A file of `size` bytes that compress well.
fn text(size: usize) -> (tempfile::TempDir, PathBuf) {
    let own = scratch();
    let path = own.path().join("source.txt");
    let lines: String =
        (0..).map(|n| format!("line {} of a log that repeats itself\n", n / 7)).take(size / 30 + 1).collect();
    fs::write(&path, &lines.as_bytes()[..size]).unwrap();
    (own, path)
}

/// Sizes around the ends of chunks of 256 KiB, and of 1 MiB.
const SIZES: [u64; 8] = [0, 1, 262_143, 262_144, 262_145, 1 << 20, (1 << 20) + 1, 3_000_000];

/// The contents are the same; none of these protocols carries a time.
#[track_caller]
fn assert_same_bytes(source: &Path, copy: &Path) {
    let (expected, found) = (fs::read(source).unwrap(), fs::read(copy).unwrap());
    assert_eq!(found.len(), expected.len(), "{}", copy.display());
    let differs = found.iter().zip(&expected).position(|(found, expected)| found != expected);
    assert_eq!(differs, None, "the first byte of {} that differs", copy.display());
}

/// Waits until the server has put the file there, and nothing unfinished is left.
#[track_caller]
fn assert_arrives(server: &Server, name: &str, source: &Path) {
    eventually(name, || server.path(name).exists().then_some(()));
    assert_same_bytes(source, &server.path(name));
    assert_clean(server);
}

/// Nothing unfinished is left behind.
fn assert_clean(server: &Server) {
    eventually("unfinished work to go", || (!server.path(".fastdrop").exists()).then_some(()));
}

fn send(protocol: &str, file: &Path, port: u16, extra: &[&str]) -> Output {
    let target = format!("127.0.0.1:{port}");
    let extra = extra.iter().map(OsString::from).collect();
    client([args!["send", "--protocol", protocol, file, target], extra].concat())
}

// ---- UltraDP

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

#[test]
fn ultradp_goes_from_our_client_to_our_server_under_another_name() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let (_own, file) = source(20_000_000);
    let target = server.target("sub/a:b.bin");
    client(args!["send", "--protocol", "ultradp", file, target]).expect(10);
    assert_arrives(&server, "sub/a:b.bin", &file);
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

// ---- fastdp 1.0.0 and 1.1.0

/// Sends through the peer; what the server answered.
fn send_fastdp1(server: &Server, file: &Path, extra: &[&str]) -> String {
    let extra: Vec<_> = extra.iter().map(OsString::from).collect();
    let args = [args!["send", server.port.to_string(), file], extra.clone()].concat();
    // A payload that is given need not be compressed.
    let zstd = extra.iter().any(|arg| arg == "Zstd") && !extra.iter().any(|arg| arg == "--payload");
    let peer = if zstd { Peer::start_zstd("fastdp1.py", args) } else { Peer::start("fastdp1.py", args) };
    peer.finish()
}

const SUCCESS: &str = "File received successfully.";

#[test]
fn case_32_fastdp1_files_of_every_size_and_kind_arrive_from_a_peer() {
    fastdp1_from_a_peer(&["None", "Zip", "TarGz"]);
}

#[test]
#[ignore = "needs the Python package zstandard"]
fn case_32_fastdp1_files_of_every_size_and_kind_arrive_from_a_peer_with_zstandard() {
    fastdp1_from_a_peer(&["Zstd"]);
}

fn fastdp1_from_a_peer(kinds: &[&str]) {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    for size in SIZES {
        let (_own, file) = source(size);
        for (version, answer) in [("1.0.0", ""), ("1.1.0", SUCCESS)] {
            for compress in kinds {
                let name = format!("{version}-{compress}-{size}");
                let args = ["--version", version, "--compress", compress, "--name", &name];
                assert_eq!(send_fastdp1(&server, &file, &args), answer, "{name}");
                assert_arrives(&server, &name, &file);
            }
        }
    }
}

#[test]
fn cases_22_and_28_fastdp1_chunks_come_in_any_order_repeated_and_numbered_from_0_or_1() {
    fastdp1_in_any_order(&["None", "Zip", "TarGz"]);
}

#[test]
#[ignore = "needs the Python package zstandard"]
fn cases_22_and_28_fastdp1_chunks_come_in_any_order_repeated_and_numbered_from_0_or_1_with_zstandard() {
    fastdp1_in_any_order(&["Zstd"]);
}

fn fastdp1_in_any_order(kinds: &[&str]) {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let (_own, file) = source(2_500_000);
    let (_text, lines) = text(9_000_000);
    for version in ["1.0.0", "1.1.0"] {
        for &compress in kinds {
            let file = if compress == "None" { &file } else { &lines };
            for order in ["in-order", "reversed", "shuffled", "odd-first"] {
                for first in ["0", "1"] {
                    let name = format!("{version}-{compress}-{order}-{first}");
                    let args = [
                        "--version",
                        version,
                        "--compress",
                        compress,
                        "--name",
                        &name,
                        "--first",
                        first,
                        "--order",
                        order,
                        "--chunk",
                        "65536",
                        "--repeat",
                        "3",
                    ];
                    send_fastdp1(&server, file, &args);
                    assert_arrives(&server, &name, file);
                }
            }
        }
    }
}

#[test]
fn fastdp1_headers_come_twice_without_a_name_and_upgrades_on_a_connection_that_is_kept() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let (_own, file) = source(700_000);
    send_fastdp1(&server, &file, &["--version", "1.0.0", "--no-name", "--two-headers"]);
    assert_arrives(&server, "received_file", &file);
    for version in ["1.0.0", "1.1.0"] {
        send_fastdp1(&server, &file, &["--version", version, "--name", version, "--after-another"]);
        assert_arrives(&server, version, &file);
    }
}

#[test]
fn case_40_fastdp1_a_transfer_of_1_0_0_goes_on_over_further_connections() {
    fastdp1_goes_on(&["None", "Zip", "TarGz"]);
}

#[test]
#[ignore = "needs the Python package zstandard"]
fn case_40_fastdp1_a_transfer_of_1_0_0_goes_on_over_further_connections_with_zstandard() {
    fastdp1_goes_on(&["Zstd"]);
}

fn fastdp1_goes_on(kinds: &[&str]) {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let (_own, file) = source(3_000_000);
    let (_text, lines) = text(20_000_000);
    for &name in kinds {
        let file = if name == "None" { &file } else { &lines };
        let extra = ["--compress", name];
        let args = ["--version", "1.0.0", "--name", name, "--chunk", "65536", "--reconnect-every", "131072"];
        assert_eq!(send_fastdp1(&server, file, &[&args[..], &extra].concat()), "");
        assert_arrives(&server, name, file);
    }
}

#[test]
fn case_40_fastdp1_reconnections_that_bring_nothing_new_are_ended() {
    let dir = scratch();
    let mut server = serve(dir.path(), &[]);
    let (_own, file) = source(3_000_000);
    // What the programs of that version do: begin anew each time, and so never get beyond the first
    // 128 KiB.
    let args = ["--version", "1.0.0", "--chunk", "65536", "--reconnect-every", "131072", "--begin-anew"];
    let args =
        [args!["send", server.port.to_string(), file], args.iter().map(OsString::from).collect()].concat();
    let peer = Peer::start("fastdp1.py", args);
    eventually("the server to give up", || server.stderr().contains("brings nothing new").then_some(()));
    drop(peer);
    assert!(!server.path("source.bin").exists());
    server.assert_serves("reconnections without an end");
}

#[test]
fn cases_18_25_30_43_45_47_and_52_fastdp1_that_lies_leaves_nothing_behind() {
    let dir = scratch();
    let mut server = serve(dir.path(), &[]);
    let (own, file) = source(300_000);
    let sum = "0".repeat(64);
    let write = |name: &str, bytes: &[u8]| {
        let path = own.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = zstd::bulk::compress(&fs::read(&file).unwrap(), 1).unwrap();
    let cut = write("cut", &good[..good.len() - 5]);
    let more = write("more", &[&good[..], b"more"].concat());
    let bomb = write("bomb", &zstd::bulk::compress(&vec![0; 256 << 20], 19).unwrap());
    let garbage = write("garbage", &[0x5a; 5000]);
    for (what, args) in [
        ("a wrong checksum", &["--checksum", &sum[..]][..]),
        ("a wrong size", &["--full-size", "299999"]),
        ("a size that is not all sent", &["--full-size", "300001"]),
        ("a frame that is cut", &["--compress", "Zstd", "--payload", &cut]),
        ("bytes behind a frame", &["--compress", "Zstd", "--payload", &more]),
        ("a bomb", &["--compress", "Zstd", "--payload", &bomb]),
        ("no frame", &["--compress", "Zstd", "--payload", &garbage]),
        ("no ZIP archive", &["--compress", "Zip", "--payload", &garbage]),
        ("no gzip", &["--compress", "TarGz", "--payload", &garbage]),
        ("a name that leads outside", &["--name", "../x", "--member", "x"]),
        ("an absolute name", &["--name", "/tmp/x", "--member", "x"]),
        ("an empty name", &["--name", "", "--member", "x"]),
        ("an end before the last chunk", &["--stop-after", "1"]),
    ] {
        let answer = send_fastdp1(&server, &file, args);
        assert!(answer.starts_with("ERROR: ") || answer == "(reset)", "{what}: {answer}");
        server.wait_idle();
        assert_clean(&server);
        assert_eq!(names_in(dir.path()), Vec::<String>::new(), "{what}");
    }
    server.assert_serves("lies in fastdp 1.1.0");
}

#[test]
fn case_47_fastdp1_names_in_an_archive_decide_nothing() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let (_own, file) = source(5000);
    for compress in ["Zip", "TarGz"] {
        for member in ["../../escaped", "/tmp/escaped", "a/b/c"] {
            let name = format!("{compress}-{}", member.len());
            let args = ["--compress", compress, "--name", &name, "--member", member];
            assert_eq!(send_fastdp1(&server, &file, &args), SUCCESS);
            assert_arrives(&server, &name, &file);
        }
    }
    assert_eq!(names_in(dir.path()).len(), 6);
}

#[test]
fn fastdp1_goes_to_a_peer_in_every_version_and_kind() {
    fastdp1_to_a_peer(&["none", "zip", "targz"]);
}

#[test]
#[ignore = "needs the Python package zstandard"]
fn fastdp1_goes_to_a_peer_in_every_version_and_kind_with_zstandard() {
    fastdp1_to_a_peer(&["zstd"]);
}

fn fastdp1_to_a_peer(kinds: &[&str]) {
    for size in [0, 1, 262_144, 262_145, 3_000_000] {
        let (_own, file) = source(size);
        for version in ["1.0", "1.1"] {
            for &compress in kinds {
                let there = scratch();
                let full = format!("{version}.0");
                let args = args!["receive", there.path(), "--version", full];
                let mut peer = if compress == "zstd" {
                    Peer::start_zstd("fastdp1.py", args)
                } else {
                    Peer::start("fastdp1.py", args)
                };
                let port = peer.port();
                let code = if version == "1.0" { 10 } else { 0 };
                let out =
                    send(&format!("fastdp{version}"), &file, port, &["--compress", compress]).expect(code);
                out.expect_summary(&[("files", 1), ("bytes", size), ("retries", 0)]);
                assert_eq!(peer.finish(), "source.bin");
                assert_same_bytes(&file, &there.path().join("source.bin"));
            }
        }
    }
}

#[test]
fn case_40_fastdp1_our_sender_goes_on_when_the_receiver_reconnects() {
    let (_own, file) = source(12_000_000);
    let there = scratch();
    let args = args!["receive", there.path(), "--version", "1.0.0", "--reconnect-after", "3000000"];
    let mut peer = Peer::start("fastdp1.py", args);
    let port = peer.port();
    send("fastdp1.0", &file, port, &[]).expect(10);
    assert_eq!(peer.finish(), "source.bin");
    assert_same_bytes(&file, &there.path().join("source.bin"));
}

#[test]
fn fastdp1_an_error_of_the_receiver_is_told() {
    let (_own, file) = source(1000);
    let there = scratch();
    let mut peer =
        Peer::start("fastdp1.py", args!["receive", there.path(), "--answer", "ERROR: the moon is full"]);
    let port = peer.port();
    let out = send("fastdp1.1", &file, port, &[]).expect(1);
    assert!(out.stderr.contains("the moon is full"), "{out}");
}

#[test]
fn case_31_two_fastdp1_uploads_to_one_name_leave_one_and_tell_the_other() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let (_own, file) = source(1000);
    assert_eq!(send_fastdp1(&server, &file, &[]), SUCCESS);
    let (_other, second) = source(2000);
    let answer = send_fastdp1(&server, &second, &["--name", "source.bin"]);
    assert!(answer.starts_with("ERROR: ") && answer.contains("exists"), "{answer}");
    assert_same_bytes(&file, &server.path("source.bin"));
}

/// Case 3: keys of 1.x are constants, and no conflict.
#[test]
fn case_3_fastdp1_connections_may_have_the_same_key() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let version = |line: String| line.replace("2.0.0", "1.1.0");
    let lines: Vec<_> = wire::request_lines("fastdp-key").into_iter().map(version).collect();
    let mut waiting = wire::Raw::bare(server.port);
    waiting.write_all(&wire::request(&lines)).unwrap();
    assert_eq!(wire::read_answer(&mut waiting).unwrap().0, 101);
    let (_own, file) = source(1000);
    assert_eq!(send_fastdp1(&server, &file, &["--key", "fastdp-key"]), SUCCESS);
    drop(waiting);
}

/// Case 29, where we send.
#[test]
fn case_29_a_source_that_changes_meanwhile_gets_no_name() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let own = scratch();
    for protocol in ["ultradp", "fastdp1.0", "fastdp1.1", "nextdp"] {
        for change in ["shrinks", "changes"] {
            let file = own.path().join(format!("{protocol}-{change}"));
            write_file(&file, 32 * MIB, 1);
            set_mtime(&file, 1_500_000_000, 0);
            let proxy = Proxy::to(server.port);
            proxy.hold_at(4 * MIB);
            let sending =
                fastdrop(args!["send", "--protocol", protocol, &file, proxy.target("")]).json().start();
            proxy.wait_held();
            match change {
                "shrinks" => {
                    fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(10 * MIB).unwrap()
                }
                _ => write_file(&file, 32 * MIB, 2),
            }
            proxy.resume();
            let out = sending.wait().expect(1);
            assert!(out.stderr.contains("changed"), "{protocol}, {change}: {out}");
            drop(proxy);
            server.wait_idle();
            assert!(!server.path(file.file_name().unwrap()).exists(), "{protocol}, {change}");
        }
    }
}

// ---- NextDP

fn send_nextdp(server: &Server, file: &Path, extra: &[&str]) -> String {
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

/// Who holds a place in memory without filling it gives it up when others wait.
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

// ---- FastDownloader

fn fastdownloader_port(server: &Server) -> u16 {
    let port = server.stdout().lines().find_map(|line| {
        let event: serde_json::Value = serde_json::from_str(line).ok()?;
        (event["protocol"] == "fastdownloader").then(|| event["port"].as_u64().unwrap() as u16)
    });
    port.unwrap()
}

fn serve_downloads(dir: &Path) -> (Server, u16) {
    let server = serve(dir, &["--fastdownloader=0"]);
    let port = eventually("the second port", || {
        server.stdout().contains("fastdownloader").then(|| fastdownloader_port(&server))
    });
    (server, port)
}

#[test]
fn case_32_fastdownloader_files_of_every_size_reach_a_peer() {
    let dir = scratch();
    for size in [0, 1, 999, 1000, 1001, 2_000_000, 12 << 20] {
        write_file(&dir.path().join(format!("file {size}")), size, size);
    }
    fs::create_dir(dir.path().join("folder")).unwrap();
    let (_server, port) = serve_downloads(dir.path());
    for (at, size) in [0, 1, 999, 1000, 1001, 2_000_000, 12 << 20].into_iter().enumerate() {
        let (there, name) = (scratch(), format!("file {size}"));
        let out = there.path().join("out");
        let mut args = args!["get", port.to_string(), name, out];
        if at % 2 == 1 {
            args.push("--terminator".into());
        }
        let said = Peer::start("fastdownloader.py", args).finish();
        let streams = if size >= 10 << 20 { 2 } else { 1 };
        let expected = format!("ACCEPTED {streams} {} ", size / 1000 + 1);
        assert!(said.contains(&expected) && said.contains(") file 12582912\n"), "{said}");
        assert!(!said.contains("folder"), "{said}");
        assert_same_bytes(&dir.path().join(&name), &out);
    }
    let said =
        Peer::start("fastdownloader.py", args!["get", port.to_string(), "other", "/dev/null"]).finish();
    assert!(said.ends_with("WRONG_INPUT"), "{said}");
    let said = Peer::start("fastdownloader.py", args!["get", port.to_string(), "../x", "/dev/null"]).finish();
    assert!(said.ends_with("WRONG_INPUT"), "{said}");
}

#[test]
fn case_32_fastdownloader_files_come_from_a_peer_and_from_our_server() {
    let dir = scratch();
    for size in [0, 999, 1000, 3_000_000] {
        write_file(&dir.path().join(format!("f{size}")), size, size);
        let there = scratch();
        let mut peer = Peer::start("fastdownloader.py", args!["serve", dir.path()]);
        let target = format!("127.0.0.1:{}/f{size}", peer.port());
        client(args!["get", "--protocol", "fastdownloader", target, there.path()])
            .expect(0)
            .expect_summary(&[("files", 1), ("bytes", size)]);
        peer.finish();
        assert_same_bytes(&dir.path().join(format!("f{size}")), &there.path().join(format!("f{size}")));
    }
    write_file(&dir.path().join("large"), 60 << 20, 5);
    let (_server, port) = serve_downloads(dir.path());
    let fetch = |n: u32| {
        let there = scratch();
        let out = there.path().join(n.to_string());
        client(args!["get", "--protocol", "fastdownloader", format!("127.0.0.1:{port}/large"), out])
            .expect(0);
        assert_same_bytes(&dir.path().join("large"), &out);
    };
    // Several at once.
    std::thread::scope(|scope| {
        for n in 0..3 {
            scope.spawn(move || fetch(n));
        }
    });
    let out = plain(args!["list", "--protocol", "fastdownloader", format!("127.0.0.1:{port}")]).expect(0);
    assert_eq!(String::from_utf8_lossy(&out.stdout), "f0\nf1000\nf3000000\nf999\nlarge\n");
    let out =
        client(args!["get", "--protocol", "fastdownloader", format!("127.0.0.1:{port}/none"), dir.path()]);
    assert!(out.expect(4).stderr.contains("large"));
}

#[test]
fn case_26_fastdownloader_a_stream_that_ends_too_early_leaves_nothing() {
    let dir = scratch();
    write_file(&dir.path().join("f"), 50_000, 1);
    let there = scratch();
    let mut peer = Peer::start("fastdownloader.py", args!["serve", dir.path(), "--short"]);
    let target = format!("127.0.0.1:{}/f", peer.port());
    client(args!["get", "--protocol", "fastdownloader", target, there.path()]).expect(5);
    assert_eq!(names_in(there.path()), Vec::<String>::new());
}

// ---- one port

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
        server.stderr().contains("UltraDP is not accepted here").then_some(())
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
