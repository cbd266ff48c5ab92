//! A file that is there already and comes once more by an older protocol.

use crate::fastdp1::{SUCCESS, send_fastdp1};
use crate::nextdp::send_nextdp;
use crate::support::*;
use crate::{assert_clean, send, text};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;

/// Every protocol that pushes, and each kind of payload that it has.
const PUSHES: [(&str, &[&str]); 4] = [
    ("fastdp1.0", &["none", "zstd", "zip", "targz"]),
    ("fastdp1.1", &["none", "zstd", "zip", "targz"]),
    ("ultradp", &["none", "zstd"]),
    ("nextdp", &["none"]),
];

/// The exit code of a success: UltraDP confirms nothing.
fn success(protocol: &str) -> i32 {
    if protocol == "ultradp" { 10 } else { 0 }
}

/// The compressions of NextDP, each of which the server is told.
const NEXTDP: [&str; 3] = ["none", "gzip", "zstd"];

/// Sends by every protocol and kind to a server on which `make` has put something called `name`.
fn each(policy: &str, file: &Path, make: impl Fn(&Path), check: impl Fn(&str, &str, &Output, &Path)) {
    let dir = scratch();
    let server = serve(dir.path(), &["--existing", policy]);
    for (protocol, kinds) in PUSHES {
        for &compress in kinds {
            let name = format!("{protocol}-{compress}");
            make(&dir.path().join(&name));
            let out = client(args![
                "send",
                "--protocol",
                protocol,
                "--compress",
                compress,
                "--retries",
                "0",
                file,
                server.target(&name)
            ]);
            server.wait_idle();
            assert_clean(&server);
            check(protocol, &name, &out, &dir.path().join(&name));
        }
    }
}

#[test]
fn an_identical_file_is_a_success_and_stays_the_very_file() {
    for size in [0, 1, 1 << 20, 3_000_000] {
        let (_own, file) = text(size);
        let content = fs::read(&file).unwrap();
        let dir = scratch();
        let server = serve(dir.path(), &[]);
        for (protocol, kinds) in PUSHES {
            for &compress in kinds {
                let name = format!("{protocol}-{compress}");
                let there = dir.path().join(&name);
                fs::write(&there, &content).unwrap();
                set_mtime(&there, 1_400_000_000, 5);
                let before = fs::metadata(&there).unwrap();
                let out = client(args![
                    "send",
                    "--protocol",
                    protocol,
                    "--compress",
                    compress,
                    "--retries",
                    "0",
                    &file,
                    server.target(&name)
                ]);
                assert_eq!(out.code(), success(protocol), "{name}, {size} bytes: {out}");
                let after = fs::metadata(&there).unwrap();
                let of = |file: &fs::Metadata| (file.ino(), file.mtime(), file.mtime_nsec());
                assert_eq!(of(&before), of(&after), "{name}, {size} bytes");
            }
        }
        server.wait_idle();
        assert_clean(&server);
        for how in NEXTDP {
            let dir = scratch();
            let server = serve(dir.path(), &["--nextdp-compression", how]);
            let there = dir.path().join("source.txt");
            fs::write(&there, &content).unwrap();
            let before = fs::metadata(&there).unwrap().ino();
            let out = send("nextdp", &file, server.port, &["--compress", how, "--retries", "0"]);
            out.expect(0);
            assert_eq!(fs::metadata(&there).unwrap().ino(), before, "{how}, {size} bytes");
        }
    }
}

/// Sends `file` as a program of the field does, under a name for each kind; what the program was
/// told, and what that is where the file was received.
fn each_of_the_field(
    zstd: bool,
    file: &Path,
    mut check: impl FnMut(&Server, &str, &dyn Fn() -> String, &str),
) {
    let kinds: &[&str] = if zstd { &["Zstd"] } else { &["None", "Zip", "TarGz"] };
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    for version in ["1.0.0", "1.1.0"] {
        for compress in kinds {
            let name = format!("{version}-{compress}");
            let args = ["--version", version, "--compress", compress, "--name", &name];
            let expected = if version == "1.1.0" { SUCCESS } else { "" };
            check(&server, &name, &|| send_fastdp1(&server, file, &args), expected);
        }
    }
    let compressions: &[&str] = if zstd { &["zstd"] } else { &["none", "gzip"] };
    for how in compressions {
        let dir = scratch();
        let server = serve(dir.path(), &["--nextdp-compression", how]);
        let args = ["--name", how, "--threads", "3", "--compress", how];
        let args = if *how == "none" { &args[..4] } else { &args[..] };
        check(&server, how, &|| send_nextdp(&server, file, args), "done");
    }
}

fn of_the_field_are_told_that_it_was_received(zstd: bool) {
    for size in [0, 1, 1 << 20, 3_000_000] {
        let (_own, file) = text(size);
        each_of_the_field(zstd, &file, |server, name, send, expected| {
            let there = server.path(name);
            fs::copy(&file, &there).unwrap();
            set_mtime(&there, 1_400_000_000, 5);
            let before = fs::metadata(&there).unwrap();
            assert_eq!(send(), expected, "{name}, {size} bytes");
            let after = fs::metadata(&there).unwrap();
            let of = |file: &fs::Metadata| (file.ino(), file.mtime(), file.mtime_nsec());
            assert_eq!(of(&before), of(&after), "{name}, {size} bytes");
            server.wait_idle();
            assert_clean(server);
        });
    }
    // One that differs is refused in the words that each of them has.
    let (_own, file) = text(1_500_000);
    each_of_the_field(zstd, &file, |server, name, send, expected| {
        let there = server.path(name);
        let mut other = fs::read(&file).unwrap();
        *other.last_mut().unwrap() ^= 1;
        fs::write(&there, &other).unwrap();
        let said = send();
        let refusal = match (name, expected) {
            ("none" | "gzip" | "zstd", _) => "409 ",
            (_, SUCCESS) => "ERROR: ",
            _ => "(reset)",
        };
        assert!(said.starts_with(refusal), "{name}: {said}");
        assert!(fs::read(&there).unwrap() == other, "{name}");
        server.wait_idle();
        assert_clean(server);
    });
}

#[test]
fn programs_of_the_field_are_told_that_an_identical_file_was_received() {
    of_the_field_are_told_that_it_was_received(false);
}

#[test]
#[ignore = "needs the Python package zstandard"]
fn programs_of_the_field_are_told_that_an_identical_file_was_received_with_zstandard() {
    of_the_field_are_told_that_it_was_received(true);
}

#[test]
fn a_file_of_the_same_size_that_differs_is_refused_and_stays() {
    let (_own, file) = text(1_500_000);
    let mut other = fs::read(&file).unwrap();
    *other.last_mut().unwrap() ^= 1;
    each(
        "error",
        &file,
        |there| fs::write(there, &other).unwrap(),
        |protocol, name, out, there| {
            assert_eq!(out.code(), 9, "{name}: {out}");
            assert!(protocol == "ultradp" || out.stderr.contains("it exists and differs"), "{out}");
            assert!(fs::read(there).unwrap() == other, "{name}");
        },
    );
}

/// Nothing is taken of a file that is another one by its size.
#[test]
fn a_file_of_another_size_is_refused_before_its_bytes_are_taken() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let own = scratch();
    let file = own.path().join("f");
    write_file(&file, 64 * MIB, 1);
    for protocol in ["fastdp1.0", "fastdp1.1", "ultradp", "nextdp"] {
        fs::write(dir.path().join(protocol), "precious").unwrap();
        let proxy = Proxy::to(server.port);
        let out =
            client(args!["send", "--protocol", protocol, "--retries", "0", &file, proxy.target(protocol)]);
        assert_eq!(out.code(), 9, "{protocol}: {out}");
        assert!(proxy.up() < 32 << 20, "{protocol}: {} bytes went to the server", proxy.up());
        assert_eq!(fs::read_to_string(dir.path().join(protocol)).unwrap(), "precious");
    }
}

/// The other policies decide as they did: what is there is left, replaced or kept beside.
#[test]
fn other_policies_do_not_compare() {
    let (_own, file) = text(300_000);
    let content = fs::read(&file).unwrap();
    let same = |there: &Path| fs::write(there, &content).unwrap();
    each("rename", &file, same, |protocol, name, out, there| {
        assert_eq!(out.code(), success(protocol), "{name}: {out}");
        let beside = there.with_file_name(numbered(name));
        assert!(fs::read(beside).unwrap() == content, "{name}");
    });
    each(
        "overwrite",
        &file,
        |there| fs::write(there, "old").unwrap(),
        |protocol, name, out, there| {
            assert_eq!(out.code(), success(protocol), "{name}: {out}");
            assert!(fs::read(there).unwrap() == content, "{name}");
        },
    );
}

/// The name that `rename` gives.
fn numbered(name: &str) -> String {
    match name.rsplit_once('.') {
        Some((stem, extension)) => format!("{stem} (1).{extension}"),
        None => format!("{name} (1)"),
    }
}

/// A link to the very same bytes is not the file, and is not followed.
#[test]
fn a_link_to_the_same_bytes_is_refused() {
    let (_own, file) = text(300_000);
    each(
        "error",
        &file,
        |there| symlink(&file, there).unwrap(),
        |_, name, out, there| {
            assert_eq!(out.code(), 9, "{name}: {out}");
            assert!(fs::symlink_metadata(there).unwrap().is_symlink(), "{name}");
        },
    );
}

/// Of two that send the same file at the same time, neither is told that it differs.
#[test]
fn two_uploads_of_the_same_file_at_once_are_both_a_success() {
    let dir = scratch();
    let server = serve(dir.path(), &[]);
    let own = scratch();
    for protocol in ["fastdp1.0", "fastdp1.1", "ultradp"] {
        let file = own.path().join(protocol);
        write_file(&file, 8 * MIB, 1);
        // Both are under way before either is complete.
        let proxies = [Proxy::to(server.port), Proxy::to(server.port)];
        let sending: Vec<_> = proxies
            .iter()
            .map(|proxy| {
                proxy.hold_at(4 * MIB);
                fastdrop(args!["send", "--protocol", protocol, "--retries", "0", &file, proxy.target("")])
                    .json()
                    .start()
            })
            .collect();
        for proxy in &proxies {
            proxy.wait_held();
        }
        for (proxy, sending) in proxies.iter().zip(sending) {
            proxy.resume();
            let out = sending.wait();
            assert_eq!(out.code(), success(protocol), "{protocol}: {out}");
        }
        server.wait_idle();
        assert!(fs::read(dir.path().join(protocol)).unwrap() == fs::read(&file).unwrap());
    }
}

/// A download that is there already is one too; another one is not replaced.
#[test]
fn a_download_that_is_there_already_is_a_success() {
    let dir = scratch();
    write_file(&dir.path().join("f"), 1_234_567, 1);
    let (_server, port) = crate::fastdownloader::serve_downloads(dir.path());
    let there = scratch();
    let get =
        || client(args!["get", "--protocol", "fastdownloader", format!("127.0.0.1:{port}/f"), there.path()]);
    get().expect(0);
    get().expect(0);
    write_file(&there.path().join("f"), 1_234_567, 2);
    let out = get().expect(9);
    assert!(out.stderr.contains("it exists and differs"), "{out}");
    assert!(fs::read(there.path().join("f")).unwrap() == fill(1_234_567, 2));
}
