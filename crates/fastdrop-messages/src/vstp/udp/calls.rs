//! The calls of an endpoint: those that it has made, and those of others that it is handling.

use crate::vstp::types::VstpError;
use fastdrop_proto::calls::{CallId, Calls, Serving, TooManyCalls};
use fastdrop_proto::vstp::{CallRole, FrameBytes};
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::Instant;
use tokio::sync::oneshot;

/// The reply to a call, as its caller gets it.
type Reply = Result<FrameBytes, VstpError>;

/// A call that waits for its reply.
#[derive(Debug)]
struct Made {
    to: SocketAddr,
    told: oneshot::Sender<Reply>,
}

/// The calls of one endpoint, in both directions.
#[derive(Debug)]
pub(super) struct CallTable {
    made: Calls<Made>,
    /// Calls whose handlers run, or whose replies are on their way: then there is nothing to end.
    handled: HashMap<SocketAddr, Serving<CallId, Option<oneshot::Sender<()>>>>,
    /// All of these.
    handling: usize,
    cancelled: Cancelled,
}

/// Cancellations that came before their requests were taken: the last ones.
#[derive(Debug, Default)]
struct Cancelled {
    calls: HashSet<(SocketAddr, CallId)>,
    order: VecDeque<(SocketAddr, CallId)>,
}

impl Cancelled {
    const MAX: usize = 4096;

    fn insert(&mut self, call: (SocketAddr, CallId)) {
        if self.calls.insert(call) {
            self.order.push_back(call);
        }
        if self.order.len() > Self::MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.calls.remove(&oldest);
        }
    }

    fn contains(&self, call: (SocketAddr, CallId)) -> bool {
        self.calls.contains(&call)
    }
}

/// The reason for which a call is not handled.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotTaken {
    /// Its caller does not wait any more, or it is being handled already.
    Unwanted,
    /// Its caller is to be told.
    Busy(TooManyCalls),
}

impl CallTable {
    /// Calls of one endpoint that wait for their replies; further callers wait for their turn.
    pub(super) const MADE_MAX: usize = 1024;
    /// Calls of one address that are handled at once.
    const HANDLED_MAX: usize = 1024;
    /// Calls of all addresses that are handled at once. One address has at most as many as are
    /// free beside those of all.
    const HANDLED_ALL_MAX: usize = 8192;
    /// Calls beyond that of addresses that have no other.
    const HANDLED_FIRST_MAX: usize = 8192;

    /// `first` is random, so that nobody else can make up a reply.
    pub(super) fn new(first: u64) -> Self {
        Self {
            made: Calls::new(first, Self::MADE_MAX),
            handled: HashMap::new(),
            handling: 0,
            cancelled: Cancelled::default(),
        }
    }

    /// A call is made to an address.
    pub(super) fn begin(
        &mut self,
        to: SocketAddr,
        deadline: Instant,
    ) -> Result<(CallId, oneshot::Receiver<Reply>), TooManyCalls> {
        let (told, reply) = oneshot::channel();
        let begun = self.made.begin(deadline, Made { to, told });
        begun.map(|id| (id, reply)).map_err(|(_, error)| error)
    }

    /// Reports whether a caller waits for the reply to a call.
    pub(super) fn is_outstanding(&self, id: CallId) -> bool {
        self.made.waiting(id).is_some()
    }

    /// The request of a call has failed.
    pub(super) fn fail(&mut self, id: CallId, error: VstpError) {
        if let Some(made) = self.made.cancel(id) {
            // A caller that was dropped does not want to know.
            let _ = made.told.send(Err(error));
        }
    }

    /// Nobody waits for the reply to a call any more. False: it has come, or will not.
    pub(super) fn forget(&mut self, id: CallId) -> bool {
        self.made.cancel(id).is_some()
    }

    /// Nothing comes any more.
    pub(super) fn end(&mut self) {
        drop(self.made.take_all());
        self.handled.clear();
        self.handling = 0;
    }

    /// The connection of an address is over: no reply comes from it, and none goes to whoever
    /// connects from there next.
    #[cfg(feature = "quic")]
    pub(super) fn disconnect(&mut self, address: SocketAddr) {
        while let Some((_, made)) = self.made.poll_cancelled(|made| made.to == address) {
            let _ = made.told.send(Err(VstpError::ConnectionClosed));
        }
        if let Some(mut serving) = self.handled.remove(&address) {
            self.handling -= serving.handling();
            for cancel in serving.take_all().flatten() {
                let _ = cancel.send(());
            }
        }
    }

    /// A reply or a cancellation came. A reply counts only from the address that was called.
    pub(super) fn handle(&mut self, from: SocketAddr, frame: FrameBytes) {
        match CallRole::of(&frame.as_ref()) {
            Some(CallRole::Reply(id)) => {
                if self.made.waiting(id).is_none_or(|made| made.to != from) {
                    self.made.on_unknown_reply();
                } else if let Some(made) = self.made.handle_reply(id) {
                    let _ = made.told.send(Ok(frame));
                }
            }
            Some(CallRole::Cancel(id)) => {
                let serving = self.handled.get_mut(&from);
                match serving.and_then(|serving| serving.handler_mut(&id)) {
                    None => self.cancelled.insert((from, id)),
                    Some(cancel) => drop(cancel.take().map(|cancel| cancel.send(()))),
                }
            }
            Some(CallRole::Request(..)) | None => {}
        }
    }

    /// Replies to calls that were not outstanding.
    pub(super) fn unknown_replies(&self) -> u64 {
        self.made.unknown_replies()
    }

    /// A call is to be handled. Gives what ends when nobody waits for its reply any more. It has
    /// its place until [`Self::finish`].
    pub(super) fn take(&mut self, from: SocketAddr, id: CallId) -> Result<oneshot::Receiver<()>, NotTaken> {
        if self.cancelled.contains((from, id)) {
            return Err(NotTaken::Unwanted);
        }
        let mut free = Self::HANDLED_ALL_MAX.saturating_sub(self.handling);
        if free == 0 && !self.handled.contains_key(&from) {
            free = usize::from(self.handling < Self::HANDLED_ALL_MAX + Self::HANDLED_FIRST_MAX);
        }
        let serving = self.handled.entry(from).or_insert_with(|| Serving::new(Self::HANDLED_MAX));
        if serving.handler_mut(&id).is_some() {
            return Err(NotTaken::Unwanted);
        }
        let (cancel, cancelled) = oneshot::channel();
        if serving.handling() >= free || serving.begin(id, Some(cancel)).is_err() {
            let handling = serving.handling();
            if handling == 0 {
                self.handled.remove(&from);
            }
            return Err(NotTaken::Busy(TooManyCalls(handling)));
        }
        self.handling += 1;
        Ok(cancelled)
    }

    /// The handler of a call is done. False: nobody wants its reply.
    pub(super) fn begin_reply(&mut self, from: SocketAddr, id: CallId) -> bool {
        let handler = self.handled.get_mut(&from).and_then(|serving| serving.handler_mut(&id));
        handler.is_some_and(|cancel| cancel.take().is_some())
    }

    /// A call is over, and its reply has arrived or will not.
    pub(super) fn finish(&mut self, from: SocketAddr, id: CallId) {
        let Some(serving) = self.handled.get_mut(&from) else { return };
        if serving.finish(&id) {
            self.handling -= 1;
        }
        if serving.handling() == 0 {
            self.handled.remove(&from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastdrop_proto::vstp::{FrameType, HeadersBuf};
    use std::time::Duration;

    fn address(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 1))
    }

    fn reply(id: CallId) -> FrameBytes {
        let frame = FrameBytes::new(FrameType::Data, HeadersBuf::default(), bytes::Bytes::new());
        CallRole::reply(&frame, id).unwrap()
    }

    #[test]
    fn case_127_a_reply_counts_from_the_address_that_was_called_and_once() {
        let mut calls = CallTable::new(7);
        let deadline = Instant::now() + Duration::from_secs(1);
        let (id, mut replied) = calls.begin(address(1), deadline).unwrap();
        calls.handle(address(2), reply(id));
        assert!(replied.try_recv().is_err());
        calls.handle(address(1), reply(id));
        assert!(replied.try_recv().unwrap().is_ok());
        calls.handle(address(1), reply(id));
        assert_eq!(calls.unknown_replies(), 2);
        assert!(!calls.forget(id));
    }

    #[test]
    fn case_127_addresses_with_calls_that_never_end_leave_room_for_another() {
        let mut calls = CallTable::new(7);
        let mut held = Vec::new();
        for attacker in 1..=100 {
            let more = (0..u64::MAX).map_while(|id| calls.take(address(attacker), CallId(id)).ok());
            held.extend(more);
        }
        assert!(
            held.len() > CallTable::HANDLED_ALL_MAX / 2 && held.len() <= CallTable::HANDLED_ALL_MAX + 100
        );
        assert!(calls.take(address(200), CallId(1)).is_ok());
        assert!(calls.take(address(200), CallId(2)).is_err());
        assert_eq!(calls.take(address(1), CallId(1)).unwrap_err(), NotTaken::Unwanted);
        for id in 0..CallTable::HANDLED_MAX as u64 {
            // A reply that has not arrived keeps its place.
            assert!(calls.begin_reply(address(1), CallId(id)) && !calls.begin_reply(address(1), CallId(id)));
            let other = calls.take(address(1), CallId(9999));
            assert!(matches!(other, Err(NotTaken::Busy(_))) || id > 0);
            calls.finish(address(1), CallId(9999));
            calls.finish(address(1), CallId(id));
            calls.finish(address(1), CallId(id));
        }
        assert!(calls.take(address(1), CallId(1)).is_ok());
    }

    #[test]
    fn case_127_a_cancellation_that_overtakes_its_request_counts() {
        let mut calls = CallTable::new(7);
        calls.handle(address(1), CallRole::cancellation(CallId(5)));
        assert_eq!(calls.take(address(1), CallId(5)).unwrap_err(), NotTaken::Unwanted);
        assert!(calls.take(address(2), CallId(5)).is_ok());
        for id in 0..10_000 {
            calls.handle(address(3), CallRole::cancellation(CallId(id)));
        }
        assert_eq!(calls.cancelled.calls.len(), Cancelled::MAX);
        // One that is being handled ends.
        let mut cancelled = calls.take(address(4), CallId(1)).unwrap();
        calls.handle(address(4), CallRole::cancellation(CallId(1)));
        assert_eq!(cancelled.try_recv(), Ok(()));
        assert!(!calls.begin_reply(address(4), CallId(1)));
    }
}
