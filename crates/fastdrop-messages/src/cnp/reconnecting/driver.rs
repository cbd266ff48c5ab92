//! The task that connects, and gives messages to whichever connection stands.

use super::config::ReconnectConfig;
use super::error::SendFailure;
use super::state::{Standing, State};
use crate::cnp::client::{Client, ClientBuilder, Security};
use crate::cnp::error::Error;
use crate::cnp::session::{Receipt, Session};
use crate::metrics::{Count, Metrics};
use crate::tls::TlsError;
use bytes::Bytes;
use fastdrop_proto::backoff::Backoff;
use fastdrop_proto::cnp::{Ending, Outcome, ResendQueue};
use std::collections::VecDeque;
use std::future::{Future, pending};
use std::pin::pin;
use std::time::Instant;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

/// The part of a message in the bounds of the queue, until it has its outcome.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) _message: OwnedSemaphorePermit,
    pub(super) _bytes: OwnedSemaphorePermit,
}

/// Whoever waits for the outcome of a message.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) told: oneshot::Sender<Result<(), SendFailure>>,
    pub(super) _room: Room,
}

impl Waiter {
    fn tell(self, outcome: Result<(), SendFailure>) {
        // A caller that was dropped does not want to know.
        let _ = self.told.send(outcome);
    }
}

/// The words of callers. There are as many as messages have room, and one for each that closes.
#[derive(Debug)]
pub(super) enum Command {
    Send(Bytes, Waiter),
    Close(oneshot::Sender<()>),
}

/// The reason for which no more attempts are made.
enum End {
    /// Everything has its outcome, and the application has closed the client.
    Closed,
    /// No caller is left.
    Dropped,
    /// The server does not let this client in, one does not trust the other, or there were too many
    /// attempts.
    GivenUp(String),
}

pub(super) struct Driver {
    addr: String,
    security: Option<Security>,
    builder: ClientBuilder,
    config: ReconnectConfig,
    metrics: Metrics,
    commands: mpsc::UnboundedReceiver<Command>,
    queue: ResendQueue<Waiter>,
    backoff: Backoff,
    stands: watch::Sender<Standing>,
    has_connected: bool,
    /// Those who have closed the client, and wait for its end.
    closing: Vec<oneshot::Sender<()>>,
}

impl Driver {
    pub(super) fn new(
        addr: String,
        security: Option<Security>,
        builder: ClientBuilder,
        config: ReconnectConfig,
        commands: mpsc::UnboundedReceiver<Command>,
        stands: watch::Sender<Standing>,
    ) -> Self {
        let backoff = Backoff::new(config.backoff());
        Self {
            addr,
            security,
            metrics: builder.counts(),
            builder,
            config,
            commands,
            queue: ResendQueue::default(),
            backoff,
            stands,
            has_connected: false,
            closing: Vec::new(),
        }
    }

    pub(super) async fn run(mut self) {
        let end = self.drive().await;
        let session = self.stands.borrow().session.clone();
        if let (Some(session), End::Closed) = (session, &end) {
            // It ends within the time that a disconnect request has.
            let _ = session.close().await;
        }
        let reason = match end {
            End::Closed => "the client was closed".to_owned(),
            End::Dropped => "the client was dropped".to_owned(),
            End::GivenUp(reason) => reason,
        };
        for (waiter, was_given) in self.queue.take_all() {
            self.metrics.on(Count::MessagesFailed);
            let failure = if was_given { SendFailure::OutcomeUnknown } else { SendFailure::NotSent };
            waiter.tell(Err(failure(reason.clone())));
        }
        self.stands
            .send_replace(Standing { state: State::Ended { reason: reason.as_str().into() }, session: None });
        self.commands.close();
        while let Some(command) = self.commands.recv().await {
            if let Command::Send(_, waiter) = command {
                waiter.tell(Err(SendFailure::NotSent(reason.clone())));
            }
        }
        // Those who close are told by being dropped.
    }

    /// Connects again and again.
    async fn drive(&mut self) -> End {
        let mut attempts = 0_u32;
        loop {
            self.say(State::Connecting);
            let attempt = connect(self.builder.clone(), self.addr.clone(), self.security.clone());
            let reason = match self.beside(attempt).await {
                Err(end) => return end,
                Ok(Ok(client)) => {
                    attempts = 0;
                    let begun_at = Instant::now();
                    let lost = self.attend(&client).await;
                    let ending = match lost {
                        Ok(ending) => ending,
                        Err(end) => return end,
                    };
                    if begun_at.elapsed() >= self.backoff.max() {
                        self.backoff.on_success();
                    }
                    ending.to_string()
                }
                Ok(Err(error)) => {
                    attempts = attempts.saturating_add(1);
                    let is_over = self.config.attempts_max.is_some_and(|max| attempts >= max.get());
                    if is_over || (is_final(&error) && !self.config.retry_refused) {
                        return End::GivenUp(error.to_string());
                    }
                    error.to_string()
                }
            };
            // If there are no random numbers any more, the pause is a long one.
            let pause = self.backoff.next_pause(getrandom::u64().unwrap_or(u64::MAX));
            tracing::debug!(addr = %self.addr, %reason, ?pause, "connects again");
            let until = Instant::now() + pause;
            self.say(State::Waiting { until, reason: reason.as_str().into() });
            if let Err(end) = self.beside(tokio::time::sleep_until(until.into())).await {
                return end;
            }
        }
    }

    fn say(&self, state: State) {
        self.stands.send_modify(|standing| standing.state = state);
    }

    /// Waits for something, and takes what callers say meanwhile.
    async fn beside<T>(&mut self, future: impl Future<Output = T>) -> Result<T, End> {
        let mut future = pin!(future);
        loop {
            if self.is_done() {
                return Err(End::Closed);
            }
            tokio::select! {
                biased;
                done = &mut future => return Ok(done),
                command = self.commands.recv() => self.on_command(command)?,
            }
        }
    }

    fn is_done(&self) -> bool {
        !self.closing.is_empty() && self.queue.is_empty()
    }

    /// Gives a connection its messages, until it is lost.
    async fn attend(&mut self, session: &Session) -> Result<Ending, End> {
        if std::mem::replace(&mut self.has_connected, true) {
            self.metrics.on(Count::Reconnects);
        }
        let resumption = session.agreed().resumption;
        self.builder.is_ours |= resumption.is_some();
        for (waiter, outcome) in self.queue.on_connected(resumption) {
            waiter.tell(match outcome {
                Outcome::Handled => Ok(()),
                Outcome::Unknown => {
                    self.metrics.on(Count::MessagesFailed);
                    let reason = "the connection broke, and the server does not say that it was handled";
                    Err(SendFailure::OutcomeUnknown(reason.into()))
                }
            });
        }
        let state = State::Connected { peer: session.peer_addr(), remembers: resumption.is_some() };
        self.stands.send_replace(Standing { state, session: Some(session.clone()) });
        let mut receipts: VecDeque<Receipt> = VecDeque::new();
        // Nothing more is taken, and why will be said.
        let mut is_full = false;
        let mut is_over = false;
        let ending = loop {
            if self.is_done() {
                return Err(End::Closed);
            }
            let next = self.queue.next().cloned().filter(|_| !is_full);
            let submit = async {
                match next {
                    Some(message) => session.submit_with_receipt(message).await,
                    None => pending().await,
                }
            };
            let acknowledged = async {
                match receipts.front_mut().filter(|_| !is_over) {
                    Some(receipt) => (&mut receipt.told).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                told = acknowledged => match told {
                    Ok(()) => {
                        receipts.pop_front();
                        self.on_acknowledged();
                    }
                    Err(_) => is_over = true,
                },
                ending = session.ended() => break ending,
                command = self.commands.recv() => self.on_command(command)?,
                given = submit => match given {
                    Ok(receipt) => {
                        self.queue.on_given();
                        receipts.push_back(receipt);
                    }
                    Err(Error::Ended(_)) => is_full = true,
                    Err(error) => self.on_unfit(&error),
                },
            }
        };
        while let Some(mut receipt) = receipts.pop_front() {
            if receipt.told.try_recv().is_err() {
                break;
            }
            self.on_acknowledged();
        }
        Ok(ending)
    }

    fn on_acknowledged(&mut self) {
        if let Some(waiter) = self.queue.on_acknowledged() {
            self.backoff.on_success();
            waiter.tell(Ok(()));
        }
    }

    /// The next message cannot be sent to this server.
    fn on_unfit(&mut self, error: &Error) {
        let Some((waiter, was_given)) = self.queue.take_next() else { return };
        self.metrics.on(Count::MessagesFailed);
        let failure = if was_given { SendFailure::OutcomeUnknown } else { SendFailure::NotSent };
        waiter.tell(Err(failure(error.to_string())));
    }

    fn on_command(&mut self, command: Option<Command>) -> Result<(), End> {
        match command {
            Some(Command::Send(_, waiter)) if !self.closing.is_empty() => {
                waiter.tell(Err(SendFailure::NotSent("the client was closed".into())));
            }
            Some(Command::Send(message, waiter)) => self.queue.push(message, waiter),
            Some(Command::Close(told)) => self.closing.push(told),
            None => return Err(End::Dropped),
        }
        Ok(())
    }
}

async fn connect(builder: ClientBuilder, addr: String, security: Option<Security>) -> Result<Client, Error> {
    builder.connect_with(&*addr, security.as_ref()).await
}

/// Reports whether trying again does not mend it: the client is not let in, or one end does not
/// trust the other.
fn is_final(error: &Error) -> bool {
    match error {
        Error::Ended(Ending::Unauthorized(_) | Ending::Tls(_)) | Error::Config(_) => true,
        #[cfg(feature = "tls")]
        Error::Tls(TlsError::Untrusted(_)) => true,
        Error::Tls(TlsError::Name | TlsError::Certificate(_)) => true,
        _ => false,
    }
}
