//! Held parts of a file are continued only with the same file: another one of the same size and
//! time is sent anew.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use support::*;

const TIME: (i64, u32) = (1_500_000_000, 123_456_789);
const SIZE: u64 = 9 * MIB + 77;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Send,
    Get,
}

/// Ways in which another version comes to stand in the place of the first.
#[derive(Debug, Clone, Copy)]
enum Change {
    /// Into the same inode.
    Written,
    /// By a rename.
    Replaced,
    /// In a few bytes of the part that has been moved.
    Touched,
    /// Not at all.
    Nothing,
}

fn make(path: &Path, seed: u64) {
    write_file(path, SIZE, seed);
    set_mtime(path, TIME.0, TIME.1);
}

fn change(path: &Path, change: Change) {
    match change {
        Change::Written => fs::write(path, fill(SIZE, 99)).unwrap(),
        Change::Replaced => {
            let other = path.with_extension("other");
            fs::write(&other, fill(SIZE, 99)).unwrap();
            fs::rename(other, path).unwrap();
        }
        Change::Touched => {
            let mut bytes = fs::read(path).unwrap();
            bytes[300_000] ^= 1;
            bytes[1_500_000] ^= 1;
            fs::write(path, bytes).unwrap();
        }
        Change::Nothing => return,
    }
    set_mtime(path, TIME.0, TIME.1);
}

/// A folder to serve and one of the client's, with `thing` in the one that is moved from: a file,
/// or a tree with small files.
struct Setting {
    way: Way,
    from: tempfile::TempDir,
    to: tempfile::TempDir,
    server: Server,
}

impl Setting {
    fn new(way: Way, tree: bool) -> Self {
        let (from, to) = (scratch(), scratch());
        let thing = from.path().join("thing");
        if tree {
            for small in 0..40 {
                write_file(&thing.join(format!("small-{small}")), 20_000, small);
            }
            make(&thing.join("file"), 1);
        } else {
            make(&thing, 1);
        }
        let served = if way == Way::Send { &to } else { &from };
        let server = serve(served.path(), &[]);
        Self { way, from, to, server }
    }

    fn command(&self, proxy: &Proxy, flags: &[&str]) -> Cmd {
        let flags: Vec<OsString> = flags.iter().map(OsString::from).collect();
        let rest = match self.way {
            Way::Send => args!["send", self.from.path().join("thing"), proxy.target("")],
            Way::Get => args!["get", proxy.target("thing"), self.to.path()],
        };
        fastdrop([rest, flags].concat()).json()
    }

    /// The bytes of unfinished files that are stored.
    fn unfinished(&self) -> u64 {
        let stored = |path: &std::path::PathBuf| Some(fs::symlink_metadata(path).ok()?.blocks() * 512);
        leftovers(self.to.path()).iter().filter_map(stored).sum()
    }

    fn assert_arrived(&self, what: &str) {
        let (sent, arrived) = (self.from.path().join("thing"), self.to.path().join("thing"));
        if sent.is_dir() {
            assert_same_tree(&sent, &arrived);
        } else {
            assert!(fs::read(&sent).unwrap() == fs::read(&arrived).unwrap(), "{what}: it is another file");
        }
        assert_eq!(leftovers(self.to.path()), [] as [std::path::PathBuf; 0], "{what}");
    }
}

/// Case 103: interrupted by the death of either end, changed, and the same command again.
fn resumed_after(tree: bool) {
    for way in [Way::Send, Way::Get] {
        for flags in [
            &[][..],
            &["--checksum", "blake3"],
            &["--checksum", "none"],
            &["--compress", "zstd"],
            &["--checksum", "blake3", "--streams", "3"],
        ] {
            for how in [Change::Written, Change::Replaced, Change::Touched, Change::Nothing] {
                let setting = Setting::new(way, tree);
                let file = setting.from.path().join(if tree { "thing/file" } else { "thing" });
                if matches!(how, Change::Nothing) {
                    until_settled(&file);
                }
                let proxy = Proxy::to(setting.server.port);
                proxy.hold_at(5 * MIB);
                let run = setting.command(&proxy, &[flags, &["--retries", "0"]].concat()).start();
                proxy.wait_held();
                if way == Way::Get && matches!(how, Change::Touched | Change::Nothing) {
                    // What a client has noted when it is killed depends on how busy the machine is.
                    eventually("some of it to be written", || (setting.unfinished() >= MIB).then_some(()));
                    run.signal("TERM");
                    run.wait();
                } else {
                    run.kill9();
                }
                proxy.cut_all();
                setting.server.wait_idle();
                change(&file, how);
                let what = format!("{way:?}, tree {tree}, {flags:?}, {how:?}");
                let proxy = Proxy::to(setting.server.port);
                let out = setting.command(&proxy, flags).run();
                assert_eq!(out.code(), 0, "{what}: {out}");
                setting.assert_arrived(&what);
                if flags.contains(&"blake3") && matches!(way, Way::Send) {
                    let printed = out.file_event(if tree { "file" } else { "thing" })["blake3"].clone();
                    assert_eq!(printed, digest_of(&file).to_hex().to_string(), "{what}");
                }
                // What is the same is not moved again.
                let (moved, whole) = (out.number("bytes_sent"), out.number("bytes"));
                match how {
                    Change::Nothing => assert!(moved < whole, "{what}: {moved} bytes moved"),
                    Change::Touched if !flags.contains(&"none") => {
                        assert!((1..whole).contains(&moved), "{what}: {moved} bytes moved");
                    }
                    _ => {}
                }
            }
        }
    }
}

#[test]
fn case_103_a_file_that_was_changed_between_two_runs_is_not_mixed() {
    resumed_after(false);
}

#[test]
fn case_103_a_file_in_a_tree_that_was_changed_between_two_runs_is_not_mixed() {
    resumed_after(true);
}

/// Case 103: the change happens while one run waits to reconnect, the server having died or not.
#[test]
fn case_103_a_file_that_changes_between_two_attempts_of_one_run_is_not_mixed() {
    for way in [Way::Send, Way::Get] {
        for restarts in [false, true] {
            for flags in [&[][..], &["--checksum", "blake3"], &["--checksum", "none"]] {
                for how in [Change::Written, Change::Replaced, Change::Touched] {
                    let mut setting = Setting::new(way, false);
                    let proxy = Proxy::to(setting.server.port);
                    proxy.hold_at(5 * MIB);
                    let run = setting.command(&proxy, flags).start();
                    proxy.wait_held();
                    if restarts {
                        setting.server.kill9();
                    }
                    change(&setting.from.path().join("thing"), how);
                    if restarts {
                        setting.server.restart_same_dir();
                        proxy.retarget(setting.server.port);
                    }
                    proxy.cut_all();
                    proxy.resume();
                    let out = run.wait();
                    let what = format!("{way:?}, restarted {restarts}, {flags:?}, {how:?}: {out}");
                    assert!(!out.stderr.contains("panicked"), "{what}");
                    assert_eq!(out.code(), 0, "{what}");
                    setting.assert_arrived(&what);
                }
            }
        }
    }
}

/// Case 103: what has been written to standard output cannot be taken back.
#[test]
fn case_103_a_file_that_changes_on_its_way_to_standard_output_is_no_success() {
    for how in [Change::Written, Change::Replaced, Change::Touched, Change::Nothing] {
        let served = scratch();
        let file = served.path().join("thing");
        make(&file, 1);
        let first = fs::read(&file).unwrap();
        let server = serve(served.path(), &[]);
        let proxy = Proxy::to(server.port);
        proxy.hold_at(5 * MIB);
        let out = scratch();
        let into = out.path().join("out");
        let to = fs::File::create(&into).unwrap();
        let run = fastdrop(args!["get", proxy.target("thing"), "-"]).stdout_to(to).start();
        proxy.wait_held();
        change(&file, how);
        proxy.cut_all();
        proxy.resume();
        let out = run.wait();
        match how {
            Change::Nothing => {
                assert_eq!(out.code(), 0, "{out}");
                assert!(fs::read(&into).unwrap() == first);
            }
            _ => assert_eq!(out.code(), 1, "{how:?}: {out}"),
        }
    }
}

/// The price of comparing is a second read, not a second transfer: what was touched at one place is
/// moved in part only, and what is trusted is not read at all.
#[test]
fn a_file_that_only_its_name_tells_from_another_is_compared_and_not_moved() {
    for way in [Way::Send, Way::Get] {
        let setting = Setting::new(way, false);
        let file = setting.from.path().join("thing");
        let proxy = Proxy::to(setting.server.port);
        proxy.hold_at(6 * MIB);
        let run = setting.command(&proxy, &["--retries", "0"]).start();
        proxy.wait_held();
        run.kill9();
        proxy.cut_all();
        setting.server.wait_idle();
        // Another inode, the same bytes.
        let copy = file.with_extension("copy");
        fs::copy(&file, &copy).unwrap();
        fs::rename(&copy, &file).unwrap();
        set_mtime(&file, TIME.0, TIME.1);
        let proxy = Proxy::to(setting.server.port);
        let out = setting.command(&proxy, &[]).run().expect(0);
        setting.assert_arrived("a copy");
        assert!(out.number("bytes_sent") < 9 * MIB, "{way:?}: {out}");
    }
}
