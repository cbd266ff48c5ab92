//! The things that can be asked for.

use fastdrop_proto::fastdp::Existing;

/// An action that somebody wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// To have files.
    Read,
    /// To see which names there are.
    List,
    /// To put files there, and with those that exist to do this.
    Write(Existing),
}
