//! State of a transfer, as far as it can be said at once.

use crate::error::Error;
use fastdrop_proto::fastdp::Code;
use fastdrop_proto::nextdp::{Activity, AssemblyError, ChunkRequest, Refusal};

/// The state of a transfer, to be had without waiting.
pub(super) struct Glance {
    pub(super) state: State,
    /// The words of chunk 0, once it has come: the name, and the number of chunks.
    pub(super) first: Option<(String, u32)>,
    pub(super) activity: Activity,
    /// A chunk has come as a whole.
    pub(super) is_used: bool,
    /// A chunk came again.
    pub(super) repeated: bool,
}

/// State of a transfer.
pub(super) enum State {
    /// Chunk 0 has not come.
    Waiting,
    /// It has a place.
    Placed,
    /// It cannot be completed any more.
    Failed(Failure),
    /// Every chunk is here, and the file is being synced and named.
    Committing,
    /// It has its name, or could not get it.
    Ended(Result<(), Refusal>),
}

/// Reason for which a transfer cannot be completed.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) refusal: Refusal,
    /// Chunks of several senders may still be coming.
    pub(super) is_contradiction: bool,
}

impl Failure {
    /// A failure for which one sender's chunks, or this end, are the reason.
    pub(super) fn new(refusal: Refusal) -> Self {
        Self { refusal, is_contradiction: false }
    }

    /// A failure by chunks that cannot be of the same file.
    pub(super) fn contradiction(what: impl Into<String>) -> Self {
        AssemblyError::Contradiction(what.into()).into()
    }
}

impl From<AssemblyError> for Failure {
    fn from(error: AssemblyError) -> Self {
        let is_contradiction = matches!(error, AssemblyError::Contradiction(_));
        Self { refusal: error.into(), is_contradiction }
    }
}

impl Glance {
    /// Fails the transfer, unless it is beyond that. Returns the reason that counts: the first one.
    pub(super) fn fail(&mut self, failure: Failure) -> Refusal {
        match &self.state {
            State::Waiting | State::Placed => {
                let refusal = failure.refusal.clone();
                self.is_used = true;
                self.state = State::Failed(failure);
                refusal
            }
            State::Failed(first) => first.refusal.clone(),
            State::Committing | State::Ended(_) => failure.refusal,
        }
    }

    /// Returns true if it has all its chunks and will take no other sender's. A file of one chunk
    /// has, since chunk 0 counts only when it is here as a whole.
    pub(super) fn is_closed(&self) -> bool {
        match self.state {
            State::Committing | State::Ended(_) => true,
            State::Placed => self.first.as_ref().is_some_and(|(_, chunks)| *chunks == 1),
            State::Waiting | State::Failed(_) => false,
        }
    }

    /// Returns true for a chunk 0 that says something else than the first one did.
    pub(super) fn is_other(&self, chunk: &ChunkRequest) -> bool {
        self.first.as_ref().zip(chunk.first.as_ref()).is_some_and(|(known, other)| known != other)
    }
}

/// An error as a status and a sentence.
pub(super) fn refusal(error: Error) -> Refusal {
    let status = match error.code() {
        code @ (Code::BadRequest
        | Code::Forbidden
        | Code::NotFound
        | Code::Conflict
        | Code::OverLimit
        | Code::Unavailable
        | Code::NoSpace) => code,
        _ => Code::Internal,
    };
    Refusal::new(status.number(), error.to_string())
}
