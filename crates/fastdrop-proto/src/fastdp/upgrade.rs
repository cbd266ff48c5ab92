//! The HTTP upgrade with which every connection begins (section 1).

use super::{Version, Versions};

/// Where a server answers.
pub const ENDPOINT: &str = "/fastdp-endpoint";
/// The name of a FastDrop server in its 101.
pub const SERVER: &str = concat!("FastDrop/", env!("CARGO_PKG_VERSION"));
/// The beginning of that name in every version.
const SERVER_NAME: &str = "FastDrop/";
/// Longest head in bytes.
pub const HEAD_BYTES_MAX: usize = 16 << 10;
const FIELDS_MAX: usize = 64;

/// What a client sends first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpgradeRequest {
    /// `Sec-FastDP-Key`.
    pub key: String,
    /// `Sec-FastDP-Version`.
    pub version: Version,
}

/// Why a request is not upgraded: the status to answer with, and a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {message}")]
pub struct UpgradeError {
    /// HTTP status.
    pub status: u16,
    /// For people.
    pub message: String,
}

/// The reason for which an answer is no upgrade.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// It is not one of fastdp, or not one to this request.
    #[error("{0}")]
    Foreign(String),
    /// The server refuses, or speaks another version (426).
    #[error("{0}")]
    Refused(UpgradeError),
}

fn foreign(message: impl Into<String>) -> AnswerError {
    AnswerError::Foreign(message.into())
}

fn refuse(status: u16, message: impl Into<String>) -> UpgradeError {
    UpgradeError { status, message: message.into() }
}

/// The length of the head at the beginning of `bytes`, with its empty line; None if it is not complete. An error if it is
/// too long, or has lines that do not end in CR LF.
pub fn head_len(bytes: &[u8]) -> Result<Option<usize>, UpgradeError> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4);
    let head = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or(bytes);
    if head.len() > HEAD_BYTES_MAX {
        return Err(refuse(431, "a head of more than 16 KiB"));
    }
    let bare = |(at, &byte): (usize, &u8)| {
        byte == b'\n' && at.checked_sub(1).and_then(|at| head.get(at)) != Some(&b'\r')
    };
    if head.iter().enumerate().any(bare) {
        return Err(refuse(400, "a line that does not end in CR LF"));
    }
    Ok(end)
}

/// The fields of a head, by name.
struct Fields<'a>(&'a [(&'a str, &'a [u8])]);

impl<'a> Fields<'a> {
    /// The value of the one field called `name`.
    fn only(&self, name: &str) -> Result<Option<&'a str>, UpgradeError> {
        let mut found = self.0.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
        let Some((_, value)) = found.next() else { return Ok(None) };
        if found.next().is_some() {
            return Err(refuse(400, format!("{name} twice")));
        }
        let value = std::str::from_utf8(value).map_err(|_| refuse(400, format!("{name} is not text")))?;
        Ok(Some(value.trim()))
    }
}

fn has_token(value: &str, token: &str) -> bool {
    value.split(',').any(|item| item.trim().eq_ignore_ascii_case(token))
}

/// Whether the request that `head` begins is for fastdp, to judge by its first line.
pub fn is_endpoint(head: &[u8]) -> bool {
    let mut words = head.split(|&byte| byte == b' ' || byte == b'\n');
    words.nth(1) == Some(ENDPOINT.as_bytes())
}

/// Parses a request for one of `versions`, once it is all there; None if more bytes are needed. `bytes` must hold all that has come so far.
pub fn parse_request(bytes: &[u8], versions: Versions) -> Result<Option<UpgradeRequest>, UpgradeError> {
    let Some(len) = head_len(bytes)? else { return Ok(None) };
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes.get(..len).unwrap_or(bytes)) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(refuse(400, "a malformed head")),
        Err(httparse::Error::TooManyHeaders) => return Err(refuse(431, "more than 64 fields")),
        Err(error) => return Err(refuse(400, format!("a malformed head: {error}"))),
    }
    let fields: Vec<_> = request.headers.iter().map(|field| (field.name, field.value)).collect();
    let is_1_1 = request.version == Some(1);
    let (method, path) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    let request = UpgradeRequest::check(method, path, is_1_1, &fields, versions)?;
    if bytes.len() > len {
        return Err(refuse(400, "bytes sent ahead of the answer"));
    }
    Ok(Some(request))
}

fn is_version(text: &str) -> bool {
    text.len() <= 32
        && text.split('.').count() == 3
        && text.split('.').all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
}

impl UpgradeRequest {
    /// A request for `version`.
    pub fn new(key: String, version: Version) -> Self {
        Self { key, version }
    }

    /// Checks a request whose head somebody else has parsed.
    pub fn check(
        method: &str,
        path: &str,
        is_http_1_1: bool,
        fields: &[(&str, &[u8])],
        versions: Versions,
    ) -> Result<Self, UpgradeError> {
        let fields = Fields(fields);
        if fields.only("content-length")?.is_some_and(|length| length != "0")
            || fields.only("transfer-encoding")?.is_some()
        {
            return Err(refuse(400, "an upgrade has no body"));
        }
        if fields.only("host")?.is_none() || !is_http_1_1 {
            return Err(refuse(400, "not HTTP/1.1 with one Host"));
        }
        if path != ENDPOINT {
            return Err(refuse(404, format!("this is a FastDrop server; fastdp is spoken at {ENDPOINT}")));
        }
        if method != "GET" {
            return Err(refuse(405, "only GET can be upgraded"));
        }
        let connection = fields.only("connection")?.unwrap_or_default();
        match fields.only("upgrade")? {
            Some(value) if value.eq_ignore_ascii_case("fastdp") && has_token(connection, "upgrade") => {}
            Some(_) => return Err(refuse(400, "an upgrade to something else than fastdp")),
            None => return Err(refuse(426, "this endpoint speaks fastdp after an upgrade")),
        }
        let version = fields.only("sec-fastdp-version")?.unwrap_or_default();
        if !is_version(version) {
            return Err(refuse(400, "Sec-FastDP-Version is not x.y.z"));
        }
        let spoken = Version::parse(version);
        // The older programs send a constant, which identifies nobody.
        let shortest = if matches!(spoken, Some(Version::V1_0 | Version::V1_1)) { 1 } else { 16 };
        let key = fields.only("sec-fastdp-key")?.unwrap_or_default();
        if !(shortest..=128).contains(&key.len()) || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(refuse(400, format!("Sec-FastDP-Key is not {shortest} to 128 visible characters")));
        }
        match spoken {
            Some(version) if versions.has(version) => Ok(Self { key: key.into(), version }),
            _ => Err(refuse(426, format!("version {version} is not spoken here, but {versions}"))),
        }
    }

    /// The head, for a server called `host`.
    pub fn encode(&self, host: &str) -> Vec<u8> {
        format!(
            "GET {ENDPOINT} HTTP/1.1\r\nHost: {host}\r\nUpgrade: fastdp\r\nConnection: Upgrade\r\n\
             Sec-FastDP-Key: {}\r\nSec-FastDP-Version: {}\r\n\r\n",
            self.key, self.version
        )
        .into_bytes()
    }

    /// The answer that accepts it.
    pub fn accept(&self) -> Vec<u8> {
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: fastdp\r\nConnection: Upgrade\r\n\
             Sec-FastDP-Key: {}\r\nSec-FastDP-Version: {}\r\nServer: {SERVER}\r\n\r\n",
            self.key, self.version
        )
        .into_bytes()
    }
}

impl UpgradeError {
    /// An error that a server answers with by itself.
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        refuse(status, message)
    }

    /// The answer that refuses, from a server that speaks `versions`.
    pub fn encode(&self, versions: Versions) -> Vec<u8> {
        let reason = match self.status {
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            409 => "Conflict",
            426 => "Upgrade Required",
            431 => "Request Header Fields Too Large",
            503 => "Service Unavailable",
            _ => "Refused",
        };
        let upgrade = match self.status {
            426 => "Upgrade: fastdp\r\n",
            405 => "Allow: GET\r\n",
            _ => "",
        };
        let connection = if self.status == 426 { "Upgrade, close" } else { "close" };
        format!(
            "HTTP/1.1 {} {reason}\r\n{upgrade}Sec-FastDP-Version: {versions}\r\nConnection: {connection}\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Length: {}\r\n\r\n{}\n",
            self.status,
            self.message.len() + 1,
            self.message
        )
        .into_bytes()
    }
}

/// What a client reads first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpgradeAnswer {
    /// The version that the server speaks.
    pub version: String,
    /// The server is a FastDrop, by its own word.
    pub is_fastdrop: bool,
    /// How many bytes of what was read belong to the answer.
    pub len: usize,
}

/// Parses the answer to `request`, once it is all there; None if more bytes are needed.
///
/// # Errors
///
/// The server refuses, or its answer is not fastdp's.
pub fn parse_answer(bytes: &[u8], request: &UpgradeRequest) -> Result<Option<UpgradeAnswer>, AnswerError> {
    let begin = b"HTTP/1.1 ";
    if !bytes.iter().zip(begin).all(|(byte, expected)| byte == expected) {
        return Err(foreign("the peer does not speak HTTP/1.1, let alone fastdp"));
    }
    let malformed = |error: UpgradeError| foreign(format!("not an answer of fastdp: {}", error.message));
    let Some(len) = head_len(bytes).map_err(malformed)? else { return Ok(None) };
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut answer = httparse::Response::new(&mut fields);
    match answer.parse(bytes.get(..len).unwrap_or(bytes)) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(foreign("not an answer of fastdp")),
        Err(error) => return Err(foreign(format!("not an answer of fastdp: {error}"))),
    }
    let fields: Vec<_> = answer.headers.iter().map(|field| (field.name, field.value)).collect();
    let fields = Fields(&fields);
    let Some(status) = answer.code.filter(|code| *code >= 100) else {
        return Err(foreign("not an answer of fastdp: it has no status"));
    };
    let version = fields.only("sec-fastdp-version").map_err(malformed)?.unwrap_or_default();
    if status != 101 {
        let length = fields.only("content-length").map_err(malformed)?.and_then(|text| text.parse().ok());
        let length = length.unwrap_or(0usize).min(1000);
        let body = bytes.get(len..).unwrap_or_default();
        if body.len() < length {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(body.get(..length).unwrap_or_default()).trim().to_owned();
        let text = if text.is_empty() { answer.reason.unwrap_or("refused").to_owned() } else { text };
        if version.is_empty() {
            return Err(foreign(format!("the peer speaks HTTP but not fastdp: it answers {status} {text}")));
        }
        if status == 426 {
            let why = format!("the peer speaks {version}, not {}: {text}", request.version);
            return Err(AnswerError::Refused(refuse(426, why)));
        }
        return Err(AnswerError::Refused(refuse(status, text)));
    }
    let upgrade = fields.only("upgrade").map_err(malformed)?.unwrap_or_default();
    if !upgrade.eq_ignore_ascii_case("fastdp") {
        return Err(foreign("the peer upgrades to something else"));
    }
    if fields.only("sec-fastdp-key").map_err(malformed)? != Some(&request.key[..]) {
        return Err(foreign("the peer answers another key"));
    }
    if Version::parse(version) != Some(request.version) {
        let why = format!("the peer answers in version {version:?}, not in {}", request.version);
        return Err(AnswerError::Refused(refuse(426, why)));
    }
    // A name that is given twice is nobody's.
    let server = fields.only("server").ok().flatten().unwrap_or_default();
    Ok(Some(UpgradeAnswer { version: version.into(), is_fastdrop: server.starts_with(SERVER_NAME), len }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: &str = "q83vEjRWeJASNFZ4kKvN7w";

    fn native() -> UpgradeRequest {
        UpgradeRequest::new(KEY.into(), Version::V2)
    }

    fn request() -> String {
        String::from_utf8(native().encode("h:1")).unwrap()
    }

    fn status(text: &str) -> u16 {
        parse_request(text.as_bytes(), Versions::V2).expect_err(text).status
    }

    #[test]
    fn a_request_is_taken_once_it_is_complete() {
        let text = request();
        for cut in 0..text.len() {
            assert_eq!(parse_request(&text.as_bytes()[..cut], Versions::V2), Ok(None));
        }
        assert_eq!(parse_request(text.as_bytes(), Versions::V2), Ok(Some(native())));
        let other_minor = text.replace("2.0.0", "2.7.1").replace("Upgrade\r\n", "keep-alive, upgrade\r\n");
        assert!(parse_request(other_minor.as_bytes(), Versions::V2).unwrap().is_some());
    }

    #[test]
    fn cases_1_2_4_5_6_8_and_10_are_refused_with_their_status() {
        let text = request();
        let line = format!("Sec-FastDP-Key: {KEY}\r\n");
        let with =
            |field: &str| text.replace("Upgrade: fastdp\r\n", &format!("{field}\r\nUpgrade: fastdp\r\n"));
        assert_eq!(status(&text.replace(&line, "")), 400);
        assert_eq!(status(&text.replace(KEY, "short")), 400);
        assert_eq!(status(&text.replace(&line, &line.repeat(2))), 400);
        for version in ["1.0.0", "1.1.0", "3.0.0", "20.0.0"] {
            assert_eq!(status(&text.replace("2.0.0", version)), 426);
        }
        assert_eq!(status(&text.replace("2.0.0", "two")), 400);
        assert_eq!(status(&with("Content-Length: 3\r\nTransfer-Encoding: chunked")), 400);
        assert_eq!(status(&with("Content-Length: 0\r\nContent-Length: 0")), 400);
        assert_eq!(status(&with("Content-Length: 3")), 400);
        assert_eq!(status(&with("Transfer-Encoding: chunked")), 400);
        assert_eq!(status(&text.replacen("\r\n", "\n", 1)), 400);
        assert_eq!(status(&with("A: b\r\n folded")), 400);
        assert_eq!(status(&with("A: b\0c")), 400);
        assert_eq!(status(&with("A : b")), 400);
        assert_eq!(status(&format!("{text}x")), 400);
        assert_eq!(status(&with(&format!("A: {}", "b".repeat(64 << 10)))), 431);
        assert_eq!(status(&with("A: b\r\n".repeat(1000).trim_end())), 431);
        assert_eq!(status(&"x".repeat(HEAD_BYTES_MAX + 1)), 431);
        assert_eq!(status(&text.replace("Upgrade: fastdp", "Upgrade: websocket")), 400);
        assert_eq!(status(&text.replace("Upgrade: fastdp\r\n", "")), 426);
        assert_eq!(status(&text.replace("Connection: Upgrade", "Connection: close")), 400);
        assert_eq!(status(&text.replace("GET", "POST")), 405);
        assert_eq!(status(&text.replace(ENDPOINT, "/")), 404);
        assert_eq!(status(&text.replace("HTTP/1.1", "HTTP/1.0")), 400);
        assert_eq!(status(&text.replace("Host: h:1\r\n", "")), 400);
    }

    #[test]
    fn the_older_versions_are_spoken_with_any_key() {
        let older = |version: &str| request().replace("2.0.0", version).replace(KEY, "fastdp-key");
        for (name, version) in [("1.0.0", Version::V1_0), ("1.1.0", Version::V1_1)] {
            let expected = UpgradeRequest::new("fastdp-key".into(), version);
            assert_eq!(parse_request(older(name).as_bytes(), Versions::ALL), Ok(Some(expected.clone())));
            let answer = expected.accept();
            assert!(String::from_utf8_lossy(&answer).contains(&format!("Sec-FastDP-Version: {name}\r\n")));
            assert!(parse_answer(&answer, &expected).unwrap().is_some());
        }
        let error = parse_request(older("1.2.0").as_bytes(), Versions::ALL).unwrap_err();
        assert_eq!(error.status, 400, "a short key of a version that nobody knows");
        let error = parse_request(request().replace("2.0.0", "1.2.0").as_bytes(), Versions::ALL).unwrap_err();
        assert_eq!(error.status, 426);
        assert!(error.message.contains("2.0.0, 1.1.0, 1.0.0"), "{error}");
        assert_eq!(status(&request().replace("2.0.0", "1.1.0")), 426);
    }

    #[test]
    fn a_refusal_names_the_versions_and_reaches_the_client() {
        let error = refuse(503, "no");
        let bytes = error.encode(Versions::V2);
        assert!(String::from_utf8_lossy(&bytes).contains("Sec-FastDP-Version: 2.0.0\r\n"));
        assert_eq!(parse_answer(&bytes, &native()), Err(AnswerError::Refused(error)));
        let other = String::from_utf8(refuse(426, "no").encode(Versions::V2))
            .unwrap()
            .replace("2.0.0", "1.0.0, 1.1.0");
        let error = parse_answer(other.as_bytes(), &native()).unwrap_err();
        assert!(error.to_string().contains("1.0.0, 1.1.0"), "{error}");
    }

    #[test]
    fn an_answer_must_be_ours() {
        let answer = native().accept();
        for cut in 0..answer.len() {
            assert_eq!(parse_answer(&answer[..cut], &native()), Ok(None));
        }
        let more = [&answer[..], b"more"].concat();
        assert_eq!(parse_answer(&more, &native()).unwrap().unwrap().len, answer.len());
        let text = String::from_utf8(answer).unwrap();
        for other in [
            text.replace(KEY, "another-key-than-this"),
            text.replace("Upgrade: fastdp", "Upgrade: h2c"),
            "SSH-2.0-OpenSSH_9.2\r\n".into(),
            "\x16\x03\x01".into(),
            text.replace("101", "000"),
            "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone".into(),
        ] {
            let error = parse_answer(other.as_bytes(), &native()).unwrap_err();
            assert!(matches!(error, AnswerError::Foreign(_)), "{other}: {error:?}");
        }
        match parse_answer(text.replace("2.0.0", "1.1.0").as_bytes(), &native()) {
            Err(AnswerError::Refused(error)) => assert_eq!(error.status, 426),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn case_105_the_answer_of_a_fastdrop_says_so_and_no_other_does() {
        let answer = String::from_utf8(native().accept()).unwrap();
        let is_fastdrop = |text: &str| parse_answer(text.as_bytes(), &native()).unwrap().unwrap().is_fastdrop;
        assert!(is_fastdrop(&answer));
        assert!(is_fastdrop(&answer.replace(SERVER, "FastDrop/99.0").replace("Server", "sErVeR")));
        let line = format!("Server: {SERVER}\r\n");
        for other in ["", "Server: nginx\r\n", "Server: NotFastDrop/1\r\n", "Server:\r\n", &line.repeat(2)] {
            assert!(!is_fastdrop(&answer.replace(&line, other)), "{other}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400), tail in any::<bool>()) {
            let mut bytes = bytes;
            if tail { bytes.extend_from_slice(b"\r\n\r\n"); }
            let _ = parse_request(&bytes, Versions::ALL);
            let _ = parse_answer(&bytes, &native());
            let answer = [b"HTTP/1.1 ".to_vec(), bytes].concat();
            let _ = parse_answer(&answer, &native());
        }
    }
}
