//! `--exclude`, `--include` and `--files-from`, in every way in which files move.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use support::*;

const FILES: [&str; 8] = ["a.c", "a.o", "d/f", "d/g.o", "d/sub/h", "e/g", "e/h", "e/in/g"];

/// Flags, and what they take: the files that arrive, and no folder without one of them.
const TABLE: [(&[&str], &[&str]); 10] = [
    (&["--include", "d"], &["d/f", "d/g.o", "d/sub/h"]),
    (&["--include", "d/"], &["d/f", "d/g.o", "d/sub/h"]),
    (&["--include", "d/**"], &["d/f", "d/g.o", "d/sub/h"]),
    (&["--include", "/d/sub"], &["d/sub/h"]),
    (&["--include", "*.o"], &["a.o", "d/g.o"]),
    (&["--exclude", "e", "--include", "e/g"], &["a.c", "a.o", "d/f", "d/g.o", "d/sub/h", "e/g"]),
    (&["--include", "e/g", "--exclude", "e"], &["a.c", "a.o", "d/f", "d/g.o", "d/sub/h", "e/g"]),
    (&["--exclude", "*", "--include", "d/**"], &["d/f", "d/g.o", "d/sub/h"]),
    (&["--exclude", "e", "--include", "in"], &["a.c", "a.o", "d/f", "d/g.o", "d/sub/h", "e/in/g"]),
    (&["--include", "d", "--include", "!*.o"], &["d/f", "d/sub/h"]),
];

fn tree(root: &Path) {
    for name in FILES {
        write_file(&root.join(name), 100, 1);
    }
}

/// The files beneath a folder; fails if there is a folder without any.
#[track_caller]
fn files(root: &Path) -> Vec<String> {
    fn collect(root: &Path, folder: &Path, found: &mut Vec<String>) {
        let before = found.len();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(root, &path, found);
            } else {
                found.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            }
        }
        assert!(found.len() > before, "{} is empty", folder.display());
    }
    let mut found = Vec::new();
    collect(root, root, &mut found);
    found.sort();
    found
}

fn with(args: Vec<OsString>, flags: &[&str]) -> Vec<OsString> {
    args.into_iter().chain(flags.iter().map(OsString::from)).collect()
}

/// Whatever carries the files, flags choose the same.
#[test]
fn flags_choose_the_same_in_both_directions_as_files_and_in_archives() {
    let (served, own) = (scratch(), scratch());
    tree(&own.path().join("tree"));
    tree(&served.path().join("tree"));
    let server = serve(served.path(), &[]);
    for (at, (flags, expected)) in TABLE.iter().enumerate() {
        let source = format!("{}/", own.path().join("tree").display());
        for compress in ["auto", "targz", "zip"] {
            let name = format!("put-{at}-{compress}");
            let args = args!["send", "--compress", compress, source, server.target(&name)];
            client(with(args, flags)).expect(0);
            assert_eq!(files(&server.path(&name)), *expected, "send, {compress}, {flags:?}");
            let name = format!("got-{at}-{compress}");
            let args = args!["get", "--compress", compress, server.target("tree/"), own.path().join(&name)];
            client(with(args, flags)).expect(0);
            assert_eq!(files(&own.path().join(&name)), *expected, "get, {compress}, {flags:?}");
        }
        for args in [
            args!["send", "-n", source, server.target("")],
            args!["get", "-n", server.target("tree/"), own.path().join("new")],
        ] {
            let out = client(with(args, flags));
            let would = out.events.iter().filter(|event| event["event"] == "would");
            let would = would.map(|event| event["path"].as_str().unwrap().to_owned());
            let would: Vec<_> = would.filter(|path| FILES.contains(&&path[..])).collect();
            assert_eq!(would, *expected, "{flags:?}\n{out}");
        }
    }
}

/// A path that was listed and is not there is told, counted and exit 3, in both directions; the
/// others arrive.
#[test]
fn case_104_a_listed_path_that_is_not_there_is_a_failure_in_both_directions() {
    let (served, own) = (scratch(), scratch());
    tree(&own.path().join("tree"));
    tree(&served.path().join("tree"));
    let server = serve(served.path(), &[]);
    let list = own.path().join("list");
    fs::write(&list, "./d/f\ne/in/\nnothing\nd/no\n../up\n").unwrap();
    let source = format!("{}/", own.path().join("tree").display());
    for compress in ["auto", "targz"] {
        let flags = ["--files-from", list.to_str().unwrap(), "--compress", compress];
        let (put, got) = (format!("put-{compress}"), own.path().join(format!("got-{compress}")));
        for (args, place) in [
            (args!["send", source, server.target(&put)], server.path(&put)),
            (args!["get", server.target("tree/"), got], got.clone()),
        ] {
            let out = client(with(args, &flags)).expect(3);
            assert_eq!(files(&place), ["d/f", "e/in/g"], "{out}");
            let failed = out.events.iter().filter(|event| event["event"] == "failed");
            let mut failed: Vec<_> = failed.map(|event| event["path"].as_str().unwrap()).collect();
            failed.sort_unstable();
            assert_eq!(failed, ["../up", "d/no", "nothing"], "{out}");
            assert!(
                out.events.iter().all(|event| event["event"] != "failed" || event["code"] == 404),
                "{out}"
            );
            assert_eq!((out.number("files"), out.number("files_failed")), (2, 3), "{out}");
        }
    }
}

/// A listed folder that is not there is missing also where patterns would take only some of it; one in
/// which there is nothing to take is not.
#[test]
fn case_104_a_listed_folder_that_is_not_there_is_missing_with_patterns_too() {
    let (served, own) = (scratch(), scratch());
    for top in [own.path(), served.path()] {
        for (folder, file) in [("src", "a.c"), ("doc", "a.txt")] {
            fs::create_dir_all(top.join("tree").join(folder)).unwrap();
            fs::write(top.join("tree").join(folder).join(file), "x").unwrap();
        }
    }
    let server = serve(served.path(), &[]);
    let list = own.path().join("list");
    let source = format!("{}/", own.path().join("tree").display());
    for (listed, failed) in [("src\ndoc\n", 0), ("src\nscr\n", 1)] {
        fs::write(&list, listed).unwrap();
        let flags = ["--files-from", list.to_str().unwrap(), "--include", "*.c"];
        let (put, got) = (format!("put-{failed}"), own.path().join(format!("got-{failed}")));
        for (args, place) in [
            (args!["send", source, server.target(&put)], server.path(&put)),
            (args!["get", server.target("tree/"), got], got.clone()),
        ] {
            let out = client(with(args, &flags)).expect(if failed == 0 { 0 } else { 3 });
            assert_eq!(files(&place), ["src/a.c"], "{out}");
            assert_eq!((out.number("files"), out.number("files_failed")), (1, failed), "{out}");
        }
    }
}
