//! How much may be on its way through a network, and how fast it may leave (RFC 8085).
//!
//! A [`Flow`] counts what one sender has on its way to one address; a [`Controller`] decides from
//! that.

use crate::rtt::Rtt;
use std::fmt::Debug;
use std::time::{Duration, Instant};

mod model;

pub use model::Model;

/// What came to light when something was acknowledged.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Bytes that are newly known to have arrived.
    pub bytes: u64,
    /// Bytes still on their way.
    pub in_flight: u64,
    /// A round-trip time, if one could be measured.
    pub rtt: Option<Duration>,
    /// Bytes a second that arrived while the acknowledged ones were on their way.
    pub rate: Option<f64>,
    /// Says whether the sender had nothing more to send meanwhile, so that the rate says little
    /// about the network.
    pub app_limited: bool,
    /// Whether everything that was on its way when the last round began has now been accounted for.
    pub round_began: bool,
}

/// An algorithm of congestion control.
pub trait Controller: Debug + Send {
    /// Something arrived.
    fn on_delivered(&mut self, now: Instant, sample: &Sample);
    /// Something was lost.
    fn on_lost(&mut self, now: Instant, bytes: u64);
    /// Nothing has been heard for a retransmission timeout.
    fn on_timeout(&mut self, now: Instant);
    /// What leaves comes in pieces of this many bytes from now on.
    fn on_datagram(&mut self, bytes: u64);
    /// The bytes that may be on their way at once.
    fn window(&self) -> u64;
    /// The bytes a second at which they may leave; None while nothing is known.
    fn rate(&self) -> Option<f64>;
    /// The bytes a second at which they have been seen to arrive; None while nothing is known.
    fn arrival_rate(&self) -> Option<f64>;
}

/// Bounds nothing: for what runs over TCP, which has a controller of its own.
#[derive(Debug, Clone, Copy)]
pub struct Unbounded;

impl Controller for Unbounded {
    fn on_delivered(&mut self, _now: Instant, _sample: &Sample) {}

    fn on_lost(&mut self, _now: Instant, _bytes: u64) {}

    fn on_timeout(&mut self, _now: Instant) {}

    fn on_datagram(&mut self, _bytes: u64) {}

    fn window(&self) -> u64 {
        u64::MAX
    }

    fn rate(&self) -> Option<f64> {
        None
    }

    fn arrival_rate(&self) -> Option<f64> {
        None
    }
}

/// What has to be known of a datagram when it is acknowledged, fixed when it leaves.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    /// When it left.
    pub sent_at: Instant,
    delivered: u64,
    delivered_at: Instant,
    first_sent_at: Instant,
    app_limited: bool,
}

/// Whether a datagram may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// So many bytes, now.
    Now(u64),
    /// Not before this time.
    At(Instant),
    /// Not before something is acknowledged or lost.
    Full,
}

/// What is on its way to one address.
#[derive(Debug)]
pub struct Flow {
    /// Round-trip times and timeouts.
    pub rtt: Rtt,
    controller: Box<dyn Controller>,
    in_flight: u64,
    delivered: u64,
    delivered_at: Instant,
    first_sent_at: Instant,
    /// Delivered bytes at which what was sent while there was little to send is through.
    app_limited_until: u64,
    round_end: u64,
    credit: f64,
    credited_at: Instant,
    /// How far datagrams have been seen to overtake each other, in quarters of a round trip.
    reordering: u32,
}

impl Flow {
    /// Bytes that leave at once even where that is faster than the rate.
    const BURST_MIN: f64 = 12_000.0;
    /// So much of a second's bytes may leave at once: timers are no finer than a millisecond.
    pub const BURST: Duration = Duration::from_millis(2);
    /// What waits for the rate waits until this much may leave, or one datagram if that is more.
    const QUANTUM: Duration = Duration::from_micros(1000);
    const QUANTUM_MAX: f64 = 65_536.0;
    const REORDERING_MAX: u32 = 12;

    /// Nothing is on its way.
    pub fn new(now: Instant, controller: Box<dyn Controller>, rtt: Rtt) -> Self {
        Self {
            rtt,
            controller,
            in_flight: 0,
            delivered: 0,
            delivered_at: now,
            first_sent_at: now,
            app_limited_until: 0,
            round_end: 0,
            credit: Self::BURST_MIN,
            credited_at: now,
            reordering: 1,
        }
    }

    /// Bytes on their way.
    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// What the controller allows a second.
    pub fn rate(&self) -> Option<f64> {
        self.controller.rate()
    }

    /// Bytes a second that have been seen to arrive; None while nothing is known.
    pub fn arrival_rate(&self) -> Option<f64> {
        self.controller.arrival_rate()
    }

    /// What the controller allows on its way.
    pub fn window(&self) -> u64 {
        self.controller.window()
    }

    /// What leaves comes in pieces of this many bytes from now on.
    pub fn on_datagram(&mut self, bytes: u64) {
        self.controller.on_datagram(bytes);
    }

    /// Whether more may leave now, and how much.
    pub fn poll_leave(&mut self, now: Instant) -> Leave {
        let room = self.controller.window().saturating_sub(self.in_flight);
        if room == 0 {
            return Leave::Full;
        }
        let Some(rate) = self.controller.rate() else { return Leave::Now(room) };
        let burst = (rate * Self::BURST.as_secs_f64()).max(Self::BURST_MIN);
        let passed = now.saturating_duration_since(self.credited_at).as_secs_f64();
        self.credit = rate.mul_add(passed, self.credit).min(burst);
        self.credited_at = now;
        if self.credit > 0.0 {
            return Leave::Now(room.min(self.credit.ceil() as u64));
        }
        let quantum = (rate * Self::QUANTUM.as_secs_f64()).clamp(1.0, Self::QUANTUM_MAX);
        let wait = (quantum - self.credit) / rate;
        Leave::At(now + Duration::from_secs_f64(wait.clamp(1e-6, 60.0)))
    }

    /// A datagram leaves.
    pub fn on_sent(&mut self, now: Instant, bytes: u64) -> Stamp {
        if self.in_flight == 0 {
            // The pipe was empty: time without anything to measure does not count.
            self.first_sent_at = now;
            self.delivered_at = now;
        }
        self.in_flight += bytes;
        self.credit -= bytes as f64;
        Stamp {
            sent_at: now,
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            first_sent_at: self.first_sent_at,
            app_limited: self.app_limited_until > self.delivered,
        }
    }

    /// There is nothing to send although more might leave.
    pub fn on_idle(&mut self) {
        self.app_limited_until = (self.delivered + self.in_flight).max(1);
    }

    /// Datagrams of together `bytes` have arrived; `newest` is the stamp of the one that left last.
    /// `rtt` is a measurement, if any of them left only once.
    pub fn on_delivered(&mut self, now: Instant, bytes: u64, newest: &Stamp, rtt: Option<Duration>) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
        self.delivered += bytes;
        self.delivered_at = now;
        let round_began = newest.delivered >= self.round_end;
        if round_began {
            self.round_end = self.delivered;
        }
        self.first_sent_at = self.first_sent_at.max(newest.sent_at);
        match rtt {
            Some(rtt) => self.rtt.on_measured(rtt),
            None => self.rtt.on_progress(),
        }
        // The slower of the two: acknowledgements that come in a heap say nothing about the
        // network's speed.
        let sending = newest.sent_at.saturating_duration_since(newest.first_sent_at);
        let arriving = now.saturating_duration_since(newest.delivered_at);
        let interval = sending.max(arriving).as_secs_f64();
        let rate = (interval > 0.0).then(|| (self.delivered - newest.delivered) as f64 / interval);
        let app_limited = newest.app_limited;
        let in_flight = self.in_flight;
        self.controller.on_delivered(now, &Sample { bytes, in_flight, rtt, rate, app_limited, round_began });
    }

    /// How long something that left before what has arrived may still come (RFC 8985, 6.2).
    pub fn loss_patience(&self) -> Duration {
        let rtt = self.rtt.smoothed().unwrap_or_default().max(self.rtt.latest());
        rtt + rtt * self.reordering / 4 + Duration::from_micros(500)
    }

    /// Something that had been taken for lost came after all.
    pub fn on_spurious_loss(&mut self) {
        self.reordering = (self.reordering + 1).min(Self::REORDERING_MAX);
    }

    /// Whether datagrams have been seen to overtake each other.
    pub fn reorders(&self) -> bool {
        self.reordering > 1
    }

    /// A datagram is taken for lost.
    pub fn on_lost(&mut self, now: Instant, bytes: u64) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
        self.controller.on_lost(now, bytes);
    }

    /// Something that had been forgotten arrives after all: it counts as on its way again.
    pub fn on_found(&mut self, bytes: u64) {
        self.in_flight += bytes;
    }

    /// What was on its way no longer matters to anybody.
    pub fn on_forgotten(&mut self, bytes: u64) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
    }

    /// Nothing has been heard for a timeout.
    pub fn on_timeout(&mut self, now: Instant) {
        self.rtt.on_timeout();
        self.controller.on_timeout(now);
    }
}
