//! The errors of the engine, and whose fault they are.

use fastdrop_proto::fastdp::{AnswerError, Code, Failure, Refuse, UpgradeError, Violation};
use rustix::io::Errno;
use std::io;

/// What kind of failure it is; the program makes its exit code from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// None of the others.
    Other,
    /// Something named does not exist.
    NotFound,
    /// The network or the peer did not answer: worth a retry.
    Network,
    /// Who are you?
    Authentication,
    /// Bytes are not what they should be.
    Integrity,
    /// No space, or over a quota.
    Space,
    /// Not allowed, or something is in the way.
    Policy,
    /// Somebody wanted it to stop.
    Interrupted,
    /// The protocol cannot keep what was asked for: nothing was done.
    Unsupported,
}

/// Why a transfer, or one attempt at it, failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The peer refused, in its own words.
    #[error("the peer refused: {}", describe(.0))]
    Refused(Refuse),
    /// The peer could not be reached, or was lost.
    #[error("{0}")]
    Network(String),
    /// The peer speaks something else.
    #[error("{0}")]
    Foreign(String),
    /// The peer broke the protocol.
    #[error("{}", .0.message)]
    Violation(Violation),
    /// This end gave up, or refuses, for a reason of its own.
    #[error("{0}")]
    Failed(Failure),
    /// The operating system refused something on this machine.
    #[error("{what}: {}", words(source))]
    System {
        /// What was tried, with the name escaped.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// A sync has failed: the kernel may have dropped what was written, and says so only once.
    #[error("syncing failed, nothing of this can be trusted: {}", words(.0))]
    Sync(#[source] io::Error),
    /// The protocol cannot keep what was asked for. Nothing was done.
    #[error("{0}")]
    Unsupported(String),
    /// Stopped by a signal.
    #[error("interrupted")]
    Interrupted,
}

fn describe(refuse: &Refuse) -> String {
    let paths: Vec<_> = refuse.paths.iter().map(|path| crate::shown(path)).collect();
    let message = crate::shown(refuse.message.as_bytes());
    if paths.is_empty() { message } else { format!("{message}: {}", paths.join(", ")) }
}

/// What the system says, without Rust's number behind it.
pub(crate) fn words(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// The answer of the system.
pub(crate) fn reason(errno: Errno) -> String {
    words(&io::Error::from(errno))
}

impl Error {
    /// An error of the system while doing `what`.
    pub(crate) fn system(what: impl Into<String>, errno: Errno) -> Self {
        Error::System { what: what.into(), source: errno.into() }
    }

    /// A failed sync.
    pub(crate) fn sync(errno: Errno) -> Self {
        Error::Sync(errno.into())
    }

    /// A breach of the protocol by the peer, in words.
    pub(crate) fn protocol(message: impl Into<String>) -> Self {
        Error::Violation(Violation::protocol(message))
    }

    /// A reason of this end.
    pub(crate) fn failed(code: Code, message: impl Into<String>) -> Self {
        Error::Failed(Failure::new(code, message))
    }

    /// The error number, if it was the system that failed.
    pub(crate) fn errno(&self) -> Option<Errno> {
        match self {
            Error::System { source, .. } => Errno::from_io_error(source),
            _ => None,
        }
    }

    /// The code that tells the peer.
    pub(crate) fn code(&self) -> Code {
        match self {
            Error::Refused(refuse) => refuse.code,
            Error::Violation(violation) => violation.code,
            Error::Failed(failure) => failure.code,
            Error::System { .. } => self.errno().map_or(Code::Internal, code_of),
            Error::Sync(_) => Code::Internal,
            Error::Interrupted => Code::Unavailable,
            Error::Unsupported(_) | Error::Foreign(_) => Code::BadRequest,
            Error::Network(_) => Code::TooSlow,
        }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Network(_) => ErrorKind::Network,
            Error::Interrupted => ErrorKind::Interrupted,
            Error::Unsupported(_) => ErrorKind::Unsupported,
            Error::Foreign(_) => ErrorKind::Other,
            _ => kind_of(self.code()),
        }
    }

    /// Returns true if nothing of what was written can be trusted.
    pub(crate) fn is_distrust(&self) -> bool {
        matches!(self, Error::Sync(_) | Error::Violation(Violation { code: Code::Integrity, .. }))
    }

    /// What the peer is told.
    pub(crate) fn refusal(&self) -> Refuse {
        match self {
            Error::Refused(refuse) => refuse.clone(),
            // A name in `what` is relative to the served folder: it tells the peer nothing new.
            other => Refuse { code: other.code(), message: other.to_string(), paths: Vec::new() },
        }
    }
}

/// The kind of failure that a code stands for.
pub(crate) fn kind_of(code: Code) -> ErrorKind {
    match code {
        Code::Unauthenticated => ErrorKind::Authentication,
        Code::Forbidden | Code::Conflict | Code::OverLimit | Code::Unsupported => ErrorKind::Policy,
        Code::NotFound => ErrorKind::NotFound,
        Code::TooSlow | Code::Unavailable => ErrorKind::Network,
        Code::Integrity => ErrorKind::Integrity,
        Code::NoSpace => ErrorKind::Space,
        _ => ErrorKind::Other,
    }
}

/// The code that names an error of the system.
pub(crate) fn code_of(errno: Errno) -> Code {
    match errno {
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => Code::NoSpace,
        Errno::ROFS | Errno::ACCESS | Errno::PERM | Errno::LOOP | Errno::XDEV => Code::Forbidden,
        Errno::NOENT => Code::NotFound,
        Errno::EXIST | Errno::NOTDIR | Errno::ISDIR | Errno::NOTEMPTY => Code::Conflict,
        Errno::NAMETOOLONG | Errno::INVAL | Errno::ILSEQ => Code::Forbidden,
        Errno::MFILE | Errno::NFILE | Errno::NOMEM => Code::Unavailable,
        _ => Code::Internal,
    }
}

impl From<Violation> for Error {
    fn from(violation: Violation) -> Self {
        Error::Violation(violation)
    }
}

impl From<AnswerError> for Error {
    fn from(error: AnswerError) -> Self {
        match error {
            AnswerError::Foreign(message) => Error::Foreign(message),
            AnswerError::Refused(UpgradeError { status: 426, message }) => {
                Error::Foreign(format!("no common version: {message}"))
            }
            AnswerError::Refused(UpgradeError { status, message }) => {
                Error::Refused(Refuse { code: Code::new(status), message, paths: Vec::new() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[test]
    fn an_error_of_the_system_is_the_source_of_what_it_caused() {
        for error in [Error::system("writing f", Errno::NOSPC), Error::sync(Errno::NOSPC)] {
            let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
            assert_eq!(source.and_then(io::Error::raw_os_error), Some(Errno::NOSPC.raw_os_error()));
        }
        assert_eq!(
            Error::system("writing f", Errno::NOSPC).to_string(),
            "writing f: No space left on device"
        );
        assert_eq!(Error::system("writing f", Errno::NOSPC).code(), Code::NoSpace);
    }

    #[test]
    fn only_a_failed_sync_and_wrong_bytes_cost_what_was_written() {
        assert!(Error::sync(Errno::IO).is_distrust());
        assert!(Error::from(Violation::new(Code::Integrity, "x")).is_distrust());
        // Whatever a sentence says.
        assert!(!Error::failed(Code::Internal, "syncing failed").is_distrust());
        assert!(!Error::system("syncing failed", Errno::IO).is_distrust());
    }
}
