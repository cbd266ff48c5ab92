//! Frames that came on channels (docs/protocol/vstp.md, section 10).

use super::Endpoint;
use crate::vstp::acknowledgement::Acknowledgement;
use crate::vstp::frame::{FrameBytes, FrameType};
use crate::vstp::ids::split;
use crate::vstp::inbox::Amount;
use crate::vstp::ordered::{Came, Order, Turn};
use crate::vstp::seen::Settled;
use crate::vstp::standing::Standing;
use std::net::SocketAddr;
use std::time::Instant;

impl Endpoint {
    /// Channels of one kind that are remembered of an address, and of a stranger.
    const CHANNELS_MAX: usize = 64;
    const STRANGER_CHANNELS_MAX: usize = 8;

    /// Bounds what is sent with `Priority::Bulk`, to each address, to so many bytes a second of
    /// datagrams, at least 16 KiB; None for no bound, as in the beginning.
    pub fn set_bulk_rate(&mut self, now: Instant, bytes_per_second: Option<u64>) {
        self.bulk_rate = bytes_per_second;
        let mut addresses = Vec::new();
        for (address, peer) in self.peers.iter_mut() {
            peer.sending.set_cap(now, bytes_per_second);
            addresses.push(address);
        }
        addresses.into_iter().for_each(|address| self.wake(address));
    }

    fn channels_max(standing: Standing) -> usize {
        match standing {
            Standing::Known => Self::CHANNELS_MAX,
            Standing::Stranger | Standing::Challenged => Self::STRANGER_CHANNELS_MAX,
        }
    }

    /// Hands a state of a channel on, unless a newer one was handed on; in the place of an older
    /// one that waits to be taken. `reserved`: there is room for it.
    pub(super) fn receive_state(
        &mut self,
        now: Instant,
        from: SocketAddr,
        frame: FrameBytes,
        (channel, number): (u32, u64),
        reserved: bool,
    ) {
        let Some(peer) = self.peers.get_mut(from) else { return };
        let waiting = self.inbox.state(from, channel);
        // What waits there is known even where the address was forgotten meanwhile.
        let waits_newer = waiting.is_some_and(|(waiting, _)| {
            let (stream, count) = split(number);
            split(waiting) >= (stream, count) && split(waiting).0 == stream
        });
        if waits_newer || !peer.receiving.newest.is_newer(now, channel, number) {
            self.counters.superseded += 1;
            return;
        }
        let is_stranger = peer.standing != Standing::Known;
        let (mut all, mut own) = (self.inbox.amount(is_stranger), self.inbox.held(from));
        let freed = waiting.map_or_else(Amount::default, |(_, amount)| amount);
        all.subtract(freed);
        own.subtract(freed);
        let bytes = frame.memory();
        let budget = self.budgets.get(peer.standing);
        if !reserved && bytes > freed.bytes && !budget.admits_frame(all, own, bytes) {
            self.counters.refused += 1;
            return;
        }
        peer.receiving.newest.on_handed(now, channel, number, Self::channels_max(peer.standing));
        self.note_arrival(from, frame.typ);
        if self.inbox.push_state(from, is_stranger, frame, (channel, number)) {
            self.counters.superseded += 1;
        }
    }

    /// Hands a frame of an ordered channel on if its turn has come, with those that waited for it;
    /// else it waits. Returns the acknowledgement that it asks for if it is kept.
    pub(super) fn receive_ordered(
        &mut self,
        now: Instant,
        from: SocketAddr,
        came: Came,
        order: Order,
    ) -> Option<Acknowledgement> {
        let turn = self.turn(now, from, order)?;
        let (bytes, typ, acknowledgement) = (came.frame.memory(), came.frame.typ, came.acknowledgement);
        let is_early = match turn {
            Turn::Now => false,
            Turn::Early => true,
            Turn::Past => {
                self.counters.duplicates += 1;
                return None;
            }
            Turn::Full => {
                self.counters.refused += 1;
                return None;
            }
        };
        while !self.has_room(from, bytes, is_early) {
            // What waits for this one must not keep it out.
            if is_early || !self.give_up_last(now, from, order.channel) {
                self.counters.refused += 1;
                return None;
            }
        }
        let peer = self.peers.get_mut(from)?;
        peer.receiving.seen.receive(now, acknowledgement);
        let is_stranger = peer.standing != Standing::Known;
        if is_early {
            self.inbox.hold(from, is_stranger, &came.frame);
            peer.receiving.ordered.hold(now, order, Some(came));
        } else {
            self.inbox.push(from, is_stranger, came.frame, Some(acknowledgement));
            peer.receiving.ordered.pass(now, order.channel);
            self.note_arrival(from, typ);
            self.settle_turns(now, from);
        }
        Some(acknowledgement)
    }

    /// A frame of an ordered channel is refused: its turn passes.
    pub(super) fn pass_over(&mut self, now: Instant, from: SocketAddr, order: Order) {
        let turn = self.turn(now, from, order);
        let Some(peer) = self.peers.get_mut(from) else { return };
        match turn {
            Some(Turn::Now) => peer.receiving.ordered.pass(now, order.channel),
            Some(Turn::Early) => peer.receiving.ordered.hold(now, order, None),
            _ => {}
        }
        self.settle_turns(now, from);
    }

    /// A frame of an ordered channel that the application has, or that waits, comes again: it may
    /// say of others that they are over, and has had its turn if it does not wait.
    pub(super) fn receive_again(&mut self, now: Instant, from: SocketAddr, order: Order) {
        let Some(peer) = self.peers.get(from) else { return };
        if peer.receiving.ordered.knows(order.channel) && self.turn(now, from, order) == Some(Turn::Now) {
            self.pass_over(now, from, order);
        }
    }

    fn turn(&mut self, now: Instant, from: SocketAddr, order: Order) -> Option<Turn> {
        let peer = self.peers.get_mut(from)?;
        // One that has not proved itself, and begins with more, sends the others again afterwards.
        let places = (Self::channels_max(peer.standing), peer.standing == Standing::Known);
        let turn = peer.receiving.ordered.turn(now, order, places);
        self.settle_turns(now, from);
        Some(turn)
    }

    /// Returns true if a frame may wait for the application, or for its turn: then only as long as
    /// its address has half of what it may have.
    fn has_room(&self, from: SocketAddr, bytes: usize, is_early: bool) -> bool {
        let standing = self.peers.standing(from).unwrap_or(Standing::Stranger);
        let (all, own) = (self.inbox.amount(standing != Standing::Known), self.inbox.held(from));
        let times = if is_early { 2 } else { 1 };
        let own = Amount { count: own.count * times, bytes: own.bytes * times };
        self.budgets.get(standing).admits_frame(all, own, bytes)
    }

    /// Gives up a frame that waits for its turn, which may come again. False if there is none.
    fn give_up_last(&mut self, now: Instant, from: SocketAddr, channel: u32) -> bool {
        let Some(peer) = self.peers.get_mut(from) else { return false };
        let Some(came) = peer.receiving.ordered.give_up_last(channel) else { return false };
        peer.receiving.seen.forget_pending(came.acknowledgement);
        if let Some(number) = came.acknowledgement.unique_number() {
            peer.receiving.arrivals.on_settled(now, number);
        }
        self.handle_taken(now, from, &came.frame);
        true
    }

    /// Hands on what has its turn now, and drops what will never have one.
    pub(super) fn settle_turns(&mut self, now: Instant, from: SocketAddr) {
        while let Some(peer) = self.peers.get_mut(from)
            && let Some(came) = peer.receiving.ordered.poll_dropped()
        {
            self.handle_taken(now, from, &came.frame);
            self.settle(now, from, came.acknowledgement, Settled::Dropped);
        }
        while let Some(peer) = self.peers.get_mut(from)
            && let Some(Came { frame, acknowledgement }) = peer.receiving.ordered.poll_ready()
        {
            self.note_arrival(from, frame.typ);
            self.inbox.push_held(from, frame, Some(acknowledgement));
        }
    }

    /// Notes that a frame has begun to wait for the application.
    pub(super) fn note_arrival(&mut self, from: SocketAddr, typ: FrameType) {
        if self.arrivals.len() < Self::ARRIVALS_MAX {
            self.arrivals.push_back((from, typ));
        }
    }
}
