//! The words between the callers of a session and its task.

use crate::vstp::call::IncomingCall;
use crate::vstp::held::Held;
use crate::vstp::types::{ErrorCode, Frame, VstpError};
use fastdrop_proto::calls::CallId;
use fastdrop_proto::vstp::{Acknowledgement, Attachment, FrameBytes, Leaving};
use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;
use tokio::sync::{Notify, mpsc, oneshot};

/// A frame to be sent, as its caller has it.
#[derive(Debug)]
pub(super) enum Outgoing {
    Owned(Frame),
    Shared(FrameBytes),
}

/// The word about an order.
pub(super) type Told<T> = oneshot::Sender<Result<T, VstpError>>;

/// Whoever is told the outcomes of frames by their numbers. What the peer did not say is no
/// outcome.
pub(super) type Outcomes = mpsc::UnboundedSender<(u64, Result<(), String>)>;

/// Something that is written, in order. Whoever wants it waits, so that it takes no more memory
/// here than it would there.
#[derive(Debug)]
pub(super) enum Order {
    /// A frame, told when it is written.
    Send(Outgoing, Told<()>),
    /// A frame, told when it is taken to be written.
    Feed(Outgoing, Told<()>),
    /// A frame that nobody waits for, and its part of the bound for such.
    Push(FrameBytes, Held),
    /// A frame, told when it is acknowledged.
    Deliver(Frame, Told<()>),
    /// A frame that has its number already, and whoever is told outcomes by number.
    Numbered(Leaving, Outcomes),
    /// A request, told its reply.
    Call(FrameBytes, Instant, Told<FrameBytes>),
    /// The reply to a call of the peer, told when it is written.
    Reply(CallId, FrameBytes, Told<()>),
    Hello(Told<()>),
    /// Nothing, told when everything before it is written.
    Flush(Told<()>),
    /// BYE, and the end of what is written.
    Close(Told<()>),
}

impl Order {
    /// Returns true if its caller does not wait for it any more.
    pub(super) fn is_given_up(&self) -> bool {
        match self {
            Self::Send(_, told) | Self::Feed(_, told) | Self::Deliver(_, told) => told.is_closed(),
            Self::Call(_, _, told) => told.is_closed(),
            Self::Push(..) | Self::Numbered(..) | Self::Reply(..) => false,
            Self::Hello(_) | Self::Flush(_) | Self::Close(_) => false,
        }
    }

    /// Returns true if it is a message of the application that is lost with its connection.
    pub(super) fn is_message(&self) -> bool {
        match self {
            Self::Send(..) | Self::Feed(..) | Self::Deliver(..) | Self::Call(..) => true,
            Self::Push(..) | Self::Reply(..) => true,
            Self::Numbered(..) | Self::Hello(_) | Self::Flush(_) | Self::Close(_) => false,
        }
    }
}

/// Something that never waits behind frames. There are as many as frames were handed on, or
/// callers went away.
#[derive(Debug)]
pub(super) enum Control {
    Acknowledge(Acknowledgement),
    Refuse(Option<Acknowledgement>, ErrorCode, String),
    Forgo(Acknowledgement),
    /// The handler of a call was dropped without a reply.
    Abandoned(CallId),
    /// The application reads on.
    Read,
    /// Frames that are calls are handled as such from now on.
    Serve,
    /// Somebody does not wait any more.
    GivenUp,
    /// The last caller is gone. What it has ordered stands in line.
    Released,
}

/// A frame that came, its acknowledgement, and its call, if it is one.
pub(super) type Taken = (FrameBytes, Option<Acknowledgement>, Option<IncomingCall>);

/// The frames that came and that nobody has taken.
#[derive(Debug, Default)]
pub(super) struct Received {
    pub(super) queue: VecDeque<Taken>,
    pub(super) bytes: usize,
    /// The task does not read before something is taken.
    pub(super) is_full: bool,
    /// Something is answered when the application reads on.
    pub(super) has_due: bool,
    pub(super) is_over: bool,
    /// Nothing more is taken to be sent that nobody waits for.
    pub(super) takes_nothing: bool,
    /// Nobody serves the connection any more.
    pub(super) is_left: bool,
    pub(super) failure: Option<VstpError>,
    /// The reason for which the connection is lost, as soon as that is known.
    pub(super) lost: Option<Lost>,
}

/// The reason for which a connection is lost.
#[derive(Debug, Clone)]
pub(super) struct Lost {
    pub(super) reason: String,
    /// The peer said that a frame is larger than it takes, and not which. Bytes of the largest one
    /// without a number of a session.
    pub(super) too_large: Option<usize>,
}

/// State of a session that callers and the task share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    received: Mutex<Received>,
    pub(super) arrived: Notify,
    /// Nothing more comes, or the connection is left.
    pub(super) over: Notify,
    /// The connection is lost.
    pub(super) lost: Notify,
    /// The place of the connection in the session of a client that connects again.
    pub(super) attachment: OnceLock<Attachment>,
    pub(super) unknown_replies: AtomicU64,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody serves the connection any more.
    pub(super) fn leave(&self) {
        self.lock().is_left = true;
        self.over.notify_waiters();
    }
}
