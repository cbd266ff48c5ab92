//! The outcomes of messages that were not acknowledged.

/// The reason for which a message has no acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendFailure {
    /// It was never given to a connection: it has not arrived.
    #[error("not sent: {0}")]
    NotSent(String),
    /// It was given to a connection that broke, and cannot be sent again without the risk that it
    /// is handled twice.
    #[error("unknown whether it arrived: {0}")]
    OutcomeUnknown(String),
}
