//! A UDP socket with many sessions: which datagram is for whom, and who gets a session.

use super::clock;
use super::driver::{Budget, Shared, drive};
use super::link::{Link, Source};
use super::session::{Handle, Session};
use super::sessions::{Entry, Sessions};
use crate::datagrams::{Path, Socket};
use crate::incoming::log_panic;
use crate::metrics::{Count, Metrics};
use crate::spans;
use fastdrop_proto::cnp::{
    Accepted, Acceptor, ErrorCode, Handshake, Session as Machine, SessionConfig, SessionId,
};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::Instrument;

/// The sessions of one socket.
pub(crate) struct Listener {
    socket: Arc<Socket>,
    config: SessionConfig,
    sessions_max: usize,
    acceptor: Acceptor,
    sessions: Sessions,
    ready: mpsc::Sender<Session>,
    budget: Arc<Budget>,
    metrics: Metrics,
    tasks: JoinSet<()>,
    /// No new sessions are wanted, not even in the place of others.
    closes: bool,
    /// The number of sessions at which those that are over are looked for.
    sweep_at: usize,
}

impl Listener {
    /// Datagrams that wait for one session; more are as good as lost.
    const INBOX: usize = 1024;

    pub(super) fn new(
        socket: Arc<Socket>,
        config: SessionConfig,
        sessions_max: usize,
        ready: mpsc::Sender<Session>,
        budget: Arc<Budget>,
        metrics: Metrics,
    ) -> Self {
        let acceptor = Acceptor::new(config.clone());
        let (sessions, tasks) = (Sessions::default(), JoinSet::new());
        Self {
            socket,
            config,
            sessions_max,
            acceptor,
            sessions,
            ready,
            budget,
            metrics,
            tasks,
            closes: false,
            sweep_at: 64,
        }
    }

    /// A datagram came.
    pub(crate) fn handle_datagram(&mut self, path: Path, datagram: &[u8]) {
        let from = path.remote;
        if datagram.len() > self.acceptor.datagram_max() {
            return;
        }
        if let Some((key, entry)) = self.sessions.of(from, datagram) {
            if entry.inbox.try_send((path, datagram.to_vec())).is_ok() && !Acceptor::is_handshake(datagram) {
                return;
            }
            if entry.inbox.is_closed() {
                // By its key: another session may be at the address that this came from.
                self.sessions.remove(key);
            }
        }
        if Acceptor::is_handshake(datagram) {
            self.handle_handshake(path, datagram);
        }
    }

    fn handle_handshake(&mut self, path: Path, datagram: &[u8]) {
        let id = || {
            let mut bytes = [0; 16];
            // Without a source of randomness there is no id that nobody can guess, and so no
            // session.
            getrandom::fill(&mut bytes).ok().map(|()| SessionId::from_random(bytes))
        };
        match self.acceptor.handle_datagram(clock::now(), path.remote, datagram, id) {
            Accepted::Nothing => {}
            Accepted::Answer(answer) => {
                // One that does not leave is asked for again.
                let _ = self.socket.try_send_one(path, &answer);
            }
            Accepted::Session(handshake) => self.begin(path, handshake, datagram),
        }
    }

    fn begin(&mut self, path: Path, handshake: Handshake, datagram: &[u8]) {
        let from = path.remote;
        while let Some(result) = self.tasks.try_join_next() {
            log_panic(result);
        }
        if self.sessions.len() >= self.sweep_at.min(self.sessions_max) {
            self.sessions.sweep();
            self.sweep_at = 2 * self.sessions.len().max(32);
        }
        let (inbox, datagrams) = mpsc::channel(Self::INBOX);
        let agreed = handshake.agreed().clone();
        let mut machine = Machine::accepted(clock::now(), self.config.clone(), handshake);
        machine.handle_datagram(clock::now(), datagram);
        let fits = self.sessions.len() < self.sessions_max || self.sessions.contains(from);
        let place = self.ready.try_reserve().ok().filter(|_| fits && !self.closes);
        let Some(place) = place else {
            if self.closes {
                tracing::debug!(%from, "no new session while the server closes");
            } else {
                self.metrics.on(Count::Refused);
                tracing::warn!(%from, "no more sessions");
            }
            machine.abort(ErrorCode::Busy, "no more sessions here");
            let mut farewell = Vec::new();
            machine.poll_transmit(clock::now(), &mut farewell, 0);
            // If it does not leave, the client finds out by itself.
            let _ = self.socket.try_send_one(path, &farewell);
            return;
        };
        let span = spans::of("cnp", "udp", from);
        let shared = Shared::new(machine, span.clone());
        place.send(Session(Arc::new(Handle {
            shared: Arc::clone(&shared),
            agreed,
            peer: from,
            fingerprint: None,
        })));
        tracing::debug!(%from, "a session by UDP");
        let source = Source::Inbox(datagrams, None);
        let link = Link::datagrams(Arc::clone(&self.socket), path, source);
        let (budget, metrics) = (Some(Arc::clone(&self.budget)), self.metrics.clone());
        self.tasks.spawn(drive(Arc::clone(&shared), link, budget, metrics).instrument(span));
        // If there was one, its inbox is closed now, which is its end.
        if self.sessions.insert(from, Entry::new(inbox, &shared)) {
            tracing::debug!(%from, "replaced by a new session");
        }
    }

    /// All sessions take leave.
    pub(super) fn close_all(&mut self) {
        self.closes = true;
        for shared in self.sessions.shared() {
            shared.lock().shut_down();
            shared.changed.notify_one();
        }
    }

    /// All sessions end at once, for this reason.
    pub(super) fn abort_all(&mut self, why: &str) {
        for shared in self.sessions.shared() {
            shared.lock().session.abort(ErrorCode::Shutdown, why);
            shared.changed.notify_one();
        }
    }

    /// Returns true if a session is still under way.
    pub(super) fn is_busy(&mut self) -> bool {
        while let Some(result) = self.tasks.try_join_next() {
            log_panic(result);
        }
        !self.tasks.is_empty()
    }
}
