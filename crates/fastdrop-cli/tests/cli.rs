//! The program as people and scripts meet it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::Path;
use std::time::Duration;
use support::*;

/// A served folder with a file `file` that differs from the client's, so that `--existing` shows in
/// the exit code.
fn conflict() -> (tempfile::TempDir, tempfile::TempDir, Server) {
    let (served, own) = (scratch(), scratch());
    write_file(&own.path().join("file"), 1000, 1);
    write_file(&served.path().join("file"), 2000, 2);
    let server = serve(served.path(), &[]);
    (served, own, server)
}

#[track_caller]
fn assert_plain_lines(what: &str, text: &str) {
    let control = text.chars().find(|c| c.is_control() && *c != '\n' && *c != '\t');
    assert!(control.is_none(), "{what} has {control:?}: {text:?}");
}

// ---- help

/// Help names what there is, on standard output.
#[test]
fn help_names_the_commands_and_flags() {
    let out = plain(args!["--help"]).expect(0);
    for word in ["serve", "send", "get", "list", "completions", "man"] {
        assert!(out.text().contains(word), "{word} is missing\n{out}");
    }
    let flags: [(&str, &[&str]); 4] = [
        (
            "serve",
            &[
                "--bind",
                "--port",
                "--read-only",
                "--write-only",
                "--existing",
                "--max-streams",
                "--max-size",
                "--min-free",
                "--once",
                "--checkpoint",
                "--expire",
            ],
        ),
        (
            "send",
            &[
                "--streams",
                "--existing",
                "--no-resume",
                "--checksum",
                "--durability",
                "--preserve",
                "--links",
                "--checkpoint",
                "--exclude",
                "--include",
                "--files-from",
                "--dry-run",
                "--bwlimit",
                "--retries",
                "--json",
                "--quiet",
                "--color",
                "--progress",
                "--config",
            ],
        ),
        (
            "get",
            &["--streams", "--existing", "--no-resume", "--checksum", "--links", "--bwlimit", "--retries"],
        ),
        ("list", &["--json"]),
    ];
    for (command, flags) in flags {
        let out = plain(args![command, "--help"]).expect(0);
        for flag in flags {
            assert!(out.text().contains(flag), "{command}: {flag} is missing\n{out}");
        }
    }
    assert!(plain(args!["--version"]).expect(0).text().starts_with("fastdrop "));
}

/// Completions and the manual page come from the program itself.
#[test]
fn completions_and_manual_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        let out = plain(args!["completions", shell]).expect(0);
        assert!(out.text().contains("fastdrop") && out.text().contains("send"), "{shell}\n{out}");
    }
    plain(args!["completions", "no-such-shell"]).expect(2);
    let out = plain(args!["man"]).expect(0);
    assert!(out.text().contains(".TH") && out.text().contains("fastdrop"), "{out}");
}

/// What cannot be meant is exit 2, said on standard error.
#[test]
fn usage_errors_are_exit_2() {
    let own = scratch();
    let file = own.path().join("file");
    write_file(&file, 10, 1);
    for args in [
        args!["no-such-command"],
        args!["send"],
        args!["send", file],
        args!["send", "--no-such-flag", file, "127.0.0.1:1"],
        args!["send", "--streams", "0", file, "127.0.0.1:1"],
        args!["send", "--streams", "many", file, "127.0.0.1:1"],
        args!["send", "--existing", "shred", file, "127.0.0.1:1"],
        args!["send", "--checksum", "crc7", file, "127.0.0.1:1"],
        args!["send", "--bwlimit", "fast", file, "127.0.0.1:1"],
        args!["send", "--bwlimit", "0", file, "127.0.0.1:1"],
        args!["send", "--checkpoint", "-1", file, "127.0.0.1:1"],
        args!["send", file, "127.0.0.1:99999"],
        args!["send", file, "127.0.0.1:port"],
        args!["send", file, "[::1"],
        args!["get"],
        args!["list"],
        args!["serve", "--port", "70000", own.path()],
        args!["serve", "--read-only", "--write-only", own.path()],
        args!["serve", "--existing", "skip-it-all", own.path()],
        args!["serve", "--header-timeout", "0s", own.path()],
        args!["serve", "--fastdownloader-dialect", "v2", own.path()],
        args!["serve", "--header-timeout", "2days", own.path()],
        args!["serve", "--bind", "not an address", own.path()],
    ] {
        let out = plain(args).expect(2);
        assert_eq!(out.stdout, b"", "{out}");
        assert!(!out.stderr.is_empty(), "{out}");
    }
}

/// A folder that is not there, or no folder, cannot be served.
#[test]
fn serving_what_is_no_folder_fails_at_once() {
    let own = scratch();
    write_file(&own.path().join("file"), 10, 1);
    plain(args!["serve", "--port", "0", own.path().join("not-there")]).expect(4);
    plain(args!["serve", "--port", "0", own.path().join("file")]).expect(9);
}

/// A port that is taken is said so.
#[test]
fn a_port_that_is_taken_is_an_error() {
    let served = scratch();
    let server = serve(served.path(), &[]);
    let out = plain(args!["serve", "--port", server.port.to_string(), served.path()]).expect(1);
    assert!(out.stderr.contains(&server.port.to_string()), "the port is named\n{out}");
}

/// Case 68: a secret is never an argument.
#[test]
fn case_68_there_is_no_token_flag() {
    let own = scratch();
    write_file(&own.path().join("file"), 10, 1);
    plain(args!["send", "--token", "secret", own.path().join("file"), "127.0.0.1:1"]).expect(2);
    plain(args!["serve", "--token", "secret", own.path()]).expect(2);
    for command in ["send", "get", "list", "serve"] {
        let text = plain(args![command, "--help"]).expect(0).text();
        assert!(
            !text.contains("--token ") && !text.contains("--token=") && !text.contains("--password"),
            "{text}"
        );
    }
}

// ---- environment and configuration

/// Flag beats variable beats file beats default.
#[test]
fn flag_beats_variable_beats_file_beats_default() {
    let (_served, own, server) = conflict();
    let config = |name: &str, existing: &str| {
        let path = own.path().join(name);
        fs::write(&path, format!("[send]\nexisting = \"{existing}\"\n")).unwrap();
        path
    };
    let (skips, errs) = (config("skip.toml", "skip"), config("error.toml", "error"));
    let run = |flag: Option<&str>, variable: Option<&str>, file: Option<&Path>| {
        let mut args = args!["send"];
        if let Some(flag) = flag {
            args.extend(args!["--existing", flag]);
        }
        if let Some(file) = file {
            args.extend(args!["--config", file]);
        }
        args.extend(args![own.path().join("file"), server.target("")]);
        let mut cmd = fastdrop(args).json();
        if let Some(variable) = variable {
            cmd = cmd.env("FASTDROP_EXISTING", variable);
        }
        cmd.run()
    };
    run(None, None, None).expect(9);
    run(None, None, Some(&skips)).expect(0);
    run(None, Some("skip"), None).expect(0);
    run(None, Some("error"), Some(&skips)).expect(9);
    run(None, Some("skip"), Some(&errs)).expect(0);
    run(Some("error"), Some("skip"), Some(&skips)).expect(9);
    run(Some("skip"), Some("error"), Some(&errs)).expect(0);
}

/// The configuration can be named by a variable, too, and is checked when it is read.
#[test]
fn a_bad_configuration_fails_before_anything_happens() {
    let (_served, own, server) = conflict();
    let file = own.path().join("file");
    let config = own.path().join("config.toml");
    for text in [
        "this is not TOML",
        "[send]\nno-such-key = 1\n",
        "[send]\nexisting = \"shred\"\n",
        "[send]\nstreams = -1\n",
    ] {
        fs::write(&config, text).unwrap();
        let proxy = Proxy::to(server.port);
        let out = plain(args!["send", "--config", config, file, proxy.target("")]).expect(2);
        assert!(out.stderr.contains("config.toml"), "the file is named\n{out}");
        assert_eq!(proxy.connections(), 0, "{text}");
    }
    plain(args!["send", "--config", own.path().join("not-there"), file, server.target("")]).expect(2);
    fs::write(&config, "[send]\nexisting = \"skip\"\n").unwrap();
    fastdrop(args!["send", file, server.target("")]).env("FASTDROP_CONFIG", &config).run().expect(0);
}

/// Variables stand for flags: numbers, switches and the output.
#[test]
fn variables_stand_for_flags() {
    let (served, own) = (scratch(), scratch());
    let source = own.path().join("big");
    write_file(&source, 16 * MIB, 1);
    let server = serve(served.path(), &[]);
    let connections = |variable: &str, name: &str, flags: &[&str]| {
        let proxy = Proxy::to(server.port);
        let flags = flags.iter().map(std::ffi::OsString::from).collect();
        let args = [args!["send"], flags, args![source, proxy.target(name)]].concat();
        fastdrop(args).env("FASTDROP_STREAMS", variable).run().expect(0);
        proxy.connections()
    };
    assert!(connections("1", "one", &[]) <= 2);
    assert!(connections("4", "four", &[]) > 2);
    assert!(connections("1", "flag", &["--streams", "4"]) > 2);
    let file = server.target("x");
    fastdrop(args!["send", source, file]).env("FASTDROP_STREAMS", "0").run().expect(2);
    let out = fastdrop(args!["send", source, file]).env("FASTDROP_JSON", "true").run().expect(0);
    assert!(out.text().lines().last().unwrap().contains("\"summary\""), "{out}");
    let out =
        fastdrop(args!["send", source, server.target("y")]).env("FASTDROP_DRY_RUN", "true").run().expect(0);
    assert!(!server.path("y").exists(), "{out}");
}

// ---- what is printed

/// Without a word about it, a server says where it listens and what to type.
#[test]
fn serve_prints_its_address_and_a_line_to_paste() {
    let (served, own) = (scratch(), scratch());
    let source = own.path().join("file");
    write_file(&source, 1000, 1);
    let server = fastdrop(args!["serve", "--port", "0", served.path()]).start();
    let port: u16 = server
        .stdout_line(|line| line.trim().strip_prefix("listening on http://127.0.0.1:")?.parse().ok())
        .expect("a line `listening on http://127.0.0.1:PORT`");
    assert_ne!(port, 0);
    let paste = server
        .stdout_line(|line| line.contains("fastdrop send ").then(|| line.to_owned()))
        .expect("a line `fastdrop send …`");
    let target = paste.split_whitespace().last().unwrap();
    assert!(target.contains(&format!("127.0.0.1:{port}")), "{paste}");
    client(args!["send", source, target]).expect(0);
    assert_same_file(&source, &served.path().join("file"));
    server.signal("TERM");
    let out = server.wait_within(Duration::from_secs(15)).expect(143);
    assert_plain_lines("standard output", &out.text());
    assert_plain_lines("standard error", &out.stderr);
}

/// With `--json` the first event is that of listening, with protocol, address and port.
#[test]
fn serve_says_in_json_where_it_listens() {
    let served = scratch();
    let server = serve(served.path(), &[]);
    let first: serde_json::Value = serde_json::from_str(server.stdout().lines().next().unwrap()).unwrap();
    assert_eq!(first["event"], "listening");
    assert_eq!(first["protocol"], "fastdp");
    assert_eq!(first["address"], "127.0.0.1");
    assert_eq!(first["port"], server.port);
}

/// The default folder is the current one, and an IPv6 address is written in brackets.
#[test]
fn serve_takes_the_current_folder_and_ipv6() {
    let (served, own) = (scratch(), scratch());
    let source = own.path().join("file");
    write_file(&source, 1000, 1);
    let server = fastdrop(args!["serve", "--bind", "::1", "--port", "0"]).cwd(served.path()).start();
    let port: u16 = server
        .stdout_line(|line| line.trim().strip_prefix("listening on http://[::1]:")?.parse().ok())
        .expect("a line `listening on http://[::1]:PORT`");
    client(args!["send", source, format!("[::1]:{port}/as-this")]).expect(0);
    assert_same_file(&source, &served.path().join("as-this"));
}

/// `--once` serves one transfer and leaves.
#[test]
fn serve_once_leaves_after_one_transfer() {
    let (served, own) = (scratch(), scratch());
    let source = own.path().join("file");
    write_file(&source, 3 * MIB, 1);
    let mut server = serve(served.path(), &["--once"]);
    client(args!["send", source, server.target("")]).expect(0);
    assert_eq!(server.wait_within(Duration::from_secs(15)), 0);
    assert_same_file(&source, &served.path().join("file"));
}

/// Both ways of asking a server to leave work, and soon.
#[test]
fn case_91_an_idle_server_leaves_at_once() {
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        let served = scratch();
        let mut server = serve(served.path(), &[]);
        server.signal(signal);
        assert_eq!(server.wait_within(Duration::from_secs(5)), code, "{signal}");
    }
}

/// Off a terminal there are plain lines: no colours, no carriage returns, whatever the progress.
#[test]
fn off_a_terminal_there_are_plain_lines() {
    let (served, own) = (scratch(), scratch());
    let source = own.path().join("tree");
    small_tree(&source, 2, 10, 1);
    write_file(&source.join("big"), 5 * MIB, 1);
    let server = serve(served.path(), &[]);
    for (n, flags) in
        [&[][..], &["--progress", "auto"], &["--progress", "plain"], &["-vv"], &["--progress", "none"]]
            .into_iter()
            .enumerate()
    {
        let flags: Vec<_> = flags.iter().map(std::ffi::OsString::from).collect();
        // Slow enough for more than one report.
        let slow = args!["--bwlimit", "8M"];
        let args = [args!["send"], flags, slow, args![source, server.target(n.to_string())]].concat();
        let out = plain(args).expect(0);
        assert_plain_lines("standard output", &out.text());
        assert_plain_lines("standard error", &out.stderr);
        assert!(!out.stderr.is_empty() || !out.stdout.is_empty(), "a summary at least\n{out}");
    }
    assert_plain_lines("the server's standard error", &server.stderr());
}

/// The summary is one line and names what was verified and how durable it is.
#[test]
fn the_summary_says_what_was_verified_and_how_durable() {
    let (served, own) = (scratch(), scratch());
    let source = own.path().join("file");
    write_file(&source, 3 * MIB, 1);
    let server = serve(served.path(), &[]);
    let out = plain(args!["send", "--progress", "none", source, server.target("")]).expect(0);
    let all = format!("{}{}", out.text(), out.stderr).to_lowercase();
    let line = all.lines().last().unwrap_or_default();
    for word in ["xxh3", "commit", "1 file"] {
        assert!(line.contains(word), "{word} is missing in the summary: {line:?}\n{out}");
    }
}

/// `--quiet` says nothing when all is well, and still says what is wrong.
#[test]
fn quiet_is_quiet_until_something_is_wrong() {
    let (_served, own, server) = conflict();
    let file = own.path().join("file");
    for flag in ["-q", "--quiet"] {
        let out = plain(args!["send", flag, file, server.target(flag)]).expect(0);
        assert_eq!((out.text().as_str(), out.stderr.as_str()), ("", ""), "{out}");
        let out = plain(args!["send", flag, file, server.target("")]).expect(9);
        assert!(!out.stderr.is_empty(), "{out}");
    }
}

/// Data goes to standard output, everything else to standard error.
#[test]
fn json_alone_is_on_standard_output() {
    let (served, own) = (scratch(), scratch());
    let source = own.path().join("file");
    write_file(&source, 2 * MIB, 1);
    let server = serve(served.path(), &[]);
    // Every line of standard output is parsed here.
    let out = client(args!["send", "-vv", "--progress", "plain", source, server.target("")]).expect(0);
    out.summary();
    assert!(out.events.iter().all(|event| event["event"].is_string()), "every event says what it is\n{out}");
    let out = client(args!["send", source, format!("127.0.0.1:{}/no/../such", server.port)]).expect(9);
    assert!(!out.stderr.is_empty(), "{out}");
    let out = plain(args!["get", "-vv", "--progress", "plain", server.target("file"), "-"]).expect(0);
    assert!(out.stdout == fs::read(&source).unwrap());
}

/// `--color always` colours and `NO_COLOR` does not forbid what was asked for by a flag.
#[test]
fn color_is_obeyed() {
    let never = plain(args!["send", "--color", "never", "/nonexistent/file", "127.0.0.1:1"]).expect(4);
    assert!(!never.stderr.contains('\u{1b}'), "{never}");
    let always = plain(args!["send", "--color", "always", "/nonexistent/file", "127.0.0.1:1"]).expect(4);
    assert!(always.stderr.contains('\u{1b}'), "{always}");
}

/// Case 57: names with control characters are escaped wherever they are shown.
#[test]
fn case_57_names_are_escaped_wherever_shown() {
    let (served, own) = (scratch(), scratch());
    let tree = own.path().join("tree");
    let evil = "evil\u{1b}[31m\r\n\u{7}\u{202e}name";
    write_file(&tree.join(evil), 1000, 1);
    let server = serve(served.path(), &[]);
    let out = plain(args!["send", "-vv", "--checksum", "blake3", tree, server.target("")]).expect(0);
    assert_shows_safely(&out);
    assert!(server.path("tree").join(evil).exists());
    let out = plain(args!["list", server.target("tree")]).expect(0);
    assert_shows_safely(&out);
    assert_eq!(out.text().lines().count(), 1, "one name, one line\n{out}");
    assert!(out.text().contains("evil") && out.text().contains("name"), "{out}");
    let out =
        plain(args!["get", "-vv", "--checksum", "blake3", server.target("tree"), own.path().join("back")])
            .expect(0);
    assert_shows_safely(&out);
    // In errors, from either end.
    write_file(&own.path().join("other/tree").join(evil), 2000, 2);
    assert_shows_safely(&plain(args!["send", own.path().join("other/tree"), server.target("")]).expect(9));
    assert_shows_safely(&plain(args!["get", server.target("tree"), own.path().join("other")]).expect(9));
    assert_shows_safely(
        &plain(args!["get", server.target(evil.replace("name", "gone")), own.path()]).expect(4),
    );
    assert_shows_safely(&plain(args!["send", own.path().join(evil), server.target("")]).expect(4));
    assert_plain_lines("the server's log", &server.stderr());
    assert!(!server.stderr().contains('\u{202e}'));
    // JSON escapes in its own way, and a line stays a line.
    let out = client(args!["list", server.target("tree")]).expect(0);
    assert!(!out.text().contains('\u{1b}') && !out.text().contains('\r'), "{out}");
}

#[track_caller]
fn assert_shows_safely(out: &Output) {
    assert_plain_lines("standard output", &out.text());
    assert_plain_lines("standard error", &out.stderr);
    assert!(
        !out.text().contains('\u{202e}') && !out.stderr.contains('\u{202e}'),
        "an override is shown\n{out}"
    );
}

/// Case 91: a reader of standard output that goes away is an error at most, and no panic.
#[test]
fn case_91_a_closed_standard_output_is_no_panic() {
    let served = scratch();
    write_file(&served.path().join("big"), 20 * MIB, 1);
    small_tree(served.path(), 1, 500, 1);
    let server = serve(served.path(), &[]);
    for args in
        [args!["get", server.target("big"), "-"], args!["list", server.target("folder-000")], args!["--help"]]
    {
        let out = fastdrop(args).stdout_closed().run();
        assert!(!out.stderr.contains("panicked"), "{out}");
        assert_ne!(out.code(), 101, "{out}");
    }
}
