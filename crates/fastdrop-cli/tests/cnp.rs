//! `fastdrop message --protocol cnp`: the real program at both ends, and peers as they are in the
//! field.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use support::{FASTDROP, Output, Peer, args, fastdrop};

/// What came with this word in front, in its order.
fn came(output: &Output, front: &str) -> Vec<String> {
    let texts = output.events.iter().filter(|event| event["event"] == "message");
    let texts = texts.filter_map(|event| event["text"].as_str()?.strip_prefix(front));
    texts.map(str::to_owned).collect()
}

const MESSAGES: [&str; 6] = ["a", "b", "c", "d", "e", ""];

/// Variants of clients, as options of the peer, and whether they can be told from each other's
/// numbers.
const CLIENTS: [&str; 19] = [
    "",
    "--ack-type 2",
    "--naive",
    "--size-name max_size --size 100",
    "--client-id somebody",
    "--zero",
    "--zero --naive --ack-type 2",
    "--mode burst --window 4",
    "--mode burst --window 40000",
    "--mode burst --window 4 --zero",
    "--mode burst --window 8 --first 65534",
    "--first 7",
    "--later gbn --window 3 --size-name max_fragment_size",
    "--later sr --window 3",
    "--damage 1",
    "--mode burst --window 8 --damage 2",
    "--repeat 1 --first 3",
    "--keep-alive",
    "--rude",
];

#[test]
fn clients_of_the_field_are_understood_on_the_port_of_all_protocols() {
    let listener = FASTDROP.listen("all", &[]);
    for (number, variant) in CLIENTS.iter().enumerate() {
        let mut words = args!["send", listener.port().to_string()];
        words.extend(MESSAGES.iter().map(|message| format!("{number}-{message}").into()));
        words.extend(variant.split_whitespace().map(OsString::from));
        assert_eq!(Peer::start("cnp.py", words).finish(), "ok", "{variant}");
    }
    listener.process.signal("TERM");
    let output = listener.process.wait().expect(143);
    for (number, variant) in CLIENTS.iter().enumerate() {
        assert_eq!(came(&output, &format!("{number}-")), MESSAGES, "{variant}");
    }
}

#[test]
fn clients_of_the_field_get_their_echoes() {
    let listener = FASTDROP.listen("cnp", &["--echo", "--tcp"]);
    for variant in ["", "--zero", "--mode burst --window 4", "--later sr --window 3", "--zero-acks"] {
        let mut words = args!["send", listener.port().to_string(), "one", "two", "three", "--expect", "3"];
        words.extend(variant.split_whitespace().map(OsString::from));
        assert_eq!(Peer::start("cnp.py", words).finish(), "one\ntwo\nthree\nok", "{variant}");
    }
    listener.end();
}

/// Sessions in a row in which a peer may say that it was kept from the processor.
const STALLS_MAX: usize = 5;

/// Sends with our program to a peer, and gives back how that ended and what the peer printed after
/// its port.
///
/// A peer that is kept from the processor is silent, and to one of the field what is sent again is
/// another message: a session of which the peer says so proves nothing, and is run again.
fn send_to_peer(peer: &str, messages: &[&str], extra: &str) -> (Output, String) {
    let mut sessions = std::iter::repeat_with(|| send_once(peer, messages, extra)).take(STALLS_MAX);
    let whole = sessions.find(|(_, printed)| !printed.ends_with("stalled"));
    whole.expect("a session in which the peer was not kept from the processor")
}

fn send_once(peer: &str, messages: &[&str], extra: &str) -> (Output, String) {
    // Half of the silence after which something is sent again.
    let words = args!["serve", "--stall", "0.5"];
    let words = words.into_iter().chain(peer.split_whitespace().map(OsString::from)).collect();
    let mut peer = Peer::start("cnp.py", words);
    let mut words: Vec<OsString> = args!["message", "send", "--protocol", "cnp", "--stats"];
    words.extend(messages.iter().map(OsString::from));
    words.push(format!("127.0.0.1:{}", peer.port()).into());
    words.extend(extra.split_whitespace().map(OsString::from));
    let output = fastdrop(words).json().run();
    (output, peer.end().0)
}

/// Sends with our program to a peer of the field, which takes all six messages, each of them once.
fn assert_peer_takes_six(peer: &str, extra: &str) {
    // One that calls the size `max_size` may be of the second generation, and is asked as such
    // first.
    let asked = u64::from(peer.contains("max_size"));
    let (output, printed) = send_to_peer(peer, &["one", "two", "3", "4", "5", "6"], extra);
    let output = output.expect(0).expect_summary(&[("messages", 6), ("acknowledged", 6)]);
    assert_eq!(printed, "one\ntwo\n3\n4\n5\n6\nclosed", "{peer}");
    assert_eq!(output.number("retransmissions"), asked, "{peer}");
}

#[test]
fn servers_of_the_field_are_spoken_to() {
    for (peer, extra) in [
        ("", "--operation-mode step-by-step"),
        ("--naive", "--operation-mode step-by-step"),
        ("--terse --size-name max_size", "--operation-mode step-by-step"),
        ("--session 12", "--operation-mode step-by-step --client-id me"),
        ("--zero-acks", "--operation-mode step-by-step"),
        ("--window 4", "--window 3"),
        ("--window 2 --answer-protocol", "--window 100 --repeat all"),
        ("--window 4 --zero-acks", "--window 4"),
        ("--size 3", "--operation-mode step-by-step"),
        ("hello from the server", "--operation-mode step-by-step"),
        ("--later sr --terse --answer-protocol --window 4 one two", "--window 3"),
        (
            "--later gbn --terse --answer-protocol --window 4 --size-name max_fragment_size one",
            "--repeat all",
        ),
        ("--window 4 one two three", "--operation-mode burst"),
    ] {
        assert_peer_takes_six(peer, extra);
    }
}

/// The first generation's own server: what comes behind its first packet of data is lost with the
/// connection, and said to be; upon data of the second generation's type it closes at once.
#[test]
fn servers_that_take_one_packet_a_connection_get_their_first_message() {
    for (size_name, connections) in [("max_packet_size", 1), ("max_size", 2)] {
        for mode in ["step-by-step", "burst"] {
            let peer = format!("--one-packet --size-name {size_name}");
            let extra = format!("--operation-mode {mode}");
            let expected = format!("one\n{connections} connections");
            let (output, printed) = send_to_peer(&peer, &["one"], &extra);
            output.expect(0).expect_summary(&[("messages", 1), ("acknowledged", 1)]);
            assert_eq!(printed, expected, "{peer} {extra}");
            let (output, printed) = send_to_peer(&peer, &["one", "two"], &extra);
            let output = output.expect(5);
            let summary = output.events.iter().find(|event| event["event"] == "summary").unwrap();
            assert_eq!(summary["acknowledged"], 1, "{peer} {extra}");
            assert_eq!(printed, expected, "{peer} {extra}");
        }
    }
}

#[test]
fn what_a_server_of_the_field_does_not_acknowledge_is_sent_again() {
    let (output, printed) = send_to_peer("--skip 1", &["one", "two"], "--operation-mode step-by-step");
    let output = output.expect(0).expect_summary(&[("messages", 2), ("acknowledged", 2)]);
    assert_eq!((printed.as_str(), output.number("retransmissions")), ("one\ntwo\nclosed", 1));
}

#[test]
fn what_a_server_of_the_field_does_not_take_is_an_error_before_anything_is_sent() {
    let (output, printed) = send_to_peer("--size 3", &["four"], "");
    output.expect(9);
    assert!(["closed", "broken"].contains(&printed.as_str()), "{printed}");
    send_to_peer("--refuse full", &["x"], "").0.expect(9);
    send_to_peer("--die-after 1", &["one", "two"], "--operation-mode step-by-step").0.expect(5);
}

#[test]
fn ours_agree_on_everything_by_either_transport() {
    let listener = FASTDROP.listen("all", &[]);
    let long = "0123456789abcdef".repeat(6000);
    for (number, extra) in [
        "",
        "--udp",
        "--operation-mode step-by-step",
        "--udp --operation-mode step-by-step",
        "--repeat all --window 1",
        "--udp --repeat all --window 32767",
        "--packet-checksum md5",
        "--udp --packet-checksum md5 --max-size 500",
    ]
    .iter()
    .enumerate()
    {
        let (first, last) = (format!("{number} first {long}"), format!("{number} last"));
        let mut words = vec!["--protocol", "cnp", "--stats"];
        words.extend(extra.split_whitespace());
        let output = listener.send(&[&first, "", &last], &words).expect(0);
        let output = output.expect_summary(&[("messages", 3), ("acknowledged", 3)]);
        let summary = output.summary();
        assert!(summary["rtt_ms"].as_f64().unwrap() > 0.0 && summary["goodput"].as_f64().unwrap() > 0.0);
        let event = listener.message(&first);
        let transport = if extra.contains("--udp") { "udp" } else { "tcp" };
        assert_eq!((&event["protocol"], &event["transport"]), (&"cnp".into(), &transport.into()));
        let id = event["session"].as_str().unwrap();
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        assert_eq!(listener.message(&last)["session"], event["session"]);
    }
    // The same port speaks VSTP as well.
    listener.send(&["by vstp"], &["--ack"]).expect(0);
    assert_eq!(listener.message("by vstp")["protocol"], "vstp");
    listener.send(&["by vstp and udp"], &["--ack", "--udp"]).expect(0);
    assert_eq!(listener.message("by vstp and udp")["transport"], "udp");
    listener.end();
}

#[test]
fn lines_of_standard_input_are_messages_in_their_order() {
    let listener = FASTDROP.listen("cnp", &[]);
    let lines: Vec<String> = (0..20_000).map(|n| n.to_string()).collect();
    for (front, extra) in [("tcp-", "--tcp"), ("udp-", "--udp")] {
        let text: String = lines.iter().map(|line| format!("{front}{line}\n")).collect();
        let words = args!["message", "send", "--protocol", "cnp", listener.address.clone(), extra];
        fastdrop(words).stdin(text).json().run().expect(0).expect_summary(&[("acknowledged", 20_000)]);
    }
    listener.process.signal("TERM");
    let output = listener.process.wait().expect(143);
    assert!(came(&output, "tcp-") == lines && came(&output, "udp-") == lines);
}

#[test]
fn flags_of_the_other_protocol_are_refused() {
    let send = |extra: &[&str]| {
        let words = args!["message", "send", "x", "127.0.0.1:9"];
        fastdrop(words.into_iter().chain(extra.iter().map(OsString::from)).collect()).run()
    };
    send(&["--protocol", "cnp", "--header", "a=b"]).expect(2);
    send(&["--protocol", "cnp", "--zstd"]).expect(2);
    send(&["--window", "4"]).expect(2);
    send(&["--stats"]).expect(2);
    send(&["--protocol", "cnp", "--window", "0"]).expect(2);
    send(&["--protocol", "cnp", "--window", "32768"]).expect(2);
    send(&["--protocol", "cnp", "--max-size", "0"]).expect(2);
    fastdrop(args!["message", "listen", "--protocol", "cnp", "--port", "0", "--tls", "--udp"])
        .run()
        .expect(2);
    let hole = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for transport in ["--tcp", "--udp"] {
        fastdrop(args!["message", "send", "--protocol", "cnp", "x", hole, transport]).run().expect(5);
    }
}

#[test]
fn cases_12_and_17_what_is_no_cnp_is_ended_in_words_and_troubles_nobody_else() {
    let listener = FASTDROP.listen("all", &[]);
    let packet = |typ: u8, payload: &[u8]| {
        let mut bytes = (payload.len() as u32).to_be_bytes().to_vec();
        bytes.extend([typ, 0, 0]);
        // The checksum of an empty payload.
        bytes.extend([0xd4, 0x1d, 0x8c, 0xd9]);
        bytes.extend(payload);
        bytes
    };
    for (bytes, expected) in [
        (vec![0, 0xff, 0xff, 0xff, 1], "handshake: "),
        (packet(1, b""), r#"{"status":"bad JSON"#),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), ""),
        (vec![0xff; 100], ""),
    ] {
        let mut stream = TcpStream::connect(&listener.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(&bytes).unwrap();
        let mut said = Vec::new();
        // A reset is an end as well.
        let _ = stream.read_to_end(&mut said);
        let said = String::from_utf8_lossy(said.get(11..).unwrap_or_default()).into_owned();
        assert!(said.starts_with(expected), "{said:?} for {bytes:?}");
    }
    listener.send(&["still here"], &["--protocol", "cnp"]).expect(0);
    listener.message("still here");
    listener.end();
}
