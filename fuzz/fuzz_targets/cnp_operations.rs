//! Two ends of CNP and a network that does what the script says: what comes out is what a queue would give.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/fastdrop-proto/tests/cnp_model/mod.rs"]
mod model;

fuzz_target!(|script: &[u8]| model::run(script));
