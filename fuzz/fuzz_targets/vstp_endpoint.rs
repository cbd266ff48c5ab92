//! An endpoint of VSTP over UDP that is told anything by anybody: fragments above all, but also
//! acknowledgements, reports, errors and the time.

#![no_main]

use arbitrary::Arbitrary;
use fastdrop_proto::vstp::{
    Endpoint, EndpointConfig, Event, Flags, FrameBytes, FrameType, HeadersBuf, ReassemblyLimits,
};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

#[derive(Debug, Arbitrary)]
enum Step {
    Fragment {
        from: u8,
        id: u8,
        reports: bool,
        index: u8,
        total: u8,
        len: u8,
        fill: u8,
        ack: bool,
    },
    Report {
        from: u8,
        id: u8,
        payload: Vec<u8>,
    },
    Frame {
        from: u8,
        typ: u8,
        flags: u8,
        headers: Vec<(u8, Vec<u8>)>,
        payload: Vec<u8>,
    },
    Bytes {
        from: u8,
        bytes: Vec<u8>,
    },
    Send {
        to: u8,
        len: u16,
        ack: bool,
    },
    /// What was sent comes back to its sender, or to another.
    Reflect {
        to: u8,
    },
    Pass {
        ms: u16,
    },
    Ping {
        to: u8,
    },
}

const KEYS: [&str; 8] =
    ["msg-id", "frag-id", "frag-index", "frag-total", "nested", "frag-replaces", "frag-probe", "challenge"];

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n % 3], 1000))
}

fn encode(typ: FrameType, flags: Flags, headers: HeadersBuf, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    FrameBytes::new(typ, headers, payload.to_vec().into())
        .with_flag(flags)
        .as_ref()
        .encode(&mut out)
        .unwrap();
    out
}

fn header(headers: &mut HeadersBuf, key: &str, value: &str) {
    let _ = headers.push(key.as_bytes(), value.as_bytes());
}

fuzz_target!(|steps: Vec<Step>| {
    let bytes_max = 200_000;
    let limits = ReassemblyLimits {
        message_bytes_max: 50_000,
        peer_messages_max: 4,
        peer_bytes_max: 100_000,
        messages_max: 8,
        bytes_max,
        age_max: Duration::from_secs(5),
    };
    let config = EndpointConfig { limits, ..EndpointConfig::default() };
    let mut endpoint = Endpoint::new(config, [7; 16]);
    let mut now = Instant::now();
    let (mut sends, mut last, mut out) = (BTreeSet::new(), Vec::new(), Vec::new());
    for step in steps.into_iter().take(200) {
        match step {
            Step::Fragment { from, id, reports, index, total, len, fill, ack } => {
                let mut headers = HeadersBuf::default();
                let zero = if reports { "0" } else { "" };
                header(&mut headers, "frag-id", &format!("{zero}{id}"));
                header(&mut headers, "frag-index", &index.to_string());
                header(&mut headers, "frag-total", &total.to_string());
                let mut flags = Flags::FRAG;
                if ack {
                    flags |= Flags::REQ_ACK;
                    header(&mut headers, "msg-id", &id.to_string());
                }
                let bytes = encode(FrameType::Data, flags, headers, &vec![fill; usize::from(len) * 12]);
                endpoint.handle_datagram(now, address(from), &bytes);
            }
            Step::Report { from, id, payload } => {
                let mut headers = HeadersBuf::default();
                header(&mut headers, "frag-id", &format!("0{id}"));
                let bytes = encode(FrameType::Ack, Flags::empty(), headers, &payload);
                endpoint.handle_datagram(now, address(from), &bytes);
            }
            Step::Frame { from, typ, flags, headers, payload } => {
                let mut buf = HeadersBuf::default();
                for (key, value) in headers.iter().take(8) {
                    let _ = buf.push(KEYS[usize::from(key % 8)].as_bytes(), &value[..value.len().min(255)]);
                }
                let typ = FrameType::ALL[usize::from(typ % 8)];
                let bytes = encode(typ, Flags::from_bits_truncate(flags), buf, &payload);
                endpoint.handle_datagram(now, address(from), &bytes);
            }
            Step::Bytes { from, bytes } => endpoint.handle_datagram(now, address(from), &bytes),
            Step::Send { to, len, ack } => {
                let frame = FrameBytes::new(
                    FrameType::Data,
                    HeadersBuf::default(),
                    vec![1; usize::from(len) * 8].into(),
                );
                assert!(sends.insert(endpoint.send(now, address(to), frame, ack)));
            }
            Step::Reflect { to } => endpoint.handle_datagram(now, address(to), &last),
            Step::Pass { ms } => {
                now += Duration::from_millis(ms.into());
                endpoint.handle_timeout(now);
            }
            Step::Ping { to } => endpoint.ping(now, address(to)),
        }
        let mut count = 0;
        while let Some(transmit) = endpoint.poll_transmit(now, 16, &mut out) {
            assert!(!out.is_empty() && transmit.datagram > 0 && out.len() <= 65_507);
            last = out[..transmit.datagram.min(out.len())].to_vec();
            count += 1;
            assert!(count < 5000, "it does not stop sending");
        }
        while let Some(event) = endpoint.poll_event() {
            match event {
                Event::Received { from, frame, acknowledgement } => {
                    endpoint.handle_taken(now, from, &frame);
                    if let Some(wanted) = acknowledgement {
                        // Some are handled at once, some are dropped, and some never settled.
                        match frame.payload.len() % 3 {
                            0 => endpoint.acknowledge(now, from, wanted),
                            1 => endpoint.forgo(now, from, wanted),
                            _ => {}
                        }
                    }
                }
                Event::Outcome { send, .. } => assert!(sends.remove(&send), "one outcome each"),
            }
        }
        // What came is bounded; each message may have a buffer that is not full.
        // Known addresses and the two kinds of strangers have such bounds each.
        assert!(endpoint.memory() <= 3 * (2 * bytes_max + 8 * 66_000), "{}", endpoint.memory());
        assert!(endpoint.unfinished() <= 3 * 8);
        if let Some(at) = endpoint.poll_timeout() {
            assert!(at + Duration::from_secs(60) > now, "a deadline that is long over");
        }
    }
});
