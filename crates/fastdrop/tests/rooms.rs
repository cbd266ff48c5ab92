//! The directions in which rooms and files of the crates may import each other.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The rooms of this crate from the top floor down, with what stands on the ground at the end: an
/// import goes down this list, never up, and never within one line.
const FLOORS: &[&[&str]] = &[
    &["lib"],
    &["server", "client"],
    &["legacy"],
    &["context"],
    &["transfer"],
    &["source"],
    &["storage"],
    &["admission", "codec", "net"],
    &["lock", "observe", "protocol", "random", "stop"],
    &["error"],
];

/// Imports between the files of a crate: from each file, by its module path, to others.
fn imports(src: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut files = Vec::new();
    find(src, &mut files);
    let module = |file: &PathBuf| {
        let inner = file.strip_prefix(src).unwrap().with_extension("");
        let names: Vec<_> = inner.iter().map(|name| name.to_str().unwrap()).collect();
        names.join("::").trim_end_matches("::mod").to_owned()
    };
    let modules: BTreeMap<_, _> = files.iter().map(|file| (module(file), file.clone())).collect();
    let mut all = BTreeMap::new();
    for (own, file) in &modules {
        let text = std::fs::read_to_string(file).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let code: String = code.lines().map(|line| line.split("//").next().unwrap()).fold(
            String::new(),
            |mut code, line| {
                code.push_str(line);
                code.push(' ');
                code
            },
        );
        let mut found = BTreeSet::new();
        for path in paths(&code, own) {
            let mut parts: Vec<_> = path.split("::").collect();
            while !parts.is_empty() && !modules.contains_key(&parts.join("::")) {
                parts.pop();
            }
            let target = parts.join("::");
            if !target.is_empty() && &target != own {
                found.insert(target);
            }
        }
        all.insert(own.clone(), found);
    }
    all
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

/// The paths beneath the crate that `code`, of the module `own`, names.
fn paths(code: &str, own: &str) -> Vec<String> {
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            // What follows `super::` or a name is a part of a path that has been looked at.
            if before.is_some_and(|char| char == ':' || char == '_' || char.is_alphanumeric()) {
                continue;
            }
            let mut base: Vec<&str> = own.split("::").collect();
            let mut rest = &code[at..];
            if let Some(after) = rest.strip_prefix("crate::") {
                (base, rest) = (Vec::new(), after);
            }
            while let Some(after) = rest.strip_prefix("super::") {
                base.pop();
                rest = after;
            }
            expand(&base, rest, &mut found);
        }
    }
    found
}

/// Adds the paths of `tree`, which may have braces, behind `base`.
fn expand(base: &[&str], tree: &str, found: &mut Vec<String>) {
    let len = tree.find(|char: char| !(char.is_alphanumeric() || char == '_' || char == ':'));
    let (head, rest) = tree.split_at(len.unwrap_or(tree.len()));
    let mut path: Vec<&str> = base.to_vec();
    path.extend(head.split("::").filter(|name| !name.is_empty()));
    let Some(inner) = rest.strip_prefix('{') else { return found.push(path.join("::")) };
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
fn circle(mut imports: BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
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

fn room(module: &str) -> String {
    module.split("::").next().unwrap().to_owned()
}

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

#[test]
fn an_import_goes_down_the_floors_never_up() {
    let floor = |room: &str| FLOORS.iter().position(|rooms| rooms.contains(&room));
    for (own, targets) in imports(&crates().join("fastdrop/src")) {
        let from = floor(&room(&own)).unwrap_or_else(|| panic!("{own} is in no room"));
        for target in targets.iter().filter(|target| room(target) != room(&own)) {
            let to = floor(&room(target)).unwrap();
            // The crate itself has one function, for names that are shown, and re-exports.
            assert!(to > from || target == "lib", "{own} imports {target}, which is above it");
        }
    }
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let found = circle(imports(&crates().join("fastdrop/src")));
    assert_eq!(found, Vec::<String>::new(), "these are in a circle, or lead into one");
}

#[test]
fn a_circle_and_an_import_in_braces_are_found() {
    let code = "use crate::a::{b::{C, d}, e}; use super::super::f; x(crate::g::h::i())";
    let mut found = paths(code, "m::n::o");
    found.sort();
    assert_eq!(found, ["a::b::C", "a::b::d", "a::e", "g::h::i", "m::f"]);
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let imports = BTreeMap::from([
        ("a".to_owned(), set(&["b"])),
        ("b".to_owned(), set(&["c", "d"])),
        ("c".to_owned(), set(&["b"])),
        ("d".to_owned(), BTreeSet::new()),
    ]);
    assert_eq!(circle(imports), ["a", "b", "c"]);
}
