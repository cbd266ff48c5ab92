//! One connection, at either end.

use super::TcpConfig;
use super::guard::Overdue;
use super::outbox::Outbox;
use super::stream::Stream;
use crate::vstp::types::{Frame, FrameType, LARGER, VstpError};
use bytes::{BufMut, Bytes, BytesMut};
use fastdrop_proto::vstp::frame::{CRC_BYTES, FRAME_MAX, HEAD_BYTES, check_crc};
use fastdrop_proto::vstp::{
    Acknowledgement, ErrorCode, Flags, FrameBytes, FrameError, FrameRef, Head, Headers, MSG_ID, Session,
    SessionConfig, Verdict,
};
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A large frame whose payload goes straight to where it will be.
#[derive(Debug)]
struct Large {
    head: Head,
    front: Bytes,
    crc: crc32fast::Hasher,
    payload: Vec<u8>,
}

/// Frames in both directions, and the session about them.
///
/// `recv` may be dropped at any point without losing anything, and so may `send`: what it had begun
/// to write goes out before anything else.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Stream,
    session: Session,
    config: TcpConfig,
    read: BytesMut,
    large: Option<Large>,
    /// Whether the last frame was large: then the next one probably is, and little is read ahead.
    after_large: bool,
    outbox: Outbox,
    /// Bytes of the largest payload that was sent.
    sent_max: usize,
    /// What has been read and not yet handed on.
    ready: Option<Next>,
    /// Frames that came while an acknowledgement was waited for.
    early: VecDeque<(FrameBytes, Option<Acknowledgement>)>,
    early_bytes: usize,
    ended: bool,
}

impl Connection {
    /// Payloads from this size on are read to where they will be.
    const LARGE_MIN: usize = 32 << 10;
    const READ: usize = 256 << 10;
    const READ_AFTER_LARGE: usize = 512;
    /// The time for which a peer that was refused something may go on sending before the connection
    /// is reset, which could take from it what it was told; and how long the reason is looked for
    /// after a write has failed.
    const LINGER: Duration = Duration::from_secs(5);
    /// What is written without waiting for more.
    const OUTBOX_MAX: usize = 256 << 10;

    pub(crate) fn new(stream: Stream, config: TcpConfig, id: Option<u128>, answers: bool) -> Self {
        let session = SessionConfig {
            id,
            keep_alive: config.keep_alive,
            answers,
            token: config.token.clone(),
            authorize: config.authorize.clone(),
            first_msg_id: random() >> 1,
        };
        Self {
            stream,
            session: Session::new(Instant::now(), session),
            config,
            read: BytesMut::new(),
            large: None,
            after_large: false,
            outbox: Outbox::default(),
            sent_max: 0,
            ready: None,
            early: VecDeque::new(),
            early_bytes: 0,
            ended: false,
        }
    }

    pub(crate) fn session_id(&self) -> u128 {
        self.session.id().unwrap_or_default()
    }

    // ---- sending ----

    pub(crate) async fn send(&mut self, frame: Frame) -> Result<(), VstpError> {
        self.feed(frame).await?;
        self.flush().await
    }

    /// Takes a frame, to be written with others; waits only when much is waiting already.
    pub(crate) async fn feed(&mut self, frame: Frame) -> Result<(), VstpError> {
        let typ = frame.typ;
        self.sent_max = self.sent_max.max(frame.payload.len());
        self.outbox.push(frame)?;
        self.fed(typ).await
    }

    pub(crate) async fn feed_bytes(&mut self, frame: &FrameBytes) -> Result<(), VstpError> {
        self.sent_max = self.sent_max.max(frame.payload.len());
        self.outbox.push_bytes(frame)?;
        self.fed(frame.typ).await
    }

    async fn fed(&mut self, typ: FrameType) -> Result<(), VstpError> {
        self.session.on_sent(Instant::now(), typ);
        if self.outbox.len() >= Self::OUTBOX_MAX { self.flush().await } else { Ok(()) }
    }

    /// Writes what was fed. A peer that has refused something has said why before it closed: then
    /// that is the error.
    pub(crate) async fn flush(&mut self) -> Result<(), VstpError> {
        match self.outbox.flush(&mut self.stream).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.refusal_after(error).await),
        }
    }

    /// The reason that stands in an ERR frame behind everything that the peer has sent, or else
    /// this error.
    async fn refusal_after(&mut self, error: io::Error) -> VstpError {
        let mut said = None;
        // The peer has closed: what it said is there already, or is lost.
        let read_on = async {
            loop {
                match self.next_frame().await {
                    Ok(Some((frame, _))) if frame.typ == FrameType::Err => {
                        said = Some(VstpError::ServerError(reason_of(&frame)));
                    }
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => return,
                }
            }
        };
        let _ = tokio::time::timeout(Self::LINGER, read_on).await;
        self.ended = true;
        said.unwrap_or_else(|| self.explain(error))
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

    pub(crate) async fn hello(&mut self) -> Result<(), VstpError> {
        let hello = FrameBytes::new(FrameType::Hello, self.session.hello(), Bytes::new());
        self.feed_bytes(&hello).await?;
        self.flush().await
    }

    /// The frame with a number and REQ_ACK, and that number.
    pub(crate) fn numbered(&mut self, mut frame: Frame) -> (Frame, u64) {
        let msg_id = self.session.next_msg_id();
        frame.headers.retain(|header| header.key != MSG_ID.as_bytes());
        (frame.with_header(MSG_ID, &msg_id.to_string()).with_flag(Flags::REQ_ACK), msg_id)
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
        let mut refusal = None;
        let acknowledged = async {
            for frame in frames {
                self.feed(frame).await?;
            }
            self.flush().await?;
            while !waiting.is_empty() {
                match self.next().await? {
                    None => return Err(VstpError::ConnectionClosed),
                    // It says which one, and is for nobody else.
                    Some(Next::Frame(frame, _))
                        if refused(&frame).is_some_and(|id| waiting.contains(&id)) =>
                    {
                        return Err(VstpError::ServerError(reason_of(&frame)));
                    }
                    Some(Next::Acknowledged(msg_id)) => drop(waiting.remove(&msg_id)),
                    Some(Next::Frame(..)) if self.early_bytes > self.config.frame_max => {
                        return Err(VstpError::Protocol("the peer sends and does not acknowledge".into()));
                    }
                    Some(Next::Frame(frame, wanted)) => {
                        // A peer that closes after that has said why.
                        if frame.typ == FrameType::Err {
                            refusal = Some(reason_of(&frame));
                        }
                        self.early_bytes += frame.memory();
                        self.early.push_back((frame, wanted));
                    }
                }
            }
            Ok(())
        };
        let outcome = tokio::time::timeout(patience, acknowledged).await;
        let outcome = outcome.unwrap_or(Err(VstpError::Timeout));
        waiting.iter().for_each(|msg_id| self.session.forget(*msg_id));
        match (outcome, refusal) {
            (Err(VstpError::Io(_) | VstpError::ConnectionClosed | VstpError::Timeout), Some(reason)) => {
                Err(VstpError::ServerError(reason))
            }
            (outcome, _) => outcome,
        }
    }

    /// Says BYE, and that nothing more is written.
    pub(crate) async fn close(&mut self) -> Result<(), VstpError> {
        self.outbox.push(Frame::new(FrameType::Bye))?;
        self.flush().await?;
        match self.stream.shutdown().await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.refusal_after(error).await),
        }
    }

    // ---- tokens ----

    /// The most that it may take until a client is let in.
    const ADMISSION_MAX: Duration = Duration::from_secs(10);

    /// Shows the token, if there is one, and waits until the server has let this end in.
    pub(crate) async fn introduce(&mut self) -> Result<(), VstpError> {
        if self.config.token.is_none() {
            return Ok(());
        }
        let welcomed = async {
            self.hello().await?;
            match self.recv_bytes().await? {
                Some(frame) if frame.typ == FrameType::Welcome => Ok(()),
                Some(frame) if frame.typ == FrameType::Err => Err(VstpError::ServerError(reason_of(&frame))),
                Some(_) => Err(VstpError::UnexpectedFrameType),
                None => Err(VstpError::ConnectionClosed),
            }
        };
        let welcomed = tokio::time::timeout(Self::ADMISSION_MAX, welcomed).await;
        welcomed.unwrap_or(Err(VstpError::Timeout))
    }

    /// Waits until the client has been let in, where it needs a token.
    pub(crate) async fn admit(&mut self) -> Result<(), VstpError> {
        let admitted = async {
            while !self.session.is_admitted() {
                match self.next_frame().await? {
                    Some((frame, crc)) => self.judge(frame, crc),
                    None => return Err(VstpError::ConnectionClosed),
                }
                if let Some(why) = self.session.refusal() {
                    return Err(VstpError::Protocol(format!("not let in: {why}")));
                }
            }
            self.answer().await
        };
        let admitted = tokio::time::timeout(Self::ADMISSION_MAX, admitted).await;
        let admitted = admitted.unwrap_or(Err(VstpError::Timeout));
        if let Err(error) = &admitted {
            self.ended = true;
            self.say_error(error).await;
        }
        admitted
    }

    // ---- receiving ----

    /// The next frame, acknowledged if its sender wants that.
    pub(crate) async fn recv_bytes(&mut self) -> Result<Option<FrameBytes>, VstpError> {
        if !self.wait_for_frame().await? {
            return Ok(None);
        }
        if let Some(Next::Frame(_, wanted)) = &mut self.ready
            && let Some(wanted) = wanted.take()
        {
            self.session.acknowledge(Instant::now(), wanted);
        }
        // The frame stays in its place if this is dropped meanwhile.
        self.answer().await?;
        Ok(self.take_frame().map(|(frame, _)| frame))
    }

    /// The next frame, with the acknowledgement that it asks for, which the caller owes from here
    /// on.
    pub(super) async fn recv_owed(
        &mut self,
    ) -> Result<Option<(FrameBytes, Option<Acknowledgement>)>, VstpError> {
        Ok(if self.wait_for_frame().await? { self.take_frame() } else { None })
    }

    /// Waits until the next frame is ready; false at the end.
    async fn wait_for_frame(&mut self) -> Result<bool, VstpError> {
        loop {
            match &self.ready {
                Some(Next::Frame(..)) => return Ok(true),
                // Nobody waits for that any more.
                Some(Next::Acknowledged(_)) => self.ready = None,
                None => {}
            }
            if let Some((frame, wanted)) = self.early.pop_front() {
                self.early_bytes -= frame.memory();
                self.ready = Some(Next::Frame(frame, wanted));
            } else if !self.wait().await? {
                return Ok(false);
            }
        }
    }

    fn take_frame(&mut self) -> Option<(FrameBytes, Option<Acknowledgement>)> {
        match self.ready.take() {
            Some(Next::Frame(frame, wanted)) => Some((frame, wanted)),
            _ => None,
        }
    }

    /// Acknowledges a frame that was handed on.
    pub(crate) async fn acknowledge(&mut self, wanted: Acknowledgement) -> Result<(), VstpError> {
        self.session.acknowledge(Instant::now(), wanted);
        self.answer().await
    }

    /// Refuses a frame that was handed on.
    pub(super) async fn refuse(
        &mut self,
        wanted: Option<Acknowledgement>,
        code: ErrorCode,
        reason: &str,
    ) -> Result<(), VstpError> {
        self.session.refuse(Instant::now(), wanted, code, reason);
        self.answer().await
    }

    /// The application has dropped a frame that was handed on.
    pub(super) fn forgo(&mut self, wanted: Acknowledgement) {
        self.session.forgo(Instant::now(), wanted);
    }

    /// The next frame, with the acknowledgement that it asks for, or the next acknowledgement; None
    /// at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Next>, VstpError> {
        Ok(if self.wait().await? { self.ready.take() } else { None })
    }

    /// Waits until something is ready; false at the end.
    async fn wait(&mut self) -> Result<bool, VstpError> {
        if self.ready.is_none() {
            self.session.on_read();
        }
        self.answer().await?;
        while self.ready.is_none() {
            if self.ended || self.session.is_over() {
                return Ok(false);
            }
            match self.next_frame().await {
                Ok(Some((frame, crc))) => self.judge(frame, crc),
                Ok(None) => return Ok(false),
                Err(error) => {
                    self.ended = true;
                    self.say_error(&error).await;
                    return Err(match error {
                        VstpError::Io(error) => self.explain(error),
                        other => other,
                    });
                }
            }
            self.answer().await?;
        }
        Ok(true)
    }

    fn judge(&mut self, frame: FrameBytes, crc: u32) {
        self.stream.on_frame(Instant::now());
        match self.session.handle_frame(Instant::now(), &frame.as_ref(), crc) {
            Verdict::Deliver(wanted) => self.ready = Some(Next::Frame(frame, wanted)),
            Verdict::Acknowledged(msg_id) => self.ready = Some(Next::Acknowledged(msg_id)),
            Verdict::Consumed => {}
        }
    }

    async fn answer(&mut self) -> Result<(), VstpError> {
        if !self.session.has_answers() {
            return Ok(());
        }
        while let Some(answer) = self.session.poll_answer() {
            self.outbox.push_encoded(&answer);
        }
        Ok(self.outbox.flush(&mut self.stream).await?)
    }

    async fn next_frame(&mut self) -> Result<Option<(FrameBytes, u32)>, VstpError> {
        loop {
            if self.large.is_some() {
                return self.rest_of_large().await.map(Some);
            }
            if let Some(head) = Head::parse(&self.read, self.config.frame_max)? {
                if self.read.len() >= head.frame_len() {
                    self.after_large = false;
                    return Ok(Some(take_small(head, &mut self.read)?));
                }
                let front = HEAD_BYTES + head.headers_len();
                if head.payload_len() >= Self::LARGE_MIN && self.read.len() >= front {
                    self.begin_large(head, front);
                    continue;
                }
            }
            if self.fill().await? == 0 {
                return self.end().map(|()| None);
            }
        }
    }

    /// The end of what comes: fine between frames.
    fn end(&mut self) -> Result<(), VstpError> {
        self.ended = true;
        if self.read.is_empty() && self.large.is_none() {
            return Ok(());
        }
        let cut = io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended within a frame");
        Err(VstpError::Io(cut))
    }

    fn begin_large(&mut self, head: Head, front: usize) {
        let front = self.read.split_to(front).freeze();
        let mut crc = crc32fast::Hasher::new();
        crc.update(&front);
        let mut payload = Vec::with_capacity(head.payload_len());
        let there = self.read.len().min(head.payload_len());
        payload.extend_from_slice(&self.read.split_to(there));
        crc.update(&payload);
        self.large = Some(Large { head, front, crc, payload });
        self.after_large = true;
    }

    async fn rest_of_large(&mut self) -> Result<(FrameBytes, u32), VstpError> {
        loop {
            let Some(large) = &mut self.large else { return Err(VstpError::ConnectionClosed) };
            let missing = large.head.payload_len() - large.payload.len();
            if missing == 0 && self.read.len() >= CRC_BYTES {
                break;
            }
            let came = if missing == 0 { self.fill().await? } else { self.fill_large(missing).await? };
            if came == 0 {
                self.end()?;
            }
        }
        let Some(large) = self.large.take() else { return Err(VstpError::ConnectionClosed) };
        let crc = self.read.split_to(CRC_BYTES);
        let expected = crc.first_chunk().map_or(0, |crc| u32::from_be_bytes(*crc));
        check_crc(expected, large.crc.finalize())?;
        let (typ, flags) = (large.head.typ()?, large.head.flags());
        let headers = large.front.slice(HEAD_BYTES..);
        Ok((FrameBytes::from_wire(typ, flags, headers, large.payload.into())?, expected))
    }

    async fn fill_large(&mut self, missing: usize) -> Result<usize, VstpError> {
        let wait = self.config.frame_timeout;
        let Some(large) = &mut self.large else { return Ok(0) };
        let before = large.payload.len();
        let mut rest = (&mut large.payload).limit(missing);
        let came = match tokio::time::timeout(wait, self.stream.read_buf(&mut rest)).await {
            Ok(came) => came?,
            Err(_) => return Err(VstpError::Timeout),
        };
        // While it is in the cache.
        large.crc.update(large.payload.get(before..).unwrap_or_default());
        self.session.on_heard(Instant::now());
        Ok(came)
    }

    /// Reads more, however long it takes between frames, and not for ever within one.
    async fn fill(&mut self) -> Result<usize, VstpError> {
        let since = Instant::now();
        let within = !self.read.is_empty() || self.large.is_some();
        let frame_at = within.then(|| since + self.config.frame_timeout);
        let want = if self.after_large { Self::READ_AFTER_LARGE } else { Self::READ };
        self.read.reserve(want.max(2 * HEAD_BYTES));
        loop {
            let session_at = self.session.poll_timeout(since);
            let mut room = (&mut self.read).limit(want);
            let read = self.stream.read_buf(&mut room);
            let came = match [frame_at, session_at].into_iter().flatten().min() {
                None => read.await?,
                Some(at) => match tokio::time::timeout_at(at.into(), read).await {
                    Ok(came) => came?,
                    Err(_) => {
                        self.on_time(since, frame_at).await?;
                        continue;
                    }
                },
            };
            self.session.on_heard(Instant::now());
            return Ok(came);
        }
    }

    async fn on_time(&mut self, since: Instant, frame_at: Option<Instant>) -> Result<(), VstpError> {
        let now = Instant::now();
        if frame_at.is_some_and(|at| at <= now) || self.session.handle_timeout(now, since).is_err() {
            return Err(VstpError::Timeout);
        }
        self.answer().await
    }

    /// When a PING is due although nobody reads.
    pub(crate) fn ping_at(&self) -> Option<Instant> {
        self.session.poll_timeout(Instant::now())
    }

    /// That time has come.
    pub(crate) async fn ping(&mut self) -> Result<(), VstpError> {
        let now = Instant::now();
        // While nobody reads, nobody is gone.
        if self.session.handle_timeout(now, now).is_err() {
            return Err(VstpError::Timeout);
        }
        self.answer().await
    }

    /// Tells the peer what was wrong with what it sent, as far as it still listens, and lets it
    /// finish what it is sending: a connection that is closed with something unread is reset, and
    /// then the peer may never see the reason.
    async fn say_error(&mut self, error: &VstpError) {
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
                self.outbox.flush(&mut self.stream).await?;
                self.stream.shutdown().await
            };
            if !matches!(tokio::time::timeout(bound, said).await, Ok(Ok(()))) {
                tracing::debug!("the peer does not listen to what was wrong");
                return;
            }
            let mut rest = vec![0; 16 << 10];
            let discard = async { while self.stream.read(&mut rest).await.is_ok_and(|count| count > 0) {} };
            let _ = tokio::time::timeout(Self::LINGER, discard).await;
        }
    }
}

/// The number of the frame that an ERR is about, if it says so.
fn refused(frame: &FrameBytes) -> Option<u64> {
    frame.headers().number(MSG_ID).filter(|_| frame.typ == FrameType::Err)
}

/// The reason in an ERR frame.
fn reason_of(frame: &FrameBytes) -> String {
    let headers = frame.headers();
    let reason = headers.find("reason").or_else(|| headers.find("code")).unwrap_or(b"no reason given");
    String::from_utf8_lossy(reason).into_owned()
}

/// What came.
#[derive(Debug)]
pub(crate) enum Next {
    Frame(FrameBytes, Option<Acknowledgement>),
    Acknowledged(u64),
}

fn take_small(head: Head, read: &mut BytesMut) -> Result<(FrameBytes, u32), FrameError> {
    let bytes = read.split_to(head.frame_len()).freeze();
    let crc = bytes.last_chunk().map_or(0, |crc| u32::from_be_bytes(*crc));
    let frame = FrameRef::decode_whole(head, &bytes)?;
    let payload = bytes.slice_ref(frame.payload);
    let headers = bytes.slice_ref(Headers::as_bytes(&frame.headers));
    Ok((FrameBytes::from_wire(frame.typ, frame.flags, headers, payload)?, crc))
}

/// A number that nobody can guess, unless the operating system has none.
fn random() -> u64 {
    getrandom::u64().unwrap_or_else(|_| std::process::id().into())
}
