//! Channels over UDP: their headers, and the place of a frame in one (docs/protocol/vstp.md,
//! section 10).

use super::acknowledgement::Acknowledgement;
use super::frame::{FrameBytes, FrameError, FrameRef, FrameType, Headers, HeadersBuf};
use super::ids::{is_of_stream, number_digits};
use super::ordered::Order;
use super::priority::Priority;

const CHANNEL: &str = "vstp-channel";
const SEQ: &str = "vstp-seq";
const ORDER: &str = "vstp-order";
const AFTER: &str = "vstp-after";

/// A channel of one sender to one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// States, of which only the newest counts: what is older than one that was handed on is
    /// dropped, and nothing is sent again.
    Sequenced(u32),
    /// Frames that are handed on in the order in which they were sent, each once.
    Ordered(u32),
}

impl Channel {
    /// The channel that the headers of a frame name; None if they name none.
    pub fn of(frame: &FrameBytes) -> Option<Self> {
        match Place::read(frame.headers())? {
            Place::Sequenced { channel, .. } => Some(Self::Sequenced(channel)),
            Place::Ordered(order) => Some(Self::Ordered(order.channel)),
        }
    }
}

/// The ways to send a frame. The default is without an acknowledgement, on no channel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SendOptions {
    channel: Option<Channel>,
    acknowledged: bool,
    priority: Priority,
}

impl SendOptions {
    /// Sent until it is acknowledged, on no channel.
    pub fn acknowledged() -> Self {
        Self { acknowledged: true, ..Self::default() }
    }

    /// A state on this channel: sent once, and not acknowledged. Its outcome is known when it has
    /// left, or a newer one has taken its place.
    pub fn sequenced(channel: u32) -> Self {
        Self { channel: Some(Channel::Sequenced(channel)), ..Self::default() }
    }

    /// On this channel, in order, until it is acknowledged. At most 64 ordered channels of an
    /// address have frames that wait for their acknowledgements.
    pub fn ordered(channel: u32) -> Self {
        Self { channel: Some(Channel::Ordered(channel)), acknowledged: true, ..Self::default() }
    }

    /// The same with this priority. On an ordered channel it counts where no frame before this one
    /// waits for its acknowledgement; else this one has theirs.
    pub fn with_priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// The channel.
    pub fn channel(&self) -> Option<Channel> {
        self.channel
    }

    /// Returns true if an acknowledgement is wanted.
    pub fn is_acknowledged(&self) -> bool {
        self.acknowledged
    }

    /// The priority.
    pub fn priority(&self) -> Priority {
        self.priority
    }
}

/// The place of a frame in its channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// A state of this channel, with its number.
    Sequenced { channel: u32, number: u64 },
    /// One of an ordered channel.
    Ordered(Order),
}

impl Place {
    /// Bytes that a place adds to a frame, at most: three headers, the lengths of their keys and
    /// values, and digits.
    pub(super) const BYTES_MAX: usize = 3 * 2 + CHANNEL.len() + ORDER.len() + AFTER.len() + 10 + 20 + 10;

    /// Reads the headers of a channel; None if they are not there or make no sense.
    fn read(headers: Headers<'_>) -> Option<Self> {
        let channel = u32::try_from(headers.number(CHANNEL)?).ok()?;
        let number = |key| headers.number(key).filter(|number| is_of_stream(*number));
        match (headers.find(SEQ), headers.find(ORDER)) {
            (Some(_), None) => Some(Self::Sequenced { channel, number: number(SEQ)? }),
            (None, Some(_)) => {
                let number = number(ORDER)?;
                let after = u32::try_from(headers.number(AFTER)?).ok()?;
                (after < number as u32).then_some(Self::Ordered(Order { channel, number, after }))
            }
            _ => None,
        }
    }

    /// The place of a frame that asks for this acknowledgement; None if it is on no channel.
    pub(super) fn of(frame: &FrameBytes, wanted: Option<Acknowledgement>) -> Option<Self> {
        if matches!(frame.typ, FrameType::Ack | FrameType::Err) {
            return None;
        }
        let place = Self::read(frame.headers())?;
        let fits = match place {
            Self::Sequenced { .. } => wanted.is_none(),
            // One whose number comes round may not be known again when it comes again.
            Self::Ordered(_) => wanted.is_some_and(|wanted| wanted.unique_number().is_some()),
        };
        fits.then_some(place)
    }

    /// A frame with its place, and no other.
    pub(super) fn write(self, frame: FrameBytes) -> Result<FrameBytes, FrameError> {
        let (channel, key, number, after) = match self {
            Self::Sequenced { channel, number } => (channel, SEQ, number, None),
            Self::Ordered(Order { channel, number, after }) => (channel, ORDER, number, Some(after)),
        };
        let frame = frame
            .with_header(CHANNEL.as_bytes(), channel.to_string().as_bytes())?
            .with_header(key.as_bytes(), number_digits(number).as_bytes())?;
        match after {
            None => Ok(frame),
            Some(after) => frame.with_header(AFTER.as_bytes(), after.to_string().as_bytes()),
        }
    }
}

/// An encoded frame of an ordered channel with this count as the one up to which all have their
/// outcome; None if it says so already.
pub(super) fn with_after(encoded: &[u8], after: u32) -> Option<Vec<u8>> {
    let (frame, _) = FrameRef::decode(encoded, usize::from(u16::MAX)).ok()??;
    let Some(Place::Ordered(order)) = Place::read(frame.headers) else { return None };
    if order.after >= after {
        return None;
    }
    let frame = FrameBytes::from(frame).without_header(AFTER).ok()?;
    let frame = frame.with_header(AFTER.as_bytes(), after.to_string().as_bytes()).ok()?;
    let mut bytes = Vec::new();
    frame.as_ref().encode(&mut bytes).ok()?;
    Some(bytes)
}

/// The same frame without the headers of a channel on which it may have come: its numbers are those
/// of another sender.
pub(super) fn without_place(frame: FrameBytes) -> Result<FrameBytes, FrameError> {
    let is_ours = |key: &[u8]| [CHANNEL, SEQ, ORDER, AFTER].iter().any(|ours| ours.as_bytes() == key);
    if !frame.headers().iter().any(|(key, _)| is_ours(key)) {
        return Ok(frame);
    }
    let mut headers = HeadersBuf::default();
    for (key, value) in frame.headers().iter().filter(|(key, _)| !is_ours(key)) {
        headers.push(key, value)?;
    }
    Ok(FrameBytes::new(frame.typ, headers, frame.payload).with_flag(frame.flags))
}
