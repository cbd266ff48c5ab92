//! Sources that are missing, no files, or change meanwhile.

use crate::assert_one_line;
use crate::support::*;
use std::fs;
use std::io::Write as _;
use std::path::Path;

/// A source that is not there is said before anybody is asked.
#[test]
fn a_missing_source_is_exit_4() {
    let (served, own) = (scratch(), scratch());
    let server = serve(served.path(), &[]);
    let proxy = Proxy::to(server.port);
    let out =
        plain(args!["send", "--progress", "none", own.path().join("not-there"), proxy.target("")]).expect(4);
    assert_one_line(&out);
    assert!(out.stderr.contains("not-there"), "{out}");
    assert_eq!(proxy.up(), 0, "nothing is said to the server");
}

/// Case 49: pipes and sockets among the sources are left out with a warning, counted, and never
/// block.
#[test]
fn case_49_what_is_no_file_is_left_out_with_a_warning() {
    let (served, own) = (scratch(), scratch());
    let tree = own.path().join("tree");
    write_file(&tree.join("file"), 100, 1);
    tool("mkfifo", args![tree.join("a-pipe")]);
    let _socket = std::os::unix::net::UnixListener::bind(tree.join("a-socket")).unwrap();
    let server = serve(served.path(), &[]);
    let out = client(args!["send", tree, server.target("")]).expect(3);
    assert_eq!(out.number("files_skipped") + out.number("files_failed"), 2, "{out}");
    assert!(out.stderr.contains("a-pipe") && out.stderr.contains("a-socket"), "both are named\n{out}");
    assert_eq!(names_in(&server.path("tree")), ["file"]);
    // The server leaves them out, too.
    let here = own.path().join("back");
    let second = serve(&tree, &[]);
    client(args!["get", second.target(""), here]).expect(3);
    assert_eq!(names_in(&here), ["file"]);
}

/// Case 29: a source that shrinks, grows or changes while it is sent: "source changed", and nothing
/// gets the name.
#[test]
fn case_29_a_source_that_changes_meanwhile_is_not_mixed() {
    let (served, own) = (scratch(), scratch());
    let server = serve(served.path(), &[]);
    type Change = fn(&Path);
    let changes: [(&str, Change); 4] = [
        ("shrinks", |path| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(40 * MIB).unwrap()),
        ("grows", |path| fs::OpenOptions::new().append(true).open(path).unwrap().write_all(b"more").unwrap()),
        ("changes", |path| write_file(path, 64 * MIB, 4711)),
        ("becomes empty", |path| drop(fs::File::create(path).unwrap())),
    ];
    for (what, change) in changes {
        let source = own.path().join(format!("file-{what}"));
        write_file(&source, 64 * MIB, 1);
        set_mtime(&source, 1_500_000_000, 0);
        let proxy = Proxy::to(server.port);
        proxy.hold_at(4 * MIB);
        let run = fastdrop(args!["send", "--streams", "1", "--retries", "1", source, proxy.target("")])
            .json()
            .start();
        proxy.wait_held();
        change(&source);
        proxy.resume();
        let out = run.wait().expect(1);
        assert!(out.stderr.contains("changed"), "{what}\n{out}");
        assert!(!server.path(format!("file-{what}")).exists(), "{what}: a mixture has got the name");
        fs::remove_file(&source).unwrap();
    }
}

/// Case 29: one file of many changes; the others arrive, the one is named.
#[test]
fn case_29_one_changed_file_of_many_fails_alone() {
    let (served, own) = (scratch(), scratch());
    let tree = own.path().join("tree");
    write_file(&tree.join("a-steady"), 3 * MIB, 1);
    write_file(&tree.join("b-changing"), 64 * MIB, 2);
    write_file(&tree.join("c-steady"), 3 * MIB, 3);
    let server = serve(served.path(), &[]);
    let proxy = Proxy::to(server.port);
    proxy.hold_at(8 * MIB);
    let run =
        fastdrop(args!["send", "--streams", "1", "--retries", "0", tree, proxy.target("")]).json().start();
    proxy.wait_held();
    fs::OpenOptions::new().write(true).open(tree.join("b-changing")).unwrap().set_len(30 * MIB).unwrap();
    proxy.resume();
    let out = run.wait().expect(3);
    assert_eq!(out.number("files_failed"), 1, "{out}");
    assert!(out.stderr.contains("b-changing"), "{out}");
    assert_eq!(names_in(&server.path("tree")), ["a-steady", "c-steady"]);
    for name in ["a-steady", "c-steady"] {
        assert_same_file(&tree.join(name), &server.path("tree").join(name));
    }
}
