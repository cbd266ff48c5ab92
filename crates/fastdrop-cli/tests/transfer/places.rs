//! Several paths, and the places where they go.

use crate::served_and_own;
use crate::support::*;
use std::fs;
use std::path::PathBuf;

/// Several paths are one transfer, and lie side by side.
#[test]
fn several_paths_are_one_transfer() {
    let (served, own) = served_and_own();
    write_file(&own.path().join("file"), 3 * MIB, 1);
    small_tree(&own.path().join("tree"), 2, 5, 2);
    fs::create_dir(own.path().join("empty")).unwrap();
    let server = serve(served.path(), &[]);
    let three = ["file", "tree", "empty"].map(|name| own.path().join(name));
    let out = client(args!["send", three[0], three[1], three[2], server.target("")]).expect(0);
    out.expect_summary(&[("files", 11)]);
    assert_same_contents(own.path(), served.path());
    client(args!["send", three[0], three[1], three[2], server.target("new/deep")]).expect(0);
    assert_same_contents(own.path(), &server.path("new/deep"));
}

/// Two sources of one name cannot both arrive: said before anything is sent.
#[test]
fn two_sources_of_one_name_are_refused() {
    let (served, own) = served_and_own();
    write_file(&own.path().join("a/same"), 10, 1);
    write_file(&own.path().join("b/same"), 10, 2);
    let server = serve(served.path(), &[]);
    client(args!["send", own.path().join("a/same"), own.path().join("b/same"), server.target("")]).expect(9);
    assert_eq!(names_in(served.path()), [] as [&str; 0]);
}

/// Placement on the server is that of `cp`; a trailing slash on a source means its contents, as
/// with rsync.
#[test]
fn sending_places_as_cp_does() {
    let (served, own) = served_and_own();
    let file = own.path().join("file");
    write_file(&file, 100, 1);
    let tree = own.path().join("tree");
    small_tree(&tree, 2, 3, 2);
    let contents = format!("{}/", tree.display());
    let server = serve(served.path(), &[]);
    fs::create_dir(server.path("folder")).unwrap();
    let send = |source: &std::ffi::OsStr, target: &str| {
        client(args!["send", source, server.target(target)]).expect(0)
    };

    send(file.as_os_str(), "");
    assert_same_file(&file, &server.path("file"));
    send(file.as_os_str(), "other-name");
    assert_same_file(&file, &server.path("other-name"));
    send(file.as_os_str(), "folder");
    assert_same_file(&file, &server.path("folder/file"));
    send(file.as_os_str(), "missing/folders/name");
    assert_same_file(&file, &server.path("missing/folders/name"));

    send(tree.as_os_str(), "");
    assert_same_tree(&tree, &server.path("tree"));
    send(tree.as_os_str(), "folder");
    assert_same_tree(&tree, &server.path("folder/tree"));
    send(tree.as_os_str(), "as-this");
    assert_same_tree(&tree, &server.path("as-this"));
    send(contents.as_ref(), "contents");
    assert_same_contents(&tree, &server.path("contents"));

    let second = scratch();
    let server = serve(second.path(), &[]);
    client(args!["send", contents, server.target("")]).expect(0);
    assert_same_contents(&tree, second.path());
}

/// Placement here is that of `cp`, too.
#[test]
fn getting_places_as_cp_does() {
    let (served, own) = served_and_own();
    write_file(&served.path().join("file"), 100, 1);
    small_tree(&served.path().join("tree"), 2, 3, 2);
    let (file, tree) = (served.path().join("file"), served.path().join("tree"));
    let server = serve(served.path(), &[]);
    let here = |name: &str| own.path().join(name);
    fs::create_dir(here("folder")).unwrap();
    let get = |target: &str, dest: PathBuf| client(args!["get", server.target(target), dest]).expect(0);

    get("file", own.path().into());
    assert_same_file(&file, &here("file"));
    get("file", here("other-name"));
    assert_same_file(&file, &here("other-name"));
    get("tree", here("folder"));
    assert_same_tree(&tree, &here("folder/tree"));
    get("tree", here("as-this"));
    assert_same_tree(&tree, &here("as-this"));
    get("tree/", here("contents"));
    assert_same_contents(&tree, &here("contents"));
    get("tree/folder-001/file-0002", here("folder"));
    assert_same_file(&tree.join("folder-001/file-0002"), &here("folder/file-0002"));
    get("", here("everything"));
    assert_same_contents(served.path(), &here("everything"));

    // Without a destination, into the folder where one is.
    let cwd = scratch();
    fastdrop(args!["get", server.target("tree")]).json().cwd(cwd.path()).run().expect(0);
    assert_same_tree(&tree, &cwd.path().join("tree"));
}

/// One slash too many after the host is the served folder, as without it.
#[test]
fn a_slash_alone_is_the_served_folder() {
    let (served, own) = served_and_own();
    write_file(&served.path().join("file"), 10, 1);
    let server = serve(served.path(), &[]);
    let listed = client(args!["list", server.target("/")]).expect(0);
    assert!(listed.text().contains("file"), "{listed}");
    client(args!["get", server.target("/"), own.path()]).expect(0);
    assert_same_file(&served.path().join("file"), &own.path().join("file"));
    write_file(&own.path().join("sent"), 10, 2);
    client(args!["send", own.path().join("sent"), server.target("/")]).expect(0);
    assert_same_file(&own.path().join("sent"), &served.path().join("sent"));
}

/// A path that is not there is said so, and nothing is made.
#[test]
fn getting_what_is_not_there_is_exit_4() {
    let (served, own) = served_and_own();
    write_file(&served.path().join("file"), 10, 1);
    let server = serve(served.path(), &[]);
    client(args!["get", server.target("not-there"), own.path()]).expect(4);
    client(args!["get", server.target("file/beneath-a-file"), own.path()]).expect(4);
    client(args!["list", server.target("not-there")]).expect(4);
    assert_eq!(names_in(own.path()), [] as [&str; 0]);
}

/// Names that differ in nothing but `..` do not leave the served folder.
#[test]
fn case_53_a_target_with_dots_does_not_leave_the_folder() {
    let outer = scratch();
    let served = outer.path().join("served");
    fs::create_dir(&served).unwrap();
    write_file(&outer.path().join("secret"), 100, 1);
    let own = scratch();
    write_file(&own.path().join("file"), 100, 2);
    let mut server = serve(&served, &[]);
    for (path, code) in [
        ("../secret", 9),
        ("a/../../secret", 9),
        ("./../secret", 9),
        ("/../secret", 9),
        ("..", 9),
        // Names like any other, of which nothing has one.
        ("%2e%2e/secret", 4),
        ("..%2fsecret", 4),
    ] {
        client(args!["get", server.target(path), own.path().join("got")]).expect(code);
        assert!(!own.path().join("got").exists(), "{path}");
    }
    for path in ["../planted", "a/../../planted", "/../planted"] {
        client(args!["send", own.path().join("file"), server.target(path)]).expect(9);
    }
    assert_eq!(names_in(outer.path()), ["secret", "served"]);
    server.assert_serves("targets with dots");
}
