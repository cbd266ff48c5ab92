//! A server's side of one connection: calls beside each other, other frames one after the other.

use super::session::Session;
use super::unhandled::Unhandled;
use crate::incoming::log_panic;
use crate::shutdown::ShutdownSignal;
use crate::vstp::call::{self, Call, IncomingCall};
use crate::vstp::held::{Budget, Held};
use crate::vstp::types::{ErrorCode, Frame, FrameType, VstpError};
use fastdrop_proto::calls::CallId;
use fastdrop_proto::vstp::{Acknowledgement, FrameBytes};
use std::future::Future;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::Instrument;

/// Frames that are no calls, and wait for their turn.
const PLAIN_MAX: usize = 16;

/// A frame that is no call, the acknowledgement that it asks for, and its part of the bound.
type Plain = (FrameBytes, Option<Acknowledgement>, Held);

/// Gives every call to `answer`, and its reply back; other DATA frames as well, one after the
/// other, and what comes of them in a frame that is no reply. Ends when the peer has ended or the
/// server does, and all handlers are done. A frame is acknowledged when its handler begins, and
/// counted as unhandled until that is done.
pub(crate) async fn serve_session<A, Fut>(
    session: Session,
    mut signal: ShutdownSignal,
    answer: Arc<A>,
    unhandled: Unhandled,
) -> Result<(), VstpError>
where
    A: Fn(Call) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Option<Result<FrameBytes, VstpError>>> + Send,
{
    let mut handlers = JoinSet::new();
    let (plain, plainly) = mpsc::channel(PLAIN_MAX);
    handlers.spawn({
        let (session, signal, answer) = (session.clone(), signal.clone(), Arc::clone(&answer));
        let unhandled = unhandled.clone();
        let answering = async move { answer_plain(session, signal, plainly, answer, unhandled).await };
        answering.in_current_span()
    });
    let budget = Budget::new(session.unread_max());
    let ended = loop {
        while let Some(result) = handlers.try_join_next() {
            log_panic(result);
        }
        let taken = tokio::select! {
            biased;
            () = signal.wait() => break Ok(()),
            // Its handler has panicked, or its answers reach nobody.
            () = plain.closed() => break Err(VstpError::Protocol(HANDLER_ENDED.into())),
            taken = async {
                budget.room().await;
                session.take().await
            } => taken,
        };
        let (frame, wanted, call) = match taken {
            Ok(Some(taken)) => taken,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        let held = budget.hold(&frame);
        match call {
            // Whoever has it is waited for: it is acknowledged, and before its reply.
            Some(incoming) => {
                let Some(acknowledged) = begin(&session, wanted) else { continue };
                let guard = Unanswered { session: session.clone(), id: Some(incoming.id) };
                let (answer, unhandled) = (Arc::clone(&answer), unhandled.clone());
                let handled = async move {
                    let _held = held;
                    unhandled.count(acknowledged, answer_call(guard, frame, incoming, answer)).await;
                };
                handlers.spawn(handled.in_current_span());
            }
            None if frame.typ == FrameType::Data => {
                // Its turn is not waited for beyond the end.
                let place = tokio::select! {
                    biased;
                    () = signal.wait() => break Ok(()),
                    place = plain.reserve() => place,
                };
                // Otherwise that is seen above.
                if let Ok(place) = place {
                    place.send((frame, wanted, held));
                }
            }
            None => _ = begin(&session, wanted),
        }
    };
    drop(plain);
    if let Err(VstpError::Protocol(reason)) = &ended {
        let said = Frame::new(FrameType::Err).with_header("code", ErrorCode::Unhandled.as_str());
        if let Err(error) = session.send(said.with_header("reason", reason)).await {
            tracing::debug!(%error, "the peer was not told that a handler has ended");
        }
    }
    while let Some(result) = handlers.join_next().await {
        log_panic(result);
    }
    ended?;
    session.close().await
}

/// The reason for which a session ends whose frames nobody handles any more.
const HANDLER_ENDED: &str = "the handler of a frame has failed; no frame after it is handled";

/// Acknowledges a frame that is handled from now on; true if its sender wants that. None if it is
/// not to be handled, as it was already.
fn begin(session: &Session, wanted: Option<Acknowledgement>) -> Option<bool> {
    if !session.claim(wanted) {
        return None;
    }
    let Some(wanted) = wanted else { return Some(false) };
    session.acknowledge(wanted);
    Some(true)
}

/// Says that there is no reply when the handler is dropped, by a panic say.
struct Unanswered {
    session: Session,
    id: Option<CallId>,
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.session.abandon(id);
        }
    }
}

async fn answer_call<A, Fut>(mut guard: Unanswered, frame: FrameBytes, incoming: IncomingCall, answer: Arc<A>)
where
    A: Fn(Call) -> Fut,
    Fut: Future<Output = Option<Result<FrameBytes, VstpError>>>,
{
    let (id, deadline) = (incoming.id, incoming.deadline);
    let answered = answer(Call { frame, from: guard.session.peer_addr(), deadline });
    let handler = async {
        answered.await.unwrap_or_else(|| Err(VstpError::Protocol("this is no request here".into())))
    };
    let reply = call::handle(incoming, handler).await;
    if let Some(reply) = reply
        && let Err(error) = guard.session.reply(id, reply).await
    {
        tracing::debug!(%error, "a reply was not sent");
    }
    guard.id = None;
}

async fn answer_plain<A, Fut>(
    session: Session,
    mut signal: ShutdownSignal,
    mut frames: mpsc::Receiver<Plain>,
    answer: Arc<A>,
    unhandled: Unhandled,
) where
    A: Fn(Call) -> Fut,
    Fut: Future<Output = Option<Result<FrameBytes, VstpError>>>,
{
    loop {
        let next = tokio::select! {
            // Nothing new is acknowledged after the word.
            biased;
            () = signal.wait() => return,
            next = frames.recv() => next,
        };
        let Some((frame, wanted, _held)) = next else { return };
        let Some(acknowledged) = begin(&session, wanted) else { continue };
        let handled = async {
            let call = Call { frame, from: session.peer_addr(), deadline: None };
            match answer(call).await {
                Some(Ok(reply)) => session.send_bytes(reply).await,
                Some(Err(error)) => {
                    tracing::debug!(%error, "a frame that is no call was not handled");
                    Ok(())
                }
                None => Ok(()),
            }
        };
        let sent = unhandled.count(acknowledged, handled).await;
        if let Err(error) = sent {
            tracing::debug!(%error, "an answer was not sent");
            return;
        }
    }
}
