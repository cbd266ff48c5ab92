//! The transfers of a server, and the one to which a request belongs.

use crate::context::server::registry::Registry;
use crate::legacy::nextdp::state::{Failure, State};
use crate::legacy::nextdp::transfer::{Transfer, other_of_id};
use crate::lock::lock;
use fastdrop_proto::nextdp::{AssemblyError, ChunkRequest, GIVEN_UP_AFTER, Refusal, STALE_AFTER};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::Notify;

/// Transfers of which it is remembered for a minute how they ended.
const ENDED_MAX: usize = 1024;

/// By what the chunks of one transfer are known.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TransferKey {
    pub(super) address: IpAddr,
    pub(super) id: Option<String>,
}

/// The transfers under way, and how others ended.
pub(super) struct Transfers {
    /// The registry in which each has its place among those of every protocol.
    registry: Arc<Registry>,
    /// Failed ones without an id among them, as long as their chunks may still come.
    under_way: Mutex<BTreeMap<TransferKey, Arc<Transfer>>>,
    ended: Mutex<BTreeMap<TransferKey, Ending>>,
    /// Notified when a transfer makes room for a new one of its address.
    pub(super) replaced: Notify,
}

/// The end of a transfer, and its time.
#[derive(Debug)]
struct Ending {
    at: Instant,
    /// The number of its chunks, if that was known.
    chunks: Option<u32>,
    result: Result<(), Refusal>,
}

/// A transfer to which a request belongs.
pub(super) enum Bound {
    /// One that is under way, and the one that has made room for it.
    To(BoundRequest, Option<Arc<Transfer>>),
    /// One that has ended.
    Ended(Result<(), Refusal>),
    /// One that has been silent for so long that it may be another one's: chunk 0 would tell.
    Silent,
    /// None. What the transfer has brought that failed by it is to be removed.
    Refused(Refusal, Option<Arc<Transfer>>),
}

/// A request that belongs to a transfer, until this is dropped.
pub(super) struct BoundRequest {
    transfers: Arc<Transfers>,
    transfer: Arc<Transfer>,
}

impl BoundRequest {
    pub(super) fn transfer(&self) -> &Arc<Transfer> {
        &self.transfer
    }

    /// Records that a part of its body has come.
    pub(super) fn note_bytes(&self) {
        self.transfer.glance().activity.handle_bytes(Instant::now());
    }

    /// Records that it waits for this end, until what is returned is dropped.
    pub(super) fn work(&self) -> Work {
        self.transfer.glance().activity.handle_work();
        Work(Arc::clone(&self.transfer))
    }
}

impl Drop for BoundRequest {
    fn drop(&mut self) {
        let mut under_way = lock(&self.transfers.under_way);
        let mut glance = self.transfer.glance();
        glance.activity.handle_request_end(Instant::now());
        self.transfer.notify();
        if !glance.is_used && !glance.activity.has_requests() {
            // Its only requests broke off before they had brought anything.
            under_way.retain(|_, other| !Arc::ptr_eq(other, &self.transfer));
        }
    }
}

/// A request that waits for this end.
pub(super) struct Work(Arc<Transfer>);

impl Drop for Work {
    fn drop(&mut self) {
        self.0.glance().activity.handle_work_end(Instant::now());
        self.0.notify();
    }
}

impl Transfers {
    /// Creates an empty map, whose transfers take their places in `registry`.
    pub(super) fn new(registry: Arc<Registry>) -> Self {
        Self { registry, under_way: Mutex::default(), ended: Mutex::default(), replaced: Notify::new() }
    }

    /// Finds, or begins, the transfer of a request whose head has come. `wait` says that the
    /// request can wait for one that makes room for another.
    pub(super) fn bind(
        self: &Arc<Self>,
        key: &TransferKey,
        chunk: &ChunkRequest,
        wait: bool,
        now: Instant,
    ) -> Bound {
        let mut under_way = lock(&self.under_way);
        if let Some(ended) = self.find_ended(key, chunk) {
            return Bound::Ended(ended);
        }
        let known = under_way.get(key).map(Arc::clone);
        let mut left = None;
        if let Some(transfer) = known {
            match self.check(&transfer, key, chunk, wait, now) {
                Found::Its => return Bound::To(self.bound(transfer), None),
                Found::Silent => return Bound::Silent,
                Found::Refused(refusal) => return Bound::Refused(refusal, None),
                Found::Contradicted(refusal) => {
                    if key.id.is_some() {
                        under_way.remove(key);
                        let chunks = transfer.chunks();
                        self.note_ended(key, chunks, Err(refusal.clone()));
                    }
                    return Bound::Refused(refusal, Some(transfer));
                }
                // One that is being named needs its own for a while.
                Found::Gone if matches!(transfer.glance().state, State::Committing) => {}
                Found::Gone => left = Some(transfer.place.clone()),
            }
        }
        let Ok(place) = left.map_or_else(|| self.registry.reserve(), Ok) else {
            return Bound::Refused(Refusal::new(503, "too many transfers at once"), None);
        };
        let gone = under_way.remove(key);
        if gone.is_some() {
            self.replaced.notify_waiters();
        }
        let transfer = Arc::new(Transfer::new(now, place));
        transfer.glance().activity.handle_request(now);
        under_way.insert(key.clone(), Arc::clone(&transfer));
        Bound::To(self.bound(transfer), gone)
    }

    fn bound(self: &Arc<Self>, transfer: Arc<Transfer>) -> BoundRequest {
        BoundRequest { transfers: Arc::clone(self), transfer }
    }

    /// Decides whether a request belongs to `transfer`, and counts it there if it does.
    fn check(
        &self,
        transfer: &Transfer,
        key: &TransferKey,
        chunk: &ChunkRequest,
        wait: bool,
        now: Instant,
    ) -> Found {
        let mut glance = transfer.glance();
        let is_stale = key.id.is_none() && glance.activity.is_idle(STALE_AFTER, now);
        let is_other = glance.is_other(chunk);
        let found = match (&glance.state, &chunk.first) {
            _ if key.id.is_none() && glance.is_closed() => Found::Gone,
            (State::Committing, _) if is_other => Found::Refused(other_of_id()),
            (State::Ended(_), _) if is_other => Found::Gone,
            (State::Failed(_), _) if is_stale => Found::Gone,
            // Nobody else's chunks are expected.
            (State::Failed(failure), Some(_)) if !failure.is_contradiction => Found::Gone,
            (State::Failed(failure), first) => {
                let refusal = failure.refusal.clone();
                if first.is_none() {
                    glance.activity.handle_bytes(now);
                }
                return Found::Refused(refusal);
            }
            (State::Waiting | State::Placed, Some(_)) if is_stale => {
                let why = "nothing came for five seconds, and then another transfer of this address began";
                glance.fail(Failure::new(Refusal::new(409, why)));
                Found::Gone
            }
            (State::Waiting | State::Placed, None) if is_stale && wait => Found::Silent,
            (State::Placed, _) if is_other => {
                let what = "a second chunk 0, with another name or number of chunks";
                let refusal = glance.fail(AssemblyError::Contradiction(what.into()).into());
                Found::Contradicted(refusal)
            }
            _ => {
                glance.activity.handle_request(now);
                Found::Its
            }
        };
        drop(glance);
        transfer.notify();
        found
    }

    /// Notes that a transfer has ended, so that its chunks are answered like the last one; one that
    /// has failed without an id refuses what still comes of it.
    pub(super) fn end(&self, key: &TransferKey, transfer: &Arc<Transfer>) {
        let result = match &transfer.glance().state {
            State::Failed(failure) if key.id.is_some() => Err(failure.refusal.clone()),
            State::Ended(result) => result.clone(),
            _ => return,
        };
        let mut under_way = lock(&self.under_way);
        // One that has made room for another is not the last of its id.
        if under_way.get(key).is_some_and(|known| Arc::ptr_eq(known, transfer)) {
            under_way.remove(key);
            self.note_ended(key, transfer.chunks(), result);
        }
    }

    /// Notes how a transfer ended, if it has an id: without one the
    /// next transfer would be taken for it.
    fn note_ended(&self, key: &TransferKey, chunks: Option<u32>, result: Result<(), Refusal>) {
        if key.id.is_none() {
            return;
        }
        let mut ended = lock(&self.ended);
        if ended.len() >= ENDED_MAX {
            let oldest = ended.iter().min_by_key(|(_, ending)| ending.at).map(|(key, _)| key.clone());
            oldest.map(|oldest| ended.remove(&oldest));
        }
        ended.insert(key.clone(), Ending { at: Instant::now(), chunks, result });
    }

    /// The end of the transfer to which a chunk belongs that has
    /// come again. Chunk 0 begins a new one.
    fn find_ended(&self, key: &TransferKey, chunk: &ChunkRequest) -> Option<Result<(), Refusal>> {
        let mut ended = lock(&self.ended);
        if chunk.first.is_some() {
            ended.remove(key);
        }
        let ending = ended.get(key)?;
        match ending.chunks {
            Some(chunks) if ending.result.is_ok() && chunk.number >= chunks => {
                let what = format!("chunk {} of a file of {chunks} chunks", chunk.number);
                Some(Err(AssemblyError::Contradiction(what).into()))
            }
            _ => Some(ending.result.clone()),
        }
    }

    /// Forgets what nobody adds to any more. Returns the transfers that were given up, so that what
    /// they brought is removed; requests of theirs that go on are refused.
    pub(super) fn expire(&self, now: Instant) -> Vec<(TransferKey, Arc<Transfer>)> {
        lock(&self.ended).retain(|_, ending| now.saturating_duration_since(ending.at) < GIVEN_UP_AFTER);
        let mut gone = Vec::new();
        lock(&self.under_way).retain(|key, transfer| {
            let mut glance = transfer.glance();
            if matches!(glance.state, State::Committing) {
                return true;
            }
            let is_failed = matches!(glance.state, State::Failed(_));
            let after = if is_failed { STALE_AFTER } else { GIVEN_UP_AFTER };
            let keep = !glance.activity.is_idle(after, now);
            if !keep && !is_failed {
                glance
                    .fail(Failure::new(Refusal::new(408, "nothing came for a minute; send the file again")));
                drop(glance);
                transfer.notify();
                gone.push((key.clone(), Arc::clone(transfer)));
            }
            keep
        });
        gone
    }

    /// Forgets all of them.
    pub(super) fn clear(&self) {
        let unfinished = std::mem::take(&mut *lock(&self.under_way));
        drop(unfinished);
    }
}

/// The relation of a transfer to a request with its key.
enum Found {
    Its,
    /// It makes room for a new one.
    Gone,
    Silent,
    Refused(Refusal),
    /// It has failed by this request.
    Contradicted(Refusal),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const MAX: usize = 10;
    const SECOND: Duration = Duration::from_secs(1);

    fn key(id: Option<&str>) -> TransferKey {
        TransferKey { address: IpAddr::from([127, 0, 0, 1]), id: id.map(Into::into) }
    }

    fn first(name: &str, chunks: u32) -> ChunkRequest {
        ChunkRequest { number: 0, first: Some((name.into(), chunks)), transfer: None }
    }

    fn chunk(number: u32) -> ChunkRequest {
        ChunkRequest { number, first: None, transfer: None }
    }

    #[track_caller]
    fn to(bound: Bound) -> BoundRequest {
        match bound {
            Bound::To(bound, _) => bound,
            Bound::Ended(_) => panic!("ended"),
            Bound::Silent => panic!("silent"),
            Bound::Refused(refusal, _) => panic!("refused: {refusal}"),
        }
    }

    #[track_caller]
    fn refused(bound: Bound) -> Refusal {
        match bound {
            Bound::Refused(refusal, _) => refusal,
            _ => panic!("not refused"),
        }
    }

    /// Transfers of which one has its chunk 0, and the request that brought it.
    fn placed(key: &TransferKey, now: Instant) -> (Arc<Transfers>, BoundRequest) {
        let transfers = Arc::new(Transfers::new(Arc::new(Registry::new(MAX))));
        let request = to(transfers.bind(key, &first("a", 3), true, now));
        let mut glance = request.transfer().glance();
        glance.is_used = true;
        glance.state = State::Placed;
        glance.first = Some(("a".into(), 3));
        drop(glance);
        (transfers, request)
    }

    #[test]
    fn a_second_chunk_0_fails_the_transfer_that_is_under_way() {
        for (name, chunks) in [("b", 3), ("a", 4)] {
            let now = Instant::now();
            let (transfers, request) = placed(&key(None), now);
            assert_eq!(refused(transfers.bind(&key(None), &first(name, chunks), true, now)).status, 409);
            // Both get to know, and so does whoever begins while their chunks may still come.
            assert_eq!(request.transfer().failure().unwrap().refusal.status, 409);
            for chunk in [chunk(1), first("a", 3), first("c", 1)] {
                assert_eq!(refused(transfers.bind(&key(None), &chunk, true, now + SECOND)).status, 409);
            }
            drop(to(transfers.bind(&key(None), &first("c", 1), true, now + 7 * SECOND)));
            // One with an id is another transfer.
            let (transfers, _request) = placed(&key(None), now);
            let other = to(transfers.bind(&key(Some("x")), &first(name, chunks), true, now));
            assert!(other.transfer().failure().is_none());
        }
    }

    #[test]
    fn a_transfer_that_has_been_silent_for_five_seconds_makes_room_for_a_new_one() {
        let now = Instant::now();
        let (transfers, old) = placed(&key(None), now);
        let later = now + STALE_AFTER;
        // Its own chunk, or an early one of another: chunk 0 is waited for.
        assert!(matches!(transfers.bind(&key(None), &chunk(1), true, later), Bound::Silent));
        let new = to(transfers.bind(&key(None), &first("b", 3), true, later));
        assert!(!Arc::ptr_eq(new.transfer(), old.transfer()));
        assert_eq!(old.transfer().failure().unwrap().refusal.status, 409);
        let waited = to(transfers.bind(&key(None), &chunk(1), true, later));
        assert!(Arc::ptr_eq(new.transfer(), waited.transfer()));
        // That the old one's request breaks off now is nothing to the new one.
        drop(old);
        let again = to(transfers.bind(&key(None), &chunk(2), true, later));
        assert!(Arc::ptr_eq(new.transfer(), again.transfer()));
    }

    #[test]
    fn a_chunk_without_a_new_chunk_0_is_that_of_the_silent_transfer() {
        let now = Instant::now();
        let (transfers, old) = placed(&key(None), now);
        let request = to(transfers.bind(&key(None), &chunk(1), false, now + STALE_AFTER));
        assert!(Arc::ptr_eq(request.transfer(), old.transfer()));
    }

    #[test]
    fn a_transfer_of_which_bytes_come_or_that_has_an_id_keeps_its_place() {
        let now = Instant::now();
        let (transfers, old) = placed(&key(None), now);
        old.transfer().glance().activity.handle_bytes(now + 4 * SECOND);
        let later = now + 8 * SECOND;
        assert_eq!(refused(transfers.bind(&key(None), &first("b", 3), true, later)).status, 409);
        let (transfers, old) = placed(&key(Some("x")), now);
        let request = to(transfers.bind(&key(Some("x")), &chunk(1), true, now + 50 * SECOND));
        assert!(Arc::ptr_eq(request.transfer(), old.transfer()));
    }

    #[test]
    fn a_failure_of_one_sender_is_answered_to_its_chunks_and_keeps_no_other_out() {
        let now = Instant::now();
        let (transfers, request) = placed(&key(None), now);
        request.transfer().fail(Failure::new(Refusal::new(507, "full")));
        assert_eq!(refused(transfers.bind(&key(None), &chunk(1), true, now)).status, 507);
        drop(to(transfers.bind(&key(None), &first("b", 1), true, now)));
    }

    #[test]
    fn a_request_that_broke_off_before_it_brought_anything_leaves_nothing() {
        let now = Instant::now();
        let transfers = Arc::new(Transfers::new(Arc::new(Registry::new(MAX))));
        drop(to(transfers.bind(&key(None), &chunk(1), true, now)));
        assert!(lock(&transfers.under_way).is_empty());
        let held: Vec<_> = (0..MAX)
            .map(|at| to(transfers.bind(&key(Some(&at.to_string())), &chunk(1), true, now)))
            .collect();
        assert_eq!(refused(transfers.bind(&key(None), &chunk(1), true, now)).status, 503);
        drop(held);
        drop(to(transfers.bind(&key(None), &chunk(1), true, now)));
    }

    #[test]
    fn transfers_of_other_protocols_count_too() {
        let now = Instant::now();
        let registry = Arc::new(Registry::new(1));
        let transfers = Arc::new(Transfers::new(Arc::clone(&registry)));
        let other = registry.reserve().unwrap();
        assert_eq!(refused(transfers.bind(&key(None), &chunk(1), true, now)).status, 503);
        drop(other);
        let bound = to(transfers.bind(&key(None), &chunk(1), true, now));
        assert!(registry.reserve().is_err());
        drop(bound);
        assert!(registry.reserve().is_ok());
    }

    #[test]
    fn what_nobody_adds_to_expires() {
        let now = Instant::now();
        let (transfers, _request) = placed(&key(None), now);
        assert_eq!(transfers.expire(now + 59 * SECOND).len(), 0);
        assert_eq!(transfers.expire(now + 60 * SECOND).len(), 1);
        let (transfers, request) = placed(&key(None), now);
        request.transfer().fail(Failure::contradiction("x"));
        assert_eq!(transfers.expire(now + 5 * SECOND).len(), 0);
        assert!(lock(&transfers.under_way).is_empty());
    }

    /// Sets the state of a transfer, as if all its chunks had come.
    fn set(request: &BoundRequest, state: State, chunks: u32) {
        let mut glance = request.transfer().glance();
        glance.state = state;
        glance.first = Some(("a".into(), chunks));
    }

    #[test]
    fn a_request_without_an_id_is_never_that_of_a_transfer_that_has_all_its_chunks() {
        for (state, chunks) in [
            (State::Placed, 1),
            (State::Committing, 1),
            (State::Committing, 3),
            (State::Ended(Ok(())), 3),
            (State::Ended(Err(Refusal::new(500, "x"))), 3),
        ] {
            let now = Instant::now();
            let (transfers, old) = placed(&key(None), now);
            set(&old, state, chunks);
            for (at, chunk) in [chunk(1), first("a", 3), first("a", 3)].into_iter().enumerate() {
                let new = to(transfers.bind(&key(None), &chunk, at % 2 == 0, now));
                assert!(!Arc::ptr_eq(new.transfer(), old.transfer()));
                assert!(old.transfer().failure().is_none());
                new.transfer().glance().is_used = true;
            }
            // That the old one ends now is nothing to the new one.
            let new = Arc::clone(to(transfers.bind(&key(None), &chunk(2), true, now)).transfer());
            transfers.end(&key(None), old.transfer());
            let again = to(transfers.bind(&key(None), &chunk(2), true, now));
            assert!(Arc::ptr_eq(again.transfer(), &new));
        }
    }

    #[test]
    fn a_chunk_0_of_another_file_is_refused_while_the_file_of_its_id_is_being_named() {
        let (now, id) = (Instant::now(), key(Some("x")));
        for other in [first("b", 3), first("a", 4)] {
            let (transfers, old) = placed(&id, now);
            set(&old, State::Committing, 3);
            assert_eq!(refused(transfers.bind(&id, &other, true, now)).status, 409);
            let same = to(transfers.bind(&id, &first("a", 3), true, now));
            assert!(Arc::ptr_eq(same.transfer(), old.transfer()));
            // Once that has its name, it is a file of its own.
            set(&old, State::Ended(Ok(())), 3);
            let new = to(transfers.bind(&id, &other, true, now));
            transfers.end(&id, old.transfer());
            let next = to(transfers.bind(&id, &chunk(1), true, now));
            assert!(Arc::ptr_eq(next.transfer(), new.transfer()));
        }
    }

    #[test]
    fn a_chunk_beyond_a_file_that_has_its_name_is_refused() {
        let (now, id) = (Instant::now(), key(Some("x")));
        let (transfers, old) = placed(&id, now);
        set(&old, State::Ended(Ok(())), 3);
        transfers.end(&id, old.transfer());
        for number in 1..5 {
            match transfers.bind(&id, &chunk(number), true, now) {
                Bound::Ended(Ok(())) => assert!(number < 3, "{number}"),
                Bound::Ended(Err(refusal)) => assert!(number >= 3 && refusal.status == 409, "{refusal}"),
                _ => panic!("not ended"),
            }
        }
    }

    #[test]
    fn a_file_that_is_being_named_is_not_given_up() {
        let now = Instant::now();
        for id in [None, Some("x")] {
            let (transfers, request) = placed(&key(id), now);
            set(&request, State::Committing, 3);
            assert_eq!(transfers.expire(now + 600 * SECOND).len(), 0);
            assert_eq!(lock(&transfers.under_way).len(), 1);
        }
    }

    /// Its bytes would be written into what nobody names.
    #[test]
    fn a_request_of_a_transfer_that_was_given_up_is_refused() {
        let now = Instant::now();
        for id in [None, Some("x")] {
            let (transfers, request) = placed(&key(id), now);
            assert_eq!(transfers.expire(now + 60 * SECOND).len(), 1);
            assert_eq!(request.transfer().failure().unwrap().refusal.status, 408);
        }
    }
}
