//! Patterns as in `.gitignore`, where the nearest match decides.

use fastdrop_proto::fastdp::RelPath;
use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A pattern that cannot be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad pattern {pattern:?}: {why}")]
pub struct FilterError {
    pattern: String,
    why: String,
}

/// Excludes and includes, in the order in which later ones win at the same level.
#[derive(Debug, Clone)]
pub(super) struct Patterns {
    rules: Gitignore,
    /// Nothing is taken but what an include matches.
    only_included: bool,
    /// Where the patterns that take can match.
    reaches: Vec<Reach>,
}

/// The decision of patterns about one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Take,
    /// A folder that is left out, in which something may be taken.
    LeaveButEnter,
    /// Left out with everything beneath it.
    Leave,
}

impl Patterns {
    /// The patterns; None if there are none.
    pub(super) fn new(exclude: &[String], include: &[String]) -> Result<Option<Self>, FilterError> {
        if exclude.is_empty() && include.is_empty() {
            return Ok(None);
        }
        let excludes = exclude.iter().map(|text| Pattern::parse(text));
        // What is negated in an include is left out.
        let includes = include
            .iter()
            .map(|text| Pattern::parse(text).map(|found| Pattern { takes: !found.takes, ..found }));
        let patterns = excludes.chain(includes).collect::<Result<Vec<_>, _>>()?;
        let mut builder = GitignoreBuilder::new("");
        for pattern in &patterns {
            let failed = |why: String| FilterError { pattern: pattern.text.to_owned(), why };
            builder.add_line(None, &pattern.line()).map_err(|error| match error {
                ignore::Error::Glob { err, .. } => failed(err),
                other => failed(other.to_string()),
            })?;
        }
        let failed = |error: ignore::Error| FilterError { pattern: String::new(), why: error.to_string() };
        let taking = patterns.iter().filter(|pattern| pattern.takes);
        Ok(Some(Self {
            rules: builder.build().map_err(failed)?,
            only_included: exclude.is_empty() && patterns.iter().any(|pattern| pattern.takes),
            reaches: taking.map(|pattern| Reach::of(pattern.text)).collect(),
        }))
    }

    /// Decides about an entry by the match that is nearest to it: its own, else
    /// that of the folder above, and so on.
    pub(super) fn verdict(&self, path: RelPath<'_>, is_dir: bool) -> Verdict {
        let bytes = path.as_bytes();
        let slashes = bytes.iter().enumerate().rev().filter(|(_, byte)| **byte == b'/');
        let levels = std::iter::once((bytes, is_dir)).chain(slashes.map(|(at, _)| (&bytes[..at], true)));
        let decide = |(level, is_dir)| match self.rules.matched(Path::new(OsStr::from_bytes(level)), is_dir) {
            Match::Whitelist(_) => Some(true),
            Match::Ignore(_) => Some(false),
            Match::None => None,
        };
        let takes = levels.into_iter().find_map(decide).unwrap_or(!self.only_included);
        if takes {
            Verdict::Take
        } else if is_dir && self.reaches.iter().any(|reach| reach.is_beneath(path)) {
            Verdict::LeaveButEnter
        } else {
            Verdict::Leave
        }
    }
}

/// One pattern as it was typed.
#[derive(Debug)]
struct Pattern<'a> {
    /// Without the sign that negates it.
    text: &'a str,
    /// Matches are taken, not left out.
    takes: bool,
}

impl<'a> Pattern<'a> {
    /// Parses a pattern of an exclude.
    fn parse(typed: &'a str) -> Result<Self, FilterError> {
        let (text, takes) = typed.strip_prefix('!').map_or((typed, false), |rest| (rest, true));
        if text.is_empty() {
            return Err(FilterError { pattern: typed.to_owned(), why: "it is empty".into() });
        }
        Ok(Self { text, takes })
    }

    /// The line of a `.gitignore` that means it. On a command line nothing is a comment, spaces at
    /// the end count, and braces are for the shell.
    fn line(&self) -> String {
        let mut line = String::with_capacity(self.text.len() + 2);
        if self.takes {
            line.push('!');
        } else if self.text.starts_with(['!', '#']) {
            line.push('\\');
        }
        let (mut escaped, mut in_class) = (false, false);
        for char in self.text.chars() {
            match char {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '[' => in_class = true,
                ']' => in_class = false,
                '{' | '}' if !in_class => line.push('\\'),
                _ => {}
            }
            line.push(char);
        }
        // A class of one is not trimmed.
        if let Some(last) = line.chars().next_back().filter(|last| last.is_whitespace()) {
            line.pop();
            line.extend(['[', last, ']']);
        }
        line
    }
}

/// The folders beneath which a pattern can match: its components up to the first with a wildcard.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reach {
    literal: Vec<Vec<u8>>,
    /// Wildcards follow, so that it can match at any depth.
    open: bool,
}

impl Reach {
    fn of(text: &str) -> Self {
        let body = text.strip_suffix('/').unwrap_or(text);
        // Without a slash in it, a pattern matches at every level.
        if !body.contains('/') {
            return Self { literal: Vec::new(), open: true };
        }
        let components = body.strip_prefix('/').unwrap_or(body).split('/');
        let mut literal = Vec::new();
        for component in components {
            if component.contains(['*', '?', '[', '\\']) {
                return Self { literal, open: true };
            }
            literal.push(component.as_bytes().to_vec());
        }
        Self { literal, open: false }
    }

    /// Reports whether it can match something beneath `folder`.
    fn is_beneath(&self, folder: RelPath<'_>) -> bool {
        let mut literal = self.literal.iter();
        for component in folder.components() {
            match literal.next() {
                Some(expected) if expected == component => {}
                Some(_) => return false,
                None => return self.open,
            }
        }
        self.open || literal.next().is_some()
    }
}
