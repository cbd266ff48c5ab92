//! Whatever interrupts a transfer, the same command goes on with it, and sends what is missing.
//!
//! Killing does not test fsync, since the page cache survives: these are tests of "killed", not of
//! "power lost".

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::*;

/// What may be under way and lost in an interruption: buffers of the sockets and unfinished chunks.
const SLACK: u64 = 16 * MIB;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Send,
    Get,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Victim {
    Client,
    Server,
}

/// A transfer of `thing` (a file or a tree) in either direction, between two folders.
struct Job {
    way: Way,
    from: tempfile::TempDir,
    to: tempfile::TempDir,
    server: Server,
    total: u64,
}

impl Job {
    /// `make` gets the path at which to make what is moved.
    fn new(way: Way, make: impl FnOnce(&Path)) -> Self {
        Self::with_server_args(way, &[], make)
    }

    fn with_server_args(way: Way, server_args: &[&str], make: impl FnOnce(&Path)) -> Self {
        let (from, to) = (scratch(), scratch());
        make(&from.path().join("thing"));
        let server = serve(if way == Way::Send { to.path() } else { from.path() }, server_args);
        let sizes = snapshot(from.path())
            .into_values()
            .map(|entry| if let Kind::File(size, _) = entry.0 { size } else { 0 });
        let total = sizes.sum();
        Self { way, from, to, server, total }
    }

    fn file(way: Way, size: u64) -> Self {
        Self::new(way, |path| {
            write_file(path, size, size);
            set_mtime(path, 1_234_567_890, 987_654_321);
        })
    }

    fn source(&self) -> PathBuf {
        self.from.path().join("thing")
    }

    fn arrived(&self) -> PathBuf {
        self.to.path().join("thing")
    }

    /// The command, with flags of the caller's, towards a proxy.
    fn command(&self, proxy: &Proxy, flags: &[&str]) -> Cmd {
        let flags: Vec<OsString> = flags.iter().map(OsString::from).collect();
        let (verb, rest) = match self.way {
            Way::Send => ("send", args![self.source(), proxy.target("")]),
            Way::Get => ("get", args![proxy.target("thing"), self.to.path()]),
        };
        fastdrop([args![verb], flags, rest].concat()).json()
    }

    /// Bytes that a proxy passed on in the direction of the transfer.
    fn passed(&self, proxy: &Proxy) -> u64 {
        if self.way == Way::Send { proxy.up() } else { proxy.down() }
    }

    /// Starts, and stops everything dead when the proxy has passed on so much.
    fn held(&self, at: u64, flags: &[&str]) -> (Proxy, Running) {
        let proxy = Proxy::to(self.server.port);
        proxy.hold_at(at);
        let run = self.command(&proxy, flags).start();
        proxy.wait_held();
        (proxy, run)
    }

    /// Interrupts with SIGKILL; gives the bytes that had passed.
    fn interrupted(&mut self, victim: Victim, at: u64) -> u64 {
        let (proxy, run) = self.held(at, &["--streams", "2", "--retries", "0"]);
        match victim {
            Victim::Client => {
                run.kill9();
                proxy.cut_all();
                self.server.wait_idle();
            }
            Victim::Server => {
                self.server.kill9();
                proxy.cut_all();
                run.wait().expect(5);
                self.server.restart_same_dir();
            }
        }
        self.assert_nothing_partial();
        self.passed(&proxy)
    }

    #[track_caller]
    fn assert_nothing_partial(&self) {
        if self.arrived().exists() {
            assert_nothing_partial(&self.source(), &self.arrived());
        }
    }

    /// The same command again, which must succeed.
    #[track_caller]
    fn again(&self) -> Output {
        self.command(&Proxy::to(self.server.port), &[]).run().expect(0)
    }

    /// The same command again: it must succeed and have had to send only what had not passed
    /// before.
    #[track_caller]
    fn assert_resumes(&self, passed: u64) {
        let out = self.again();
        let sent = out.number("bytes_sent");
        let bound = self.total - passed.saturating_sub(SLACK).min(self.total);
        assert!(
            sent <= bound,
            "{passed} of {} bytes had passed, and {sent} were sent again\n{out}",
            self.total
        );
        self.assert_arrived();
    }

    #[track_caller]
    fn assert_arrived(&self) {
        assert_same_tree(&self.source(), &self.arrived());
        assert_eq!(leftovers(self.to.path()), [] as [PathBuf; 0], "something unfinished stays behind");
        assert_eq!(leftovers(self.from.path()), [] as [PathBuf; 0], "the sender leaves something behind");
    }
}

// ---- killed

const SIZE: u64 = 48 * MIB + 12_345;

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
            // Whether that call comes at all, and before or after the last word, is not for the test
            // to say: but done means in place, whatever happens to the server next.
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

// ---- cut

/// Case 96: all connections cut at many bytes; the client goes on by itself.
#[test]
fn case_96_cut_connections_are_opened_again() {
    const SIZE: u64 = 24 * MIB;
    for way in [Way::Send, Way::Get] {
        for at in [100_000, MIB - 1, MIB, 4 * MIB + 1, 12 * MIB, 18 * MIB + 33, SIZE - 1, SIZE + 300] {
            let job = Job::file(way, SIZE);
            let proxy = Proxy::to(job.server.port);
            proxy.cut_at(&[at]);
            job.command(&proxy, &["--streams", "2"]).run().expect(0);
            assert_eq!(proxy.cuts(), 1, "the cut at {at} never happened");
            let passed = job.passed(&proxy);
            assert!(passed <= SIZE + SLACK, "{passed} bytes passed for {SIZE}, cut at {at}");
            job.assert_arrived();
        }
    }
}

/// Case 96: cut several times in one transfer.
#[test]
fn case_96_cut_again_and_again_still_ends() {
    for way in [Way::Send, Way::Get] {
        let job = Job::file(way, SIZE);
        let proxy = Proxy::to(job.server.port);
        proxy.cut_at(&[8 * MIB, 20 * MIB, 32 * MIB, 44 * MIB]);
        job.command(&proxy, &["--streams", "3", "--retries", "20"]).run().expect(0);
        assert_eq!(proxy.cuts(), 4);
        job.assert_arrived();
    }
}

/// One stream cut, not the one in control: the rest goes on.
#[test]
fn a_cut_stream_gives_its_work_to_the_others() {
    for way in [Way::Send, Way::Get] {
        let job = Job::file(way, SIZE);
        let proxy = Proxy::to(job.server.port);
        proxy.hold_at(10 * MIB);
        let run = job.command(&proxy, &["--streams", "3"]).start();
        proxy.wait_connections(3);
        proxy.wait_held();
        proxy.cut_one(1);
        proxy.resume();
        run.wait().expect(0);
        job.assert_arrived();
    }
}

/// The server is killed and started again meanwhile: the client goes on by itself.
#[test]
fn a_restarted_server_is_found_again() {
    for way in [Way::Send, Way::Get] {
        let mut job = Job::file(way, SIZE);
        let (proxy, run) = job.held(32 * MIB, &["--streams", "2"]);
        let before = job.passed(&proxy);
        job.server.restart_same_dir();
        proxy.retarget(job.server.port);
        proxy.cut_all();
        proxy.resume();
        run.wait().expect(0);
        let after = job.passed(&proxy) - before;
        assert!(
            after <= job.total - (before - SLACK) + MIB,
            "{before} bytes had passed, and {after} after the restart"
        );
        job.assert_arrived();
    }
}

/// The server stays away: the retries end, with exit code 5.
#[test]
fn retries_end() {
    let mut job = Job::file(Way::Send, SIZE);
    let (proxy, run) = job.held(10 * MIB, &["--retries", "2"]);
    job.server.kill9();
    proxy.cut_all();
    proxy.resume();
    run.wait_within(Duration::from_secs(20)).expect(5);
    job.assert_nothing_partial();
}

/// Case 98: one stream goes dark without closing: its work is taken over, and the transfer ends.
#[test]
fn case_98_a_dark_stream_is_taken_over_sending() {
    dark_stream(Way::Send);
}

/// Case 98, the other way.
#[test]
fn case_98_a_dark_stream_is_taken_over_getting() {
    dark_stream(Way::Get);
}

fn dark_stream(way: Way) {
    let job = Job::file(way, SIZE);
    let proxy = Proxy::to(job.server.port);
    // Slow enough that every stream has something to do.
    proxy.limit_rate(32 * MIB);
    proxy.dark_after(2, 2 * MIB);
    job.command(&proxy, &["--streams", "3"]).start().wait_within(Duration::from_secs(40)).expect(0);
    assert_eq!(proxy.dark(), 1, "no stream went dark");
    job.assert_arrived();
}

/// Cases 42 and 99: the last word is lost; the client asks again, nothing is missing, nothing is
/// sent twice.
#[test]
fn case_42_a_lost_last_word_is_asked_for_again() {
    for size in [0, 1000, 24 * MIB] {
        let job = Job::file(Way::Send, size);
        let proxy = Proxy::to(job.server.port);
        proxy.swallow_done();
        job.command(&proxy, &["--streams", "2"]).run().expect(0);
        assert!(proxy.swallowed(), "DONE never came by");
        assert!(proxy.up() < size + MIB, "{} bytes went up for {size}", proxy.up());
        job.assert_arrived();
    }
}

/// Case 42: the client died of the lost word; the same command says that all is there.
#[test]
fn case_42_a_client_that_never_heard_the_last_word_finds_nothing_missing() {
    let job = Job::file(Way::Send, 4 * MIB);
    let proxy = Proxy::to(job.server.port);
    proxy.swallow_done();
    // Nobody said done, so success is not known.
    job.command(&proxy, &["--retries", "0"]).run().expect(5);
    assert!(proxy.swallowed());
    let out = job.again();
    out.expect_summary(&[("bytes_sent", 0), ("files_skipped", 1), ("files_failed", 0)]);
    job.assert_arrived();
}

/// Case 25: a flipped bit is found and the chunk sent again.
#[test]
fn case_25_a_flipped_bit_is_found() {
    for checksum in ["xxh3", "blake3"] {
        let job = Job::file(Way::Send, 24 * MIB);
        let proxy = Proxy::to(job.server.port);
        proxy.flip_at(&[5 * MIB + 777_777, 9 * MIB + 300_001, 20 * MIB + 12]);
        job.command(&proxy, &["--streams", "2", "--checksum", checksum]).run().expect(0);
        assert_eq!(proxy.flipped(), 3);
        assert!(proxy.up() > 24 * MIB + 200_000, "nothing was sent again");
        job.assert_arrived();
    }
}

/// Case 11: a bit of what is negotiated, altered on the way, does not go unnoticed: wrong success
/// is the only wrong answer.
#[test]
fn case_11_a_flipped_bit_in_the_negotiation_is_found() {
    let job = Job::file(Way::Send, 3 * MIB);
    // Across the request, the header, OPEN and the manifest; all at once, since an altered length
    // makes both ends wait.
    let runs = (20..900).step_by(47).map(|at| {
        let proxy = Proxy::to(job.server.port);
        proxy.flip_at(&[at]);
        let place = format!("folder-{at}/thing");
        let run =
            fastdrop(args!["send", "--streams", "1", "--retries", "1", job.source(), proxy.target(&place)])
                .start();
        (proxy, place, run)
    });
    let runs: Vec<_> = runs.collect();
    let end = Instant::now() + Duration::from_secs(15);
    for (proxy, place, mut run) in runs {
        while run.is_running() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        let waits = run.is_running();
        let out = if waits { run.kill9() } else { run.wait() };
        assert_eq!(proxy.flipped(), 1);
        // Which bit it is depends on the number of digits of a port and the like: the header, JSON, a
        // policy, the manifest or nothing that matters.
        assert!(waits || [0, 1, 5, 7, 9].contains(&out.code()), "{out}");
        assert!(!out.stderr.contains("panicked"), "{out}");
        if out.code() == 0 {
            assert_same_file(&job.source(), &job.server.path(place));
        }
    }
    assert!(
        names_in(job.to.path()).iter().all(|name| name.starts_with("folder-")),
        "a folder of an altered name"
    );
}

// ---- checkpoints

/// Case 40: sizes one byte before, at and after a mark; the connections are replaced and the bytes
/// are right.
#[test]
fn case_40_checkpoints_replace_the_connection() {
    for way in [Way::Send, Way::Get] {
        // Until the data stream has joined, the control stream carries some of it.
        for (mark, least) in [(16 * MIB, 0), (64 * MIB, 2)] {
            for size in [mark - 1, mark, mark + 1] {
                let mut connections = [0, 0];
                for (count, checkpoint) in connections.iter_mut().zip(["off", "16M"]) {
                    let job = Job::file(way, size);
                    let proxy = Proxy::to(job.server.port);
                    job.command(&proxy, &["--streams", "1", "--checkpoint", checkpoint]).run().expect(0);
                    job.assert_arrived();
                    *count = proxy.connections();
                }
                let [without, with] = connections;
                assert!(
                    with >= without + least,
                    "{way:?}, {size} bytes: {without} connections without, {with} with"
                );
            }
        }
    }
}

/// Case 40: cut at the moment of the reconnection, and around the mark: no gap, nothing twice.
#[test]
fn case_40_cut_while_reconnecting() {
    for way in [Way::Send, Way::Get] {
        let flags = ["--streams", "1", "--checkpoint", "16M"];
        for connection in [2, 3] {
            let job = Job::file(way, SIZE);
            let proxy = Proxy::to(job.server.port);
            proxy.cut_at_connection(connection);
            job.command(&proxy, &flags).run().expect(0);
            assert_eq!(proxy.cuts(), 1, "connection {connection} was never opened");
            job.assert_arrived();
        }
        for at in [16 * MIB - 1, 16 * MIB, 16 * MIB + 1, 17 * MIB, 32 * MIB + 2000] {
            let job = Job::file(way, SIZE);
            let proxy = Proxy::to(job.server.port);
            proxy.cut_at(&[at]);
            job.command(&proxy, &flags).run().expect(0);
            assert_eq!(proxy.cuts(), 1);
            job.assert_arrived();
        }
    }
}

/// Checkpoints of several streams at once, and a kill after some of them.
#[test]
fn checkpoints_of_several_streams_and_a_kill() {
    for way in [Way::Send, Way::Get] {
        let job = Job::file(way, SIZE);
        let (proxy, run) = job.held(40 * MIB, &["--streams", "3", "--checkpoint", "4M"]);
        run.kill9();
        proxy.cut_all();
        job.server.wait_idle();
        job.assert_nothing_partial();
        job.assert_resumes(job.passed(&proxy));
    }
}

// ---- journals that lie

/// An interrupted transfer whose state can be copied, damaged and resumed many times.
struct Wreck {
    way: Way,
    job: Job,
    passed: u64,
}

impl Wreck {
    fn new(way: Way) -> Self {
        let mut job = Job::file(way, 32 * MIB + 99);
        let passed = job.interrupted(Victim::Client, 28 * MIB);
        job.interrupted_state_exists();
        Self { way, job, passed }
    }

    /// Copies the state, lets `damage` at its journal and its data, and resumes. Gives what had to
    /// be sent.
    #[track_caller]
    fn resumed_after(&self, what: &str, damage: impl FnOnce(&Path, &[PathBuf])) -> u64 {
        let to = scratch();
        tool("cp", args!["-a", "--sparse=always", self.job.to.path().join(".fastdrop"), to.path()]);
        let all: Vec<PathBuf> = leftovers(to.path()).into_iter().filter(|path| path.is_file()).collect();
        let (journals, data): (Vec<_>, Vec<_>) = all.into_iter().partition(|path| path.ends_with("journal"));
        assert_eq!(journals.len(), 1, "one transfer, one journal");
        damage(&journals[0], &data);
        let out = match self.way {
            Way::Send => {
                let server = serve(to.path(), &[]);
                client(args!["send", self.job.source(), server.target("")])
            }
            Way::Get => client(args!["get", self.job.server.target("thing"), to.path()]),
        };
        assert_eq!(out.code(), 0, "{what}\n{out}");
        let whole = digest_of(&self.job.source()) == digest_of(&to.path().join("thing"));
        assert!(whole, "{what}: the bytes are wrong\n{out}");
        out.number("bytes_sent")
    }
}

impl Job {
    fn interrupted_state_exists(&self) {
        assert!(
            !leftovers(self.to.path()).is_empty(),
            "an interrupted transfer leaves its state in .fastdrop"
        );
    }
}

fn resized(path: &Path, len: u64) {
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
}

fn flipped(path: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

/// Case 34: a journal cut anywhere counts as far as it is valid.
#[test]
fn case_34_a_cut_journal_counts_up_to_the_cut() {
    let wreck = Wreck::new(Way::Send);
    let total = wreck.job.total;
    let untouched = wreck.resumed_after("nothing", |_, _| ());
    assert!(
        untouched <= total - (wreck.passed - SLACK),
        "the copy of the state is no good: {untouched} bytes sent"
    );
    for part in [0, 5, 100, 300, 500, 700, 900, 990] {
        wreck.resumed_after(&format!("journal cut at {part} per mille"), |journal, _| {
            resized(journal, fs::metadata(journal).unwrap().len() * part / 1000);
        });
    }
    for bytes in [1, 3, 4, 8, 17, 64] {
        wreck.resumed_after(&format!("journal cut to {bytes} bytes"), |journal, _| resized(journal, bytes));
    }
    for bytes in [1, 2, 9, 30] {
        let sent = wreck.resumed_after(&format!("journal cut by {bytes} bytes"), |journal, _| {
            resized(journal, fs::metadata(journal).unwrap().len() - bytes);
        });
        assert!(sent < total, "{bytes} bytes less of the journal, and nothing of it counts");
    }
    wreck.resumed_after("no journal", |journal, _| fs::remove_file(journal).unwrap());
}

/// Case 35: a flipped bit, rubbish or zeros in the journal are found.
#[test]
fn case_35_a_damaged_journal_is_found() {
    let wreck = Wreck::new(Way::Send);
    for part in [0, 1, 20, 100, 333, 500, 750, 950, 999] {
        wreck.resumed_after(&format!("a flipped bit at {part} per mille"), |journal, _| {
            flipped(journal, fs::metadata(journal).unwrap().len() * part / 1000);
        });
    }
    for at in 0..24 {
        wreck.resumed_after(&format!("a flipped bit at {at}"), |journal, _| flipped(journal, at));
    }
    wreck.resumed_after("rubbish", |journal, _| fs::write(journal, fill(5000, 1)).unwrap());
    wreck.resumed_after("zeros", |journal, _| {
        let len = fs::metadata(journal).unwrap().len();
        fs::write(journal, vec![0; len as usize]).unwrap();
    });
    wreck.resumed_after("rubbish at the end", |journal, _| {
        fs::write(journal, [fs::read(journal).unwrap(), fill(333, 1)].concat()).unwrap();
    });
    wreck.resumed_after("twice", |journal, _| {
        fs::write(journal, fs::read(journal).unwrap().repeat(2)).unwrap()
    });
}

/// Case 36: the journal says yes, but the data is gone or not what it says.
#[test]
fn case_36_missing_or_wrong_data_is_found() {
    let wreck = Wreck::new(Way::Send);
    let each = |what: &str, damage: &dyn Fn(&Path)| {
        wreck.resumed_after(what, |_, data| {
            assert!(!data.is_empty(), "there is data beside the journal");
            data.iter().for_each(|path| damage(path));
        })
    };
    each("data deleted", &|path| fs::remove_file(path).unwrap());
    each("data empty", &|path| resized(path, 0));
    each("data cut in half", &|path| resized(path, fs::metadata(path).unwrap().len() / 2));
    each("data longer", &|path| resized(path, fs::metadata(path).unwrap().len() + 7));
    each("data zero", &|path| {
        let len = fs::metadata(path).unwrap().len();
        resized(path, 0);
        resized(path, len);
    });
    for at in [0, 1_000_000, 5 * MIB, 11 * MIB + 3] {
        each(&format!("a bit flipped at {at}"), &|path| {
            if fs::metadata(path).unwrap().len() > at {
                flipped(path, at);
            }
        });
    }
    each("data replaced by a link", &|path| {
        fs::remove_file(path).unwrap();
        std::os::unix::fs::symlink(wreck.job.source(), path).unwrap();
    });
    assert_eq!(
        fs::metadata(wreck.job.source()).unwrap().len(),
        wreck.job.total,
        "nothing was written through the link"
    );
}

/// Cases 34, 35 and 36 where the client is the receiver.
#[test]
fn case_36_a_client_distrusts_its_own_state_too() {
    let wreck = Wreck::new(Way::Get);
    let untouched = wreck.resumed_after("nothing", |_, _| ());
    assert!(untouched <= wreck.job.total - (wreck.passed - SLACK), "{untouched} bytes sent");
    wreck.resumed_after("journal cut", |journal, _| {
        resized(journal, fs::metadata(journal).unwrap().len() / 2)
    });
    wreck.resumed_after("journal flipped", |journal, _| {
        flipped(journal, fs::metadata(journal).unwrap().len() / 2)
    });
    wreck
        .resumed_after("data deleted", |_, data| data.iter().for_each(|path| fs::remove_file(path).unwrap()));
    wreck.resumed_after("data flipped", |_, data| data.iter().for_each(|path| flipped(path, 3 * MIB)));
}

/// What was abandoned long ago goes away.
#[test]
fn what_was_abandoned_expires() {
    let wreck = Wreck::new(Way::Send);
    let to = wreck.job.to.path();
    for path in leftovers(to).iter().rev() {
        tool("touch", args!["-h", "-d", "10 days ago", path]);
    }
    let mut server = serve(to, &["--expire", "7d"]);
    server.assert_serves("something abandoned");
    eventually("the abandoned transfer to be cleared away", || leftovers(to).is_empty().then_some(()));
}

/// What is not old does not.
#[test]
fn what_is_unfinished_survives_other_transfers_and_restarts() {
    let mut wreck = Wreck::new(Way::Send);
    wreck.job.server.assert_serves("an interruption");
    assert!(wreck.job.server.term() != 1);
    wreck.job.server.restart_same_dir();
    wreck.job.server.assert_serves("a restart");
    wreck.job.assert_resumes(wreck.passed);
}

// ---- sources that change, clients that compete

/// Case 37: the source has changed since: what arrives is the new one, all of it.
#[test]
fn case_37_a_source_that_changed_between_attempts_is_not_mixed() {
    for way in [Way::Send, Way::Get] {
        for size in [SIZE, SIZE + 1, SIZE - 5 * MIB] {
            let mut job = Job::file(way, SIZE);
            job.interrupted(Victim::Client, 30 * MIB);
            write_file(&job.source(), size, 4711);
            set_mtime(&job.source(), 1_600_000_000, 1);
            job.again();
            assert_same_tree(&job.source(), &job.arrived());
        }
    }
}

/// Case 37: not resumed into something of another name.
#[test]
fn case_37_another_name_is_another_transfer() {
    let mut job = Job::file(Way::Send, SIZE);
    let passed = job.interrupted(Victim::Client, 30 * MIB);
    client(args!["send", job.source(), job.server.target("other")]).expect(0);
    assert_same_file(&job.source(), &job.server.path("other"));
    job.assert_resumes(passed);
}

/// Case 39: two clients at the same transfer: the newer takes it over, and the result is exact.
#[test]
fn case_39_the_newer_client_takes_over() {
    let job = Job::file(Way::Send, SIZE);
    let (proxy, old) = job.held(24 * MIB, &["--streams", "2", "--retries", "0"]);
    let new = job.command(&Proxy::to(job.server.port), &["--streams", "2"]).run().expect(0);
    assert!(new.number("bytes_sent") <= job.total - (24 * MIB - SLACK), "{new}");
    job.assert_arrived();
    // The older wakes, and its late chunks change nothing.
    proxy.resume();
    old.wait().expect(9);
    job.assert_arrived();
}

/// Case 39: both at full speed, many times: the result is exact, and at least one says so.
#[test]
fn case_39_two_clients_at_once_end_exact() {
    for round in 0..4 {
        let job = Job::file(Way::Send, 16 * MIB + round);
        let proxy = Proxy::to(job.server.port);
        let runs = [(); 2].map(|()| job.command(&proxy, &["--streams", "2"]).start());
        let outs = runs.map(Running::wait);
        assert!(outs.iter().any(|out| out.code() == 0), "{outs:?}");
        // One that comes in when the other is done finds all of it there.
        for out in outs.into_iter().filter(|out| out.code() != 0) {
            assert!(out.expect(9).stderr.contains("has taken this transfer over"));
        }
        assert_same_tree(&job.source(), &job.arrived());
    }
}

/// Getting to standard output over a cut: all of it, once.
#[test]
fn standard_output_over_a_cut_is_exact() {
    let job = Job::file(Way::Get, 24 * MIB);
    let proxy = Proxy::to(job.server.port);
    proxy.cut_at(&[10 * MIB]);
    let out = plain(args!["get", proxy.target("thing"), "-"]);
    let expected = fs::read(job.source()).unwrap();
    assert_eq!(proxy.cuts(), 1);
    assert!(out.expect(0).stdout == expected, "what came is not the file");
}
