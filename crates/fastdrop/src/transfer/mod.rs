//! One transfer between two ends, whichever of them dialled: the protocol's sender and receiver,
//! given sockets, files and threads.

pub(crate) mod alive;
mod compare;
mod compress;
pub(crate) mod inquiry;
pub(crate) mod limits;
pub(crate) mod prepare;
mod preview;
pub(crate) mod receive;
pub(crate) mod send;
mod stream_receiver;
pub(crate) mod streams;
mod unpack;
