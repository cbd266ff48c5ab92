//! `fastdrop message` with tokens and certificates: who is let in, and what is refused in words.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use fastdrop_messages::vstp::{Frame, FrameType, encode_frame};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use support::{FASTDROP, Listener, args, fastdrop};

/// A file with this text.
fn file(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A certificate that speaks for itself, and its key.
fn certificate(dir: &Path, name: &str) -> (PathBuf, PathBuf) {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let cert = file(dir, &format!("{name}.pem"), &made.cert.pem());
    (cert, file(dir, &format!("{name}.key"), &made.signing_key.serialize_pem()))
}

/// Ways to send that know tokens.
const WAYS: [&[&str]; 4] = [
    &["--protocol", "vstp"],
    &["--protocol", "vstp", "--ack"],
    &["--protocol", "cnp"],
    &["--protocol", "cnp", "--udp"],
];

/// Sends from arguments with a variable set.
fn send_with_variable(listener: &Listener, message: &str, way: &[&str], token: &str) -> support::Output {
    let mut words: Vec<OsString> = args!["message", "send", message, listener.address.clone()];
    words.extend(way.iter().map(OsString::from));
    fastdrop(words).env("FASTDROP_TOKEN", token).json().run()
}

#[test]
fn a_listener_with_tokens_lets_in_who_shows_one_of_them_and_nobody_else() {
    let dir = support::scratch();
    let several = file(dir.path(), "several", "first token\n\nsecond token\r\n");
    let known = file(dir.path(), "known", "second token\nanything else\n");
    let unknown = file(dir.path(), "unknown", "third token");
    for way in WAYS {
        let protocol = way[1];
        let listener = FASTDROP.listen(protocol, &["--token-file", text(&several)]);
        let shows_known = [way, &["--token-file", text(&known)]].concat();
        let shows_unknown = [way, &["--token-file", text(&unknown)]].concat();
        listener.send(&["by a file"], &shows_known).expect(0);
        listener.message("by a file");
        send_with_variable(&listener, "by the variable", way, "first token").expect(0);
        listener.message("by the variable");
        // The flag beats the variable.
        send_with_variable(&listener, "not both", &shows_unknown, "first token").expect(6);
        let refused = listener.send(&["unknown"], &shows_unknown).expect(6);
        assert!(refused.stderr.contains("not known here"), "{}", refused.stderr);
        let refused = listener.send(&["none"], way).expect(6);
        assert!(refused.stderr.contains("token"), "{way:?}: {}", refused.stderr);
        let output = end(listener);
        for secret in ["not both", "unknown", "none", "first token", "second token", "third token"] {
            assert!(!output.contains(&format!("\"{secret}\"")), "{way:?}: {secret}: {output}");
        }
    }
}

/// Ends a listener; all that it has written.
fn end(listener: Listener) -> String {
    listener.process.signal("TERM");
    let output = listener.process.wait().expect(143);
    output.text()
}

#[test]
fn the_token_of_a_listener_may_stand_in_the_variable() {
    let mut words: Vec<OsString> = args!["message", "listen", "--port", "0"];
    words.extend(args!["--protocol", "all"]);
    let process = fastdrop(words).env("FASTDROP_TOKEN", "the token").json().start();
    let port = process.stdout_line(|line| {
        let event: serde_json::Value = serde_json::from_str(line).ok()?;
        // Datagrams of VSTP would let in everybody: there are none.
        assert_ne!(event["transport"], "udp");
        assert_eq!(event["tokens"], "FASTDROP_TOKEN");
        (event["event"] == "listening" && event["protocol"] == "cnp").then(|| event["port"].as_u64())?
    });
    let listener = FASTDROP.listening(process, format!("127.0.0.1:{}", port.unwrap()));
    for way in &WAYS[..3] {
        send_with_variable(&listener, "let in", way, "the token").expect(0);
        send_with_variable(&listener, "not let in", way, "another token").expect(6);
    }
    listener.message("let in");
    assert!(!end(listener).contains("not let in\""));
}

#[test]
fn one_port_with_tls_serves_both_protocols_to_clients_with_a_certificate_and_a_token() {
    let dir = support::scratch();
    let token = file(dir.path(), "token", "the token\n");
    let (cert, key) = certificate(dir.path(), "client");
    let (other_cert, other_key) = certificate(dir.path(), "other");
    let own = ["--tls", "--client-ca", text(&cert), "--token-file", text(&token)];
    let listener = FASTDROP.listen("all", &own);
    let pin = listener.certificate();
    for protocol in ["vstp", "cnp"] {
        let trusts = ["--ack", "--protocol", protocol, "--pin", &pin];
        let shows = |cert: &Path, key: &Path, token: Option<&Path>| {
            let mut words = trusts.map(str::to_owned).to_vec();
            words.extend(["--client-cert", text(cert), "--client-key", text(key)].map(str::to_owned));
            words.extend(token.into_iter().flat_map(|token| ["--token-file".into(), text(token).into()]));
            words
        };
        let send = |message: &str, words: Vec<String>| {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            listener.send(&[message], &words)
        };
        let message = format!("by {protocol}");
        send(&message, shows(&cert, &key, Some(&token))).expect(0);
        let event = listener.message(&message);
        assert_eq!((&event["protocol"], &event["transport"]), (&protocol.into(), &"tcp".into()));
        send("no token", shows(&cert, &key, None)).expect(6);
        send("another certificate", shows(&other_cert, &other_key, Some(&token))).expect(6);
        let mut none = trusts.to_vec();
        none.extend(["--token-file", text(&token)]);
        listener.send(&["no certificate"], &none).expect(6);
    }
    listener.send(&["in the clear"], &["--ack"]).expect(6);
    let output = end(listener);
    for refused in ["no token", "another certificate", "no certificate", "in the clear"] {
        assert!(!output.contains(&format!("\"{refused}\"")), "{refused}: {output}");
    }
}

#[test]
fn what_cannot_be_kept_is_refused_in_words_before_anything_is_sent() {
    let dir = support::scratch();
    let token = file(dir.path(), "token", "the token\n");
    let (cert, key) = certificate(dir.path(), "client");
    let (token, cert, key) = (text(&token), text(&cert), text(&key));
    let pin = "0".repeat(64);
    let listen = [
        (&["--protocol", "vstp", "--udp", "--token-file", token][..], "no tokens by UDP"),
        (&["--protocol", "all", "--udp", "--token-file", token], "no tokens by UDP"),
        (&["--client-ca", cert], "--client-ca needs --tls or --cert"),
        (&["--protocol", "cnp", "--udp", "--client-ca", cert], "--client-ca needs --tls or --cert"),
    ];
    for (words, why) in listen {
        let mut all: Vec<OsString> = args!["message", "listen", "--port", "0"];
        all.extend(words.iter().map(OsString::from));
        let refused = fastdrop(all).run().expect(2);
        assert!(refused.stderr.contains(why), "{words:?}: {}", refused.stderr);
    }
    let send = [
        (&["127.0.0.1:9", "--udp", "--token-file", token][..], "no tokens by UDP"),
        (&["127.0.0.1:9", "--client-cert", cert, "--client-key", key], "--client-cert needs --pin or --ca"),
        (&["127.0.0.1:9", "--client-cert", cert, "--pin", &pin], "--client-key"),
        (&["127.0.0.1:9", "--client-key", key, "--pin", &pin], "--client-cert"),
        (&["127.0.0.1:9", "--udp", "--client-cert", cert, "--client-key", key], "--udp"),
        (&["192.0.2.1:9", "--token-file", token], "inside TLS alone"),
        (&["host.example", "--token-file", token, "--protocol", "cnp"], "inside TLS alone"),
        (&["192.0.2.1:9", "--token-file", token, "--protocol", "cnp", "--udp"], "inside TLS alone"),
    ];
    for (words, why) in send {
        let mut all: Vec<OsString> = args!["message", "send", "x"];
        all.extend(words.iter().map(OsString::from));
        let refused = fastdrop(all).run().expect(2);
        assert!(refused.stderr.contains(why), "{words:?}: {}", refused.stderr);
    }
    // A variable asks for it as well, and is as secret as a file.
    for words in [&["127.0.0.1:9", "--udp"][..], &["192.0.2.1:9"]] {
        let mut all: Vec<OsString> = args!["message", "send", "x"];
        all.extend(words.iter().map(OsString::from));
        let refused = fastdrop(all).env("FASTDROP_TOKEN", "s3cret").run().expect(2);
        assert!(!refused.stderr.contains("s3cret"), "{}", refused.stderr);
    }
}

#[test]
fn files_without_a_token_or_certificate_are_refused_at_either_end() {
    let dir = support::scratch();
    let empty = file(dir.path(), "empty", "\n\n");
    let long = file(dir.path(), "long", &"x".repeat(256));
    let blank = file(dir.path(), "blank", "the token \n");
    let missing = dir.path().join("missing");
    for (path, code) in [(&empty, 6), (&long, 6), (&blank, 6), (&missing, 4)] {
        let path = text(path);
        fastdrop(args!["message", "listen", "--port", "0", "--token-file", path]).run().expect(code);
        for protocol in ["vstp", "cnp"] {
            let words =
                args!["message", "send", "x", "127.0.0.1:9", "--protocol", protocol, "--token-file", path];
            let refused = fastdrop(words).run().expect(code);
            assert!(refused.stderr.contains(path), "{}", refused.stderr);
        }
    }
    let nothing = text(&empty);
    fastdrop(args!["message", "listen", "--port", "0", "--tls", "--client-ca", nothing]).run().expect(6);
    let words = args!["message", "send", "x", "127.0.0.1:9", "--pin", "0".repeat(64)];
    let words = [words, args!["--client-cert", nothing, "--client-key", nothing]].concat();
    fastdrop(words).run().expect(6);
    // An empty variable is not the wish to let in everybody.
    fastdrop(args!["message", "listen", "--port", "0"]).env("FASTDROP_TOKEN", "").run().expect(6);
}

#[test]
fn a_token_file_that_others_can_read_is_warned_of_and_one_that_they_cannot_is_not() {
    use std::os::unix::fs::PermissionsExt;
    let dir = support::scratch();
    let tokens = file(dir.path(), "tokens", "the token\n");
    let listener = FASTDROP.listen("vstp", &[]);
    for (mode, warned) in [(0o600, false), (0o640, true), (0o604, true), (0o644, true)] {
        std::fs::set_permissions(&tokens, std::fs::Permissions::from_mode(mode)).unwrap();
        let sent = listener.send(&["x"], &["--token-file", text(&tokens)]).expect(0);
        assert_eq!(sent.stderr.contains("others can read"), warned, "{mode:o}: {}", sent.stderr);
    }
}

#[test]
fn a_sender_looks_only_at_the_line_with_its_token_and_blanks_in_that_are_refused_in_words() {
    let dir = support::scratch();
    let listener = FASTDROP.listen("vstp", &[]);
    let known = file(dir.path(), "known", &format!("\nthe token\n blank \n{}\n", "x".repeat(256)));
    listener.send(&["x"], &["--token-file", text(&known)]).expect(0);
    for token in [" the token", "the token\t", " "] {
        let path = file(dir.path(), "blanks", token);
        let refused = listener.send(&["x"], &["--token-file", text(&path)]).expect(6);
        assert!(refused.stderr.contains("blanks"), "{token:?}: {}", refused.stderr);
        send_with_variable(&listener, "x", WAYS[0], token).expect(6);
    }
}

#[test]
fn what_a_server_refuses_for_another_reason_than_the_token_keeps_its_exit_code() {
    use std::io::{Read, Write};
    let dir = support::scratch();
    let tokens = file(dir.path(), "tokens", "the token\n");
    for (code, exit) in [("busy", 9), ("unauthorized", 6)] {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let refusing = std::thread::spawn(move || {
            let (mut stream, _) = socket.accept().unwrap();
            let frame = Frame::new(FrameType::Err).with_header("code", code).with_header("reason", "no");
            stream.write_all(&encode_frame(&frame).unwrap()).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let words = args!["message", "send", "x", address, "--token-file", text(&tokens)];
        fastdrop(words).run().expect(exit);
        refusing.join().unwrap();
    }
}
