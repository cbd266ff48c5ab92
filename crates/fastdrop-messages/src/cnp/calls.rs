//! Calls: requests, each of which has its own reply.

use super::call_table::Arrived;
use super::clock;
use super::error::Error;
use super::session::Session;
use crate::incoming::log_panic;
use bytes::Bytes;
use fastdrop_proto::calls::{CallId, remaining_ms};
use fastdrop_proto::cnp::{CallMessage, CallRefusal, SendError};
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::Instrument;

/// The reason for which a call has no reply.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The peer says no; its words are to be escaped before they are shown.
    #[error("the call has no reply: {words} ({})", refusal.as_str())]
    Refused {
        /// The kind of the reason.
        refusal: CallRefusal,
        /// The reason in words.
        words: String,
    },
    /// The deadline has passed; the peer is told that nobody waits any more.
    #[error("the call has no reply by its deadline")]
    Timeout,
    /// The peer's program knows no calls; nothing was sent.
    #[error("the peer's program knows no calls; send a message, and receive its answer")]
    NotKnown,
    /// The session is over, or the request cannot be sent. Whether the call was handled is not
    /// known if it had been sent.
    #[error(transparent)]
    Session(#[from] Error),
}

/// A call that this end has made. When it is dropped without a reply, the peer is told.
struct Made<'a> {
    session: &'a Session,
    id: CallId,
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        let shared = &self.session.0.shared;
        let mut state = shared.lock();
        if state.calls.forget(self.id) {
            // If that cannot be sent any more, nobody is there to be told.
            let _ = state.send_call(&CallMessage::Cancel { id: self.id });
            drop(state);
            shared.changed.notify_one();
            shared.progress.notify_waiters();
        }
    }
}

impl Session {
    /// Asks the peer, and waits for its reply, which is that of this call whatever else is under
    /// way; any number of clones may ask at once. At most as many calls are under way as the peer
    /// takes ([`Agreed::calls`](super::Agreed::calls)); more wait here. If this is dropped, the
    /// peer is told that nobody waits any more.
    ///
    /// # Errors
    ///
    /// [`CallError::NotKnown`] before anything is sent with a peer that knows no calls.
    pub async fn call(&self, request: impl Into<Bytes>) -> Result<Bytes, CallError> {
        self.call_until(request.into(), None).await
    }

    /// The same within a time, which travels with the request: a handler sees its deadline, and is
    /// dropped when it has passed.
    ///
    /// # Errors
    ///
    /// As [`Self::call`], and [`CallError::Timeout`].
    pub async fn call_within(&self, request: impl Into<Bytes>, time: Duration) -> Result<Bytes, CallError> {
        // A time that no clock reaches is none.
        let Some(deadline) = clock::now().checked_add(time) else { return self.call(request).await };
        let reply = self.call_until(request.into(), Some(deadline));
        tokio::time::timeout_at(deadline.into(), reply).await.unwrap_or(Err(CallError::Timeout))
    }

    /// The same until a deadline, for handlers that call others: [`Call::deadline`].
    ///
    /// # Errors
    ///
    /// As [`Self::call_within`].
    pub async fn call_by(&self, request: impl Into<Bytes>, deadline: Instant) -> Result<Bytes, CallError> {
        self.call_within(request, deadline.saturating_duration_since(clock::now())).await
    }

    async fn call_until(&self, body: Bytes, deadline: Option<Instant>) -> Result<Bytes, CallError> {
        if self.0.agreed.calls.is_none() {
            return Err(CallError::NotKnown);
        }
        let shared = &self.0.shared;
        let (made, reply) = loop {
            let waited = shared.progress.notified();
            let mut waited = std::pin::pin!(waited);
            {
                let mut state = shared.lock();
                if let Some(ending) = &state.ended {
                    return Err(Error::from(ending.clone()).into());
                }
                let can_send = state.session.can_send();
                if let Some((id, reply)) = can_send.then(|| state.calls.begin(deadline)).flatten() {
                    let made = Made { session: self, id };
                    let time_left = time_left(deadline);
                    let sent = state.send_call(&CallMessage::Request { id, time_left, body });
                    if sent.is_err() {
                        state.calls.forget(id);
                    }
                    drop(state);
                    sent.map_err(|error| self.failed(error))?;
                    shared.changed.notify_one();
                    break (made, reply);
                }
                waited.as_mut().enable();
            }
            waited.await;
        };
        let reply = reply.await;
        drop(made);
        match reply {
            Ok(Ok(body)) => Ok(body),
            Ok(Err((CallRefusal::Timeout, _))) => Err(CallError::Timeout),
            Ok(Err((refusal, words))) => Err(CallError::Refused { refusal, words }),
            Err(_) => Err(Error::from(self.ending()).into()),
        }
    }

    /// The next call of the peer; None when the session is over. Several may wait, and each call
    /// goes to one of them. Calls that nobody takes wait, up to the bound that was agreed; beyond
    /// the bytes that are kept of them (those of messages), the peer is held back until they are
    /// taken, with all that it sends.
    pub async fn next_call(&self) -> Option<Call> {
        let arrived = poll_fn(|cx| self.poll_call(cx)).await?;
        let Arrived { id, body, deadline, cancelled, .. } = arrived;
        Some(Call { session: self.clone(), id, body, deadline, cancelled, answered: false })
    }

    fn poll_call(&self, cx: &Context<'_>) -> Poll<Option<Arrived>> {
        let mut state = self.0.shared.lock();
        let (now, sent) = (clock::now(), state.receipts.given());
        let arrived = state.take_call(now);
        if state.acknowledge_freed(now) || state.receipts.given() != sent {
            self.0.shared.changed.notify_one();
        }
        if let Some(arrived) = arrived {
            return Poll::Ready(Some(arrived));
        }
        if state.ended.is_some() || state.calls.is_closed() {
            return Poll::Ready(None);
        }
        if !state.readers.iter().any(|reader| reader.will_wake(cx.waker())) {
            state.readers.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Answers the calls of the peer until the session is over, or [`Self::close_calls`]: at most
    /// `handlers` of them beside each other, while more wait. What the handler gives back is the
    /// reply, or the refusal in words. A handler is dropped when its deadline passes, or nobody
    /// waits any more.
    pub async fn serve_calls<F, Fut>(&self, handlers: usize, handler: F)
    where
        F: Fn(Request) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, String>> + Send,
    {
        let permits = Arc::new(Semaphore::new(handlers.clamp(1, Semaphore::MAX_PERMITS)));
        let mut running = JoinSet::new();
        loop {
            while let Some(result) = running.try_join_next() {
                log_panic(result);
            }
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { break };
            let Some(mut call) = self.next_call().await else { break };
            let handler = handler.clone();
            let handled = async move {
                let _permit = permit;
                let (session, body) = (call.session.clone(), call.request().clone());
                let handled = handler(Request { session, body, deadline: call.deadline() });
                let outcome = tokio::select! {
                    biased;
                    () = call.given_up() => None,
                    outcome = handled => Some(outcome),
                };
                match outcome {
                    Some(Ok(reply)) => call.reply(reply).await,
                    Some(Err(words)) => call.refuse(&words),
                    None => call.expire(),
                }
            };
            running.spawn(handled.instrument(self.0.shared.span.clone()));
        }
        // What was taken is answered; a panic of a handler refuses its call alone.
        while let Some(result) = running.join_next().await {
            log_panic(result);
        }
    }

    /// Takes no more calls: those that wait, and those that come, are refused in these words.
    pub fn close_calls(&self, words: &str) {
        let shared = &self.0.shared;
        let mut state = shared.lock();
        state.close_calls(words);
        state.wake_readers();
        drop(state);
        shared.changed.notify_one();
    }

    fn failed(&self, error: SendError) -> CallError {
        match error {
            SendError::NoCalls => CallError::NotKnown,
            SendError::TooLarge(error) => Error::TooLarge(error).into(),
            SendError::NotText => Error::NotText.into(),
            SendError::NotOpen | SendError::Over => Error::from(self.ending()).into(),
        }
    }
}

/// A call of the peer, as a handler has it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Request {
    /// The session that it came from.
    pub session: Session,
    /// The request.
    pub body: Bytes,
    /// The time by which the caller wants its reply, if it said so.
    pub deadline: Option<Instant>,
}

/// A call of the peer, to be answered. When it is dropped without an answer, the peer is told that
/// it was not handled.
#[derive(Debug)]
#[must_use = "a call that is dropped is refused"]
pub struct Call {
    session: Session,
    id: CallId,
    body: Bytes,
    deadline: Option<Instant>,
    cancelled: watch::Receiver<bool>,
    answered: bool,
}

impl Call {
    /// The request.
    pub fn request(&self) -> &Bytes {
        &self.body
    }

    /// The session that it came from.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The time by which the caller wants its reply, if it said so.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Waits until the deadline has passed, or nobody waits for the reply any more.
    pub async fn given_up(&mut self) {
        let expires = tokio::time::sleep_until(self.deadline.unwrap_or_else(clock::now).into());
        tokio::select! {
            _ = self.cancelled.wait_for(|cancelled| *cancelled) => {}
            () = expires, if self.deadline.is_some() => {}
        }
    }

    /// Replies, when there is room for the reply among what is sent. Nothing happens if the session
    /// is over, or nobody waits any more.
    pub async fn reply(mut self, reply: impl Into<Bytes>) {
        let body = reply.into();
        let shared = Arc::clone(&self.session.0.shared);
        let id = self.id;
        // Whatever becomes of the reply, the call is answered.
        loop {
            let waited = shared.progress.notified();
            let mut waited = std::pin::pin!(waited);
            {
                let mut state = shared.lock();
                if state.ended.is_some() || *self.cancelled.borrow() {
                    break;
                }
                if state.session.can_send() {
                    let answer = CallMessage::Reply { id, body: body.clone() };
                    if let Err(SendError::TooLarge(error)) = state.send_call(&answer) {
                        drop(state);
                        return self.refuse(&error.to_string());
                    }
                    break;
                }
                waited.as_mut().enable();
            }
            waited.await;
        }
        self.done();
    }

    /// Refuses, in words.
    pub fn refuse(mut self, words: &str) {
        self.answer(CallRefusal::Failed, words);
    }

    fn expire(mut self) {
        self.answer(CallRefusal::Timeout, "the deadline has passed");
    }

    fn answer(&mut self, refusal: CallRefusal, words: &str) {
        /// Bytes of a reason that the peer is told.
        const WORDS_MAX: usize = 512;
        let words = words.get(..words.floor_char_boundary(WORDS_MAX)).unwrap_or_default().to_owned();
        if !*self.cancelled.borrow() {
            let mut state = self.session.0.shared.lock();
            let _ = state.send_call(&CallMessage::Refusal { id: self.id, refusal, words });
        }
        self.done();
    }

    fn done(&mut self) {
        if !std::mem::replace(&mut self.answered, true) {
            let shared = &self.session.0.shared;
            shared.lock().calls.on_answered(self.id);
            shared.changed.notify_one();
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.answered {
            self.answer(CallRefusal::Unhandled, "the call was dropped before it was handled");
        }
    }
}

/// The milliseconds that travel with a request: at least 1 if it has a deadline, or else 0.
fn time_left(deadline: Option<Instant>) -> u32 {
    let left = |deadline| remaining_ms(clock::now(), deadline).max(1);
    deadline.map_or(0, |deadline| u32::try_from(left(deadline)).unwrap_or(u32::MAX))
}
