//! Sparse files.

use crate::served_and_own;
use crate::support::*;
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

const ISLANDS: [(u64, u64); 5] = [
    (0, 4096),
    (1_000_000_000, 1 << 20),
    ((2 << 30) - 8192, 16_384),
    (4_294_967_296, 4096),
    ((5 << 30) - 5000, 5000),
];

fn assert_sparse_copy(path: &Path) {
    let meta = fs::metadata(path).unwrap();
    assert_eq!(meta.len(), 5 << 30);
    // As many bytes as the islands and a chunk's worth around each.
    assert!(meta.blocks() * 512 <= 24 * MIB, "{} MiB are allocated", meta.blocks() / 2048);
    let mut file = fs::File::open(path).unwrap();
    let mut read = |at: u64, len: u64| {
        let mut bytes = vec![0; len as usize];
        file.seek(SeekFrom::Start(at)).unwrap();
        file.read_exact(&mut bytes).unwrap();
        bytes
    };
    let mut island_end = 0;
    for (number, (at, len)) in ISLANDS.into_iter().enumerate() {
        assert!(read(at, len) == fill(len, number as u64), "island {number}");
        // On both sides of it, and between it and the one before.
        for (from, to) in [(island_end, island_end + 5 * MIB), (at.saturating_sub(5 * MIB), at)] {
            let from = from.clamp(island_end, at);
            let to = to.clamp(from, at);
            assert!(read(from, to - from).iter().all(|&byte| byte == 0), "not zero in {from}..{to}");
        }
        island_end = at + len;
    }
}

/// A file of 5 GiB with little in it: crosses 4 GiB, stays sparse, and costs little of the network.
#[test]
fn sparse_file_of_5_gib_stays_sparse_both_ways() {
    let (served, own) = served_and_own();
    let source = own.path().join("sparse");
    let mut file = fs::File::create(&source).unwrap();
    file.set_len(5 << 30).unwrap();
    for (number, (at, len)) in ISLANDS.into_iter().enumerate() {
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&fill(len, number as u64)).unwrap();
    }
    drop(file);
    let server = serve(served.path(), &[]);
    let proxy = Proxy::to(server.port);
    client(args!["send", source, proxy.target("")])
        .expect(0)
        .expect_summary(&[("files", 1), ("bytes", 5 << 30)]);
    assert_sparse_copy(&server.path("sparse"));
    client(args!["get", proxy.target("sparse"), own.path().join("back")]).expect(0);
    assert_sparse_copy(&own.path().join("back"));
    assert!(proxy.total() < 64 * MIB, "{} MiB went over the network", proxy.total() / MIB);
    // The last copy is a stranger to the first, so this one compares every byte, holes as the
    // kernel shows them.
    let same = std::process::Command::new("cmp").arg(&source).arg(own.path().join("back")).status().unwrap();
    assert!(same.success());
}
