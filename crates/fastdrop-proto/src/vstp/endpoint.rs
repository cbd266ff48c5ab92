//! VSTP over UDP: one socket, any number of addresses.

use super::acknowledgement::Acknowledgement;
use super::budget::Budgets;
use super::challenge::{CHALLENGE, Challenges, write_challenge};
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
mod incoming;

/// The most bytes that UDP over IPv4 carries.
const DATAGRAM_LIMIT: usize = 65_507;

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
    counters: Counters,
}

impl Endpoint {
    /// Addresses that are remembered by default.
    pub const PEERS_MAX: usize = EndpointConfig::PEERS_MAX;
    /// What is remembered of an address that says nothing.
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
            counters: Counters::default(),
            config,
        }
    }

    /// What was counted.
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

    /// What the last PINGs to an address have shown.
    pub fn path(&self, now: Instant, to: SocketAddr) -> UdpPath {
        self.peers.get(to).map_or_else(UdpPath::default, |peer| peer.pings.path(now))
    }

    /// Whether everything that was to be sent has had its outcome.
    pub fn is_idle(&self) -> bool {
        self.peers.iter().all(Peer::has_sent_all)
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
        let sent = match self.peer_to_send(now, to) {
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
    pub fn handle_taken(&mut self, from: SocketAddr, frame: &FrameBytes) {
        self.inbox.on_taken(from, frame);
        if !self.waiting.is_empty() {
            self.freed += frame.memory();
            let is_empty = self.inbox.amount(false).count == 0;
            if self.freed >= Self::FREED_MIN || is_empty {
                self.admit_waiting();
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
            let age_max = self.config.limits.age_max;
            let ended = self.with_scope(now, address, |peer, _| {
                let sufficient: Vec<_> =
                    std::iter::from_fn(|| peer.receiving.poll_sufficient(now, age_max)).collect();
                (sufficient, peer.receiving.handle_timeout(now, age_max))
            });
            if let Some((sufficient, expired)) = ended {
                self.counters.expired += expired as u64;
                for message in sufficient {
                    let crc = acknowledged_crc(&message);
                    self.receive(now, address, message, crc, false);
                }
                if expired > 0 {
                    self.admit_waiting();
                }
            }
            if self.peers.get(address).is_some_and(|peer| self.is_over(now, address, peer)) {
                self.forget(address);
                self.admit_waiting();
                continue;
            }
            self.wake(address);
        }
    }

    /// Returns true if nothing has to be remembered of an address any more.
    fn is_over(&self, now: Instant, address: SocketAddr, peer: &Peer) -> bool {
        let silent = now.saturating_duration_since(peer.heard_at);
        if peer.standing == Standing::Challenged && silent >= Self::UNANSWERED_MAX {
            return true;
        }
        peer.is_idle() && silent >= Self::IDLE_MAX && self.inbox.held(address).count == 0
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

    /// What the application has to be told.
    pub fn poll_event(&mut self) -> Option<Event> {
        if let Some((send, result)) = self.poll_outcome() {
            return Some(Event::Outcome { send, result });
        }
        let (from, frame, acknowledgement) = self.poll_received()?;
        Some(Event::Received { from, frame, acknowledgement })
    }

    /// What became of a message.
    pub fn poll_outcome(&mut self) -> Option<(SendId, Result<(), Failure>)> {
        self.outcomes.pop_front()
    }

    /// The next frame that was received: addresses have their turns, and strangers one together.
    pub fn poll_received(&mut self) -> Option<(SocketAddr, FrameBytes, Option<Acknowledgement>)> {
        self.inbox.pop()
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
                let over = (peer.heard_at + Self::UNANSWERED_MAX).max(now);
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
