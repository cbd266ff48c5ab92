//! Memory that messages may take, for addresses that are known and for strangers
//! (docs/protocol/vstp.md, sections 3 and 7).

use super::inbox::Amount;
use super::limits::ReassemblyLimits;
use super::standing::Standing;

/// The unfinished messages of one address, or of many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Messages, with those that wait for admission.
    pub(super) messages: usize,
    /// Bytes of memory that they keep.
    pub(super) memory: usize,
    /// Bytes that are reserved: what admitted messages announced, and what others keep.
    pub(super) reserved: usize,
    /// Those of them that messages keep which wait for admission.
    pub(super) waiting: usize,
}

impl Usage {
    pub(super) fn add(&mut self, other: Self) {
        self.messages = self.messages.saturating_add(other.messages);
        self.memory = self.memory.saturating_add(other.memory);
        self.reserved = self.reserved.saturating_add(other.reserved);
        self.waiting = self.waiting.saturating_add(other.waiting);
    }

    pub(super) fn subtract(&mut self, other: Self) {
        self.messages = self.messages.saturating_sub(other.messages);
        self.memory = self.memory.saturating_sub(other.memory);
        self.reserved = self.reserved.saturating_sub(other.reserved);
        self.waiting = self.waiting.saturating_sub(other.waiting);
    }
}

/// The answer to a message that wants to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// There is memory for it.
    Now,
    /// Its own address has too much under way.
    NotBeforeOwn,
    /// All together have.
    NotBeforeOthers,
}

/// The memory of all addresses of one kind: as much as they may take, and do.
#[derive(Debug)]
pub(super) struct Budget {
    pub(super) limits: ReassemblyLimits,
    /// Bytes of the largest message that a known address may send.
    largest: usize,
    /// Frames that the application has not taken.
    frames_max: usize,
    pub(super) used: Usage,
}

impl Budget {
    /// Frames of known addresses that the application has not taken.
    const FRAMES_MAX: usize = 65_536;
    /// The share of each kind of strangers is one part in so many: of messages, and of bytes and
    /// frames.
    const STRANGERS_MESSAGES_PART: usize = 4;
    const STRANGERS_PART: usize = 16;
    /// Strangers may always have so much, if known addresses may.
    const STRANGERS_MESSAGES_MIN: usize = 64;
    const STRANGERS_BYTES_MIN: usize = 1 << 20;
    /// One part in so many is kept from large messages, for frames and small messages.
    const SMALL_PART: usize = 16;
    /// Messages that announce no more than this do not wait behind large ones.
    pub(super) const SMALL_MESSAGE_MAX: usize = 64 << 10;

    /// The budget of addresses that have proved themselves.
    pub(super) fn known(limits: ReassemblyLimits) -> Self {
        let largest = Self::largest_of(&limits);
        Self { limits, largest, frames_max: Self::FRAMES_MAX, used: Usage::default() }
    }

    /// The budget of one kind of strangers, beside it.
    pub(super) fn strangers(limits: &ReassemblyLimits) -> Self {
        let share = |max: usize, part: usize, min: usize| (max / part).max(max.min(min));
        let (part, min) = (Self::STRANGERS_MESSAGES_PART, Self::STRANGERS_MESSAGES_MIN);
        let messages_max = share(limits.messages_max, part, min);
        let bytes_max = share(limits.bytes_max, Self::STRANGERS_PART, Self::STRANGERS_BYTES_MIN);
        let largest = Self::largest_of(limits);
        let limits = ReassemblyLimits {
            peer_messages_max: limits.peer_messages_max.min(messages_max),
            peer_bytes_max: limits.peer_bytes_max.min(bytes_max),
            messages_max,
            bytes_max,
            ..limits.clone()
        };
        let frames_max = Self::FRAMES_MAX / Self::STRANGERS_PART;
        Self { limits, largest, frames_max, used: Usage::default() }
    }

    fn largest_of(limits: &ReassemblyLimits) -> usize {
        limits.message_bytes_max.min(limits.peer_bytes_max).min(limits.bytes_max)
    }

    /// Returns true if a frame of so many bytes may wait for the application, where all addresses
    /// hold `all` and its own holds `own`.
    ///
    /// One address may hold as much as is free beside everything (Choudhury and Hahne, "Dynamic
    /// queue length thresholds for shared-memory packet switches", 1998): so each of n that flood
    /// has one part in n + 1, and as much is left for whoever comes.
    pub(super) fn admits_frame(&self, all: Amount, own: Amount, bytes: usize) -> bool {
        let taken = self.used.reserved.saturating_add(all.bytes);
        if taken == 0 {
            return true;
        }
        let free = self.limits.bytes_max.saturating_sub(taken);
        let places = self.frames_max.saturating_sub(all.count);
        bytes <= free && own.bytes <= free.min(self.limits.peer_bytes_max) && own.count < places
    }

    /// Decides whether so many bytes may be reserved for a message, where its address has
    /// `own_used` already, which this budget does not count, and holds `own`.
    pub(super) fn admission(&self, all: Amount, own: Amount, own_used: Usage, announced: usize) -> Admission {
        let own_reserved = own_used.reserved;
        let limits = &self.limits;
        let announced = self.clamp(announced);
        let mine = own.bytes.saturating_add(own_reserved);
        let is_first = mine == 0;
        if (!is_first && mine.saturating_add(announced) > limits.peer_bytes_max)
            || own.count >= self.frames_max.saturating_sub(all.count)
        {
            return Admission::NotBeforeOwn;
        }
        let kept = limits.bytes_max / Self::SMALL_PART;
        let taken = self.taken(all, own_reserved);
        let with_it = taken.saturating_add(announced);
        let fits = if announced <= Self::SMALL_MESSAGE_MAX.min(kept) {
            with_it <= limits.bytes_max
        } else {
            // One that would not fit beside what is kept may have everything for itself.
            // What others keep that wait must not stop all of them.
            let taken = taken.saturating_sub(self.used.waiting + own_used.waiting);
            let is_only = self.used.reserved == self.used.waiting;
            let alone = taken <= kept && is_only && announced <= limits.bytes_max;
            alone || with_it <= limits.bytes_max - kept
        };
        if fits { Admission::Now } else { Admission::NotBeforeOthers }
    }

    /// Bytes that are reserved for a message that announces so many. The last fragment may be
    /// short, so that more is announced than the message has.
    pub(super) fn clamp(&self, announced: usize) -> usize {
        announced.min(self.largest)
    }

    /// Bytes that are taken, where one address has reserved `own_reserved`, which this budget does
    /// not count, and all hold `all`.
    fn taken(&self, all: Amount, own_reserved: usize) -> usize {
        self.used.reserved.saturating_add(own_reserved).saturating_add(all.bytes)
    }

    /// Returns true if no message of this size can ever be admitted.
    pub(super) fn never_admits(&self, announced: u64) -> bool {
        announced > self.largest as u64
    }

    /// Bytes of a large message for which there is room, where all addresses hold `all`.
    pub(super) fn free_for_large(&self, all: Amount) -> usize {
        let max = self.limits.bytes_max - self.limits.bytes_max / Self::SMALL_PART;
        max.saturating_sub(self.taken(all, 0))
    }

    /// Returns true if messages that wait may keep so many more bytes.
    pub(super) fn keeps_waiting(&self, own_used: Usage, bytes: usize) -> bool {
        let waiting = self.used.waiting.saturating_add(own_used.waiting).saturating_add(bytes);
        waiting <= self.limits.bytes_max / Self::SMALL_PART
    }

    /// Bytes that are not reserved, where one address has reserved `own_reserved`, which this
    /// budget does not count, and all hold `all`.
    pub(super) fn free(&self, all: Amount, own_reserved: usize) -> usize {
        let free = self.limits.bytes_max.saturating_sub(self.taken(all, own_reserved));
        free.min(self.limits.peer_bytes_max.saturating_sub(own_reserved))
    }

    /// The same if all other addresses lost their unfinished messages.
    pub(super) fn free_alone(&self, all: Amount, own_reserved: usize) -> usize {
        let taken = own_reserved.saturating_add(all.bytes);
        let free = self.limits.bytes_max.saturating_sub(taken);
        free.min(self.limits.peer_bytes_max.saturating_sub(own_reserved))
    }
}

/// A budget for each standing.
#[derive(Debug)]
pub(super) struct Budgets {
    strangers: Budget,
    challenged: Budget,
    known: Budget,
}

impl Budgets {
    pub(super) fn new(limits: &ReassemblyLimits) -> Self {
        Self {
            strangers: Budget::strangers(limits),
            challenged: Budget::strangers(limits),
            known: Budget::known(limits.clone()),
        }
    }

    pub(super) fn get(&self, standing: Standing) -> &Budget {
        match standing {
            Standing::Stranger => &self.strangers,
            Standing::Challenged => &self.challenged,
            Standing::Known => &self.known,
        }
    }

    pub(super) fn get_mut(&mut self, standing: Standing) -> &mut Budget {
        match standing {
            Standing::Stranger => &mut self.strangers,
            Standing::Challenged => &mut self.challenged,
            Standing::Known => &mut self.known,
        }
    }

    /// The usage of all together.
    pub(super) fn used(&self) -> Usage {
        let mut used = self.known.used;
        used.add(self.strangers.used);
        used.add(self.challenged.used);
        used
    }
}
