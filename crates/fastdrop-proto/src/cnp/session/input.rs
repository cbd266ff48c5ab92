//! What comes: the handshake's packets, data, acknowledgements, signs of life, and the end.

use super::{Ack, AckSays, Channel, Ending, Event, Quiet, Session, State};
use crate::cnp::checksum::Checksum;
use crate::cnp::config::Carrier;
use crate::cnp::control::{ACK, ALIVE, GAP, HOLD, ROOM};
use crate::cnp::cut::characters;
use crate::cnp::generation::{CHANNEL, Generation, Meaning};
use crate::cnp::handshake::{
    HandshakeError, Syn, read_ack, read_syn_ack, write_ack, write_refusal, write_unauthorized,
};
use crate::cnp::header::{Head, Layout, PacketError};
use crate::cnp::numbering::Context;
use crate::cnp::packet::{ErrorCode, MessageKind, PacketType, PeerError};
use crate::cnp::params::Protocol;
use crate::cnp::per_message::Place;
use crate::cnp::receiver::{PacketId, Taken};
use crate::cnp::seq::Seq;
use crate::rtt::Rtt;
use std::time::Instant;

/// A packet of a handshake that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// This client's ACK.
    Ack,
    /// Somebody's ACK with another id.
    OtherSession,
    /// One that means nothing any more.
    Nothing,
}

/// The place of data in their direction and in their message.
#[derive(Debug, Clone, Copy)]
struct Position {
    number: u64,
    /// They are the first of a message, and have this number.
    begins: Option<u64>,
    last: Option<MessageKind>,
}

impl Channel {
    /// Reports whether what has the type of a keep-alive is data of the second generation: from a
    /// peer that has agreed to no keep-alives. Such data may be empty where others were not.
    fn takes_for_data(&self, payload: &[u8], carrier: Carrier) -> bool {
        carrier == Carrier::Stream
            && self.agreed.keep_alive.is_none()
            && match self.generation {
                Generation::Second => true,
                Generation::First => !payload.is_empty(),
                _ => false,
            }
    }
}

impl Session {
    /// A datagram came.
    pub fn handle_datagram(&mut self, now: Instant, mut datagram: &[u8]) {
        while let Ok(Some(head)) = Head::parse(datagram, self.payload_max()) {
            let Some((packet, rest)) = datagram.split_at_checked(head.packet_len()) else { break };
            let payload = head.payload(packet);
            if !self.in_handshake() && self.handshake_again(&head, payload) == Some(Again::OtherSession) {
                // So is what comes with it.
                return;
            }
            self.handle_packet(now, &head, payload);
            datagram = rest;
        }
        if !datagram.is_empty() {
            self.counters.checksum_failures += 1;
        }
    }

    /// What came from a stream is no packet.
    pub fn handle_bad_packet(&mut self, error: &PacketError) {
        let PacketError::TooLarge { .. } = error;
        let code = if self.in_handshake() { ErrorCode::Handshake } else { ErrorCode::TooLarge };
        self.fail(code, &error.to_string());
    }

    /// The system says that nobody takes datagrams where they go. It is believed in the handshake
    /// alone: later somebody may come back.
    pub fn handle_unreachable(&mut self) {
        if matches!(self.state, State::SynSent { .. }) {
            self.end(Ending::Unreachable);
        }
    }

    /// The stream has ended, or broken.
    pub fn handle_end(&mut self) {
        // A message whose end nothing marks: what came of it is all that comes.
        self.complete_message();
        self.on_end();
    }

    /// TLS, which carries the packets, has failed.
    pub fn handle_tls_failure(&mut self, words: &str) {
        self.drop_message();
        self.end(Ending::Tls(words.into()));
    }

    /// The stream has ended without the word of TLS that nothing more comes: what is not complete
    /// was cut, maybe by somebody on the way.
    pub fn handle_truncation(&mut self) {
        self.drop_message();
        self.on_end();
    }

    /// Drops what came of a message that is not complete.
    fn drop_message(&mut self) {
        if let Some(channel) = &mut self.channel {
            channel.receiver.end();
        }
    }

    fn on_end(&mut self) {
        match self.state {
            State::Over => {}
            State::Lingering { .. } => self.state = State::Over,
            // The client's close is its confirmation, and whoever asked has everything
            // acknowledged.
            State::Closing { .. } => self.end(Ending::Closed),
            // It has taken leave without waiting for what it had sent.
            _ if self.channel.as_ref().is_some_and(|channel| channel.farewell.is_some()) => {
                self.end(Ending::PeerClosed);
            }
            _ => self.end(Ending::ConnectionLost),
        }
    }

    /// A packet came, with as many bytes of payload as its header says.
    pub fn handle_packet(&mut self, now: Instant, head: &Head, payload: &[u8]) {
        match self.state {
            State::SynSent { .. } => self.handle_syn_ack(now, head, payload),
            State::Listening => self.handle_syn(now, head, payload),
            State::SynReceived => self.handle_ack_of_handshake(now, head, payload),
            State::Open | State::Closing { .. } | State::Lingering { .. } => {
                self.handle_in_session(now, head, payload);
            }
            State::Over => {}
        }
    }

    /// Whether a packet of the handshake is undamaged; counts it.
    pub(super) fn is_good(&mut self, now: Instant, head: &Head, payload: &[u8]) -> bool {
        let good = Checksum::Md5.verify(head, 0, payload);
        self.count(now, good);
        good
    }

    pub(super) fn count(&mut self, now: Instant, good: bool) {
        if good {
            self.counters.packets_received += 1;
            self.heard_at = now;
        } else {
            self.counters.checksum_failures += 1;
        }
    }

    pub(super) fn handle_syn(&mut self, now: Instant, head: &Head, payload: &[u8]) {
        if !self.is_good(now, head, payload) {
            return;
        }
        let id = self.id.clone();
        if head.layout() == Layout::Marked && head.typ == CHANNEL {
            return;
        }
        match (Syn::parse(payload, head.layout()), id) {
            (Ok(syn), Some(id)) if head.typ == PacketType::Data.byte() => {
                if let Err(why) = syn.authorize(&self.config) {
                    self.push_handshake_as(head.layout(), PacketType::Ack, &write_unauthorized(&why));
                    return self.end(Ending::Unauthorized(why));
                }
                let (agreed, answer) = syn.answer(&self.config, id);
                self.channel = Some(Channel::new(now, agreed, &self.config));
                self.push_handshake(PacketType::Ack, &answer);
                self.state = State::SynReceived;
            }
            (syn, _) => {
                let why = syn.err().map_or_else(|| "not a SYN".into(), |error| error.to_string());
                self.push_handshake_as(head.layout(), PacketType::Ack, &write_refusal(&why));
                self.end(Ending::Protocol(why));
            }
        }
    }

    pub(super) fn handle_syn_ack(&mut self, now: Instant, head: &Head, payload: &[u8]) {
        if !self.is_good(now, head, payload) {
            return;
        }
        if head.layout() != self.config.syn_form.layout() {
            return self.end(Ending::Protocol("an answer with another header than was asked with".into()));
        }
        match PacketType::of(head.typ) {
            _ if head.layout() == Layout::Marked && head.typ == CHANNEL => return,
            Some(PacketType::Ack) => {}
            // A SYN-ACK whose type was damaged, which its checksum does not tell, is as good as
            // lost.
            Some(PacketType::Error) if payload.first() != Some(&b'{') => {
                return self.end(Ending::PeerError(PeerError::parse(payload)));
            }
            _ if self.config.carrier == Carrier::Datagrams => return,
            _ => return self.fail(ErrorCode::Handshake, "not a SYN-ACK"),
        }
        match read_syn_ack(payload, &self.config) {
            Ok(agreed) => {
                let ack = write_ack(&agreed.id);
                self.id = Some(agreed.id.clone());
                self.channel = Some(Channel::new(now, agreed, &self.config));
                self.push_handshake(PacketType::Error, &ack);
                if self.config.carrier == Carrier::Datagrams {
                    self.unconfirmed = self.control.pop_back().map(|packet| (packet, now));
                }
                self.open();
            }
            Err(HandshakeError::Refused(why)) => self.end(Ending::Refused(why)),
            Err(HandshakeError::Unauthorized(why)) => self.end(Ending::Unauthorized(why)),
            Err(HandshakeError::KnowsMore) => self.end(Ending::KnowsMore),
            Err(HandshakeError::Malformed(why)) => self.fail(ErrorCode::Handshake, &why),
        }
    }

    pub(super) fn handle_ack_of_handshake(&mut self, now: Instant, head: &Head, payload: &[u8]) {
        if !self.is_good(now, head, payload) {
            return;
        }
        if head.layout() == Layout::Marked && head.typ == CHANNEL {
            return;
        }
        let is_ack = [PacketType::Ack, PacketType::Error].map(PacketType::byte).contains(&head.typ);
        match read_ack(payload) {
            Ok(id) if is_ack && Some(&id) == self.id.as_ref() => self.open(),
            Ok(_) if is_ack => self.fail(ErrorCode::Session, "not the id of this session"),
            _ if head.typ == PacketType::Error.byte() => {
                self.end(Ending::PeerError(PeerError::parse(payload)))
            }
            _ => self.fail(ErrorCode::Handshake, "not the ACK of a handshake"),
        }
    }

    pub(super) fn handle_in_session(&mut self, now: Instant, head: &Head, payload: &[u8]) {
        match self.handshake_again(head, payload) {
            // The client does not know that it has arrived.
            Some(Again::Ack) => {
                self.count(now, true);
                return self.sign(ALIVE);
            }
            Some(Again::Nothing | Again::OtherSession) => return,
            None => {}
        }
        let Some(channel) = &mut self.channel else { return };
        // Nothing is learned from a damaged packet; of CRC-32C that is known when the number is.
        let by_payload = channel.checksum == Checksum::Md5;
        if by_payload && !channel.checksum.verify(head, 0, payload) {
            let nack = channel.generation.meaning(head.typ) == Some(Meaning::Is(PacketType::Data))
                && channel.generation == Generation::Fourth;
            if nack {
                self.push_ack(Ack { seq: head.seq, number: 0, says: AckSays::Damaged });
            }
            return self.count(now, false);
        }
        let mut typ = match channel.generation.meaning(head.typ) {
            Some(Meaning::Is(typ)) => Some(typ),
            Some(Meaning::Nack) => return self.handle_nack(now, head.seq),
            Some(Meaning::Ignored) => return self.count(now, true),
            None => None,
        };
        if typ == Some(PacketType::KeepAlive) && channel.takes_for_data(payload, self.config.carrier) {
            channel.generation = Generation::Second;
            typ = Some(PacketType::Data);
        }
        let is_agreed = match typ {
            Some(PacketType::Call) => channel.agreed.calls.is_some(),
            Some(PacketType::Connection | PacketType::Path) => channel.agreed.moves,
            _ => true,
        };
        typ = typ.filter(|_| is_agreed);
        let settled = channel.is_settled();
        let (sender, numbering) = (&channel.sender, &mut channel.numbering);
        let mut begins = None;
        let number = match typ {
            Some(PacketType::Data | PacketType::Fragment | PacketType::Call) => {
                let again = channel.last_data == Some(head.checksum) && !settled;
                let expected = channel.receiver.expected();
                match numbering.of_data(head.seq, Context { expected, again, settled }) {
                    Place::At(number) => Some(number),
                    Place::Begins(number) => {
                        begins = Some(number);
                        Some(number)
                    }
                    Place::Nowhere if by_payload => return self.count(now, true),
                    Place::Nowhere => None,
                    Place::TooLate => {
                        let why = "a message that went on after a second of silence";
                        return self.fail(ErrorCode::Timeout, why);
                    }
                }
            }
            Some(PacketType::Ack) => {
                let closing = matches!(self.state, State::Closing { .. });
                let base = if closing { sender.next() } else { sender.base() };
                if closing && channel.agreed.characters.is_some() {
                    Some(base)
                } else {
                    let oldest = Seq::of(sender.base_index());
                    numbering.of_ack(head.seq, base, oldest, |number| closing || sender.waits_for(number))
                }
            }
            Some(PacketType::Disconnect) if channel.agreed.counts() => {
                head.seq.nearest(channel.receiver.expected())
            }
            _ => Some(0),
        };
        let good = number.filter(|number| by_payload || channel.checksum.verify(head, *number, payload));
        self.count(now, good.is_some());
        let Some(number) = good else { return };
        // The server has this client's ACK, or it would say nothing.
        self.unconfirmed = None;
        match typ {
            Some(PacketType::Data | PacketType::Fragment | PacketType::Call) => {
                if begins.is_some() {
                    self.complete_message();
                }
                let is_last = self.is_last(head, payload, typ != Some(PacketType::Fragment));
                let is_call = typ == Some(PacketType::Call);
                let kind = if is_call { MessageKind::Call } else { MessageKind::Plain };
                let last = is_last.then_some(kind);
                self.handle_data(now, head, Position { number, begins, last }, payload);
            }
            Some(PacketType::Ack) => self.handle_ack(now, number, payload),
            Some(PacketType::Error) => self.end(Ending::PeerError(PeerError::parse(payload))),
            Some(PacketType::KeepAlive) => self.handle_keep_alive(now, head.seq, payload),
            Some(PacketType::Disconnect) => self.handle_disconnect(now, head.seq, number),
            Some(PacketType::Handled) => self.handle_handled(now, payload),
            Some(PacketType::Connection) => {}
            Some(PacketType::Path) => self.handle_path(payload),
            None => self.fail(ErrorCode::Malformed, "a packet of no known type"),
        }
    }

    /// Whether a packet of a handshake came again (datagrams), and which.
    pub(super) fn handshake_again(&self, head: &Head, payload: &[u8]) -> Option<Again> {
        let begins = head.seq == Seq(0) && payload.first() == Some(&b'{');
        if !begins || self.config.carrier == Carrier::Stream || !Checksum::Md5.verify(head, 0, payload) {
            return None;
        }
        match (PacketType::of(head.typ), self.is_server) {
            (Some(PacketType::Ack), false) => Some(Again::Nothing),
            // With another checksum, data with the bytes of a SYN are data.
            (Some(PacketType::Data), true) if self.syn.as_deref() == Some(payload) => {
                let md5 = self.channel.as_ref().is_some_and(|channel| channel.checksum == Checksum::Md5);
                md5.then_some(Again::Nothing)
            }
            (Some(PacketType::Ack | PacketType::Error), true) => {
                let id = read_ack(payload).ok()?;
                Some(if Some(&id) == self.id.as_ref() { Again::Ack } else { Again::OtherSession })
            }
            _ => None,
        }
    }

    /// Says whether data are the last of their message.
    fn is_last(&self, head: &Head, payload: &[u8], by_type: bool) -> bool {
        let fragment = self.channel.as_ref().and_then(|channel| channel.agreed.characters);
        match (head.is_last, fragment) {
            (Some(is_last), _) => is_last,
            (None, Some(max)) => characters(payload) < max,
            (None, None) => by_type,
        }
    }

    /// Takes what came of a message whose end nothing marks for all of it.
    pub(super) fn complete_message(&mut self) {
        let Some(channel) = &mut self.channel else { return };
        if channel.generation == Generation::Third && channel.receiver.is_within() {
            channel.receiver.complete();
            channel.numbering.on_silence();
            channel.fragment_at = None;
            self.hand_on();
        }
    }

    fn handle_data(&mut self, now: Instant, head: &Head, position: Position, payload: &[u8]) {
        let Position { number, begins, last } = position;
        let Some(channel) = &mut self.channel else { return };
        if matches!(self.state, State::Lingering { .. }) {
            return;
        }
        if payload.len() > channel.agreed.packet_max {
            return self.fail(ErrorCode::TooLarge, "more bytes in a packet than was agreed");
        }
        if last.is_none() && !channel.agreed.strict() && channel.agreed.characters.is_none() {
            return self.fail(ErrorCode::Malformed, "a fragment where none was agreed");
        }
        let packet = PacketId { seq: head.seq, number };
        match channel.receiver.handle_data(packet, last, payload) {
            Taken::New => {
                let within = channel.receiver.is_within();
                channel.numbering.on_taken(head.seq, begins, !within);
                channel.fragment_at = (within && channel.generation == Generation::Third).then_some(now);
                channel.last_data = Some(head.checksum);
                if !channel.receiver.has_room() || channel.withholds() {
                    channel.hold_at.get_or_insert(now + Self::HOLD);
                }
                if channel.receiver.acknowledges(number) {
                    self.push_ack(Ack { seq: head.seq, number, says: AckSays::Came });
                }
                self.hand_on();
                self.close_when_done(now);
            }
            Taken::Again => {
                self.counters.duplicates += 1;
                if channel.receiver.acknowledges(number) {
                    // What was said of it may have been lost.
                    channel.tells_handled |= channel.agreed.handled;
                    self.push_ack(Ack { seq: head.seq, number, says: AckSays::Came });
                } else {
                    self.sign(HOLD);
                }
            }
            Taken::BehindGap => {
                if let Some(before) = channel.receiver.acknowledged_below().checked_sub(1)
                    && before >= channel.numbering.base()
                {
                    let back = u16::try_from(number - before).unwrap_or(0);
                    let says = if channel.agreed.strict() { AckSays::Gap } else { AckSays::Came };
                    let seq = Seq(head.seq.0.wrapping_sub(back));
                    self.push_ack(Ack { seq, number: before, says });
                }
            }
            Taken::NoRoom => {
                self.sign(HOLD);
                if let Some(channel) = &mut self.channel {
                    channel.hold_at = Some(now + Self::HOLD);
                }
            }
            Taken::Dropped => {}
            Taken::TooLarge => self.fail(ErrorCode::TooLarge, "a longer message than is taken here"),
        }
    }

    pub(super) fn push_ack(&mut self, ack: Ack) {
        let Some(channel) = &mut self.channel else { return };
        // Between ours, an acknowledgement of Go-Back-N says what the ones before it say.
        let joins = channel.joins_acks();
        let full = channel.acks.len() >= 2 * channel.acks_max();
        match channel.acks.back_mut() {
            Some(last) if joins && last.says == ack.says && last.number < ack.number => *last = ack,
            // What comes again later is acknowledged then.
            _ if full => {}
            _ => {
                channel.acks_of_received += usize::from(ack.says == AckSays::Came);
                channel.acks.push_back(ack);
            }
        }
    }

    pub(super) fn hand_on(&mut self) {
        let Some(channel) = &mut self.channel else { return };
        while let Some((kind, message)) = channel.receiver.poll_message() {
            self.counters.messages_received += 1;
            self.events.push_back(match kind {
                MessageKind::Plain => Event::Message(message),
                MessageKind::Call => Event::Call(message),
            });
        }
    }

    pub(super) fn handle_ack(&mut self, now: Instant, number: u64, payload: &[u8]) {
        let Some(channel) = &mut self.channel else { return };
        let says_gap = payload == GAP && channel.agreed.protocol == Some(Protocol::GoBackN);
        let before = match payload.strip_prefix(ACK) {
            Some([]) => Some(0),
            Some(rest) if channel.agreed.names_before() => rest.try_into().ok().map(u64::from_be_bytes),
            _ => None,
        };
        let by_payload = channel.agreed.strict() || self.config.carrier == Carrier::Datagrams;
        if by_payload && before.is_none() && !says_gap {
            return;
        }
        if matches!(self.state, State::Closing { .. }) {
            if !channel.agreed.strict() || number == channel.sender.next() {
                self.end(Ending::Closed);
            }
            return;
        }
        let sends = channel.sender.sends(number);
        let answered = match &mut channel.data_type {
            Some(data_type) if sends > 0 => {
                let answered = data_type.on_acknowledged(sends);
                channel.generation = data_type.next(0);
                if data_type.is_sure() {
                    channel.sender.set_window(channel.agreed.window);
                }
                answered
            }
            _ => sends,
        };
        if channel.agreed.characters.is_some() && answered > 1 {
            // Numbers do not tell a second acknowledgement from that of the next message: it has
            // its time to come while nothing waits for one.
            let since = channel.sender.first_sent_at().unwrap_or(now);
            let time = (now.saturating_duration_since(since) * 2).max(Rtt::TIMEOUT_FIRST);
            // The peer is not to be taken for gone meanwhile.
            let time = time.min(self.config.gone_after / 2);
            self.quiet = Some(Quiet { since: now, until: now + time });
        } else {
            channel.numbering.on_acknowledged(answered);
        }
        match says_gap && channel.agreed.strict() {
            true => channel.sender.on_gap(now, number),
            false => channel.sender.on_ack(now, number, before.unwrap_or(0)),
        }
        self.on_acknowledged(now);
    }

    /// Takes the count of what the peer has handled, or the question for that of this end.
    pub(super) fn handle_handled(&mut self, now: Instant, payload: &[u8]) {
        let Some(channel) = self.channel.as_mut().filter(|channel| channel.agreed.handled) else {
            return self.fail(ErrorCode::Malformed, "a packet of no known type");
        };
        if payload.is_empty() {
            channel.tells_handled = true;
            return;
        }
        let Ok(count) = payload.try_into().map(u64::from_be_bytes) else {
            return self.fail(ErrorCode::Malformed, "a count that is none");
        };
        channel.sender.on_handled(now, count);
        self.on_acknowledged(now);
    }

    /// The peer asks for the packet with this number once more.
    fn handle_nack(&mut self, now: Instant, seq: Seq) {
        self.count(now, true);
        let Some(channel) = &mut self.channel else { return };
        let number = channel.sender.base();
        if seq == Seq::of(channel.sender.base_index()) && channel.sender.on_nack(now, number).is_err() {
            self.end(Ending::Gone);
        }
    }

    fn on_acknowledged(&mut self, now: Instant) {
        let Some(channel) = &mut self.channel else { return };
        while let Some(id) = channel.sender.poll_acknowledged() {
            self.counters.messages_acknowledged += 1;
            self.events.push_back(Event::Acknowledged(id));
        }
        self.close_when_done(now);
    }

    pub(super) fn handle_keep_alive(&mut self, now: Instant, seq: Seq, payload: &[u8]) {
        let Some(channel) = &mut self.channel else { return };
        if channel.agreed.keep_alive.is_none() {
            // A peer of the field: there everything is acknowledged. By UDP that could be taken for
            // the acknowledgement of data. While a message is not acknowledged, this could be taken
            // for its acknowledgement.
            if self.config.carrier == Carrier::Stream && !channel.agreed.strict() && !channel.withholds() {
                self.push_ack(Ack { seq, number: 0, says: AckSays::Came });
            }
            return;
        }
        match payload {
            ALIVE => {}
            HOLD => channel.sender.on_hold(),
            ROOM => channel.sender.on_room(now),
            _ => self.sign(ALIVE),
        }
    }

    pub(super) fn handle_disconnect(&mut self, now: Instant, seq: Seq, number: u64) {
        self.complete_message();
        let Some(channel) = &mut self.channel else { return };
        if channel.agreed.counts() && number != channel.receiver.expected() {
            return;
        }
        if channel.receiver.has_unhandled() && !matches!(self.state, State::Lingering { .. }) {
            // Its acknowledgement would say that everything before it has been handled.
            channel.farewell = Some(PacketId { seq, number });
            return;
        }
        self.on_disconnect(now, seq, number);
    }

    pub(super) fn on_disconnect(&mut self, now: Instant, seq: Seq, number: u64) {
        let Some(channel) = &mut self.channel else { return };
        let timeout = channel.sender.flow().rtt.timeout_after(0);
        self.push_ack(Ack { seq, number, says: AckSays::Came });
        if !matches!(self.state, State::Lingering { .. }) {
            self.end(if matches!(self.state, State::Closing { .. }) {
                Ending::Closed
            } else {
                Ending::PeerClosed
            });
            // On a stream the acknowledgement is not lost.
            if self.config.carrier == Carrier::Datagrams {
                self.state = State::Lingering { until: now + Self::LINGER_MIN.max(timeout * 3) };
            }
        }
    }
}
