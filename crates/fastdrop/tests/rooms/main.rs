//! The directions in which rooms and files of the crates may import each other.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use imports::{circle, of_crate};
use std::path::{Path, PathBuf};

mod imports;

/// The rooms of a crate from the top floor down, with what stands on the ground at the end: an
/// import goes down this list, never up, and never within one line.
type Floors = &'static [&'static [&'static str]];

/// Stands for every room that is not named.
const OTHERS: &str = "*";

const CRATES: &[(&str, Floors)] = &[
    (
        "fastdrop",
        &[
            &["lib"],
            &["server", "client"],
            &["legacy"],
            &["context"],
            &["gate"],
            &["transfer"],
            &["source"],
            &["storage"],
            &["admission", "codec", "net"],
            &["lock", "observe", "protocol", "random", "stop", "thread"],
            &["error"],
        ],
    ),
    (
        "fastdrop-proto",
        &[
            &["lib"],
            &["port"],
            // No protocol knows another one.
            &[OTHERS],
            &["congestion"],
            &["authorize", "calls", "checksum", "cursor", "json", "rtt", "units", "unreachable"],
        ],
    ),
    (
        "fastdrop-messages",
        &[
            &["lib"],
            &["port"],
            &["cnp", "vstp"],
            &["connecting"],
            &["datagrams", "incoming"],
            &["addresses", "metrics", "places", "no_tls", "shutdown", "tls", "token"],
            &["inner", "spans"],
        ],
    ),
    (
        "fastdrop-cli",
        &[
            &["main"],
            &["run"],
            &["message"],
            &["begin", "config", "progress"],
            &["args", "output", "signals"],
            &["address", "exit", "units"],
        ],
    ),
    (
        "fastdrop-testing",
        &[
            &["lib"],
            &["cnp", "fastdp", "peer", "program", "proxy", "wire"],
            &["network", "place", "tree"],
            &["wait", "words"],
        ],
    ),
];

/// Rooms of the crate `fastdrop` that import nothing of others, although the floors would let them.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("storage", &["transfer", "net", "client", "server"]),
    ("source", &["net"]),
    ("transfer", &["client", "server"]),
];

/// Lines of a file at most.
const LINES_MAX: usize = 700;

fn src(name: &str) -> PathBuf {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    crates.join(name).join("src")
}

fn room(module: &str) -> &str {
    module.split("::").next().unwrap()
}

#[test]
fn an_import_goes_down_the_floors_never_up() {
    for (name, floors) in CRATES {
        let floor = |module: &str| {
            let of = |name: &str| floors.iter().position(|rooms| rooms.contains(&name));
            let found = of(room(module)).or_else(|| of(OTHERS));
            found.unwrap_or_else(|| panic!("{name}: {module} is in no room"))
        };
        for (own, targets) in of_crate(&src(name)) {
            for target in targets.iter().filter(|target| room(target) != room(&own)) {
                // The crate fastdrop itself has one function, for names that are shown.
                let is_shown = (*name, target.as_str()) == ("fastdrop", "lib");
                let goes_down = floor(target) > floor(&own);
                assert!(goes_down || is_shown, "{name}: {own} imports {target}, which is above it");
            }
        }
    }
}

#[test]
fn what_knows_no_connection_imports_none() {
    let imports = of_crate(&src("fastdrop"));
    for (name, forbidden) in FORBIDDEN {
        let own = imports.iter().filter(|(own, _)| room(own) == *name);
        assert!(own.clone().count() > 3, "{name} is no room");
        for (own, targets) in own {
            let found = targets.iter().find(|target| forbidden.contains(&room(target)));
            assert_eq!(found, None, "{own} imports it");
        }
        for other in *forbidden {
            assert!(imports.keys().any(|module| room(module) == *other), "{other} is no room");
        }
    }
}

#[test]
fn no_file_has_more_lines_than_can_be_kept_in_mind() {
    for (name, _) in CRATES {
        for file in imports::files(&src(name)) {
            let lines = std::fs::read_to_string(&file).unwrap().lines().count();
            assert!(lines <= LINES_MAX, "{}: {lines} lines", file.display());
        }
    }
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    for (name, _) in CRATES {
        let found = circle(of_crate(&src(name)));
        assert_eq!(found, Vec::<String>::new(), "{name}: these are in a circle, or lead into one");
    }
}

#[test]
fn every_crate_is_looked_at() {
    let crates = src("fastdrop").join("../..");
    let mut names: Vec<_> = std::fs::read_dir(crates).unwrap().map(|entry| entry.unwrap()).collect();
    names.retain(|entry| entry.path().join("src").is_dir());
    for entry in names {
        let name = entry.file_name().into_string().unwrap();
        assert!(CRATES.iter().any(|(known, _)| *known == name), "{name} has no floors");
        assert!(of_crate(&src(&name)).len() > 3, "{name} has hardly any files");
    }
}

/// Two servers in one process would share it.
#[test]
fn no_protocol_keeps_its_state_in_a_static() {
    for file in imports::files(&src("fastdrop").join("legacy")) {
        let text = std::fs::read_to_string(&file).unwrap();
        let found = text.lines().find(|line| line.trim_start().starts_with("static "));
        assert_eq!(found, None, "{}", file.display());
    }
}

#[test]
fn who_may_do_what_is_decided_at_the_gate_alone() {
    let src = src("fastdrop");
    let mut deciding = Vec::new();
    for file in imports::files(&src) {
        let text = std::fs::read_to_string(&file).unwrap();
        if text.contains("read_only") || text.contains("write_only") {
            deciding.push(file.strip_prefix(&src).unwrap().to_str().unwrap().to_owned());
        }
    }
    deciding.sort();
    // Settings come from outside, and are handed to the gate.
    assert_eq!(deciding, ["context/server/mod.rs", "context/server/options.rs", "gate/mod.rs"]);
}
