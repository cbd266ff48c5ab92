//! An endpoint and its socket: one task that receives and keeps time, and any number of callers
//! that send.

mod calling;
mod choosing;
#[cfg(feature = "quic")]
mod secured;

use super::calls::{CallTable, NotTaken};
use super::carrier::{Arrivals, Carrier};
use super::presence::{Departure, PeerEvents, Presence, Present};
use crate::addresses::canonical;
use crate::datagrams::{Path, Room, Socket, Transmit as Leaving, is_about_another};
use crate::metrics::{Count, Metrics};
use crate::vstp::types::{LARGER, VSTP_MAGIC, VstpError};
use fastdrop_proto::calls::CallId;
use fastdrop_proto::vstp::transport::{DATAGRAM_MAX, UdpPath};
use fastdrop_proto::vstp::{
    Acknowledgement, Counters, Endpoint, EndpointConfig, ErrorCode, Failure, FrameBytes, FrameType, SendId,
    SendOptions, Transmit,
};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::ToSocketAddrs;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};

/// Takes datagrams that are not VSTP's, where several protocols share a socket.
pub(crate) type Others = Box<dyn FnMut(Path, &[u8]) + Send>;

/// The state that callers and the task share.
#[derive(Debug)]
pub(super) struct Shared {
    carrier: Carrier,
    state: Mutex<State>,
    /// The task has to look at its deadline again.
    changed: Notify,
    /// Something has been received.
    received: Notify,
    /// For calls that may be outstanding.
    turns: Arc<Semaphore>,
}

#[derive(Debug)]
struct State {
    endpoint: Endpoint,
    waiting: HashMap<SendId, (SocketAddr, Told)>,
    calls: CallTable,
    /// The datagrams that the socket had no room for.
    unsent: Option<Transmit>,
    buffer: Vec<u8>,
    /// The time until which the task waits.
    wakes_at: Option<Instant>,
    /// No caller is left.
    closed: bool,
    /// The socket is of no use any more.
    broken: Option<io::ErrorKind>,
    /// Those who want to know who comes and goes.
    presences: Vec<Presence>,
    metrics: Metrics,
    /// The counts of the endpoint when they were last added to the metrics.
    counted: Counters,
}

impl State {
    /// Adds to the metrics what the endpoint has counted.
    fn count(&mut self) {
        let (now, before) = (self.endpoint.counters(), self.counted);
        if now == before {
            return;
        }
        self.counted = now;
        for (count, now, before) in [
            (Count::PacketsReceived, now.datagrams, before.datagrams),
            (Count::Malformed, now.malformed, before.malformed),
            (Count::Duplicates, now.duplicates, before.duplicates),
            (Count::Refused, now.refused, before.refused),
        ] {
            self.metrics.add(count, now.saturating_sub(before));
        }
    }
}

impl State {
    fn handle_datagram(&mut self, now: Instant, path: Path, bytes: &[u8]) {
        let from = path.remote;
        self.metrics.add(Count::BytesReceived, bytes.len() as u64);
        let before = self.endpoint.counters().refused;
        self.endpoint.handle_datagram(now, from, bytes);
        for presence in &mut self.presences {
            presence.on_heard(now, from);
        }
        if let Some(local) = path.local {
            self.endpoint.set_local(from, local);
        }
        let refused = self.endpoint.counters().refused;
        // Whoever sends such datagrams does not decide how much is logged.
        if refused > before && refused.is_power_of_two() {
            tracing::info!(peer = %from, refused, "no room, or too large a message; {LARGER}");
        }
    }
}

/// Whoever is told of the outcome of a frame.
#[derive(Debug)]
enum Told {
    Sender(oneshot::Sender<Result<(), Failure>>),
    /// The caller whose request it is, if it fails, and its turn.
    Caller {
        id: CallId,
        _turn: Arc<OwnedSemaphorePermit>,
    },
}

/// The fate of a frame in its application's hands.
#[derive(Debug)]
pub(super) enum Fate {
    Acknowledged,
    Refused(ErrorCode, String),
    Dropped,
}

/// A frame that came and that nobody has taken.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) from: SocketAddr,
    /// The local address that it came to, where there are several.
    pub(super) local: Option<IpAddr>,
    pub(super) frame: FrameBytes,
    pub(super) wanted: Option<Acknowledgement>,
}

/// An endpoint in use. When it is dropped, what is under way is still sent, for at most
/// [`Handle::LINGER`].
#[derive(Debug)]
pub(crate) struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    const LINGER: Duration = Duration::from_secs(10);
    /// Calls to receive before callers have their turn: as much as the socket's buffer holds.
    const RECEIVES: usize = 16;
    /// The time that the addresses of a name have to answer.
    const ANSWER_TIME: Duration = Duration::from_millis(500);
    /// Between two looks at what has become of a question.
    const LOOK: Duration = Duration::from_millis(5);

    /// For one that is spoken to.
    pub(crate) async fn bind(addr: &str, config: EndpointConfig) -> Result<Self, VstpError> {
        Self::new(Arc::new(Socket::bind(addr).await?), config, None)
    }

    /// For one that speaks first, and hears where nobody is. (One that is spoken to does not: who
    /// makes up addresses would decide how much it hears.)
    pub(crate) async fn open(addr: impl ToSocketAddrs, config: EndpointConfig) -> Result<Self, VstpError> {
        Self::new(Arc::new(Socket::bind(addr).await?.hearing_errors()?), config, None)
    }

    /// On a socket that is there. What begins otherwise than a frame is given to `others`, if there
    /// are any.
    pub(crate) fn new(
        socket: Arc<Socket>,
        config: EndpointConfig,
        others: Option<Others>,
    ) -> Result<Self, VstpError> {
        Self::on(Carrier::Plain(socket), Arrivals::default(), config, others)
    }

    fn on(
        carrier: Carrier,
        arrivals: Arrivals,
        config: EndpointConfig,
        others: Option<Others>,
    ) -> Result<Self, VstpError> {
        let mut seed = [0; 16];
        let mut first_call = [0; 8];
        getrandom::fill(&mut seed).map_err(io::Error::other)?;
        getrandom::fill(&mut first_call).map_err(io::Error::other)?;
        let state = State {
            endpoint: Endpoint::new(config, seed),
            waiting: HashMap::new(),
            calls: CallTable::new(u64::from_ne_bytes(first_call)),
            unsent: None,
            buffer: Vec::new(),
            wakes_at: None,
            closed: false,
            broken: None,
            presences: Vec::new(),
            metrics: Metrics::default(),
            counted: Counters::default(),
        };
        let (state, changed, received) = (Mutex::new(state), Notify::new(), Notify::new());
        let turns = Arc::new(Semaphore::new(CallTable::MADE_MAX));
        let shared = Arc::new(Shared { carrier, state, changed, received, turns });
        let driven = Arc::clone(&shared);
        // The task ends by itself, after what the last caller left to be done.
        tokio::spawn(async move { drive(driven, arrivals, others).await });
        Ok(Self { shared })
    }

    pub(crate) fn local_addr(&self) -> Result<SocketAddr, VstpError> {
        Ok(self.shared.carrier.local_addr()?)
    }

    /// Sends, and waits for the outcome: sent, or acknowledged if that was wanted.
    pub(crate) async fn send(
        &self,
        frame: FrameBytes,
        to: SocketAddr,
        acknowledged: bool,
    ) -> Result<(), Failure> {
        let options = if acknowledged { SendOptions::acknowledged() } else { SendOptions::default() };
        self.send_on(frame, to, &options).await
    }

    /// The same on a channel, or otherwise as these options say.
    pub(super) async fn send_on(
        &self,
        frame: FrameBytes,
        to: SocketAddr,
        options: &SendOptions,
    ) -> Result<(), Failure> {
        let to = canonical(to);
        self.shared.carrier.check(to)?;
        let outcome = {
            let mut state = self.shared.lock();
            if state.broken.is_some() {
                return Err(Failure::TimedOut);
            }
            let send = state.endpoint.send_on(Instant::now(), to, frame, options);
            let (told, outcome) = oneshot::channel();
            state.waiting.insert(send, (to, Told::Sender(told)));
            self.shared.pump(&mut state);
            outcome
        };
        outcome.await.unwrap_or(Err(Failure::TimedOut))
    }

    /// Sends a state on a sequenced channel. Nobody waits for its outcome.
    pub(super) fn post(
        &self,
        frame: FrameBytes,
        to: SocketAddr,
        options: &SendOptions,
    ) -> Result<(), Failure> {
        let to = canonical(to);
        self.shared.carrier.check(to)?;
        let mut state = self.shared.lock();
        if state.broken.is_some() {
            return Err(Failure::TimedOut);
        }
        state.endpoint.send_on(Instant::now(), to, frame, options);
        self.shared.pump(&mut state);
        Ok(())
    }

    /// Bounds what has the lowest priority.
    pub(super) fn set_bulk_rate(&self, bytes_per_second: Option<u64>) {
        let mut state = self.shared.lock();
        state.endpoint.set_bulk_rate(Instant::now(), bytes_per_second);
        self.shared.pump(&mut state);
    }

    /// Sends an answer that fits one datagram of 1,200 bytes, and nothing larger. Nobody waits for
    /// its outcome.
    pub(super) fn answer(&self, frame: FrameBytes, to: SocketAddr) {
        let (to, len) = (canonical(to), frame.as_ref().encoded_len());
        if len > DATAGRAM_MAX || self.shared.carrier.check(to).is_err() {
            tracing::debug!(peer = %to, len, "no answer was sent");
            return;
        }
        let mut state = self.shared.lock();
        if state.broken.is_none() {
            state.endpoint.send(Instant::now(), to, frame, false);
            self.shared.pump(&mut state);
        }
    }

    /// The next frame or message, acknowledged if its sender wants that.
    pub(crate) async fn recv(&self) -> Result<(FrameBytes, SocketAddr), VstpError> {
        let received = self.take().await?;
        self.shared.settle(&received, &Fate::Acknowledged);
        Ok((received.frame, received.from))
    }

    /// The same from one address; what others send is not for this application, and is dropped.
    pub(crate) async fn recv_from(&self, peer: SocketAddr) -> Result<FrameBytes, VstpError> {
        let peer = canonical(peer);
        loop {
            let received = self.take().await?;
            if received.from == peer {
                self.shared.settle(&received, &Fate::Acknowledged);
                return Ok(received.frame);
            }
            self.shared.settle(&received, &Fate::Dropped);
        }
    }

    /// The outcomes with which the frames that it takes are settled.
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The next frame or message, which its taker settles.
    pub(super) async fn take(&self) -> Result<Received, VstpError> {
        loop {
            let received = self.shared.received.notified();
            {
                let mut state = self.shared.lock();
                if let Some((from, frame, wanted)) = state.endpoint.poll_received() {
                    if state.endpoint.has_received() {
                        // For another caller, if there is one.
                        self.shared.received.notify_one();
                    }
                    let local = state.endpoint.local(from);
                    return Ok(Received { from, local, frame, wanted });
                }
                if let Some(kind) = state.broken {
                    // For another caller, if there is one.
                    self.shared.received.notify_one();
                    return Err(VstpError::Io(kind.into()));
                }
            }
            received.await;
        }
    }

    /// Sends a PING, from which [`Self::path`] learns.
    pub(crate) fn ping(&self, to: SocketAddr) {
        let mut state = self.shared.lock();
        state.endpoint.ping(Instant::now(), canonical(to));
        self.shared.pump(&mut state);
    }

    pub(crate) fn path(&self, to: SocketAddr) -> UdpPath {
        self.shared.lock().endpoint.path(Instant::now(), canonical(to))
    }

    pub(crate) fn counters(&self) -> Counters {
        self.shared.lock().endpoint.counters()
    }

    /// Tells from now on who comes and goes.
    pub(super) fn events(&self, silent_after: Duration) -> PeerEvents {
        let mut state = self.shared.lock();
        state.presences.retain(|presence| !presence.is_over());
        let id = state.presences.last().map_or(0, |last| last.id() + 1);
        let (presence, events) = Presence::new(id, silent_after);
        state.presences.push(presence);
        events
    }

    /// The word of how long a peer is there, as the taker of these events is told.
    pub(super) fn present(&self, events: &PeerEvents, peer: SocketAddr) -> Option<Present> {
        let mut state = self.shared.lock();
        let presence = state.presences.iter_mut().find(|presence| presence.id() == events.id());
        presence.map(|presence| presence.present(peer))
    }

    pub(crate) fn metrics(&self) -> Metrics {
        self.shared.lock().metrics.clone()
    }

    pub(crate) fn unfinished(&self) -> usize {
        self.shared.lock().endpoint.unfinished()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of one caller is no reason for the others to stop.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The socket is of no use any more: whoever waits is told, and whoever comes.
    fn end(&self, why: io::ErrorKind) {
        let mut state = self.lock();
        state.broken = Some(why);
        // Their callers fail, as nobody will tell them of an outcome.
        state.waiting.clear();
        state.calls.end();
        drop(state);
        self.received.notify_waiters();
        self.received.notify_one();
    }

    /// The application is done with a frame that it has taken.
    pub(super) fn settle(&self, received: &Received, fate: &Fate) {
        self.decide(received, fate);
        self.release(received.from, &received.frame);
    }

    /// The application says what becomes of a frame, and keeps it. [`Self::release`] has to follow.
    pub(super) fn decide(&self, received: &Received, fate: &Fate) {
        let Received { from, local, wanted, .. } = *received;
        let mut state = self.lock();
        let now = Instant::now();
        if let Some(local) = local {
            // What the application answers leaves from where that was asked.
            state.endpoint.set_local(from, local);
        }
        if let Some(wanted) = wanted {
            match fate {
                Fate::Acknowledged => state.endpoint.acknowledge(now, from, wanted),
                Fate::Refused(code, reason) => state.endpoint.refuse(now, from, wanted, *code, reason),
                Fate::Dropped => state.endpoint.forgo(now, from, wanted),
            }
        }
        self.pump(&mut state);
    }

    /// The application keeps a frame no longer: there is room for more.
    pub(super) fn release(&self, from: SocketAddr, frame: &FrameBytes) {
        let mut state = self.lock();
        state.endpoint.handle_taken(Instant::now(), from, frame);
        self.pump(&mut state);
    }

    /// Sends what there is to send, as far as the socket has room, and hands out what there is to
    /// hand out.
    fn pump(&self, state: &mut State) {
        state.count();
        state.take_of_calls();
        let State { endpoint, unsent, buffer, metrics, .. } = state;
        loop {
            let next = unsent.take();
            let next =
                next.or_else(|| endpoint.poll_transmit(Instant::now(), self.carrier.segments(), buffer));
            let Some(transmit) = next else { break };
            let path = Path { remote: transmit.to, local: transmit.from };
            match self.carrier.try_send(Leaving { path, datagram: transmit.datagram }, buffer) {
                Ok(None) => {
                    let datagrams = buffer.len().div_ceil(transmit.datagram.max(1));
                    metrics.add(Count::PacketsSent, datagrams as u64);
                    metrics.add(Count::BytesSent, buffer.len() as u64);
                }
                Ok(Some(reason)) => endpoint.handle_unreachable(Instant::now(), transmit.to, reason),
                Err(_) => {
                    // Nobody is told that something was sent before it has left; the task goes on
                    // when there is room.
                    *unsent = Some(transmit);
                    self.changed.notify_one();
                    return;
                }
            }
        }
        // A later deadline than it waits for, the task finds out by itself.
        let deadline = endpoint.poll_timeout();
        if deadline.is_some_and(|at| state.wakes_at.is_none_or(|before| at < before)) {
            state.wakes_at = deadline;
            self.changed.notify_one();
        }
        while let Some((from, typ)) = state.endpoint.poll_arrival() {
            state.metrics.on(Count::MessagesReceived);
            for presence in &mut state.presences {
                presence.on_frame(Instant::now(), from, typ == FrameType::Bye);
            }
        }
        while let Some((send, result)) = state.endpoint.poll_outcome() {
            match result {
                Ok(()) => state.metrics.on(Count::MessagesSent),
                // That is what its sender wanted.
                Err(Failure::Superseded) => {}
                Err(_) => state.metrics.on(Count::MessagesFailed),
            }
            if let Some((to, told)) = state.waiting.remove(&send) {
                let is_gone = matches!(result, Err(Failure::TimedOut | Failure::Unreachable(_)));
                for presence in state.presences.iter_mut().filter(|_| is_gone) {
                    presence.on_gone(to, Departure::Unreachable);
                }
                match (told, result) {
                    // A caller that was dropped does not want to know.
                    (Told::Sender(told), result) => _ = told.send(result),
                    (Told::Caller { id, .. }, Err(failure)) => {
                        state.fail_call(to, id, failure);
                        self.changed.notify_one();
                    }
                    (Told::Caller { .. }, Ok(())) => {}
                }
            }
        }
        // What was received waits in the endpoint, where addresses have their turns.
        if state.endpoint.has_received() {
            self.received.notify_one();
        }
    }
}

async fn drive(shared: Arc<Shared>, mut arrivals: Arrivals, mut others: Option<Others>) {
    let mut room = Room::new();
    let mut closed_at = None;
    loop {
        // What nothing else tells of.
        let mut leaves_at = None;
        let (deadline, blocked) = {
            let mut state = shared.lock();
            if state.closed {
                let since = *closed_at.get_or_insert_with(Instant::now);
                let is_idle = state.endpoint.is_idle() && state.unsent.is_none();
                if (is_idle && shared.carrier.is_idle()) || since.elapsed() >= Handle::LINGER {
                    return shared.carrier.close();
                }
                leaves_at = is_idle.then(|| Instant::now() + Handle::LOOK);
                // Nobody takes it any more.
                while let Some((from, frame, wanted)) = state.endpoint.poll_received() {
                    state.endpoint.handle_taken(Instant::now(), from, &frame);
                    if let Some(wanted) = wanted {
                        state.endpoint.forgo(Instant::now(), from, wanted);
                    }
                }
            }
            state.presences.retain(|presence| !presence.is_over());
            let silent = state.presences.iter().filter_map(Presence::poll_timeout);
            let deadline = silent.chain(state.endpoint.poll_timeout()).min();
            state.wakes_at = deadline;
            (deadline, state.unsent.is_some())
        };
        let linger = closed_at.map(|at| at + Handle::LINGER);
        let deadline = [deadline, linger, leaves_at, room.give_back_at()].into_iter().flatten().min();
        let pause = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now).into());
        tokio::select! {
            ready = shared.carrier.readable_or_failed() => {
                if ready.as_ref().is_ok_and(|failed| *failed) {
                    handle_errors(&shared);
                }
                if let Err(error) = ready.and_then(|_| receive(&shared, &mut room, &mut others)) {
                    tracing::warn!(%error, "the socket is of no use any more");
                    return shared.end(error.kind());
                }
            }
            came = arrivals.next() => {
                #[cfg(feature = "quic")]
                shared.handle_arrivals(&mut arrivals, came);
                #[cfg(not(feature = "quic"))]
                match came {}
            }
            _ = shared.carrier.writable(), if blocked => shared.pump(&mut shared.lock()),
            () = pause, if deadline.is_some() => {
                room.give_back(Instant::now());
                let mut state = shared.lock();
                let now = Instant::now();
                state.presences.iter_mut().for_each(|presence| presence.handle_timeout(now));
                state.endpoint.handle_timeout(now);
                shared.pump(&mut state);
            }
            () = shared.changed.notified() => {}
        }
    }
}

/// Receives until nothing is there, or callers should have their turn.
fn receive(shared: &Shared, room: &mut Room, others: &mut Option<Others>) -> io::Result<()> {
    for _ in 0..Handle::RECEIVES {
        let mut state = shared.lock();
        let now = Instant::now();
        let received = shared.carrier.try_recv(room, |path, bytes| match others {
            Some(others) if bytes.first() != VSTP_MAGIC.first() => others(path, bytes),
            _ => {
                let from = path.remote;
                let asked = state.endpoint.local(from);
                if asked.is_some() && asked != path.local {
                    // It is answered from the address that it had asked before.
                    shared.pump(&mut state);
                }
                state.handle_datagram(now, path, bytes);
            }
        });
        match received {
            Ok(()) => shared.pump(&mut state),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            // An earlier datagram did not reach anybody: its sender finds that out.
            Err(error) if is_about_another(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Takes what the system says about datagrams that did not arrive.
fn handle_errors(shared: &Shared) {
    let mut state = shared.lock();
    let now = Instant::now();
    let State { endpoint, .. } = &mut *state;
    shared.carrier.take_errors(|to, reason| {
        tracing::debug!(peer = %to, %reason, "a datagram did not arrive");
        endpoint.handle_unreachable(now, to, reason);
    });
    shared.pump(&mut state);
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastdrop_proto::vstp::HeadersBuf;

    fn frame() -> FrameBytes {
        FrameBytes::new(FrameType::Data, HeadersBuf::default(), bytes::Bytes::from_static(b"x"))
    }

    #[tokio::test]
    async fn the_end_of_a_socket_fails_those_who_wait_and_those_who_come() {
        let handle = Handle::bind("127.0.0.1:0", EndpointConfig::default()).await.unwrap();
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = silent.local_addr().unwrap();
        let end = async {
            while handle.shared.lock().waiting.is_empty() {
                tokio::task::yield_now().await;
            }
            handle.shared.end(io::ErrorKind::Other);
        };
        let (sent, received, ()) = tokio::join!(handle.send(frame(), to, true), handle.recv(), end);
        assert_eq!(sent, Err(Failure::TimedOut));
        assert!(received.is_err());
        assert_eq!(handle.send(frame(), to, false).await, Err(Failure::TimedOut));
        assert!(handle.recv().await.is_err() && handle.shared.lock().waiting.is_empty());
    }

    #[tokio::test]
    async fn times_that_no_clock_reaches_are_never_over() {
        let handle = Handle::bind("127.0.0.1:0", EndpointConfig::default()).await.unwrap();
        let to = handle.local_addr().unwrap();
        let mut events = handle.events(Duration::MAX);
        handle.send(frame(), to, false).await.unwrap();
        assert_eq!(events.next().await, Some(super::super::PeerEvent::Joined(to)));
        let waits = handle.refused_within(to, Duration::MAX);
        assert!(tokio::time::timeout(Duration::from_millis(20), waits).await.is_err());
    }
}
