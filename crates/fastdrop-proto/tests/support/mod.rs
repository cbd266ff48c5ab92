//! A sender and a receiver in memory, in virtual time, with seeded faults.

pub(crate) mod pair;
pub(crate) mod rng;
pub(crate) mod wire;
pub(crate) mod world;
