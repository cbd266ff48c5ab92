//! Single faults.

use crate::one_file;
use fastdrop_proto::checksum::Algorithm;
use fastdrop_testing::fastdp::pair::{Fault, Pair, Plan};
use fastdrop_testing::fastdp::pipe::SECOND;

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
            // While the other one joins, in 4 ms and a polling, at 10 bytes a microsecond, and a
            // chunk more.
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
