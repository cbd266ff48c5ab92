//! The sending machine, told anything by its peer, with a driver that keeps its part of the
//! bargain.

#![no_main]

use arbitrary::Arbitrary;
use fastdrop_fuzz::{CHUNK, Shape, sum};
use fastdrop_proto::checksum::Checksum;
use fastdrop_proto::fastdp::{
    Action, ChunkContent, Code, Control, Done, Held, NeedTotals, Outcome, Proven, Receiver, Refuse, Sender,
    SenderConfig, SkipReason, SkipRun, StreamId, Streams, Table,
};
use fastdrop_proto::units::{ChunkIndex, ChunkSize, EntryIndex};
use libfuzzer_sys::fuzz_target;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Debug, Arbitrary)]
enum Said {
    Skip(Vec<(u16, u8, u8)>),
    Held(u16, u8, u8),
    Need(u32, u32),
    /// Chunks that were handed out.
    Confirm(Vec<u8>),
    ConfirmAny(Vec<u32>),
    Again(Vec<u8>),
    AgainAny(Vec<u32>),
    Checkpointed,
    Abandoned(u16),
    Done,
    Refuse,
    Alive,
    Compare(u16, u8, u8),
    Ask(Vec<u16>),
    /// What a receiver never says.
    More,
    Same(Vec<u32>),
    Proven(u32, u32),
}

#[derive(Debug, Arbitrary)]
enum Step {
    Frame(u8, Said),
    Poll(u8),
    /// Reads what the stream has to send, or fails to.
    Read(u8, u8),
    Sent(u8),
    Unreadable(u8, u16),
    /// Reads a chunk to be compared, which is the same, another, or cannot be read.
    Compare(u8, u16),
    Asked,
    Joined,
    OpenFailed,
    Lost(u8),
    Filled,
    Ended(u16),
    Pass(u16),
    /// So many turns of a stream with a peer that answers as it should.
    Honest(u8, u8),
}

/// Entries and chunks that an honest receiver leaves out, holds, and claims to hold.
#[derive(Debug, Arbitrary)]
struct Answer {
    skips: Vec<u16>,
    holds: Vec<u16>,
    claims: Vec<u16>,
}

#[derive(Debug, Arbitrary)]
struct Input {
    shape: Shape,
    /// The answer of an honest receiver; without this the peer answers as it likes.
    answer: Option<Answer>,
    identity: bool,
    proof: bool,
    content: bool,
    streams: Option<u8>,
    granted: u8,
    checkpoint: Option<u16>,
    flying_max: u8,
    steps: Vec<Step>,
}

/// One of the entries that `chunk` has bytes of.
fn own_entry(sender: &Sender, chunk: ChunkIndex, nth: u16) -> Option<EntryIndex> {
    let manifest = sender.manifest();
    let is_own = |&entry: &EntryIndex| {
        let chunks = sender.table().chunks_of(entry);
        manifest.get(entry).is_some_and(|item| item.size() > 0)
            && chunks.is_some_and(|(first, count)| (first.0..first.0 + count).contains(&chunk.0))
    };
    let own: Vec<EntryIndex> = (0..manifest.len()).map(EntryIndex).filter(is_own).collect();
    match own.len() {
        0 => sender.table().stream().map(|(entry, _)| entry),
        count => Some(own[usize::from(nth) % count]),
    }
}

/// Fails if a frame belongs to a capability that is not shared, or does not follow the last one of
/// its type.
fn check_frame(input: &Input, frame: &Control, proven: &mut u32, identities: &mut u32) {
    match frame {
        Control::Identity(part) => {
            assert!(input.identity && part.first.0 == *identities && !part.identities.is_empty());
            *identities += part.identities.len() as u32;
        }
        Control::Same(chunks) => assert!(input.identity && !chunks.is_empty()),
        Control::Proven(part) => {
            assert!(input.proof && part.first.0 == *proven && part.count > 0);
            *proven += part.count;
        }
        _ => {}
    }
}

fuzz_target!(|input: Input| {
    let (manifest, table) = input.shape.build();
    let algorithm = input.shape.algorithm();
    let mut now = Instant::now();
    let config = SenderConfig {
        streams: input.streams.map_or(Streams::Auto, |streams| Streams::Fixed(streams.into())),
        granted: (input.granted % 65).into(),
        checkpoint: input.checkpoint.map(u64::from),
        data_streams_from: 0,
        flying_max: usize::from(input.flying_max).max(1),
        identity: input.identity,
        proof: input.proof,
        content: input.content,
        ..SenderConfig::default()
    };
    let mut sender = Sender::new(config, Arc::clone(&manifest), table.clone(), algorithm, now);
    if input.identity {
        sender.set_identities((1..=u64::from(manifest.len())).collect());
    }
    let mut confirmed: BTreeSet<ChunkIndex> = BTreeSet::new();
    let mut claims: BTreeMap<ChunkIndex, Checksum> = BTreeMap::new();
    if let Some(answer) = &input.answer {
        let mut receiver = Receiver::new(Arc::clone(&manifest), table, algorithm);
        for entry in answer.skips.iter().take(50) {
            receiver.skip(EntryIndex(u32::from(*entry) % (manifest.len() + 1)), SkipReason::Policy);
        }
        let pieces = |chunks: &[u16], receiver: &Receiver| -> Vec<ChunkIndex> {
            let chunks = chunks.iter().take(50).map(|&chunk| ChunkIndex(chunk.into()));
            let is_piece =
                |chunk| matches!(receiver.table().content(chunk), Some(ChunkContent::Piece { .. }));
            chunks.filter(|&chunk| is_piece(chunk)).collect()
        };
        // An older receiver's chunks are compared, which needs checksums; only a newer one says
        // which.
        if input.identity || !algorithm.is_empty() {
            for chunk in pieces(&answer.holds, &receiver) {
                let sum = sum(algorithm, 0);
                receiver.hold(chunk, &sum);
                if receiver.checksum(chunk).is_some() && input.identity {
                    confirmed.insert(chunk);
                } else {
                    claims.insert(chunk, sum);
                }
            }
        }
        if input.identity && !algorithm.is_empty() {
            for chunk in pieces(&answer.claims, &receiver) {
                receiver.claim(chunk, &sum(algorithm, 0));
                claims.insert(chunk, sum(algorithm, 0));
            }
        }
        for frame in receiver.answer() {
            sender.handle_frame(StreamId::CONTROL, frame, now);
        }
        assert_eq!(sender.outcome(), None, "the answer of an honest receiver is refused");
        assert_eq!(sender.needed(), Some(receiver.totals()));
    }
    // What each stream has been told to send, and whether it has read it.
    let mut sending: BTreeMap<u32, (ChunkIndex, bool)> = BTreeMap::new();
    let mut handed: Vec<ChunkIndex> = Vec::new();
    let (mut proven, mut identities) = (0, 0);
    let mut names = vec![0];
    let mut end_sent = false;
    let mut filled = 0u64;
    let mut stream_ended = false;
    for step in input.steps.iter().take(300) {
        let name = |nth: u8| StreamId(names[usize::from(nth) % names.len()]);
        match step {
            Step::Frame(stream, said) => {
                let pick = |nth: &Vec<u8>| -> Vec<ChunkIndex> {
                    if handed.is_empty() {
                        return Vec::new();
                    }
                    nth.iter().take(20).map(|&nth| handed[usize::from(nth) % handed.len()]).collect()
                };
                let mut confirms = Vec::new();
                let frame = match said {
                    Said::Skip(runs) => Control::Skip(
                        runs.iter()
                            .map(|&(first, count, reason)| SkipRun {
                                first: EntryIndex(first.into()),
                                count: count.into(),
                                reason: [SkipReason::Identical, SkipReason::Held][usize::from(reason % 2)],
                            })
                            .collect(),
                    ),
                    Said::Held(first, count, more) => Control::Held(Held {
                        first: ChunkIndex((*first).into()),
                        checksums: vec![1; usize::from(*count) * algorithm.len() + usize::from(more % 2)],
                    }),
                    Said::Need(chunks, bytes) => {
                        Control::Need(NeedTotals { chunks: *chunks, bytes: (*bytes).into() })
                    }
                    Said::Confirm(nth) => {
                        confirms = pick(nth);
                        Control::Confirm(confirms.clone())
                    }
                    Said::ConfirmAny(chunks) => {
                        confirms = chunks.iter().copied().map(ChunkIndex).collect();
                        Control::Confirm(confirms.clone())
                    }
                    Said::Again(nth) => Control::Again(pick(nth)),
                    Said::AgainAny(chunks) => {
                        Control::Again(chunks.iter().copied().map(ChunkIndex).collect())
                    }
                    Said::Checkpointed => Control::Checkpointed,
                    Said::Abandoned(entry) => Control::Abandoned(EntryIndex((*entry).into())),
                    Said::Done => Control::Done(Done::default()),
                    Said::Refuse => {
                        Control::Refuse(Refuse { code: Code::BadRequest, message: "x".into(), paths: vec![] })
                    }
                    Said::Alive => Control::Alive,
                    Said::Compare(first, count, more) => Control::Compare(Held {
                        first: ChunkIndex((*first).into()),
                        checksums: vec![1; usize::from(*count) * algorithm.len() + usize::from(more % 2)],
                    }),
                    Said::Ask(entries) => {
                        Control::Ask(entries.iter().map(|&entry| EntryIndex(entry.into())).collect())
                    }
                    Said::More => Control::More,
                    Said::Same(chunks) => Control::Same(chunks.iter().copied().map(ChunkIndex).collect()),
                    Said::Proven(first, count) => {
                        Control::Proven(Proven { first: ChunkIndex(*first), count: *count, digest: [0; 32] })
                    }
                };
                let before = sender.confirmed_bytes();
                sender.handle_frame(name(*stream), frame, now);
                assert!(sender.confirmed_bytes() >= before);
                if sender.outcome().is_none() {
                    confirmed.extend(confirms);
                }
            }
            Step::Poll(stream) => {
                let id = name(*stream);
                // A driver asks again only when it is done with what it was told.
                if sending.contains_key(&id.0) {
                    continue;
                }
                match sender.poll_stream(id, now) {
                    Action::Send(chunk) => {
                        assert!(sender.outcome().is_none() && sender.needed().is_some());
                        assert!(!confirmed.contains(&chunk), "a confirmed chunk is sent again");
                        assert!(!end_sent || sender.table().stream().is_some() || handed.contains(&chunk));
                        sender.slices(chunk);
                        handed.push(chunk);
                        sending.insert(id.0, (chunk, false));
                    }
                    Action::Control(Control::End(_)) => {
                        assert!(!end_sent, "END twice");
                        end_sent = true;
                    }
                    Action::Control(frame) => {
                        check_frame(&input, &frame, &mut proven, &mut identities);
                    }
                    Action::Wait => {}
                    Action::Close => {
                        if id != StreamId::CONTROL {
                            names.retain(|&other| other != id.0);
                        }
                    }
                }
            }
            Step::Read(stream, byte) => {
                if let Some((chunk, read)) = sending.get_mut(&name(*stream).0) {
                    if !*read {
                        *read = true;
                        // Most sources do not change.
                        let byte = if *byte == 255 { 1 } else { 0 };
                        sender.handle_read(*chunk, &sum(algorithm, byte));
                    }
                }
            }
            Step::Sent(stream) => {
                let id = name(*stream);
                if sending.get(&id.0).is_some_and(|&(_, read)| read) {
                    sending.remove(&id.0);
                    sender.handle_sent(id, CHUNK.into(), now);
                }
            }
            Step::Unreadable(stream, entry) => {
                let id = name(*stream);
                if let Some(&(chunk, false)) = sending.get(&id.0) {
                    if let Some(entry) = own_entry(&sender, chunk, *entry) {
                        sending.remove(&id.0);
                        sender.handle_unreadable(Some(id), chunk, entry, Code::NotFound, "x");
                    }
                }
            }
            Step::Compare(outcome, entry) => {
                let over = sender.outcome().is_some();
                if let Some(chunk) = sender.poll_compare() {
                    assert!(!over && sender.needed().is_some() && !confirmed.contains(&chunk));
                    let same = claims.get(&chunk).copied();
                    let same = same.unwrap_or_else(|| Checksum::from_slice(&vec![1; algorithm.len()]));
                    match outcome % 8 {
                        7 => {
                            if let Some(entry) = own_entry(&sender, chunk, *entry) {
                                sender.handle_unreadable(None, chunk, entry, Code::NotFound, "x");
                            }
                        }
                        6 => sender.handle_compared(chunk, &sum(algorithm, 3)),
                        _ => {
                            sender.handle_compared(chunk, &same);
                            if sender.outcome().is_none() {
                                confirmed.insert(chunk);
                            }
                        }
                    }
                }
            }
            Step::Asked => {
                if let Some(entry) = sender.poll_asked() {
                    assert!(input.content && sender.outcome().is_none());
                    assert!(manifest.get(entry).is_some());
                }
            }
            Step::Joined => names.push(sender.handle_stream_joined(now).0),
            Step::OpenFailed => sender.handle_open_failed(now),
            Step::Lost(stream) => {
                let id = name(*stream);
                if id != StreamId::CONTROL {
                    sending.remove(&id.0);
                    names.retain(|&other| other != id.0);
                    sender.handle_stream_lost(id, now);
                }
            }
            Step::Filled => {
                if !stream_ended
                    && sender.wants_stream() == Some(true)
                    && sender.handle_stream_filled().is_some()
                {
                    filled += u64::from(CHUNK);
                }
            }
            Step::Ended(less) => {
                stream_ended = true;
                sender.handle_stream_ended(filled.saturating_sub(u64::from(less % CHUNK as u16)));
            }
            Step::Honest(stream, turns) => {
                let id = name(*stream);
                for _ in 0..*turns {
                    if sending.contains_key(&id.0) {
                        break;
                    }
                    match sender.poll_stream(id, now) {
                        Action::Send(chunk) => {
                            assert!(!confirmed.contains(&chunk), "a confirmed chunk is sent again");
                            handed.push(chunk);
                            sender.handle_read(chunk, &sum(algorithm, 0));
                            sender.handle_sent(id, CHUNK.into(), now);
                            sender.handle_frame(id, Control::Confirm(vec![chunk]), now);
                            if sender.outcome().is_none() {
                                confirmed.insert(chunk);
                            }
                        }
                        Action::Control(Control::Abandon { entry, .. }) => {
                            sender.handle_frame(id, Control::Abandoned(entry), now)
                        }
                        Action::Control(Control::Checkpoint) => {
                            sender.handle_frame(id, Control::Checkpointed, now)
                        }
                        Action::Control(Control::End(_)) => {
                            assert!(!end_sent, "END twice");
                            end_sent = true;
                            sender.handle_frame(id, Control::Done(Done::default()), now);
                        }
                        Action::Control(frame) => {
                            check_frame(&input, &frame, &mut proven, &mut identities);
                        }
                        Action::Close => {
                            if id != StreamId::CONTROL {
                                names.retain(|&other| other != id.0);
                            }
                            break;
                        }
                        Action::Wait => break,
                    }
                }
            }
            Step::Pass(millis) => {
                now += Duration::from_millis((*millis).into());
                sender.handle_timeout(now);
                assert!(sender.poll_timeout().is_none_or(|at| at > now), "a timer in the past spins");
            }
        }
        for _ in 0..1000 {
            if !sender.poll_open(now) {
                break;
            }
        }
        while let Some(closed) = sender.poll_close() {
            sending.remove(&closed.0);
            names.retain(|&other| other != closed.0 || other == 0);
        }
        while sender.poll_stream_freed().is_some() {}
        match sender.outcome() {
            Some(Outcome::Violated(violation)) => {
                assert!([Code::BadRequest, Code::OverLimit].contains(&violation.code), "{violation}");
            }
            Some(Outcome::Failed(failure)) => {
                let own = [Code::NotFound, Code::SourceChanged, Code::OverLimit];
                assert!(own.contains(&failure.code), "{failure}");
            }
            Some(Outcome::Done(_)) => assert!(end_sent, "done before END"),
            _ => {}
        }
        for entry in (0..manifest.len().min(20)).map(EntryIndex) {
            sender.piece_checksums(entry);
        }
    }
    let _ = Table::new(&manifest, ChunkSize::MAX);
});
