//! A walk over (command × protocol × trouble): exit code 0 only if every byte that was asked for is
//! at its place.
//!
//! The cells are data ([`table`]), the runner is one ([`walk`]), and the judge ([`verdict`]) is a
//! function of what was asked for and what was observed, so that it can be shown a lie and has to
//! find it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says how far the walk went"
)]

mod cell;
mod forged;
mod job;
mod listening;
mod support;
mod table;
mod verdict;
mod walk;

use cell::Cell;
use std::collections::BTreeSet;
use table::KNOWN_GAPS;
use walk::Outcome;

/// Walks, and fails with a list of what was not true.
#[track_caller]
fn assert_true(cells: &[Cell]) {
    let outcomes = walk::walk(cells, &[]);
    let begun = outcomes.iter().filter(|(_, outcome)| *outcome != Outcome::NotBegun).count();
    let (mut untrue, mut known) = (Vec::new(), Vec::new());
    for (cell, outcome) in &outcomes {
        let name = cell.to_string();
        if let Outcome::Untrue(why) = outcome {
            let gap = KNOWN_GAPS.iter().find(|(parts, _)| parts.iter().all(|part| name.contains(part)));
            match gap {
                Some((_, reason)) => known.push(format!("known, {reason}: {name}: {why}")),
                None => untrue.push(format!("{name}: {why}")),
            }
        }
    }
    untrue.sort();
    known.sort();
    known.iter().for_each(|gap| eprintln!("{gap}"));
    eprintln!("{} cells, {begun} of them begun, {} untrue", outcomes.len(), untrue.len());
    assert!(untrue.is_empty(), "{} cells are not true:\n{}", untrue.len(), untrue.join("\n"));
    assert!(begun * 10 >= outcomes.len() * 8, "the trouble kept too many cells from beginning");
}

/// Cells whose names contain FASTDROP_CELL, if that is set: to look at one.
fn chosen(cells: Vec<Cell>) -> Vec<Cell> {
    let part = std::env::var("FASTDROP_CELL").unwrap_or_default();
    cells.into_iter().filter(|cell| cell.to_string().contains(&part)).collect()
}

#[test]
fn exit_0_means_that_all_of_it_is_there_whatever_the_trouble() {
    assert_true(&chosen(table::plain()));
}

#[test]
#[ignore = "needs strace"]
fn exit_0_means_that_all_of_it_is_there_whichever_system_call_fails() {
    let nths: Vec<u32> = match std::env::var("FASTDROP_WALK") {
        Ok(most) => (1..=most.parse().expect("FASTDROP_WALK is a number")).collect(),
        Err(_) => vec![1, 3],
    };
    assert_true(&chosen(table::injected(&nths)));
}

#[test]
fn the_walk_is_long_and_no_cell_is_in_it_twice() {
    let all = [table::plain(), table::injected(&[1, 3])].concat();
    let names: BTreeSet<String> = all.iter().map(Cell::to_string).collect();
    assert_eq!(names.len(), all.len());
    assert!(table::plain().len() >= 300, "{} cells", table::plain().len());
    for (parts, _) in KNOWN_GAPS {
        let has = |name: &String| parts.iter().all(|part| name.contains(part));
        assert!(names.iter().any(has), "a gap that no cell has: {parts:?}");
    }
}
