//! What there is to send: walking, choosing, reading chunks, and archives made on the way. Nothing
//! here writes.

pub(crate) mod archive;
pub(crate) mod filter;
pub(crate) mod identity;
pub(crate) mod reader;
pub(crate) mod tree;
mod uncarried;
pub(crate) mod walk;
