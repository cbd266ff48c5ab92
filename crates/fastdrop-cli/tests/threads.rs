//! A machine that has no thread to give: whatever needs one fails in words, nothing dies of it, and
//! nothing is said to have arrived that has not.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use support::*;

const PROTOCOLS: [&str; 5] = ["fastdp", "fastdp1.0", "fastdp1.1", "ultradp", "nextdp"];
/// As few as a program can be started with, up to more than a transfer takes.
const THREADS: std::ops::RangeInclusive<u32> = 2..=13;

/// Runs a program as a user of its own with at most so many threads: they are counted by user.
fn with_threads(threads: u32, user: u32) -> Vec<OsString> {
    let user = (user + threads).to_string();
    let limit = format!("--nproc={threads}:{threads}");
    let (uid, gid) = (format!("--reuid={user}"), format!("--regid={user}"));
    args!["setpriv", uid, gid, "--clear-groups", "prlimit", limit]
}

fn open_to_all(dir: &Path) {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
}

/// A tree of small files and one for which data streams are opened, and its largest file.
fn sources() -> tempfile::TempDir {
    let dir = scratch();
    open_to_all(dir.path());
    fs::create_dir(dir.path().join("t")).unwrap();
    for i in 0..40 {
        write_file(&dir.path().join(format!("t/{i}")), 100, i);
    }
    write_file(&dir.path().join("t/large"), 3 * MIB, 99);
    dir
}

/// Checks that what is at `there` is what was sent, if it is said to be.
fn check(out: &Output, sent: &Path, there: &Path) {
    // How many threads are left when it begins is not determined, so neither is what fails, if
    // anything does: a connection that is reset (5), or one that is refused in words (9).
    match out.code() {
        // UltraDP has no words for success.
        0 | 10 => assert_same_contents(sent, there),
        5 | 9 => {}
        _ => panic!("{out}"),
    }
    assert!(!out.text().contains("panicked"), "{out}");
}

#[test]
#[ignore = "needs root"]
fn a_server_with_few_threads_fails_in_words_and_lives_needs_root() {
    let files = sources();
    for threads in THREADS {
        let dir = scratch();
        open_to_all(dir.path());
        let mut server = serve_through(dir.path(), &[], with_threads(threads, 54_400));
        for protocol in PROTOCOLS {
            let file = files.path().join("t/large");
            let target = server.target(protocol);
            let out = client(args!["send", "--retries", "0", "--protocol", protocol, file, target]);
            check(&out, &file, &dir.path().join(protocol));
        }
        let tree = files.path().join("t");
        let out = client(args!["send", "--retries", "0", &tree, server.target("")]);
        check(&out, &tree, &dir.path().join("t"));
        for archive in ["none", "zip"] {
            let dir = scratch();
            let from = server.target("fastdp");
            let out = client(args!["get", "--retries", "0", "--compress", archive, from, dir.path()]);
            // There is nothing to get where nothing could be put, and that is not determined.
            if out.code() != 4 && out.code() != 3 {
                check(&out, &files.path().join("t/large"), &dir.path().join("fastdp"));
            }
        }
        assert!(server.is_running(), "{threads} threads: {}", server.stderr());
        assert!(!server.stderr().contains("panicked"), "{threads} threads: {}", server.stderr());
    }
}

#[test]
#[ignore = "needs root"]
fn a_client_with_few_threads_fails_in_words_needs_root() {
    let files = sources();
    for threads in THREADS {
        let dir = scratch();
        let server = serve(dir.path(), &[]);
        let wrapped =
            |args: Vec<OsString>| fastdrop(args).wrapper(with_threads(threads, 54_500)).json().run();
        for protocol in PROTOCOLS {
            let file = files.path().join("t/large");
            let target = server.target(protocol);
            let out = wrapped(args!["send", "--retries", "0", "--protocol", protocol, &file, target]);
            check_client(&out, &file, &dir.path().join(protocol));
        }
        let tree = files.path().join("t");
        for archive in ["none", "targz"] {
            let target = server.target(format!("{archive}/"));
            let out = wrapped(args!["send", "--retries", "0", "--compress", archive, &tree, target]);
            check_client(&out, &tree, &dir.path().join(archive).join("t"));
        }
        fs::create_dir_all(dir.path().join("from")).unwrap();
        write_file(&dir.path().join("from/f"), 3 * MIB, 7);
        let own = scratch();
        open_to_all(own.path());
        let out = wrapped(args!["get", "--retries", "0", server.target("from/f"), own.path()]);
        check_client(&out, &dir.path().join("from/f"), &own.path().join("f"));
    }
}

/// The same for a client, whose own lack of a thread is also its own fault.
fn check_client(out: &Output, sent: &Path, there: &Path) {
    assert!(!out.text().contains("panicked"), "{out}");
    // What finds no thread is not determined, as in `check`; 1 is this end's own lack of one.
    match out.code() {
        0 | 10 => assert_same_contents(sent, there),
        1 | 5 | 9 => assert!(out.text().contains("thread") || out.code() != 1, "{out}"),
        _ => panic!("{out}"),
    }
}
