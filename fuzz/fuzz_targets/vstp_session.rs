//! A session of VSTP over TCP, told any frames, in any order, at any time.

#![no_main]

use arbitrary::Arbitrary;
use fastdrop_proto::vstp::{
    Flags, FrameBytes, FrameRef, FrameType, HeadersBuf, Session, SessionConfig, Verdict,
};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

#[derive(Debug, Arbitrary)]
enum Step {
    Frame { typ: u8, flags: u8, msg_id: u8, keep_alive: u16, crc: u8 },
    Number,
    Sent { typ: u8 },
    Read,
    Pass { ms: u16 },
}

#[derive(Debug, Arbitrary)]
struct Input {
    accepted: bool,
    keep_alive: Option<u16>,
    answers: bool,
    steps: Vec<Step>,
}

fuzz_target!(|input: Input| {
    let mut now = Instant::now();
    let mut session = Session::new(
        now,
        SessionConfig {
            id: input.accepted.then_some(1),
            keep_alive: input.keep_alive.map(|ms| Duration::from_millis(u64::from(ms) + 100)),
            answers: input.answers,
            first_msg_id: 0,
            token: None,
            authorize: None,
        },
    );
    let (mut waiting, mut seen) = (BTreeSet::new(), BTreeSet::new());
    for step in input.steps {
        match step {
            Step::Frame { typ, flags, msg_id, keep_alive, crc } => {
                let mut headers = HeadersBuf::default();
                headers.push(b"msg-id", msg_id.to_string().as_bytes()).unwrap();
                headers.push(b"keep-alive", keep_alive.to_string().as_bytes()).unwrap();
                let typ = FrameType::ALL[usize::from(typ % 8)];
                let frame = FrameBytes::new(typ, headers, Vec::new().into());
                let frame = frame.with_flag(Flags::from_bits_truncate(flags));
                let over = session.is_over();
                while session.poll_answer().is_some() {}
                let verdict = session.handle_frame(now, &frame.as_ref(), crc.into());
                match verdict {
                    Verdict::Acknowledged(number) => {
                        assert!(waiting.remove(&number), "acknowledged, and never sent")
                    }
                    Verdict::Deliver(wanted) => {
                        assert!(!over);
                        if let Some(wanted) = wanted.filter(|_| crc % 2 == 0) {
                            session.acknowledge(now, wanted);
                        }
                        let wants = frame.flags.contains(Flags::REQ_ACK);
                        if wants && !matches!(typ, FrameType::Ack | FrameType::Err) {
                            assert!(seen.insert((msg_id, crc)), "handed on twice");
                        }
                    }
                    Verdict::Repeated => assert!(seen.contains(&(msg_id, crc)), "it never came"),
                    Verdict::Consumed => {}
                }
                if typ == FrameType::Err {
                    assert!(session.poll_answer().is_none(), "an error was answered");
                }
            }
            Step::Number => assert!(waiting.insert(session.next_msg_id())),
            Step::Sent { typ } => session.on_sent(now, FrameType::ALL[usize::from(typ % 8)]),
            Step::Read => session.on_read(),
            Step::Pass { ms } => {
                // Beyond a minute, what was seen is forgotten.
                now += Duration::from_millis(u64::from(ms) % 20);
                let _ = session.handle_timeout(now, now);
            }
        }
        while let Some(answer) = session.poll_answer() {
            assert!(FrameRef::decode(&answer, 1 << 20).unwrap().is_some());
        }
    }
});
