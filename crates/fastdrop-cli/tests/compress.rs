//! Compression of native transfers: what arrives is the same, what goes over the network is less.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use support::wire::{self, Offer, Raw, control, frame};
use support::*;

/// Text that becomes a third with Zstandard.
fn text(len: usize) -> Vec<u8> {
    let mut rng = Rng::new(5);
    let words: Vec<String> = (0..2000).map(|_| format!("{:x}", rng.number() % (1 << 28))).collect();
    let mut text = Vec::with_capacity(len + 16);
    while text.len() < len {
        text.extend_from_slice(words[(rng.number() % 2000) as usize].as_bytes());
        text.push(b' ');
    }
    text.truncate(len);
    text
}

/// Big and small files that shrink or do not, one with holes, and a link.
fn mixed_tree(root: &Path) {
    fs::create_dir_all(root.join("folder/inner")).unwrap();
    let text = text(11 * MIB as usize);
    fs::write(root.join("text"), &text).unwrap();
    write_file(&root.join("random"), 9 * MIB + 1, 1);
    fs::write(root.join("empty"), b"").unwrap();
    for (at, part) in text.chunks(50_001).take(60).enumerate() {
        fs::write(root.join(format!("folder/{at}")), part).unwrap();
        write_file(&root.join(format!("folder/inner/{at}")), 500 * at as u64, at as u64);
    }
    let mut holes = fs::File::create(root.join("holes")).unwrap();
    holes.set_len(40 * MIB).unwrap();
    for at in [0, 13, 29] {
        holes.seek(SeekFrom::Start(at * MIB + 5000)).unwrap();
        holes.write_all(&text[..(MIB / 2) as usize]).unwrap();
    }
    std::os::unix::fs::symlink("text", root.join("link")).unwrap();
}

#[test]
fn zstd_brings_the_same_with_less_on_the_wire_both_ways() {
    let (served, own) = (scratch(), scratch());
    let tree = own.path().join("tree");
    mixed_tree(&tree);
    let server = serve(served.path(), &[]);
    for (streams, checksum) in [("1", "xxh3"), ("4", "blake3")] {
        let there = format!("put-{streams}");
        let how = args!["--compress", "zstd", "--streams", streams, "--checksum", checksum];
        let sent = client([args!["send", &tree, server.target(&there)], how.clone()].concat()).expect(0);
        assert_same_tree(&tree, &server.path(&there));
        // Random data and the text that is left of it, not the holes.
        assert!(sent.number("bytes_wire") < 17 * MIB, "{}", sent.text());
        assert!(sent.number("bytes_sent") > 60 * MIB);
        let back = own.path().join(format!("back-{streams}"));
        let got = client([args!["get", server.target(&there), &back], how].concat()).expect(0);
        assert_same_tree(&tree, &back);
        assert!(got.number("bytes_wire") < 17 * MIB, "{}", got.text());
        for copy in [server.path(&there), back] {
            assert!(fs::metadata(copy.join("holes")).unwrap().blocks() * 512 < 8 * MIB);
        }
    }
}

#[test]
fn a_stream_of_unknown_size_is_compressed_too() {
    let served = scratch();
    let server = serve(served.path(), &[]);
    for size in [0, 1, 4 * MIB as usize, 9 * MIB as usize + 7] {
        let text = text(size);
        let to = format!("{size}");
        let sent = fastdrop(args!["send", "-", server.target(&to), "--compress", "zstd", "--streams", "2"])
            .stdin(text.clone())
            .json()
            .run()
            .expect(0);
        assert!(fs::read(server.path(&to)).unwrap() == text);
        assert!(size < 100 || sent.number("bytes_wire") < size as u64 / 2, "{}", sent.text());
    }
}

/// The default looks at the data and at the connection: at one so slow that compressing the sample
/// would have to take half a second not to pay, however busy the machine is.
#[test]
fn auto_compresses_text_on_a_slow_way_but_not_random_data() {
    let (served, own) = (scratch(), scratch());
    let server = serve(served.path(), &[]);
    let (words, random) = (own.path().join("words"), own.path().join("random"));
    fs::write(&words, text(128 << 10)).unwrap();
    write_file(&random, 12 * MIB, 3);
    for (at, (source, limit, compressed)) in
        [(&words, "32K", true), (&random, "40M", false)].into_iter().enumerate()
    {
        let to = format!("{at}");
        let sent = client(args!["send", source, server.target(&to), "--bwlimit", limit]).expect(0);
        assert_same_contents(source, &server.path(&to));
        let back = own.path().join(&to);
        let got = client(args!["get", server.target(&to), &back, "--bwlimit", limit]).expect(0);
        assert_same_contents(source, &back);
        for run in [sent, got] {
            let (wire, bytes) = (run.number("bytes_wire"), run.number("bytes_sent"));
            assert_eq!(wire < bytes * 2 / 3, compressed, "{wire} of {bytes}");
        }
    }
    // Told not to, it does not.
    let sent = client(args!["send", &words, server.target("as-is"), "--compress", "none"]).expect(0);
    assert_eq!(sent.number("bytes_wire"), 128 << 10);
}

/// What broke off in the middle goes on, compressed or not.
#[test]
fn a_compressed_transfer_is_resumed_with_another_compression() {
    let (served, own) = (scratch(), scratch());
    let source = own.path().join("words");
    fs::write(&source, text(40 * MIB as usize)).unwrap();
    let server = serve(served.path(), &[]);
    let proxy = Proxy::to(server.port);
    proxy.cut_at(&[5 * MIB]);
    let once = args!["send", &source, proxy.target(""), "--compress", "zstd", "--retries", "0"];
    client(once).expect(5);
    server.wait_idle();
    let sent = client(args!["send", &source, server.target(""), "--compress", "none"]).expect(0);
    assert_same_file(&source, &server.path("words"));
    assert!(sent.number("bytes_resumed") >= 4 * MIB, "{}", sent.text());
}

/// One chunk of a file of two, compressed, with what it says of itself.
fn compressed(number: u32, len: u32, data: &[u8], plain: &[u8]) -> Vec<u8> {
    let payload = [&[2][..], &len.to_be_bytes(), data, &wire::checksum(plain)].concat();
    frame(0x4000_0000 | number, &payload)
}

/// Cases 43 to 46: bombs, windows, what is cut, followed by more, or damaged.
#[test]
fn compressed_chunks_that_lie_are_refused() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    let offer = Offer::new().file("data", 2 * wire::CHUNK);
    let chunk = wire::CHUNK as u32;
    let plain = text(wire::CHUNK as usize);
    let good = zstd::bulk::compress(&plain, 1).unwrap();
    let bomb = zstd::bulk::compress(&vec![0; 256 << 20], 19).unwrap();
    let short = zstd::bulk::compress(&plain[1..], 1).unwrap();
    let long = zstd::bulk::compress(&[&plain[..], b"x"].concat(), 1).unwrap();
    let halves = [&plain[..1000], &plain[1000..]].map(|half| zstd::bulk::compress(half, 1).unwrap());
    let mut damaged = good.clone();
    damaged[good.len() / 2] ^= 0x10;
    // A frame of RFC 8878 with neither size nor checksum, whose window is 2 GiB, and an empty last
    // block.
    let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00];
    // A skippable frame before the real one.
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4][..], &good].concat();
    for (what, bytes) in [
        ("a frame of 256 MiB", compressed(0, chunk, &bomb, &plain)),
        ("a frame that is too short", compressed(0, chunk, &short, &plain)),
        ("a frame that is too long", compressed(0, chunk, &long, &plain)),
        ("two frames", compressed(0, chunk, &halves.concat(), &plain)),
        ("a skippable frame", compressed(0, chunk, &skippable, &plain)),
        ("a cut frame", compressed(0, chunk, &good[..good.len() - 1], &plain)),
        ("bytes behind the frame", compressed(0, chunk, &[&good[..], b"x"].concat(), &plain)),
        ("no frame", compressed(0, chunk, b"", &plain)),
        ("a window of 2 GiB", compressed(0, chunk, &window, &plain)),
        ("another length", compressed(0, chunk - 1, &good, &plain)),
        ("a length of 2^32-1", compressed(0, u32::MAX, &good, &plain)),
    ] {
        let mut raw = Raw::connect(server.port);
        raw.offer(&offer);
        raw.send(bytes);
        raw.expect_refusal(true, 400, what);
        server.assert_serves(what);
    }
    // Damage that the decoder may not see: the checksum of the plain bytes does.
    let mut raw = Raw::connect(server.port);
    raw.offer(&offer);
    raw.send(compressed(0, chunk, &damaged, &plain));
    let answer = raw.next();
    assert!(answer.is_some_and(|answer| {
        answer.control().is_some_and(|kind| kind == wire::AGAIN || kind == wire::REFUSE)
    }));
    drop(raw);
    server.assert_serves("damage");
    assert_eq!(names_in(served.path()), [] as [&str; 0]);
    // And two that do not lie: as they are, and with holes.
    let mut raw = Raw::connect(server.port);
    let granted = raw.offer(&offer);
    raw.send(compressed(0, chunk, &good, &plain));
    let mut second = vec![0; wire::CHUNK as usize];
    second[1000..101_000].copy_from_slice(&plain[..100_000]);
    let data = zstd::bulk::compress(&plain[..100_000], 1).unwrap();
    let sum = wire::checksum(&second);
    let extents = [1_u32, 1000, 100_000].map(u32::to_be_bytes).concat();
    raw.send(frame(0x4000_0001, &[&[3][..], &extents, &data, &sum].concat()));
    raw.wait_confirmed(&[0, 1]);
    raw.send(control(wire::END, &granted.root_digest(&[(0, wire::checksum(&plain)), (1, sum)])));
    raw.wait_for(wire::DONE);
    assert!(fs::read(server.path("data")).unwrap() == [plain, second].concat());
}

// ---- archives

/// Names, contents and links, but no times.
fn assert_same_bytes(sent: &Path, arrived: &Path) {
    tool("diff", args!["-r", "--no-dereference", sent, arrived]);
}

/// Opens an archive with the tool for it.
fn open_with_tool(archive: &Path, kind: &str, to: &Path) {
    fs::create_dir(to).unwrap();
    match kind {
        // The one that a system has: unzip is not on every machine, Python is.
        "zip" => tool("python3", args!["-m", "zipfile", "-e", archive, to]),
        _ => tool("tar", args!["-xzf", archive, "-C", to]),
    }
}

#[test]
fn archives_are_unpacked_where_they_arrive_both_ways() {
    for kind in ["zip", "targz"] {
        let (served, own) = (scratch(), scratch());
        let tree = own.path().join("tree");
        mixed_tree(&tree);
        fs::create_dir(tree.join("empty folder")).unwrap();
        fs::write(tree.join("n".repeat(200)), b"long name").unwrap();
        set_mtime(&tree.join("text"), -2, 750_000_000);
        set_mtime(&tree.join("random"), 1_234_567_891, 123_456_789);
        let server = serve(served.path(), &[]);
        let sent = client(args!["send", &tree, server.target("new"), "--compress", kind]).expect(0);
        assert!(sent.number("bytes_wire") < sent.number("bytes_sent") / 2, "{}", sent.text());
        assert_eq!(sent.number("bytes"), sent.number("bytes_sent"));
        let back = own.path().join("back");
        client(args!["get", server.target("new"), &back, "--compress", kind, "-j", "3"]).expect(0);
        let less = own.path().join("less");
        client(args!["get", server.target("new"), &less, "--compress", kind, "--exclude", "folder/"])
            .expect(0);
        assert!(less.join("text").exists() && !less.join("folder").exists());
        for copy in [&server.path("new"), &back] {
            assert_same_tree(&tree, copy);
        }
        assert_eq!(leftovers(served.path()), [] as [&Path; 0]);
        // Again: everything is there.
        let again = client(args!["send", &tree, server.target("new/"), "--compress", kind]).expect(0);
        assert_same_bytes(&tree, &server.path("new/tree"));
        assert_eq!(again.number("files_skipped"), 0);
        let again = client(args!["send", &tree, server.target("new/"), "--compress", kind]).expect(0);
        assert_eq!(again.number("files_skipped"), again.number("files"));
        // The contents of a folder, and several things at once.
        client(args!["send", tree.join(""), server.target("c/"), "--compress", kind]).expect(0);
        assert_same_bytes(&tree, &server.path("c"));
        let two =
            args!["send", tree.join("text"), tree.join("folder"), server.target("two"), "--compress", kind];
        client(two).expect(0);
        assert_same_bytes(&tree.join("folder"), &server.path("two/folder"));
    }
}

#[test]
fn archives_that_are_kept_open_with_the_usual_tools() {
    for (kind, extension) in [("zip", "zip"), ("targz", "tar.gz")] {
        let (served, own) = (scratch(), scratch());
        let tree = own.path().join("tree");
        small_tree(&tree, 3, 20, 7);
        write_file(&tree.join("big"), 5 * MIB, 2);
        let server = serve(served.path(), &["--keep-archive"]);
        client(args!["send", &tree, server.target(""), "--compress", kind]).expect(0);
        client(args!["send", &tree, server.target("backup"), "--compress", kind]).expect(0);
        let name = format!("tree.{extension}");
        assert_eq!(names_in(served.path()), [format!("backup.{extension}"), name.clone()]);
        let opened = own.path().join("opened");
        open_with_tool(&server.path(&name), kind, &opened);
        assert_same_bytes(&tree, &opened.join("tree"));
        // Not a second time over it.
        client(args!["send", &tree, server.target(""), "--compress", kind]).expect(9);
        // And the other way.
        drop(server);
        let server = serve(own.path(), &["--read-only"]);
        let kept = scratch();
        let to = kept.path().join("kept");
        client(args!["get", server.target("tree"), &to, "--compress", kind, "--keep-archive"]).expect(0);
        let less = args!["get", server.target("tree"), kept.path().join("less"), "--exclude", "*0"];
        client([less, args!["--compress", kind, "--keep-archive"]].concat()).expect(1);
        let opened = kept.path().join("opened");
        open_with_tool(&kept.path().join(format!("kept.{extension}")), kind, &opened);
        assert_same_bytes(&tree, &opened.join("tree"));
    }
}

/// A tree of names and times that archives have trouble with.
fn odd_tree(tree: &Path) {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let names: [&[u8]; 9] = [
        b"back\\slash",
        b"end\\",
        b"latin-\xe9",
        b"\xff",
        b"new\nline",
        b"%5C",
        b" ",
        b"\xc3\xbc",
        b"\xce\x98",
    ];
    for name in names {
        let name = OsStr::from_bytes(name);
        write_file(&tree.join("files").join(name), 10, 1);
        write_file(&tree.join("folders").join(name).join(name), 10, 2);
        fs::create_dir_all(tree.join("links")).unwrap();
        std::os::unix::fs::symlink(Path::new("../files").join(name), tree.join("links").join(name)).unwrap();
    }
    let times = [
        (-20_000_000, 0),
        (-1, 999_999_999),
        (0, 1),
        (1_577_836_800, 500_000_000),
        (2_147_483_648, 0),
        (4_294_967_296, 1),
    ];
    for (at, (seconds, nanos)) in times.into_iter().enumerate() {
        let path = tree.join(format!("time-{at}"));
        write_file(&path, 10, 3);
        set_mtime(&path, seconds, nanos);
    }
}

#[test]
fn case_108_archives_carry_every_name_and_time_both_ways() {
    for kind in ["zip", "targz"] {
        let (served, own) = (scratch(), scratch());
        let tree = own.path().join("tree");
        odd_tree(&tree);
        let server = serve(served.path(), &[]);
        client(args!["send", &tree, server.target(""), "--compress", kind]).expect(0);
        assert_same_tree(&tree, &server.path("tree"));
        // So the same without an archive finds nothing to do.
        let again = client(args!["send", &tree, server.target("")]).expect(0);
        assert_eq!((again.number("files_skipped"), again.number("bytes_sent")), (again.number("files"), 0));
        client(args!["get", server.target("tree"), own.path().join("back"), "--compress", kind]).expect(0);
        assert_same_tree(&tree, &own.path().join("back"));
    }
}

/// Names that are UTF-8 come out as they are; others as the tool thinks, and one file for each.
#[test]
fn case_108_kept_archives_of_odd_names_open_with_the_usual_tools() {
    for (kind, extension) in [("zip", "zip"), ("targz", "tar.gz")] {
        let (served, own) = (scratch(), scratch());
        let tree = own.path().join("tree");
        odd_tree(&tree);
        fs::remove_dir_all(tree.join("links")).unwrap();
        let server = serve(served.path(), &["--keep-archive"]);
        client(args!["send", &tree, server.target(""), "--compress", kind]).expect(0);
        let opened = own.path().join("opened");
        open_with_tool(&server.path(format!("tree.{extension}")), kind, &opened);
        let files = names_in(&opened.join("tree/files"));
        assert_eq!(files.len(), names_in(&tree.join("files")).len(), "{kind}: {files:?}");
        for name in ["back\\slash", "\u{fc}", "\u{398}", "%5C"] {
            assert_same_bytes(&tree.join("files").join(name), &opened.join("tree/files").join(name));
        }
    }
}

#[test]
fn what_exists_is_respected_by_archives_too() {
    let (served, own) = (scratch(), scratch());
    let tree = own.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("a"), b"new").unwrap();
    fs::write(tree.join("b"), b"new").unwrap();
    fs::create_dir(served.path().join("tree")).unwrap();
    fs::write(served.path().join("tree/a"), b"old one").unwrap();
    let server = serve(served.path(), &["--existing", "overwrite"]);
    let send = |policy: &str| {
        client(args!["send", &tree, server.target(""), "--compress", "targz", "--existing", policy])
    };
    send("error").expect(9);
    assert_eq!(names_in(&server.path("tree")), ["a"]);
    send("skip").expect(0);
    assert_eq!(fs::read(server.path("tree/a")).unwrap(), b"old one");
    assert_eq!(fs::read(server.path("tree/b")).unwrap(), b"new");
    send("overwrite").expect(0);
    assert_eq!(fs::read(server.path("tree/a")).unwrap(), b"new");
    assert_eq!(leftovers(served.path()), [] as [&Path; 0]);
}

#[test]
fn an_archive_whose_connection_broke_is_made_anew() {
    let (served, own) = (scratch(), scratch());
    let tree = own.path().join("tree");
    fs::create_dir(&tree).unwrap();
    write_file(&tree.join("random"), 20 * MIB, 4);
    let server = serve(served.path(), &[]);
    let proxy = Proxy::to(server.port);
    proxy.cut_at(&[7 * MIB]);
    let sent = client(args!["send", &tree, proxy.target("put"), "--compress", "targz"]).expect(0);
    assert_eq!(sent.number("retries"), 1);
    assert_same_tree(&tree, &server.path("put"));
    proxy.cut_at(&[proxy.total() + 7 * MIB]);
    let back = own.path().join("back");
    client(args!["get", proxy.target("put"), &back, "--compress", "zip"]).expect(0);
    assert_same_bytes(&tree, &back);
}

#[test]
fn archives_are_compared_by_contents_where_that_is_asked_for() {
    for kind in ["zip", "targz"] {
        let (served, own) = (scratch(), scratch());
        let tree = own.path().join("tree");
        for name in ["changed", "same"] {
            write_file(&tree.join(name), 3000, 1);
            set_mtime(&tree.join(name), 1_000_000_000, 5);
        }
        let server = serve(served.path(), &["--existing", "overwrite"]);
        let send = |extra: &[&str]| {
            let mut words = args!["send", &tree, server.target(""), "--compress", kind];
            words.extend(extra.iter().map(std::ffi::OsString::from));
            client(words)
        };
        send(&[]).expect(0);
        // Neither size nor time tells.
        write_file(&tree.join("changed"), 3000, 2);
        set_mtime(&tree.join("changed"), 1_000_000_000, 5);
        for flags in [&["--check"][..], &["--check", "-n"]] {
            send(flags).expect(9);
        }
        let dry = send(&["--check", "-n", "--existing", "overwrite"]).expect(0);
        assert_eq!(dry.number("files"), 1, "{dry}");
        send(&["--check", "--existing", "overwrite"]).expect(0).expect_summary(&[("files_skipped", 1)]);
        assert_same_tree(&tree, &server.path("tree"));
    }
}

/// Archives that are sent anew each time gain nothing, so that the attempts end.
#[test]
fn an_archive_whose_connection_breaks_every_time_is_given_up() {
    let (served, own) = (scratch(), scratch());
    let file = own.path().join("random");
    write_file(&file, 8 * MIB, 4);
    let server = serve(served.path(), &[]);
    for flags in [["--compress", "targz"], ["--compress", "zip"], ["--no-resume", "--quiet"]] {
        let proxy = Proxy::to(server.port);
        let breaks: Vec<u64> = (1..20).map(|count| count * 2 * MIB).collect();
        proxy.cut_at(&breaks);
        let target = proxy.target("");
        client(args!["send", "-j", "1", "--retries", "2", &file, target, flags[0], flags[1]]).expect(5);
        assert_eq!(proxy.cuts(), 3, "{flags:?}");
    }
}

/// The code for an archive that is read as what it says it is, and says too much (413) or what may
/// not be (400), or that cannot be read so (422).
fn code_of(archive: &str) -> u64 {
    let name = archive.strip_prefix("bad-").unwrap();
    let offers = ["absolute", "beneath-file", "dotdot", "drive", "empty", "file-and-folder", "hidden"];
    let more = ["inner-dotdot", "link-", "pax-dotdot", "through-link", "twice.tar.gz"];
    match name {
        _ if name.starts_with("bomb") || name.starts_with("claims") => 413,
        _ if offers.iter().chain(&more).any(|start| name.starts_with(start)) => 400,
        _ => 422,
    }
}

/// Cases 43 and 45 to 52.
#[test]
fn archives_that_lie_leave_nothing_behind() {
    let (served, made) = (scratch(), scratch());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/archives.py");
    tool("python3", args![script, made.path()]);
    let mut server = serve(served.path(), &["--max-size", "100M", "--existing", "overwrite"]);
    let (mut good, mut bad) = (0, 0);
    for name in names_in(made.path()) {
        let archive = fs::read(made.path().join(&name)).unwrap();
        let kind = if name.ends_with(".zip") { "zip" } else { "targz" };
        let offer = Offer::new().stream(&name).open("Compress", kind).open("Existing", "overwrite");
        let mut raw = Raw::connect(server.port);
        let granted = raw.offer(&offer);
        raw.send_stream(&granted, &archive);
        if name.starts_with("good") {
            good += 1;
            raw.wait_for(wire::DONE);
            let content = fs::read(server.path("top/a")).unwrap();
            assert!(content.starts_with(b"content"), "{name}");
            if let Ok(suid) = fs::metadata(server.path("top/suid")) {
                assert_eq!(suid.mode() & 0o7777, 0o755, "{name}");
            }
            if name.contains("pax") {
                let metadata = fs::metadata(server.path("top/a")).unwrap();
                assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (-2, 750_000_000));
            }
            // Without this, only root could remove folders of any mode.
            tool("chmod", args!["-R", "u+rwx", server.path("top")]);
            fs::remove_dir_all(server.path("top")).unwrap();
        } else {
            bad += 1;
            raw.expect_refusal(true, code_of(&name), &name);
            server.assert_serves(&name);
        }
        server.wait_idle();
        assert_eq!(leftovers(served.path()), [] as [&Path; 0], "{name}");
        assert_eq!(names_in(served.path()), [] as [&str; 0], "{name}");
    }
    assert_eq!((good, bad), (4, 47));
    assert!(!Path::new("/tmp/fastdrop-was-here").exists());
}
