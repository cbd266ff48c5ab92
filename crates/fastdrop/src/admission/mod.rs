//! Who may go on, and who waits. Nothing here knows what for.

pub(crate) mod turns;
