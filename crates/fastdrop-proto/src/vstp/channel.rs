//! Channels over UDP: their headers, and the place of a frame in one (docs/protocol/vstp.md,
//! section 10).

use super::acknowledgement::Acknowledgement;
use super::frame::{Flags, FrameBytes, FrameError, FrameType, Headers, HeadersBuf};
use super::ids::{is_of_stream, number_digits};

const CHANNEL: &str = "vstp-channel";
const SEQ: &str = "vstp-seq";

/// A channel of one sender to one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// States, of which only the newest counts: what is older than one that was handed on is
    /// dropped, and nothing is sent again.
    Sequenced(u32),
}

impl Channel {
    /// The channel that a frame was sent on; None if it has none.
    pub fn of(frame: &FrameBytes) -> Option<Self> {
        let (channel, _) = Place::read(frame.headers())?;
        Some(channel)
    }
}

/// The ways to send a frame.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SendOptions {
    channel: Option<Channel>,
    acknowledged: bool,
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

    /// The channel.
    pub fn channel(&self) -> Option<Channel> {
        self.channel
    }

    /// Returns true if an acknowledgement is wanted.
    pub fn is_acknowledged(&self) -> bool {
        self.acknowledged
    }

    /// The number of a sequenced channel.
    pub(super) fn state(&self) -> Option<u32> {
        match self.channel? {
            Channel::Sequenced(channel) => Some(channel),
        }
    }
}

/// The place of a received frame in its channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// A state of this channel, with its number.
    Sequenced { channel: u32, number: u64 },
}

impl Place {
    /// Reads the headers of a channel; None if they are not there or make no sense.
    fn read(headers: Headers<'_>) -> Option<(Channel, u64)> {
        let channel = u32::try_from(headers.number(CHANNEL)?).ok()?;
        let number = headers.number(SEQ).filter(|number| is_of_stream(*number))?;
        Some((Channel::Sequenced(channel), number))
    }

    /// The place of a frame that asks for this acknowledgement; None if it is on no channel.
    pub(super) fn of(frame: &FrameBytes, wanted: Option<Acknowledgement>) -> Option<Self> {
        if matches!(frame.typ, FrameType::Ack | FrameType::Err) {
            return None;
        }
        let (channel, number) = Self::read(frame.headers())?;
        let asks = wanted.is_some() || frame.flags.contains(Flags::REQ_ACK);
        match channel {
            Channel::Sequenced(channel) if !asks => Some(Self::Sequenced { channel, number }),
            Channel::Sequenced(_) => None,
        }
    }

    /// A frame with its place, and no other.
    pub(super) fn write(self, frame: FrameBytes) -> Result<FrameBytes, FrameError> {
        match self {
            Self::Sequenced { channel, number } => frame
                .with_header(CHANNEL.as_bytes(), channel.to_string().as_bytes())?
                .with_header(SEQ.as_bytes(), number_digits(number).as_bytes()),
        }
    }
}

/// The same frame without the headers of a channel on which it may have come: its numbers are those
/// of another sender.
pub(super) fn without_place(frame: FrameBytes) -> Result<FrameBytes, FrameError> {
    let is_ours = |key: &[u8]| [CHANNEL, SEQ].iter().any(|ours| ours.as_bytes() == key);
    if !frame.headers().iter().any(|(key, _)| is_ours(key)) {
        return Ok(frame);
    }
    let mut headers = HeadersBuf::default();
    for (key, value) in frame.headers().iter().filter(|(key, _)| !is_ours(key)) {
        headers.push(key, value)?;
    }
    Ok(FrameBytes::new(frame.typ, headers, frame.payload).with_flag(frame.flags))
}
