//! The hand-over of a 1.0.0 transfer from one connection to the next (section "Reconnection").

use std::collections::BTreeMap;

/// A transfer, numbered in the order in which transfers begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransferNumber(u64);

/// A connection that waits, numbered in the order in which connections arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArrivalNumber(u64);

/// The decision about a connection that has arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrival<C> {
    /// It is the first connection of a new transfer.
    Begins(TransferNumber, C),
    /// It was given to a transfer, which continues with it.
    Continues,
    /// It waits for the end of an earlier connection.
    Waits(ArrivalNumber),
}

/// All transfers of one identity, and the connections that may continue them.
///
/// A caller reports what happens, under a lock of its own: [`Self::handle_arrival`] of each
/// connection, [`Self::handle_end`] when the connection of an unfinished transfer has ended,
/// [`Self::handle_finish`] when a transfer is complete or has failed. A transfer without a
/// connection asks [`Self::poll_connection`], until [`Self::handle_give_up`]; an arrival that waits
/// asks [`Self::poll_arrival`], until [`Self::handle_alive`] or [`Self::handle_withdrawal`]. Each
/// of these may change what the others answer. No transfer waits for a connection while a
/// connection waits for a transfer.
///
/// ```text
///             handle_end, nobody waits            handle_arrival
///  Reading ──────────────────────────▶ Waiting ──────────────────▶ Given
///   ▲  │ ▲                                │ handle_give_up            │
///   │  │ └────────────────────────────────┼───────────────────────────┘
///   │  └─ handle_finish ─▶ (gone) ◀───────┘    poll_connection, handle_give_up
///   └──── handle_end, one waits: it is the next
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Handover<C> {
    transfers: BTreeMap<TransferNumber, State<C>>,
    waiting: BTreeMap<ArrivalNumber, C>,
    next: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum State<C> {
    /// It has a connection, as far as is known.
    Reading,
    /// Its connection has ended.
    Waiting,
    /// Its next connection is here, and has not been taken.
    Given(C),
}

impl<C> Default for Handover<C> {
    fn default() -> Self {
        Self { transfers: BTreeMap::new(), waiting: BTreeMap::new(), next: 0 }
    }
}

impl<C> Handover<C> {
    /// Decides about a connection that has arrived.
    pub fn handle_arrival(&mut self, connection: C) -> Arrival<C> {
        let waits = self.transfers.values_mut().find(|state| matches!(state, State::Waiting));
        if let Some(state) = waits {
            *state = State::Given(connection);
            return Arrival::Continues;
        }
        if self.transfers.is_empty() && self.waiting.is_empty() {
            return Arrival::Begins(self.begin(), connection);
        }
        let number = ArrivalNumber(self.number());
        self.waiting.insert(number, connection);
        Arrival::Waits(number)
    }

    /// Notes that the connection of `transfer` has ended too early. Returns the next one, if it is
    /// there; without one the transfer waits.
    pub fn handle_end(&mut self, transfer: TransferNumber) -> Option<C> {
        if let Some((_, next)) = self.waiting.pop_first() {
            return Some(next);
        }
        if let Some(state @ State::Reading) = self.transfers.get_mut(&transfer) {
            *state = State::Waiting;
        }
        None
    }

    /// Takes the connection that was given to `transfer`, if there is one.
    pub fn poll_connection(&mut self, transfer: TransferNumber) -> Option<C> {
        let state = self.transfers.get_mut(&transfer)?;
        match std::mem::replace(state, State::Reading) {
            State::Given(connection) => Some(connection),
            other => {
                *state = other;
                None
            }
        }
    }

    /// Ends a `transfer` that has waited for too long. Returns its next connection if that has come
    /// in this very moment: then the transfer goes on.
    pub fn handle_give_up(&mut self, transfer: TransferNumber) -> Option<C> {
        let next = self.poll_connection(transfer);
        if next.is_none() {
            self.transfers.remove(&transfer);
        }
        next
    }

    /// Forgets a `transfer` that is complete or has failed. Returns a connection that was given to
    /// it and not taken, which only a transfer that fails while it waits can have; nobody serves
    /// that one.
    pub fn handle_finish(&mut self, transfer: TransferNumber) -> Option<C> {
        match self.transfers.remove(&transfer)? {
            State::Given(connection) => Some(connection),
            State::Reading | State::Waiting => None,
        }
    }

    /// Asks again about a connection that waits. None stands for a connection that a transfer has
    /// taken.
    pub fn poll_arrival(&mut self, arrival: ArrivalNumber) -> Option<Arrival<C>> {
        let is_first = self.waiting.first_key_value()?.0 == &arrival;
        if is_first && self.transfers.is_empty() {
            return self.handle_alive(arrival);
        }
        self.waiting.contains_key(&arrival).then_some(Arrival::Waits(arrival))
    }

    /// Begins a new transfer with a connection that waits, because the senders of all others are
    /// alive. None stands for a connection that a transfer has taken.
    pub fn handle_alive(&mut self, arrival: ArrivalNumber) -> Option<Arrival<C>> {
        let connection = self.waiting.remove(&arrival)?;
        Some(Arrival::Begins(self.begin(), connection))
    }

    /// Takes back a connection that waits, because nobody is served any more.
    pub fn handle_withdrawal(&mut self, arrival: ArrivalNumber) -> Option<C> {
        self.waiting.remove(&arrival)
    }

    /// Neither a transfer nor a connection is here.
    pub fn is_empty(&self) -> bool {
        self.transfers.is_empty() && self.waiting.is_empty()
    }

    fn begin(&mut self) -> TransferNumber {
        let number = TransferNumber(self.number());
        self.transfers.insert(number, State::Reading);
        number
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}
