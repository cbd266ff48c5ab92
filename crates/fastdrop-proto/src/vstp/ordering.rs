//! The ordered channels of a sender to one address: their numbers, and what fails together
//! (docs/protocol/vstp.md, section 10).

use super::failure::Failure;
use super::ids::{SendId, new_stream, split};
use super::ordered::Order;
use super::priority::Priority;
use std::collections::{BTreeMap, HashMap};

/// One channel.
#[derive(Debug)]
struct Line {
    /// The last number.
    last: u64,
    /// Frames that have no outcome yet, by their counts.
    outstanding: BTreeMap<u32, SendId>,
    /// Their priority.
    priority: Priority,
    /// When it was used last, as a count of uses.
    used: u64,
}

/// All channels.
#[derive(Debug, Default)]
pub(super) struct Ordering {
    lines: BTreeMap<u32, Line>,
    /// The channel and the number of each frame that has no outcome yet.
    outstanding: HashMap<SendId, (u32, u64)>,
    uses: u64,
}

impl Ordering {
    /// Channels of which the numbers are known.
    const LINES_MAX: usize = 64;

    /// The next place in a channel; `fresh` is random, for a stream that may have to begin. Also
    /// the priority of the frame, which is that of those before it that have no outcome.
    pub(super) fn take_next(
        &mut self,
        send: SendId,
        channel: u32,
        priority: Priority,
        fresh: u64,
    ) -> Result<(Order, Priority), Failure> {
        self.uses += 1;
        if !self.lines.contains_key(&channel) && self.lines.len() >= Self::LINES_MAX {
            let idle = self.lines.iter().filter(|(_, line)| line.outstanding.is_empty());
            let oldest = idle.min_by_key(|(_, line)| line.used).map(|(at, _)| *at);
            self.lines.remove(&oldest.ok_or(Failure::Busy)?);
        }
        let first = new_stream(fresh as u32);
        let new = || Line { last: first, outstanding: BTreeMap::new(), priority, used: 0 };
        let line = self.lines.entry(channel).or_insert_with(new);
        line.used = self.uses;
        if line.outstanding.is_empty() {
            line.priority = priority;
        }
        if line.last as u32 == u32::MAX {
            if !line.outstanding.is_empty() {
                return Err(Failure::Busy);
            }
            line.last = first;
        }
        line.last += 1;
        let (_, count) = split(line.last);
        let lowest = line.outstanding.first_key_value().map_or(count, |(count, _)| *count);
        line.outstanding.insert(count, send);
        self.outstanding.insert(send, (channel, line.last));
        Ok((Order { channel, number: line.last, after: lowest - 1 }, line.priority))
    }

    /// The count up to which all of its channel have their outcome, of a frame that has none.
    pub(super) fn after(&self, send: SendId) -> Option<u32> {
        let (channel, _) = self.outstanding.get(&send)?;
        let (lowest, _) = self.lines.get(channel)?.outstanding.first_key_value()?;
        Some(lowest - 1)
    }

    /// A frame has its outcome. Returns those behind it, which fail with it, in the order of their
    /// sending.
    pub(super) fn on_outcome(&mut self, send: SendId, result: &Result<(), Failure>) -> Vec<SendId> {
        let Some((channel, number)) = self.outstanding.remove(&send) else { return Vec::new() };
        let Some(line) = self.lines.get_mut(&channel) else { return Vec::new() };
        let (_, count) = split(number);
        line.outstanding.remove(&count);
        // The turn of one that the peer refuses has come, or passes.
        if matches!(result, Ok(()) | Err(Failure::Refused(_) | Failure::Busy)) {
            return Vec::new();
        }
        // The next one begins a new stream.
        let behind = line.outstanding.split_off(&count);
        for send in line.outstanding.values().chain(behind.values()) {
            self.outstanding.remove(send);
        }
        self.lines.remove(&channel);
        behind.into_values().collect()
    }
}
