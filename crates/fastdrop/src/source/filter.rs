//! The entries that a transfer takes: by patterns, and by a list of paths (docs/design/filters.md).

mod list;
mod patterns;

pub use patterns::FilterError;

use fastdrop_proto::fastdp::{EntryKind, Manifest, RelPath};
use fastdrop_proto::units::EntryIndex;
use list::{PathList, Relation};
use patterns::{Patterns, Verdict};

/// The choice of what a transfer takes.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    patterns: Option<Patterns>,
    listed: Option<PathList>,
}

/// The decision about one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// It is taken.
    Take,
    /// A folder that is taken only if something in it is.
    Enter,
    /// Neither it nor anything beneath it is taken.
    Leave,
}

impl Filter {
    /// Leaves out what matches `exclude`, takes what matches `include`; the pattern that matches
    /// nearest to an entry decides. With includes alone nothing else is taken; with `listed`, only
    /// these relative paths and what is beneath them.
    ///
    /// # Errors
    ///
    /// A pattern that is empty or malformed.
    pub fn new(
        exclude: &[String],
        include: &[String],
        listed: Option<Vec<Vec<u8>>>,
    ) -> Result<Self, FilterError> {
        Ok(Self { patterns: Patterns::new(exclude, include)?, listed: listed.map(PathList::new) })
    }

    /// Reports whether everything is taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.patterns.is_none() && self.listed.is_none()
    }

    /// Decides about one entry, whatever was decided about the folders above it.
    pub(crate) fn choose(&self, path: RelPath<'_>, is_dir: bool) -> Choice {
        let by_list = match self.listed.as_ref().map(|listed| listed.relation(path)) {
            None | Some(Relation::Within) => Choice::Take,
            Some(Relation::Above) if is_dir => Choice::Enter,
            Some(Relation::Above | Relation::Apart) => return Choice::Leave,
        };
        match self.patterns.as_ref().map(|patterns| patterns.verdict(path, is_dir)) {
            None | Some(Verdict::Take) => by_list,
            Some(Verdict::LeaveButEnter) => Choice::Enter,
            Some(Verdict::Leave) => Choice::Leave,
        }
    }

    /// Reports whether an entry would be taken that is not in a manifest;
    /// what is taken beneath it is not known.
    pub(crate) fn wants(&self, path: RelPath<'_>, is_dir: bool) -> bool {
        let bytes = path.as_bytes();
        let above = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &bytes[..at]);
        let mut above = above.filter_map(|folder| RelPath::new(folder).ok());
        !above.any(|folder| self.choose(folder, true) == Choice::Leave)
            && match self.choose(path, is_dir) {
                Choice::Take => true,
                // Something in it might have been taken.
                Choice::Enter => is_dir,
                Choice::Leave => false,
            }
    }

    /// Decides about all entries of a manifest.
    pub(crate) fn choose_from(&self, manifest: &Manifest) -> Chosen {
        if self.is_empty() {
            return Chosen(None);
        }
        let mut taken = vec![false; manifest.len() as usize];
        // The folders above the entry, from the top: the manifest has each before what is in it.
        let mut above: Vec<(EntryIndex, RelPath<'_>)> = Vec::new();
        for (index, entry) in manifest.iter() {
            while above.pop_if(|(_, folder)| !entry.path.is_beneath(*folder)).is_some() {}
            let is_dir = entry.kind == EntryKind::Directory;
            if self.choose(entry.path, is_dir) == Choice::Take {
                taken[index.0 as usize] = true;
                for (folder, _) in above.iter().rev() {
                    if std::mem::replace(&mut taken[folder.0 as usize], true) {
                        break;
                    }
                }
            }
            if is_dir {
                above.push((index, entry.path));
            }
        }
        Chosen(Some(taken))
    }

    /// Names the listed paths that are not among `there`, with the reason. Those that a pattern
    /// leaves out, be they files or folders, are not missing; a folder in which something would be
    /// taken is.
    pub(crate) fn missing<'a>(&'a self, there: impl Iterator<Item = RelPath<'a>>) -> Vec<(&'a [u8], String)> {
        let Some(listed) = &self.listed else { return Vec::new() };
        let wanted = |path: &[u8]| {
            RelPath::new(path).is_ok_and(|path| {
                [false, true].into_iter().any(|is_dir| self.choose(path, is_dir) != Choice::Leave)
            })
        };
        let missing = listed.missing(there).filter(|path| wanted(path));
        let missing = missing.map(|path| (path, "it was listed and is not there".to_owned()));
        let bad = listed.bad().map(|(path, error)| (path, error.to_string()));
        missing.chain(bad).collect()
    }
}

/// The entries of a manifest that are taken.
#[derive(Debug)]
pub(crate) struct Chosen(Option<Vec<bool>>);

impl Chosen {
    /// Reports whether the entry is taken.
    pub(crate) fn takes(&self, index: EntryIndex) -> bool {
        self.0.as_ref().is_none_or(|taken| taken.get(index.0 as usize).copied().unwrap_or(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Observer;
    use crate::source::tree::SourceTree;
    use crate::source::walk::{WalkOptions, walk};
    use crate::stop::Stop;
    use fastdrop_proto::fastdp::Links;
    use std::path::Path;

    const FILES: [&str; 14] = [
        "#odd#",
        "a.c",
        "a.o",
        "d/f",
        "d/g.o",
        "d/sub/h.c",
        "d/sub/k.o",
        "e/g",
        "e/h",
        "e/in/g",
        "sp ace ",
        "x/d/f",
        "x/d/y.c",
        "{p,q}",
    ];
    const EMPTY: &str = "z";

    fn walked(root: &Path, filter: &Filter) -> Manifest {
        let mut tree = SourceTree::default();
        tree.add_path(&root.join(""), false).unwrap();
        let options = WalkOptions {
            links: Links::Copy,
            filter: filter.clone(),
            entries_max: 1000,
            long_paths: false,
            tells_uncarried: false,
        };
        let walked = walk(&tree, None, &options, &Observer::default(), &Stop::new()).unwrap();
        assert_eq!(walked.left_out, []);
        std::sync::Arc::unwrap_or_clone(walked.manifest)
    }

    fn paths(manifest: &Manifest, takes: impl Fn(EntryIndex) -> bool) -> Vec<String> {
        let taken = manifest.iter().filter(|(index, _)| takes(*index));
        taken.map(|(_, entry)| String::from_utf8(entry.path.as_bytes().to_vec()).unwrap()).collect()
    }

    /// What is taken of the tree, the same by walking it and by
    /// choosing from a manifest of all of it.
    #[track_caller]
    fn taken(root: &Path, flags: &str, listed: Option<&[&str]>) -> Vec<String> {
        let (mut exclude, mut include) = (Vec::new(), Vec::new());
        for flag in flags.split_terminator('|') {
            match flag.split_at(1) {
                ("-", pattern) => exclude.push(pattern.to_owned()),
                ("+", pattern) => include.push(pattern.to_owned()),
                other => panic!("{other:?}"),
            }
        }
        let listed = listed.map(|listed| listed.iter().map(|path| path.as_bytes().to_vec()).collect());
        let filter = Filter::new(&exclude, &include, listed).unwrap();
        let walked = paths(&walked(root, &filter), |_| true);
        let all = self::walked(root, &Filter::default());
        let chosen = filter.choose_from(&all);
        assert_eq!(
            walked,
            paths(&all, |index| chosen.takes(index)),
            "{flags}: walked, and chosen from a manifest"
        );
        walked
    }

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in FILES {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        std::fs::create_dir(dir.path().join(EMPTY)).unwrap();
        dir
    }

    /// Patterns, `-` before an exclude and `+` before an include, and what is taken: files, and
    /// with a slash at the end folders in which nothing is taken. `*` stands for everything, a
    /// minus for everything but what follows, a plus for a folder that stays without its contents.
    const TABLE: [(&str, &str); 66] = [
        ("", "*"),
        // Excludes alone: as in .gitignore.
        ("-d", "- d/f d/g.o d/sub/h.c d/sub/k.o x/d/f x/d/y.c +x/"),
        ("-d/", "- d/f d/g.o d/sub/h.c d/sub/k.o x/d/f x/d/y.c +x/"),
        ("-/d", "- d/f d/g.o d/sub/h.c d/sub/k.o"),
        ("-/d/", "- d/f d/g.o d/sub/h.c d/sub/k.o"),
        ("-d/f", "- d/f"),
        ("-/d/f", "- d/f"),
        ("-d/*", "- d/f d/g.o d/sub/h.c d/sub/k.o +d/"),
        ("-d/**", "- d/f d/g.o d/sub/h.c d/sub/k.o +d/"),
        ("-**/d", "- d/f d/g.o d/sub/h.c d/sub/k.o x/d/f x/d/y.c +x/"),
        ("-**/d/f", "- d/f x/d/f"),
        ("-d/**/k.o", "- d/sub/k.o"),
        ("-*.o", "- a.o d/g.o d/sub/k.o"),
        ("-/*.o", "- a.o"),
        ("-a.?", "- a.c a.o"),
        ("-a.[!c]", "- a.o"),
        ("-f/", "-"),
        ("-F", "-"),
        ("-nothing", "-"),
        ("-*", ""),
        ("-/*", ""),
        ("-**", ""),
        ("-*/", "#odd# a.c a.o sp_ace_ {p,q}"),
        ("-e/in|-*.o", "- e/in/g a.o d/g.o d/sub/k.o"),
        // What a command line gives is no comment, keeps its spaces,
        // and braces are not alternatives.
        ("-#odd#", "- #odd#"),
        ("-sp ace ", "- sp_ace_"),
        ("-sp ace", "-"),
        ("-{p,q}", "- {p,q}"),
        ("-{a,b}.c", "-"),
        // A negated exclude takes again, the later one at the same level wins.
        ("-*.o|-!a.o", "- d/g.o d/sub/k.o"),
        ("-!a.o|-*.o", "- a.o d/g.o d/sub/k.o"),
        ("-e|-!e/g", "- e/h e/in/g"),
        ("-!a.o", "*"),
        // Includes alone: nothing else, with folders only where something in them is taken.
        ("+d", "d/f d/g.o d/sub/h.c d/sub/k.o x/d/f x/d/y.c"),
        ("+d/", "d/f d/g.o d/sub/h.c d/sub/k.o x/d/f x/d/y.c"),
        ("+/d", "d/f d/g.o d/sub/h.c d/sub/k.o"),
        ("+d/*", "d/f d/g.o d/sub/h.c d/sub/k.o"),
        ("+d/**", "d/f d/g.o d/sub/h.c d/sub/k.o"),
        ("+d/f", "d/f"),
        ("+/d/sub", "d/sub/h.c d/sub/k.o"),
        ("+**/d/f", "d/f x/d/f"),
        ("+*.c", "a.c d/sub/h.c x/d/y.c"),
        ("+/*.c", "a.c"),
        ("+*.c|+*.o", "a.c a.o d/g.o d/sub/h.c d/sub/k.o x/d/y.c"),
        ("+z", "z/"),
        ("+z/**", ""),
        ("+nothing", ""),
        ("+*", "*"),
        ("+*/", "- #odd# a.c a.o sp_ace_ {p,q}"),
        ("+d|+!*.o", "d/f d/sub/h.c x/d/f x/d/y.c"),
        ("+d|+!d/sub", "d/f d/g.o x/d/f x/d/y.c"),
        ("+!*.o", "- a.o d/g.o d/sub/k.o"),
        // Both: the nearest match decides, an include at the same level.
        ("-e|+e/g", "- e/h e/in/g"),
        ("-e|+g", "- e/h"),
        ("-e|+/e/in/", "- e/g e/h"),
        ("-*|+d/**", "d/f d/g.o d/sub/h.c d/sub/k.o"),
        ("-*|+d", "d/ x/d/"),
        ("-/*|+d", "d/f d/g.o d/sub/h.c d/sub/k.o x/d/f x/d/y.c"),
        ("-/*|+/d/", "d/f d/g.o d/sub/h.c d/sub/k.o"),
        ("-*|+*/|+*.c", "a.c d/sub/h.c e/in/ x/d/y.c z/"),
        ("-*|+*.c", "a.c d/sub/h.c x/d/y.c"),
        ("-*.o|+d", "- a.o d/g.o d/sub/k.o"),
        ("-*.o|+g.o", "- a.o d/sub/k.o"),
        ("-d|+sub", "- d/f d/g.o x/d/f x/d/y.c +x/"),
        ("-d|+d", "*"),
        ("-d/sub|+d", "- d/sub/h.c d/sub/k.o"),
    ];

    /// The files, folders and all that a cell of the table names.
    fn expected(cell: &str) -> Vec<String> {
        let mut files: Vec<String> = match cell.strip_prefix('-') {
            _ if cell == "*" => FILES.iter().chain(&["z/"]).map(|name| (*name).to_owned()).collect(),
            Some(but) => {
                let but: Vec<_> = but.split_whitespace().map(|name| name.replace('_', " ")).collect();
                let all = FILES.iter().chain(&["z/"]).map(|name| (*name).to_owned());
                let emptied = but.iter().filter_map(|name| name.strip_prefix('+')).map(str::to_owned);
                all.filter(|name| !but.contains(name)).chain(emptied).collect()
            }
            None => cell.split_whitespace().map(|name| name.replace('_', " ")).collect(),
        };
        files.sort();
        files
    }

    /// The files that are taken, and the folders in which nothing is.
    fn leaves(taken: &[String], root: &Path) -> Vec<String> {
        let mut leaves = Vec::new();
        for path in taken {
            let inside = format!("{path}/");
            if !root.join(path).is_dir() {
                leaves.push(path.clone());
            } else if !taken.iter().any(|other| other.starts_with(&inside)) {
                leaves.push(inside);
            }
        }
        leaves.sort();
        leaves
    }

    #[test]
    fn patterns_take_and_leave_out_as_in_the_table() {
        let dir = tree();
        let mut wrong = Vec::new();
        for (flags, cell) in TABLE {
            let found = leaves(&taken(dir.path(), flags, None), dir.path());
            if found != expected(cell) {
                wrong.push((flags, cell, found));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn a_list_selects_paths_and_what_is_beneath_them_and_patterns_choose_from_that() {
        let dir = tree();
        for (listed, flags, cell) in [
            (&["d/f"][..], "", "d/f"),
            (&["d"], "", "d/f d/g.o d/sub/h.c d/sub/k.o"),
            (&["d", "d/f"], "", "d/f d/g.o d/sub/h.c d/sub/k.o"),
            (&["d/sub", "a.c", "z"], "", "a.c d/sub/h.c d/sub/k.o z/"),
            (&["d/su", "nothing", "a", "../a.c", "/a.c"], "", ""),
            (&[], "", ""),
            (&["d", "e"], "-*.o", "d/f d/sub/h.c e/g e/h e/in/g"),
            (&["d", "e"], "+*.o", "d/g.o d/sub/k.o"),
            (&["d", "e/g"], "-d|-e|+d/f|+e", "d/f e/g"),
        ] {
            let taken = taken(dir.path(), flags, Some(listed));
            assert_eq!(leaves(&taken, dir.path()), expected(cell), "{listed:?} {flags}");
        }
    }

    #[test]
    fn a_listed_path_is_missing_unless_it_is_there_or_was_left_out() {
        let dir = tree();
        let listed = ["a.c", "a.o", "d", "d/sub", "no.o", "nothing", "d/f/below", "../up"];
        let listed = listed.iter().map(|path| path.as_bytes().to_vec()).collect();
        let filter = Filter::new(&["*.o".into(), "sub".into()], &[], Some(listed)).unwrap();
        let manifest = walked(dir.path(), &filter);
        let missing = filter.missing(manifest.iter().map(|(_, entry)| entry.path));
        let missing: Vec<_> = missing.iter().map(|(path, _)| String::from_utf8_lossy(path)).collect();
        assert_eq!(missing, ["d/f/below", "nothing", "../up"]);
    }

    #[test]
    fn a_listed_folder_is_missing_also_where_only_some_of_it_would_be_taken() {
        let missing = |exclude: &[String], include: &[String]| {
            let listed = ["gone", "gone.c", "gone.o"].map(|path| path.as_bytes().to_vec()).to_vec();
            let filter = Filter::new(exclude, include, Some(listed)).unwrap();
            let missing = filter.missing(std::iter::empty());
            missing.iter().map(|(path, _)| String::from_utf8_lossy(path).into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(missing(&[], &["*.c".into()]), ["gone", "gone.c", "gone.o"]);
        assert_eq!(missing(&["gone/".into()], &[]), ["gone", "gone.c", "gone.o"]);
        assert_eq!(missing(&["*.o".into()], &[]), ["gone", "gone.c"]);
    }

    #[test]
    fn a_folder_that_cannot_have_anything_to_take_is_not_entered() {
        let choose = |flags: (&str, &str), folder: &str| {
            let filter = Filter::new(&[flags.0.into()], &[flags.1.into()], None).unwrap();
            filter.choose(RelPath::new(folder.as_bytes()).unwrap(), true)
        };
        assert_eq!(choose(("e", "/d/f"), "e"), Choice::Leave);
        assert_eq!(choose(("e", "e/d/f"), "e"), Choice::Enter);
        assert_eq!(choose(("e", "e/d/f"), "e/x"), Choice::Leave);
        assert_eq!(choose(("e", "e/d/f"), "e/d"), Choice::Enter);
        assert_eq!(choose(("e", "e/*/f"), "e/x"), Choice::Enter);
        assert_eq!(choose(("e", "f"), "e/x"), Choice::Enter);
        assert_eq!(choose(("e", "x/**"), "e"), Choice::Leave);
    }

    #[test]
    fn a_pattern_that_cannot_be_one_is_refused_by_name() {
        for bad in ["", "!", "a[z-a]"] {
            for (exclude, include) in [(vec![bad.to_owned()], vec![]), (vec![], vec![bad.to_owned()])] {
                let error = Filter::new(&exclude, &include, None).unwrap_err().to_string();
                assert!(
                    error.contains(&format!("bad pattern {:?}", bad)) || error.contains("a[z-a]"),
                    "{error}"
                );
            }
        }
    }
}
