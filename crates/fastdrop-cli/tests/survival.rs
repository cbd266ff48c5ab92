//! Silence, pauses, full logs and the order of syncs: what a program must survive without anybody's
//! help.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
use support::wire::{self, Offer, Raw, control, header};
use support::*;

/// Case 13: the length of a header, or a part of OPEN, and then nothing more: a deadline ends it.
#[test]
fn case_13_announced_and_never_sent_is_ended_by_the_deadline() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    let offer = Offer::new().file("x", 4);
    let head = header(offer.header_json().to_string().as_bytes());
    let open = control(wire::OPEN, offer.open.to_string().as_bytes());
    let waits: Vec<(&str, Vec<u8>)> = vec![
        ("nothing at all", Vec::new()),
        ("only a length", 500_u32.to_be_bytes().to_vec()),
        ("half a header", [&500_u32.to_be_bytes()[..], b"{\"OneChunk\":"].concat()),
        ("a header and no OPEN", head.clone()),
        ("half of OPEN", [&head[..], &open[..open.len() / 2]].concat()),
    ];
    std::thread::scope(|scope| {
        for (what, bytes) in waits {
            let mut raw = Raw::connect(server.port);
            raw.send(bytes);
            scope.spawn(move || {
                let start = Instant::now();
                raw.expect_refusal(false, 408, what);
                let took = start.elapsed();
                // It was given some time, and not more than the deadline and the moment to say so.
                assert!(took > Duration::from_secs(5) && took < Duration::from_secs(15), "{what}: {took:?}");
            });
        }
    });
    server.assert_serves("clients that fell silent");
}

/// Case 41: those who were cut off in the same moment do not come back in the same moment. When
/// they do come depends on who is given the processor, so what counts is how long each has drawn to
/// wait.
#[test]
fn case_41_clients_do_not_return_all_at_once() {
    const CLIENTS: usize = 10;
    let (served, own) = (scratch(), scratch());
    let server = serve(served.path(), &[]);
    let source = own.path().join("file");
    write_file(&source, 4 * MIB, 1);
    let proxies: Vec<Proxy> = (0..CLIENTS).map(|_| Proxy::to(server.port)).collect();
    let runs: Vec<Running> = proxies
        .iter()
        .enumerate()
        .map(|(n, proxy)| {
            proxy.hold_at(MIB);
            let place = proxy.target(format!("copy-{n}"));
            fastdrop(args!["send", "-vv", source, place]).json().start()
        })
        .collect();
    proxies.iter().for_each(Proxy::wait_held);
    // So short a transfer has its control stream only: the next connection is a return.
    let before: Vec<usize> = proxies.iter().map(Proxy::connections).collect();
    assert_eq!(before, [1; CLIENTS]);
    for proxy in &proxies {
        proxy.cut_all();
        proxy.resume();
    }
    let mut delays = BTreeSet::new();
    for (n, run) in runs.into_iter().enumerate() {
        let out = run.wait().expect(0);
        let delay = out.stderr.split_once("waiting before the next attempt delay=");
        let delay = delay.and_then(|(_, rest)| rest.lines().next()?.strip_suffix("ms"));
        let delay = delay.unwrap_or_else(|| panic!("it did not wait: {out}"));
        // Half of a quarter of a second is waited for certain.
        assert!(delay.parse().is_ok_and(|delay| (125.0..=250.0).contains(&delay)), "{delay} ms");
        delays.insert(delay.to_owned());
        assert_same_file(&source, &server.path(format!("copy-{n}")));
    }
    // The other half is drawn by lot, in 256 steps: ten that come to fewer than five different ones
    // would be one in a billion.
    assert!(delays.len() >= 5, "all of them waited for one of {delays:?}");
}

// ---- the order of syncs

/// A system call that has ended, in order.
#[derive(Debug)]
struct Call {
    name: String,
    text: String,
}

/// The calls in a log of `strace -f -y`, each where it ended, but a name where it began to be given
/// and a frame where it began to be sent: both ends at their worst.
fn calls(log: &str) -> Vec<Call> {
    let mut open: Vec<(String, String)> = Vec::new();
    let mut found = Vec::new();
    for line in log.lines() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        let resumed = rest.strip_prefix("<... ").and_then(|rest| rest.split_once(" resumed>"));
        let (name, text, ended) = if let Some((name, tail)) = resumed {
            let at = open.iter().position(|(of, text)| of == pid && text.starts_with(name));
            let head = at.map(|at| open.swap_remove(at).1).unwrap_or_default();
            (name.to_owned(), format!("{head}{tail}"), true)
        } else {
            let Some((name, _)) = rest.split_once('(') else { continue };
            let ended = !rest.ends_with("<unfinished ...>");
            let text = rest.trim_end_matches("<unfinished ...>").to_owned();
            if !ended {
                open.push((pid.to_owned(), text.clone()));
            }
            (name.to_owned(), text, ended)
        };
        let sync = name.contains("sync");
        let begins = resumed.is_none();
        if if sync { ended } else { begins } {
            found.push(Call { name, text });
        }
    }
    found
}

/// What a call names in angle brackets: the paths of its descriptors.
fn paths(text: &str) -> Vec<&str> {
    let after = text.split('<').skip(1);
    after.filter_map(|part| part.split_once('>')).map(|(path, _)| path).collect()
}

/// The strings of a call.
fn strings(text: &str) -> Vec<&str> {
    text.split('"').skip(1).step_by(2).collect()
}

/// Case 90, as far as it can be seen from outside: before a file gets its name its bytes are
/// synced, and before DONE the folders of all new names are. What a disk makes of a loss of power
/// this does not show.
#[test]
#[ignore = "needs strace"]
fn case_90_syncs_come_before_names_and_names_before_done() {
    syncs_in_order(1, |thing| write_file(thing, 3 * MIB, 1));
}

/// Case 90 for trees: the folders made on the way have names, too. Few files are synced one by one,
/// many all at once.
#[test]
#[ignore = "needs strace"]
fn case_90_syncs_come_in_order_for_trees() {
    for (folders, files) in [(2, 3), (20, 20)] {
        syncs_in_order(folders * files + 1, |thing| {
            write_file(&thing.join("big"), 3 * MIB, 1);
            small_tree(&thing.join("small"), folders, files, 2);
        });
    }
}

/// Sends what `make` makes at a path, and looks at the order of the server's system calls.
#[track_caller]
fn syncs_in_order(files: u64, make: impl FnOnce(&Path)) {
    let (served, own) = (scratch(), scratch());
    let log = own.path().join("strace.log");
    let thing = own.path().join("thing");
    make(&thing);
    let trace = "trace=fsync,fdatasync,syncfs,renameat2,renameat,rename,linkat,mkdirat,writev,sendto,sendmsg";
    let strace =
        args!["strace", "-D", "-f", "--seccomp-bpf", "-qq", "-y", "-s", "64", "-o", log, "-e", trace];
    let mut server = serve_through(served.path(), &[], strace);
    client(args!["send", thing, server.target("")]).expect(0);
    server.term();
    let text = eventually("the log to be whole", || {
        let text = fs::read_to_string(&log).unwrap();
        text.contains("SIGTERM").then_some(text)
    });
    check_order(&text, served.path(), files);
}

/// What is not to be durable is not synced, and so the test above can tell the difference.
#[test]
#[ignore = "needs strace"]
fn durability_none_syncs_nothing() {
    let (served, own) = (scratch(), scratch());
    let log = own.path().join("strace.log");
    let source = own.path().join("file");
    write_file(&source, 3 * MIB, 1);
    let strace = args![
        "strace",
        "-D",
        "-f",
        "--seccomp-bpf",
        "-qq",
        "-y",
        "-o",
        log,
        "-e",
        "trace=fsync,fdatasync,syncfs,renameat2"
    ];
    let server = serve_through(served.path(), &[], strace);
    client(args!["send", "--durability", "none", source, server.target("")]).expect(0);
    let text = eventually("the name", || {
        let text = fs::read_to_string(&log).unwrap();
        text.contains("\"file\"").then_some(text)
    });
    assert!(!text.contains("sync"), "{text}");
}

#[track_caller]
fn check_order(log: &str, served: &Path, files_at_least: u64) {
    let served = served.to_str().unwrap();
    let hidden = format!("{served}/.fastdrop");
    let all = calls(log);
    let mut synced: Vec<&str> = Vec::new();
    // Folders with a name that is not durable yet.
    let mut dirty: Vec<(&str, &str)> = Vec::new();
    let (mut named, mut done) = (0, false);
    for call in &all {
        let paths = paths(&call.text);
        let strings = strings(&call.text);
        match call.name.as_str() {
            "fsync" | "fdatasync" => {
                assert!(call.text.trim_end().ends_with("= 0"), "{}", call.text);
                synced.push(paths[0]);
                dirty.retain(|(folder, _)| *folder != paths[0]);
            }
            "syncfs" => {
                synced.push("everything");
                dirty.clear();
            }
            "renameat2" | "renameat" | "rename" | "linkat" if !paths[1].starts_with(&hidden) => {
                assert!(!done, "a name after DONE: {}", call.text);
                let temp = format!("{}/{}", paths[0], strings[0]);
                assert!(
                    synced.iter().any(|path| *path == temp || *path == "everything"),
                    "named before it was synced: {}\n{log}",
                    call.text
                );
                named += 1;
                dirty.push((paths[1], strings[1]));
            }
            "mkdirat" if !paths[0].starts_with(&hidden) && strings[0] != ".fastdrop" => {
                dirty.push((paths[0], strings[0]));
            }
            // DONE's number, as strace writes it.
            "writev" | "sendto" | "sendmsg" if call.text.contains("\"\\200\\0\\0\\21") => {
                assert!(
                    dirty.is_empty(),
                    "DONE although these names (folder, name) were not synced: {dirty:?}\n{log}"
                );
                done = true;
            }
            _ => {}
        }
    }
    assert!(done, "DONE was not seen\n{log}");
    assert!(named >= files_at_least, "only {named} names were seen given\n{log}");
}

// ---- logs and pauses

/// Case 94: no room for the log, on either side: transfers go on.
#[test]
fn case_94_a_full_log_stops_nothing() {
    let to_full = || -> Vec<OsString> { args!["sh", "-c", "exec \"$@\" 2>/dev/full", "sh"] };
    let (served, own) = (scratch(), scratch());
    let source = own.path().join("file");
    write_file(&source, 2 * MIB, 1);
    let mut server = serve_through(served.path(), &["-vv"], to_full());
    for n in 0..3 {
        let target = server.target(format!("copy-{n}"));
        fastdrop(args!["send", "-vv", source, target]).wrapper(to_full()).run().expect(0);
        assert_same_file(&source, &server.path(format!("copy-{n}")));
    }
    // Refusals are logged, too.
    Raw::bare(server.port);
    assert_eq!(wire::http(server.port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap().0, 404);
    let mut raw = Raw::connect(server.port);
    raw.send(u32::MAX.to_be_bytes());
    raw.expect_refusal(false, 413, "a long header");
    fastdrop(args!["get", server.target("none"), own.path()]).wrapper(to_full()).run().expect(4);
    server.assert_serves("a log without room");
    server.term();
}

fn state_of(pid: u32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
}

/// Case 102: stopped in the middle of a transfer, for longer than a stream may stall, and
/// continued: it goes on.
#[test]
fn case_102_stopped_and_continued_goes_on() {
    const SIZE: u64 = 32 * MIB + 1234;
    std::thread::scope(|scope| {
        for get in [false, true] {
            for stop_server in [false, true] {
                scope.spawn(move || {
                    let (served, own) = (scratch(), scratch());
                    let (from, to) = if get { (&served, &own) } else { (&own, &served) };
                    write_file(&from.path().join("thing"), SIZE, 1);
                    let mut server = serve(served.path(), &[]);
                    let proxy = Proxy::to(server.port);
                    proxy.hold_at(12 * MIB);
                    let run = if get {
                        fastdrop(args!["get", "--streams", "2", proxy.target("thing"), own.path()])
                    } else {
                        fastdrop(args!["send", "--streams", "2", own.path().join("thing"), proxy.target("")])
                    };
                    let run = run.json().start();
                    proxy.wait_held();
                    let victim = if stop_server { server.pid() } else { run.pid() };
                    let signal = |name| if stop_server { server.signal(name) } else { run.signal(name) };
                    signal("STOP");
                    eventually("the process to stop", || (state_of(victim) == 'T').then_some(()));
                    proxy.resume();
                    // How long it lasts is what is tested: a stream stalls after 5 seconds.
                    std::thread::sleep(Duration::from_secs(7));
                    assert_eq!(state_of(victim), 'T');
                    assert!(!to.path().join("thing").exists(), "named while one end was stopped");
                    signal("CONT");
                    run.wait().expect(0);
                    assert_same_file(&from.path().join("thing"), &to.path().join("thing"));
                    assert!(leftovers(to.path()).is_empty(), "something unfinished stays behind");
                    server.assert_serves("a pause");
                });
            }
        }
    });
}
