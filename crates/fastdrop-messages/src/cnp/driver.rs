//! A session and what carries it: one task that receives, sends and keeps time, and any number of
//! callers.

use super::call_table::{Arrived, CallTable, Handled};
use super::clock;
use super::link::Link;
use super::tally::Tally;
use crate::metrics::Metrics;
use crate::spans;
use bytes::Bytes;
use fastdrop_proto::calls::CallId;
use fastdrop_proto::cnp::{
    CallMessage, CallRefusal, Ending, ErrorCode, Event, ReceiveId, SendError, SendId, Session,
};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};
use tracing::Span;

/// The state that callers and the task share.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// The task has something to do.
    pub(super) changed: Notify,
    /// Something was acknowledged, or the session has begun or ended.
    pub(super) progress: Notify,
    /// Its tasks and handlers run in this.
    pub(super) span: Span,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) session: Session,
    pub(super) opened: bool,
    /// Messages that the application has not taken, and how many came before them.
    pub(super) received: VecDeque<(ReceiveId, Bytes)>,
    next_received: u64,
    pub(super) readers: Vec<Waker>,
    pub(super) receipts: Receipts,
    pub(super) calls: CallTable,
    /// Refusals for which there is no room yet, and the messages that they answer, which are
    /// acknowledged with them.
    refusals: VecDeque<(ReceiveId, CallMessage)>,
    pub(super) ended: Option<Ending>,
    /// No caller is left.
    pub(super) abandoned: bool,
    /// The address of a peer by UDP, which may change.
    pub(super) peer: Option<SocketAddr>,
    /// The server ends: no message more is handed on, and the session is closed when nothing is in
    /// the hands of the application.
    shutting_down: bool,
    /// Messages that the application is at work on.
    pub(super) in_hand: usize,
}

/// Bytes that all sessions of a server keep.
#[derive(Debug)]
pub(super) struct Budget {
    used: AtomicUsize,
    max: usize,
}

impl Budget {
    /// A session with less is left alone, so that one with much cannot be the end of the others.
    const FREE: usize = 256 << 10;

    pub(super) fn new(max: usize) -> Self {
        Self { used: AtomicUsize::new(0), max }
    }

    /// A session keeps `now` bytes instead of `before`; false if that is too much.
    fn change(&self, before: usize, now: usize) -> bool {
        let used = self.used.fetch_add(now, Ordering::Relaxed).wrapping_add(now);
        self.used.fetch_sub(before, Ordering::Relaxed);
        used.wrapping_sub(before) <= self.max || now <= Self::FREE
    }
}

/// A session's part of a budget, until this is dropped.
struct Kept {
    budget: Option<Arc<Budget>>,
    bytes: usize,
}

impl Kept {
    /// The session keeps so many bytes; false if that is too much.
    fn set(&mut self, bytes: usize) -> bool {
        let before = std::mem::replace(&mut self.bytes, bytes);
        self.budget.as_ref().is_none_or(|budget| budget.change(before, bytes))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Those who wait for acknowledgements.
#[derive(Debug, Default)]
pub(super) struct Receipts {
    first: u64,
    waiting: VecDeque<Receipt>,
}

#[derive(Debug)]
enum Receipt {
    Waits(Option<oneshot::Sender<()>>),
    Done,
}

impl Receipts {
    pub(super) fn push(&mut self, id: SendId, tell: Option<oneshot::Sender<()>>) {
        debug_assert_eq!(id.0, self.given());
        self.waiting.push_back(Receipt::Waits(tell));
    }

    /// The number of messages that were given.
    pub(super) fn given(&self) -> u64 {
        self.first + self.waiting.len() as u64
    }

    pub(super) fn all_before(&self, until: u64) -> bool {
        self.first >= until
    }

    pub(super) fn are_done(&self) -> bool {
        self.waiting.is_empty()
    }

    fn acknowledge(&mut self, id: SendId) {
        let index = usize::try_from(id.0 - self.first).unwrap_or(usize::MAX);
        if let Some(receipt) = self.waiting.get_mut(index)
            && let Receipt::Waits(Some(tell)) = std::mem::replace(receipt, Receipt::Done)
        {
            // A caller that was dropped does not want to know.
            let _ = tell.send(());
        }
        while matches!(self.waiting.front(), Some(Receipt::Done)) {
            self.waiting.pop_front();
            self.first += 1;
        }
    }

    /// Nobody is told any more: those who wait find out that the session is over.
    fn give_up(&mut self) {
        for receipt in &mut self.waiting {
            if let Receipt::Waits(tell) = receipt {
                *tell = None;
            }
        }
    }
}

impl Shared {
    pub(super) fn new(session: Session, span: Span) -> Arc<Self> {
        let config = session.config();
        let taken_max = usize::from(config.calls.unwrap_or(0));
        let calls = CallTable::new(taken_max, config.limits.receive_max);
        let state = State {
            session,
            calls,
            refusals: VecDeque::new(),
            opened: false,
            received: VecDeque::new(),
            next_received: 0,
            readers: Vec::new(),
            receipts: Receipts::default(),
            ended: None,
            abandoned: false,
            peer: None,
            shutting_down: false,
            in_hand: 0,
        };
        let (state, changed, progress) = (Mutex::new(state), Notify::new(), Notify::new());
        Arc::new(Self { state, changed, progress, span })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of one caller is no reason for the others to stop.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Nobody uses the session any more, since so long: what was given is still sent.
    fn abandon(&mut self, now: Instant, since: Instant) {
        if now >= since + LINGER {
            self.session.abort(ErrorCode::Shutdown, "the program ends");
        } else if now == since {
            self.close_calls("the program ends");
            self.session.close(now);
        }
        while let Some((id, _)) = self.received.pop_front() {
            self.session.discard(now, id);
        }
    }

    /// Refuses the calls that wait, and those that come from now on.
    pub(super) fn close_calls(&mut self, words: &str) {
        for id in self.calls.close(words) {
            let (words, refusal) = (words.to_owned(), CallRefusal::Unhandled);
            let _ = self.send_call(&CallMessage::Refusal { id, refusal, words });
        }
        self.acknowledge_freed(clock::now());
    }

    /// The server ends. What the application is at work on may be finished, and nothing else.
    pub(super) fn shut_down(&mut self) {
        if !std::mem::replace(&mut self.shutting_down, true) {
            self.close_calls("the server ends");
            self.wake_readers();
        }
    }

    pub(super) fn is_shutting_down(&self) -> bool {
        self.shutting_down
    }

    /// Wakes everybody who waits for a message or a call.
    pub(super) fn wake_readers(&mut self) {
        self.readers.drain(..).for_each(Waker::wake);
    }

    /// Sends a message about a call, for whose acknowledgement nobody waits.
    pub(super) fn send_call(&mut self, message: &CallMessage) -> Result<(), SendError> {
        let id = self.session.send_call(clock::now(), message)?;
        self.receipts.push(id, None);
        Ok(())
    }

    /// A message about a call came.
    /// Returns true if a call waits for a handler.
    fn handle_call(&mut self, now: Instant, came: ReceiveId, message: &Bytes) -> bool {
        let Some(message) = CallMessage::parse(message) else {
            self.session.abort(ErrorCode::Malformed, "a message about a call that is none");
            return false;
        };
        if let CallMessage::Cancel { id: cancelled } = &message {
            self.forget_refusal(now, *cancelled);
        }
        let handled = self.calls.handle(now, came, message);
        let is_within = self.refusals.len() < self.calls.taken_max();
        match handled {
            Handled::Waits { is_held: true } => return true,
            Handled::Refuse(refusal) if !self.session.can_send() && is_within => {
                self.refusals.push_back((came, refusal));
                return false;
            }
            Handled::Refuse(refusal) | Handled::Exceeds(refusal) => {
                if self.session.can_send() {
                    let _ = self.send_call(&refusal);
                } else {
                    self.session.abort(ErrorCode::Busy, "more calls than are taken here");
                }
            }
            Handled::Waits { is_held: false } => {
                self.session.acknowledge(now, came);
                return true;
            }
            Handled::Done => {}
        }
        // Its reply will say more than that it was received.
        self.session.acknowledge(now, came);
        self.acknowledge_freed(now);
        false
    }

    /// Acknowledges the messages of calls that do not wait any more; true if there were any.
    pub(super) fn acknowledge_freed(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some(message) = self.calls.poll_freed() {
            self.session.acknowledge(now, message);
            any = true;
        }
        any
    }

    /// Nobody waits for the refusal of this call any more.
    fn forget_refusal(&mut self, now: Instant, cancelled: CallId) {
        let is_its =
            |refusal: &CallMessage| matches!(refusal, CallMessage::Refusal { id, .. } if *id == cancelled);
        if let Some(index) = self.refusals.iter().position(|(_, refusal)| is_its(refusal))
            && let Some((message, _)) = self.refusals.remove(index)
        {
            self.session.acknowledge(now, message);
        }
    }

    /// Sends the refusals for which there is room now.
    fn refuse_waiting(&mut self, now: Instant) {
        while self.session.can_send()
            && let Some((message, refusal)) = self.refusals.pop_front()
        {
            let _ = self.send_call(&refusal);
            self.session.acknowledge(now, message);
        }
    }

    /// The next call for a handler; those whose deadline has passed are refused.
    pub(super) fn take_call(&mut self, now: Instant) -> Option<Arrived> {
        loop {
            let arrived = self.calls.take()?;
            if arrived.deadline.is_none_or(|at| at > now) {
                return Some(arrived);
            }
            let (id, words) = (arrived.id, "the deadline passed before it was taken".into());
            self.calls.on_answered(id);
            let _ = self.send_call(&CallMessage::Refusal { id, refusal: CallRefusal::Timeout, words });
        }
    }

    /// Takes what has happened; true if somebody may be waiting for it.
    fn take_events(&mut self, now: Instant) -> bool {
        let (mut progress, mut came) = (false, false);
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Opened => {
                    let made_max = self.session.agreed().and_then(|agreed| agreed.calls);
                    self.calls.open(made_max.unwrap_or(0).into());
                    (self.opened, progress) = (true, true);
                }
                Event::Call(message) => {
                    let id = ReceiveId(self.next_received);
                    self.next_received += 1;
                    let waits = self.handle_call(now, id, &message);
                    came |= waits;
                    progress |= !waits;
                }
                Event::Message(message) => {
                    let id = ReceiveId(self.next_received);
                    self.next_received += 1;
                    if self.shutting_down {
                        // Never acknowledged: its sender finds out that the session is over.
                    } else if self.abandoned {
                        // Nobody handles it.
                        self.session.discard(now, id);
                    } else {
                        self.received.push_back((id, message));
                        came = true;
                    }
                }
                Event::Acknowledged(id) => {
                    self.receipts.acknowledge(id);
                    progress = true;
                }
                Event::Ended(ending) => {
                    self.receipts.give_up();
                    self.calls.end();
                    self.refusals.clear();
                    self.ended = Some(ending);
                    (progress, came) = (true, true);
                }
            }
        }
        self.refuse_waiting(now);
        if came {
            self.wake_readers();
        }
        progress
    }
}

/// The time that a session that nobody uses any more has for what it still has to send.
const LINGER: Duration = Duration::from_secs(10);

/// Turns in which something was sent before other tasks have theirs.
const TURNS: u32 = 16;
/// The time between two looks at the clock while nothing can be sent.
const BLOCKED: Duration = Duration::from_millis(100);

/// The events that the task waits for.
struct Turn {
    deadline: Option<Instant>,
    wants_input: bool,
    finished: bool,
}

/// Drives a session until it is finished. `budget`: what all sessions of its server may keep.
pub(super) async fn drive(
    shared: Arc<Shared>,
    mut link: Link,
    budget: Option<Arc<Budget>>,
    metrics: Metrics,
) {
    let mut tally = Tally::new(metrics);
    let ended = EndedWithoutWord(Arc::clone(&shared));
    let mut kept = Kept { budget, bytes: 0 };
    let mut turns = 0_u32;
    let (mut abandoned_at, mut finished_at): (Option<Instant>, Option<Instant>) = (None, None);
    loop {
        let turn = {
            let mut state = shared.lock();
            let now = clock::now();
            if state.abandoned {
                let since = *abandoned_at.get_or_insert(now);
                state.abandon(now, since);
            }
            let has_answered = state.calls.unanswered() == 0 && state.refusals.is_empty();
            if state.shutting_down && state.in_hand == 0 && has_answered {
                state.session.close(now);
            }
            link.receive(now, &mut state.session);
            state.peer = link.peer();
            if state.session.poll_timeout().is_some_and(|at| at <= now) {
                state.session.handle_timeout(now);
            }
            let was_open = state.opened;
            let mut progress = state.take_events(now);
            if state.opened && !was_open {
                spans::identify(&shared.span, spans::number());
            }
            if !kept.set(state.session.memory() + state.calls.memory()) {
                state.session.abort(ErrorCode::Busy, "too much is waiting here");
                progress |= state.take_events(now);
            }
            link.take_output(now, &mut state.session);
            tally.update(&state.session, state.opened, state.ended.as_ref(), link.traffic());
            if progress {
                shared.progress.notify_waiters();
            }
            Turn {
                deadline: state.session.poll_timeout(),
                wants_input: state.session.wants_input(),
                finished: state.session.is_finished(),
            }
        };
        if link.has_output() {
            link.send();
            if !link.has_output() {
                // There may be more. It comes to an end when the window is full.
                turns += 1;
                if turns.is_multiple_of(TURNS) {
                    tokio::task::yield_now().await;
                }
                continue;
            }
        } else if turn.finished {
            break;
        }
        let now = clock::now();
        if turn.finished && now >= *finished_at.get_or_insert(now) + LINGER {
            // A peer that does not read what is said last.
            break;
        }
        let lingers = [abandoned_at, finished_at].map(|since| Some(since? + LINGER).filter(|at| *at > now));
        let deadlines = lingers.into_iter().chain([turn.deadline, link.stalls_at()]);
        let mut deadline = deadlines.flatten().min();
        if link.has_output() {
            // What is due has to wait until the peer reads.
            deadline = deadline.map(|at| at.max(now + BLOCKED));
        }
        let pause = tokio::time::sleep_until(deadline.unwrap_or_else(clock::now).into());
        tokio::select! {
            () = link.ready(turn.wants_input) => {}
            () = pause, if deadline.is_some() => {}
            () = shared.changed.notified() => {}
        }
    }
    drop((kept, ended));
    link.farewell().await;
}

/// Tells callers that nothing will happen any more, whatever has ended the task.
struct EndedWithoutWord(Arc<Shared>);

impl Drop for EndedWithoutWord {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if state.ended.is_none() {
            state.session.abort(ErrorCode::Shutdown, "the program ends");
            state.take_events(clock::now());
        }
        drop(state);
        self.0.progress.notify_waiters();
    }
}
