//! The protocol that a connection speaks, by its first bytes. The specification is
//! `docs/protocol/port.md`.

use crate::ultradp;

/// The most bytes that are looked at.
pub const FIRST_BYTES_MAX: usize = 16 << 10;

/// The first byte of a TLS record with a handshake (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// A protocol that begins with a line of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LineProtocol {
    /// UltraDP.
    UltraDp,
}

/// A test for the first line of a protocol, without its LF.
type IsItsLine = fn(&[u8]) -> bool;

/// The protocols that begin with a line of their own. One more is added here.
const LINES: &[(LineProtocol, IsItsLine)] = &[(LineProtocol::UltraDp, ultradp::is_announcement)];

/// What the first bytes of a connection begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begins {
    /// Not to be told yet: more bytes are needed.
    Undecided,
    /// An HTTP request.
    Http,
    /// The first line of a protocol that has one of its own.
    Line(LineProtocol),
    /// A TLS handshake.
    Tls,
    /// Nothing that is known; `like_http` if it begins with a letter, so that an HTTP answer may be
    /// understood.
    Unknown {
        /// Whether it begins as a method would, or with an empty line.
        like_http: bool,
    },
}

/// Looks at all bytes that have come so far.
pub fn begins(bytes: &[u8]) -> Begins {
    let Some(&first) = bytes.first() else { return Begins::Undecided };
    if first == TLS_HANDSHAKE {
        return Begins::Tls;
    }
    // An empty line is HTTP without a method rather than anything else.
    let like_http = first.is_ascii_alphabetic() || first == b'\r' || first == b'\n';
    let unknown = Begins::Unknown { like_http };
    if first < 0x20 {
        return unknown;
    }
    let within = bytes.get(..FIRST_BYTES_MAX).unwrap_or(bytes);
    let Some(end) = within.iter().position(|&byte| byte == b'\n') else {
        return if bytes.len() >= FIRST_BYTES_MAX { unknown } else { Begins::Undecided };
    };
    let line = within.get(..end).unwrap_or(within);
    let request = line.strip_suffix(b"\r").unwrap_or(line);
    if request.ends_with(b" HTTP/1.1") || request.ends_with(b" HTTP/1.0") {
        return Begins::Http;
    }
    let found = LINES.iter().find(|(_, is_its_line)| is_its_line(line));
    found.map_or(unknown, |&(protocol, _)| Begins::Line(protocol))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_first_line_decides() {
        for (bytes, expected) in [
            (&b""[..], Begins::Undecided),
            (b"GET / HT", Begins::Undecided),
            (b"GET / HTTP/1.1\r\n", Begins::Http),
            (b"POST /upload?chunk_number=1 HTTP/1.0\nx", Begins::Http),
            (b"GET x:12:0\n", Begins::Line(LineProtocol::UltraDp)),
            (b"GET /:5:1 HTTP/1.1\r\n", Begins::Http),
            (b"a HTTP/1.1:12:1\nrest", Begins::Line(LineProtocol::UltraDp)),
            (b"a:b:12:1\n\0", Begins::Line(LineProtocol::UltraDp)),
            (b"\xffx:0:0\n", Begins::Line(LineProtocol::UltraDp)),
            (b"a:12:0:1\n", Begins::Line(LineProtocol::UltraDp)),
            (b"a:12:1:0\n", Begins::Line(LineProtocol::UltraDp)),
            (b":12:0\n", Begins::Line(LineProtocol::UltraDp)),
            (b"12:0\n", Begins::Unknown { like_http: false }),
            (b"a:12:2\n", Begins::Unknown { like_http: true }),
            (b"a::0\n", Begins::Unknown { like_http: true }),
            (b"a:12:0\r\n", Begins::Unknown { like_http: true }),
            (b"\x16\x03", Begins::Tls),
            (b"\x00\x00", Begins::Unknown { like_http: false }),
            (b"\r\n", Begins::Unknown { like_http: true }),
            (b"SSH-2.0-x\r\n", Begins::Unknown { like_http: true }),
        ] {
            assert_eq!(begins(bytes), expected, "{}", bytes.escape_ascii());
        }
        assert_eq!(begins(&[b'a'; FIRST_BYTES_MAX - 1]), Begins::Undecided);
        assert_eq!(begins(&[b'a'; FIRST_BYTES_MAX]), Begins::Unknown { like_http: true });
    }
}
