//! The certificates that an end trusts, and what it asks of its peer.

use super::error::{TlsError, certificate_error};
use super::identity::{Fingerprint, Identity, fingerprint, read_certificates};
use super::provider::provider;
use super::verifier::Verifier;
use crate::inner::Inner;
use rustls::client::WebPkiServerVerifier;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
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
    /// One of these, whatever their names and dates, and those that one of these has signed, as for
    /// [`Self::Authorities`].
    Listed {
        /// The certificates themselves.
        pins: Arc<[Fingerprint]>,
        /// The same, as those that sign.
        authorities: Arc<RootCertStore>,
    },
}

impl Trust {
    /// The certificates in a PEM file, and those that one of them has signed. A certificate of the
    /// file is trusted whatever its name and dates, also if it signs others (`CA:TRUE`); of one
    /// that is signed, a server's has to be for the name that was dialled. Whoever has the key of
    /// one in the file can sign others.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, or has something else in it.
    pub fn from_pem(path: &Path) -> Result<Self, TlsError> {
        let (mut authorities, mut pins) = (RootCertStore::empty(), Vec::new());
        for certificate in read_certificates(path)? {
            pins.push(fingerprint(&certificate));
            authorities.add(certificate).map_err(certificate_error)?;
        }
        Ok(Self::Listed { pins: pins.into(), authorities: Arc::new(authorities) })
    }

    /// Those that are trusted by their fingerprints, if any, and those that sign others, if any.
    fn parts(&self) -> (Option<Arc<[Fingerprint]>>, Option<&Arc<RootCertStore>>) {
        match self {
            Self::Pinned(pin) => (Some([*pin].into()), None),
            Self::AnyPinned(pins) => (Some(Arc::clone(pins)), None),
            Self::Authorities(authorities) => (None, Some(authorities)),
            Self::Listed { pins, authorities } => (Some(Arc::clone(pins)), Some(authorities)),
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

    pub(crate) fn config(&self, inner: Inner) -> Result<Arc<ClientConfig>, TlsError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(certificate_error)?;
        let builder = match self.trust.parts() {
            (None, Some(authorities)) => builder.with_root_certificates(Arc::clone(authorities)),
            (pins, authorities) => {
                let signed = authorities.map(signed_servers).transpose()?;
                let verifier = Verifier::new(pins.unwrap_or_default(), signed, true);
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

    /// For a port that speaks these protocols, the first of which is taken if a client speaks
    /// several.
    pub(crate) fn config(&self, inner: &[Inner]) -> Result<Arc<ServerConfig>, TlsError> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(certificate_error)?;
        let builder = match self.clients.as_ref().map(Trust::parts) {
            None => builder.with_no_client_auth(),
            Some((None, Some(authorities))) => {
                builder.with_client_cert_verifier(signed_clients(authorities, self.mandatory)?)
            }
            Some((pins, authorities)) => {
                let signed = authorities.map(|roots| signed_clients(roots, self.mandatory)).transpose()?;
                let verifier = Verifier::new(pins.unwrap_or_default(), signed, self.mandatory);
                builder.with_client_cert_verifier(Arc::new(verifier))
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

/// Trusts the servers that one of these has signed.
fn signed_servers(authorities: &Arc<RootCertStore>) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(authorities), provider());
    verifier.build().map_err(certificate_error)
}

/// Trusts the clients that one of these has signed, and whoever shows nothing unless that is
/// mandatory.
fn signed_clients(
    authorities: &Arc<RootCertStore>,
    mandatory: bool,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(authorities), provider());
    let verifier = if mandatory { verifier } else { verifier.allow_unauthenticated() };
    verifier.build().map_err(certificate_error)
}
