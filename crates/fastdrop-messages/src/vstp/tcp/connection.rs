//! One connection, at either end, in the hands of one caller.

use super::TcpConfig;
use super::complaint::{Complaint, reason_of};
use super::guard::Overdue;
use super::outbox::Outbox;
use super::reader::Reader;
use super::stream::Stream;
use super::tally::Tally;
use crate::vstp::types::{Frame, FrameType, LARGER, VstpError};
use bytes::Bytes;
use fastdrop_proto::vstp::frame::FRAME_MAX;
use fastdrop_proto::vstp::{
    Acknowledgement, CallRole, ErrorCode, Flags, FrameBytes, MSG_ID, Session as Protocol, SessionConfig,
    Verdict,
};
use std::collections::{BTreeSet, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Sleep;

mod admission;
mod client_session;
mod farewell;

/// A frame that came, and the acknowledgement that it asks for.
pub(super) type Owed = (FrameBytes, Option<Acknowledgement>);

/// The outcome of a frame that was to be acknowledged: its number, and the reason of a refusal.
pub(super) type Outcome = (u64, Result<(), String>);

/// Frames in both directions, and the session about them.
///
/// Reading and writing are driven together: whoever waits to write, or for an acknowledgement,
/// reads on meanwhile, up to [`TcpConfig::unread_max`] (docs/protocol/vstp.md, section 2). `recv`
/// may be dropped at any point without losing anything, and so may `send`: what it had begun to
/// write goes out before anything else.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Stream,
    session: Protocol,
    config: TcpConfig,
    unread_max: usize,
    reader: Reader,
    outbox: Outbox,
    tally: Tally,
    /// Bytes of the largest payload that was sent.
    sent_max: usize,
    /// Frames that nobody has taken.
    unread: VecDeque<Owed>,
    unread_bytes: usize,
    outcomes: VecDeque<Outcome>,
    complaint: Complaint,
    ended: bool,
    /// The reason for which nothing more can be read, until it is reported.
    failure: Option<VstpError>,
    /// The time since which somebody listens, and that of the last bytes.
    listening_since: Instant,
    heard_at: Instant,
    /// The time until which the end is waited for that follows BYE.
    farewell_until: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Connection {
    /// The time for which a peer that was refused something may go on sending before the connection
    /// is reset, which could take from it what it was told; and how long the reason is looked for
    /// after a write has failed.
    const LINGER: Duration = Duration::from_secs(5);
    /// Bytes that are put together before they are written.
    pub(super) const OUTBOX_MAX: usize = 256 << 10;

    pub(crate) fn new(stream: Stream, config: TcpConfig, id: Option<u128>, answers: bool) -> Self {
        let session = SessionConfig {
            id,
            keep_alive: config.keep_alive,
            answers,
            token: config.token.clone(),
            authorize: config.authorize.clone(),
            first_msg_id: random() >> 1,
        };
        let now = Instant::now();
        Self {
            stream,
            session: Protocol::new(now, session),
            unread_max: config.unread_max(id.is_some()),
            reader: Reader::new(config.frame_max),
            tally: Tally::new(config.metrics.clone()),
            config,
            outbox: Outbox::default(),
            sent_max: 0,
            unread: VecDeque::new(),
            unread_bytes: 0,
            outcomes: VecDeque::new(),
            complaint: Complaint::default(),
            ended: false,
            failure: None,
            listening_since: now,
            heard_at: now,
            farewell_until: None,
            timer: None,
        }
    }

    pub(crate) fn session_id(&self) -> u128 {
        self.session.id().unwrap_or_default()
    }

    pub(super) fn config(&self) -> &TcpConfig {
        &self.config
    }

    /// Becomes true when the peer says that this end is not let in.
    pub(super) fn unauthorized(&self) -> Arc<AtomicBool> {
        self.complaint.unauthorized()
    }

    // ---- sending ----

    pub(crate) async fn send(&mut self, frame: Frame) -> Result<(), VstpError> {
        self.push(frame)?;
        self.flush().await
    }

    /// Takes a frame, to be written with others; waits only when much is waiting already.
    pub(crate) async fn feed(&mut self, frame: Frame) -> Result<(), VstpError> {
        self.push(frame)?;
        if self.outbox.len() >= Self::OUTBOX_MAX { self.flush().await } else { Ok(()) }
    }

    pub(crate) async fn feed_bytes(&mut self, frame: &FrameBytes) -> Result<(), VstpError> {
        self.push_bytes(frame)?;
        if self.outbox.len() >= Self::OUTBOX_MAX { self.flush().await } else { Ok(()) }
    }

    /// Takes a frame without writing anything.
    pub(super) fn push(&mut self, frame: Frame) -> Result<(), VstpError> {
        let typ = frame.typ;
        self.sent_max = self.sent_max.max(frame.payload.len());
        let is_expected = self.tally.is_expected(&frame);
        self.outbox.push(frame)?;
        if !is_expected {
            self.tally.on_pushed(self.outbox.end());
        }
        self.session.on_sent(Instant::now(), typ);
        Ok(())
    }

    pub(super) fn push_bytes(&mut self, frame: &FrameBytes) -> Result<(), VstpError> {
        self.sent_max = self.sent_max.max(frame.payload.len());
        self.outbox.push_bytes(frame)?;
        self.tally.on_pushed(self.outbox.end());
        self.session.on_sent(Instant::now(), frame.typ);
        Ok(())
    }

    /// Takes a frame that is no message of the application, without writing anything.
    pub(super) fn push_word(&mut self, frame: &FrameBytes) -> Result<(), VstpError> {
        self.outbox.push_bytes(frame)?;
        self.session.on_sent(Instant::now(), frame.typ);
        Ok(())
    }

    /// A message of the application was not taken, as the connection is over.
    pub(super) fn on_not_taken(&self) {
        self.tally.on_not_taken();
    }

    pub(super) fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// Writes what was fed. A peer that has refused something has said why before it closed: then
    /// that is the error.
    pub(crate) async fn flush(&mut self) -> Result<(), VstpError> {
        match poll_fn(|cx| self.poll_flush(cx)).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.refusal_after(error).await),
        }
    }

    /// Writes everything, and reads on while the peer does not take it: it may be waiting for this
    /// end to read.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if let Poll::Ready(written) = self.poll_write(cx) {
                return Poll::Ready(written);
            }
            if self.is_full() || !matches!(self.poll_frame(cx), Poll::Ready(true)) {
                return Poll::Pending;
            }
        }
    }

    /// Writes answers and what was fed, in this turn as much as the stream takes.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.push_answers();
        let flushed = self.outbox.poll_flush(cx, &mut self.stream);
        self.tally.on_written(self.outbox.written());
        if matches!(flushed, Poll::Ready(Err(_))) {
            self.tally.on_broken();
        }
        flushed
    }

    /// The same, where nobody waits for that. If there is nobody to write to any more, reading
    /// finds out why; a peer that takes nothing for too long is gone.
    fn write_on(&mut self, cx: &mut Context<'_>) {
        if let Poll::Ready(Err(error)) = self.poll_write(cx)
            && Overdue::of(&error).is_some()
        {
            self.ended = true;
            self.failure = Some(VstpError::Io(error));
        }
    }

    pub(super) fn push_answers(&mut self) {
        while let Some(answer) = self.session.poll_answer() {
            self.outbox.push_answer(&answer);
        }
    }

    /// Takes a frame that the peer has caused: nothing more is read before enough of these is
    /// written.
    pub(super) fn push_answer(&mut self, frame: &FrameBytes) -> Result<(), VstpError> {
        self.outbox.push_answer_bytes(frame)?;
        self.session.on_sent(Instant::now(), frame.typ);
        Ok(())
    }

    /// The reason that stands in an ERR frame behind everything that the peer has sent, or else
    /// this error. Nothing can be written any more.
    pub(super) async fn refusal_after(&mut self, error: io::Error) -> VstpError {
        self.outbox.give_up(error.kind());
        self.complaint.take();
        // The peer has closed: what it said is there already, or is lost.
        let read_on = poll_fn(|cx| {
            while ready!(self.poll_frame(cx)) {
                if self.is_full() {
                    self.drop_last();
                }
                while self.session.poll_answer().is_some() {}
            }
            Poll::Ready(())
        });
        let _ = tokio::time::timeout(Self::LINGER, read_on).await;
        self.ended = true;
        self.failure = None;
        let complaint = self.complaint.take();
        complaint.map_or_else(|| self.explain(error), VstpError::ServerError)
    }

    /// An error with its probable reason: programs of version 0.2 close without a word when a frame
    /// is larger than they take.
    fn explain(&self, error: io::Error) -> VstpError {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        let closed = matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset);
        if !closed || self.sent_max <= FRAME_MAX {
            return VstpError::Io(error);
        }
        let size = self.sent_max;
        let words =
            format!("{error}, after a frame of {size} bytes, where {FRAME_MAX} are usually taken; {LARGER}");
        VstpError::Io(io::Error::new(error.kind(), words))
    }

    /// Says HELLO, without writing it.
    pub(super) fn push_hello(&mut self) -> Result<(), VstpError> {
        self.push_bytes(&FrameBytes::new(FrameType::Hello, self.session.hello(), Bytes::new()))
    }

    pub(crate) async fn hello(&mut self) -> Result<(), VstpError> {
        self.push_hello()?;
        self.flush().await
    }

    /// The frame with a number and REQ_ACK, and that number, whose outcome is waited for.
    pub(super) fn numbered(&mut self, mut frame: Frame) -> (Frame, u64) {
        let msg_id = self.session.next_msg_id();
        self.tally.expect(msg_id);
        frame.headers.retain(|header| header.key != MSG_ID.as_bytes());
        (frame.with_header(MSG_ID, &msg_id.to_string()).with_flag(Flags::REQ_ACK), msg_id)
    }

    /// Nobody waits for the outcome of this number any more.
    pub(super) fn forget(&mut self, msg_id: u64) {
        self.session.forget(msg_id);
        self.tally.on_outcome(msg_id, false);
    }

    pub(super) fn poll_outcome(&mut self) -> Option<Outcome> {
        self.outcomes.pop_front()
    }

    /// Sends, and waits until the peer has acknowledged all of them; what else comes meanwhile is
    /// kept for `recv`.
    pub(crate) async fn send_with_ack(
        &mut self,
        frames: Vec<Frame>,
        patience: Duration,
    ) -> Result<(), VstpError> {
        let (frames, numbers): (Vec<_>, Vec<_>) =
            frames.into_iter().map(|frame| self.numbered(frame)).unzip();
        let mut waiting: BTreeSet<u64> = numbers.into_iter().collect();
        // Of earlier ones for which nobody waits any more.
        self.outcomes.clear();
        self.complaint.take();
        let acknowledged = async {
            for frame in frames {
                self.feed(frame).await?;
            }
            match poll_fn(|cx| self.poll_acknowledged(cx, &mut waiting)).await {
                Ok(()) => Ok(()),
                Err(VstpError::Io(error)) => Err(self.refusal_after(error).await),
                Err(error) => Err(error),
            }
        };
        let outcome = tokio::time::timeout(patience, acknowledged).await;
        let outcome = outcome.unwrap_or(Err(VstpError::Timeout));
        waiting.iter().for_each(|msg_id| self.forget(*msg_id));
        match (outcome, self.complaint.take()) {
            // A peer that closes after that has said why.
            (Err(VstpError::Io(_) | VstpError::ConnectionClosed | VstpError::Timeout), Some(reason)) => {
                Err(VstpError::ServerError(reason))
            }
            (outcome, _) => outcome,
        }
    }

    fn poll_acknowledged(
        &mut self,
        cx: &mut Context<'_>,
        waiting: &mut BTreeSet<u64>,
    ) -> Poll<Result<(), VstpError>> {
        loop {
            let written = self.poll_write(cx)?;
            while let Some((msg_id, outcome)) = self.outcomes.pop_front() {
                if waiting.remove(&msg_id)
                    && let Err(reason) = outcome
                {
                    return Poll::Ready(Err(VstpError::ServerError(reason)));
                }
            }
            if waiting.is_empty() && written.is_ready() {
                return Poll::Ready(Ok(()));
            }
            if self.is_full() {
                let words = "the peer sends and does not acknowledge; TcpConfig::unread_max allows more";
                return Poll::Ready(Err(VstpError::Protocol(words.into())));
            }
            if !ready!(self.poll_frame_in_time(cx)) {
                return Poll::Ready(Err(self.failure.take().unwrap_or(VstpError::ConnectionClosed)));
            }
        }
    }

    /// Says BYE, and that nothing more is written.
    pub(crate) async fn close(&mut self) -> Result<(), VstpError> {
        self.push(Frame::new(FrameType::Bye))?;
        match poll_fn(|cx| self.poll_close(cx)).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.refusal_after(error).await),
        }
    }

    /// Writes everything, and ends the sending half.
    pub(super) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    // ---- receiving ----

    /// The next frame, acknowledged if its sender wants that.
    pub(crate) async fn recv_bytes(&mut self) -> Result<Option<FrameBytes>, VstpError> {
        Ok(self.recv_settled(true).await?.map(|(frame, _)| frame))
    }

    /// The next frame, with the acknowledgement that it asks for, which the caller owes from here
    /// on.
    pub(super) async fn recv_owed(&mut self) -> Result<Option<Owed>, VstpError> {
        self.recv_settled(false).await
    }

    async fn recv_settled(&mut self, acknowledges: bool) -> Result<Option<Owed>, VstpError> {
        if self.unread.is_empty() {
            self.session.on_read();
        }
        self.listening_since = Instant::now();
        let taken = poll_fn(|cx| {
            loop {
                self.write_on(cx);
                if let Some((frame, wanted)) = self.take_unread() {
                    if !self.claim(wanted) {
                        continue;
                    }
                    // It is taken and acknowledged in one step, whenever the caller is dropped.
                    // What the stream does not take of the ACK now, goes out before anything else.
                    let Some(wanted) = wanted.filter(|_| acknowledges) else {
                        return Poll::Ready(Some((frame, wanted)));
                    };
                    self.session.acknowledge(Instant::now(), wanted);
                    self.write_on(cx);
                    return Poll::Ready(Some((frame, None)));
                }
                if self.is_full() && self.outbox.answer_bytes() > 0 {
                    // It goes on when the peer reads.
                    self.on_deaf();
                    return Poll::Pending;
                }
                if !ready!(self.poll_frame_in_time(cx)) {
                    return Poll::Ready(None);
                }
            }
        });
        match taken.await {
            Some(taken) => Ok(Some(taken)),
            None => self.end().await.map(|()| None),
        }
    }

    /// The end of what can be read: an error if it is not a good one, of which the peer is told.
    async fn end(&mut self) -> Result<(), VstpError> {
        let Some(error) = self.failure.take() else { return Ok(()) };
        self.say_error(&error).await;
        Err(self.explained(error))
    }

    /// Takes the reason for which nothing more can be read.
    pub(super) fn take_failure(&mut self) -> Option<VstpError> {
        self.failure.take()
    }

    /// An error with its probable reason.
    pub(super) fn explained(&self, error: VstpError) -> VstpError {
        match error {
            VstpError::Io(error) => self.explain(error),
            other => other,
        }
    }

    /// Takes a frame that was read.
    pub(super) fn take_unread(&mut self) -> Option<Owed> {
        let (frame, wanted) = self.unread.pop_front()?;
        self.unread_bytes -= frame.memory();
        Some((frame, wanted))
    }

    fn drop_last(&mut self) {
        if let Some((frame, _)) = self.unread.pop_back() {
            self.unread_bytes -= frame.memory();
        }
    }

    /// Returns true if nothing more may be read before something is taken, or written.
    fn is_full(&self) -> bool {
        self.unread_bytes + self.outbox.answer_bytes() >= self.unread_max
    }

    /// Bytes that may be kept for the application.
    pub(super) fn unread_max(&self) -> usize {
        self.unread_max.saturating_sub(self.outbox.answer_bytes())
    }

    /// Acknowledges a frame that was handed on.
    pub(crate) async fn acknowledge(&mut self, wanted: Acknowledgement) -> Result<(), VstpError> {
        self.settle(wanted);
        self.flush().await
    }

    /// The same, without writing it.
    pub(super) fn settle(&mut self, wanted: Acknowledgement) {
        self.session.acknowledge(Instant::now(), wanted);
    }

    /// Refuses a frame that was handed on, without writing it.
    pub(super) fn refuse(&mut self, wanted: Option<Acknowledgement>, code: ErrorCode, reason: &str) {
        self.session.refuse(Instant::now(), wanted, code, reason);
    }

    /// The application has dropped a frame that was handed on.
    pub(super) fn forgo(&mut self, wanted: Acknowledgement) {
        self.session.forgo(Instant::now(), wanted);
    }

    /// Nobody listens now: neither a frame nor the peer is late.
    pub(super) fn on_deaf(&mut self) {
        self.listening_since = Instant::now();
    }

    /// Returns true if something is answered when the application reads on.
    pub(super) fn has_due(&self) -> bool {
        self.session.has_due()
    }

    /// The application reads on.
    pub(super) fn on_read(&mut self) {
        self.session.on_read();
    }

    /// Reads one frame and sorts it; false at the end, for which there may be a reason.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.watch_session(cx);
        if self.ended {
            return Poll::Ready(false);
        }
        if self.session.is_over() {
            ready!(self.poll_farewell(cx));
            self.ended = true;
            return Poll::Ready(false);
        }
        let framed = self.reader.poll_frame(cx, &mut self.stream);
        if let Some(at) = self.reader.take_heard() {
            self.heard_at = at;
            self.session.on_heard(at);
        }
        match ready!(framed) {
            Ok(Some((frame, crc))) => {
                self.sort(frame, crc);
                return Poll::Ready(true);
            }
            Ok(None) => {}
            Err(error) => {
                if !matches!(error, VstpError::Io(_)) {
                    self.tally.on_malformed();
                }
                self.failure = Some(error);
            }
        }
        self.ended = true;
        Poll::Ready(false)
    }

    /// The same, which ends in time if the peer falls silent where it must not.
    pub(super) fn poll_frame_in_time(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if let Poll::Ready(more) = self.poll_frame(cx) {
            return Poll::Ready(more);
        }
        self.poll_time(cx).map(|()| false)
    }

    fn sort(&mut self, frame: FrameBytes, crc: u32) {
        let now = Instant::now();
        self.stream.on_frame(now);
        if frame.typ == FrameType::Err {
            let refused = frame.headers().number(MSG_ID).filter(|id| self.refuses(*id));
            if let Some(msg_id) = refused {
                // It says which one, and is for nobody else.
                self.session.forget(msg_id);
                self.outcomes.push_back((msg_id, Err(reason_of(&frame))));
                return;
            }
            // That of one call is not everybody's.
            if CallRole::of(&frame.as_ref()).is_none() {
                self.complaint.on_error(&frame);
            }
        }
        match self.session.handle_frame(now, &frame.as_ref(), crc) {
            Verdict::Deliver(wanted) => {
                self.tally.on_received(&frame);
                self.unread_bytes += frame.memory();
                self.unread.push_back((frame, wanted));
            }
            Verdict::Acknowledged(msg_id) => {
                self.tally.on_outcome(msg_id, true);
                self.outcomes.push_back((msg_id, Ok(())));
            }
            Verdict::Repeated => self.count_repeated(),
            Verdict::Consumed => {}
        }
    }

    // ---- time ----

    /// The time when something is due if nothing comes.
    fn due_at(&self) -> Option<Instant> {
        let frame = self.frame_due_at();
        let session = self.session.poll_timeout(self.listening_since);
        [frame, session, self.farewell_until].into_iter().flatten().min()
    }

    /// The time when the frame that has begun must go on.
    fn frame_due_at(&self) -> Option<Instant> {
        let since = self.heard_at.max(self.listening_since);
        self.reader.is_within().then(|| since + self.config.frame_timeout)
    }

    /// Does what is due; ready when the peer has been silent for too long.
    pub(super) fn poll_time(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.watch_session(cx) {
            return Poll::Ready(());
        }
        loop {
            let Some(at) = self.due_at() else { return Poll::Pending };
            // A timer that is early is left: most of what comes only makes things due later.
            let timer = match &mut self.timer {
                Some(timer) if timer.deadline().into_std() <= at && !timer.is_elapsed() => timer,
                Some(timer) => {
                    timer.as_mut().reset(at.into());
                    timer
                }
                none => none.insert(Box::pin(tokio::time::sleep_until(at.into()))),
            };
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            if now < at {
                continue;
            }
            if self.is_farewell_over(now) {
                self.ended = true;
                return Poll::Ready(());
            }
            let is_late = self.frame_due_at().is_some_and(|at| at <= now);
            if is_late || self.session.handle_timeout(now, self.listening_since).is_err() {
                self.ended = true;
                self.failure = Some(VstpError::Timeout);
                self.stream.on_timed_out();
                return Poll::Ready(());
            }
            self.write_on(cx);
            if self.ended {
                return Poll::Ready(());
            }
        }
    }

    /// Tells the peer what was wrong with what it sent, as far as it still listens, and lets it
    /// finish what it is sending: a connection that is closed with something unread is reset, and
    /// then the peer may never see the reason.
    pub(super) async fn say_error(&mut self, error: &VstpError) {
        let code = match error {
            _ if self.session.refusal().is_some() => ErrorCode::Unauthorized,
            VstpError::Io(error) => match Overdue::of(error) {
                Some(Overdue::FirstFrame | Overdue::Idle) => ErrorCode::Timeout,
                Some(Overdue::Place) => ErrorCode::Busy,
                Some(Overdue::Write) | None => return,
            },
            VstpError::ConnectionClosed | VstpError::ServerError(_) => return,
            VstpError::FrameTooLarge { .. } => ErrorCode::TooLarge,
            VstpError::CrcMismatch { .. } => ErrorCode::Crc,
            VstpError::Timeout => ErrorCode::Timeout,
            _ => ErrorCode::Malformed,
        };
        let mut reason = self.session.refusal().map_or_else(|| error.to_string(), str::to_owned);
        reason.truncate(reason.floor_char_boundary(255));
        let frame =
            Frame::new(FrameType::Err).with_header("code", code.as_str()).with_header("reason", &reason);
        if self.outbox.push(frame).is_ok() {
            let bound = Duration::from_secs(1);
            let said = async {
                poll_fn(|cx| self.poll_write(cx)).await?;
                self.stream.shutdown().await
            };
            if !matches!(tokio::time::timeout(bound, said).await, Ok(Ok(()))) {
                tracing::debug!("the peer does not listen to what was wrong");
                return;
            }
            self.discard(Self::LINGER).await;
        }
    }

    /// Reads on and drops what comes, until the peer ends or this time has passed.
    pub(super) async fn discard(&mut self, bound: Duration) {
        let mut rest = vec![0; 16 << 10];
        let discard = async { while self.stream.read(&mut rest).await.is_ok_and(|count| count > 0) {} };
        let _ = tokio::time::timeout(bound, discard).await;
    }
}

/// A number that nobody can guess, unless the operating system has none.
pub(super) fn random() -> u64 {
    getrandom::u64().unwrap_or_else(|_| std::process::id().into())
}
