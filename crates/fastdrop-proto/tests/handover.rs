//! The hand-over between connections of fastdp 1.0.0, in every order in which its events can
//! happen.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use fastdrop_proto::fastdp::v1::{Arrival, ArrivalNumber, Handover, TransferNumber};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// A connection, numbered in the order of arrival.
type Connection = u8;

/// A thing that can happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// The next connection arrives.
    Arrive,
    /// The end of a transfer's connection is noticed.
    End(TransferNumber),
    /// A transfer is complete, or fails.
    Finish(TransferNumber),
    /// A transfer without a connection looks for one.
    Poll(TransferNumber),
    /// It gives up.
    GiveUp(TransferNumber),
    /// A connection that waits asks what becomes of it.
    Ask(ArrivalNumber),
    /// All transfers turn out to be alive.
    Alive(ArrivalNumber),
    /// A connection that waits goes, because the server stops.
    Withdraw(ArrivalNumber),
}

/// The server around the hand-over: its transfers with the connections that they read, and the
/// connections that wait.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct World {
    handover: Handover<Connection>,
    arrived: Connection,
    transfers: BTreeMap<TransferNumber, Option<Connection>>,
    begun: u8,
    waiting: BTreeMap<ArrivalNumber, Connection>,
    /// Given to a transfer that has not looked yet.
    given: BTreeSet<Connection>,
    /// Read to their end, or reset.
    over: BTreeSet<Connection>,
}

impl World {
    fn begin(&mut self, transfer: TransferNumber, connection: Connection) {
        assert!(self.transfers.insert(transfer, Some(connection)).is_none(), "a number was given twice");
        self.begun += 1;
    }

    /// `transfer` takes a connection that came after its own.
    fn take(&mut self, transfer: TransferNumber, connection: Connection) {
        let was_given = self.given.remove(&connection);
        let asked = self.waiting.iter().find(|(_, other)| **other == connection).map(|(&arrival, _)| arrival);
        assert_ne!(was_given, asked.is_some(), "{connection} comes from one place");
        let earliest = self.waiting.values().all(|&other| connection <= other);
        assert!(earliest || was_given, "{connection} is the first of those that wait");
        if let Some(arrival) = asked {
            assert_eq!(self.handover.clone().poll_arrival(arrival), None, "it is told that it was taken");
            self.waiting.remove(&arrival);
        }
        let before = self.transfers.insert(transfer, Some(connection));
        assert_eq!(before, Some(None), "a transfer reads one connection");
    }

    fn outcome(&mut self, arrival: ArrivalNumber, outcome: Option<Arrival<Connection>>) {
        match outcome.expect("nobody has taken it") {
            Arrival::Begins(transfer, connection) => {
                assert_eq!(self.waiting.remove(&arrival), Some(connection));
                self.begin(transfer, connection);
            }
            Arrival::Waits(number) => assert_eq!(number, arrival),
            Arrival::Continues => panic!("one that waits is taken by its transfer"),
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive => {
                self.arrived += 1;
                let connection = self.arrived;
                match self.handover.handle_arrival(connection) {
                    Arrival::Begins(transfer, same) => {
                        assert_eq!(same, connection);
                        assert!(self.transfers.is_empty() && self.waiting.is_empty());
                        self.begin(transfer, connection);
                    }
                    Arrival::Continues => {
                        assert!(self.given.insert(connection));
                    }
                    Arrival::Waits(arrival) => {
                        assert!(self.waiting.insert(arrival, connection).is_none());
                    }
                }
            }
            Event::End(transfer) => {
                let ended = self.transfers.insert(transfer, None).flatten().unwrap();
                self.over.insert(ended);
                if let Some(next) = self.handover.handle_end(transfer) {
                    self.take(transfer, next);
                }
            }
            Event::Finish(transfer) => {
                self.over.insert(self.transfers.remove(&transfer).flatten().unwrap());
                assert_eq!(self.handover.handle_finish(transfer), None, "it was reading");
            }
            Event::Poll(transfer) => {
                if let Some(next) = self.handover.poll_connection(transfer) {
                    self.take(transfer, next);
                }
            }
            Event::GiveUp(transfer) => match self.handover.handle_give_up(transfer) {
                Some(next) => self.take(transfer, next),
                None => {
                    self.transfers.remove(&transfer);
                }
            },
            Event::Ask(arrival) => {
                let outcome = self.handover.poll_arrival(arrival);
                self.outcome(arrival, outcome);
            }
            Event::Alive(arrival) => {
                let outcome = self.handover.handle_alive(arrival);
                self.outcome(arrival, outcome);
            }
            Event::Withdraw(arrival) => {
                let connection = self.waiting.remove(&arrival).unwrap();
                assert_eq!(self.handover.handle_withdrawal(arrival), Some(connection));
                self.over.insert(connection);
            }
        }
    }

    /// All that can happen now, if `most` connections arrive.
    fn events(&self, most: Connection) -> Vec<Event> {
        let mut events = Vec::new();
        if self.arrived < most {
            events.push(Event::Arrive);
        }
        for (&transfer, reads) in &self.transfers {
            match reads {
                Some(_) => events.extend([Event::End(transfer), Event::Finish(transfer)]),
                None => events.extend([Event::Poll(transfer), Event::GiveUp(transfer)]),
            }
        }
        for &arrival in self.waiting.keys() {
            events.extend([Event::Ask(arrival), Event::Alive(arrival), Event::Withdraw(arrival)]);
        }
        events
    }

    /// Everybody looks once; then nobody waits for what is there.
    fn check(&self) {
        let mut settled = self.clone();
        let look: Vec<_> =
            settled.transfers.iter().filter(|(_, reads)| reads.is_none()).map(|(&t, _)| t).collect();
        look.into_iter().for_each(|transfer| settled.happen(Event::Poll(transfer)));
        let ask: Vec<_> = settled.waiting.keys().copied().collect();
        ask.into_iter().for_each(|arrival| settled.happen(Event::Ask(arrival)));
        assert!(settled.given.is_empty(), "given to a transfer that does not find it: {self:?}");
        let (reads, waits): (Vec<_>, Vec<_>) = settled.transfers.values().partition(|reads| reads.is_some());
        if !settled.waiting.is_empty() {
            assert!(waits.is_empty(), "a transfer waits while a connection waits: {self:?}");
            assert!(!reads.is_empty(), "a connection waits for nobody: {self:?}");
        }
        let mut everywhere: Vec<_> = reads.into_iter().copied().flatten().collect();
        everywhere.extend(settled.waiting.values().chain(&settled.over));
        everywhere.sort_unstable();
        assert_eq!(
            everywhere,
            (1..=self.arrived).collect::<Vec<_>>(),
            "each connection is in one place: {self:?}"
        );
        let idle = settled.transfers.is_empty() && settled.waiting.is_empty();
        assert_eq!(settled.handover.is_empty(), idle, "{self:?}");
    }
}

/// Visits every state that `events` lead to. Returns their number, and those in which nothing more
/// happens.
fn explore(events: impl Fn(&World) -> Vec<Event>, check: impl Fn(&World)) -> (usize, Vec<World>) {
    let mut seen = HashSet::from([World::default()]);
    let mut to_do = vec![World::default()];
    let mut last = Vec::new();
    while let Some(world) = to_do.pop() {
        check(&world);
        let mut goes_on = false;
        for event in events(&world) {
            let mut next = world.clone();
            next.happen(event);
            goes_on |= next != world;
            if seen.insert(next.clone()) {
                to_do.push(next);
            }
        }
        if !goes_on {
            last.push(world);
        }
    }
    (seen.len(), last)
}

#[test]
fn case_106_in_every_order_no_connection_is_lost_and_nobody_waits_for_what_is_there() {
    let (states, last) = explore(|world| world.events(5), World::check);
    assert!(states > 1_000, "{states} states are too few to be all");
    for world in last {
        assert!(world.handover.is_empty(), "{world:?}");
    }
}

/// A sender that breaks off and comes back, and comes back again: it closes each connection before
/// it opens the next.
#[test]
fn case_106_a_sender_that_comes_back_continues_its_one_transfer_in_every_order() {
    const LAST: Connection = 4;
    let events = |world: &World| {
        let mut events = Vec::new();
        if world.arrived < LAST {
            events.push(Event::Arrive);
        }
        for (&transfer, reads) in &world.transfers {
            match reads {
                // The sender has closed all but the last; when that is noticed is anybody's guess.
                Some(connection) if *connection < world.arrived || world.arrived == 0 => {
                    events.push(Event::End(transfer));
                }
                Some(connection) if *connection == world.arrived && world.arrived < LAST => {
                    events.push(Event::End(transfer));
                }
                Some(_) => {}
                None => events.push(Event::Poll(transfer)),
            }
        }
        events.extend(world.waiting.keys().map(|&arrival| Event::Ask(arrival)));
        events
    };
    let (_, last) = explore(events, |world| {
        world.check();
        assert!(world.begun <= 1, "another transfer began: {world:?}");
    });
    assert!(!last.is_empty());
    for world in last {
        let reads: Vec<_> = world.transfers.values().collect();
        assert_eq!(reads, [&Some(LAST)], "{world:?}");
        assert!(world.waiting.is_empty(), "{world:?}");
    }
}

/// A stranger with the same identity, while the earlier sender is alive.
#[test]
fn case_106_a_sender_of_the_same_identity_begins_a_transfer_of_its_own_once_the_other_is_known_to_be_alive() {
    let mut handover = Handover::default();
    let Arrival::Begins(first, 'a') = handover.handle_arrival('a') else { panic!("the first begins") };
    let Arrival::Waits(arrival) = handover.handle_arrival('b') else { panic!("the second waits") };
    assert_eq!(handover.poll_arrival(arrival), Some(Arrival::Waits(arrival)));
    let Some(Arrival::Begins(second, 'b')) = handover.handle_alive(arrival) else { panic!("it begins") };
    assert_ne!(first, second);
    // Each ends by itself, and neither has the other's place.
    assert_eq!(handover.handle_end(first), None);
    assert_eq!(handover.handle_finish(second), None);
    assert_eq!(handover.handle_arrival('c'), Arrival::Continues);
    assert_eq!(handover.poll_connection(second), None);
    assert_eq!(handover.poll_connection(first), Some('c'));
}

#[test]
fn case_106_a_connection_in_the_moment_of_giving_up_is_taken() {
    let mut handover = Handover::default();
    let Arrival::Begins(transfer, 1) = handover.handle_arrival(1) else { panic!("the first begins") };
    assert_eq!(handover.handle_end(transfer), None);
    assert_eq!(handover.handle_arrival(2), Arrival::Continues);
    assert_eq!(handover.handle_give_up(transfer), Some(2));
    assert_eq!(handover.handle_end(transfer), None);
    assert_eq!(handover.handle_give_up(transfer), None);
    assert!(matches!(handover.handle_arrival(3), Arrival::Begins(_, 3)));
}

#[test]
fn a_transfer_that_fails_while_it_waits_leaves_nothing_behind() {
    let mut handover = Handover::default();
    let Arrival::Begins(transfer, 1) = handover.handle_arrival(1) else { panic!("the first begins") };
    assert_eq!(handover.handle_end(transfer), None);
    assert_eq!(handover.handle_arrival(2), Arrival::Continues);
    assert_eq!(handover.handle_finish(transfer), Some(2));
    assert!(handover.is_empty());
}
