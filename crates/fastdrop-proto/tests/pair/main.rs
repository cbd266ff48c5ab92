//! Sender and receiver as a pair in memory, in virtual time, with seeded faults.
//!
//! `FASTDROP_SEED=123` runs just that seed of the big test, `FASTDROP_TRACE=1` prints what happens
//! in it, `FASTDROP_SEEDS=1000000` runs more of them than usual.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod anything;
mod receiver;
mod sender;
mod single;

use fastdrop_proto::checksum::{Algorithm, Checksum};
use fastdrop_proto::fastdp::{ChunkVerdict, Code, Completed, FrameKind, Receiver, Transcript, root_digest};
use fastdrop_proto::units::ChunkIndex;
use fastdrop_testing::fastdp::pair::{Bug, Fault, Pair, Plan, Stats};
use fastdrop_testing::fastdp::rng::Rng;
use fastdrop_testing::fastdp::world::{Source, SourceBuilder, World};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

/// One file of so many chunks.
fn one_file(chunks: usize) -> Source {
    let mut builder = SourceBuilder::default();
    builder.random(&mut Rng::new(7), chunks * 1024);
    builder.finish(vec![])
}

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
