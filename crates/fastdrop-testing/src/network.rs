//! A network with virtual time and seeded faults.

use bytes::Bytes;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

/// What a link does to datagrams.
#[derive(Debug, Clone)]
pub struct Link {
    pub bytes_per_second: f64,
    pub delay: Duration,
    pub queue_bytes: f64,
    pub loss: f64,
    pub duplicate: f64,
    pub reorder: f64,
    pub corrupt: f64,
}

impl Link {
    pub fn clean(bits_per_second: f64, rtt: Duration) -> Self {
        let bytes_per_second = bits_per_second / 8.0;
        // A queue of one product of rate and round trip, as routers are said to have.
        let queue_bytes = (bytes_per_second * rtt.as_secs_f64()).max(30_000.0);
        let (loss, duplicate, reorder, corrupt) = (0.0, 0.0, 0.0, 0.0);
        Self { bytes_per_second, delay: rtt / 2, queue_bytes, loss, duplicate, reorder, corrupt }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn chance(&mut self, probability: f64) -> bool {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64 % 1.0 < probability
    }

    pub fn below(&mut self, max: u64) -> u64 {
        self.next() % max.max(1)
    }
}

type Arrival = Reverse<(Instant, u64, usize, usize, Vec<u8>)>;

/// One bottleneck in each direction, and what is on its way between nodes.
pub struct Wire {
    pub random: Random,
    pub link: Link,
    pub dropped: u64,
    /// Damages a datagram; one bit anywhere unless it is set otherwise.
    pub damage: fn(&mut Random, &mut [u8]),
    /// When the bottleneck has sent what is in its queue, by direction.
    busy_until: [Instant; 2],
    arrivals: BinaryHeap<Arrival>,
    count: u64,
}

impl Wire {
    /// What a datagram needs beside its bytes: IPv4 and UDP.
    const HEADERS: usize = 28;
    const MTU: usize = 1500;

    pub fn new(now: Instant, seed: u64, link: Link) -> Self {
        Self {
            random: Random(seed),
            link,
            dropped: 0,
            damage: flip_one_bit,
            busy_until: [now; 2],
            arrivals: BinaryHeap::new(),
            count: 0,
        }
    }

    pub fn transmit(&mut self, now: Instant, direction: usize, from: usize, to: usize, datagram: &[u8]) {
        if datagram.len() > Self::MTU {
            self.dropped += 1;
            return;
        }
        let busy = self.busy_until[direction].max(now);
        let queued = busy.duration_since(now).as_secs_f64() * self.link.bytes_per_second;
        if queued > self.link.queue_bytes {
            self.dropped += 1;
            return;
        }
        let bytes = (datagram.len() + Self::HEADERS) as f64;
        let sent = busy + Duration::from_secs_f64(bytes / self.link.bytes_per_second);
        self.busy_until[direction] = sent;
        // What is lost behind the bottleneck has used it all the same.
        if self.random.chance(self.link.loss) {
            self.dropped += 1;
            return;
        }
        let copies = 1 + usize::from(self.random.chance(self.link.duplicate));
        for _ in 0..copies {
            let mut at = sent + self.link.delay;
            if self.random.chance(self.link.reorder) {
                at += self.link.delay.mul_f64(self.random.below(1000) as f64 / 500.0)
                    + Duration::from_micros(50);
            }
            let mut bytes = datagram.to_vec();
            if self.random.chance(self.link.corrupt) {
                (self.damage)(&mut self.random, &mut bytes);
            }
            self.count += 1;
            self.arrivals.push(Reverse((at, self.count, from, to, bytes)));
        }
    }

    /// Something arrives at that time whatever the link does.
    pub fn deliver(&mut self, at: Instant, from: usize, to: usize, bytes: &[u8]) {
        self.count += 1;
        self.arrivals.push(Reverse((at, self.count, from, to, bytes.to_vec())));
    }

    /// When the next datagram arrives.
    pub fn next_at(&self) -> Option<Instant> {
        self.arrivals.peek().map(|Reverse((at, ..))| *at)
    }

    /// The next datagram: from which node, to which.
    pub fn pop(&mut self) -> Option<(usize, usize, Vec<u8>)> {
        self.arrivals.pop().map(|Reverse((_, _, from, to, bytes))| (from, to, bytes))
    }

    pub fn is_empty(&self) -> bool {
        self.arrivals.is_empty()
    }
}

fn flip_one_bit(random: &mut Random, bytes: &mut [u8]) {
    let bit = random.below(bytes.len() as u64 * 8) as usize;
    bytes[bit / 8] ^= 1 << (bit % 8);
}

/// Bytes that are the same for the same seed.
pub fn payload(len: usize, seed: u64) -> Bytes {
    let mut random = Random(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}
