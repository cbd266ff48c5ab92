//! Peers that come and go, where there are no connections to tell of it.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// A peer has come or gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerEvent {
    /// A frame came from an address that was not there. (Whoever sends datagrams can make an
    /// address up.)
    Joined(SocketAddr),
    /// An address is not there any more. If it sends something again, it joins again.
    Gone(SocketAddr, Departure),
    /// So many events were not told, because nobody took those before them.
    Missed(u64),
}

/// The reason for which a peer counts as gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Departure {
    /// It said BYE.
    Bye,
    /// Nothing came from it for the time that was set.
    Silent,
    /// Something that it should have acknowledged did not arrive, or the system says that nobody
    /// is there.
    Unreachable,
    /// More addresses came than are remembered, and this one has been silent for longest.
    Displaced,
}

/// The peers of an endpoint that come and go. At most [`Self::WAITING_MAX`] events wait to be
/// taken, and [`Self::PEERS_MAX`] peers are known.
#[derive(Debug)]
pub struct PeerEvents {
    events: mpsc::Receiver<PeerEvent>,
    /// The mark by which this and its taker's peers know each other.
    id: u64,
}

/// Says that a peer is there, until it is gone.
#[derive(Debug, Clone)]
pub(super) struct Present(Option<watch::Receiver<()>>);

impl Present {
    pub(super) fn is_over(&self) -> bool {
        self.0.as_ref().is_none_or(|there| there.has_changed().is_err())
    }

    /// Waits until the peer is gone.
    pub(super) async fn over(&self) {
        if let Some(mut there) = self.0.clone() {
            // Nothing is ever sent.
            while there.changed().await.is_ok() {}
        }
    }
}

impl PeerEvents {
    /// Events that wait; more are counted, and that is told.
    pub const WAITING_MAX: usize = 1024;
    /// Peers that are known at once.
    pub const PEERS_MAX: usize = 16_384;

    /// The next event; None when the endpoint is gone. May be dropped while it waits, and nothing
    /// is lost.
    pub async fn next(&mut self) -> Option<PeerEvent> {
        self.events.recv().await
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }
}

/// A peer that is there.
#[derive(Debug)]
struct Known {
    heard_at: Instant,
    /// Dropped when it is gone, if somebody wants to know.
    there: Option<watch::Sender<()>>,
}

/// The peers that one taker of events has been told of.
#[derive(Debug)]
pub(super) struct Presence {
    id: u64,
    silent_after: Duration,
    peers_max: usize,
    known: HashMap<SocketAddr, Known>,
    order: BTreeSet<(Instant, SocketAddr)>,
    tell: mpsc::Sender<PeerEvent>,
    missed: u64,
}

impl Presence {
    /// The time in which another word of a peer says nothing new.
    const PRECISION: Duration = Duration::from_millis(100);

    /// One with an id that no other one of its endpoint has.
    pub(super) fn new(id: u64, silent_after: Duration) -> (Self, PeerEvents) {
        let (tell, events) = mpsc::channel(PeerEvents::WAITING_MAX);
        let presence = Self {
            id,
            silent_after,
            peers_max: PeerEvents::PEERS_MAX,
            known: HashMap::new(),
            order: BTreeSet::new(),
            tell,
            missed: 0,
        };
        (presence, PeerEvents { events, id })
    }

    /// Returns true if nobody takes the events any more.
    pub(super) fn is_over(&self) -> bool {
        self.tell.is_closed()
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// The word of how long a peer is there.
    pub(super) fn present(&mut self, peer: SocketAddr) -> Present {
        let known = self.known.get_mut(&peer);
        Present(known.map(|known| known.there.get_or_insert_with(|| watch::Sender::new(())).subscribe()))
    }

    /// A frame for the application came.
    pub(super) fn on_frame(&mut self, now: Instant, peer: SocketAddr, is_bye: bool) {
        if is_bye {
            return self.on_gone(peer, Departure::Bye);
        }
        if self.known.contains_key(&peer) {
            return self.on_heard(now, peer);
        }
        if self.known.len() >= self.peers_max
            && let Some((_, oldest)) = self.order.first().copied()
        {
            self.on_gone(oldest, Departure::Displaced);
        }
        self.known.insert(peer, Known { heard_at: now, there: None });
        self.order.insert((now, peer));
        self.tell(PeerEvent::Joined(peer));
    }

    /// Something came, which is a sign of life of a peer that is there.
    pub(super) fn on_heard(&mut self, now: Instant, peer: SocketAddr) {
        let Some(known) = self.known.get_mut(&peer) else { return };
        if now < known.heard_at + Self::PRECISION {
            return;
        }
        self.order.remove(&(known.heard_at, peer));
        known.heard_at = now;
        self.order.insert((now, peer));
    }

    /// A peer is not there any more.
    pub(super) fn on_gone(&mut self, peer: SocketAddr, reason: Departure) {
        if let Some(known) = self.known.remove(&peer) {
            self.order.remove(&(known.heard_at, peer));
            self.tell(PeerEvent::Gone(peer, reason));
        }
    }

    /// Tells of those who have been silent for too long.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        while self.poll_timeout().is_some_and(|at| now >= at)
            && let Some((_, peer)) = self.order.first().copied()
        {
            self.on_gone(peer, Departure::Silent);
        }
    }

    /// The time at which [`Self::handle_timeout`] has something to do; never, for a time that no
    /// clock reaches.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.order.first().and_then(|(at, _)| at.checked_add(self.silent_after))
    }

    fn tell(&mut self, event: PeerEvent) {
        // One that cannot be told now is counted, and so is what follows until there is room.
        if self.missed > 0 && self.tell.try_send(PeerEvent::Missed(self.missed)).is_ok() {
            self.missed = 0;
        }
        if self.missed > 0 || self.tell.try_send(event).is_err() {
            self.missed += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENT: Duration = Duration::from_secs(10);

    fn peer(n: usize) -> SocketAddr {
        let [.., high, low] = n.to_be_bytes();
        SocketAddr::from(([192, 0, high, low], 9))
    }

    fn drain(events: &mut PeerEvents) -> Vec<PeerEvent> {
        std::iter::from_fn(|| events.events.try_recv().ok()).collect()
    }

    #[test]
    fn a_peer_joins_with_its_first_frame_and_goes_for_a_reason() {
        use PeerEvent::{Gone, Joined};
        let (mut presence, mut events) = Presence::new(0, SILENT);
        let now = Instant::now();
        presence.on_heard(now, peer(1));
        presence.on_gone(peer(1), Departure::Unreachable);
        presence.on_frame(now, peer(1), true);
        assert_eq!((drain(&mut events), presence.poll_timeout()), (vec![], None), "it was never there");
        presence.on_frame(now, peer(1), false);
        presence.on_frame(now, peer(2), false);
        presence.on_frame(now, peer(3), false);
        presence.on_frame(now, peer(1), true);
        presence.on_gone(peer(2), Departure::Unreachable);
        let expected = [
            Joined(peer(1)),
            Joined(peer(2)),
            Joined(peer(3)),
            Gone(peer(1), Departure::Bye),
            Gone(peer(2), Departure::Unreachable),
        ];
        assert_eq!(drain(&mut events), expected);
        // Any word puts silence off.
        presence.on_heard(now + SILENT / 2, peer(3));
        presence.handle_timeout(now + SILENT);
        assert_eq!(drain(&mut events), []);
        let at = presence.poll_timeout().unwrap();
        assert_eq!(at, now + SILENT / 2 + SILENT);
        presence.handle_timeout(at);
        presence.on_frame(at, peer(3), false);
        assert_eq!(drain(&mut events), [Gone(peer(3), Departure::Silent), Joined(peer(3))]);
    }

    #[test]
    fn peers_and_events_are_bounded_and_what_was_missed_is_told() {
        let (mut presence, mut events) = Presence::new(0, SILENT);
        presence.peers_max = 3;
        let now = Instant::now();
        let total = 2 * PeerEvents::WAITING_MAX;
        for n in 0..total {
            presence.on_frame(now + Duration::from_millis(n as u64), peer(n), false);
            assert!(presence.known.len() <= 3 && presence.known.len() == presence.order.len());
        }
        let told = drain(&mut events);
        assert_eq!(told.len(), PeerEvents::WAITING_MAX);
        assert_eq!(told[3], PeerEvent::Gone(peer(0), Departure::Displaced));
        let missed = (2 * total - 3 - PeerEvents::WAITING_MAX) as u64;
        presence.on_gone(peer(total - 1), Departure::Bye);
        let expected = [PeerEvent::Missed(missed), PeerEvent::Gone(peer(total - 1), Departure::Bye)];
        assert_eq!(drain(&mut events), expected);
        drop(events);
        assert!(presence.is_over());
    }

    #[test]
    fn a_peer_is_present_until_it_is_gone_however_few_events_are_taken() {
        let (mut presence, events) = Presence::new(0, SILENT);
        let now = Instant::now();
        assert!(presence.present(peer(0)).is_over(), "it was never there");
        for n in 0..2 * PeerEvents::WAITING_MAX {
            presence.on_frame(now, peer(n), false);
        }
        let (one, two) = (presence.present(peer(1)), presence.present(peer(2)));
        let same = presence.present(peer(1));
        assert!(!one.is_over() && !two.is_over() && !same.is_over());
        presence.on_frame(now, peer(1), true);
        assert!(one.is_over() && same.is_over() && !two.is_over());
        // It has come again, which those who knew it before are not told.
        presence.on_frame(now, peer(1), false);
        assert!(one.is_over() && !presence.present(peer(1)).is_over());
        drop((events, presence));
        assert!(two.is_over());
    }
}
