//! The table of programs of the field in `docs/protocol/README.md`: each test that it names is
//! there, and starred if the suite leaves it out.

use std::fs;
use std::path::{Path, PathBuf};

const DOCUMENT: &str = "docs/protocol/README.md";
const HEADING: &str = "## Programs of the field";
/// So many rows there are at least; a table that is not found has none.
const ROWS_MIN: usize = 50;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The file that a cell names: of this crate's tests, or of another crate's tests or sources.
fn path_of(file: &str) -> PathBuf {
    let crates = root().join("crates");
    let Some((first, rest)) = file.split_once('/').filter(|(first, _)| crates.join(first).is_dir()) else {
        return crates.join("fastdrop-cli/tests").join(file);
    };
    let folder = if rest.starts_with("src/") { "" } else { "tests" };
    crates.join(first).join(folder).join(rest)
}

/// Reports the fault of a name in a cell, if there is one.
fn wrong(file: &Path, name: &str, is_starred: bool) -> Option<String> {
    let Ok(text) = fs::read_to_string(file) else { return Some("there is no such file".into()) };
    if file.extension().is_some_and(|extension| extension == "md") {
        let heading = format!("## {name}");
        return (!text.lines().any(|line| line == heading)).then(|| "there is no such heading".into());
    }
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let starts = ["fn ", "async fn "].map(|word| format!("{word}{name}("));
    let Some(at) = lines.iter().position(|line| starts.iter().any(|start| line.starts_with(start))) else {
        return Some("there is no such function".into());
    };
    let above = lines[..at].iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("//"));
    let attributes: Vec<_> = above.filter(|line| line.starts_with("#[")).collect();
    if !attributes.iter().any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test")) {
        return Some("it is no test".into());
    }
    let is_ignored = attributes.iter().any(|line| line.starts_with("#[ignore"));
    match (is_ignored, is_starred) {
        (true, false) => Some("the suite leaves it out, and it has no star".into()),
        (false, true) => Some("it has a star, and is part of the suite".into()),
        _ => None,
    }
}

#[test]
fn each_cell_of_the_table_of_programs_names_tests_that_are_there() {
    let text = fs::read_to_string(root().join(DOCUMENT)).unwrap();
    let section = text.split_once(HEADING).expect("the table").1;
    let rows = section.lines().skip_while(|line| !line.starts_with("| ---")).skip(1);
    let rows: Vec<&str> = rows.take_while(|line| line.starts_with('|')).collect();
    assert!(rows.len() >= ROWS_MIN, "{} rows", rows.len());
    let (mut file, mut faults) = (PathBuf::new(), Vec::new());
    for row in &rows {
        let cell = row.trim_end_matches('|').rsplit('|').next().unwrap();
        // What stands between backticks, and what follows it.
        let pieces: Vec<&str> = cell.split('`').collect();
        let mut count = 0;
        for name in pieces.chunks(2).filter_map(|pair| pair.get(1)).zip(pieces.iter().skip(2).step_by(2)) {
            let (name, behind) = (*name.0, *name.1);
            if name.ends_with(".rs") || name.ends_with(".md") {
                file = path_of(name);
                continue;
            }
            count += 1;
            if let Some(fault) = wrong(&file, name, behind.starts_with('*')) {
                faults.push(format!("{} in {}: {fault}", name, file.display()));
            }
        }
        if count == 0 {
            faults.push(format!("no test in {row}"));
        }
    }
    assert_eq!(faults, Vec::<String>::new());
}
