//! The calls of one session, in both directions.

use bytes::Bytes;
use fastdrop_proto::calls::{CALL_TIME_MAX, CallId, Calls, NotServed, Serving, deadline_after};
use fastdrop_proto::cnp::{CallMessage, CallRefusal};
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
}

/// Calls that were made and wait for a reply, and calls that came and wait for an answer.
#[derive(Debug)]
pub(super) struct CallTable {
    made: Calls<oneshot::Sender<Reply>>,
    /// Calls of the peer that have no answer, waiting or with a handler.
    taken: Serving<CallId, watch::Sender<bool>>,
    waiting: VecDeque<Arrived>,
    waiting_bytes: usize,
    bytes_max: usize,
    /// Nobody takes calls any more, for this reason.
    closed: Option<String>,
}

impl CallTable {
    /// So many calls of the peer are taken at once, and so many bytes of those that wait.
    pub(super) fn new(taken_max: usize, bytes_max: usize) -> Self {
        Self {
            made: Calls::new(0, 0),
            taken: Serving::new(taken_max),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            bytes_max,
            closed: None,
        }
    }

    /// The session is open, and its peer takes so many calls at once.
    pub(super) fn open(&mut self, made_max: usize) {
        self.made = Calls::new(0, made_max);
    }

    /// Bytes of calls that wait.
    pub(super) fn memory(&self) -> usize {
        self.waiting_bytes
    }

    /// A call is made, if there is room.
    pub(super) fn begin(&mut self, deadline: Option<Instant>) -> Option<(CallId, oneshot::Receiver<Reply>)> {
        let (tell, reply) = oneshot::channel();
        // Whoever waits gives up at its deadline.
        let deadline = deadline.unwrap_or_else(|| Instant::now() + CALL_TIME_MAX);
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
        self.waiting_bytes = 0;
        for cancel in self.taken.take_all() {
            cancel.send_replace(true);
        }
    }

    /// The next call for a handler.
    pub(super) fn take(&mut self) -> Option<Arrived> {
        let arrived = self.waiting.pop_front()?;
        self.waiting_bytes -= arrived.body.len();
        Some(arrived)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    /// No call is taken any more. Gives those that were waiting, which are to be refused.
    pub(super) fn close(&mut self, words: &str) -> Vec<CallId> {
        self.closed.get_or_insert_with(|| words.into());
        self.waiting_bytes = 0;
        let waiting: Vec<CallId> = self.waiting.drain(..).map(|arrived| arrived.id).collect();
        waiting.iter().for_each(|id| self.on_answered(*id));
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

    /// A message about a call came.
    pub(super) fn handle(&mut self, now: Instant, message: CallMessage) -> Handled {
        match message {
            CallMessage::Request { id, time_left, body } => {
                let no = |refusal, words: &str| {
                    Handled::Refuse(CallMessage::Refusal { id, refusal, words: words.into() })
                };
                if let Some(words) = &self.closed {
                    return no(CallRefusal::Unhandled, words);
                }
                let is_full = self.waiting_bytes.saturating_add(body.len()) > self.bytes_max;
                if is_full && !self.waiting.is_empty() {
                    return no(CallRefusal::Busy, "too many bytes of calls wait");
                }
                let (cancel, cancelled) = watch::channel(false);
                match self.taken.begin(id, cancel) {
                    Ok(()) => {}
                    Err(NotServed::Repeated) => return Handled::Done,
                    Err(NotServed::Busy(error)) => return no(CallRefusal::Busy, &error.to_string()),
                }
                self.waiting_bytes += body.len();
                let deadline = (time_left > 0).then(|| deadline_after(now, time_left.into()));
                self.waiting.push_back(Arrived { id, body, deadline, cancelled });
                return Handled::Waits;
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
                        self.waiting_bytes -= arrived.body.len();
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
    /// A call waits for a handler.
    Waits,
    /// A caller has its outcome, which makes room for another call.
    Done,
    /// This is to be answered.
    Refuse(CallMessage),
}
