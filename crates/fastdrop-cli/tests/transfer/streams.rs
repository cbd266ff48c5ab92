//! Streams, checksums and durability.

use crate::served_and_own;
use crate::support::*;
use std::fs;

/// Any number of streams gives the same bytes, and as many connections as were asked for at most.
#[test]
fn any_number_of_streams_gives_the_same_bytes() {
    let (served, own) = served_and_own();
    let tree = own.path().join("tree");
    write_file(&tree.join("big"), 24 * MIB + 17, 1);
    small_tree(&tree.join("small"), 3, 30, 2);
    let server = serve(served.path(), &[]);
    for streams in ["1", "3", "8", "auto"] {
        let proxy = Proxy::to(server.port);
        let name = format!("with-{streams}");
        client(args!["send", "--streams", streams, tree, proxy.target(&name)]).expect(0);
        assert_same_tree(&tree, &server.path(&name));
        let sending = proxy.connections();
        let here = own.path().join(&name);
        client(args!["get", "-j", streams, proxy.target(&name), here]).expect(0);
        assert_same_tree(&tree, &here);
        let getting = proxy.connections() - sending;
        if let Ok(streams) = streams.parse::<usize>() {
            // The control stream comes on top.
            assert!(
                sending <= streams + 1 && getting <= streams + 1,
                "{streams}: {sending} and {getting} connections"
            );
            assert!(
                streams == 1 || (sending > 2 && getting > 2),
                "{streams}: {sending} and {getting} connections"
            );
        }
    }
}

/// By itself a transfer between processes of one machine opens data streams only when it is large
/// enough to gain from them.
#[test]
fn a_short_local_transfer_keeps_to_its_control_stream() {
    let (served, own) = served_and_own();
    let server = serve(served.path(), &[]);
    for (name, size, alone) in [("short", 32 * MIB, true), ("long", 96 * MIB, false)] {
        let source = own.path().join(name);
        write_file(&source, size, 1);
        let proxy = Proxy::to(server.port);
        client(args!["send", source, proxy.target("")]).expect(0);
        assert_same_file(&source, &server.path(name));
        let sending = proxy.connections();
        let back = own.path().join(format!("{name}-back"));
        client(args!["get", proxy.target(name), back]).expect(0);
        assert_same_file(&source, &back);
        let getting = proxy.connections() - sending;
        assert_eq!((sending == 1, getting == 1), (alone, alone), "{name}: {sending} and {getting}");
    }
    let tree = own.path().join("many-files");
    for n in 0..1000 {
        write_file(&tree.join(n.to_string()), 4096, n);
    }
    let proxy = Proxy::to(server.port);
    client(args!["send", tree, proxy.target("")]).expect(0);
    assert_same_tree(&tree, &server.path("many-files"));
    assert!(proxy.connections() > 1, "many files are made by several streams");
}

/// Every checksum works both ways; `blake3` reports each file's own, equal to what `b3sum` prints.
#[test]
fn blake3_of_each_file_is_reported() {
    let (served, own) = served_and_own();
    let tree = own.path().join("tree");
    let sizes = [0, 1, 1023, 1024, 1025, 262_144, MIB - 1, MIB, MIB + 1, 4 * MIB, 4 * MIB + 1, 11 * MIB + 5];
    for size in sizes {
        write_file(&tree.join(format!("of-{size}-bytes")), size, size);
    }
    let server = serve(served.path(), &[]);
    for checksum in ["xxh3", "none", "blake3"] {
        let here = own.path().join(format!("back-{checksum}"));
        let sent = client(args!["send", "--checksum", checksum, tree, server.target(checksum)]).expect(0);
        assert_same_tree(&tree, &server.path(checksum));
        let got = client(args!["get", "--checksum", checksum, server.target(checksum), here]).expect(0);
        assert_same_tree(&tree, &here);
        if checksum == "blake3" {
            for size in sizes {
                let name = format!("of-{size}-bytes");
                let expected = digest_of(&tree.join(&name)).to_hex().to_string();
                assert_eq!(sent.file_event(&name)["blake3"], *expected, "{size} bytes sent\n{sent}");
                assert_eq!(got.file_event(&name)["blake3"], *expected, "{size} bytes got\n{got}");
            }
        }
    }
    let out = plain(args!["send", "--checksum", "blake3", tree, server.target("again")]).expect(0);
    for size in sizes {
        let name = format!("of-{size}-bytes");
        let start = format!("{}  ", digest_of(&tree.join(&name)).to_hex());
        let found = out.text().lines().any(|line| line.starts_with(&start) && line.ends_with(&name));
        assert!(found, "no line of b3sum for {name}\n{out}");
    }
}

/// A stream of unknown length has its BLAKE3, too.
#[test]
fn blake3_of_standard_input_is_reported() {
    let (served, _own) = served_and_own();
    let server = serve(served.path(), &[]);
    for size in [0, 1000, 5 * MIB + 3, 8 * MIB] {
        let bytes = fill(size, 5);
        let name = format!("stream-{size}");
        let out = fastdrop(args!["send", "--checksum", "blake3", "-", server.target(&name)])
            .json()
            .stdin(bytes.clone())
            .run()
            .expect(0);
        assert_eq!(out.file_event(&name)["blake3"], *blake3::hash(&bytes).to_hex().as_str(), "{size}\n{out}");
        assert!(fs::read(server.path(&name)).unwrap() == bytes);
    }
}

/// `--durability` is kept and named.
#[test]
fn durability_is_reported() {
    let (served, own) = served_and_own();
    let source = own.path().join("file");
    write_file(&source, 100_000, 1);
    let server = serve(served.path(), &[]);
    for durability in ["commit", "none"] {
        let args = args!["send", "--durability", durability, source, server.target(durability)];
        let out = client(args).expect(0);
        assert_eq!(out.summary()["durability"], durability, "{out}");
        assert_same_file(&source, &server.path(durability));
    }
}
