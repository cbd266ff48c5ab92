//! What a server refuses because there is too much of it already, seen by a client of each
//! protocol.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use fastdrop::{
    Client, ClientOptions, ErrorKind, Observer, Protocol, Put, PutOptions, Server, ServerOptions, Stop,
    Summary, Target,
};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use tempfile::TempDir;

const PUSHES: [Protocol; 5] =
    [Protocol::FastDp, Protocol::FastDp10, Protocol::FastDp11, Protocol::UltraDp, Protocol::NextDp];

/// A server in this process. Stopped when dropped.
struct Served {
    folder: TempDir,
    address: SocketAddr,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn start(set: impl FnOnce(&mut ServerOptions)) -> Self {
        let folder = TempDir::new().unwrap();
        let stop = Stop::new();
        let mut options = ServerOptions::new(folder.path().into());
        options.bind = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
        set(&mut options);
        let server = Server::bind(options, stop.clone()).unwrap();
        let address = server.addresses()[0];
        let thread = Some(std::thread::spawn(move || server.run().unwrap()));
        Self { folder, address, stop, thread }
    }

    fn put(&self, protocol: Protocol, file: &Path) -> Result<Summary, fastdrop::Error> {
        let target = Target::parse(self.address.to_string().as_ref(), 0).unwrap();
        let options = ClientOptions { protocol, retries: 0, ..ClientOptions::default() };
        let client = Client::new(target, options, Arc::new(Observer::default()), Stop::new());
        client.put(Put::Paths(vec![file.into()]), PutOptions::default())
    }

    /// An UltraDP transfer that is under way as long as this is there.
    fn begin_one(&self, name: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.write_all(format!("{name}:100:0\n").as_bytes()).unwrap();
        stream
    }

    /// The stages of the transfers under way.
    fn stages(&self) -> usize {
        let stages = std::fs::read_dir(self.folder.path().join(".fastdrop"));
        stages.map_or(0, |stages| stages.count())
    }

    fn names(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.folder.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != ".fastdrop").collect()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(start.elapsed().as_secs() < 60, "waited in vain for {what}");
        std::thread::sleep(std::time::Duration::from_millis(3));
    }
}

fn assert_refused(served: &Served, what: &str, is_expected: impl Fn(ErrorKind) -> bool) {
    let source = TempDir::new().unwrap();
    for size in [0, 1, 1000, 300_000, 3_000_000] {
        let file = source.path().join(format!("f{size}"));
        std::fs::write(&file, vec![7; size]).unwrap();
        for protocol in PUSHES {
            let error = served.put(protocol, &file).expect_err("it is refused");
            assert!(is_expected(error.kind()), "{what}, {protocol}, {size} bytes: {error}");
        }
    }
    assert_eq!(served.names(), Vec::<String>::new(), "{what}");
}

#[test]
fn case_105_too_many_transfers_are_refused_and_never_success() {
    let served = Served::start(|options| options.transfers_max = 2);
    let under_way = [served.begin_one("one"), served.begin_one("two")];
    eventually("both transfers", || served.stages() == 2);
    let both = |kind| matches!(kind, ErrorKind::Network | ErrorKind::Policy);
    assert_refused(&served, "too many transfers", both);
    drop(under_way);
}

#[test]
fn case_105_too_many_connections_are_refused_and_never_success() {
    let served = Served::start(|options| options.connections_max = 2);
    let under_way = [served.begin_one("one"), served.begin_one("two")];
    eventually("both transfers", || served.stages() == 2);
    let both = |kind| matches!(kind, ErrorKind::Network | ErrorKind::Policy);
    assert_refused(&served, "too many connections", both);
    drop(under_way);
}

/// A connection that is given up before it was known what it speaks is not one that ended well.
#[test]
fn case_105_a_handshake_that_is_ended_for_another_is_reset() {
    let served = Served::start(|options| options.handshakes_per_address_max = 1);
    let mut first = TcpStream::connect(served.address).unwrap();
    first.write_all(b"half of a line").unwrap();
    let _others: Vec<_> = (0..3).map(|_| TcpStream::connect(served.address).unwrap()).collect();
    let ended = first.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(ended, Err(std::io::ErrorKind::ConnectionReset));
}

/// The upgrade of an older version that is answered, also as the second request of a connection,
/// and nothing behind it.
fn upgrade(served: &Served, version: &str, after_another: bool) -> TcpStream {
    let mut stream = TcpStream::connect(served.address).unwrap();
    let answer_to = |stream: &mut TcpStream, request: &str| {
        stream.write_all(request.as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.extend_from_slice(&byte);
        }
        String::from_utf8(head).unwrap().to_lowercase()
    };
    if after_another {
        let head = answer_to(&mut stream, "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        stream.read_exact(&mut vec![0; length.parse().unwrap()]).unwrap();
    }
    let head = answer_to(
        &mut stream,
        &format!(
            "GET /fastdp-endpoint HTTP/1.1\r\nHost: x\r\nUpgrade: fastdp\r\nConnection: Upgrade\r\n\
             Sec-FastDP-Key: fastdp-key\r\nSec-FastDP-Version: {version}\r\n\r\n"
        ),
    );
    assert!(head.starts_with("http/1.1 101"), "{head}");
    stream
}

/// A client that compresses first keeps a place only as long as nobody else wants it.
#[test]
fn a_connection_that_waits_for_its_header_goes_first_where_places_are_short() {
    for version in ["1.0.0", "1.1.0"] {
        for after_another in [false, true] {
            let served = Served::start(|options| options.connections_max = 3);
            let mut waiting: Vec<_> = (0..3).map(|_| upgrade(&served, version, after_another)).collect();
            let source = TempDir::new().unwrap();
            let file = source.path().join("f");
            std::fs::write(&file, "content").unwrap();
            served.put(Protocol::FastDp11, &file).unwrap();
            assert_eq!(served.names(), ["f"]);
            // The one that has waited longest was ended, and the others were not.
            let ended = waiting.remove(0).read(&mut [0]);
            assert!(ended.is_err() || ended.is_ok_and(|count| count == 0), "{version}, {after_another}");
            for mut other in waiting {
                other.set_nonblocking(true).unwrap();
                let waits = other.read(&mut [0]).map_err(|error| error.kind());
                assert_eq!(waits, Err(std::io::ErrorKind::WouldBlock), "{version}, {after_another}");
            }
        }
    }
}

/// A server that stops ends what it has not served with a reset as well.
#[test]
fn case_105_whoever_is_under_way_when_a_server_stops_is_reset() {
    let served = Served::start(|_| ());
    let mut silent = TcpStream::connect(served.address).unwrap();
    silent.write_all(b"half of a line").unwrap();
    let mut sends = served.begin_one("one");
    eventually("the transfer", || served.stages() == 1);
    drop(served);
    for stream in [&mut silent, &mut sends] {
        let ended = stream.read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(ended, Err(std::io::ErrorKind::ConnectionReset));
    }
}
