//! The sessions of clients that connect again, as a server remembers them over all its connections
//! (docs/protocol/vstp.md, section 11).

use super::acknowledgement::Acknowledgement;
use super::error_code::ErrorCode;
use super::frame::Headers;
use super::handed_on::{Fate, HandedOn};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

/// The header that names a session in a HELLO, and the memory of it in a WELCOME.
pub(super) const CLIENT_SESSION: &str = "client-session";

/// The name of one client's session, the same on all its connections.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ClientSessionId(u128);

impl ClientSessionId {
    /// Of 128 random bits. Whoever knows them can speak for the client, as far as its token and its
    /// certificate do not stand in the way.
    pub fn new(random: u128) -> Self {
        Self(random)
    }

    /// The session that the headers of a HELLO name, if they do.
    pub(super) fn of(headers: Headers<'_>) -> Option<Self> {
        let digits = headers.find(CLIENT_SESSION).filter(|digits| digits.len() == 32)?;
        let is_hex = digits.iter().all(u8::is_ascii_hexdigit);
        let digits = std::str::from_utf8(digits).ok().filter(|_| is_hex)?;
        u128::from_str_radix(digits, 16).ok().map(Self)
    }

    /// Its 32 digits.
    pub(super) fn digits(self) -> String {
        format!("{:032x}", self.0)
    }
}

impl fmt::Debug for ClientSessionId {
    /// Never the digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientSessionId(…)")
    }
}

/// The bounds on what a server remembers of clients that may connect again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientSessionLimits {
    /// Sessions that are remembered, of at most 10 KiB each. When there is no room for one more,
    /// one without a connection is forgotten, of the address that has most sessions; none of one
    /// that has fewer than the new one's. 0: none is remembered. Default 10,000.
    pub sessions_max: usize,
    /// The time for which a session is remembered after its last connection has ended. Default ten
    /// minutes.
    pub kept_for: Duration,
}

impl Default for ClientSessionLimits {
    fn default() -> Self {
        Self { sessions_max: 10_000, kept_for: Duration::from_secs(600) }
    }
}

/// The origin of a connection.
#[derive(Debug, Clone)]
pub struct ClientOrigin {
    /// The sessions that its server remembers.
    pub sessions: ClientSessions,
    /// The address or network that it is counted for.
    pub address: u128,
    /// The fingerprint of the certificate that it has shown.
    pub certificate: Option<[u8; 32]>,
}

impl ClientOrigin {
    /// Gives the connection a place in the session that its HELLO names.
    pub(super) fn attach(
        &self,
        now: Instant,
        headers: Headers<'_>,
        token: Option<&[u8]>,
    ) -> Option<Attachment> {
        let id = ClientSessionId::of(headers)?;
        let mut key = blake3::Hasher::new();
        key.update(&id.0.to_be_bytes());
        for part in [self.certificate.as_ref().map(<[u8; 32]>::as_slice), token] {
            let part = part.map(blake3::hash);
            key.update(&[u8::from(part.is_some())]);
            key.update(part.as_ref().map_or(&[], |part| part.as_bytes()));
        }
        self.sessions.attach(now, Key(*key.finalize().as_bytes()), self.address)
    }
}

/// A session's name together with the token and the certificate that it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key([u8; 32]);

/// The sessions that a server remembers. Clones are the same.
#[derive(Debug, Clone)]
pub struct ClientSessions(Arc<Mutex<Table>>);

#[derive(Debug)]
struct Table {
    limits: ClientSessionLimits,
    /// The name of the next memory.
    next_memory: u64,
    sessions: HashMap<Key, Remembered>,
    /// Sessions without a connection, in the order in which their connections ended.
    away: BTreeMap<Ended, Key>,
    /// All sessions by their address.
    of_address: HashMap<u128, OfAddress>,
    ends: u64,
}

/// The time when a connection ended, and a number that no two have.
type Ended = (Instant, u64);

/// The sessions of one address.
#[derive(Debug, Default)]
struct OfAddress {
    /// Those with a connection too.
    all: usize,
    away: BTreeSet<Ended>,
}

#[derive(Debug)]
struct Remembered {
    entry: Arc<Entry>,
    address: u128,
    ended: Option<Ended>,
}

/// One session.
#[derive(Debug)]
struct Entry {
    memory: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    handed_on: HandedOn,
    /// The connection that has the session, among those that have had it.
    holder: u64,
    is_held: bool,
    /// Numbers whose outcome is to be written on that connection: at most as many as were in hand.
    owed: VecDeque<u64>,
    waker: Option<Waker>,
}

impl ClientSessions {
    /// Remembers nothing yet. `random`: names of memories begin with that; another server must not
    /// use the same ones.
    pub fn new(limits: ClientSessionLimits, random: u64) -> Self {
        Self(Arc::new(Mutex::new(Table {
            limits,
            next_memory: random,
            sessions: HashMap::new(),
            away: BTreeMap::new(),
            of_address: HashMap::new(),
            ends: 0,
        })))
    }

    /// Sessions that are remembered.
    pub fn len(&self) -> usize {
        lock(&self.0).sessions.len()
    }

    /// Reports whether no session is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gives a connection the session, which the one that had it loses. None: there is no room.
    fn attach(&self, now: Instant, key: Key, address: u128) -> Option<Attachment> {
        let mut table = lock(&self.0);
        table.forget_old(now);
        let entry = table.take(key, address)?;
        let (holder, waker) = {
            let mut state = lock(&entry.state);
            state.holder += 1;
            state.is_held = true;
            state.owed.clear();
            (state.holder, state.waker.take())
        };
        drop(table);
        if let Some(waker) = waker {
            waker.wake();
        }
        Some(Attachment { entry, holder, key, sessions: self.clone() })
    }
}

impl Table {
    /// The session, which has a connection from now on.
    fn take(&mut self, key: Key, address: u128) -> Option<Arc<Entry>> {
        if let Some(known) = self.sessions.get_mut(&key) {
            let (entry, ended) = (Arc::clone(&known.entry), known.ended.take());
            let before = std::mem::replace(&mut known.address, address);
            if let Some(ended) = ended {
                self.away.remove(&ended);
            }
            self.leave(before, ended);
            self.of_address.entry(address).or_default().all += 1;
            return Some(entry);
        }
        while self.sessions.len() >= self.limits.sessions_max {
            let ended = self.dispensable(address)?;
            self.forget(ended);
        }
        self.next_memory = self.next_memory.wrapping_add(1);
        let entry = Arc::new(Entry { memory: self.next_memory, state: Mutex::default() });
        self.sessions.insert(key, Remembered { entry: Arc::clone(&entry), address, ended: None });
        self.of_address.entry(address).or_default().all += 1;
        Some(entry)
    }

    /// The session that gives way to a new one of this address: of the address that has most, among
    /// those that have one without a connection and would not have fewer than the new one's then;
    /// or else one of its own.
    fn dispensable(&self, address: u128) -> Option<Ended> {
        let own = self.of_address.get(&address);
        let with_new = own.map_or(0, |own| own.all) + 1;
        let others = self.of_address.values().filter(|of| of.all >= with_new && !of.away.is_empty());
        let most = others.max_by_key(|of| of.all).or(own)?;
        most.away.first().copied()
    }

    /// An address has one session fewer, which was without a connection since then, if it was.
    fn leave(&mut self, address: u128, ended: Option<Ended>) {
        if let Some(of_address) = self.of_address.get_mut(&address) {
            of_address.all = of_address.all.saturating_sub(1);
            if let Some(ended) = ended {
                of_address.away.remove(&ended);
            }
            if of_address.all == 0 {
                self.of_address.remove(&address);
            }
        }
    }

    fn forget(&mut self, ended: Ended) {
        if let Some(key) = self.away.remove(&ended)
            && let Some(known) = self.sessions.remove(&key)
        {
            self.leave(known.address, Some(ended));
        }
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some((ended, _)) = self.away.first_key_value()
            && now.saturating_duration_since(ended.0) >= self.limits.kept_for
        {
            let ended = *ended;
            self.forget(ended);
        }
    }
}

/// One connection's place in a session. Clones are the same place.
#[derive(Debug, Clone)]
pub struct Attachment {
    entry: Arc<Entry>,
    holder: u64,
    key: Key,
    sessions: ClientSessions,
}

impl Attachment {
    /// The name of the server's memory of the session.
    pub(super) fn memory(&self) -> u64 {
        self.entry.memory
    }

    /// Reports whether another connection has the session now.
    pub fn is_superseded(&self) -> bool {
        lock(&self.entry.state).holder != self.holder
    }

    /// Has this waker told when there is something to write, or another connection has the session.
    pub fn register(&self, waker: &Waker) {
        let mut state = lock(&self.entry.state);
        if state.holder == self.holder && !state.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            state.waker = Some(waker.clone());
        }
    }

    /// The state of a number.
    pub(super) fn fate(&self, number: u64) -> Fate {
        lock(&self.entry.state).handed_on.fate(number)
    }

    /// Records that a frame is handed to the application now. False: it is not to be handed on, as
    /// it was already, or comes again on another connection.
    pub fn claim(&self, frame: Acknowledgement) -> bool {
        let Some(number) = frame.msg_id else { return true };
        let mut state = lock(&self.entry.state);
        state.holder == self.holder && state.handed_on.claim(number)
    }

    /// Acknowledges a frame, on whichever connection the session has.
    pub fn acknowledge(&self, frame: Acknowledgement) {
        self.settle(frame, |handed_on, number| handed_on.acknowledge(number));
    }

    /// Refuses a frame in the same way.
    pub fn refuse(&self, frame: Acknowledgement, code: ErrorCode, reason: &str) {
        let answer = frame.encode_refusal(code, reason).unwrap_or_default();
        self.settle(frame, |handed_on, number| handed_on.refuse(number, answer));
    }

    /// Records that the application has dropped a frame; its sender is told.
    pub fn forgo(&self, frame: Acknowledgement) {
        self.refuse(frame, ErrorCode::Unhandled, "the application has dropped the frame");
    }

    fn settle(&self, frame: Acknowledgement, settle: impl FnOnce(&mut HandedOn, u64)) {
        let Some(number) = frame.msg_id else { return };
        let mut state = lock(&self.entry.state);
        // The library answers for some that the application does not see.
        if state.holder == self.holder {
            state.handed_on.claim(number);
        }
        if state.handed_on.fate(number) != Fate::InHand {
            return;
        }
        settle(&mut state.handed_on, number);
        if !state.is_held {
            // Whoever connects sends it again, and is answered then.
            return;
        }
        state.owed.push_back(number);
        // It stays: what is settled before the connection registers again is told as well.
        let waker = state.waker.clone();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// An answer to write on this connection.
    pub(super) fn poll_answer(&self) -> Option<Vec<u8>> {
        let mut state = lock(&self.entry.state);
        while state.holder == self.holder
            && let Some(number) = state.owed.pop_front()
        {
            if let Some(answer) = answer(&state.handed_on, number) {
                return Some(answer);
            }
        }
        None
    }

    /// The answer to a number that came again.
    pub(super) fn answer(&self, number: u64) -> Option<Vec<u8>> {
        answer(&lock(&self.entry.state).handed_on, number)
    }

    /// The connection has ended.
    pub fn detach(&self, now: Instant) {
        let mut table = lock(&self.sessions.0);
        table.ends += 1;
        let ended = (now, table.ends);
        let Some(known) = table.sessions.get_mut(&self.key) else { return };
        {
            let mut state = lock(&self.entry.state);
            if state.holder != self.holder || !std::mem::replace(&mut state.is_held, false) {
                return;
            }
            state.owed.clear();
            state.waker = None;
        }
        known.ended = Some(ended);
        let address = known.address;
        table.away.insert(ended, self.key);
        table.of_address.entry(address).or_default().away.insert(ended);
    }
}

fn answer(handed_on: &HandedOn, number: u64) -> Option<Vec<u8>> {
    let frame = Acknowledgement { msg_id: Some(number), crc: 0, unique: false };
    match handed_on.fate(number) {
        Fate::Acknowledged => frame.encode(b"").ok(),
        Fate::Refused => match handed_on.refusal(number) {
            Some(answer) => Some(answer.to_vec()),
            None => {
                frame.encode_refusal(ErrorCode::Unhandled, "refused; the reason is not kept any more").ok()
            }
        },
        Fate::New | Fate::InHand | Fate::Past => None,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::frame::HeadersBuf;
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn origin(limits: ClientSessionLimits, address: u128) -> ClientOrigin {
        ClientOrigin { sessions: ClientSessions::new(limits, 1000), address, certificate: None }
    }

    fn attach(origin: &ClientOrigin, now: Instant, id: u128) -> Option<Attachment> {
        let headers = HeadersBuf::default().with(CLIENT_SESSION, ClientSessionId(id).digits());
        origin.attach(now, headers.as_headers(), None)
    }

    fn frame(number: u64) -> Acknowledgement {
        Acknowledgement { msg_id: Some(number), crc: 0, unique: false }
    }

    #[test]
    fn a_number_is_handed_on_once_over_all_connections_of_a_session() {
        let now = Instant::now();
        let origin = origin(ClientSessionLimits::default(), 1);
        let first = attach(&origin, now, 7).unwrap();
        assert!(first.claim(frame(1)) && first.claim(frame(2)) && !first.claim(frame(1)));
        first.acknowledge(frame(1));
        assert_eq!(first.poll_answer(), frame(1).encode(b"").ok());
        let second = attach(&origin, now, 7).unwrap();
        assert!(first.is_superseded() && !second.is_superseded());
        assert_eq!(first.memory(), second.memory());
        assert!(!first.claim(frame(3)), "it has no say any more");
        assert!(!second.claim(frame(1)) && !second.claim(frame(2)) && second.claim(frame(3)));
        // What it has in hand still counts, and is answered where the session is now.
        first.acknowledge(frame(2));
        assert_eq!((first.poll_answer(), second.poll_answer()), (None, frame(2).encode(b"").ok()));
        // What it has not claimed is not its own.
        first.acknowledge(frame(4));
        assert_eq!((second.poll_answer(), second.fate(4)), (None, Fate::New));
        // That it ends now means nothing.
        first.detach(now);
        assert!(origin.sessions.0.lock().unwrap().away.is_empty());
    }

    #[test]
    fn what_is_settled_while_there_is_no_connection_is_answered_when_it_comes_again() {
        let now = Instant::now();
        let origin = origin(ClientSessionLimits::default(), 1);
        let first = attach(&origin, now, 7).unwrap();
        for number in 1..=40 {
            assert!(first.claim(frame(number)));
        }
        first.detach(now);
        first.acknowledge(frame(1));
        first.forgo(frame(2));
        (3..=40).for_each(|number| first.refuse(frame(number), ErrorCode::Busy, "no"));
        let second = attach(&origin, now, 7).unwrap();
        assert_eq!(second.poll_answer(), None);
        assert_eq!(second.answer(1), frame(1).encode(b"").ok());
        let text = |number| String::from_utf8_lossy(&second.answer(number).unwrap()).into_owned();
        assert!(text(40).contains("busy") && text(3).contains("unhandled") && text(2).contains("unhandled"));
    }

    #[test]
    fn all_that_is_settled_wakes_the_connection_that_registered_once() {
        struct Wakes(AtomicUsize);
        impl std::task::Wake for Wakes {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let now = Instant::now();
        let origin = origin(ClientSessionLimits::default(), 1);
        let first = attach(&origin, now, 7).unwrap();
        assert!(first.claim(frame(1)) && first.claim(frame(2)));
        let wakes = Arc::new(Wakes(AtomicUsize::new(0)));
        first.register(&Waker::from(Arc::clone(&wakes)));
        first.acknowledge(frame(1));
        assert!(first.poll_answer().is_some());
        first.acknowledge(frame(2));
        assert_eq!(wakes.0.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_session_belongs_to_its_token_and_its_certificate() {
        let now = Instant::now();
        let plain = origin(ClientSessionLimits::default(), 1);
        let certified = ClientOrigin { certificate: Some([7; 32]), ..plain.clone() };
        let headers = HeadersBuf::default().with(CLIENT_SESSION, ClientSessionId(7).digits());
        let all: Vec<_> =
            [(&plain, None), (&plain, Some(&b"a"[..])), (&plain, Some(b"b")), (&certified, None)]
                .map(|(origin, token)| origin.attach(now, headers.as_headers(), token).unwrap())
                .into();
        assert!(all.iter().all(|one| !one.is_superseded() && one.claim(frame(1))));
        assert_eq!(plain.sessions.len(), 4);
        for digits in ["", "1", &"g".repeat(32), &"+".repeat(32), &"1".repeat(33)] {
            let headers = HeadersBuf::default().with(CLIENT_SESSION, digits);
            assert!(plain.attach(now, headers.as_headers(), None).is_none(), "{digits}");
        }
    }

    #[test]
    fn sessions_are_forgotten_after_their_time_and_then_have_another_memory() {
        let now = Instant::now();
        let limits = ClientSessionLimits::default();
        let origin = origin(limits, 1);
        let first = attach(&origin, now, 7).unwrap();
        assert!(first.claim(frame(1)));
        first.detach(now);
        let just = now + limits.kept_for - Duration::from_millis(1);
        let second = attach(&origin, just, 7).unwrap();
        assert_eq!(second.memory(), first.memory());
        second.detach(just);
        let third = attach(&origin, just + limits.kept_for, 7).unwrap();
        assert_ne!(third.memory(), first.memory());
        assert!(third.claim(frame(1)));
        // What the application still has of the first ones has no say any more.
        first.acknowledge(frame(1));
        assert_eq!(third.fate(1), Fate::InHand);
    }

    #[test]
    fn whoever_makes_up_sessions_takes_no_memory_of_others() {
        let now = Instant::now();
        let limits = ClientSessionLimits { sessions_max: 100, ..ClientSessionLimits::default() };
        let stranger = origin(limits, 1);
        let other = ClientOrigin { address: 2, ..stranger.clone() };
        let connected = attach(&other, now, 1).unwrap();
        let away = attach(&other, now, 2).unwrap();
        away.detach(now);
        for id in 10..10_000 {
            let made_up = attach(&stranger, now + Duration::from_millis(1), id).unwrap();
            assert!(made_up.claim(frame(1)));
            made_up.detach(now);
            assert!(stranger.sessions.len() <= 100);
            let table = stranger.sessions.0.lock().unwrap();
            assert!(
                table.away.len() < 100
                    && table.of_address.values().map(|of| of.away.len()).sum::<usize>() < 100
            );
        }
        assert!(!connected.is_superseded());
        assert_eq!(attach(&other, now, 2).unwrap().memory(), away.memory());
        // All of them connected: there is no room for one more, and nobody is forgotten.
        let held: Vec<_> = (20_000..20_200).filter_map(|id| attach(&stranger, now, id)).collect();
        assert_eq!((held.len(), stranger.sessions.len()), (98, 100));
        // Nor is one that is away, for them.
        let away = attach(&other, now, 2).unwrap();
        away.detach(now);
        assert!(attach(&stranger, now, 30_000).is_none());
        assert_eq!(attach(&other, now, 2).unwrap().memory(), away.memory());
        away.detach(now);
        held[0].detach(now);
        // Another address has a place of those that have most.
        let third = ClientOrigin { address: 3, ..stranger.clone() };
        assert!(attach(&third, now, 1).is_some());
        assert_eq!(attach(&other, now, 2).unwrap().memory(), away.memory());
        let none = origin(ClientSessionLimits { sessions_max: 0, ..limits }, 1);
        assert!(attach(&none, now, 1).is_none());
    }
}
