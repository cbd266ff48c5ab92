//! Signals that the program was started to ignore.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::ffi::OsString;
use support::*;

/// A shell that ignores these signals and becomes the program.
fn ignoring(signals: &str) -> Vec<OsString> {
    args!["sh", "-c", format!("trap '' {signals}; exec \"$@\""), "sh"]
}

/// Signals that were ignored at the start stay ignored, in every command; the others are handled.
#[test]
fn case_91_a_signal_that_was_ignored_at_the_start_stays_ignored() {
    let served = scratch();
    let server = serve(served.path(), &[]);
    let commands = [
        args!["serve", served.path(), "--port", "0"],
        args!["message", "listen", "--port", "0"],
        args!["send", "-", server.target("stream")],
    ];
    for ignored in ["HUP", "INT", "TERM", "HUP INT", "HUP INT TERM"] {
        for args in commands.clone() {
            // A fifo without a writer: what reads it waits.
            let fifo = scratch();
            let path = fifo.path().join("fifo");
            tool("mkfifo", args![path]);
            let shell = format!("trap '' {ignored}; exec \"$@\" <>\"{}\"", path.display());
            let wrapper = args!["sh", "-c", shell, "sh"];
            let running = fastdrop(args).wrapper(wrapper).start();
            eventually("its handlers", || Signals::caught_by(running.pid()).contains("XFSZ").then_some(()));
            for signal in ["HUP", "INT", "TERM"] {
                if ignored.contains(signal) {
                    assert!(Signals::ignored_by(running.pid()).contains(signal), "{ignored}: {signal}");
                } else {
                    eventually("the handler", || {
                        Signals::caught_by(running.pid()).contains(signal).then_some(())
                    });
                }
            }
        }
    }
}

/// A server that was started with nohup outlives its terminal and still leaves in good order.
#[test]
fn case_91_a_server_under_nohup_outlives_its_terminal() {
    let served = scratch();
    let mut server = serve_through(served.path(), &[], ignoring("HUP INT"));
    server.signal("HUP");
    server.signal("INT");
    server.assert_serves("SIGHUP and SIGINT that are ignored");
    assert_eq!(server.term(), 143);
}

/// An interrupted client ends with the signal's code and one sentence, with every protocol,
/// whatever broke because of it.
#[test]
fn case_91_an_interruption_is_told_as_one() {
    let own = scratch();
    let file = own.path().join("file");
    write_file(&file, 3 * MIB, 1);
    let mut commands = vec![
        args!["list"],
        args!["list", "--protocol", "fastdownloader"],
        args!["get"],
        args!["get", "--protocol", "fastdownloader"],
        args!["send", "--compress", "targz", file],
    ];
    for protocol in ["fastdp", "fastdp1.0", "fastdp1.1", "ultradp", "nextdp"] {
        commands.push(args!["send", "--protocol", protocol, file]);
    }
    let interrupt = &|mut args: Vec<OsString>, signal: &str, code: i32| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        args.extend(args!["--progress", "none"]);
        args.push(format!("{}/x", listener.local_addr().unwrap()).into());
        let running = fastdrop(args).cwd(own.path()).start();
        // It takes what comes and never answers.
        let (_silent, _) = listener.accept().unwrap();
        running.signal(signal);
        let out = running.wait().expect(code);
        let said: Vec<_> = out.stderr.lines().collect();
        assert!(matches!(said[..], [line] if line.starts_with("error: interrupted")), "{out}");
    };
    std::thread::scope(|scope| {
        for (signal, code) in [("INT", 130), ("TERM", 143)] {
            for args in &commands {
                scope.spawn(move || interrupt(args.clone(), signal, code));
            }
        }
    });
}
