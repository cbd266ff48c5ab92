//! The task that reads and writes for the callers of a [`Session`](super::Session).

use super::connection::{Connection, random};
use super::orders::{Control, Lost, Order, Outcomes, Outgoing, Shared, Told};
use crate::vstp::call::IncomingCall;
use crate::vstp::held::Held;
use crate::vstp::types::VstpError;
use fastdrop_proto::calls::{CallId, Calls, NotServed, Serving, deadline_after, remaining_ms};
use fastdrop_proto::vstp::{Acknowledgement, CallRole, ErrorCode, FrameBytes, FrameType, MSG_ID};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// The reason for which a turn was the last one.
enum End {
    /// Nobody is left who could send or receive.
    Released,
    /// Nothing can be written any more.
    Write(io::Error),
    /// Something of the peer makes no sense, or does not come.
    Read(VstpError),
}

/// A connection, and everybody who waits for something of it.
pub(super) struct Driver {
    connection: Connection,
    orders: mpsc::Receiver<Order>,
    controls: mpsc::UnboundedReceiver<Control>,
    shared: Arc<Shared>,
    /// The ends of frames that are to be written, and who is told then.
    writing: VecDeque<(u64, Told<()>)>,
    /// The ends of frames that nobody waits for, and their parts of the bound for such.
    pushing: VecDeque<(u64, Held)>,
    acknowledging: HashMap<u64, Told<()>>,
    /// Numbers that others have chosen, and who is told their outcomes.
    numbered: HashMap<u64, Outcomes>,
    /// The peer has said that a frame is larger than it takes.
    too_large: bool,
    /// Bytes of the largest frame that was no numbered one.
    unnumbered_max: usize,
    calls: Calls<Told<FrameBytes>>,
    /// Calls of the peer, and what tells their handlers of a cancellation.
    serving: Option<Serving<CallId, oneshot::Sender<()>>>,
    closing: Option<Told<()>>,
    is_closed: bool,
    /// Nothing more comes.
    has_read_all: bool,
    /// This end connected: when the peer has ended, it has nothing to write to it.
    connected: bool,
    released: bool,
    /// Nobody is left who could take frames.
    unwanted: bool,
    /// This turn was put off once, for others to give their orders.
    has_yielded: bool,
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.orders.close();
        while let Ok(order) = self.orders.try_recv() {
            if order.is_message() && !order.is_given_up() {
                self.connection.on_not_taken();
            }
        }
    }
}

impl Driver {
    /// Bytes that are read before anybody has asked for them.
    const READ_AHEAD: usize = 256 << 10;
    /// The time for which the peer may go on sending after this end has closed, so that it is not
    /// reset before it has read everything.
    const LINGER: Duration = Duration::from_secs(5);

    pub(super) fn new(
        connection: Connection,
        orders: mpsc::Receiver<Order>,
        controls: mpsc::UnboundedReceiver<Control>,
        shared: Arc<Shared>,
        serves: bool,
    ) -> Self {
        let calls_max = connection.config().calls_max;
        Self {
            connected: connection.session_id() == 0,
            connection,
            orders,
            controls,
            shared,
            writing: VecDeque::new(),
            pushing: VecDeque::new(),
            acknowledging: HashMap::new(),
            numbered: HashMap::new(),
            too_large: false,
            unnumbered_max: 0,
            calls: Calls::new(random() >> 1, calls_max),
            serving: serves.then(|| Serving::new(calls_max)),
            closing: None,
            is_closed: false,
            has_read_all: false,
            released: false,
            unwanted: false,
            has_yielded: false,
        }
    }

    pub(super) async fn run(mut self) {
        match poll_fn(|cx| self.poll_turn(cx)).await {
            End::Released => {}
            End::Write(error) => {
                let error = self.connection.refusal_after(error).await;
                self.hand_on();
                self.say_lost(&error.to_string());
                self.end(error);
            }
            End::Read(error) => {
                self.say_lost(&error.to_string());
                self.connection.say_error(&error).await;
                let error = self.connection.explained(error);
                self.end(error);
            }
        }
        if self.is_closed && !self.has_read_all {
            self.connection.discard(Self::LINGER).await;
        }
    }

    /// The connection is lost: everybody who waits is told, the first one why.
    fn end(&mut self, error: VstpError) {
        let reason = match &error {
            VstpError::ServerError(reason) => Some(reason.clone()),
            _ => None,
        };
        let mut error = Some(error);
        let mut next = || match (error.take(), &reason) {
            (Some(error), _) => error,
            (None, Some(reason)) => VstpError::ServerError(reason.clone()),
            (None, None) => VstpError::ConnectionClosed,
        };
        let writing = self.writing.drain(..).map(|(_, told)| told).chain(self.closing.take());
        writing.for_each(|told| drop(told.send(Err(next()))));
        for (msg_id, told) in self.acknowledging.drain() {
            self.connection.forget(msg_id);
            let _ = told.send(Err(next()));
        }
        let failure = error;
        self.end_reading(failure);
    }

    /// Whoever may connect again hears it before the peer is told anything.
    fn say_lost(&mut self, reason: &str) {
        let too_large = self.too_large.then_some(self.unnumbered_max);
        let lost = Lost { reason: reason.to_owned(), too_large };
        self.shared.lock().lost.get_or_insert(lost);
        self.shared.lost.notify_one();
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            let mut goes_on = false;
            while let Poll::Ready(Some(control)) = self.controls.poll_recv(cx) {
                self.handle_control(control);
                goes_on = true;
            }
            let ordered = self.poll_orders(cx);
            if ordered && self.has_others() && !std::mem::replace(&mut self.has_yielded, true) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.has_yielded = false;
            goes_on |= ordered;
            let had_room = self.has_room();
            if let Poll::Ready(Err(error)) = self.poll_write(cx) {
                return Poll::Ready(End::Write(error));
            }
            // Orders have not been asked for since there is room again.
            goes_on |= !had_room && self.has_room();
            match self.poll_read(cx) {
                Ok(came) => goes_on |= came,
                Err(error) => return Poll::Ready(End::Read(error)),
            }
            if self.released && (self.is_closed || self.has_read_all) && self.connection.outbox().is_idle() {
                return Poll::Ready(End::Released);
            }
            if !goes_on {
                return Poll::Pending;
            }
        }
    }

    // ---- what callers want ----

    fn poll_orders(&mut self, cx: &mut Context<'_>) -> bool {
        let mut goes_on = false;
        while self.has_room() {
            match self.orders.poll_recv(cx) {
                Poll::Ready(Some(order)) => {
                    // What its caller has acknowledged before goes out before it.
                    while let Ok(control) = self.controls.try_recv() {
                        self.handle_control(control);
                    }
                    self.connection.push_answers();
                    let is_numbered = matches!(order, Order::Numbered(..));
                    let before = self.connection.outbox().end();
                    self.handle_order(order);
                    if !is_numbered {
                        let pushed = self.connection.outbox().end().saturating_sub(before);
                        self.unnumbered_max = self.unnumbered_max.max(pushed as usize);
                    }
                }
                Poll::Ready(None) => {
                    self.release();
                    break;
                }
                Poll::Pending => break,
            }
            goes_on = true;
        }
        goes_on
    }

    /// Returns true if others who are ready may have something to write as well: then it leaves
    /// together, in one call of the system.
    fn has_others(&self) -> bool {
        let handling = self.serving.as_ref().map_or(0, Serving::handling);
        self.has_room() && self.calls.outstanding() + handling > 1
    }

    /// Returns true if one more frame may be put in line to be written.
    fn has_room(&self) -> bool {
        self.connection.outbox().len() < Connection::OUTBOX_MAX
    }

    /// The last caller is gone.
    fn release(&mut self) {
        if !std::mem::replace(&mut self.released, true) && !self.is_closed && !self.has_read_all {
            let (told, _) = oneshot::channel();
            self.handle_order(Order::Close(told));
        }
    }

    fn handle_order(&mut self, order: Order) {
        // Nothing that was given up is written.
        if order.is_given_up() {
            return;
        }
        let is_over = self.is_closed || self.closing.is_some() || (self.has_read_all && self.connected);
        let is_answered = matches!(order, Order::Call(..) | Order::Deliver(..));
        if order.is_message() && (is_over || (is_answered && self.has_read_all)) {
            self.connection.on_not_taken();
        }
        match order {
            Order::Call(frame, deadline, told) if !is_over && !self.has_read_all => {
                self.call(frame, deadline, told);
            }
            Order::Deliver(frame, told) if !is_over && !self.has_read_all => self.deliver(frame, told),
            Order::Numbered(leaving, outcomes) if !is_over && !self.has_read_all => {
                if let Err(error) = self.connection.push_expected(&leaving.frame, leaving.number) {
                    let _ = outcomes.send((leaving.number, Err(error.to_string())));
                } else {
                    self.numbered.insert(leaving.number, outcomes);
                }
            }
            Order::Numbered(..) => {}
            Order::Call(_, _, told) => drop(told.send(Err(VstpError::ConnectionClosed))),
            Order::Deliver(_, told) => drop(told.send(Err(VstpError::ConnectionClosed))),
            Order::Reply(id, frame, told) => {
                let wanted = self.serving.as_mut().is_some_and(|serving| serving.finish(&id));
                if !wanted || is_over {
                    return drop(told.send(Ok(())));
                }
                let pushed = CallRole::reply(&frame, id).map_err(VstpError::from);
                let pushed = pushed.and_then(|reply| self.connection.push_bytes(&reply));
                self.tell_when_written(pushed, told);
            }
            Order::Send(_, told) | Order::Feed(_, told) | Order::Hello(told) if is_over => {
                let _ = told.send(Err(VstpError::ConnectionClosed));
            }
            Order::Send(frame, told) => {
                let pushed = self.push(frame);
                self.tell_when_written(pushed, told);
            }
            Order::Feed(frame, told) => drop(told.send(self.push(frame))),
            Order::Push(frame, held) => {
                // It was encodable when it was made: nothing but a lost connection is in its way.
                if !is_over && let Err(error) = self.connection.push_bytes(&frame) {
                    tracing::debug!(%error, "a frame was not sent");
                }
                self.pushing.push_back((self.connection.outbox().end(), held));
            }
            Order::Hello(told) => {
                let pushed = self.connection.push_hello();
                self.tell_when_written(pushed, told);
            }
            Order::Flush(told) => self.tell_when_written(Ok(()), told),
            Order::Close(told) if is_over => drop(told.send(Ok(()))),
            Order::Close(told) => {
                let bye = FrameBytes::new(FrameType::Bye, Default::default(), bytes::Bytes::new());
                match self.connection.push_bytes(&bye) {
                    Ok(()) => self.closing = Some(told),
                    Err(error) => drop(told.send(Err(error))),
                }
            }
        }
    }

    fn push(&mut self, frame: Outgoing) -> Result<(), VstpError> {
        match frame {
            Outgoing::Owned(frame) => self.connection.push(frame),
            Outgoing::Shared(frame) => self.connection.push_bytes(&frame),
        }
    }

    fn tell_when_written(&mut self, pushed: Result<(), VstpError>, told: Told<()>) {
        match pushed {
            Ok(()) => self.writing.push_back((self.connection.outbox().end(), told)),
            Err(error) => drop(told.send(Err(error))),
        }
    }

    fn deliver(&mut self, frame: crate::vstp::Frame, told: Told<()>) {
        let (frame, msg_id) = self.connection.numbered(frame);
        match self.connection.push(frame) {
            Ok(()) => drop(self.acknowledging.insert(msg_id, told)),
            Err(error) => {
                self.connection.forget(msg_id);
                let _ = told.send(Err(error));
            }
        }
    }

    fn call(&mut self, frame: FrameBytes, deadline: Instant, told: Told<FrameBytes>) {
        let begun = self.calls.begin(deadline, told).or_else(|(told, _)| {
            // Callers wait for their turn, which they may have had before it was known that others
            // have given up.
            self.forget_given_up();
            self.calls.begin(deadline, told)
        });
        let id = match begun {
            Ok(id) => id,
            Err((told, error)) => return drop(told.send(Err(VstpError::Protocol(error.to_string())))),
        };
        let request = CallRole::request(&frame, id, remaining_ms(Instant::now(), deadline));
        let pushed =
            request.map_err(VstpError::from).and_then(|request| self.connection.push_bytes(&request));
        if let Err(error) = pushed
            && let Some(told) = self.calls.cancel(id)
        {
            let _ = told.send(Err(error));
        }
    }

    fn handle_control(&mut self, control: Control) {
        match control {
            Control::Acknowledge(wanted) => self.connection.settle(wanted),
            Control::Refuse(wanted, code, reason) => self.connection.refuse(wanted, code, &reason),
            Control::Forgo(wanted) => self.connection.forgo(wanted),
            Control::Read => self.connection.on_read(),
            Control::Serve => {
                let max = self.connection.config().calls_max;
                self.serving.get_or_insert_with(|| Serving::new(max));
                // Some may have come before this was known.
                let mut received = self.shared.lock();
                received.bytes = 0;
                let queue = std::mem::take(&mut received.queue);
                drop(received);
                for (frame, wanted, _) in queue {
                    self.hand_over(frame, wanted);
                }
            }
            Control::Abandoned(id) => {
                if self.serving.as_mut().is_some_and(|serving| serving.finish(&id)) {
                    self.refuse_call(id, ErrorCode::Unhandled, "the handler ended without a reply");
                }
            }
            Control::GivenUp => self.forget_given_up(),
            Control::Released => {
                // The peer may not read before these are read.
                self.unwanted = true;
                let mut received = self.shared.lock();
                received.queue.clear();
                received.bytes = 0;
            }
        }
    }

    /// Nobody waits for some outcomes any more; of calls, the peer is told.
    fn forget_given_up(&mut self) {
        let given_up: Vec<_> =
            self.acknowledging.extract_if(|_, told| told.is_closed()).map(|(id, _)| id).collect();
        given_up.into_iter().for_each(|id| self.connection.forget(id));
        while let Some((id, _)) = self.calls.poll_cancelled(oneshot::Sender::is_closed) {
            self.say_cancelled(id);
        }
    }

    fn say_cancelled(&mut self, id: CallId) {
        if !self.is_closed && self.closing.is_none() {
            let _ = self.connection.push_word(&CallRole::cancellation(id));
        }
    }

    fn refuse_call(&mut self, id: CallId, code: ErrorCode, reason: &str) {
        if !self.is_closed && self.closing.is_none() {
            let _ = self.connection.push_answer(&CallRole::refusal(id, code, reason));
        }
    }

    // ---- the connection ----

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let written = match &self.closing {
            // Reading goes on beside it in this loop.
            Some(_) if self.connection.outbox().len() == 0 => self.connection.poll_close(cx),
            _ => self.connection.poll_write(cx),
        };
        let until = self.connection.outbox().written();
        while self.writing.front().is_some_and(|(end, _)| *end <= until)
            && let Some((_, told)) = self.writing.pop_front()
        {
            // A caller that was dropped does not want to know.
            let _ = told.send(Ok(()));
        }
        while self.pushing.front().is_some_and(|(end, _)| *end <= until) {
            self.pushing.pop_front();
        }
        ready!(written)?;
        if let Some(told) = self.closing.take() {
            if let Poll::Ready(closed) = self.connection.poll_close(cx) {
                closed?;
                self.is_closed = true;
                let _ = told.send(Ok(()));
            } else {
                self.closing = Some(told);
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<bool, VstpError> {
        // Some were read while something was written.
        self.hand_on();
        if self.has_read_all {
            return Ok(false);
        }
        if self.is_full() {
            self.connection.on_deaf();
            // PINGs go out all the same.
            return match self.connection.poll_time(cx) {
                Poll::Ready(()) => self.connection.take_failure().map_or(Ok(false), Err),
                Poll::Pending => Ok(false),
            };
        }
        match self.connection.poll_frame_in_time(cx) {
            Poll::Ready(true) => {
                self.hand_on();
                Ok(true)
            }
            Poll::Ready(false) => {
                self.hand_on();
                match self.connection.take_failure() {
                    Some(error) => return Err(error),
                    None => self.end_reading(None),
                }
                Ok(true)
            }
            Poll::Pending => Ok(false),
        }
    }

    /// Returns true if nothing is read before the application takes something. While this end waits
    /// for the peer, much more is read than otherwise: what it waits for stands behind that.
    fn is_full(&mut self) -> bool {
        let waits = !self.connection.outbox().is_idle()
            || !self.acknowledging.is_empty()
            || !self.numbered.is_empty()
            || self.calls.outstanding() > 0;
        let max = self.connection.unread_max();
        let max = if waits { max } else { max.min(Self::READ_AHEAD) };
        let mut received = self.shared.lock();
        received.is_full = received.bytes >= max;
        received.is_full
    }

    /// Gives everybody what came for them.
    fn hand_on(&mut self) {
        while let Some((msg_id, outcome)) = self.connection.poll_outcome() {
            if let Some(outcomes) = self.numbered.remove(&msg_id) {
                let _ = outcomes.send((msg_id, outcome));
            } else if let Some(told) = self.acknowledging.remove(&msg_id) {
                let _ = told.send(outcome.map_err(VstpError::ServerError));
            }
        }
        while let Some((frame, wanted)) = self.connection.take_unread() {
            self.hand_over(frame, wanted);
        }
    }

    fn hand_over(&mut self, frame: FrameBytes, wanted: Option<Acknowledgement>) {
        match CallRole::of(&frame.as_ref()) {
            Some(CallRole::Reply(id)) => {
                if let Some(wanted) = wanted {
                    self.connection.settle(wanted);
                }
                match self.calls.handle_reply(id) {
                    Some(told) => drop(told.send(Ok(frame))),
                    None => {
                        self.shared.unknown_replies.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            Some(CallRole::Cancel(id)) => {
                // Its handler hears that this is gone.
                self.serving.as_mut().and_then(|serving| serving.handle_cancel(&id));
            }
            Some(CallRole::Request(id, ms)) if self.serving.is_some() => {
                self.take_call(id, ms, frame, wanted);
            }
            _ => {
                let code = frame.headers().find("code").filter(|_| frame.typ == FrameType::Err);
                // One with a number is about that frame.
                let code = code.filter(|_| frame.headers().find(MSG_ID).is_none());
                self.too_large |= code == Some(ErrorCode::TooLarge.as_str().as_bytes());
                self.put(frame, wanted, None);
            }
        }
    }

    fn take_call(&mut self, id: CallId, ms: Option<u64>, frame: FrameBytes, wanted: Option<Acknowledgement>) {
        let Some(serving) = &mut self.serving else { return };
        let (cancel, cancelled) = oneshot::channel();
        match serving.begin(id, cancel) {
            Ok(()) => {
                let deadline = ms.map(|ms| deadline_after(Instant::now(), ms));
                self.put(frame, wanted, Some(IncomingCall { id, deadline, cancelled }));
            }
            Err(NotServed::Busy(error)) => {
                let reason = error.to_string();
                if let Some(wanted) = wanted {
                    self.connection.refuse(Some(wanted), ErrorCode::Busy, &reason);
                }
                self.refuse_call(id, ErrorCode::Busy, &reason);
            }
            Err(NotServed::Repeated) => {}
        }
    }

    fn put(&mut self, frame: FrameBytes, wanted: Option<Acknowledgement>, call: Option<IncomingCall>) {
        if self.unwanted {
            return;
        }
        if let Some(attachment) = self.connection.attachment() {
            self.shared.attachment.get_or_init(|| attachment.clone());
        }
        let mut received = self.shared.lock();
        received.bytes += frame.memory();
        received.has_due |= self.connection.has_due();
        received.queue.push_back((frame, wanted, call));
        drop(received);
        self.shared.arrived.notify_one();
    }

    /// Nothing more comes: whoever waits for the peer waits in vain.
    fn end_reading(&mut self, failure: Option<VstpError>) {
        self.has_read_all = true;
        self.say_lost("the peer has ended");
        for (msg_id, told) in self.acknowledging.drain() {
            self.connection.forget(msg_id);
            let _ = told.send(Err(VstpError::ConnectionClosed));
        }
        for told in self.calls.take_all() {
            let _ = told.send(Err(VstpError::ConnectionClosed));
        }
        let mut received = self.shared.lock();
        received.is_over = true;
        received.takes_nothing |= self.connected || failure.is_some();
        received.failure = received.failure.take().or(failure);
        drop(received);
        self.shared.arrived.notify_waiters();
        self.shared.arrived.notify_one();
        self.shared.over.notify_waiters();
    }
}
