//! One end of one session, whatever carries it (docs/protocol/cnp.md, section 3).

use super::acceptor::Handshake;
use super::checksum::Checksum;
use super::config::{Carrier, SessionConfig};
use super::control::{ALIVE, CONTROL_PAYLOAD_MAX, HOLD, ROOM};
use super::cut::Cut;
use super::data_type::DataType;
use super::generation::Generation;
use super::handshake::{Agreed, HANDSHAKE_PAYLOAD_MAX, write_syn};
use super::header::{HEAD_BYTES, Head, Layout, PacketError};
use super::numbering::Numbering;
use super::packet::{ErrorCode, PacketType, PeerError, append, append_marked};
use super::params::{Mode, SessionId, SynForm};
use super::receiver::{PacketId, ReceiveId, Receiver};
use super::repeat;
use super::sender::{Handling, SendId, Sender, TooLarge};
use super::seq::Seq;
use crate::congestion::{Controller, Flow, Model, Unbounded};
use crate::rtt::Rtt;
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

mod input;
mod moving;
mod output;
mod sending;

pub use moving::{ConnectionId, PathChallenge};

/// What happens to a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The handshake is over: [`Session::agreed`] says what was agreed on.
    Opened,
    /// The next message came; the first one is `ReceiveId(0)`. It counts, and is not acknowledged,
    /// until [`Session::acknowledge`] says that the application has handled it.
    Message(Bytes),
    /// The same of a message about a call: a [`CallMessage`](super::CallMessage).
    Call(Bytes),
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
    /// The server understands a SYN in full, and was asked in another form.
    #[error("the server understands a SYN in full")]
    KnowsMore,
    /// The server has not let the client in, for the reason that it was told; at the client these
    /// are the server's words: escape them before they are shown.
    #[error("not let in: {0}")]
    Unauthorized(String),
    /// The peer sent what may not be.
    #[error("the peer has broken the protocol: {0}")]
    Protocol(String),
    /// Nobody is there to answer a SYN, the system says.
    #[error("nobody listens there")]
    Unreachable,
    /// The handshake took too long.
    #[error("no session within the time for it")]
    HandshakeTimeout,
    /// The peer has not been heard, or has acknowledged nothing, for too long.
    #[error("the peer is gone")]
    Gone,
    /// The stream ended without a request for it, or with an error.
    #[error("the connection was lost")]
    ConnectionLost,
    /// TLS, which carries it, says no, in these words.
    #[error("{0}")]
    Tls(String),
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
    /// Packets with a wrong checksum, or with a number for which nothing waits.
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
    says: AckSays,
}

/// The content of an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AckSays {
    /// The packet came.
    Came,
    /// It came, and something behind it that was dropped.
    Gap,
    /// It came damaged: it is to be sent again.
    Damaged,
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

/// A time without data of this end.
#[derive(Debug, Clone, Copy)]
struct Quiet {
    since: Instant,
    until: Instant,
}

/// What there is once there is agreement.
#[derive(Debug)]
struct Channel {
    agreed: Agreed,
    /// The generation of the peer's program, as far as it has shown.
    generation: Generation,
    /// The type of this end's data, where the peer has not said which it takes.
    data_type: Option<DataType>,
    checksum: Checksum,
    sender: Sender,
    receiver: Receiver,
    numbering: Numbering,
    acks: VecDeque<Ack>,
    /// Those of them that say that something came.
    acks_of_received: usize,
    /// The checksum of the last data, by which the same bytes are known again.
    last_data: Option<[u8; 4]>,
    /// A sign of life that is due, and what it says.
    sign: Option<&'static [u8]>,
    hold_at: Option<Instant>,
    /// The peer is to be told what has been handled.
    tells_handled: bool,
    /// The peer's disconnect request, while something before it has not been handled.
    farewell: Option<PacketId>,
    /// When the last fragment came of a message whose end nothing marks.
    fragment_at: Option<Instant>,
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
        let handling = match agreed.mode {
            _ if !agreed.handled => Handling::Acknowledged,
            Mode::StepByStep => Handling::ToldOneByOne,
            Mode::Burst => Handling::Told,
        };
        let window = agreed.window;
        let cut = agreed.characters.map_or(Cut::Bytes(agreed.packet_max), Cut::Characters);
        let one_by_one = agreed.characters.is_some() || agreed.data_unknown;
        let under_way = if one_by_one { 1 } else { window };
        let strict = agreed.counts() || config.carrier == Carrier::Datagrams;
        Self {
            checksum: Checksum::new(agreed.checksum, &agreed.id),
            sender: Sender::new(repeat, under_way, cut, config.timeouts_max, handling, flow),
            receiver: Receiver::new(repeat, window, !agreed.handled, config.limits),
            numbering: Numbering::new(strict, agreed.mode, agreed.generation),
            acks: VecDeque::new(),
            acks_of_received: 0,
            last_data: None,
            sign: None,
            hold_at: None,
            tells_handled: false,
            farewell: None,
            fragment_at: None,
            generation: agreed.generation,
            data_type: agreed.data_unknown.then(DataType::unknown),
            agreed,
        }
    }

    /// Appends a packet that is not data, if the peer's program knows its type.
    fn append(&self, out: &mut Vec<u8>, typ: PacketType, seq: Seq, number: u64, payload: &[u8]) {
        let Some(byte) = self.generation.byte(typ) else { return };
        match self.generation.layout() {
            Layout::Plain => append(out, byte, seq, number, &self.checksum, payload),
            Layout::Marked => append_marked(out, false, byte, seq, payload),
        }
    }

    /// Returns true if the peer may take what comes with a packet for a part of it: packets leave
    /// one by one.
    fn reads_once(&self) -> bool {
        !self.agreed.strict()
    }

    /// Returns true if this end waits for an acknowledgement before it sends more.
    fn goes_one_by_one(&self) -> bool {
        self.reads_once() && (self.agreed.window == 1 || self.agreed.characters.is_some())
    }

    /// Acknowledgements that wait for a peer that does not read; then nothing more is read from it.
    fn acks_max(&self) -> usize {
        usize::from(self.agreed.window) + 1024
    }

    /// Returns true if an acknowledgement says what the ones before it say: between ours, with
    /// Go-Back-N.
    fn joins_acks(&self) -> bool {
        self.agreed.strict() && !repeat::of(self.agreed.protocol).keeps_ahead()
    }

    /// The peer is not told to hold any more, if there is room and nothing that it waits for.
    fn update_hold(&mut self) {
        if self.receiver.has_room() && !self.withholds() {
            self.hold_at = None;
        }
    }

    /// Returns true if a message waits to be handled before its last packet is acknowledged.
    fn withholds(&self) -> bool {
        self.receiver.withholds()
    }

    /// Returns true if everything that came has been acknowledged.
    fn is_settled(&self) -> bool {
        !self.withholds() && self.acks_of_received == 0
    }

    /// Nothing more is sent or received: what was kept for that is dropped.
    fn end(&mut self) {
        self.sender.end();
        self.receiver.end();
        self.hold_at = None;
    }
}

/// One end of a session.
///
/// The driver gives it what comes, a packet at a time ([`Self::handle_packet`]) or a datagram
/// ([`Self::handle_datagram`]), and the end of the stream ([`Self::handle_end`]); sends what
/// [`Self::poll_transmit`] writes, each piece in one call; takes every event of
/// [`Self::poll_event`]; and calls [`Self::handle_timeout`] when the time of [`Self::poll_timeout`]
/// has come. After any of these it asks all of the `poll_*` again, the timeout last. When
/// [`Self::is_finished`] it can be dropped.
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
    /// When data may leave again: the peer may not have read what left before and has no answer.
    quiet: Option<Quiet>,
    /// When an acknowledgement may leave: the peer may not have read data that left before.
    acks_at: Option<Instant>,
    counters: Counters,
    /// The proof of an address that came last.
    path_response: Option<PathChallenge>,
}

impl Session {
    /// How long the peer has to answer a disconnect request on a stream.
    const DISCONNECT_WAIT: Duration = Duration::from_secs(5);
    /// The time that the end that was asked to close stays at least, in case that its
    /// acknowledgement is lost.
    const LINGER_MIN: Duration = Duration::from_secs(1);
    const HOLD: Duration = Duration::from_secs(1);
    /// The silence that ends a message whose end nothing marks.
    const MESSAGE_SILENCE: Duration = Duration::from_secs(1);

    /// How often a disconnect request is sent.
    fn disconnects(carrier: Carrier) -> u32 {
        match carrier {
            Carrier::Stream => 1,
            Carrier::Datagrams => 5,
        }
    }

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
            quiet: None,
            acks_at: None,
            counters: Counters::default(),
            path_response: None,
            config,
        }
    }

    /// A client's end: its SYN is the first thing to be sent.
    pub fn connect(now: Instant, config: SessionConfig) -> Self {
        let mut session = Self::new(now, config, State::SynSent { sends: 0, again_at: None }, None);
        session.send_syn(now);
        session
    }

    /// A server's end of a stream, on which a SYN is to come. `id` is to be one that nobody can
    /// guess.
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

    /// The time that a packet that has begun to come on a stream may pause, before
    /// [`Self::handle_stalled`] is to be called.
    pub fn packet_timeout(&self) -> Duration {
        self.config.packet_timeout
    }

    /// The settings of this end.
    pub fn config(&self) -> &SessionConfig {
        &self.config
    }

    /// What carries its packets.
    pub fn carrier(&self) -> Carrier {
        self.config.carrier
    }

    /// What was agreed on, once it was.
    pub fn agreed(&self) -> Option<&Agreed> {
        self.channel.as_ref().map(|channel| &channel.agreed).filter(|_| !self.in_handshake())
    }

    /// The generation of the peer's program, as far as it has shown; None in the handshake.
    pub fn generation(&self) -> Option<Generation> {
        self.channel.as_ref().filter(|_| !self.in_handshake()).map(|channel| channel.generation)
    }

    /// The header of the packet at the beginning of what came from a stream; None while it is not
    /// all there.
    ///
    /// # Errors
    ///
    /// A payload that is longer than may come now ([`Self::handle_bad_packet`]).
    pub fn parse_head(&self, bytes: &[u8]) -> Result<Option<Head>, PacketError> {
        let payload_max = self.payload_max();
        let layout = match (self.state, &self.channel) {
            (State::SynSent { .. } | State::Listening, _) => {
                // Whatever the layout, the length is in its place.
                let plain = Head::parse(bytes, payload_max)?;
                let Some(layout) = Layout::of_first(bytes) else { return Ok(None) };
                if layout == Layout::Plain {
                    return Ok(plain);
                }
                layout
            }
            (_, Some(channel)) => channel.generation.layout(),
            (_, None) => Layout::Plain,
        };
        Head::parse_as(layout, bytes, payload_max)
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
        self.channel.as_ref().map_or(0, |channel| {
            let acks = channel.acks.len() * size_of::<Ack>();
            channel.sender.memory() + channel.receiver.memory() + acks
        })
    }

    /// Whether a message can be sent without keeping more than the limits say.
    pub fn can_send(&self) -> bool {
        self.channel.as_ref().is_some_and(|channel| channel.sender.memory() < self.config.limits.send_max)
    }

    /// Reports whether more should be read from a stream: not while the application does not take
    /// what came, or the peer its acknowledgements. While this end waits for acknowledgements
    /// itself it reads on, and drops data for which there is no room.
    pub fn wants_input(&self) -> bool {
        self.channel.as_ref().filter(|_| self.state == State::Open).is_none_or(|channel| {
            channel.acks.len() < channel.acks_max()
                && (channel.receiver.has_room() || !channel.sender.is_idle())
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

    /// Reports whether nothing more is sent or received but, perhaps, an acknowledgement of the
    /// peer's farewell.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Lingering { .. } | State::Over)
    }

    fn in_handshake(&self) -> bool {
        matches!(self.state, State::SynSent { .. } | State::Listening | State::SynReceived)
    }

    // ---- what the application does ----

    /// The application has handled a message, which is acknowledged when all before it are. The
    /// second time, and once the session is over, nothing happens.
    pub fn acknowledge(&mut self, now: Instant, message: ReceiveId) {
        self.on_freed(now, |receiver| receiver.on_handled(message));
        let Some(channel) = &mut self.channel else { return };
        let released: Vec<(PacketId, bool)> =
            std::iter::from_fn(|| channel.receiver.poll_released()).collect();
        channel.update_hold();
        if released.is_empty() || matches!(self.state, State::Lingering { .. } | State::Over) {
            return;
        }
        if channel.agreed.handled {
            channel.tells_handled = true;
        } else if channel.joins_acks() {
            // Fragments behind it could not be acknowledged before it.
            let number = channel.receiver.acknowledged_below().saturating_sub(1);
            self.push_ack(Ack { seq: Seq::of(number), number, says: AckSays::Came });
        } else {
            for (PacketId { seq, number }, _) in released.into_iter().filter(|(_, waits)| *waits) {
                self.push_ack(Ack { seq, number, says: AckSays::Came });
            }
        }
        if let Some(channel) = &mut self.channel
            && !channel.receiver.has_unhandled()
            && let Some(PacketId { seq, number }) = channel.farewell.take()
        {
            self.on_disconnect(now, seq, number);
        }
    }

    /// The application keeps a message no longer that it has not handled: neither this nor a later
    /// one will be acknowledged.
    pub fn discard(&mut self, now: Instant, message: ReceiveId) {
        self.on_freed(now, |receiver| receiver.on_discarded(message));
    }

    fn on_freed(&mut self, now: Instant, free: impl FnOnce(&mut Receiver)) {
        if !self.wants_input() {
            // What the peer has said meanwhile has not been read.
            self.heard_at = now;
        }
        let Some(channel) = &mut self.channel else { return };
        free(&mut channel.receiver);
        let room = channel.receiver.poll_room();
        channel.update_hold();
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

    // ---- transitions ----

    fn send_syn(&mut self, now: Instant) {
        let State::SynSent { sends, .. } = self.state else { return };
        let syn = write_syn(&self.config);
        self.push_handshake(PacketType::Data, &syn);
        let again_at = (self.config.carrier == Carrier::Datagrams).then(|| now + Rtt::TIMEOUT_FIRST);
        self.state = State::SynSent { sends: sends + 1, again_at };
    }

    fn push_handshake(&mut self, typ: PacketType, payload: &[u8]) {
        let layout = match &self.channel {
            Some(channel) => channel.generation.layout(),
            None => self.config.syn_form.layout(),
        };
        self.push_handshake_as(layout, typ, payload);
    }

    fn push_handshake_as(&mut self, layout: Layout, typ: PacketType, payload: &[u8]) {
        let mut packet = Vec::new();
        match layout {
            Layout::Plain => append(&mut packet, typ.byte(), Seq(0), 0, &Checksum::Md5, payload),
            Layout::Marked => append_marked(&mut packet, false, typ.byte(), Seq(0), payload),
        }
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
        let confirms = self.config.carrier == Carrier::Datagrams && self.is_server;
        let known = channel.agreed.keep_alive.is_some() || (confirms && says == ALIVE);
        // That there is no room says also that this end is alive.
        if known && !(channel.sign == Some(HOLD) && says != ROOM) {
            channel.sign = Some(says);
        }
    }

    fn close_when_done(&mut self, now: Instant) {
        if self.closes
            && self.state == State::Open
            // What came of a message whose end nothing marks has been acknowledged.
            && self.channel.as_ref().is_some_and(|channel| channel.sender.is_idle() && channel.fragment_at.is_none())
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
        let unknown = match self.config.syn_form {
            SynForm::Fourth => Generation::Fourth,
            SynForm::Full | SynForm::Third => Generation::First,
        };
        let generation = self.channel.as_ref().map_or(unknown, |channel| channel.generation);
        let Some(byte) = generation.byte(PacketType::Error) else { return };
        let mut packet = Vec::new();
        append(&mut packet, byte, Seq(0), 0, &checksum, text.as_bytes());
        self.control.push_back(packet);
    }

    fn end(&mut self, ending: Ending) {
        if !matches!(ending, Ending::Protocol(_)) {
            self.complete_message();
        }
        if !self.is_over() {
            self.events.push_back(Event::Ended(ending));
        }
        self.state = State::Over;
        self.unconfirmed = None;
        if let Some(channel) = &mut self.channel {
            channel.end();
        }
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
    /// The peer's program counts the characters of a message, and this is no UTF-8.
    #[error("a message that is no text, where the peer takes text alone")]
    NotText,
    /// The peer's program knows no calls.
    #[error("the peer's program knows no calls")]
    NoCalls,
}
