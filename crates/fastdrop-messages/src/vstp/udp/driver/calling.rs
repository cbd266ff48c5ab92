//! Calls: their requests, and the way of their replies to whoever waits.

use super::{Handle, NotTaken, Shared, State, Told};
use crate::addresses::canonical;
use crate::vstp::call::result_of;
use crate::vstp::types::VstpError;
use fastdrop_proto::calls::{CALL_TIME_MAX, CallId, remaining_ms};
use fastdrop_proto::vstp::{CallRole, Failure, FrameBytes};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

impl Handle {
    /// Sends a request, and waits for its reply.
    ///
    /// # Errors
    ///
    /// The request failed, the peer says what went wrong there, or the time is over.
    pub(crate) async fn call(
        &self,
        request: FrameBytes,
        to: SocketAddr,
        time: Duration,
    ) -> Result<FrameBytes, VstpError> {
        let to = canonical(to);
        self.shared.carrier.check(to)?;
        let deadline = Instant::now() + time.min(CALL_TIME_MAX);
        let reply = async {
            let turns = Arc::clone(&self.shared.turns);
            let turn = turns.acquire_owned().await.map_err(|_| VstpError::ConnectionClosed)?;
            let (outstanding, reply) = self.begin_call(&request, to, deadline, turn)?;
            let reply = reply.await.map_err(|_| VstpError::ConnectionClosed)?;
            drop(outstanding);
            reply
        };
        let reply = tokio::time::timeout_at(deadline.into(), reply).await;
        result_of(reply.unwrap_or(Err(VstpError::Timeout))?)
    }

    fn begin_call(
        &self,
        request: &FrameBytes,
        to: SocketAddr,
        deadline: Instant,
        turn: OwnedSemaphorePermit,
    ) -> Result<(Outstanding<'_>, oneshot::Receiver<Result<FrameBytes, VstpError>>), VstpError> {
        let mut state = self.shared.lock();
        if state.broken.is_some() {
            return Err(VstpError::ConnectionClosed);
        }
        let begun = state.calls.begin(to, deadline);
        let (id, reply) = begun.map_err(|error| VstpError::Protocol(error.to_string()))?;
        let (now, turn) = (Instant::now(), Arc::new(turn));
        match CallRole::request(request, id, remaining_ms(now, deadline)) {
            Ok(request) => {
                let send = state.endpoint.send(now, to, request, true);
                // Its turn lasts until its request has an outcome, too.
                let told = Told::Caller { id, _turn: Arc::clone(&turn) };
                state.waiting.insert(send, (to, told));
                self.shared.pump(&mut state);
            }
            Err(error) => state.calls.fail(id, error.into()),
        }
        drop(state);
        Ok((Outstanding { shared: &self.shared, to, id, _turn: turn }, reply))
    }

    /// Replies to calls that nobody was waiting for, which were dropped.
    pub(in crate::vstp::udp) fn unknown_replies(&self) -> u64 {
        self.shared.lock().calls.unknown_replies()
    }

    /// A call that came is to be handled. Gives what ends when nobody waits for its reply any more.
    pub(in crate::vstp::udp) fn take_call(
        &self,
        from: SocketAddr,
        id: CallId,
    ) -> Result<oneshot::Receiver<()>, NotTaken> {
        self.shared.lock().calls.take(from, id)
    }

    /// The handler of a call is done. False: nobody wants its reply.
    pub(in crate::vstp::udp) fn begin_reply(&self, from: SocketAddr, id: CallId) -> bool {
        self.shared.lock().calls.begin_reply(from, id)
    }

    /// A call is over, and its reply has arrived or will not.
    pub(in crate::vstp::udp) fn finish_call(&self, from: SocketAddr, id: CallId) {
        self.shared.lock().calls.finish(from, id);
    }
}

impl Shared {
    /// Nobody waits for the reply to a call any more: its handler is told, if the word arrives.
    fn give_up(&self, to: SocketAddr, call: CallId) {
        let mut state = self.lock();
        if state.calls.forget(call) && state.broken.is_none() {
            state.endpoint.send(Instant::now(), to, CallRole::cancellation(call), false);
            self.pump(&mut state);
        }
    }
}

impl State {
    /// The request of a call has failed: its caller is told, and the peer as well if it may have
    /// the request nevertheless.
    pub(super) fn fail_call(&mut self, to: SocketAddr, id: CallId, failure: Failure) {
        if failure == Failure::TimedOut && self.calls.is_outstanding(id) {
            self.endpoint.send(Instant::now(), to, CallRole::cancellation(id), false);
        }
        self.calls.fail(id, failure.into());
    }

    /// Gives replies to their callers, and cancellations to handlers.
    pub(super) fn take_of_calls(&mut self) {
        while let Some((from, frame, wanted)) = self.endpoint.poll_of_call() {
            let now = Instant::now();
            self.endpoint.handle_taken(now, from, &frame);
            if let Some(wanted) = wanted {
                self.endpoint.acknowledge(now, from, wanted);
            }
            self.calls.handle(from, frame);
        }
    }
}

/// A call that waits for its reply. When it is dropped before, its handler is told.
struct Outstanding<'a> {
    shared: &'a Shared,
    to: SocketAddr,
    id: CallId,
    _turn: Arc<OwnedSemaphorePermit>,
}

impl Drop for Outstanding<'_> {
    fn drop(&mut self) {
        self.shared.give_up(self.to, self.id);
    }
}
