//! The end that asks for a session.

use super::clock;
use super::config::Config;
use super::driver::{Shared, drive};
use super::error::{Error, Fault};
use super::link::{Link, Source};
use super::session::{Handle, Session};
use super::wire::Wire;
use crate::addresses::canonical;
use crate::connecting;
use crate::datagrams::{Path, Room, Socket, any_for};
use crate::inner::Inner;
use crate::metrics::Metrics;
use crate::spans;
use crate::tls::{self, ClientTls, Fingerprint, ServerName};
use crate::token::Token;
use fastdrop_proto::cnp::{
    Carrier, ChecksumKind, ConfigError, Ending, Mode, Protocol, Session as Machine, SessionConfig, SynForm,
};
use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::ToSocketAddrs;
use tracing::Instrument;

/// A session with a server that this end has asked for; everything that can be done with it is what
/// can be done with any [`Session`].
#[derive(Debug, Clone)]
pub struct Client(Session);

impl Deref for Client {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.0
    }
}

impl Client {
    /// Asks for a session by TCP, in burst mode, with everything that this program can do and the
    /// server agrees to.
    pub async fn connect(addr: impl ToSocketAddrs) -> Result<Self, Error> {
        Self::builder().connect(addr).await
    }

    /// The same, set up otherwise.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }
}

/// The session that a client asks for.
#[derive(Debug, Clone)]
pub struct ClientBuilder {
    config: Config,
    carrier: Carrier,
    mode: Mode,
    protocol: Protocol,
    checksum: ChecksumKind,
    client_id: Option<String>,
    first_generation: bool,
    token: Option<Token>,
    metrics: Metrics,
}

impl Default for ClientBuilder {
    fn default() -> Self {
        let default = SessionConfig::client(Carrier::Stream);
        Self {
            config: Config::default(),
            carrier: default.carrier,
            mode: default.mode,
            protocol: default.protocol,
            checksum: default.checksum,
            client_id: None,
            first_generation: default.first_generation,
            token: None,
            metrics: Metrics::default(),
        }
    }
}

impl ClientBuilder {
    /// The settings that both ends have alike.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// By UDP. Default: by TCP.
    pub fn udp(mut self) -> Self {
        self.carrier = Carrier::Datagrams;
        self
    }

    /// One message after the other, or a window of them. Default: burst.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// The repetition after a loss in burst mode. Default: Selective Repeat.
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// The checksum that covers packets. Default: CRC-32C, if the server knows it.
    pub fn checksum(mut self, checksum: ChecksumKind) -> Self {
        self.checksum = checksum;
        self
    }

    /// Takes a server that may be of the first or of the second published generation for one of the
    /// first. One of the first that handles one packet a connection ends it upon data of the
    /// second's type: where [`Agreed::is_first_or_second`](super::Agreed::is_first_or_second), and
    /// the session is lost before anything was acknowledged, this is worth another attempt.
    pub fn first_generation(mut self) -> Self {
        self.first_generation = true;
        self
    }

    /// The name that this client gives itself, in at most 128 bytes. Default: none.
    pub fn client_id(mut self, id: impl Into<String>) -> Self {
        self.client_id = Some(id.into());
        self
    }

    /// The token that is shown to the server. Without TLS everybody on the way can read it.
    /// Programs that do not know tokens let in everybody. Default: none.
    pub fn token(mut self, token: Token) -> Self {
        self.token = Some(token);
        self
    }

    /// Counts of what the session does. Default: counts of its own.
    pub fn metrics(mut self, metrics: Metrics) -> Self {
        self.metrics = metrics;
        self
    }

    /// The configuration of the session.
    fn session(&self) -> SessionConfig {
        SessionConfig {
            mode: self.mode,
            protocol: self.protocol,
            checksum: self.checksum,
            client_id: self.client_id.clone(),
            first_generation: self.first_generation,
            token: self.token.clone(),
            ..self.config.of_client(self.carrier)
        }
    }

    /// Asks for the session.
    ///
    /// A server that does not answer by TCP, or not with what an answer is, is asked again in the
    /// forms that other published programs understand.
    ///
    /// # Errors
    ///
    /// The outcome of the first attempt, if none has led to a session; a refusal in words at once.
    pub async fn connect(self, addr: impl ToSocketAddrs) -> Result<Client, Error> {
        self.connect_with(addr, None).await
    }

    /// Asks `host:port` for the session by TCP with TLS 1.3. There is none without TLS, whatever
    /// the server says.
    ///
    /// # Errors
    ///
    /// As [`Self::connect`], and whatever stands in the way of TLS with a server that is trusted.
    #[cfg(feature = "tls")]
    pub async fn connect_tls(self, addr: &str, tls: impl Into<ClientTls>) -> Result<Client, Error> {
        if self.carrier == Carrier::Datagrams {
            return Err(ConfigError("TLS is for TCP").into());
        }
        let security = Security { name: tls::host_of(addr)?, tls: tls.into() };
        self.connect_with(addr, Some(&security)).await
    }

    async fn connect_with(
        self,
        addr: impl ToSocketAddrs,
        security: Option<&Security>,
    ) -> Result<Client, Error> {
        let config = self.session();
        config.check()?;
        let until = clock::now() + config.handshake_timeout;
        let resolved = tokio::time::timeout_at(until.into(), tokio::net::lookup_host(addr)).await;
        let addresses: Vec<SocketAddr> = resolved.map_err(|_| Ending::HandshakeTimeout)??.collect();
        let mut first = None;
        // The other forms have no token, and nobody who asks for one understands them alone.
        let forms = if config.token.is_some() { &FORMS[..1] } else { &FORMS[..] };
        for &syn_form in forms {
            let config = SessionConfig { syn_form, ..config.clone() };
            match ask(&config, &addresses, until, security, &self.metrics).await {
                Err(Error::Ended(Ending::KnowsMore)) => break,
                Err(error) if config.carrier == Carrier::Stream && may_know_another_form(&error) => {
                    tracing::debug!(%error, ?syn_form, "no session in this form");
                    first.get_or_insert(error);
                }
                // Where asking in another form led to nobody, the first attempt says more.
                Err(Error::Io(_)) if first.is_some() => {}
                result => return result,
            }
        }
        // What was slow, or gone, is asked in full once more, if there is time.
        match ask(&config, &addresses, until, security, &self.metrics).await {
            Err(
                error @ Error::Ended(Ending::Refused(_) | Ending::Unauthorized(_) | Ending::PeerError(_)),
            ) => Err(error),
            Err(error) => Err(first.unwrap_or(error)),
            result => result,
        }
    }
}

/// The forms in which a server is asked by TCP, one after the other.
const FORMS: [SynForm; 3] = [SynForm::Full, SynForm::Fourth, SynForm::Third];

/// The part of the time for a handshake that a server has to answer one form before another is
/// tried: two fifths of it, and a fifth each for the others and for another attempt in full.
fn answer_time(config: &SessionConfig) -> Duration {
    let fifth = config.handshake_timeout / 5;
    if config.syn_form == SynForm::Full { fifth * 2 } else { fifth }
}

/// Reports whether a server that ended a handshake so may be a program that does not understand
/// this form of a SYN. One that says no in words understands it.
fn may_know_another_form(error: &Error) -> bool {
    let Error::Ended(ending) = error else { return false };
    matches!(ending, Ending::ConnectionLost | Ending::HandshakeTimeout | Ending::Protocol(_))
}

/// Asks for a session in one form. By UDP the addresses are asked one after the other, each for its
/// part of the time.
async fn ask(
    config: &SessionConfig,
    addresses: &[SocketAddr],
    until: Instant,
    security: Option<&Security>,
    metrics: &Metrics,
) -> Result<Client, Error> {
    if config.carrier == Carrier::Stream {
        return ask_one(config, addresses, until, security, metrics).await;
    }
    let mut waiting = addresses.chunks(1);
    loop {
        let address = waiting.next().unwrap_or_default();
        let left = until.saturating_duration_since(clock::now());
        let others = u32::try_from(waiting.len()).unwrap_or(u32::MAX - 1);
        match ask_one(config, address, clock::now() + left / (others + 1), security, metrics).await {
            Err(error) if others > 0 && error.fault() == Fault::Network => {
                tracing::debug!(?address, %error, "no session there");
            }
            result => return result,
        }
    }
}

async fn ask_one(
    config: &SessionConfig,
    addresses: &[SocketAddr],
    until: Instant,
    security: Option<&Security>,
    metrics: &Metrics,
) -> Result<Client, Error> {
    let connecting = link(config.carrier, addresses, security);
    let connected = tokio::time::timeout_at(until.into(), connecting).await;
    let (link, peer) = connected.map_err(|_| Ending::HandshakeTimeout)??;
    let mut config = config.clone();
    let left = until.saturating_duration_since(clock::now());
    config.handshake_timeout = match config.carrier {
        Carrier::Stream => left.min(answer_time(&config)),
        Carrier::Datagrams => left,
    };
    let fingerprint = link.fingerprint();
    let transport = if config.carrier == Carrier::Stream { "tcp" } else { "udp" };
    let span = spans::of("cnp", transport, peer);
    let shared = Shared::new(Machine::connect(clock::now(), config), span.clone());
    // The task ends by itself, after what the last caller left to be done.
    tokio::spawn(drive(Arc::clone(&shared), link, None, metrics.clone()).instrument(span));
    Ok(Client(open(shared, peer, fingerprint).await?))
}

/// The TLS of a session, and the name of the server.
struct Security {
    name: ServerName<'static>,
    tls: ClientTls,
}

async fn link(
    carrier: Carrier,
    addresses: &[SocketAddr],
    security: Option<&Security>,
) -> Result<(Link, SocketAddr), Error> {
    match carrier {
        Carrier::Stream => {
            let stream = connecting::connect(addresses).await?;
            let peer = stream.peer_addr()?;
            let wire = match security {
                None => Wire::Plain(stream),
                Some(Security { name, tls }) => {
                    let stream = tls::connect(stream, name.clone(), tls, Inner::Cnp).await?;
                    Wire::Tls(Box::new(stream.into()))
                }
            };
            Ok((Link::stream(wire, None), peer))
        }
        Carrier::Datagrams => {
            let peer = addresses.first().copied();
            let peer = peer.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no address"))?;
            let peer = canonical(peer);
            let socket = Socket::bind(any_for(peer)).await?;
            socket.connect(peer).await?;
            let socket = Arc::new(socket);
            let path = Path { remote: peer, local: None };
            Ok((Link::datagrams(socket, path, Source::Own(Room::new())), peer))
        }
    }
}

/// Waits until a session is open.
pub(super) async fn open(
    shared: Arc<Shared>,
    peer: SocketAddr,
    fingerprint: Option<Fingerprint>,
) -> Result<Session, Error> {
    let mut abandoned = Abandon(Some(Arc::clone(&shared)));
    loop {
        let waited = shared.progress.notified();
        let mut waited = std::pin::pin!(waited);
        {
            let state = shared.lock();
            if let (true, Some(agreed)) = (state.opened, state.session.agreed()) {
                let agreed = agreed.clone();
                drop(state);
                abandoned.0 = None;
                let shared = Arc::clone(&shared);
                return Ok(Session(Arc::new(Handle { shared, agreed, peer, fingerprint })));
            }
            if let Some(ending) = &state.ended {
                return Err(ending.clone().into());
            }
            waited.as_mut().enable();
        }
        waited.await;
    }
}

/// Nobody waits for the session any more.
struct Abandon(Option<Arc<Shared>>);

impl Drop for Abandon {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            shared.lock().abandoned = true;
            shared.changed.notify_one();
        }
    }
}
