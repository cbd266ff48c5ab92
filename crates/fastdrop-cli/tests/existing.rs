//! What is there already: left, skipped, kept beside, replaced, and never lost by accident.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use support::*;

const SIZE: u64 = 4 * MIB + 5;

/// A source named `file`, and a served folder with another `file`.
struct Conflict {
    served: tempfile::TempDir,
    own: tempfile::TempDir,
    source: PathBuf,
    old: Vec<u8>,
}

fn conflict() -> Conflict {
    let (served, own) = (scratch(), scratch());
    let source = own.path().join("file");
    write_file(&source, SIZE, 1);
    set_mtime(&source, 1_500_000_000, 5);
    let old = fill(SIZE, 2);
    fs::write(served.path().join("file"), &old).unwrap();
    set_mtime(&served.path().join("file"), 1_400_000_000, 5);
    Conflict { served, own, source, old }
}

fn mkfifo(path: &Path) {
    tool("mkfifo", args![path]);
}

/// The default: exit code 9, the old one stays, and not a byte of the new one has been sent.
#[test]
fn a_file_that_differs_is_exit_9_before_anything_is_sent() {
    let c = conflict();
    let tree = c.own.path().join("many");
    fs::create_dir(&tree).unwrap();
    fs::rename(&c.source, tree.join("file")).unwrap();
    for n in 0..4 {
        write_file(&tree.join(format!("new-{n}")), 2 * MIB, n);
    }
    let contents = format!("{}/", tree.display());
    let server = serve(c.served.path(), &["--existing", "overwrite"]);
    for existing in [None, Some("error")] {
        let proxy = Proxy::to(server.port);
        let mut args = args!["send", contents, proxy.target("")];
        if let Some(existing) = existing {
            args.splice(1..1, args!["--existing", existing]);
        }
        let out = client(args).expect(9);
        assert!(proxy.up() < 100_000, "{} bytes went to the server\n{out}", proxy.up());
        assert!(out.stderr.contains("file"), "the file is named\n{out}");
    }
    assert_eq!(names_in(c.served.path()), ["file"]);
    assert!(fs::read(server.path("file")).unwrap() == c.old);
    assert_eq!(leftovers(c.served.path()), [] as [PathBuf; 0]);
}

/// Equal size is not equal: the time decides, too, or where that differs, the contents; and equal
/// time with another size differs.
#[test]
fn identical_is_size_and_time() {
    let (served, own) = (scratch(), scratch());
    let source = own.path().join("file");
    write_file(&source, 1000, 1);
    set_mtime(&source, 1_500_000_000, 5);
    let server = serve(served.path(), &[]);
    client(args!["send", source, server.target("")]).expect(0);
    client(args!["send", source, server.target("")]).expect(0).expect_summary(&[
        ("files_skipped", 1),
        ("bytes_sent", 0),
        ("files_failed", 0),
    ]);
    fs::write(&source, fill(1000, 2)).unwrap();
    set_mtime(&source, 1_500_000_000, 6);
    client(args!["send", source, server.target("")]).expect(9);
    fs::write(&source, fill(1001, 1)).unwrap();
    set_mtime(&source, 1_500_000_000, 5);
    client(args!["send", source, server.target("")]).expect(9);
    assert_eq!(fs::metadata(server.path("file")).unwrap().len(), 1000);
}

/// Of a tree only what is new is sent.
#[test]
fn only_what_is_new_is_sent() {
    let (served, own) = (scratch(), scratch());
    let tree = own.path().join("tree");
    for n in 0..10 {
        write_file(&tree.join(format!("file-{n}")), 100_000, n);
    }
    let server = serve(served.path(), &[]);
    client(args!["send", tree, server.target("")]).expect(0);
    write_file(&tree.join("a-new-one"), 12_345, 77);
    write_file(&tree.join("file-3-and-a-half"), 2 * MIB, 78);
    client(args!["send", tree, server.target("")]).expect(0).expect_summary(&[
        ("files_skipped", 10),
        ("bytes_sent", 12_345 + 2 * MIB),
        ("files_failed", 0),
    ]);
    assert_same_tree(&tree, &server.path("tree"));
}

/// `skip` leaves what differs and sends the rest.
#[test]
fn skip_leaves_what_differs() {
    let c = conflict();
    write_file(&c.own.path().join("other"), 100, 3);
    let server = serve(c.served.path(), &[]);
    let contents = format!("{}/", c.own.path().display());
    client(args!["send", "--existing", "skip", contents, server.target("")])
        .expect(0)
        .expect_summary(&[("files_skipped", 1), ("bytes_sent", 100)]);
    assert!(fs::read(server.path("file")).unwrap() == c.old);
    assert_same_file(&c.own.path().join("other"), &server.path("other"));
}

/// `overwrite` replaces, when the new one is complete and not before.
#[test]
fn overwrite_replaces_when_complete() {
    let c = conflict();
    let server = serve(c.served.path(), &["--existing", "overwrite"]);
    let proxy = Proxy::to(server.port);
    proxy.hold_at(2 * MIB);
    let run = fastdrop(args!["send", "--existing", "overwrite", c.source, proxy.target("")]).json().start();
    proxy.wait_held();
    assert!(
        fs::read(server.path("file")).unwrap() == c.old,
        "the old one stays until the new one is complete"
    );
    proxy.resume();
    run.wait().expect(0);
    assert_same_file(&c.source, &server.path("file"));
    assert_eq!(names_in(c.served.path()), ["file"]);
}

/// `rename` keeps both.
#[test]
fn rename_keeps_both() {
    let c = conflict();
    let server = serve(c.served.path(), &["--existing", "rename"]);
    for round in 1..=2 {
        // The second time a file that differs from both.
        write_file(&c.source, SIZE, 10 + round);
        client(args!["send", "--existing", "rename", c.source, server.target("")]).expect(0);
        let names = names_in(c.served.path());
        assert_eq!(names.len() as u64, 1 + round, "{names:?}");
        assert!(fs::read(server.path("file")).unwrap() == c.old);
        let new = digest_of(&c.source);
        assert!(names.iter().any(|name| digest_of(&server.path(name)) == new), "{names:?}");
    }
}

/// The server's `--existing` is the ceiling.
#[test]
fn the_server_sets_the_ceiling() {
    let allowed = [
        ("error", ["skip"].as_slice()),
        ("rename", ["skip", "rename"].as_slice()),
        ("overwrite", ["skip", "rename", "overwrite"].as_slice()),
    ];
    for (ceiling, may) in allowed {
        for existing in ["skip", "rename", "overwrite"] {
            let c = conflict();
            let server = serve(c.served.path(), &["--existing", ceiling]);
            let proxy = Proxy::to(server.port);
            let out = client(args!["send", "--existing", existing, c.source, proxy.target("")]);
            if may.contains(&existing) {
                out.expect(0);
            } else {
                out.expect(9);
                assert!(proxy.up() < 100_000, "{ceiling}, {existing}: refused before anything is sent");
                assert_eq!(names_in(c.served.path()), ["file"]);
                assert!(fs::read(server.path("file")).unwrap() == c.old, "{ceiling}, {existing}");
            }
        }
    }
    // Without a word it is `error`.
    let c = conflict();
    let server = serve(c.served.path(), &[]);
    client(args!["send", "--existing", "overwrite", c.source, server.target("")]).expect(9);
    assert!(fs::read(server.path("file")).unwrap() == c.old);
}

/// A `get` treats what is here as a `send` treats what is there.
#[test]
fn get_follows_the_same_rules() {
    let c = conflict();
    let here = c.own.path();
    let server = serve(c.served.path(), &[]);
    let mine = fs::read(&c.source).unwrap();
    let proxy = Proxy::to(server.port);
    client(args!["get", proxy.target("file"), here]).expect(9);
    assert!(proxy.down() < 100_000, "refused before anything is fetched");
    assert!(fs::read(&c.source).unwrap() == mine);
    client(args!["get", "--existing", "skip", server.target("file"), here])
        .expect(0)
        .expect_summary(&[("files_skipped", 1), ("bytes_sent", 0)]);
    assert!(fs::read(&c.source).unwrap() == mine);
    client(args!["get", "--existing", "rename", server.target("file"), here]).expect(0);
    assert_eq!(names_in(here).len(), 2);
    assert!(fs::read(&c.source).unwrap() == mine);
    client(args!["get", "--existing", "overwrite", server.target("file"), here]).expect(0);
    assert!(fs::read(&c.source).unwrap() == c.old);
    client(args!["get", server.target("file"), here]).expect(0).expect_summary(&[("files_skipped", 1)]);
    assert_eq!(leftovers(here), [] as [PathBuf; 0]);
}

/// Case 60: a folder is never replaced by a file, nor a file by a folder.
#[test]
fn case_60_a_folder_is_never_replaced() {
    let (served, own) = (scratch(), scratch());
    write_file(&own.path().join("thing"), 100, 1);
    write_file(&own.path().join("tree/thing/inside"), 100, 1);
    write_file(&served.path().join("thing/old"), 10, 1);
    write_file(&served.path().join("tree/thing"), 10, 1);
    let server = serve(served.path(), &["--existing", "overwrite"]);
    for existing in ["error", "overwrite"] {
        client(args!["send", "--existing", existing, own.path().join("thing"), server.target("")]).expect(9);
        client(args!["send", "--existing", existing, own.path().join("tree"), server.target("")]).expect(9);
    }
    assert_eq!(names_in(&server.path("thing")), ["old"]);
    assert_eq!(fs::metadata(server.path("tree/thing")).unwrap().len(), 10);
    // And here.
    client(args!["get", "--existing", "overwrite", server.target("thing"), own.path()]).expect(9);
    client(args!["get", "--existing", "overwrite", server.target("tree"), own.path()]).expect(9);
    assert_eq!(fs::metadata(own.path().join("thing")).unwrap().len(), 100);
}

/// Case 60: a pipe as the target is refused, and nobody waits for its other end; the same for one
/// that is to be got.
#[test]
fn case_60_a_pipe_is_refused_and_never_blocks() {
    let (served, own) = (scratch(), scratch());
    write_file(&own.path().join("pipe"), 100, 1);
    mkfifo(&served.path().join("pipe"));
    let mut server = serve(served.path(), &["--existing", "overwrite"]);
    for existing in ["error", "overwrite"] {
        client(args!["send", "--existing", existing, own.path().join("pipe"), server.target("")]).expect(9);
    }
    assert!(fs::symlink_metadata(server.path("pipe")).unwrap().file_type().is_fifo());
    let here = own.path().join("got");
    client(args!["get", server.target("pipe"), here]).expect(9);
    assert!(!here.exists());
    mkfifo(&here);
    write_file(&served.path().join("file"), 100, 1);
    client(args!["get", "--existing", "overwrite", server.target("file"), here]).expect(9);
    assert!(fs::symlink_metadata(&here).unwrap().file_type().is_fifo());
    server.assert_serves("a pipe");
}

/// A link in the place of a file is never followed, and replaced only by `overwrite`.
#[test]
fn a_link_is_replaced_only_by_overwrite_and_never_followed() {
    let (outside, served, own) = (scratch(), scratch(), scratch());
    let victim = outside.path().join("victim");
    write_file(&victim, 50, 1);
    write_file(&own.path().join("file"), 100, 2);
    write_file(&own.path().join("dangling"), 100, 2);
    symlink(&victim, served.path().join("file")).unwrap();
    symlink(outside.path().join("planted"), served.path().join("dangling")).unwrap();
    let server = serve(served.path(), &["--existing", "overwrite"]);
    for name in ["file", "dangling"] {
        let source = own.path().join(name);
        client(args!["send", source, server.target("")]).expect(9);
        assert!(fs::symlink_metadata(server.path(name)).unwrap().is_symlink());
        client(args!["send", "--existing", "skip", source, server.target("")]).expect(0);
        assert!(fs::symlink_metadata(server.path(name)).unwrap().is_symlink());
        client(args!["send", "--existing", "overwrite", source, server.target("")]).expect(0);
        assert_same_file(&source, &server.path(name));
    }
    assert_eq!(names_in(outside.path()), ["victim"]);
    assert_eq!(fs::metadata(&victim).unwrap().len(), 50);
}

/// Case 48: a link among the parents of a target is not followed out of the served folder, whatever
/// is asked.
#[test]
fn case_48_a_link_among_the_parents_is_not_followed() {
    let (outside, served, own) = (scratch(), scratch(), scratch());
    write_file(&outside.path().join("secret"), 50, 1);
    symlink(outside.path(), served.path().join("link")).unwrap();
    let source = own.path().join("file");
    write_file(&source, 100, 1);
    write_file(&own.path().join("tree/link/file"), 100, 1);
    let mut server = serve(served.path(), &["--existing", "overwrite"]);
    for existing in ["error", "overwrite"] {
        for target in ["link/file", "link/new/file", "link/secret"] {
            client(args!["send", "--existing", existing, source, server.target(target)]).expect(9);
        }
        // A folder of the tree where a link is.
        let contents = format!("{}/", own.path().join("tree").display());
        client(args!["send", "--existing", existing, contents, server.target("")]).expect(9);
    }
    client(args!["get", server.target("link/secret"), own.path().join("got")]).expect(9);
    client(args!["list", server.target("link/")]).expect(4);
    assert!(!own.path().join("got").exists());
    assert_eq!(names_in(outside.path()), ["secret"]);
    assert_eq!(fs::metadata(outside.path().join("secret")).unwrap().len(), 50);
    server.assert_serves("links among parents");
}

/// Case 58: a parent folder that becomes a link and a folder again, over and over, leads nobody
/// outside.
#[test]
fn case_58_a_parent_swapped_for_a_link_leads_nowhere() {
    let (outside, served, own) = (scratch(), scratch(), scratch());
    small_tree(&own.path().join("tree/swapped"), 3, 20, 1);
    let tree = format!("{}/", own.path().join("tree").display());
    fs::create_dir(served.path().join("swapped")).unwrap();
    let server = serve(served.path(), &["--existing", "overwrite"]);
    let stop = AtomicBool::new(false);
    let swaps = std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let (folder, parked) = (served.path().join("swapped"), served.path().join("parked"));
            let mut swaps = 0;
            while !stop.load(Ordering::Relaxed) {
                if fs::rename(&folder, &parked).is_ok() {
                    let linked = symlink(outside.path(), &folder).is_ok();
                    if linked {
                        fs::remove_file(&folder).unwrap();
                    }
                    let back = fs::rename(&parked, &folder);
                    if back.is_err() {
                        // The server made the folder anew meanwhile.
                        let _ = fs::remove_dir_all(&parked);
                    }
                    swaps += 1;
                }
            }
            swaps
        });
        for _ in 0..8 {
            let out =
                client(args!["send", "--retries", "0", "--existing", "overwrite", tree, server.target("")]);
            // What it meets is up to the swaps: a folder, a file that failed, nothing, or a link.
            assert!([0, 3, 4, 9].contains(&out.code()) && !out.stderr.contains("panicked"), "{out}");
            client(args![
                "send",
                "--retries",
                "0",
                own.path().join("tree/swapped/folder-000"),
                server.target("swapped")
            ]);
        }
        stop.store(true, Ordering::Relaxed);
        swapper.join().unwrap()
    });
    assert!(swaps > 100, "only {swaps} swaps: this tested nothing");
    assert_eq!(
        names_in(outside.path()),
        [] as [&str; 0],
        "something was written outside of the served folder"
    );
}

/// Case 59: names planted in our own folder are not used; what they point to stays as it is.
#[test]
fn case_59_a_planted_folder_of_ours_is_not_trusted() {
    let (outside, served, own) = (scratch(), scratch(), scratch());
    symlink(outside.path(), served.path().join(".fastdrop")).unwrap();
    let source = own.path().join("file");
    write_file(&source, 2 * MIB, 1);
    let server = serve(served.path(), &[]);
    client(args!["send", source, server.target("")]).expect(9);
    assert!(!server.path("file").exists());
    assert_eq!(names_in(outside.path()), [] as [&str; 0], "something was written through a planted link");
}

/// Case 56: two Unicode forms of one name are two files.
#[test]
fn case_56_another_unicode_form_never_overwrites() {
    let (served, own) = (scratch(), scratch());
    write_file(&own.path().join("n\u{e9}"), 10, 1);
    write_file(&own.path().join("ne\u{301}"), 20, 2);
    let server = serve(served.path(), &[]);
    client(args!["send", own.path().join("n\u{e9}"), server.target("")]).expect(0);
    client(args!["send", own.path().join("ne\u{301}"), server.target("")]).expect(0);
    assert_same_contents(own.path(), served.path());
}
