//! Everything that should arrive arrives, whole and as it was, in both directions.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod choosing;
mod links;
mod places;
mod sizes;
mod sparse;
mod standard_streams;
mod streams;
#[path = "../support/mod.rs"]
mod support;
mod trees;

use support::*;

const SIZES: [u64; 13] = [
    0,
    1,
    262_143,
    262_144,
    262_145,
    1_048_575,
    1_048_576,
    1_048_577,
    4_194_303,
    4_194_304,
    4_194_305,
    11 * MIB,
    11 * MIB + 1,
];

/// An empty folder to serve, and one for the client's things.
fn served_and_own() -> (tempfile::TempDir, tempfile::TempDir) {
    (scratch(), scratch())
}
