//! One end of CNP and programs of each published generation, in virtual time.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

use bytes::Bytes;
use fastdrop_proto::cnp::handshake::write_ack;
use fastdrop_proto::cnp::packet::{append, append_marked};
use fastdrop_proto::cnp::{
    Carrier, Checksum, Ending, ErrorCode, Event, Generation, Head, Layout, ReceiveId, Seq, Session,
    SessionConfig, SessionId, SynForm,
};
use fastdrop_testing::network::Random;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const DATA: u8 = 1;
const ACK: u8 = 2;
const LATER_DATA: u8 = 4;

fn id() -> SessionId {
    SessionId::Text("session".into())
}

/// Packets as a generation writes them.
#[derive(Debug, Clone, Copy)]
struct Dialect(Generation);

impl Dialect {
    fn packet(self, typ: u8, number: u16, is_last: bool, payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        match self.0 {
            Generation::Fourth => append_marked(&mut packet, is_last, typ, Seq(number), payload),
            _ => append(&mut packet, typ, Seq(number), number.into(), &Checksum::Md5, payload),
        }
        packet
    }

    fn layout(self) -> Layout {
        if self.0 == Generation::Fourth { Layout::Marked } else { Layout::Plain }
    }

    fn disconnect(self) -> Vec<u8> {
        let typ = if self.0 == Generation::Fourth { 6 } else { 5 };
        self.packet(typ, 0, false, b"Disconnect")
    }

    /// The packets that left: type, number, and payload. Each was written alone.
    fn read(self, outs: &[Vec<u8>]) -> Vec<(u8, u16, Vec<u8>)> {
        let read = |out: &Vec<u8>| {
            let head = Head::parse_as(self.layout(), out, 1 << 20).unwrap().unwrap();
            assert_eq!(head.packet_len(), out.len(), "not a packet alone");
            (head.typ, head.seq.0, head.payload(out).to_vec())
        };
        outs.iter().map(read).collect()
    }
}

fn give(session: &mut Session, now: Instant, packet: &[u8]) {
    let head = session.parse_head(packet).unwrap().unwrap();
    assert_eq!(head.packet_len(), packet.len());
    session.handle_packet(now, &head, head.payload(packet));
}

fn output(session: &mut Session, now: Instant) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| {
        let mut out = Vec::new();
        session.poll_transmit(now, &mut out, 1 << 20).then_some(out)
    })
    .collect()
}

/// Packets that leave now, or, if none does, when the next time has come.
fn next(session: &mut Session, now: &mut Instant) -> Vec<Vec<u8>> {
    let left = output(session, *now);
    if !left.is_empty() {
        return left;
    }
    *now = session.poll_timeout().expect("something to wait for").max(*now);
    session.handle_timeout(*now);
    output(session, *now)
}

fn events(session: &mut Session) -> Vec<Event> {
    std::iter::from_fn(|| session.poll_event()).collect()
}

/// The messages that came, each of which is handled at once.
fn messages(session: &mut Session, now: Instant, first: u64) -> Vec<Bytes> {
    let came: Vec<Bytes> = events(session)
        .into_iter()
        .filter_map(|event| if let Event::Message(message) = event { Some(message) } else { None })
        .collect();
    for n in 0..came.len() as u64 {
        session.acknowledge(now, ReceiveId(first + n));
    }
    came
}

/// A server's end, asked by a client of that generation with this SYN.
fn server(now: Instant, dialect: Dialect, syn: &str) -> Session {
    let mut session = Session::accept(now, SessionConfig::server(Carrier::Stream), id());
    give(&mut session, now, &dialect.packet(1, 0, false, syn.as_bytes()));
    let answer = dialect.read(&output(&mut session, now));
    assert_eq!((answer.len(), answer[0].0), (1, ACK));
    give(&mut session, now, &dialect.packet(3, 0, false, &write_ack(&id())));
    assert_eq!(events(&mut session), [Event::Opened]);
    session
}

/// A client's end, answered by a server of that generation with this SYN-ACK, and what has left by
/// then.
fn client(now: Instant, dialect: Dialect, config: SessionConfig, fields: &str) -> Session {
    let mut session = Session::connect(now, config);
    assert_eq!(dialect.read(&output(&mut session, now))[0].0, 1);
    let answer = format!(r#"{{"status":"ok","session_id":"session",{fields}}}"#);
    give(&mut session, now, &dialect.packet(ACK, 0, false, answer.as_bytes()));
    assert_eq!(events(&mut session), [Event::Opened]);
    session
}

const FIRST: &str = r#""operation_mode":"step-by-step","max_packet_size":1024"#;
const SECOND_OR_FIRST: &str = r#""operation_mode":"burst","max_size":1024,"window_size":4"#;
const LATER: &str = r#""protocol":"sr","max_fragment_size":3,"window_size":4"#;

fn asking(generation: Generation) -> SessionConfig {
    let syn_form = if generation == Generation::Fourth { SynForm::Fourth } else { SynForm::Full };
    SessionConfig { syn_form, ..SessionConfig::client(Carrier::Stream) }
}

#[test]
fn case_62_a_message_that_is_cut_with_its_tls_is_not_taken_for_whole() {
    for (cut, came) in [(false, 1), (true, 0)] {
        let (now, dialect) = (Instant::now(), Dialect(Generation::Third));
        let mut session = server(now, dialect, &format!("{{{LATER}}}"));
        give(&mut session, now, &dialect.packet(LATER_DATA, 0, false, b"abc"));
        if cut {
            session.handle_truncation()
        } else {
            session.handle_end()
        }
        let events = events(&mut session);
        assert_eq!(events.iter().filter(|event| matches!(event, Event::Message(_))).count(), came);
        assert_eq!(events.last(), Some(&Event::Ended(Ending::ConnectionLost)));
    }
}

#[test]
fn data_leave_when_a_peer_of_one_read_a_packet_has_read_the_end_of_the_handshake() {
    for (generation, fields, pause) in [
        (Generation::First, FIRST, 50 * MS),
        (Generation::Second, SECOND_OR_FIRST, 50 * MS),
        (Generation::Third, LATER, 50 * MS),
        (Generation::Fourth, LATER, 50 * MS),
        (Generation::First, FIRST, 200 * MS),
        (Generation::First, FIRST, Duration::ZERO),
        (Generation::FastDrop, r#""operation_mode":"burst","fragmentation":true"#, Duration::ZERO),
    ] {
        let dialect = Dialect(generation);
        let now = Instant::now();
        let config = match generation {
            Generation::FastDrop => asking(generation),
            _ => SessionConfig { unanswered_pause: pause, ..asking(generation) },
        };
        let mut session = client(now, dialect, config, fields);
        session.send(now, "abc".into()).unwrap();
        if pause.is_zero() {
            // Either may leave with the other only where packets are read by their lengths.
            let data = Event::Acknowledged(fastdrop_proto::cnp::SendId(0));
            assert!(output(&mut session, now).concat().ends_with(b"abc"), "{generation:?} {data:?}");
            continue;
        }
        let left = dialect.read(&output(&mut session, now));
        assert_eq!((left.len(), left[0].0), (1, 3), "{generation:?}");
        let early = now + pause - MS;
        session.handle_timeout(early);
        assert_eq!(output(&mut session, early), [[0; 0]; 0]);
        assert_eq!(session.poll_timeout(), Some(now + pause));
        session.handle_timeout(now + pause);
        let left = dialect.read(&output(&mut session, now + pause));
        assert_eq!((left.len(), &left[0].2[..]), (1, &b"abc"[..]), "{generation:?}");
    }
}

#[test]
fn data_behind_an_acknowledgement_wait_as_well_where_one_packet_at_a_time_is_under_way() {
    let now = Instant::now();
    let syn = r#"{"operation_mode":"step-by-step","max_packet_size":1000}"#;
    let mut session = server(now, Dialect(Generation::First), syn);
    give(&mut session, now, &Dialect(Generation::First).packet(DATA, 0, true, b"question"));
    assert_eq!(messages(&mut session, now, 0), ["question"]);
    session.send(now, "answer".into()).unwrap();
    let left = Dialect(Generation::First).read(&output(&mut session, now));
    assert_eq!((left.len(), left[0].0), (1, ACK));
    let later = now + 50 * MS;
    session.handle_timeout(later);
    let left = Dialect(Generation::First).read(&output(&mut session, later));
    assert_eq!((left[0].0, &left[0].2[..]), (DATA, &b"answer"[..]));
}

/// Programs of the field that wait for an echo read once for each packet: the acknowledgement, and
/// then the echo, whose own acknowledgement they send before the next message.
#[test]
fn echoes_leave_alone_and_after_the_pause_towards_every_generation() {
    for (generation, syn) in [
        (Generation::First, r#"{"operation_mode":"step-by-step","max_packet_size":1000}"#),
        (Generation::Second, r#"{"operation_mode":"step-by-step","max_size":1000,"protocol":"sr"}"#),
        (Generation::Third, r#"{"protocol":"sr","max_fragment_size":9,"window_size":1}"#),
        (Generation::Third, r#"{"protocol":"gbn","max_fragment_size":9,"window_size":4}"#),
        (Generation::Fourth, r#"{"protocol":"sr","max_fragment_size":9,"window_size":1}"#),
    ] {
        let dialect = Dialect(generation);
        let mut now = Instant::now();
        let mut session = server(now, dialect, syn);
        for (n, text) in ["one", "zw\u{f6}lf", "three", "four"].into_iter().enumerate() {
            let what = format!("{generation:?}, {text}");
            let is_later = matches!(generation, Generation::Third | Generation::Fourth);
            let seq = if is_later { 0 } else { n as u16 };
            let typ = if generation == Generation::First { DATA } else { LATER_DATA };
            give(&mut session, now, &dialect.packet(typ, seq, true, text.as_bytes()));
            assert_eq!(messages(&mut session, now, n as u64), [text], "{what}");
            session.send(now, text.into()).unwrap();
            assert_eq!(dialect.read(&output(&mut session, now)), [(ACK, seq, b"ACK".to_vec())], "{what}");
            let early = now + 50 * MS - MS / 1000;
            session.handle_timeout(early);
            assert_eq!(output(&mut session, early), [[0; 0]; 0], "{what}");
            assert_eq!(session.poll_timeout(), Some(now + 50 * MS), "{what}");
            now += 50 * MS;
            session.handle_timeout(now);
            let left = dialect.read(&output(&mut session, now));
            assert_eq!((left.len(), left[0].0, &left[0].2[..]), (1, typ, text.as_bytes()), "{what}");
            give(&mut session, now, &dialect.packet(ACK, left[0].1, false, b"ACK"));
            let echoed = Event::Acknowledged(fastdrop_proto::cnp::SendId(n as u64));
            assert_eq!(events(&mut session), [echoed], "{what}");
            assert_eq!(output(&mut session, now), [[0; 0]; 0], "{what}");
        }
    }
}

#[test]
fn data_of_the_second_generation_are_messages_and_signs_of_life_are_not() {
    let dialect = Dialect(Generation::First);
    for (syn, expected) in [
        (r#"{"operation_mode":"burst","max_size":1000,"window_size":4}"#, Generation::First),
        (r#"{"operation_mode":"burst","max_size":1000,"window_size":4,"protocol":"sr"}"#, Generation::Second),
        (r#"{"operation_mode":"step-by-step","max_packet_size":1000}"#, Generation::First),
    ] {
        let now = Instant::now();
        let mut session = server(now, dialect, syn);
        assert_eq!(session.generation(), Some(expected));
        let is_second = expected == Generation::Second;
        let mut came = Vec::new();
        let texts: [&[u8]; 4] = [b"one", b"two", b"", b"three"];
        for (number, payload) in texts.into_iter().enumerate() {
            give(&mut session, now, &dialect.packet(LATER_DATA, number as u16, true, payload));
            came.extend(messages(&mut session, now, came.len() as u64));
            let left = dialect.read(&output(&mut session, now));
            assert_eq!(left, [(ACK, number as u16, b"ACK".to_vec())]);
        }
        assert_eq!(came, texts);
        assert_eq!(session.generation(), Some(Generation::Second));
        // What this end says to it has that type as well.
        session.send(now, "back".into()).unwrap();
        let later = now + SECOND / 2;
        session.handle_timeout(later);
        assert_eq!(dialect.read(&output(&mut session, later))[0].0, LATER_DATA, "{is_second}");
    }
    // From one that has sent no data, or that has agreed to keep-alives, an empty one is a sign of
    // life.
    let now = Instant::now();
    let mut session = server(now, dialect, r#"{"operation_mode":"burst","max_size":1000}"#);
    give(&mut session, now, &dialect.packet(LATER_DATA, 5, true, b""));
    assert_eq!(dialect.read(&output(&mut session, now)), [(ACK, 5, b"ACK".to_vec())]);
    assert_eq!((events(&mut session).len(), session.generation()), (0, Some(Generation::First)));
    let syn = r#"{"operation_mode":"burst","max_size":1000,"keep_alive":5000}"#;
    let mut session = server(now, dialect, syn);
    give(&mut session, now, &dialect.packet(LATER_DATA, 0, true, b"hold"));
    assert_eq!(events(&mut session), []);
}

#[test]
fn a_server_of_the_first_or_the_second_generation_gets_data_as_it_takes_them() {
    let dialect = Dialect(Generation::First);
    for (takes, expected) in [(LATER_DATA, Generation::Second), (DATA, Generation::First)] {
        let mut now = Instant::now();
        let mut session = client(now, dialect, asking(Generation::First), SECOND_OR_FIRST);
        for message in ["one", "two", "three", "four"] {
            session.send(now, message.into()).unwrap();
        }
        let (mut taken, mut acknowledged, mut unacknowledged) = (Vec::new(), 0, 0);
        let begin = now;
        while acknowledged < 4 {
            let mut left = dialect.read(&next(&mut session, &mut now));
            left.retain(|(typ, ..)| *typ != 3);
            assert!(!taken.is_empty() || left.len() <= 1, "several before anything is known");
            for (typ, number, payload) in left {
                assert!([DATA, LATER_DATA].contains(&typ));
                // One that does not know the type says nothing.
                if typ != takes {
                    unacknowledged += 1;
                    continue;
                }
                taken.push(payload);
                give(&mut session, now, &dialect.packet(ACK, number, false, b"ACK"));
            }
            let is_ack = |event: &Event| matches!(event, Event::Acknowledged(_));
            acknowledged += events(&mut session).iter().filter(|event| is_ack(event)).count();
        }
        assert_eq!(taken, [&b"one"[..], b"two", b"three", b"four"]);
        assert_eq!(session.generation(), Some(expected));
        assert_eq!(unacknowledged, u32::from(takes == DATA), "asked more than once");
        assert!(now - begin < 2 * SECOND);
    }
}

#[test]
fn a_server_that_is_taken_for_the_first_generation_gets_its_data_from_the_beginning() {
    let dialect = Dialect(Generation::First);
    for (first_generation, typ) in [(false, LATER_DATA), (true, DATA)] {
        let mut now = Instant::now();
        let config = SessionConfig { first_generation, ..asking(Generation::First) };
        let mut session = client(now, dialect, config, SECOND_OR_FIRST);
        assert_eq!(session.agreed().unwrap().is_first_or_second(), !first_generation);
        session.send(now, "one".into()).unwrap();
        let mut left = dialect.read(&next(&mut session, &mut now));
        if left[0].0 == 3 {
            left = dialect.read(&next(&mut session, &mut now));
        }
        assert_eq!((left[0].0, &left[0].2[..]), (typ, &b"one"[..]));
    }
}

/// A program of the third or fourth generation that sends.
struct FieldSender {
    dialect: Dialect,
    characters: usize,
    window: usize,
    goes_back: bool,
    /// The share of packets that it leaves out or damages, to try itself: the fourth alone.
    loss: f64,
    random: Random,
}

impl FieldSender {
    fn fragments(&self, message: &str) -> Vec<String> {
        let characters: Vec<char> = message.chars().collect();
        let pieces: Vec<String> =
            characters.chunks(self.characters).map(|piece| piece.iter().collect()).collect();
        if pieces.is_empty() { vec![String::new()] } else { pieces }
    }

    /// Sends a message until all of it is acknowledged; `came` gets what the other end hands on.
    fn send(&mut self, session: &mut Session, now: &mut Instant, message: &str, came: &mut Vec<Bytes>) {
        let fragments = self.fragments(message);
        let (mut base, mut acknowledged) = (0, BTreeSet::new());
        for round in 0.. {
            assert!(round < 1000, "it does not end");
            for n in base..fragments.len().min(base + self.window) {
                if acknowledged.contains(&n) {
                    continue;
                }
                let is_last = n + 1 == fragments.len();
                let mut packet = self.dialect.packet(LATER_DATA, n as u16, is_last, fragments[n].as_bytes());
                if self.random.chance(self.loss) {
                    if self.random.chance(0.5) || fragments[n].is_empty() {
                        continue;
                    }
                    *packet.last_mut().unwrap() ^= 0x40;
                }
                give(session, *now, &packet);
            }
            came.extend(messages(session, *now, came.len() as u64));
            for (typ, number, payload) in self.dialect.read(&output(session, *now)) {
                if typ == 5 {
                    assert_eq!(self.dialect.0, Generation::Fourth);
                    continue;
                }
                assert_eq!((typ, &payload[..]), (ACK, &b"ACK"[..]));
                let first = if self.goes_back { 0 } else { usize::from(number) };
                acknowledged.extend(first..=usize::from(number));
            }
            while acknowledged.contains(&base) {
                base += 1;
            }
            if base == fragments.len() {
                return;
            }
            *now += 300 * MS;
            session.handle_timeout(*now);
        }
    }
}

fn texts() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[abc\u{e4}\u{20ac}\u{1f980}]{0,10}", 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]
    /// Messages of any length, also such whose end nothing marks: each whole, once, and in order.
    #[test]
    fn what_the_third_and_the_fourth_generation_send_is_taken_whole_once_and_in_order(
        texts in texts(),
        (fourth, goes_back) in any::<(bool, bool)>(),
        characters in 1..5_usize,
        window in 1..6_usize,
        seed: u64,
        end in 0..3,
    ) {
        let dialect = Dialect(if fourth { Generation::Fourth } else { Generation::Third });
        let protocol = if goes_back { "gbn" } else { "sr" };
        let syn = format!(r#"{{"protocol":"{protocol}","max_fragment_size":{characters},"window_size":{window}}}"#);
        let mut now = Instant::now();
        let mut session = server(now, dialect, &syn);
        prop_assert_eq!(session.generation(), Some(dialect.0));
        let loss = if fourth { 0.3 } else { 0.0 };
        let mut sender = FieldSender { dialect, characters, window, goes_back, loss, random: Random(seed) };
        let mut came = Vec::new();
        for (n, text) in texts.iter().enumerate() {
            // The next one begins at once, or after a while.
            if (seed >> (n % 64)) & 1 == 1 {
                now += 2 * SECOND;
                session.handle_timeout(now);
                came.extend(messages(&mut session, now, came.len() as u64));
            }
            sender.send(&mut session, &mut now, text, &mut came);
        }
        match end {
            0 => {
                give(&mut session, now, &dialect.disconnect());
                came.extend(messages(&mut session, now, came.len() as u64));
                prop_assert_eq!(dialect.read(&output(&mut session, now))[0].0, ACK);
            }
            1 => session.handle_end(),
            _ => {
                now += SECOND;
                session.handle_timeout(now);
            }
        }
        came.extend(messages(&mut session, now, came.len() as u64));
        prop_assert_eq!(came, texts);
    }

    /// A server that is slow, so that everything comes again and is acknowledged as often, and that
    /// sends something between: what is reported as acknowledged is what it got.
    #[test]
    fn an_acknowledgement_is_not_taken_for_that_of_the_next_message(
        (fourth, zero) in any::<(bool, bool)>(),
        service_ms in 0..3_000_u64,
        count in 2..6_u64,
        echoes: bool,
    ) {
        let dialect = Dialect(if fourth { Generation::Fourth } else { Generation::Third });
        let service = Duration::from_millis(service_ms);
        let mut now = Instant::now();
        let fields = r#""protocol":"sr","max_fragment_size":9,"window_size":1"#;
        let mut session = client(now, dialect, asking(dialect.0), fields);
        output(&mut session, now);
        for n in 0..count {
            session.send(now, format!("m{n}").into()).unwrap();
        }
        // When each copy has been looked at, and what it was.
        let mut looked_at: Vec<(Instant, Vec<u8>)> = Vec::new();
        let (mut got, mut acknowledged, mut busy_until) = (BTreeSet::new(), 0, now);
        while acknowledged < count {
            for (typ, number, payload) in dialect.read(&output(&mut session, now)) {
                if typ == LATER_DATA {
                    prop_assert_eq!(number, 0);
                    busy_until = busy_until.max(now) + service;
                    looked_at.push((busy_until, payload));
                }
            }
            let timer = session.poll_timeout();
            let done = looked_at.first().map(|(at, _)| *at);
            now = [timer, done].into_iter().flatten().min().expect("something happens").max(now);
            session.handle_timeout(now);
            if looked_at.first().is_some_and(|(at, _)| *at <= now) {
                let (_, payload) = looked_at.remove(0);
                got.insert(payload);
                give(&mut session, now, &dialect.packet(ACK, 0, false, b"ACK"));
                if echoes && zero {
                    give(&mut session, now, &dialect.packet(LATER_DATA, 0, true, b"echo"));
                }
            }
            for event in events(&mut session) {
                if let Event::Acknowledged(id) = event {
                    let message = format!("m{}", id.0).into_bytes();
                    prop_assert!(got.contains(&message), "message {} is not there", id.0);
                    acknowledged += 1;
                }
            }
        }
    }

    /// Messages to them are cut by characters, numbered from 0, and go one by one.
    #[test]
    fn the_third_and_the_fourth_generation_get_messages_whole_once_and_in_order(
        texts in texts(),
        fourth: bool,
        characters in 1..5_usize,
        seed: u64,
    ) {
        let dialect = Dialect(if fourth { Generation::Fourth } else { Generation::Third });
        let mut now = Instant::now();
        let fields = format!(r#""protocol":"sr","max_fragment_size":{characters},"window_size":9"#);
        let mut session = client(now, dialect, asking(dialect.0), &fields);
        prop_assert_eq!(session.generation(), Some(dialect.0));
        output(&mut session, now);
        for text in &texts {
            session.send(now, text.clone().into()).unwrap();
        }
        let mut random = Random(seed);
        let (mut fragments, mut expected) = (Vec::new(), 0);
        let mut acknowledged = 0;
        while acknowledged < texts.len() {
            let left = next(&mut session, &mut now);
            prop_assert!(left.len() <= 1, "several at once");
            for out in &left {
                let (typ, number, payload) = dialect.read(std::slice::from_ref(out)).remove(0);
                prop_assert_eq!(typ, LATER_DATA);
                let text = String::from_utf8(payload).expect("characters are not cut");
                prop_assert!(text.chars().count() <= characters);
                if fourth && random.chance(0.2) {
                    // Lost on its channel, or damaged there.
                    if random.chance(0.5) {
                        give(&mut session, now, &dialect.packet(5, number, false, b"NACK"));
                    }
                    continue;
                }
                let is_last = fourth.then(|| out[11] == 1);
                prop_assert!(number == 0 || number == expected, "{} where {} was due", number, expected);
                fragments.push((number, is_last, text));
                expected = number + 1;
                give(&mut session, now, &dialect.packet(ACK, number, false, b"ACK"));
                give(&mut session, now, &dialect.packet(if fourth { 99 } else { ACK }, number, false, b"ACK"));
            }
            let is_ack = |event: &Event| matches!(event, Event::Acknowledged(_));
            acknowledged += events(&mut session).iter().filter(|event| is_ack(event)).count();
        }
        let mut came: Vec<String> = Vec::new();
        for (number, is_last, text) in fragments {
            if number == 0 {
                came.push(String::new());
            }
            came.last_mut().unwrap().push_str(&text);
            if let Some(is_last) = is_last {
                prop_assert_eq!(is_last, came.last() == texts.get(came.len() - 1));
            }
        }
        prop_assert_eq!(came, texts);
    }
}

#[test]
fn a_message_that_was_acknowledged_is_handed_on_however_the_session_ends() {
    let dialect = Dialect(Generation::Third);
    let syn = r#"{"protocol":"sr","max_fragment_size":3,"window_size":1}"#;
    for end in 0..3 {
        let mut now = Instant::now();
        let mut session = server(now, dialect, syn);
        give(&mut session, now, &dialect.packet(LATER_DATA, 0, false, b"abc"));
        assert_eq!(dialect.read(&output(&mut session, now)), [(ACK, 0, b"ACK".to_vec())]);
        match end {
            // What may go on is waited for before the session is closed.
            0 => {
                session.close(now);
                assert!(output(&mut session, now).is_empty());
                now += SECOND;
                session.handle_timeout(now);
                assert_eq!(dialect.read(&output(&mut session, now))[0].0, 5);
            }
            1 => session.abort(ErrorCode::Shutdown, "the program ends"),
            _ => give(&mut session, now, &dialect.packet(3, 0, false, b"something is wrong")),
        }
        assert_eq!(events(&mut session).first(), Some(&Event::Message("abc".into())), "end {end}");
    }
}

#[test]
fn the_first_part_of_a_message_that_pauses_is_handed_on_and_the_rest_is_an_error() {
    let now = Instant::now();
    let dialect = Dialect(Generation::Third);
    let mut session = server(now, dialect, r#"{"protocol":"sr","max_fragment_size":3,"window_size":1}"#);
    give(&mut session, now, &dialect.packet(LATER_DATA, 0, false, b"abc"));
    output(&mut session, now);
    let later = now + SECOND;
    session.handle_timeout(later);
    assert_eq!(messages(&mut session, later, 0), ["abc"]);
    give(&mut session, later, &dialect.packet(LATER_DATA, 1, false, b"de"));
    let ended = events(&mut session);
    assert!(
        matches!(&ended[..], [Event::Ended(Ending::Protocol(why))] if why.contains("went on")),
        "{ended:?}"
    );
}

#[test]
fn what_waits_to_be_handled_is_not_acknowledged_and_its_repetition_is_no_new_message() {
    for generation in [Generation::Third, Generation::Fourth] {
        let dialect = Dialect(generation);
        let now = Instant::now();
        let mut session = server(now, dialect, r#"{"protocol":"gbn","max_fragment_size":3,"window_size":2}"#);
        let fragment = dialect.packet(LATER_DATA, 0, true, b"ab");
        for _ in 0..3 {
            give(&mut session, now, &fragment);
            assert!(output(&mut session, now).is_empty());
        }
        assert_eq!(events(&mut session), [Event::Message("ab".into())]);
        session.acknowledge(now, ReceiveId(0));
        assert_eq!(dialect.read(&output(&mut session, now)), [(ACK, 0, b"ACK".to_vec())]);
        give(&mut session, now, &fragment);
        assert_eq!(events(&mut session), [Event::Message("ab".into())]);
    }
}

#[test]
fn a_message_that_is_no_text_is_refused_before_it_is_sent() {
    for generation in [Generation::Third, Generation::Fourth] {
        let now = Instant::now();
        let mut session = client(now, Dialect(generation), asking(generation), LATER);
        let error = session.send(now, Bytes::from_static(b"\xff\xfe")).unwrap_err();
        assert!(error.to_string().contains("no text"));
        // As is one for which there are not enough numbers.
        let max = session.agreed().unwrap().message_max();
        assert_eq!(max, 3 << 16);
        assert!(session.send(now, vec![b'x'; max + 1].into()).is_err());
        assert!(session.send(now, vec![b'x'; max].into()).is_ok());
        assert!(session.send(now, "\u{20ac}".repeat(max).into()).is_ok());
    }
}

#[test]
fn a_server_that_answers_with_another_header_is_left_to_be_asked_again() {
    let now = Instant::now();
    let mut session = Session::connect(now, SessionConfig::client(Carrier::Stream));
    output(&mut session, now);
    let nack = Dialect(Generation::Fourth).packet(5, 0, false, br#"{"status":"bad checksum"}"#);
    give(&mut session, now, &nack);
    assert!(matches!(&events(&mut session)[..], [Event::Ended(Ending::Protocol(_))]));
}
