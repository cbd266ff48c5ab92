//! `-n` says exactly what the real run does, and exits as it does; and what else is decided before
//! anything is sent.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use support::*;

const POLICIES: [&str; 4] = ["skip", "error", "rename", "overwrite"];

/// Puts something at `path`, of one of a few kinds, sizes, contents, times and modes, so that two
/// of them are often alike.
fn put_something(path: &Path, rng: &mut Rng) {
    match rng.number() % 9 {
        0 => {}
        1 => fs::create_dir(path).unwrap(),
        2 => symlink(["here", "there", "/etc", "../out"][rng.number() as usize % 4], path).unwrap(),
        _ => {
            let size = [0, 1, 1000, 300_000][rng.number() as usize % 4];
            write_file(path, size, rng.number() % 2);
            set_mode(path, [0o644, 0o600][rng.number() as usize % 2]);
            set_mtime(path, 1_500_000_000 + (rng.number() % 2) as i64, 5);
        }
    }
}

/// All that a run told, but for figures: paths that would be moved or were, failures, and counts.
fn told(out: &Output) -> (BTreeSet<String>, [u64; 3]) {
    let failed = out.events.iter().filter(|event| event["event"] == "failed");
    let failed = failed.map(|event| event["path"].as_str().unwrap().to_owned()).collect();
    if out.code() == 0 || out.code() == 3 {
        (failed, ["files_skipped", "files_left", "files_failed"].map(|number| out.number(number)))
    } else {
        (failed, [0; 3])
    }
}

/// Case 111: for random things on both sides, under all policies, in both directions.
#[test]
fn case_111_a_dry_run_says_what_the_real_run_does() {
    for seed in 0..60 {
        let rng = &mut Rng::new(seed);
        let (served, own) = (scratch(), scratch());
        let policy = POLICIES[seed as usize % 4];
        let extra: &[&str] = [
            &[][..],
            &["--check"],
            &["--preserve", "none"],
            &["--exclude", "f1", "--links", "safe"],
            &["--compress", "targz"],
            &["--compress", "zip", "--check"],
        ][rng.number() as usize % 6];
        let extra: Vec<OsString> = extra.iter().map(Into::into).collect();
        for side in [served.path(), own.path()] {
            fs::create_dir(side.join("t")).unwrap();
            for name in ["f1", "f2", "f3", "f4", "f5"] {
                put_something(&side.join("t").join(name), rng);
            }
        }
        let server = serve(served.path(), &["--existing", "overwrite"]);
        let sends = rng.number().is_multiple_of(2);
        let mut command = if sends {
            args!["send", own.path().join("t"), server.target(""), "--existing", policy]
        } else {
            args!["get", server.target("t"), own.path(), "--existing", policy]
        };
        command.extend(extra);
        let into = if sends { served.path() } else { own.path() };
        let before = snapshot(into);
        let dry = client([command.clone(), args!["-n"]].concat());
        assert_eq!(snapshot(into), before, "seed {seed}: a dry run changed something: {dry}");
        let real = client(command.clone());
        let what = format!("seed {seed}: {command:?}\n{dry}\n{real}");
        assert!(!dry.stderr.contains("panicked") && !real.stderr.contains("panicked"), "{what}");
        assert_eq!(dry.code(), real.code(), "{what}");
        assert_eq!(told(&dry), told(&real), "{what}");
        // What would be moved is what has another inode now, or is new.
        let would = dry.events.iter().filter(|event| event["event"] == "would");
        let would: BTreeSet<_> = would.map(|event| event["path"].as_str().unwrap().to_owned()).collect();
        if real.code() == 0 || real.code() == 3 {
            let moved = real.number("files") - real.number("files_skipped");
            let files = dry.number("files");
            assert_eq!(files, moved, "{what}");
            assert!(would.len() as u64 >= files, "{what}");
        } else {
            assert!(would.is_empty(), "{what}");
        }
    }
}

/// Case 111: refusals are those of the real run, too.
#[test]
fn case_111_a_dry_run_is_refused_as_the_real_run_is() {
    let (served, own) = (scratch(), scratch());
    let source = own.path().join("file");
    write_file(&source, 100_000, 1);
    for (args, code) in [
        (&["--read-only"][..], 9),
        (&["--max-size", "1000"], 9),
        (&["--accept", "fastdp1.1"], 1),
        (&["--min-free", "1000T"], 8),
    ] {
        let server = serve(served.path(), args);
        let run = |extra: &[&str]| {
            let extra: Vec<OsString> = extra.iter().map(Into::into).collect();
            client([args!["send", source, server.target("")], extra].concat())
        };
        assert_eq!((run(&["-n"]).code(), run(&[]).code()), (code, code), "{args:?}");
    }
    client(args!["send", "-n", source, "no.such.host.invalid"]).expect(5);
    let server = serve(served.path(), &["--write-only"]);
    client(args!["get", "-n", server.target(""), own.path()]).expect(9);
}

/// Case 111: what could have no place is known before.
#[test]
#[ignore = "needs root"]
fn case_111_a_dry_run_tells_what_may_not_be_written() {
    let (served, own) = (scratch(), scratch());
    set_mode(served.path(), 0o777);
    let tree = own.path().join("tree");
    write_file(&tree.join("open/file"), 10, 1);
    write_file(&tree.join("closed/file"), 10, 2);
    // Root's own, in which nobody else may write, and one into which nobody else may look.
    fs::create_dir_all(served.path().join("tree/closed")).unwrap();
    fs::create_dir_all(served.path().join("alone")).unwrap();
    set_mode(&served.path().join("alone"), 0o700);
    fs::create_dir(served.path().join("tree/open")).unwrap();
    set_mode(&served.path().join("tree/open"), 0o777);
    set_mode(&served.path().join("tree"), 0o777);
    let server = serve_through(served.path(), &[], as_nobody());
    for (source, target) in [("", ""), ("", "alone"), ("open/file", "tree/closed"), ("open", "tree/closed")] {
        let run = |extra: &[&str]| {
            let extra: Vec<OsString> = extra.iter().map(Into::into).collect();
            let source = if source.is_empty() { tree.clone() } else { tree.join(source) };
            client([args!["send", source, server.target(target)], extra].concat())
        };
        let (dry, real) = (run(&["-n"]), run(&[]));
        assert_ne!(real.code(), 0, "{target}: {real}");
        assert_eq!(dry.code(), real.code(), "{source} to {target}: {dry}\n{real}");
    }
}

/// Case 111: so is what belongs to somebody else and would not get its time and permissions, and a
/// folder that could not be made.
#[test]
#[ignore = "needs root"]
fn case_111_a_dry_run_tells_what_belongs_to_somebody_else() {
    for sends in [true, false] {
        for (made, what) in [
            (&[][..], "nothing is there"),
            (&["tree"], "a folder is there, and open to everybody"),
            (&["tree", "tree/empty"], "the empty folder too"),
            (&["tree", "tree/file"], "a file is there, with another time"),
        ] {
            for closed in [false, true] {
                let (theirs, own) = (scratch(), scratch());
                let (from, to) = if sends { (&own, &theirs) } else { (&theirs, &own) };
                set_mode(from.path(), 0o755);
                write_file(&from.path().join("tree/file"), 10, 1);
                fs::create_dir(from.path().join("tree/empty")).unwrap();
                set_mtime(&from.path().join("tree/file"), 1000, 0);
                set_mode(to.path(), 0o777);
                for name in made {
                    let place = to.path().join(name);
                    if name.ends_with("file") {
                        write_file(&place, 10, 1);
                        set_mtime(&place, 2000, 0);
                    } else {
                        fs::create_dir(&place).unwrap();
                        set_mode(&place, if closed { 0o755 } else { 0o777 });
                    }
                }
                let server = serve_through(theirs.path(), &["--existing", "overwrite"], as_nobody());
                let run = |extra: &[&str]| {
                    let command = match sends {
                        true => args!["send", from.path().join("tree"), server.target("")],
                        false => args!["get", server.target("tree"), to.path()],
                    };
                    let extra = extra.iter().map(Into::into).collect::<Vec<OsString>>();
                    fastdrop([command, extra].concat()).wrapper(as_nobody()).json().run()
                };
                let (dry, real) = (run(&["-n"]), run(&[]));
                let case = format!("sends: {sends}, {what}, closed: {closed}");
                assert_eq!(dry.code(), real.code(), "{case}: {dry}\n{real}");
                if real.code() == 3 {
                    assert_eq!(
                        dry.number("files_failed"),
                        real.number("files_failed"),
                        "{case}: {dry}\n{real}"
                    );
                }
            }
        }
    }
}

/// Case 111: what can be known only of the manifest is refused, or counted, by the dry run too.
#[test]
fn case_111_a_dry_run_of_a_get_fails_as_the_real_run_does() {
    let (served, own) = (scratch(), scratch());
    write_file(&served.path().join("folder/file"), 10, 1);
    write_file(&served.path().join("two"), 10, 2);
    symlink("nowhere", served.path().join("link")).unwrap();
    let list = own.path().join("list");
    fs::write(&list, "two\nmissing\n").unwrap();
    let gone = own.path().join("gone");
    fs::write(&gone, "missing\n").unwrap();
    let server = serve(served.path(), &[]);
    for (path, to, flags, code) in [
        ("folder", "-", &[][..], 9),
        ("link", "-", &[], 9),
        ("", "-", &[], 9),
        ("two", "-", &[], 0),
        ("", "into", &["--files-from", "list"], 3),
        ("", "into", &["--files-from", "list", "--compress", "zip"], 3),
        ("", "into", &["--files-from", "list", "--compress", "targz"], 3),
        ("", "into", &["--files-from", "gone", "--compress", "zip"], 4),
    ] {
        let run = |extra: &[&str]| {
            let to = if to == "-" { to.into() } else { own.path().join(to) };
            let named = |flag: &&str| match *flag {
                "list" => list.clone().into(),
                "gone" => gone.clone().into(),
                flag => OsString::from(flag),
            };
            let flags: Vec<_> = flags.iter().chain(extra).map(named).collect();
            plain([args!["get", server.target(path), to], flags].concat()).code()
        };
        assert_eq!((run(&["-n"]), run(&[])), (code, code), "{path:?} to {to} with {flags:?}");
    }
}

/// Case 111: fastdownloader tells names alone, and the place decides the rest.
#[test]
fn case_111_a_dry_run_of_fastdownloader_looks_at_the_place() {
    let served = scratch();
    write_file(&served.path().join("file"), 1000, 1);
    let server = serve(served.path(), &["--fastdownloader=0"]);
    let port = server.wait_stdout(|line| {
        let event: serde_json::Value = serde_json::from_str(line).ok()?;
        (event["protocol"] == "fastdownloader").then(|| event["port"].as_u64()).flatten()
    });
    let target = format!("127.0.0.1:{}/file", port.unwrap());
    for (to, policy, code, skipped) in [
        ("", "error", 0, 0),
        ("new", "error", 0, 0),
        ("new/", "error", 0, 0),
        ("a/b/new", "error", 0, 0),
        ("there", "error", 9, 0),
        ("there", "skip", 0, 1),
        ("there", "rename", 0, 0),
        ("there", "overwrite", 0, 0),
        ("there/x", "overwrite", 9, 0),
        ("full", "skip", 9, 0),
        ("full", "overwrite", 9, 0),
    ] {
        let own = scratch();
        write_file(&own.path().join("there"), 10, 2);
        fs::create_dir_all(own.path().join("full/file")).unwrap();
        let into = if to.is_empty() { own.path().to_path_buf() } else { own.path().join(to) };
        let command = args!["get", "--protocol", "fastdownloader", "--existing", policy, target, into];
        let before = snapshot(own.path());
        let dry = client([command.clone(), args!["-n"]].concat());
        assert_eq!(snapshot(own.path()), before, "{to} {policy}: {dry}");
        let real = client(command);
        assert_eq!((dry.code(), real.code()), (code, code), "{to:?} {policy}: {dry}\n{real}");
        if code == 0 {
            let told = [dry.number("files_skipped"), real.number("files_skipped")];
            assert_eq!(told, [skipped; 2], "{to} {policy}: {dry}\n{real}");
            assert_eq!(dry.number("files") + skipped, real.number("files"), "{to} {policy}");
        }
    }
}

/// Case 111: what cannot be read is known before, and only counts where it would be read.
#[test]
fn case_111_a_dry_run_tells_what_cannot_be_read() {
    let (theirs, own) = (scratch(), scratch());
    // A folder with one such file, such a file alone, an empty one, and one that is at its place
    // already.
    let all: &[(&str, &[&str])] =
        &[("tree", &[]), ("tree/closed", &[]), ("void", &[]), ("there", &["there"]), ("there", &[])];
    let archive: &[&str] = &["--compress", "targz"];
    for sends in [true, false] {
        for (number, ((name, before), extra)) in
            all.iter().flat_map(|case| [&[][..], archive].map(|extra| (case, extra))).enumerate()
        {
            let (from, to) = if sends { (&own, &theirs) } else { (&theirs, &own) };
            let at = format!("{sends}-{number}");
            let (from, to) = (from.path().join(format!("from-{at}")), to.path().join(format!("to-{at}")));
            write_file(&from.join("tree/open"), 10, 1);
            write_file(&from.join("tree/closed"), 3 << 20, 2);
            write_file(&from.join("void/closed"), 0, 2);
            write_file(&from.join("there/closed"), 10, 2);
            for tree in before.iter() {
                fs::create_dir_all(to.join(tree)).unwrap();
                let mut copy = std::process::Command::new("cp");
                let copied = copy.arg("-p").arg(from.join("there/closed")).arg(to.join("there/closed"));
                assert!(copied.status().unwrap().success());
            }
            fs::create_dir_all(&to).unwrap();
            for tree in ["tree", "void", "there"] {
                set_mode(&from.join(tree).join("closed"), 0);
            }
            let server = serve_through(theirs.path(), &["--existing", "overwrite"], as_if_not_root());
            let run = |more: &[&str]| {
                let command = if sends {
                    args!["send", from.join(name), server.target(format!("to-{at}/"))]
                } else {
                    args!["get", server.target(format!("from-{at}/{name}")), &to]
                };
                let extra = extra.iter().chain(more).map(Into::into).collect::<Vec<OsString>>();
                fastdrop([command, extra].concat()).wrapper(as_if_not_root()).json().run()
            };
            let (dry, real) = (run(&["-n"]), run(&[]));
            assert_eq!(dry.code(), real.code(), "{at} {name} {before:?} {extra:?}: {dry}\n{real}");
            if real.code() == 3 {
                assert_eq!(dry.number("files_failed"), 1, "{dry}");
                assert_eq!(dry.number("files"), real.number("files"), "{dry}\n{real}");
            }
        }
    }
}

/// A file that was merely touched does not conflict, nor is it sent: it gets its time.
#[test]
fn a_touched_file_gets_its_time_without_being_sent() {
    let (served, own) = (scratch(), scratch());
    let source = own.path().join("file");
    write_file(&source, 3 * MIB, 1);
    let server = serve(served.path(), &[]);
    client(args!["send", source, server.target("")]).expect(0);
    for (at, flags) in [&[][..], &["--existing", "skip"], &["--check"]].into_iter().enumerate() {
        set_mtime(&source, 1_600_000_000 + at as i64, 7);
        let flags: Vec<OsString> = flags.iter().map(Into::into).collect();
        client([args!["send", source, server.target("")], flags].concat())
            .expect(0)
            .expect_summary(&[("bytes_sent", 0), ("files_skipped", 1)]);
        let arrived = fs::metadata(server.path("file")).unwrap();
        assert_eq!((arrived.mtime(), arrived.mtime_nsec()), (1_600_000_000 + at as i64, 7));
    }
    // And back.
    set_mtime(&server.path("file"), 1_700_000_000, 0);
    client(args!["get", server.target("file"), own.path()]).expect(0).expect_summary(&[("bytes_sent", 0)]);
    assert_eq!(fs::metadata(&source).unwrap().mtime(), 1_700_000_000);
}

/// Modes of files, and modes and times of folders and links, are carried over without any contents.
#[test]
fn a_changed_mode_alone_is_carried_over() {
    let (served, own) = (scratch(), scratch());
    let tree = own.path().join("tree");
    write_file(&tree.join("folder/file"), 300_000, 1);
    write_file(&tree.join("small"), 10, 1);
    symlink("small", tree.join("link")).unwrap();
    let server = serve(served.path(), &[]);
    client(args!["send", tree, server.target("")]).expect(0);
    assert_same_tree(&tree, &server.path("tree"));
    set_mode(&tree.join("folder/file"), 0o600);
    set_mode(&tree.join("small"), 0o755);
    set_mode(&tree.join("folder"), 0o700);
    set_mtime(&tree.join("folder"), 1_400_000_000, 1);
    for flags in [&[][..], &["--existing", "skip"]] {
        let flags: Vec<OsString> = flags.iter().map(Into::into).collect();
        client([args!["send", tree, server.target("")], flags].concat())
            .expect(0)
            .expect_summary(&[("bytes_sent", 0)]);
        assert_same_tree(&tree, &server.path("tree"));
    }
    set_mode(&server.path("tree/small"), 0o640);
    client(args!["get", server.target("tree"), own.path()]).expect(0).expect_summary(&[("bytes_sent", 0)]);
    assert_same_tree(&server.path("tree"), &tree);
    // Not what is not preserved.
    set_mode(&tree.join("small"), 0o711);
    client(args!["send", "--preserve", "times", tree, server.target("")]).expect(0);
    assert_eq!(fs::metadata(server.path("tree/small")).unwrap().mode() & 0o777, 0o640);
}

/// Case 112: `--check` finds what size and time do not tell, and the policy decides what becomes of
/// it.
#[test]
fn case_112_check_compares_contents() {
    for (policy, code, arrives) in
        [("error", 9, false), ("skip", 0, false), ("overwrite", 0, true), ("rename", 0, false)]
    {
        for sends in [true, false] {
            let (served, own) = (scratch(), scratch());
            let (here, there) = (own.path().join("file"), served.path().join("file"));
            for (path, seed) in [(&here, 1), (&there, 2)] {
                write_file(path, 2 * MIB, seed);
                set_mtime(path, 1_500_000_000, 5);
            }
            let server = serve(served.path(), &["--existing", "overwrite"]);
            let (from, to, mut command) = match sends {
                true => (&here, &there, args!["send", here, server.target("")]),
                false => (&there, &here, args!["get", server.target("file"), own.path()]),
            };
            command.extend(args!["--existing", policy]);
            // Without it they are the same, and nobody claims to have looked.
            let out = client(command.clone()).expect(0);
            out.expect_summary(&[("files_skipped", 1), ("files_verified", 0), ("files_left", 0)]);
            let (mut wanted, old) = (fs::read(from).unwrap(), fs::read(to).unwrap());
            let out = client([command.clone(), args!["--check"]].concat()).expect(code);
            if !arrives {
                wanted = old;
            }
            assert!(fs::read(to).unwrap() == wanted, "{policy}, {sends}: {out}");
            if policy == "skip" {
                out.expect_summary(&[("files_left", 1), ("files_verified", 0)]);
            }
            if policy == "overwrite" {
                let out = client([command, args!["--check"]].concat()).expect(0);
                out.expect_summary(&[("files_skipped", 1), ("bytes_sent", 0)]);
            }
        }
    }
}

/// Case 112: the summary says nothing of what nobody read.
#[test]
fn case_112_nothing_is_verified_that_nobody_read() {
    let (served, own) = (scratch(), scratch());
    let source = own.path().join("file");
    write_file(&source, 1000, 1);
    let server = serve(served.path(), &["--existing", "overwrite"]);
    let said = |flags: &[&str]| {
        let flags: Vec<OsString> = flags.iter().map(Into::into).collect();
        plain([args!["send", source, server.target("")], flags].concat()).expect(0).text()
    };
    assert!(said(&[]).contains("verified with xxh3; committed to disk"));
    let again = said(&[]);
    assert!(!again.contains("verified") && !again.contains("committed"), "{again}");
    assert!(again.contains("the same size and time"), "{again}");
    let checked = said(&["--check"]);
    assert!(checked.contains("the same contents"), "{checked}");
    fs::write(&source, fill(1001, 2)).unwrap();
    let left = said(&["--existing", "skip"]);
    assert!(left.contains("left as they are") && !left.contains("verified"), "{left}");
    let empty = own.path().join("folder");
    fs::create_dir(&empty).unwrap();
    let folder = plain(args!["send", empty, server.target("")]).expect(0).text();
    assert!(!folder.contains("verified"), "{folder}");
}

/// Case 112: what differs and was left is told apart from what is the same, in archives too.
#[test]
fn case_112_what_was_left_is_not_called_the_same() {
    for compress in ["none", "zip", "targz"] {
        for sends in [true, false] {
            let (served, own) = (scratch(), scratch());
            for (side, seed) in [(&served, 1), (&own, 2)] {
                write_file(&side.path().join("t/same"), 10, 1);
                set_mtime(&side.path().join("t/same"), 1_500_000_000, 5);
                write_file(&side.path().join("t/differs"), 10 + seed, seed);
            }
            let server = serve(served.path(), &[]);
            let command = match sends {
                true => args!["send", own.path().join("t"), server.target("")],
                false => args!["get", server.target("t"), own.path()],
            };
            let out = client([command, args!["--existing", "skip", "--compress", compress]].concat());
            let told = [("files", 2), ("files_skipped", 2), ("files_left", 1), ("files_verified", 0)];
            out.expect(0).expect_summary(&told);
        }
    }
}

/// Something in the way is told once, with both flags that get out of it, whoever refuses.
#[test]
fn what_is_in_the_way_is_told_with_both_flags() {
    let (served, own) = (scratch(), scratch());
    let source = own.path().join("file");
    write_file(&source, 1000, 1);
    write_file(&served.path().join("file"), 1001, 2);
    let server = serve(served.path(), &[]);
    for policy in ["error", "overwrite"] {
        let out = plain(args!["send", source, server.target(""), "--existing", policy]).expect(9);
        assert!(out.stderr.contains("--existing overwrite"), "{out}");
        assert!(out.stderr.contains("serve --existing overwrite"), "{out}");
    }
}
