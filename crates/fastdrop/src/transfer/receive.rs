//! Receiving over connections: one control stream, and data streams that come and go.

use crate::admission::turns::{TURN_TIMEOUT, Turn, Turns};
use crate::error::Error;
use crate::lock::lock;
use crate::net::connection::{Connection, Ended};
use crate::net::frames::FrameReader;
use crate::net::throttle::Throttle;
use crate::observe::{Observer, Phase};
use crate::stop::{Stop, Stoppable};
use crate::storage::journal::FileKey;
use crate::thread::{refused, spawn_scoped};
use crate::transfer::assembly::{Assembly, Fault};
use crate::transfer::prepare::Prepared;
use crate::transfer::stream_receiver::{Pace, StreamReceiver};
use crate::transfer::streams::{DataStream, StreamQueue};
use fastdrop_proto::fastdp::{
    ALIVE_EVERY, Code, Control, Done, Failed, FrameHeader, FrameKind, NeedTotals, Spent, Transcript,
};
use fastdrop_proto::units::EntryIndex;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The course of a transfer.
#[derive(Debug)]
enum State {
    Running,
    /// DONE has been said, with this.
    Done(Done),
    Failed(Error, Reason),
}

/// The origin of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// This end could not go on, or something newer takes over. The sender is told.
    Own,
    /// The control stream broke the rules. The sender is told.
    Breach,
    /// The control stream was lost, or the sender ended it.
    Lost,
}

/// A transfer's state, and the data streams that end with it.
#[derive(Debug)]
struct Course {
    state: State,
    data: Vec<Arc<Connection>>,
    /// The control stream is being read.
    is_controlled: bool,
    /// Every thread has left, and the journal is free for others.
    has_left: bool,
}

impl Course {
    /// Notes why the transfer ends. The first reason counts, but what this end finds out while its
    /// control stream is gone weighs more: a failed sync must not pass for a lost connection.
    fn end(&mut self, error: Error, reason: Reason) {
        let weighs_more = match &self.state {
            State::Running => true,
            State::Failed(_, earlier) => *earlier != Reason::Own && reason == Reason::Own,
            State::Done(_) => false,
        };
        if weighs_more {
            self.state = State::Failed(error, reason);
        }
    }
}

/// The limits under which a transfer is received.
#[derive(Debug, Default)]
pub(crate) struct ReceiveLimits {
    /// Bytes a second that are taken at most: the sender is held up by what is not read.
    pub(crate) rate_max: Option<u64>,
    /// Turns that streams on the shortest paths take with those of other transfers.
    pub(crate) turns: Option<Arc<Turns>>,
}

/// One transfer that is being received.
#[derive(Debug)]
pub(crate) struct ReceiveTransfer {
    assembly: Assembly,
    observer: Arc<Observer>,
    stop: Stop,
    control: Arc<Connection>,
    throttle: Option<Throttle>,
    turns: Option<Arc<Turns>>,
    course: Mutex<Course>,
    changed: Condvar,
    pub(crate) joins: StreamQueue,
}

impl ReceiveTransfer {
    /// Receives what was prepared; `control` is the connection over which it was agreed.
    pub(crate) fn new(
        prepared: Prepared,
        transcript: Transcript,
        control: Arc<Connection>,
        limits: ReceiveLimits,
        observer: Arc<Observer>,
        stop: Stop,
    ) -> Arc<Self> {
        Arc::new(Self {
            assembly: Assembly::new(prepared, transcript, Arc::clone(&observer), stop.clone()),
            observer,
            stop,
            control,
            throttle: limits.rate_max.map(Throttle::new),
            turns: limits.turns,
            course: Mutex::new(Course {
                state: State::Running,
                data: Vec::new(),
                is_controlled: false,
                has_left: false,
            }),
            changed: Condvar::new(),
            joins: StreamQueue::default(),
        })
    }

    /// What remains to come.
    pub(crate) fn need(&self) -> NeedTotals {
        self.assembly.need()
    }

    /// The name of its stage's folder.
    pub(crate) fn folder(&self) -> Option<&str> {
        self.assembly.folder()
    }

    /// Whether this transfer is bringing the file `key`, and has not finished it.
    pub(crate) fn brings(&self, key: &FileKey) -> bool {
        self.assembly.brings(key)
    }

    /// BLAKE3 of each file, where it was computed.
    pub(crate) fn hashes(&self) -> BTreeMap<EntryIndex, [u8; 32]> {
        self.assembly.hashes()
    }

    /// How the sender spent its time, as far as it has said.
    pub(crate) fn spent(&self) -> Spent {
        self.assembly.spent()
    }

    /// What did not arrive.
    pub(crate) fn failed(&self) -> Vec<Failed> {
        self.assembly.failed()
    }

    /// Runs the transfer over its control stream, to its end; data streams come through
    /// [`Self::joins`]. `more` hears that the sender asks for one.
    ///
    /// # Errors
    ///
    /// The reason why the transfer could not be finished. What can be continued has been kept.
    pub(crate) fn run(
        self: &Arc<Self>,
        control: FrameReader,
        more: &(dyn Fn() + Sync),
    ) -> Result<Done, Error> {
        self.observer.set_phase(Phase::Moving);
        self.stop.watch(&self.control);
        lock(&self.course).is_controlled = true;
        std::thread::scope(|scope| {
            let _end = EndOnDrop(self);
            let take_streams = || {
                while let Some(DataStream { reader, permit }) = self.joins.wait() {
                    let connection = Arc::clone(reader.connection());
                    let serve = move || {
                        let _permit = permit;
                        self.data_stream(reader);
                    };
                    if let Err(error) = spawn_scoped(scope, "stream", serve) {
                        tracing::warn!(%error, "no thread for a data stream");
                        connection.close();
                    }
                }
            };
            let started = spawn_scoped(scope, "alive", || self.keep_alive())
                .and_then(|_| spawn_scoped(scope, "streams", take_streams));
            if let Err(error) = started {
                return self.fail(refused(error));
            }
            let result = self.serve(control, &mut |frame| self.control_frame(frame, more));
            // What is still to be said over it is not to be cut off.
            lock(&self.course).is_controlled = false;
            match result {
                Ok(()) => self.end(Ended::Closed.into(), Reason::Lost),
                Err(Fault::Stream(error @ (Error::Network(_) | Error::Refused(_)))) => {
                    self.end(error, Reason::Lost);
                }
                Err(Fault::Stream(error)) => self.end(error, Reason::Breach),
                Err(Fault::Transfer(error)) => self.end(error, Reason::Own),
            }
        });
        let result = self.conclude();
        self.assembly.unlock();
        lock(&self.course).has_left = true;
        self.changed.notify_all();
        result
    }

    fn conclude(&self) -> Result<Done, Error> {
        let (error, reason) = match &mut lock(&self.course).state {
            State::Done(done) => return Ok(done.clone()),
            State::Failed(error, reason) => (std::mem::replace(error, Error::Interrupted), *reason),
            State::Running => (Error::Interrupted, Reason::Own),
        };
        if reason != Reason::Lost {
            let _ = self.control.send_control(&Control::Refuse(error.refusal()));
            self.control.finish_writing();
        }
        self.assembly.give_up(&error);
        Err(error)
    }

    /// Ends the transfer, if it is not done, and all its streams.
    pub(crate) fn fail(&self, error: Error) {
        self.end(error, Reason::Own);
    }

    fn end(&self, error: Error, reason: Reason) {
        {
            let mut course = lock(&self.course);
            course.end(error, reason);
            if course.is_controlled {
                self.control.stop();
            }
            course.data.iter().for_each(|connection| connection.stop());
        }
        self.joins.end();
        self.changed.notify_all();
    }

    /// Waits until every thread of the transfer has left, but not for longer than `patience`.
    pub(crate) fn wait_over(&self, patience: Duration) -> bool {
        let course = lock(&self.course);
        let waited = self.changed.wait_timeout_while(course, patience, |course| !course.has_left);
        waited.unwrap_or_else(PoisonError::into_inner).0.has_left
    }

    fn keep_alive(&self) {
        let is_running = |course: &mut Course| matches!(course.state, State::Running);
        loop {
            let waited = self.changed.wait_timeout_while(lock(&self.course), ALIVE_EVERY, is_running);
            let mut course = waited.unwrap_or_else(PoisonError::into_inner).0;
            if !is_running(&mut course) {
                return;
            }
            drop(course);
            if self.control.send_control(&Control::Alive).is_err() {
                return;
            }
        }
    }

    /// Reports whether the transfer is done, or has failed.
    fn is_over(&self) -> bool {
        !matches!(lock(&self.course).state, State::Running)
    }

    fn has_failed(&self) -> bool {
        matches!(lock(&self.course).state, State::Failed(..))
    }

    /// Reports whether what has arrived whole is not wanted any more: a control stream that was
    /// lost is no reason to drop it.
    fn is_given_up(&self) -> bool {
        matches!(lock(&self.course).state, State::Failed(_, Reason::Own))
    }

    fn is_done(&self) -> bool {
        matches!(lock(&self.course).state, State::Done(_))
    }

    /// Serves one data stream to its end.
    fn data_stream(&self, reader: FrameReader) {
        let connection = Arc::clone(reader.connection());
        self.stop.watch(&connection);
        {
            let mut course = lock(&self.course);
            // Whoever ends the transfer ends the streams that are known; one that comes later sees
            // that by itself.
            let State::Running = course.state else { return connection.close() };
            course.data.push(Arc::clone(&connection));
            self.observer.set_streams(course.data.len() as u64);
        }
        let refusal = match self.serve(reader, &mut |frame| self.data_frame(&connection, frame)) {
            Ok(()) | Err(Fault::Stream(Error::Network(_) | Error::Interrupted)) => None,
            // It breaks the rules, or what it brings contradicts what is here: that connection
            // ends.
            Err(Fault::Stream(error)) => Some(error.refusal()),
            Err(Fault::Transfer(error)) => {
                let refusal = error.refusal();
                self.fail(error);
                Some(refusal)
            }
        };
        if let Some(refusal) = refusal {
            tracing::warn!(error = refusal.message, "a data stream was ended");
            let _ = connection.send_control(&Control::Refuse(refusal));
            connection.finish_writing();
        }
        connection.close();
        lock(&self.course).data.retain(|other| !Arc::ptr_eq(other, &connection));
    }

    /// Reads frames until the stream ends; `handle` has those that are no chunks.
    fn serve(
        &self,
        mut reader: FrameReader,
        handle: &mut dyn FnMut(Control) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let connection = Arc::clone(reader.connection());
        let is_ending = || self.stop.is_stopped() || self.is_over();
        let pace = self.throttle.as_ref().map(|throttle| Pace { throttle, is_ending: &is_ending });
        let mut turn = Turn::new(self.turns.as_ref().filter(|_| connection.is_shortest()).cloned());
        let mut receiver = StreamReceiver::new(&self.assembly, pace);
        let mut clock = Instant::now();
        loop {
            if self.has_failed() {
                return Ok(());
            }
            if turn.is_taken() && !reader.comes_within(TURN_TIMEOUT) {
                turn.give_back();
            }
            let header = match reader.header() {
                Ok(header) => header,
                Err(Error::Network(_)) if self.is_done() => return Ok(()),
                Err(Error::Interrupted) if !self.stop.is_stopped() => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            match header {
                FrameHeader { kind: FrameKind::Control(kind), size } => {
                    let frame = reader.control(kind, size)?;
                    if matches!(frame, Control::Checkpoint | Control::Same(_) | Control::Proven(_)) {
                        self.observer.clocks.wait.since(clock);
                    }
                    handle(frame)?;
                    clock = Instant::now();
                }
                _ => {
                    turn.wait();
                    receiver.chunk(&mut reader, header, &mut clock)?;
                }
            }
            self.finish_if_complete().map_err(Fault::Transfer)?;
        }
    }

    /// Handles a control frame that came over the control stream.
    fn control_frame(&self, frame: Control, more: &(dyn Fn() + Sync)) -> Result<(), Fault> {
        match frame {
            Control::Alive => {}
            Control::Size { entry, size } => self.assembly.handle_size(entry, size)?,
            Control::Abandon { entry, code, reason } => {
                let answer = self.assembly.handle_abandon(entry, code, reason)?;
                self.control.send_controls(&answer)?;
            }
            Control::Identity(part) => self.assembly.handle_identities(&part)?,
            Control::Same(chunks) => {
                let start = Instant::now();
                chunks.into_iter().try_for_each(|chunk| self.assembly.handle_same(chunk))?;
                self.observer.clocks.write.since(start);
            }
            Control::Proven(proven) => self.assembly.handle_proven(&proven)?,
            Control::End(digest) => self.assembly.handle_end(digest)?,
            Control::Spent(spent) => self.assembly.handle_spent(spent),
            Control::More => more(),
            other => return Err(unexpected(other)),
        }
        Ok(())
    }

    /// Handles a control frame that came over a data stream.
    fn data_frame(&self, connection: &Connection, frame: Control) -> Result<(), Fault> {
        match frame {
            Control::Alive => Ok(()),
            Control::Checkpoint => {
                let start = Instant::now();
                self.assembly.checkpoint().map_err(Fault::Transfer)?;
                connection.send_control(&Control::Checkpointed)?;
                self.observer.clocks.write.since(start);
                Ok(())
            }
            other => Err(unexpected(other)),
        }
    }

    fn finish_if_complete(&self) -> Result<(), Error> {
        let Some(done) = self.assembly.finish_if_complete(&|| self.is_given_up())? else { return Ok(()) };
        let data = {
            let mut course = lock(&self.course);
            // What is done stays done, whoever wanted to end it a moment before.
            course.state = State::Done(done.clone());
            course.data.clone()
        };
        self.joins.end();
        self.changed.notify_all();
        // DONE goes over the control stream, and the others have nothing more to bring.
        let _ = self.control.send_control(&Control::Done(done));
        self.control.finish_writing();
        data.iter().for_each(|connection| connection.close());
        Ok(())
    }
}

/// The answer to a frame that cannot be where it is.
fn unexpected(frame: Control) -> Fault {
    Fault::Stream(match frame {
        Control::Refuse(refuse) => Error::Refused(refuse),
        _ => Error::protocol("a frame that a sender does not send, or not here"),
    })
}

/// Ends the other threads of a transfer when its control stream ends, however that happens.
struct EndOnDrop<'a>(&'a ReceiveTransfer);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        if !self.0.is_over() {
            self.0.fail(Error::failed(Code::Internal, "a thread of the transfer has ended"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    fn course() -> Course {
        Course { state: State::Running, data: Vec::new(), is_controlled: true, has_left: false }
    }

    #[test]
    fn what_this_end_finds_out_weighs_more_than_a_lost_connection() {
        let lost = || Error::from(Ended::Closed);
        for first in [Reason::Lost, Reason::Breach] {
            let mut course = course();
            course.end(lost(), first);
            course.end(lost(), Reason::Breach);
            assert!(matches!(course.state, State::Failed(Error::Network(_), reason) if reason == first));
            // Nothing of what was written can be trusted, whoever has left meanwhile.
            course.end(Error::sync(Errno::IO), Reason::Own);
            assert!(matches!(&course.state, State::Failed(error, Reason::Own) if error.is_distrust()));
            course.end(Error::Interrupted, Reason::Own);
            course.end(lost(), Reason::Lost);
            assert!(matches!(&course.state, State::Failed(error, Reason::Own) if error.is_distrust()));
        }
        let mut course = course();
        course.state = State::Done(Done::default());
        course.end(Error::Interrupted, Reason::Own);
        assert!(matches!(course.state, State::Done(_)));
    }
}
