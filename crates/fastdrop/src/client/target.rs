//! `host[:port][/path]`.

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
    /// Parses what a user typed. An IPv6 address stands in brackets.
    pub fn parse(text: &OsStr, default_port: u16) -> Result<Self, TargetError> {
        let error = |why| TargetError { text: text.to_string_lossy().into_owned(), why };
        let bytes = text.as_bytes();
        let slash = bytes.iter().position(|&byte| byte == b'/').unwrap_or(bytes.len());
        let authority = std::str::from_utf8(&bytes[..slash]).map_err(|_| error("the host is not text"))?;
        let path = bytes.get(slash + 1..).unwrap_or_default().to_vec();
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

    /// Host and port as in a URL.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
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
}
