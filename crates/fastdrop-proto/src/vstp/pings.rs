//! What PINGs show of the way to an address.

use super::transport::UdpPath;
use crate::rtt::Rtt;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The last PINGs, and which of them were answered.
#[derive(Debug, Default)]
pub(super) struct Pings {
    last: VecDeque<Ping>,
    rtt: Option<Rtt>,
}

#[derive(Debug)]
struct Ping {
    token: u64,
    sent_at: Instant,
    answered: bool,
}

impl Pings {
    const LAST: usize = 20;
    /// An answer that takes longer counts as none.
    const ANSWER_MAX: Duration = Duration::from_secs(1);

    pub(super) fn on_sent(&mut self, now: Instant, token: u64) {
        if self.last.len() >= Self::LAST {
            self.last.pop_front();
        }
        self.last.push_back(Ping { token, sent_at: now, answered: false });
    }

    /// Whether this PONG answers one of them.
    pub(super) fn handle_pong(&mut self, now: Instant, payload: &[u8]) -> bool {
        let ping = self.last.iter_mut().find(|ping| payload == ping.token.to_be_bytes() && !ping.answered);
        let Some(ping) = ping else { return false };
        ping.answered = true;
        let rtt = self.rtt.get_or_insert_with(|| Rtt::new(Duration::ZERO, Self::ANSWER_MAX));
        rtt.on_measured(now.saturating_duration_since(ping.sent_at));
        true
    }

    /// One that may still be answered says nothing yet.
    pub(super) fn path(&self, now: Instant) -> UdpPath {
        let patience =
            self.rtt.as_ref().map_or(Self::ANSWER_MAX, Rtt::timeout).max(Duration::from_millis(50));
        let decided = self.last.iter().filter(|ping| ping.answered || now > ping.sent_at + patience);
        let (mut pings, mut pongs) = (0, 0);
        for ping in decided {
            pings += 1;
            pongs += u32::from(ping.answered);
        }
        UdpPath { pings, pongs, rtt: self.rtt.as_ref().and_then(Rtt::smoothed) }
    }
}
