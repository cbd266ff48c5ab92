//! Who may go on, and who waits. Nothing here knows what for.

pub(crate) mod buffers;
pub(crate) mod count;
pub(crate) mod keys;
pub(crate) mod permit;
pub(crate) mod turns;
