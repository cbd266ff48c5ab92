//! Two ends of CNP in memory: over a simulated network, and as a script says.

pub mod model;
pub mod pair;
