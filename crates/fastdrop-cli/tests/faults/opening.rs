//! Headers, OPEN and frames that are not what they should be.

use crate::support::wire::{self, CHUNK, Offer, Raw, control, frame, header};
use crate::support::*;
use serde_json::json;
use std::fs;

/// Sends a header and expects a refusal.
fn refused_header(server: &mut Server, code: u64, what: &str, bytes: &[u8]) {
    let mut raw = Raw::connect(server.port);
    raw.send(bytes);
    raw.expect_refusal(false, code, what);
    server.assert_serves(what);
}

/// Case 12: a length of 4 GiB, or just too long, is refused before anything is allocated for it.
#[test]
fn case_12_a_header_of_4_gib_is_refused() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    for length in [u32::MAX, 1 << 31, 65_537] {
        refused_header(&mut server, 413, &format!("length {length}"), &length.to_be_bytes());
    }
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    let kib: u64 = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib < 64 << 10, "{kib} KiB");
    // A header that ends early.
    let mut raw = Raw::connect(server.port);
    raw.send([&500_u32.to_be_bytes()[..], b"{\"OneChunk\":"].concat());
    raw.finish();
    assert_eq!(raw.refusal(false), None);
    server.assert_serves("half a header");
}

/// Cases 14 to 19: JSON that is not what it should be.
#[test]
fn cases_14_to_19_bad_json_headers_are_refused() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    let good = r#"{"OneChunk":262144,"FullChunk":1,"FullSize":4,"DPVersion":"2.0.0","CompressType":"None","FileName":"x"}"#;
    let replaced = |from: &str, to: &str| {
        assert!(good.contains(from));
        good.replacen(from, to, 1).into_bytes()
    };
    let with_field = |field: &str| replaced("{", &format!("{{{field},"));
    let nested = format!("\"Deep\":{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let objects = format!("\"Deep\":{}1{}", "{\"a\":".repeat(9_000), "}".repeat(9_000));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("case 14: arrays 10,000 deep", with_field(&nested)),
        ("case 14: objects 9,000 deep", with_field(&objects)),
        ("case 15: a key twice", with_field("\"FullSize\":4")),
        ("case 15: an unknown key twice", with_field("\"Other\":1,\"Other\":2")),
        ("case 15: a key twice, deeper", with_field("\"Other\":{\"a\":1,\"a\":1}")),
        ("case 15: a key twice, escaped", with_field("\"Full\\u0053ize\":4")),
        ("case 16: 1e400", replaced("\"FullSize\":4", "\"FullSize\":1e400")),
        ("case 16: an exponent", replaced("\"OneChunk\":262144", "\"OneChunk\":1e6")),
        ("case 16: -1", replaced("\"FullSize\":4", "\"FullSize\":-1")),
        ("case 16: -0", replaced("\"FullSize\":4", "\"FullSize\":-0")),
        ("case 16: 2^53+1", replaced("\"FullSize\":4", "\"FullSize\":9007199254740993")),
        ("case 16: 2^64", replaced("\"FullSize\":4", "\"FullSize\":18446744073709551616")),
        ("case 16: a float", replaced("\"FullChunk\":1", "\"FullChunk\":1.5")),
        ("case 16: a float that is whole", replaced("\"FullChunk\":1", "\"FullChunk\":1.0")),
        ("case 16: a string", replaced("\"FullChunk\":1", "\"FullChunk\":\"1\"")),
        ("case 16: null", replaced("\"FullChunk\":1", "\"FullChunk\":null")),
        ("case 17: a lone high surrogate", replaced("\"x\"", "\"\\ud800\"")),
        ("case 17: a lone low surrogate", replaced("\"x\"", "\"\\udc00\"")),
        ("case 17: invalid UTF-8", {
            let mut bytes = good.as_bytes().to_vec();
            let at = bytes.iter().rposition(|&byte| byte == b'x').unwrap();
            bytes[at] = 0xff;
            bytes
        }),
        ("case 19: OneChunk 0", replaced("262144", "0")),
        ("case 19: OneChunk 3", replaced("262144", "3")),
        ("case 19: OneChunk 512", replaced("262144", "512")),
        ("case 19: OneChunk 2^60", replaced("262144", "1152921504606846976")),
        ("case 19: OneChunk 2^25", replaced("262144", "33554432")),
        ("case 19: 2^52 chunks", replaced("\"FullChunk\":1", "\"FullChunk\":4503599627370496")),
        ("a field is missing", replaced("\"FullSize\":4,", "")),
        ("another version", replaced("\"2.0.0\"", "\"1.1.0\"")),
        ("an unknown compression", replaced("\"None\"", "\"Magic\"")),
        ("not an object", b"[1,2,3]".to_vec()),
        ("empty", Vec::new()),
        ("trailing bytes", [good.as_bytes(), b" {}"].concat()),
        ("half an object", good.as_bytes()[..40].to_vec()),
    ];
    for (what, json) in cases {
        assert!(json.len() <= 65_536, "{what}: this should be about the JSON, not its length");
        // All else is right, so that nothing but the header can be the reason.
        let mut bytes = header(&json);
        bytes.extend(Offer::new().file("x", 4).frames());
        let code = if what == "an unknown compression" { 415 } else { 400 };
        refused_header(&mut server, code, what, &bytes);
    }
    assert_eq!(names_in(served.path()), [] as [&str; 0]);
    // Unknown keys are no offence.
    let mut raw = Raw::connect(server.port);
    let fine = String::from_utf8(with_field("\"Other\":{\"a\":[1,2,{\"b\":null}]}")).unwrap();
    raw.send([header(fine.as_bytes()), Offer::new().file("x", 4).frames()].concat());
    raw.read_header();
    raw.wait_for(wire::NEED);
}

/// Cases 14 to 17 and 20 in OPEN.
#[test]
fn cases_14_to_20_bad_open_is_refused() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    let good = Offer::new().file("x", 4);
    let head = header(good.header_json().to_string().as_bytes());
    let text = good.open.to_string();
    let put = |field: &str| text.replacen('{', &format!("{{{field},"), 1);
    let swap = |key: &str, value: serde_json::Value| {
        let mut open = good.open.clone();
        open[key] = value;
        open.to_string()
    };
    let cases: Vec<(&str, String)> = vec![
        ("a key twice", put("\"Do\":\"put\"")),
        ("10,000 deep", put(&format!("\"D\":{}{}", "[".repeat(10_000), "]".repeat(10_000)))),
        ("an unknown verb", swap("Do", json!("destroy"))),
        ("an unknown checksum", swap("Checksum", json!("crc7"))),
        ("an unknown policy", swap("Existing", json!("shred"))),
        ("0 streams", swap("Streams", json!(0))),
        ("65 streams", swap("Streams", json!(65))),
        ("2^53+1 streams", text.replace("\"Streams\":1", "\"Streams\":9007199254740993")),
        ("-1 streams", swap("Streams", json!(-1))),
        ("a checkpoint of 0", swap("Checkpoint", json!(0))),
        ("a path that leaves", swap("Path", json!("../x"))),
        ("a path that leaves, encoded", swap("Path", json!("%2e%2e/x"))),
        ("an absolute path", swap("Path", json!("/etc"))),
        ("NUL in the path", swap("Path", json!("a%00b"))),
        ("our own folder", swap("Path", json!(".fastdrop/x"))),
        ("not JSON", "put".into()),
        ("empty", String::new()),
    ];
    for (what, open) in cases {
        let mut raw = Raw::connect(server.port);
        let manifest = good.frames().split_off(8 + text.len());
        raw.send([head.clone(), control(wire::OPEN, open.as_bytes()), manifest].concat());
        let code = if what.contains("path") || what == "our own folder" { 403 } else { 400 };
        raw.expect_refusal(false, code, what);
        server.assert_serves(what);
    }
    assert_eq!(names_in(served.path()), [] as [&str; 0]);
}

/// Frames that are none: unknown types, unknown encodings, lengths beyond any bound, no OPEN.
#[test]
fn strange_frames_are_refused() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    let head = header(Offer::new().header_json().to_string().as_bytes());
    let first = [
        ("an unknown control type", control(0x7e, b"")),
        ("a control frame of 4 GiB", [0x8000_0001_u32.to_be_bytes(), u32::MAX.to_be_bytes()].concat()),
        ("a control frame of 2 MiB", [0x8000_0001_u32.to_be_bytes(), (2_u32 << 20).to_be_bytes()].concat()),
        ("a chunk instead of OPEN", wire::chunk(0, b"data")),
        ("a frame number of 3 << 30", frame(0xc000_0000, b"")),
        ("a manifest instead of OPEN", control(wire::MANIFEST, b"")),
        ("GRANT from a client", control(wire::GRANT, b"{}")),
    ];
    for (what, bytes) in first {
        let mut raw = Raw::connect(server.port);
        raw.send([head.clone(), bytes].concat());
        raw.expect_refusal(false, 400, what);
        server.assert_serves(what);
    }
    let offer = Offer::new().file("data", 3 * CHUNK);
    let bytes = fill(CHUNK, 1);
    let later = [
        ("a second OPEN", control(wire::OPEN, offer.open.to_string().as_bytes())),
        ("a second manifest", control(wire::MANIFEST, b"")),
        ("an unknown control type", control(0x7e, b"")),
        ("an unknown encoding", frame(0x4000_0000, &[&[0x7f], &bytes[..], &wire::checksum(&bytes)].concat())),
        ("a chunk frame of 4 GiB", [0_u32.to_be_bytes(), u32::MAX.to_be_bytes()].concat()),
        ("a chunk without room for its checksum", frame(0, b"abc")),
        ("DONE from the sender", control(wire::DONE, b"{}")),
        ("CONFIRM from the sender", control(wire::CONFIRM, &0_u32.to_be_bytes())),
    ];
    for (what, bytes) in later {
        let mut raw = Raw::connect(server.port);
        raw.offer(&offer);
        raw.send(bytes);
        raw.expect_refusal(true, 400, what);
        server.assert_serves(what);
    }
    assert_eq!(names_in(served.path()), [] as [&str; 0]);
}

/// A receiver that breaks the protocol is told so, also where the server is the one that sends.
#[test]
fn strange_answers_of_a_get_are_refused() {
    let served = scratch();
    write_file(&served.path().join("data"), 3 * CHUNK, 1);
    let mut server = serve(served.path(), &[]);
    let need = |chunks: u32, bytes: u64| {
        control(wire::NEED, &[&chunks.to_be_bytes()[..], &bytes.to_be_bytes()].concat())
    };
    let numbers = |kind, number: u32| control(kind, &number.to_be_bytes());
    let right = need(3, 3 * CHUNK);
    let after = |frame: Vec<u8>| [right.clone(), frame].concat();
    let skip = [&1_u32.to_be_bytes()[..], &1_u32.to_be_bytes(), &[1]].concat();
    let held =
        |first: u32, checksums: &[u8]| control(wire::HELD, &[&first.to_be_bytes(), checksums].concat());
    let cases = [
        ("a need of something else", need(1, 5)),
        ("a second answer", after(right.clone())),
        ("an entry to skip that does not exist", control(wire::SKIP, &skip)),
        ("a held chunk that does not exist", held(3, &[0; 8])),
        ("half a checksum", held(0, &[0; 4])),
        ("held chunks after the answer", after(held(0, &[0; 8]))),
        ("a confirmation of what was not sent", numbers(wire::CONFIRM, 0)),
        ("a confirmation of what does not exist", after(numbers(wire::CONFIRM, 3))),
        ("a chunk asked for again that does not exist", after(numbers(wire::AGAIN, 3))),
        ("ABANDONED without ABANDON", after(numbers(wire::ABANDONED, 0))),
        ("COMPARE without the capability", control(wire::COMPARE, &[0; 12])),
        ("DONE before END", control(wire::DONE, br#"{"Files":1,"Bytes":1,"Durability":"commit"}"#)),
        ("END from the receiver", after(control(wire::END, &[0; 32]))),
    ];
    let head = header(Offer::new().header_json().to_string().as_bytes());
    let open = Offer::new().open("Do", "get").open("Path", "data").open;
    for (what, answer) in cases {
        let mut raw = Raw::connect(server.port);
        raw.send([&head[..], &control(wire::OPEN, open.to_string().as_bytes())].concat());
        raw.read_header();
        raw.wait_for(wire::MANIFEST_END);
        raw.send(answer);
        raw.expect_refusal(true, 400, what);
        server.assert_serves(what);
    }
}

/// Case 51 in small, and 20: sparse chunks whose extents lie.
#[test]
fn sparse_chunks_that_lie_are_refused() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    let offer = Offer::new().file("data", 2 * CHUNK);
    let sparse = |extents: &[(u32, u32)], count: u32, data: &[u8]| {
        let mut payload = vec![1];
        payload.extend(count.to_be_bytes());
        for (offset, length) in extents {
            payload.extend(offset.to_be_bytes());
            payload.extend(length.to_be_bytes());
        }
        payload.extend(data);
        payload.extend(wire::checksum(&vec![0; CHUNK as usize]));
        frame(0x4000_0000, &payload)
    };
    let chunk = CHUNK as u32;
    for (what, bytes) in [
        ("count of 2^32-1", sparse(&[], u32::MAX, b"")),
        ("count beyond what is there", sparse(&[(0, 4)], 2, b"abcd")),
        ("an extent beyond the chunk", sparse(&[(chunk - 2, 4)], 1, b"abcd")),
        ("an offset that overflows", sparse(&[(u32::MAX, 4)], 1, b"abcd")),
        ("extents that overlap", sparse(&[(0, 4), (2, 4)], 2, b"abcdefgh")),
        ("extents that touch", sparse(&[(0, 4), (4, 4)], 2, b"abcdefgh")),
        ("extents that go back", sparse(&[(100, 4), (0, 4)], 2, b"abcdefgh")),
        ("an empty extent", sparse(&[(0, 0)], 1, b"")),
        ("more data than extents", sparse(&[(0, 4)], 1, b"abcdefgh")),
        ("less data than extents", sparse(&[(0, 40)], 1, b"abcd")),
    ] {
        let mut raw = Raw::connect(server.port);
        raw.offer(&offer);
        raw.send(bytes);
        raw.expect_refusal(true, 400, what);
        server.assert_serves(what);
    }
    // And one that does not lie.
    let zeros = vec![0; CHUNK as usize];
    let mut raw = Raw::connect(server.port);
    let granted = raw.offer(&offer);
    raw.send(sparse(&[], 0, b""));
    let mut second = zeros.clone();
    second[1000..1004].copy_from_slice(b"abcd");
    let sum = wire::checksum(&second);
    let payload =
        [&[1, 0, 0, 0, 1][..], &1000_u32.to_be_bytes(), &4_u32.to_be_bytes(), b"abcd", &sum].concat();
    raw.send(frame(0x4000_0001, &payload));
    raw.wait_confirmed(&[0, 1]);
    raw.send(control(wire::END, &granted.root_digest(&[(0, wire::checksum(&zeros)), (1, sum)])));
    raw.wait_for(wire::DONE);
    assert!(fs::read(server.path("data")).unwrap() == [zeros, second].concat());
}
