//! Messages of which every fragment carries the whole payload, as programs of version 0.2 send them
//! (docs/protocol/vstp.md, section 3).

use super::fragment::Fragment;
use super::frame::{Flags, FrameBytes, FrameRef, Headers};
use super::transport::DATAGRAM_MAX;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A fragment that looks as if it carried the whole payload: its total is what a sender of version
/// 0.2 computes from the size of the frame before the three headers of the fragment were added.
#[derive(Debug, Clone, Copy)]
pub(super) struct WholePayload<'a> {
    /// The headers of the message.
    headers: Headers<'a>,
    certain: bool,
}

impl<'a> WholePayload<'a> {
    /// Recognizes a fragment; None if it carries a slice.
    ///
    /// A datagram of at most 1,200 bytes is never recognized, as its frame would not have been cut.
    pub(super) fn recognize(frame: &FrameRef<'a>, fragment: &Fragment) -> Option<Self> {
        if fragment.wants_reports {
            return None;
        }
        let fields = fragment.plain_fields();
        let headers = frame.headers.as_bytes().strip_suffix(fields.as_headers().as_bytes())?;
        let headers = Headers::parse(headers).ok()?;
        let total = FrameRef { headers, ..*frame }.encoded_len().div_ceil(DATAGRAM_MAX);
        let matches = total > 1 && u32::try_from(total) == Ok(fragment.total);
        // A slice of a sender that cuts payloads, and not datagrams, at 1,200 bytes looks the same
        // if there are two of them. Such headers are no fields of fragments without reports.
        let extends = fragment.nested || fragment.probe || fragment.replaces.is_some();
        let certain = !(1..=DATAGRAM_MAX).contains(&frame.payload.len()) || extends;
        matches.then_some(Self { headers, certain })
    }

    /// The headers of the message.
    pub(super) fn headers(&self) -> Headers<'a> {
        self.headers
    }

    /// Returns true if no sender that cuts payloads or datagrams at 1,200 bytes can have sent it.
    pub(super) fn is_certain(&self) -> bool {
        self.certain
    }
}

/// The outcome of a fragment.
#[derive(Debug, PartialEq)]
pub(super) enum Outcome {
    /// Kept, or there already.
    Kept,
    /// It completed this message.
    Complete(FrameBytes),
    /// There is no room for it.
    Refused,
}

/// Room for more, beside what is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Unfinished messages.
    pub(super) messages: usize,
    /// Bytes of memory.
    pub(super) bytes: usize,
}

/// The unfinished messages of one address.
#[derive(Debug, Default)]
pub(super) struct WholePayloads {
    /// Those that waited longest first.
    unfinished: VecDeque<Unfinished>,
    memory: usize,
    /// Messages that were handed on in the last [`Self::REMEMBERED`].
    handed_on: VecDeque<(Instant, Fingerprint)>,
}

/// The fragments of one message that have been received.
///
/// Its contents are part of its identity, because numbers come again with other messages: 0.2
/// counts only those that want an acknowledgement.
#[derive(Debug)]
struct Unfinished {
    fragment: Fragment,
    message: FrameBytes,
    fingerprint: Fingerprint,
    /// Two fragments are proof enough.
    may_suffice: bool,
    /// One bit for each index: a frame of less than 64 KiB has at most 55 fragments.
    present: u64,
    progress_at: Instant,
}

/// The traits by which a message is known again after it was handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fingerprint {
    id: u64,
    len: usize,
    crc: u32,
}

impl Unfinished {
    fn is_of(&self, frame: &FrameRef<'_>, fragment: &Fragment, whole: &WholePayload<'_>) -> bool {
        let message = self.message.as_ref();
        (self.fragment.id, self.fragment.total) == (fragment.id, fragment.total)
            && (message.typ, message.flags) == (frame.typ, frame.flags - Flags::FRAG)
            && message.headers == whole.headers
            && message.payload == frame.payload
    }

    fn is_complete(&self) -> bool {
        self.present.count_ones() == self.fragment.total
    }

    /// Returns true if the message may be handed on although fragments are missing: two that are
    /// equal, and larger than any slice, leave no doubt about it.
    fn suffices(&self) -> bool {
        self.may_suffice && self.present.count_ones() > 1
    }

    /// The time at which nothing more of it is waited for.
    fn ends_at(&self, age_max: Duration) -> Instant {
        let age_max = if self.suffices() { age_max.min(WholePayloads::QUIET) } else { age_max };
        self.progress_at + age_max
    }
}

impl WholePayloads {
    /// Messages that are kept; beyond, the one that has waited longest is dropped. A sender sends
    /// one after the other, so that older ones are those that lost a fragment.
    pub(super) const UNFINISHED_MAX: usize = 16;
    /// With nothing new for this long, what is missing is lost. A sender waits twice as long for an
    /// acknowledgement.
    pub(super) const QUIET: Duration = Duration::from_secs(1);
    /// A message that comes again within this time is handed on when it is complete, and not
    /// before: what is there of it may be late datagrams of the first one.
    const REMEMBERED: Duration = Duration::from_secs(30);
    const REMEMBERED_MAX: usize = 64;

    /// The number of unfinished messages.
    pub(super) fn len(&self) -> usize {
        self.unfinished.len()
    }

    /// Bytes that unfinished messages keep.
    pub(super) fn memory(&self) -> usize {
        self.memory
    }

    /// Takes a fragment.
    pub(super) fn handle_fragment(
        &mut self,
        now: Instant,
        frame: &FrameRef<'_>,
        fragment: Fragment,
        whole: &WholePayload<'_>,
        room: Room,
    ) -> Outcome {
        let known = self.unfinished.iter().position(|message| message.is_of(frame, &fragment, whole));
        let mut message = match known.and_then(|at| self.remove(at)) {
            Some(message) => message,
            None => {
                let full = room.messages == 0 || self.unfinished.len() >= Self::UNFINISHED_MAX;
                let made_room = !full || self.remove(0).is_some();
                if !made_room || frame.payload.len() > room.bytes {
                    return Outcome::Refused;
                }
                self.begin(now, frame, fragment, whole)
            }
        };
        let bit = 1_u64.checked_shl(fragment.index).unwrap_or(0);
        if message.present & bit == 0 {
            message.present |= bit;
            message.progress_at = now;
        }
        if message.is_complete() {
            return Outcome::Complete(self.hand_on(now, message));
        }
        self.memory += message.message.memory();
        self.unfinished.push_back(message);
        Outcome::Kept
    }

    fn begin(
        &mut self,
        now: Instant,
        frame: &FrameRef<'_>,
        fragment: Fragment,
        whole: &WholePayload<'_>,
    ) -> Unfinished {
        let message = FrameRef { flags: frame.flags - Flags::FRAG, headers: whole.headers, ..*frame };
        let mut crc = crc32fast::Hasher::new();
        crc.update(message.headers.as_bytes());
        crc.update(message.payload);
        let fingerprint = Fingerprint { id: fragment.id, len: message.encoded_len(), crc: crc.finalize() };
        self.forget_old(now);
        let again = self.handed_on.iter().any(|(_, known)| *known == fingerprint);
        let may_suffice = whole.certain && fragment.total > 2 && !again;
        let message = FrameBytes::from(message);
        Unfinished { fragment, message, fingerprint, may_suffice, present: 0, progress_at: now }
    }

    fn remove(&mut self, at: usize) -> Option<Unfinished> {
        let message = self.unfinished.remove(at)?;
        self.memory -= message.message.memory();
        Some(message)
    }

    fn hand_on(&mut self, now: Instant, message: Unfinished) -> FrameBytes {
        self.forget_old(now);
        self.handed_on.push_back((now, message.fingerprint));
        message.message
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some((at, _)) = self.handed_on.front() {
            if now.saturating_duration_since(*at) < Self::REMEMBERED
                && self.handed_on.len() < Self::REMEMBERED_MAX
            {
                break;
            }
            self.handed_on.pop_front();
        }
    }

    /// The next message of which enough is there and nothing more is waited for.
    pub(super) fn poll_sufficient(&mut self, now: Instant, age_max: Duration) -> Option<FrameBytes> {
        let due = |message: &Unfinished| message.suffices() && message.ends_at(age_max) <= now;
        let at = self.unfinished.iter().position(due)?;
        let message = self.remove(at)?;
        Some(self.hand_on(now, message))
    }

    /// Drops what has had nothing new for too long; says how many. Those that suffice are kept for
    /// [`Self::poll_sufficient`].
    pub(super) fn drop_expired(&mut self, now: Instant, age_max: Duration) -> usize {
        let before = self.unfinished.len();
        self.unfinished.retain(|message| message.suffices() || message.ends_at(age_max) > now);
        self.memory = self.unfinished.iter().map(|message| message.message.memory()).sum();
        before - self.unfinished.len()
    }

    /// When something has to be handed on or dropped.
    pub(super) fn poll_timeout(&self, age_max: Duration) -> Option<Instant> {
        self.unfinished.iter().map(|message| message.ends_at(age_max)).min()
    }
}
