//! Processes that are killed or told to end.

use crate::support::*;
use crate::{Job, SIZE, Victim, Way};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn kill_sweep(way: Way, victim: Victim) {
    for at in [3_000, MIB, 7 * MIB + 1, 14 * MIB, 22 * MIB + 77_777, 30 * MIB, 38 * MIB + 5, 48 * MIB] {
        let mut job = Job::file(way, SIZE);
        let passed = job.interrupted(victim, at);
        job.assert_resumes(passed);
    }
}

/// Case 89: the sender, while sending.
#[test]
fn case_89_killed_client_resumes_sending() {
    kill_sweep(Way::Send, Victim::Client);
}

/// Case 89: the receiver, while sending.
#[test]
fn case_89_killed_server_resumes_receiving() {
    kill_sweep(Way::Send, Victim::Server);
}

/// Case 89: the receiver, while getting.
#[test]
fn case_89_killed_client_resumes_getting() {
    kill_sweep(Way::Get, Victim::Client);
}

/// Case 89: the sender, while getting.
#[test]
fn case_89_killed_server_resumes_serving() {
    kill_sweep(Way::Get, Victim::Server);
}

/// Case 89: a tree of big and small files; what is visible in between is whole.
#[test]
fn case_89_killed_in_a_tree_shows_whole_files_only() {
    for way in [Way::Send, Way::Get] {
        for victim in [Victim::Client, Victim::Server] {
            for at in [500_000, 12 * MIB, 24 * MIB + 100_000, 26 * MIB] {
                let mut job = Job::new(way, |path| {
                    write_file(&path.join("big"), 24 * MIB, 1);
                    small_tree(&path.join("small"), 4, 300, 2);
                    write_file(&path.join("z-last"), 3 * MIB, 3);
                });
                let passed = job.interrupted(victim, at);
                job.assert_resumes(passed);
            }
        }
    }
}

/// Case 89: killed three times in a row, on both sides, it still gets on.
#[test]
fn case_89_killed_again_and_again_still_ends() {
    for way in [Way::Send, Way::Get] {
        let mut job = Job::file(way, SIZE);
        // Each attempt is a proxy of its own, so these are bytes of that attempt.
        for victim in [Victim::Client, Victim::Server, Victim::Client] {
            job.interrupted(victim, 6 * MIB);
        }
        job.again();
        job.assert_arrived();
    }
}

/// Case 89: killed by SIGKILL at the very system calls that persist something.
#[test]
#[ignore = "needs strace"]
fn case_89_killed_at_each_persisting_system_call() {
    let groups = [
        "fsync,fdatasync,syncfs",
        "renameat2,renameat,rename,linkat",
        "unlinkat,mkdirat",
        "fallocate,ftruncate,fchmod,utimensat",
        "pwrite64,pwritev,pwritev2",
        "write",
    ];
    let mut kills = 0;
    for calls in groups {
        for when in [1, 2, 4] {
            let (from, to) = (scratch(), scratch());
            let tree = from.path().join("thing");
            write_file(&tree.join("big"), 3 * MIB, 1);
            small_tree(&tree.join("small"), 2, 5, 2);
            // A few writes belong to the start, which is not of interest.
            let when = if calls == "write" { when + 4 } else { when };
            let inject = format!("inject={calls}:signal=KILL:when={when}");
            let trace = format!("trace={calls}");
            // Not with --seccomp-bpf: that does not deliver the signals.
            let strace = args!["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", trace, "-e", inject];
            let Some(mut server) = FASTDROP.try_serve_through(to.path(), &[], strace) else { continue };
            let first = client(args!["send", "--retries", "0", tree, server.target("")]);
            if to.path().join("thing").exists() {
                assert_nothing_partial(&tree, &to.path().join("thing"));
            }
            // Whether that call comes at all, and before or after the last word, is not for the
            // test to say: but done means in place, whatever happens to the server next.
            if first.code() == 0 {
                assert_same_tree(&tree, &to.path().join("thing"));
            } else {
                first.expect(5);
                kills += 1;
            }
            server.kill9();
            let server = serve(to.path(), &[]);
            client(args!["send", tree, server.target("")]).expect(0);
            assert_same_tree(&tree, &to.path().join("thing"));
            assert_eq!(leftovers(to.path()), [] as [PathBuf; 0], "{calls} {when}");
        }
    }
    assert!(kills >= 4, "the server was killed {kills} times only: this tested little");
}

/// At no time is there anything but nothing or everything under the final name.
#[test]
fn the_final_name_appears_only_when_all_is_there() {
    for way in [Way::Send, Way::Get] {
        let job = Job::file(way, 24 * MIB);
        let proxy = Proxy::to(job.server.port);
        proxy.limit_rate(64 * MIB);
        let expected = fs::read(job.source()).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut looked = 0;
                while !stop.load(Ordering::Relaxed) {
                    looked += 1;
                    if let Ok(bytes) = fs::read(job.arrived()) {
                        assert!(bytes == expected, "a partial file of {} bytes was visible", bytes.len());
                        return looked;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                looked
            });
            job.command(&proxy, &["--streams", "2"]).run().expect(0);
            stop.store(true, Ordering::Relaxed);
            assert!(watcher.join().unwrap() > 10, "the watcher had no time to look");
        });
        job.assert_arrived();
    }
}

/// SIGTERM and SIGINT end the client with 143 and 130, soon, and the transfer goes on later.
#[test]
fn case_91_interrupted_client_says_so_and_resumes() {
    for way in [Way::Send, Way::Get] {
        for (signal, code) in [("TERM", 143), ("INT", 130)] {
            let job = Job::file(way, SIZE);
            let (proxy, run) = job.held(30 * MIB, &["--streams", "2"]);
            run.signal(signal);
            run.wait_within(Duration::from_secs(15)).expect(code);
            job.assert_nothing_partial();
            let passed = job.passed(&proxy);
            drop(proxy);
            job.server.wait_idle();
            job.assert_resumes(passed);
        }
    }
}

/// Case 91: SIGTERM ends the server within 15 seconds, although a client does nothing, and the
/// transfer goes on later.
#[test]
fn case_91_terminated_server_leaves_in_time_and_resumes() {
    for way in [Way::Send, Way::Get] {
        let mut job = Job::file(way, SIZE);
        let (proxy, run) = job.held(30 * MIB, &["--streams", "2", "--retries", "0"]);
        assert_eq!(job.server.term(), 143);
        proxy.resume();
        proxy.cut_all();
        run.wait().expect(5);
        job.assert_nothing_partial();
        let passed = job.passed(&proxy).min(30 * MIB);
        job.server.restart_same_dir();
        job.assert_resumes(passed);
    }
}

/// `--no-resume` begins anew.
#[test]
fn no_resume_sends_everything() {
    for way in [Way::Send, Way::Get] {
        let mut job = Job::file(way, SIZE);
        job.interrupted(Victim::Client, 40 * MIB);
        let out = job.command(&Proxy::to(job.server.port), &["--no-resume"]).run().expect(0);
        assert_eq!(out.number("bytes_sent"), job.total, "{out}");
        assert_same_tree(&job.source(), &job.arrived());
    }
}

/// A stream of unknown length that breaks off leaves no file.
#[test]
fn killed_standard_input_leaves_no_file() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    let proxy = Proxy::to(server.port);
    proxy.hold_at(10 * MIB);
    let run = fastdrop(args!["send", "-", proxy.target("piped")]).stdin(fill(20 * MIB, 1)).start();
    proxy.wait_held();
    run.kill9();
    proxy.cut_all();
    server.wait_idle();
    assert_eq!(names_in(served.path()), [] as [&str; 0]);
    server.assert_serves("a stream that broke off");
}
