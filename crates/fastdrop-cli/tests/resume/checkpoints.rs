//! Checkpoints, at which a connection is replaced.

use crate::support::*;
use crate::{Job, SIZE, Way};

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
