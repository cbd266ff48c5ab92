//! The calls of one session, in both directions.

use super::clock;
use bytes::Bytes;
use fastdrop_proto::calls::{CALL_TIME_MAX, CallId, Calls, NotServed, Serving, deadline_after};
use fastdrop_proto::cnp::{CallMessage, CallRefusal, ReceiveId};
use std::collections::VecDeque;
use std::time::Instant;
use tokio::sync::{oneshot, watch};

/// The reply to a call, as it comes.
pub(super) type Reply = Result<Bytes, (CallRefusal, String)>;

/// A call of the peer that waits for a handler.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) id: CallId,
    pub(super) body: Bytes,
    pub(super) deadline: Option<Instant>,
    pub(super) cancelled: watch::Receiver<bool>,
    /// The message that brought it, if that is acknowledged only when a handler takes it.
    held: Option<ReceiveId>,
}

/// Calls that were made and wait for a reply, and calls that came and wait for an answer.
#[derive(Debug)]
pub(super) struct CallTable {
    made: Calls<oneshot::Sender<Reply>>,
    taken_max: usize,
    /// Calls of the peer that have no answer, waiting or with a handler.
    taken: Serving<CallId, watch::Sender<bool>>,
    waiting: VecDeque<Arrived>,
    /// Bytes of those whose messages are acknowledged.
    waiting_bytes: usize,
    bytes_max: usize,
    /// Messages that are to be acknowledged now.
    freed: VecDeque<ReceiveId>,
    /// Nobody takes calls any more, for this reason.
    closed: Option<String>,
}

impl CallTable {
    /// So many calls of the peer are taken at once. Those that wait beyond so many bytes are
    /// acknowledged when a handler takes them, which holds the peer back.
    pub(super) fn new(taken_max: usize, bytes_max: usize) -> Self {
        Self {
            made: Calls::new(0, 0),
            taken_max,
            taken: Serving::new(taken_max),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            bytes_max,
            freed: VecDeque::new(),
            closed: None,
        }
    }

    /// The session is open, and its peer takes so many calls at once.
    pub(super) fn open(&mut self, made_max: usize) {
        self.made = Calls::new(0, made_max);
    }

    /// Bytes of calls that wait and whose messages are acknowledged.
    pub(super) fn memory(&self) -> usize {
        self.waiting_bytes
    }

    /// A call is made, if there is room.
    pub(super) fn begin(&mut self, deadline: Option<Instant>) -> Option<(CallId, oneshot::Receiver<Reply>)> {
        let (tell, reply) = oneshot::channel();
        // Whoever waits gives up at its deadline.
        let deadline = deadline.unwrap_or_else(|| clock::now() + CALL_TIME_MAX);
        Some((self.made.begin(deadline, tell).ok()?, reply))
    }

    /// Nobody waits for this reply any more; false if it has come.
    pub(super) fn forget(&mut self, id: CallId) -> bool {
        self.made.cancel(id).is_some()
    }

    /// The session is over: there will be no replies, and nobody waits for answers.
    pub(super) fn end(&mut self) {
        drop(self.made.take_all());
        self.waiting.clear();
        self.freed.clear();
        self.waiting_bytes = 0;
        for cancel in self.taken.take_all() {
            cancel.send_replace(true);
        }
    }

    /// The next call for a handler.
    pub(super) fn take(&mut self) -> Option<Arrived> {
        let arrived = self.waiting.pop_front()?;
        self.on_left(&arrived);
        Some(arrived)
    }

    /// A call does not wait any more.
    fn on_left(&mut self, arrived: &Arrived) {
        match arrived.held {
            Some(message) => self.freed.push_back(message),
            None => self.waiting_bytes -= arrived.body.len(),
        }
    }

    /// The next message that is to be acknowledged, as its call does not wait any more.
    pub(super) fn poll_freed(&mut self) -> Option<ReceiveId> {
        self.freed.pop_front()
    }

    /// Calls of the peer that are taken at once.
    pub(super) fn taken_max(&self) -> usize {
        self.taken_max
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    /// No call is taken any more. Gives those that were waiting, which are to be refused.
    pub(super) fn close(&mut self, words: &str) -> Vec<CallId> {
        self.closed.get_or_insert_with(|| words.into());
        let mut waiting = Vec::new();
        while let Some(arrived) = self.take() {
            self.on_answered(arrived.id);
            waiting.push(arrived.id);
        }
        waiting
    }

    /// A call has its answer.
    pub(super) fn on_answered(&mut self, id: CallId) {
        self.taken.finish(&id);
    }

    /// The number of calls of the peer that have no answer.
    pub(super) fn unanswered(&self) -> usize {
        self.taken.handling()
    }

    /// A message about a call came, as `came`.
    pub(super) fn handle(&mut self, now: Instant, came: ReceiveId, message: CallMessage) -> Handled {
        match message {
            CallMessage::Request { id, time_left, body } => {
                if let Some(words) = self.closed.clone() {
                    let refusal = CallRefusal::Unhandled;
                    return Handled::Refuse(CallMessage::Refusal { id, refusal, words });
                }
                let (cancel, cancelled) = watch::channel(false);
                match self.taken.begin(id, cancel) {
                    Ok(()) => {}
                    Err(NotServed::Repeated) => return Handled::Done,
                    Err(NotServed::Busy(error)) => {
                        let (refusal, words) = (CallRefusal::Busy, error.to_string());
                        return Handled::Exceeds(CallMessage::Refusal { id, refusal, words });
                    }
                }
                let fits = self.waiting_bytes.saturating_add(body.len()) <= self.bytes_max;
                if fits {
                    self.waiting_bytes += body.len();
                }
                let held = (!fits).then_some(came);
                let deadline = (time_left > 0).then(|| deadline_after(now, time_left.into()));
                self.waiting.push_back(Arrived { id, body, deadline, cancelled, held });
                return Handled::Waits { is_held: !fits };
            }
            CallMessage::Reply { id, body } => {
                if let Some(tell) = self.made.handle_reply(id) {
                    let _ = tell.send(Ok(body));
                }
            }
            CallMessage::Refusal { id, refusal, words } => {
                if let Some(tell) = self.made.handle_reply(id) {
                    let _ = tell.send(Err((refusal, words)));
                }
            }
            CallMessage::Cancel { id } => {
                if let Some(cancel) = self.taken.handle_cancel(&id) {
                    cancel.send_replace(true);
                    if let Some(index) = self.waiting.iter().position(|arrived| arrived.id == id)
                        && let Some(arrived) = self.waiting.remove(index)
                    {
                        self.on_left(&arrived);
                    }
                }
            }
        }
        Handled::Done
    }
}

/// The outcome of a message about a call.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Handled {
    /// A call waits for a handler, and its message for an acknowledgement perhaps.
    Waits { is_held: bool },
    /// A caller has its outcome, which makes room for another call.
    Done,
    /// This is to be answered.
    Refuse(CallMessage),
    /// The same to a peer that makes more calls at once than was agreed.
    Exceeds(CallMessage),
}
