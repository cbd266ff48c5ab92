//! Native servers that say what no honest one would: the client ends, and never with 0.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use serde_json::{Value, json};
use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;
use support::wire::*;
use support::*;
use xxhash_rust::xxh3::xxh3_64;

const SAME: u8 = 0x17;
const LEFT_OUT: u8 = 0x18;
const PROVEN: u8 = 0x19;
const ASK: u8 = 0x1a;
const CONTENT: u8 = 0x1b;

/// Serves every connection: takes the upgrade, the header and, in a put, the offer; answers with a
/// header and GRANT, then says `says`, and reads until the client leaves.
fn odd_server(says: Vec<u8>) -> u16 {
    odd_server_after(0, says, Vec::new())
}

/// The same, after so many connections that end when they have been upgraded; says `at_last` when
/// all has been sent.
fn odd_server_after(lost: usize, says: Vec<u8>, at_last: Vec<u8>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for (at, stream) in listener.incoming().enumerate() {
            let (says, at_last) = (says.clone(), at_last.clone());
            std::thread::spawn(move || match at < lost {
                true => upgrade(&mut stream.unwrap()),
                false => speak(stream.unwrap(), &says, &at_last),
            });
        }
    });
    port
}

fn upgrade(stream: &mut TcpStream) -> Option<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.extend(read(stream, 1)?);
    }
    let request = String::from_utf8(request).unwrap();
    let key = request.lines().find_map(|line| line.strip_prefix("Sec-FastDP-Key: ")).unwrap();
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: fastdp\r\nConnection: Upgrade\r\n\
         Sec-FastDP-Key: {key}\r\nSec-FastDP-Version: 2.0.0\r\n\r\n"
    );
    stream.write_all(answer.as_bytes()).ok()
}

/// None if the client leaves before the offer is whole.
fn speak(mut stream: TcpStream, says: &[u8], at_last: &[u8]) -> Option<()> {
    let (_, open) = open(&mut stream, says)?;
    if !at_last.is_empty() {
        while open["Do"] == "put" && read_frame(&mut stream)?.0 != 0x8000_0000 | u32::from(END) {}
        let _ = stream.write_all(at_last);
    }
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
    Some(())
}

/// Takes what a client says first, grants it, and says `says`. Returns header and OPEN; None if the
/// client leaves before the offer is whole.
fn open(stream: &mut TcpStream, says: &[u8]) -> Option<(Value, Value)> {
    upgrade(stream)?;
    let len = read_u32(stream)?;
    let client: Value = serde_json::from_slice(&read(stream, len)?).unwrap();
    let open: Value = serde_json::from_slice(&read_frame(stream)?.1).unwrap();
    let puts = open["Do"] == "put" || open["Do"] == "preview";
    while puts && read_frame(stream)?.0 != 0x8000_0000 | u32::from(MANIFEST_END) {}
    let header_json = match puts {
        true => client.clone(),
        false => json!({
            "OneChunk": CHUNK, "FullChunk": 0, "FullSize": 0, "DPVersion": "2.0.0", "CompressType": "None", "FileName": ""
        }),
    };
    let grant = json!({
        "Transfer": format!("{:032x}", 1), "Streams": 1, "Checksum": open["Checksum"], "Durability": open["Durability"],
        "Place": "into", "Capabilities": ["identity", "left-out", "proof", "content", "links"]
    });
    let granted = control(GRANT, grant.to_string().as_bytes());
    let said = [header(header_json.to_string().as_bytes()), granted, says.to_vec()].concat();
    // A client that has heard enough hangs up.
    let _ = stream.write_all(&said);
    Some((client, open))
}

fn read(stream: &mut TcpStream, len: u32) -> Option<Vec<u8>> {
    let mut bytes = vec![0; len as usize];
    stream.read_exact(&mut bytes).ok().map(|()| bytes)
}

fn read_u32(stream: &mut TcpStream) -> Option<u32> {
    read(stream, 4).map(|four| u32::from_be_bytes(four.try_into().unwrap()))
}

fn read_frame(stream: &mut TcpStream) -> Option<(u32, Vec<u8>)> {
    let number = read_u32(stream)?;
    let len = read_u32(stream)?;
    Some((number, read(stream, len)?))
}

/// A control frame of numbers.
fn numbers(kind: u8, numbers: &[u32]) -> Vec<u8> {
    control(kind, &numbers.iter().flat_map(|number| number.to_be_bytes()).collect::<Vec<_>>())
}

fn done() -> Vec<u8> {
    control(DONE, br#"{"Files":1,"Bytes":1,"Durability":"commit","Failed":[]}"#)
}

/// NEED of nothing.
fn need() -> Vec<u8> {
    control(NEED, &[0; 12])
}

/// SKIP of the only entry.
fn skip() -> Vec<u8> {
    skip_for(1)
}

/// SKIP of the only entry, with a reason.
fn skip_for(reason: u8) -> Vec<u8> {
    control(SKIP, &[0, 0, 0, 0, 0, 0, 0, 1, reason])
}

/// An empty file, and what was left out of its folder.
fn manifest(left_out: &[u8]) -> Vec<u8> {
    let entry = [&[1, 0, 1, b'a', 0, 0, 1, 0o244][..], &[0; 20]].concat();
    let end = [&1_u32.to_be_bytes()[..], &[0; 8], &xxh3_64(&entry).to_be_bytes()].concat();
    [control(MANIFEST, &entry), left_out.to_vec(), control(MANIFEST_END, &end)].concat()
}

#[test]
fn a_put_ends_whatever_the_server_asks_or_claims() {
    let own = scratch();
    let source = own.path().join("file");
    write_file(&source, 10, 1);
    let asks_for_ever = numbers(ASK, &[0]).repeat(1000);
    for (what, said) in [
        ("asks for ever", asks_for_ever),
        ("asks twice in one frame", numbers(ASK, &[0, 0])),
        ("asks for what is not there", numbers(ASK, &[0, 7])),
        ("asks after its answer", [skip(), need(), numbers(ASK, &[0])].concat()),
        ("skips after its answer", [need(), skip(), done()].concat()),
        ("is done before its answer", done()),
        ("needs nothing and skips nothing", [need(), need(), done()].concat()),
        ("says what senders say", numbers(SAME, &[0])),
    ] {
        let port = odd_server(said);
        for dry in [&[][..], &["-n"]] {
            let flags: Vec<OsString> = dry.iter().map(Into::into).collect();
            let command = args!["send", "--retries", "0", source, format!("127.0.0.1:{port}")];
            let out = plain([command, flags].concat());
            assert_eq!(out.code(), 1, "{what}, {dry:?}: {out}");
            assert!(!out.stderr.contains("panicked"), "{what}: {out}");
        }
    }
}

/// A file that is left as it is has not arrived, unless leaving it was asked for or it is told as
/// failed.
#[test]
fn a_put_takes_no_policy_that_it_did_not_ask_for() {
    let own = scratch();
    let source = own.path().join("file");
    write_file(&source, 10, 1);
    let left = br#"{"Files":0,"Bytes":0,"Durability":"commit","Failed":[]}"#;
    let failed = br#"{"Files":0,"Bytes":0,"Durability":"commit","Failed":[{"Path":"file","Code":403,"Message":"no"}],"FailedCount":1}"#;
    for (done, policy, code) in [
        (&left[..], "error", 1),
        (left, "rename", 1),
        (left, "overwrite", 1),
        (left, "skip", 0),
        (failed, "error", 9),
    ] {
        for dry in [&[][..], &["-n"]] {
            let port = odd_server_after(0, [skip_for(2), need()].concat(), control(DONE, done));
            let flags: Vec<OsString> = dry.iter().map(Into::into).collect();
            let target = format!("127.0.0.1:{port}");
            let command = args!["send", "--retries", "0", "--existing", policy, source, target];
            let out = plain([command, flags].concat());
            assert_eq!(out.code(), code, "{policy}, {dry:?}: {out}");
            assert_eq!(
                out.stderr.contains("only --existing skip allows"),
                code == 1,
                "{policy}, {dry:?}: {out}"
            );
        }
    }
}

#[test]
fn a_get_ends_whatever_the_server_claims() {
    let own = scratch();
    let left_out = |unnamed: u64, names: &[&str]| {
        let record =
            |name: &&str| [&[0, 1, 147, 0, name.len() as u8][..], name.as_bytes(), &[0, 1, b'r']].concat();
        let records: Vec<u8> = names.iter().flat_map(record).collect();
        control(LEFT_OUT, &[&unnamed.to_be_bytes()[..], &records].concat())
    };
    let most = left_out(u64::MAX, &["b", "c"]);
    // The most that a number can say, and more that are named.
    let port = odd_server(manifest(&[most.clone(), most].concat()));
    let target = format!("127.0.0.1:{port}");
    plain(args!["get", "-n", "--retries", "0", target, own.path()]).expect(3);
    plain(args!["list", target]).expect(3);
    for (what, said, code) in [
        ("more names than may be", manifest(&left_out(0, &["b"; 5000]).repeat(3)), 9),
        ("contents that nobody asked for", [manifest(&[]), control(CONTENT, &[0; 37])].concat(), 1),
        ("the same as nothing", [manifest(&[]), numbers(SAME, &[0])].concat(), 1),
        (
            "proven and not there",
            [manifest(&[]), control(PROVEN, &[&[0; 7][..], &[1], &[0; 32]].concat())].concat(),
            1,
        ),
        ("another digest", [manifest(&[]), control(END, &[7; 32])].concat(), 7),
    ] {
        let port = odd_server(said);
        let into = own.path().join("into");
        let out = plain(args!["get", "--retries", "0", format!("127.0.0.1:{port}"), into]);
        assert_eq!(out.code(), code, "{what}: {out}");
        assert!(!out.stderr.contains("panicked"), "{what}: {out}");
        assert!(!into.join("a").exists(), "{what}: {out}");
    }
}

/// The words of a server for what it leaves out cannot steer a terminal.
#[test]
fn a_reason_with_control_characters_is_printed_escaped() {
    let own = scratch();
    let reason = b"r\x1b[2Jr";
    for (policy, code) in [(0, 3), (1, 0)] {
        let record = [&[policy, 1, 147, 0, 1, b'b', 0, reason.len() as u8], &reason[..]].concat();
        let left_out = control(LEFT_OUT, &[&[0; 8][..], &record].concat());
        let port = odd_server(manifest(&left_out));
        let out = plain(args!["get", "-n", format!("127.0.0.1:{port}"), own.path()]).expect(code);
        assert!(out.stderr.contains("[2Jr") && !out.stderr.contains('\x1b'), "{out:?}");
    }
}

/// Words that an attempt does not come to are left for the next one: what is missing, and what is
/// there already.
#[test]
fn a_connection_that_was_lost_early_changes_nothing_of_what_is_told() {
    let own = scratch();
    let source = own.path().join("file");
    write_file(&source, 10, 1);
    let list = own.path().join("list");
    std::fs::write(&list, "a\nmissing\n").unwrap();
    for lost in [0, 1, 2] {
        let target = format!("127.0.0.1:{}", odd_server_after(lost, manifest(&[]), Vec::new()));
        let out = client(args!["get", "-n", "--files-from", list, target, own.path()]).expect(3);
        out.expect_summary(&[("files", 1), ("files_failed", 1), ("retries", lost as u64)]);
        let target = format!("127.0.0.1:{}", odd_server_after(lost, [skip(), need()].concat(), done()));
        let out = client(args!["send", "-n", source, target]).expect(0);
        out.expect_summary(&[("files", 0), ("files_skipped", 1)]);
    }
}

/// The words with which it gives up have to wait for a chunk that the server does not read; the
/// client does not.
#[test]
fn a_client_that_gives_up_does_not_wait_until_a_server_reads() {
    let own = scratch();
    let source = own.path().join("file");
    // Few enough bytes for the control stream alone, and a chunk that is larger than all buffers.
    write_file(&source, 32 << 20, 1);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
    let put = fastdrop(args!["send", "--retries", "0", "--compress", "none", source, target]).start();
    let mut stream = listener.accept().unwrap().0;
    let (header, _) = open(&mut stream, &[]).unwrap();
    let chunks = header["FullChunk"].as_u64().unwrap() as u32;
    let needed = [&chunks.to_be_bytes()[..], &(32_u64 << 20).to_be_bytes()].concat();
    stream.write_all(&control(NEED, &needed)).unwrap();
    while read_u32(&mut stream).unwrap() & 0x8000_0000 != 0 {
        let len = read_u32(&mut stream).unwrap();
        read(&mut stream, len).unwrap();
    }
    // A chunk is under way. This one does not exist.
    stream.write_all(&numbers(AGAIN, &[99])).unwrap();
    let out = put.wait_within(Duration::from_secs(20)).expect(1);
    assert!(out.stderr.contains("does not exist"), "{out}");
}
