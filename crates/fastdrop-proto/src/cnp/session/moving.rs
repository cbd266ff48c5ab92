//! A client whose address changes, by UDP (docs/protocol/cnp.md, section 14).

use super::{Session, State};
use crate::cnp::checksum::Checksum;
use crate::cnp::config::Carrier;
use crate::cnp::handshake::{HANDSHAKE_PAYLOAD_MAX, HANDSHAKE_TYPES};
use crate::cnp::header::Head;
use crate::cnp::packet::{PacketType, append};
use crate::cnp::params::SessionId;
use crate::cnp::seq::Seq;
use md5::{Digest, Md5};
use std::time::Instant;

/// The name of a session in datagrams from an address that is not known: the first bytes of the MD5
/// of its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId([u8; 8]);

/// The bytes that prove that an address receives what is sent to it: nobody can guess them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathChallenge(pub [u8; 8]);

impl ConnectionId {
    /// The name of the session with this id.
    pub fn of(id: &SessionId) -> Self {
        Self(Md5::digest(id.text().as_bytes()).first_chunk().copied().unwrap_or_default())
    }

    /// The name at the beginning of a datagram, if it says one; nothing is verified.
    pub fn in_front_of(datagram: &[u8]) -> Option<Self> {
        Self::packet(datagram).map(|(_, id)| id)
    }

    /// The packet with the name at the beginning of a datagram, or behind the end of a handshake
    /// that may not have arrived.
    fn packet(datagram: &[u8]) -> Option<(Head, Self)> {
        let first = Head::parse(datagram, HANDSHAKE_PAYLOAD_MAX).ok()??;
        let is_handshake =
            HANDSHAKE_TYPES.contains(&first.typ) && first.payload(datagram).first() == Some(&b'{');
        let rest = if is_handshake { datagram.get(first.packet_len()..)? } else { datagram };
        let head = Head::parse(rest, size_of::<Self>()).ok()??;
        let is_name = head.typ == PacketType::Connection.byte();
        Some((head, Self(head.payload(rest).try_into().ok()?))).filter(|_| is_name)
    }
}

impl Session {
    /// The name by which datagrams of the client are known wherever they come from; None if that
    /// was not agreed.
    pub fn connection_id(&self) -> Option<ConnectionId> {
        self.agreed().filter(|agreed| agreed.moves).map(|agreed| ConnectionId::of(&agreed.id))
    }

    /// Reports whether a datagram begins with the name of this session, covered by its checksum,
    /// which only its two ends and those who see their datagrams know.
    pub fn is_from_peer(&self, datagram: &[u8]) -> bool {
        let (Some(channel), Some(id)) = (&self.channel, self.connection_id()) else { return false };
        let Some((head, named)) = ConnectionId::packet(datagram) else { return false };
        named == id && channel.checksum.verify(&head, 0, &id.0)
    }

    /// The datagram that asks a new address of the client for its proof. It is shorter than any
    /// that it may answer.
    pub fn path_challenge(&self, challenge: PathChallenge) -> Option<Vec<u8>> {
        let channel = self.channel.as_ref().filter(|channel| channel.agreed.moves)?;
        let mut packet = Vec::new();
        append(&mut packet, PacketType::Path.byte(), Seq(0), 0, &channel.checksum, &challenge.0);
        Some(packet)
    }

    /// The proof that came last.
    pub fn poll_path_response(&mut self) -> Option<PathChallenge> {
        self.path_response.take()
    }

    /// A packet about the path came.
    pub(super) fn handle_path(&mut self, payload: &[u8]) {
        let Ok(challenge) = payload.try_into().map(PathChallenge) else { return };
        if self.is_server {
            self.path_response = Some(challenge);
        } else if let Some(answer) = self.path_challenge(challenge)
            && self.control.len() < Self::CHALLENGES_MAX
        {
            self.control.push_back(answer);
        }
    }

    /// Challenges that wait to be answered.
    const CHALLENGES_MAX: usize = 4;

    /// The packet with the session's name, which the client puts in front of a datagram when it has
    /// heard nothing for a timeout, or half a keep-alive, as its address may have changed.
    pub(super) fn name(&self, now: Instant) -> Option<Vec<u8>> {
        if self.is_server || self.config.carrier == Carrier::Stream || self.state == State::Over {
            return None;
        }
        let (channel, id) = (self.channel.as_ref()?, self.connection_id()?);
        let silence = now.saturating_duration_since(self.heard_at);
        let timeout = channel.sender.flow().rtt.timeout_after(0);
        // With keep-alives something should have come by then.
        let enough = channel.agreed.keep_alive.map_or(timeout, |interval| timeout.min(interval / 2));
        (silence >= enough).then(|| {
            let mut packet = Vec::new();
            let checksum: &Checksum = &channel.checksum;
            append(&mut packet, PacketType::Connection.byte(), Seq(0), 0, checksum, &id.0);
            packet
        })
    }
}
