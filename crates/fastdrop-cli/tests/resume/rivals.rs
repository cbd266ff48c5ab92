//! Sources that change, and clients that compete.

use crate::support::*;
use crate::{Job, SIZE, SLACK, Victim, Way};
use std::fs;

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
