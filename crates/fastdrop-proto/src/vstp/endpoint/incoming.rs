//! Datagrams that come.

use super::{CHALLENGE, Endpoint, acknowledged_crc};
use crate::vstp::acknowledgement::Acknowledgement;
use crate::vstp::arrivals::Arrived;
use crate::vstp::call::CallRole;
use crate::vstp::challenge::answer_challenge;
use crate::vstp::channel::Place;
use crate::vstp::error_code::{ErrorCode, code_of};
use crate::vstp::fragment::{CAME, Fragment, Report, parse_refusal};
use crate::vstp::frame::{Flags, FrameBytes, FrameRef, FrameType};
use crate::vstp::ids::MSG_ID;
use crate::vstp::ordered::Came;
use crate::vstp::peer::Proof;
use crate::vstp::receiving::Got;
use crate::vstp::seen::Sight;
use crate::vstp::standing::Standing;
use std::net::SocketAddr;
use std::time::Instant;

impl Endpoint {
    /// A datagram came.
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        self.counters.datagrams += 1;
        let whole = match FrameRef::decode(bytes, usize::from(u16::MAX)) {
            Ok(Some((frame, len))) if len == bytes.len() => Some(frame),
            _ => None,
        };
        let Some(frame) = whole else {
            self.counters.malformed += 1;
            return;
        };
        if !self.admit_address(now, from, &frame) {
            return;
        }
        let Some(peer) = self.peers.get_mut(from) else { return };
        peer.on_heard(now);
        if let Proof::Unproved { came, .. } = &mut peer.proof {
            *came = came.saturating_add(bytes.len() as u64);
        }
        // A reply that is an error may be cut, and is no refusal of a message.
        let is_whole = !frame.flags.contains(Flags::FRAG);
        match frame.typ {
            FrameType::Ack if Report::is_in(&frame) => self.handle_report(now, from, &frame),
            FrameType::Ack if Arrived::is_in(&frame) => self.handle_arrived(now, from, &frame),
            FrameType::Ack if frame.headers.find(MSG_ID).is_some() => self.handle_ack(now, from, &frame),
            FrameType::Err if is_whole && parse_refusal(&frame).is_some() => {
                self.handle_refusal(from, &frame)
            }
            FrameType::Err if is_whole && self.is_refused(now, from, &frame) => {}
            FrameType::Ping if frame.headers.find(CHALLENGE).is_some() => {
                self.handle_challenge(now, from, &frame)
            }
            FrameType::Pong if frame.headers.find(CHALLENGE).is_some() => {
                self.handle_proof(now, from, &frame)
            }
            _ if frame.flags.contains(Flags::FRAG) => self.handle_fragment(now, from, &frame),
            _ => {
                let crc = bytes.last_chunk().map_or(0, |crc| u32::from_be_bytes(*crc));
                self.handle_small(now, from, FrameBytes::from(frame), crc);
            }
        }
        self.peers.touch(from);
        self.wake(from);
    }

    /// Takes a frame that came whole, and notes its arrival if it asks for an acknowledgement.
    fn handle_small(&mut self, now: Instant, from: SocketAddr, frame: FrameBytes, crc: u32) {
        if !frame.flags.contains(Flags::REQ_ACK)
            && let Some(peer) = self.peers.get_mut(from)
        {
            peer.receiving.plain_came = peer.receiving.plain_came.wrapping_add(1);
        }
        let duplicates = self.counters.duplicates;
        let wanted = self.receive(now, from, frame, crc, false);
        let again = self.counters.duplicates > duplicates;
        if let Some(wanted) = wanted
            && let Some(number) = wanted.unique_number()
            && let Some(peer) = self.peers.get_mut(from)
            && peer.receiving.seen.peek(wanted) == Sight::Pending
        {
            peer.receiving.arrivals.on_arrived(now, number, again);
        }
    }

    fn handle_report(&mut self, now: Instant, from: SocketAddr, frame: &FrameRef<'_>) {
        let Some(report) = Report::parse(frame) else {
            self.counters.malformed += 1;
            return;
        };
        let Some(peer) = self.peers.get_mut(from) else { return };
        let came = frame.headers.number(CAME).map(|came| came as u32);
        match peer.sending.handle_report(now, &report, came) {
            Some(true) => self.prove(now, from),
            Some(false) => {}
            None => self.counters.unexpected += 1,
        }
    }

    fn handle_ack(&mut self, now: Instant, from: SocketAddr, frame: &FrameRef<'_>) {
        let Some(peer) = self.peers.get_mut(from) else { return };
        // Whoever writes the zero says what has arrived.
        let reports = frame.headers.find(MSG_ID).is_some_and(|digits| digits.starts_with(b"0"));
        let number = frame.headers.number(MSG_ID);
        if number.is_some_and(|number| peer.sending.handle_ack(now, number, frame.payload, reports)) {
            self.prove(now, from);
        } else {
            self.counters.unexpected += 1;
        }
    }

    fn handle_arrived(&mut self, now: Instant, from: SocketAddr, frame: &FrameRef<'_>) {
        let Some(arrived) = Arrived::parse(frame) else {
            self.counters.malformed += 1;
            return;
        };
        let Some(peer) = self.peers.get_mut(from) else { return };
        if peer.sending.handle_arrived(now, &arrived) {
            self.prove(now, from);
        } else {
            self.counters.unexpected += 1;
        }
    }

    fn handle_refusal(&mut self, from: SocketAddr, frame: &FrameRef<'_>) {
        // An error is never answered (case 75).
        if let (Some((id, code)), Some(peer)) = (parse_refusal(frame), self.peers.get_mut(from)) {
            peer.sending.handle_refusal(id, &code);
        }
    }

    /// Returns true if an ERR refuses a frame that waits for its acknowledgement, which is then
    /// over.
    fn is_refused(&mut self, now: Instant, from: SocketAddr, frame: &FrameRef<'_>) -> bool {
        let (Some(msg_id), Some(peer)) = (frame.headers.number(MSG_ID), self.peers.get_mut(from)) else {
            return false;
        };
        peer.sending.handle_refused(now, msg_id, || code_of(frame))
    }

    fn handle_challenge(&mut self, now: Instant, from: SocketAddr, frame: &FrameRef<'_>) {
        let Some(pong) = answer_challenge(frame) else {
            self.counters.malformed += 1;
            return;
        };
        if let Some(peer) = self.peers.get_mut(from) {
            let _ = peer.push_small(now, pong);
        }
    }

    fn handle_proof(&mut self, now: Instant, from: SocketAddr, frame: &FrameRef<'_>) {
        let Some(peer) = self.peers.get_mut(from) else { return };
        let of_ping = peer.pings.handle_pong(now, frame.payload);
        if of_ping || self.challenges.is_answered(now, from, frame.payload) {
            self.prove(now, from);
        } else {
            self.counters.unexpected += 1;
        }
    }

    fn handle_fragment(&mut self, now: Instant, from: SocketAddr, frame: &FrameRef<'_>) {
        let Some(fragment) = Fragment::parse(frame.headers) else {
            self.counters.malformed += 1;
            return;
        };
        let before = self.budgets.used().reserved;
        let mut got = self.take_fragment(now, from, frame, fragment);
        while got == Some(Got::Full) && self.make_room_for_stranger(now, from) {
            got = self.take_fragment(now, from, frame, fragment);
        }
        match got {
            None | Some(Got::Kept | Got::Complete(_)) => {}
            Some(Got::Refused | Got::Full) => self.counters.refused += 1,
            Some(Got::Waits) => {
                self.counters.refused += 1;
                self.admit_waiting(now);
            }
            Some(Got::Message(message)) => {
                let crc = acknowledged_crc(&message);
                let reserved = fragment.wants_reports;
                let wanted = self.receive(now, from, message, crc, reserved);
                if let (Some(wanted), Some(peer)) = (wanted, self.peers.get_mut(from)) {
                    peer.receiving.on_wanted(fragment.id, wanted);
                }
            }
        }
        if self.budgets.used().reserved < before && !self.waiting.is_empty() {
            self.admit_waiting(now);
        }
    }

    fn take_fragment(
        &mut self,
        now: Instant,
        from: SocketAddr,
        frame: &FrameRef<'_>,
        fragment: Fragment,
    ) -> Option<Got> {
        self.with_scope(now, from, |peer, scope| {
            let got = peer.receiving.handle_fragment(now, frame, fragment, scope);
            if let Got::Complete(Some(wanted)) = &got
                && let Some(answer) = peer.receiving.seen.answer(*wanted)
            {
                let _ = peer.push_small(now, answer);
            }
            got
        })
    }

    /// Hands a whole frame on, once. Returns the acknowledgement that it asks for. `reserved`:
    /// there is room for it.
    pub(super) fn receive(
        &mut self,
        now: Instant,
        from: SocketAddr,
        frame: FrameBytes,
        crc: u32,
        reserved: bool,
    ) -> Option<Acknowledgement> {
        let peer = self.peers.get_mut(from)?;
        let is_stranger = peer.standing != Standing::Known;
        let budget = self.budgets.get(peer.standing);
        let (all, own) = (self.inbox.amount(is_stranger), self.inbox.held(from));
        let role = CallRole::of(&frame.as_ref());
        let is_of_call = matches!(role, Some(CallRole::Reply(_) | CallRole::Cancel(_)));
        // What cannot be kept is not acknowledged either, and comes again. Replies are taken at
        // once, and need no room among what waits for the application.
        let full = match is_of_call {
            true => self.inbox.is_full_of_calls(),
            false => !reserved && !budget.admits_frame(all, own, frame.memory()),
        };
        let is_answer = matches!(frame.typ, FrameType::Ack | FrameType::Err) && !is_of_call;
        let asks = frame.flags.contains(Flags::REQ_ACK) && !is_answer;
        let wanted = Acknowledgement::of(frame.headers(), crc).filter(|_| asks);
        let sight = wanted.map_or(Sight::New, |wanted| peer.receiving.seen.peek(wanted));
        if sight != Sight::New {
            self.counters.duplicates += 1;
            if let Some(answer) = wanted.and_then(|wanted| peer.receiving.seen.answer(wanted)) {
                // If there is no room for it, the peer asks again.
                let _ = peer.push_small(now, answer);
            }
            if sight == Sight::Pending
                && let Some(Place::Ordered(order)) = Place::of(&frame, wanted)
            {
                self.receive_again(now, from, order);
            }
            return wanted;
        }
        // Whoever waits for a reply waits for no other frame.
        let place = Place::of(&frame, wanted).filter(|_| !is_of_call);
        if frame.payload.len() > self.config.limits.message_bytes_max {
            self.counters.refused += 1;
            if let Some(Place::Ordered(order)) = place {
                self.pass_over(now, from, order);
            }
            if let Some(wanted) = wanted {
                let reason = format!("more than {} bytes", self.config.limits.message_bytes_max);
                if let Some(peer) = self.peers.get_mut(from) {
                    peer.receiving.seen.receive(now, wanted);
                }
                self.refuse(now, from, wanted, ErrorCode::TooLarge, &reason);
            }
            return None;
        }
        match (place, wanted) {
            (Some(Place::Sequenced { channel, number }), _) => {
                self.receive_state(now, from, frame, (channel, number), reserved);
                return None;
            }
            (Some(Place::Ordered(order)), Some(acknowledgement)) => {
                return self.receive_ordered(now, from, Came { frame, acknowledgement }, order);
            }
            _ => {}
        }
        if full {
            self.counters.refused += 1;
            return None;
        }
        if let Some(wanted) = wanted {
            peer.receiving.seen.receive(now, wanted);
        }
        self.note_arrival(from, frame.typ);
        if is_of_call {
            self.inbox.push_of_call(from, is_stranger, frame, wanted);
        } else {
            self.inbox.push(from, is_stranger, frame, wanted);
        }
        wanted
    }
}
