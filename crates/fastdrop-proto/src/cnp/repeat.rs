//! The differences between Go-Back-N and Selective Repeat. Everything else is the same machine;
//! stop-and-wait is either of them with a window of one.

use super::params::Protocol;
use std::fmt::Debug;
use std::ops::Range;

/// How one lost packet is repeated.
pub(super) trait Repeat: Debug + Sync {
    /// Of the packets from `base` on, which ones an acknowledgement for `number` is for.
    fn acknowledged(&self, base: u64, number: u64) -> Range<u64>;

    /// Of the packets before `next`, which ones are sent again when `lost` is.
    fn again(&self, lost: u64, next: u64) -> Range<u64>;

    /// Whether a receiver keeps what is behind a gap; else it acknowledges again what is before it.
    fn keeps_ahead(&self) -> bool;
}

#[derive(Debug)]
struct SelectiveRepeat;

impl Repeat for SelectiveRepeat {
    fn acknowledged(&self, base: u64, number: u64) -> Range<u64> {
        number.max(base)..number + 1
    }

    fn again(&self, lost: u64, _next: u64) -> Range<u64> {
        lost..lost + 1
    }

    fn keeps_ahead(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct GoBackN;

impl Repeat for GoBackN {
    fn acknowledged(&self, base: u64, number: u64) -> Range<u64> {
        base..number + 1
    }

    fn again(&self, lost: u64, next: u64) -> Range<u64> {
        lost..next
    }

    fn keeps_ahead(&self) -> bool {
        false
    }
}

/// The behaviour where `protocol` was agreed on, or nothing was: then every packet is acknowledged
/// for itself.
pub(super) fn of(protocol: Option<Protocol>) -> &'static dyn Repeat {
    match protocol {
        Some(Protocol::GoBackN) => &GoBackN,
        Some(Protocol::SelectiveRepeat) | None => &SelectiveRepeat,
    }
}
