//! Connections of 1.0.0 that continue the transfer of an earlier one.

use crate::admission::permit::ConnectionPermit;
use crate::lock::lock;
use crate::net::connection::Connection;
use crate::net::frames::FrameReader;
use crate::stop::Stop;
use fastdrop_proto::fastdp::v1::{Arrival, ArrivalNumber, Handover, Header, TransferNumber};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How long a transfer waits for its next connection, and a
/// connection for the end of an earlier one.
const RETURN_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes that a sender that has gone may have left on the way: what both kernels
/// hold. One that brings more is alive.
const IN_FLIGHT_MAX: u64 = 16 << 20;
/// The interval at which one that waits looks at what nobody notifies it of.
const TICK: Duration = Duration::from_millis(100);

/// Everything that a connection must have in common with an earlier one to continue its transfer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Identity {
    key: String,
    address: IpAddr,
    name: Option<String>,
    size: u64,
    one_chunk: u32,
    compression: &'static str,
    confirm: bool,
}

impl Identity {
    pub(crate) fn new(key: String, address: IpAddr, header: &Header) -> Self {
        Self {
            key,
            address,
            name: header.file_name.clone(),
            size: header.full_size,
            one_chunk: header.one_chunk,
            compression: header.compression.name(),
            confirm: header.confirm,
        }
    }
}

/// A connection behind its header.
pub(crate) struct Return {
    pub(crate) reader: FrameReader,
    /// Released when the connection ends.
    pub(crate) permit: ConnectionPermit,
}

/// The transfers under way, by their identity. A connection is in here,
/// or with the one thread that reads it.
#[derive(Default)]
pub(crate) struct Returns {
    lines: Mutex<BTreeMap<Identity, Line>>,
    changed: Condvar,
}

#[derive(Default)]
struct Line {
    handover: Handover<Return>,
    /// The connections that are being read.
    read: BTreeMap<TransferNumber, Weak<Connection>>,
}

/// The decision about a connection that has arrived.
pub(crate) enum Arrived {
    /// It begins a transfer.
    Begins(Joined, Return),
    /// Another thread has it.
    Continues,
    /// It waits: see [`Returns::wait`].
    Waits(ArrivalNumber, Received),
}

/// Bytes that each transfer of an identity had received when a connection arrived.
pub(crate) type Received = BTreeMap<TransferNumber, u64>;

/// A transfer, known by its identity as long as this is there.
pub(crate) struct Joined {
    returns: Arc<Returns>,
    identity: Identity,
    number: TransferNumber,
}

impl Returns {
    /// Decides about a connection that has arrived.
    pub(crate) fn arrive(self: &Arc<Self>, identity: &Identity, arrived: Return) -> Arrived {
        let mut lines = lock(&self.lines);
        let line = lines.entry(identity.clone()).or_default();
        let arrival = line.handover.handle_arrival(arrived);
        self.changed.notify_all();
        self.arrived(line, identity, arrival)
    }

    /// Waits until it is known what becomes of a connection; None if another
    /// thread has it, or the server stops.
    pub(crate) fn wait(
        self: &Arc<Self>,
        identity: &Identity,
        arrival: ArrivalNumber,
        mut before: Received,
        stop: &Stop,
    ) -> Option<(Joined, Return)> {
        let until = Instant::now() + RETURN_TIMEOUT;
        let mut lines = lock(&self.lines);
        loop {
            let line = lines.get_mut(identity)?;
            if stop.is_stopped() {
                // It is reset.
                drop(line.handover.handle_withdrawal(arrival));
                forget_if_empty(&mut lines, identity);
                return None;
            }
            let alive = line.are_alive(&mut before) || Instant::now() > until;
            let asked =
                if alive { line.handover.handle_alive(arrival) } else { line.handover.poll_arrival(arrival) };
            match self.arrived(line, identity, asked?) {
                Arrived::Begins(joined, connection) => return Some((joined, connection)),
                Arrived::Continues => return None,
                Arrived::Waits(..) => lines = self.wait_a_little(lines),
            }
        }
    }

    fn arrived(self: &Arc<Self>, line: &mut Line, identity: &Identity, arrival: Arrival<Return>) -> Arrived {
        match arrival {
            Arrival::Begins(number, connection) => {
                line.read.insert(number, Arc::downgrade(connection.reader.connection()));
                let joined = Joined { returns: Arc::clone(self), identity: identity.clone(), number };
                Arrived::Begins(joined, connection)
            }
            Arrival::Continues => Arrived::Continues,
            Arrival::Waits(arrival) => Arrived::Waits(arrival, line.received()),
        }
    }

    fn wait_a_little<'a>(
        &self,
        lines: MutexGuard<'a, BTreeMap<Identity, Line>>,
    ) -> MutexGuard<'a, BTreeMap<Identity, Line>> {
        self.changed.wait_timeout(lines, TICK).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Line {
    fn received(&self) -> Received {
        let received =
            |(&number, connection): (_, &Weak<Connection>)| Some((number, connection.upgrade()?.received()));
        self.read.iter().filter_map(received).collect()
    }

    /// All senders of this identity are alive: they have brought more
    /// than can have been on its way `before`.
    fn are_alive(&self, before: &mut Received) -> bool {
        let mut all = !self.read.is_empty();
        for (&number, connection) in &self.read {
            let Some(connection) = connection.upgrade() else { return false };
            let received = connection.received();
            let since = *before.entry(number).or_insert(received);
            all &= received.saturating_sub(since) > IN_FLIGHT_MAX && !connection.peer_has_left();
        }
        all
    }
}

impl Joined {
    /// The next connection of the transfer, whose last one has ended; None if none
    /// comes in time, or the server stops.
    pub(crate) fn next(&self, stop: &Stop) -> Option<Return> {
        let until = Instant::now() + RETURN_TIMEOUT;
        let mut lines = lock(&self.returns.lines);
        let mut next = {
            let line = lines.get_mut(&self.identity)?;
            line.read.remove(&self.number);
            line.handover.handle_end(self.number)
        };
        self.returns.changed.notify_all();
        loop {
            let line = lines.get_mut(&self.identity)?;
            let over = Instant::now() > until || stop.is_stopped();
            if next.is_none() {
                next = if over {
                    line.handover.handle_give_up(self.number)
                } else {
                    line.handover.poll_connection(self.number)
                };
            }
            if let Some(next) = next {
                line.read.insert(self.number, Arc::downgrade(next.reader.connection()));
                return Some(next);
            }
            if over {
                return None;
            }
            lines = self.returns.wait_a_little(lines);
        }
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        let mut lines = lock(&self.returns.lines);
        if let Some(line) = lines.get_mut(&self.identity) {
            line.read.remove(&self.number);
            // Whoever was given to it in vain is reset.
            drop(line.handover.handle_finish(self.number));
        }
        forget_if_empty(&mut lines, &self.identity);
        self.returns.changed.notify_all();
    }
}

fn forget_if_empty(lines: &mut BTreeMap<Identity, Line>, identity: &Identity) {
    if lines.get(identity).is_some_and(|line| line.handover.is_empty()) {
        lines.remove(identity);
    }
}
