//! Kinds of addresses (docs/protocol/vstp.md, section 7).

/// The standing of an address: which budget it has, and when it is forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It spoke first and has proved nothing. The one that was heard least recently is forgotten
    /// for another.
    Stranger,
    /// A stranger that speaks as FastDrop does, and so answers a challenge. It is forgotten when it
    /// does not, and never for another, as frames were received of it that must not come twice.
    Challenged,
    /// It has proved itself, or was spoken to first.
    Known,
}
