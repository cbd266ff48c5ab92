//! The addresses of an endpoint: those that have proved themselves, and strangers
//! (docs/protocol/vstp.md, section 7).

use super::peer::Peer;
use super::standing::Standing;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// All addresses that are remembered.
#[derive(Debug)]
pub(super) struct Peers {
    by_address: HashMap<SocketAddr, Peer>,
    strangers: Group,
    challenged: Group,
    known: Group,
    /// Strangers that were forgotten, and the bytes that came from each and went to it: whoever
    /// answers one of them does not speak first. With the turn in which each was noted.
    forgotten: HashMap<SocketAddr, (u64, (u64, u64))>,
    forgotten_order: VecDeque<(u64, SocketAddr)>,
    forgotten_turn: u64,
}

/// Addresses of one standing.
#[derive(Debug)]
struct Group {
    max: usize,
    /// Those that were heard least recently first.
    order: BTreeSet<(Instant, SocketAddr)>,
}

impl Group {
    fn new(max: usize) -> Self {
        Self { max: max.max(1), order: BTreeSet::new() }
    }
}

impl Peers {
    /// A known address that has been silent for so long may be forgotten for another: nobody sends
    /// a frame again later.
    pub(super) const LIVE: Duration = Duration::from_secs(60);
    /// A known address moves up when it is heard, this often at most.
    const TOUCH_INTERVAL: Duration = Duration::from_secs(1);
    const FORGOTTEN_MAX: usize = 16_384;
    /// An idle address is looked for among so many of the oldest.
    const LOOKED_AT: usize = 8;

    /// None is known.
    pub(super) fn new(known_max: usize) -> Self {
        Self {
            by_address: HashMap::new(),
            strangers: Group::new(known_max / 2),
            challenged: Group::new(known_max / 8),
            known: Group::new(known_max),
            forgotten: HashMap::new(),
            forgotten_order: VecDeque::new(),
            forgotten_turn: 0,
        }
    }

    pub(super) fn get(&self, address: SocketAddr) -> Option<&Peer> {
        self.by_address.get(&address)
    }

    pub(super) fn get_mut(&mut self, address: SocketAddr) -> Option<&mut Peer> {
        self.by_address.get_mut(&address)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.by_address.values()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (SocketAddr, &mut Peer)> {
        self.by_address.iter_mut().map(|(address, peer)| (*address, peer))
    }

    /// The standing of an address; None if nothing is remembered of it.
    pub(super) fn standing(&self, address: SocketAddr) -> Option<Standing> {
        self.get(address).map(|peer| peer.standing)
    }

    fn group(&self, standing: Standing) -> &Group {
        match standing {
            Standing::Stranger => &self.strangers,
            Standing::Challenged => &self.challenged,
            Standing::Known => &self.known,
        }
    }

    fn group_mut(&mut self, standing: Standing) -> &mut Group {
        match standing {
            Standing::Stranger => &mut self.strangers,
            Standing::Challenged => &mut self.challenged,
            Standing::Known => &mut self.known,
        }
    }

    /// Returns true if there is a place for one more.
    pub(super) fn has_place(&self, standing: Standing) -> bool {
        let group = self.group(standing);
        group.order.len() < group.max
    }

    /// The address to forget so that there is a place; None if none may be forgotten. `is_held`
    /// says of an address that the application has something of it.
    pub(super) fn expendable(
        &mut self,
        now: Instant,
        standing: Standing,
        is_held: impl Fn(SocketAddr) -> bool,
    ) -> Option<SocketAddr> {
        match standing {
            Standing::Stranger => self.strangers.order.first().map(|(_, address)| *address),
            Standing::Challenged => None,
            Standing::Known => self.expendable_known(now, is_held),
        }
    }

    /// The same of known addresses. Those that are silent and have something under way do not stand
    /// before others the next time.
    fn expendable_known(&mut self, now: Instant, is_held: impl Fn(SocketAddr) -> bool) -> Option<SocketAddr> {
        let oldest: Vec<_> = self.known.order.iter().take(Self::LOOKED_AT).copied().collect();
        for (at, address) in oldest {
            let Some(peer) = self.by_address.get_mut(&address) else { continue };
            if peer.is_expendable(now, Self::LIVE) && !is_held(address) {
                return Some(address);
            }
            if now.saturating_duration_since(peer.heard_at) >= Self::LIVE {
                peer.ordered_at = now;
                self.known.order.remove(&(at, address));
                self.known.order.insert((now, address));
            }
        }
        None
    }

    /// Remembers an address; there must be a place.
    pub(super) fn insert(&mut self, address: SocketAddr, peer: Peer) {
        self.group_mut(peer.standing).order.insert((peer.ordered_at, address));
        self.by_address.insert(address, peer);
    }

    /// Forgets an address.
    pub(super) fn remove(&mut self, address: SocketAddr) -> Option<Peer> {
        let peer = self.by_address.remove(&address)?;
        self.group_mut(peer.standing).order.remove(&(peer.ordered_at, address));
        if let Some(bytes) = peer.unproved() {
            self.remember_forgotten(address, bytes);
        }
        Some(peer)
    }

    /// Records the bytes that came from a stranger that was forgotten, and went to it: as the last.
    pub(super) fn remember_forgotten(&mut self, address: SocketAddr, bytes: (u64, u64)) {
        self.forgotten_turn += 1;
        self.forgotten.insert(address, (self.forgotten_turn, bytes));
        self.forgotten_order.push_back((self.forgotten_turn, address));
        if self.forgotten_order.len() > Self::FORGOTTEN_MAX
            && let Some((turn, oldest)) = self.forgotten_order.pop_front()
            && self.forgotten.get(&oldest).is_some_and(|(noted, _)| *noted == turn)
        {
            self.forgotten.remove(&oldest);
        }
    }

    /// The bytes that came from a stranger that was forgotten of late, and went to it.
    pub(super) fn forgotten(&self, address: SocketAddr) -> Option<(u64, u64)> {
        self.forgotten.get(&address).map(|(_, bytes)| *bytes)
    }

    /// Changes the standing of an address; there must be a place.
    pub(super) fn set_standing(&mut self, address: SocketAddr, standing: Standing) {
        let Some(peer) = self.by_address.get_mut(&address) else { return };
        let (before, at) = (peer.standing, peer.ordered_at);
        peer.standing = standing;
        self.group_mut(before).order.remove(&(at, address));
        self.group_mut(standing).order.insert((at, address));
    }

    /// An address has been heard: others are forgotten before it.
    pub(super) fn touch(&mut self, address: SocketAddr) {
        let Some(peer) = self.by_address.get_mut(&address) else { return };
        let (before, at, standing) = (peer.ordered_at, peer.rank(), peer.standing);
        let is_new =
            standing != Standing::Known || at.saturating_duration_since(before) >= Self::TOUCH_INTERVAL;
        if !is_new || at == before {
            return;
        }
        peer.ordered_at = at;
        let order = &mut self.group_mut(standing).order;
        order.remove(&(before, address));
        order.insert((at, address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vstp::peer::Proof;
    use crate::vstp::random::Random;
    use crate::vstp::sending::{Patience, Sending};

    #[test]
    fn case_125_those_that_cannot_be_forgotten_do_not_stand_before_others_for_ever() {
        let now = Instant::now();
        let mut random = Random::new([3; 16]);
        let mut peers = Peers::new(30);
        let address = |port| SocketAddr::from(([192, 0, 2, 1], port));
        for port in 0..30_u16 {
            let at = now + Duration::from_millis(port.into());
            let sending = Sending::new(at, Patience::default(), &mut random);
            let mut peer = Peer::new(at, Standing::Known, Proof::Proved, sending);
            peer.on_heard(at);
            peers.insert(address(port), peer);
        }
        let mut expendable = |after, is_held: &dyn Fn(u16) -> bool| {
            let later = now + Duration::from_secs(after);
            peers.expendable(later, Standing::Known, |address| is_held(address.port()))
        };
        assert_eq!(expendable(30, &|_| false), None, "all were heard of late");
        // The application has something of the first twenty.
        let found: Vec<_> = (0..3).map(|_| expendable(100, &|port| port < 20)).collect();
        assert_eq!(found, [None, None, Some(address(20))]);
        assert_eq!(expendable(100, &|_| false), Some(address(20)));
    }
}
