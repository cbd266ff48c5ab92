//! A setting that was asked for and cannot be kept by a protocol is refused, in words and before
//! anything is sent. This is the table of that, written down a second time, as users know it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::ffi::OsString;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use support::*;

/// The protocols that only push.
const OLDER: [&str; 4] = ["fastdp1.0", "fastdp1.1", "ultradp", "nextdp"];

/// A flag with a value; None for a switch that is on. Then the older protocols that keep it in a
/// put, and FastDownloader in a get.
type Row = (&'static str, Option<&'static str>, &'static [&'static str], bool);

const ALL: &[&str] = &OLDER;
const NONE: &[&str] = &[];

const ROWS: [Row; 43] = [
    ("existing", Some("error"), NONE, true),
    ("existing", Some("skip"), NONE, true),
    ("existing", Some("rename"), NONE, true),
    ("existing", Some("overwrite"), NONE, true),
    ("checksum", Some("xxh3"), NONE, false),
    ("checksum", Some("blake3"), NONE, false),
    ("checksum", Some("none"), ALL, true),
    ("durability", Some("commit"), NONE, true),
    ("durability", Some("none"), ALL, true),
    ("preserve", Some("times,mode"), NONE, false),
    ("preserve", Some("times"), NONE, false),
    ("preserve", Some("mode"), NONE, false),
    ("preserve", Some("none"), ALL, true),
    ("links", Some("copy"), NONE, false),
    ("links", Some("follow"), ALL, false),
    ("links", Some("skip"), ALL, false),
    ("links", Some("safe"), NONE, false),
    ("check", None, NONE, false),
    ("no-resume", None, ALL, true),
    ("checkpoint", Some("512M"), NONE, false),
    ("checkpoint", Some("1M"), NONE, false),
    ("checkpoint", Some("off"), ALL, true),
    ("streams", Some("auto"), ALL, true),
    ("streams", Some("1"), ALL, false),
    ("streams", Some("4"), &["nextdp"], false),
    ("compress", Some("auto"), ALL, true),
    ("compress", Some("none"), ALL, true),
    ("compress", Some("zstd"), ALL, false),
    ("compress", Some("zip"), &["fastdp1.0", "fastdp1.1"], false),
    ("compress", Some("targz"), &["fastdp1.0", "fastdp1.1"], false),
    ("compress", Some("gzip"), &["nextdp"], false),
    ("exclude", Some("*.o"), ALL, false),
    ("include", Some("*"), ALL, false),
    ("files-from", Some("list"), ALL, false),
    ("bwlimit", Some("1M"), ALL, true),
    ("retries", Some("5"), ALL, true),
    ("retries", Some("0"), ALL, true),
    ("dry-run", None, NONE, true),
    ("unconfirmed-ok", None, ALL, true),
    ("verbose", None, ALL, true),
    ("quiet", None, ALL, true),
    ("json", None, ALL, true),
    ("progress", Some("none"), ALL, true),
];

/// Flags that only one command has: which, and who keeps them.
const SEND_ONLY: [Row; 1] = [("ultradp-password-file", Some("list"), &["ultradp"], false)];
const GET_ONLY: [Row; 1] = [("keep-archive", None, ALL, false)];

/// Ways to ask for something.
#[derive(Debug, Clone, Copy)]
enum By {
    Argument,
    Variable,
    File,
    FileOfCommand,
}

struct Asking {
    folder: tempfile::TempDir,
    /// Nobody may come.
    listener: TcpListener,
    /// A port at which nobody listens.
    deaf: socket2::Socket,
}

impl Asking {
    fn new() -> Self {
        let folder = scratch();
        fs::create_dir(folder.path().join("src")).unwrap();
        fs::write(folder.path().join("src/f"), "content").unwrap();
        fs::write(folder.path().join("list"), "f\n").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let deaf = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        deaf.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        Self { folder, listener, deaf }
    }

    fn target(&self, kept: bool) -> String {
        // Where nobody listens, what is kept fails at once.
        let listens = self.listener.local_addr().unwrap();
        let address = if kept { self.deaf.local_addr().unwrap().as_socket().unwrap() } else { listens };
        format!("{address}/f")
    }

    fn run(&self, command: &str, protocol: &str, row: &Row, by: By, kept: bool) -> Output {
        let (flag, value, ..) = *row;
        let target = self.target(kept);
        let source = if flag == "files-from" { "src" } else { "src/f" };
        let mut arguments = match command {
            "send" => args!["send", source, target],
            "list" => args!["list", target],
            _ => args!["get", target, "got"],
        };
        arguments.extend(["--protocol", protocol].map(OsString::from));
        let name = format!("FASTDROP_{}", flag.replace('-', "_").to_uppercase());
        let text = value.unwrap_or("true");
        let given = match by {
            By::Argument => {
                arguments.push(format!("--{flag}").into());
                arguments.extend(value.map(OsString::from));
                fastdrop(arguments)
            }
            By::Variable => fastdrop(arguments).env(&name, text),
            By::File | By::FileOfCommand => {
                let table =
                    if matches!(by, By::FileOfCommand) { format!("[{command}]\n") } else { String::new() };
                let text = if value.is_some() { format!("{text:?}") } else { text.to_owned() };
                let path = self.folder.path().join("config.toml");
                fs::write(&path, format!("{table}{flag} = {text}\n")).unwrap();
                arguments.extend(args!["--config", path]);
                fastdrop(arguments)
            }
        };
        given.cwd(self.folder.path()).run()
    }

    fn check(&self, command: &str, protocol: &str, row: &Row, kept: bool) {
        let (flag, value, ..) = *row;
        for by in [By::Argument, By::Variable, By::File, By::FileOfCommand] {
            // The file has no lists, and a count is no switch.
            let is_count_or_global = matches!(flag, "verbose" | "quiet" | "json" | "progress");
            if is_count_or_global && !matches!(by, By::Argument) {
                continue;
            }
            let out = self.run(command, protocol, row, by, kept);
            let what = format!("{command} --protocol {protocol} --{flag} {value:?}, {by:?}: {out}");
            assert!(!out.stderr.contains("panicked"), "{what}");
            if kept {
                assert!(!out.stderr.contains("cannot keep"), "{what}");
                // A dry run that can be made is not refused either, but nobody answers.
                assert_eq!(out.code(), 5, "{what}");
            } else {
                assert_eq!(out.code(), 2, "{what}");
                assert!(out.stderr.contains(protocol) && out.stderr.contains(&format!("--{flag}")), "{what}");
                if let Some(value) =
                    value.filter(|value| !matches!(*value, "512M" | "1M" | "*.o" | "*" | "list"))
                {
                    assert!(out.stderr.contains(value), "{what}");
                }
                assert!(self.listener.accept().is_err(), "somebody was asked: {what}");
            }
        }
    }
}

#[test]
fn case_109_every_flag_is_kept_or_refused_by_every_protocol_that_sends() {
    let asking = Asking::new();
    for row in ROWS.iter().chain(&SEND_ONLY) {
        let (flag, value, keeps, _) = *row;
        for protocol in OLDER {
            asking.check("send", protocol, row, keeps.contains(&protocol));
        }
        let is_others = (flag, value) == ("compress", Some("gzip")) || flag == "ultradp-password-file";
        asking.check("send", "fastdp", row, !is_others);
    }
}

#[test]
fn case_109_every_flag_is_kept_or_refused_by_every_protocol_that_fetches() {
    let asking = Asking::new();
    for row in ROWS.iter().chain(&GET_ONLY) {
        let (flag, value, _, keeps) = *row;
        asking.check("get", "fastdownloader", row, keeps);
        asking.check("get", "fastdp", row, (flag, value) != ("compress", Some("gzip")));
    }
    for protocol in ["fastdp", "fastdownloader"] {
        asking.check("list", protocol, &("retries", Some("3"), NONE, true), true);
    }
}

/// The table above has a row for every flag of the program.
#[test]
fn case_109_no_flag_is_missing_in_the_table() {
    for (command, only) in [("send", &SEND_ONLY[..]), ("get", &GET_ONLY[..])] {
        let help = plain(args![command, "--help"]).expect(0).text();
        let flags: Vec<_> = help
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("--"))
            .map(|word| word.trim_end_matches(|char: char| !char.is_ascii_alphanumeric()))
            .collect();
        assert!(flags.len() > 15, "{help}");
        for flag in flags {
            let is_known = ROWS.iter().chain(only).any(|row| row.0 == flag)
                // Which protocol, and how this end talks.
                || matches!(flag, "protocol" | "color" | "config" | "help" | "version");
            assert!(is_known, "{command} has --{flag}, of which nobody says which protocol keeps it");
        }
    }
}

#[test]
fn case_109_a_protocol_that_cannot_do_it_at_all_says_so_before_anything_is_asked() {
    let asking = Asking::new();
    let target = asking.target(false);
    for protocol in OLDER {
        for arguments in [args!["get", target, "got"], args!["list", target]] {
            let arguments = [arguments, args!["--protocol", protocol]].concat();
            let out = fastdrop(arguments).cwd(asking.folder.path()).run().expect(2);
            assert!(out.stderr.contains(protocol), "{out}");
        }
        let out = fastdrop(args!["send", "-", target, "--protocol", protocol]).run().expect(2);
        assert!(out.stderr.contains(protocol), "{out}");
    }
    let arguments = args!["send", "src/f", target, "--protocol", "fastdownloader"];
    fastdrop(arguments).cwd(asking.folder.path()).run().expect(2);
    let arguments = args!["get", target, "-", "--protocol", "fastdownloader"];
    fastdrop(arguments).cwd(asking.folder.path()).run().expect(2);
    assert!(asking.listener.accept().is_err());
}

/// Defaults: nobody asked for them, and everybody may expect them.
#[test]
fn case_109_the_summary_names_the_defaults_that_are_not_kept() {
    let dir = scratch();
    let server = serve(dir.path(), &["--existing", "overwrite"]);
    let own = scratch();
    let file = own.path().join("f");
    fs::write(&file, "content").unwrap();
    for (protocol, unkept) in [
        ("fastdp", &[][..]),
        ("fastdp1.0", &["existing", "checksum", "durability", "preserve"]),
        ("fastdp1.1", &["existing", "checksum", "durability", "preserve"]),
        ("ultradp", &["existing", "checksum", "durability", "preserve"]),
        ("nextdp", &["existing", "checksum", "durability", "preserve"]),
    ] {
        let arguments =
            args!["send", "--protocol", protocol, "--unconfirmed-ok", file, server.target(protocol)];
        let out = client(arguments.clone()).expect(0);
        assert_eq!(out.summary()["unkept"], serde_json::json!(unkept), "{protocol}: {out}");
        // Again: the server lets it be replaced, and the native protocol finds nothing to do.
        let text = plain(arguments).expect(0).text();
        for value in ["--existing error", "--checksum xxh3", "--durability commit", "--preserve times,mode"] {
            assert_eq!(text.contains(value), protocol != "fastdp", "{protocol}: {text}");
        }
    }
    // What was given up in so many words is not missed.
    let none = ["--checksum", "none", "--durability", "none", "--preserve", "none", "--protocol", "nextdp"];
    let arguments = [args!["send", file, server.target("none")], none.map(OsString::from).to_vec()].concat();
    assert_eq!(client(arguments).expect(0).summary()["unkept"], serde_json::json!(["existing"]));
}

/// The reported case: a policy that only the receiver could keep, and a file that is precious.
#[test]
fn case_109_a_policy_that_cannot_be_kept_costs_no_file() {
    let dir = scratch();
    let server = serve(dir.path(), &["--existing", "overwrite"]);
    let precious = server.path("f");
    fs::write(&precious, "precious").unwrap();
    let own = scratch();
    let file = own.path().join("f");
    fs::write(&file, "new").unwrap();
    for protocol in OLDER {
        for policy in ["skip", "error", "rename", "overwrite"] {
            let arguments =
                args!["send", "--protocol", protocol, "--existing", policy, file, server.target("")];
            plain(arguments).expect(2);
            assert_eq!(fs::read_to_string(&precious).unwrap(), "precious", "{protocol}, {policy}");
        }
    }
    plain(args!["send", "--existing", "skip", file, server.target("")]).expect(0);
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    assert_only(&dir, "f");
}

fn assert_only(dir: &tempfile::TempDir, name: &str) {
    let path: &Path = dir.path();
    assert_eq!(names_in(path), [name]);
}
