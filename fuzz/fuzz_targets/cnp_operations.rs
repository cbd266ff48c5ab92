//! Two ends of CNP and a network that does what the script says: what comes out is what a queue would give.

#![no_main]

use fastdrop_testing::cnp::model;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|script: &[u8]| model::run(script));
