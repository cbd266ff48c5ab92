//! Walks over cells, several at a time.

use super::cell::{Cell, Command, Trouble};
use super::support::*;
use super::verdict::{Asked, Observed, judge};
use super::{job, listening};
use std::ffi::OsString;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A cell that takes longer than this is named, so that the walk stays short.
const SLOW: Duration = Duration::from_secs(5);

/// The judgement on a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    True,
    /// The trouble kept the other end from starting, so nothing was claimed.
    NotBegun,
    Untrue(String),
}

/// Runs one cell, and judges it.
pub(crate) fn visit(cell: &Cell, planted: &[OsString]) -> Outcome {
    let found = std::panic::catch_unwind(AssertUnwindSafe(|| match cell.command {
        Command::MessageTcp | Command::MessageUdp => listening::observe(cell, planted),
        Command::Prints(words) => Some(prints(cell, words, planted)),
        _ => job::observe(cell, planted),
    }));
    match found {
        Ok(None) => Outcome::NotBegun,
        Ok(Some(found)) => conclude(cell, &found),
        Err(_) => Outcome::Untrue("the cell could not be run".into()),
    }
}

fn conclude(cell: &Cell, found: &[(Asked, Observed)]) -> Outcome {
    for (at, (asked, observed)) in found.iter().enumerate() {
        let again = if at == 0 { "" } else { "the same command again: " };
        let explain = |why: String| {
            let said = observed.said.trim_end();
            Outcome::Untrue(format!("{again}{why}\n    exit {:?}; it said: {said}", observed.code))
        };
        if let Err(why) = judge(asked, cell.protocol, observed) {
            return explain(why);
        }
        // Where nothing is in the way, the claim is made: a program that always fails would be true
        // everywhere.
        if cell.trouble == Trouble::None && !matches!(observed.code, Some(0 | 10)) {
            return explain("it fails without any trouble".into());
        }
    }
    Outcome::True
}

/// Runs a command that only prints.
fn prints(cell: &Cell, words: &str, planted: &[OsString]) -> Vec<(Asked, Observed)> {
    let mut cmd = FASTDROP.command(words.split(' ').map(OsString::from).collect());
    let mut wrapper = planted.to_vec();
    if let Trouble::Inject(_, what, nth) = cell.trouble {
        wrapper.extend(job::inject(what, &nth.to_string()));
    }
    cmd = cmd.wrapper(wrapper);
    let mut stdout_lost = false;
    if let Trouble::Output(_, file) = cell.trouble {
        stdout_lost = file.is_some();
        cmd = match file {
            Some(file) => cmd.stdout_to(job::written(std::path::Path::new(file))),
            None => cmd.stdout_closed(),
        };
    }
    let (output, in_time) = cmd.start().wait_or_kill(job::HANGS);
    let observed = Observed {
        code: in_time.then(|| output.code()),
        stdout: output.stdout,
        stdout_lost,
        said: output.stderr,
        ..Observed::default()
    };
    let asked =
        if matches!(cell.trouble, Trouble::Output(_, None)) { Asked::Named(vec![]) } else { Asked::Said };
    vec![(asked, observed)]
}

/// Visits all cells and gives the outcome of each.
pub(crate) fn walk(cells: &[Cell], planted: &[OsString]) -> Vec<(Cell, Outcome)> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(2, usize::from) * 2;
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(cell) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let start = Instant::now();
                    let outcome = visit(cell, planted);
                    if start.elapsed() > SLOW {
                        eprintln!("{:?} for {cell}", start.elapsed());
                    }
                    outcomes.lock().unwrap().push((*cell, outcome));
                }
            });
        }
    });
    outcomes.into_inner().unwrap()
}
