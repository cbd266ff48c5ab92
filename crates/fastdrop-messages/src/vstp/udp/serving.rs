//! Frames and calls in the hands of handlers, beside each other.

use super::calls::NotTaken;
use super::driver::{Fate, Handle, Received};
use crate::incoming::log_panic;
use crate::vstp::call::{self, Call, IncomingCall};
use crate::vstp::tcp::{Drained, Unhandled};
use crate::vstp::types::{ErrorCode, Flags, FrameType, VstpError};
use fastdrop_proto::calls::{CallId, deadline_after};
use fastdrop_proto::vstp::{CallRole, Failure, FrameBytes, HeadersBuf};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Handlers at once of frames that are no calls; beyond, frames wait in the endpoint, which is
/// bounded.
const HANDLERS_MAX: usize = 1024;

/// Gives every frame and call to `answer`, and what comes of it back, until `end`; then nothing
/// more is taken or acknowledged, and the handlers that run have `drain`. A frame is acknowledged
/// when its handler begins, and counted as unhandled until that is done.
pub(super) async fn serve<A, Fut>(
    handle: Arc<Handle>,
    end: impl Future<Output = ()>,
    drain: Duration,
    answer: A,
) -> Result<Drained, VstpError>
where
    A: Fn(Call) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Option<Result<FrameBytes, VstpError>>> + Send,
{
    let permits = Arc::new(Semaphore::new(HANDLERS_MAX));
    let unhandled = Unhandled::default();
    let mut handlers = JoinSet::new();
    tokio::pin!(end);
    loop {
        while let Some(result) = handlers.try_join_next() {
            log_panic(result);
        }
        // A frame is taken and acknowledged when there is a handler for it, in one step.
        let next = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            handle.take().await.map(|received| (permit, received))
        };
        let (permit, received) = tokio::select! {
            // Nothing new is acknowledged after the word.
            biased;
            () = &mut end => break,
            next = next => next?,
        };
        handle.shared().decide(&received, &Fate::Acknowledged);
        let Received { from, frame, wanted, .. } = received;
        let held = Held { handle: Arc::clone(&handle), from, frame: frame.clone() };
        let acknowledged = wanted.is_some();
        let is_unique = wanted.is_some_and(|wanted| wanted.is_of_unique_number());
        if let Some(CallRole::Request(id, ms)) = CallRole::of(&frame.as_ref()).filter(|_| is_unique) {
            drop(permit);
            let deadline = ms.map(|ms| deadline_after(Instant::now(), ms));
            let cancelled = match handle.take_call(from, id) {
                Ok(cancelled) => cancelled,
                Err(NotTaken::Unwanted) => continue,
                Err(NotTaken::Busy(error)) => {
                    held.refuse(id, ErrorCode::Busy, &error.to_string());
                    continue;
                }
            };
            let (answer, asked) = (answer.clone(), Call { frame, from, deadline });
            let call = IncomingCall { id, deadline, cancelled };
            let handled = call::handle(call, async move {
                let answered = answer(asked).await;
                answered.unwrap_or_else(|| Err(VstpError::Protocol("this is no request here".into())))
            });
            // It is acknowledged, and so counted, before its task has its first turn.
            let handled = unhandled.count(acknowledged, handled);
            let unanswered = Unanswered { held, id, is_over: false };
            handlers.spawn(async move { unanswered.reply(handled).await });
            continue;
        }
        answer_greeting(&handle, &frame, from);
        let (answer, asked) = (answer.clone(), Call { frame, from, deadline: None });
        let handled = async move { answer(asked).await };
        let handled = unhandled.count(acknowledged, handled);
        handlers.spawn(async move {
            let _permit = permit;
            match handled.await {
                Some(Ok(frame)) => {
                    if let Err(failure) = held.handle.send(frame, from, false).await {
                        tracing::debug!(peer = %from, %failure, "an answer did not arrive");
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(peer = %from, %error, "a frame that is no call was not handled");
                }
                None => {}
            }
        });
    }
    let all = async {
        while let Some(result) = handlers.join_next().await {
            log_panic(result);
        }
    };
    let _ = tokio::time::timeout(drain, all).await;
    Ok(unhandled.report())
}

/// Answers a HELLO or PING, and nothing else. Nothing waits for the answer to leave, and one that
/// does not fit a datagram of 1,200 bytes is not sent.
pub(super) fn answer_greeting(handle: &Handle, frame: &FrameBytes, from: SocketAddr) {
    let answer = match frame.typ {
        FrameType::Hello => FrameBytes::new(FrameType::Welcome, HeadersBuf::default(), bytes::Bytes::new()),
        FrameType::Ping => {
            let mut pong = frame.clone();
            (pong.typ, pong.flags) = (FrameType::Pong, frame.flags & Flags::COMP);
            pong
        }
        _ => return,
    };
    handle.answer(answer, from);
}

/// A frame in the hands of its handler, which counts until that is done among what its address has.
struct Held {
    handle: Arc<Handle>,
    from: SocketAddr,
    frame: FrameBytes,
}

impl Held {
    /// Says why there is no reply. Nothing waits for that word, and it is not sent again, so that
    /// nobody makes words wait without bound.
    fn refuse(&self, id: CallId, code: ErrorCode, reason: &str) {
        self.handle.answer(CallRole::refusal(id, code, reason), self.from);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.handle.shared().release(self.from, &self.frame);
    }
}

/// A call that has its place until its reply has arrived.
struct Unanswered {
    held: Held,
    id: CallId,
    /// There is a reply, or nobody wants one.
    is_over: bool,
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        let handle = &self.held.handle;
        // By a panic, say, or at the end of the server.
        if !self.is_over && handle.begin_reply(self.held.from, self.id) {
            self.held.refuse(self.id, ErrorCode::Unhandled, "the handler has failed");
        }
        handle.finish_call(self.held.from, self.id);
    }
}

impl Unanswered {
    async fn reply(mut self, handler: impl Future<Output = Option<FrameBytes>>) {
        let frame = handler.await;
        self.is_over = true;
        let (handle, from, id) = (&self.held.handle, self.held.from, self.id);
        let is_wanted = handle.begin_reply(from, id);
        let Some(frame) = frame.filter(|_| is_wanted) else { return };
        let sent = match CallRole::reply(&frame, id) {
            Ok(reply) => handle.send(reply, from, true).await,
            Err(error) => Err(Failure::Frame(error)),
        };
        match sent {
            Ok(()) => {}
            Err(failure @ (Failure::TimedOut | Failure::Unreachable(_))) => {
                tracing::debug!(peer = %from, %failure, "a reply did not arrive");
            }
            Err(failure) => {
                let reason = format!("the reply was not taken: {failure}");
                let refusal = CallRole::refusal(id, ErrorCode::Unhandled, &reason);
                if let Err(failure) = handle.send(refusal, from, true).await {
                    tracing::debug!(peer = %from, %failure, "a refusal did not arrive");
                }
            }
        }
    }
}
