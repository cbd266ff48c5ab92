//! The errors of the engine, and whose fault they are.

use fastdrop_proto::fastdp::{Refuse, UpgradeError, Violation};
use rustix::io::Errno;

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
    /// The peer broke the protocol, or this end gave up for a reason with a code.
    #[error("{}", .0.message)]
    Violation(Violation),
    /// The operating system refused something on this machine.
    #[error("{what}: {}", reason(*.errno))]
    System {
        /// What was tried, with the name escaped.
        what: String,
        /// What the system said.
        errno: Errno,
    },
    /// A sync has failed: the kernel may have dropped what was written, and says so only once.
    #[error("syncing failed, nothing of this can be trusted: {}", reason(*.0))]
    Sync(Errno),
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
pub(crate) fn reason(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

impl Error {
    /// An error of the system while doing `what`.
    pub(crate) fn system(what: impl Into<String>, errno: Errno) -> Self {
        Error::System { what: what.into(), errno }
    }

    /// A failure with a code of the specification's section 11.
    pub(crate) fn with_code(code: u16, message: impl Into<String>) -> Self {
        Error::Violation(Violation::with_code(code, message))
    }

    /// The code that tells the peer.
    pub(crate) fn code(&self) -> u16 {
        match self {
            Error::Refused(refuse) => refuse.code,
            Error::Violation(violation) => violation.code,
            Error::System { errno, .. } => code_of(*errno),
            Error::Sync(_) => 500,
            Error::Interrupted => 503,
            Error::Unsupported(_) => 400,
            Error::Network(_) => 408,
            Error::Foreign(_) => 400,
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
        matches!(self, Error::Sync(_) | Error::Violation(Violation { code: 422, .. }))
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

/// The kind of failure that a code of section 11 stands for.
pub(crate) fn kind_of(code: u16) -> ErrorKind {
    match code {
        401 => ErrorKind::Authentication,
        403 | 409 | 413 | 415 => ErrorKind::Policy,
        404 => ErrorKind::NotFound,
        408 | 503 => ErrorKind::Network,
        422 => ErrorKind::Integrity,
        507 => ErrorKind::Space,
        _ => ErrorKind::Other,
    }
}

/// The code of section 11 that names an error of the system.
pub(crate) fn code_of(errno: Errno) -> u16 {
    match errno {
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => 507,
        Errno::ROFS | Errno::ACCESS | Errno::PERM | Errno::LOOP | Errno::XDEV => 403,
        Errno::NOENT => 404,
        Errno::EXIST | Errno::NOTDIR | Errno::ISDIR | Errno::NOTEMPTY => 409,
        Errno::NAMETOOLONG | Errno::INVAL | Errno::ILSEQ => 403,
        Errno::MFILE | Errno::NFILE | Errno::NOMEM => 503,
        _ => 500,
    }
}

impl From<Violation> for Error {
    fn from(violation: Violation) -> Self {
        Error::Violation(violation)
    }
}

impl From<UpgradeError> for Error {
    fn from(error: UpgradeError) -> Self {
        match error.status {
            0 => Error::Foreign(error.message),
            426 => Error::Foreign(format!("no common version: {}", error.message)),
            status => Error::Refused(Refuse { code: status, message: error.message, paths: Vec::new() }),
        }
    }
}
