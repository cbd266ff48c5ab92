//! Everything that should arrive arrives, whole and as it was, in both directions.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Instant;
use support::*;

const SIZES: [u64; 13] = [
    0,
    1,
    262_143,
    262_144,
    262_145,
    1_048_575,
    1_048_576,
    1_048_577,
    4_194_303,
    4_194_304,
    4_194_305,
    11 * MIB,
    11 * MIB + 1,
];

/// An empty folder to serve, and one for the client's things.
fn served_and_own() -> (tempfile::TempDir, tempfile::TempDir) {
    (scratch(), scratch())
}

// ---- round trips

/// Asking for the protocol, offering, and sending: each waits once for the server.
#[test]
fn a_tiny_file_is_sent_over_one_connection_within_three_round_trips() {
    let (served, own) = served_and_own();
    let server = serve(served.path(), &[]);
    // What a side says without waiting may pass what the other says meanwhile, and then counts as
    // one more; never as one less.
    let trips = (0..8).map(|at| {
        let proxy = Proxy::to(server.port);
        let source = own.path().join(format!("tiny-{at}"));
        write_file(&source, 10, at);
        client(args!["send", source, proxy.target("")]).expect(0);
        assert_same_file(&source, &server.path(format!("tiny-{at}")));
        assert_eq!(proxy.connections(), 1);
        proxy.answers()
    });
    let fewest = trips.min().unwrap();
    assert!((1..=3).contains(&fewest), "{fewest} round trips");
}

// ---- sizes

/// Case 32: nothing, exact multiples of the chunk size, and one byte either side.
#[test]
fn case_32_every_size_is_sent_exactly() {
    let (served, own) = served_and_own();
    let server = serve(served.path(), &[]);
    for size in SIZES {
        let source = own.path().join(format!("size-{size}"));
        write_file(&source, size, size);
        set_mtime(&source, 1_111_111_111, 222_222_222);
        client(args!["send", source, server.target("")]).expect(0).expect_summary(&[
            ("files", 1),
            ("bytes", size),
            ("bytes_sent", size),
            ("files_skipped", 0),
            ("files_failed", 0),
        ]);
        assert_same_file(&source, &server.path(format!("size-{size}")));
    }
    assert_eq!(leftovers(served.path()), [] as [PathBuf; 0]);
}

/// Case 32, the other way.
#[test]
fn case_32_every_size_is_got_exactly() {
    let (served, own) = served_and_own();
    for size in SIZES {
        let path = served.path().join(format!("size-{size}"));
        write_file(&path, size, size);
        set_mtime(&path, 1_111_111_111, 222_222_222);
    }
    let server = serve(served.path(), &[]);
    for size in SIZES {
        let name = format!("size-{size}");
        client(args!["get", server.target(&name), own.path()]).expect(0).expect_summary(&[
            ("files", 1),
            ("bytes", size),
            ("bytes_sent", size),
            ("files_skipped", 0),
            ("files_failed", 0),
        ]);
        assert_same_file(&served.path().join(&name), &own.path().join(&name));
    }
    assert_eq!(leftovers(own.path()), [] as [PathBuf; 0]);
    assert_eq!(leftovers(served.path()), [] as [PathBuf; 0], "the sender leaves nothing behind");
}

/// Files of many sizes at once make packs and pieces in every neighbourhood.
#[test]
fn all_sizes_in_one_transfer() {
    let (served, own) = served_and_own();
    let tree = own.path().join("sizes");
    for size in SIZES {
        write_file(&tree.join(format!("{size}")), size, size);
    }
    for n in 0..40 {
        write_file(&tree.join(format!("half-{n}")), 100_000 + n, n);
    }
    let server = serve(served.path(), &[]);
    client(args!["send", "--streams", "3", tree, server.target("")]).expect(0);
    assert_same_tree(&tree, &server.path("sizes"));
    client(args!["get", "--streams", "3", server.target("sizes"), own.path().join("back")]).expect(0);
    assert_same_tree(&tree, &own.path().join("back"));
}

/// One transfer costs at most 64 MiB on either side, whatever the size; the program itself comes on
/// top.
#[test]
fn memory_does_not_grow_with_the_file() {
    fn peak_mib(pid: u32) -> u64 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
    }
    let (served, own) = served_and_own();
    let server = serve(served.path(), &[]);
    let source = own.path().join("big");
    write_file(&source, 256 * MIB, 1);

    let proxy = Proxy::to(server.port);
    proxy.hold_at(250 * MIB);
    let send = fastdrop(args!["send", "--streams", "4", source, proxy.target("")]).json().start();
    proxy.wait_held();
    let peaks = (peak_mib(server.pid()), peak_mib(send.pid()));
    proxy.resume();
    send.wait().expect(0);
    assert!(peaks.0 <= 84 && peaks.1 <= 84, "MiB of server and client while sending: {peaks:?}");

    let proxy = Proxy::to(server.port);
    proxy.hold_at(250 * MIB);
    let get =
        fastdrop(args!["get", "--streams", "4", proxy.target("big"), own.path().join("back")]).json().start();
    proxy.wait_held();
    let peaks = (peak_mib(server.pid()), peak_mib(get.pid()));
    proxy.resume();
    get.wait().expect(0);
    assert!(peaks.0 <= 84 && peaks.1 <= 84, "MiB of server and client while getting: {peaks:?}");
}

// ---- sparse files

const ISLANDS: [(u64, u64); 5] = [
    (0, 4096),
    (1_000_000_000, 1 << 20),
    ((2 << 30) - 8192, 16_384),
    (4_294_967_296, 4096),
    ((5 << 30) - 5000, 5000),
];

fn assert_sparse_copy(path: &Path) {
    let meta = fs::metadata(path).unwrap();
    assert_eq!(meta.len(), 5 << 30);
    // As many bytes as the islands and a chunk's worth around each.
    assert!(meta.blocks() * 512 <= 24 * MIB, "{} MiB are allocated", meta.blocks() / 2048);
    let mut file = fs::File::open(path).unwrap();
    let mut read = |at: u64, len: u64| {
        let mut bytes = vec![0; len as usize];
        file.seek(SeekFrom::Start(at)).unwrap();
        file.read_exact(&mut bytes).unwrap();
        bytes
    };
    let mut island_end = 0;
    for (number, (at, len)) in ISLANDS.into_iter().enumerate() {
        assert!(read(at, len) == fill(len, number as u64), "island {number}");
        // On both sides of it, and between it and the one before.
        for (from, to) in [(island_end, island_end + 5 * MIB), (at.saturating_sub(5 * MIB), at)] {
            let from = from.clamp(island_end, at);
            let to = to.clamp(from, at);
            assert!(read(from, to - from).iter().all(|&byte| byte == 0), "not zero in {from}..{to}");
        }
        island_end = at + len;
    }
}

/// A file of 5 GiB with little in it: crosses 4 GiB, stays sparse, and costs little of the network.
#[test]
fn sparse_file_of_5_gib_stays_sparse_both_ways() {
    let (served, own) = served_and_own();
    let source = own.path().join("sparse");
    let mut file = fs::File::create(&source).unwrap();
    file.set_len(5 << 30).unwrap();
    for (number, (at, len)) in ISLANDS.into_iter().enumerate() {
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&fill(len, number as u64)).unwrap();
    }
    drop(file);
    let server = serve(served.path(), &[]);
    let proxy = Proxy::to(server.port);
    client(args!["send", source, proxy.target("")])
        .expect(0)
        .expect_summary(&[("files", 1), ("bytes", 5 << 30)]);
    assert_sparse_copy(&server.path("sparse"));
    client(args!["get", proxy.target("sparse"), own.path().join("back")]).expect(0);
    assert_sparse_copy(&own.path().join("back"));
    assert!(proxy.total() < 64 * MIB, "{} MiB went over the network", proxy.total() / MIB);
    // The last copy is a stranger to the first, so this one compares every byte, holes as the
    // kernel shows them.
    let same = std::process::Command::new("cmp").arg(&source).arg(own.path().join("back")).status().unwrap();
    assert!(same.success());
}

// ---- trees

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

// ---- links

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

// ---- several paths, and where they go

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

/// What is not there is said so, and nothing is made.
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

// ---- standard input and output

/// `-` is standard input and output, of any length, known ahead or not.
#[test]
fn standard_input_and_output_carry_everything() {
    let (served, _own) = served_and_own();
    let server = serve(served.path(), &[]);
    for size in [0, 10, 1_048_576, 1_048_577, 20 * MIB] {
        let bytes = fill(size, size);
        let name = format!("from-stdin-{size}");
        let out =
            fastdrop(args!["send", "-", server.target(&name)]).json().stdin(bytes.clone()).run().expect(0);
        assert_eq!(out.number("bytes_sent"), size, "{out}");
        assert!(fs::read(server.path(&name)).unwrap() == bytes, "{size} bytes from standard input");
        let out = plain(args!["get", server.target(&name), "-"]).expect(0);
        assert!(out.stdout == bytes, "{size} bytes to standard output, but {} came", out.stdout.len());
    }
    assert_eq!(leftovers(served.path()), [] as [PathBuf; 0]);
}

/// `send - HOST/p` writes the file `p`, also where folders are missing, and never replaces a
/// folder.
#[test]
fn standard_input_always_writes_the_named_file() {
    let (served, _own) = served_and_own();
    fs::create_dir(served.path().join("folder")).unwrap();
    let server = serve(served.path(), &["--existing", "overwrite"]);
    let send = |target: &str, existing: &str| {
        fastdrop(args!["send", "--existing", existing, "-", server.target(target)])
            .json()
            .stdin("some text")
            .run()
    };
    send("a/b/c", "error").expect(0);
    assert_eq!(fs::read(server.path("a/b/c")).unwrap(), b"some text");
    send("a/b/c", "overwrite").expect(0);
    send("folder", "overwrite").expect(9);
    assert_eq!(names_in(&server.path("folder")), [] as [&str; 0]);
    // Without a path there is no name to give.
    send("", "error").expect(2);
}

/// A folder cannot go to standard output.
#[test]
fn getting_a_folder_to_standard_output_is_refused() {
    let (served, _own) = served_and_own();
    small_tree(&served.path().join("tree"), 1, 2, 1);
    let server = serve(served.path(), &[]);
    let out = plain(args!["get", server.target("tree"), "-"]).expect(9);
    assert_eq!(out.stdout, b"");
}

// ---- list

/// A listing shows each name of one level with its size, and not our own folder.
#[test]
fn list_shows_what_is_there() {
    let (served, _own) = served_and_own();
    write_file(&served.path().join("file.bin"), 12_345, 1);
    write_file(&served.path().join("folder/inside"), 10, 1);
    fs::create_dir(served.path().join(".fastdrop")).unwrap();
    symlink("file.bin", served.path().join("link")).unwrap();
    let server = serve(served.path(), &[]);
    let out = plain(args!["list", server.target("")]).expect(0);
    let text = out.text();
    for name in ["file.bin", "folder", "link"] {
        assert!(text.lines().any(|line| line.contains(name)), "{name} is missing:\n{text}");
    }
    assert!(!text.contains("inside") && !text.contains(".fastdrop"), "{text}");
    assert_eq!(plain(args!["ls", server.target("")]).expect(0).text(), text);

    let out = client(args!["list", server.target("")]).expect(0);
    let entry = |name: &str| {
        let named =
            |e: &&serde_json::Value| e["path"].as_str() == Some(name) || e["name"].as_str() == Some(name);
        out.events.iter().find(named).unwrap_or_else(|| panic!("no event for {name}\n{out}"))
    };
    assert_eq!(entry("file.bin")["size"], 12_345, "{out}");
    entry("folder");
    entry("link");
    assert!(!out.text().contains(".fastdrop"), "{out}");
    let out = plain(args!["list", server.target("folder")]).expect(0);
    assert!(out.text().contains("inside") && !out.text().contains("file.bin"), "{out}");
}

/// Our own folder is neither listed nor to be got, whatever lies in it.
#[test]
fn our_own_folder_is_not_served() {
    let (served, own) = served_and_own();
    write_file(&served.path().join(".fastdrop/secret/data"), 10, 1);
    write_file(&served.path().join("file"), 10, 1);
    let server = serve(served.path(), &[]);
    client(args!["get", server.target(""), own.path().join("all")]).expect(0);
    assert_eq!(leftovers(own.path()), [] as [PathBuf; 0]);
    assert_eq!(names_in(&own.path().join("all")), ["file"]);
    client(args!["get", server.target(".fastdrop/secret/data"), own.path().join("x")]).expect(9);
    client(args!["list", server.target(".fastdrop")]).expect(9);
    client(args!["send", own.path().join("all/file"), server.target(".fastdrop/secret/data2")]).expect(9);
    assert_eq!(names_in(&served.path().join(".fastdrop/secret")), ["data"]);
}

// ---- choosing

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

// ---- streams and checksums

/// Any number of streams gives the same bytes, and as many connections as were asked for at most.
#[test]
fn any_number_of_streams_gives_the_same_bytes() {
    let (served, own) = served_and_own();
    let tree = own.path().join("tree");
    write_file(&tree.join("big"), 24 * MIB + 17, 1);
    small_tree(&tree.join("small"), 3, 30, 2);
    let server = serve(served.path(), &[]);
    for streams in ["1", "3", "8", "auto"] {
        let proxy = Proxy::to(server.port);
        let name = format!("with-{streams}");
        client(args!["send", "--streams", streams, tree, proxy.target(&name)]).expect(0);
        assert_same_tree(&tree, &server.path(&name));
        let sending = proxy.connections();
        let here = own.path().join(&name);
        client(args!["get", "-j", streams, proxy.target(&name), here]).expect(0);
        assert_same_tree(&tree, &here);
        let getting = proxy.connections() - sending;
        if let Ok(streams) = streams.parse::<usize>() {
            // The control stream comes on top.
            assert!(
                sending <= streams + 1 && getting <= streams + 1,
                "{streams}: {sending} and {getting} connections"
            );
            assert!(
                streams == 1 || (sending > 2 && getting > 2),
                "{streams}: {sending} and {getting} connections"
            );
        }
    }
}

/// By itself a transfer between processes of one machine opens data streams only when it is large
/// enough to gain from them.
#[test]
fn a_short_local_transfer_keeps_to_its_control_stream() {
    let (served, own) = served_and_own();
    let server = serve(served.path(), &[]);
    for (name, size, alone) in [("short", 32 * MIB, true), ("long", 96 * MIB, false)] {
        let source = own.path().join(name);
        write_file(&source, size, 1);
        let proxy = Proxy::to(server.port);
        client(args!["send", source, proxy.target("")]).expect(0);
        assert_same_file(&source, &server.path(name));
        let sending = proxy.connections();
        let back = own.path().join(format!("{name}-back"));
        client(args!["get", proxy.target(name), back]).expect(0);
        assert_same_file(&source, &back);
        let getting = proxy.connections() - sending;
        assert_eq!((sending == 1, getting == 1), (alone, alone), "{name}: {sending} and {getting}");
    }
    let tree = own.path().join("many-files");
    for n in 0..1000 {
        write_file(&tree.join(n.to_string()), 4096, n);
    }
    let proxy = Proxy::to(server.port);
    client(args!["send", tree, proxy.target("")]).expect(0);
    assert_same_tree(&tree, &server.path("many-files"));
    assert!(proxy.connections() > 1, "many files are made by several streams");
}

/// Every checksum works both ways; `blake3` reports each file's own, equal to what `b3sum` prints.
#[test]
fn blake3_of_each_file_is_reported() {
    let (served, own) = served_and_own();
    let tree = own.path().join("tree");
    let sizes = [0, 1, 1023, 1024, 1025, 262_144, MIB - 1, MIB, MIB + 1, 4 * MIB, 4 * MIB + 1, 11 * MIB + 5];
    for size in sizes {
        write_file(&tree.join(format!("of-{size}-bytes")), size, size);
    }
    let server = serve(served.path(), &[]);
    for checksum in ["xxh3", "none", "blake3"] {
        let here = own.path().join(format!("back-{checksum}"));
        let sent = client(args!["send", "--checksum", checksum, tree, server.target(checksum)]).expect(0);
        assert_same_tree(&tree, &server.path(checksum));
        let got = client(args!["get", "--checksum", checksum, server.target(checksum), here]).expect(0);
        assert_same_tree(&tree, &here);
        if checksum == "blake3" {
            for size in sizes {
                let name = format!("of-{size}-bytes");
                let expected = digest_of(&tree.join(&name)).to_hex().to_string();
                assert_eq!(sent.file_event(&name)["blake3"], *expected, "{size} bytes sent\n{sent}");
                assert_eq!(got.file_event(&name)["blake3"], *expected, "{size} bytes got\n{got}");
            }
        }
    }
    let out = plain(args!["send", "--checksum", "blake3", tree, server.target("again")]).expect(0);
    for size in sizes {
        let name = format!("of-{size}-bytes");
        let start = format!("{}  ", digest_of(&tree.join(&name)).to_hex());
        let found = out.text().lines().any(|line| line.starts_with(&start) && line.ends_with(&name));
        assert!(found, "no line of b3sum for {name}\n{out}");
    }
}

/// A stream of unknown length has its BLAKE3, too.
#[test]
fn blake3_of_standard_input_is_reported() {
    let (served, _own) = served_and_own();
    let server = serve(served.path(), &[]);
    for size in [0, 1000, 5 * MIB + 3, 8 * MIB] {
        let bytes = fill(size, 5);
        let name = format!("stream-{size}");
        let out = fastdrop(args!["send", "--checksum", "blake3", "-", server.target(&name)])
            .json()
            .stdin(bytes.clone())
            .run()
            .expect(0);
        assert_eq!(out.file_event(&name)["blake3"], *blake3::hash(&bytes).to_hex().as_str(), "{size}\n{out}");
        assert!(fs::read(server.path(&name)).unwrap() == bytes);
    }
}

/// `--durability` is kept and named.
#[test]
fn durability_is_reported() {
    let (served, own) = served_and_own();
    let source = own.path().join("file");
    write_file(&source, 100_000, 1);
    let server = serve(served.path(), &[]);
    for durability in ["commit", "none"] {
        let args = args!["send", "--durability", durability, source, server.target(durability)];
        let out = client(args).expect(0);
        assert_eq!(out.summary()["durability"], durability, "{out}");
        assert_same_file(&source, &server.path(durability));
    }
}
