//! A connection in virtual time.

use std::collections::VecDeque;

/// Nanoseconds of virtual time since the run began.
pub type Time = u64;
pub const MICRO: Time = 1_000;
pub const MILLI: Time = 1_000_000;
pub const SECOND: Time = 1_000_000_000;

/// One direction of a connection: an ordered queue of bytes with a bound, a rate and a latency.
#[derive(Debug)]
pub struct Pipe {
    capacity: usize,
    latency: Time,
    /// Time that a byte takes.
    per_byte: Time,
    busy_until: Time,
    queued: usize,
    segments: VecDeque<(Time, Vec<u8>)>,
    /// From when on the reader sees the end, once everything queued is read.
    end_at: Option<Time>,
    dark: bool,
}

impl Pipe {
    pub fn new(capacity: usize, latency: Time, per_byte: Time) -> Self {
        Self {
            capacity,
            latency,
            per_byte,
            busy_until: 0,
            queued: 0,
            segments: VecDeque::new(),
            end_at: None,
            dark: false,
        }
    }

    pub fn queued(&self) -> usize {
        self.queued
    }

    /// Takes as much of `bytes` as fits: how many, and when they arrive.
    pub fn push(&mut self, now: Time, bytes: &[u8]) -> (usize, Option<Time>) {
        if self.end_at.is_some() {
            // The writer does not know yet that nobody reads.
            return (bytes.len(), None);
        }
        let taken = bytes.len().min(self.capacity.saturating_sub(self.queued));
        if taken == 0 {
            return (0, None);
        }
        self.queued += taken;
        if self.dark {
            return (taken, None);
        }
        self.busy_until = self.busy_until.max(now) + self.per_byte * taken as u64;
        let at = self.busy_until + self.latency;
        self.segments.push_back((at, bytes[..taken].to_vec()));
        (taken, Some(at))
    }

    /// Moves what has arrived by now to the end of `into`.
    pub fn take(&mut self, now: Time, into: &mut Vec<u8>) -> bool {
        let mut any = false;
        while !self.dark && self.segments.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, bytes)) = self.segments.pop_front() else { break };
            self.queued -= bytes.len();
            into.extend_from_slice(&bytes);
            any = true;
        }
        any
    }

    /// Whether the reader has read everything and then the end.
    pub fn ended(&self, now: Time) -> bool {
        !self.dark && self.segments.is_empty() && self.end_at.is_some_and(|at| at <= now)
    }

    /// Ends after what is queued; returns when the reader sees that.
    pub fn close(&mut self, now: Time) -> Time {
        let last = self.segments.back().map_or(now, |(at, _)| *at).max(now);
        *self.end_at.get_or_insert(last)
    }

    /// Ends after the first `keep` bytes of what is queued; the others are lost.
    pub fn cut(&mut self, now: Time, mut keep: usize) -> Time {
        for (_, bytes) in &mut self.segments {
            bytes.truncate(keep);
            keep -= bytes.len();
        }
        self.segments.retain(|(_, bytes)| !bytes.is_empty());
        self.queued = self.segments.iter().map(|(_, bytes)| bytes.len()).sum();
        self.end_at = None;
        self.close(now)
    }

    /// From now on nothing arrives and nothing ends.
    pub fn darken(&mut self) {
        self.dark = true;
    }

    pub fn is_dark(&self) -> bool {
        self.dark
    }
}
