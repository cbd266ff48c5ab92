//! Chunks that are wrong, doubled, missing or in the way of each other.

use crate::source_file;
use crate::support::wire::{self, CHUNK, Offer, Raw, control, frame};
use crate::support::*;
use std::fs;
use std::path::{Path, PathBuf};

/// Three pieces of a file named `data`, and what a client needs to send them.
struct Three {
    raw: Raw,
    granted: wire::Granted,
    offer: Offer,
    pieces: [Vec<u8>; 3],
}

impl Three {
    fn offered(server: &Server) -> Self {
        let offer = Offer::new().file("data", 2 * CHUNK + 1000);
        let mut raw = Raw::connect(server.port);
        let granted = raw.offer(&offer);
        let pieces = [fill(CHUNK, 1), fill(CHUNK, 2), fill(1000, 3)];
        Self { raw, granted, offer, pieces }
    }

    fn send(&mut self, number: u32) {
        let piece = wire::chunk(number, &self.pieces[number as usize]);
        self.raw.send(piece);
    }

    fn end(&mut self) {
        let sums = [0, 1, 2].map(|n| (n, wire::checksum(&self.pieces[n as usize])));
        self.raw.send(control(wire::END, &self.granted.root_digest(&sums)));
    }

    #[track_caller]
    fn expect_done(&mut self, server: &Server) {
        self.end();
        let done = self.raw.wait_for(wire::DONE).json();
        assert_eq!(done["Files"], 1, "{done}");
        assert_eq!(done["Bytes"], 2 * CHUNK + 1000, "{done}");
        assert!(fs::read(server.path("data")).unwrap() == self.pieces.concat());
        fs::remove_file(server.path("data")).unwrap();
    }
}

/// The honest way works, so that what follows fails for its own reasons.
#[test]
fn an_honest_client_of_our_own_is_served() {
    let served = scratch();
    let server = serve(served.path(), &[]);
    let mut three = Three::offered(&server);
    assert_eq!((three.granted.chunks, three.granted.bytes), (3, 2 * CHUNK + 1000));
    for number in [2, 0, 1] {
        three.send(number);
    }
    three.raw.wait_confirmed(&[0, 1, 2]);
    assert!(!server.path("data").exists(), "not named before the end");
    three.expect_done(&server);

    // Small files in a pack, an empty one, a folder and a link.
    let slices = [fill(1000, 1), fill(70_000, 2), fill(1, 3)];
    let offer = Offer::new()
        .folder("tree")
        .file("tree/a", 1000)
        .file("tree/b", 0)
        .file("tree/c", 70_000)
        .file("tree/d", 1)
        .link("tree/l", "a");
    let mut raw = Raw::connect(server.port);
    let granted = raw.offer(&offer);
    let sum = wire::pack_checksum(&[&slices[0], &slices[1], &slices[2]]);
    raw.send(frame(0, &[&slices.concat()[..], &sum].concat()));
    raw.wait_confirmed(&[0]);
    raw.send(control(wire::END, &granted.root_digest(&[(0, sum)])));
    raw.wait_for(wire::DONE);
    assert_eq!(names_in(&server.path("tree")), ["a", "b", "c", "d", "l"]);
    assert!(fs::read(server.path("tree/c")).unwrap() == slices[1]);
    assert_eq!(fs::read_link(server.path("tree/l")).unwrap(), Path::new("a"));
    assert_eq!(leftovers(served.path()), [] as [PathBuf; 0]);
}

/// Case 21: an index beyond the count; cases 26, 27: another length than the table says.
#[test]
fn case_21_chunks_that_are_not_in_the_table_are_refused() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    let piece = fill(CHUNK, 1);
    for (what, bytes) in [
        ("case 21: number 3 of 3", wire::chunk(3, &piece)),
        ("case 21: number 2^30-1", wire::chunk((1 << 30) - 1, &piece)),
        ("case 26: a byte too short", wire::chunk(0, &piece[1..])),
        ("case 26: empty", wire::chunk(0, b"")),
        ("case 27: a byte too long", wire::chunk(0, &[&piece[..], b"x"].concat())),
        ("case 27: the last one as long as the others", wire::chunk(2, &piece)),
        ("case 27: 2 MiB", wire::chunk(0, &fill(2 * MIB, 1))),
    ] {
        let mut three = Three::offered(&server);
        three.raw.send(bytes);
        three.raw.expect_refusal(true, 400, what);
        server.assert_serves(what);
    }
    assert_eq!(names_in(served.path()), [] as [&str; 0]);
}

/// Case 25: a wrong checksum is asked for again, and the right one then counts.
#[test]
fn case_25_a_wrong_checksum_is_asked_for_again() {
    let served = scratch();
    let server = serve(served.path(), &[]);
    let mut three = Three::offered(&server);
    three.send(0);
    let mut wrong = three.pieces[1].clone();
    wrong[77] ^= 1;
    three.raw.send(frame(1, &[&wrong[..], &wire::checksum(&three.pieces[1])].concat()));
    assert_eq!(three.raw.wait_for(wire::AGAIN).numbers(), [1]);
    three.send(2);
    three.send(1);
    three.raw.wait_confirmed(&[1]);
    three.expect_done(&server);
}

/// Case 25: a peer that cannot get it right is sent away.
#[test]
fn case_25_many_wrong_checksums_are_422() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    let mut three = Three::offered(&server);
    for _ in 0..20 {
        let bad = frame(2, &[&three.pieces[2][..], &[0; 8]].concat());
        three.raw.send(bad);
    }
    three.raw.expect_refusal(true, 422, "20 wrong checksums");
    server.assert_serves("20 wrong checksums");
    assert_eq!(names_in(served.path()), [] as [&str; 0]);
}

/// Case 22: the same chunk again is confirmed again and counted once.
#[test]
fn case_22_the_same_chunk_twice_counts_once() {
    let served = scratch();
    let server = serve(served.path(), &[]);
    let mut three = Three::offered(&server);
    for _ in 0..3 {
        three.send(0);
        three.raw.wait_confirmed(&[0]);
    }
    three.send(1);
    three.send(2);
    three.raw.wait_confirmed(&[1, 2]);
    three.expect_done(&server);
}

/// Case 23: the same number with other bytes is a conflict, and the verified one stays.
#[test]
fn case_23_another_version_of_a_chunk_is_409() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    let mut three = Three::offered(&server);
    three.send(0);
    three.raw.wait_confirmed(&[0]);
    three.raw.send(wire::chunk(0, &fill(CHUNK, 666)));
    three.raw.expect_refusal(true, 409, "two versions");
    server.assert_serves("two versions of a chunk");
    assert_eq!(names_in(served.path()), [] as [&str; 0]);
    // From a sender that does not say which version of the file it has, nothing is continued.
    let mut again = Three::offered(&server);
    assert_eq!(again.granted.chunks, 3);
    (0..3).for_each(|chunk| again.send(chunk));
    again.expect_done(&server);
}

/// Case 24: one chunk on two streams at once has one writer.
#[test]
fn case_24_one_chunk_on_two_streams_has_one_writer() {
    let served = scratch();
    let server = serve(served.path(), &[]);
    let mut three = Three::offered(&server);
    let join = || Raw::join(server.port, &three.offer.header_json(), &three.granted.transfer);
    let (mut a, mut b) = (join(), join());
    for stream in [&mut a, &mut b] {
        stream.read_header();
        stream.wait_for(wire::GRANT);
    }
    let whole = wire::chunk(0, &three.pieces[0]);
    let (first, second) = whole.split_at(100_000);
    a.send(first);
    b.send(&whole);
    b.send(wire::chunk(1, &three.pieces[1]));
    b.wait_confirmed(&[1]);
    a.send(second);
    a.send(wire::chunk(2, &three.pieces[2]));
    a.wait_confirmed(&[2]);
    three.expect_done(&server);
}

/// Cases 26 and 28: missing chunks and a clean end are not success.
#[test]
fn case_26_missing_chunks_are_never_success() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    // Half a chunk, and the end of the connection.
    let mut three = Three::offered(&server);
    three.send(0);
    let half = wire::chunk(1, &three.pieces[1]);
    three.raw.send(&half[..half.len() / 2]);
    three.raw.finish();
    assert_eq!(three.raw.refusal(true), None);
    // Every second chunk, and END.
    let mut three = Three::offered(&server);
    three.send(0);
    three.send(2);
    three.end();
    three.raw.finish();
    assert_eq!(three.raw.refusal(true), None);
    assert!(!server.path("data").exists());
    server.assert_serves("missing chunks");
}

/// Case 30: all chunks right and another root digest: nothing gets a name.
#[test]
fn case_30_a_wrong_root_digest_names_nothing() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    let mut three = Three::offered(&server);
    for number in 0..3 {
        three.send(number);
    }
    three.raw.wait_confirmed(&[0, 1, 2]);
    three.raw.send(control(wire::END, &[7; 32]));
    three.raw.expect_refusal(true, 422, "a wrong root digest");
    assert_eq!(names_in(served.path()), [] as [&str; 0]);
    server.assert_serves("a wrong root digest");
    let mut three = Three::offered(&server);
    three.raw.send(control(wire::END, &[7; 5]));
    three.raw.expect_refusal(true, 400, "a root digest of five bytes");
    assert_eq!(names_in(served.path()), [] as [&str; 0]);
}

/// Case 38: a transfer that is unknown, and one that is over, are told apart by nobody.
#[test]
fn case_38_joining_an_unknown_transfer_is_404() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    let mut three = Three::offered(&server);
    for number in 0..3 {
        three.send(number);
    }
    three.expect_done(&server);
    let json = three.offer.header_json();
    let over = eventually("the transfer to be over", || {
        let mut raw = Raw::join(server.port, &json, &three.granted.transfer);
        raw.refusal(false)
    });
    let mut raw = Raw::join(server.port, &json, "0123456789abcdef0123456789abcdef");
    let unknown = raw.refusal(false).expect("a refusal");
    assert_eq!(unknown.0, 404);
    assert_eq!(unknown, over);
    for id in ["", "xyz", "0123456789abcdef0123456789abcde", "../../../../etc"] {
        Raw::join(server.port, &json, id).expect_refusal(false, 400, id);
    }
    server.assert_serves("unknown transfers");
}

/// Case 88: the folder goes away meanwhile: a clean end, and the server lives.
#[test]
fn case_88_a_folder_that_goes_away_is_a_clean_end() {
    let (outer, own) = (scratch(), scratch());
    let served = outer.path().join("served");
    fs::create_dir(&served).unwrap();
    let source = source_file(own.path(), 24 * MIB);
    let mut server = serve(&served, &[]);
    let proxy = Proxy::to(server.port);
    proxy.hold_at(8 * MIB);
    let run = fastdrop(args!["send", "--retries", "0", source, proxy.target("")]).json().start();
    proxy.wait_held();
    fs::remove_dir_all(&served).unwrap();
    proxy.resume();
    run.wait().expect(4);
    assert!(server.is_running());
    assert!(!served.join("file").exists());
}
