//! NextDP: one file, pushed as one HTTP request a chunk. The specification is
//! `docs/protocol/nextdp.md`.

use std::collections::BTreeMap;
use thiserror::Error;

/// Where chunks are posted.
pub const PATH: &str = "/upload";
/// Bytes of a chunk of ours.
pub const CHUNK: u64 = 1 << 20;
/// The longest chunk that is taken, as it is sent and as it is decoded.
pub const CHUNK_MAX: u64 = 16 << 20;
/// More chunks are not taken.
pub const CHUNKS_MAX: u32 = 1 << 24;
/// Chunks that may come before chunk 0, and their bytes.
pub const EARLY_MAX: usize = 256;
/// See [`EARLY_MAX`].
pub const EARLY_BYTES_MAX: u64 = 256 << 20;
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
                let name = percent_encoding::percent_decode_str(name)
                    .decode_utf8()
                    .map_err(|_| bad("X-Filename"))?;
                let chunks = count(chunks).filter(|chunks| (1..=CHUNKS_MAX).contains(chunks));
                Some((name.into_owned(), chunks.ok_or_else(|| bad("X-Total-Chunks"))?))
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
    /// The head of the request for a server called `host`, before `bytes` of body.
    pub fn encode(&self, host: &str, bytes: u64) -> Vec<u8> {
        let mut head = format!(
            "POST {PATH}?chunk_number={} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/octet-stream\r\nContent-Length: {bytes}\r\n",
            self.number
        );
        if let Some((name, chunks)) = &self.first {
            head += &format!("X-Filename: {}\r\nX-Total-Chunks: {chunks}\r\n", encode_name(name));
        }
        if let Some(id) = &self.transfer {
            head += &format!("X-Transfer-Id: {id}\r\n");
        }
        head += "\r\n";
        head.into_bytes()
    }
}

/// A file name as a field of a request: what is not visible ASCII, and `%`, is percent-encoded.
pub fn encode_name(name: &str) -> String {
    const SET: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS.add(b'%').add(b' ');
    percent_encoding::utf8_percent_encode(name, SET).to_string()
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

/// What becomes of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It belongs there, in bytes from the file's beginning.
    Take(u64),
    /// It is held already.
    Known,
    /// Chunk 0, which tells where it belongs, has not come.
    Wait,
}

/// Puts a file together from chunks in any order.
#[derive(Debug, Clone, Default)]
pub struct Assembly {
    chunks: Option<u32>,
    /// Bytes of chunk 0.
    one_chunk: Option<u64>,
    /// Bytes of those that came before it.
    early: BTreeMap<u32, u64>,
    early_bytes: u64,
    held: Vec<u64>,
    count: u32,
    /// Bytes of the last chunk.
    last: u64,
}

impl Assembly {
    /// Decides about a chunk of `size` bytes, which is here as a whole. What is taken or waits
    /// counts from now on.
    pub fn handle_chunk(&mut self, number: u32, chunks: Option<u32>, size: u64) -> Result<Verdict, Refusal> {
        if number == 0 {
            match (self.chunks, chunks) {
                (Some(known), Some(chunks)) if known == chunks && self.one_chunk == Some(size) => {
                    return Ok(Verdict::Known);
                }
                (None, Some(chunks)) => {
                    if self.early.keys().any(|&early| early >= chunks) {
                        return Err(Refusal::new(400, "a chunk beyond the last has come before"));
                    }
                    (self.chunks, self.one_chunk) = (Some(chunks), Some(size));
                }
                _ => return Err(Refusal::new(409, "another transfer from this address is under way")),
            }
        }
        let (Some(chunks), Some(one_chunk)) = (self.chunks, self.one_chunk) else {
            if self.early.contains_key(&number) {
                return Ok(Verdict::Known);
            }
            if self.early.len() >= EARLY_MAX || self.early_bytes + size > EARLY_BYTES_MAX {
                return Err(Refusal::new(429, "too much came before chunk 0"));
            }
            self.early.insert(number, size);
            self.early_bytes += size;
            return Ok(Verdict::Wait);
        };
        self.place(number, size, chunks, one_chunk)
    }

    /// A chunk that waited: its number, and where it belongs.
    pub fn poll_early(&mut self) -> Result<Option<(u32, Verdict)>, Refusal> {
        let (Some(chunks), Some(one_chunk)) = (self.chunks, self.one_chunk) else { return Ok(None) };
        let Some((number, size)) = self.early.pop_first() else { return Ok(None) };
        self.place(number, size, chunks, one_chunk).map(|verdict| Some((number, verdict)))
    }

    fn place(&mut self, number: u32, size: u64, chunks: u32, one_chunk: u64) -> Result<Verdict, Refusal> {
        let is_last = number + 1 == chunks;
        if number >= chunks {
            return Err(Refusal::new(400, format!("chunk {number} is beyond the last")));
        }
        if size > one_chunk || (!is_last && size != one_chunk) || (chunks > 1 && one_chunk == 0) {
            return Err(Refusal::new(
                400,
                format!("chunk {number} of {size} bytes, where chunk 0 has {one_chunk}"),
            ));
        }
        let (at, bit) = (number as usize / 64, 1 << (number % 64));
        if at >= self.held.len() {
            self.held.resize(at + 1, 0);
        }
        let Some(word) = self.held.get_mut(at) else { return Ok(Verdict::Known) };
        if *word & bit != 0 {
            return Ok(Verdict::Known);
        }
        *word |= bit;
        self.count += 1;
        if is_last {
            self.last = size;
        }
        Ok(Verdict::Take(u64::from(number) * one_chunk))
    }

    /// Whether every chunk is here.
    pub fn is_complete(&self) -> bool {
        self.chunks == Some(self.count)
    }

    /// Bytes of the file, once it is complete.
    pub fn size(&self) -> u64 {
        let before = u64::from(self.chunks.unwrap_or(1).saturating_sub(1));
        before * self.one_chunk.unwrap_or(0) + self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(query: &str, fields: &[(&str, &'static str)]) -> Result<ChunkRequest, Refusal> {
        ChunkRequest::parse(Some(query), |name| {
            Ok(fields.iter().find(|(other, _)| *other == name).map(|(_, value)| *value))
        })
    }

    const FIRST: [(&str, &str); 2] = [("x-filename", "a%20b"), ("x-total-chunks", "3")];

    #[test]
    fn a_request_says_which_chunk_of_what() {
        let request = parse("chunk_number=0", &FIRST).unwrap();
        assert_eq!((request.number, request.first), (0, Some(("a b".into(), 3))));
        assert_eq!(parse("x=1&chunk_number=7", &[]).unwrap().number, 7);
        assert_eq!(
            parse("chunk_number=7", &[("x-transfer-id", "a-1")]).unwrap().transfer.as_deref(),
            Some("a-1")
        );
        assert_eq!(encode_name("ä %.txt"), "%C3%A4%20%25.txt");
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
            let encoded = request.encode("example.net:4321", bytes.parse().unwrap());
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
            &[("x-filename", "%ff"), ("x-total-chunks", "3")],
            &[("x-filename", "a"), ("x-total-chunks", "0")],
            &[("x-filename", "a"), ("x-total-chunks", "99999999999")],
            &[("x-filename", "a"), ("x-total-chunks", "1"), ("x-transfer-id", "a b")],
        ] {
            assert_eq!(parse("chunk_number=0", fields).unwrap_err().status, 400, "{fields:?}");
        }
    }

    #[test]
    fn cases_21_26_and_27_chunks_that_contradict_are_refused() {
        let mut assembly = Assembly::default();
        assert_eq!(assembly.handle_chunk(0, Some(3), 10), Ok(Verdict::Take(0)));
        assert_eq!(assembly.handle_chunk(0, Some(3), 10), Ok(Verdict::Known));
        assert_eq!(assembly.handle_chunk(0, Some(4), 10).unwrap_err().status, 409);
        assert_eq!(assembly.handle_chunk(3, None, 10).unwrap_err().status, 400);
        assert_eq!(assembly.handle_chunk(1, None, 9).unwrap_err().status, 400);
        assert_eq!(assembly.handle_chunk(2, None, 11).unwrap_err().status, 400);
        assert_eq!(assembly.handle_chunk(2, None, 0), Ok(Verdict::Take(20)));
        assert!(!assembly.is_complete());
        assert_eq!(assembly.handle_chunk(1, None, 10), Ok(Verdict::Take(10)));
        assert!(assembly.is_complete() && assembly.size() == 20);
    }

    #[test]
    fn what_comes_before_chunk_0_is_bounded() {
        let mut assembly = Assembly::default();
        for number in 1..=EARLY_MAX as u32 {
            assert_eq!(assembly.handle_chunk(number, None, 1), Ok(Verdict::Wait));
        }
        assert_eq!(assembly.handle_chunk(1, None, 1), Ok(Verdict::Known));
        assert_eq!(assembly.handle_chunk(1000, None, 1).unwrap_err().status, 429);
        let mut assembly = Assembly::default();
        assert_eq!(assembly.handle_chunk(1, None, EARLY_BYTES_MAX + 1).unwrap_err().status, 429);
    }

    proptest! {
        #[test]
        fn cases_22_28_and_32_any_order_gives_the_file(
            (order, len) in (0..100usize).prop_flat_map(|len| {
                let order = (0..len.div_ceil(10).max(1)).collect::<Vec<_>>();
                (Just(order).prop_shuffle(), Just(len))
            }),
        ) {
            let file: Vec<u8> = (0..len as u8).collect();
            let chunks: Vec<&[u8]> = if len == 0 { vec![&[]] } else { file.chunks(10).collect() };
            let mut assembly = Assembly::default();
            let mut out = vec![0; len];
            let mut put = |number: usize, verdict| {
                if let Verdict::Take(at) = verdict {
                    out[at as usize..][..chunks[number].len()].copy_from_slice(chunks[number]);
                }
            };
            for &number in &order {
                let first = (number == 0).then_some(chunks.len() as u32);
                let verdict = assembly.handle_chunk(number as u32, first, chunks[number].len() as u64).unwrap();
                put(number, verdict);
                while let Some((number, verdict)) = assembly.poll_early().unwrap() {
                    put(number as usize, verdict);
                }
            }
            prop_assert!(assembly.is_complete());
            prop_assert_eq!((assembly.size(), out), (len as u64, file));
        }
    }
}
