//! Tokens and certificates: what each end shows, and what a listener lets in.

use super::failure::Failure;
use crate::args::message::{Listen, Protocol, Send, Spoken};
use fastdrop::{Target, shown};
use fastdrop_messages::tls::{ClientTls, Identity, ServerTls, Trust};
use fastdrop_messages::{Token, TokenSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The variable with a token. There is no flag for one, as others see the arguments of a program.
const VARIABLE: &str = "FASTDROP_TOKEN";

/// The place from which tokens come.
#[derive(Debug, Clone)]
pub(super) enum Source {
    File(PathBuf),
    Variable(OsString),
}

impl Source {
    /// The flag, or else the variable; None if neither was given.
    pub(super) fn of(file: Option<&Path>) -> Option<Self> {
        match file {
            Some(file) => Some(Self::File(file.to_owned())),
            None => std::env::var_os(VARIABLE).map(Self::Variable),
        }
    }

    /// The name of the file or of the variable.
    pub(super) fn name(&self) -> String {
        match self {
            Self::File(file) => file.display().to_string(),
            Self::Variable(_) => VARIABLE.to_owned(),
        }
    }

    /// The words about it, with its name.
    fn failed(&self, kind: ErrorKind, why: impl std::fmt::Display) -> Failure {
        Failure::Input(io::Error::new(kind, format!("{}: {why}", self.name())))
    }

    fn text(&self) -> Result<String, Failure> {
        match self {
            Self::File(path) => {
                let read = || {
                    let mut file = File::open(path)?;
                    self.warn_if_others_read(file.metadata()?.mode());
                    let mut text = String::new();
                    file.read_to_string(&mut text)?;
                    Ok::<_, io::Error>(text)
                };
                read().map_err(|error| self.failed(error.kind(), error))
            }
            Self::Variable(value) => {
                let text = value.clone().into_string();
                text.map_err(|_| self.failed(ErrorKind::InvalidData, "a token is text"))
            }
        }
    }

    fn warn_if_others_read(&self, mode: u32) {
        if mode & 0o044 != 0 {
            let name = shown(self.name().as_bytes());
            tracing::warn!("{name}: others can read the tokens in it; chmod 600 keeps them out");
        }
    }

    fn token(&self, line: &str) -> Result<Token, Failure> {
        if line.trim() != line {
            let why = "a token with blanks at its beginning or end, which nobody sees";
            return Err(self.failed(ErrorKind::InvalidData, why));
        }
        Token::new(line).map_err(|error| self.failed(ErrorKind::InvalidData, error))
    }

    fn no_token(&self) -> Failure {
        self.failed(ErrorKind::InvalidData, "there is no token in it")
    }

    /// The tokens that let clients in, one a line; at least one.
    pub(super) fn set(&self) -> Result<TokenSet, Failure> {
        let text = self.text()?;
        let tokens: Result<Vec<_>, _> = lines(&text).map(|line| self.token(line)).collect();
        let tokens = tokens?;
        if tokens.is_empty() {
            return Err(self.no_token());
        }
        Ok(TokenSet::new(tokens.iter().map(Token::secret)))
    }

    /// The token that is shown: that of the first line that has one. The others are not looked at.
    pub(super) fn one(&self) -> Result<Token, Failure> {
        let text = self.text()?;
        self.token(lines(&text).next().ok_or_else(|| self.no_token())?)
    }
}

/// The lines that are not empty.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.is_empty())
}

impl Listen {
    /// The tokens that are asked for.
    pub(super) fn tokens(&self) -> Option<Source> {
        Source::of(self.token_file.as_deref())
    }

    /// Returns true if what comes is to be encrypted.
    pub(super) fn encrypts(&self) -> bool {
        self.tls || self.cert.is_some()
    }

    /// The reason for which who is let in cannot be decided as it was asked for.
    pub(super) fn cannot_decide(&self) -> Option<&'static str> {
        if self.client_ca.is_some() && !self.encrypts() {
            return Some("--client-ca needs --tls or --cert: certificates are shown inside TLS alone");
        }
        if self.udp && self.protocol != Spoken::Cnp && self.tokens().is_some() {
            return Some(
                "vstp has no tokens by UDP, and would let in everybody: leave out --udp, or take --protocol cnp",
            );
        }
        None
    }

    /// The certificate that the listener shows, and those that it asks for.
    pub(super) fn tls(&self, identity: &Identity) -> Result<ServerTls, Failure> {
        let tls = ServerTls::new(identity);
        Ok(match &self.client_ca {
            Some(file) => tls.require_clients(Trust::from_pem(file)?),
            None => tls,
        })
    }
}

impl Send {
    /// The token that is shown; None if there is none.
    pub(super) fn token(&self) -> Result<Option<Token>, Failure> {
        self.token_source().map(|source| source.one()).transpose()
    }

    fn token_source(&self) -> Option<Source> {
        Source::of(self.token_file.as_deref())
    }

    fn encrypts(&self) -> bool {
        self.pin.is_some() || self.ca.is_some()
    }

    /// The reason for which this end cannot show what it was asked to.
    pub(super) fn cannot_show(&self, target: &Target) -> Option<&'static str> {
        if self.client_cert.is_some() && !self.encrypts() {
            return Some("--client-cert needs --pin or --ca: certificates are shown inside TLS alone");
        }
        self.token_source()?;
        if self.protocol == Protocol::Vstp && self.udp {
            return Some("vstp has no tokens by UDP: leave out --udp, or take --protocol cnp");
        }
        let is_far = !self.encrypts() && !is_this_machine(&target.host);
        is_far.then_some("a token goes to another machine inside TLS alone: give --pin or --ca")
    }

    /// The listeners that are trusted, and what is shown to them, if there is to be encryption.
    pub(super) fn tls(&self) -> Result<Option<ClientTls>, Failure> {
        let trust = match (self.pin, &self.ca) {
            (Some(pin), _) => Trust::Pinned(pin),
            (None, Some(ca)) => Trust::from_pem(ca)?,
            (None, None) => return Ok(None),
        };
        let tls = ClientTls::new(trust);
        Ok(Some(match (&self.client_cert, &self.client_key) {
            (Some(cert), Some(key)) => tls.identity(&Identity::from_pem(cert, key)?),
            _ => tls,
        }))
    }
}

/// Returns true for an address of this machine that nobody else has, or its name.
fn is_this_machine(host: &str) -> bool {
    let address = host.parse::<IpAddr>().map(|address| address.to_canonical());
    address.map_or(host.eq_ignore_ascii_case("localhost"), |address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_kept_from_every_host_that_is_not_surely_this_machine() {
        for host in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "localhost", "LOCALHOST"] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in ["192.0.2.1", "0.0.0.0", "::", "fe80::1", "localhost.example", "127.0.0.1.example", ""] {
            assert!(!is_this_machine(host), "{host}");
        }
    }
}
