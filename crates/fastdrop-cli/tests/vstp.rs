//! `fastdrop message` by VSTP, and peers as they are in the field.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::ffi::OsString;
use support::{FASTDROP, Output, Peer, args, fastdrop};

/// The letters of which the messages consist that a listener has printed, and how often.
fn came(output: &Output) -> Vec<(String, usize)> {
    let messages = output.events.iter().filter(|event| event["event"] == "message");
    let letters = messages.map(|event| {
        assert_eq!(event["headers"]["k"], "v", "{event}");
        let text = event["text"].as_str().unwrap();
        let letter: String = text.chars().take(1).collect();
        assert!(text.chars().all(|other| letter.starts_with(other)), "{letter}");
        (letter, text.len())
    });
    letters.collect()
}

fn words(text: &str) -> impl Iterator<Item = OsString> {
    text.split_whitespace().map(OsString::from)
}

#[test]
fn senders_of_0_2_are_understood_by_either_transport_each_message_once() {
    for (protocol, transport) in [("vstp", "--udp"), ("vstp", "--tcp"), ("all", "")] {
        let listener = FASTDROP.listen(protocol, words_of(transport));
        let mut expected = Vec::new();
        for (n, times) in (0_u8..).zip([1, 1100, 1190, 1200, 2400, 5000, 20_000, 50_000]) {
            for (m, extra) in ["", "--ack", "--ack --repeat", "--ack --lose 1"].into_iter().enumerate() {
                let by_tcp = transport == "--tcp" || (transport.is_empty() && m % 2 == 0);
                if by_tcp && !extra.is_empty() || extra.contains("--lose") && times % 1000 != 0 {
                    continue;
                }
                let letter = char::from(b'A' + n).to_string();
                let port = listener.port().to_string();
                let mut args = args!["send", port, &letter, "--times", times.to_string()];
                args.extend(words(if by_tcp { "--tcp" } else { extra }));
                let printed = Peer::start("vstp.py", args).finish();
                assert_eq!(printed, "ok", "{transport} {extra} {times}");
                expected.push((letter, times));
            }
        }
        // What comes before an acknowledged datagram has been read.
        if transport != "--tcp" {
            let args = args!["send", listener.port().to_string(), "Z", "--ack"];
            assert_eq!(Peer::start("vstp.py", args).finish(), "ok");
            expected.push(("Z".into(), 1));
        }
        listener.process.signal("TERM");
        let mut all = came(&listener.process.wait().expect(143));
        // What came by another transport may be printed earlier.
        all.sort();
        assert_eq!(all, expected, "{protocol} {transport}");
    }
}

fn words_of(flag: &'static str) -> &'static [&'static str] {
    match flag {
        "--udp" => &["--udp"],
        "--tcp" => &["--tcp"],
        _ => &[],
    }
}

#[test]
fn senders_of_0_2_get_their_echoes() {
    let listener = FASTDROP.listen("vstp", &["--udp", "--echo"]);
    for times in [1, 1190, 2300, 50_000] {
        let args =
            args!["send", listener.port().to_string(), "a", "b", "--times", times.to_string(), "--echo"];
        assert_eq!(Peer::start("vstp.py", args).finish(), "ok", "{times}");
    }
    listener.end();
}

/// Sends messages of these lengths with our program to a receiver of 0.2, and gives back what it
/// printed after its port.
fn send_to_peer(peer: &str, lens: &[usize], extra: &str) -> (Output, String) {
    let mut peer = Peer::start("vstp.py", args!["serve"].into_iter().chain(words(peer)).collect());
    let address = format!("127.0.0.1:{}", peer.port());
    let send = |message: String, extra: &str| {
        let mut args: Vec<OsString> = args!["message", "send", "--header", "k=v", message, &address];
        args.extend(words(extra));
        fastdrop(args).json().run()
    };
    let mut output = None;
    for len in lens {
        output = Some(send("x".repeat(*len), extra));
    }
    if extra.contains("--udp") {
        send("end".into(), "--udp").expect(0);
    }
    (output.unwrap(), peer.end().0)
}

#[test]
fn receivers_of_0_2_understand_what_we_send() {
    let lens = [1, 1000, 1200, 5000, 50_000, 100_000];
    let shown = |lens: &[usize]| lens.iter().map(|len| format!("{len} x v\n")).collect::<String>();
    for extra in ["--udp", "--udp --ack"] {
        let (output, printed) = send_to_peer("", &lens, extra);
        output.expect(0);
        assert_eq!(printed, shown(&lens) + "3 e v", "{extra}");
    }
    // An acknowledgement that was lost is asked for again.
    let (output, printed) = send_to_peer("--deaf 1", &[3000], "--udp --ack");
    output.expect(0).expect_summary(&[("acknowledged", 1)]);
    assert_eq!(printed, shown(&[3000, 3000]) + "3 e v");
    for len in lens {
        let (output, printed) = send_to_peer("--tcp", &[len], "--tcp");
        output.expect(0);
        assert_eq!(printed, shown(&[len]).trim_end());
    }
}

/// The setting and the flag with which more would be taken.
const SETTINGS: [&str; 2] = ["--max-size", "TcpConfig::frame_max"];

#[test]
fn a_frame_that_is_too_large_names_the_settings_at_either_end() {
    let dir = support::scratch();
    let file = dir.path().join("large");
    std::fs::write(&file, vec![b'x'; 60_000_000]).unwrap();
    let send = |address: &str, extra: &str| {
        let mut args: Vec<OsString> = args!["message", "send", address, "--whole", "--file", file.clone()];
        args.extend(words(extra));
        fastdrop(args).json().run()
    };
    let said = |output: &Output| {
        let error = output.events.iter().find(|event| event["event"] == "error").expect("an error");
        error["message"].as_str().unwrap().to_owned()
    };
    let listener = FASTDROP.listen("vstp", &[]);
    for extra in ["", "--ack"] {
        let said = said(&send(&listener.address, extra).expect(9));
        assert!(SETTINGS.iter().all(|setting| said.contains(setting)), "{said}");
    }
    listener.process.signal("TERM");
    let output = listener.process.wait().expect(143);
    assert!(SETTINGS.iter().all(|setting| output.stderr.contains(setting)), "{}", output.stderr);

    let small = FASTDROP.listen("vstp", &["--udp", "--max-size", "1M"]);
    let said_by_udp = said(&send(&small.address, "--udp --ack").expect(9));
    let of_udp = ["--max-size", "ReassemblyLimits::message_bytes_max"];
    assert!(of_udp.iter().all(|setting| said_by_udp.contains(setting)), "{said_by_udp}");
    small.process.signal("TERM");
    let output = small.process.wait().expect(143);
    assert!(of_udp.iter().all(|setting| output.stderr.contains(setting)), "{}", output.stderr);

    // By UDP one of 0.2 takes up to 255 fragments.
    let mut peer = Peer::start("vstp.py", args!["serve"]);
    let said_of_old = said(&send(&format!("127.0.0.1:{}", peer.port()), "--udp").expect(9));
    assert!(said_of_old.contains("without --udp"), "{said_of_old}");

    // By TCP it says nothing.
    let mut peer = Peer::start("vstp.py", args!["serve", "--tcp"]);
    let output = send(&format!("127.0.0.1:{}", peer.port()), "").expect(5);
    let said = said(&output);
    assert!(SETTINGS.iter().all(|setting| said.contains(setting)), "{said}");

    // With the flag it is taken, and its echo is not too large for its sender.
    let large = FASTDROP.listen("vstp", &["--max-size", "64M", "--echo"]);
    for extra in ["", "--ack"] {
        send(&large.address, extra).expect(0);
    }
    large.end();
}
