//! Support for the tests, benchmarks and fuzz targets of FastDrop; never published, and no part of
//! the program.
//!
//! - [`network`]: a bottleneck for datagrams in virtual time, with seeded faults.
//! - [`fastdp`], [`cnp`]: both ends of a protocol in memory, and what must be true of them.
//! - [`measure`], [`peer`]: what benchmarks share, and the other process of one.
//! - with the feature `program`, a program as a process: `program` runs it, `proxy` cuts, holds and
//!   alters its connections, `wire` says to it what no honest peer would, `tree` and `place` are
//!   files, folders and mounts of a test's own, `wait` and `words` what all of these need.
//!
//! It depends on `fastdrop-proto` and is a development dependency of it: so tests in `tests/` can
//! use it, and unit tests in `src/`, whose types would be others of the same name, cannot.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::new_without_default,
    clippy::should_implement_trait,
    reason = "a test fails by panicking, and says by printing why"
)]

// First, for its macro.
#[cfg(feature = "program")]
#[macro_use]
pub mod words;

pub mod cnp;
pub mod fastdp;
pub mod measure;
pub mod network;
pub mod peer;
#[cfg(feature = "program")]
pub mod place;
#[cfg(feature = "program")]
pub mod program;
#[cfg(feature = "program")]
pub mod proxy;
#[cfg(feature = "program")]
pub mod tree;
#[cfg(feature = "program")]
pub mod wait;
#[cfg(feature = "program")]
pub mod wire;
