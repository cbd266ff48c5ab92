//! Packets of CNP, as they come to any session in any of its states.

#![no_main]

use arbitrary::Arbitrary;
use fastdrop_proto::cnp::packet::{append, append_marked};
use fastdrop_proto::cnp::{
    Acceptor, Carrier, Checksum, Event, Seq, Session, SessionConfig, SessionId, SynForm,
};
use libfuzzer_sys::fuzz_target;
use std::time::{Duration, Instant};

#[derive(Debug, Arbitrary)]
enum Input {
    /// Bytes as they are.
    Raw(Vec<u8>),
    /// A packet whose checksum is right in the handshake.
    Packet {
        typ: u8,
        seq: u16,
        payload: Vec<u8>,
    },
    /// What a client or server of the field begins with.
    Handshake {
        which: u8,
    },
    Send {
        len: u16,
    },
    Pass {
        ms: u16,
    },
    End,
    Close,
    /// A packet as the fourth generation writes it, whose checksum is right.
    Marked {
        typ: u8,
        seq: u16,
        is_last: bool,
        payload: Vec<u8>,
    },
    /// The beginning of that generation's handshake, or the end.
    MarkedHandshake {
        which: u8,
    },
}

#[derive(Debug, Arbitrary)]
struct Script {
    server: bool,
    stream: bool,
    /// The form of a client's SYN.
    form: u8,
    steps: Vec<Input>,
}

const HANDSHAKES: [(u8, &[u8]); 8] = [
    (1, br#"{"operation_mode":"step-by-step","max_packet_size":1024}"#),
    (1, br#"{"operation_mode":"burst","max_size":100,"window_size":4}"#),
    (1, br#"{"protocol":"gbn","max_fragment_size":100,"window_size":4}"#),
    (1, br#"{"operation_mode":"burst","max_packet_size":9,"fragmentation":true,"max_message_size":99,"keep_alive":200}"#),
    (3, br#"{"session_id":"x"}"#),
    (2, br#"{"status":"ok","session_id":"x","max_packet_size":64,"operation_mode":"burst","window_size":4}"#),
    (2, br#"{"status":"ok","session_id":"x","max_fragment_size":3,"protocol":"sr"}"#),
    (2, br#"{"status":"ok","session_id":"x","max_size":64,"fragmentation":true,"max_message_size":4096,"protocol":"gbn"}"#),
];

fuzz_target!(|script: Script| {
    let mut now = Instant::now();
    let carrier = if script.stream { Carrier::Stream } else { Carrier::Datagrams };
    let mut config = SessionConfig::client(carrier);
    config.syn_form = match script.form % 3 {
        0 => SynForm::Full,
        1 => SynForm::Third,
        _ => SynForm::Fourth,
    };
    config.limits.message_max = 10_000;
    config.limits.receive_max = 10_000;
    config.limits.send_max = 10_000;
    let mut session = match script.server {
        true => Session::accept(now, config.clone(), SessionId::Text("x".into())),
        false => Session::connect(now, config.clone()),
    };
    let mut acceptor = Acceptor::new(config);
    let mut ended = 0;
    for step in script.steps {
        let mut packet = Vec::new();
        match step {
            Input::Raw(bytes) => packet = bytes,
            Input::Packet { typ, seq, payload } => {
                append(&mut packet, typ, Seq(seq), seq.into(), &Checksum::Md5, &payload);
            }
            Input::Handshake { which } => {
                let (typ, payload) = HANDSHAKES[usize::from(which) % HANDSHAKES.len()];
                append(&mut packet, typ, Seq(0), 0, &Checksum::Md5, payload);
            }
            Input::Marked { typ, seq, is_last, payload } => {
                append_marked(&mut packet, is_last, typ, Seq(seq), &payload);
            }
            Input::MarkedHandshake { which } => {
                let (typ, payload) = HANDSHAKES[usize::from(which) % HANDSHAKES.len()];
                append_marked(&mut packet, false, typ, Seq(0), payload);
            }
            Input::Send { len } => {
                if session.can_send() {
                    let _ = session.send(now, vec![0; len.into()].into());
                }
            }
            Input::Pass { ms } => {
                now += Duration::from_millis(ms.into());
                session.handle_timeout(now);
            }
            Input::End => session.handle_end(),
            Input::Close => session.close(now),
        }
        let from = ([127, 0, 0, 1], 1).into();
        let _ = acceptor.handle_datagram(now, from, &packet, || Some(SessionId::Text("x".into())));
        if carrier == Carrier::Datagrams {
            session.handle_datagram(now, &packet);
        } else if let Ok(Some(head)) = session.parse_head(&packet)
            && packet.len() >= head.packet_len()
        {
            session.handle_packet(now, &head, head.payload(&packet));
        }
        let mut out = Vec::new();
        let mut left = 0;
        while session.poll_transmit(now, &mut out, 4096) {
            left += 1;
            assert!(left < 10_000, "it does not end");
        }
        while let Some(event) = session.poll_event() {
            ended += u32::from(matches!(event, Event::Ended(_)));
        }
        assert!(ended <= 1, "ended twice");
        // Bounds of 10,000 in either direction, and one message more, which may be longer towards
        // some peers.
        assert!(session.memory() < 60_000 + usize::from(u16::MAX), "{} bytes", session.memory());
        // What is due now is done in a few turns, or a driver would turn in circles.
        let mut turns = 0;
        while session.poll_timeout().is_some_and(|at| at <= now) {
            session.handle_timeout(now);
            while session.poll_transmit(now, &mut out, 4096) {}
            turns += 1;
            assert!(turns < 8, "a deadline that has passed and leaves nothing to do");
        }
    }
});
