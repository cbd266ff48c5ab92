//! Output of an endpoint.

use super::acknowledgement::Acknowledgement;
use super::failure::Failure;
use super::frame::FrameBytes;
use super::ids::SendId;
use std::net::{IpAddr, SocketAddr};

/// Something for the application.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// A frame or a whole message came. The driver says `Endpoint::handle_taken` when the
    /// application has it, and `Endpoint::acknowledge` when the application has handled it.
    Received {
        /// Its sender.
        from: SocketAddr,
        /// The frame, without the headers of its fragments.
        frame: FrameBytes,
        /// The acknowledgement that it asks for.
        acknowledgement: Option<Acknowledgement>,
    },
    /// The fate of a message.
    Outcome {
        /// The message.
        send: SendId,
        /// Ok when it was sent, or acknowledged if that was wanted.
        result: Result<(), Failure>,
    },
}

/// Datagrams to send, in the buffer given to `Endpoint::poll_transmit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    /// Their destination.
    pub to: SocketAddr,
    /// The bytes of each; the last one may have fewer.
    pub datagram: usize,
    /// The local address that they leave from: the one that was asked. None for any.
    pub from: Option<IpAddr>,
}

/// Counts since the beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams that came.
    pub datagrams: u64,
    /// Of them, those that were no frame, of another version or type, or changed on the way (case
    /// 71).
    pub malformed: u64,
    /// Acknowledgements and reports about nothing that was sent (case 74).
    pub unexpected: u64,
    /// Messages that were there already.
    pub duplicates: u64,
    /// Frames and fragments for which there was no room, or that contradicted others.
    pub refused: u64,
    /// States of a channel that were dropped for a newer one: they came later than it, or had not
    /// been taken before it.
    pub superseded: u64,
    /// Unfinished messages that got nothing more in time.
    pub expired: u64,
    /// Datagrams that an address that has not proved itself did not get.
    pub withheld: u64,
    /// Frames of strangers that were not kept, and answered with a challenge (case 125).
    pub challenged: u64,
    /// Strangers that were forgotten for others.
    pub evicted: u64,
}
