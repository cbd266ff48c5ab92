//! One address of an endpoint, and the proof that somebody is there (section 7).

use super::challenge::write_challenge;
use super::failure::{Failure, Unreachable};
use super::ids::SendId;
use super::pings::Pings;
use super::plain::PlainFrame;
use super::random::Random;
use super::receiving::Receiving;
use super::sending::Sending;
use super::standing::Standing;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// The proof that an address may be sent more than it asked for (section 7).
#[derive(Debug)]
pub(super) enum Proof {
    /// It is ours to speak first, or it has returned something that could not be guessed.
    Proved,
    /// It spoke first. Bytes that came from it and went to it, and when it may be challenged again.
    Unproved { came: u64, went: u64, challenge_at: Option<Instant> },
}

impl Proof {
    /// Nothing is proved of an address from which and to which so many bytes went.
    pub(super) fn unproved(came: u64, went: u64) -> Self {
        Self::Unproved { came, went, challenge_at: None }
    }
}

/// An address.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) standing: Standing,
    /// Its place among those of its standing.
    pub(super) ordered_at: Instant,
    pub(super) proof: Proof,
    /// It answers challenges, and has asked for what is kept for those who do.
    wants_challenge: bool,
    pub(super) sending: Sending,
    pub(super) receiving: Receiving,
    /// Since when a stranger has had unfinished messages.
    pub(super) reassembling_since: Option<Instant>,
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
    /// A challenge is repeated after this long, if the address says more.
    const CHALLENGE_INTERVAL: Duration = Duration::from_millis(250);
    /// A stranger whose frame waits for its acknowledgement is forgotten later by so much.
    const ACKNOWLEDGED_IN: Duration = Duration::from_secs(2);
    /// The time that an address which has been heard may refuse everything, as while its program is
    /// started again.
    const RESTART_MAX: Duration = Duration::from_secs(1);

    /// An address that is heard, or sent to, for the first time.
    pub(super) fn new(now: Instant, standing: Standing, proof: Proof, sending: Sending) -> Self {
        Self {
            standing,
            ordered_at: now,
            proof,
            wants_challenge: false,
            sending,
            receiving: Receiving::default(),
            reassembling_since: None,
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

    /// Bytes that came from an address that has proved nothing, and went to it.
    pub(super) fn unproved(&self) -> Option<(u64, u64)> {
        match self.proof {
            Proof::Proved => None,
            Proof::Unproved { came, went, .. } => Some((came, went)),
        }
    }

    /// Returns true if it may be sent more than it asked for.
    pub(super) fn is_proved(&self) -> bool {
        matches!(self.proof, Proof::Proved)
    }

    /// The address has proved itself.
    pub(super) fn on_proved(&mut self) {
        self.proof = Proof::Proved;
        self.wants_challenge = false;
    }

    /// It is to be challenged, although nothing waits for its proof.
    pub(super) fn challenge(&mut self) {
        self.wants_challenge = matches!(self.proof, Proof::Unproved { .. });
    }

    /// Its place among those that may be forgotten.
    pub(super) fn rank(&self) -> Instant {
        let waits = self.standing != Standing::Known && !self.receiving.seen.is_settled();
        if waits { self.heard_at + Self::ACKNOWLEDGED_IN } else { self.heard_at }
    }

    /// Returns true if nothing is lost with it: it has never said anything, or nothing of late.
    pub(super) fn is_expendable(&self, now: Instant, live: Duration) -> bool {
        let silent = now.saturating_duration_since(self.heard_at) >= live;
        self.is_idle() && (!self.has_spoken || silent)
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
    pub(super) fn push_plain(
        &mut self,
        now: Instant,
        send: SendId,
        frame: PlainFrame,
    ) -> Result<bool, Failure> {
        match self.proof {
            Proof::Proved => self.sending.push_plain(send, frame),
            Proof::Unproved { .. } => self.push_small(now, frame.bytes).map(|()| true),
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
    pub(super) fn poll_timeout(&self, now: Instant, age_max: Duration) -> Option<Instant> {
        let small = self.small.front().map(|(until, _)| *until);
        let challenge = match self.proof {
            // One that could not leave for want of budget waits for the address to say more.
            Proof::Unproved { challenge_at: Some(at), .. } if at > now => {
                (small.is_some() || self.sending.unsent_bytes() > 0).then_some(at)
            }
            _ => None,
        };
        let parts = [self.sending.poll_timeout(now), self.receiving.poll_timeout(age_max), small, challenge];
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
    /// `free` are bytes that its messages may take beside what they have reserved, and `token` its
    /// challenge.
    pub(super) fn poll_transmit(
        &mut self,
        now: Instant,
        segments: usize,
        free: usize,
        token: u64,
        random: &mut Random,
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        let budget = self.budget();
        if self.wants_challenge {
            self.wants_challenge = false;
            if let Some(len) = self.poll_challenge(now, budget, token, out) {
                return Some(len);
            }
        }
        if let Some(answer) = self.receiving.poll_answer(now, free)
            && answer.len() as u64 <= budget
        {
            *out = answer;
            return Some(out.len());
        }
        if let Some((_, bytes)) = self.small.front() {
            if bytes.len() as u64 > budget {
                return self.poll_challenge(now, budget, token, out);
            }
            *out = self.small.pop_front()?.1;
            return Some(out.len());
        }
        if let Some(datagram) = self.sending.poll_transmit(now, budget, segments, random, out) {
            return Some(datagram);
        }
        // Applications of version 0.2 see the question, so it is not asked for nothing.
        let waits = budget < self.sending.unsent_bytes();
        if waits { self.poll_challenge(now, budget, token, out) } else { None }
    }

    /// Asks the address to prove itself, now and then.
    fn poll_challenge(&mut self, now: Instant, budget: u64, token: u64, out: &mut Vec<u8>) -> Option<usize> {
        let Proof::Unproved { challenge_at, .. } = &mut self.proof else { return None };
        if challenge_at.is_some_and(|at| at > now) {
            return None;
        }
        write_challenge(token, out).ok()?;
        if out.len() as u64 > budget {
            out.clear();
            return None;
        }
        *challenge_at = Some(now + Self::CHALLENGE_INTERVAL);
        Some(out.len())
    }
}
