//! A session as its application sees it.

use super::clock;
use super::driver::{Shared, State};
use super::error::Error;
use super::in_hand::InHand;
use crate::tls::Fingerprint;
use bytes::Bytes;
use fastdrop_proto::cnp::{Agreed, Carrier, Counters, Ending, ErrorCode, Generation, ReceiveId, SendError};
use futures_core::Stream;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::oneshot;

/// One end of a session. Clones are the same session; when the last one is dropped, it is closed
/// after what was sent has arrived, for which it has ten seconds.
#[derive(Debug, Clone)]
pub struct Session(pub(super) Arc<Handle>);

/// The part that makes the end of the last clone known.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) shared: Arc<Shared>,
    pub(super) agreed: Agreed,
    pub(super) peer: SocketAddr,
    pub(super) fingerprint: Option<Fingerprint>,
}

impl Handle {
    /// The session is closed, after what was sent has arrived.
    pub(super) fn abandon(&self) {
        self.shared.lock().abandoned = true;
        self.shared.changed.notify_one();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.abandon();
    }
}

/// The measures of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// The smoothed round-trip time, from a packet to its acknowledgement; None before the first.
    pub rtt: Option<Duration>,
    /// The smallest one.
    pub rtt_min: Option<Duration>,
    /// The counts.
    pub counters: Counters,
}

/// The reason for which a message was not taken to be sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrySendError {
    /// Too much waits for this peer already: it takes nothing, or not fast enough.
    #[error("too much waits for this peer already")]
    Full,
    /// The message cannot be sent, or the session is over.
    #[error(transparent)]
    Failed(#[from] Error),
}

/// The acknowledgement of a message, to be awaited or not.
#[derive(Debug)]
pub struct Receipt {
    told: oneshot::Receiver<()>,
    session: Session,
}

impl Receipt {
    /// Waits until the message has arrived.
    pub async fn acknowledged(self) -> Result<(), Error> {
        match self.told.await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.session.ending().into()),
        }
    }
}

impl Session {
    /// The settings that were agreed on with the peer.
    pub fn agreed(&self) -> &Agreed {
        &self.0.agreed
    }

    /// The generation of the peer's program, as far as it has shown.
    pub fn generation(&self) -> Generation {
        self.0.shared.lock().session.generation().unwrap_or(self.0.agreed.generation)
    }

    /// The peer's address; by UDP it may change.
    pub fn peer_addr(&self) -> SocketAddr {
        self.0.shared.lock().peer.unwrap_or(self.0.peer)
    }

    /// The fingerprint of the certificate that the peer has shown, if it has shown one.
    pub fn peer_fingerprint(&self) -> Option<Fingerprint> {
        self.0.fingerprint
    }

    /// The transport that carries it: `tcp` or `udp`.
    pub fn transport(&self) -> &'static str {
        match self.0.shared.lock().session.carrier() {
            Carrier::Stream => "tcp",
            Carrier::Datagrams => "udp",
        }
    }

    /// The measures of the session.
    pub fn stats(&self) -> Stats {
        let state = self.0.shared.lock();
        let rtt = state.session.rtt();
        Stats {
            rtt: rtt.and_then(fastdrop_proto::rtt::Rtt::smoothed),
            rtt_min: rtt.map(fastdrop_proto::rtt::Rtt::smallest),
            counters: state.session.counters(),
        }
    }

    /// Sends a message, and waits until the peer has acknowledged it. If this is dropped meanwhile,
    /// the message may arrive all the same.
    pub async fn send(&self, message: impl Into<Bytes>) -> Result<(), Error> {
        self.submit_with_receipt(message).await?.acknowledged().await
    }

    /// Takes a message to be sent, when there is room for it among those that are not acknowledged.
    pub async fn submit(&self, message: impl Into<Bytes>) -> Result<(), Error> {
        self.take(message.into(), None).await
    }

    /// The same, with something to wait for.
    pub async fn submit_with_receipt(&self, message: impl Into<Bytes>) -> Result<Receipt, Error> {
        let (tell, told) = oneshot::channel();
        self.take(message.into(), Some(tell)).await?;
        Ok(Receipt { told, session: self.clone() })
    }

    /// Takes a message to be sent if there is room for it, and never waits: for those who send to
    /// many, of which some may take nothing.
    ///
    /// # Errors
    ///
    /// [`TrySendError::Full`] if as much as may be is sent and not acknowledged: then this one is
    /// not sent.
    pub fn try_submit(&self, message: impl Into<Bytes>) -> Result<(), TrySendError> {
        let mut state = self.0.shared.lock();
        if let Some(ending) = &state.ended {
            return Err(TrySendError::Failed(ending.clone().into()));
        }
        if !state.session.can_send() {
            return Err(TrySendError::Full);
        }
        state.give(message.into(), None)?;
        drop(state);
        self.0.shared.changed.notify_one();
        Ok(())
    }

    async fn take(&self, message: Bytes, tell: Option<oneshot::Sender<()>>) -> Result<(), Error> {
        let shared = &self.0.shared;
        let mut tell = tell;
        let mut waited = std::pin::pin!(None);
        loop {
            {
                let mut state = shared.lock();
                if let Some(ending) = &state.ended {
                    return Err(ending.clone().into());
                }
                if state.session.can_send() {
                    state.give(message, tell.take())?;
                    drop(state);
                    shared.changed.notify_one();
                    return Ok(());
                }
                // Told of what happens from now on, also before the first poll.
                waited.set(Some(shared.progress.notified()));
                if let Some(waited) = waited.as_mut().as_pin_mut() {
                    waited.enable();
                }
            }
            if let Some(waited) = waited.as_mut().as_pin_mut() {
                waited.await;
            }
        }
    }

    /// Waits until everything that was sent before has been acknowledged.
    pub async fn flush(&self) -> Result<(), Error> {
        let until = self.0.shared.lock().receipts.given();
        self.wait_until(|state| state.receipts.all_before(until)).await
    }

    async fn wait_until(&self, there: impl Fn(&State) -> bool) -> Result<(), Error> {
        let shared = &self.0.shared;
        loop {
            let waited = shared.progress.notified();
            let mut waited = std::pin::pin!(waited);
            {
                let state = shared.lock();
                if there(&state) {
                    return Ok(());
                }
                if let Some(ending) = &state.ended {
                    return Err(ending.clone().into());
                }
                waited.as_mut().enable();
            }
            waited.await;
        }
    }

    /// The next message, which is acknowledged since the application has taken it; None when the
    /// peer has closed the session, or this end has. May be dropped while it waits, and nothing is
    /// lost.
    pub async fn recv(&self) -> Result<Option<Bytes>, Error> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// The messages that come, as a stream. It ends when the session does, however it does.
    pub fn messages(&self) -> Messages {
        Messages(self.clone())
    }

    fn poll_recv(&self, cx: &Context<'_>) -> Poll<Result<Option<Bytes>, Error>> {
        let mut state = self.0.shared.lock();
        let taken = std::task::ready!(state.poll_take(cx))?;
        Poll::Ready(Ok(taken.map(|(id, message)| {
            state.session.acknowledge(clock::now(), id);
            self.0.shared.changed.notify_one();
            message
        })))
    }

    /// The next message, which its taker acknowledges. It is in hand as soon as it is taken, so
    /// that a server that ends does not close the session between the two.
    pub(super) fn poll_take(&self, cx: &Context<'_>) -> Poll<Result<Option<Taken>, Error>> {
        let mut state = self.0.shared.lock();
        let taken = std::task::ready!(state.poll_take(cx))?;
        let taken = taken.map(|(id, message)| (id, message, InHand::count(&self.0.shared, &mut state)));
        Poll::Ready(Ok(taken))
    }

    /// Closes the session: sends what was given, waits for its acknowledgements, and takes leave.
    /// An error if something did not arrive.
    pub async fn close(&self) -> Result<(), Error> {
        self.0.shared.lock().session.close(clock::now());
        self.0.shared.changed.notify_one();
        match self.ended().await {
            Ending::Closed => Ok(()),
            // The peer has closed first: fine, if it has everything.
            Ending::PeerClosed if self.0.shared.lock().receipts.are_done() => Ok(()),
            ending => Err(ending.into()),
        }
    }

    /// Ends the session at once, and tells the peer why.
    pub fn abort(&self, code: ErrorCode, sentence: &str) {
        self.0.shared.lock().session.abort(code, sentence);
        self.0.shared.changed.notify_one();
    }

    /// Returns true if the session is over: nothing more can be sent, and [`Self::ended`] says why.
    pub fn is_over(&self) -> bool {
        self.0.shared.lock().ended.is_some()
    }

    /// Waits until the session is over, and says how.
    pub async fn ended(&self) -> Ending {
        let _ = self.wait_until(|state| state.ended.is_some()).await;
        self.ending()
    }

    pub(super) fn ending(&self) -> Ending {
        self.0.shared.lock().ended.clone().unwrap_or(Ending::Aborted)
    }
}

/// A message as it is taken.
type Taken = (ReceiveId, Bytes, InHand);

impl State {
    /// Gives a message to the session.
    fn give(&mut self, message: Bytes, tell: Option<oneshot::Sender<()>>) -> Result<(), Error> {
        match self.session.send(clock::now(), message) {
            Ok(id) => self.receipts.push(id, tell),
            Err(SendError::TooLarge(error)) => return Err(error.into()),
            Err(SendError::NotText) => return Err(Error::NotText),
            // It is being closed.
            Err(SendError::Over | SendError::NotOpen | SendError::NoCalls) => {
                return Err(Ending::Closed.into());
            }
        }
        Ok(())
    }

    /// The next message, if there is one.
    fn poll_take(&mut self, cx: &Context<'_>) -> Poll<Result<Option<(ReceiveId, Bytes)>, Error>> {
        if self.is_shutting_down() {
            // What waits is not acknowledged, so that its sender knows.
            return Poll::Ready(Ok(None));
        }
        if let Some(taken) = self.received.pop_front() {
            return Poll::Ready(Ok(Some(taken)));
        }
        match &self.ended {
            Some(Ending::Closed | Ending::PeerClosed) => Poll::Ready(Ok(None)),
            Some(ending) => Poll::Ready(Err(ending.clone().into())),
            None => {
                if !self.readers.iter().any(|reader| reader.will_wake(cx.waker())) {
                    self.readers.push(cx.waker().clone());
                }
                Poll::Pending
            }
        }
    }
}

/// The messages of a session, as they come.
#[derive(Debug)]
pub struct Messages(Session);

impl Stream for Messages {
    type Item = Bytes;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.0.poll_recv(cx).map(|next| next.ok().flatten())
    }
}
