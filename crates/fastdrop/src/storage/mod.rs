//! Where bytes rest: a confined root, stages and their journals, places and names. Nothing here
//! knows a connection or a peer.

pub(crate) mod attributes;
mod folder;
pub(crate) mod io;
pub(crate) mod journal;
mod lent;
pub(crate) mod mounts;
pub(crate) mod namer;
pub(crate) mod options;
pub(crate) mod output;
mod part;
pub(crate) mod placement;
pub(crate) mod present;
pub(crate) mod recovery;
pub(crate) mod root;
pub(crate) mod single;
pub(crate) mod spool;
pub(crate) mod stage;
pub(crate) mod writer;
