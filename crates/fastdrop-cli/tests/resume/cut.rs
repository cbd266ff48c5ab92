//! Connections that are cut, go dark or carry a flipped bit.

use crate::support::*;
use crate::{Job, SIZE, SLACK, Way};
use std::time::{Duration, Instant};

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
        // Which bit it is depends on the number of digits of a port and the like: the header, JSON,
        // a policy, the manifest or nothing that matters.
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
