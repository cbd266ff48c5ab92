//! Round trips, and files of every size.

use crate::support::*;
use crate::{SIZES, served_and_own};
use std::fs;
use std::path::PathBuf;

/// Asking for the protocol, offering, and sending: each waits once for the server.
#[test]
fn a_tiny_file_is_sent_over_one_connection_within_three_round_trips() {
    let (served, own) = served_and_own();
    let server = serve(served.path(), &[]);
    // What a side says without waiting may pass what the other says meanwhile, and then counts as
    // one more; never as one less.
    let trips = (0..8).map(|at| {
        let proxy = Proxy::to(server.port);
        let source = own.path().join(format!("tiny-{at}"));
        write_file(&source, 10, at);
        client(args!["send", source, proxy.target("")]).expect(0);
        assert_same_file(&source, &server.path(format!("tiny-{at}")));
        assert_eq!(proxy.connections(), 1);
        proxy.answers()
    });
    let fewest = trips.min().unwrap();
    assert!((1..=3).contains(&fewest), "{fewest} round trips");
}

/// Case 32: nothing, exact multiples of the chunk size, and one byte either side.
#[test]
fn case_32_every_size_is_sent_exactly() {
    let (served, own) = served_and_own();
    let server = serve(served.path(), &[]);
    for size in SIZES {
        let source = own.path().join(format!("size-{size}"));
        write_file(&source, size, size);
        set_mtime(&source, 1_111_111_111, 222_222_222);
        client(args!["send", source, server.target("")]).expect(0).expect_summary(&[
            ("files", 1),
            ("bytes", size),
            ("bytes_sent", size),
            ("files_skipped", 0),
            ("files_failed", 0),
        ]);
        assert_same_file(&source, &server.path(format!("size-{size}")));
    }
    assert_eq!(leftovers(served.path()), [] as [PathBuf; 0]);
}

/// Case 32, the other way.
#[test]
fn case_32_every_size_is_got_exactly() {
    let (served, own) = served_and_own();
    for size in SIZES {
        let path = served.path().join(format!("size-{size}"));
        write_file(&path, size, size);
        set_mtime(&path, 1_111_111_111, 222_222_222);
    }
    let server = serve(served.path(), &[]);
    for size in SIZES {
        let name = format!("size-{size}");
        client(args!["get", server.target(&name), own.path()]).expect(0).expect_summary(&[
            ("files", 1),
            ("bytes", size),
            ("bytes_sent", size),
            ("files_skipped", 0),
            ("files_failed", 0),
        ]);
        assert_same_file(&served.path().join(&name), &own.path().join(&name));
    }
    assert_eq!(leftovers(own.path()), [] as [PathBuf; 0]);
    assert_eq!(leftovers(served.path()), [] as [PathBuf; 0], "the sender leaves nothing behind");
}

/// Files of many sizes at once make packs and pieces in every neighbourhood.
#[test]
fn all_sizes_in_one_transfer() {
    let (served, own) = served_and_own();
    let tree = own.path().join("sizes");
    for size in SIZES {
        write_file(&tree.join(format!("{size}")), size, size);
    }
    for n in 0..40 {
        write_file(&tree.join(format!("half-{n}")), 100_000 + n, n);
    }
    let server = serve(served.path(), &[]);
    client(args!["send", "--streams", "3", tree, server.target("")]).expect(0);
    assert_same_tree(&tree, &server.path("sizes"));
    client(args!["get", "--streams", "3", server.target("sizes"), own.path().join("back")]).expect(0);
    assert_same_tree(&tree, &own.path().join("back"));
}

/// One transfer costs at most 64 MiB on either side, whatever the size; the program itself comes on
/// top.
#[test]
fn memory_does_not_grow_with_the_file() {
    fn peak_mib(pid: u32) -> u64 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
    }
    let (served, own) = served_and_own();
    let server = serve(served.path(), &[]);
    let source = own.path().join("big");
    write_file(&source, 256 * MIB, 1);

    let proxy = Proxy::to(server.port);
    proxy.hold_at(250 * MIB);
    let send = fastdrop(args!["send", "--streams", "4", source, proxy.target("")]).json().start();
    proxy.wait_held();
    let peaks = (peak_mib(server.pid()), peak_mib(send.pid()));
    proxy.resume();
    send.wait().expect(0);
    assert!(peaks.0 <= 84 && peaks.1 <= 84, "MiB of server and client while sending: {peaks:?}");

    let proxy = Proxy::to(server.port);
    proxy.hold_at(250 * MIB);
    let get =
        fastdrop(args!["get", "--streams", "4", proxy.target("big"), own.path().join("back")]).json().start();
    proxy.wait_held();
    let peaks = (peak_mib(server.pid()), peak_mib(get.pid()));
    proxy.resume();
    get.wait().expect(0);
    assert!(peaks.0 <= 84 && peaks.1 <= 84, "MiB of server and client while getting: {peaks:?}");
}
