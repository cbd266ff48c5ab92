//! A client and a server of CNP, and what applications do at both.

use crate::network::{Link, Random, Wire};
use bytes::Bytes;
use fastdrop_proto::cnp::packet::HEAD_BYTES;
use fastdrop_proto::cnp::{
    Accepted, Acceptor, Carrier, Ending, Event, Head, ReceiveId, SendId, Session, SessionConfig, SessionId,
};
use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

struct Side {
    session: Option<Session>,
    /// Messages of the application, how many of them the session has taken, and the receipts for
    /// them.
    given: Vec<Bytes>,
    sent: usize,
    acknowledged: BTreeSet<SendId>,
    /// Messages that were received.
    received: Vec<Bytes>,
    untaken: VecDeque<(Instant, ReceiveId)>,
    /// The number of them that its application has handled.
    handled: u64,
    opened: bool,
    ended: Option<Ending>,
    /// Bytes of a stream that are not a whole packet yet.
    read: Vec<u8>,
    read_at: Option<Instant>,
    /// Whether it has closed its end of a stream.
    closed: bool,
}

impl Side {
    /// The application has handled a message.
    fn handle(&mut self, now: Instant, id: ReceiveId) {
        self.handled = id.0 + 1;
        if let Some(session) = &mut self.session {
            session.acknowledge(now, id);
        }
    }

    /// When a packet that has begun on a stream must have gone on.
    fn stalls_at(&self) -> Option<Instant> {
        let session =
            self.session.as_ref().filter(|session| !self.read.is_empty() && session.wants_input())?;
        Some(self.read_at? + session.packet_timeout())
    }
}

impl Side {
    fn new(session: Option<Session>) -> Self {
        Self {
            session,
            given: Vec::new(),
            sent: 0,
            acknowledged: BTreeSet::new(),
            received: Vec::new(),
            untaken: VecDeque::new(),
            handled: 0,
            opened: false,
            ended: None,
            read: Vec::new(),
            read_at: None,
            closed: false,
        }
    }
}

/// Node 0 is the client, node 1 the server.
pub struct Pair {
    pub now: Instant,
    start: Instant,
    pub wire: Wire,
    carrier: Carrier,
    acceptor: Acceptor,
    server: SessionConfig,
    sides: [Side; 2],
    /// How long applications leave messages where they are.
    pub taken_after: Duration,
    /// Whether the client closes when everything in both directions has arrived.
    pub close_when_done: bool,
    closes: bool,
    silent: bool,
    /// When what was put on a stream last arrives, by direction.
    in_order: [Instant; 2],
    pub memory_max: [usize; 2],
    pub datagrams: [u64; 2],
}

fn client_address() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 1))
}

impl Pair {
    pub fn new(seed: u64, link: Link, client: SessionConfig, server: SessionConfig) -> Self {
        let now = Instant::now();
        client.check().unwrap();
        server.check().unwrap();
        let carrier = client.carrier;
        let accepting = (carrier == Carrier::Stream)
            .then(|| Session::accept(now, server.clone(), SessionId::from_random([seed as u8; 16])));
        Self {
            now,
            start: now,
            wire: Wire::new(now, seed, link),
            carrier,
            acceptor: Acceptor::new(server.clone()),
            server,
            sides: [Side::new(Some(Session::connect(now, client))), Side::new(accepting)],
            taken_after: Duration::ZERO,
            close_when_done: true,
            closes: false,
            silent: false,
            in_order: [now; 2],
            memory_max: [0; 2],
            datagrams: [0; 2],
        }
    }

    pub fn give(&mut self, side: usize, message: Bytes) {
        self.sides[side].given.push(message);
    }

    pub fn ended(&self, side: usize) -> Option<&Ending> {
        self.sides[side].ended.as_ref()
    }

    pub fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    pub fn session(&self, side: usize) -> Option<&Session> {
        self.sides[side].session.as_ref()
    }

    /// Nothing gets through any more.
    pub fn silence(&mut self) {
        self.silent = true;
    }

    pub fn is_complete(&self) -> bool {
        (0..2).all(|side| self.sides[1 - side].received == self.sides[side].given)
    }

    /// What came is what was sent, from its beginning, each once and in order; what was
    /// acknowledged came.
    pub fn check(&self) {
        for side in 0..2 {
            let (sender, receiver) = (&self.sides[side], &self.sides[1 - side]);
            assert!(receiver.received.len() <= sender.sent, "more came than was sent");
            assert!(sender.given.starts_with(&receiver.received), "something else came than was sent");
            for SendId(id) in &sender.acknowledged {
                // In Selective Repeat what is behind a gap is acknowledged before it is handed on;
                // while the session lasts, it comes.
                let came = (*id as usize) < receiver.received.len();
                assert!(
                    came || sender.ended.is_some() || receiver.ended.is_some() || sender.session.is_some()
                );
            }
        }
    }

    /// Until both ends know each other.
    pub fn open(&mut self) {
        self.close_when_done = false;
        self.drain();
        while !(self.sides[0].opened && self.sides[1].opened) && self.step() {}
        self.close_when_done = true;
    }

    pub fn run(&mut self, limit: Duration) {
        let end = self.now + limit;
        self.drain();
        while self.now < end && self.step() {}
    }

    pub fn run_until_complete(&mut self, limit: Duration) {
        let end = self.now + limit;
        self.close_when_done = false;
        self.drain();
        let acknowledged = |pair: &Self| pair.sides[0].acknowledged.len() == pair.sides[0].given.len();
        while self.now < end && !acknowledged(self) && self.step() {}
    }

    /// The applications take what waits for them, and will take what comes.
    pub fn take_all(&mut self) {
        let now = self.now;
        for side in &mut self.sides {
            for (_, id) in std::mem::take(&mut side.untaken) {
                side.handle(now, id);
            }
        }
        self.drain();
    }

    /// One step of virtual time; false when nothing will happen any more.
    fn step(&mut self) -> bool {
        let arrival = self.wire.next_at();
        let timer = self.sides.iter_mut().filter_map(|side| side.session.as_mut()?.poll_timeout()).min();
        let taken = self.sides.iter().filter_map(|side| Some(side.untaken.front()?.0)).min();
        let stalled = self.sides.iter().filter_map(Side::stalls_at).min();
        let Some(next) = [arrival, timer, taken, stalled].into_iter().flatten().min() else { return false };
        assert!(next > self.now || arrival == Some(next) || self.progress_at(next), "a deadline in the past");
        self.now = self.now.max(next);
        let now = self.now;
        if arrival == Some(next) {
            let Some((_, to, bytes)) = self.wire.pop() else { return false };
            match self.carrier {
                Carrier::Stream if bytes.is_empty() => {
                    self.handle_stream(to);
                    if let Some(session) = &mut self.sides[to].session {
                        session.handle_end();
                    }
                }
                Carrier::Stream => {
                    self.sides[to].read.extend_from_slice(&bytes);
                    self.sides[to].read_at = Some(now);
                }
                Carrier::Datagrams => self.handle_datagram(to, &bytes),
            }
        } else {
            for side in &mut self.sides {
                while side.untaken.front().is_some_and(|(at, _)| *at <= now) {
                    let (_, id) = side.untaken.pop_front().unwrap();
                    side.handle(now, id);
                }
                if side.stalls_at().is_some_and(|at| at <= now) {
                    side.read.clear();
                    if let Some(session) = &mut side.session {
                        session.handle_stalled();
                    }
                }
                if let Some(session) = &mut side.session
                    && session.poll_timeout().is_some_and(|at| at <= now)
                {
                    session.handle_timeout(now);
                }
            }
        }
        self.drain();
        true
    }

    /// Whether something that is due now has just been made due, as a farewell is.
    fn progress_at(&self, next: Instant) -> bool {
        next >= self.start
    }

    fn handle_datagram(&mut self, to: usize, bytes: &[u8]) {
        self.datagrams[to] += 1;
        let side = &mut self.sides[to];
        if let Some(session) = &mut side.session {
            session.handle_datagram(self.now, bytes);
        }
        if to != 1 || !Acceptor::is_handshake(bytes) {
            return;
        }
        let id = SessionId::from_random([self.datagrams[1] as u8; 16]);
        match self.acceptor.handle_datagram(self.now, client_address(), bytes, || Some(id)) {
            Accepted::Nothing => {}
            Accepted::Answer(answer) => self.transmit(1, &answer),
            // The client has one session; a second one here could only come from a handshake that
            // was repeated.
            Accepted::Session(handshake) => {
                assert!(side.session.is_none(), "a second session");
                let mut session = Session::accepted(self.now, self.server.clone(), handshake);
                session.handle_datagram(self.now, bytes);
                side.session = Some(session);
            }
        }
    }

    fn handle_stream(&mut self, side: usize) {
        let side = &mut self.sides[side];
        let Some(session) = &mut side.session else { return };
        while session.wants_input() {
            match session.parse_head(&side.read) {
                Ok(Some(head)) if side.read.len() >= head.packet_len() => {
                    let packet: Vec<u8> = side.read.drain(..head.packet_len()).collect();
                    session.handle_packet(self.now, &head, head.payload(&packet));
                }
                Ok(_) => break,
                Err(error) => {
                    session.handle_bad_packet(&error);
                    break;
                }
            }
        }
    }

    fn drain(&mut self) {
        for node in 0..2 {
            if self.carrier == Carrier::Stream {
                self.handle_stream(node);
            }
            let handled = self.sides[1 - node].handled;
            let side = &mut self.sides[node];
            let Some(session) = &mut side.session else { continue };
            let mut outs = Vec::new();
            loop {
                while side.opened
                    && side.ended.is_none()
                    && session.can_send()
                    && side.sent < side.given.len()
                {
                    if session.send(self.now, side.given[side.sent].clone()).is_err() {
                        break;
                    }
                    side.sent += 1;
                }
                let mut out = Vec::new();
                let transmitted = session.poll_transmit(self.now, &mut out, 16_384);
                assert_eq!(transmitted, !out.is_empty());
                if transmitted {
                    outs.push(out);
                }
                let mut happened = transmitted;
                while let Some(event) = session.poll_event() {
                    happened = true;
                    match event {
                        Event::Opened => side.opened = true,
                        Event::Message(message) | Event::Call(message) => {
                            let id = ReceiveId(side.received.len() as u64);
                            side.untaken.push_back((self.now + self.taken_after, id));
                            side.received.push(message);
                        }
                        Event::Acknowledged(id) => {
                            assert!(id.0 < handled, "acknowledged before it was handled");
                            assert!(side.acknowledged.insert(id), "acknowledged twice")
                        }
                        Event::Ended(ending) => assert!(side.ended.replace(ending).is_none(), "ended twice"),
                    }
                }
                if !happened {
                    break;
                }
            }
            self.memory_max[node] = self.memory_max[node].max(session.memory());
            let closes = self.carrier == Carrier::Stream && session.is_finished() && !side.closed;
            side.closed |= closes;
            for out in outs {
                self.transmit(node, &out);
            }
            if closes && !self.silent {
                let at = self.in_order[node].max(self.now + self.wire.link.delay);
                self.wire.deliver(at, node, 1 - node, &[]);
            }
        }
        let done = self.sides.iter().all(|side| side.acknowledged.len() == side.given.len());
        if self.close_when_done && !self.closes && done && self.sides[0].opened {
            self.closes = true;
            if let Some(session) = &mut self.sides[0].session {
                session.close(self.now);
            }
            self.drain();
        }
    }

    fn transmit(&mut self, from: usize, bytes: &[u8]) {
        if self.silent {
            return;
        }
        if self.carrier == Carrier::Datagrams {
            assert!(bytes.len() <= 1232, "a datagram of {} bytes", bytes.len());
            return self.wire.transmit(self.now, from, from, 1 - from, bytes);
        }
        // A stream loses nothing and keeps its order, but is cut anywhere, and may be damaged
        // within payloads.
        let mut bytes = bytes.to_vec();
        if self.wire.random.chance(self.wire.link.corrupt) {
            (self.wire.damage)(&mut self.wire.random, &mut bytes);
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let len = 1 + self.wire.random.below(rest.len().min(1400) as u64) as usize;
            let (piece, after) = rest.split_at(len);
            rest = after;
            self.in_order[from] = self.in_order[from].max(self.now + self.wire.link.delay);
            let at = self.in_order[from];
            self.wire.deliver(at, from, 1 - from, piece);
        }
    }
}

/// Damages a bit in the payload of one of the packets, if one has any.
pub fn flip_payload(random: &mut Random, bytes: &mut [u8]) {
    let mut payloads = Vec::new();
    let mut at = 0;
    while let Ok(Some(head)) = Head::parse(&bytes[at..], 1 << 24) {
        let end = at + head.packet_len();
        if end > bytes.len() {
            break;
        }
        payloads.extend((head.payload_len() > 0).then_some(at + HEAD_BYTES..end));
        at = end;
    }
    if payloads.is_empty() {
        return;
    }
    let payload = payloads[random.below(payloads.len() as u64) as usize].clone();
    let byte = payload.start + random.below(payload.len() as u64) as usize;
    bytes[byte] ^= 1 << random.below(8);
}
