//! Versions 1.0.0 and 1.1.0 of fastdp.

use crate::support::*;
use crate::{SIZES, assert_arrives, assert_clean, assert_same_bytes, send, source, text};
use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::path::Path;

/// Sends through the peer; what the server answered.
pub(crate) fn send_fastdp1(server: &Server, file: &Path, extra: &[&str]) -> String {
    let extra: Vec<_> = extra.iter().map(OsString::from).collect();
    let args = [args!["send", server.port.to_string(), file], extra.clone()].concat();
    // A payload that is given need not be compressed.
    let zstd = extra.iter().any(|arg| arg == "Zstd") && !extra.iter().any(|arg| arg == "--payload");
    let peer = if zstd { Peer::start_zstd("fastdp1.py", args) } else { Peer::start("fastdp1.py", args) };
    peer.finish()
}

pub(crate) const SUCCESS: &str = "File received successfully.";

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
    let random = [0, 1, 262_144, 262_145, 3_000_000].map(source);
    // Several blocks, which several threads compress.
    for (_own, file) in random.into_iter().chain([text(9_000_000)]) {
        let size = fs::metadata(&file).unwrap().len();
        let name = file.file_name().unwrap().to_str().unwrap();
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
                assert_eq!(peer.finish(), name);
                assert_same_bytes(&file, &there.path().join(name));
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
