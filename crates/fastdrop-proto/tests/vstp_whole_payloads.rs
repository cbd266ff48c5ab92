//! Messages of programs of version 0.2 of VSTP, whose fragments carry the whole payload each, and
//! messages in slices that must not be taken for them.
//!
//! `VSTP_SEEDS=10000 cargo test -p fastdrop-proto --test vstp_whole_payloads` runs as many seeds.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

use fastdrop_proto::vstp::{
    Counters, Endpoint, EndpointConfig, Event, Flags, FrameBytes, FrameRef, FrameType, HeadersBuf,
    ReassemblyLimits, Writer,
};
use fastdrop_testing::network::{Random, payload};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The size beyond which version 0.2 cuts, and by which it divides.
const CUT: usize = 1200;
const SECOND: Duration = Duration::from_secs(1);

fn sender() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 2], 7000))
}

fn encode(frame: &FrameBytes) -> Vec<u8> {
    let mut out = Vec::new();
    frame.as_ref().encode(&mut out).unwrap();
    out
}

fn frame(headers: &[(&str, &str)], payload: impl Into<bytes::Bytes>) -> FrameBytes {
    let mut buf = HeadersBuf::default();
    for (key, value) in headers {
        buf.push(key.as_bytes(), value.as_bytes()).unwrap();
    }
    FrameBytes::new(FrameType::Data, buf, payload.into())
}

fn fragment(frame: &FrameBytes, id: &str, index: usize, total: usize) -> FrameBytes {
    let fields = [("frag-id", id.to_owned()), ("frag-index", index.to_string())];
    let fields = fields.into_iter().chain([("frag-total", total.to_string())]);
    let whole = frame.clone().with_flag(Flags::FRAG);
    fields.fold(whole, |frame, (key, value)| frame.with_header(key.as_bytes(), value.as_bytes()).unwrap())
}

/// The datagrams of a sender of version 0.2 for one frame.
fn datagrams(frame: &FrameBytes, id: u8) -> Vec<Vec<u8>> {
    let len = encode(frame).len();
    if len <= CUT {
        return vec![encode(frame)];
    }
    let total = len.div_ceil(CUT);
    (0..total).map(|index| encode(&fragment(frame, &id.to_string(), index, total))).collect()
}

/// The datagrams of a sender that cuts a payload into slices and wants no reports.
fn slices(frame: &FrameBytes, id: u8, slice: usize) -> Vec<Vec<u8>> {
    let total = frame.payload.len().div_ceil(slice);
    let parts = frame.payload.chunks(slice).enumerate().map(|(index, part)| {
        let headers = frame.headers().as_bytes().to_vec().into();
        let part = bytes::Bytes::copy_from_slice(part);
        let part = FrameBytes::from_wire(frame.typ, frame.flags, headers, part).unwrap();
        encode(&fragment(&part, &id.to_string(), index, total))
    });
    parts.collect()
}

/// An endpoint, and an application that takes and acknowledges what comes.
struct Receiver {
    now: Instant,
    endpoint: Endpoint,
    received: Vec<FrameBytes>,
    acknowledged: Vec<u64>,
}

impl Receiver {
    fn new() -> Self {
        Self::with_limits(ReassemblyLimits::default())
    }

    fn with_limits(limits: ReassemblyLimits) -> Self {
        let config = EndpointConfig { limits, ..EndpointConfig::default() };
        let endpoint = Endpoint::new(config, [5; 16]);
        Self { now: Instant::now(), endpoint, received: Vec::new(), acknowledged: Vec::new() }
    }

    fn take(&mut self, datagram: &[u8]) {
        self.endpoint.handle_datagram(self.now, sender(), datagram);
        self.drain();
    }

    fn take_all<'a>(&mut self, datagrams: impl IntoIterator<Item = &'a Vec<u8>>) {
        datagrams.into_iter().for_each(|datagram| self.take(datagram));
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.endpoint.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.endpoint.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
    }

    /// Lets time pass, whatever is answered.
    fn pass_silently(&mut self, time: Duration) {
        let (end, mut out) = (self.now + time, Vec::new());
        loop {
            while self.endpoint.poll_transmit(self.now, 1, &mut out).is_some() {}
            self.take_events();
            let Some(at) = self.endpoint.poll_timeout().filter(|at| *at <= end) else { break };
            self.now = self.now.max(at);
            self.endpoint.handle_timeout(self.now);
        }
        self.now = end;
    }

    fn take_events(&mut self) {
        while let Some(event) = self.endpoint.poll_event() {
            let Event::Received { from, frame, acknowledgement } = event else { continue };
            self.endpoint.handle_taken(self.now, from, &frame);
            if let Some(wanted) = acknowledgement {
                self.endpoint.acknowledge(self.now, from, wanted);
            }
            self.received.push(frame);
        }
    }

    fn drain(&mut self) {
        self.take_events();
        let mut out = Vec::new();
        while let Some(transmit) = self.endpoint.poll_transmit(self.now, 1, &mut out) {
            assert_eq!(transmit.datagram, out.len());
            let (answer, _) = FrameRef::decode(&out, 70_000).unwrap().unwrap();
            assert_eq!(answer.typ, FrameType::Ack, "programs of 0.2 know no other answer");
            self.acknowledged.push(answer.headers.number("msg-id").unwrap());
        }
    }

    fn counters(&self) -> Counters {
        self.endpoint.counters()
    }
}

fn acknowledged(frame: FrameBytes, msg_id: u64) -> FrameBytes {
    frame.with_header(b"msg-id", msg_id.to_string().as_bytes()).unwrap().with_flag(Flags::REQ_ACK)
}

#[test]
fn a_payload_that_comes_in_every_fragment_is_handed_on_once() {
    let long = "v".repeat(200);
    for headers in [vec![], vec![("file-name", "a.bin"), ("nested", "1")], vec![("k", long.as_str()); 9]] {
        let mut receiver = Receiver::new();
        for len in [0, 1, 1000, 1185, 1186, 1200, 1201, 2370, 2400, 3600, 5000, 50_000, 63_000] {
            for contents in [payload(len, 1), vec![0; len].into()] {
                let sent = frame(&headers, contents);
                let (mut all, before) = (datagrams(&sent, 1), receiver.received.len());
                for _ in 0..all.len() {
                    all.rotate_left(1);
                    receiver.take_all(&all);
                }
                let received = receiver.received.split_off(before);
                assert_eq!(received.len(), all.len(), "{len} bytes, each time once");
                assert!(received.iter().all(|received| *received == sent), "{len} bytes");
                assert_eq!((receiver.endpoint.unfinished(), receiver.endpoint.memory()), (0, 0), "{len}");
            }
        }
        receiver.pass(SECOND * 60);
        assert_eq!(receiver.counters().malformed + receiver.counters().refused, 0);
    }
}

#[test]
fn each_attempt_that_comes_whole_is_acknowledged_once() {
    for len in [10, 1190, 5000, 50_000] {
        let mut receiver = Receiver::new();
        let sent = acknowledged(frame(&[], payload(len, 2)), 7);
        for attempt in 1..4 {
            receiver.take_all(&datagrams(&sent, 8));
            assert_eq!(receiver.received, std::slice::from_ref(&sent));
            assert_eq!(receiver.acknowledged, vec![7; attempt]);
        }
        // Another program, which counts from 1 again.
        let other = acknowledged(frame(&[], payload(len, 3)), 7);
        receiver.take_all(&datagrams(&other, 8));
        assert_eq!(receiver.received, [sent, other]);
    }
}

#[test]
fn fragments_of_two_attempts_make_a_message() {
    let mut receiver = Receiver::new();
    let sent = acknowledged(frame(&[], payload(2000, 2)), 7);
    let all = datagrams(&sent, 8);
    receiver.take(&all[0]);
    receiver.pass(SECOND * 2);
    receiver.take(&all[1]);
    assert_eq!((receiver.received, receiver.acknowledged), (vec![sent], vec![7]));
}

#[test]
fn lost_fragments_are_made_up_for_by_those_that_came() {
    let sent = acknowledged(frame(&[], payload(50_000, 2)), 7);
    let all = datagrams(&sent, 8);
    for kept in [2, 20, all.len() - 1] {
        let mut receiver = Receiver::new();
        receiver.take_all(all.iter().take(kept));
        assert!(receiver.received.is_empty());
        receiver.pass(SECOND * 3 / 2);
        assert_eq!((&receiver.received[..], &receiver.acknowledged[..]), (&[sent.clone()][..], &[7][..]));
        // They were late.
        receiver.take_all(all.iter().skip(kept));
        receiver.pass(SECOND * 60);
        assert_eq!(receiver.received.len(), 1);
        assert_eq!((receiver.endpoint.unfinished(), receiver.endpoint.memory()), (0, 0));
    }
    // Of one alone, or of two where there are only two, nothing is concluded.
    for (len, kept) in [(50_000, 1), (2000, 1)] {
        let mut receiver = Receiver::new();
        receiver.take_all(datagrams(&frame(&[], payload(len, 2)), 8).iter().take(kept));
        receiver.pass(SECOND * 60);
        assert!(receiver.received.is_empty());
        assert_eq!((receiver.endpoint.memory(), receiver.counters().expired), (0, 1));
    }
}

#[test]
fn a_message_that_is_too_large_is_refused_in_words_when_it_is_complete() {
    let limits = ReassemblyLimits { message_bytes_max: 10_000, ..ReassemblyLimits::default() };
    let mut receiver = Receiver::with_limits(limits);
    let mut answers = Vec::new();
    for (len, wants) in [(10_000, true), (10_001, true), (10_001, false)] {
        let sent = frame(&[], payload(len, 1));
        let sent = if wants { acknowledged(sent, len as u64) } else { sent };
        for datagram in datagrams(&sent, 3) {
            receiver.endpoint.handle_datagram(receiver.now, sender(), &datagram);
        }
        receiver.take_events();
        let mut out = Vec::new();
        while receiver.endpoint.poll_transmit(receiver.now, 1, &mut out).is_some() {
            let (answer, _) = FrameRef::decode(&out, 70_000).unwrap().unwrap();
            answers.push((
                answer.typ,
                answer.headers.number("msg-id"),
                answer.headers.find("code").is_some(),
            ));
        }
    }
    assert_eq!(receiver.received.iter().map(|frame| frame.payload.len()).collect::<Vec<_>>(), [10_000]);
    let expected = [(FrameType::Ack, Some(10_000), false), (FrameType::Err, Some(10_001), true)];
    assert_eq!(answers, expected);
    assert_eq!((receiver.counters().refused, receiver.endpoint.memory()), (2, 0));
}

/// An application of 0.2 sees every PING, also one that asks its address to prove itself.
#[test]
fn an_echo_within_the_budget_asks_for_no_proof() {
    for len in [10, 1190, 1200, 5000, 50_000] {
        let mut receiver = Receiver::new();
        let sent = frame(&[], payload(len, 1));
        receiver.take_all(&datagrams(&sent, 1));
        receiver.endpoint.send(receiver.now, sender(), sent, false);
        let (mut out, mut bytes) = (Vec::new(), 0);
        for _ in 0..1000 {
            while receiver.endpoint.poll_transmit(receiver.now, 1, &mut out).is_some() {
                let (frame, _) = FrameRef::decode(&out, 70_000).unwrap().unwrap();
                assert_eq!(frame.typ, FrameType::Data, "{len}");
                bytes += frame.payload.len();
            }
            let Some(at) = receiver.endpoint.poll_timeout() else { break };
            receiver.now = receiver.now.max(at);
            receiver.endpoint.handle_timeout(receiver.now);
        }
        assert_eq!(bytes, len);
    }
}

/// Version 0.2 gives all messages that want no acknowledgement the same number.
#[test]
fn messages_with_one_number_are_not_mixed() {
    for len in [1190, 1200, 2000, 5000] {
        let sent: Vec<_> = (1..5).map(|seed| frame(&[], payload(len, seed))).collect();
        let [a, b, c, d] = [0, 1, 2, 3].map(|at: usize| datagrams(&sent[at], 1));
        let mut receiver = Receiver::new();
        receiver.take_all(&a);
        // Each loses another fragment, and the last one overtakes.
        receiver.take_all(b.iter().skip(1));
        receiver.take_all(c.iter().rev().skip(1));
        receiver.take_all(d.iter().rev());
        assert_eq!(receiver.received, [sent[0].clone(), sent[3].clone()], "{len}");
    }
}

#[test]
fn both_kinds_of_fragments_with_one_number_are_two_messages() {
    let mut receiver = Receiver::new();
    let (whole, sliced) = (frame(&[], payload(5000, 1)), frame(&[], payload(3000, 2)));
    let (a, b) = (datagrams(&whole, 9), slices(&sliced, 9, 1000));
    receiver.take_all([&a[0], &b[0], &a[1], &b[1], &a[2], &a[3], &b[2], &a[4]]);
    assert_eq!(receiver.received, [sliced, whole]);
}

#[test]
fn two_slices_of_1200_bytes_are_joined_if_they_differ() {
    let mut receiver = Receiver::new();
    let sliced = frame(&[], payload(2400, 2));
    for round in 1..4 {
        receiver.take_all(&slices(&sliced, round, CUT));
    }
    assert_eq!(receiver.received, vec![sliced; 3]);
}

#[test]
fn case_73_memory_is_bounded_whatever_fragments_say() {
    let limits = ReassemblyLimits {
        peer_messages_max: 4,
        peer_bytes_max: 100_000,
        messages_max: 4,
        bytes_max: 150_000,
        ..ReassemblyLimits::default()
    };
    let (mut small, mut usual) = (Receiver::with_limits(limits), Receiver::new());
    for seed in 0..1000 {
        let all = datagrams(&frame(&[], payload(40_000 + seed as usize, seed)), seed as u8);
        for receiver in [&mut small, &mut usual] {
            receiver.take(&all[seed as usize % all.len()]);
        }
        assert!(small.endpoint.memory() <= 100_000 && small.endpoint.unfinished() <= 4);
        assert!(usual.endpoint.memory() <= 1 << 20 && usual.endpoint.unfinished() <= 16);
    }
    // The newest still come through.
    let sent = frame(&[], payload(30_000, 5000));
    usual.take_all(&datagrams(&sent, 1));
    assert_eq!(usual.received, [sent]);
    usual.pass(SECOND * 31);
    assert_eq!((usual.endpoint.memory(), usual.endpoint.unfinished()), (0, 0));
}

/// Many messages over a network that loses, repeats and reorders, sent as 0.2 does: up to four
/// attempts for those that are acknowledged.
fn faults(seed: u64) {
    let mut random = Random(seed ^ 0x0201);
    let (loss, duplicate) = (random.below(300) as f64 / 1000.0, random.below(200) as f64 / 1000.0);
    let depth = 1 + random.below(8) as usize;
    let mut receiver = Receiver::new();
    let mut sent: BTreeMap<u64, (FrameBytes, bool, usize)> = BTreeMap::new();
    let (mut next_msg_id, mut network) = (1, Vec::<Vec<u8>>::new());
    for n in 0..30 {
        let len = [100, 1150, 1195, 1250, 2300, 3000, 20_000][random.below(7) as usize];
        let wants = random.chance(0.5);
        let n_text = n.to_string();
        let mut message = frame(&[("n", &n_text)], payload(len, n));
        if wants {
            message = acknowledged(message, next_msg_id);
            next_msg_id += 1;
        }
        let id = (next_msg_id % 256) as u8;
        let mut copies = 0;
        for _ in 0..if wants { 4 } else { 1 } {
            copies += 1;
            for datagram in datagrams(&message, id) {
                let times = if random.chance(loss) { 0 } else { 1 + usize::from(random.chance(duplicate)) };
                network.extend(std::iter::repeat_n(datagram, times));
                while network.len() > depth {
                    let at = random.below(network.len() as u64) as usize;
                    receiver.take(&network.remove(at));
                }
            }
            if wants {
                network.drain(..).for_each(|datagram| receiver.take(&datagram));
                receiver.pass(SECOND * 2);
                if receiver.acknowledged.contains(&(next_msg_id - 1)) {
                    break;
                }
            } else {
                receiver.pass(Duration::from_millis(random.below(500)));
            }
            assert!(receiver.endpoint.memory() <= 2 << 20 && receiver.endpoint.unfinished() <= 32, "{seed}");
        }
        sent.insert(n, (message, wants, copies));
    }
    network.drain(..).for_each(|datagram| receiver.take(&datagram));
    receiver.pass(SECOND * 120);
    for received in &receiver.received {
        let n = received.headers().number("n").unwrap();
        assert_eq!(received, &sent[&n].0, "seed {seed}: nothing that was not sent");
    }
    for (n, (message, wants, _)) in &sent {
        let count = receiver.received.iter().filter(|received| *received == message).count();
        // A message of which the network repeats every datagram is as good as sent twice.
        let count_max = if *wants || datagrams(message, 0).len() > 3 { 1 } else { 2 };
        assert!(count <= count_max, "seed {seed}: message {n} came {count} times");
        let msg_id = message.headers().number("msg-id");
        let told = msg_id.is_some_and(|msg_id| receiver.acknowledged.contains(&msg_id));
        assert_eq!(*wants && count == 1, told, "seed {seed}: message {n}");
        if message.payload.len() == 20_000 {
            assert_eq!(count, 1, "seed {seed}: enough of message {n} came");
        }
    }
    assert_eq!((receiver.endpoint.unfinished(), receiver.endpoint.memory()), (0, 0), "seed {seed}");
}

#[test]
fn case_95_messages_of_old_senders_come_once_over_a_bad_network() {
    let seeds = std::env::var("VSTP_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(300);
    (0..seeds).for_each(faults);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Slices of any bytes: in datagrams of at most 1,200 bytes none is mistaken, in others only
    /// two equal ones that have, with their headers, more than that.
    #[test]
    fn a_message_in_slices_is_never_taken_for_another(
        slice in prop_oneof![Just(1200_usize), 1_usize..2300],
        total in prop_oneof![Just(3600_usize), Just(2400), 1_usize..20_000],
        header in 0_usize..40,
        fill in prop_oneof![Just(0_u8), any::<u8>()],
        varies in any::<bool>(),
    ) {
        let value = "v".repeat(header);
        let contents: Vec<u8> =
            (0..total).map(|at| if varies { (at / 3) as u8 ^ fill } else { fill }).collect();
        let sent = frame(&[("k", &value)], contents);
        prop_assume!(total.div_ceil(slice) <= 255);
        let all = slices(&sent, 3, slice);
        let largest = all.iter().map(Vec::len).max().unwrap();
        let encoded = encode(&frame(&[("k", &value)], sent.payload.slice(..slice.min(total)))).len();
        let looks_whole = all.len() == 2 && total == 2 * slice && encoded > CUT && !varies;
        prop_assume!(slice <= CUT || all.len() != encoded.div_ceil(CUT) || all.len() == 1);
        let mut receiver = Receiver::new();
        for datagram in &all {
            receiver.take(datagram);
        }
        prop_assert!(largest > CUT || !looks_whole);
        if looks_whole {
            prop_assert_eq!(receiver.received[0].payload.len(), slice);
        } else {
            prop_assert_eq!(receiver.received, [sent]);
        }
    }

    /// Messages of ours, to those that report and to those that do not, in any order.
    #[test]
    fn what_we_send_is_never_taken_for_another(
        len in 1_usize..400_000,
        datagram in prop_oneof![Just(1200_usize), Just(1452), Just(8952), Just(32_000)],
        id in prop_oneof![0_u64..256, any::<u64>()],
        order in 1_usize..50,
        fill in any::<u8>(),
    ) {
        let sent = frame(&[("k", "v")], vec![fill; len]);
        let writer = Writer::new(&sent.as_ref(), &sent.payload, id, None, datagram).unwrap();
        let total = writer.total() as usize;
        let step = (order..).find(|step| gcd(*step, total) == 1).unwrap();
        let mut endpoint = Endpoint::new(EndpointConfig::default(), [5; 16]);
        let now = Instant::now();
        let mut received = Vec::new();
        for index in (0..total).map(|n| n * step % total) {
            let mut bytes = Vec::new();
            writer.write(index as u32, &mut bytes);
            endpoint.handle_datagram(now, sender(), &bytes);
            while let Some(Event::Received { frame, .. }) = endpoint.poll_event() {
                received.push(frame);
            }
        }
        prop_assert_eq!(received, [sent]);
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// A fragment of either kind, with a total that fits a whole payload or with any.
    Fragment {
        from: u8,
        id: u8,
        reports: bool,
        index: usize,
        total: Option<usize>,
        len: usize,
        fill: u8,
    },
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len =
        prop_oneof![Just(0_usize), Just(1190), Just(1200), 1_usize..1300, 1_usize..4000, 1_usize..60_000];
    let total = prop_oneof![4 => Just(None), 1 => (1_usize..6).prop_map(Some)];
    let fragment = (0_u8..3, 0_u8..3, prop::bool::weighted(0.2), 0_usize..6, total, len, 0_u8..2);
    let fragment = fragment.prop_map(|(from, id, reports, index, total, len, fill)| Step::Fragment {
        from,
        id,
        reports,
        index,
        total,
        len,
        fill,
    });
    prop::collection::vec(prop_oneof![8 => fragment, 1 => (0_u64..3000).prop_map(Step::Pass)], 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Anything from anybody: what is kept is bounded and counted, and in the end nothing is kept.
    #[test]
    fn case_73_fragments_of_both_kinds_keep_the_bounds(steps in steps()) {
        let (peer_bytes_max, bytes_max) = (150_000, 250_000);
        let limits = ReassemblyLimits {
            message_bytes_max: 50_000,
            peer_messages_max: 5,
            peer_bytes_max,
            messages_max: 8,
            bytes_max,
            ..ReassemblyLimits::default()
        };
        let mut receiver = Receiver::with_limits(limits);
        let sources = [0, 1, 2].map(|from| SocketAddr::from(([10, 0, 1, from], 7000)));

        for step in steps {
            match step {
                Step::Pass(ms) => receiver.pass_silently(Duration::from_millis(ms)),
                Step::Fragment { from, id, reports, index, total, len, fill } => {
                    let message = frame(&[], vec![fill; len]);
                    let total = total.unwrap_or_else(|| encode(&message).len().div_ceil(CUT));
                    let id = if reports { format!("0{id}") } else { id.to_string() };
                    let datagram = encode(&fragment(&message, &id, index % total.max(1), total));
                    receiver.endpoint.handle_datagram(receiver.now, sources[usize::from(from)], &datagram);
                    receiver.take_events();
                }
            }
            // Each kind of strangers has such bounds.
            prop_assert!(receiver.endpoint.unfinished() <= 2 * 8);
            // Each may have a first buffer that is not full.
            prop_assert!(receiver.endpoint.memory() <= 2 * (bytes_max + 8 * 66_000));
        }
        receiver.pass_silently(SECOND * 70);
        prop_assert_eq!((receiver.endpoint.unfinished(), receiver.endpoint.memory()), (0, 0));
        prop_assert!(receiver.received.iter().all(|frame| frame.payload.len() <= 50_000));
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
