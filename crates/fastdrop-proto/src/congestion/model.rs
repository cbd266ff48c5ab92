//! A controller that measures the path instead of waiting for it to drop: the model of BBR
//! (draft-cardwell-iccrg-bbr-congestion-control-00), with a gentler look at the smallest round
//! trip.

use super::{Controller, Sample};
use std::time::{Duration, Instant};

/// Sends at the rate at which bytes arrive, probing now and then for more, with about two round
/// trips on their way.
#[derive(Debug)]
pub struct Model {
    datagram: u64,
    phase: Phase,
    /// The largest rate of each of the last rounds, newest last.
    rates: [f64; Model::ROUNDS],
    round: usize,
    rtt_min: Option<(Duration, Instant)>,
    rtt_latest: Duration,
    /// The best rate when it last grew by a quarter, and rounds since.
    full: (f64, u32),
    lost: u64,
    delivered: u64,
    /// The share that was lost in the last rounds, smoothed.
    loss: f64,
    /// What persistent heavy loss leaves of the rate.
    restraint: f64,
    timed_out: bool,
    /// Bytes that may be on their way since a queue has overflowed; None while none has.
    in_flight_max: Option<f64>,
    /// The most bytes that were on their way in this round.
    in_flight: u64,
    /// Rounds since the last overflow.
    overflow_rounds: u32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    Startup,
    Drain,
    /// Which part of the cycle of gains, and since when.
    Cruise(usize, Instant),
    /// Until when.
    ProbeRtt(Instant),
}

impl Model {
    /// Rounds for which a rate is remembered.
    const ROUNDS: usize = 10;
    /// Doubles what is sent each round: 2 / ln 2.
    const GAIN_STARTUP: f64 = 2.885;
    const GAINS: [f64; 4] = [1.25, 0.75, 1.0, 1.0];
    /// The smallest round trip is believed for so long.
    const RTT_MIN_AGE: Duration = Duration::from_secs(10);
    const PROBE_RTT: Duration = Duration::from_millis(200);
    /// Datagrams before anything is known (RFC 6928).
    const WINDOW_FIRST: u64 = 10;
    const WINDOW_MIN: u64 = 4;
    /// Datagrams on top of what a path needs, as they come and are answered in bursts.
    const WINDOW_SLACK: u64 = 3;
    /// The allowance that drivers and timers need on top of the path's own product, in bytes a
    /// second times their delay.
    const SLACK: Duration = Duration::from_micros(500);
    const SLACK_MAX: f64 = 262_144.0;
    /// Loss beyond this share of a round is taken for congestion.
    const LOSS_MAX: f64 = 1.0 / 3.0;
    /// Loss beyond this share of a round, behind a queue, ends the startup of a sender that does
    /// not always have something to send.
    const LOSS_STARTUP: f64 = 0.02;
    /// Rounds without a rate that is better by a quarter end it too.
    const FULL_ROUNDS: u32 = 3;
    /// Loss beyond this share of a round is an overflow, if round trips are longer by half.
    const LOSS_OVERFLOW: f64 = 0.02;
    /// The share of the bytes on their way that an overflow leaves: what is left to CUBIC and Reno,
    /// which give way too, and take long to come back.
    const DECREASE: f64 = 0.5;
    /// Datagrams by which they grow in each round after that, times the rounds since.
    const INCREASE: f64 = 0.5;
    /// The rounds after an overflow in which loss belongs to it.
    const OVERFLOW_ECHO: u32 = 3;
    /// An overflow within so many rounds after another shows that others do not give way: then
    /// neither does this one, or it would be left with nothing.
    const OVERFLOW_PAUSE: u32 = 6;
    /// Up to this share, what is lost is sent on top of what the path delivers.
    const LOSS_BORNE: f64 = 0.25;

    /// Nothing is known of the path. Datagrams have about so many bytes.
    pub fn new(datagram: u64) -> Self {
        Self {
            datagram,
            phase: Phase::Startup,
            rates: [0.0; Self::ROUNDS],
            round: 0,
            rtt_min: None,
            rtt_latest: Duration::ZERO,
            full: (0.0, 0),
            lost: 0,
            delivered: 0,
            loss: 0.0,
            restraint: 1.0,
            timed_out: false,
            in_flight_max: None,
            in_flight: 0,
            overflow_rounds: Self::OVERFLOW_PAUSE,
        }
    }

    fn best_rate(&self) -> f64 {
        self.rates.iter().copied().fold(0.0, f64::max)
    }

    /// Bytes that fill the path without a queue.
    fn product(&self) -> f64 {
        self.rtt_min.map_or(0.0, |(rtt, _)| self.best_rate() * rtt.as_secs_f64())
    }

    fn gain(&self) -> f64 {
        match self.phase {
            Phase::Startup => Self::GAIN_STARTUP,
            Phase::Drain => 1.0 / Self::GAIN_STARTUP,
            Phase::Cruise(step, _) => Self::GAINS.get(step).copied().unwrap_or(1.0),
            Phase::ProbeRtt(..) => 1.0,
        }
    }

    /// The bytes that have to leave for each one that arrives, where loss comes with the path and
    /// not with the load.
    fn overhead(&self) -> f64 {
        1.0 / (1.0 - self.loss.min(Self::LOSS_BORNE))
    }

    fn on_round(&mut self, app_limited: bool) {
        // A round in which there was little to send says nothing about the path: what was known of
        // it stays.
        if !app_limited {
            self.round = (self.round + 1) % Self::ROUNDS;
            if let Some(slot) = self.rates.get_mut(self.round) {
                *slot = 0.0;
            }
        }
        let total = self.lost + self.delivered;
        if total > 20 * self.datagram {
            let share = self.lost as f64 / total as f64;
            // Loss behind a queue comes with the load: more of it would not get through either.
            let queued = self.rtt_min.is_some_and(|(min, _)| self.rtt_latest > min + min / 4);
            self.loss += (if queued { 0.0 } else { share } - self.loss) / 4.0;
            if queued && app_limited && share > Self::LOSS_STARTUP {
                // The path is full, and the sender has not enough to find that out by its rate.
                self.full.1 = Self::FULL_ROUNDS;
            }
            self.on_overflow(share > Self::LOSS_OVERFLOW);
            let heavy = share > Self::LOSS_MAX;
            self.restraint =
                if heavy { (self.restraint * 0.85).max(0.2) } else { (self.restraint * 1.1).min(1.0) };
            (self.lost, self.delivered) = (0, 0);
        }
    }

    /// Gives way to others where a queue overflows, and takes it back slowly.
    fn on_overflow(&mut self, lost: bool) {
        let long = self.rtt_min.is_some_and(|(min, _)| self.rtt_latest > min + min / 2);
        let product = self.product();
        self.overflow_rounds = self.overflow_rounds.saturating_add(1);
        if lost && long {
            // What follows at once was on its way already.
            if self.overflow_rounds > Self::OVERFLOW_ECHO {
                // Where giving way changes nothing, the others do not, and take all.
                let again = self.overflow_rounds <= Self::OVERFLOW_PAUSE;
                let most =
                    self.in_flight_max.map_or(self.in_flight as f64, |max| max.min(self.in_flight as f64));
                self.in_flight_max = (!again).then_some(most * Self::DECREASE);
                self.overflow_rounds = 0;
            }
        } else if let Some(max) = &mut self.in_flight_max {
            *max += (Self::INCREASE * f64::from(self.overflow_rounds)).max(1.0) * self.datagram as f64;
            if *max > Self::GAIN_STARTUP * product {
                self.in_flight_max = None;
            }
        }
        self.in_flight = 0;
    }

    fn on_phase(&mut self, now: Instant, sample: &Sample) {
        match self.phase {
            Phase::Startup => {
                if sample.round_began && !sample.app_limited {
                    let best = self.best_rate();
                    if best >= self.full.0 * 1.25 {
                        self.full = (best, 0);
                    } else {
                        self.full.1 += 1;
                    }
                }
                if self.full.1 >= Self::FULL_ROUNDS {
                    self.phase = Phase::Drain;
                }
            }
            Phase::Drain => {
                if sample.in_flight as f64 <= self.product() {
                    // Flows that begin together should not probe together.
                    let step = (2 + (self.delivered / self.datagram) as usize) % Self::GAINS.len();
                    self.phase = Phase::Cruise(step, now);
                }
            }
            Phase::Cruise(step, since) => {
                let rtt = self.rtt_min.map_or(Duration::ZERO, |(rtt, _)| rtt);
                let long = now.saturating_duration_since(since) > rtt;
                let emptied = step == 1 && sample.in_flight as f64 <= self.product();
                if long || emptied {
                    self.phase = Phase::Cruise((step + 1) % Self::GAINS.len(), now);
                }
            }
            Phase::ProbeRtt(until) if now >= until => {
                if let Some((_, at)) = &mut self.rtt_min {
                    *at = now;
                }
                self.phase =
                    if self.full.1 >= Self::FULL_ROUNDS { Phase::Cruise(2, now) } else { Phase::Startup };
            }
            Phase::ProbeRtt(..) => {}
        }
    }
}

impl Controller for Model {
    fn on_delivered(&mut self, now: Instant, sample: &Sample) {
        self.timed_out = false;
        self.delivered += sample.bytes;
        self.in_flight = self.in_flight.max(sample.in_flight + sample.bytes);
        if sample.round_began {
            self.on_round(sample.app_limited);
        }
        if let Some(rate) = sample.rate
            && (!sample.app_limited || rate > self.best_rate())
            && let Some(slot) = self.rates.get_mut(self.round)
        {
            *slot = slot.max(rate);
        }
        if let Some(rtt) = sample.rtt {
            self.rtt_latest = rtt;
            let expired =
                self.rtt_min.is_none_or(|(_, at)| now.saturating_duration_since(at) > Self::RTT_MIN_AGE);
            if expired && self.rtt_min.is_some() && !matches!(self.phase, Phase::ProbeRtt(..)) {
                self.phase = Phase::ProbeRtt(now + Self::PROBE_RTT.max(rtt));
                self.rtt_min = Some((rtt, now));
            }
            if self.rtt_min.is_none_or(|(min, _)| rtt <= min) {
                self.rtt_min = Some((rtt, now));
            }
        }
        self.on_phase(now, sample);
    }

    fn on_lost(&mut self, _now: Instant, bytes: u64) {
        self.lost += bytes;
    }

    fn on_timeout(&mut self, _now: Instant) {
        self.timed_out = true;
    }

    fn on_datagram(&mut self, bytes: u64) {
        self.datagram = bytes;
    }

    fn window(&self) -> u64 {
        if self.timed_out {
            return self.datagram;
        }
        let product = self.product();
        let floor = (Self::WINDOW_MIN * self.datagram) as f64;
        if product == 0.0 {
            return Self::WINDOW_FIRST * self.datagram;
        }
        let slack = (self.best_rate() * Self::SLACK.as_secs_f64()).min(Self::SLACK_MAX)
            + (Self::WINDOW_SLACK * self.datagram) as f64;
        let window = match self.phase {
            Phase::Startup | Phase::Drain => {
                Self::GAIN_STARTUP.mul_add(product, slack).max((Self::WINDOW_FIRST * self.datagram) as f64)
            }
            Phase::Cruise(..) => 2.0_f64.mul_add(product, slack),
            Phase::ProbeRtt(..) => 0.5 * product,
        };
        let window = self.in_flight_max.map_or(window, |max| window.min(max));
        (window * self.overhead()).max(floor) as u64
    }

    fn arrival_rate(&self) -> Option<f64> {
        let best = self.best_rate();
        (best > 0.0).then_some(best)
    }

    fn rate(&self) -> Option<f64> {
        let best = self.best_rate();
        (best > 0.0 && self.rtt_min.is_some())
            .then(|| (best * self.gain() * self.overhead() * self.restraint).max(self.datagram as f64))
    }
}
