//! The outcomes of frames that were not acknowledged.

/// The reason for which a frame has no acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeliverError {
    /// The server has it, and says that it does not handle it.
    #[error("the peer says: {0}")]
    Refused(String),
    /// It was never written to a connection: it has not arrived.
    #[error("not sent: {0}")]
    NotSent(String),
    /// It was written to a connection that broke, and cannot be sent again without the risk that it
    /// is handled twice.
    #[error("unknown whether it arrived: {0}")]
    OutcomeUnknown(String),
}
