//! One address of an endpoint, and the proof that somebody is there (section 7).

use super::failure::{Failure, Unreachable};
use super::frame::{Flags, FrameError, FrameRef, FrameType, HeadersBuf};
use super::ids::SendId;
use super::pings::Pings;
use super::random::Random;
use super::receiving::{ReassemblyLimits, Receiving};
use super::sending::Sending;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// The header of a PING that asks an address to prove itself.
pub(super) const CHALLENGE: &str = "challenge";

/// The proof that an address may be sent more than it asked for (section 7).
#[derive(Debug)]
pub(super) enum Proof {
    /// It is ours to speak first, or it has returned something that could not be guessed.
    Proved,
    /// It spoke first. Bytes that came from it and went to it, and the challenge that is under way.
    Unproved { came: u64, went: u64, challenge: Option<(u64, Instant)> },
}

/// An address.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) proof: Proof,
    pub(super) sending: Sending,
    pub(super) receiving: Receiving,
    pub(super) pings: Pings,
    /// Frames that leave as they are, and until when they may wait for a proof.
    small: VecDeque<(Instant, Vec<u8>)>,
    pub(super) heard_at: Instant,
    /// The local address that it asked last, where there are several.
    pub(super) local: Option<IpAddr>,
    /// It has said something.
    has_spoken: bool,
    /// The first time that nothing reached it since it was last heard, and the reason.
    unreachable: Option<(Instant, Unreachable)>,
    pub(super) timer: Option<Instant>,
    /// It is in the queue of those that may have something to send.
    pub(super) ready: bool,
}

impl Peer {
    /// An unproved address may be answered with so many times the bytes that it sent (case 70).
    const AMPLIFICATION_MAX: u64 = 3;
    /// The time after which a message that waits for a proof is dropped.
    const PROOF_WAIT: Duration = Duration::from_secs(1);
    const SMALL_MAX: usize = 1024;
    /// The time that an address which has been heard may refuse everything, as while its program is
    /// started again.
    const RESTART_MAX: Duration = Duration::from_secs(1);

    /// An address that is heard, or sent to, for the first time.
    pub(super) fn new(now: Instant, proof: Proof, sending: Sending) -> Self {
        Self {
            proof,
            sending,
            receiving: Receiving::default(),
            pings: Pings::default(),
            small: VecDeque::new(),
            heard_at: now,
            local: None,
            has_spoken: false,
            unreachable: None,
            timer: None,
            ready: false,
        }
    }

    /// A datagram came.
    pub(super) fn on_heard(&mut self, now: Instant) {
        self.heard_at = now;
        self.has_spoken = true;
        self.unreachable = None;
    }

    /// Takes the operating system's word that nothing reaches the address; true if it is to be
    /// believed.
    pub(super) fn is_gone(&mut self, now: Instant, reason: Unreachable) -> bool {
        let (since, _) = *self.unreachable.get_or_insert((now, reason));
        // A machine that has no route for a while, as between two networks, gets it again.
        let is_over = now.saturating_duration_since(since) >= Self::RESTART_MAX;
        !self.has_spoken || (reason == Unreachable::Refused && is_over)
    }

    /// The reason for which nothing has reached the address since it was last heard.
    pub(super) fn unreachable(&self) -> Option<Unreachable> {
        self.unreachable.map(|(_, reason)| reason)
    }

    /// Returns true if nothing is under way in either direction.
    pub(super) fn is_idle(&self) -> bool {
        self.has_sent_all() && self.receiving.is_idle()
    }

    /// Returns true if everything that was to be sent has had its outcome.
    pub(super) fn has_sent_all(&self) -> bool {
        self.sending.is_idle() && self.small.is_empty()
    }

    /// Takes a frame that leaves as it is; an error if too many wait.
    pub(super) fn push_small(&mut self, now: Instant, bytes: Vec<u8>) -> Result<(), Failure> {
        if self.small.len() >= Self::SMALL_MAX {
            return Err(Failure::Busy);
        }
        self.small.push_back((now + Self::PROOF_WAIT, bytes));
        Ok(())
    }

    /// Takes a frame of the application that wants no acknowledgement. Returns true if its sender
    /// need not wait until it has left: always where that waits for a proof, as others than the
    /// address may have to.
    pub(super) fn push_plain(&mut self, now: Instant, send: SendId, bytes: Vec<u8>) -> Result<bool, Failure> {
        match self.proof {
            Proof::Proved => self.sending.push_plain(send, bytes),
            Proof::Unproved { .. } => self.push_small(now, bytes).map(|()| true),
        }
    }

    /// Drops the frames that have waited for a proof for too long, and counts them.
    pub(super) fn drop_withheld(&mut self, now: Instant) -> u64 {
        let before = self.small.len();
        while self.small.front().is_some_and(|(until, _)| *until <= now) {
            self.small.pop_front();
        }
        (before - self.small.len()) as u64
    }

    /// The time at which something is due; None if nothing is.
    pub(super) fn poll_timeout(&self, now: Instant, limits: &ReassemblyLimits) -> Option<Instant> {
        let small = self.small.front().map(|(until, _)| *until);
        let challenge = match self.proof {
            // One that could not leave for want of budget waits for the address to say more.
            Proof::Unproved { challenge: Some((_, again_at)), .. } if small.is_some() && again_at > now => {
                Some(again_at)
            }
            _ => None,
        };
        let parts = [self.sending.poll_timeout(now), self.receiving.poll_timeout(limits), small, challenge];
        parts.into_iter().flatten().min()
    }

    /// Bytes that may go to the address now.
    fn budget(&self) -> u64 {
        match self.proof {
            Proof::Proved => u64::MAX,
            Proof::Unproved { came, went, .. } => {
                came.saturating_mul(Self::AMPLIFICATION_MAX).saturating_sub(went)
            }
        }
    }

    /// Datagrams for the address, written to `out`: as many of one size as follow each other.
    pub(super) fn poll_transmit(
        &mut self,
        now: Instant,
        segments: usize,
        others: usize,
        limits: &ReassemblyLimits,
        random: &mut Random,
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        let budget = self.budget();
        if let Some(answer) = self.receiving.poll_answer(now, others, limits)
            && answer.len() as u64 <= budget
        {
            *out = answer;
            return Some(out.len());
        }
        if let Some((_, bytes)) = self.small.front() {
            if bytes.len() as u64 > budget {
                return self.poll_challenge(now, budget, random, out);
            }
            *out = self.small.pop_front()?.1;
            return Some(out.len());
        }
        if let Some(datagram) = self.sending.poll_transmit(now, budget, segments, random, out) {
            return Some(datagram);
        }
        // Applications of version 0.2 see the question, so it is not asked for nothing.
        let waits = budget < self.sending.unsent_bytes();
        if waits { self.poll_challenge(now, budget, random, out) } else { None }
    }

    /// Asks the address to prove itself, now and then.
    fn poll_challenge(
        &mut self,
        now: Instant,
        budget: u64,
        random: &mut Random,
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        let Proof::Unproved { challenge, .. } = &mut self.proof else { return None };
        if challenge.is_some_and(|(_, again_at)| again_at > now) {
            return None;
        }
        let token = challenge.map_or_else(|| random.next_u64(), |(token, _)| token);
        write_challenge(token, out).ok()?;
        if out.len() as u64 > budget {
            out.clear();
            return None;
        }
        *challenge = Some((token, now + Duration::from_millis(250)));
        Some(out.len())
    }
}

/// A PING that only whoever receives it can answer.
pub(super) fn write_challenge(token: u64, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let headers = HeadersBuf::default().with(CHALLENGE, 1);
    let payload = token.to_be_bytes();
    let flags = Flags::empty();
    FrameRef { typ: FrameType::Ping, flags, headers: headers.as_headers(), payload: &payload }.encode(out)
}
