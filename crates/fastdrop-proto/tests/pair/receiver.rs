//! The receiver against a bad sender.

use crate::{Desk, one_file};
use fastdrop_proto::checksum::Algorithm;
use fastdrop_proto::fastdp::{
    ChunkVerdict, Code, Completed, Control, FrameKind, NeedTotals, Proven, Receiver, Transcript, root_digest,
};
use fastdrop_proto::units::{ChunkIndex, EntryIndex};
use fastdrop_testing::fastdp::rng::Rng;
use fastdrop_testing::fastdp::world::{SourceBuilder, World};
use std::sync::Arc;

#[test]
fn case_21_an_index_beyond_the_count_is_refused() {
    let mut desk = Desk::new(one_file(4));
    for chunk in [4, 5, ChunkIndex::LIMIT - 1] {
        for kind in [FrameKind::Chunk(ChunkIndex(chunk)), FrameKind::EncodedChunk(ChunkIndex(chunk))] {
            assert_eq!(desk.receiver.expect(kind, 1032).unwrap_err().code, Code::BadRequest);
        }
    }
}

#[test]
fn case_103_a_claimed_chunk_is_not_held_before_the_sender_says_so() {
    let source = one_file(3);
    let world = World::new(source, Algorithm::Xxh3);
    let receiver = Receiver::new(Arc::clone(&world.source.manifest), world.table.clone(), world.algorithm);
    let mut desk = Desk { world, receiver };
    let (first, other) = (desk.sum(0), Algorithm::Xxh3.of(b"other"));
    desk.receiver.claim(ChunkIndex(0), &first);
    desk.receiver.claim(ChunkIndex(1), &other);
    let answer = desk.receiver.answer();
    assert!(
        matches!(&answer[..], [Control::Compare(held), Control::Need(NeedTotals { chunks: 1, bytes: 1024 })]
        if held.first == ChunkIndex(0) && held.checksums.len() == 16)
    );
    assert_eq!(desk.receiver.checksum(ChunkIndex(0)), None);
    desk.receiver.handle_same(ChunkIndex(2)).unwrap_err();
    assert_eq!(desk.receiver.handle_same(ChunkIndex(0)), Ok(Some((first, Completed::Nothing))));
    desk.receiver.handle_same(ChunkIndex(0)).unwrap_err();
    // The sender's own version takes the place of the other.
    assert_eq!(desk.arrives(1), Ok(ChunkVerdict::Write));
    assert_eq!(desk.written(1), Completed::Nothing);
    desk.receiver.handle_end(desk.digest()).unwrap();
    assert_eq!(desk.receiver.poll_finish(), None);
    assert_eq!(desk.arrives(2), Ok(ChunkVerdict::Write));
    assert_eq!(desk.written(2), Completed::File(EntryIndex(0)));
    assert_eq!(desk.receiver.poll_finish(), Some(Ok(())));
}

#[test]
fn case_30_what_is_named_early_is_proven_and_a_wrong_proof_is_refused() {
    let mut builder = SourceBuilder::default();
    for _ in 0..4 {
        builder.random(&mut Rng::new(1), 2000);
    }
    let mut desk = Desk::new(builder.finish(vec![]));
    for chunk in 0..6 {
        assert_eq!(desk.arrives(chunk), Ok(ChunkVerdict::Write));
        desk.written(chunk);
    }
    let digest = |desk: &Desk, from: u32, to: u32| {
        root_digest(&Transcript::default(), (from..to).map(|n| (ChunkIndex(n), desk.sum(n))))
    };
    let proven = |first: u32, count, digest| Proven { first: ChunkIndex(first), count, digest };
    let refused = |desk: &mut Desk, proof: Proven| desk.receiver.handle_proven(&proof).unwrap_err().code;
    assert_eq!(refused(&mut desk, proven(0, 4, [0; 32])), Code::Integrity);
    let (next, beyond) = (digest(&desk, 1, 3), digest(&desk, 0, 7));
    assert_eq!(refused(&mut desk, proven(1, 2, next)), Code::BadRequest);
    assert_eq!(refused(&mut desk, proven(0, 7, beyond)), Code::Integrity);
    assert_eq!(refused(&mut desk, proven(0, 9, beyond)), Code::BadRequest);
    assert_eq!(refused(&mut desk, proven(0, u32::MAX, beyond)), Code::BadRequest);
    assert!(!desk.receiver.is_proven(EntryIndex(0)));
    let right = digest(&desk, 0, 3);
    desk.receiver.handle_proven(&proven(0, 3, right)).unwrap();
    assert_eq!([0, 1, 2, 3].map(|at| desk.receiver.is_proven(EntryIndex(at))), [true, false, false, false]);
    let right = digest(&desk, 3, 6);
    desk.receiver.handle_proven(&proven(3, 3, right)).unwrap();
    assert_eq!([0, 1, 2, 3].map(|at| desk.receiver.is_proven(EntryIndex(at))), [true, true, true, false]);
}

#[test]
fn case_22_the_same_chunk_again_is_confirmed_again_and_counted_once() {
    let mut desk = Desk::new(one_file(2));
    assert_eq!(desk.arrives(1), Ok(ChunkVerdict::Write));
    assert_eq!(desk.written(1), Completed::Nothing);
    assert_eq!(desk.arrives(1), Ok(ChunkVerdict::Confirm));
    assert_eq!(desk.written(1), Completed::Nothing);
    assert_eq!(desk.receiver.totals(), NeedTotals { chunks: 1, bytes: 1024 });
    assert_eq!(desk.arrives(0), Ok(ChunkVerdict::Write));
    assert_eq!(desk.written(0), Completed::File(EntryIndex(0)));
}

#[test]
fn case_23_the_same_index_with_other_bytes_is_a_conflict_and_the_verified_one_stays() {
    let mut desk = Desk::new(one_file(2));
    assert_eq!(desk.arrives(0), Ok(ChunkVerdict::Write));
    desk.written(0);
    let (good, other) = (desk.sum(0), Algorithm::Xxh3.of(b"other"));
    assert_eq!(desk.arrives_as(0, other), Err(Code::Conflict));
    assert_eq!(desk.receiver.checksum(ChunkIndex(0)), Some(good));
}

#[test]
fn case_24_a_chunk_on_two_streams_at_once_has_one_writer() {
    let mut desk = Desk::new(one_file(2));
    assert_eq!(desk.arrives(0), Ok(ChunkVerdict::Write));
    assert_eq!(desk.arrives(0), Ok(ChunkVerdict::Ignore));
    assert_eq!(desk.arrives_as(0, Algorithm::Xxh3.of(b"other")), Ok(ChunkVerdict::Ignore));
    desk.written(0);
    assert_eq!(desk.arrives(0), Ok(ChunkVerdict::Confirm));
}

#[test]
fn case_25_a_flipped_bit_is_asked_for_again_but_not_for_ever() {
    let mut desk = Desk::new(one_file(1));
    let expected = desk.receiver.expect(FrameKind::Chunk(ChunkIndex(0)), 1032).unwrap();
    let (sent, computed) = (desk.sum(0), Algorithm::Xxh3.of(b"flipped"));
    for _ in 0..16 {
        assert_eq!(desk.receiver.check(&expected, &sent, &computed), Ok(ChunkVerdict::Again));
    }
    assert_eq!(desk.receiver.check(&expected, &sent, &computed).unwrap_err().code, Code::Integrity);
}

#[test]
fn case_26_a_short_last_chunk_is_refused_and_what_is_short_of_it_is_not_finished() {
    let mut desk = Desk::new(one_file(2));
    desk.arrives(0).unwrap();
    desk.written(0);
    assert_eq!(
        desk.receiver.expect(FrameKind::Chunk(ChunkIndex(1)), 1031).unwrap_err().code,
        Code::BadRequest
    );
    desk.receiver.handle_end(desk.digest()).unwrap();
    assert_eq!(desk.receiver.poll_finish(), None);
}

#[test]
fn case_27_a_chunk_longer_than_announced_is_refused_before_it_is_read() {
    let mut desk = Desk::new(one_file(2));
    for size in [1033, 1034, u32::MAX, 7, 0] {
        assert_eq!(
            desk.receiver.expect(FrameKind::Chunk(ChunkIndex(1)), size).unwrap_err().code,
            Code::BadRequest
        );
    }
    for size in [1032 + (16 << 10) + 1, u32::MAX, 8, 0] {
        assert_eq!(
            desk.receiver.expect(FrameKind::EncodedChunk(ChunkIndex(1)), size).unwrap_err().code,
            Code::BadRequest
        );
    }
}

#[test]
fn case_28_every_second_chunk_is_not_everything() {
    let mut desk = Desk::new(one_file(300));
    for chunk in (0..300).step_by(2) {
        assert_eq!(desk.arrives(chunk), Ok(ChunkVerdict::Write));
        assert_eq!(desk.written(chunk), Completed::Nothing);
    }
    desk.receiver.handle_end(desk.digest()).unwrap();
    assert_eq!(desk.receiver.poll_finish(), None);
    assert_eq!(desk.receiver.totals().chunks, 150);
    for chunk in (1..300).rev().step_by(2) {
        assert_eq!(desk.receiver.poll_finish(), None);
        desk.arrives(chunk).unwrap();
        desk.written(chunk);
    }
    assert_eq!(desk.receiver.poll_finish(), Some(Ok(())));
    assert_eq!(desk.receiver.poll_finish(), None);
}

#[test]
fn case_30_right_chunks_under_a_wrong_root_digest_get_no_name() {
    let mut desk = Desk::new(one_file(3));
    let mut digest = desk.digest();
    digest[31] ^= 1;
    desk.receiver.handle_end(digest).unwrap();
    for chunk in 0..3 {
        assert_eq!(desk.receiver.poll_finish(), None);
        desk.arrives(chunk).unwrap();
        desk.written(chunk);
    }
    assert_eq!(desk.receiver.poll_finish().unwrap().unwrap_err().code, Code::Integrity);
    assert_eq!(desk.receiver.poll_finish(), None);
    assert_eq!(desk.receiver.handle_end(desk.digest()).unwrap_err().code, Code::BadRequest);
    assert_eq!(desk.receiver.poll_finish(), None);
}
