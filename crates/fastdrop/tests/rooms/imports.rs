//! Imports between the files of a crate, as they are written in its sources.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Of each file, by its module path, those that it imports from.
pub(crate) type Imports = BTreeMap<String, BTreeSet<String>>;

/// Imports between the files under `src`. What a file re-exports is no import of it, and whoever
/// imports that imports from the file in which it is defined.
pub(crate) fn of_crate(src: &Path) -> Imports {
    let mut files = Vec::new();
    find(src, &mut files);
    let module = |file: &PathBuf| {
        let inner = file.strip_prefix(src).unwrap().with_extension("");
        let names: Vec<_> = inner.iter().map(|name| name.to_str().unwrap()).collect();
        names.join("::").trim_end_matches("::mod").to_owned()
    };
    let text = |file: &PathBuf| std::fs::read_to_string(file).unwrap();
    of_files(files.iter().map(|file| (module(file), text(file))).collect())
}

/// The source files beneath `src`.
pub(crate) fn files(src: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    find(src, &mut files);
    files
}

fn find(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            find(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// A path, and the name by which it is known where it is imported.
type Named = (String, String);

/// The sources of a crate.
struct Sources {
    /// Of each module, its code without comments, tests and re-exports.
    code: BTreeMap<String, String>,
    /// Of each module, the paths of its re-exports by their names.
    exports: BTreeMap<String, BTreeMap<String, String>>,
}

fn of_files(mut texts: BTreeMap<String, String>) -> Imports {
    let tests: BTreeSet<_> = texts.iter().flat_map(|(own, text)| test_modules(own, text)).collect();
    texts.retain(|own, _| !tests.contains(own));
    let mut sources = Sources { code: BTreeMap::new(), exports: BTreeMap::new() };
    for (own, text) in texts {
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let lines = code.lines().map(|line| line.split("//").next().unwrap());
        let (code, trees) = without_exports(&lines.collect::<Vec<_>>().join(" "));
        let mut exports = Vec::new();
        trees.iter().for_each(|tree| read_path(tree, &own, &mut exports));
        sources.exports.insert(own.clone(), exports.into_iter().map(|(path, name)| (name, path)).collect());
        sources.code.insert(own, code);
    }
    let imports = |own: &String| {
        let paths = sources.paths(own).into_iter();
        let is_test = |path: &String| tests.iter().any(|test| path.starts_with(&format!("{test}::")));
        let found = paths.filter(|path| !is_test(path)).filter_map(|path| sources.definer(&path));
        found.filter(|target| target != own).collect()
    };
    sources.code.keys().map(|own| (own.clone(), imports(own))).collect()
}

/// The modules beneath `own` that are there only in tests, in files of their own.
fn test_modules(own: &str, text: &str) -> Vec<String> {
    let parent = if is_root(own) { String::new() } else { format!("{own}::") };
    let names =
        text.split("#[cfg(test)]\nmod ").skip(1).filter_map(|rest| rest.lines().next()?.strip_suffix(';'));
    names.map(|name| format!("{parent}{name}")).collect()
}

/// The code without `pub use`, and the trees of these.
fn without_exports(code: &str) -> (String, Vec<String>) {
    let (mut kept, mut trees) = (String::new(), Vec::new());
    let mut rest = code;
    while let Some(at) = rest.find("pub") {
        let (before, after) = rest.split_at(at);
        kept.push_str(before);
        let visible = after.strip_prefix("pub").unwrap();
        let visible = match visible.strip_prefix('(') {
            Some(inner) => inner.split_once(')').map_or(inner, |(_, after)| after),
            None => visible,
        };
        if let Some(tree) = visible.trim_start().strip_prefix("use ").filter(|_| visible.starts_with(' ')) {
            let (tree, after) = tree.split_once(';').unwrap();
            trees.push(tree.split_whitespace().collect::<Vec<_>>().join(" "));
            rest = after;
        } else {
            kept.push_str("pub");
            rest = after.strip_prefix("pub").unwrap();
        }
    }
    kept.push_str(rest);
    (kept, trees)
}

fn is_of_name(char: char) -> bool {
    char == '_' || char.is_alphanumeric()
}

impl Sources {
    /// The paths beneath the crate that the code of `own` names.
    fn paths(&self, own: &str) -> Vec<String> {
        let code = &self.code[own];
        let parent = if is_root(own) { String::new() } else { format!("{own}::") };
        let children = self.code.keys().filter_map(|module| module.strip_prefix(&parent));
        let children = children.filter(|name| !name.contains("::") && !is_root(name));
        let starts = ["crate", "self", "super"].into_iter().chain(children);
        let mut found = Vec::new();
        for start in starts.map(|name| format!("{name}::")) {
            for (at, _) in code.match_indices(&start) {
                let before = code[..at].chars().next_back();
                // What follows `super::` or a name is a part of a path that has been looked at.
                if !before.is_some_and(|char| char == ':' || is_of_name(char)) {
                    read_path(&code[at..], own, &mut found);
                }
            }
        }
        found.into_iter().map(|(path, _)| path).collect()
    }

    /// The file in which that is defined to which a path leads, through re-exports.
    fn definer(&self, path: &str) -> Option<String> {
        let mut path = path.to_owned();
        // More often than any path is handed on.
        for _ in 0..10 {
            let mut module: Vec<_> = path.split("::").collect();
            let mut names = Vec::new();
            while !module.is_empty() && !self.code.contains_key(&module.join("::")) {
                names.insert(0, module.pop().unwrap());
            }
            let root = self.code.keys().find(|module| is_root(module));
            let module = match module.is_empty() {
                true => root?.clone(),
                false => module.join("::"),
            };
            let Some((name, rest)) = names.split_first() else { return Some(module) };
            let Some(to) = self.exports[&module].get(*name) else { return Some(module) };
            let next = [&[to.as_str()], rest].concat().join("::");
            if next == path {
                return Some(module);
            }
            path = next;
        }
        None
    }
}

fn is_root(module: &str) -> bool {
    ["lib", "main"].contains(&module)
}

/// Adds the paths of the tree at the beginning of `code`, of the module `own`.
fn read_path(code: &str, own: &str, found: &mut Vec<Named>) {
    let mut base: Vec<&str> = if is_root(own) { Vec::new() } else { own.split("::").collect() };
    let mut rest = code;
    if let Some(after) = rest.strip_prefix("crate::") {
        (base, rest) = (Vec::new(), after);
    }
    rest = rest.strip_prefix("self::").unwrap_or(rest);
    while let Some(after) = rest.strip_prefix("super::") {
        base.pop();
        rest = after;
    }
    expand(&base, rest, found);
}

/// Adds the paths of `tree`, which may have braces, behind `base`.
fn expand(base: &[&str], tree: &str, found: &mut Vec<Named>) {
    let len = tree.find(|char: char| !(is_of_name(char) || char == ':'));
    let (head, rest) = tree.split_at(len.unwrap_or(tree.len()));
    let mut path: Vec<&str> = base.to_vec();
    path.extend(head.split("::").filter(|name| !name.is_empty()));
    let Some(inner) = rest.strip_prefix('{') else {
        path.pop_if(|last| *last == "self");
        let alias =
            rest.strip_prefix(" as ").map(|name| name.split(|char| !is_of_name(char)).next().unwrap());
        let name = alias.or(path.last().copied()).unwrap_or_default().to_owned();
        return found.push((path.join("::"), name));
    };
    let (mut depth, mut start) = (0, 0);
    for (at, char) in inner.char_indices() {
        match char {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                let part = inner[start..at].trim();
                if !part.is_empty() {
                    expand(&path, part, found);
                }
                start = at + 1;
                if char == '}' {
                    return;
                }
            }
            _ => {}
        }
    }
}

/// A circle among `imports`, if there is one: those that are left when what imports nothing that is
/// left has been taken away, again and again.
pub(crate) fn circle(mut imports: Imports) -> Vec<String> {
    loop {
        let left: BTreeSet<_> = imports.keys().cloned().collect();
        let before = imports.len();
        imports.retain(|_, targets| targets.iter().any(|target| left.contains(target)));
        if imports.len() == before {
            break;
        }
    }
    imports.into_keys().collect()
}

#[test]
fn an_import_in_braces_is_found() {
    let texts = ["m::n::o", "m::f", "a", "a::b", "a::b::d", "a::e", "g::h", "m", "m::n", "g", "lib"];
    let mut texts: BTreeMap<_, _> = texts.map(|module| (module.to_owned(), String::new())).into();
    let code = "use crate::a::{b::{self, C, d}, e}; use super::super::f; x(crate::g::h::i(), crate::X)";
    texts.insert("m::n::o".into(), code.into());
    let found = of_files(texts)["m::n::o"].iter().cloned().collect::<Vec<_>>();
    assert_eq!(found, ["a::b", "a::b::d", "a::e", "g::h", "lib", "m::f"]);
}

#[test]
fn an_import_through_a_re_export_is_one_from_the_file_that_defines_it() {
    let file = |module: &str, code: &str| (module.to_owned(), code.to_owned());
    let texts = BTreeMap::from([
        file("lib", "mod a;\npub use a::{One, Other as Two};\npub use std::fmt::Debug;"),
        file("a", "mod b; mod c;\npub use b::One;\npub(crate) use c::{Other, help};\nuse c::Third;"),
        file("a::b", "use super::{Other, help}; // crate::d\nimpl crate::Debug for super::Own {}"),
        file("a::c", ""),
        file("d", "use crate::{One, Two};\n#[cfg(test)]\nmod tests { use super::super::a; }"),
    ]);
    let found = of_files(texts);
    let of = |module: &str| found[module].iter().map(String::as_str).collect::<Vec<_>>().join(" ");
    assert_eq!(of("lib"), "");
    assert_eq!(of("a"), "a::c");
    assert_eq!(of("a::b"), "a a::c lib");
    assert_eq!(of("d"), "a::b a::c");
}

#[test]
fn a_module_that_is_there_only_in_tests_imports_nothing_and_is_not_imported() {
    let file = |module: &str, code: &str| (module.to_owned(), code.to_owned());
    let texts = BTreeMap::from([
        file("a", "mod b;\n#[cfg(test)]\nmod odd;\nmod c;"),
        file("a::b", "#[cfg(test)]\nPipe(super::odd::Pipe), crate::a::c::C"),
        file("a::c", ""),
        file("a::odd", "use super::b;"),
    ]);
    let found = of_files(texts);
    assert_eq!(found["a::b"].iter().collect::<Vec<_>>(), ["a::c"]);
    assert!(!found.contains_key("a::odd"));
}

#[test]
fn a_circle_is_found() {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let imports = BTreeMap::from([
        ("a".to_owned(), set(&["b"])),
        ("b".to_owned(), set(&["c", "d"])),
        ("c".to_owned(), set(&["b"])),
        ("d".to_owned(), BTreeSet::new()),
    ]);
    assert_eq!(circle(imports), ["a", "b", "c"]);
}
