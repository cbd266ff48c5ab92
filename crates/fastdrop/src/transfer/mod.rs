//! One transfer between two ends, whichever of them dialled: the protocol's sender and receiver,
//! given sockets, files and threads.

pub(crate) mod alive;
mod assembly;
mod compare;
mod compress;
pub(crate) mod inquiry;
pub(crate) mod layout;
pub(crate) mod limits;
pub(crate) mod manifest;
pub(crate) mod prepare;
mod preview;
pub(crate) mod receive;
mod report;
pub(crate) mod send;
pub(crate) mod setup;
mod sink;
mod stream_receiver;
mod stream_sender;
pub(crate) mod streams;
mod supply;
mod unpack;
