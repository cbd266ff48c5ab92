//! TLS 1.3: who a server is, and whom a client trusts.

use crate::vstp::types::VstpError;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};
use sha2::{Digest, Sha256};
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, TlsStream};

const ALPN: &[u8] = b"vstp";
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// The SHA-256 of a certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
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

/// A server's certificate and its key.
pub struct Identity {
    certificates: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Makes a certificate that only its fingerprint speaks for, with these names.
    pub fn generate(names: &[&str]) -> Result<Self, VstpError> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).map_err(tls_error)?;
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        Ok(Self { certificates: vec![made.cert.der().clone()], key })
    }

    /// Reads a certificate chain and its key from PEM files.
    pub fn from_pem(certificates: &Path, key: &Path) -> Result<Self, VstpError> {
        let certificates = read_certificates(certificates)?;
        let key = PrivateKeyDer::from_pem_file(key).map_err(tls_error)?;
        Ok(Self { certificates, key })
    }

    /// What a client can pin.
    pub fn fingerprint(&self) -> Fingerprint {
        self.certificates.first().map_or(Fingerprint([0; 32]), fingerprint)
    }

    pub(super) fn server_config(&self) -> Result<Arc<ServerConfig>, VstpError> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls_error)?
            .with_no_client_auth()
            .with_single_cert(self.certificates.clone(), self.key.clone_key())
            .map_err(tls_error)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Arc::new(config))
    }
}

impl fmt::Debug for Identity {
    /// Never the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("fingerprint", &self.fingerprint()).finish_non_exhaustive()
    }
}

/// Whom a client trusts.
#[derive(Debug, Clone)]
pub enum Trust {
    /// The server with this certificate, whatever its name.
    Pinned(Fingerprint),
    /// Servers whose certificate is for the name that was dialled, and signed by one of these.
    Authorities(Arc<RootCertStore>),
}

impl Trust {
    /// The authorities in a PEM file.
    pub fn from_pem(path: &Path) -> Result<Self, VstpError> {
        let mut roots = RootCertStore::empty();
        for certificate in read_certificates(path)? {
            roots.add(certificate).map_err(tls_error)?;
        }
        Ok(Self::Authorities(Arc::new(roots)))
    }

    fn client_config(&self) -> Result<Arc<ClientConfig>, VstpError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls_error)?;
        let mut config = match self {
            Self::Authorities(roots) => {
                builder.with_root_certificates(Arc::clone(roots)).with_no_client_auth()
            }
            Self::Pinned(fingerprint) => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(PinnedVerifier(*fingerprint, provider())))
                .with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Arc::new(config))
    }
}

pub(crate) async fn connect(
    stream: TcpStream,
    addr: &str,
    trust: &Trust,
) -> Result<TlsStream<TcpStream>, VstpError> {
    let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    // A zone says how to get there; certificates know none.
    let host = host.split_once('%').map_or(host, |(host, _)| host);
    let name = ServerName::try_from(host.to_owned()).map_err(|_| VstpError::InvalidAddress)?;
    let connector = TlsConnector::from(trust.client_config()?);
    let handshake = tokio::time::timeout(HANDSHAKE_MAX, connector.connect(name, stream)).await;
    Ok(handshake.map_err(|_| VstpError::Timeout)??.into())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn fingerprint(certificate: &CertificateDer<'_>) -> Fingerprint {
    Fingerprint(Sha256::digest(certificate).into())
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, VstpError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(tls_error)?.collect();
    all.map_err(tls_error)
}

fn tls_error(error: impl std::error::Error + Send + Sync + 'static) -> VstpError {
    VstpError::Io(io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Trusts one certificate, and checks that the server has its key.
#[derive(Debug)]
struct PinnedVerifier(Fingerprint, Arc<CryptoProvider>);

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if fingerprint(end_entity) == self.0 {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.1.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.1.signature_verification_algorithms.supported_schemes()
    }
}
