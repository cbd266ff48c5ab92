//! Choosing: what is carried, and what is only said.

use crate::served_and_own;
use crate::support::*;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

/// `--exclude` and `--include`, in whichever order; `choosing.rs` has more.
#[test]
fn exclude_and_include_choose() {
    let (served, own) = served_and_own();
    let tree = own.path().join("tree");
    for name in ["a.log", "a.txt", "deep/b.log", "deep/keep.log", "cache/c.txt"] {
        write_file(&tree.join(name), 10, 1);
    }
    let server = serve(served.path(), &[]);
    client(args!["send", "--exclude", "*.log", tree, server.target("one")]).expect(0);
    assert_eq!(names_in(&server.path("one")), ["a.txt", "cache", "deep"]);
    assert_eq!(names_in(&server.path("one/deep")), [] as [&str; 0]);
    client(args!["send", "--include", "keep.log", "--exclude", "*.log", tree, server.target("two")])
        .expect(0);
    assert_eq!(names_in(&server.path("two/deep")), ["keep.log"]);
    client(args!["send", "--exclude", "cache", "--exclude", "*.txt", tree, server.target("three")]).expect(0);
    assert_eq!(names_in(&server.path("three")), ["a.log", "deep"]);
}

/// `--files-from` names what of the source is sent, one a line, relative to it.
#[test]
fn files_from_chooses() {
    let (served, own) = served_and_own();
    let tree = own.path().join("tree");
    for name in ["a", "deep/b", "deep/c", "d"] {
        write_file(&tree.join(name), 10, 1);
    }
    let list = own.path().join("list");
    fs::write(&list, "a\ndeep/b\n").unwrap();
    let server = serve(served.path(), &[]);
    let contents = format!("{}/", tree.display());
    client(args!["send", "--files-from", list, contents, server.target("chosen")]).expect(0);
    assert_eq!(names_in(&server.path("chosen")), ["a", "deep"]);
    assert_eq!(names_in(&server.path("chosen/deep")), ["b"]);
    assert_same_file(&tree.join("deep/b"), &server.path("chosen/deep/b"));
}

/// Hard links and extended attributes are not carried, which `-v` says once.
#[test]
fn what_is_not_carried_is_said_once_with_v() {
    let (served, own) = served_and_own();
    let tree = own.path().join("tree");
    small_tree(&tree, 2, 3, 1);
    fs::hard_link(tree.join("folder-000/file-0000"), tree.join("folder-001/again")).unwrap();
    let server = serve(served.path(), &[]);
    let out = plain(args!["send", "-v", tree, server.target("one")]).expect(0);
    assert_eq!(out.stderr.matches("hard links are not carried: 2 files").count(), 1, "{out}");
    assert!(!out.stderr.contains("attributes"), "{out}");
    let out = plain(args!["send", tree, server.target("two")]).expect(0);
    assert!(!out.stderr.contains("carried"), "{out}");
}

/// The server says it of what a get asks for, and only when it is asked to.
#[test]
fn what_a_get_does_not_carry_is_said_once_with_v() {
    let (served, own) = served_and_own();
    let tree = served.path().join("tree");
    small_tree(&tree, 2, 3, 1);
    fs::hard_link(tree.join("folder-000/file-0000"), tree.join("folder-001/again")).unwrap();
    let server = serve(served.path(), &[]);
    for option in ["--existing=error", "--compress=targz", "--dry-run"] {
        let into = own.path().join(option);
        let out = plain(args!["get", "-v", option, server.target("tree"), into]).expect(0);
        assert_eq!(out.stderr.matches("hard links are not carried: 2 files").count(), 1, "{option} {out}");
        assert!(!out.stderr.contains("attributes"), "{out}");
    }
    let out = plain(args!["get", server.target("tree"), own.path().join("quiet")]).expect(0);
    assert!(!out.stderr.contains("carried"), "{out}");
}

#[test]
#[ignore = "needs a file system with extended attributes"]
fn attributes_that_are_not_carried_are_said_once_with_v() {
    let (served, own) = (scratch(), on_disk());
    let tree = own.path().join("tree");
    small_tree(&tree, 2, 3, 1);
    for name in ["folder-000", "folder-001/file-0001"] {
        tool(
            "python3",
            args!["-c", "import os, sys; os.setxattr(sys.argv[1], 'user.note', b'x')", tree.join(name)],
        );
    }
    let server = serve(served.path(), &[]);
    let out = plain(args!["send", "-v", tree, server.target("one")]).expect(0);
    assert_eq!(
        out.stderr.matches("attributes and access control lists are not carried: 2 files").count(),
        1,
        "{out}"
    );
}

/// `get` makes the folders above its destination, as `send` does; not for a dry run, and not for
/// what is not there.
#[test]
fn get_makes_the_folders_above_its_destination() {
    let (served, own) = served_and_own();
    small_tree(&served.path().join("tree"), 2, 3, 1);
    write_file(&served.path().join("file"), 1000, 1);
    let server = serve(served.path(), &[]);
    let new = own.path().join("new");
    client(args!["get", "-n", server.target("tree"), new.join("a/b")]).expect(0);
    client(args!["get", server.target("no-such-file"), new.join("a/b")]).expect(4);
    assert!(!new.exists());
    client(args!["get", server.target("tree"), new.join("a/b")]).expect(0);
    assert_same_tree(&served.path().join("tree"), &new.join("a/b"));
    client(args!["get", server.target("file"), new.join("c/d/")]).expect(0);
    assert_same_file(&served.path().join("file"), &new.join("c/d/file"));
    fastdrop(args!["get", server.target("file"), "e/f"]).cwd(&new).run().expect(0);
    assert_same_file(&served.path().join("file"), &new.join("e/f"));
    client(args!["get", "--compress", "targz", server.target("tree"), new.join("g/h")]).expect(0);
    assert_same_tree(&served.path().join("tree"), &new.join("g/h"));
    // What is no folder stays none.
    client(args!["get", server.target("file"), new.join("c/d/file/x")]).expect(9);
}

/// `--dry-run` changes nothing, here or there.
#[test]
fn dry_run_changes_nothing() {
    let (served, own) = served_and_own();
    let tree = own.path().join("tree");
    small_tree(&tree, 2, 3, 1);
    let server = serve(served.path(), &[]);
    client(args!["send", "--dry-run", tree, server.target("")])
        .expect(0)
        .expect_summary(&[("bytes_sent", 0)]);
    assert_eq!(names_in(served.path()), [] as [&str; 0]);
    client(args!["send", tree, server.target("")]).expect(0);
    let here = own.path().join("back");
    client(args!["get", "-n", server.target("tree"), here]).expect(0).expect_summary(&[("bytes_sent", 0)]);
    assert!(!here.exists());
    assert_eq!(leftovers(served.path()), [] as [PathBuf; 0]);
    assert_eq!(leftovers(own.path()), [] as [PathBuf; 0]);
}

/// `--bwlimit` limits bytes a second, all streams together, in both directions.
#[test]
fn bwlimit_limits() {
    let (served, own) = served_and_own();
    let source = own.path().join("file");
    write_file(&source, 8 * MIB, 1);
    let server = serve(served.path(), &[]);
    let timed = |args: Vec<std::ffi::OsString>| {
        let start = Instant::now();
        client(args).expect(0);
        start.elapsed().as_secs_f64()
    };
    // Two seconds at this rate; a start with a second's worth at once is no offence.
    let sending = timed(args!["send", "--bwlimit", "4M", "--streams", "4", source, server.target("")]);
    assert!((1.0..8.0).contains(&sending), "8 MiB at 4 MiB a second took {sending} s");
    let getting =
        timed(args!["get", "--bwlimit", "4M", "--streams", "4", server.target("file"), own.path().join("b")]);
    assert!((1.0..8.0).contains(&getting), "8 MiB at 4 MiB a second took {getting} s");
}
