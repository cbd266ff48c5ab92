//! Sources and targets as people type them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::process::Stdio;
use support::*;

/// A pipe that is named is sent like standard input: a stream of unknown size, under the target's
/// name.
#[test]
fn a_pipe_that_is_named_is_sent_as_a_stream() {
    let (served, own) = (scratch(), scratch());
    let server = serve(served.path(), &[]);
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

/// A stream has no name of its own and comes alone: anything else is a usage error in words, before
/// anything is read.
#[test]
fn a_stream_without_a_name_or_in_company_is_a_usage_error() {
    let (served, own) = (scratch(), scratch());
    let server = serve(served.path(), &[]);
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
    let server = serve(served.path(), &[]);
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
    let server = serve(served.path(), &[]);
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

/// The addresses and ports that a server says it listens on, one pair of a protocol's name and a
/// line an address.
fn listening(server: &Server, protocol: &str, count: usize) -> Vec<(String, u16)> {
    eventually("all addresses", || {
        let events = server.stdout();
        let events = events.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let ours = events.filter(|event| event["protocol"] == protocol);
        let found: Vec<_> = ours
            .map(|event| {
                (event["address"].as_str().unwrap().to_owned(), event["port"].as_u64().unwrap() as u16)
            })
            .collect();
        (found.len() == count).then_some(found)
    })
}

/// Several addresses with port 0 have one port, which the older protocol's addresses have of their
/// own, too.
#[test]
fn several_addresses_share_one_picked_port() {
    let served = scratch();
    for bind in ["127.0.0.1,127.0.0.2,127.0.0.3", "::1,127.0.0.1", "::,0.0.0.0", "0.0.0.0,::"] {
        let count = bind.split(',').count();
        let server = serve(served.path(), &["--bind", bind, "--fastdownloader=0"]);
        for protocol in ["fastdp", "fastdownloader"] {
            let addresses = listening(&server, protocol, count);
            assert!(addresses.iter().all(|(_, port)| *port == addresses[0].1), "{bind}: {addresses:?}");
            for (address, port) in addresses {
                let host = match &address[..] {
                    "0.0.0.0" => "127.0.0.1".into(),
                    "::" => "[::1]".into(),
                    v6 if v6.contains(':') => format!("[{v6}]"),
                    v4 => v4.into(),
                };
                plain(args!["list", "--protocol", protocol, format!("{host}:{port}")]).expect(0);
            }
        }
    }
}

/// `::` is every address of both families; each protocol takes a peer of IPv4 there for one.
#[test]
fn the_unspecified_address_of_ipv6_takes_ipv4_too() {
    let (served, own) = (scratch(), scratch());
    let file = own.path().join("file");
    write_file(&file, 100_000, 1);
    let server = serve(served.path(), &["--bind", "::", "--fastdownloader=0"]);
    for host in ["127.0.0.1", "[::1]", "localhost"] {
        let target = format!("{host}:{}", server.port);
        for protocol in ["fastdp", "fastdp1.0", "fastdp1.1", "nextdp"] {
            let name = format!("{}-{protocol}", host.replace([':', '[', ']'], "-"));
            let source = own.path().join(&name);
            fs::copy(&file, &source).unwrap();
            plain(args!["send", "--protocol", protocol, source, target]).expect(0);
            let sent = fs::read(&file).unwrap();
            eventually("the file", || (fs::read(server.path(&name)).ok()? == sent).then_some(()));
        }
        let (_, port) = listening(&server, "fastdownloader", 1)[0];
        let to = own.path().join(format!("got-{}", host.replace([':', '[', ']'], "-")));
        plain(args!["get", "--protocol", "fastdownloader", format!("{host}:{port}/127.0.0.1-fastdp"), to])
            .expect(0);
        assert_eq!(fs::read(&file).unwrap(), fs::read(to).unwrap());
    }
}

/// An address of this machine that is link-local, with its zone by name and by number, where there
/// is one.
fn link_local() -> Option<(String, String)> {
    let table = fs::read_to_string("/proc/net/if_inet6").ok()?;
    let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let found = fields.into_iter().find(|fields| fields[0].starts_with("fe80"))?;
    let groups: Vec<_> = found[0].as_bytes().chunks(4).map(|four| String::from_utf8_lossy(four)).collect();
    let number = u32::from_str_radix(found[1], 16).ok()?;
    Some((format!("{}%{}", groups.join(":"), found[5]), format!("{}%{number}", groups.join(":"))))
}

/// A zone that is missing or that nothing has is told before anything is done.
#[test]
fn a_zone_that_cannot_be_is_a_usage_error() {
    let served = scratch();
    for (args, words) in [
        (args!["serve", "--bind", "fe80::1%no-such-if", served.path()], "no network interface"),
        (args!["serve", "--bind", "fe80::1", served.path()], "needs a zone"),
        (args!["list", "[fe80::1%no-such-if]"], "no network interface"),
        (args!["list", "[fe80::1]"], "needs a zone"),
        (args!["list", "http://[fe80::1]/"], "needs a zone"),
    ] {
        let out = plain(args).expect(2);
        assert!(out.stderr.contains(words), "{out}");
    }
}

/// A link-local address works with its zone by name and by number, at both ends.
#[test]
#[ignore = "needs an interface with a link-local IPv6 address"]
fn a_link_local_address_of_a_server_is_reached_through_its_zone() {
    let served = scratch();
    let (by_name, by_number) = link_local().unwrap();
    for bind in [by_name.clone(), by_number.clone()] {
        let server = serve(served.path(), &["--bind", &bind, "--fastdownloader=0"]);
        for address in [by_name.clone(), by_number.clone()] {
            for target in [
                format!("[{address}]:{}", server.port),
                format!("http://[{}]:{}/", address.replace('%', "%25"), server.port),
            ] {
                plain(args!["list", target]).expect(0);
            }
        }
        let (_, port) = listening(&server, "fastdownloader", 1)[0];
        plain(args!["list", "--protocol", "fastdownloader", format!("[{by_name}]:{port}")]).expect(0);
    }
}
