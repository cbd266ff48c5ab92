//! FastDownloader.

use crate::assert_same_bytes;
use crate::support::*;
use std::fs;
use std::path::Path;

fn fastdownloader_port(server: &Server) -> u16 {
    let port = server.stdout().lines().find_map(|line| {
        let event: serde_json::Value = serde_json::from_str(line).ok()?;
        (event["protocol"] == "fastdownloader").then(|| event["port"].as_u64().unwrap() as u16)
    });
    port.unwrap()
}

pub(crate) fn serve_downloads(dir: &Path) -> (Server, u16) {
    serve_downloads_with(dir, &[])
}

fn serve_downloads_with(dir: &Path, extra: &[&str]) -> (Server, u16) {
    let server = serve(dir, &[&["--fastdownloader=0"], extra].concat());
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

/// Contents in which the published client's way of splitting finds something else.
fn with_separators(size: usize) -> Vec<u8> {
    b"$SEPARATOR$0$SEPARATOR000$SEPARATOR$".repeat(size / 36 + 1)[..size].to_vec()
}

/// Fetches `name` from a peer that serves `dir` with `flags`, and compares.
fn fetch_from_a_peer(dir: &Path, name: &str, flags: &[&str]) {
    let there = scratch();
    let flags: Vec<_> = flags.iter().map(std::ffi::OsString::from).collect();
    let mut peer = Peer::start("fastdownloader.py", [args!["serve", dir], flags.clone()].concat());
    let target = format!("127.0.0.1:{}/{name}", peer.port());
    let out = client(args!["get", "--protocol", "fastdownloader", target, there.path()]);
    assert_eq!(out.code(), 0, "{name}, {flags:?}: {out}");
    peer.finish();
    assert_same_bytes(&dir.join(name), &there.path().join(name));
}

const CHUNKED: [u64; 8] = [0, 1, 999, 1000, 1001, 1999, 2000, 1_234_567];

/// The dialect of the published program is found out by our client, whatever the file contains.
#[test]
fn fastdownloader_files_come_from_a_published_server() {
    let dir = scratch();
    for size in CHUNKED {
        write_file(&dir.path().join(format!("f{size}")), size, size);
        fs::write(dir.path().join(format!("s{size}")), with_separators(size as usize)).unwrap();
    }
    // The last bytes look like the end of a chunk, and its filling.
    fs::write(dir.path().join("s0"), b"$SEPARATOR$000").unwrap();
    for size in CHUNKED {
        for kind in ["f", "s"] {
            fetch_from_a_peer(dir.path(), &format!("{kind}{size}"), &["--v1"]);
        }
    }
}

#[test]
fn fastdownloader_ordinals_are_understood_unpadded_and_from_1() {
    let dir = scratch();
    for size in CHUNKED {
        write_file(&dir.path().join(format!("f{size}")), size, size);
        for flags in [&["--unpadded"][..], &["--first", "1"], &["--unpadded", "--first", "1"]] {
            fetch_from_a_peer(dir.path(), &format!("f{size}"), flags);
        }
    }
}

/// A published client takes what one call brings for a chunk. Full buffers cut chunks in two, so
/// that it is the client's own speed that decides up to where that goes well: what fits in the
/// buffers of a connection does; 12 MiB are tried with one that waits for whole chunks.
#[test]
fn fastdownloader_files_reach_a_published_client() {
    let dir = scratch();
    let sizes = [0, 1, 999, 1000, 1001, 20_000, 100_000, 12 << 20];
    for size in sizes {
        write_file(&dir.path().join(format!("f{size}")), size, size);
    }
    let (_server, port) = serve_downloads_with(dir.path(), &["--fastdownloader-dialect", "v1"]);
    for size in sizes {
        let (there, name) = (scratch(), format!("f{size}"));
        let out = there.path().join("out");
        let mut args = args!["get", port.to_string(), name, out, "--v1"];
        if size > 100_000 {
            args.push("--wait".into());
        }
        let said = Peer::start("fastdownloader.py", args).finish();
        assert!(said.contains(&format!(" {} ", size / 1000 + 1)), "{said}");
        assert_same_bytes(&dir.path().join(&name), &out);
        let copy = there.path().join("copy");
        client(args!["get", "--protocol", "fastdownloader", format!("127.0.0.1:{port}/{name}"), copy])
            .expect(0);
        assert_same_bytes(&dir.path().join(&name), &copy);
    }
}

/// A file that the published client would split elsewhere is not given to it, rather than wrongly.
#[test]
fn fastdownloader_separators_in_a_file_are_not_given_in_the_dialect_that_splits_at_them() {
    let dir = scratch();
    let separators = with_separators(5000);
    fs::write(dir.path().join("s"), &separators).unwrap();
    // The end of a chunk and the separator behind it make another one together.
    fs::write(dir.path().join("t"), b"12345$SEPARATOR").unwrap();
    let (server, port) = serve_downloads_with(dir.path(), &["--fastdownloader-dialect", "v1"]);
    for name in ["s", "t"] {
        let there = scratch();
        let out = there.path().join("out");
        let mut peer = Peer::start("fastdownloader.py", args!["get", port.to_string(), name, out, "--v1"]);
        assert!(!peer.end().1, "{name}");
        assert!(!out.exists());
    }
    eventually("a line about it", || server.stderr().contains("$SEPARATOR$").then_some(()));
    let (_server, port) = serve_downloads(dir.path());
    let there = scratch();
    client(args!["get", "--protocol", "fastdownloader", format!("127.0.0.1:{port}/s"), there.path()])
        .expect(0);
    assert!(fs::read(there.path().join("s")).unwrap() == separators);
}
