//! The protocol's bytes once more, written from its specification without the program's own code,
//! to say what no honest client would say.

use crate::wait::DEADLINE;
use serde_json::{Value, json};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64;

pub const OPEN: u8 = 0x01;
pub const GRANT: u8 = 0x02;
pub const REFUSE: u8 = 0x03;
pub const MANIFEST: u8 = 0x04;
pub const MANIFEST_END: u8 = 0x05;
pub const SKIP: u8 = 0x06;
pub const HELD: u8 = 0x07;
pub const NEED: u8 = 0x08;
pub const CONFIRM: u8 = 0x09;
pub const AGAIN: u8 = 0x0a;
pub const SIZE: u8 = 0x0d;
pub const ABANDONED: u8 = 0x0f;
pub const END: u8 = 0x10;
pub const DONE: u8 = 0x11;
pub const ALIVE: u8 = 0x13;
pub const COMPARE: u8 = 0x16;

/// The chunk size of the tests that do not try others.
pub const CHUNK: u64 = 262_144;

/// A key that no other connection has.
pub fn key() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("test{:08x}{:010x}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The request's lines, to be altered, ended with [`request`].
pub fn request_lines(key: &str) -> Vec<String> {
    vec![
        "GET /fastdp-endpoint HTTP/1.1".into(),
        "Host: 127.0.0.1".into(),
        "Upgrade: fastdp".into(),
        "Connection: Upgrade".into(),
        format!("Sec-FastDP-Key: {key}"),
        "Sec-FastDP-Version: 2.0.0".into(),
    ]
}

/// Lines as a request on the wire.
pub fn request(lines: &[String]) -> Vec<u8> {
    format!("{}\r\n\r\n", lines.join("\r\n")).into_bytes()
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// The head of an HTTP answer: its status and all of it in lower case. None if the connection ends
/// without one.
pub fn read_answer(stream: &mut TcpStream) -> Option<(u16, String)> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return None,
        }
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let status = head.strip_prefix("http/1.1 ").unwrap_or_else(|| panic!("not an HTTP answer: {head}"));
    Some((status[..3].parse().unwrap(), head))
}

/// Sends these bytes and reads the head of the answer. A server that does not read all of them is
/// fine.
pub fn http(port: u16, bytes: &[u8]) -> Option<(u16, String)> {
    let mut stream = connect(port);
    let _ = stream.write_all(bytes);
    read_answer(&mut stream)
}

/// A connection that was upgraded.
pub struct Raw {
    stream: TcpStream,
}

/// A frame from the server.
#[derive(Debug)]
pub struct Frame {
    pub number: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The control type, if it is one.
    pub fn control(&self) -> Option<u8> {
        (self.number >> 8 == 0x80_0000).then_some(self.number as u8)
    }

    /// The payload as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.payload).unwrap()
    }

    /// The payload as numbers.
    pub fn numbers(&self) -> Vec<u32> {
        self.payload.chunks(4).map(|four| u32::from_be_bytes(four.try_into().unwrap())).collect()
    }
}

/// A header as on the wire.
pub fn header(json: &[u8]) -> Vec<u8> {
    [&(json.len() as u32).to_be_bytes()[..], json].concat()
}

/// A frame as on the wire.
pub fn frame(number: u32, payload: &[u8]) -> Vec<u8> {
    [&number.to_be_bytes()[..], &(payload.len() as u32).to_be_bytes(), payload].concat()
}

/// A control frame as on the wire.
pub fn control(kind: u8, payload: &[u8]) -> Vec<u8> {
    frame(0x8000_0000 | u32::from(kind), payload)
}

/// A plain chunk with its XXH3 as on the wire.
pub fn chunk(number: u32, bytes: &[u8]) -> Vec<u8> {
    frame(number, &[bytes, &checksum(bytes)].concat())
}

/// The checksum of a piece.
pub fn checksum(bytes: &[u8]) -> [u8; 8] {
    xxh3_64(bytes).to_be_bytes()
}

/// The checksum of a pack: of the checksums of its slices.
pub fn pack_checksum(slices: &[&[u8]]) -> [u8; 8] {
    checksum(&slices.iter().flat_map(|slice| checksum(slice)).collect::<Vec<_>>())
}

fn entry(kind: u8, path: &[u8], mode: u32) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend((path.len() as u16).to_be_bytes());
    bytes.extend(path);
    bytes.extend(mode.to_be_bytes());
    bytes.extend(1_600_000_000_i64.to_be_bytes());
    bytes.extend(7_u32.to_be_bytes());
    bytes
}

/// An offer of a client to put something, right or wrong.
#[derive(Clone)]
pub struct Offer {
    entries: Vec<u8>,
    count: u32,
    pub bytes: u64,
    pub chunks: u64,
    pub one_chunk: u64,
    pack: Option<(u64, u32)>,
    /// The fields that go into OPEN.
    pub open: Value,
}

impl Offer {
    /// Nothing yet, to be put into the served folder.
    pub fn new() -> Self {
        let open = json!({
            "Do": "put", "Path": "", "Place": "into", "Streams": 1, "Checksum": "xxh3",
            "Existing": "error", "Durability": "commit", "Capabilities": ["sparse"]
        });
        Self { entries: Vec::new(), count: 0, bytes: 0, chunks: 0, one_chunk: CHUNK, pack: None, open }
    }

    /// Adds a file, and its chunks.
    pub fn file(mut self, path: impl AsRef<[u8]>, size: u64) -> Self {
        self.entries.extend(entry(1, path.as_ref(), 0o644));
        self.entries.extend(size.to_be_bytes());
        self.count += 1;
        self.bytes = self.bytes.wrapping_add(size);
        if size >= self.one_chunk {
            self.chunks = self.chunks.wrapping_add(size.div_ceil(self.one_chunk));
            self.pack = None;
        } else if size > 0 {
            let (bytes, files) = self.pack.unwrap_or((u64::MAX / 2, 0));
            if bytes + size <= self.one_chunk && files < 1024 {
                self.pack = Some((bytes + size, files + 1));
            } else {
                self.chunks += 1;
                self.pack = Some((size, 1));
            }
        }
        self
    }

    /// Adds a folder.
    pub fn folder(mut self, path: impl AsRef<[u8]>) -> Self {
        self.entries.extend(entry(2, path.as_ref(), 0o755));
        self.count += 1;
        self
    }

    /// Adds a link.
    pub fn link(mut self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entries.extend(entry(3, path.as_ref(), 0o777));
        self.entries.extend((target.as_ref().len() as u16).to_be_bytes());
        self.entries.extend(target.as_ref());
        self.count += 1;
        self
    }

    /// Adds a stream, which must be the last.
    pub fn stream(mut self, path: impl AsRef<[u8]>) -> Self {
        self.entries.extend(entry(4, path.as_ref(), 0o644));
        self.count += 1;
        self
    }

    /// Adds bytes that count as one entry.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.entries.extend(bytes);
        self.count += 1;
        self
    }

    /// Changes something of OPEN.
    pub fn open(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.open[key] = value.into();
        self
    }

    /// The header's JSON.
    pub fn header_json(&self) -> Value {
        json!({
            "OneChunk": self.one_chunk, "FullChunk": self.chunks, "FullSize": self.bytes,
            "DPVersion": "2.0.0", "CompressType": "None", "FileName": "test"
        })
    }

    /// MANIFEST_END's payload.
    pub fn end(&self) -> Vec<u8> {
        self.end_saying(self.count, self.bytes, xxh3_64(&self.entries))
    }

    /// MANIFEST_END's payload, with numbers of the caller's choice.
    pub fn end_saying(&self, count: u32, bytes: u64, digest: u64) -> Vec<u8> {
        [&count.to_be_bytes()[..], &bytes.to_be_bytes(), &digest.to_be_bytes()].concat()
    }

    /// Entries, bytes and digest, as MANIFEST_END should say.
    pub fn totals(&self) -> (u32, u64, u64) {
        (self.count, self.bytes, xxh3_64(&self.entries))
    }

    /// OPEN, MANIFEST and MANIFEST_END.
    pub fn frames(&self) -> Vec<u8> {
        self.frames_ending(&self.end())
    }

    /// OPEN, MANIFEST and this MANIFEST_END.
    pub fn frames_ending(&self, end: &[u8]) -> Vec<u8> {
        let open = control(OPEN, self.open.to_string().as_bytes());
        [open, control(MANIFEST, &self.entries), control(MANIFEST_END, end)].concat()
    }
}

/// The answers of the server to an offer.
#[derive(Debug)]
pub struct Granted {
    /// The transfer's id.
    pub transfer: String,
    /// XXH3 of what was negotiated, the first part of the root digest.
    transcript: Vec<u8>,
    /// Chunks that the server wants.
    pub chunks: u32,
    /// Bytes that it wants.
    pub bytes: u64,
}

impl Granted {
    /// END's payload for these chunks, in order.
    pub fn root_digest(&self, chunks: &[(u32, [u8; 8])]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&xxh3_64(&self.transcript).to_be_bytes());
        for (number, checksum) in chunks {
            hasher.update(&number.to_be_bytes());
            hasher.update(checksum);
        }
        *hasher.finalize().as_bytes()
    }
}

impl Raw {
    /// Upgrades a new connection.
    #[track_caller]
    pub fn connect(port: u16) -> Self {
        Self::connect_with_key(port, &key())
    }

    /// Upgrades a new connection with this key.
    #[track_caller]
    pub fn connect_with_key(port: u16, key: &str) -> Self {
        let mut stream = connect(port);
        stream.write_all(&request(&request_lines(key))).unwrap();
        let (status, head) = read_answer(&mut stream).expect("an answer to the upgrade");
        assert_eq!(status, 101, "{head}");
        assert!(
            head.contains(&format!("sec-fastdp-key: {}", key.to_lowercase())),
            "the key comes back: {head}"
        );
        assert!(head.contains("sec-fastdp-version: 2."), "the version is named: {head}");
        assert!(head.contains("upgrade: fastdp"), "{head}");
        Self { stream }
    }

    /// A connection without an upgrade.
    pub fn bare(port: u16) -> TcpStream {
        connect(port)
    }

    /// Sends bytes. The server may already have refused, which shows when reading.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// Sends no more, and still reads.
    pub fn finish(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    fn read_exact(&mut self, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        match self.stream.read_exact(&mut bytes) {
            Ok(()) => Some(bytes),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("the server says nothing and does not close")
            }
            Err(_) => None,
        }
    }

    fn read_u32(&mut self) -> Option<u32> {
        self.read_exact(4).map(|four| u32::from_be_bytes(four.try_into().unwrap()))
    }

    /// The JSON of the server's header.
    #[track_caller]
    pub fn read_header(&mut self) -> Vec<u8> {
        let len = self.read_u32().expect("a header from the server");
        assert!(len <= 65_536, "the server's header has a length of {len}");
        self.read_exact(len as usize).expect("a whole header from the server")
    }

    /// The next frame but ALIVE, or None at the end of the connection.
    pub fn next(&mut self) -> Option<Frame> {
        loop {
            let number = self.read_u32()?;
            let size = self.read_u32()?;
            assert!(size <= 32 << 20, "a frame of {size} bytes from the server");
            let frame = Frame { number, payload: self.read_exact(size as usize)? };
            if frame.control() != Some(ALIVE) {
                return Some(frame);
            }
        }
    }

    /// Reads up to a frame of this type and fails if a refusal or the end comes first.
    #[track_caller]
    pub fn wait_for(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self
                .next()
                .unwrap_or_else(|| panic!("the connection ended before a frame of type {kind:#x}"));
            if frame.control() == Some(kind) {
                return frame;
            }
            assert_ne!(frame.control(), Some(REFUSE), "refused: {}", String::from_utf8_lossy(&frame.payload));
        }
    }

    /// Reads CONFIRMs until all these chunks are confirmed.
    #[track_caller]
    pub fn wait_confirmed(&mut self, chunks: &[u32]) {
        let mut missing = chunks.to_vec();
        while !missing.is_empty() {
            let confirmed = self.wait_for(CONFIRM).numbers();
            missing.retain(|number| !confirmed.contains(number));
        }
    }

    /// Sends header, OPEN and manifest, and reads the answer.
    #[track_caller]
    pub fn offer(&mut self, offer: &Offer) -> Granted {
        let json = offer.header_json().to_string();
        self.send([header(json.as_bytes()), offer.frames()].concat());
        let server_json = self.read_header();
        let grant = self.wait_for(GRANT);
        let need = self.wait_for(NEED);
        let open = offer.open.to_string();
        Granted {
            transfer: grant.json()["Transfer"].as_str().unwrap().to_owned(),
            transcript: [json.as_bytes(), open.as_bytes(), &server_json, &grant.payload].concat(),
            chunks: u32::from_be_bytes(need.payload[..4].try_into().unwrap()),
            bytes: u64::from_be_bytes(need.payload[4..12].try_into().unwrap()),
        }
    }

    /// Sends a stream that is the only entry, and says that it has ended.
    pub fn send_stream(&mut self, granted: &Granted, bytes: &[u8]) {
        let mut sums = Vec::new();
        for (number, part) in bytes.chunks(CHUNK as usize).enumerate() {
            self.send(chunk(number as u32, part));
            self.wait_confirmed(&[number as u32]);
            sums.push((number as u32, checksum(part)));
        }
        self.send(control(SIZE, &[&[0; 4][..], &(bytes.len() as u64).to_be_bytes()].concat()));
        self.send(control(END, &granted.root_digest(&sums)));
    }

    /// Joins a transfer, whether the server likes it or not.
    pub fn join(port: u16, header_json: &Value, transfer: &str) -> Self {
        let mut raw = Self::connect(port);
        let open = json!({"Do": "join", "Transfer": transfer, "Streams": 1, "Checksum": "xxh3"}).to_string();
        raw.send([header(header_json.to_string().as_bytes()), control(OPEN, open.as_bytes())].concat());
        raw
    }

    /// Reads a refusal, with or without a header ahead of it, up to the end of the connection,
    /// which must come soon. DONE must not come. None if the connection ends without a word.
    #[track_caller]
    pub fn refusal(&mut self, header_was_read: bool) -> Option<(u64, String)> {
        let start = Instant::now();
        let mut found = None;
        if !header_was_read {
            let first = self.read_u32()?;
            if first <= 65_536 {
                self.read_exact(first as usize)?;
            } else {
                let size = self.read_u32()?;
                found = Some(Frame { number: first, payload: self.read_exact(size as usize)? });
            }
        }
        loop {
            if let Some(frame) = found.take().or_else(|| self.next()) {
                assert_ne!(frame.control(), Some(DONE), "what is wrong was taken for right");
                if frame.control() == Some(REFUSE) {
                    let json = frame.json();
                    let end = self.next();
                    assert!(end.is_none(), "REFUSE is the last frame, but {end:?} follows");
                    assert!(
                        start.elapsed() < Duration::from_secs(15),
                        "the refusal took {:?}",
                        start.elapsed()
                    );
                    return Some((
                        json["Code"].as_u64().unwrap(),
                        json["Message"].as_str().unwrap().to_owned(),
                    ));
                }
            } else {
                return None;
            }
        }
    }

    /// Fails unless a refusal with this code comes, and the connection ends.
    #[track_caller]
    pub fn expect_refusal(&mut self, header_was_read: bool, code: u64, why: &str) -> String {
        let (found, message) =
            self.refusal(header_was_read).unwrap_or_else(|| panic!("closed without a refusal: {why}"));
        assert_eq!(found, code, "{why}: refused with {found} ({message}) instead of {code}");
        assert!(
            !message.is_empty() && !message.contains(['\n', '\u{1b}']),
            "{why}: a message of one line: {message:?}"
        );
        message
    }
}
