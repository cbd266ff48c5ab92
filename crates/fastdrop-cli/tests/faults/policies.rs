//! Refusals by what a server was told to take and to give.

use crate::source_file;
use crate::support::*;
use std::path::PathBuf;

/// `--write-only` takes and does not show.
#[test]
fn write_only_refuses_get_and_list() {
    let (served, own) = (scratch(), scratch());
    write_file(&served.path().join("there"), 100, 1);
    let source = source_file(own.path(), 1000);
    let server = serve(served.path(), &["--write-only"]);
    client(args!["send", source, server.target("")]).expect(0);
    client(args!["get", server.target("there"), own.path()]).expect(9);
    client(args!["list", server.target("")]).expect(9);
    assert_eq!(names_in(own.path()), ["file"]);
    // Nor does it tell what is there.
    client(args!["get", server.target("not-there"), own.path()]).expect(9);
}

/// `--read-only` shows and does not take.
#[test]
fn read_only_refuses_send() {
    let (served, own) = (scratch(), scratch());
    write_file(&served.path().join("there"), 100, 1);
    let source = source_file(own.path(), 4 * MIB);
    let server = serve(served.path(), &["--read-only"]);
    let proxy = Proxy::to(server.port);
    client(args!["send", source, proxy.target("")]).expect(9);
    assert!(proxy.up() < 100_000, "refused before anything is sent");
    fastdrop(args!["send", "-", server.target("piped")]).stdin("text").run().expect(9);
    client(args!["get", server.target("there"), own.path()]).expect(0);
    client(args!["list", server.target("")]).expect(0);
    assert_eq!(names_in(served.path()), ["there"]);
    assert_eq!(leftovers(served.path()), [] as [PathBuf; 0]);
}

/// `--max-size` holds, also for what does not say its size.
#[test]
fn max_size_is_refused_before_anything_is_sent() {
    let (served, own) = (scratch(), scratch());
    let source = source_file(own.path(), 4 * MIB);
    let mut server = serve(served.path(), &["--max-size", "1M"]);
    let proxy = Proxy::to(server.port);
    client(args!["send", source, proxy.target("")]).expect(9);
    assert!(proxy.up() < 100_000, "refused before anything is sent");
    let piped =
        fastdrop(args!["send", "--retries", "0", "-", server.target("piped")]).stdin(fill(4 * MIB, 1)).run();
    piped.expect(9);
    assert_eq!(names_in(served.path()), [] as [&str; 0]);
    server.assert_serves("something too big");
}

/// `--min-free` keeps room on the disk.
#[test]
#[ignore = "needs root"]
fn min_free_is_kept() {
    let (disk, own) = (Mount::tmpfs("size=32m"), scratch());
    let source = source_file(own.path(), 12 * MIB);
    let mut server = serve(disk.path(), &["--min-free", "24M"]);
    let proxy = Proxy::to(server.port);
    client(args!["send", source, proxy.target("")]).expect(8);
    assert!(proxy.up() < 100_000, "refused before anything is sent");
    assert_eq!(names_in(disk.path()), [] as [&str; 0]);
    server.assert_serves("too little room");
}
