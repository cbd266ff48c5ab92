//! What can go wrong, and whose fault it is.

use crate::tls::TlsError;
use fastdrop_proto::cnp::{ConfigError, Ending, TooLarge};
use std::io;

/// The settings with which FastDrop takes longer messages.
const LARGER: &str = "`fastdrop message listen` takes more with --max-message, a program with \
     MessageLimits::message_max; a peer that knows no fragments with a larger packet (--max-size)";

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The session is over, for this reason. Whether a message that had no acknowledgement yet has
    /// arrived is not known.
    #[error(transparent)]
    Ended(#[from] Ending),
    /// The peer would not take a message of that size; nothing of it was sent.
    #[error("{0}; {LARGER}")]
    TooLarge(#[from] TooLarge),
    /// The peer's program takes text alone, and this message is none; nothing of it was sent.
    #[error("a message that is no text, where the peer takes text alone")]
    NotText,
    /// The configuration cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no TLS connection.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The operating system says no.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Whose fault something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This program's: it asked for what cannot be.
    Caller,
    /// The peer's: it says no, or says what may not be said.
    Peer,
    /// That of what is between: worth another attempt.
    Network,
    /// The operating system's.
    System,
}

impl Error {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::TooLarge(_) | Self::NotText | Self::Config(_) => Fault::Caller,
            Self::Tls(error) => match error {
                TlsError::Certificate(_) | TlsError::Name => Fault::Caller,
                TlsError::Timeout => Fault::Network,
                TlsError::Io(error) => of_io(error),
                _ => Fault::Peer,
            },
            Self::Io(error) => of_io(error),
            Self::Ended(ending) => match ending {
                Ending::Closed | Ending::Aborted => Fault::Caller,
                Ending::PeerClosed
                | Ending::PeerError(_)
                | Ending::Refused(_)
                | Ending::KnowsMore
                | Ending::Tls(_)
                | Ending::Unauthorized(_)
                | Ending::Protocol(_) => Fault::Peer,
                Ending::Unreachable | Ending::HandshakeTimeout | Ending::Gone | Ending::ConnectionLost => {
                    Fault::Network
                }
            },
        }
    }
}

fn of_io(error: &io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::TimedOut => Fault::Network,
        _ => Fault::System,
    }
}
