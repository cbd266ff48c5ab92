//! The certificates that an end trusts, and what it asks of its peer.

use super::error::{TlsError, certificate_error};
use super::identity::{Fingerprint, Identity, fingerprint, read_certificates};
use super::provider::provider;
use crate::inner::Inner;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    ServerConfig, SignatureScheme,
};
use std::path::Path;
use std::sync::Arc;

/// The certificates that an end trusts.
#[derive(Debug, Clone)]
pub enum Trust {
    /// This one, whatever its name.
    Pinned(Fingerprint),
    /// One of these, whatever their names.
    AnyPinned(Arc<[Fingerprint]>),
    /// Those that one of these has signed: a server's for the name that was dialled, a client's for
    /// any.
    Authorities(Arc<RootCertStore>),
}

impl Trust {
    /// The authorities in a PEM file.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, or has something else in it.
    pub fn from_pem(path: &Path) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in read_certificates(path)? {
            roots.add(certificate).map_err(certificate_error)?;
        }
        Ok(Self::Authorities(Arc::new(roots)))
    }

    /// Those that are trusted by their fingerprints, or the authorities.
    fn pins(&self) -> Result<Arc<[Fingerprint]>, &Arc<RootCertStore>> {
        match self {
            Self::Pinned(pin) => Ok([*pin].into()),
            Self::AnyPinned(pins) => Ok(Arc::clone(pins)),
            Self::Authorities(roots) => Err(roots),
        }
    }
}

/// The TLS of a client: the servers that it trusts, and, where servers ask for one, the certificate
/// that it shows.
#[derive(Debug, Clone)]
pub struct ClientTls {
    trust: Trust,
    identity: Option<Identity>,
}

impl ClientTls {
    /// Trusts these servers, and shows no certificate.
    pub fn new(trust: Trust) -> Self {
        Self { trust, identity: None }
    }

    /// Shows this certificate to servers that ask for one.
    pub fn identity(mut self, identity: &Identity) -> Self {
        self.identity = Some(identity.clone());
        self
    }

    pub(super) fn config(&self, inner: Inner) -> Result<Arc<ClientConfig>, TlsError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(certificate_error)?;
        let builder = match self.trust.pins() {
            Err(roots) => builder.with_root_certificates(Arc::clone(roots)),
            Ok(pins) => {
                let verifier = PinnedVerifier { pins, provider: provider(), mandatory: true };
                builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
            }
        };
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let (chain, key) = identity.parts();
                builder.with_client_auth_cert(chain, key).map_err(certificate_error)?
            }
        };
        config.alpn_protocols = vec![inner.alpn().to_vec()];
        Ok(Arc::new(config))
    }
}

impl From<Trust> for ClientTls {
    fn from(trust: Trust) -> Self {
        Self::new(trust)
    }
}

impl From<&Trust> for ClientTls {
    fn from(trust: &Trust) -> Self {
        Self::new(trust.clone())
    }
}

impl From<&Self> for ClientTls {
    fn from(tls: &Self) -> Self {
        tls.clone()
    }
}

/// The TLS of a server: its certificate, and the clients that it lets in.
#[derive(Debug, Clone)]
pub struct ServerTls {
    identity: Identity,
    clients: Option<Trust>,
    mandatory: bool,
}

impl ServerTls {
    /// Shows this certificate, and asks clients for none.
    pub fn new(identity: &Identity) -> Self {
        Self { identity: identity.clone(), clients: None, mandatory: false }
    }

    /// Lets in only clients with a certificate that is trusted.
    pub fn require_clients(mut self, trust: Trust) -> Self {
        (self.clients, self.mandatory) = (Some(trust), true);
        self
    }

    /// Asks clients for a certificate: one that they show has to be trusted; those that have none
    /// are let in.
    pub fn ask_clients(mut self, trust: Trust) -> Self {
        (self.clients, self.mandatory) = (Some(trust), false);
        self
    }

    /// For a port that speaks these protocols, the first of which is taken if a client speaks several.
    pub(super) fn config(&self, inner: &[Inner]) -> Result<Arc<ServerConfig>, TlsError> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(certificate_error)?;
        let builder = match self.clients.as_ref().map(Trust::pins) {
            None => builder.with_no_client_auth(),
            Some(Ok(pins)) => {
                let verifier = PinnedVerifier { pins, provider: provider(), mandatory: self.mandatory };
                builder.with_client_cert_verifier(Arc::new(verifier))
            }
            Some(Err(roots)) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider());
                let verifier = if self.mandatory { verifier } else { verifier.allow_unauthenticated() };
                builder.with_client_cert_verifier(verifier.build().map_err(certificate_error)?)
            }
        };
        let (chain, key) = self.identity.parts();
        let mut config = builder.with_single_cert(chain, key).map_err(certificate_error)?;
        config.alpn_protocols = inner.iter().map(|inner| inner.alpn().to_vec()).collect();
        Ok(Arc::new(config))
    }
}

impl From<&Identity> for ServerTls {
    fn from(identity: &Identity) -> Self {
        Self::new(identity)
    }
}

impl From<&Self> for ServerTls {
    fn from(tls: &Self) -> Self {
        tls.clone()
    }
}

/// Trusts certificates by their fingerprints, and checks that the peer has the key.
#[derive(Debug)]
struct PinnedVerifier {
    pins: Arc<[Fingerprint]>,
    provider: Arc<CryptoProvider>,
    mandatory: bool,
}

impl PinnedVerifier {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        if self.pins.contains(&fingerprint(certificate)) {
            Ok(())
        } else {
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".into()))
    }

    fn check_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for PinnedVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}
