//! The program under test, and what its tests share.

pub(crate) use fastdrop_testing::args;
pub(crate) use fastdrop_testing::place::*;
pub(crate) use fastdrop_testing::program::*;
pub(crate) use fastdrop_testing::proxy::Proxy;
pub(crate) use fastdrop_testing::tree::*;
pub(crate) use fastdrop_testing::words::*;

/// The program under test.
pub(crate) const FASTDROP: Program = Program::at(env!("CARGO_BIN_EXE_fastdrop"));
