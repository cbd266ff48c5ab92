//! Output that cannot be written.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::ffi::OsString;
use std::path::Path;
use support::*;

/// The code of a program that SIGPIPE ended, as a shell shows it.
const CLOSED_PIPE: i32 = 141;

/// Runs that have nothing to do but print, with the exit code on a full device.
fn printing(server: &Server, fastdownloader: &str) -> Vec<(Vec<OsString>, i32)> {
    let mut runs = vec![
        (args!["--help"], 1),
        (args!["-h"], 1),
        (args!["help", "send"], 1),
        (args!["get", "--help"], 1),
        (args!["--version"], 1),
        (args!["man"], 1),
        (args!["list", server.target("")], 1),
        (args!["list", "-q", server.target("tree")], 1),
        (args!["list", "--json", server.target("")], 1),
        (args!["list", "--protocol", "fastdownloader", fastdownloader], 1),
        (args!["list", "--json", "--protocol", "fastdownloader", fastdownloader], 1),
        // No space is what the system says of a full device.
        (args!["get", server.target("a-byte"), "-"], 8),
        (args!["get", server.target("big"), "-"], 8),
        (args!["get", "--streams", "4", server.target("big"), "-"], 8),
        (args!["get", "--json", server.target("big"), "-"], 8),
    ];
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        runs.push((args!["completions", shell], 1));
    }
    runs
}

/// Transfers of which only the summary is printed.
fn transfers(server: &Server, own: &Path) -> Vec<Vec<OsString>> {
    let file = own.join("file");
    vec![
        args!["send", file, server.target("sent-1")],
        args!["send", "--json", file, server.target("sent-2")],
        args!["send", "--checksum", "blake3", file, server.target("sent-3")],
        args!["send", "--compress", "targz", file, server.target("sent-4")],
        args!["send", "--protocol", "fastdp1.1", file, server.target("sent-5/")],
        args!["send", "--protocol", "ultradp", "--unconfirmed-ok", file, server.target("sent-6")],
        args!["send", "-n", file, server.target("sent-7")],
        args!["get", server.target("tree"), own.join("got-1")],
        args!["get", "--json", server.target("tree"), own.join("got-2")],
        args!["get", "-n", server.target("tree"), own.join("got-3")],
    ]
}

fn served() -> (tempfile::TempDir, tempfile::TempDir, Server, String) {
    let (dir, own) = (scratch(), scratch());
    write_file(&dir.path().join("a-byte"), 1, 1);
    write_file(&dir.path().join("big"), 3 * MIB + 5, 2);
    small_tree(&dir.path().join("tree"), 2, 50, 3);
    write_file(&own.path().join("file"), 5000, 4);
    let server = serve(dir.path(), &["--fastdownloader=0"]);
    let fastdownloader = eventually("the port of fastdownloader", || {
        let events = server.stdout();
        let line = events.lines().find(|line| line.contains("\"fastdownloader\""))?;
        let event: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(format!("127.0.0.1:{}", event["port"]))
    });
    (dir, own, server, fastdownloader)
}

/// A result that cannot be written is an error in words.
#[test]
fn case_83_a_full_output_is_an_error_of_everything_that_prints() {
    let (_dir, _own, server, fastdownloader) = served();
    for (args, code) in printing(&server, &fastdownloader) {
        let out = fastdrop(args).stdout_full().run().expect(code);
        assert!(out.stderr.contains("No space left on device"), "{out}");
    }
}

/// A transfer that has succeeded says so when its summary is lost, and does not end with 0.
#[test]
fn case_83_a_lost_summary_is_an_error_in_words_that_say_what_was_done() {
    let (_dir, own, server, _) = served();
    for args in transfers(&server, own.path()) {
        let out = fastdrop(args).stdout_full().run().expect(1);
        assert!(out.stderr.contains("the summary is lost: the output cannot be written"), "{out}");
    }
    assert_same_file(&own.path().join("file"), &server.path("sent-1"));
    assert_same_tree(&server.path("tree"), &own.path().join("got-1"));
}

/// A server whose address nobody can read does not begin.
#[test]
fn case_83_a_server_that_cannot_say_where_it_listens_ends() {
    let dir = scratch();
    for args in [
        args!["serve", dir.path(), "--port", "0"],
        args!["serve", dir.path(), "--port", "0", "--json"],
        args!["message", "listen", "--port", "0"],
        args!["message", "listen", "--port", "0", "--json"],
    ] {
        let out = fastdrop(args).stdout_full().run().expect(1);
        assert!(out.stderr.contains("No space left on device"), "{out}");
    }
}

/// A reader that goes away ends the program without a word, as SIGPIPE ends others.
#[test]
fn case_91_a_closed_pipe_ends_what_prints_without_a_word() {
    let (_dir, _own, server, fastdownloader) = served();
    for (args, _) in printing(&server, &fastdownloader) {
        let out = fastdrop(args).stdout_closed().run().expect(CLOSED_PIPE);
        assert_eq!(out.stderr, "", "{out}");
    }
}

/// Nobody has to read a summary: the transfer is what was asked for.
#[test]
fn case_91_a_transfer_whose_summary_nobody_reads_has_succeeded() {
    let (_dir, own, server, _) = served();
    for args in transfers(&server, own.path()) {
        let out = fastdrop(args).stdout_closed().run().expect(0);
        assert_eq!(out.stderr, "", "{out}");
    }
    assert_same_file(&own.path().join("file"), &server.path("sent-1"));
    assert_same_tree(&server.path("tree"), &own.path().join("got-1"));
}
