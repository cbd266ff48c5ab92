//! The counts that a session adds to those of its server or client.

use crate::metrics::{Count, Metrics};
use fastdrop_proto::cnp::{Counters, Ending, Session};

/// Counts of one session, as they were added last.
#[derive(Debug)]
pub(super) struct Tally {
    metrics: Metrics,
    added: Counters,
    traffic: Traffic,
    has_joined: bool,
    has_ended: bool,
}

/// Bytes that came and left.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Traffic {
    pub(super) received: u64,
    pub(super) sent: u64,
}

impl Tally {
    pub(super) fn new(metrics: Metrics) -> Self {
        let (added, traffic) = (Counters::default(), Traffic::default());
        Self { metrics, added, traffic, has_joined: false, has_ended: false }
    }

    /// Adds what the session and its link have counted since.
    pub(super) fn update(
        &mut self,
        session: &Session,
        opened: bool,
        ended: Option<&Ending>,
        traffic: Traffic,
    ) {
        let (now, before) = (session.counters(), self.added);
        for (count, now, before) in [
            (Count::PacketsSent, now.packets_sent, before.packets_sent),
            (Count::PacketsReceived, now.packets_received, before.packets_received),
            (Count::Retransmissions, now.retransmissions, before.retransmissions),
            (Count::Duplicates, now.duplicates, before.duplicates),
            (Count::Malformed, now.checksum_failures, before.checksum_failures),
            (Count::MessagesSent, now.messages_acknowledged, before.messages_acknowledged),
            (Count::MessagesReceived, now.messages_received, before.messages_received),
            (Count::BytesReceived, traffic.received, self.traffic.received),
            (Count::BytesSent, traffic.sent, self.traffic.sent),
        ] {
            self.metrics.add(count, now.saturating_sub(before));
        }
        (self.added, self.traffic) = (now, traffic);
        if opened && !self.has_joined {
            self.has_joined = true;
            self.metrics.on(Count::Joined);
        }
        if let Some(ending) = ended
            && !self.has_ended
        {
            self.has_ended = true;
            if matches!(ending, Ending::Gone) {
                self.metrics.on(Count::TimedOut);
            }
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        if self.has_joined {
            self.metrics.on(Count::Gone);
        }
    }
}
