//! `host[:port][/path]`, also as a URL.

use percent_encoding::percent_decode;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Which server, and what there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Name or address, without brackets.
    pub host: String,
    /// By default that of the protocol.
    pub port: u16,
    /// Beneath the served folder; empty for itself. Bytes, because names are.
    pub path: Vec<u8>,
}

/// A text that is no target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not host[:port][/path]: {why}")]
pub struct TargetError {
    text: String,
    why: &'static str,
}

impl Target {
    /// Parses `host[:port][/path]` or `http://host[:port][/path]`. An IPv6 address stands in
    /// brackets. A URL is percent-decoded, once; what is not one is taken as it is.
    ///
    /// # Errors
    ///
    /// A text without a host, with a port that is none, or a URL with parts that name no file.
    pub fn parse(text: &OsStr, default_port: u16) -> Result<Self, TargetError> {
        let error = |why| TargetError { text: text.to_string_lossy().into_owned(), why };
        let (bytes, is_url) = match scheme(text.as_bytes()) {
            (Some(name), rest) if name.eq_ignore_ascii_case(b"http") => (rest, true),
            (Some(name), _) if name.eq_ignore_ascii_case(b"https") => {
                return Err(error("there is no TLS for files yet; http:// is without"));
            }
            (Some(_), _) => return Err(error("the only scheme of a URL is http")),
            (None, bytes) => (bytes, false),
        };
        let slash = bytes.iter().position(|&byte| byte == b'/').unwrap_or(bytes.len());
        let authority = std::str::from_utf8(&bytes[..slash]).map_err(|_| error("the host is not text"))?;
        let mut path = bytes.get(slash + 1..).unwrap_or_default().to_vec();
        // RFC 6874: the percent sign before a zone is encoded itself.
        let mut authority = authority.to_owned();
        if is_url {
            if bytes.iter().any(|byte| matches!(byte, b'?' | b'#')) {
                return Err(error("in a URL, ? and # are written as %3F and %23"));
            }
            if authority.contains('@') {
                return Err(error("there are no users"));
            }
            authority = authority.replacen("%25", "%", 1);
            path = percent_decode(&path).collect();
        }
        let authority = &authority[..];
        let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or_else(|| error("a bracket is not closed"))?;
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return Err(error("something stands between the bracket and the path")),
            }
        } else {
            match authority.split_once(':') {
                Some((_, rest)) if rest.contains(':') => return Err(error("an IPv6 address needs brackets")),
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            }
        };
        if host.is_empty() {
            return Err(error("there is no host"));
        }
        let port = match port {
            None => default_port,
            Some(port) => port
                .parse()
                .ok()
                .filter(|&port| port != 0)
                .ok_or_else(|| error("the port is not 1 to 65535"))?,
        };
        Ok(Self { host: host.into(), port, path })
    }

    /// Host and port as in a URL. A zone is left out: it means
    /// nothing to the peer (RFC 6874, section 1).
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            let host = self.host.split_once('%').map_or(&self.host[..], |(host, _zone)| host);
            format!("[{host}]:{}", self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// The scheme that stands before `://`, if there is one, and what follows.
fn scheme(text: &[u8]) -> (Option<&[u8]>, &[u8]) {
    let end = text.iter().position(|byte| !byte.is_ascii_alphanumeric()).unwrap_or(text.len());
    match text[end..].strip_prefix(b"://") {
        Some(rest) => (Some(&text[..end]), rest),
        None => (None, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<(String, u16, String)> {
        let target = Target::parse(OsStr::new(text), 8888).ok()?;
        Some((target.host, target.port, String::from_utf8(target.path).unwrap()))
    }

    #[test]
    fn a_target_is_a_host_with_or_without_port_and_path() {
        let some = |host: &str, port, path: &str| Some((host.to_owned(), port, path.to_owned()));
        assert_eq!(parse("h"), some("h", 8888, ""));
        assert_eq!(parse("h:1/a b/"), some("h", 1, "a b/"));
        assert_eq!(parse("h/p:2"), some("h", 8888, "p:2"));
        assert_eq!(parse("[::1]"), some("::1", 8888, ""));
        assert_eq!(parse("[::1]:70/x"), some("::1", 70, "x"));
        for bad in ["", "/x", ":1", "h:", "h:0", "h:70000", "::1", "[::1", "[::1]x"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_target_may_be_the_url_that_a_server_prints() {
        let some = |host: &str, port, path: &str| Some((host.to_owned(), port, path.to_owned()));
        for (text, expected) in [
            ("http://h", some("h", 8888, "")),
            ("http://h/", some("h", 8888, "")),
            ("http://h:1", some("h", 1, "")),
            ("HTTP://h:1/a/b/", some("h", 1, "a/b/")),
            ("http://127.0.0.1:8888", some("127.0.0.1", 8888, "")),
            ("http://[::1]:70/x", some("::1", 70, "x")),
            ("http://[fe80::1%25eth0]:70/x", some("fe80::1%eth0", 70, "x")),
            ("http://[fe80::1%eth0]/x", some("fe80::1%eth0", 8888, "x")),
            ("http://h/a%20b%C3%BC", some("h", 8888, "a bü")),
            // Decoded once, and only what is encoded.
            ("http://h/%252e%3F%23%25", some("h", 8888, "%2e?#%")),
            ("http://h/100%/%zz%4", some("h", 8888, "100%/%zz%4")),
            ("http://h/a+b", some("h", 8888, "a+b")),
            ("h/a%20b", some("h", 8888, "a%20b")),
            ("h/a?b#c", some("h", 8888, "a?b#c")),
            ("h/http://x", some("h", 8888, "http://x")),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
        for (bad, why) in [
            ("https://h/x", "no TLS"),
            ("ftp://h/x", "scheme"),
            ("://h", "scheme"),
            ("http://", "no host"),
            ("http:///x", "no host"),
            ("http://h:0/", "port"),
            ("http://h:/", "port"),
            ("http://::1/", "brackets"),
            ("http://h/x?y", "%3F"),
            ("http://h/x#y", "%23"),
            ("http://u@h/x", "users"),
            ("http:/h", "the port"),
        ] {
            let error = Target::parse(OsStr::new(bad), 8888).unwrap_err().to_string();
            let said = error.split_once("[/path]: ").unwrap().1;
            assert!(said.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn a_zone_is_of_this_machine_alone() {
        let target = Target::parse(OsStr::new("[fe80::1%eth0]:7/x"), 8888).unwrap();
        assert_eq!((&target.host[..], &target.authority()[..]), ("fe80::1%eth0", "[fe80::1]:7"));
    }
}
