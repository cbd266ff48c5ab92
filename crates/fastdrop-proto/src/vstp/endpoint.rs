//! VSTP over UDP: one socket, any number of addresses.

use super::acknowledgement::Acknowledgement;
use super::budget::Budgets;
use super::challenge::{CHALLENGE, Challenges, write_challenge};
use super::channel::SendOptions;
use super::config::EndpointConfig;
use super::error_code::ErrorCode;
use super::event::{Counters, Event, Transmit};
use super::failure::{Failure, Unreachable};
use super::frame::{Flags, FrameBytes, FrameType};
use super::ids::SendId;
use super::inbox::Inbox;
use super::peer::{Peer, Proof};
use super::peers::Peers;
use super::random::Random;
use super::seen::Settled;
use super::sending::Sending;
use super::standing::Standing;
use super::transport::UdpPath;
use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

mod addresses;
mod channels;
mod incoming;

/// The most bytes that UDP over IPv4 carries.
const DATAGRAM_LIMIT: usize = 65_507;
/// The most bytes that a QUIC packet of 1,280 carries, whatever the peer's connection identifiers.
const CONNECTED_LIMIT: usize = 1230;

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
    challenges: Challenges,
    peers: Peers,
    budgets: Budgets,
    /// Addresses with messages that wait for admission.
    waiting: BTreeSet<SocketAddr>,
    /// Strangers with unfinished messages, by when they began.
    reassembling_strangers: BTreeSet<(Instant, SocketAddr)>,
    /// Bytes that the application has given back since messages were last admitted.
    freed: usize,
    inbox: Inbox,
    /// Frames that have begun to wait there.
    arrivals: VecDeque<(SocketAddr, FrameType)>,
    /// Answers to addresses of which nothing is remembered, with the local address that was asked.
    stateless: VecDeque<(SocketAddr, Option<IpAddr>, Vec<u8>)>,
    ready: VecDeque<SocketAddr>,
    timers: BTreeSet<(Instant, SocketAddr)>,
    outcomes: VecDeque<(SendId, Result<(), Failure>)>,
    next_send: u64,
    /// Bytes a second of what has the lowest priority, to one address.
    bulk_rate: Option<u64>,
    counters: Counters,
}

impl Endpoint {
    /// Addresses that are remembered by default.
    pub const PEERS_MAX: usize = EndpointConfig::PEERS_MAX;
    /// An address that says nothing is remembered for so long.
    const IDLE_MAX: Duration = Duration::from_secs(300);
    /// The same of one that has not answered a challenge.
    const UNANSWERED_MAX: Duration = Duration::from_secs(10);
    /// Arrivals that are kept for [`Self::poll_arrival`].
    const ARRIVALS_MAX: usize = 1024;
    /// Messages are admitted again when the application has given back so much.
    const FREED_MIN: usize = 64 << 10;

    /// No address is known. The seed must be unguessable.
    pub fn new(config: EndpointConfig, seed: [u8; 16]) -> Self {
        Self {
            random: Random::new(seed),
            challenges: Challenges::new(seed),
            peers: Peers::new(config.peers_max),
            budgets: Budgets::new(&config.limits),
            waiting: BTreeSet::new(),
            reassembling_strangers: BTreeSet::new(),
            freed: 0,
            inbox: Inbox::default(),
            arrivals: VecDeque::new(),
            stateless: VecDeque::new(),
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            outcomes: VecDeque::new(),
            next_send: 0,
            bulk_rate: None,
            counters: Counters::default(),
            config,
        }
    }

    /// The counts since the endpoint began.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Messages of which fragments are missing.
    pub fn unfinished(&self) -> usize {
        self.budgets.used().messages
    }

    /// Bytes of memory that unfinished messages keep, and those that the application has not taken.
    pub fn memory(&self) -> usize {
        self.budgets.used().memory + self.inbox.amount(true).bytes + self.inbox.amount(false).bytes
    }

    /// The smoothed round-trip time to an address; None if nothing was measured.
    pub fn rtt(&self, address: SocketAddr) -> Option<Duration> {
        self.peers.get(address)?.sending.rtt()
    }

    /// Bytes a second at which an address is sent to; None if nothing is known.
    pub fn rate(&self, address: SocketAddr) -> Option<f64> {
        self.peers.get(address)?.sending.rate()
    }

    /// Sends a PING, to find out whether datagrams come through; [`Self::path`] says what was
    /// found.
    pub fn ping(&mut self, now: Instant, to: SocketAddr) {
        let token = self.random.next_u64();
        let Some(peer) = self.peer_to_send(now, to) else { return };
        let mut ping = Vec::new();
        if write_challenge(token, &mut ping).is_ok() && peer.push_small(now, ping).is_ok() {
            peer.pings.on_sent(now, token);
        }
        self.wake(to);
    }

    /// The state of the path to an address, as the last PINGs have shown.
    pub fn path(&self, now: Instant, to: SocketAddr) -> UdpPath {
        self.peers.get(to).map_or_else(UdpPath::default, |peer| peer.pings.path(now))
    }

    /// Returns true if everything that was to be sent has had its outcome.
    pub fn is_idle(&self) -> bool {
        self.peers.iter().all(Peer::has_sent_all)
    }

    // ---- sending ----

    /// Sends a frame, in fragments if it must, and if `acknowledged` until it has been
    /// acknowledged. [`Event::Outcome`] says what became of it.
    pub fn send(&mut self, now: Instant, to: SocketAddr, frame: FrameBytes, acknowledged: bool) -> SendId {
        let options = if acknowledged { SendOptions::acknowledged() } else { SendOptions::default() };
        self.send_on(now, to, frame, &options)
    }

    /// The same on a channel, or otherwise as these options say.
    pub fn send_on(
        &mut self,
        now: Instant,
        to: SocketAddr,
        frame: FrameBytes,
        options: &SendOptions,
    ) -> SendId {
        self.next_send += 1;
        let send = SendId(self.next_send);
        let datagram = match (self.config.fragments, self.config.connected) {
            (true, _) => Sending::DATAGRAM,
            (false, true) => CONNECTED_LIMIT,
            (false, false) => DATAGRAM_LIMIT,
        };
        // For a stream that may have to begin.
        let fresh = options.channel().map_or(0, |_| self.random.next_u64());
        // An answer of an application that answers for itself is like one of the endpoint.
        let is_answer = matches!(frame.typ, FrameType::Ack | FrameType::Err);
        let sent = match self.peer_to_send(now, to) {
            None => Err(Failure::Busy),
            Some(peer) => match peer.sending.send(now, send, frame, options, (datagram, fresh)) {
                Ok(None) => Ok(()),
                Ok(Some(small)) => {
                    let taken = if is_answer {
                        peer.push_small(now, small.bytes).map(|()| true)
                    } else {
                        peer.push_plain(now, send, small)
                    };
                    taken.map(|told| {
                        if told {
                            self.outcomes.push_back((send, Ok(())));
                        }
                    })
                }
                Err(failure) => Err(failure),
            },
        };
        if let Err(failure) = sent {
            self.outcomes.push_back((send, Err(failure)));
        }
        self.wake(to);
        send
    }

    // ---- receiving ----

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
        let Some(peer) = self.peers.get_mut(from) else { return };
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

    /// The application is done with a frame that it has taken: there is room for more.
    pub fn handle_taken(&mut self, now: Instant, from: SocketAddr, frame: &FrameBytes) {
        // Whoever answers it now does not speak first.
        if let Some(bytes) = self.inbox.on_taken(from, frame)
            && self.peers.get(from).is_none()
        {
            self.peers.remember_forgotten(from, bytes);
        }
        if !self.waiting.is_empty() {
            self.freed += frame.memory();
            let is_empty = self.inbox.amount(false).count == 0;
            if self.freed >= Self::FREED_MIN || is_empty {
                self.admit_waiting(now);
            }
        }
    }

    // ---- addresses ----

    /// The local address that a peer has asked last, from which it is answered.
    pub fn local(&self, address: SocketAddr) -> Option<IpAddr> {
        let known = self.peers.get(address).and_then(|peer| peer.local);
        // A stranger may have been forgotten meanwhile.
        known.or_else(|| self.inbox.local(address))
    }

    /// Records the local address that a peer has asked: after [`Self::handle_datagram`], where the
    /// socket has several.
    pub fn set_local(&mut self, address: SocketAddr, local: IpAddr) {
        self.inbox.set_local(address, local);
        if let Some(peer) = self.peers.get_mut(address) {
            peer.local = Some(local);
        } else if let Some((to, from, _)) = self.stateless.back_mut()
            && *to == address
        {
            *from = Some(local);
        }
    }

    /// The reason for which nothing has reached an address since it was last heard; None if none is
    /// known.
    pub fn unreachable(&self, address: SocketAddr) -> Option<Unreachable> {
        self.peers.get(address)?.unreachable()
    }

    /// Datagrams do not reach an address, as far as the operating system knows. What goes to one
    /// that has never said anything fails at once; one that has may be starting again, and is given
    /// a second in which nothing comes of it but refusals.
    pub fn handle_unreachable(&mut self, now: Instant, address: SocketAddr, reason: Unreachable) {
        let Some(peer) = self.peers.get_mut(address) else { return };
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
            let Some(peer) = self.peers.get_mut(address) else { continue };
            peer.timer = None;
            peer.sending.handle_timeout(now);
            self.counters.withheld += peer.drop_withheld(now);
            let silent = now.saturating_duration_since(peer.heard_at);
            let is_gone = peer.standing == Standing::Challenged && silent >= Self::unanswered_max(peer);
            peer.receiving.ordered.handle_timeout(now, is_gone);
            self.settle_turns(now, address);
            self.promote(now, address);
            let age_max = self.config.limits.age_max;
            let others_wait = self.others_wait(address);
            let ended = self.with_scope(now, address, |peer, _| {
                let sufficient: Vec<_> =
                    std::iter::from_fn(|| peer.receiving.poll_sufficient(now, age_max)).collect();
                (sufficient, peer.receiving.handle_timeout(now, age_max, others_wait))
            });
            if let Some((sufficient, expired)) = ended {
                self.counters.expired += expired as u64;
                for message in sufficient {
                    let crc = acknowledged_crc(&message);
                    self.receive(now, address, message, crc, false);
                }
                if expired > 0 {
                    self.admit_waiting(now);
                }
            }
            if self.peers.get(address).is_some_and(|peer| self.is_over(now, address, peer)) {
                self.forget(address);
                self.admit_waiting(now);
                continue;
            }
            self.wake(address);
        }
    }

    /// Returns true if nothing has to be remembered of an address any more.
    fn is_over(&self, now: Instant, address: SocketAddr, peer: &Peer) -> bool {
        let silent = now.saturating_duration_since(peer.heard_at);
        // What the application has must not come again.
        let is_kept = self.inbox.held(address).count > 0 || !peer.receiving.seen.is_settled();
        if peer.standing == Standing::Challenged && silent >= Self::unanswered_max(peer) {
            return !is_kept;
        }
        peer.is_idle() && silent >= Self::IDLE_MAX && !is_kept
    }

    /// The silence after which an address that was challenged is forgotten.
    fn unanswered_max(peer: &Peer) -> Duration {
        // One that has answered only waits for its place.
        if peer.is_proved() { Peers::LIVE } else { Self::UNANSWERED_MAX }
    }

    /// The time at which [`Self::handle_timeout`] has to be called; None if nothing is waited for.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    // ---- what comes out ----

    /// Datagrams to send, written to `out`, which is emptied first; as many of one size as follow
    /// each other, at most `segments`.
    pub fn poll_transmit(&mut self, now: Instant, segments: usize, out: &mut Vec<u8>) -> Option<Transmit> {
        out.clear();
        if let Some((to, from, answer)) = self.stateless.pop_front() {
            *out = answer;
            return Some(Transmit { to, datagram: out.len(), from });
        }
        while let Some(to) = self.ready.front().copied() {
            let Some(peer) = self.peers.get_mut(to) else {
                self.ready.pop_front();
                continue;
            };
            let token = match peer.proof {
                Proof::Unproved { .. } => self.challenges.token(now, to),
                Proof::Proved => 0,
            };
            // What messages of this address have reserved counts once.
            let all = self.inbox.amount(peer.standing != Standing::Known);
            let free = self.budgets.get(peer.standing).free(all, 0);
            if let Some(datagram) = peer.poll_transmit(now, segments, free, token, &mut self.random, out) {
                if let Proof::Unproved { went, .. } = &mut peer.proof {
                    *went += out.len() as u64;
                }
                // The others have their turn before this one comes again.
                self.ready.rotate_left(1);
                return Some(Transmit { to, datagram, from: peer.local });
            }
            peer.ready = false;
            while let Some(outcome) = peer.sending.poll_outcome() {
                self.outcomes.push_back(outcome);
            }
            self.ready.pop_front();
            self.reschedule(now, to);
        }
        None
    }

    /// The next thing that the application has to be told.
    pub fn poll_event(&mut self) -> Option<Event> {
        if let Some((send, result)) = self.poll_outcome() {
            return Some(Event::Outcome { send, result });
        }
        let received = self.poll_of_call().or_else(|| self.poll_received());
        let (from, frame, acknowledgement) = received?;
        Some(Event::Received { from, frame, acknowledgement })
    }

    /// The next outcome of a message.
    pub fn poll_outcome(&mut self) -> Option<(SendId, Result<(), Failure>)> {
        self.outcomes.pop_front()
    }

    /// The next frame that was received: addresses have their turns, and strangers one together.
    pub fn poll_received(&mut self) -> Option<(SocketAddr, FrameBytes, Option<Acknowledgement>)> {
        self.inbox.pop()
    }

    /// The next frame about a call that is under way, a reply or a cancellation, which
    /// [`Self::poll_received`] does not give. The driver treats it as any other frame that it has
    /// taken.
    pub fn poll_of_call(&mut self) -> Option<(SocketAddr, FrameBytes, Option<Acknowledgement>)> {
        self.inbox.pop_of_call()
    }

    /// The sender and the type of the next frame that has begun to wait for the application, where
    /// the driver wants to know at once; of those that it does not ask for, the first are kept.
    pub fn poll_arrival(&mut self) -> Option<(SocketAddr, FrameType)> {
        self.arrivals.pop_front()
    }

    /// Returns true if a frame may be there to be taken.
    pub fn has_received(&self) -> bool {
        !self.inbox.is_empty()
    }

    fn wake(&mut self, address: SocketAddr) {
        if let Some(peer) = self.peers.get_mut(address).filter(|peer| !peer.ready) {
            peer.ready = true;
            self.ready.push_back(address);
        }
    }

    fn reschedule(&mut self, now: Instant, address: SocketAddr) {
        let Some(peer) = self.peers.get_mut(address) else { return };
        let timer = peer.poll_timeout(now, self.config.limits.age_max);
        let timer = match peer.standing {
            Standing::Challenged => {
                let over = peer.heard_at + Self::unanswered_max(peer);
                let over = if over > now { over } else { now + Self::UNANSWERED_MAX };
                Some(timer.map_or(over, |timer| timer.min(over)))
            }
            _ => timer.or(Some(peer.heard_at.max(now) + Self::IDLE_MAX)),
        };
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
    use crate::vstp::frame::{FrameRef, Headers, HeadersBuf};

    fn datagram(typ: FrameType, headers: HeadersBuf, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let flags = Flags::empty();
        FrameRef { typ, flags, headers: headers.as_headers(), payload }.encode(&mut out).unwrap();
        out
    }

    #[test]
    fn case_125_answers_to_nothing_take_no_place_among_strangers() {
        let now = Instant::now();
        let mut endpoint = Endpoint::new(EndpointConfig::default(), [7; 16]);
        let stranger = SocketAddr::from(([192, 0, 2, 1], 9));
        let answers = [
            (FrameType::Ack, "msg-id"),
            (FrameType::Ack, "frag-id"),
            (FrameType::Ack, "arrived"),
            (FrameType::Err, "frag-id"),
            (FrameType::Pong, "challenge"),
        ];
        for (n, (typ, header)) in (1..).zip(answers) {
            let headers = HeadersBuf::default().with(header, "07").with("code", "busy");
            endpoint.handle_datagram(now, stranger, &datagram(typ, headers, &[0; 12]));
            assert_eq!(endpoint.counters().unexpected, n, "{typ:?} {header}");
            assert_eq!(endpoint.peers.standing(stranger), None, "{typ:?} {header}");
        }
    }

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    /// The PONG by which an address proves itself.
    fn proof(endpoint: &mut Endpoint, now: Instant, of: SocketAddr) -> Vec<u8> {
        let token = endpoint.challenges.token(now, of).to_be_bytes();
        datagram(FrameType::Pong, HeadersBuf::default().with(CHALLENGE, 1), &token)
    }

    /// A frame that wants an acknowledgement, with a number that is used once.
    fn acknowledged(n: u64) -> Vec<u8> {
        let headers = HeadersBuf::default().with("msg-id", format!("0{}", (1_u64 << 62) + n));
        let flags = Flags::REQ_ACK;
        let mut out = Vec::new();
        let frame = FrameRef { typ: FrameType::Data, flags, headers: headers.as_headers(), payload: b"x" };
        frame.encode(&mut out).unwrap();
        out
    }

    fn pass(endpoint: &mut Endpoint, from: Instant, to: Instant) {
        let (mut out, mut steps) = (Vec::new(), 0);
        loop {
            while endpoint.poll_transmit(from, 1, &mut out).is_some() {}
            let Some(at) = endpoint.poll_timeout().filter(|at| *at <= to) else { return };
            endpoint.handle_timeout(at);
            while endpoint.poll_transmit(at, 1, &mut out).is_some() {}
            steps += 1;
            assert!(steps < 1000, "time passes");
        }
    }

    #[test]
    fn case_125_who_proves_itself_while_no_place_is_free_gets_one_later() {
        let config = EndpointConfig { peers_max: 1, ..EndpointConfig::default() };
        let mut endpoint = Endpoint::new(config, [7; 16]);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let first = proof(&mut endpoint, start, address(1));
        endpoint.handle_datagram(start, address(1), &first);
        endpoint.handle_datagram(start, address(2), &acknowledged(1));
        let second = proof(&mut endpoint, start, address(2));
        endpoint.handle_datagram(start, address(2), &second);
        let (from, frame, wanted) = endpoint.poll_received().unwrap();
        endpoint.handle_taken(start, from, &frame);
        endpoint.acknowledge(start, from, wanted.unwrap());
        assert_eq!(endpoint.peers.standing(address(2)), Some(Standing::Challenged));
        for (now, next) in [(0, 30), (30, 59)] {
            pass(&mut endpoint, at(now), at(next));
            endpoint.handle_datagram(at(next), address(2), &acknowledged(1));
        }
        assert_eq!(endpoint.counters().duplicates, 2, "it is not forgotten");
        pass(&mut endpoint, at(59), at(61));
        endpoint.handle_datagram(at(61), address(2), &acknowledged(2));
        assert_eq!(endpoint.peers.standing(address(2)), Some(Standing::Known));
        assert_eq!(endpoint.peers.standing(address(1)), None, "which was silent");
    }

    #[test]
    fn case_125_a_stranger_of_which_the_application_has_a_frame_is_not_forgotten() {
        let mut endpoint = Endpoint::new(EndpointConfig::default(), [7; 16]);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        endpoint.handle_datagram(start, address(1), &acknowledged(1));
        pass(&mut endpoint, start, at(25));
        endpoint.handle_datagram(at(25), address(1), &acknowledged(1));
        assert_eq!(endpoint.counters().duplicates, 1);
        let (from, frame, wanted) = endpoint.poll_received().unwrap();
        pass(&mut endpoint, at(25), at(50));
        assert!(endpoint.peers.standing(address(1)).is_some(), "the application has it");
        endpoint.handle_taken(at(50), from, &frame);
        endpoint.acknowledge(at(50), from, wanted.unwrap());
        assert!(endpoint.poll_received().is_none(), "once");
        pass(&mut endpoint, at(50), at(75));
        assert_eq!(endpoint.peers.standing(address(1)), None);
    }

    #[test]
    fn case_124_what_came_before_the_proof_counts_while_the_rest_waits() {
        let bytes_max = 64 << 20;
        let limits = crate::vstp::ReassemblyLimits {
            message_bytes_max: bytes_max,
            peer_bytes_max: bytes_max,
            bytes_max,
            ..Default::default()
        };
        let config = EndpointConfig { limits, ..EndpointConfig::default() };
        let mut endpoint = Endpoint::new(config, [7; 16]);
        let now = Instant::now();
        const FRAGMENTS: usize = 400;
        for (id, index) in (0..6_u64).flat_map(|id| (0..FRAGMENTS).map(move |index| (id, index))) {
            let headers = HeadersBuf::default()
                .with("frag-id", format!("0{}", (1_u64 << 62) + id))
                .with("frag-index", index)
                .with("frag-total", 40_000);
            let (flags, headers) = (Flags::FRAG, headers.as_headers());
            let mut out = Vec::new();
            let frame = FrameRef { typ: FrameType::Data, flags, headers, payload: &[0; 1200] };
            frame.encode(&mut out).unwrap();
            endpoint.handle_datagram(now, address(1), &out);
        }
        let proof = proof(&mut endpoint, now, address(1));
        endpoint.handle_datagram(now, address(1), &proof);
        let used = endpoint.budgets.get(Standing::Known).used;
        assert_eq!(used.messages, 6);
        // One is admitted, and the others keep what they have.
        assert!(used.reserved >= 40_000 * 1200 + 5 * FRAGMENTS * 1200, "{used:?}");
        assert!(used.waiting <= bytes_max / 16, "{used:?}");
    }

    #[test]
    fn case_125_a_late_answer_to_a_forgotten_stranger_is_no_first_word() {
        let now = Instant::now();
        let ping = datagram(FrameType::Data, HeadersBuf::default(), &[0; 100]);
        let flood = |endpoint: &mut Endpoint, ports: std::ops::Range<u16>| {
            ports.for_each(|port| endpoint.handle_datagram(now, address(port), &ping));
        };
        for is_taken in [false, true] {
            let config = EndpointConfig { peers_max: 2, ..EndpointConfig::default() };
            let mut endpoint = Endpoint::new(config, [7; 16]);
            endpoint.handle_datagram(now, address(1), &ping);
            flood(&mut endpoint, 1000..40_000);
            let (from, frame, _) = endpoint.poll_received().unwrap();
            assert_eq!(from, address(1));
            if is_taken {
                endpoint.handle_taken(now, from, &frame);
                flood(&mut endpoint, 40_000..50_000);
            }
            for _ in 0..10 {
                let answer = FrameBytes::new(FrameType::Data, HeadersBuf::default(), vec![0; 1000].into());
                endpoint.send(now, from, answer, false);
            }
            let (mut out, mut went) = (Vec::new(), 0);
            while let Some(transmit) = endpoint.poll_transmit(now, 1, &mut out) {
                went += if transmit.to == from { out.len() } else { 0 };
            }
            assert!(went <= 3 * ping.len(), "{went}, taken: {is_taken}");
            assert_eq!(endpoint.peers.standing(from), Some(Standing::Stranger));
        }
    }

    #[test]
    fn a_challenge_that_is_lost_is_repeated_while_messages_wait_for_the_proof() {
        let start = Instant::now();
        let mut endpoint = Endpoint::new(EndpointConfig::default(), [7; 16]);
        let stranger = SocketAddr::from(([192, 0, 2, 1], 9));
        endpoint.handle_datagram(
            start,
            stranger,
            &datagram(FrameType::Data, HeadersBuf::default(), &[0; 1000]),
        );
        for _ in 0..5 {
            let answer = FrameBytes::new(FrameType::Data, HeadersBuf::default(), vec![0; 1000].into());
            endpoint.send(start, stranger, answer, true);
        }
        let (mut out, mut now, mut challenges) = (Vec::new(), start, 0);
        while now < start + Duration::from_millis(900) {
            while endpoint.poll_transmit(now, 1, &mut out).is_some() {
                let (frame, _) = FrameRef::decode(&out, 2000).unwrap().unwrap();
                challenges += usize::from(frame.headers.find(CHALLENGE).is_some());
            }
            now = endpoint.poll_timeout().unwrap().max(now);
            endpoint.handle_timeout(now);
        }
        assert!(challenges >= 3, "{challenges}");
    }

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
