//! Numbers by which messages are told from each other, on the wire and by their application.

/// The header by which a frame is acknowledged.
pub const MSG_ID: &str = "msg-id";

/// Digits of a number that is used once: a zero, and 19 of the number.
pub(super) const MSG_ID_DIGITS: usize = 20;

/// The number before the first of a stream: 31 random bits of which the highest is set, so that all
/// numbers have 19 digits, and a count of 0.
pub(super) fn new_stream(random: u32) -> u64 {
    u64::from(random >> 1 | 1 << 30) << u32::BITS
}

/// The digits of a number that is used once.
pub(super) fn number_digits(number: u64) -> String {
    format!("0{number}")
}

/// The stream of a number, and its count.
pub(super) fn split(number: u64) -> (u32, u32) {
    ((number >> u32::BITS) as u32, number as u32)
}

/// Reports whether a number can be one of a stream.
pub(super) fn is_of_stream(number: u64) -> bool {
    number >> 62 == 1 && number as u32 != 0
}

/// The number of a message among those of its application; given back with its outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SendId(pub u64);
