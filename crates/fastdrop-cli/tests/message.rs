//! `fastdrop message`: the real program at both ends, and sockets of our own.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use fastdrop_messages::vstp::{Flags, Frame, FrameType, VstpTcpClient, VstpUdpClient};
use serde_json::Value;
use std::ffi::OsString;
use std::io::{BufRead, Read};
use std::time::{Duration, Instant};
use support::{FASTDROP, Listener, Output, args, fastdrop};

#[test]
fn messages_arrive_by_either_transport_with_their_headers() {
    let listener = FASTDROP.listen("vstp", &[]);
    for (transport, extra) in
        [("tcp", &["--tcp"][..]), ("udp", &["--udp"]), ("tcp", &["--ack"]), ("udp", &["--udp", "--ack"])]
    {
        let text = format!("over {}", extra.join(" "));
        let mut extra = extra.to_vec();
        extra.extend(["--header", "k=v", "--header", "empty="]);
        listener.send(&[&text, "second"], &extra).expect(0).expect_summary(&[("messages", 2)]);
        let event = listener.message(&text);
        assert_eq!((&event["protocol"], &event["transport"]), (&"vstp".into(), &transport.into()));
        assert_eq!((&event["headers"]["k"], &event["headers"]["empty"]), (&"v".into(), &"".into()));
        assert!(event["session"].is_string());
    }
    listener.end();
}

#[test]
fn lines_of_a_file_or_of_standard_input_are_messages() {
    let listener = FASTDROP.listen("vstp", &["--tcp"]);
    let words: Vec<OsString> = args!["message", "send", listener.address.clone(), "--ack"];
    let output = fastdrop(words).stdin("one\ntwo\r\n\nthree").json().run().expect(0);
    output.expect_summary(&[("messages", 4), ("acknowledged", 4)]);
    for text in ["one", "two", "", "three"] {
        listener.message(text);
    }
    let dir = support::scratch();
    let file = dir.path().join("messages");
    std::fs::write(&file, "four\nfive\n").unwrap();
    let file = file.to_str().unwrap();
    listener.send(&[], &["--file", file]).expect(0).expect_summary(&[("messages", 2)]);
    listener.message("five");
    listener.send(&[], &["--file", file, "--whole", "--zstd"]).expect(0).expect_summary(&[("messages", 1)]);
    listener.message("four\nfive\n");
    listener.send(&[], &["--file", "/nonexistent/file"]).expect(4);
    listener.end();
}

#[test]
fn a_large_message_goes_by_udp_in_fragments() {
    let listener = FASTDROP.listen("vstp", &["--udp"]);
    let dir = support::scratch();
    let file = dir.path().join("large");
    let text = "0123456789abcdef".repeat(300_000);
    std::fs::write(&file, &text).unwrap();
    listener.send(&[], &["--udp", "--ack", "--file", file.to_str().unwrap(), "--whole"]).expect(0);
    listener.message(&text);
    listener.end();
}

/// Sends something too large several times, and sees each time that it is refused in words.
fn is_refused(listener: &Listener, len: usize, options: &str, words: &str) {
    let dir = support::scratch();
    let file = dir.path().join("large");
    std::fs::write(&file, vec![b'x'; len]).unwrap();
    let mut extra: Vec<&str> = vec!["--whole", "--file", file.to_str().unwrap()];
    extra.extend(options.split_whitespace());
    for round in 0..5 {
        let output = listener.send(&[], &extra).expect(9);
        let said = output.events.iter().find(|event| event["event"] == "error").expect("an error");
        let said = said["message"].as_str().unwrap();
        assert!(said.contains(words), "{len} bytes, {options}, round {round}: {said}");
        let names_flag = said.contains("--max-size") || options.contains("cnp");
        assert!(names_flag, "{len} bytes, {options}, round {round}: {said}");
    }
}

#[test]
fn what_is_larger_than_the_listener_takes_is_refused_in_words_every_time() {
    let small = FASTDROP.listen("all", &["--max-size", "10K", "--max-message", "10K"]);
    let usual = FASTDROP.listen("all", &[]);
    for options in ["", "--ack", "--tcp --ack --header k=v"] {
        is_refused(&small, 20_000, options, "at most 10240 are taken");
        is_refused(&usual, 9_000_000, options, "at most 8388608 are taken");
        is_refused(&usual, 60_000_000, options, "at most 8388608 are taken");
    }
    // Small on the way, and large when it is decompressed.
    is_refused(&small, 20_000, "--zstd --ack", "at most 10240 are taken");
    is_refused(&small, 20_000, "--zstd", "at most 10240 are taken");
    is_refused(&small, 20_000, "--zstd --ack --udp", "a larger message than it takes");
    for options in ["--udp --ack", "--udp"] {
        is_refused(&small, 20_000, options, "a larger message than it takes");
        is_refused(&small, 10_241, options, "a larger message than it takes");
    }
    for options in ["--protocol cnp", "--protocol cnp --udp", "--protocol cnp --operation-mode step-by-step"]
    {
        is_refused(
            &small,
            20_000,
            options,
            "where the peer takes 10240; `fastdrop message listen` takes more with --max-message",
        );
    }
    let tiny = FASTDROP.listen("vstp", &["--max-size", "100"]);
    is_refused(&tiny, 500, "--udp --ack", "a larger message than it takes");
    let encrypted = FASTDROP.listen("vstp", &["--tls"]);
    let pin = encrypted.certificate();
    for options in ["", "--ack"] {
        is_refused(&encrypted, 9_000_000, &format!("--pin {pin} {options}"), "at most 8388608 are taken");
    }
    // What is as large as it may be is taken, and nobody else is troubled.
    let largest = "x".repeat(10_240);
    small.send(&[&largest], &["--udp", "--ack"]).expect(0);
    small.send(&[&largest], &["--protocol", "cnp"]).expect(0);
    small.send(&["short"], &["--ack"]).expect(0);
    small.message("short");
    for listener in [small, usual, tiny, encrypted] {
        listener.end();
    }
}

#[test]
fn tls_is_taken_from_the_listener_that_is_trusted_and_from_nobody_else() {
    // Datagrams would not be encrypted: nobody listens for them, and who asks for both is refused.
    fastdrop(args!["message", "listen", "--port", "0", "--tls", "--udp"]).run().expect(2);
    // What comes in plain text is refused in words, and the exit code says so.
    for (protocol, in_the_clear) in [("vstp", 6), ("cnp", 9)] {
        let listener = FASTDROP.listen(protocol, &["--tls"]);
        let fingerprint = listener.certificate();
        listener.send(&["secret"], &["--protocol", protocol, "--pin", &fingerprint, "--ack"]).expect(0);
        listener.message("secret");
        listener.send(&["to somebody else"], &["--protocol", protocol, "--pin", &"0".repeat(64)]).expect(6);
        listener.send(&["in the clear"], &["--protocol", protocol, "--ack"]).expect(in_the_clear);
        listener.send(&["in the clear"], &["--protocol", protocol, "--ack", "--udp"]).expect(5);
        listener.end();
    }
}

/// Case 129: acknowledgements by UDP leave from the address that was asked, also where that is not
/// the first of the machine.
#[test]
fn case_129_a_listener_on_all_addresses_is_reached_at_each_of_them() {
    for (bind, hosts) in [("0.0.0.0", &["127.0.0.1", "127.0.0.2"][..]), ("::", &["127.0.0.2", "[::1]"])] {
        let listener = FASTDROP.listen_on(bind, "all", &[]);
        for (host, options) in
            hosts.iter().flat_map(|host| ["--udp --ack", "--protocol cnp --udp", "--ack"].map(|o| (host, o)))
        {
            let to = format!("{host}:{}", listener.port());
            let mut words: Vec<OsString> = args!["message", "send", format!("{host} {options}"), to];
            words.extend(options.split(' ').map(OsString::from));
            fastdrop(words).json().run().expect(0).expect_summary(&[("acknowledged", 1)]);
            listener.message(&format!("{host} {options}"));
        }
        listener.end();
    }
}

#[test]
fn nobody_there_is_worth_a_retry() {
    let hole = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = hole.local_addr().unwrap().to_string();
    drop(hole);
    fastdrop(args!["message", "send", "x", address]).json().run().expect(5);
    for bound in ["127.0.0.1:0", "[::1]:0"] {
        let closed = std::net::UdpSocket::bind(bound).unwrap().local_addr().unwrap().to_string();
        for options in ["--udp", "--udp --ack", "--udp --protocol cnp"] {
            let mut words: Vec<OsString> = args!["message", "send", "x", closed.clone()];
            words.extend(options.split(' ').map(OsString::from));
            let before = Instant::now();
            let output = fastdrop(words).json().run().expect(5);
            assert!(output.stderr.contains("nobody listens"), "{options}: {output}");
            assert!(before.elapsed() < Duration::from_secs(5), "{options}: not at once");
        }
    }
    fastdrop(args!["message", "send", "x", "127.0.0.1:9/path"]).json().run().expect(2);
    fastdrop(args!["message", "send", "x", "127.0.0.1:9", "--header", "no-value"]).run().expect(2);
}

#[test]
fn a_message_cannot_write_to_the_terminal() {
    let process = fastdrop(args!["message", "listen", "--tcp", "--port", "0"]).start();
    let port = process.stdout_line(|line| {
        line.strip_prefix("listening on 127.0.0.1:")?.split(' ').next()?.parse::<u16>().ok()
    });
    let listener = FASTDROP.listening(process, format!("127.0.0.1:{}", port.expect("a port")));
    listener.send(&["bell \x07 and \x1b[31m red"], &["--ack"]).expect(0);
    let line = listener.process.stdout_line(|line| line.contains("bell").then(|| line.to_owned())).unwrap();
    assert!(!line.contains(['\x07', '\x1b']), "{line:?}");
    listener.end();
}

#[test]
fn a_listener_echoes_and_keeps_what_is_no_text() {
    let listener = FASTDROP.listen("vstp", &["--echo"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let frame = Frame::new(FrameType::Data).with_header("n", "1").with_payload(vec![0xff, 0, 1]);
        let mut client = VstpTcpClient::connect(&listener.address).await.unwrap();
        client.send_hello().await.unwrap();
        assert_eq!(client.recv().await.unwrap().unwrap().typ, FrameType::Welcome);
        client.send(frame.clone()).await.unwrap();
        assert_eq!(client.recv().await.unwrap(), Some(frame.clone()));
        client.send(Frame::new(FrameType::Ping).with_payload(vec![7])).await.unwrap();
        let pong = client.recv().await.unwrap().unwrap();
        assert_eq!((pong.typ, pong.payload), (FrameType::Pong, vec![7]));
        client.close().await.unwrap();

        let mut client = VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
        let to = listener.address.parse().unwrap();
        client.send_with_ack(frame.clone(), to).await.unwrap();
        assert_eq!(client.recv().await.unwrap().0, frame);
    });
    let kept = listener.process.stdout_line(|line| {
        let event: Value = serde_json::from_str(line).ok()?;
        event["base64"].as_str().map(str::to_owned)
    });
    assert_eq!(kept.as_deref(), Some("/wAB"));
    listener.end();
}

/// One datagram with a made-up source is answered with at most three times its bytes.
#[test]
fn case_70_an_address_that_proves_nothing_gets_little() {
    let listener = FASTDROP.listen("vstp", &["--udp", "--echo"]);
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(&listener.address).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(600))).unwrap();
    for frame in [
        Frame::new(FrameType::Hello),
        Frame::new(FrameType::Ping),
        Frame::new(FrameType::Data).with_payload(b"x".to_vec()),
        Frame::new(FrameType::Data).with_flag(Flags::REQ_ACK).with_header("msg-id", "1"),
        Frame::new(FrameType::Data)
            .with_flag(Flags::FRAG)
            .with_header("frag-id", "01")
            .with_header("frag-index", "0")
            .with_header("frag-total", "2"),
        Frame::new(FrameType::Data)
            .with_flag(Flags::FRAG | Flags::REQ_ACK)
            .with_header("frag-id", "077777777777")
            .with_header("frag-index", "1")
            .with_header("frag-total", "100000")
            .with_header("msg-id", "9"),
    ] {
        let datagram = fastdrop_messages::vstp::encode_frame(&frame).unwrap();
        socket.send(&datagram).unwrap();
        let (mut back, mut buffer) = (0, [0; 2048]);
        while let Ok(len) = socket.recv(&mut buffer) {
            back += len;
        }
        assert!(back <= 3 * datagram.len(), "{back} bytes for {}: {frame:?}", datagram.len());
    }
    listener.end();
}

#[test]
fn case_96_a_client_that_breaks_off_inside_a_frame_is_that_clients_affair() {
    use std::io::Write;
    let listener = FASTDROP.listen("vstp", &["--tcp"]);
    let frame = Frame::new(FrameType::Data).with_payload(vec![b'y'; 1000]);
    let bytes = fastdrop_messages::vstp::encode_frame(&frame).unwrap();
    let mut broken = std::net::TcpStream::connect(&listener.address).unwrap();
    broken.write_all(&bytes[..500]).unwrap();
    drop(broken);
    let mut wrong = std::net::TcpStream::connect(&listener.address).unwrap();
    let mut flipped = bytes.to_vec();
    flipped[600] ^= 1;
    wrong.write_all(&flipped).unwrap();
    let mut said = Vec::new();
    wrong.read_to_end(&mut said).unwrap();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(said.starts_with("VT\x01\x08") && said.contains("crc"), "an ERR that says why: {said:?}");
    listener.send(&["still here"], &["--ack"]).expect(0);
    listener.message("still here");
    listener.end();
}

#[test]
fn the_configuration_has_a_table_for_each_command_of_messages() {
    let dir = support::scratch();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, "[message.listen]\nport = 0\ntcp = true\n").unwrap();
    let process = fastdrop(args!["message", "listen", "--config", file]).json().start();
    let line = process.stdout_line(|line| line.contains("listening").then(|| line.to_owned())).unwrap();
    assert!(!line.contains("6969"), "{line}");
    process.signal("TERM");
    process.wait().expect(143);
    std::fs::write(&file, "[message.listen]\nports = 0\n").unwrap();
    fastdrop(args!["message", "listen", "--config", file]).run().expect(2);
}

/// Sends by everything that there is to an address and back.
fn exchanges_on(bind: &str) {
    let listener = FASTDROP.listen_on(bind, "all", &[]);
    for (number, extra) in
        ["--ack", "--udp --ack", "--protocol cnp", "--protocol cnp --udp"].iter().enumerate()
    {
        let text = format!("{number} to {bind}");
        listener.send(&[&text], &extra.split(' ').collect::<Vec<_>>()).expect(0);
        listener.message(&text);
    }
    listener.end();
    let listener = FASTDROP.listen_on(bind, "vstp", &["--tls"]);
    listener.send(&["secret"], &["--pin", &listener.certificate(), "--ack"]).expect(0);
    listener.end();
}

#[test]
fn ipv6_addresses_may_have_zones() {
    for bind in ["[::1]", "[::1%lo]", "[::1%1]"] {
        exchanges_on(bind);
    }
    fastdrop(args!["message", "listen", "--port", "0", "--bind", "fe80::1%nowhere"]).run().expect(2);
    fastdrop(args!["message", "listen", "--port", "0", "--bind", "fe80::1"]).run().expect(2);
    for target in ["[fe80::1%nowhere]", "[fe80::1]:6969", "[::1%nowhere]"] {
        fastdrop(args!["message", "send", "x", target]).run().expect(2);
    }
}

#[test]
#[ignore = "needs an interface with a link-local IPv6 address"]
fn a_link_local_address_is_reached_through_its_zone() {
    let table = std::fs::read_to_string("/proc/net/if_inet6").unwrap();
    let line = table.lines().find(|line| line.starts_with("fe80")).expect("a link-local address");
    let fields: Vec<&str> = line.split_whitespace().collect();
    let bits = u128::from_str_radix(fields[0], 16).unwrap();
    let index = u32::from_str_radix(fields[1], 16).unwrap();
    let ip = std::net::Ipv6Addr::from(bits);
    exchanges_on(&format!("[{ip}%{}]", fields[5]));
    exchanges_on(&format!("[{ip}%{index}]"));
}

/// All ways to send a message and have it acknowledged.
const ACKNOWLEDGED: [&str; 6] = [
    "--ack",
    "--udp --ack",
    "--protocol cnp",
    "--protocol cnp --udp",
    "--protocol cnp --operation-mode step-by-step",
    "--protocol cnp --udp --repeat all",
];

/// A listener that prints into a pipe, and its end of that.
fn listen_into_pipe(extra: &[&str]) -> (support::Running, std::io::BufReader<std::io::PipeReader>, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut words: Vec<OsString> = args!["message", "listen", "--port", "0", "--quiet", "--json"];
    words.extend(extra.iter().map(OsString::from));
    let process = fastdrop(words).stdout_to(writer).start();
    let mut reader = std::io::BufReader::new(reader);
    let mut port = None;
    for _ in 0..4 {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        port = serde_json::from_str::<Value>(&line).unwrap()["port"].as_u64();
    }
    (process, reader, format!("127.0.0.1:{}", port.expect("a port")))
}

fn start_sending(message: &str, address: &str, options: &str) -> support::Running {
    let mut words: Vec<OsString> = args!["message", "send", message, address];
    words.extend(options.split_whitespace().map(OsString::from));
    fastdrop(words).start()
}

/// The end of a message that its listener had begun to handle and did not take: that is the last
/// thing that it says.
#[track_caller]
fn expect_refused(output: Output, options: &str) {
    let words = ["could not be written out", "could not be handled", "was dropped before it was handled"];
    assert!(output.code() == 9, "{options}: not refused: {output}");
    assert!(words.iter().any(|words| output.stderr.contains(words)), "{options}: {output}");
}

/// The space for the output ends within a message.
#[test]
fn case_110_a_listener_that_cannot_write_acknowledges_nothing_more_and_says_why() {
    for options in ACKNOWLEDGED {
        for json in ["--quiet", "--json"] {
            let dir = support::scratch();
            let file = dir.path().join("output");
            let limited = args!["sh", "-c", "ulimit -f 8; exec \"$@\"", "sh"];
            // The port is not printed where events are not.
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let address = format!("127.0.0.1:{port}");
            let words = args!["message", "listen", "--port", port.to_string(), json];
            let listener =
                fastdrop(words).wrapper(limited).stdout_to(std::fs::File::create(&file).unwrap()).start();
            let message = "x".repeat(700);
            let mut acknowledged = 0;
            let refused = loop {
                let output = start_sending(&message, &address, options).wait();
                match output.code() {
                    0 => acknowledged += 1,
                    // It does not listen yet.
                    5 if acknowledged == 0 && output.stderr.contains("refused") => {}
                    5 if acknowledged == 0 && output.stderr.contains("nobody") => {}
                    _ => break output,
                }
                assert!(acknowledged < 100, "{options}: the output has no end");
            };
            expect_refused(refused, options);
            let output = listener.wait().expect(1);
            assert!(
                output.stderr.contains("the output cannot be written: File too large"),
                "{}",
                output.stderr
            );
            let written = std::fs::read_to_string(&file).unwrap();
            let whole = written
                .lines()
                .filter(|line| line.contains(&message))
                .filter(|line| json == "--quiet" || serde_json::from_str::<Value>(line).is_ok());
            assert_eq!(whole.count(), acknowledged, "{options} {json}");
        }
    }
}

#[test]
fn case_110_a_listener_whose_reader_goes_ends_quietly_and_acknowledges_nothing() {
    for options in ACKNOWLEDGED {
        let (listener, reader, address) = listen_into_pipe(&[]);
        drop(reader);
        start_sending("to nobody", &address, options).wait().expect(5);
        let output = listener.wait().expect(141);
        assert_eq!(output.stderr, "", "{options}");
    }
    // With words, so far as standard output takes any.
    fastdrop(args!["message", "listen", "--port", "0"]).stdout_full().run().expect(1);
    fastdrop(args!["message", "listen", "--port", "0", "--json"]).stdout_full().run().expect(1);
}

/// Waits until a pipe takes no more.
fn wait_until_full(reader: &std::io::BufReader<std::io::PipeReader>) {
    support::eventually("a full pipe", || {
        (rustix::io::ioctl_fionread(reader.get_ref()).unwrap() >= 60_000).then_some(())
    });
}

#[test]
fn case_110_an_output_that_nobody_reads_holds_senders_back_and_a_signal_ends_the_listener() {
    let message = "x".repeat(100_000);
    for options in ACKNOWLEDGED {
        let (listener, mut reader, address) = listen_into_pipe(&[]);
        let mut sender = start_sending(&message, &address, options);
        wait_until_full(&reader);
        assert!(sender.is_running(), "{options}: acknowledged, and not written");
        // When it is read, it arrives, once.
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let event: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(event["text"], *message, "{options}");
        sender.wait().expect(0);
        let mut sender = start_sending(&message, &address, options);
        wait_until_full(&reader);
        assert!(sender.is_running(), "{options}: acknowledged, and not written");
        listener.signal("TERM");
        listener.wait().expect(143);
        expect_refused(sender.wait(), options);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert!(!rest.contains('\n'), "{options}: it came twice");
    }
}
