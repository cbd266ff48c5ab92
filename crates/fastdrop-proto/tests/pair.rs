//! Sender and receiver as a pair in memory, in virtual time, with seeded faults.
//!
//! `FASTDROP_SEED=123` runs just that seed of the big test, `FASTDROP_TRACE=1` prints what happens in it,
//! `FASTDROP_SEEDS=1000000` runs more of them than usual.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use fastdrop_proto::checksum::{Algorithm, Checksum};
use fastdrop_proto::fastdp::{
    Action, ChunkVerdict, Code, Completed, Control, Done, FrameHeader, FrameKind, Held, Identities, LeftOut,
    NeedTotals, Outcome, Proven, Receiver, Refuse, Sender, SenderConfig, SkipReason, SkipRun, StreamId,
    Streams, Table, Transcript, root_digest,
};
use fastdrop_proto::units::{ChunkIndex, ChunkSize, EntryIndex};
use fastdrop_testing::fastdp::pair::{Bug, Fault, Pair, Plan, Stats};
use fastdrop_testing::fastdp::pipe::SECOND;
use fastdrop_testing::fastdp::rng::Rng;
use fastdrop_testing::fastdp::world::{Source, SourceBuilder, World};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

/// A seed's run, and what must be true of every seed.
fn run_seed(seed: u64) -> Result<Stats, String> {
    let stats = Pair::run(Plan::random(seed))?;
    if stats.faults() < 5 {
        return Err(format!("only {} faults happened", stats.faults()));
    }
    if stats.needed.first().is_none_or(|&needed| needed < 200) || stats.sends < 200 {
        return Err("fewer than 200 chunks".into());
    }
    Ok(stats)
}

/// Runs seeds on all cores; the lowest that fails is named.
fn sweep(seeds: std::ops::Range<u64>, run: impl Fn(u64) -> Result<Stats, String> + Sync) -> Vec<Stats> {
    let (next, failed) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let all = Mutex::new(Vec::new());
    let failure = Mutex::new(BTreeMap::new());
    let work = || {
        let mut mine = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(seed)));
            match caught.unwrap_or_else(|_| Err("a panic, see above".into())) {
                Ok(stats) => mine.push(stats),
                Err(error) => {
                    failed.store(true, Ordering::Relaxed);
                    failure.lock().unwrap().insert(seed, error);
                }
            }
        }
        all.lock().unwrap().extend(mine);
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(work);
        }
    });
    if let Some((seed, error)) = failure.into_inner().unwrap().pop_first() {
        let error: String = error.chars().take(3000).collect();
        panic!(
            "seed {seed} fails: {error}\n\
             to run just this one: FASTDROP_SEED={seed} FASTDROP_TRACE=1 cargo test -p fastdrop-proto --test pair -- --nocapture every_byte"
        );
    }
    all.into_inner().unwrap()
}

#[test]
fn every_byte_arrives_once_through_ten_thousand_runs_with_faults() {
    if let Some(seed) = from_env("FASTDROP_SEED") {
        println!("{:#?}", sweep(seed..seed + 1, run_seed));
        return;
    }
    let seeds = from_env("FASTDROP_SEEDS").unwrap_or(10_000);
    let all = sweep(0..seeds, run_seed);
    assert_eq!(all.len() as u64, seeds);
    let mut happened: BTreeMap<Fault, u64> = BTreeMap::new();
    for stats in &all {
        for (fault, count) in &stats.happened {
            *happened.entry(*fault).or_default() += u64::from(*count);
        }
    }
    let total = |count: fn(&Stats) -> u32| all.iter().map(|stats| u64::from(count(stats))).sum::<u64>();
    println!("faults: {happened:?}");
    println!(
        "attempts {}, chunks sent {}, needed {}, again {}, taken over {}, streams refused {}, checkpoints {}, abandoned {}, encoded {}",
        total(|stats| stats.attempts),
        total(|stats| stats.sends),
        total(|stats| stats.needed.first().copied().unwrap_or(0)),
        total(|stats| stats.again),
        total(|stats| stats.taken_over),
        total(|stats| stats.stream_refused),
        total(|stats| stats.checkpoints),
        total(|stats| stats.abandoned),
        total(|stats| stats.encoded),
    );
    println!("longest: {} s", all.iter().map(|stats| stats.ended_at).max().unwrap_or(0) / 1_000_000_000);
    for fault in [
        Fault::CutData,
        Fault::CutControl,
        Fault::Stall,
        Fault::StallControl,
        Fault::Duplicate,
        Fault::Flip,
        Fault::CrashReceiver,
        Fault::CrashSender,
        Fault::Unreadable,
        Fault::LoseEnd,
        Fault::LoseDone,
    ] {
        assert!(
            happened.get(&fault).is_some_and(|&count| count * 100 >= seeds),
            "{fault:?} hardly happens: {happened:?}"
        );
    }
    type Count = fn(&Stats) -> u32;
    let counts: [(&str, Count); 6] = [
        ("asked for again", |stats| stats.again),
        ("taken over", |stats| stats.taken_over),
        ("checkpoints", |stats| stats.checkpoints),
        ("abandoned", |stats| stats.abandoned),
        ("encoded", |stats| stats.encoded),
        ("resumed", |stats| stats.attempts - 1),
    ];
    for (what, count) in counts {
        assert!(total(count) * 10 >= seeds, "{what}: only {}", total(count));
    }
}

// ---- the checks can fail ----

/// Runs random plans with a planted bug until one is noticed.
fn noticed(bug: Bug, means: &[&str]) {
    let errors = (0..600).filter_map(|seed| Pair::run(Plan { bug: Some(bug), ..Plan::random(seed) }).err());
    let error = errors.into_iter().next().unwrap_or_else(|| panic!("nobody notices {bug:?}"));
    assert!(means.iter().any(|part| error.contains(part)), "{bug:?}: {error}");
}

#[test]
fn a_receiver_that_confirms_before_it_writes_is_noticed() {
    noticed(Bug::ConfirmEarly, &["was confirmed before this attempt and is sent again"]);
}

#[test]
fn a_receiver_that_counts_a_chunk_twice_is_noticed() {
    noticed(Bug::CountTwice, &["is counted twice"]);
}

#[test]
fn a_receiver_that_trusts_checksums_is_noticed() {
    noticed(Bug::TrustChecksum, &["is said to be complete and is not", "is not what was sent"]);
}

#[test]
fn a_receiver_that_gives_names_at_end_is_noticed() {
    noticed(Bug::NameAtEnd, &["is not what was sent"]);
}

#[test]
fn a_receiver_that_journals_before_it_writes_is_noticed() {
    noticed(Bug::JournalEarly, &["is said to be complete and is not", "is not what was sent"]);
}

#[test]
fn a_receiver_that_forgets_its_journal_is_noticed() {
    noticed(Bug::ForgetJournal, &["was confirmed before this attempt and is sent again"]);
}

// ---- single faults ----

/// One file of so many chunks.
fn one_file(chunks: usize) -> Source {
    let mut builder = SourceBuilder::default();
    builder.random(&mut Rng::new(7), chunks * 1024);
    builder.finish(vec![])
}

#[test]
fn case_98_the_chunks_of_a_stream_that_goes_dark_are_taken_over() {
    for seed in 0..20 {
        let plan = Plan { faults: vec![(20, Fault::Stall)], ..Plan::quiet(seed, one_file(400), 4) };
        let stats = Pair::run(plan).unwrap();
        assert_eq!((stats.happened[&Fault::Stall], stats.taken_over, stats.attempts), (1, 1, 1));
        // What fits into a stream of 4 KiB was sent twice, and it took the patience for a stall.
        assert!((401..=406).contains(&stats.sends), "{}", stats.sends);
        assert!((5 * SECOND..6 * SECOND).contains(&stats.ended_at), "{}", stats.ended_at);
    }
}

#[test]
fn cases_42_and_99_after_a_lost_end_nothing_is_missing() {
    let mut plan = Plan { lose_end: true, ..Plan::quiet(1, one_file(300), 1) };
    plan.config.data_streams_from = u64::MAX;
    let stats = Pair::run(plan).unwrap();
    assert_eq!((stats.attempts, stats.needed, stats.sends), (2, vec![300, 0], 300));
}

#[test]
fn cases_42_and_99_after_a_lost_done_nothing_is_missing() {
    for streams in [1, 8] {
        let stats = Pair::run(Plan { lose_done: true, ..Plan::quiet(1, one_file(300), streams) }).unwrap();
        assert_eq!((stats.attempts, stats.needed, stats.sends), (2, vec![300, 0], 300));
    }
}

#[test]
fn case_11_a_transcript_that_was_altered_on_the_way_is_never_done() {
    for algorithm in [Algorithm::Xxh3, Algorithm::Blake3, Algorithm::None] {
        let error = Pair::run(Plan { algorithm, alter_transcript: true, ..Plan::quiet(1, one_file(20), 2) })
            .unwrap_err();
        assert!(error.contains("422: the root digest"), "{error}");
    }
}

#[test]
fn case_40_a_checkpoint_replaces_a_stream_before_it_retires_and_bounds_its_bytes() {
    for streams in [1, 2, 5] {
        let mut plan = Plan::quiet(1, one_file(1500), streams);
        plan.config.checkpoint = Some(32 << 10);
        let stats = Pair::run(plan).unwrap();
        assert_eq!((stats.attempts, stats.sends), (1, 1500));
        let retired: Vec<_> = stats.stream_bytes.iter().filter(|(_, retired)| *retired).collect();
        assert!(retired.len() >= 20, "{retired:?}");
        for (bytes, _) in &stats.stream_bytes {
            // While the other one joins, in 4 ms and a polling, at 10 bytes a microsecond, and a chunk more.
            assert!(*bytes <= (32 << 10) + 45_000 + 4096 + 2048, "{bytes} of {:?}", stats.stream_bytes);
        }
        let carrying = &stats.carrying_at_checkpoint;
        assert!(carrying.iter().all(|&others| others >= usize::from(streams)), "{carrying:?}");
    }
}

#[test]
fn case_40_a_cut_around_a_checkpoint_leaves_no_gap_and_brings_nothing_twice() {
    for fault in [Fault::CutData, Fault::CutControl, Fault::CrashReceiver, Fault::CrashSender] {
        for after in 20..90 {
            let mut plan =
                Plan { faults: vec![(after, fault)], ..Plan::quiet(u64::from(after), one_file(300), 2) };
            plan.config.checkpoint = Some(32 << 10);
            let stats = Pair::run(plan).unwrap_or_else(|error| panic!("{fault:?} after {after}: {error}"));
            assert_eq!(stats.happened.get(&fault), Some(&1));
        }
    }
}

#[test]
fn case_103_what_is_held_of_another_version_of_a_file_is_compared_and_replaced() {
    let (mut same, mut differing, mut proven) = (0, 0, 0);
    for seed in 0..40 {
        let mut plan = Plan::random(seed);
        plan.changes = 60;
        plan.faults = vec![(60, Fault::CutControl), (110, Fault::CrashReceiver), (150, Fault::CrashSender)];
        let stats = Pair::run(plan).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        same += stats.same;
        differing += stats.differing;
        proven += stats.proven;
    }
    // All three really happen.
    assert!(same > 100 && differing > 100 && proven > 100, "{same} {differing} {proven}");
}

// ---- the receiver against a bad sender ----

/// A receiver and the chunks that it is to get.
struct Desk {
    world: World,
    receiver: Receiver,
}

impl Desk {
    fn new(source: Source) -> Self {
        let world = World::new(source, Algorithm::Xxh3);
        let mut receiver =
            Receiver::new(Arc::clone(&world.source.manifest), world.table.clone(), world.algorithm);
        receiver.answer();
        Self { world, receiver }
    }

    fn sum(&self, chunk: u32) -> Checksum {
        let shape = self.world.receiver_shape(&self.receiver, ChunkIndex(chunk));
        shape.checksum(self.world.algorithm, &self.world.read(&shape).unwrap())
    }

    /// Lets a chunk arrive whose bytes have this checksum.
    fn arrives_as(&mut self, chunk: u32, sum: Checksum) -> Result<ChunkVerdict, Code> {
        let shape = self.world.receiver_shape(&self.receiver, ChunkIndex(chunk));
        let size = self.world.read(&shape).unwrap().len() as u32 + sum.as_bytes().len() as u32;
        let kind = FrameKind::Chunk(ChunkIndex(chunk));
        let expected = self.receiver.expect(kind, size).map_err(|violation| violation.code)?;
        self.receiver.check(&expected, &sum, &sum).map_err(|violation| violation.code)
    }

    fn arrives(&mut self, chunk: u32) -> Result<ChunkVerdict, Code> {
        self.arrives_as(chunk, self.sum(chunk))
    }

    fn written(&mut self, chunk: u32) -> Completed {
        self.receiver.handle_written(ChunkIndex(chunk), &self.sum(chunk))
    }

    fn digest(&self) -> [u8; 32] {
        let chunks = (0..self.world.table.count()).map(|n| (ChunkIndex(n), self.sum(n)));
        root_digest(&Transcript::default(), chunks)
    }
}

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

// ---- what once went wrong ----

/// Three small files in one pack, and one of so many chunks.
fn pack_and_file(chunks: usize) -> Source {
    let mut builder = SourceBuilder::default();
    for size in [100, 200, 300] {
        builder.random(&mut Rng::new(size), size as usize);
    }
    builder.random(&mut Rng::new(1), chunks * 1024);
    builder.finish(vec![])
}

/// A sender that is to send everything, with so many data streams.
fn sender(source: &Source, streams: u16, now: Instant) -> Sender {
    let config = SenderConfig {
        streams: Streams::Fixed(streams),
        granted: streams,
        data_streams_from: 0,
        ..SenderConfig::default()
    };
    let table = Table::new(&source.manifest, ChunkSize::MIN).unwrap();
    let totals = NeedTotals { chunks: table.count(), bytes: source.manifest.bytes() };
    let mut sender = Sender::new(config, Arc::clone(&source.manifest), table, Algorithm::Xxh3, now);
    sender.handle_frame(StreamId::CONTROL, Control::Need(totals), now);
    while sender.poll_open(now) {
        sender.handle_stream_joined(now);
    }
    assert_eq!(sender.data_streams(), usize::from(streams));
    sender
}

/// Sends the next chunk on a stream, up to its last byte.
fn send(sender: &mut Sender, stream: StreamId, now: Instant) -> ChunkIndex {
    let Action::Send(chunk) = sender.poll_stream(stream, now) else { panic!("nothing to send") };
    sender.handle_read(chunk, &Algorithm::Xxh3.of(&chunk.0.to_be_bytes()));
    sender.handle_sent(stream, 1032, now);
    chunk
}

fn controls(sender: &mut Sender, now: Instant) -> Vec<Control> {
    std::iter::from_fn(|| match sender.poll_stream(StreamId::CONTROL, now) {
        Action::Control(control) => Some(control),
        _ => None,
    })
    .collect()
}

const ONE: StreamId = StreamId(1);
const TWO: StreamId = StreamId(2);

/// A sender of one file of three chunks that has offered it, to a receiver that knows identities or
/// does not.
fn offering(identity: bool, now: Instant) -> Sender {
    let source = one_file(3);
    let config = SenderConfig { identity, ..SenderConfig::default() };
    let table = Table::new(&source.manifest, ChunkSize::MIN).unwrap();
    Sender::new(config, Arc::clone(&source.manifest), table, Algorithm::Xxh3, now)
}

fn held(first: u32, bytes: &[u8]) -> Held {
    let sum = Algorithm::Xxh3.of(bytes);
    Held { first: ChunkIndex(first), checksums: sum.as_bytes().to_vec() }
}

#[test]
fn case_103_only_a_receiver_that_knows_identities_is_believed_what_it_holds() {
    let now = Instant::now();
    let need = Control::Need(NeedTotals { chunks: 1, bytes: 1024 });
    let of = |bytes: &[u8]| Algorithm::Xxh3.of(bytes);
    // It marks what it holds of another version.
    let mut knowing = offering(true, now);
    for frame in [Control::Held(held(0, b"a")), Control::Compare(held(1, b"b")), need.clone()] {
        knowing.handle_frame(StreamId::CONTROL, frame, now);
    }
    assert_eq!(knowing.poll_compare(), Some(ChunkIndex(1)));
    assert_eq!(knowing.poll_compare(), None);
    knowing.handle_compared(ChunkIndex(1), &of(b"other"));
    assert_eq!(knowing.needed(), Some(NeedTotals { chunks: 2, bytes: 2048 }));
    assert_eq!(knowing.poll_stream(StreamId::CONTROL, now), Action::Send(ChunkIndex(1)));
    // One that does not is compared altogether, and begins anew where it differs.
    for (second, outcome) in [(&b"b"[..], None), (b"other", Some(Outcome::StartOver))] {
        let mut old = offering(false, now);
        for frame in [Control::Held(held(0, b"a")), Control::Held(held(1, b"b")), need.clone()] {
            old.handle_frame(StreamId::CONTROL, frame, now);
        }
        assert_eq!([old.poll_compare(), old.poll_compare()], [0, 1].map(|at| Some(ChunkIndex(at))));
        old.handle_compared(ChunkIndex(0), &of(b"a"));
        old.handle_compared(ChunkIndex(1), &of(second));
        assert_eq!(old.outcome(), outcome.as_ref());
        assert!(!matches!(old.poll_stream(StreamId::CONTROL, now), Action::Control(Control::Same(_))));
    }
    // Its small files cannot be compared.
    let skipped = SkipRun { first: EntryIndex(0), count: 1, reason: SkipReason::Held };
    for (identity, outcome) in [(true, None), (false, Some(Outcome::StartOver))] {
        let mut sender = offering(identity, now);
        sender.handle_frame(StreamId::CONTROL, Control::Skip(vec![skipped]), now);
        assert_eq!(sender.outcome(), outcome.as_ref());
    }
}

#[test]
fn a_file_is_read_once_for_a_receiver_that_asks_for_its_contents() {
    let now = Instant::now();
    let source = pack_and_file(2);
    let asks = |questions: &[&[u32]]| {
        let config = SenderConfig { content: true, ..SenderConfig::default() };
        let table = Table::new(&source.manifest, ChunkSize::MIN).unwrap();
        let mut sender = Sender::new(config, Arc::clone(&source.manifest), table, Algorithm::Xxh3, now);
        for entries in questions {
            let entries = entries.iter().copied().map(EntryIndex).collect();
            sender.handle_frame(StreamId::CONTROL, Control::Ask(entries), now);
        }
        (sender.outcome().is_none(), std::iter::from_fn(move || sender.poll_asked()).count())
    };
    assert_eq!(asks(&[&[0, 3], &[1]]), (true, 3));
    for questions in [&[&[0, 0][..]][..], &[&[0], &[0]], &[&[9]]] {
        assert_eq!(asks(questions), (false, 0), "{questions:?}");
    }
}

#[test]
fn a_file_that_two_streams_cannot_read_does_not_keep_the_transfer_from_its_end() {
    let now = Instant::now();
    let mut sender = sender(&pack_and_file(2), 2, now);
    send(&mut sender, ONE, now);
    assert_eq!(sender.poll_stream(ONE, now), Action::Send(ChunkIndex(1)));
    assert_eq!(sender.poll_stream(TWO, now), Action::Send(ChunkIndex(2)));
    sender.handle_unreadable(Some(ONE), ChunkIndex(1), EntryIndex(3), Code::NotFound, "gone");
    assert!(matches!(controls(&mut sender, now)[..], [Control::Abandon { entry: EntryIndex(3), .. }]));
    sender.handle_frame(StreamId::CONTROL, Control::Abandoned(EntryIndex(3)), now);
    sender.handle_unreadable(Some(TWO), ChunkIndex(2), EntryIndex(3), Code::NotFound, "gone");
    assert!(matches!(controls(&mut sender, now)[..], [Control::End(_)]));
}

#[test]
fn a_chunk_whose_file_was_given_up_while_it_was_read_is_not_counted() {
    let now = Instant::now();
    let mut sender = sender(&pack_and_file(2), 2, now);
    assert_eq!(sender.poll_stream(ONE, now), Action::Send(ChunkIndex(0)));
    assert_eq!(sender.poll_stream(TWO, now), Action::Send(ChunkIndex(1)));
    sender.handle_unreadable(Some(TWO), ChunkIndex(1), EntryIndex(3), Code::NotFound, "gone");
    assert_eq!(sender.poll_stream(TWO, now), Action::Wait);
    sender.handle_frame(StreamId::CONTROL, Control::Abandoned(EntryIndex(3)), now);
    // Its pieces are not needed any more, whoever reads them; the pack is still to come.
    sender.handle_read(ChunkIndex(2), &Algorithm::Xxh3.of(b"2"));
    assert!(!controls(&mut sender, now).iter().any(|frame| matches!(frame, Control::End(_))));
    sender.handle_read(ChunkIndex(0), &Algorithm::Xxh3.of(b"0"));
    assert!(matches!(controls(&mut sender, now)[..], [Control::End(_)]));
}

#[test]
fn a_sender_is_occupied_only_while_every_stream_that_carries_chunks_is_sending_one() {
    let now = Instant::now();
    let mut sender = sender(&pack_and_file(4), 2, now);
    let first = send(&mut sender, ONE, now);
    assert_eq!(sender.poll_stream(ONE, now), Action::Send(ChunkIndex(1)));
    assert!(!sender.is_occupied(), "the second stream has nothing to do");
    assert_eq!(sender.poll_stream(TWO, now), Action::Send(ChunkIndex(2)));
    assert!(sender.is_occupied());
    sender.handle_frame(ONE, Control::Confirm(vec![first]), now);
    assert!(sender.is_occupied(), "a confirmation gives nobody work");
    sender.handle_stream_lost(TWO, now);
    assert!(!sender.is_occupied(), "there is a stream to open");
    sender.handle_frame(
        StreamId::CONTROL,
        Control::Refuse(Refuse { code: Code::NoSpace, message: "full".into(), paths: vec![] }),
        now,
    );
    assert!(!sender.is_occupied(), "it is over");
}

#[test]
fn a_pack_that_lost_a_slice_is_read_again_before_the_end() {
    let now = Instant::now();
    let mut sender = sender(&pack_and_file(1), 2, now);
    assert_eq!(sender.poll_stream(ONE, now), Action::Send(ChunkIndex(0)));
    assert_eq!(sender.poll_stream(TWO, now), Action::Send(ChunkIndex(1)));
    sender.handle_read(ChunkIndex(0), &Algorithm::Xxh3.of(b"three slices"));
    sender.handle_stream_lost(ONE, now);
    sender.handle_read(ChunkIndex(1), &Algorithm::Xxh3.of(b"file"));
    // END would be due here; before the control stream comes for it the pack is read again, and cannot be.
    sender.handle_sent(TWO, 1032, now);
    assert_eq!(sender.poll_stream(TWO, now), Action::Send(ChunkIndex(0)));
    sender.handle_unreadable(Some(TWO), ChunkIndex(0), EntryIndex(1), Code::NotFound, "gone");
    assert!(matches!(controls(&mut sender, now)[..], [Control::Abandon { entry: EntryIndex(1), .. }]));
    sender.handle_frame(StreamId::CONTROL, Control::Abandoned(EntryIndex(1)), now);
    assert_eq!(controls(&mut sender, now), []);
    assert_eq!(sender.poll_stream(TWO, now), Action::Send(ChunkIndex(0)));
    let two = Algorithm::Xxh3.of(b"two slices");
    sender.handle_read(ChunkIndex(0), &two);
    let digest = root_digest(
        &Transcript::default(),
        [(ChunkIndex(0), two), (ChunkIndex(1), Algorithm::Xxh3.of(b"file"))].into_iter(),
    );
    assert_eq!(controls(&mut sender, now), [Control::End(digest)]);
}

#[test]
fn a_file_that_cannot_be_read_again_after_the_end_is_for_the_next_attempt() {
    let now = Instant::now();
    let mut sender = sender(&pack_and_file(1), 1, now);
    send(&mut sender, ONE, now);
    send(&mut sender, ONE, now);
    assert!(matches!(controls(&mut sender, now)[..], [Control::End(_)]));
    sender.handle_frame(ONE, Control::Again(vec![ChunkIndex(1)]), now);
    assert_eq!(sender.poll_stream(ONE, now), Action::Send(ChunkIndex(1)));
    sender.handle_unreadable(Some(ONE), ChunkIndex(1), EntryIndex(3), Code::NotFound, "gone");
    assert!(matches!(sender.outcome(), Some(Outcome::Lost(_))));
}

#[test]
fn a_pack_that_loses_a_slice_while_it_is_written_is_not_held() {
    let mut desk = Desk::new(pack_and_file(1));
    let three = desk.sum(0);
    assert_eq!(desk.arrives(0), Ok(ChunkVerdict::Write));
    desk.receiver.handle_abandon(EntryIndex(1)).unwrap();
    // The sender reads it anew, and that version may overtake the other one on its way to the disk.
    let two = desk.sum(0);
    assert_ne!(two, three);
    assert_eq!(desk.arrives(0), Ok(ChunkVerdict::Write));
    assert_eq!(desk.receiver.handle_written(ChunkIndex(0), &three), Completed::Nothing);
    assert_eq!(desk.receiver.checksum(ChunkIndex(0)), None);
    assert_eq!(
        desk.receiver.handle_written(ChunkIndex(0), &two),
        Completed::Pack(EntryIndex(0), EntryIndex(3))
    );
    assert_eq!(desk.receiver.checksum(ChunkIndex(0)), Some(two));
}

/// Lets the sender's timers run for so long, each stream writing its ALIVE at once; returns streams to be closed.
fn pass(
    sender: &mut Sender,
    from: Instant,
    time: Duration,
    blocked: &[StreamId],
) -> (Instant, Vec<StreamId>) {
    let (mut now, mut closed, mut steps) = (from, Vec::new(), 0u32);
    while let Some(at) = sender.poll_timeout().filter(|&at| at <= from + time) {
        now = now.max(at);
        sender.handle_timeout(now);
        for id in (0..10).map(StreamId).filter(|id| !blocked.contains(id)) {
            if let Action::Control(_) = sender.poll_stream(id, now) {
                sender.handle_progress(id, now);
            }
        }
        closed.extend(std::iter::from_fn(|| sender.poll_close()));
        steps += 1;
        assert!(u128::from(steps) <= time.as_millis() / 40, "timers that spin");
    }
    (from + time, closed)
}

#[test]
fn an_alive_into_the_buffers_of_a_dark_stream_is_no_progress() {
    let now = Instant::now();
    let mut sender = sender(&one_file(2), 2, now);
    let chunk = send(&mut sender, ONE, now);
    send(&mut sender, ONE, now);
    // So the ALIVE is due before the stall.
    let later = now + Duration::from_secs(1);
    sender.handle_frame(ONE, Control::Confirm(vec![chunk]), later);
    let (_, closed) = pass(&mut sender, later, Duration::from_secs(8), &[]);
    assert_eq!(closed, [ONE]);
}

#[test]
fn a_stream_that_is_blocked_in_a_chunk_that_another_one_brought_stalls_too() {
    let now = Instant::now();
    let mut sender = sender(&pack_and_file(5), 2, now);
    let Action::Send(chunk) = sender.poll_stream(ONE, now) else { panic!() };
    sender.handle_read(chunk, &Algorithm::Xxh3.of(b"x"));
    sender.handle_frame(TWO, Control::Confirm(vec![chunk]), now);
    let (_, closed) = pass(&mut sender, now, Duration::from_secs(12), &[ONE]);
    assert_eq!(closed, [ONE]);
}

#[test]
fn a_stream_that_does_not_come_for_what_waits_is_closed() {
    let now = Instant::now();
    let mut sender = sender(&one_file(5), 1, now);
    let (_, closed) = pass(&mut sender, now, Duration::from_secs(12), &[ONE]);
    assert_eq!(closed, [ONE]);
}

#[test]
fn timers_of_blocked_drivers_do_not_spin() {
    let now = Instant::now();
    let mut sender = sender(&one_file(5), 1, now);
    let Action::Send(_) = sender.poll_stream(ONE, now) else { panic!() };
    pass(&mut sender, now, Duration::from_secs(50), &[StreamId::CONTROL, ONE]);
}

#[test]
fn a_data_stream_that_speaks_does_not_hide_a_dark_control_stream() {
    let now = Instant::now();
    let mut sender = sender(&one_file(200), 1, now);
    let mut at = now;
    for _ in 0..65 {
        let chunk = send(&mut sender, ONE, at);
        sender.handle_frame(ONE, Control::Confirm(vec![chunk]), at);
        at = pass(&mut sender, at, Duration::from_secs(1), &[]).0;
        if sender.outcome().is_some() {
            break;
        }
    }
    assert!(matches!(sender.outcome(), Some(Outcome::Lost(_))), "{:?}", sender.outcome());
}

#[test]
fn a_stream_entry_that_cannot_be_read_on_fails_the_transfer() {
    let now = Instant::now();
    let mut builder = SourceBuilder::default();
    builder.stream(vec![1; 5000]);
    let mut sender = sender(&builder.finish(vec![]), 1, now);
    let chunk = sender.handle_stream_filled().unwrap();
    assert_eq!(sender.poll_stream(ONE, now), Action::Send(chunk));
    sender.handle_unreadable(Some(ONE), chunk, EntryIndex(0), Code::Internal, "broken");
    assert!(matches!(sender.outcome(), Some(Outcome::Failed(failure)) if failure.code == Code::Internal));
}

// ---- anything in any order ----

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
