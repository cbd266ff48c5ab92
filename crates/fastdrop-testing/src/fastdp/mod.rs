//! A sender and a receiver of FastDP in memory, in virtual time, with seeded faults.

pub mod pair;
pub mod pipe;
pub mod plan;
pub mod rng;
pub mod stats;
pub mod world;
