//! Frames and calls in the hands of handlers, beside each other.

use super::VstpUdpServer;
use super::driver::{Fate, Received};
use crate::incoming::log_panic;
use crate::vstp::call::{self, Call, IncomingCall};
use crate::vstp::held::Budget;
use crate::vstp::tcp::{Drained, Unhandled};
use crate::vstp::types::{ErrorCode, VstpError};
use fastdrop_proto::calls::{CallId, NotServed, deadline_after};
use fastdrop_proto::vstp::{CallRole, Failure, FrameBytes};
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
pub(crate) async fn serve<A, Fut>(
    server: VstpUdpServer,
    end: impl Future<Output = ()>,
    drain: Duration,
    answer: A,
) -> Result<Drained, VstpError>
where
    A: Fn(Call) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Option<Result<FrameBytes, VstpError>>> + Send,
{
    let permits = Arc::new(Semaphore::new(HANDLERS_MAX));
    let budget = Budget::new(server.handle.held_max());
    let unhandled = Unhandled::default();
    let server = Arc::new(server);
    let mut handlers = JoinSet::new();
    tokio::pin!(end);
    loop {
        while let Some(result) = handlers.try_join_next() {
            log_panic(result);
        }
        // A frame is taken and acknowledged when there is a handler for it, in one step.
        let next = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            budget.room().await;
            server.handle.take().await.map(|received| (permit, received))
        };
        let (permit, received) = tokio::select! {
            // Nothing new is acknowledged after the word.
            biased;
            () = &mut end => break,
            next = next => next?,
        };
        server.handle.shared().settle(&received, &Fate::Acknowledged);
        let Received { from, frame, wanted, .. } = received;
        let acknowledged = wanted.is_some();
        let held = budget.hold(&frame);
        let is_unique = wanted.is_some_and(|wanted| wanted.is_of_unique_number());
        if let Some(CallRole::Request(id, ms)) = CallRole::of(&frame.as_ref()).filter(|_| is_unique) {
            drop(permit);
            let deadline = ms.map(|ms| deadline_after(Instant::now(), ms));
            let cancelled = match server.handle.take_call(from, id) {
                Ok(cancelled) => cancelled,
                Err(NotServed::Repeated) => continue,
                Err(NotServed::Busy(error)) => {
                    let refusal = CallRole::refusal(id, ErrorCode::Busy, &error.to_string());
                    server.handle.answer(refusal, from, true);
                    continue;
                }
            };
            let unanswered = Unanswered { server: Arc::clone(&server), from, id };
            let (answer, asked) = (answer.clone(), Call { frame, from, deadline });
            let answered = async move { answer(asked).await };
            let call = IncomingCall { id, deadline, cancelled };
            // It is acknowledged, and so counted, before its task has its first turn.
            let handled = unhandled.count(acknowledged, reply(unanswered, call, answered));
            handlers.spawn(async move {
                let _held = held;
                handled.await;
            });
            continue;
        }
        server.answer(&frame, from);
        let (answer, asked) = (answer.clone(), Call { frame, from, deadline: None });
        let sender = Arc::clone(&server);
        let handled = async move {
            match answer(asked).await {
                Some(Ok(frame)) => {
                    if let Err(failure) = sender.handle.send(frame, from, false).await {
                        tracing::debug!(%from, %failure, "an answer did not arrive");
                    }
                }
                Some(Err(error)) => tracing::debug!(%from, %error, "a frame that is no call was not handled"),
                None => {}
            }
        };
        let handled = unhandled.count(acknowledged, handled);
        handlers.spawn(async move {
            let _permit = permit;
            let _held = held;
            handled.await;
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

/// Says that there is no reply when the handler is dropped, by a panic say.
struct Unanswered {
    server: Arc<VstpUdpServer>,
    from: SocketAddr,
    id: CallId,
}

impl Unanswered {
    fn refuse(&self, code: ErrorCode, reason: &str) {
        self.server.handle.answer(CallRole::refusal(self.id, code, reason), self.from, true);
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if self.server.handle.finish_call(self.from, self.id) {
            self.refuse(ErrorCode::Unhandled, "the handler has failed");
        }
    }
}

async fn reply(
    guard: Unanswered,
    call: IncomingCall,
    answered: impl Future<Output = Option<Result<FrameBytes, VstpError>>>,
) {
    let id = call.id;
    let handler = async {
        answered.await.unwrap_or_else(|| Err(VstpError::Protocol("this is no request here".into())))
    };
    let frame = call::handle(call, handler).await;
    let handle = &guard.server.handle;
    let is_wanted = handle.finish_call(guard.from, id);
    let Some(frame) = frame.filter(|_| is_wanted) else { return };
    let sent = match CallRole::reply(&frame, id) {
        Ok(reply) => handle.send(reply, guard.from, true).await,
        Err(error) => Err(Failure::Frame(error)),
    };
    match sent {
        Ok(()) => {}
        Err(failure @ (Failure::TimedOut | Failure::Unreachable(_))) => {
            tracing::debug!(from = %guard.from, %failure, "a reply did not arrive");
        }
        Err(failure) => guard.refuse(ErrorCode::Unhandled, &format!("the reply was not taken: {failure}")),
    }
}
