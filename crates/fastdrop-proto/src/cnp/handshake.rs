//! The three packets with which a session begins, and what they agree on (docs/protocol/cnp.md,
//! section 2).

use super::checksum::Checksum;
use super::config::{Carrier, SessionConfig, WINDOW_MAX};
use super::cut::Cut;
use super::generation::Generation;
use super::header::{HEAD_BYTES, Layout};
use super::packet::{PacketType, append};
use super::params::{ChecksumKind, Mode, Protocol, SessionId, SynForm};
use super::seq::Seq;
use crate::authorize::{Credentials, Token};
use crate::json::{self, JsonError};
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;
use std::time::Duration;

/// The longest payload of a packet of the handshake.
pub const HANDSHAKE_PAYLOAD_MAX: usize = 4096;
/// The first byte of a handshake: the highest of a length that is no larger than that.
pub const FIRST_BYTE: u8 = 0;
/// The types of SYN, SYN-ACK and ACK.
pub(super) const HANDSHAKE_TYPES: RangeInclusive<u8> = 0x01..=0x03;
const TEXT_MAX: usize = 128;
/// Bytes that programs of the field read at once, and take for a packet.
const READ_BYTES: usize = 1024;
/// Bytes of the longest character.
const CHARACTER_BYTES: usize = 4;
/// Characters of a fragment that such a program reads, whichever they are.
pub(super) const CHARACTERS_MAX: usize = (READ_BYTES - HEAD_BYTES - 1) / CHARACTER_BYTES;
/// Characters of a fragment where nothing is said of them.
const CHARACTERS_DEFAULT: usize = 3;
/// Fragments of a message that have numbers of their own.
const FRAGMENTS_MAX: usize = 1 << 16;

/// What both ends have agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    /// Which session.
    pub id: SessionId,
    /// How the client calls itself.
    pub client_id: Option<String>,
    /// One message at a time, or a window.
    pub mode: Mode,
    /// What is done after a loss, if that was agreed.
    pub protocol: Option<Protocol>,
    /// Packets that may be unacknowledged.
    pub window: u16,
    /// Bytes of a packet's payload.
    pub packet_max: usize,
    /// What packets are covered with.
    pub checksum: ChecksumKind,
    /// The longest message that the peer takes in fragments; None if it knows no fragments.
    pub fragments: Option<usize>,
    /// How long silence may last.
    pub keep_alive: Option<Duration>,
    /// An acknowledgement of a packet says only that it was received, and a packet of its own that
    /// messages were handled.
    pub handled: bool,
    /// By UDP, the session goes on when the client's address changes.
    pub moves: bool,
    /// Calls of this end that the peer takes at once; None if it knows no calls.
    pub calls: Option<u16>,
    /// The generation of the peer's program, as far as the handshake tells.
    pub generation: Generation,
    /// Characters of a fragment, where messages are cut by characters.
    pub(super) characters: Option<usize>,
    /// The peer is a server that takes data of one of two types, and does not say which.
    pub(super) data_unknown: bool,
}

impl Agreed {
    /// Reports whether the peer reads packets however the stream is cut, numbers them as the
    /// specification says, and so on: whether it is one of ours.
    pub(super) fn strict(&self) -> bool {
        self.fragments.is_some()
    }

    /// Reports whether the peer is a server of the first or the second generation and has not said
    /// which, so that its data have a type that it may not take.
    pub fn is_first_or_second(&self) -> bool {
        self.data_unknown
    }

    /// Reports whether an acknowledgement also names what came before it: between ours, where each
    /// packet has its own.
    pub(super) fn names_before(&self) -> bool {
        self.strict() && self.protocol != Some(Protocol::GoBackN)
    }

    /// Reports whether the peer numbers as the specification says, which it must where numbers are
    /// covered by the checksum.
    pub(super) fn counts(&self) -> bool {
        self.strict() || self.checksum == ChecksumKind::Crc32c
    }

    /// Reports whether a message can be sent.
    pub(super) fn fits(&self, message: &[u8]) -> bool {
        let few = || self.characters.is_some_and(|max| Cut::Characters(max).pieces(message) <= FRAGMENTS_MAX);
        message.len() <= self.message_max() || few()
    }

    /// The longest message that can be sent, in bytes; towards programs that count characters, one
    /// with longer characters may be longer.
    pub fn message_max(&self) -> usize {
        if let Some(characters) = self.characters {
            // As many characters, of which each has a byte at least.
            return characters * FRAGMENTS_MAX;
        }
        // One that says nothing of it takes what one packet has.
        self.fragments.filter(|max| *max > 0).unwrap_or(self.packet_max)
    }
}

/// Why there is no session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// What came is no packet of a handshake.
    #[error("{0}")]
    Malformed(String),
    /// The server says no, in these words; escape them before they are shown.
    #[error("the server says no: {0}")]
    Refused(String),
    /// The server does not let the client in, and says so in these words; escape them before they
    /// are shown.
    #[error("not let in: {0}")]
    Unauthorized(String),
    /// The server understands more than it was asked for.
    #[error("the server understands a SYN in full")]
    KnowsMore,
}

impl From<JsonError> for HandshakeError {
    fn from(error: JsonError) -> Self {
        Self::Malformed(error.to_string())
    }
}

fn malformed<T>(what: impl Into<String>) -> Result<T, HandshakeError> {
    Err(HandshakeError::Malformed(what.into()))
}

/// Under which name the size of packets came, and goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum SizeName {
    #[default]
    Packet,
    Size,
    Fragment,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Fields {
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_id: Option<SessionId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operation_mode: Option<Mode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<Protocol>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_packet_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_fragment_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    window_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_id: Option<SessionId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<Token>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fragmentation: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_message_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    checksum: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_alive: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    handled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    calls: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    moves: Option<bool>,
}

impl Fields {
    fn read(payload: &[u8]) -> Result<Self, HandshakeError> {
        let fields: Self = json::parse(payload)?;
        for text in [&fields.session_id, &fields.client_id].into_iter().flatten() {
            if text.text().len() > TEXT_MAX {
                return malformed("an id of more than 128 bytes");
            }
        }
        if fields.token.as_ref().is_some_and(|token| !token.fits()) {
            return malformed("a token of more than 255 bytes");
        }
        if fields.window_size == Some(0) {
            return malformed("a window of 0");
        }
        Ok(fields)
    }

    /// What is said of the size of packets, by whichever name.
    fn size(&self) -> Result<(SizeName, Option<usize>), HandshakeError> {
        let named = [
            (SizeName::Packet, self.max_packet_size),
            (SizeName::Size, self.max_size),
            (SizeName::Fragment, self.max_fragment_size),
        ];
        let said = named.into_iter().find_map(|(name, size)| size.map(|size| (name, size)));
        let Some((name, size)) = said else { return Ok((SizeName::default(), None)) };
        if size == 0 {
            return malformed("packets of 0 bytes");
        }
        Ok((name, Some(usize::try_from(size).unwrap_or(usize::MAX))))
    }

    fn set_size(&mut self, name: SizeName, size: usize) {
        let field = match name {
            SizeName::Packet => &mut self.max_packet_size,
            SizeName::Size => &mut self.max_size,
            SizeName::Fragment => &mut self.max_fragment_size,
        };
        *field = Some(size as u64);
    }

    fn window(&self, window: u16) -> u16 {
        let said = self.window_size.map_or(window, |said| u16::try_from(said).unwrap_or(WINDOW_MAX));
        said.min(window).min(WINDOW_MAX)
    }

    fn fragments(&self) -> Option<usize> {
        let max = || usize::try_from(self.max_message_size.unwrap_or(0)).unwrap_or(usize::MAX);
        (self.fragmentation == Some(true)).then(max)
    }

    fn checksum(&self) -> ChecksumKind {
        if self.checksum.as_deref() == Some(ChecksumKind::Crc32c.as_str()) {
            ChecksumKind::Crc32c
        } else {
            ChecksumKind::Md5
        }
    }

    /// Returns true if the peer tells messages that are handled from packets that are received;
    /// only one of ours does.
    fn handled(&self) -> bool {
        self.handled == Some(true) && self.fragmentation == Some(true)
    }

    /// Reports whether the session goes on when the client's address changes: between ours, where
    /// packets are covered with the session's id.
    fn moves(&self, config: &SessionConfig) -> bool {
        self.moves == Some(true)
            && self.fragmentation == Some(true)
            && self.checksum() == ChecksumKind::Crc32c
            && config.wants_moves()
    }

    /// Calls that the peer takes at once, if both ends know calls; only one of ours does.
    fn calls(&self, config: &SessionConfig) -> Option<u16> {
        self.calls.filter(|_| config.calls.is_some() && self.fragmentation == Some(true))
    }

    fn keep_alive(&self, ours: Option<Duration>) -> Option<Duration> {
        let theirs = Duration::from_millis(self.keep_alive?);
        Some(theirs.min(ours?).clamp(SessionConfig::KEEP_ALIVE_MIN, SessionConfig::KEEP_ALIVE_MAX))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The payload of a SYN that asks for what `config` says.
pub fn write_syn(config: &SessionConfig) -> Vec<u8> {
    let burst = config.mode == Mode::Burst;
    let window = if burst { config.window } else { 1 };
    if config.syn_form != SynForm::Full {
        return json::write(&Fields {
            // Programs of the field pass over it; a FastDrop says the same, and is asked in full.
            fragmentation: Some(true),
            protocol: Some(config.protocol),
            max_fragment_size: Some(CHARACTERS_MAX as u64),
            window_size: Some(window.into()),
            client_id: config.client_id.clone().map(SessionId::Text),
            ..Fields::default()
        });
    }
    json::write(&Fields {
        max_fragment_size: (config.carrier == Carrier::Stream).then_some(CHARACTERS_MAX as u64),
        operation_mode: Some(config.mode),
        max_packet_size: Some(config.packet_max.min(config.limits.message_max) as u64),
        window_size: burst.then(|| config.window.into()),
        client_id: config.client_id.clone().map(SessionId::Text),
        token: config.token.clone(),
        protocol: burst.then_some(config.protocol),
        fragmentation: Some(true),
        max_message_size: Some(config.limits.message_max as u64),
        checksum: (config.checksum == ChecksumKind::Crc32c).then(|| config.checksum.as_str().into()),
        keep_alive: config.keep_alive.map(millis),
        handled: config.handled.then_some(true),
        calls: config.calls,
        moves: config.wants_moves().then_some(true),
        ..Fields::default()
    })
}

/// A SYN that was understood.
#[derive(Debug)]
pub struct Syn {
    mode: Mode,
    generation: Generation,
    size_name: SizeName,
    size: Option<usize>,
    fields: Fields,
}

impl Syn {
    /// Reads the payload of a SYN that came in a packet of this layout.
    pub fn parse(payload: &[u8], layout: Layout) -> Result<Self, HandshakeError> {
        let fields = Fields::read(payload)?;
        let (size_name, size) = fields.size()?;
        let (mode, generation) = match (fields.operation_mode, fields.protocol) {
            _ if layout == Layout::Marked => (Mode::Burst, Generation::Fourth),
            (Some(mode), _) if fields.fragments().is_some() => (mode, Generation::FastDrop),
            // The first has no protocol, and says max_size as well.
            (Some(mode), Some(_)) if size_name == SizeName::Size => (mode, Generation::Second),
            (Some(mode), _) => (mode, Generation::First),
            (None, Some(_)) => (Mode::Burst, Generation::Third),
            (None, None) => return malformed("neither operation_mode nor protocol"),
        };
        Ok(Self { mode, generation, size_name, size, fields })
    }

    /// Reports whether its sender cuts messages by characters, which no program does by UDP.
    pub(super) fn cuts_characters(&self) -> bool {
        self.generation.cuts_characters()
    }

    /// The decision of a server with this configuration about whether the client is let in.
    pub(super) fn authorize(&self, config: &SessionConfig) -> Result<(), String> {
        let Some(authorize) = &config.authorize else { return Ok(()) };
        let name = self.fields.client_id.as_ref().map(SessionId::text);
        authorize.decide(&Credentials::new(self.fields.token.as_ref().map(Token::secret), name.as_deref()))
    }

    /// The terms that a server with this configuration agrees to, and the payload of the SYN-ACK
    /// that says so.
    pub fn answer(&self, config: &SessionConfig, id: SessionId) -> (Agreed, Vec<u8>) {
        let fields = &self.fields;
        let burst = self.mode == Mode::Burst;
        let cuts_characters = self.generation.cuts_characters();
        let size = if cuts_characters { None } else { self.size }.unwrap_or(usize::MAX);
        let agreed = Agreed {
            id,
            client_id: fields.client_id.as_ref().map(|id| id.text().into_owned()),
            mode: self.mode,
            protocol: fields.protocol.filter(|_| burst),
            window: if burst { fields.window(config.window) } else { 1 },
            packet_max: size.min(config.packet_max).min(config.limits.message_max),
            checksum: if cuts_characters { ChecksumKind::Md5 } else { fields.checksum() },
            fragments: fields.fragments().filter(|_| !cuts_characters),
            keep_alive: if cuts_characters { None } else { fields.keep_alive(config.keep_alive) },
            handled: config.handled && fields.handled() && !cuts_characters,
            calls: fields.calls(config),
            moves: fields.moves(config),
            generation: self.generation,
            characters: cuts_characters.then(|| characters(self.size)),
            data_unknown: false,
        };
        let ours = agreed.strict();
        let knows_ours = ours || fields.fragmentation == Some(true);
        let mut answer = Fields {
            status: Some("ok".into()),
            session_id: Some(agreed.id.clone()),
            operation_mode: (!cuts_characters).then_some(agreed.mode),
            window_size: burst.then(|| agreed.window.into()),
            protocol: agreed.protocol,
            fragmentation: ours.then_some(true),
            // A FastDrop that asks in another form learns by it that it may ask in full.
            max_message_size: knows_ours.then_some(config.limits.message_max as u64),
            checksum: (agreed.checksum == ChecksumKind::Crc32c).then(|| agreed.checksum.as_str().into()),
            keep_alive: agreed.keep_alive.map(millis),
            handled: agreed.handled.then_some(true),
            calls: config.calls.filter(|_| agreed.calls.is_some()),
            moves: agreed.moves.then_some(true),
            ..Fields::default()
        };
        answer.set_size(self.size_name, agreed.characters.unwrap_or(agreed.packet_max));
        (agreed, json::write(&answer))
    }
}

/// Characters of a fragment, where the peer says so many, or nothing.
fn characters(said: Option<usize>) -> usize {
    said.unwrap_or(CHARACTERS_DEFAULT).min(CHARACTERS_MAX)
}

/// The refusal of a SYN-ACK that says no to a client that is not let in.
const UNAUTHORIZED: &str = "unauthorized";

/// The payload of a SYN-ACK that says no.
pub fn write_refusal(why: &str) -> Vec<u8> {
    json::write(&Fields { status: Some(why.into()), ..Fields::default() })
}

/// The same to a client that is not let in.
pub(super) fn write_unauthorized(why: &str) -> Vec<u8> {
    json::write(&Fields { status: Some(why.into()), refusal: Some(UNAUTHORIZED.into()), ..Fields::default() })
}

/// The whole packet of a SYN-ACK that says no, for a client that has said nothing yet.
pub fn refusal(why: &str) -> Vec<u8> {
    let mut packet = Vec::new();
    append(&mut packet, PacketType::Ack.byte(), Seq(0), 0, &Checksum::Md5, &write_refusal(why));
    packet
}

/// Reads a SYN-ACK: what was agreed on by a client with this configuration.
pub fn read_syn_ack(payload: &[u8], config: &SessionConfig) -> Result<Agreed, HandshakeError> {
    let fields = Fields::read(payload)?;
    match fields.status.as_deref() {
        Some(status) if status.eq_ignore_ascii_case("ok") => {}
        Some(status) if fields.refusal.as_deref() == Some(UNAUTHORIZED) => {
            return Err(HandshakeError::Unauthorized(status.into()));
        }
        Some(status) => return Err(HandshakeError::Refused(status.into())),
        None => return malformed("no status"),
    }
    let Some(id) = fields.session_id.clone() else { return malformed("no session_id") };
    // Of which neither that SYN nor a program of the field says anything.
    if config.syn_form != SynForm::Full && fields.max_message_size.is_some() {
        return Err(HandshakeError::KnowsMore);
    }
    let (size_name, size) = fields.size()?;
    let generation = match config.syn_form {
        SynForm::Third => Generation::Third,
        SynForm::Fourth => Generation::Fourth,
        SynForm::Full if fields.fragments().is_some() => Generation::FastDrop,
        // The later ones have no such mode, and the second generation has another name for sizes.
        SynForm::Full if fields.operation_mode.is_some() || size_name == SizeName::Size => Generation::First,
        SynForm::Full if fields.protocol.is_some() || size_name == SizeName::Fragment => Generation::Third,
        SynForm::Full => Generation::First,
    };
    let cuts_characters = generation.cuts_characters();
    if cuts_characters && config.carrier == Carrier::Datagrams {
        return malformed("a program that speaks by TCP alone");
    }
    // A server may agree to less than was asked for; what it says beyond that is not meant for us.
    let burst = config.mode == Mode::Burst && fields.operation_mode != Some(Mode::StepByStep);
    let crc32c = config.checksum == ChecksumKind::Crc32c && !cuts_characters;
    let said = if cuts_characters { None } else { size }.unwrap_or(usize::MAX);
    Ok(Agreed {
        id,
        client_id: config.client_id.clone(),
        mode: if burst { Mode::Burst } else { Mode::StepByStep },
        protocol: fields.protocol.filter(|_| burst),
        window: if burst { fields.window(config.window) } else { 1 },
        packet_max: said.min(config.packet_max).min(config.limits.message_max),
        checksum: if crc32c { fields.checksum() } else { ChecksumKind::Md5 },
        fragments: fields.fragments().filter(|_| !cuts_characters),
        keep_alive: fields.keep_alive(config.keep_alive).filter(|_| !cuts_characters),
        handled: config.handled && fields.handled() && !cuts_characters,
        calls: fields.calls(config).filter(|_| !cuts_characters),
        moves: fields.moves(config) && crc32c,
        generation,
        characters: cuts_characters.then(|| characters(size)),
        data_unknown: generation == Generation::First
            && size_name == SizeName::Size
            && config.carrier == Carrier::Stream
            && !config.first_generation,
    })
}

/// The payload of the client's ACK.
pub fn write_ack(id: &SessionId) -> Vec<u8> {
    json::write(&Fields { session_id: Some(id.clone()), ..Fields::default() })
}

/// Which session an ACK is for.
pub fn read_ack(payload: &[u8]) -> Result<SessionId, HandshakeError> {
    Fields::read(payload)?.session_id.map_or_else(|| malformed("no session_id"), Ok)
}

#[cfg(test)]
mod tests {
    use super::super::config::Carrier;
    use super::*;

    fn server() -> SessionConfig {
        SessionConfig { window: 100, packet_max: 5000, ..SessionConfig::server(Carrier::Stream) }
    }

    fn answer(syn: &str) -> (Agreed, String) {
        let (agreed, answer) =
            Syn::parse(syn.as_bytes(), Layout::Plain).unwrap().answer(&server(), SessionId::Text("x".into()));
        (agreed, String::from_utf8(answer).unwrap())
    }

    #[test]
    fn what_the_field_says_is_answered_in_its_words() {
        for (syn, expected) in [
            (
                r#"{"operation_mode": "step-by-step", "max_packet_size": 1024}"#,
                r#"{"status":"ok","session_id":"x","operation_mode":"step-by-step","max_packet_size":1024}"#,
            ),
            (
                r#"{"operation_mode": "burst", "max_size": 9999, "window_size": 4, "client_id": 7}"#,
                r#"{"status":"ok","session_id":"x","operation_mode":"burst","max_size":5000,"window_size":4}"#,
            ),
            (
                r#"{"protocol": "gbn", "max_fragment_size": 3, "window_size": 400}"#,
                r#"{"status":"ok","session_id":"x","protocol":"gbn","max_fragment_size":3,"window_size":100}"#,
            ),
        ] {
            let (agreed, text) = answer(syn);
            assert_eq!(text, expected);
            assert_eq!(
                (agreed.checksum, agreed.fragments, agreed.keep_alive),
                (ChecksumKind::Md5, None, None)
            );
        }
    }

    #[test]
    fn generations_are_told_apart_by_what_they_say() {
        use Generation::{FastDrop, First, Fourth, Second, Third};
        let of_syn = |syn: &str, layout| {
            let syn = Syn::parse(syn.as_bytes(), layout).unwrap();
            let (agreed, answer) = syn.answer(&server(), SessionId::Text("x".into()));
            let answer = String::from_utf8(answer).unwrap();
            assert_eq!(answer.contains("operation_mode"), !agreed.generation.cuts_characters(), "{answer}");
            (agreed.generation, agreed.characters)
        };
        for (syn, expected) in [
            (r#"{"operation_mode":"burst","max_packet_size":9}"#, (First, None)),
            (r#"{"operation_mode":"step-by-step","max_size":9}"#, (First, None)),
            (r#"{"operation_mode":"burst","max_size":9,"protocol":"sr"}"#, (Second, None)),
            (r#"{"operation_mode":"burst","max_packet_size":9,"fragmentation":true}"#, (FastDrop, None)),
            (r#"{"protocol":"gbn","max_fragment_size":7,"window_size":4}"#, (Third, Some(7))),
            (r#"{"protocol":"sr"}"#, (Third, Some(3))),
            (r#"{"protocol":"sr","max_fragment_size":4000}"#, (Third, Some(CHARACTERS_MAX))),
        ] {
            assert_eq!(of_syn(syn, Layout::Plain), expected, "{syn}");
            assert_eq!(of_syn(syn, Layout::Marked).0, Fourth, "{syn}");
        }
        let of_answer = |answer: &str, syn_form| {
            let config = SessionConfig { syn_form, ..SessionConfig::client(Carrier::Stream) };
            let agreed = read_syn_ack(answer.as_bytes(), &config).unwrap();
            (agreed.generation, agreed.characters, agreed.data_unknown)
        };
        for (answer, expected) in [
            (r#""operation_mode":"burst","max_packet_size":9"#, (First, None, false)),
            (r#""operation_mode":"burst","max_size":9"#, (First, None, true)),
            (r#""max_size":9,"protocol":"sr""#, (First, None, true)),
            (r#""protocol":"sr","max_fragment_size":5,"window_size":2"#, (Third, Some(5), false)),
            (r#""max_fragment_size":5"#, (Third, Some(5), false)),
            (r#""protocol":"sr""#, (Third, Some(3), false)),
        ] {
            let answer = format!(r#"{{"status":"ok","session_id":"x",{answer}}}"#);
            assert_eq!(of_answer(&answer, SynForm::Full), expected, "{answer}");
            assert_eq!(of_answer(&answer, SynForm::Fourth).0, Fourth);
            assert_eq!(of_answer(&answer, SynForm::Third).0, Third);
        }
        // Its packets fit into what those programs read at once.
        let longest = Layout::Marked.head_bytes() + CHARACTERS_MAX * CHARACTER_BYTES;
        assert!(longest <= READ_BYTES && longest + CHARACTER_BYTES > READ_BYTES);
    }

    #[test]
    fn ours_agree_on_everything() {
        for mode in [Mode::StepByStep, Mode::Burst] {
            let client = SessionConfig {
                mode,
                protocol: Protocol::GoBackN,
                client_id: Some("me".into()),
                ..SessionConfig::client(Carrier::Stream)
            };
            let syn = write_syn(&client);
            let (agreed, syn_ack) =
                Syn::parse(&syn, Layout::Plain).unwrap().answer(&server(), SessionId::from_random([7; 16]));
            assert!(syn_ack.len() <= 3 * syn.len());
            assert_eq!(read_syn_ack(&syn_ack, &client).unwrap(), agreed);
            assert_eq!(agreed.packet_max, 5000);
            assert_eq!(agreed.window, if mode == Mode::Burst { 100 } else { 1 });
            assert_eq!(agreed.checksum, ChecksumKind::Crc32c);
            assert_eq!(agreed.fragments, Some(16 << 20));
            assert_eq!(read_ack(&write_ack(&agreed.id)).unwrap(), agreed.id);
        }
    }

    #[test]
    fn cases_14_to_17_and_20_what_is_no_syn_is_refused() {
        let deep = format!(r#"{{"operation_mode":"burst","x":{}{}}}"#, "[".repeat(1000), "]".repeat(1000));
        for syn in [
            deep.as_str(),
            "",
            "7",
            "{}",
            r#"{"operation_mode":"burst","operation_mode":"burst"}"#,
            r#"{"operation_mode":"fast"}"#,
            r#"{"protocol":"tcp"}"#,
            r#"{"operation_mode":"burst","max_packet_size":0}"#,
            r#"{"operation_mode":"burst","max_packet_size":-1}"#,
            r#"{"operation_mode":"burst","max_packet_size":1e400}"#,
            r#"{"operation_mode":"burst","max_packet_size":1024.0}"#,
            r#"{"operation_mode":"burst","max_packet_size":"1024"}"#,
            r#"{"operation_mode":"burst","max_packet_size":9007199254740993}"#,
            r#"{"operation_mode":"burst","window_size":0}"#,
            r#"{"operation_mode":"burst","client_id":"\ud800"}"#,
            r#"{"operation_mode":"burst"} x"#,
        ] {
            assert!(
                matches!(Syn::parse(syn.as_bytes(), Layout::Plain), Err(HandshakeError::Malformed(_))),
                "{syn}"
            );
        }
        assert!(Syn::parse(b"{\"operation_mode\":\"burst\",\"client_id\":\"\xff\"}", Layout::Plain).is_err());
        let long = format!(r#"{{"operation_mode":"burst","client_id":"{}"}}"#, "x".repeat(129));
        assert!(Syn::parse(long.as_bytes(), Layout::Plain).is_err());
        // Case 20: what is too much is cut down.
        let (agreed, _) =
            answer(r#"{"operation_mode":"burst","max_packet_size":9007199254740992,"window_size":70000}"#);
        assert_eq!((agreed.packet_max, agreed.window), (5000, 100));
    }

    #[test]
    fn a_server_may_agree_to_less_and_say_no() {
        let client = SessionConfig { window: 8, packet_max: 1000, ..SessionConfig::client(Carrier::Stream) };
        let read = |text: &str| read_syn_ack(text.as_bytes(), &client);
        let agreed = read(r#"{"status":"ok","session_id":12,"max_size":500,"window_size":70000}"#).unwrap();
        assert_eq!((agreed.packet_max, agreed.window, agreed.mode), (500, 8, Mode::Burst));
        assert_eq!((agreed.id.text().as_ref(), agreed.checksum), ("12", ChecksumKind::Md5));
        let agreed = read(r#"{"status":"OK","session_id":"a","operation_mode":"step-by-step"}"#).unwrap();
        assert_eq!((agreed.window, agreed.mode), (1, Mode::StepByStep));
        assert_eq!(read(r#"{"status":"full"}"#), Err(HandshakeError::Refused("full".into())));
        let other = r#"{"status":"full","refusal":"another"}"#;
        assert_eq!(read(other), Err(HandshakeError::Refused("full".into())));
        let unauthorized = String::from_utf8(write_unauthorized("no")).unwrap();
        assert_eq!(read(&unauthorized), Err(HandshakeError::Unauthorized("no".into())));
        for bad in [
            r#"{"status":"ok"}"#,
            r#"{"session_id":"a"}"#,
            r#"{"status":"ok","session_id":"a","window_size":0}"#,
        ] {
            assert!(matches!(read(bad), Err(HandshakeError::Malformed(_))), "{bad}");
        }
    }
}
