//! The judge: given what was asked for and what was observed, was the exit code true?

use super::support::{Entry, Kind};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A tree by relative path. Empty where nothing is there.
pub(crate) type Tree = BTreeMap<PathBuf, Entry>;

/// The part of an entry that a transfer keeps beside its kind and contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keeps {
    /// Mode and time, to the nanosecond.
    Attributes,
    Nothing,
}

/// The claim of exit code 0.
#[derive(Debug, Clone)]
pub(crate) enum Asked {
    /// Every entry of the source is at its place, as it was in one of these states of it. The first
    /// one is the state when the command began.
    Placed { source: Vec<Tree>, keeps: Keeps },
    /// The bytes of the source were printed, as they were in one of these states of it.
    Printed(Vec<Vec<u8>>),
    /// Each of these words was printed.
    Named(Vec<String>),
    /// Something was printed.
    Said,
    /// The command for which this is the dry run would have done all of it, and nothing was
    /// changed.
    Foretold,
    /// The listener printed each of these messages.
    Heard(Vec<String>),
}

/// A run of the program, as seen from outside.
#[derive(Debug, Clone, Default)]
pub(crate) struct Observed {
    /// The exit code; none where the program did not end in time.
    pub(crate) code: Option<i32>,
    /// The bytes that it printed.
    pub(crate) stdout: Vec<u8>,
    /// Nothing that it prints can be written.
    pub(crate) stdout_lost: bool,
    /// Its standard error, and that of the other end.
    pub(crate) said: String,
    pub(crate) peer_said: String,
    /// The destination before and after.
    pub(crate) before: Tree,
    pub(crate) arrived: Tree,
    /// The exit code of the real run after a dry run.
    pub(crate) real: Option<i32>,
    /// The messages that the listener printed.
    pub(crate) heard: Vec<String>,
}

/// Exit code 10: sent, but the protocol cannot confirm.
const UNCONFIRMED: i32 = 10;

/// A panic of the asynchronous runtime that no kernel causes: an injected error of `write` can hit
/// the eventfd by which it wakes itself, whose writes do not fail.
const WAKE: &str = "failed to wake I/O driver";

/// An error, in words, if the program did not tell the truth, panicked or hung.
pub(crate) fn judge(asked: &Asked, protocol: &str, observed: &Observed) -> Result<(), String> {
    for (end, said) in [("the program", &observed.said), ("the other end", &observed.peer_said)] {
        let mut panics = said.match_indices("panicked").map(|(at, _)| &said[at..]);
        if let Some(panic) = panics.find(|panic| !panic.lines().take(2).any(|line| line.contains(WAKE))) {
            return Err(format!("{end} panicked: {panic}"));
        }
    }
    match observed.code {
        None => Err("it did not end in time".into()),
        Some(0) if observed.stdout_lost => Err("exit code 0, and what it printed was lost".into()),
        Some(0) => all_of_it(asked, observed).map_err(|why| format!("exit code 0, and {why}")),
        Some(UNCONFIRMED) if !cannot_confirm(protocol) => {
            Err(format!("{protocol} can confirm, and the exit code is that of what cannot be confirmed"))
        }
        Some(_) => Ok(()),
    }
}

/// Protocols in which a sender does not learn that a file arrived, at least not from every peer.
pub(crate) fn cannot_confirm(protocol: &str) -> bool {
    matches!(protocol, "ultradp" | "fastdp1.0")
}

fn all_of_it(asked: &Asked, observed: &Observed) -> Result<(), String> {
    match asked {
        Asked::Placed { source, keeps } => placed(source, *keeps, observed),
        Asked::Printed(states) if states.contains(&observed.stdout) => Ok(()),
        Asked::Printed(states) => {
            let wanted = states.first().map_or(&[][..], Vec::as_slice);
            let common =
                wanted.iter().zip(&observed.stdout).take_while(|(left, right)| left == right).count();
            let (wanted, found) = (wanted.len(), observed.stdout.len());
            Err(format!("of {wanted} bytes it printed {found}, of which the first {common} are right"))
        }
        Asked::Named(words) => {
            let text = String::from_utf8_lossy(&observed.stdout);
            let missing = words.iter().find(|word| !text.contains(word.as_str()));
            missing.map_or(Ok(()), |word| Err(format!("it did not print {word:?}")))
        }
        Asked::Said if observed.stdout.is_empty() => Err("it printed nothing".into()),
        Asked::Said => Ok(()),
        Asked::Foretold if observed.arrived != observed.before => Err("a dry run changed something".into()),
        Asked::Foretold => match observed.real {
            Some(0 | UNCONFIRMED) => Ok(()),
            other => Err(format!("the real run has exit code {other:?}")),
        },
        Asked::Heard(messages) => {
            let lost = messages.iter().find(|&message| !observed.heard.contains(message));
            lost.map_or(Ok(()), |lost| {
                let count = messages.iter().filter(|&message| observed.heard.contains(message)).count();
                Err(format!("of {} messages {count} were printed, not {lost:?}", messages.len()))
            })
        }
    }
}

fn placed(source: &[Tree], keeps: Keeps, observed: &Observed) -> Result<(), String> {
    let Some(first) = source.first() else { return Err("nothing was asked for".into()) };
    for (path, entry) in first {
        let shown = path.display();
        if entry.0 == Kind::Other {
            // Left out by policy, which is fine where it is said.
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if !observed.said.contains(&*name) {
                return Err(format!("{shown}, which is no file, is left out without a word"));
            }
            continue;
        }
        let Some(arrived) = observed.arrived.get(path) else {
            return Err(format!("{shown} is not there"));
        };
        let agrees = |wanted: &Entry| match keeps {
            Keeps::Attributes => wanted == arrived,
            Keeps::Nothing => wanted.0 == arrived.0,
        };
        if !source.iter().filter_map(|tree| tree.get(path)).any(agrees) {
            return Err(format!("{shown} is {arrived:?} and was {entry:?}"));
        }
    }
    Ok(())
}
