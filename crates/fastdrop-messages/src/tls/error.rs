//! Reasons for which there is no TLS connection.

use rustls::CertificateError;
use std::io;
use std::time::Duration;

/// The most that a handshake may take.
pub(crate) const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// A TLS connection that there is not.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file is no certificate, or no key, or these do not belong together.
    #[error("a certificate or key that is of no use: {0}")]
    Certificate(String),
    /// The address has no name or number that a certificate could be for.
    #[error("there is no name or address in it that a certificate could be for")]
    Name,
    /// The handshake takes too long.
    #[error("no TLS handshake within {} seconds", HANDSHAKE_MAX.as_secs())]
    Timeout,
    /// The peer sends something else than TLS.
    #[error("the peer does not speak TLS; no message has passed in plain text")]
    NotTls,
    /// The server has another certificate than is trusted.
    #[error("the server's certificate is not one that is trusted: {0}; check the pin or the authorities")]
    Untrusted(String),
    /// The handshake failed, or the connection afterwards.
    #[error("TLS has failed: {0}")]
    Failed(String),
    /// The operating system says no.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl TlsError {
    /// The error inside one of input and output, if that is one of TLS.
    pub(crate) fn of_io(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(tls) => Self::of(tls),
            None => Self::Io(error),
        }
    }

    /// Returns true for an error that trying again does not mend: one of the ends does not trust the
    /// other's certificate.
    #[cfg(feature = "vstp")]
    pub(crate) fn is_refusal(error: &io::Error) -> bool {
        use rustls::AlertDescription as Alert;
        let Some(inner) = error.get_ref() else { return false };
        if let Some(Self::Untrusted(_)) = inner.downcast_ref::<Self>() {
            return true;
        }
        let Some(rustls::Error::AlertReceived(alert)) = inner.downcast_ref::<rustls::Error>() else {
            return false;
        };
        matches!(
            alert,
            Alert::CertificateRequired
                | Alert::AccessDenied
                | Alert::BadCertificate
                | Alert::CertificateExpired
                | Alert::CertificateRevoked
                | Alert::CertificateUnknown
                | Alert::UnknownCA
        )
    }

    pub(crate) fn of(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidMessage(_) => Self::NotTls,
            rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure) => {
                Self::Untrusted("it is another one".into())
            }
            rustls::Error::InvalidCertificate(why) => Self::Untrusted(why.to_string()),
            rustls::Error::AlertReceived(alert) => Self::Failed(refusal(*alert)),
            other => Self::Failed(other.to_string()),
        }
    }
}

pub(super) fn certificate_error(error: impl std::error::Error) -> TlsError {
    TlsError::Certificate(error.to_string())
}

/// The words for an alert: the peer's refusal of this end.
fn refusal(alert: rustls::AlertDescription) -> String {
    use rustls::AlertDescription as Alert;
    match alert {
        Alert::CertificateRequired => "the server lets in only clients with a certificate".into(),
        Alert::AccessDenied
        | Alert::BadCertificate
        | Alert::CertificateExpired
        | Alert::CertificateRevoked
        | Alert::CertificateUnknown
        | Alert::UnknownCA => format!("the peer does not trust this end's certificate ({alert:?})"),
        Alert::NoApplicationProtocol => "the server speaks another protocol inside TLS".into(),
        alert => format!("the peer ended the connection ({alert:?})"),
    }
}
