//! VSTP over UDP: one socket, any number of addresses.

use super::acknowledgement::Acknowledgement;
use super::arrivals::Arrived;
use super::error_code::{ErrorCode, code_of};
use super::failure::{Failure, Unreachable};
use super::fragment::{CAME, Fragment, Report, parse_refusal};
use super::frame::{Flags, FrameBytes, FrameRef, FrameType, HeadersBuf};
use super::ids::{MSG_ID, SendId};
use super::peer::{CHALLENGE, Peer, Proof, write_challenge};
use super::random::Random;
use super::receiving::{Got, ReassemblyLimits};
use super::seen::{Settled, Sight};
use super::sending::{Patience, Sending};
use super::transport::UdpPath;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// What an endpoint does and bears.
#[derive(Debug, Clone)]
pub struct EndpointConfig {
    /// How long unfinished messages are kept, and how many.
    pub limits: ReassemblyLimits,
    /// How long answers are waited for.
    pub patience: Patience,
    /// Says whether frames that exceed 1,200 bytes are cut; else they go as one datagram, if they
    /// can. Default true.
    pub fragments: bool,
}

impl Default for EndpointConfig {
    fn default() -> Self {
        Self { limits: ReassemblyLimits::default(), patience: Patience::default(), fragments: true }
    }
}

/// The most bytes that UDP over IPv4 carries.
const DATAGRAM_LIMIT: usize = 65_507;

/// Something for the application.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// A frame or a whole message came. The driver says [`Endpoint::handle_taken`] when the
    /// application has it, and [`Endpoint::acknowledge`] when the application has handled it.
    Received {
        /// Who sent it.
        from: SocketAddr,
        /// The frame, without the headers of its fragments.
        frame: FrameBytes,
        /// The acknowledgement that it asks for.
        acknowledgement: Option<Acknowledgement>,
    },
    /// What became of a message.
    Outcome {
        /// Which one.
        send: SendId,
        /// Whether it was sent, or acknowledged if that was wanted.
        result: Result<(), Failure>,
    },
}

/// Datagrams to send, in the buffer given to [`Endpoint::poll_transmit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub to: SocketAddr,
    /// The bytes of each; the last one may have fewer.
    pub datagram: usize,
    /// The local address that they leave from: the one that was asked. None for any.
    pub from: Option<IpAddr>,
}

/// What was counted since the beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams that came.
    pub datagrams: u64,
    /// Of them, those that were no frame, of another version or type, or changed on the way (case
    /// 71).
    pub malformed: u64,
    /// Acknowledgements and reports about nothing that was sent (case 74).
    pub unexpected: u64,
    /// Messages that were there already.
    pub duplicates: u64,
    /// Frames and fragments for which there was no room, or that contradicted others.
    pub refused: u64,
    /// Unfinished messages that got nothing more in time.
    pub expired: u64,
    /// Datagrams that an address that has not proved itself did not get.
    pub withheld: u64,
}

/// All of VSTP over UDP but the socket and the clock.
///
/// The driver waits for a datagram, for [`Self::poll_timeout`], or for its application; tells one
/// of `handle_datagram`, `handle_timeout`, `send`, `handle_taken`; then sends what
/// [`Self::poll_transmit`] gives until it gives None, and hands out what [`Self::poll_event`] gives
/// until that gives None. Several datagrams that were received together are told together: reports
/// are then made of all of them. Time never runs backwards.
#[derive(Debug)]
pub struct Endpoint {
    config: EndpointConfig,
    random: Random,
    peers: HashMap<SocketAddr, Peer>,
    ready: VecDeque<SocketAddr>,
    timers: BTreeSet<(Instant, SocketAddr)>,
    events: VecDeque<Event>,
    next_send: u64,
    unfinished: usize,
    reassembling: usize,
    /// Bytes that the application has not taken.
    waiting: usize,
    waiting_count: usize,
    counters: Counters,
}

impl Endpoint {
    /// Addresses that are remembered; beyond, the idle are forgotten, and strangers are not heard.
    pub const PEERS_MAX: usize = 10_000;
    /// What is remembered of an address that says nothing.
    const IDLE_MAX: Duration = Duration::from_secs(300);
    /// Frames that the application has not taken; beyond, more are dropped.
    const WAITING_MAX: usize = 65_536;

    /// No address is known. The seed must be unguessable.
    pub fn new(config: EndpointConfig, seed: [u8; 16]) -> Self {
        Self {
            config,
            random: Random::new(seed),
            peers: HashMap::new(),
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            events: VecDeque::new(),
            next_send: 0,
            unfinished: 0,
            reassembling: 0,
            waiting: 0,
            waiting_count: 0,
            counters: Counters::default(),
        }
    }

    /// What was counted.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Messages of which fragments are missing.
    pub fn unfinished(&self) -> usize {
        self.unfinished
    }

    /// Bytes of memory that unfinished messages keep, and those that the application has not taken.
    pub fn memory(&self) -> usize {
        self.reassembling + self.waiting
    }

    /// The smoothed round-trip time to an address; None if nothing was measured.
    pub fn rtt(&self, address: SocketAddr) -> Option<Duration> {
        self.peers.get(&address)?.sending.rtt()
    }

    /// Bytes a second at which an address is sent to; None if nothing is known.
    pub fn rate(&self, address: SocketAddr) -> Option<f64> {
        self.peers.get(&address)?.sending.rate()
    }

    /// Sends a PING, to find out whether datagrams come through; [`Self::path`] says what was
    /// found.
    pub fn ping(&mut self, now: Instant, to: SocketAddr) {
        let token = self.random.next_u64();
        let Some(peer) = self.peer(now, to, Proof::Proved) else { return };
        let mut ping = Vec::new();
        if write_challenge(token, &mut ping).is_ok() && peer.push_small(now, ping).is_ok() {
            peer.pings.on_sent(now, token);
        }
        self.wake(to);
    }

    /// What the last PINGs to an address have shown.
    pub fn path(&self, now: Instant, to: SocketAddr) -> UdpPath {
        self.peers.get(&to).map_or_else(UdpPath::default, |peer| peer.pings.path(now))
    }

    /// Whether everything that was to be sent has had its outcome.
    pub fn is_idle(&self) -> bool {
        self.peers.values().all(Peer::has_sent_all)
    }

    // ---- sending ----

    /// Sends a frame, in fragments if it must, and if `acknowledged` until it has been
    /// acknowledged. [`Event::Outcome`] says what became of it.
    pub fn send(&mut self, now: Instant, to: SocketAddr, frame: FrameBytes, acknowledged: bool) -> SendId {
        self.next_send += 1;
        let send = SendId(self.next_send);
        let datagram = if self.config.fragments { Sending::DATAGRAM } else { DATAGRAM_LIMIT };
        // An answer of an application that answers for itself is like one of the endpoint.
        let is_answer = matches!(frame.typ, FrameType::Ack | FrameType::Err);
        let sent = match self.peer(now, to, Proof::Proved) {
            None => Err(Failure::Busy),
            Some(peer) => match peer.sending.send(now, send, frame, acknowledged, datagram) {
                Ok(None) => Ok(()),
                Ok(Some(small)) => {
                    let taken = if is_answer {
                        peer.push_small(now, small).map(|()| true)
                    } else {
                        peer.push_plain(now, send, small)
                    };
                    taken.map(|told| {
                        if told {
                            self.events.push_back(Event::Outcome { send, result: Ok(()) });
                        }
                    })
                }
                Err(failure) => Err(failure),
            },
        };
        if let Err(failure) = sent {
            self.events.push_back(Event::Outcome { send, result: Err(failure) });
        }
        self.wake(to);
        send
    }

    // ---- receiving ----

    /// A datagram came.
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        self.counters.datagrams += 1;
        let whole = match FrameRef::decode(bytes, usize::from(u16::MAX)) {
            Ok(Some((frame, len))) if len == bytes.len() => Some(frame),
            _ => None,
        };
        let Some(frame) = whole else {
            self.counters.malformed += 1;
            return;
        };
        let stranger = Proof::Unproved { came: 0, went: 0, challenge: None };
        let Some(peer) = self.peer(now, from, stranger) else {
            self.counters.refused += 1;
            return;
        };
        peer.on_heard(now);
        if let Proof::Unproved { came, .. } = &mut peer.proof {
            *came = came.saturating_add(bytes.len() as u64);
        }
        match frame.typ {
            FrameType::Ack if Report::is_in(&frame) => self.handle_report(now, from, &frame),
            FrameType::Ack if Arrived::is_in(&frame) => self.handle_arrived(now, from, &frame),
            FrameType::Ack if frame.headers.find(MSG_ID).is_some() => self.handle_ack(now, from, &frame),
            FrameType::Err if parse_refusal(&frame).is_some() => self.handle_refusal(from, &frame),
            FrameType::Err if self.is_refused(now, from, &frame) => {}
            FrameType::Ping if frame.headers.find(CHALLENGE).is_some() => {
                self.handle_challenge(now, from, &frame)
            }
            FrameType::Pong if frame.headers.find(CHALLENGE).is_some() => {
                self.handle_proof(now, from, &frame)
            }
            _ if frame.flags.contains(Flags::FRAG) => self.handle_fragment(now, from, &frame),
            _ => {
                let crc = bytes.last_chunk().map_or(0, |crc| u32::from_be_bytes(*crc));
                self.handle_small(now, from, FrameBytes::from(frame), crc);
            }
        }
        self.wake(from);
    }

    /// Takes a frame that came whole, and notes its arrival if it asks for an acknowledgement.
    fn handle_small(&mut self, now: Instant, from: SocketAddr, frame: FrameBytes, crc: u32) {
        if !frame.flags.contains(Flags::REQ_ACK)
            && let Some(peer) = self.peers.get_mut(&from)
        {
            peer.receiving.plain_came = peer.receiving.plain_came.wrapping_add(1);
        }
        let duplicates = self.counters.duplicates;
        let wanted = self.receive(now, from, frame, crc);
        let again = self.counters.duplicates > duplicates;
        if let Some(wanted) = wanted
            && let Some(number) = wanted.unique_number()
            && let Some(peer) = self.peers.get_mut(&from)
            && peer.receiving.seen.peek(wanted) == Sight::Pending
        {
            peer.receiving.arrivals.on_arrived(now, number, again);
        }
    }

    fn handle_report(&mut self, now: Instant, from: SocketAddr, frame: &FrameRef<'_>) {
        let Some(report) = Report::parse(frame) else {
            self.counters.malformed += 1;
            return;
        };
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let came = frame.headers.number(CAME).map(|came| came as u32);
        match peer.sending.handle_report(now, &report, came) {
            Some(true) => peer.proof = Proof::Proved,
            Some(false) => {}
            None => self.counters.unexpected += 1,
        }
    }

    fn handle_ack(&mut self, now: Instant, from: SocketAddr, frame: &FrameRef<'_>) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        // Whoever writes the zero says what has arrived.
        let reports = frame.headers.find(MSG_ID).is_some_and(|digits| digits.starts_with(b"0"));
        let number = frame.headers.number(MSG_ID);
        if number.is_some_and(|number| peer.sending.handle_ack(now, number, frame.payload, reports)) {
            peer.proof = Proof::Proved;
        } else {
            self.counters.unexpected += 1;
        }
    }

    fn handle_arrived(&mut self, now: Instant, from: SocketAddr, frame: &FrameRef<'_>) {
        let Some(arrived) = Arrived::parse(frame) else {
            self.counters.malformed += 1;
            return;
        };
        let Some(peer) = self.peers.get_mut(&from) else { return };
        if peer.sending.handle_arrived(now, &arrived) {
            peer.proof = Proof::Proved;
        } else {
            self.counters.unexpected += 1;
        }
    }

    fn handle_refusal(&mut self, from: SocketAddr, frame: &FrameRef<'_>) {
        // An error is never answered (case 75).
        if let (Some((id, code)), Some(peer)) = (parse_refusal(frame), self.peers.get_mut(&from)) {
            peer.sending.handle_refusal(id, &code);
        }
    }

    /// Returns true if an ERR refuses a frame that waits for its acknowledgement, which is then
    /// over.
    fn is_refused(&mut self, now: Instant, from: SocketAddr, frame: &FrameRef<'_>) -> bool {
        let (Some(msg_id), Some(peer)) = (frame.headers.number(MSG_ID), self.peers.get_mut(&from)) else {
            return false;
        };
        peer.sending.handle_refused(now, msg_id, || code_of(frame))
    }

    fn handle_challenge(&mut self, now: Instant, from: SocketAddr, frame: &FrameRef<'_>) {
        if frame.payload.len() != size_of::<u64>() {
            self.counters.malformed += 1;
            return;
        }
        let headers = HeadersBuf::default().with(CHALLENGE, 1);
        let mut pong = Vec::new();
        let answer = FrameRef { typ: FrameType::Pong, headers: headers.as_headers(), ..*frame };
        if answer.encode(&mut pong).is_ok()
            && let Some(peer) = self.peers.get_mut(&from)
        {
            let _ = peer.push_small(now, pong);
        }
    }

    fn handle_proof(&mut self, now: Instant, from: SocketAddr, frame: &FrameRef<'_>) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        if peer.pings.handle_pong(now, frame.payload) {
            peer.proof = Proof::Proved;
            return;
        }
        match peer.proof {
            Proof::Unproved { challenge: Some((token, _)), .. } if frame.payload == token.to_be_bytes() => {
                peer.proof = Proof::Proved;
            }
            _ => self.counters.unexpected += 1,
        }
    }

    fn handle_fragment(&mut self, now: Instant, from: SocketAddr, frame: &FrameRef<'_>) {
        let Some(fragment) = Fragment::parse(frame.headers) else {
            self.counters.malformed += 1;
            return;
        };
        let (unfinished, memory) = (self.unfinished, self.memory());
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let before = (peer.receiving.unfinished(), peer.receiving.memory());
        let others = (unfinished - before.0, memory - before.1);
        let got = peer.receiving.handle_fragment(now, frame, fragment, others, &self.config.limits);
        self.unfinished = others.0 + peer.receiving.unfinished();
        self.reassembling = self.reassembling + peer.receiving.memory() - before.1;
        match got {
            Got::Kept => {}
            Got::Refused => self.counters.refused += 1,
            Got::Complete(wanted) => {
                if let Some(answer) = wanted.and_then(|wanted| peer.receiving.seen.answer(wanted)) {
                    let _ = peer.push_small(now, answer);
                }
            }
            Got::Message(message) => {
                let crc = acknowledged_crc(&message);
                let wanted = self.receive(now, from, message, crc);
                if let (Some(wanted), Some(peer)) = (wanted, self.peers.get_mut(&from)) {
                    peer.receiving.on_wanted(fragment.id, wanted);
                }
            }
        }
    }

    /// Hands a whole frame on, once. Returns the acknowledgement that it asks for.
    fn receive(
        &mut self,
        now: Instant,
        from: SocketAddr,
        frame: FrameBytes,
        crc: u32,
    ) -> Option<Acknowledgement> {
        let peer = self.peers.get_mut(&from)?;
        let memory = frame.memory();
        // What cannot be kept is not acknowledged either, and comes again.
        let full = self.waiting_count >= Self::WAITING_MAX
            || self.waiting + self.reassembling + memory > self.config.limits.bytes_max.max(memory);
        let asks =
            frame.flags.contains(Flags::REQ_ACK) && !matches!(frame.typ, FrameType::Ack | FrameType::Err);
        let wanted = Acknowledgement::of(frame.headers(), crc).filter(|_| asks);
        let sight = wanted.map_or(Sight::New, |wanted| peer.receiving.seen.peek(wanted));
        if sight != Sight::New {
            self.counters.duplicates += 1;
            if let Some(answer) = wanted.and_then(|wanted| peer.receiving.seen.answer(wanted)) {
                // If there is no room for it, the peer asks again.
                let _ = peer.push_small(now, answer);
            }
            return wanted;
        }
        if frame.payload.len() > self.config.limits.message_bytes_max {
            self.counters.refused += 1;
            if let Some(wanted) = wanted {
                let reason = format!("more than {} bytes", self.config.limits.message_bytes_max);
                peer.receiving.seen.receive(now, wanted);
                self.refuse(now, from, wanted, ErrorCode::TooLarge, &reason);
            }
            return None;
        }
        if full {
            self.counters.refused += 1;
            return None;
        }
        if let Some(wanted) = wanted {
            peer.receiving.seen.receive(now, wanted);
        }
        self.waiting += memory;
        self.waiting_count += 1;
        self.events.push_back(Event::Received { from, frame, acknowledgement: wanted });
        wanted
    }

    /// Acknowledges a frame that the application has handled.
    pub fn acknowledge(&mut self, now: Instant, from: SocketAddr, frame: Acknowledgement) {
        self.settle(now, from, frame, Settled::Acknowledged);
    }

    /// Records that the application has dropped a frame: it is not acknowledged, and not handed on
    /// again.
    pub fn forgo(&mut self, now: Instant, from: SocketAddr, frame: Acknowledgement) {
        self.settle(now, from, frame, Settled::Dropped);
    }

    /// Refuses a frame that was received: its sender is told why.
    pub fn refuse(
        &mut self,
        now: Instant,
        from: SocketAddr,
        frame: Acknowledgement,
        code: ErrorCode,
        reason: &str,
    ) {
        if let Ok(refusal) = frame.encode_refusal(code, reason) {
            self.settle(now, from, frame, Settled::Refused(refusal));
        }
    }

    fn settle(&mut self, now: Instant, from: SocketAddr, frame: Acknowledgement, settled: Settled) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        peer.receiving.seen.settle(now, frame, settled);
        if let Some(number) = frame.unique_number() {
            peer.receiving.arrivals.on_settled(now, number);
        }
        if let Some(answer) = peer.receiving.seen.answer(frame) {
            // If there is no room for it, the peer asks again.
            let _ = peer.push_small(now, answer);
        }
        self.wake(from);
    }

    /// The application has taken a frame that was received: there is room for more.
    pub fn handle_taken(&mut self, frame: &FrameBytes) {
        let was_full = self.memory() * 2 > self.config.limits.bytes_max;
        self.waiting = self.waiting.saturating_sub(frame.memory());
        self.waiting_count = self.waiting_count.saturating_sub(1);
        if was_full {
            let held: Vec<_> = self
                .peers
                .iter()
                .filter(|(_, peer)| peer.receiving.unfinished() > 0)
                .map(|(at, _)| *at)
                .collect();
            for address in held {
                if let Some(peer) = self.peers.get_mut(&address) {
                    peer.receiving.on_room();
                }
                self.wake(address);
            }
        }
    }

    // ---- addresses ----

    /// The local address that a peer has asked last, from which it is answered.
    pub fn local(&self, address: SocketAddr) -> Option<IpAddr> {
        self.peers.get(&address)?.local
    }

    /// Records the local address that a peer has asked: after [`Self::handle_datagram`], where the
    /// socket has several.
    pub fn set_local(&mut self, address: SocketAddr, local: IpAddr) {
        if let Some(peer) = self.peers.get_mut(&address) {
            peer.local = Some(local);
        }
    }

    /// The reason for which nothing has reached an address since it was last heard; None if none is
    /// known.
    pub fn unreachable(&self, address: SocketAddr) -> Option<Unreachable> {
        self.peers.get(&address)?.unreachable()
    }

    /// Datagrams do not reach an address, as far as the operating system knows. What goes to one
    /// that has never said anything fails at once; one that has may be starting again, and is given
    /// a second in which nothing comes of it but refusals.
    pub fn handle_unreachable(&mut self, now: Instant, address: SocketAddr, reason: Unreachable) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        if peer.is_gone(now, reason) {
            peer.sending.abandon(&Failure::Unreachable(reason));
            self.wake(address);
        }
    }

    // ---- time ----

    /// The time of [`Self::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((at, address)) = self.timers.first().copied() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            let Some(peer) = self.peers.get_mut(&address) else { continue };
            peer.timer = None;
            peer.sending.handle_timeout(now);
            let before = (peer.receiving.unfinished(), peer.receiving.memory());
            let limits = &self.config.limits;
            let sufficient: Vec<_> =
                std::iter::from_fn(|| peer.receiving.poll_sufficient(now, limits)).collect();
            let expired = peer.receiving.handle_timeout(now, limits);
            self.unfinished = self.unfinished + peer.receiving.unfinished() - before.0;
            self.reassembling = self.reassembling + peer.receiving.memory() - before.1;
            self.counters.expired += expired as u64;
            self.counters.withheld += peer.drop_withheld(now);
            for message in sufficient {
                let crc = acknowledged_crc(&message);
                self.receive(now, address, message, crc);
            }
            let Some(peer) = self.peers.get(&address) else { continue };
            if peer.is_idle() && now.saturating_duration_since(peer.heard_at) >= Self::IDLE_MAX {
                self.peers.remove(&address);
                continue;
            }
            self.wake(address);
        }
    }

    /// When [`Self::handle_timeout`] has to be called; None if there is nothing to wait for.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    // ---- what comes out ----

    /// Datagrams to send, written to `out`, which is emptied first; as many of one size as follow
    /// each other, at most `segments`.
    pub fn poll_transmit(&mut self, now: Instant, segments: usize, out: &mut Vec<u8>) -> Option<Transmit> {
        out.clear();
        while let Some(to) = self.ready.front().copied() {
            let memory = self.memory();
            let Some(peer) = self.peers.get_mut(&to) else {
                self.ready.pop_front();
                continue;
            };
            let others = memory - peer.receiving.memory();
            let limits = &self.config.limits;
            if let Some(datagram) = peer.poll_transmit(now, segments, others, limits, &mut self.random, out) {
                if let Proof::Unproved { went, .. } = &mut peer.proof {
                    *went += out.len() as u64;
                }
                // The others have their turn before this one comes again.
                self.ready.rotate_left(1);
                return Some(Transmit { to, datagram, from: peer.local });
            }
            peer.ready = false;
            while let Some((send, result)) = peer.sending.poll_outcome() {
                self.events.push_back(Event::Outcome { send, result });
            }
            self.ready.pop_front();
            self.reschedule(now, to);
        }
        None
    }

    /// What the application has to be told.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn peer(&mut self, now: Instant, address: SocketAddr, proof: Proof) -> Option<&mut Peer> {
        if !self.peers.contains_key(&address) {
            if self.peers.len() >= Self::PEERS_MAX && !self.forget_idle() {
                return None;
            }
            let sending = Sending::new(now, self.config.patience.clone(), &mut self.random);
            let peer = Peer::new(now, proof, sending);
            self.peers.insert(address, peer);
        }
        self.peers.get_mut(&address)
    }

    /// Makes room for a stranger: forgets the address that has been silent for longest, if one is
    /// idle.
    fn forget_idle(&mut self) -> bool {
        // Looking at all of them for each stranger would be a gift to whoever makes up addresses; a
        // few will do.
        let some = self.peers.iter().take(64).filter(|(_, peer)| peer.is_idle());
        let Some(address) = some.min_by_key(|(_, peer)| peer.heard_at).map(|(address, _)| *address) else {
            return false;
        };
        if let Some(timer) = self.peers.remove(&address).and_then(|peer| peer.timer) {
            self.timers.remove(&(timer, address));
        }
        true
    }

    fn wake(&mut self, address: SocketAddr) {
        if let Some(peer) = self.peers.get_mut(&address).filter(|peer| !peer.ready) {
            peer.ready = true;
            self.ready.push_back(address);
        }
    }

    fn reschedule(&mut self, now: Instant, address: SocketAddr) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let idle = Some(peer.heard_at.max(now) + Self::IDLE_MAX);
        let timer = peer.poll_timeout(now, &self.config.limits).or(idle);
        if timer != peer.timer {
            if let Some(old) = peer.timer {
                self.timers.remove(&(old, address));
            }
            if let Some(new) = timer {
                self.timers.insert((new, address));
            }
            peer.timer = timer;
        }
    }
}

/// The CRC by which a message that came in fragments is known again, if it is acknowledged.
fn acknowledged_crc(message: &FrameBytes) -> u32 {
    if message.flags.contains(Flags::REQ_ACK) { crc32fast::hash(&message.payload) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vstp::frame::Headers;

    #[test]
    fn case_70_datagrams_that_an_address_without_proof_does_not_get_are_counted() {
        let now = Instant::now();
        let mut endpoint = Endpoint::new(EndpointConfig::default(), [7; 16]);
        let stranger = SocketAddr::from(([192, 0, 2, 1], 9));
        let (flags, headers) = (Flags::empty(), Headers::default());
        let mut ping = Vec::new();
        FrameRef { typ: FrameType::Ping, flags, headers, payload: b"" }.encode(&mut ping).unwrap();
        endpoint.handle_datagram(now, stranger, &ping);
        let long = FrameBytes::new(FrameType::Data, HeadersBuf::default(), vec![0; 1000].into());
        endpoint.send(now, stranger, long, false);
        let (mut out, mut went) = (Vec::new(), 0);
        while endpoint.poll_transmit(now, 1, &mut out).is_some() {
            went += out.len();
        }
        assert!(went <= 3 * ping.len(), "{went}");
        assert_eq!(endpoint.counters().withheld, 0);
        endpoint.handle_timeout(now + Duration::from_secs(1));
        assert_eq!(endpoint.counters().withheld, 1);
    }
}
