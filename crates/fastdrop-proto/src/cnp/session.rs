//! One end of one session, whatever carries it (docs/protocol/cnp.md, section 3).

use super::acceptor::Handshake;
use super::checksum::Checksum;
use super::config::{Carrier, SessionConfig};
use super::handshake::{
    Agreed, HANDSHAKE_PAYLOAD_MAX, HandshakeError, Protocol, SessionId, Syn, read_ack, read_syn_ack,
    write_ack, write_refusal, write_syn,
};
use super::numbering::Numbering;
use super::packet::{
    ACK, CONTROL_PAYLOAD_MAX, DISCONNECT, ErrorCode, GAP, HEAD_BYTES, Head, PacketError, PacketType,
    PeerError, append,
};
use super::receiver::{Receiver, Taken};
use super::repeat;
use super::sender::{SendId, Sender, TooLarge};
use super::seq::Seq;
use crate::congestion::{Controller, Flow, Model, Unbounded};
use crate::rtt::Rtt;
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// No acknowledgement, sign of life or request has a longer payload.
const CONTROL_LEN: usize = 11;
const ALIVE: &[u8] = b"alive";
const HOLD: &[u8] = b"hold";
const ROOM: &[u8] = b"room";

/// What happens to a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The handshake is over: [`Session::agreed`] says what was agreed on.
    Opened,
    /// A message came. It counts until [`Session::handle_taken`] says that the application has it.
    Message(Bytes),
    /// A message that was sent has been acknowledged.
    Acknowledged(SendId),
    /// The session is over. What was not acknowledged has failed.
    Ended(Ending),
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ending {
    /// This end closed it, and everything that it had sent is acknowledged.
    #[error("closed")]
    Closed,
    /// The peer closed it.
    #[error("the peer has closed the session")]
    PeerClosed,
    /// The peer said that something is wrong.
    #[error("the peer says: {0}")]
    PeerError(PeerError),
    /// There is no session: the server says no, in these words; escape them before they are shown.
    #[error("the server says no: {0}")]
    Refused(String),
    /// The peer sent what may not be.
    #[error("the peer has broken the protocol: {0}")]
    Protocol(String),
    /// The handshake took too long.
    #[error("no session within the time for it")]
    HandshakeTimeout,
    /// The peer has not been heard, or has acknowledged nothing, for too long.
    #[error("the peer is gone")]
    Gone,
    /// The stream ended without a request for it, or with an error.
    #[error("the connection was lost")]
    ConnectionLost,
    /// This end gave up.
    #[error("given up")]
    Aborted,
}

/// What was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Packets that left, of every type.
    pub packets_sent: u64,
    /// Packets that came and were good.
    pub packets_received: u64,
    /// Data that left again.
    pub retransmissions: u64,
    /// Data that had been there before.
    pub duplicates: u64,
    /// Packets with a wrong checksum.
    pub checksum_failures: u64,
    /// Messages of this end that were acknowledged.
    pub messages_acknowledged: u64,
    /// Their bytes.
    pub bytes_acknowledged: u64,
    /// Messages that came.
    pub messages_received: u64,
}

/// An acknowledgement that is to leave.
#[derive(Debug, Clone, Copy)]
struct Ack {
    seq: Seq,
    number: u64,
    says: &'static [u8],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The client has sent its SYN so often, and may send it again then.
    SynSent {
        sends: u32,
        again_at: Option<Instant>,
    },
    /// The server waits for a SYN.
    Listening,
    /// The server waits for the client's ACK.
    SynReceived,
    Open,
    /// A disconnect request has been sent so often, and goes again then.
    Closing {
        sends: u32,
        again_at: Instant,
    },
    /// The peer's disconnect request has been acknowledged; it may come again until then.
    Lingering {
        until: Instant,
    },
    Over,
}

/// What there is once there is agreement.
#[derive(Debug)]
struct Channel {
    agreed: Agreed,
    checksum: Checksum,
    sender: Sender,
    receiver: Receiver,
    numbering: Numbering,
    acks: VecDeque<Ack>,
    /// The checksum of the last data, by which the same bytes are known again.
    last_data: Option<[u8; 4]>,
    /// A sign of life that is due, and what it says.
    sign: Option<&'static [u8]>,
    hold_at: Option<Instant>,
}

impl Channel {
    fn new(now: Instant, agreed: Agreed, config: &SessionConfig) -> Self {
        let repeat = repeat::of(agreed.protocol);
        let controller: Box<dyn Controller> = match config.carrier {
            Carrier::Stream => Box::new(Unbounded),
            Carrier::Datagrams => Box::new(Model::new((HEAD_BYTES + agreed.packet_max) as u64)),
        };
        let rtt = Rtt::new(config.carrier.timeout_min(), SessionConfig::TIMEOUT_MAX);
        let flow = Flow::new(now, controller, rtt);
        Self {
            checksum: Checksum::new(agreed.checksum, &agreed.id),
            sender: Sender::new(repeat, agreed.window, agreed.packet_max, config.timeouts_max, flow),
            receiver: Receiver::new(repeat, agreed.window, config.limits),
            numbering: Numbering::new(agreed.strict(), agreed.mode),
            acks: VecDeque::new(),
            last_data: None,
            sign: None,
            hold_at: None,
            agreed,
        }
    }
}

/// One end of a session.
///
/// The driver gives it what comes, a packet at a time ([`Self::handle_packet`]) or a datagram ([`Self::handle_datagram`]), and the end of the
/// stream ([`Self::handle_end`]); sends what [`Self::poll_transmit`] writes, each piece in one call; takes every event of [`Self::poll_event`]; and calls [`Self::handle_timeout`] when the time of
/// [`Self::poll_timeout`] has come. After any of these it asks all of the `poll_*` again, the timeout last. When [`Self::is_finished`] it can be dropped.
#[derive(Debug)]
pub struct Session {
    config: SessionConfig,
    state: State,
    id: Option<SessionId>,
    /// A server's end, which answers an ACK that comes again.
    is_server: bool,
    channel: Option<Channel>,
    /// The payload of the SYN, in case that it comes again (datagrams).
    syn: Option<Box<[u8]>>,
    /// Packets of the handshake, and errors.
    control: VecDeque<Vec<u8>>,
    /// The client's ACK, while nothing says that it has arrived (datagrams).
    unconfirmed: Option<(Vec<u8>, Instant)>,
    events: VecDeque<Event>,
    /// Whether the session is to be closed when everything is acknowledged.
    closes: bool,
    deadline: Instant,
    heard_at: Instant,
    sent_at: Instant,
    counters: Counters,
}

impl Session {
    /// How often a disconnect request is sent.
    const DISCONNECTS: u32 = 5;
    /// How long the end that was asked to close stays at least, in case that its acknowledgement is lost.
    const LINGER_MIN: Duration = Duration::from_secs(1);
    const HOLD: Duration = Duration::from_secs(1);
    /// Acknowledgements that wait for a peer that does not read; then nothing more is read from it.
    const ACKS_MAX: usize = 1 << 16;

    fn new(now: Instant, config: SessionConfig, state: State, id: Option<SessionId>) -> Self {
        let deadline = now + config.handshake_timeout;
        Self {
            state,
            is_server: id.is_some(),
            id,
            channel: None,
            syn: None,
            control: VecDeque::new(),
            unconfirmed: None,
            events: VecDeque::new(),
            closes: false,
            deadline,
            heard_at: now,
            sent_at: now,
            counters: Counters::default(),
            config,
        }
    }

    /// A client's end: its SYN is the first thing to be sent.
    pub fn connect(now: Instant, config: SessionConfig) -> Self {
        let mut session = Self::new(now, config, State::SynSent { sends: 0, again_at: None }, None);
        session.send_syn(now);
        session
    }

    /// A server's end of a stream, on which a SYN is to come. `id` is to be one that nobody can guess.
    pub fn accept(now: Instant, config: SessionConfig, id: SessionId) -> Self {
        Self::new(now, config, State::Listening, Some(id))
    }

    /// A server's end whose handshake an [`Acceptor`](super::Acceptor) has done.
    pub fn accepted(now: Instant, config: SessionConfig, handshake: Handshake) -> Self {
        let Handshake { agreed, syn } = handshake;
        let mut session = Self::new(now, config, State::Listening, Some(agreed.id.clone()));
        session.channel = Some(Channel::new(now, agreed, &session.config));
        session.syn = Some(syn);
        session.open();
        session
    }

    // ---- what the driver asks ----

    /// How long a packet that has begun to come on a stream may pause, before [`Self::handle_stalled`] is to be called.
    pub fn packet_timeout(&self) -> Duration {
        self.config.packet_timeout
    }

    /// What carries its packets.
    pub fn carrier(&self) -> Carrier {
        self.config.carrier
    }

    /// What was agreed on, once it was.
    pub fn agreed(&self) -> Option<&Agreed> {
        self.channel.as_ref().map(|channel| &channel.agreed).filter(|_| !self.in_handshake())
    }

    /// What was counted until now.
    pub fn counters(&self) -> Counters {
        let Some(Channel { sender, .. }) = &self.channel else { return self.counters };
        let (retransmissions, bytes_acknowledged) = (sender.retransmissions(), sender.bytes_acknowledged());
        Counters { retransmissions, bytes_acknowledged, ..self.counters }
    }

    /// Round-trip times, once one was measured.
    pub fn rtt(&self) -> Option<&Rtt> {
        let rtt = &self.channel.as_ref()?.sender.flow().rtt;
        rtt.smoothed().map(|_| rtt)
    }

    /// Bytes that are kept: messages that wait, in either direction.
    pub fn memory(&self) -> usize {
        self.channel.as_ref().map_or(0, |channel| channel.sender.memory() + channel.receiver.memory())
    }

    /// Whether a message can be sent without keeping more than the limits say.
    pub fn can_send(&self) -> bool {
        self.channel.as_ref().is_some_and(|channel| channel.sender.memory() < self.config.limits.send_max)
    }

    /// Whether more should be read from a stream: not while the application does not take what came, or the peer its acknowledgements. While this end waits for
    /// acknowledgements itself it reads on, and drops data for which there is no room.
    pub fn wants_input(&self) -> bool {
        self.channel.as_ref().filter(|_| self.state == State::Open).is_none_or(|channel| {
            channel.acks.len() < Self::ACKS_MAX && (channel.receiver.has_room() || !channel.sender.is_idle())
        })
    }

    /// The longest payload that may come now.
    pub fn payload_max(&self) -> usize {
        match (&self.channel, self.in_handshake()) {
            (Some(channel), false) => channel.agreed.packet_max.max(CONTROL_PAYLOAD_MAX),
            _ => HANDSHAKE_PAYLOAD_MAX,
        }
    }

    /// Whether several packets may be written together.
    fn joins_packets(&self) -> bool {
        self.config.carrier == Carrier::Datagrams
            || self
                .channel
                .as_ref()
                .is_some_and(|channel| channel.agreed.strict() && self.state != State::SynReceived)
    }

    /// Whether nothing more is to be done but to send what [`Self::poll_transmit`] still gives.
    pub fn is_finished(&self) -> bool {
        self.state == State::Over
    }

    /// Whether the peer has been asked to close, or has asked.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Lingering { .. } | State::Over)
    }

    fn in_handshake(&self) -> bool {
        matches!(self.state, State::SynSent { .. } | State::Listening | State::SynReceived)
    }

    // ---- what the application does ----

    /// Sends a message, once the session is open and the window allows; [`Event::Acknowledged`] says that it has arrived. What is sent before that waits.
    pub fn send(&mut self, now: Instant, message: Bytes) -> Result<SendId, SendError> {
        if self.is_over() || self.closes {
            return Err(SendError::Over);
        }
        let channel =
            self.channel.as_mut().filter(|_| self.state == State::Open).ok_or(SendError::NotOpen)?;
        let (len, max) = (message.len(), channel.agreed.message_max());
        if len > max {
            return Err(SendError::TooLarge(TooLarge { len, max }));
        }
        Ok(channel.sender.send(now, message))
    }

    /// The application has taken a message of so many bytes.
    pub fn handle_taken(&mut self, now: Instant, len: usize) {
        if !self.wants_input() {
            // What the peer has said meanwhile has not been read.
            self.heard_at = now;
        }
        let Some(channel) = &mut self.channel else { return };
        let room = channel.receiver.on_taken(len);
        if channel.receiver.has_room() {
            channel.hold_at = None;
        }
        if room && channel.agreed.keep_alive.is_some() {
            channel.sign = Some(ROOM);
        }
    }

    /// Closes the session when everything that was sent is acknowledged.
    pub fn close(&mut self, now: Instant) {
        if self.in_handshake() {
            return self.end(Ending::Aborted);
        }
        self.closes = true;
        self.close_when_done(now);
    }

    /// Ends the session at once, and tells the peer why.
    pub fn abort(&mut self, code: ErrorCode, sentence: &str) {
        if self.state != State::Over {
            self.say_error(code, sentence);
            self.end(Ending::Aborted);
        }
    }

    /// The peer has begun a packet and does not go on with it.
    pub fn handle_stalled(&mut self) {
        self.fail(ErrorCode::Timeout, "a packet that was begun did not go on");
    }

    // ---- what comes ----

    /// A datagram came.
    pub fn handle_datagram(&mut self, now: Instant, mut datagram: &[u8]) {
        while let Ok(Some(head)) = Head::parse(datagram, self.payload_max()) {
            let Some((packet, rest)) = datagram.split_at_checked(head.packet_len()) else { break };
            self.handle_packet(now, &head, packet.get(HEAD_BYTES..).unwrap_or_default());
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

    /// The stream has ended, or broken.
    pub fn handle_end(&mut self) {
        match self.state {
            State::Over => {}
            State::Lingering { .. } => self.state = State::Over,
            // The client's close is its confirmation, and whoever asked has everything acknowledged.
            State::Closing { .. } => self.end(Ending::Closed),
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
    fn is_good(&mut self, now: Instant, head: &Head, payload: &[u8]) -> bool {
        let good = Checksum::Md5.verify(head, 0, payload);
        self.count(now, good);
        good
    }

    fn count(&mut self, now: Instant, good: bool) {
        if good {
            self.counters.packets_received += 1;
            self.heard_at = now;
        } else {
            self.counters.checksum_failures += 1;
        }
    }

    fn handle_syn(&mut self, now: Instant, head: &Head, payload: &[u8]) {
        if !self.is_good(now, head, payload) {
            return;
        }
        let id = self.id.clone();
        match (Syn::parse(payload), id) {
            (Ok(syn), Some(id)) if head.typ == PacketType::Data.byte() => {
                let (agreed, answer) = syn.answer(&self.config, id);
                self.push_handshake(PacketType::Ack, &answer);
                self.channel = Some(Channel::new(now, agreed, &self.config));
                self.state = State::SynReceived;
            }
            (syn, _) => {
                let why = syn.err().map_or_else(|| "not a SYN".into(), |error| error.to_string());
                self.push_handshake(PacketType::Ack, &write_refusal(&why));
                self.end(Ending::Protocol(why));
            }
        }
    }

    fn handle_syn_ack(&mut self, now: Instant, head: &Head, payload: &[u8]) {
        if !self.is_good(now, head, payload) {
            return;
        }
        match PacketType::of(head.typ) {
            Some(PacketType::Ack) => {}
            Some(PacketType::Error) => return self.end(Ending::PeerError(PeerError::parse(payload))),
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
            Err(HandshakeError::Malformed(why)) => self.fail(ErrorCode::Handshake, &why),
        }
    }

    fn handle_ack_of_handshake(&mut self, now: Instant, head: &Head, payload: &[u8]) {
        if !self.is_good(now, head, payload) {
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

    fn handle_in_session(&mut self, now: Instant, head: &Head, payload: &[u8]) {
        match self.handshake_again(head, payload) {
            Some(true) => {
                self.count(now, true);
                return self.sign(ALIVE);
            }
            Some(false) => return,
            None => {}
        }
        let Some(channel) = &mut self.channel else { return };
        let later = channel.agreed.later && head.typ == PacketType::KeepAlive.byte();
        let typ = if later { Some(PacketType::Data) } else { PacketType::of(head.typ) };
        let (sender, numbering) = (&channel.sender, &mut channel.numbering);
        let number = match typ {
            Some(PacketType::Data | PacketType::Fragment) => {
                let same = channel.last_data == Some(head.checksum) && !channel.acks.is_empty();
                numbering.of_data(head.seq, channel.receiver.expected(), same)
            }
            Some(PacketType::Ack) => {
                let closing = matches!(self.state, State::Closing { .. });
                let base = if closing { sender.next() } else { sender.base() };
                numbering.of_ack(head.seq, base, |number| closing || sender.waits_for(number))
            }
            Some(PacketType::Disconnect) if channel.agreed.strict() => {
                head.seq.nearest(channel.receiver.expected())
            }
            _ => Some(0),
        };
        let good = number.filter(|number| channel.checksum.verify(head, *number, payload));
        self.count(now, good.is_some());
        let Some(number) = good else { return };
        // The server has this client's ACK, or it would say nothing.
        self.unconfirmed = None;
        match typ {
            Some(PacketType::Data) => self.handle_data(now, head, number, true, payload),
            Some(PacketType::Fragment) => self.handle_data(now, head, number, false, payload),
            Some(PacketType::Ack) => self.handle_ack(now, number, payload),
            Some(PacketType::Error) => self.end(Ending::PeerError(PeerError::parse(payload))),
            Some(PacketType::KeepAlive) => self.handle_keep_alive(now, head.seq, payload),
            Some(PacketType::Disconnect) => self.handle_disconnect(now, head.seq, number),
            None => self.fail(ErrorCode::Malformed, "a packet of no known type"),
        }
    }

    /// Whether a packet of a handshake came again, at the server (datagrams): true for this client's ACK, which means that it knows of no answer.
    fn handshake_again(&self, head: &Head, payload: &[u8]) -> Option<bool> {
        if !self.is_server || self.config.carrier == Carrier::Stream || payload.first() != Some(&b'{') {
            return None;
        }
        match PacketType::of(head.typ) {
            Some(PacketType::Data) if head.seq == Seq(0) && self.syn.as_deref() == Some(payload) => {
                Some(false)
            }
            Some(PacketType::Ack | PacketType::Error) if Checksum::Md5.verify(head, 0, payload) => {
                Some(Some(read_ack(payload).ok()?) == self.id)
            }
            _ => None,
        }
    }

    fn handle_data(&mut self, now: Instant, head: &Head, number: u64, is_last: bool, payload: &[u8]) {
        let Some(channel) = &mut self.channel else { return };
        if matches!(self.state, State::Lingering { .. }) {
            return;
        }
        if payload.len() > channel.agreed.packet_max {
            return self.fail(ErrorCode::TooLarge, "more bytes in a packet than was agreed");
        }
        if !is_last && !channel.agreed.strict() {
            return self.fail(ErrorCode::Malformed, "a fragment where none was agreed");
        }
        match channel.receiver.handle_data(number, is_last, payload) {
            Taken::New => {
                channel.numbering.on_taken(head.seq);
                channel.last_data = Some(head.checksum);
                if !channel.receiver.has_room() {
                    channel.hold_at.get_or_insert(now + Self::HOLD);
                }
                self.acknowledge(head.seq, number);
                self.hand_on();
            }
            Taken::Again => {
                self.counters.duplicates += 1;
                self.acknowledge(head.seq, number);
            }
            Taken::BehindGap => {
                if let Some(before) = channel.receiver.expected().checked_sub(1) {
                    let back = u16::try_from(number - before).unwrap_or(0);
                    let says = if channel.agreed.strict() { GAP } else { ACK };
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

    fn acknowledge(&mut self, seq: Seq, number: u64) {
        self.push_ack(Ack { seq, number, says: ACK });
    }

    fn push_ack(&mut self, ack: Ack) {
        let Some(channel) = &mut self.channel else { return };
        // Between ours, an acknowledgement of Go-Back-N says what the ones before it say.
        let joins = channel.agreed.strict() && !repeat::of(channel.agreed.protocol).keeps_ahead();
        let full = channel.acks.len() >= Self::ACKS_MAX + usize::from(channel.agreed.window);
        match channel.acks.back_mut() {
            Some(last) if joins && last.says == ACK && last.number < ack.number => *last = ack,
            // What comes again later is acknowledged then.
            _ if full => {}
            _ => channel.acks.push_back(ack),
        }
    }

    fn hand_on(&mut self) {
        let Some(channel) = &mut self.channel else { return };
        while let Some(message) = channel.receiver.poll_message() {
            self.counters.messages_received += 1;
            self.events.push_back(Event::Message(message));
        }
    }

    fn handle_ack(&mut self, now: Instant, number: u64, payload: &[u8]) {
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
        match says_gap && channel.agreed.strict() {
            true => channel.sender.on_gap(now, number),
            false => channel.sender.on_ack(now, number, before.unwrap_or(0)),
        }
        while let Some(id) = channel.sender.poll_acknowledged() {
            self.counters.messages_acknowledged += 1;
            self.events.push_back(Event::Acknowledged(id));
        }
        self.close_when_done(now);
    }

    fn handle_keep_alive(&mut self, now: Instant, seq: Seq, payload: &[u8]) {
        let Some(channel) = &mut self.channel else { return };
        if channel.agreed.keep_alive.is_none() {
            // A peer of the field: everything is acknowledged.
            return self.acknowledge(seq, 0);
        }
        match payload {
            ALIVE => {}
            HOLD => channel.sender.on_hold(),
            ROOM => channel.sender.on_room(now),
            _ => self.sign(ALIVE),
        }
    }

    fn handle_disconnect(&mut self, now: Instant, seq: Seq, number: u64) {
        let Some(channel) = &mut self.channel else { return };
        if channel.agreed.strict() && number != channel.receiver.expected() {
            return;
        }
        let timeout = channel.sender.flow().rtt.timeout_after(0);
        self.acknowledge(seq, number);
        if !matches!(self.state, State::Lingering { .. }) {
            self.end(if matches!(self.state, State::Closing { .. }) {
                Ending::Closed
            } else {
                Ending::PeerClosed
            });
            self.state = State::Lingering { until: now + Self::LINGER_MIN.max(timeout * 3) };
        }
    }

    // ---- what leaves ----

    /// Appends what is to leave now, in one call of the operating system; false if there is nothing. So many bytes at most, but one packet at least; on
    /// datagrams that is one datagram, whatever `bytes_max` says.
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
    fn append_next(&mut self, now: Instant, out: &mut Vec<u8>, room: usize) -> bool {
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
        if control_fits && let Some(Ack { seq, number, says }) = channel.acks.pop_front() {
            if says == ACK && self.config.carrier == Carrier::Datagrams && channel.agreed.names_before() {
                let mut payload = [0; ACK.len() + 8];
                let before = channel.receiver.before(number).to_be_bytes();
                payload.iter_mut().zip(ACK.iter().chain(&before)).for_each(|(to, from)| *to = *from);
                append(out, PacketType::Ack.byte(), seq, number, &channel.checksum, &payload);
                return true;
            }
            append(out, PacketType::Ack.byte(), seq, number, &channel.checksum, says);
            return true;
        }
        if !matches!(self.state, State::Open | State::Closing { .. }) {
            return false;
        }
        if control_fits && let Some(sign) = channel.sign.take() {
            append(out, PacketType::KeepAlive.byte(), Seq(0), 0, &channel.checksum, sign);
            return true;
        }
        if let Some(data) = channel.sender.poll_packet(now, room) {
            let typ = match data.is_last {
                true if channel.agreed.later => PacketType::KeepAlive,
                true => PacketType::Data,
                false => PacketType::Fragment,
            };
            append(out, typ.byte(), Seq::of(data.number), data.number, &channel.checksum, &data.payload);
            return true;
        }
        if let State::Closing { sends, again_at } = &mut self.state
            && control_fits
            && *again_at <= now
            && *sends < Self::DISCONNECTS
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
            *again_at = now + channel.sender.flow().rtt.timeout_after(*sends);
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

    fn keep_alive_at(&self) -> Option<Instant> {
        let interval = self.channel.as_ref()?.agreed.keep_alive.filter(|_| self.state == State::Open)?;
        Some(self.sent_at + interval)
    }

    /// When the peer is taken for gone unless it is heard before.
    fn gone_at(&self) -> Option<Instant> {
        let channel =
            self.channel.as_ref().filter(|_| matches!(self.state, State::Open | State::Closing { .. }))?;
        let interval = channel.agreed.keep_alive.filter(|_| self.wants_input());
        let silent = interval.map(|interval| self.heard_at + interval * 3);
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
            State::Closing { sends, again_at } if sends >= Self::DISCONNECTS && again_at <= now => {
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

    // ---- transitions ----

    fn send_syn(&mut self, now: Instant) {
        let State::SynSent { sends, .. } = self.state else { return };
        let syn = write_syn(&self.config);
        self.push_handshake(PacketType::Data, &syn);
        let again_at = (self.config.carrier == Carrier::Datagrams).then(|| now + Rtt::TIMEOUT_FIRST);
        self.state = State::SynSent { sends: sends + 1, again_at };
    }

    fn push_handshake(&mut self, typ: PacketType, payload: &[u8]) {
        let mut packet = Vec::new();
        append(&mut packet, typ.byte(), Seq(0), 0, &Checksum::Md5, payload);
        self.control.push_back(packet);
    }

    fn open(&mut self) {
        self.state = State::Open;
        self.events.push_back(Event::Opened);
        if self.config.carrier == Carrier::Datagrams && self.is_server {
            self.sign(ALIVE);
        }
    }

    /// A sign of life is due, unless the peer knows none.
    fn sign(&mut self, says: &'static [u8]) {
        let Some(channel) = &mut self.channel else { return };
        let confirms = self.config.carrier == Carrier::Datagrams && self.is_server && !channel.agreed.later;
        let known = channel.agreed.keep_alive.is_some() || (confirms && says == ALIVE);
        // That there is no room says also that this end is alive.
        if known && !(channel.sign == Some(HOLD) && says != ROOM) {
            channel.sign = Some(says);
        }
    }

    fn close_when_done(&mut self, now: Instant) {
        if self.closes
            && self.state == State::Open
            && self.channel.as_ref().is_some_and(|channel| channel.sender.is_idle())
        {
            self.state = State::Closing { sends: 0, again_at: now };
        }
    }

    /// The peer has broken the protocol: it is told, and the session is over.
    fn fail(&mut self, code: ErrorCode, sentence: &str) {
        if self.state == State::Over {
            return;
        }
        self.say_error(code, sentence);
        self.end(Ending::Protocol(sentence.into()));
    }

    fn say_error(&mut self, code: ErrorCode, sentence: &str) {
        let mut text = format!("{}: {sentence}", code.as_str());
        text.truncate(text.floor_char_boundary(CONTROL_PAYLOAD_MAX));
        let checksum = match &self.channel {
            Some(channel) if !self.in_handshake() => channel.checksum,
            _ => Checksum::Md5,
        };
        let mut packet = Vec::new();
        append(&mut packet, PacketType::Error.byte(), Seq(0), 0, &checksum, text.as_bytes());
        self.control.push_back(packet);
    }

    fn end(&mut self, ending: Ending) {
        if !self.is_over() {
            self.events.push_back(Event::Ended(ending));
        }
        self.state = State::Over;
        self.unconfirmed = None;
    }
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The handshake is not over.
    #[error("the session is not open yet")]
    NotOpen,
    /// The session is over, or is being closed.
    #[error("the session is over")]
    Over,
    /// The peer takes none of that size.
    #[error(transparent)]
    TooLarge(TooLarge),
}
