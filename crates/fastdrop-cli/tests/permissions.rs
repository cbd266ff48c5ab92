//! Folders whose permissions stand in the way of an ordinary user who owns them: they are lent what
//! they lack, and get back what they had, however the transfer ends.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use support::*;

const NOTHING: [PathBuf; 0] = [];

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

/// A folder that others may look into.
fn open_scratch() -> tempfile::TempDir {
    let dir = scratch();
    set_mode(dir.path(), 0o755);
    dir
}

struct Pair {
    from: tempfile::TempDir,
    to: tempfile::TempDir,
    server: Server,
    get: bool,
}

impl Pair {
    /// Both ends are an ordinary user's.
    fn new(get: bool, make: impl FnOnce(&Path)) -> Self {
        let (from, to) = (open_scratch(), open_scratch());
        make(&from.path().join("tree"));
        give_to_nobody(from.path());
        give_to_nobody(to.path());
        let served = if get { &from } else { &to };
        let extra: &[&str] = if get { &[] } else { &["--existing", "overwrite"] };
        let server = serve_through(served.path(), extra, as_nobody());
        Self { from, to, server, get }
    }

    fn tree(&self) -> PathBuf {
        self.from.path().join("tree")
    }

    fn arrived(&self) -> PathBuf {
        self.to.path().join("tree")
    }

    fn command(&self, port: Option<&Proxy>, flags: &[&str]) -> Cmd {
        let target = |path: &str| match port {
            Some(proxy) => proxy.target(path),
            None => self.server.target(path),
        };
        let flags: Vec<OsString> = flags.iter().map(OsString::from).collect();
        let args = match self.get {
            true => [args!["get", "--existing", "overwrite"], flags, args![target("tree"), self.to.path()]],
            false => [args!["send", "--existing", "overwrite"], flags, args![self.tree(), target("")]],
        };
        fastdrop(args.concat()).json().wrapper(as_nobody())
    }

    #[track_caller]
    fn assert_arrives(&self) {
        self.command(None, &[]).run().expect(0);
        assert_same_tree(&self.tree(), &self.arrived());
        assert_eq!(leftovers(self.to.path()), NOTHING);
    }
}

/// Files, links and folders in folders that are read-only at both ends, nested, new and changed.
#[test]
#[ignore = "needs root"]
fn read_only_folders_are_updated_and_stay_read_only() {
    for get in [false, true] {
        for locked in [0o555, 0o500, 0o511] {
            let folders = ["ro", "ro/inner", "ro/inner/deep", "open", "open/ro"];
            let lock = |tree: &Path| folders.iter().rev().for_each(|f| set_mode(&tree.join(f), locked));
            let unlock = |tree: &Path| folders.iter().for_each(|f| set_mode(&tree.join(f), 0o755));
            let pair = Pair::new(get, |tree| {
                for folder in folders {
                    write_file(&tree.join(folder).join("file"), 3000, 1);
                }
                lock(tree);
            });
            // New read-only folders.
            pair.assert_arrives();
            let tree = pair.tree();
            unlock(&tree);
            for (at, folder) in folders.iter().enumerate() {
                let folder = tree.join(folder);
                write_file(&folder.join("file"), 4000, 2);
                write_file(&folder.join("new"), at as u64 * 1000, 3);
                write_file(&folder.join("big"), 2 * MIB, 4);
                symlink("file", folder.join("link")).unwrap();
                write_file(&folder.join("new folder/file"), 10, 5);
                set_mode(&folder.join("new folder"), 0o555);
            }
            lock(&tree);
            give_to_nobody(&tree);
            pair.assert_arrives();
            // Without modes they keep what they had.
            unlock(&tree);
            fs::write(tree.join("ro/inner/another"), "1").unwrap();
            give_to_nobody(&tree);
            pair.command(None, &["--preserve", "times"]).run().expect(0);
            assert!(pair.arrived().join("ro/inner/another").exists());
            for folder in folders {
                assert_eq!(mode(&pair.arrived().join(folder)), locked, "{folder}");
            }
            assert_eq!(leftovers(pair.to.path()), NOTHING);
        }
    }
}

/// The older protocols, which bring one file each.
#[test]
#[ignore = "needs root"]
fn the_older_protocols_put_files_into_read_only_folders() {
    let pair = Pair::new(false, |tree| write_file(&tree.join("file"), 3000, 1));
    let folder = pair.arrived();
    fs::create_dir_all(folder.join("ro")).unwrap();
    give_to_nobody(&folder);
    set_mode(&folder.join("ro"), 0o555);
    // UltraDP cannot confirm what it sent.
    for (protocol, code) in [("fastdp1.0", 0), ("fastdp1.1", 0), ("ultradp", 10), ("nextdp", 0)] {
        let target = pair.server.target(format!("tree/ro/{protocol}"));
        client(args!["send", "--protocol", protocol, pair.tree().join("file"), target]).expect(code);
        let arrived = folder.join("ro").join(protocol);
        eventually("the file to get its name", || arrived.exists().then_some(()));
        eventually("the stage to go", || leftovers(pair.to.path()).is_empty().then_some(()));
        assert_eq!(mode(&folder.join("ro")), 0o555, "{protocol}");
    }
}

/// A folder of somebody else is not ours to open: that is a failed entry, and the others arrive.
#[test]
#[ignore = "needs root"]
fn a_read_only_folder_of_somebody_else_is_a_failed_entry() {
    for get in [false, true] {
        let pair = Pair::new(get, |tree| {
            write_file(&tree.join("theirs/file"), 3000, 1);
            write_file(&tree.join("ours/file"), 3000, 2);
        });
        fs::create_dir_all(pair.arrived().join("theirs")).unwrap();
        give_to_nobody(&pair.arrived());
        tool("chown", args!["0:0", pair.arrived().join("theirs")]);
        let out = pair.command(None, &["--preserve", "none"]).run().expect(3);
        assert!(out.to_string().contains("ermission denied"), "{out}");
        assert!(pair.arrived().join("ours/file").exists());
        assert!(!pair.arrived().join("theirs/file").exists());
        assert_eq!(mode(&pair.arrived().join("theirs")), 0o755);
    }
}

/// Folders of this user's own that may not even be looked into are compared like all others.
#[test]
#[ignore = "needs root"]
fn folders_that_lack_any_of_the_owners_permissions_are_updated() {
    for get in [false, true] {
        for locked in [0o000, 0o100, 0o200, 0o300, 0o400, 0o444, 0o500, 0o600, 0o077] {
            let pair = Pair::new(get, |tree| {
                write_file(&tree.join("locked/old"), 3000, 1);
                write_file(&tree.join("locked/inner/old"), 3000, 2);
            });
            pair.assert_arrives();
            let folder = pair.arrived().join("locked");
            write_file(&pair.tree().join("locked/new"), 1000, 3);
            write_file(&pair.tree().join("locked/inner/new"), 1000, 4);
            give_to_nobody(&pair.tree());
            set_mode(&folder.join("inner"), locked);
            set_mode(&folder, locked);
            let out = pair.command(None, &["--preserve", "times"]).run().expect(0);
            assert_eq!(out.number("files_skipped"), 2, "{locked:o} {out}");
            assert_same_contents(&pair.tree().join("locked/inner"), &folder.join("inner"));
            for folder in [&folder, &folder.join("inner")] {
                assert_eq!(mode(folder), locked, "{locked:o}");
            }
            assert_eq!(leftovers(pair.to.path()), NOTHING);
            pair.assert_arrives();
        }
    }
}

/// A folder into which this user may not even look costs what would go there, and nothing else.
#[test]
#[ignore = "needs root"]
fn a_folder_that_cannot_be_looked_into_is_a_failed_entry() {
    for get in [false, true] {
        let pair = Pair::new(get, |tree| {
            write_file(&tree.join("theirs/file"), 3000, 1);
            write_file(&tree.join("theirs/inner/file"), 3000, 1);
            write_file(&tree.join("ours/file"), 3000, 2);
        });
        fs::create_dir_all(pair.arrived().join("theirs/inner")).unwrap();
        give_to_nobody(&pair.arrived());
        tool("chown", args!["0:0", pair.arrived().join("theirs")]);
        set_mode(&pair.arrived().join("theirs"), 0o700);
        let out = pair.command(None, &[]).run().expect(3);
        assert!(out.to_string().contains("ermission denied"), "{out}");
        assert_same_contents(&pair.tree().join("ours"), &pair.arrived().join("ours"));
        assert_eq!(names_in(&pair.arrived().join("theirs")), ["inner"]);
        assert_eq!(names_in(&pair.arrived().join("theirs/inner")), [] as [&str; 0]);
    }
}

/// Killed while names are given, or failed after they were: what was lent is given back, by the
/// transfer itself, by the next start, or by whoever looks for unfinished work there next.
#[test]
#[ignore = "needs root and strace"]
fn what_was_lent_is_given_back_however_the_transfer_ends() {
    for get in [false, true] {
        for (inject, code_of_get, code_of_put) in
            [("renameat2:signal=SIGKILL:when=20", 137, 5), ("fsync:error=EIO:when=1+", 1, 1)]
        {
            let log = open_scratch();
            let calls = inject.split(':').next().unwrap();
            let (trace, injected) = (format!("trace={calls}"), format!("inject={inject}"));
            let wrapper = [
                args!["strace", "-D", "-f", "-qq", "-o", log.path().join("log"), "-e", trace, "-e", injected],
                as_nobody(),
            ]
            .concat();
            let mut pair = Pair::new(get, |tree| {
                for at in 0..40 {
                    write_file(&tree.join(format!("ro/{at}")), 3000, at);
                }
            });
            let folder = pair.arrived().join("ro");
            fs::create_dir_all(&folder).unwrap();
            give_to_nobody(&pair.arrived());
            set_mode(&folder, 0o555);
            let flags = ["--retries", "0", "--preserve", "times"];
            let run = pair.command(None, &flags);
            if get {
                run.wrapper(wrapper).run().expect(code_of_get);
            } else {
                let served = pair.to.path().to_path_buf();
                pair.server = serve_through(&served, &["--existing", "overwrite"], wrapper);
                pair.command(None, &flags).run().expect(code_of_put);
            }
            let traced = fs::read_to_string(log.path().join("log")).unwrap();
            assert!(
                traced.contains("SIGKILL") || traced.contains("INJECTED"),
                "this tested nothing\n{traced}"
            );
            let was_killed = inject.contains("SIGKILL");
            assert!(!names_in(&folder).is_empty(), "nothing was named: this tested nothing\n{traced}");
            assert_eq!(mode(&folder) != 0o555, was_killed, "{inject}");
            if was_killed && get {
                let own = open_scratch();
                write_file(&own.path().join("other"), 10, 1);
                let other = serve(own.path(), &[]);
                let command = args!["get", other.target("other"), pair.to.path()];
                fastdrop(command).wrapper(as_nobody()).run().expect(0);
                assert_eq!(mode(&folder), 0o555);
            } else if was_killed {
                let served = pair.to.path().to_path_buf();
                pair.server = serve_through(&served, &["--existing", "overwrite"], as_nobody());
                eventually("the permissions to be given back", || (mode(&folder) == 0o555).then_some(()));
            } else if !get {
                let served = pair.to.path().to_path_buf();
                pair.server = serve_through(&served, &["--existing", "overwrite"], as_nobody());
            }
            pair.command(None, &["--preserve", "times"]).run().expect(0);
            assert_eq!(mode(&folder), 0o555);
            assert_eq!(names_in(&pair.tree().join("ro")), names_in(&folder));
            assert_eq!(leftovers(pair.to.path()), NOTHING);
        }
    }
}
