//! Reasons for which a message did not arrive.

use super::error_code::ErrorCode;
use super::frame::FrameError;
pub use crate::unreachable::Unreachable;

/// The reason for which a message did not arrive, as far as its sender knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// Nobody answered in time.
    #[error("no answer in time")]
    TimedOut,
    /// The peer does not report, and so takes no message of more than 255 fragments.
    #[error(
        "the peer takes no message of this size over UDP: it reports no fragments, as programs of \
         version 0.2, or is not there; TCP carries it"
    )]
    TooLarge,
    /// It does not fit a datagram, and fragments are not allowed here.
    #[error("no datagram carries a frame of this size, and it must not be cut")]
    NotCut,
    /// The peer said so.
    #[error("the peer refused it: {0}")]
    Refused(String),
    /// Too much is waiting already: here to be sent to that address, or there to be taken.
    #[error("too many messages are waiting, here for this address or there; later there may be room")]
    Busy,
    /// A newer state of its channel has taken its place before it left.
    #[error("a newer state of its channel has taken its place")]
    Superseded,
    /// One that was sent before it on its ordered channel did not arrive, so that its turn may
    /// never have come.
    #[error("one before it on its ordered channel did not arrive")]
    ChannelBroken,
    /// It is on an ordered channel, and does not fit a datagram.
    #[error("frames of ordered channels are not cut, and no datagram carries one of this size")]
    NotCutInOrder,
    /// It is an answer, or part of a call, and was to be sent on a channel.
    #[error("ACK, ERR and the frames of calls are sent on no channel")]
    NotOnChannel,
    /// The address did not prove that it exists.
    #[error("the address has not proved itself")]
    Unproved,
    /// No datagram reaches anybody there.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// It cannot be written as a frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl Failure {
    /// The failure that the code of an ERR frame says.
    pub(super) fn refused(code: String) -> Self {
        if code == ErrorCode::Busy.as_str() { Self::Busy } else { Self::Refused(code) }
    }
}
