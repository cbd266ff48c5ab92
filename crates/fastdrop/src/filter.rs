//! The entries that a transfer leaves out.

use fastdrop_proto::fastdp::RelPath;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A pattern that cannot be one.
#[derive(Debug, thiserror::Error)]
#[error("bad pattern: {0}")]
pub struct FilterError(#[from] ignore::Error);

/// Which entries are left out. Patterns are those of `.gitignore`.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    rules: Option<Gitignore>,
    /// Only includes were given: what matches none of them is left out.
    only_included: bool,
    listed: Option<BTreeSet<Vec<u8>>>,
}

impl Filter {
    /// Leaves out what matches `exclude`, unless it matches `include`; with includes alone, everything else; with
    /// `listed`, all but these relative paths and what is beneath them.
    pub fn new(
        exclude: &[String],
        include: &[String],
        listed: Option<Vec<Vec<u8>>>,
    ) -> Result<Self, FilterError> {
        let mut builder = GitignoreBuilder::new("");
        for pattern in exclude {
            builder.add_line(None, pattern)?;
        }
        for pattern in include {
            builder.add_line(None, &format!("!{pattern}"))?;
        }
        let rules = (!exclude.is_empty() || !include.is_empty()).then(|| builder.build()).transpose()?;
        let listed = listed.map(|paths| paths.into_iter().collect());
        Ok(Self { rules, only_included: exclude.is_empty() && !include.is_empty(), listed })
    }

    /// Whether nothing is left out.
    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_none() && self.listed.is_none()
    }

    /// The listed paths.
    pub(crate) fn listed(&self) -> impl Iterator<Item = &[u8]> {
        self.listed.iter().flatten().map(|path| &path[..])
    }

    /// Whether `path` is left out.
    pub(crate) fn leaves_out(&self, path: RelPath<'_>, is_dir: bool) -> bool {
        if let Some(listed) = &self.listed {
            let inside = listed.iter().any(|listed| match RelPath::new(listed) {
                Ok(listed) => {
                    path == listed || path.is_beneath(listed) || (is_dir && listed.is_beneath(path))
                }
                Err(_) => false,
            });
            if !inside {
                return true;
            }
        }
        let Some(rules) = &self.rules else { return false };
        let matched = rules.matched(Path::new(OsStr::from_bytes(path.as_bytes())), is_dir);
        if self.only_included { !is_dir && !matched.is_whitelist() } else { matched.is_ignore() }
    }

    /// Whether `path` is left out, by itself or because a folder above it is.
    pub(crate) fn leaves_out_of_tree(&self, path: RelPath<'_>, is_dir: bool) -> bool {
        if self.is_empty() {
            return false;
        }
        let bytes = path.as_bytes();
        let above = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &bytes[..at]);
        let mut above = above.filter_map(|folder| RelPath::new(folder).ok());
        above.any(|folder| self.leaves_out(folder, true)) || self.leaves_out(path, is_dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves_out(exclude: &[&str], include: &[&str], path: &str) -> bool {
        let own = |list: &[&str]| list.iter().map(|item| item.to_string()).collect::<Vec<_>>();
        let filter = Filter::new(&own(exclude), &own(include), None).unwrap();
        filter.leaves_out(RelPath::new(path.as_bytes()).unwrap(), false)
    }

    #[test]
    fn an_include_rescues_from_an_exclude_and_alone_selects() {
        assert!(leaves_out(&["*.o"], &[], "a/b.o"));
        assert!(!leaves_out(&["*.o"], &[], "a/b.c"));
        assert!(!leaves_out(&["*.o"], &["keep.o"], "a/keep.o"));
        assert!(!leaves_out(&[], &["*.jpg"], "a/b.jpg"));
        assert!(leaves_out(&[], &["*.jpg"], "a/b.png"));
    }

    #[test]
    fn a_list_selects_paths_and_what_is_beneath_them() {
        let filter = Filter::new(&[], &[], Some(vec![b"a/b".to_vec()])).unwrap();
        let leaves_out =
            |path: &str, is_dir| filter.leaves_out(RelPath::new(path.as_bytes()).unwrap(), is_dir);
        assert!(!leaves_out("a", true) && !leaves_out("a/b", false) && !leaves_out("a/b/c", false));
        assert!(leaves_out("a/c", false) && leaves_out("b", true));
    }
}
