//! One end of CNP, told packets one by one as all kinds of peers write them.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

use bytes::Bytes;
use fastdrop_proto::cnp::handshake::{write_ack, write_syn};
use fastdrop_proto::cnp::packet::{HEAD_BYTES, append};
use fastdrop_proto::cnp::{
    Accepted, Acceptor, Carrier, Checksum, ChecksumKind, Ending, Event, MessageLimits, ReceiveId, SendError,
    Seq, Session, SessionConfig, SessionId,
};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
const STEP_BY_STEP: &[u8] =
    br#"{"operation_mode":"step-by-step","max_packet_size":1000,"x":"so that it may have an answer"}"#;
const BURST: &[u8] =
    br#"{"operation_mode":"burst","window_size":8,"max_packet_size":1000,"x":"so that it may have an answer"}"#;

fn id(n: u8) -> SessionId {
    SessionId::from_random([n; 16])
}

fn address() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 1))
}

fn packet(typ: u8, number: u64, checksum: &Checksum, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    append(&mut packet, typ, Seq::of(number), number, checksum, payload);
    packet
}

fn md5(typ: u8, number: u64, payload: &[u8]) -> Vec<u8> {
    packet(typ, number, &Checksum::Md5, payload)
}

/// A server's end by UDP, asked for by this SYN.
fn by_udp(now: Instant, syn: &[u8]) -> Session {
    let config = SessionConfig::server(Carrier::Datagrams);
    let mut acceptor = Acceptor::new(config.clone());
    let syn = md5(1, 0, syn);
    let answer = acceptor.handle_datagram(now, address(), &syn, || Some(id(7)));
    assert!(matches!(answer, Accepted::Answer(_)));
    let ack = md5(3, 0, &write_ack(&id(7)));
    let Accepted::Session(handshake) = acceptor.handle_datagram(now, address(), &ack, || None) else {
        panic!("no session")
    };
    let mut session = Session::accepted(now, config, handshake);
    session.handle_datagram(now, &ack);
    events(&mut session);
    session
}

/// A server's end by TCP, asked for by this SYN.
fn by_tcp(now: Instant, syn: &[u8]) -> Session {
    let mut session = Session::accept(now, SessionConfig::server(Carrier::Stream), id(7));
    give(&mut session, now, &md5(1, 0, syn));
    output(&mut session, now);
    give(&mut session, now, &md5(3, 0, &write_ack(&id(7))));
    events(&mut session);
    session
}

/// A client's end by TCP, answered with this SYN-ACK.
fn client(now: Instant, config: SessionConfig, syn_ack: &[u8]) -> Session {
    let config = SessionConfig { unanswered_pause: Duration::ZERO, ..config };
    let mut session = Session::connect(now, config);
    output(&mut session, now);
    give(&mut session, now, &md5(2, 0, syn_ack));
    output(&mut session, now);
    assert_eq!(events(&mut session), [Event::Opened]);
    session
}

fn give(session: &mut Session, now: Instant, packet: &[u8]) {
    let head = session.parse_head(packet).unwrap().unwrap();
    session.handle_packet(now, &head, head.payload(packet));
}

fn output(session: &mut Session, now: Instant) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| {
        let mut out = Vec::new();
        session.poll_transmit(now, &mut out, 1 << 20).then_some(out)
    })
    .collect()
}

fn events(session: &mut Session) -> Vec<Event> {
    std::iter::from_fn(|| session.poll_event()).collect()
}

fn messages(session: &mut Session) -> Vec<Bytes> {
    let message = |event| match event {
        Event::Message(message) => Some(message),
        _ => None,
    };
    events(session).into_iter().filter_map(message).collect()
}

#[test]
fn by_udp_numbers_are_taken_as_the_specification_says_whoever_sends_them() {
    let now = Instant::now();
    for (syn, numbers, expected) in
        [(STEP_BY_STEP, [0, 1, 0], &["0", "1"][..]), (BURST, [1, 0, 2], &["0", "1", "2"])]
    {
        let mut session = by_udp(now, syn);
        for number in numbers {
            session.handle_datagram(now, &md5(1, number, number.to_string().as_bytes()));
            output(&mut session, now);
        }
        assert_eq!(messages(&mut session), expected);
    }
}

#[test]
fn a_sign_of_life_that_was_not_agreed_on_is_not_acknowledged_by_udp() {
    let now = Instant::now();
    let ours = SessionConfig { keep_alive: None, ..SessionConfig::client(Carrier::Datagrams) };
    for syn in [write_syn(&ours), STEP_BY_STEP.to_vec()] {
        let mut session = by_udp(now, &syn);
        let checksum = match session.agreed().unwrap().checksum {
            ChecksumKind::Md5 => Checksum::Md5,
            ChecksumKind::Crc32c => Checksum::crc32c(&id(7).text()),
        };
        output(&mut session, now);
        session.handle_datagram(now, &packet(4, 0, &checksum, b"alive"));
        assert!(output(&mut session, now).is_empty());
    }
    // By TCP a peer of the field expects it.
    let mut session = by_tcp(now, STEP_BY_STEP);
    give(&mut session, now, &md5(4, 5, b""));
    assert_eq!(output(&mut session, now), [md5(2, 5, b"ACK")]);
}

#[test]
fn a_second_syn_ack_is_no_sign_that_the_ack_has_arrived() {
    let mut now = Instant::now();
    let config = SessionConfig { checksum: ChecksumKind::Md5, ..SessionConfig::client(Carrier::Datagrams) };
    let mut acceptor = Acceptor::new(SessionConfig::server(Carrier::Datagrams));
    let mut session = Session::connect(now, config);
    let syn = output(&mut session, now).remove(0);
    let answer = acceptor.handle_datagram(now, address(), &syn, || Some(id(7)));
    let Accepted::Answer(syn_ack) = answer else { panic!("no answer") };
    session.handle_datagram(now, &syn_ack);
    let lost = output(&mut session, now);
    assert!(!lost.is_empty());
    session.handle_datagram(now, &syn_ack);
    now += 2 * SECOND;
    session.handle_timeout(now);
    let again = output(&mut session, now);
    let came = |one: &Vec<u8>| {
        matches!(acceptor.handle_datagram(now, address(), one, || None), Accepted::Session(_))
    };
    assert!(again.iter().any(came), "the ACK does not come again");
}

#[test]
fn what_comes_with_the_ack_of_another_session_is_that_sessions() {
    let now = Instant::now();
    let mut session = by_udp(now, BURST);
    let mut datagram = md5(3, 0, &write_ack(&id(9)));
    datagram.extend(md5(1, 0, b"for the new one"));
    session.handle_datagram(now, &datagram);
    assert_eq!(events(&mut session), []);
    // Its own ACK once more is answered, and what comes with it is taken.
    output(&mut session, now);
    let mut datagram = md5(3, 0, &write_ack(&id(7)));
    datagram.extend(md5(1, 0, b"for this one"));
    session.handle_datagram(now, &datagram);
    assert_eq!(messages(&mut session), ["for this one"]);
    assert_eq!(output(&mut session, now).len(), 1);
}

#[test]
fn crc32c_alone_covers_the_number_of_a_disconnect_request() {
    let now = Instant::now();
    let syn = br#"{"operation_mode":"burst","window_size":8,"max_packet_size":1000,"checksum":"crc32c"}"#;
    let mut session = by_tcp(now, syn);
    let checksum = Checksum::crc32c(&id(7).text());
    give(&mut session, now, &packet(1, 0, &checksum, b"a"));
    give(&mut session, now, &packet(5, 1, &checksum, b"Disconnect"));
    assert_eq!(events(&mut session), [Event::Message("a".into())]);
    // Both wait until the message is handled.
    assert!(output(&mut session, now).is_empty());
    session.acknowledge(now, ReceiveId(0));
    assert_eq!(events(&mut session), [Event::Ended(Ending::PeerClosed)]);
    assert_eq!(
        output(&mut session, now).concat(),
        [packet(2, 0, &checksum, b"ACK"), packet(2, 1, &checksum, b"ACK")].concat()
    );
}

#[test]
fn a_message_is_no_longer_than_its_receiver_says_even_if_a_packet_could_be() {
    let now = Instant::now();
    let syn_ack = br#"{"status":"ok","session_id":"s","operation_mode":"burst","max_packet_size":5000,"window_size":9,"fragmentation":true,"max_message_size":1000}"#;
    let mut session = client(now, SessionConfig::client(Carrier::Stream), syn_ack);
    assert!(matches!(session.send(now, vec![0; 1001].into()), Err(SendError::TooLarge(_))));
    assert!(session.send(now, vec![0; 1000].into()).is_ok());
    // What this end says itself is as consistent.
    let limits = MessageLimits { message_max: 700, ..MessageLimits::default() };
    let config = SessionConfig { limits, ..SessionConfig::server(Carrier::Stream) };
    let mut session = Session::accept(now, config, id(7));
    give(&mut session, now, &md5(1, 0, BURST));
    let answer = output(&mut session, now).concat();
    assert!(String::from_utf8_lossy(&answer).contains(r#""max_packet_size":700"#));
}

#[test]
fn the_second_acknowledgement_of_a_repeated_message_does_not_acknowledge_the_next() {
    let mut now = Instant::now();
    let syn_ack = br#"{"status":"ok","session_id":"s","operation_mode":"step-by-step","max_packet_size":99}"#;
    let mut session = client(now, SessionConfig::client(Carrier::Stream), syn_ack);
    for message in ["one", "two"] {
        session.send(now, message.into()).unwrap();
    }
    assert_eq!(output(&mut session, now).len(), 1);
    now += 2 * SECOND;
    session.handle_timeout(now);
    assert_eq!(output(&mut session, now), [md5(1, 0, b"one")]);
    // Both copies are acknowledged, by a peer that says 0 to everything.
    give(&mut session, now, &md5(2, 0, b"ACK"));
    assert_eq!(output(&mut session, now), [md5(1, 1, b"two")]);
    // Of one that is damaged nothing is learned.
    let mut damaged = md5(2, 0, b"ACK");
    damaged[HEAD_BYTES] ^= 1;
    give(&mut session, now, &damaged);
    give(&mut session, now, &md5(2, 0, b"ACK"));
    assert_eq!(session.counters().messages_acknowledged, 1);
    give(&mut session, now, &md5(2, 0, b"ACK"));
    let counters = session.counters();
    assert_eq!(counters.messages_acknowledged, 2);
    // SYN, ACK, the first message twice, the second.
    assert_eq!(counters.packets_sent, 5);
    // SYN-ACK, two acknowledgements; one that is damaged, and one for which nothing waited.
    assert_eq!((counters.packets_received, counters.checksum_failures), (3, 2));
}

#[test]
fn a_session_that_is_over_keeps_nothing() {
    let now = Instant::now();
    for carrier in [Carrier::Stream, Carrier::Datagrams] {
        let mut session = if carrier == Carrier::Stream { by_tcp(now, BURST) } else { by_udp(now, BURST) };
        session.send(now, vec![0; 900].into()).unwrap();
        session.handle_datagram(now, &md5(1, 0, b"first"));
        session.handle_datagram(now, &md5(1, 3, &[0; 500]));
        assert!(session.memory() > 1400);
        let taken = messages(&mut session);
        session.handle_datagram(now, &md5(3, 0, b"busy: something is wrong"));
        (0..taken.len() as u64).for_each(|id| session.acknowledge(now, ReceiveId(id)));
        output(&mut session, now);
        assert!(session.is_finished());
        assert_eq!(session.memory(), 0, "{carrier:?}");
    }
}

#[test]
fn case_96_by_udp_silence_is_the_end_also_without_signs_of_life() {
    let mut now = Instant::now();
    let mut session = by_udp(now, BURST);
    output(&mut session, now);
    while let Some(at) = session.poll_timeout() {
        now = at;
        session.handle_timeout(now);
        output(&mut session, now);
    }
    assert_eq!(events(&mut session), [Event::Ended(Ending::Gone)]);
}

#[test]
fn case_110_a_peer_of_the_field_has_its_acknowledgement_when_the_message_is_handled() {
    let mut now = Instant::now();
    for (syn, numbers) in [(STEP_BY_STEP, [0, 0]), (STEP_BY_STEP, [7, 8]), (BURST, [3, 4]), (BURST, [0, 1])] {
        let mut session = by_tcp(now, syn);
        for (id, number) in numbers.into_iter().enumerate() {
            let message = md5(1, number, format!("message {id}").as_bytes());
            give(&mut session, now, &message);
            assert_eq!(messages(&mut session).len(), 1);
            // Neither a repetition nor a sign of life gets what could be taken for the
            // acknowledgement.
            if syn == STEP_BY_STEP || number > 0 {
                give(&mut session, now, &message);
            }
            give(&mut session, now, &md5(4, 0, b""));
            now += 3 * SECOND;
            session.handle_timeout(now);
            assert!(output(&mut session, now).is_empty(), "something was said");
            assert_eq!(messages(&mut session), [""; 0], "it came twice");
            session.acknowledge(now, ReceiveId(id as u64));
            session.acknowledge(now, ReceiveId(id as u64));
            assert_eq!(output(&mut session, now), [md5(2, number, b"ACK")]);
        }
    }
}

#[test]
fn case_110_messages_that_are_handled_in_any_order_are_acknowledged_in_theirs() {
    let now = Instant::now();
    let mut session = by_tcp(now, BURST);
    for number in 0..4 {
        give(&mut session, now, &md5(1, number, &[b'x'; 10]));
    }
    assert_eq!(messages(&mut session).len(), 4);
    session.acknowledge(now, ReceiveId(2));
    session.acknowledge(now, ReceiveId(1));
    assert!(output(&mut session, now).is_empty());
    session.acknowledge(now, ReceiveId(0));
    assert_eq!(output(&mut session, now), [0, 1, 2].map(|number| md5(2, number, b"ACK")));
    // One that was dropped is not acknowledged, and neither is what is behind it.
    session.discard(now, ReceiveId(3));
    give(&mut session, now, &md5(1, 4, b"later"));
    session.acknowledge(now, ReceiveId(4));
    assert!(output(&mut session, now).is_empty());
    assert_eq!((messages(&mut session).len(), session.memory()), (0, 0));
}

#[test]
fn case_110_a_peer_that_takes_leave_too_early_has_no_acknowledgement_before_its_messages_are_handled() {
    let now = Instant::now();
    for ends in [false, true] {
        let mut session = by_tcp(now, STEP_BY_STEP);
        give(&mut session, now, &md5(1, 1, b"message"));
        give(&mut session, now, &md5(5, 2, b"Disconnect"));
        assert_eq!(events(&mut session), [Event::Message("message".into())]);
        assert!(output(&mut session, now).is_empty());
        if ends {
            session.handle_end();
        } else {
            session.acknowledge(now, ReceiveId(0));
            assert_eq!(output(&mut session, now), [md5(2, 1, b"ACK"), md5(2, 2, b"ACK")]);
        }
        assert_eq!(events(&mut session), [Event::Ended(Ending::PeerClosed)]);
    }
}

#[test]
fn case_110_between_ours_received_is_not_handled_and_handled_is_asked_for() {
    let mut now = Instant::now();
    let config = SessionConfig { checksum: ChecksumKind::Md5, ..SessionConfig::client(Carrier::Datagrams) };
    let syn_ack = br#"{"status":"ok","session_id":"s","operation_mode":"burst","protocol":"sr","max_packet_size":9,"window_size":9,"fragmentation":true,"max_message_size":1000,"handled":true}"#;
    let mut session = Session::connect(now, config);
    output(&mut session, now);
    session.handle_datagram(now, &md5(2, 0, syn_ack));
    events(&mut session);
    let ids = ["first", "a second of two packets"].map(|text| session.send(now, text.into()).unwrap());
    output(&mut session, now);
    for number in 0..4 {
        session.handle_datagram(now, &md5(2, number, b"ACK\0\0\0\0\0\0\0\0"));
    }
    assert_eq!(events(&mut session), []);
    // It asks what is handled, and does not send again what was received.
    now = session.poll_timeout().unwrap();
    session.handle_timeout(now);
    assert_eq!(output(&mut session, now), [md5(7, 0, b"")]);
    let told = |count: u64| md5(7, 0, &count.to_be_bytes());
    for (count, expected) in
        [(0, None), (1, Some(ids[0])), (1, None), (3, None), (99, None), (4, Some(ids[1]))]
    {
        session.handle_datagram(now, &told(count));
        assert_eq!(events(&mut session), expected.map(Event::Acknowledged).into_iter().collect::<Vec<_>>());
    }
    // What is no count, and one from a peer that has not agreed to any.
    session.handle_datagram(now, &md5(7, 0, b"1234567"));
    assert!(matches!(events(&mut session)[..], [Event::Ended(Ending::Protocol(_))]));
    let mut session = by_tcp(now, BURST);
    give(&mut session, now, &told(0));
    assert!(matches!(events(&mut session)[..], [Event::Ended(Ending::Protocol(_))]));
}
