//! The native protocol with ends of version 2.0, which have none of the capabilities that came
//! later: a peer in another language.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use support::*;

const TIME: (i64, u32) = (1_500_000_000, 123_456_789);

/// A server of version 2.0, and what it says.
struct OldServer {
    peer: Peer,
    port: u16,
}

impl OldServer {
    fn start(dir: &Path, flags: &[&str]) -> Self {
        let flags = flags.iter().map(std::ffi::OsString::from).collect::<Vec<_>>();
        let mut peer = Peer::start("fastdp2.py", [args!["serve", dir], flags].concat());
        let port = peer.port();
        Self { peer, port }
    }

    fn target(&self, path: &str) -> String {
        format!("127.0.0.1:{}/{path}", self.port)
    }

    /// The lines that it says, up to one that begins like this.
    fn until(&mut self, end: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let line = self.peer.line();
            assert!(!line.is_empty(), "the peer ended before it said {end:?}: {lines:?}");
            let is_last = line.starts_with(end);
            lines.push(line);
            if is_last {
                return lines;
            }
        }
    }
}

/// A client of version 2.0, and what it said.
fn old_client(words: Vec<std::ffi::OsString>) -> String {
    Peer::start("fastdp2.py", words).finish()
}

/// The things that are moved: one file of several chunks, or a folder of small ones, or both.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Thing {
    File,
    SmallFiles,
    Tree,
}

const THINGS: [Thing; 3] = [Thing::File, Thing::SmallFiles, Thing::Tree];

impl Thing {
    /// Makes it, of the same size and time whatever the seed.
    fn make(self, path: &Path, seed: u64) {
        let make = |path: &Path, size, seed| {
            write_file(path, size, seed);
            set_mtime(path, TIME.0, TIME.1);
        };
        match self {
            Thing::File => return make(path, 900_000, seed),
            Thing::SmallFiles => {}
            Thing::Tree => make(&path.join("a/file"), 900_000, seed),
        }
        for small in 0..7 {
            make(&path.join(format!("small-{small}")), 60_000, seed + small);
        }
    }

    fn assert_same(self, sent: &Path, arrived: &Path) {
        match self {
            Thing::File => assert_same_file(sent, arrived),
            Thing::SmallFiles | Thing::Tree => assert_same_contents(sent, arrived),
        }
    }
}

/// Case 103: whatever a server holds that knows no identities is compared, and what cannot be
/// compared is sent anew.
#[test]
fn case_103_what_a_2_0_server_holds_of_another_file_is_not_mixed() {
    for thing in THINGS {
        for checksum in ["xxh3", "none"] {
            for is_changed in [true, false] {
                let what = format!("{thing:?}, {checksum}, changed: {is_changed}");
                let (from, there) = (scratch(), scratch());
                let source = from.path().join("thing");
                thing.make(&source, 1);
                let mut server = OldServer::start(there.path(), &["--cut", "1"]);
                let send = |extra: &[&str]| {
                    let extra = extra.iter().map(std::ffi::OsString::from).collect::<Vec<_>>();
                    let words = args!["send", "--checksum", checksum, "--compress", "none", source];
                    client([words, args![server.target("")], extra].concat())
                };
                send(&["--retries", "0"]).expect(5);
                if is_changed {
                    thing.make(&source, 100);
                }
                let out = send(&[]).expect(0);
                thing.assert_same(&source, &there.path().join("thing"));
                server.until("cut");
                let mut offers = server.until("done");
                offers.retain(|line| !line.starts_with("refused"));
                // Only chunks of one file, with checksums, can be compared.
                let is_continued = !is_changed && checksum == "xxh3" && thing != Thing::SmallFiles;
                if is_continued {
                    assert_eq!(offers.len(), 2, "{what}: {offers:?}");
                    assert_eq!(out.number("bytes_resumed"), 262_144, "{what}: {out}");
                } else {
                    assert_eq!(offers.len(), 3, "{what}: {offers:?}");
                    assert_eq!(offers[1], "put resume false held 0 skipped 0", "{what}");
                }
                assert!(
                    offers[0].starts_with("put resume true held") && !offers[0].ends_with("held 0 skipped 0")
                );
            }
        }
    }
}

/// A server that continues although it is told not to gets nothing that it could mix.
#[test]
fn case_103_a_2_0_server_that_insists_on_what_it_holds_is_left() {
    for thing in [Thing::File, Thing::SmallFiles] {
        let (from, there) = (scratch(), scratch());
        let source = from.path().join("thing");
        thing.make(&source, 1);
        let server = OldServer::start(there.path(), &["--cut", "1", "--stubborn"]);
        client(args!["send", "--retries", "0", source, server.target("")]).expect(5);
        thing.make(&source, 100);
        let out = client(args!["send", source, server.target("")]).expect(1);
        assert!(out.stderr.contains("although"), "{out}");
        assert_eq!(names_in(there.path()), [""; 0], "{thing:?}");
    }
}

#[test]
fn case_103_nothing_is_continued_from_a_2_0_server() {
    for thing in THINGS {
        for is_changed in [true, false] {
            let (served, to) = (scratch(), scratch());
            let source = served.path().join("thing");
            thing.make(&source, 1);
            let mut server = OldServer::start(served.path(), &["--cut", "3"]);
            let get = |extra: &[&str]| {
                let extra = extra.iter().map(std::ffi::OsString::from).collect::<Vec<_>>();
                client([args!["get", "--unconfirmed-ok", server.target("thing"), to.path()], extra].concat())
            };
            get(&["--retries", "0"]).expect(5);
            if is_changed {
                thing.make(&source, 100);
            }
            get(&[]).expect(0);
            thing.assert_same(&source, &to.path().join("thing"));
            assert_eq!(leftovers(to.path()), [""; 0].map(Path::new));
            server.until("cut");
            let lines = server.until("done");
            assert!(lines[1].ends_with("held 0 skipped 0 of them held 0"), "{thing:?}: {lines:?}");
        }
    }
}

#[test]
fn case_103_a_2_0_client_that_comes_back_begins_anew() {
    for thing in THINGS {
        for checksum in ["xxh3", "none"] {
            for is_changed in [true, false] {
                let (from, served) = (scratch(), scratch());
                let source = from.path().join("thing");
                thing.make(&source, 1);
                let server = serve(served.path(), &[]);
                let put = |extra: &[&str]| {
                    let extra = extra.iter().map(std::ffi::OsString::from).collect::<Vec<_>>();
                    let words = args!["put", server.port.to_string(), source, "--checksum", checksum];
                    old_client([words, extra].concat())
                };
                let cut = put(&["--cut", "3"]);
                assert!(cut.ends_with("cut"), "{cut}");
                server.wait_idle();
                if is_changed {
                    thing.make(&source, 100);
                }
                let lines = put(&[]);
                assert!(lines.contains("held 0 skipped 0 of them held 0"), "{thing:?}: {lines}");
                assert!(lines.contains("\ndone"), "{thing:?}, {checksum}: {lines}");
                thing.assert_same(&source, &server.path("thing"));
                eventually("unfinished work to go", || (!server.path(".fastdrop").exists()).then_some(()));
            }
        }
    }
}

/// Case 103: of a client that knows no identities, only what was compared is believed to be held.
#[test]
fn case_103_what_a_2_0_client_holds_is_compared_or_refused() {
    for thing in [Thing::File, Thing::SmallFiles] {
        for checksum in ["xxh3", "none"] {
            for is_same in [true, false] {
                let (served, holds, to) = (scratch(), scratch(), scratch());
                thing.make(&served.path().join("thing"), 1);
                thing.make(&holds.path().join("thing"), if is_same { 1 } else { 100 });
                let server = serve(served.path(), &[]);
                let words = args!["get", server.port.to_string(), "thing", to.path(), "--checksum", checksum];
                let lines = old_client([words, args!["--holds", holds.path()]].concat());
                let what = format!("{thing:?}, {checksum}, the same: {is_same}: {lines}");
                if thing == Thing::File && checksum == "xxh3" && is_same {
                    assert!(lines.contains("\ndone 1"), "{what}");
                    assert_same_file(&server.path("thing"), &to.path().join("thing"));
                } else {
                    assert!(lines.contains("\nrefused 409") && lines.contains("too old"), "{what}");
                }
            }
        }
    }
}

/// Removed by a tool, since its paths are too long for the usual calls.
struct Deep(tempfile::TempDir);

impl Deep {
    /// A tree with one file whose path has about 4,200 bytes, links within and beyond the rule of
    /// version 2.0, and more.
    fn new() -> Self {
        let own = Self(scratch());
        let tree = own.0.path().join("tree");
        fs::create_dir_all(tree.join("x/y")).unwrap();
        write_file(&tree.join("file"), 300_000, 1);
        write_file(&tree.join("x/small"), 100, 2);
        symlink("file", tree.join("within")).unwrap();
        symlink("../missing", tree.join("x/dangling")).unwrap();
        own
    }

    fn add_links(&self) {
        let tree = self.0.path().join("tree");
        symlink("../beside", tree.join("beyond")).unwrap();
        symlink("y/../small", tree.join("x/around")).unwrap();
    }

    fn add_long_path(&self) {
        let script = "import os, sys\nos.chdir(sys.argv[1])\nfor _ in range(17):\n    os.mkdir('d' * 247)\n    os.chdir('d' * 247)\nopen('leaf', 'w').close()\n";
        tool("python3", args!["-c", script, self.0.path().join("tree")]);
    }
}

impl Drop for Deep {
    fn drop(&mut self) {
        tool("rm", args!["-rf", self.0.path().join("tree")]);
    }
}

#[test]
fn what_a_2_0_server_cannot_take_fails_by_name_and_the_rest_arrives() {
    for (links, long) in [(true, false), (false, true), (true, true)] {
        let (from, there) = (Deep::new(), Deep(scratch()));
        if links {
            from.add_links();
        }
        if long {
            from.add_long_path();
        }
        let mut server = OldServer::start(there.0.path(), &[]);
        let out = client(args!["send", from.0.path().join("tree"), server.target("")]).expect(3);
        // The folders above the leaf up to 4,096 bytes can be sent.
        assert_eq!(out.number("files_failed"), u64::from(links) * 2 + u64::from(long) * 2, "{out}");
        let lines = server.until("done");
        assert!(lines[0].starts_with("refuses 400"), "{lines:?}");
        let tree = there.0.path().join("tree");
        for name in ["file", "x/small"] {
            assert_same_file(&from.0.path().join("tree").join(name), &tree.join(name));
        }
        assert_eq!(fs::read_link(tree.join("within")).unwrap(), Path::new("file"));
        assert_eq!(fs::read_link(tree.join("x/dangling")).unwrap(), Path::new("../missing"));
        for name in ["beyond", "x/around"] {
            assert!(tree.join(name).symlink_metadata().is_err(), "{name}");
            assert_eq!(out.stderr.contains(name), links, "{out}");
        }
        assert_eq!(out.stderr.contains("4,096"), long, "{out}");
    }
}

#[test]
fn a_link_alone_that_a_2_0_server_cannot_take_is_no_success() {
    let (from, there) = (scratch(), scratch());
    symlink("elsewhere", from.path().join("link")).unwrap();
    let server = OldServer::start(there.path(), &[]);
    // What is in the folder: a link that is an argument itself is followed.
    let contents = from.path().join("");
    let out = client(args!["send", contents, server.target("")]).expect(9);
    assert!(out.stderr.contains("too old"), "{out}");
    assert_eq!(names_in(there.path()), [""; 0]);
}

#[test]
fn case_104_a_2_0_client_is_refused_where_it_would_get_less_than_there_is() {
    let served = Deep::new();
    let server = serve(served.0.path(), &[]);
    let run = |command: &str, path: &str, extra: &[&str]| {
        let to = scratch();
        let extra = extra.iter().map(std::ffi::OsString::from).collect::<Vec<_>>();
        let folder = if command == "get" { args![to.path()] } else { Vec::new() };
        old_client([args![command, server.port.to_string(), path], folder, extra].concat())
    };
    assert!(run("get", "tree", &[]).contains("\ndone"));
    let is_refused = |lines: String| {
        assert!(lines.starts_with("refused 409") && lines.contains("too old"), "{lines}");
    };
    served.add_links();
    is_refused(run("get", "tree", &[]));
    is_refused(run("get", "tree/", &[]));
    is_refused(run("get", "tree/x", &[]));
    // Left out by its own wish.
    assert!(run("get", "tree", &["--links", "skip"]).contains("\ndone"));
    assert!(run("get", "tree/x/small", &[]).contains("\ndone"));
    assert!(run("list", "tree", &[]).starts_with("listed beyond file within x"));
    tool("mkfifo", args![served.0.path().join("tree/x/y/pipe")]);
    is_refused(run("get", "tree", &["--links", "skip"]));
    is_refused(run("list", "tree/x/y", &[]));
    fs::remove_file(served.0.path().join("tree/x/y/pipe")).unwrap();
    served.add_long_path();
    is_refused(run("get", "tree", &["--links", "skip"]));
}

#[test]
fn cases_111_and_112_what_a_2_0_server_cannot_answer_is_refused_and_nothing_sent() {
    for (flag, code) in [("-n", 1), ("--check", 9)] {
        for thing in THINGS {
            for existing in ["error", "skip", "rename", "overwrite"] {
                let (from, there) = (scratch(), scratch());
                thing.make(&from.path().join("thing"), 1);
                let server = OldServer::start(there.path(), &[]);
                let words = args!["send", flag, "--existing", existing, from.path().join("thing")];
                let out = plain([words, args![server.target("")]].concat()).expect(code);
                assert!(out.stderr.contains("the server is too old to"), "{out}");
                assert_eq!(names_in(there.path()), [""; 0], "{flag} {existing}");
            }
        }
    }
    let (served, to) = (scratch(), scratch());
    Thing::File.make(&served.path().join("thing"), 1);
    let server = OldServer::start(served.path(), &[]);
    let out = plain(args!["get", "--check", server.target("thing"), to.path()]).expect(9);
    assert!(out.stderr.contains("the server is too old to"), "{out}");
    assert_eq!(names_in(to.path()), [""; 0]);
}

#[test]
fn case_108_a_2_0_server_is_sent_no_zip_archive_whose_times_it_would_not_read() {
    for thing in THINGS {
        let (from, there) = (scratch(), scratch());
        thing.make(&from.path().join("thing"), 1);
        let server = OldServer::start(there.path(), &[]);
        let words = args!["send", "--compress", "zip", from.path().join("thing"), server.target("")];
        let out = plain(words).expect(9);
        assert!(out.stderr.contains("exact times in ZIP archives"), "{out}");
        assert_eq!(names_in(there.path()), [""; 0]);
    }
}

#[test]
fn case_104_a_2_0_server_cannot_confirm_that_a_folder_is_whole() {
    let (served, to) = (scratch(), scratch());
    Thing::Tree.make(&served.path().join("tree"), 1);
    let server = OldServer::start(served.path(), &[]);
    let folder = to.path().join("here");
    for path in ["tree", "tree/", "tree/a", ""] {
        let get = |extra: &[&str]| {
            let extra = extra.iter().map(std::ffi::OsString::from).collect::<Vec<_>>();
            client([args!["get", server.target(path), folder], extra].concat())
        };
        fs::create_dir(&folder).unwrap();
        get(&[]).expect(10);
        get(&["--unconfirmed-ok"]).expect(0);
        get(&["-n"]).expect(10);
        client(args!["list", server.target(path)]).expect(10);
        client(args!["list", "--unconfirmed-ok", server.target(path)]).expect(0);
        fs::remove_dir_all(&folder).unwrap();
    }
    client(args!["get", server.target("tree/small-1"), to.path().join("one")]).expect(0);
    assert_same_file(&served.path().join("tree/small-1"), &to.path().join("one"));
}

/// Case 30: only a sender that proves what it has sent gets names before END.
#[test]
fn case_30_nothing_of_a_2_0_sender_is_named_before_its_end() {
    let source = scratch();
    let tree = source.path().join("tree");
    for small in 0..1500_u64 {
        write_file(&tree.join(format!("{small:04}")), small % 40 + 1, small);
    }
    for large in 0..6 {
        write_file(&tree.join(format!("large-{large}")), 70_000, large);
    }
    let served = scratch();
    let server = serve(served.path(), &[]);
    for extra in [&[][..], &["--checkpoint"]] {
        let extra = extra.iter().map(std::ffi::OsString::from).collect::<Vec<_>>();
        let words = args!["put", server.port.to_string(), tree, "--wrong-end"];
        let lines = old_client([words, extra.clone()].concat());
        assert!(lines.contains("\nrefused 422"), "{lines}");
        assert_eq!(lines.contains("checkpointed"), !extra.is_empty(), "{lines}");
        server.wait_idle();
        assert_no_file(served.path());
    }

    let to = scratch();
    let old = OldServer::start(source.path(), &["--wrong-end"]);
    client(args!["get", "--unconfirmed-ok", "--retries", "0", old.target("tree"), to.path()]).expect(7);
    assert_no_file(to.path());

    // With the right one, all of it arrives.
    let lines = old_client(args!["put", server.port.to_string(), tree]);
    assert!(lines.contains("\ndone 1506"), "{lines}");
    assert_same_contents(&tree, &served.path().join("tree"));
}

/// Fails if there is a file outside of the hidden folder.
#[track_caller]
fn assert_no_file(dir: &Path) {
    let files = snapshot(dir).into_iter().filter(|(_, (kind, ..))| matches!(kind, Kind::File(..)));
    let names: Vec<_> = files.map(|(path, _)| path).collect();
    assert!(names.is_empty(), "{} files have names, {:?} among them", names.len(), names.first());
}
