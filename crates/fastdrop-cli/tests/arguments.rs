//! Sources and targets as people type them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::process::Stdio;
use support::*;

/// A pipe that is named is sent like standard input: a stream of unknown size, under the target's name.
#[test]
fn a_pipe_that_is_named_is_sent_as_a_stream() {
    let (served, own) = (scratch(), scratch());
    let server = Server::start(served.path(), &[]);
    let fifo = own.path().join("fifo");
    tool("mkfifo", args![fifo]);
    let link = own.path().join("link");
    std::os::unix::fs::symlink(&fifo, &link).unwrap();
    for (name, source) in [("fifo", &fifo), ("link", &link)] {
        let running = fastdrop(args!["send", "--json", source, server.target(name)]).start();
        fs::write(&fifo, vec![7; 300_000]).unwrap();
        running.wait().expect(0);
        assert_eq!(fs::read(server.path(name)).unwrap(), vec![7; 300_000]);
    }
    // As a shell's <(…) is one.
    let substituted = r#"exec 3<&0 </dev/null; exec "$@""#;
    for path in ["/dev/fd/3", "/proc/self/fd/3"] {
        let name = path.replace('/', "-");
        let out = fastdrop(args!["send", path, server.target(&name)])
            .stdin("hi")
            .wrapper(args!["sh", "-c", substituted, "sh"])
            .run();
        out.expect(0);
        assert_eq!(fs::read(server.path(&name)).unwrap(), b"hi");
    }
}

/// A stream has no name of its own and comes alone: anything else is a usage error in words, before anything is read.
#[test]
fn a_stream_without_a_name_or_in_company_is_a_usage_error() {
    let (served, own) = (scratch(), scratch());
    let server = Server::start(served.path(), &[]);
    let (fifo, file) = (own.path().join("fifo"), own.path().join("file"));
    tool("mkfifo", args![fifo]);
    write_file(&file, 10, 1);
    for (args, words) in [
        (args!["send", "-", server.target("")], "name the file"),
        (args!["send", "-", server.target("folder/")], "name the file"),
        (args!["send", fifo, server.target("")], "name the file"),
        (args!["send", fifo, server.target("folder/")], "name the file"),
        (args!["send", "-", file, server.target("x")], "alone"),
        (args!["send", file, fifo, server.target("x")], "alone"),
        (args!["send", "-", "-", server.target("x")], "alone"),
        (args!["send", "-", fifo, server.target("x")], "alone"),
    ] {
        let out = plain(args).expect(2);
        assert!(out.stderr.contains(words), "{out}");
    }
    assert_eq!(names_in(served.path()), Vec::<String>::new());
}

/// A folder, and an input that fails in the middle, are told at once and by their own reason.
#[test]
fn an_input_that_cannot_be_read_is_told_by_its_reason() {
    let (served, own) = (scratch(), scratch());
    let server = Server::start(served.path(), &[]);
    let folder = || Stdio::from(fs::File::open(own.path()).unwrap());
    let out = fastdrop(args!["send", "-", server.target("x")]).stdin_from(folder()).run().expect(2);
    assert!(out.stderr.contains("standard input is a folder"), "{out}");
    // Memory of a process that is not mapped: reading is EIO.
    let memory = || Stdio::from(fs::File::open("/proc/self/mem").unwrap());
    let out = fastdrop(args!["send", "-", server.target("x")]).stdin_from(memory()).run().expect(1);
    assert!(out.stderr.contains("reading the input: Input/output error"), "{out}");
    // Open for writing alone: reading is EBADF.
    let write_only = || Stdio::from(fs::File::create(own.path().join("w")).unwrap());
    let out = fastdrop(args!["send", "-", server.target("x")]).stdin_from(write_only()).run().expect(1);
    assert!(out.stderr.contains("reading the input: Bad file descriptor"), "{out}");
    assert!(!server.path("x").exists());
}

/// The URL that `serve` prints is a target of every command, with or without a path.
#[test]
fn the_url_that_serve_prints_is_a_target() {
    let (served, own) = (scratch(), scratch());
    let server = Server::start(served.path(), &[]);
    let url = format!("http://127.0.0.1:{}", server.port);
    let file = own.path().join("a b");
    write_file(&file, 1000, 1);
    plain(args!["send", file, url]).expect(0);
    plain(args!["send", file, format!("{url}/c%20d")]).expect(0);
    assert_eq!(names_in(served.path()), ["a b", "c d"]);
    for target in [url.clone(), format!("{url}/"), url.replace("http", "HTTP")] {
        assert!(plain(args!["list", target]).expect(0).text().contains("c d"));
    }
    plain(args!["get", format!("{url}/c%20d"), own.path().join("got")]).expect(0);
    assert_same_file(&file, &own.path().join("got"));
    // Not as a URL, a name is what it is.
    plain(args!["get", server.target("c%20d"), own.path().join("none")]).expect(4);
    let out = plain(args!["list", format!("https://127.0.0.1:{}", server.port)]).expect(2);
    assert!(out.stderr.contains("no TLS"), "{out}");
}
