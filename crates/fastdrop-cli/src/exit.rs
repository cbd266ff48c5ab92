//! What the program ends with.

use fastdrop::{Error, ErrorKind};

/// Exit codes, as scripts see them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitCode {
    /// All done and verified.
    Done,
    /// None of the others.
    Other,
    /// The command line makes no sense.
    Usage,
    /// Some files did not make it.
    Partly,
    /// Something named is not there.
    NotFound,
    /// Network or timeout: worth a retry.
    Network,
    /// Authentication or identity.
    Authentication,
    /// Bytes are not what they should be.
    Integrity,
    /// No space, or over a quota.
    Space,
    /// Refused by policy.
    Policy,
    /// Sent, but the protocol cannot confirm that it arrived.
    Unconfirmed,
    /// Ended by this signal.
    Signal(u8),
}

impl ExitCode {
    pub(crate) fn number(self) -> u8 {
        match self {
            ExitCode::Done => 0,
            ExitCode::Other => 1,
            ExitCode::Usage => 2,
            ExitCode::Partly => 3,
            ExitCode::NotFound => 4,
            ExitCode::Network => 5,
            ExitCode::Authentication => 6,
            ExitCode::Integrity => 7,
            ExitCode::Space => 8,
            ExitCode::Policy => 9,
            ExitCode::Unconfirmed => 10,
            ExitCode::Signal(signal) => 128 + signal,
        }
    }

    /// The code for an error; `signal` is the one that interrupted, if one did.
    pub(crate) fn of(error: &Error, signal: Option<u8>) -> Self {
        match error.kind() {
            ErrorKind::Interrupted => signal.map_or(ExitCode::Other, ExitCode::Signal),
            kind => Self::of_kind(kind),
        }
    }

    /// The same, but [`Self::Done`] for [`Self::Unconfirmed`] if that is `ok`.
    pub(crate) fn unless_unconfirmed(self, ok: bool) -> Self {
        if self == ExitCode::Unconfirmed && ok { ExitCode::Done } else { self }
    }

    /// The code for a kind of failure.
    pub(crate) fn of_kind(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::NotFound => ExitCode::NotFound,
            ErrorKind::Network => ExitCode::Network,
            ErrorKind::Authentication => ExitCode::Authentication,
            ErrorKind::Integrity => ExitCode::Integrity,
            ErrorKind::Space => ExitCode::Space,
            ErrorKind::Policy => ExitCode::Policy,
            ErrorKind::Unsupported => ExitCode::Usage,
            _ => ExitCode::Other,
        }
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        code.number().into()
    }
}
