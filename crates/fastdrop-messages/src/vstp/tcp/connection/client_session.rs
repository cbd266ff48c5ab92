//! The part of a connection in the session of a client that connects again
//! (docs/protocol/vstp.md, section 11).

use super::Connection;
use crate::metrics::Count;
use crate::vstp::types::VstpError;
use fastdrop_proto::vstp::{Acknowledgement, Attachment, ClientOrigin, ClientSessionId, FrameBytes, Welcome};
use std::future::poll_fn;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

impl Connection {
    // ---- at the end that accepts ----

    /// Remembers the session of the client, if it names one.
    pub(in crate::vstp::tcp) fn accept_client_session(&mut self, origin: ClientOrigin) {
        self.session.accept_client_session(origin);
    }

    /// The place of this connection in the session of the client.
    pub(in crate::vstp::tcp) fn attachment(&self) -> Option<&Attachment> {
        self.session.attachment()
    }

    /// Records that a frame is handed to the application now. False: it is not to be handed on.
    pub(super) fn claim(&self, wanted: Option<Acknowledgement>) -> bool {
        let claimed = wanted.is_none_or(|wanted| self.session.claim(wanted));
        if !claimed {
            self.count_repeated();
        }
        claimed
    }

    pub(super) fn count_repeated(&self) {
        self.config.metrics.on(Count::Duplicates);
    }

    /// True when the client has connected again, upon which this connection ends. This is woken by
    /// that, and by acknowledgements that are given elsewhere.
    pub(super) fn watch_session(&mut self, cx: &Context<'_>) -> bool {
        let Some(attachment) = self.session.attachment() else { return false };
        attachment.register(cx.waker());
        if !attachment.is_superseded() {
            return false;
        }
        if !std::mem::replace(&mut self.ended, true) {
            self.failure = Some(VstpError::ConnectionClosed);
        }
        true
    }

    // ---- at the end that connects ----

    /// Says HELLO with this session and the token, if there is one, and waits for the WELCOME for
    /// at most `patience`: programs of version 0.2 may have none, unless the server `must_answer`.
    pub(in crate::vstp::tcp) async fn resume(
        &mut self,
        session: ClientSessionId,
        patience: Duration,
        must_answer: bool,
    ) -> Result<Welcome, VstpError> {
        self.session.show_client_session(session);
        self.hello().await?;
        let welcomed = poll_fn(|cx| {
            loop {
                if let Some(welcome) = self.session.welcome() {
                    // It is the last one that came.
                    self.drop_last();
                    return Poll::Ready(Ok(welcome));
                }
                if !ready!(self.poll_frame_in_time(cx)) {
                    return Poll::Ready(Err(self.failure.take().unwrap_or(VstpError::ConnectionClosed)));
                }
                if self.is_full() {
                    let words = "the server sends and does not answer HELLO";
                    return Poll::Ready(Err(VstpError::Protocol(words.into())));
                }
            }
        });
        match tokio::time::timeout(patience, welcomed).await {
            Ok(Ok(welcome)) => Ok(welcome),
            Ok(Err(error)) => Err(match self.complaint.take() {
                Some(reason) => VstpError::ServerError(reason),
                None => self.explained(error),
            }),
            // Nobody is let in without a word where tokens are shown.
            Err(_) if must_answer || self.config.token.is_some() => Err(VstpError::Timeout),
            Err(_) => Ok(Welcome { memory: None }),
        }
    }

    /// Takes a frame with a number of the session, whose outcome is waited for, and counted by the
    /// caller.
    pub(in crate::vstp::tcp) fn push_expected(
        &mut self,
        frame: &FrameBytes,
        number: u64,
    ) -> Result<(), VstpError> {
        self.sent_max = self.sent_max.max(frame.payload.len());
        self.outbox.push_bytes(frame)?;
        self.session.on_sent(Instant::now(), frame.typ);
        self.session.expect(number);
        Ok(())
    }

    /// Returns true if an ERR with this number refuses a frame whose outcome is waited for.
    pub(super) fn refuses(&mut self, number: u64) -> bool {
        self.tally.on_outcome(number, false) || self.session.is_expected(number)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(attachment) = self.session.attachment() {
            attachment.detach(Instant::now());
        }
    }
}
