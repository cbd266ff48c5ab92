//! The datagrams that leave for an address, and when (docs/protocol/vstp.md, section 5).

use super::{Reports, Sending};
use crate::congestion::Leave;
use crate::vstp::batch::Batch;
use crate::vstp::fragment::{CLASSIC_TOTAL_MAX, write_probe};
use crate::vstp::outgoing::Outgoing;
use crate::vstp::plain::Path;
use crate::vstp::priority::Priority;
use crate::vstp::random::Random;
use std::time::Instant;

impl Sending {
    /// Writes the datagrams that leave next, appended to `out`, at most `budget` bytes: the size of
    /// its datagrams, of which only the last may be smaller. None if nothing leaves now.
    pub(in crate::vstp) fn poll_transmit(
        &mut self,
        now: Instant,
        budget: u64,
        segments: usize,
        random: &mut Random,
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        self.admit(now);
        self.pace_at = None;
        self.cap_at = None;
        self.plain.forget_pace();
        let batch = Batch { budget, credit: u64::MAX, segments };
        if let Some(len) = self.poll_mark(now, budget, out) {
            return Some(len);
        }
        if let Some(len) = self.poll_probe_past_cap(now, budget, out) {
            return Some(len);
        }
        let probes = self.probing.left;
        let mut size = None;
        for priority in self.precedence.order() {
            let Some(batch) = self.within_cap(now, priority, batch) else { continue };
            size = self.poll_priority(now, priority, batch, random, out);
            if size.is_some() {
                // Probes say what the path carries, if they leave when they should.
                let charged = if self.probing.left == probes { out.len() } else { 0 };
                self.on_left(priority, charged);
                break;
            }
        }
        self.tell_outcomes();
        size
    }

    /// Returns true if something of this priority waits to leave.
    fn waits(&self, priority: Priority) -> bool {
        let large = || {
            let mut outgoing = self.outgoing.iter();
            outgoing.any(|message| message.priority == priority && message.may_leave())
        };
        self.plain.waits(priority) || self.unacknowledged.waits(priority) || large()
    }

    /// The bounds of what may leave of a priority; None if that is nothing now.
    fn within_cap(&mut self, now: Instant, priority: Priority, batch: Batch) -> Option<Batch> {
        if priority != Priority::Bulk || self.cap.is_none() || !self.waits(priority) {
            return Some(batch);
        }
        let polled = self.cap.as_mut()?.poll(now);
        // What leaves says little of what the path carries.
        let is_capped = std::mem::replace(&mut self.is_capped, polled.is_err()) || polled.is_err();
        if is_capped && !self.waits(Priority::High) && !self.waits(Priority::Normal) {
            self.flow.on_idle();
        }
        match polled {
            // A datagram that is larger than what may leave is made up for later.
            Ok(credit) => Some(Batch { credit, ..batch }),
            Err(at) => {
                self.cap_at = Some(at);
                None
            }
        }
    }

    /// So many bytes of a priority have left.
    fn on_left(&mut self, priority: Priority, bytes: usize) {
        if let Some(cap) = self.cap.as_mut().filter(|_| priority == Priority::Bulk) {
            cap.on_left(bytes);
        }
        let waits = Priority::ALL.map(|priority| self.waits(priority));
        let waits = |priority: Priority| waits.get(priority as usize).copied().unwrap_or_default();
        self.precedence.on_left(priority, bytes, waits);
    }

    /// The datagrams that leave next of one priority.
    fn poll_priority(
        &mut self,
        now: Instant,
        priority: Priority,
        batch: Batch,
        random: &mut Random,
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        // Under a cap, small frames that want no acknowledgement would never let others leave.
        let is_capped = priority == Priority::Bulk && self.cap.is_some();
        let plain_first = !is_capped || self.plain_ahead <= 0;
        for plain in [plain_first, !plain_first] {
            let size = if plain {
                self.poll_plain(now, priority, batch, out)
            } else {
                self.poll_answered(now, priority, batch, random, out)
            };
            if size.is_some() {
                let mut large = self.outgoing.iter();
                let others = large.any(|message| message.priority == priority && message.may_leave());
                let others = others || self.unacknowledged.waits(priority);
                let bytes = out.len() as i64;
                if is_capped {
                    let ahead = if plain { self.plain_ahead + bytes } else { self.plain_ahead - bytes };
                    let both = others && self.plain.waits(priority);
                    self.plain_ahead = if both { ahead.clamp(-Self::AHEAD_MAX, Self::AHEAD_MAX) } else { 0 };
                }
                return size;
            }
        }
        None
    }

    /// The same of what is answered: small frames that are to be acknowledged, and fragments.
    fn poll_answered(
        &mut self,
        now: Instant,
        priority: Priority,
        batch: Batch,
        random: &mut Random,
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        let small_first = *self.small_ahead.get(priority) <= 0;
        for small in [small_first, !small_first] {
            let size = if small {
                self.poll_small(now, priority, batch, random, out)
            } else {
                self.poll_large(now, priority, batch, out)
            };
            if size.is_some() {
                // Where both wait, each has half.
                let mut large = self.outgoing.iter();
                let large = large.any(|message| message.priority == priority);
                let both = large && self.unacknowledged.waits(priority);
                let bytes = out.len() as i64;
                let small_ahead = self.small_ahead.get_mut(priority);
                *small_ahead = match (both, small) {
                    (false, _) => 0,
                    (true, true) => *small_ahead + bytes,
                    (true, false) => *small_ahead - bytes,
                };
                return size;
            }
        }
        None
    }

    /// The probe that asks how many of the small frames came that want no acknowledgement.
    fn poll_mark(&mut self, now: Instant, budget: u64, out: &mut Vec<u8>) -> Option<usize> {
        let may_report = !matches!(self.reporting(now), Reports::No(_));
        if may_report && self.plain.wants_mark(&self.flow) {
            // Below 256, as programs of version 0.2 show their applications any other.
            self.next_id += 1;
            let id = self.next_id & 0xff;
            write_probe(id, 0, out);
            if out.len() as u64 <= budget {
                self.plain.on_marked(now, id);
                return Some(out.len());
            }
            out.clear();
        }
        None
    }

    /// Small frames that want no acknowledgement.
    fn poll_plain(
        &mut self,
        now: Instant,
        priority: Priority,
        batch: Batch,
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        let reporting = self.reporting(now);
        let may_report = !matches!(reporting, Reports::No(_));
        let is_shared = !self.outgoing.is_empty() || self.unacknowledged.has_unsent();
        let path = Path { reports: matches!(reporting, Reports::Yes(_)), may_report, is_shared };
        let (flow, told) = (&mut self.flow, &mut self.outcomes);
        let size = self.plain.poll_transmit(now, (priority, batch), path, flow, told, out);
        if size.is_some() && self.plain.is_empty() && !is_shared {
            self.flow.on_idle();
        }
        size
    }

    /// Small frames that are to be acknowledged.
    fn poll_small(
        &mut self,
        now: Instant,
        priority: Priority,
        batch: Batch,
        random: &mut Random,
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        if !self.unacknowledged.waits(priority) {
            return None;
        }
        let allowed = self.allowed(now)?;
        let (flow, next) = (&mut self.flow, (priority, batch, allowed));
        let size = self.unacknowledged.poll_transmit(now, next, &self.ordering, flow, random, out);
        if !self.unacknowledged.has_unsent() && self.outgoing.is_empty() {
            self.flow.on_idle();
        }
        size
    }

    /// Fragments, of one message after the other.
    fn poll_large(
        &mut self,
        now: Instant,
        priority: Priority,
        batch: Batch,
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        // A long message would keep back for too long what is lost of one before it.
        let is_lost = |message: &Outgoing| message.priority == priority && message.has_lost();
        let lost = self.outgoing.iter().position(is_lost);
        if let Some(size) = lost.and_then(|at| self.poll_outgoing(now, at, batch, out)) {
            self.left_at = now;
            return Some(size);
        }
        let mut first = true;
        let mut at = 0;
        while self.outgoing.get(at).is_some() {
            if self.outgoing.get(at).is_none_or(|message| message.priority != priority) {
                at += 1;
                continue;
            }
            let count = self.outgoing.len();
            if let Some(size) = self.poll_outgoing(now, at, batch, out) {
                self.left_at = now;
                // Those before it that have nothing to send come after it the next time.
                if !first {
                    self.outgoing.rotate_left(at);
                }
                return Some(size);
            }
            first = false;
            // One that could not be cut is over.
            at += usize::from(self.outgoing.len() == count);
        }
        None
    }

    fn poll_outgoing(
        &mut self,
        now: Instant,
        at: usize,
        Batch { budget, credit, segments }: Batch,
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        let reporting = self.is_reporting(now);
        let size = if reporting { self.datagram } else { Self::DATAGRAM };
        let message = self.outgoing.get_mut(at)?;
        // What needs numbers beyond 255 in any case is not cut before it is known that they are
        // read.
        let beyond = Self::is_beyond(message);
        if message.total().is_none() && (reporting || !beyond) {
            let next = self.next_id + 1;
            let id = if reporting { next } else { next & 0xff };
            match message.cut(id, size) {
                Err(error) => {
                    self.end(at, Err(error.into()));
                    return None;
                }
                // Numbers beyond 255 are only for those who report.
                Ok(total) if total > CLASSIC_TOTAL_MAX && !reporting => message.uncut(&mut self.flow),
                // Fewer than a few of them on their way would wait for each other's reports.
                Ok(_) => {
                    self.next_id = next;
                    self.flow.on_datagram(size as u64);
                }
            }
        }
        if (message.total().is_none() || (reporting && self.probing.attempts == 0))
            && let Some(len) = self.poll_probe(now, reporting, budget, out)
        {
            return Some(len);
        }
        self.outgoing.get(at)?.total()?;
        let mut allowed = if reporting { self.allowed(now)? } else { self.allowed_blind(now)? };
        allowed = allowed.min(budget);
        let message = self.outgoing.get_mut(at)?;
        let mut size = 0;
        let mut count = 0;
        while count < segments.max(1) {
            let Some((index, len)) = message.peek() else { break };
            let first = count == 0;
            let end = out.len() + len;
            let fits = first || (len <= size && end <= Batch::BYTES_MAX && end as u64 <= credit);
            if !fits || (len as u64 > allowed && (!first || len as u64 > budget)) {
                break;
            }
            if first {
                size = len;
            }
            let idle = self.flow.in_flight() == 0;
            if idle {
                self.active_at = now;
            }
            message.on_sent(now, index, &mut self.flow, out);
            if !reporting {
                message.forget_in_flight(&mut self.flow);
            }
            allowed = allowed.saturating_sub(len as u64);
            count += 1;
            self.blind_left = self.blind_left.saturating_sub(1);
            if len < size {
                break;
            }
        }
        if count == 0 {
            if reporting && message.peek().is_none() && !self.unacknowledged.has_unsent() {
                self.flow.on_idle();
            }
            return None;
        }
        Some(size)
    }

    fn allowed(&mut self, now: Instant) -> Option<u64> {
        match self.flow.poll_leave(now) {
            Leave::Now(bytes) => Some(bytes),
            Leave::At(at) => {
                self.pace_at = Some(at);
                None
            }
            Leave::Full => None,
        }
    }

    /// A few datagrams leave now and a few later, as nobody reports.
    fn allowed_blind(&mut self, now: Instant) -> Option<u64> {
        if now >= self.blind_at {
            self.blind_at = now + Self::BLIND_INTERVAL;
            self.blind_left = Self::BLIND;
        }
        if self.blind_left == 0 {
            self.pace_at = Some(self.blind_at);
            return None;
        }
        Some(u64::from(self.blind_left) * Self::DATAGRAM as u64)
    }

    /// Probes: the largest first, so that the reports say what fits before the smallest says that
    /// there are reports.
    fn poll_probe(&mut self, now: Instant, reporting: bool, budget: u64, out: &mut Vec<u8>) -> Option<usize> {
        if self.probing.unsent.is_empty() {
            let due = self.probe_at().is_none_or(|at| at <= now) && self.probing.attempts < Self::PROBES_MAX;
            if !due {
                return None;
            }
            // Below 256, as programs of version 0.2 show their applications any other.
            let probes = Self::DATAGRAMS.map(|size| {
                self.next_id += 1;
                (self.next_id & 0xff, size)
            });
            let probing = &mut self.probing;
            // The smallest is the first.
            let count = if probing.smallest_only { 1 } else { probes.len() };
            probing.probes = probes.into_iter().take(count).collect();
            probing.unsent = probing.probes.clone();
            probing.attempts += 1;
            probing.sent_at = Some(now);
        }
        while let Some((id, size)) = self.probing.unsent.pop() {
            let smallest = size == Self::DATAGRAM;
            if smallest && reporting {
                continue;
            }
            // The smallest only asks whether there is anybody.
            write_probe(id, if smallest { 0 } else { size }, out);
            if out.len() as u64 <= budget {
                self.probing.left += 1;
                return Some(out.len());
            }
            out.clear();
        }
        None
    }

    /// Probes that have begun to leave, or are to be repeated, whatever a cap keeps back.
    fn poll_probe_past_cap(&mut self, now: Instant, budget: u64, out: &mut Vec<u8>) -> Option<usize> {
        if self.cap.is_none() || self.probing.attempts == 0 {
            return None;
        }
        let reporting = self.is_reporting(now);
        let waits = |message: &Outgoing| message.total().is_none() && Self::is_beyond(message);
        let is_wanted = !self.probing.unsent.is_empty() || (!reporting && self.outgoing.iter().any(waits));
        if is_wanted { self.poll_probe(now, reporting, budget, out) } else { None }
    }

    /// Returns true if a message needs numbers beyond 255 in datagrams of the usual size.
    fn is_beyond(message: &Outgoing) -> bool {
        message.encoded_len() > CLASSIC_TOTAL_MAX as usize * Self::DATAGRAM
    }
}
