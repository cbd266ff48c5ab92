//! Frames that came on channels (docs/protocol/vstp.md, section 10).

use super::Endpoint;
use crate::vstp::frame::{FrameBytes, FrameType};
use crate::vstp::inbox::Amount;
use crate::vstp::lineage::split;
use crate::vstp::standing::Standing;
use std::net::SocketAddr;

impl Endpoint {
    /// Channels of one kind that are remembered of an address, and of a stranger.
    const CHANNELS_MAX: usize = 64;
    const STRANGER_CHANNELS_MAX: usize = 8;

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
        if waits_newer || !peer.receiving.newest.is_newer(channel, number) {
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
        peer.receiving.newest.on_handed(channel, number, Self::channels_max(peer.standing));
        self.note_arrival(from, frame.typ);
        if self.inbox.push_state(from, is_stranger, frame, (channel, number)) {
            self.counters.superseded += 1;
        }
    }

    /// Notes that a frame has begun to wait for the application.
    pub(super) fn note_arrival(&mut self, from: SocketAddr, typ: FrameType) {
        if self.arrivals.len() < Self::ARRIVALS_MAX {
            self.arrivals.push_back((from, typ));
        }
    }
}
