//! Strangers, their proof, and the memory that they and others may take (docs/protocol/vstp.md,
//! sections 3 and 7).

use super::{CHALLENGE, Endpoint};
use crate::vstp::acknowledgement::Acknowledgement;
use crate::vstp::arrivals::Arrived;
use crate::vstp::budget::{Admission, Budget};
use crate::vstp::challenge::{answer_challenge, write_challenge};
use crate::vstp::failure::{Failure, Unreachable};
use crate::vstp::fragment::{Fragment, Report, parse_refusal};
use crate::vstp::frame::{Flags, FrameRef, FrameType};
use crate::vstp::ids::MSG_ID;
use crate::vstp::peer::{Peer, Proof};
use crate::vstp::receiving::Scope;
use crate::vstp::sending::Sending;
use crate::vstp::standing::Standing;
use std::net::SocketAddr;
use std::time::Instant;

/// The things that a frame asks an endpoint to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asks {
    /// Nothing but its place in the application's queue.
    Nothing,
    /// State, and its sender answers challenges: it writes a leading zero.
    Provable,
    /// State, and its sender may be a program of version 0.2.
    State,
}

impl Asks {
    fn of(frame: &FrameRef<'_>) -> Self {
        if frame.flags.contains(Flags::FRAG) {
            let fragment = Fragment::parse(frame.headers);
            return match fragment {
                Some(fragment) if fragment.wants_reports && !fragment.probe => Self::Provable,
                _ => Self::State,
            };
        }
        if !frame.flags.contains(Flags::REQ_ACK) {
            return Self::Nothing;
        }
        match Acknowledgement::of(frame.headers, 0) {
            Some(wanted) if wanted.unique_number().is_some() => Self::Provable,
            _ => Self::State,
        }
    }
}

impl Endpoint {
    /// Answers to addresses of which nothing is remembered that wait to leave.
    const STATELESS_MAX: usize = 1024;

    /// Returns true if a frame is to be handled: its address is remembered from now on. Else it has
    /// been answered, if it has to be.
    pub(super) fn admit_address(&mut self, now: Instant, from: SocketAddr, frame: &FrameRef<'_>) -> bool {
        self.promote(now, from);
        let standing = self.peers.standing(from);
        if standing == Some(Standing::Known) {
            return true;
        }
        if self.config.connected {
            // Its connection has proved it.
            if !self.make_place(now, Standing::Known) {
                self.counters.refused += 1;
                return false;
            }
            self.remember(now, from, Standing::Known, Proof::Proved);
            return true;
        }
        if standing.is_none() && self.handle_stateless(now, from, frame) {
            return false;
        }
        let asks = Asks::of(frame);
        if asks == Asks::Provable {
            // Its frames must not come twice, so that it is not forgotten for others; and it can
            // prove itself.
            if standing != Some(Standing::Challenged) && !self.peers.has_place(Standing::Challenged) {
                self.counters.challenged += 1;
                self.challenge_stateless(now, from);
                return false;
            }
            match standing {
                None => self.remember(now, from, Standing::Challenged, Proof::unproved(0, 0)),
                Some(Standing::Stranger) => self.set_standing(from, Standing::Challenged),
                Some(_) => {}
            }
            if let Some(peer) = self.peers.get_mut(from) {
                peer.challenge();
            }
            return true;
        }
        if standing.is_none() {
            if !self.make_place(now, Standing::Stranger) {
                self.counters.refused += 1;
                return false;
            }
            self.remember(now, from, Standing::Stranger, Proof::unproved(0, 0));
        }
        true
    }

    /// Handles what can be handled of an address without remembering it; true if that is all.
    fn handle_stateless(&mut self, now: Instant, from: SocketAddr, frame: &FrameRef<'_>) -> bool {
        let is_challenge = frame.headers.find(CHALLENGE).is_some();
        match frame.typ {
            FrameType::Pong if is_challenge => {
                if !self.challenges.is_answered(now, from, frame.payload) {
                    self.counters.unexpected += 1;
                } else if self.make_place(now, Standing::Known) {
                    self.remember(now, from, Standing::Known, Proof::Proved);
                    if let Some(peer) = self.peers.get_mut(from) {
                        peer.on_heard(now);
                    }
                    self.wake(from);
                } else {
                    self.counters.refused += 1;
                }
                true
            }
            FrameType::Ping if is_challenge => {
                match answer_challenge(frame) {
                    Some(pong) => self.answer_stateless(now, from, pong),
                    None => self.counters.malformed += 1,
                }
                true
            }
            FrameType::Ack
                if frame.headers.find(MSG_ID).is_some() || Report::is_in(frame) || Arrived::is_in(frame) =>
            {
                self.counters.unexpected += 1;
                true
            }
            FrameType::Err if parse_refusal(frame).is_some() => {
                self.counters.unexpected += 1;
                true
            }
            FrameType::Ack | FrameType::Err => false,
            _ if frame.flags.contains(Flags::FRAG) => match Fragment::parse(frame.headers) {
                None => {
                    self.counters.malformed += 1;
                    true
                }
                Some(fragment) if fragment.probe && fragment.wants_reports => {
                    let mut report = Vec::new();
                    // How many plain frames came is not known.
                    let answer = Report { id: fragment.id, base: 1, limit: 1, delay_us: 0, bitmap: vec![] };
                    answer.write(&mut report);
                    self.answer_stateless(now, from, report);
                    true
                }
                Some(_) => false,
            },
            _ => false,
        }
    }

    fn challenge_stateless(&mut self, now: Instant, to: SocketAddr) {
        let mut challenge = Vec::new();
        if write_challenge(self.challenges.token(now, to), &mut challenge).is_ok() {
            self.answer_stateless(now, to, challenge);
        }
    }

    fn answer_stateless(&mut self, now: Instant, to: SocketAddr, answer: Vec<u8>) {
        if self.stateless.len() < Self::STATELESS_MAX && self.challenges.may_answer(now) {
            self.stateless.push_back((to, None, answer));
        } else {
            self.counters.withheld += 1;
        }
    }

    /// The address, which is spoken to first if nothing is remembered of it; None if too many are.
    pub(super) fn peer_to_send(&mut self, now: Instant, address: SocketAddr) -> Option<&mut Peer> {
        if self.peers.get(address).is_none() {
            // Whoever answers a stranger that has been forgotten does not speak first.
            let unproved = self.inbox.unproved(address).or_else(|| self.peers.forgotten(address));
            let (standing, proof) = match unproved {
                Some((came, went)) => (Standing::Stranger, Proof::unproved(came, went)),
                None => (Standing::Known, Proof::Proved),
            };
            if !self.make_place(now, standing) {
                return None;
            }
            self.remember(now, address, standing, proof);
        }
        self.peers.get_mut(address)
    }

    fn remember(&mut self, now: Instant, address: SocketAddr, standing: Standing, proof: Proof) {
        let mut sending = Sending::new(now, self.config.patience.clone(), &mut self.random);
        sending.set_cap(now, self.bulk_rate);
        if self.config.connected {
            sending.keep_to_smallest();
        }
        self.peers.insert(address, Peer::new(now, standing, proof, sending));
    }

    /// Makes a place for one more address; false if all that there are have to stay.
    fn make_place(&mut self, now: Instant, standing: Standing) -> bool {
        if self.peers.has_place(standing) {
            return true;
        }
        let inbox = &self.inbox;
        let expendable = self.peers.expendable(now, standing, |address| inbox.held(address).count > 0);
        let Some(address) = expendable else { return false };
        if standing == Standing::Stranger {
            self.counters.evicted += 1;
        }
        self.forget(address);
        true
    }

    /// Forgets an address, with all that is under way.
    pub(super) fn forget(&mut self, address: SocketAddr) {
        let Some(mut peer) = self.peers.remove(address) else { return };
        if let Some(bytes) = peer.unproved() {
            self.inbox.set_unproved(address, bytes);
        }
        self.budgets.get_mut(peer.standing).used.subtract(peer.receiving.usage());
        self.waiting.remove(&address);
        if let Some(since) = peer.reassembling_since {
            self.reassembling_strangers.remove(&(since, address));
        }
        if let Some(timer) = peer.timer {
            self.timers.remove(&(timer, address));
        }
        peer.sending.abandon(&Failure::Unproved);
        while let Some((send, result)) = peer.sending.poll_outcome() {
            self.outcomes.push_back((send, result));
        }
    }

    /// The connection that an address had is over (`EndpointConfig::connected`): what is under way
    /// to it fails, and nothing is remembered of it. Whoever connects from there next is another.
    pub fn handle_disconnected(&mut self, now: Instant, address: SocketAddr, reason: Unreachable) {
        let Some(peer) = self.peers.get_mut(address) else { return };
        peer.sending.abandon(&Failure::Unreachable(reason));
        while let Some(outcome) = peer.sending.poll_outcome() {
            self.outcomes.push_back(outcome);
        }
        self.forget(address);
        self.inbox.drop_calls(address);
        self.admit_waiting(now);
    }

    /// Changes the standing of an address: what it has comes under another budget.
    fn set_standing(&mut self, address: SocketAddr, standing: Standing) {
        let Some(peer) = self.peers.get_mut(address) else { return };
        let usage = peer.receiving.usage();
        self.budgets.get_mut(peer.standing).used.subtract(usage);
        self.budgets.get_mut(standing).used.add(usage);
        if let Some(since) = peer.reassembling_since.take() {
            self.reassembling_strangers.remove(&(since, address));
        }
        self.peers.set_standing(address, standing);
    }

    /// An address has proved itself.
    pub(super) fn prove(&mut self, now: Instant, address: SocketAddr) {
        let Some(peer) = self.peers.get_mut(address) else { return };
        peer.on_proved();
        self.promote(now, address);
    }

    /// Gives an address that has proved itself its place, if there is one: else it keeps the one
    /// that it had as a stranger until there is.
    pub(super) fn promote(&mut self, now: Instant, address: SocketAddr) {
        let Some(peer) = self.peers.get(address) else { return };
        let waits = peer.is_proved() && peer.standing != Standing::Known;
        if !waits || !self.make_place(now, Standing::Known) {
            return;
        }
        self.set_standing(address, Standing::Known);
        self.inbox.prove(address);
        self.with_scope(now, address, |peer, scope| peer.receiving.on_proved(now, scope));
        self.admit_waiting(now);
    }

    // ---- memory ----

    /// Does something with what an address receives, and what others take.
    pub(super) fn with_scope<T>(
        &mut self,
        now: Instant,
        address: SocketAddr,
        act: impl FnOnce(&mut Peer, &Scope<'_>) -> T,
    ) -> Option<T> {
        let peer = self.peers.get_mut(address)?;
        let is_stranger = peer.standing != Standing::Known;
        let known_free = self.budgets.get(Standing::Known).free_for_large(self.inbox.amount(false));
        let budget = self.budgets.get_mut(peer.standing);
        budget.used.subtract(peer.receiving.usage());
        let scope = Scope {
            budget,
            all: self.inbox.amount(is_stranger),
            own: self.inbox.held(address),
            is_stranger,
            others_wait: !self.waiting.is_empty(),
            known_free,
        };
        let result = act(peer, &scope);
        let after = peer.receiving.usage();
        budget.used.add(after);
        if peer.receiving.has_waiting() {
            self.waiting.insert(address);
        } else {
            self.waiting.remove(&address);
        }
        // The order in which strangers lose their messages for others'.
        let keeps = peer.standing == Standing::Stranger && after.messages > 0;
        match peer.reassembling_since {
            None if keeps => {
                peer.reassembling_since = Some(now);
                self.reassembling_strangers.insert((now, address));
            }
            Some(since) if !keeps => {
                peer.reassembling_since = None;
                self.reassembling_strangers.remove(&(since, address));
            }
            _ => {}
        }
        Some(result)
    }

    /// Returns true if messages of other addresses of the same kind wait for admission.
    pub(super) fn others_wait(&self, address: SocketAddr) -> bool {
        let standing = self.peers.standing(address);
        let is_like = |other| self.peers.standing(other) == standing;
        self.waiting.iter().any(|waiting| *waiting != address && is_like(*waiting))
    }

    /// Makes room for a message of a stranger: that other one loses its messages who began first.
    /// Returns false if there is none.
    pub(super) fn make_room_for_stranger(&mut self, now: Instant, from: SocketAddr) -> bool {
        if self.peers.standing(from) != Some(Standing::Stranger) {
            return false;
        }
        let oldest = self.reassembling_strangers.iter().find(|(_, address)| *address != from).copied();
        let Some((_, address)) = oldest else { return false };
        let dropped = self.with_scope(now, address, |peer, _| peer.receiving.drop_unfinished());
        self.counters.expired += dropped.unwrap_or_default() as u64;
        true
    }

    /// Admits messages that wait, as far as there is room: first those whose addresses have least
    /// reserved, and of them the one that came first.
    pub(super) fn admit_waiting(&mut self, now: Instant) {
        self.freed = 0;
        loop {
            let mut candidates: Vec<_> = self
                .waiting
                .iter()
                .filter_map(|address| {
                    let peer = self.peers.get(*address)?;
                    let (since, announced) = peer.receiving.first_waiting()?;
                    let own = peer.receiving.usage().reserved + self.inbox.held(*address).bytes;
                    Some((own, since, *address, announced, peer.standing))
                })
                .collect();
            candidates.sort_unstable_by_key(|(own, since, address, ..)| (*own, *since, *address));
            // A large message that does not fit is not overtaken by others of its budget.
            let mut blocked = Vec::new();
            let mut has_admitted = false;
            for (_, _, address, announced, standing) in candidates {
                let is_large = announced > Budget::SMALL_MESSAGE_MAX;
                if is_large && blocked.contains(&standing) {
                    continue;
                }
                let admission = self.with_scope(now, address, |peer, scope| {
                    let scope = Scope { others_wait: false, ..*scope };
                    // One that has reached its own bound does not hold back others.
                    let admission = peer.receiving.first_admission(&scope);
                    if admission == Admission::Now {
                        peer.receiving.admit(now);
                    }
                    admission
                });
                match admission {
                    Some(Admission::Now) => {
                        has_admitted = true;
                        self.wake(address);
                    }
                    Some(Admission::NotBeforeOthers) if is_large => blocked.push(standing),
                    _ => {}
                }
            }
            if !has_admitted {
                return;
            }
        }
    }
}
