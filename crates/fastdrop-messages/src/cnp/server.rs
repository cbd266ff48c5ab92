//! The end that is asked for sessions, by TCP, by UDP, or by both on one port.

use super::calls::Request;
use super::client::open;
use super::clock;
use super::config::Config;
use super::delivery::Delivery;
use super::drain::{DrainReport, UnderWay};
use super::driver::{Budget, Shared, drive};
use super::error::Error;
use super::in_hand::InHand;
use super::link::Link;
use super::listener::Listener;
use super::session::Session;
use super::wire::Wire;
use crate::datagrams::{Room, Socket, is_about_another};
use crate::incoming::{Accepted, Carried, Incoming, log_panic};
use crate::inner::Inner;
use crate::metrics::{Count, Metrics};
use crate::places::Limits;
use crate::shutdown::{Shutdown, ShutdownSignal};
use crate::spans;
use crate::tls::{Acceptor, ServerTls, TlsError};
use crate::token::Authorize;
use bytes::Bytes;
use fastdrop_proto::cnp::{Carrier, ConfigError, ErrorCode, Session as Machine, SessionConfig, SessionId};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::ToSocketAddrs;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::{Instrument, Span};

/// The sessions of a socket, for whoever receives from it.
pub(crate) type SharedListener = Arc<Mutex<Listener>>;

/// Listens for clients. When it is dropped, its sessions are closed in the background, within the
/// time that was set for that.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    ready: mpsc::Receiver<Session>,
    shutdown: Shutdown,
    drain: Duration,
    tasks: JoinSet<()>,
}

impl Server {
    /// Listens by TCP and by UDP, on one port.
    pub async fn bind(addr: impl ToSocketAddrs) -> Result<Self, Error> {
        Self::builder().bind(addr).await
    }

    /// The same, set up otherwise.
    pub fn builder() -> ServerBuilder {
        ServerBuilder::default()
    }

    /// The address that it listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The next session, its handshake done; None if nothing can come any more.
    pub async fn accept(&mut self) -> Option<Session> {
        self.ready.recv().await
    }

    /// Hands every message of every session to `handler`, one after the other for each session,
    /// with the session that it came from. Calls are refused.
    ///
    /// Handlers may keep the session, and send by it from anywhere, now and later: with
    /// [`Session::try_submit`], where one of many peers must not keep the others waiting. Whoever
    /// keeps it lets it go when [`Session::ended`]: until then it stays open, unless the peer
    /// or the server closes it.
    pub async fn run<F, Fut>(self, handler: F)
    where
        F: Fn(Session, Bytes) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send,
    {
        self.run_until(std::future::pending(), handler).await;
    }

    /// The same until `end`. Then nobody is accepted any more, and no message is taken and
    /// acknowledged any more: their senders are told that the session is over. Handlers that are at
    /// work have the time that was set for that, and may send; then the sessions are closed.
    ///
    /// A message is acknowledged when its handler begins. Those whose handler did not come to its
    /// end are in the report.
    pub async fn run_until<F, Fut>(self, end: impl Future<Output = ()>, handler: F) -> DrainReport
    where
        F: Fn(Session, Bytes) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send,
    {
        let under_way = UnderWay::default();
        let begun = under_way.clone();
        self.serve_until(end, move |delivery| {
            let (session, message) = (delivery.session().clone(), delivery.message().clone());
            let in_hand = InHand::new(&session.0.shared);
            let begun = begun.begin(session.peer_addr(), message.clone());
            delivery.acknowledge();
            let handled = handler(session, message);
            async move {
                handled.await;
                begun.finish();
                drop(in_hand);
            }
        })
        .await;
        under_way.report()
    }

    /// Hands every message of every session to `handler`, one after the other for each session,
    /// until `end`, and then as [`Self::run_until`]. A message is acknowledged when the handler
    /// says so. Calls are refused.
    pub async fn serve_until<F, Fut>(self, end: impl Future<Output = ()>, handler: F)
    where
        F: Fn(Delivery) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send,
    {
        self.serve_sessions(end, move |session| {
            let handler = handler.clone();
            async move {
                session.close_calls("nobody handles calls here, only messages");
                let _failed = Failed(&session);
                loop {
                    match session.recv_delivery().await {
                        Ok(Some(delivery)) => handler(delivery).await,
                        Ok(None) => break,
                        Err(error) => {
                            tracing::debug!(peer = %session.peer_addr(), %error, "the session ended");
                            break;
                        }
                    }
                }
            }
        })
        .await;
    }

    /// Answers the calls of every session, as [`Session::serve_calls`] does, at most `handlers` of
    /// each session beside each other. A session in which a message comes is ended.
    pub async fn run_calls<F, Fut>(self, handlers: usize, handler: F)
    where
        F: Fn(Request) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, String>> + Send,
    {
        self.run_calls_until(std::future::pending(), handlers, handler).await;
    }

    /// The same until `end`. Then calls that wait are refused, handlers that are at work have the
    /// time that was set for that, and their replies still leave.
    pub async fn run_calls_until<F, Fut>(self, end: impl Future<Output = ()>, handlers: usize, handler: F)
    where
        F: Fn(Request) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, String>> + Send,
    {
        self.serve_sessions(end, move |session| {
            let handler = handler.clone();
            async move {
                let no_messages = async {
                    if let Ok(Some(delivery)) = session.recv_delivery().await {
                        session.abort(ErrorCode::Unhandled, "messages are not taken here, only calls");
                        drop(delivery);
                    }
                };
                tokio::join!(session.serve_calls(handlers, handler), no_messages);
            }
        })
        .await;
    }

    /// Gives each session a task of its own, until `end`, and then the time that was set to come to
    /// an end.
    async fn serve_sessions<F, Fut>(mut self, end: impl Future<Output = ()>, serve: F)
    where
        F: Fn(Session) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let mut sessions = JoinSet::new();
        tokio::pin!(end);
        loop {
            while let Some(result) = sessions.try_join_next() {
                // A panic is the end of that session alone (case 93).
                log_panic(result);
            }
            let session = tokio::select! {
                session = self.accept() => session,
                () = &mut end => None,
            };
            let Some(session) = session else { break };
            let span = session.0.shared.span.clone();
            sessions.spawn(serve(session).instrument(span));
        }
        let drain = self.drain;
        let handlers = async {
            let all = async {
                while let Some(result) = sessions.join_next().await {
                    log_panic(result);
                }
            };
            if tokio::time::timeout(drain, all).await.is_err() {
                tracing::warn!("left handlers that did not end in time");
                sessions.shutdown().await;
            }
        };
        tokio::join!(self.close(), handlers);
    }

    /// Accepts nobody any more, and closes all sessions, within the time that was set for that.
    pub async fn close(mut self) {
        self.shutdown.begin();
        // Sessions that nobody has taken are dropped, and so closed.
        self.ready.close();
        while self.ready.recv().await.is_some() {}
        while let Some(result) = self.tasks.join_next().await {
            log_panic(result);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.begin();
        // They end by themselves, within the time that was set for that.
        self.tasks.detach_all();
    }
}

/// The settings of a server, and its bounds.
#[derive(Debug, Clone)]
pub struct ServerBuilder {
    config: Config,
    tls: Option<ServerTls>,
    authorize: Option<Authorize>,
    tcp: bool,
    udp: bool,
    sessions_max: usize,
    sessions_per_address: usize,
    idle_timeout: Option<Duration>,
    metrics: Metrics,
    memory_max: usize,
    drain: Duration,
}

impl Default for ServerBuilder {
    fn default() -> Self {
        Self {
            config: Config::default(),
            tls: None,
            authorize: None,
            tcp: true,
            udp: true,
            sessions_max: 1000,
            sessions_per_address: usize::MAX,
            idle_timeout: None,
            metrics: Metrics::default(),
            memory_max: 1 << 30,
            drain: Duration::from_secs(10),
        }
    }
}

impl ServerBuilder {
    /// Sessions whose handshake is done and that nobody has taken yet.
    const READY: usize = 256;

    /// The settings that both ends have alike: the most that this one agrees to.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Listens by TCP, or not. Default: yes.
    pub fn tcp(mut self, tcp: bool) -> Self {
        self.tcp = tcp;
        self
    }

    /// Listens by UDP, or not. Default: yes.
    pub fn udp(mut self, udp: bool) -> Self {
        self.udp = udp;
        self
    }

    /// TLS 1.3 for all sessions; then there is TCP alone. Clients that ask in plain text are told,
    /// and served nothing. Default: none.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: impl Into<ServerTls>) -> Self {
        self.tls = Some(tls.into());
        self.udp = false;
        self
    }

    /// The decision about who is let in, by the token that a client shows: a [`TokenSet`], or a
    /// function of the application. Default: everybody.
    ///
    /// [`TokenSet`]: crate::TokenSet
    pub fn authorize(mut self, authorize: impl Into<Authorize>) -> Self {
        self.authorize = Some(authorize.into());
        self
    }

    /// The settings that are agreed to by one kind of transport.
    fn session(&self, carrier: Carrier) -> Result<SessionConfig, ConfigError> {
        let config = self.config.of_server(carrier, self.tcp && self.udp)?;
        Ok(SessionConfig { authorize: self.authorize.clone(), ..config })
    }

    /// Sessions at once, by each of TCP and UDP. Default 1,000. By TCP more wait to be accepted, by
    /// UDP more are told that there is no room.
    pub fn sessions_max(mut self, count: usize) -> Self {
        self.sessions_max = count;
        self
    }

    /// Counts of what the server and its sessions do. Default: counts of its own.
    pub fn metrics(mut self, metrics: Metrics) -> Self {
        self.metrics = metrics;
        self
    }

    /// The time in which something comes by TCP, or the session is ended: for programs of the
    /// field, which know no keep-alives and may be silent for ever. Default: any.
    pub fn idle_timeout(mut self, time: Option<Duration>) -> Self {
        self.idle_timeout = time;
        self
    }

    /// Sessions by TCP of one IPv4 address, or of the 64 bits of an IPv6 address that name a
    /// network. Default: as many as of all. When there is no place for one more, an address that
    /// holds fewer gets one of the address that holds most: one without a session yet, or else one
    /// that was idle for five seconds.
    pub fn sessions_per_address(mut self, count: usize) -> Self {
        self.sessions_per_address = count;
        self
    }

    /// Bytes that all sessions together may keep. Default 1 GiB; beyond, a session that keeps more
    /// than 256 KiB is ended.
    pub fn memory_max(mut self, bytes: usize) -> Self {
        self.memory_max = bytes;
        self
    }

    /// The time that sessions have when the server closes. Default 10 seconds.
    pub fn drain(mut self, time: Duration) -> Self {
        self.drain = time;
        self
    }

    /// Takes the TLS, for somebody else who does the handshakes.
    pub(crate) fn take_tls(&mut self) -> Option<ServerTls> {
        self.tls.take()
    }

    /// Says if it listens by TCP, and by UDP.
    pub(crate) fn transports(&self) -> (bool, bool) {
        (self.tcp, self.udp)
    }

    /// Sessions at once.
    pub(crate) fn places(&self) -> Limits {
        Limits { all: self.sessions_max, of_one: self.sessions_per_address }
    }

    /// Listens.
    pub async fn bind(self, addr: impl ToSocketAddrs) -> Result<Server, Error> {
        let none = || io::Error::new(io::ErrorKind::NotFound, "no address");
        let mut address = tokio::net::lookup_host(addr).await?.next().ok_or_else(none)?;
        let incoming = match self.tcp {
            true => Some(Incoming::bind(address, self.places()).await?),
            false => None,
        };
        if let Some(incoming) = &incoming {
            // If a port was picked, it is one for both.
            address = incoming.local_addr()?;
        }
        let socket = match self.udp {
            true => Some(Arc::new(Socket::bind(address).await?)),
            false => None,
        };
        if let Some(socket) = &socket {
            address = socket.local_addr()?;
        }
        let (server, _) = self.start(address, incoming, socket, None)?;
        Ok(server)
    }

    /// Serves what comes from these. If somebody else receives from the socket, what is for this
    /// server is to be given to the listener, until the other end of `others` is dropped.
    pub(crate) fn start(
        self,
        address: SocketAddr,
        incoming: Option<Incoming>,
        socket: Option<Arc<Socket>>,
        others: Option<oneshot::Receiver<Infallible>>,
    ) -> Result<(Server, Option<SharedListener>), Error> {
        let (ready, taken) = mpsc::channel(Self::READY);
        let (shutdown, signal) = Shutdown::new();
        let budget = Arc::new(Budget::new(self.memory_max));
        let acceptor = self.tls.as_ref().map(|tls| Acceptor::new(tls, &[Inner::Cnp])).transpose()?;
        if acceptor.is_some() && socket.is_some() {
            return Err(ConfigError("TLS is for TCP: a server with it has no UDP").into());
        }
        let mut tasks = JoinSet::new();
        if let Some(incoming) = incoming {
            let config = self.session(Carrier::Stream)?;
            let (ready, budget) = (ready.clone(), Arc::clone(&budget));
            let (idle_timeout, metrics) = (self.idle_timeout, self.metrics.clone());
            let acceptance =
                Acceptance { config, acceptor, ready, budget, idle_timeout, metrics, drain: self.drain };
            let serve = move |accepted: Accepted, signal: ShutdownSignal| {
                let span = spans::of("cnp", "tcp", accepted.peer);
                serve_stream(accepted, signal, acceptance.clone(), span.clone()).instrument(span)
            };
            let (end, drain) = (signal.clone().waited(), self.drain);
            tasks.spawn(async move { incoming.serve(end, drain.saturating_add(FAREWELL), serve).await });
        }
        let mut shared_listener = None;
        if let Some(socket) = socket {
            let config = self.session(Carrier::Datagrams)?;
            let listener = Listener::new(
                Arc::clone(&socket),
                config,
                self.sessions_max,
                ready,
                budget,
                self.metrics.clone(),
            );
            let listener = Arc::new(Mutex::new(listener));
            shared_listener = Some(Arc::clone(&listener));
            tasks.spawn(serve_datagrams(listener, socket, others, signal, self.drain));
        }
        let server = Server { address, ready: taken, shutdown, drain: self.drain, tasks };
        Ok((server, shared_listener))
    }
}

/// The time that sessions have to say their last word, when the time to come to an end is over.
const FAREWELL: Duration = Duration::from_secs(1);
const DRAINED: &str = "the server ends, and did not finish in time";

/// No time that is left for a handshake is shorter.
const SHORTEST: Duration = Duration::from_millis(1);

/// The settings of what becomes of connections.
#[derive(Clone)]
struct Acceptance {
    config: SessionConfig,
    acceptor: Option<Acceptor>,
    ready: mpsc::Sender<Session>,
    budget: Arc<Budget>,
    idle_timeout: Option<Duration>,
    metrics: Metrics,
    drain: Duration,
}

async fn serve_stream(accepted: Accepted, mut signal: ShutdownSignal, acceptance: Acceptance, span: Span) {
    let Accepted { stream, peer, place } = accepted;
    let place = Arc::new(place);
    let Acceptance { mut config, acceptor, ready, budget, idle_timeout, metrics, drain } = acceptance;
    let begin = clock::now();
    let wire = match (stream, acceptor) {
        (Carried::Plain(stream), None) => Wire::Plain(stream),
        (Carried::Secured(stream), _) => Wire::Tls(Box::new((*stream).into())),
        (Carried::Plain(stream), Some(acceptor)) => {
            // Its memory is given back when the session begins, which may be idle for long.
            let secured = Box::pin(async move {
                let secured = acceptor.accept(stream).await?;
                Ok(Wire::Tls(Box::new(secured.into())))
            });
            let secured = tokio::select! {
                secured = tokio::time::timeout(config.handshake_timeout, secured) => secured,
                () = signal.wait() => return,
                () = place.lost() => return metrics.on(Count::Refused),
            };
            match secured.unwrap_or(Err(TlsError::Timeout)) {
                Ok(wire) => wire,
                Err(error) => {
                    metrics.on(Count::Refused);
                    return tracing::debug!(%peer, %error, "no session");
                }
            }
        }
    };
    let fingerprint = wire.fingerprint();
    // The time for the handshake is one, with TLS or without.
    config.handshake_timeout = config.handshake_timeout.saturating_sub(begin.elapsed()).max(SHORTEST);
    let mut id = [0; 16];
    if let Err(error) = getrandom::fill(&mut id) {
        tracing::error!(%error, "no id that nobody can guess");
        return;
    }
    let machine = Machine::accept(clock::now(), config, SessionId::from_random(id));
    let shared = Shared::new(machine, span);
    let hand_over = async {
        match open(Arc::clone(&shared), peer, fingerprint).await {
            Ok(session) => {
                tracing::debug!(%peer, "a session by TCP");
                place.on_frame(clock::now());
                // If nobody takes it any more, it is dropped, and so closed.
                let _ = ready.send(session).await;
            }
            Err(error) => tracing::debug!(%peer, %error, "no session"),
        }
    };
    let close = async {
        signal.wait().await;
        shared.lock().shut_down();
        shared.changed.notify_one();
        tokio::time::sleep(drain).await;
        shared.lock().session.abort(ErrorCode::Shutdown, DRAINED);
        shared.changed.notify_one();
        std::future::pending().await
    };
    let evict = async {
        place.lost().await;
        metrics.on(Count::Refused);
        shared.lock().session.abort(ErrorCode::Busy, "there are too many sessions, and this one is idle");
        shared.changed.notify_one();
        std::future::pending().await
    };
    place.on_heard(clock::now());
    let idle = async {
        let Some(time) = idle_timeout else { return std::future::pending().await };
        loop {
            let Some(at) = place.heard_at().checked_add(time) else { return std::future::pending().await };
            if at <= clock::now() {
                break;
            }
            tokio::time::sleep_until(at.into()).await;
        }
        metrics.on(Count::TimedOut);
        shared.lock().session.abort(ErrorCode::Timeout, "nothing came for too long");
        shared.changed.notify_one();
        std::future::pending().await
    };
    let link = Link::stream(wire, Some(Arc::clone(&place)));
    let driven = drive(Arc::clone(&shared), link, Some(budget), metrics.clone());
    tokio::select! {
        _ = async { tokio::join!(driven, hand_over) } => {}
        () = close => {}
        () = evict => {}
        () = idle => {}
    }
}

/// Closes a session whose handler panics, as if nobody held it: nobody takes what comes.
struct Failed<'a>(&'a Session);

impl Drop for Failed<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.0.abandon();
        }
    }
}

/// Receives, as soon as nobody else does, and waits for the end.
async fn serve_datagrams(
    listener: SharedListener,
    socket: Arc<Socket>,
    mut others: Option<oneshot::Receiver<Infallible>>,
    mut signal: ShutdownSignal,
    drain: Duration,
) {
    /// The time between two looks at which sessions have ended.
    const LOOK: Duration = Duration::from_millis(20);
    let lock = || listener.lock().unwrap_or_else(PoisonError::into_inner);
    let mut room = Room::new();
    let (mut closes, mut until, mut drained): (bool, Option<Instant>, bool) = (false, None, false);
    loop {
        let look = tokio::time::sleep(LOOK);
        let give_back_at = room.give_back_at();
        let idle = tokio::time::sleep_until(give_back_at.unwrap_or_else(clock::now).into());
        tokio::select! {
            _ = async { match &mut others {
                Some(others) => others.await,
                None => std::future::pending().await,
            }} => others = None,
            readable = socket.readable(), if others.is_none() => {
                if let Err(error) = readable.and_then(|()| receive(&socket, &mut room, &mut lock())) {
                    tracing::error!(%error, "the socket is of no use any more");
                    return;
                }
            }
            () = signal.wait(), if !closes => {
                (closes, until) = (true, clock::now().checked_add(drain));
                lock().close_all();
            }
            () = look, if closes => {}
            () = idle, if give_back_at.is_some() => room.give_back(clock::now()),
        }
        let now = clock::now();
        if until.is_some_and(|until| until <= now) && !std::mem::replace(&mut drained, true) {
            lock().abort_all(DRAINED);
        }
        let is_over = until.is_some_and(|until| until.checked_add(FAREWELL).is_some_and(|at| at <= now));
        if is_over || (closes && !lock().is_busy()) {
            return;
        }
    }
}

/// Receives until nothing is there, or others should have their turn.
fn receive(socket: &Socket, room: &mut Room, listener: &mut Listener) -> io::Result<()> {
    const RECEIVES: usize = 16;
    for _ in 0..RECEIVES {
        match socket.try_recv(room, |path, datagram| listener.handle_datagram(path, datagram)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            // An earlier datagram did not reach anybody: its session finds that out.
            Err(error) if is_about_another(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
