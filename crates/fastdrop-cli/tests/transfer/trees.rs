//! Trees: names, modes and times.

use crate::served_and_own;
use crate::support::*;
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// 10,000 files and empty folders, and the second time nothing is sent.
#[test]
fn ten_thousand_files_arrive_and_are_skipped_the_second_time() {
    let (served, own) = (on_disk(), on_disk());
    let tree = own.path().join("tree");
    small_tree(&tree, 100, 100, 7);
    fs::create_dir_all(tree.join("empty/within/empty")).unwrap();
    let server = serve(served.path(), &[]);
    let out = client(args!["send", tree, server.target("")]).expect(0);
    let total = out.number("bytes");
    out.expect_summary(&[
        ("files", 10_000),
        ("bytes_sent", total),
        ("files_skipped", 0),
        ("files_failed", 0),
    ]);
    assert_same_tree(&tree, &server.path("tree"));
    client(args!["send", tree, server.target("")]).expect(0).expect_summary(&[
        ("bytes_sent", 0),
        ("files_skipped", 10_000),
        ("files_failed", 0),
    ]);

    client(args!["get", server.target("tree"), own.path().join("back")]).expect(0).expect_summary(&[
        ("bytes_sent", total),
        ("files_skipped", 0),
        ("files_failed", 0),
    ]);
    assert_same_tree(&tree, &own.path().join("back"));
    client(args!["get", server.target("tree/"), own.path().join("back")]).expect(0).expect_summary(&[
        ("bytes_sent", 0),
        ("files_skipped", 10_000),
        ("files_failed", 0),
    ]);
    assert_eq!(leftovers(served.path()), [] as [PathBuf; 0]);
    assert_eq!(leftovers(own.path()), [] as [PathBuf; 0]);
}

/// Empty folders, with times and modes of their own, are part of a tree.
#[test]
fn empty_folders_arrive() {
    let (served, own) = served_and_own();
    let tree = own.path().join("tree");
    for name in ["a", "b/c/d", "z"] {
        fs::create_dir_all(tree.join(name)).unwrap();
    }
    set_mode(&tree.join("a"), 0o700);
    set_mtime(&tree.join("b/c/d"), 5, 6);
    set_mtime(&tree, 7, 8);
    let server = serve(served.path(), &[]);
    client(args!["send", tree, server.target("")])
        .expect(0)
        .expect_summary(&[("bytes", 0), ("bytes_sent", 0)]);
    assert_same_tree(&tree, &server.path("tree"));
    client(args!["get", server.target("tree"), own.path().join("back")]).expect(0);
    assert_same_tree(&tree, &own.path().join("back"));
}

/// Cases 53, 54, 55, 56, 57: everything that the file system can hold is a name, and nothing is
/// decoded or normalised.
#[test]
fn case_53_odd_names_arrive_as_they_are() {
    let (served, own) = served_and_own();
    let tree = own.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let names: Vec<Vec<u8>> = vec![
        b"new\nline".to_vec(),
        b"carriage\rreturn".to_vec(),
        b"\x1b[31mred\x1b[0m".to_vec(),
        b"\xff\xfe invalid \xc3".to_vec(),
        b"-rf".to_vec(),
        b"--help".to_vec(),
        vec![b'x'; 255],
        "ü".repeat(127).into_bytes(),
        b" leading and trailing ".to_vec(),
        b"back\\slash".to_vec(),
        b"C:\\windows".to_vec(),
        b"CON".to_vec(),
        b"aux.txt".to_vec(),
        b"dot.".to_vec(),
        b"...".to_vec(),
        b"..x".to_vec(),
        b"%2e%2e%2fx".to_vec(),
        b"%252e".to_vec(),
        b"100%".to_vec(),
        b"*?[a]{b}".to_vec(),
        b"'quote\"".to_vec(),
        b"Case".to_vec(),
        b"case".to_vec(),
        "n\u{e9}".as_bytes().to_vec(),
        "ne\u{301}".as_bytes().to_vec(),
        "\u{202e}override".as_bytes().to_vec(),
        "日本語 🦀".as_bytes().to_vec(),
        b".hidden".to_vec(),
        b".gitignore".to_vec(),
        b"fastdrop".to_vec(),
        b"\x7f\x01".to_vec(),
    ];
    for (number, name) in names.iter().enumerate() {
        let path = tree.join(std::ffi::OsStr::from_bytes(name));
        if number % 2 == 0 {
            write_file(&path, number as u64 * 10, number as u64);
        } else {
            write_file(&path.join(std::ffi::OsStr::from_bytes(name)), number as u64 * 10, number as u64);
        }
    }
    // What a .gitignore says is none of our business.
    fs::remove_file(tree.join(".gitignore")).ok();
    fs::remove_dir_all(tree.join(".gitignore")).ok();
    fs::write(tree.join(".gitignore"), "*\n").unwrap();
    let server = serve(served.path(), &[]);
    client(args!["send", tree, server.target("")]).expect(0);
    assert_same_tree(&tree, &server.path("tree"));
    client(args!["get", server.target("tree"), own.path().join("back")]).expect(0);
    assert_same_tree(&tree, &own.path().join("back"));

    // The same names as arguments of their own.
    for name in [&b"-rf"[..], b"\xff\xfe invalid \xc3", b"new\nline", b"%2e%2e%2fx"] {
        let name = std::ffi::OsString::from_vec(name.to_vec());
        let target = server.target([b"tree/", name.as_bytes()].concat().as_os());
        client(args!["get", target, own.path().join("single")]).expect(0);
        assert!(own.path().join("single").exists(), "{name:?}");
        let single = own.path().join("single");
        assert_same_tree(&tree.join(&name), &single);
        if single.is_dir() { fs::remove_dir_all(&single).unwrap() } else { fs::remove_file(&single).unwrap() }
    }
    fastdrop(args!["send", "--", "-rf", server.target("dash")]).json().cwd(&tree).run().expect(0);
    assert_same_file(&tree.join("-rf"), &server.path("dash"));
}

trait AsOs {
    fn as_os(&self) -> std::ffi::OsString;
}

impl AsOs for Vec<u8> {
    fn as_os(&self) -> std::ffi::OsString {
        std::ffi::OsString::from_vec(self.clone())
    }
}

/// Modes and times are kept to the bit and the nanosecond, for files and folders, before 1970 too.
#[test]
fn modes_and_times_are_kept() {
    assert_kept(&[
        ("read-only", 0o400, 1_700_000_000, 1),
        ("program", 0o755, 1_700_000_000, 999_999_999),
        ("group", 0o640, 0, 0),
        ("everybody", 0o777, -1, 1),
        ("before-1970", 0o644, -1_000_000_000, 123_456_789),
        ("after-2038", 0o600, 4_000_000_000, 987_654_321),
    ]);
}

#[test]
#[ignore = "needs root"]
fn modes_of_what_nobody_else_can_read_are_kept() {
    assert_kept(&[("nobody", 0o000, 1, 500_000_000), ("others", 0o007, 2, 0)]);
}

/// Files and folders of these modes and times, there and back.
fn assert_kept(cases: &[(&str, u32, i64, u32)]) {
    let (served, own) = served_and_own();
    let tree = own.path().join("tree");
    for &(name, mode, seconds, nanos) in cases {
        for path in
            [tree.join(name), tree.join(format!("{name}-big")), tree.join(format!("{name}-folder/inside"))]
        {
            let size = if path.ends_with(format!("{name}-big")) { 2 * MIB } else { 1000 };
            write_file(&path, size, seconds as u64);
            set_mtime(&path, seconds, nanos);
            set_mode(&path, mode);
        }
        let folder = tree.join(format!("{name}-folder"));
        set_mtime(&folder, seconds, nanos);
        set_mode(&folder, mode | 0o500);
    }
    set_mtime(&tree, -5, 5);
    let server = serve(served.path(), &[]);
    client(args!["send", tree, server.target("")]).expect(0);
    assert_same_tree(&tree, &server.path("tree"));
    client(args!["get", server.target("tree"), own.path().join("back")]).expect(0);
    assert_same_tree(&tree, &own.path().join("back"));
    // So that they can be removed by whoever this is.
    tool("chmod", args!["-R", "u+rwx", own.path(), served.path()]);
}

/// Case 49: set-id and sticky bits do not travel.
#[test]
fn case_49_set_id_bits_are_stripped() {
    let (served, own) = served_and_own();
    let source = own.path().join("program");
    write_file(&source, 10, 1);
    set_mode(&source, 0o6755);
    let server = serve(served.path(), &[]);
    client(args!["send", source, server.target("")]).expect(0);
    assert_eq!(fs::metadata(server.path("program")).unwrap().permissions().mode() & 0o7777, 0o755);
    client(args!["get", server.target("program"), own.path().join("back")]).expect(0);
    assert_eq!(fs::metadata(own.path().join("back")).unwrap().permissions().mode() & 0o7777, 0o755);
}

/// The set-group-ID bit of a folder is the receiver's, and makes what comes into it the group's.
#[test]
fn a_folder_keeps_the_bits_that_no_transfer_carries() {
    let (served, own) = served_and_own();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let tree = own.path().join("tree");
    small_tree(&tree, 1, 2, 1);
    set_mode(&tree, 0o750);
    let server = serve(served.path(), &[]);
    for (number, before) in [0o2755, 0o1777, 0o755].into_iter().enumerate() {
        let name = format!("to-{number}");
        for folder in [server.path(&name).join("tree"), own.path().join(&name).join("tree")] {
            fs::create_dir_all(&folder).unwrap();
            set_mode(&folder, before);
        }
        client(args!["send", tree, server.target(format!("{name}/"))]).expect(0);
        assert_eq!(mode(&server.path(&name).join("tree")), before & 0o7000 | 0o750);
        client(args!["get", server.target(format!("{name}/tree")), own.path().join(&name)]).expect(0);
        assert_eq!(mode(&own.path().join(&name).join("tree")), before & 0o7000 | 0o750);
    }
    // What is sent has such a bit, and does not bring it.
    set_mode(&tree, 0o2750);
    client(args!["send", tree, server.target("new/")]).expect(0);
    assert_eq!(mode(&server.path("new/tree")), 0o750);
}

/// `--preserve` chooses what is kept.
#[test]
fn preserve_chooses_what_is_kept() {
    let (served, own) = served_and_own();
    let source = own.path().join("file");
    write_file(&source, 10, 1);
    set_mode(&source, 0o751);
    set_mtime(&source, 1000, 7);
    let server = serve(served.path(), &[]);
    client(args!["send", "--preserve", "mode", source, server.target("mode-only")]).expect(0);
    let meta = fs::metadata(server.path("mode-only")).unwrap();
    assert_eq!(meta.mode() & 0o777, 0o751);
    assert_ne!(meta.mtime(), 1000);
    client(args!["send", "--preserve", "times", source, server.target("times-only")]).expect(0);
    let meta = fs::metadata(server.path("times-only")).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (1000, 7));
    assert_ne!(meta.mode() & 0o777, 0o751);
}
