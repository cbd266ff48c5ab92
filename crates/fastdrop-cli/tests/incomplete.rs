//! Entries that a server cannot give are told to the client of a get or a list, which does not call
//! that done.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use support::*;

/// A tree in which something cannot be had, and what is good in it.
fn broken(root: &Path) {
    write_file(&root.join("good"), 1000, 1);
    write_file(&root.join("folder/good"), 300_000, 2);
    symlink("/etc/hostname", root.join("absolute")).unwrap();
    symlink("../../../outside", root.join("folder/outside")).unwrap();
    std::os::unix::net::UnixListener::bind(root.join("folder/socket")).unwrap();
}

/// Events of failed entries, by path.
fn failed(out: &Output) -> Vec<String> {
    let events = out.events.iter().filter(|event| event["event"] == "failed");
    let mut paths: Vec<_> = events.map(|event| event["path"].as_str().unwrap().to_owned()).collect();
    paths.sort();
    paths
}

/// Case 104: a get of less than there is exits with 3 and names the rest, in every form, in the
/// words of a send.
#[test]
fn case_104_a_get_of_less_than_there_is_is_no_success() {
    let (served, own) = (scratch(), scratch());
    let tree = served.path().join("tree");
    broken(&tree);
    let server = serve(served.path(), &[]);
    let sent = client(args!["send", tree, server.target("again")]).expect(3);
    let names = ["tree/absolute", "tree/folder/outside", "tree/folder/socket"];
    assert_eq!(failed(&sent), names);
    for (at, flags) in [
        &[][..],
        &["--compress", "targz"],
        &["--compress", "zip"],
        &["--checksum", "blake3"],
        &["-n"],
        &["--streams", "4", "--durability", "none"],
    ]
    .into_iter()
    .enumerate()
    {
        let to = own.path().join(format!("{at}"));
        let flags: Vec<std::ffi::OsString> = flags.iter().map(Into::into).collect();
        let out = client([args!["get", server.target("tree"), to], flags.clone()].concat()).expect(3);
        assert_eq!(failed(&out), names, "{flags:?}: {out}");
        assert_eq!(out.number("files_failed"), 3, "{flags:?}: {out}");
        if flags.contains(&"-n".into()) {
            assert!(!to.exists());
        } else {
            assert_same_file(&tree.join("good"), &to.join("good"));
            assert_same_file(&tree.join("folder/good"), &to.join("folder/good"));
        }
    }
    // The reasons are the same, whoever is asked.
    let got = client(args!["get", server.target("tree"), own.path().join("words")]).expect(3);
    let reason = |out: &Output, path: &str| {
        let event = out.events.iter().find(|event| event["event"] == "failed" && event["path"] == path);
        event.unwrap()["message"].clone()
    };
    for name in names {
        assert_eq!(reason(&got, name), reason(&sent, name));
    }
}

/// An entry that nobody asked for is not missing.
#[test]
fn case_104_what_is_excluded_does_not_fail() {
    let (served, own) = (scratch(), scratch());
    broken(&served.path().join("tree"));
    let server = serve(served.path(), &[]);
    for (at, flags) in [&["--exclude", "absolute", "--exclude", "folder"][..], &["--include", "good"]]
        .into_iter()
        .enumerate()
    {
        let to = own.path().join(format!("{at}"));
        let flags: Vec<std::ffi::OsString> = flags.iter().map(Into::into).collect();
        client([args!["get", server.target("tree"), to], flags].concat()).expect(0);
        assert!(to.join("good").exists());
    }
}

/// Links that lead outside are left out by policy with `--links safe`: said, and no failure.
#[test]
fn case_104_safe_links_are_a_policy_and_not_a_failure() {
    let (served, own) = (scratch(), scratch());
    let tree = served.path().join("tree");
    write_file(&tree.join("good"), 10, 1);
    symlink("/etc/hostname", tree.join("absolute")).unwrap();
    symlink("good", tree.join("inside")).unwrap();
    let server = serve(served.path(), &[]);
    let warned = |out: &Output| {
        out.events.iter().any(|event| event["event"] == "warning" && event["path"] == "tree/absolute")
    };
    let to = own.path().join("to");
    for extra in [&[][..], &["--compress", "targz", "--existing", "skip"]] {
        let extra: Vec<std::ffi::OsString> = extra.iter().map(Into::into).collect();
        let got =
            client([args!["get", "--links", "safe", server.target("tree"), to], extra.clone()].concat());
        assert!(warned(&got.expect(0)));
        assert!(to.join("inside").is_symlink() && !to.join("absolute").is_symlink());
        let sent = client([args!["send", "--links", "safe", tree, server.target("sent")], extra].concat());
        assert!(warned(&sent.expect(0)));
    }
    for policy in ["skip", "follow"] {
        let out = client(args!["get", "--links", policy, server.target("tree"), own.path().join(policy)]);
        // What a link leads to outside of the served folder is not to be had.
        assert_eq!(out.code(), if policy == "skip" { 0 } else { 3 }, "{out}");
    }
}

/// Case 104: a list that lacks something says so.
#[test]
fn case_104_a_list_of_less_than_there_is_is_no_success() {
    let served = scratch();
    broken(served.path());
    let server = serve(served.path(), &[]);
    client(args!["list", server.target("")]).expect(0);
    let out = client(args!["list", server.target("folder")]).expect(3);
    assert_eq!(failed(&out), ["socket"]);
    assert!(out.events.iter().any(|event| event["event"] == "entry" && event["path"] == "good"));
    client(args!["list", server.target("folder/socket")]).expect(3);
}

/// Case 104: thousands of entries that cannot be had are counted, and bounded in what they cost.
#[test]
fn case_104_very_many_failures_are_counted() {
    let (served, own) = (scratch(), scratch());
    let tree = served.path().join("tree");
    write_file(&tree.join("good"), 10, 1);
    for n in 0..10_050 {
        symlink("/nowhere", tree.join(format!("link-{n}"))).unwrap();
    }
    let server = serve(served.path(), &[]);
    let out = client(args!["get", server.target("tree"), own.path().join("to")]).expect(3);
    assert_eq!(out.number("files_failed"), 10_050);
    let out = client(args!["send", tree, server.target("sent")]).expect(3);
    assert_eq!(out.number("files_failed"), 10_050);
    assert!(!fs::exists(server.path("sent/link-0")).unwrap());
}
