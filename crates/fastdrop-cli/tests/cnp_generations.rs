//! `fastdrop message --protocol cnp` and programs of the second, third and fourth published
//! generation, both ways.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::ffi::OsString;
use support::{FASTDROP, Output, Peer, args, fastdrop};

const NAMES: [(&str, &str); 3] = [("2", "second"), ("3", "third"), ("4", "fourth")];

fn name(generation: &str) -> &str {
    NAMES.iter().find(|(number, _)| *number == generation).unwrap().1
}

/// Messages of every kind: shorter than a fragment, of exactly one or several, of long characters.
fn messages(front: &str) -> Vec<String> {
    let long = "0123456789".repeat(30);
    ["a", "abc", "abcdef", "h\u{e4}\u{df}\u{20ac}\u{1f980}", &long, "end"]
        .map(|text| format!("{front}{text}"))
        .to_vec()
}

fn words<'a>(first: &[&'a str], messages: &'a [String], options: &'a str) -> Vec<OsString> {
    let words =
        first.iter().copied().chain(messages.iter().map(String::as_str)).chain(options.split_whitespace());
    words.map(OsString::from).collect()
}

/// Generations of clients, and what they do.
const CLIENTS: [(&str, &str); 14] = [
    ("2", ""),
    ("2", "--protocol sr"),
    ("2", "--mode burst --window 3 --first 65534"),
    ("3", ""),
    ("3", "--characters 1"),
    ("3", "--characters 5 --window 3 --protocol sr"),
    ("3", "--characters 4 --window 4"),
    ("3", "--characters 4000"),
    ("3", "--rude"),
    ("4", ""),
    ("4", "--characters 5 --window 3 --protocol sr"),
    ("4", "--characters 40 --window 2 --loss 0.1 --seed 3"),
    ("4", "--characters 40 --window 3 --protocol sr --loss 0.1 --seed 4"),
    ("4", "--rude"),
];

#[test]
fn clients_of_every_generation_are_understood_without_being_told() {
    let listener = FASTDROP.listen("all", &[]);
    let port = listener.port().to_string();
    for (number, (generation, options)) in CLIENTS.iter().enumerate() {
        let sent = messages(&format!("{number}-"));
        let peer = Peer::start("cnp_generations.py", words(&["send", generation, &port], &sent, options));
        assert_eq!(peer.finish(), "ok", "{generation} {options}");
        for message in &sent {
            let event = listener.message(message);
            assert_eq!(event["generation"], name(generation), "{generation} {options}");
        }
    }
    listener.send(&["of ours"], &["--protocol", "cnp"]).expect(0);
    assert_eq!(listener.message("of ours")["generation"], "fastdrop");
    listener.process.signal("TERM");
    let output = listener.process.wait().expect(143);
    let texts = output.events.iter().filter(|event| event["event"] == "message");
    let texts: Vec<String> = texts.map(|event| event["text"].as_str().unwrap().to_owned()).collect();
    let expected = (0..CLIENTS.len()).flat_map(|number| messages(&format!("{number}-")));
    assert_eq!(texts, expected.chain(["of ours".into()]).collect::<Vec<_>>());
}

#[test]
fn clients_of_every_generation_get_their_echoes() {
    // So long that a peer that is kept from the processor has read the acknowledgement before.
    let listener = FASTDROP.listen("cnp", &["--echo", "--tcp", "--packet-pause", "200ms"]);
    let port = listener.port().to_string();
    for (generation, options) in
        [("2", ""), ("3", "--characters 5 --expect-full"), ("3", "--characters 90"), ("4", "")]
    {
        let sent: Vec<String> = ["one", "zw\u{f6}lf", "three"].map(str::to_owned).to_vec();
        let options = format!("{options} --expect 3 --stall 0.1");
        let words = words(&["send", generation, &port], &sent, &options);
        let printed = unless_stalled(|| Peer::start("cnp_generations.py", words.clone()).end().0);
        assert_eq!(printed, format!("{}\nok", sent.join("\n")), "{generation} {options}");
    }
    listener.end();
}

/// Sessions in a row in which a peer may have been kept from the processor.
const STALLS_MAX: usize = 5;

/// Runs a session again only if the peer itself says that it was kept from the processor, and gives
/// back what it printed without that.
fn unless_stalled(session: impl FnMut() -> String) -> String {
    let mut runs = std::iter::repeat_with(session).take(STALLS_MAX);
    let whole = runs.find(|printed| !printed.ends_with(STALLED));
    whole.expect("a session in which the peer was not kept from the processor")
}

const STALLED: &str = "\nstalled";

fn send_to_peer(peer: &str, messages: &[String], options: &str) -> (Output, String) {
    // Half of the silence after which something is sent again.
    let serve = words(&["serve", "--stall", "0.5"], &[], peer);
    let mut peer = Peer::start("cnp_generations.py", serve);
    let address = format!("127.0.0.1:{}", peer.port());
    let send = words(&["message", "send", "--protocol", "cnp", "--stats"], messages, "");
    let send = [send, words(&[&address], &[], options)].concat();
    let output = fastdrop(send).json().run();
    (output, peer.end().0)
}

/// Sends to a peer, which prints each message whole, once, and in order.
fn assert_arrives(peer: &str, sent: &[String], options: &str, check: impl Fn(&Output)) {
    let mut output = None;
    let printed = unless_stalled(|| {
        let (last, printed) = send_to_peer(peer, sent, options);
        output = Some(last);
        printed
    });
    let count = sent.len() as u64;
    let output = output.unwrap().expect(0).expect_summary(&[("messages", count), ("acknowledged", count)]);
    assert_eq!(printed, format!("{}\nclosed", sent.join("\n")), "{peer} {options}");
    let generation = peer.split_whitespace().next().unwrap();
    assert_eq!(output.summary()["generation"], name(generation), "{peer} {options}");
    check(&output);
}

#[test]
fn servers_of_every_generation_are_spoken_to_without_being_told() {
    for (peer, options) in [
        ("2", ""),
        ("2", "--operation-mode step-by-step"),
        ("2 --window 4", ""),
        ("3", ""),
        ("3 --characters 100 --window 4", "--window 3"),
        ("3 --strict --characters 9", ""),
        ("3", "--operation-mode step-by-step"),
        ("4", ""),
        ("4 --characters 50 --protocol sr", "--operation-mode step-by-step"),
        ("4 --silent", ""),
        ("4 --characters 40 --loss 0.1 --seed 5", "--repeat all"),
    ] {
        assert_arrives(peer, &messages(""), options, |_| ());
    }
}

/// `message send` prints nothing of what a listener says: it acknowledges and drops it, so that
/// nothing gets stuck. The peer ends its session only after its own messages are acknowledged.
#[test]
fn what_those_servers_send_is_acknowledged_and_dropped_meanwhile() {
    for peer in ["2 hello there", "3 hello there", "4 hello there"] {
        let sent = messages("");
        assert_arrives(peer, &sent, "", |output| {
            let shown = output.events.iter().find(|event| event["event"] == "message");
            assert_eq!(shown, None, "{peer}");
        });
    }
}

#[test]
fn a_message_that_is_no_text_is_refused_where_text_alone_is_taken() {
    use std::os::unix::ffi::OsStringExt;
    for generation in ["3", "4"] {
        let mut peer = Peer::start("cnp_generations.py", args!["serve", generation]);
        let address = format!("127.0.0.1:{}", peer.port());
        let mut words = args!["message", "send", "--protocol", "cnp"];
        words.extend([OsString::from_vec(vec![0xff, 0xfe]), address.into()]);
        let output = fastdrop(words).run().expect(9);
        assert!(output.stderr.contains("no text"), "{}", output.stderr);
        peer.end();
    }
}
