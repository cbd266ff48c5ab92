//! The judge is shown lies, one of each kind, and has to find every one; and what is true, and has
//! to let it pass.

use super::cell::{Cell, Command, End, Event, Obstacle, Oddity, Trouble};
use super::support::{Kind, args};
use super::verdict::{Asked, Keeps, Observed, Tree, judge};
use super::walk::{Outcome, walk};
use std::path::PathBuf;

fn file(bytes: &[u8]) -> Kind {
    Kind::File(bytes.len() as u64, blake3::hash(bytes))
}

fn tree() -> Tree {
    Tree::from([
        (PathBuf::new(), (Kind::Folder, 0o755, 5, 6)),
        ("file".into(), (file(b"content"), 0o644, 1, 2)),
        ("empty".into(), (file(b""), 0o600, 3, 4)),
        ("link".into(), (Kind::Link("file".into()), 0, 0, 0)),
    ])
}

fn ended(code: i32, arrived: Tree) -> Observed {
    Observed { code: Some(code), arrived, ..Observed::default() }
}

/// Every way in which one entry can be another than was asked for.
fn damaged() -> Vec<(&'static str, Tree)> {
    let with = |change: &dyn Fn(&mut Tree)| {
        let mut tree = tree();
        change(&mut tree);
        tree
    };
    let entry = |path: &str, kind: Kind| {
        with(&|tree| {
            if let Some(entry) = tree.get_mut(&PathBuf::from(path)) {
                entry.0 = kind.clone();
            }
        })
    };
    vec![
        ("nothing", Tree::new()),
        ("no file", with(&|tree| drop(tree.remove(&PathBuf::from("file"))))),
        ("no empty file", with(&|tree| drop(tree.remove(&PathBuf::from("empty"))))),
        ("no link", with(&|tree| drop(tree.remove(&PathBuf::from("link"))))),
        ("no folder", with(&|tree| drop(tree.remove(&PathBuf::new())))),
        ("other content of the same size", entry("file", file(b"CONTENT"))),
        ("a shorter file", entry("file", file(b"conte"))),
        ("another link", entry("link", Kind::Link("other".into()))),
        ("a file for a link", entry("link", file(b"content"))),
        ("a folder for a file", entry("file", Kind::Folder)),
        ("a file for a folder", entry("", file(b""))),
    ]
}

#[test]
fn a_forged_exit_0_is_found_whatever_is_missing() {
    for keeps in [Keeps::Attributes, Keeps::Nothing] {
        let asked = Asked::Placed { source: vec![tree()], keeps };
        judge(&asked, "fastdp", &ended(0, tree())).unwrap();
        for (what, arrived) in damaged() {
            judge(&asked, "fastdp", &ended(0, arrived.clone())).expect_err(what);
            // Whoever admits a failure is believed.
            judge(&asked, "fastdp", &ended(3, arrived)).unwrap();
        }
        for (what, change) in
            [("mode", (0o600, 1, 2)), ("seconds", (0o644, 2, 2)), ("nanoseconds", (0o644, 1, 3))]
        {
            let mut arrived = tree();
            arrived.insert("file".into(), (file(b"content"), change.0, change.1, change.2));
            let verdict = judge(&asked, "fastdp", &ended(0, arrived));
            assert_eq!(verdict.is_err(), keeps == Keeps::Attributes, "{what}");
        }
    }
    let mut with_pipe = tree();
    with_pipe.insert("a-pipe".into(), (Kind::Other, 0o644, 0, 0));
    let asked = Asked::Placed { source: vec![with_pipe], keeps: Keeps::Attributes };
    judge(&asked, "fastdp", &ended(0, tree())).unwrap_err();
    let said = Observed { said: "warning: a-pipe: left out".into(), ..ended(0, tree()) };
    judge(&asked, "fastdp", &said).unwrap();
}

#[test]
fn a_file_that_changed_meanwhile_is_the_one_or_the_other_and_no_mixture() {
    let changed = |bytes: &[u8]| {
        let mut tree = tree();
        tree.insert("file".into(), (file(bytes), 0o644, 1, 2));
        tree
    };
    let asked = Asked::Placed { source: vec![tree(), changed(b"CONTENT")], keeps: Keeps::Attributes };
    judge(&asked, "fastdp", &ended(0, tree())).unwrap();
    judge(&asked, "fastdp", &ended(0, changed(b"CONTENT"))).unwrap();
    judge(&asked, "fastdp", &ended(0, changed(b"CONtent"))).unwrap_err();
}

#[test]
fn forged_output_messages_and_dry_runs_are_found() {
    let printed = |bytes: &[u8]| Observed { stdout: bytes.to_vec(), ..ended(0, Tree::new()) };
    let lost = |observed: Observed| Observed { stdout_lost: true, ..observed };
    let heard = |messages: &[&str]| {
        let heard = messages.iter().map(|message| (*message).to_owned()).collect();
        Observed { heard, ..ended(0, Tree::new()) }
    };
    let real = |code| Observed { real: code, ..ended(0, Tree::new()) };
    let bytes = Asked::Printed(vec![b"bytes".to_vec()]);
    let names = Asked::Named(vec!["one".into(), "two".into()]);
    let messages = Asked::Heard(vec!["first".into(), "second".into()]);
    let lies: [(&Asked, Observed); 12] = [
        (&bytes, printed(b"")),
        (&bytes, printed(b"byte")),
        (&bytes, printed(b"bytes and more")),
        (&bytes, lost(printed(b"bytes"))),
        (&names, printed(b"one\n")),
        (&names, lost(printed(b"one\ntwo\n"))),
        (&Asked::Said, printed(b"")),
        (&messages, heard(&["first"])),
        (&messages, heard(&["first", "secon"])),
        (&Asked::Foretold, real(Some(9))),
        (&Asked::Foretold, real(None)),
        (&Asked::Foretold, Observed { arrived: tree(), ..real(Some(0)) }),
    ];
    for (asked, observed) in lies {
        judge(asked, "fastdp", &observed).expect_err(&format!("{asked:?} {observed:?}"));
    }
    judge(&bytes, "fastdp", &printed(b"bytes")).unwrap();
    judge(&names, "fastdp", &printed(b"two\none\n")).unwrap();
    judge(&messages, "vstp", &heard(&["second", "first"])).unwrap();
    judge(&Asked::Foretold, "fastdp", &real(Some(0))).unwrap();
}

#[test]
fn hanging_panics_and_a_convenient_10_are_found() {
    let asked = Asked::Placed { source: vec![tree()], keeps: Keeps::Attributes };
    judge(&asked, "fastdp", &Observed { code: None, ..ended(1, tree()) }).unwrap_err();
    let panicked = || "thread 'main' panicked at src/main.rs:1".to_owned();
    judge(&asked, "fastdp", &Observed { said: panicked(), ..ended(101, tree()) }).unwrap_err();
    let woken = "thread 'main' panicked at driver.rs:279:27:\nfailed to wake I/O driver: Os { code: 5 }\n";
    judge(&asked, "fastdp", &Observed { peer_said: woken.into(), ..ended(5, tree()) }).unwrap();
    let both = [woken, &panicked()].concat();
    judge(&asked, "fastdp", &Observed { peer_said: both, ..ended(5, tree()) }).unwrap_err();
    judge(&asked, "fastdp", &Observed { peer_said: panicked(), ..ended(5, tree()) }).unwrap_err();
    judge(&asked, "fastdp", &ended(10, tree())).unwrap_err();
    judge(&asked, "ultradp", &ended(10, Tree::new())).unwrap();
}

/// The program itself, with every exit code turned into 0: the walk finds it in each kind of cell.
#[test]
fn a_planted_exit_0_anyway_is_found_in_every_kind_of_cell() {
    let planted = args!["sh", "-c", "\"$0\" \"$@\"; exit 0"];
    let cell = |command, protocol, trouble| Cell { command, protocol, trouble };
    let cells = [
        cell(Command::SendFile, "fastdp", Trouble::Serves(&["--read-only"])),
        cell(Command::SendTree, "fastdp", Trouble::Source(Oddity::UnreadableFile)),
        cell(Command::SendTree, "fastdp", Trouble::Obstacle(Obstacle::OtherFile)),
        cell(Command::SendStdin, "fastdp", Trouble::NobodyThere),
        cell(Command::SendDry, "fastdp", Trouble::NobodyThere),
        cell(Command::SendZip, "fastdp", Trouble::Serves(&["--max-size", "1K"])),
        cell(Command::GetFile, "fastdp", Trouble::Path("missing")),
        cell(Command::GetTree, "fastdp", Trouble::Meanwhile(2_000_000, Event::Killed(End::Server))),
        cell(Command::GetStdout, "fastdp", Trouble::Serves(&["--write-only"])),
        cell(Command::List, "fastdp", Trouble::Path("missing")),
        cell(Command::SendFile, "fastdp1.1", Trouble::Serves(&["--accept", "fastdp"])),
        cell(Command::SendFile, "nextdp", Trouble::Serves(&["--read-only"])),
        cell(Command::GetFile, "fastdownloader", Trouble::Path("missing")),
        cell(Command::MessageTcp, "vstp", Trouble::NobodyThere),
        cell(Command::MessageUdp, "cnp", Trouble::Serves(&["--max-message", "150"])),
        cell(Command::Prints("man"), "no protocol", Trouble::Output(End::Client, Some("/dev/full"))),
    ];
    for (cell, outcome) in walk(&cells, &planted) {
        let found = matches!(&outcome, Outcome::Untrue(why) if why.contains("exit code 0, and"));
        assert!(found, "{cell}: the planted exit code 0 is {outcome:?}");
    }
}
