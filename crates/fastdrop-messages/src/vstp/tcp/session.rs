//! A connection that any number of tasks use.

use super::connection::{Connection, Owed};
use super::driver::Driver;
use super::orders::{Control, Lost, Order, Outgoing, Shared, Taken, Told};
use crate::vstp::held::Budget;
use crate::vstp::types::{Frame, SessionId, VstpError};
use fastdrop_proto::calls::{CALL_TIME_MAX, CallId};
use fastdrop_proto::vstp::{Acknowledgement, Attachment, ErrorCode, FrameBytes};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::error::TrySendError as Refused;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::Instrument;

/// A connection that any number of tasks use: clones are the same connection, and may send,
/// call and receive at the same time.
///
/// A task of its own reads and writes, so that acknowledgements, replies to calls and keep-alive
/// do not depend on who receives when. When the last clone is dropped, what was sent is written,
/// BYE is said, and the connection closed.
///
/// ```
/// use fastdrop_messages::vstp::{Frame, FrameType, VstpTcpClient, VstpTcpServer};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), fastdrop_messages::vstp::VstpError> {
/// let server = VstpTcpServer::bind("127.0.0.1:0").await?;
/// let address = server.local_addr()?.to_string();
/// let for_ever = std::future::pending();
/// tokio::spawn(server.serve_calls(for_ever, |call| async move { Ok(call.into_frame()) }));
/// let session = VstpTcpClient::connect(&address).await?.into_session();
/// let second = session.clone();
/// let call = |text: &str| Frame::new(FrameType::Data).with_payload(text.into());
/// let (one, two) = tokio::join!(session.call(call("one")), second.call(call("two")));
/// assert_eq!((one?.payload(), two?.payload()), (&b"one"[..], &b"two"[..]));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Session(Arc<Callers>);

/// The callers' side.
#[derive(Debug)]
struct Callers {
    shared: Arc<Shared>,
    orders: mpsc::Sender<Order>,
    controls: mpsc::UnboundedSender<Control>,
    /// For calls that may be outstanding.
    turns: Semaphore,
    /// For frames that nobody waits for.
    pushes: Arc<Budget>,
    id: SessionId,
    peer: SocketAddr,
    unread_max: usize,
    /// The task, until somebody answers for it.
    driver: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Callers {
    fn drop(&mut self) {
        let _ = self.controls.send(Control::Released);
        self.shared.leave();
    }
}

/// A session that is held by others, or not any more.
#[derive(Debug, Clone)]
pub(super) struct WeakSession(Weak<Callers>);

impl WeakSession {
    pub(super) fn upgrade(&self) -> Option<Session> {
        self.0.upgrade().map(Session)
    }
}

/// The reason for which a frame was not taken to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrySendError {
    /// Too much waits for this peer already: it takes nothing, or not fast enough.
    #[error("too much waits for this peer already")]
    Full,
    /// The connection is closed.
    #[error("the connection is closed")]
    Closed,
}

/// Says that somebody does not wait any more, unless it has been defused.
struct Waiting<'a>(Option<&'a mpsc::UnboundedSender<Control>>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(controls) = self.0.take() {
            let _ = controls.send(Control::GivenUp);
        }
    }
}

impl Session {
    /// Orders that wait: beyond, callers do.
    const ORDERS: usize = 256;
    /// The time for [`Self::call`].
    pub const CALL_TIME: Duration = Duration::from_secs(30);

    /// Gives a connection to a task. `serves`: frames that are calls are handled as such.
    pub(crate) fn start(connection: Connection, peer: SocketAddr, serves: bool) -> Self {
        let (orders, taken) = mpsc::channel(Self::ORDERS);
        let (controls, controlled) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::default());
        // Its first receiver answers what came before.
        shared.lock().has_due = connection.has_due();
        let id = connection.session_id();
        let unread_max = connection.config().unread_max(id != 0);
        let turns = Semaphore::new(connection.config().calls_max.clamp(1, Semaphore::MAX_PERMITS));
        let pushes = Budget::new(connection.config().push_max);
        let driver = Driver::new(connection, taken, controlled, Arc::clone(&shared), serves);
        // It ends when its callers are gone or the connection is.
        let driver = Mutex::new(Some(tokio::spawn(driver.run().in_current_span())));
        Self(Arc::new(Callers { shared, orders, controls, turns, pushes, id, peer, unread_max, driver }))
    }

    /// The number of the connection among those of its server; 0 at the end that connects.
    pub fn session_id(&self) -> SessionId {
        self.0.id
    }

    /// Bytes of frames that are taken before they are handled.
    pub(super) fn unread_max(&self) -> usize {
        self.0.unread_max
    }

    /// The peer's address.
    pub fn peer_addr(&self) -> SocketAddr {
        self.0.peer
    }

    /// Sends a frame: when this returns, the operating system has all of it. If this is dropped
    /// before the frame has had its turn, it is not sent.
    ///
    /// # Errors
    ///
    /// The connection is lost, or the peer has refused something and says why.
    pub async fn send(&self, frame: Frame) -> Result<(), VstpError> {
        self.order(|told| Order::Send(Outgoing::Owned(frame), told)).await
    }

    /// The same without copying the payload.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub async fn send_bytes(&self, frame: FrameBytes) -> Result<(), VstpError> {
        self.order(|told| Order::Send(Outgoing::Shared(frame), told)).await
    }

    /// Takes a frame to be sent, and waits only while much is waiting already.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub async fn feed(&self, frame: Frame) -> Result<(), VstpError> {
        self.order(|told| Order::Feed(Outgoing::Owned(frame), told)).await
    }

    /// Takes a frame to be sent, and never waits: for those who send to many, of which some may
    /// take nothing. What was taken leaves in order with everything else, and nobody is told of it.
    ///
    /// # Errors
    ///
    /// [`TrySendError::Full`] if frames of more than
    /// [`TcpConfig::push_max`](super::TcpConfig::push_max) bytes would wait, or 256 frames do: then
    /// this one is not sent.
    pub fn try_send(&self, frame: FrameBytes) -> Result<(), TrySendError> {
        let received = self.0.shared.lock();
        if received.takes_nothing {
            return Err(TrySendError::Closed);
        }
        let held = self.0.pushes.try_hold(&frame).ok_or(TrySendError::Full)?;
        self.0.orders.try_send(Order::Push(frame, held)).map_err(|refused| match refused {
            Refused::Full(_) => TrySendError::Full,
            Refused::Closed(_) => TrySendError::Closed,
        })
    }

    /// The same session, for somebody who does not keep it.
    pub(super) fn downgrade(&self) -> WeakSession {
        WeakSession(Arc::downgrade(&self.0))
    }

    /// The task that drives it, for the one who sees to its end.
    pub(super) fn take_driver(&self) -> Option<JoinHandle<()>> {
        self.0.driver.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Reads on and drops what comes, until the peer ends or this time has passed.
    pub(super) async fn discard(&self, bound: Duration) {
        let discard = async { while let Ok(Some(_)) = self.take().await {} };
        let _ = tokio::time::timeout(bound, discard).await;
    }

    /// The state that is shared with its task.
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    pub(super) async fn feed_bytes(&self, frame: FrameBytes) -> Result<(), VstpError> {
        self.order(|told| Order::Feed(Outgoing::Shared(frame), told)).await
    }

    pub(super) async fn hello(&self) -> Result<(), VstpError> {
        self.order(Order::Hello).await
    }

    /// Sends a frame, and waits until the peer has acknowledged it.
    ///
    /// # Errors
    ///
    /// The peer has refused the frame, has not acknowledged it within `patience`, or is gone.
    pub async fn send_with_ack(&self, frame: Frame, patience: Duration) -> Result<(), VstpError> {
        let order = self.order(|told| Order::Deliver(frame, told));
        tokio::time::timeout(patience, order).await.unwrap_or(Err(VstpError::Timeout))
    }

    /// The same for several frames, in one round trip.
    ///
    /// # Errors
    ///
    /// As [`Self::send_with_ack`], for any of them.
    pub async fn send_all_with_ack(&self, frames: Vec<Frame>, patience: Duration) -> Result<(), VstpError> {
        let mut outcomes = Vec::with_capacity(frames.len());
        let all = async {
            for frame in frames {
                let (told, outcome) = oneshot::channel();
                let order = Order::Deliver(frame, told);
                self.0.orders.send(order).await.map_err(|_| VstpError::ConnectionClosed)?;
                outcomes.push(outcome);
            }
            for outcome in &mut outcomes {
                outcome.await.map_err(|_| VstpError::ConnectionClosed)??;
            }
            Ok(())
        };
        let all = tokio::time::timeout(patience, all).await.unwrap_or(Err(VstpError::Timeout));
        drop(outcomes);
        if all.is_err() {
            self.control(Control::GivenUp);
        }
        all
    }

    /// Waits until everything that was fed is written.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub async fn flush(&self) -> Result<(), VstpError> {
        self.order(Order::Flush).await
    }

    /// Sends a request, and waits for its own reply, at most [`Self::CALL_TIME`].
    ///
    /// # Errors
    ///
    /// As [`Self::call_within`].
    pub async fn call(&self, request: Frame) -> Result<Frame, VstpError> {
        self.call_within(request, Self::CALL_TIME).await
    }

    /// Sends a request, and waits for its own reply; the peer is told how much time remains. If
    /// this is dropped meanwhile, the peer is told that nobody waits any more. Any number of tasks
    /// may call; beyond [`TcpConfig::calls_max`](super::TcpConfig::calls_max) they wait for their
    /// turn.
    ///
    /// # Errors
    ///
    /// [`VstpError::ServerError`] with the peer's reason, [`VstpError::Timeout`], and
    /// [`VstpError::ConnectionClosed`] for all calls that wait when the connection is lost.
    pub async fn call_within(&self, request: Frame, time: Duration) -> Result<Frame, VstpError> {
        Ok(self.call_bytes(request.try_into()?, time).await?.into())
    }

    /// The same without copying payloads.
    ///
    /// # Errors
    ///
    /// As [`Self::call_within`].
    pub async fn call_bytes(&self, request: FrameBytes, time: Duration) -> Result<FrameBytes, VstpError> {
        let deadline = Instant::now() + time.min(CALL_TIME_MAX);
        let reply = async {
            let turn = self.0.turns.acquire().await.map_err(|_| VstpError::ConnectionClosed)?;
            let reply = self.order(|told| Order::Call(request, deadline, told)).await;
            drop(turn);
            reply
        };
        let reply = tokio::time::timeout_at(deadline.into(), reply).await;
        crate::vstp::call::result_of(reply.unwrap_or(Err(VstpError::Timeout))?)
    }

    /// Replies to calls that nobody was waiting for, which were dropped.
    pub fn unknown_replies(&self) -> u64 {
        self.0.shared.unknown_replies.load(Ordering::Relaxed)
    }

    async fn order<T>(&self, order: impl FnOnce(Told<T>) -> Order) -> Result<T, VstpError> {
        let (told, outcome) = oneshot::channel();
        let closed = |_| VstpError::ConnectionClosed;
        self.0.orders.send(order(told)).await.map_err(|_| VstpError::ConnectionClosed)?;
        let mut waiting = Waiting(Some(&self.0.controls));
        let outcome = outcome.await;
        waiting.0 = None;
        outcome.map_err(closed)?
    }

    /// The next frame that is no reply to a call; None when the peer has ended. A frame that wants
    /// an acknowledgement has it, since the application has taken it. Where several tasks receive,
    /// each frame goes to one of them. May be dropped while it waits, and nothing is lost.
    ///
    /// # Errors
    ///
    /// The reason for which the connection was lost, once.
    pub async fn recv(&self) -> Result<Option<Frame>, VstpError> {
        Ok(self.recv_bytes().await?.map(Frame::from))
    }

    /// The same without copying the payload.
    ///
    /// # Errors
    ///
    /// As [`Self::recv`].
    pub async fn recv_bytes(&self) -> Result<Option<FrameBytes>, VstpError> {
        let Some((frame, wanted)) = self.recv_owed().await? else { return Ok(None) };
        if let Some(wanted) = wanted {
            self.acknowledge(wanted);
        }
        Ok(Some(frame))
    }

    pub(super) async fn recv_owed(&self) -> Result<Option<Owed>, VstpError> {
        loop {
            match self.take().await? {
                Some((frame, wanted, _)) if self.claim(wanted) => return Ok(Some((frame, wanted))),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// Records that the application has a frame from now on. False: it is not to be handed on, as
    /// it was already, or comes again on another connection.
    pub(super) fn claim(&self, wanted: Option<Acknowledgement>) -> bool {
        wanted.is_none_or(|wanted| self.attachment(wanted).is_none_or(|attachment| attachment.claim(wanted)))
    }

    /// The session to which a frame belongs, where it is one of a client that connects again: what
    /// becomes of it counts also when this connection is gone.
    fn attachment(&self, wanted: Acknowledgement) -> Option<&Attachment> {
        self.0.shared.attachment.get().filter(|_| wanted.number().is_some())
    }

    pub(super) fn acknowledge(&self, wanted: Acknowledgement) {
        match self.attachment(wanted) {
            Some(attachment) => attachment.acknowledge(wanted),
            None => self.control(Control::Acknowledge(wanted)),
        }
    }

    pub(super) fn refuse(&self, wanted: Option<Acknowledgement>, code: ErrorCode, reason: &str) {
        match wanted.and_then(|wanted| Some((wanted, self.attachment(wanted)?))) {
            Some((wanted, attachment)) => attachment.refuse(wanted, code, reason),
            None => self.control(Control::Refuse(wanted, code, reason.to_owned())),
        }
    }

    /// The application has dropped a frame that was handed on.
    pub(super) fn forgo(&self, wanted: Acknowledgement) {
        match self.attachment(wanted) {
            Some(attachment) => attachment.forgo(wanted),
            None => self.control(Control::Forgo(wanted)),
        }
    }

    pub(super) async fn take(&self) -> Result<Option<Taken>, VstpError> {
        let shared = &self.0.shared;
        loop {
            let mut arrived = pin!(shared.arrived.notified());
            {
                let mut received = shared.lock();
                if let Some(taken) = received.queue.pop_front() {
                    received.bytes -= taken.0.memory();
                    if received.is_full {
                        received.is_full = false;
                        self.control(Control::Read);
                    }
                    if !received.queue.is_empty() {
                        // For another task, if one waits.
                        shared.arrived.notify_one();
                    }
                    return Ok(Some(taken));
                }
                if received.is_over {
                    return received.failure.take().map_or(Ok(None), Err);
                }
                if received.has_due {
                    received.has_due = false;
                    self.control(Control::Read);
                }
                arrived.as_mut().enable();
            }
            arrived.await;
        }
    }

    /// A connection that is gone has no use for it.
    pub(super) fn control(&self, control: Control) {
        let _ = self.0.controls.send(control);
    }

    /// Sends the reply to a call.
    pub(crate) async fn reply(&self, call: CallId, frame: FrameBytes) -> Result<(), VstpError> {
        self.order(|told| Order::Reply(call, frame, told)).await
    }

    /// The handler of a call was dropped.
    pub(crate) fn abandon(&self, call: CallId) {
        self.control(Control::Abandoned(call));
    }

    /// Waits until the connection is lost, for one caller, and says why.
    pub(super) async fn lost(&self) -> Lost {
        let shared = &self.0.shared;
        loop {
            let lost = shared.lock().lost.clone();
            match lost {
                Some(lost) => return lost,
                None => shared.lost.notified().await,
            }
        }
    }

    /// Returns true if both are the same connection.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Waits until one more order is taken. None: the connection is lost.
    pub(super) async fn room(&self) -> Option<mpsc::Permit<'_, Order>> {
        self.0.orders.reserve().await.ok()
    }

    /// Says BYE, and ends the sending half. What the peer still sends comes by [`Self::recv`].
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub async fn close(&self) -> Result<(), VstpError> {
        let room = self.0.orders.reserve().await.map_err(|_| VstpError::ConnectionClosed)?;
        let (told, outcome) = oneshot::channel();
        {
            // What is offered from here on would stand behind the end.
            let mut received = self.0.shared.lock();
            received.takes_nothing = true;
            room.send(Order::Close(told));
        }
        outcome.await.map_err(|_| VstpError::ConnectionClosed)?
    }

    /// The two halves, for a task each.
    pub fn into_split(self) -> (SendHalf, ReceiveHalf) {
        (SendHalf(self.clone()), ReceiveHalf(self))
    }
}

/// The half of a [`Session`] that sends. Clones are the same.
#[derive(Debug, Clone)]
pub struct SendHalf(Session);

impl SendHalf {
    /// See [`Session::send`].
    ///
    /// # Errors
    ///
    /// As [`Session::send`].
    pub async fn send(&self, frame: Frame) -> Result<(), VstpError> {
        self.0.send(frame).await
    }

    /// See [`Session::send_bytes`].
    ///
    /// # Errors
    ///
    /// As [`Session::send`].
    pub async fn send_bytes(&self, frame: FrameBytes) -> Result<(), VstpError> {
        self.0.send_bytes(frame).await
    }

    /// See [`Session::send_with_ack`].
    ///
    /// # Errors
    ///
    /// As [`Session::send_with_ack`].
    pub async fn send_with_ack(&self, frame: Frame, patience: Duration) -> Result<(), VstpError> {
        self.0.send_with_ack(frame, patience).await
    }

    /// See [`Session::call`].
    ///
    /// # Errors
    ///
    /// As [`Session::call_within`].
    pub async fn call(&self, request: Frame) -> Result<Frame, VstpError> {
        self.0.call(request).await
    }

    /// See [`Session::close`].
    ///
    /// # Errors
    ///
    /// As [`Session::send`].
    pub async fn close(&self) -> Result<(), VstpError> {
        self.0.close().await
    }
}

/// The half of a [`Session`] that receives.
#[derive(Debug)]
pub struct ReceiveHalf(pub(super) Session);

impl ReceiveHalf {
    /// See [`Session::recv`].
    ///
    /// # Errors
    ///
    /// As [`Session::recv`].
    pub async fn recv(&mut self) -> Result<Option<Frame>, VstpError> {
        self.0.recv().await
    }

    /// See [`Session::recv_bytes`].
    ///
    /// # Errors
    ///
    /// As [`Session::recv`].
    pub async fn recv_bytes(&mut self) -> Result<Option<FrameBytes>, VstpError> {
        self.0.recv_bytes().await
    }
}
