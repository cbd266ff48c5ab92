//! What leaves, and what time does.

use super::{Ack, Ending, Event, Session, State};
use crate::cnp::config::{Carrier, SessionConfig};
use crate::cnp::control::{ACK, ACK_BEFORE_LEN, CONTROL_LEN, DISCONNECT, GAP, HOLD};
use crate::cnp::header::HEAD_BYTES;
use crate::cnp::packet::{ErrorCode, PacketType, append};
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

    /// Appends one packet that fits, if there is one.
    pub(super) fn append_next(&mut self, now: Instant, out: &mut Vec<u8>, room: usize) -> bool {
        if self.control.front().is_some_and(|packet| packet.len() <= room)
            && let Some(packet) = self.control.pop_front()
        {
            out.extend_from_slice(&packet);
            return true;
        }
        let Some(channel) = self.channel.as_mut().filter(|_| self.state != State::SynReceived) else {
            return false;
        };
        let control_fits = HEAD_BYTES + CONTROL_LEN <= room;
        let disconnects = Self::disconnects(self.config.carrier);
        if control_fits && let Some(Ack { seq, number, gap }) = channel.acks.pop_front() {
            if !gap && self.config.carrier == Carrier::Datagrams && channel.agreed.names_before() {
                let mut payload = [0; ACK_BEFORE_LEN];
                let before = channel.receiver.before(number).to_be_bytes();
                payload.iter_mut().zip(ACK.iter().chain(&before)).for_each(|(to, from)| *to = *from);
                append(out, PacketType::Ack.byte(), seq, number, &channel.checksum, &payload);
                return true;
            }
            let says = if gap { GAP } else { ACK };
            append(out, PacketType::Ack.byte(), seq, number, &channel.checksum, says);
            return true;
        }
        if control_fits && std::mem::take(&mut channel.tells_handled) {
            let count = channel.receiver.handled_below().to_be_bytes();
            append(out, PacketType::Handled.byte(), Seq(0), 0, &channel.checksum, &count);
            return true;
        }
        if !matches!(self.state, State::Open | State::Closing { .. }) {
            return false;
        }
        if control_fits && channel.sender.poll_question(now) {
            append(out, PacketType::Handled.byte(), Seq(0), 0, &channel.checksum, b"");
            return true;
        }
        if control_fits && let Some(sign) = channel.sign.take() {
            append(out, PacketType::KeepAlive.byte(), Seq(0), 0, &channel.checksum, sign);
            return true;
        }
        if let Some(data) = channel.sender.poll_packet(now, room) {
            let typ = match data.is_last {
                // A client has said `operation_mode`, and so its data are what they always were.
                true if channel.agreed.later && self.is_server => PacketType::KeepAlive,
                true => PacketType::Data,
                false => PacketType::Fragment,
            };
            append(out, typ.byte(), Seq::of(data.number), data.number, &channel.checksum, &data.payload);
            return true;
        }
        if let State::Closing { sends, again_at } = &mut self.state
            && control_fits
            && *again_at <= now
            && *sends < disconnects
        {
            let number = channel.sender.next();
            append(
                out,
                PacketType::Disconnect.byte(),
                Seq::of(number),
                number,
                &channel.checksum,
                DISCONNECT,
            );
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

    /// What happened next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] is to be called, whatever happens before.
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        let of_state = match self.state {
            State::SynSent { again_at, .. } => again_at,
            State::Closing { again_at, .. } => Some(again_at),
            State::Lingering { until } => return Some(until),
            State::Over => return None,
            State::Listening | State::SynReceived | State::Open => None,
        };
        let handshake = self.in_handshake().then_some(self.deadline);
        let confirm = self.unconfirmed.as_ref().map(|(_, again_at)| *again_at);
        let gone = self.gone_at();
        let keep_alive = self.keep_alive_at();
        let channel = self.channel.as_mut().filter(|_| handshake.is_none());
        let (hold, sender) =
            channel.map_or((None, None), |channel| (channel.hold_at, channel.sender.poll_timeout()));
        [of_state, handshake, confirm, gone, keep_alive, hold, sender].into_iter().flatten().min()
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
            if self.state != State::Listening {
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
        if !matches!(self.state, State::Open | State::Closing { .. }) {
            return;
        }
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
}
