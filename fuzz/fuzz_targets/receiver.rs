//! The receiving machine, told anything by its peer, with a driver that keeps its part of the
//! bargain.

#![no_main]

use arbitrary::Arbitrary;
use fastdrop_fuzz::{CHUNK, Shape, sum};
use fastdrop_proto::checksum::Checksum;
use fastdrop_proto::fastdp::{
    ChunkContent, ChunkVerdict, Code, Completed, Control, EntryKind, FrameKind, Proven, Receiver, SkipReason,
    Transcript, Violation, root_digest,
};
use fastdrop_proto::units::{ChunkIndex, EntryIndex};
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;

#[derive(Debug, Arbitrary)]
enum Step {
    /// A chunk as the table has it.
    Right {
        chunk: u16,
        byte: u8,
        len: u16,
    },
    /// A chunk frame of any size.
    Chunk {
        encoded: bool,
        chunk: u32,
        size: u32,
        sent: u8,
        computed: u8,
    },
    Written(u8),
    WriteFailed(u8),
    Abandon(u16),
    AbandonAny(u32),
    Size(u32),
    SizeAny(u32, u64),
    End([u8; 2]),
    HonestEnd,
    /// One of the chunks that are claimed.
    Same(u8),
    SameAny(u32),
    /// The next so many chunks, with the right digest.
    HonestProven(u8),
    Proven {
        first: u32,
        count: u32,
        byte: u8,
    },
}

#[derive(Debug, Arbitrary)]
struct Input {
    shape: Shape,
    skips: Vec<(u16, u8)>,
    holds: Vec<(u16, u8)>,
    claims: Vec<(u16, u8)>,
    steps: Vec<Step>,
}

/// Takes one chunk of SAME, which must have been claimed and is held from then on.
fn same(receiver: &mut Receiver, chunk: ChunkIndex) -> Result<(), Violation> {
    let (had, held) = (receiver.has(chunk), receiver.checksum(chunk).is_some());
    if let Some((checksum, _)) = receiver.handle_same(chunk)? {
        assert!(had && !held, "a chunk that was not claimed");
        assert_eq!(receiver.checksum(chunk), Some(checksum));
    }
    Ok(())
}

fuzz_target!(|input: Input| {
    let (manifest, table) = input.shape.build();
    let algorithm = input.shape.algorithm();
    let counted = table.count();
    let stream = table.stream();
    let mut receiver = Receiver::new(Arc::clone(&manifest), table, algorithm);
    for (entry, reason) in input.skips.iter().take(50) {
        let reason = [SkipReason::Identical, SkipReason::Policy, SkipReason::Held][usize::from(reason % 3)];
        receiver.skip(EntryIndex(u32::from(*entry) % (manifest.len() + 1)), reason);
    }
    for (chunk, byte) in input.holds.iter().take(50) {
        let chunk = ChunkIndex(u32::from(*chunk) % (counted + 1));
        // Only pieces are kept from one attempt to the next.
        if matches!(receiver.table().content(chunk), Some(ChunkContent::Piece { .. })) {
            receiver.hold(chunk, &sum(algorithm, *byte));
        }
    }
    let mut claimed = Vec::new();
    for (chunk, byte) in input.claims.iter().take(50) {
        let chunk = ChunkIndex(u32::from(*chunk) % (counted + 1));
        // Without checksums nothing could be compared.
        if !algorithm.is_empty()
            && matches!(receiver.table().content(chunk), Some(ChunkContent::Piece { .. }))
        {
            receiver.claim(chunk, &sum(algorithm, *byte));
            claimed.push(chunk);
        }
    }
    let frames = receiver.answer();
    let needed = receiver.totals();
    assert!(matches!(frames.last(), Some(Control::Need(totals)) if *totals == needed));
    assert!(needed.chunks <= counted && needed.bytes <= manifest.bytes());

    let held = |receiver: &Receiver| {
        (0..counted + 5000)
            .map(ChunkIndex)
            .filter_map(|chunk| Some((chunk, receiver.checksum(chunk)?)))
            .collect::<Vec<_>>()
    };
    let mut writing: Vec<(ChunkIndex, Checksum, u32)> = Vec::new();
    let mut proven = 0;
    let mut finished = false;
    let mut over = false;
    for step in input.steps.iter().take(300) {
        let limit = counted + if stream.is_some() { 5000 } else { 1 };
        let done = match *step {
            Step::Right { chunk, byte, len } => {
                let chunk = ChunkIndex(u32::from(chunk) % limit);
                let plain = match receiver.table().content(chunk) {
                    Some(ChunkContent::Piece { len, .. }) => len,
                    Some(ChunkContent::Pack { .. }) => receiver.slices(chunk).map(|(_, size)| size).sum(),
                    Some(ChunkContent::Stream { .. }) => u32::from(len),
                    None => 0,
                };
                let size = plain + algorithm.len() as u32;
                receiver.expect(FrameKind::Chunk(chunk), size).and_then(|expected| {
                    assert_eq!(
                        (expected.chunk, expected.plain_len, expected.data_len),
                        (chunk, plain, plain)
                    );
                    let sum = sum(algorithm, byte);
                    if receiver.check(&expected, &sum, &sum)? == ChunkVerdict::Write {
                        // A pack that loses a slice is written anew, whatever is under way.
                        let pack = matches!(receiver.table().content(chunk), Some(ChunkContent::Pack { .. }));
                        let twice = writing.iter().any(|&(other, ..)| other == chunk);
                        assert!(pack || !twice, "two writers of one chunk");
                        writing.push((chunk, sum, plain));
                    }
                    Ok(())
                })
            }
            Step::Chunk { encoded, chunk, size, sent, computed } => {
                let chunk = ChunkIndex(chunk);
                let kind = if encoded { FrameKind::EncodedChunk(chunk) } else { FrameKind::Chunk(chunk) };
                receiver.expect(kind, size).and_then(|expected| {
                    assert!(expected.plain_len <= CHUNK && expected.data_len <= CHUNK + (16 << 10));
                    let computed = sum(algorithm, computed);
                    match receiver.check(&expected, &sum(algorithm, sent), &computed)? {
                        ChunkVerdict::Write => writing.push((chunk, computed, expected.plain_len)),
                        ChunkVerdict::Confirm => assert!(receiver.checksum(chunk).is_some()),
                        _ => {}
                    }
                    Ok(())
                })
            }
            Step::Written(nth) if !writing.is_empty() => {
                let (chunk, sum, plain) = writing.remove(usize::from(nth) % writing.len());
                let before = receiver.checksum(chunk).is_some();
                let completed = receiver.handle_written(chunk, &sum);
                let now = receiver.checksum(chunk).is_some();
                assert!(now || !before, "what was held is not any more");
                if matches!(receiver.table().content(chunk), Some(ChunkContent::Stream { .. }))
                    && now
                    && !before
                {
                    receiver.handle_stream_bytes(plain);
                }
                match completed {
                    Completed::Nothing => {}
                    Completed::File(entry) => assert!(receiver.is_needed(entry)),
                    Completed::Pack(from, to) => assert!(from < to && to.0 <= manifest.len()),
                }
                Ok(())
            }
            Step::WriteFailed(nth) if !writing.is_empty() => {
                let (chunk, ..) = writing.remove(usize::from(nth) % writing.len());
                receiver.handle_write_failed(chunk);
                Ok(())
            }
            Step::Written(_) | Step::WriteFailed(_) => Ok(()),
            Step::Abandon(entry) => {
                let entry = EntryIndex(u32::from(entry) % (manifest.len() + 1));
                receiver.handle_abandon(entry).map(|frames| {
                    assert_eq!(frames.last(), Some(&Control::Abandoned(entry)));
                })
            }
            Step::AbandonAny(entry) => receiver.handle_abandon(EntryIndex(entry)).map(|_| ()),
            Step::Size(size) => {
                let entry = stream.map_or(EntryIndex(0), |(entry, _)| entry);
                receiver.handle_size(entry, u64::from(size) % (5000 * u64::from(CHUNK)))
            }
            Step::SizeAny(entry, size) => receiver.handle_size(EntryIndex(entry), size),
            Step::End(bytes) => receiver.handle_end([bytes[0]; 32]),
            Step::HonestEnd => {
                let digest = root_digest(&Transcript::default(), held(&receiver).into_iter());
                receiver.handle_end(digest)
            }
            Step::Same(nth) if !claimed.is_empty() => {
                same(&mut receiver, claimed[usize::from(nth) % claimed.len()])
            }
            Step::Same(_) => Ok(()),
            Step::SameAny(chunk) => same(&mut receiver, ChunkIndex(chunk)),
            Step::HonestProven(count) => {
                let count = u32::from(count).min(counted.saturating_sub(proven));
                let chunks = held(&receiver).into_iter();
                let chunks = chunks.filter(|(chunk, _)| (proven..proven + count).contains(&chunk.0));
                let digest = root_digest(&Transcript::default(), chunks);
                let done = receiver.handle_proven(&Proven { first: ChunkIndex(proven), count, digest });
                if done.is_ok() {
                    for chunk in (proven..proven + count).map(ChunkIndex) {
                        let is_needed = match receiver.table().content(chunk) {
                            Some(ChunkContent::Piece { entry, .. }) => receiver.is_needed(entry),
                            _ => receiver.slices(chunk).next().is_some(),
                        };
                        assert!(!is_needed || receiver.checksum(chunk).is_some(), "{chunk:?} is not held");
                    }
                    proven += count;
                }
                done
            }
            Step::Proven { first, count, byte } => {
                let proof = Proven { first: ChunkIndex(first), count, digest: [byte; 32] };
                assert!(receiver.handle_proven(&proof).is_err(), "a made-up digest is believed");
                Ok(())
            }
        };
        if let Err(violation) = done {
            assert!(
                [Code::BadRequest, Code::Conflict, Code::Integrity].contains(&violation.code),
                "{violation}"
            );
            // A driver ends the transfer here; what comes in the same moment on other streams does
            // no harm either.
            over = true;
        }
        receiver.totals();
        for (entry, _) in manifest.iter().filter(|&(entry, _)| receiver.is_proven(entry)) {
            let (first, count) = receiver.table().chunks_of(entry).unwrap();
            assert!(first.0 + count <= proven);
            for chunk in (first.0..first.0 + count).map(ChunkIndex) {
                assert!(receiver.checksum(chunk).is_some(), "proven without {chunk:?}");
            }
        }
        if let Some(finish) = receiver.poll_finish() {
            assert!(!finished, "finished twice");
            finished = true;
            match finish {
                Ok(()) if !over => {
                    for (entry, item) in manifest.iter() {
                        if !receiver.is_needed(entry)
                            || item.size() == 0
                            || matches!(item.kind, EntryKind::Stream)
                        {
                            continue;
                        }
                        let (first, count) = receiver.table().chunks_of(entry).unwrap();
                        for chunk in (first.0..first.0 + count).map(ChunkIndex) {
                            assert!(receiver.checksum(chunk).is_some(), "finished without {chunk:?}");
                        }
                    }
                    if let Some(size) = receiver.stream_size() {
                        let chunks = size.div_ceil(CHUNK.into()) as u32;
                        assert!((0..chunks).all(|at| receiver.checksum(ChunkIndex(counted + at)).is_some()));
                    }
                }
                Ok(()) => {}
                Err(violation) => assert_eq!(violation.code, Code::Integrity),
            }
        }
    }
    for entry in (0..manifest.len()).map(EntryIndex) {
        receiver.piece_checksums(entry);
    }
});
