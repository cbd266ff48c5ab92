//! The task that connects, and gives frames to whichever connection stands.

use super::config::ReconnectConfig;
use super::error::DeliverError;
use super::state::{Standing, State};
use crate::metrics::{Count, Metrics};
use crate::tls::{ClientTls, TlsError};
use crate::vstp::tcp::client::{NotConnected, dial, handshake};
use crate::vstp::tcp::connection::{Connection, random};
use crate::vstp::tcp::orders::{Lost, Order, Outcomes};
use crate::vstp::tcp::session::Session;
use crate::vstp::tcp::stream::Stream;
use crate::vstp::types::VstpError;
use fastdrop_proto::backoff::Backoff;
use fastdrop_proto::vstp::{ClientSessionId, FrameBytes, Redelivery, Welcome};
use std::future::{Future, pending};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

/// The part of a frame in the bounds of the queue, until it has its outcome.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) _frame: OwnedSemaphorePermit,
    pub(super) _bytes: OwnedSemaphorePermit,
}

/// Whoever waits for the outcome of a frame.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) told: oneshot::Sender<Result<(), DeliverError>>,
    pub(super) _room: Room,
}

impl Waiter {
    fn tell(self, metrics: &Metrics, outcome: Result<(), DeliverError>) {
        metrics.on(if outcome.is_ok() { Count::MessagesSent } else { Count::MessagesFailed });
        // A caller that was dropped does not want to know.
        let _ = self.told.send(outcome);
    }
}

/// The words of callers. There are as many as frames have room, or callers went away.
#[derive(Debug)]
pub(super) enum Command {
    Deliver(FrameBytes, Waiter),
    /// Somebody does not wait any more.
    GivenUp,
    Close(oneshot::Sender<()>),
}

/// The reason for which no more attempts are made.
enum End {
    /// Somebody is told when it is done, unless no caller is left.
    Closed(Option<oneshot::Sender<()>>),
    GivenUp,
    /// The server does not let this client in, or one does not trust the other.
    Refused(VstpError),
}

/// A connection that stands.
struct Connected {
    session: Session,
    peer: SocketAddr,
    welcome: Welcome,
}

pub(super) struct Driver {
    addr: String,
    tls: Option<ClientTls>,
    config: ReconnectConfig,
    id: ClientSessionId,
    commands: mpsc::UnboundedReceiver<Command>,
    frames: Redelivery<Waiter>,
    /// Outcomes of frames, also on connections that are lost.
    outcomes: mpsc::UnboundedReceiver<(u64, Result<(), String>)>,
    tells: Outcomes,
    backoff: Backoff,
    stands: watch::Sender<Standing>,
    has_connected: bool,
    /// The server has named a memory: it is no program of version 0.2.
    has_remembered: bool,
}

impl Driver {
    /// The time for saying BYE.
    const FAREWELL: Duration = Duration::from_secs(1);

    pub(super) fn new(
        addr: String,
        tls: Option<ClientTls>,
        config: ReconnectConfig,
        id: ClientSessionId,
        commands: mpsc::UnboundedReceiver<Command>,
        stands: watch::Sender<Standing>,
    ) -> Self {
        let (tells, outcomes) = mpsc::unbounded_channel();
        let backoff = Backoff::new(config.backoff());
        let frames = Redelivery::default();
        Self {
            addr,
            tls,
            config,
            id,
            commands,
            frames,
            outcomes,
            tells,
            backoff,
            stands,
            has_connected: false,
            has_remembered: false,
        }
    }

    pub(super) async fn run(mut self) {
        let mut reason = String::from("no attempt was made");
        let end = self.drive(&mut reason).await;
        let session = self.stands.borrow().session.clone();
        let mut refused = None;
        let (reason, told) = match end {
            End::Closed(told) => ("the client was closed".to_owned(), told),
            End::GivenUp => (format!("no connection for too long: {reason}"), None),
            End::Refused(error) => {
                let reason = error.to_string();
                refused = Some(Arc::new(error));
                (reason, None)
            }
        };
        if let Some(session) = session {
            let _ = tokio::time::timeout(Self::FAREWELL, session.close()).await;
        }
        while let Ok((number, outcome)) = self.outcomes.try_recv() {
            self.on_outcome(number, outcome);
        }
        for (waiter, has_left) in self.frames.take_all() {
            let reason = reason.clone();
            let error = if has_left { DeliverError::OutcomeUnknown } else { DeliverError::NotSent };
            waiter.tell(&self.config.tcp.metrics, Err(error(reason)));
        }
        let state = State::Ended { reason: reason.as_str().into() };
        self.stands.send_replace(Standing { state, session: None, refused });
        self.commands.close();
        while let Some(command) = self.commands.recv().await {
            match command {
                Command::Deliver(_, waiter) => {
                    waiter.tell(&self.config.tcp.metrics, Err(DeliverError::NotSent(reason.clone())))
                }
                // It is told by being dropped.
                Command::GivenUp | Command::Close(_) => {}
            }
        }
        drop(told);
    }

    /// Connects again and again. `reason` is of the last failure.
    async fn drive(&mut self, reason: &mut String) -> End {
        let mut lost_at = Instant::now();
        loop {
            let deadline = self.config.give_up.and_then(|time| lost_at.checked_add(time));
            self.say(State::Connecting);
            let (addr, tls, config, id) = (self.addr.clone(), self.tls.clone(), self.config.clone(), self.id);
            let attempt = connect(addr, tls, config, id, self.has_remembered);
            match self.beside(attempt, deadline).await {
                Ok(Ok(connected)) => {
                    let begun_at = Instant::now();
                    match self.attend(connected).await {
                        Ok(lost) => *reason = lost.reason,
                        Err(end) => return end,
                    }
                    lost_at = Instant::now();
                    if lost_at.duration_since(begun_at) >= self.backoff.max() {
                        self.backoff.on_success();
                    }
                }
                Ok(Err(not)) if not.unauthorized && !self.config.retry_refused => {
                    return End::Refused(not.error);
                }
                Ok(Err(not)) => *reason = not.error.to_string(),
                Err(end) => return end,
            }
            let deadline = self.config.give_up.and_then(|time| lost_at.checked_add(time));
            let pause = self.backoff.next_pause(random());
            tracing::debug!(addr = %self.addr, %reason, ?pause, "connects again");
            let until = Instant::now() + pause;
            self.say(State::Waiting { until, reason: reason.as_str().into() });
            if let Err(end) = self.beside(tokio::time::sleep_until(until.into()), deadline).await {
                return end;
            }
        }
    }

    fn say(&self, state: State) {
        self.stands.send_modify(|standing| standing.state = state);
    }

    /// Waits for something, and takes what callers say meanwhile.
    async fn beside<T>(
        &mut self,
        future: impl Future<Output = T>,
        deadline: Option<Instant>,
    ) -> Result<T, End> {
        let mut future = pin!(future);
        let mut over = pin!(async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => pending().await,
            }
        });
        loop {
            tokio::select! {
                biased;
                done = &mut future => return Ok(done),
                () = &mut over => return Err(End::GivenUp),
                // This end has one to send by, so that there is no end of them.
                Some((number, outcome)) = self.outcomes.recv() => self.on_outcome(number, outcome),
                command = self.commands.recv() => self.on_command(command)?,
            }
        }
    }

    /// Gives a connection its frames, until it is lost.
    async fn attend(&mut self, connected: Connected) -> Result<Lost, End> {
        let Connected { session, peer, welcome } = connected;
        if std::mem::replace(&mut self.has_connected, true) {
            self.config.tcp.metrics.on(Count::Reconnects);
        }
        self.has_remembered |= welcome.memory.is_some();
        // What came late from the connection before is known.
        while let Ok((number, outcome)) = self.outcomes.try_recv() {
            self.on_outcome(number, outcome);
        }
        for waiter in self.frames.on_connected(welcome.memory, self.config.at_least_once) {
            let reason = "the connection broke, and the server does not remember what it had brought";
            waiter.tell(&self.config.tcp.metrics, Err(DeliverError::OutcomeUnknown(reason.into())));
        }
        let state = State::Connected { peer, remembers: welcome.memory.is_some() };
        self.stands.send_replace(Standing { state, session: Some(session.clone()), refused: None });
        let mut is_closed = false;
        let lost = loop {
            tokio::select! {
                biased;
                Some((number, outcome)) = self.outcomes.recv() => self.on_outcome(number, outcome),
                lost = session.lost() => break lost,
                command = self.commands.recv() => self.on_command(command)?,
                room = session.room(), if !is_closed && self.frames.has_leaving() => match room {
                    Some(room) => {
                        if let Some(leaving) = self.frames.poll_leave() {
                            self.config.tcp.metrics.add(Count::Retransmissions, leaving.again.into());
                            room.send(Order::Numbered(leaving, self.tells.clone()));
                        }
                    }
                    // Why is said above.
                    None => is_closed = true,
                },
            }
        };
        while let Ok((number, outcome)) = self.outcomes.try_recv() {
            self.on_outcome(number, outcome);
        }
        if let Some(others) = lost.too_large
            && let Some(waiter) = self.frames.take_largest(others)
        {
            waiter.tell(
                &self.config.tcp.metrics,
                Err(DeliverError::Refused("the frame is larger than the server takes".into())),
            );
        }
        Ok(lost)
    }

    fn on_outcome(&mut self, number: u64, outcome: Result<(), String>) {
        let Some(waiter) = self.frames.on_outcome(number) else { return };
        if outcome.is_ok() {
            self.backoff.on_success();
        }
        waiter.tell(&self.config.tcp.metrics, outcome.map_err(DeliverError::Refused));
    }

    fn on_command(&mut self, command: Option<Command>) -> Result<(), End> {
        match command {
            Some(Command::Deliver(frame, waiter)) => {
                if let Err((error, waiter)) = self.frames.push(&frame, waiter) {
                    waiter.tell(&self.config.tcp.metrics, Err(DeliverError::NotSent(error.to_string())));
                }
                Ok(())
            }
            Some(Command::GivenUp) => {
                self.frames.forget(|waiter| waiter.told.is_closed());
                Ok(())
            }
            Some(Command::Close(told)) => Err(End::Closed(Some(told))),
            None => Err(End::Closed(None)),
        }
    }
}

async fn connect(
    addr: String,
    tls: Option<ClientTls>,
    config: ReconnectConfig,
    id: ClientSessionId,
    must_answer: bool,
) -> Result<Connected, NotConnected> {
    let (stream, peer) = dial(&*addr).await?;
    let stream = match &tls {
        None => Stream::Plain(stream),
        Some(tls) => {
            let secured = handshake(stream, &addr, tls).await;
            Stream::Tls(Box::new(secured.map_err(|error| refused(error, false))?))
        }
    };
    let mut connection = Connection::new(stream.guarded(&config.tcp, None), config.tcp, None, false);
    let welcome = match connection.resume(id, config.welcome_timeout, must_answer).await {
        Ok(welcome) => welcome,
        Err(error) => {
            let unauthorized = connection.unauthorized().load(Ordering::Relaxed);
            return Err(refused(error, unauthorized));
        }
    };
    Ok(Connected { session: Session::start(connection, peer, false), peer, welcome })
}

/// The error, as one that trying again does not mend if it is of that kind.
fn refused(error: VstpError, unauthorized: bool) -> NotConnected {
    let untrusted = matches!(&error, VstpError::Io(error) if TlsError::is_refusal(error));
    NotConnected { error, unauthorized: unauthorized || untrusted }
}
