//! The program that is tested.

/// A program that is tested, by its path.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    pub(super) path: &'static str,
}

impl Program {
    /// The program at this path: that of `env!("CARGO_BIN_EXE_…")`.
    pub const fn at(path: &'static str) -> Self {
        Self { path }
    }
}
