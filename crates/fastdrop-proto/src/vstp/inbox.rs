//! Frames that wait for the application: a queue for each address, served in turn
//! (docs/protocol/vstp.md, section 3). Beside them stand replies to calls and cancellations, which
//! wait for nobody's turn.

use super::acknowledgement::Acknowledgement;
use super::call::CallRole;
use super::frame::FrameBytes;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

/// Frames, and the bytes of memory that they keep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) count: usize,
    pub(super) bytes: usize,
}

impl Amount {
    fn add(&mut self, other: Self) {
        self.count += other.count;
        self.bytes += other.bytes;
    }

    pub(super) fn subtract(&mut self, other: Self) {
        self.count = self.count.saturating_sub(other.count);
        self.bytes = self.bytes.saturating_sub(other.bytes);
    }
}

/// A frame and the acknowledgement that it asks for.
#[derive(Debug)]
struct Waiting {
    frame: FrameBytes,
    acknowledgement: Option<Acknowledgement>,
    /// The channel of which it is a state.
    state: Option<u32>,
}

/// A state of a channel that waits.
#[derive(Debug, Clone, Copy)]
struct State {
    /// Its place: so many frames of its address had come before it.
    place: u64,
    number: u64,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Waiting>,
    /// Frames that have left it.
    popped: u64,
    /// The states among those that wait, one of each channel.
    states: BTreeMap<u32, State>,
    /// Frames in the queue, and those that the application has and is not done with.
    held: Amount,
    is_stranger: bool,
    /// The local address that was asked last.
    local: Option<IpAddr>,
    /// Bytes that came from the address and went to it, if it has been forgotten unproved.
    unproved: Option<(u64, u64)>,
}

/// A place in the round.
#[derive(Debug, Clone, Copy)]
enum Turn {
    Address(SocketAddr),
    /// All strangers together have one.
    Strangers,
}

/// The frames of all addresses.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    queues: HashMap<SocketAddr, Queue>,
    turns: VecDeque<Turn>,
    /// Frames about calls that are under way.
    of_calls: VecDeque<(SocketAddr, FrameBytes, Option<Acknowledgement>)>,
    /// Strangers with frames in their queues, in turn.
    stranger_turns: VecDeque<SocketAddr>,
    /// Held by all known addresses.
    known: Amount,
    /// Held by all strangers.
    strangers: Amount,
}

impl Inbox {
    /// Frames about calls that are kept until the driver takes them.
    const OF_CALLS_MAX: usize = 4096;

    /// The frames that one address holds.
    pub(super) fn held(&self, from: SocketAddr) -> Amount {
        self.queues.get(&from).map_or_else(Amount::default, |queue| queue.held)
    }

    /// The frames that all known addresses hold, or all strangers.
    pub(super) fn amount(&self, of_strangers: bool) -> Amount {
        if of_strangers { self.strangers } else { self.known }
    }

    /// The local address that an address has asked last, if it has something here.
    pub(super) fn local(&self, from: SocketAddr) -> Option<IpAddr> {
        self.queues.get(&from)?.local
    }

    /// Records that local address.
    pub(super) fn set_local(&mut self, from: SocketAddr, local: IpAddr) {
        if let Some(queue) = self.queues.get_mut(&from) {
            queue.local = Some(local);
        }
    }

    /// Bytes that came from an address and went to it, if it has been forgotten unproved and has
    /// something here.
    pub(super) fn unproved(&self, from: SocketAddr) -> Option<(u64, u64)> {
        self.queues.get(&from)?.unproved
    }

    /// Records them.
    pub(super) fn set_unproved(&mut self, from: SocketAddr, bytes: (u64, u64)) {
        if let Some(queue) = self.queues.get_mut(&from) {
            queue.unproved = Some(bytes);
        }
    }

    /// Returns true if nothing waits to be taken.
    pub(super) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Takes a frame that came.
    pub(super) fn push(
        &mut self,
        from: SocketAddr,
        is_stranger: bool,
        frame: FrameBytes,
        acknowledgement: Option<Acknowledgement>,
    ) {
        self.hold(from, is_stranger, &frame);
        self.push_held(from, frame, acknowledgement);
    }

    /// Takes a frame about a call that is under way.
    pub(super) fn push_of_call(
        &mut self,
        from: SocketAddr,
        is_stranger: bool,
        frame: FrameBytes,
        acknowledgement: Option<Acknowledgement>,
    ) {
        self.hold(from, is_stranger, &frame);
        self.of_calls.push_back((from, frame, acknowledgement));
    }

    /// Counts a frame of an address that is no part of its queue: one that came and whose turn has
    /// not come, until [`Self::push_held`], or [`Self::on_taken`] if it never comes.
    pub(super) fn hold(&mut self, from: SocketAddr, is_stranger: bool, frame: &FrameBytes) {
        if !is_stranger {
            self.prove(from);
        }
        let queue = self.queues.entry(from).or_insert_with(|| Queue { is_stranger, ..Queue::default() });
        let amount = Amount { count: 1, bytes: frame.memory() };
        queue.held.add(amount);
        let of_all = if queue.is_stranger { &mut self.strangers } else { &mut self.known };
        of_all.add(amount);
    }

    /// The turn of such a frame has come.
    pub(super) fn push_held(
        &mut self,
        from: SocketAddr,
        frame: FrameBytes,
        acknowledgement: Option<Acknowledgement>,
    ) {
        let Some(queue) = self.queues.get_mut(&from) else { return };
        let is_first = queue.frames.is_empty();
        queue.frames.push_back(Waiting { frame, acknowledgement, state: None });
        let is_stranger = queue.is_stranger;
        if is_first {
            self.take_turn(from, is_stranger);
        }
    }

    /// Returns true if many frames about calls have not been taken, which a driver does at once.
    pub(super) fn is_full_of_calls(&self) -> bool {
        self.of_calls.len() >= Self::OF_CALLS_MAX
    }

    /// The next frame about a call that is under way, which is held as any other.
    pub(super) fn pop_of_call(&mut self) -> Option<(SocketAddr, FrameBytes, Option<Acknowledgement>)> {
        self.of_calls.pop_front()
    }

    /// The number and the memory of the state of a channel that waits to be taken.
    pub(super) fn state(&self, from: SocketAddr, channel: u32) -> Option<(u64, Amount)> {
        let queue = self.queues.get(&from)?;
        let state = queue.states.get(&channel)?;
        let at = usize::try_from(state.place - queue.popped).ok()?;
        let bytes = queue.frames.get(at)?.frame.memory();
        Some((state.number, Amount { count: 1, bytes }))
    }

    /// Takes a state of a channel, in the place of the one that waits if one does. Returns true if
    /// one did.
    pub(super) fn push_state(
        &mut self,
        from: SocketAddr,
        is_stranger: bool,
        frame: FrameBytes,
        (channel, number): (u32, u64),
    ) -> bool {
        if !is_stranger {
            self.prove(from);
        }
        if let Some(queue) = self.queues.get_mut(&from)
            && let Some(state) = queue.states.get_mut(&channel)
            && let Some(waiting) = queue.frames.get_mut((state.place - queue.popped) as usize)
        {
            state.number = number;
            let amount = |frame: &FrameBytes| Amount { count: 1, bytes: frame.memory() };
            let (before, after) = (amount(&waiting.frame), amount(&frame));
            waiting.frame = frame;
            let of_all = if queue.is_stranger { &mut self.strangers } else { &mut self.known };
            for held in [&mut queue.held, of_all] {
                held.subtract(before);
                held.add(after);
            }
            return true;
        }
        self.push(from, is_stranger, frame, None);
        if let Some(queue) = self.queues.get_mut(&from)
            && let Some(waiting) = queue.frames.back_mut()
        {
            waiting.state = Some(channel);
            let place = queue.popped + queue.frames.len() as u64 - 1;
            queue.states.insert(channel, State { place, number });
        }
        false
    }

    /// Drops the calls of an address that wait: nobody is there any more whom a reply is for.
    pub(super) fn drop_calls(&mut self, from: SocketAddr) {
        let Some(queue) = self.queues.get_mut(&from) else { return };
        let mut dropped = Amount::default();
        queue.frames.retain(|waiting| {
            let is_call = matches!(CallRole::of(&waiting.frame.as_ref()), Some(CallRole::Request(..)));
            if is_call {
                dropped.add(Amount { count: 1, bytes: waiting.frame.memory() });
            }
            !is_call
        });
        for (at, waiting) in queue.frames.iter().enumerate() {
            if let Some(state) = waiting.state.and_then(|channel| queue.states.get_mut(&channel)) {
                state.place = queue.popped + at as u64;
            }
        }
        queue.held.subtract(dropped);
        let of_all = if queue.is_stranger { &mut self.strangers } else { &mut self.known };
        of_all.subtract(dropped);
        let (has_none, is_over) = (queue.frames.is_empty(), queue.held.count == 0);
        if has_none && dropped.count > 0 {
            self.turns.retain(|turn| !matches!(turn, Turn::Address(address) if *address == from));
            self.stranger_turns.retain(|address| *address != from);
        }
        if is_over {
            self.queues.remove(&from);
        }
    }

    fn take_turn(&mut self, from: SocketAddr, is_stranger: bool) {
        if !is_stranger {
            self.turns.push_back(Turn::Address(from));
            return;
        }
        if self.stranger_turns.is_empty() {
            self.turns.push_back(Turn::Strangers);
        }
        self.stranger_turns.push_back(from);
    }

    /// The next frame for the application, which is held until it is done with it.
    pub(super) fn pop(&mut self) -> Option<(SocketAddr, FrameBytes, Option<Acknowledgement>)> {
        loop {
            let (from, of_strangers) = match self.turns.pop_front()? {
                Turn::Address(from) => (from, false),
                Turn::Strangers => {
                    let next = self.stranger_turns.pop_front();
                    if !self.stranger_turns.is_empty() {
                        self.turns.push_back(Turn::Strangers);
                    }
                    let Some(from) = next else { continue };
                    (from, true)
                }
            };
            // One that has proved itself meanwhile has another place.
            let queue = self.queues.get_mut(&from).filter(|queue| queue.is_stranger == of_strangers);
            let Some(queue) = queue else { continue };
            let Some(waiting) = queue.frames.pop_front() else { continue };
            let Waiting { frame, acknowledgement, state } = waiting;
            queue.popped += 1;
            if let Some(channel) = state {
                queue.states.remove(&channel);
            }
            if !queue.frames.is_empty() {
                self.take_turn(from, of_strangers);
            }
            return Some((from, frame, acknowledgement));
        }
    }

    /// The application is done with a frame. Returns what [`Self::unproved`] did if it was the
    /// last.
    pub(super) fn on_taken(&mut self, from: SocketAddr, frame: &FrameBytes) -> Option<(u64, u64)> {
        let queue = self.queues.get_mut(&from)?;
        let amount = Amount { count: 1, bytes: frame.memory() };
        queue.held.subtract(amount);
        let of_all = if queue.is_stranger { &mut self.strangers } else { &mut self.known };
        of_all.subtract(amount);
        if queue.held.count > 0 {
            return None;
        }
        self.queues.remove(&from)?.unproved
    }

    /// An address is no stranger any more: its queue gets a turn of its own.
    pub(super) fn prove(&mut self, from: SocketAddr) {
        let Some(queue) = self.queues.get_mut(&from).filter(|queue| queue.is_stranger) else { return };
        queue.is_stranger = false;
        queue.unproved = None;
        self.strangers.subtract(queue.held);
        self.known.add(queue.held);
        if !queue.frames.is_empty() {
            self.turns.push_back(Turn::Address(from));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::CallId;
    use crate::vstp::{FrameType, HeadersBuf};

    fn address(n: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], n))
    }

    fn frame() -> FrameBytes {
        FrameBytes::new(FrameType::Data, HeadersBuf::default(), vec![0; 10].into())
    }

    #[test]
    fn case_130_addresses_are_served_in_turn_and_strangers_have_one_together() {
        let mut inbox = Inbox::default();
        for _ in 0..100 {
            inbox.push(address(1), false, frame(), None);
        }
        for n in 1000..1500 {
            inbox.push(address(n), true, frame(), None);
        }
        for _ in 0..3 {
            inbox.push(address(2), false, frame(), None);
        }
        let order: Vec<u16> = (0..9).map(|_| inbox.pop().unwrap().0.port()).collect();
        assert_eq!(order, [1, 1000, 2, 1, 1001, 2, 1, 1002, 2]);
        // One that proves itself is served beside the others.
        inbox.push(address(1499), true, frame(), None);
        inbox.prove(address(1499));
        let order: Vec<u16> = (0..5).map(|_| inbox.pop().unwrap().0.port()).collect();
        assert_eq!(order, [1, 1003, 1499, 1, 1004]);
        let mut count = order.len() + 9;
        while inbox.pop().is_some() {
            count += 1;
        }
        assert_eq!(count, 604);
        assert!(inbox.is_empty());
    }

    #[test]
    fn calls_of_a_connection_that_is_over_go_and_what_else_it_said_stays() {
        let mut inbox = Inbox::default();
        let call = CallRole::request(&frame(), CallId(7), 250).unwrap();
        let state = |inbox: &mut Inbox, number| inbox.push_state(address(1), false, frame(), (4, number));
        inbox.push(address(1), false, call.clone(), None);
        inbox.push(address(1), false, frame(), None);
        inbox.push(address(1), false, call.clone(), None);
        assert!(!state(&mut inbox, 1));
        inbox.push(address(2), false, call, None);
        inbox.drop_calls(address(1));
        assert_eq!(inbox.held(address(1)).count, 2);
        // A newer state finds its place all the same.
        assert!(state(&mut inbox, 2));
        let order: Vec<u16> = std::iter::from_fn(|| inbox.pop()).map(|(from, ..)| from.port()).collect();
        assert_eq!(order, [1, 2, 1]);
        inbox.drop_calls(address(2));
        // Nothing waits, and there is no turn for nothing.
        inbox.push(address(3), false, CallRole::request(&frame(), CallId(8), 250).unwrap(), None);
        inbox.drop_calls(address(3));
        assert!(inbox.is_empty() && inbox.held(address(3)).count == 0);
    }

    #[test]
    fn what_the_application_has_is_held_until_it_is_done() {
        let mut inbox = Inbox::default();
        inbox.push(address(1), true, frame(), None);
        let (from, taken, _) = inbox.pop().unwrap();
        assert_eq!((inbox.held(from).count, inbox.amount(true).count), (1, 1));
        inbox.prove(from);
        assert_eq!((inbox.amount(true), inbox.amount(false).count), (Amount::default(), 1));
        assert_eq!(inbox.on_taken(from, &taken), None);
        assert_eq!(inbox.amount(false), Amount::default());
        assert!(inbox.queues.is_empty());
    }
}
