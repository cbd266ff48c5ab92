//! Certificates with their keys, and their fingerprints.

use super::error::{TlsError, certificate_error};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::Path;

/// The SHA-256 of a certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Its bytes.
    #[cfg(feature = "vstp")]
    pub(crate) fn to_bytes(self) -> [u8; 32] {
        self.0
    }

    /// Parses 64 hexadecimal digits, with or without colons between the bytes.
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits: Vec<u32> =
            text.chars().filter(|c| *c != ':').map(|c| c.to_digit(16)).collect::<Option<_>>()?;
        let bytes = digits.chunks(2).map(|pair| match pair {
            [high, low] => u8::try_from(high << 4 | low).ok(),
            _ => None,
        });
        bytes.collect::<Option<Vec<u8>>>()?.try_into().ok().map(Self)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// A certificate, of a server or a client, and its key.
pub struct Identity {
    certificates: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Makes a certificate that only its fingerprint speaks for, with these names.
    ///
    /// # Errors
    ///
    /// A name that cannot stand in a certificate.
    pub fn generate(names: &[&str]) -> Result<Self, TlsError> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).map_err(certificate_error)?;
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        Ok(Self { certificates: vec![made.cert.der().clone()], key })
    }

    /// Reads a certificate chain and its key from PEM files.
    ///
    /// # Errors
    ///
    /// Files that cannot be read, or have something else in them.
    pub fn from_pem(certificates: &Path, key: &Path) -> Result<Self, TlsError> {
        let certificates = read_certificates(certificates)?;
        let key = PrivateKeyDer::from_pem_file(key).map_err(certificate_error)?;
        Ok(Self { certificates, key })
    }

    /// The fingerprint of the certificate, which the other end can pin.
    pub fn fingerprint(&self) -> Fingerprint {
        self.certificates.first().map_or(Fingerprint([0; 32]), fingerprint)
    }

    /// The chain and the key.
    pub(super) fn parts(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (self.certificates.clone(), self.key.clone_key())
    }
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        let (certificates, key) = self.parts();
        Self { certificates, key }
    }
}

impl fmt::Debug for Identity {
    /// Never the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("fingerprint", &self.fingerprint()).finish_non_exhaustive()
    }
}

pub(super) fn fingerprint(certificate: &CertificateDer<'_>) -> Fingerprint {
    Fingerprint(Sha256::digest(certificate).into())
}

pub(super) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(certificate_error)?.collect();
    all.map_err(certificate_error)
}
