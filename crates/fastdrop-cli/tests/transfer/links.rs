//! Symbolic links.

use crate::served_and_own;
use crate::support::*;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

/// Links within the folder that they arrive in are copied; those that lead outside fail, in either
/// direction.
#[test]
fn links_are_copied_and_never_point_outside() {
    let (served, own) = served_and_own();
    let tree = own.path().join("tree");
    write_file(&tree.join("folder/file"), 100, 1);
    write_file(&own.path().join("outside"), 100, 2);
    for (name, target) in [
        ("to-file", "folder/file"),
        ("to-folder", "folder"),
        ("dangling", "not-there"),
        ("folder/up", "../to-file"),
    ] {
        symlink(target, tree.join(name)).unwrap();
    }
    let server = serve(served.path(), &[]);
    client(args!["send", tree, server.target("")]).expect(0);
    assert_same_tree(&tree, &server.path("tree"));
    client(args!["get", server.target("tree"), own.path().join("back")]).expect(0);
    assert_same_tree(&tree, &own.path().join("back"));

    let outside = own.path().join("outside");
    for (name, target) in [
        ("relative", "../../outside"),
        ("deep", "folder/../../../outside"),
        ("absolute", outside.to_str().unwrap()),
    ] {
        symlink(target, tree.join(name)).unwrap();
    }
    let bad = |root: &Path| {
        ["relative", "deep", "absolute"].map(|name| fs::symlink_metadata(root.join(name)).is_ok())
    };
    client(args!["send", tree, server.target("second")]).expect(3);
    assert_eq!(bad(&server.path("second")), [false; 3], "a link that points outside was made on the server");
    assert_same_file(&tree.join("folder/file"), &server.path("second/folder/file"));

    for name in ["relative", "deep"] {
        symlink("../../outside", server.path("tree").join(name)).unwrap();
    }
    symlink("/etc/passwd", server.path("tree/absolute")).unwrap();
    client(args!["get", server.target("tree"), own.path().join("third")]).expect(3);
    assert_eq!(bad(&own.path().join("third")), [false; 3], "a link that points outside was made here");
    assert_same_file(&tree.join("folder/file"), &own.path().join("third/folder/file"));
}

/// `--links skip` leaves them out, `--links follow` sends what they point to.
#[test]
fn links_are_skipped_or_followed_on_request() {
    let (served, own) = served_and_own();
    let tree = own.path().join("tree");
    write_file(&tree.join("file"), 100, 1);
    symlink("file", tree.join("link")).unwrap();
    let server = serve(served.path(), &[]);
    client(args!["send", "--links", "skip", tree, server.target("skipped")]).expect(0);
    assert_eq!(names_in(&server.path("skipped")), ["file"]);
    client(args!["send", "--links", "follow", tree, server.target("followed")]).expect(0);
    assert!(fs::symlink_metadata(server.path("followed/link")).unwrap().is_file());
    assert_eq!(fs::read(server.path("followed/link")).unwrap(), fs::read(tree.join("file")).unwrap());

    client(args!["send", tree, server.target("copied")]).expect(0);
    client(args!["get", "--links", "skip", server.target("copied"), own.path().join("got")]).expect(0);
    assert_eq!(names_in(&own.path().join("got")), ["file"]);
}

/// A link that leads back to where it lies does not make `--links follow` go round for ever.
#[test]
fn following_a_circle_of_links_ends() {
    let (served, own) = served_and_own();
    let tree = own.path().join("tree");
    write_file(&tree.join("file"), 100, 1);
    symlink(".", tree.join("circle")).unwrap();
    symlink("self", tree.join("self")).unwrap();
    let server = serve(served.path(), &[]);
    client(args!["send", "--links", "follow", tree, server.target("")]).expect(3);
    assert_same_file(&tree.join("file"), &server.path("tree/file"));
}
