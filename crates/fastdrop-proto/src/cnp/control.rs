//! Payloads of the packets that are no data, which say what they are for.

/// A packet that is no data may have so large a payload, whatever was agreed for data.
pub const CONTROL_PAYLOAD_MAX: usize = 1024;

/// An acknowledgement of one packet.
pub(super) const ACK: &[u8] = b"ACK";
/// Bytes of an acknowledgement that also names what came before: a count behind [`ACK`].
pub(super) const ACK_BEFORE_LEN: usize = ACK.len() + size_of::<u64>();
/// An acknowledgement of Go-Back-N about what is before a gap.
pub(super) const GAP: &[u8] = b"GAP";
/// The payload of a negative acknowledgement.
pub(super) const NACK_PAYLOAD: &[u8] = b"NACK";
/// A request to close.
pub(super) const DISCONNECT: &[u8] = b"Disconnect";
/// A sign of life.
pub(super) const ALIVE: &[u8] = b"alive";
/// A sign of life of a receiver without room for more.
pub(super) const HOLD: &[u8] = b"hold";
/// A sign of life of a receiver that has room again.
pub(super) const ROOM: &[u8] = b"room";

/// No acknowledgement, sign of life or request has a longer payload.
pub(super) const CONTROL_LEN: usize = ACK_BEFORE_LEN;
