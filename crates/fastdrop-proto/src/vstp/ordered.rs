//! The ordered channels of a sender: what comes early waits for what is before it
//! (docs/protocol/vstp.md, section 10).

use super::acknowledgement::Acknowledgement;
use super::frame::FrameBytes;
use super::ids::split;
use super::lineage::{Age, Lineage};
use super::seen::Seen;
use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

/// The place of a frame in an ordered channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) channel: u32,
    /// Its stream and its count.
    pub(super) number: u64,
    /// All counts of the stream up to this one have their outcome.
    pub(super) after: u32,
}

/// A frame that came.
#[derive(Debug)]
pub(super) struct Came {
    pub(super) frame: FrameBytes,
    pub(super) acknowledgement: Acknowledgement,
}

/// The turn of a frame that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// It is the next one.
    Now,
    /// Others are before it.
    Early,
    /// Its turn is over, and its sender does not wait for it any more.
    Past,
    /// Too much waits for what is before it.
    Full,
}

/// One channel.
#[derive(Debug)]
struct Line {
    streams: Lineage,
    /// The count whose turn is next.
    next: u64,
    /// Frames whose turn is still to come; None for one that was refused, whose turn only passes.
    early: BTreeMap<u32, Option<Came>>,
    /// The time at which the first of them began to wait for what is next now.
    since: Instant,
    /// When it was used last, as a count of uses.
    used: u64,
}

/// All channels of one address.
#[derive(Debug, Default)]
pub(super) struct Ordered {
    lines: BTreeMap<u32, Line>,
    uses: u64,
    /// Frames whose turn came when others had passed.
    ready: VecDeque<Came>,
    /// Frames whose turn will never come.
    dropped: VecDeque<Came>,
}

impl Ordered {
    /// A frame waits for its turn only within so many of the next one.
    const SPAN: u64 = 8192;

    /// Returns true if something is remembered of a channel.
    pub(super) fn knows(&self, channel: u32) -> bool {
        self.lines.contains_key(&channel)
    }

    /// Finds the turn of a frame, of at most `max` channels; for one more, another is forgotten if
    /// it `may_forget`. What that shows of others comes out of [`Self::poll_dropped`], and then of
    /// [`Self::poll_ready`].
    pub(super) fn turn(&mut self, now: Instant, order: Order, (max, may_forget): (usize, bool)) -> Turn {
        let (stream, count) = split(order.number);
        self.uses += 1;
        if !self.knows(order.channel) && !self.make_place(max, may_forget) {
            return Turn::Full;
        }
        let new =
            || Line { streams: Lineage::default(), next: 1, early: BTreeMap::new(), since: now, used: 0 };
        let line = self.lines.entry(order.channel).or_insert_with(new);
        match line.streams.age(now, stream) {
            Age::Past => return Turn::Past,
            Age::Running => {}
            Age::New => {
                line.streams.begin(now, stream);
                self.dropped.extend(std::mem::take(&mut line.early).into_values().flatten());
                line.next = 1;
            }
        }
        line.used = self.uses;
        let first = u64::from(order.after) + 1;
        if first > line.next {
            let rest = line.early.split_off(&order.after.saturating_add(1));
            self.dropped.extend(std::mem::replace(&mut line.early, rest).into_values().flatten());
            line.next = first;
            line.release(now, &mut self.ready);
        }
        match u64::from(count).checked_sub(line.next) {
            None => Turn::Past,
            // No honest sender uses a number for two frames.
            Some(_) if line.early.contains_key(&count) => Turn::Past,
            Some(0) => Turn::Now,
            Some(ahead) if ahead < Self::SPAN => Turn::Early,
            Some(_) => Turn::Full,
        }
    }

    /// Makes a place for one more channel: the one that was used least recently is forgotten, of
    /// those for which nothing waits.
    fn make_place(&mut self, max: usize, may_forget: bool) -> bool {
        if self.lines.len() < max || !may_forget {
            return self.lines.len() < max;
        }
        let idle = self.lines.iter().filter(|(_, line)| line.early.is_empty());
        let Some((&oldest, _)) = idle.min_by_key(|(_, line)| line.used) else { return false };
        self.lines.remove(&oldest);
        true
    }

    /// The frame whose turn it is has been handed on: the turn of others may have come.
    pub(super) fn pass(&mut self, now: Instant, channel: u32) {
        let Some(line) = self.lines.get_mut(&channel) else { return };
        line.next += 1;
        line.release(now, &mut self.ready);
    }

    /// Keeps a frame that is early; only its turn where it was refused.
    pub(super) fn hold(&mut self, now: Instant, order: Order, came: Option<Came>) {
        let Some(line) = self.lines.get_mut(&order.channel) else { return };
        if line.early.is_empty() {
            line.since = now;
        }
        line.early.insert(split(order.number).1, came);
    }

    /// Gives up the last frame that waits, of this channel if it has one, to make room; it may come
    /// again.
    pub(super) fn give_up_last(&mut self, channel: u32) -> Option<Came> {
        let waiting = self.lines.iter().filter(|(_, line)| !line.early.is_empty()).map(|(at, _)| *at);
        let channels: Vec<u32> = std::iter::once(channel).chain(waiting).collect();
        for channel in channels {
            let Some(line) = self.lines.get_mut(&channel) else { continue };
            let last = line.early.iter().rev().find(|(_, came)| came.is_some()).map(|(count, _)| *count);
            if let Some(came) = last.and_then(|last| line.early.remove(&last)).flatten() {
                return Some(came);
            }
        }
        None
    }

    /// The next frame whose turn has come.
    pub(super) fn poll_ready(&mut self) -> Option<Came> {
        self.ready.pop_front()
    }

    /// The next frame whose turn will never come.
    pub(super) fn poll_dropped(&mut self) -> Option<Came> {
        self.dropped.pop_front()
    }

    /// Drops what has waited for longer than any sender sends again; everything of one that is
    /// `gone`.
    pub(super) fn handle_timeout(&mut self, now: Instant, gone: bool) {
        for line in self.lines.values_mut() {
            if gone || line.over_at().is_some_and(|at| at <= now) {
                self.dropped.extend(std::mem::take(&mut line.early).into_values().flatten());
            }
        }
    }

    /// The time at which that has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.lines.values().filter_map(Line::over_at).min()
    }
}

impl Line {
    fn over_at(&self) -> Option<Instant> {
        (!self.early.is_empty()).then(|| self.since + Seen::AGE_MAX)
    }

    /// The turns of those that follow each other have come.
    fn release(&mut self, now: Instant, ready: &mut VecDeque<Came>) {
        while let Some(entry) = self.early.first_entry().filter(|entry| u64::from(*entry.key()) == self.next)
        {
            ready.extend(entry.remove());
            self.next += 1;
        }
        self.since = now;
    }
}
