//! Case 107: mounts beneath the served folder, or beneath the destination of a get. What arrives is
//! staged on the mount on which it will live, whatever protocol brings it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use support::*;

const NOTHING: [PathBuf; 0] = [];

/// A kind of mount at `disk`: another device, or another folder of the same one.
fn mount(kind: &str, disk: &Path, own: &Path) -> MountAt {
    fs::create_dir_all(disk).unwrap();
    if kind == "tmpfs" {
        return MountAt::tmpfs(disk, "size=64m");
    }
    let elsewhere = own.join("elsewhere");
    fs::create_dir_all(&elsewhere).unwrap();
    MountAt::bind(&elsewhere, disk)
}

fn same_bytes(a: &Path, b: &Path) {
    assert_eq!(digest_of(a), digest_of(b), "{}", b.display());
}

#[test]
#[ignore = "needs root"]
fn case_107_every_protocol_puts_files_on_a_mount_beneath_the_served_folder() {
    for kind in ["tmpfs", "bind"] {
        let (served, own) = (scratch(), scratch());
        let disk = served.path().join("a/disk");
        let _mount = mount(kind, &disk, own.path());
        let source = own.path().join("file");
        write_file(&source, 3 * MIB + 5, 1);
        let server = serve(served.path(), &[]);
        // UltraDP cannot confirm what it sent.
        for (protocol, compress, code) in [
            ("fastdp", "none", 0),
            ("fastdp", "targz", 0),
            ("fastdp", "zip", 0),
            ("fastdp1.1", "none", 0),
            ("fastdp1.0", "none", 0),
            ("ultradp", "none", 10),
            ("nextdp", "none", 0),
        ] {
            let name = format!("{protocol}-{compress}");
            // New folders on the mount belong to it as well.
            let target = server.target(format!("a/disk/new-{name}/{name}"));
            let mut command = args!["send", "--protocol", protocol, source, target];
            if compress != "none" {
                command.splice(1..1, args!["--compress", compress]);
            }
            client(command).expect(code);
            let arrived = disk.join(format!("new-{name}/{name}"));
            eventually("the file to get its name", || arrived.exists().then_some(()));
            same_bytes(&source, &arrived);
            eventually("the stage to go", || leftovers(served.path()).is_empty().then_some(()));
        }
    }
}

/// A tree across the root and three mounts, one of them within another and one of the root's own
/// device: new files, files that replace, files that get another name, links, empty files, in both
/// directions.
fn across(get: bool, existing: &str) {
    let (from, to, own) = (scratch(), scratch(), scratch());
    let tree = from.path().join("tree");
    for (at, folder) in ["", "disk", "disk/deeper", "bound", "bound/new/newer", "after"].iter().enumerate() {
        let folder = tree.join(folder);
        write_file(&folder.join("big"), 2 * MIB + 17, at as u64);
        write_file(&folder.join("small"), 300, at as u64);
        write_file(&folder.join("empty"), 0, at as u64);
        fs::create_dir_all(folder.join("nothing in it")).unwrap();
        symlink("small", folder.join("link")).unwrap();
        set_mtime(&folder, 1_000_000_000 + at as i64, 5);
    }
    let arrived = to.path().join("tree");
    fs::create_dir_all(arrived.join("disk")).unwrap();
    fs::create_dir_all(arrived.join("bound")).unwrap();
    let _disk = MountAt::tmpfs(&arrived.join("disk"), "size=32m");
    let _deeper = MountAt::tmpfs(&arrived.join("disk/deeper"), "size=32m");
    let _bound = mount("bind", &arrived.join("bound"), own.path());
    if existing != "error" {
        for folder in ["", "disk", "disk/deeper", "bound"] {
            fs::write(arrived.join(folder).join("big"), "in the way").unwrap();
            fs::write(arrived.join(folder).join("small"), "in the way").unwrap();
            symlink("elsewhere", arrived.join(folder).join("link")).unwrap();
        }
    }
    let server = if get { serve(from.path(), &[]) } else { serve(to.path(), &["--existing", existing]) };
    let command = || match get {
        true => args!["get", "--existing", existing, server.target("tree"), to.path()],
        false => args!["send", "--existing", existing, tree, server.target("")],
    };
    client(command()).expect(0);
    if existing == "rename" {
        for folder in ["", "disk", "disk/deeper", "bound"] {
            same_bytes(&tree.join(folder).join("big"), &arrived.join(folder).join("big (1)"));
            assert_eq!(fs::read_to_string(arrived.join(folder).join("big")).unwrap(), "in the way");
            assert_eq!(fs::read_link(arrived.join(folder).join("link (1)")).unwrap(), Path::new("small"));
        }
    } else {
        assert_same_tree(&tree, &arrived);
    }
    assert_eq!(leftovers(to.path()), NOTHING);
    assert_eq!(client(command()).expect(0).number("bytes_sent"), 0);
}

#[test]
#[ignore = "needs root"]
fn case_107_a_tree_goes_across_several_mounts() {
    for get in [false, true] {
        for existing in ["error", "overwrite", "rename"] {
            across(get, existing);
        }
    }
}

#[test]
#[ignore = "needs root"]
fn case_107_what_is_in_an_archive_goes_across_several_mounts() {
    for (get, compress) in [(false, "zip"), (false, "targz"), (true, "zip"), (true, "targz")] {
        let (from, to) = (scratch(), scratch());
        let tree = from.path().join("tree");
        small_tree(&tree, 3, 4, 1);
        write_file(&tree.join("folder-001/big"), 2 * MIB, 2);
        let disk = to.path().join("tree/folder-001");
        let _mount = MountAt::tmpfs(&disk, "size=32m");
        let server = serve(if get { from.path() } else { to.path() }, &[]);
        client(match get {
            true => args!["get", "--compress", compress, server.target("tree"), to.path()],
            false => args!["send", "--compress", compress, tree, server.target("")],
        })
        .expect(0);
        for file in ["folder-001/big", "folder-001/file-0003", "folder-002/file-0003"] {
            same_bytes(&tree.join(file), &to.path().join("tree").join(file));
        }
        assert_eq!(leftovers(to.path()), NOTHING);
    }
}

/// A killed transfer onto a mount goes on where it was, whichever end is killed.
#[test]
#[ignore = "needs root"]
fn case_107_a_killed_transfer_onto_a_mount_is_resumed() {
    for (get, kill_server) in [(false, true), (false, false), (true, false), (true, true)] {
        let (from, to, own) = (scratch(), scratch(), scratch());
        let tree = from.path().join("tree");
        write_file(&tree.join("disk/big"), 24 * MIB, 1);
        let arrived = to.path().join("tree");
        let _mount = mount("bind", &arrived.join("disk"), own.path());
        let mut server = serve(if get { from.path() } else { to.path() }, &[]);
        let command = |target: &dyn Fn(&str) -> std::ffi::OsString| match get {
            true => args!["get", "--retries", "0", target("tree"), to.path()],
            false => args!["send", "--retries", "0", tree, target("")],
        };
        let proxy = Proxy::to(server.port);
        proxy.hold_at(16 * MIB);
        let run = fastdrop(command(&|path| proxy.target(path))).json().start();
        proxy.wait_held();
        assert!(!leftovers(&arrived.join("disk")).is_empty(), "it is staged on the mount");
        if kill_server {
            server.restart_same_dir();
            proxy.cut_all();
            run.wait().expect(5);
        } else {
            run.kill9();
            proxy.cut_all();
            server.wait_idle();
        }
        let again = client(command(&|path| server.target(path))).expect(0);
        assert!(again.number("bytes_sent") < 20 * MIB, "{again}");
        assert_same_contents(&tree, &arrived);
        assert_eq!(leftovers(to.path()), NOTHING);
    }
}

/// Killed at any call that makes, names or removes something: no part of a stage is forgotten.
#[test]
#[ignore = "needs root and strace"]
fn case_107_killed_at_each_persisting_system_call_nothing_stays_on_a_mount() {
    let mut kills = 0;
    for calls in ["mkdirat", "unlinkat", "renameat2", "write", "fsync,fdatasync,syncfs"] {
        for when in 1..8 {
            let (from, to) = (scratch(), scratch());
            let tree = from.path().join("tree");
            write_file(&tree.join("disk/big"), 2 * MIB, 1);
            write_file(&tree.join("disk/new/small"), 3000, 2);
            write_file(&tree.join("here"), 3000, 3);
            let arrived = to.path().join("tree");
            let _mount = MountAt::tmpfs(&arrived.join("disk"), "size=32m");
            let (trace, inject) =
                (format!("trace={calls}"), format!("inject={calls}:signal=KILL:when={when}"));
            // Not with --seccomp-bpf: that does not deliver the signals.
            let strace = args!["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", trace, "-e", inject];
            let Some(mut server) = FASTDROP.try_serve_through(to.path(), &[], strace) else { continue };
            let first = client(args!["send", "--retries", "0", tree, server.target("")]);
            // Whether that call comes at all, and before or after the last word, is not for the
            // test to say: but what was said to be there is.
            if first.code() == 0 {
                assert_same_contents(&tree, &arrived);
            } else {
                first.expect(5);
                kills += 1;
            }
            server.kill9();
            let server = serve(to.path(), &[]);
            client(args!["send", tree, server.target("")]).expect(0);
            assert_same_contents(&tree, &arrived);
            // A folder without a journal at the root is taken for a transfer that begins, for a
            // minute.
            assert_eq!(leftovers(&arrived.join("disk")), NOTHING, "{calls} {when}");
        }
    }
    assert!(kills >= 8, "the server was killed {kills} times only: this tested little");
}

/// A transfer that nobody came back for expires on the mount, too.
#[test]
#[ignore = "needs root"]
fn case_107_what_was_abandoned_on_a_mount_expires() {
    let (served, own) = (scratch(), scratch());
    let disk = served.path().join("disk");
    let elsewhere = own.path().join("elsewhere");
    let away = mount("bind", &disk, own.path());
    let source = own.path().join("file");
    write_file(&source, 24 * MIB, 1);
    let mut server = serve(served.path(), &[]);
    let proxy = Proxy::to(server.port);
    proxy.hold_at(12 * MIB);
    let run = fastdrop(args!["send", "--retries", "0", source, proxy.target("disk/file")]).start();
    proxy.wait_held();
    server.kill9();
    drop(run);
    for path in leftovers(served.path()).iter().rev() {
        tool("touch", args!["-h", "-d", "10 days ago", path]);
    }
    // As long as the mount is away, what is on it cannot be removed, and is not forgotten either.
    drop(away);
    let mut server = serve(served.path(), &["--expire", "7d"]);
    server.assert_serves("a mount that is away");
    server.term();
    assert!(!leftovers(&elsewhere).is_empty());
    assert!(!leftovers(served.path()).is_empty(), "nobody knows any more what is on the mount");
    for path in leftovers(served.path()).iter().rev() {
        tool("touch", args!["-h", "-d", "10 days ago", path]);
    }
    let _mount = MountAt::bind(&elsewhere, &disk);
    let _server = serve(served.path(), &["--expire", "7d"]);
    eventually("the abandoned transfer to go", || leftovers(served.path()).is_empty().then_some(()));
    assert_eq!(leftovers(&elsewhere), NOTHING);
}

/// The stage is beside the target where the top of a mount is not writable; where nothing is, that
/// entry fails.
#[test]
#[ignore = "needs root"]
fn case_107_the_stage_is_beside_the_target_where_the_top_is_not_writable() {
    let (served, own) = (scratch(), scratch());
    for folder in [served.path(), own.path()] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let tree = own.path().join("tree");
    write_file(&tree.join("at home"), 3000, 1);
    write_file(&tree.join("disk/inbox/below/big"), 3 * MIB, 2);
    write_file(&tree.join("disk/inbox/small"), 3000, 3);
    write_file(&tree.join("locked/file"), 3000, 4);
    let arrived = served.path().join("tree");
    fs::create_dir_all(&arrived).unwrap();
    give_to_nobody(served.path());
    let _disk = MountAt::tmpfs(&arrived.join("disk"), "size=32m,mode=755");
    let _locked = MountAt::tmpfs(&arrived.join("locked"), "size=32m,mode=755");
    fs::create_dir(arrived.join("disk/inbox")).unwrap();
    give_to_nobody(&arrived.join("disk/inbox"));
    let server = serve_through(served.path(), &[], as_nobody());
    let out = client(args!["send", tree, server.target("")]).expect(3);
    // Its folder is another user's as well.
    assert!(out.to_string().contains("locked/file"), "{out}");
    for file in ["at home", "disk/inbox/below/big", "disk/inbox/small"] {
        assert_same_file(&tree.join(file), &arrived.join(file));
    }
    assert!(!arrived.join("locked/file").exists());
    assert_eq!(leftovers(served.path()), NOTHING);
    // By itself it is refused, before anything is sent.
    let out = client(args!["send", tree.join("locked/file"), server.target("tree/locked/")]).expect(9);
    assert!(out.to_string().contains("ermission denied"), "{out}");
    for protocol in ["nextdp", "fastdp1.1"] {
        let target = server.target(format!("tree/disk/inbox/{protocol}"));
        client(args!["send", "--protocol", protocol, tree.join("at home"), target]).expect(0);
        same_bytes(&tree.join("at home"), &arrived.join("disk/inbox").join(protocol));
    }
    assert_eq!(leftovers(served.path()), NOTHING);
}

/// A folder of this user's own is lent the permission for its time where nothing is writable.
#[test]
#[ignore = "needs root"]
fn case_107_a_mount_of_read_only_folders_of_ones_own_is_staged_in_one_of_them() {
    let (served, own) = (scratch(), scratch());
    for folder in [served.path(), own.path()] {
        set_mode(folder, 0o755);
    }
    let tree = own.path().join("tree");
    write_file(&tree.join("disk/ro/file"), 3 * MIB, 1);
    let disk = served.path().join("tree/disk");
    fs::create_dir_all(&disk).unwrap();
    give_to_nobody(served.path());
    let _disk = MountAt::tmpfs(&disk, "size=32m,mode=755");
    fs::create_dir(disk.join("ro")).unwrap();
    give_to_nobody(&disk.join("ro"));
    for locked in [0o555, 0o300] {
        set_mode(&disk.join("ro"), locked);
        let server = serve_through(served.path(), &["--existing", "overwrite"], as_nobody());
        let target = server.target("tree/disk/ro/");
        client(args!["send", "--existing", "overwrite", tree.join("disk/ro/file"), target]).expect(0);
        same_bytes(&tree.join("disk/ro/file"), &disk.join("ro/file"));
        assert_eq!(fs::metadata(disk.join("ro")).unwrap().mode() & 0o777, locked);
        assert_eq!(leftovers(served.path()), NOTHING);
        fs::remove_file(disk.join("ro/file")).unwrap();
    }
}

/// Something that is mounted on `.fastdrop` itself is no place for files that will live outside of
/// it.
#[test]
#[ignore = "needs root"]
fn case_107_a_mount_on_the_hidden_folder_is_a_refusal_in_words_or_no_obstacle() {
    let (served, own) = (scratch(), scratch());
    let _mount = MountAt::tmpfs(&served.path().join(".fastdrop"), "size=32m");
    let source = own.path().join("file");
    write_file(&source, 3 * MIB, 1);
    fs::create_dir(served.path().join("folder")).unwrap();
    let server = serve(served.path(), &[]);
    client(args!["send", source, server.target("folder/")]).expect(0);
    assert_same_file(&source, &served.path().join("folder/file"));
    let out = client(args!["send", source, server.target("")]).expect(9);
    assert!(out.to_string().contains("folder for unfinished files"), "{out}");
    assert!(!served.path().join("file").exists());
}

/// A mount that is read-only costs what would go there, in words.
#[test]
#[ignore = "needs root"]
fn case_107_a_read_only_mount_costs_only_what_would_go_there() {
    for get in [false, true] {
        let (from, to, own) = (scratch(), scratch(), scratch());
        let tree = from.path().join("tree");
        write_file(&tree.join("here"), 3000, 1);
        write_file(&tree.join("disk/there"), 3000, 2);
        let arrived = to.path().join("tree");
        let mount = mount("bind", &arrived.join("disk"), own.path());
        mount.remount("ro");
        let server = serve(if get { from.path() } else { to.path() }, &[]);
        let out = client(match get {
            true => args!["get", server.target("tree"), to.path()],
            false => args!["send", tree, server.target("")],
        });
        let out = out.expect(3);
        assert!(out.to_string().contains("ead-only file system"), "{out}");
        assert_same_file(&tree.join("here"), &arrived.join("here"));
        assert_eq!(leftovers(to.path()), NOTHING);
    }
}

/// Free space is that of the mount on which a file will live, neither less nor more.
#[test]
#[ignore = "needs root"]
fn case_107_free_space_is_asked_of_the_mount() {
    let (large, own) = (Mount::tmpfs("size=96m"), scratch());
    let small = MountAt::tmpfs(&large.path().join("small"), "size=4m");
    let source = own.path().join("file");
    write_file(&source, 8 * MIB, 1);
    let mut server = serve(large.path(), &[]);
    for protocol in ["fastdp", "fastdp1.1"] {
        let out = client(args!["send", "--protocol", protocol, source, server.target("small/file")]);
        let out = out.expect(8);
        assert!(out.to_string().contains("no space in small"), "{out}");
    }
    client(args!["send", source, server.target("file")]).expect(0);
    drop((server, small));

    let (tight, source) = (Mount::tmpfs("size=4m"), own.path().join("tree"));
    write_file(&source.join("disk/big"), 8 * MIB, 1);
    write_file(&source.join("little"), MIB, 1);
    let disk = tight.path().join("tree/disk");
    let _disk = MountAt::tmpfs(&disk, "size=96m");
    server = serve(tight.path(), &[]);
    client(args!["send", source, server.target("")]).expect(0);
    assert_same_contents(&source, &tight.path().join("tree"));
    for compress in ["zip", "targz"] {
        let target = server.target("tree/disk/");
        client(args!["send", "--existing", "error", "--compress", compress, source.join("disk"), target])
            .expect(0);
        same_bytes(&source.join("disk/big"), &disk.join("disk/big"));
        fs::remove_dir_all(disk.join("disk")).unwrap();
    }
}

/// A file on which another is mounted cannot be replaced: that is said, and what has come waits for
/// the next attempt.
#[test]
#[ignore = "needs root"]
fn case_107_a_file_on_which_something_is_mounted_is_not_lost() {
    for get in [false, true] {
        let (from, to, own) = (scratch(), scratch(), scratch());
        let (source, target) = (from.path().join("file"), to.path().join("file"));
        write_file(&source, 3 * MIB, 1);
        fs::write(&target, "beneath").unwrap();
        fs::write(own.path().join("over"), "over it").unwrap();
        let mount = MountAt::bind(&own.path().join("over"), &target);
        let server = serve(
            if get { from.path() } else { to.path() },
            if get { &[] } else { &["--existing", "overwrite"] },
        );
        let command = || match get {
            true => args!["get", "--existing", "overwrite", server.target("file"), to.path()],
            false => args!["send", "--existing", "overwrite", source, server.target("")],
        };
        let out = client(command()).expect(1);
        assert!(out.to_string().contains("something is mounted on it"), "{out}");
        assert_eq!(fs::read_to_string(&target).unwrap(), "over it");
        drop(mount);
        assert_eq!(client(command()).expect(0).number("bytes_sent"), 0);
        assert_same_file(&source, &target);
        assert_eq!(leftovers(to.path()), NOTHING);
    }
}

/// A mount that comes or goes while a transfer is under way is said; nothing that has come is sent
/// again.
#[test]
#[ignore = "needs root"]
fn case_107_a_mount_that_comes_or_goes_meanwhile_loses_nothing() {
    for get in [false, true] {
        for comes in [false, true] {
            let (from, to, own) = (scratch(), scratch(), scratch());
            let tree = from.path().join("tree");
            write_file(&tree.join("disk/big"), 12 * MIB, 1);
            write_file(&tree.join("disk/small"), 3000, 2);
            until_settled(&tree.join("disk/small"));
            let disk = to.path().join("tree/disk");
            fs::create_dir_all(&disk).unwrap();
            let elsewhere = own.path().join("elsewhere");
            fs::create_dir_all(&elsewhere).unwrap();
            let mut mount = (!comes).then(|| MountAt::bind(&elsewhere, &disk));
            let server = serve(if get { from.path() } else { to.path() }, &[]);
            let command = |target: &dyn Fn(&str) -> std::ffi::OsString| match get {
                true => args!["get", "--retries", "0", target("tree"), to.path()],
                false => args!["send", "--retries", "0", tree, target("")],
            };
            let proxy = Proxy::to(server.port);
            proxy.hold_at(8 * MIB);
            let run = fastdrop(command(&|path| proxy.target(path))).json().start();
            proxy.wait_held();
            mount = if comes {
                Some(MountAt::bind(&elsewhere, &disk))
            } else {
                drop(mount);
                None
            };
            proxy.resume();
            let out = run.wait().expect(9);
            assert!(out.to_string().contains("mounted or unmounted"), "{out}");
            if !comes {
                mount = Some(MountAt::bind(&elsewhere, &disk));
            }
            let again = client(command(&|path| server.target(path))).expect(0);
            assert_eq!(again.number("bytes_sent"), 0, "{again}");
            assert_same_contents(&tree, &to.path().join("tree"));
            assert_eq!(leftovers(to.path()), NOTHING);
            drop(mount);
            assert_eq!(leftovers(to.path()), NOTHING);
        }
    }
}

/// The stage on a mount is hidden as that at the root is, and nothing of it can be named.
#[test]
#[ignore = "needs root"]
fn case_107_a_stage_on_a_mount_is_hidden() {
    let (served, own) = (scratch(), scratch());
    let disk = served.path().join("disk");
    let _mount = mount("tmpfs", &disk, own.path());
    write_file(&disk.join("there"), 3000, 1);
    let source = own.path().join("file");
    write_file(&source, 24 * MIB, 1);
    let server = serve(served.path(), &[]);
    let proxy = Proxy::to(server.port);
    proxy.hold_at(12 * MIB);
    let run = fastdrop(args!["send", "--retries", "0", source, proxy.target("disk/file")]).start();
    proxy.wait_held();
    let hidden = leftovers(&disk);
    assert!(hidden.len() > 2, "{hidden:?}");
    assert_eq!(fs::metadata(&hidden[0]).unwrap().mode() & 0o777, 0o700);
    let got = own.path().join("got");
    client(args!["get", server.target("disk"), got]).expect(0);
    assert_eq!(names_in(&got), ["there"]);
    assert_eq!(leftovers(&got), NOTHING);
    let listed = client(args!["list", server.target("disk")]).expect(0);
    assert!(!listed.text().contains(".fastdrop"), "{listed}");
    for hidden in &hidden {
        let name = hidden.strip_prefix(served.path()).unwrap();
        client(args![
            "get",
            "--retries",
            "0",
            server.target(name.to_str().unwrap()),
            own.path().join("stolen")
        ])
        .expect(9);
        client(args![
            "send",
            "--retries",
            "0",
            source,
            server.target(name.join("planted").to_str().unwrap())
        ])
        .expect(9);
    }
    assert!(!own.path().join("stolen").exists());
    proxy.resume();
    drop(run);
}
