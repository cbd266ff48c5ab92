//! UltraDP's secured variant: encrypted, not authenticated.

use crate::support::*;
use crate::{assert_arrives, assert_clean, assert_same_bytes, send, source, text};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Sizes around the ends of blocks, and of chunks of 64 KiB. The peer's cipher is slow.
const SIZES: [u64; 7] = [0, 1, 15, 16, 17, 65_537, 200_000];

fn password(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join(format!("password-{}", text.trim().len()));
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn text_of(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn secured_server(folder: &Path, password: &Path) -> Server {
    serve(folder, &["--ultradp-password-file", text_of(password)])
}

#[test]
fn ultradp_secured_files_arrive_from_a_peer_and_plain_ones_as_before() {
    let (dir, own) = (scratch(), scratch());
    let secret = password(own.path(), "pässwörd\n");
    let mut server = secured_server(dir.path(), &secret);
    for size in SIZES {
        let (_own, file) = source(size);
        for (kind, extra) in [("secured", args!["--password-file", secret]), ("plain", args![])] {
            let name = format!("{kind}-{size}");
            let arguments = args!["send", server.port.to_string(), file, name, "--chunk", "65536"];
            assert_eq!(Peer::start("ultradp.py", [arguments, extra].concat()).finish(), "", "{name}");
            assert_arrives(&server, &name, &file);
        }
    }
    assert!(server.stderr().contains("encrypted, not authenticated"), "{}", server.stderr());
    assert!(!server.stderr().contains("pässwörd"));
    server.assert_serves("the secured variant");
}

#[test]
fn ultradp_secured_files_arrive_at_a_peer() {
    let own = scratch();
    let secret = password(own.path(), "pässwörd\n");
    for size in SIZES {
        let (_own, file) = source(size);
        let there = scratch();
        let mut peer = Peer::start("ultradp.py", args!["receive", there.path(), "--password-file", secret]);
        let port = peer.port();
        let out = send("ultradp", &file, port, &["--ultradp-password-file", text_of(&secret)]).expect(10);
        assert_eq!(out.summary()["encryption"], "not authenticated", "{out}");
        assert_eq!(peer.finish(), "source.bin");
        assert_same_bytes(&file, &there.path().join("source.bin"));
    }
}

#[test]
#[ignore = "needs the Python package zstandard"]
fn ultradp_secured_and_compressed_files_arrive_from_and_at_a_peer() {
    let (dir, own) = (scratch(), scratch());
    let secret = password(own.path(), "secret");
    let server = secured_server(dir.path(), &secret);
    for size in [1000, 300_000] {
        let (_own, file) = text(size);
        let name = size.to_string();
        let arguments = args!["send", server.port.to_string(), file, name, "--chunk", "65536", "--compress"];
        let peer = Peer::start_zstd("ultradp.py", [arguments, args!["--password-file", secret]].concat());
        assert_eq!(peer.finish(), "");
        assert_arrives(&server, &name, &file);
        let there = scratch();
        let mut peer =
            Peer::start_zstd("ultradp.py", args!["receive", there.path(), "--password-file", secret]);
        let port = peer.port();
        let extra = ["--compress", "zstd", "--ultradp-password-file", text_of(&secret)];
        send("ultradp", &file, port, &extra).expect(10);
        assert!(peer.finish().starts_with("source.txt"));
        assert_same_bytes(&file, &there.path().join("source.txt"));
    }
}

/// Chunks of 8 MiB, and more than one: one stream over all of them.
#[test]
fn ultradp_secured_goes_from_our_client_to_our_server_and_is_not_to_be_read_on_the_way() {
    let (dir, own) = (scratch(), scratch());
    let secret = password(own.path(), "secret");
    let server = secured_server(dir.path(), &secret);
    for compress in ["none", "zstd"] {
        for (name, (_own, file)) in [
            ("source.txt", text(20_000_000)),
            ("source.bin", source((16 << 20) + 1)),
            ("source.bin", source(0)),
        ] {
            let extra = ["--compress", compress, "--ultradp-password-file", text_of(&secret)];
            send("ultradp", &file, server.port, &extra).expect(10);
            assert_arrives(&server, name, &file);
            fs::remove_file(server.path(name)).unwrap();
        }
    }
    // The line is to be read, and nothing else.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let received = std::thread::spawn(move || {
        let mut all = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut all).unwrap();
        all
    });
    let (_own, file) = text(100_000);
    let target = format!("127.0.0.1:{port}");
    let arguments = args!["send", "--protocol", "ultradp", "--ultradp-password-file", secret, file, target];
    let told = plain(arguments).expect(10).text();
    assert!(told.contains("encrypted, not authenticated"), "{told}");
    let received = received.join().unwrap();
    assert!(received.starts_with(b"source.txt:100000:0:1\n"));
    assert!(!received.windows(9).any(|part| part == b"of a log "));
}

#[test]
fn ultradp_secured_needs_a_password_and_notices_another_one_only_where_it_is_compressed() {
    let (dir, own) = (scratch(), scratch());
    let (right, wrong) = (password(own.path(), "right"), password(own.path(), "wrong one"));
    let (_own, file) = text(200_000);
    let without = serve(dir.path(), &[]);
    let out = send("ultradp", &file, without.port, &["--ultradp-password-file", text_of(&right)]);
    assert_eq!(out.code(), 9, "{out}");
    eventually("a line about it", || {
        let log = without.stderr();
        (log.contains("secured variant") && log.contains("--ultradp-password-file")).then_some(())
    });
    let server = secured_server(dir.path(), &right);
    let extra = ["--compress", "zstd", "--ultradp-password-file", text_of(&wrong)];
    assert_eq!(send("ultradp", &file, server.port, &extra).code(), 9);
    eventually("a line about it", || server.stderr().contains("is the password the same").then_some(()));
    assert_clean(&server);
    assert_eq!(names_in(dir.path()), Vec::<String>::new());
    // Nothing in the protocol tells: the documentation says so.
    send("ultradp", &file, server.port, &["--ultradp-password-file", text_of(&wrong)]).expect(10);
    let stored = fs::read(server.path("source.txt")).unwrap();
    assert!(stored.len() == 200_000 && stored != fs::read(&file).unwrap());
}

/// No key is derived for what may not be put there.
#[test]
fn ultradp_secured_that_is_cut_or_not_allowed_leaves_nothing_with_a_name() {
    let (dir, own) = (scratch(), scratch());
    let secret = password(own.path(), "secret");
    let mut server = secured_server(dir.path(), &secret);
    for bytes in [
        &b"x:5:0:1\n"[..],
        b"x:5:0:1\n0123456789abcdef",
        b"x:5:0:1\n0123456789abcdef0123456789abcdef",
        b"x:5:0:1\n0123456789abcdef0123456789abcdef\0\0\0\0\0\0\0\x06abcdef",
        b"x:5:1:1\n0123456789abcdef0123456789abcdef\0\0\0\0\0\0\0\x05abcde",
        b"../x:5:0:1\n",
        b"/x:5:0:1\n",
    ] {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        stream.write_all(bytes).unwrap();
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(answer, b"", "{}", bytes.escape_ascii());
        server.wait_idle();
        assert_eq!(names_in(dir.path()), Vec::<String>::new(), "{}", bytes.escape_ascii());
    }
    server.assert_serves("secured transfers that are none");
}

#[test]
fn a_password_file_that_holds_none_is_refused_and_one_that_others_can_read_is_warned_of() {
    let (dir, own) = (scratch(), scratch());
    let (_own, file) = source(10);
    let empty = password(own.path(), "\n");
    let missing = own.path().join("missing");
    for bad in [&empty, &missing] {
        let target = "127.0.0.1:1/x";
        let arguments = args!["send", "--protocol", "ultradp", "--ultradp-password-file", bad, file, target];
        let out = plain(arguments).expect(2);
        assert!(out.stderr.contains(text_of(bad)), "{out}");
        let out = plain(args!["serve", "--port", "0", "--ultradp-password-file", bad, dir.path()]).expect(2);
        assert!(out.stderr.contains(text_of(bad)), "{out}");
    }
    let open = password(own.path(), "open\n");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    let server = secured_server(dir.path(), &open);
    eventually("a warning", || server.stderr().contains("chmod 600").then_some(()));
    let out = send("ultradp", &file, server.port, &["--ultradp-password-file", text_of(&open)]).expect(10);
    assert!(out.stderr.contains("chmod 600") && !out.stderr.contains("open\n"), "{out}");
}
