//! Stages: unfinished files, and their fate when they cannot get their names.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use support::*;

/// A command that makes these system calls fail, each from its `when`-th time on in every thread.
fn failing(log: &Path, calls: &str, error: &str, when: &str) -> Vec<OsString> {
    let (trace, inject) = (format!("trace={calls}"), format!("inject={calls}:error={error}:when={when}"));
    args!["strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o", log, "-e", trace, "-e", inject]
}

#[track_caller]
fn assert_injected(log: &Path) {
    let text = fs::read_to_string(log).unwrap();
    assert!(text.contains("INJECTED"), "nothing failed: this tested nothing\n{text}");
}

/// Moves `file` from a folder into another, by a put or by a get, with a receiver that is run by
/// `wrapper`.
fn receive(get: bool, from: &Path, to: &Path, wrapper: Vec<OsString>) -> Output {
    if get {
        let server = serve(from, &[]);
        return fastdrop(args!["get", server.target("file"), to]).json().wrapper(wrapper).run();
    }
    let server = serve_through(to, &[], wrapper);
    client(args!["send", from.join("file"), server.target("")])
}

/// The first rename gives the journal its name; the second would have given the file its own.
#[test]
#[ignore = "needs strace"]
fn what_could_not_be_named_for_a_moment_is_not_sent_again() {
    let errors = [
        ("EIO", 1),
        ("ENOMEM", 5),
        ("ENOSPC", 8),
        ("EMFILE", 5),
        ("EDQUOT", 8),
        ("EACCES", 9),
        ("EROFS", 9),
        ("EBUSY", 1),
        ("EXDEV", 9),
    ];
    for (at, (error, code)) in errors.into_iter().enumerate() {
        for (get, size) in [(at % 2 == 0, 3000), (at % 2 == 1, 3 * MIB)] {
            let (from, to, own) = (scratch(), scratch(), scratch());
            let log = own.path().join("strace.log");
            write_file(&from.path().join("file"), size, 1);
            until_settled(&from.path().join("file"));
            receive(get, from.path(), to.path(), failing(&log, "renameat2", error, "2+")).expect(code);
            assert_injected(&log);
            assert_eq!(names_in(to.path()), [] as [&str; 0], "{error}");
            let again = receive(get, from.path(), to.path(), Vec::new()).expect(0);
            assert_eq!(again.number("bytes_sent"), 0, "{error}: verified data was thrown away\n{again}");
            assert_same_file(&from.path().join("file"), &to.path().join("file"));
            assert_eq!(leftovers(to.path()), [] as [PathBuf; 0], "{error}");
        }
    }
}

/// In a tree the others get their names; what a name itself forbids is not kept.
#[test]
#[ignore = "needs strace"]
fn one_name_of_many_that_cannot_be_given_is_a_failed_entry() {
    for (error, kept) in [("EIO", true), ("EEXIST", false), ("ENAMETOOLONG", false), ("ENOTDIR", false)] {
        let (served, own) = (scratch(), scratch());
        let (log, tree) = (own.path().join("strace.log"), own.path().join("tree"));
        small_tree(&tree, 2, 5, 1);
        until_settled(&tree.join("folder-001/file-0004"));
        let mut server = serve_through(served.path(), &[], failing(&log, "renameat2", error, "4"));
        let out = client(args!["send", tree, server.target("")]).expect(3);
        assert_injected(&log);
        assert_eq!(out.number("files_failed"), 1, "{out}");
        assert_eq!(leftovers(served.path()).is_empty(), !kept, "{error}");
        server.kill9();
        let server = serve(served.path(), &[]);
        let again = client(args!["send", tree, server.target("")]).expect(0);
        assert_eq!(again.number("bytes_sent") == 0, kept, "{error}\n{again}");
        assert_same_tree(&tree, &server.path("tree"));
        assert_eq!(leftovers(served.path()), [] as [PathBuf; 0], "{error}");
    }
}

/// Nothing stays of a stage of which some part cannot be made.
#[test]
#[ignore = "needs strace"]
fn a_stage_that_cannot_be_made_leaves_nothing_behind() {
    for (calls, error, when, code) in [
        ("mkdirat", "ENOSPC", "1", 8),
        ("mkdirat", "EDQUOT", "2", 8),
        // The journal's lock, its first bytes or its second, its name.
        ("flock", "ENOLCK", "1", 1),
        ("write", "ENOSPC", "2+", 8),
        ("write", "EIO", "3+", 1),
        ("renameat2", "EIO", "1", 1),
    ] {
        let (from, to, own) = (scratch(), scratch(), scratch());
        let log = own.path().join("strace.log");
        write_file(&from.path().join("file"), 3000, 1);
        let server = serve(from.path(), &[]);
        let run = fastdrop(args!["get", server.target("file"), to.path()])
            .wrapper(failing(&log, calls, error, when))
            .run()
            .expect(code);
        assert_injected(&log);
        assert_eq!(leftovers(to.path()), [] as [PathBuf; 0], "{calls} {error} {when}\n{run}");
    }
}
