//! Random trees, changed between runs that are cut at random, with random options, in both
//! directions: whenever a run says 0, every entry is there, equal in kind, content, link, mode and
//! time.
//!
//! `FASTDROP_SEED=n` runs one seed, `FASTDROP_SEEDS=n` so many, `FASTDROP_FIRST_SEED=n` begins
//! elsewhere.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says how far it went"
)]

mod claim;
mod options;
mod run;
mod support;
mod trees;

use run::World;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Seeds in the suite: about a minute on two busy cores.
const SEEDS: u64 = 400;

/// Failures that are known, by parts of their words, with the reason. To be empty.
const KNOWN_GAPS: &[(&[&str], &str)] = &[];

/// Returns true if these words are those of a known gap.
pub(crate) fn is_known(why: &str) -> bool {
    KNOWN_GAPS.iter().any(|(parts, _)| parts.iter().all(|part| why.contains(part)))
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

#[test]
fn whatever_is_cut_or_changed_a_run_that_says_0_has_brought_everything() {
    let first = number("FASTDROP_SEED").or(number("FASTDROP_FIRST_SEED")).unwrap_or(1);
    let count = number("FASTDROP_SEED").map_or_else(|| number("FASTDROP_SEEDS").unwrap_or(SEEDS), |_| 1);
    let next = AtomicU64::new(first);
    let claims = AtomicU64::new(0);
    let failures = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(2, usize::from) * 2;
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    let run = || World::new(seed).play();
                    let played = std::panic::catch_unwind(AssertUnwindSafe(run));
                    match played.unwrap_or_else(|_| Err("it could not be played".into())) {
                        Ok(true_claims) => drop(claims.fetch_add(true_claims, Ordering::Relaxed)),
                        Err(why) => failures.lock().unwrap().push((seed, why)),
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap();
    failures.sort();
    let claims = claims.into_inner();
    eprintln!("{count} seeds from {first}, {claims} times 0, {} failures", failures.len());
    let shown: Vec<String> =
        failures.iter().take(40).map(|(seed, why)| format!("FASTDROP_SEED={seed}: {why}")).collect();
    assert!(failures.is_empty(), "{} seeds are not true:\n{}", failures.len(), shown.join("\n"));
    // A program that never says 0 would be true, too. A single seed may have no run that does.
    assert!(count < 20 || claims >= count, "{count} seeds, and only {claims} runs that said 0");
}
