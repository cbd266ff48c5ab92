//! The addresses of an endpoint: those that have proved themselves, and strangers (docs/protocol/vstp.md,
//! section 7).

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
    /// answers one of them does not speak first.
    forgotten: HashMap<SocketAddr, (u64, u64)>,
    forgotten_order: VecDeque<SocketAddr>,
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
    const LIVE: Duration = Duration::from_secs(60);
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
        &self,
        now: Instant,
        standing: Standing,
        is_held: impl Fn(SocketAddr) -> bool,
    ) -> Option<SocketAddr> {
        let mut oldest = self.group(standing).order.iter().take(Self::LOOKED_AT).map(|(_, address)| *address);
        match standing {
            Standing::Stranger => oldest.next(),
            Standing::Challenged => None,
            Standing::Known => oldest.find(|address| {
                let peer = self.get(*address);
                peer.is_some_and(|peer| peer.is_expendable(now, Self::LIVE)) && !is_held(*address)
            }),
        }
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
        if let Some((came, went)) = peer.unproved() {
            self.remember_forgotten(address, came, went);
        }
        Some(peer)
    }

    fn remember_forgotten(&mut self, address: SocketAddr, came: u64, went: u64) {
        if self.forgotten.insert(address, (came, went)).is_some() {
            return;
        }
        self.forgotten_order.push_back(address);
        if self.forgotten_order.len() > Self::FORGOTTEN_MAX
            && let Some(oldest) = self.forgotten_order.pop_front()
        {
            self.forgotten.remove(&oldest);
        }
    }

    /// The bytes that came from a stranger that was forgotten of late, and went to it.
    pub(super) fn forgotten(&self, address: SocketAddr) -> Option<(u64, u64)> {
        self.forgotten.get(&address).copied()
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
