//! One TCP connection: what is answered, what is handed on, and when the peer is taken for gone
//! (docs/protocol/vstp.md, section 2).

use super::acknowledgement::Acknowledgement;
use super::client_sessions::{Attachment, CLIENT_SESSION, ClientOrigin, ClientSessionId};
use super::error_code::ErrorCode;
use super::frame::{Flags, FrameRef, FrameType, Headers, HeadersBuf};
use super::handed_on::Fate;
use super::ids::MSG_ID;
use super::seen::{Seen, Settled, Sight};
use crate::authorize::{Authorize, Credentials, Token};
use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

const KEEP_ALIVE: &str = "keep-alive";
const SESSION: &str = "session";
const TOKEN: &str = "token";

/// What a session is to do.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// The session that it is, at the end that accepts; None at the end that connects, which
    /// answers no HELLO.
    pub id: Option<u128>,
    /// The interval at which something is to be heard. None (the default of programs of version
    /// 0.2): never PING. From 100 ms to an hour.
    pub keep_alive: Option<Duration>,
    /// Says whether HELLO and PING are answered at once; else only if the application has not done
    /// so by the time it reads on.
    pub answers: bool,
    /// The token that the end that connects shows in its HELLO.
    pub token: Option<Token>,
    /// The decision of the end that accepts about who is let in. None: everybody.
    pub authorize: Option<Authorize>,
    /// The first number for frames that want an acknowledgement; should be random.
    pub first_msg_id: u64,
}

/// What becomes of a frame that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is for the application. Once the application has handled it, the driver says
    /// [`Session::acknowledge`] with the acknowledgement that it asks for, if it does.
    Deliver(Option<Acknowledgement>),
    /// It was for the session.
    Consumed,
    /// It acknowledges the frame with this number.
    Acknowledged(u64),
    /// It came before, perhaps on another connection, and is not handed on again.
    Repeated,
}

/// The peer has not been heard for three intervals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer has not been heard for too long")]
pub struct Gone;

/// The state of one connection.
///
/// The driver tells `handle_frame` of every frame, `on_sent` of every one that its application
/// sends, `on_heard` of all bytes; writes what `poll_answer` gives; and calls `handle_timeout` when
/// the time of `poll_timeout` has come while it waits for the peer.
#[derive(Debug)]
pub struct Session {
    config: SessionConfig,
    /// Agreed with the peer.
    keep_alive: Option<Duration>,
    answers: VecDeque<Vec<u8>>,
    /// What is answered when the application reads on without having answered.
    due: VecDeque<(FrameType, Vec<u8>)>,
    seen: Seen,
    next_msg_id: u64,
    unacknowledged: BTreeSet<u64>,
    heard_at: Instant,
    sent_at: Instant,
    bye: bool,
    /// Says whether the peer has been let in, or why it has not been.
    admission: Admission,
    /// Of a peer that may connect again: where it comes from, until its first frame has come.
    origin: Option<ClientOrigin>,
    attachment: Option<Attachment>,
    /// The session that this end shows, and what the server has said of it.
    shown: Option<ClientSessionId>,
    welcome: Option<Welcome>,
}

/// The words of a server about a session that it was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Welcome {
    /// The name of its memory of the session; None if it has none.
    pub memory: Option<u64>,
}

/// The state of a peer that needs a token.
#[derive(Debug, PartialEq, Eq)]
enum Admission {
    Awaited,
    Granted,
    Refused(String),
}

impl Session {
    /// Intervals in which the peer must be heard.
    const GONE_AFTER: u32 = 3;
    const KEEP_ALIVE_MS: std::ops::RangeInclusive<u64> = 100..=3_600_000;
    const DUE_MAX: usize = 16;

    /// A connection was made.
    pub fn new(now: Instant, config: SessionConfig) -> Self {
        let admission = if config.authorize.is_some() { Admission::Awaited } else { Admission::Granted };
        Self {
            admission,
            next_msg_id: config.first_msg_id,
            config,
            keep_alive: None,
            answers: VecDeque::new(),
            due: VecDeque::new(),
            seen: Seen::default(),
            unacknowledged: BTreeSet::new(),
            heard_at: now,
            sent_at: now,
            bye: false,
            origin: None,
            attachment: None,
            shown: None,
            welcome: None,
        }
    }

    /// Remembers the session of the peer, if its first frame is a HELLO that names one.
    pub fn accept_client_session(&mut self, origin: ClientOrigin) {
        self.origin = Some(origin);
    }

    /// Shows this session in each HELLO.
    pub fn show_client_session(&mut self, session: ClientSessionId) {
        self.shown = Some(session);
    }

    /// The first WELCOME, if it has come.
    pub fn welcome(&self) -> Option<Welcome> {
        self.welcome
    }

    /// The place of this connection in the session of the peer.
    pub fn attachment(&self) -> Option<&Attachment> {
        self.attachment.as_ref()
    }

    /// Records that a frame is handed to the application now, if it may be.
    pub fn claim(&self, wanted: Acknowledgement) -> bool {
        self.attachment.as_ref().is_none_or(|attachment| attachment.claim(wanted))
    }

    /// Which session it is, at the end that accepts.
    pub fn id(&self) -> Option<u128> {
        self.config.id
    }

    /// Whether the peer has said BYE: nothing more comes.
    pub fn is_over(&self) -> bool {
        self.bye
    }

    /// The headers of a HELLO that offers what this session does.
    pub fn hello(&self) -> HeadersBuf {
        let mut headers = HeadersBuf::default();
        if let Some(token) = &self.config.token {
            headers = headers.with(TOKEN, token.secret());
        }
        if let Some(session) = self.shown {
            headers = headers.with(CLIENT_SESSION, session.digits());
        }
        match self.config.keep_alive {
            Some(interval) => headers.with(KEEP_ALIVE, interval.as_millis()),
            None => headers,
        }
    }

    /// A number for a frame that is to be acknowledged, and waits for that.
    pub fn next_msg_id(&mut self) -> u64 {
        self.next_msg_id = self.next_msg_id.wrapping_add(1);
        self.unacknowledged.insert(self.next_msg_id);
        self.next_msg_id
    }

    /// The acknowledgement of a frame with this number, which the caller has chosen, is waited for.
    pub fn expect(&mut self, msg_id: u64) {
        self.unacknowledged.insert(msg_id);
    }

    /// Reports whether the acknowledgement of a frame is waited for.
    pub fn is_expected(&self, msg_id: u64) -> bool {
        self.unacknowledged.contains(&msg_id)
    }

    /// Nobody waits for this acknowledgement any more.
    pub fn forget(&mut self, msg_id: u64) {
        self.unacknowledged.remove(&msg_id);
    }

    /// Bytes came.
    pub fn on_heard(&mut self, now: Instant) {
        self.heard_at = now;
    }

    /// The application sends a frame.
    pub fn on_sent(&mut self, now: Instant, typ: FrameType) {
        self.sent_at = now;
        self.due.retain(|(answer, _)| *answer != typ);
    }

    /// A frame came, with this CRC.
    pub fn handle_frame(&mut self, now: Instant, frame: &FrameRef<'_>, crc: u32) -> Verdict {
        if self.bye || (self.admission != Admission::Granted && !self.admit(now, frame)) {
            return Verdict::Consumed;
        }
        // Only a first frame names a session.
        let origin = self.origin.take();
        let msg_id = frame.headers.number(MSG_ID);
        match frame.typ {
            FrameType::Ack => {
                let waited = msg_id.filter(|msg_id| self.unacknowledged.remove(msg_id));
                return waited.map_or(Verdict::Deliver(None), Verdict::Acknowledged);
            }
            // An error is never answered (case 75).
            FrameType::Err => return Verdict::Deliver(None),
            FrameType::Hello => {
                self.attach(now, frame.headers, origin);
                self.handle_hello(frame.headers);
                if frame.headers.find(CLIENT_SESSION).is_some() && self.attachment.is_some() {
                    return Verdict::Consumed;
                }
            }
            FrameType::Welcome => {
                self.agree(frame.headers);
                let memory = frame.headers.number(CLIENT_SESSION);
                self.welcome.get_or_insert(Welcome { memory });
            }
            FrameType::Ping => {
                let pong = FrameRef { typ: FrameType::Pong, flags: Flags::empty(), ..*frame };
                self.answer(&pong, self.config.answers || self.keep_alive.is_some());
            }
            FrameType::Bye => self.bye = true,
            FrameType::Data | FrameType::Pong => {}
        }
        let unnumbered = Acknowledgement { msg_id: None, crc, unique: false };
        let wanted = Acknowledgement::of(frame.headers, crc).unwrap_or(unnumbered);
        let wanted = frame.flags.contains(Flags::REQ_ACK).then_some(wanted);
        if let (Some(attachment), Some(number), true) = (&self.attachment, msg_id, wanted.is_some()) {
            match attachment.fate(number) {
                Fate::New => {}
                Fate::InHand | Fate::Past => return Verdict::Repeated,
                Fate::Acknowledged | Fate::Refused => {
                    self.answers.extend(attachment.answer(number));
                    return Verdict::Repeated;
                }
            }
        } else if let Some(wanted) = wanted.filter(|_| msg_id.is_some()) {
            match self.seen.receive(now, wanted) {
                Sight::New => {}
                Sight::Pending => return Verdict::Consumed,
                Sight::Settled => {
                    self.answers.extend(self.seen.answer(wanted));
                    return Verdict::Consumed;
                }
            }
        }
        if self.keep_alive.is_some() && matches!(frame.typ, FrameType::Ping | FrameType::Pong) {
            if let Some(wanted) = wanted {
                self.acknowledge(now, wanted);
            }
            return Verdict::Consumed;
        }
        Verdict::Deliver(wanted)
    }

    /// Acknowledges a frame that the application has handled.
    pub fn acknowledge(&mut self, now: Instant, frame: Acknowledgement) {
        if let Some(attachment) = self.attachment_of(frame) {
            return attachment.acknowledge(frame);
        }
        self.seen.settle(now, frame, Settled::Acknowledged);
        self.push_ack(frame);
    }

    /// Records that the application has dropped a frame, which is not acknowledged.
    pub fn forgo(&mut self, now: Instant, frame: Acknowledgement) {
        if let Some(attachment) = self.attachment_of(frame) {
            return attachment.forgo(frame);
        }
        self.seen.settle(now, frame, Settled::Dropped);
    }

    /// Refuses a frame that was handed on: an ERR says why. None if it asked for no
    /// acknowledgement.
    pub fn refuse(&mut self, now: Instant, frame: Option<Acknowledgement>, code: ErrorCode, reason: &str) {
        if let Some(frame) = frame
            && let Some(attachment) = self.attachment_of(frame)
        {
            return attachment.refuse(frame, code, reason);
        }
        let unnumbered = Acknowledgement { msg_id: None, crc: 0, unique: false };
        if let Ok(bytes) = frame.unwrap_or(unnumbered).encode_refusal(code, reason) {
            if let Some(frame) = frame {
                self.seen.settle(now, frame, Settled::Refused(bytes.clone()));
            }
            self.answers.push_back(bytes);
        }
    }

    /// Reports whether the peer has been let in.
    pub fn is_admitted(&self) -> bool {
        self.admission == Admission::Granted
    }

    /// The reason for which the peer is not let in; nothing of it is handed on.
    pub fn refusal(&self) -> Option<&str> {
        match &self.admission {
            Admission::Refused(why) => Some(why),
            _ => None,
        }
    }

    /// Decides about the first frame of a peer that needs a token. False: it is not handed on.
    fn admit(&mut self, now: Instant, frame: &FrameRef<'_>) -> bool {
        let Some(authorize) = &self.config.authorize else { return true };
        if matches!(self.admission, Admission::Refused(_)) {
            return false;
        }
        if frame.typ != FrameType::Hello {
            self.admission = Admission::Refused("a HELLO with a token has to come first".into());
            return false;
        }
        let token = frame.headers.find(TOKEN).and_then(|token| std::str::from_utf8(token).ok());
        match authorize.decide(&Credentials::new(token, None)) {
            Ok(()) => {
                self.admission = Admission::Granted;
                // Nobody else answers it.
                let answers = std::mem::replace(&mut self.config.answers, true);
                let origin = self.origin.take();
                self.attach(now, frame.headers, origin);
                self.handle_hello(frame.headers);
                self.config.answers = answers;
            }
            Err(why) => self.admission = Admission::Refused(why),
        }
        false
    }

    fn attach(&mut self, now: Instant, headers: Headers<'_>, origin: Option<ClientOrigin>) {
        if let Some(origin) = origin {
            self.attachment = origin.attach(now, headers, headers.find(TOKEN));
        }
    }

    /// The place of this connection in the session to which a frame belongs, if it has a number.
    fn attachment_of(&self, frame: Acknowledgement) -> Option<&Attachment> {
        self.attachment.as_ref().filter(|_| frame.number().is_some())
    }

    fn push_ack(&mut self, frame: Acknowledgement) {
        if let Ok(bytes) = frame.encode(b"") {
            self.answers.push_back(bytes);
        }
    }

    fn handle_hello(&mut self, headers: Headers<'_>) {
        let Some(id) = self.config.id else { return };
        self.agree(headers);
        let mut welcome = HeadersBuf::default().with(SESSION, id);
        if let (Some(_), Some(interval)) = (self.keep_alive, self.config.keep_alive) {
            welcome = welcome.with(KEEP_ALIVE, interval.as_millis());
        }
        if let Some(attachment) = &self.attachment {
            welcome = welcome.with(CLIENT_SESSION, attachment.memory());
        }
        let at_once = self.config.answers || self.keep_alive.is_some() || self.attachment.is_some();
        let (typ, flags, headers) = (FrameType::Welcome, Flags::empty(), welcome.as_headers());
        self.answer(&FrameRef { typ, flags, headers, payload: b"" }, at_once);
    }

    fn agree(&mut self, headers: Headers<'_>) {
        let theirs = headers.number(KEEP_ALIVE).filter(|ms| Self::KEEP_ALIVE_MS.contains(ms));
        if let (Some(theirs), Some(ours)) = (theirs, self.config.keep_alive) {
            self.keep_alive = Some(ours.min(Duration::from_millis(theirs)));
        }
    }

    fn answer(&mut self, frame: &FrameRef<'_>, at_once: bool) {
        let mut bytes = Vec::new();
        if frame.encode(&mut bytes).is_err() {
            return;
        }
        if at_once {
            self.answers.push_back(bytes);
        } else if self.due.len() < Self::DUE_MAX {
            self.due.push_back((frame.typ, bytes));
        }
    }

    /// The application reads on: what it has not answered is answered now.
    pub fn on_read(&mut self) {
        self.answers.extend(self.due.drain(..).map(|(_, bytes)| bytes));
    }

    /// Returns true if something is answered when the application reads on.
    pub fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// A frame to write. The driver bounds what waits to be written: a peer that does not read
    /// causes as many as it likes.
    pub fn poll_answer(&mut self) -> Option<Vec<u8>> {
        self.answers.pop_front().or_else(|| self.attachment.as_ref()?.poll_answer())
    }

    /// The time of [`Self::poll_timeout`] has come. `waiting_since`: since when the driver has
    /// waited for the peer, as time in which nobody listened does not count.
    pub fn handle_timeout(&mut self, now: Instant, waiting_since: Instant) -> Result<(), Gone> {
        let Some(interval) = self.keep_alive else { return Ok(()) };
        if now >= self.heard_at.max(waiting_since) + interval * Self::GONE_AFTER {
            return Err(Gone);
        }
        if now >= self.sent_at + interval / 2 {
            self.sent_at = now;
            let (typ, flags, headers) = (FrameType::Ping, Flags::empty(), Headers::default());
            self.answer(&FrameRef { typ, flags, headers, payload: b"" }, true);
        }
        Ok(())
    }

    /// When something has to be done if nothing comes.
    pub fn poll_timeout(&self, waiting_since: Instant) -> Option<Instant> {
        let interval = self.keep_alive?;
        let gone = self.heard_at.max(waiting_since) + interval * Self::GONE_AFTER;
        Some(gone.min(self.sent_at + interval / 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vstp::FrameBytes;

    fn session(keep_alive: Option<Duration>, answers: bool) -> (Instant, Session) {
        let now = Instant::now();
        (
            now,
            Session::new(
                now,
                SessionConfig {
                    id: Some(7),
                    keep_alive,
                    answers,
                    token: None,
                    authorize: None,
                    first_msg_id: 100,
                },
            ),
        )
    }

    fn frame(typ: FrameType, headers: &[(&str, u64)]) -> FrameBytes {
        let headers = headers.iter().fold(HeadersBuf::default(), |buf, (key, value)| buf.with(key, value));
        FrameBytes::new(typ, headers, bytes::Bytes::new())
    }

    fn answers(session: &mut Session) -> Vec<FrameBytes> {
        std::iter::from_fn(|| session.poll_answer())
            .map(|bytes| FrameRef::decode(&bytes, 9999).unwrap().unwrap().0.into())
            .collect()
    }

    #[test]
    fn what_the_application_answers_is_not_answered_again() {
        let (now, mut session) = session(None, false);
        assert_eq!(
            session.handle_frame(now, &frame(FrameType::Hello, &[]).as_ref(), 0),
            Verdict::Deliver(None)
        );
        session.on_sent(now, FrameType::Welcome);
        session.on_read();
        assert_eq!(answers(&mut session), []);
        session.handle_frame(now, &frame(FrameType::Ping, &[("a", 1)]).as_ref(), 0);
        assert_eq!(answers(&mut session), []);
        session.on_read();
        assert_eq!(answers(&mut session), [frame(FrameType::Pong, &[("a", 1)])]);
    }

    #[test]
    fn case_110_a_frame_is_delivered_once_and_acknowledged_when_it_is_handled() {
        for handled in [true, false] {
            let (now, mut session) = session(None, true);
            let data = frame(FrameType::Data, &[(MSG_ID, 5)]).with_flag(Flags::REQ_ACK);
            let Verdict::Deliver(Some(wanted)) = session.handle_frame(now, &data.as_ref(), 1) else {
                panic!("not delivered")
            };
            assert_eq!(session.handle_frame(now, &data.as_ref(), 1), Verdict::Consumed);
            assert_eq!(answers(&mut session), [], "nobody has handled it");
            if handled {
                session.acknowledge(now, wanted);
            } else {
                session.forgo(now, wanted);
            }
            assert_eq!(session.handle_frame(now, &data.as_ref(), 1), Verdict::Consumed);
            let ack = frame(FrameType::Ack, &[(MSG_ID, 5)]);
            let expected = if handled { vec![ack.clone(), ack] } else { vec![] };
            assert_eq!(answers(&mut session), expected);
        }
    }

    #[test]
    fn cases_74_and_75_errors_and_unexpected_acknowledgements_are_not_answered() {
        let (now, mut session) = session(None, true);
        for typ in [FrameType::Err, FrameType::Ack] {
            let frame = frame(typ, &[(MSG_ID, 5)]).with_flag(Flags::REQ_ACK);
            assert_eq!(session.handle_frame(now, &frame.as_ref(), 1), Verdict::Deliver(None));
        }
        assert_eq!(answers(&mut session), []);
        let msg_id = session.next_msg_id();
        let ack = frame(FrameType::Ack, &[(MSG_ID, msg_id)]);
        assert_eq!(session.handle_frame(now, &ack.as_ref(), 1), Verdict::Acknowledged(msg_id));
        assert_eq!(session.handle_frame(now, &ack.as_ref(), 1), Verdict::Deliver(None));
    }

    #[test]
    fn case_96_who_agreed_to_keep_alive_and_is_silent_is_gone() {
        let second = Duration::from_secs(1);
        let (now, mut session) = session(Some(second), true);
        assert_eq!(session.poll_timeout(now), None, "nothing is agreed");
        session.handle_frame(now, &frame(FrameType::Hello, &[(KEEP_ALIVE, 2000)]).as_ref(), 0);
        assert_eq!(answers(&mut session), [frame(FrameType::Welcome, &[(SESSION, 7), (KEEP_ALIVE, 1000)])]);
        let mut at = now;
        for _ in 0..5 {
            at = session.poll_timeout(now).unwrap();
            session.handle_timeout(at, now).unwrap();
            assert_eq!(answers(&mut session), [frame(FrameType::Ping, &[])]);
        }
        assert_eq!(at, now + second * 5 / 2);
        at = session.poll_timeout(now).unwrap();
        assert_eq!(session.handle_timeout(at, now), Err(Gone));
        // Nobody listened until now, so nothing could be heard.
        assert_eq!(session.handle_timeout(at, at), Ok(()));
    }
}
