//! What leaves, and what time does.

use super::{Ack, AckSays, Channel, Ending, Event, Quiet, Session, State};
use crate::cnp::config::{Carrier, SessionConfig};
use crate::cnp::control::{ACK, ACK_BEFORE_LEN, CONTROL_LEN, DISCONNECT, GAP, HOLD, NACK_PAYLOAD};
use crate::cnp::generation::NACK;
use crate::cnp::header::{HEAD_BYTES, Layout};
use crate::cnp::packet::{ErrorCode, MessageKind, PacketType, append, append_marked};
use crate::cnp::sender::Outgoing;
use crate::cnp::seq::Seq;
use crate::rtt::Rtt;
use std::time::Instant;

impl Session {
    /// Appends what is to leave now, in one call of the operating system; false if there is
    /// nothing. So many bytes at most, but one packet at least; on datagrams that is one datagram,
    /// whatever `bytes_max` says.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut Vec<u8>, bytes_max: usize) -> bool {
        let begin = out.len();
        let bytes_max = match (self.config.carrier, &self.channel) {
            (Carrier::Stream, _) => bytes_max,
            (Carrier::Datagrams, None) => Carrier::DATAGRAM,
            (Carrier::Datagrams, Some(channel)) => SessionConfig::datagram(channel.agreed.packet_max),
        };
        let mut packets = 0;
        if let Some((ack, _)) = &self.unconfirmed {
            out.extend_from_slice(ack);
        }
        if let Some(name) = self.name(now) {
            out.extend_from_slice(&name);
        }
        let front = out.len();
        loop {
            let used = out.len() - begin;
            let room = if packets == 0 { usize::MAX } else { bytes_max.saturating_sub(used) };
            if !self.append_next(now, out, room) {
                break;
            }
            packets += 1;
            if !self.joins_packets() {
                break;
            }
        }
        if packets == 0 {
            let Some((_, again_at)) = self.unconfirmed.as_mut().filter(|(_, at)| *at <= now) else {
                out.truncate(begin);
                return false;
            };
            *again_at = now + Rtt::TIMEOUT_FIRST;
            packets = 1;
        } else if out.len() > front
            && let Some((_, again_at)) = &mut self.unconfirmed
        {
            *again_at = now + Rtt::TIMEOUT_FIRST;
        }
        self.counters.packets_sent += packets;
        self.sent_at = now;
        true
    }

    /// Pauses behind packets that nothing answers, in a row, before data leave all the same.
    const PAUSES_MAX: u32 = 4;

    /// Appends one packet that fits, if there is one.
    pub(super) fn append_next(&mut self, now: Instant, out: &mut Vec<u8>, room: usize) -> bool {
        if self.control.front().is_some_and(|packet| packet.len() <= room)
            && let Some(packet) = self.control.pop_front()
        {
            out.extend_from_slice(&packet);
            self.pause_after_handshake(now);
            return true;
        }
        let Some(channel) = self.channel.as_mut().filter(|_| self.state != State::SynReceived) else {
            return false;
        };
        let control_fits = HEAD_BYTES + CONTROL_LEN <= room;
        let disconnects = Self::disconnects(self.config.carrier);
        let one_by_one = channel.goes_one_by_one() && self.config.carrier == Carrier::Stream;
        let acks_wait = self.acks_at.is_some_and(|at| at > now) && channel.sender.is_under_way();
        if control_fits
            && !acks_wait
            && let Some(ack) = channel.acks.pop_front()
        {
            channel.acks_of_received -= usize::from(ack.says == AckSays::Came);
            append_ack(out, ack, channel, self.config.carrier);
            if one_by_one {
                self.pause(now);
            }
            return true;
        }
        if control_fits && std::mem::take(&mut channel.tells_handled) {
            let count = channel.receiver.handled_below().to_be_bytes();
            channel.append(out, PacketType::Handled, Seq(0), 0, &count);
            return true;
        }
        if !matches!(self.state, State::Open | State::Closing { .. }) {
            return false;
        }
        if control_fits && channel.sender.poll_question(now) {
            channel.append(out, PacketType::Handled, Seq(0), 0, b"");
            return true;
        }
        if control_fits && let Some(sign) = channel.sign.take() {
            channel.append(out, PacketType::KeepAlive, Seq(0), 0, sign);
            return true;
        }
        if self.quiet.is_some_and(|quiet| quiet.until > now) {
            return false;
        }
        self.quiet = None;
        if let Some(data) = channel.sender.poll_packet(now, room) {
            append_data(out, &data, channel);
            self.acks_at = one_by_one.then(|| now + self.config.unanswered_pause);
            return true;
        }
        if let State::Closing { sends, again_at } = &mut self.state
            && control_fits
            && *again_at <= now
            && *sends < disconnects
        {
            let number = channel.sender.next();
            let counts = channel.agreed.characters.is_none();
            let seq = if counts { Seq::of(number) } else { Seq(0) };
            channel.append(out, PacketType::Disconnect, seq, number, DISCONNECT);
            *again_at = now
                + match self.config.carrier {
                    Carrier::Stream => Self::DISCONNECT_WAIT,
                    Carrier::Datagrams => channel.sender.flow().rtt.timeout_after(*sends),
                };
            *sends += 1;
            return true;
        }
        false
    }

    /// Nothing answers the end of the handshake: data behind it wait until the peer has read it.
    fn pause_after_handshake(&mut self, now: Instant) {
        let waits = |channel: &Channel| channel.reads_once() && self.config.carrier == Carrier::Stream;
        if self.state == State::Open && !self.is_server && self.channel.as_ref().is_some_and(waits) {
            self.pause(now);
        }
    }

    /// Data wait until the peer has read what left now; but not for ever, if that goes on.
    fn pause(&mut self, now: Instant) {
        let pause = self.config.unanswered_pause;
        let quiet = self.quiet.filter(|quiet| quiet.until > now);
        let Quiet { since, until } = quiet.unwrap_or(Quiet { since: now, until: now });
        let until = until.max((now + pause).min(since + pause * Self::PAUSES_MAX));
        self.quiet = Some(Quiet { since, until });
    }

    /// What happened next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] is to be called, whatever happens before.
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        let of_state = match self.state {
            State::SynSent { again_at, .. } => again_at,
            State::Closing { again_at, .. } => {
                Some(self.quiet.map_or(again_at, |quiet| quiet.until.max(again_at)))
            }
            State::Lingering { until } => return Some(until),
            State::Over => return None,
            State::Listening | State::SynReceived | State::Open => None,
        };
        let handshake = self.in_handshake().then_some(self.deadline);
        let confirm = self.unconfirmed.as_ref().map(|(_, again_at)| *again_at);
        let gone = self.gone_at();
        let keep_alive = self.keep_alive_at();
        let channel = self.channel.as_mut().filter(|_| handshake.is_none());
        let (hold, sender, silence) = channel.map_or((None, None, None), |channel| {
            let silence = channel.fragment_at.map(|at| at + Self::MESSAGE_SILENCE);
            (channel.hold_at, channel.sender.poll_timeout(), silence)
        });
        let quiet = self.quiet.map(|quiet| quiet.until);
        let times =
            [of_state, handshake, confirm, gone, keep_alive, hold, sender, silence, quiet, self.acks_at];
        times.into_iter().flatten().min()
    }

    pub(super) fn keep_alive_at(&self) -> Option<Instant> {
        let interval = self.channel.as_ref()?.agreed.keep_alive.filter(|_| self.state == State::Open)?;
        Some(self.sent_at + interval)
    }

    /// When the peer is taken for gone unless it is heard before.
    pub(super) fn gone_at(&self) -> Option<Instant> {
        let channel =
            self.channel.as_ref().filter(|_| matches!(self.state, State::Open | State::Closing { .. }))?;
        let silence = match (channel.agreed.keep_alive, self.config.carrier) {
            (Some(interval), _) => Some(interval * 3),
            // Nothing else would ever end it.
            (None, Carrier::Datagrams) => Some(self.config.gone_after),
            (None, Carrier::Stream) => None,
        };
        let silent = silence.filter(|_| self.wants_input()).map(|silence| self.heard_at + silence);
        let waiting =
            channel.sender.waiting_since().map(|since| since.max(self.heard_at) + self.config.gone_after);
        let confirm = self.unconfirmed.as_ref().map(|_| self.heard_at + self.config.gone_after);
        [silent, waiting, confirm].into_iter().flatten().min()
    }

    /// Its time has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.in_handshake() && now >= self.deadline {
            // A server that has not answered may be a program that would take an error for an ACK.
            if self.state == State::SynReceived {
                self.say_error(ErrorCode::Handshake, "the handshake takes too long");
            }
            return self.end(Ending::HandshakeTimeout);
        }
        match self.state {
            State::SynSent { again_at: Some(at), .. } if at <= now => self.send_syn(now),
            State::Lingering { until } if until <= now => self.state = State::Over,
            State::Closing { sends, again_at }
                if sends >= Self::disconnects(self.config.carrier) && again_at <= now =>
            {
                // Everything was acknowledged; only the farewell was not.
                self.end(Ending::Closed);
            }
            _ => {}
        }
        self.quiet = self.quiet.filter(|quiet| quiet.until > now);
        self.acks_at = self.acks_at.filter(|at| *at > now);
        if !matches!(self.state, State::Open | State::Closing { .. }) {
            return;
        }
        self.look_for_silence(now);
        if self.gone_at().is_some_and(|at| at <= now) {
            return self.end(Ending::Gone);
        }
        if self.keep_alive_at().is_some_and(|at| at <= now) {
            self.sign(b"");
        }
        let Some(channel) = &mut self.channel else { return };
        if channel.hold_at.is_some_and(|at| at <= now) {
            channel.hold_at = Some(now + Self::HOLD);
            self.sign(HOLD);
        }
        let Some(channel) = &mut self.channel else { return };
        if channel.sender.handle_timeout(now).is_err() {
            self.end(Ending::Gone);
        }
    }

    /// A message whose end nothing marks is whole when nothing more of it has come for a while.
    /// Time in which nothing is read is no silence.
    fn look_for_silence(&mut self, now: Instant) {
        let reads = self.wants_input();
        let Some(channel) = &mut self.channel else { return };
        match channel.fragment_at {
            Some(at) if at + Self::MESSAGE_SILENCE > now => {}
            Some(_) if !reads && !self.closes => channel.fragment_at = Some(now),
            Some(_) => {
                self.complete_message();
                self.close_when_done(now);
            }
            None => {}
        }
    }
}

fn append_ack(out: &mut Vec<u8>, ack: Ack, channel: &Channel, carrier: Carrier) {
    let Ack { seq, number, says } = ack;
    match says {
        AckSays::Came if carrier == Carrier::Datagrams && channel.agreed.names_before() => {
            let mut payload = [0; ACK_BEFORE_LEN];
            let before = channel.receiver.before(number).to_be_bytes();
            payload.iter_mut().zip(ACK.iter().chain(&before)).for_each(|(to, from)| *to = *from);
            channel.append(out, PacketType::Ack, seq, number, &payload);
        }
        AckSays::Came => channel.append(out, PacketType::Ack, seq, number, ACK),
        AckSays::Gap => channel.append(out, PacketType::Ack, seq, number, GAP),
        AckSays::Damaged => append_marked(out, false, NACK, seq, NACK_PAYLOAD),
    }
}

fn append_data(out: &mut Vec<u8>, data: &Outgoing, channel: &Channel) {
    let typ = match data.last {
        None => PacketType::Fragment,
        Some(MessageKind::Plain) => PacketType::Data,
        Some(MessageKind::Call) => PacketType::Call,
    };
    let generation = channel.data_type.map_or(channel.generation, |data_type| data_type.next(data.before));
    // Every generation has a byte for both.
    let byte = generation.byte(typ).unwrap_or(typ.byte());
    let counts = channel.agreed.characters.is_none();
    let seq = Seq::of(if counts { data.number } else { data.index });
    match generation.layout() {
        Layout::Plain => append(out, byte, seq, data.number, &channel.checksum, &data.payload),
        Layout::Marked => append_marked(out, data.last.is_some(), byte, seq, &data.payload),
    }
}
