//! NextDP: one file, pushed as one HTTP request a chunk. The specification is
//! `docs/protocol/nextdp.md`.

mod activity;
mod assembly;

pub use activity::{Activity, GIVEN_UP_AFTER, STALE_AFTER, Settled};
pub use assembly::{Assembly, AssemblyError, ChunkPlace, EARLY_BYTES_MAX, EARLY_MAX};

use thiserror::Error;

/// Where chunks are posted.
pub const PATH: &str = "/upload";
/// Bytes of a chunk of ours.
pub const CHUNK: u64 = 1 << 20;
/// The longest chunk that is taken, as it is sent and as it is decoded.
pub const CHUNK_MAX: u64 = 16 << 20;
/// More chunks are not taken.
pub const CHUNKS_MAX: u32 = 1 << 24;
/// What is answered to a chunk that is here.
pub const RECEIVED: &str = "Chunk received";
const TRANSFER_ID_MAX: usize = 64;

/// Why a request is refused: an HTTP status and a sentence.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// For people.
    pub message: String,
}

impl Refusal {
    /// A refusal with `status`.
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}

/// What a request says beside its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkRequest {
    /// Which chunk.
    pub number: u32,
    /// With chunk 0 only: what the file is called, and of how many chunks it consists.
    pub first: Option<(String, u32)>,
    /// Which transfer, if the sender says so.
    pub transfer: Option<String>,
}

impl ChunkRequest {
    /// Reads a request's query and fields; `field` finds the one field of a name, as text.
    pub fn parse<'a>(
        query: Option<&str>,
        field: impl Fn(&str) -> Result<Option<&'a str>, Refusal>,
    ) -> Result<Self, Refusal> {
        let bad = |what: &str| Refusal::new(400, format!("{what} is missing or malformed"));
        let mut numbers =
            query.unwrap_or_default().split('&').filter_map(|part| part.strip_prefix("chunk_number="));
        let number = match (numbers.next(), numbers.next()) {
            (Some(number), None) => count(number),
            _ => None,
        };
        let number = number.filter(|&number| number < CHUNKS_MAX).ok_or_else(|| bad("chunk_number"))?;
        let transfer = field("x-transfer-id")?;
        let is_name = |id: &str| {
            (1..=TRANSFER_ID_MAX).contains(&id.len())
                && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        };
        if !transfer.is_none_or(is_name) {
            return Err(bad("X-Transfer-Id"));
        }
        let first = match (number, field("x-filename")?, field("x-total-chunks")?) {
            (0, Some(name), Some(chunks)) => {
                let chunks = count(chunks).filter(|chunks| (1..=CHUNKS_MAX).contains(chunks));
                Some((name.to_owned(), chunks.ok_or_else(|| bad("X-Total-Chunks"))?))
            }
            (0, None, _) => return Err(bad("X-Filename")),
            (0, _, None) => return Err(bad("X-Total-Chunks")),
            _ => None,
        };
        Ok(Self { number, first, transfer: transfer.map(Into::into) })
    }
}

/// Decimal digits and nothing else.
fn count(text: &str) -> Option<u32> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

impl ChunkRequest {
    /// Encodes the head of the request for a server called `host`, before `bytes` of body; None
    /// if the file's name cannot stand in one.
    pub fn encode(&self, host: &str, bytes: u64) -> Option<Vec<u8>> {
        let mut head = format!(
            "POST {PATH}?chunk_number={} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/octet-stream\r\nContent-Length: {bytes}\r\n",
            self.number
        );
        if let Some((name, chunks)) = &self.first {
            if !is_field(name) {
                return None;
            }
            head += &format!("X-Filename: {name}\r\nX-Total-Chunks: {chunks}\r\n");
        }
        if let Some(id) = &self.transfer {
            head += &format!("X-Transfer-Id: {id}\r\n");
        }
        head += "\r\n";
        Some(head.into_bytes())
    }
}

/// Returns true for a text that the field of a request can carry as it is (RFC 9110, section 5.5):
/// without controls, and without blanks at its edges, which the receiver cannot see.
pub fn is_field(text: &str) -> bool {
    !text.is_empty() && text.trim_matches(' ') == text && !text.bytes().any(|byte| byte.is_ascii_control())
}

/// The answer to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Bytes of its head.
    pub head: usize,
    /// Bytes of its body, where it says so; otherwise the connection's end ends it.
    pub body: Option<u64>,
    /// Another request may follow.
    pub keep_alive: bool,
    /// The server is a FastDrop, by its own word: it says when a file is complete.
    pub is_fastdrop: bool,
    /// The file is complete, and has its name.
    pub is_complete: bool,
}

/// The field with which a FastDrop server says, by `true`, that the file is complete.
pub const COMPLETE: &str = "x-transfer-complete";

/// The longest head of an answer.
pub const ANSWER_HEAD_MAX: usize = 16 << 10;

/// Parses the head of an answer at the beginning of `bytes`; None if more are needed.
pub fn parse_answer(bytes: &[u8]) -> Result<Option<Answer>, Refusal> {
    let foreign = |what: &str| Refusal::new(0, format!("the peer's answer is not HTTP: {what}"));
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut answer = httparse::Response::new(&mut fields);
    let head = match answer.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) if bytes.len() < ANSWER_HEAD_MAX => return Ok(None),
        Ok(httparse::Status::Partial) => return Err(foreign("its head is too long")),
        Err(error) => return Err(foreign(&error.to_string())),
    };
    let field = |name: &str| {
        let found = answer.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
        found.and_then(|field| std::str::from_utf8(field.value).ok()).map(str::trim)
    };
    let chunked = field("transfer-encoding").is_some();
    let body = field("content-length").filter(|_| !chunked).and_then(|length| length.parse().ok());
    let closes = field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    let keep_alive = body.is_some() && !closes && answer.version == Some(1);
    let is_fastdrop = field("server").is_some_and(|server| server.starts_with("FastDrop/"));
    let is_complete = field(COMPLETE) == Some("true");
    let status = answer.code.unwrap_or(0);
    Ok(Some(Answer { status, head, body, keep_alive, is_fastdrop, is_complete }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str, fields: &[(&str, &'static str)]) -> Result<ChunkRequest, Refusal> {
        ChunkRequest::parse(Some(query), |name| {
            Ok(fields.iter().find(|(other, _)| *other == name).map(|(_, value)| *value))
        })
    }

    const FIRST: [(&str, &str); 2] = [("x-filename", "ä%20 b"), ("x-total-chunks", "3")];

    #[test]
    fn a_request_says_which_chunk_of_what() {
        let request = parse("chunk_number=0", &FIRST).unwrap();
        assert_eq!((request.number, request.first), (0, Some(("ä%20 b".into(), 3))));
        assert_eq!(parse("x=1&chunk_number=7", &[]).unwrap().number, 7);
        assert_eq!(
            parse("chunk_number=7", &[("x-transfer-id", "a-1")]).unwrap().transfer.as_deref(),
            Some("a-1")
        );
    }

    #[test]
    fn a_name_is_sent_as_it_is_or_not_at_all() {
        let encode = |name: &str| {
            let first = Some((name.to_owned(), 1));
            ChunkRequest { number: 0, first, transfer: None }.encode("h", 0)
        };
        for name in ["a", "ä %.txt", "%C3%A4", "a\u{a0}", "日本/語:1", "\u{85}", "a\u{80}b", "~"] {
            let head = String::from_utf8(encode(name).expect(name)).unwrap();
            assert!(head.contains(&format!("\r\nX-Filename: {name}\r\n")), "{head}");
        }
        let controls = (0..=0x1f).chain([0x7f]).map(|byte| format!("a{}b", char::from(byte)));
        let blanks = ["", " ", " a", "a ", "\ta", "a\t", "a\r", "a\nX-Total-Chunks: 9"].map(String::from);
        for name in controls.chain(blanks) {
            assert_eq!(encode(&name), None, "{name:?}");
        }
    }

    #[test]
    fn the_vectors_of_the_specification_are_what_the_code_writes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/protocol/vectors/nextdp.txt");
        let text = std::fs::read_to_string(path).unwrap();
        let mut count = 0;
        for vector in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let fields: Vec<_> = vector.split_whitespace().collect();
            let [number, name, chunks, transfer, bytes, head] = fields[..] else { panic!("{vector}") };
            let first = (name != "-").then(|| (name.to_owned(), chunks.parse().unwrap()));
            let transfer = (transfer != "-").then(|| transfer.to_owned());
            let request = ChunkRequest { number: number.parse().unwrap(), first, transfer };
            let encoded = request.encode("example.net:4321", bytes.parse().unwrap()).unwrap();
            assert_eq!(
                String::from_utf8_lossy(&encoded),
                String::from_utf8_lossy(&hex::decode(head).unwrap())
            );
            count += 1;
        }
        assert!(count >= 3);
    }

    #[test]
    fn an_answer_says_whether_another_request_may_follow() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\nChunk received";
        let parsed = parse_answer(answer).unwrap().unwrap();
        let (is_fastdrop, is_complete) = (false, false);
        let plain =
            Answer { status: 200, head: 39, body: Some(14), keep_alive: true, is_fastdrop, is_complete };
        assert_eq!(parsed, plain);
        let fields = b"HTTP/1.1 200 OK\r\nServer: FastDrop/1\r\nX-Transfer-Complete: true\r\nContent-Length: 0\r\n\r\n";
        let parsed = parse_answer(fields).unwrap().unwrap();
        assert!(parsed.is_fastdrop && parsed.is_complete);
        assert_eq!(parse_answer(&answer[..30]), Ok(None));
        let closing =
            parse_answer(b"HTTP/1.1 409 Conflict\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        assert!(!closing.unwrap().unwrap().keep_alive);
        assert!(
            !parse_answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                .unwrap()
                .unwrap()
                .keep_alive
        );
        parse_answer(b"SSH-2.0-x\r\n").unwrap_err();
    }

    #[test]
    fn cases_12_16_17_and_18_bad_requests_are_400() {
        for query in [
            "",
            "chunk_number=",
            "chunk_number=-1",
            "chunk_number=1e3",
            "chunk_number=16777216",
            "chunk_number=1&chunk_number=2",
        ] {
            assert_eq!(parse(query, &FIRST).expect_err(query).status, 400);
        }
        for fields in [
            &[("x-filename", "a")][..],
            &[("x-total-chunks", "3")],
            &[("x-filename", "a"), ("x-total-chunks", "0")],
            &[("x-filename", "a"), ("x-total-chunks", "99999999999")],
            &[("x-filename", "a"), ("x-total-chunks", "1"), ("x-transfer-id", "a b")],
        ] {
            assert_eq!(parse("chunk_number=0", fields).unwrap_err().status, 400, "{fields:?}");
        }
    }
}
