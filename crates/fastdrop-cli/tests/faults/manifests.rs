//! Manifests that lie.

use crate::support::wire::{CHUNK, Offer, Raw, header};
use crate::support::*;
use serde_json::json;
use std::fs;
use std::path::PathBuf;

/// Offers and expects a refusal with 400 before anything is written.
#[track_caller]
fn refused_offer(server: &mut Server, what: &str, offer: &Offer) {
    let mut raw = Raw::connect(server.port);
    raw.send([header(offer.header_json().to_string().as_bytes()), offer.frames()].concat());
    raw.expect_refusal(false, 400, what);
    assert_eq!(names_in(&server.dir), [] as [&str; 0], "{what}: something was written");
    assert_eq!(leftovers(&server.dir), [] as [PathBuf; 0], "{what}: something was written");
}

/// Case 53: names that are none, and case 47: that lead elsewhere.
#[test]
fn case_53_names_that_are_none_are_refused() {
    let outer = scratch();
    let served = outer.path().join("served");
    fs::create_dir(&served).unwrap();
    let mut server = serve(&served, &[]);
    let absolute = outer.path().join("planted").into_os_string().into_encoded_bytes();
    let long = [b'x'; 256];
    let deep = "d/".repeat(2100) + "file";
    // One byte more than a client without the capability for long paths may send; and too deep, but
    // not too long.
    let long_path = [&("d".repeat(240) + "/").repeat(17)[..4096], "e"].concat();
    let too_deep = "d/".repeat(1024) + "f";
    let names: Vec<&[u8]> = vec![
        b"../planted",
        b"..",
        b".",
        b"",
        b"/",
        b"a/../../planted",
        b"a/..",
        b"a/./b",
        b"./a",
        b"a//b",
        b"a/",
        b"/planted",
        &absolute,
        b"a\0b",
        b"\0",
        &long,
        deep.as_bytes(),
        long_path.as_bytes(),
        too_deep.as_bytes(),
        b".fastdrop",
        b".fastdrop/x",
        b"a/.fastdrop",
        b"a/.fastdrop/journal",
    ];
    for name in names {
        let shown = String::from_utf8_lossy(&name[..name.len().min(60)]).into_owned();
        refused_offer(&mut server, &format!("file {shown:?}"), &Offer::new().file(name, 4));
        refused_offer(&mut server, &format!("folder {shown:?}"), &Offer::new().folder(name));
        refused_offer(&mut server, &format!("link {shown:?}"), &Offer::new().link(name, "target"));
        refused_offer(&mut server, &format!("late {shown:?}"), &Offer::new().file("#first", 4).file(name, 4));
    }
    server.assert_serves("names that are none");
    assert_eq!(names_in(outer.path()), ["served"]);
}

/// Cases 18, 48, 49, 52: manifests that contradict themselves.
#[test]
fn case_18_manifests_that_contradict_themselves_are_refused() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    let new = Offer::new;
    let mut setid = new().file("x", 4);
    setid = setid.raw(&[&[1, 0, 1, b'y'][..], &0o104_755_u32.to_be_bytes(), &[0; 20]].concat());
    for (what, offer) in [
        ("the same file twice", new().file("a", 4).file("a", 4)),
        ("the same folder twice", new().folder("a").folder("a")),
        ("a file and a folder of one name", new().file("a", 4).folder("a")),
        ("out of order", new().file("b", 4).file("a", 4)),
        ("out of order among components", new().folder("a").folder("a!").file("a/b", 4)),
        ("a file beneath a file", new().file("a", 4).file("a/b", 4)),
        ("a file beneath a link", new().folder("t").link("t/a", "b").file("t/a/b", 4)),
        ("a file far beneath a file", new().file("a", 4).file("a/b/c/d", 4)),
        ("an absolute link", new().folder("a").link("a/l", "/etc/passwd")),
        ("a link that leaves", new().folder("a").link("a/l", "../../b")),
        ("a topmost link that leaves", new().link("l", "../b")),
        ("a link that leaves and returns", new().folder("a").link("a/l", "../../a/b")),
        ("a deep link that leaves", new().folder("a").folder("a/b").link("a/b/l", "x/../../../y")),
        ("an empty link", new().folder("a").link("a/l", "")),
        ("a link with NUL", new().folder("a").link("a/l", "x\0y")),
        ("a link of 4,096 bytes", new().folder("a").link("a/l", "x".repeat(4096))),
        ("sizes that overflow", new().file("a", u64::MAX).file("b", u64::MAX)),
        ("a size of 2^63", new().file("a", 1 << 63)),
        ("an unknown kind", new().raw(&[9, 0, 1, b'a', 0, 0, 1, 0xa4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
        ("half an entry", new().raw(&[1, 0, 5, b'a'])),
        (
            "nanoseconds beyond a second",
            new().raw(&[&[2, 0, 1, b'a', 0, 0, 1, 0xed][..], &[0; 8], &[0xff; 4]].concat()),
        ),
        ("a set-id mode", setid),
    ] {
        refused_offer(&mut server, what, &offer);
    }
    server.assert_serves("contradictions");
}

/// Case 18: totals that are not those of the entries.
#[test]
fn case_18_wrong_totals_are_refused() {
    let served = scratch();
    let mut server = serve(served.path(), &[]);
    let offer = Offer::new().file("a", 4).file("b", 3 * CHUNK);
    let (count, bytes, digest) = offer.totals();
    let mut attempts = vec![
        ("one entry more", offer.header_json(), offer.end_saying(count + 1, bytes, digest)),
        ("2^32-1 entries", offer.header_json(), offer.end_saying(u32::MAX, bytes, digest)),
        ("one entry less", offer.header_json(), offer.end_saying(count - 1, bytes, digest)),
        ("one byte more", offer.header_json(), offer.end_saying(count, bytes + 1, digest)),
        ("another digest", offer.header_json(), offer.end_saying(count, bytes, digest ^ 1)),
        ("a short end", offer.header_json(), vec![0; 7]),
    ];
    for (what, field, value) in [
        ("a chunk more in the header", "FullChunk", 5),
        ("no chunks in the header", "FullChunk", 0),
        ("a byte less in the header", "FullSize", bytes - 1),
    ] {
        let mut json = offer.header_json();
        json[field] = json!(value);
        attempts.push((what, json, offer.end()));
    }
    for (what, json, end) in attempts {
        let mut raw = Raw::connect(server.port);
        raw.send([header(json.to_string().as_bytes()), offer.frames_ending(&end)].concat());
        raw.expect_refusal(false, 400, what);
        assert_eq!(names_in(served.path()), [] as [&str; 0], "{what}");
    }
    server.assert_serves("wrong totals");
}
