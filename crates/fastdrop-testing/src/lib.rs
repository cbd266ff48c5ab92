//! Support for the tests, benchmarks and fuzz targets of FastDrop; never published, and no part of
//! the program.
//!
//! - [`network`]: a bottleneck for datagrams in virtual time, with seeded faults.
//! - [`fastdp`], [`cnp`]: both ends of a protocol in memory, and what must be true of them.
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

pub mod cnp;
pub mod fastdp;
pub mod network;
