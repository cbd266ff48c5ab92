//! Two ends, a network that does what a script says, and what they should amount to: two queues.
//!
//! A property test and a fuzz target write the scripts.

use fastdrop_proto::cnp::{
    Accepted, Acceptor, Carrier, ChecksumKind, Ending, Event, Mode, Protocol, ReceiveId, Session,
    SessionConfig, SessionId,
};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The reference: what an end has sent, and how much of that has come out at the other.
#[derive(Default)]
struct Queue {
    messages: Vec<Vec<u8>>,
    out: usize,
    handled: usize,
    acknowledged: usize,
}

struct Model {
    now: Instant,
    ends: [Option<Session>; 2],
    acceptor: Acceptor,
    server: SessionConfig,
    /// Datagrams on their way to each end.
    network: [VecDeque<Vec<u8>>; 2],
    /// Messages that each end has sent.
    queues: [Queue; 2],
    /// Messages that the application at each end has not handled.
    untaken: [VecDeque<ReceiveId>; 2],
    opened: [bool; 2],
    ended: [Option<Ending>; 2],
    crc: bool,
}

/// Does what a script says: two bytes a step. Then the network is good, and everything must arrive.
pub fn run(script: &[u8]) {
    let (&[kind, window], steps) = script.split_first_chunk().unwrap_or((&[0, 0], &[]));
    let now = Instant::now();
    let crc = kind & 1 == 0;
    let client = SessionConfig {
        checksum: if crc { ChecksumKind::Crc32c } else { ChecksumKind::Md5 },
        protocol: if kind & 2 == 0 { Protocol::GoBackN } else { Protocol::SelectiveRepeat },
        mode: if kind & 4 == 0 { Mode::Burst } else { Mode::StepByStep },
        window: u16::from(window) + 1,
        packet_max: 1 + usize::from(kind >> 4),
        handled: kind & 8 == 0,
        ..SessionConfig::client(Carrier::Datagrams)
    };
    let mut server = SessionConfig::server(Carrier::Datagrams);
    server.limits.receive_max = 500;
    let mut model = Model {
        now,
        ends: [Some(Session::connect(now, client)), None],
        acceptor: Acceptor::new(server.clone()),
        server,
        network: Default::default(),
        queues: Default::default(),
        untaken: Default::default(),
        opened: [false; 2],
        ended: [None, None],
        crc,
    };
    model.drain();
    for &[what, which] in steps.as_chunks().0 {
        model.step(what, which);
    }
    model.heal();
}

impl Model {
    fn step(&mut self, what: u8, which: u8) {
        let to = usize::from(what & 1);
        let network = &mut self.network[to];
        let index = usize::from(which) % network.len().max(1);
        match what >> 1 & 7 {
            0 | 1 => self.give(to, usize::from(which)),
            2 => {
                if let Some(datagram) = network.pop_front() {
                    self.deliver(to, &datagram);
                }
            }
            3 => {
                if let Some(datagram) = network.remove(index) {
                    self.deliver(to, &datagram);
                }
            }
            4 => {
                if let Some(datagram) = network.get(index).cloned() {
                    self.deliver(to, &datagram);
                }
            }
            5 => drop(network.remove(index)),
            6 => {
                if let Some(datagram) = network.get_mut(index) {
                    // MD5 covers payloads alone: there the header is left as it is.
                    let from = if self.crc { 0 } else { 11 };
                    let len = datagram.len();
                    if what & 0x80 == 0 {
                        datagram.truncate(usize::from(which) % len.max(1));
                    } else if len > from && self.single(to, index) {
                        let at = from + usize::from(which) % (len - from);
                        self.network[to][index][at] ^= 1 << (what >> 4 & 7);
                    }
                }
            }
            _ => {
                self.take(to);
                self.pass(Duration::from_millis(u64::from(which) * 8));
            }
        }
        self.drain();
    }

    /// Reports whether a datagram has just one packet, of whose header the first eleven bytes are.
    fn single(&self, to: usize, index: usize) -> bool {
        let datagram = &self.network[to][index];
        let len = datagram.first_chunk().map_or(0, |len| u32::from_be_bytes(*len) as usize);
        self.crc || datagram.len() == 11 + len
    }

    fn give(&mut self, from: usize, len: usize) {
        let queue = &mut self.queues[from];
        let message = vec![queue.messages.len() as u8; len % 100];
        let Some(session) = &mut self.ends[from] else { return };
        if session.can_send() && session.send(self.now, message.clone().into()).is_ok() {
            queue.messages.push(message);
        }
    }

    fn deliver(&mut self, to: usize, datagram: &[u8]) {
        if let Some(session) = &mut self.ends[to] {
            session.handle_datagram(self.now, datagram);
        }
        if to == 1 && Acceptor::is_handshake(datagram) {
            let from = SocketAddr::from(([127, 0, 0, 1], 1));
            let id = SessionId::from_random([7; 16]);
            match self.acceptor.handle_datagram(self.now, from, datagram, || Some(id)) {
                Accepted::Nothing => {}
                Accepted::Answer(answer) => self.network[0].push_back(answer),
                Accepted::Session(handshake) if self.ends[1].is_none() => {
                    let mut session = Session::accepted(self.now, self.server.clone(), handshake);
                    session.handle_datagram(self.now, datagram);
                    self.ends[1] = Some(session);
                }
                // The same handshake a second time; its id is not a new one in this model.
                Accepted::Session(_) => {}
            }
        }
    }

    fn take(&mut self, to: usize) {
        let Some(session) = &mut self.ends[to] else { return };
        while let Some(id) = self.untaken[to].pop_front() {
            self.queues[1 - to].handled += 1;
            session.acknowledge(self.now, id);
        }
    }

    /// Time passes, from one deadline to the next.
    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            let next = self.ends.iter_mut().flatten().filter_map(Session::poll_timeout).min();
            let Some(at) = next.filter(|at| *at <= until) else { break };
            self.now = self.now.max(at);
            for session in self.ends.iter_mut().flatten() {
                if session.poll_timeout().is_some_and(|at| at <= self.now) {
                    session.handle_timeout(self.now);
                }
            }
            self.drain();
        }
        self.now = until;
    }

    fn drain(&mut self) {
        for end in 0..2 {
            let Some(session) = &mut self.ends[end] else { continue };
            loop {
                let mut out = Vec::new();
                let mut happened = session.poll_transmit(self.now, &mut out, 0);
                if happened && self.network[1 - end].len() < 1000 {
                    self.network[1 - end].push_back(out);
                }
                while let Some(event) = session.poll_event() {
                    happened = true;
                    match event {
                        Event::Opened => self.opened[end] = true,
                        Event::Message(message) | Event::Call(message) => {
                            let queue = &mut self.queues[1 - end];
                            assert_eq!(queue.messages.get(queue.out).map(Vec::as_slice), Some(&message[..]));
                            self.untaken[end].push_back(ReceiveId(queue.out as u64));
                            queue.out += 1;
                        }
                        Event::Acknowledged(_) => {
                            let queue = &mut self.queues[end];
                            queue.acknowledged += 1;
                            assert!(
                                queue.acknowledged <= queue.handled,
                                "acknowledged before it was handled"
                            );
                        }
                        Event::Ended(ending) => assert!(self.ended[end].replace(ending).is_none()),
                    }
                }
                if !happened {
                    break;
                }
            }
            let kept = 100 * self.queues[1 - end].messages.len().min(64);
            assert!(session.memory() < (4 << 20) + 1000 + kept, "{} bytes", session.memory());
        }
    }

    /// From now on the network and the applications are good. Everything arrives, unless somebody
    /// has been taken for gone before that.
    fn heal(&mut self) {
        for _ in 0..20_000 {
            for to in 0..2 {
                while let Some(datagram) = self.network[to].pop_front() {
                    self.deliver(to, &datagram);
                    self.take(to);
                    self.drain();
                }
                self.take(to);
            }
            self.drain();
            let done = self
                .queues
                .iter()
                .all(|queue| queue.out == queue.messages.len() && queue.acknowledged == queue.messages.len());
            if (done && self.opened[0]) || self.ended.iter().any(Option::is_some) {
                break;
            }
            self.pass(Duration::from_millis(20));
        }
        for ended in self.ended.iter().flatten() {
            assert!(matches!(ended, Ending::Gone | Ending::HandshakeTimeout), "{ended:?}");
        }
        if self.ended.iter().all(Option::is_none) {
            for queue in &self.queues {
                assert_eq!(
                    (queue.out, queue.acknowledged),
                    (queue.messages.len(), queue.messages.len()),
                    "something did not arrive"
                );
            }
        }
    }
}
