//! Reasons for which messages are not sent or received, and the exit code that tells them.

use super::printer::NotWritten;
use crate::exit::ExitCode;
use crate::output::OutputError;
use fastdrop_messages::cnp;
use fastdrop_messages::port::PortError;
use fastdrop_messages::tls::TlsError;
use fastdrop_messages::vstp::VstpError;

/// A reason for which messages were not sent, or are not received.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Vstp(#[from] VstpError),
    #[error(transparent)]
    Cnp(#[from] cnp::Error),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("not let in by the peer, which says: {0}")]
    Unauthorized(String),
    #[error(transparent)]
    Port(#[from] PortError),
    #[error(transparent)]
    Input(#[from] std::io::Error),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error(transparent)]
    NotWritten(#[from] NotWritten),
}

impl Failure {
    /// The code that the program ends with.
    pub(super) fn code(&self) -> ExitCode {
        match self {
            Self::Vstp(error) | Self::Port(PortError::Vstp(error)) => code_of_vstp(error),
            Self::Cnp(error) | Self::Port(PortError::Cnp(error)) => code_of_cnp(error),
            Self::Input(error) | Self::Port(PortError::Io(error)) => code_of_io(error),
            Self::Tls(error) | Self::Port(PortError::Tls(error)) => code_of_tls(error),
            Self::Unauthorized(_) => ExitCode::Authentication,
            Self::Port(_) | Self::Output(_) | Self::NotWritten(_) => ExitCode::Other,
        }
    }
}

fn code_of_io(error: &std::io::Error) -> ExitCode {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::NotFound => ExitCode::NotFound,
        ErrorKind::InvalidData => ExitCode::Authentication,
        // Nothing that another attempt would change.
        ErrorKind::PermissionDenied => ExitCode::Other,
        _ => ExitCode::Network,
    }
}

fn code_of_tls(error: &TlsError) -> ExitCode {
    match error {
        TlsError::Timeout => ExitCode::Network,
        TlsError::Io(error) => code_of_io(error),
        _ => ExitCode::Authentication,
    }
}

fn code_of_vstp(error: &VstpError) -> ExitCode {
    match error {
        VstpError::Io(error) => code_of_io(error),
        VstpError::Timeout | VstpError::ConnectionClosed => ExitCode::Network,
        VstpError::CrcMismatch { .. } => ExitCode::Integrity,
        VstpError::FrameTooLarge { .. } | VstpError::ServerError(_) => ExitCode::Policy,
        _ => ExitCode::Other,
    }
}

fn code_of_cnp(error: &cnp::Error) -> ExitCode {
    use cnp::Ending;
    match error {
        cnp::Error::Io(error) => code_of_io(error),
        cnp::Error::TooLarge(_)
        | cnp::Error::NotText
        | cnp::Error::Ended(Ending::Refused(_) | Ending::PeerError(_)) => ExitCode::Policy,
        cnp::Error::Ended(
            Ending::PeerClosed
            | Ending::Unreachable
            | Ending::HandshakeTimeout
            | Ending::Gone
            | Ending::ConnectionLost,
        ) => ExitCode::Network,
        cnp::Error::Tls(error) => code_of_tls(error),
        cnp::Error::Ended(Ending::Tls(_) | Ending::Unauthorized(_)) => ExitCode::Authentication,
        cnp::Error::Config(_) => ExitCode::Usage,
        _ => ExitCode::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error, ErrorKind};

    #[test]
    fn what_happens_on_the_way_to_tls_is_the_network_and_what_it_says_is_not() {
        let broken = || TlsError::Io(Error::from(ErrorKind::ConnectionReset));
        for error in [TlsError::Timeout, broken()] {
            assert_eq!(Failure::Cnp(cnp::Error::Tls(error)).code(), ExitCode::Network);
        }
        assert_eq!(Failure::Tls(broken()).code(), ExitCode::Network);
        assert_eq!(Failure::Cnp(cnp::Error::Tls(TlsError::NotTls)).code(), ExitCode::Authentication);
        let denied = || Error::from(ErrorKind::PermissionDenied);
        assert_eq!(Failure::Input(denied()).code(), ExitCode::Other);
    }
}
