//! Small frames with REQ_ACK: their numbers, and when they leave again (docs/protocol/vstp.md,
//! section 6).

use super::failure::Failure;
use super::frame::FrameBytes;
use super::ids::{MSG_ID, MSG_ID_DIGITS, SendId, new_stream};
use super::random::Random;
use super::streams::SPAN;
use crate::rtt::Rtt;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// Bytes that the number of a frame adds to it: the lengths of key and value, the key, the digits.
pub(super) const MSG_ID_HEADER_BYTES: usize = 2 + MSG_ID.len() + MSG_ID_DIGITS;

/// A frame that is to be acknowledged and has no number yet.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) send: SendId,
    pub(super) frame: FrameBytes,
    /// Bytes of the largest datagram that it may leave in uncut.
    pub(super) datagram: usize,
}

/// A frame that has its number and does not fit a datagram.
#[derive(Debug)]
pub(super) struct Large {
    pub(super) send: SendId,
    pub(super) frame: FrameBytes,
    pub(super) msg_id: u64,
}

/// A small frame that waits for its ACK.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) send: SendId,
    bytes: Bytes,
    pub(super) attempts: u32,
    /// Attempts in a row in whose time nothing was heard of the peer.
    silences: u32,
    pub(super) sent_at: Instant,
    again_at: Instant,
    give_up_at: Instant,
}

impl Waiting {
    /// When something is to be done about it.
    fn due_at(&self) -> Instant {
        self.again_at.min(self.give_up_at)
    }
}

/// The frames to one address that are to be acknowledged.
#[derive(Debug)]
pub(super) struct Unacknowledged {
    /// A frame fails after this long without an acknowledgement.
    give_up: Duration,
    /// The last number of a frame.
    msg_id: u64,
    /// Random bits of the next stream of numbers.
    next_stream: u32,
    /// Frames for which there is no number yet.
    held: VecDeque<Held>,
    waiting: BTreeMap<u64, Waiting>,
    /// When something is to be done about which of these.
    due: BTreeSet<(Instant, u64)>,
    /// Those that are to leave.
    resend: VecDeque<u64>,
    /// When anything was last acknowledged.
    acknowledged_at: Option<Instant>,
}

impl Unacknowledged {
    /// Small frames that are under way at once; others wait.
    const WAITING_MAX: usize = 4096;

    pub(super) fn new(give_up: Duration, random: &mut Random) -> Self {
        Self {
            give_up,
            msg_id: new_stream(random.next_u64() as u32),
            next_stream: random.next_u64() as u32,
            held: VecDeque::new(),
            waiting: BTreeMap::new(),
            due: BTreeSet::new(),
            resend: VecDeque::new(),
            acknowledged_at: None,
        }
    }

    /// Returns true if nothing waits for a number or an acknowledgement.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.held.is_empty()
    }

    /// Bytes that wait for their turn to leave.
    pub(super) fn unsent_bytes(&self) -> u64 {
        let resend = self.resend.iter().filter_map(|id| self.waiting.get(id));
        resend.map(|waiting| waiting.bytes.len() as u64).sum()
    }

    /// Takes a frame, which is numbered when there is a number for it.
    pub(super) fn hold(&mut self, held: Held) {
        self.held.push_back(held);
    }

    /// Gives numbers to what is held, as far as the peer can remember them, where `large` is the
    /// lowest one of a message in fragments. Returns a frame that has to be cut, or could not be
    /// written; None when all that can have a number has one.
    pub(super) fn admit(
        &mut self,
        now: Instant,
        large: Option<u64>,
    ) -> Option<Result<Large, (SendId, Failure)>> {
        while self.waiting.len() < Self::WAITING_MAX && self.has_number(large) {
            let Held { send, frame, datagram } = self.held.pop_front()?;
            match self.number(now, send, frame, datagram) {
                Ok(None) => {}
                Ok(Some(large)) => return Some(Ok(large)),
                Err(failure) => return Some(Err((send, failure))),
            }
        }
        None
    }

    /// Returns true if the next number is not too far above the oldest that waits.
    fn has_number(&self, large: Option<u64>) -> bool {
        let waiting = self.waiting.first_key_value().map(|(id, _)| *id);
        let oldest = waiting.into_iter().chain(large).min();
        // A new stream begins when nothing of the one before waits.
        let is_last = self.msg_id as u32 == u32::MAX;
        oldest.is_none_or(|oldest| !is_last && self.msg_id + 1 - oldest < u64::from(SPAN))
    }

    fn number(
        &mut self,
        now: Instant,
        send: SendId,
        frame: FrameBytes,
        datagram: usize,
    ) -> Result<Option<Large>, Failure> {
        if self.msg_id as u32 == u32::MAX {
            self.msg_id = new_stream(self.next_stream ^ (self.msg_id >> u32::BITS) as u32);
        }
        self.msg_id += 1;
        let msg_id = self.msg_id;
        let frame = frame.with_header(MSG_ID.as_bytes(), format!("0{msg_id}").as_bytes())?;
        let frame = frame.with_flag(super::Flags::REQ_ACK);
        if frame.as_ref().encoded_len() > datagram {
            return Ok(Some(Large { send, frame, msg_id }));
        }
        let mut bytes = Vec::new();
        frame.as_ref().encode(&mut bytes)?;
        let give_up_at = now + self.give_up;
        let again_at = give_up_at;
        let bytes = bytes.into();
        let waiting = Waiting { send, bytes, attempts: 0, silences: 0, sent_at: now, again_at, give_up_at };
        self.due.insert((waiting.due_at(), msg_id));
        self.waiting.insert(msg_id, waiting);
        self.resend.push_back(msg_id);
        Ok(None)
    }

    /// Takes what was acknowledged.
    pub(super) fn take_acknowledged(&mut self, now: Instant, msg_id: u64) -> Option<Waiting> {
        let waiting = self.take(msg_id)?;
        self.acknowledged_at = Some(now);
        Some(waiting)
    }

    /// Takes what waits for the acknowledgement of this number.
    pub(super) fn take(&mut self, msg_id: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&msg_id)?;
        self.due.remove(&(waiting.due_at(), msg_id));
        Some(waiting)
    }

    /// Sets when what waits for the acknowledgement of this number is to leave again.
    fn set_again_at(&mut self, msg_id: u64, again_at: Option<Instant>) {
        let Some(waiting) = self.waiting.get_mut(&msg_id) else { return };
        self.due.remove(&(waiting.due_at(), msg_id));
        waiting.again_at = again_at.unwrap_or(waiting.give_up_at);
        self.due.insert((waiting.due_at(), msg_id));
    }

    /// Lets leave again what nobody has acknowledged, and gives what has failed.
    pub(super) fn poll_failed(&mut self, now: Instant) -> Option<SendId> {
        while let Some(&(_, msg_id)) = self.due.first().filter(|(at, _)| *at <= now) {
            if self.waiting.get(&msg_id).is_some_and(|waiting| waiting.give_up_at <= now) {
                return self.take(msg_id).map(|waiting| waiting.send);
            }
            // Nothing is to be done until it has left again.
            self.set_again_at(msg_id, None);
            self.resend.push_back(msg_id);
        }
        None
    }

    /// Gives what is held, where nothing was acknowledged for as long as a frame waits: nobody is
    /// there.
    pub(super) fn poll_abandoned(&mut self, now: Instant) -> Option<SendId> {
        let since = self.acknowledged_at.map(|at| now.saturating_duration_since(at));
        let is_silent = since.is_none_or(|since| since >= self.give_up);
        if is_silent { self.held.pop_front().map(|held| held.send) } else { None }
    }

    /// Takes any frame, numbered or not.
    pub(super) fn poll_any(&mut self) -> Option<SendId> {
        match self.waiting.first_key_value().map(|(msg_id, _)| *msg_id) {
            Some(msg_id) => self.take(msg_id).map(|waiting| waiting.send),
            None => self.held.pop_front().map(|held| held.send),
        }
    }

    /// When [`Self::poll_failed`] has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Writes the frame that leaves next, if one may that has at most `budget` bytes.
    pub(super) fn poll_transmit(
        &mut self,
        now: Instant,
        budget: u64,
        rtt: &Rtt,
        random: &mut Random,
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        loop {
            let id = *self.resend.front()?;
            let Some(waiting) = self.waiting.get_mut(&id) else {
                self.resend.pop_front();
                continue;
            };
            if waiting.bytes.len() as u64 > budget {
                return None;
            }
            self.resend.pop_front();
            // Where others were acknowledged meanwhile, this one was lost by chance, and there is
            // nothing to back off from.
            let alive = self.acknowledged_at.is_some_and(|at| at > waiting.sent_at);
            waiting.silences = if waiting.attempts == 0 || alive { 0 } else { waiting.silences + 1 };
            let timeout = rtt.timeout_after(waiting.silences);
            waiting.attempts += 1;
            waiting.sent_at = now;
            let again_at = now + timeout + random.below(timeout / 10);
            out.extend_from_slice(&waiting.bytes);
            let len = waiting.bytes.len();
            self.set_again_at(id, Some(again_at));
            return Some(len);
        }
    }
}
