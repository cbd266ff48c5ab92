//! The protocols that came before, one folder each with a server, a client and a state of its own;
//! and what carries a whole file for each of them.

pub(crate) mod fastdownloader;
pub(crate) mod fastdp1;
pub(crate) mod nextdp;
pub(crate) mod push;
mod sending;
pub(crate) mod source_file;
pub(crate) mod ultradp;
pub(crate) mod upload;
