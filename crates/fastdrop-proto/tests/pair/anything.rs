//! Anything in any order.

use crate::Desk;
use fastdrop_proto::checksum::{Algorithm, Checksum};
use fastdrop_proto::fastdp::{
    Action, ChunkVerdict, Code, Control, Done, FrameHeader, FrameKind, Held, Identities, LeftOut, NeedTotals,
    Outcome, Proven, Receiver, Refuse, Sender, SenderConfig, SkipReason, SkipRun, StreamId, Table,
};
use fastdrop_proto::units::{ChunkIndex, ChunkSize, EntryIndex};
use fastdrop_testing::fastdp::rng::Rng;
use fastdrop_testing::fastdp::world::{Source, SourceBuilder};
use proptest::prelude::*;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Debug, Clone)]
enum Step {
    Frame(u32, Control),
    Poll(u32),
    Read(u32, u8),
    Sent(u32),
    Unreadable(u32, u32, u32),
    Joined,
    OpenFailed,
    Lost(u32),
    Filled,
    Ended(u64),
    Pass(u64),
    Expect(bool, u32, u32, u8),
    Written,
    WriteFailed,
    Finish,
    Compare(u8),
    ComparedUnreadable(u32),
    Asked,
}

fn sum(byte: u8) -> Checksum {
    Algorithm::Xxh3.of(&[byte])
}

fn number() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0u32..12, 1 => Just(u32::MAX), 1 => Just(ChunkIndex::LIMIT - 1), 1 => any::<u32>()]
}

fn chunks() -> impl Strategy<Value = Vec<ChunkIndex>> {
    prop::collection::vec(number().prop_map(ChunkIndex), 0..4)
}

fn control() -> impl Strategy<Value = Control> {
    let reason = prop::sample::select(vec![SkipReason::Identical, SkipReason::Policy, SkipReason::Held]);
    let run = (number(), number(), reason);
    let run = run.prop_map(|(first, count, reason)| SkipRun { first: EntryIndex(first), count, reason });
    let held = || {
        (number(), 0usize..4, 0usize..9).prop_map(|(first, sums, more)| Held {
            first: ChunkIndex(first),
            checksums: vec![7; sums * 8 + more % 2],
        })
    };
    prop_oneof![
        1 => prop::collection::vec(run, 0..3).prop_map(Control::Skip),
        1 => held().prop_map(Control::Held),
        2 => held().prop_map(Control::Compare),
        2 => chunks().prop_map(Control::Same),
        1 => prop::collection::vec(number().prop_map(EntryIndex), 0..4).prop_map(Control::Ask),
        1 => (number(), prop::collection::vec(any::<u64>(), 0..9))
            .prop_map(|(first, identities)| Control::Identity(Identities { first: EntryIndex(first), identities })),
        1 => (number(), number(), 0u8..2)
            .prop_map(|(first, count, byte)| Control::Proven(Proven { first: ChunkIndex(first), count, digest: [byte; 32] })),
        1 => any::<u64>().prop_map(|unnamed| Control::LeftOut(LeftOut { unnamed, ..LeftOut::default() })),
        1 => "[a-z ]{1,40}".prop_map(|sentence| Control::LeftOut(LeftOut::uncarried(sentence))),
        1 => number().prop_map(|entry| Control::Content(vec![(EntryIndex(entry), None)])),
        4 => prop_oneof![Just((6, 5720)), Just((0, 0)), (0u32..9, 0u64..6000)]
            .prop_map(|(chunks, bytes)| Control::Need(NeedTotals { chunks, bytes })),
        4 => chunks().prop_map(Control::Confirm),
        2 => chunks().prop_map(Control::Again),
        1 => Just(Control::Checkpoint),
        1 => Just(Control::Checkpointed),
        1 => (number(), any::<u64>()).prop_map(|(entry, size)| Control::Size { entry: EntryIndex(entry), size }),
        1 => (number(), 0u64..9000).prop_map(|(entry, size)| Control::Size { entry: EntryIndex(entry), size }),
        2 => number().prop_map(|entry| Control::Abandon { entry: EntryIndex(entry), code: Code::NotFound, reason: "x".into() }),
        2 => number().prop_map(|entry| Control::Abandoned(EntryIndex(entry))),
        1 => (0u8..2).prop_map(|byte| Control::End([byte; 32])),
        1 => Just(Control::Done(Done::default())),
        1 => Just(Control::Refuse(Refuse { code: Code::BadRequest, message: "x".into(), paths: vec![] })),
        1 => Just(Control::More),
        1 => Just(Control::Alive),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u32..4, control()).prop_map(|(stream, frame)| Step::Frame(stream, frame)),
        6 => (0u32..4).prop_map(Step::Poll),
        3 => (number(), 0u8..2).prop_map(|(chunk, byte)| Step::Read(chunk, byte)),
        3 => (0u32..4).prop_map(Step::Sent),
        2 => (0u32..4, number(), number()).prop_map(|(stream, chunk, entry)| Step::Unreadable(stream, chunk, entry)),
        2 => Just(Step::Joined),
        1 => Just(Step::OpenFailed),
        1 => (1u32..4).prop_map(Step::Lost),
        1 => Just(Step::Filled),
        1 => (0u64..9000).prop_map(Step::Ended),
        2 => (0u64..20_000).prop_map(Step::Pass),
        8 => (any::<bool>(), number(), prop_oneof![Just(1032u32), Just(608), any::<u32>()], 0u8..3)
            .prop_map(|(encoded, chunk, size, byte)| Step::Expect(encoded, chunk, size, byte)),
        4 => Just(Step::Written),
        1 => Just(Step::WriteFailed),
        2 => Just(Step::Finish),
        3 => (0u8..9).prop_map(Step::Compare),
        1 => number().prop_map(Step::ComparedUnreadable),
        1 => Just(Step::Asked),
    ]
}

/// A pack of three files, a file of five chunks, and a stream.
fn everything() -> Source {
    let mut builder = SourceBuilder::default();
    for size in [100, 200, 300] {
        builder.random(&mut Rng::new(size), size as usize);
    }
    builder.random(&mut Rng::new(1), 5 * 1024);
    builder.other('d');
    builder.stream(vec![1; 3000]);
    builder.finish(vec![])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_sender_takes_anything_in_any_order(steps in prop::collection::vec(step(), 0..120), answered in any::<bool>(), newer in any::<bool>()) {
        let source = everything();
        let base = Instant::now();
        let mut now = base;
        let mut handed = Vec::new();
        let table = Table::new(&source.manifest, ChunkSize::MIN).unwrap();
        let config = SenderConfig { granted: 3, data_streams_from: 0, checkpoint: Some(2000), identity: newer, proof: newer, content: newer, ..SenderConfig::default() };
        let mut sender = Sender::new(config, Arc::clone(&source.manifest), table, Algorithm::Xxh3, now);
        if newer {
            sender.set_identities(vec![1; source.manifest.len() as usize]);
        }
        if answered {
            // Two of the file's chunks are claimed.
            let claims = Held { first: ChunkIndex(1), checksums: vec![7; 16] };
            let claims = if newer { Control::Compare(claims) } else { Control::Held(claims) };
            sender.handle_frame(StreamId::CONTROL, claims, now);
            let need = Control::Need(NeedTotals { chunks: 4, bytes: 5720 - 2 * 1024 });
            sender.handle_frame(StreamId::CONTROL, need, now);
            prop_assert_eq!(sender.outcome(), None);
        }
        for step in steps {
            match step {
                Step::Frame(stream, frame) => sender.handle_frame(StreamId(stream), frame, now),
                Step::Poll(stream) => {
                    if let Action::Send(chunk) = sender.poll_stream(StreamId(stream), now) {
                        prop_assert!(sender.outcome().is_none());
                        sender.slices(chunk);
                        handed.push(chunk);
                    }
                }
                // A driver reads only what it was told to.
                Step::Read(nth, byte) if !handed.is_empty() => {
                    sender.handle_read(handed[nth as usize % handed.len()], &sum(byte));
                }
                Step::Sent(stream) => sender.handle_sent(StreamId(stream), 1032, now),
                Step::Unreadable(stream, nth, entry) if !handed.is_empty() => {
                    let chunk = handed[nth as usize % handed.len()];
                    sender.handle_unreadable(Some(StreamId(stream)), chunk, EntryIndex(entry), Code::NotFound, "x");
                }
                Step::Compare(byte) => {
                    if let Some(chunk) = sender.poll_compare() {
                        prop_assert!(sender.outcome().is_none() && sender.needed().is_some());
                        sender.handle_compared(chunk, &Checksum::from_slice(&[byte; 8]));
                    }
                }
                Step::ComparedUnreadable(entry) => {
                    if let Some(chunk) = sender.poll_compare() {
                        sender.handle_unreadable(None, chunk, EntryIndex(entry), Code::NotFound, "x");
                    }
                }
                Step::Asked => prop_assert!(sender.poll_asked().is_none() || newer),
                Step::Joined => _ = sender.handle_stream_joined(now),
                Step::OpenFailed => sender.handle_open_failed(now),
                Step::Lost(stream) => sender.handle_stream_lost(StreamId(stream), now),
                Step::Filled if sender.wants_stream() == Some(true) => _ = sender.handle_stream_filled(),
                Step::Ended(size) => sender.handle_stream_ended(size),
                Step::Pass(millis) => {
                    now += Duration::from_millis(millis);
                    sender.handle_timeout(now);
                    prop_assert!(sender.poll_timeout().is_none_or(|at| at > now));
                }
                _ => {}
            }
            while sender.poll_open(now) {}
            while sender.poll_close().is_some() {}
            while sender.poll_stream_freed().is_some() {}
            match sender.outcome() {
                Some(Outcome::Violated(violation)) => {
                    prop_assert!([Code::BadRequest, Code::Conflict].contains(&violation.code), "{}", violation);
                }
                Some(Outcome::Failed(failure)) => {
                    let own = [Code::NotFound, Code::SourceChanged, Code::OverLimit];
                    prop_assert!(own.contains(&failure.code), "{}", failure);
                }
                _ => {}
            }
        }
    }

    #[test]
    fn a_receiver_takes_anything_in_any_order(steps in prop::collection::vec(step(), 0..120)) {
        let source = everything();
        let table = Table::new(&source.manifest, ChunkSize::MIN).unwrap();
        let mut receiver = Receiver::new(Arc::clone(&source.manifest), table, Algorithm::Xxh3);
        receiver.claim(ChunkIndex(2), &sum(0));
        receiver.claim(ChunkIndex(3), &sum(2));
        receiver.answer();
        let mut writing = Vec::new();
        for step in steps {
            let done = match step {
                Step::Frame(_, Control::Size { entry, size }) => receiver.handle_size(entry, size),
                Step::Frame(_, Control::Abandon { entry, .. }) => receiver.handle_abandon(entry).map(|_| ()),
                Step::Frame(_, Control::End(digest)) => receiver.handle_end(digest),
                Step::Frame(_, Control::Same(chunks)) => chunks.into_iter().try_for_each(|chunk| {
                    let claimed = receiver.has(chunk) && receiver.checksum(chunk).is_none();
                    if let Some((checksum, _)) = receiver.handle_same(chunk)? {
                        assert!(claimed && receiver.checksum(chunk) == Some(checksum));
                    }
                    Ok(())
                }),
                Step::Frame(_, Control::Proven(proven)) => receiver.handle_proven(&proven),
                Step::Expect(encoded, chunk, size, byte) => {
                    let chunk = ChunkIndex(chunk);
                    let kind = if encoded { FrameKind::EncodedChunk(chunk) } else { FrameKind::Chunk(chunk) };
                    receiver.expect(kind, size).and_then(|expected| {
                        assert!(expected.plain_len <= 1024);
                        assert!(expected.data_len <= 1024 + (16 << 10));
                        let verdict = receiver.check(&expected, &sum(byte), &sum(byte.min(1)))?;
                        if verdict == ChunkVerdict::Write {
                            writing.push((chunk, byte));
                        }
                        Ok(())
                    })
                }
                Step::Written => {
                    if let Some((chunk, byte)) = writing.pop() {
                        receiver.handle_written(chunk, &sum(byte));
                    }
                    Ok(())
                }
                Step::WriteFailed => {
                    if let Some((chunk, _)) = writing.pop() {
                        receiver.handle_write_failed(chunk);
                    }
                    Ok(())
                }
                Step::Finish => {
                    // Nobody here knows the root digest.
                    if let Some(finish) = receiver.poll_finish() {
                        prop_assert_eq!(finish.unwrap_err().code, Code::Integrity);
                    }
                    Ok(())
                }
                _ => Ok(()),
            };
            if let Err(violation) = done {
                prop_assert!([Code::BadRequest, Code::Conflict, Code::Integrity].contains(&violation.code), "{}", violation);
            }
            receiver.totals();
        }
    }

    #[test]
    fn any_eight_bytes_are_a_frame_header_that_is_taken_or_refused(bytes in any::<[u8; 8]>()) {
        let mut desk = Desk::new(everything());
        if let Ok(FrameHeader { kind: kind @ (FrameKind::Chunk(_) | FrameKind::EncodedChunk(_)), size }) = FrameHeader::decode(bytes)
            && let Ok(expected) = desk.receiver.expect(kind, size) {
                prop_assert!(expected.data_len <= 1024 + (16 << 10));
            }
    }
}
