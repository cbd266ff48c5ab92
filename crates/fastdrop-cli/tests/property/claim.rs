//! The claim of exit code 0, checked against the two trees.

use super::options::Options;
use super::support::*;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

/// A tree, with the times of links.
pub(crate) type Tree = BTreeMap<PathBuf, Entry>;

pub(crate) fn state(root: &Path) -> Tree {
    if fs::symlink_metadata(root).is_err() {
        return Tree::new();
    }
    let mut tree = snapshot(root);
    for (path, entry) in &mut tree {
        if let Kind::Link(_) = entry.0 {
            let meta = fs::symlink_metadata(root.join(path)).unwrap();
            (entry.2, entry.3) = (meta.mtime(), meta.mtime_nsec());
        }
    }
    tree
}

/// Everything that a claim is about.
pub(crate) struct Claim<'a> {
    pub(crate) options: &'a Options,
    /// The root of the source, to follow its links.
    pub(crate) root: &'a Path,
    /// States of the source that count: when the run began, and when it ended.
    pub(crate) source: [&'a Tree; 2],
    pub(crate) before: &'a Tree,
    pub(crate) arrived: &'a Tree,
    /// Only what is in the folder was asked for.
    pub(crate) contents: bool,
}

impl Claim<'_> {
    pub(crate) fn check(&self) -> Result<(), String> {
        for (path, entry) in self.source[0] {
            if (self.contents && path.as_os_str().is_empty()) || self.is_excluded(path) {
                continue;
            }
            match self.check_entry(path, entry) {
                Err(why) if !crate::is_known(&why) => return Err(format!("{}: {why}", path.display())),
                _ => {}
            }
        }
        Ok(())
    }

    fn is_excluded(&self, path: &Path) -> bool {
        let is_object = |part: Component<'_>| part.as_os_str().as_bytes().ends_with(b".o");
        self.options.excludes && path.components().any(is_object)
    }

    fn check_entry(&self, path: &Path, entry: &Entry) -> Result<(), String> {
        let arrived = self.arrived.get(path);
        let before = self.before.get(path);
        if let Kind::Link(target) = &entry.0 {
            match self.options.links {
                "skip" => return Ok(()),
                "follow" => return self.check_followed(path, arrived, before),
                "safe" if leads_outside(path, target) => return Ok(()),
                _ if leads_outside(path, target) => {
                    return Err("a link that leads outside, and no failure".into());
                }
                _ => {}
            }
        }
        let Some(arrived) = arrived else { return Err(format!("{entry:?} is not there")) };
        let states = self.source.iter().filter_map(|tree| tree.get(path));
        let Err(mut why) = agrees_with_any(states, arrived, self.options) else { return Ok(()) };
        match self.options.existing {
            // What differed may have stayed, whatever it was.
            "skip" if before == Some(arrived) => return Ok(()),
            "rename"
                if self
                    .source
                    .iter()
                    .filter_map(|tree| tree.get(path))
                    .any(|entry| self.is_beside(path, entry)) =>
            {
                return Ok(());
            }
            _ => {}
        }
        if self.options.checks {
            return Err(differs(&why, entry, arrived, before));
        }
        // Equal size and time count as identical. What is preserved is set all the same.
        if let (Kind::File(size, _), Some((Kind::File(size_before, _), _, seconds, nanos))) =
            (&entry.0, before)
            && (size, entry.2, entry.3) == (size_before, *seconds, *nanos)
        {
            let mut as_before = entry.clone();
            as_before.0.clone_from(&before.unwrap().0);
            match agrees(&as_before, arrived, self.options) {
                Ok(()) => return Ok(()),
                Err(other) => why = other,
            }
        }
        Err(differs(&why, entry, arrived, before))
    }

    /// Under another name in the same folder: brought by this run, or by one before. Equal size and
    /// time count as identical there, too.
    fn is_beside(&self, path: &Path, entry: &Entry) -> bool {
        self.arrived.iter().filter(|(other, _)| other.parent() == path.parent()).any(|(_, found)| {
            let identical = matches!((&entry.0, &found.0), (Kind::File(size, _), Kind::File(other, _)) if size == other)
                && (entry.2, entry.3) == (found.2, found.3);
            agrees(entry, found, self.options).is_ok() || (identical && !self.options.checks)
        })
    }

    fn check_followed(
        &self,
        path: &Path,
        arrived: Option<&Entry>,
        before: Option<&Entry>,
    ) -> Result<(), String> {
        let Ok(meta) = fs::metadata(self.root.join(path)) else {
            return Err("followed, a link leads nowhere, and no failure".into());
        };
        let Some(arrived) = arrived else { return Err("followed, a link is not there".into()) };
        if self.options.existing == "skip" && before == Some(arrived) {
            return Ok(());
        }
        let right = match &arrived.0 {
            Kind::Folder => meta.is_dir(),
            Kind::File(size, _) => meta.is_file() && *size == meta.len(),
            _ => false,
        };
        if right || self.options.existing == "rename" {
            Ok(())
        } else {
            Err(format!("followed, a link became {arrived:?}"))
        }
    }
}

fn differs(why: &str, entry: &Entry, arrived: &Entry, before: Option<&Entry>) -> String {
    format!("{why}\n    sent    {entry:?}\n    arrived {arrived:?}\n    before  {before:?}")
}

fn agrees_with_any<'a>(
    states: impl Iterator<Item = &'a Entry>,
    arrived: &Entry,
    options: &Options,
) -> Result<(), String> {
    let mut result = Err("is not there".to_owned());
    for state in states {
        result = agrees(state, arrived, options);
        if result.is_ok() {
            break;
        }
    }
    result
}

fn agrees(wanted: &Entry, arrived: &Entry, options: &Options) -> Result<(), String> {
    let kind = match &wanted.0 {
        Kind::File(..) => "a file's",
        Kind::Folder => "a folder's",
        Kind::Link(_) => "a link's",
        Kind::Other => return Ok(()),
    };
    if wanted.0 != arrived.0 {
        return Err(format!("{kind} content differs"));
    }
    if options.mode && wanted.1 != arrived.1 {
        return Err(format!("{kind} mode differs"));
    }
    if options.times && (wanted.2, wanted.3) != (arrived.2, arrived.3) {
        return Err(format!("{kind} time differs"));
    }
    Ok(())
}

/// The text of a link in a tree, resolved at its place, leaves the tree.
fn leads_outside(path: &Path, target: &Path) -> bool {
    if target.is_absolute() {
        return true;
    }
    let mut depth = path.components().count() as i64 - 1;
    for part in target.components() {
        match part {
            Component::ParentDir => depth -= 1,
            Component::Normal(name) if name != OsStr::new(".") => depth += 1,
            _ => {}
        }
        // The tree itself stands in the folder in which it arrives.
        if depth < -1 {
            return true;
        }
    }
    false
}
