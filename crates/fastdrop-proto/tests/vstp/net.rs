//! Endpoints over a simulated network.

use bytes::Bytes;
use fastdrop_proto::vstp::{
    Acknowledgement, Endpoint, EndpointConfig, Event, Failure, Flags, FrameBytes, FrameRef, FrameType,
    HeadersBuf, SendId, SendOptions,
};
use fastdrop_testing::network::{Link, Wire, payload};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Endpoints, each with an address, and one bottleneck in each direction: from node 0, and to node
/// 0.
pub(crate) struct Net {
    pub(crate) now: Instant,
    pub(crate) start: Instant,
    pub(crate) wire: Wire,
    pub(crate) nodes: Vec<(SocketAddr, Endpoint)>,
    pub(crate) received: Vec<Vec<(SocketAddr, FrameBytes)>>,
    pub(crate) outcomes: Vec<BTreeMap<SendId, Result<(), Failure>>>,
    pub(crate) sent_bytes: Vec<u64>,
    pub(crate) sent_datagrams: Vec<u64>,
    pub(crate) memory_max: usize,
    /// The applications take what comes, and acknowledge it.
    pub(crate) takes: bool,
    /// All that comes waits for [`Net::take`].
    pub(crate) keeps: bool,
    /// Bytes that went to each address.
    pub(crate) sent_to: BTreeMap<SocketAddr, u64>,
    /// Nodes of which nothing arrives any more.
    pub(crate) silent: Vec<usize>,
    /// Acknowledgements that applications which take nothing owe.
    pub(crate) untaken: Vec<Vec<(SocketAddr, Acknowledgement)>>,
    /// The frame with this header `n` is lost, however often it is sent.
    pub(crate) lost: Option<u64>,
}

pub(crate) fn address(node: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node as u8 + 1], 6969))
}

impl Net {
    pub(crate) fn new(seed: u64, link: Link, nodes: usize) -> Self {
        Self::with_config(seed, link, nodes, EndpointConfig::default())
    }

    pub(crate) fn with_config(seed: u64, link: Link, nodes: usize, config: EndpointConfig) -> Self {
        let now = Instant::now();
        let endpoint = |node: usize| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&(seed * 100 + node as u64 + 1).to_le_bytes());
            bytes[8..].copy_from_slice(&(seed * 77 + node as u64 + 3).to_le_bytes());
            (address(node), Endpoint::new(config.clone(), bytes))
        };
        Self {
            now,
            start: now,
            wire: Wire::new(now, seed, link),
            nodes: (0..nodes).map(endpoint).collect(),
            received: vec![Vec::new(); nodes],
            outcomes: vec![BTreeMap::new(); nodes],
            sent_bytes: vec![0; nodes],
            sent_datagrams: vec![0; nodes],
            memory_max: 0,
            takes: true,
            keeps: false,
            sent_to: BTreeMap::new(),
            silent: Vec::new(),
            untaken: vec![Vec::new(); nodes],
            lost: None,
        }
    }

    pub(crate) fn send(&mut self, from: usize, to: usize, frame: FrameBytes, acknowledged: bool) -> SendId {
        let now = self.now;
        let send = self.nodes[from].1.send(now, address(to), frame, acknowledged);
        self.drain(from);
        send
    }

    pub(crate) fn send_on(
        &mut self,
        from: usize,
        to: usize,
        frame: FrameBytes,
        options: &SendOptions,
    ) -> SendId {
        let now = self.now;
        let send = self.nodes[from].1.send_on(now, address(to), frame, options);
        self.drain(from);
        send
    }

    /// A node forgets everything, as a program that starts again.
    pub(crate) fn restart(&mut self, node: usize, seed: u8) {
        self.nodes[node].1 = Endpoint::new(EndpointConfig::default(), [seed; 16]);
        self.outcomes[node].clear();
    }

    /// Lets so much time pass.
    pub(crate) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.next_at().is_some_and(|at| at <= until) && self.step() {}
        self.now = until;
    }

    /// A datagram comes that nobody here has sent.
    pub(crate) fn inject(&mut self, to: usize, from: SocketAddr, datagram: &[u8]) {
        self.nodes[to].1.handle_datagram(self.now, from, datagram);
        self.drain(to);
    }

    pub(crate) fn drain(&mut self, node: usize) {
        let mut out = Vec::new();
        let now = self.now;
        while let Some(transmit) = self.nodes[node].1.poll_transmit(now, 16, &mut out) {
            assert!(transmit.datagram > 0 && !out.is_empty());
            for datagram in out.chunks(transmit.datagram) {
                self.transmit(node, transmit.to, datagram);
            }
        }
        while let Some((send, result)) = self.nodes[node].1.poll_outcome() {
            assert!(self.outcomes[node].insert(send, result).is_none(), "one outcome each");
        }
        self.memory_max = self.memory_max.max(self.nodes[node].1.memory());
        if self.keeps {
            return;
        }
        let mut acknowledged = false;
        while let Some(event) = self.nodes[node].1.poll_event() {
            match event {
                Event::Received { from, frame, acknowledgement } => {
                    if self.takes {
                        self.nodes[node].1.handle_taken(now, from, &frame);
                        if let Some(wanted) = acknowledgement {
                            self.nodes[node].1.acknowledge(now, from, wanted);
                            // It leaves in the next turn.
                            acknowledged = true;
                        }
                    } else {
                        self.untaken[node].extend(acknowledgement.map(|wanted| (from, wanted)));
                    }
                    self.received[node].push((from, frame));
                }
                Event::Outcome { send, result } => {
                    assert!(self.outcomes[node].insert(send, result).is_none(), "one outcome each");
                }
            }
        }
        self.memory_max = self.memory_max.max(self.nodes[node].1.memory());
        if acknowledged {
            self.drain(node);
        }
    }

    /// The application takes one frame, and acknowledges it.
    pub(crate) fn take(&mut self, node: usize) -> bool {
        let Some((from, frame, acknowledgement)) = self.nodes[node].1.poll_received() else { return false };
        self.nodes[node].1.handle_taken(self.now, from, &frame);
        if let Some(wanted) = acknowledgement {
            self.nodes[node].1.acknowledge(self.now, from, wanted);
        }
        self.received[node].push((from, frame));
        self.drain(node);
        true
    }

    /// Forgets all that came so far.
    pub(crate) fn forget_received(&mut self, node: usize) {
        self.received[node].clear();
    }

    /// Nothing of a node arrives any more.
    pub(crate) fn silence(&mut self, node: usize) {
        self.silent.push(node);
    }

    pub(crate) fn transmit(&mut self, from: usize, to: SocketAddr, datagram: &[u8]) {
        self.sent_bytes[from] += datagram.len() as u64;
        self.sent_datagrams[from] += 1;
        *self.sent_to.entry(to).or_default() += datagram.len() as u64;
        let Some(to) = self.nodes.iter().position(|(address, _)| *address == to) else { return };
        let number = || FrameRef::decode(datagram, usize::MAX).unwrap()?.0.headers.number("n");
        if self.silent.contains(&from) || (self.lost.is_some() && self.lost == number()) {
            return;
        }
        self.wire.transmit(self.now, usize::from(from != 0), from, to, datagram);
    }

    /// The next step of virtual time.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        let timer = self.nodes.iter().filter_map(|(_, endpoint)| endpoint.poll_timeout()).min();
        [self.wire.next_at(), timer].into_iter().flatten().min()
    }

    /// One step of virtual time; false when nothing will happen any more.
    pub(crate) fn step(&mut self) -> bool {
        let arrival = self.wire.next_at();
        let timer = self.nodes.iter().filter_map(|(_, endpoint)| endpoint.poll_timeout()).min();
        let Some(next) = [arrival, timer].into_iter().flatten().min() else { return false };
        self.now = self.now.max(next);
        if arrival == Some(next) {
            let Some((from, to, bytes)) = self.wire.pop() else { return false };
            let from = self.nodes[from].0;
            self.nodes[to].1.handle_datagram(self.now, from, &bytes);
            self.drain(to);
            return true;
        }
        for node in 0..self.nodes.len() {
            if self.nodes[node].1.poll_timeout().is_some_and(|at| at <= self.now) {
                self.nodes[node].1.handle_timeout(self.now);
                self.drain(node);
            }
        }
        true
    }

    /// Until every message has its outcome, or `limit` has passed.
    pub(crate) fn run(&mut self, limit: Duration) {
        let end = self.now + limit;
        while self.now < end
            && !(self.nodes.iter().all(|(_, endpoint)| endpoint.is_idle()) && self.wire.is_empty())
        {
            if !self.step() {
                break;
            }
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.now - self.start
    }
}

/// A fragment of a message of zeros.
pub(crate) fn fragment(id: &str, index: u32, total: u32, len: usize) -> Vec<u8> {
    let mut headers = HeadersBuf::default();
    for (key, value) in
        [("frag-id", id), ("frag-index", &index.to_string()), ("frag-total", &total.to_string())]
    {
        headers.push(key.as_bytes(), value.as_bytes()).unwrap();
    }
    let frame = FrameBytes::new(FrameType::Data, headers, vec![0; len].into()).with_flag(Flags::FRAG);
    let mut out = Vec::new();
    frame.as_ref().encode(&mut out).unwrap();
    out
}

pub(crate) fn message(len: usize, seed: u64) -> FrameBytes {
    let mut headers = HeadersBuf::default();
    headers.push(b"n", seed.to_string().as_bytes()).unwrap();
    FrameBytes::new(FrameType::Data, headers, payload(len, seed))
}

/// The frame without what an acknowledgement needs.
pub(crate) fn content(frame: &FrameBytes) -> (FrameType, Vec<u8>, Bytes) {
    let n = frame.headers().find("n").unwrap_or_default().to_vec();
    (frame.typ, n, frame.payload.clone())
}

pub(crate) fn seeds(default: u64) -> u64 {
    std::env::var("VSTP_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

pub(crate) const MIB: usize = 1 << 20;
pub(crate) const SECOND: Duration = Duration::from_secs(1);
