//! A server's side of one connection: calls beside each other, other frames one after the other.

use super::orders::Control;
use super::session::Session;
use crate::incoming::log_panic;
use crate::shutdown::ShutdownSignal;
use crate::vstp::call::{self, Call, IncomingCall};
use crate::vstp::types::{FrameType, VstpError};
use fastdrop_proto::calls::CallId;
use fastdrop_proto::vstp::FrameBytes;
use std::future::Future;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Frames that are no calls, and wait for their turn.
const PLAIN_MAX: usize = 16;

/// Gives every call to `answer`, and its reply back; other DATA frames as well, one after the other,
/// and what comes of them in a frame that is no reply. Ends when the peer has ended or the server
/// does, and all handlers are done.
pub(crate) async fn serve_session<A, Fut>(
    session: Session,
    mut signal: ShutdownSignal,
    answer: Arc<A>,
) -> Result<(), VstpError>
where
    A: Fn(Call) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Option<Result<FrameBytes, VstpError>>> + Send,
{
    let mut handlers = JoinSet::new();
    let (plain, plainly) = mpsc::channel(PLAIN_MAX);
    let (plain_session, plain_answer) = (session.clone(), Arc::clone(&answer));
    handlers.spawn(async move { answer_plain(plain_session, plainly, plain_answer).await });
    let ended = loop {
        while let Some(result) = handlers.try_join_next() {
            log_panic(result);
        }
        let taken = tokio::select! {
            biased;
            () = signal.wait() => break Ok(()),
            taken = session.take() => taken,
        };
        let (frame, wanted, call) = match taken {
            Ok(Some(taken)) => taken,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        // Whoever has it is waited for: it is acknowledged, and before its reply.
        let acknowledge = || {
            if let Some(wanted) = wanted {
                session.control(Control::Acknowledge(wanted));
            }
        };
        match call {
            Some(incoming) => {
                acknowledge();
                let guard = Unanswered { session: session.clone(), id: Some(incoming.id) };
                let answer = Arc::clone(&answer);
                handlers.spawn(async move { answer_call(guard, frame, incoming, answer).await });
            }
            None if frame.typ == FrameType::Data => {
                // Its turn is not waited for beyond the end.
                let place = tokio::select! {
                    biased;
                    () = signal.wait() => break Ok(()),
                    place = plain.reserve() => place,
                };
                if let Ok(place) = place {
                    acknowledge();
                    place.send(frame);
                }
            }
            None => acknowledge(),
        }
    };
    drop(plain);
    while let Some(result) = handlers.join_next().await {
        log_panic(result);
    }
    ended?;
    session.close().await
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

async fn answer_plain<A, Fut>(session: Session, mut frames: mpsc::Receiver<FrameBytes>, answer: Arc<A>)
where
    A: Fn(Call) -> Fut,
    Fut: Future<Output = Option<Result<FrameBytes, VstpError>>>,
{
    while let Some(frame) = frames.recv().await {
        let call = Call { frame, from: session.peer_addr(), deadline: None };
        let sent = match answer(call).await {
            Some(Ok(reply)) => session.send_bytes(reply).await,
            Some(Err(error)) => {
                tracing::debug!(%error, "a frame that is no call was not handled");
                Ok(())
            }
            None => Ok(()),
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "an answer was not sent");
            return;
        }
    }
}
